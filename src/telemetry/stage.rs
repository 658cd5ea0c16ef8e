//! An image's time in each stage, as a metric and as a span.

use std::time::Instant;

use tracing::Instrument;

use super::{metrics, traces};

/// A stage as metrics and spans call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting at the gate.
    Admit,
    /// Object → bytes.
    Fetch,
    /// Bytes → pixels, resized and cropped.
    Decode,
    /// Pixels → scores.
    Infer,
    /// Verdict → ledger.
    Commit,
    /// Event → exchange, from its hand-over to its confirmation.
    Publish,
    /// Delivery → acknowledged, copied or returned.
    Settle,
}

impl Stage {
    /// All, in the order of travel.
    pub const ALL: [Self; 7] =
        [Self::Admit, Self::Fetch, Self::Decode, Self::Infer, Self::Commit, Self::Publish, Self::Settle];

    /// The label, and the span's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Fetch => "fetch",
            Self::Decode => "decode",
            Self::Infer => "infer",
            Self::Commit => "commit",
            Self::Publish => "publish",
            Self::Settle => "settle",
        }
    }
}

/// Does a stage's work on one image, in a span of the stage, and counts how long it took. Work that is dropped halfway
/// counts as none.
pub async fn timed<T>(stage: Stage, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.instrument(traces::stage(stage)).await;
    metrics::passed(stage, began.elapsed());
    done
}
