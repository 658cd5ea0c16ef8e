//! `pixwarden rejudge`: applies the configured policies to stored facts. It fetches no image and runs no model.
//!
//! A verdict without a fact for one of its policy's rules is left as it is: a rule whose fact is missing must never count as
//! passed. So is an animation of which an earlier release stored the scores of one frame only. With `--enqueue` its image is
//! screened by the current detectors, unless these have a verdict on it already.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use futures_util::TryStreamExt;
use serde_json::{Map, json};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::console::{counted, note};
use super::options::{LedgerOption, QueueOption, ThresholdOptions};
use super::output::{Format, Output};
use super::record::{self, FindingSelection, VerdictSelection};
use super::signals::{INTERRUPTED, Signals};
use crate::backfill::{BackfillCounts, BackfillEnd, BackfillError, JobsForGaps, PublishLimits, PublishOptions};
use crate::config::{Config, Overlay};
use crate::job::event::{self, EventContext};
use crate::job::{ImageRef, Outcome, RevisionCause, Verdict};
use crate::ledger::{self, Ledger, Revise, StoredVerdict, VerdictFilter};
use crate::policy::{ImageContext, PolicySet, judge};
use crate::screen::plan;

/// Verdicts per transaction.
const PAGE: u32 = 500;
/// Limits of `--enqueue`, as those of `backfill`.
const ENQUEUE_LIMITS: PublishLimits = PublishLimits { rate: None, depth: 10_000 };
/// A job of `--enqueue` without a verdict counts as lost after this time, as with `backfill`.
const AGAIN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Options of `rejudge`.
#[derive(Debug, Args)]
pub struct RejudgeArguments {
    #[command(flatten)]
    selection: VerdictSelection,
    #[command(flatten)]
    findings: FindingSelection,
    /// Publish a job in the lane backfill for each image that lacks a score for one of its policy's rules
    ///
    /// Such a verdict is never changed. The job gets a separate verdict, from the current detectors. A job that was
    /// published before and has no verdict yet is not published again.
    #[arg(long)]
    enqueue: bool,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
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

    /// Verdicts that workers add meanwhile are left out: otherwise this might never end.
    fn filter(&self, now: OffsetDateTime) -> VerdictFilter {
        let filter = self.findings.add_to(self.selection.filter());
        VerdictFilter { until: Some(filter.until.map_or(now, |until| until.min(now))), ..filter }
    }
}

pub(super) async fn run(arguments: &RejudgeArguments, config: &Config) -> anyhow::Result<u8> {
    let (_, policies) = plan(config)?;
    let ledger: Arc<dyn Ledger> = ledger::open(config).await?.into();
    ledger.check_schema().await?;
    if !arguments.dry_run {
        ledger.record_policies(&policies.texts()).await?;
    }
    let filter = arguments.filter(OffsetDateTime::now_utc());
    let mut rejudging = Rejudging {
        ledger: Arc::clone(&ledger),
        policies,
        config,
        dry_run: arguments.dry_run,
        summary: RejudgeSummary::default(),
    };
    let end = if arguments.enqueue {
        let options = PublishOptions {
            retry_failed: false,
            limit: None,
            dry_run: arguments.dry_run,
            limits: ENQUEUE_LIMITS,
            again_after: AGAIN_AFTER,
        };
        let jobs = JobsForGaps::open(Arc::clone(&ledger), config, options).await?;
        let stop = Signals::listen()?.stop(|| {
            note!("stopping after the jobs that are being published; a second signal stops at once");
        });
        let end = jobs.alone(&stop, rejudging.all(filter, Some(&jobs), &stop)).await;
        jobs.close().await;
        rejudging.summary.enqueued = Some(jobs.counts);
        end
    } else {
        let end = rejudging.all(filter, None, &CancellationToken::new()).await;
        ledger.close().await;
        end
    };
    rejudging.summary.print(arguments)?;
    Ok(if end? == BackfillEnd::Stopped { INTERRUPTED } else { 0 })
}

/// One run over the selected verdicts.
struct Rejudging<'c> {
    ledger: Arc<dyn Ledger>,
    policies: PolicySet,
    config: &'c Config,
    dry_run: bool,
    summary: RejudgeSummary,
}

