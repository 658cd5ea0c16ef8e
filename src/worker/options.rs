//! The options of a worker: `[worker]`.

use serde::{Deserialize, Serialize};

/// `[worker]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// Deliveries per lane; 0: 2 × largest batch × detectors + decoders + downloads + 64 for those being committed.
    pub prefetch: u16,
    /// Failed attempts after which a job is given up.
    #[serde(deserialize_with = "crate::config::above_zero")]
    pub attempts: u32,
    /// Deaths of the process, while it screened a job in quarantine, after which the job is given up.
    #[serde(deserialize_with = "crate::config::above_zero")]
    pub deaths: u32,
    /// Whether scores are reused for equal content and detectors.
    pub reuse_scores: bool,
    /// Longest a delivery is held while a dependency is broken, before it goes back to the queue.
    pub hold_ms: u64,
    /// Longest the worker drains after SIGTERM.
    pub drain_ms: u64,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self { prefetch: 0, attempts: 5, deaths: 3, reuse_scores: true, hold_ms: 60_000, drain_ms: 30_000 }
    }
}
