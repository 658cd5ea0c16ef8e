//! Publishes jobs for the objects of an archive that have no verdict from the current detectors.
//!
//! Objects are compared with the ledger by bucket, key, `ETag` and the detectors' digests: a first run publishes all, a later
//! one only what is new, and one with a new detector all again. The ledger also records published jobs, so that a run after
//! a killed one publishes none of them twice.

mod filter;
mod lock;
mod pace;
pub mod source;

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::broker::{BrokerError, Message, PublishError, Publisher, Topology, connect};
use crate::config::{Config, SecretUrl};
use crate::job::{self, Digests, Identity, ImageRef, Job, Lane, Outcome};
use crate::ledger::{self, BACKFILL_LEASE_TIMEOUT, CurrentVerdict, Ledger, LedgerError};
use crate::objects::{Fetcher, ListedObject};
use crate::retry;
use crate::screen::packages;
pub use filter::ObjectFilter;
use lock::BackfillLock;
pub use pace::{PublishLimits, PublishPace};
use source::{BackfillSource, SourceEntry, SourceError};

/// How long broker, ledger or store may be down before a run ends.
const RETRY_DEADLINE: Duration = Duration::from_secs(300);
/// Objects that are compared with the ledger in one query.
const OBJECTS_PER_PAGE: usize = 1_000;
/// Messages that await their confirmation at the same time.
const MAX_UNCONFIRMED: usize = 64;
/// Every so many pages, records of jobs that have a verdict are deleted.
const PAGES_PER_CLEANUP: u64 = 20;

#[derive(Debug, Clone)]
pub struct BackfillOptions {
    /// Read concurrently.
    pub sources: Vec<BackfillSource>,
    pub filter: ObjectFilter,
    /// Start at the beginning even where an interrupted run has left a mark.
    pub restart: bool,
    pub publish: PublishOptions,
}

#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// Whether objects with the outcome `missing` or `failed` are published again.
    pub retry_failed: bool,
    /// Maximum number of jobs to publish.
    pub limit: Option<u64>,
    /// Only count.
    pub dry_run: bool,
    pub limits: PublishLimits,
    /// A published job without a verdict counts as lost after this time.
    pub again_after: Duration,
}

/// The objects of a run so far. Each is counted once.
#[derive(Debug, Default)]
pub struct BackfillCounts {
    /// Excluded by the filter, or no present object.
    pub filtered: AtomicU64,
    /// With a verdict.
    pub screened: AtomicU64,
    /// Whose verdict was erased.
    pub erased: AtomicU64,
    /// With a published job that has no verdict yet.
    pub waiting: AtomicU64,
    /// With a job published by this run, or that a dry run would publish.
    pub published: AtomicU64,
}

impl BackfillCounts {
    /// All objects so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { filtered, screened, erased, waiting, published } = self;
        [filtered, screened, erased, waiting, published].into_iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// How a run ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackfillEnd {
    Done,
    Limit,
    /// Stopped by a signal; the same command continues from here.
    Stopped,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("cannot publish the job for {image}: {error}")]
    Publish {
        image: String,
        #[source]
        error: Box<PublishError>,
    },
    /// This process did not renew its lock in time.
    #[error(
        "another backfill has started: this process did not reach the ledger for {} s\n  hint: run the same command again, it continues where it stopped",
        BACKFILL_LEASE_TIMEOUT.as_secs()
    )]
    LockLost,
    /// Two runs with different policies at once would leave some verdicts under one and some under the other.
    #[error(
        "another rejudge, by other policies or of another selection, has begun on this ledger; this one has ended\n  hint: run them one after the other"
    )]
    OtherRejudge,
}

/// One run over all sources.
pub struct Backfill {
    fetcher: Arc<Fetcher>,
    sources: Vec<BackfillSource>,
    filter: ObjectFilter,
    restart: bool,
    jobs: JobsForGaps,
}

