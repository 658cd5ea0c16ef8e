//! `pixwarden bank export`: the entries of a bank, page by page.

use std::io::{BufWriter, Write};

use clap::{Args, ValueEnum};
use futures_util::TryStreamExt;
use serde_json::json;
use time::format_description::well_known::Rfc3339;

use super::{BankName, find};
use crate::banks::list::{HashType, digits, exchange_line};
use crate::commands::console::{counted, note, stdout};
use crate::commands::options::LedgerOption;
use crate::commands::output::{Format, Output, fields};
use crate::ledger::{Bank, Banks, KnownEntry, ListedEntry};

const COLUMNS: [&str; 7] = ["type", "hash", "metadata", "entry", "true_matches", "false_matches", "added_at"];

#[derive(Debug, Args)]
pub(super) struct ExportArguments {
    name: BankName,
    /// What to print of each entry
    #[arg(long, value_enum, default_value = "hashes")]
    format: ExportFormat,
    #[command(flatten)]
    pub(super) ledger: LedgerOption,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ExportFormat {
    /// A line with type and hash, which `bank import` and other programs read
    Hashes,
    /// All that is known of it, with a header line
    Csv,
}

pub(super) async fn run(arguments: &ExportArguments, banks: &dyn Banks) -> anyhow::Result<()> {
    let bank = find(banks, &arguments.name).await?;
    let written = match arguments.format {
        ExportFormat::Hashes => hashes(banks, &bank).await?,
        ExportFormat::Csv => csv(banks, &bank).await?,
    };
    note!("{} of \"{}\" at version {}", counted(written, "entry", "entries"), bank.name, bank.version);
    Ok(())
}

async fn hashes(banks: &dyn Banks, bank: &Bank) -> anyhow::Result<u64> {
    let (mut pages, mut written) = (banks.entries_of(bank.id, bank.version), 0);
    let mut output = BufWriter::new(stdout());
    while let Some(page) = pages.try_next().await? {
        for KnownEntry { hash, .. } in &page {
            writeln!(output, "{}", exchange_line(hash))?;
        }
        written += page.len() as u64;
    }
    output.flush()?;
    Ok(written)
}

async fn csv(banks: &dyn Banks, bank: &Bank) -> anyhow::Result<u64> {
    let (mut pages, mut written) = (banks.listed_entries_of(bank.id, bank.version), 0);
    let mut output = Output::bulk(Format::Csv, &COLUMNS)?;
    while let Some(page) = pages.try_next().await? {
        for ListedEntry { entry, true_matches, false_matches, added_at, metadata } in &page {
            output.row(&fields([
                ("type", json!(HashType::of(&entry.hash).as_str())),
                ("hash", json!(digits(&entry.hash))),
                ("metadata", json!(metadata)),
                ("entry", json!(entry.id)),
                ("true_matches", json!(true_matches)),
                ("false_matches", json!(false_matches)),
                ("added_at", json!(added_at.format(&Rfc3339).ok())),
            ]))?;
        }
        written += page.len() as u64;
    }
    output.finish()?;
    Ok(written)
}
