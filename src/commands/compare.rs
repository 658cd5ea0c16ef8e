//! `pixwarden compare`: arguments and output of `compare` in the crate.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::console::{counted, note};
use super::numbers;
use super::options::LedgerOption;
use super::output::{Format, Output, TableRows, fields, print_tables, whole_seconds};
use super::progress::{Progress, Unit, VerdictProgress};
use super::record::{FindingSelection, VerdictSelection};
use super::rejudge::{change_row, transition_row};
use crate::banks;
use crate::compare::{Announced, Comparison, ComparisonOptions};
use crate::config::{Config, Overlay, policies_of_file};
use crate::drift::{MIN_SCORES, ScoreHistogram, ScoredLabel};
use crate::evaluate::metrics::wilson_interval;
use crate::ledger::{self, Ledger, LedgerError};
use crate::screen::plan_trial;

/// The columns of CSV. `kind` is change, transition, announcement or drift; columns that a kind does not have are empty.
const COLUMNS: [&str; 19] = [
    "kind",
    "before",
    "after",
    "category",
    "verdicts",
    "share",
    "low",
    "high",
    "job_id",
    "image",
    "label",
    "score",
    "reason",
    "routing_key",
    "detector",
    "scores",
    "baseline_scores",
    "baseline_until",
    "drift",
];
const CHANGE_COLUMNS: [&str; 5] = ["image", "before", "after", "category", "reason"];
const TRANSITION_COLUMNS: [&str; 5] = ["before", "after", "category", "verdicts", "share with interval"];
const ANNOUNCEMENT_COLUMNS: [&str; 3] = ["routing_key", "before", "after"];
const DRIFT_COLUMNS: [&str; 6] = ["detector", "label", "scores", "baseline_scores", "baseline_until", "drift"];

/// Options of `compare`.
#[derive(Debug, Args)]
#[command(after_help = "Verdicts and events stay as they are. `share` is of all verdicts that were judged, with \
its 95 % confidence interval from `low` to `high`. `drift` is the population stability index of the selected scores against the \
stored baseline: by custom, less than 0.1 is none, and more than 0.25 is large. It is empty for fewer than 1,000 scores.")]
pub struct CompareArguments {
    /// The policies to try: `trusted_metadata`, `[policy]` and `[[policies]]` of this configuration file
    /// [default: the configured policies]
    ///
    /// Everything else in the file is left out, so that a changed copy of the configuration can be given. Its rules may
    /// name a shadow detector.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    selection: VerdictSelection,
    #[command(flatten)]
    findings: FindingSelection,
    /// Number of changed verdicts to print as examples
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = numbers::whole::<usize>)]
    show: usize,
    /// Store the selected scores as the baseline of each detector, which later scores are compared with
    ///
    /// Only a range of time may be selected besides: workers compare all verdicts with the baseline.
    #[arg(long, conflicts_with_all = ["outcome", "bucket", "key_prefix", "detector", "label"])]
    save_baseline: bool,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    ledger: LedgerOption,
}

impl CompareArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        self.ledger.set(overlay);
    }
}

type RowFields = Map<String, Value>;

pub(super) async fn run(arguments: &CompareArguments, config: &Config) -> anyhow::Result<u8> {
    arguments.selection.check()?;
    let tried = match &arguments.policy {
        Some(file) => policies_of_file(config, file)?,
        None => config.clone(),
    };
    let (detectors, policies) = plan_trial(&tried)?;
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let banks = banks::load_for(&policies, &tried, ledger.as_ref()).await?;
    let options = ComparisonOptions {
        filter: arguments.findings.add_to(arguments.selection.filter()),
        policies,
        banks,
        detectors: detectors.iter().map(|detector| (detector.name.clone(), detector.digest.clone())).collect(),
        examples: arguments.show,
    };
    let shown = VerdictProgress::new(Progress::new(Unit::Verdicts));
    let compared = Comparison::of(ledger.as_ref(), &options, |state, at| shown.show(state.verdicts(), at)).await;
    shown.finish();
    let comparison = compared?;
    let drift = drift_rows(ledger.as_ref(), &comparison).await?;
    print_rows(Format::or_default(arguments.format), &comparison, config, drift)?;
    print_summary(&comparison);
    if arguments.save_baseline {
        save_baseline(ledger.as_ref(), &comparison).await?;
    }
    ledger.close().await;
    Ok(0)
}

