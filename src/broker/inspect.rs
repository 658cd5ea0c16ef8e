//! Inspecting queues: their depth and their messages, and removing messages one by one.

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection};
use serde_json::{Value, json};

use super::{BrokerError, with_timeout};

/// The numbers of messages and of consumers of a queue. `None` when there is no such queue.
///
/// # Errors
/// When the request fails.
pub async fn depth(connection: &Connection, queue: &str) -> Result<Option<(u32, u32)>, BrokerError> {
    let channel = with_timeout("opening a channel", connection.create_channel()).await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match with_timeout("inspecting a queue", channel.queue_declare(queue.into(), options, FieldTable::default())).await
    {
        Ok(queue) => {
            with_timeout("closing a channel", channel.close(200, "asked".into())).await?;
            Ok(Some((queue.message_count(), queue.consumer_count())))
        }
        Err(BrokerError::NotFound(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A header's value as text, if it is a text or a number.
#[must_use]
pub fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match header_json(properties.headers().as_ref()?.inner().get(name)?) {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A header's value as JSON. Bytes that are not UTF-8 are replaced by U+FFFD.
#[must_use]
pub fn header_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::ShortShortInt(n) => json!(n),
        AMQPValue::ShortShortUInt(n) => json!(n),
        AMQPValue::ShortInt(n) => json!(n),
        AMQPValue::ShortUInt(n) => json!(n),
        AMQPValue::LongInt(n) => json!(n),
        AMQPValue::LongUInt(n) => json!(n),
        AMQPValue::LongLongInt(n) => json!(n),
        AMQPValue::Timestamp(seconds) => json!(seconds),
        AMQPValue::Float(n) => json!(n),
        AMQPValue::Double(n) => json!(n),
        AMQPValue::DecimalValue(decimal) => json!({"scale": decimal.scale, "value": decimal.value}),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => json!(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(header_json).collect(),
        AMQPValue::FieldTable(table) => {
            table.inner().iter().map(|(key, value)| (key.to_string(), header_json(value))).collect()
        }
        AMQPValue::Void => Value::Null,
    }
}

/// What happens to an inspected message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The message stays in its queue.
    Keep,
    /// The message is removed, because it was handled.
    Remove,
}

/// Visits each message that is in a queue now, and removes those for which `decide` returns [`Fate::Remove`]. A message is
/// removed only after `decide` has returned, so that an interruption may double a message and never loses one. The other
/// messages return to the queue at the end.
///
/// # Errors
/// When a request fails, or the first error of `decide`.
pub async fn visit_messages<E: From<BrokerError>>(
    connection: &Connection,
    queue: &str,
    mut decide: impl AsyncFnMut(&Delivery) -> Result<Fate, E>,
) -> Result<(), E> {
    let channel = with_timeout("opening a channel", connection.create_channel()).await?;
    // Messages that arrive from now on are not visited, such as a replayed message that has failed again.
    let mut left = depth(connection, queue).await?.map_or(0, |(messages, _)| messages);
    while left > 0 {
        let got =
            with_timeout("reading a message", channel.basic_get(queue.into(), BasicGetOptions::default())).await?;
        let Some(message) = got else { break };
        left -= 1;
        if decide(&message.delivery).await? == Fate::Remove {
            let acknowledged = message.delivery.acker.ack(BasicAckOptions::default());
            with_timeout("acknowledging a message", acknowledged).await?;
        }
    }
    // Closing the channel returns the kept messages before this function returns.
    with_timeout("closing a channel", channel.close(200, "inspected".into())).await?;
    Ok(())
}
