//! The options of the policy: `[policy]` and `[[policy.rules]]`.

use serde::{Deserialize, Serialize};

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
