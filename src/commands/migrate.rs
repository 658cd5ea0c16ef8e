//! `pixwarden migrate`: brings the ledger's schema up to date.

use clap::Args;

use super::console::note;
use super::options::LedgerOption;
use crate::config::Config;
use crate::ledger;

#[derive(Debug, Args)]
pub struct MigrateArguments {
    #[command(flatten)]
    pub(super) ledger: LedgerOption,
}

pub(super) async fn run(config: &Config) -> anyhow::Result<u8> {
    let version = ledger::open_or_create(config).await?.migrate().await?;
    note!("the ledger's schema is at version {version}");
    Ok(0)
}
