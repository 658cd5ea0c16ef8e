//! Reading verdicts back from SQLite, and judging them anew.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::{BEGIN, Sqlite, owe, stamp};
use crate::job::{ImageRef, Outcome, Verdict};
use crate::ledger::rows::{self, stored};
use crate::ledger::{Announcement, Archive, Filter, LedgerError, Rejudged};

/// The condition of `count_settled` and `delete_settled`.
macro_rules! settled {
    () => {
        " WHERE decided_at < $1 AND ($2 = '[]' OR outcome IN (SELECT value FROM json_each($2)))
              AND NOT EXISTS (SELECT 1 FROM outbox WHERE verdict_id = verdicts.id AND published_at IS NULL)"
    };
}

#[async_trait]
impl Archive for Sqlite {
    async fn read(&self, id: Uuid) -> Result<Option<Verdict>, LedgerError> {
        self.run(move |c| {
            Box::pin(async move {
                let row = sqlx::query("SELECT *, id AS verdict_id FROM verdicts WHERE id = $1")
                    .bind(id.to_string())
                    .fetch_optional(c);
                row.await?.map(|row| stored!(row).verdict()).transpose()
            })
        })
        .await
    }

    async fn on_image(&self, image: &ImageRef, limit: u32) -> Result<Vec<Verdict>, LedgerError> {
        let image = image.clone();
        self.run(move |c| {
            Box::pin(async move {
                let query = "SELECT *, id AS verdict_id FROM verdicts WHERE bucket = $1 AND key = $2 ORDER BY decided_at DESC LIMIT $3";
                let query = sqlx::query(query).bind(image.bucket).bind(image.key).bind(limit);
                query.fetch_all(c).await?.iter().map(|row| stored!(row).verdict()).collect()
            })
        })
        .await
    }

    async fn events_of(&self, verdict: Uuid) -> Result<Vec<Announcement>, LedgerError> {
        self.run(move |c| {
            Box::pin(async move {
                let query = "SELECT event_id, routing_key, created_at, published_at, tries, last_error FROM outbox
                             WHERE verdict_id = $1 ORDER BY created_at";
                let announcement = |row: &SqliteRow| {
                    let id: String = row.try_get("event_id")?;
                    Ok(Announcement {
                        event: Uuid::parse_str(&id).map_err(|e| sqlx::Error::Decode(e.into()))?,
                        routing_key: row.try_get("routing_key")?,
                        created_at: row.try_get("created_at")?,
                        published_at: row.try_get("published_at")?,
                        tries: row.try_get("tries")?,
                        last_error: row.try_get("last_error")?,
                    })
                };
                sqlx::query(query).bind(verdict.to_string()).fetch_all(c).await?.iter().map(announcement).collect()
            })
        })
        .await
    }

    async fn page(&self, filter: &Filter, after: Option<&Verdict>, limit: u32) -> Result<Vec<Verdict>, LedgerError> {
        let filter = filter.clone();
        let after = after.map(|verdict| (stamp(verdict.decided_at), verdict.id.to_string())).unzip();
        self.run(move |c| {
            Box::pin(async move {
                let outcomes: Vec<&str> = filter.outcomes.iter().map(|outcome| outcome.as_str()).collect();
                let query = sqlx::query(
                    "SELECT *, id AS verdict_id FROM verdicts
                     WHERE decided_at >= coalesce($1, '') AND decided_at < coalesce($2, '~')
                         AND ($3 = '[]' OR outcome IN (SELECT value FROM json_each($3)))
                         AND ($4 IS NULL OR $4 IN (SELECT key FROM json_each(detectors)))
                         AND ($5 IS NULL OR (decided_at, id) > ($5, $6))
                     ORDER BY decided_at, id LIMIT $7",
                );
                let query = query.bind(filter.since.map(stamp)).bind(filter.until.map(stamp));
                let query = query.bind(rows::text(&outcomes)).bind(filter.detector);
                let query = query.bind(after.0).bind(after.1).bind(limit);
                query.fetch_all(c).await?.iter().map(|row| stored!(row).verdict()).collect()
            })
        })
        .await
    }

    async fn count_settled(&self, until: OffsetDateTime, outcomes: &[Outcome]) -> Result<u64, LedgerError> {
        let outcomes = rows::text(&outcomes);
        let found: i64 = self
            .run(move |c| {
                let query = concat!("SELECT count(*) FROM verdicts", settled!());
                Box::pin(sqlx::query_scalar(query).bind(stamp(until)).bind(outcomes).fetch_one(c))
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
        let outcomes = rows::text(&outcomes);
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                let query = concat!("SELECT id FROM verdicts", settled!(), " ORDER BY decided_at, id LIMIT $3");
                let query = sqlx::query_scalar(query).bind(stamp(until)).bind(outcomes).bind(limit);
                let gone: Vec<String> = query.fetch_all(&mut *transaction).await?;
                for query in [
                    "DELETE FROM outbox WHERE verdict_id IN (SELECT value FROM json_each($1))",
                    "DELETE FROM verdicts WHERE id IN (SELECT value FROM json_each($1))",
                ] {
                    sqlx::query(query).bind(rows::text(&gone)).execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
                Ok(gone.len() as u64)
            })
        })
        .await
    }

    async fn rejudge(&self, changes: &[Rejudged]) -> Result<u64, LedgerError> {
        let changes = changes.to_vec();
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                let mut made = 0;
                for change in changes {
                    let judgement = change.judgement;
                    let done = sqlx::query(
                        "UPDATE verdicts
                         SET outcome = $3, reason = $4, label = $5, score = $6, policy = $7, decided_at = $8
                         WHERE id = $1 AND policy ->> 'sha256' = $2 AND scores IS NOT NULL",
                    )
                    .bind(change.id.to_string())
                    .bind(change.before)
                    .bind(judgement.outcome.as_str())
                    .bind(judgement.reason)
                    .bind(judgement.label)
                    .bind(judgement.score)
                    .bind(rows::text(&change.policy))
                    .bind(stamp(change.decided_at))
                    .execute(&mut *transaction)
                    .await?;
                    made += done.rows_affected();
                    if let Some(event) = change.event.filter(|_| done.rows_affected() > 0) {
                        owe(&mut transaction, change.id, &event, OffsetDateTime::now_utc()).await?;
                    }
                }
                transaction.commit().await?;
                Ok(made)
            })
        })
        .await
    }
}
