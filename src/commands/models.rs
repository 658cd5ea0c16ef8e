//! `pixwarden models`

mod check;
mod list;

use clap::{Args, Subcommand};

use super::output::Format;
use crate::config::Config;

/// Options of `models`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the configured detectors with their digests; loads no model
    List {
        /// How rows are printed
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
    /// Run each configured detector's golden image, and exit with 1 if one does not score what its package says
    Check {
        /// How rows are printed
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
}

pub(super) fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    match arguments.command {
        Command::List { format } => list::run(Format::or_default(format), config),
        Command::Check { format } => check::run(Format::or_default(format), config),
    }
}
