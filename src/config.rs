//! Configuration: defaults ← file ← `PIXWARDEN_*` variables ← flags. It is merged and checked once, and then only read.
//!
//! `pixwarden.example.toml` is the reference for every option and for what raising it costs; a test compares it with the
//! defaults in here. `layers` merges the layers.

mod layers;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use layers::{ConfigError, Overlay, load};

/// All options. Where a number may be 0, Pixwarden chooses the value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The broker, `amqp://` or `amqps://`.
    pub queue: SecretUrl,
    /// Where verdicts are kept, `postgres://` or `sqlite://`.
    pub ledger: SecretUrl,
    /// Where images are, `s3://` or `file:///folder`.
    pub objects: String,
    /// First part of the name of every exchange and queue.
    pub prefix: String,
    /// The buckets that jobs may name.
    pub buckets: Vec<Bucket>,
    /// The model packages.
    pub detectors: Vec<DetectorEntry>,
    /// The rules that turn scores into an outcome.
    pub policy: PolicyConfig,
    /// How images are decoded.
    pub decode: DecodeConfig,
    /// How models run.
    pub inference: InferenceConfig,
    /// How objects are fetched.
    pub storage: StorageConfig,
    /// How jobs are consumed, retried and given up.
    pub worker: WorkerConfig,
    /// Which events are published.
    pub events: EventsConfig,
    /// How events are retried and kept.
    pub outbox: OutboxConfig,
    /// Where metrics and health are served.
    pub metrics: MetricsConfig,
    /// Where traces go.
    pub traces: TracesConfig,
    /// What is logged.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            queue: SecretUrl::default(),
            ledger: SecretUrl::default(),
            objects: "s3://".into(),
            prefix: "pixwarden".into(),
            buckets: Vec::new(),
            detectors: Vec::new(),
            policy: PolicyConfig::default(),
            decode: DecodeConfig::default(),
            inference: InferenceConfig::default(),
            storage: StorageConfig::default(),
            worker: WorkerConfig::default(),
            events: EventsConfig::default(),
            outbox: OutboxConfig::default(),
            metrics: MetricsConfig::default(),
            traces: TracesConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// One entry of the allow-list: a name or pattern, or a table with its own region and endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bucket {
    /// A name or pattern; `*` stands for any characters.
    Name(String),
    /// A name or pattern with its own region or endpoint.
    Table(BucketTable),
}

/// See [`Bucket::Table`]. An empty value means the value for all buckets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BucketTable {
    /// A name or pattern.
    pub name: String,
    /// The bucket's region.
    pub region: String,
    /// The bucket's endpoint.
    pub endpoint: String,
    /// Whether the endpoint needs addresses of the form `host/bucket/key`.
    pub path_style: bool,
}

impl Bucket {
    /// The name or pattern.
    #[must_use]
    pub fn pattern(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Table(table) => &table.name,
        }
    }
}

/// One model package: a folder, or a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DetectorEntry {
    /// The folder. A single detector without a rule gets the default rule.
    Path(String),
    /// The folder with a name, a pinned model file or the shadow mark.
    Table(DetectorTable),
}

/// See [`DetectorEntry::Table`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectorTable {
    /// Empty: the folder's name.
    pub name: String,
    /// The folder.
    pub path: String,
    /// The model file's SHA-256; empty: not pinned.
    pub sha256: String,
    /// The detector's scores are recorded, but not judged.
    pub shadow: bool,
}

/// `[policy]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// The policy's name, recorded with every verdict.
    pub name: String,
    /// The default rule's label; empty: found by its usual names.
    pub label: String,
    /// The default rule's threshold for review.
    pub review_at: f32,
    /// The default rule's threshold for flagging.
    pub flag_at: f32,
    /// The rules; any rule replaces the default rule.
    pub rules: Vec<RuleConfig>,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { name: "default".into(), label: String::new(), review_at: 0.5, flag_at: 0.9, rules: Vec::new() }
    }
}

/// `[[policy.rules]]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// A configured detector.
    pub detector: String,
    /// One of its labels.
    pub label: String,
    /// From this probability on, the image goes to review.
    pub review_at: f32,
    /// From this probability on, the image is flagged.
    pub flag_at: f32,
}

/// Where images are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In confined decoder processes, one per decoder thread.
    Process,
    /// On threads of the worker's process.
    Thread,
}

