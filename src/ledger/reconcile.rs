//! What a backfill asks of a ledger: whose turn it is, how far the last one came, what has a verdict already and what
//! waits in the lane.

use std::time::Duration;

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::LedgerError;
use crate::job::{Digests, ImageRef, Outcome};

/// How long a process keeps its turn without saying that it lives.
pub const TURN: Duration = Duration::from_secs(10);

/// The best verdict there is on an object in its present state under the present detectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its job's id.
    pub job_id: String,
    /// Its outcome; `missing` and `failed` only where there is no other.
    pub outcome: Outcome,
    /// When it was decided.
    pub decided_at: OffsetDateTime,
}

/// A ledger, compared with an archive.
#[async_trait]
pub trait Reconcile: Send + Sync {
    /// Takes the turn, or keeps it for another [`TURN`]; false while another process has it.
    async fn take_turn(&self, process: Uuid) -> Result<bool, LedgerError>;

    /// Gives the turn back, if this process has it.
    async fn give_turn_back(&self, process: Uuid) -> Result<(), LedgerError>;

    /// How far the backfill of this id has come, and when that was kept.
    async fn progress(&self, id: &str) -> Result<Option<(String, OffsetDateTime)>, LedgerError>;

    /// Keeps how far it has come; `None` once it is at the end.
    async fn keep_progress(&self, id: &str, mark: Option<&str>) -> Result<(), LedgerError>;

    /// What stands on each object, in order. An `ETag` of `None` means verdicts that have none.
    async fn standings(&self, objects: &[ImageRef], digests: &Digests) -> Result<Vec<Option<Standing>>, LedgerError>;

    /// Of these verdicts' ids, those whose jobs were published since then and have no verdict yet.
    async fn published_since(&self, ids: &[Uuid], since: OffsetDateTime) -> Result<Vec<Uuid>, LedgerError>;

    /// Records that jobs were published, at a time that is not after it.
    async fn note_published_jobs(&self, ids: &[Uuid], at: OffsetDateTime) -> Result<(), LedgerError>;

    /// Forgets the jobs that have been answered since they were published, and all that were published before `before`;
    /// says how many.
    async fn forget_published_jobs(&self, before: OffsetDateTime) -> Result<u64, LedgerError>;
}
