//! `pixwarden export`: prints verdicts, or people's decisions, as JSON lines or CSV, page by page.
//!
//! A verdict is decided before it is committed. An export that ended now would miss verdicts that are decided and not yet
//! committed, and the next one would begin behind them. So an export ends a safe time before now, and prints where the next
//! one begins.

use std::pin::pin;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::TryStreamExt;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::UsageError;
use super::age::Age;
use super::console::{counted, note};
use super::likeness::NearOptions;
use super::options::LedgerOption;
use super::output::{Format, Output};
use super::record::{self, FindingSelection, VerdictSelection, instant};
use crate::config::Config;
use crate::ledger::{self, DecisionAction, DecisionFilter, Ledger, StoredVerdict, VerdictFilter};
use crate::matching::Likeness;

/// Verdicts per query.
const PAGE: u32 = 1_000;
/// How much longer than `worker.hold_ms` a commit may take: its last statement, and the difference between two clocks.
const COMMIT_MARGIN: Duration = Duration::from_secs(60);

/// How long a decision may take until it is committed.
const DECISION_LAG: Duration = Duration::from_secs(15);

/// Options of `export`.
#[derive(Debug, Args)]
#[command(
    after_help = "A worker decides a verdict before it commits it. So an export leaves out what was decided in the last \
minutes (--lag), and prints on stderr where the next one begins. Exports that follow each other in this way get every verdict once."
)]
pub struct ExportArguments {
    #[command(flatten)]
    selection: VerdictSelection,
    #[command(flatten)]
    findings: FindingSelection,
    /// Only verdicts that were revised at or after this time, in the order of that time
    ///
    /// A verdict that was judged only once is left out: --since selects it.
    #[arg(long, value_name = "TIME", value_parser = instant)]
    revised_since: Option<OffsetDateTime>,
    /// Leave out verdicts of this last time, such as 2m [default: `worker.hold_ms` and a minute]
    ///
    /// With a shorter time, a verdict that is committed late is in no export.
    #[arg(long, value_name = "AGE")]
    lag: Option<Age>,
    #[command(flatten)]
    near: NearOptions,
    /// Print people's decisions instead of verdicts; --since and --until then mean the time of the decision
    #[arg(long)]
    decisions: bool,
    /// With --decisions, only those of this person [repeatable]
    #[arg(long, value_name = "ID", requires = "decisions")]
    actor: Vec<String>,
    /// With --decisions, only this action [repeatable]
    #[arg(long, value_enum, value_name = "ACTION", requires = "decisions")]
    action: Vec<DecisionAction>,
    /// Output format
    #[arg(long, value_enum, default_value = "jsonl")]
    format: ExportFormat,
    #[command(flatten)]
    pub(super) ledger: LedgerOption,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ExportFormat {
    /// One JSON object per line
    Jsonl,
    /// With a header line; objects are JSON text
    Csv,
}

/// The end of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExportEnd {
    at: OffsetDateTime,
    /// Whether the end was moved to before the last minutes.
    is_early: bool,
}

impl ExportEnd {
    /// The end is never before the beginning, so that exports that follow each other never go back.
    fn new(now: OffsetDateTime, lag: Duration, since: Option<OffsetDateTime>, until: Option<OffsetDateTime>) -> Self {
        let safe = since.map_or(now - lag, |since| since.max(now - lag));
        match until {
            Some(until) if until <= safe => Self { at: until, is_early: false },
            _ => Self { at: safe, is_early: lag > Duration::ZERO },
        }
    }
}

impl ExportArguments {
    fn lag(&self, config: &Config) -> Duration {
        self.lag.map_or(Duration::from_millis(config.worker.hold_ms) + COMMIT_MARGIN, |lag| lag.0)
    }

    /// The filter up to the end, which is in the order of the export: by `decided_at`, or by `judged_at`.
    fn filter(&self, end: ExportEnd) -> VerdictFilter {
        let filter = self.findings.add_to(self.selection.filter());
        match self.revised_since {
            Some(since) => VerdictFilter { revised_since: Some(since), revised_until: Some(end.at), ..filter },
            None => VerdictFilter { until: Some(end.at), ..filter },
        }
    }

    fn end(&self, now: OffsetDateTime, lag: Duration) -> ExportEnd {
        let VerdictFilter { since, until, .. } = self.selection.filter();
        match self.revised_since {
            Some(since) => ExportEnd::new(now, lag, Some(since), None),
            None => ExportEnd::new(now, lag, since, until),
        }
    }
}

pub(super) async fn run(arguments: &ExportArguments, config: &Config) -> anyhow::Result<u8> {
    arguments.selection.check()?;
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let format = match arguments.format {
        ExportFormat::Jsonl => Format::Jsonl,
        ExportFormat::Csv => Format::Csv,
    };
    if arguments.decisions {
        return export_decisions(arguments, ledger.as_ref(), format).await;
    }
    if let Some(likeness) = arguments.near.likeness() {
        return export_near(arguments, ledger.as_ref(), likeness, format).await;
    }
    let lag = arguments.lag(config);
    let end = arguments.end(ledger.now().await?, lag);
    let mut output = Output::bulk(format, &record::COLUMNS)?;
    let mut pages = pin!(record::pages(ledger.as_ref(), arguments.filter(end), PAGE));
    let mut written = 0u64;
    while let Some(page) = pages.try_next().await? {
        for stored in &page {
            output.row(&record::row(stored))?;
            written += 1;
        }
    }
    output.finish()?;
    ledger.close().await;
    let option = if arguments.revised_since.is_some() { "--revised-since" } else { "--since" };
    let next = end.at.format(&Rfc3339).unwrap_or_default();
    note!("{}", counted(written, "verdict", "verdicts"));
    note!("next: {option} {next}");
    if end.is_early {
        note!("  hint: verdicts of the last {} s are left to the next export; --lag 0s includes them", lag.as_secs());
    }
    Ok(0)
}

