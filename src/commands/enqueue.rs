//! `pixwarden enqueue`: publishes a job for each reference. The broker confirms each.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::UsageError;
use super::age::Age;
use super::console::{counted, note};
use super::options::QueueOption;
use super::output::{Format, Output, printable};
use crate::broker::{Message, Publisher, ReplyChannel, Topology, connect};
use crate::config::Config;
use crate::error_text;
use crate::job::forms::{MessageProperties, Reading, read};
use crate::job::{ImageRef, Lane};

/// Unconfirmed messages at the same time.
const MAX_UNCONFIRMED: usize = 64;

const VERDICT_COLUMNS: [&str; 5] = ["subject", "outcome", "label", "score", "reason"];

#[derive(Debug, Args)]
#[command(
    after_help = "With --wait the exit status is 0 when every job has a verdict, whatever its outcome, and 1 when a verdict \
did not arrive in time. The jobs of such a run stay published."
)]
pub struct EnqueueArguments {
    /// `s3://bucket/key`, or `-` to read one per line from stdin (also as {"source-ref": "s3://…"}, or a whole job as
    /// {"image": …})
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    /// The lane of the jobs
    #[arg(long, value_enum, default_value = "live")]
    lane: Lane,
    /// Id of the job; the same id never gets a second verdict. Only for a single reference
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// A JSON object that is copied to verdict and event
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    metadata: Option<Value>,
    /// Detectors to screen with, as a list of names; one that the policy has a rule for may not be left out [default: all
    /// that the workers have]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    detectors: Vec<String>,
    /// Print the verdict of each job, in the order in which they arrive
    #[arg(long)]
    wait: bool,
    /// Longest wait for verdicts after the last job was published: 90s, 15m or 2h
    #[arg(long, value_name = "DURATION", default_value = "60s", requires = "wait")]
    timeout: Age,
    /// Output format of the verdicts
    #[arg(long, value_enum, requires = "wait")]
    format: Option<Format>,
    #[command(flatten)]
    pub(super) queue: QueueOption,
}

fn json_object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("it must be a JSON object, such as {\"user\": 7}".into()),
        Err(e) => Err(format!("it must be a JSON object: {e}")),
    }
}

pub(super) async fn run(arguments: &EnqueueArguments, config: &Config) -> anyhow::Result<u8> {
    if arguments.id.is_some() && (arguments.references.len() > 1 || arguments.references == ["-"]) {
        return Err(
            UsageError("--id needs exactly one s3://bucket/key, because two jobs cannot have one id".into()).into()
        );
    }
    let is_stdin = arguments.references == ["-"];
    // A mistake in the arguments is found before anything is published.
    let named: Vec<anyhow::Result<JobBody>> = if is_stdin {
        Vec::new()
    } else {
        arguments.references.iter().map(|text| arguments.job(text)).map(|job| job.map(Ok)).collect::<Result<_, _>>()?
    };
    let url = config.queue()?.clone();
    let topology = Topology::new(&config.prefix, config.events.default_queue);
    let connection = connect(&url, "enqueue").await?;
    topology.ensure(&connection, &topology.lane(arguments.lane)).await?;

    let jobs: BoxStream<'_, anyhow::Result<JobBody>> =
        if is_stdin { from_stdin(arguments).boxed() } else { stream::iter(named).boxed() };
    let target = Target { exchange: topology.jobs(), lane: arguments.lane };
    if arguments.wait {
        return WaitingRun::new(ReplyChannel::open(&connection).await?, target).run(jobs, arguments).await;
    }
    let publisher = Arc::new(Publisher::new(url, "enqueue", MAX_UNCONFIRMED));
    // A job is published as soon as its line is read, so that a slow pipe is not delayed.
    let publish = async |job: anyhow::Result<JobBody>| {
        let job = job?;
        publisher.publish(target.message(&job)).await.with_context(|| job.cannot_publish())
    };
    let stop = CancellationToken::new();
    let jobs = until_first_error(jobs).take_until(Box::pin(stop.cancelled()));
    let mut publishing = jobs.map(publish).buffer_unordered(MAX_UNCONFIRMED);
    let (mut sent, mut failure) = (0u64, None);
    // After an error nothing more is read. What is in flight is waited for, so that the number is right.
    while let Some(done) = publishing.next().await {
        match done {
            Ok(()) => sent += 1,
            Err(e) => {
                stop.cancel();
                failure.get_or_insert(e);
            }
        }
    }
    drop(publishing);
    publisher.close().await;
    if let Some(error) = failure {
        return Err(after(sent, error));
    }
    target.note_sent(sent);
    Ok(0)
}

