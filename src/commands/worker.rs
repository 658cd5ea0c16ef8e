//! `pixwarden worker`

use super::numbers;
use super::options::{ScreeningOptions, ServiceOptions};
use super::signals::Signals;
use crate::config::{Config, Overlay};
use clap::Args;

#[derive(Debug, Args)]
pub struct WorkerArguments {
    /// Bring the ledger's schema up to date first
    #[arg(long)]
    migrate: bool,
    /// Unsettled deliveries per lane [default: enough to keep detectors, decoders, downloads and the ledger busy]
    ///
    /// A higher value keeps sessions busy over a slow network. It also takes more jobs away from other workers, and more jobs
    /// are delivered again after a crash.
    #[arg(long, value_name = "N", value_parser = |text: &str| numbers::whole_within(text, 0..=u16::MAX))]
    prefetch: Option<u16>,
    /// Maximum number of images in one run of a model [default: chosen by warm-up]
    ///
    /// A higher value is faster on a GPU and takes more of its memory. A live job waits for at most one run, on a GPU for two.
    #[arg(long, value_name = "N", value_parser = |text: &str| numbers::whole_within(text, 0..=u32::MAX))]
    max_batch: Option<u32>,
    /// Maximum number of downloads at the same time
    ///
    /// A higher value hides the latency of the store, up to about 64. Each download may hold an object in memory.
    #[arg(long, value_name = "N", value_parser = |text: &str| numbers::whole_within(text, 1..=u32::MAX))]
    downloads: Option<u32>,
    /// Threads that decode [default: one per core]
    ///
    /// More threads than cores gain nothing. Each takes the memory of one decoded image.
    #[arg(long, value_name = "N", value_parser = |text: &str| numbers::whole_within(text, 0..=u32::MAX))]
    decoders: Option<u32>,
    /// Failed attempts after which a job ends as `failed`
    ///
    /// A higher value survives longer failures of single objects. The last attempts are ten minutes apart.
    #[arg(long, value_name = "N", value_parser = |text: &str| numbers::whole_within(text, 1..=u32::MAX))]
    attempts: Option<u32>,
    #[command(flatten)]
    services: ServiceOptions,
    #[command(flatten)]
    screening: ScreeningOptions,
}

impl WorkerArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        self.services.set(overlay);
        self.screening.set(overlay);
        overlay.set("worker.prefetch", "--prefetch", self.prefetch.map(i64::from));
        overlay.set("inference.max_batch", "--max-batch", self.max_batch.map(i64::from));
        overlay.set("storage.downloads", "--downloads", self.downloads.map(i64::from));
        overlay.set("decode.threads", "--decoders", self.decoders.map(i64::from));
        overlay.set("worker.attempts", "--attempts", self.attempts.map(i64::from));
    }
}

pub(super) async fn run(arguments: &WorkerArguments, config: Config) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    crate::worker::run(config, arguments.migrate, signals.next()).await?;
    Ok(0)
}
