//! Reading verdicts back from Postgres, and judging them anew.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

use super::{ANSWER, Postgres, select_verdicts};
use crate::job::{ImageRef, Outcome, Verdict};
use crate::ledger::rows::{self, stored};
use crate::ledger::{Announcement, Archive, Filter, LedgerError, Rejudged};

/// Longest wait for an answer that takes reading a large part of a table.
const LONG_ANSWER: Duration = Duration::from_secs(300);

/// The condition of `count_settled` and `delete_settled`.
macro_rules! settled {
    () => {
        " WHERE decided_at < $1 AND ($2 = '{}' OR outcome = ANY($2))
              AND NOT EXISTS (SELECT FROM outbox WHERE verdict_id = verdicts.id AND published_at IS NULL)"
    };
}

#[async_trait]
impl Archive for Postgres {
    async fn read(&self, id: Uuid) -> Result<Option<Verdict>, LedgerError> {
        self.run(ANSWER, move |c| {
            Box::pin(async move {
                let row = sqlx::query(concat!(select_verdicts!(), " WHERE id = $1")).bind(id).fetch_optional(c).await?;
                row.map(|row| stored!(row).verdict()).transpose()
            })
        })
        .await
    }

    async fn on_image(&self, image: &ImageRef, limit: u32) -> Result<Vec<Verdict>, LedgerError> {
        let image = image.clone();
        self.run(ANSWER, move |c| {
            Box::pin(async move {
                let query =
                    concat!(select_verdicts!(), " WHERE bucket = $1 AND key = $2 ORDER BY decided_at DESC LIMIT $3");
                let query = sqlx::query(query).bind(image.bucket).bind(image.key).bind(i64::from(limit));
                query.fetch_all(c).await?.iter().map(|row| stored!(row).verdict()).collect()
            })
        })
        .await
    }

    async fn events_of(&self, verdict: Uuid) -> Result<Vec<Announcement>, LedgerError> {
        self.run(ANSWER, move |c| {
            Box::pin(async move {
                let query = "SELECT event_id, routing_key, created_at, published_at, tries, last_error FROM outbox
                             WHERE verdict_id = $1 ORDER BY created_at";
                let announcement = |row: &PgRow| {
                    Ok(Announcement {
                        event: row.try_get("event_id")?,
                        routing_key: row.try_get("routing_key")?,
                        created_at: row.try_get("created_at")?,
                        published_at: row.try_get("published_at")?,
                        tries: row.try_get("tries")?,
                        last_error: row.try_get("last_error")?,
                    })
                };
                sqlx::query(query).bind(verdict).fetch_all(c).await?.iter().map(announcement).collect()
            })
        })
        .await
    }

    async fn page(&self, filter: &Filter, after: Option<&Verdict>, limit: u32) -> Result<Vec<Verdict>, LedgerError> {
        let filter = filter.clone();
        let after = after.map(|verdict| (verdict.decided_at, verdict.id)).unzip();
        self.run(ANSWER, move |c| {
            Box::pin(async move {
                let outcomes: Vec<&str> = filter.outcomes.iter().map(|outcome| outcome.as_str()).collect();
                let query = sqlx::query(concat!(
                    select_verdicts!(),
                    " WHERE decided_at >= coalesce($1, '-infinity') AND decided_at < coalesce($2, 'infinity')
                         AND ($3 = '{}' OR outcome = ANY($3)) AND ($4::text IS NULL OR detectors ? $4)
                         AND ($5::timestamptz IS NULL OR (decided_at, id) > ($5, $6))
                     ORDER BY decided_at, id LIMIT $7"
                ));
                let query = query.bind(filter.since).bind(filter.until).bind(outcomes).bind(filter.detector);
                let query = query.bind(after.0).bind(after.1).bind(i64::from(limit));
                query.fetch_all(c).await?.iter().map(|row| stored!(row).verdict()).collect()
            })
        })
        .await
    }

    async fn count_settled(&self, until: OffsetDateTime, outcomes: &[Outcome]) -> Result<u64, LedgerError> {
        let outcomes: Vec<&'static str> = outcomes.iter().map(|outcome| outcome.as_str()).collect();
        let found: i64 = self
            .run(LONG_ANSWER, move |c| {
                let query = concat!("SELECT count(*) FROM verdicts", settled!());
                Box::pin(sqlx::query_scalar(query).bind(until).bind(outcomes).fetch_one(c))
            })
            .await?;
        Ok(u64::try_from(found).unwrap_or(0))
    }

    async fn delete_settled(
        &self,
        until: OffsetDateTime,
        outcomes: &[Outcome],
        limit: u32,
    ) -> Result<u64, LedgerError> {
        let outcomes: Vec<&'static str> = outcomes.iter().map(|outcome| outcome.as_str()).collect();
        let deleted: i64 = self
            .run(LONG_ANSWER, move |c| {
                let query = sqlx::query_scalar(concat!(
                    "WITH gone AS (
                         DELETE FROM verdicts WHERE id IN (SELECT id FROM verdicts",
                    settled!(),
                    " ORDER BY decided_at, id LIMIT $3) RETURNING id
                     ), events AS (
                         DELETE FROM outbox WHERE verdict_id IN (SELECT id FROM gone)
                     )
                     SELECT count(*) FROM gone"
                ));
                Box::pin(query.bind(until).bind(outcomes).bind(i64::from(limit)).fetch_one(c))
            })
            .await?;
        Ok(u64::try_from(deleted).unwrap_or(0))
    }

    async fn rejudge(&self, changes: &[Rejudged]) -> Result<u64, LedgerError> {
        let changes = changes.to_vec();
        self.run(ANSWER, move |c| {
            Box::pin(async move {
                let mut transaction = sqlx::Connection::begin(c).await?;
                let mut made = 0;
                for change in changes {
                    let judgement = change.judgement;
                    let done = sqlx::query(
                        "UPDATE verdicts
                         SET outcome = $3, reason = $4, label = $5, score = $6, policy = $7::jsonb, decided_at = $8
                         WHERE id = $1 AND policy->>'sha256' = $2 AND scores IS NOT NULL",
                    )
                    .bind(change.id)
                    .bind(change.before)
                    .bind(judgement.outcome.as_str())
                    .bind(judgement.reason)
                    .bind(judgement.label)
                    .bind(judgement.score)
                    .bind(rows::text(&change.policy))
                    .bind(change.decided_at)
                    .execute(&mut *transaction)
                    .await?;
                    made += done.rows_affected();
                    let Some(event) = change.event.filter(|_| done.rows_affected() > 0) else { continue };
                    sqlx::query(
                        "INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, due_at)
                         VALUES ($1, $2, $3, $4, $5::jsonb, now()) ON CONFLICT (event_id) DO NOTHING",
                    )
                    .bind(event.id)
                    .bind(change.id)
                    .bind(event.routing_key)
                    .bind(event.correlation_id)
                    .bind(event.payload)
                    .execute(&mut *transaction)
                    .await?;
                }
                transaction.commit().await?;
                Ok(made)
            })
        })
        .await
    }
}
