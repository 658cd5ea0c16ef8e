//! An archive → jobs for whatever has no verdict from the present detectors.
//!
//! A first run backfills, a later one fills the gaps, and one with a new detector publishes all: what is there is
//! compared with the ledger by bucket, key, `ETag` and the detectors' digests. Jobs that were published and may still
//! wait are in the ledger too, so that a run which was killed, or a second one, publishes nothing twice.

mod filter;
mod pace;
pub mod source;
mod turn;

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

use crate::broker::{BrokerError, Message, PublishError, Publisher, Topology};
use crate::config::SecretUrl;
use crate::job::{self, Digests, Identity, ImageRef, Job, Lane, Outcome};
use crate::ledger::{BACKFILL_LEASE_TIMEOUT, CurrentVerdict, Ledger, LedgerError};
use crate::objects::{Fetcher, ListedObject};
use crate::retry;
pub use filter::Filter;
pub use pace::Bounds;
use pace::Pace;
use source::{Item, Source, SourceError};
use turn::Turn;

/// How long broker, ledger or store may be away before a run ends.
const PATIENCE: Duration = Duration::from_secs(300);
/// Objects compared with the ledger at a time.
const PAGE: usize = 1_000;
/// Messages whose confirmation is awaited at a time.
pub const IN_FLIGHT: usize = 64;
/// Pages after which answered jobs are forgotten.
const TIDY: u64 = 20;

/// What a run is asked to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where objects come from; read side by side.
    pub sources: Vec<Source>,
    /// Which of them are meant.
    pub filter: Filter,
    /// Whether `missing` and `failed` are no verdicts.
    pub retry_failed: bool,
    /// Jobs published at the most.
    pub limit: Option<u64>,
    /// Whether to count only.
    pub dry_run: bool,
    /// Whether to begin anew where an earlier run has left its mark.
    pub restart: bool,
    /// How fast jobs are published.
    pub bounds: Bounds,
    /// After how long a published job without a verdict counts as lost.
    pub again_after: Duration,
}

/// What a run has met so far. Each object is counted as one of these.
#[derive(Debug, Default)]
pub struct Tally {
    /// Not meant by the filter, or no present object.
    pub filtered: AtomicU64,
    /// With a verdict already.
    pub screened: AtomicU64,
    /// With a job that waits for its verdict.
    pub waiting: AtomicU64,
    /// With a job published by this run, or to be published where it only counts.
    pub published: AtomicU64,
}

impl Tally {
    /// All that were met.
    #[must_use]
    pub fn met(&self) -> u64 {
        let Self { filtered, screened, waiting, published } = self;
        [filtered, screened, waiting, published].into_iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// How a run ended, where nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Every source was read to its end.
    Done,
    /// The limit was reached.
    Limit,
    /// Somebody stopped it; the same run goes on from here.
    Stopped,
}

/// Why a run ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// A source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The broker, asked for the lane's depth.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The broker, publishing.
    #[error("publishing the job for {image}: {error}")]
    Publish {
        /// The object.
        image: String,
        /// Why it did not arrive.
        error: Box<PublishError>,
    },
    /// This process was silent for too long.
    #[error(
        "another backfill has taken over: this process did not reach the ledger for {} s\n  hint: run it again, it goes on where it stopped",
        BACKFILL_LEASE_TIMEOUT.as_secs()
    )]
    TurnLost,
}

/// A run.
pub struct Backfill {
    /// Where verdicts are.
    pub ledger: Arc<dyn Ledger>,
    /// Where objects are.
    pub fetcher: Arc<Fetcher>,
    /// The way to the broker.
    pub publisher: Arc<Publisher>,
    /// The broker, for looking at the lane.
    pub queue: SecretUrl,
    /// What is published to.
    pub topology: Topology,
    /// Of the present detectors.
    pub digests: Digests,
    /// What to do.
    pub options: Options,
    /// When the run began: jobs that it has published itself are never too old to wait.
    pub began: OffsetDateTime,
    /// What was met.
    pub tally: Arc<Tally>,
}

/// A job that is to be published.
struct Order {
    id: Uuid,
    image: ImageRef,
    body: String,
}

impl Backfill {
    /// Reads every source to its end, and publishes what has no verdict.
    ///
    /// # Errors
    /// When store, ledger or broker refuse, or stay away for longer than a few minutes. What was published stays so.
    pub async fn run(&self, stop: &CancellationToken) -> Result<End, BackfillError> {
        if self.options.dry_run {
            return self.pages(stop).await;
        }
        let Some(turn) = Turn::take(Arc::clone(&self.ledger), stop).await? else { return Ok(End::Stopped) };
        let ended = turn.lost.run_until_cancelled(self.pages(stop)).await.unwrap_or(Err(BackfillError::TurnLost));
        turn.give_back().await;
        ended
    }

