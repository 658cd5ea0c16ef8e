//! The statements that write verdicts with their events: one array per column, one statement for all rows.
//!
//! Parameters 1 to 5 are the events, 6 the seconds until they are due, 7 and 8 cause and time of the revision, 9 and 10
//! the dictionaries, and from 11 on the columns of `with_verdict_columns`. Few verdicts have an event, so that events
//! are sent apart.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::types::time::OffsetDateTime;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::erasure::{keyed_digest, keyed_place, keyed_text, meets_no_tombstone, secret};
use super::image_hashes::insert_hashes;
use crate::job::{RevisionCause, Verdict};
use crate::ledger::columns::{VerdictRow, findings_json, to_json};
use crate::ledger::{Event, Revise};

/// The verdicts that a statement has written.
pub(super) type WrittenRows = HashMap<Uuid, WrittenRow>;

/// What a statement tells of a verdict that it has written.
pub(super) struct WrittenRow {
    /// The payload of its event as it is stored.
    payload: Option<String>,
    /// Whether a person has decided about equal bytes.
    pub has_decision: bool,
}

/// Writes the events of the verdicts that `written` returns, and selects both, with whether there is a decision on the content.
macro_rules! insert_events {
    ($has_decision:literal) => {
        concat!(
        ", announced AS (
             INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, due_at)
             SELECT event_id, verdict_id, routing_key, correlation_id, payload::jsonb, now() + make_interval(secs => $6)
             FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[])
                     AS event (event_id, verdict_id, routing_key, correlation_id, payload)
                 JOIN written ON written.id = verdict_id
             ON CONFLICT (event_id) DO NOTHING
             RETURNING verdict_id, payload::text AS payload
         )
         SELECT written.id, announced.payload, ",
            $has_decision,
            " AS has_decision FROM written LEFT JOIN announced ON announced.verdict_id = written.id"
        )
    };
}

/// The arrays as rows, with the names and types of the columns.
macro_rules! rows_of_arrays {
    () => {
        concat!(
            "(SELECT ",
            with_verdict_columns!(comma_separated, value),
            " FROM UNNEST(",
            with_verdict_columns!(comma_separated, parameter),
            ") AS arrays (",
            with_verdict_columns!(comma_separated, name),
            ")) AS entry"
        )
    };
}

/// One column of [`rows_of_arrays`].
macro_rules! value {
    (($number:literal, $name:ident, $type:ty, plain, $sql:ident, $replay:ident)) => {
        concat!(stringify!($name), "::", stringify!($sql), " AS ", stringify!($name))
    };
    (($number:literal, $name:ident, $type:ty, (dictionary $values:literal), $sql:ident, $replay:ident)) => {
        concat!("($", $values, "::text[])[", stringify!($name), "]::", stringify!($sql), " AS ", stringify!($name))
    };
}

/// The parameter of one column.
macro_rules! parameter {
    (($number:literal, $name:ident, $type:ty, (dictionary $values:literal), $sql:ident, $replay:ident)) => {
        concat!("$", $number, "::integer[]")
    };
    (($number:literal, $name:ident, $type:ty, plain, uuid, $replay:ident)) => {
        concat!("$", $number, "::text[]")
    };
    (($number:literal, $name:ident, $type:ty, plain, jsonb, $replay:ident)) => {
        concat!("$", $number, "::text[]")
    };
    (($number:literal, $name:ident, $type:ty, plain, $sql:ident, $replay:ident)) => {
        concat!("$", $number, "::", stringify!($sql), "[]")
    };
}

const INSERT: &str = concat!(
    // See `erasure.rs`.
    "WITH gate AS (INSERT INTO erase_lock SELECT true WHERE false), written AS (INSERT INTO verdicts (",
    with_verdict_columns!(comma_separated, name),
    ", cause, judged_at) SELECT entry.*, $7::text, $8::timestamptz FROM ",
    rows_of_arrays!(),
    " WHERE ",
    meets_no_tombstone!(),
    " ON CONFLICT (id) DO NOTHING RETURNING id, decided_at, sha256, md5, hashes)",
    insert_hashes!(),
    // In the same statement, because a question for each verdict would cost more than its share of a commit. With EXISTS in
    // place of a row at most, Postgres may read all decided contents.
    insert_events!(
        "coalesce((SELECT true FROM decided_contents AS content WHERE content.sha256 = written.sha256 LIMIT 1), false)"
    )
);

