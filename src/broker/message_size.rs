//! The largest message that the broker accepts.
//!
//! A worker holds up to `prefetch` messages of each lane, and has received a message before it can refuse it. So only the
//! broker can bound how much memory messages take.

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Connection};
use uuid::Uuid;

use super::publisher::confirming;
use super::{BrokerError, with_timeout};

/// The `max_message_size` of `deploy/rabbitmq/rabbitmq.conf`: enough for every job (64 KiB), and for events with the scores
/// of detectors that have thousands of labels.
pub const MAX_MESSAGE_BYTES: usize = 512 << 10;

/// Whether the broker accepts a message of this size. AMQP has no way to ask for the limit, so a message is sent to a queue
/// that does not exist: the broker either drops it, or refuses its size and closes the channel.
///
/// # Errors
/// When the broker does not respond, or the user may not publish to queues.
pub async fn accepts_message_of(connection: &Connection, bytes: usize) -> Result<bool, BrokerError> {
    let channel = confirming(connection).await?;
    let queue = format!("pixwarden.no-queue.{}", Uuid::new_v4().simple());
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let body = vec![b' '; bytes];
    let confirmed = with_timeout("confirming a message", async {
        channel.basic_publish("".into(), queue.as_str().into(), options, &body, properties).await?.await
    });
    match confirmed.await {
        Ok(_) => {
            with_timeout("closing a channel", channel.close(200, "asked".into())).await?;
            Ok(true)
        }
        Err(BrokerError::PreconditionFailed(_)) => Ok(false),
        Err(e) => Err(e),
    }
}
