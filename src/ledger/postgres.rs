//! The ledger in Postgres.
//!
//! Every call has a deadline of this program. A connection that missed it, or whose server has become read-only, is not
//! used again: sqlx sets no TCP user timeout, so that a connection to a peer that died silently would stay in the pool
//! for ever.

/// The columns of a `VerdictRow`. JSON and UUIDs are selected as text under the names of their columns, so that `ORDER BY
/// id` would mean the text: write `verdicts.id`.
macro_rules! select_verdicts {
    () => {
        concat!(
            "SELECT ",
            with_verdict_columns!(comma_separated, selected),
            ", revision, cause, coalesce(judged_at, decided_at) AS judged_at FROM verdicts"
        )
    };
}

/// One column of [`select_verdicts`].
macro_rules! selected {
    (($number:literal, $name:ident, $type:ty, $transport:tt, uuid, $replay:ident)) => {
        concat!(stringify!($name), "::text AS ", stringify!($name))
    };
    (($number:literal, $name:ident, $type:ty, $transport:tt, jsonb, $replay:ident)) => {
        concat!(stringify!($name), "::text AS ", stringify!($name))
    };
    (($number:literal, $name:ident, $($rest:tt)*)) => {
        stringify!($name)
    };
}

mod archive;
mod connect;
mod indexes;
mod outbox;
mod quarantine;
mod reconcile;
mod verdicts;
mod write;

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use super::columns::VerdictRow;
use super::schema::{self, MigrationStep};
use super::{DatabaseError, Ledger, LedgerError, StoredVerdict};
use crate::config::SecretUrl;
pub use indexes::PostgresIndex;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// For answers that need to read a large part of a table.
const LONG_RESPONSE_TIMEOUT: Duration = Duration::from_secs(300);
/// Migrations may rewrite tables.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(3600);
/// For commits, look-ups and the sweeper. More connections would only contend for the same rows.
const MAX_CONNECTIONS: u32 = 8;

/// Every migration, oldest first. A new one only adds: during an upgrade the older program runs beside it.
const MIGRATIONS: [MigrationStep; 4] = [
    (1, "ledger", include_str!("../../migrations/postgres/0001_ledger.sql")),
    (2, "lookups", include_str!("../../migrations/postgres/0002_lookups.sql")),
    (3, "backfill", include_str!("../../migrations/postgres/0003_backfill.sql")),
    (4, "revisions", include_str!("../../migrations/postgres/0004_revisions.sql")),
];

/// The ledger in Postgres.
pub struct Postgres {
    pool: PgPool,
}

impl Postgres {
    /// Connects once, so that a wrong password is found at the start and not with the first job.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the connection.
    pub async fn open(url: &SecretUrl) -> Result<Self, LedgerError> {
        Self::open_in(url, None).await
    }

    /// As [`Postgres::open`], with all tables in this schema.
    pub(super) async fn open_in(url: &SecretUrl, schema: Option<&str>) -> Result<Self, LedgerError> {
        let cannot_open = |url: String, text: String, e: sqlx::Error| LedgerError::CannotOpen {
            url,
            error: DatabaseError::new(text, e),
        };
        let mut options: PgConnectOptions =
            url.expose().parse().map_err(|e: sqlx::Error| cannot_open(url.to_string(), e.to_string(), e))?;
        let address = connect::address(url, &options);
        if let Some(schema) = schema {
            options = options.options([("search_path", schema)]);
        }
        let options = options.application_name("pixwarden");
        let opened = PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_with(options.clone())
            .await;
        match opened {
            Ok(pool) => Ok(Self { pool }),
            Err(e) => {
                let e = match e {
                    sqlx::Error::PoolTimedOut => connect::diagnose(&options).await.unwrap_or(e),
                    other => other,
                };
                Err(cannot_open(address, connect::error_text(&e) + connect::hint(&e), e))
            }
        }
    }

    /// Creates an empty schema. The name must be a plain identifier that this program has made.
    pub(super) async fn create_schema(&self, name: &str) -> Result<(), LedgerError> {
        let statement = AssertSqlSafe(format!("CREATE SCHEMA {name}"));
        self.run(RESPONSE_TIMEOUT, |c| Box::pin(sqlx::query(statement).execute(c))).await.map(drop)
    }

    /// Drops a schema with all its tables. The name must be a plain identifier that this program has made.
    pub(super) async fn drop_schema(&self, name: &str) -> Result<(), LedgerError> {
        let statement = AssertSqlSafe(format!("DROP SCHEMA {name} CASCADE"));
        self.run(MIGRATE_TIMEOUT, |c| Box::pin(sqlx::query(statement).execute(c))).await.map(drop)
    }

    /// Runs one operation on one connection, with a deadline.
    async fn run<T, F>(&self, deadline: Duration, operation: F) -> Result<T, LedgerError>
    where
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    {
        self.run_uncounted(deadline, operation).await.inspect_err(LedgerError::count)
    }

