//! The ledger in a SQLite file: for `scan`, and for a worker alone on its machine.
//!
//! There is one connection, so that two writers of this process never wait for each other. The write-ahead log with full
//! synchronisation makes a commit as durable as in Postgres.

/// The columns of a `VerdictRow`.
macro_rules! select_verdicts {
    () => {
        concat!(
            "SELECT ",
            with_verdict_columns!(comma_separated, name),
            ", revision, cause, coalesce(judged_at, decided_at) AS judged_at, deleted_at FROM verdicts"
        )
    };
}

mod archive;
mod baselines;
mod erasure;
mod outbox;
mod pages;
mod quarantine;
mod reconcile;
mod verdicts;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::migrate::MigrateError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::types::time::OffsetDateTime;
use sqlx::{Row, SqliteConnection, SqlitePool};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::columns::VerdictRow;
use super::schema::{self, MigrationStep};
use super::{DatabaseError, Ledger, LedgerError, MissingFile, StoredVerdict};

/// For another process that writes to the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Migrations may rewrite tables.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(3600);

const MIGRATIONS: [MigrationStep; 9] = [
    (1, "ledger", include_str!("../../migrations/sqlite/0001_ledger.sql")),
    (2, "lookups", include_str!("../../migrations/sqlite/0002_lookups.sql")),
    (3, "backfill", include_str!("../../migrations/sqlite/0003_backfill.sql")),
    (4, "revisions", include_str!("../../migrations/sqlite/0004_revisions.sql")),
    (5, "erasure", include_str!("../../migrations/sqlite/0005_erasure.sql")),
    (6, "score_baselines", include_str!("../../migrations/sqlite/0006_score_baselines.sql")),
    (7, "banks", include_str!("../../migrations/sqlite/0007_banks.sql")),
    (8, "webhooks", include_str!("../../migrations/sqlite/0008_webhooks.sql")),
    (9, "review", include_str!("../../migrations/sqlite/0009_review.sql")),
];

/// The indexes that are no part of a migration, as in Postgres: `migrate` makes those that do not exist.
const INDEXES: [&str; 2] = [
    "CREATE INDEX IF NOT EXISTS verdicts_by_judgement ON verdicts (judged_at, id) WHERE judged_at IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS outbox_by_key ON outbox (routing_key, due_at) WHERE published_at IS NULL",
];

/// Takes the write lock at once: a transaction that reads first and writes later could fail because another process has
/// written in between.
const BEGIN: &str = "BEGIN IMMEDIATE";

/// The ledger in a SQLite file.
pub struct Sqlite {
    pool: SqlitePool,
}

