//! What people look at and decide: open items, claims, decisions and reports. Only Postgres has them.
//!
//! A verdict has at most one open item. Every writer of verdicts opens and closes it in its own transaction, so that a
//! verdict and its item are committed together: see [`OpenItem`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Event, LedgerError, Position, Revise, StoredVerdict};
use crate::job::{Finding, FindingSource, Outcome, Verdict};

/// Why an image is to be looked at. Of several reasons the item has the one that weighs most.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    /// Drawn among images that passed.
    Sample,
    /// Its outcome.
    Review,
    /// A complaint about the image.
    Report,
    /// A request to decide again.
    Appeal,
    /// A legal request.
    Legal,
}

impl ItemKind {
    /// Every kind, the lightest first.
    pub const ALL: [Self; 5] = [Self::Sample, Self::Review, Self::Report, Self::Appeal, Self::Legal];

    /// The word in the ledger and over HTTP.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sample => "sample",
            Self::Review => "review",
            Self::Report => "report",
            Self::Appeal => "appeal",
            Self::Legal => "legal",
        }
    }

    /// The inverse of [`ItemKind::as_str`].
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// What a person does with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DecisionAction {
    /// It must not be shown.
    Flag,
    /// It may be shown.
    Clear,
    /// It stays flagged or passed, as it is.
    Uphold,
    /// A person with more authority has to look.
    Escalate,
    /// Another person has to look.
    Skip,
    /// The last decision was a mistake.
    Undo,
}

impl DecisionAction {
    /// Every action.
    pub const ALL: [Self; 6] = [Self::Flag, Self::Clear, Self::Uphold, Self::Escalate, Self::Skip, Self::Undo];

    /// The word in the ledger and over HTTP.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Clear => "clear",
            Self::Uphold => "uphold",
            Self::Escalate => "escalate",
            Self::Skip => "skip",
            Self::Undo => "undo",
        }
    }

    /// The inverse of [`DecisionAction::as_str`].
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == word)
    }
}

/// What a verdict says of its review item, if its judgement opens one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OpenItem {
    pub rank: i16,
    pub severity: i16,
    pub category: Option<String>,
    pub label: Option<String>,
    pub is_damage_only: bool,
    pub is_restricted: bool,
}

/// Of legal requests, which come first.
pub(super) const LEGAL_RANK: i16 = 0;
const USUAL_RANK: i16 = 1;
/// Damage without any other finding comes last.
const DAMAGE_RANK: i16 = 2;

impl OpenItem {
    /// The item that a judgement opens: its outcome is one of `outcomes`, and no person has decided it.
    pub(super) fn of(verdict: &Verdict, outcomes: &[Outcome]) -> Option<Self> {
        let strongest = verdict.judgement.findings.first();
        let is_decided = strongest.is_some_and(|finding| finding.source == FindingSource::Decision);
        let opens = outcomes.contains(&verdict.judgement.outcome) && !is_decided;
        opens.then(|| Self::describing(verdict))
    }

    /// What is known of an image, also where no judgement opens an item.
    pub(super) fn describing(verdict: &Verdict) -> Self {
        let judgement = &verdict.judgement;
        let is_damage = |finding: &Finding| finding.source == FindingSource::Damage;
        let is_damage_only = !judgement.findings.is_empty() && judgement.findings.iter().all(is_damage);
        let strongest = judgement.findings.first();
        Self {
            rank: if is_damage_only { DAMAGE_RANK } else { USUAL_RANK },
            severity: strongest.and_then(|finding| finding.severity).map_or(0, i16::from),
            category: strongest.and_then(|finding| finding.category.clone()),
            label: judgement.label.clone(),
            is_damage_only,
            is_restricted: judgement.is_restricted(),
        }
    }
}

