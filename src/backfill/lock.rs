//! One backfill at a time per ledger: two would publish the same jobs. A second one waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{RETRY_DEADLINE, may_pass};
use crate::ledger::{BACKFILL_LEASE_TIMEOUT, Ledger, LedgerError};
use crate::retry;

/// How often the lock is renewed; it expires only after several missed renewals.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// How often a waiting process tries to acquire the lock.
const ACQUIRE_INTERVAL: Duration = Duration::from_secs(1);

/// The lock, renewed until it is released.
pub(super) struct BackfillLock {
    ledger: Arc<dyn Ledger>,
    process: Uuid,
    /// Set when another process has acquired the lock, because this one did not renew it in time.
    pub(super) lost: CancellationToken,
    renewing: JoinHandle<()>,
}

impl BackfillLock {
    /// Waits for the lock; `None` when `stop` is set first.
    pub(super) async fn acquire(
        ledger: Arc<dyn Ledger>,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, LedgerError> {
        let process = Uuid::new_v4();
        let mut logged = false;
        while !retry::retry_patiently(RETRY_DEADLINE, may_pass, async || ledger.take_backfill_lease(process).await)
            .await?
        {
            if !logged {
                tracing::warn!(
                    expires_s = BACKFILL_LEASE_TIMEOUT.as_secs(),
                    "waiting for another backfill on this ledger to end, or for its lock to expire"
                );
                logged = true;
            }
            if stop.run_until_cancelled(tokio::time::sleep(ACQUIRE_INTERVAL)).await.is_none() {
                return Ok(None);
            }
        }
        let lost = CancellationToken::new();
        let renewing = tokio::spawn(renew(Arc::clone(&ledger), process, lost.clone()));
        Ok(Some(Self { ledger, process, lost, renewing }))
    }

    /// Releases the lock, so that the next backfill need not wait until it expires.
    pub(super) async fn release(self) {
        self.renewing.abort();
        if let Err(e) = self.ledger.release_backfill_lease(self.process).await {
            tracing::warn!(error = %e, expires_s = BACKFILL_LEASE_TIMEOUT.as_secs(), "could not release the lock; the next backfill waits until it expires");
        }
    }
}

/// Renews the lock. While the ledger does not respond the lock is not lost: only another process can acquire it.
async fn renew(ledger: Arc<dyn Ledger>, process: Uuid, lost: CancellationToken) {
    loop {
        tokio::time::sleep(RENEW_INTERVAL).await;
        // A call that hangs must not delay the next renewal.
        match tokio::time::timeout(RENEW_INTERVAL, ledger.take_backfill_lease(process)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return lost.cancel(),
            Ok(Err(e)) => tracing::debug!(error = %e, "could not renew the lock"),
            Err(_) => tracing::debug!("could not renew the lock in time"),
        }
    }
}
