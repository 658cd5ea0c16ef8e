//! How a worker starts and drains.
//!
//! Start: the health endpoints first, so that the rest of the start can be watched; then ledger, object store, detectors
//! and broker, and only then the first delivery. Drain: stop intake, return what waits for admission, finish what was
//! admitted, publish events, close connections. One deadline covers all of it.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept::{Acceptor, DeliveryBroker, DrainingConnection, RabbitMq};
use super::drift::DriftMonitor;
use super::publish::EventPublisher;
use super::review::watch_queue;
use super::settle::Settler;
use super::{Delivery, Worker};
use crate::banks::{self, BanksError, CurrentBanks};
use crate::broker::{BrokerError, MessagePublisher, Publisher, Topology};
use crate::config::{Config, ConfigError, ReviewConfig};
use crate::http::{Bound, HandOver, JobQueue};
use crate::job::Lane;
use crate::lanes::Gate;
use crate::ledger::{self, Ledger, OpenError};
use crate::life::{self, Admission, CommitQueue, Health, JobProcessor, JobProcessorParts};
use crate::objects::{DownloadGates, Fetcher, UploadMemory};
use crate::policy::PolicySet;
use crate::processes;
use crate::screen::{self, Screen, StartError, decode};
use crate::telemetry::intake::{Intake, IntakeState};
use crate::telemetry::{self, metrics, traces};
use crate::webhooks::{self, WebhookError};

/// Why a worker could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Ledger(#[from] OpenError),
    #[error(transparent)]
    Screen(#[from] StartError),
    #[error(transparent)]
    Banks(#[from] BanksError),
    #[error(transparent)]
    Webhooks(#[from] WebhookError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(
        "{0}; the worker ends, and the broker delivers its jobs again\n  hint: start the worker again, or let a supervisor such as systemd or Kubernetes do so"
    )]
    SessionBroken(String),
    #[error(
        "the ledger's user lacks privileges: {}\n  hint: run deploy/postgres/roles.sql again after each `pixwarden migrate`", .0.join(", ")
    )]
    MissingPrivileges(Vec<String>),
    #[error("the task \"{0}\" ended unexpectedly")]
    TaskEnded(&'static str),
}

/// Runs a worker until `shutdown` resolves, then drains.
///
/// # Errors
/// When the worker cannot start, or a session or task ended.
pub async fn run(config: Config, migrate: bool, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
    let intake = Intake::default();
    serve_health(&config, &intake).await?;
    let http = Bound::at(&config.http).await?;
    let ledger = open_ledger(&config, migrate).await?;
    let fetcher = Fetcher::open(&config).await?;
    run_on(config, ledger, fetcher, intake, http, shutdown).await
}

/// Serves metrics and health, so that the rest of the start can be watched.
pub(super) async fn serve_health(config: &Config, intake: &Intake) -> Result<(), WorkerError> {
    if let Some(listener) = telemetry::http::listen(&config.metrics.listen).await? {
        metrics::start();
        drop(tokio::spawn(telemetry::http::serve(listener, intake.clone())));
    }
    Ok(())
}

/// Opens the configured ledger, and checks its schema and the user's privileges.
pub(super) async fn open_ledger(config: &Config, migrate: bool) -> Result<Arc<dyn Ledger>, WorkerError> {
    let ledger: Arc<dyn Ledger> =
        if migrate { ledger::open_or_create(config).await? } else { ledger::open(config).await? }.into();
    if migrate {
        ledger.migrate().await.map_err(OpenError::from)?;
    }
    ledger.check_schema().await.map_err(OpenError::from)?;
    let missing = ledger.missing_privileges().await.map_err(OpenError::from)?;
    if !missing.is_empty() {
        return Err(WorkerError::MissingPrivileges(missing));
    }
    require_review(config, ledger.as_ref())?;
    Ok(ledger)
}

/// Refuses options of review where the ledger has no review. Without such options it is only logged.
pub(super) fn require_review(config: &Config, ledger: &dyn Ledger) -> Result<(), WorkerError> {
    match ledger.reviews() {
        Ok(_) => Ok(()),
        Err(_) if config.review == ReviewConfig::default() => {
            tracing::info!("the ledger has no review, which needs PostgreSQL: no items, decisions or reports");
            Ok(())
        }
        Err(error) => Err(ConfigError::invalid("review", error.to_string()).into()),
    }
}

