//! Banks: lists of known images by their hashes, as a process holds them in memory, and as files.
//!
//! `index` finds hashes within a distance, `bank` answers what a bank knows of an image, `current` keeps the banks of the
//! policies up to date with the ledger, and `list` reads and writes files.

pub mod bank;
mod current;
pub mod index;
pub mod list;

use crate::config::Config;
use crate::ledger::{Ledger, LedgerError};
use crate::policy::{PolicyError, PolicySet};

pub use bank::LoadedBank;
pub use current::{AskedImage, CurrentBanks};
pub(crate) use current::{all_entries, build};

/// Loads the banks that the policies name, and checks that the rules fit them.
///
/// # Errors
/// When a rule does not fit a bank, or the ledger fails or can have no banks.
pub async fn load_for(policies: &PolicySet, config: &Config, ledger: &dyn Ledger) -> Result<CurrentBanks, BanksError> {
    let names = policies.banks();
    if !names.is_empty() {
        policies.require_banks(config, &CurrentBanks::kinds(ledger).await?)?;
    }
    Ok(CurrentBanks::load(ledger, &names).await?)
}

/// No banks, for policies that name none.
///
/// # Errors
/// When a policy names one.
pub fn without_ledger(policies: &PolicySet) -> Result<CurrentBanks, BanksError> {
    match policies.banks().first() {
        Some(bank) => Err(BanksError::NoLedger((*bank).to_owned())),
        None => Ok(CurrentBanks::default()),
    }
}

/// Why the banks of the policies cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum BanksError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(
        "policy: a rule names the bank \"{0}\", and banks are in a ledger\n  hint: give --ledger postgres://..., or remove the rule"
    )]
    NoLedger(String),
}

impl BanksError {
    /// Whether the configuration is at fault.
    #[must_use]
    pub const fn is_configuration(&self) -> bool {
        match self {
            Self::Policy(_) | Self::NoLedger(_) | Self::Ledger(LedgerError::BanksNeedPostgres) => true,
            Self::Ledger(_) => false,
        }
    }
}