/// The jobs up to the first that is wrong, with its error.
fn until_first_error<'a>(
    jobs: impl Stream<Item = anyhow::Result<JobBody>> + 'a,
) -> impl Stream<Item = anyhow::Result<JobBody>> + 'a {
    jobs.scan(false, |is_over, job| {
        let item = (!*is_over).then_some(job);
        *is_over |= matches!(item, Some(Err(_)));
        std::future::ready(item)
    })
}

/// An error with what was published before it.
fn after(sent: u64, error: anyhow::Error) -> anyhow::Error {
    match sent {
        0 => error,
        1 => error.context("1 job was published before this error"),
        _ => error.context(format!("{sent} jobs were published before this error")),
    }
}

/// Where jobs go.
struct Target {
    exchange: String,
    lane: Lane,
}

impl Target {
    fn message<'a>(&'a self, job: &'a JobBody) -> Message<'a> {
        Message::json(&self.exchange, self.lane.as_str(), &job.body)
    }

    fn note_sent(&self, sent: u64) {
        note!("{} published to {}, lane {}", counted(sent, "job", "jobs"), self.exchange, self.lane);
    }
}

/// One job per line. Empty lines are skipped.
fn from_stdin(arguments: &EnqueueArguments) -> impl Stream<Item = anyhow::Result<JobBody>> {
    let lines = BufReader::new(tokio::io::stdin()).lines();
    stream::unfold((lines, 1u64), |(mut lines, number)| async move {
        let line = lines.next_line().await.context("cannot read stdin").transpose()?;
        Some(((number, line), (lines, number + 1)))
    })
    .filter_map(move |(number, line)| async move {
        match line {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some(arguments.job(&line).map_err(|e| wrong_line(number, &e))),
            Err(e) => Some(Err(e)),
        }
    })
}

fn wrong_line(number: u64, error: &anyhow::Error) -> anyhow::Error {
    let error = error_text(error.as_ref());
    UsageError(format!("line {number}: {error}\n  hint: correct the line, and enqueue from it on")).into()
}

/// A job that a worker will understand.
#[derive(Debug)]
struct JobBody {
    /// The image, for messages.
    image: String,
    body: String,
}

impl JobBody {
    fn cannot_publish(&self) -> String {
        format!("cannot publish the job for {}", self.image)
    }
}

impl EnqueueArguments {
    /// The job of one reference or line. Options fill in what a line does not say itself.
    fn job(&self, line: &str) -> anyhow::Result<JobBody> {
        let mut job = match serde_json::from_str(line) {
            Ok(Value::Object(job)) if job.contains_key("image") => job,
            Ok(Value::Object(manifest)) => match manifest.get("source-ref").and_then(Value::as_str) {
                Some(uri) => by_reference(uri)?,
                None => {
                    let what = format!("a JSON line with neither \"source-ref\" nor \"image\": {line}");
                    return Err(UsageError(what).into());
                }
            },
            _ => by_reference(line)?,
        };
        let mut fill = |field: &str, value: Option<Value>| {
            if let Some(value) = value
                && job.get(field).is_none_or(Value::is_null)
            {
                job.insert(field.to_owned(), value);
            }
        };
        fill("id", self.id.as_deref().map(Value::from));
        fill("metadata", self.metadata.clone());
        fill("detectors", (!self.detectors.is_empty()).then(|| json!(self.detectors)));
        let body = Value::Object(job).to_string();
        match read(body.as_bytes(), MessageProperties::default()) {
            Ok(Reading::Job(job)) => Ok(JobBody { image: job.image.uri(), body }),
            Ok(_) => Err(UsageError(format!("not a single job: {line}")).into()),
            Err(e) => Err(UsageError(format!("a worker would refuse the job: {e}")).into()),
        }
    }
}

/// Form 1 of a job. The key is used as it is.
fn by_reference(uri: &str) -> Result<Map<String, Value>, UsageError> {
    let image = ImageRef::from_uri(uri).ok_or_else(|| UsageError(format!("\"{uri}\" is not s3://bucket/key")))?;
    Ok(Map::from_iter([("image".to_owned(), json!({"bucket": image.bucket, "key": image.key}))]))
}

/// Publishes jobs and prints their verdicts.
struct WaitingRun {
    replies: ReplyChannel,
    target: Target,
    /// Images whose verdict has not arrived, by the correlation id of their job.
    waiting: BTreeMap<String, String>,
    /// Replies that are no verdict.
    errors: u64,
}

impl WaitingRun {
    fn new(replies: ReplyChannel, target: Target) -> Self {
        Self { replies, target, waiting: BTreeMap::new(), errors: 0 }
    }

