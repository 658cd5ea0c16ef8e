//! `pixwarden enqueue`: publishes a job for each reference. The broker confirms each.

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::console::note;
use super::options::QueueOption;
use crate::broker::{Message, Publisher, Topology, connect};
use crate::config::Config;
use crate::job::{ImageRef, Lane};

/// Unconfirmed messages at the same time.
const MAX_UNCONFIRMED: usize = 64;

#[derive(Debug, Args)]
pub struct EnqueueArguments {
    /// `s3://bucket/key`, or `-` to read one per line from stdin (also as {"source-ref": "s3://…"})
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    /// The lane of the jobs
    #[arg(long, value_enum, default_value = "live")]
    lane: Lane,
    #[command(flatten)]
    pub(super) queue: QueueOption,
}

pub(super) async fn run(arguments: &EnqueueArguments, config: &Config) -> anyhow::Result<u8> {
    let url = config.queue()?.clone();
    let topology = Topology::new(&config.prefix, config.events.default_queue);
    let connection = connect(&url, "enqueue").await?;
    topology.ensure(&connection, &topology.lane(arguments.lane)).await?;
    let jobs = JobPublisher {
        publisher: Arc::new(Publisher::new(url, "enqueue", MAX_UNCONFIRMED)),
        exchange: topology.jobs(),
        lane: arguments.lane,
    };

    let references: BoxStream<'_, anyhow::Result<ImageRef>> = if arguments.references == ["-"] {
        from_stdin().boxed()
    } else {
        stream::iter(&arguments.references).map(|text| reference(text)).boxed()
    };
    // A job is published as soon as its line is read, so that a slow pipe is not delayed.
    let mut publishing = references.map(|image| async { jobs.publish(image?).await }).buffer_unordered(MAX_UNCONFIRMED);
    let mut sent = 0u64;
    while let Some(done) = publishing.next().await {
        done.with_context(|| format!("stopped after {sent} published jobs"))?;
        sent += 1;
    }
    drop(publishing);
    jobs.publisher.close().await;
    note!("{sent} {} published to {}, lane {}", if sent == 1 { "job" } else { "jobs" }, jobs.exchange, jobs.lane);
    Ok(0)
}

/// One reference per line. Empty lines are skipped.
fn from_stdin() -> impl Stream<Item = anyhow::Result<ImageRef>> {
    let lines = BufReader::new(tokio::io::stdin()).lines();
    stream::unfold((lines, 1u64), |(mut lines, number)| async move {
        let line = lines.next_line().await.context("cannot read stdin").transpose()?;
        Some(((number, line), (lines, number + 1)))
    })
    .filter_map(|(number, line)| async move {
        match line {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some(reference(&line).with_context(|| format!("line {number}"))),
            Err(e) => Some(Err(e)),
        }
    })
}

/// Parses `s3://bucket/key` or a line of a Rekognition manifest.
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

struct JobPublisher {
    publisher: Arc<Publisher>,
    exchange: String,
    lane: Lane,
}

impl JobPublisher {
    async fn publish(&self, image: ImageRef) -> anyhow::Result<()> {
        let body = json!({"image": {"bucket": image.bucket, "key": image.key}}).to_string();
        let message = Message::json(&self.exchange, self.lane.as_str(), &body);
        self.publisher.publish(message).await.with_context(|| format!("cannot publish the job for {}", image.uri()))
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
