//! Applies the policies to stored facts, page by page. No image is fetched and no model runs.
//!
//! A verdict without a fact for one of its policy's rules is left as it is: a rule whose fact is missing must never count as
//! passed. So is an animation of which an earlier release stored the scores of one frame only.
//!
//! One mark in the ledger says how far the last run has come, so that the same command continues after an interruption.
//! There is one mark for all runs: a run by other policies replaces it, because it may have changed what the interrupted run
//! had done.

#[cfg(test)]
mod tests;
mod transitions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backfill::{BackfillEnd, BackfillError, JobsForGaps};
use crate::banks::{AskedImage, CurrentBanks};
use crate::config::Config;
use crate::job::event::{self, EventContext};
use crate::job::{BankAnswers, ImageRef, RevisionCause, Verdict, derived_id};
use crate::ledger::{Ledger, LedgerError, Position, Revise, StoredVerdict, VerdictFilter};
use crate::policy::{ImageContext, PolicySet, StoredJudgement};

pub use transitions::{Change, Transition, Transitions};

/// Verdicts per transaction. Their rows are locked until it ends, and a replay of one of them waits.
const PAGE: u32 = 500;
/// How often the mark is saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);
/// The name of the mark in the ledger.
const MARK: &str = "rejudge";

/// What is rejudged, and how.
#[derive(Debug, Clone)]
pub struct RejudgeOptions {
    pub filter: VerdictFilter,
    /// Only verdicts on images for which the policy of this name holds.
    pub policy: Option<String>,
    /// Whether jobs are published for what lacks a score; such a run does not continue one that published none.
    pub enqueue: bool,
    /// Nothing is written.
    pub dry_run: bool,
    /// Start at the beginning even if an earlier run was interrupted.
    pub restart: bool,
    /// The largest number of verdicts per second.
    pub rate: Option<f64>,
    /// The number of changes that are kept as examples.
    pub examples: usize,
}

/// One run over the selected verdicts.
pub struct Rejudging {
    ledger: Arc<dyn Ledger>,
    policies: PolicySet,
    banks: CurrentBanks,
    /// At the beginning. Banks may change during a run.
    bank_versions: BTreeMap<String, i64>,
    config: Arc<Config>,
    options: RejudgeOptions,
    /// The selected verdicts, without those that workers add meanwhile: otherwise this might never end.
    selected: VerdictFilter,
    pub summary: RejudgeSummary,
}

/// What a run has done so far.
#[derive(Debug, Default)]
pub struct RejudgeSummary {
    /// The verdicts that were judged.
    pub transitions: Transitions,
    /// Verdicts that this policy had judged before.
    pub current: u64,
    /// Verdicts without any score.
    pub unscored: u64,
    /// Verdicts without a score for each rule of this policy.
    pub lacking: u64,
    /// Verdicts that another process has revised meanwhile.
    pub overtaken: u64,
    /// Verdicts for which another policy holds than the one that was asked for.
    pub skipped: u64,
}

impl RejudgeSummary {
    /// All verdicts that were read.
    #[must_use]
    pub fn verdicts(&self) -> u64 {
        self.transitions.verdicts() + self.current + self.unscored + self.lacking + self.skipped
    }
}

impl Rejudging {
    #[must_use]
    pub fn new(
        ledger: Arc<dyn Ledger>,
        policies: PolicySet,
        banks: CurrentBanks,
        config: Arc<Config>,
        options: RejudgeOptions,
    ) -> Self {
        let summary = RejudgeSummary { transitions: Transitions::new(options.examples), ..RejudgeSummary::default() };
        let selected = options.filter.clone().before(OffsetDateTime::now_utc());
        let bank_versions = banks.versions();
        Self { ledger, policies, banks, bank_versions, config, options, selected, summary }
    }

