//! What a backfill needs, in SQLite.

use async_trait::async_trait;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::{BEGIN, Sqlite, now, stamp};
use crate::job::{Digests, ImageRef};
use crate::ledger::columns::{parse_outcome, parse_uuid, to_json};
use crate::ledger::{BACKFILL_LEASE_TIMEOUT, CurrentVerdict, LedgerError, Reconcile};

/// Whether a job was answered after it was published, by a first verdict or by a later revision.
macro_rules! answered {
    () => {
        "EXISTS (SELECT 1 FROM verdicts WHERE id = job.id AND coalesce(judged_at, decided_at) >= job.published_at)"
    };
}

#[async_trait]
impl Reconcile for Sqlite {
    async fn take_backfill_lease(&self, process: Uuid) -> Result<bool, LedgerError> {
        let taken = self.run(move |c| {
            let query = sqlx::query(
                "INSERT INTO backfill_turn AS turn (process, alive_at) VALUES ($1, $2)
                 ON CONFLICT (only_one) DO UPDATE SET process = excluded.process, alive_at = excluded.alive_at
                 WHERE turn.process = excluded.process OR turn.alive_at < $3",
            );
            let dead = stamp(OffsetDateTime::now_utc() - BACKFILL_LEASE_TIMEOUT);
            Box::pin(query.bind(process.to_string()).bind(now()).bind(dead).execute(c))
        });
        Ok(taken.await?.rows_affected() > 0)
    }

    async fn release_backfill_lease(&self, process: Uuid) -> Result<(), LedgerError> {
        self.run(move |c| {
            Box::pin(sqlx::query("DELETE FROM backfill_turn WHERE process = $1").bind(process.to_string()).execute(c))
        })
        .await
        .map(drop)
    }

    async fn backfill_progress(&self, id: &str) -> Result<Option<(String, OffsetDateTime)>, LedgerError> {
        let id = id.to_owned();
        self.run(move |c| {
            Box::pin(
                sqlx::query_as("SELECT mark, kept_at FROM backfill_progress WHERE id = $1").bind(id).fetch_optional(c),
            )
        })
        .await
    }

    async fn save_backfill_progress(&self, id: &str, mark: Option<&str>) -> Result<(), LedgerError> {
        let (id, mark) = (id.to_owned(), mark.map(str::to_owned));
        self.run(move |c| {
            Box::pin(match mark {
                Some(mark) => sqlx::query(
                    "INSERT INTO backfill_progress (id, mark, kept_at) VALUES ($1, $2, $3)
                     ON CONFLICT (id) DO UPDATE SET mark = excluded.mark, kept_at = excluded.kept_at",
                )
                .bind(id)
                .bind(mark)
                .bind(now())
                .execute(c),
                None => sqlx::query("DELETE FROM backfill_progress WHERE id = $1").bind(id).execute(c),
            })
        })
        .await
        .map(drop)
    }

    async fn current_verdicts(
        &self,
        objects: &[ImageRef],
        digests: &Digests,
    ) -> Result<Vec<Option<CurrentVerdict>>, LedgerError> {
        let (objects, digests) = (objects.to_vec(), to_json(digests));
        self.run(move |c| {
            Box::pin(async move {
                let mut current_verdicts = Vec::with_capacity(objects.len());
                for object in objects {
                    let query = sqlx::query(
                        "SELECT job_id, outcome, decided_at FROM verdicts
                         WHERE bucket = $1 AND key = $2 AND etag IS $3 AND detectors = $4
                         ORDER BY outcome IN ('missing', 'failed'), coalesce(judged_at, decided_at) DESC LIMIT 1",
                    );
                    let query = query.bind(object.bucket).bind(object.key).bind(object.etag).bind(&digests);
                    let current = query.fetch_optional(&mut *c).await?.map(|row| {
                        let outcome = parse_outcome(row.try_get("outcome")?)?;
                        let (job_id, decided_at) = (row.try_get("job_id")?, row.try_get("decided_at")?);
                        Ok::<_, sqlx::Error>(CurrentVerdict { job_id, outcome, decided_at })
                    });
                    current_verdicts.push(current.transpose()?);
                }
                Ok(current_verdicts)
            })
        })
        .await
    }

    async fn pending_jobs(&self, ids: &[Uuid], since: OffsetDateTime) -> Result<Vec<Uuid>, LedgerError> {
        let ids = ids.to_vec();
        self.run(move |c| {
            Box::pin(async move {
                let names: Vec<String> = ids.iter().map(Uuid::to_string).collect();
                let query = concat!(
                    "SELECT id FROM backfill_jobs AS job
                     WHERE id IN (SELECT value FROM json_each($1)) AND published_at >= $2 AND NOT ",
                    answered!()
                );
                let query = sqlx::query_scalar(query).bind(to_json(&names)).bind(stamp(since));
                let found: Vec<String> = query.fetch_all(c).await?;
                found.iter().map(|id| parse_uuid(id)).collect()
            })
        })
        .await
    }

    async fn record_published_jobs(&self, ids: &[Uuid], at: OffsetDateTime) -> Result<(), LedgerError> {
        let (ids, at) = (ids.to_vec(), stamp(at));
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                for id in ids {
                    let query = "INSERT INTO backfill_jobs (id, published_at) VALUES ($1, $2)
                                 ON CONFLICT (id) DO UPDATE SET published_at = excluded.published_at";
                    sqlx::query(query).bind(id.to_string()).bind(&at).execute(&mut *transaction).await?;
                }
                transaction.commit().await
            })
        })
        .await
    }

    async fn delete_answered_jobs(&self, before: OffsetDateTime) -> Result<u64, LedgerError> {
        let done = self.run(move |c| {
            let query =
                sqlx::query(concat!("DELETE FROM backfill_jobs AS job WHERE published_at < $1 OR ", answered!()));
            Box::pin(query.bind(stamp(before)).execute(c))
        });
        Ok(done.await?.rows_affected())
    }
}
