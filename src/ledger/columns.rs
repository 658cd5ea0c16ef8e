//! The columns of `verdicts`, listed once. Both databases make their statements of this list.
//!
//! A new nullable column needs a migration, a line in [`with_verdict_columns`], and its value in [`VerdictRow::of`] and
//! [`VerdictRow::into_verdict`].

use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

use super::{ExistingVerdict, ReusableFacts, StoredVerdict};
use crate::job::{
    self, Facts, Finding, ImageInfo, ImageRef, Judgement, Lane, Outcome, Revision, RevisionCause, Verdict, Views,
};

/// Calls `$callback` with all columns that the writers of verdicts set. Of each:
///
/// - the number of its parameter in the statements of Postgres, whose first ten parameters are those of the events, the
///   revision and the dictionaries (see `postgres/write.rs`);
/// - its name;
/// - its type in [`VerdictRow`], where UUIDs and JSON are text;
/// - how Postgres gets the values of many rows: `plain` as an array, or `(dictionary N)` as an array of indexes into the
///   few different values, which are parameter N;
/// - its type in Postgres;
/// - whether a replay writes it (`replaced`), or it describes the first judgement for ever (`kept`).
///
/// The columns of the revision are not in the list. No other column may be written for every verdict without a measurement
/// of what that costs a group commit (`tests/bench/parts`).
macro_rules! with_verdict_columns {
    ($callback:ident, $($argument:tt)*) => {
        $callback! {
            $($argument)*
            (11, id, String, plain, uuid, kept)
            (12, job_id, String, plain, text, kept)
            (13, lane, String, plain, text, replaced)
            (14, bucket, String, plain, text, kept)
            (15, key, String, plain, text, kept)
            (16, version_id, Option<String>, plain, text, replaced)
            (17, etag, Option<String>, plain, text, replaced)
            (18, sha256, Option<Vec<u8>>, plain, bytea, replaced)
            (19, bytes, Option<i64>, plain, bigint, replaced)
            (20, format, Option<String>, plain, text, replaced)
            (21, width, Option<i32>, plain, integer, replaced)
            (22, height, Option<i32>, plain, integer, replaced)
            (23, frames, Option<i32>, plain, integer, replaced)
            (24, outcome, String, plain, text, replaced)
            (25, reason, Option<String>, plain, text, replaced)
            (26, label, Option<String>, plain, text, replaced)
            (27, score, Option<f32>, plain, real, replaced)
            (28, scores, Option<String>, plain, jsonb, replaced)
            (29, detectors, String, (dictionary 9), jsonb, replaced)
            (30, policy, String, (dictionary 10), jsonb, replaced)
            (31, metadata, Option<String>, plain, jsonb, replaced)
            (32, reused_from, Option<String>, plain, uuid, replaced)
            (33, attempts, i32, plain, integer, replaced)
            (34, received_at, OffsetDateTime, plain, timestamptz, kept)
            (35, decided_at, OffsetDateTime, plain, timestamptz, kept)
            (36, findings, Option<String>, plain, jsonb, replaced)
            (37, views, Option<String>, plain, jsonb, replaced)
            (38, object_at, Option<OffsetDateTime>, plain, timestamptz, replaced)
            (39, damage, Option<String>, plain, text, replaced)
            (40, md5, Option<Vec<u8>>, plain, bytea, replaced)
            (41, hashes, Option<String>, plain, jsonb, replaced)
        }
    };
}

/// Makes [`VerdictRow`] and [`VERDICT_COLUMNS`].
macro_rules! define_row {
    ($(($number:literal, $name:ident, $type:ty, $transport:tt, $sql:ident, $revision:ident))*) => {
        /// A row of `verdicts`.
        pub(super) struct VerdictRow {
            $(pub $name: $type,)*
            /// Written by statements of their own.
            pub revision: i32,
            pub cause: Option<String>,
            /// Of the first judgement: `decided_at`.
            pub judged_at: OffsetDateTime,
            pub deleted_at: Option<OffsetDateTime>,
        }

        const COUNT: usize = [$(stringify!($name)),*].len();

        /// The names of the columns that a first judgement writes, in the order of the table.
        pub const VERDICT_COLUMNS: [&str; COUNT] = [$(stringify!($name)),*];
    };
}

