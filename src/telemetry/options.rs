//! The options of metrics, traces and logs: `[metrics]`, `[traces]` and `[log]`.

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

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
    /// The format of log lines.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info,lapin=off,ort=error".into(), format: LogFormat::Auto }
    }
}

impl TracesConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.sample) {
            let what = format!("{} is not between 0.0 (none) and 1.0 (all)", self.sample);
            return Err(ConfigError::invalid("traces.sample", what));
        }
        let is_http = |url: url::Url| ["http", "https"].contains(&url.scheme());
        if !self.endpoint.is_empty() && !url::Url::parse(&self.endpoint).is_ok_and(is_http) {
            return Err(ConfigError::invalid("traces.endpoint", "must be a URL such as http://localhost:4318"));
        }
        Ok(())
    }
}
