//! Distributions of a detector's scores that later ones are compared with.

use async_trait::async_trait;
use time::OffsetDateTime;

use super::LedgerError;

/// The scores of one label of a detector in a window of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreBaseline {
    /// The detector's digest.
    pub digest: String,
    pub label: String,
    /// Scores by class; what the classes are is not known here.
    pub counts: Vec<u64>,
    /// When the first and the last of their verdicts were decided.
    pub window: (OffsetDateTime, OffsetDateTime),
}

/// The baselines that are stored, at most one for each label of a detector.
#[async_trait]
pub trait Baselines: Send + Sync {
    /// Stores baselines, each in the place of an earlier one of the same digest and label.
    async fn save_baselines(&self, baselines: &[ScoreBaseline]) -> Result<(), LedgerError>;

    /// The baselines of detectors with these digests.
    async fn find_baselines(&self, digests: &[String]) -> Result<Vec<ScoreBaseline>, LedgerError>;
}
