//! Banks: lists of known images by their hashes. Only Postgres has them.
//!
//! Each change of a bank's entries makes its next version, in one transaction. An entry keeps the version that added it and
//! the one that removed it, and its row stays. So a reader takes the version first, and then the entries of that version in
//! any number of statements: it gets exactly that version, without a transaction around them.

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde_json::Value;
use time::OffsetDateTime;

use super::{Ledger, LedgerError, StoredVerdict};
use crate::job::{BankKind, Finding, KnownHash, Pdq};

/// A bank without its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bank {
    /// Another one where a bank was dropped and a bank of the same name was made.
    pub id: i32,
    pub name: String,
    pub kind: BankKind,
    pub restricted: bool,
    pub enabled: bool,
    /// Grows with each change of the entries, of `restricted` and of `enabled`.
    pub version: i64,
    pub made_at: OffsetDateTime,
    pub changed_at: OffsetDateTime,
}

/// Marks the findings of banks that are restricted by now, so that nothing shows the images. A stored finding has
/// what the bank was when it was found.
///
/// # Errors
/// When the ledger fails.
pub async fn mark_restricted(ledger: &dyn Ledger, verdicts: &mut [StoredVerdict]) -> Result<(), LedgerError> {
    let is_open = |finding: &Finding| finding.bank.is_some() && !finding.restricted;
    // Few findings are those of a bank.
    if !verdicts.iter().any(|stored| stored.verdict.judgement.findings.iter().any(is_open)) {
        return Ok(());
    }
    let Ok(banks) = ledger.banks() else { return Ok(()) };
    let all = banks.bank_versions().await?.into_iter();
    let restricted: BTreeSet<String> = all.filter(|bank| bank.restricted).map(|bank| bank.name).collect();
    verdicts.iter_mut().for_each(|stored| stored.verdict.judgement.restrict(&restricted));
    Ok(())
}

/// What a bank is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBank {
    pub name: String,
    pub kind: BankKind,
    pub restricted: bool,
    pub enabled: bool,
}

/// What to change of a bank; `None` leaves it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BankSettings {
    pub restricted: Option<bool>,
    pub enabled: Option<bool>,
}

/// The entries of a bank in numbers, without removed ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntryCounts {
    pub pdq: u64,
    pub sha256: u64,
    pub md5: u64,
    /// The matches that people have confirmed, and those that they have found wrong.
    pub true_matches: u64,
    pub false_matches: u64,
}

impl EntryCounts {
    /// Entries of all types.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.pdq + self.sha256 + self.md5
    }
}

/// An entry to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    pub hash: KnownHash,
    /// What its source tells of it.
    pub metadata: Option<Value>,
}

/// An entry, as it is matched with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KnownEntry {
    pub id: i64,
    pub hash: KnownHash,
}

/// An entry with all that is stored of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedEntry {
    pub entry: KnownEntry,
    pub true_matches: u32,
    pub false_matches: u32,
    pub added_at: OffsetDateTime,
    pub metadata: Option<Value>,
}

/// What names an entry of a bank. A hash never names a removed entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryKey {
    Id(i64),
    Hash(KnownHash),
}

/// What an import does with the entries that it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherEntries {
    Keep,
    Remove,
}

/// What a writer has done to a bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BankWrite {
    /// Of the bank now; the earlier one where nothing has changed.
    pub version: i64,
    pub added: u64,
    /// Entries that the bank has, and those that the import has twice.
    pub skipped: u64,
    pub removed: u64,
}

/// The result of removing entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    Done(BankWrite),
    /// These are not there. Nothing was removed.
    Missing(Vec<EntryKey>),
}

/// What a person has found of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchMark {
    /// The image is the known one.
    True,
    /// It is another one.
    False,
}

/// The result of marking an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marked {
    Done {
        id: i64,
        true_matches: u32,
        false_matches: u32,
    },
    /// The bank has no such entry.
    NoEntry,
}

/// The result of dropping a bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// With this number of entries.
    Done(u64),
    /// It is enabled and has this number of entries. It stays.
    InUse(u64),
}

/// What has changed in a bank since a version of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BankChanges {
    /// The version with these changes.
    pub version: i64,
    pub added: Vec<KnownEntry>,
    /// The ids of entries that are no longer there.
    pub removed: Vec<i64>,
}

/// Entries of one version, in pages.
pub type EntryPages<'a, T> = BoxStream<'a, Result<Vec<T>, LedgerError>>;

