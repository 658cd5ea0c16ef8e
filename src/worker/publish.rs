//! Publishes committed events to the exchange, at least once and with a stable id. Settling a job never waits for its event.
//!
//! An event is handed over right after its commit. An event that is not confirmed stays in the outbox. The sweeper takes it
//! when it is due: after a crash, after an outage of the broker, or after a queue was bound.
//!
//! Events that no queue takes must not delay the others. A routing key whose event came back is paused for itself, and events
//! of the sweeper use at most half of the unconfirmed messages: a fresh event never waits behind them.

mod blocked;
pub mod options;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::types::{FieldTable, ShortString};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use self::blocked::BlockedKeys;
use crate::broker::{Message, MessagePublisher, PublishError, Topology, text};
use crate::config::OutboxConfig;
use crate::fault_injection;
use crate::groups::linger;
use crate::job::Outcome;
use crate::ledger::{Event, Ledger, LedgerError};
use crate::telemetry::metrics::labels::PublishResult;
use crate::telemetry::traces::{self, TraceContext};
use crate::telemetry::{Stage, metrics};

/// A CloudEvent in structured mode. The CloudEvents specification has no binding for AMQP 0-9-1.
const CONTENT_TYPE: &str = "application/cloudevents+json";
/// Events that wait for the publisher. Further events are left to the sweeper.
const MAX_WAITING_EVENTS: usize = 4_096;
/// Events of one routing key that the sweeper takes at once.
const SWEEP_BATCH: u32 = 500;
/// Longest sweep. An event that is due since the sweep began waits for the next one.
const MAX_SWEEP: Duration = Duration::from_secs(5);
/// Published events that are deleted at once, so that pruning never holds locks for long.
const PRUNE_BATCH: u32 = 5_000;
/// After so many fresh events in a row, one from the outbox goes first.
const FRESH_PER_SWEPT: u32 = 8;
/// Events that are marked as published at once.
const MARK_BATCH: usize = 1_000;
/// How long confirmed events gather before they are marked as published.
const MARK_DELAY: Duration = Duration::from_millis(50);
/// Time between measurements of the outbox.
const OUTBOX_DEPTH_INTERVAL: Duration = Duration::from_secs(15);

/// An event on its way to the publisher, with the time of its hand-over.
type HandedOver = (Event, Instant);

/// Publishes events and replies.
#[derive(Clone)]
pub struct EventPublisher {
    events: mpsc::Sender<HandedOver>,
    publisher: Arc<dyn MessagePublisher>,
    topology: Topology,
}

impl EventPublisher {
    /// The publisher, and the tasks behind it. They end when every clone is dropped and `stop` is set.
    pub fn new(
        publisher: Arc<dyn MessagePublisher>,
        ledger: Arc<dyn Ledger>,
        topology: Topology,
        outbox: &OutboxConfig,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, fresh) = mpsc::channel(MAX_WAITING_EVENTS);
        let (swept_sender, swept) = mpsc::channel(1);
        let exchange = topology.events();
        let this = Self { events: sender, publisher: Arc::clone(&publisher), topology };
        let blocked = Arc::new(BlockedKeys::default());
        let sender_task = EventSender {
            publisher: Arc::clone(&publisher),
            ledger: Arc::clone(&ledger),
            exchange,
            blocked: Arc::clone(&blocked),
        };
        let (in_flight, outbox) = (outbox.in_flight, outbox.clone());
        let sweeper =
            Sweeper { publisher, ledger: Arc::clone(&ledger), events: swept_sender, blocked, stop: stop.clone() };
        let tasks = async move {
            tokio::join!(
                sender_task.run(WaitingEvents { fresh, swept, fresh_in_row: 0 }, in_flight),
                poll_outbox_depth(ledger, stop),
                sweeper.run(&outbox),
            );
        };
        (this, tasks)
    }

    /// Hands a committed event over. If too many events wait, it is left to the sweeper.
    pub fn hand_over(&self, event: Event) {
        if self.events.try_send((event, Instant::now())).is_err() {
            tracing::debug!("too many events wait, event left to the sweeper");
        }
    }

    /// Sends a job's result to the queue that its sender named. The reply is not repeated if it fails.
    pub async fn reply(&self, reply_to: &str, event: &Event) {
        if self.may_reply_to(reply_to)
            && let Err(e) = send(self.publisher.as_ref(), "", reply_to, event).await
        {
            tracing::info!(reply_to, error = %e, "reply not delivered");
        }
    }

    /// Answers a message that has no result. The reply is not repeated if it fails.
    pub async fn reply_error(&self, reply_to: &str, correlation_id: Option<&str>, error: &ReplyError<'_>) {
        if !self.may_reply_to(reply_to) {
            return;
        }
        let body = json!({"error": {"code": error.code.as_str(), "message": error.message}}).to_string();
        let mut message = Message::json("", reply_to, &body);
        if let Some(id) = correlation_id.and_then(|id| ShortString::try_new(id).ok()) {
            message.properties = message.properties.with_correlation_id(id);
        }
        if let Err(e) = self.publisher.publish(message).await {
            tracing::info!(reply_to, error = %e, "reply not delivered");
        }
    }

    fn may_reply_to(&self, queue: &str) -> bool {
        let is_ours = self.topology.owns(queue);
        if is_ours {
            tracing::warn!(reply_to = queue, "reply not sent, its queue belongs to Pixwarden");
        }
        !is_ours
    }
}

