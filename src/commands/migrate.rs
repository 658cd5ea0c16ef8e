//! `pixwarden migrate`

use crate::config::Config;
use crate::ledger;

pub(super) async fn run(config: &Config) -> anyhow::Result<u8> {
    let version = ledger::open(config).await?.migrate().await?;
    eprintln!("the ledger's schema is at version {version}");
    Ok(0)
}
