//! Sends events to HTTP endpoints, by the Standard Webhooks specification 1.0: at least once, signed, with the event's id.
//!
//! A delivery is written in the transaction of its verdict, for each endpoint that takes the event. Any process that has
//! the endpoints configured sends what is due: deliveries are taken by a short lease, so that several processes share the
//! work and what a dead one held is sent by another. What an endpoint does not accept is tried for about three days.

mod circuit;
mod client;
pub mod options;
mod sender;
mod signature;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::certificates::NoCertificates;
use crate::config::{Config, ConfigError};
use crate::ledger::{Ledger, LedgerError, Webhooks};
use crate::telemetry::metrics;
pub use client::{Request, SendError, WebhookClient};
pub use options::Endpoint;
use sender::EndpointSender;

/// Time between measurements of what waits, and between deletions of what was delivered long ago.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(15);
/// Time between two searches for what waits too long. Each reads all that waits.
const GIVE_UP_INTERVAL: Duration = Duration::from_hours(1);
/// Deliveries that are deleted at once, so that no lock is held for long.
const PRUNE_BATCH: u32 = 5_000;

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("cannot verify the certificates of webhooks\n  hint: install ca-certificates, or set SSL_CERT_FILE")]
    NoCertificates(#[source] Arc<NoCertificates>),
}

impl WebhookError {
    /// Whether the configuration must be changed.
    #[must_use]
    pub const fn is_configuration(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Ledger(LedgerError::WebhooksNeedPostgres))
    }
}

/// What sends events to the configured endpoints.
pub struct Sender {
    endpoints: Vec<Arc<Endpoint>>,
    ledger: Arc<dyn Webhooks>,
    client: Arc<WebhookClient>,
    /// How long a delivery is kept that was accepted.
    keep: Duration,
}

impl Sender {
    /// A sender, or `None` where no endpoint is configured. Warns of endpoints whose events can be read on their way.
    ///
    /// # Errors
    /// When the ledger cannot hold deliveries, or an endpoint needs certificates and the system has none.
    pub fn new(config: &Config, ledger: Arc<dyn Ledger>) -> Result<Option<Self>, WebhookError> {
        let endpoints: Vec<_> = options::endpoints(&config.webhooks)?.into_iter().map(Arc::new).collect();
        if endpoints.is_empty() {
            return Ok(None);
        }
        let (ledger, client) = (ledger.webhooks()?, WebhookClient::default());
        let needs_certificates = endpoints.iter().any(|endpoint| endpoint.is_encrypted());
        if let Some(missing) = client.no_certificates().filter(|_| needs_certificates) {
            return Err(WebhookError::NoCertificates(missing));
        }
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_readable_on_the_way()) {
            let (endpoint, address) = (&endpoint.name, endpoint.address());
            tracing::warn!(endpoint, address, hint = "use https://", "events are sent to a webhook without encryption");
        }
        let keep = Duration::from_hours(u64::from(config.outbox.keep_days) * 24);
        Ok(Some(Self { endpoints, ledger, client: Arc::new(client), keep }))
    }

    /// Starts sending. The task ends when `stop` is set and the requests that run then have ended, or when a part of it panics.
    #[must_use]
    pub fn start(self, stop: &CancellationToken) -> JoinHandle<()> {
        let mut tasks = JoinSet::new();
        for endpoint in &self.endpoints {
            metrics::webhook_configured(&endpoint.name);
            let sender = EndpointSender {
                endpoint: Arc::clone(endpoint),
                ledger: Arc::clone(&self.ledger),
                client: Arc::clone(&self.client) as _,
                stop: stop.clone(),
            };
            tasks.spawn(sender.run());
        }
        let names: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
        tracing::info!(endpoints = names.join(", "), "sending events to webhooks");
        tasks.spawn(self.keep_house(stop.clone()));
        tokio::spawn(async move {
            while let Some(ended) = tasks.join_next().await {
                // A task that panicked ends the others, so that the process ends as after any other panic of a task.
                if ended.is_err() {
                    return;
                }
            }
        })
    }

    /// Measures what waits, gives up what waits for an endpoint that is configured no more, and deletes what was delivered
    /// long ago.
    async fn keep_house(self, stop: CancellationToken) {
        let names: Vec<String> = self.endpoints.iter().map(|endpoint| endpoint.name.clone()).collect();
        let mut ticks = tokio::time::interval(HOUSEKEEPING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut orphans_due = Instant::now();
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Err(error) = self.measure(&names).await {
                tracing::debug!(%error, "waiting webhooks not measured");
            }
            if let Err(error) = self.prune(&stop).await {
                tracing::debug!(%error, "old webhooks not deleted");
            }
            if Instant::now() >= orphans_due {
                orphans_due = Instant::now() + GIVE_UP_INTERVAL;
                match self.ledger.give_up_orphans(&names, "no endpoint of this name is configured").await {
                    Ok(0) => {}
                    Ok(deliveries) => {
                        tracing::warn!(deliveries, "events given up, their webhooks are configured no more");
                    }
                    Err(error) => tracing::debug!(%error, "webhooks without an endpoint not given up"),
                }
            }
        }
    }

    /// After a failure the last values stay.
    async fn measure(&self, names: &[String]) -> Result<(), LedgerError> {
        if metrics::are_enabled() {
            for waiting in self.ledger.count_waiting(names).await? {
                metrics::set_webhooks_waiting(&waiting.endpoint, waiting.deliveries, waiting.oldest);
            }
        }
        Ok(())
    }

    async fn prune(&self, stop: &CancellationToken) -> Result<(), LedgerError> {
        while self.ledger.prune_deliveries(self.keep, PRUNE_BATCH).await? >= u64::from(PRUNE_BATCH) {
            if stop.is_cancelled() {
                break;
            }
        }
        Ok(())
    }
}

/// An event that only shows whether an endpoint accepts events. Its type is that of no verdict.
#[must_use]
pub fn test_event(prefix: &str, endpoint: &str) -> Request {
    let id = Uuid::new_v4().to_string();
    let body = json!({
        "specversion": "1.0",
        "id": id,
        "type": "io.pixwarden.test.v1",
        "source": format!("/{prefix}"),
        "subject": endpoint,
        "time": OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
        "datacontenttype": "application/json",
        "data": {"message": "a test of the webhook, about no image"},
    });
    Request { id, body: body.to_string() }
}
