//! The options of the ledger: `ledger`, or `[ledger]`.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::SecretUrl;

/// Stands for every field.
const EVERY_FIELD: &str = "*";

/// `ledger = "URL"`, or `[ledger]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerConfig {
    /// Where verdicts are kept, `postgres://` or `sqlite://`.
    pub url: SecretUrl,
    /// The fields of a job's metadata that verdict and event keep; `*` stands for all.
    pub metadata: Vec<String>,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self { url: SecretUrl::default(), metadata: vec![EVERY_FIELD.into()] }
    }
}

/// The URL without its password.
impl fmt::Display for LedgerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl LedgerConfig {
    /// Whether a field of the metadata is kept.
    #[must_use]
    pub fn keeps(&self, field: &str) -> bool {
        self.metadata.iter().any(|kept| kept == field || kept == EVERY_FIELD)
    }

    /// What is kept of a job's metadata; `None` where nothing is left.
    #[must_use]
    pub fn kept(&self, metadata: Option<&Value>) -> Option<Value> {
        let metadata = metadata?;
        if self.metadata.iter().any(|kept| kept == EVERY_FIELD) {
            return Some(metadata.clone());
        }
        let fields = metadata.as_object().into_iter().flatten().filter(|(field, _)| self.keeps(field));
        let kept: Map<String, Value> = fields.map(|(field, value)| (field.clone(), value.clone())).collect();
        (!kept.is_empty()).then_some(Value::Object(kept))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_named_fields_of_metadata_are_kept() {
        let given = json!({"tenant": "t", "user": 7, "nested": {"user": 8}});
        let kept = |fields: &[&str]| {
            let metadata = fields.iter().map(|field| (*field).to_owned()).collect();
            LedgerConfig { metadata, ..LedgerConfig::default() }.kept(Some(&given))
        };
        assert_eq!(LedgerConfig::default().kept(Some(&given)), Some(given.clone()));
        assert_eq!(kept(&["tenant", "nested", "none"]), Some(json!({"tenant": "t", "nested": {"user": 8}})));
        assert_eq!((kept(&[]), kept(&["none"])), (None, None));
        assert_eq!(LedgerConfig::default().kept(None), None);
    }
}
