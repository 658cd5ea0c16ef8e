//! `pixwarden models`

mod check;
mod fetch;
mod list;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::options::{DetectorOption, DeviceOption};
use super::output::Format;
use crate::config::{Config, Overlay};

/// Options of `models`.
#[derive(Debug, Args)]
pub struct ModelsArguments {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Print the configured detectors with their digests, without loading a model
    List {
        /// Output format
        #[arg(long, value_enum)]
        format: Option<Format>,
        #[command(flatten)]
        detector: DetectorOption,
    },
    /// Download a package from the Hugging Face Hub, check it, and print the lines that configure it
    ///
    /// Uses HF_ENDPOINT, HF_TOKEN and HF_HOME. An interrupted download continues where it stopped.
    Fetch(fetch::FetchArguments),
    /// Score each configured detector's golden image, and exit with 1 if a score differs from its package
    Check {
        /// Output format
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// First score this image on this machine and store it with its scores in each package
        ///
        /// Do this where the scores are known to be right. Every later start, on any machine, then compares its scores with
        /// these. Choose a still image whose highest score is clear. A package that has a golden image is refused.
        #[arg(long, value_name = "IMAGE")]
        write_golden: Option<PathBuf>,
        #[command(flatten)]
        detector: DetectorOption,
        #[command(flatten)]
        device: DeviceOption,
    },
}

impl ModelsArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        match &self.command {
            ModelsCommand::List { detector, .. } => detector.set(overlay),
            ModelsCommand::Fetch(_) => {}
            ModelsCommand::Check { detector, device, .. } => {
                detector.set(overlay);
                device.set(overlay);
            }
        }
    }
}

pub(super) async fn run(arguments: &ModelsArguments, config: &Config) -> anyhow::Result<u8> {
    match &arguments.command {
        ModelsCommand::List { format, .. } => list::run(Format::or_default(*format), config),
        ModelsCommand::Fetch(arguments) => fetch::run(arguments, config).await,
        ModelsCommand::Check { format, write_golden, .. } => {
            check::run(Format::or_default(*format), write_golden.as_deref(), config)
        }
    }
}