with_verdict_columns!(define_row,);

/// A comma-separated list of `$item!` of each column, as a literal.
macro_rules! comma_separated {
    ($item:ident $first:tt $($rest:tt)*) => {
        concat!($item!($first) $(, ", ", $item!($rest))*)
    };
}

/// `bucket`
macro_rules! name {
    (($number:literal, $name:ident, $($rest:tt)*)) => {
        stringify!($name)
    };
}

/// The assignment of a replay, from a row of the name `entry`.
macro_rules! assignment {
    (($number:literal, $name:ident, $type:ty, $transport:tt, $sql:ident, replaced)) => {
        concat!(stringify!($name), " = entry.", stringify!($name))
    };
    (($number:literal, $name:ident, $type:ty, $transport:tt, $sql:ident, kept)) => {
        concat!(stringify!($name), " = verdicts.", stringify!($name))
    };
}

/// Reads a [`VerdictRow`] from a row of either database. A macro, because the bounds of a function over both kinds of
/// rows are longer than its body.
macro_rules! read_row {
    ($row:ident $(($number:literal, $name:ident, $($rest:tt)*))*) => {
        $crate::ledger::columns::VerdictRow {
            $($name: $row.try_get(stringify!($name))?,)*
            revision: $row.try_get("revision")?,
            cause: $row.try_get("cause")?,
            judged_at: $row.try_get("judged_at")?,
            deleted_at: $row.try_get("deleted_at")?,
        }
    };
}

/// Reads an [`ExistingVerdict`] from a row of either database.
macro_rules! read_existing {
    ($row:expr) => {{
        let (outcome, revision): (String, i32) = ($row.try_get("outcome")?, $row.try_get("revision")?);
        $crate::ledger::ExistingVerdict {
            image: $crate::job::ImageRef {
                bucket: $row.try_get("bucket")?,
                key: $row.try_get("key")?,
                version_id: $row.try_get("version_id")?,
                etag: $row.try_get("etag")?,
            },
            outcome: $crate::ledger::columns::parse_outcome(&outcome)?,
            revision: $crate::ledger::columns::revision_number(revision),
            decided_at: $row.try_get("decided_at")?,
        }
    }};
}

/// Reads the judgement of this outcome from a row of either database.
macro_rules! read_judgement {
    ($row:expr, $outcome:expr) => {{
        let findings: Option<String> = $row.try_get("findings")?;
        $crate::job::Judgement {
            outcome: $outcome,
            reason: $row.try_get("reason")?,
            label: $row.try_get("label")?,
            score: $row.try_get("score")?,
            findings: $crate::ledger::columns::parse_findings(findings.as_deref())?,
        }
    }};
}

/// A verdict that is locked until its new revision is written.
pub(super) struct LockedVerdict {
    pub existing: ExistingVerdict,
    pub judgement: Judgement,
}

/// The columns of a [`LockedVerdict`].
macro_rules! select_locked {
    () => {
        "SELECT id, bucket, key, version_id, etag, outcome, reason, label, score, CAST(findings AS text) AS findings, revision,
                decided_at
         FROM verdicts"
    };
}

/// Reads a [`LockedVerdict`] from a row of either database.
macro_rules! read_locked {
    ($row:expr) => {{
        let existing = read_existing!($row);
        let judgement = read_judgement!($row, existing.outcome);
        $crate::ledger::columns::LockedVerdict { existing, judgement }
    }};
}

/// Writes the earlier state of verdicts into `verdict_history`, with this actor; a condition on `verdicts` follows.
macro_rules! insert_history {
    ($actor:expr) => {
        concat!(
            "INSERT INTO verdict_history (verdict_id, revision, outcome, reason, label, score, findings, policy, cause, actor,
                 decided_at, judged_at)
             SELECT id, revision, outcome, reason, label, score, findings, policy, cause, ",
            $actor,
            ", decided_at, coalesce(judged_at, decided_at)
             FROM verdicts"
        )
    };
}

