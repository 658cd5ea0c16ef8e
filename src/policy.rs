//! The policies: rules that were checked once against the configured detectors, so that no policy fails open.
//!
//! `resolve` checks the configured rules, `set` chooses the policy of a job, and `judge` applies it to facts. `stored` applies
//! it to an image that was judged before.

mod error;
pub mod judge;
pub mod options;
mod resolve;
mod set;
mod stored;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::canonical::{self, without_negative_zero};
use crate::detector::Detector;
use crate::job::{Digests, FindingOutcome, PolicyRef, rule_text};

pub use error::PolicyError;
pub use set::{ImageContext, PolicySet};
pub(crate) use stored::StoredJudgement;

/// Labels that usually name the class to look for, in the order of preference.
const USUAL_LABELS: [&str; 10] =
    ["by AI", "fake", "AI", "AI-generated", "generated", "synthetic", "artificial", "deepfake", "nsfw", "unsafe"];

/// The probabilities from which on a rule is reached, each in `0..=1` and none smaller than the one before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// From here on the image passes with a note.
    pub note_at: Option<f32>,
    /// From here on a person should look.
    pub review_at: Option<f32>,
    /// From here on the image is flagged.
    pub flag_at: Option<f32>,
}

impl Thresholds {
    /// The strongest threshold that a score reaches, and what that means.
    #[must_use]
    pub fn reached(&self, score: f32) -> Option<(FindingOutcome, f32)> {
        let of = |outcome: FindingOutcome, threshold: Option<f32>| {
            threshold.filter(|threshold| score >= *threshold).map(|threshold| (outcome, threshold))
        };
        of(FindingOutcome::Flagged, self.flag_at)
            .or_else(|| of(FindingOutcome::Review, self.review_at))
            .or_else(|| of(FindingOutcome::Noted, self.note_at))
    }

    /// Whether there is any, all are probabilities, and none is smaller than the one before. NaN never is.
    fn are_valid(&self) -> bool {
        let given: Vec<f32> = [self.note_at, self.review_at, self.flag_at].into_iter().flatten().collect();
        !given.is_empty() && given.iter().all(|at| (0.0..=1.0).contains(at)) && given.is_sorted()
    }
}

/// One rule: what a score of a detector means.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name in findings.
    pub name: Option<String>,
    /// What it is about, such as `sexual/nudity`.
    pub category: Option<String>,
    /// From 1 to 5.
    pub severity: Option<u8>,
    /// A configured detector.
    pub detector: String,
    /// One of its labels.
    pub label: String,
    pub thresholds: Thresholds,
}

impl Rule {
    /// Its name, or else what it looks at, as findings show it.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        rule_text(self.name.as_deref(), &self.detector, &self.label)
    }

    /// A rule without a name, a category and a severity.
    #[must_use]
    pub fn new(detector: &str, label: &str, thresholds: Thresholds) -> Self {
        Self { name: None, category: None, severity: None, detector: detector.into(), label: label.into(), thresholds }
    }
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

impl Policy {
    fn new(name: &str, rules: Vec<Rule>, is_default: bool) -> Self {
        let rules = in_canonical_order(rules);
        let sha256 = canonical::sha256(&canonical_text(&rules));
        Self { rules, reference: PolicyRef { name: name.into(), sha256 }, is_default }
    }

    /// The first detector that a rule judges and that is not among these.
    #[must_use]
    pub fn first_detector_outside(&self, detectors: &Digests) -> Option<&str> {
        self.rules.iter().map(|rule| rule.detector.as_str()).find(|name| !detectors.contains_key(*name))
    }

    /// The policy that a text of [`Policy::canonical_text`] describes. None for a form of another release.
    #[must_use]
    pub fn from_canonical(name: &str, text: &str) -> Option<Self> {
        let parsed: CanonicalPolicy<'_> =
            serde_json::from_str(text).ok().filter(|parsed: &CanonicalPolicy<'_>| parsed.version == VERSION)?;
        Some(Self::new(name, parsed.rules.into_iter().map(Rule::from).collect(), false))
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
#[derive(Serialize, Deserialize)]
struct CanonicalPolicy<'a> {
    #[serde(borrow)]
    rules: Vec<CanonicalRule<'a>>,
    version: u32,
}

/// The canonical form of a rule. Fields are declared in the order of their names, and left out where they are not given.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CanonicalRule<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    category: Option<Cow<'a, str>>,
    #[serde(borrow)]
    detector: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flag_at: Option<f32>,
    #[serde(borrow)]
    label: Cow<'a, str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note_at: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    review_at: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    severity: Option<u8>,
}

impl<'a> From<&'a Rule> for CanonicalRule<'a> {
    fn from(rule: &'a Rule) -> Self {
        Self {
            category: rule.category.as_deref().map(Cow::from),
            detector: Cow::from(&rule.detector),
            flag_at: rule.thresholds.flag_at.map(without_negative_zero),
            label: Cow::from(&rule.label),
            name: rule.name.as_deref().map(Cow::from),
            note_at: rule.thresholds.note_at.map(without_negative_zero),
            review_at: rule.thresholds.review_at.map(without_negative_zero),
            severity: rule.severity,
        }
    }
}

