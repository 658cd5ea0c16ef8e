//! The subcommands. Each reads its arguments, makes one call and prints. Data goes to stdout, everything else to stderr.

mod age;
mod backfill;
mod bench;
mod check;
mod dead;
mod decoder;
pub mod enqueue;
mod evaluate;
pub mod export;
pub mod migrate;
pub mod models;
mod output;
mod progress;
pub mod prune;
mod record;
pub mod rejudge;
pub mod scan;
mod shell;
pub mod show;
mod signals;
pub mod worker;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, Device, LogFormat, Overlay, load};
use crate::hub::HubError;
use crate::screen::StartError;
use crate::worker::WorkerError;
use crate::{files, processes};

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
    Worker(worker::WorkerArguments),
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
    /// Delete old verdicts
    Prune(prune::PruneArguments),
    /// Measure this machine with the configured detectors: rates, bottleneck, cost of a million images
    Bench(bench::BenchArguments),
    /// Update the ledger's schema
    Migrate,
    /// List dead-lettered messages, send them back or discard them
    Dead(dead::DeadArguments),
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

/// Options of every command. Each is also an option of the configuration file and a variable `PIXWARDEN_…`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Common {
    /// Configuration file [default: pixwarden.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE", env = "PIXWARDEN_CONFIG")]
    config: Option<std::path::PathBuf>,
    /// Broker, amqp://user:password@host:5672/vhost
    #[arg(long, global = true, value_name = "URL")]
    queue: Option<String>,
    /// Database of the verdicts, postgres://user:password@host/database or sqlite://FILE
    #[arg(long, global = true, value_name = "URL")]
    ledger: Option<String>,
    /// Object store of the images, s3:// or file:///FOLDER
    #[arg(long, global = true, value_name = "URL")]
    objects: Option<String>,
    /// A bucket that jobs may name; "*" stands for any characters [repeatable]
    #[arg(long, global = true, value_name = "NAME")]
    bucket: Vec<String>,
    /// A model package; without one, the bundled detector [repeatable]
    #[arg(long, global = true, value_name = "DIR")]
    detector: Vec<String>,
    /// Label of the default rule
    #[arg(long, global = true, value_name = "LABEL")]
    label: Option<String>,
    /// Review threshold of the default rule; a higher value sends fewer images to people, and misses more
    #[arg(long, global = true, value_name = "P")]
    review_at: Option<f64>,
    /// Flagging threshold of the default rule; a higher value flags fewer images, and misses more
    #[arg(long, global = true, value_name = "P")]
    flag_at: Option<f64>,
    /// Where models run; with cpu or cuda the start fails if that device is not available
    #[arg(long, global = true, value_name = "DEVICE", value_enum)]
    device: Option<Device>,
    /// Log filter, such as info or pixwarden=debug
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    /// Format of log lines
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
        overlay.set("inference.device", self.device.map(choice_name));
        overlay.set("log.filter", self.log.clone());
        overlay.set("log.format", self.log_format.map(choice_name));
        overlay
    }
}

/// An invalid command line that the argument parser does not detect. The process exits with 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// The name of a choice in the configuration file.
fn choice_name(choice: impl clap::ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Runs a command line and returns the process's exit status.
///
/// # Errors
/// When the command failed; [`status`] returns the exit status for the error.
pub fn run(cli: &Cli) -> anyhow::Result<u8> {
    // Two commands are about the command line itself, and `decoder` receives its configuration over a socket.
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
    // A variable that is not UTF-8 is not an option.
    let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let config = load(&overlay, variables)?;
    let traces = matches!(cli.command, Command::Worker(_)).then_some(&config.traces);
    let telemetry = crate::telemetry::start(&config.log, traces)?;
    // The runtime's threads only wait: decoding and inference run on other threads.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let status = runtime.block_on(command(cli, config));
    // Tasks that still run after a failure must not keep the process alive.
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
        Command::Check(arguments) => check::run(arguments, &config).await,
        Command::Completions(_) | Command::Man(_) | Command::Decoder(_) => Ok(0),
    }
}

/// The exit status for an error: 2 where the configuration or the command line is invalid, else 1.
#[must_use]
pub fn status(error: &anyhow::Error) -> u8 {
    let configuration = error.is::<ConfigError>()
        || error.is::<UsageError>()
        || backfill::is_usage_error(error)
        || matches!(error.downcast_ref(), Some(HubError::Settings(_)))
        || error.downcast_ref::<StartError>().is_some_and(StartError::is_configuration)
        || match error.downcast_ref::<WorkerError>() {
            Some(WorkerError::Config(_) | WorkerError::Ledger(crate::ledger::OpenError::Config(_))) => true,
            Some(WorkerError::Screen(e)) => e.is_configuration(),
            _ => matches!(error.downcast_ref(), Some(crate::ledger::OpenError::Config(_))),
        };
    if configuration { 2 } else { 1 }
}