    async fn run(
        mut self,
        mut jobs: BoxStream<'_, anyhow::Result<JobBody>>,
        arguments: &EnqueueArguments,
    ) -> anyhow::Result<u8> {
        let mut sent = 0u64;
        while let Some(job) = jobs.next().await {
            let job = job.map_err(|e| after(sent, e))?;
            let id = sent.to_string();
            let published = self.replies.publish(self.target.message(&job), &id).await;
            published.with_context(|| job.cannot_publish()).map_err(|e| after(sent, e))?;
            self.waiting.insert(id, job.image);
            sent += 1;
        }
        self.target.note_sent(sent);
        let mut output = Output::new(Format::or_default(arguments.format), &VERDICT_COLUMNS)?;
        let deadline = Instant::now() + arguments.timeout.0;
        while !self.waiting.is_empty() {
            let Ok(reply) = tokio::time::timeout_at(deadline, self.replies.next()).await else { break };
            let reply = reply?;
            // A worker that crashed after its reply replies again.
            if let Some(image) = self.waiting.remove(&reply.correlation_id) {
                self.print(&image, &reply.body, &mut output)?;
            }
        }
        output.finish()?;
        if let Some(image) = self.waiting.values().next() {
            bail!(
                "{} of {sent} jobs have no verdict after {} s, such as {image}\n  hint: `pixwarden check` prints how many jobs wait and how many workers consume; raise --timeout",
                self.waiting.len(),
                arguments.timeout.0.as_secs()
            );
        }
        Ok(u8::from(self.errors > 0))
    }

    fn print(&mut self, image: &str, body: &[u8], output: &mut Output) -> anyhow::Result<()> {
        let event: Value = serde_json::from_slice(body).context("a reply is not JSON")?;
        match event.get("data").and_then(Value::as_object).filter(|data| data.contains_key("outcome")) {
            Some(data) => {
                let mut row = data.clone();
                row.insert("subject".into(), event["subject"].clone());
                output.row(&row)?;
            }
            None => {
                self.errors += 1;
                let message = event["error"]["message"].as_str().map_or_else(|| event.to_string(), printable);
                note!("error: {image} has no verdict: {message}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: EnqueueArguments,
    }

    fn arguments(line: &[&str]) -> EnqueueArguments {
        Line::try_parse_from([&["enqueue", "-"], line].concat()).unwrap().arguments
    }

    #[test]
    fn references_are_read_in_every_form() {
        let plain = arguments(&[]);
        let image = |line: &str| plain.job(line).map(|job| job.image);
        assert_eq!(image("s3://b/a b").unwrap(), "s3://b/a b");
        assert_eq!(image(r#"{"source-ref": "s3://b/a%20b", "x": 1}"#).unwrap(), "s3://b/a%20b");
        assert_eq!(image(r#"{"image": "s3://b/k", "id": "7"}"#).unwrap(), "s3://b/k");
        assert!(image(r#"{"source": "s3://b/k"}"#).unwrap_err().to_string().contains("source-ref"));
        assert!(image("b/k").is_err());
        assert!(image(r#"{"image": 7}"#).unwrap_err().to_string().contains("`image` is neither"));
    }

    #[test]
    fn nothing_is_read_after_a_wrong_line_and_the_error_says_what_was_published() {
        use futures_util::FutureExt;
        let plain = arguments(&[]);
        let lines = ["s3://b/k", "foo", "s3://b/l"].map(|line| plain.job(line).map_err(|e| wrong_line(2, &e)));
        let read: Vec<_> = until_first_error(stream::iter(lines)).collect().now_or_never().unwrap();
        assert_eq!(read.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
        let error = after(1, read.into_iter().nth(1).unwrap().unwrap_err());
        assert_eq!(
            error_text(error.as_ref()),
            "1 job was published before this error: line 2: \"foo\" is not s3://bucket/key\n  hint: correct the line, and \
             enqueue from it on"
        );
        assert_eq!(super::super::status(&error), 2);
        assert_eq!(super::super::status(&plain.job("foo").unwrap_err()), 2);
    }

    #[test]
    fn options_fill_in_what_a_line_does_not_say() {
        let given = arguments(&["--metadata", r#"{"user": 7}"#, "--detectors", "a,b"]);
        let body = |line: &str| serde_json::from_str::<Value>(&given.job(line).unwrap().body).unwrap();
        let image = json!({"bucket": "b", "key": "k"});
        assert_eq!(body("s3://b/k"), json!({"image": image, "metadata": {"user": 7}, "detectors": ["a", "b"]}));
        let own = body(r#"{"image": "s3://b/k", "metadata": {"user": 8}, "detectors": null}"#);
        assert_eq!(own, json!({"image": "s3://b/k", "metadata": {"user": 8}, "detectors": ["a", "b"]}));
        assert!(Line::try_parse_from(["enqueue", "s3://b/k", "--metadata", "7"]).is_err());
        assert!(Line::try_parse_from(["enqueue", "s3://b/k", "--timeout", "5s"]).is_err(), "it needs --wait");
    }
}
