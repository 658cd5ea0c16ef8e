//! What every ledger does, whichever database keeps it.
//!
//! One trait for each kind of client: a worker stores [`Verdicts`], publishes the [`Outbox`] and uses the
//! [`Quarantine`]; commands read and prune the [`Archive`], and erase by [`Erasure`]; a backfill uses [`Reconcile`];
//! [`Baselines`] of scores are saved by a command and read by workers; commands write [`Banks`], senders take what is due
//! from [`Webhooks`], and people's decisions are [`Reviews`]: only Postgres has these three.
//! Queries exist only in this folder. An adapter takes no decisions: it stores, finds and leases.

#[macro_use]
mod columns;

#[macro_use]
mod erasure;

mod archive;
mod banks;
mod baselines;
mod error;
mod image_hashes;
pub mod options;
mod outbox;
mod postgres;
mod probe;
mod quarantine;
mod reconcile;
mod reviews;
mod schema;
mod scratch;
mod sqlite;
mod verdicts;
mod webhooks;

use std::sync::Arc;

use async_trait::async_trait;

use crate::config::Config;

pub use crate::job::event::{Destinations, Event};
pub use archive::{Archive, EarlierState, OutboxRow, Position, PrunedPage, StoredVerdict, VerdictFilter, VerdictPage};
pub use banks::{
    Bank, BankChanges, BankImport, BankSettings, BankWrite, Banks, Dropped, EntryCounts, EntryKey, EntryPages,
    KnownEntry, ListedEntry, Marked, MatchMark, NewBank, NewEntry, OtherEntries, Removal, mark_restricted,
};
pub use baselines::{Baselines, ScoreBaseline};
pub use columns::VERDICT_COLUMNS;
pub use erasure::{Erased, ErasedRows, Erasure, Hold, KeptBy, Subject, SubjectPage};
pub use error::{DatabaseError, LedgerError, OpenError};
pub use image_hashes::{HashPage, HashedView, ImageHashes};
pub use outbox::{HANDOVER_DELAY, MAX_COUNTED_EVENTS, Outbox, UnpublishedEvents};
pub use postgres::{Postgres, PostgresIndex};
pub use quarantine::Quarantine;
pub use reconcile::{BACKFILL_LEASE_TIMEOUT, CurrentVerdict, Reconcile};
pub use reviews::{
    Claim, Decide, Decided, Decision, DecisionAction, DecisionEffect, DecisionFilter, DecisionPage, ItemFilter,
    ItemKind, ItemPage, ItemPosition, ItemWithVerdict, MAX_COUNTED_ITEMS, MAX_WAITING_REPORTS, NoPosition, QueueState,
    Report, Reported, ReviewItem, Reviews, Undo,
};
pub use scratch::{Scratch, open_temporary};
pub use sqlite::Sqlite;
pub use verdicts::{
    ExistingVerdict, Inserted, NewVerdict, ReusableFacts, Revise, Revised, Verdicts, replace_failed_verdict,
};
pub use webhooks::{
    AfterFailure, DeliveryFilter, DeliveryState, FailedAttempt, ReplaySelection, StoredDelivery, WEBHOOK_RETRY_PERIOD,
    WaitingDeliveries, WebhookDelivery, Webhooks,
};

/// A database of verdicts: the traits that every one has, its banks, and what opening and closing it needs.
#[async_trait]
pub trait Ledger: Verdicts + Outbox + Quarantine + Archive + Erasure + Baselines + Reconcile {
    /// Brings the schema up to date and returns its version.
    async fn migrate(&self) -> Result<i64, LedgerError>;

    /// Checks that the schema is new enough.
    async fn check_schema(&self) -> Result<(), LedgerError>;

    /// Makes the ledger ready for the use by one person: migrates a SQLite file, but only checks the schema of a server.
    async fn prepare(&self) -> Result<(), LedgerError>;

    /// Checks that the ledger accepts what a worker writes. Nothing of it is kept.
    async fn ping(&self) -> Result<(), LedgerError>;

    /// The privileges that a worker needs and the current user does not have, such as `UPDATE on outbox`.
    async fn missing_privileges(&self) -> Result<Vec<String>, LedgerError> {
        Ok(Vec::new())
    }

    /// The banks of this ledger.
    ///
    /// # Errors
    /// [`LedgerError::BanksNeedPostgres`] where the ledger has none.
    fn banks(&self) -> Result<&dyn Banks, LedgerError> {
        Err(LedgerError::BanksNeedPostgres)
    }

    /// The hashes of all that was screened.
    ///
    /// # Errors
    /// [`LedgerError::BanksNeedPostgres`] where the ledger does not have them side by side.
    fn image_hashes(&self) -> Result<&dyn ImageHashes, LedgerError> {
        Err(LedgerError::BanksNeedPostgres)
    }

    /// What is sent to webhooks.
    ///
    /// # Errors
    /// [`LedgerError::WebhooksNeedPostgres`] where the ledger has no table for it.
    fn webhooks(self: Arc<Self>) -> Result<Arc<dyn Webhooks>, LedgerError> {
        Err(LedgerError::WebhooksNeedPostgres)
    }

    /// What people look at and decide.
    ///
    /// # Errors
    /// [`LedgerError::ReviewNeedsPostgres`] where the ledger has none.
    fn reviews(&self) -> Result<&dyn Reviews, LedgerError> {
        Err(LedgerError::ReviewNeedsPostgres)
    }

    /// Closes all connections.
    async fn close(&self);
}

/// Opens the configured ledger; the URL chooses the adapter.
///
/// # Errors
/// When the URL is missing or wrong, the SQLite file does not exist, or the database refuses the connection.
pub async fn open(config: &Config) -> Result<Box<dyn Ledger>, OpenError> {
    open_with(config, MissingFile::Refuse).await
}

/// As [`open`], for callers that migrate the schema next: a SQLite file that does not exist is created.
///
/// # Errors
/// As [`open`].
pub async fn open_or_create(config: &Config) -> Result<Box<dyn Ledger>, OpenError> {
    open_with(config, MissingFile::Create).await
}

/// What to do where the SQLite file does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingFile {
    /// Fail, because a mistyped name must not become an empty ledger.
    Refuse,
    /// Create an empty file.
    Create,
}

async fn open_with(config: &Config, missing: MissingFile) -> Result<Box<dyn Ledger>, OpenError> {
    let url = config.ledger()?;
    Ok(match url.file() {
        Some(file) => Box::new(Sqlite::open(file, missing).await?),
        None => Box::new(Postgres::open(url).await?.opening(&config.review.open)),
    })
}
