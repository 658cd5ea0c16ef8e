//! Events that are stored with their verdict until the broker has confirmed them.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Event, LedgerError};

/// How long the process that committed an event may try to publish it before the sweeper takes it.
pub const HANDOVER_DELAY: Duration = Duration::from_secs(30);

/// The unpublished events of one routing key; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpublishedEvents {
    pub routing_key: String,
    pub events: u64,
    /// The age of the oldest event.
    pub oldest: Duration,
}

/// The events that wait to be published, or were published lately.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Takes up to `limit` events that are due, oldest first. A lease ends by itself, later with each try.
    async fn lease_events(&self, limit: u32) -> Result<Vec<Event>, LedgerError>;

    /// Marks events as published.
    async fn mark_published(&self, ids: &[Uuid]) -> Result<(), LedgerError>;

    /// Records why an event could not be published. It becomes due again when its lease ends.
    async fn note_unpublished(&self, id: Uuid, error: &str) -> Result<(), LedgerError>;

    /// Deletes events that were published longer ago than `keep`, and returns their number.
    async fn prune_outbox(&self, keep: Duration) -> Result<u64, LedgerError>;

    /// Counts the unpublished events of each routing key.
    async fn count_unpublished(&self) -> Result<Vec<UnpublishedEvents>, LedgerError>;
}
