//! `pixwarden dead`: looking at dead letters without taking them away.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::output::{Format, Output};
use crate::broker::{ATTEMPT_HEADER, JOB_ID_HEADER, REASON_HEADER, Topology, answered, connect, header, peek};
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
    let (messages, left) = peek(&connection, &topology.dead(), limit).await?;
    let mut output = Output::new(Format::or_default(format), &["reason", "lane", "job_id", "message_id", "body"])?;
    for message in &messages {
        output.row(&row(message))?;
    }
    output.finish()?;
    answered("closing", connection.close(200, "looked".into())).await?;
    if left > 0 {
        eprintln!("{left} more; raise --limit to see them");
    }
    Ok(0)
}

fn row(message: &lapin::message::Delivery) -> Map<String, Value> {
    let own = |name: &str| header(&message.properties, name);
    let body = String::from_utf8_lossy(&message.data);
    let in_body = || serde_json::from_str::<Value>(&body).ok()?.get("id")?.as_str().map(str::to_owned);
    let message_id = message.properties.message_id().as_ref().map(ToString::to_string);
    let fields = [
        // A message that the broker itself gave up has no reason of ours.
        ("reason", json!(own(REASON_HEADER).or_else(|| own("x-first-death-reason")))),
        ("lane", json!(message.routing_key.as_str())),
        ("attempts", json!(own(ATTEMPT_HEADER))),
        ("job_id", json!(own(JOB_ID_HEADER).or_else(in_body))),
        ("message_id", json!(message_id)),
        ("body", json!(body.chars().take(SHOWN).collect::<String>())),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