    /// How many entries the sources hold, from where this run begins. Takes as long as listing them does.
    ///
    /// # Errors
    /// When a source cannot be read.
    pub async fn count(&self) -> Result<u64, BackfillError> {
        let mut entries = 0;
        for source in &self.options.sources {
            let mut items = source.entries(&self.fetcher, self.mark(source).await?);
            while let Some(item) = items.next().await {
                item?;
                entries += 1;
            }
        }
        Ok(entries)
    }

    async fn pages(&self, stop: &CancellationToken) -> Result<End, BackfillError> {
        let mut sources = Vec::new();
        for (number, source) in self.options.sources.iter().enumerate() {
            let mark = self.mark(source).await?;
            if let Some(mark) = &mark {
                tracing::info!(%source, behind = mark, "going on where an earlier run has stopped; --restart begins anew");
            }
            sources.push(source.objects(&self.fetcher, &self.options.filter, mark).map(move |item| (number, item)));
        }
        let pages = stream::select_all(sources).chunks(PAGE);
        let mut pages = pin!(pages.take_until(stop.cancelled()));
        let lane = self.topology.lane(Lane::Backfill);
        let mut pace = Pace::new(self.queue.clone(), lane, self.options.bounds);
        let mut number = 0;
        while let Some(page) = pages.next().await {
            if number % TIDY == 0 && !self.options.dry_run {
                self.forget_answered().await?;
            }
            number += 1;
            if let Some(end) = self.page(page, &mut pace, stop).await? {
                return Ok(end);
            }
        }
        if stop.is_cancelled() {
            return Ok(End::Stopped);
        }
        for source in &self.options.sources {
            self.keep_mark(source, None).await?;
        }
        Ok(End::Done)
    }

    /// Compares a page with the ledger and publishes what has to be. Some end, where the run ends here.
    async fn page(
        &self,
        page: Vec<(usize, Result<Item, SourceError>)>,
        pace: &mut Pace,
        stop: &CancellationToken,
    ) -> Result<Option<End>, BackfillError> {
        let (mut marks, mut objects, mut failed) = (BTreeMap::new(), Vec::new(), None);
        for (source, item) in page {
            match item {
                Ok(Item { mark, object }) => {
                    marks.insert(source, mark);
                    match object.filter(|object| self.options.filter.takes(object)) {
                        Some(ListedObject { image, .. }) => objects.push(image),
                        None => add(&self.tally.filtered, 1),
                    }
                }
                // Nothing comes behind an error of its source; the others' are taken along.
                Err(e) => failed = Some(e),
            }
        }
        let orders = self.orders(objects).await?;
        if let Some(end) = self.publish(orders, pace, stop).await? {
            return Ok(Some(end));
        }
        for (source, mark) in marks {
            self.keep_mark(&self.options.sources[source], Some(&mark)).await?;
        }
        failed.map_or(Ok(None), |e| Err(e.into()))
    }

    /// The jobs for those objects that have no verdict and no job yet.
    async fn orders(&self, objects: Vec<ImageRef>) -> Result<Vec<Order>, BackfillError> {
        let standings = self.patiently(async || self.ledger.current_verdicts(&objects, &self.digests).await).await?;
        let (mut orders, mut ids) = (Vec::new(), HashSet::new());
        for (image, standing) in objects.into_iter().zip(standings) {
            match self.order(image, standing) {
                None => add(&self.tally.screened, 1),
                // A manifest may name an object twice.
                Some(order) if !ids.insert(order.id) => add(&self.tally.waiting, 1),
                Some(order) => orders.push(order),
            }
        }
        let since = self.began - self.options.again_after;
        let ids: Vec<Uuid> = ids.into_iter().collect();
        let waiting: HashSet<Uuid> =
            self.patiently(async || self.ledger.pending_jobs(&ids, since).await).await?.into_iter().collect();
        add(&self.tally.waiting, waiting.len());
        orders.retain(|order| !waiting.contains(&order.id));
        Ok(orders)
    }

    /// The job for an object; `None` where what stands on it is enough.
    fn order(&self, image: ImageRef, standing: Option<CurrentVerdict>) -> Option<Order> {
        let derived = Job { identity: Identity::Derived { sequencer: None }, image, detectors: None, metadata: None };
        let (mut id, image) = (derived.id(None, &self.digests), derived.image);
        let mut body = json!({"image": image});
        match standing {
            None => {}
            Some(CurrentVerdict { outcome: Outcome::Missing | Outcome::Failed, .. }) if !self.options.retry_failed => {
                return None;
            }
            // Its verdict will be replaced.
            Some(CurrentVerdict { outcome: Outcome::Failed, job_id, .. }) if job_id == id => {}
            // A job of another id, or one that was missing: no verdict of that id is replaced, so this is another job.
            Some(CurrentVerdict { outcome: Outcome::Missing | Outcome::Failed, job_id, decided_at }) => {
                id = job::derived_id(&json!(["again", id, job_id, decided_at.unix_timestamp_nanos().to_string()]));
                body["id"] = json!(id);
            }
            Some(_) => return None,
        }
        Some(Order { id: job::verdict_id(&id), body: body.to_string(), image })
    }

