//! The options of publishing: `[events]` and `[outbox]`.

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::job::event::ROUTING_KEYS;

/// `[events]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// The routing keys that are sent.
    pub publish: Vec<String>,
    /// Whether the queues `PREFIX.flagged`, `PREFIX.unscreened` and `PREFIX.updates` are declared and bound.
    pub default_queue: bool,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            // All but `image.passed`: most images pass, and that requires no action.
            publish: ROUTING_KEYS[..5].iter().map(|key| (*key).to_owned()).collect(),
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

impl EventsConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        match self.publish.iter().find(|key| !ROUTING_KEYS.contains(&key.as_str())) {
            Some(key) => Err(ConfigError::invalid(
                "events.publish",
                format!("\"{key}\" is not one of {}", ROUTING_KEYS.join(", ")),
            )),
            None => Ok(()),
        }
    }
}

impl OutboxConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        ConfigError::refuse_zero(&[("outbox.in_flight", self.in_flight as u64)])
    }
}
