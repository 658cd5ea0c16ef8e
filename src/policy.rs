//! The policy: rules that were checked once against the configured detectors, so that it never fails open.
//!
//! Applying the rules to scores is in `judge`.

pub mod judge;
pub mod options;

use serde::Serialize;

use crate::canonical::{self, without_negative_zero};
use crate::config::{Config, Origin, PolicyConfig};
use crate::detector::Detector;
use crate::job::{Digests, PolicyRef};

/// Labels that usually name the class to look for, in the order of preference.
const USUAL_LABELS: [&str; 10] =
    ["by AI", "fake", "AI", "AI-generated", "generated", "synthetic", "artificial", "deepfake", "nsfw", "unsafe"];

/// One rule: from `review_at` on a person should review the image, from `flag_at` on it is flagged.
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
    /// Every rule, once, in the canonical order; the strongest outcome wins.
    pub rules: Vec<Rule>,
    /// Name and digest, recorded with every verdict.
    pub reference: PolicyRef,
    /// Whether the only rule is the default one, which is then logged at start.
    pub is_default: bool,
}

/// Why a policy cannot be used with these detectors.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A rule for a detector that is not configured.
    #[error("policy: a rule names the detector \"{detector}\", but the detectors are {known}")]
    UnknownDetector {
        /// The name in the rule.
        detector: String,
        /// The configured detectors.
        known: String,
    },
    /// A rule for a label the detector does not have.
    #[error("policy: a rule names the label \"{label}\", but the labels of {detector} are {known}")]
    UnknownLabel {
        /// The detector.
        detector: String,
        /// The label in the rule.
        label: String,
        /// The detector's labels.
        known: String,
    },
    /// A rule for a shadow detector.
    #[error("policy: {detector} has `shadow = true`, so no rule may judge it\n  hint: remove `shadow` or the rule")]
    Shadow {
        /// The detector.
        detector: String,
    },
    /// A detector that no rule judges.
    #[error(
        "policy: no rule judges the detector {detector}, so its scores would be ignored\n  hint: its labels are {labels}; add a rule for each one that you look for\n    [[policy.rules]]\n    detector = \"{detector}\"\n    label = \"\"\n    review_at = 0.5\n    flag_at = 0.9\n  or set `shadow = true` for the detector"
    )]
    Unjudged {
        /// The detector.
        detector: String,
        /// Its labels. The hint chooses none: a rule for a harmless label would let everything else pass.
        labels: String,
    },
    /// Only shadow detectors.
    #[error(
        "policy: every detector has `shadow = true` ({shadows}), so nothing would be judged and every image would pass\n  hint: remove `shadow` from a detector, and add a rule for each of its labels that you look for"
    )]
    JudgesNothing {
        /// The detectors.
        shadows: String,
    },
    /// One of these, with the place of the rule or detector.
    #[error("{origin}: {error}")]
    At {
        /// Where the rule was set.
        origin: Origin,
        /// What is wrong.
        #[source]
        error: Box<PolicyError>,
    },
    /// No label for the default rule.
    #[error(
        "policy: cannot choose a label for the default rule: none of the labels of {detector} ({labels}) is usually flagged\n  hint: name the label that you look for with `policy.label` or, where a command has it, --label"
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

impl PolicyError {
    /// Adds the line, variable or flag of what is wrong.
    #[must_use]
    pub(crate) fn at(self, config: &Config) -> Self {
        let policy = &config.policy;
        let rule_of = |detector: &String| policy.rules.iter().position(|rule| rule.detector == *detector);
        let rule_for = |detector: &String, label: &String| {
            policy.rules.iter().position(|rule| rule.detector == *detector && rule.label == *label)
        };
        let (rule, default) = match &self {
            Self::UnknownDetector { detector, .. } | Self::Shadow { detector } => (rule_of(detector), "policy.rules"),
            Self::UnknownLabel { detector, label, .. } => (rule_for(detector, label), "policy.label"),
            Self::Thresholds { detector, label, .. } => (rule_for(detector, label), "policy.flag_at"),
            Self::Unjudged { .. } | Self::JudgesNothing { .. } | Self::NoUsualLabel { .. } => (None, "detectors"),
            Self::At { .. } => return self,
        };
        let path = rule.map_or_else(|| default.to_owned(), |index| format!("policy.rules[{index}]"));
        match config.origins.of(&path) {
            Some(origin) => Self::At { origin: origin.clone(), error: Box::new(self) },
            None => self,
        }
    }
}

