//! How a process without a queue starts and drains: it screens images over HTTP only.
//!
//! With a ledger it records verdicts as a worker does. Without one it keeps them in a temporary file, for an hour. With a
//! queue it publishes events and queues jobs, but consumes none.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::publish::EventPublisher;
use super::review::watch_queue;
use super::run::{
    Processing, ProcessingParts, WorkerError, ended, max_jobs, open_ledger, require_review, serve_health, set_limits,
};
use crate::banks;
use crate::broker::{self, MessagePublisher, Publisher, Topology};
use crate::config::Config;
use crate::http::{Bound, DEFAULT_LISTEN, HandOver, JobQueue};
use crate::ledger::{self, Ledger, OpenError, VerdictFilter};
use crate::life::{Health, JobProcessor};
use crate::objects::Fetcher;
use crate::processes;
use crate::screen;
use crate::telemetry::intake::{Intake, IntakeState};
use crate::webhooks;

/// How long a temporary ledger keeps a verdict.
const KEPT_FOR: Duration = Duration::from_secs(3_600);
const PRUNE_INTERVAL: Duration = Duration::from_secs(300);
const PRUNE_BATCH: u32 = 1_000;

/// Serves until `shutdown` resolves, then drains.
///
/// # Errors
/// When the process cannot start, or a session or task ended.
pub async fn serve(mut config: Config, migrate: bool, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
    let intake = Intake::default();
    serve_health(&config, &intake).await?;
    if config.http.listen.is_empty() {
        config.http.listen = DEFAULT_LISTEN.into();
    }
    let http = Bound::to(&config.http).await?;
    let (ledger, temporary) = if config.ledger.url.is_empty() {
        let temporary = ledger::open_temporary().await.map_err(OpenError::from)?;
        require_review(&config, temporary.0.as_ref())?;
        tracing::warn!("no ledger is configured: verdicts are forgotten after an hour, and at the end of this process");
        (temporary.0, Some(temporary.1))
    } else {
        (open_ledger(&config, migrate).await?, None)
    };
    let fetcher = if config.buckets.is_empty() {
        tracing::info!("no bucket is allowed: images can be sent, and references to images are rejected");
        Fetcher::open_without_buckets(&config).await?
    } else {
        Fetcher::open(&config).await?
    };
    let events = if config.queue.is_empty() {
        tracing::info!("no queue is configured: verdicts are answered, and no event is published");
        config.events.publish.clear();
        None
    } else {
        let topology = Topology::new(&config.prefix, config.events.default_queue);
        let connection = broker::connect(config.queue()?, "declaring").await?;
        topology.declare(&connection).await?;
        // Its end changes nothing.
        drop(connection.close(200, "declared".into()).await);
        let publisher: Arc<dyn MessagePublisher> =
            Arc::new(Publisher::new(config.queue()?.clone(), "publishing", config.outbox.in_flight));
        Some((publisher, topology))
    };
    let webhooks = webhooks::Sender::new(&config, Arc::clone(&ledger))?;
    let (screen, policies) = screen::start(&config)?;
    let banks = Arc::new(banks::load_for(&policies, &config, ledger.as_ref()).await?);
    ledger.record_policies(&policies.texts()).await.map_err(OpenError::from)?;
    set_limits(&config, 0);
    let stop = CancellationToken::new();
    if temporary.is_some() {
        drop(tokio::spawn(prune(Arc::clone(&ledger), stop.clone())));
    }
    drop(tokio::spawn(Arc::clone(&banks).keep_current(Arc::clone(&ledger), stop.clone())));
    drop(tokio::spawn(watch_queue(Arc::clone(&ledger), stop.clone())));
    let health = Health::new(fetcher.addresses());
    drop(tokio::spawn(show_health(health.clone(), intake.clone())));
    let busy = max_jobs(&config, &screen);
    let config = Arc::new(config);
    let Processing { processor, committing } = Processing::start(ProcessingParts {
        config: Arc::clone(&config),
        ledger: Arc::clone(&ledger),
        fetcher,
        screen,
        policies,
        banks,
        health,
        in_flight: busy,
        stop: stop.clone(),
    });
    let stop_publishing = CancellationToken::new();
    let (mut hand_over, mut queue, mut publishing) = (None, None, None);
    if let Some((publisher, topology)) = &events {
        let (events, task) = EventPublisher::new(
            Arc::clone(publisher),
            Arc::clone(&ledger),
            topology.clone(),
            &config.outbox,
            stop_publishing.clone(),
        );
        hand_over = Some(Box::new(move |event| events.hand_over(event)) as HandOver);
        queue = Some(JobQueue { publisher: Arc::clone(publisher), exchange: topology.jobs() });
        publishing = Some(tokio::spawn(task));
    }
    let serving = tokio::spawn(http.serve(Arc::clone(&processor), busy, hand_over, queue, stop.clone()));
    let server = Server {
        processor,
        ledger,
        publisher: events.map(|(publisher, _)| publisher),
        committing,
        publishing,
        sending: webhooks.map(|webhooks| webhooks.start(&stop_publishing)),
        serving,
        stop,
        stop_publishing,
        drain_timeout: Duration::from_millis(config.worker.drain_ms),
    };
    let ended = server.run(intake, shutdown).await;
    // Its file is there until now.
    drop(temporary);
    ended
}

