//! The end of a delivery: acknowledged, ignored, retried later, dead-lettered, split or returned.
//!
//! A copy is published and confirmed before the original is acknowledged. A crash between the two doubles a message and
//! never loses one.

use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Delivery;
use crate::broker::{
    ATTEMPT_HEADER, DEAD_SINCE_HEADER, JOB_ID_HEADER, Message, MessagePublisher, PublishError, REASON_HEADER, Topology,
    delay_queue_index, hold_queue_index, text,
};
use crate::fault_injection;
use crate::job::Outcome;
use crate::life::{Held, JobEnd};
use crate::telemetry::metrics::labels::SettlementLabel;
use crate::telemetry::{metrics, traces};

/// Longest reason in a header. The verdict and the log have the whole text.
const MAX_REASON_CHARS: usize = 500;

/// Bytes of the sender's headers that a copy keeps. All headers travel in one frame, of 128 KiB by default. A table that
/// fills the frame leaves no room for our headers, and the broker would close the connection.
const MAX_SENDER_HEADER_BYTES: usize = 64 << 10;
/// Largest size of a header that is kept even if the others fill the limit.
const MAX_REQUIRED_HEADER_BYTES: usize = 4 << 10;

/// Delay before a message returns to its queue because its copy could not be published. It is delivered again at once, and
/// must not circulate at the speed of the processor.
const RETURN_DELAY: Duration = Duration::from_secs(2);

/// How a delivery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The outcome is committed.
    Ack,
    /// The message asks for nothing, such as an S3 test event.
    Ignore,
    /// The job returns later, from a delay queue.
    Retry { failed_attempts: u32, reason: String },
    /// The job returns later, from a delay queue, because its store or bucket has been broken for this long. This is no
    /// failed attempt.
    Hold { reason: String, duration: Duration },
    /// The message goes to the dead letters.
    DeadLetter {
        reason: String,
        /// The id of the `failed` verdict. A replay of the dead letter finds the verdict by it.
        job_id: Option<String>,
    },
    /// A message of several records: each of these bodies becomes a message.
    Split(Vec<String>),
    /// The message returns to its queue as if it had never been delivered.
    Return,
}

impl Settlement {
    /// The label in metrics and traces.
    const fn label(&self) -> SettlementLabel {
        match self {
            Self::Ack => SettlementLabel::Done,
            Self::Ignore => SettlementLabel::Ignored,
            Self::Retry { .. } => SettlementLabel::Retried,
            Self::Hold { .. } => SettlementLabel::Held,
            Self::DeadLetter { .. } => SettlementLabel::DeadLettered,
            Self::Split(_) => SettlementLabel::Split,
            Self::Return => SettlementLabel::Returned,
        }
    }
}

/// The settlement for each end of a job. The only place that decides what a delivery becomes.
#[must_use]
pub fn settlement_of(end: JobEnd) -> Settlement {
    match end {
        JobEnd::Committed { verdict, .. } if verdict.judgement.outcome == Outcome::Failed => Settlement::DeadLetter {
            reason: verdict.judgement.reason.unwrap_or_default(),
            job_id: Some(verdict.job_id),
        },
        JobEnd::Committed { .. } | JobEnd::AnsweredBefore(_) => Settlement::Ack,
        JobEnd::IdConflict => Settlement::DeadLetter {
            reason: "id_conflict: the job's id belongs to a job for another image".into(),
            job_id: None,
        },
        JobEnd::AttemptFailed { failed_attempts, reason } => Settlement::Retry { failed_attempts, reason },
        JobEnd::Held(Held { reason, duration }) => Settlement::Hold { reason, duration },
        JobEnd::Interrupted => Settlement::Return,
        JobEnd::Unrecorded { reason } => Settlement::DeadLetter { reason, job_id: None },
    }
}

/// Carries out settlements.
pub struct Settler {
    publisher: Arc<dyn MessagePublisher>,
    topology: Topology,
}

impl Settler {
    /// Copies of messages are published with `publisher`.
    #[must_use]
    pub fn new(publisher: Arc<dyn MessagePublisher>, topology: Topology) -> Self {
        Self { publisher, topology }
    }

