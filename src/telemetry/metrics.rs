//! Metrics: one function per event that is counted. No other module names the `metrics` crate.
//!
//! Only a worker calls [`start`]. Without it these functions do almost nothing and keep nothing.

mod judgements;
pub mod labels;
mod table;
mod typed;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::Stage;
use crate::job::{Lane, Outcome};
pub use judgements::{CountedPolicy, CountedRule, JudgementMetrics};
use labels::{
    ActionLabel, BankName, BrokerConnection, DependencyLabel, DetectorDigest, DetectorName, DeviceName, EndpointName,
    ItemKindLabel, LedgerErrorKind, ProgramVersion, PublishResult, QueueName, RetryCause, RouteLabel, RoutingKey,
    ScoreLabel, SettlementLabel, StatusLabel, WebhookResult,
};
pub use table::ALL;
pub use typed::{GaugeGuard, Metric, MetricKind};

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts recording. A second call changes nothing.
pub fn start() {
    RECORDER.get_or_init(|| {
        let mut builder = PrometheusBuilder::new();
        for metric in ALL {
            if let MetricKind::Histogram(buckets) = metric.kind {
                builder = match builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets) {
                    Ok(builder) => builder,
                    // The buckets are constants, and a test checks that there are some.
                    Err(error) => unreachable!("{} has buckets: {error}", metric.name),
                };
            }
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::error!("metrics disabled: this process has another recorder");
        }
        // Here, because a second registration would reset gauges that are in use.
        ALL.iter().for_each(|metric| metric.register());
        table::BUILD_INFO.set(ProgramVersion, 1);
        handle
    });
}

/// Whether metrics can be scraped. If not, nothing is polled for them.
#[must_use]
pub fn are_enabled() -> bool {
    RECORDER.get().is_some()
}

