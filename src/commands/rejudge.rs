//! `pixwarden rejudge`: arguments and output of `rejudge` in the crate.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::console::{counted, note};
use super::options::{LedgerOption, QueueOption, ThresholdOptions};
use super::output::{Format, Output, fields, print_tables};
use super::progress::{Progress, Unit, VerdictProgress};
use super::record::{FindingSelection, VerdictSelection};
use super::signals::{INTERRUPTED, Signals};
use super::{UsageError, numbers};
use crate::backfill::{BackfillCounts, BackfillEnd, JobsForGaps, PublishLimits, PublishOptions};
use crate::banks;
use crate::config::{Config, Overlay};
use crate::job::exact;
use crate::ledger::{self, Ledger};
use crate::policy::PolicySet;
use crate::rejudge::{Change, RejudgeOptions, RejudgeSummary, Rejudging, Transition, Transitions};
use crate::screen::plan;

/// Limits of `--enqueue`, as those of `backfill`.
const ENQUEUE_LIMITS: PublishLimits = PublishLimits { rate: None, depth: 10_000 };
/// A job of `--enqueue` without a verdict counts as lost after this time, as with `backfill`.
const AGAIN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The columns of CSV. `kind` is change or transition; columns that a kind does not have are empty.
const COLUMNS: [&str; 10] =
    ["kind", "before", "after", "category", "verdicts", "job_id", "image", "label", "score", "reason"];
const TRANSITION_COLUMNS: [&str; 4] = ["before", "after", "category", "verdicts"];
const CHANGE_COLUMNS: [&str; 5] = ["image", "before", "after", "category", "reason"];

/// Options of `rejudge`.
#[derive(Debug, Args)]
#[command(
    after_help = "Restart the workers with the new policy first: what they judge by the old one during the run is left out. After an \
interruption, the same command continues where it stopped."
)]
pub struct RejudgeArguments {
    #[command(flatten)]
    selection: VerdictSelection,
    #[command(flatten)]
    findings: FindingSelection,
    /// Only verdicts on images for which the policy of this name holds now
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Publish a job in the lane backfill for each image that lacks a score for one of its policy's rules
    ///
    /// Such a verdict is never changed. The job gets a separate verdict, from the current detectors. A job that was
    /// published before and has no verdict yet is not published again.
    #[arg(long)]
    enqueue: bool,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Also print the first N verdicts that change
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = numbers::whole::<usize>)]
    show: usize,
    /// Start at the beginning even if an earlier run was interrupted
    #[arg(long, conflicts_with = "dry_run")]
    restart: bool,
    /// Maximum number of verdicts per second; a higher rate takes more of the ledger from the workers
    #[arg(long, value_name = "N", value_parser = |text: &str| numbers::within(text, 0.001..=1e6))]
    rate: Option<f64>,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    queue: QueueOption,
    #[command(flatten)]
    ledger: LedgerOption,
    #[command(flatten)]
    thresholds: ThresholdOptions,
}

impl RejudgeArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        self.queue.set(overlay);
        self.ledger.set(overlay);
        self.thresholds.set(overlay);
    }

    fn options(&self, policies: &PolicySet) -> anyhow::Result<RejudgeOptions> {
        if let Some(name) = &self.policy {
            refuse_unknown_policy(policies, name)?;
        }
        Ok(RejudgeOptions {
            filter: self.findings.add_to(self.selection.filter()),
            policy: self.policy.clone(),
            enqueue: self.enqueue,
            dry_run: self.dry_run,
            restart: self.restart,
            rate: self.rate,
            examples: self.show,
        })
    }
}

/// Refuses the name of a policy that is not configured.
pub(super) fn refuse_unknown_policy(policies: &PolicySet, name: &str) -> Result<(), UsageError> {
    if policies.all().any(|policy| policy.reference.name == name) {
        return Ok(());
    }
    let known: Vec<_> = policies.all().map(|policy| format!("\"{}\"", policy.reference.name)).collect();
    Err(UsageError(format!("there is no policy \"{name}\"\n  hint: the policies are {}", known.join(", "))))
}