/// The columns of an [`EarlierState`] of the verdict `$1`, oldest first.
macro_rules! select_earlier_states {
    () => {
        "SELECT revision, outcome, reason, label, score, CAST(findings AS text) AS findings,
             CAST(policy AS text) AS policy, cause, judged_at
         FROM verdict_history
         WHERE verdict_id = $1 ORDER BY revision"
    };
}

/// Reads an [`EarlierState`] from a row of either database.
macro_rules! read_earlier_state {
    ($row:expr) => {{
        let (outcome, revision): (String, i32) = ($row.try_get("outcome")?, $row.try_get("revision")?);
        let (cause, policy): (Option<String>, String) = ($row.try_get("cause")?, $row.try_get("policy")?);
        Ok($crate::ledger::EarlierState {
            revision: $crate::job::Revision {
                number: $crate::ledger::columns::revision_number(revision),
                cause: cause.as_deref().and_then($crate::job::RevisionCause::parse),
                judged_at: $row.try_get("judged_at")?,
            },
            judgement: read_judgement!($row, $crate::ledger::columns::parse_outcome(&outcome)?),
            policy: $crate::ledger::columns::from_json(&policy)?,
        })
    }};
}

/// A replay may have found a newer object.
macro_rules! is_deleted_still {
    () => {
        "deleted_at = CASE WHEN entry.object_at > verdicts.deleted_at THEN NULL ELSE verdicts.deleted_at END"
    };
}

/// Marks the verdicts on the object `$1`, `$2` as deleted at `$3`: those of the version `$4`, or of all versions that were
/// there then. `$5` says that the version has a name of its own, so that no newer object can have it.
macro_rules! mark_deleted {
    () => {
        "UPDATE verdicts SET deleted_at = $3
         WHERE bucket = $1 AND key = $2 AND deleted_at IS NULL AND ($5 OR coalesce(object_at, received_at) <= $3)
             AND (CAST($4 AS text) IS NULL OR coalesce(version_id, 'null') = $4)"
    };
}

impl VerdictRow {
    /// The row of a first judgement.
    pub(super) fn of(verdict: &Verdict) -> Self {
        let seen = verdict.seen;
        Self {
            id: verdict.id.to_string(),
            job_id: verdict.job_id.clone(),
            lane: verdict.lane.as_str().into(),
            bucket: verdict.image.bucket.clone(),
            key: verdict.image.key.clone(),
            version_id: verdict.image.version_id.clone(),
            etag: verdict.image.etag.clone(),
            sha256: verdict.sha256.map(Vec::from),
            bytes: verdict.bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            format: seen.map(|seen| seen.format.into()),
            width: seen.map(|seen| integer(seen.width)),
            height: seen.map(|seen| integer(seen.height)),
            frames: seen.map(|seen| integer(seen.frames)),
            outcome: verdict.judgement.outcome.as_str().into(),
            reason: verdict.judgement.reason.clone(),
            label: verdict.judgement.label.clone(),
            score: verdict.judgement.score,
            scores: verdict.facts.as_ref().map(|facts| to_json(&facts.scores)),
            detectors: to_json(&verdict.detectors),
            policy: to_json(&verdict.policy),
            metadata: verdict.metadata.as_ref().map(to_json),
            reused_from: verdict.reused_from.map(|id| id.to_string()),
            attempts: integer(verdict.attempts),
            received_at: verdict.received_at,
            decided_at: verdict.decided_at,
            findings: findings_json(&verdict.judgement.findings),
            views: verdict.facts.as_ref().and_then(|facts| Some(to_json(facts.views.as_ref()?))),
            object_at: verdict.object_at,
            damage: verdict.facts.as_ref().and_then(|facts| facts.damage.clone()),
            md5: verdict.md5.map(Vec::from),
            hashes: verdict.facts.as_ref().and_then(|facts| Some(to_json(facts.hashes.as_ref()?))),
            revision: 1,
            cause: None,
            judged_at: verdict.decided_at,
            deleted_at: None,
        }
    }

