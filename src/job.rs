//! The terms that all modules share: the job, the image, the outcome, the verdict and its event.
//!
//! Nothing in here names a broker, a store or a database.

mod bank;
mod content;
pub mod event;
mod facts;
mod finding;
pub mod forms;
mod hash;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

pub use bank::{BankAnswer, BankAnswers, BankKind, BankMatch, KnownHash, MatchedBy, is_bank_name};
pub use content::{ContentDigests, ContentHasher};
pub use facts::{Background, Facts, Scores, View, Views, exact, exact_scores};
pub use finding::{DAMAGE, Finding, FindingOutcome, FindingSource, bank_rule_text, rule_text};
pub use hash::{Pdq, ViewHash};

/// Namespace of every UUIDv5 that Pixwarden derives. It never changes: verdict ids and event ids depend on it.
const NAMESPACE: Uuid = Uuid::from_u128(0x8f4d_9e52_6c0b_4a39_9d8e_5b1f_70c3_a2e6);

/// The version id that a store gives to an object which was written without versioning. The next such object of the key
/// replaces it under the same version id.
pub const NULL_VERSION: &str = "null";

/// The bucket of images that were sent themselves, and not as a reference. Their key is the SHA-256 of their content. No
/// store has a bucket of this name.
pub const INLINE_BUCKET: &str = "inline:sha256";

/// The two queues of jobs. Uploads go before the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Uploads as they arrive.
    Live,
    /// Images of an archive; live jobs go first.
    Backfill,
}

impl Lane {
    /// Both lanes, the urgent one first.
    pub const ALL: [Self; 2] = [Self::Live, Self::Backfill];

    /// The routing key of the lane, and the value of the ledger's `lane` column.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Backfill => "backfill",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reference to one object. A key is opaque: it is never decoded, normalised or split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// Checked against the allow-list before anything is fetched.
    pub bucket: String,
    pub key: String,
    /// The version to fetch, or the one that was fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// The ETag that the object must have, or the ETag of the fetched object. Without the quotes of the HTTP header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl ImageRef {
    /// Parses `s3://bucket/key`. Everything behind the slash is the key. It is not percent-decoded.
    #[must_use]
    pub fn from_uri(uri: &str) -> Option<Self> {
        let (bucket, key) = uri.strip_prefix("s3://")?.split_once('/')?;
        if bucket.is_empty() || key.is_empty() {
            return None;
        }
        Some(Self { bucket: bucket.to_owned(), key: key.to_owned(), version_id: None, etag: None })
    }

    /// The version, where it names one state of the object.
    #[must_use]
    pub fn named_version(&self) -> Option<&str> {
        self.version_id.as_deref().filter(|version| *version != NULL_VERSION)
    }

    /// `s3://bucket/key`
    #[must_use]
    pub fn uri(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    /// The URI, or the path of a scanned file, which has no bucket.
    #[must_use]
    pub fn uri_or_path(&self) -> String {
        if self.bucket.is_empty() { self.key.clone() } else { self.uri() }
    }
}

/// The removal of an object, as a store announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub bucket: String,
    pub key: String,
    /// The version that was removed. `None` for every version that was there.
    pub version_id: Option<String>,
    pub at: OffsetDateTime,
}

impl Removal {
    /// Whether a version was removed that has a name of its own. The version `null` may be replaced.
    #[must_use]
    pub fn names_version(&self) -> bool {
        self.version_id.as_deref().is_some_and(|version| version != NULL_VERSION)
    }
}

/// The source of a job's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// Given by the sender, in the body or as the AMQP `message_id`.
    Given(String),
    /// Derived from the image and the detectors, so that two messages about the same upload are one job.
    Derived {
        /// The sequencer of the S3 event. Used where neither version id nor `ETag` is known.
        sequencer: Option<String>,
    },
}

/// One image to screen, as requested by the sender.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub identity: Identity,
    pub image: ImageRef,
    /// The requested detectors. `None` means all configured detectors.
    pub detectors: Option<Vec<String>>,
    /// Copied to the verdict and the event. It is never interpreted.
    pub metadata: Option<serde_json::Value>,
}

