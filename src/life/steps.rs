//! The steps of a job as types, so that no step can be skipped: identified, fetched, screened, judged.
//!
//! `scan` takes the same steps for a file: it makes its own object facts, and shares screening, judging and the verdict.

use bytes::Bytes;
use time::OffsetDateTime;
use uuid::Uuid;

use super::pictures::{Pictures, is_restricted};
use super::request::{AttemptError, JobEnd, JobRequest};
use crate::banks::{AskedImage, CurrentBanks};
use crate::config::{DecodeConfig, LedgerConfig};
use crate::job::{
    BankAnswers, Digests, Facts, ImageInfo, ImageRef, Judgement, Lane, Outcome, PolicyRef, Verdict, verdict_id,
};
use crate::lanes::Permit;
use crate::ledger::{ExistingVerdict, Ledger, LedgerError};
use crate::objects::{FetchedObject, Upload};
use crate::policy::{Policy, judge};
use crate::screen::{Screen, ScreenError, SeenView, decode};

/// Why an attempt stops before its last step.
pub(super) enum Stop {
    /// The outcome is known early: rejected, missing, undecodable.
    Judged(Box<Judged>),
    /// The job ends without a new verdict.
    Ended(Box<JobEnd>),
    Failed(AttemptError),
    /// The job is a suspect and has to wait for its turn.
    Suspect,
}

/// A job with the detectors that screen it.
pub(super) struct Identified<'a> {
    pub request: &'a JobRequest,
    pub detectors: Digests,
    pub replayed: Option<Replayed>,
}

/// The verdict that a dead letter was written for, and that its replay may replace.
#[derive(Debug, Clone)]
pub(super) struct Replayed {
    pub job_id: String,
    pub earlier: ExistingVerdict,
}

impl Identified<'_> {
    /// The job's id. A derived id depends on the `ETag` that the object was fetched with. A replay keeps the id of its
    /// `failed` verdict, unless that is on another state of the object.
    pub(super) fn job_id(&self, fetched_etag: Option<&str>) -> String {
        match &self.replayed {
            Some(Replayed { job_id, earlier })
                if (earlier.outcome == Outcome::Failed && (fetched_etag.is_none() || earlier.image.etag.is_none()))
                    || (fetched_etag.is_some() && earlier.image.etag.as_deref() == fetched_etag) =>
            {
                job_id.clone()
            }
            _ => self.request.job.id(fetched_etag, &self.detectors),
        }
    }

    /// Whether the id is known before the object is fetched.
    pub(super) fn id_is_known(&self) -> bool {
        self.replayed.is_none() && self.request.job.id_is_known()
    }

    /// An outcome without scores.
    pub(super) fn judged(self, object: ObjectFacts, outcome: Outcome, reason: String) -> Judged {
        let job_id = self.job_id(object.etag.as_deref());
        Judged::unscored(job_id, self.detectors, object, outcome, reason)
    }

    pub(super) fn ends_as(self, object: ObjectFacts, outcome: Outcome, reason: String) -> Stop {
        Stop::Judged(Box::new(self.judged(object, outcome, reason)))
    }
}

/// What is known of an object itself, whatever it shows.
#[derive(Debug, Clone, Default)]
pub(crate) struct ObjectFacts {
    pub etag: Option<String>,
    pub version_id: Option<String>,
    /// When it was last modified.
    pub modified: Option<OffsetDateTime>,
    pub sha256: Option<[u8; 32]>,
    pub md5: Option<[u8; 16]>,
    pub bytes: Option<u64>,
}

impl ObjectFacts {
    /// What banks are asked about.
    pub(crate) fn asked(&self, facts: &Facts) -> AskedImage {
        AskedImage { sha256: self.sha256, md5: self.md5, hashes: facts.hashes.clone(), answered: Vec::new() }
    }

    pub(super) fn of_upload(upload: &Upload) -> Self {
        Self {
            sha256: Some(upload.digests.sha256),
            md5: Some(upload.digests.md5),
            bytes: Some(upload.length()),
            ..Self::default()
        }
    }

    pub(super) fn of(object: &FetchedObject) -> Self {
        Self {
            etag: object.etag.clone(),
            version_id: object.version_id.clone(),
            modified: object.modified,
            sha256: Some(object.digests.sha256),
            md5: Some(object.digests.md5),
            bytes: Some(object.bytes.len() as u64),
        }
    }
}

/// A job whose object is in memory. The bytes travel beside it, because decoding frees them.
pub(super) struct Fetched<'a> {
    pub identified: Identified<'a>,
    /// Final, now that the object's `ETag` is known.
    pub job_id: String,
    pub object: ObjectFacts,
    /// The job's place among the jobs in flight.
    pub _permit: Permit,
}

impl Fetched<'_> {
    pub(super) fn verdict_id(&self) -> Uuid {
        verdict_id(&self.job_id)
    }

    /// An outcome without scores.
    pub(super) fn ends_as(&self, outcome: Outcome, reason: String) -> Stop {
        let detectors = self.identified.detectors.clone();
        let judged = Judged::unscored(self.job_id.clone(), detectors, self.object.clone(), outcome, reason);
        Stop::Judged(Box::new(judged))
    }
}

/// An image with its facts, which no policy has judged yet.
pub(crate) struct Screened {
    pub image: ImageInfo,
    pub facts: Facts,
    /// The verdict whose facts were reused.
    pub reused_from: Option<Uuid>,
    /// What the detectors were given; empty where facts were reused. It may be shown only
    /// once it is known that the image is not restricted: see [`Pictures`].
    seen: Vec<SeenView>,
}

