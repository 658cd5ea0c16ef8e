//! What operators ask of the ledger after the work is done: verdicts to read, prune and rejudge.

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{LedgerError, Revise};
use crate::job::{ImageRef, Judgement, Outcome, Revision, Verdict};

/// A verdict with its last revision.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredVerdict {
    pub verdict: Verdict,
    pub revision: Revision,
}

/// The state of a verdict before its last revision.
#[derive(Debug, Clone, PartialEq)]
pub struct EarlierState {
    pub revision: Revision,
    pub judgement: Judgement,
}

/// Selects verdicts that meet every condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerdictFilter {
    /// Decided at this time or later.
    pub since: Option<OffsetDateTime>,
    /// Decided before this time.
    pub until: Option<OffsetDateTime>,
    /// Any of these outcomes; an empty list means every outcome.
    pub outcomes: Vec<Outcome>,
    /// Scored by the detector of this name.
    pub detector: Option<String>,
}

/// The state of an event in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    pub event_id: Uuid,
    pub routing_key: String,
    pub created_at: OffsetDateTime,
    /// When the broker confirmed the event.
    pub published_at: Option<OffsetDateTime>,
    /// How often the sweeper has tried to publish it.
    pub tries: i32,
    /// Why the last try failed.
    pub last_error: Option<String>,
}

/// The verdicts that are stored.
#[async_trait]
pub trait Archive: Send + Sync {
    /// The verdict of this id.
    async fn read_verdict(&self, id: Uuid) -> Result<Option<StoredVerdict>, LedgerError>;

    /// Up to `limit` verdicts on an image in any version, the latest first.
    async fn verdicts_on_image(&self, image: &ImageRef, limit: u32) -> Result<Vec<StoredVerdict>, LedgerError>;

    /// Up to `limit` verdicts on content of this SHA-256, the latest first. No index serves this: it takes time in
    /// proportion to the number of all verdicts.
    async fn verdicts_on_content(&self, sha256: [u8; 32], limit: u32) -> Result<Vec<StoredVerdict>, LedgerError>;

    /// The earlier states of a verdict, oldest first.
    async fn earlier_states(&self, verdict: Uuid) -> Result<Vec<EarlierState>, LedgerError>;

    /// The events of a verdict that are still in the outbox, oldest first.
    async fn outbox_rows(&self, verdict: Uuid) -> Result<Vec<OutboxRow>, LedgerError>;

    /// Up to `limit` verdicts, ordered by `decided_at` and id, that follow `after`. Reading page after page to the end
    /// returns every verdict that was there at the beginning exactly once.
    async fn page_of_verdicts(
        &self,
        filter: &VerdictFilter,
        after: Option<&Verdict>,
        limit: u32,
    ) -> Result<Vec<StoredVerdict>, LedgerError>;

    /// Counts the verdicts that may be pruned: decided before `until`, with any of these outcomes (an empty list means
    /// every outcome), and without an unpublished event.
    async fn count_prunable(&self, until: OffsetDateTime, outcomes: &[Outcome]) -> Result<u64, LedgerError>;

    /// Deletes up to `limit` of these verdicts with their history and events, oldest first. Returns the number of
    /// verdicts.
    async fn delete_prunable(
        &self,
        until: OffsetDateTime,
        outcomes: &[Outcome],
        limit: u32,
    ) -> Result<u64, LedgerError>;

    /// Revises verdicts by another policy, all in one transaction or none. Returns how many were at the expected
    /// revision and have been changed.
    ///
    /// A judgement that changes nothing that people see (outcome, reason, label, score) makes no revision: then only
    /// the policy of the verdict changes.
    async fn rejudge(&self, changes: &[Revise]) -> Result<u64, LedgerError>;
}
