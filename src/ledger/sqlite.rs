//! The ledger in a SQLite file: for `scan`, and for a worker alone on its machine.
//!
//! One connection, so that no two writers of this process ever wait for each other. The write-ahead log with full
//! synchronisation makes a commit as durable as Postgres makes it.

mod archive;
mod reconcile;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, Row, SqliteConnection, SqlitePool};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use uuid::Uuid;

use super::rows::{self, known, stored};
use super::schema::{self, Step};
use super::{Absent, Committed, Entry, Event, HANDOVER, Known, Ledger, LedgerError, Reusable, Unpublished};
use crate::job::Digests;

/// Longest wait for another process that writes to the same file.
const BUSY: Duration = Duration::from_secs(5);
/// Longest wait for the connection, and longest for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Migrations may rewrite tables.
const MIGRATE: Duration = Duration::from_secs(3600);
/// The longest pause before an event is tried again.
const LONGEST_LEASE: Duration = Duration::from_secs(600);
/// Rows deleted a statement.
const PRUNE_BATCH: i64 = 5_000;

const MIGRATIONS: [Step; 3] = [
    (1, "ledger", include_str!("../../migrations/sqlite/0001_ledger.sql")),
    (2, "lookups", include_str!("../../migrations/sqlite/0002_lookups.sql")),
    (3, "backfill", include_str!("../../migrations/sqlite/0003_backfill.sql")),
];

/// Takes the write lock at once: a transaction that reads first and writes later could find itself too late.
const BEGIN: &str = "BEGIN IMMEDIATE";

/// The ledger in a SQLite file.
pub struct Sqlite {
    pool: SqlitePool,
}

impl Sqlite {
    /// Opens the file.
    ///
    /// # Errors
    /// When it cannot be opened, or is no SQLite file.
    pub async fn open(file: &Path, absent: Absent) -> Result<Self, LedgerError> {
        let unusable = |error: String| LedgerError::Unusable { url: format!("sqlite://{}", file.display()), error };
        if absent == Absent::Refused && !file.exists() {
            return Err(unusable("there is no such file\n  hint: `pixwarden migrate` makes it".into()));
        }
        // A whole path has no other meaning to SQLite than that of a file.
        let whole = std::path::absolute(file).map_err(|e| unusable(e.to_string()))?;
        let options = SqliteConnectOptions::new()
            .filename(whole)
            .create_if_missing(absent == Absent::Created)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ANSWER)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await
            .map_err(|e| {
                let hint = "it must be a SQLite database, and it and its folder must be writable for this user";
                unusable(format!("{}\n  hint: {hint}", words(&e)))
            })?;
        Ok(Self { pool })
    }

    /// Runs one operation on the connection, with a deadline.
    async fn run<T, F>(&self, operation: F) -> Result<T, LedgerError>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    {
        let work = async {
            let mut connection = self.pool.acquire().await?;
            operation(&mut connection).await
        };
        let result = match tokio::time::timeout(ANSWER, work).await {
            Ok(result) => result.map_err(|e| explain(&e)),
            Err(_) => Err(LedgerError::Down(format!("no answer within {} s", ANSWER.as_secs()))),
        };
        result.inspect_err(super::count)
    }
}

#[async_trait]
impl Ledger for Sqlite {
    async fn migrate(&self) -> Result<i64, LedgerError> {
        let run = async || schema::migrator(&MIGRATIONS).run(&self.pool).await;
        // Nothing keeps two processes from bringing a file up to date together; the second finds it done.
        let twice = async || match run().await {
            Ok(()) => Ok(()),
            Err(_) => run().await,
        };
        match tokio::time::timeout(MIGRATE, twice()).await {
            Ok(Ok(())) => Ok(schema::newest(&MIGRATIONS)),
            Ok(Err(e)) => Err(LedgerError::Down(format!("migrating: {e}"))),
            Err(_) => Err(LedgerError::Down("migrating took longer than an hour".into())),
        }
    }