impl Policy {
    /// Checks the configured rules against the detectors. Where there is no rule and a single detector, `may_default` allows
    /// the default rule.
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
            // This form also refuses a threshold that is not a number.
            if !(0.0 <= rule.review_at && rule.review_at <= rule.flag_at && rule.flag_at <= 1.0) {
                let Rule { detector, label, review_at, flag_at } = rule.clone();
                return Err(PolicyError::Thresholds { detector, label, review_at, flag_at });
            }
        }
        if let Some(detector) = judged.iter().find(|d| rules.iter().all(|rule| rule.detector != d.name)) {
            return Err(PolicyError::Unjudged {
                detector: detector.name.clone(),
                labels: quoted(detector.labels.iter().map(String::as_str)),
            });
        }
        let rules = in_canonical_order(rules);
        let sha256 = canonical::sha256(&canonical_text(&rules));
        Ok(Self { rules, reference: PolicyRef { name: config.name.clone(), sha256 }, is_default })
    }

    /// The first detector that a rule judges and that is not among these.
    #[must_use]
    pub fn first_detector_outside(&self, detectors: &Digests) -> Option<&str> {
        self.rules.iter().map(|rule| rule.detector.as_str()).find(|name| !detectors.contains_key(*name))
    }

    /// Refuses a policy without a rule: it would judge nothing, and everything would pass. An evaluation needs no rule.
    ///
    /// # Errors
    /// When every detector is a shadow.
    pub(crate) fn require_rule(&self, detectors: &[Detector]) -> Result<(), PolicyError> {
        if self.rules.is_empty() {
            let shadows = quoted(detectors.iter().map(|detector| detector.name.as_str()));
            return Err(PolicyError::JudgesNothing { shadows });
        }
        Ok(())
    }

    /// The rules as canonical JSON. The policy's digest is the SHA-256 of this text.
    #[must_use]
    pub fn canonical_text(&self) -> String {
        canonical_text(&self.rules)
    }
}

/// The version of the canonical form. It changes only when the meaning of its fields changes.
const VERSION: u32 = 1;

/// The canonical form of a policy. Fields are declared in the order of their names.
#[derive(Serialize)]
struct CanonicalPolicy<'a> {
    rules: Vec<CanonicalRule<'a>>,
    version: u32,
}

/// The canonical form of a rule. Fields are declared in the order of their names.
#[derive(Serialize)]
struct CanonicalRule<'a> {
    detector: &'a str,
    flag_at: f32,
    label: &'a str,
    review_at: f32,
}

impl<'a> From<&'a Rule> for CanonicalRule<'a> {
    fn from(rule: &'a Rule) -> Self {
        Self {
            detector: &rule.detector,
            flag_at: without_negative_zero(rule.flag_at),
            label: &rule.label,
            review_at: without_negative_zero(rule.review_at),
        }
    }
}

/// Sorts rules by their canonical text and leaves out repetitions. The order of the rules in a file then decides nothing:
/// neither the digest, nor which of two findings that are equally strong comes first.
fn in_canonical_order(mut rules: Vec<Rule>) -> Vec<Rule> {
    let text = |rule: &Rule| canonical::text(&CanonicalRule::from(rule));
    rules.sort_by_cached_key(text);
    rules.dedup_by_key(|rule| text(rule));
    rules
}

