//! The ledger in Postgres.
//!
//! Every call has a deadline of this program. A connection that missed it, or whose server has become read-only, is not
//! used again: sqlx sets no TCP user timeout, so that a connection to a peer that died silently would stay in the pool
//! for ever.

/// The columns of a `VerdictRow`, without FROM. JSON and UUIDs are selected as text under the names of their columns, so that
/// `ORDER BY id` would mean the text: write `verdicts.id`.
macro_rules! select_columns {
    () => {
        concat!(
            "SELECT ",
            with_verdict_columns!(comma_separated, selected),
            ", revision, cause, coalesce(judged_at, decided_at) AS judged_at, deleted_at"
        )
    };
}

/// As [`select_columns`], from the whole table.
macro_rules! select_verdicts {
    () => {
        concat!(select_columns!(), " FROM verdicts")
    };
}

/// One column of [`select_columns`].
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

/// The condition of an unpublished event, for statements that find it by its id or its verdict. `published_at IS NULL` would
/// invite Postgres to read the index of all unpublished events instead, of which there can be any number.
macro_rules! unpublished {
    () => {
        "coalesce(published_at, 'infinity') = 'infinity'"
    };
}

mod archive;
mod banks;
mod baselines;
mod connect;
mod erasure;
mod image_hashes;
mod indexes;
mod outbox;
mod pages;
mod quarantine;
mod reconcile;
mod reviews;
mod verdicts;
mod webhooks;
mod write;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use super::columns::VerdictRow;
use super::schema::{self, MigrationStep};
use super::{Banks, DatabaseError, ImageHashes, Ledger, LedgerError, Reviews, StoredVerdict, Webhooks};
use crate::config::SecretUrl;
use crate::job::Outcome;
pub use indexes::PostgresIndex;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// For answers that need to read a large part of a table.
const LONG_RESPONSE_TIMEOUT: Duration = Duration::from_secs(300);
/// How much earlier the server gives up a statement than this program.
const STATEMENT_TIMEOUT_MARGIN: Duration = Duration::from_millis(500);
/// Settings of each session, for servers that have them.
const SESSION_SETTINGS: [(&str, &str); 4] = [
    // How often the server looks, during a statement, whether this program is still connected. Since PostgreSQL 14, and not
    // on every operating system.
    ("client_connection_check_interval", "5s"),
    // A program that vanishes in a transaction must not keep its locks until the connection times out.
    ("idle_in_transaction_session_timeout", "60s"),
    // Statements read few rows. Compiling one takes longer than running it, and so does starting a parallel worker.
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
];
/// Migrations may rewrite tables.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(3600);
/// For commits, look-ups and the sweeper. More connections would only contend for the same rows.
const MAX_CONNECTIONS: u32 = 8;

/// Every migration, oldest first. A new one only adds: during an upgrade the older program runs beside it.
const MIGRATIONS: [MigrationStep; 9] = [
    (1, "ledger", include_str!("../../migrations/postgres/0001_ledger.sql")),
    (2, "lookups", include_str!("../../migrations/postgres/0002_lookups.sql")),
    (3, "backfill", include_str!("../../migrations/postgres/0003_backfill.sql")),
    (4, "revisions", include_str!("../../migrations/postgres/0004_revisions.sql")),
    (5, "erasure", include_str!("../../migrations/postgres/0005_erasure.sql")),
    (6, "score_baselines", include_str!("../../migrations/postgres/0006_score_baselines.sql")),
    (7, "banks", include_str!("../../migrations/postgres/0007_banks.sql")),
    (8, "webhooks", include_str!("../../migrations/postgres/0008_webhooks.sql")),
    (9, "review", include_str!("../../migrations/postgres/0009_review.sql")),
];

/// The ledger in Postgres.
pub struct Postgres {
    pool: PgPool,
    /// Each of these outcomes opens a review item.
    opens: Arc<[Outcome]>,
}

impl Postgres {
    /// Connects once, so that a wrong password is found at the start and not with the first job.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the connection.
    pub async fn open(url: &SecretUrl) -> Result<Self, LedgerError> {
        Self::open_in(url, None).await
    }

