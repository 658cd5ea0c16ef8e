//! Tombstones and legal holds in SQLite. The digests are those of Postgres, made by the program.

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, QueryBuilder, Row, SqliteConnection};
use uuid::Uuid;

use super::pages::Part;
use super::{BEGIN, Sqlite, now, stamp};
use crate::job::{ImageRef, Outcome, Verdict};
use crate::ledger::columns::{parse_uuid, to_json};
use crate::ledger::erasure::SubjectColumns;
use crate::ledger::{Erased, ErasedRows, Erasure, Hold, LedgerError, Position, Subject, SubjectPage, VerdictFilter};

/// A field of the metadata as Postgres writes it: a text, a number, or true or false.
macro_rules! has_field {
    ($name:literal, $value:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM json_each(verdicts.metadata) AS field
                     WHERE field.key = ",
            $name,
            " AND CASE field.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'
                                  ELSE CAST(field.value AS text) END = ",
            $value,
            ")"
        )
    };
}

/// Whether `hold` selects a row of `verdicts`.
macro_rules! is_held {
    () => {
        concat!(
            "((hold.bucket = verdicts.bucket AND hold.key = verdicts.key) OR hold.sha256 = verdicts.sha256 OR ",
            has_field!("hold.name", "hold.value"),
            ")"
        )
    };
}

/// The present time, as the tables have it.
macro_rules! sql_now {
    () => {
        "strftime('%Y-%m-%dT%H:%M:%f000Z', 'now')"
    };
}

/// The condition of a verdict under a hold.
macro_rules! with_hold {
    () => {
        concat!("EXISTS (SELECT 1 FROM holds AS hold WHERE until > ", sql_now!(), " AND ", is_held!(), ")")
    };
}
pub(super) use {has_field, is_held, sql_now, with_hold};

macro_rules! select_hold {
    () => {
        "SELECT hold.id, reference, bucket, key, sha256, name, value, until, made_at FROM holds AS hold"
    };
}

/// The verdicts among the ids `$1`.
macro_rules! among {
    ($column:literal) => {
        concat!($column, " IN (SELECT value FROM json_each($1))")
    };
}

/// The secret of the digests.
struct Secret(Vec<u8>);

impl Secret {
    async fn read(c: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        sqlx::query_scalar("SELECT secret FROM tombstone_key").fetch_one(c).await.map(Self)
    }

    fn digest(&self, value: &[u8]) -> Vec<u8> {
        let inner = Sha256::new().chain_update(&self.0).chain_update(value).finalize();
        Sha256::new().chain_update(&self.0).chain_update(inner).finalize().to_vec()
    }

    fn place(&self, image: &ImageRef) -> Vec<u8> {
        self.digest(&[image.bucket.as_bytes(), b"\0", image.key.as_bytes()].concat())
    }
}

#[async_trait]
impl Erasure for Sqlite {
    async fn page_of_subject(&self, subject: &Subject, from: Option<Position>) -> Result<SubjectPage, LedgerError> {
        let subject = subject.clone();
        self.run(move |c| {
            Box::pin(async move {
                let filter = VerdictFilter::default();
                let mut part = Part::new(&filter, from);
                let (mut query, next) = match &subject {
                    Subject::Image { bucket, key } => {
                        let mut query = QueryBuilder::new("SELECT id FROM verdicts WHERE bucket = ");
                        query.push_bind(bucket).push(" AND key = ").push_bind(key);
                        (query, None)
                    }
                    Subject::Content(sha256) => {
                        let next = part.shorten(&mut *c).await?;
                        let mut query = part.query("SELECT id FROM verdicts");
                        query.push(" AND sha256 = ").push_bind(sha256.to_vec());
                        (query, next)
                    }
                    Subject::Metadata { name, value } => {
                        let next = part.shorten(&mut *c).await?;
                        let mut query = part.query("SELECT id FROM verdicts");
                        query.push(" AND EXISTS (SELECT 1 FROM (SELECT ").push_bind(name).push(" AS name, ");
                        query
                            .push_bind(value)
                            .push(" AS value) AS hold WHERE ")
                            .push(has_field!("hold.name", "hold.value"));
                        query.push(")");
                        (query, next)
                    }
                };
                let ids: Vec<String> = query.build_query_scalar().fetch_all(c).await?;
                let ids = ids.iter().map(|id| parse_uuid(id)).collect::<Result<_, _>>()?;
                Ok(SubjectPage { ids, next })
            })
        })
        .await
    }

