//! Bringing a database's tables up to date, and telling how far they are.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::LedgerError;

/// Version, name and SQL of one step.
pub(super) type Step = (i64, &'static str, &'static str);

/// Asks for the newest step taken, where sqlx keeps its record of them; the same in both databases.
pub(super) const NEWEST: &str = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";

/// All steps, to be run by sqlx, which records and checksums each.
pub(super) fn migrator(steps: &[Step]) -> Migrator {
    let migration = |(version, name, sql): &Step| {
        Migration::new(*version, Cow::Borrowed(*name), MigrationType::Simple, AssertSqlSafe(*sql).into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(steps.iter().map(migration).collect());
    // An older program beside a newer schema is a normal moment of an upgrade.
    migrator.set_ignore_missing(true);
    migrator
}

/// The version the last step leads to.
pub(super) fn newest(steps: &[Step]) -> i64 {
    steps.last().map_or(0, |(version, ..)| *version)
}

/// Refuses a schema that is older than this program.
pub(super) fn check(found: i64, steps: &[Step]) -> Result<(), LedgerError> {
    let needed = newest(steps);
    if found < needed { Err(LedgerError::Schema { found, needed }) } else { Ok(()) }
}
