//! Reading, pruning and rejudging verdicts in SQLite.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::erasure::{has_field, is_held, sql_now, with_hold};
use super::pages::Part;
use super::verdicts::{lock_verdict, write_revision};
use super::{BEGIN, Sqlite, read_verdict_row};
use crate::job::{ImageRef, Verdict};
use crate::ledger::columns::{LockedVerdict, findings_json, parse_uuid, to_json};
use crate::ledger::{
    Archive, EarlierState, KeptBy, LedgerError, OutboxRow, Position, PrunedPage, Revise, StoredVerdict, VerdictFilter,
    VerdictPage,
};

/// The condition of a verdict that may be pruned.
const PRUNABLE: &str = concat!(
    "NOT EXISTS (SELECT 1 FROM outbox WHERE verdict_id = verdicts.id AND published_at IS NULL) AND NOT ",
    with_hold!()
);
/// The condition of a verdict that may not be pruned yet because of its event.
const WITH_UNPUBLISHED_EVENT: &str = concat!(
    "EXISTS (SELECT 1 FROM outbox WHERE verdict_id = verdicts.id AND published_at IS NULL) AND NOT ",
    with_hold!()
);

impl Sqlite {
    /// How many selected verdicts of one page satisfy the condition.
    async fn count_page(
        &self,
        filter: &VerdictFilter,
        from: Option<Position>,
        condition: &'static str,
    ) -> Result<PrunedPage, LedgerError> {
        let filter = filter.clone();
        self.run(move |c| {
            Box::pin(async move {
                let mut part = Part::new(&filter, from);
                let next = part.shorten(&mut *c).await?;
                let mut query = part.query("SELECT count(*) FROM verdicts");
                query.push(" AND ").push(condition);
                let found: i64 = query.build_query_scalar().fetch_one(c).await?;
                Ok(PrunedPage { verdicts: u64::try_from(found).unwrap_or(0), next })
            })
        })
        .await
    }
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

    async fn verdicts_that_scored(&self, sha256: [u8; 32], limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        self.run(move |c| {
            Box::pin(async move {
                // The conditions are those of the index verdicts_by_content.
                let query = sqlx::query(concat!(
                    select_verdicts!(),
                    " WHERE sha256 = $1 AND scores IS NOT NULL AND reused_from IS NULL ORDER BY decided_at DESC LIMIT $2"
                ));
                let query = query.bind(sha256.to_vec()).bind(limit);
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

    async fn read_policy(&self, sha256: &str) -> Result<Option<String>, LedgerError> {
        let sha256 = sha256.to_owned();
        self.run(move |c| {
            let query = sqlx::query_scalar("SELECT text FROM policies WHERE sha256 = $1");
            Box::pin(query.bind(sha256).fetch_optional(c))
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
        from: Option<Position>,
        limit: u32,
    ) -> Result<VerdictPage, LedgerError> {
        let filter = filter.clone();
        self.run(move |c| {
            Box::pin(async move {
                let mut part = Part::new(&filter, from);
                let next = part.shorten(&mut *c).await?;
                let mut query = part.query(select_verdicts!());
                query.push(format_args!(" ORDER BY {}, id LIMIT {limit}", part.time()));
                let rows = query.build().fetch_all(c).await?;
                let verdicts = rows.iter().map(read_verdict_row).collect::<Result<_, _>>()?;
                Ok(VerdictPage { verdicts, next }.cut(&filter, limit))
            })
        })
        .await
    }

    async fn count_prunable(&self, filter: &VerdictFilter, from: Option<Position>) -> Result<PrunedPage, LedgerError> {
        self.count_page(filter, from, PRUNABLE).await
    }

    async fn count_unprunable(
        &self,
        filter: &VerdictFilter,
        from: Option<Position>,
        kept_by: KeptBy,
    ) -> Result<PrunedPage, LedgerError> {
        let condition = match kept_by {
            KeptBy::Hold => with_hold!(),
            KeptBy::UnpublishedEvent => WITH_UNPUBLISHED_EVENT,
            // A file has no reports.
            KeptBy::OpenReport => "false",
        };
        self.count_page(filter, from, condition).await
    }

    async fn delete_prunable(
        &self,
        filter: &VerdictFilter,
        from: Option<Position>,
        limit: u32,
    ) -> Result<PrunedPage, LedgerError> {
        let filter = filter.clone();
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                let mut part = Part::new(&filter, from);
                let mut next = part.shorten(&mut transaction).await?;
                let mut query = part.query("SELECT id, decided_at FROM verdicts");
                query.push(" AND ").push(PRUNABLE);
                query.push(format_args!(" ORDER BY decided_at, id LIMIT {limit}"));
                let rows = query.build().fetch_all(&mut *transaction).await?;
                let gone: Vec<String> = rows.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
                if let (Some(row), Some(id)) = (rows.last(), gone.last())
                    && gone.len() >= limit as usize
                {
                    next = Some(Position::behind(row.try_get("decided_at")?, parse_uuid(id)?));
                }
                for query in [
                    "DELETE FROM outbox WHERE verdict_id IN (SELECT value FROM json_each($1))",
                    "DELETE FROM verdict_history WHERE verdict_id IN (SELECT value FROM json_each($1))",
                    "DELETE FROM verdicts WHERE id IN (SELECT value FROM json_each($1))",
                ] {
                    sqlx::query(query).bind(to_json(&gone)).execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
                Ok(PrunedPage { verdicts: gone.len() as u64, next })
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
                    if change.verdict.judgement.looks_as(&locked.judgement) {
                        let Verdict { id, policy, judgement, .. } = &change.verdict;
                        let query =
                            "UPDATE verdicts SET policy = $2, findings = $3, label = $4, score = $5 WHERE id = $1";
                        sqlx::query(query)
                            .bind(id.to_string())
                            .bind(to_json(policy))
                            .bind(findings_json(&judgement.findings))
                            .bind(&judgement.label)
                            .bind(judgement.score)
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