    async fn hold_on(&self, verdicts: &[Uuid]) -> Result<Option<Hold>, LedgerError> {
        let ids = as_json(verdicts);
        self.run(move |c| Box::pin(async move { hold_on(c, &ids).await })).await
    }

    async fn erase(&self, verdicts: &[Uuid]) -> Result<Erased, LedgerError> {
        let ids = as_json(verdicts);
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                if let Some(hold) = hold_on(&mut transaction, &ids).await? {
                    transaction.rollback().await?;
                    return Ok(Erased::Held(hold));
                }
                let mut erased = ErasedRows {
                    tombstones: insert_tombstones(&mut transaction, &ids).await?,
                    ..ErasedRows::default()
                };
                for (query, rows) in [
                    (
                        concat!(
                            "DELETE FROM backfill_progress
                             WHERE EXISTS (SELECT 1 FROM verdicts WHERE ",
                            among!("id"),
                            " AND mark = key)"
                        ),
                        &mut erased.backfill_marks,
                    ),
                    (
                        concat!(
                            "DELETE FROM holds AS hold WHERE until <= ",
                            sql_now!(),
                            " AND EXISTS (SELECT 1 FROM verdicts WHERE ",
                            among!("verdicts.id"),
                            " AND ",
                            is_held!(),
                            ")"
                        ),
                        &mut erased.holds,
                    ),
                    (concat!("DELETE FROM outbox WHERE ", among!("verdict_id")), &mut erased.events),
                    (concat!("DELETE FROM verdict_history WHERE ", among!("verdict_id")), &mut erased.history),
                    (concat!("DELETE FROM suspects WHERE ", among!("id")), &mut erased.suspects),
                    (concat!("DELETE FROM backfill_jobs WHERE ", among!("id")), &mut erased.backfill_jobs),
                    (concat!("DELETE FROM verdicts WHERE ", among!("id")), &mut erased.verdicts),
                ] {
                    *rows = sqlx::query(query).bind(&ids).execute(&mut *transaction).await?.rows_affected();
                }
                transaction.commit().await?;
                // The log of changes still has the pages as they were.
                sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *c).await?;
                Ok(Erased::Done(erased))
            })
        })
        .await
    }

    async fn are_erased(&self, objects: &[ImageRef]) -> Result<Vec<bool>, LedgerError> {
        let objects = objects.to_vec();
        self.run(move |c| {
            Box::pin(async move {
                if !has_tombstones(c).await? {
                    return Ok(vec![false; objects.len()]);
                }
                let secret = Secret::read(c).await?;
                let mut are_erased = Vec::with_capacity(objects.len());
                for object in objects {
                    let query = "SELECT EXISTS (SELECT 1 FROM tombstones
                                                WHERE place = $1 AND content IS NOT NULL AND etag = $2)";
                    let etag = object.etag.as_ref().map(|etag| secret.digest(etag.as_bytes()));
                    let query = sqlx::query_scalar(query).bind(secret.place(&object)).bind(etag);
                    are_erased.push(query.fetch_one(&mut *c).await?);
                }
                Ok(are_erased)
            })
        })
        .await
    }

    async fn add_hold(&self, hold: &Hold) -> Result<(), LedgerError> {
        let (hold, subject) = (hold.clone(), SubjectColumns::of(&hold.subject));
        self.run(move |c| {
            let query = sqlx::query(
                "INSERT INTO holds (id, reference, bucket, key, sha256, name, value, until, made_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            );
            let query = query.bind(hold.id.to_string()).bind(hold.reference).bind(subject.bucket).bind(subject.key);
            let query = query.bind(subject.sha256).bind(subject.name).bind(subject.value);
            Box::pin(query.bind(stamp(hold.until)).bind(stamp(hold.made_at)).execute(c))
        })
        .await
        .map(drop)
    }

    async fn holds(&self) -> Result<Vec<Hold>, LedgerError> {
        self.run(|c| {
            Box::pin(async move {
                let hold = |row: &SqliteRow| read_hold!(row);
                let query = concat!(select_hold!(), " ORDER BY until, hold.id");
                sqlx::query(query).fetch_all(c).await?.iter().map(hold).collect()
            })
        })
        .await
    }

    async fn release_hold(&self, id: Uuid) -> Result<bool, LedgerError> {
        let released =
            self.run(move |c| Box::pin(sqlx::query("DELETE FROM holds WHERE id = $1").bind(id.to_string()).execute(c)));
        Ok(released.await?.rows_affected() > 0)
    }
}

