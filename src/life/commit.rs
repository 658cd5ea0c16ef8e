//! Group commit: all verdicts that are ready share one transaction, so that a thousand of them cost one fsync.
//!
//! While one group is written, the next group gathers. Under load it gathers a little longer, because a statement costs
//! about the same for one row as for ten. (Postgres's `commit_delay` does the same for commits.) A row that the database
//! refuses is found by splitting the group in halves, and fails alone.
//!
//! Some refusals do not show whether a row or the ledger is the reason: a trigger may refuse one row or all, and so may a
//! damaged index. Then the row is the reason if the ledger accepts others, and the ledger is if it accepts none.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::fault_injection::{self, PlantedBug};
use crate::groups::Groups;
use crate::job::{ImageRef, Revision, Verdict};
use crate::ledger::{Event, Inserted, Ledger, LedgerError, NewVerdict, replace_failed_verdict};
use crate::telemetry::metrics;

/// Rows per transaction. A larger group gains nothing, and finding a refused row in it costs more.
const MAX_GROUP: usize = 1_000;
/// How long a group waits for more verdicts.
const LINGER_DELAY: Duration = Duration::from_millis(20);
/// A group of this size does not wait: a further row would save almost nothing.
const MAX_LINGER: usize = 16;

/// The number of verdicts that a group waits for, where at most `in_flight` jobs are in progress. At most half of them,
/// because the others may take long.
#[must_use]
pub fn linger_limit(in_flight: usize) -> usize {
    MAX_LINGER.min(in_flight / 2)
}

/// Commits verdicts in groups.
#[derive(Clone)]
pub struct CommitQueue {
    ledger: Arc<dyn Ledger>,
    entries: mpsc::Sender<Waiting>,
}

/// What refusals for an unclear reason mean: if the ledger does not accept the row of a probe either, it is the reason.
async fn probe_is_refused(ledger: &dyn Ledger) -> bool {
    ledger.ping().await.is_err()
}

/// What a refusal means, once it is known whose fault it is.
fn resolve_unclear(error: LedgerError, is_ledgers: bool) -> LedgerError {
    match error {
        LedgerError::RefusedUnclear(reason) if is_ledgers => LedgerError::Down(reason),
        LedgerError::RefusedUnclear(reason) => LedgerError::Refused(reason),
        other => other,
    }
}

struct Waiting {
    entry: NewVerdict,
    reply: oneshot::Sender<Result<Inserted, LedgerError>>,
}

impl CommitQueue {
    /// The queue, and the task that writes. The task ends when every clone of the queue is dropped. No group waits for more
    /// than `linger_limit` verdicts.
    pub fn new(ledger: Arc<dyn Ledger>, linger_limit: usize) -> (Self, impl Future<Output = ()> + Send) {
        let (entries, waiting) = mpsc::channel(MAX_GROUP);
        let groups = Groups::new(waiting, MAX_GROUP, LINGER_DELAY, linger_limit);
        (Self { ledger: Arc::clone(&ledger), entries }, write_groups(ledger, groups))
    }

    /// Commits one verdict with its event, in a group with others that are ready. A `failed` verdict that answers a job for
    /// `named`, the image as its job names it, is replaced, with the event that `revised_event` makes.
    ///
    /// # Errors
    /// When the ledger is down, or refuses this row.
    pub async fn commit(
        &self,
        new: &NewVerdict,
        named: &ImageRef,
        revised_event: impl FnOnce(&Verdict, &Revision) -> Option<Event> + Send,
    ) -> Result<Inserted, LedgerError> {
        let mut entry = new.clone();
        let kept_back =
            if fault_injection::is_planted(PlantedBug::NoEventOnRedelivery) { entry.event.take() } else { None };
        let (reply, inserted) = oneshot::channel();
        let stopped = || LedgerError::Down("the committing task has stopped".into());
        self.entries.send(Waiting { entry, reply }).await.map_err(|_| stopped())?;
        let inserted = match inserted.await.unwrap_or_else(|_| Err(stopped()))? {
            Inserted::Written(event) => Inserted::Written(event.or(kept_back)),
            existing @ Inserted::Existing(_) => existing,
        };
        let began = Instant::now();
        let is_new = matches!(inserted, Inserted::Written(_));
        let replaced = replace_failed_verdict(self.ledger.as_ref(), &new.verdict, named, inserted, revised_event).await;
        let inserted = match replaced {
            Ok(inserted) => inserted,
            Err(error @ LedgerError::RefusedUnclear(_)) => {
                let is_ledgers = probe_is_refused(self.ledger.as_ref()).await;
                return Err(resolve_unclear(error, is_ledgers));
            }
            Err(error) => return Err(error),
        };
        if !is_new && matches!(inserted, Inserted::Written(_)) {
            metrics::transaction_committed(1, began.elapsed());
        }
        Ok(inserted)
    }
}

