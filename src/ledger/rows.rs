//! A verdict's row as both databases give it, and back to a [`Verdict`].

use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

use super::Reusable;
use crate::job::{self, ImageInfo, ImageRef, Judgement, Lane, Outcome, Verdict};

/// The columns of `verdicts`, with UUIDs and JSON as text.
pub(super) struct Stored {
    /// Selected as `verdict_id`: under its own name it would be sorted as text.
    pub id: String,
    pub job_id: String,
    pub lane: String,
    pub bucket: String,
    pub key: String,
    pub version_id: Option<String>,
    pub etag: Option<String>,
    pub sha256: Option<Vec<u8>>,
    pub bytes: Option<i64>,
    pub format: Option<String>,
    pub width: Option<i32>,
    pub height: Option<i32>,
    pub frames: Option<i32>,
    pub outcome: String,
    pub reason: Option<String>,
    pub label: Option<String>,
    pub score: Option<f32>,
    pub scores: Option<String>,
    pub detectors: String,
    pub policy: String,
    pub metadata: Option<String>,
    pub reused_from: Option<String>,
    pub attempts: i32,
    pub received_at: OffsetDateTime,
    pub decided_at: OffsetDateTime,
}

/// Reads a [`Stored`] from a row of either database. A macro, since what a function would have to demand of a row's type
/// is longer than what it does.
macro_rules! stored {
    ($row:expr) => {
        $crate::ledger::rows::Stored {
            id: $row.try_get("verdict_id")?,
            job_id: $row.try_get("job_id")?,
            lane: $row.try_get("lane")?,
            bucket: $row.try_get("bucket")?,
            key: $row.try_get("key")?,
            version_id: $row.try_get("version_id")?,
            etag: $row.try_get("etag")?,
            sha256: $row.try_get("sha256")?,
            bytes: $row.try_get("bytes")?,
            format: $row.try_get("format")?,
            width: $row.try_get("width")?,
            height: $row.try_get("height")?,
            frames: $row.try_get("frames")?,
            outcome: $row.try_get("outcome")?,
            reason: $row.try_get("reason")?,
            label: $row.try_get("label")?,
            score: $row.try_get("score")?,
            scores: $row.try_get("scores")?,
            detectors: $row.try_get("detectors")?,
            policy: $row.try_get("policy")?,
            metadata: $row.try_get("metadata")?,
            reused_from: $row.try_get("reused_from")?,
            attempts: $row.try_get("attempts")?,
            received_at: $row.try_get("received_at")?,
            decided_at: $row.try_get("decided_at")?,
        }
    };
}
pub(super) use stored;

/// An outcome as it is stored; the column's check allows nothing else.
pub(super) fn outcome(word: String) -> Result<Outcome, sqlx::Error> {
    Outcome::parse(&word).ok_or_else(|| sqlx::Error::Decode(word.into()))
}

/// Reads a [`Known`](super::Known) from a row of either database.
macro_rules! known {
    ($row:expr) => {{
        let outcome: String = $row.try_get("outcome")?;
        $crate::ledger::Known {
            image: $crate::job::ImageRef {
                bucket: $row.try_get("bucket")?,
                key: $row.try_get("key")?,
                version_id: $row.try_get("version_id")?,
                etag: $row.try_get("etag")?,
            },
            outcome: $crate::ledger::rows::outcome(outcome)?,
        }
    }};
}
pub(super) use known;

impl Stored {
    /// The verdict. Only a row that somebody else has changed is not one.
    pub(super) fn verdict(self) -> Result<Verdict, sqlx::Error> {
        let odd = |what: &str| sqlx::Error::Decode(format!("verdict of job {}: {what}", self.job_id).into());
        let lane = Lane::ALL.into_iter().find(|lane| lane.as_str() == self.lane).ok_or_else(|| odd("its lane"))?;
        let outcome = Outcome::parse(&self.outcome).ok_or_else(|| odd("its outcome"))?;
        let edge = |n: Option<i32>| n.and_then(|n| u32::try_from(n).ok());
        let format = self.format.as_deref().and_then(job::format_name);
        let seen = match (format, edge(self.width), edge(self.height), edge(self.frames)) {
            (Some(format), Some(width), Some(height), Some(frames)) => {
                Some(ImageInfo { format, width, height, frames })
            }
            _ => None,
        };
        let sha256 = self.sha256.map(<[u8; 32]>::try_from).transpose();
        let image = ImageRef { bucket: self.bucket, key: self.key, version_id: self.version_id, etag: self.etag };
        let judgement = Judgement { outcome, reason: self.reason, label: self.label, score: self.score };
        Ok(Verdict {
            id: Uuid::parse_str(&self.id).map_err(|e| sqlx::Error::Decode(e.into()))?,
            lane,
            image,
            sha256: sha256.map_err(|_| sqlx::Error::Decode("a sha256 that is none".into()))?,
            bytes: self.bytes.and_then(|n| u64::try_from(n).ok()),
            seen,
            judgement,
            scores: self.scores.as_deref().map(json).transpose()?,
            detectors: json(&self.detectors)?,
            policy: json(&self.policy)?,
            metadata: self.metadata.as_deref().map(json).transpose()?,
            reused_from: self.reused_from.and_then(|id| Uuid::parse_str(&id).ok()),
            attempts: u32::try_from(self.attempts).unwrap_or(0),
            received_at: self.received_at,
            decided_at: self.decided_at,
            job_id: self.job_id,
        })
    }
}

fn json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, sqlx::Error> {
    serde_json::from_str(text).map_err(|e| sqlx::Error::Decode(e.into()))
}

/// What another job may take over from a verdict.
pub(super) fn reusable(verdict: Verdict) -> Option<Reusable> {
    Some(Reusable { verdict: verdict.id, seen: verdict.seen?, scores: verdict.scores? })
}

/// As JSON text. Maps with string keys, and numbers that are finite or written as null: serde_json writes them all.
pub(super) fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}
