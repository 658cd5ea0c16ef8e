//! What is evaluated: a detector with the label its rule looks for.

use crate::config::{PolicyConfig, RuleConfig};
use crate::detector::Detector;
use crate::policy::{PolicyError, usual_label};

/// One detector and its positive class. A detector with rules for several labels is a subject for each of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// The detector's name.
    pub detector: String,
    /// Its labels, in the order of its outputs.
    pub labels: Vec<String>,
    /// Which of them is looked for; every other one is negative.
    pub positive: String,
    /// The thresholds of the policy, `review_at` and `flag_at`; none for a shadow detector.
    pub thresholds: Option<(f32, f32)>,
}

/// The policy with a default rule for every detector that has none and is no shadow. A worker refuses to start without
/// one, since nothing would judge that detector; here nothing is judged.
///
/// # Errors
/// When none of the usual labels is among a detector's, and none is configured.
pub fn with_default_rules(policy: &PolicyConfig, detectors: &[Detector]) -> Result<PolicyConfig, PolicyError> {
    let mut policy = policy.clone();
    for detector in detectors.iter().filter(|detector| !detector.shadow) {
        if policy.rules.iter().all(|rule| rule.detector != detector.name) {
            policy.rules.push(RuleConfig {
                detector: detector.name.clone(),
                label: positive(&policy, detector, detectors)?,
                review_at: policy.review_at,
                flag_at: policy.flag_at,
            });
        }
    }
    Ok(policy)
}

/// The subjects under a policy in which every detector but the shadows has a rule.
///
/// # Errors
/// When no label can be found for a shadow detector.
pub fn subjects(policy: &PolicyConfig, detectors: &[Detector]) -> Result<Vec<Subject>, PolicyError> {
    let mut subjects: Vec<Subject> = Vec::new();
    for detector in detectors {
        let mut add = |positive: String, thresholds| {
            if !subjects.iter().any(|other| other.detector == detector.name && other.positive == positive) {
                let (detector, labels) = (detector.name.clone(), detector.labels.clone());
                subjects.push(Subject { detector, labels, positive, thresholds });
            }
        };
        for rule in policy.rules.iter().filter(|rule| rule.detector == detector.name) {
            add(rule.label.clone(), Some((rule.review_at, rule.flag_at)));
        }
        if detector.shadow {
            add(positive(policy, detector, detectors)?, None);
        }
    }
    Ok(subjects)
}

/// The label asked for, or else the usual one. A label that some detector has is not asked for of the others; one that
/// nobody has is kept, so that it is refused.
fn positive(policy: &PolicyConfig, detector: &Detector, all: &[Detector]) -> Result<String, PolicyError> {
    let wanted = &policy.label;
    let meant_for_others = !detector.labels.contains(wanted) && all.iter().any(|other| other.labels.contains(wanted));
    if !wanted.is_empty() && !meant_for_others {
        return Ok(wanted.clone());
    }
    usual_label(detector).map(str::to_owned).ok_or_else(|| PolicyError::NoUsualLabel {
        detector: detector.name.clone(),
        labels: detector.labels.iter().map(|label| format!("\"{label}\"")).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Policy, tests::detector};

    fn found(policy: &PolicyConfig, detectors: &[Detector]) -> Vec<(String, String, bool)> {
        let policy = with_default_rules(policy, detectors).unwrap();
        let subjects = subjects(&policy, detectors).unwrap();
        subjects.into_iter().map(|s| (s.detector, s.positive, s.thresholds.is_some())).collect()
    }

    #[test]
    fn every_detector_gets_a_positive_class() {
        let shadow = Detector { shadow: true, ..detector("s", &["fake", "real"]) };
        let detectors = [detector("a", &["by human", "by AI"]), detector("b", &["cat", "dog"]), shadow];
        let policy = PolicyConfig { label: "dog".into(), ..PolicyConfig::default() };
        let expected = [("a", "by AI", true), ("b", "dog", true), ("s", "fake", false)];
        assert_eq!(found(&policy, &detectors), expected.map(|(d, l, judged)| (d.into(), l.into(), judged)));
    }

    #[test]
    fn a_rule_decides_and_two_rules_make_two_subjects() {
        let rule = |label: &str| RuleConfig { detector: "d".into(), label: label.into(), review_at: 0.5, flag_at: 0.9 };
        let policy = PolicyConfig { rules: ["x", "y", "x"].map(rule).to_vec(), ..PolicyConfig::default() };
        let detectors = [detector("d", &["by AI", "x", "y"])];
        assert_eq!(found(&policy, &detectors), ["x", "y"].map(|label| ("d".into(), label.into(), true)));
    }

    #[test]
    fn a_label_that_nobody_has_is_not_replaced_by_another() {
        let detectors = [detector("a", &["by human", "by AI"])];
        let policy = PolicyConfig { label: "by ai".into(), ..PolicyConfig::default() };
        let policy = with_default_rules(&policy, &detectors).unwrap();
        assert!(matches!(Policy::resolve(&policy, &detectors, false), Err(PolicyError::UnknownLabel { .. })));
    }

    #[test]
    fn a_detector_of_unusual_labels_asks_for_one() {
        let detectors = [detector("b", &["cat", "dog"])];
        let error = with_default_rules(&PolicyConfig::default(), &detectors).unwrap_err();
        assert!(error.to_string().contains("--label"), "{error}");
    }
}
