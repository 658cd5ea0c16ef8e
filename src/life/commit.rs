//! Group commit: all verdicts that are ready share one transaction, so that a thousand of them cost one fsync.
//!
//! While one group is written, the next group gathers. Under load it gathers a little longer, because a statement costs
//! about the same for one row as for ten. (Postgres's `commit_delay` does the same for commits.) A row that the database
//! refuses is found by splitting the group in halves, and fails alone.
//!
//! Some refusals do not show whether a row or the ledger is the reason: see `refusals`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::refusals::resolve_refusal;
use crate::fault_injection::{self, PlantedBug};
use crate::groups::Groups;
use crate::job::{ImageRef, Revision, Verdict};
use crate::ledger::{DatabaseError, Event, Inserted, Ledger, LedgerError, NewVerdict, replace_failed_verdict};
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
        mut revised_event: impl FnMut(&Verdict, &Revision) -> Option<Event> + Send,
    ) -> Result<Inserted, LedgerError> {
        let mut entry = new.clone();
        let kept_back =
            if fault_injection::is_planted(PlantedBug::NoEventOnRedelivery) { entry.event.take() } else { None };
        let (reply, inserted) = oneshot::channel();
        let stopped = || LedgerError::Down("the committing task has stopped".into());
        self.entries.send(Waiting { entry, reply }).await.map_err(|_| stopped())?;
        let inserted = match inserted.await.unwrap_or_else(|_| Err(stopped()))? {
            Inserted::Written { event, may_be_decided } => {
                let event = event.or(kept_back.filter(|event| event.destinations.is_published));
                Inserted::Written { event, may_be_decided }
            }
            other => other,
        };
        let Inserted::Existing(existing) = inserted else { return Ok(inserted) };
        let began = Instant::now();
        let ledger = self.ledger.as_ref();
        let replaced = replace_failed_verdict(ledger, &new.verdict, named, existing.clone(), &mut revised_event).await;
        let inserted = match replaced {
            Err(LedgerError::RefusedUnclear(reason)) => {
                let again = || replace_failed_verdict(ledger, &new.verdict, named, existing, &mut revised_event);
                resolve_refusal(ledger, reason, again).await?
            }
            replaced => replaced?,
        };
        if matches!(inserted, Inserted::Written { .. }) {
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
        let mut is_down = false;
        for (waiting, reason) in commit_group(ledger.as_ref(), group).await {
            let result = if is_down {
                Err(LedgerError::Down(reason))
            } else {
                commit_refused(ledger.as_ref(), &waiting.entry, reason).await
            };
            // Nothing else is asked of a ledger that is down.
            is_down = matches!(result, Err(LedgerError::Down(_)));
            drop(waiting.reply.send(result));
        }
        groups.done(size, rest);
    }
}

/// Commits a row once more that was refused for an unclear reason.
async fn commit_refused(
    ledger: &dyn Ledger,
    entry: &NewVerdict,
    reason: DatabaseError,
) -> Result<Inserted, LedgerError> {
    let again = || async { ledger.insert(std::slice::from_ref(entry)).await };
    let mut inserted = resolve_refusal(ledger, reason, again).await?;
    inserted.pop().ok_or_else(|| LedgerError::Down("the ledger gave no result for a row".into()))
}

/// Commits a group whose ids differ, and answers its callers. The rows that were refused for an unclear reason are returned:
/// their callers have no answer yet.
fn commit_group(ledger: &dyn Ledger, mut group: Vec<Waiting>) -> BoxFuture<'_, Vec<(Waiting, DatabaseError)>> {
    Box::pin(async move {
        let entries: Vec<NewVerdict> = group.iter().map(|waiting| waiting.entry.clone()).collect();
        let began = Instant::now();
        match ledger.insert(&entries).await {
            Ok(answers) => {
                metrics::transaction_committed(entries.len(), began.elapsed());
                for (waiting, answer) in group.into_iter().zip(answers) {
                    drop(waiting.reply.send(Ok(answer)));
                }
                Vec::new()
            }
            Err(LedgerError::Refused(_) | LedgerError::RefusedUnclear(_)) if group.len() > 1 => {
                let rest = group.split_off(group.len() / 2);
                let mut unclear = commit_group(ledger, group).await;
                unclear.append(&mut commit_group(ledger, rest).await);
                unclear
            }
            Err(LedgerError::RefusedUnclear(reason)) => {
                group.into_iter().map(|waiting| (waiting, reason.clone())).collect()
            }
            Err(error) => {
                for waiting in group {
                    drop(waiting.reply.send(Err(error.clone())));
                }
                Vec::new()
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_never_waits_for_more_than_can_come() {
        assert_eq!([0, 1, 4, 18, 80].map(linger_limit), [0, 0, 2, 9, 16]);
    }
}
