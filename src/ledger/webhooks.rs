//! What is sent to webhooks, stored with its verdict until an endpoint has taken it.

use std::time::Duration;

use async_trait::async_trait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::LedgerError;

/// How long a delivery is tried. One that waits for longer, for example for an endpoint that is configured no more, does not
/// keep its verdict from `prune`.
pub const WEBHOOK_RETRY_PERIOD: Duration = Duration::from_hours(80);

/// An event for an endpoint, in the hands of a sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookDelivery {
    pub id: i64,
    /// The same in every attempt.
    pub event_id: Uuid,
    pub routing_key: String,
    /// What is sent and signed, byte for byte.
    pub payload: String,
    /// Attempts since it was written or replayed, this one included.
    pub attempts: u32,
}

/// An attempt that an endpoint did not accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedAttempt {
    pub id: i64,
    /// The number of the attempt. A later attempt is not overwritten.
    pub attempts: u32,
    /// Of the response; `None` without one.
    pub status: Option<u16>,
    pub error: String,
    pub next: AfterFailure,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// Another attempt after this time.
    RetryIn(Duration),
    /// None, until a person replays it.
    GiveUp,
}

/// The state of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is due, or waits for its next attempt.
    Pending,
    /// The endpoint has accepted it.
    Delivered,
    /// It was given up.
    Failed,
}

impl DeliveryState {
    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

/// A delivery as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDelivery {
    pub id: i64,
    pub endpoint: String,
    pub event_id: Uuid,
    pub verdict_id: Uuid,
    pub routing_key: String,
    pub attempts: u32,
    pub last_status: Option<u16>,
    pub last_error: Option<String>,
    pub created_at: OffsetDateTime,
    /// When the next attempt is due, or when the lease of a running one ends.
    pub due_at: OffsetDateTime,
    pub delivered_at: Option<OffsetDateTime>,
    pub given_up_at: Option<OffsetDateTime>,
}

impl StoredDelivery {
    #[must_use]
    pub const fn state(&self) -> DeliveryState {
        match (self.delivered_at, self.given_up_at) {
            (Some(_), _) => DeliveryState::Delivered,
            (None, Some(_)) => DeliveryState::Failed,
            (None, None) => DeliveryState::Pending,
        }
    }
}

/// Which deliveries are listed.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    pub state: Option<DeliveryState>,
    pub endpoint: Option<String>,
}

/// Which deliveries are sent once more.
#[derive(Debug, Clone)]
pub enum ReplaySelection {
    Ids(Vec<i64>),
    /// Those that meet all of these conditions.
    Where {
        /// Only those that were given up; else also those that were delivered.
        only_failed: bool,
        endpoint: Option<String>,
        /// Written at or after this time.
        since: Option<OffsetDateTime>,
    },
}

/// The waiting deliveries of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingDeliveries {
    pub endpoint: String,
    /// At most [`super::MAX_COUNTED_EVENTS`].
    pub deliveries: u64,
    /// The age of the oldest of them; zero where there is none.
    pub oldest: Duration,
}

/// The deliveries that wait, were accepted lately or were given up.
#[async_trait]
pub trait Webhooks: Send + Sync {
    /// Takes up to `limit` deliveries to an endpoint that are due, beginning with those that were due first. The lease ends
    /// after a minute by itself, so that the deliveries of a process that died are sent by another one.
    async fn lease_deliveries(&self, endpoint: &str, limit: u32) -> Result<Vec<WebhookDelivery>, LedgerError>;

    /// Records that an endpoint has accepted a delivery with this status.
    async fn mark_delivered(&self, id: i64, status: u16) -> Result<(), LedgerError>;

    /// Records a failed attempt, unless a later one has begun.
    async fn record_failure(&self, failed: &FailedAttempt) -> Result<(), LedgerError>;

    /// Gives up what has waited for an endpoint for longer than [`WEBHOOK_RETRY_PERIOD`], and returns the number.
    async fn give_up_waiting(&self, endpoint: &str, error: &str) -> Result<u64, LedgerError>;

    /// As [`Webhooks::give_up_waiting`], for all endpoints but these.
    async fn give_up_orphans(&self, configured: &[String], error: &str) -> Result<u64, LedgerError>;

    /// Deletes up to `limit` deliveries that were accepted longer ago than `keep`, and returns their number.
    async fn prune_deliveries(&self, keep: Duration, limit: u32) -> Result<u64, LedgerError>;

    /// Counts what waits for each of these endpoints.
    async fn count_waiting(&self, endpoints: &[String]) -> Result<Vec<WaitingDeliveries>, LedgerError>;

    /// Deliveries without their payloads, latest first.
    async fn find_deliveries(&self, filter: &DeliveryFilter, limit: u32) -> Result<Vec<StoredDelivery>, LedgerError>;

    /// Makes deliveries due at once, with their attempts counted from zero, and returns their number.
    async fn replay_deliveries(&self, selection: &ReplaySelection) -> Result<u64, LedgerError>;
}
