//! Banks in Postgres.
//!
//! Every change of a bank's entries locks the bank's row first, and writes the entries and the next version in the same
//! transaction. Two writers of one bank wait for each other, and readers wait for none.

mod copy;
mod import;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};

use super::{LONG_RESPONSE_TIMEOUT, MIGRATE_TIMEOUT, Postgres, RESPONSE_TIMEOUT};
use crate::job::BankKind;
use crate::ledger::banks::stored_hash;
use crate::ledger::columns::to_json;
use crate::ledger::{
    Bank, BankChanges, BankImport, BankSettings, BankWrite, Banks, Dropped, EntryCounts, EntryKey, EntryPages,
    KnownEntry, LedgerError, ListedEntry, Marked, MatchMark, NewBank, NewEntry, Removal,
};
use copy::FromCopy;
use import::PostgresImport;

/// Entries per statement of a reader: some megabytes.
const PAGE: usize = 50_000;

/// The columns of [`read_bank`].
macro_rules! bank_columns {
    () => {
        "banks.id, name, banks.kind, restricted, enabled, version, made_at, changed_at"
    };
}

/// Inserts entries of a source with the columns `kind`, `hash`, `number` and `metadata` into bank $1 as version $2. In the
/// order of the index, which then is written page after page. Of equal hashes the first one stays.
macro_rules! insert_entries {
    ($source:literal) => {
        concat!(
            "INSERT INTO bank_entries (bank, added, kind, hash, metadata)
             SELECT $1, $2, kind, hash, metadata::jsonb FROM ",
            $source,
            " ORDER BY kind, hash, number ON CONFLICT (bank, kind, hash) WHERE removed IS NULL DO NOTHING"
        )
    };
}
use insert_entries;

const BANKS: &str = concat!("SELECT ", bank_columns!(), " FROM banks ORDER BY name");

const COUNTED_BANKS: &str = concat!(
    "SELECT ",
    bank_columns!(),
    ", count(entry.id) FILTER (WHERE entry.kind = 1) AS pdq, count(entry.id) FILTER (WHERE entry.kind = 2) AS sha256,
       count(entry.id) FILTER (WHERE entry.kind = 3) AS md5, coalesce(sum(true_matches), 0)::bigint AS true_matches,
       coalesce(sum(false_matches), 0)::bigint AS false_matches
     FROM banks LEFT JOIN bank_entries AS entry ON entry.bank = banks.id AND removed IS NULL
     GROUP BY banks.id ORDER BY name"
);

/// What a bank answers changes with these settings as with its entries, so that a change makes a version. What was not
/// matched while the bank was disabled is then looked for from the beginning.
const SET_BANK: &str = concat!(
    "WITH set AS (
         SELECT id AS bank, (restricted, enabled) <> (coalesce($2, restricted), coalesce($3, enabled)) AS is_change
         FROM banks WHERE name = $1 FOR UPDATE
     ), forgotten AS (
         DELETE FROM backfill_progress USING set WHERE is_change AND backfill_progress.id = 'bank-match:' || bank
     )
     UPDATE banks SET restricted = coalesce($2, restricted), enabled = coalesce($3, enabled),
         version = version + is_change::int, changed_at = CASE WHEN is_change THEN now() ELSE changed_at END
     FROM set WHERE banks.id = bank RETURNING ",
    bank_columns!()
);

const MARK_BY_ID: &str = "UPDATE bank_entries SET true_matches = true_matches + $2, false_matches = false_matches + $3
     WHERE bank = $1 AND id = $4 RETURNING id, true_matches, false_matches";

const MARK_BY_HASH: &str =
    "UPDATE bank_entries SET true_matches = true_matches + $2, false_matches = false_matches + $3
     WHERE bank = $1 AND kind = $4 AND hash = $5 AND removed IS NULL RETURNING id, true_matches, false_matches";

const REMOVE_BY_ID: &str =
    "UPDATE bank_entries SET removed = $2 WHERE bank = $1 AND removed IS NULL AND id = $3 RETURNING id";

const REMOVE_BY_HASH: &str =
    "UPDATE bank_entries SET removed = $2 WHERE bank = $1 AND removed IS NULL AND kind = $3 AND hash = $4 RETURNING id";

