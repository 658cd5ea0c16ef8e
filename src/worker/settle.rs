//! The end of a delivery: acknowledged, ignored, retried later, dead-lettered, split or returned.
//!
//! A copy is published and confirmed before the original is acknowledged. A crash between the two doubles a message and
//! never loses one.

use std::sync::Arc;
use std::time::Duration;

use lapin::types::AMQPValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Delivery;
use crate::broker::{
    ATTEMPT_HEADER, BrokerError, DEAD_SINCE_HEADER, JOB_ID_HEADER, Message, MessagePublisher, PublishError,
    REASON_HEADER, REDELIVERED_HEADER, Topology, copied_properties, delay_queue_index, hold_queue_index, text,
};
use crate::fault_injection;
use crate::job::Outcome;
use crate::life::{Held, JobEnd};
use crate::telemetry::metrics::labels::SettlementLabel;
use crate::telemetry::{metrics, traces};

/// Why a job whose id belongs to another image has no verdict.
pub(super) const ID_CONFLICT: &str = "the job's id belongs to a job for another image";

/// Why a job for erased content has no verdict.
pub(super) const ERASED: &str = "the verdict on this image was erased, and the same content gets no new one";

/// Longest reason in a header. The verdict and the log have the whole text.
const MAX_REASON_CHARS: usize = 500;

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
    /// The verdict on the image was erased, and there is no new one.
    Erased,
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
        /// The attempts that have failed, with the last one; 0 if the job was never tried.
        failed_attempts: u32,
    },
    /// A message of several records: each of these bodies becomes a message.
    Split(Vec<String>),
    /// The message returns to its queue as if it had never been delivered.
    Return,
    /// The broker moves the message to the dead letters by itself, because it refuses every copy. Returned to its queue, the
    /// message would circulate for ever.
    Reject,
}

impl Settlement {
    /// A dead letter without a verdict.
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::DeadLetter { reason: reason.into(), job_id: None, failed_attempts: 0 }
    }

    /// The label in metrics and traces.
    const fn label(&self) -> SettlementLabel {
        match self {
            Self::Ack => SettlementLabel::Done,
            Self::Ignore => SettlementLabel::Ignored,
            Self::Erased => SettlementLabel::Erased,
            Self::Retry { .. } => SettlementLabel::Retried,
            Self::Hold { .. } => SettlementLabel::Held,
            Self::DeadLetter { .. } | Self::Reject => SettlementLabel::DeadLettered,
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
            failed_attempts: verdict.attempts,
        },
        JobEnd::Committed { .. } | JobEnd::AnsweredBefore(_) => Settlement::Ack,
        JobEnd::Erased(_) => Settlement::Erased,
        JobEnd::IdConflict => Settlement::dead_letter(format!("id_conflict: {ID_CONFLICT}")),
        JobEnd::AttemptFailed { failed_attempts, reason } => Settlement::Retry { failed_attempts, reason },
        JobEnd::Held(Held { reason, duration }) => Settlement::Hold { reason, duration },
        // A message has no upload.
        JobEnd::Interrupted | JobEnd::NotKept => Settlement::Return,
        JobEnd::Unrecorded { reason } => Settlement::dead_letter(reason),
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

    /// Settles a delivery. If a copy cannot be published, the original returns to its queue, and the result is false.
    pub async fn settle(&self, delivery: Delivery, settlement: Settlement) -> bool {
        let copied = match &settlement {
            Settlement::Ack | Settlement::Ignore | Settlement::Erased | Settlement::Return | Settlement::Reject => {
                Ok(())
            }
            Settlement::Retry { failed_attempts, reason } => {
                let queue = self.topology.delay(delivery.lane, delay_queue_index(*failed_attempts));
                tracing::info!(reason, failed_attempts, queue, "attempt failed, job is retried later");
                self.publish_delayed(&delivery, &queue, *failed_attempts, reason).await
            }
            Settlement::Hold { reason, duration } => {
                let queue = self.topology.delay(delivery.lane, hold_queue_index(*duration));
                tracing::debug!(reason, queue, "store or bucket broken, job waits in a delay queue");
                self.publish_delayed(&delivery, &queue, delivery.failed_attempts(), reason).await
            }
            Settlement::DeadLetter { reason, job_id, failed_attempts } => {
                tracing::warn!(reason, job_id, "message dead-lettered");
                let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
                let mut headers = vec![(REASON_HEADER, text(&shortened(reason))), (DEAD_SINCE_HEADER, text(&now))];
                headers.extend(job_id.iter().map(|id| (JOB_ID_HEADER, text(id))));
                headers.extend(attempt_header((*failed_attempts).max(delivery.failed_attempts())));
                self.publish_copy(&delivery, &self.topology.dead(), delivery.lane.as_str(), &headers).await
            }
            Settlement::Split(bodies) => self.split(&delivery, bodies).await,
        };
        let (settlement, is_settled) = match copied {
            Ok(()) => (settlement, true),
            Err(PublishError::Broker(e @ BrokerError::PreconditionFailed(_))) => {
                tracing::error!(error = %e, "copy refused by the broker, message rejected to the dead letters as it is");
                (Settlement::Reject, true)
            }
            Err(e) => {
                tracing::warn!(error = %e, "copy not published, message returned to its queue");
                tokio::time::sleep(RETURN_DELAY).await;
                (Settlement::Return, false)
            }
        };
        traces::record_text("pixwarden.settlement", settlement.label().as_str());
        let result = match settlement {
            Settlement::Return => delivery.acknowledger().requeue().await,
            Settlement::Reject => delivery.acknowledger().reject().await,
            _ => delivery.acknowledger().acknowledge().await,
        };
        fault_injection::crash_point("settle");
        // A delivery whose channel is gone cannot be settled. The broker delivers it again.
        match result {
            Ok(true) => metrics::delivery_settled(delivery.lane, settlement.label()),
            Ok(false) => tracing::debug!("delivery not settled, its channel is gone"),
            Err(e) => tracing::debug!(error = %e, "delivery not settled"),
        }
        is_settled
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

    /// Publishes a copy to a delay queue. It keeps what the worker knows of the message: a copy is a new message for the
    /// broker.
    async fn publish_delayed(
        &self,
        delivery: &Delivery,
        queue: &str,
        failed_attempts: u32,
        reason: &str,
    ) -> Result<(), PublishError> {
        let mut headers = vec![(REASON_HEADER, text(&shortened(reason)))];
        headers.extend(attempt_header(failed_attempts));
        if delivery.redelivered {
            headers.push((REDELIVERED_HEADER, text("true")));
        }
        self.publish_copy(delivery, "", queue, &headers).await
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

/// The count of failed attempts, which a job that was never tried does not have.
fn attempt_header(failed_attempts: u32) -> Option<(&'static str, AMQPValue)> {
    (failed_attempts > 0).then_some((ATTEMPT_HEADER, AMQPValue::LongUInt(failed_attempts)))
}

fn shortened(reason: &str) -> String {
    reason.chars().take(MAX_REASON_CHARS).collect()
}
