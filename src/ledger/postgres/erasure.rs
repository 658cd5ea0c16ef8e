//! Tombstones and legal holds in Postgres.
//!
//! The insert of verdicts locks the empty table `erase_lock` until it has committed, and takes its snapshot after the lock.
//! Erasing locks the same table first: it waits for inserts that run, and later ones see its tombstones. Nothing else locks
//! the table in a way that conflicts, so that neither a `prune`, a vacuum nor a dump is in the way.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::image_hashes::delete_hashes;
use super::pages::Parts;
use super::{LONG_RESPONSE_TIMEOUT, Postgres, RESPONSE_TIMEOUT, is_contended};
use crate::job::{ImageRef, Verdict};
use crate::ledger::erasure::SubjectColumns;
use crate::ledger::{Erased, ErasedRows, Erasure, Hold, LedgerError, Position, Subject, SubjectPage, VerdictFilter};
use crate::retry;

/// How long erasing waits for inserts that run. Inserts of all workers wait behind it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it then waits for a row that another transaction has locked, and for one of its statements.
const ROW_LOCK_TIMEOUT: Duration = Duration::from_millis(200);
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);

/// The secret of the digests. The subquery is run once for each statement.
macro_rules! secret {
    () => {
        "(SELECT secret FROM tombstone_key)"
    };
}

/// The keyed digest of bytes; null of null.
macro_rules! keyed_digest {
    ($value:expr) => {
        concat!("sha256(", secret!(), " || sha256(", secret!(), " || ", $value, "))")
    };
}

/// The keyed digest of a text.
macro_rules! keyed_text {
    ($value:expr) => {
        keyed_digest!(concat!("convert_to(", $value, ", 'UTF8')"))
    };
}

/// The keyed digest of the bucket and the key of a row. Neither can contain a zero byte.
macro_rules! keyed_place {
    ($row:literal) => {
        keyed_digest!(concat!(
            "convert_to(",
            $row,
            ".bucket, 'UTF8') || '\\x00'::bytea || convert_to(",
            $row,
            ".key, 'UTF8')"
        ))
    };
}

/// Whether a row `entry` meets no tombstone. While there are none, this costs one look at an empty table.
///
/// A tombstone is met by its content at its place. An entry that has fetched nothing meets it where the object is missing,
/// and as the job or the state of the object that it was written for. Everything else is a new image.
macro_rules! meets_no_tombstone {
    () => {
        concat!(
            "(NOT EXISTS (SELECT FROM tombstones) OR NOT EXISTS (
                 SELECT FROM tombstones
                 WHERE place = ",
            keyed_place!("entry"),
            " AND (entry.outcome = 'missing' OR content = ",
            keyed_digest!("entry.sha256"),
            " OR (entry.sha256 IS NULL AND (tombstones.etag = ",
            keyed_text!("entry.etag"),
            " OR verdict = ",
            keyed_digest!("uuid_send(entry.id)"),
            ")))))"
        )
    };
}
pub(super) use {keyed_digest, keyed_place, keyed_text, meets_no_tombstone, secret};

/// Whether `hold` selects a row of `verdicts`.
macro_rules! is_held {
    () => {
        "((hold.bucket = verdicts.bucket AND hold.key = verdicts.key) OR hold.sha256 = verdicts.sha256
             OR verdicts.metadata ->> hold.name = hold.value)"
    };
}

/// The condition of a verdict under no hold. As a scalar subquery it is tried for one verdict after the other.
macro_rules! without_hold {
    () => {
        concat!("(SELECT true FROM holds AS hold WHERE until > now() AND ", is_held!(), " LIMIT 1) IS NULL")
    };
}

/// The condition of a verdict under a hold.
macro_rules! with_hold {
    () => {
        concat!("(SELECT true FROM holds AS hold WHERE until > now() AND ", is_held!(), " LIMIT 1) IS NOT NULL")
    };
}
pub(super) use {is_held, with_hold, without_hold};

macro_rules! select_hold {
    () => {
        "SELECT id::text AS id, reference, bucket, key, sha256, name, value, until, made_at FROM holds AS hold"
    };
}

/// Those of some verdicts that were not written because they meet a tombstone.
const ERASED: &str = concat!(
    "SELECT id FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[])
         AS entry (id, bucket, key, sha256, etag, outcome)
     WHERE NOT ",
    meets_no_tombstone!()
);

const INSERT_TOMBSTONES: &str = concat!(
    "INSERT INTO tombstones (place, content, etag, verdict)
     SELECT DISTINCT ",
    keyed_place!("verdicts"),
    ", ",
    keyed_digest!("sha256"),
    ", ",
    keyed_text!("etag"),
    ", ",
    keyed_digest!("uuid_send(id)"),
    "
     FROM verdicts WHERE id = ANY($1) ON CONFLICT DO NOTHING"
);

