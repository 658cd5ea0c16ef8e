//! The options of review: `[review]`.

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::job::Outcome;

/// `[review]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReviewConfig {
    /// The outcomes of which each opens a review item.
    pub open: Vec<Outcome>,
    /// Seconds until the event of a decision is due, so that the decision can be undone.
    pub undo_s: u32,
    /// Days for which equal bytes take over a decision; 0: never.
    pub carry_days: u32,
}

impl Default for ReviewConfig {
    fn default() -> Self {
        Self { open: vec![Outcome::Review], undo_s: 10, carry_days: 90 }
    }
}

impl ReviewConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let unfit = self.open.iter().find(|outcome| matches!(outcome, Outcome::Passed | Outcome::Missing));
        match unfit {
            Some(outcome) => Err(ConfigError::invalid(
                "review.open",
                format!("\"{outcome}\" is not one of review, flagged, undecodable, rejected, failed"),
            )),
            None => Ok(()),
        }
    }
}
