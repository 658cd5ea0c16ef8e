//! What a ledger promises, whichever database keeps it.
//!
//! Nobody outside of `ledger/` writes a query. An adapter never decides anything: it stores, finds, leases.

mod archive;
mod postgres;
mod reconcile;
mod rows;
mod schema;
mod scratch;
mod sqlite;

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::config::{Config, ConfigError};
use crate::job::{Digests, ImageRef, Outcome, Scores, Seen, Verdict};
use crate::telemetry::metrics::{self, labels::LedgerErrorKind};

pub use archive::{Announcement, Archive, Filter, Rejudged};
pub use postgres::Postgres;
pub use reconcile::{Reconcile, Standing, TURN};
pub use scratch::Scratch;
pub use sqlite::Sqlite;

/// How long an event is left to whoever committed it, before the sweeper takes it.
pub const HANDOVER: Duration = Duration::from_secs(30);

/// A verdict to be committed, with the event it owes.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The row.
    pub verdict: Verdict,
    /// The outbox row, where this outcome is announced.
    pub event: Option<Event>,
}

/// An event, as the outbox keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Stable over redelivery.
    pub id: Uuid,
    /// The topic.
    pub routing_key: String,
    /// The job's own correlation id, else its id.
    pub correlation_id: String,
    /// A CloudEvent as JSON text.
    pub payload: String,
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// The row was written, and with it the event; its payload is exactly what the outbox holds.
    Written(Option<Event>),
    /// A verdict of this id was there before, and stays as it is.
    Known(Known),
}

/// A verdict that was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its image.
    pub image: ImageRef,
    /// Its outcome.
    pub outcome: Outcome,
}

impl Known {
    /// Whether a job for `image` may be the one this verdict answers: a job that names no version or `ETag` means
    /// whatever was there.
    #[must_use]
    pub fn answers(&self, image: &ImageRef) -> bool {
        let agrees =
            |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || found.is_none() || wanted == found;
        self.image.bucket == image.bucket
            && self.image.key == image.key
            && agrees(&image.version_id, &self.image.version_id)
            && agrees(&image.etag, &self.image.etag)
    }
}

/// Earlier scores for the same content under the same detectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Reusable {
    /// The verdict they were made for.
    pub verdict: Uuid,
    /// The facts of the image.
    pub seen: Seen,
    /// The scores.
    pub scores: Scores,
}

/// Why the ledger did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be reached, is shutting down, is read-only, or does not answer. It may pass.
    #[error("the ledger cannot be used: {0}")]
    Down(String),
    /// It refuses a row for what is in it. Trying again is no use.
    #[error("the ledger refuses the row: {0}")]
    Refused(String),
    /// The schema is older than this program.
    #[error(
        "the ledger's schema is at version {found}, and this program needs {needed}\n  hint: run `pixwarden migrate`, or start the worker with --migrate"
    )]
    Schema {
        /// 0: there is none.
        found: i64,
        /// The newest this program brings.
        needed: i64,
    },
    /// It cannot be opened as configured: a wrong password, no such database.
    #[error("the ledger {url} cannot be opened: {error}")]
    Unusable {
        /// Without its password.
        url: String,
        /// What it says.
        error: String,
    },
}

/// Counts a call that was not done.
fn count(error: &LedgerError) {
    match error {
        LedgerError::Down(_) => metrics::ledger_call_failed(LedgerErrorKind::Down),
        LedgerError::Refused(_) => metrics::ledger_call_failed(LedgerErrorKind::Refused),
        // Found before there is a job.
        LedgerError::Schema { .. } | LedgerError::Unusable { .. } => {}
    }
}

/// Where verdicts are kept.
#[async_trait]
pub trait Ledger: Archive + Reconcile {
    /// Brings the schema up to date, and says to which version.
    async fn migrate(&self) -> Result<i64, LedgerError>;

    /// Checks that the schema is new enough.
    async fn check_schema(&self) -> Result<(), LedgerError>;

    /// Makes it ready for one person's use: a file of theirs is brought up to date, a server's schema is only checked.
    async fn prepare(&self) -> Result<(), LedgerError>;

