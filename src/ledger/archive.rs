//! What operators ask of the ledger after the work is done: verdicts to read, prune and rejudge.

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{KeptBy, LedgerError, Revise};
use crate::job::{ImageRef, Judgement, Outcome, PolicyRef, Revision, Verdict};

/// A verdict with its last revision.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredVerdict {
    pub verdict: Verdict,
    pub revision: Revision,
    /// When the object was removed from its bucket, as its store has announced.
    pub deleted_at: Option<OffsetDateTime>,
}

/// The state of a verdict before its last revision.
#[derive(Debug, Clone, PartialEq)]
pub struct EarlierState {
    pub revision: Revision,
    pub judgement: Judgement,
    /// The policy that had judged.
    pub policy: PolicyRef,
}

/// Selects verdicts that meet every condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerdictFilter {
    /// Decided at this time or later.
    pub since: Option<OffsetDateTime>,
    /// Decided before this time.
    pub until: Option<OffsetDateTime>,
    /// Judged once more, at this time or later. A verdict at revision 1 is left out.
    pub revised_since: Option<OffsetDateTime>,
    /// Judged once more before this time; only together with `revised_since`.
    pub revised_until: Option<OffsetDateTime>,
    /// Any of these outcomes; an empty list means every outcome.
    pub outcomes: Vec<Outcome>,
    /// Scored by the detector of this name.
    pub detector: Option<String>,
    /// In any of these buckets, where `*` stands for any characters; an empty list means every bucket.
    pub buckets: Vec<String>,
    /// On an object whose key begins with this text.
    pub key_prefix: Option<String>,
    /// Whose judgement names any of these labels; an empty list means every judgement.
    pub labels: Vec<String>,
}

impl VerdictFilter {
    /// Without what was decided at this time or later. A command that reads up to its start leaves out what workers add
    /// meanwhile, and so comes to an end.
    #[must_use]
    pub fn before(self, at: OffsetDateTime) -> Self {
        Self { until: Some(self.until.map_or(at, |until| until.min(at))), ..self }
    }

    /// Whether the order of the verdicts alone decides which are selected, once `outcomes` are read one by one.
    pub(super) const fn is_range(&self, reads_outcomes: bool) -> bool {
        self.detector.is_none()
            && self.buckets.is_empty()
            && self.key_prefix.is_none()
            && self.labels.is_empty()
            && (reads_outcomes || self.outcomes.is_empty())
            && (self.revised_since.is_none() || (self.since.is_none() && self.until.is_none()))
    }

    /// The first place and the place behind the last one, in the order of `decided_at`, or of `judged_at` for verdicts
    /// that were revised.
    pub(super) fn range(&self) -> (Position, Position) {
        let (from, to) = match self.revised_since {
            Some(since) => (Some(since), self.revised_until),
            None => (self.since, self.until),
        };
        let start = |at: OffsetDateTime| Position { at, id: Uuid::nil() };
        (start(from.unwrap_or(FIRST_TIME)), start(to.unwrap_or(LAST_TIME)))
    }
}

/// No verdict is older.
const FIRST_TIME: OffsetDateTime = time::macros::datetime!(0001-01-01 00:00 UTC);
/// No verdict is younger.
const LAST_TIME: OffsetDateTime = time::macros::datetime!(9999-12-31 00:00 UTC);

/// A place in the order of verdicts, by time and id. Reading begins with the verdict at this place or the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub at: OffsetDateTime,
    pub id: Uuid,
}

impl Position {
    /// The place behind a verdict. Both databases sort UUIDs by their bytes.
    pub(super) fn behind(at: OffsetDateTime, id: Uuid) -> Self {
        match id.as_u128().checked_add(1) {
            Some(next) => Self { at, id: Uuid::from_u128(next) },
            None => Self { at: at + time::Duration::MICROSECOND, id: Uuid::nil() },
        }
    }
}

/// A part of the selected verdicts.
#[derive(Debug, Clone, PartialEq)]
pub struct VerdictPage {
    /// May be empty although others follow: a page costs the same, however few verdicts are selected.
    pub verdicts: Vec<StoredVerdict>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<Position>,
}

