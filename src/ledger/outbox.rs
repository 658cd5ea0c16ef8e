//! Events that are stored with their verdict until the broker has confirmed them.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Event, LedgerError};

/// How long the process that committed an event may try to publish it before the sweeper takes it.
pub const HANDOVER_DELAY: Duration = Duration::from_secs(30);

/// Unpublished events of one routing key that are counted. More of them are not told apart: counting all would read the
/// whole outbox again and again while its events stay unpublished.
pub const MAX_COUNTED_EVENTS: u32 = 10_000;

/// The unpublished events of one routing key; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpublishedEvents {
    pub routing_key: String,
    /// At most [`MAX_COUNTED_EVENTS`].
    pub events: u64,
    /// The age of the oldest of them. Events beyond those that are counted become due later.
    pub oldest: Duration,
}

/// The events that wait to be published, or were published lately.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// The routing keys of unpublished events.
    async fn unpublished_keys(&self) -> Result<Vec<String>, LedgerError>;

    /// Takes up to `limit` events of a routing key that are due, beginning with those that were due first. A lease ends by
    /// itself, later with each try.
    async fn lease_events(&self, routing_key: &str, limit: u32) -> Result<Vec<Event>, LedgerError>;

    /// Marks events as published.
    async fn mark_published(&self, ids: &[Uuid]) -> Result<(), LedgerError>;

    /// Records why an event could not be published. It becomes due again when its lease ends.
    async fn note_unpublished(&self, id: Uuid, error: &str) -> Result<(), LedgerError>;

    /// Deletes up to `limit` events that were published longer ago than `keep`, and returns their number.
    async fn prune_outbox(&self, keep: Duration, limit: u32) -> Result<u64, LedgerError>;

    /// Counts the unpublished events of each routing key, up to [`MAX_COUNTED_EVENTS`].
    async fn count_unpublished(&self) -> Result<Vec<UnpublishedEvents>, LedgerError>;
}
