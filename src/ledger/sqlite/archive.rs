//! Reading, pruning and rejudging verdicts in SQLite.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::verdicts::{lock_verdict, write_revision};
use super::{BEGIN, Sqlite, read_verdict_row, stamp};
use crate::job::{ImageRef, Outcome, Verdict};
use crate::ledger::columns::{LockedVerdict, parse_uuid, to_json};
use crate::ledger::{Archive, EarlierState, LedgerError, OutboxRow, Revise, StoredVerdict, VerdictFilter};

/// The condition of `count_prunable` and `delete_prunable`.
macro_rules! prunable {
    () => {
        " WHERE decided_at < $1 AND ($2 = '[]' OR outcome IN (SELECT value FROM json_each($2)))
              AND NOT EXISTS (SELECT 1 FROM outbox WHERE verdict_id = verdicts.id AND published_at IS NULL)"
    };
}

#[async_trait]
impl Archive for Sqlite {
    async fn read_verdict(&self, id: Uuid) -> Result<Option<StoredVerdict>, LedgerError> {
        self.run(move |c| {
            Box::pin(async move {
                let query = sqlx::query(concat!(select_verdicts!(), " WHERE id = $1")).bind(id.to_string());
                query.fetch_optional(c).await?.as_ref().map(read_verdict_row).transpose()
            })
        })
        .await
    }

    async fn verdicts_on_image(&self, image: &ImageRef, limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        let image = image.clone();
        self.run(move |c| {
            Box::pin(async move {
                let query =
                    concat!(select_verdicts!(), " WHERE bucket = $1 AND key = $2 ORDER BY decided_at DESC LIMIT $3");
                let query = sqlx::query(query).bind(image.bucket).bind(image.key).bind(limit);
                query.fetch_all(c).await?.iter().map(read_verdict_row).collect()
            })
        })
        .await
    }

    async fn verdicts_on_content(&self, sha256: [u8; 32], limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        self.run(move |c| {
            Box::pin(async move {
                let query = concat!(select_verdicts!(), " WHERE sha256 = $1 ORDER BY decided_at DESC LIMIT $2");
                let query = sqlx::query(query).bind(sha256.to_vec()).bind(limit);
                query.fetch_all(c).await?.iter().map(read_verdict_row).collect()
            })
        })
        .await
    }

    async fn earlier_states(&self, verdict: Uuid) -> Result<Vec<EarlierState>, LedgerError> {
        self.run(move |c| {
            Box::pin(async move {
                let earlier_state = |row: &SqliteRow| read_earlier_state!(row);
                let query = sqlx::query(select_earlier_states!()).bind(verdict.to_string());
                query.fetch_all(c).await?.iter().map(earlier_state).collect()
            })
        })
        .await
    }

    async fn outbox_rows(&self, verdict: Uuid) -> Result<Vec<OutboxRow>, LedgerError> {
        self.run(move |c| {
            Box::pin(async move {
                let query = "SELECT event_id, routing_key, created_at, published_at, tries, last_error FROM outbox
                             WHERE verdict_id = $1 ORDER BY created_at";
                let outbox_row = |row: &SqliteRow| {
                    let id: String = row.try_get("event_id")?;
                    Ok(OutboxRow {
                        event_id: parse_uuid(&id)?,
                        routing_key: row.try_get("routing_key")?,
                        created_at: row.try_get("created_at")?,
                        published_at: row.try_get("published_at")?,
                        tries: row.try_get("tries")?,
                        last_error: row.try_get("last_error")?,
                    })
                };
                sqlx::query(query).bind(verdict.to_string()).fetch_all(c).await?.iter().map(outbox_row).collect()
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
        let after = after.map(|verdict| (stamp(verdict.decided_at), verdict.id.to_string())).unzip();
        self.run(move |c| {
            Box::pin(async move {
                let outcomes: Vec<&str> = filter.outcomes.iter().map(|outcome| outcome.as_str()).collect();
                let query = sqlx::query(concat!(
                    select_verdicts!(),
                    " WHERE decided_at >= coalesce($1, '') AND decided_at < coalesce($2, '~')
                         AND ($3 = '[]' OR outcome IN (SELECT value FROM json_each($3)))
                         AND ($4 IS NULL OR $4 IN (SELECT key FROM json_each(detectors)))
                         AND ($5 IS NULL OR (decided_at, id) > ($5, $6))
                     ORDER BY decided_at, id LIMIT $7"
                ));
                let query = query.bind(filter.since.map(stamp)).bind(filter.until.map(stamp));
                let query = query.bind(to_json(&outcomes)).bind(filter.detector);
                let query = query.bind(after.0).bind(after.1).bind(limit);
                query.fetch_all(c).await?.iter().map(read_verdict_row).collect()
            })
        })
        .await
    }

    async fn count_prunable(&self, until: OffsetDateTime, outcomes: &[Outcome]) -> Result<u64, LedgerError> {
        let outcomes = to_json(&outcomes);
        let found: i64 = self
            .run(move |c| {
                let query = concat!("SELECT count(*) FROM verdicts", prunable!());
                Box::pin(sqlx::query_scalar(query).bind(stamp(until)).bind(outcomes).fetch_one(c))
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
        let outcomes = to_json(&outcomes);
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                let query = concat!("SELECT id FROM verdicts", prunable!(), " ORDER BY decided_at, id LIMIT $3");
                let query = sqlx::query_scalar(query).bind(stamp(until)).bind(outcomes).bind(limit);
                let gone: Vec<String> = query.fetch_all(&mut *transaction).await?;
                for query in [
                    "DELETE FROM outbox WHERE verdict_id IN (SELECT value FROM json_each($1))",
                    "DELETE FROM verdict_history WHERE verdict_id IN (SELECT value FROM json_each($1))",
                    "DELETE FROM verdicts WHERE id IN (SELECT value FROM json_each($1))",
                ] {
                    sqlx::query(query).bind(to_json(&gone)).execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
                Ok(gone.len() as u64)
            })
        })
        .await
    }

    async fn rejudge(&self, changes: &[Revise]) -> Result<u64, LedgerError> {
        let changes = changes.to_vec();
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                let mut changed = 0;
                for change in changes {
                    let locked = lock_verdict(&mut transaction, change.verdict.id).await?;
                    let current = |locked: &LockedVerdict| locked.existing.revision == change.expected_revision;
                    let Some(locked) = locked.filter(current) else { continue };
                    if locked.judgement == change.verdict.judgement {
                        sqlx::query("UPDATE verdicts SET policy = $2 WHERE id = $1")
                            .bind(change.verdict.id.to_string())
                            .bind(to_json(&change.verdict.policy))
                            .execute(&mut *transaction)
                            .await?;
                    } else {
                        // No process has this event in its hands: the sweeper takes it at once.
                        write_revision(&mut transaction, &change, &locked, OffsetDateTime::now_utc()).await?;
                    }
                    changed += 1;
                }
                transaction.commit().await?;
                Ok(changed)
            })
        })
        .await
    }
}
