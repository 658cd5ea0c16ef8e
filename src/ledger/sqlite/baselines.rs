//! The baselines of scores in SQLite.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Sqlite, stamp};
use crate::ledger::baselines::{SAVE_BASELINE, read_baseline, select_baselines};
use crate::ledger::columns::to_json;
use crate::ledger::{Baselines, LedgerError, ScoreBaseline};

#[async_trait]
impl Baselines for Sqlite {
    async fn save_baselines(&self, baselines: &[ScoreBaseline]) -> Result<(), LedgerError> {
        let baselines = baselines.to_vec();
        self.run(move |c| {
            Box::pin(async move {
                for ScoreBaseline { digest, label, counts, window } in baselines {
                    let query = sqlx::query(SAVE_BASELINE).bind(digest).bind(label).bind(to_json(&counts));
                    query.bind(stamp(window.0)).bind(stamp(window.1)).execute(&mut *c).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn find_baselines(&self, digests: &[String]) -> Result<Vec<ScoreBaseline>, LedgerError> {
        let digests = to_json(&digests);
        self.run(move |c| {
            Box::pin(async move {
                let query = concat!(
                    select_baselines!(),
                    " WHERE digest IN (SELECT value FROM json_each($1)) ORDER BY digest, label"
                );
                let baseline = |row: &SqliteRow| read_baseline!(row);
                sqlx::query(query).bind(digests).fetch_all(c).await?.iter().map(baseline).collect()
            })
        })
        .await
    }
}