impl Sqlite {
    /// Opens the file.
    ///
    /// # Errors
    /// When the file cannot be opened or is no SQLite database.
    pub async fn open(file: &Path, missing: MissingFile) -> Result<Self, LedgerError> {
        let cannot_open =
            |error: DatabaseError| LedgerError::CannotOpen { url: format!("sqlite://{}", file.display()), error };
        if missing == MissingFile::Refuse && !file.exists() {
            return Err(cannot_open("there is no such file\n  hint: `pixwarden migrate` creates it".into()));
        }
        // SQLite gives some names a special meaning, but never to an absolute path.
        let absolute = std::path::absolute(file).map_err(|e| cannot_open(DatabaseError::new(e.to_string(), e)))?;
        let options = SqliteConnectOptions::new()
            .filename(absolute)
            .create_if_missing(missing == MissingFile::Create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // What is deleted or replaced is overwritten in the file, so that `erase` reaches it too.
            .pragma("secure_delete", "ON")
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(RESPONSE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await
            .map_err(|e| {
                let hint = "it must be a SQLite database, and it and its folder must be writable for this user";
                cannot_open(DatabaseError::new(format!("{}\n  hint: {hint}", error_text(&e)), e))
            })?;
        Ok(Self { pool })
    }

    /// Runs one operation on the connection, with a deadline.
    async fn run<T, F>(&self, operation: F) -> Result<T, LedgerError>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    {
        let work = async {
            let mut connection = self.pool.acquire().await?;
            operation(&mut connection).await
        };
        let result = match tokio::time::timeout(RESPONSE_TIMEOUT, work).await {
            Ok(result) => result.map_err(classify_error),
            Err(_) => Err(LedgerError::Down(format!("no response within {} s", RESPONSE_TIMEOUT.as_secs()).into())),
        };
        result.inspect_err(LedgerError::count)
    }
}

#[async_trait]
impl Ledger for Sqlite {
    async fn migrate(&self) -> Result<i64, LedgerError> {
        let run = async || {
            schema::migrator(&MIGRATIONS).run(&self.pool).await?;
            for index in INDEXES {
                sqlx::query(index).execute(&self.pool).await?;
            }
            Ok::<_, MigrateError>(())
        };
        // SQLite has no lock around migrations. Where two processes migrate one file, the second finds the work done when
        // it tries again.
        let twice = async || match run().await {
            Ok(()) => Ok(()),
            Err(_) => run().await,
        };
        match tokio::time::timeout(MIGRATE_TIMEOUT, twice()).await {
            Ok(Ok(())) => Ok(schema::newest(&MIGRATIONS)),
            Ok(Err(e)) => Err(LedgerError::Down(DatabaseError::new(format!("cannot migrate the schema: {e}"), e))),
            Err(_) => Err(LedgerError::Down(
                format!("cannot migrate the schema: not finished within {} s", MIGRATE_TIMEOUT.as_secs()).into(),
            )),
        }
    }

    async fn check_schema(&self) -> Result<(), LedgerError> {
        let found = self.run(|c| {
            Box::pin(async move {
                let exists = "SELECT count(*) > 0 FROM sqlite_master WHERE name = '_sqlx_migrations'";
                if !sqlx::query_scalar::<_, bool>(exists).fetch_one(&mut *c).await? {
                    return Ok(0);
                }
                sqlx::query_scalar(schema::NEWEST).fetch_one(c).await
            })
        });
        schema::check(found.await?, &MIGRATIONS)
    }

    async fn prepare(&self) -> Result<(), LedgerError> {
        self.migrate().await.map(drop)
    }

    async fn ping(&self) -> Result<(), LedgerError> {
        let written = self.run(|c| Box::pin(verdicts::write_and_take_back(c))).await;
        written.map_err(LedgerError::of_probe)
    }

    async fn close(&self) {
        // Closing the last connection merges the write-ahead log into the file.
        if tokio::time::timeout(RESPONSE_TIMEOUT, self.pool.close()).await.is_err() {
            tracing::warn!(timeout_s = RESPONSE_TIMEOUT.as_secs(), "the ledger's file did not close in time");
        }
    }
}

/// Reads a row of [`select_verdicts`].
fn read_verdict_row(row: &SqliteRow) -> Result<StoredVerdict, sqlx::Error> {
    let row: VerdictRow = with_verdict_columns!(read_row, row);
    row.into_verdict()
}

/// Times as the schema has them: of one length, so that they sort as text.
const TIME_FORMAT: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

fn stamp(time: OffsetDateTime) -> String {
    // Formatting cannot fail: a time has every part of the format.
    time.to_offset(time::UtcOffset::UTC).format(TIME_FORMAT).unwrap_or_default()
}

fn now() -> String {
    stamp(OffsetDateTime::now_utc())
}

/// Sorts the result codes of SQLite by what the caller can do.
fn classify_error(error: sqlx::Error) -> LedgerError {
    /// `SQLITE_TOOBIG`, `SQLITE_CONSTRAINT`, `SQLITE_MISMATCH`.
    const REFUSED: [u32; 3] = [18, 19, 20];
    /// `SQLITE_CONSTRAINT_TRIGGER`: a trigger may refuse one row or all.
    const TRIGGER: u32 = 1811;
    let code = error.as_database_error().and_then(|e| e.code()).and_then(|code| code.parse::<u32>().ok());
    let error = DatabaseError::new(error_text(&error), error);
    if code == Some(TRIGGER) {
        return LedgerError::RefusedUnclear(error);
    }
    // The lowest byte is the primary code.
    if code.is_some_and(|code| REFUSED.contains(&(code & 0xFF))) {
        LedgerError::Refused(error)
    } else {
        LedgerError::Down(error)
    }
}

fn error_text(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(e) => e.message().to_owned(),
        other => other.to_string(),
    }
}
