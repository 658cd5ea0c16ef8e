//! A private queue for `bench`: it measures messages per second, published and confirmed, delivered and acknowledged.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, Consumer};
use tokio::sync::{Mutex, oneshot};
use uuid::Uuid;

use super::{BrokerError, Message, PublishError, Publisher, connect, with_timeout};
use crate::config::SecretUrl;

/// A queue that only this connection can use. The broker deletes it with the connection.
pub struct Echo {
    queue: String,
    publisher: Publisher,
    consuming: Connection,
    waiting: Arc<WaitingSenders>,
}

/// The senders that wait for their message, by message id.
type WaitingSenders = Mutex<std::collections::HashMap<String, oneshot::Sender<()>>>;

impl Echo {
    /// Declares the queue and consumes from it, up to `prefetch` messages at the same time. As in a worker, consuming and
    /// publishing have separate connections, with up to `channels` unconfirmed messages.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses it.
    pub async fn open(url: &SecretUrl, prefix: &str, (prefetch, channels): (u16, usize)) -> Result<Self, BrokerError> {
        let queue = format!("{prefix}.bench.{}", Uuid::new_v4().simple());
        let consuming = connect(url, "bench").await?;
        let channel = with_timeout("opening a channel", consuming.create_channel()).await?;
        with_timeout("setting the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
        with_timeout("declaring a queue", declared).await?;
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        let consumer = with_timeout("consuming", consumer).await?;
        let waiting: Arc<WaitingSenders> = Arc::default();
        drop(tokio::spawn(acknowledge(consumer, Arc::clone(&waiting))));
        Ok(Self { queue, publisher: Publisher::new(url.clone(), "bench", channels), consuming, waiting })
    }

    /// Sends a message, and waits until it was confirmed, delivered and acknowledged.
    ///
    /// # Errors
    /// When it does not arrive.
    pub async fn send(&self, body: &str) -> Result<(), PublishError> {
        let id = Uuid::new_v4().simple().to_string();
        let (arrived, arrival) = oneshot::channel();
        self.waiting.lock().await.insert(id.clone(), arrived);
        let properties = BasicProperties::default().with_message_id(id.as_str().into());
        let message = Message { exchange: "", routing_key: &self.queue, payload: body.as_bytes(), properties };
        self.publisher.publish(message).await?;
        with_timeout("delivering a message", async { Ok(arrival.await) })
            .await?
            .map_err(|_| BrokerError::ConnectionClosed.into())
    }

    /// Closes both connections, and so deletes the queue.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn close(self) -> Result<(), BrokerError> {
        self.publisher.close().await;
        with_timeout("closing", self.consuming.close(200, "done".into())).await
    }
}

/// Acknowledges messages until the consumer ends. Senders that still wait then get an error.
async fn acknowledge(mut consumer: Consumer, waiting: Arc<WaitingSenders>) {
    while let Some(Ok(delivery)) = consumer.next().await {
        if delivery.acker.ack(BasicAckOptions::default()).await.is_err() {
            break;
        }
        let id = delivery.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
        if let Some(arrived) = waiting.lock().await.remove(&id) {
            // The sender may have stopped waiting.
            arrived.send(()).unwrap_or(());
        }
    }
    waiting.lock().await.clear();
}
