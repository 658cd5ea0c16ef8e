//! The ledger in Postgres.
//!
//! Every call has a deadline of ours, and a connection that missed it, or that lies on a server which has become
//! read-only, is not used again: sqlx has no TCP user timeout, and a silently dead peer would keep it for ever.

mod archive;
mod commit;
mod reconcile;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};
use uuid::Uuid;

use super::rows::{self, stored};
use super::schema::{self, Step};
use super::{Committed, Entry, Event, Known, Ledger, LedgerError, Reusable, Unpublished};
use crate::certificates;
use crate::config::SecretUrl;
use crate::job::Digests;
use crate::planted::{self, Bug};
use crate::retry;
use commit::{Columns, known};

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
        Self::open_in(url, None).await
    }

    /// As [`Postgres::open`]; tables are made and found in this schema.
    pub(super) async fn open_in(url: &SecretUrl, schema: Option<&str>) -> Result<Self, LedgerError> {
        let unusable = |error: String| LedgerError::Unusable { url: url.to_string(), error };
        let mut options: PgConnectOptions = url.expose().parse().map_err(|e: sqlx::Error| unusable(e.to_string()))?;
        if let Some(schema) = schema {
            options = options.options([("search_path", schema)]);
        }
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECT)
            .connect_with(options.application_name("pixwarden"))
            .await
            .map_err(|e| {
                let words = words(&e);
                let hint = certificates::hint(&e);
                unusable(words + hint)
            })?;
        Ok(Self { pool })
    }

    /// Makes an empty schema; its name is an identifier of ours.
    pub(super) async fn create_schema(&self, name: &str) -> Result<(), LedgerError> {
        let statement = AssertSqlSafe(format!("CREATE SCHEMA {name}"));
        self.run(ANSWER, |c| Box::pin(sqlx::query(statement).execute(c))).await.map(drop)
    }

    /// Drops a schema with all its tables.
    pub(super) async fn drop_schema(&self, name: &str) -> Result<(), LedgerError> {
        let statement = AssertSqlSafe(format!("DROP SCHEMA {name} CASCADE"));
        self.run(MIGRATE, |c| Box::pin(sqlx::query(statement).execute(c))).await.map(drop)
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

    async fn lacks(&self) -> Result<Vec<String>, LedgerError> {
        let question = "SELECT privilege || ' on ' || relation
             FROM (VALUES ('verdicts', ARRAY['SELECT', 'INSERT', 'UPDATE']),
                          ('outbox', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']),
                          ('suspects', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'])) AS needs (relation, privileges),
                  unnest(privileges) AS privilege
             WHERE NOT has_table_privilege(relation, privilege)";
        self.run(ANSWER, move |c| Box::pin(sqlx::query_scalar(question).fetch_all(c))).await
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
                let passed_by = if planted::has(Bug::OutboxByIdCursor) {
                    "AND event_id > (SELECT event_id FROM outbox WHERE published_at IS NOT NULL
                                     ORDER BY event_id DESC LIMIT 1)"
                } else {
                    ""
                };
                let query = sqlx::query(AssertSqlSafe(format!(
                    "UPDATE outbox
                     SET tries = tries + 1,
                         due_at = now() + least(interval '10 minutes', interval '30 seconds' * power(2, least(tries, 10)))
                     WHERE event_id IN (
                         SELECT event_id FROM outbox WHERE published_at IS NULL AND due_at <= now() {passed_by}
                         ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED)
                     RETURNING event_id, routing_key, correlation_id, payload::text AS payload",
                )));
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
