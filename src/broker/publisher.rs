//! Publishing that is only done when the broker has confirmed and routed.

use std::time::Instant;

use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::{Mutex, Semaphore};

use super::{BrokerError, answered, connect};
use crate::config::SecretUrl;
use crate::fault_injection::{self, PlantedBug};
use crate::retry::Pauses;

/// Why a message did not arrive.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound where it was sent.
    #[error("no queue is bound for \"{routing_key}\" at \"{exchange}\" ({reply})")]
    Unroutable {
        /// Where it was sent.
        exchange: String,
        /// With which key.
        routing_key: String,
        /// The broker's words.
        reply: String,
    },
    /// The broker did not take it, for example as a queue is full.
    #[error("the broker did not take the message")]
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

/// Publishes with confirms and `mandatory`, on a connection of its own: a broker in alarm stops reading from
/// connections that publish, and acknowledgements must not wait behind that.
///
/// Each channel has one unconfirmed message at a time. lapin gives a returned message to whatever confirm comes next on
/// its channel, and the broker confirms many at once: with more in flight a lost event would be taken for published,
/// and a published copy for lost. Many channels make up for it.
pub struct Publisher {
    url: SecretUrl,
    name: &'static str,
    room: Semaphore,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    /// Channels of this connection that nobody publishes on now.
    idle: Vec<Channel>,
    /// Which connection this is, so that a late failure on an old one does not close a new one.
    generation: u64,
    pauses: Pauses,
    failed: Option<(Instant, BrokerError)>,
}

impl Publisher {
    /// Connects on first use, and again after a loss; up to `channels` messages are on their way at a time.
    #[must_use]
    pub fn new(url: SecretUrl, name: &'static str, channels: usize) -> Self {
        Self { url, name, room: Semaphore::new(channels.max(1)), link: Mutex::default() }
    }

    /// Publishes one message and waits until the broker has taken responsibility for it.
    ///
    /// # Errors
    /// When it was returned, refused, or not confirmed in time; it may have arrived nevertheless.
    pub async fn publish(&self, message: Message<'_>) -> Result<(), PublishError> {
        let name = |name: &str| ShortString::try_new(name).map_err(|_| PublishError::Name);
        let (exchange, routing_key) = (name(message.exchange)?, name(message.routing_key)?);
        let _place = self.room.acquire().await;
        let (generation, channel) = self.check_out().await?;
        let options = BasicPublishOptions {
            mandatory: !fault_injection::is_planted(PlantedBug::NoMandatory),
            ..BasicPublishOptions::default()
        };
        let properties = message.properties.with_delivery_mode(2);
        let confirmed = answered("confirming a message", async {
            channel.basic_publish(exchange, routing_key, options, message.payload, properties).await?.await
        });
        let confirmation = match confirmed.await {
            Ok(confirmation) => confirmation,
            Err(e) => {
                // A confirm that never came leaves a connection nobody can trust.
                self.drop_link(generation).await;
                return Err(e.into());
            }
        };
        self.check_in(generation, channel).await;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            // Confirmed and returned: the broker has dropped it.
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                Err(unroutable(message.exchange, &returned))
            }
            Confirmation::Nack(None) | Confirmation::NotRequested => Err(PublishError::Nacked),
        }
    }

    /// Connects if there is no connection, and says whether there is one now.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ready(&self) -> Result<(), BrokerError> {
        let (generation, channel) = self.check_out().await?;
        self.check_in(generation, channel).await;
        Ok(())
    }

    /// Closes the connection, if there is one.
    pub async fn close(&self) {
        if let Some(connection) = self.link.lock().await.connection.take()
            && let Err(e) = answered("closing", connection.close(200, "done".into())).await
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
        // While the broker is away, everybody is told at once instead of queueing for a connection.
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
                link.pauses.reset();
                link.failed = None;
                link.generation += 1;
                link.connection = Some(connection);
                Ok((link.generation, channel))
            }
            Err(e) => {
                link.failed = Some((Instant::now() + link.pauses.longer(), e.clone()));
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

    /// Forgets a connection, unless it has been replaced already.
    async fn drop_link(&self, generation: u64) {
        let mut link = self.link.lock().await;
        if link.generation != generation {
            return;
        }
        link.idle.clear();
        if let Some(connection) = link.connection.take() {
            // A silent broker would let this wait; nobody needs its answer.
            drop(tokio::spawn(async move {
                if let Err(e) = answered("closing", connection.close(320, "lost".into())).await {
                    tracing::debug!(error = %e, "closing a lost connection failed");
                }
            }));
        }
    }
}

async fn confirming(connection: &Connection) -> Result<Channel, BrokerError> {
    let channel = answered("opening a channel", connection.create_channel()).await?;
    answered("turning on confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

fn unroutable(exchange: &str, returned: &BasicReturnMessage) -> PublishError {
    PublishError::Unroutable {
        exchange: exchange.to_owned(),
        routing_key: returned.routing_key.to_string(),
        reply: returned.reply_text.to_string(),
    }
}
