//! One connection: its time limits, and how it ends.
//!
//! A refused request is answered before its body was read. If the connection were closed then, with bytes of the body in
//! the system's buffers, the system would reset it, and a client that still sends would see the reset instead of the
//! answer. So the connection ends in two steps: the answer is sent and the sending side is closed; then the rest of the
//! request is read and thrown away, within limits. No image's place and no memory is held meanwhile.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1::{self, Connection};
use hyper::service::{HttpService, Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::App;

/// Longest that the head of a request may take to arrive, and that a connection may be idle between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest that a client may take nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest head of a request.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Longest that a client may send nothing of the rest of a request that was answered. Also how long the end of a connection
/// waits for a client that has sent all, and does not close.
const REST_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of such a rest beyond two images of the largest size: fields, and what encodings add.
const REST_MARGIN_BYTES: u64 = 16 << 20;
const REST_CHUNK_BYTES: usize = 16 << 10;
/// Where more than this of a request was not read, the answer says that the connection closes. Less may be in the buffers
/// already, and the connection then is used again.
const SMALL_REST_BYTES: u64 = MAX_HEAD_BYTES as u64;

/// How much is read of the rest of a request that was answered already.
#[derive(Debug, Clone, Copy)]
pub(super) struct RestLimits {
    bytes: u64,
    time: Duration,
}

impl RestLimits {
    /// The rest may take as long as a body may. Twice the largest image: also a client that sends too large an image should
    /// read why it is refused.
    pub(super) fn of(app: &App) -> Self {
        let images = app.processor.fetcher.max_object_bytes().saturating_mul(2);
        let time = Duration::from_millis(app.options.body_timeout_ms.into());
        Self { bytes: images.saturating_add(REST_MARGIN_BYTES), time }
    }
}

/// Serves a connection. The future ends when the connection does.
pub(super) fn serve<S, T>(
    stream: S,
    service: T,
    limits: RestLimits,
) -> Connection<TokioIo<ClientStream<S>>, impl HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: Service<Request<WatchedBody>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send,
{
    let unread = Unread::default();
    let stream = ClientStream { stream, write_timeout: None, unread: unread.clone(), limits, rest: Rest::Open };
    let answer = move |request: Request<Incoming>| {
        let request = request.map(|body| WatchedBody { body, unread: unread.clone() });
        let (answering, unread) = (service.call(request), unread.clone());
        async move {
            let mut response = answering.await?;
            if unread.bytes() > SMALL_REST_BYTES {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    http.serve_connection(TokioIo::new(stream), service_fn(answer))
}

/// The bytes that a client may still send of its request. Shared by a connection and the body of its request.
#[derive(Debug, Clone, Default)]
struct Unread(Arc<AtomicU64>);

impl Unread {
    fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    /// Something has arrived, and it is not known yet whether that is a whole request.
    fn arrived(&self) {
        self.0.fetch_max(1, Ordering::Relaxed);
    }
}

/// The body of a request. When it is dropped, it tells its connection what of it was not read.
pub(super) struct WatchedBody {
    body: Incoming,
    unread: Unread,
}

impl hyper::body::Body for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        let is_read = hyper::body::Body::is_end_stream(self);
        // A body in chunks has no size.
        self.unread.set(if is_read {
            0
        } else {
            hyper::body::Body::size_hint(self).upper().unwrap_or(u64::MAX).max(1)
        });
    }
}

/// The stream of a connection.
///
/// It ends with an error if the client takes nothing of an answer for a while. hyper has no such limit, and a client that reads
/// nothing would keep its place for good.
pub(super) struct ClientStream<S> {
    stream: S,
    /// Set while something waits to be written.
    write_timeout: Option<Pin<Box<Sleep>>>,
    unread: Unread,
    limits: RestLimits,
    rest: Rest,
}

/// How far the end of a connection has come.
enum Rest {
    Open,
    /// The sending side is closed, and the rest of the request is read.
    Reading {
        bytes: u64,
        until: Instant,
        timeout: Pin<Box<Sleep>>,
        chunk: Box<[u8]>,
    },
}

impl<S> ClientStream<S> {
    /// The result of a write, or an error if nothing could be written for too long.
    fn in_time<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timeout = None;
            return written;
        }
        let timeout = self.write_timeout.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIMEOUT)));
        timeout.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.unread.arrived();
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.in_time(context, flushed)
    }

    /// Closes the sending side, and reads the rest of a request that was answered early. A connection that is idle between two
    /// requests has no rest, and ends at once; but one whose last request was refused with a small body counts as having a rest,
    /// because hyper may have read that without telling.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, unread, limits, rest, .. } = &mut *self;
        if matches!(rest, Rest::Open) {
            ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
            if unread.bytes() == 0 {
                return Poll::Ready(Ok(()));
            }
            let until = Instant::now() + limits.time;
            let timeout = Box::pin(tokio::time::sleep(REST_IDLE_TIMEOUT.min(limits.time)));
            *rest = Rest::Reading { bytes: 0, until, timeout, chunk: vec![0; REST_CHUNK_BYTES].into() };
        }
        let Rest::Reading { bytes, until, timeout, chunk } = rest else { return Poll::Ready(Ok(())) };
        loop {
            let mut chunk = ReadBuf::new(chunk);
            match Pin::new(&mut *stream).poll_read(context, &mut chunk) {
                Poll::Pending => return timeout.as_mut().poll(context).map(Ok),
                Poll::Ready(Ok(())) if !chunk.filled().is_empty() => {
                    *bytes += chunk.filled().len() as u64;
                    if *bytes > limits.bytes || Instant::now() >= *until {
                        return Poll::Ready(Ok(()));
                    }
                    timeout.as_mut().reset((Instant::now() + REST_IDLE_TIMEOUT).min(*until));
                }
                // The client has closed, or is gone.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    const LIMITS: RestLimits = RestLimits { bytes: 32 << 20, time: Duration::from_secs(30) };
    const HEAD: &str = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: ";

    /// A service that reads nothing, and answers with so many bytes.
    #[derive(Clone)]
    struct Refusing(usize);

    impl Service<Request<WatchedBody>> for Refusing {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn call(&self, request: Request<WatchedBody>) -> Self::Future {
            drop(request);
            std::future::ready(Ok((axum::http::StatusCode::FORBIDDEN, vec![b'a'; self.0]).into_response()))
        }
    }

    /// A client, and its connection, which answers with so many bytes. The client can send and be sent 64 KiB in advance.
    fn connect(answer: usize) -> (DuplexStream, JoinHandle<bool>) {
        let (client, server) = duplex(64 << 10);
        let connection = serve(server, Refusing(answer), LIMITS);
        (client, tokio::spawn(async move { connection.await.is_ok() }))
    }

    async fn read_to_end(client: &mut DuplexStream) -> String {
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_all_before_it_reads_gets_its_answer() {
        for length in [1_000, 1 << 20, 8 << 20] {
            let (mut client, connection) = connect(100);
            client.write_all(format!("{HEAD}{length}\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
            client.write_all(&vec![0; length]).await.unwrap();
            let answer = read_to_end(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 403") && answer.ends_with(&"a".repeat(100)), "{answer}");
            assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
            drop(client);
            assert!(connection.await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_keeps_its_connection_is_told_that_a_large_rest_closes_it() {
        let (mut client, _connection) = connect(0);
        client.write_all(format!("{HEAD}{}\r\n\r\n", 8 << 20).as_bytes()).await.unwrap();
        assert!(read_to_end(&mut client).await.contains("connection: close"));
        let (mut client, _connection) = connect(0);
        for _ in 0..2 {
            client.write_all(format!("{HEAD}3\r\n\r\nabc").as_bytes()).await.unwrap();
            let mut answer = vec![0; 4_096];
            let length = client.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert!(answer.starts_with("HTTP/1.1 403") && !answer.contains("connection: close"), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_without_an_end_is_cut_off_by_bytes_and_by_time() {
        // Chunks of a body without a length, as fast as they are taken.
        let (mut client, connection) = connect(0);
        client.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let chunk = [b"10000\r\n".to_vec(), vec![0; 0x1_0000], b"\r\n".to_vec()].concat();
        let mut sent = 0;
        while client.write_all(&chunk).await.is_ok() {
            sent += chunk.len() as u64;
            assert!(sent < 2 * LIMITS.bytes, "the rest is read without a limit");
        }
        assert!(sent >= LIMITS.bytes, "cut off after {sent} bytes");
        assert!(connection.await.unwrap());

        // A byte each second.
        let (mut client, connection) = connect(0);
        let began = Instant::now();
        client.write_all(format!("{HEAD}10000000000\r\n\r\n").as_bytes()).await.unwrap();
        while client.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(began.elapsed() < 2 * LIMITS.time, "the rest is read without a limit");
        }
        assert!(connection.await.unwrap() && began.elapsed() >= LIMITS.time, "{:?}", began.elapsed());

        // Nothing.
        let (mut client, connection) = connect(0);
        let began = Instant::now();
        client.write_all(format!("{HEAD}10000000000\r\n\r\n").as_bytes()).await.unwrap();
        assert!(connection.await.unwrap());
        assert!(began.elapsed() <= REST_IDLE_TIMEOUT + Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_at_once_when_the_process_drains() {
        let (mut client, server) = duplex(64 << 10);
        let connection = serve(server, Refusing(0), LIMITS);
        let open = hyper_util::server::graceful::GracefulShutdown::new();
        let connection = tokio::spawn(open.watch(connection));
        client.write_all(format!("{HEAD}0\r\n\r\n").as_bytes()).await.unwrap();
        assert!(client.read(&mut [0; 4_096]).await.unwrap() > 0);
        let began = Instant::now();
        open.shutdown().await;
        assert!(connection.await.unwrap().is_ok());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_of_its_answer_loses_its_connection() {
        let (mut client, connection) = connect(1 << 20);
        let began = Instant::now();
        client.write_all(format!("{HEAD}0\r\n\r\n").as_bytes()).await.unwrap();
        assert!(!connection.await.unwrap(), "it ended as if all was sent");
        assert!(began.elapsed() >= WRITE_TIMEOUT && began.elapsed() < 2 * WRITE_TIMEOUT, "{:?}", began.elapsed());
    }
}