    async fn run_uncounted<T, F>(&self, deadline: Duration, operation: F) -> Result<T, LedgerError>
    where
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    {
        let mut connection = match tokio::time::timeout(CONNECT_TIMEOUT * 2, self.pool.acquire()).await {
            Ok(Ok(connection)) => connection,
            Err(_) | Ok(Err(sqlx::Error::PoolTimedOut)) => {
                return Err(LedgerError::Down(connect::why_no_connection(&self.pool.connect_options()).await.into()));
            }
            Ok(Err(error)) => return Err(classify_error(error)),
        };
        let result = match tokio::time::timeout(deadline, operation(&mut connection)).await {
            Ok(result) => result.map_err(classify_error),
            Err(_) => Err(LedgerError::Down(format!("no response within {} s", deadline.as_secs()).into())),
        };
        if matches!(result, Err(LedgerError::Down(_) | LedgerError::Contended(_))) {
            // The connection does not go back into the pool: its next answer could belong to this operation.
            drop(connection.detach());
        }
        result
    }
}

#[async_trait]
impl Ledger for Postgres {
    async fn migrate(&self) -> Result<i64, LedgerError> {
        let down = |text: String| LedgerError::Down(text.into());
        match tokio::time::timeout(MIGRATE_TIMEOUT, schema::migrator(&MIGRATIONS).run(&self.pool)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                return Err(LedgerError::Down(DatabaseError::new(format!("cannot migrate the schema: {e}"), e)));
            }
            Err(_) => {
                return Err(down(format!(
                    "cannot migrate the schema: not finished within {} s",
                    MIGRATE_TIMEOUT.as_secs()
                )));
            }
        }
        self.build_indexes(&indexes::INDEXES).await?;
        Ok(schema::newest(&MIGRATIONS))
    }

    async fn check_schema(&self) -> Result<(), LedgerError> {
        let found = self
            .run(RESPONSE_TIMEOUT, |c| {
                Box::pin(async move {
                    let exists: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
                        .fetch_one(&mut *c)
                        .await?;
                    if !exists {
                        return Ok(0);
                    }
                    sqlx::query_scalar(schema::NEWEST).fetch_one(c).await
                })
            })
            .await?;
        schema::check(found, &MIGRATIONS)
    }

    async fn prepare(&self) -> Result<(), LedgerError> {
        self.check_schema().await
    }

    async fn ping(&self) -> Result<(), LedgerError> {
        let read_only: bool = self
            .run(RESPONSE_TIMEOUT, |c| {
                let query = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool";
                Box::pin(sqlx::query_scalar(query).fetch_one(c))
            })
            .await?;
        if read_only { Err(LedgerError::Down("the server is read-only".into())) } else { Ok(()) }
    }

    async fn missing_privileges(&self) -> Result<Vec<String>, LedgerError> {
        let query = "SELECT privilege || ' on ' || relation
             FROM (VALUES ('verdicts', ARRAY['SELECT', 'INSERT', 'UPDATE']),
                          ('verdict_history', ARRAY['SELECT', 'INSERT']),
                          ('outbox', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']),
                          ('suspects', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'])) AS needs (relation, privileges),
                  unnest(privileges) AS privilege
             WHERE NOT has_table_privilege(relation, privilege)";
        self.run(RESPONSE_TIMEOUT, move |c| Box::pin(sqlx::query_scalar(query).fetch_all(c))).await
    }

    async fn close(&self) {
        if tokio::time::timeout(CONNECT_TIMEOUT, self.pool.close()).await.is_err() {
            tracing::warn!(timeout_s = CONNECT_TIMEOUT.as_secs(), "the ledger's connections did not close in time");
        }
    }
}

/// Reads a row of [`select_verdicts`].
fn read_verdict_row(row: &PgRow) -> Result<StoredVerdict, sqlx::Error> {
    let row: VerdictRow = with_verdict_columns!(read_row, row);
    row.into_verdict()
}

/// Whether an error passes when the transaction is repeated at once.
fn is_contended(error: &LedgerError) -> bool {
    matches!(error, LedgerError::Contended(_))
}

/// Sorts the error codes of Postgres (appendix A of its manual) by what the caller can do.
fn classify_error(error: sqlx::Error) -> LedgerError {
    let code = error.as_database_error().and_then(|e| e.code()).map(std::borrow::Cow::into_owned).unwrap_or_default();
    let error = DatabaseError::new(connect::error_text(&error), error);
    match code.as_str() {
        // Data exception, integrity constraint violation, program limit exceeded (an index entry that is too large).
        code if ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => LedgerError::Refused(error),
        // Serialization failure, deadlock.
        "40001" | "40P01" => LedgerError::Contended(error),
        _ => LedgerError::Down(error),
    }
}
