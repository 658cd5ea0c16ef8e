//! What people decide about images: a decision or a report becomes a change of the ledger.
//!
//! The ledger finds and claims what is open. Here is what a decision means: whether it is possible, what becomes of the
//! judgement, and which event announces it. A caller that serves people uses [`Reviewing`], and gets
//! refusals as values.

pub mod options;

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::banks::{AskedImage, CurrentBanks};
use crate::config::Config;
use crate::job::event::{self, EventContext};
use crate::job::{FindingSource, ImageRef, Judgement, Outcome, PolicyRef, RevisionCause, Verdict, verdict_id};
use crate::ledger::{
    Decide, Decided, Decision, DecisionAction, DecisionEffect, EarlierState, Event, ItemKind, Ledger, LedgerError,
    MAX_WAITING_REPORTS, Report, Reported, Revise, StoredVerdict, Undo, mark_restricted,
};
use crate::policy::decided::{Answer, decide};
use crate::policy::{ImageContext, PolicySet, StoredJudgement, is_category};

/// The longest note, in characters.
pub const MAX_NOTE: usize = 4_000;
/// The longest name of a person, and the longest reference, in characters.
pub const MAX_NAME: usize = 200;
/// Verdicts among which an image in one version is looked for.
const MAX_VERDICTS: u32 = 100;

/// Why a request was not tried.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A value cannot be used.
    #[error("`{field}` {what}")]
    Invalid { field: &'static str, what: String },
    /// The action means nothing for this outcome.
    #[error("an image that is {outcome} cannot be decided by `{}`: {why}", .action.as_str())]
    Impossible { action: DecisionAction, outcome: Outcome, why: &'static str },
    /// There is no verdict on what was reported.
    #[error("the ledger has no verdict on {0}")]
    UnknownImage(String),
    /// So many reports wait that another one changes nothing.
    #[error(
        "{} reports of the kind `{}` on the image wait for a decision; report it again after that",
        MAX_WAITING_REPORTS,
        .0.as_str()
    )]
    TooManyReports(ItemKind),
}

/// A person decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionRequest {
    pub verdict: Uuid,
    /// The revision that the person has seen.
    pub revision: u32,
    /// Identifies the person, for ever.
    pub actor: String,
    /// The person's name. It can be erased.
    pub name: Option<String>,
    pub action: DecisionAction,
    /// What the image is flagged for, or what else the decision is about.
    pub category: Option<String>,
    pub note: Option<String>,
    /// Decisions that were made together.
    pub batch: Option<Uuid>,
    /// The last report that the person has seen. Later ones keep the item open. Without it, those count as seen that were
    /// made before the person claimed the item, or all where the person has not claimed it.
    pub last_report: Option<Uuid>,
}

/// What a report is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportSubject {
    Image(ImageRef),
    Job(String),
    Verdict(Uuid),
}

/// Records a report about an image, an appeal against a decision, or a legal request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRequest {
    pub subject: ReportSubject,
    /// [`ItemKind::Report`], [`ItemKind::Appeal`] or [`ItemKind::Legal`].
    pub kind: ItemKind,
    pub category: Option<String>,
    pub note: Option<String>,
    pub reporter: Option<String>,
    /// Of the case.
    pub reference: Option<String>,
    pub due_at: Option<OffsetDateTime>,
}

/// Decides and reports on one ledger.
#[derive(Clone, Copy)]
pub struct Reviewing<'a> {
    pub ledger: &'a dyn Ledger,
    pub config: &'a Config,
    /// What judges an image without a decision that is undone.
    pub policies: &'a PolicySet,
    pub banks: &'a CurrentBanks,
}

