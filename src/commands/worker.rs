//! `pixwarden worker`

use super::signals::Signals;
use crate::config::{Config, Overlay};
use clap::Args;

/// Options of `worker`, each with what raising it costs.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Bring the ledger's schema up to date first
    #[arg(long)]
    migrate: bool,
    /// Deliveries a lane held at a time [default: what keeps detectors, decoders, downloads and the ledger busy]
    ///
    /// More keeps sessions busy over a slow network; it also takes more jobs away from other workers, and more of them
    /// are delivered again after a crash.
    #[arg(long, value_name = "N")]
    prefetch: Option<u16>,
    /// Images a run of a model at the most [default: as found best when it starts]
    ///
    /// More is faster on a GPU and takes more of its memory; a live job waits for at most one such run, on a GPU for two.
    #[arg(long, value_name = "N")]
    max_batch: Option<u32>,
    /// Downloads at a time
    ///
    /// More hides the latency of the store, up to about 64; each may hold an object's bytes in memory.
    #[arg(long, value_name = "N")]
    downloads: Option<u32>,
    /// Threads that decode [default: one a core]
    ///
    /// More than cores gains nothing and takes the memory of one more decoded image each.
    #[arg(long, value_name = "N")]
    decoders: Option<u32>,
    /// Failed attempts after which a job ends as `failed`
    ///
    /// More outlives longer troubles of single objects; the last ones are ten minutes apart.
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
}

impl Arguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        overlay.set("worker.prefetch", self.prefetch.map(i64::from));
        overlay.set("inference.max_batch", self.max_batch.map(i64::from));
        overlay.set("storage.downloads", self.downloads.map(i64::from));
        overlay.set("decode.threads", self.decoders.map(i64::from));
        overlay.set("worker.attempts", self.attempts.map(i64::from));
    }
}

pub(super) async fn run(arguments: &Arguments, config: Config) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    crate::worker::run(config, arguments.migrate, signals.next()).await?;
    Ok(0)
}
