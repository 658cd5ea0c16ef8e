//! Inspecting queues: their depth and their messages, and removing messages one by one.

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection};

use super::{BrokerError, with_timeout};

/// Messages in a queue, and its consumers; `None` when there is no such queue.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn depth(connection: &Connection, queue: &str) -> Result<Option<(u32, u32)>, BrokerError> {
    let channel = with_timeout("opening a channel", connection.create_channel()).await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match with_timeout("asking for a queue", channel.queue_declare(queue.into(), options, FieldTable::default())).await
    {
        Ok(queue) => {
            with_timeout("closing a channel", channel.close(200, "asked".into())).await?;
            Ok(Some((queue.message_count(), queue.consumer_count())))
        }
        Err(BrokerError::NotFound(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Messages of a queue, for looking only: none is acknowledged, and all are back in the queue when this returns.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn peek(connection: &Connection, queue: &str, limit: usize) -> Result<(Vec<Delivery>, u32), BrokerError> {
    let channel = with_timeout("opening a channel", connection.create_channel()).await?;
    let (mut seen, mut left) = (Vec::new(), 0);
    while seen.len() < limit {
        let got = with_timeout("getting a message", channel.basic_get(queue.into(), BasicGetOptions::default()));
        let Some(message) = got.await? else { break };
        left = message.message_count;
        seen.push(message.delivery);
    }
    // Closed, so that every message is back before anybody looks again.
    with_timeout("closing a channel", channel.close(200, "looked".into())).await?;
    Ok((seen, left))
}

/// A header as text or number.
#[must_use]
pub fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        AMQPValue::LongUInt(n) => Some(n.to_string()),
        AMQPValue::LongInt(n) => Some(n.to_string()),
        AMQPValue::LongLongInt(n) => Some(n.to_string()),
        _ => None,
    }
}

/// What becomes of a message that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays where it is.
    Keep,
    /// It leaves the queue: whatever had to be done for it is done.
    Remove,
}

/// Goes once through the messages that are in a queue now, and removes those whose fate that is. A message is removed
/// only after `decide` has returned, so that an interruption doubles one and never loses one; the rest goes back when
/// this ends.
///
/// # Errors
/// When the broker cannot be asked, or the first error of `decide`.
pub async fn sift<E: From<BrokerError>>(
    connection: &Connection,
    queue: &str,
    mut decide: impl AsyncFnMut(&Delivery) -> Result<Fate, E>,
) -> Result<(), E> {
    let channel = with_timeout("opening a channel", connection.create_channel()).await?;
    // What arrives meanwhile, a replayed message that has failed again for one, is for another time.
    let mut left = depth(connection, queue).await?.map_or(0, |(messages, _)| messages);
    while left > 0 {
        let got =
            with_timeout("getting a message", channel.basic_get(queue.into(), BasicGetOptions::default())).await?;
        let Some(message) = got else { break };
        left -= 1;
        if decide(&message.delivery).await? == Fate::Remove {
            let acknowledged = message.delivery.acker.ack(BasicAckOptions::default());
            with_timeout("acknowledging a message", acknowledged).await?;
        }
    }
    // Closed, so that every message that stays is back before anybody looks again.
    with_timeout("closing a channel", channel.close(200, "looked".into())).await?;
    Ok(())
}