impl Reviewing<'_> {
    /// Carries out a decision. What the ledger does not let happen is a value of [`Decided`].
    ///
    /// # Errors
    /// When a value cannot be used, the action means nothing for the outcome, or the ledger fails.
    pub async fn decide(&self, request: &DecisionRequest) -> Result<Decided, ReviewError> {
        request.check()?;
        let reviews = self.ledger.reviews()?;
        let Some(mut stored) = self.ledger.read_verdict(request.verdict).await? else { return Ok(Decided::Missing) };
        mark_restricted(self.ledger, std::slice::from_mut(&mut stored)).await?;
        if stored.revision.number != request.revision {
            return Ok(self.stale(request, Box::new(stored)).await?);
        }
        let effect = match request.action {
            DecisionAction::Escalate => DecisionEffect::Escalate,
            DecisionAction::Skip => DecisionEffect::Skip,
            DecisionAction::Undo => match self.undo(&stored).await? {
                Some(effect) => effect,
                None => return Ok(Decided::NothingToUndo),
            },
            DecisionAction::Flag | DecisionAction::Clear | DecisionAction::Uphold => {
                DecisionEffect::Judge(Box::new(self.judge(&stored, request).await?))
            }
        };
        // What is restricted is announced at once.
        let is_restricted = stored.verdict.judgement.is_restricted();
        let event_delay = if is_restricted { Duration::ZERO } else { self.undo_window() };
        let last_report = request.last_report;
        match reviews.decide(&Decide { decision: request.decision(), effect, last_report, event_delay }).await? {
            Decided::Stale(present) => Ok(self.stale(request, present).await?),
            decided => Ok(decided),
        }
    }

    /// Why a decision meets another revision: most often another person was faster, but it may be the revision that this
    /// decision has made itself, whose answer was lost.
    async fn stale(&self, request: &DecisionRequest, mut present: Box<StoredVerdict>) -> Result<Decided, LedgerError> {
        mark_restricted(self.ledger, std::slice::from_mut(&mut *present)).await?;
        let made = self.ledger.reviews()?.decisions_on(request.verdict).await?;
        let makes_revision = !matches!(request.action, DecisionAction::Escalate | DecisionAction::Skip);
        Ok(match made.iter().any(|made| request.is_recorded_as(made)) {
            true if makes_revision && present.revision.number == request.revision + 1 => {
                Decided::Repeated { revision: present.revision.number }
            }
            true => Decided::Overtaken(present),
            false => Decided::Stale(present),
        })
    }

    /// Records a report, and opens an item. Returns the verdict that it is about.
    ///
    /// # Errors
    /// When a value cannot be used, there is no verdict on the subject, or the ledger fails.
    pub async fn report(&self, request: &ReportRequest) -> Result<Report, ReviewError> {
        request.check()?;
        let reviews = self.ledger.reviews()?;
        let unknown = || ReviewError::UnknownImage(request.subject.text());
        let verdict = self.find(&request.subject).await?.ok_or_else(unknown)?;
        let report = Report {
            id: Uuid::new_v4(),
            verdict,
            kind: request.kind,
            category: request.category.clone(),
            note: request.note.clone(),
            reporter: request.reporter.clone(),
            reference: request.reference.clone(),
            due_at: request.due_at,
            made_at: OffsetDateTime::now_utc(),
        };
        match reviews.report(&report).await? {
            Reported::Recorded => Ok(report),
            Reported::Missing => Err(unknown()),
            Reported::TooMany => Err(ReviewError::TooManyReports(report.kind)),
        }
    }

    /// The verdict on what is reported; of an image the latest one.
    ///
    /// # Errors
    /// When the ledger fails.
    pub async fn find(&self, subject: &ReportSubject) -> Result<Option<Uuid>, LedgerError> {
        let id = match subject {
            ReportSubject::Verdict(id) => *id,
            ReportSubject::Job(id) => verdict_id(id),
            ReportSubject::Image(image) => {
                let verdicts = self.ledger.verdicts_on_image(image, MAX_VERDICTS).await?;
                let is_version = |stored: &&StoredVerdict| {
                    image.version_id.is_none() || stored.verdict.image.version_id == image.version_id
                };
                return Ok(verdicts.iter().find(is_version).map(|stored| stored.verdict.id));
            }
        };
        Ok(self.ledger.find_verdict(id).await?.map(|_| id))
    }

    fn undo_window(&self) -> Duration {
        Duration::from_secs(self.config.review.undo_s.into())
    }

    /// The revision that a decision makes.
    async fn judge(&self, stored: &StoredVerdict, request: &DecisionRequest) -> Result<Revise, ReviewError> {
        let (verdict, action) = (&stored.verdict, request.action);
        if let Some(why) = why_impossible(verdict, action) {
            return Err(ReviewError::Impossible { action, outcome: verdict.judgement.outcome, why });
        }
        let before = &verdict.judgement;
        let (facts, category) = (verdict.facts.as_ref(), request.category.as_deref());
        let judgement = match (action, before.outcome) {
            (DecisionAction::Flag, _) => decide(before, facts, Answer::Flag, category),
            // What a person leaves as it was found is answered as well.
            (DecisionAction::Uphold, Outcome::Flagged) => decide(before, facts, Answer::Flag, None),
            (DecisionAction::Uphold, _) => before.clone(),
            _ => decide(before, facts, Answer::Clear, None),
        };
        let is_news = action != DecisionAction::Uphold
            && (judgement.outcome != before.outcome || names_new_category(&judgement, before));
        let mut revise = self.revision(stored, judgement).await?;
        if is_news {
            revise.event = self.event(stored, &revise, Some(before.outcome));
        }
        Ok(revise)
    }

    /// How the last decision is taken back. None where the last word on the verdict was no decision.
    ///
    /// The judgement is what the policy of today makes of the image without that decision: rules and banks may have changed
    /// meanwhile. Where it cannot judge, the state before the decision comes back.
    async fn undo(&self, stored: &StoredVerdict) -> Result<Option<DecisionEffect>, LedgerError> {
        let verdict = &stored.verdict;
        let now = EarlierState {
            revision: stored.revision,
            judgement: verdict.judgement.clone(),
            policy: verdict.policy.clone(),
        };
        let mut states = self.ledger.earlier_states(verdict.id).await?;
        states.push(now);
        // What rules and banks have changed since is no word of a person.
        let is_word = |state: &EarlierState| {
            !matches!(state.revision.cause, Some(RevisionCause::Rejudged | RevisionCause::Matched))
        };
        let Some(made) = states.iter().rposition(is_word) else { return Ok(None) };
        let decided = &states[made];
        let (true, Some(earlier)) = (
            decided.revision.cause == Some(RevisionCause::Decided),
            made.checked_sub(1).and_then(|before| states.get(before)),
        ) else {
            return Ok(None);
        };
        let was_last = made + 1 == states.len();
        let (judgement, policy) = match self.judge_undecided(verdict, earlier).await? {
            Some(judged) => judged,
            None if was_last => (earlier.judgement.clone(), earlier.policy.clone()),
            None => return Ok(None),
        };
        let verdict_without = Verdict { judgement, policy, ..verdict.clone() };
        let mut without = StoredVerdict { verdict: verdict_without, ..stored.clone() };
        mark_restricted(self.ledger, std::slice::from_mut(&mut without)).await?;
        let Verdict { judgement, policy, .. } = without.verdict;
        // What was said last, before the decision or since.
        let said = if was_last { earlier } else { &states[states.len() - 1] };
        let is_news = !judgement.says_same_as(&said.judgement);
        let event = event_id_of(verdict, decided);
        let known = &states[..if was_last { made } else { states.len() }];
        let says_same = known.iter().filter(|state| announces_same(&judgement, &state.judgement));
        let says_same: Vec<Uuid> = match is_news {
            true => Vec::new(),
            false => says_same.map(|state| event_id_of(verdict, state)).collect(),
        };
        let before = known.iter().rev().map(|state| state.judgement.outcome);
        let before = before.clone().find(|outcome| *outcome != judgement.outcome).or_else(|| before.clone().next());
        let has_answer = |state: &&EarlierState| {
            state.revision.cause == Some(RevisionCause::Decided) && is_decided(&state.judgement)
        };
        let last_word = states[..made].iter().rev().find(has_answer);
        let is_kept = is_decided(&judgement) && !judgement.is_restricted();
        let content_decided_at = last_word.filter(|_| is_kept).map(|state| state.revision.judged_at);
        let mut revise = self.revision(stored, judgement).await?;
        revise.verdict.policy = policy;
        revise.event = self.event(stored, &revise, before);
        Ok(Some(DecisionEffect::Undo(Box::new(Undo {
            made_on: decided.revision.number - 1,
            revise,
            event,
            window: self.undo_window(),
            says_same,
            is_news,
            content_decided_at,
        }))))
    }

    /// What the policy of today makes of an image, with what people had decided at an earlier state. None where it cannot
    /// judge the stored facts.
    async fn judge_undecided(
        &self,
        verdict: &Verdict,
        earlier: &EarlierState,
    ) -> Result<Option<(Judgement, PolicyRef)>, LedgerError> {
        let policy = self.policies.policy_for(&ImageContext::of(verdict));
        let EarlierState { judgement, policy: judged_by, .. } = earlier.clone();
        let undecided = Verdict { judgement, policy: judged_by, ..verdict.clone() };
        self.banks.refresh(self.ledger).await?;
        let answers = self.banks.answers(policy, &AskedImage::of(&undecided)).await;
        Ok(match policy.judge_stored(&undecided, &answers) {
            StoredJudgement::Current => Some((undecided.judgement, undecided.policy)),
            StoredJudgement::Judged(judgement) => Some((judgement, policy.reference.with_banks(&answers))),
            StoredJudgement::Unscored | StoredJudgement::Lacking => None,
        })
    }

    /// A revision by a person, without an event yet.
    async fn revision(&self, stored: &StoredVerdict, judgement: Judgement) -> Result<Revise, LedgerError> {
        Ok(Revise {
            verdict: Verdict { judgement, ..stored.verdict.clone() },
            expected_revision: stored.revision.number,
            cause: RevisionCause::Decided,
            judged_at: self.ledger.now().await?,
            event: None,
        })
    }

    /// The event of a revision, if a destination takes its routing key. A file of a scan has no bucket, and is not announced.
    fn event(&self, stored: &StoredVerdict, revise: &Revise, before: Option<Outcome>) -> Option<Event> {
        let context = EventContext { deleted_at: stored.deleted_at, ..EventContext::default() };
        let event = event::revised_event(&revise.verdict, &revise.revision(), before, context, &self.config.prefix);
        let is_announced = !revise.verdict.image.bucket.is_empty();
        if is_announced { self.config.addressed(event) } else { None }
    }
}

