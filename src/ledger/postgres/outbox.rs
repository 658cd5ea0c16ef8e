//! The outbox in Postgres.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{Postgres, RESPONSE_TIMEOUT, classify_error};
use crate::fault_injection::{self, PlantedBug};
use crate::ledger::{Destinations, Event, LedgerError, MAX_COUNTED_EVENTS, Outbox, UnpublishedEvents};

/// Leases due events of a routing key. The time of the next try is the lease: 30 s, doubled with each try, at most ten
/// minutes. No transaction stays open while events are published, and no cursor over ids can miss a late commit.
///
/// The comparison of rows is answered by `outbox_by_key` alone, and the number in the text gives a plan that reads no more
/// rows than it leases.
fn lease_statement(limit: u32) -> String {
    // With the planted bug, events whose id is smaller than that of a published event are never found.
    let condition = if fault_injection::is_planted(PlantedBug::OutboxByIdCursor) {
        "AND event_id > (SELECT event_id FROM outbox WHERE published_at IS NOT NULL ORDER BY event_id DESC LIMIT 1)"
    } else {
        ""
    };
    format!(
        "UPDATE outbox
         SET tries = tries + 1,
             due_at = now() + least(interval '10 minutes', interval '30 seconds' * power(2, least(tries, 10)))
         WHERE event_id IN (
             SELECT event_id FROM outbox
             WHERE published_at IS NULL AND (routing_key, due_at) >= ($1, '-infinity') AND (routing_key, due_at) <= ($1, now())
                 {condition}
             ORDER BY routing_key, due_at LIMIT {limit} FOR UPDATE SKIP LOCKED)
         RETURNING event_id, routing_key, correlation_id, payload::text AS payload"
    )
}

/// The routing keys of unpublished events: each step jumps to the next key in `outbox_by_key`.
macro_rules! unpublished_keys {
    () => {
        "WITH RECURSIVE known AS (
             (SELECT routing_key FROM outbox WHERE published_at IS NULL ORDER BY routing_key, due_at LIMIT 1)
             UNION ALL
             SELECT (SELECT routing_key FROM outbox WHERE published_at IS NULL AND routing_key > known.routing_key
                     ORDER BY routing_key, due_at LIMIT 1)
             FROM known WHERE known.routing_key IS NOT NULL
         )"
    };
}

#[async_trait]
impl Outbox for Postgres {
    async fn unpublished_keys(&self) -> Result<Vec<String>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, |c| {
            let query = concat!(unpublished_keys!(), " SELECT routing_key FROM known WHERE routing_key IS NOT NULL");
            Box::pin(sqlx::query_scalar(query).fetch_all(c))
        })
        .await
    }

    async fn lease_events(&self, routing_key: &str, limit: u32) -> Result<Vec<Event>, LedgerError> {
        let routing_key = routing_key.to_owned();
        let rows = self
            .run(RESPONSE_TIMEOUT, move |c| {
                Box::pin(sqlx::query(AssertSqlSafe(lease_statement(limit))).bind(routing_key).fetch_all(c))
            })
            .await?;
        let event = |row: &PgRow| {
            Ok(Event {
                id: row.try_get("event_id")?,
                routing_key: row.try_get("routing_key")?,
                correlation_id: row.try_get("correlation_id")?,
                payload: row.try_get("payload")?,
                destinations: Destinations::default(),
            })
        };
        rows.iter().map(event).collect::<Result<_, _>>().map_err(classify_error)
    }

    async fn mark_published(&self, ids: &[Uuid]) -> Result<(), LedgerError> {
        let ids = ids.to_vec();
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(concat!(
                "UPDATE outbox SET published_at = now(), last_error = NULL WHERE event_id = ANY($1) AND ",
                unpublished!()
            ));
            Box::pin(query.bind(ids).execute(c))
        })
        .await
        .map(drop)
    }

    async fn note_unpublished(&self, id: Uuid, error: &str) -> Result<(), LedgerError> {
        let error = error.to_owned();
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query =
                sqlx::query(concat!("UPDATE outbox SET last_error = $2 WHERE event_id = $1 AND ", unpublished!()));
            Box::pin(query.bind(id).bind(error).execute(c))
        })
        .await
        .map(drop)
    }

    async fn prune_outbox(&self, keep: Duration, limit: u32) -> Result<u64, LedgerError> {
        let keep_s = keep.as_secs_f64();
        let deleted = self
            .run(RESPONSE_TIMEOUT, move |c| {
                let query = sqlx::query(
                    "DELETE FROM outbox WHERE event_id IN (
                         SELECT event_id FROM outbox WHERE published_at < now() - make_interval(secs => $1) LIMIT $2)",
                );
                Box::pin(query.bind(keep_s).bind(i64::from(limit)).execute(c))
            })
            .await?;
        Ok(deleted.rows_affected())
    }

    async fn count_unpublished(&self) -> Result<Vec<UnpublishedEvents>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, |c| {
            Box::pin(async move {
                let query = concat!(
                    unpublished_keys!(),
                    " SELECT known.routing_key, waiting.events, waiting.oldest_s
                      FROM known CROSS JOIN LATERAL (
                          SELECT count(*) AS events, extract(epoch FROM now() - min(created_at))::float8 AS oldest_s
                          FROM (SELECT created_at FROM outbox
                                WHERE published_at IS NULL AND (routing_key, due_at) >= (known.routing_key, '-infinity')
                                    AND (routing_key, due_at) <= (known.routing_key, 'infinity')
                                ORDER BY routing_key, due_at LIMIT $1) AS first
                      ) AS waiting
                      WHERE known.routing_key IS NOT NULL AND waiting.events > 0"
                );
                let unpublished = |row: &PgRow| {
                    let oldest_s = row.try_get("oldest_s")?;
                    Ok(UnpublishedEvents {
                        routing_key: row.try_get("routing_key")?,
                        events: u64::try_from(row.try_get::<i64, _>("events")?).unwrap_or(0),
                        oldest: Duration::try_from_secs_f64(oldest_s).unwrap_or_default(),
                    })
                };
                let query = sqlx::query(query).bind(i64::from(MAX_COUNTED_EVENTS));
                query.fetch_all(c).await?.iter().map(unpublished).collect()
            })
        })
        .await
    }
}
