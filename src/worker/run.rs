//! The start and the end of a worker.
//!
//! Start: health, so that others can watch the rest of it, ledger, store, detectors, broker, and only then the first
//! delivery. End: stop intake, turn back who waits, finish who is inside, publish, close; one deadline over all.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Worker;
use super::accept::{Accept, Delivery};
use super::admit::{Admit, Fetching, Gate};
use super::blob::Fetcher;
use super::health::Health;
use super::persist::{self, Persist};
use super::publish::Publish;
use super::settle::Settle;
use crate::broker::{BrokerError, Publisher, Topology};
use crate::config::{Config, ConfigError};
use crate::ledger::{self, Ledger, OpenError};
use crate::screen::{Screen, StartError, decode};
use crate::telemetry::intake::{Intake, IntakeState};
use crate::telemetry::{http, metrics, traces};

/// Why a worker could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// The detectors or the policy.
    #[error(transparent)]
    Screen(#[from] StartError),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A session is gone.
    #[error("{0}; the worker ends so that a new one can take its place, and its jobs will be delivered again")]
    Broken(String),
    /// A task that has to live as long as the worker has ended.
    #[error("the task \"{0}\" ended unexpectedly")]
    Task(&'static str),
}

/// Runs a worker until `shutdown` resolves; then drains and returns.
///
/// # Errors
/// When it cannot start, or something it cannot do without is gone.
pub async fn run(config: Config, migrate: bool, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
    let intake = Intake::default();
    if let Some(listener) = http::listen(&config.metrics.listen).await? {
        metrics::start();
        drop(tokio::spawn(http::serve(listener, intake.clone())));
    }
    let ledger: Arc<dyn Ledger> =
        if migrate { ledger::open_or_create(&config).await? } else { ledger::open(&config).await? }.into();
    if migrate {
        ledger.migrate().await.map_err(OpenError::from)?;
    }
    ledger.check_schema().await.map_err(OpenError::from)?;
    let fetcher = Fetcher::open(&config).await?;
    run_on(config, ledger, fetcher, intake, shutdown).await
}

/// As [`run`], on a ledger and a store that are open already. What it takes in is told to `intake`.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    config: Config,
    ledger: Arc<dyn Ledger>,
    fetcher: Fetcher,
    intake: Intake,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let queue = config.queue()?.clone();
    let fetcher = Arc::new(fetcher);
    let screen = Screen::start(&config)?;

    let topology = Topology::new(&config.prefix, config.events.default_queue);
    let (stop, publish_stop) = (CancellationToken::new(), CancellationToken::new());
    let health = Health::default();
    let prefetch = prefetch(&config, &screen)?;
    metrics::set_limits(metrics::WorkerLimits {
        prefetch,
        decode_memory_bytes: config.decode.memory_bytes,
        object_memory_bytes: config.storage.memory_bytes,
    });
    let accept = Accept {
        url: queue.clone(),
        topology: topology.clone(),
        prefetch,
        broken: health.watch(),
        intake: intake.clone(),
        stop: stop.clone(),
    };
    let connection = accept.open().await?;

    let publisher = Arc::new(Publisher::new(queue, "publishing", config.outbox.in_flight));
    let (persist, writing) = Persist::new(Arc::clone(&ledger), persist::enough(prefetch.into()));
    let (publish, publishing) = Publish::new(
        Arc::clone(&publisher),
        Arc::clone(&ledger),
        topology.clone(),
        (&config.events, &config.outbox),
        publish_stop.clone(),
    );
    let (mut writing, mut publishing) = (tokio::spawn(writing), tokio::spawn(publishing));
    let jobs = jobs(&config, &screen);
    let worker = Arc::new(Worker {
        admit: Admit {
            jobs: Gate::new(jobs as u64),
            objects: Gate::new(objects(&config) as u64),
            fetching: Fetching {
                downloads: Gate::new(config.storage.downloads as u64),
                bytes: Gate::shown(config.storage.memory_bytes, metrics::hold_object_memory),
            },
        },
        settle: Settle::new(Arc::clone(&publisher), topology),
        company: RwLock::new(()),
        process: uuid::Uuid::new_v4(),
        stop: stop.clone(),
        ledger: Arc::clone(&ledger),
        config,
        fetcher,
        screen,
        health,
        persist,
        publish,
    });

    let lives = TaskTracker::new();
    let take = {
        let (worker, lives) = (Arc::clone(&worker), lives.clone());
        move |delivery: Delivery| {
            let worker = Arc::clone(&worker);
            let (lane, tag, parent) = (delivery.lane, delivery.tag(), delivery.trace());
            drop(lives.spawn(traces::in_job_span(lane, tag, parent, async move { worker.live(delivery).await })));
        }
    };
    let in_flight = {
        let lives = lives.clone();
        move || lives.len()
    };
    let mut accepting = tokio::spawn(accept.run(connection, take, in_flight));
    tokio::select! {
        () = shutdown => {}
        reason = worker.screen.broken() => return Err(WorkerError::Broken(reason)),
        _ = &mut accepting => return Err(WorkerError::Task("accept")),
        _ = &mut writing => return Err(WorkerError::Task("persist")),
        _ = &mut publishing => return Err(WorkerError::Task("publish")),
    }

    intake.set_state(IntakeState::Draining);
    tracing::info!(in_flight = lives.len(), "draining");
    let drain = Duration::from_millis(worker.config.worker.drain_ms);
    let drained = tokio::time::timeout(drain, async {
        stop.cancel();
        worker.admit.close();
        let open = accepting.await.ok().flatten();
        lives.close();
        lives.wait().await;
        // Dropping the last way in ends the tasks behind; the sessions and decoders end with the screen.
        drop(worker);
        publish_stop.cancel();
        if writing.await.is_err() || publishing.await.is_err() {
            tracing::error!("a task panicked while draining");
        }
        publisher.close().await;
        if let Some(open) = open {
            open.close().await;
        }
        ledger.close().await;
    });
    match drained.await {
        Ok(()) => tracing::info!("drained"),
        Err(_) => tracing::warn!("not drained in time; what is left will be delivered again"),
    }
    Ok(())
}

