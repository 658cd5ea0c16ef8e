//! Configuration: defaults ← file ← `PIXWARDEN_*` variables ← flags. It is merged and checked once, and then only read.
//!
//! `pixwarden.example.toml` is the reference for every option and for what raising it costs; a test compares it with the
//! defaults. Each stage's options are in the file `options.rs` beside the stage; here they are gathered, and `layers` merges
//! the layers.

mod error;
mod layers;
mod origin;
mod value;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::job::event::{Destinations, Event};

pub use crate::detector::options::{DetectorEntry, DetectorTable};
pub use crate::http::options::{AwsKeyConfig, HttpConfig, KeyConfig, Scope};
pub use crate::ledger::options::LedgerConfig;
pub use crate::objects::options::{Bucket, BucketTable, Objects, StorageConfig};
pub use crate::policy::options::{AnyOf, PolicyConfig, RuleConfig, ScopedPolicyConfig, WhenConfig};
pub use crate::review::options::ReviewConfig;
pub use crate::screen::decode::options::{DecodeConfig, DecodeMode, Isolation};
pub use crate::screen::infer::options::{Device, InferenceConfig};
pub use crate::telemetry::options::{LogConfig, LogFormat, MetricsConfig, TracesConfig};
pub use crate::webhooks::options::{WebhookConfig, WebhookSecret};
pub use crate::worker::options::WorkerConfig;
pub use crate::worker::publish::options::{EventsConfig, OutboxConfig};
pub use error::ConfigError;
pub(crate) use layers::policies_of_file;
pub use layers::{FlagValue, Overlay, load};
pub use origin::{Origin, Origins};
pub(crate) use value::above_zero;

/// All options. Where a number may be 0, Pixwarden chooses the value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The broker, `amqp://` or `amqps://`.
    pub queue: SecretUrl,
    /// Where verdicts are kept, and what of the metadata.
    pub ledger: LedgerConfig,
    /// Where images are, `s3://` or `file:///folder`.
    pub objects: String,
    /// First part of the name of every exchange and queue.
    pub prefix: String,
    /// The buckets that jobs may name.
    pub buckets: Vec<Bucket>,
    /// The model packages.
    pub detectors: Vec<DetectorEntry>,
    /// Whether `when.metadata` may choose a policy: only where no sender could choose its rules by it.
    pub trusted_metadata: bool,
    /// The rules that turn facts into an outcome.
    pub policy: PolicyConfig,
    /// The rules for some of the jobs.
    pub policies: Vec<ScopedPolicyConfig>,
    /// How images are decoded.
    pub decode: DecodeConfig,
    /// How models run.
    pub inference: InferenceConfig,
    /// How objects are fetched.
    pub storage: StorageConfig,
    /// How jobs are consumed, retried and given up.
    pub worker: WorkerConfig,
    /// How images are screened over HTTP.
    pub http: HttpConfig,
    /// Which events are published.
    pub events: EventsConfig,
    /// How events are retried and kept.
    pub outbox: OutboxConfig,
    /// The HTTP endpoints that events are sent to.
    pub webhooks: Vec<WebhookConfig>,
    /// What people look at, and how long their decisions hold.
    pub review: ReviewConfig,
    /// Where metrics and health are served.
    pub metrics: MetricsConfig,
    /// Where traces go.
    pub traces: TracesConfig,
    /// What is logged.
    pub log: LogConfig,
    /// Where the values come from; no option.
    #[serde(skip)]
    pub origins: Origins,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            queue: SecretUrl::default(),
            ledger: LedgerConfig::default(),
            objects: "s3://".into(),
            prefix: "pixwarden".into(),
            buckets: Vec::new(),
            detectors: Vec::new(),
            trusted_metadata: false,
            policy: PolicyConfig::default(),
            policies: Vec::new(),
            decode: DecodeConfig::default(),
            inference: InferenceConfig::default(),
            storage: StorageConfig::default(),
            worker: WorkerConfig::default(),
            http: HttpConfig::default(),
            events: EventsConfig::default(),
            outbox: OutboxConfig::default(),
            webhooks: Vec::new(),
            review: ReviewConfig::default(),
            metrics: MetricsConfig::default(),
            traces: TracesConfig::default(),
            log: LogConfig::default(),
            origins: Origins::default(),
        }
    }
}