/// Why a message has no result, for its sender.
#[derive(Debug)]
pub struct ReplyError<'a> {
    pub code: ReplyErrorCode,
    pub message: &'a str,
}

/// What a sender can tell such messages apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyErrorCode {
    /// The message is not a job. It is a dead letter.
    NotUnderstood,
    /// The message was read, and requests no image.
    NothingRequested,
    /// The job's id belongs to a job for another image. The message is a dead letter.
    IdConflict,
    /// The ledger stores no verdict of the job. The message is a dead letter.
    NotStored,
    /// The verdict on the image was erased, and the same content gets no new one.
    Erased,
}

impl ReplyErrorCode {
    /// The word in the reply.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotUnderstood => "not_understood",
            Self::NothingRequested => "nothing_requested",
            Self::IdConflict => "id_conflict",
            Self::NotStored => "not_stored",
            Self::Erased => "erased",
        }
    }
}

/// Publishes an event in a span of its trace. The trace is read from the event itself, because another process may publish
/// it long after its job.
async fn send(
    publisher: &dyn MessagePublisher,
    exchange: &str,
    routing_key: &str,
    event: &Event,
) -> Result<(), PublishError> {
    let trace = TraceContext::from_event(&event.payload);
    let span = traces::publish_span(trace.as_ref());
    let mut properties =
        BasicProperties::default().with_content_type(CONTENT_TYPE.into()).with_message_id(event.id.to_string().into());
    if let Ok(id) = ShortString::try_new(event.correlation_id.as_str()) {
        properties = properties.with_correlation_id(id);
    }
    if let Some(trace) = trace {
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), text(trace.traceparent()));
        if let Some(state) = trace.tracestate() {
            headers.insert("tracestate".into(), text(state));
        }
        properties = properties.with_headers(headers);
    }
    let message = Message { exchange, routing_key, payload: event.payload.as_bytes(), properties };
    publisher.publish(message).instrument(span).await
}

/// Events that wait to be published.
struct WaitingEvents {
    /// Committed just now.
    fresh: mpsc::Receiver<HandedOver>,
    /// Taken from the outbox.
    swept: mpsc::Receiver<HandedOver>,
    /// Fresh events since the last one from the outbox.
    fresh_in_row: u32,
}

impl WaitingEvents {
    /// The next event: a fresh one first, but now and then one from the outbox, so that neither starves. An event from the
    /// outbox comes with its permit out of `swept_slots`.
    async fn next(&mut self, swept_slots: &Arc<Semaphore>) -> Option<(HandedOver, Option<OwnedSemaphorePermit>)> {
        let Self { fresh, swept, fresh_in_row } = self;
        if *fresh_in_row >= FRESH_PER_SWEPT
            && let Ok(permit) = Arc::clone(swept_slots).try_acquire_owned()
            && let Ok(event) = swept.try_recv()
        {
            *fresh_in_row = 0;
            return Some((event, Some(permit)));
        }
        let next_swept = async {
            let permit = Arc::clone(swept_slots).acquire_owned().await.ok();
            match swept.recv().await {
                Some(event) => (event, permit),
                None => std::future::pending().await,
            }
        };
        let next = tokio::select! {
            biased;
            event = fresh.recv() => event.map(|event| (event, None)),
            event = next_swept => Some(event),
        };
        match next {
            // Nothing fresh comes any more; what the sweeper has taken is still published.
            None => swept.recv().await.map(|event| (event, None)),
            Some((event, permit)) => {
                *fresh_in_row = if permit.is_some() { 0 } else { *fresh_in_row + 1 };
                Some((event, permit))
            }
        }
    }
}

