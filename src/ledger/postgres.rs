//! The ledger in Postgres.
//!
//! Every call has a deadline of ours, and a connection that missed it, or that lies on a server which has become
//! read-only, is not used again: sqlx has no TCP user timeout, and a silently dead peer would keep it for ever.

mod archive;
mod reconcile;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::rows::{self, known, stored};
use super::schema::{self, Step};
use super::{Committed, Entry, Event, HANDOVER, Known, Ledger, LedgerError, Reusable, Unpublished};
use crate::config::SecretUrl;
use crate::job::Digests;
use crate::retry;

/// Every column of `verdicts`, as [`rows::Stored`] reads them.
macro_rules! select_verdicts {
    () => {
        "SELECT id::text AS verdict_id, job_id, lane, bucket, key, version_id, etag, sha256, bytes, format, width, height, frames, outcome,
                reason, label, score, scores::text AS scores, detectors::text AS detectors, policy::text AS policy,
                metadata::text AS metadata, reused_from::text AS reused_from, attempts, received_at, decided_at
         FROM verdicts"
    };
}
use select_verdicts;

/// Longest wait for a connection, and longest for an answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// Migrations may rewrite tables.
const MIGRATE: Duration = Duration::from_secs(3600);
/// Commits, look-ups and the sweeper; more would only contend.
const CONNECTIONS: u32 = 8;
/// Rows deleted a statement, so that pruning never holds locks for long.
const PRUNE_BATCH: i64 = 5_000;

/// Every version, oldest first. A new one only adds: the old program runs beside it during an upgrade.
const MIGRATIONS: [Step; 3] = [
    (1, "ledger", include_str!("../../migrations/postgres/0001_ledger.sql")),
    (2, "lookups", include_str!("../../migrations/postgres/0002_lookups.sql")),
    (3, "backfill", include_str!("../../migrations/postgres/0003_backfill.sql")),
];

/// The ledger in Postgres.
pub struct Postgres {
    pool: PgPool,
}

impl Postgres {
    /// Connects once, so that a wrong password is found now and not with the first job.
    ///
    /// # Errors
    /// When the server refuses us or cannot be reached.
    pub async fn open(url: &SecretUrl) -> Result<Self, LedgerError> {
        let unusable = |error: String| LedgerError::Unusable { url: url.to_string(), error };
        let options: PgConnectOptions = url.expose().parse().map_err(|e: sqlx::Error| unusable(e.to_string()))?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECT)
            .connect_with(options.application_name("pixwarden"))
            .await
            .map_err(|e| unusable(words(&e)))?;
        Ok(Self { pool })
    }

    /// Runs one operation on one connection, with a deadline.
    async fn run<T, F>(&self, deadline: Duration, operation: F) -> Result<T, LedgerError>
    where
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    {
        self.attempt(deadline, operation).await.inspect_err(super::count)
    }

    async fn attempt<T, F>(&self, deadline: Duration, operation: F) -> Result<T, LedgerError>
    where
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    {
        let mut connection = match tokio::time::timeout(CONNECT * 2, self.pool.acquire()).await {
            Ok(connection) => connection.map_err(|e| explain(&e))?,
            Err(_) => return Err(LedgerError::Down("no connection could be had in time".into())),
        };
        let result = match tokio::time::timeout(deadline, operation(&mut connection)).await {
            Ok(result) => result.map_err(|e| explain(&e)),
            Err(_) => Err(LedgerError::Down(format!("no answer within {} s", deadline.as_secs()))),
        };
        if matches!(result, Err(LedgerError::Down(_))) {
            // Not back into the pool: nobody knows what this connection would answer next.
            drop(connection.detach());
        }
        result
    }
}

#[async_trait]
impl Ledger for Postgres {
    async fn migrate(&self) -> Result<i64, LedgerError> {
        match tokio::time::timeout(MIGRATE, schema::migrator(&MIGRATIONS).run(&self.pool)).await {
            Ok(Ok(())) => Ok(schema::newest(&MIGRATIONS)),
            Ok(Err(e)) => Err(LedgerError::Down(format!("migrating: {e}"))),
            Err(_) => Err(LedgerError::Down("migrating took longer than an hour".into())),
        }
    }

