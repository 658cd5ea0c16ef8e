//! `pixwarden dead`: looking at dead letters without taking them away, and sending them back or discarding them.

mod letter;

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::UsageError;
use super::age::Age;
use super::output::{Format, Output};
use crate::broker::{BrokerError, Fate, Publisher, Topology, connect, peek, sift, with_timeout};
use crate::config::Config;
use crate::job::Lane;
use letter::Letter;

/// Options of `dead`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what lies among the dead letters; nothing is consumed
    List {
        #[command(flatten)]
        which: Which,
        /// Messages at the most; each is held back from others while this runs
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// How rows are printed
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
    /// Print one dead letter whole: its properties, headers and body
    Show {
        /// The job's id or the message's
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Send dead letters back to their lane; each keeps its job id and starts its attempts anew
    Replay {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
        /// The lane for messages that came in none
        #[arg(long, value_enum)]
        lane: Option<Lane>,
    },
    /// Discard dead letters for ever
    Drop {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
}

/// Which dead letters are meant; those that meet every condition.
#[derive(Debug, Args)]
struct Which {
    /// Those whose reason holds this text
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Those dead for at least so long, such as 90s, 15m, 2h or 7d
    #[arg(long, value_name = "AGE")]
    older_than: Option<Age>,
    /// The ones of these jobs or messages [repeatable]
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
}

#[derive(Debug, Args)]
struct How {
    /// Mean all of them, where no other condition is given
    #[arg(long)]
    all: bool,
    /// Only count
    #[arg(long)]
    dry_run: bool,
}

impl Which {
    fn takes(&self, letter: &Letter) -> bool {
        let reason = self.reason.as_ref().is_none_or(|text| letter.reason.as_ref().is_some_and(|r| r.contains(text)));
        // A letter of unknown age is old enough for no limit.
        let age = self.older_than.is_none_or(|limit| letter.age().is_some_and(|age| age >= limit.0));
        reason && age && (self.id.is_empty() || self.id.iter().any(|id| letter.is(id)))
    }

    /// Refuses to mean everything by accident.
    fn checked(&self, how: &How) -> anyhow::Result<()> {
        let some = self.reason.is_some() || self.older_than.is_some() || !self.id.is_empty();
        if some || how.all || how.dry_run {
            return Ok(());
        }
        let what = "nothing says which dead letters are meant\n  hint: give --reason, --older-than or --id, or --all; --dry-run counts them first";
        Err(UsageError(what.into()).into())
    }
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    if let Command::Replay { which, how, .. } | Command::Drop { which, how } = &arguments.command {
        which.checked(how)?;
    }
    let topology = Topology::new(&config.prefix, config.events.default_queue);
    let connection = connect(config.queue()?, "dead").await?;
    let dead = topology.dead();
    topology.ensure(&connection, &dead).await?;
    match &arguments.command {
        Command::List { which, limit, format } => {
            let (messages, left) = peek(&connection, &dead, *limit).await?;
            let columns = &["dead_since", "reason", "lane", "job_id", "message_id", "body"];
            let mut output = Output::new(Format::or_default(*format), columns)?;
            for letter in messages.iter().map(Letter::of).filter(|letter| which.takes(letter)) {
                output.row(&letter.row())?;
            }
            output.finish()?;
            if left > 0 {
                eprintln!("{left} more were not looked at; raise --limit to see them");
            }
        }
        Command::Show { id } => {
            let mut found = 0u32;
            let show = async |message: &lapin::message::Delivery| {
                if Letter::of(message).is(id) {
                    found += 1;
                    println!("{}", letter::whole(message));
                }
                Ok::<_, BrokerError>(Fate::Keep)
            };
            sift(&connection, &dead, show).await?;
            if found == 0 {
                bail!(
                    "no dead letter has the job id or message id \"{id}\"\n  hint: `pixwarden dead list` shows those there are"
                );
            }
        }
        Command::Replay { which, how, lane } => {
            let publisher = Publisher::new(config.queue()?.clone(), "replay", 1);
            let mut tally = Tally::default();
            let replay = async |message: &lapin::message::Delivery| {
                let letter = Letter::of(message);
                if !which.takes(&letter) {
                    return Ok(Fate::Keep);
                }
                let Some(lane) = letter.lane.or(*lane) else {
                    tally.laneless += 1;
                    return Ok(Fate::Keep);
                };
                tally.count(&letter);
                if how.dry_run {
                    return Ok(Fate::Keep);
                }
                let exchange = topology.jobs();
                publisher
                    .publish(letter::revived(message, &exchange, lane))
                    .await
                    .context("replaying a dead letter")?;
                Ok::<_, anyhow::Error>(Fate::Remove)
            };
            let sifted = sift(&connection, &dead, replay).await;
            publisher.close().await;
            tally.tell("replayed", how);
            sifted?;
        }
        Command::Drop { which, how } => {
            let mut tally = Tally::default();
            let discard = async |message: &lapin::message::Delivery| {
                let letter = Letter::of(message);
                if !which.takes(&letter) {
                    return Ok::<_, BrokerError>(Fate::Keep);
                }
                tally.count(&letter);
                Ok(if how.dry_run { Fate::Keep } else { Fate::Remove })
            };
            let sifted = sift(&connection, &dead, discard).await;
            tally.tell("dropped", how);
            sifted?;
        }
    }
    with_timeout("closing", connection.close(200, "looked".into())).await?;
    Ok(0)
}

/// How many letters were taken, by the beginning of their reasons.
#[derive(Default)]
struct Tally {
    reasons: BTreeMap<String, u64>,
    laneless: u64,
}

impl Tally {
    fn count(&mut self, letter: &Letter) {
        *self.reasons.entry(letter.kind()).or_default() += 1;
    }

    fn tell(&self, done: &str, how: &How) {
        let total: u64 = self.reasons.values().sum();
        let would = if how.dry_run { "would be " } else { "" };
        eprintln!("{total} dead {} {would}{done}", if total == 1 { "letter" } else { "letters" });
        for (reason, n) in &self.reasons {
            eprintln!("  {n}  {reason}");
        }
        if self.laneless > 0 {
            eprintln!("{} came in no lane and stay where they are; --lane says where they should go", self.laneless);
        }
    }
}
