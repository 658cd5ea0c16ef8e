//! Redelivered jobs whose screening is recorded, because a process may have died of them.

use async_trait::async_trait;
use uuid::Uuid;

use super::LedgerError;

/// How long a record is kept whose job never comes back.
pub(super) const KEEP_RECORDS_DAYS: i32 = 30;

/// Counts the processes that died while they screened a redelivered job.
#[async_trait]
pub trait Quarantine: Send + Sync {
    /// Records, durably and before the work, that `process` begins to screen this verdict's job beside others. Returns
    /// false, and records nothing, if there is a record already: another process has left it behind, or this one has begun
    /// the job alone before.
    async fn begin_in_company(&self, verdict: Uuid, process: Uuid) -> Result<bool, LedgerError>;

    /// Records, durably and before the work, that `process` begins to screen this verdict's job alone. Returns how many
    /// processes have begun it; a process that begins it again has not died of it and counts once.
    async fn begin_quarantine(&self, verdict: Uuid, process: Uuid) -> Result<u32, LedgerError>;

    /// Removes records: the process survived the jobs.
    ///
    /// Two kinds of records go with them. A process that died just after it had settled a job left the record of an answered
    /// job: its verdict was decided after the record began. And a record older than `KEEP_RECORDS_DAYS` is of a job that was
    /// screened under another id, because its object had changed by then.
    async fn end_quarantine(&self, verdicts: &[Uuid]) -> Result<(), LedgerError>;
}
