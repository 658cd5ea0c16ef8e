//! The worker's life in one process: a fake broker, a fake object store and a fake session, with a real SQLite ledger.
//! `tests/it` runs the same worker against real services.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use lapin::protocol::{AMQPError, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ErrorKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::accept::fake::{FakeConnection, Request, TestEnd};
use super::accept::{CloseReason, DrainingConnection};
use super::run::{RunningWorker, WorkerParts};
use super::settle::{Settlement, Settler};
use super::{Delivery, WorkerError};
use crate::broker::{
    ATTEMPT_HEADER, Acknowledger, BrokerError, JOB_ID_HEADER, Message, MessagePublisher, PublishError, REASON_HEADER,
    REDELIVERED_HEADER, Topology, header, text,
};
use crate::config::{AnyOf, Bucket, Config, Isolation, RuleConfig, ScopedPolicyConfig, WhenConfig};
use crate::job::event::ROUTING_KEYS;
use crate::job::{ContentDigests, Facts, FindingOutcome, ImageRef, Lane, Outcome, Verdict, View, verdict_id};
use crate::ledger::{Ledger, MissingFile, NewVerdict, Sqlite};
use crate::life::Health;
use crate::objects::{Fetcher, KeyRange, ListedObject, ObjectStore, OpenedObject, StoreError};
use crate::policy::PolicySet;
use crate::screen::Screen;
use crate::telemetry::intake::{Intake, IntakeState};

/// How a fake delivery was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Acknowledged,
    Requeued,
    Rejected,
}

/// Settles a delivery, in its turn.
#[derive(Debug)]
struct FakeAcknowledger(mpsc::UnboundedSender<Settled>, Arc<tokio::sync::Mutex<()>>);

#[async_trait]
impl Acknowledger for FakeAcknowledger {
    async fn acknowledge(&self) -> Result<bool, BrokerError> {
        let _turn = self.1.lock().await;
        Ok(self.0.send(Settled::Acknowledged).is_ok())
    }

    async fn requeue(&self) -> Result<bool, BrokerError> {
        Ok(self.0.send(Settled::Requeued).is_ok())
    }

    async fn reject(&self) -> Result<bool, BrokerError> {
        Ok(self.0.send(Settled::Rejected).is_ok())
    }
}

/// A message that was published.
#[derive(Debug, Clone)]
struct Published {
    exchange: String,
    routing_key: String,
    body: Value,
    properties: BasicProperties,
}

impl Published {
    fn header(&self, name: &str) -> Option<String> {
        header(&self.properties, name)
    }
}

/// A broker that remembers what was published.
#[derive(Default)]
pub(super) struct FakeBroker {
    published: Mutex<Vec<Published>>,
    unroutable: Mutex<HashSet<String>>,
    /// Messages that came back.
    returned: AtomicUsize,
    is_down: Mutex<bool>,
    /// Every message is larger than the broker allows.
    refuses_size: Mutex<bool>,
}

impl FakeBroker {
    /// Messages to an exchange or, with an empty name, straight to queues.
    fn published_to(&self, exchange: &str) -> Vec<Published> {
        self.published.lock().unwrap().iter().filter(|message| message.exchange == exchange).cloned().collect()
    }
}

#[async_trait]
impl MessagePublisher for FakeBroker {
    async fn publish(&self, message: Message<'_>) -> Result<(), PublishError> {
        if *self.is_down.lock().unwrap() {
            return Err(PublishError::Nacked);
        }
        if *self.refuses_size.lock().unwrap() {
            let refused =
                AMQPError::new(AMQPSoftError::PRECONDITIONFAILED.into(), "message size 600000 is too large".into());
            return Err(BrokerError::from(lapin::Error::from(ErrorKind::ProtocolError(refused))).into());
        }
        if self.unroutable.lock().unwrap().contains(message.routing_key) {
            self.returned.fetch_add(1, Ordering::SeqCst);
            let (exchange, routing_key) = (message.exchange.to_owned(), message.routing_key.to_owned());
            return Err(PublishError::Unroutable { exchange, routing_key, reply: "NO_ROUTE".into() });
        }
        let body = String::from_utf8_lossy(message.payload).into_owned();
        self.published.lock().unwrap().push(Published {
            exchange: message.exchange.to_owned(),
            routing_key: message.routing_key.to_owned(),
            body: serde_json::from_str(&body).unwrap_or(Value::String(body)),
            properties: message.properties,
        });
        Ok(())
    }

