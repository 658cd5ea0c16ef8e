//! Reading, pruning and rejudging verdicts in Postgres.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::verdicts::{lock_verdicts, replace_history};
use super::write::{EventArrays, JudgementArrays};
use super::{LONG_RESPONSE_TIMEOUT, Postgres, RESPONSE_TIMEOUT, is_contended, read_verdict_row};
use crate::job::{ImageRef, Outcome, Verdict};
use crate::ledger::columns::to_json;
use crate::ledger::{Archive, EarlierState, LedgerError, OutboxRow, Revise, StoredVerdict, VerdictFilter};
use crate::retry;

/// The condition of `count_prunable` and `delete_prunable`.
macro_rules! prunable {
    () => {
        " WHERE decided_at < $1 AND ($2 = '{}' OR outcome = ANY($2))
              AND NOT EXISTS (SELECT FROM outbox WHERE verdict_id = verdicts.id AND published_at IS NULL)"
    };
}

#[async_trait]
impl Archive for Postgres {
    async fn read_verdict(&self, id: Uuid) -> Result<Option<StoredVerdict>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let row = sqlx::query(concat!(select_verdicts!(), " WHERE id = $1")).bind(id).fetch_optional(c).await?;
                row.as_ref().map(read_verdict_row).transpose()
            })
        })
        .await
    }

    async fn verdicts_on_image(&self, image: &ImageRef, limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        let image = image.clone();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query =
                    concat!(select_verdicts!(), " WHERE bucket = $1 AND key = $2 ORDER BY decided_at DESC LIMIT $3");
                let query = sqlx::query(query).bind(image.bucket).bind(image.key).bind(i64::from(limit));
                query.fetch_all(c).await?.iter().map(read_verdict_row).collect()
            })
        })
        .await
    }

    async fn verdicts_on_content(&self, sha256: [u8; 32], limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = concat!(select_verdicts!(), " WHERE sha256 = $1 ORDER BY decided_at DESC LIMIT $2");
                let query = sqlx::query(query).bind(sha256.to_vec()).bind(i64::from(limit));
                query.fetch_all(c).await?.iter().map(read_verdict_row).collect()
            })
        })
        .await
    }

    async fn earlier_states(&self, verdict: Uuid) -> Result<Vec<EarlierState>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let earlier_state = |row: &PgRow| read_earlier_state!(row);
                let query = sqlx::query(select_earlier_states!()).bind(verdict);
                query.fetch_all(c).await?.iter().map(earlier_state).collect()
            })
        })
        .await
    }

    async fn outbox_rows(&self, verdict: Uuid) -> Result<Vec<OutboxRow>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = "SELECT event_id, routing_key, created_at, published_at, tries, last_error FROM outbox
                             WHERE verdict_id = $1 ORDER BY created_at";
                let outbox_row = |row: &PgRow| {
                    Ok(OutboxRow {
                        event_id: row.try_get("event_id")?,
                        routing_key: row.try_get("routing_key")?,
                        created_at: row.try_get("created_at")?,
                        published_at: row.try_get("published_at")?,
                        tries: row.try_get("tries")?,
                        last_error: row.try_get("last_error")?,
                    })
                };
                sqlx::query(query).bind(verdict).fetch_all(c).await?.iter().map(outbox_row).collect()
            })
        })
        .await
    }

    async fn page_of_verdicts(
        &self,
        filter: &VerdictFilter,
        after: Option<&Verdict>,
        limit: u32,
    ) -> Result<Vec<StoredVerdict>, LedgerError> {
        let filter = filter.clone();
        let after = after.map(|verdict| (verdict.decided_at, verdict.id)).unzip();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let outcomes: Vec<&str> = filter.outcomes.iter().map(|outcome| outcome.as_str()).collect();
                let query = sqlx::query(concat!(
                    select_verdicts!(),
                    " WHERE decided_at >= coalesce($1, '-infinity') AND decided_at < coalesce($2, 'infinity')
                         AND ($3 = '{}' OR outcome = ANY($3)) AND ($4::text IS NULL OR detectors ? $4)
                         AND ($5::timestamptz IS NULL OR (decided_at, id) > ($5, $6))
                     ORDER BY decided_at, verdicts.id LIMIT $7"
                ));
                let query = query.bind(filter.since).bind(filter.until).bind(outcomes).bind(filter.detector);
                let query = query.bind(after.0).bind(after.1).bind(i64::from(limit));
                query.fetch_all(c).await?.iter().map(read_verdict_row).collect()
            })
        })
        .await
    }

    async fn count_prunable(&self, until: OffsetDateTime, outcomes: &[Outcome]) -> Result<u64, LedgerError> {
        let outcomes: Vec<&'static str> = outcomes.iter().map(|outcome| outcome.as_str()).collect();
        let found: i64 = self
            .run(LONG_RESPONSE_TIMEOUT, move |c| {
                let query = concat!("SELECT count(*) FROM verdicts", prunable!());
                Box::pin(sqlx::query_scalar(query).bind(until).bind(outcomes).fetch_one(c))
            })
            .await?;
        Ok(u64::try_from(found).unwrap_or(0))
    }

    async fn delete_prunable(
        &self,
        until: OffsetDateTime,
        outcomes: &[Outcome],
        limit: u32,
    ) -> Result<u64, LedgerError> {
        let outcomes: Vec<&'static str> = outcomes.iter().map(|outcome| outcome.as_str()).collect();
        let deleted: i64 = self
            .run(LONG_RESPONSE_TIMEOUT, move |c| {
                let query = sqlx::query_scalar(concat!(
                    "WITH gone AS (
                         DELETE FROM verdicts WHERE id IN (SELECT id FROM verdicts",
                    prunable!(),
                    " ORDER BY decided_at, id LIMIT $3) RETURNING id
                     ), events AS (
                         DELETE FROM outbox WHERE verdict_id IN (SELECT id FROM gone)
                     ), history AS (
                         DELETE FROM verdict_history WHERE verdict_id IN (SELECT id FROM gone)
                     )
                     SELECT count(*) FROM gone"
                ));
                Box::pin(query.bind(until).bind(outcomes).bind(i64::from(limit)).fetch_one(c))
            })
            .await?;
        Ok(u64::try_from(deleted).unwrap_or(0))
    }

    async fn rejudge(&self, changes: &[Revise]) -> Result<u64, LedgerError> {
        let attempt = || {
            let changes = changes.to_vec();
            self.run(RESPONSE_TIMEOUT, move |c| Box::pin(rejudge(c, changes)))
        };
        retry::retry_briefly(is_contended, attempt).await
    }
}

