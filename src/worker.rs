//! The life of a delivery: a message from RabbitMQ is read, its job is processed by `life`, and the delivery is
//! settled by how the job ended. How a worker starts and drains is in `worker/run.rs`.

pub mod accept;
mod delivery;
mod drift;
pub mod options;
pub mod publish;
mod review;
mod run;
mod serve;
pub mod settle;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fault_injection::{self, PlantedBug};
use crate::job::forms::{self, Malformed, Reading};
use crate::job::{Job, Removal};
use crate::life::{JobEnd, JobProcessor, JobRequest, QuarantineRecords};
use crate::telemetry::{Stage, timed};

pub use delivery::Delivery;
use publish::{EventPublisher, ReplyError, ReplyErrorCode};
pub use run::{WorkerError, default_prefetch, max_jobs, max_objects, run, run_on};
pub use serve::serve;
use settle::{Settlement, Settler};

/// Everything that a delivery needs.
struct Worker {
    processor: Arc<JobProcessor>,
    publisher: EventPublisher,
    settler: Settler,
}

impl Worker {
    /// One delivery, from its arrival to its settlement.
    async fn process_delivery(&self, delivery: Delivery) {
        if fault_injection::is_planted(PlantedBug::AckBeforeCommit) {
            settle::acknowledge_too_early(&delivery).await;
        }
        let settlement = match forms::read(&delivery.body, delivery.read_properties()) {
            Ok(Reading::Job(job)) => return self.process_job(delivery, *job).await,
            Ok(Reading::Removed(removal)) => self.record_removal(&delivery, &removal).await,
            Ok(Reading::Several(bodies)) => Settlement::Split(bodies),
            Ok(Reading::Nothing(reason)) => {
                tracing::info!(reason, "message ignored");
                self.reply_error(&delivery, ReplyErrorCode::NothingRequested, &reason).await;
                Settlement::Ignore
            }
            Err(Malformed(reason)) => {
                self.reply_error(&delivery, ReplyErrorCode::NotUnderstood, &reason).await;
                Settlement::dead_letter(reason)
            }
        };
        timed(Stage::Settle, self.settler.settle(delivery, settlement)).await;
    }

    /// Records the removal of an object. Nothing else is requested.
    async fn record_removal(&self, delivery: &Delivery, removal: &Removal) -> Settlement {
        match self.processor.record_removal(removal, self.deadline()).await {
            Ok(verdicts) => {
                tracing::info!(bucket = removal.bucket, key = removal.key, verdicts, "removal of an object recorded");
                self.reply_error(delivery, ReplyErrorCode::NothingRequested, "the removal of an object").await;
                Settlement::Ignore
            }
            Err(end) => settle::settlement_of(end),
        }
    }

    /// Until when a delivery may wait for a broken dependency.
    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.processor.config.worker.hold_ms)
    }

    /// Processes a job and settles its delivery. What the ledger has recorded of its screening is removed last.
    async fn process_job(&self, delivery: Delivery, job: Job) {
        let request = self.request(&delivery, job);
        let settlement = self.finish_job(&delivery, &request).await;
        let is_settled = timed(Stage::Settle, self.settler.settle(delivery, settlement)).await;
        // A message that had to return to its queue although its job has ended comes again, and may be deadly.
        if is_settled {
            self.processor.end_quarantine(&request).await;
        }
    }

    /// Processes a job, publishes its event and sends its reply. The verdict is committed before either.
    async fn finish_job(&self, delivery: &Delivery, request: &JobRequest) -> Settlement {
        let mut end = self.processor.process(request).await;
        match &mut end {
            JobEnd::Committed { verdict, revised_event, new_event, .. } => {
                if let Some(new_event) = new_event.take() {
                    self.publisher.hand_over(*new_event);
                }
                if let Some(queue) = delivery.reply_to() {
                    let revised = revised_event.take().map(|event| *event);
                    let event = revised.unwrap_or_else(|| self.processor.event(request, verdict, None));
                    self.publisher.reply(queue, &event).await;
                }
            }
            JobEnd::IdConflict => self.reply_error(delivery, ReplyErrorCode::IdConflict, settle::ID_CONFLICT).await,
            JobEnd::Erased(_) => self.reply_error(delivery, ReplyErrorCode::Erased, settle::ERASED).await,
            JobEnd::Unrecorded { reason } => self.reply_error(delivery, ReplyErrorCode::NotStored, reason).await,
            JobEnd::AnsweredBefore(id) => {
                if let Some(queue) = delivery.reply_to()
                    && let Some(event) = self.processor.stored_event(request, *id).await
                {
                    self.publisher.reply(queue, &event).await;
                }
            }
            JobEnd::AttemptFailed { .. } | JobEnd::Held(_) | JobEnd::Interrupted | JobEnd::NotKept => {}
        }
        settle::settlement_of(end)
    }

    /// Answers a message that has no result, if its sender waits for one.
    async fn reply_error(&self, delivery: &Delivery, code: ReplyErrorCode, message: &str) {
        if let Some(queue) = delivery.reply_to() {
            let error = ReplyError { code, message };
            self.publisher.reply_error(queue, delivery.correlation_id(), &error).await;
        }
    }

    fn request(&self, delivery: &Delivery, job: Job) -> JobRequest {
        JobRequest {
            job,
            lane: delivery.lane,
            upload: None,
            may_be_known: false,
            max_attempts: self.processor.config.worker.attempts,
            keep_at: None,
            wants_pictures: false,
            replayed_id: delivery.job_id(),
            records: QuarantineRecords::default(),
            failed_attempts: delivery.failed_attempts(),
            is_redelivered: delivery.redelivered,
            received_at: delivery.received_at,
            arrived: delivery.arrived,
            deadline: self.deadline(),
            correlation_id: delivery.correlation_id().map(str::to_owned),
            trace: delivery.trace(),
        }
    }
}
