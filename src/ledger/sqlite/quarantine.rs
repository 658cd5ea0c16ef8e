//! The quarantine in SQLite.

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Sqlite, now, stamp};
use crate::ledger::columns::to_json;
use crate::ledger::quarantine::KEEP_RECORDS_DAYS;
use crate::ledger::{LedgerError, Quarantine};

#[async_trait]
impl Quarantine for Sqlite {
    async fn begin_in_company(&self, verdict: Uuid, process: Uuid) -> Result<bool, LedgerError> {
        self.run(move |c| {
            // The update changes nothing: without it an existing row would not be returned.
            let query = sqlx::query_scalar(
                "INSERT INTO suspects (id, starts, process, started_at) VALUES ($1, 0, $2, $3)
                 ON CONFLICT (id) DO UPDATE SET starts = suspects.starts
                 RETURNING process = $2 AND starts = 0",
            );
            Box::pin(query.bind(verdict.to_string()).bind(process.to_string()).bind(now()).fetch_one(c))
        })
        .await
    }

    async fn begin_quarantine(&self, verdict: Uuid, process: Uuid) -> Result<u32, LedgerError> {
        self.run(move |c| {
            let query = sqlx::query_scalar(
                "INSERT INTO suspects (id, starts, process, started_at) VALUES ($1, 1, $2, $3)
                 ON CONFLICT (id) DO UPDATE SET
                     starts = suspects.starts + (suspects.process <> excluded.process),
                     process = excluded.process, started_at = excluded.started_at
                 RETURNING starts",
            );
            Box::pin(query.bind(verdict.to_string()).bind(process.to_string()).bind(now()).fetch_one(c))
        })
        .await
    }

    async fn end_quarantine(&self, verdicts: &[Uuid]) -> Result<(), LedgerError> {
        let ids: Vec<String> = verdicts.iter().map(Uuid::to_string).collect();
        let oldest = stamp(OffsetDateTime::now_utc() - time::Duration::days(KEEP_RECORDS_DAYS.into()));
        self.run(move |c| {
            let query = sqlx::query(
                "DELETE FROM suspects
                 WHERE id IN (SELECT value FROM json_each($1)) OR started_at < $2
                     OR EXISTS (SELECT 1 FROM verdicts WHERE verdicts.id = suspects.id AND decided_at >= started_at
                                    AND outcome NOT IN ('failed', 'missing'))",
            );
            Box::pin(query.bind(to_json(&ids)).bind(oldest).execute(c))
        })
        .await
        .map(drop)
    }
}