impl From<CanonicalRule<'_>> for Rule {
    fn from(rule: CanonicalRule<'_>) -> Self {
        let CanonicalRule { category, detector, flag_at, label, name, note_at, review_at, severity } = rule;
        Self {
            name: name.map(Cow::into_owned),
            category: category.map(Cow::into_owned),
            severity,
            detector: detector.into_owned(),
            label: label.into_owned(),
            thresholds: Thresholds { note_at, review_at, flag_at },
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
    use crate::config::{Config, PolicyConfig, RuleConfig};
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

    fn resolved(rules: &[RuleConfig]) -> Policy {
        let detectors = [detector("d", &["by human", "by AI"]), detector("e", &["nsfw", "sfw"])];
        let is_judged = |detector: &Detector| rules.iter().any(|rule| rule.detector.as_ref() == Some(&detector.name));
        let judged: Vec<_> = detectors.into_iter().filter(is_judged).collect();
        let policy = PolicyConfig { rules: rules.to_vec(), ..PolicyConfig::default() };
        let config = Config { policy, ..Config::default() };
        PolicySet::resolve(&config, &judged, true).unwrap().fallback().clone()
    }

    /// These values may change only together with what they cover: every stored verdict names its policy by its digest.
    #[test]
    fn the_canonical_form_of_a_policy_is_pinned_by_value() {
        let one = resolved(&[RuleConfig::new("d", "by AI", 0.5, 0.9)]);
        let text = r#"{"rules":[{"detector":"d","flag_at":0.9,"label":"by AI","review_at":0.5}],"version":1}"#;
        assert_eq!(one.canonical_text(), text);
        assert_eq!(one.reference.sha256, "733a771ddb84dd7e539e8c454a8bd592712b8735987318a58dfdc0b70d3f7ecf");
        assert_sorted(text);

        let rules = [
            RuleConfig::new("e", "nsfw", -0.0, 0.9),
            RuleConfig::new("d", "by human", 0.25, 1.0),
            RuleConfig::new("d", "by AI", 0.5, 0.9),
        ];
        let text = concat!(
            r#"{"rules":[{"detector":"d","flag_at":0.9,"label":"by AI","review_at":0.5},"#,
            r#"{"detector":"d","flag_at":1.0,"label":"by human","review_at":0.25},"#,
            r#"{"detector":"e","flag_at":0.9,"label":"nsfw","review_at":0.0}],"version":1}"#
        );
        let several = resolved(&rules);
        assert_eq!(several.canonical_text(), text);
        assert_eq!(several.reference.sha256, "9de2a2960339bd69b76de3f4e2a0aa46969c697512d569c136b8af71b680713f");

        let turned: Vec<_> = rules.iter().rev().chain(&rules).cloned().collect();
        let turned = resolved(&turned);
        assert_eq!(turned.reference, several.reference, "order and repetition decide nothing");
        assert_eq!(turned.rules, several.rules);

        let whole = RuleConfig {
            name: Some("porn".into()),
            category: Some("sexual/explicit".into()),
            severity: Some(4),
            note_at: Some(0.25),
            review_at: None,
            ..RuleConfig::new("e", "nsfw", 0.5, 0.75)
        };
        let text = concat!(
            r#"{"rules":[{"category":"sexual/explicit","detector":"e","flag_at":0.75,"label":"nsfw","name":"porn","#,
            r#""note_at":0.25,"severity":4}],"version":1}"#
        );
        let whole = resolved(&[whole]);
        assert_eq!(whole.canonical_text(), text);
        let read = Policy::from_canonical("another name", text).unwrap();
        assert_eq!((read.rules, read.reference.sha256), (whole.rules.clone(), whole.reference.sha256.clone()));
        assert!(Policy::from_canonical("a later form", &text.replace("\"version\":1", "\"version\":2")).is_none());
        assert_eq!(whole.reference.sha256, "ff830f3b61db5c38b90e02740b26777458a25fdda006736bf9c95b0f87a40930");
        assert_sorted(text);
    }

    #[test]
    fn the_digest_follows_the_rules_and_nothing_else() {
        let base = RuleConfig::new("d", "by AI", 0.5, 0.9);
        let digest = |rule: &RuleConfig| resolved(std::slice::from_ref(rule)).reference.sha256;
        let others = [
            RuleConfig::new("d", "by AI", 0.5, 0.91),
            RuleConfig::new("d", "by AI", 0.51, 0.9),
            RuleConfig::new("d", "by human", 0.5, 0.9),
            RuleConfig::new("e", "nsfw", 0.5, 0.9),
            RuleConfig { name: Some("n".into()), ..base.clone() },
            RuleConfig { category: Some("c".into()), ..base.clone() },
            RuleConfig { severity: Some(1), ..base.clone() },
            RuleConfig { note_at: Some(0.1), ..base.clone() },
            RuleConfig { review_at: None, ..base.clone() },
        ];
        for other in others {
            assert_ne!(digest(&base), digest(&other), "{other:?}");
        }
    }

    #[test]
    fn the_strongest_threshold_that_is_reached_counts() {
        let all = Thresholds { note_at: Some(0.2), review_at: Some(0.5), flag_at: Some(0.9) };
        let reached = |score| all.reached(score).map(|(outcome, _)| outcome);
        let expected = [None, Some(FindingOutcome::Noted), Some(FindingOutcome::Review), Some(FindingOutcome::Flagged)];
        assert_eq!([0.1, 0.2, 0.5, 0.9].map(reached), expected);
        let only_flag = Thresholds { note_at: None, review_at: None, ..all };
        assert_eq!((only_flag.reached(0.6), only_flag.reached(1.0)), (None, Some((FindingOutcome::Flagged, 0.9))));
    }
}
