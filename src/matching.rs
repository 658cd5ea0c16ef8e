//! Matches a bank with everything that was ever screened. No image is fetched and no model runs.
//!
//! The hashes of all verdicts lie side by side in the ledger and are read as a whole. A verdict is read only where one of its
//! hashes matches, and judged once more by the policy that holds for it. Only entries that came since the last complete run
//! are looked for, because a worker looks for all entries in what it screens.
//!
//! A mark in the ledger says how far a run has come, so that the same command continues after an interruption.

mod near;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::banks::{self, AskedImage, CurrentBanks, LoadedBank};
use crate::config::Config;
use crate::job::{BankKind, Outcome, RevisionCause, Verdict, View, ViewHash, derived_id};
use crate::ledger::{Bank, HashedView, Ledger, LedgerError};
use crate::policy::judge::judge_decided;
use crate::policy::{BankQuestion, ImageContext, PolicySet, judge_stored_bytes};
use crate::rejudge::{Transitions, change, is_newer};

pub use near::Likeness;

/// Verdicts per transaction.
const PAGE: usize = 500;
/// How often a verdict is judged that another process revises at the same time.
const TRIES: u32 = 5;
/// How soon after a change every worker asks the new version.
const EFFECT: Duration = Duration::from_secs(10);
/// Verdicts that were decided so long before the run may have been judged without the newest entries: workers learn of them
/// a little later, and commit later than they decide.
const OVERLAP: Duration = Duration::from_secs(60);
/// How much of that time is read at once.
const OVERLAP_STEP: Duration = Duration::from_secs(600);

/// What is matched, and how.
#[derive(Debug, Clone)]
pub struct MatchOptions {
    /// Also entries that an earlier run has looked for.
    pub all: bool,
    /// Nothing is written.
    pub dry_run: bool,
    /// Start at the beginning even if an earlier run was interrupted.
    pub restart: bool,
    /// The number of changes that are kept as examples.
    pub examples: usize,
}

/// Why a bank cannot be matched.
#[derive(Debug, thiserror::Error)]
pub enum MatchError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the ledger has no bank \"{0}\"\n  hint: `pixwarden bank list` prints those that it has")]
    UnknownBank(String),
    #[error(
        "no policy has a rule over the bank \"{0}\", so that a match would mean nothing\n  hint: add a rule with bank = \"{0}\""
    )]
    NoRule(String),
    #[error("the bank \"{0}\" is not enabled, so that nothing matches it\n  hint: pixwarden bank set {0} --enabled")]
    Disabled(String),
}

/// One run over all hashes.
pub struct Matching {
    ledger: Arc<dyn Ledger>,
    policies: PolicySet,
    banks: CurrentBanks,
    config: Arc<Config>,
    options: MatchOptions,
    bank: Bank,
    question: BankQuestion,
    /// Verdicts that were judged in this run: some hashes are read twice.
    judged: HashSet<Uuid>,
    pub summary: MatchSummary,
}

/// What a run has done so far.
#[derive(Debug, Default)]
pub struct MatchSummary {
    /// Entries that are looked for.
    pub entries: u64,
    /// Hashed views that were read.
    pub views: u64,
    /// The verdicts that matched and were judged.
    pub transitions: Transitions,
    /// Verdicts that matched and whose policy has no rule over the bank.
    pub without_rule: u64,
    /// Verdicts that matched, and of which the policies of today would say less than was said: for want of a fact, or because
    /// a rule has changed.
    pub softened: u64,
    /// Verdicts that matched and show nothing.
    pub unscored: u64,
    /// Verdicts that another process has revised meanwhile.
    pub overtaken: u64,
}

/// How far a run has come, as its mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// The version of the bank that was looked for completely.
    done: i64,
    /// Where the interrupted run for a version is.
    run: Option<(i64, u64, OffsetDateTime)>,
}

impl Matching {
    /// Finds the bank, and what the policies ask of it.
    ///
    /// # Errors
    /// When there is nothing to match.
    pub async fn new(
        ledger: Arc<dyn Ledger>,
        policies: PolicySet,
        banks: CurrentBanks,
        config: Arc<Config>,
        name: &str,
        options: MatchOptions,
    ) -> Result<Self, MatchError> {
        let mut all = ledger.banks()?.bank_versions().await?.into_iter();
        let bank = all.find(|bank| bank.name == name).ok_or_else(|| MatchError::UnknownBank(name.into()))?;
        if !bank.enabled {
            return Err(MatchError::Disabled(name.into()));
        }
        let questions = policies.all().filter_map(|policy| policy.bank_questions().remove(name));
        let question = questions.reduce(BankQuestion::or).ok_or_else(|| MatchError::NoRule(name.into()))?;
        // The version that verdicts are judged with; it is looked for as well.
        let version = banks.versions().get(name).copied().ok_or_else(|| MatchError::NoRule(name.into()))?;
        let bank = Bank { version, ..bank };
        let summary = MatchSummary { transitions: Transitions::new(options.examples), ..MatchSummary::default() };
        Ok(Self { ledger, policies, banks, config, options, bank, question, judged: HashSet::new(), summary })
    }

