//! The baselines of scores in Postgres.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

use super::{Postgres, RESPONSE_TIMEOUT};
use crate::ledger::{Baselines, LedgerError, ScoreBaseline};

#[async_trait]
impl Baselines for Postgres {
    async fn save_baselines(&self, baselines: &[ScoreBaseline]) -> Result<(), LedgerError> {
        let baselines = baselines.to_vec();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                for ScoreBaseline { digest, label, counts, window } in baselines {
                    let query = sqlx::query(
                        "INSERT INTO score_baselines (digest, label, counts, first_at, last_at) VALUES ($1, $2, $3, $4, $5)
                         ON CONFLICT (digest, label) DO UPDATE SET
                             counts = excluded.counts, first_at = excluded.first_at, last_at = excluded.last_at",
                    );
                    let query = query.bind(digest).bind(label).bind(Json(counts)).bind(window.0).bind(window.1);
                    query.execute(&mut *c).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn find_baselines(&self, digests: &[String]) -> Result<Vec<ScoreBaseline>, LedgerError> {
        let digests = digests.to_vec();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = "SELECT digest, label, counts, first_at, last_at FROM score_baselines
                             WHERE digest = ANY($1) ORDER BY digest, label";
                let baseline = |row: &PgRow| {
                    let Json(counts) = row.try_get("counts")?;
                    Ok(ScoreBaseline {
                        digest: row.try_get("digest")?,
                        label: row.try_get("label")?,
                        counts,
                        window: (row.try_get("first_at")?, row.try_get("last_at")?),
                    })
                };
                sqlx::query(query).bind(digests).fetch_all(c).await?.iter().map(baseline).collect()
            })
        })
        .await
    }
}