    async fn check_schema(&self) -> Result<(), LedgerError> {
        let found = self.run(|c| {
            Box::pin(async move {
                let exists = "SELECT count(*) > 0 FROM sqlite_master WHERE name = '_sqlx_migrations'";
                if !sqlx::query_scalar::<_, bool>(exists).fetch_one(&mut *c).await? {
                    return Ok(0);
                }
                sqlx::query_scalar(schema::NEWEST).fetch_one(c).await
            })
        });
        schema::check(found.await?, &MIGRATIONS)
    }

    async fn prepare(&self) -> Result<(), LedgerError> {
        self.migrate().await.map(drop)
    }

    async fn ping(&self) -> Result<(), LedgerError> {
        // Taking the write lock fails on a read-only file as a write would.
        self.run(|c| Box::pin(async move { c.begin_with(BEGIN).await?.rollback().await })).await
    }

    async fn find(&self, id: Uuid) -> Result<Option<Known>, LedgerError> {
        self.run(move |c| Box::pin(known(c, id))).await
    }

    async fn find_scores(
        &self,
        sha256: [u8; 32],
        detectors: &Digests,
        policy_sha256: &str,
    ) -> Result<Option<Reusable>, LedgerError> {
        let (detectors, policy) = (rows::text(detectors), policy_sha256.to_owned());
        self.run(move |c| {
            Box::pin(async move {
                let query = sqlx::query(
                    "SELECT *, id AS verdict_id FROM verdicts
                     WHERE sha256 = $1 AND scores IS NOT NULL AND reused_from IS NULL AND detectors = $2
                         AND outcome <> 'failed' AND (frames = 1 OR policy ->> 'sha256' = $3)
                     LIMIT 1",
                );
                let row = query.bind(sha256.to_vec()).bind(detectors).bind(policy).fetch_optional(c).await?;
                Ok(row.map(|row| stored!(row).verdict()).transpose()?.and_then(rows::reusable))
            })
        })
        .await
    }

