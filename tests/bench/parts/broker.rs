//! Jobs a second through the broker: a bare consumer that does nothing but acknowledge, or a whole worker whose objects and
//! ledger are in memory.
//!
//! Both empty a lane that was filled before they start. The rate is taken from the first to the last of them: a start has
//! its own part.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use lapin::BasicProperties;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use pixwarden::broker::{Topology, connect};
use pixwarden::config::{Bucket, Config, DetectorEntry, SecretUrl};
use pixwarden::job::{Digests, ImageRef, Lane, Removal};
use pixwarden::ledger::{
    Archive, Baselines, CurrentVerdict, EarlierState, Erased, ErasedRows, Erasure, Event, ExistingVerdict, Hold,
    Inserted, KeptBy, Ledger, LedgerError, NewVerdict, Outbox, OutboxRow, Position, PrunedPage, Quarantine, Reconcile,
    ReusableFacts, Revise, Revised, ScoreBaseline, StoredVerdict, Subject, SubjectPage, UnpublishedEvents,
    VerdictFilter, VerdictPage, Verdicts,
};
use pixwarden::objects::{Fetcher, KeyRange, ListedObject, ObjectStore, OpenedObject, StoreError};
use pixwarden::telemetry::intake::Intake;
use pixwarden::worker::run_on;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{Mutex, Notify};
use uuid::Uuid;

const PREFIX: &str = "bench";
const BUCKET: &str = "bench";

/// Who consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Consumer {
    /// Takes a message, acknowledges it, and that is all.
    Bare,
    /// All that a worker does.
    Worker,
}

/// What to consume, and how.
#[derive(clap::Args)]
pub struct Options {
    /// URL of a broker; the lane `bench.live` is declared and emptied.
    #[arg(long)]
    queue: String,
    /// Who consumes.
    #[arg(long)]
    consumer: Consumer,
    /// Jobs that wait when it starts.
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// Deliveries held at a time.
    #[arg(long, default_value_t = 200)]
    prefetch: u16,
    /// The one image that every job is for.
    #[arg(long)]
    image: Option<PathBuf>,
    /// The worker's detector.
    #[arg(long)]
    detector: Option<String>,
    /// The worker's configuration beside that, as TOML.
    #[arg(long, default_value = "")]
    config: String,
}

/// Prints the rate, in jobs a second.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let queue = SecretUrl::from(options.queue.clone());
    fill(&queue, options.jobs).await?;
    let rate = match options.consumer {
        Consumer::Bare => bare(&queue, &options).await?,
        Consumer::Worker => worker(queue, &options).await?,
    };
    println!("{}", json!({"jobs": options.jobs, "rate": rate}));
    Ok(())
}

/// Publishes persistent jobs as fast as the broker confirms them.
async fn fill(queue: &SecretUrl, jobs: usize) -> anyhow::Result<()> {
    let topology = Topology::new(PREFIX, false);
    let connection = connect(queue, "filling").await?;
    topology.declare(&connection).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let properties = BasicProperties::default().with_delivery_mode(2);
    for i in 0..jobs {
        let body = json!({"id": format!("job-{i}"), "image": format!("s3://{BUCKET}/{i}.jpg")}).to_string();
        let (exchange, lane) = (topology.jobs(), Lane::Live.as_str());
        let options = BasicPublishOptions::default();
        // Confirmed all together below.
        drop(channel.basic_publish(exchange.into(), lane.into(), options, body.as_bytes(), properties.clone()).await?);
    }
    anyhow::ensure!(channel.wait_for_confirms().await?.is_empty(), "the broker has returned jobs");
    Ok(connection.close(200, "filled".into()).await?)
}

/// A clock that begins with the first job.
struct Clock {
    jobs: usize,
    done: AtomicUsize,
    began: Mutex<Option<Instant>>,
    took: Mutex<Duration>,
    end: Notify,
}

impl Clock {
    fn new(jobs: usize) -> Self {
        let took = Mutex::new(Duration::ZERO);
        Self { jobs, done: AtomicUsize::new(0), began: Mutex::default(), took, end: Notify::new() }
    }

    async fn count(&self, jobs: usize) {
        let began = *self.began.lock().await.get_or_insert_with(Instant::now);
        if self.done.fetch_add(jobs, Ordering::Relaxed) + jobs >= self.jobs {
            *self.took.lock().await = began.elapsed();
            self.end.notify_one();
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "jobs are far fewer than 2^52")]
    async fn rate(&self) -> f64 {
        self.jobs as f64 / self.took.lock().await.as_secs_f64()
    }
}

