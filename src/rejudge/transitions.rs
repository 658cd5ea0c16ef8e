//! Counts what becomes of verdicts under another policy, and keeps the first changes as examples.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::job::{Judgement, Outcome, Verdict};

/// Verdicts by their outcome before and after, and by the category of the finding that decided.
#[derive(Debug, Default)]
pub struct Transitions {
    counts: BTreeMap<Transition, u64>,
    /// The first changes, at most `max_examples`.
    pub examples: Vec<Change>,
    max_examples: usize,
    news: u64,
}

/// One row of the counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transition {
    pub before: Outcome,
    pub after: Outcome,
    /// Of the strongest finding afterwards, or before where there is none afterwards.
    pub category: Option<String>,
}

/// A verdict that says something else under the other policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub verdict_id: Uuid,
    pub job_id: String,
    /// As `s3://bucket/key`, or the path of a scanned file.
    pub image: String,
    pub transition: Transition,
    pub after: Judgement,
}

impl Transitions {
    #[must_use]
    pub fn new(max_examples: usize) -> Self {
        Self { max_examples, ..Self::default() }
    }

    /// Counts a verdict that gets this judgement.
    pub fn add(&mut self, verdict: &Verdict, after: &Judgement) {
        let before = &verdict.judgement;
        let strongest = after.findings.first().or(before.findings.first());
        let category = strongest.and_then(|finding| finding.category.clone());
        let transition = Transition { before: before.outcome, after: after.outcome, category };
        let is_news = !after.says_same_as(before);
        self.news += u64::from(is_news);
        if self.examples.len() < self.max_examples && is_news {
            self.examples.push(Change {
                verdict_id: verdict.id,
                job_id: verdict.job_id.clone(),
                image: verdict.image.uri_or_path(),
                transition: transition.clone(),
                after: after.clone(),
            });
        }
        *self.counts.entry(transition).or_default() += 1;
    }

    /// The counts, in the order of the outcomes.
    pub fn iter(&self) -> impl Iterator<Item = (&Transition, u64)> {
        self.counts.iter().map(|(transition, verdicts)| (transition, *verdicts))
    }

    /// All verdicts.
    #[must_use]
    pub fn verdicts(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The verdicts of which something else is said: another outcome, or other findings.
    #[must_use]
    pub const fn news(&self) -> u64 {
        self.news
    }

    /// The verdicts that get another outcome.
    #[must_use]
    pub fn changed(&self) -> u64 {
        self.iter().filter(|(transition, _)| transition.before != transition.after).map(|(_, verdicts)| verdicts).sum()
    }
}
