//! Writing and finding verdicts in SQLite.

use async_trait::async_trait;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, Row, SqliteConnection};
use uuid::Uuid;

use super::erasure::meets_tombstone;
use super::outbox::insert_outbox_row;
use super::{BEGIN, Sqlite, now, read_verdict_row, stamp};
use crate::job::{Digests, Removal, RevisionCause};
use crate::ledger::columns::{LockedVerdict, VerdictRow, findings_json, reusable_facts, to_json};
use crate::ledger::probe::probe_verdict;
use crate::ledger::{
    Event, ExistingVerdict, HANDOVER_DELAY, Inserted, LedgerError, NewVerdict, ReusableFacts, Revise, Revised, Verdicts,
};

macro_rules! placeholder {
    ($column:tt) => {
        "?"
    };
}

macro_rules! named_placeholder {
    ($column:tt) => {
        concat!("? AS ", name!($column))
    };
}

const INSERT: &str = concat!(
    "INSERT INTO verdicts (",
    with_verdict_columns!(comma_separated, name),
    ") VALUES (",
    with_verdict_columns!(comma_separated, placeholder),
    ") ON CONFLICT (id) DO NOTHING"
);

const REPLAY: &str = concat!(
    "UPDATE verdicts SET revision = verdicts.revision + 1, cause = ?, judged_at = ?, ",
    is_deleted_still!(),
    ", ",
    with_verdict_columns!(comma_separated, assignment),
    " FROM (SELECT ",
    with_verdict_columns!(comma_separated, named_placeholder),
    ") AS entry WHERE verdicts.id = entry.id"
);

const JUDGE: &str =
    "UPDATE verdicts SET revision = revision + 1, cause = $2, judged_at = $3, outcome = $4, reason = $5,
                         label = $6, score = $7, policy = $8, findings = $9
                     WHERE id = $1";

#[async_trait]
impl Verdicts for Sqlite {
    async fn find_verdict(&self, id: Uuid) -> Result<Option<ExistingVerdict>, LedgerError> {
        self.run(move |c| Box::pin(find_existing(c, id))).await
    }

    async fn find_facts(
        &self,
        sha256: [u8; 32],
        detectors: &Digests,
        policy_sha256: &str,
    ) -> Result<Option<ReusableFacts>, LedgerError> {
        let (detectors, policy) = (to_json(detectors), policy_sha256.to_owned());
        self.run(move |c| {
            Box::pin(async move {
                let query = sqlx::query(concat!(
                    select_verdicts!(),
                    " WHERE sha256 = $1 AND scores IS NOT NULL AND reused_from IS NULL AND detectors = $2
                         AND outcome <> 'failed' AND (frames = 1 OR views IS NOT NULL OR policy ->> 'sha256' = $3)
                     LIMIT 1"
                ));
                let row = query.bind(sha256.to_vec()).bind(detectors).bind(policy).fetch_optional(c).await?;
                Ok(row.as_ref().map(read_verdict_row).transpose()?.and_then(reusable_facts))
            })
        })
        .await
    }

