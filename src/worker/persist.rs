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
use crate::job::Revision;
use crate::ledger::{Event, Inserted, Ledger, LedgerError, NewVerdict, replace_failed_verdict};
use crate::planted::{self, Bug};
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
    ledger: Arc<dyn Ledger>,
    entries: mpsc::Sender<Waiting>,
}

struct Waiting {
    entry: NewVerdict,
    reply: oneshot::Sender<Result<Inserted, LedgerError>>,
}

impl Persist {
    /// The way in, and the task that writes; it ends when every way in is dropped. No group lingers for more verdicts than
    /// are `enough`.
    pub fn new(ledger: Arc<dyn Ledger>, enough: usize) -> (Self, impl Future<Output = ()> + Send) {
        let (entries, waiting) = mpsc::channel(GROUP);
        let groups = Groups::new(waiting, GROUP, LINGER, enough);
        (Self { ledger: Arc::clone(&ledger), entries }, write(ledger, groups))
    }

    /// Commits one verdict and its event together with others that are ready. A `failed` verdict of the same object is
    /// replaced, with the event that `revised` makes.
    ///
    /// # Errors
    /// When the ledger is down, or refuses this very row.
    pub async fn commit(
        &self,
        new: &NewVerdict,
        revised: impl FnOnce(&Revision) -> Option<Event> + Send,
    ) -> Result<Inserted, LedgerError> {
        let mut entry = new.clone();
        let kept_back = if planted::has(Bug::NoEventOnRedelivery) { entry.event.take() } else { None };
        let (reply, committed) = oneshot::channel();
        let stopped = || LedgerError::Down("the committing task has stopped".into());
        self.entries.send(Waiting { entry, reply }).await.map_err(|_| stopped())?;
        let inserted = match committed.await.unwrap_or_else(|_| Err(stopped()))? {
            Inserted::Written(event) => Inserted::Written(event.or(kept_back)),
            existing @ Inserted::Existing(_) => existing,
        };
        replace_failed_verdict(self.ledger.as_ref(), &new.verdict, inserted, revised).await
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
        let entries: Vec<NewVerdict> = group.iter().map(|waiting| waiting.entry.clone()).collect();
        let began = Instant::now();
        match ledger.insert(&entries).await {
            Ok(answers) => {
                metrics::transaction(entries.len(), began.elapsed());
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