/// Why an action means nothing for a verdict. A person may flag whatever there is. To clear says of certain content that it
/// may be shown, so that the content must have been fetched and looked at.
fn why_impossible(verdict: &Verdict, action: DecisionAction) -> Option<&'static str> {
    use Outcome::{Failed, Flagged, Missing, Passed, Rejected};
    match (action, verdict.judgement.outcome) {
        (DecisionAction::Uphold, Flagged | Passed) => None,
        (DecisionAction::Uphold, _) => Some("only what is flagged or passed can stay so; flag or clear it"),
        (_, Missing) => Some("there is no image"),
        (DecisionAction::Clear, Rejected | Failed) => Some("it was not screened; send its job once more"),
        (DecisionAction::Clear, _) if verdict.sha256.is_none() => Some("its content is not known"),
        _ => None,
    }
}

/// The id of the event of an earlier state, if it had one.
fn event_id_of(verdict: &Verdict, state: &EarlierState) -> Uuid {
    event::id_of(&Verdict { judgement: state.judgement.clone(), ..verdict.clone() }, &state.revision)
}

/// Whether any answer of a person is among the findings.
fn is_decided(judgement: &Judgement) -> bool {
    judgement.findings.iter().any(|finding| finding.source == FindingSource::Decision)
}

/// Whether the event of an earlier judgement announces everything that this one means. A decision that leaves the outcome and
/// flags for nothing else has no event.
fn announces_same(now: &Judgement, earlier: &Judgement) -> bool {
    let is_upheld = is_decided(now) && now.outcome == earlier.outcome && !names_new_category(now, earlier);
    is_upheld || now.says_same_as(earlier)
}

