//! `pixwarden serve`

use clap::Args;

use super::options::{ScreeningOptions, ServiceOptions};
use super::signals::Signals;
use crate::config::{Config, Overlay};

#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Bring the ledger's schema up to date first
    #[arg(long)]
    migrate: bool,
    /// Where HTTP is served, host:port [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    #[command(flatten)]
    services: ServiceOptions,
    #[command(flatten)]
    screening: ScreeningOptions,
}

impl ServeArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        self.services.set(overlay);
        self.screening.set(overlay);
        overlay.set("http.listen", "--listen", self.listen.clone());
    }
}

pub(super) async fn run(arguments: &ServeArguments, config: Config) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    crate::worker::serve(config, arguments.migrate, signals.next()).await?;
    Ok(0)
}