/// People's decisions, in the order of time.
async fn export_decisions(arguments: &ExportArguments, ledger: &dyn Ledger, format: Format) -> anyhow::Result<u8> {
    let VerdictFilter { since, until, .. } = arguments.selection.filter();
    let of_verdicts =
        VerdictFilter { since: None, until: None, ..arguments.findings.add_to(arguments.selection.filter()) };
    let selects_verdicts = of_verdicts != VerdictFilter::default() || arguments.revised_since.is_some();
    if selects_verdicts || arguments.near.likeness().is_some() {
        let what =
            "--decisions takes no selection of verdicts\n  hint: select by --since, --until, --actor and --action";
        return Err(UsageError(what.into()).into());
    }
    let reviews = ledger.reviews()?;
    let lag = arguments.lag.map_or(DECISION_LAG, |lag| lag.0);
    let end = ExportEnd::new(ledger.now().await?, lag, since, until);
    let (actors, actions) = (arguments.actor.clone(), arguments.action.clone());
    let filter = DecisionFilter { since, until: Some(end.at), actors, actions };
    let mut output = Output::bulk(format, &record::DECISION_COLUMNS)?;
    let (mut written, mut from) = (0u64, None);
    loop {
        let page = reviews.page_of_decisions(&filter, from, PAGE).await?;
        for decision in &page.decisions {
            output.row(&record::decision(decision))?;
            written += 1;
        }
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    output.finish()?;
    note!("{}", counted(written, "decision", "decisions"));
    note!("next: --since {}", end.at.format(&Rfc3339).unwrap_or_default());
    if end.is_early {
        note!("  hint: decisions of the last {} s are left to the next export; --lag 0s includes them", lag.as_secs());
    }
    Ok(0)
}

/// Verdicts on pictures that resemble one, the closest first.
async fn export_near(
    arguments: &ExportArguments,
    ledger: &dyn Ledger,
    likeness: Likeness,
    format: Format,
) -> anyhow::Result<u8> {
    let has_selection = arguments.selection.filter() != VerdictFilter::default()
        || arguments.findings.add_to(VerdictFilter::default()) != VerdictFilter::default();
    if has_selection || arguments.revised_since.is_some() || arguments.lag.is_some() {
        let what = "--near searches all verdicts, and takes no other selection\n  hint: leave out the other options";
        return Err(UsageError(what.into()).into());
    }
    let mut output = Output::bulk(format, &record::NEAR_COLUMNS)?;
    let mut written = 0u64;
    let write = |distance: u32, stored: &StoredVerdict| -> anyhow::Result<()> {
        let mut row = record::row(stored);
        row.insert("distance".into(), json!(distance));
        written += 1;
        Ok(output.row(&row)?)
    };
    likeness.find(ledger.image_hashes()?, write).await?;
    output.finish()?;
    note!("{}", counted(written, "verdict", "verdicts"));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command, status};
    use super::*;

    #[test]
    fn a_time_that_ends_before_it_begins_is_refused() {
        let check = |since: &str, until: &str| {
            let words = ["pixwarden", "export", "--since", since, "--until", until];
            let Command::Export(arguments) = Cli::try_parse_from(words).unwrap().command else { unreachable!() };
            arguments.selection.check().map_err(anyhow::Error::from)
        };
        let error = check("2026-11-26", "2026-11-25T23:59:59Z").unwrap_err();
        assert_eq!(error.to_string(), "--until 2026-11-25T23:59:59Z is before --since 2026-11-26T00:00:00Z");
        assert_eq!(status(&error), 2);
        assert!(check("2026-11-26", "2026-11-26").is_ok(), "nothing is a valid selection");
    }

    #[test]
    fn an_export_ends_before_what_may_still_be_committed() {
        let now = time::macros::datetime!(2026-11-25 12:00 UTC);
        let lag = Duration::from_secs(120);
        let end = |until| ExportEnd::new(now, lag, None, until);
        assert_eq!(end(None), ExportEnd { at: now - lag, is_early: true });
        assert_eq!(end(Some(now)), ExportEnd { at: now - lag, is_early: true });
        assert_eq!(end(Some(now - lag)), ExportEnd { at: now - lag, is_early: false });
        assert_eq!(ExportEnd::new(now, Duration::ZERO, None, None), ExportEnd { at: now, is_early: false });
        let later = now + lag;
        assert_eq!(ExportEnd::new(now, lag, Some(later), None).at, later, "never before the beginning");
        assert_eq!(ExportEnd::new(now, lag, Some(now - lag), None).at, now - lag);
    }
}
