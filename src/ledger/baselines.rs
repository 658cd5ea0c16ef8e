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

/// Writes one baseline.
pub(super) const SAVE_BASELINE: &str =
    "INSERT INTO score_baselines (digest, label, counts, first_at, last_at) VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (digest, label) DO UPDATE SET
         counts = excluded.counts, first_at = excluded.first_at, last_at = excluded.last_at";

/// The columns of [`read_baseline`]; a condition on `digest` follows.
macro_rules! select_baselines {
    () => {
        "SELECT digest, label, counts, first_at, last_at FROM score_baselines"
    };
}

/// Reads a [`ScoreBaseline`] from a row of either database.
macro_rules! read_baseline {
    ($row:expr) => {{
        let sqlx::types::Json(counts) = $row.try_get("counts")?;
        Ok($crate::ledger::ScoreBaseline {
            digest: $row.try_get("digest")?,
            label: $row.try_get("label")?,
            counts,
            window: ($row.try_get("first_at")?, $row.try_get("last_at")?),
        })
    }};
}
pub(super) use {read_baseline, select_baselines};

/// The baselines that are stored, at most one for each label of a detector.
#[async_trait]
pub trait Baselines: Send + Sync {
    /// Stores baselines, each in the place of an earlier one of the same digest and label.
    async fn save_baselines(&self, baselines: &[ScoreBaseline]) -> Result<(), LedgerError>;

    /// The baselines of detectors with these digests.
    async fn find_baselines(&self, digests: &[String]) -> Result<Vec<ScoreBaseline>, LedgerError>;
}
