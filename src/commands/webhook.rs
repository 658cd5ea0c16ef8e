//! `pixwarden webhook`: what is sent to HTTP endpoints.

use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::UsageError;
use super::console::{counted, note};
use super::numbers;
use super::options::LedgerOption;
use super::output::{Format, Output, fields, whole_seconds};
use super::record::instant;
use crate::config::{Config, Overlay};
use crate::ledger::{self, DeliveryFilter, DeliveryState, Ledger, ReplaySelection, StoredDelivery, Webhooks};
use crate::webhooks::options::endpoints;
use crate::webhooks::{Endpoint, SendError, WebhookClient, test_event};

const COLUMNS: [&str; 7] = ["id", "endpoint", "routing_key", "state", "attempts", "status", "error"];

/// Options of `webhook`.
#[derive(Debug, Args)]
pub struct WebhookArguments {
    #[command(subcommand)]
    command: WebhookCommand,
}

#[derive(Debug, Subcommand)]
enum WebhookCommand {
    /// Print what waits for an endpoint, was given up, or was delivered lately; latest first
    List {
        /// Only what was given up
        #[arg(long, conflicts_with = "pending")]
        failed: bool,
        /// Only what waits
        #[arg(long)]
        pending: bool,
        /// Only for the endpoint of this name
        #[arg(long, value_name = "NAME")]
        endpoint: Option<String>,
        /// Maximum number of rows to print
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = |text: &str| numbers::whole_within(text, 1..=1_000_000u32))]
        limit: u32,
        /// Output format
        #[arg(long, value_enum)]
        format: Option<Format>,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// Send events again; each keeps its event id, and its attempts count from zero
    ///
    /// Give ids, or conditions. With --since and without --failed, also what was delivered is sent again: for a receiver that
    /// has lost what it got. A running process with the endpoint in its configuration sends.
    Replay {
        /// Ids as `webhook list` prints them
        #[arg(value_name = "ID", value_parser = numbers::whole::<u32>, conflicts_with_all = ["failed", "since", "endpoint"], required_unless_present_any = ["failed", "since"])]
        ids: Vec<u32>,
        /// What was given up
        #[arg(long)]
        failed: bool,
        /// Only for the endpoint of this name
        #[arg(long, value_name = "NAME")]
        endpoint: Option<String>,
        /// Written at or after this time: 2026-11-25, or 2026-11-25T13:00:00Z
        #[arg(long, value_name = "TIME", value_parser = instant)]
        since: Option<OffsetDateTime>,
        #[command(flatten)]
        ledger: LedgerOption,
    },
    /// Send an example event to an endpoint at once, and print its answer
    ///
    /// The type of the event is io.pixwarden.test.v1. It is about no image, and not stored.
    Test {
        /// The endpoint's name in the configuration
        #[arg(value_name = "NAME")]
        name: String,
        /// Output format
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
}

impl WebhookArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        match &self.command {
            WebhookCommand::List { ledger, .. } | WebhookCommand::Replay { ledger, .. } => ledger.set(overlay),
            WebhookCommand::Test { .. } => {}
        }
    }
}

pub(super) async fn run(arguments: &WebhookArguments, config: &Config) -> anyhow::Result<u8> {
    match &arguments.command {
        WebhookCommand::List { failed, pending, endpoint, limit, format, .. } => {
            let state = match (failed, pending) {
                (true, _) => Some(DeliveryState::Failed),
                (_, true) => Some(DeliveryState::Pending),
                _ => None,
            };
            let filter = DeliveryFilter { state, endpoint: endpoint.clone() };
            let (ledger, webhooks) = open(config).await?;
            // One more, to know whether there are more.
            let mut found = webhooks.find_deliveries(&filter, limit.saturating_add(1)).await?;
            let has_more = found.len() > *limit as usize;
            found.truncate(*limit as usize);
            print(*format, &found)?;
            if has_more {
                note!("there are more; raise --limit to see them");
            }
            ledger.close().await;
        }
        WebhookCommand::Replay { ids, failed, endpoint, since, .. } => {
            let (ledger, webhooks) = open(config).await?;
            let selection = if ids.is_empty() {
                ReplaySelection::Where { only_failed: *failed, endpoint: endpoint.clone(), since: *since }
            } else {
                ReplaySelection::Ids(ids.iter().copied().map(i64::from).collect())
            };
            let replayed = webhooks.replay_deliveries(&selection).await?;
            ledger.close().await;
            let words = counted(replayed, "event is", "events are");
            let missing = (ids.len() as u64).saturating_sub(replayed);
            if missing > 0 {
                let missing = counted(missing, "id does", "ids do");
                bail!(
                    "{missing} not exist; {words} sent again\n  hint: `pixwarden webhook list` prints the existing ones"
                );
            }
            note!("{words} sent again by the processes that have the endpoint configured");
        }
        WebhookCommand::Test { name, format } => test(config, name, *format).await?,
    }
    Ok(0)
}

