//! The outbox in SQLite.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, Row, SqliteConnection};
use uuid::Uuid;

use super::{BEGIN, Sqlite, now, stamp};
use crate::ledger::columns::parse_uuid;
use crate::ledger::{Destinations, Event, HANDOVER_DELAY, LedgerError, MAX_COUNTED_EVENTS, Outbox, UnpublishedEvents};

/// The longest pause before an event is tried again.
const MAX_LEASE_DELAY: Duration = Duration::from_secs(600);
/// The routing keys of unpublished events: each step jumps to the next key in `outbox_by_key`.
const KEYS: &str = "WITH RECURSIVE known AS (
        SELECT min(routing_key) AS routing_key FROM outbox WHERE published_at IS NULL
        UNION ALL
        SELECT (SELECT min(routing_key) FROM outbox WHERE published_at IS NULL AND routing_key > known.routing_key)
        FROM known WHERE known.routing_key IS NOT NULL
    )
    SELECT routing_key FROM known WHERE routing_key IS NOT NULL";

#[async_trait]
impl Outbox for Sqlite {
    async fn unpublished_keys(&self) -> Result<Vec<String>, LedgerError> {
        self.run(|c| Box::pin(sqlx::query_scalar(KEYS).fetch_all(c))).await
    }

    async fn lease_events(&self, routing_key: &str, limit: u32) -> Result<Vec<Event>, LedgerError> {
        let routing_key = routing_key.to_owned();
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                let due = "SELECT event_id, routing_key, correlation_id, payload, tries FROM outbox
                           WHERE published_at IS NULL AND routing_key = $1 AND due_at <= $2 ORDER BY due_at LIMIT $3";
                let rows =
                    sqlx::query(due).bind(routing_key).bind(now()).bind(limit).fetch_all(&mut *transaction).await?;
                let mut events = Vec::with_capacity(rows.len());
                for row in rows {
                    let id: String = row.try_get("event_id")?;
                    // The lease is the time of the next try.
                    let lease = HANDOVER_DELAY.saturating_mul(1 << row.try_get::<u32, _>("tries")?.min(10));
                    let until = stamp(OffsetDateTime::now_utc() + lease.min(MAX_LEASE_DELAY));
                    let query = "UPDATE outbox SET tries = tries + 1, due_at = $2 WHERE event_id = $1";
                    sqlx::query(query).bind(&id).bind(until).execute(&mut *transaction).await?;
                    events.push(Event {
                        id: parse_uuid(&id)?,
                        routing_key: row.try_get("routing_key")?,
                        correlation_id: row.try_get("correlation_id")?,
                        payload: row.try_get("payload")?,
                        destinations: Destinations::default(),
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

    async fn prune_outbox(&self, keep: Duration, limit: u32) -> Result<u64, LedgerError> {
        let before = stamp(
            OffsetDateTime::now_utc()
                .checked_sub(keep.try_into().unwrap_or(time::Duration::MAX))
                .unwrap_or(OffsetDateTime::UNIX_EPOCH),
        );
        let deleted = self.run(move |c| {
            let query = sqlx::query(
                "DELETE FROM outbox WHERE event_id IN (SELECT event_id FROM outbox WHERE published_at < $1 LIMIT $2)",
            );
            Box::pin(query.bind(before).bind(i64::from(limit)).execute(c))
        });
        Ok(deleted.await?.rows_affected())
    }

    async fn count_unpublished(&self) -> Result<Vec<UnpublishedEvents>, LedgerError> {
        self.run(|c| {
            Box::pin(async move {
                let keys: Vec<String> = sqlx::query_scalar(KEYS).fetch_all(&mut *c).await?;
                let query = "SELECT $1 AS routing_key, count(*) AS events, min(created_at) AS oldest
                             FROM (SELECT created_at FROM outbox WHERE published_at IS NULL AND routing_key = $1
                                   ORDER BY due_at LIMIT $2)";
                let unpublished = |row: &SqliteRow| {
                    let oldest: OffsetDateTime = row.try_get("oldest")?;
                    Ok::<_, sqlx::Error>(UnpublishedEvents {
                        routing_key: row.try_get("routing_key")?,
                        events: u64::try_from(row.try_get::<i64, _>("events")?).unwrap_or(0),
                        oldest: (OffsetDateTime::now_utc() - oldest).try_into().unwrap_or_default(),
                    })
                };
                let mut counted = Vec::with_capacity(keys.len());
                for key in keys {
                    let query = sqlx::query(query).bind(key).bind(MAX_COUNTED_EVENTS);
                    counted.push(unpublished(&query.fetch_one(&mut *c).await?)?);
                }
                Ok(counted)
            })
        })
        .await
    }
}

/// Puts an event into the outbox, where the sweeper takes it after `due_at`. Returns whether it was new.
pub(super) async fn insert_outbox_row(
    c: &mut SqliteConnection,
    verdict: Uuid,
    event: &Event,
    due_at: OffsetDateTime,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, created_at, due_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (event_id) DO NOTHING",
    )
    .bind(event.id.to_string())
    .bind(verdict.to_string())
    .bind(&event.routing_key)
    .bind(&event.correlation_id)
    .bind(&event.payload)
    .bind(now())
    .bind(stamp(due_at))
    .execute(c)
    .await?;
    Ok(inserted.rows_affected() > 0)
}