/// How much of an image is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecodeMode {
    /// Every pixel.
    Exact,
    /// A large JPEG at a half, a quarter or an eighth of its size.
    Fast,
}

/// `[decode]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeConfig {
    /// How much of an image is decoded.
    pub mode: DecodeMode,
    /// Decoder threads; 0: one per core.
    pub threads: usize,
    /// Whether the threads decode, or a process per thread.
    pub isolation: Isolation,
    /// Processor time that one image may take in a decoder process. The elapsed time may be three times as long, without
    /// the wait for memory.
    pub deadline_ms: u64,
    /// The decoder process's program, called with the argument `decoder`; empty: this one.
    pub helper: String,
    /// An image wider than this is not decoded.
    pub max_width: u32,
    /// An image higher than this is not decoded.
    pub max_height: u32,
    /// An image of more pixels than this is not decoded.
    pub max_pixels: u64,
    /// An image whose decoding needs more memory than this is not decoded.
    pub max_decoded_bytes: u64,
    /// Memory for all images being decoded; further ones wait.
    pub memory_bytes: u64,
    /// Frames of an animated image that are screened.
    pub max_frames: u32,
    /// An animation of more pixels than this, over all its frames, is not decoded.
    pub max_animation_pixels: u64,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        Self {
            mode: DecodeMode::Exact,
            threads: 0,
            isolation: Isolation::Process,
            deadline_ms: 10_000,
            helper: String::new(),
            max_width: 16_384,
            max_height: 16_384,
            max_pixels: 100_000_000,
            max_decoded_bytes: 512 << 20,
            memory_bytes: 256 << 20,
            max_frames: 4,
            max_animation_pixels: 500_000_000,
        }
    }
}

/// Where sessions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A GPU where there is one, else the CPU; the choice is logged.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU; without one the start fails.
    Cuda,
}

/// `[inference]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InferenceConfig {
    /// Where sessions run.
    pub device: Device,
    /// ONNX Runtime's shared library; empty: `ORT_DYLIB_PATH`, then beside the executable, then the system's.
    pub runtime: String,
    /// Maximum images per run; 0: the smallest batch that is nearly as fast per image as twice its size, measured in
    /// warm-up.
    pub max_batch: usize,
    /// On the CPU, the longest a run may take; warm-up lowers the batch until it fits.
    pub max_run_ms: u64,
    /// Threads of ONNX Runtime on the CPU; 0: one per core.
    pub threads: usize,
    /// GPU memory for ONNX Runtime; 0: no limit.
    pub gpu_memory_bytes: usize,
}

impl Default for InferenceConfig {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            runtime: String::new(),
            max_batch: 0,
            max_run_ms: 500,
            threads: 0,
            gpu_memory_bytes: 0,
        }
    }
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Empty: the standard `AWS_*` variables and profiles decide.
    pub endpoint: String,
    /// Empty: the standard `AWS_*` variables and profiles decide.
    pub region: String,
    /// Whether the endpoint needs addresses of the form `host/bucket/key`.
    pub path_style: bool,
    /// Concurrent downloads.
    pub downloads: usize,
    /// A larger object is `rejected`.
    pub max_object_bytes: u64,
    /// Compressed bytes in memory; further downloads wait.
    pub memory_bytes: u64,
    /// Longest wait for a connection.
    pub connect_timeout_ms: u64,
    /// Longest a whole download may take.
    pub deadline_ms: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            region: String::new(),
            path_style: false,
            downloads: 16,
            max_object_bytes: 50 << 20,
            memory_bytes: 128 << 20,
            connect_timeout_ms: 3_000,
            deadline_ms: 30_000,
        }
    }
}

/// `[worker]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// Deliveries per lane; 0: 2 × largest batch × detectors + decoders + downloads + 64 for those being committed.
    pub prefetch: u16,
    /// Failed attempts after which a job is given up.
    pub attempts: u32,
    /// Deaths of the process, while it screened a job in quarantine, after which the job is given up.
    pub deaths: u32,
    /// Whether scores are reused for equal content and detectors.
    pub reuse_scores: bool,
    /// Longest a delivery is held while a dependency is broken, before it goes back to the queue.
    pub hold_ms: u64,
    /// Longest the worker drains after SIGTERM.
    pub drain_ms: u64,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self { prefetch: 0, attempts: 5, deaths: 3, reuse_scores: true, hold_ms: 60_000, drain_ms: 30_000 }
    }
}