/// As [`run`], with a ledger and a store that are open already, and a listener if images are screened over HTTP too. The
/// state of intake is kept in `intake`.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    config: Config,
    ledger: Arc<dyn Ledger>,
    fetcher: Fetcher,
    intake: Intake,
    http: Option<Bound>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let queue = config.queue()?.clone();
    let webhooks = webhooks::Sender::new(&config, Arc::clone(&ledger))?;
    let (screen, policies) = screen::start(&config)?;
    let banks = Arc::new(banks::load_for(&policies, &config, ledger.as_ref()).await?);
    ledger.record_policies(&policies.texts()).await.map_err(OpenError::from)?;
    let topology = Topology::new(&config.prefix, config.events.default_queue);
    let prefetch = prefetch(&config, &screen)?;
    set_limits(&config, prefetch);
    let stop = CancellationToken::new();
    let health = Health::new(fetcher.addresses());
    let acceptor = Acceptor {
        broker: RabbitMq { url: queue.clone(), topology: topology.clone(), prefetch },
        topology: topology.clone(),
        prefetch,
        broken: health.watch(),
        intake: intake.clone(),
        stop: stop.clone(),
    };
    let connection = acceptor.broker.open().await?;

    // Its end harms no job, so nothing waits for it.
    let drift =
        DriftMonitor::new(Arc::clone(&ledger), screen.digests(None).unwrap_or_default(), OffsetDateTime::now_utc());
    drop(tokio::spawn(drift.run(stop.clone())));
    drop(tokio::spawn(watch_queue(Arc::clone(&ledger), stop.clone())));
    drop(tokio::spawn(Arc::clone(&banks).keep_current(Arc::clone(&ledger), stop.clone())));
    let publisher = Arc::new(Publisher::new(queue, "publishing", config.outbox.in_flight));
    let running = RunningWorker::start(WorkerParts {
        config: Arc::new(config),
        ledger,
        fetcher,
        screen,
        policies,
        banks,
        publisher,
        webhooks,
        topology,
        health,
        prefetch,
        http,
        stop,
    });
    let accepting = tokio::spawn(acceptor.run(connection, running.intake(), running.in_flight()));
    running.run(accepting, intake, shutdown).await
}

/// What a worker is made of.
pub(super) struct WorkerParts {
    pub config: Arc<Config>,
    pub ledger: Arc<dyn Ledger>,
    pub fetcher: Fetcher,
    pub screen: Screen,
    pub policies: PolicySet,
    pub banks: Arc<CurrentBanks>,
    pub publisher: Arc<dyn MessagePublisher>,
    /// `None` where no webhook is configured.
    pub webhooks: Option<webhooks::Sender>,
    pub topology: Topology,
    pub health: Health,
    pub prefetch: u16,
    /// Where images are screened over HTTP.
    pub http: Option<Bound>,
    pub stop: CancellationToken,
}

/// The life of jobs, with the task that commits.
pub(super) struct Processing {
    pub processor: Arc<JobProcessor>,
    pub committing: JoinHandle<()>,
}

/// What [`Processing`] is made of.
pub(super) struct ProcessingParts {
    pub config: Arc<Config>,
    pub ledger: Arc<dyn Ledger>,
    pub fetcher: Fetcher,
    pub screen: Screen,
    pub policies: PolicySet,
    pub banks: Arc<CurrentBanks>,
    pub health: Health,
    /// The most jobs that are in progress at the same time.
    pub in_flight: usize,
    pub stop: CancellationToken,
}

impl Processing {
    pub(super) fn start(parts: ProcessingParts) -> Self {
        let ProcessingParts { config, ledger, fetcher, screen, policies, banks, health, in_flight, stop } = parts;
        let (commits, committing) = CommitQueue::new(Arc::clone(&ledger), life::linger_limit(in_flight));
        let admission = Admission {
            jobs: Gate::new(max_jobs(&config, &screen) as u64),
            objects: Gate::new(max_objects(&config) as u64),
            downloads: DownloadGates {
                downloads: Gate::new(config.storage.downloads as u64),
                bytes: Gate::with_gauge(config.storage.memory_bytes, metrics::hold_object_memory),
            },
            uploads: UploadMemory::new(
                config.storage.memory_bytes,
                config.storage.max_object_bytes,
                metrics::hold_upload_memory,
            ),
        };
        let fetcher = Arc::new(fetcher);
        let parts =
            JobProcessorParts { config, ledger, fetcher, screen, policies, banks, admission, health, commits, stop };
        Self { processor: Arc::new(JobProcessor::new(parts)), committing: tokio::spawn(committing) }
    }
}

