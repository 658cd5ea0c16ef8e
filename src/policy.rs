//! The policies: rules that were checked once against the configured detectors, so that no policy fails open.
//!
//! `resolve` checks the configured rules, `set` chooses the policy of a job, and `judge` applies it to facts. `stored` applies
//! it to an image that was judged before, and `decided` says what people's decisions mean then.

pub mod decided;
mod error;
pub mod judge;
pub mod options;
mod resolve;
mod set;
mod stored;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::canonical::{self, without_negative_zero};
use crate::detector::Detector;
use crate::job::{Digests, FindingOutcome, PolicyRef, bank_rule_text, rule_text};
pub use options::DamagedOutcome;

pub use error::PolicyError;
pub(crate) use resolve::is_category;
pub use set::{ImageContext, PolicySet};
pub(crate) use stored::{StoredJudgement, judge_stored_bytes};

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

/// How far, at most, an entry of a bank may be from an image for a rule to be reached, in bits of a PDQ hash. Equal files are
/// at 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Distances {
    /// Within this the image passes with a note.
    pub note_within: Option<u32>,
    /// Within this a person should look.
    pub review_within: Option<u32>,
    /// Within this the image is flagged.
    pub flag_within: Option<u32>,
}

/// The largest distance. Farther apart, hashes of pictures that have nothing in common meet too often.
pub const MAX_DISTANCE: u32 = 31;
/// From this quality on, a likeness alone may flag. Pictures with less detail resemble too many others.
pub const MIN_FLAG_QUALITY: u8 = 70;
/// The quality from which on a likeness counts, where a rule does not say.
pub const DEFAULT_MIN_QUALITY: u8 = 50;

impl Distances {
    /// The strongest limit that a distance is within, and what that means.
    #[must_use]
    pub fn reached(&self, distance: u32) -> Option<(FindingOutcome, u32)> {
        let of = |outcome: FindingOutcome, limit: Option<u32>| {
            limit.filter(|limit| distance <= *limit).map(|limit| (outcome, limit))
        };
        of(FindingOutcome::Flagged, self.flag_within)
            .or_else(|| of(FindingOutcome::Review, self.review_within))
            .or_else(|| of(FindingOutcome::Noted, self.note_within))
    }

    /// The widest one.
    #[must_use]
    pub fn widest(&self) -> Option<u32> {
        self.given().max()
    }

    fn given(&self) -> impl Iterator<Item = u32> {
        [self.flag_within, self.review_within, self.note_within].into_iter().flatten()
    }

    /// Whether none is too far, and none is narrower than the one of a stronger outcome.
    fn are_valid(&self) -> bool {
        self.given().all(|distance| distance <= MAX_DISTANCE) && self.given().is_sorted()
    }
}

/// One rule: what a fact of an image means.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name in findings.
    pub name: Option<String>,
    /// What it is about, such as `sexual/nudity`.
    pub category: Option<String>,
    /// From 1 to 5.
    pub severity: Option<u8>,
    pub subject: RuleSubject,
}

/// What a rule looks at.
#[derive(Debug, Clone, PartialEq)]
pub enum RuleSubject {
    Score(ScoreRule),
    Bank(BankRule),
}

/// What a score of a detector means.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRule {
    /// A configured detector.
    pub detector: String,
    /// One of its labels.
    pub label: String,
    pub thresholds: Thresholds,
}

/// What a match in a bank means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BankRule {
    /// The name of a bank in the ledger.
    pub bank: String,
    pub distances: Distances,
    /// The quality of a hash from which on a likeness counts.
    pub min_quality: u8,
}

impl Rule {
    /// Its name, or else what it looks at, as findings show it.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match (&self.name, &self.subject) {
            (Some(name), _) => Cow::Borrowed(name),
            (None, RuleSubject::Score(rule)) => rule_text(None, &rule.detector, &rule.label),
            (None, RuleSubject::Bank(rule)) => bank_rule_text(&rule.bank).into(),
        }
    }

    /// What it makes of a score, if it looks at one.
    #[must_use]
    pub fn score(&self) -> Option<&ScoreRule> {
        match &self.subject {
            RuleSubject::Score(rule) => Some(rule),
            RuleSubject::Bank(_) => None,
        }
    }

    /// What it makes of a match in a bank, if it looks at one.
    #[must_use]
    pub fn bank(&self) -> Option<&BankRule> {
        match &self.subject {
            RuleSubject::Bank(rule) => Some(rule),
            RuleSubject::Score(_) => None,
        }
    }

    /// A rule without a name, a category and a severity.
    #[must_use]
    pub fn new(detector: &str, label: &str, thresholds: Thresholds) -> Self {
        let subject = RuleSubject::Score(ScoreRule { detector: detector.into(), label: label.into(), thresholds });
        Self { name: None, category: None, severity: None, subject }
    }
}

