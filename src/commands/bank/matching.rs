//! `pixwarden bank match`: a bank against everything that was ever screened.

use std::sync::Arc;

use clap::Args;

use super::BankName;
use crate::banks;
use crate::commands::console::{counted, note};
use crate::commands::numbers;
use crate::commands::options::{LedgerOption, PolicyOptions};
use crate::commands::output::Format;
use crate::commands::progress::{Progress, Unit};
use crate::commands::rejudge::print_transitions;
use crate::commands::signals::{INTERRUPTED, Signals};
use crate::config::{Config, Overlay};
use crate::ledger::Ledger;
use crate::matching::{MatchOptions, MatchSummary, Matching};
use crate::screen::plan;

#[derive(Debug, Args)]
pub(super) struct MatchArguments {
    name: BankName,
    /// Print what would change, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Also look for entries that an earlier run has looked for
    #[arg(long)]
    all: bool,
    /// Start at the beginning even if an earlier run was interrupted
    #[arg(long, conflicts_with = "dry_run")]
    restart: bool,
    /// Also print the first N verdicts that change
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = numbers::whole::<usize>)]
    show: usize,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    policy: PolicyOptions,
    #[command(flatten)]
    pub(super) ledger: LedgerOption,
}

impl MatchArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        self.policy.set(overlay);
        self.ledger.set(overlay);
    }
}

pub(super) async fn run(arguments: &MatchArguments, ledger: Arc<dyn Ledger>, config: &Config) -> anyhow::Result<u8> {
    let (_, policies) = plan(config)?;
    let options = MatchOptions {
        all: arguments.all,
        dry_run: arguments.dry_run,
        restart: arguments.restart,
        examples: arguments.show,
    };
    let banks = banks::load_for(&policies, config, ledger.as_ref()).await?;
    if !arguments.dry_run {
        ledger.record_policies(&policies.texts()).await?;
    }
    let config = Arc::new(config.clone());
    let mut matching = Matching::new(ledger, policies, banks, config, arguments.name.as_str(), options).await?;
    let progress = Progress::new(Unit::Views);
    let bar = progress.clone();
    let stop = Signals::listen()?.stop(move || {
        bar.around(|| note!("stopping after this part of the hashes; a second signal stops at once"));
    });
    let is_complete = matching.run(&stop, |summary| progress.set(summary.views)).await;
    progress.finish();
    print_transitions(Format::or_default(arguments.format), &matching.summary.transitions)?;
    print_summary(arguments, &matching.summary);
    match is_complete? {
        true => Ok(0),
        false if arguments.dry_run => Ok(INTERRUPTED),
        false => {
            note!("stopped; the same command continues from here");
            Ok(INTERRUPTED)
        }
    }
}

fn print_summary(arguments: &MatchArguments, summary: &MatchSummary) {
    let MatchSummary { entries, views, transitions, without_rule, softened, unscored, overtaken } = summary;
    let name = &arguments.name;
    if *entries == 0 {
        note!("the bank \"{name}\" has no entry that an earlier run has not looked for\n  hint: --all looks for all");
        return;
    }
    let revised = if arguments.dry_run { "would be revised; nothing was written" } else { "revised" };
    note!(
        "{} of \"{name}\" and {}: {} with a match, {} {revised}",
        counted(*entries, "entry", "entries"),
        counted(*views, "hashed view", "hashed views"),
        counted(transitions.verdicts(), "verdict", "verdicts"),
        transitions.news()
    );
    if *without_rule > 0 {
        note!("{} with a match stay as they are: their policy has no rule over the bank", verdicts(*without_rule));
    }
    if *softened > 0 {
        note!(
            "{} with a match stay as they are: the policies of today say less of them, for want of a fact or by other rules\n  hint: `pixwarden policy explain` says why, `pixwarden rejudge` judges them by all rules",
            verdicts(*softened)
        );
    }
    if *unscored > 0 {
        note!("{} with a match stay as they are: their files show nothing", verdicts(*unscored));
    }
    if *overtaken > 0 {
        note!(
            "{} with a match stay as they are: other processes revise them at the same time\n  hint: run the command once more with --all",
            verdicts(*overtaken)
        );
    }
}

fn verdicts(count: u64) -> String {
    counted(count, "verdict", "verdicts")
}