impl Job {
    /// The job's id. A derived id depends on bucket, key, the state of the object and the digests of the detectors; the state
    /// is the version, else the `ETag`, else the sequencer.
    #[must_use]
    pub fn id(&self, fetched_etag: Option<&str>, digests: &Digests) -> String {
        let sequencer = match &self.identity {
            Identity::Given(id) => return id.clone(),
            Identity::Derived { sequencer } => sequencer.as_deref(),
        };
        let state = match (self.image.named_version(), self.image.etag.as_deref().or(fetched_etag), sequencer) {
            (Some(version), _, _) => ("version", version),
            (None, Some(etag), _) => ("etag", etag),
            (None, None, Some(sequencer)) => ("sequencer", sequencer),
            (None, None, None) => ("unknown", ""),
        };
        derived_id(&serde_json::json!([self.image.bucket, self.image.key, state.0, state.1, digests]))
    }

    /// Whether the sender gave the id.
    #[must_use]
    pub const fn has_given_id(&self) -> bool {
        matches!(self.identity, Identity::Given(_))
    }

    /// Whether the id is known before the object is fetched.
    #[must_use]
    pub fn id_is_known(&self) -> bool {
        match &self.identity {
            Identity::Given(_) => true,
            Identity::Derived { .. } => self.image.named_version().is_some() || self.image.etag.is_some(),
        }
    }
}

/// The id of a job without a given id: the UUIDv5 of a JSON array. As JSON, two different inputs never have the same bytes.
#[must_use]
pub fn derived_id(inputs: &serde_json::Value) -> String {
    Uuid::new_v5(&NAMESPACE, inputs.to_string().as_bytes()).to_string()
}

/// The primary key of a job's verdict.
#[must_use]
pub fn verdict_id(job_id: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, job_id.as_bytes())
}

/// The id of a verdict's event. It is stable over redeliveries.
#[must_use]
pub fn event_id(verdict: Uuid, outcome: Outcome) -> Uuid {
    Uuid::new_v5(&verdict, outcome.as_str().as_bytes())
}

/// The id of the event of revision 2 or later. `judged_at` is taken in microseconds, as the ledger stores it: an outcome
/// that a verdict had before is announced under a new id.
#[must_use]
pub fn revised_event_id(verdict: Uuid, revision: u32, judged_at: OffsetDateTime) -> Uuid {
    let name = serde_json::json!([revision, judged_at.unix_timestamp_nanos().div_euclid(1_000).to_string()]);
    Uuid::new_v5(&verdict, name.to_string().as_bytes())
}

/// Detector name to the digest of everything that determines its scores.
pub type Digests = BTreeMap<String, String>;

/// How a job ended. Every job has exactly one outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// No rule asks for more than a note.
    Passed,
    /// A person should look.
    Review,
    /// The flagging threshold of a rule was reached.
    Flagged,
    /// Not an image, damaged, incomplete, or larger than the decode limits.
    Undecodable,
    /// There is no such object or version, or it has changed since the job was made.
    Missing,
    /// The bucket is not allowed, the object is too large, or a requested detector is unknown.
    Rejected,
    /// All attempts failed, or the scores are not numbers.
    Failed,
}

impl Outcome {
    pub const ALL: [Self; 7] =
        [Self::Passed, Self::Review, Self::Flagged, Self::Undecodable, Self::Missing, Self::Rejected, Self::Failed];

    /// The name in the ledger, in events and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Review => "review",
            Self::Flagged => "flagged",
            Self::Undecodable => "undecodable",
            Self::Missing => "missing",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
        }
    }

    /// The inverse of [`Outcome::as_str`].
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }

    /// The routing key of the event. All outcomes without screening share one.
    #[must_use]
    pub const fn routing_key(self) -> &'static str {
        match self {
            Self::Passed => "image.passed",
            Self::Review => "image.review",
            Self::Flagged => "image.flagged",
            Self::Undecodable | Self::Missing | Self::Rejected | Self::Failed => "image.failed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An outcome with its reason and findings. Label and score are those of the first finding; without a finding, those that
/// came closest to one.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    pub outcome: Outcome,
    /// One line. `None` only for [`Outcome::Passed`].
    pub reason: Option<String>,
    pub label: Option<String>,
    pub score: Option<f32>,
    /// The rules that were reached, the strongest first. Judgements of earlier releases have none.
    pub findings: Vec<Finding>,
}

impl Judgement {
    /// An outcome that does not depend on scores.
    pub fn unscored(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self { outcome, reason: Some(reason.into()), label: None, score: None, findings: Vec::new() }
    }

