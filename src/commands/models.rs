//! `pixwarden models`

mod check;
mod fetch;
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
    /// Download a package from the Hugging Face Hub, check it, and print the lines that configure it
    ///
    /// HF_ENDPOINT, HF_TOKEN and HF_HOME are honoured. A download that broke off goes on where it stopped.
    Fetch(fetch::Arguments),
    /// Run each configured detector's golden image, and exit with 1 if one does not score what its package says
    Check {
        /// How rows are printed
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    match &arguments.command {
        Command::List { format } => list::run(Format::or_default(*format), config),
        Command::Fetch(arguments) => fetch::run(arguments, config).await,
        Command::Check { format } => check::run(Format::or_default(*format), config),
    }
}