/// A worker with its tasks.
pub(super) struct RunningWorker {
    worker: Arc<Worker>,
    ledger: Arc<dyn Ledger>,
    publisher: Arc<dyn MessagePublisher>,
    /// The tasks of unsettled deliveries, by lane.
    deliveries: LaneTrackers,
    committing: JoinHandle<()>,
    publishing: JoinHandle<()>,
    /// Sends to webhooks.
    sending: Option<JoinHandle<()>>,
    /// Answers over HTTP.
    serving: Option<JoinHandle<()>>,
    /// Stops intake, and the jobs that wait for a broken dependency.
    stop: CancellationToken,
    /// Stops publishing and webhooks, after the last delivery is settled.
    stop_publishing: CancellationToken,
    drain_timeout: Duration,
}

impl RunningWorker {
    pub(super) fn start(parts: WorkerParts) -> Self {
        let WorkerParts {
            config,
            ledger,
            fetcher,
            screen,
            policies,
            banks,
            publisher,
            webhooks,
            topology,
            health,
            prefetch,
            http,
            stop,
        } = parts;
        let stop_publishing = CancellationToken::new();
        let drain_timeout = Duration::from_millis(config.worker.drain_ms);
        let busy = max_jobs(&config, &screen);
        let (events, publishing) = EventPublisher::new(
            Arc::clone(&publisher),
            Arc::clone(&ledger),
            topology.clone(),
            &config.outbox,
            stop_publishing.clone(),
        );
        let Processing { processor, committing } = Processing::start(ProcessingParts {
            config,
            ledger: Arc::clone(&ledger),
            fetcher,
            screen,
            policies,
            banks,
            health,
            in_flight: prefetch.into(),
            stop: stop.clone(),
        });
        let serving = http.map(|http| {
            let (processor, events) = (Arc::clone(&processor), events.clone());
            let queue = JobQueue { publisher: Arc::clone(&publisher), exchange: topology.jobs() };
            let hand_over: HandOver = Box::new(move |event| events.hand_over(event));
            tokio::spawn(http.serve(processor, busy, Some(hand_over), Some(queue), stop.clone()))
        });
        let settler = Settler::new(Arc::clone(&publisher), topology);
        Self {
            worker: Arc::new(Worker { processor, publisher: events, settler }),
            ledger,
            publisher,
            deliveries: LaneTrackers::default(),
            committing,
            publishing: tokio::spawn(publishing),
            sending: webhooks.map(|webhooks| webhooks.start(&stop_publishing)),
            serving,
            stop,
            stop_publishing,
            drain_timeout,
        }
    }

    /// Starts a task for each delivery that it is given.
    pub(super) fn intake(&self) -> impl Fn(Delivery) + Send + use<> {
        let (worker, deliveries) = (Arc::clone(&self.worker), self.deliveries.clone());
        move |delivery: Delivery| {
            let worker = Arc::clone(&worker);
            let (lane, tag, parent) = (delivery.lane, delivery.tag(), delivery.trace());
            let task = async move { worker.process_delivery(delivery).await };
            drop(deliveries.of(lane).spawn(traces::in_job_span(lane, tag, parent, task)));
        }
    }

    /// The number of deliveries of a lane that are not settled.
    pub(super) fn in_flight(&self) -> impl Fn(Lane) -> usize + Send + use<> {
        let deliveries = self.deliveries.clone();
        move |lane| deliveries.of(lane).len()
    }

    /// Runs until `shutdown` resolves, then drains. `accepting` is the task that feeds [`RunningWorker::intake`]; it ends
    /// when the worker stops, and returns the connection on which the last deliveries are settled.
    pub(super) async fn run(
        mut self,
        mut accepting: JoinHandle<Option<DrainingConnection>>,
        intake: Intake,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), WorkerError> {
        tokio::select! {
            () = shutdown => {}
            reason = self.worker.processor.screen.session_broken() => {
                intake.set_state(IntakeState::Broken(reason.clone()));
                processes::end_in_time();
                return Err(WorkerError::SessionBroken(reason));
            }
            _ = &mut accepting => return Err(WorkerError::TaskEnded("accept")),
            _ = &mut self.committing => return Err(WorkerError::TaskEnded("commit")),
            _ = &mut self.publishing => return Err(WorkerError::TaskEnded("publish")),
            () = ended(&mut self.serving) => return Err(WorkerError::TaskEnded("http")),
            () = ended(&mut self.sending) => return Err(WorkerError::TaskEnded("webhooks")),
        }
        intake.set_state(IntakeState::Draining);
        tracing::info!(in_flight = self.deliveries.len(), "draining");
        match tokio::time::timeout(self.drain_timeout, self.drain(accepting)).await {
            Ok(()) => tracing::info!("drained"),
            Err(_) => tracing::warn!("not drained in time, the broker delivers unsettled messages again"),
        }
        Ok(())
    }