/// Whether a judgement flags a category for which the earlier one did not flag.
fn names_new_category(now: &Judgement, before: &Judgement) -> bool {
    let flags = |judgement: &Judgement, category: &Option<String>| {
        let is_flagged = |outcome: Outcome| outcome == Outcome::Flagged;
        judgement.findings.iter().any(|found| is_flagged(found.outcome.outcome()) && found.category == *category)
    };
    let is_new = |category: &Option<String>| flags(now, category) && !flags(before, category);
    now.findings.iter().any(|found| found.category.is_some() && is_new(&found.category))
}

impl DecisionRequest {
    fn check(&self) -> Result<(), ReviewError> {
        check_name("actor", Some(&self.actor))?;
        check_name("name", self.name.as_ref())?;
        check_category(self.category.as_ref())?;
        if self.category.is_some() && self.action != DecisionAction::Flag {
            let what = "only `flag` takes a category; every other action is about the whole image";
            return Err(ReviewError::Invalid { field: "category", what: what.into() });
        }
        check_text("note", self.note.as_ref(), MAX_NOTE)
    }

    /// Whether a decision says the same of the same state, by the same person.
    fn is_recorded_as(&self, made: &Decision) -> bool {
        (made.verdict, made.revision, &made.actor) == (self.verdict, self.revision, &self.actor)
            && (made.action, &made.category) == (self.action, &self.category)
    }

