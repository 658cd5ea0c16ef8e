//! Why a policy cannot be used.

use crate::config::{Origin, Origins};

/// Why a policy cannot be used with these detectors. `at` is the place in the configuration, such as `policy.rules[0]`.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A rule without a detector.
    #[error("policy: a rule names no detector\n  hint: set `detector` to one of {known}")]
    NoDetector {
        /// The configured detectors.
        known: String,
    },
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
    /// A policy without rules.
    #[error("policy: the policy \"{policy}\" has no rule, so it judges nothing\n  hint: add rules to it{other}")]
    NoRule {
        /// Its name.
        policy: String,
        /// Another way out.
        other: &'static str,
    },
    /// A policy behind one that holds for every job.
    #[error(
        "policy: the policy \"{policy}\" never holds, because \"{before}\" before it has no `when` and holds for every job\n  hint: give \"{before}\" a `when`, or make it the last of `[[policies]]`"
    )]
    NeverHolds {
        /// Its name.
        policy: String,
        /// The policy that holds for every job.
        before: String,
    },
    /// A policy for some jobs without a name of its own.
    #[error("policy: a policy needs a name that no other one has, but this one has \"{0}\"")]
    Name(String),
    /// A lane that does not exist.
    #[error("policy: `when.lane` names the lane \"{0}\", but the lanes are \"live\", \"backfill\"")]
    Lane(String),
    /// Senders could choose their rules.
    #[error(
        "policy: `when.metadata` would let senders choose the rules that they are judged by\n  hint: set `trusted_metadata = true` if only your own services can publish jobs"
    )]
    UntrustedMetadata,
    /// A category that is no path.
    #[error(
        "policy: the category \"{0}\" is not a path such as sexual/nudity: lower-case letters, digits, - and _ between slashes"
    )]
    Category(String),
    /// A severity out of range.
    #[error("policy: the severity {0} is not a whole number from 1 to 5")]
    Severity(u32),
    /// A rule that a later release judges.
    #[error("policy: a rule over `{0}` is not available in this build\n  hint: remove the rule")]
    NotAvailable(&'static str),
    /// Keys of a rule over a bank, without the bank.
    #[error(
        "policy: note_within, review_within, flag_within and min_quality are distances to a bank, but the rule names none\n  hint: set `bank`; a rule over a detector has note_at, review_at and flag_at"
    )]
    NoBank,
    /// A rule over a bank and a detector.
    #[error(
        "policy: a rule over the bank \"{bank}\" also names a detector, a label or a threshold\n  hint: make two rules; a rule over a bank has note_within, review_within and flag_within"
    )]
    TwoSubjects {
        /// The bank.
        bank: String,
    },
    /// Distances out of range or in the wrong order.
    #[error(
        "policy: the rule over the bank \"{bank}\" needs flag_within <= review_within <= note_within <= 31, but has {given}"
    )]
    Distances {
        /// The bank.
        bank: String,
        /// As configured.
        given: String,
    },
    /// A quality out of range.
    #[error(
        "policy: the rule over the bank \"{bank}\" has min_quality = {given}, which is not a whole number from 0 to 100"
    )]
    MinQuality {
        /// The bank.
        bank: String,
        /// As configured.
        given: u32,
    },
    /// A bank that the ledger does not have.
    #[error(
        "policy: a rule names the bank \"{bank}\", but the ledger {known}\n  hint: pixwarden bank create {bank} --kind deny"
    )]
    UnknownBank {
        /// The name in the rule.
        bank: String,
        /// What the ledger has instead.
        known: String,
    },
    /// A rule over a bank that denies, which nothing can reach.
    #[error(
        "policy: the rule over the bank \"{bank}\" needs at least one of note_within, review_within and flag_within\n  hint: 0 means equal files and equal hashes, 31 is the widest"
    )]
    NoDistance {
        /// The bank.
        bank: String,
    },
    /// A rule over a bank that allows, with a distance that means nothing.
    #[error(
        "policy: \"{bank}\" is a bank of kind allow, whose rule may have review_within only\n  hint: equal files take the findings of the rule's category away; within review_within, flagged becomes review"
    )]
    AllowDistances {
        /// The bank.
        bank: String,
    },
    /// A rule over a bank that allows, without the category that it allows.
    #[error(
        "policy: \"{bank}\" is a bank of kind allow, and its rule has no category\n  hint: set `category` to what the bank allows, such as sexual/nudity; findings of it and below it are taken away"
    )]
    AllowsEverything {
        /// The bank.
        bank: String,
    },
    /// A policy that only allows.
    #[error(
        "policy: every rule of the policy \"{policy}\" is over a bank of kind allow, so it judges nothing\n  hint: add a rule over a detector, or over a bank of kind deny"
    )]
    OnlyAllows {
        /// Its name.
        policy: String,
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
        "policy: the rule for {detector}, \"{label}\" needs at least one of note_at, review_at and flag_at, and 0 <= note_at <= review_at <= flag_at <= 1, but has {given}"
    )]
    Thresholds {
        /// The rule's detector.
        detector: String,
        /// The rule's label.
        label: String,
        /// As configured.
        given: String,
    },
    /// One of these, with the place of the rule or detector.
    #[error("{origin}: {error}")]
    At {
        /// Where it was set.
        origin: Origin,
        /// What is wrong.
        #[source]
        error: Box<PolicyError>,
    },
}

impl PolicyError {
    /// Adds the line, variable or flag of what is wrong: the option at `path`.
    pub(super) fn at(self, path: &str, origins: &Origins) -> Self {
        match origins.of(path) {
            Some(origin) => Self::At { origin: origin.clone(), error: Box::new(self) },
            None => self,
        }
    }

    /// The error without its place.
    #[cfg(test)]
    pub(crate) fn without_place(self) -> Self {
        match self {
            Self::At { error, .. } => error.without_place(),
            other => other,
        }
    }
}