    /// The same ledger, in which these outcomes open a review item.
    #[must_use]
    pub fn opening(self, outcomes: &[Outcome]) -> Self {
        Self { opens: outcomes.into(), ..self }
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
            .after_connect(|c, _| Box::pin(begin_session(c)))
            .connect_with(options.clone())
            .await;
        match opened {
            Ok(pool) => Ok(Self { pool, opens: Arc::from([Outcome::Review]) }),
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
        let mut connection = self.acquire().await?;
        let work = async {
            if deadline != RESPONSE_TIMEOUT {
                set_statement_timeout(&mut connection, deadline).await?;
            }
            let done = operation(&mut connection).await?;
            if deadline != RESPONSE_TIMEOUT {
                set_statement_timeout(&mut connection, RESPONSE_TIMEOUT).await?;
            }
            Ok(done)
        };
        let result = within(deadline, work).await;
        let is_unknown = matches!(result, Err(LedgerError::Down(_) | LedgerError::Contended(_)));
        if is_unknown || (result.is_err() && deadline != RESPONSE_TIMEOUT) {
            // The connection does not go back into the pool: its next answer could belong to this operation, or it could have
            // the timeout of this operation.
            drop(connection.detach());
        }
        result
    }

    /// A connection of the pool.
    async fn acquire(&self) -> Result<PoolConnection<sqlx::Postgres>, LedgerError> {
        match tokio::time::timeout(CONNECT_TIMEOUT * 2, self.pool.acquire()).await {
            Ok(Ok(connection)) => Ok(connection),
            Err(_) | Ok(Err(sqlx::Error::PoolTimedOut)) => {
                Err(LedgerError::Down(connect::why_no_connection(&self.pool.connect_options()).await.into()))
            }
            Ok(Err(error)) => Err(classify_error(error)),
        }
    }
}

/// Waits for an answer of the server until the deadline.
async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, LedgerError> {
    match tokio::time::timeout(deadline, work).await {
        Ok(result) => result.map_err(classify_error),
        Err(_) => Err(LedgerError::Down(format!("no response within {} s", deadline.as_secs()).into())),
    }
}

/// Sets the limits of a new session on the server. Without them a statement that this program has given up would run on,
/// together with its connection, which this program no longer counts.
async fn begin_session(c: &mut PgConnection) -> Result<(), sqlx::Error> {
    set_statement_timeout(c, RESPONSE_TIMEOUT).await?;
    for (setting, value) in SESSION_SETTINGS {
        // A server that does not have the setting finds no row.
        let query = sqlx::query("SELECT set_config(name, $2, false) FROM pg_settings WHERE name = $1");
        if let Err(error) = query.bind(setting).bind(value).execute(&mut *c).await {
            tracing::debug!(setting, error = %connect::error_text(&error), "the server does not accept a setting of the session");
        }
    }
    Ok(())
}

/// How long the server lets a statement run: a little less than this program waits for it.
async fn set_statement_timeout(c: &mut PgConnection, deadline: Duration) -> Result<(), sqlx::Error> {
    let timeout_ms = deadline.saturating_sub(STATEMENT_TIMEOUT_MARGIN).as_millis().to_string();
    sqlx::query("SELECT set_config('statement_timeout', $1, false)").bind(timeout_ms).execute(c).await.map(drop)
}

#[async_trait]
impl Ledger for Postgres {
    async fn migrate(&self) -> Result<i64, LedgerError> {
        let down = |text: String| LedgerError::Down(text.into());
        // A connection with another timeout than those of the pool.
        let migrating = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(|c, _| Box::pin(set_statement_timeout(c, MIGRATE_TIMEOUT)))
            .connect_lazy_with((*self.pool.connect_options()).clone());
        let migrated = tokio::time::timeout(MIGRATE_TIMEOUT, schema::migrator(&MIGRATIONS).run(&migrating)).await;
        drop(migrating);
        match migrated {
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
        let written = self.run(RESPONSE_TIMEOUT, |c| Box::pin(verdicts::write_and_take_back(c))).await;
        written.map_err(LedgerError::of_probe)
    }

    async fn missing_privileges(&self) -> Result<Vec<String>, LedgerError> {
        let query = "SELECT privilege || ' on ' || relation
             FROM (VALUES ('verdicts', ARRAY['SELECT', 'INSERT', 'UPDATE']),
                          ('verdict_history', ARRAY['SELECT', 'INSERT']),
                          ('policies', ARRAY['SELECT', 'INSERT']),
                          ('tombstones', ARRAY['SELECT']),
                          ('tombstone_key', ARRAY['SELECT']),
                          ('erase_lock', ARRAY['INSERT']),
                          ('score_baselines', ARRAY['SELECT']),
                          ('banks', ARRAY['SELECT']),
                          ('bank_entries', ARRAY['SELECT']),
                          ('image_hashes', ARRAY['SELECT', 'INSERT', 'DELETE']),
                          ('review_items', ARRAY['SELECT', 'INSERT', 'UPDATE']),
                          ('decisions', ARRAY['SELECT', 'INSERT']),
                          ('decision_notes', ARRAY['SELECT', 'INSERT']),
                          ('decided_contents', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']),
                          ('reports', ARRAY['SELECT', 'INSERT']),
                          ('outbox', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']),
                          ('webhook_deliveries', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']),
                          ('suspects', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'])) AS needs (relation, privileges),
                  unnest(privileges) AS privilege
             WHERE NOT has_table_privilege(relation, privilege)";
        self.run(RESPONSE_TIMEOUT, move |c| Box::pin(sqlx::query_scalar(query).fetch_all(c))).await
    }

    fn banks(&self) -> Result<&dyn Banks, LedgerError> {
        Ok(self)
    }

    fn image_hashes(&self) -> Result<&dyn ImageHashes, LedgerError> {
        Ok(self)
    }

    fn webhooks(self: Arc<Self>) -> Result<Arc<dyn Webhooks>, LedgerError> {
        Ok(self)
    }

    fn reviews(&self) -> Result<&dyn Reviews, LedgerError> {
        Ok(self)
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
    let code = error.as_database_error().and_then(|e| e.code()).map(std::borrow::Cow::into_owned);
    let error = DatabaseError::new(connect::error_text(&error), error);
    match code.as_deref().map(refusal_of) {
        Some(Refusal::Row) => LedgerError::Refused(error),
        Some(Refusal::Contention) => LedgerError::Contended(error),
        Some(Refusal::Unclear) => LedgerError::RefusedUnclear(error),
        // Without a code the error is not the server's.
        Some(Refusal::Ledger) | None => LedgerError::Down(error),
    }
}

/// Whose fault an error of the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The values of a row.
    Row,
    /// Another transaction. The same one may succeed at once.
    Contention,
    /// A row, or the ledger. A trigger may raise any code for one row, and a damaged page or a bug of the server may be met
    /// by one row only.
    Unclear,
    /// The connection, the state of the server, its schema or its privileges: the same for every row.
    Ledger,
}

fn refusal_of(code: &str) -> Refusal {
    match (code.get(..2).unwrap_or_default(), code) {
        // Serialization failure, deadlock.
        (_, "40001" | "40P01") => Refusal::Contention,
        // Data exception, integrity constraint violation, program limit exceeded (an index entry that is too large).
        ("22" | "23" | "54", _) => Refusal::Row,
        // Connection exception, invalid transaction state (a read-only server is 25006), invalid statement name, invalid
        // authorization, invalid catalog or schema name, transaction rollback, insufficient resources (a full disk is
        // 53100), a lock that is not available, operator intervention (a statement timeout is 57014), system error, snapshot
        // failure, configuration file error.
        ("08" | "25" | "26" | "28" | "2D" | "3B" | "3D" | "3F" | "40" | "53" | "57" | "58" | "72" | "F0", _)
        | (_, "55P03") => Refusal::Ledger,
        // Among them triggered action exception (09), errors of functions (21, 2F, 38, 39), P0001 of RAISE, the internal errors
        // XX000 to XX002, and what a trigger or a policy for rows can raise as well as a schema that does not fit: feature
        // not supported (0A), access rule violation (no privilege is 42501, no table 42P01), object not in prerequisite
        // state (55).
        _ => Refusal::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_server_refuses_a_row_and_only_its_own_state_is_the_ledgers() {
        for (code, refusal) in [
            ("22021", Refusal::Row),
            ("23514", Refusal::Row),
            ("54000", Refusal::Row),
            ("40001", Refusal::Contention),
            ("40P01", Refusal::Contention),
            ("P0001", Refusal::Unclear),
            ("XX000", Refusal::Unclear),
            ("XX002", Refusal::Unclear),
            ("09000", Refusal::Unclear),
            ("38000", Refusal::Unclear),
            ("U1234", Refusal::Unclear),
            ("08006", Refusal::Ledger),
            ("0A000", Refusal::Unclear),
            ("25006", Refusal::Ledger),
            ("42501", Refusal::Unclear),
            ("42P01", Refusal::Unclear),
            ("53100", Refusal::Ledger),
            ("55P03", Refusal::Ledger),
            ("57014", Refusal::Ledger),
            ("57P01", Refusal::Ledger),
            ("58030", Refusal::Ledger),
        ] {
            assert_eq!(refusal_of(code), refusal, "{code}");
        }
    }
}