    /// Matches everything, or until `stop`. Returns whether it came to the end. `observe` gets the state after each part.
    ///
    /// # Errors
    /// When the ledger fails. What was written stays written.
    pub async fn run(&mut self, stop: &CancellationToken, observe: impl Fn(&MatchSummary)) -> Result<bool, MatchError> {
        let mark = self.read_mark().await?;
        let done = if self.options.all { 0 } else { mark.done };
        let is_same = mark.done == done;
        let (mut from, began) = match mark.run.filter(|(version, ..)| is_same && *version == self.bank.version) {
            Some((_, from, began)) if !self.options.restart && !self.options.dry_run => (Some(from), began),
            _ => (Some(0), self.ledger.now().await?),
        };
        let wanted = Arc::new(self.wanted(done).await?);
        self.summary.entries = wanted.entries.len() as u64;
        if self.summary.entries == 0 {
            from = None;
        }
        while let Some(place) = from {
            let page = self.ledger.image_hashes()?.page_of_hashes(place).await?;
            self.summary.views += page.views.len() as u64;
            self.match_views(&wanted, page.views).await?;
            from = page.next;
            observe(&self.summary);
            self.save_mark(Mark { done, run: from.map(|from| (self.bank.version, from, began)) }).await?;
            if stop.is_cancelled() && from.is_some() {
                return Ok(false);
            }
        }
        if self.summary.entries > 0 {
            if !self.options.dry_run && !self.wait_for_workers(stop).await? {
                return Ok(false);
            }
            self.match_since(&wanted, began - OVERLAP).await?;
        }
        self.save_mark(Mark { done: self.bank.version, run: None }).await?;
        Ok(true)
    }

    /// Waits until all workers have the bank as it is, so that whatever is judged from then on needs no matching. Returns false
    /// where it was stopped.
    async fn wait_for_workers(&self, stop: &CancellationToken) -> Result<bool, LedgerError> {
        let now = self.ledger.now().await?;
        let since = (now - self.bank.changed_at).unsigned_abs();
        let wait = tokio::time::sleep(EFFECT.saturating_sub(since));
        Ok(stop.run_until_cancelled(wait).await.is_some())
    }

    /// Matches what was decided since a time: its hashes may lie before the place that was reached.
    async fn match_since(&mut self, wanted: &Arc<LoadedBank>, since: OffsetDateTime) -> Result<(), LedgerError> {
        let (mut from, until) = (since, self.ledger.now().await?);
        while from < until {
            let to = until.min(from + OVERLAP_STEP);
            let views = self.ledger.image_hashes()?.hashes_decided(from, to).await?;
            self.match_views(wanted, views).await?;
            from = to;
        }
        Ok(())
    }

    /// The entries that came after a version, as a bank of their own.
    async fn wanted(&self, done: i64) -> Result<LoadedBank, LedgerError> {
        let entries = if done == 0 {
            banks::all_entries(self.ledger.as_ref(), &self.bank).await?
        } else {
            let changes = self.ledger.banks()?.changes_since(self.bank.id, done).await?;
            changes.into_iter().flat_map(|changes| changes.added).map(|entry| (entry.id, entry.hash)).collect()
        };
        banks::build(&self.bank, entries).await
    }

    /// Looks for the wanted entries among hashes, and judges the verdicts that match.
    async fn match_views(&mut self, wanted: &Arc<LoadedBank>, views: Vec<HashedView>) -> Result<(), LedgerError> {
        let (wanted, question) = (Arc::clone(wanted), self.question);
        let found = spawn_blocking(move || {
            let matches = |view: &&HashedView| {
                let hash = view.pdq.map(|(pdq, quality)| ViewHash { view: View::of_frame(0), pdq, quality });
                let BankQuestion { max_distance, min_quality } = question;
                let answer = wanted.answer(
                    view.sha256.as_ref(),
                    view.md5.as_ref(),
                    Some(hash.as_slice()),
                    max_distance,
                    min_quality,
                );
                !answer.matches.is_empty()
            };
            let mut found: Vec<Uuid> = views.iter().filter(matches).map(|view| view.verdict).collect();
            found.sort_unstable();
            found.dedup();
            found
        });
        let mut found = found.await.map_err(|_| LedgerError::Down("the search in a bank has failed".into()))?;
        found.retain(|verdict| self.judged.insert(*verdict));
        for ids in found.chunks(PAGE) {
            let mut overtaken = self.judge(ids, true).await?;
            for _ in 1..TRIES {
                if overtaken > 0 {
                    overtaken = self.judge(ids, false).await?;
                }
            }
            self.summary.overtaken += overtaken;
        }
        Ok(())
    }