    /// Whether a client may show the image.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.outcome == Outcome::Passed
    }

    /// Whether something is to be labelled or disclosed. What a person has cleared is not.
    #[must_use]
    pub fn has_notes(&self) -> bool {
        let is_note =
            |finding: &Finding| finding.outcome == FindingOutcome::Noted && finding.source != FindingSource::Decision;
        self.findings.iter().any(is_note)
    }

    /// Whether no picture of the image may be shown.
    #[must_use]
    pub fn is_restricted(&self) -> bool {
        self.findings.iter().any(|finding| finding.restricted)
    }

    /// Restricts what these banks have found.
    pub(crate) fn restrict(&mut self, banks: &BTreeSet<String>) {
        let of_banks = |finding: &&mut Finding| finding.bank.as_ref().is_some_and(|bank| banks.contains(bank));
        self.findings.iter_mut().filter(of_banks).for_each(|finding| finding.restricted = true);
    }

    /// Whether both say the same of an image: the same outcome, and the same findings. Scores and thresholds may differ.
    #[must_use]
    pub fn says_same_as(&self, earlier: &Self) -> bool {
        let same = |(now, before): (&Finding, &Finding)| now.says_same_as(before);
        self.outcome == earlier.outcome
            && (earlier.is_of_earlier_release()
                || (self.findings.len() == earlier.findings.len()
                    && self.findings.iter().zip(&earlier.findings).all(same)))
    }

    /// Whether both look the same to people, with the same scores and thresholds. Label and score of an image that passes
    /// without a finding do not count: they only name the rule that was closest.
    #[must_use]
    pub fn looks_as(&self, earlier: &Self) -> bool {
        let passes_silently = |judgement: &Self| judgement.outcome == Outcome::Passed && judgement.findings.is_empty();
        self == earlier
            || (passes_silently(self) && passes_silently(earlier))
            || (earlier.is_of_earlier_release() && *earlier == Self { findings: Vec::new(), ..self.clone() })
    }

    /// Earlier releases recorded no findings. Whatever did not pass has one since.
    fn is_of_earlier_release(&self) -> bool {
        self.findings.is_empty() && self.outcome != Outcome::Passed
    }
}

/// What the decoder found out about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Determined from the content, not from the name.
    pub format: &'static str,
    /// In pixels, after applying the orientation.
    pub width: u32,
    /// In pixels, after applying the orientation.
    pub height: u32,
    /// 1 for a still image.
    pub frames: u32,
}

/// The names of formats in the ledger and in `scan`.
const FORMATS: [&str; 11] = ["jpeg", "png", "webp", "gif", "bmp", "tiff", "ico", "cur", "avif", "jxl", "heic"];

/// The format with this name.
#[must_use]
pub fn format_name(name: &str) -> Option<&'static str> {
    FORMATS.into_iter().find(|format| *format == name)
}

/// The name and digest of the policy that judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRef {
    pub name: String,
    /// SHA-256 over its rules, hexadecimal.
    pub sha256: String,
    /// The version of each bank that was asked, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub banks: BTreeMap<String, i64>,
}

impl PolicyRef {
    /// A policy that asks no bank, or has asked none yet.
    #[must_use]
    pub fn new(name: &str, sha256: impl Into<String>) -> Self {
        Self { name: name.into(), sha256: sha256.into(), banks: BTreeMap::new() }
    }

    /// The policy after it has asked banks.
    #[must_use]
    pub fn with_banks(&self, answers: &BankAnswers) -> Self {
        let banks = answers.iter().map(|(bank, answer)| (bank.clone(), answer.version)).collect();
        Self { banks, ..self.clone() }
    }
}

/// Why a verdict was revised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevisionCause {
    /// A later delivery of the job succeeded.
    Replayed,
    /// Another policy judged the stored facts.
    Rejudged,
    /// A bank of known images changed.
    Matched,
    /// A person decided.
    Decided,
    /// The decision on equal content was taken over.
    Carried,
}

impl RevisionCause {
    pub const ALL: [Self; 5] = [Self::Replayed, Self::Rejudged, Self::Matched, Self::Decided, Self::Carried];

