//! `pixwarden show`: what is known of a job or an image.

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value, json};
use time::format_description::well_known::Rfc3339;

use super::output::{Format, Output};
use super::record;
use crate::config::Config;
use crate::job::{ImageRef, Outcome, verdict_id};
use crate::ledger::{self, Announcement};

/// Verdicts on one image that are shown; an image has one a state, detector and sender's id.
const MOST: u32 = 100;

const COLUMNS: [&str; 8] = ["decided_at", "outcome", "label", "score", "reason", "job_id", "attempts", "announced"];

/// Options of `show`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A job's id, or an image as s3://bucket/key
    #[arg(value_name = "JOB_ID|s3://BUCKET/KEY")]
    what: String,
    /// How rows are printed
    #[arg(long, value_enum)]
    format: Option<Format>,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    let verdicts = match ImageRef::from_uri(&arguments.what) {
        Some(image) => ledger.on_image(&image, MOST).await?,
        None => ledger.read(verdict_id(&arguments.what)).await?.into_iter().collect(),
    };
    if verdicts.is_empty() {
        bail!(
            "the ledger knows nothing of \"{}\"\n  hint: a job that waits, or is a dead letter, has no verdict yet; `pixwarden check` tells how many wait, `pixwarden dead show ID` looks among the dead letters",
            arguments.what
        );
    }
    let mut output = Output::new(Format::or_default(arguments.format), &COLUMNS)?;
    for verdict in verdicts {
        let events = ledger.events_of(verdict.id).await?;
        let mut row = record::row(&verdict);
        row.insert("announced".into(), json!(announced(verdict.judgement.outcome, &events)));
        row.insert("events".into(), events.iter().map(event).collect());
        output.row(&row)?;
    }
    output.finish()?;
    ledger.close().await;
    Ok(0)
}

/// Whether the outcome was told, in words.
fn announced(outcome: Outcome, events: &[Announcement]) -> String {
    let ours = events.iter().rev().find(|event| event.routing_key == outcome.routing_key());
    match ours {
        Some(Announcement { published_at: Some(at), .. }) => {
            format!("{} at {}", outcome.routing_key(), at.format(&Rfc3339).unwrap_or_default())
        }
        Some(Announcement { last_error: Some(why), tries, .. }) => format!("not yet, after {tries} tries: {why}"),
        Some(_) => "not yet".into(),
        None => "no longer known, or not announced".into(),
    }
}

fn event(event: &Announcement) -> Value {
    let fields = [
        ("event_id", json!(event.event)),
        ("routing_key", json!(event.routing_key)),
        ("created_at", json!(event.created_at.format(&Rfc3339).ok())),
        ("published_at", json!(event.published_at.and_then(|at| at.format(&Rfc3339).ok()))),
        ("tries", json!(event.tries)),
        ("last_error", json!(event.last_error)),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>().into()
}
