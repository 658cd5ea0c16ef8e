//! One backfill at a time on a ledger: two at once would publish the same jobs. Whoever comes second waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{PATIENCE, may_pass};
use crate::ledger::{BACKFILL_LEASE_TIMEOUT, Ledger, LedgerError};
use crate::retry;

/// How often a process says that it lives; several may be missed.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How often one that waits looks.
const LOOK: Duration = Duration::from_secs(1);

/// The turn, kept until it is given back.
pub(super) struct Turn {
    ledger: Arc<dyn Ledger>,
    process: Uuid,
    /// Set when another process has taken it: this one was silent for too long.
    pub(super) lost: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Turn {
    /// Waits for the turn; `None` when `stop` was set meanwhile.
    pub(super) async fn take(ledger: Arc<dyn Ledger>, stop: &CancellationToken) -> Result<Option<Self>, LedgerError> {
        let process = Uuid::new_v4();
        let mut told = false;
        while !retry::retry_patiently(PATIENCE, may_pass, async || ledger.take_backfill_lease(process).await).await? {
            if !told {
                tracing::warn!(
                    "another backfill is at work on this ledger, or was until {} s ago: this one begins when it has ended",
                    BACKFILL_LEASE_TIMEOUT.as_secs()
                );
                told = true;
            }
            if stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
                return Ok(None);
            }
        }
        let lost = CancellationToken::new();
        let keeper = tokio::spawn(keep(Arc::clone(&ledger), process, lost.clone()));
        Ok(Some(Self { ledger, process, lost, keeper }))
    }

    /// Gives it back, so that the next one need not wait until this one is taken for dead.
    pub(super) async fn give_back(self) {
        self.keeper.abort();
        if let Err(e) = self.ledger.release_backfill_lease(self.process).await {
            tracing::warn!(error = %e, "the turn could not be given back; the next backfill waits {} s", BACKFILL_LEASE_TIMEOUT.as_secs());
        }
    }
}

/// Says that this process lives. A ledger that does not answer takes the turn from nobody; another process does.
async fn keep(ledger: Arc<dyn Ledger>, process: Uuid, lost: CancellationToken) {
    loop {
        tokio::time::sleep(SIGN_OF_LIFE).await;
        // A call that hangs must not be what makes it late.
        match tokio::time::timeout(SIGN_OF_LIFE, ledger.take_backfill_lease(process)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return lost.cancel(),
            Ok(Err(e)) => tracing::debug!(error = %e, "the turn could not be kept"),
            Err(_) => tracing::debug!("the turn could not be kept in time"),
        }
    }
}