    /// Checks that it can be written to.
    async fn ping(&self) -> Result<(), LedgerError>;

    /// What a worker needs and this user may not do, in the database's words.
    async fn lacks(&self) -> Result<Vec<String>, LedgerError> {
        Ok(Vec::new())
    }

    /// What is known of the verdict of this id.
    async fn find(&self, id: Uuid) -> Result<Option<Known>, LedgerError>;

    /// Scores made from content of this SHA-256 by exactly these detectors.
    ///
    /// Of an animation the scores of one frame are kept, the most severe one under the policy of that day; they are
    /// found again under that same policy only.
    async fn find_scores(
        &self,
        sha256: [u8; 32],
        detectors: &Digests,
        policy_sha256: &str,
    ) -> Result<Option<Reusable>, LedgerError>;

    /// Commits all entries in one transaction, or none; no two may have the same id. One answer an entry, in order.
    async fn commit(&self, entries: &[Entry]) -> Result<Vec<Committed>, LedgerError>;

    /// Records, durably and before the work, that `process` screens a suspect alone; returns how many processes have
    /// begun that. One that begins it again has not died of it.
    async fn begin_alone(&self, id: Uuid, process: Uuid) -> Result<u32, LedgerError>;

    /// Takes that back: the process lives.
    async fn end_alone(&self, id: Uuid) -> Result<(), LedgerError>;

    /// Takes up to `limit` events that are due, oldest first, for as long as publishing them may take.
    async fn lease_events(&self, limit: u32) -> Result<Vec<Event>, LedgerError>;

    /// Marks events as published.
    async fn mark_published(&self, ids: &[Uuid]) -> Result<(), LedgerError>;

    /// Notes why an event could not be published; it becomes due again by itself.
    async fn note_unpublished(&self, id: Uuid, error: &str) -> Result<(), LedgerError>;

    /// Deletes events published longer ago than `keep`, and says how many.
    async fn prune_outbox(&self, keep: Duration) -> Result<u64, LedgerError>;

    /// Closes all connections.
    async fn close(&self);

    /// Counts the events that are not yet published, by routing key.
    async fn unpublished(&self) -> Result<Vec<Unpublished>, LedgerError>;
}

/// Events of one routing key that are not yet published, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpublished {
    /// The topic.
    pub routing_key: String,
    /// How many.
    pub events: u64,
    /// Age of the oldest.
    pub oldest: Duration,
}

/// Why there is no ledger.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration names none, or one that is not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It does not open.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Opens the configured ledger; the URL chooses the adapter.
///
/// # Errors
/// When the URL is missing or wrong, the file is not there, or the database refuses us.
pub async fn open(config: &Config) -> Result<Box<dyn Ledger>, OpenError> {
    open_as(config, Absent::Refused).await
}

/// As [`open`], for whoever brings the schema up to date: a file that is not there is made.
///
/// # Errors
/// As [`open`].
pub async fn open_or_create(config: &Config) -> Result<Box<dyn Ledger>, OpenError> {
    open_as(config, Absent::Created).await
}

/// What becomes of a file that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// A mistyped name must not become an empty ledger.
    Refused,
    /// An empty file.
    Created,
}

async fn open_as(config: &Config, absent: Absent) -> Result<Box<dyn Ledger>, OpenError> {
    let url = config.ledger()?;
    Ok(match url.file() {
        Some(file) => Box::new(Sqlite::open(file, absent).await?),
        None => Box::new(Postgres::open(url).await?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_answers_only_jobs_for_its_own_image() {
        let image = |version: Option<&str>, etag: Option<&str>| ImageRef {
            bucket: "b".into(),
            key: "k".into(),
            version_id: version.map(str::to_owned),
            etag: etag.map(str::to_owned),
        };
        let known = Known { image: image(None, Some("e1")), outcome: Outcome::Passed };
        assert!(known.answers(&image(None, None)));
        assert!(known.answers(&image(None, Some("e1"))));
        assert!(!known.answers(&image(None, Some("e2"))));
        assert!(!known.answers(&ImageRef { key: "other".into(), ..image(None, None) }));
        assert!(!known.answers(&ImageRef { bucket: "other".into(), ..image(None, None) }));
    }
}
