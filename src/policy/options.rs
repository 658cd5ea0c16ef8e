//! The options of policies: `[policy]`, `[[policies]]` and their rules.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// `[policy]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// The policy's name, recorded with every verdict.
    pub name: String,
    /// The default rule's label; empty: found by its usual names.
    pub label: String,
    /// The default rule's threshold for review.
    pub review_at: f32,
    /// The default rule's threshold for flagging.
    pub flag_at: f32,
    /// What becomes of a damaged file that still shows something.
    pub damaged: DamagedOutcome,
    /// The rules; any rule replaces the default rule.
    pub rules: Vec<RuleConfig>,
}

/// What becomes of a damaged file that still shows something, at least. It never passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DamagedOutcome {
    /// A person should look.
    #[default]
    Review,
    /// It is flagged.
    Flagged,
    /// It counts as an image that cannot be screened, unless a rule flags it.
    Undecodable,
}

impl DamagedOutcome {
    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Review => "review",
            Self::Flagged => "flagged",
            Self::Undecodable => "undecodable",
        }
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            name: "default".into(),
            label: String::new(),
            review_at: 0.5,
            flag_at: 0.9,
            damaged: DamagedOutcome::Review,
            rules: Vec::new(),
        }
    }
}

/// `[[policies]]`: rules for some jobs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScopedPolicyConfig {
    /// The policy's name, recorded with every verdict.
    pub name: String,
    /// The jobs that it judges.
    pub when: WhenConfig,
    /// Whether the rules of `[policy]` hold too.
    pub inherit: bool,
    /// What becomes of a damaged file that still shows something. Without it `[policy]` says so where `inherit` is set, and
    /// it goes to review elsewhere.
    pub damaged: Option<DamagedOutcome>,
    /// The rules.
    pub rules: Vec<RuleConfig>,
}

/// `when`: the jobs of a policy. All conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WhenConfig {
    /// Any of these buckets, where `*` stands for any characters.
    pub bucket: AnyOf,
    /// Any of these beginnings of the key.
    pub key_prefix: AnyOf,
    /// Any of these lanes.
    pub lane: AnyOf,
    /// For each field of the metadata, any of these values.
    pub metadata: BTreeMap<String, AnyOf>,
}

/// One text or a list of texts, of which one must hold. Without the key there is no condition.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct AnyOf(pub Vec<String>);

impl<'de> Deserialize<'de> for AnyOf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = AnyOf;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text in quotes, or a list of texts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<AnyOf, E> {
                Ok(AnyOf(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<AnyOf, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                if texts.is_empty() {
                    let what = "an empty list holds for no job\n  hint: leave the key out where it is no condition";
                    return Err(A::Error::custom(what));
                }
                Ok(AnyOf(texts))
            }
        }

        deserializer.deserialize_any(Texts)
    }
}

/// `[[policy.rules]]` and `[[policies.rules]]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleConfig {
    /// The rule's name in findings.
    pub name: Option<String>,
    /// What the rule is about, such as `sexual/nudity`.
    pub category: Option<String>,
    /// How severe a finding is, from 1 to 5.
    pub severity: Option<u32>,
    /// A configured detector.
    pub detector: Option<String>,
    /// One of its labels.
    pub label: Option<String>,
    /// From this probability on, the image passes with a note.
    pub note_at: Option<f32>,
    /// From this probability on, the image goes to review.
    pub review_at: Option<f32>,
    /// From this probability on, the image is flagged.
    pub flag_at: Option<f32>,
    /// What the file says of its origin. This build cannot judge it.
    pub evidence: Option<String>,
    /// The grade of evidence for a note.
    pub note_from: Option<String>,
    /// The grade of evidence for review.
    pub review_from: Option<String>,
    /// The grade of evidence for flagging.
    pub flag_from: Option<String>,
    /// Whether unsigned evidence may flag.
    pub allow_unsigned: Option<bool>,
    /// A bank of known images in the ledger.
    pub bank: Option<String>,
    /// Up to this distance to an entry of the bank, the image passes with a note.
    pub note_within: Option<u32>,
    /// Up to this distance the image goes to review.
    pub review_within: Option<u32>,
    /// Up to this distance the image is flagged.
    pub flag_within: Option<u32>,
    /// The quality of a hash, 0 to 100, from which on it is compared.
    pub min_quality: Option<u32>,
}

/// The keys of a rule.
pub const RULE_KEYS: [&str; 18] = [
    "name",
    "category",
    "severity",
    "detector",
    "label",
    "note_at",
    "review_at",
    "flag_at",
    "evidence",
    "note_from",
    "review_from",
    "flag_from",
    "allow_unsigned",
    "bank",
    "note_within",
    "review_within",
    "flag_within",
    "min_quality",
];

impl RuleConfig {
    /// A rule with both usual thresholds.
    #[must_use]
    pub fn new(detector: &str, label: &str, review_at: f32, flag_at: f32) -> Self {
        Self {
            detector: Some(detector.into()),
            label: Some(label.into()),
            review_at: Some(review_at),
            flag_at: Some(flag_at),
            ..Self::default()
        }
    }
}
