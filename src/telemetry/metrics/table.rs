//! Every metric: name, kind, labels, help, and for a histogram its buckets.
//!
//! `docs/metrics.md` documents the same table. A test keeps the two equal.

use super::labels::{
    ActionLabel, BankName, BrokerConnection, DependencyLabel, DetectorDigest, DetectorName, DeviceName, EndpointName,
    ItemKindLabel, LedgerErrorKind, PolicyName, ProgramVersion, PublishResult, QueueName, RetryCause, RouteLabel,
    RoutingKey, RuleText, ScoreLabel, SettlementLabel, StatusLabel, WebhookResult,
};
use super::typed::{Counter, Gauge, Histogram, Metric};
use crate::job::{FindingOutcome, Lane, Outcome};
use crate::telemetry::Stage;

/// Seconds of a job: 2 ms with everything warm, minutes after a dependency was down.
const JOB_S: &[f64] = &[0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Seconds of a stage: decoding takes 1 ms for a thumbnail and 4 s for a large WebP file. Waiting adds to that.
const STAGE_S: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 10.0, 30.0];
/// Seconds of a session run: from a small network on a GPU to a large batch on a CPU.
const RUN_S: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0];
/// Images per session run: warm-up doubles the batch.
const IMAGES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
/// Verdicts per transaction, up to the largest group.
const VERDICTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
/// Seconds of a transaction: from one fsync to the timeout of a call.
const TRANSACTION_S: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Scores, in twentieths.
const SCORES: &[f64] =
    &[0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0];

/// Declares each metric as a static, and the list of all.
macro_rules! table {
    ($($constant:ident: $type:ty = $metric:expr;)+) => {
        $(pub(super) static $constant: $type = $metric;)+

        /// Every metric, in the order of the documentation.
        pub static ALL: &[&Metric] = &[$(&$constant.metric),+];
    };
}

