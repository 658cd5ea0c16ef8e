//! The policy: rules checked once against the detectors that are really there, so that it never fails open.
//!
//! Applying the rules to scores is in `screen::judge`.

use sha2::{Digest, Sha256};

pub mod options;

use crate::config::PolicyConfig;
use crate::detector::Detector;
use crate::job::PolicyRef;

/// Labels that usually mean the class to look for, in the order of preference.
const USUAL_LABELS: [&str; 10] =
    ["by AI", "fake", "AI", "AI-generated", "generated", "synthetic", "artificial", "deepfake", "nsfw", "unsafe"];

/// One rule: from `review_at` on a person should look, from `flag_at` on the image is flagged.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// A configured detector.
    pub detector: String,
    /// One of its labels.
    pub label: String,
    /// Probability in `0..=1`.
    pub review_at: f32,
    /// Probability in `review_at..=1`.
    pub flag_at: f32,
}

/// Rules that fit the detectors.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Every rule; the strongest outcome wins.
    pub rules: Vec<Rule>,
    /// Name and digest, recorded with every verdict.
    pub reference: PolicyRef,
    /// The one rule that nobody wrote, to be said at start.
    pub is_default: bool,
}

/// Why a policy cannot be used with these detectors.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A rule for a detector that is not configured.
    #[error("policy: a rule names the detector \"{detector}\", but the detectors are {known}")]
    UnknownDetector {
        /// As the rule has it.
        detector: String,
        /// Those that are configured.
        known: String,
    },
    /// A rule for a label the detector does not have.
    #[error("policy: a rule names the label \"{label}\", but the labels of {detector} are {known}")]
    UnknownLabel {
        /// The detector.
        detector: String,
        /// As the rule has it.
        label: String,
        /// Those it has.
        known: String,
    },
    /// A rule for a detector that is marked as shadow.
    #[error("policy: {detector} is marked `shadow = true`, so no rule may judge it; remove the mark or the rule")]
    Shadow {
        /// The detector.
        detector: String,
    },
    /// A detector nobody judges.
    #[error(
        "policy: no rule judges the detector {detector} ({labels}), so nothing it says would count\n  hint: add to the configuration\n    [[policy.rules]]\n    detector = \"{detector}\"\n    label = \"{example}\"\n    review_at = 0.5\n    flag_at = 0.9\n  or mark it `shadow = true`"
    )]
    Unjudged {
        /// The detector.
        detector: String,
        /// Its labels.
        labels: String,
        /// One of them.
        example: String,
    },
    /// No label for the default rule.
    #[error(
        "policy: none of the labels of {detector} ({labels}) is known to mean what should be flagged\n  hint: name it with --label"
    )]
    NoUsualLabel {
        /// The detector.
        detector: String,
        /// Its labels.
        labels: String,
    },
    /// Thresholds out of range or in the wrong order.
    #[error(
        "policy: the rule for {detector}, \"{label}\" needs 0 <= review_at <= flag_at <= 1, but has review_at = {review_at}, flag_at = {flag_at}"
    )]
    Thresholds {
        /// The rule's detector.
        detector: String,
        /// The rule's label.
        label: String,
        /// As configured.
        review_at: f32,
        /// As configured.
        flag_at: f32,
    },
}

impl Policy {
    /// Checks the configured rules against the detectors. With no rule at all, `may_default` allows the default rule
    /// for a single detector.
    ///
    /// # Errors
    /// When a rule names an unknown detector or label, a threshold is out of range, or a detector is judged by no rule
    /// and not marked as shadow.
    pub fn resolve(config: &PolicyConfig, detectors: &[Detector], may_default: bool) -> Result<Self, PolicyError> {
        let judged: Vec<&Detector> = detectors.iter().filter(|d| !d.shadow).collect();
        let is_default = config.rules.is_empty() && may_default && judged.len() == 1;
        let rules = if is_default { vec![default_rule(config, judged[0])?] } else { configured(config) };

        for rule in &rules {
            let detector =
                detectors.iter().find(|d| d.name == rule.detector).ok_or_else(|| PolicyError::UnknownDetector {
                    detector: rule.detector.clone(),
                    known: quoted(detectors.iter().map(|d| d.name.as_str())),
                })?;
            if detector.shadow {
                return Err(PolicyError::Shadow { detector: detector.name.clone() });
            }
            if !detector.labels.contains(&rule.label) {
                return Err(PolicyError::UnknownLabel {
                    detector: detector.name.clone(),
                    label: rule.label.clone(),
                    known: quoted(detector.labels.iter().map(String::as_str)),
                });
            }
            // Written so that a threshold that is not a number is refused too.
            if !(0.0 <= rule.review_at && rule.review_at <= rule.flag_at && rule.flag_at <= 1.0) {
                let Rule { detector, label, review_at, flag_at } = rule.clone();
                return Err(PolicyError::Thresholds { detector, label, review_at, flag_at });
            }
        }
        if let Some(detector) = judged.iter().find(|d| rules.iter().all(|rule| rule.detector != d.name)) {
            return Err(PolicyError::Unjudged {
                detector: detector.name.clone(),
                labels: quoted(detector.labels.iter().map(String::as_str)),
                example: usual_label(detector).unwrap_or(&detector.labels[0]).to_owned(),
            });
        }
        let sha256 = hex::encode(Sha256::digest(format!("{rules:?}")));
        Ok(Self { rules, reference: PolicyRef { name: config.name.clone(), sha256 }, is_default })
    }
}