/// What a policy needs to know of a bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BankQuestion {
    /// How far an entry may be from a view.
    pub max_distance: u32,
    /// The quality of a view's hash from which on it is compared.
    pub min_quality: u8,
}

impl BankQuestion {
    /// The question whose answer also answers another one.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            max_distance: self.max_distance.max(other.max_distance),
            min_quality: self.min_quality.min(other.min_quality),
        }
    }
}

/// Rules that fit the detectors.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Every rule, once, in the canonical order; the strongest outcome wins.
    pub rules: Vec<Rule>,
    /// What becomes of a damaged file, at least.
    pub damaged: DamagedOutcome,
    /// Name and digest, recorded with every verdict.
    pub reference: PolicyRef,
    /// Whether the only rule is the default one, which is then logged at start.
    pub is_default: bool,
}

impl Policy {
    fn new(name: &str, rules: Vec<Rule>, damaged: DamagedOutcome, is_default: bool) -> Self {
        let rules = in_canonical_order(rules);
        let sha256 = canonical::sha256(&canonical_text(&rules, damaged));
        Self { rules, damaged, reference: PolicyRef::new(name, sha256), is_default }
    }

    /// The first detector that a rule judges and that is not among these.
    #[must_use]
    pub fn first_detector_outside(&self, detectors: &Digests) -> Option<&str> {
        let judged = self.rules.iter().filter_map(Rule::score).map(|rule| rule.detector.as_str());
        judged.into_iter().find(|name| !detectors.contains_key(*name))
    }

    /// The rules over banks.
    pub fn bank_rules(&self) -> impl Iterator<Item = &BankRule> {
        self.rules.iter().filter_map(Rule::bank)
    }

    /// What the banks are asked for: of each one the widest distance and the lowest quality of all rules.
    #[must_use]
    pub fn bank_questions(&self) -> BTreeMap<&str, BankQuestion> {
        let mut questions: BTreeMap<&str, BankQuestion> = BTreeMap::new();
        for rule in self.bank_rules() {
            let asked =
                BankQuestion { max_distance: rule.distances.widest().unwrap_or(0), min_quality: rule.min_quality };
            questions.entry(&rule.bank).and_modify(|question| *question = question.or(asked)).or_insert(asked);
        }
        questions
    }

    /// The policy that a text of [`Policy::canonical_text`] describes. None for a form of another release.
    #[must_use]
    pub fn from_canonical(name: &str, text: &str) -> Option<Self> {
        let parsed: CanonicalPolicy<'_> =
            serde_json::from_str(text).ok().filter(|parsed: &CanonicalPolicy<'_>| parsed.version == VERSION)?;
        let rules = parsed.rules.into_iter().map(CanonicalRule::into_rule).collect::<Option<_>>()?;
        Some(Self::new(name, rules, parsed.damaged, false))
    }

    /// The rules as canonical JSON. The policy's digest is the SHA-256 of this text.
    #[must_use]
    pub fn canonical_text(&self) -> String {
        canonical_text(&self.rules, self.damaged)
    }
}

/// The version of the canonical form. It changes only when the meaning of its fields changes.
const VERSION: u32 = 1;

/// The canonical form of a policy. Fields are declared in the order of their names.
#[derive(Serialize, Deserialize)]
struct CanonicalPolicy<'a> {
    #[serde(default, skip_serializing_if = "is_review")]
    damaged: DamagedOutcome,
    #[serde(borrow)]
    rules: Vec<CanonicalRule<'a>>,
    version: u32,
}

/// The canonical form of a rule, over a score or over a bank. Fields are declared in the order of their names, and left out
/// where they are not given.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CanonicalRule<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    bank: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    category: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    detector: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flag_at: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flag_within: Option<u32>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    label: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_quality: Option<u8>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note_at: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note_within: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    review_at: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    review_within: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    severity: Option<u8>,
}

