//! Acknowledging a delivered message. A trait, so that tests of the worker need no broker.

use std::fmt;

use async_trait::async_trait;
use lapin::Acker;
use lapin::options::{BasicAckOptions, BasicNackOptions};

use super::BrokerError;

/// Settles one message on the channel that delivered it.
#[async_trait]
pub trait Acknowledger: Send + Sync + fmt::Debug {
    /// Removes the message from its queue. Returns false when the channel is gone: the broker delivers the message again.
    async fn acknowledge(&self) -> Result<bool, BrokerError>;

    /// Returns the message to its queue. Returns false when the channel is gone.
    async fn requeue(&self) -> Result<bool, BrokerError>;

    /// Has the broker move the message to the dead letters by itself. Returns false when the channel is gone.
    async fn reject(&self) -> Result<bool, BrokerError>;
}

#[async_trait]
impl Acknowledger for Acker {
    async fn acknowledge(&self) -> Result<bool, BrokerError> {
        Ok(self.ack(BasicAckOptions::default()).await?)
    }

    async fn requeue(&self) -> Result<bool, BrokerError> {
        Ok(self.nack(BasicNackOptions { requeue: true, multiple: false }).await?)
    }

    async fn reject(&self) -> Result<bool, BrokerError> {
        Ok(self.nack(BasicNackOptions { requeue: false, multiple: false }).await?)
    }
}
