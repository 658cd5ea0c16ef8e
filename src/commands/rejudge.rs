//! `pixwarden rejudge`: applies the configured policy to stored scores. It fetches no image and runs no model.
//!
//! Of an animated image the scores of one frame are stored: the most severe one under the policy of that day.

use std::collections::BTreeMap;
use std::pin::pin;

use clap::Args;
use futures_util::TryStreamExt;
use serde_json::{Map, json};
use time::OffsetDateTime;

use super::console::note;
use super::options::{LedgerOption, ThresholdOptions};
use super::output::{Format, Output};
use super::record;
use crate::config::{Config, Overlay};
use crate::job::event::{self, EventContext};
use crate::job::{Outcome, RevisionCause, Verdict};
use crate::ledger::{self, Revise, StoredVerdict};
use crate::policy::{Policy, judge};
use crate::screen::plan;

/// Verdicts per transaction.
const PAGE: u32 = 500;

/// Options of `rejudge`.
#[derive(Debug, Args)]
pub struct RejudgeArguments {
    #[command(flatten)]
    selection: record::VerdictSelection,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    ledger: LedgerOption,
    #[command(flatten)]
    thresholds: ThresholdOptions,
}

impl RejudgeArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        self.ledger.set(overlay);
        self.thresholds.set(overlay);
    }
}

pub(super) async fn run(arguments: &RejudgeArguments, config: &Config) -> anyhow::Result<u8> {
    let (_, policy) = plan(config)?;
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;

    let mut filter = arguments.selection.filter();
    // Verdicts that workers add meanwhile are left out: otherwise this might never end.
    let now = OffsetDateTime::now_utc();
    filter.until = Some(filter.until.map_or(now, |until| until.min(now)));
    let mut pages = pin!(record::pages(ledger.as_ref(), filter, PAGE));
    let mut summary = RejudgeSummary::default();
    while let Some(page) = pages.try_next().await? {
        let judged_at = ledger.now().await?;
        let changes: Vec<Revise> =
            page.iter().filter_map(|stored| change(stored, judged_at, &policy, config, &mut summary)).collect();
        if !arguments.dry_run {
            summary.overtaken += changes.len() as u64 - ledger.rejudge(&changes).await?;
        }
    }
    ledger.close().await;
    summary.print(arguments)?;
    Ok(0)
}

/// The revision of one verdict; `None` where the policy makes none.
fn change(
    stored: &StoredVerdict,
    judged_at: OffsetDateTime,
    policy: &Policy,
    config: &Config,
    summary: &mut RejudgeSummary,
) -> Option<Revise> {
    let StoredVerdict { verdict, revision } = stored;
    if verdict.policy.sha256 == policy.reference.sha256 {
        summary.current += 1;
        return None;
    }
    let judgement = judge::judge(policy, verdict.scores.as_ref()?);
    if matches!(judgement.outcome, Outcome::Failed | Outcome::Rejected) {
        summary.without_rule += 1;
        return None;
    }
    let (before, after) = (verdict.judgement.outcome, judgement.outcome);
    *summary.transitions.entry((before, after)).or_default() += 1;
    let mut revise = Revise {
        verdict: Verdict { judgement, policy: policy.reference.clone(), ..verdict.clone() },
        expected_revision: revision.number,
        cause: RevisionCause::Rejudged,
        judged_at,
        event: None,
    };
    if before != after && config.events.publish.iter().any(|key| key == after.routing_key()) {
        let context = EventContext::default();
        let event = event::revised_event(&revise.verdict, &revise.revision(), context, &config.prefix);
        revise.event = Some(event);
    }
    Some(revise)
}

#[derive(Default)]
struct RejudgeSummary {
    /// Numbers of verdicts by the outcomes before and after.
    transitions: BTreeMap<(Outcome, Outcome), u64>,
    /// Verdicts that this policy had judged before.
    current: u64,
    /// Verdicts whose scores no rule of this policy judges.
    without_rule: u64,
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
        let rejudged = if arguments.dry_run { "would be rejudged; nothing was written" } else { "were rejudged" };
        note!(
            "{judged} verdicts {rejudged}: {changed} with another outcome; {} more were judged by this policy earlier",
            self.current
        );
        if self.without_rule > 0 {
            note!("{} verdicts are unchanged: this policy has no rule for their scores", self.without_rule);
        }
        if self.overtaken > 0 {
            note!("{} of them are unchanged: another process revised or deleted them meanwhile", self.overtaken);
        }
        Ok(())
    }
}
