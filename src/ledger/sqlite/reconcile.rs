//! Comparing SQLite with an archive.

use async_trait::async_trait;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::{BEGIN, Sqlite, now, stamp};
use crate::job::{Digests, ImageRef};
use crate::ledger::reconcile::{Reconcile, Standing, TURN};
use crate::ledger::{LedgerError, rows};

/// Whether a job has its verdict: one that was decided since it was published.
macro_rules! answered {
    () => {
        "EXISTS (SELECT 1 FROM verdicts WHERE id = job.id AND decided_at >= job.published_at)"
    };
}

#[async_trait]
impl Reconcile for Sqlite {
    async fn take_turn(&self, process: Uuid) -> Result<bool, LedgerError> {
        let taken = self.run(move |c| {
            let query = sqlx::query(
                "INSERT INTO backfill_turn AS turn (process, alive_at) VALUES ($1, $2)
                 ON CONFLICT (only_one) DO UPDATE SET process = excluded.process, alive_at = excluded.alive_at
                 WHERE turn.process = excluded.process OR turn.alive_at < $3",
            );
            let dead = stamp(OffsetDateTime::now_utc() - TURN);
            Box::pin(query.bind(process.to_string()).bind(now()).bind(dead).execute(c))
        });
        Ok(taken.await?.rows_affected() > 0)
    }

    async fn give_turn_back(&self, process: Uuid) -> Result<(), LedgerError> {
        self.run(move |c| {
            Box::pin(sqlx::query("DELETE FROM backfill_turn WHERE process = $1").bind(process.to_string()).execute(c))
        })
        .await
        .map(drop)
    }

    async fn progress(&self, id: &str) -> Result<Option<(String, OffsetDateTime)>, LedgerError> {
        let id = id.to_owned();
        self.run(move |c| {
            Box::pin(
                sqlx::query_as("SELECT mark, kept_at FROM backfill_progress WHERE id = $1").bind(id).fetch_optional(c),
            )
        })
        .await
    }

    async fn keep_progress(&self, id: &str, mark: Option<&str>) -> Result<(), LedgerError> {
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

    async fn standings(&self, objects: &[ImageRef], digests: &Digests) -> Result<Vec<Option<Standing>>, LedgerError> {
        let (objects, digests) = (objects.to_vec(), rows::text(digests));
        self.run(move |c| {
            Box::pin(async move {
                let mut standings = Vec::with_capacity(objects.len());
                for object in objects {
                    let query = sqlx::query(
                        "SELECT job_id, outcome, decided_at FROM verdicts
                         WHERE bucket = $1 AND key = $2 AND etag IS $3 AND detectors = $4
                         ORDER BY outcome IN ('missing', 'failed'), decided_at DESC LIMIT 1",
                    );
                    let query = query.bind(object.bucket).bind(object.key).bind(object.etag).bind(&digests);
                    let standing = query.fetch_optional(&mut *c).await?.map(|row| {
                        let outcome = rows::outcome(row.try_get("outcome")?)?;
                        let (job_id, decided_at) = (row.try_get("job_id")?, row.try_get("decided_at")?);
                        Ok::<_, sqlx::Error>(Standing { job_id, outcome, decided_at })
                    });
                    standings.push(standing.transpose()?);
                }
                Ok(standings)
            })
        })
        .await
    }

    async fn published_since(&self, ids: &[Uuid], since: OffsetDateTime) -> Result<Vec<Uuid>, LedgerError> {
        let ids = ids.to_vec();
        self.run(move |c| {
            Box::pin(async move {
                let names: Vec<String> = ids.iter().map(Uuid::to_string).collect();
                let query = concat!(
                    "SELECT id FROM backfill_jobs AS job
                     WHERE id IN (SELECT value FROM json_each($1)) AND published_at >= $2 AND NOT ",
                    answered!()
                );
                let query = sqlx::query_scalar(query).bind(rows::text(&names)).bind(stamp(since));
                let found: Vec<String> = query.fetch_all(c).await?;
                found.iter().map(|id| Uuid::parse_str(id).map_err(|e| sqlx::Error::Decode(e.into()))).collect()
            })
        })
        .await
    }

    async fn note_published_jobs(&self, ids: &[Uuid], at: OffsetDateTime) -> Result<(), LedgerError> {
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

    async fn forget_published_jobs(&self, before: OffsetDateTime) -> Result<u64, LedgerError> {
        let done = self.run(move |c| {
            let query =
                sqlx::query(concat!("DELETE FROM backfill_jobs AS job WHERE published_at < $1 OR ", answered!()));
            Box::pin(query.bind(stamp(before)).execute(c))
        });
        Ok(done.await?.rows_affected())
    }
}