/// Publishes jobs for objects that have no verdict from the current detectors.
pub struct JobsForGaps {
    ledger: Arc<dyn Ledger>,
    publisher: Arc<Publisher>,
    /// The broker's URL, for reading the depth of the lane.
    queue: SecretUrl,
    topology: Topology,
    /// The digests of the current detectors.
    digests: Digests,
    options: PublishOptions,
    /// The start of the run: jobs that it has published itself never count as lost.
    started_at: OffsetDateTime,
    pub counts: BackfillCounts,
}

/// A job to publish.
struct NewJob {
    verdict_id: Uuid,
    image: ImageRef,
    body: String,
}

impl Backfill {
    /// Opens ledger, store and broker, and ties inventories and manifests to their present content.
    ///
    /// # Errors
    /// When a detector, the ledger, the store, a source or the broker cannot be used.
    pub async fn open(config: &Config, options: BackfillOptions) -> anyhow::Result<Self> {
        config.queue()?;
        // Before the store is asked, because a wrong detector is a mistake in the configuration.
        let digests = digests(config)?;
        let fetcher = Arc::new(Fetcher::open(config).await?);
        let BackfillOptions { mut sources, filter, restart, publish } = options;
        for source in &mut sources {
            *source = source.clone().pin(&fetcher).await?;
        }
        let ledger: Arc<dyn Ledger> = ledger::open(config).await?.into();
        ledger.check_schema().await?;
        let jobs = JobsForGaps::on(ledger, config, digests, publish).await?;
        Ok(Self { fetcher, sources, filter, restart, jobs })
    }

    /// The objects so far.
    #[must_use]
    pub const fn counts(&self) -> &BackfillCounts {
        &self.jobs.counts
    }

    /// Closes the connections to broker and ledger.
    pub async fn close(&self) {
        self.jobs.close().await;
    }

    /// Reads every source to its end, and publishes what has no verdict.
    ///
    /// # Errors
    /// When store, ledger or broker refuse, or are down for longer than a few minutes. Jobs that were published stay
    /// published.
    pub async fn run(&self, stop: &CancellationToken) -> Result<BackfillEnd, BackfillError> {
        self.jobs.alone(stop, self.pages(stop)).await
    }

    /// The number of entries in the sources from where this run begins. Takes as long as listing them.
    ///
    /// # Errors
    /// When a source cannot be read.
    pub async fn count_entries(&self) -> Result<u64, BackfillError> {
        let mut entries = 0;
        for source in &self.sources {
            let mut source_entries = source.entries(&self.fetcher, self.mark(source).await?);
            while let Some(entry) = source_entries.next().await {
                entry?;
                entries += 1;
            }
        }
        Ok(entries)
    }

    async fn pages(&self, stop: &CancellationToken) -> Result<BackfillEnd, BackfillError> {
        let mut sources = Vec::new();
        for (number, source) in self.sources.iter().enumerate() {
            let mark = self.mark(source).await?;
            if let Some(mark) = &mark {
                tracing::info!(%source, after = mark, "continuing where an earlier run stopped; --restart starts at the beginning");
            }
            sources.push(source.objects(&self.fetcher, &self.filter, mark).map(move |entry| (number, entry)));
        }
        let pages = stream::select_all(sources).chunks(OBJECTS_PER_PAGE);
        let mut pages = pin!(pages.take_until(stop.cancelled()));
        let mut pace = self.jobs.pace();
        let mut number = 0;
        while let Some(page) = pages.next().await {
            if number % PAGES_PER_CLEANUP == 0 && !self.jobs.options.dry_run {
                self.jobs.delete_answered_jobs().await?;
            }
            number += 1;
            if let Some(end) = self.page(page, &mut pace, stop).await? {
                return Ok(end);
            }
        }
        if stop.is_cancelled() {
            return Ok(BackfillEnd::Stopped);
        }
        for source in &self.sources {
            self.keep_mark(source, None).await?;
        }
        Ok(BackfillEnd::Done)
    }

