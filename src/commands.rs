//! The subcommands: each reads its arguments, calls the parts, and prints. Data goes to stdout, all else to stderr.

mod age;
pub mod backfill;
pub mod bench;
pub mod check;
pub mod dead;
mod decoder;
pub mod enqueue;
pub mod evaluate;
pub mod export;
mod files;
pub mod migrate;
pub mod models;
mod output;
mod processes;
mod progress;
pub mod prune;
mod record;
pub mod rejudge;
pub mod scan;
pub mod shell;
pub mod show;
mod signals;
pub mod worker;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, Device, LogFormat, Overlay, load};
use crate::hub::HubError;
use crate::screen::StartError;
use crate::worker::WorkerError;

/// Screens images for content moderation.
#[derive(Debug, Parser)]
#[command(name = "pixwarden", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Consume jobs, screen, store verdicts and publish events, until SIGTERM
    Worker(worker::Arguments),
    /// Screen local files and folders; needs no service
    Scan(scan::Arguments),
    /// Measure detectors on labelled images; needs no service
    Evaluate(evaluate::Arguments),
    /// Publish jobs for images in storage
    Enqueue(enqueue::Arguments),
    /// Publish jobs for whatever in an archive has no verdict yet
    Backfill(backfill::Arguments),
    /// Print what is known of a job or an image
    Show(show::Arguments),
    /// Write verdicts as JSON lines or CSV
    Export(export::Arguments),
    /// Apply a changed policy to stored scores
    Rejudge(rejudge::Arguments),
    /// Delete old verdicts
    Prune(prune::Arguments),
    /// Measure what this machine does with these detectors, what bounds it, and what a million images cost
    Bench(bench::Arguments),
    /// Bring the ledger's schema up to date
    Migrate,
    /// Look at dead-lettered messages, send them back or discard them
    Dead(dead::Arguments),
    /// Look at the configured detectors
    Models(models::ModelsArguments),
    /// Try every configured dependency and say what is wrong with each
    Check,
    /// Print completions for a shell
    Completions(shell::Completions),
    /// Write the manual's pages
    Man(shell::Man),
    /// Decode for another process
    #[command(hide = true)]
    Decoder(decoder::DecoderArguments),
}

/// Options of every command. Each is also an option in the file and a variable `PIXWARDEN_…`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Common {
    /// Configuration file [default: pixwarden.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE", env = "PIXWARDEN_CONFIG")]
    config: Option<std::path::PathBuf>,
    /// The broker, amqp://user:password@host:5672/vhost
    #[arg(long, global = true, value_name = "URL")]
    queue: Option<String>,
    /// Where verdicts are kept, postgres://user:password@host/database or sqlite://FILE
    #[arg(long, global = true, value_name = "URL")]
    ledger: Option<String>,
    /// Where images are, s3:// or file:///FOLDER
    #[arg(long, global = true, value_name = "URL")]
    objects: Option<String>,
    /// A bucket that jobs may name; "*" stands for any characters [repeatable]
    #[arg(long, global = true, value_name = "NAME")]
    bucket: Vec<String>,
    /// A model package; without one, the bundled detector [repeatable]
    #[arg(long, global = true, value_name = "DIR")]
    detector: Vec<String>,
    /// The default rule's label
    #[arg(long, global = true, value_name = "LABEL")]
    label: Option<String>,
    /// The default rule's threshold for review; lower sends more images to people
    #[arg(long, global = true, value_name = "P")]
    review_at: Option<f64>,
    /// The default rule's threshold for flagging; lower flags more images, and more wrongly
    #[arg(long, global = true, value_name = "P")]
    flag_at: Option<f64>,
    /// Where models run; anything but auto refuses to start if it cannot be had
    #[arg(long, global = true, value_name = "DEVICE", value_enum)]
    device: Option<Device>,
    /// What is logged, such as info or pixwarden=debug
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look
    #[arg(long, global = true, value_name = "FORMAT", value_enum)]
    log_format: Option<LogFormat>,
}