/// A process that serves, with its tasks.
struct Server {
    processor: Arc<JobProcessor>,
    ledger: Arc<dyn Ledger>,
    publisher: Option<Arc<dyn MessagePublisher>>,
    committing: JoinHandle<()>,
    publishing: Option<JoinHandle<()>>,
    sending: Option<JoinHandle<()>>,
    serving: JoinHandle<()>,
    stop: CancellationToken,
    /// Stops publishing and webhooks, after the last answer.
    stop_publishing: CancellationToken,
    drain_timeout: Duration,
}

impl Server {
    async fn run(mut self, intake: Intake, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
        tokio::select! {
            () = shutdown => {}
            reason = self.processor.screen.session_broken() => {
                intake.set_state(IntakeState::Broken(reason.clone()));
                processes::end_in_time();
                return Err(WorkerError::SessionBroken(reason));
            }
            _ = &mut self.committing => return Err(WorkerError::TaskEnded("commit")),
            () = ended(&mut self.publishing) => return Err(WorkerError::TaskEnded("publish")),
            () = ended(&mut self.sending) => return Err(WorkerError::TaskEnded("webhooks")),
            _ = &mut self.serving => return Err(WorkerError::TaskEnded("http")),
        }
        intake.set_state(IntakeState::Draining);
        match tokio::time::timeout(self.drain_timeout, self.drain()).await {
            Ok(()) => tracing::info!("drained"),
            Err(_) => tracing::warn!("not drained in time, the last requests get no answer"),
        }
        Ok(())
    }

    async fn drain(self) {
        self.stop.cancel();
        self.processor.close_gates();
        let mut panicked = self.serving.await.is_err();
        // The tasks end when the last sender to them is dropped.
        drop(self.processor);
        self.stop_publishing.cancel();
        panicked |= self.committing.await.is_err();
        if let Some(publishing) = self.publishing {
            panicked |= publishing.await.is_err();
        }
        if let Some(sending) = self.sending {
            panicked |= sending.await.is_err();
        }
        if panicked {
            tracing::error!("a task panicked while draining");
        }
        if let Some(publisher) = self.publisher {
            publisher.close().await;
        }
        self.ledger.close().await;
    }
}

/// Shows in `/readyz` whether something is broken that every image needs.
async fn show_health(health: Health, intake: Intake) {
    let mut broken = health.watch();
    loop {
        let reasons: Vec<String> =
            broken.borrow_and_update().iter().map(|(dependency, reason)| format!("{dependency}: {reason}")).collect();
        intake.set_state(if reasons.is_empty() {
            IntakeState::Serving
        } else {
            IntakeState::Paused(reasons.join("; "))
        });
        if broken.changed().await.is_err() {
            return;
        }
    }
}

/// Deletes what a temporary ledger has kept for long enough.
async fn prune(ledger: Arc<dyn Ledger>, stop: CancellationToken) {
    while tokio::time::timeout(PRUNE_INTERVAL, stop.cancelled()).await.is_err() {
        let filter = VerdictFilter::default().before(OffsetDateTime::now_utc() - KEPT_FOR);
        let mut from = None;
        loop {
            match ledger.delete_prunable(&filter, from, PRUNE_BATCH).await {
                Ok(page) if page.next.is_some() => from = page.next,
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "old verdicts not deleted");
                    break;
                }
            }
        }
    }
}