impl Config {
    /// Checks ranges and names that the types do not express.
    fn check(&self) -> Result<(), ConfigError> {
        if self.prefix.is_empty() || self.prefix.len() > 100 || !self.prefix.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ConfigError::invalid("prefix", "must be 1 to 100 printable ASCII characters without spaces"));
        }
        if let Some(index) = self.buckets.iter().position(|bucket| bucket.pattern().is_empty()) {
            return Err(ConfigError::invalid(&format!("buckets[{index}]"), "the entry has no name"));
        }
        if let Some(index) = self.detectors.iter().position(|detector| detector.path().is_empty()) {
            return Err(ConfigError::invalid(&format!("detectors[{index}]"), "the entry has no path"));
        }
        // A command that does not use a service does not need its URL, but a URL that is there must be valid.
        if !self.queue.is_empty() {
            self.queue()?;
        }
        if !self.ledger.url.is_empty() {
            self.ledger()?;
        }
        self.check_kept_metadata()?;
        self.objects()?;
        self.decode.check()?;
        self.inference.check()?;
        self.storage.check()?;
        for (index, bucket) in self.buckets.iter().enumerate() {
            if let Bucket::Table(table) = bucket {
                crate::objects::options::check_endpoint(&format!("buckets[{index}].endpoint"), &table.endpoint)?;
            }
        }
        self.http.check()?;
        self.events.check()?;
        self.outbox.check()?;
        crate::webhooks::options::endpoints(&self.webhooks)?;
        self.review.check()?;
        self.traces.check()
    }

    /// A later `rejudge` must choose the same policy as the worker, from what the ledger has kept.
    fn check_kept_metadata(&self) -> Result<(), ConfigError> {
        if self.ledger.metadata.iter().any(String::is_empty) {
            return Err(ConfigError::invalid("ledger.metadata", "a field without a name"));
        }
        for (index, policy) in self.policies.iter().enumerate() {
            if let Some(field) = policy.when.metadata.keys().find(|field| !self.ledger.keeps(field)) {
                return Err(ConfigError::Invalid {
                    option: "ledger.metadata".into(),
                    what: format!(
                        "the field \"{field}\" is not kept, and `policies[{index}].when.metadata` needs it\n  hint: add \"{field}\" to `ledger.metadata`; without it `rejudge` would choose another policy than the worker"
                    ),
                });
            }
        }
        Ok(())
    }

    /// An event with the destinations that take its routing key; `None` where there is none.
    #[must_use]
    pub fn addressed(&self, event: Event) -> Option<Event> {
        let is_published = self.events.publish.contains(&event.routing_key);
        let takers = self.webhooks.iter().filter(|webhook| webhook.events.contains(&event.routing_key));
        let webhooks: Vec<String> = takers.map(WebhookConfig::name).collect();
        let has_destination = is_published || !webhooks.is_empty();
        has_destination.then_some(Event { destinations: Destinations { is_published, webhooks }, ..event })
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
        let url = self.ledger.url.required("ledger", &["postgres://", "postgresql://", "sqlite://"])?;
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

    /// The URL without its password, with this port and this path where it has none.
    #[must_use]
    pub(crate) fn with_defaults(&self, port: u16, path: &str) -> String {
        let Ok(mut url) = url::Url::parse(&self.0) else { return self.to_string() };
        // A URL without a host takes no port, and stays as it is.
        let has_host = url.host_str().is_some_and(|host| !host.is_empty());
        if has_host && url.port().is_none() && url.set_port(Some(port)).is_err() {
            return self.to_string();
        }
        if ["", "/"].contains(&url.path()) {
            url.set_path(path);
        }
        Self(url.into()).to_string()
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