/// An item of review.
#[derive(Debug, Clone, PartialEq)]
pub struct ReviewItem {
    pub id: Uuid,
    pub verdict: Uuid,
    pub kind: ItemKind,
    /// Of the verdict, when the item was opened or last changed by a judgement.
    pub revision: u32,
    pub category: Option<String>,
    /// From 1 to 5; 0 where none is known.
    pub severity: u8,
    pub label: Option<String>,
    pub bucket: String,
    pub policy: String,
    pub due_at: Option<OffsetDateTime>,
    pub opened_at: OffsetDateTime,
    /// Nothing was found but damage.
    pub is_damage_only: bool,
    /// No picture of it may be shown.
    pub is_restricted: bool,
    pub escalated_at: Option<OffsetDateTime>,
    /// The person who has it, and until when. A lease that has ended is none.
    pub claim: Option<(String, OffsetDateTime)>,
    pub position: ItemPosition,
}

/// An item with what is known of its image. No picture is part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemWithVerdict {
    pub item: ReviewItem,
    pub stored: StoredVerdict,
    /// The reports that wait for a decision, oldest first: those since the item was opened.
    pub reports: Vec<Report>,
}

/// The place of an item in the order of the queue: legal requests, then by due date, severity and age; damage alone is last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemPosition {
    pub(super) rank: i16,
    pub(super) due_at: Option<OffsetDateTime>,
    pub(super) severity: i16,
    pub(super) opened_at: OffsetDateTime,
    pub(super) id: Uuid,
}

/// As one word for a cursor.
impl fmt::Display for ItemPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |at: OffsetDateTime| at.unix_timestamp_nanos().div_euclid(1_000);
        let due_at = self.due_at.map_or_else(|| "-".to_owned(), |at| micros(at).to_string());
        write!(f, "{}~{due_at}~{}~{}~{}", self.rank, self.severity, micros(self.opened_at), self.id.simple())
    }
}

/// A text that is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no cursor of the review queue")]
pub struct NoPosition;

impl FromStr for ItemPosition {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let at = |micros: &str| {
            let nanos = micros.parse::<i128>().ok()?.checked_mul(1_000)?;
            OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
        };
        let parse = || {
            let mut words = text.split('~');
            let rank = words.next()?.parse().ok()?;
            let due_at = match words.next()? {
                "-" => None,
                micros => Some(at(micros)?),
            };
            let severity = words.next()?.parse().ok()?;
            let opened_at = at(words.next()?)?;
            let id = Uuid::parse_str(words.next()?).ok()?;
            words.next().is_none().then_some(Self { rank, due_at, severity, opened_at, id })
        };
        parse().ok_or(NoPosition)
    }
}

/// Selects open items that meet every condition. An empty list means no condition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ItemFilter {
    pub kinds: Vec<ItemKind>,
    /// The names of policies.
    pub policies: Vec<String>,
    /// Any of these categories, or one below it.
    pub categories: Vec<String>,
    /// At least this severity.
    pub min_severity: Option<u8>,
    /// `*` stands for any characters.
    pub buckets: Vec<String>,
    pub labels: Vec<String>,
    /// Opened before this time.
    pub opened_before: Option<OffsetDateTime>,
    /// Only damage alone, or everything but that.
    pub damage_only: Option<bool>,
    /// Only what was escalated, or everything but that.
    pub escalated: Option<bool>,
    /// Leave out the items that are claimed.
    pub unclaimed: bool,
    /// Only what the asking program may see: these buckets, where `*` stands for any characters, and these policies.
    pub bound_buckets: Vec<String>,
    pub bound_policies: Vec<String>,
}

/// A part of the selected items.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemPage {
    pub items: Vec<ItemWithVerdict>,
    /// Behind the last item; `None` after the last page.
    pub next: Option<ItemPosition>,
}

/// A person takes items, to look at them alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    pub actor: String,
    /// At most this many.
    pub count: u32,
    pub lease: Duration,
    pub filter: ItemFilter,
}