struct EventSender {
    publisher: Arc<dyn MessagePublisher>,
    ledger: Arc<dyn Ledger>,
    exchange: String,
    blocked: Arc<BlockedKeys>,
}

impl EventSender {
    /// Publishes events, up to `in_flight` unconfirmed at the same time, and marks the confirmed ones.
    async fn run(self, mut waiting: WaitingEvents, in_flight: usize) {
        let this = Arc::new(self);
        let slots = Arc::new(Semaphore::new(in_flight));
        let swept_slots = Arc::new(Semaphore::new((in_flight / 2).max(1)));
        let (confirmed, to_mark) = mpsc::channel(in_flight);
        let marking = tokio::spawn(mark_published(Arc::clone(&this.ledger), to_mark));
        let mut sending = JoinSet::new();
        while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
            let Some(((event, since), swept_slot)) = waiting.next(&swept_slots).await else { break };
            // An event of a blocked key stays in the outbox.
            if !this.blocked.may_try(&event.routing_key, Instant::now()) {
                continue;
            }
            let (this, confirmed) = (Arc::clone(&this), confirmed.clone());
            sending.spawn(async move {
                let _slots = (slot, swept_slot);
                this.publish(event, since, confirmed).await;
            });
            while sending.try_join_next().is_some() {}
        }
        while sending.join_next().await.is_some() {}
        drop(confirmed);
        if marking.await.is_err() {
            tracing::error!("the task that marks published events panicked");
        }
    }

    async fn publish(&self, event: Event, since: Instant, confirmed: mpsc::Sender<Uuid>) {
        match send(self.publisher.as_ref(), &self.exchange, &event.routing_key, &event).await {
            Ok(()) => {
                fault_injection::crash_point("publish");
                self.blocked.accepted(&event.routing_key, Instant::now());
                metrics::event_attempted(&event.routing_key, PublishResult::Published);
                metrics::stage_completed(Stage::Publish, since.elapsed());
                if confirmed.send(event.id).await.is_err() {
                    tracing::debug!(event = %event.id, "published event not marked, it is published again later");
                }
            }
            Err(e) => {
                let unroutable = matches!(e, PublishError::Unroutable { .. });
                let result = if unroutable { PublishResult::Unroutable } else { PublishResult::Failed };
                metrics::event_attempted(&event.routing_key, result);
                // Any other error is not about the routing key.
                if (unroutable || matches!(e, PublishError::Nacked))
                    && self.blocked.refused(&event.routing_key, Instant::now())
                {
                    let hint = if unroutable {
                        "bind a queue, or remove the key from events.publish"
                    } else {
                        "a queue that is bound for it is full: consume it, or raise its limit"
                    };
                    tracing::warn!(routing_key = event.routing_key, exchange = self.exchange, error = %e, hint, "events of this routing key wait in the outbox");
                }
                tracing::debug!(event = %event.id, routing_key = event.routing_key, error = %e, "event not published, it stays in the outbox");
                if let Err(e) = self.ledger.note_unpublished(event.id, &e.to_string()).await {
                    tracing::debug!(error = %e, "reason not recorded in the outbox");
                }
            }
        }
    }
}

/// Marks confirmed events as published, many at once. An event that is not marked is published again with the same id.
async fn mark_published(ledger: Arc<dyn Ledger>, mut confirmed: mpsc::Receiver<Uuid>) {
    let mut ids = Vec::new();
    while confirmed.recv_many(&mut ids, MARK_BATCH).await > 0 {
        linger(MARK_DELAY, &mut confirmed, &mut ids, MARK_BATCH).await;
        if let Err(e) = ledger.mark_published(&ids).await {
            tracing::warn!(error = %e, events = ids.len(), "published events not marked");
        }
        ids.clear();
    }
}

/// Takes events that are due while the broker is reachable, and deletes old published ones.
struct Sweeper {
    publisher: Arc<dyn MessagePublisher>,
    ledger: Arc<dyn Ledger>,
    events: mpsc::Sender<HandedOver>,
    blocked: Arc<BlockedKeys>,
    stop: CancellationToken,
}