    async fn insert(&self, verdicts: &[NewVerdict]) -> Result<Vec<Inserted>, LedgerError> {
        let verdicts = verdicts.to_vec();
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                let mut results = Vec::with_capacity(verdicts.len());
                for verdict in verdicts {
                    results.push(insert_one(&mut transaction, verdict).await?);
                }
                transaction.commit().await?;
                Ok(results)
            })
        })
        .await
    }

    async fn record_policies(&self, policies: &[(String, String)]) -> Result<(), LedgerError> {
        let policies = policies.to_vec();
        self.run(move |c| {
            Box::pin(async move {
                for (sha256, text) in policies {
                    let query = "INSERT INTO policies (sha256, text, first_used) VALUES ($1, $2, $3)
                                 ON CONFLICT (sha256) DO NOTHING";
                    sqlx::query(query).bind(sha256).bind(text).bind(now()).execute(&mut *c).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn now(&self) -> Result<OffsetDateTime, LedgerError> {
        // A file has no other clock than that of its process.
        let now = OffsetDateTime::now_utc();
        Ok(now.replace_microsecond(now.microsecond()).unwrap_or(now))
    }

    async fn revise(&self, revise: &Revise) -> Result<Revised, LedgerError> {
        let revise = revise.clone();
        self.run(move |c| {
            Box::pin(async move {
                let mut transaction = c.begin_with(BEGIN).await?;
                let Some(locked) = lock_verdict(&mut transaction, revise.verdict.id).await? else {
                    transaction.rollback().await?;
                    return Ok(Revised::Missing);
                };
                if locked.existing.revision != revise.expected_revision {
                    transaction.rollback().await?;
                    return Ok(Revised::Stale(locked.existing));
                }
                if revise.cause == RevisionCause::Replayed && meets_tombstone(&mut transaction, &revise.verdict).await?
                {
                    return Ok(Revised::Erased);
                }
                let due_at = OffsetDateTime::now_utc() + HANDOVER_DELAY;
                let event = write_revision(&mut transaction, &revise, &locked, due_at).await?;
                transaction.commit().await?;
                Ok(Revised::Written { revision: revise.revision().number, event })
            })
        })
        .await
    }

    async fn mark_deleted(&self, removal: &Removal) -> Result<u64, LedgerError> {
        let removal = removal.clone();
        let marked = self.run(move |c| {
            let names_version = removal.names_version();
            let query = sqlx::query(mark_deleted!()).bind(removal.bucket).bind(removal.key).bind(stamp(removal.at));
            Box::pin(query.bind(removal.version_id).bind(names_version).execute(c))
        });
        Ok(marked.await?.rows_affected())
    }
}

/// Writes a verdict with its event and takes both back. What is committed is an empty change of another table, so that the
/// file is written too.
pub(super) async fn write_and_take_back(c: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let new = probe_verdict();
    let id = new.verdict.id.to_string();
    let mut transaction = c.begin_with(BEGIN).await?;
    let mut taken_back = transaction.begin().await?;
    insert_one(&mut taken_back, new).await?;
    taken_back.rollback().await?;
    let insert = "INSERT INTO suspects (id, starts, process, started_at) VALUES ($1, 1, $1, $2)";
    sqlx::query(insert).bind(&id).bind(now()).execute(&mut *transaction).await?;
    sqlx::query("DELETE FROM suspects WHERE id = $1").bind(&id).execute(&mut *transaction).await?;
    transaction.commit().await
}

/// Inserts one verdict and its event, or reads back the verdict that exists.
async fn insert_one(c: &mut SqliteConnection, new: NewVerdict) -> Result<Inserted, sqlx::Error> {
    let NewVerdict { verdict, event } = new;
    if meets_tombstone(c, &verdict).await? {
        return Ok(find_existing(c, verdict.id).await?.map_or(Inserted::Erased, Inserted::Existing));
    }
    let inserted = bind_columns(sqlx::query(INSERT), VerdictRow::of(&verdict)).execute(&mut *c).await?;
    if inserted.rows_affected() == 0 {
        let existing = find_existing(c, verdict.id).await?.map(Inserted::Existing);
        return existing.ok_or(sqlx::Error::RowNotFound);
    }
    let Some(event) = event.filter(|event| event.destinations.is_published) else {
        return Ok(Inserted::Written { event: None, may_be_decided: false });
    };
    let is_new = insert_outbox_row(c, verdict.id, &event, OffsetDateTime::now_utc() + HANDOVER_DELAY).await?;
    Ok(Inserted::Written { event: is_new.then_some(event), may_be_decided: false })
}

async fn find_existing(c: &mut SqliteConnection, id: Uuid) -> Result<Option<ExistingVerdict>, sqlx::Error> {
    let query = "SELECT bucket, key, version_id, etag, outcome, revision, decided_at FROM verdicts WHERE id = $1";
    let row = sqlx::query(query).bind(id.to_string()).fetch_optional(c).await?;
    row.map(|row| Ok(read_existing!(row))).transpose()
}

/// Reads a verdict inside a transaction that has the write lock.
pub(super) async fn lock_verdict(c: &mut SqliteConnection, id: Uuid) -> Result<Option<LockedVerdict>, sqlx::Error> {
    let query = sqlx::query(concat!(select_locked!(), " WHERE id = $1")).bind(id.to_string());
    query.fetch_optional(c).await?.map(|row| Ok(read_locked!(row))).transpose()
}

/// Keeps the earlier state, deletes the unpublished events that the new state makes wrong, and writes the new state with
/// its event. Returns the event if it is new.
pub(super) async fn write_revision(
    c: &mut SqliteConnection,
    revise: &Revise,
    locked: &LockedVerdict,
    due_at: OffsetDateTime,
) -> Result<Option<Event>, sqlx::Error> {
    let Revise { verdict, cause, judged_at, event, .. } = revise;
    let id = verdict.id.to_string();
    sqlx::query(concat!(insert_history!("NULL"), " WHERE id = $1")).bind(&id).execute(&mut *c).await?;
    if revise.stale_events(&locked.judgement).in_outbox {
        let query = "DELETE FROM outbox WHERE verdict_id = $1 AND published_at IS NULL
                         AND NOT ($2 AND routing_key = 'image.cleared')";
        sqlx::query(query).bind(&id).bind(revise.keeps_cleared()).execute(&mut *c).await?;
    }
    let query = if *cause == RevisionCause::Replayed {
        let query = sqlx::query(REPLAY).bind(cause.as_str()).bind(stamp(*judged_at));
        bind_columns(query, VerdictRow::of(verdict))
    } else {
        sqlx::query(JUDGE)
            .bind(&id)
            .bind(cause.as_str())
            .bind(stamp(*judged_at))
            .bind(verdict.judgement.outcome.as_str())
            .bind(&verdict.judgement.reason)
            .bind(&verdict.judgement.label)
            .bind(verdict.judgement.score)
            .bind(to_json(&verdict.policy))
            .bind(findings_json(&verdict.judgement.findings))
    };
    query.execute(&mut *c).await?;
    let Some(event) = event.as_ref().filter(|event| event.destinations.is_published) else { return Ok(None) };
    let is_new = insert_outbox_row(c, verdict.id, event, due_at).await?;
    Ok(is_new.then(|| event.clone()))
}

type SqliteQuery<'q> = Query<'q, sqlx::Sqlite, SqliteArguments>;

/// Makes [`bind_columns`].
macro_rules! define_bind {
    ($(($number:literal, $name:ident, $($rest:tt)*))*) => {
        /// Binds all columns of a row.
        fn bind_columns(mut query: SqliteQuery<'_>, row: VerdictRow) -> SqliteQuery<'_> {
            $(query = query.bind(row.$name.into_stored());)*
            query
        }
    };
}
with_verdict_columns!(define_bind,);

/// The value of a column as SQLite stores it: only times have another form.
trait IntoStored {
    type Stored;

    fn into_stored(self) -> Self::Stored;
}

macro_rules! stored_as_they_are {
    ($($type:ty),*) => {
        $(impl IntoStored for $type {
            type Stored = Self;

            fn into_stored(self) -> Self {
                self
            }
        })*
    };
}
stored_as_they_are!(String, Vec<u8>, i32, i64, f32);

impl IntoStored for OffsetDateTime {
    type Stored = String;

    fn into_stored(self) -> String {
        stamp(self)
    }
}

impl<T: IntoStored> IntoStored for Option<T> {
    type Stored = Option<T::Stored>;

    fn into_stored(self) -> Option<T::Stored> {
        self.map(T::into_stored)
    }
}
