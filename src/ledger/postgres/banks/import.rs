//! An import of any number of entries.
//!
//! The entries are gathered in a temporary table, which only this connection sees and which ends with it. The list may come
//! slowly, from a pipe: nothing is locked, and no transaction is open meanwhile. One transaction then writes them into the
//! bank.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgConnection;

use super::super::{DatabaseError, Postgres, RESPONSE_TIMEOUT, set_statement_timeout, within};
use super::{Changed, Writing, copy, insert_entries};
use crate::ledger::{BankImport, BankWrite, LedgerError, NewEntry, OtherEntries};

/// Longest time of the transaction that writes the bank, with the wait for its other writers.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3600);
/// For one statement with a part of the entries.
const GATHER_TIMEOUT: Duration = Duration::from_secs(60);

const GATHERED: &str = "CREATE TEMPORARY TABLE gathered_entries
     (kind smallint NOT NULL, hash bytea NOT NULL, number bigint NOT NULL, metadata jsonb)";
const GATHER: &str = "COPY gathered_entries (kind, hash, number, metadata) FROM STDIN (FORMAT binary)";
/// Sorting and comparing a million hashes in memory instead of in files.
const MORE_MEMORY: &str = "SET work_mem = '128MB'";
/// The server gathers statistics of temporary tables only when it is told to.
const ANALYZE: &str = "ANALYZE gathered_entries";

/// Before the server has statistics of a bank, it expects one entry, and would read the whole list for each.
const NO_NESTED_LOOP: &str = "SET LOCAL enable_nestloop = off";

const REMOVE_OTHERS: &str = "UPDATE bank_entries SET removed = $2
     WHERE bank = $1 AND removed IS NULL AND NOT EXISTS (
         SELECT FROM gathered_entries AS gathered
         WHERE gathered.kind = bank_entries.kind AND gathered.hash = bank_entries.hash)";

/// With a connection that goes back into no pool.
pub(super) struct PostgresImport {
    c: PgConnection,
    gathered: u64,
}

impl PostgresImport {
    pub(super) async fn begin(ledger: &Postgres) -> Result<Self, LedgerError> {
        let mut c = ledger.acquire().await?.detach();
        let begun = within(RESPONSE_TIMEOUT, async {
            set_statement_timeout(&mut c, GATHER_TIMEOUT).await?;
            sqlx::query(MORE_MEMORY).execute(&mut c).await?;
            sqlx::query(GATHERED).execute(&mut c).await.map(drop)
        });
        match begun.await {
            Ok(()) => Ok(Self { c, gathered: 0 }),
            Err(LedgerError::RefusedUnclear(refused)) => {
                let hint = "the user needs TEMPORARY on the database, which deploy/postgres/roles.sql grants to pixwarden_operator";
                let text = format!("{refused}\n  hint: {hint}");
                Err(LedgerError::RefusedUnclear(DatabaseError::new(text, refused)))
            }
            Err(other) => Err(other),
        }
    }

    async fn write(&mut self, name: &str, others: OtherEntries) -> Result<Option<BankWrite>, sqlx::Error> {
        set_statement_timeout(&mut self.c, WRITE_TIMEOUT).await?;
        sqlx::query(ANALYZE).execute(&mut self.c).await?;
        let Some(mut writing) = Writing::begin(&mut self.c, name).await? else { return Ok(None) };
        let (bank, version) = (writing.bank, writing.next());
        let removed = match others {
            OtherEntries::Keep => 0,
            OtherEntries::Remove => {
                sqlx::query(NO_NESTED_LOOP).execute(&mut *writing.transaction).await?;
                let query = sqlx::query(REMOVE_OTHERS).bind(bank).bind(version);
                query.execute(&mut *writing.transaction).await?.rows_affected()
            }
        };
        let query = sqlx::query(insert_entries!("gathered_entries")).bind(bank).bind(version);
        let added = query.execute(&mut *writing.transaction).await?.rows_affected();
        writing.commit(Changed { given: self.gathered, added, removed }).await.map(Some)
    }
}

#[async_trait]
impl BankImport for PostgresImport {
    async fn gather(&mut self, entries: &[NewEntry]) -> Result<(), LedgerError> {
        let bytes = copy::encode(entries, self.gathered);
        let gathered = within(GATHER_TIMEOUT, async {
            let mut sink = self.c.copy_in_raw(GATHER).await?;
            sink.send(bytes).await?;
            sink.finish().await
        });
        self.gathered += gathered.await?;
        Ok(())
    }

    async fn commit(mut self: Box<Self>, name: &str, others: OtherEntries) -> Result<Option<BankWrite>, LedgerError> {
        within(WRITE_TIMEOUT, self.write(name, others)).await
    }
}
