//! `pixwarden hold`: legal holds, which keep verdicts from `prune` and `erase`.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::UsageError;
use super::console::note;
use super::options::LedgerOption;
use super::output::{Format, Output};
use super::record::instant;
use super::subject::{self, SubjectOptions};
use crate::config::Config;
use crate::ledger::{self, Hold, Ledger};

const COLUMNS: [&str; 6] = ["id", "reference", "subject", "until", "state", "made_at"];

/// Options of `hold`.
#[derive(Debug, Args)]
pub struct HoldArguments {
    #[command(subcommand)]
    command: HoldCommand,
}

#[derive(Debug, Subcommand)]
enum HoldCommand {
    /// Keep the verdicts on a subject, those that exist and later ones, from prune and erase
    Add {
        #[command(flatten)]
        subject: SubjectOptions,
        /// The case, as people call it; it is printed where the hold refuses something
        #[arg(long, value_name = "TEXT")]
        reference: String,
        /// When the hold ends by itself: 2027-11-25, or 2027-11-25T13:00:00Z
        #[arg(long, value_name = "TIME", value_parser = instant)]
        until: OffsetDateTime,
        /// Output format
        #[arg(long, value_enum)]
        format: Option<Format>,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// Print all holds, also those that have ended
    List {
        /// Output format
        #[arg(long, value_enum)]
        format: Option<Format>,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// End a hold
    Release {
        /// The hold's id, as `hold list` prints it
        #[arg(value_name = "ID")]
        id: Uuid,
        #[command(flatten)]
        ledger: LedgerOption,
    },
}

impl HoldArguments {
    pub(super) const fn ledger(&self) -> &LedgerOption {
        match &self.command {
            HoldCommand::Add { ledger, .. }
            | HoldCommand::List { ledger, .. }
            | HoldCommand::Release { ledger, .. } => ledger,
        }
    }

    /// The hold that `hold add` makes.
    fn new_hold(&self) -> Result<Option<Hold>, UsageError> {
        let HoldCommand::Add { subject, reference, until, .. } = &self.command else { return Ok(None) };
        // The parser has checked that there is one.
        let Some(subject) = subject.subject() else { return Ok(None) };
        let made_at = OffsetDateTime::now_utc();
        if reference.trim().is_empty() || reference.contains('\0') {
            let what = "--reference is empty or has a NUL character\n  hint: give the name of the case";
            return Err(UsageError(what.into()));
        }
        if *until <= made_at {
            let until = until.format(&Rfc3339).unwrap_or_default();
            return Err(UsageError(format!(
                "--until {until} is over: the hold would keep nothing\n  hint: give a later time"
            )));
        }
        let (reference, subject) = (reference.clone(), subject.clone());
        Ok(Some(Hold { id: Uuid::new_v4(), reference, subject, until: *until, made_at }))
    }
}

pub(super) async fn run(arguments: &HoldArguments, config: &Config) -> anyhow::Result<u8> {
    let hold = arguments.new_hold()?;
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    match &arguments.command {
        HoldCommand::Add { format, .. } => {
            if let Some(hold) = hold {
                ledger.add_hold(&hold).await?;
                print(*format, &[hold])?;
            }
        }
        HoldCommand::List { format, .. } => print(*format, &ledger.holds().await?)?,
        HoldCommand::Release { id, .. } => release(ledger.as_ref(), *id).await?,
    }
    ledger.close().await;
    Ok(0)
}

async fn release(ledger: &dyn Ledger, id: Uuid) -> anyhow::Result<()> {
    if !ledger.release_hold(id).await? {
        bail!("there is no hold with the id {id}\n  hint: `pixwarden hold list` prints the existing ones");
    }
    note!("the hold {id} has ended");
    Ok(())
}

fn print(format: Option<Format>, holds: &[Hold]) -> anyhow::Result<()> {
    let mut output = Output::new(Format::or_default(format), &COLUMNS)?;
    if holds.is_empty() {
        note!("no holds");
    }
    let now = OffsetDateTime::now_utc();
    for hold in holds {
        let state = if hold.until > now { "holds" } else { "ended" };
        let values = [
            json!(hold.id),
            json!(hold.reference),
            json!(subject::text(&hold.subject)),
            json!(hold.until.format(&Rfc3339).ok()),
            json!(state),
            json!(hold.made_at.format(&Rfc3339).ok()),
        ];
        let row: Map<String, Value> = COLUMNS.iter().map(|column| (*column).to_owned()).zip(values).collect();
        output.row(&row)?;
    }
    output.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    #[test]
    fn a_hold_needs_one_subject_a_reference_and_an_end_to_come() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["pixwarden", "hold", "add"], words].concat());
        let hold = |words: &[&str]| {
            let Command::Hold(arguments) = parse(words).unwrap().command else { unreachable!() };
            arguments.new_hold().map(Option::unwrap)
        };
        let rest = ["--reference", "case 12", "--until", "2099-01-01"];
        let held = hold(&[&["--image", "s3://b/k"], &rest[..]].concat()).unwrap();
        assert_eq!((held.reference.as_str(), subject::text(&held.subject).as_str()), ("case 12", "s3://b/k"));
        assert!(parse(&rest).is_err(), "no subject");
        assert!(parse(&[&["--image", "s3://b/k", "--metadata", "a=b"], &rest[..]].concat()).is_err(), "two");
        let over = ["--image", "s3://b/k", "--reference", "x", "--until", "2020-01-01"];
        assert!(hold(&over).unwrap_err().to_string().contains("is over"));
    }
}