/// A decision as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub id: Uuid,
    pub verdict: Uuid,
    /// The revision that was decided on.
    pub revision: u32,
    pub actor: String,
    pub action: DecisionAction,
    pub category: Option<String>,
    pub batch: Option<Uuid>,
    pub at: OffsetDateTime,
    /// What the person wrote, and the person's name, unless they were erased.
    pub note: Option<String>,
    pub name: Option<String>,
}

/// A decision that is to be recorded, with what it does to the verdict.
#[derive(Debug, Clone)]
pub struct Decide {
    /// Its `at` is set by the ledger.
    pub decision: Decision,
    pub effect: DecisionEffect,
    /// The last report that the person has seen. What was reported later waits for another decision. Without it, a decision
    /// answers what was reported before the person claimed the item, or without a claim everything.
    pub last_report: Option<Uuid>,
    /// How long the event waits, so that the decision can be undone.
    pub event_delay: Duration,
}

/// What a decision does.
#[derive(Debug, Clone)]
pub enum DecisionEffect {
    /// A revision, and the item is closed.
    Judge(Box<Revise>),
    /// The last decision is taken back, unless its event has left.
    Undo(Box<Undo>),
    /// The item goes back to the queue; the revision stays.
    Escalate,
    /// As [`DecisionEffect::Escalate`], and this person does not get it any more.
    Skip,
}

/// How the last decision on a verdict is taken back.
#[derive(Debug, Clone)]
pub struct Undo {
    /// What holds without the decision.
    pub revise: Revise,
    /// The revision that was decided on, and the event that the decision had.
    pub made_on: u32,
    pub event: Uuid,
    /// A decision without an event can be undone for so long.
    pub window: Duration,
    /// The event of `revise` is sent to every destination whose last event is none of these. They say the same, and what
    /// the decision has replaced before it left is none of them.
    pub says_same: Vec<Uuid>,
    /// Whether `revise` says something else than the verdict did before the decision, so that unsent events are wrong.
    pub is_news: bool,
    /// When a person had decided about the content before that. None where it is decided no more.
    pub content_decided_at: Option<OffsetDateTime>,
}

/// The result of a decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Decided {
    /// It was recorded. The verdict has this revision now.
    Done { revision: u32, event: Option<Event> },
    /// This person has decided just this before: the answer was lost. Nothing was recorded twice, and no later revision has
    /// come.
    Repeated { revision: u32 },
    /// The verdict is not at the expected revision. This is its state now.
    Stale(Box<StoredVerdict>),
    /// As [`Decided::Stale`]. The same decision of this person was recorded before that.
    Overtaken(Box<StoredVerdict>),
    /// There is no verdict of this id.
    Missing,
    /// The last report that the person has seen is not about this verdict.
    UnknownReport,
    /// Another person has claimed it until then.
    Claimed { actor: String, until: OffsetDateTime },
    /// It was appealed against a decision of this person.
    OwnDecision,
    /// There is no open item to escalate or to skip.
    NotOpen,
    /// There is no decision of this person to undo.
    NothingToUndo,
    /// The event of the decision has left.
    TooLate,
}

/// The most reports on a verdict that wait for a decision, of each kind. Otherwise one image could fill the ledger, and its item
/// every page.
pub const MAX_WAITING_REPORTS: u32 = 100;

/// The result of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    Recorded,
    /// There is no such verdict.
    Missing,
    /// [`MAX_WAITING_REPORTS`] of this kind wait for a decision, so that nothing was recorded.
    TooMany,
}

/// A report, an appeal or a legal request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub id: Uuid,
    pub verdict: Uuid,
    /// [`ItemKind::Report`], [`ItemKind::Appeal`] or [`ItemKind::Legal`].
    pub kind: ItemKind,
    pub category: Option<String>,
    pub note: Option<String>,
    pub reporter: Option<String>,
    pub reference: Option<String>,
    pub due_at: Option<OffsetDateTime>,
    /// Set by the ledger.
    pub made_at: OffsetDateTime,
}

