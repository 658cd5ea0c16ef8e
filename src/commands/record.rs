//! A verdict as `show` and `export` print it: under the names of the ledger's columns. And the options that select
//! verdicts.

use clap::Args;
use futures_util::stream::{self, Stream};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::{Iso8601, Rfc3339};

use super::UsageError;
use crate::job::{Outcome, Verdict, exact, exact_scores};
use crate::ledger::{Decision, Ledger, LedgerError, StoredVerdict, VERDICT_COLUMNS, VerdictFilter, mark_restricted};

/// The columns that are written after the first judgement.
const LATER_COLUMNS: [&str; 4] = ["revision", "cause", "judged_at", "deleted_at"];

/// The columns of [`row`].
pub(super) const COLUMNS: [&str; VERDICT_COLUMNS.len() + LATER_COLUMNS.len()] = {
    let mut columns = [""; VERDICT_COLUMNS.len() + LATER_COLUMNS.len()];
    let (first, last) = columns.split_at_mut(VERDICT_COLUMNS.len());
    first.copy_from_slice(&VERDICT_COLUMNS);
    last.copy_from_slice(&LATER_COLUMNS);
    columns
};

/// The columns of [`row`], behind the distance to another picture.
pub(super) const NEAR_COLUMNS: [&str; COLUMNS.len() + 1] = behind_distance(&COLUMNS);

/// The column `distance`, and these behind it: `M` is one more than their number.
pub(super) const fn behind_distance<const M: usize>(columns: &[&'static str]) -> [&'static str; M] {
    let mut all = ["distance"; M];
    all.split_at_mut(1).1.copy_from_slice(columns);
    all
}

/// A verdict as an object with the ledger's columns, in their order.
pub(super) fn row(StoredVerdict { verdict, revision, deleted_at }: &StoredVerdict) -> Map<String, Value> {
    let Verdict { image, judgement, seen, .. } = verdict;
    let values: [Value; VERDICT_COLUMNS.len()] = [
        json!(verdict.id),
        json!(verdict.job_id),
        json!(verdict.lane),
        json!(image.bucket),
        json!(image.key),
        json!(image.version_id),
        json!(image.etag),
        json!(verdict.sha256.map(hex::encode)),
        json!(verdict.bytes),
        json!(seen.map(|seen| seen.format)),
        json!(seen.map(|seen| seen.width)),
        json!(seen.map(|seen| seen.height)),
        json!(seen.map(|seen| seen.frames)),
        json!(judgement.outcome),
        json!(judgement.reason),
        json!(judgement.label),
        json!(judgement.score.map(exact)),
        json!(verdict.facts.as_ref().map(|facts| exact_scores(&facts.scores))),
        json!(verdict.detectors),
        json!(verdict.policy),
        json!(verdict.metadata),
        json!(verdict.reused_from),
        json!(verdict.attempts),
        time(Some(verdict.received_at)),
        time(Some(verdict.decided_at)),
        json!(judgement.findings),
        json!(verdict.facts.as_ref().map(|facts| &facts.views)),
        time(verdict.object_at),
        json!(verdict.facts.as_ref().map(|facts| &facts.damage)),
        json!(verdict.md5.map(hex::encode)),
        json!(verdict.facts.as_ref().map(|facts| &facts.hashes)),
    ];
    let later = [json!(revision.number), json!(revision.cause), time(Some(revision.judged_at)), time(*deleted_at)];
    COLUMNS.iter().map(|column| (*column).to_owned()).zip(values.into_iter().chain(later)).collect()
}

/// The columns of [`decision`].
pub(super) const DECISION_COLUMNS: [&str; 10] =
    ["id", "verdict_id", "revision", "actor", "action", "category", "batch_id", "at", "note", "name"];

/// A decision as an object with the ledger's columns, and what can be erased of it.
pub(super) fn decision(decision: &Decision) -> Map<String, Value> {
    let values = [
        json!(decision.id),
        json!(decision.verdict),
        json!(decision.revision),
        json!(decision.actor),
        json!(decision.action),
        json!(decision.category),
        json!(decision.batch),
        time(Some(decision.at)),
        json!(decision.note),
        json!(decision.name),
    ];
    DECISION_COLUMNS.iter().map(|column| (*column).to_owned()).zip(values).collect()
}

/// A time, or null.
fn time(at: Option<OffsetDateTime>) -> Value {
    json!(at.and_then(|at| at.format(&Rfc3339).ok()))
}

/// The selected verdicts in pages of at most `limit`, in the order of [`VerdictFilter`].
pub(super) fn pages(
    ledger: &dyn Ledger,
    filter: VerdictFilter,
    limit: u32,
) -> impl Stream<Item = Result<Vec<StoredVerdict>, LedgerError>> + '_ {
    // The first page, a later one, or none.
    stream::try_unfold(Some((filter, None)), move |state| async move {
        let Some((filter, from)) = state else { return Ok(None) };
        let mut page = ledger.page_of_verdicts(&filter, from, limit).await?;
        mark_restricted(ledger, &mut page.verdicts).await?;
        let next = page.next.map(|next| (filter, Some(next)));
        Ok(Some((page.verdicts, next)))
    })
}

