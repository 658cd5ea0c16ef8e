//! Accepts connections, bounds their number, and ends them.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::connection::{self, RestLimits};
use super::{App, routes};

/// Accepting fails where the process has no free file descriptor. Others are closed meanwhile.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Serves until `stop` is set; then no further connection is accepted, and those that are open end with their answer.
pub(super) async fn serve(listener: TcpListener, app: Arc<App>, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(app.options.max_connections as usize));
    let service = TowerToHyperService::new(routes::router(&app));
    let open = GracefulShutdown::new();
    let limits = RestLimits::of(&app);
    loop {
        let accepted = async {
            // Further connections wait in the system's queue.
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return None };
            Some((listener.accept().await, permit))
        };
        let (stream, permit) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => match accepted {
                Some((Ok((stream, _)), permit)) => (stream, permit),
                Some((Err(error), _)) => {
                    tracing::debug!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_DELAY).await;
                    continue;
                }
                None => break,
            },
        };
        // A small answer is sent at once.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY not set");
        }
        let connection = open.watch(connection::serve(stream, service.clone(), limits));
        drop(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        }));
    }
    drop(listener);
    open.shutdown().await;
}