    /// Compares a page with the ledger and publishes the missing jobs. Returns `Some` where the run ends with this page.
    async fn page(
        &self,
        page: Vec<(usize, Result<SourceEntry, SourceError>)>,
        pace: &mut PublishPace,
        stop: &CancellationToken,
    ) -> Result<Option<BackfillEnd>, BackfillError> {
        let (mut marks, mut objects, mut failed) = (BTreeMap::new(), Vec::new(), None);
        for (source, entry) in page {
            match entry {
                Ok(SourceEntry { mark, object }) => {
                    marks.insert(source, mark);
                    match object.filter(|object| self.filter.accepts(object)) {
                        Some(ListedObject { image, .. }) => objects.push(image),
                        None => add(&self.counts().filtered, 1),
                    }
                }
                // Nothing follows an error of its source; entries of the other sources are still processed.
                Err(e) => failed = Some(e),
            }
        }
        if let Some(end) = self.jobs.fill(objects, pace, stop).await? {
            return Ok(Some(end));
        }
        for (source, mark) in marks {
            self.keep_mark(&self.sources[source], Some(&mark)).await?;
        }
        failed.map_or(Ok(None), |e| Err(e.into()))
    }

    /// The mark at which an earlier run over this source, with the same filter and detectors, has stopped. An old mark is
    /// ignored: many objects may have been stored in front of it since.
    async fn mark(&self, source: &BackfillSource) -> Result<Option<String>, BackfillError> {
        if self.jobs.options.dry_run || self.restart {
            return Ok(None);
        }
        let id = self.progress_id(source);
        let kept = self.jobs.ledger.backfill_progress(&id).await?;
        let since = self.jobs.lost_before();
        Ok(kept.filter(|(_, kept_at)| *kept_at > since).map(|(mark, _)| mark))
    }

    async fn keep_mark(&self, source: &BackfillSource, mark: Option<&str>) -> Result<(), BackfillError> {
        if self.jobs.options.dry_run {
            return Ok(());
        }
        let id = self.progress_id(source);
        self.jobs.retrying(async || self.jobs.ledger.save_backfill_progress(&id, mark).await).await
    }

    fn progress_id(&self, source: &BackfillSource) -> String {
        let JobsForGaps { options: PublishOptions { retry_failed, .. }, digests, .. } = &self.jobs;
        job::derived_id(&json!(["backfill", source.identity(), self.filter, retry_failed, digests]))
    }
}

impl JobsForGaps {
    /// Opens the broker. The current detectors are those of the configuration.
    ///
    /// # Errors
    /// When a detector or the broker cannot be used.
    pub async fn open(ledger: Arc<dyn Ledger>, config: &Config, options: PublishOptions) -> anyhow::Result<Self> {
        Self::on(ledger, config, digests(config)?, options).await
    }

    async fn on(
        ledger: Arc<dyn Ledger>,
        config: &Config,
        digests: Digests,
        options: PublishOptions,
    ) -> anyhow::Result<Self> {
        let queue = config.queue()?.clone();
        let topology = Topology::new(&config.prefix, config.events.default_queue);
        if !options.dry_run {
            topology.ensure(&connect(&queue, "backfill").await?, &topology.lane(Lane::Backfill)).await?;
        }
        Ok(Self {
            publisher: Arc::new(Publisher::new(queue.clone(), "backfill", MAX_UNCONFIRMED)),
            ledger,
            queue,
            topology,
            digests,
            options,
            started_at: OffsetDateTime::now_utc(),
            counts: BackfillCounts::default(),
        })
    }

    /// Closes the connections to broker and ledger.
    pub async fn close(&self) {
        self.publisher.close().await;
        self.ledger.close().await;
    }