impl Sweeper {
    async fn run(self, config: &OutboxConfig) {
        let keep = Duration::from_secs(u64::from(config.keep_days) * 24 * 3600);
        let mut ticks = tokio::time::interval(Duration::from_millis(config.sweep_ms.max(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.stop.run_until_cancelled(ticks.tick()).await.is_some() {
            // Without a broker, leasing would only count a failed try for each event.
            if let Err(e) = self.publisher.ready().await {
                tracing::debug!(error = %e, "broker unreachable, outbox not swept");
                continue;
            }
            if let Err(e) = self.sweep().await {
                tracing::debug!(error = %e, "outbox not read");
            }
            if let Err(e) = self.prune(keep).await {
                tracing::debug!(error = %e, "outbox not pruned");
            }
        }
    }

    /// Takes events until none is due: a long outage of the broker leaves many. The routing keys take turns, so that a
    /// backlog of one does not keep the others waiting.
    async fn sweep(&self) -> Result<(), LedgerError> {
        let began = Instant::now();
        let mut keys: BTreeSet<String> = self.ledger.unpublished_keys().await?.into_iter().collect();
        // The next sweep finds the keys that have events since.
        while !keys.is_empty() && !self.stop.is_cancelled() && began.elapsed() < MAX_SWEEP {
            for key in keys.clone() {
                let limit = self.blocked.allowance(&key, SWEEP_BATCH, Instant::now());
                let due = if limit > 0 { self.ledger.lease_events(&key, limit).await? } else { Vec::new() };
                if due.len() < SWEEP_BATCH as usize {
                    keys.remove(&key);
                }
                if !due.is_empty() {
                    tracing::info!(routing_key = key, events = due.len(), "publishing events from the outbox");
                }
                for event in due {
                    if self.events.send((event, Instant::now())).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes published events, batch by batch.
    async fn prune(&self, keep: Duration) -> Result<(), LedgerError> {
        while self.ledger.prune_outbox(keep, PRUNE_BATCH).await? >= u64::from(PRUNE_BATCH) {
            if self.stop.is_cancelled() {
                break;
            }
        }
        Ok(())
    }
}

/// Measures the outbox while metrics are enabled. After a failure the last values stay.
async fn poll_outbox_depth(ledger: Arc<dyn Ledger>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(OUTBOX_DEPTH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut keys: BTreeSet<String> = Outcome::ALL.map(|outcome| outcome.routing_key().to_owned()).into();
    while metrics::are_enabled() && stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match ledger.count_unpublished().await {
            Ok(waiting) => {
                keys.extend(waiting.iter().map(|events| events.routing_key.clone()));
                for key in &keys {
                    let found = waiting.iter().find(|events| events.routing_key == *key);
                    let (events, oldest) = found.map_or_else(Default::default, |found| (found.events, found.oldest));
                    metrics::set_outbox_events(key, events, oldest);
                }
            }
            Err(e) => tracing::debug!(error = %e, "outbox depth not measured"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::FakeBroker;
    use super::*;
    use crate::ledger::{MissingFile, Sqlite};

    #[tokio::test]
    async fn one_sweep_deletes_all_old_events_however_many_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger.db");
        let ledger: Arc<dyn Ledger> = Arc::new(Sqlite::open(&file, MissingFile::Create).await.unwrap());
        ledger.migrate().await.unwrap();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
        let direct = sqlx::SqlitePool::connect_with(options).await.unwrap();
        let fill = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < $1)
                    INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, created_at, due_at, published_at)
                    SELECT n, n, 'image.flagged', 'c', '{}', '2020-01-01', '2020-01-01', '2020-01-01' FROM numbers";
        sqlx::query(fill).bind(i64::from(PRUNE_BATCH * 2 + 1)).execute(&direct).await.unwrap();

        let stop = CancellationToken::new();
        let (events, _taken) = mpsc::channel(1);
        let sweeper = Sweeper {
            publisher: Arc::new(FakeBroker::default()),
            ledger,
            events,
            blocked: Arc::default(),
            stop: stop.clone(),
        };
        let left =
            async || sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outbox").fetch_one(&direct).await.unwrap();
        // A worker that stops does not wait for the rest.
        stop.cancel();
        sweeper.prune(Duration::ZERO).await.unwrap();
        assert_eq!(left().await, i64::from(PRUNE_BATCH + 1));
        Sweeper { stop: CancellationToken::new(), ..sweeper }.prune(Duration::ZERO).await.unwrap();
        assert_eq!(left().await, 0);
    }
}