fn configured(config: &PolicyConfig) -> Vec<Rule> {
    let rule = |r: &crate::config::RuleConfig| Rule {
        detector: r.detector.clone(),
        label: r.label.clone(),
        review_at: r.review_at,
        flag_at: r.flag_at,
    };
    config.rules.iter().map(rule).collect()
}

fn default_rule(config: &PolicyConfig, detector: &Detector) -> Result<Rule, PolicyError> {
    let label = match config.label.as_str() {
        "" => usual_label(detector).ok_or_else(|| PolicyError::NoUsualLabel {
            detector: detector.name.clone(),
            labels: quoted(detector.labels.iter().map(String::as_str)),
        })?,
        named => named,
    };
    Ok(Rule {
        detector: detector.name.clone(),
        label: label.to_owned(),
        review_at: config.review_at,
        flag_at: config.flag_at,
    })
}

pub(crate) fn usual_label(detector: &Detector) -> Option<&str> {
    USUAL_LABELS
        .iter()
        .find_map(|usual| detector.labels.iter().find(|label| label.eq_ignore_ascii_case(usual)))
        .map(String::as_str)
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::RuleConfig;
    use crate::detector::{Filter, Geometry, Normalisation, Resize};

    pub(crate) fn detector(name: &str, labels: &[&str]) -> Detector {
        Detector {
            name: name.into(),
            model: PathBuf::new(),
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            geometry: Geometry {
                resize: Resize::Exact { width: 8, height: 8 },
                filter: Filter::Bicubic,
                width: 8,
                height: 8,
                rounding: crate::detector::CropRounding::Down,
            },
            normalisation: Normalisation {
                scale: 1.0,
                mean: [0.0; 3],
                std: [1.0; 3],
                channels: crate::detector::Channels::Rgb,
            },
            activation: None,
            multi_label: false,
            shadow: false,
            digest: name.into(),
            model_sha256: name.into(),
            golden: None,
        }
    }

    fn rule(detector: &str, label: &str, review_at: f32, flag_at: f32) -> PolicyConfig {
        let rules = vec![RuleConfig { detector: detector.into(), label: label.into(), review_at, flag_at }];
        PolicyConfig { rules, ..PolicyConfig::default() }
    }

    #[test]
    fn a_policy_never_fails_open() {
        let d = [detector("d", &["by human", "by AI"])];
        let error =
            |config: &PolicyConfig, detectors: &[Detector]| Policy::resolve(config, detectors, true).unwrap_err();
        assert!(matches!(error(&rule("e", "by AI", 0.5, 0.9), &d), PolicyError::UnknownDetector { .. }));
        assert!(matches!(error(&rule("d", "by ai", 0.5, 0.9), &d), PolicyError::UnknownLabel { .. }));
        for (review_at, flag_at) in [(0.9, 0.5), (-0.1, 0.5), (0.5, 1.1), (f32::NAN, 0.9), (0.5, f32::NAN)] {
            assert!(matches!(error(&rule("d", "by AI", review_at, flag_at), &d), PolicyError::Thresholds { .. }));
        }
        let two = [d[0].clone(), detector("e", &["x", "y"])];
        assert!(matches!(error(&rule("d", "by AI", 0.5, 0.9), &two), PolicyError::Unjudged { .. }));
        assert!(matches!(error(&PolicyConfig::default(), &two), PolicyError::Unjudged { .. }));
        assert!(matches!(
            error(&PolicyConfig::default(), &[detector("e", &["x", "y"])]),
            PolicyError::NoUsualLabel { .. }
        ));
        assert!(matches!(
            Policy::resolve(&PolicyConfig::default(), &d, false).unwrap_err(),
            PolicyError::Unjudged { .. }
        ));
        let shadow = [Detector { shadow: true, ..d[0].clone() }];
        assert!(matches!(error(&rule("d", "by AI", 0.5, 0.9), &shadow), PolicyError::Shadow { .. }));
    }

    #[test]
    fn a_single_detector_gets_a_default_rule_that_says_so() {
        let policy = Policy::resolve(&PolicyConfig::default(), &[detector("d", &["by human", "by AI"])], true).unwrap();
        assert!(policy.is_default);
        let expected = Rule { detector: "d".into(), label: "by AI".into(), review_at: 0.5, flag_at: 0.9 };
        assert_eq!(policy.rules, [expected]);
    }

    #[test]
    fn the_digest_follows_the_rules_and_not_the_name() {
        let d = [detector("d", &["by human", "by AI"])];
        let digest = |config: &PolicyConfig| Policy::resolve(config, &d, true).unwrap().reference.sha256;
        let base = rule("d", "by AI", 0.5, 0.9);
        assert_eq!(digest(&base), digest(&PolicyConfig { name: "other".into(), ..base.clone() }));
        assert_ne!(digest(&base), digest(&rule("d", "by AI", 0.5, 0.91)));
    }
}