    /// Settles a delivery. If a copy cannot be published, the original returns to its queue.
    pub async fn settle(&self, delivery: Delivery, settlement: Settlement) {
        let copied = match &settlement {
            Settlement::Ack | Settlement::Ignore | Settlement::Return => Ok(()),
            Settlement::Retry { failed_attempts, reason } => {
                let queue = self.topology.delay(delivery.lane, delay_queue_index(*failed_attempts));
                tracing::info!(reason, failed_attempts, queue, "attempt failed, job is retried later");
                let headers = [
                    (ATTEMPT_HEADER, AMQPValue::LongUInt(*failed_attempts)),
                    (REASON_HEADER, text(&shortened(reason))),
                ];
                self.publish_copy(&delivery, "", &queue, &headers).await
            }
            Settlement::Hold { reason, duration } => {
                let queue = self.topology.delay(delivery.lane, hold_queue_index(*duration));
                tracing::debug!(reason, queue, "store or bucket broken, job waits in a delay queue");
                let headers = [(REASON_HEADER, text(&shortened(reason)))];
                self.publish_copy(&delivery, "", &queue, &headers).await
            }
            Settlement::DeadLetter { reason, job_id } => {
                tracing::warn!(reason, job_id, "message dead-lettered");
                let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
                let mut headers = vec![(REASON_HEADER, text(&shortened(reason))), (DEAD_SINCE_HEADER, text(&now))];
                headers.extend(job_id.iter().map(|id| (JOB_ID_HEADER, text(id))));
                self.publish_copy(&delivery, &self.topology.dead(), delivery.lane.as_str(), &headers).await
            }
            Settlement::Split(bodies) => self.split(&delivery, bodies).await,
        };
        let settlement = match copied {
            Ok(()) => settlement,
            Err(e) => {
                tracing::warn!(error = %e, "copy not published, message returned to its queue");
                tokio::time::sleep(RETURN_DELAY).await;
                Settlement::Return
            }
        };
        traces::record_text("pixwarden.settlement", settlement.label().as_str());
        let result = match settlement {
            Settlement::Return => delivery.acknowledger().requeue().await,
            _ => delivery.acknowledger().acknowledge().await,
        };
        fault_injection::crash_point("settle");
        // A delivery whose channel is gone cannot be settled. The broker delivers it again.
        match result {
            Ok(true) => metrics::delivery_settled(delivery.lane, settlement.label()),
            Ok(false) => tracing::debug!("delivery not settled, its channel is gone"),
            Err(e) => tracing::debug!(error = %e, "delivery not settled"),
        }
    }

    async fn split(&self, delivery: &Delivery, bodies: &[String]) -> Result<(), PublishError> {
        for body in bodies {
            let message = Message {
                exchange: &self.topology.jobs(),
                routing_key: delivery.lane.as_str(),
                payload: body.as_bytes(),
                properties: copied_properties(&delivery.properties, &[]),
            };
            self.publisher.publish(message).await?;
        }
        Ok(())
    }

    async fn publish_copy(
        &self,
        delivery: &Delivery,
        exchange: &str,
        routing_key: &str,
        headers: &[(&str, AMQPValue)],
    ) -> Result<(), PublishError> {
        let properties = copied_properties(&delivery.properties, headers);
        self.publisher.publish(Message { exchange, routing_key, payload: &delivery.body, properties }).await
    }
}

/// The mistake that `fault_injection::PlantedBug::AckBeforeCommit` stands for.
pub(super) async fn acknowledge_too_early(delivery: &Delivery) {
    if let Err(e) = delivery.acknowledger().acknowledge().await {
        tracing::debug!(error = %e, "delivery not settled");
    }
}