table! {
    BUILD_INFO: Gauge<ProgramVersion> =
        Gauge::measured("pixwarden_build_info", "Always 1; the label is the program's version");
    DETECTOR_INFO: Gauge<(DetectorName, DetectorDigest, DeviceName)> =
        Gauge::measured("pixwarden_detector_info", "Always 1; one series per loaded detector");
    BANK_VERSION: Gauge<BankName> =
        Gauge::measured("pixwarden_bank_version", "The version of a bank of known images that the worker asks");
    READY: Gauge<()> = Gauge::new("pixwarden_ready", "1 while the worker consumes deliveries, like /readyz");
    INTAKE_PAUSED: Gauge<DependencyLabel> =
        Gauge::new("pixwarden_intake_paused", "1 while intake is paused because this dependency is broken");
    STORES_DOWN: Gauge<()> =
        Gauge::new("pixwarden_stores_down", "Object stores that are down; the jobs for their buckets wait");
    BUCKETS_HELD: Gauge<()> = Gauge::new(
        "pixwarden_buckets_held", "Buckets whose jobs wait because the bucket is missing or refuses access",
    );
    DELIVERIES: Counter<(Lane, SettlementLabel)> =
        Counter::new("pixwarden_deliveries_total", "Settled deliveries, by lane and settlement");
    JOBS: Counter<(Lane, Outcome)> = Counter::new("pixwarden_jobs_total", "Committed verdicts, by lane and outcome");
    JUDGEMENTS: Counter<PolicyName> = Counter::new(
        "pixwarden_judgements_total", "First judgements of images by a policy: verdicts that passed, review or flagged",
    );
    FINDINGS: Counter<(PolicyName, RuleText, FindingOutcome)> =
        Counter::new("pixwarden_findings_total", "Rules that were reached in first judgements, by policy and outcome");
    SCORES_OF_LABEL: Histogram<(DetectorName, ScoreLabel)> = Histogram::new(
        "pixwarden_scores", SCORES,
        "Scores of new verdicts, reused ones included; of a detector with more than 20 labels only those in rules",
    );
    SCORE_DRIFT: Gauge<(DetectorName, ScoreLabel)> = Gauge::measured(
        "pixwarden_score_drift",
        "Population stability index of recent scores against the baseline that `compare` stored; above 0.25 is large",
    );
    JOB_DURATION: Histogram<Lane> = Histogram::new(
        "pixwarden_job_duration_seconds", JOB_S, "Seconds from a delivery's arrival to the commit of its verdict",
    );
    STAGE_DURATION: Histogram<Stage> = Histogram::new(
        "pixwarden_stage_duration_seconds", STAGE_S, "Seconds of one image in a stage, including the wait for it",
    );
    RETRIES: Counter<RetryCause> = Counter::new("pixwarden_retries_total", "Failed attempts at a job, by cause");
    SCORES_REUSED: Counter<()> =
        Counter::new("pixwarden_scores_reused_total", "Verdicts that reused stored scores of equal content");
    FETCHED_BYTES: Counter<()> = Counter::new("pixwarden_fetched_bytes_total", "Bytes of fetched objects");
    BATCH_IMAGES: Histogram<DetectorName> =
        Histogram::new("pixwarden_batch_images", IMAGES, "Images per session run");
    BATCH_LIMIT: Gauge<DetectorName> =
        Gauge::measured("pixwarden_batch_limit", "The largest number of images per session run");
    SESSION_RUN: Histogram<DetectorName> =
        Histogram::new("pixwarden_session_run_seconds", RUN_S, "Seconds of one session run");
    QUEUE_MESSAGES: Gauge<QueueName> =
        Gauge::measured("pixwarden_queue_messages", "Ready messages in the queue when this worker last polled it");
    PREFETCH: Gauge<()> = Gauge::measured("pixwarden_prefetch", "The largest number of unsettled deliveries per lane");
    DELIVERIES_HELD: Gauge<Lane> = Gauge::new("pixwarden_deliveries_held", "Unsettled deliveries in this worker");
    DECODE_MEMORY: Gauge<()> =
        Gauge::new("pixwarden_decode_memory_bytes", "Memory that is reserved for images being decoded");
    DECODE_MEMORY_LIMIT: Gauge<()> =
        Gauge::measured("pixwarden_decode_memory_limit_bytes", "The limit of pixwarden_decode_memory_bytes");
    OBJECT_MEMORY: Gauge<()> =
        Gauge::new("pixwarden_object_memory_bytes", "Memory that is reserved for fetched objects");
    OBJECT_MEMORY_LIMIT: Gauge<()> =
        Gauge::measured("pixwarden_object_memory_limit_bytes", "The limit of pixwarden_object_memory_bytes");
    UPLOAD_MEMORY: Gauge<()> =
        Gauge::new("pixwarden_upload_memory_bytes", "Memory that is reserved for images sent over HTTP");
    HTTP_REQUESTS: Counter<(RouteLabel, StatusLabel)> =
        Counter::new("pixwarden_http_requests_total", "Answered requests over HTTP, by route and status");
    HTTP_DURATION: Histogram<RouteLabel> =
        Histogram::new("pixwarden_http_request_duration_seconds", JOB_S, "Seconds until a request over HTTP was answered");
    HTTP_IN_FLIGHT: Gauge<()> =
        Gauge::new("pixwarden_http_images", "Images that are received or screened over HTTP");
    COMMIT_VERDICTS: Histogram<()> =
        Histogram::new("pixwarden_commit_verdicts", VERDICTS, "Verdicts per ledger transaction");
    COMMIT_DURATION: Histogram<()> =
        Histogram::new("pixwarden_commit_duration_seconds", TRANSACTION_S, "Seconds of one ledger transaction");
    LEDGER_ERRORS: Counter<LedgerErrorKind> =
        Counter::new("pixwarden_ledger_errors_total", "Ledger calls that failed, by kind");
    OUTBOX_EVENTS: Gauge<RoutingKey> = Gauge::measured(
        "pixwarden_outbox_events",
        "Unpublished events in the outbox when this worker last polled it; at most 10000 are counted",
    );
    OUTBOX_OLDEST: Gauge<RoutingKey> = Gauge::measured(
        "pixwarden_outbox_oldest_seconds", "Age of the oldest unpublished event of a routing key; 0 if there is none",
    );
    EVENTS: Counter<(RoutingKey, PublishResult)> =
        Counter::new("pixwarden_events_total", "Attempts to publish an event, by result");
    WEBHOOK_ATTEMPTS: Counter<(EndpointName, WebhookResult)> =
        Counter::new("pixwarden_webhook_attempts_total", "Attempts to send an event to a webhook, by result");
    WEBHOOK_WAITING: Gauge<EndpointName> = Gauge::measured(
        "pixwarden_webhook_waiting",
        "Events that wait for a webhook when this process last polled them; at most 10000 are counted",
    );
    WEBHOOK_OLDEST: Gauge<EndpointName> = Gauge::measured(
        "pixwarden_webhook_oldest_seconds",
        "How long the oldest event has waited for a webhook; 0 if there is none",
    );
    REVIEW_ITEMS: Gauge<ItemKindLabel> = Gauge::measured(
        "pixwarden_review_items",
        "Open review items when this process last polled them; the first 10000 of the queue are counted",
    );
    REVIEW_OVERDUE: Gauge<ItemKindLabel> = Gauge::measured(
        "pixwarden_review_overdue_seconds", "How long the earliest due date of an open review item has passed; 0 if none has",
    );
    REVIEW_LAPSED: Gauge<ItemKindLabel> = Gauge::measured(
        "pixwarden_review_leases_lapsed",
        "Open review items whose lease has ended without a decision, and that are not claimed again",
    );
    REVIEW_DECISIONS: Counter<ActionLabel> =
        Counter::new("pixwarden_review_decisions_total", "Decisions that this process has recorded, by action");
    CONNECTIONS: Counter<BrokerConnection> =
        Counter::new("pixwarden_broker_connections_total", "Connections opened to the broker");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::super::typed::MetricKind;
    use super::*;

    /// The known values of a metric's label.
    fn known(metric: &Metric, label: &str) -> BTreeSet<String> {
        let pairs = (metric.known)().into_iter().flatten();
        pairs.filter(|pair| pair.key() == label).map(|pair| pair.value().to_owned()).collect()
    }

    #[test]
    fn the_documentation_lists_every_metric_with_its_labels_and_their_values() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with("| `pixwarden_"))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        let names: Vec<_> = rows.iter().map(|cells| cells[1].trim_matches('`')).collect();
        assert_eq!(names, ALL.iter().map(|metric| metric.name).collect::<Vec<_>>());
        for (cells, metric) in rows.iter().zip(ALL) {
            assert_eq!(cells[2], metric.kind.as_str(), "{}", metric.name);
            // The values of the last label may follow its name.
            let (labels, values) = cells[3].split_once(" = ").unwrap_or((cells[3], ""));
            let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(quoted(labels), metric.labels, "{}", metric.name);
            let last = metric.labels.last().copied().unwrap_or_default();
            let expected = if last == "version" { BTreeSet::new() } else { known(metric, last) };
            assert_eq!(quoted(values).into_iter().collect::<BTreeSet<_>>(), expected, "{}", metric.name);
        }
    }

    #[test]
    fn names_follow_prometheus() {
        for Metric { name, kind, .. } in ALL {
            assert_eq!(name.ends_with("_total"), *kind == MetricKind::Counter, "{name}");
            if let MetricKind::Histogram(buckets) = kind {
                assert!(buckets.is_sorted() && !buckets.is_empty(), "{name}");
            }
        }
    }

    #[test]
    fn every_known_series_of_a_counter_is_zero_at_the_start_and_a_measurement_is_absent() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || ALL.iter().for_each(|metric| metric.register()));
        let scrape = recorder.handle().render();
        for metric in ALL {
            let series = scrape
                .lines()
                .filter(|line| line.strip_prefix(metric.name).is_some_and(|rest| rest.starts_with(['{', ' ', '_'])));
            match metric.kind {
                MetricKind::Counter | MetricKind::Gauge => {
                    let zeros = series.filter(|line| line.ends_with(" 0")).count();
                    // Of a label with free text, a worker shows what it finds in its configuration.
                    assert!(zeros >= (metric.known)().len(), "{}: {scrape}", metric.name);
                }
                MetricKind::MeasuredGauge => assert_eq!(series.count(), 0, "{}: {scrape}", metric.name),
                MetricKind::Histogram(_) => {}
            }
        }
        assert!(
            scrape.contains("pixwarden_deliveries_total{lane=\"backfill\",settlement=\"dead_lettered\"} 0"),
            "{scrape}"
        );
    }
}