#[async_trait]
impl Banks for Postgres {
    async fn bank_versions(&self) -> Result<Vec<Bank>, LedgerError> {
        let rows = self.run(RESPONSE_TIMEOUT, |c| {
            Box::pin(async move { sqlx::query(BANKS).fetch_all(c).await?.iter().map(read_bank).collect() })
        });
        rows.await
    }

    async fn list_banks(&self) -> Result<Vec<(Bank, EntryCounts)>, LedgerError> {
        let read = |row: &PgRow| Ok((read_bank(row)?, read_counts(row)?));
        let rows = self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move { sqlx::query(COUNTED_BANKS).fetch_all(c).await?.iter().map(read).collect() })
        });
        rows.await
    }

    async fn create_bank(&self, bank: &NewBank) -> Result<bool, LedgerError> {
        let bank = bank.clone();
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = "INSERT INTO banks (name, kind, restricted, enabled) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (name) DO NOTHING";
            let query = sqlx::query(query).bind(bank.name).bind(bank.kind.as_str());
            let query = query.bind(bank.restricted).bind(bank.enabled);
            Box::pin(async move { Ok(query.execute(c).await?.rows_affected() > 0) })
        })
        .await
    }

    async fn set_bank(&self, name: &str, settings: BankSettings) -> Result<Option<Bank>, LedgerError> {
        let name = name.to_owned();
        self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(SET_BANK).bind(name).bind(settings.restricted).bind(settings.enabled);
            Box::pin(async move { query.fetch_optional(c).await?.as_ref().map(read_bank).transpose() })
        })
        .await
    }

    async fn drop_bank(&self, name: &str) -> Result<Option<Dropped>, LedgerError> {
        let name = name.to_owned();
        self.run(MIGRATE_TIMEOUT, move |c| Box::pin(async move { drop_bank(c, &name).await })).await
    }

    async fn begin_import(&self) -> Result<Box<dyn BankImport>, LedgerError> {
        Ok(Box::new(PostgresImport::begin(self).await?))
    }

    async fn add_entries(&self, name: &str, entries: &[NewEntry]) -> Result<Option<BankWrite>, LedgerError> {
        let name = name.to_owned();
        let (kinds, hashes): (Vec<i16>, Vec<Vec<u8>>) =
            entries.iter().map(|entry| stored_hash(&entry.hash)).map(|(kind, hash)| (kind, hash.to_vec())).unzip();
        let metadata: Vec<Option<String>> = entries.iter().map(|entry| entry.metadata.as_ref().map(to_json)).collect();
        self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let given = hashes.len() as u64;
                let Some(writing) = Writing::begin(c, &name).await? else { return Ok(None) };
                let mut writing = writing;
                let insert = insert_entries!(
                    "UNNEST($3::smallint[], $4::bytea[], $5::text[]) WITH ORDINALITY AS entry (kind, hash, metadata, number)"
                );
                let query = sqlx::query(insert).bind(writing.bank).bind(writing.next()).bind(kinds).bind(hashes);
                let added = query.bind(metadata).execute(&mut *writing.transaction).await?.rows_affected();
                writing.commit(Changed { given, added, removed: 0 }).await.map(Some)
            })
        })
        .await
    }

    async fn remove_entries(&self, name: &str, keys: &[EntryKey]) -> Result<Option<Removal>, LedgerError> {
        let (name, keys) = (name.to_owned(), keys.to_vec());
        self.run(LONG_RESPONSE_TIMEOUT, move |c| Box::pin(async move { remove(c, &name, &keys).await })).await
    }

    async fn mark_entry(&self, name: &str, key: EntryKey, mark: MatchMark) -> Result<Option<Marked>, LedgerError> {
        let name = name.to_owned();
        self.run(RESPONSE_TIMEOUT, move |c| Box::pin(async move { mark_entry(c, &name, key, mark).await })).await
    }

    fn entries_of(&self, bank: i32, version: i64) -> EntryPages<'_, KnownEntry> {
        self.pages(bank, version)
    }

    fn listed_entries_of(&self, bank: i32, version: i64) -> EntryPages<'_, ListedEntry> {
        self.pages(bank, version)
    }

    async fn changes_since(&self, bank: i32, version: i64) -> Result<Option<BankChanges>, LedgerError> {
        self.run(LONG_RESPONSE_TIMEOUT, move |c| Box::pin(async move { changes_since(c, bank, version).await })).await
    }
}

