//! Indexes on large tables, built while workers write.
//!
//! A migration runs in a transaction and under sqlx's lock. CREATE INDEX CONCURRENTLY works in no transaction, and waits
//! for every older one, even for another process that waits for that lock. So indexes that need time are built after the
//! migrations, by a step that can be repeated: a build that was interrupted leaves an invalid index, which is dropped.

use std::time::Duration;

use sqlx::PgConnection;

use super::{MIGRATE_TIMEOUT, Postgres};
use crate::ledger::LedgerError;

/// An index that is built concurrently.
#[derive(Debug, Clone, Copy)]
pub struct PostgresIndex {
    pub name: &'static str,
    /// `CREATE INDEX CONCURRENTLY IF NOT EXISTS` and the rest.
    pub create: &'static str,
    /// `DROP INDEX CONCURRENTLY IF EXISTS` and the name.
    pub drop: &'static str,
}

/// The indexes that are not part of a migration. No index on `verdicts` has the verdicts that passed at revision 1: they are
/// nearly all, and would make it as large as the primary key.
pub(super) const INDEXES: [PostgresIndex; 3] = [
    // `export`, `rejudge` and `prune` by outcome.
    PostgresIndex {
        name: "verdicts_by_outcome",
        create: "CREATE INDEX CONCURRENTLY IF NOT EXISTS verdicts_by_outcome ON verdicts (outcome, decided_at, id)
                 WHERE outcome <> 'passed'",
        drop: "DROP INDEX CONCURRENTLY IF EXISTS verdicts_by_outcome",
    },
    // `export --revised-since`.
    PostgresIndex {
        name: "verdicts_by_judgement",
        create: "CREATE INDEX CONCURRENTLY IF NOT EXISTS verdicts_by_judgement ON verdicts (judged_at, id)
                 WHERE judged_at IS NOT NULL",
        drop: "DROP INDEX CONCURRENTLY IF EXISTS verdicts_by_judgement",
    },
    // Events of one routing key are leased and counted without reading those of another.
    PostgresIndex {
        name: "outbox_by_key",
        create: "CREATE INDEX CONCURRENTLY IF NOT EXISTS outbox_by_key ON outbox (routing_key, due_at)
                 WHERE published_at IS NULL",
        drop: "DROP INDEX CONCURRENTLY IF EXISTS outbox_by_key",
    },
];

/// The advisory lock of the process that builds indexes. The number means nothing.
const LOCK: i64 = 0x7069_7877_6964_7831;
/// How often a process that waits for the lock tries again.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);

impl Postgres {
    /// Builds the indexes that do not exist, and rebuilds those that an interrupted build left invalid.
    ///
    /// # Errors
    /// When a statement fails, or building takes longer than an hour.
    pub async fn build_indexes(&self, indexes: &'static [PostgresIndex]) -> Result<(), LedgerError> {
        self.run(MIGRATE_TIMEOUT, move |c| Box::pin(build(c, indexes))).await
    }
}

async fn build(c: &mut PgConnection, indexes: &[PostgresIndex]) -> Result<(), sqlx::Error> {
    // Two processes must not take each other's unfinished index for an interrupted one. A statement that waits for the
    // lock would be an older transaction for the process that builds, and both would wait for ever: so this tries.
    while !sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut *c).await? {
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
    let mut result = Ok(());
    for index in indexes {
        result = build_one(c, index).await;
        if result.is_err() {
            break;
        }
    }
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(LOCK).execute(c).await?;
    result
}

async fn build_one(c: &mut PgConnection, index: &PostgresIndex) -> Result<(), sqlx::Error> {
    let query = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)";
    let valid: Option<bool> = sqlx::query_scalar(query).bind(index.name).fetch_optional(&mut *c).await?;
    match valid {
        Some(true) => return Ok(()),
        Some(false) => {
            tracing::warn!(index = index.name, "dropped an index whose build was interrupted");
            sqlx::query(index.drop).execute(&mut *c).await?;
        }
        None => {}
    }
    let began = std::time::Instant::now();
    sqlx::query(index.create).execute(c).await?;
    tracing::info!(index = index.name, seconds = began.elapsed().as_secs(), "built an index");
    Ok(())
}
