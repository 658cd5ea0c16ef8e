//! `pixwarden export`: verdicts as JSON lines or CSV, page by page.

use std::pin::pin;

use clap::{Args, ValueEnum};
use futures_util::TryStreamExt;

use super::output::{Format, Output};
use super::record;
use crate::config::Config;
use crate::ledger;

/// Verdicts read at a time.
const PAGE: u32 = 1_000;

/// Options of `export`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    which: record::Which,
    /// How verdicts are written
    #[arg(long, value_enum, default_value = "jsonl")]
    format: As,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum As {
    /// One JSON object a line
    Jsonl,
    /// With a header line; what is an object is JSON text
    Csv,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let format = match arguments.format {
        As::Jsonl => Format::Jsonl,
        As::Csv => Format::Csv,
    };
    let mut filter = arguments.which.filter();
    // What is decided meanwhile is for the next export, which begins where this one ended.
    filter.until = filter.until.or_else(|| Some(time::OffsetDateTime::now_utc()));
    let mut output = Output::bulk(format, &record::COLUMNS)?;
    let mut pages = pin!(record::pages(ledger.as_ref(), filter, PAGE));
    let mut written = 0u64;
    while let Some(page) = pages.try_next().await? {
        for verdict in &page {
            output.row(&record::row(verdict))?;
            written += 1;
        }
    }
    output.finish()?;
    ledger.close().await;
    eprintln!("{written} {}", if written == 1 { "verdict" } else { "verdicts" });
    Ok(0)
}