/// Selects decisions that meet every condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecisionFilter {
    /// Made at this time or later.
    pub since: Option<OffsetDateTime>,
    /// Made before this time.
    pub until: Option<OffsetDateTime>,
    /// By any of these people; an empty list means everybody.
    pub actors: Vec<String>,
    /// Any of these actions; an empty list means every action.
    pub actions: Vec<DecisionAction>,
}

/// A part of the selected decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionPage {
    pub decisions: Vec<Decision>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<Position>,
}

/// The open items of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    pub kind: ItemKind,
    pub items: u64,
    /// How long the earliest due date has passed; zero where none has.
    pub overdue: Duration,
    /// Items whose last lease has ended by itself, and that no person has claimed since.
    pub lapsed: u64,
}

/// The number of open items that [`Reviews::queue_state`] reads, so that a long queue costs no more.
pub const MAX_COUNTED_ITEMS: u32 = 10_000;

/// Review items, decisions and reports.
#[async_trait]
pub trait Reviews: Send + Sync {
    /// Up to `limit` open items in the order of the queue, behind a place or from the first.
    async fn open_items(
        &self,
        filter: &ItemFilter,
        behind: Option<ItemPosition>,
        limit: u32,
    ) -> Result<ItemPage, LedgerError>;

    /// Takes open items for a person, in the order of the queue. No item is given to two people at a time; a lease ends by
    /// itself. What the person has skipped, and appeals against that person's decisions, are left out.
    async fn claim_items(&self, claim: &Claim) -> Result<Vec<ItemWithVerdict>, LedgerError>;

    /// Renews claims of a person on those of some items that are selected, and returns the items that the person has still.
    async fn renew_claims(
        &self,
        actor: &str,
        items: &[Uuid],
        lease: Duration,
        among: &ItemFilter,
    ) -> Result<Vec<Uuid>, LedgerError>;

    /// Gives those of some items back to the queue that a person has and that are selected, and returns their number.
    async fn release_claims(&self, actor: &str, items: &[Uuid], among: &ItemFilter) -> Result<u64, LedgerError>;

    /// Records a decision with everything that it does, in one transaction. Reports that the person has not seen keep an item
    /// open.
    async fn decide(&self, decide: &Decide) -> Result<Decided, LedgerError>;

    /// Records a report and opens an item, or adds to the one that is open.
    async fn report(&self, report: &Report) -> Result<Reported, LedgerError>;

    /// The verdict on equal bytes under the same policy about which a person has decided last, since a time.
    async fn find_decided(
        &self,
        sha256: [u8; 32],
        policy_sha256: &str,
        since: OffsetDateTime,
    ) -> Result<Option<StoredVerdict>, LedgerError>;

    /// What waits, by kind, among the first [`MAX_COUNTED_ITEMS`] items in the order of the queue.
    async fn queue_state(&self) -> Result<Vec<QueueState>, LedgerError>;

    /// The decisions on a verdict, oldest first.
    async fn decisions_on(&self, verdict: Uuid) -> Result<Vec<Decision>, LedgerError>;

    /// The reports on a verdict, oldest first.
    async fn reports_on(&self, verdict: Uuid) -> Result<Vec<Report>, LedgerError>;

    /// Up to `limit` selected decisions from a place on, or from the first, in the order of time and id.
    async fn page_of_decisions(
        &self,
        filter: &DecisionFilter,
        from: Option<Position>,
        limit: u32,
    ) -> Result<DecisionPage, LedgerError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap();
        for due_at in [None, Some(at)] {
            let position = ItemPosition { rank: 1, due_at, severity: 5, opened_at: at, id: Uuid::max() };
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for text in ["", "1~-~5", "1~x~5~7~00000000-0000-0000-0000-000000000000", "1~-~5~7~no"] {
            assert_eq!(text.parse::<ItemPosition>(), Err(NoPosition), "{text}");
        }
    }
}
