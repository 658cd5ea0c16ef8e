//! Every metric: name, kind, labels, help, and for a histogram its buckets.
//!
//! `docs/metrics.md` tells people the same; a test keeps the two equal.

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// As it is scraped. The last word but `total` is the unit, where there is one.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// One line for whoever reads the scrape.
    pub help: &'static str,
}

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// As it is now.
    Gauge,
    /// Counted into buckets with these upper bounds, and a last one for all above.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As Prometheus calls it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// Seconds of a job: 2 ms where everything is warm, minutes behind a dependency that was away.
const JOB_S: &[f64] = &[0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Seconds of a stage: a thumbnail is decoded in 1 ms, a large WebP file in 4 s; waiting comes on top.
const STAGE_S: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 10.0, 30.0];
/// Seconds of a run: a small network on a GPU, to a large batch on a CPU.
const RUN_S: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0];
/// Images a run: batches double in warm-up.
const IMAGES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
/// Verdicts a transaction, up to the largest group there is.
const VERDICTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
/// Seconds of a transaction: one fsync, up to the deadline of a call.
const TRANSACTION_S: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn histogram(
    name: &'static str,
    buckets: &'static [f64],
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Histogram(buckets), labels, help }
}

/// The metrics under the names by which `metrics.rs` speaks of them, and all of them together.
macro_rules! table {
    ($($constant:ident = $metric:expr;)+) => {
        $(pub(super) const $constant: Metric = $metric;)+

        /// Every metric, in the order of the documentation.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

table! {
    BUILD_INFO = gauge("pixwarden_build_info", &["version"], "Always 1; the version of the program");
    DETECTOR_INFO = gauge(
        "pixwarden_detector_info", &["detector", "digest", "place"], "Always 1; a detector that is loaded, and where it runs",
    );
    READY = gauge("pixwarden_ready", &[], "1 while deliveries are consumed, as /readyz says");
    INTAKE_PAUSED = gauge("pixwarden_intake_paused", &["dependency"], "1 while intake is paused as this is broken");
    DELIVERIES = counter("pixwarden_deliveries_total", &["lane", "settlement"], "Deliveries settled");
    JOBS = counter("pixwarden_jobs_total", &["lane", "outcome"], "Verdicts committed");
    JOB_DURATION = histogram(
        "pixwarden_job_duration_seconds", JOB_S, &["lane"], "Seconds from a delivery's arrival to its verdict's commit",
    );
    STAGE_DURATION = histogram(
        "pixwarden_stage_duration_seconds", STAGE_S, &["stage"], "Seconds of one image in a stage, its waiting included",
    );
    RETRIES = counter("pixwarden_retries_total", &["cause"], "Attempts at a job that failed");
    SCORES_REUSED = counter("pixwarden_scores_reused_total", &[], "Verdicts that took over earlier scores");
    FETCHED_BYTES = counter("pixwarden_fetched_bytes_total", &[], "Bytes of objects fetched");
    BATCH_IMAGES = histogram("pixwarden_batch_images", IMAGES, &["detector"], "Images a run of the session");
    BATCH_LIMIT = gauge("pixwarden_batch_limit", &["detector"], "Images a run at the most");
    SESSION_RUN = histogram("pixwarden_session_run_seconds", RUN_S, &["detector"], "Seconds of one run of the session");
    QUEUE_MESSAGES = gauge("pixwarden_queue_messages", &["queue"], "Messages ready, as this worker last saw them");
    PREFETCH = gauge("pixwarden_prefetch", &[], "Deliveries that a lane may hold");
    DELIVERIES_HELD = gauge("pixwarden_deliveries_held", &["lane"], "Deliveries held and not settled");
    DECODE_MEMORY = gauge("pixwarden_decode_memory_bytes", &[], "Memory of images being decoded");
    DECODE_MEMORY_LIMIT = gauge("pixwarden_decode_memory_limit_bytes", &[], "The most there is of that");
    OBJECT_MEMORY = gauge("pixwarden_object_memory_bytes", &[], "Compressed bytes of objects held");
    OBJECT_MEMORY_LIMIT = gauge("pixwarden_object_memory_limit_bytes", &[], "The most there is of that");
    COMMIT_VERDICTS = histogram("pixwarden_commit_verdicts", VERDICTS, &[], "Verdicts a transaction");
    COMMIT_DURATION = histogram("pixwarden_commit_duration_seconds", TRANSACTION_S, &[], "Seconds of a transaction");
    LEDGER_ERRORS = counter("pixwarden_ledger_errors_total", &["kind"], "Calls that the ledger did not do");
    OUTBOX_EVENTS = gauge("pixwarden_outbox_events", &["routing_key"], "Events not yet published, as last counted");
    OUTBOX_OLDEST = gauge("pixwarden_outbox_oldest_seconds", &[], "Age of the oldest of them; 0 where there is none");
    EVENTS = counter("pixwarden_events_total", &["routing_key", "result"], "Attempts to publish an event");
    CONNECTIONS = counter("pixwarden_broker_connections_total", &["connection"], "Connections made to the broker");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_metric_as_it_is_and_no_other() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
        let rows: Vec<[String; 3]> = text
            .lines()
            .filter(|line| line.starts_with("| `pixwarden_"))
            .map(|line| {
                let cells: Vec<_> = line.split('|').map(str::trim).collect();
                // The last label's values may follow it.
                let labels = cells[3].split(" = ").next().unwrap();
                [cells[1].replace('`', ""), cells[2].to_owned(), labels.replace(", ", " ").replace('`', "")]
            })
            .collect();
        let metrics: Vec<_> =
            ALL.iter().map(|m| [m.name.to_owned(), m.kind.as_str().to_owned(), m.labels.join(" ")]).collect();
        assert_eq!(rows, metrics);
    }

    #[test]
    fn names_follow_prometheus() {
        for Metric { name, kind, .. } in ALL {
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            if let Kind::Histogram(buckets) = kind {
                assert!(buckets.is_sorted() && !buckets.is_empty(), "{name}");
            }
        }
    }
}
