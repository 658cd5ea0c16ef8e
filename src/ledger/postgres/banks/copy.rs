//! Entries in the binary format of COPY: the manual of Postgres describes it under COPY, "Binary Format". It takes a third of
//! the time of rows that are read one by one.

use futures_util::TryStreamExt;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::ledger::banks::{known_hash, stored_hash};
use crate::ledger::columns::to_json;
use crate::ledger::{KnownEntry, ListedEntry, NewEntry};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Of the header: flags, and the length of an extension that does not exist.
const FLAGS: [u8; 8] = [0; 8];
/// Instead of a number of fields: there are no more rows.
const END: i16 = -1;
/// Instead of a length.
const NULL: i32 = -1;
/// The first byte of a value of type `jsonb`.
const JSONB_VERSION: u8 = 1;

/// A value that is read from a row.
pub(super) trait FromCopy: Sized {
    /// What to select.
    const COLUMNS: &'static str;

    fn read(fields: &mut Fields<'_>) -> Result<Self, sqlx::Error>;

    fn id(&self) -> i64;
}

impl FromCopy for KnownEntry {
    const COLUMNS: &'static str = "id, kind, hash";

    fn read(fields: &mut Fields<'_>) -> Result<Self, sqlx::Error> {
        let (id, kind) = (i64::from_be_bytes(fields.exactly()?), i16::from_be_bytes(fields.exactly()?));
        Ok(Self { id, hash: known_hash(kind, fields.value()?)? })
    }

    fn id(&self) -> i64 {
        self.id
    }
}

impl FromCopy for ListedEntry {
    const COLUMNS: &'static str = "id, kind, hash, true_matches, false_matches,
        (extract(epoch FROM added_at) * 1000000)::bigint, metadata::text";

    fn read(fields: &mut Fields<'_>) -> Result<Self, sqlx::Error> {
        let entry = KnownEntry::read(fields)?;
        let true_matches = i32::from_be_bytes(fields.exactly()?).unsigned_abs();
        let false_matches = i32::from_be_bytes(fields.exactly()?).unsigned_abs();
        let micros = i128::from(i64::from_be_bytes(fields.exactly()?));
        let added_at = OffsetDateTime::from_unix_timestamp_nanos(micros * 1_000);
        let metadata = fields.next()?.map(serde_json::from_slice::<Value>).transpose();
        Ok(Self {
            entry,
            true_matches,
            false_matches,
            added_at: added_at.map_err(|e| sqlx::Error::Decode(e.into()))?,
            metadata: metadata.map_err(|e| sqlx::Error::Decode(e.into()))?,
        })
    }

    fn id(&self) -> i64 {
        self.entry.id
    }
}

/// The rows of a query.
pub(super) async fn read<T: FromCopy>(c: &mut PgConnection, query: &str) -> Result<Vec<T>, sqlx::Error> {
    let statement = format!("COPY ({query}) TO STDOUT (FORMAT binary)");
    let mut parts = c.copy_out_raw(&statement).await?;
    let mut bytes = Vec::new();
    while let Some(part) = parts.try_next().await? {
        bytes.extend_from_slice(&part);
    }
    decode(&bytes)
}

fn decode<T: FromCopy>(bytes: &[u8]) -> Result<Vec<T>, sqlx::Error> {
    let mut fields = Fields(bytes);
    if fields.take(SIGNATURE.len())? != SIGNATURE || fields.take(FLAGS.len())? != FLAGS {
        return Err(sqlx::Error::Protocol("the server's answer to COPY has an unknown header".into()));
    }
    let mut rows = Vec::new();
    loop {
        let count: [u8; 2] = fields.array()?;
        if i16::from_be_bytes(count) == END {
            return Ok(rows);
        }
        rows.push(T::read(&mut fields)?);
    }
}

/// What is left of the answer.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], sqlx::Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(cut_short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], sqlx::Error> {
        self.take(N)?.try_into().map_err(|_| cut_short())
    }

    /// The next field; `None` is null.
    fn next(&mut self) -> Result<Option<&'a [u8]>, sqlx::Error> {
        match i32::from_be_bytes(self.array()?) {
            NULL => Ok(None),
            length => self.take(usize::try_from(length).map_err(|_| cut_short())?).map(Some),
        }
    }

    fn value(&mut self) -> Result<&'a [u8], sqlx::Error> {
        self.next()?.ok_or_else(|| sqlx::Error::Protocol("the server's answer to COPY has an unexpected null".into()))
    }

    fn exactly<const N: usize>(&mut self) -> Result<[u8; N], sqlx::Error> {
        self.value()?.try_into().map_err(|_| cut_short())
    }
}

fn cut_short() -> sqlx::Error {
    sqlx::Error::Protocol("the server's answer to COPY is cut short".into())
}

/// Entries as rows of the type of a hash, the hash, a number in the order of the entries from `first` on, and metadata.
pub(super) fn encode(entries: &[NewEntry], first: u64) -> Vec<u8> {
    let mut bytes = [SIGNATURE, &FLAGS].concat();
    for (entry, number) in entries.iter().zip(first..) {
        let (kind, hash) = stored_hash(&entry.hash);
        let metadata = entry.metadata.as_ref().map(to_json);
        bytes.extend(4i16.to_be_bytes());
        put(&mut bytes, &kind.to_be_bytes());
        put(&mut bytes, hash);
        put(&mut bytes, &number.to_be_bytes());
        match metadata {
            Some(text) => put(&mut bytes, &[&[JSONB_VERSION], text.as_bytes()].concat()),
            None => bytes.extend(NULL.to_be_bytes()),
        }
    }
    bytes.extend(END.to_be_bytes());
    bytes
}

fn put(bytes: &mut Vec<u8>, value: &[u8]) {
    // A line of a list is never so long.
    bytes.extend(i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes());
    bytes.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{KnownHash, Pdq};

    /// An answer of the server, with the columns of a [`KnownEntry`].
    fn answer(rows: &[(i64, i16, &[u8])]) -> Vec<u8> {
        let mut bytes = [SIGNATURE, &FLAGS].concat();
        for (id, kind, hash) in rows {
            bytes.extend(3i16.to_be_bytes());
            put(&mut bytes, &id.to_be_bytes());
            put(&mut bytes, &kind.to_be_bytes());
            put(&mut bytes, hash);
        }
        bytes.extend(END.to_be_bytes());
        bytes
    }

    #[test]
    fn an_answer_that_is_cut_short_or_has_a_wrong_hash_is_an_error_and_never_a_shorter_list() {
        let whole = answer(&[(7, 1, &[1; 32]), (8, 3, &[2; 16])]);
        let expected = [
            KnownEntry { id: 7, hash: KnownHash::Pdq(Pdq([1; 32])) },
            KnownEntry { id: 8, hash: KnownHash::Md5([2; 16]) },
        ];
        assert_eq!(decode::<KnownEntry>(&whole).unwrap(), expected);
        for length in 0..whole.len() {
            assert!(decode::<KnownEntry>(&whole[..length]).is_err(), "{length}");
        }
        assert!(decode::<KnownEntry>(&answer(&[(7, 1, &[1; 16])])).is_err());
        assert!(decode::<KnownEntry>(&answer(&[(7, 9, &[1; 32])])).is_err());
    }
}
