//! Comparing Postgres with an archive.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

use super::{ANSWER, Postgres};
use crate::job::{Digests, ImageRef};
use crate::ledger::reconcile::{Reconcile, Standing, TURN};
use crate::ledger::{LedgerError, rows};

/// Whether a job has its verdict: one that was decided since it was published.
macro_rules! answered {
    () => {
        "EXISTS (SELECT FROM verdicts WHERE id = job.id AND decided_at >= job.published_at)"
    };
}

#[async_trait]
impl Reconcile for Postgres {
    async fn take_turn(&self, process: Uuid) -> Result<bool, LedgerError> {
        let taken = self.run(ANSWER, move |c| {
            let query = sqlx::query(
                "INSERT INTO backfill_turn AS turn (process, alive_at) VALUES ($1, now())
                 ON CONFLICT (only_one) DO UPDATE SET process = excluded.process, alive_at = excluded.alive_at
                 WHERE turn.process = excluded.process OR turn.alive_at < now() - make_interval(secs => $2)",
            );
            Box::pin(query.bind(process).bind(TURN.as_secs_f64()).execute(c))
        });
        Ok(taken.await?.rows_affected() > 0)
    }

    async fn give_turn_back(&self, process: Uuid) -> Result<(), LedgerError> {
        self.run(ANSWER, move |c| {
            Box::pin(sqlx::query("DELETE FROM backfill_turn WHERE process = $1").bind(process).execute(c))
        })
        .await
        .map(drop)
    }

    async fn progress(&self, id: &str) -> Result<Option<(String, OffsetDateTime)>, LedgerError> {
        let id = id.to_owned();
        self.run(ANSWER, move |c| {
            Box::pin(
                sqlx::query_as("SELECT mark, kept_at FROM backfill_progress WHERE id = $1").bind(id).fetch_optional(c),
            )
        })
        .await
    }

    async fn keep_progress(&self, id: &str, mark: Option<&str>) -> Result<(), LedgerError> {
        let (id, mark) = (id.to_owned(), mark.map(str::to_owned));
        self.run(ANSWER, move |c| {
            Box::pin(match mark {
                Some(mark) => sqlx::query(
                    "INSERT INTO backfill_progress (id, mark) VALUES ($1, $2)
                     ON CONFLICT (id) DO UPDATE SET mark = excluded.mark, kept_at = now()",
                )
                .bind(id)
                .bind(mark)
                .execute(c),
                None => sqlx::query("DELETE FROM backfill_progress WHERE id = $1").bind(id).execute(c),
            })
        })
        .await
        .map(drop)
    }

    async fn standings(&self, objects: &[ImageRef], digests: &Digests) -> Result<Vec<Option<Standing>>, LedgerError> {
        let buckets: Vec<String> = objects.iter().map(|object| object.bucket.clone()).collect();
        let keys: Vec<String> = objects.iter().map(|object| object.key.clone()).collect();
        let etags: Vec<Option<String>> = objects.iter().map(|object| object.etag.clone()).collect();
        let digests = Json(digests.clone());
        let count = objects.len();
        self.run(ANSWER, move |c| {
            Box::pin(async move {
                let query = sqlx::query(
                    "SELECT object.number, verdict.job_id, verdict.outcome, verdict.decided_at
                     FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS object (bucket, key, etag, number)
                     CROSS JOIN LATERAL (
                         SELECT job_id, outcome, decided_at FROM verdicts
                         WHERE bucket = object.bucket AND key = object.key AND etag IS NOT DISTINCT FROM object.etag
                             AND detectors = $4
                         ORDER BY outcome IN ('missing', 'failed'), decided_at DESC LIMIT 1
                     ) AS verdict",
                );
                let mut standings = vec![None; count];
                for row in query.bind(buckets).bind(keys).bind(etags).bind(digests).fetch_all(c).await? {
                    let number: i64 = row.try_get("number")?;
                    let place = usize::try_from(number - 1).ok().and_then(|place| standings.get_mut(place));
                    if let Some(standing) = place {
                        let outcome = rows::outcome(row.try_get("outcome")?)?;
                        let (job_id, decided_at) = (row.try_get("job_id")?, row.try_get("decided_at")?);
                        *standing = Some(Standing { job_id, outcome, decided_at });
                    }
                }
                Ok(standings)
            })
        })
        .await
    }

    async fn published_since(&self, ids: &[Uuid], since: OffsetDateTime) -> Result<Vec<Uuid>, LedgerError> {
        let ids = ids.to_vec();
        self.run(ANSWER, move |c| {
            let query = sqlx::query_scalar(concat!(
                "SELECT id FROM backfill_jobs AS job WHERE id = ANY($1) AND published_at >= $2 AND NOT ",
                answered!()
            ));
            Box::pin(query.bind(ids).bind(since).fetch_all(c))
        })
        .await
    }

    async fn note_published_jobs(&self, ids: &[Uuid], at: OffsetDateTime) -> Result<(), LedgerError> {
        let ids = ids.to_vec();
        self.run(ANSWER, move |c| {
            let query = sqlx::query(
                "INSERT INTO backfill_jobs (id, published_at) SELECT DISTINCT id, $2 FROM unnest($1::uuid[]) AS job (id)
                 ON CONFLICT (id) DO UPDATE SET published_at = excluded.published_at",
            );
            Box::pin(query.bind(ids).bind(at).execute(c))
        })
        .await
        .map(drop)
    }

    async fn forget_published_jobs(&self, before: OffsetDateTime) -> Result<u64, LedgerError> {
        let done = self.run(ANSWER, move |c| {
            let query =
                sqlx::query(concat!("DELETE FROM backfill_jobs AS job WHERE published_at < $1 OR ", answered!()));
            Box::pin(query.bind(before).execute(c))
        });
        Ok(done.await?.rows_affected())
    }
}
