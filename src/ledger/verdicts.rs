//! The two writers of verdicts, and the look-ups that a worker needs.
//!
//! [`Verdicts::insert`] writes first judgements and never changes a row: it is the hot path. [`Verdicts::revise`] writes
//! every later judgement.

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{DatabaseError, Event, LedgerError};
use crate::job::{Digests, Facts, ImageInfo, ImageRef, Judgement, Outcome, Removal, Revision, RevisionCause, Verdict};

/// A first judgement, with the event that announces it.
#[derive(Debug, Clone)]
pub struct NewVerdict {
    pub verdict: Verdict,
    /// `None` where this outcome is announced nowhere.
    pub event: Option<Event>,
}

/// The result of inserting one verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// The row was written.
    Written {
        /// Written with it; the payload is exactly what the outbox holds. `None` where the outbox has no event.
        event: Option<Event>,
        /// Whether a person may have decided about equal bytes. Few verdicts are, so that the others cost no further question.
        may_be_decided: bool,
    },
    /// A verdict of this id existed and stays as it is.
    Existing(ExistingVerdict),
    /// Nothing was written: the verdict on this content at this place was erased.
    Erased,
}

/// What a worker needs of a verdict that existed before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExistingVerdict {
    pub image: ImageRef,
    pub outcome: Outcome,
    pub revision: u32,
    /// When revision 1 was judged.
    pub decided_at: OffsetDateTime,
}

impl ExistingVerdict {
    /// Whether this verdict answers a job for `image`. A job that names no version and no `ETag` means every version.
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

/// The facts of an earlier verdict on the same content by the same detectors.
#[derive(Debug, Clone, PartialEq)]
pub struct ReusableFacts {
    /// The verdict that the facts were found for.
    pub verdict: Uuid,
    pub seen: ImageInfo,
    pub facts: Facts,
}

/// A later judgement of a verdict.
#[derive(Debug, Clone)]
pub struct Revise {
    /// The new state. A replay screened the image once more and replaces all columns but `received_at` and
    /// `decided_at`; every other cause judges stored facts, and replaces only the judgement and the policy.
    pub verdict: Verdict,
    /// The revision that the new one follows; if the verdict has another one by now, nothing is written.
    pub expected_revision: u32,
    pub cause: RevisionCause,
    /// From [`Verdicts::now`], called after `expected_revision` was read, so that the times of revisions never
    /// go back.
    pub judged_at: OffsetDateTime,
    /// The event of the new revision, where the change is announced.
    pub event: Option<Event>,
}

impl Revise {
    /// The revision that this makes.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        Revision { number: self.expected_revision + 1, cause: Some(self.cause), judged_at: self.judged_at }
    }

    /// Whether the image passes, so that an unpublished `image.cleared` of an earlier revision still holds: the image may be
    /// hidden, and only that event puts it back.
    pub(super) fn keeps_cleared(&self) -> bool {
        self.verdict.judgement.allows()
    }

    /// Where the unsent events of earlier revisions must not be sent any more: they say something else, or this event
    /// replaces them there. Without either, the earlier event still holds.
    pub(super) fn stale_events(&self, earlier: &Judgement) -> StaleEvents {
        let says_other = !self.verdict.judgement.says_same_as(earlier);
        let replaces = |is_sent: fn(&Event) -> bool| self.event.as_ref().is_some_and(is_sent);
        StaleEvents {
            in_outbox: says_other || replaces(|event| event.destinations.is_published),
            of_webhooks: says_other || replaces(|event| !event.destinations.webhooks.is_empty()),
        }
    }
}

/// Where the unsent events of the earlier revisions of a verdict are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StaleEvents {
    pub in_outbox: bool,
    pub of_webhooks: bool,
}

/// The result of revising a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revised {
    /// The new state was written together with this event, whose payload is exactly what the outbox holds.
    Written { revision: u32, event: Option<Event> },
    /// The verdict is not at the expected revision. This is its state now.
    Stale(ExistingVerdict),
    /// There is no verdict of this id.
    Missing,
    /// A replay has fetched content that was erased at this place. The verdict stays as it is.
    Erased,
}

/// Verdicts, as a worker writes and finds them.
#[async_trait]
pub trait Verdicts: Send + Sync {
    /// What exists of the verdict of this id.
    async fn find_verdict(&self, id: Uuid) -> Result<Option<ExistingVerdict>, LedgerError>;