    async fn check_schema(&self) -> Result<(), LedgerError> {
        let found = self
            .run(ANSWER, |c| {
                Box::pin(async move {
                    let exists: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
                        .fetch_one(&mut *c)
                        .await?;
                    if !exists {
                        return Ok(0);
                    }
                    sqlx::query_scalar(schema::NEWEST).fetch_one(c).await
                })
            })
            .await?;
        schema::check(found, &MIGRATIONS)
    }

    async fn prepare(&self) -> Result<(), LedgerError> {
        self.check_schema().await
    }

    async fn ping(&self) -> Result<(), LedgerError> {
        let read_only: bool = self
            .run(ANSWER, |c| {
                let question = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool";
                Box::pin(sqlx::query_scalar(question).fetch_one(c))
            })
            .await?;
        if read_only { Err(LedgerError::Down("the server is read-only".into())) } else { Ok(()) }
    }

    async fn find(&self, id: Uuid) -> Result<Option<Known>, LedgerError> {
        let found = self.run(ANSWER, move |c| Box::pin(async move { known(c, &[id]).await })).await?;
        Ok(found.into_iter().next().map(|(_, known)| known))
    }

    async fn find_scores(
        &self,
        sha256: [u8; 32],
        detectors: &Digests,
        policy_sha256: &str,
    ) -> Result<Option<Reusable>, LedgerError> {
        let (detectors, policy) = (Json(detectors.clone()), policy_sha256.to_owned());
        self.run(ANSWER, move |c| {
            Box::pin(async move {
                // The first condition is the index's; the second tells equal detectors from others.
                let query = sqlx::query(concat!(
                    select_verdicts!(),
                    " WHERE sha256 = $1 AND scores IS NOT NULL AND reused_from IS NULL AND detectors = $2
                         AND outcome <> 'failed' AND (frames = 1 OR policy->>'sha256' = $3)
                     LIMIT 1"
                ));
                let row = query.bind(sha256.to_vec()).bind(detectors).bind(policy).fetch_optional(c).await?;
                Ok(row.map(|row| stored!(row).verdict()).transpose()?.and_then(rows::reusable))
            })
        })
        .await
    }

    async fn commit(&self, entries: &[Entry]) -> Result<Vec<Committed>, LedgerError> {
        let columns = Columns::of(entries);
        // A deadlock or a serialization failure passes by itself.
        let attempt = || {
            let columns = columns.clone();
            self.run(ANSWER, move |c| Box::pin(columns.write(c)))
        };
        let contended = |e: &LedgerError| matches!(e, LedgerError::Down(words) if is_contention(words));
        let (written, known) = retry::briefly(contended, attempt).await?;

        let mut known: HashMap<Uuid, Known> = known.into_iter().collect();
        let answer = |entry: &Entry| {
            let id = entry.verdict.id;
            if let Some(payload) = written.get(&id) {
                let event = entry.event.as_ref().zip(payload.as_ref());
                return Ok(Committed::Written(
                    event.map(|(event, payload)| Event { payload: payload.clone(), ..event.clone() }),
                ));
            }
            let found = known.remove(&id).map(Committed::Known);
            found.ok_or_else(|| LedgerError::Down(format!("verdict {id} was neither written nor found")))
        };
        entries.iter().map(answer).collect()
    }

    async fn begin_alone(&self, id: Uuid, process: Uuid) -> Result<u32, LedgerError> {
        let starts: i32 = self
            .run(ANSWER, move |c| {
                let query = sqlx::query_scalar(
                    "INSERT INTO suspects (id, starts, process) VALUES ($1, 1, $2)
                     ON CONFLICT (id) DO UPDATE SET
                         starts = suspects.starts + (suspects.process <> excluded.process)::integer,
                         process = excluded.process, started_at = now()
                     RETURNING starts",
                );
                Box::pin(query.bind(id).bind(process).fetch_one(c))
            })
            .await?;
        Ok(u32::try_from(starts).unwrap_or(0))
    }

    async fn end_alone(&self, id: Uuid) -> Result<(), LedgerError> {
        self.run(ANSWER, move |c| Box::pin(sqlx::query("DELETE FROM suspects WHERE id = $1").bind(id).execute(c)))
            .await
            .map(drop)
    }