async fn rejudge(c: &mut PgConnection, changes: Vec<Revise>) -> Result<u64, sqlx::Error> {
    let mut transaction = c.begin().await?;
    let ids: Vec<Uuid> = changes.iter().map(|change| change.verdict.id).collect();
    let locked = lock_verdicts(&mut transaction, &ids).await?;
    let current: Vec<_> = changes
        .iter()
        .filter_map(|change| Some((change, locked.get(&change.verdict.id)?)))
        .filter(|(change, locked)| locked.existing.revision == change.expected_revision)
        .collect();
    let (unchanged, revised): (Vec<_>, Vec<_>) =
        current.iter().copied().partition(|(change, locked)| locked.judgement == change.verdict.judgement);

    let policies = "UPDATE verdicts SET policy = entry.policy::jsonb
                    FROM UNNEST($1::uuid[], $2::text[]) AS entry (id, policy) WHERE verdicts.id = entry.id";
    let (ids, texts): (Vec<Uuid>, Vec<String>) =
        unchanged.iter().map(|(change, _)| (change.verdict.id, to_json(&change.verdict.policy))).unzip();
    sqlx::query(policies).bind(ids).bind(texts).execute(&mut *transaction).await?;

    replace_history(&mut transaction, &revised).await?;
    let revised = revised.iter().map(|(change, _)| *change);
    let events = revised.clone().filter_map(|change| Some((change.verdict.id, change.event.as_ref()?)));
    // No process has these events in its hands: the sweeper takes them at once.
    JudgementArrays::of(revised.clone()).write(&mut transaction, &EventArrays::of(events), Duration::ZERO).await?;
    transaction.commit().await?;
    Ok(current.len() as u64)
}