/// Deliveries a lane beyond what keeps the sessions busy: those that are being committed, and those that wait for it.
const COMMITTING: usize = 64;

/// Jobs between the gate and their verdict: as many as keep the session of every detector, the decoders and the downloads
/// busy.
#[must_use]
pub fn jobs(config: &Config, screen: &Screen) -> usize {
    2 * screen.max_batch() + objects(config)
}

/// Objects held: what the decoders have, and as many as may arrive meanwhile. Where decoders are slower than the store, a
/// download more would only wait for one of them, in memory.
#[must_use]
pub fn objects(config: &Config) -> usize {
    decode::Pool::threads(&config.decode) + config.storage.downloads
}

/// Deliveries a lane that keep so many sessions, and what is `ahead` of them, from waiting for the broker.
fn least_prefetch(max_batch: usize, sessions: usize, ahead: usize) -> usize {
    2 * max_batch * sessions + ahead
}

/// Deliveries a lane where none are configured: as many as keep everything busy, with so many objects.
#[must_use]
pub fn default_prefetch(max_batch: usize, sessions: usize, objects: usize) -> u16 {
    u16::try_from(least_prefetch(max_batch, sessions, objects) + COMMITTING).unwrap_or(u16::MAX)
}

/// Deliveries a lane: enough that the sessions never wait for the broker, and no more.
fn prefetch(config: &Config, screen: &Screen) -> Result<u16, ConfigError> {
    let (sessions, downloads) = (screen.sessions(), config.storage.downloads);
    let chosen = config.worker.prefetch;
    if chosen == 0 {
        return Ok(default_prefetch(screen.max_batch(), sessions, objects(config)));
    }
    let carries = usize::from(chosen).saturating_sub(downloads) / 2 / sessions;
    if config.inference.max_batch == 0 && carries < screen.max_batch() {
        // It was our own choice, which differs from start to start.
        screen.limit(carries);
        tracing::info!(max_batch = screen.max_batch(), "worker.prefetch carries no larger batches");
    }
    let max_batch = screen.max_batch();
    let least = least_prefetch(max_batch, sessions, downloads);
    if usize::from(chosen) >= least {
        return Ok(chosen);
    }
    Err(ConfigError::Invalid {
        option: "worker.prefetch".into(),
        what: format!(
            "{chosen} would let the sessions wait: 2 × largest batch ({max_batch}) × detectors ({sessions}) + downloads ({downloads}) is {least}\n  hint: raise it to {least}, leave it at 0, or lower inference.max_batch or storage.downloads"
        ),
    })
}