/// `[events]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// The routing keys that are sent.
    pub publish: Vec<String>,
    /// Whether the queue `PREFIX.flagged` is declared and bound to flagged and review.
    pub default_queue: bool,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            publish: vec!["image.flagged".into(), "image.review".into(), "image.failed".into()],
            default_queue: true,
        }
    }
}

/// `[outbox]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxConfig {
    /// Days a published event is kept.
    pub keep_days: u32,
    /// How often unconfirmed events are published again.
    pub sweep_ms: u64,
    /// Messages that await their confirmation at the same time.
    pub in_flight: usize,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self { keep_days: 7, sweep_ms: 5_000, in_flight: 64 }
    }
}

/// `[metrics]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where a worker serves HTTP: `host:port`, `off`, or empty for the first free port from 9464 to 9473 on loopback.
    pub listen: String,
}

/// `[traces]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// A collector's OTLP/HTTP base; empty: the standard `OTEL_*` variables decide.
    pub endpoint: String,
    /// The share of traces to keep, for traces that begin here; for other traces the sender decides.
    pub sample: f64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { endpoint: String::new(), sample: 1.0 }
    }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A `tracing` filter, such as `info` or `pixwarden=debug`.
    pub filter: String,
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info,lapin=off,ort=error".into(), format: LogFormat::Auto }
    }
}

impl Config {
    /// Checks ranges and names that the types do not express.
    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |option: &str, what: String| Err(ConfigError::Invalid { option: option.into(), what });
        if self.prefix.is_empty() || self.prefix.len() > 100 || !self.prefix.bytes().all(|b| b.is_ascii_graphic()) {
            return invalid("prefix", "must be 1 to 100 printable ASCII characters without spaces".into());
        }
        let at_least_one: [(&str, u64); 11] = [
            ("inference.max_run_ms", self.inference.max_run_ms),
            ("storage.downloads", self.storage.downloads as u64),
            ("storage.max_object_bytes", self.storage.max_object_bytes),
            ("storage.memory_bytes", self.storage.memory_bytes),
            ("storage.deadline_ms", self.storage.deadline_ms),
            ("decode.deadline_ms", self.decode.deadline_ms),
            ("decode.memory_bytes", self.decode.memory_bytes),
            ("decode.max_frames", u64::from(self.decode.max_frames)),
            ("worker.attempts", u64::from(self.worker.attempts)),
            ("worker.deaths", u64::from(self.worker.deaths)),
            ("outbox.in_flight", self.outbox.in_flight as u64),
        ];
        if let Some((option, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return invalid(option, "must be at least 1".into());
        }
        let known: Vec<_> = crate::job::Outcome::ALL.map(|outcome| outcome.routing_key()).to_vec();
        if let Some(key) = self.events.publish.iter().find(|key| !known.contains(&key.as_str())) {
            return invalid(
                "events.publish",
                format!("\"{key}\" is not one of image.flagged, image.review, image.failed, image.passed"),
            );
        }
        if !(0.0..=1.0).contains(&self.traces.sample) {
            return invalid("traces.sample", format!("{} is not between 0.0 (none) and 1.0 (all)", self.traces.sample));
        }
        let endpoint = &self.traces.endpoint;
        if !endpoint.is_empty() && !url::Url::parse(endpoint).is_ok_and(|url| ["http", "https"].contains(&url.scheme()))
        {
            return invalid("traces.endpoint", "must be a URL such as http://localhost:4318".into());
        }
        if !self.decode.helper.is_empty() && !Path::new(&self.decode.helper).is_absolute() {
            return invalid("decode.helper", format!("\"{}\" is not an absolute path", self.decode.helper));
        }
        if self.buckets.iter().any(|bucket| bucket.pattern().is_empty()) {
            return invalid("buckets", "an entry has no name".into());
        }
        if self.detectors.iter().any(|d| matches!(d, DetectorEntry::Path(path) | DetectorEntry::Table(DetectorTable { path, .. }) if path.is_empty())) {
            return invalid("detectors", "an entry has no path".into());
        }
        Ok(())
    }

    /// The broker's URL.
    ///
    /// # Errors
    /// When none is configured, or it is not an AMQP URL.
    pub fn queue(&self) -> Result<&SecretUrl, ConfigError> {
        self.queue.required("queue", &["amqp://", "amqps://"])
    }

