//! What a backfill needs, in Postgres.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

use super::{Postgres, RESPONSE_TIMEOUT};
use crate::job::{Digests, ImageRef};
use crate::ledger::columns::parse_outcome;
use crate::ledger::{BACKFILL_LEASE_TIMEOUT, CurrentVerdict, LedgerError, Reconcile};

/// Whether a job was answered after it was published, by a first verdict or by a later revision.
macro_rules! answered {
    () => {
        "EXISTS (SELECT FROM verdicts WHERE id = job.id AND coalesce(judged_at, decided_at) >= job.published_at)"
    };
}

#[async_trait]
impl Reconcile for Postgres {
    async fn take_backfill_lease(&self, process: Uuid) -> Result<bool, LedgerError> {
        let taken = self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "INSERT INTO backfill_turn AS turn (process, alive_at) VALUES ($1, now())
                 ON CONFLICT (only_one) DO UPDATE SET process = excluded.process, alive_at = excluded.alive_at
                 WHERE turn.process = excluded.process OR turn.alive_at < now() - make_interval(secs => $2)",
            );
            Box::pin(query.bind(process).bind(BACKFILL_LEASE_TIMEOUT.as_secs_f64()).execute(c))
        });
        Ok(taken.await?.rows_affected() > 0)
    }

    async fn release_backfill_lease(&self, process: Uuid) -> Result<(), LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(sqlx::query("DELETE FROM backfill_turn WHERE process = $1").bind(process).execute(c))
        })
        .await
        .map(drop)
    }

    async fn backfill_progress(&self, id: &str) -> Result<Option<(String, OffsetDateTime)>, LedgerError> {
        let id = id.to_owned();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(
                sqlx::query_as("SELECT mark, kept_at FROM backfill_progress WHERE id = $1").bind(id).fetch_optional(c),
            )
        })
        .await
    }

    async fn save_backfill_progress(&self, id: &str, mark: Option<&str>) -> Result<(), LedgerError> {
        let (id, mark) = (id.to_owned(), mark.map(str::to_owned));
        self.run(RESPONSE_TIMEOUT, move |c| {
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

    async fn current_verdicts(
        &self,
        objects: &[ImageRef],
        digests: &Digests,
    ) -> Result<Vec<Option<CurrentVerdict>>, LedgerError> {
        let buckets: Vec<String> = objects.iter().map(|object| object.bucket.clone()).collect();
        let keys: Vec<String> = objects.iter().map(|object| object.key.clone()).collect();
        let etags: Vec<Option<String>> = objects.iter().map(|object| object.etag.clone()).collect();
        let digests = Json(digests.clone());
        let count = objects.len();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = sqlx::query(
                    "SELECT object.number, verdict.job_id, verdict.outcome, verdict.decided_at
                     FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS object (bucket, key, etag, number)
                     CROSS JOIN LATERAL (
                         SELECT job_id, outcome, decided_at FROM verdicts
                         WHERE bucket = object.bucket AND key = object.key AND etag IS NOT DISTINCT FROM object.etag
                             AND detectors = $4
                         ORDER BY outcome IN ('missing', 'failed'), coalesce(judged_at, decided_at) DESC LIMIT 1
                     ) AS verdict",
                );
                let mut current_verdicts = vec![None; count];
                for row in query.bind(buckets).bind(keys).bind(etags).bind(digests).fetch_all(c).await? {
                    let number: i64 = row.try_get("number")?;
                    let index = usize::try_from(number - 1).ok();
                    if let Some(current) = index.and_then(|index| current_verdicts.get_mut(index)) {
                        let outcome = parse_outcome(row.try_get("outcome")?)?;
                        let (job_id, decided_at) = (row.try_get("job_id")?, row.try_get("decided_at")?);
                        *current = Some(CurrentVerdict { job_id, outcome, decided_at });
                    }
                }
                Ok(current_verdicts)
            })
        })
        .await
    }

    async fn pending_jobs(&self, ids: &[Uuid], since: OffsetDateTime) -> Result<Vec<Uuid>, LedgerError> {
        let ids = ids.to_vec();
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query_scalar(concat!(
                "SELECT id FROM backfill_jobs AS job WHERE id = ANY($1) AND published_at >= $2 AND NOT ",
                answered!()
            ));
            Box::pin(query.bind(ids).bind(since).fetch_all(c))
        })
        .await
    }

    async fn record_published_jobs(&self, ids: &[Uuid], at: OffsetDateTime) -> Result<(), LedgerError> {
        let ids = ids.to_vec();
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "INSERT INTO backfill_jobs (id, published_at) SELECT DISTINCT id, $2 FROM unnest($1::uuid[]) AS job (id)
                 ON CONFLICT (id) DO UPDATE SET published_at = excluded.published_at",
            );
            Box::pin(query.bind(ids).bind(at).execute(c))
        })
        .await
        .map(drop)
    }

    async fn delete_answered_jobs(&self, before: OffsetDateTime) -> Result<u64, LedgerError> {
        let done = self.run(RESPONSE_TIMEOUT, move |c| {
            let query =
                sqlx::query(concat!("DELETE FROM backfill_jobs AS job WHERE published_at < $1 OR ", answered!()));
            Box::pin(query.bind(before).execute(c))
        });
        Ok(done.await?.rows_affected())
    }
}
