//! `pixwarden check`: tries every dependency and prints how each check ended, with the cause of a failure.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::console::{counted, stdout};
use super::options::{ScreeningOptions, ServiceOptions};
use super::with_origin;
use crate::broker::{MAX_MESSAGE_BYTES, Topology, accepts_message_of, connect, depth};
use crate::config::{Config, Overlay};
use crate::error_text;
use crate::job::{Lane, Outcome};
use crate::ledger::{self, LedgerError};
use crate::objects::Fetcher;
use crate::screen::{self, Screen};
use crate::webhooks::WebhookClient;
use crate::webhooks::options::endpoints;

/// The routing key of an image that passes now and did not before.
const CLEARED: &str = "image.cleared";
/// An event that waits in the outbox for so long has no queue, or a full one. A try follows each two minutes at the latest.
const WAITED_TOO_LONG: Duration = Duration::from_mins(5);

#[derive(Debug, Args)]
pub struct CheckArguments {
    #[command(flatten)]
    services: ServiceOptions,
    #[command(flatten)]
    screening: ScreeningOptions,
    /// Do not test which message size the broker accepts
    ///
    /// The test publishes one large message. A broker that refuses it logs an error: use this option where check runs every
    /// few seconds.
    #[arg(long)]
    no_size_probe: bool,
}

impl CheckArguments {
    pub(super) fn overlay(&self, overlay: &mut Overlay) {
        self.services.set(overlay);
        self.screening.set(overlay);
    }
}

/// How the check of one dependency ended.
enum CheckResult {
    Ok(String),
    /// The dependency works, but a person should look at this.
    Warning(String),
    Failed(anyhow::Error),
}

impl From<anyhow::Result<CheckResult>> for CheckResult {
    fn from(checked: anyhow::Result<CheckResult>) -> Self {
        checked.unwrap_or_else(Self::Failed)
    }
}

pub(super) async fn run(arguments: &CheckArguments, config: &Config) -> anyhow::Result<u8> {
    let topology = Topology::new(&config.prefix, config.events.default_queue);
    let mut failed = false;
    let mut report = |dependency: &str, result: CheckResult| -> std::io::Result<()> {
        let (mark, words) = match result {
            CheckResult::Ok(words) => ("ok    ", words),
            CheckResult::Warning(words) => ("warn  ", words),
            CheckResult::Failed(error) => {
                failed = true;
                ("FAILED", error_text(with_origin(error, &config.origins).as_ref()))
            }
        };
        writeln!(stdout(), "{mark}  {dependency:<9}  {}", words.replace('\n', "\n                   "))
    };
    report("queue", queue(arguments, config, &topology).await.into())?;
    match events(config, &topology).await {
        Ok(results) => results.into_iter().try_for_each(|result| report("events", result))?,
        Err(e) => report("events", CheckResult::Failed(e))?,
    }
    report("ledger", ledger(config).await.into())?;
    for result in webhooks(config).await {
        report("webhooks", result)?;
    }
    for result in objects(config).await {
        report("objects", result)?;
    }
    match screen::start(config) {
        Ok((screen, _)) => {
            report("decoding", decoding(&screen))?;
            for words in screen.describe_detectors() {
                report("detector", CheckResult::Ok(words))?;
            }
        }
        Err(e) => report("detector", CheckResult::Failed(e.into()))?,
    }
    Ok(u8::from(failed))
}

async fn queue(arguments: &CheckArguments, config: &Config, topology: &Topology) -> anyhow::Result<CheckResult> {
    let url = config.queue()?;
    let connection = connect(url, "check").await?;
    let mut words = format!("connected to {url}");
    let mut declared = true;
    for lane in Lane::ALL {
        let queue = topology.lane(lane);
        words += &match depth(&connection, &queue).await? {
            Some((messages, consumers)) => format!("; {queue}: {}", depth_words(messages, consumers)),
            None => {
                declared = false;
                format!("; {queue} is not declared yet, the first worker declares it")
            }
        };
    }
    if declared {
        // Declaring again changes nothing, and fails where the user of a worker lacks a permission.
        topology.declare(&connection).await?;
    }
    if arguments.no_size_probe {
        return Ok(CheckResult::Ok(words));
    }
    let limit = format!("{} KiB", MAX_MESSAGE_BYTES >> 10);
    Ok(match accepts_message_of(&connection, MAX_MESSAGE_BYTES + 1).await {
        Ok(false) => CheckResult::Ok(format!("{words}; messages of more than {limit} are refused")),
        Ok(true) => CheckResult::Warning(format!(
            "{words}; messages of more than {limit} are accepted, and a worker holds up to two prefetches of messages\n  hint: set `max_message_size = {MAX_MESSAGE_BYTES}` in the broker's rabbitmq.conf, as deploy/rabbitmq/rabbitmq.conf does"
        )),
        Err(e) => CheckResult::Warning(format!("{words}; cannot find out how large a message may be: {e}")),
    })
}