    fn decision(&self) -> Decision {
        Decision {
            id: Uuid::new_v4(),
            verdict: self.verdict,
            revision: self.revision,
            actor: self.actor.clone(),
            action: self.action,
            category: self.category.clone(),
            batch: self.batch,
            at: OffsetDateTime::now_utc(),
            note: self.note.clone(),
            name: self.name.clone(),
        }
    }
}

impl ReportRequest {
    fn check(&self) -> Result<(), ReviewError> {
        if self.kind < ItemKind::Report {
            let what = format!("must be report, appeal or legal, and is {}", self.kind.as_str());
            return Err(ReviewError::Invalid { field: "kind", what });
        }
        check_category(self.category.as_ref())?;
        check_text("note", self.note.as_ref(), MAX_NOTE)?;
        check_text("reporter", self.reporter.as_ref(), MAX_NAME)?;
        check_text("reference", self.reference.as_ref(), MAX_NAME)
    }
}

impl ReportSubject {
    fn text(&self) -> String {
        match self {
            Self::Image(image) => image.uri(),
            Self::Job(id) => format!("the job \"{id}\""),
            Self::Verdict(id) => format!("the id {id}"),
        }
    }
}

fn check_name(field: &'static str, name: Option<&String>) -> Result<(), ReviewError> {
    match name {
        Some(name) if name.trim().is_empty() => Err(ReviewError::Invalid { field, what: "must not be empty".into() }),
        name => check_text(field, name, MAX_NAME),
    }
}

fn check_category(category: Option<&String>) -> Result<(), ReviewError> {
    match category {
        Some(category) if !is_category(category) => {
            let what = "is not a path such as sexual/nudity: lower-case letters, digits, - and _ between slashes";
            Err(ReviewError::Invalid { field: "category", what: what.into() })
        }
        _ => Ok(()),
    }
}

/// PostgreSQL stores no U+0000.
fn check_text(field: &'static str, text: Option<&String>, max: usize) -> Result<(), ReviewError> {
    let what = match text {
        Some(text) if text.contains('\0') => "must not contain U+0000".to_owned(),
        Some(text) if text.chars().count() > max => format!("must have at most {max} characters"),
        _ => return Ok(()),
    };
    Err(ReviewError::Invalid { field, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> DecisionRequest {
        DecisionRequest {
            verdict: Uuid::nil(),
            revision: 1,
            actor: "ada".into(),
            name: None,
            action: DecisionAction::Clear,
            category: None,
            note: None,
            batch: None,
            last_report: None,
        }
    }

    #[test]
    fn values_that_cannot_be_used_are_refused_by_name() {
        let refused = |request: DecisionRequest| request.check().unwrap_err().to_string();
        assert!(request().check().is_ok());
        assert_eq!(refused(DecisionRequest { actor: " ".into(), ..request() }), "`actor` must not be empty");
        assert!(
            refused(DecisionRequest { category: Some("A b".into()), ..request() }).starts_with("`category` is not")
        );
        let long = "x".repeat(MAX_NOTE + 1);
        assert_eq!(
            refused(DecisionRequest { note: Some(long), ..request() }),
            "`note` must have at most 4000 characters"
        );
        assert_eq!(
            refused(DecisionRequest { note: Some("a\0".into()), ..request() }),
            "`note` must not contain U+0000"
        );
        let report = ReportRequest {
            subject: ReportSubject::Job("j".into()),
            kind: ItemKind::Sample,
            category: None,
            note: None,
            reporter: None,
            reference: None,
            due_at: None,
        };
        let refused = report.check().unwrap_err().to_string();
        assert_eq!(refused, "`kind` must be report, appeal or legal, and is sample");
    }
}