    /// Rejudges every selected verdict, or until `stop`. `observe` gets the state after each page, with the time up to which
    /// verdicts were read. `jobs` get the images of verdicts that lack a score.
    ///
    /// # Errors
    /// When the ledger fails; with `jobs` also when the broker does. Pages that were written stay written.
    pub async fn run(
        &mut self,
        jobs: Option<&JobsForGaps>,
        stop: &CancellationToken,
        observe: impl Fn(&RejudgeSummary, Option<OffsetDateTime>),
    ) -> Result<BackfillEnd, BackfillError> {
        let began = Instant::now();
        let mut pace = jobs.map(JobsForGaps::pace);
        let mut from = self.start().await?;
        let mut saved = Instant::now();
        loop {
            let page = self.ledger.page_of_verdicts(&self.selected, from, PAGE).await?;
            let lacking = self.page(&page.verdicts).await?;
            if let (Some(jobs), Some(pace)) = (jobs, &mut pace)
                && let Some(end) = jobs.fill(lacking, pace, stop).await?
            {
                self.save_mark(from).await?;
                return Ok(end);
            }
            observe(&self.summary, page.next.map(|next| next.at));
            // A run that began meanwhile may have changed what this one has done.
            if page.next.is_none() || stop.is_cancelled() || saved.elapsed() > SAVE_INTERVAL {
                self.refuse_other_run().await?;
            }
            from = page.next;
            if from.is_none() {
                self.save_mark(None).await?;
                return Ok(BackfillEnd::Done);
            }
            if stop.is_cancelled() {
                self.save_mark(from).await?;
                return Ok(BackfillEnd::Stopped);
            }
            if saved.elapsed() > SAVE_INTERVAL {
                self.save_mark(from).await?;
                saved = Instant::now();
            }
            if let Some(rate) = self.options.rate {
                #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 verdicts")]
                let due = Duration::from_secs_f64(self.summary.verdicts() as f64 / rate);
                stop.run_until_cancelled(tokio::time::sleep(due.saturating_sub(began.elapsed()))).await;
            }
        }
    }

    /// Judges one page. Returns the images of the verdicts that lack a score.
    async fn page(&mut self, page: &[StoredVerdict]) -> Result<Vec<ImageRef>, LedgerError> {
        // After the page was read: none of its verdicts may have asked a later version of a bank.
        self.banks.refresh(self.ledger.as_ref()).await?;
        let judged_at = self.ledger.now().await?;
        let (mut changes, mut lacking) = (Vec::new(), Vec::new());
        for stored in page {
            let (policy, summary) = (self.policies.policy_for(&ImageContext::of(&stored.verdict)), &mut self.summary);
            if self.options.policy.as_ref().is_some_and(|name| *name != policy.reference.name) {
                summary.skipped += 1;
                continue;
            }
            let answers = self.banks.answers(policy, &AskedImage::of(&stored.verdict)).await;
            if is_newer(&stored.verdict, &answers) {
                summary.overtaken += 1;
                continue;
            }
            match policy.judge_stored(&stored.verdict, &answers) {
                StoredJudgement::Unscored => summary.unscored += 1,
                StoredJudgement::Current => summary.current += 1,
                StoredJudgement::Lacking => {
                    summary.lacking += 1;
                    lacking.push(stored.verdict.image.clone());
                }
                StoredJudgement::Judged(judgement) => {
                    summary.transitions.add(&stored.verdict, &judgement);
                    let policy = policy.reference.with_banks(&answers);
                    let verdict = Verdict { judgement, policy, ..stored.verdict.clone() };
                    changes.push(change(stored, verdict, RevisionCause::Rejudged, judged_at, &self.config));
                }
            }
        }
        if !self.options.dry_run && !changes.is_empty() {
            self.summary.overtaken += changes.len() as u64 - self.ledger.rejudge(&changes).await?;
        }
        Ok(lacking)
    }