fn depth_words(messages: u32, consumers: u32) -> String {
    format!(
        "{}, {}",
        counted(messages.into(), "message", "messages"),
        counted(consumers.into(), "consumer", "consumers")
    )
}

/// Checks whether events are consumed. Bindings are not visible over AMQP without publishing. So the default queues are
/// judged by their consumers, and the user's own queues by what has waited long in the outbox.
async fn events(config: &Config, topology: &Topology) -> anyhow::Result<Vec<CheckResult>> {
    let (mut results, consumed) = if config.events.default_queue {
        let connection = connect(config.queue()?, "check").await?;
        let (mut results, mut with_consumers) = (Vec::new(), Vec::new());
        for queue in [topology.flagged(), topology.unscreened(), topology.updates()] {
            let found = depth(&connection, &queue).await?;
            if found.is_some_and(|(_, consumers)| consumers > 0) {
                with_consumers.push(queue.clone());
            }
            results.push(events_in(&queue, found));
        }
        let is_consumed = |queue: &String| with_consumers.contains(queue);
        (results, ConsumedKeys { flagged: is_consumed(&topology.flagged()), cleared: is_consumed(&topology.updates()) })
    } else {
        let exchange = topology.events();
        let words = format!("events.default_queue is off; bind your queue to {exchange}");
        (vec![CheckResult::Ok(words)], consumed_in_own_queues(config).await)
    };
    results.extend(why_cleared_is_missed(config, topology, consumed).map(CheckResult::Warning));
    Ok(results)
}

/// Which events reach a consumer, as far as this can be seen.
#[derive(Debug, Clone, Copy)]
struct ConsumedKeys {
    flagged: bool,
    cleared: bool,
}

/// An event that no queue takes stays in the outbox. An outbox that cannot be read is reported with the ledger.
async fn consumed_in_own_queues(config: &Config) -> ConsumedKeys {
    let waiting = async { ledger::open(config).await?.count_unpublished().await.map_err(anyhow::Error::from) };
    let waiting = waiting.await.unwrap_or_default();
    let waits = |key: &str| waiting.iter().any(|events| events.routing_key == key && events.oldest >= WAITED_TOO_LONG);
    ConsumedKeys { flagged: !waits(Outcome::Flagged.routing_key()), cleared: !waits(CLEARED) }
}

/// Why a service that hides flagged images would never show one again that was cleared.
fn why_cleared_is_missed(config: &Config, topology: &Topology, consumed: ConsumedKeys) -> Option<String> {
    let (flagged, exchange) = (Outcome::Flagged.routing_key(), topology.events());
    let is_published = |key: &str| config.events.publish.iter().any(|published| published == key);
    if !is_published(flagged) {
        return None;
    }
    let (cause, hint) = if !is_published(CLEARED) {
        let cause = format!("{flagged} is published and {CLEARED} is not");
        (cause, format!("add \"{CLEARED}\" to `events.publish`, and bind the queue of that service to it"))
    } else if !consumed.flagged || consumed.cleared {
        return None;
    } else if config.events.default_queue {
        let updates = topology.updates();
        let cause = format!("{} is consumed and {updates} is not", topology.flagged());
        (cause, format!("consume {updates} too, or bind the queue of that service to {CLEARED} at {exchange}"))
    } else {
        let cause =
            format!("no queue takes the events of {CLEARED}, which wait in the outbox, and one takes {flagged}");
        (cause, format!("bind the queue of that service to {CLEARED} at {exchange}"))
    };
    Some(format!(
        "{cause}: a service that hides flagged images would never show one again that was cleared\n  hint: {hint}"
    ))
}