fn canonical_text(rules: &[Rule]) -> String {
    canonical::text(&CanonicalPolicy { rules: rules.iter().map(CanonicalRule::from).collect(), version: VERSION })
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
    use crate::canonical::tests::assert_sorted;
    use crate::config::RuleConfig;
    use crate::detector::{Geometry, Normalisation, ResampleFilter, Resize};

    pub(crate) fn detector(name: &str, labels: &[&str]) -> Detector {
        Detector {
            name: name.into(),
            model: PathBuf::new(),
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            geometry: Geometry {
                resize: Resize::Exact { width: 8, height: 8 },
                filter: ResampleFilter::Bicubic,
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
        let without_rules = Policy::resolve(&PolicyConfig::default(), &shadow, true).unwrap();
        assert!(matches!(without_rules.require_rule(&shadow), Err(PolicyError::JudgesNothing { .. })));
        let judging = Policy::resolve(&PolicyConfig::default(), &d, true).unwrap();
        assert!(judging.require_rule(&d).is_ok());
    }

    #[test]
    fn a_hint_lists_all_labels_and_a_pasted_rule_is_refused_until_one_is_chosen() {
        let detectors = [detector("moderation", &["safe", "violence", "nudity"])];
        let error = Policy::resolve(&PolicyConfig::default(), &detectors, false).unwrap_err().to_string();
        assert!(error.contains("hint: its labels are \"safe\", \"violence\", \"nudity\""), "{error}");
        let from = error.find("[[policy.rules]]").unwrap();
        let pasted = &error[from..error.find("\n  or set").unwrap()];
        let table: toml::Table = toml::from_str(pasted).unwrap();
        let rules = table["policy"]["rules"].clone().try_into().unwrap();
        let config = PolicyConfig { rules, ..PolicyConfig::default() };
        let refused = Policy::resolve(&config, &detectors, false).unwrap_err();
        assert!(matches!(&refused, PolicyError::UnknownLabel { label, .. } if label.is_empty()), "{refused}");
    }

    #[test]
    fn a_single_detector_gets_a_default_rule_that_is_marked_as_such() {
        let policy = Policy::resolve(&PolicyConfig::default(), &[detector("d", &["by human", "by AI"])], true).unwrap();
        assert!(policy.is_default);
        let expected = Rule { detector: "d".into(), label: "by AI".into(), review_at: 0.5, flag_at: 0.9 };
        assert_eq!(policy.rules, [expected]);
    }

    fn resolved(config: &PolicyConfig) -> Policy {
        let detectors = [detector("d", &["by human", "by AI"]), detector("e", &["nsfw", "sfw"])];
        let judged: Vec<_> = detectors
            .into_iter()
            .filter(|detector| config.rules.iter().any(|rule| rule.detector == detector.name))
            .collect();
        Policy::resolve(config, &judged, true).unwrap()
    }

    /// These values may change only together with what they cover: every stored verdict names its policy by its digest.
    #[test]
    fn the_canonical_form_of_a_policy_is_pinned_by_value() {
        let one = resolved(&rule("d", "by AI", 0.5, 0.9));
        let text = r#"{"rules":[{"detector":"d","flag_at":0.9,"label":"by AI","review_at":0.5}],"version":1}"#;
        assert_eq!(one.canonical_text(), text);
        assert_eq!(one.reference.sha256, "733a771ddb84dd7e539e8c454a8bd592712b8735987318a58dfdc0b70d3f7ecf");
        assert_sorted(text);

        let rules = [rule("e", "nsfw", -0.0, 0.9), rule("d", "by human", 0.25, 1.0), rule("d", "by AI", 0.5, 0.9)];
        let rules: Vec<_> = rules.into_iter().flat_map(|config| config.rules).collect();
        let several = PolicyConfig { rules: rules.clone(), ..PolicyConfig::default() };
        let text = concat!(
            r#"{"rules":[{"detector":"d","flag_at":0.9,"label":"by AI","review_at":0.5},"#,
            r#"{"detector":"d","flag_at":1.0,"label":"by human","review_at":0.25},"#,
            r#"{"detector":"e","flag_at":0.9,"label":"nsfw","review_at":0.0}],"version":1}"#
        );
        assert_eq!(resolved(&several).canonical_text(), text);
        assert_eq!(
            resolved(&several).reference.sha256,
            "9de2a2960339bd69b76de3f4e2a0aa46969c697512d569c136b8af71b680713f"
        );

        let turned = rules.iter().rev().chain(&rules).cloned().collect();
        let turned = PolicyConfig { rules: turned, ..several.clone() };
        assert_eq!(resolved(&turned).reference, resolved(&several).reference, "order and repetition decide nothing");
        assert_eq!(resolved(&turned).rules, resolved(&several).rules);
    }

    #[test]
    fn the_digest_follows_the_rules_and_not_the_name() {
        let digest = |config: &PolicyConfig| resolved(config).reference.sha256;
        let base = rule("d", "by AI", 0.5, 0.9);
        assert_eq!(digest(&base), digest(&PolicyConfig { name: "other".into(), ..base.clone() }));
        for other in [
            rule("d", "by AI", 0.5, 0.91),
            rule("d", "by AI", 0.51, 0.9),
            rule("d", "by human", 0.5, 0.9),
            rule("e", "nsfw", 0.5, 0.9),
        ] {
            assert_ne!(digest(&base), digest(&other));
        }
    }
}