const REPLAY: &str = concat!(
    "WITH written AS (UPDATE verdicts SET ",
    with_verdict_columns!(comma_separated, assignment),
    ", revision = verdicts.revision + 1, cause = $7::text, judged_at = $8::timestamptz, ",
    is_deleted_still!(),
    " FROM ",
    rows_of_arrays!(),
    " WHERE verdicts.id = entry.id
         RETURNING verdicts.id, verdicts.decided_at, verdicts.sha256, verdicts.md5, verdicts.hashes)",
    insert_hashes!(),
    insert_events!("true")
);

const JUDGE: &str = concat!(
    "WITH written AS (
         UPDATE verdicts
         SET outcome = entry.outcome, reason = entry.reason, label = entry.label, score = entry.score,
             policy = entry.policy::jsonb, findings = entry.findings::jsonb, revision = verdicts.revision + 1,
             cause = entry.cause, judged_at = entry.judged_at
         FROM UNNEST($7::uuid[], $8::text[], $9::text[], $10::text[], $11::real[], $12::text[], $13::text[], $14::text[],
                     $15::timestamptz[])
             AS entry (id, outcome, reason, label, score, policy, findings, cause, judged_at)
         WHERE verdicts.id = entry.id
         RETURNING verdicts.id
     )",
    insert_events!("true")
);

/// Makes [`ColumnArrays`].
macro_rules! define_arrays {
    ($(($number:literal, $name:ident, $type:ty, $transport:tt, $sql:ident, $replay:ident))*) => {
        /// Verdicts as one array per column, which is what UNNEST takes.
        #[derive(Clone, Default)]
        pub(super) struct ColumnArrays {
            $($name: array!($transport, $type),)*
        }

        impl ColumnArrays {
            fn push(&mut self, row: VerdictRow) {
                $(self.$name.push(row.$name);)*
            }

            fn bind<'q>(&'q self, mut query: PgQuery<'q>) -> PgQuery<'q> {
                $(query = query.bind(bound!($transport, self.$name));)*
                query
            }
        }
    };
}

macro_rules! array {
    (plain, $type:ty) => { Vec<$type> };
    ((dictionary $values:literal), $type:ty) => { Dictionary };
}

macro_rules! bound {
    (plain, $array:expr) => {
        &$array
    };
    ((dictionary $values:literal), $array:expr) => {
        &$array.indexes
    };
}

type PgQuery<'q> = Query<'q, sqlx::Postgres, PgArguments>;

with_verdict_columns!(define_arrays,);

/// A column of few different values. Each value is sent once, and for a row only its index, counted from 1. Otherwise
/// these columns would be a third of a row's bytes with one detector, and more with several.
#[derive(Clone, Default)]
struct Dictionary {
    values: Vec<String>,
    indexes: Vec<i32>,
}

impl Dictionary {
    fn push(&mut self, value: String) {
        let index = self.values.iter().position(|known| *known == value).unwrap_or_else(|| {
            self.values.push(value);
            self.values.len() - 1
        });
        self.indexes.push(i32::try_from(index + 1).unwrap_or(i32::MAX));
    }
}

impl ColumnArrays {
    pub(super) fn of<'v>(verdicts: impl Iterator<Item = &'v Verdict>) -> Self {
        let mut columns = Self::default();
        verdicts.for_each(|verdict| columns.push(VerdictRow::of(verdict)));
        columns
    }

    /// Inserts the verdicts that do not exist, with their events.
    pub(super) async fn insert(
        &self,
        c: &mut PgConnection,
        events: &EventArrays,
        due_in: Duration,
    ) -> Result<WrittenRows, sqlx::Error> {
        let query = events.bind(sqlx::query(INSERT), due_in).bind(None::<&str>).bind(None::<OffsetDateTime>);
        written_rows(c, self.bind(query.bind(&self.detectors.values).bind(&self.policy.values))).await
    }

    /// Replaces the state of verdicts that were screened once more. Their earlier hashes have to be deleted before.
    pub(super) async fn replay(
        &self,
        c: &mut PgConnection,
        events: &EventArrays,
        due_in: Duration,
        judged_at: OffsetDateTime,
    ) -> Result<WrittenRows, sqlx::Error> {
        let query = events.bind(sqlx::query(REPLAY), due_in).bind(RevisionCause::Replayed.as_str()).bind(judged_at);
        written_rows(c, self.bind(query.bind(&self.detectors.values).bind(&self.policy.values))).await
    }
}

