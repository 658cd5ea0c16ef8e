//! Why a call to the ledger failed, and what the caller can do about it.

use std::error::Error;

use crate::config::ConfigError;
use crate::error_text::Described;
use crate::telemetry::metrics::{self, labels::LedgerErrorKind};

/// Why a call to the ledger failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// The database cannot be reached, is shutting down, is read-only or does not answer. A later call may succeed.
    #[error("the ledger is not available: {0}")]
    Down(#[source] DatabaseError),
    /// A deadlock or a serialization failure. The same call may succeed at once.
    #[error("the ledger aborted a transaction: {0}")]
    Contended(#[source] DatabaseError),
    /// The database refuses a row because of its values. The same call fails again.
    #[error("the ledger refused the row: {0}")]
    Refused(#[source] DatabaseError),
    /// A living server refuses a statement for a reason that may be one row's or its own, such as a trigger or an internal
    /// error. Which of both is known once other rows were tried.
    #[error("the ledger refused the statement: {0}")]
    RefusedUnclear(#[source] DatabaseError),
    /// The schema is older than this program.
    #[error(
        "the ledger's schema is at version {found}, but this program needs {needed}\n  hint: run `pixwarden migrate`, or start the worker with --migrate"
    )]
    Schema {
        /// 0 where there is no schema yet.
        found: i64,
        /// The newest version that this program has a migration for.
        needed: i64,
    },
    /// A ledger in a SQLite file has no banks.
    #[error(
        "banks need PostgreSQL, and the ledger is a SQLite file\n  hint: name a PostgreSQL database in `ledger` or with --ledger postgres://user:password@host/database"
    )]
    BanksNeedPostgres,
    /// Several senders cannot share a SQLite file.
    #[error(
        "webhooks need PostgreSQL, and the ledger is a SQLite file\n  hint: name a PostgreSQL database in `ledger`, or remove `[[webhooks]]`"
    )]
    WebhooksNeedPostgres,
    /// A ledger in a SQLite file has nothing to review.
    #[error(
        "review needs PostgreSQL, and the ledger is a SQLite file\n  hint: name a PostgreSQL database in `ledger` or with --ledger postgres://user:password@host/database"
    )]
    ReviewNeedsPostgres,
    /// The ledger cannot be opened as configured, for example because of a wrong password.
    #[error("cannot open the ledger {url}: {error}")]
    CannotOpen {
        /// Without its password.
        url: String,
        /// The cause.
        #[source]
        error: DatabaseError,
    },
}

impl LedgerError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Down(_) | Self::Contended(_))
    }

    /// What an error at the row of a probe means: a ledger that refuses this row refuses every row.
    pub(super) fn of_probe(self) -> Self {
        match self {
            Self::Refused(error) | Self::RefusedUnclear(error) => Self::Down(error),
            other => other,
        }
    }

    /// Counts this error in the metrics.
    pub(super) fn count(&self) {
        match self {
            Self::Down(_) | Self::Contended(_) => metrics::ledger_call_failed(LedgerErrorKind::Down),
            Self::Refused(_) | Self::RefusedUnclear(_) => metrics::ledger_call_failed(LedgerErrorKind::Refused),
            // These are found at the start, before there is a job.
            Self::Schema { .. }
            | Self::BanksNeedPostgres
            | Self::WebhooksNeedPostgres
            | Self::ReviewNeedsPostgres
            | Self::CannotOpen { .. } => {}
        }
    }
}

/// The innermost cause of a [`LedgerError`] as text, and the library's error that it came from.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct DatabaseError(#[source] Described);

impl DatabaseError {
    /// Keeps the cause; `text` is what people read of it.
    pub(super) fn new(text: impl Into<String>, cause: impl Error + Send + Sync + 'static) -> Self {
        Self(Described::new(text, cause))
    }

    /// The library's own error; `None` for a cause that this program found by itself.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// A cause that this program found by itself.
impl From<String> for DatabaseError {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for DatabaseError {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// Why there is no open ledger.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration names no ledger, or one of a kind that is not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The ledger cannot be opened.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_the_error_that_it_came_from() {
        let error = LedgerError::Down(DatabaseError::new("no connection", sqlx::Error::PoolTimedOut));
        let LedgerError::Down(down) = &error else { unreachable!() };
        assert!(matches!(down.cause().unwrap().downcast_ref(), Some(sqlx::Error::PoolTimedOut)));
        assert_eq!(crate::error_text(&error), error.to_string(), "and says it once");
        assert_eq!(error.to_string(), "the ledger is not available: no connection");
    }
}
