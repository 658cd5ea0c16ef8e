//! A group commit: one array a column, one statement for all rows.

use std::collections::HashMap;

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::job::{Digests, PolicyRef};
use crate::ledger::rows::{self, known};
use crate::ledger::{Entry, HANDOVER, Known};

/// The entries as one array a column, which is what UNNEST takes.
#[derive(Clone, Default)]
pub(super) struct Columns {
    id: Vec<Uuid>,
    job_id: Vec<String>,
    lane: Vec<&'static str>,
    bucket: Vec<String>,
    key: Vec<String>,
    version_id: Vec<Option<String>>,
    etag: Vec<Option<String>>,
    sha256: Vec<Option<Vec<u8>>>,
    bytes: Vec<Option<i64>>,
    format: Vec<Option<&'static str>>,
    width: Vec<Option<i32>>,
    height: Vec<Option<i32>>,
    frames: Vec<Option<i32>>,
    outcome: Vec<&'static str>,
    reason: Vec<Option<String>>,
    label: Vec<Option<String>>,
    score: Vec<Option<f32>>,
    scores: Vec<Option<String>>,
    detectors: Repeated<Digests>,
    policy: Repeated<PolicyRef>,
    metadata: Vec<Option<String>>,
    reused_from: Vec<Option<Uuid>>,
    attempts: Vec<i32>,
    received_at: Vec<OffsetDateTime>,
    decided_at: Vec<OffsetDateTime>,
    events: Events,
}

/// The events that are owed, which few entries have.
#[derive(Clone, Default)]
struct Events {
    id: Vec<Uuid>,
    verdict_id: Vec<Uuid>,
    routing_key: Vec<String>,
    correlation_id: Vec<String>,
    payload: Vec<String>,
}

/// A column of few values, each of them sent once, and of a row only which one it has, counted from 1. Otherwise they are
/// a third of a row's bytes with one detector, and more with several.
#[derive(Clone)]
struct Repeated<T> {
    values: Vec<Json<T>>,
    which: Vec<i32>,
}

impl<T> Default for Repeated<T> {
    fn default() -> Self {
        Self { values: Vec::new(), which: Vec::new() }
    }
}

impl<T: Clone + PartialEq> Repeated<T> {
    fn push(&mut self, value: &T) {
        let known = self.values.iter().position(|known| known.0 == *value);
        let at = known.unwrap_or_else(|| {
            self.values.push(Json(value.clone()));
            self.values.len() - 1
        });
        self.which.push(i32::try_from(at + 1).unwrap_or(i32::MAX));
    }
}

/// The ids really written, each with its event's payload as stored.
pub(super) type Written = HashMap<Uuid, Option<String>>;

impl Columns {
    /// Sorted by id, so that two workers that commit the same jobs lock rows in the same order.
    pub(super) fn of(entries: &[Entry]) -> Self {
        let mut sorted: Vec<&Entry> = entries.iter().collect();
        sorted.sort_by_key(|entry| entry.verdict.id);
        let int = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let mut columns = Self::default();
        for Entry { verdict: v, event } in sorted {
            columns.id.push(v.id);
            columns.job_id.push(v.job_id.clone());
            columns.lane.push(v.lane.as_str());
            columns.bucket.push(v.image.bucket.clone());
            columns.key.push(v.image.key.clone());
            columns.version_id.push(v.image.version_id.clone());
            columns.etag.push(v.image.etag.clone());
            columns.sha256.push(v.sha256.map(Vec::from));
            columns.bytes.push(v.bytes.map(|n| i64::try_from(n).unwrap_or(i64::MAX)));
            columns.format.push(v.seen.map(|seen| seen.format));
            columns.width.push(v.seen.map(|seen| int(seen.width)));
            columns.height.push(v.seen.map(|seen| int(seen.height)));
            columns.frames.push(v.seen.map(|seen| int(seen.frames)));
            columns.outcome.push(v.judgement.outcome.as_str());
            columns.reason.push(v.judgement.reason.clone());
            columns.label.push(v.judgement.label.clone());
            columns.score.push(v.judgement.score);
            columns.scores.push(v.scores.as_ref().map(rows::text));
            columns.detectors.push(&v.detectors);
            columns.policy.push(&v.policy);
            columns.metadata.push(v.metadata.as_ref().map(rows::text));
            columns.reused_from.push(v.reused_from);
            columns.attempts.push(int(v.attempts));
            columns.received_at.push(v.received_at);
            columns.decided_at.push(v.decided_at);
            if let Some(event) = event {
                let events = &mut columns.events;
                events.id.push(event.id);
                events.verdict_id.push(v.id);
                events.routing_key.push(event.routing_key.clone());
                events.correlation_id.push(event.correlation_id.clone());
                events.payload.push(event.payload.clone());
            }
        }
        columns
    }

