//! What happened, counted: one function a thing that can happen. The `metrics` crate is named here and nowhere else.
//!
//! Until [`start`] is called, as only a worker does, all of this costs next to nothing and keeps nothing.

mod table;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use metrics::{Gauge, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::Stage;
use crate::job::{Lane, Outcome};
pub use table::{ALL, Kind, Metric};

static SCRAPE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts counting. A second call changes nothing.
pub fn start() {
    SCRAPE.get_or_init(|| {
        let mut builder = PrometheusBuilder::new();
        for metric in ALL {
            if let Kind::Histogram(buckets) = metric.kind {
                builder = match builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets) {
                    Ok(builder) => builder,
                    // The buckets are constants, and a test looks at them.
                    Err(error) => unreachable!("{} has buckets: {error}", metric.name),
                };
            }
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::error!("somebody else counts already, and nothing is counted here");
        }
        handle
    });
    for Metric { name, kind, help, .. } in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *help),
            Kind::Gauge => describe_gauge!(*name, *help),
            Kind::Histogram(_) => describe_histogram!(*name, *help),
        }
    }
    from_zero();
}

/// Shows what may never happen as zero: a rate has to see the first time.
fn from_zero() {
    for lane in Lane::ALL {
        for settlement in ["done", "ignored", "retried", "dead_lettered", "split", "returned"] {
            counter!(table::DELIVERIES.name, "lane" => lane.as_str(), "settlement" => settlement).increment(0);
        }
        for outcome in Outcome::ALL {
            counter!(table::JOBS.name, "lane" => lane.as_str(), "outcome" => outcome.as_str()).increment(0);
        }
        drop((held(lane), histogram!(table::JOB_DURATION.name, "lane" => lane.as_str())));
    }
    for stage in Stage::ALL {
        drop(histogram!(table::STAGE_DURATION.name, "stage" => stage.as_str()));
    }
    for routing_key in Outcome::ALL.map(Outcome::routing_key) {
        for result in ["published", "unroutable", "failed"] {
            counter!(table::EVENTS.name, "routing_key" => routing_key, "result" => result).increment(0);
        }
    }
    for dependency in ["storage", "ledger"] {
        paused(dependency, false);
    }
    for cause in ["object", "decoder", "session", "panic"] {
        counter!(table::RETRIES.name, "cause" => cause).increment(0);
    }
    for kind in ["down", "refused"] {
        counter!(table::LEDGER_ERRORS.name, "kind" => kind).increment(0);
    }
    for connection in ["consuming", "publishing"] {
        counter!(table::CONNECTIONS.name, "connection" => connection).increment(0);
    }
    counter!(table::SCORES_REUSED.name).increment(0);
    counter!(table::FETCHED_BYTES.name).increment(0);
    gauge!(table::BUILD_INFO.name, "version" => env!("CARGO_PKG_VERSION")).set(1);
    gauge!(table::READY.name).set(0);
    drop((decode_memory(0), object_memory(0)));
}

/// Whether anybody may ask: what costs a request to count is left alone otherwise.
#[must_use]
pub fn are_on() -> bool {
    SCRAPE.get().is_some()
}

/// Everything counted so far, in Prometheus' text format; empty before [`start`].
#[must_use]
pub fn render() -> String {
    SCRAPE.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Folds what was counted since last time into the buckets. Without it, or a scrape, every single value stays in memory.
pub fn fold() {
    if let Some(scrape) = SCRAPE.get() {
        scrape.run_upkeep();
    }
}

/// Something that is held, counted for as long as this value lives.
#[derive(Debug)]
pub struct Counted {
    gauge: Gauge,
    amount: f64,
}

impl Counted {
    fn new(gauge: Gauge, amount: u64) -> Self {
        let amount = number(amount);
        gauge.increment(amount);
        Self { gauge, amount }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.decrement(self.amount);
    }
}

/// A delivery is held.
#[must_use]
pub fn held(lane: Lane) -> Counted {
    Counted::new(gauge!(table::DELIVERIES_HELD.name, "lane" => lane.as_str()), 1)
}

/// Memory to decode in is taken.
#[must_use]
pub fn decode_memory(bytes: u64) -> Counted {
    Counted::new(gauge!(table::DECODE_MEMORY.name), bytes)
}

/// Memory for an object's bytes is taken.
#[must_use]
pub fn object_memory(bytes: u64) -> Counted {
    Counted::new(gauge!(table::OBJECT_MEMORY.name), bytes)
}

/// What a worker was started with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Deliveries a lane.
    pub prefetch: u16,
    /// To decode in.
    pub decode_memory_bytes: u64,
    /// For objects' bytes.
    pub object_memory_bytes: u64,
}

