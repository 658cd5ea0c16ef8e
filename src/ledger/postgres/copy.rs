//! A large group's quick way: COPY, which writes a page of rows at a time where INSERT writes, and logs, each by itself.
//!
//! COPY knows no ON CONFLICT. A job that was answered already, or a row that the server refuses, undoes all of it, and the
//! group is written the careful way, which knows what to do.

use std::fmt::{Display, Write as _};

use sqlx::{Connection, PgConnection, Row};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::commit::Written;
use crate::ledger::rows::text;
use crate::ledger::{Entry, HANDOVER};

/// Fewer rows than that gain nothing by it.
const LEAST: usize = 100;

const COPY: &str =
    "COPY verdicts (id, job_id, lane, bucket, key, version_id, etag, sha256, bytes, format, width, height,
    frames, outcome, reason, label, score, scores, detectors, policy, metadata, reused_from, attempts, received_at,
    decided_at) FROM STDIN";

/// Here, unlike in a single statement, the server waits for us while it holds locks. If this machine is gone, whoever was
/// given its jobs must not wait for hours.
const GUARD: &str = "SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL tcp_keepalives_idle = 5;
    SET LOCAL tcp_keepalives_interval = 2; SET LOCAL tcp_keepalives_count = 3";

/// A group as COPY's text format has it, with the events that it owes.
#[derive(Default)]
pub(super) struct Group {
    verdicts: String,
    ids: Vec<Uuid>,
    event_id: Vec<Uuid>,
    verdict_id: Vec<Uuid>,
    routing_key: Vec<String>,
    correlation_id: Vec<String>,
    payload: Vec<String>,
}

impl Group {
    /// A group that is large enough for it.
    pub(super) fn of_large(entries: &[Entry]) -> Option<Self> {
        (entries.len() >= LEAST).then(|| Self::of(entries))
    }

    /// Sorted by id, as the careful way is.
    fn of(entries: &[Entry]) -> Self {
        let mut sorted: Vec<&Entry> = entries.iter().collect();
        sorted.sort_by_key(|entry| entry.verdict.id);
        let mut group = Self::default();
        for Entry { verdict: v, event } in sorted {
            let (seen, judgement) = (v.seen, &v.judgement);
            let sha256 = v.sha256.map(|sha256| format!("\\x{}", hex::encode(sha256)));
            let mut line = Line { text: &mut group.verdicts, is_empty: true };
            line.add(v.id).add(&v.job_id).add(v.lane.as_str()).add(&v.image.bucket).add(&v.image.key);
            line.option(v.image.version_id.as_ref()).option(v.image.etag.as_ref()).option(sha256.as_ref());
            line.option(v.bytes).option(seen.map(|seen| seen.format)).option(seen.map(|seen| seen.width));
            line.option(seen.map(|seen| seen.height)).option(seen.map(|seen| seen.frames));
            line.add(judgement.outcome.as_str()).option(judgement.reason.as_ref()).option(judgement.label.as_ref());
            line.option(judgement.score).option(v.scores.as_ref().map(text)).add(text(&v.detectors));
            line.add(text(&v.policy)).option(v.metadata.as_ref().map(text)).option(v.reused_from).add(v.attempts);
            line.add(text_of(v.received_at)).add(text_of(v.decided_at)).end();
            group.ids.push(v.id);
            if let Some(event) = event {
                group.event_id.push(event.id);
                group.verdict_id.push(v.id);
                group.routing_key.push(event.routing_key.clone());
                group.correlation_id.push(event.correlation_id.clone());
                group.payload.push(event.payload.clone());
            }
        }
        group
    }

    /// Writes all of it, or nothing, and then it is not known why.
    pub(super) async fn write(self, c: &mut PgConnection) -> Result<Option<Written>, sqlx::Error> {
        let mut transaction = c.begin().await?;
        match self.all(&mut transaction).await {
            Ok(written) => transaction.commit().await.map(|()| Some(written)),
            Err(sqlx::Error::Database(error)) => {
                tracing::debug!(%error, rows = self.ids.len(), "not by COPY");
                transaction.rollback().await.map(|()| None)
            }
            Err(error) => Err(error),
        }
    }

    async fn all(&self, c: &mut PgConnection) -> Result<Written, sqlx::Error> {
        sqlx::raw_sql(GUARD).execute(&mut *c).await?;
        let mut copy = c.copy_in_raw(COPY).await?;
        copy.send(self.verdicts.as_bytes()).await?;
        copy.finish().await?;
        let mut written: Written = self.ids.iter().map(|id| (*id, None)).collect();
        if self.event_id.is_empty() {
            return Ok(written);
        }
        let owed = sqlx::query(
            "INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, due_at)
             SELECT event_id, verdict_id, routing_key, correlation_id, payload::jsonb, now() + make_interval(secs => $6)
             FROM UNNEST($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[])
                 AS t (event_id, verdict_id, routing_key, correlation_id, payload)
             ON CONFLICT (event_id) DO NOTHING
             RETURNING verdict_id, payload::text AS payload",
        );
        let owed = owed.bind(&self.event_id).bind(&self.verdict_id).bind(&self.routing_key).bind(&self.correlation_id);
        for row in owed.bind(&self.payload).bind(HANDOVER.as_secs_f64()).fetch_all(c).await? {
            written.insert(row.try_get("verdict_id")?, Some(row.try_get("payload")?));
        }
        Ok(written)
    }
}

/// To the microsecond, and what is left is cut off: the server would round it up, into the future.
fn text_of(time: OffsetDateTime) -> String {
    let whole = time.replace_nanosecond(time.microsecond() * 1_000).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_default()
}

/// A row in the text format (PostgreSQL's documentation of COPY, "File Formats"): fields between tabs, `\N` for NULL, and
/// a backslash before what would end a field.
struct Line<'a> {
    text: &'a mut String,
    is_empty: bool,
}

impl Line<'_> {
    fn add(&mut self, value: impl Display) -> &mut Self {
        self.next();
        // Writing to a string cannot fail.
        let _written = write!(Escaped(self.text), "{value}");
        self
    }

    fn option(&mut self, value: Option<impl Display>) -> &mut Self {
        match value {
            Some(value) => self.add(value),
            None => {
                self.next();
                self.text.push_str("\\N");
                self
            }
        }
    }

    fn next(&mut self) {
        if !std::mem::take(&mut self.is_empty) {
            self.text.push('\t');
        }
    }

    fn end(&mut self) {
        self.text.push('\n');
    }
}

struct Escaped<'a>(&'a mut String);

impl std::fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(['\\', '\t', '\n', '\r']) {
            self.0.push_str(&rest[..at]);
            self.0.push_str(match rest.as_bytes()[at] {
                b'\t' => "\\t",
                b'\n' => "\\n",
                b'\r' => "\\r",
                _ => "\\\\",
            });
            rest = &rest[at + 1..];
        }
        self.0.push_str(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_cut_off_at_the_microsecond_and_not_rounded() {
        let time = OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_nanos(1_999_999_999);
        assert_eq!(text_of(time), "1970-01-01T00:00:01.999999Z");
    }

    #[test]
    fn what_would_end_a_field_is_escaped() {
        let mut text = String::new();
        let mut line = Line { text: &mut text, is_empty: true };
        line.add("a\tb\\N").option(None::<u32>).add("\r\n\\").option(Some("ü.")).add("").end();
        assert_eq!(text, "a\\tb\\\\N\t\\N\t\\r\\n\\\\\tü.\t\n");
    }
}
