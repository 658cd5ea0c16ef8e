//! Configuration: defaults, then the file, then `PIXWARDEN_*`, then flags; resolved once, checked, then only read.
//!
//! `pixwarden.example.toml` is the reference for every option and what raising it costs; a test keeps the two equal.
//! How the layers are merged is in `layers`.

mod layers;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use layers::{ConfigError, Overlay, load};

/// Everything that can be configured. Where a number may be 0, 0 means that Pixwarden chooses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The broker, `amqp://` or `amqps://`.
    pub queue: SecretUrl,
    /// Where verdicts are kept, `postgres://` or `sqlite://`.
    pub ledger: SecretUrl,
    /// Where images are, `s3://` or `file:///folder`.
    pub objects: String,
    /// First part of every exchange's and queue's name.
    pub prefix: String,
    /// The allow-list.
    pub buckets: Vec<Bucket>,
    /// The model packages.
    pub detectors: Vec<DetectorEntry>,
    /// Scores → outcome.
    pub policy: PolicyConfig,
    /// Bytes → pixels.
    pub decode: DecodeConfig,
    /// Pixels → scores.
    pub inference: InferenceConfig,
    /// How objects are fetched.
    pub storage: StorageConfig,
    /// How jobs are taken and given up.
    pub worker: WorkerConfig,
    /// Which outcomes are announced.
    pub events: EventsConfig,
    /// How announcements are retried and kept.
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

/// One entry of the allow-list: a name or pattern, or a table with its own place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bucket {
    /// A name; `*` stands for any run of characters.
    Name(String),
    /// A name with its own region or endpoint.
    Table(BucketTable),
}

/// See [`Bucket::Table`]. Empty means as for all buckets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BucketTable {
    /// A name or pattern.
    pub name: String,
    /// The bucket's region.
    pub region: String,
    /// The bucket's endpoint.
    pub endpoint: String,
    /// Whether the endpoint wants `host/bucket/key`.
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
    /// The folder. A single one without any rule gets the default rule.
    Path(String),
    /// The folder with a name, a pinned digest or the shadow mark.
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
    /// Scored and recorded, never judged.
    pub shadow: bool,
}

/// `[policy]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Recorded with every verdict.
    pub name: String,
    /// The default rule's label; empty: found by its usual names.
    pub label: String,
    /// The default rule's threshold for review.
    pub review_at: f32,
    /// The default rule's threshold for flagging.
    pub flag_at: f32,
    /// The rules; any rule here replaces the default one.
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
    /// From this probability on, a person should look.
    pub review_at: f32,
    /// From this probability on, the image is flagged.
    pub flag_at: f32,
}

/// Where images are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In confined processes of their own, one a decoder thread.
    Process,
    /// On threads of this process.
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
    /// Decoder threads; 0: one a core.
    pub threads: usize,
    /// Whether they decode themselves or each has a process that does.
    pub isolation: Isolation,
    /// Processor time that one image may take in a process. By the clock it may take three times as long, the wait for
    /// memory not counted.
    pub deadline_ms: u64,
    /// The program that is such a process, called with the argument `decoder`; empty: this one.
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
    /// A GPU where there is one, and the log says which it took.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU, or no start.
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
    /// Images a run at the most; 0: the smallest that is nearly as fast an image as its double, found in warm-up.
    pub max_batch: usize,
    /// On the CPU, the longest a run may take; warm-up lowers the batch until it fits.
    pub max_run_ms: u64,
    /// Threads of ONNX Runtime on the CPU; 0: one a core.
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
    /// Whether the endpoint wants `host/bucket/key`.
    pub path_style: bool,
    /// Downloads at a time.
    pub downloads: usize,
    /// A larger object is `rejected`.
    pub max_object_bytes: u64,
    /// Compressed bytes held at a time; further downloads wait.
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
    /// Deliveries held a lane; 0: 2 × largest batch × detectors, decoders and downloads, and 64 that are being
    /// committed.
    pub prefetch: u16,
    /// Failed attempts after which a job is given up.
    pub attempts: u32,
    /// Deaths of the process while it screened one job alone, after which that job is given up.
    pub deaths: u32,
    /// Whether equal content under equal detectors takes over earlier scores.
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
    /// How often left events are looked for.
    pub sweep_ms: u64,
    /// Events whose confirmation is awaited at a time.
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
    /// Where a worker answers: `host:port`, `off`, or empty for the first free port from 9464 to 9473 on loopback.
    pub listen: String,
}

/// `[traces]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// A collector's OTLP/HTTP base; empty: the standard `OTEL_*` variables decide.
    pub endpoint: String,
    /// Which part of the traces that begin here is kept; a sender's decision is the sender's.
    pub sample: f64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { endpoint: String::new(), sample: 1.0 }
    }
}

/// How log lines look.
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
    /// How lines look.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info,lapin=off,ort=error".into(), format: LogFormat::Auto }
    }
}