/// The mark of a listing is a key.
const DELETE_MARKS: &str = "DELETE FROM backfill_progress
     WHERE EXISTS (SELECT FROM verdicts WHERE id = ANY($1) AND mark = key)";

const DELETE_ENDED_HOLDS: &str = concat!(
    "DELETE FROM holds AS hold
     WHERE until <= now() AND EXISTS (SELECT FROM verdicts WHERE id = ANY($1) AND ",
    is_held!(),
    ")"
);

#[async_trait]
impl Erasure for Postgres {
    async fn page_of_subject(&self, subject: &Subject, from: Option<Position>) -> Result<SubjectPage, LedgerError> {
        let subject = subject.clone();
        self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let filter = VerdictFilter::default();
                let mut parts = Parts::new(&filter, from);
                let (mut query, next) = match &subject {
                    Subject::Image { bucket, key } => {
                        let mut query = sqlx::QueryBuilder::new("SELECT id FROM verdicts WHERE bucket = ");
                        query.push_bind(bucket).push(" AND key = ").push_bind(key);
                        (query, None)
                    }
                    Subject::Content(sha256) => {
                        let next = parts.shorten(&mut *c).await?;
                        let mut query = parts.window("SELECT id");
                        query.push(" AND sha256 = ").push_bind(sha256.to_vec());
                        (query, next)
                    }
                    Subject::Metadata { name, value } => {
                        let next = parts.shorten(&mut *c).await?;
                        let mut query = parts.window("SELECT id");
                        query.push(" AND metadata ->> ").push_bind(name).push(" = ").push_bind(value);
                        (query, next)
                    }
                };
                Ok(SubjectPage { ids: query.build_query_scalar().fetch_all(c).await?, next })
            })
        })
        .await
    }

    async fn hold_on(&self, verdicts: &[Uuid]) -> Result<Option<Hold>, LedgerError> {
        let verdicts = verdicts.to_vec();
        self.run(LONG_RESPONSE_TIMEOUT, move |c| Box::pin(async move { hold_on(c, &verdicts).await })).await
    }

    async fn erase(&self, verdicts: &[Uuid]) -> Result<Erased, LedgerError> {
        let attempt = || {
            let verdicts = verdicts.to_vec();
            self.run(LONG_RESPONSE_TIMEOUT, move |c| Box::pin(async move { erase(c, &verdicts).await }))
        };
        retry::retry_briefly(is_contended, attempt).await
    }

    async fn are_erased(&self, objects: &[ImageRef]) -> Result<Vec<bool>, LedgerError> {
        let buckets: Vec<String> = objects.iter().map(|object| object.bucket.clone()).collect();
        let keys: Vec<String> = objects.iter().map(|object| object.key.clone()).collect();
        let etags: Vec<Option<String>> = objects.iter().map(|object| object.etag.clone()).collect();
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query_scalar(concat!(
                "SELECT EXISTS (SELECT FROM tombstones) AND EXISTS (
                     SELECT FROM tombstones WHERE place = ",
                keyed_place!("object"),
                " AND content IS NOT NULL AND etag = ",
                keyed_text!("object.etag"),
                ")
                 FROM UNNEST($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS object (bucket, key, etag, number)
                 ORDER BY number"
            ));
            Box::pin(query.bind(buckets).bind(keys).bind(etags).fetch_all(c))
        })
        .await
    }

    async fn add_hold(&self, hold: &Hold) -> Result<(), LedgerError> {
        let (hold, subject) = (hold.clone(), SubjectColumns::of(&hold.subject));
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "INSERT INTO holds (id, reference, bucket, key, sha256, name, value, until, made_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            );
            let query = query.bind(hold.id).bind(hold.reference).bind(subject.bucket).bind(subject.key);
            let query = query.bind(subject.sha256).bind(subject.name).bind(subject.value);
            Box::pin(query.bind(hold.until).bind(hold.made_at).execute(c))
        })
        .await
        .map(drop)
    }

    async fn holds(&self) -> Result<Vec<Hold>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, |c| {
            Box::pin(async move {
                let hold = |row: &PgRow| read_hold!(row);
                let query = concat!(select_hold!(), " ORDER BY until, hold.id");
                sqlx::query(query).fetch_all(c).await?.iter().map(hold).collect()
            })
        })
        .await
    }

    async fn release_hold(&self, id: Uuid) -> Result<bool, LedgerError> {
        let released = self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(sqlx::query("DELETE FROM holds WHERE id = $1").bind(id).execute(c))
        });
        Ok(released.await?.rows_affected() > 0)
    }
}

