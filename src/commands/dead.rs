//! `pixwarden dead`: looking at dead letters without taking them away.

use clap::{Args, Subcommand};
use lapin::options::BasicGetOptions;
use lapin::types::AMQPValue;
use serde_json::{Map, Value, json};

use super::output::{Format, Output};
use crate::broker::{ATTEMPT_HEADER, REASON_HEADER, Topology, answered, connect};
use crate::config::Config;

/// Characters of a body that are shown.
const SHOWN: usize = 400;

/// Options of `dead`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what lies among the dead letters; nothing is consumed
    List {
        /// Messages at the most; each is held back from others while this runs
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// How rows are printed
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let Command::List { limit, format } = arguments.command;
    let topology = Topology::new(&config.prefix, config.events.default_queue);
    let connection = connect(config.queue()?, "dead list").await?;
    topology.declare(&connection).await?;
    let channel = answered("opening a channel", connection.create_channel()).await?;

    let mut output = Output::new(Format::or_default(format), &["reason", "lane", "job_id", "message_id", "body"])?;
    let (mut shown, mut left) = (0, 0);
    while shown < limit {
        // Not acknowledged: closing the channel puts every message back where it was.
        let got = answered("getting a message", channel.basic_get(topology.dead().as_str().into(), BasicGetOptions::default()));
        let Some(message) = got.await? else { break };
        output.row(&row(&message.delivery))?;
        (shown, left) = (shown + 1, message.message_count);
    }
    output.finish()?;
    answered("closing", connection.close(200, "looked".into())).await?;
    if left > 0 {
        eprintln!("{left} more; raise --limit to see them");
    }
    Ok(0)
}

fn row(message: &lapin::message::Delivery) -> Map<String, Value> {
    let headers = message.properties.headers().clone().unwrap_or_default();
    let header = |name: &str| headers.inner().get(name).map_or(Value::Null, plain);
    let body = String::from_utf8_lossy(&message.data);
    let job_id = serde_json::from_str::<Value>(&body).ok().and_then(|body| body.get("id").cloned());
    let message_id = message.properties.message_id().as_ref().map(ToString::to_string);
    let mut row = Map::new();
    // A message that the broker itself gave up has no reason of ours.
    let by_broker = || header("x-first-death-reason");
    row.insert("reason".into(), match header(REASON_HEADER) { Value::Null => by_broker(), reason => reason });
    row.insert("lane".into(), json!(message.routing_key.as_str()));
    row.insert("attempts".into(), header(ATTEMPT_HEADER));
    row.insert("job_id".into(), job_id.unwrap_or(Value::Null));
    row.insert("message_id".into(), json!(message_id));
    row.insert("body".into(), json!(body.chars().take(SHOWN).collect::<String>()));
    row
}

fn plain(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::LongString(text) => json!(text.to_string()),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongUInt(n) => json!(n),
        AMQPValue::LongInt(n) => json!(n),
        AMQPValue::LongLongInt(n) => json!(n),
        other => json!(format!("{other:?}")),
    }
}
