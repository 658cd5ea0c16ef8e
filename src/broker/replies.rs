//! Publishes jobs whose replies come back on the same channel: RabbitMQ's direct reply-to. It needs no queue, and so no
//! permission to declare or read one. Replies that arrive after the channel is closed are lost.

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};

use super::publisher::{confirming, routed};
use super::{BrokerError, Message, PublishError, with_timeout};

/// RabbitMQ's name for the sender's channel. The broker writes the channel's address in its place,
/// and refuses a message with this `reply_to` from a channel that consumes no replies.
pub(super) const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// A channel that publishes jobs and receives their replies.
pub struct ReplyChannel {
    channel: Channel,
    consumer: Consumer,
}

/// The reply to one job.
pub struct Reply {
    /// That of the job.
    pub correlation_id: String,
    /// The event, as JSON.
    pub body: Vec<u8>,
}

impl ReplyChannel {
    /// Consumes first, as RabbitMQ demands.
    ///
    /// # Errors
    /// When the broker refuses it.
    pub async fn open(connection: &Connection) -> Result<Self, BrokerError> {
        let channel = confirming(connection).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(DIRECT_REPLY_TO.into(), "".into(), options, FieldTable::default());
        let consumer = with_timeout("consuming replies", consumer).await?;
        Ok(Self { channel, consumer })
    }

    /// Publishes one job, and returns once the broker has confirmed it. Its reply will have this correlation id.
    ///
    /// # Errors
    /// As [`MessagePublisher::publish`](super::MessagePublisher::publish).
    pub async fn publish(&self, message: Message<'_>, correlation_id: &str) -> Result<(), PublishError> {
        let name = |name: &str| ShortString::try_new(name).map_err(|_| PublishError::Name);
        let (exchange, routing_key) = (name(message.exchange)?, name(message.routing_key)?);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = message
            .properties
            .with_delivery_mode(2)
            .with_reply_to(DIRECT_REPLY_TO.into())
            .with_correlation_id(name(correlation_id)?);
        let confirmed = with_timeout("confirming a message", async {
            self.channel.basic_publish(exchange, routing_key, options, message.payload, properties).await?.await
        });
        routed(message.exchange, confirmed.await?)
    }

    /// The next reply.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn next(&mut self) -> Result<Reply, BrokerError> {
        let delivery = self.consumer.next().await.ok_or(BrokerError::ConnectionClosed)??;
        let correlation_id = delivery.properties.correlation_id().as_ref().map(ToString::to_string);
        Ok(Reply { correlation_id: correlation_id.unwrap_or_default(), body: delivery.data })
    }
}