impl VerdictPage {
    /// Sorts verdicts of several indexes, of each the first `limit`, and keeps the first `limit` of all.
    pub(super) fn cut(mut self, filter: &VerdictFilter, limit: u32) -> Self {
        let at = |stored: &StoredVerdict| match filter.revised_since {
            Some(_) => stored.revision.judged_at,
            None => stored.verdict.decided_at,
        };
        self.verdicts.sort_by_key(|stored| (at(stored), stored.verdict.id));
        let limit = limit as usize;
        if let Some(last) = limit.checked_sub(1).and_then(|last| self.verdicts.get(last)) {
            self.next = Some(Position::behind(at(last), last.verdict.id));
        }
        self.verdicts.truncate(limit);
        self
    }
}

/// What became of a part of the verdicts that may be pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunedPage {
    /// The number of verdicts.
    pub verdicts: u64,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<Position>,
}

/// The state of an event in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    pub event_id: Uuid,
    pub routing_key: String,
    pub created_at: OffsetDateTime,
    /// When the broker confirmed the event.
    pub published_at: Option<OffsetDateTime>,
    /// How often the sweeper has tried to publish it.
    pub tries: i32,
    /// Why the last try failed.
    pub last_error: Option<String>,
}

/// The verdicts that are stored.
#[async_trait]
pub trait Archive: Send + Sync {
    /// The verdict of this id.
    async fn read_verdict(&self, id: Uuid) -> Result<Option<StoredVerdict>, LedgerError>;

    /// Up to `limit` verdicts on an image in any version, the latest first.
    async fn verdicts_on_image(&self, image: &ImageRef, limit: u32) -> Result<Vec<StoredVerdict>, LedgerError>;

    /// Up to `limit` verdicts on content of this SHA-256, the latest first. No index serves this: it takes time in
    /// proportion to the number of all verdicts.
    async fn verdicts_on_content(&self, sha256: [u8; 32], limit: u32) -> Result<Vec<StoredVerdict>, LedgerError>;

    /// Up to `limit` verdicts that scored content of this SHA-256 themselves, the latest first.
    async fn verdicts_that_scored(&self, sha256: [u8; 32], limit: u32) -> Result<Vec<StoredVerdict>, LedgerError>;

    /// The earlier states of a verdict, oldest first.
    async fn earlier_states(&self, verdict: Uuid) -> Result<Vec<EarlierState>, LedgerError>;

    /// The canonical text of a policy, if a process of this ledger has judged by it.
    async fn read_policy(&self, sha256: &str) -> Result<Option<String>, LedgerError>;

    /// The events of a verdict that are still in the outbox, oldest first.
    async fn outbox_rows(&self, verdict: Uuid) -> Result<Vec<OutboxRow>, LedgerError>;

    /// Up to `limit` selected verdicts from a place on, or from the first. They are ordered by `decided_at` and id, or
    /// with `revised_since` by `judged_at` and id. Reading page after page to the end returns every verdict that was there
    /// at the beginning exactly once.
    async fn page_of_verdicts(
        &self,
        filter: &VerdictFilter,
        from: Option<Position>,
        limit: u32,
    ) -> Result<VerdictPage, LedgerError>;

    /// Counts selected verdicts that may be pruned: those without an unpublished event and under no hold.
    async fn count_prunable(&self, filter: &VerdictFilter, from: Option<Position>) -> Result<PrunedPage, LedgerError>;

    /// Counts selected verdicts that may not be pruned yet, for this reason.
    async fn count_unprunable(
        &self,
        filter: &VerdictFilter,
        from: Option<Position>,
        kept_by: KeptBy,
    ) -> Result<PrunedPage, LedgerError>;

    /// Deletes verdicts that may be pruned with their history and events, oldest first, and at most `limit`.
    async fn delete_prunable(
        &self,
        filter: &VerdictFilter,
        from: Option<Position>,
        limit: u32,
    ) -> Result<PrunedPage, LedgerError>;

    /// Revises verdicts by another policy, all in one transaction or none. Returns how many were at the expected
    /// revision and have been changed.
    ///
    /// A judgement that changes nothing that people see (outcome, reason, findings) makes no revision: then only the policy
    /// of the verdict changes. Findings are added where an earlier release recorded none.
    async fn rejudge(&self, changes: &[Revise]) -> Result<u64, LedgerError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_behind_a_verdict_is_before_every_later_one() {
        let at = OffsetDateTime::UNIX_EPOCH;
        let place = |id| Position { at, id: Uuid::from_u128(id) };
        assert!(Position::behind(at, Uuid::from_u128(7)) > place(7));
        assert!(Position::behind(at, Uuid::from_u128(7)) <= place(8));
        let last = Position::behind(at, Uuid::max());
        assert!(last > place(u128::MAX) && last.at > at, "{last:?}");
    }
}