    /// Judges verdicts that match. Returns how many another process has revised meanwhile.
    async fn judge(&mut self, ids: &[Uuid], is_first: bool) -> Result<u64, LedgerError> {
        let page = self.ledger.image_hashes()?.read_verdicts(ids).await?;
        // After the verdicts were read: none of them may have asked a later version.
        self.banks.refresh(self.ledger.as_ref()).await?;
        let judged_at = self.ledger.now().await?;
        let (mut changes, mut overtaken) = (Vec::new(), 0);
        for stored in &page {
            let policy = self.policies.policy_for(&ImageContext::of(&stored.verdict));
            if !policy.bank_questions().contains_key(self.bank.name.as_str()) {
                self.summary.without_rule += u64::from(is_first);
                continue;
            }
            let answers = self.banks.answers(policy, &AskedImage::of(&stored.verdict)).await;
            let earlier = &stored.verdict.judgement;
            let judgement = match &stored.verdict.facts {
                Some(facts) => Some(judge_decided(policy, facts, &answers, &earlier.findings)),
                None => judge_stored_bytes(policy, &stored.verdict, &answers),
            };
            let Some(judgement) = judgement else {
                self.summary.unscored += u64::from(is_first);
                continue;
            };
            if is_newer(&stored.verdict, &answers) {
                overtaken += 1;
                continue;
            }
            // What is not judged, or said less strongly now, has other reasons than the match.
            let is_unjudged = matches!(judgement.outcome, Outcome::Failed | Outcome::Rejected);
            // What shows nothing is known now, which says more.
            let softens = judgement.outcome < earlier.outcome && earlier.outcome != Outcome::Undecodable;
            if is_unjudged || (softens && self.bank.kind == BankKind::Deny) {
                self.summary.softened += u64::from(is_first);
                continue;
            }
            if is_first {
                self.summary.transitions.add(&stored.verdict, &judgement);
            }
            if !judgement.looks_as(&stored.verdict.judgement) {
                let verdict =
                    Verdict { judgement, policy: policy.reference.with_banks(&answers), ..stored.verdict.clone() };
                changes.push(change(stored, verdict, RevisionCause::Matched, judged_at, &self.config));
            }
        }
        if !self.options.dry_run && !changes.is_empty() {
            overtaken += changes.len() as u64 - self.ledger.rejudge(&changes).await?;
        }
        Ok(overtaken)
    }

    /// The name of the mark in the ledger. A bank that was dropped and made once more has another number.
    fn mark_name(&self) -> String {
        format!("bank-match:{}", self.bank.id)
    }

    /// The mark, if it was made with the same policies. After a rule has become wider, all entries are looked for.
    async fn read_mark(&self) -> Result<Mark, LedgerError> {
        let mark = self.ledger.backfill_progress(&self.mark_name()).await?;
        let mark = mark.and_then(|(text, _)| Mark::parse(text.strip_prefix(&self.asked())?.trim_start()));
        Ok(mark.unwrap_or(Mark { done: 0, run: None }))
    }

    /// Identifies what the policies ask. Another question is asked of everything once more.
    fn asked(&self) -> String {
        let policies: Vec<_> =
            self.policies.all().map(|policy| &policy.reference).zip(self.policies.conditions()).collect();
        derived_id(&json!(["bank match", policies]))
    }

    async fn save_mark(&self, mark: Mark) -> Result<(), LedgerError> {
        if self.options.dry_run {
            return Ok(());
        }
        self.ledger.save_backfill_progress(&self.mark_name(), Some(&format!("{} {mark}", self.asked()))).await
    }
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let numbers = text.split(' ').map(|word| word.parse::<i128>().ok()).collect::<Option<Vec<_>>>()?;
        let run = |version: i128, from: i128, began: i128| {
            let began = OffsetDateTime::from_unix_timestamp_nanos(began.checked_mul(1_000)?).ok()?;
            Some((version.try_into().ok()?, from.try_into().ok()?, began))
        };
        match numbers[..] {
            [done] => Some(Self { done: done.try_into().ok()?, run: None }),
            [done, version, from, began] => {
                Some(Self { done: done.try_into().ok()?, run: Some(run(version, from, began)?) })
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.done)?;
        match self.run {
            Some((version, from, began)) => {
                write!(f, " {version} {from} {}", began.unix_timestamp_nanos() / 1_000)
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let began = OffsetDateTime::UNIX_EPOCH + Duration::from_micros(1_234_567);
        for mark in [Mark { done: 0, run: None }, Mark { done: 7, run: Some((9, 4_000, began)) }] {
            assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        }
        assert_eq!(Mark::parse("7 9"), None);
        assert_eq!(Mark::parse(""), None);
    }
}
