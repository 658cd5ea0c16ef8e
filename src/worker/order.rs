//! What a delivery says besides its body, kept for as long as the job lasts.

use std::time::Instant;

use time::OffsetDateTime;

use super::accept::Delivery;
use crate::job::Lane;
use crate::telemetry::traces::TraceContext;

/// What a delivery says besides its body.
pub(super) struct Order {
    pub lane: Lane,
    /// Earlier failed attempts.
    pub failures: u32,
    pub redelivered: bool,
    pub received_at: OffsetDateTime,
    /// The same, for durations.
    pub arrived: Instant,
    pub correlation_id: Option<String>,
    pub reply_to: Option<String>,
    pub trace: Option<TraceContext>,
}

impl Order {
    pub(super) fn of(delivery: &Delivery) -> Self {
        Self {
            lane: delivery.lane,
            failures: delivery.failures(),
            redelivered: delivery.redelivered,
            received_at: delivery.received_at,
            arrived: delivery.arrived,
            correlation_id: delivery.correlation_id().map(str::to_owned),
            reply_to: delivery.reply_to().map(str::to_owned),
            trace: delivery.trace(),
        }
    }
}
