//! The subcommands. Each reads its arguments, makes one call and prints. Data goes to stdout, everything else to stderr.

mod age;
mod backfill;
mod bank;
mod bench;
mod check;
pub mod compare;
mod console;
mod dead;
mod decoder;
pub mod enqueue;
pub mod erase;
mod evaluate;
pub mod export;
pub mod hold;
mod key;
mod likeness;
pub mod migrate;
pub mod models;
mod numbers;
mod options;
mod output;
pub mod policy;
mod progress;
pub mod prune;
mod record;
pub mod rejudge;
pub mod scan;
mod serve;
mod shell;
pub mod show;
mod signals;
mod subject;
pub mod webhook;
pub mod worker;

use clap::{Parser, Subcommand};

use crate::banks::BanksError;
use crate::config::{Config, ConfigError, Origins, Overlay, load};
use crate::evaluate::screening::InvalidDataset;
use crate::hub::HubError;
use crate::ledger::{LedgerError, OpenError};
use crate::screen::StartError;
use crate::worker::WorkerError;
use crate::{files, processes};

use console::note;
pub use console::{CLOSED_PIPE, is_closed_pipe, print_note, print_parser_text};

/// Screens images for content moderation.
#[derive(Debug, Parser)]
#[command(name = "pixwarden", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    every: options::EveryCommand,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Consume jobs, screen, store verdicts and publish events, until SIGTERM
    Worker(worker::WorkerArguments),
    /// Screen images over HTTP, without a queue, until SIGTERM
    Serve(serve::ServeArguments),
    /// Screen local files and folders; needs no service
    Scan(scan::ScanArguments),
    /// Measure detectors on labelled images; needs no service
    Evaluate(evaluate::EvaluateArguments),
    /// Publish jobs for images in storage
    Enqueue(enqueue::EnqueueArguments),
    /// Publish jobs for the images of an archive that have no verdict yet
    Backfill(backfill::BackfillArguments),
    /// Print the verdicts on a job or an image
    Show(show::ShowArguments),
    /// Write verdicts as JSON lines or CSV
    Export(export::ExportArguments),
    /// Apply a changed policy to stored scores
    Rejudge(rejudge::RejudgeArguments),
    /// Count what other policies, or a shadow detector, would make of stored scores
    Compare(compare::CompareArguments),
    /// Print the policies, and why an image got what it got
    Policy(policy::PolicyArguments),
    /// Delete old verdicts
    Prune(prune::PruneArguments),
    /// Delete verdicts for ever, with everything that is known of them
    Erase(erase::EraseArguments),
    /// Keep verdicts from prune and erase
    Hold(hold::HoldArguments),
    /// Lists of known images by their hashes
    Bank(bank::BankArguments),
    /// Keys of machines that ask over HTTP
    Key(key::KeyArguments),
    /// Measure this machine with the configured detectors: rates, bottleneck, cost of a million images
    Bench(bench::BenchArguments),
    /// Update the ledger's schema
    Migrate(migrate::MigrateArguments),
    /// List dead-lettered messages, send them back or discard them
    Dead(dead::DeadArguments),
    /// What is sent to webhooks: list it, send it again, send a test
    Webhook(webhook::WebhookArguments),
    /// List, check or fetch detectors
    Models(models::ModelsArguments),
    /// Try every configured dependency and print what is wrong with each
    Check(check::CheckArguments),
    /// Print completions for a shell
    Completions(shell::Completions),
    /// Write the manual pages
    Man(shell::Man),
    /// Decode images for a worker process
    #[command(hide = true)]
    Decoder(decoder::DecoderArguments),
}

impl Command {
    /// Adds the flags of the command to the configuration's last layer.
    fn overlay(&self, overlay: &mut Overlay) {
        match self {
            Self::Worker(arguments) => arguments.overlay(overlay),
            Self::Serve(arguments) => arguments.overlay(overlay),
            Self::Scan(arguments) => arguments.overlay(overlay),
            Self::Evaluate(arguments) => arguments.screening.set(overlay),
            Self::Enqueue(arguments) => arguments.queue.set(overlay),
            Self::Backfill(arguments) => arguments.overlay(overlay),
            Self::Show(arguments) => arguments.ledger.set(overlay),
            Self::Export(arguments) => arguments.ledger.set(overlay),
            Self::Rejudge(arguments) => arguments.overlay(overlay),
            Self::Compare(arguments) => arguments.overlay(overlay),
            Self::Policy(arguments) => arguments.overlay(overlay),
            Self::Prune(arguments) => arguments.ledger.set(overlay),
            Self::Erase(arguments) => arguments.ledger.set(overlay),
            Self::Hold(arguments) => arguments.ledger().set(overlay),
            Self::Bank(arguments) => arguments.overlay(overlay),
            Self::Bench(arguments) => arguments.overlay(overlay),
            Self::Migrate(arguments) => arguments.ledger.set(overlay),
            Self::Dead(arguments) => arguments.queue.set(overlay),
            Self::Webhook(arguments) => arguments.overlay(overlay),
            Self::Models(arguments) => arguments.overlay(overlay),
            Self::Check(arguments) => arguments.overlay(overlay),
            Self::Key(_) | Self::Completions(_) | Self::Man(_) | Self::Decoder(_) => {}
        }
    }
}

