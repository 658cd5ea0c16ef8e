//! What a backfill needs of the ledger: one running backfill at a time, its progress, the objects that have a verdict,
//! and the jobs that wait in the lane.

use std::time::Duration;

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::LedgerError;
use crate::job::{Digests, ImageRef, Outcome};

/// How long a process keeps the backfill lease without renewing it.
pub const BACKFILL_LEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// The best verdict on an object in its present state from the present detectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentVerdict {
    pub job_id: String,
    /// `missing` and `failed` only where there is no verdict with another outcome.
    pub outcome: Outcome,
    pub decided_at: OffsetDateTime,
}

/// The comparison of an archive with the ledger.
#[async_trait]
pub trait Reconcile: Send + Sync {
    /// Takes or renews the backfill lease; false while another process has it.
    async fn take_backfill_lease(&self, process: Uuid) -> Result<bool, LedgerError>;

    /// Releases the backfill lease if this process has it.
    async fn release_backfill_lease(&self, process: Uuid) -> Result<(), LedgerError>;

    /// The mark that the backfill of this id has reached, and when it was saved.
    async fn backfill_progress(&self, id: &str) -> Result<Option<(String, OffsetDateTime)>, LedgerError>;

    /// Saves the mark that was reached; `None` deletes it after the end.
    async fn save_backfill_progress(&self, id: &str, mark: Option<&str>) -> Result<(), LedgerError>;

    /// The current verdict on each object, in order. An `ETag` of `None` stands for verdicts without one.
    async fn current_verdicts(
        &self,
        objects: &[ImageRef],
        digests: &Digests,
    ) -> Result<Vec<Option<CurrentVerdict>>, LedgerError>;

    /// Of these verdict ids, those whose jobs were published since then and have no verdict yet.
    async fn pending_jobs(&self, ids: &[Uuid], since: OffsetDateTime) -> Result<Vec<Uuid>, LedgerError>;

    /// Records that jobs were published at this time or later.
    async fn record_published_jobs(&self, ids: &[Uuid], at: OffsetDateTime) -> Result<(), LedgerError>;

    /// Deletes the records of jobs that were answered after they were published, and of all that were published before
    /// `before`. Returns their number.
    async fn delete_answered_jobs(&self, before: OffsetDateTime) -> Result<u64, LedgerError>;
}