impl Config {
    /// Checks what one option alone cannot show.
    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |option: &str, what: String| Err(ConfigError::Invalid { option: option.into(), what });
        if self.prefix.is_empty() || self.prefix.len() > 100 || !self.prefix.bytes().all(|b| b.is_ascii_graphic()) {
            return wrong("prefix", "it must be 1 to 100 printable ASCII characters without spaces".into());
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
            return wrong(option, "it must be at least 1".into());
        }
        let known: Vec<_> = crate::job::Outcome::ALL.map(|outcome| outcome.routing_key()).to_vec();
        if let Some(key) = self.events.publish.iter().find(|key| !known.contains(&key.as_str())) {
            return wrong(
                "events.publish",
                format!("\"{key}\" is none of image.flagged, image.review, image.failed, image.passed"),
            );
        }
        if !(0.0..=1.0).contains(&self.traces.sample) {
            return wrong("traces.sample", format!("{} is not from 0.0 (none) to 1.0 (all)", self.traces.sample));
        }
        let endpoint = &self.traces.endpoint;
        if !endpoint.is_empty() && !url::Url::parse(endpoint).is_ok_and(|url| ["http", "https"].contains(&url.scheme()))
        {
            return wrong("traces.endpoint", "it must be a URL such as http://localhost:4318".into());
        }
        if !self.decode.helper.is_empty() && !Path::new(&self.decode.helper).is_absolute() {
            return wrong("decode.helper", format!("\"{}\" is not a whole path, beginning with /", self.decode.helper));
        }
        if self.buckets.iter().any(|bucket| bucket.pattern().is_empty()) {
            return wrong("buckets", "an entry has no name".into());
        }
        if self.detectors.iter().any(|d| matches!(d, DetectorEntry::Path(path) | DetectorEntry::Table(DetectorTable { path, .. }) if path.is_empty())) {
            return wrong("detectors", "an entry has no path".into());
        }
        Ok(())
    }

    /// The broker's URL.
    ///
    /// # Errors
    /// When none is configured or it is not an AMQP URL.
    pub fn queue(&self) -> Result<&SecretUrl, ConfigError> {
        self.queue.required("queue", &["amqp://", "amqps://"])
    }

    /// The ledger's URL.
    ///
    /// # Errors
    /// When none is configured or it names no database that is supported.
    pub fn ledger(&self) -> Result<&SecretUrl, ConfigError> {
        let url = self.ledger.required("ledger", &["postgres://", "postgresql://", "sqlite://"])?;
        if url.file().is_some_and(|path| path.as_os_str().is_empty() || path == Path::new(":memory:")) {
            return Err(ConfigError::Invalid {
                option: "ledger".into(),
                what: format!(
                    "{url} names no file, and what is not kept is no ledger\n  hint: sqlite://verdicts.db is a file here, sqlite:///var/lib/pixwarden.db one with its whole path"
                ),
            });
        }
        Ok(url)
    }

    /// Where objects are.
    ///
    /// # Errors
    /// When the URL names no kind of store that is supported.
    pub fn objects(&self) -> Result<Objects, ConfigError> {
        if self.objects == "s3://" {
            return Ok(Objects::S3);
        }
        let folder = url::Url::parse(&self.objects).ok().filter(|url| url.scheme() == "file");
        folder.and_then(|url| url.to_file_path().ok()).map(Objects::Folder).ok_or_else(|| ConfigError::Invalid {
            option: "objects".into(),
            what: format!(
                "\"{}\" is neither \"s3://\" nor \"file:///folder\" with the whole path of a folder\n  hint: buckets are named by --bucket or `buckets`, an endpoint by `storage.endpoint` or AWS_ENDPOINT_URL_S3",
                self.objects
            ),
        })
    }
}

/// Where objects are, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objects {
    /// S3; the endpoint is `storage.endpoint`, or what the `AWS_*` variables say.
    S3,
    /// A folder whose folders are the buckets.
    Folder(PathBuf),
}

/// A URL that may hold a password. It never prints it.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// The whole URL, for the one place that connects.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether none is configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The file it names, where it names one; that has no password, and may have any name.
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
            let what = "an `@` comes after the host\n  hint: percent-encode it there and in the password: / is %2F, ? is %3F, # is %23, @ is %40, % is %25";
            return Err(ConfigError::Invalid { option: option.into(), what: what.into() });
        }
        Ok(self)
    }
}

/// Whether what looks like a port, a path, a query or a fragment may be a password with a `/`, `?` or `#` in it: an `@`
/// follows.
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
            // Not a URL: it may be anything, also a password in the wrong place.
            Err(_) => f.write_str("(not a URL)"),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Only defaults are ever serialised; a real URL comes out without its password.
impl Serialize for SecretUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() { serializer.serialize_str("") } else { serializer.collect_str(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
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