/// An invalid command line that the argument parser does not detect. The process exits with 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Runs a command line and returns the process's exit status.
///
/// # Errors
/// When the command failed; [`status`] returns the exit status for the error.
pub fn run(cli: &Cli) -> anyhow::Result<u8> {
    // Two commands are about the command line itself, `decoder` receives its configuration over a socket, and `key` has none.
    match &cli.command {
        Command::Key(arguments) => return key::run(arguments),
        Command::Completions(arguments) => return shell::completions(arguments),
        Command::Man(arguments) => return shell::man(arguments),
        Command::Decoder(arguments) => return decoder::run(arguments),
        _ => {}
    }
    let mut overlay = cli.every.overlay();
    cli.command.overlay(&mut overlay);
    // A variable that is not UTF-8 is not an option.
    let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let config = load(&overlay, variables, |warning| note!("warning: {warning}"))?;
    let traces = matches!(cli.command, Command::Worker(_) | Command::Serve(_)).then_some(&config.traces);
    let telemetry = crate::telemetry::start(&config.log, traces).map_err(|e| e.at(&config.origins))?;
    // The runtime's threads only wait: decoding and inference run on other threads.
    let origins = config.origins.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let status = runtime.block_on(command(cli, config)).map_err(|e| with_origin(e, &origins));
    // Tasks that still run after a failure must not keep the process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    telemetry.stop();
    status
}

async fn command(cli: &Cli, config: Config) -> anyhow::Result<u8> {
    match &cli.command {
        Command::Worker(arguments) => worker::run(arguments, config).await,
        Command::Serve(arguments) => serve::run(arguments, config).await,
        Command::Scan(arguments) => scan::run(arguments, &config).await,
        Command::Evaluate(arguments) => evaluate::run(arguments, &config).await,
        Command::Bench(arguments) => bench::run(arguments, &config).await,
        Command::Enqueue(arguments) => enqueue::run(arguments, &config).await,
        Command::Backfill(arguments) => backfill::run(arguments, &config).await,
        Command::Show(arguments) => show::run(arguments, &config).await,
        Command::Export(arguments) => export::run(arguments, &config).await,
        Command::Rejudge(arguments) => rejudge::run(arguments, &config).await,
        Command::Compare(arguments) => compare::run(arguments, &config).await,
        Command::Policy(arguments) => policy::run(arguments, &config).await,
        Command::Prune(arguments) => prune::run(arguments, &config).await,
        Command::Erase(arguments) => erase::run(arguments, &config).await,
        Command::Hold(arguments) => hold::run(arguments, &config).await,
        Command::Bank(arguments) => bank::run(arguments, &config).await,
        Command::Migrate(_) => migrate::run(&config).await,
        Command::Dead(arguments) => dead::run(arguments, &config).await,
        Command::Webhook(arguments) => webhook::run(arguments, &config).await,
        Command::Models(arguments) => models::run(arguments, &config).await,
        Command::Check(arguments) => check::run(arguments, &config).await,
        Command::Key(_) | Command::Completions(_) | Command::Man(_) | Command::Decoder(_) => Ok(0),
    }
}

/// Adds to an error about an option where that option was set.
fn with_origin(mut error: anyhow::Error, origins: &Origins) -> anyhow::Error {
    let option = if let Some(config) = error.downcast_mut::<ConfigError>() {
        Some(config)
    } else if let Some(opening) = error.downcast_mut::<OpenError>() {
        if let OpenError::Config(config) = opening { Some(config) } else { None }
    } else {
        match error.downcast_mut::<WorkerError>() {
            Some(WorkerError::Config(config) | WorkerError::Ledger(OpenError::Config(config))) => Some(config),
            _ => None,
        }
    };
    if let Some(config) = option {
        config.set_origin(origins);
    }
    error
}

/// The exit status for an error: 2 where the configuration or the command line is invalid, else 1.
#[must_use]
pub fn status(error: &anyhow::Error) -> u8 {
    let configuration = error.is::<ConfigError>()
        || error.is::<UsageError>()
        || backfill::is_usage_error(error)
        || error.is::<InvalidDataset>()
        || matches!(error.downcast_ref(), Some(HubError::Settings(_)))
        || matches!(
            error.downcast_ref(),
            Some(LedgerError::BanksNeedPostgres | LedgerError::WebhooksNeedPostgres | LedgerError::ReviewNeedsPostgres)
        )
        || error.downcast_ref::<BanksError>().is_some_and(BanksError::is_configuration)
        || error.downcast_ref::<StartError>().is_some_and(StartError::is_configuration)
        || match error.downcast_ref::<WorkerError>() {
            Some(WorkerError::Config(_) | WorkerError::Ledger(OpenError::Config(_))) => true,
            Some(WorkerError::Screen(e)) => e.is_configuration(),
            Some(WorkerError::Banks(e)) => e.is_configuration(),
            Some(WorkerError::Webhooks(e)) => e.is_configuration(),
            _ => matches!(error.downcast_ref(), Some(OpenError::Config(_))),
        };
    if configuration { 2 } else { 1 }
}
