//! Erasing verdicts for ever, and keeping them from that by a legal hold.
//!
//! [`Erasure::erase`] leaves tombstones, which [`super::Verdicts::insert`] meets: a job for the same content at the same
//! place gets no new row. A tombstone holds keyed digests only. Other content at the place is a new image, and is inserted.

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{LedgerError, Position};
use crate::job::ImageRef;

/// What selects verdicts to erase or to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The image at a place, in every version.
    Image { bucket: String, key: String },
    /// Content of this SHA-256, at every place.
    Content([u8; 32]),
    /// A field of the metadata has this value: a text, a number, or true or false.
    Metadata { name: String, value: String },
}

/// A legal hold: until its end, verdicts on its subject are neither pruned nor erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub id: Uuid,
    /// The case, for people.
    pub reference: String,
    pub subject: Subject,
    pub until: OffsetDateTime,
    pub made_at: OffsetDateTime,
}

/// The verdicts of one page that a subject selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectPage {
    pub ids: Vec<Uuid>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<Position>,
}

/// What erasing has removed, and the tombstones that it has written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ErasedRows {
    pub verdicts: u64,
    pub history: u64,
    pub hashes: u64,
    pub events: u64,
    pub webhook_deliveries: u64,
    pub suspects: u64,
    pub backfill_jobs: u64,
    pub backfill_marks: u64,
    pub review_items: u64,
    pub reports: u64,
    pub decision_notes: u64,
    pub decided_contents: u64,
    /// Holds that have ended.
    pub holds: u64,
    pub tombstones: u64,
}

impl ErasedRows {
    /// Each table with its rows.
    #[must_use]
    pub const fn by_table(&self) -> [(&'static str, u64); 14] {
        [
            ("verdicts", self.verdicts),
            ("verdict_history", self.history),
            ("image_hashes", self.hashes),
            ("outbox", self.events),
            ("webhook_deliveries", self.webhook_deliveries),
            ("suspects", self.suspects),
            ("backfill_jobs", self.backfill_jobs),
            ("backfill_progress", self.backfill_marks),
            ("review_items", self.review_items),
            ("reports", self.reports),
            ("decision_notes", self.decision_notes),
            ("decided_contents", self.decided_contents),
            ("holds", self.holds),
            ("tombstones", self.tombstones),
        ]
    }
}

impl std::ops::AddAssign for ErasedRows {
    fn add_assign(&mut self, more: Self) {
        self.verdicts += more.verdicts;
        self.history += more.history;
        self.events += more.events;
        self.webhook_deliveries += more.webhook_deliveries;
        self.hashes += more.hashes;
        self.suspects += more.suspects;
        self.backfill_jobs += more.backfill_jobs;
        self.backfill_marks += more.backfill_marks;
        self.review_items += more.review_items;
        self.reports += more.reports;
        self.decision_notes += more.decision_notes;
        self.decided_contents += more.decided_contents;
        self.holds += more.holds;
        self.tombstones += more.tombstones;
    }
}

/// The result of erasing some verdicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erased {
    Done(ErasedRows),
    /// One of the verdicts is under this hold. Nothing was erased.
    Held(Hold),
}

/// Erasing verdicts, and legal holds.
#[async_trait]
pub trait Erasure: Send + Sync {
    /// The verdicts that a subject selects, page by page, from a place on or from the first. Only an image is found by an
    /// index; for content and metadata the pages read the whole table.
    async fn page_of_subject(&self, subject: &Subject, from: Option<Position>) -> Result<SubjectPage, LedgerError>;

    /// The hold on any of these verdicts that ends last.
    async fn hold_on(&self, verdicts: &[Uuid]) -> Result<Option<Hold>, LedgerError>;

    /// Deletes verdicts with everything that belongs to them, and writes their tombstones, in one transaction. An insert that
    /// runs at the same time is either seen by it, or sees the tombstones.
    async fn erase(&self, verdicts: &[Uuid]) -> Result<Erased, LedgerError>;

    /// For each object whether content was erased that it had with its present `ETag`.
    async fn are_erased(&self, objects: &[ImageRef]) -> Result<Vec<bool>, LedgerError>;

    /// Adds a hold.
    async fn add_hold(&self, hold: &Hold) -> Result<(), LedgerError>;

    /// All holds, also those that have ended, in the order of their ends.
    async fn holds(&self) -> Result<Vec<Hold>, LedgerError>;

    /// Removes a hold; false where there is none of this id.
    async fn release_hold(&self, id: Uuid) -> Result<bool, LedgerError>;
}

/// Why verdicts stay where they would be pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptBy {
    /// A hold that has not ended.
    Hold,
    /// An event that is not published yet or waits for a webhook, and no hold.
    UnpublishedEvent,
    /// A report, an appeal or a legal request that waits for a decision, and neither of the others.
    OpenReport,
}

/// The columns of `holds` that name the subject.
#[derive(Debug, Default)]
pub(super) struct SubjectColumns {
    pub bucket: Option<String>,
    pub key: Option<String>,
    pub sha256: Option<Vec<u8>>,
    pub name: Option<String>,
    pub value: Option<String>,
}

impl SubjectColumns {
    pub(super) fn of(subject: &Subject) -> Self {
        match subject.clone() {
            Subject::Image { bucket, key } => Self { bucket: Some(bucket), key: Some(key), ..Self::default() },
            Subject::Content(sha256) => Self { sha256: Some(sha256.to_vec()), ..Self::default() },
            Subject::Metadata { name, value } => Self { name: Some(name), value: Some(value), ..Self::default() },
        }
    }

    /// It fails only for a row that another program has written.
    pub(super) fn into_subject(self) -> Result<Subject, sqlx::Error> {
        let invalid = || sqlx::Error::Decode("a hold without a subject".into());
        match self {
            Self { bucket: Some(bucket), key: Some(key), .. } => Ok(Subject::Image { bucket, key }),
            Self { sha256: Some(sha256), .. } => sha256.try_into().map(Subject::Content).map_err(|_| invalid()),
            Self { name: Some(name), value: Some(value), .. } => Ok(Subject::Metadata { name, value }),
            _ => Err(invalid()),
        }
    }
}

/// Reads a [`Hold`] from a row of either database.
macro_rules! read_hold {
    ($row:expr) => {{
        let id: String = $row.try_get("id")?;
        let subject = $crate::ledger::erasure::SubjectColumns {
            bucket: $row.try_get("bucket")?,
            key: $row.try_get("key")?,
            sha256: $row.try_get("sha256")?,
            name: $row.try_get("name")?,
            value: $row.try_get("value")?,
        };
        Ok($crate::ledger::Hold {
            id: $crate::ledger::columns::parse_uuid(&id)?,
            reference: $row.try_get("reference")?,
            subject: subject.into_subject()?,
            until: $row.try_get("until")?,
            made_at: $row.try_get("made_at")?,
        })
    }};
}