    /// One statement writes verdicts, and outbox rows only for those really written; a second reads back the rest.
    ///
    /// A statement is a transaction of its own, so both tables change together or not at all.
    pub(super) async fn write(self, c: &mut PgConnection) -> Result<(Written, Vec<(Uuid, Known)>), sqlx::Error> {
        let handover = i32::try_from(HANDOVER.as_secs()).unwrap_or(30);
        let rows = sqlx::query(
            "WITH written AS (
                 INSERT INTO verdicts AS v (id, job_id, lane, bucket, key, version_id, etag, sha256, bytes, format,
                     width, height, frames, outcome, reason, label, score, scores, detectors, policy, metadata,
                     reused_from, attempts, received_at, decided_at)
                 SELECT id, job_id, lane, bucket, key, version_id, etag, sha256, bytes, format, width, height, frames,
                     outcome, reason, label, score, scores::jsonb, ($26::jsonb[])[detectors], ($27::jsonb[])[policy],
                     metadata::jsonb, reused_from, attempts, received_at, decided_at
                 FROM UNNEST(
                     $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[],
                     $9::bigint[], $10::text[], $11::integer[], $12::integer[], $13::integer[], $14::text[], $15::text[],
                     $16::text[], $17::real[], $18::text[], $19::integer[], $20::integer[], $21::text[], $22::uuid[],
                     $23::integer[], $24::timestamptz[], $25::timestamptz[]
                 ) AS entry (id, job_id, lane, bucket, key, version_id, etag, sha256, bytes, format, width, height, frames,
                         outcome, reason, label, score, scores, detectors, policy, metadata, reused_from, attempts,
                         received_at, decided_at)
                 ON CONFLICT (id) DO UPDATE SET
                     lane = excluded.lane, version_id = excluded.version_id, etag = excluded.etag,
                     sha256 = excluded.sha256, bytes = excluded.bytes, format = excluded.format,
                     width = excluded.width, height = excluded.height, frames = excluded.frames,
                     outcome = excluded.outcome, reason = excluded.reason, label = excluded.label,
                     score = excluded.score, scores = excluded.scores, detectors = excluded.detectors,
                     policy = excluded.policy, metadata = excluded.metadata, reused_from = excluded.reused_from,
                     attempts = excluded.attempts, received_at = excluded.received_at, decided_at = excluded.decided_at
                 WHERE v.outcome = 'failed' AND excluded.outcome <> 'failed'
                     AND v.bucket = excluded.bucket AND v.key = excluded.key
                 RETURNING v.id
             ), owed AS (
                 INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, due_at)
                 SELECT event_id, verdict_id, routing_key, correlation_id, payload::jsonb,
                     now() + make_interval(secs => $33)
                 FROM UNNEST($28::uuid[], $29::uuid[], $30::text[], $31::text[], $32::text[])
                         AS event (event_id, verdict_id, routing_key, correlation_id, payload)
                     JOIN written ON written.id = verdict_id
                 ON CONFLICT (event_id) DO NOTHING
                 RETURNING verdict_id, payload::text AS payload
             )
             SELECT written.id, owed.payload FROM written LEFT JOIN owed ON owed.verdict_id = written.id",
        )
        .bind(&self.id)
        .bind(&self.job_id)
        .bind(&self.lane)
        .bind(&self.bucket)
        .bind(&self.key)
        .bind(&self.version_id)
        .bind(&self.etag)
        .bind(&self.sha256)
        .bind(&self.bytes)
        .bind(&self.format)
        .bind(&self.width)
        .bind(&self.height)
        .bind(&self.frames)
        .bind(&self.outcome)
        .bind(&self.reason)
        .bind(&self.label)
        .bind(&self.score)
        .bind(&self.scores)
        .bind(&self.detectors.which)
        .bind(&self.policy.which)
        .bind(&self.metadata)
        .bind(&self.reused_from)
        .bind(&self.attempts)
        .bind(&self.received_at)
        .bind(&self.decided_at)
        .bind(&self.detectors.values)
        .bind(&self.policy.values)
        .bind(&self.events.id)
        .bind(&self.events.verdict_id)
        .bind(&self.events.routing_key)
        .bind(&self.events.correlation_id)
        .bind(&self.events.payload)
        .bind(f64::from(handover))
        .fetch_all(&mut *c)
        .await?;
        let pair = |row: &PgRow| Ok::<_, sqlx::Error>((row.try_get("id")?, row.try_get("payload")?));
        let written: Written = rows.iter().map(pair).collect::<Result<_, _>>()?;

        let rest: Vec<Uuid> = self.id.iter().filter(|id| !written.contains_key(id)).copied().collect();
        let known = if rest.is_empty() { Vec::new() } else { known(c, &rest).await? };
        Ok((written, known))
    }
}

pub(super) async fn known(c: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<(Uuid, Known)>, sqlx::Error> {
    let query = "SELECT id, bucket, key, version_id, etag, outcome FROM verdicts WHERE id = ANY($1)";
    let rows = sqlx::query(query).bind(ids).fetch_all(c).await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, known!(row)))).collect()
}
