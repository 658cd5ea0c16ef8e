//! What a caller gives for a job, and how a job can end.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;

use super::health::Service;
use super::pictures::Pictures;
use crate::job::{ImageRef, Job, Lane, Verdict};
use crate::ledger::{DatabaseError, Event, LedgerError};
use crate::objects::{FetchError, Upload};
use crate::policy::ImageContext;
use crate::screen::ScreenError;
use crate::telemetry::metrics::labels::RetryCause;
use crate::telemetry::traces::TraceContext;

/// A job, and what its caller knows besides it.
#[derive(Debug)]
pub struct JobRequest {
    pub job: Job,
    pub lane: Lane,
    /// The image itself, where its sender has sent it instead of a reference.
    pub upload: Option<Upload>,
    /// Where the upload is kept, if its verdict allows that.
    pub keep_at: Option<ImageRef>,
    /// The id may have a verdict already, for instance because a caller tries again. Then the ledger is asked first.
    pub may_be_known: bool,
    /// Failed attempts after which the job is given up.
    pub max_attempts: u32,
    /// The caller shows pictures of what the detectors saw.
    pub wants_pictures: bool,
    /// For a replayed dead letter: the id of the verdict that it was written for.
    pub replayed_id: Option<String>,
    /// Attempts that have failed before.
    pub failed_attempts: u32,
    /// The records of the job's screening in the ledger.
    pub records: QuarantineRecords,
    /// A process had this job before and did not settle it: it returned the job, lost the broker, or died.
    pub is_redelivered: bool,
    pub received_at: OffsetDateTime,
    /// The same instant on the monotonic clock, for durations.
    pub arrived: Instant,
    /// Until when the job may wait for a broken dependency.
    pub deadline: Instant,
    pub correlation_id: Option<String>,
    pub trace: Option<TraceContext>,
}

impl JobRequest {
    /// What decides which policy judges the job.
    pub(super) fn context(&self) -> ImageContext<'_> {
        context(&self.job, self.lane)
    }
}

/// What decides which policy judges a job.
pub(super) fn context(job: &Job, lane: Lane) -> ImageContext<'_> {
    let Job { image, metadata, .. } = job;
    ImageContext { bucket: &image.bucket, key: &image.key, lane, metadata: metadata.as_ref() }
}

/// The ids under which the ledger has recorded that a redelivered job is screened. The records stay until the delivery is
/// settled: a process that dies before has not survived the job.
#[derive(Debug, Default)]
pub struct QuarantineRecords(Mutex<Vec<Uuid>>);

impl QuarantineRecords {
    pub(super) fn add(&self, id: Uuid) {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !ids.contains(&id) {
            ids.push(id);
        }
    }

    /// Returns the ids and forgets them.
    pub(super) fn take(&self) -> Vec<Uuid> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How a job ended for its caller.
#[derive(Debug)]
pub enum JobEnd {
    /// The verdict is committed: now, or by an earlier delivery with the same outcome. `revised_event` is set
    /// if it replaced a failed one, and is published or not. `new_event` is the event that the outbox holds since now.
    /// `pictures` are those that people may see; there are none where facts were reused.
    Committed {
        verdict: Box<Verdict>,
        revised_event: Option<Box<Event>>,
        new_event: Option<Box<Event>>,
        pictures: Pictures,
    },
    /// The earlier verdict of this id answers the job.
    AnsweredBefore(Uuid),
    /// The verdict on this content at this place was erased, and the job makes no new one. It would have had this id.
    Erased(Uuid),
    /// The job's id belongs to a job for another image.
    IdConflict,
    /// The attempt failed. A later one may succeed.
    AttemptFailed { failed_attempts: u32, reason: String },
    /// The process shuts down, or a dependency was broken for too long. The job itself was not tried.
    Interrupted,
    /// The store or the bucket is broken while others work. The job itself was not tried.
    Held(Held),
    /// The upload cannot be kept where the operator wants it, so that no verdict was committed.
    NotKept,
    /// The ledger keeps no row for this job: it refuses every row, or it has one of the same id for another state of the
    /// object.
    Unrecorded { reason: String },
}

/// Why and for how long the jobs of a store or a bucket wait already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub reason: String,
    pub duration: Duration,
}

/// Why an attempt has no verdict.
#[derive(Debug)]
pub enum AttemptError {
    /// Something that many jobs need is broken. This does not count as a failed attempt.
    Broken(BrokenService),
    /// Intake is paused because something is broken. This does not count as a failed attempt.
    Paused,
    /// The store is known to be down, or the bucket is held. This does not count as a failed attempt.
    Held(Held),
    /// This attempt failed. Another one may succeed.
    Failed(AttemptFailure),
    /// The process drains, or has to end.
    ShuttingDown,
}

/// A broken service, with the error of the call that failed.
#[derive(Debug, thiserror::Error)]
pub enum BrokenService {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("{error}")]
    Store {
        address: String,
        #[source]
        error: Box<FetchError>,
    },
}

impl BrokenService {
    pub(super) fn service(&self) -> Service {
        match self {
            Self::Ledger(_) => Service::Ledger,
            Self::Store { address, .. } => Service::Store(address.clone()),
        }
    }
}

/// What made an attempt fail.
#[derive(Debug, thiserror::Error)]
pub enum AttemptFailure {
    /// The object cannot be fetched, while others can.
    #[error(transparent)]
    Object(Box<FetchError>),
    /// No decoder process could be started.
    #[error(transparent)]
    Decoder(ScreenError),
    /// The model cannot run this image, while it runs others.
    #[error(transparent)]
    Session(ScreenError),
    /// The ledger refuses a call for this job, while it accepts others.
    #[error(transparent)]
    Ledger(DatabaseError),
    /// The program panicked.
    #[error("the program panicked while it processed the job")]
    Panic,
}

impl AttemptFailure {
    /// The label in metrics.
    #[must_use]
    pub const fn label(&self) -> RetryCause {
        match self {
            Self::Object(_) => RetryCause::Object,
            Self::Decoder(_) => RetryCause::Decoder,
            Self::Session(_) => RetryCause::Session,
            Self::Ledger(_) => RetryCause::Ledger,
            Self::Panic => RetryCause::Panic,
        }
    }
}

impl From<ScreenError> for AttemptError {
    fn from(error: ScreenError) -> Self {
        match error {
            // The process ends because its session is broken. Another process takes the job.
            ScreenError::SessionBroken { .. } => Self::ShuttingDown,
            ScreenError::SessionFailed { .. } => Self::Failed(AttemptFailure::Session(error)),
            ScreenError::DecoderUnavailable(_) | ScreenError::Undecodable(_) => {
                Self::Failed(AttemptFailure::Decoder(error))
            }
        }
    }
}
