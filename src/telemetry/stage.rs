//! The time of one image in each stage, as a metric and as a span.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tracing::Instrument;

use super::metrics::labels::closed_label;
use super::{metrics, traces};

closed_label! {
    /// A stage of a job, in metrics and spans.
    Stage("stage") {
        /// Waiting for admission.
        Admit = "admit",
        /// Object → bytes.
        Fetch = "fetch",
        /// Bytes → pixels, resized and cropped.
        Decode = "decode",
        /// Pixels → scores.
        Infer = "infer",
        /// Verdict → ledger.
        Commit = "commit",
        /// Event → exchange, from the hand-over to the confirm.
        Publish = "publish",
        /// Delivery → acknowledged, copied or returned.
        Settle = "settle",
    }
}

tokio::task_local! {
    /// The stages that the current image has completed, where its caller asks for them.
    static COMPLETED: RefCell<Vec<(Stage, Duration)>>;
}

/// Runs the work on one image, and returns how long each completed stage took.
pub async fn with_stage_times<T>(work: impl Future<Output = T>) -> (T, Vec<(Stage, Duration)>) {
    let recorded = async {
        let done = work.await;
        (done, COMPLETED.with(RefCell::take))
    };
    COMPLETED.scope(RefCell::default(), recorded).await
}

/// Runs a stage's work on one image in the stage's span, and records its duration. Work that is cancelled is not recorded.
pub async fn timed<T>(stage: Stage, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.instrument(traces::stage_span(stage)).await;
    let took = began.elapsed();
    metrics::stage_completed(stage, took);
    // Few callers ask.
    COMPLETED.try_with(|completed| completed.borrow_mut().push((stage, took))).unwrap_or_default();
    done
}
