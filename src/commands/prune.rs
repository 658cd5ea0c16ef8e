//! `pixwarden prune`: old verdicts, deleted a few at a time.
//!
//! A job whose verdict is gone is not known any more: should it come again, it is screened and announced again.

use std::time::Duration;

use clap::Args;
use time::OffsetDateTime;

use super::age::Age;
use super::record::outcome;
use crate::config::Config;
use crate::job::Outcome;
use crate::ledger;

/// Verdicts a statement, and the pause behind it: workers commit in between.
const BATCH: u32 = 5_000;
const PAUSE: Duration = Duration::from_millis(100);

/// Options of `prune`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Those decided at least so long ago, such as 90d; one whose event is still owed stays
    #[arg(long, value_name = "AGE")]
    older_than: Age,
    /// Only those of this outcome [repeatable]
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    outcome: Vec<Outcome>,
    /// Only count
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let until = OffsetDateTime::now_utc() - arguments.older_than.0;
    if arguments.dry_run {
        let found = ledger.count_settled(until, &arguments.outcome).await?;
        eprintln!("{found} verdicts would be deleted");
    } else {
        let mut deleted = 0;
        loop {
            let batch = ledger.delete_settled(until, &arguments.outcome, BATCH).await?;
            deleted += batch;
            if batch < u64::from(BATCH) {
                break;
            }
            tracing::info!(deleted, "pruning");
            tokio::time::sleep(PAUSE).await;
        }
        eprintln!("{deleted} verdicts deleted");
    }
    ledger.close().await;
    Ok(0)
}