impl Common {
    fn overlay(&self) -> Overlay {
        let mut overlay = Overlay { file: self.config.clone(), values: Vec::new() };
        overlay.set("queue", self.queue.clone());
        overlay.set("ledger", self.ledger.clone());
        overlay.set("objects", self.objects.clone());
        overlay.set_list("buckets", &self.bucket);
        overlay.set_list("detectors", &self.detector);
        overlay.set("policy.label", self.label.clone());
        overlay.set("policy.review_at", self.review_at);
        overlay.set("policy.flag_at", self.flag_at);
        overlay.set("inference.device", self.device.map(word));
        overlay.set("log.filter", self.log.clone());
        overlay.set("log.format", self.log_format.map(word));
        overlay
    }
}

/// A command line that nobody can mean. The process exits with 2, as after any other that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// A choice as the configuration file writes it.
fn word(choice: impl clap::ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Runs a command line; the answer is the process's exit status.
///
/// # Errors
/// When the command failed; [`status`] tells the exit status.
pub fn run(cli: &Cli) -> anyhow::Result<u8> {
    // Two are about the command line itself, and one is told what is configured.
    match &cli.command {
        Command::Completions(arguments) => return shell::completions(arguments),
        Command::Man(arguments) => return shell::man(arguments),
        Command::Decoder(arguments) => return decoder::run(arguments),
        _ => {}
    }
    let mut overlay = cli.common.overlay();
    if let Command::Worker(arguments) = &cli.command {
        arguments.overlay(&mut overlay);
    }
    // A variable that is not UTF-8 is none of ours.
    let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let config = load(&overlay, variables)?;
    let traces = matches!(cli.command, Command::Worker(_)).then_some(&config.traces);
    let telemetry = crate::telemetry::start(&config.log, traces)?;
    // The runtime only waits; decoding and inference have threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let status = runtime.block_on(command(cli, config));
    // What still runs after a failure must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    telemetry.stop();
    status
}

async fn command(cli: &Cli, config: Config) -> anyhow::Result<u8> {
    match &cli.command {
        Command::Worker(arguments) => worker::run(arguments, config).await,
        Command::Scan(arguments) => {
            let ledger = match &cli.common.ledger {
                Some(_) => Some(crate::ledger::open_or_create(&config).await?),
                None => None,
            };
            scan::run(arguments, &config, ledger).await
        }
        Command::Evaluate(arguments) => evaluate::run(arguments, &config).await,
        Command::Bench(arguments) => bench::run(arguments, &config).await,
        Command::Enqueue(arguments) => enqueue::run(arguments, &config).await,
        Command::Backfill(arguments) => backfill::run(arguments, &config).await,
        Command::Show(arguments) => show::run(arguments, &config).await,
        Command::Export(arguments) => export::run(arguments, &config).await,
        Command::Rejudge(arguments) => rejudge::run(arguments, &config).await,
        Command::Prune(arguments) => prune::run(arguments, &config).await,
        Command::Migrate => migrate::run(&config).await,
        Command::Dead(arguments) => dead::run(arguments, &config).await,
        Command::Models(arguments) => models::run(arguments, &config).await,
        Command::Check => check::run(&config).await,
        Command::Completions(_) | Command::Man(_) | Command::Decoder(_) => Ok(0),
    }
}

/// An error with its causes, for people.
#[must_use]
pub fn error_text(error: &anyhow::Error) -> String {
    crate::errors::with_causes(error.as_ref())
}

/// The exit status of an error: 2 where the configuration is at fault, else 1.
#[must_use]
pub fn status(error: &anyhow::Error) -> u8 {
    let configuration = error.is::<ConfigError>()
        || error.is::<UsageError>()
        || matches!(error.downcast_ref(), Some(HubError::Settings(_)))
        || error.downcast_ref::<StartError>().is_some_and(StartError::is_configuration)
        || match error.downcast_ref::<WorkerError>() {
            Some(WorkerError::Config(_) | WorkerError::Ledger(crate::ledger::OpenError::Config(_))) => true,
            Some(WorkerError::Screen(e)) => e.is_configuration(),
            _ => matches!(error.downcast_ref(), Some(crate::ledger::OpenError::Config(_))),
        };
    if configuration { 2 } else { 1 }
}
