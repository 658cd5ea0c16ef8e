//! What one test works with: a prefix on the broker, a database, a bucket, the fixtures, and workers as processes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{Credentials, Region};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection};
use pixwarden::broker::{self, Message, Publisher, Topology};
use pixwarden::config::SecretUrl;
use pixwarden::job::Lane;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::process::{Child, Command};
use uuid::Uuid;

/// How old the broker's counts of a quorum queue may be. `tests/services/instances.py` sets half of it.
const QUEUE_COUNT_DELAY: Duration = Duration::from_millis(500);

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");

/// A variable that `tests/services/run` exports.
pub fn service(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set\n  hint: run `make test`, or tests/services/run -- COMMAND"))
}

/// Which instances of the services a lab uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Services {
    /// All tests use these at the same time. No test stops them.
    Shared,
    /// Tests of the group `stoppable` in `.config/nextest.toml` use these one at a time.
    Stoppable,
}

impl Services {
    /// A variable that both sets have, named without its prefix.
    fn variable(self, name: &str) -> String {
        match self {
            Self::Shared => service(&format!("TEST_{name}")),
            Self::Stoppable => service(&format!("TEST_STOPPABLE_{name}")),
        }
    }
}

pub struct Lab {
    pub prefix: String,
    pub topology: Topology,
    pub connection: Connection,
    pub channel: Channel,
    pub publisher: Publisher,
    pub db: PgPool,
    /// The broker; a test may put something in between.
    pub queue: String,
    pub ledger_url: String,
    pub s3: aws_sdk_s3::Client,
    pub bucket: String,
    pub folder: tempfile::TempDir,
    /// Lines of TOML added to every worker's configuration.
    pub extra: String,
    /// Flags added to every worker's command line.
    pub flags: Vec<String>,
    /// Variables added to every process of ours.
    pub environment: Vec<(&'static str, String)>,
    /// Where workers serve metrics and health.
    pub listen: &'static str,
    pub detectors: String,
    /// Where objects are, for Pixwarden; the fields around it are the S3 server's.
    pub objects: String,
    pub endpoint: String,
    pub region: String,
    services: Services,
    /// The queues go with the lab, because the broker spends time on each of them.
    queues: Arc<Queues>,
}

impl Lab {
    /// A lab whose worker has the detector `spread-nhwc`.
    pub async fn new() -> Self {
        Self::on(Services::Shared).await
    }

    /// A lab whose services the test may stop, restart and freeze with [`fault`]. Such a test belongs to the group
    /// `stoppable` in `.config/nextest.toml`.
    pub async fn with_stoppable_services() -> Self {
        let group = std::env::var("NEXTEST_TEST_GROUP").unwrap_or_default();
        assert_eq!(group, "stoppable", "name this test in the group `stoppable` of .config/nextest.toml");
        tokio::task::spawn_blocking(|| {
            for name in ["rabbitmq", "postgres", "s3"] {
                // A service that runs already is left as it is.
                control(&[format!("stoppable-{name}").as_str(), "start"]);
            }
        })
        .await
        .unwrap();
        Self::on(Services::Stoppable).await
    }

    async fn on(services: Services) -> Self {
        let name = format!("it-{}", Uuid::new_v4().simple());
        let amqp = SecretUrl::from(services.variable("AMQP_URL"));
        let connection = broker::connect(&amqp, "test").await.unwrap();
        let topology = Topology::new(&name, true);
        topology.declare(&connection).await.unwrap();
        let channel = connection.create_channel().await.unwrap();

        let admin = PgPoolOptions::new().connect(&services.variable("POSTGRES_URL")).await.unwrap();
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).execute(&admin).await.unwrap();
        let mut url: url::Url = services.variable("POSTGRES_URL").parse().unwrap();
        url.set_path(&name);
        let db = PgPoolOptions::new().max_connections(4).connect(url.as_str()).await.unwrap();

        let (endpoint, region) = (services.variable("S3_ENDPOINT"), service("TEST_S3_REGION"));
        let s3 = client(&endpoint, &region);
        if service("TEST_S3_SERVER") == "garage" {
            let bucket = name.clone();
            tokio::task::spawn_blocking(move || control(&["objects", "make-bucket", bucket.as_str()])).await.unwrap();
        } else {
            s3.create_bucket().bucket(&name).send().await.unwrap();
        }
        let detectors = format!("{:?}", fixtures().join("detectors/spread-nhwc"));
        let lab = Self {
            publisher: Publisher::new(amqp, "test", 64),
            bucket: name.clone(),
            queues: Arc::new(Queues { services, name: name.clone() }),
            prefix: name,
            topology,
            connection,
            channel,
            db,
            queue: services.variable("AMQP_URL"),
            ledger_url: url.to_string(),
            s3,
            folder: tempfile::tempdir().unwrap(),
            extra: String::new(),
            flags: Vec::new(),
            environment: Vec::new(),
            listen: "127.0.0.1:0",
            detectors,
            objects: "s3://".into(),
            endpoint,
            region,
            services,
        };
        lab.grant().await;
        lab.run(&["migrate"]).await.expect_ok();
        lab.grant().await;
        lab
    }

