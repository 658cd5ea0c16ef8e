//! `pixwarden rejudge`: today's policy applied to stored scores. No image is fetched and no model is run.
//!
//! Of an animation the scores of one frame are stored, the most severe one under the policy of that day.

use std::collections::BTreeMap;
use std::pin::pin;

use clap::Args;
use futures_util::TryStreamExt;
use serde_json::{Map, json};
use time::OffsetDateTime;

use super::output::{Format, Output};
use super::record;
use crate::config::Config;
use crate::job::event::{self, EventContext};
use crate::job::{Judgement, Outcome, Verdict, rejudged_event_id};
use crate::ledger::{self, Rejudged};
use crate::policy::{Policy, judge};
use crate::screen::plan;

/// Verdicts a transaction.
const PAGE: u32 = 500;

/// Options of `rejudge`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    which: record::Which,
    /// Only tell what would change
    #[arg(long)]
    dry_run: bool,
    /// How rows are printed
    #[arg(long, value_enum)]
    format: Option<Format>,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let (_, policy) = plan(config)?;
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;

    let mut filter = arguments.which.filter();
    // A verdict that was judged anew is younger than this, and is not met again.
    let now = OffsetDateTime::now_utc();
    filter.until = Some(filter.until.map_or(now, |until| until.min(now)));
    let mut pages = pin!(record::pages(ledger.as_ref(), filter, PAGE));
    let mut tally = Tally::default();
    while let Some(page) = pages.try_next().await? {
        let changes: Vec<Rejudged> =
            page.iter().filter_map(|verdict| change(verdict, &policy, config, &mut tally)).collect();
        if !arguments.dry_run {
            tally.overtaken += changes.len() as u64 - ledger.rejudge(&changes).await?;
        }
    }
    ledger.close().await;
    tally.print(arguments)?;
    Ok(0)
}

/// What becomes of one verdict; `None` where nothing does.
fn change(verdict: &Verdict, policy: &Policy, config: &Config, tally: &mut Tally) -> Option<Rejudged> {
    if verdict.policy.sha256 == policy.reference.sha256 {
        tally.current += 1;
        return None;
    }
    let judgement = judge::judge(policy, verdict.scores.as_ref()?);
    if matches!(judgement.outcome, Outcome::Failed | Outcome::Rejected) {
        tally.beyond += 1;
        return None;
    }
    let (before, after) = (verdict.judgement.outcome, judgement.outcome);
    *tally.moves.entry((before, after)).or_default() += 1;
    let decided_at = OffsetDateTime::now_utc();
    let anew = Verdict { judgement, policy: policy.reference.clone(), decided_at, ..verdict.clone() };
    let announced = before != after && config.events.publish.iter().any(|key| key == after.routing_key());
    Some(Rejudged {
        id: verdict.id,
        before: verdict.policy.sha256.clone(),
        event: announced.then(|| {
            let id = rejudged_event_id(verdict, after, &policy.reference.sha256);
            event::event_with_id(id, &anew, EventContext::default(), &config.prefix)
        }),
        judgement: Judgement { ..anew.judgement },
        policy: anew.policy,
        decided_at,
    })
}

#[derive(Default)]
struct Tally {
    moves: BTreeMap<(Outcome, Outcome), u64>,
    /// Judged by this policy already.
    current: u64,
    /// Their scores are none that a rule of this policy judges.
    beyond: u64,
    /// Judged by somebody else while this ran.
    overtaken: u64,
}

impl Tally {
    fn print(&self, arguments: &Arguments) -> anyhow::Result<()> {
        let mut output = Output::new(Format::or_default(arguments.format), &["before", "after", "verdicts"])?;
        for ((before, after), verdicts) in &self.moves {
            let mut row = Map::new();
            row.insert("before".into(), json!(before));
            row.insert("after".into(), json!(after));
            row.insert("verdicts".into(), json!(verdicts));
            output.row(&row)?;
        }
        output.finish()?;
        let changed: u64 = self.moves.iter().filter(|((before, after), _)| before != after).map(|(_, n)| n).sum();
        let judged: u64 = self.moves.values().sum();
        let would = if arguments.dry_run { "would be judged anew, nothing was written" } else { "judged anew" };
        eprintln!(
            "{judged} verdicts {would}: {changed} with another outcome; {} were judged by this policy already",
            self.current
        );
        if self.beyond > 0 {
            eprintln!("{} stay as they are: no rule of this policy judges their scores", self.beyond);
        }
        if self.overtaken > 0 {
            eprintln!("{} of them were judged by somebody else meanwhile, and stay as they left them", self.overtaken);
        }
        Ok(())
    }
}
