//! The options of object stores: `objects`, `[[buckets]]` and `[storage]`.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use crate::config::ConfigError;
use crate::text_or_table::text_or_table;

/// One entry of the allow-list: a name or pattern, or a table with its own region and endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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

impl<'de> Deserialize<'de> for Bucket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_table(deserializer, Self::Name, Self::Table)
    }
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

/// The object store that `objects` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objects {
    /// S3; the endpoint is `storage.endpoint`, or what the `AWS_*` variables say.
    S3,
    /// A folder; its folders are the buckets.
    Folder(PathBuf),
}

impl StorageConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        ConfigError::refuse_zero(&[
            ("storage.downloads", self.downloads as u64),
            ("storage.max_object_bytes", self.max_object_bytes),
            ("storage.memory_bytes", self.memory_bytes),
            ("storage.deadline_ms", self.deadline_ms),
        ])?;
        check_endpoint("storage.endpoint", &self.endpoint)
    }
}

/// Refuses an endpoint that is no URL. An empty one is not set.
pub(crate) fn check_endpoint(option: &str, endpoint: &str) -> Result<(), ConfigError> {
    let is_http = |url: url::Url| ["http", "https"].contains(&url.scheme()) && url.has_host();
    if endpoint.is_empty() || url::Url::parse(endpoint).is_ok_and(is_http) {
        return Ok(());
    }
    Err(ConfigError::invalid(option, format!("\"{endpoint}\" is not a URL that begins with http:// or https://")))
}
