//! HTTP beside the queue: images are screened at once, on the same sessions and by the same `life` as jobs of the queue.
//!
//! `routes` is the one table of all routes; it says which scope each needs, builds the router, and is what the tests of
//! access go through. `access` recognises callers. Each further file answers for one resource. `server` holds the
//! connections. An overloaded process refuses at once, and never lets an image pass unseen.

mod access;
mod body;
mod connection;
mod demo;
mod detectors;
mod jobs;
mod openapi;
pub mod options;
mod problem;
mod rekognition;
mod review;
mod routes;
mod screen;
mod server;
mod verdicts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::broker::MessagePublisher;
use crate::config::{ConfigError, HttpConfig};
use crate::ledger::Event;
use crate::life::JobProcessor;

use access::{Access, Link};
pub use access::{LOCAL_NAME, NewKey, new_key};
pub use options::{Scope, is_key_name};

/// Method, path and sufficient scopes of every route. A route without a scope is open to everyone.
#[must_use]
pub fn routes() -> Vec<(String, &'static str, &'static [Scope])> {
    routes::table().into_iter().map(|route| (route.method.to_string(), route.path, route.scopes)).collect()
}

/// Where `serve` listens if nothing else is configured.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8080";

/// What callers in a hurry are told to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What all routes share.
pub struct App {
    processor: Arc<JobProcessor>,
    access: Access,
    options: HttpConfig,
    /// Images that are received or screened.
    in_flight: Arc<Semaphore>,
    /// Publishes a committed event soon. None where no broker is configured.
    hand_over: Option<HandOver>,
    /// Where jobs are queued. None where no broker is configured.
    queue: Option<JobQueue>,
    /// Set when the process ends.
    stop: CancellationToken,
}

/// Takes committed events.
pub type HandOver = Box<dyn Fn(Event) + Send + Sync>;

/// The exchange of jobs.
pub struct JobQueue {
    pub publisher: Arc<dyn MessagePublisher>,
    pub exchange: String,
}

/// A listener that serves nothing yet, so that a wrong address is found before the detectors are loaded.
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    options: HttpConfig,
}

impl Bound {
    /// Listens at the configured address. None where no address is configured.
    ///
    /// # Errors
    /// When the address cannot be bound, or everyone could reach it and no key is configured.
    pub async fn at(options: &HttpConfig) -> Result<Option<Self>, ConfigError> {
        if options.listen.is_empty() { Ok(None) } else { Self::to(options).await.map(Some) }
    }

    /// Listens at the configured address.
    ///
    /// # Errors
    /// As [`Bound::at`].
    pub async fn to(options: &HttpConfig) -> Result<Self, ConfigError> {
        let invalid = |what: String| ConfigError::Invalid { option: "http.listen".into(), what };
        let failed = |error| ConfigError::Refused {
            option: "http.listen".into(),
            what: format!("cannot listen at {}\n  hint: choose another \"host:port\"", options.listen),
            error,
        };
        let listener = TcpListener::bind(&options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() && !options.has_keys() {
            let what = format!(
                "{address} can be reached from other machines, and no key is configured\n  hint: make one with `pixwarden key create NAME`, or listen at 127.0.0.1"
            );
            return Err(invalid(what));
        }
        Ok(Self { listener, address, options: options.clone() })
    }

    /// Serves until `stop` is set and the last answer is sent. `busy` is the number of images that keep the detectors busy.
    pub fn serve(
        self,
        processor: Arc<JobProcessor>,
        busy: usize,
        hand_over: Option<HandOver>,
        queue: Option<JobQueue>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        let Self { listener, address, options } = self;
        let max_in_flight = if options.max_in_flight == 0 { 4 * busy } else { options.max_in_flight };
        let link = (!options.has_keys()).then(|| {
            let (link, token) = Link::new();
            tracing::info!(
                "open http://{address}/open?token={token} in a browser on this machine; the link works once"
            );
            link
        });
        tracing::info!(%address, max_in_flight, keys = options.keys.len() + options.aws_keys.len(), "images are screened over HTTP");
        if let Some(kept) = options.kept_at("0") {
            drop(tokio::spawn(probe_kept(Arc::clone(&processor), kept.bucket)));
        }
        let app = App {
            processor,
            access: Access::new(&options, link),
            in_flight: Arc::new(Semaphore::new(max_in_flight.min(Semaphore::MAX_PERMITS))),
            options,
            hand_over,
            queue,
            stop: stop.clone(),
        };
        server::serve(listener, Arc::new(app), stop)
    }
}

/// Says at the start, and not only with the first image, that images cannot be kept.
async fn probe_kept(processor: Arc<JobProcessor>, bucket: String) {
    if let Err(error) = processor.fetcher.probe_kept(&bucket).await {
        let hint = "requests that send an image are answered 503 until the bucket of `http.keep` can be used";
        tracing::warn!(bucket, %error, hint, "images that are sent cannot be kept");
    }
}
