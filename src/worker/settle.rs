//! The end of a delivery: exactly one of acknowledge, retry later, dead-letter, split, return.
//!
//! One function says what every trouble means for its job. A copy is published and confirmed before the original is
//! acknowledged, so that a crash between the two doubles a message and never loses one.

use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::accept::Delivery;
use super::health::Dependency;
use crate::broker::{
    ATTEMPT_HEADER, DEAD_SINCE_HEADER, JOB_ID_HEADER, Message, PublishError, Publisher, REASON_HEADER, Topology, text,
};
use crate::config::WorkerConfig;
use crate::fault_injection;
use crate::retry;
use crate::telemetry::metrics::labels::{RetryCause, SettlementLabel};
use crate::telemetry::{metrics, traces};

/// Headers are for people; a broker's frame is not for essays.
const MAX_REASON_CHARS: usize = 500;

/// Bytes of the sender's headers that a copy keeps. All headers travel in one frame, of 128 KiB at most by default, and a
/// table that fills it would leave no room for ours: the broker would close the connection over it.
const MAX_HEADERS: usize = 64 << 10;
/// What each of those takes at the most that are kept however many others there are.
const MAX_NEEDED: usize = 4 << 10;

/// Pause before a message goes back because its copy could not be published.
const BEFORE_RETURN: Duration = Duration::from_secs(2);

/// How a delivery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Done: its outcome is committed.
    Ack,
    /// Done: it asked for nothing.
    Ignore,
    /// Again later, from a delay queue.
    Retry {
        /// Failed attempts so far, this one included.
        failures: u32,
        /// Why.
        reason: String,
    },
    /// To the dead letters.
    DeadLetter {
        /// Why, for whoever looks at them.
        reason: String,
        /// The id of the `failed` verdict, which a replay has to find again.
        job_id: Option<String>,
    },
    /// Several records: each becomes a message of its own.
    Split(Vec<String>),
    /// Back to the queue, as if it had never come.
    Return,
}

impl Settlement {
    /// Its label in metrics and traces.
    const fn label(&self) -> SettlementLabel {
        match self {
            Self::Ack => SettlementLabel::Done,
            Self::Ignore => SettlementLabel::Ignored,
            Self::Retry { .. } => SettlementLabel::Retried,
            Self::DeadLetter { .. } => SettlementLabel::DeadLettered,
            Self::Split(_) => SettlementLabel::Split,
            Self::Return => SettlementLabel::Returned,
        }
    }
}

/// What a failed attempt failed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The object could not be had, and others can.
    Object,
    /// No process could be had that would decode it.
    Decoder,
    /// The model cannot run this image, and it can run others.
    Session,
    /// Something in this program broke over it.
    Panic,
}

impl Cause {
    /// Its label in metrics.
    #[must_use]
    pub const fn label(self) -> RetryCause {
        match self {
            Self::Object => RetryCause::Object,
            Self::Decoder => RetryCause::Decoder,
            Self::Session => RetryCause::Session,
            Self::Panic => RetryCause::Panic,
        }
    }
}

/// Why a job has no verdict yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Something every job needs is broken.
    Broken(Dependency, String),
    /// This attempt failed; another may not.
    Attempt(Cause, String),
    /// The worker drains, or has to end.
    Leaving,
}

/// What to do about a trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Hold the delivery until the dependency is back.
    Hold(Dependency, String),
    /// Settle it so.
    Settle(Settlement),
    /// Give the job up: it ends as `failed`.
    GiveUp(String),
}

/// The one mapping from trouble to remedy. `failures` counts earlier failed attempts.
#[must_use]
pub fn remedy(trouble: Trouble, failures: u32, config: &WorkerConfig) -> Remedy {
    match trouble {
        Trouble::Broken(dependency, reason) => Remedy::Hold(dependency, reason),
        Trouble::Leaving => Remedy::Settle(Settlement::Return),
        Trouble::Attempt(_, reason) => match failures.saturating_add(1) {
            failures if failures >= config.attempts => {
                let attempts = if failures == 1 { "attempt" } else { "attempts" };
                Remedy::GiveUp(format!("given up after {failures} {attempts}: {reason}"))
            }
            failures => Remedy::Settle(Settlement::Retry { failures, reason }),
        },
    }
}

/// Carries settlements out.
pub struct Settle {
    publisher: Arc<Publisher>,
    topology: Topology,
}

impl Settle {
    /// Publishes copies with `publisher`.
    #[must_use]
    pub fn new(publisher: Arc<Publisher>, topology: Topology) -> Self {
        Self { publisher, topology }
    }

    /// Settles a delivery. If a copy cannot be published, the original goes back to its queue.
    pub async fn settle(&self, delivery: Delivery, settlement: Settlement) {
        let copied = match &settlement {
            Settlement::Ack | Settlement::Ignore | Settlement::Return => Ok(()),
            Settlement::Retry { failures, reason } => {
                let queue = self.topology.delay(delivery.lane, retry::rung(*failures));
                tracing::info!(reason, failures, queue, "job is retried later");
                let headers =
                    [(ATTEMPT_HEADER, AMQPValue::LongUInt(*failures)), (REASON_HEADER, text(&shortened(reason)))];
                self.copy(&delivery, "", &queue, &headers).await
            }
            Settlement::DeadLetter { reason, job_id } => {
                tracing::warn!(reason, job_id, "message is dead-lettered");
                let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
                let mut headers = vec![(REASON_HEADER, text(&shortened(reason))), (DEAD_SINCE_HEADER, text(&now))];
                headers.extend(job_id.iter().map(|id| (JOB_ID_HEADER, text(id))));
                self.copy(&delivery, &self.topology.dead(), delivery.lane.as_str(), &headers).await
            }
            Settlement::Split(bodies) => self.split(&delivery, bodies).await,
        };
        let settlement = match copied {
            Ok(()) => settlement,
            Err(e) => {
                tracing::warn!(error = %e, "a copy could not be published, the message goes back to its queue");
                // It will be here again at once, and must not go round at the speed of the processor.
                tokio::time::sleep(BEFORE_RETURN).await;
                Settlement::Return
            }
        };
        traces::record_text("pixwarden.settlement", settlement.label().as_str());
        let result = match settlement {
            Settlement::Return => delivery.acker().nack(BasicNackOptions { requeue: true, multiple: false }).await,
            _ => delivery.acker().ack(BasicAckOptions::default()).await,
        };
        fault_injection::crash_point("settle");
        // A dead channel settles nothing; the broker delivers again.
        match result {
            Ok(true) => metrics::delivery_settled(delivery.lane, settlement.label()),
            Ok(false) => tracing::debug!("the delivery's channel is gone, it will be delivered again"),
            Err(e) => tracing::debug!(error = %e, "the delivery could not be settled, it will be delivered again"),
        }
    }

