//! Group commit: whatever verdicts are ready share one transaction, so that a thousand of them cost one fsync.
//!
//! While one group is being written, the next one gathers, and where many come it gathers a little longer: a statement
//! costs much the same for one row as for ten. (Postgres's own commit_delay does so with commits.) A row that the database
//! refuses is found by halving the group, and fails alone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::linger::Groups;
use crate::fault_injection::{self, PlantedBug};
use crate::ledger::{Committed, Entry, Ledger, LedgerError};
use crate::telemetry::metrics;

/// Rows a transaction. More gain nothing, and a refused row costs more to find.
const GROUP: usize = 1_000;
/// How long a group lingers for more, and how many are enough: by then a row costs little more than itself.
const LINGER: Duration = Duration::from_millis(20);
const ENOUGH: usize = 16;

/// How many verdicts are worth lingering for where no more than `in_flight` can be under way: half of them at the most, as
/// the others may be long in coming.
#[must_use]
pub fn enough(in_flight: usize) -> usize {
    ENOUGH.min(in_flight / 2)
}

/// The way into the ledger.
#[derive(Clone)]
pub struct Persist {
    entries: mpsc::Sender<Waiting>,
}

struct Waiting {
    entry: Entry,
    reply: oneshot::Sender<Result<Committed, LedgerError>>,
}

impl Persist {
    /// The way in, and the task that writes; it ends when every way in is dropped. No group lingers for more verdicts than
    /// are `enough`.
    pub fn new(ledger: Arc<dyn Ledger>, enough: usize) -> (Self, impl Future<Output = ()> + Send) {
        let (entries, waiting) = mpsc::channel(GROUP);
        let groups = Groups::new(waiting, GROUP, LINGER, enough);
        (Self { entries }, write(ledger, groups))
    }

    /// Commits one verdict and its event, together with whatever else is ready.
    ///
    /// # Errors
    /// When the ledger is down, or refuses this very row.
    pub async fn commit(&self, mut entry: Entry) -> Result<Committed, LedgerError> {
        let kept_back =
            if fault_injection::is_planted(PlantedBug::NoEventOnRedelivery) { entry.event.take() } else { None };
        let (reply, committed) = oneshot::channel();
        let stopped = || LedgerError::Down("the committing task has stopped".into());
        self.entries.send(Waiting { entry, reply }).await.map_err(|_| stopped())?;
        let committed = committed.await.unwrap_or_else(|_| Err(stopped()))?;
        Ok(match committed {
            Committed::Written(event) => Committed::Written(event.or(kept_back)),
            known @ Committed::Known(_) => known,
        })
    }
}

async fn write(ledger: Arc<dyn Ledger>, mut groups: Groups<Waiting>) {
    while let Some(ready) = groups.next().await {
        let mut ids: HashSet<Uuid> = HashSet::new();
        let (group, rest): (Vec<_>, _) = ready.into_iter().partition(|w| ids.insert(w.entry.verdict.id));
        let size = group.len();
        commit(ledger.as_ref(), group).await;
        groups.done(size, rest);
    }
}

/// Commits a group whose ids differ, and answers everyone in it.
fn commit(ledger: &dyn Ledger, mut group: Vec<Waiting>) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let entries: Vec<Entry> = group.iter().map(|waiting| waiting.entry.clone()).collect();
        let began = Instant::now();
        match ledger.commit(&entries).await {
            Ok(answers) => {
                metrics::transaction_committed(entries.len(), began.elapsed());
                for (waiting, answer) in group.into_iter().zip(answers) {
                    drop(waiting.reply.send(Ok(answer)));
                }
            }
            Err(LedgerError::Refused(_)) if group.len() > 1 => {
                let rest = group.split_off(group.len() / 2);
                commit(ledger, group).await;
                commit(ledger, rest).await;
            }
            Err(error) => {
                for waiting in group {
                    drop(waiting.reply.send(Err(error.clone())));
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_lingers_for_what_cannot_come() {
        assert_eq!([0, 1, 4, 18, 80].map(enough), [0, 0, 2, 9, 16]);
    }
}