    /// Publishes jobs as fast as the bounds allow. Some end, where the run ends here.
    async fn publish(
        &self,
        orders: Vec<Order>,
        pace: &mut Pace,
        stop: &CancellationToken,
    ) -> Result<Option<End>, BackfillError> {
        let mut rest = orders.into_iter().peekable();
        while rest.peek().is_some() {
            let left =
                self.options.limit.map_or(u64::MAX, |limit| limit - self.tally.published.load(Ordering::Relaxed));
            if left == 0 {
                return Ok(Some(End::Limit));
            }
            let wanted = pace.chunk().min(u32::try_from(left.min(rest.len() as u64)).unwrap_or(u32::MAX));
            if self.options.dry_run {
                add(&self.tally.published, rest.by_ref().take(wanted as usize).count());
                continue;
            }
            let room = stop.run_until_cancelled(pace.room(wanted));
            let Some(room) = room.await.transpose()? else { return Ok(Some(End::Stopped)) };
            self.chunk(rest.by_ref().take(room as usize).collect(), pace).await?;
        }
        Ok(None)
    }

    /// Publishes a few jobs and notes that.
    async fn chunk(&self, orders: Vec<Order>, pace: &mut Pace) -> Result<(), BackfillError> {
        let began = OffsetDateTime::now_utc();
        let exchange = self.topology.jobs();
        // Behind the first failure nothing is begun.
        let failing = Cell::new(false);
        let rest = stream::iter(&orders).take_while(|_| std::future::ready(!failing.get()));
        let paced = rest.then(|order| {
            let wait = pace.wait();
            async move {
                tokio::time::sleep(wait).await;
                order
            }
        });
        let mut confirmed = pin!(paced.map(|order| self.send(&exchange, order)).buffer_unordered(IN_FLIGHT));
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
        self.patiently(async || self.ledger.record_published_jobs(&ids, began).await).await?;
        add(&self.tally.published, ids.len());
        failed.map_or(Ok(()), Err)
    }

    async fn send(&self, exchange: &str, order: &Order) -> Result<Uuid, BackfillError> {
        let transient = |e: &PublishError| matches!(e, PublishError::Broker(_) | PublishError::Nacked);
        let sent = retry::retry_patiently(PATIENCE, transient, async || {
            self.publisher.publish(Message::json(exchange, Lane::Backfill.as_str(), &order.body)).await
        });
        let failed = |e| BackfillError::Publish { image: order.image.uri(), error: Box::new(e) };
        sent.await.map(|()| order.id).map_err(failed)
    }

    async fn forget_answered(&self) -> Result<(), BackfillError> {
        let before = self.began - self.options.again_after;
        self.patiently(async || self.ledger.delete_answered_jobs(before).await).await.map(drop)
    }

    /// Where an earlier run over this source, with the same filter and detectors, has stopped. Behind one that is long ago
    /// much may have come in front of its mark.
    async fn mark(&self, source: &Source) -> Result<Option<String>, BackfillError> {
        if self.options.dry_run || self.options.restart {
            return Ok(None);
        }
        let id = self.progress_id(source);
        let kept = self.ledger.backfill_progress(&id).await?;
        let since = self.began - self.options.again_after;
        Ok(kept.filter(|(_, kept_at)| *kept_at > since).map(|(mark, _)| mark))
    }

    async fn keep_mark(&self, source: &Source, mark: Option<&str>) -> Result<(), BackfillError> {
        if self.options.dry_run {
            return Ok(());
        }
        let id = self.progress_id(source);
        self.patiently(async || self.ledger.save_backfill_progress(&id, mark).await).await
    }

    fn progress_id(&self, source: &Source) -> String {
        let Options { filter, retry_failed, .. } = &self.options;
        job::derived_id(&json!(["backfill", source.identity(), filter, retry_failed, self.digests]))
    }

    async fn patiently<T>(&self, operation: impl AsyncFnMut() -> Result<T, LedgerError>) -> Result<T, BackfillError> {
        Ok(retry::retry_patiently(PATIENCE, may_pass, operation).await?)
    }
}

fn may_pass(error: &LedgerError) -> bool {
    error.may_pass()
}