    async fn drain(self, accepting: JoinHandle<Option<DrainingConnection>>) {
        self.stop.cancel();
        self.worker.processor.close_gates();
        let connection = accepting.await.ok().flatten();
        self.deliveries.wait().await;
        if let Some(serving) = self.serving
            && serving.await.is_err()
        {
            tracing::error!("a task panicked while draining");
        }
        // The tasks end when the last sender to them is dropped. Sessions and decoders end with the screen.
        drop(self.worker);
        self.stop_publishing.cancel();
        if self.committing.await.is_err() || self.publishing.await.is_err() {
            tracing::error!("a task panicked while draining");
        }
        if let Some(sending) = self.sending
            && sending.await.is_err()
        {
            tracing::error!("a task panicked while draining");
        }
        self.publisher.close().await;
        if let Some(connection) = connection {
            connection.close().await;
        }
        self.ledger.close().await;
    }
}

/// Resolves when the task ends, if there is one.
pub(super) async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(task) => drop(task.await),
        None => std::future::pending().await,
    }
}

pub(super) fn set_limits(config: &Config, prefetch: u16) {
    metrics::set_limits(metrics::WorkerLimits {
        prefetch,
        decode_memory_bytes: config.decode.memory_bytes,
        object_memory_bytes: config.storage.memory_bytes,
    });
}

/// The tasks of each lane. The watchdog for silent consumers asks for one lane: a full lane must not hide that the other
/// one gets nothing.
#[derive(Clone, Default)]
struct LaneTrackers {
    live: TaskTracker,
    backfill: TaskTracker,
}

impl LaneTrackers {
    fn of(&self, lane: Lane) -> &TaskTracker {
        match lane {
            Lane::Live => &self.live,
            Lane::Backfill => &self.backfill,
        }
    }

    fn len(&self) -> usize {
        self.live.len() + self.backfill.len()
    }

    /// Waits until every task has ended. No further task may be started.
    async fn wait(&self) {
        for tracker in [&self.live, &self.backfill] {
            tracker.close();
            tracker.wait().await;
        }
    }
}

/// Deliveries per lane beyond those that keep the sessions busy: they are being committed, or wait for it.
const COMMITTING_DELIVERIES: usize = 64;

/// The limit of jobs between admission and verdict: enough to keep the sessions, the decoders and the downloads busy.
#[must_use]
pub fn max_jobs(config: &Config, screen: &Screen) -> usize {
    2 * screen.max_batch() + max_objects(config)
}

/// The limit of objects in memory: those in the decoders, and those that may arrive meanwhile. Where decoders are slower than
/// the store, a further object would only occupy memory until a decoder is free.
#[must_use]
pub fn max_objects(config: &Config) -> usize {
    decode::DecoderPool::thread_count(&config.decode) + config.storage.downloads
}

/// The smallest prefetch with which neither the sessions, nor the `ahead` jobs in front of them, wait for the broker.
fn min_prefetch(max_batch: usize, sessions: usize, ahead: usize) -> usize {
    2 * max_batch * sessions + ahead
}

/// The prefetch where none is configured.
#[must_use]
pub fn default_prefetch(max_batch: usize, sessions: usize, max_objects: usize) -> u16 {
    u16::try_from(min_prefetch(max_batch, sessions, max_objects) + COMMITTING_DELIVERIES).unwrap_or(u16::MAX)
}

/// The prefetch: enough that the sessions never wait for the broker.
fn prefetch(config: &Config, screen: &Screen) -> Result<u16, ConfigError> {
    let (sessions, downloads) = (screen.session_count(), config.storage.downloads);
    let chosen = config.worker.prefetch;
    if chosen == 0 {
        return Ok(default_prefetch(screen.max_batch(), sessions, max_objects(config)));
    }
    let carries = usize::from(chosen).saturating_sub(downloads) / 2 / sessions;
    if config.inference.max_batch == 0 && carries < screen.max_batch() {
        // Warm-up chose the batch, so it may be lowered to fit the configured prefetch.
        screen.lower_max_batch(carries);
        tracing::info!(max_batch = screen.max_batch(), "batch lowered to fit worker.prefetch");
    }
    let max_batch = screen.max_batch();
    let least = min_prefetch(max_batch, sessions, downloads);
    if usize::from(chosen) >= least {
        return Ok(chosen);
    }
    Err(ConfigError::Invalid {
        option: "worker.prefetch".into(),
        what: format!(
            "{chosen} is too low to keep the sessions busy: 2 × largest batch ({max_batch}) × detectors ({sessions}) + downloads ({downloads}) is {least}\n  hint: raise it to {least}, leave it at 0, or lower inference.max_batch or storage.downloads"
        ),
    })
}
