//! The connections: their number, the time that a request's head may take, and their end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::{App, routes};

/// Longest that the head of a request may take to arrive, and that a connection may be idle between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest that a client may take nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest head of a request.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Accepting fails where the process has no free file descriptor. Others are closed meanwhile.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Serves until `stop` is set; then no further connection is accepted, and those that are open end with their answer.
pub(super) async fn serve(listener: TcpListener, app: Arc<App>, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(app.options.max_connections as usize));
    let service = TowerToHyperService::new(routes::router(&app));
    let open = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
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
        let stream = TimedWrites { stream, until: None };
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
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

/// A connection that ends if its other side takes nothing of an answer for a while. hyper has no such limit, and a client that
/// reads nothing would keep its place for good.
struct TimedWrites {
    stream: TcpStream,
    /// Since something waits to be written.
    until: Option<Pin<Box<Sleep>>>,
}

impl TimedWrites {
    /// The result of a write, or an error if nothing could be written for too long.
    fn in_time<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.until = None;
            return written;
        }
        let until = self.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIMEOUT)));
        until.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for TimedWrites {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TimedWrites {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.in_time(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