    /// The word in the ledger and in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::Rejudged => "rejudged",
            Self::Matched => "matched",
            Self::Decided => "decided",
            Self::Carried => "carried",
        }
    }

    /// The inverse of [`RevisionCause::as_str`].
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == word)
    }
}

/// One judgement among those that a verdict has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    /// 1 for the first judgement; each later one adds 1.
    pub number: u32,
    /// `None` for the first judgement.
    pub cause: Option<RevisionCause>,
    /// By the database's clock; for the first judgement the verdict's `decided_at`.
    pub judged_at: OffsetDateTime,
}

/// The durable record of one job.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// UUIDv5 of the job id.
    pub id: Uuid,
    pub job_id: String,
    pub lane: Lane,
    /// The image, with version and `ETag` as fetched.
    pub image: ImageRef,
    /// When the object was last modified, as the store says.
    pub object_at: Option<OffsetDateTime>,
    /// SHA-256 of the whole object.
    pub sha256: Option<[u8; 32]>,
    /// MD5 of the whole object. `None` in verdicts of earlier releases.
    pub md5: Option<[u8; 16]>,
    pub bytes: Option<u64>,
    /// `None` if the image was not decoded.
    pub seen: Option<ImageInfo>,
    pub judgement: Judgement,
    /// `None` if the image was not scored.
    pub facts: Option<Facts>,
    pub detectors: Digests,
    pub policy: PolicyRef,
    pub metadata: Option<serde_json::Value>,
    /// The verdict whose facts were reused because the content is equal.
    pub reused_from: Option<Uuid>,
    /// Attempts, including this one.
    pub attempts: u32,
    pub received_at: OffsetDateTime,
    /// When revision 1 was judged.
    pub decided_at: OffsetDateTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(identity: Identity, image: ImageRef) -> Job {
        Job { identity, image, detectors: None, metadata: None }
    }

    #[test]
    fn a_key_is_taken_byte_for_byte() {
        let image = ImageRef::from_uri("s3://uploads/a%20b+c/ü?.jpg").unwrap();
        assert_eq!((image.bucket.as_str(), image.key.as_str()), ("uploads", "a%20b+c/ü?.jpg"));
        assert_eq!(image.uri(), "s3://uploads/a%20b+c/ü?.jpg");
        for bad in ["uploads/a.jpg", "s3://uploads", "s3://uploads/", "s3:///a.jpg", "https://x/y"] {
            assert_eq!(ImageRef::from_uri(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_derived_id_depends_on_image_state_and_detectors() {
        let digests = Digests::from([("d".to_owned(), "1".to_owned())]);
        let image = ImageRef::from_uri("s3://b/k").unwrap();
        let derived = job(Identity::Derived { sequencer: None }, image.clone());
        let id = derived.id(Some("e1"), &digests);
        assert_eq!(id, derived.id(Some("e1"), &digests));
        assert_ne!(id, derived.id(Some("e2"), &digests), "another state of the object");
        assert_ne!(id, derived.id(Some("e1"), &Digests::new()), "other detectors");
        let announced =
            job(Identity::Derived { sequencer: None }, ImageRef { etag: Some("e1".into()), ..image.clone() });
        assert_eq!(id, announced.id(None, &digests), "an ETag announced or fetched is the same state");
        let unversioned = |etag: &str| {
            let image = ImageRef { version_id: Some("null".into()), etag: Some(etag.into()), ..image.clone() };
            job(Identity::Derived { sequencer: None }, image).id(None, &digests)
        };
        assert_ne!(unversioned("e1"), unversioned("e2"), "the version \"null\" is the same for every upload");
        assert_eq!(job(Identity::Given("x".into()), image.clone()).id(Some("e1"), &digests), "x");
    }

    #[test]
    fn ids_never_change_between_releases() {
        let id = verdict_id("order-1");
        assert_eq!(id.to_string(), "96344c7c-91a3-55e7-816c-5946199e66f1");
        assert_ne!(event_id(id, Outcome::Flagged), event_id(id, Outcome::Failed));
        let judged_at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap();
        let revised = revised_event_id(id, 2, judged_at);
        assert_eq!(revised.to_string(), "544708bb-6887-5e3d-bec6-b16098be2388");
        let stored = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap();
        assert_eq!(revised, revised_event_id(id, 2, stored), "the ledger keeps microseconds");
        assert_ne!(revised, revised_event_id(id, 3, stored));
    }
}
