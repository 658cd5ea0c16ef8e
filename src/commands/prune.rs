//! `pixwarden prune`: deletes old verdicts with their history and events, batch by batch.
//!
//! A job whose verdict was deleted is new to the ledger: if it is delivered again, it is screened and announced again.

use std::time::Duration;

use clap::Args;
use time::OffsetDateTime;

use super::age::Age;
use super::console::note;
use super::options::LedgerOption;
use super::record::outcome;
use crate::config::Config;
use crate::job::Outcome;
use crate::ledger;

/// Verdicts per statement.
const BATCH: u32 = 5_000;
/// After each statement, so that workers can commit in between.
const BATCH_DELAY: Duration = Duration::from_millis(100);

/// Options of `prune`.
#[derive(Debug, Args)]
pub struct PruneArguments {
    /// Delete verdicts that were decided at least this long ago, such as 90d; those with an unpublished event stay
    #[arg(long, value_name = "AGE")]
    older_than: Age,
    /// Only with this outcome [repeatable]
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    outcome: Vec<Outcome>,
    /// Print the number, and delete nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) ledger: LedgerOption,
}

pub(super) async fn run(arguments: &PruneArguments, config: &Config) -> anyhow::Result<u8> {
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let until = OffsetDateTime::now_utc() - arguments.older_than.0;
    if arguments.dry_run {
        let found = ledger.count_prunable(until, &arguments.outcome).await?;
        note!("{found} verdicts would be deleted");
    } else {
        let mut deleted = 0;
        loop {
            let batch = ledger.delete_prunable(until, &arguments.outcome, BATCH).await?;
            deleted += batch;
            if batch < u64::from(BATCH) {
                break;
            }
            tracing::info!(deleted, "deleted a batch of verdicts");
            tokio::time::sleep(BATCH_DELAY).await;
        }
        note!("{deleted} verdicts were deleted");
    }
    ledger.close().await;
    Ok(0)
}