/// All metrics in Prometheus' text format; empty before [`start`].
#[must_use]
pub fn render() -> String {
    RECORDER.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Moves recorded values into their buckets. Without this or a scrape, every single value stays in memory.
pub fn run_upkeep() {
    if let Some(recorder) = RECORDER.get() {
        recorder.run_upkeep();
    }
}

/// A delivery is in the worker's hands for as long as the returned value lives.
#[must_use]
pub fn hold_delivery(lane: Lane) -> GaugeGuard {
    table::DELIVERIES_HELD.hold(lane, 1)
}

/// Decode memory is reserved for as long as the returned value lives.
#[must_use]
pub fn hold_decode_memory(bytes: u64) -> GaugeGuard {
    table::DECODE_MEMORY.hold((), bytes)
}

/// Memory for fetched objects is reserved for as long as the returned value lives.
#[must_use]
pub fn hold_object_memory(bytes: u64) -> GaugeGuard {
    table::OBJECT_MEMORY.hold((), bytes)
}

/// Memory for images that are sent over HTTP is reserved for as long as the returned value lives.
#[must_use]
pub fn hold_upload_memory(bytes: u64) -> GaugeGuard {
    table::UPLOAD_MEMORY.hold((), bytes)
}

/// The limits that a worker was started with.
#[derive(Debug, Clone, Copy)]
pub struct WorkerLimits {
    /// Unsettled deliveries per lane.
    pub prefetch: u16,
    /// Memory for decoding.
    pub decode_memory_bytes: u64,
    /// Memory for fetched objects.
    pub object_memory_bytes: u64,
}

pub fn set_limits(limits: WorkerLimits) {
    table::PREFETCH.set((), limits.prefetch);
    table::DECODE_MEMORY_LIMIT.set((), typed::number(limits.decode_memory_bytes));
    table::OBJECT_MEMORY_LIMIT.set((), typed::number(limits.object_memory_bytes));
}

pub fn detector_loaded(name: &str, digest: &str, device: &str) {
    let labels = (DetectorName(name.into()), DetectorDigest(digest.into()), DeviceName(device.into()));
    table::DETECTOR_INFO.set(labels, 1);
}

/// A bank was loaded, or brought up to date.
pub fn bank_loaded(name: &str, version: i64) {
    table::BANK_VERSION.set(BankName(name.into()), typed::number(u64::try_from(version).unwrap_or(0)));
}

/// Sets the largest number of images per session run.
pub fn set_batch_limit(detector: &str, images: usize) {
    table::BATCH_LIMIT.set(DetectorName(detector.into()), typed::number(images as u64));
}

pub fn session_ran(detector: &str, images: usize, took: Duration) {
    table::BATCH_IMAGES.record(DetectorName(detector.into()), images as u64);
    table::SESSION_RUN.record_duration(DetectorName(detector.into()), took);
}

/// Sets whether the worker consumes deliveries.
pub fn set_ready(is_ready: bool) {
    table::READY.set((), u8::from(is_ready));
}

/// Sets whether intake is paused because a dependency is broken.
pub fn set_intake_paused(dependency: DependencyLabel, is_paused: bool) {
    table::INTAKE_PAUSED.set(dependency, u8::from(is_paused));
}

/// Sets the number of object stores that are down.
pub fn set_stores_down(stores: usize) {
    table::STORES_DOWN.set((), typed::number(stores as u64));
}

/// Sets the number of buckets whose jobs wait.
pub fn set_buckets_held(buckets: usize) {
    table::BUCKETS_HELD.set((), typed::number(buckets as u64));
}

pub fn delivery_settled(lane: Lane, settlement: SettlementLabel) {
    table::DELIVERIES.add((lane, settlement), 1);
}

/// A verdict was committed; its delivery arrived at `arrived`.
pub fn verdict_committed(lane: Lane, outcome: Outcome, scores_reused: bool, arrived: Instant) {
    table::JOBS.add((lane, outcome), 1);
    table::SCORES_REUSED.add((), u64::from(scores_reused));
    table::JOB_DURATION.record_duration(lane, arrived.elapsed());
}

/// One image completed a stage.
pub fn stage_completed(stage: Stage, took: Duration) {
    table::STAGE_DURATION.record_duration(stage, took);
}

pub fn attempt_failed(cause: RetryCause) {
    table::RETRIES.add(cause, 1);
}

pub fn object_fetched(bytes: u64) {
    table::FETCHED_BYTES.add((), bytes);
}

/// Sets the number of ready messages in a queue.
pub fn set_queue_depth(queue: &str, messages: u32) {
    table::QUEUE_MESSAGES.set(QueueName(queue.into()), messages);
}

pub fn transaction_committed(verdicts: usize, took: Duration) {
    table::COMMIT_VERDICTS.record((), verdicts as u64);
    table::COMMIT_DURATION.record_duration((), took);
}

pub fn ledger_call_failed(kind: LedgerErrorKind) {
    table::LEDGER_ERRORS.add(kind, 1);
}

/// Sets the number of unpublished events of a routing key, and the age of the oldest one.
pub fn set_outbox_events(routing_key: &str, events: u64, oldest: Duration) {
    table::OUTBOX_EVENTS.set(RoutingKey(routing_key.into()), typed::number(events));
    table::OUTBOX_OLDEST.set(RoutingKey(routing_key.into()), oldest.as_secs_f64());
}

/// The open review items of one kind.
#[derive(Debug, Clone, Copy, Default)]
pub struct WaitingItems {
    pub items: u64,
    /// How long the earliest due date has passed.
    pub overdue: Duration,
    /// Items whose lease has ended without a decision.
    pub lapsed: u64,
}

/// Sets what waits for people.
pub fn set_review_queue(kind: ItemKindLabel, waiting: WaitingItems) {
    table::REVIEW_ITEMS.set(kind, typed::number(waiting.items));
    table::REVIEW_OVERDUE.set(kind, waiting.overdue.as_secs_f64());
    table::REVIEW_LAPSED.set(kind, typed::number(waiting.lapsed));
}

/// A decision was recorded.
pub fn decision_recorded(action: ActionLabel) {
    table::REVIEW_DECISIONS.add(action, 1);
}

/// Sets how far the recent scores of a detector's label are from their baseline.
pub fn set_score_drift(detector: &str, label: &str, drift: f64) {
    table::SCORE_DRIFT.set((DetectorName(detector.into()), ScoreLabel(label.into())), drift);
}

/// An attempt to publish an event ended.
pub fn event_attempted(routing_key: &str, result: PublishResult) {
    table::EVENTS.add((RoutingKey(routing_key.into()), result), 1);
}

/// Shows the series of a configured webhook at zero.
pub fn webhook_configured(endpoint: &str) {
    for result in WebhookResult::ALL {
        table::WEBHOOK_ATTEMPTS.add((EndpointName(endpoint.into()), *result), 0);
    }
}

/// An attempt to send an event to a webhook ended.
pub fn webhook_attempted(endpoint: &str, result: WebhookResult) {
    table::WEBHOOK_ATTEMPTS.add((EndpointName(endpoint.into()), result), 1);
}

/// Events that waited for a webhook were given up without a further attempt.
pub fn webhooks_given_up(endpoint: &str, events: u64) {
    table::WEBHOOK_ATTEMPTS.add((EndpointName(endpoint.into()), WebhookResult::GivenUp), events);
}

/// Sets the number of events that wait for a webhook, and how long the oldest one has waited.
pub fn set_webhooks_waiting(endpoint: &str, events: u64, oldest: Duration) {
    table::WEBHOOK_WAITING.set(EndpointName(endpoint.into()), typed::number(events));
    table::WEBHOOK_OLDEST.set(EndpointName(endpoint.into()), oldest.as_secs_f64());
}

/// A request over HTTP was answered.
pub fn http_answered(route: &'static str, status: u16, took: Duration) {
    table::HTTP_REQUESTS.add((RouteLabel(route.into()), StatusLabel(status.to_string())), 1);
    table::HTTP_DURATION.record_duration(RouteLabel(route.into()), took);
}

/// An image is received or screened over HTTP for as long as the returned value lives.
#[must_use]
pub fn hold_http_image() -> GaugeGuard {
    table::HTTP_IN_FLIGHT.hold((), 1)
}

/// A connection to the broker was opened. Only a worker's two connections are counted.
pub fn broker_connected(name: &str) {
    if let Some(connection) = BrokerConnection::ALL.iter().find(|connection| connection.as_str() == name) {
        table::CONNECTIONS.add(*connection, 1);
    }
}