impl<'a> From<&'a Rule> for CanonicalRule<'a> {
    fn from(rule: &'a Rule) -> Self {
        let common = Self {
            category: rule.category.as_deref().map(Cow::from),
            name: rule.name.as_deref().map(Cow::from),
            severity: rule.severity,
            ..Self::default()
        };
        match &rule.subject {
            RuleSubject::Score(ScoreRule { detector, label, thresholds }) => Self {
                detector: Some(detector.into()),
                flag_at: thresholds.flag_at.map(without_negative_zero),
                label: Some(label.into()),
                note_at: thresholds.note_at.map(without_negative_zero),
                review_at: thresholds.review_at.map(without_negative_zero),
                ..common
            },
            RuleSubject::Bank(BankRule { bank, distances, min_quality }) => Self {
                bank: Some(bank.into()),
                flag_within: distances.flag_within,
                min_quality: Some(*min_quality).filter(|quality| *quality != DEFAULT_MIN_QUALITY),
                note_within: distances.note_within,
                review_within: distances.review_within,
                ..common
            },
        }
    }
}

impl CanonicalRule<'_> {
    /// None for a rule that looks at nothing this release knows.
    fn into_rule(self) -> Option<Rule> {
        let subject = match (self.detector, self.label, self.bank) {
            (Some(detector), Some(label), None) => RuleSubject::Score(ScoreRule {
                detector: detector.into_owned(),
                label: label.into_owned(),
                thresholds: Thresholds { note_at: self.note_at, review_at: self.review_at, flag_at: self.flag_at },
            }),
            (None, None, Some(bank)) => RuleSubject::Bank(BankRule {
                bank: bank.into_owned(),
                distances: Distances {
                    note_within: self.note_within,
                    review_within: self.review_within,
                    flag_within: self.flag_within,
                },
                min_quality: self.min_quality.unwrap_or(DEFAULT_MIN_QUALITY),
            }),
            _ => return None,
        };
        let [name, category] = [self.name, self.category].map(|text| text.map(Cow::into_owned));
        Some(Rule { name, category, severity: self.severity, subject })
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference to the field")]
fn is_review(damaged: &DamagedOutcome) -> bool {
    *damaged == DamagedOutcome::Review
}

fn canonical_text(rules: &[Rule], damaged: DamagedOutcome) -> String {
    let rules = rules.iter().map(CanonicalRule::from).collect();
    canonical::text(&CanonicalPolicy { damaged, rules, version: VERSION })
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
            axes: None,
            activation: None,
            multi_label: false,
            calibration: None,
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
    fn the_canonical_form_of_a_rule_over_a_bank_is_pinned_by_value() {
        let rule = RuleConfig {
            bank: Some("known".into()),
            category: Some("abuse".into()),
            review_within: Some(31),
            flag_within: Some(15),
            ..RuleConfig::default()
        };
        let text = r#"{"rules":[{"bank":"known","category":"abuse","flag_within":15,"review_within":31}],"version":1}"#;
        let policy = resolved(std::slice::from_ref(&rule));
        assert_eq!(policy.canonical_text(), text);
        assert_sorted(text);
        assert_eq!(policy.reference.sha256, "e9d6416f361d866c1e93276257f77696739351a26ca30a700cae66df5ea0c60d");
        assert_eq!(Policy::from_canonical("p", text).unwrap().rules, policy.rules);
        for other in [
            RuleConfig { bank: Some("other".into()), ..rule.clone() },
            RuleConfig { note_within: Some(31), ..rule.clone() },
            RuleConfig { review_within: None, ..rule.clone() },
            RuleConfig { flag_within: Some(14), ..rule.clone() },
            RuleConfig { min_quality: Some(60), ..rule.clone() },
        ] {
            assert_ne!(resolved(std::slice::from_ref(&other)).reference.sha256, policy.reference.sha256, "{other:?}");
        }
        let stated = resolved(&[RuleConfig { min_quality: Some(50), ..rule.clone() }]);
        assert_eq!(stated.reference, policy.reference, "a default that is written down changes nothing");

        let narrower = RuleConfig { review_within: None, min_quality: Some(40), ..rule.clone() };
        let several = resolved(&[rule, narrower]);
        let question = BankQuestion { max_distance: 31, min_quality: 40 };
        assert_eq!(several.bank_questions(), BTreeMap::from([("known", question)]));
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