    /// Runs `work` while no other process publishes such jobs; a dry run needs not wait.
    ///
    /// # Errors
    /// Those of `work`; also when the lock cannot be acquired, or is lost.
    pub async fn alone(
        &self,
        stop: &CancellationToken,
        work: impl Future<Output = Result<BackfillEnd, BackfillError>>,
    ) -> Result<BackfillEnd, BackfillError> {
        if self.options.dry_run {
            return work.await;
        }
        let Some(lock) = BackfillLock::acquire(Arc::clone(&self.ledger), stop).await? else {
            return Ok(BackfillEnd::Stopped);
        };
        let ended = lock.lost.run_until_cancelled(work).await.unwrap_or(Err(BackfillError::LockLost));
        lock.release().await;
        ended
    }

    /// The pace for all calls of [`JobsForGaps::fill`] in one run.
    pub fn pace(&self) -> PublishPace {
        PublishPace::new(self.queue.clone(), self.topology.lane(Lane::Backfill), self.options.limits)
    }

    /// Publishes jobs for the objects that have neither a verdict nor a published job. Returns `Some` where the run ends
    /// here.
    ///
    /// # Errors
    /// When ledger or broker refuse, or are down for longer than a few minutes.
    pub async fn fill(
        &self,
        objects: Vec<ImageRef>,
        pace: &mut PublishPace,
        stop: &CancellationToken,
    ) -> Result<Option<BackfillEnd>, BackfillError> {
        let jobs = self.new_jobs(objects).await?;
        self.publish(jobs, pace, stop).await
    }

    /// Published jobs without a verdict count as lost if they are older.
    fn lost_before(&self) -> OffsetDateTime {
        self.started_at - self.options.again_after
    }

    /// The jobs for the objects that have neither a verdict nor a published job.
    async fn new_jobs(&self, objects: Vec<ImageRef>) -> Result<Vec<NewJob>, BackfillError> {
        let standings = self.retrying(async || self.ledger.current_verdicts(&objects, &self.digests).await).await?;
        let (mut jobs, mut ids) = (Vec::new(), HashSet::new());
        let erased = self.retrying(async || self.ledger.are_erased(&objects).await).await?;
        for ((image, standing), erased) in objects.into_iter().zip(standings).zip(erased) {
            // The worker would acknowledge its job without a verdict, today and every day.
            if erased && standing.is_none() {
                add(&self.counts.erased, 1);
                continue;
            }
            match self.new_job(image, standing) {
                None => add(&self.counts.screened, 1),
                // A manifest may name an object twice.
                Some(job) if !ids.insert(job.verdict_id) => add(&self.counts.waiting, 1),
                Some(job) => jobs.push(job),
            }
        }
        let since = self.lost_before();
        let ids: Vec<Uuid> = ids.into_iter().collect();
        let waiting: HashSet<Uuid> =
            self.retrying(async || self.ledger.pending_jobs(&ids, since).await).await?.into_iter().collect();
        add(&self.counts.waiting, waiting.len());
        jobs.retain(|job| !waiting.contains(&job.verdict_id));
        Ok(jobs)
    }

    /// The job for an object; `None` where its present verdict suffices.
    fn new_job(&self, image: ImageRef, standing: Option<CurrentVerdict>) -> Option<NewJob> {
        let derived = Job { identity: Identity::Derived { sequencer: None }, image, detectors: None, metadata: None };
        let (mut id, image) = (derived.id(None, &self.digests), derived.image);
        let mut body = json!({"image": image});
        match standing {
            None => {}
            Some(CurrentVerdict { outcome: Outcome::Missing | Outcome::Failed, .. }) if !self.options.retry_failed => {
                return None;
            }
            // The verdict of this job id will be replaced.
            Some(CurrentVerdict { outcome: Outcome::Failed, job_id, .. }) if job_id == id => {}
            // A verdict of another job id, or one with the outcome `missing`, is never replaced: a new job id is needed.
            Some(CurrentVerdict { outcome: Outcome::Missing | Outcome::Failed, job_id, decided_at }) => {
                id = job::derived_id(&json!(["again", id, job_id, decided_at.unix_timestamp_nanos().to_string()]));
                body["id"] = json!(id);
            }
            Some(_) => return None,
        }
        Some(NewJob { verdict_id: job::verdict_id(&id), body: body.to_string(), image })
    }