    async fn ready(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn close(&self) {}
}

/// What the fake store answers for a key.
#[derive(Clone)]
enum Stored {
    Bytes(Vec<u8>),
    Denied,
    Panics,
}

/// When each object of the fake store was last modified.
const MODIFIED: time::OffsetDateTime = time::macros::datetime!(2026-01-02 03:04:05 UTC);

/// Two stores: one keeps the bucket "far", the other one all others.
#[derive(Default)]
struct FakeStore {
    objects: Mutex<BTreeMap<String, Stored>>,
    is_down: Mutex<bool>,
    far_is_down: Mutex<bool>,
    opened: AtomicUsize,
}

impl FakeStore {
    fn check(&self, bucket: &str) -> Result<(), StoreError> {
        let is_down = if bucket == "far" { &self.far_is_down } else { &self.is_down };
        if *is_down.lock().unwrap() { Err(StoreError::Down("connection refused".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl ObjectStore for Arc<FakeStore> {
    async fn open(&self, image: &ImageRef) -> Result<OpenedObject, StoreError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.check(&image.bucket)?;
        let stored = self.objects.lock().unwrap().get(&image.key).cloned();
        match stored {
            None => Err(StoreError::Missing("there is no such object".into())),
            Some(Stored::Denied) => Err(StoreError::Denied("access denied".into())),
            Some(Stored::Panics) => panic!("the store panics over {}", image.key),
            Some(Stored::Bytes(bytes)) => Ok(OpenedObject {
                length: bytes.len() as u64,
                etag: Some(hex::encode(&Sha256::digest(&bytes)[..8])),
                version_id: None,
                modified: Some(MODIFIED),
                body: stream::iter([Ok(Bytes::from(bytes))]).boxed(),
            }),
        }
    }

    fn list(&self, _range: KeyRange) -> BoxStream<'static, Result<ListedObject, StoreError>> {
        stream::empty().boxed()
    }

    async fn head(&self, image: &ImageRef) -> Result<ListedObject, StoreError> {
        Ok(ListedObject { image: image.clone(), bytes: None, modified: None })
    }

    async fn put(&self, image: &ImageRef, bytes: Bytes) -> Result<(), StoreError> {
        self.check(&image.bucket)?;
        self.objects.lock().unwrap().insert(image.key.clone(), Stored::Bytes(bytes.to_vec()));
        Ok(())
    }

    async fn probe(&self, bucket: &str) -> Result<(), StoreError> {
        self.check(bucket)
    }

    fn address(&self, bucket: &str) -> &str {
        if bucket == "far" { "the far store" } else { "the store" }
    }
}

/// A PNG of one colour. The fake session gives red / 255 as the score, fails for pure green, and gives NaN for pure blue.
/// A [`slow`] image waits.
fn png(red: u8, green: u8, blue: u8) -> Stored {
    let image = image::RgbImage::from_pixel(8, 8, image::Rgb([red, green, blue]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    Stored::Bytes(bytes.into_inner())
}

fn fake_outputs(pixel: [u8; 3]) -> Option<Vec<f32>> {
    match pixel {
        [0, 255, 0] => None,
        [0, 0, 255] => Some(vec![f32::NAN, f32::NAN]),
        [1, 2, test] => {
            SLOW_RUNS.lock().unwrap().entry(test).or_default().runs += 1;
            let released = |runs: &mut BTreeMap<u8, SlowRuns>| !runs[&test].are_released;
            drop(RELEASED.wait_while(SLOW_RUNS.lock().unwrap(), released).unwrap());
            Some(vec![1.0, 0.0])
        }
        [red, ..] => Some(vec![1.0 - f32::from(red) / 255.0, f32::from(red) / 255.0]),
    }
}

/// Runs that wait until their test releases them.
#[derive(Default)]
struct SlowRuns {
    runs: u32,
    are_released: bool,
}

static SLOW_RUNS: Mutex<BTreeMap<u8, SlowRuns>> = Mutex::new(BTreeMap::new());
static RELEASED: Condvar = Condvar::new();

/// An image whose run waits for [`release`]. Each test has its own number.
fn slow(test: u8) -> Stored {
    png(1, 2, test)
}

fn release(test: u8) {
    SLOW_RUNS.lock().unwrap().entry(test).or_default().are_released = true;
    RELEASED.notify_all();
}

/// A worker with everything around it.
struct World {
    broker: Arc<FakeBroker>,
    store: Arc<FakeStore>,
    ledger: Arc<dyn Ledger>,
    ledger_file: std::path::PathBuf,
    deliveries: mpsc::UnboundedSender<Delivery>,
    in_flight: Box<dyn Fn(Lane) -> usize + Send>,
    intake: Intake,
    health: Health,
    /// The connection that delivers, from the worker's start to its end.
    connection: TestEnd,
    /// While it is locked, no delivery is acknowledged.
    acknowledging: Arc<tokio::sync::Mutex<()>>,
    shutdown: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), WorkerError>>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(configure: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { buckets: vec![Bucket::Name("uploads".into())], ..Config::default() };
        config.decode.isolation = Isolation::Thread;
        config.decode.threads = 1;
        config.worker.attempts = 3;
        config.events.publish = ROUTING_KEYS.map(str::to_owned).into();
        configure(&mut config);

        let ledger_file = folder.path().join("ledger.db");
        let ledger: Arc<dyn Ledger> = Arc::new(Sqlite::open(&ledger_file, MissingFile::Create).await.unwrap());
        ledger.migrate().await.unwrap();
        let (broker, store) = (Arc::new(FakeBroker::default()), Arc::new(FakeStore::default()));
        let publisher: Arc<dyn MessagePublisher> = broker.clone();
        let stop = CancellationToken::new();
        let fetcher = Fetcher::on(Box::new(Arc::clone(&store)), &config);
        let health = Health::new(fetcher.addresses());
        let running = RunningWorker::start(WorkerParts {
            ledger: Arc::clone(&ledger),
            health: health.clone(),
            fetcher,
            screen: Screen::with_fake_session(&config, fake_outputs),
            policies: PolicySet::resolve(&config, &Screen::fake_detectors(&config), true).unwrap(),
            banks: Arc::default(),
            config: Arc::new(config),
            publisher,
            webhooks: None,
            topology: topology(),
            prefetch: 100,
            http: None,
            stop: stop.clone(),
        });
        let (deliveries, mut received) = mpsc::unbounded_channel();
        let (take, in_flight, intake) = (running.intake(), Box::new(running.in_flight()), Intake::default());
        let (draining, connection) = FakeConnection::new();
        let accepting = tokio::spawn(async move {
            while let Some(Some(delivery)) = stop.run_until_cancelled(received.recv()).await {
                take(delivery);
            }
            Some(DrainingConnection::of(Box::new(draining)))
        });
        let (shutdown, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(running.run(accepting, intake.clone(), async { drop(stopped.await) }));
        Self {
            broker,
            store,
            ledger,
            ledger_file,
            deliveries,
            in_flight,
            intake,
            health,
            connection,
            acknowledging: Arc::default(),
            shutdown: Some(shutdown),
            running,
            _folder: folder,
        }
    }

    fn put(&self, key: &str, stored: Stored) {
        self.store.objects.lock().unwrap().insert(key.to_owned(), stored);
    }

    /// Delivers a message. The receiver gets its settlement.
    fn deliver(&self, message: TestMessage) -> mpsc::UnboundedReceiver<Settled> {
        let (settled, settlement) = mpsc::unbounded_channel();
        let TestMessage { body, properties, redelivered, lane } = message;
        let acknowledger = Box::new(FakeAcknowledger(settled, Arc::clone(&self.acknowledging)));
        let delivery = Delivery::new(lane, body.into_bytes(), properties, redelivered, acknowledger);
        self.deliveries.send(delivery).unwrap();
        settlement
    }

    async fn settle(&self, message: TestMessage) -> Settled {
        settled(&mut self.deliver(message)).await
    }

    async fn verdict(&self, job_id: &str) -> Option<Verdict> {
        self.ledger.read_verdict(verdict_id(job_id)).await.unwrap().map(|stored| stored.verdict)
    }

    /// The routing keys of the published events, once there are `count`.
    async fn events(&self, count: usize) -> Vec<Published> {
        for _ in 0..10_000 {
            let events = self.broker.published_to(&topology().events());
            if events.len() >= count {
                return events;
            }
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("fewer than {count} events were published: {:?}", self.broker.published.lock().unwrap());
    }

    async fn shut_down(&mut self) {
        drop(self.shutdown.take());
        (&mut self.running).await.unwrap().unwrap();
    }
}

fn topology() -> Topology {
    Topology::new("pixwarden", true)
}

async fn settled(settlement: &mut mpsc::UnboundedReceiver<Settled>) -> Settled {
    let settled = tokio::time::timeout(Duration::from_secs(30), settlement.recv()).await;
    settled.expect("the delivery was not settled").expect("the delivery was dropped")
}

/// A message to the worker.
struct TestMessage {
    body: String,
    properties: BasicProperties,
    redelivered: bool,
    lane: Lane,
}

/// A message in the live lane.
fn message(body: impl ToString) -> TestMessage {
    let properties = BasicProperties::default();
    TestMessage { body: body.to_string(), properties, redelivered: false, lane: Lane::Live }
}

/// A job whose id is its key.
fn job(key: &str) -> TestMessage {
    message(json!({"id": key, "image": format!("s3://uploads/{key}")}))
}

impl TestMessage {
    fn with_header(mut self, name: &str, value: AMQPValue) -> Self {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        headers.insert(name.into(), value);
        self.properties = self.properties.with_headers(headers);
        self
    }

    fn with_failed_attempts(self, count: u32) -> Self {
        self.with_header(ATTEMPT_HEADER, AMQPValue::LongUInt(count))
    }

    fn with_reply_to(mut self, queue: &str) -> Self {
        self.properties = self.properties.with_reply_to(queue.into());
        self
    }

    fn redelivered(self) -> Self {
        Self { redelivered: true, ..self }
    }

    fn backfill(self) -> Self {
        Self { lane: Lane::Backfill, ..self }
    }
}

#[tokio::test]
async fn every_job_ends_in_its_outcome_with_its_event_and_settlement() {
    let world = World::with(|config| config.worker.attempts = 1).await;
    world.put("harmless", png(0, 0, 0));
    world.put("doubtful", png(150, 0, 0));
    world.put("fake", png(250, 0, 0));
    world.put("text", Stored::Bytes(b"not an image".to_vec()));
    world.put("nan", png(0, 0, 255));
    world.put("session-fails", png(0, 255, 0));
    world.put("denied", Stored::Denied);
    world.put("panics", Stored::Panics);
    let mut rejected_bucket = job("other-bucket");
    rejected_bucket.body = rejected_bucket.body.replace("s3://uploads/", "s3://elsewhere/");
    let rejected_detector =
        message(json!({"id": "no-detector", "image": "s3://uploads/harmless", "detectors": ["absent"]}));
    let table = [
        ("harmless", job("harmless"), Outcome::Passed, ""),
        ("doubtful", job("doubtful"), Outcome::Review, "by AI"),
        ("fake", job("fake"), Outcome::Flagged, "by AI"),
        ("text", job("text"), Outcome::Undecodable, ""),
        ("absent", job("absent"), Outcome::Missing, "there is no such object"),
        ("other-bucket", rejected_bucket, Outcome::Rejected, "\"elsewhere\" is not allowed"),
        ("no-detector", rejected_detector, Outcome::Rejected, "no detector \"absent\""),
        ("nan", job("nan"), Outcome::Failed, "not a probability"),
        ("session-fails", job("session-fails"), Outcome::Failed, "given up after 1 attempt"),
        ("denied", job("denied"), Outcome::Failed, "given up after 1 attempt: access denied"),
        ("panics", job("panics"), Outcome::Failed, "panicked"),
    ];
    let count = table.len();
    for (id, message, outcome, reason) in table {
        assert_eq!(world.settle(message).await, Settled::Acknowledged, "{id}");
        let verdict = world.verdict(id).await.unwrap_or_else(|| panic!("{id} has no verdict"));
        let found = verdict.judgement.reason.clone().unwrap_or_default();
        assert_eq!(verdict.judgement.outcome, outcome, "{id}: {found}");
        assert!(found.contains(reason), "{id}: {found}");
        let is_scored = matches!(outcome, Outcome::Passed | Outcome::Review | Outcome::Flagged);
        assert_eq!(verdict.facts.is_some(), is_scored, "{id}");
    }
    let events = world.events(count).await;
    for event in &events {
        let outcome = event.body["data"]["outcome"].as_str().and_then(Outcome::parse).unwrap();
        assert_eq!(event.routing_key, outcome.routing_key());
    }
    let mut jobs: Vec<_> = events.iter().map(|event| event.body["data"]["job_id"].to_string()).collect();
    jobs.sort_unstable();
    jobs.dedup();
    assert_eq!(jobs.len(), count, "one event for each job");
    // Only failed jobs are also dead-lettered, with the id that a replay needs.
    let mut dead: Vec<_> =
        world.broker.published_to("pixwarden.dead").iter().filter_map(|letter| letter.header(JOB_ID_HEADER)).collect();
    dead.sort_unstable();
    assert_eq!(dead, ["denied", "nan", "panics", "session-fails"]);
}

#[tokio::test]
async fn a_failed_attempt_is_repeated_from_a_delay_queue_and_the_last_one_fails_the_job() {
    let world = World::new().await;
    world.put("denied", Stored::Denied);
    for failed_attempts in 0..2 {
        let settled = world.settle(job("denied").with_failed_attempts(failed_attempts)).await;
        assert_eq!(settled, Settled::Acknowledged);
        let copies = world.broker.published_to("");
        let copy = &copies[failed_attempts as usize];
        assert!(copy.routing_key.starts_with("pixwarden.delay.live."), "{}", copy.routing_key);
        assert_eq!(copy.header(ATTEMPT_HEADER), Some((failed_attempts + 1).to_string()));
        assert_eq!(copy.body["id"], "denied");
        assert!(world.verdict("denied").await.is_none());
    }
    assert_eq!(world.settle(job("denied").with_failed_attempts(2)).await, Settled::Acknowledged);
    let verdict = world.verdict("denied").await.unwrap();
    assert_eq!((verdict.judgement.outcome, verdict.attempts), (Outcome::Failed, 3));
    let [letter] = &world.broker.published_to("pixwarden.dead")[..] else { panic!("one dead letter") };
    assert!(letter.header(REASON_HEADER).unwrap().starts_with("given up after 3 attempts"));
    assert_eq!(letter.header(ATTEMPT_HEADER).as_deref(), Some("3"), "the reason and the count agree");
}

#[tokio::test]
async fn a_failed_verdict_is_replaced_by_a_later_delivery_and_no_other_is() {
    let world = World::with(|config| config.worker.attempts = 1).await;
    world.put("image", Stored::Denied);
    world.settle(job("image")).await;
    world.put("image", png(0, 0, 0));
    world.settle(job("image")).await;
    assert_eq!(world.verdict("image").await.unwrap().judgement.outcome, Outcome::Passed);
    world.put("image", png(250, 0, 0));
    world.settle(job("image")).await;
    assert_eq!(world.verdict("image").await.unwrap().judgement.outcome, Outcome::Passed, "the first verdict stands");
}

#[tokio::test]
async fn a_message_without_a_job_never_stops_the_others() {
    let world = World::new().await;
    assert_eq!(world.settle(message("{not json")).await, Settled::Acknowledged);
    let letters = world.broker.published_to("pixwarden.dead");
    assert!(letters[0].header(REASON_HEADER).unwrap().contains("neither JSON nor s3://"));

    assert_eq!(world.settle(message(json!({"Event": "s3:TestEvent"}))).await, Settled::Acknowledged);
    assert!(world.broker.published_to("pixwarden.jobs").is_empty(), "a test event requests nothing");

    let folder = json!({"key": "new/", "size": 0});
    let marker = json!({"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "uploads"}, "object": folder}}]});
    assert_eq!(world.settle(message(marker)).await, Settled::Acknowledged);
    assert_eq!(world.store.opened.load(Ordering::SeqCst), 0, "a folder marker is no image");
    assert!(world.broker.published_to("pixwarden.events").is_empty());
    assert_eq!(world.broker.published_to("pixwarden.dead").len(), 1);

    let record = |key: &str| json!({"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "uploads"}, "object": {"key": key}}});
    let several = json!({"Records": [record("a"), record("b")]});
    assert_eq!(world.settle(message(several)).await, Settled::Acknowledged);
    assert_eq!(world.broker.published_to("pixwarden.jobs").len(), 2, "one message for each record");
}

#[tokio::test]
async fn a_redelivered_job_that_has_its_verdict_is_not_fetched_again() {
    let world = World::new().await;
    world.put("image", png(0, 0, 0));
    world.settle(job("image")).await;
    let opened = world.store.opened.load(Ordering::SeqCst);
    assert_eq!(world.settle(job("image").redelivered()).await, Settled::Acknowledged);
    assert_eq!(world.store.opened.load(Ordering::SeqCst), opened);
    assert_eq!(world.events(1).await.len(), 1, "one event, however often the job is delivered");
}

#[tokio::test]
async fn a_judgement_is_counted_once_however_often_its_job_is_delivered() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    // A worker looks its series up when it is made.
    let recording = metrics::set_default_local_recorder(&recorder);
    let world = World::with(|config| config.worker.attempts = 1).await;
    drop(recording);
    world.put("image", png(250, 0, 0));
    for delivery in [job("image"), job("image").redelivered(), job("image")] {
        world.settle(delivery).await;
    }
    // Equal content under another id: its facts are reused, and it is traffic all the same.
    world.settle(message(json!({"id": "again", "image": "s3://uploads/image"}))).await;
    assert!(world.verdict("again").await.unwrap().reused_from.is_some());
    // Not judged at first.
    world.put("later", Stored::Denied);
    world.settle(job("later")).await;
    world.put("later", png(0, 0, 0));
    world.settle(job("later")).await;
    let scrape = recorder.handle().render();
    for line in [
        "pixwarden_judgements_total{policy=\"default\"} 3",
        "pixwarden_findings_total{policy=\"default\",rule=\"fake says \\\"by AI\\\"\",outcome=\"flagged\"} 2",
        "pixwarden_findings_total{policy=\"default\",rule=\"fake says \\\"by AI\\\"\",outcome=\"review\"} 0",
        "pixwarden_scores_count{detector=\"fake\",label=\"by AI\"} 3",
    ] {
        assert!(scrape.contains(&format!("{line}\n")), "{line}: {scrape}");
    }
}

#[tokio::test]
async fn one_id_for_two_images_is_dead_lettered_and_the_first_verdict_stands() {
    let world = World::new().await;
    world.put("image", png(0, 0, 0));
    world.put("another", png(250, 0, 0));
    world.settle(job("image")).await;
    for redelivered in [false, true] {
        let conflict = message(json!({"id": "image", "image": "s3://uploads/another"}));
        assert_eq!(world.settle(TestMessage { redelivered, ..conflict }).await, Settled::Acknowledged);
    }
    let letters = world.broker.published_to("pixwarden.dead");
    let reasons: Vec<_> = letters.iter().filter_map(|letter| letter.header(REASON_HEADER)).collect();
    assert!(reasons.len() == 2 && reasons.iter().all(|reason| reason.starts_with("id_conflict")), "{reasons:?}");
    assert_eq!(world.verdict("image").await.unwrap().image.key, "image");
}

#[tokio::test]
async fn a_row_that_the_ledger_refuses_fails_alone() {
    let world = World::new().await;
    let direct = world.direct().await;
    let trigger = "CREATE TRIGGER poison BEFORE INSERT ON verdicts WHEN NEW.metadata LIKE '%poison%'
                   BEGIN SELECT RAISE(ABORT, 'poison'); END";
    sqlx::query(trigger).execute(&direct).await.unwrap();
    direct.close().await;

    let mut settlements = Vec::new();
    for n in 0..8 {
        let (id, key) = (format!("job-{n}"), format!("key-{n}"));
        world.put(&key, png(0, 0, 0));
        let metadata = json!({"note": if n == 3 { "poison" } else { "good" }});
        settlements.push(
            world.deliver(message(json!({"id": id, "image": format!("s3://uploads/{key}"), "metadata": metadata}))),
        );
    }
    for settlement in &mut settlements {
        assert_eq!(settled(settlement).await, Settled::Acknowledged);
    }
    for n in 0..8 {
        let verdict = world.verdict(&format!("job-{n}")).await.unwrap();
        let (expected, has_metadata) = if n == 3 { (Outcome::Failed, false) } else { (Outcome::Passed, true) };
        assert_eq!((verdict.judgement.outcome, verdict.metadata.is_some()), (expected, has_metadata), "job-{n}");
        assert_eq!(verdict.facts.is_some(), has_metadata, "without metadata a rejudge might choose another policy");
    }
}

#[tokio::test]
async fn a_ledger_that_refuses_every_verdict_is_broken_and_no_job_fails_of_it() {
    let world = World::with(|config| config.worker.attempts = 1).await;
    let direct = world.direct().await;
    let trigger = "CREATE TRIGGER refusal BEFORE INSERT ON verdicts BEGIN SELECT RAISE(ABORT, 'refused'); END";
    sqlx::query(trigger).execute(&direct).await.unwrap();
    world.put("image", png(0, 0, 0));
    let mut settlement = world.deliver(job("image"));
    world.until("the ledger is known to be broken", async || world.health.first_pausing().is_some()).await;
    sqlx::query("DROP TRIGGER refusal").execute(&direct).await.unwrap();
    direct.close().await;
    assert_eq!(settled(&mut settlement).await, Settled::Acknowledged);
    let verdict = world.verdict("image").await.unwrap();
    assert_eq!((verdict.judgement.outcome, verdict.attempts), (Outcome::Passed, 1));
    assert!(world.dead_letters().is_empty());
}

#[tokio::test]
async fn a_ledger_that_refuses_every_record_of_a_screening_costs_no_attempt() {
    let world = World::with(|config| config.worker.attempts = 1).await;
    let direct = world.direct().await;
    let trigger = "CREATE TRIGGER refusal BEFORE INSERT ON suspects BEGIN SELECT RAISE(ABORT, 'refused'); END";
    sqlx::query(trigger).execute(&direct).await.unwrap();
    world.put("image", png(0, 0, 0));
    let mut settlement = world.deliver(job("image").redelivered());
    assert!(tokio::time::timeout(Duration::from_secs(1), settlement.recv()).await.is_err(), "the delivery is held");
    sqlx::query("DROP TRIGGER refusal").execute(&direct).await.unwrap();
    direct.close().await;
    assert_eq!(settled(&mut settlement).await, Settled::Acknowledged);
    let verdict = world.verdict("image").await.unwrap();
    assert_eq!((verdict.judgement.outcome, verdict.attempts), (Outcome::Passed, 1));
}

#[tokio::test]
async fn a_ledger_that_refuses_one_record_of_a_screening_costs_an_attempt_of_its_job() {
    let world = World::new().await;
    let direct = world.direct().await;
    let id = verdict_id("image");
    let trigger = format!(
        "CREATE TRIGGER refusal BEFORE INSERT ON suspects WHEN NEW.id = '{id}'
         BEGIN SELECT RAISE(ABORT, 'refused'); END"
    );
    sqlx::query(sqlx::AssertSqlSafe(trigger)).execute(&direct).await.unwrap();
    direct.close().await;
    world.put("image", png(0, 0, 0));
    assert_eq!(world.settle(job("image").redelivered()).await, Settled::Acknowledged);
    let copies = world.broker.published_to("");
    let retried: Vec<_> = copies.iter().filter_map(|copy| copy.header(REASON_HEADER)).collect();
    assert!(matches!(&retried[..], [reason] if reason.contains("refused")), "{copies:?}");
}

#[tokio::test]
async fn a_broken_store_costs_no_attempt() {
    let world = World::with(|config| config.worker.attempts = 1).await;
    world.put("image", png(0, 0, 0));
    *world.store.is_down.lock().unwrap() = true;
    let mut settlement = world.deliver(job("image"));
    while world.store.opened.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(settlement.try_recv().is_err(), "the delivery is held");
    *world.store.is_down.lock().unwrap() = false;
    assert_eq!(settled(&mut settlement).await, Settled::Acknowledged);
    let verdict = world.verdict("image").await.unwrap();
    assert_eq!((verdict.judgement.outcome, verdict.attempts), (Outcome::Passed, 1));
}

#[tokio::test]
async fn the_consuming_connection_is_closed_after_the_last_delivery_is_settled() {
    let mut world = World::new().await;
    world.put("slow", slow(7));
    let mut settlement = world.deliver(job("slow"));
    world.until("the job is screened", async || SLOW_RUNS.lock().unwrap().contains_key(&7)).await;
    drop(world.shutdown.take());
    world.until("the worker drains", async || world.intake.state() == IntakeState::Draining).await;
    // The worker's tasks run in turn with this one: what they can do now is done.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let early = world.connection.requests();
    // A run that is not released would keep a failed test from ending.
    release(7);
    assert_eq!(early, [], "a delivery was not settled yet");
    assert_eq!(settled(&mut settlement).await, Settled::Acknowledged);
    assert_eq!(world.connection.request().await, Request::Close(CloseReason::Drained));
    (&mut world.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn draining_returns_what_waits_for_a_dependency_and_publishes_what_was_decided() {
    let mut world = World::new().await;
    world.put("done", png(250, 0, 0));
    assert_eq!(world.settle(job("done")).await, Settled::Acknowledged);
    *world.store.is_down.lock().unwrap() = true;
    world.put("waiting", png(0, 0, 0));
    let opened = world.store.opened.load(Ordering::SeqCst);
    let mut waiting = world.deliver(job("waiting"));
    while world.store.opened.load(Ordering::SeqCst) == opened {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.shut_down().await;
    assert_eq!(settled(&mut waiting).await, Settled::Requeued);
    assert_eq!(world.events(1).await[0].routing_key, "image.flagged");
}

#[tokio::test(start_paused = true)]
async fn a_delivery_whose_copy_cannot_be_published_returns_to_its_queue() {
    let broker = Arc::new(FakeBroker::default());
    *broker.is_down.lock().unwrap() = true;
    let settler = Settler::new(broker.clone(), topology());
    for settlement in [
        Settlement::Retry { failed_attempts: 1, reason: "denied".into() },
        Settlement::dead_letter("malformed"),
        Settlement::Split(vec!["{}".into()]),
    ] {
        let (sender, mut settlement_of) = mpsc::unbounded_channel();
        let acknowledger = Box::new(FakeAcknowledger(sender, Arc::default()));
        let delivery = Delivery::new(Lane::Live, Vec::new(), BasicProperties::default(), false, acknowledger);
        settler.settle(delivery, settlement.clone()).await;
        assert_eq!(settlement_of.recv().await, Some(Settled::Requeued), "{settlement:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_copies_the_broker_refuses_does_not_circulate() {
    let broker = Arc::new(FakeBroker::default());
    *broker.refuses_size.lock().unwrap() = true;
    let settler = Settler::new(broker.clone(), topology());
    let (sender, mut settlement_of) = mpsc::unbounded_channel();
    let acknowledger = Box::new(FakeAcknowledger(sender, Arc::default()));
    let delivery = Delivery::new(Lane::Live, Vec::new(), BasicProperties::default(), false, acknowledger);
    settler.settle(delivery, Settlement::dead_letter("the body is too large")).await;
    assert_eq!(settlement_of.recv().await, Some(Settled::Rejected));
}

#[tokio::test]
async fn a_reply_is_sent_for_every_outcome_but_never_to_a_queue_of_our_own() {
    let world = World::new().await;
    world.put("image", png(0, 0, 0));
    world.settle(job("image").with_reply_to("answers")).await;
    world.settle(job("absent").with_reply_to("answers")).await;
    world.settle(job("other").with_reply_to("pixwarden.jobs.live")).await;
    let replies = world.broker.published_to("");
    let outcomes: Vec<_> =
        replies.iter().map(|reply| (reply.routing_key.as_str(), reply.body["data"]["outcome"].as_str())).collect();
    assert_eq!(outcomes, [("answers", Some("passed")), ("answers", Some("missing"))]);
}

#[tokio::test]
async fn a_sender_that_waits_learns_why_its_message_has_no_result() {
    let world = World::new().await;
    world.put("image", png(0, 0, 0));
    world.settle(job("image")).await;
    let mut malformed = message("{not json").with_reply_to("answers");
    malformed.properties = malformed.properties.with_correlation_id("c-1".into());
    let test_event = message(json!({"Event": "s3:TestEvent"})).with_reply_to("answers");
    let conflict = message(json!({"id": "image", "image": "s3://uploads/another"})).with_reply_to("answers");
    for message in [malformed, test_event, conflict, message("{}").with_reply_to("pixwarden.jobs.live")] {
        assert_eq!(world.settle(message).await, Settled::Acknowledged);
    }
    let replies = world.broker.published_to("");
    let codes: Vec<_> = replies.iter().map(|reply| reply.body["error"]["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["not_understood", "nothing_requested", "id_conflict"], "never to a queue of our own");
    assert!(replies[0].body["error"]["message"].as_str().unwrap().contains("neither JSON nor s3://"));
    assert_eq!(replies[2].body["error"]["message"], "the job's id belongs to a job for another image");
    assert_eq!(replies[0].properties.correlation_id().as_ref().unwrap().as_str(), "c-1");
    assert_eq!(replies[0].properties.content_type().as_ref().unwrap().as_str(), "application/json");
}

#[tokio::test]
async fn an_unroutable_event_stays_in_the_outbox_and_holds_up_no_other() {
    let world = World::new().await;
    world.broker.unroutable.lock().unwrap().insert("image.review".into());
    world.put("doubtful", png(150, 0, 0));
    world.put("fake", png(250, 0, 0));
    world.settle(job("doubtful")).await;
    world.settle(job("fake")).await;
    assert_eq!(world.events(1).await[0].routing_key, "image.flagged");
    let unpublished = world.ledger.count_unpublished().await.unwrap();
    assert!(unpublished.iter().any(|events| events.routing_key == "image.review" && events.events == 1));
}

#[tokio::test]
async fn a_backlog_that_nobody_takes_is_not_tried_event_by_event_and_delays_no_other() {
    let world = World::with(|config| (config.outbox.sweep_ms, config.outbox.in_flight) = (10, 4)).await;
    world.broker.unroutable.lock().unwrap().insert("image.failed".into());
    let direct = world.direct().await;
    let backlog = "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 5000)
                   INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, created_at, due_at)
                   SELECT printf('00000000-0000-4000-8000-%012d', n), 'v', 'image.failed', 'c', '{}', '2020', '2020' FROM number";
    sqlx::query(backlog).execute(&direct).await.unwrap();
    while world.broker.returned.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Fresh events of the key are not tried either, and those of another are published.
    world.put("fake", png(250, 0, 0));
    for n in 0..20 {
        world.settle(job(&format!("absent {n}"))).await;
    }
    world.settle(job("fake")).await;
    assert_eq!(world.events(1).await[0].routing_key, "image.flagged");
    // One batch was leased before the first event came back. Without a pause each sweep would lease all.
    let leased: i64 =
        sqlx::query_scalar("SELECT count(*) FROM outbox WHERE tries > 0").fetch_one(&direct).await.unwrap();
    assert!(leased <= 510, "{leased} of 5000 events were leased");
    let returned = world.broker.returned.load(Ordering::SeqCst);
    assert!(returned < 20, "{returned} events were tried");
    // Somebody binds a queue: after the pause all are published.
    world.broker.unroutable.lock().unwrap().clear();
    sqlx::query("UPDATE outbox SET due_at = '2020'").execute(&direct).await.unwrap();
    assert!(world.events(5_021).await.len() >= 5_021);
    direct.close().await;
}

#[tokio::test]
async fn a_job_that_killed_several_processes_is_not_screened_again() {
    let world = World::with(|config| config.worker.deaths = 2).await;
    world.put("deadly", png(0, 0, 0));
    let id = verdict_id("deadly");
    for _ in 0..2 {
        world.ledger.begin_quarantine(id, Uuid::new_v4()).await.unwrap();
    }
    assert_eq!(world.settle(job("deadly").redelivered()).await, Settled::Acknowledged);
    let judgement = world.verdict("deadly").await.unwrap().judgement;
    assert_eq!(judgement.outcome, Outcome::Failed);
    assert!(judgement.reason.unwrap().contains("died 2 times"));
}

#[tokio::test]
async fn a_replayed_dead_letter_keeps_the_id_that_it_failed_under() {
    let world = World::with(|config| config.worker.attempts = 1).await;
    world.put("image", Stored::Denied);
    // Without an id in the body the id is derived, and depends on the object's ETag.
    let body = "s3://uploads/image";
    world.settle(message(body)).await;
    let failed_id = world.broker.published_to("pixwarden.dead")[0].header(JOB_ID_HEADER).unwrap();
    world.put("image", png(0, 0, 0));
    world.settle(message(body).with_header(JOB_ID_HEADER, text(&failed_id))).await;
    assert_eq!(world.verdict(&failed_id).await.unwrap().judgement.outcome, Outcome::Passed);
}

#[test]
fn headers_of_the_fakes_are_read_as_lapin_writes_them() {
    let mut headers = FieldTable::default();
    headers.insert("n".into(), AMQPValue::LongUInt(3));
    let properties = BasicProperties::default().with_headers(headers);
    assert_eq!(header(&properties, "n"), Some("3".into()));
}

/// The message of an image without an id.
fn nameless(key: &str) -> TestMessage {
    message(format!("s3://uploads/{key}"))
}

impl World {
    async fn until(&self, what: &str, mut is_true: impl AsyncFnMut() -> bool) {
        for _ in 0..20_000 {
            if is_true().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("never happened: {what}");
    }

    /// How often the screening of a job was begun alone, where its screening is recorded.
    async fn starts_alone(&self, job_id: &str) -> Option<i64> {
        let query = sqlx::query_scalar("SELECT starts FROM suspects WHERE id = $1");
        let direct = self.direct().await;
        let starts = query.bind(verdict_id(job_id).to_string()).fetch_optional(&direct).await.unwrap();
        direct.close().await;
        starts
    }

    /// The ledger's file, opened beside the worker.
    async fn direct(&self) -> sqlx::SqlitePool {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&self.ledger_file);
        sqlx::SqlitePool::connect_with(options).await.unwrap()
    }

    fn dead_letters(&self) -> Vec<Published> {
        self.broker.published_to("pixwarden.dead")
    }
}

#[tokio::test]
async fn a_job_without_an_id_never_vanishes_behind_the_row_of_an_earlier_state() {
    let world = World::with(|config| config.worker.attempts = 1).await;
    // The object is not there yet. Then it is uploaded, but access to it is denied.
    world.settle(nameless("late")).await;
    world.put("late", Stored::Denied);
    world.settle(nameless("late")).await;
    let letters = world.dead_letters();
    assert_eq!(letters.len(), 1, "a failure that has no row has a dead letter");
    let reason = letters[0].header(REASON_HEADER).unwrap();
    assert!(reason.contains("access denied") && reason.contains("missing"), "{reason}");
    assert_eq!(letters[0].header(JOB_ID_HEADER), None, "a replay must not meet the same row again");

    // A failed job was replayed and passed. Then the object was overwritten, and access to it is denied.
    world.put("replayed", Stored::Denied);
    world.settle(nameless("replayed")).await;
    let id = world.dead_letters()[1].header(JOB_ID_HEADER).unwrap();
    world.put("replayed", png(0, 0, 0));
    let replay = || nameless("replayed").with_header(JOB_ID_HEADER, text(&id));
    world.settle(replay()).await;
    assert_eq!(world.verdict(&id).await.unwrap().judgement.outcome, Outcome::Passed);
    world.put("replayed", Stored::Denied);
    world.settle(nameless("replayed")).await;
    assert_eq!(world.dead_letters().len(), 3);
    assert_eq!(world.dead_letters()[2].header(JOB_ID_HEADER), None);

    // A second replay of the same letter finds another image: it gets a verdict of its own.
    world.put("replayed", png(250, 0, 0));
    world.settle(replay()).await;
    let keys: Vec<_> = world.events(4).await.into_iter().map(|event| event.routing_key).collect();
    assert_eq!(keys, ["image.failed", "image.failed", "image.cleared", "image.flagged"]);
    assert_eq!(world.verdict(&id).await.unwrap().judgement.outcome, Outcome::Passed, "the first verdict stands");
}

#[tokio::test]
async fn an_upload_that_was_missing_once_is_screened_when_it_is_back() {
    let world = World::with(|config| config.events.publish.retain(|key| key != "image.failed")).await;
    let Stored::Bytes(bytes) = png(250, 0, 0) else { unreachable!() };
    let etag = hex::encode(&Sha256::digest(&bytes)[..8]);
    let announced = || message(json!({"image": {"bucket": "uploads", "key": "toggled", "etag": etag}}));
    // It was deleted before it could be fetched. Then it was uploaded again.
    world.settle(announced()).await;
    world.put("toggled", Stored::Bytes(bytes));
    for message in [announced(), announced().redelivered(), announced()] {
        assert_eq!(world.settle(message).await, Settled::Acknowledged);
    }
    let events = world.events(1).await;
    assert_eq!(events.len(), 1, "one verdict, however often the event comes");
    assert_eq!(events[0].body["data"]["outcome"], "flagged");
}

#[tokio::test]
async fn a_hold_counts_no_attempt_and_forgets_none() {
    let world = World::with(|config| config.buckets.push(Bucket::Name("far".into()))).await;
    *world.store.far_is_down.lock().unwrap() = true;
    let job = message(json!({"id": "far", "image": "s3://far/image"})).with_failed_attempts(2).redelivered();
    world.settle(job).await;
    let copies = world.broker.published_to("");
    assert_eq!(copies[0].header(ATTEMPT_HEADER).as_deref(), Some("2"));
    assert!(copies[0].header(REDELIVERED_HEADER).is_some(), "the copy is a new message for the broker");
}

#[tokio::test]
async fn a_replay_of_another_state_leaves_the_failed_verdict_alone() {
    let world = World::with(|config| config.worker.attempts = 1).await;
    world.put("image", png(0, 255, 0));
    world.settle(nameless("image")).await;
    let id = world.dead_letters()[0].header(JOB_ID_HEADER).unwrap();
    world.put("image", png(250, 0, 0));
    world.settle(nameless("image").with_header(JOB_ID_HEADER, text(&id))).await;
    assert_eq!(world.events(2).await[1].body["data"]["outcome"], "flagged");
    assert_eq!(world.verdict(&id).await.unwrap().judgement.outcome, Outcome::Failed, "that was another image");
}

#[tokio::test]
async fn a_job_that_is_given_up_keeps_what_was_found() {
    let world = World::with(|config| config.worker.attempts = 1).await;
    world.put("image", png(0, 255, 0));
    world.settle(nameless("image")).await;
    let id = world.dead_letters()[0].header(JOB_ID_HEADER).unwrap();
    let verdict = world.verdict(&id).await.unwrap();
    assert_eq!(verdict.judgement.outcome, Outcome::Failed);
    assert!(verdict.sha256.is_some() && verdict.image.etag.is_some() && verdict.bytes.is_some(), "{verdict:?}");
}

#[tokio::test]
async fn a_failed_verdict_is_not_replaced_by_one_on_another_version() {
    let world = World::with(|config| config.worker.attempts = 1).await;
    let job = |version: &str| {
        message(json!({"id": "job", "image": {"bucket": "uploads", "key": "image", "version_id": version}}))
    };
    world.put("image", Stored::Denied);
    world.settle(job("v1")).await;
    world.put("image", png(0, 0, 0));
    world.settle(job("v2")).await;
    assert!(world.dead_letters()[1].header(REASON_HEADER).unwrap().starts_with("id_conflict"));
    let verdict = world.verdict("job").await.unwrap();
    assert_eq!((verdict.judgement.outcome, verdict.image.version_id.as_deref()), (Outcome::Failed, Some("v1")));
    world.settle(job("v1")).await;
    assert_eq!(world.verdict("job").await.unwrap().judgement.outcome, Outcome::Passed);
}

#[tokio::test]
async fn a_sender_cannot_leave_out_a_detector_that_the_policy_judges_by() {
    let world = World::with(|config| {
        let rule = |detector: &str| RuleConfig::new(detector, "by AI", 0.5, 0.9);
        config.policy.rules = vec![rule("fake"), rule("second")];
    })
    .await;
    world.put("image", png(0, 0, 0));
    let job =
        |id: &str, detectors: Value| message(json!({"id": id, "image": "s3://uploads/image", "detectors": detectors}));
    world.settle(job("one", json!(["fake"]))).await;
    let judgement = world.verdict("one").await.unwrap().judgement;
    assert_eq!(judgement.outcome, Outcome::Rejected);
    assert!(judgement.reason.unwrap().contains("leaves out \"second\""));
    world.settle(job("both", json!(["second", "fake"]))).await;
    assert_eq!(world.verdict("both").await.unwrap().judgement.outcome, Outcome::Passed);
}

#[tokio::test]
async fn each_job_is_judged_by_the_policy_that_holds_for_it_and_facts_are_shared() {
    let world = World::with(|config| {
        let rule = RuleConfig { review_at: None, ..RuleConfig::new("fake", "by AI", 0.0, 0.9) };
        let scoped = |name: &str, key_prefix: &str, rules: Vec<RuleConfig>| ScopedPolicyConfig {
            name: name.into(),
            when: WhenConfig { key_prefix: AnyOf(vec![key_prefix.into()]), ..WhenConfig::default() },
            inherit: false,
            damaged: None,
            rules,
        };
        let noting = RuleConfig {
            category: Some("synthetic".into()),
            severity: Some(2),
            note_at: Some(0.1),
            review_at: None,
            flag_at: None,
            ..rule.clone()
        };
        let strict = RuleConfig::new("second", "by AI", 0.2, 0.5);
        config.policy.rules = vec![rule];
        config.policies = vec![scoped("noting", "art/", vec![noting]), scoped("strict", "kids/", vec![strict])];
    })
    .await;
    let verdict = async |key: &str, id: &str, metadata: Value| {
        world.put(key, png(150, 0, 0));
        let body = json!({"id": id, "image": format!("s3://uploads/{key}"), "metadata": metadata});
        world.settle(message(body)).await;
        world.verdict(id).await.unwrap()
    };
    let passed = verdict("image", "one", json!({})).await;
    assert_eq!((passed.judgement.outcome, passed.policy.name.as_str()), (Outcome::Passed, "default"));
    let noted = verdict("art/image", "two", json!({})).await;
    assert_eq!((noted.judgement.outcome, noted.policy.name.as_str()), (Outcome::Passed, "noting"));
    let finding = &noted.judgement.findings[0];
    assert_eq!(
        (finding.category.as_deref(), finding.severity, finding.outcome),
        (Some("synthetic"), Some(2), FindingOutcome::Noted)
    );
    assert_eq!(noted.reused_from, Some(passed.id), "the facts of equal content serve every policy");
    let flagged = verdict("kids/image", "three", json!({})).await;
    assert_eq!((flagged.judgement.outcome, flagged.policy.name.as_str()), (Outcome::Flagged, "strict"));
    assert_eq!(flagged.facts, passed.facts);
    // A sender reaches no other rules by its metadata or by naming detectors.
    let metadata = json!({"policy": "noting", "key_prefix": "art/"});
    assert_eq!(verdict("kids/image", "four", metadata).await.judgement.outcome, Outcome::Flagged);
    let left_out = json!({"id": "five", "image": "s3://uploads/kids/image", "detectors": ["fake"]});
    world.settle(message(left_out)).await;
    assert_eq!(world.verdict("five").await.unwrap().judgement.outcome, Outcome::Rejected);
    let keys: Vec<_> = world.events(5).await.into_iter().map(|event| event.routing_key).collect();
    assert_eq!(keys, ["image.passed", "image.noted", "image.flagged", "image.flagged", "image.failed"]);
}

#[tokio::test]
async fn each_verdict_has_the_hashes_of_its_image_and_those_of_an_earlier_release_are_not_made_up() {
    let world = World::new().await;
    world.put("image", png(0, 0, 0));
    world.settle(job("image")).await;
    let first = world.verdict("image").await.unwrap();
    let facts = first.facts.clone().unwrap();
    let hashes = facts.hashes.clone().unwrap();
    assert_eq!(hashes.iter().map(|hash| (hash.view, hash.quality)).collect::<Vec<_>>(), [(View::of_frame(0), 0)]);

    // A worker of an earlier release stored the facts of another image.
    let Stored::Bytes(bytes) = png(9, 0, 0) else { unreachable!() };
    let digests = ContentDigests::of(&bytes);
    let (id, job_id) = (verdict_id("earlier"), "earlier".to_owned());
    let facts = Some(Facts { hashes: None, ..facts });
    let earlier = Verdict { id, job_id, sha256: Some(digests.sha256), md5: None, facts, ..first };
    world.ledger.insert(&[NewVerdict { verdict: earlier, event: None }]).await.unwrap();
    world.put("other", Stored::Bytes(bytes));
    world.settle(job("other")).await;
    let other = world.verdict("other").await.unwrap();
    assert_eq!((other.reused_from, other.md5), (Some(id), Some(digests.md5)));
    assert_eq!(other.facts.unwrap().hashes, None, "it was not looked for");
}

#[tokio::test]
async fn many_refusals_in_a_row_hold_the_bucket_and_cost_no_further_attempt() {
    let world = World::new().await;
    for n in 0..20 {
        world.put(&format!("denied-{n}"), Stored::Denied);
        assert_eq!(world.settle(job(&format!("denied-{n}"))).await, Settled::Acknowledged);
    }
    let copies = world.broker.published_to("");
    assert_eq!(copies.len(), 20);
    let attempts: Vec<_> = copies.iter().map(|copy| copy.header(ATTEMPT_HEADER)).collect();
    assert!(attempts[..19].iter().all(|attempt| attempt.as_deref() == Some("1")), "{attempts:?}");
    assert_eq!(attempts[19], None, "the bucket is at fault now");
    assert!(copies[19].routing_key.starts_with("pixwarden.delay.live."), "{}", copies[19].routing_key);

    // The grant is back. One of the jobs that come in is tried, and releases the others.
    for n in 0..20 {
        world.put(&format!("denied-{n}"), png(0, 0, 0));
    }
    world
        .until("a job passes", async || {
            world.settle(job("denied-0")).await;
            world.verdict("denied-0").await.is_some()
        })
        .await;
    world.settle(job("denied-1")).await;
    assert!(world.verdict("denied-1").await.is_some());
}

#[tokio::test]
async fn a_store_that_is_down_holds_only_its_own_jobs_unless_every_store_is_down() {
    let world = World::with(|config| {
        config.buckets.push(Bucket::Name("far".into()));
        config.worker.attempts = 1;
    })
    .await;
    world.put("image", png(0, 0, 0));
    *world.store.far_is_down.lock().unwrap() = true;
    let far = |id: &str| message(json!({"id": id, "image": "s3://far/image"}));
    for n in 0..3 {
        assert_eq!(world.settle(far(&format!("far-{n}"))).await, Settled::Acknowledged);
    }
    let copies = world.broker.published_to("");
    assert_eq!(copies.len(), 3);
    assert!(copies.iter().all(|copy| copy.routing_key == "pixwarden.delay.live.1s"), "{copies:?}");
    assert!(copies.iter().all(|copy| copy.header(ATTEMPT_HEADER).is_none()));
    world.settle(job("image")).await;
    assert_eq!(world.verdict("image").await.unwrap().judgement.outcome, Outcome::Passed);

    // Now no store works, so intake pauses and the delivery is held in memory.
    *world.store.is_down.lock().unwrap() = true;
    let mut held = world.deliver(job("second"));
    let opened = world.store.opened.load(Ordering::SeqCst);
    world.until("the store is asked", async || world.store.opened.load(Ordering::SeqCst) > opened).await;
    assert!(held.try_recv().is_err());
    world.put("second", png(0, 0, 0));
    *world.store.is_down.lock().unwrap() = false;
    assert_eq!(settled(&mut held).await, Settled::Acknowledged);
    *world.store.far_is_down.lock().unwrap() = false;
    world
        .until("the far store works again", async || {
            world.settle(far("far-0")).await;
            world.verdict("far-0").await.is_some()
        })
        .await;
}

#[tokio::test]
async fn deliveries_in_flight_are_counted_by_lane() {
    let world = World::new().await;
    *world.store.is_down.lock().unwrap() = true;
    let _held = world.deliver(job("image").backfill());
    world.until("the delivery is in flight", async || (world.in_flight)(Lane::Backfill) == 1).await;
    assert_eq!((world.in_flight)(Lane::Live), 0);
}

#[tokio::test]
async fn a_first_redelivery_is_recorded_and_screened_in_company() {
    let world = World::new().await;
    world.put("slow", slow(1));
    world.put("returned", png(0, 0, 0));
    let mut slow = world.deliver(job("slow").backfill());
    world.until("the session runs", async || world.store.opened.load(Ordering::SeqCst) == 1).await;
    let mut returned = world.deliver(job("returned").backfill().redelivered());
    world
        .until("its screening is recorded while another job is screened", async || {
            world.starts_alone("returned").await == Some(0)
        })
        .await;
    assert!(slow.try_recv().is_err());
    release(1);
    assert_eq!(settled(&mut slow).await, Settled::Acknowledged);
    assert_eq!(settled(&mut returned).await, Settled::Acknowledged);
    world.until("the record is gone", async || world.starts_alone("returned").await.is_none()).await;
}

#[tokio::test]
async fn a_quarantine_record_stays_until_the_delivery_is_settled() {
    let world = World::new().await;
    world.put("image", png(0, 0, 0));
    let not_yet = world.acknowledging.lock().await;
    let mut settlement = world.deliver(job("image").redelivered());
    world.until("the verdict is committed", async || world.verdict("image").await.is_some()).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), settlement.recv()).await.is_err());
    assert_eq!(world.starts_alone("image").await, Some(0));
    drop(not_yet);
    assert_eq!(settled(&mut settlement).await, Settled::Acknowledged);
    world.until("the record is gone", async || world.starts_alone("image").await.is_none()).await;
}

#[tokio::test]
async fn a_quarantine_record_stays_if_the_message_returns_to_its_queue() {
    let world = World::new().await;
    world.put("image", png(0, 255, 0));
    *world.broker.is_down.lock().unwrap() = true;
    assert_eq!(world.settle(job("image").redelivered()).await, Settled::Requeued);
    // Removing it would take as long.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.starts_alone("image").await, Some(0));
    *world.broker.is_down.lock().unwrap() = false;
    assert_eq!(world.settle(job("image").redelivered()).await, Settled::Acknowledged);
    world.until("the record is gone", async || world.starts_alone("image").await.is_none()).await;
}

#[tokio::test]
async fn the_record_of_a_process_that_died_after_its_commit_is_removed() {
    let world = World::new().await;
    world.put("image", png(0, 0, 0));
    assert_eq!(world.settle(job("image")).await, Settled::Acknowledged);
    assert!(world.ledger.begin_in_company(verdict_id("image"), Uuid::new_v4()).await.unwrap());
    assert_eq!(world.settle(job("image").redelivered()).await, Settled::Acknowledged);
    world.until("the record is gone", async || world.starts_alone("image").await.is_none()).await;
}

#[tokio::test]
async fn quarantine_records_that_the_ledger_keeps_are_removed_later() {
    let world = World::new().await;
    let direct = world.direct().await;
    let trigger = "CREATE TRIGGER refusal BEFORE DELETE ON suspects WHEN OLD.id <> OLD.process
                   BEGIN SELECT RAISE(ABORT, 'refused'); END";
    sqlx::query(trigger).execute(&direct).await.unwrap();
    for key in ["first", "second"] {
        world.put(key, png(0, 0, 0));
    }
    assert_eq!(world.settle(job("first").redelivered()).await, Settled::Acknowledged);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.starts_alone("first").await, Some(0));
    sqlx::query("DROP TRIGGER refusal").execute(&direct).await.unwrap();
    direct.close().await;
    assert_eq!(world.settle(job("second").redelivered()).await, Settled::Acknowledged);
    for key in ["first", "second"] {
        world.until("the record is gone", async || world.starts_alone(key).await.is_none()).await;
    }
}

#[tokio::test]
async fn a_suspect_that_waits_for_its_turn_is_returned_by_a_worker_that_drains() {
    let mut world = World::new().await;
    for key in ["first", "second"] {
        world.put(key, slow(5));
        assert!(world.ledger.begin_in_company(verdict_id(key), Uuid::new_v4()).await.unwrap());
    }
    let mut first = world.deliver(job("first").backfill().redelivered());
    world.until("the first is screened", async || world.starts_alone("first").await == Some(1)).await;
    let mut second = world.deliver(job("second").backfill().redelivered());
    world.until("the second is fetched", async || world.store.opened.load(Ordering::SeqCst) == 2).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(world.shutdown.take());
    assert_eq!(settled(&mut second).await, Settled::Requeued);
    assert!(first.try_recv().is_err());
    release(5);
    assert_eq!(settled(&mut first).await, Settled::Acknowledged);
    assert_eq!(world.starts_alone("second").await, Some(0), "it was not begun alone");
}

#[tokio::test]
async fn suspects_that_wait_for_their_turn_keep_no_fresh_job_out() {
    // Two objects may be in memory at the same time: one in the decoder, and one that is downloaded.
    let world = World::with(|config| config.storage.downloads = 1).await;
    let suspects = ["first", "second", "third", "fourth"];
    for key in suspects {
        world.put(key, slow(6));
        assert!(world.ledger.begin_in_company(verdict_id(key), Uuid::new_v4()).await.unwrap());
    }
    world.put("text", Stored::Bytes(b"not an image".to_vec()));
    let mut settlements = vec![world.deliver(job("first").redelivered())];
    world.until("the first is screened", async || SLOW_RUNS.lock().unwrap().contains_key(&6)).await;
    settlements.extend(suspects[1..].iter().map(|key| world.deliver(job(key).redelivered())));
    // Each waiting suspect was fetched once, and then made room for the next one.
    world.until("the others were fetched", async || world.store.opened.load(Ordering::SeqCst) == 4).await;
    let fresh = message(json!({"id": "fresh", "image": "s3://uploads/text"}));
    assert_eq!(world.settle(fresh).await, Settled::Acknowledged);
    assert!(settlements.iter_mut().all(|settlement| settlement.try_recv().is_err()), "no suspect was screened yet");
    release(6);
    for settlement in &mut settlements {
        assert_eq!(settled(settlement).await, Settled::Acknowledged);
    }
    for key in suspects {
        assert_eq!(world.verdict(key).await.unwrap().judgement.outcome, Outcome::Passed, "{key}");
    }
}

#[tokio::test]
async fn a_suspect_is_screened_without_another_backfill_job_while_live_jobs_pass() {
    let world = World::new().await;
    world.put("suspect", slow(2));
    world.put("text", Stored::Bytes(b"not an image".to_vec()));
    let dead_process = Uuid::new_v4();
    assert!(world.ledger.begin_in_company(verdict_id("suspect"), dead_process).await.unwrap());
    let mut suspect = world.deliver(job("suspect").backfill().redelivered());
    world.until("its screening is recorded", async || world.starts_alone("suspect").await == Some(1)).await;
    // The record is written just before the lock is taken; the session then waits.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let message = |id: &str| message(json!({"id": id, "image": "s3://uploads/text"}));
    let mut backfill = world.deliver(message("backfill").backfill());
    world.until("the backfill job is fetched", async || world.store.opened.load(Ordering::SeqCst) == 2).await;
    assert_eq!(world.settle(message("live")).await, Settled::Acknowledged);
    assert!(suspect.try_recv().is_err() && backfill.try_recv().is_err());
    release(2);
    assert_eq!(settled(&mut suspect).await, Settled::Acknowledged);
    assert_eq!(settled(&mut backfill).await, Settled::Acknowledged);
}

#[tokio::test]
async fn a_suspect_that_was_answered_while_it_waited_is_not_screened_again() {
    let world = World::new().await;
    for key in ["first", "second"] {
        world.put(key, slow(3));
        assert!(world.ledger.begin_in_company(verdict_id(key), Uuid::new_v4()).await.unwrap());
    }
    let mut first = world.deliver(job("first").backfill().redelivered());
    world.until("the first is fetched", async || world.store.opened.load(Ordering::SeqCst) == 1).await;
    let mut second = world.deliver(job("second").backfill().redelivered());
    world.until("the second is fetched", async || world.store.opened.load(Ordering::SeqCst) == 2).await;
    // Another process answers the second job meanwhile.
    let text = message(json!({"id": "second", "image": "s3://uploads/second"}));
    world.put("second", Stored::Bytes(b"not an image".to_vec()));
    assert_eq!(world.settle(text).await, Settled::Acknowledged);
    release(3);
    assert_eq!(settled(&mut first).await, Settled::Acknowledged);
    assert_eq!(settled(&mut second).await, Settled::Acknowledged);
    assert_eq!(world.verdict("second").await.unwrap().judgement.outcome, Outcome::Undecodable);
    assert_eq!(SLOW_RUNS.lock().unwrap()[&3].runs, 1, "only the first was screened");
    world.until("the record is gone", async || world.starts_alone("second").await.is_none()).await;
}

#[tokio::test]
async fn a_run_that_never_ends_ends_the_process_and_says_so() {
    let mut world = World::new().await;
    world.put("hangs", slow(4));
    let _never = world.deliver(job("hangs").redelivered());
    let ended = tokio::time::timeout(Duration::from_secs(30), &mut world.running).await.unwrap().unwrap();
    assert!(matches!(&ended, Err(WorkerError::SessionBroken(why)) if why.contains("has not ended")), "{ended:?}");
    assert!(matches!(world.intake.state(), IntakeState::Broken(_)), "{}", world.intake.state());
    assert_eq!(world.starts_alone("hangs").await, Some(0), "the process dies of it");
}

#[tokio::test]
async fn a_second_verdict_on_one_redelivered_job_names_the_first_in_its_log_line() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().json().with_writer(Arc::new(log.reopen().unwrap())).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let world = World::new().await;
    // The job names no version, so that its id is that of what the store answers.
    for (shade, message) in [(0, nameless("k")), (250, nameless("k").redelivered())] {
        world.put("k", png(shade, 0, 0));
        assert_eq!(world.settle(message).await, Settled::Acknowledged);
    }
    let text = std::fs::read_to_string(log.path()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let finished: Vec<Value> =
        lines.map(|line| line["fields"].clone()).filter(|fields| fields["message"] == "job finished").collect();
    let [first, second] = &finished[..] else { panic!("{text}") };
    assert_ne!(first["job_id"], second["job_id"]);
    assert!(first["earlier_verdict"].is_null(), "{first}");
    let id = verdict_id(first["job_id"].as_str().unwrap()).to_string();
    assert_eq!(second["earlier_verdict"], id, "{second}");
}

/// The removal of an object from the bucket "uploads".
fn removal(key: &str, time: &str) -> TestMessage {
    removal_from("uploads", key, time)
}

fn removal_from(bucket: &str, key: &str, time: &str) -> TestMessage {
    let record = json!({"eventName": "s3:ObjectRemoved:Delete", "eventTime": time,
        "s3": {"bucket": {"name": bucket}, "object": {"key": key}}});
    message(json!({"Records": [record]}))
}

#[tokio::test]
async fn a_removal_in_a_bucket_that_is_not_allowed_marks_nothing() {
    let world = World::new().await;
    world.put("image", png(0, 0, 0));
    assert_eq!(world.settle(job("image")).await, Settled::Acknowledged);
    // A verdict of another deployment on this ledger.
    let direct = world.direct().await;
    sqlx::query("UPDATE verdicts SET bucket = 'foreign'").execute(&direct).await.unwrap();
    direct.close().await;
    assert_eq!(world.settle(removal_from("foreign", "image", "2026-01-02T03:04:06Z")).await, Settled::Acknowledged);
    let stored = world.ledger.read_verdict(verdict_id("image")).await.unwrap().unwrap();
    assert_eq!((stored.verdict.image.bucket.as_str(), stored.deleted_at), ("foreign", None));
}

#[tokio::test]
async fn the_removal_of_an_object_marks_its_verdict_unless_the_object_is_newer() {
    let world = World::new().await;
    world.put("image", png(0, 0, 0));
    assert_eq!(world.settle(job("image")).await, Settled::Acknowledged);
    let deleted_at =
        async || world.ledger.read_verdict(verdict_id("image")).await.unwrap().and_then(|stored| stored.deleted_at);
    assert_eq!(world.verdict("image").await.unwrap().object_at, Some(MODIFIED));
    assert_eq!(world.settle(removal("image", "2026-01-02T03:04:04Z")).await, Settled::Acknowledged);
    assert_eq!(deleted_at().await, None, "the object was stored after the removal");
    assert_eq!(world.settle(removal("another", "2026-01-02T03:04:06Z")).await, Settled::Acknowledged);
    assert_eq!(deleted_at().await, None);
    let message = removal("image", "2026-01-02T03:04:06Z").with_reply_to("replies");
    assert_eq!(world.settle(message).await, Settled::Acknowledged);
    assert_eq!(deleted_at().await, Some(time::macros::datetime!(2026-01-02 03:04:06 UTC)));
    let replies = world.broker.published_to("");
    assert_eq!(replies[0].body["error"]["code"], "nothing_requested", "{replies:?}");
}

#[tokio::test]
async fn the_removal_of_an_object_waits_for_a_broken_ledger() {
    let world = World::new().await;
    world.put("image", png(0, 0, 0));
    assert_eq!(world.settle(job("image")).await, Settled::Acknowledged);
    let direct = world.direct().await;
    for statement in ["UPDATE", "INSERT"] {
        let trigger = format!(
            "CREATE TRIGGER refuses_{statement} BEFORE {statement} ON verdicts BEGIN SELECT RAISE(ABORT, 'refused'); END"
        );
        sqlx::query(sqlx::AssertSqlSafe(trigger)).execute(&direct).await.unwrap();
    }
    let mut settlement = world.deliver(removal("image", "2026-01-02T03:04:06Z"));
    let held = tokio::time::timeout(Duration::from_secs(1), settlement.recv()).await.is_err();
    assert!(held, "the message waits");
    sqlx::raw_sql("DROP TRIGGER refuses_UPDATE; DROP TRIGGER refuses_INSERT").execute(&direct).await.unwrap();
    direct.close().await;
    assert_eq!(settled(&mut settlement).await, Settled::Acknowledged);
    let stored = world.ledger.read_verdict(verdict_id("image")).await.unwrap().unwrap();
    assert!(stored.deleted_at.is_some());
    assert!(world.dead_letters().is_empty());
}

#[tokio::test]
async fn a_job_for_erased_content_ends_without_a_verdict_and_a_new_picture_is_screened() {
    let world = World::new().await;
    world.put("image", png(250, 0, 0));
    assert_eq!(world.settle(job("image")).await, Settled::Acknowledged);
    world.events(1).await;
    world.ledger.erase(&[verdict_id("image")]).await.unwrap();
    // The process that had it before left a record behind.
    assert!(world.ledger.begin_in_company(verdict_id("image"), Uuid::new_v4()).await.unwrap());
    let again = job("image").redelivered().with_reply_to("replies");
    assert_eq!(world.settle(again).await, Settled::Acknowledged);
    assert_eq!(world.verdict("image").await, None);
    let replies = world.broker.published_to("");
    assert_eq!(replies[0].body["error"]["code"], "erased", "{replies:?}");
    world.until("the record is gone", async || world.starts_alone("image").await.is_none()).await;
    assert!(world.dead_letters().is_empty());
    world.put("image", png(0, 0, 0));
    assert_eq!(world.settle(job("image")).await, Settled::Acknowledged);
    assert_eq!(world.verdict("image").await.unwrap().judgement.outcome, Outcome::Passed);
    assert_eq!(world.events(2).await.len(), 2);
}

#[tokio::test]
async fn only_configured_metadata_reaches_verdict_and_event_and_all_of_it_chooses_the_policy() {
    let world = World::with(|config| {
        let scoped = |name: &str, field: &str, value: &str| ScopedPolicyConfig {
            name: name.into(),
            when: WhenConfig {
                metadata: [(field.to_owned(), AnyOf(vec![value.into()]))].into(),
                ..WhenConfig::default()
            },
            inherit: false,
            damaged: None,
            rules: vec![RuleConfig::new("fake", "by AI", 0.5, 0.9)],
        };
        config.ledger.metadata = vec!["tenant".into()];
        config.trusted_metadata = true;
        config.policies = vec![scoped("partner", "tenant", "p"), scoped("other", "secret", "s")];
    })
    .await;
    for (key, metadata) in [
        ("kept", json!({"tenant": "p", "user": "anna"})),
        ("nothing-left", json!({"user": "anna"})),
        ("chosen", json!({"secret": "s"})),
    ] {
        world.put(key, png(0, 0, 0));
        let body = json!({"id": key, "image": format!("s3://uploads/{key}"), "metadata": metadata});
        assert_eq!(world.settle(message(body).with_reply_to("replies")).await, Settled::Acknowledged);
    }
    let events = world.events(3).await;
    let replies = world.broker.published_to("");
    for (key, metadata, policy) in [
        ("kept", json!({"tenant": "p"}), "partner"),
        ("nothing-left", Value::Null, "default"),
        ("chosen", Value::Null, "other"),
    ] {
        let verdict = world.verdict(key).await.unwrap();
        assert_eq!((json!(verdict.metadata), verdict.policy.name.as_str()), (metadata.clone(), policy), "{key}");
        let announced: Vec<_> =
            events.iter().chain(&replies).filter(|event| event.body["data"]["job_id"] == key).collect();
        assert_eq!(announced.len(), 2);
        assert!(announced.iter().all(|event| event.body["data"]["metadata"] == metadata), "{announced:?}");
    }
}
