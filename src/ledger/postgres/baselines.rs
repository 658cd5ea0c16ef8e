//! The baselines of scores in Postgres.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

use super::{Postgres, RESPONSE_TIMEOUT};
use crate::ledger::baselines::{SAVE_BASELINE, read_baseline, select_baselines};
use crate::ledger::{Baselines, LedgerError, ScoreBaseline};

#[async_trait]
impl Baselines for Postgres {
    async fn save_baselines(&self, baselines: &[ScoreBaseline]) -> Result<(), LedgerError> {
        let baselines = baselines.to_vec();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                for ScoreBaseline { digest, label, counts, window } in baselines {
                    let query = sqlx::query(SAVE_BASELINE)
                        .bind(digest)
                        .bind(label)
                        .bind(Json(counts))
                        .bind(window.0)
                        .bind(window.1);
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
                let query = concat!(select_baselines!(), " WHERE digest = ANY($1) ORDER BY digest, label");
                let baseline = |row: &PgRow| read_baseline!(row);
                sqlx::query(query).bind(digests).fetch_all(c).await?.iter().map(baseline).collect()
            })
        })
        .await
    }
}