fn as_json(ids: &[Uuid]) -> String {
    to_json(&ids.iter().map(Uuid::to_string).collect::<Vec<_>>())
}

async fn has_tombstones(c: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tombstones)").fetch_one(c).await
}

/// Whether a verdict meets a tombstone; `postgres/erasure.rs` says which do.
pub(super) async fn meets_tombstone(c: &mut SqliteConnection, verdict: &Verdict) -> Result<bool, sqlx::Error> {
    if !has_tombstones(c).await? {
        return Ok(false);
    }
    let secret = Secret::read(c).await?;
    let query = "SELECT EXISTS (
                     SELECT 1 FROM tombstones
                     WHERE place = $1 AND ($2 OR content = $3
                         OR ($3 IS NULL AND (etag = $4 OR verdict = $5))))";
    sqlx::query_scalar(query)
        .bind(secret.place(&verdict.image))
        .bind(verdict.judgement.outcome == Outcome::Missing)
        .bind(verdict.sha256.map(|sha256| secret.digest(&sha256)))
        .bind(verdict.image.etag.as_ref().map(|etag| secret.digest(etag.as_bytes())))
        .bind(secret.digest(verdict.id.as_bytes()))
        .fetch_one(c)
        .await
}

async fn insert_tombstones(c: &mut SqliteConnection, ids: &str) -> Result<u64, sqlx::Error> {
    let secret = Secret::read(c).await?;
    let query = concat!("SELECT id, bucket, key, etag, sha256 FROM verdicts WHERE ", among!("id"));
    let mut written = 0;
    for row in sqlx::query(query).bind(ids).fetch_all(&mut *c).await? {
        let (id, etag): (String, Option<String>) = (row.try_get("id")?, row.try_get("etag")?);
        let sha256: Option<Vec<u8>> = row.try_get("sha256")?;
        let image = ImageRef { bucket: row.try_get("bucket")?, key: row.try_get("key")?, version_id: None, etag: None };
        let id = parse_uuid(&id)?;
        let insert = "INSERT INTO tombstones (place, content, etag, verdict, erased_at) VALUES ($1, $2, $3, $4, $5)
                      ON CONFLICT DO NOTHING";
        written += sqlx::query(insert)
            .bind(secret.place(&image))
            .bind(sha256.as_ref().map(|sha256| secret.digest(sha256)))
            .bind(etag.map(|etag| secret.digest(etag.as_bytes())))
            .bind(secret.digest(id.as_bytes()))
            .bind(now())
            .execute(&mut *c)
            .await?
            .rows_affected();
    }
    Ok(written)
}

async fn hold_on(c: &mut SqliteConnection, ids: &str) -> Result<Option<Hold>, sqlx::Error> {
    let query = concat!(
        select_hold!(),
        " WHERE until > ",
        sql_now!(),
        " AND EXISTS (SELECT 1 FROM verdicts WHERE ",
        among!("verdicts.id"),
        " AND ",
        is_held!(),
        ") ORDER BY until DESC LIMIT 1"
    );
    let row = sqlx::query(query).bind(ids).fetch_optional(c).await?;
    row.as_ref().map(|row| read_hold!(row)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_never_changes_between_releases() {
        let secret = Secret(vec![7; 32]);
        let image = ImageRef { bucket: "b".into(), key: "k".into(), version_id: None, etag: None };
        assert_eq!(secret.place(&image), secret.digest(b"b\0k"));
        assert_eq!(
            hex::encode(secret.place(&image)),
            "26ed33930fb451e122373f2a317d468a16862b66b3841aab2c1ef057844b273c"
        );
    }
}