    /// What was found out about content of this SHA-256 by exactly these detectors.
    ///
    /// Of an animated image, earlier releases stored the scores of one frame only, the most severe one under the policy of
    /// that day. Such facts are found only under the same policy.
    async fn find_facts(
        &self,
        sha256: [u8; 32],
        detectors: &Digests,
        policy_sha256: &str,
    ) -> Result<Option<ReusableFacts>, LedgerError>;

    /// Inserts all verdicts with their events in one transaction, or none; no two may have the same id. Existing rows
    /// are read back and never changed. What was erased is not written; see [`super::Erasure`]. Returns one result per verdict, in order.
    async fn insert(&self, verdicts: &[NewVerdict]) -> Result<Vec<Inserted>, LedgerError>;

    /// Keeps the canonical texts of policies, each with its SHA-256, so that a verdict can be explained years later.
    async fn record_policies(&self, policies: &[(String, String)]) -> Result<(), LedgerError>;

    /// The clock of the database, in microseconds as it is stored.
    ///
    /// The id of a revision's event and its payload contain `judged_at`. A caller that asks for the time first can
    /// build the event by itself, and [`Verdicts::revise`] needs no callback inside its transaction. The order of
    /// revisions holds all the same: see [`Revise::judged_at`].
    async fn now(&self) -> Result<OffsetDateTime, LedgerError>;

    /// Replaces the state of a verdict in one transaction: the earlier state goes into `verdict_history`, the new event
    /// into the outbox, and an unpublished event of an earlier revision is deleted if the new outcome or event makes it
    /// wrong.
    async fn revise(&self, revise: &Revise) -> Result<Revised, LedgerError>;

    /// Sets `deleted_at` of the verdicts on an object that was removed, where it is not set. An object that is newer than
    /// the removal stays as it is. Returns the number of verdicts.
    async fn mark_deleted(&self, removal: &Removal) -> Result<u64, LedgerError>;
}

/// Replaces a `failed` verdict by the verdict of a later delivery, if the failed one answers a job for `named`: the image as
/// the job names it. A `failed` verdict on another version of the key stays.
///
/// `existing` is what inserting `verdict` has found, and is returned unless it is a `failed` verdict that can be replaced.
/// `event` makes the event of the revision from its new state, where it is announced.
///
/// # Errors
/// As [`Verdicts::revise`]; also when the verdict was deleted meanwhile, and inserting it will succeed.
pub async fn replace_failed_verdict(
    ledger: &dyn Verdicts,
    verdict: &Verdict,
    named: &ImageRef,
    existing: ExistingVerdict,
    mut event: impl FnMut(&Verdict, &Revision) -> Option<Event> + Send,
) -> Result<Inserted, LedgerError> {
    let may_replace =
        existing.outcome == Outcome::Failed && verdict.judgement.outcome != Outcome::Failed && existing.answers(named);
    if !may_replace {
        return Ok(Inserted::Existing(existing));
    }
    let mut revise = Revise {
        // The ledger keeps the time of the first judgement, and so does the event.
        verdict: Verdict { decided_at: existing.decided_at, ..verdict.clone() },
        expected_revision: existing.revision,
        cause: RevisionCause::Replayed,
        judged_at: ledger.now().await?,
        event: None,
    };
    revise.event = event(&revise.verdict, &revise.revision());
    match ledger.revise(&revise).await? {
        Revised::Written { event, .. } => Ok(Inserted::Written { event, may_be_decided: true }),
        Revised::Stale(current) => Ok(Inserted::Existing(current)),
        Revised::Erased => Ok(Inserted::Erased),
        Revised::Missing => {
            Err(LedgerError::Down(DatabaseError::from(format!("verdict {} was deleted meanwhile", verdict.id))))
        }
    }
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
        let existing = ExistingVerdict {
            image: image(None, Some("e1")),
            outcome: Outcome::Passed,
            revision: 1,
            decided_at: OffsetDateTime::UNIX_EPOCH,
        };
        assert!(existing.answers(&image(None, None)));
        assert!(existing.answers(&image(None, Some("e1"))));
        assert!(!existing.answers(&image(None, Some("e2"))));
        assert!(!existing.answers(&ImageRef { key: "other".into(), ..image(None, None) }));
        assert!(!existing.answers(&ImageRef { bucket: "other".into(), ..image(None, None) }));
    }
}