    /// The verdict. It fails only for a row that another program has changed.
    pub(super) fn into_verdict(self) -> Result<StoredVerdict, sqlx::Error> {
        let invalid =
            |column: &str| sqlx::Error::Decode(format!("verdict of job {}: invalid {column}", self.job_id).into());
        let lane = Lane::ALL.into_iter().find(|lane| lane.as_str() == self.lane).ok_or_else(|| invalid("lane"))?;
        let outcome = Outcome::parse(&self.outcome).ok_or_else(|| invalid("outcome"))?;
        let cause = match &self.cause {
            Some(word) => Some(RevisionCause::parse(word).ok_or_else(|| invalid("cause"))?),
            None => None,
        };
        let sha256 = self.sha256.map(<[u8; 32]>::try_from).transpose().map_err(|_| invalid("sha256"))?;
        let md5 = self.md5.map(<[u8; 16]>::try_from).transpose().map_err(|_| invalid("md5"))?;
        let length = |n: Option<i32>| n.and_then(|n| u32::try_from(n).ok());
        let format = self.format.as_deref().and_then(job::format_name);
        let seen = match (format, length(self.width), length(self.height), length(self.frames)) {
            (Some(format), Some(width), Some(height), Some(frames)) => {
                Some(ImageInfo { format, width, height, frames })
            }
            _ => None,
        };
        let facts = match &self.scores {
            Some(scores) => {
                let views: Option<Views> = self.views.as_deref().map(from_json).transpose()?;
                // An image with a single frame has a single view.
                let views = views.or_else(|| (self.frames == Some(1)).then(Views::new));
                let hashes = self.hashes.as_deref().map(from_json).transpose()?;
                Some(Facts { scores: from_json(scores)?, views, damage: self.damage, hashes })
            }
            None => None,
        };
        let findings = parse_findings(self.findings.as_deref())?;
        let revision = Revision { number: revision_number(self.revision), cause, judged_at: self.judged_at };
        let verdict = Verdict {
            id: parse_uuid(&self.id)?,
            lane,
            image: ImageRef { bucket: self.bucket, key: self.key, version_id: self.version_id, etag: self.etag },
            object_at: self.object_at,
            sha256,
            md5,
            bytes: self.bytes.and_then(|bytes| u64::try_from(bytes).ok()),
            seen,
            judgement: Judgement { outcome, reason: self.reason, label: self.label, score: self.score, findings },
            facts,
            detectors: from_json(&self.detectors)?,
            policy: from_json(&self.policy)?,
            metadata: self.metadata.as_deref().map(from_json).transpose()?,
            reused_from: self.reused_from.as_deref().map(parse_uuid).transpose()?,
            attempts: u32::try_from(self.attempts).unwrap_or(0),
            received_at: self.received_at,
            decided_at: self.decided_at,
            job_id: self.job_id,
        };
        Ok(StoredVerdict { verdict, revision, deleted_at: self.deleted_at })
    }
}

/// What another job may reuse of a verdict.
pub(super) fn reusable_facts(stored: StoredVerdict) -> Option<ReusableFacts> {
    let verdict = stored.verdict;
    Some(ReusableFacts { verdict: verdict.id, seen: verdict.seen?, facts: verdict.facts? })
}

/// Findings as the column has them: null where there are none.
pub(super) fn findings_json(findings: &[Finding]) -> Option<String> {
    (!findings.is_empty()).then(|| to_json(&findings))
}

pub(super) fn parse_findings(text: Option<&str>) -> Result<Vec<Finding>, sqlx::Error> {
    text.map_or_else(|| Ok(Vec::new()), from_json)
}

fn integer(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

pub(super) fn revision_number(revision: i32) -> u32 {
    u32::try_from(revision).unwrap_or(0)
}

/// A CHECK constraint allows no other words.
pub(super) fn parse_outcome(word: &str) -> Result<Outcome, sqlx::Error> {
    Outcome::parse(word).ok_or_else(|| sqlx::Error::Decode(format!("invalid outcome {word}").into()))
}

pub(super) fn parse_uuid(text: &str) -> Result<Uuid, sqlx::Error> {
    Uuid::parse_str(text).map_err(|e| sqlx::Error::Decode(e.into()))
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, sqlx::Error> {
    serde_json::from_str(text).map_err(|e| sqlx::Error::Decode(e.into()))
}

/// As JSON text. `serde_json` cannot fail for what the ledger stores: maps with string keys, and numbers, of which it
/// writes those that are not finite as null.
pub(super) fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}