impl Postgres {
    fn pages<T: FromCopy + Send + 'static>(&self, bank: i32, version: i64) -> EntryPages<'_, T> {
        let page_after = move |after: Option<i64>| async move {
            let Some(after) = after else { return Ok(None) };
            let query = format!(
                "SELECT {} FROM bank_entries WHERE bank = {bank} AND id > {after} AND {} ORDER BY id LIMIT {PAGE}",
                T::COLUMNS,
                is_in(version)
            );
            let page: Vec<T> =
                self.run(LONG_RESPONSE_TIMEOUT, move |c| Box::pin(async move { read_page(c, &query).await })).await?;
            let next = page.last().filter(|_| page.len() == PAGE).map(FromCopy::id);
            Ok((!page.is_empty()).then_some((page, next)))
        };
        stream::try_unfold(Some(0), page_after).boxed()
    }
}

/// Reads a page in the order of the primary key. Before the server has statistics of a new version, it expects few entries,
/// and would read and sort the whole bank for each page.
async fn read_page<T: FromCopy>(c: &mut PgConnection, query: &str) -> Result<Vec<T>, sqlx::Error> {
    let mut transaction = c.begin().await?;
    sqlx::query("SET LOCAL enable_sort = off").execute(&mut *transaction).await?;
    let page = copy::read(&mut transaction, query).await?;
    transaction.commit().await?;
    Ok(page)
}

/// The condition of an entry in a version. As a number in the text: COPY has no parameters, and a plan for an unknown version
/// may read the whole bank for two entries.
fn is_in(version: i64) -> String {
    format!("added <= {version} AND (removed IS NULL OR removed > {version})")
}

/// A bank whose row is locked, in a transaction that makes its next version.
struct Writing<'c> {
    transaction: sqlx::Transaction<'c, sqlx::Postgres>,
    bank: i32,
    version: i64,
}

/// What a transaction has changed.
struct Changed {
    /// The entries that were to be added.
    given: u64,
    added: u64,
    removed: u64,
}

impl<'c> Writing<'c> {
    /// Waits for the bank's other writers. `None` where there is no such bank.
    async fn begin(c: &'c mut PgConnection, name: &str) -> Result<Option<Self>, sqlx::Error> {
        let mut transaction = c.begin().await?;
        let query = "SELECT id, version FROM banks WHERE name = $1 FOR UPDATE";
        let found = sqlx::query_as(query).bind(name).fetch_optional(&mut *transaction).await?;
        Ok(found.map(|(bank, version)| Self { transaction, bank, version }))
    }

    /// The version that this transaction makes.
    const fn next(&self) -> i64 {
        self.version + 1
    }

    /// Where nothing has changed, the version stays, so that no worker looks for changes.
    async fn commit(mut self, changed: Changed) -> Result<BankWrite, sqlx::Error> {
        let Changed { given, added, removed } = changed;
        let mut version = self.version;
        if added + removed > 0 {
            version = self.next();
            let query = "UPDATE banks SET version = $2, changed_at = now() WHERE id = $1";
            sqlx::query(query).bind(self.bank).bind(version).execute(&mut *self.transaction).await?;
        }
        self.transaction.commit().await?;
        Ok(BankWrite { version, added, skipped: given - added, removed })
    }
}

async fn remove(c: &mut PgConnection, name: &str, keys: &[EntryKey]) -> Result<Option<Removal>, sqlx::Error> {
    let Some(mut writing) = Writing::begin(c, name).await? else { return Ok(None) };
    let mut missing = Vec::new();
    for key in keys {
        let query = match key {
            EntryKey::Id(id) => sqlx::query(REMOVE_BY_ID).bind(writing.bank).bind(writing.next()).bind(*id),
            EntryKey::Hash(hash) => {
                let (kind, bytes) = stored_hash(hash);
                let query = sqlx::query(REMOVE_BY_HASH).bind(writing.bank).bind(writing.next());
                query.bind(kind).bind(bytes.to_vec())
            }
        };
        if query.fetch_optional(&mut *writing.transaction).await?.is_none() {
            missing.push(*key);
        }
    }
    if !missing.is_empty() {
        writing.transaction.rollback().await?;
        return Ok(Some(Removal::Missing(missing)));
    }
    let changed = Changed { given: 0, added: 0, removed: keys.len() as u64 };
    Ok(Some(Removal::Done(writing.commit(changed).await?)))
}