async fn bare(queue: &SecretUrl, options: &Options) -> anyhow::Result<f64> {
    let connection = connect(queue, "consuming").await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(options.prefetch, BasicQosOptions::default()).await?;
    let lane = Topology::new(PREFIX, false).lane(Lane::Live);
    let consume = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(lane.into(), "bare".into(), consume, FieldTable::default()).await?;
    let clock = Clock::new(options.jobs);
    for _ in 0..options.jobs {
        let delivery = consumer.next().await.ok_or_else(|| anyhow::anyhow!("the consumer was cancelled"))??;
        delivery.acker.ack(BasicAckOptions::default()).await?;
        clock.count(1).await;
    }
    connection.close(200, "done".into()).await?;
    Ok(clock.rate().await)
}

async fn worker(queue: SecretUrl, options: &Options) -> anyhow::Result<f64> {
    let (Some(image), Some(detector)) = (&options.image, &options.detector) else {
        anyhow::bail!("a worker needs --image and --detector");
    };
    let mut config: Config = toml::from_str(&options.config)?;
    config.queue = queue;
    config.prefix = PREFIX.into();
    config.buckets = vec![Bucket::Name(BUCKET.into())];
    config.detectors = vec![DetectorEntry::Path(detector.clone())];
    config.worker.prefetch = options.prefetch;
    config.worker.reuse_scores = false;
    config.events.default_queue = false;
    config.events.publish = Vec::new();
    let clock = Arc::new(Clock::new(options.jobs));
    let store = Shelf(std::fs::read(image)?.into());
    let fetcher = Fetcher::on(Box::new(store), &config);
    let ledger = Arc::new(Slate(Arc::clone(&clock)));
    run_on(config, ledger, fetcher, Intake::default(), None, clock.end.notified()).await?;
    Ok(clock.rate().await)
}

/// A store that has one object under every key.
struct Shelf(Bytes);

#[async_trait]
impl ObjectStore for Shelf {
    fn address(&self, _bucket: &str) -> &str {
        "the shelf"
    }

    async fn open(&self, _image: &ImageRef) -> Result<OpenedObject, StoreError> {
        let bytes = self.0.clone();
        let length = bytes.len() as u64;
        Ok(OpenedObject {
            length,
            etag: Some("1".into()),
            version_id: None,
            modified: None,
            body: stream::once(async { Ok(bytes) }).boxed(),
        })
    }

    fn list(&self, _range: KeyRange) -> BoxStream<'static, Result<ListedObject, StoreError>> {
        stream::empty().boxed()
    }

    async fn head(&self, image: &ImageRef) -> Result<ListedObject, StoreError> {
        Ok(ListedObject { image: image.clone(), bytes: Some(self.0.len() as u64), modified: None })
    }

    async fn put(&self, _image: &ImageRef, _bytes: Bytes) -> Result<(), StoreError> {
        Ok(())
    }

    async fn probe(&self, _bucket: &str) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A ledger that counts what it commits, and forgets it.
struct Slate(Arc<Clock>);

#[async_trait]
impl Verdicts for Slate {
    async fn insert(&self, verdicts: &[NewVerdict]) -> Result<Vec<Inserted>, LedgerError> {
        self.0.count(verdicts.len()).await;
        let written = |new: &NewVerdict| Inserted::Written { event: new.event.clone(), may_be_decided: false };
        Ok(verdicts.iter().map(written).collect())
    }

    async fn find_verdict(&self, _id: Uuid) -> Result<Option<ExistingVerdict>, LedgerError> {
        Ok(None)
    }

    async fn find_facts(&self, _: [u8; 32], _: &Digests, _: &str) -> Result<Option<ReusableFacts>, LedgerError> {
        Ok(None)
    }

    async fn record_policies(&self, _: &[(String, String)]) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn now(&self) -> Result<OffsetDateTime, LedgerError> {
        Ok(OffsetDateTime::now_utc())
    }

    async fn revise(&self, _: &Revise) -> Result<Revised, LedgerError> {
        Ok(Revised::Missing)
    }

    async fn mark_deleted(&self, _: &Removal) -> Result<u64, LedgerError> {
        Ok(0)
    }
}

#[async_trait]
impl Quarantine for Slate {
    async fn begin_in_company(&self, _verdict: Uuid, _process: Uuid) -> Result<bool, LedgerError> {
        Ok(true)
    }

    async fn begin_quarantine(&self, _verdict: Uuid, _process: Uuid) -> Result<u32, LedgerError> {
        Ok(1)
    }

    async fn end_quarantine(&self, _verdicts: &[Uuid]) -> Result<(), LedgerError> {
        Ok(())
    }
}

#[async_trait]
impl Outbox for Slate {
    async fn unpublished_keys(&self) -> Result<Vec<String>, LedgerError> {
        Ok(Vec::new())
    }

    async fn lease_events(&self, _key: &str, _limit: u32) -> Result<Vec<Event>, LedgerError> {
        Ok(Vec::new())
    }

    async fn mark_published(&self, _ids: &[Uuid]) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn note_unpublished(&self, _id: Uuid, _error: &str) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn prune_outbox(&self, _keep: Duration, _limit: u32) -> Result<u64, LedgerError> {
        Ok(0)
    }

