//! The migrations of a database, and the check of its version.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::LedgerError;

/// Version, name and SQL of one migration.
pub(super) type MigrationStep = (i64, &'static str, &'static str);

/// The version of the newest migration that was applied, from the table of sqlx; the same in both databases.
pub(super) const NEWEST: &str = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";

/// Runs all migrations through sqlx, which records each with a checksum.
pub(super) fn migrator(steps: &[MigrationStep]) -> Migrator {
    let migration = |(version, name, sql): &MigrationStep| {
        Migration::new(*version, Cow::Borrowed(*name), MigrationType::Simple, AssertSqlSafe(*sql).into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(steps.iter().map(migration).collect());
    // During an upgrade an older program runs beside a newer schema.
    migrator.set_ignore_missing(true);
    migrator
}

/// The version after the last migration.
pub(super) fn newest(steps: &[MigrationStep]) -> i64 {
    steps.last().map_or(0, |(version, ..)| *version)
}

/// Refuses a schema that is older than this program.
pub(super) fn check(found: i64, steps: &[MigrationStep]) -> Result<(), LedgerError> {
    let needed = newest(steps);
    if found < needed { Err(LedgerError::Schema { found, needed }) } else { Ok(()) }
}
