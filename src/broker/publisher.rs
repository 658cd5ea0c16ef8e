//! Publishing. A message counts as published only when the broker has routed and confirmed it.

use std::time::Instant;

use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::{Mutex, Semaphore};

use super::{BrokerError, connect, with_timeout};
use crate::config::SecretUrl;
use crate::fault_injection::{self, PlantedBug};
use crate::retry::Delays;

/// The beginning of the address at which a requester receives replies directly. The broker delivers such a reply to the
/// requester's channel. As no queue holds it, the broker returns a reply that was published as mandatory, although it has
/// delivered it.
const DIRECT_REPLY_PREFIX: &str = "amq.rabbitmq.reply-to.";

/// Why a message was not published.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound for the routing key.
    #[error("no queue is bound for \"{routing_key}\" at \"{exchange}\" ({reply})")]
    Unroutable { exchange: String, routing_key: String, reply: String },
    /// The broker rejected the message, for example because a queue is full.
    #[error("the broker rejected the message")]
    Nacked,
    /// The name of an exchange or queue is longer than the protocol allows.
    #[error("the name of an exchange, a queue or a key is longer than 255 bytes")]
    Name,
    /// The connection.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// One message to be published.
pub struct Message<'a> {
    /// The exchange; empty means straight to the queue named by the key.
    pub exchange: &'a str,
    /// The routing key, or the queue's name.
    pub routing_key: &'a str,
    /// The body.
    pub payload: &'a [u8],
    /// Headers and the rest; delivery mode 2 is set here.
    pub properties: BasicProperties,
}

impl<'a> Message<'a> {
    /// A JSON text without anything further.
    #[must_use]
    pub fn json(exchange: &'a str, routing_key: &'a str, payload: &'a str) -> Self {
        let properties = BasicProperties::default().with_content_type("application/json".into());
        Self { exchange, routing_key, payload: payload.as_bytes(), properties }
    }
}

/// Publishes messages. A trait, so that tests of the worker need no broker.
#[async_trait]
pub trait MessagePublisher: Send + Sync {
    /// Publishes one message, and returns once the broker has routed and confirmed it.
    ///
    /// # Errors
    /// When the message was returned, refused, or not confirmed in time. It may have arrived nevertheless.
    async fn publish(&self, message: Message<'_>) -> Result<(), PublishError>;

    /// Connects if there is no connection.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    async fn ready(&self) -> Result<(), BrokerError>;

    /// Closes the connection, if there is one.
    async fn close(&self);
}

#[async_trait]
impl MessagePublisher for Publisher {
    async fn publish(&self, message: Message<'_>) -> Result<(), PublishError> {
        Self::publish(self, message).await
    }

    async fn ready(&self) -> Result<(), BrokerError> {
        Self::ready(self).await
    }

    async fn close(&self) {
        Self::close(self).await;
    }
}

/// Publishes with confirms and `mandatory`, on a separate connection: under a resource alarm the broker stops reading from
/// connections that publish, and acknowledgements must not wait for that.
///
/// Each channel has one unconfirmed message at a time. lapin attaches a returned message to the next confirm on its channel,
/// and the broker confirms many messages at once. With more in flight, a lost event could count as published, and a
/// published copy as lost. Many channels give the throughput.
pub struct Publisher {
    url: SecretUrl,
    name: &'static str,
    slots: Semaphore,
    link: Mutex<PublishingLink>,
}

#[derive(Default)]
struct PublishingLink {
    connection: Option<Connection>,
    /// Channels of this connection that are not in use.
    idle: Vec<Channel>,
    /// The number of this connection. A late failure on an old connection must not close a new one.
    generation: u64,
    delays: Delays,
    failed: Option<(Instant, BrokerError)>,
}

impl Publisher {
    /// Connects on first use, and again after a loss. Up to `channels` messages are unconfirmed at the same time.
    #[must_use]
    pub fn new(url: SecretUrl, name: &'static str, channels: usize) -> Self {
        Self { url, name, slots: Semaphore::new(channels.max(1)), link: Mutex::default() }
    }

