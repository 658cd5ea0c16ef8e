//! One message from the broker, from its arrival to its settlement.

use std::time::Instant;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};
use time::OffsetDateTime;

use crate::broker::{ATTEMPT_HEADER, Acknowledger, JOB_ID_HEADER, REDELIVERED_HEADER, header};
use crate::job::Lane;
use crate::job::forms::{self, MessageProperties};
use crate::telemetry::metrics::{self, GaugeGuard};
use crate::telemetry::traces::TraceContext;

/// The header that each CloudEvent in binary mode has. There is no binding for AMQP 0-9-1, so senders use the names of other
/// bindings.
const CLOUD_EVENT_HEADERS: [&str; 4] =
    ["cloudEvents:specversion", "cloudEvents_specversion", "ce-specversion", "ce_specversion"];

/// One message, from its arrival to its settlement.
#[derive(Debug)]
pub struct Delivery {
    pub lane: Lane,
    /// Untrusted.
    pub body: Vec<u8>,
    /// The sender's properties, with our own headers.
    pub properties: BasicProperties,
    /// A process had this message before and did not settle it. Its job may have crashed that process.
    pub redelivered: bool,
    pub received_at: OffsetDateTime,
    /// The same instant on the monotonic clock, for durations.
    pub arrived: Instant,
    acknowledger: Box<dyn Acknowledger>,
    /// The delivery's number on its channel, for logs.
    tag: u64,
    _gauge: GaugeGuard,
}

impl Delivery {
    /// A message as lapin delivers it.
    pub(super) fn from_broker(lane: Lane, delivery: lapin::message::Delivery) -> Self {
        let acknowledger = Box::new(delivery.acker);
        Self {
            tag: delivery.delivery_tag,
            ..Self::new(lane, delivery.data, delivery.properties, delivery.redelivered, acknowledger)
        }
    }

    pub(super) fn new(
        lane: Lane,
        body: Vec<u8>,
        properties: BasicProperties,
        redelivered: bool,
        acknowledger: Box<dyn Acknowledger>,
    ) -> Self {
        let was_redelivered = header(&properties, REDELIVERED_HEADER).is_some();
        Self {
            lane,
            body,
            properties,
            redelivered: redelivered || was_redelivered,
            received_at: OffsetDateTime::now_utc(),
            arrived: Instant::now(),
            acknowledger,
            tag: 0,
            _gauge: metrics::hold_delivery(lane),
        }
    }

    /// Earlier failed attempts, as the copy's header counts them.
    #[must_use]
    pub fn failed_attempts(&self) -> u32 {
        header(&self.properties, ATTEMPT_HEADER).and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// The job id that a replayed dead letter failed with.
    #[must_use]
    pub fn job_id(&self) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(JOB_ID_HEADER)? {
            AMQPValue::LongString(id) if forms::is_id(&id.to_string()) => Some(id.to_string()),
            _ => None,
        }
    }

    /// What the message's reading depends on besides its body.
    #[must_use]
    pub fn read_properties(&self) -> MessageProperties<'_> {
        let headers = self.properties.headers().iter().flat_map(|headers| headers.inner().keys());
        let is_binary_cloud_event =
            |key: &ShortString| CLOUD_EVENT_HEADERS.iter().any(|header| header.eq_ignore_ascii_case(key.as_str()));
        MessageProperties {
            message_id: self.properties.message_id().as_ref().map(ShortString::as_str),
            content_encoding: self.properties.content_encoding().as_ref().map(ShortString::as_str),
            is_binary_cloud_event: headers.into_iter().any(is_binary_cloud_event),
        }
    }

    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties.correlation_id().as_ref().map(ShortString::as_str)
    }

    /// The queue to which the sender wants the result.
    #[must_use]
    pub fn reply_to(&self) -> Option<&str> {
        self.properties.reply_to().as_ref().map(ShortString::as_str).filter(|queue| !queue.is_empty())
    }

    /// The sender's trace.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        TraceContext::parse(header(&self.properties, "traceparent"), header(&self.properties, "tracestate"))
    }

    #[must_use]
    pub fn tag(&self) -> u64 {
        self.tag
    }

    pub(super) fn acknowledger(&self) -> &dyn Acknowledger {
        self.acknowledger.as_ref()
    }
}
