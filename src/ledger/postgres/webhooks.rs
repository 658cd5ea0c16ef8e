//! What is sent to webhooks, in Postgres.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::write::WrittenRows;
use super::{LONG_RESPONSE_TIMEOUT, Postgres, RESPONSE_TIMEOUT, classify_error};
use crate::ledger::{
    AfterFailure, DeliveryFilter, DeliveryState, Event, FailedAttempt, LedgerError, MAX_COUNTED_EVENTS,
    ReplaySelection, StoredDelivery, WEBHOOK_RETRY_PERIOD, WaitingDeliveries, WebhookDelivery, Webhooks,
};

/// A delivery of a verdict that waits and is not too old to keep its verdict: `WEBHOOK_RETRY_PERIOD`. As a scalar subquery it
/// is looked up for one verdict after the other.
macro_rules! waiting_delivery {
    () => {
        "(SELECT true FROM webhook_deliveries WHERE verdict_id = verdicts.id AND
              coalesce(delivered_at, given_up_at, 'infinity') = 'infinity' AND waiting_since > now() - interval '80 hours'
          LIMIT 1)"
    };
}
pub(super) use waiting_delivery;

/// Leases due deliveries to an endpoint. The time of the next attempt is the lease, which is longer than an attempt may take.
/// No transaction stays open while anything is sent. The comparison of rows is answered by `webhook_deliveries_due` alone.
fn lease_statement(limit: u32) -> String {
    format!(
        "UPDATE webhook_deliveries
         SET attempts = attempts + 1, due_at = now() + interval '60 seconds'
         WHERE id IN (
             SELECT id FROM webhook_deliveries
             WHERE delivered_at IS NULL AND given_up_at IS NULL
                 AND (endpoint, due_at) >= ($1, '-infinity') AND (endpoint, due_at) <= ($1, now())
             ORDER BY endpoint, due_at LIMIT {limit} FOR UPDATE SKIP LOCKED)
         RETURNING id, event_id, routing_key, payload, attempts"
    )
}

/// Deliveries as one array per column.
#[derive(Clone, Default)]
pub(super) struct DeliveryArrays {
    endpoint: Vec<String>,
    event_id: Vec<Uuid>,
    verdict_id: Vec<Uuid>,
    routing_key: Vec<String>,
    payload: Vec<String>,
}

impl DeliveryArrays {
    /// Of verdict ids and their events, one for each webhook that takes the event.
    pub(super) fn of<'e>(events: impl Iterator<Item = (Uuid, &'e Event)>) -> Self {
        let mut arrays = Self::default();
        for (verdict, event) in events {
            for endpoint in &event.destinations.webhooks {
                arrays.push(endpoint, event.id, verdict, &event.routing_key, &event.payload);
            }
        }
        arrays
    }

    /// Those of the verdicts that were written.
    pub(super) fn of_written(&self, written: &WrittenRows) -> Self {
        let mut arrays = Self::default();
        for (index, verdict) in self.verdict_id.iter().enumerate().filter(|(_, verdict)| written.contains_key(verdict))
        {
            let (endpoint, event) = (&self.endpoint[index], self.event_id[index]);
            arrays.push(endpoint, event, *verdict, &self.routing_key[index], &self.payload[index]);
        }
        arrays
    }

    fn push(&mut self, endpoint: &str, event: Uuid, verdict: Uuid, routing_key: &str, payload: &str) {
        self.endpoint.push(endpoint.to_owned());
        self.event_id.push(event);
        self.verdict_id.push(verdict);
        self.routing_key.push(routing_key.to_owned());
        self.payload.push(payload.to_owned());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.endpoint.is_empty()
    }

    /// Writes deliveries that are due after a while; without any, nothing is asked of the server.
    pub(super) async fn insert(&self, c: &mut PgConnection, due_in: Duration) -> Result<(), sqlx::Error> {
        if self.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(
            "INSERT INTO webhook_deliveries (endpoint, event_id, verdict_id, routing_key, payload, due_at)
             SELECT *, now() + make_interval(secs => $6)
             FROM UNNEST($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::text[])
             ON CONFLICT (verdict_id, event_id, endpoint) DO NOTHING",
        );
        let query = query.bind(&self.endpoint).bind(&self.event_id).bind(&self.verdict_id);
        query.bind(&self.routing_key).bind(&self.payload).bind(due_in.as_secs_f64()).execute(c).await.map(drop)
    }
}

fn number(n: i32) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

