//! What is evaluated: a detector together with the label that its rule looks for.

use crate::config::{PolicyConfig, RuleConfig, ScopedPolicyConfig};
use crate::detector::Detector;
use crate::policy::{PolicyError, usual_label};

/// One detector and its positive label. A detector with rules for several labels is one subject per label.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    pub detector: String,
    /// The detector's labels, in the order of its outputs.
    pub labels: Vec<String>,
    /// The label that is looked for; every other one is negative.
    pub positive: String,
    /// The rule's category, where it has one.
    pub category: Option<String>,
    /// The rule's `review_at`.
    pub review_at: Option<f32>,
    /// The rule's `flag_at`.
    pub flag_at: Option<f32>,
}

/// The policy with a default rule added for every detector that has no rule and is no shadow. A worker refuses to start
/// with such a detector, since no rule would judge it; an evaluation needs only its positive label.
///
/// # Errors
/// When a detector has none of the usual labels, and `policy.label` is not configured.
pub fn with_default_rules(
    policy: &PolicyConfig,
    policies: &[ScopedPolicyConfig],
    detectors: &[Detector],
) -> Result<PolicyConfig, PolicyError> {
    let mut policy = policy.clone();
    for detector in detectors.iter().filter(|detector| !detector.shadow) {
        if rules_for(&policy, policies, detector).next().is_none() {
            let label = positive_label(&policy, detector, detectors)?;
            policy.rules.push(RuleConfig::new(&detector.name, &label, policy.review_at, policy.flag_at));
        }
    }
    Ok(policy)
}

/// The rules over a detector, those of `[policy]` first.
fn rules_for<'a>(
    policy: &'a PolicyConfig,
    policies: &'a [ScopedPolicyConfig],
    detector: &'a Detector,
) -> impl Iterator<Item = &'a RuleConfig> {
    let rules = policy.rules.iter().chain(policies.iter().flat_map(|policy| &policy.rules));
    rules.filter(|rule| rule.detector.as_ref() == Some(&detector.name))
}

/// The subjects under policies in which every detector but the shadows has a rule. Where several rules look for one label,
/// the first gives the category and the thresholds.
///
/// # Errors
/// When a shadow detector has none of the usual labels, and `policy.label` is not configured.
pub fn subjects(
    policy: &PolicyConfig,
    policies: &[ScopedPolicyConfig],
    detectors: &[Detector],
) -> Result<Vec<Subject>, PolicyError> {
    let mut subjects: Vec<Subject> = Vec::new();
    for detector in detectors {
        let mut add = |positive: String, category, review_at, flag_at| {
            if !subjects.iter().any(|other| other.detector == detector.name && other.positive == positive) {
                let (detector, labels) = (detector.name.clone(), detector.labels.clone());
                subjects.push(Subject { detector, labels, positive, category, review_at, flag_at });
            }
        };
        for rule in rules_for(policy, policies, detector) {
            add(rule.label.clone().unwrap_or_default(), rule.category.clone(), rule.review_at, rule.flag_at);
        }
        if detector.shadow {
            add(positive_label(policy, detector, detectors)?, None, None, None);
        }
    }
    Ok(subjects)
}

/// The configured label, or else a usual one. A configured label that only another detector has does not apply to this
/// detector. A label that no detector has is kept, so that the policy refuses it.
fn positive_label(policy: &PolicyConfig, detector: &Detector, all: &[Detector]) -> Result<String, PolicyError> {
    let configured = &policy.label;
    let meant_for_others =
        !detector.labels.contains(configured) && all.iter().any(|other| other.labels.contains(configured));
    if !configured.is_empty() && !meant_for_others {
        return Ok(configured.clone());
    }
    usual_label(detector).map(str::to_owned).ok_or_else(|| PolicyError::NoUsualLabel {
        detector: detector.name.clone(),
        labels: detector.labels.iter().map(|label| format!("\"{label}\"")).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::policy::{PolicySet, tests::detector};

    fn found(policy: &PolicyConfig, detectors: &[Detector]) -> Vec<(String, String, bool)> {
        found_with(policy, &[], detectors)
    }

    fn found_with(
        policy: &PolicyConfig,
        policies: &[ScopedPolicyConfig],
        detectors: &[Detector],
    ) -> Vec<(String, String, bool)> {
        let policy = with_default_rules(policy, policies, detectors).unwrap();
        let subjects = subjects(&policy, policies, detectors).unwrap();
        subjects.into_iter().map(|s| (s.detector, s.positive, s.flag_at.is_some())).collect()
    }

    #[test]
    fn every_detector_gets_a_positive_label() {
        let shadow = Detector { shadow: true, ..detector("s", &["fake", "real"]) };
        let detectors = [detector("a", &["by human", "by AI"]), detector("b", &["cat", "dog"]), shadow];
        let policy = PolicyConfig { label: "dog".into(), ..PolicyConfig::default() };
        let expected = [("a", "by AI", true), ("b", "dog", true), ("s", "fake", false)];
        assert_eq!(found(&policy, &detectors), expected.map(|(d, l, judged)| (d.into(), l.into(), judged)));
    }

    #[test]
    fn a_rule_decides_and_two_rules_make_two_subjects() {
        let rule = |label: &str| RuleConfig::new("d", label, 0.5, 0.9);
        let policy = PolicyConfig { rules: ["x", "y", "x"].map(rule).to_vec(), ..PolicyConfig::default() };
        let detectors = [detector("d", &["by AI", "x", "y"])];
        assert_eq!(found(&policy, &detectors), ["x", "y"].map(|label| ("d".into(), label.into(), true)));
    }

    #[test]
    fn the_rules_of_tenants_are_subjects_too() {
        let rule = |label: &str| RuleConfig::new("b", label, 0.5, 0.9);
        let tenant = |label| ScopedPolicyConfig { rules: vec![rule(label)], ..ScopedPolicyConfig::default() };
        let detectors = [detector("b", &["cat", "dog"])];
        let expected = ["cat", "dog"].map(|label| ("b".into(), label.into(), true));
        // No label of this detector is usual, and none is needed.
        assert_eq!(found_with(&PolicyConfig::default(), &["cat", "dog", "cat"].map(tenant), &detectors), expected);
    }

    #[test]
    fn a_label_that_no_detector_has_is_not_replaced_by_another() {
        let detectors = [detector("a", &["by human", "by AI"])];
        let policy = PolicyConfig { label: "by ai".into(), ..PolicyConfig::default() };
        let policy = with_default_rules(&policy, &[], &detectors).unwrap();
        let config = Config { policy, ..Config::default() };
        assert!(matches!(PolicySet::resolve(&config, &detectors, false), Err(PolicyError::UnknownLabel { .. })));
    }

    #[test]
    fn a_detector_without_a_usual_label_needs_a_configured_one() {
        let detectors = [detector("b", &["cat", "dog"])];
        let error = with_default_rules(&PolicyConfig::default(), &[], &detectors).unwrap_err();
        assert!(error.to_string().contains("`policy.label`"), "{error}");
    }
}
