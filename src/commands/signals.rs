//! SIGTERM and SIGINT.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit status of an interrupted command, as in a shell.
pub(super) const INTERRUPTED: u8 = 130;

/// Receives both signals, which then no longer end the process by themselves.
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
            _ = self.terminate.recv() => tracing::info!("received SIGTERM"),
            _ = self.interrupt.recv() => tracing::info!("received SIGINT"),
        }
    }

    /// A token that the first signal cancels, after calling `announce`: operations in progress can finish. The second signal
    /// ends the process.
    pub(super) fn stop(mut self, announce: impl FnOnce() + Send + 'static) -> CancellationToken {
        let stop = CancellationToken::new();
        let set = stop.clone();
        drop(tokio::spawn(async move {
            self.next().await;
            announce();
            set.cancel();
            self.next().await;
            std::process::exit(i32::from(INTERRUPTED));
        }));
        stop
    }
}