/// The sender's properties with additional headers. Left out are `expiration`, by which the copy could vanish, and
/// `user_id`, which the broker accepts only from that user.
fn copied_properties(properties: &BasicProperties, headers: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut all = FieldTable::default();
    let mut left = MAX_SENDER_HEADER_BYTES;
    for (key, value) in properties.headers().iter().flat_map(|headers| headers.inner()) {
        // The targets in CC and BCC have received the original already.
        if matches!(key.as_str(), "CC" | "BCC") {
            continue;
        }
        let size = key.as_str().len() + header_value_bytes(value);
        // A replayed job would get another verdict if it lost its id.
        let is_required =
            [JOB_ID_HEADER, "traceparent", "tracestate"].contains(&key.as_str()) && size <= MAX_REQUIRED_HEADER_BYTES;
        if size > left && !is_required {
            tracing::warn!(header = key.as_str(), bytes = size, "header too large, left out of the copy");
            continue;
        }
        left = left.saturating_sub(size);
        all.insert(key.clone(), value.clone());
    }
    for (key, value) in headers {
        all.insert((*key).into(), value.clone());
    }
    let mut copy = BasicProperties::default().with_headers(all);
    if let Some(value) = properties.content_type() {
        copy = copy.with_content_type(value.clone());
    }
    if let Some(value) = properties.content_encoding() {
        copy = copy.with_content_encoding(value.clone());
    }
    if let Some(value) = properties.priority() {
        copy = copy.with_priority(*value);
    }
    if let Some(value) = properties.correlation_id() {
        copy = copy.with_correlation_id(value.clone());
    }
    if let Some(value) = properties.reply_to() {
        copy = copy.with_reply_to(value.clone());
    }
    if let Some(value) = properties.message_id() {
        copy = copy.with_message_id(value.clone());
    }
    if let Some(value) = properties.timestamp() {
        copy = copy.with_timestamp(*value);
    }
    if let Some(value) = properties.kind() {
        copy = copy.with_type(value.clone());
    }
    if let Some(value) = properties.app_id() {
        copy = copy.with_app_id(value.clone());
    }
    copy
}

/// An upper bound of a header value's size in its frame, in bytes.
fn header_value_bytes(value: &AMQPValue) -> usize {
    const FIXED: usize = 16;
    let inner = match value {
        AMQPValue::ShortString(text) => text.as_str().len(),
        AMQPValue::LongString(text) => text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(header_value_bytes).sum(),
        AMQPValue::FieldTable(table) => {
            table.inner().iter().map(|(key, value)| key.as_str().len() + header_value_bytes(value)).sum()
        }
        _ => 0,
    };
    FIXED + inner
}

fn shortened(reason: &str) -> String {
    reason.chars().take(MAX_REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_the_senders_properties_except_those_that_could_make_it_disappear() {
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), text("00-1-2-01"));
        headers.insert("CC".into(), text("elsewhere"));
        let original = BasicProperties::default()
            .with_headers(headers)
            .with_message_id("m".into())
            .with_correlation_id("c".into())
            .with_reply_to("r".into())
            .with_content_type("application/json".into())
            .with_expiration("1000".into())
            .with_user_id("another".into());
        let copy = copied_properties(&original, &[(REASON_HEADER, text("why"))]);
        assert_eq!(copy.expiration(), &None);
        assert_eq!(copy.user_id(), &None);
        let (id, correlation, reply) = (copy.message_id(), copy.correlation_id(), copy.reply_to());
        assert_eq!((id, correlation, reply), (original.message_id(), original.correlation_id(), original.reply_to()));
        let headers = copy.headers().as_ref().unwrap().inner();
        assert_eq!(headers.get("traceparent"), Some(&text("00-1-2-01")));
        assert_eq!(headers.get(REASON_HEADER), Some(&text("why")));
        assert_eq!(headers.get("CC"), None);
    }

    #[test]
    fn a_copy_leaves_out_headers_that_would_fill_its_frame() {
        let mut nested = FieldTable::default();
        nested.insert("inside".into(), text(&"a".repeat(MAX_SENDER_HEADER_BYTES)));
        let mut headers = FieldTable::default();
        headers.insert("a-long".into(), text(&"a".repeat(MAX_SENDER_HEADER_BYTES)));
        headers.insert("b-nested".into(), AMQPValue::FieldTable(nested));
        for i in 0..10_000 {
            headers.insert(format!("c-{i}").into(), AMQPValue::Boolean(true));
        }
        headers.insert(JOB_ID_HEADER.into(), text("job-1"));
        let original = BasicProperties::default().with_headers(headers);
        let copy = copied_properties(&original, &[(REASON_HEADER, text("why"))]);
        let kept = copy.headers().as_ref().unwrap().inner();
        assert_eq!(kept.get(JOB_ID_HEADER), Some(&text("job-1")), "a replayed job keeps its id");
        assert!(!kept.contains_key("a-long") && !kept.contains_key("b-nested"));
        assert!((1_000..10_000).contains(&kept.len()), "{} of the small ones are kept", kept.len());
        assert_eq!(kept.get(REASON_HEADER), Some(&text("why")));
    }
}
