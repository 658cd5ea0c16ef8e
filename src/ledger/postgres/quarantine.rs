//! The quarantine in Postgres.

use async_trait::async_trait;
use uuid::Uuid;

use super::{Postgres, RESPONSE_TIMEOUT};
use crate::ledger::quarantine::KEEP_RECORDS_DAYS;
use crate::ledger::{LedgerError, Quarantine};

#[async_trait]
impl Quarantine for Postgres {
    async fn begin_in_company(&self, verdict: Uuid, process: Uuid) -> Result<bool, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            // The update changes nothing: without it an existing row would not be returned.
            let query = sqlx::query_scalar(
                "INSERT INTO suspects (id, starts, process) VALUES ($1, 0, $2)
                 ON CONFLICT (id) DO UPDATE SET starts = suspects.starts
                 RETURNING process = $2 AND starts = 0",
            );
            Box::pin(query.bind(verdict).bind(process).fetch_one(c))
        })
        .await
    }

    async fn begin_quarantine(&self, verdict: Uuid, process: Uuid) -> Result<u32, LedgerError> {
        let starts: i32 = self
            .run(RESPONSE_TIMEOUT, move |c| {
                let query = sqlx::query_scalar(
                    "INSERT INTO suspects (id, starts, process) VALUES ($1, 1, $2)
                     ON CONFLICT (id) DO UPDATE SET
                         starts = suspects.starts + (suspects.process <> excluded.process)::integer,
                         process = excluded.process, started_at = now()
                     RETURNING starts",
                );
                Box::pin(query.bind(verdict).bind(process).fetch_one(c))
            })
            .await?;
        Ok(u32::try_from(starts).unwrap_or(0))
    }

    async fn end_quarantine(&self, verdicts: &[Uuid]) -> Result<(), LedgerError> {
        let verdicts = verdicts.to_vec();
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "DELETE FROM suspects
                 WHERE id = ANY($1) OR started_at < now() - make_interval(days => $2)
                     OR EXISTS (SELECT FROM verdicts WHERE verdicts.id = suspects.id AND decided_at >= started_at
                                    AND outcome NOT IN ('failed', 'missing'))",
            );
            Box::pin(query.bind(verdicts).bind(KEEP_RECORDS_DAYS).execute(c))
        })
        .await
        .map(drop)
    }
}
