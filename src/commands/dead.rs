//! `pixwarden dead`: arguments and output of [`crate::dead`].

use std::io::Write;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::UsageError;
use super::age::Age;
use super::console::{counted, is_confirmed, note, require_terminal, stdout};
use super::options::QueueOption;
use super::output::{Format, Output, printable};
use crate::config::Config;
use crate::dead::{DeadLetterQueue, LetterSelection, SelectedCounts};
use crate::job::Lane;

/// Reasons that are counted one by one in the output. Those of most dead letters come first.
const MAX_REASONS: usize = 20;

#[derive(Debug, Args)]
pub struct DeadArguments {
    #[command(subcommand)]
    command: DeadCommand,
    #[command(flatten)]
    pub(super) queue: QueueOption,
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// Print the dead letters, oldest first; those without a time come before them
    List {
        #[command(flatten)]
        conditions: Conditions,
        /// Maximum number of dead letters to print
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// Output format
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
    /// Print one dead letter in full: properties, headers and body
    Show {
        /// Id of the job or of the message, or the position that `dead list` prints
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Send dead letters back to their lane; each keeps its job id, and its attempts count from zero
    Replay {
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        mode: Mode,
        /// The lane for messages that were published to no lane
        #[arg(long, value_enum)]
        lane: Option<Lane>,
    },
    /// Discard dead letters permanently
    Drop {
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        mode: Mode,
        /// Discard without asking; required where there is no terminal to ask on
        #[arg(long)]
        yes: bool,
    },
}

/// Conditions on dead letters; those that meet all of them are selected.
#[derive(Debug, Args)]
struct Conditions {
    /// Dead letters whose reason contains this text
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Dead letters that have been dead for at least this long, such as 90s, 15m, 2h or 7d
    #[arg(long, value_name = "AGE")]
    older_than: Option<Age>,
    /// Dead letters of this job or message, or at this position [repeatable]
    #[arg(long, visible_alias = "position", value_name = "ID")]
    id: Vec<String>,
}

#[derive(Debug, Args)]
struct Mode {
    /// Select all dead letters if no other condition is given
    #[arg(long)]
    all: bool,
    /// Only count
    #[arg(long)]
    dry_run: bool,
}

impl Conditions {
    fn selection(&self) -> LetterSelection {
        let Self { reason, older_than, id } = self;
        LetterSelection { reason: reason.clone(), older_than: older_than.map(|age| age.0), ids: id.clone() }
    }

    /// Refuses to select everything by accident.
    fn checked(&self, mode: &Mode) -> Result<LetterSelection, UsageError> {
        let selection = self.selection();
        if selection.is_unconditional() && !mode.all && !mode.dry_run {
            let what = "no dead letters are selected\n  hint: give --reason, --older-than or --id, or --all; --dry-run counts them first";
            return Err(UsageError(what.into()));
        }
        Ok(selection)
    }
}

pub(super) async fn run(arguments: &DeadArguments, config: &Config) -> anyhow::Result<u8> {
    let selection = match &arguments.command {
        DeadCommand::List { conditions, .. } => conditions.selection(),
        DeadCommand::Replay { conditions, mode, .. } | DeadCommand::Drop { conditions, mode, .. } => {
            conditions.checked(mode)?
        }
        DeadCommand::Show { .. } => LetterSelection::default(),
    };
    let asks = matches!(&arguments.command, DeadCommand::Drop { mode, yes, .. } if !mode.dry_run && !yes);
    if asks {
        require_terminal("discard", "dead letters")?;
    }
    let queue = DeadLetterQueue::open(config).await?;
    match &arguments.command {
        DeadCommand::List { limit, format, .. } => {
            let (letters, beyond) = queue.list(&selection, *limit).await?;
            let columns = &["position", "dead_since", "reason", "lane", "attempts", "job_id", "message_id", "body"];
            let mut output = Output::new(Format::or_default(*format), columns)?;
            if letters.is_empty() && beyond == 0 {
                note!("no dead letters");
            }
            for letter in letters {
                output.row(&letter.row())?;
            }
            output.finish()?;
            if beyond > 0 {
                note!("{beyond} more are not printed; raise --limit to see them");
            }
        }
        DeadCommand::Show { id } => {
            let mut out = stdout();
            if queue.show(id, |letter| writeln!(out, "{letter}")).await? == 0 {
                bail!(
                    "no dead letter has the job id, the message id or the position \"{id}\"\n  hint: `pixwarden dead list` prints the existing ones"
                );
            }
        }
        DeadCommand::Replay { mode, lane, .. } => {
            let mut counts = SelectedCounts::default();
            let replayed = queue.replay(&selection, *lane, mode.dry_run, &mut counts).await;
            print_counts(&counts, "replayed", mode);
            replayed?;
        }
        DeadCommand::Drop { mode, .. } => {
            if asks && !is_drop_confirmed(&queue, &selection).await? {
                queue.close().await?;
                note!("nothing was discarded");
                return Ok(1);
            }
            let mut counts = SelectedCounts::default();
            let dropped = queue.discard(&selection, mode.dry_run, &mut counts).await;
            print_counts(&counts, "dropped", mode);
            dropped?;
        }
    }
    queue.close().await?;
    Ok(0)
}

/// Counts the selected dead letters, and asks whether to discard them.
async fn is_drop_confirmed(queue: &DeadLetterQueue<'_>, selection: &LetterSelection) -> anyhow::Result<bool> {
    let mut counts = SelectedCounts::default();
    queue.discard(selection, true, &mut counts).await?;
    let total = counts.by_reason.values().sum();
    // There is nothing to ask about.
    Ok(total == 0 || is_confirmed(&format!("Discard {} permanently?", counted(total, "dead letter", "dead letters")))?)
}

fn print_counts(counts: &SelectedCounts, done: &str, mode: &Mode) {
    let total: u64 = counts.by_reason.values().sum();
    let would = if mode.dry_run { "would be " } else { "" };
    note!("{} {would}{done}", counted(total, "dead letter", "dead letters"));
    let mut reasons: Vec<_> = counts.by_reason.iter().collect();
    reasons.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    let (printed, others) = reasons.split_at(reasons.len().min(MAX_REASONS));
    for (reason, n) in printed {
        note!("  {n}  {}", printable(reason));
    }
    if !others.is_empty() {
        let letters: u64 = others.iter().map(|(_, n)| **n).sum();
        note!("  {letters}  with {}", counted(others.len() as u64, "other reason", "other reasons"));
    }
    if counts.without_lane > 0 {
        note!("{} name no lane and stay among the dead letters; give one with --lane", counts.without_lane);
    }
}
