//! The outbox in Postgres.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{Postgres, RESPONSE_TIMEOUT, classify_error};
use crate::fault_injection::{self, PlantedBug};
use crate::ledger::{Event, LedgerError, Outbox, UnpublishedEvents};

/// Rows per statement, so that pruning never holds locks for long.
const PRUNE_BATCH: i64 = 5_000;

/// Leases due events, where `$condition` holds. The time of the next try is the lease: 30 s, doubled with each try, at most
/// ten minutes. No transaction stays open while events are published, and no cursor over ids can miss a late commit.
macro_rules! lease_due_events {
    ($condition:literal) => {
        concat!(
            "UPDATE outbox
             SET tries = tries + 1,
                 due_at = now() + least(interval '10 minutes', interval '30 seconds' * power(2, least(tries, 10)))
             WHERE event_id IN (
                 SELECT event_id FROM outbox WHERE published_at IS NULL AND due_at <= now()",
            $condition,
            " ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED)
             RETURNING event_id, routing_key, correlation_id, payload::text AS payload"
        )
    };
}

const LEASE_EVENTS: &str = lease_due_events!("");
/// With the planted bug [`PlantedBug::OutboxByIdCursor`].
const LEASE_EVENTS_BY_ID_CURSOR: &str = lease_due_events!(
    " AND event_id > (SELECT event_id FROM outbox WHERE published_at IS NOT NULL ORDER BY event_id DESC LIMIT 1)"
);

#[async_trait]
impl Outbox for Postgres {
    async fn lease_events(&self, limit: u32) -> Result<Vec<Event>, LedgerError> {
        let rows = self
            .run(RESPONSE_TIMEOUT, move |c| {
                let query = if fault_injection::is_planted(PlantedBug::OutboxByIdCursor) {
                    LEASE_EVENTS_BY_ID_CURSOR
                } else {
                    LEASE_EVENTS
                };
                Box::pin(sqlx::query(query).bind(i64::from(limit)).fetch_all(c))
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
        rows.iter().map(event).collect::<Result<_, _>>().map_err(classify_error)
    }

    async fn mark_published(&self, ids: &[Uuid]) -> Result<(), LedgerError> {
        let ids = ids.to_vec();
        self.run(RESPONSE_TIMEOUT, move |c| {
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
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query("UPDATE outbox SET last_error = $2 WHERE event_id = $1 AND published_at IS NULL");
            Box::pin(query.bind(id).bind(error).execute(c))
        })
        .await
        .map(drop)
    }

    async fn prune_outbox(&self, keep: Duration) -> Result<u64, LedgerError> {
        let keep_s = keep.as_secs_f64();
        let deleted = self
            .run(RESPONSE_TIMEOUT, move |c| {
                let query = sqlx::query(
                    "DELETE FROM outbox WHERE event_id IN (
                         SELECT event_id FROM outbox WHERE published_at < now() - make_interval(secs => $1) LIMIT $2)",
                );
                Box::pin(query.bind(keep_s).bind(PRUNE_BATCH).execute(c))
            })
            .await?;
        Ok(deleted.rows_affected())
    }

    async fn count_unpublished(&self) -> Result<Vec<UnpublishedEvents>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, |c| {
            Box::pin(async move {
                let query = "SELECT routing_key, count(*) AS events,
                                 extract(epoch FROM now() - min(created_at))::float8 AS oldest_s
                             FROM outbox WHERE published_at IS NULL GROUP BY routing_key";
                let unpublished = |row: &PgRow| {
                    let oldest_s = row.try_get("oldest_s")?;
                    Ok(UnpublishedEvents {
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
