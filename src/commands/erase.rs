//! `pixwarden erase`: deletes verdicts for ever, with everything that the ledger keeps about them.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::console::{counted, is_confirmed, note, require_terminal};
use super::options::LedgerOption;
use super::output::{Format, Output, printable, whole_seconds};
use super::subject::{self, SubjectOptions};
use crate::config::Config;
use crate::ledger::{self, Erased, ErasedRows, Hold, Ledger, LedgerError, Subject};
use crate::retry;

/// Verdicts per transaction. Workers wait for each.
const BATCH: usize = 500;
/// After each batch, so that workers can commit in between.
const BATCH_DELAY: Duration = Duration::from_millis(100);
/// How often an image is looked up again: a job may commit a verdict between the look-up and the tombstone.
const MAX_PASSES: usize = 5;
/// How long a lock that others have, or a ledger that is down, may keep a batch.
const RETRY_DEADLINE: Duration = Duration::from_secs(60);

/// Options of `erase`.
#[derive(Debug, Args)]
#[command(after_help = "\
Deletes the verdicts with their history, their events also where they are not published or delivered yet, and \
the records of their jobs. A tombstone stays: a keyed digest of the place and one of the content. A later job for the same \
content at the same place makes no verdict. Other content is screened.

--sha256 and --metadata read the whole table, page by page.

What is under a legal hold is refused, and then nothing is erased. Queues, dead letters, logs, exported files, \
back-ups and the objects themselves are not reached.")]
pub struct EraseArguments {
    #[command(flatten)]
    subject: SubjectOptions,
    /// Print the number, and erase nothing
    #[arg(long)]
    dry_run: bool,
    /// Erase without asking; required where there is no terminal to ask on
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    pub(super) ledger: LedgerOption,
}

pub(super) async fn run(arguments: &EraseArguments, config: &Config) -> anyhow::Result<u8> {
    // The parser has checked that there is one.
    let Some(subject) = arguments.subject.subject() else { return Ok(2) };
    let asks = !arguments.dry_run && !arguments.yes;
    if asks {
        require_terminal("erase", "verdicts")?;
    }
    let name = printable(&subject::text(subject));
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let ids = find(ledger.as_ref(), subject).await?;
    refuse_held(ledger.as_ref(), &ids).await?;
    if ids.is_empty() {
        note!(
            "the ledger has no verdict on {name}\n  hint: a job that still waits makes its verdict later; erase it then"
        );
        ledger.close().await;
        return Ok(0);
    }
    let found = counted(ids.len() as u64, "verdict", "verdicts");
    if arguments.dry_run {
        note!("{found} would be erased");
    } else if asks && !is_confirmed(&format!("Erase {found} on {name} from {} for ever?", config.ledger))? {
        note!("nothing was erased");
        ledger.close().await;
        return Ok(1);
    } else {
        let mut erased = ErasedRows::default();
        let ended = erase_all(ledger.as_ref(), subject, ids, &mut erased).await;
        print(arguments.format, &erased)?;
        ended?;
    }
    ledger.close().await;
    Ok(0)
}

/// The verdicts that a subject selects.
async fn find(ledger: &dyn Ledger, subject: &Subject) -> Result<Vec<Uuid>, LedgerError> {
    let (mut ids, mut from) = (Vec::new(), None);
    loop {
        let mut page = ledger.page_of_subject(subject, from).await?;
        ids.append(&mut page.ids);
        from = page.next;
        if from.is_none() {
            return Ok(ids);
        }
    }
}

async fn refuse_held(ledger: &dyn Ledger, ids: &[Uuid]) -> anyhow::Result<()> {
    for batch in ids.chunks(BATCH) {
        if let Some(hold) = ledger.hold_on(batch).await? {
            bail!("{}", refusal(&hold, "nothing was erased"));
        }
    }
    Ok(())
}

/// Erases verdicts in batches; of an image also those that were committed meanwhile.
async fn erase_all(
    ledger: &dyn Ledger,
    subject: &Subject,
    mut ids: Vec<Uuid>,
    erased: &mut ErasedRows,
) -> anyhow::Result<()> {
    for _ in 0..MAX_PASSES {
        for batch in ids.chunks(BATCH) {
            let may_pass = LedgerError::may_pass;
            match retry::retry_patiently(RETRY_DEADLINE, may_pass, async || ledger.erase(batch).await).await? {
                Erased::Done(rows) => *erased += rows,
                Erased::Held(hold) => bail!("{}", refusal(&hold, "the rest was not erased")),
            }
            tokio::time::sleep(BATCH_DELAY).await;
        }
        if !matches!(subject, Subject::Image { .. }) {
            return Ok(());
        }
        ids = find(ledger, subject).await?;
        if ids.is_empty() {
            return Ok(());
        }
    }
    bail!("verdicts on it are committed again and again\n  hint: run the command again when its jobs have ended")
}

fn refusal(hold: &Hold, what: &str) -> String {
    let until = whole_seconds(hold.until);
    format!(
        "cannot erase what is under the legal hold \"{}\" until {until}; {what}\n  hint: `pixwarden hold release {}` ends the hold",
        printable(&hold.reference),
        hold.id
    )
}

fn print(format: Option<Format>, erased: &ErasedRows) -> anyhow::Result<()> {
    let mut output = Output::new(Format::or_default(format), &["table", "deleted", "written"])?;
    for (table, rows) in erased.by_table() {
        let column = if table == "tombstones" { "written" } else { "deleted" };
        let row: Map<String, Value> =
            [("table".into(), json!(table)), (column.into(), json!(rows))].into_iter().collect();
        output.row(&row)?;
    }
    output.finish()?;
    note!("{} erased at {}", counted(erased.verdicts, "verdict", "verdicts"), whole_seconds(OffsetDateTime::now_utc()));
    Ok(())
}