    /// See [`MessagePublisher::publish`].
    ///
    /// # Errors
    /// As there.
    pub async fn publish(&self, message: Message<'_>) -> Result<(), PublishError> {
        let name = |name: &str| ShortString::try_new(name).map_err(|_| PublishError::Name);
        let (exchange, routing_key) = (name(message.exchange)?, name(message.routing_key)?);
        let _slot = self.slots.acquire().await;
        let (generation, channel) = self.check_out().await?;
        let options = BasicPublishOptions {
            mandatory: is_mandatory(&message) && !fault_injection::is_planted(PlantedBug::NoMandatory),
            ..BasicPublishOptions::default()
        };
        let properties = message.properties.with_delivery_mode(2);
        let confirmed = with_timeout("confirming a message", async {
            channel.basic_publish(exchange, routing_key, options, message.payload, properties).await?.await
        });
        let confirmation = match confirmed.await {
            Ok(confirmation) => confirmation,
            Err(e) => {
                // After a missing confirm the state of the connection is unknown.
                self.drop_link(generation).await;
                return Err(e.into());
            }
        };
        self.check_in(generation, channel).await;
        routed(message.exchange, confirmation)
    }

    /// See [`MessagePublisher::ready`].
    ///
    /// # Errors
    /// As there.
    pub async fn ready(&self) -> Result<(), BrokerError> {
        let (generation, channel) = self.check_out().await?;
        self.check_in(generation, channel).await;
        Ok(())
    }

    /// Closes the connection, if there is one.
    pub async fn close(&self) {
        if let Some(connection) = self.link.lock().await.connection.take()
            && let Err(e) = with_timeout("closing", connection.close(200, "done".into())).await
        {
            tracing::debug!(error = %e, "closing the publishing connection failed");
        }
    }

    async fn check_out(&self) -> Result<(u64, Channel), BrokerError> {
        let mut link = self.link.lock().await;
        let link = &mut *link;
        while let Some(channel) = link.idle.pop() {
            if channel.status().connected() {
                return Ok((link.generation, channel));
            }
        }
        if let Some(connection) = link.connection.take_if(|connection| !connection.status().connected()) {
            drop(connection);
        }
        if let Some(connection) = &link.connection {
            return Ok((link.generation, confirming(connection).await?));
        }
        // During an outage callers fail at once instead of queueing for a connection.
        if let Some((until, error)) = &link.failed
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let opened = match connect(&self.url, self.name).await {
            Ok(connection) => confirming(&connection).await.map(|channel| (connection, channel)),
            Err(e) => Err(e),
        };
        match opened {
            Ok((connection, channel)) => {
                link.delays.reset();
                link.failed = None;
                link.generation += 1;
                link.connection = Some(connection);
                Ok((link.generation, channel))
            }
            Err(e) => {
                link.failed = Some((Instant::now() + link.delays.next_delay(), e.clone()));
                Err(e)
            }
        }
    }

    async fn check_in(&self, generation: u64, channel: Channel) {
        let mut link = self.link.lock().await;
        if link.generation == generation {
            link.idle.push(channel);
        }
    }

    /// Drops a connection, unless it was replaced already.
    async fn drop_link(&self, generation: u64) {
        let mut link = self.link.lock().await;
        if link.generation != generation {
            return;
        }
        link.idle.clear();
        if let Some(connection) = link.connection.take() {
            // In the background, because a broker that does not respond would delay this.
            drop(tokio::spawn(async move {
                if let Err(e) = with_timeout("closing", connection.close(320, "lost".into())).await {
                    tracing::debug!(error = %e, "closing a lost connection failed");
                }
            }));
        }
    }
}

/// Whether the broker has to return the message if no queue takes it.
fn is_mandatory(message: &Message<'_>) -> bool {
    !(message.exchange.is_empty() && message.routing_key.starts_with(DIRECT_REPLY_PREFIX))
}

pub(super) async fn confirming(connection: &Connection) -> Result<Channel, BrokerError> {
    let channel = with_timeout("opening a channel", connection.create_channel()).await?;
    with_timeout("turning on confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// Whether a message that was published to this exchange has reached a queue.
pub(super) fn routed(exchange: &str, confirmation: Confirmation) -> Result<(), PublishError> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        // Confirmed and returned: the broker could not route the message, and has dropped it.
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => Err(PublishError::Unroutable {
            exchange: exchange.to_owned(),
            routing_key: returned.routing_key.to_string(),
            reply: returned.reply_text.to_string(),
        }),
        Confirmation::Nack(None) | Confirmation::NotRequested => Err(PublishError::Nacked),
    }
}