impl Rejudging<'_> {
    async fn all(
        &mut self,
        filter: VerdictFilter,
        jobs: Option<&JobsForGaps>,
        stop: &CancellationToken,
    ) -> Result<BackfillEnd, BackfillError> {
        let ledger = Arc::clone(&self.ledger);
        let mut pages = pin!(record::pages(ledger.as_ref(), filter, PAGE));
        let mut pace = jobs.map(JobsForGaps::pace);
        while let Some(page) = pages.try_next().await? {
            let lacking = self.page(&page).await?;
            if let (Some(jobs), Some(pace)) = (jobs, &mut pace)
                && let Some(end) = jobs.fill(lacking, pace, stop).await?
            {
                return Ok(end);
            }
            if stop.is_cancelled() {
                return Ok(BackfillEnd::Stopped);
            }
        }
        Ok(BackfillEnd::Done)
    }

    /// Judges one page. Returns the images of the verdicts that lack a score.
    async fn page(&mut self, page: &[StoredVerdict]) -> Result<Vec<ImageRef>, BackfillError> {
        let judged_at = self.ledger.now().await?;
        let (mut changes, mut lacking) = (Vec::new(), Vec::new());
        for stored in page {
            match self.change(stored, judged_at) {
                Rejudged::Changed(change) => changes.push(*change),
                Rejudged::Lacking => lacking.push(stored.verdict.image.clone()),
                Rejudged::Unchanged => {}
            }
        }
        self.summary.lacking += lacking.len() as u64;
        if !self.dry_run {
            self.summary.overtaken += changes.len() as u64 - self.ledger.rejudge(&changes).await?;
        }
        Ok(lacking)
    }

    /// What the policy makes of one verdict.
    fn change(&mut self, stored: &StoredVerdict, judged_at: OffsetDateTime) -> Rejudged {
        let StoredVerdict { verdict, revision, .. } = stored;
        let policy = self.policies.policy_for(&ImageContext::of(verdict));
        // Nothing was scored, because nothing could be shown: no policy changes that.
        let Some(facts) = &verdict.facts else {
            self.summary.unscored += 1;
            return Rejudged::Unchanged;
        };
        if verdict.policy == policy.reference {
            self.summary.current += 1;
            return Rejudged::Unchanged;
        }
        // An earlier release chose the frame of an animation by the policy of that day.
        let lacks_views = facts.views.is_none() && verdict.policy.sha256 != policy.reference.sha256;
        let judgement = judge::judge(policy, facts);
        let is_unusable = matches!(judgement.outcome, Outcome::Failed | Outcome::Rejected);
        if lacks_views || is_unusable || judge::missing_detector(policy, facts).is_some() {
            return Rejudged::Lacking;
        }
        let (before, after) = (&verdict.judgement, &judgement);
        *self.summary.transitions.entry((before.outcome, after.outcome)).or_default() += 1;
        let is_news = !after.says_same_as(before);
        let mut revise = Revise {
            verdict: Verdict { judgement, policy: policy.reference.clone(), ..verdict.clone() },
            expected_revision: revision.number,
            cause: RevisionCause::Rejudged,
            judged_at,
            event: None,
        };
        // A file of a scan has no bucket, and the events of its ledger are never published.
        if is_news && !verdict.image.bucket.is_empty() {
            let (context, before) = (EventContext::default(), Some(before.outcome));
            let event = event::revised_event(&revise.verdict, &revise.revision(), before, context, &self.config.prefix);
            revise.event = Some(event).filter(|event| self.config.events.publish.contains(&event.routing_key));
        }
        Rejudged::Changed(Box::new(revise))
    }
}

/// What a policy makes of a stored verdict.
enum Rejudged {
    Changed(Box<Revise>),
    /// A fact is missing that one of its rules needs.
    Lacking,
    Unchanged,
}

#[derive(Default)]
struct RejudgeSummary {
    /// Numbers of verdicts by the outcomes before and after.
    transitions: BTreeMap<(Outcome, Outcome), u64>,
    /// Verdicts that this policy had judged before.
    current: u64,
    /// Verdicts without any score.
    unscored: u64,
    /// Verdicts without a score for each rule of this policy.
    lacking: u64,
    /// What became of their images.
    enqueued: Option<BackfillCounts>,
    /// Verdicts that another process has revised meanwhile.
    overtaken: u64,
}

impl RejudgeSummary {
    fn print(&self, arguments: &RejudgeArguments) -> anyhow::Result<()> {
        let mut output = Output::new(Format::or_default(arguments.format), &["before", "after", "verdicts"])?;
        for ((before, after), verdicts) in &self.transitions {
            let mut row = Map::new();
            row.insert("before".into(), json!(before));
            row.insert("after".into(), json!(after));
            row.insert("verdicts".into(), json!(verdicts));
            output.row(&row)?;
        }
        output.finish()?;
        let changed: u64 = self.transitions.iter().filter(|((before, after), _)| before != after).map(|(_, n)| n).sum();
        let judged: u64 = self.transitions.values().sum();
        let rejudged = match (arguments.dry_run, judged) {
            (true, _) => "would be rejudged; nothing was written",
            (false, 1) => "was rejudged",
            (false, _) => "were rejudged",
        };
        note!(
            "{} {rejudged}: {changed} with another outcome; {} more {} judged by this policy earlier",
            counted(judged, "verdict", "verdicts"),
            self.current,
            if self.current == 1 { "was" } else { "were" }
        );
        match self.unscored {
            0 => {}
            1 => note!("1 verdict has no scores and stays as it is"),
            unscored => note!("{unscored} verdicts have no scores and stay as they are"),
        }
        if self.lacking > 0 {
            let hint = if arguments.enqueue {
                ""
            } else {
                "\n  hint: --enqueue publishes jobs that screen their images again"
            };
            let (are, have) = if self.lacking == 1 { ("is", "it has") } else { ("are", "they have") };
            let verdicts = counted(self.lacking, "verdict", "verdicts");
            note!("{verdicts} {are} unchanged: {have} no score for a rule of this policy{hint}");
        }
        if let Some(BackfillCounts { screened, waiting, published, .. }) = &self.enqueued {
            let [screened, waiting, published] = [screened, waiting, published].map(|n| n.load(Ordering::Relaxed));
            let would = if arguments.dry_run { "would be published" } else { "published" };
            note!(
                "{} {would}; {} a job without a verdict yet, {screened} {} a later verdict",
                counted(published, "job", "jobs"),
                counted(waiting, "image has", "images have"),
                if screened == 1 { "has" } else { "have" }
            );
        }
        if self.overtaken > 0 {
            note!("{} of them are unchanged: another process revised or deleted them meanwhile", self.overtaken);
        }
        Ok(())
    }
}