/// The state of one queue of events: its messages and consumers, where it is declared.
fn events_in(queue: &str, depth: Option<(u32, u32)>) -> CheckResult {
    match depth {
        Some((0, 0)) => CheckResult::Ok(format!("{queue}: no consumer yet")),
        Some((messages, 0)) => CheckResult::Warning(format!(
            "{queue}: {} and no consumer\n  hint: consume the queue, or bind another one and set `events.default_queue = false`",
            counted(messages.into(), "message", "messages")
        )),
        Some((messages, consumers)) => CheckResult::Ok(format!("{queue}: {}", depth_words(messages, consumers))),
        None => CheckResult::Ok(format!("{queue} is not declared yet, the first worker declares it")),
    }
}

async fn ledger(config: &Config) -> anyhow::Result<CheckResult> {
    let ledger = ledger::open(config).await?;
    ledger.check_schema().await?;
    ledger.ping().await?;
    let missing = ledger.missing_privileges().await?;
    if !missing.is_empty() {
        anyhow::bail!(
            "{}: a worker needs more permissions: {}\n  hint: deploy/postgres/roles.sql grants them; run it again after each `pixwarden migrate`",
            config.ledger,
            missing.join(", ")
        );
    }
    let scope = if config.ledger.url.file().is_some() { "; a file serves one worker" } else { "" };
    Ok(CheckResult::Ok(format!("connected to {}, the schema is up to date{scope}", config.ledger)))
}

/// Whether the host of each webhook responds. No event is sent.
async fn webhooks(config: &Config) -> Vec<CheckResult> {
    let endpoints = match endpoints(&config.webhooks) {
        Ok(endpoints) => endpoints,
        Err(e) => return vec![CheckResult::Failed(e.into())],
    };
    let mut results = Vec::new();
    if !endpoints.is_empty() && config.ledger.url.file().is_some() {
        results.push(CheckResult::Failed(LedgerError::WebhooksNeedPostgres.into()));
    }
    let client = WebhookClient::default();
    for endpoint in endpoints {
        let (name, address) = (endpoint.name.clone(), endpoint.address());
        let is_readable = endpoint.is_readable_on_the_way();
        results.push(match client.probe(&Arc::new(endpoint)).await {
            Ok(_) if is_readable => CheckResult::Warning(format!(
                "{name}: {address} responds, and events to it are not encrypted\n  hint: use https://"
            )),
            Ok(_) => CheckResult::Ok(format!("{name}: {address} responds")),
            Err(e) => CheckResult::Failed(anyhow::anyhow!("{name}: cannot reach {address}: {e}")),
        });
    }
    results
}

async fn objects(config: &Config) -> Vec<CheckResult> {
    let fetcher = match Fetcher::open(config).await {
        Ok(fetcher) => fetcher,
        Err(e) => return vec![CheckResult::Failed(e.into())],
    };
    let mut results = Vec::new();
    for bucket in fetcher.named_buckets() {
        let checked = fetcher.probe(&bucket).await.map_err(anyhow::Error::from);
        results.push(checked.map(|()| CheckResult::Ok(format!("bucket \"{bucket}\" is accessible"))).into());
    }
    if let Some(kept) = config.http.kept_at("0") {
        let checked = fetcher.probe_kept(&kept.bucket).await.context("`http.keep`");
        let words = format!("bucket \"{}\" of `http.keep` is accessible", kept.bucket);
        results.push(checked.map(|()| CheckResult::Ok(words)).into());
    }
    results
}

/// Decoder processes that this kernel cannot confine fully are worth a warning.
fn decoding(screen: &Screen) -> CheckResult {
    match screen.decoders().confinement() {
        Some(layers) if !layers.missing.is_empty() => CheckResult::Warning(screen.describe_decoding()),
        Some(_) | None => CheckResult::Ok(screen.describe_decoding()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::event::ROUTING_KEYS;

    #[test]
    fn the_routing_key_of_a_cleared_image_is_one_that_is_published() {
        assert!(ROUTING_KEYS.contains(&CLEARED));
    }

    #[test]
    fn only_waiting_events_without_a_consumer_are_worth_a_warning() {
        assert!(matches!(events_in("q", Some((0, 0))), CheckResult::Ok(words) if words == "q: no consumer yet"));
        assert!(matches!(events_in("q", Some((1, 2))), CheckResult::Ok(words) if words == "q: 1 message, 2 consumers"));
        let warned = events_in("q", Some((1, 0)));
        assert!(matches!(warned, CheckResult::Warning(words) if words.starts_with("q: 1 message and no consumer")));
    }
}