    async fn commit(&self, entries: &[Entry]) -> Result<Vec<Committed>, LedgerError> {
        let entries = entries.to_vec();
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                let mut answers = Vec::with_capacity(entries.len());
                for entry in entries {
                    answers.push(write(&mut transaction, entry).await?);
                }
                transaction.commit().await?;
                Ok(answers)
            })
        })
        .await
    }

    async fn begin_alone(&self, id: Uuid, process: Uuid) -> Result<u32, LedgerError> {
        self.run(move |c| {
            let query = sqlx::query_scalar(
                "INSERT INTO suspects (id, starts, process, started_at) VALUES ($1, 1, $2, $3)
                 ON CONFLICT (id) DO UPDATE SET
                     starts = suspects.starts + (suspects.process <> excluded.process),
                     process = excluded.process, started_at = excluded.started_at
                 RETURNING starts",
            );
            Box::pin(query.bind(id.to_string()).bind(process.to_string()).bind(now()).fetch_one(c))
        })
        .await
    }

    async fn end_alone(&self, id: Uuid) -> Result<(), LedgerError> {
        self.run(move |c| Box::pin(sqlx::query("DELETE FROM suspects WHERE id = $1").bind(id.to_string()).execute(c)))
            .await
            .map(drop)
    }

    async fn lease_events(&self, limit: u32) -> Result<Vec<Event>, LedgerError> {
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                let due = "SELECT event_id, routing_key, correlation_id, payload, tries FROM outbox
                           WHERE published_at IS NULL AND due_at <= $1 ORDER BY due_at LIMIT $2";
                let rows = sqlx::query(due).bind(now()).bind(limit).fetch_all(&mut *transaction).await?;
                let mut events = Vec::with_capacity(rows.len());
                for row in rows {
                    let id: String = row.try_get("event_id")?;
                    // The lease is the time of the next try.
                    let lease = HANDOVER.saturating_mul(1 << row.try_get::<u32, _>("tries")?.min(10));
                    let until = stamp(OffsetDateTime::now_utc() + lease.min(LONGEST_LEASE));
                    let query = "UPDATE outbox SET tries = tries + 1, due_at = $2 WHERE event_id = $1";
                    sqlx::query(query).bind(&id).bind(until).execute(&mut *transaction).await?;
                    events.push(Event {
                        id: Uuid::parse_str(&id).map_err(|e| sqlx::Error::Decode(e.into()))?,
                        routing_key: row.try_get("routing_key")?,
                        correlation_id: row.try_get("correlation_id")?,
                        payload: row.try_get("payload")?,
                    });
                }
                transaction.commit().await?;
                Ok(events)
            })
        })
        .await
    }

    async fn mark_published(&self, ids: &[Uuid]) -> Result<(), LedgerError> {
        let ids = ids.to_vec();
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                for id in ids {
                    let query = "UPDATE outbox SET published_at = $2, last_error = NULL
                                 WHERE event_id = $1 AND published_at IS NULL";
                    sqlx::query(query).bind(id.to_string()).bind(now()).execute(&mut *transaction).await?;
                }
                transaction.commit().await
            })
        })
        .await
    }

    async fn note_unpublished(&self, id: Uuid, error: &str) -> Result<(), LedgerError> {
        let error = error.to_owned();
        self.run(move |c| {
            let query = sqlx::query("UPDATE outbox SET last_error = $2 WHERE event_id = $1 AND published_at IS NULL");
            Box::pin(query.bind(id.to_string()).bind(error).execute(c))
        })
        .await
        .map(drop)
    }

    async fn prune_outbox(&self, keep: Duration) -> Result<u64, LedgerError> {
        let before = stamp(
            OffsetDateTime::now_utc()
                .checked_sub(keep.try_into().unwrap_or(time::Duration::MAX))
                .unwrap_or(OffsetDateTime::UNIX_EPOCH),
        );
        let done = self.run(move |c| {
            let query = sqlx::query(
                "DELETE FROM outbox WHERE event_id IN (SELECT event_id FROM outbox WHERE published_at < $1 LIMIT $2)",
            );
            Box::pin(query.bind(before).bind(PRUNE_BATCH).execute(c))
        });
        Ok(done.await?.rows_affected())
    }

    async fn close(&self) {
        // The last connection folds the write-ahead log into the file.
        if tokio::time::timeout(ANSWER, self.pool.close()).await.is_err() {
            tracing::warn!("the ledger's file did not close in time");
        }
    }

    async fn unpublished(&self) -> Result<Vec<Unpublished>, LedgerError> {
        self.run(|c| {
            Box::pin(async move {
                let query = "SELECT routing_key, count(*) AS events, min(created_at) AS oldest
                             FROM outbox WHERE published_at IS NULL GROUP BY routing_key";
                let unpublished = |row: &SqliteRow| {
                    let oldest: OffsetDateTime = row.try_get("oldest")?;
                    Ok(Unpublished {
                        routing_key: row.try_get("routing_key")?,
                        events: u64::try_from(row.try_get::<i64, _>("events")?).unwrap_or(0),
                        oldest: (OffsetDateTime::now_utc() - oldest).try_into().unwrap_or_default(),
                    })
                };
                sqlx::query(query).fetch_all(c).await?.iter().map(unpublished).collect()
            })
        })
        .await
    }
}

