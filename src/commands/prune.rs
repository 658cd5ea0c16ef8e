//! `pixwarden prune`: deletes old verdicts with their history and events, batch by batch.
//!
//! A job whose verdict was deleted is new to the ledger: if it is delivered again, it is screened and announced again.

use std::time::Duration;

use clap::Args;
use time::OffsetDateTime;

use super::UsageError;
use super::age::Age;
use super::console::{counted, is_confirmed, note, require_terminal};
use super::options::LedgerOption;
use super::output::whole_seconds;
use super::record::{FindingSelection, VerdictSelection};
use crate::config::Config;
use crate::ledger::{self, KeptBy, Ledger, LedgerError, Position, PrunedPage, VerdictFilter};

/// Verdicts per statement.
const BATCH: u32 = 5_000;
/// After each batch, so that workers can commit in between.
const BATCH_DELAY: Duration = Duration::from_millis(100);
/// How often progress is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Options of `prune`.
#[derive(Debug, Args)]
#[command(
    after_help = "A verdict under a legal hold stays, and so does one whose event is still unpublished or that has an open report, whatever is selected."
)]
pub struct PruneArguments {
    /// Delete verdicts that were decided at least this long ago, such as 90d; required without --until
    #[arg(long, value_name = "AGE")]
    older_than: Option<Age>,
    #[command(flatten)]
    selection: VerdictSelection,
    #[command(flatten)]
    findings: FindingSelection,
    /// Print the number, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// Delete without asking; required where there is no terminal to ask on
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    pub(super) ledger: LedgerOption,
}

impl PruneArguments {
    fn filter(&self) -> VerdictFilter {
        let filter = self.findings.add_to(self.selection.filter());
        let aged = self.older_than.map(|age| OffsetDateTime::now_utc() - age.0);
        let until = [aged, filter.until].into_iter().flatten().min();
        VerdictFilter { until, ..filter }
    }
}

pub(super) async fn run(arguments: &PruneArguments, config: &Config) -> anyhow::Result<u8> {
    arguments.selection.check()?;
    let filter = arguments.filter();
    if filter.until.is_none() {
        return Err(UsageError("no age is given\n  hint: give --older-than AGE or --until TIME".into()).into());
    }
    if !arguments.dry_run && !arguments.yes {
        require_terminal("delete", "verdicts")?;
        if !is_confirmed(&format!("Delete from {} {}?", config.ledger, description(&filter)))? {
            note!("nothing was deleted");
            return Ok(1);
        }
    }
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    if arguments.dry_run {
        let prunable = count(ledger.as_ref(), &filter).await?;
        let kept = count_kept(ledger.as_ref(), &filter).await?;
        note!("{} would be deleted{}", verdicts(prunable), kept.words("would stay", "would stay"));
    } else {
        let deleted = delete(ledger.as_ref(), &filter).await?;
        let kept = count_kept(ledger.as_ref(), &filter).await?;
        note!("{} deleted{}", verdicts(deleted), kept.words("stays", "stay"));
    }
    ledger.close().await;
    Ok(0)
}

fn verdicts(number: u64) -> String {
    counted(number, "verdict", "verdicts")
}

/// The selected verdicts that are kept. Each is counted once.
#[derive(Debug, Clone, Copy)]
struct KeptVerdicts {
    held: u64,
    unpublished: u64,
    reported: u64,
}

impl KeptVerdicts {
    /// What is said of them, with the verb for one and for several.
    fn words(self, stays: &str, stay: &str) -> String {
        let mut words = String::new();
        for (kept, because_one, because) in [
            (self.held, "it is under a legal hold", "they are under a legal hold"),
            (self.unpublished, "its event is not published yet", "their events are not published yet"),
            (self.reported, "it has an open report", "they have open reports"),
        ] {
            words += &match kept {
                0 => String::new(),
                1 => format!("; 1 {stays}, because {because_one}"),
                _ => format!("; {kept} {stay}, because {because}"),
            };
        }
        words
    }
}

