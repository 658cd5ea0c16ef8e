//! Findings: the rules of a policy that an image has reached.

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::Outcome;
use super::facts::{View, exact};

/// What a rule makes of an image that reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingOutcome {
    /// The image passes, and is to be labelled, age-gated or disclosed.
    Noted,
    /// A person should look.
    Review,
    /// The image is flagged.
    Flagged,
}

/// What stands for a rule in a finding of damage.
pub const DAMAGE: &str = "damage";

impl FindingOutcome {
    /// Every value, the weakest first.
    pub const ALL: [Self; 3] = [Self::Noted, Self::Review, Self::Flagged];

    /// The outcome of an image with nothing stronger.
    #[must_use]
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Noted => Outcome::Passed,
            Self::Review => Outcome::Review,
            Self::Flagged => Outcome::Flagged,
        }
    }

    /// The word in findings and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Noted => "noted",
            Self::Review => "review",
            Self::Flagged => "flagged",
        }
    }
}

impl fmt::Display for FindingOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a finding rests on. Rows of later releases may have any of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingSource {
    Detector,
    Evidence,
    Bank,
    Damage,
    Decision,
}

/// A rule of the policy that an image has reached. Keys that do not apply are absent in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The rule's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The rule's category, such as `sexual/nudity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// From 1 to 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<u8>,
    pub outcome: FindingOutcome,
    pub source: FindingSource,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detector: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "exact_number")]
    pub score: Option<f32>,
    /// The threshold that was reached, or the distance that the match is within.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "exact_number")]
    pub threshold: Option<f32>,
    /// The view with that score, if the image has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<View>,
    /// The bank that knows the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bank: Option<String>,
    /// The number of the bank's entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<i64>,
    /// The bits in which the hashes of the view and the entry differ; 0 also for equal files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<u32>,
    /// Whether no picture of the image, or like it, may be shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restricted: bool,
}

impl Finding {
    /// A finding that says nothing else yet.
    #[must_use]
    pub const fn new(source: FindingSource, outcome: FindingOutcome) -> Self {
        Self {
            rule: None,
            category: None,
            severity: None,
            outcome,
            source,
            detector: None,
            label: None,
            score: None,
            threshold: None,
            view: None,
            bank: None,
            entry: None,
            distance: None,
            restricted: false,
        }
    }

    /// The rule's name, or else what the rule looks at; see [`rule_text`].
    #[must_use]
    pub fn rule_text(&self) -> Cow<'_, str> {
        if self.source == FindingSource::Damage {
            return Cow::Borrowed(DAMAGE);
        }
        if let (None, Some(bank)) = (&self.rule, &self.bank) {
            return Cow::Owned(bank_rule_text(bank));
        }
        let [detector, label] = [&self.detector, &self.label].map(|text| text.as_deref().unwrap_or_default());
        rule_text(self.rule.as_deref(), detector, label)
    }

    /// The stronger finding is the greater one: by outcome, then by severity, then by score, and last by likeness.
    #[must_use]
    pub fn by_strength(&self, other: &Self) -> Ordering {
        let strength =
            |finding: &Self| (finding.outcome, finding.severity, finding.score, finding.distance.map(Reverse));
        strength(self).partial_cmp(&strength(other)).unwrap_or(Ordering::Equal)
    }

    /// Whether both say the same of an image. Scores and thresholds may differ.
    #[must_use]
    pub fn says_same_as(&self, other: &Self) -> bool {
        let statement = |finding: &Self| {
            (
                finding.rule.clone(),
                finding.category.clone(),
                finding.severity,
                finding.outcome,
                finding.source,
                finding.detector.clone(),
                finding.label.clone(),
                finding.bank.clone(),
                finding.entry,
                finding.restricted,
            )
        };
        statement(self) == statement(other)
    }
}

/// A rule for people: its name, or else `DETECTOR says "LABEL"`, as the reasons of verdicts do.
#[must_use]
pub fn rule_text<'a>(name: Option<&'a str>, detector: &str, label: &str) -> Cow<'a, str> {
    name.map_or_else(|| Cow::Owned(format!("{detector} says \"{label}\"")), Cow::Borrowed)
}

/// A rule over a bank for people, where it has no name.
#[must_use]
pub fn bank_rule_text(bank: &str) -> String {
    format!("bank \"{bank}\"")
}

#[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
fn exact_number<S: Serializer>(number: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
    number.map(exact).serialize(serializer)
}
