//! Committed events → the exchange, at least once, with a stable id. Settling a job never waits for its event.
//!
//! An event is handed over straight after its commit. Whatever does not arrive stays in the outbox, and the sweeper
//! takes it once it is due: after a crash, after the broker was away, or when at last somebody has bound a queue.

mod event;
pub mod options;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::types::{FieldTable, ShortString};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use super::linger::linger;
use crate::broker::{Message, PublishError, Publisher, Topology, text};
use crate::config::{EventsConfig, OutboxConfig};
use crate::job::Outcome;
use crate::ledger::{Event, Ledger};
use crate::planted;
use crate::telemetry::traces::{self, Parent};
use crate::telemetry::{Stage, metrics};

pub use event::{PassedOn, event, event_as};

/// A CloudEvent in structured mode; AMQP 0-9-1 has no binding of its own.
const CONTENT_TYPE: &str = "application/cloudevents+json";
/// Events waiting for the publisher; more are left to the sweeper.
const WAITING: usize = 4_096;
/// Events the sweeper takes at a time.
const SWEEP: u32 = 500;
/// Events marked at a time as published, and how long they gather.
const MARKED: usize = 1_000;
const LINGER: Duration = Duration::from_millis(50);
/// How often it is counted what waits in the outbox.
const COUNT: Duration = Duration::from_secs(15);

/// An event on its way to the publisher, and since when.
type Handed = (Event, Instant);

/// The way out for events and replies.
#[derive(Clone)]
pub struct Publish {
    events: mpsc::Sender<Handed>,
    publisher: Arc<Publisher>,
    topology: Topology,
    announced: Arc<[String]>,
}

impl Publish {
    /// The way out, and the tasks behind it. They end when every way out is dropped and `stop` is set.
    pub fn new(
        publisher: Arc<Publisher>,
        ledger: Arc<dyn Ledger>,
        topology: Topology,
        (events, outbox): (&EventsConfig, &OutboxConfig),
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let publish = Self {
            events: sender.clone(),
            publisher: Arc::clone(&publisher),
            topology: topology.clone(),
            announced: events.publish.clone().into(),
        };
        let deliver = Deliver {
            publisher: Arc::clone(&publisher),
            ledger: Arc::clone(&ledger),
            exchange: topology.events(),
            unheard: Mutex::default(),
        };
        let (in_flight, outbox) = (outbox.in_flight, outbox.clone());
        let tasks = async move {
            tokio::join!(
                deliver.run(receiver, in_flight),
                count(Arc::clone(&ledger), stop.clone()),
                sweep(publisher, ledger, sender, outbox, stop),
            );
        };
        (publish, tasks)
    }

    /// Whether this routing key is announced at all.
    #[must_use]
    pub fn announces(&self, routing_key: &str) -> bool {
        self.announced.iter().any(|key| key == routing_key)
    }

    /// Hands a committed event over. If too many wait, the sweeper will take it.
    pub fn hand_over(&self, event: Event) {
        if self.events.try_send((event, Instant::now())).is_err() {
            tracing::debug!("the publisher is behind, the event is left to the sweeper");
        }
    }

    /// Sends a job's result to the queue its sender named, best effort.
    pub async fn reply(&self, reply_to: &str, event: &Event) {
        if self.topology.owns(reply_to) {
            tracing::warn!(reply_to, "a reply to one of our own queues was asked for and is not sent");
            return;
        }
        if let Err(e) = send(&self.publisher, "", reply_to, event).await {
            tracing::info!(reply_to, error = %e, "the reply did not arrive");
        }
    }
}

