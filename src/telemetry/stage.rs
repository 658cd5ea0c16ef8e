//! The time of one image in each stage, as a metric and as a span.

use std::time::Instant;

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

/// Runs a stage's work on one image in the stage's span, and records its duration. Work that is cancelled is not recorded.
pub async fn timed<T>(stage: Stage, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.instrument(traces::stage_span(stage)).await;
    metrics::stage_completed(stage, began.elapsed());
    done
}