/// Those of some verdicts that meet a tombstone.
pub(super) async fn find_erased(c: &mut PgConnection, verdicts: &[Verdict]) -> Result<Vec<Uuid>, sqlx::Error> {
    let column = |text: for<'v> fn(&'v Verdict) -> &'v str| verdicts.iter().map(text).collect::<Vec<&str>>();
    let ids: Vec<Uuid> = verdicts.iter().map(|verdict| verdict.id).collect();
    let contents: Vec<Option<Vec<u8>>> = verdicts.iter().map(|verdict| verdict.sha256.map(Vec::from)).collect();
    let etags: Vec<Option<&str>> = verdicts.iter().map(|verdict| verdict.image.etag.as_deref()).collect();
    sqlx::query_scalar(ERASED)
        .bind(ids)
        .bind(column(|verdict| &verdict.image.bucket))
        .bind(column(|verdict| &verdict.image.key))
        .bind(contents)
        .bind(etags)
        .bind(column(|verdict| verdict.judgement.outcome.as_str()))
        .fetch_all(c)
        .await
}

async fn hold_on(c: &mut PgConnection, verdicts: &[Uuid]) -> Result<Option<Hold>, sqlx::Error> {
    let query = concat!(
        select_hold!(),
        " WHERE until > now() AND EXISTS (SELECT FROM verdicts WHERE verdicts.id = ANY($1) AND ",
        is_held!(),
        ") ORDER BY until DESC LIMIT 1"
    );
    let row = sqlx::query(query).bind(verdicts).fetch_optional(c).await?;
    row.as_ref().map(|row| read_hold!(row)).transpose()
}

async fn erase(c: &mut PgConnection, verdicts: &[Uuid]) -> Result<Erased, sqlx::Error> {
    let mut transaction = c.begin().await?;
    let timeout = LOCK_TIMEOUT.as_millis().to_string();
    sqlx::query("SELECT set_config('lock_timeout', $1, true)").bind(timeout).execute(&mut *transaction).await?;
    // Before any row: an insert that waits for one of these rows has a lock on the table. The mode also excludes another
    // erasure.
    sqlx::query("LOCK TABLE erase_lock IN SHARE ROW EXCLUSIVE MODE").execute(&mut *transaction).await?;
    // From here on inserts wait.
    let [row, statement] = [ROW_LOCK_TIMEOUT, STATEMENT_TIMEOUT].map(|timeout| timeout.as_millis().to_string());
    let set = "SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true)";
    sqlx::query(set).bind(row).bind(statement).execute(&mut *transaction).await?;
    // A hold that is added meanwhile waits for this batch, and keeps what the batch has left.
    sqlx::query("LOCK TABLE holds IN SHARE MODE").execute(&mut *transaction).await?;
    // A revision must not change the content between the tombstones and the deletion.
    let lock = "SELECT id, decided_at FROM verdicts WHERE id = ANY($1) ORDER BY id FOR UPDATE";
    let locked: Vec<(Uuid, OffsetDateTime)> = sqlx::query_as(lock).bind(verdicts).fetch_all(&mut *transaction).await?;
    let ids: Vec<Uuid> = locked.iter().map(|(id, _)| *id).collect();
    if let Some(hold) = hold_on(&mut transaction, &ids).await? {
        transaction.rollback().await?;
        return Ok(Erased::Held(hold));
    }
    let mut erased = ErasedRows { hashes: delete_hashes(&mut transaction, &locked).await?, ..ErasedRows::default() };
    for (query, rows) in [
        (INSERT_TOMBSTONES, &mut erased.tombstones),
        (DELETE_MARKS, &mut erased.backfill_marks),
        (DELETE_ENDED_HOLDS, &mut erased.holds),
        ("DELETE FROM outbox WHERE verdict_id = ANY($1)", &mut erased.events),
        ("DELETE FROM webhook_deliveries WHERE verdict_id = ANY($1)", &mut erased.webhook_deliveries),
        ("DELETE FROM verdict_history WHERE verdict_id = ANY($1)", &mut erased.history),
        ("DELETE FROM suspects WHERE id = ANY($1)", &mut erased.suspects),
        ("DELETE FROM backfill_jobs WHERE id = ANY($1)", &mut erased.backfill_jobs),
        ("DELETE FROM review_items WHERE verdict_id = ANY($1)", &mut erased.review_items),
        ("DELETE FROM reports WHERE verdict_id = ANY($1)", &mut erased.reports),
        ("DELETE FROM decision_notes WHERE verdict_id = ANY($1)", &mut erased.decision_notes),
        ("DELETE FROM decided_contents WHERE verdict_id = ANY($1)", &mut erased.decided_contents),
        ("DELETE FROM verdicts WHERE id = ANY($1)", &mut erased.verdicts),
    ] {
        *rows = sqlx::query(query).bind(&ids).execute(&mut *transaction).await?.rows_affected();
    }
    transaction.commit().await?;
    Ok(Erased::Done(erased))
}