/// The columns that a judgement of stored facts writes.
#[derive(Clone, Default)]
pub(super) struct JudgementArrays {
    id: Vec<Uuid>,
    outcome: Vec<&'static str>,
    reason: Vec<Option<String>>,
    label: Vec<Option<String>>,
    score: Vec<Option<f32>>,
    policy: Vec<String>,
    findings: Vec<Option<String>>,
    cause: Vec<&'static str>,
    judged_at: Vec<OffsetDateTime>,
}

impl JudgementArrays {
    pub(super) fn of<'r>(changes: impl Iterator<Item = &'r Revise>) -> Self {
        let mut arrays = Self::default();
        for Revise { verdict, cause, judged_at, .. } in changes {
            arrays.id.push(verdict.id);
            arrays.outcome.push(verdict.judgement.outcome.as_str());
            arrays.reason.push(verdict.judgement.reason.clone());
            arrays.label.push(verdict.judgement.label.clone());
            arrays.score.push(verdict.judgement.score);
            arrays.policy.push(to_json(&verdict.policy));
            arrays.findings.push(findings_json(&verdict.judgement.findings));
            arrays.cause.push(cause.as_str());
            arrays.judged_at.push(*judged_at);
        }
        arrays
    }

    /// Replaces the judgement of verdicts.
    pub(super) async fn write(
        &self,
        c: &mut PgConnection,
        events: &EventArrays,
        due_in: Duration,
    ) -> Result<WrittenRows, sqlx::Error> {
        let query = events
            .bind(sqlx::query(JUDGE), due_in)
            .bind(&self.id)
            .bind(&self.outcome)
            .bind(&self.reason)
            .bind(&self.label)
            .bind(&self.score)
            .bind(&self.policy)
            .bind(&self.findings)
            .bind(&self.cause)
            .bind(&self.judged_at);
        written_rows(c, query).await
    }
}

/// Events as one array per column.
#[derive(Clone, Default)]
pub(super) struct EventArrays {
    id: Vec<Uuid>,
    verdict_id: Vec<Uuid>,
    routing_key: Vec<String>,
    correlation_id: Vec<String>,
    payload: Vec<String>,
}

impl EventArrays {
    /// Of verdict ids and those of their events that are published.
    pub(super) fn of<'e>(events: impl Iterator<Item = (Uuid, &'e Event)>) -> Self {
        let mut arrays = Self::default();
        for (verdict, event) in events.filter(|(_, event)| event.destinations.is_published) {
            arrays.id.push(event.id);
            arrays.verdict_id.push(verdict);
            arrays.routing_key.push(event.routing_key.clone());
            arrays.correlation_id.push(event.correlation_id.clone());
            arrays.payload.push(event.payload.clone());
        }
        arrays
    }

    fn bind<'q>(&'q self, query: PgQuery<'q>, due_in: Duration) -> PgQuery<'q> {
        query
            .bind(&self.id)
            .bind(&self.verdict_id)
            .bind(&self.routing_key)
            .bind(&self.correlation_id)
            .bind(&self.payload)
            .bind(due_in.as_secs_f64())
    }
}

/// The event as it was stored: Postgres writes JSON in another form than it was given.
pub(super) fn stored_event(written: &WrittenRows, verdict: Uuid, event: Option<&Event>) -> Option<Event> {
    let (event, payload) = event.zip(written.get(&verdict)?.payload.as_ref())?;
    Some(Event { payload: payload.clone(), ..event.clone() })
}

async fn written_rows(c: &mut PgConnection, query: PgQuery<'_>) -> Result<WrittenRows, sqlx::Error> {
    let rows = query.fetch_all(c).await?;
    let pair = |row: &PgRow| {
        let written = WrittenRow { payload: row.try_get("payload")?, has_decision: row.try_get("has_decision")? };
        Ok((row.try_get("id")?, written))
    };
    rows.iter().map(pair).collect()
}