fn read_delivery(row: &PgRow) -> Result<WebhookDelivery, sqlx::Error> {
    Ok(WebhookDelivery {
        id: row.try_get("id")?,
        event_id: row.try_get("event_id")?,
        routing_key: row.try_get("routing_key")?,
        payload: row.try_get("payload")?,
        attempts: number(row.try_get("attempts")?),
    })
}

fn read_stored(row: &PgRow) -> Result<StoredDelivery, sqlx::Error> {
    let status: Option<i32> = row.try_get("last_status")?;
    Ok(StoredDelivery {
        id: row.try_get("id")?,
        endpoint: row.try_get("endpoint")?,
        event_id: row.try_get("event_id")?,
        verdict_id: row.try_get("verdict_id")?,
        routing_key: row.try_get("routing_key")?,
        attempts: number(row.try_get("attempts")?),
        last_status: status.and_then(|status| u16::try_from(status).ok()),
        last_error: row.try_get("last_error")?,
        created_at: row.try_get("created_at")?,
        due_at: row.try_get("due_at")?,
        delivered_at: row.try_get("delivered_at")?,
        given_up_at: row.try_get("given_up_at")?,
    })
}

#[async_trait]
impl Webhooks for Postgres {
    async fn lease_deliveries(&self, endpoint: &str, limit: u32) -> Result<Vec<WebhookDelivery>, LedgerError> {
        let endpoint = endpoint.to_owned();
        let rows = self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(sqlx::query(AssertSqlSafe(lease_statement(limit))).bind(endpoint).fetch_all(c))
        });
        let mut leased: Vec<_> =
            rows.await?.iter().map(read_delivery).collect::<Result<_, _>>().map_err(classify_error)?;
        // RETURNING keeps no order; ids follow the order of writing.
        leased.sort_unstable_by_key(|delivery| delivery.id);
        Ok(leased)
    }

    async fn mark_delivered(&self, id: i64, status: u16) -> Result<(), LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "UPDATE webhook_deliveries
                 SET delivered_at = now(), given_up_at = NULL, last_status = $2, last_error = NULL WHERE id = $1",
            );
            Box::pin(query.bind(id).bind(i32::from(status)).execute(c))
        })
        .await
        .map(drop)
    }

    async fn record_failure(&self, failed: &FailedAttempt) -> Result<(), LedgerError> {
        let failed = failed.clone();
        let retry_s = match failed.next {
            AfterFailure::RetryIn(delay) => Some(delay.as_secs_f64()),
            AfterFailure::GiveUp => None,
        };
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "UPDATE webhook_deliveries
                 SET last_status = $3, last_error = $4, due_at = coalesce(now() + make_interval(secs => $5), due_at),
                     given_up_at = CASE WHEN $5::float8 IS NULL THEN now() END
                 WHERE id = $1 AND attempts = $2 AND coalesce(delivered_at, given_up_at, 'infinity') = 'infinity'",
            );
            let attempts = i32::try_from(failed.attempts).unwrap_or(i32::MAX);
            let query = query.bind(failed.id).bind(attempts).bind(failed.status.map(i32::from)).bind(failed.error);
            Box::pin(query.bind(retry_s).execute(c))
        })
        .await
        .map(drop)
    }

    async fn give_up_waiting(&self, endpoint: &str, error: &str) -> Result<u64, LedgerError> {
        let (endpoint, error) = (endpoint.to_owned(), error.to_owned());
        let period_s = WEBHOOK_RETRY_PERIOD.as_secs_f64();
        let given_up = self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "UPDATE webhook_deliveries SET given_up_at = now(), last_error = coalesce(last_error, $2)
                 WHERE delivered_at IS NULL AND given_up_at IS NULL AND endpoint = $1
                     AND waiting_since < now() - make_interval(secs => $3)",
            );
            Box::pin(query.bind(endpoint).bind(error).bind(period_s).execute(c))
        });
        Ok(given_up.await?.rows_affected())
    }

    async fn give_up_orphans(&self, configured: &[String], error: &str) -> Result<u64, LedgerError> {
        let (configured, error) = (configured.to_vec(), error.to_owned());
        let period_s = WEBHOOK_RETRY_PERIOD.as_secs_f64();
        let given_up = self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "UPDATE webhook_deliveries SET given_up_at = now(), last_error = coalesce(last_error, $2)
                 WHERE delivered_at IS NULL AND given_up_at IS NULL AND endpoint <> ALL($1)
                     AND waiting_since < now() - make_interval(secs => $3)",
            );
            Box::pin(query.bind(configured).bind(error).bind(period_s).execute(c))
        });
        Ok(given_up.await?.rows_affected())
    }

    async fn prune_deliveries(&self, keep: Duration, limit: u32) -> Result<u64, LedgerError> {
        let keep_s = keep.as_secs_f64();
        let deleted = self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "DELETE FROM webhook_deliveries WHERE id IN (
                     SELECT id FROM webhook_deliveries WHERE delivered_at < now() - make_interval(secs => $1) LIMIT $2)",
            );
            Box::pin(query.bind(keep_s).bind(i64::from(limit)).execute(c))
        });
        Ok(deleted.await?.rows_affected())
    }

    async fn count_waiting(&self, endpoints: &[String]) -> Result<Vec<WaitingDeliveries>, LedgerError> {
        let endpoints = endpoints.to_vec();
        let rows = self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "SELECT name AS endpoint, waiting.deliveries, waiting.oldest_s
                 FROM UNNEST($1::text[]) AS name CROSS JOIN LATERAL (
                     SELECT count(*) AS deliveries,
                         coalesce(extract(epoch FROM now() - min(waiting_since)), 0)::float8 AS oldest_s
                     FROM (SELECT waiting_since FROM webhook_deliveries
                           WHERE delivered_at IS NULL AND given_up_at IS NULL
                               AND (endpoint, due_at) >= (name, '-infinity') AND (endpoint, due_at) <= (name, 'infinity')
                           ORDER BY endpoint, due_at LIMIT $2) AS first
                 ) AS waiting",
            );
            Box::pin(query.bind(endpoints).bind(i64::from(MAX_COUNTED_EVENTS)).fetch_all(c))
        });
        let waiting = |row: &PgRow| {
            Ok(WaitingDeliveries {
                endpoint: row.try_get("endpoint")?,
                deliveries: u64::try_from(row.try_get::<i64, _>("deliveries")?).unwrap_or(0),
                oldest: Duration::try_from_secs_f64(row.try_get("oldest_s")?).unwrap_or_default(),
            })
        };
        rows.await?.iter().map(waiting).collect::<Result<_, _>>().map_err(classify_error)
    }

    async fn find_deliveries(&self, filter: &DeliveryFilter, limit: u32) -> Result<Vec<StoredDelivery>, LedgerError> {
        let condition = match filter.state {
            None => "true",
            Some(DeliveryState::Pending) => "delivered_at IS NULL AND given_up_at IS NULL",
            Some(DeliveryState::Delivered) => "delivered_at IS NOT NULL",
            Some(DeliveryState::Failed) => "given_up_at IS NOT NULL",
        };
        let endpoint = filter.endpoint.clone();
        let rows = self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            let query = format!(
                "SELECT id, endpoint, event_id, verdict_id, routing_key, attempts, last_status, last_error, created_at, due_at,
                     delivered_at, given_up_at
                 FROM webhook_deliveries WHERE {condition} AND ($1::text IS NULL OR endpoint = $1)
                 ORDER BY id DESC LIMIT $2"
            );
            Box::pin(sqlx::query(AssertSqlSafe(query)).bind(endpoint).bind(i64::from(limit)).fetch_all(c))
        });
        rows.await?.iter().map(read_stored).collect::<Result<_, _>>().map_err(classify_error)
    }

    async fn replay_deliveries(&self, selection: &ReplaySelection) -> Result<u64, LedgerError> {
        const REPLAY: &str = "UPDATE webhook_deliveries
             SET delivered_at = NULL, given_up_at = NULL, attempts = 0, due_at = now(), waiting_since = now() WHERE ";
        let selection = selection.clone();
        let replayed = self.run(LONG_RESPONSE_TIMEOUT, move |c| match selection {
            ReplaySelection::Ids(ids) => {
                Box::pin(sqlx::query(AssertSqlSafe(format!("{REPLAY} id = ANY($1)"))).bind(ids).execute(c))
            }
            ReplaySelection::Where { only_failed, endpoint, since } => {
                let ended = if only_failed { "given_up_at IS NOT NULL" } else { "true" };
                let query = format!(
                    "{REPLAY} {ended} AND ($1::text IS NULL OR endpoint = $1)
                     AND ($2::timestamptz IS NULL OR created_at >= $2)"
                );
                Box::pin(sqlx::query(AssertSqlSafe(query)).bind(endpoint).bind(since).execute(c))
            }
        });
        Ok(replayed.await?.rows_affected())
    }
}
