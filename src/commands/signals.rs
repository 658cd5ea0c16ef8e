//! SIGTERM and SIGINT, as events to wait for.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit status of a shell's command that was interrupted.
pub(super) const INTERRUPTED: u8 = 130;

/// From here on both signals are ours, and no longer end the process by themselves.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves with the next signal.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("SIGTERM"),
            _ = self.interrupt.recv() => tracing::info!("SIGINT"),
        }
    }

    /// A token that the first signal sets, so that what has begun can finish; `tell` says so. The second signal ends the
    /// process.
    pub(super) fn stop(mut self, tell: impl FnOnce() + Send + 'static) -> CancellationToken {
        let stop = CancellationToken::new();
        let set = stop.clone();
        drop(tokio::spawn(async move {
            self.next().await;
            tell();
            set.cancel();
            self.next().await;
            std::process::exit(i32::from(INTERRUPTED));
        }));
        stop
    }
}
