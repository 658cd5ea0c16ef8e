//! The hashes of all that was screened, side by side, so that a bank is matched with them without reading a verdict. Only
//! Postgres has them.

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{LedgerError, StoredVerdict};
use crate::job::Pdq;

/// The hashes of one view. The digests of the file are with the first one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashedView {
    pub verdict: Uuid,
    pub sha256: Option<[u8; 32]>,
    pub md5: Option<[u8; 16]>,
    /// With its quality; `None` where nothing could be decoded.
    pub pdq: Option<(Pdq, u8)>,
}

/// A part of all hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashPage {
    pub views: Vec<HashedView>,
    /// Where the next part begins; `None` after the last one.
    pub next: Option<u64>,
}

/// The hashes of all verdicts.
#[async_trait]
pub trait ImageHashes: Send + Sync {
    /// The part that begins at a place, 0 for the first one. Reading part after part returns whatever was there at the
    /// beginning. What is added meanwhile may lie before the place that was reached.
    async fn page_of_hashes(&self, from: u64) -> Result<HashPage, LedgerError>;

    /// The hashes of verdicts that were decided between two times.
    async fn hashes_decided(&self, from: OffsetDateTime, to: OffsetDateTime) -> Result<Vec<HashedView>, LedgerError>;

    /// The verdicts of these ids that are still there.
    async fn read_verdicts(&self, ids: &[Uuid]) -> Result<Vec<StoredVerdict>, LedgerError>;
}