/// The selected verdicts in words.
fn description(filter: &VerdictFilter) -> String {
    let quoted = |names: &[String]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ");
    let mut decided: Vec<_> =
        filter.since.map(|since| format!("at or after {}", whole_seconds(since))).into_iter().collect();
    decided.extend(filter.until.map(|until| format!("before {}", whole_seconds(until))));
    let mut words = vec![format!("the verdicts that were decided {}", decided.join(" and "))];
    if !filter.outcomes.is_empty() {
        let outcomes: Vec<&str> = filter.outcomes.iter().map(|outcome| outcome.as_str()).collect();
        words.push(format!("with the outcome {}", outcomes.join(" or ")));
    }
    if !filter.buckets.is_empty() {
        words.push(format!("in the bucket {}", quoted(&filter.buckets)));
    }
    words.extend(filter.key_prefix.as_ref().map(|prefix| format!("with keys that begin with \"{prefix}\"")));
    words.extend(filter.detector.as_ref().map(|detector| format!("scored by \"{detector}\"")));
    if !filter.labels.is_empty() {
        words.push(format!("with the label {}", quoted(&filter.labels)));
    }
    words.join(", ")
}

/// The selected verdicts that can be deleted.
async fn count(ledger: &dyn Ledger, filter: &VerdictFilter) -> anyhow::Result<u64> {
    sum_of_pages(|from| ledger.count_prunable(filter, from)).await
}

/// The selected verdicts that stay.
async fn count_kept(ledger: &dyn Ledger, filter: &VerdictFilter) -> anyhow::Result<KeptVerdicts> {
    let count = |kept_by| sum_of_pages(move |from| ledger.count_unprunable(filter, from, kept_by));
    Ok(KeptVerdicts {
        held: count(KeptBy::Hold).await?,
        unpublished: count(KeptBy::UnpublishedEvent).await?,
        reported: count(KeptBy::OpenReport).await?,
    })
}

async fn sum_of_pages<F>(page_from: impl Fn(Option<Position>) -> F) -> anyhow::Result<u64>
where
    F: Future<Output = Result<PrunedPage, LedgerError>>,
{
    let (mut found, mut from) = (0, None);
    loop {
        let page = page_from(from).await?;
        found += page.verdicts;
        from = page.next;
        if from.is_none() {
            return Ok(found);
        }
    }
}

async fn delete(ledger: &dyn Ledger, filter: &VerdictFilter) -> anyhow::Result<u64> {
    let (mut deleted, mut from, mut logged) = (0, None, std::time::Instant::now());
    loop {
        let page = ledger.delete_prunable(filter, from, BATCH).await?;
        deleted += page.verdicts;
        from = page.next;
        if from.is_none() {
            return Ok(deleted);
        }
        if logged.elapsed() > LOG_INTERVAL {
            logged = std::time::Instant::now();
            tracing::info!(deleted, "deleting verdicts");
        }
        if page.verdicts > 0 {
            tokio::time::sleep(BATCH_DELAY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Outcome;

    #[test]
    fn the_question_names_every_condition() {
        let filter = VerdictFilter {
            until: Some(time::macros::datetime!(2026-01-01 0:00:00.5 UTC)),
            outcomes: vec![Outcome::Passed, Outcome::Missing],
            buckets: vec!["up*".into()],
            key_prefix: Some("a/".into()),
            detector: Some("d".into()),
            labels: vec!["nude".into()],
            ..VerdictFilter::default()
        };
        assert_eq!(
            description(&filter),
            "the verdicts that were decided before 2026-01-01T00:00:00Z, with the outcome passed or missing, in the bucket \
             \"up*\", with keys that begin with \"a/\", scored by \"d\", with the label \"nude\""
        );
        let words = |held, unpublished| KeptVerdicts { held, unpublished, reported: 0 }.words("stays", "stay");
        assert_eq!(words(0, 0), "");
        let reported = KeptVerdicts { held: 0, unpublished: 0, reported: 1 }.words("stays", "stay");
        assert_eq!(reported, "; 1 stays, because it has an open report");
        assert_eq!(words(0, 2), "; 2 stay, because their events are not published yet");
        assert_eq!(
            words(1, 1),
            "; 1 stays, because it is under a legal hold; 1 stays, because its event is not published yet"
        );
    }
}
