//! `pixwarden show`: prints the verdicts on a job or an image.

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value, json};
use time::format_description::well_known::Rfc3339;

use super::options::LedgerOption;
use super::output::{Format, Output};
use super::record;
use crate::config::Config;
use crate::job::{ImageRef, Outcome, verdict_id};
use crate::ledger::{self, OutboxRow, StoredVerdict};

/// The most verdicts on one image that are shown. An image has one per version, set of detectors and job id.
const MAX_VERDICTS: u32 = 100;

const COLUMNS: [&str; 8] = ["decided_at", "outcome", "label", "score", "reason", "job_id", "attempts", "announced"];

/// Options of `show`.
#[derive(Debug, Args)]
pub struct ShowArguments {
    /// The id of a job, or an image as s3://bucket/key
    #[arg(value_name = "JOB_ID|s3://BUCKET/KEY")]
    subject: String,
    /// Output format
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    pub(super) ledger: LedgerOption,
}

pub(super) async fn run(arguments: &ShowArguments, config: &Config) -> anyhow::Result<u8> {
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let verdicts = match ImageRef::from_uri(&arguments.subject) {
        Some(image) => ledger.verdicts_on_image(&image, MAX_VERDICTS).await?,
        None => ledger.read_verdict(verdict_id(&arguments.subject)).await?.into_iter().collect(),
    };
    if verdicts.is_empty() {
        bail!(
            "the ledger has no verdict on \"{}\"\n  hint: a waiting job and a dead letter have no verdict yet; `pixwarden check` prints how many jobs wait, `pixwarden dead show ID` prints a dead letter",
            arguments.subject
        );
    }
    let mut output = Output::new(Format::or_default(arguments.format), &COLUMNS)?;
    for StoredVerdict { verdict, .. } in verdicts {
        let events = ledger.outbox_rows(verdict.id).await?;
        let mut row = record::row(&verdict);
        row.insert("announced".into(), json!(announced(verdict.judgement.outcome, &events)));
        row.insert("events".into(), events.iter().map(event).collect());
        output.row(&row)?;
    }
    output.finish()?;
    ledger.close().await;
    Ok(0)
}

/// Whether the event of the outcome was published, as text.
fn announced(outcome: Outcome, events: &[OutboxRow]) -> String {
    let latest = events.iter().rev().find(|event| event.routing_key == outcome.routing_key());
    match latest {
        Some(OutboxRow { published_at: Some(at), .. }) => {
            format!("{} at {}", outcome.routing_key(), at.format(&Rfc3339).unwrap_or_default())
        }
        Some(OutboxRow { last_error: Some(why), tries, .. }) => format!("not yet, after {tries} tries: {why}"),
        Some(_) => "not yet".into(),
        None => "not announced, or no longer in the outbox".into(),
    }
}

fn event(event: &OutboxRow) -> Value {
    let fields = [
        ("event_id", json!(event.event_id)),
        ("routing_key", json!(event.routing_key)),
        ("created_at", json!(event.created_at.format(&Rfc3339).ok())),
        ("published_at", json!(event.published_at.and_then(|at| at.format(&Rfc3339).ok()))),
        ("tries", json!(event.tries)),
        ("last_error", json!(event.last_error)),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>().into()
}