async fn mark_entry(
    c: &mut PgConnection,
    name: &str,
    key: EntryKey,
    mark: MatchMark,
) -> Result<Option<Marked>, sqlx::Error> {
    let query = sqlx::query_scalar("SELECT id FROM banks WHERE name = $1").bind(name);
    let Some(bank) = query.fetch_optional(&mut *c).await? else { return Ok(None) };
    let bank: i32 = bank;
    let (is_true, is_false) = (i32::from(mark == MatchMark::True), i32::from(mark == MatchMark::False));
    let query = match key {
        EntryKey::Id(id) => sqlx::query(MARK_BY_ID).bind(bank).bind(is_true).bind(is_false).bind(id),
        EntryKey::Hash(hash) => {
            let (kind, bytes) = stored_hash(&hash);
            sqlx::query(MARK_BY_HASH).bind(bank).bind(is_true).bind(is_false).bind(kind).bind(bytes.to_vec())
        }
    };
    let Some(row) = query.fetch_optional(c).await? else { return Ok(Some(Marked::NoEntry)) };
    let count = |name: &str| row.try_get::<i32, _>(name).map(i32::unsigned_abs);
    let (true_matches, false_matches) = (count("true_matches")?, count("false_matches")?);
    Ok(Some(Marked::Done { id: row.try_get("id")?, true_matches, false_matches }))
}

async fn drop_bank(c: &mut PgConnection, name: &str) -> Result<Option<Dropped>, sqlx::Error> {
    let Some(mut writing) = Writing::begin(c, name).await? else { return Ok(None) };
    let query = "SELECT enabled FROM banks WHERE id = $1";
    let enabled: bool = sqlx::query_scalar(query).bind(writing.bank).fetch_one(&mut *writing.transaction).await?;
    let query = "SELECT count(*) FROM bank_entries WHERE bank = $1 AND removed IS NULL";
    let entries: i64 = sqlx::query_scalar(query).bind(writing.bank).fetch_one(&mut *writing.transaction).await?;
    let entries = entries.unsigned_abs();
    if enabled && entries > 0 {
        return Ok(Some(Dropped::InUse(entries)));
    }
    for query in ["DELETE FROM bank_entries WHERE bank = $1", "DELETE FROM banks WHERE id = $1"] {
        sqlx::query(query).bind(writing.bank).execute(&mut *writing.transaction).await?;
    }
    writing.transaction.commit().await?;
    Ok(Some(Dropped::Done(entries)))
}

async fn changes_since(c: &mut PgConnection, bank: i32, since: i64) -> Result<Option<BankChanges>, sqlx::Error> {
    let query = sqlx::query_scalar("SELECT version FROM banks WHERE id = $1").bind(bank);
    let Some(version) = query.fetch_optional(&mut *c).await? else { return Ok(None) };
    let version: i64 = version;
    let query = format!(
        "SELECT {} FROM bank_entries WHERE bank = {bank} AND added > {since} AND {}",
        KnownEntry::COLUMNS,
        is_in(version)
    );
    let added = copy::read(&mut *c, &query).await?;
    let query = "SELECT id FROM bank_entries WHERE bank = $1 AND added <= $2 AND removed > $2 AND removed <= $3";
    let removed = sqlx::query_scalar(query).bind(bank).bind(since).bind(version).fetch_all(c).await?;
    Ok(Some(BankChanges { version, added, removed }))
}

fn read_bank(row: &PgRow) -> Result<Bank, sqlx::Error> {
    let kind: String = row.try_get("kind")?;
    let known = BankKind::ALL.into_iter().find(|known| known.as_str() == kind);
    Ok(Bank {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        kind: known.ok_or_else(|| sqlx::Error::Decode(format!("an unknown kind of bank: {kind}").into()))?,
        restricted: row.try_get("restricted")?,
        enabled: row.try_get("enabled")?,
        version: row.try_get("version")?,
        made_at: row.try_get("made_at")?,
        changed_at: row.try_get("changed_at")?,
    })
}

fn read_counts(row: &PgRow) -> Result<EntryCounts, sqlx::Error> {
    let count = |name: &str| row.try_get::<i64, _>(name).map(i64::unsigned_abs);
    Ok(EntryCounts {
        pdq: count("pdq")?,
        sha256: count("sha256")?,
        md5: count("md5")?,
        true_matches: count("true_matches")?,
        false_matches: count("false_matches")?,
    })
}
