//! The hashes of all verdicts in Postgres: the narrow table `image_hashes`.
//!
//! It has no index but a small one by time. It is read in the order in which its rows lie on the disk, and written with
//! the verdicts.

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::types::time::OffsetDateTime;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{LONG_RESPONSE_TIMEOUT, Postgres, RESPONSE_TIMEOUT, read_verdict_row};
use crate::job::Pdq;
use crate::ledger::{HashPage, HashedView, ImageHashes, LedgerError, StoredVerdict};

/// Blocks of 8 KiB per part, which hold some 100,000 rows.
const BLOCKS: u64 = 2_000;

/// Writes the hashes of the verdicts that `written` returns, with their digests. A file that shows nothing has a row for
/// its digests.
macro_rules! insert_hashes {
    () => {
        ", hashed AS (
             INSERT INTO image_hashes (decided_at, verdict_id, view, quality, pdq, md5, sha256)
             SELECT written.decided_at, written.id, coalesce(number - 1, 0), (hash ->> 'quality')::smallint,
                 decode(hash ->> 'pdq', 'hex'), CASE WHEN coalesce(number, 1) = 1 THEN written.md5 END,
                 CASE WHEN coalesce(number, 1) = 1 THEN written.sha256 END
             FROM written LEFT JOIN LATERAL jsonb_array_elements(written.hashes) WITH ORDINALITY AS view (hash, number)
                 ON true
             WHERE number IS NOT NULL OR written.sha256 IS NOT NULL
         )"
    };
}
pub(super) use insert_hashes;

macro_rules! select_hashes {
    () => {
        "SELECT verdict_id, quality, pdq, md5, sha256 FROM image_hashes"
    };
}

#[async_trait]
impl ImageHashes for Postgres {
    async fn page_of_hashes(&self, from: u64) -> Result<HashPage, LedgerError> {
        self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let blocks = "SELECT pg_relation_size('image_hashes') / current_setting('block_size')::bigint";
                let blocks: i64 = sqlx::query_scalar(blocks).fetch_one(&mut *c).await?;
                let (end, next) = (u64::try_from(blocks).unwrap_or(0), from + BLOCKS);
                let query = concat!(select_hashes!(), " WHERE ctid >= $1::text::tid AND ctid < $2::text::tid");
                let [first, last] = [from, next].map(|block| format!("({block},0)"));
                let rows = sqlx::query(query).bind(first).bind(last).fetch_all(c).await?;
                let views = rows.iter().map(read_view).collect::<Result<_, _>>()?;
                Ok(HashPage { views, next: (next < end).then_some(next) })
            })
        })
        .await
    }

    async fn hashes_decided(&self, from: OffsetDateTime, to: OffsetDateTime) -> Result<Vec<HashedView>, LedgerError> {
        self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = concat!(select_hashes!(), " WHERE decided_at >= $1 AND decided_at < $2");
                let rows = sqlx::query(query).bind(from).bind(to).fetch_all(c).await?;
                rows.iter().map(read_view).collect()
            })
        })
        .await
    }

    async fn read_verdicts(&self, ids: &[Uuid]) -> Result<Vec<StoredVerdict>, LedgerError> {
        let ids = ids.to_vec();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = sqlx::query(concat!(select_verdicts!(), " WHERE id = ANY($1)")).bind(ids);
                query.fetch_all(c).await?.iter().map(read_verdict_row).collect()
            })
        })
        .await
    }
}

fn read_view(row: &PgRow) -> Result<HashedView, sqlx::Error> {
    fn digest<const N: usize>(row: &PgRow, column: &str) -> Result<Option<[u8; N]>, sqlx::Error> {
        let bytes: Option<&[u8]> = row.try_get(column)?;
        let invalid = |_| sqlx::Error::Decode(format!("invalid {column} in image_hashes").into());
        bytes.map(<[u8; N]>::try_from).transpose().map_err(invalid)
    }
    let quality: Option<i16> = row.try_get("quality")?;
    let pdq = digest(row, "pdq")?.map(Pdq).zip(quality.and_then(|quality| u8::try_from(quality).ok()));
    Ok(HashedView {
        verdict: row.try_get("verdict_id")?,
        sha256: digest(row, "sha256")?,
        md5: digest(row, "md5")?,
        pdq,
    })
}

/// Deletes the hashes of verdicts, each with its `decided_at`. One statement for each: only a time that is known before the
/// statement is planned is looked up in the index for sure.
pub(super) async fn delete_hashes(
    c: &mut PgConnection,
    verdicts: &[(Uuid, OffsetDateTime)],
) -> Result<u64, sqlx::Error> {
    let mut deleted = 0;
    for (id, decided_at) in verdicts {
        let query = "DELETE FROM image_hashes WHERE decided_at = $2 AND verdict_id = $1";
        deleted += sqlx::query(query).bind(id).bind(decided_at).execute(&mut *c).await?.rows_affected();
    }
    Ok(deleted)
}

/// Deletes the hashes of verdicts that follow each other in time.
pub(super) async fn delete_hashes_between(
    c: &mut PgConnection,
    verdicts: &[(Uuid, OffsetDateTime)],
) -> Result<(), sqlx::Error> {
    let times = verdicts.iter().map(|(_, decided_at)| *decided_at);
    let Some((first, last)) = times.clone().min().zip(times.max()) else { return Ok(()) };
    let ids: Vec<Uuid> = verdicts.iter().map(|(id, _)| *id).collect();
    let query = "DELETE FROM image_hashes WHERE decided_at BETWEEN $2 AND $3 AND verdict_id = ANY($1)";
    sqlx::query(query).bind(ids).bind(first).bind(last).execute(c).await.map(drop)
}