async fn write_groups(ledger: Arc<dyn Ledger>, mut groups: Groups<Waiting>) {
    while let Some(ready) = groups.next().await {
        let mut ids: HashSet<Uuid> = HashSet::new();
        let (group, rest): (Vec<_>, _) = ready.into_iter().partition(|w| ids.insert(w.entry.verdict.id));
        let size = group.len();
        let result = commit_group(ledger.as_ref(), group).await;
        let is_in_doubt = result.written == 0 && !result.unclear.is_empty();
        let is_ledgers = is_in_doubt && probe_is_refused(ledger.as_ref()).await;
        for (waiting, error) in result.unclear {
            drop(waiting.reply.send(Err(resolve_unclear(error, is_ledgers))));
        }
        groups.done(size, rest);
    }
}

/// What became of a group.
#[derive(Default)]
struct GroupResult {
    /// Rows that were written. Rows that existed show nothing of the ledger.
    written: usize,
    /// Rows that were refused for an unclear reason. Their callers have no answer yet.
    unclear: Vec<(Waiting, LedgerError)>,
}

/// Commits a group whose ids differ, and answers each of its callers but those of [`GroupResult::unclear`].
fn commit_group(ledger: &dyn Ledger, mut group: Vec<Waiting>) -> BoxFuture<'_, GroupResult> {
    Box::pin(async move {
        let entries: Vec<NewVerdict> = group.iter().map(|waiting| waiting.entry.clone()).collect();
        let began = Instant::now();
        match ledger.insert(&entries).await {
            Ok(answers) => {
                metrics::transaction_committed(entries.len(), began.elapsed());
                let written = answers.iter().filter(|answer| matches!(answer, Inserted::Written(_))).count();
                for (waiting, answer) in group.into_iter().zip(answers) {
                    drop(waiting.reply.send(Ok(answer)));
                }
                GroupResult { written, unclear: Vec::new() }
            }
            Err(LedgerError::Refused(_) | LedgerError::RefusedUnclear(_)) if group.len() > 1 => {
                let rest = group.split_off(group.len() / 2);
                let mut result = commit_group(ledger, group).await;
                let second = commit_group(ledger, rest).await;
                result.written += second.written;
                result.unclear.extend(second.unclear);
                result
            }
            Err(error @ LedgerError::RefusedUnclear(_)) => {
                let unclear = group.into_iter().map(|waiting| (waiting, error.clone())).collect();
                GroupResult { written: 0, unclear }
            }
            Err(error) => {
                for waiting in group {
                    drop(waiting.reply.send(Err(error.clone())));
                }
                GroupResult::default()
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, MissingFile, Sqlite};

    #[test]
    fn a_group_never_waits_for_more_than_can_come() {
        assert_eq!([0, 1, 4, 18, 80].map(linger_limit), [0, 0, 2, 9, 16]);
    }

    #[tokio::test]
    async fn a_ledger_that_takes_no_probe_is_the_reason_for_a_refusal() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Sqlite::open(&folder.path().join("ledger.db"), MissingFile::Create).await.unwrap();
        ledger.migrate().await.unwrap();
        assert!(!probe_is_refused(&ledger).await);
        ledger.close().await;
        assert!(probe_is_refused(&ledger).await);
    }
}
