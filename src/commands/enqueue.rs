//! `pixwarden enqueue`: references → jobs, each confirmed by the broker.

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::BasicProperties;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::broker::{Message, Publisher, Topology, connect};
use crate::config::Config;
use crate::job::{ImageRef, Lane};

/// Messages whose confirmation is awaited at a time.
const IN_FLIGHT: usize = 256;

/// Options of `enqueue`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// `s3://bucket/key`, or `-` for one a line on stdin (also as {"source-ref": "s3://…"})
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    /// The lane the jobs travel in
    #[arg(long, value_enum, default_value = "live")]
    lane: Lane,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<u8> {
    let url = config.queue()?.clone();
    let topology = Topology::new(&config.prefix, config.events.default_queue);
    let connection = connect(&url, "enqueue").await?;
    topology.declare(&connection).await?;
    let send = Send {
        publisher: Arc::new(Publisher::new(url, "enqueue")),
        exchange: topology.jobs(),
        lane: arguments.lane,
    };

    let mut pending = FuturesUnordered::new();
    let mut sent = 0u64;
    if arguments.references == ["-"] {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let mut number = 0u64;
        while let Some(line) = lines.next_line().await.context("reading stdin")? {
            number += 1;
            if line.trim().is_empty() {
                continue;
            }
            let image = reference(&line).with_context(|| format!("line {number}, after {sent} jobs were published"))?;
            pending.push(send.job(image));
            if pending.len() >= IN_FLIGHT {
                sent += confirmed(pending.next().await)?;
            }
        }
    } else {
        for text in &arguments.references {
            pending.push(send.job(reference(text)?));
            if pending.len() >= IN_FLIGHT {
                sent += confirmed(pending.next().await)?;
            }
        }
    }
    while let Some(result) = pending.next().await {
        sent += confirmed(Some(result))?;
    }
    send.publisher.close().await;
    eprintln!("{sent} {} published to {}, lane {}", if sent == 1 { "job" } else { "jobs" }, send.exchange, send.lane);
    Ok(0)
}

fn confirmed(result: Option<anyhow::Result<()>>) -> anyhow::Result<u64> {
    result.transpose().map(|done| u64::from(done.is_some()))
}

/// Reads `s3://bucket/key` or a line of a Rekognition manifest.
fn reference(line: &str) -> anyhow::Result<ImageRef> {
    let uri = match serde_json::from_str(line) {
        Ok(Value::Object(object)) => match object.get("source-ref").and_then(Value::as_str) {
            Some(uri) => uri.to_owned(),
            None => bail!("a JSON line without \"source-ref\": {line}"),
        },
        _ => line.to_owned(),
    };
    ImageRef::from_uri(&uri).with_context(|| format!("\"{uri}\" is not s3://bucket/key"))
}

struct Send {
    publisher: Arc<Publisher>,
    exchange: String,
    lane: Lane,
}

impl Send {
    async fn job(&self, image: ImageRef) -> anyhow::Result<()> {
        let body = json!({"image": {"bucket": image.bucket, "key": image.key}}).to_string();
        let message = Message {
            exchange: &self.exchange,
            routing_key: self.lane.as_str(),
            payload: body.as_bytes(),
            properties: BasicProperties::default().with_content_type("application/json".into()),
        };
        self.publisher.publish(message).await.with_context(|| format!("publishing the job for {}", image.uri()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_in_both_forms() {
        assert_eq!(reference("s3://b/a b").unwrap().key, "a b");
        assert_eq!(reference(r#"{"source-ref": "s3://b/a%20b", "x": 1}"#).unwrap().key, "a%20b");
        assert!(reference(r#"{"source": "s3://b/k"}"#).unwrap_err().to_string().contains("source-ref"));
        assert!(reference("b/k").is_err());
    }
}