async fn open(config: &Config) -> anyhow::Result<(Arc<dyn Ledger>, Arc<dyn Webhooks>)> {
    let ledger: Arc<dyn Ledger> = ledger::open(config).await?.into();
    ledger.check_schema().await?;
    let webhooks = Arc::clone(&ledger).webhooks()?;
    Ok((ledger, webhooks))
}

fn print(format: Option<Format>, found: &[StoredDelivery]) -> anyhow::Result<()> {
    let mut output = Output::new(Format::or_default(format), &COLUMNS)?;
    if found.is_empty() {
        note!("nothing is sent to webhooks");
    }
    for delivery in found {
        output.row(&row(delivery))?;
    }
    output.finish()?;
    Ok(())
}

fn row(delivery: &StoredDelivery) -> Map<String, Value> {
    let time = |at: Option<OffsetDateTime>| json!(at.map(whole_seconds));
    let state = delivery.state();
    fields([
        ("id", json!(delivery.id)),
        ("endpoint", json!(delivery.endpoint)),
        ("routing_key", json!(delivery.routing_key)),
        ("state", json!(state.as_str())),
        ("attempts", json!(delivery.attempts)),
        ("status", json!(delivery.last_status)),
        ("error", json!(delivery.last_error)),
        ("event_id", json!(delivery.event_id)),
        ("verdict_id", json!(delivery.verdict_id)),
        ("created_at", time(Some(delivery.created_at))),
        ("next_at", time((state == DeliveryState::Pending).then_some(delivery.due_at))),
        ("delivered_at", time(delivery.delivered_at)),
        ("given_up_at", time(delivery.given_up_at)),
    ])
}

async fn test(config: &Config, name: &str, format: Option<Format>) -> anyhow::Result<()> {
    let endpoint = Arc::new(find_endpoint(config, name)?);
    let event = test_event(&config.prefix, name);
    let (id, began) = (event.id.clone(), Instant::now());
    let sent = WebhookClient::default().post(&endpoint, event).await;
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match sent {
        Ok(status) => {
            let mut output = Output::new(Format::or_default(format), &["endpoint", "status", "ms", "event_id"])?;
            output.row(&fields([
                ("endpoint", json!(name)),
                ("status", json!(status)),
                ("ms", json!(ms)),
                ("event_id", json!(id)),
            ]))?;
            output.finish()?;
            Ok(())
        }
        Err(error) => bail!(
            "cannot send a test to the webhook \"{name}\" at {}: {error}, after {ms} ms{}",
            endpoint.address(),
            hint(&error)
        ),
    }
}

fn find_endpoint(config: &Config, name: &str) -> anyhow::Result<Endpoint> {
    let endpoints = endpoints(&config.webhooks)?;
    let known: Vec<_> = endpoints.iter().map(|endpoint| format!("\"{}\"", endpoint.name)).collect();
    let hint = if known.is_empty() {
        "no webhook is configured; add `[[webhooks]]` to the configuration file".to_owned()
    } else {
        format!("the webhooks are {}", known.join(", "))
    };
    let found = endpoints.into_iter().find(|endpoint| endpoint.name == name);
    Ok(found.ok_or_else(|| UsageError(format!("there is no webhook \"{name}\"\n  hint: {hint}")))?)
}

/// What to do about a failed request; empty where its error has a hint.
const fn hint(error: &SendError) -> &'static str {
    match error.status() {
        Some(300..=399) => "\n  hint: write the address that it redirects to into `url`",
        Some(401 | 403) => "\n  hint: check that the receiver has the same secret, and the right time",
        Some(404 | 405) => "\n  hint: check the path in `url`; the receiver must take POST there",
        Some(410) => "\n  hint: the receiver wants no more events; remove the entry from `webhooks`",
        Some(_) => "\n  hint: look into the receiver's log",
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    #[test]
    fn a_replay_needs_ids_or_a_condition_and_never_means_everything() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["pixwarden", "webhook", "replay"], words].concat()).is_ok();
        for words in [
            &["7", "8"][..],
            &["--failed"],
            &["--failed", "--endpoint", "a"],
            &["--since", "2026-11-25"],
            &["--failed", "--since", "2026-11-25", "--endpoint", "a"],
        ] {
            assert!(parse(words), "{words:?}");
        }
        for words in [&[][..], &["--endpoint", "a"], &["7", "--failed"], &["x"], &["--since", "yesterday"]] {
            assert!(!parse(words), "{words:?}");
        }
    }
}