/// The worker's limits are these.
pub fn limits(limits: Limits) {
    gauge!(table::PREFETCH.name).set(limits.prefetch);
    gauge!(table::DECODE_MEMORY_LIMIT.name).set(number(limits.decode_memory_bytes));
    gauge!(table::OBJECT_MEMORY_LIMIT.name).set(number(limits.object_memory_bytes));
}

/// A detector is loaded.
pub fn detector(name: &str, digest: &str, place: &str) {
    let labels = [("detector", name.to_owned()), ("digest", digest.to_owned()), ("place", place.to_owned())];
    gauge!(table::DETECTOR_INFO.name, &labels).set(1);
}

/// A run may take this many images from now on.
pub fn batch_limit(detector: &str, images: usize) {
    gauge!(table::BATCH_LIMIT.name, "detector" => detector.to_owned()).set(number(images as u64));
}

/// A session has run.
pub fn ran(detector: &str, images: usize, took: Duration) {
    histogram!(table::BATCH_IMAGES.name, "detector" => detector.to_owned()).record(number(images as u64));
    histogram!(table::SESSION_RUN.name, "detector" => detector.to_owned()).record(took);
}

/// Deliveries are consumed, or they are not.
pub fn ready(ready: bool) {
    gauge!(table::READY.name).set(u8::from(ready));
}

/// A dependency breaks, or is back.
pub fn paused(dependency: &'static str, paused: bool) {
    gauge!(table::INTAKE_PAUSED.name, "dependency" => dependency).set(u8::from(paused));
}

/// A delivery is settled.
pub fn settled(lane: Lane, settlement: &'static str) {
    counter!(table::DELIVERIES.name, "lane" => lane.as_str(), "settlement" => settlement).increment(1);
}

/// A verdict is committed; the delivery came at `arrived`.
pub fn committed(lane: Lane, outcome: Outcome, reused: bool, arrived: Instant) {
    counter!(table::JOBS.name, "lane" => lane.as_str(), "outcome" => outcome.as_str()).increment(1);
    counter!(table::SCORES_REUSED.name).increment(u64::from(reused));
    histogram!(table::JOB_DURATION.name, "lane" => lane.as_str()).record(arrived.elapsed());
}

/// An image has passed a stage.
pub fn passed(stage: Stage, took: Duration) {
    histogram!(table::STAGE_DURATION.name, "stage" => stage.as_str()).record(took);
}

/// An attempt at a job failed.
pub fn attempt_failed(cause: &'static str) {
    counter!(table::RETRIES.name, "cause" => cause).increment(1);
}

/// An object is here.
pub fn fetched(bytes: u64) {
    counter!(table::FETCHED_BYTES.name).increment(bytes);
}

/// This many messages are ready in a queue.
pub fn queue_depth(queue: &str, messages: u32) {
    gauge!(table::QUEUE_MESSAGES.name, "queue" => queue.to_owned()).set(messages);
}

/// A transaction is committed.
pub fn transaction(verdicts: usize, took: Duration) {
    histogram!(table::COMMIT_VERDICTS.name).record(number(verdicts as u64));
    histogram!(table::COMMIT_DURATION.name).record(took);
}

/// The ledger did not do what it was asked for.
pub fn ledger_failed(kind: &'static str) {
    counter!(table::LEDGER_ERRORS.name, "kind" => kind).increment(1);
}

/// This many events wait under a routing key.
pub fn outbox_events(routing_key: &'static str, events: u64) {
    gauge!(table::OUTBOX_EVENTS.name, "routing_key" => routing_key).set(number(events));
}

/// The oldest event that waits is this old.
pub fn outbox_oldest(age: Duration) {
    gauge!(table::OUTBOX_OLDEST.name).set(age.as_secs_f64());
}

/// An event was tried to be published.
pub fn event(routing_key: &str, result: &'static str) {
    counter!(table::EVENTS.name, "routing_key" => routing_key.to_owned(), "result" => result).increment(1);
}

/// There is a new connection to the broker.
pub fn connected(connection: &str) {
    counter!(table::CONNECTIONS.name, "connection" => connection.to_owned()).increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "bytes and counts stay far below 2^53")]
fn number(n: u64) -> f64 {
    n as f64
}
