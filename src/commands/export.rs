//! `pixwarden export`: prints verdicts as JSON lines or CSV, page by page.

use std::pin::pin;

use clap::{Args, ValueEnum};
use futures_util::TryStreamExt;

use super::output::{Format, Output};
use super::record;
use crate::config::Config;
use crate::ledger;

/// Verdicts per query.
const PAGE: u32 = 1_000;

/// Options of `export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    #[command(flatten)]
    selection: record::VerdictSelection,
    /// Output format
    #[arg(long, value_enum, default_value = "jsonl")]
    format: ExportFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ExportFormat {
    /// One JSON object per line
    Jsonl,
    /// With a header line; objects are JSON text
    Csv,
}

pub(super) async fn run(arguments: &ExportArguments, config: &Config) -> anyhow::Result<u8> {
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let format = match arguments.format {
        ExportFormat::Jsonl => Format::Jsonl,
        ExportFormat::Csv => Format::Csv,
    };
    let mut filter = arguments.selection.filter();
    // Verdicts that are decided meanwhile belong to the next export, which begins where this one ended.
    filter.until = filter.until.or_else(|| Some(time::OffsetDateTime::now_utc()));
    let mut output = Output::bulk(format, &record::COLUMNS)?;
    let mut pages = pin!(record::pages(ledger.as_ref(), filter, PAGE));
    let mut written = 0u64;
    while let Some(page) = pages.try_next().await? {
        for stored in &page {
            output.row(&record::row(stored))?;
            written += 1;
        }
    }
    output.finish()?;
    ledger.close().await;
    eprintln!("{written} {}", if written == 1 { "verdict" } else { "verdicts" });
    Ok(0)
}