/// The banks of a ledger. `None` always means that there is no such bank.
#[async_trait]
pub trait Banks: Send + Sync {
    /// All banks in the order of their names. It reads no entry, so that each worker can ask every few seconds.
    async fn bank_versions(&self) -> Result<Vec<Bank>, LedgerError>;

    /// All banks with the numbers of their entries, which are counted.
    async fn list_banks(&self) -> Result<Vec<(Bank, EntryCounts)>, LedgerError>;

    /// Makes an empty bank; false where there is one of this name.
    async fn create_bank(&self, bank: &NewBank) -> Result<bool, LedgerError>;

    /// Changes what a bank is.
    async fn set_bank(&self, name: &str, settings: BankSettings) -> Result<Option<Bank>, LedgerError>;

    /// Deletes a bank with its entries, unless it is enabled and has entries.
    async fn drop_bank(&self, name: &str) -> Result<Option<Dropped>, LedgerError>;

    /// Begins an import, which holds no lock until it is committed.
    async fn begin_import(&self) -> Result<Box<dyn BankImport>, LedgerError>;

    /// Adds a few entries as one version.
    async fn add_entries(&self, name: &str, entries: &[NewEntry]) -> Result<Option<BankWrite>, LedgerError>;

    /// Removes entries as one version: all of them, or none where one is not there.
    async fn remove_entries(&self, name: &str, keys: &[EntryKey]) -> Result<Option<Removal>, LedgerError>;

    /// Counts a person's word on a match. It makes no version.
    async fn mark_entry(&self, name: &str, key: EntryKey, mark: MatchMark) -> Result<Option<Marked>, LedgerError>;

    /// The entries of a version, in the order of their ids. Of a bank that is dropped meanwhile the rest is missing; an
    /// enabled one with entries cannot be dropped.
    fn entries_of(&self, bank: i32, version: i64) -> EntryPages<'_, KnownEntry>;

    /// As [`Banks::entries_of`], with all that is stored of them.
    fn listed_entries_of(&self, bank: i32, version: i64) -> EntryPages<'_, ListedEntry>;

    /// What has changed since a version, for a reader that has that version in memory.
    async fn changes_since(&self, bank: i32, version: i64) -> Result<Option<BankChanges>, LedgerError>;
}

/// Entries on their way into a bank. None of them is read before [`BankImport::commit`], and a dropped import leaves
/// nothing.
#[async_trait]
pub trait BankImport: Send {
    /// Gathers some more.
    async fn gather(&mut self, entries: &[NewEntry]) -> Result<(), LedgerError>;

    /// Adds what was gathered as one version of the bank. It waits for other writers of the bank.
    async fn commit(self: Box<Self>, name: &str, others: OtherEntries) -> Result<Option<BankWrite>, LedgerError>;
}

/// The number of a hash's type in the ledger, and its bytes.
pub(super) fn stored_hash(hash: &KnownHash) -> (i16, &[u8]) {
    match hash {
        KnownHash::Pdq(pdq) => (1, &pdq.0),
        KnownHash::Sha256(digest) => (2, digest),
        KnownHash::Md5(digest) => (3, digest),
    }
}

/// It fails only for a row that another program has written.
pub(super) fn known_hash(kind: i16, bytes: &[u8]) -> Result<KnownHash, sqlx::Error> {
    let invalid = |_| sqlx::Error::Decode(format!("a hash of type {kind} with {} bytes", bytes.len()).into());
    match kind {
        1 => bytes.try_into().map(|bytes| KnownHash::Pdq(Pdq(bytes))).map_err(invalid),
        2 => bytes.try_into().map(KnownHash::Sha256).map_err(invalid),
        3 => bytes.try_into().map(KnownHash::Md5).map_err(invalid),
        _ => Err(sqlx::Error::Decode(format!("an unknown type of hash: {kind}").into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_hash_is_read_as_it_was_and_its_type_has_its_number_for_ever() {
        let hashes = [KnownHash::Pdq(Pdq([1; 32])), KnownHash::Sha256([2; 32]), KnownHash::Md5([3; 16])];
        for (hash, number) in hashes.iter().zip(1..) {
            let (kind, bytes) = stored_hash(hash);
            assert_eq!((kind, known_hash(kind, bytes).unwrap()), (number, *hash));
        }
        assert!(known_hash(1, &[0; 16]).is_err() && known_hash(4, &[0; 32]).is_err());
    }
}