    /// Where the run starts: where an interrupted one with the same policies and the same selection stopped, or at the
    /// beginning.
    async fn start(&self) -> Result<Option<Position>, LedgerError> {
        if self.options.dry_run {
            return Ok(None);
        }
        let mark = self.ledger.backfill_progress(MARK).await?;
        let position = mark.as_ref().and_then(|(mark, _)| position(mark, &self.run_id()));
        let position = position.filter(|_| !self.options.restart);
        if let (Some(_), Some((_, kept_at))) = (position, mark) {
            let kept_at = kept_at.replace_nanosecond(0).unwrap_or(kept_at).format(&Rfc3339).unwrap_or_default();
            tracing::info!(kept_at, "continuing where an earlier run stopped; --restart starts at the beginning");
        } else {
            // Before the first page is written: the run of an earlier mark must not continue behind what this one changes.
            self.save_mark(Some(Position { at: OffsetDateTime::UNIX_EPOCH, id: Uuid::nil() })).await?;
        }
        Ok(position)
    }

    /// Ends this run where another one has replaced its mark.
    async fn refuse_other_run(&self) -> Result<(), BackfillError> {
        if self.options.dry_run {
            return Ok(());
        }
        let mark = self.ledger.backfill_progress(MARK).await?;
        let is_own = mark.is_some_and(|(mark, _)| position(&mark, &self.run_id()).is_some());
        if is_own { Ok(()) } else { Err(BackfillError::OtherRejudge) }
    }

    async fn save_mark(&self, position: Option<Position>) -> Result<(), LedgerError> {
        if self.options.dry_run {
            return Ok(());
        }
        let mark = position.map(|position| {
            format!("{} {} {}", self.run_id(), position.at.unix_timestamp_nanos() / 1_000, position.id)
        });
        self.ledger.save_backfill_progress(MARK, mark.as_deref()).await
    }

    /// Identifies runs that would do the same.
    fn run_id(&self) -> String {
        let VerdictFilter { since, until, outcomes, detector, buckets, key_prefix, labels, .. } = &self.options.filter;
        let policies: Vec<_> =
            self.policies.all().map(|policy| &policy.reference).zip(self.policies.conditions()).collect();
        let times = [since, until].map(|time| time.map(|time| time.unix_timestamp_nanos().to_string()));
        let mut run = json!([
            "rejudge",
            policies,
            times,
            outcomes,
            detector,
            buckets,
            key_prefix,
            labels,
            self.options.policy,
            self.options.enqueue,
        ]);
        let banks = &self.bank_versions;
        if let Some(run) = run.as_array_mut().filter(|_| !banks.is_empty()) {
            run.push(json!(banks));
        }
        derived_id(&run)
    }
}

/// Whether a verdict was judged with a later version of a bank than the one that has answered now.
pub(crate) fn is_newer(verdict: &Verdict, answers: &BankAnswers) -> bool {
    answers.iter().any(|(bank, answer)| verdict.policy.banks.get(bank).is_some_and(|asked| *asked > answer.version))
}

/// The revision that gives a stored verdict its new state, with the event where it is announced.
pub(crate) fn change(
    stored: &StoredVerdict,
    verdict: Verdict,
    cause: RevisionCause,
    judged_at: OffsetDateTime,
    config: &Config,
) -> Revise {
    let before = &stored.verdict.judgement;
    let is_news = !verdict.judgement.says_same_as(before);
    let mut revise = Revise { verdict, expected_revision: stored.revision.number, cause, judged_at, event: None };
    // A file of a scan has no bucket, and the events of its ledger are never published.
    if is_news && !revise.verdict.image.bucket.is_empty() {
        let context = EventContext { deleted_at: stored.deleted_at, ..EventContext::default() };
        let before = Some(before.outcome);
        let event = event::revised_event(&revise.verdict, &revise.revision(), before, context, &config.prefix);
        revise.event = config.addressed(event);
    }
    revise
}

/// The position of a saved mark, if it is of this run.
fn position(mark: &str, run_id: &str) -> Option<Position> {
    let mut words = mark.split(' ');
    let (run, at, id) = (words.next()?, words.next()?, words.next()?);
    let at = OffsetDateTime::from_unix_timestamp_nanos(at.parse::<i128>().ok()? * 1_000).ok()?;
    Some(Position { at, id: Uuid::parse_str(id).ok()? }).filter(|_| run == run_id)
}