    async fn lease_events(&self, limit: u32) -> Result<Vec<Event>, LedgerError> {
        let rows = self
            .run(ANSWER, move |c| {
                // The lease is the time of the next try: 30 s doubled with each, ten minutes at most. No transaction
                // stays open while events are published, and no cursor over ids can pass by a late commit.
                let query = sqlx::query(
                    "UPDATE outbox
                     SET tries = tries + 1,
                         due_at = now() + least(interval '10 minutes', interval '30 seconds' * power(2, least(tries, 10)))
                     WHERE event_id IN (
                         SELECT event_id FROM outbox WHERE published_at IS NULL AND due_at <= now()
                         ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED)
                     RETURNING event_id, routing_key, correlation_id, payload::text AS payload",
                );
                Box::pin(query.bind(i64::from(limit)).fetch_all(c))
            })
            .await?;
        let event = |row: &PgRow| {
            Ok(Event {
                id: row.try_get("event_id")?,
                routing_key: row.try_get("routing_key")?,
                correlation_id: row.try_get("correlation_id")?,
                payload: row.try_get("payload")?,
            })
        };
        rows.iter().map(event).collect::<Result<_, _>>().map_err(|e| explain(&e))
    }

    async fn mark_published(&self, ids: &[Uuid]) -> Result<(), LedgerError> {
        let ids = ids.to_vec();
        self.run(ANSWER, move |c| {
            let query = sqlx::query(
                "UPDATE outbox SET published_at = now(), last_error = NULL WHERE event_id = ANY($1) AND published_at IS NULL",
            );
            Box::pin(query.bind(ids).execute(c))
        })
        .await
        .map(drop)
    }

    async fn note_unpublished(&self, id: Uuid, error: &str) -> Result<(), LedgerError> {
        let error = error.to_owned();
        self.run(ANSWER, move |c| {
            let query = sqlx::query("UPDATE outbox SET last_error = $2 WHERE event_id = $1 AND published_at IS NULL");
            Box::pin(query.bind(id).bind(error).execute(c))
        })
        .await
        .map(drop)
    }

    async fn prune_outbox(&self, keep: Duration) -> Result<u64, LedgerError> {
        let keep = i64::try_from(keep.as_secs()).unwrap_or(i64::MAX);
        let done = self
            .run(ANSWER, move |c| {
                let query = sqlx::query(
                    "DELETE FROM outbox WHERE event_id IN (
                         SELECT event_id FROM outbox WHERE published_at < now() - make_interval(secs => $1) LIMIT $2)",
                );
                #[expect(clippy::cast_precision_loss, reason = "seconds of days")]
                Box::pin(query.bind(keep as f64).bind(PRUNE_BATCH).execute(c))
            })
            .await?;
        Ok(done.rows_affected())
    }

    async fn close(&self) {
        if tokio::time::timeout(CONNECT, self.pool.close()).await.is_err() {
            tracing::warn!("the ledger's connections did not close in time");
        }
    }

    async fn unpublished(&self) -> Result<Vec<Unpublished>, LedgerError> {
        self.run(ANSWER, |c| {
            Box::pin(async move {
                let query = "SELECT routing_key, count(*) AS events,
                                 extract(epoch FROM now() - min(created_at))::float8 AS oldest_s
                             FROM outbox WHERE published_at IS NULL GROUP BY routing_key";
                let unpublished = |row: &PgRow| {
                    let oldest_s = row.try_get("oldest_s")?;
                    Ok(Unpublished {
                        routing_key: row.try_get("routing_key")?,
                        events: u64::try_from(row.try_get::<i64, _>("events")?).unwrap_or(0),
                        oldest: Duration::try_from_secs_f64(oldest_s).unwrap_or_default(),
                    })
                };
                sqlx::query(query).fetch_all(c).await?.iter().map(unpublished).collect()
            })
        })
        .await
    }
}

/// The entries as one array a column, which is what UNNEST takes.
#[derive(Clone, Default)]
struct Columns {
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
    detectors: Vec<String>,
    policy: Vec<String>,
    metadata: Vec<Option<String>>,
    reused_from: Vec<Option<Uuid>>,
    attempts: Vec<i32>,
    received_at: Vec<OffsetDateTime>,
    decided_at: Vec<OffsetDateTime>,
    event_id: Vec<Option<Uuid>>,
    routing_key: Vec<Option<String>>,
    correlation_id: Vec<Option<String>>,
    payload: Vec<Option<String>>,
}

/// The ids really written, each with its event's payload as stored.
type Written = HashMap<Uuid, Option<String>>;