pub(super) async fn run(arguments: &RejudgeArguments, config: &Config) -> anyhow::Result<u8> {
    arguments.selection.check()?;
    let (_, policies) = plan(config)?;
    let options = arguments.options(&policies)?;
    let ledger: Arc<dyn Ledger> = ledger::open(config).await?.into();
    ledger.check_schema().await?;
    if !config.webhooks.is_empty() {
        Arc::clone(&ledger).webhooks()?;
    }
    let banks = banks::load_for(&policies, config, ledger.as_ref()).await?;
    if !arguments.dry_run {
        ledger.record_policies(&policies.texts()).await?;
    }
    let progress = Progress::new(Unit::Verdicts);
    let bar = progress.clone();
    let stop = Signals::listen()?.stop(move || {
        bar.around(|| note!("stopping after this page of verdicts; a second signal stops at once"));
    });
    let shown = VerdictProgress::new(progress);
    let observe = |summary: &RejudgeSummary, at: Option<OffsetDateTime>| shown.show(summary.verdicts(), at);
    let mut rejudging = Rejudging::new(Arc::clone(&ledger), policies, banks, Arc::new(config.clone()), options);
    let mut enqueued = None;
    let end = if arguments.enqueue {
        let options = PublishOptions {
            retry_failed: false,
            limit: None,
            dry_run: arguments.dry_run,
            limits: ENQUEUE_LIMITS,
            again_after: AGAIN_AFTER,
        };
        let jobs = JobsForGaps::open(Arc::clone(&ledger), config, options).await?;
        let end = jobs.alone(&stop, rejudging.run(Some(&jobs), &stop, observe)).await;
        jobs.close().await;
        enqueued = Some(jobs.counts);
        end
    } else {
        let end = rejudging.run(None, &stop, observe).await;
        ledger.close().await;
        end
    };
    shown.finish();
    print_transitions(Format::or_default(arguments.format), &rejudging.summary.transitions)?;
    print_summary(arguments, &rejudging.summary, enqueued.as_ref());
    match end? {
        BackfillEnd::Stopped if arguments.dry_run => Ok(INTERRUPTED),
        BackfillEnd::Stopped => {
            note!("stopped; the same command continues from here");
            Ok(INTERRUPTED)
        }
        BackfillEnd::Done | BackfillEnd::Limit => Ok(0),
    }
}

/// The changes that were kept as examples, and the counts.
pub(super) fn print_transitions(format: Format, transitions: &Transitions) -> anyhow::Result<()> {
    let changes = transitions.examples.iter().map(change_row);
    let counts = transitions.iter().map(|(transition, verdicts)| {
        let mut row = transition_row(transition);
        row.insert("verdicts".into(), json!(verdicts));
        row
    });
    if format == Format::Table {
        let parts = [(&CHANGE_COLUMNS[..], changes.collect::<Vec<_>>()), (&TRANSITION_COLUMNS[..], counts.collect())];
        return Ok(print_tables(&parts)?);
    }
    let mut output = Output::new(format, &COLUMNS)?;
    changes.chain(counts).try_for_each(|row| output.row(&row))?;
    Ok(output.finish()?)
}

/// A verdict that changes, as `rejudge` and `compare` print it.
pub(super) fn change_row(change: &Change) -> Map<String, Value> {
    let Change { verdict_id, job_id, image, transition, after } = change;
    let mut row = transition_row(transition);
    row.insert("kind".into(), json!("change"));
    row.insert("verdict_id".into(), json!(verdict_id));
    row.insert("job_id".into(), json!(job_id));
    row.insert("image".into(), json!(image));
    row.insert("label".into(), json!(after.label));
    row.insert("score".into(), json!(after.score.map(exact)));
    row.insert("reason".into(), json!(after.reason));
    row
}

/// A transition as `rejudge` and `compare` print it, without its count.
pub(super) fn transition_row(transition: &Transition) -> Map<String, Value> {
    let Transition { before, after, category } = transition;
    fields([
        ("kind", json!("transition")),
        ("before", json!(before)),
        ("after", json!(after)),
        ("category", json!(category)),
    ])
}

fn print_summary(arguments: &RejudgeArguments, summary: &RejudgeSummary, enqueued: Option<&BackfillCounts>) {
    let RejudgeSummary { transitions, current, unscored, lacking, overtaken, skipped } = summary;
    let judged = transitions.verdicts();
    let rejudged = match (arguments.dry_run, judged) {
        (true, _) => "would be rejudged; nothing was written",
        (false, 1) => "was rejudged",
        (false, _) => "were rejudged",
    };
    note!(
        "{} {rejudged}: {} with another outcome; {current} more {} judged by this policy earlier",
        counted(judged, "verdict", "verdicts"),
        transitions.changed(),
        if *current == 1 { "was" } else { "were" }
    );
    match unscored {
        0 => {}
        1 => note!("1 verdict has no scores and stays as it is"),
        unscored => note!("{unscored} verdicts have no scores and stay as they are"),
    }
    if *lacking > 0 {
        let hint =
            if arguments.enqueue { "" } else { "\n  hint: --enqueue publishes jobs that screen their images again" };
        let (are, have) = if *lacking == 1 { ("is", "it has") } else { ("are", "they have") };
        let verdicts = counted(*lacking, "verdict", "verdicts");
        note!("{verdicts} {are} unchanged: {have} no score for a rule of this policy{hint}");
    }
    if let Some(BackfillCounts { screened, waiting, published, .. }) = enqueued {
        let [screened, waiting, published] = [screened, waiting, published].map(|n| n.load(Ordering::Relaxed));
        let would = if arguments.dry_run { "would be published" } else { "published" };
        note!(
            "{} {would}; {} a job without a verdict yet, {screened} {} a later verdict",
            counted(published, "job", "jobs"),
            counted(waiting, "image has", "images have"),
            if screened == 1 { "has" } else { "have" }
        );
    }
    if let Some(name) = arguments.policy.as_ref().filter(|_| *skipped > 0) {
        note!("{skipped} verdicts were left out: another policy than \"{name}\" holds for their images");
    }
    if *overtaken > 0 {
        note!("{overtaken} of them are unchanged: another process revised or deleted them meanwhile");
    }
}