    async fn split(&self, delivery: &Delivery, bodies: &[String]) -> Result<(), PublishError> {
        for body in bodies {
            let message = Message {
                exchange: &self.topology.jobs(),
                routing_key: delivery.lane.as_str(),
                payload: body.as_bytes(),
                properties: copied(&delivery.properties, &[]),
            };
            self.publisher.publish(message).await?;
        }
        Ok(())
    }

    async fn copy(
        &self,
        delivery: &Delivery,
        exchange: &str,
        routing_key: &str,
        headers: &[(&str, AMQPValue)],
    ) -> Result<(), PublishError> {
        let properties = copied(&delivery.properties, headers);
        self.publisher.publish(Message { exchange, routing_key, payload: &delivery.body, properties }).await
    }
}

/// The mistake that `fault_injection::PlantedBug::AckBeforeCommit` stands for.
pub(super) async fn acknowledge_too_early(delivery: &Delivery) {
    if let Err(e) = delivery.acker().ack(BasicAckOptions::default()).await {
        tracing::debug!(error = %e, "the delivery could not be settled");
    }
}

/// The sender's properties with headers of ours. Not `expiration`, which would let the copy vanish, and not `user_id`,
/// which the broker accepts from its owner only.
fn copied(properties: &BasicProperties, headers: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut all = FieldTable::default();
    let mut left = MAX_HEADERS;
    for (key, value) in properties.headers().iter().flat_map(|headers| headers.inner()) {
        // Further addresses of the sender's: the copy is not for them.
        if matches!(key.as_str(), "CC" | "BCC") {
            continue;
        }
        let size = key.as_str().len() + size(value);
        // A replayed job that loses its id would get another verdict.
        let is_needed = [JOB_ID_HEADER, "traceparent", "tracestate"].contains(&key.as_str()) && size <= MAX_NEEDED;
        if size > left && !is_needed {
            tracing::warn!(header = key.as_str(), bytes = size, "a header is too large for the copy and is left out");
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

/// About how many bytes a header's value takes in its frame, never fewer than it does.
fn size(value: &AMQPValue) -> usize {
    const FIXED: usize = 16;
    let inner = match value {
        AMQPValue::ShortString(text) => text.as_str().len(),
        AMQPValue::LongString(text) => text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(size).sum(),
        AMQPValue::FieldTable(table) => table.inner().iter().map(|(key, value)| key.as_str().len() + size(value)).sum(),
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
    fn every_trouble_has_its_remedy() {
        let config = WorkerConfig { attempts: 3, ..WorkerConfig::default() };
        let broken = Trouble::Broken(Dependency::Ledger, "away".into());
        assert_eq!(remedy(broken, 99, &config), Remedy::Hold(Dependency::Ledger, "away".into()), "costs no attempt");
        assert_eq!(remedy(Trouble::Leaving, 99, &config), Remedy::Settle(Settlement::Return));
        let retry = Settlement::Retry { failures: 2, reason: "x".into() };
        let attempt = || Trouble::Attempt(Cause::Object, "x".into());
        assert_eq!(remedy(attempt(), 1, &config), Remedy::Settle(retry));
        assert_eq!(remedy(attempt(), 2, &config), Remedy::GiveUp("given up after 3 attempts: x".into()));
    }

    #[test]
    fn a_copy_keeps_what_the_sender_said_and_drops_what_would_lose_it() {
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
            .with_user_id("somebody".into());
        let copy = copied(&original, &[(REASON_HEADER, text("why"))]);
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
        nested.insert("inside".into(), text(&"a".repeat(MAX_HEADERS)));
        let mut headers = FieldTable::default();
        headers.insert("a-long".into(), text(&"a".repeat(MAX_HEADERS)));
        headers.insert("b-nested".into(), AMQPValue::FieldTable(nested));
        for i in 0..10_000 {
            headers.insert(format!("c-{i}").into(), AMQPValue::Boolean(true));
        }
        headers.insert(JOB_ID_HEADER.into(), text("job-1"));
        let original = BasicProperties::default().with_headers(headers);
        let copy = copied(&original, &[(REASON_HEADER, text("why"))]);
        let kept = copy.headers().as_ref().unwrap().inner();
        assert_eq!(kept.get(JOB_ID_HEADER), Some(&text("job-1")), "a replayed job keeps its id");
        assert!(!kept.contains_key("a-long") && !kept.contains_key("b-nested"));
        assert!((1_000..10_000).contains(&kept.len()), "{} of the small ones are kept", kept.len());
        assert_eq!(kept.get(REASON_HEADER), Some(&text("why")));
    }
}