impl Columns {
    /// Sorted by id, so that two workers that commit the same jobs lock rows in the same order.
    fn of(entries: &[Entry]) -> Self {
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
            columns.detectors.push(rows::text(&v.detectors));
            columns.policy.push(rows::text(&v.policy));
            columns.metadata.push(v.metadata.as_ref().map(rows::text));
            columns.reused_from.push(v.reused_from);
            columns.attempts.push(int(v.attempts));
            columns.received_at.push(v.received_at);
            columns.decided_at.push(v.decided_at);
            columns.event_id.push(event.as_ref().map(|e| e.id));
            columns.routing_key.push(event.as_ref().map(|e| e.routing_key.clone()));
            columns.correlation_id.push(event.as_ref().map(|e| e.correlation_id.clone()));
            columns.payload.push(event.as_ref().map(|e| e.payload.clone()));
        }
        columns
    }

    /// One statement writes verdicts, and outbox rows only for those really written; a second reads back the rest.
    ///
    /// A statement is a transaction of its own, so both tables change together or not at all.
    async fn write(self, c: &mut PgConnection) -> Result<(Written, Vec<(Uuid, Known)>), sqlx::Error> {
        let handover = i32::try_from(HANDOVER.as_secs()).unwrap_or(30);
        let rows = sqlx::query(
            "WITH input AS (
                 SELECT * FROM UNNEST(
                     $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[],
                     $9::bigint[], $10::text[], $11::integer[], $12::integer[], $13::integer[], $14::text[], $15::text[],
                     $16::text[], $17::real[], $18::text[], $19::text[], $20::text[], $21::text[], $22::uuid[],
                     $23::integer[], $24::timestamptz[], $25::timestamptz[], $26::uuid[], $27::text[], $28::text[], $29::text[]
                 ) AS t (id, job_id, lane, bucket, key, version_id, etag, sha256, bytes, format, width, height, frames,
                         outcome, reason, label, score, scores, detectors, policy, metadata, reused_from, attempts,
                         received_at, decided_at, event_id, routing_key, correlation_id, payload)
             ), written AS (
                 INSERT INTO verdicts AS v (id, job_id, lane, bucket, key, version_id, etag, sha256, bytes, format,
                     width, height, frames, outcome, reason, label, score, scores, detectors, policy, metadata,
                     reused_from, attempts, received_at, decided_at)
                 SELECT id, job_id, lane, bucket, key, version_id, etag, sha256, bytes, format, width, height, frames,
                     outcome, reason, label, score, scores::jsonb, detectors::jsonb, policy::jsonb, metadata::jsonb,
                     reused_from, attempts, received_at, decided_at
                 FROM input
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
                 SELECT event_id, id, routing_key, correlation_id, payload::jsonb, now() + make_interval(secs => $30)
                 FROM input JOIN written USING (id)
                 WHERE event_id IS NOT NULL
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
        .bind(&self.detectors)
        .bind(&self.policy)
        .bind(&self.metadata)
        .bind(&self.reused_from)
        .bind(&self.attempts)
        .bind(&self.received_at)
        .bind(&self.decided_at)
        .bind(&self.event_id)
        .bind(&self.routing_key)
        .bind(&self.correlation_id)
        .bind(&self.payload)
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

async fn known(c: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<(Uuid, Known)>, sqlx::Error> {
    let query = "SELECT id, bucket, key, version_id, etag, outcome FROM verdicts WHERE id = ANY($1)";
    let rows = sqlx::query(query).bind(ids).fetch_all(c).await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, known!(row)))).collect()
}

/// Marks a reason as contention, which `commit` repeats at once.
const CONTENTION: &str = "contention: ";

fn is_contention(words: &str) -> bool {
    words.starts_with(CONTENTION)
}

/// Sorts what the database says (Postgres, appendix A) into what the worker does about it.
fn explain(error: &sqlx::Error) -> LedgerError {
    let words = words(error);
    let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default();
    match &*code {
        // Data exception, integrity constraint violation, program limit exceeded (an index entry too large).
        code if ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => LedgerError::Refused(words),
        "40001" | "40P01" => LedgerError::Down(format!("{CONTENTION}{words}")),
        _ => LedgerError::Down(words),
    }
}

fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(e) => e.message().to_owned(),
        sqlx::Error::PoolTimedOut => "no connection could be had in time".into(),
        other => other.to_string(),
    }
}