    /// The ledger's URL.
    ///
    /// # Errors
    /// When none is configured, or the database is not supported.
    pub fn ledger(&self) -> Result<&SecretUrl, ConfigError> {
        let url = self.ledger.required("ledger", &["postgres://", "postgresql://", "sqlite://"])?;
        if url.file().is_some_and(|path| path.as_os_str().is_empty() || path == Path::new(":memory:")) {
            return Err(ConfigError::Invalid {
                option: "ledger".into(),
                what: format!(
                    "{url} names no file\n  hint: sqlite://verdicts.db is a file in the working directory, sqlite:///var/lib/pixwarden.db has an absolute path"
                ),
            });
        }
        Ok(url)
    }

    /// Where objects are.
    ///
    /// # Errors
    /// When the kind of store is not supported.
    pub fn objects(&self) -> Result<Objects, ConfigError> {
        if self.objects == "s3://" {
            return Ok(Objects::S3);
        }
        let folder = url::Url::parse(&self.objects).ok().filter(|url| url.scheme() == "file");
        folder.and_then(|url| url.to_file_path().ok()).map(Objects::Folder).ok_or_else(|| ConfigError::Invalid {
            option: "objects".into(),
            what: format!(
                "\"{}\" is neither \"s3://\" nor \"file:///folder\" with an absolute path\n  hint: buckets are named by --bucket or `buckets`, an endpoint by `storage.endpoint` or AWS_ENDPOINT_URL_S3",
                self.objects
            ),
        })
    }
}

/// The object store that `objects` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objects {
    /// S3; the endpoint is `storage.endpoint`, or what the `AWS_*` variables say.
    S3,
    /// A folder; its folders are the buckets.
    Folder(PathBuf),
}

/// A URL that may contain a password. `Display` and `Debug` never print the password.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// The URL with its password, only for connecting.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether none is configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The file of a `sqlite://` URL. Such a URL has no password, and the file may have any name.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.0.strip_prefix("sqlite://").map(Path::new)
    }

    fn required(&self, option: &str, schemes: &[&str]) -> Result<&Self, ConfigError> {
        if self.0.is_empty() {
            let example = schemes[0];
            return Err(ConfigError::Missing { option: option.into(), example: format!("{example}…") });
        }
        let is_url = self.file().is_some() || url::Url::parse(&self.0).is_ok();
        if !schemes.iter().any(|scheme| self.0.starts_with(scheme)) || !is_url {
            let what = format!("{self} is not a URL that begins with {}", schemes.join(" or "));
            return Err(ConfigError::Invalid { option: option.into(), what });
        }
        if self.file().is_none() && url::Url::parse(&self.0).is_ok_and(|url| misreads_password(&url)) {
            let what = "there is an `@` after the host\n  hint: percent-encode these characters in the password: / as %2F, ? as %3F, # as %23, @ as %40, % as %25";
            return Err(ConfigError::Invalid { option: option.into(), what: what.into() });
        }
        Ok(self)
    }
}

/// Whether a part behind the host may belong to a password with a `/`, `?` or `#` in it: that part contains an `@`.
fn misreads_password(url: &url::Url) -> bool {
    [Some(url.path()), url.query(), url.fragment()].into_iter().flatten().any(|part| part.contains('@'))
}

impl From<String> for SecretUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file().is_some() {
            return f.write_str(&self.0);
        }
        match url::Url::parse(&self.0) {
            Ok(mut url) => {
                if url.password().is_some() && url.set_password(Some("***")).is_err() {
                    return f.write_str("(a URL that cannot be shown)");
                }
                if misreads_password(&url) {
                    return f.write_str("(a URL whose password has characters that must be percent-encoded)");
                }
                url.set_query(None);
                url.set_fragment(None);
                write!(f, "{url}")
            }
            // The text may be a password in the wrong place.
            Err(_) => f.write_str("(not a URL)"),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Serialises without the password. Only defaults are ever serialised.
impl Serialize for SecretUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() { serializer.serialize_str("") } else { serializer.collect_str(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        for url in [
            "amqp://user:s3cret@host:5672/%2f",
            "postgres://u:s3cret@h/db?password=s3cret",
            "s3cret",
            "amqp://u:12/s3cret@h",
            "amqp://u:12#s3cret@h",
            "amqp://u:1?s3cret@h",
            "amqp://u:p@s3cret@h",
        ] {
            let url = SecretUrl::from(url.to_owned());
            let shown = format!("{url} {url:?} {}", serde_json::to_string(&url).unwrap());
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }
}
