//! Group commit: whatever verdicts are ready share one transaction, so that a thousand of them cost one fsync.
//!
//! While one group is being written, the next one gathers, and where many come it gathers a little longer: a statement
//! costs much the same for one row as for ten. (Postgres's own commit_delay does so with commits.) A verdict that comes
//! alone does not wait. A row that the database refuses is found by halving the group, and fails alone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::linger::linger;
use crate::ledger::{Committed, Entry, Ledger, LedgerError};
use crate::planted::{self, Bug};
use crate::telemetry::metrics;

/// Rows a transaction. More gain nothing, and a refused row costs more to find.
const GROUP: usize = 1_000;
/// How long a group gathers where many come, and how close behind another one that is; and how many are enough. By then a
/// row costs little more than itself, and all of them fit into one TLS record: sqlx sets no TCP_NODELAY, and a second
/// record waits until the first one is acknowledged.
const LINGER: Duration = Duration::from_millis(20);
const ENOUGH: usize = 16;

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
    /// The way in, and the task that writes; it ends when every way in is dropped.
    pub fn new(ledger: Arc<dyn Ledger>) -> (Self, impl Future<Output = ()> + Send) {
        let (entries, waiting) = mpsc::channel(GROUP);
        (Self { entries }, write(ledger, waiting))
    }

    /// Commits one verdict and its event, together with whatever else is ready.
    ///
    /// # Errors
    /// When the ledger is down, or refuses this very row.
    pub async fn commit(&self, mut entry: Entry) -> Result<Committed, LedgerError> {
        let kept_back = if planted::has(Bug::NoEventOnRedelivery) { entry.event.take() } else { None };
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

async fn write(ledger: Arc<dyn Ledger>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut ready: Vec<Waiting> = Vec::new();
    let mut several_ended: Option<Instant> = None;
    loop {
        // What is left over from the last group goes first; it must not wait for more.
        if ready.is_empty() {
            if waiting.recv_many(&mut ready, GROUP).await == 0 {
                return;
            }
            if several_ended.is_some_and(|end| end.elapsed() < LINGER) {
                linger(LINGER, &mut waiting, &mut ready, ENOUGH).await;
            }
        }
        let mut ids: HashSet<Uuid> = HashSet::new();
        let (group, rest) = std::mem::take(&mut ready).into_iter().partition(|w| ids.insert(w.entry.verdict.id));
        ready = rest;
        let several = group.len() > 1;
        commit(ledger.as_ref(), group).await;
        several_ended = several.then(Instant::now);
    }
}

/// Commits a group whose ids differ, and answers everyone in it.
fn commit(ledger: &dyn Ledger, mut group: Vec<Waiting>) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let entries: Vec<Entry> = group.iter().map(|waiting| waiting.entry.clone()).collect();
        let began = Instant::now();
        match ledger.commit(&entries).await {
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
