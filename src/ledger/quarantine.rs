//! Redelivered jobs whose screening is recorded, because a process may have died of them.

use async_trait::async_trait;
use uuid::Uuid;

use super::LedgerError;

/// Counts the processes that died while they screened a redelivered job.
#[async_trait]
pub trait Quarantine: Send + Sync {
    /// Records, durably and before the work, that `process` begins to screen this verdict's job beside others. Returns
    /// false, and records nothing, if another process has left its record behind.
    async fn begin_in_company(&self, verdict: Uuid, process: Uuid) -> Result<bool, LedgerError>;

    /// Records, durably and before the work, that `process` begins to screen this verdict's job alone. Returns how many
    /// processes have begun it; a process that begins it again has not died of it and counts once.
    async fn begin_quarantine(&self, verdict: Uuid, process: Uuid) -> Result<u32, LedgerError>;

    /// Removes the record: the process survived the job.
    async fn end_quarantine(&self, verdict: Uuid) -> Result<(), LedgerError>;
}