/// Finds the facts of equal content by the same detectors. Any policy may judge them; see [`crate::ledger::Verdicts::find_facts`]
/// for what earlier releases stored.
///
/// # Errors
/// When the ledger fails.
pub(crate) async fn find_reusable(
    ledger: &dyn Ledger,
    policy: &Policy,
    limits: &DecodeConfig,
    object: &ObjectFacts,
    detectors: &Digests,
) -> Result<Option<Screened>, LedgerError> {
    let Some(sha256) = object.sha256 else { return Ok(None) };
    let earlier = ledger.find_facts(sha256, detectors, &policy.reference.sha256).await?;
    // The earlier verdict may have been made under wider limits.
    let earlier = earlier.filter(|earlier| decode::is_within_limits(limits, earlier.seen));
    // Facts are reused together, and only where the policy needs no other one.
    let asks_banks = policy.bank_rules().next().is_some();
    let earlier = earlier.filter(|earlier| !asks_banks || earlier.facts.hashes.is_some());
    Ok(earlier.map(|earlier| Screened {
        image: earlier.seen,
        facts: earlier.facts,
        reused_from: Some(earlier.verdict),
        seen: Vec::new(),
    }))
}

/// Decodes and scores an image.
///
/// # Errors
/// When it cannot be decoded or scored.
pub(crate) async fn screen(
    screen: &Screen,
    lane: Lane,
    bytes: Bytes,
    detectors: &Digests,
) -> Result<Screened, ScreenError> {
    let image = screen.screen_image(lane, bytes, detectors).await?;
    Ok(Screened { image: image.info, facts: image.facts, reused_from: None, seen: image.seen })
}

/// An image with its outcome: everything that a verdict records about the image itself.
pub(crate) struct Judged {
    pub job_id: String,
    pub detectors: Digests,
    pub object: ObjectFacts,
    pub image: Option<ImageInfo>,
    pub facts: Option<Facts>,
    pub reused_from: Option<Uuid>,
    pub judgement: Judgement,
    pub pictures: Pictures,
    /// What was asked of the policy's banks.
    banks: BankAnswers,
}

impl Judged {
    /// An outcome without scores.
    pub(crate) fn unscored(
        job_id: String,
        detectors: Digests,
        object: ObjectFacts,
        outcome: Outcome,
        reason: String,
    ) -> Self {
        let judgement = Judgement::unscored(outcome, reason);
        let (pictures, banks) = (Pictures::default(), BankAnswers::new());
        Self { job_id, detectors, object, image: None, facts: None, reused_from: None, judgement, pictures, banks }
    }

    /// Applies the policy, with the answers of its banks.
    pub(crate) fn by_policy(
        policy: &Policy,
        banks: BankAnswers,
        job_id: String,
        detectors: Digests,
        object: ObjectFacts,
        screened: Screened,
    ) -> Self {
        let Screened { image, facts, reused_from, seen } = screened;
        let judgement = judge::judge(policy, &facts, &banks);
        let pictures = Pictures::of(seen, &banks);
        // Scores that are not probabilities fail the job, and are not worth storing.
        let facts = Some(facts).filter(|_| judgement.outcome != Outcome::Failed);
        Self { job_id, detectors, object, image: Some(image), facts, reused_from, judgement, pictures, banks }
    }

    /// The same file as the banks of the policy know it by its bytes alone: what shows nothing may be denied.
    pub(crate) async fn known_by(self, policy: &Policy, banks: &CurrentBanks) -> Self {
        if self.judgement.outcome != Outcome::Undecodable || self.facts.is_some() {
            return self;
        }
        let ObjectFacts { sha256, md5, .. } = self.object;
        let banks = banks.answers(policy, &AskedImage { sha256, md5, ..AskedImage::default() }).await;
        let known = judge::judge_unscreened(policy, &banks, &[]);
        Self { judgement: known.unwrap_or(self.judgement), banks, ..self }
    }

    /// Whether the bytes may be stored: people can look into what was screened. What shows nothing is of no use to them, and
    /// what a restricted bank knows must not be spread.
    pub(crate) fn may_be_kept(&self) -> bool {
        self.facts.is_some() && !self.judgement.is_restricted() && !is_restricted(&self.banks)
    }

    /// The verdict, decided now.
    pub(crate) fn into_verdict(self, record: Record) -> Verdict {
        let mut image = record.image;
        image.etag = self.object.etag.or(image.etag);
        image.version_id = self.object.version_id.or(image.version_id);
        Verdict {
            id: verdict_id(&self.job_id),
            job_id: self.job_id,
            lane: record.lane,
            image,
            object_at: self.object.modified,
            sha256: self.object.sha256,
            md5: self.object.md5,
            bytes: self.object.bytes,
            seen: self.image,
            judgement: self.judgement,
            facts: self.facts,
            detectors: self.detectors,
            policy: record.policy.with_banks(&self.banks),
            metadata: record.metadata,
            reused_from: self.reused_from,
            attempts: record.attempts,
            received_at: record.received_at,
            decided_at: OffsetDateTime::now_utc(),
        }
    }
}

/// What a verdict records about its job.
pub(crate) struct Record {
    pub lane: Lane,
    pub image: ImageRef,
    pub policy: PolicyRef,
    pub metadata: Option<serde_json::Value>,
    pub attempts: u32,
    pub received_at: OffsetDateTime,
}

impl Record {
    pub(super) fn of(request: &JobRequest, policy: &Policy, ledger: &LedgerConfig) -> Self {
        Self {
            lane: request.lane,
            image: request.job.image.clone(),
            policy: policy.reference.clone(),
            metadata: ledger.kept(request.job.metadata.as_ref()),
            attempts: request.failed_attempts.saturating_add(1),
            received_at: request.received_at,
        }
    }
}