/// Writes one verdict and its event, or reads back what was there before.
async fn write(c: &mut SqliteConnection, entry: Entry) -> Result<Committed, sqlx::Error> {
    let Entry { verdict: v, event } = entry;
    let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let written = sqlx::query(
        "INSERT INTO verdicts AS v (id, job_id, lane, bucket, key, version_id, etag, sha256, bytes, format, width, height,
             frames, outcome, reason, label, score, scores, detectors, policy, metadata, reused_from, attempts,
             received_at, decided_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,
             $24, $25)
         ON CONFLICT (id) DO UPDATE SET
             lane = excluded.lane, version_id = excluded.version_id, etag = excluded.etag, sha256 = excluded.sha256,
             bytes = excluded.bytes, format = excluded.format, width = excluded.width, height = excluded.height,
             frames = excluded.frames, outcome = excluded.outcome, reason = excluded.reason, label = excluded.label,
             score = excluded.score, scores = excluded.scores, detectors = excluded.detectors, policy = excluded.policy,
             metadata = excluded.metadata, reused_from = excluded.reused_from, attempts = excluded.attempts,
             received_at = excluded.received_at, decided_at = excluded.decided_at
         WHERE v.outcome = 'failed' AND excluded.outcome <> 'failed'
             AND v.bucket = excluded.bucket AND v.key = excluded.key
         RETURNING 1",
    )
    .bind(v.id.to_string())
    .bind(&v.job_id)
    .bind(v.lane.as_str())
    .bind(&v.image.bucket)
    .bind(&v.image.key)
    .bind(&v.image.version_id)
    .bind(&v.image.etag)
    .bind(v.sha256.map(Vec::from))
    .bind(v.bytes.map(int))
    .bind(v.seen.map(|seen| seen.format))
    .bind(v.seen.map(|seen| seen.width))
    .bind(v.seen.map(|seen| seen.height))
    .bind(v.seen.map(|seen| seen.frames))
    .bind(v.judgement.outcome.as_str())
    .bind(&v.judgement.reason)
    .bind(&v.judgement.label)
    .bind(v.judgement.score)
    .bind(v.scores.as_ref().map(rows::text))
    .bind(rows::text(&v.detectors))
    .bind(rows::text(&v.policy))
    .bind(v.metadata.as_ref().map(rows::text))
    .bind(v.reused_from.map(|id| id.to_string()))
    .bind(v.attempts)
    .bind(stamp(v.received_at))
    .bind(stamp(v.decided_at))
    .fetch_optional(&mut *c)
    .await?;
    if written.is_none() {
        let found = known(c, v.id).await?.map(Committed::Known);
        return found.ok_or(sqlx::Error::RowNotFound);
    }
    let Some(event) = event else { return Ok(Committed::Written(None)) };
    let is_new = owe(c, v.id, &event, OffsetDateTime::now_utc() + HANDOVER).await?;
    Ok(Committed::Written(is_new.then_some(event)))
}

/// Puts an event into the outbox, for the sweeper to take from `due` on; says whether it was not there yet.
async fn owe(c: &mut SqliteConnection, verdict: Uuid, event: &Event, due: OffsetDateTime) -> Result<bool, sqlx::Error> {
    let owed = sqlx::query(
        "INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, created_at, due_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (event_id) DO NOTHING",
    )
    .bind(event.id.to_string())
    .bind(verdict.to_string())
    .bind(&event.routing_key)
    .bind(&event.correlation_id)
    .bind(&event.payload)
    .bind(now())
    .bind(stamp(due))
    .execute(c)
    .await?;
    Ok(owed.rows_affected() > 0)
}

async fn known(c: &mut SqliteConnection, id: Uuid) -> Result<Option<Known>, sqlx::Error> {
    let query = "SELECT bucket, key, version_id, etag, outcome FROM verdicts WHERE id = $1";
    let row = sqlx::query(query).bind(id.to_string()).fetch_optional(c).await?;
    row.map(|row| Ok(known!(row))).transpose()
}

/// Times as the schema has them: of one length, so that they compare as text.
const STAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

fn stamp(time: OffsetDateTime) -> String {
    // Every part of the format is one that a time has.
    time.to_offset(time::UtcOffset::UTC).format(STAMP).unwrap_or_default()
}

fn now() -> String {
    stamp(OffsetDateTime::now_utc())
}

/// Sorts what SQLite says (its result codes) into what the worker does about it.
fn explain(error: &sqlx::Error) -> LedgerError {
    /// `SQLITE_TOOBIG`, `SQLITE_CONSTRAINT`, `SQLITE_MISMATCH`: the row's own fault.
    const REFUSED: [u32; 3] = [18, 19, 20];
    let code = error.as_database_error().and_then(|e| e.code()).and_then(|code| code.parse::<u32>().ok());
    // The lowest byte is the primary code.
    if code.is_some_and(|code| REFUSED.contains(&(code & 0xFF))) {
        LedgerError::Refused(words(error))
    } else {
        LedgerError::Down(words(error))
    }
}

fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(e) => e.message().to_owned(),
        other => other.to_string(),
    }
}