fn print_rows(format: Format, comparison: &Comparison, config: &Config, drift: Vec<RowFields>) -> anyhow::Result<()> {
    let judged = comparison.transitions.verdicts();
    let transitions = comparison.transitions.iter().map(|(transition, verdicts)| {
        let (low, high) = wilson_interval(verdicts, judged).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 verdicts")]
        let share = verdicts as f64 / judged as f64;
        let counts = fields([
            ("verdicts", json!(verdicts)),
            ("share", json!(share)),
            ("low", json!(low)),
            ("high", json!(high)),
        ]);
        transition_row(transition).into_iter().chain(counts).collect::<RowFields>()
    });
    let published = comparison.announced.iter().filter(|(key, _)| config.events.publish.iter().any(|k| k == *key));
    let announcements = published.map(|(routing_key, Announced { before, after })| {
        let kind = json!("announcement");
        fields([
            ("kind", kind),
            ("routing_key", json!(routing_key)),
            ("before", json!(before)),
            ("after", json!(after)),
        ])
    });
    let parts: [TableRows; 4] = [
        (&CHANGE_COLUMNS, comparison.transitions.examples.iter().map(change_row).collect()),
        (&TRANSITION_COLUMNS, transitions.collect()),
        (&ANNOUNCEMENT_COLUMNS, announcements.collect()),
        (&DRIFT_COLUMNS, drift),
    ];
    if format == Format::Table {
        let with_interval = |mut row: RowFields| {
            let percent = |name: &str| row[name].as_f64().unwrap_or_default() * 100.0;
            if row["kind"] == "transition" {
                let text = format!("{:.1} % ({:.1} to {:.1})", percent("share"), percent("low"), percent("high"));
                row.insert("share with interval".into(), json!(text));
            }
            row
        };
        let parts = parts.map(|(columns, rows)| (columns, rows.into_iter().map(with_interval).collect()));
        return Ok(print_tables(&parts)?);
    }
    let mut output = Output::new(format, &COLUMNS)?;
    parts.iter().flat_map(|(_, rows)| rows).try_for_each(|row| output.row(row))?;
    Ok(output.finish()?)
}

/// The drift of the selected scores against the stored baselines.
async fn drift_rows(ledger: &dyn Ledger, comparison: &Comparison) -> Result<Vec<RowFields>, LedgerError> {
    let mut digests: Vec<String> = comparison.scores.0.keys().map(|scored| scored.digest.clone()).collect();
    digests.dedup();
    let baselines = ledger.find_baselines(&digests).await?;
    let row = |(scored, histogram): (&ScoredLabel, &ScoreHistogram)| {
        let (stored, baseline) = scored.baseline(&baselines)?;
        Some(fields([
            ("kind", json!("drift")),
            ("detector", json!(scored.detector)),
            ("label", json!(scored.label)),
            ("scores", json!(histogram.total())),
            ("baseline_scores", json!(baseline.total())),
            ("baseline_until", json!(whole_seconds(stored.window.1))),
            ("drift", json!(baseline.drift(histogram))),
        ]))
    };
    Ok(comparison.scores.0.iter().filter_map(row).collect())
}

fn print_summary(comparison: &Comparison) {
    let Comparison { transitions, unscored, lacking, outdated, .. } = comparison;
    note!(
        "{} judged; {} would get another outcome",
        counted(transitions.verdicts(), "verdict was", "verdicts were"),
        transitions.changed()
    );
    for (verdicts, why) in [
        (unscored, "has no scores"),
        (lacking, "has no score for a rule of its policy"),
        (outdated, "was scored by another model or preprocessing of a detector than the present one"),
    ] {
        match verdicts {
            0 => {}
            1 => note!("1 verdict is left out: it {why}"),
            more => note!("{more} verdicts are left out: each {why}"),
        }
    }
}

/// Stores the compared scores as the baseline.
async fn save_baseline(ledger: &dyn Ledger, comparison: &Comparison) -> anyhow::Result<()> {
    let baselines = comparison.baselines();
    if baselines.is_empty() {
        anyhow::bail!("no baseline was stored: the selected verdicts have no scores");
    }
    ledger.save_baselines(&baselines).await?;
    note!("the scores of {} are the baseline now", counted(baselines.len() as u64, "label", "labels"));
    if comparison.scores.0.values().any(|histogram| histogram.total() < MIN_SCORES) {
        note!("warning: no drift is computed for a label with fewer than {MIN_SCORES} scores");
    }
    Ok(())
}
