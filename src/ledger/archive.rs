//! What an operator asks of a ledger after the work is done: reading back, and judging anew.

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Event, LedgerError};
use crate::job::{ImageRef, Judgement, Outcome, PolicyRef, Verdict};

/// Which verdicts are meant: those that meet every condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Decided then or later.
    pub since: Option<OffsetDateTime>,
    /// Decided before then.
    pub until: Option<OffsetDateTime>,
    /// Of these outcomes; of any, where there are none.
    pub outcomes: Vec<Outcome>,
    /// Scored by the detector of this name.
    pub detector: Option<String>,
}

/// An event as the outbox knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The event's id.
    pub event: Uuid,
    /// The topic.
    pub routing_key: String,
    /// When it was owed.
    pub created_at: OffsetDateTime,
    /// When the broker confirmed it.
    pub published_at: Option<OffsetDateTime>,
    /// How often the sweeper has tried.
    pub tries: i32,
    /// Why it is not published yet.
    pub last_error: Option<String>,
}

/// A verdict that another policy judges.
#[derive(Debug, Clone)]
pub struct Rejudged {
    /// The verdict.
    pub id: Uuid,
    /// SHA-256 of the policy that judged it so far; if it has another one by now, nothing changes.
    pub before: String,
    /// What is made of its scores now.
    pub judgement: Judgement,
    /// By whom.
    pub policy: PolicyRef,
    /// When.
    pub decided_at: OffsetDateTime,
    /// The event it owes, where the outcome has changed and is announced.
    pub event: Option<Event>,
}

/// A ledger, read back.
#[async_trait]
pub trait Archive: Send + Sync {
    /// The whole verdict of this id.
    async fn read(&self, id: Uuid) -> Result<Option<Verdict>, LedgerError>;

    /// The verdicts on an image in whatever version, the latest first, `limit` at the most.
    async fn on_image(&self, image: &ImageRef, limit: u32) -> Result<Vec<Verdict>, LedgerError>;

    /// The events of a verdict that the outbox still knows, oldest first.
    async fn events_of(&self, verdict: Uuid) -> Result<Vec<Announcement>, LedgerError>;

    /// Up to `limit` verdicts in the order of their decision, beginning behind `after`. Whoever pages through to the end
    /// sees each verdict that was there at the beginning once, unless it is decided anew meanwhile.
    async fn page(&self, filter: &Filter, after: Option<&Verdict>, limit: u32) -> Result<Vec<Verdict>, LedgerError>;

    /// Counts the verdicts that were decided before `until`, of these outcomes or of any where there are none, and whose
    /// events are all published.
    async fn count_settled(&self, until: OffsetDateTime, outcomes: &[Outcome]) -> Result<u64, LedgerError>;

    /// Deletes up to `limit` of them with their events, oldest first, and says how many verdicts.
    async fn delete_settled(&self, until: OffsetDateTime, outcomes: &[Outcome], limit: u32)
    -> Result<u64, LedgerError>;

    /// Writes all changes with their events in one transaction, or none; says how many were still to be made.
    async fn rejudge(&self, changes: &[Rejudged]) -> Result<u64, LedgerError>;
}