/// Publishes an event, in a span of the trace that it carries. That is read from the event itself: it may be long after
/// its job, and in another process.
async fn send(publisher: &Publisher, exchange: &str, routing_key: &str, event: &Event) -> Result<(), PublishError> {
    let trace = Parent::of_event(&event.payload);
    let span = traces::publish(trace.as_ref());
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

struct Deliver {
    publisher: Arc<Publisher>,
    ledger: Arc<dyn Ledger>,
    exchange: String,
    /// Routing keys of which it was said already that nobody is bound to them.
    unheard: Mutex<HashSet<String>>,
}

impl Deliver {
    /// Publishes what comes, up to `in_flight` unconfirmed at a time, and marks what arrived.
    async fn run(self, mut events: mpsc::Receiver<Handed>, in_flight: usize) {
        let this = Arc::new(self);
        let room = Arc::new(Semaphore::new(in_flight));
        let (arrived, confirmed) = mpsc::channel(in_flight);
        let marking = tokio::spawn(mark(Arc::clone(&this.ledger), confirmed));
        let mut sending = JoinSet::new();
        while let Some((event, since)) = events.recv().await {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { break };
            let (this, arrived) = (Arc::clone(&this), arrived.clone());
            sending.spawn(async move {
                let _place = place;
                this.publish(event, since, arrived).await;
            });
            while sending.try_join_next().is_some() {}
        }
        while sending.join_next().await.is_some() {}
        drop(arrived);
        if marking.await.is_err() {
            tracing::error!("marking events as published panicked");
        }
    }

    async fn publish(&self, event: Event, since: Instant, arrived: mpsc::Sender<Uuid>) {
        match send(&self.publisher, &self.exchange, &event.routing_key, &event).await {
            Ok(()) => {
                planted::passed("publish");
                metrics::event(&event.routing_key, "published");
                metrics::passed(Stage::Publish, since.elapsed());
                if arrived.send(event.id).await.is_err() {
                    tracing::debug!(event = %event.id, "nobody marks it as published, it will be published again");
                }
            }
            Err(e) => {
                let unroutable = matches!(e, PublishError::Unroutable { .. });
                metrics::event(&event.routing_key, if unroutable { "unroutable" } else { "failed" });
                if unroutable
                    && self.unheard.lock().unwrap_or_else(PoisonError::into_inner).insert(event.routing_key.clone())
                {
                    tracing::warn!(
                        routing_key = event.routing_key,
                        exchange = self.exchange,
                        "nobody is bound to these events: they wait in the outbox; bind a queue, or take the key out of events.publish"
                    );
                }
                tracing::debug!(event = %event.id, routing_key = event.routing_key, error = %e, "event stays in the outbox");
                if let Err(e) = self.ledger.note_unpublished(event.id, &e.to_string()).await {
                    tracing::debug!(error = %e, "the reason could not be noted");
                }
            }
        }
    }
}

/// Marks whatever has arrived, together; nobody waits for it. What cannot be marked is published again, with the same id.
async fn mark(ledger: Arc<dyn Ledger>, mut confirmed: mpsc::Receiver<Uuid>) {
    let mut ids = Vec::new();
    while confirmed.recv_many(&mut ids, MARKED).await > 0 {
        linger(LINGER, &mut confirmed, &mut ids, MARKED).await;
        if let Err(e) = ledger.mark_published(&ids).await {
            tracing::warn!(error = %e, events = ids.len(), "published events could not be marked");
        }
        ids.clear();
    }
}

/// Takes events that are due, as long as there is a broker to publish them to, and deletes old published ones.
async fn sweep(
    publisher: Arc<Publisher>,
    ledger: Arc<dyn Ledger>,
    events: mpsc::Sender<Handed>,
    config: OutboxConfig,
    stop: CancellationToken,
) {
    let keep = Duration::from_secs(u64::from(config.keep_days) * 24 * 3600);
    let mut pace = tokio::time::interval(Duration::from_millis(config.sweep_ms.max(1)));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(pace.tick()).await.is_some() {
        // Leasing would cost each event one of its tries.
        if let Err(e) = publisher.ready().await {
            tracing::debug!(error = %e, "no broker, nothing is swept");
            continue;
        }
        // Until nothing is due any more: a long absence of the broker leaves many.
        loop {
            let due = match ledger.lease_events(SWEEP).await {
                Ok(due) => due,
                Err(e) => {
                    tracing::debug!(error = %e, "the outbox cannot be read");
                    break;
                }
            };
            let events_due = due.len();
            if events_due > 0 {
                tracing::info!(events = events_due, "publishing events that were left");
            }
            for event in due {
                if events.send((event, Instant::now())).await.is_err() {
                    return;
                }
            }
            if events_due < SWEEP as usize || stop.is_cancelled() {
                break;
            }
        }
        if let Err(e) = ledger.prune_outbox(keep).await {
            tracing::debug!(error = %e, "the outbox cannot be pruned");
        }
    }
}

/// Shows what waits in the outbox, if anybody may ask. A question that fails leaves what was seen last.
async fn count(ledger: Arc<dyn Ledger>, stop: CancellationToken) {
    let mut pace = tokio::time::interval(COUNT);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while metrics::are_on() && stop.run_until_cancelled(pace.tick()).await.is_some() {
        match ledger.unpublished().await {
            Ok(waiting) => {
                for routing_key in Outcome::ALL.map(Outcome::routing_key) {
                    let events = waiting.iter().find(|events| events.routing_key == routing_key);
                    metrics::outbox_events(routing_key, events.map_or(0, |waiting| waiting.events));
                }
                metrics::outbox_oldest(waiting.iter().map(|events| events.oldest).max().unwrap_or_default());
            }
            Err(e) => tracing::debug!(error = %e, "the outbox could not be counted"),
        }
    }
}
