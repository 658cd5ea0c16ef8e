//! What consuming needs from a connection to the broker. A trait, so that tests of the consuming loop need no broker.

use std::fmt;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::broker::BrokerError;
use crate::job::Lane;
use crate::worker::Delivery;

/// Opens connections.
#[async_trait]
pub trait DeliveryBroker: Send + Sync {
    /// Connects, declares the topology, and prepares a consumer for each lane.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses the login, or a queue exists with other arguments.
    async fn open(&self) -> Result<Box<dyn ConsumingConnection>, BrokerError>;
}

/// The deliveries of one consumer. The stream ends when the consumer is cancelled, by either side.
pub type Deliveries = BoxStream<'static, Result<Delivery, BrokerError>>;

/// A connection that delivers the messages of both lanes. They are settled on it, so it stays open until then.
#[async_trait]
pub trait ConsumingConnection: Send + Sync {
    /// Starts a consumer of a lane's queue.
    async fn consume(&self, lane: Lane, tag: &str) -> Result<Deliveries, BrokerError>;

    /// Cancels a consumer. Its stream ends behind what was on its way.
    async fn cancel(&self, lane: Lane, tag: &str) -> Result<(), BrokerError>;

    /// Whether the connection and its channels are open, as far as this side knows.
    fn is_open(&self) -> bool;

    /// The number of messages that wait in a queue. `None` where there is no such queue.
    async fn ready_messages(&self, queue: &str) -> Result<Option<u32>, BrokerError>;

    /// Closes the connection. The broker delivers again what was not settled.
    async fn close(&self, why: CloseReason);
}

/// Why a connection is closed, as the broker logs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// Every delivery is settled.
    Drained,
    /// The connection or a consumer does not work any more.
    Lost,
}

/// A connection whose consumers are cancelled, and that stays open until every delivery is settled.
pub struct DrainingConnection(Box<dyn ConsumingConnection>);

impl DrainingConnection {
    pub(in crate::worker) fn of(connection: Box<dyn ConsumingConnection>) -> Self {
        Self(connection)
    }

    /// Closes the connection once every delivery is settled.
    pub async fn close(self) {
        self.0.close(CloseReason::Drained).await;
    }
}

impl fmt::Debug for DrainingConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DrainingConnection")
    }
}
