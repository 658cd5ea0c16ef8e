//! Judges stored facts by other policies and counts what would change, without writing anything. The same function judges as
//! in a worker, so that the result is exact and costs the workers nothing.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use crate::banks::{AskedImage, CurrentBanks};
use crate::drift::{ScoreHistogram, ScoreHistograms, ScoredLabel};
use crate::job::{Digests, Judgement, Verdict, event};
use crate::ledger::{Ledger, LedgerError, ScoreBaseline, VerdictFilter};
use crate::policy::{ImageContext, PolicySet, Rule, StoredJudgement};
use crate::rejudge::Transitions;

/// Verdicts per statement.
const PAGE: u32 = 1_000;

/// What is compared.
pub struct ComparisonOptions {
    pub filter: VerdictFilter,
    /// The policies to try.
    pub policies: PolicySet,
    /// The banks that they name.
    pub banks: CurrentBanks,
    /// The digests of the present detectors.
    pub detectors: Digests,
    /// The number of changes that are kept as examples.
    pub examples: usize,
}

/// What the policies would have said.
#[derive(Debug, Default)]
pub struct Comparison {
    /// The verdicts that were judged.
    pub transitions: Transitions,
    /// By routing key, the first judgements that each side would announce.
    pub announced: BTreeMap<&'static str, Announced>,
    /// Verdicts without any score.
    pub unscored: u64,
    /// Verdicts without a score for each rule.
    pub lacking: u64,
    /// Verdicts by another model or another preprocessing of a detector than the present one.
    pub outdated: u64,
    /// The scores of all selected verdicts.
    pub scores: ScoreHistograms,
    /// When the first and the last of the selected verdicts were decided.
    pub window: Option<(OffsetDateTime, OffsetDateTime)>,
}

/// Judgements that are announced under one routing key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Announced {
    pub before: u64,
    pub after: u64,
}

impl Comparison {
    /// All verdicts that were read.
    #[must_use]
    pub fn verdicts(&self) -> u64 {
        self.transitions.verdicts() + self.unscored + self.lacking + self.outdated
    }

    /// Compares every selected verdict that was decided before now. `observe` gets the state after each page, with the
    /// time up to which verdicts were read.
    ///
    /// # Errors
    /// When the ledger fails.
    pub async fn of(
        ledger: &dyn Ledger,
        options: &ComparisonOptions,
        observe: impl Fn(&Self, Option<OffsetDateTime>),
    ) -> Result<Self, LedgerError> {
        let filter = options.filter.clone().before(OffsetDateTime::now_utc());
        let mut comparison = Self { transitions: Transitions::new(options.examples), ..Self::default() };
        let mut from = None;
        loop {
            let page = ledger.page_of_verdicts(&filter, from, PAGE).await?;
            for stored in &page.verdicts {
                comparison.add(&stored.verdict, options).await;
            }
            observe(&comparison, page.next.map(|next| next.at));
            from = page.next;
            if from.is_none() {
                return Ok(comparison);
            }
        }
    }

    async fn add(&mut self, verdict: &Verdict, options: &ComparisonOptions) {
        let at = verdict.decided_at;
        self.window = Some(self.window.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
        let Some(facts) = &verdict.facts else {
            self.unscored += 1;
            return;
        };
        self.scores.add(&facts.scores, &verdict.detectors);
        let policy = options.policies.policy_for(&ImageContext::of(verdict));
        let is_outdated = policy.rules.iter().filter_map(Rule::score).any(|rule| {
            let scored_by = verdict.detectors.get(&rule.detector);
            scored_by.is_some_and(|digest| options.detectors.get(&rule.detector) != Some(digest))
        });
        if is_outdated {
            self.outdated += 1;
            return;
        }
        let answers = options.banks.answers(policy, &AskedImage::of(verdict)).await;
        match policy.judge_stored(verdict, &answers) {
            StoredJudgement::Unscored => self.unscored += 1,
            StoredJudgement::Lacking => self.lacking += 1,
            StoredJudgement::Current => self.judged(verdict, &verdict.judgement),
            StoredJudgement::Judged(judgement) => self.judged(verdict, &judgement),
        }
    }

    fn judged(&mut self, verdict: &Verdict, after: &Judgement) {
        self.transitions.add(verdict, after);
        let routing_key = |judgement| event::announcement(judgement, None).1;
        self.announced.entry(routing_key(&verdict.judgement)).or_default().before += 1;
        self.announced.entry(routing_key(after)).or_default().after += 1;
    }

    /// The scores as baselines.
    #[must_use]
    pub fn baselines(&self) -> Vec<ScoreBaseline> {
        let Some(window) = self.window else { return Vec::new() };
        let baseline = |(scored, histogram): (&ScoredLabel, &ScoreHistogram)| ScoreBaseline {
            digest: scored.digest.clone(),
            label: scored.label.clone(),
            counts: histogram.counts().to_vec(),
            window,
        };
        self.scores.0.iter().map(baseline).collect()
    }
}
