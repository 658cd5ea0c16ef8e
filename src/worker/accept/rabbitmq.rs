//! Consuming from RabbitMQ: one connection, with a channel for each lane.

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::connection::{CloseReason, ConsumingConnection, Deliveries, DeliveryBroker};
use crate::broker::{BrokerError, Topology, connect, depth, with_timeout};
use crate::config::SecretUrl;
use crate::job::Lane;
use crate::worker::Delivery;

/// The broker of the configuration.
pub struct RabbitMq {
    pub url: SecretUrl,
    pub topology: Topology,
    /// Unsettled deliveries per lane.
    pub prefetch: u16,
}

/// A connection. Its channels stay open until every delivery is settled: lapin closes a channel when its last handle is
/// dropped, and later acknowledgements on it would be lost.
struct OpenConnection {
    connection: Connection,
    live: Channel,
    backfill: Channel,
    topology: Topology,
}

#[async_trait]
impl DeliveryBroker for RabbitMq {
    async fn open(&self) -> Result<Box<dyn ConsumingConnection>, BrokerError> {
        let connection = connect(&self.url, "consuming").await?;
        self.topology.declare(&connection).await?;
        let live = self.channel(&connection).await?;
        let backfill = self.channel(&connection).await?;
        Ok(Box::new(OpenConnection { connection, live, backfill, topology: self.topology.clone() }))
    }
}

impl RabbitMq {
    async fn channel(&self, connection: &Connection) -> Result<Channel, BrokerError> {
        let channel = with_timeout("opening a channel", connection.create_channel()).await?;
        // Set for each consumer: quorum queues refuse a limit for the whole channel.
        with_timeout("setting the prefetch", channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
        Ok(channel)
    }
}

impl OpenConnection {
    const fn channel(&self, lane: Lane) -> &Channel {
        match lane {
            Lane::Live => &self.live,
            Lane::Backfill => &self.backfill,
        }
    }
}

#[async_trait]
impl ConsumingConnection for OpenConnection {
    async fn consume(&self, lane: Lane, tag: &str) -> Result<Deliveries, BrokerError> {
        let (queue, options) = (self.topology.lane(lane), BasicConsumeOptions::default());
        let channel = self.channel(lane);
        let request = channel.basic_consume(queue.as_str().into(), tag.into(), options, FieldTable::default());
        let consumer = with_timeout("consuming", request).await?;
        Ok(consumer.map(move |delivery| Ok(Delivery::from_broker(lane, delivery?))).boxed())
    }

    async fn cancel(&self, lane: Lane, tag: &str) -> Result<(), BrokerError> {
        let request = self.channel(lane).basic_cancel(tag.into(), BasicCancelOptions::default());
        with_timeout("cancelling", request).await
    }

    fn is_open(&self) -> bool {
        self.connection.status().connected()
            && [&self.live, &self.backfill].into_iter().all(|channel| channel.status().connected())
    }

    async fn ready_messages(&self, queue: &str) -> Result<Option<u32>, BrokerError> {
        Ok(depth(&self.connection, queue).await?.map(|(messages, _)| messages))
    }

    async fn close(&self, why: CloseReason) {
        let (code, text) = match why {
            CloseReason::Drained => (200, "drained"),
            CloseReason::Lost => (320, "lost"),
        };
        if let Err(e) = with_timeout("closing", self.connection.close(code, text.into())).await {
            tracing::debug!(error = %e, text, "closing the consuming connection failed");
        }
    }
}