    /// Publishes jobs as fast as the limits allow. Returns `Some` where the run ends here.
    async fn publish(
        &self,
        jobs: Vec<NewJob>,
        pace: &mut PublishPace,
        stop: &CancellationToken,
    ) -> Result<Option<BackfillEnd>, BackfillError> {
        let mut rest = jobs.into_iter().peekable();
        while rest.peek().is_some() {
            let left =
                self.options.limit.map_or(u64::MAX, |limit| limit - self.counts.published.load(Ordering::Relaxed));
            if left == 0 {
                return Ok(Some(BackfillEnd::Limit));
            }
            let wanted = pace.chunk().min(u32::try_from(left.min(rest.len() as u64)).unwrap_or(u32::MAX));
            if self.options.dry_run {
                add(&self.counts.published, rest.by_ref().take(wanted as usize).count());
                continue;
            }
            let room = stop.run_until_cancelled(pace.room(wanted));
            let Some(room) = room.await.transpose()? else { return Ok(Some(BackfillEnd::Stopped)) };
            self.publish_chunk(rest.by_ref().take(room as usize).collect(), pace).await?;
        }
        Ok(None)
    }

    /// Publishes a few jobs and records them in the ledger.
    async fn publish_chunk(&self, jobs: Vec<NewJob>, pace: &mut PublishPace) -> Result<(), BackfillError> {
        let published_at = OffsetDateTime::now_utc();
        let exchange = self.topology.jobs();
        // After the first failure no further message is sent.
        let failing = Cell::new(false);
        let rest = stream::iter(&jobs).take_while(|_| std::future::ready(!failing.get()));
        let paced = rest.then(|job| {
            let delay = pace.delay();
            async move {
                tokio::time::sleep(delay).await;
                job
            }
        });
        let mut confirmed = pin!(paced.map(|job| self.send(&exchange, job)).buffer_unordered(MAX_UNCONFIRMED));
        let (mut ids, mut failed) = (Vec::new(), None);
        while let Some(sent) = confirmed.next().await {
            match sent {
                Ok(id) => ids.push(id),
                Err(e) => {
                    failing.set(true);
                    failed = Some(e);
                }
            }
        }
        self.retrying(async || self.ledger.record_published_jobs(&ids, published_at).await).await?;
        add(&self.counts.published, ids.len());
        failed.map_or(Ok(()), Err)
    }

    async fn send(&self, exchange: &str, job: &NewJob) -> Result<Uuid, BackfillError> {
        let transient = |e: &PublishError| matches!(e, PublishError::Broker(_) | PublishError::Nacked);
        let sent = retry::retry_patiently(RETRY_DEADLINE, transient, async || {
            self.publisher.publish(Message::json(exchange, Lane::Backfill.as_str(), &job.body)).await
        });
        let failed = |e| BackfillError::Publish { image: job.image.uri(), error: Box::new(e) };
        sent.await.map(|()| job.verdict_id).map_err(failed)
    }

    async fn delete_answered_jobs(&self) -> Result<(), BackfillError> {
        let before = self.lost_before();
        self.retrying(async || self.ledger.delete_answered_jobs(before).await).await.map(drop)
    }

    async fn retrying<T>(&self, operation: impl AsyncFnMut() -> Result<T, LedgerError>) -> Result<T, BackfillError> {
        Ok(retry::retry_patiently(RETRY_DEADLINE, may_pass, operation).await?)
    }
}

fn digests(config: &Config) -> anyhow::Result<Digests> {
    Ok(packages(config)?.into_iter().map(|detector| (detector.name, detector.digest)).collect())
}

fn may_pass(error: &LedgerError) -> bool {
    error.may_pass()
}
