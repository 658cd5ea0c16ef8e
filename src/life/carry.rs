//! Equal bytes take over what a person has decided about them.
//!
//! The decision comes as a second revision after the policy's own judgement, so that the history shows both. Between the two
//! the image is held as the policy says; the event of the first judgement is replaced before it is sent. A picture that
//! only looks alike takes nothing over.

use time::OffsetDateTime;

use crate::banks::{AskedImage, CurrentBanks};
use crate::config::ReviewConfig;
use crate::job::{Judgement, Outcome, Revision, RevisionCause, Verdict};
use crate::ledger::{Event, Ledger, LedgerError, Revise, Revised, StoredVerdict, mark_restricted};
use crate::policy::{Policy, decided, judge};

/// The revision by which a verdict took a decision over.
pub(crate) struct Carried {
    pub verdict: Verdict,
    /// As the outbox has it, if it is announced.
    pub event: Option<Event>,
    pub revision: Revision,
    /// The outcome by the policy alone.
    pub before: Outcome,
}

/// The judgement that a verdict takes over. An insert returns whether a person may have decided about equal bytes, and only
/// then the ledger is asked.
async fn find_carried(
    ledger: &dyn Ledger,
    verdict: &Verdict,
    config: &ReviewConfig,
    judging: Judging<'_>,
) -> Result<Option<Judgement>, LedgerError> {
    // The content of what is undecodable is known by its bytes. What is missing, rejected or failed was not looked at.
    let may_be_decided = matches!(
        verdict.judgement.outcome,
        Outcome::Passed | Outcome::Review | Outcome::Flagged | Outcome::Undecodable
    );
    let (Some(sha256), Ok(reviews)) = (verdict.sha256, ledger.reviews()) else { return Ok(None) };
    if config.carry_days == 0 || !may_be_decided || verdict.judgement.is_restricted() {
        return Ok(None);
    }
    let since = OffsetDateTime::now_utc() - time::Duration::days(i64::from(config.carry_days));
    let decided = reviews.find_decided(sha256, &verdict.policy.sha256, since).await?;
    // What a person has cleared can be undone for a while. To flag waits for nothing.
    let undo_window = time::Duration::seconds(config.undo_s.into());
    let is_settled = |decided: &StoredVerdict| {
        !decided.verdict.judgement.allows() || decided.revision.judged_at + undo_window <= OffsetDateTime::now_utc()
    };
    let Some(mut decided) = decided.filter(|decided| decided.verdict.id != verdict.id && is_settled(decided)) else {
        return Ok(None);
    };
    mark_restricted(ledger, std::slice::from_mut(&mut decided)).await?;
    if decided.verdict.judgement.is_restricted() {
        return Ok(None);
    }
    let earlier = &decided.verdict.judgement.findings;
    // An entry that was answered may have hidden one that was not.
    let asked = AskedImage::of(verdict).answered_by(earlier);
    let Judging { policy, banks } = judging;
    let carried = match &verdict.facts {
        None => {
            let known = judge::judge_unscreened(policy, &banks.answers(policy, &asked).await, earlier);
            let carried = decided::carried_unscreened(earlier, decided.verdict.facts.is_none());
            carried.filter(|_| known.is_none())
        }
        // Such an outcome has hidden what was found beside the damage.
        Some(facts) if verdict.judgement.outcome == Outcome::Undecodable => {
            let judged = judge::judge_decided(policy, facts, &banks.answers(policy, &asked).await, earlier);
            let is_screened = matches!(judged.outcome, Outcome::Passed | Outcome::Review | Outcome::Flagged);
            Some(judged)
                .filter(|judged| is_screened && !judged.is_restricted() && !decided::has_question(&judged.findings))
        }
        Some(facts) if !asked.answered.is_empty() => {
            let answers = banks.answers(policy, &asked).await;
            decided::carried(&judge::judge(policy, facts, &answers), earlier)
        }
        Some(_) => decided::carried(&verdict.judgement, earlier),
    };
    Ok(carried.filter(|carried| !carried.says_same_as(&verdict.judgement)))
}

/// What judges an image once more, without the entries of banks that a person has answered.
#[derive(Clone, Copy)]
pub(crate) struct Judging<'a> {
    pub policy: &'a Policy,
    pub banks: &'a CurrentBanks,
}

/// Revises a verdict that is at this revision since it was judged, if a person has decided about equal bytes. `event` makes the event of the
/// revision, where it is announced.
///
/// # Errors
/// When the ledger fails. The verdict stands as the policy has judged it.
pub(crate) async fn carry_over(
    ledger: &dyn Ledger,
    verdict: &Verdict,
    revision: u32,
    config: &ReviewConfig,
    judging: Judging<'_>,
    event: impl Fn(&Verdict, &Revision, Outcome) -> Option<Event> + Send,
) -> Result<Option<Carried>, LedgerError> {
    let Some(judgement) = find_carried(ledger, verdict, config, judging).await? else { return Ok(None) };
    let before = verdict.judgement.outcome;
    let mut revise = Revise {
        verdict: Verdict { judgement, ..verdict.clone() },
        expected_revision: revision,
        cause: RevisionCause::Carried,
        judged_at: ledger.now().await?,
        event: None,
    };
    let revision = revise.revision();
    revise.event = event(&revise.verdict, &revision, before);
    match ledger.revise(&revise).await? {
        Revised::Written { event, .. } => Ok(Some(Carried { verdict: revise.verdict, event, revision, before })),
        // Another process has revised it meanwhile.
        Revised::Stale(_) | Revised::Missing | Revised::Erased => Ok(None),
    }
}
