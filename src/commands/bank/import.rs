//! `pixwarden bank import`: a list of hashes becomes the next version of a bank, whole or not at all.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::{Map, Value};

use super::{BankName, find, note_write, unknown_bank};
use crate::banks::list::{HashType, ListEntry, ListError, ListReader};
use crate::commands::console::{counted, note};
use crate::commands::options::LedgerOption;
use crate::commands::progress::{Progress, Unit};
use crate::ledger::{BankImport, Banks, NewEntry, OtherEntries};
use crate::offload;

/// Entries that travel together.
const BATCH: usize = 20_000;
/// The buffer before the list.
const READ_BYTES: usize = 1 << 16;

#[derive(Debug, Args)]
pub(super) struct ImportArguments {
    name: BankName,
    /// A list with one hash a line, `pdq HEX` or `HEX`, or a CSV file with a header row; `-` for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The type of hashes that have none in the list: 64 digits may be a PDQ hash or a SHA-256
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    assumed: Option<HashType>,
    /// Remove the entries that the list does not have
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    pub(super) ledger: LedgerOption,
}

pub(super) async fn run(arguments: &ImportArguments, banks: &dyn Banks) -> anyhow::Result<()> {
    let ImportArguments { name, file, assumed, replace, .. } = arguments;
    let list = open(file)?;
    find(banks, name).await?;
    let mut import = banks.begin_import().await?;
    let progress = Progress::new(Unit::Entries);
    let gathered = gather(import.as_mut(), entries(list, *assumed), &progress).await;
    progress.finish();
    let shown = shown(file);
    let (gathered, left_out) = gathered.map_err(|e| match e.downcast::<ListError>() {
        Ok(wrong) => {
            let wrong = crate::error_text(&wrong);
            anyhow::anyhow!("cannot import {shown}, and the bank \"{name}\" stays as it was: {wrong}")
        }
        Err(other) => other,
    })?;
    if left_out > 0 {
        note!("{} left out, whose type is none of an image's", counted(left_out, "line was", "lines were"));
    }
    if gathered == 0 && *replace {
        bail!(
            "{shown} has no hash, so that --replace would empty the bank\n  hint: `pixwarden bank set {name} --disabled` switches it off"
        );
    }
    let others = if *replace { OtherEntries::Remove } else { OtherEntries::Keep };
    let Some(written) = import.commit(name.as_str(), others).await? else {
        return Err(unknown_bank(banks, name).await?);
    };
    note_write(name, &written);
    Ok(())
}

fn shown(file: &Path) -> String {
    if is_stdin(file) { "stdin".into() } else { file.display().to_string() }
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn open(file: &Path) -> anyhow::Result<Box<dyn BufRead + Send>> {
    if is_stdin(file) {
        return Ok(Box::new(BufReader::with_capacity(READ_BYTES, io::stdin())));
    }
    let opened = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    Ok(Box::new(BufReader::with_capacity(READ_BYTES, opened)))
}

/// A part of a list.
#[derive(Default)]
struct Batch {
    entries: Vec<NewEntry>,
    /// Lines of the whole list so far whose type is none of an image's.
    left_out: u64,
}

/// The entries of a list in batches, which a separate thread reads.
fn entries(list: Box<dyn BufRead + Send>, assumed: Option<HashType>) -> BoxStream<'static, Result<Batch, ListError>> {
    offload::stream_from_thread(move |sink| {
        let mut batch = Batch::default();
        let mut reader = ListReader::new(list, assumed);
        for entry in reader.by_ref() {
            match entry {
                Ok(ListEntry { hash, metadata, .. }) => {
                    batch.entries.push(NewEntry { hash, metadata: own_metadata(metadata) });
                }
                Err(error) => return sink.put(Err(error)),
            }
            if batch.entries.len() == BATCH {
                sink.put(Ok(std::mem::take(&mut batch)))?;
            }
        }
        batch.left_out = reader.left_out().values().sum();
        sink.put(Ok(batch))
    })
}

/// The metadata of an entry. A table of `bank export` has it in one column, beside columns that belong to its bank.
fn own_metadata(mut metadata: Map<String, Value>) -> Option<Value> {
    if metadata.contains_key("true_matches") && metadata.contains_key("false_matches") {
        for column in ["entry", "true_matches", "false_matches", "added_at"] {
            metadata.remove(column);
        }
        if let Some(exported) = metadata.get("metadata").and_then(Value::as_str) {
            return serde_json::from_str(exported).ok();
        }
    }
    // JSON in PostgreSQL cannot hold it.
    metadata.values_mut().for_each(|value| {
        if let Value::String(text) = value {
            text.retain(|c| c != '\0');
        }
    });
    (!metadata.is_empty()).then(|| Value::Object(metadata))
}

/// Returns the number of entries, and of lines that were left out.
async fn gather(
    import: &mut dyn BankImport,
    mut batches: BoxStream<'static, Result<Batch, ListError>>,
    progress: &Progress,
) -> anyhow::Result<(u64, u64)> {
    let (mut gathered, mut skipped) = (0, 0);
    while let Some(batch) = batches.next().await {
        let Batch { entries, left_out } = batch?;
        import.gather(&entries).await?;
        gathered += entries.len() as u64;
        skipped = left_out;
        progress.advance(entries.len() as u64);
    }
    if progress.is_visible() {
        note!("writing {gathered} entries");
    }
    Ok((gathered, skipped))
}