    /// Grants the roles of `deploy/postgres/roles.sql` their permissions in this lab's database.
    pub async fn grant(&self) {
        let roles = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/postgres/roles.sql")).unwrap();
        sqlx::raw_sql(AssertSqlSafe(roles)).execute(&self.db).await.unwrap();
    }

    /// The broker as one of the users of `deploy/rabbitmq/permissions.json`.
    pub fn queue_as(&self, user: &str) -> String {
        login(&self.queue, user, &self.services.variable("AMQP_PASSWORD"))
    }

    /// The ledger as one of the roles of `deploy/postgres/roles.sql`, if the ledger is in Postgres.
    pub fn ledger_as(&self, role: &str) -> String {
        if self.ledger_url.starts_with("sqlite:") {
            return self.ledger_url.clone();
        }
        login(&self.ledger_url, role, &self.services.variable("POSTGRES_PASSWORD"))
    }

    /// The configuration file of this lab's workers.
    pub fn config(&self) -> PathBuf {
        self.config_of("worker")
    }

    /// The configuration file of a command, with the users that docs/access.md names for it.
    pub fn config_of(&self, command: &str) -> PathBuf {
        let (user, role) = match command {
            "migrate" => ("nobody", "pixwarden_owner"),
            "show" | "export" | "compare" => ("nobody", "pixwarden_reader"),
            "enqueue" => ("pixwarden-publisher", "nobody"),
            "backfill" => ("pixwarden-publisher", "pixwarden_operator"),
            "rejudge" => ("pixwarden-publisher", "pixwarden_operator"),
            "prune" | "erase" | "hold" | "bank" | "webhook" => ("nobody", "pixwarden_operator"),
            "dead" => ("pixwarden-operator", "nobody"),
            _ => ("pixwarden-worker", "pixwarden_worker"),
        };
        let path = self.folder.path().join(format!("{command}.toml"));
        let text = format!(
            "queue = {:?}\nledger = {:?}\nobjects = {:?}\nprefix = {:?}\nbuckets = [{:?}]\ndetectors = [{}]\n\
             [metrics]\nlisten = {:?}\n[policy]\nlabel = \"by AI\"\n[storage]\nendpoint = {:?}\npath_style = true\n{}\n",
            self.queue_as(user),
            self.ledger_as(role),
            self.objects,
            self.prefix,
            self.bucket,
            self.detectors,
            self.listen,
            self.endpoint,
            self.extra
        );
        // The extra lines may continue the last table. A command that reads the file at the same time finds either the
        // old content or the new content.
        let fresh = self.folder.path().join(format!("{command}.{}.toml", uuid::Uuid::new_v4()));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, &path).unwrap();
        path
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pixwarden"));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("ORT_DYLIB_PATH", service("ORT_DYLIB_PATH"))
            .env("AWS_ACCESS_KEY_ID", service("TEST_S3_READ_ACCESS_KEY"))
            .env("AWS_SECRET_ACCESS_KEY", service("TEST_S3_READ_SECRET_KEY"))
            .env("AWS_REGION", &self.region)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            // TEST_WITH_DECODE_MODE=fast runs all tests in that mode. Other options work in the same way.
            .envs(
                std::env::vars().filter_map(|(name, value)| {
                    Some((format!("PIXWARDEN_{}", name.strip_prefix("TEST_WITH_")?), value))
                }),
            )
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            .kill_on_drop(true);
        command
    }

    /// Runs a command and waits until it ends.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command();
        command.arg("--config").arg(self.config_of(arguments[0])).args(arguments);
        Ended::of(command).await
    }

    /// Starts a worker. Its log is a file in the lab's folder and is shown when the test fails.
    pub fn worker(&self) -> Worker {
        self.worker_of(&self.config())
    }

    /// As [`Lab::worker`], with a configuration file that the test has written.
    pub fn worker_of(&self, config: &Path) -> Worker {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.process("worker.log", config, &[&["worker"], &flags[..]].concat())
    }

    /// Starts a command that runs until it is asked to end. Its log is a file in the lab's folder.
    pub fn process(&self, log: &str, config: &Path, arguments: &[&str]) -> Worker {
        let log = self.folder.path().join(log);
        let out = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = self.command();
        command
            .arg("--config")
            .arg(config)
            .args(["--log", "info,pixwarden=debug,lapin=warn,ort=warn"])
            .args(arguments)
            .stderr(Stdio::from(out))
            .stdout(Stdio::null());
        Worker { child: command.spawn().unwrap(), log }
    }

    /// Starts a worker and waits until it consumes.
    pub async fn started_worker(&self) -> Worker {
        let mut worker = self.worker();
        let since = Instant::now();
        loop {
            let consuming = broker::depth(&self.connection, &self.topology.lane(Lane::Live)).await.unwrap();
            if consuming.is_some_and(|(_, consumers)| consumers > 0) {
                return worker;
            }
            if let Some(status) = worker.child.try_wait().unwrap() {
                panic!("the worker ended with {status}:\n{}", worker.log());
            }
            assert!(since.elapsed() < Duration::from_secs(60), "the worker does not consume:\n{}", worker.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stores an object and returns its `ETag`.
    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> String {
        let put = self.s3.put_object().bucket(&self.bucket).key(key).body(bytes.into()).send().await.unwrap();
        put.e_tag().unwrap().trim_matches('"').to_owned()
    }

    pub async fn publish(&self, lane: Lane, body: impl AsRef<[u8]>, properties: BasicProperties) {
        let (exchange, payload) = (self.topology.jobs(), body.as_ref());
        self.publisher
            .publish(Message { exchange: &exchange, routing_key: lane.as_str(), payload, properties })
            .await
            .unwrap();
    }

    pub async fn job(&self, lane: Lane, body: Value) {
        self.publish(lane, body.to_string(), BasicProperties::default()).await;
    }

    /// Declares a queue that gets every event.
    pub async fn listen(&self) -> String {
        let queue = format!("listener-{}", self.prefix);
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap();
        let (name, exchange) = (queue.as_str().into(), self.topology.events().as_str().into());
        self.channel
            .queue_bind(name, exchange, "image.#".into(), QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
        queue
    }

    /// Takes all messages out of a queue: payloads with properties.
    pub async fn drain(&self, queue: &str) -> Vec<(Value, BasicProperties)> {
        let channel = self.connection.create_channel().await.unwrap();
        let mut messages = Vec::new();
        while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap() {
            let body = String::from_utf8_lossy(&message.delivery.data).into_owned();
            let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
            messages.push((body, message.delivery.properties));
        }
        messages
    }

    /// The next message of a queue.
    pub async fn next(&self, queue: &str) -> (Value, BasicProperties) {
        let channel = self.connection.create_channel().await.unwrap();
        let options = BasicConsumeOptions::default();
        let mut consumer =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.unwrap();
        let message = tokio::time::timeout(Duration::from_secs(60), consumer.next()).await;
        let message = message.expect("no message within a minute").unwrap().unwrap();
        message.acker.ack(BasicAckOptions::default()).await.unwrap();
        (serde_json::from_slice(&message.data).unwrap(), message.properties)
    }

    /// The number of ready messages in a queue.
    pub async fn waiting(&self, queue: &str) -> u32 {
        broker::depth(&self.connection, queue).await.unwrap().map_or(0, |(messages, _)| messages)
    }

    /// Waits until a queue has this number of ready messages. The broker puts the messages of a connection that has
    /// ended back a moment later.
    pub async fn until_waiting(&self, queue: &str, messages: u32) {
        let since = Instant::now();
        loop {
            let found = self.waiting(queue).await;
            if found == messages {
                return;
            }
            assert!(since.elapsed() < Duration::from_secs(10), "{found} messages instead of {messages} in {queue}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.db).await.unwrap()
    }

    /// Waits until a query counts at least this number of rows.
    pub async fn until(&self, query: &'static str, at_least: i64, worker: &Worker) {
        let since = Instant::now();
        loop {
            // The query fails while a test restarts the database.
            let found: i64 = sqlx::query_scalar(query).fetch_one(&self.db).await.unwrap_or(-1);
            if found >= at_least {
                return;
            }
            assert!(
                since.elapsed() < Duration::from_secs(300),
                "{found} instead of {at_least} after {:?}: {query}\n{}",
                since.elapsed(),
                worker.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the lanes and delay queues are empty and no message of them is unacknowledged.
    pub async fn until_settled(&self, worker: &Worker) {
        let (since, mut empty_since) = (Instant::now(), None);
        loop {
            let counts = self.queue_counts().await;
            let open: Vec<_> = counts
                .iter()
                .filter(|(name, ..)| name.contains(".jobs.") || name.contains(".delay."))
                .filter(|(_, ready, unacknowledged)| ready + unacknowledged > 0)
                .collect();
            if open.is_empty() {
                // A message that was published just before is counted after the delay only.
                if empty_since.get_or_insert_with(Instant::now).elapsed() > QUEUE_COUNT_DELAY {
                    return;
                }
            } else {
                empty_since = None;
            }
            assert!(since.elapsed() < Duration::from_secs(60), "not settled: {open:?}\n{}", worker.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Name, ready and unacknowledged messages of each queue of this lab, at most [`QUEUE_COUNT_DELAY`] old.
    pub async fn queue_counts(&self) -> Vec<(String, u64, u64)> {
        let queues = Arc::clone(&self.queues);
        tokio::task::spawn_blocking(move || queues.counts()).await.unwrap().unwrap()
    }

    /// Waits until every outbox row is published.
    pub async fn until_published(&self, worker: &Worker) {
        self.until("SELECT (count(*) = 0)::int::bigint FROM outbox WHERE published_at IS NULL", 1, worker).await;
    }

    pub async fn outcomes(&self) -> HashMap<String, String> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT job_id, outcome FROM verdicts").fetch_all(&self.db).await.unwrap();
        rows.into_iter().collect()
    }
}

/// The queues on a broker whose names contain a name. They are deleted with this value.
struct Queues {
    services: Services,
    name: String,
}

impl Queues {
    /// Name, ready and unacknowledged messages of each queue, from the broker's management API.
    fn counts(&self) -> Result<Vec<(String, u64, u64)>, ureq::Error> {
        let options = "disable_stats=true&enable_queue_totals=true&use_regex=true&page=1&page_size=500";
        let request = ureq::get(format!("{}?{options}&name={}", self.address(), self.name));
        let text = request.header("authorization", self.authorization()).call()?.body_mut().read_to_string()?;
        let listed: Value = serde_json::from_str(&text).unwrap();
        let queues = listed["items"].as_array().unwrap().iter();
        Ok(queues
            .map(|queue| {
                let count = |name: &str| queue[name].as_u64().unwrap_or_default();
                let name = queue["name"].as_str().unwrap().to_owned();
                (name, count("messages_ready"), count("messages_unacknowledged"))
            })
            .collect())
    }

    fn address(&self) -> String {
        format!("{}/api/queues/%2F", self.services.variable("AMQP_MANAGEMENT_URL"))
    }

    fn authorization(&self) -> String {
        self.services.variable("AMQP_MANAGEMENT_AUTHORIZATION")
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        // After a test that has failed the broker may be away, and the queues do no harm.
        for (name, ..) in self.counts().unwrap_or_default() {
            let request = ureq::delete(format!("{}/{name}", self.address()));
            drop(request.header("authorization", self.authorization()).call());
        }
    }
}

/// A URL with another user.
fn login(url: &str, user: &str, password: &str) -> String {
    let mut url: url::Url = url.parse().unwrap();
    url.set_username(user).unwrap();
    // The URL library does not encode a percent sign.
    url.set_password(Some(&password.replace('%', "%25"))).unwrap();
    url.to_string()
}

pub fn client(endpoint: &str, region: &str) -> aws_sdk_s3::Client {
    let credentials =
        Credentials::new(service("TEST_S3_ACCESS_KEY"), service("TEST_S3_SECRET_KEY"), None, None, "tests");
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
            aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring,
        ))
        .build_https();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
        .http_client(http)
        .endpoint_url(endpoint)
        .region(Region::new(region.to_owned()))
        .credentials_provider(credentials)
        .force_path_style(true)
        .request_checksum_calculation(aws_sdk_s3::config::RequestChecksumCalculation::WhenRequired)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// A worker's process.
pub struct Worker {
    pub child: Child,
    log: PathBuf,
}

impl Worker {
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    pub fn whole_log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether its log contains a text.
    pub fn log_has(&self, words: &str) -> bool {
        self.whole_log().contains(words)
    }

    /// The address at which it serves metrics and health. Waits until the log has it.
    pub async fn address(&self) -> String {
        let since = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            // Each start logs one such line; the last belongs to the last start.
            let said = lines.rfind(|line| line["message"] == "metrics and health are served");
            if let Some(line) = said {
                return line["address"].as_str().unwrap().to_owned();
            }
            assert!(since.elapsed() < Duration::from_secs(30), "the worker does not serve metrics:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Status and body of its response.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(self.address().await).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Waits until `/readyz` has a status and a text. Returns how long that took.
    pub async fn until_ready_says(&self, status: u16, words: &str) -> Duration {
        let since = Instant::now();
        loop {
            let (found, body) = self.get("/readyz").await;
            if found == status && body.contains(words) {
                return since.elapsed();
            }
            assert!(since.elapsed() < Duration::from_secs(60), "{found} {body}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends SIGKILL and waits for the end.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends SIGTERM.
    pub async fn ask_to_end(&self) {
        let pid = self.child.id().unwrap().to_string();
        Command::new("kill").arg(&pid).status().await.unwrap();
    }

    /// Sends SIGTERM, waits for the end and returns the exit status.
    pub async fn terminate(&mut self) -> std::process::ExitStatus {
        self.ask_to_end().await;
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("the worker does not end:\n{}", self.log())).unwrap()
    }

    /// The largest resident memory of the process so far.
    pub fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

/// A command that has ended.
pub struct Ended {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<std::process::Output> for Ended {
    fn from(output: std::process::Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    pub async fn of(mut command: Command) -> Self {
        let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await;
        output.expect("the command does not end").unwrap().into()
    }

    pub fn expect_ok(self) -> Self {
        assert_eq!(self.status, 0, "{}{}", self.stdout, self.stderr);
        self
    }
}

/// The reason in the headers of a dead letter.
pub fn reason(properties: &BasicProperties) -> String {
    let headers = properties.headers().clone().unwrap_or_default();
    match headers.inner().get("x-pixwarden-reason") {
        Some(lapin::types::AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    }
}

/// Runs `tests/services/control`.
fn control(arguments: &[impl AsRef<std::ffi::OsStr> + std::fmt::Debug]) {
    let output = std::process::Command::new(service("TEST_SERVICES")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Stops, restarts or freezes one of the services of [`Lab::with_stoppable_services`].
pub async fn fault(arguments: &'static [&'static str]) {
    let mut arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    arguments[0].insert_str(0, "stoppable-");
    tokio::task::spawn_blocking(move || control(&arguments)).await.unwrap();
}

/// Images, detectors and the verdicts of the reference implementation. Making them takes ten seconds, so they are kept
/// beside the build for as long as the reference implementation stays the same.
pub fn fixtures() -> PathBuf {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(parent).unwrap();
    let folder = parent.join(format!("fixtures-{}", reference_digest()));
    // One test makes them while the others wait.
    let lock = std::fs::File::create(parent.join("fixtures.lock")).unwrap();
    lock.lock().unwrap();
    if !folder.is_dir() {
        let making = tempfile::tempdir_in(parent).unwrap();
        let made = std::process::Command::new(service("TEST_PYTHON"))
            .args(["-m", "reference", "make"])
            .arg(making.path().join("made"))
            .env("PYTHONPATH", TESTS)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::rename(making.path().join("made"), &folder).unwrap();
    }
    folder
}

/// A digest of the code that makes the fixtures, and of the versions of the Python packages that it uses.
fn reference_digest() -> String {
    let code = std::fs::read_dir(Path::new(TESTS).join("reference")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = code.filter(|path| path.extension().is_some_and(|extension| extension == "py")).collect();
    files.push(Path::new(TESTS).join("requirements.txt"));
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        digest.update(std::fs::read(file).unwrap());
    }
    hex::encode(digest.finalize())
}

/// One fixture and its outcome by the reference implementation.
#[derive(Clone)]
pub struct Fixture {
    pub bytes: Vec<u8>,
    /// With the detector `spread-nhwc` and the thresholds 0.5 and 0.9.
    pub outcome: String,
}

/// The fixtures whose scores are not close to a threshold, without damaged files, of which only the outcome is known that
/// they do not have.
pub fn judged_fixtures() -> Vec<Fixture> {
    let folder = fixtures();
    let expected = std::fs::read_to_string(folder.join("expected.jsonl")).unwrap();
    expected
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["damaged"] == false)
        .filter(|line| !line["near_threshold"].as_array().unwrap().iter().any(|d| d == "spread-nhwc"))
        .map(|line| Fixture {
            bytes: std::fs::read(folder.join(line["file"].as_str().unwrap())).unwrap(),
            outcome: match line["undecodable"].as_bool().unwrap() {
                true => "undecodable".into(),
                false => line["outcomes"]["spread-nhwc"].as_str().unwrap().into(),
            },
        })
        .collect()
}

/// The bytes of an image that passes.
pub fn good_image() -> Vec<u8> {
    judged_fixtures().into_iter().find(|fixture| fixture.outcome == "passed").unwrap().bytes
}

/// Prints a figure that the test measured. `--no-capture` shows it.
pub fn figure(words: &str) {
    println!("figure: {words}");
}