    async fn count_unpublished(&self) -> Result<Vec<UnpublishedEvents>, LedgerError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Baselines for Slate {
    async fn save_baselines(&self, _: &[ScoreBaseline]) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn find_baselines(&self, _: &[String]) -> Result<Vec<ScoreBaseline>, LedgerError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Erasure for Slate {
    async fn page_of_subject(&self, _: &Subject, _: Option<Position>) -> Result<SubjectPage, LedgerError> {
        Ok(SubjectPage { ids: Vec::new(), next: None })
    }

    async fn hold_on(&self, _: &[Uuid]) -> Result<Option<Hold>, LedgerError> {
        Ok(None)
    }

    async fn erase(&self, _: &[Uuid]) -> Result<Erased, LedgerError> {
        Ok(Erased::Done(ErasedRows::default()))
    }

    async fn are_erased(&self, objects: &[ImageRef]) -> Result<Vec<bool>, LedgerError> {
        Ok(vec![false; objects.len()])
    }

    async fn add_hold(&self, _: &Hold) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn holds(&self) -> Result<Vec<Hold>, LedgerError> {
        Ok(Vec::new())
    }

    async fn release_hold(&self, _: Uuid) -> Result<bool, LedgerError> {
        Ok(false)
    }
}

#[async_trait]
impl Ledger for Slate {
    async fn migrate(&self) -> Result<i64, LedgerError> {
        Ok(0)
    }

    async fn check_schema(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn prepare(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn ping(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn close(&self) {}
}

/// What only other commands ask for.
#[async_trait]
impl Archive for Slate {
    async fn read_verdict(&self, _id: Uuid) -> Result<Option<StoredVerdict>, LedgerError> {
        Ok(None)
    }

    async fn verdicts_on_image(&self, _image: &ImageRef, _limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        Ok(Vec::new())
    }

    async fn verdicts_on_content(&self, _sha256: [u8; 32], _limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        Ok(Vec::new())
    }

    async fn verdicts_that_scored(&self, _sha256: [u8; 32], _limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        Ok(Vec::new())
    }

    async fn earlier_states(&self, _verdict: Uuid) -> Result<Vec<EarlierState>, LedgerError> {
        Ok(Vec::new())
    }

    async fn read_policy(&self, _: &str) -> Result<Option<String>, LedgerError> {
        Ok(None)
    }

    async fn outbox_rows(&self, _verdict: Uuid) -> Result<Vec<OutboxRow>, LedgerError> {
        Ok(Vec::new())
    }

    async fn page_of_verdicts(
        &self,
        _: &VerdictFilter,
        _: Option<Position>,
        _: u32,
    ) -> Result<VerdictPage, LedgerError> {
        Ok(VerdictPage { verdicts: Vec::new(), next: None })
    }

    async fn count_prunable(&self, _: &VerdictFilter, _: Option<Position>) -> Result<PrunedPage, LedgerError> {
        Ok(PrunedPage { verdicts: 0, next: None })
    }

    async fn count_unprunable(
        &self,
        _: &VerdictFilter,
        _: Option<Position>,
        _: KeptBy,
    ) -> Result<PrunedPage, LedgerError> {
        Ok(PrunedPage { verdicts: 0, next: None })
    }

    async fn delete_prunable(&self, _: &VerdictFilter, _: Option<Position>, _: u32) -> Result<PrunedPage, LedgerError> {
        Ok(PrunedPage { verdicts: 0, next: None })
    }

    async fn rejudge(&self, _changes: &[Revise]) -> Result<u64, LedgerError> {
        Ok(0)
    }
}

/// What only `backfill` asks for.
#[async_trait]
impl Reconcile for Slate {
    async fn take_backfill_lease(&self, _process: Uuid) -> Result<bool, LedgerError> {
        Ok(true)
    }

    async fn release_backfill_lease(&self, _process: Uuid) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn backfill_progress(&self, _id: &str) -> Result<Option<(String, OffsetDateTime)>, LedgerError> {
        Ok(None)
    }

    async fn save_backfill_progress(&self, _id: &str, _mark: Option<&str>) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn current_verdicts(
        &self,
        objects: &[ImageRef],
        _: &Digests,
    ) -> Result<Vec<Option<CurrentVerdict>>, LedgerError> {
        Ok(vec![None; objects.len()])
    }

    async fn pending_jobs(&self, _: &[Uuid], _: OffsetDateTime) -> Result<Vec<Uuid>, LedgerError> {
        Ok(Vec::new())
    }

    async fn record_published_jobs(&self, _: &[Uuid], _: OffsetDateTime) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn delete_answered_jobs(&self, _before: OffsetDateTime) -> Result<u64, LedgerError> {
        Ok(0)
    }
}