/// Options that select verdicts; they must meet every condition.
#[derive(Debug, Args)]
pub(super) struct VerdictSelection {
    /// Only verdicts decided at or after this time: 2026-11-25, or 2026-11-25T13:00:00Z
    #[arg(long, value_name = "TIME", value_parser = instant)]
    since: Option<OffsetDateTime>,
    /// Only verdicts decided before this time
    #[arg(long, value_name = "TIME", value_parser = instant)]
    until: Option<OffsetDateTime>,
    /// Only verdicts with this outcome [repeatable]
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    outcome: Vec<Outcome>,
    /// Only verdicts on images in this bucket; "*" stands for any characters [repeatable]
    #[arg(long, value_name = "NAME")]
    bucket: Vec<String>,
    /// Only verdicts on images whose key begins with this text
    #[arg(long, value_name = "TEXT")]
    key_prefix: Option<String>,
}

impl VerdictSelection {
    /// Refuses a range that ends before it begins.
    pub(super) fn check(&self) -> Result<(), UsageError> {
        match (self.since, self.until) {
            (Some(since), Some(until)) if until < since => {
                let [since, until] = [since, until].map(|at| at.format(&Rfc3339).unwrap_or_default());
                Err(UsageError(format!("--until {until} is before --since {since}")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn filter(&self) -> VerdictFilter {
        VerdictFilter {
            since: self.since,
            until: self.until,
            outcomes: self.outcome.clone(),
            buckets: self.bucket.clone(),
            key_prefix: self.key_prefix.clone(),
            ..VerdictFilter::default()
        }
    }
}

/// Options that select verdicts by what they found.
#[derive(Debug, Args)]
pub(super) struct FindingSelection {
    /// Only verdicts that the detector of this name scored
    #[arg(long, value_name = "NAME", visible_alias = "scored-by")]
    detector: Option<String>,
    /// Only verdicts whose outcome names this label [repeatable]
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
}

impl FindingSelection {
    pub(super) fn add_to(&self, filter: VerdictFilter) -> VerdictFilter {
        VerdictFilter { detector: self.detector.clone(), labels: self.label.clone(), ..filter }
    }
}

pub(super) fn outcome(word: &str) -> Result<Outcome, String> {
    let known = Outcome::ALL.map(Outcome::as_str).join(", ");
    Outcome::parse(word).ok_or_else(|| format!("it must be one of {known}"))
}

/// Parses a time with its offset, or a day in UTC.
pub(super) fn instant(text: &str) -> Result<OffsetDateTime, String> {
    let day = || time::Date::parse(text, &Iso8601::DATE).map(|day| day.midnight().assume_utc());
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| day())
        .map_err(|_| "it must be a day, such as 2026-11-25, or a time, such as 2026-11-25T13:00:00Z".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_at_midnight_in_utc() {
        assert_eq!(instant("2026-11-25").unwrap(), instant("2026-11-25T00:00:00Z").unwrap());
        assert_eq!(instant("2026-11-25T02:00:00+02:00").unwrap(), instant("2026-11-25").unwrap());
        assert!(instant("yesterday").is_err());
        assert!(outcome("flaged").unwrap_err().contains("flagged"));
    }
}
