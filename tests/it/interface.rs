//! What others integrate against is what the program reads and writes: every example of a job is understood, and every
//! event it publishes is as its schema says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lapin::BasicProperties;
use pixwarden::job::forms::{MessageProperties, Reading, read};
use pixwarden::job::{Identity, Lane};
use serde_json::{Value, json};

use crate::support::{Ended, Lab, judged_fixtures, service};

fn docs(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(below)
}

/// What an example of a job asks for, in one line.
fn asks_for(body: &[u8]) -> String {
    let properties = MessageProperties { message_id: Some("message-7"), ..MessageProperties::default() };
    match read(body, properties).unwrap() {
        Reading::Job(job) => {
            let id = match job.identity {
                Identity::Given(id) => id,
                Identity::Derived { sequencer } => {
                    format!("derived, sequencer {}", sequencer.as_deref().unwrap_or("-"))
                }
            };
            let state = job.image.version_id.clone().or(job.image.etag.clone()).unwrap_or_else(|| "-".into());
            let (detectors, metadata) = (job.detectors.unwrap_or_default(), job.metadata.unwrap_or(Value::Null));
            format!("{} at {state}; id {id}; {detectors:?}; {metadata}", job.image.uri())
        }
        Reading::Several(bodies) => {
            let each: Vec<_> = bodies.iter().map(|body| asks_for(body.as_bytes())).collect();
            format!("several: {}", each.join(" | "))
        }
        Reading::Removed(removal) => {
            format!("removed: s3://{}/{} at {}", removal.bucket, removal.key, removal.at)
        }
        Reading::Nothing(why) => format!("nothing: {why}"),
    }
}

#[test]
fn every_example_of_a_job_is_understood() {
    let mut lines: Vec<String> = std::fs::read_dir(docs("examples/jobs"))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            format!("{name}: {}", asks_for(&std::fs::read(&path).unwrap()))
        })
        .collect();
    lines.sort();
    insta::assert_snapshot!(lines.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_and_reply_is_as_its_schema_says() {
    let mut lab = Lab::new().await;
    let listener = lab.listen().await;
    lab.extra = "max_object_bytes = 2000000\n[worker]\nattempts = 1\n\
                 [events]\npublish = [\"image.flagged\", \"image.review\", \"image.failed\", \"image.passed\"]"
        .into();
    let fixtures = judged_fixtures();
    for outcome in ["passed", "review", "flagged", "undecodable"] {
        let fixture = fixtures.iter().find(|fixture| fixture.outcome == outcome).unwrap();
        lab.put(outcome, fixture.bytes.clone()).await;
    }
    // The proxy cuts this one's answers off.
    let large = fixtures.iter().find(|fixture| fixture.bytes.len() > 20_000).unwrap();
    lab.put("cut-off", large.bytes.clone()).await;
    lab.put("too-large", vec![0; 2_000_001]).await;
    lab.endpoint = crate::proxy::start(&lab.endpoint).await;
    let mut worker = lab.started_worker().await;
    let replies = format!("replies-{}", lab.prefix);
    let options = lapin::options::QueueDeclareOptions::default();
    lab.channel.queue_declare(replies.as_str().into(), options, lapin::types::FieldTable::default()).await.unwrap();

    let keys = ["passed", "review", "flagged", "undecodable", "cut-off", "too-large", "not-there"];
    for key in keys {
        let mut headers = lapin::types::FieldTable::default();
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert("traceparent".into(), pixwarden::broker::text(trace));
        let mut properties = BasicProperties::default().with_reply_to(replies.as_str().into());
        if key == "flagged" {
            properties = properties.with_headers(headers);
        }
        let job = json!({"id": key, "image": format!("s3://{}/{key}", lab.bucket), "metadata": {"user": 7}});
        lab.publish(Lane::Live, job.to_string(), properties).await;
    }
    lab.until("SELECT count(*) FROM verdicts", i64::try_from(keys.len()).unwrap(), &worker).await;
    lab.until_settled(&worker).await;
    lab.until_published(&worker).await;
    assert!(worker.terminate().await.success());
    let (events, replies) = (lab.drain(&listener).await, lab.drain(&replies).await);
    assert_eq!((events.len(), replies.len()), (keys.len(), keys.len()));
    let outcomes: BTreeSet<String> =
        events.iter().map(|(event, _)| event["data"]["outcome"].as_str().unwrap().to_owned()).collect();
    assert_eq!(outcomes.len(), 7, "one of each outcome: {outcomes:?}");
    assert!(events.iter().any(|(event, _)| event["traceparent"].is_string()));
    let mut files = Vec::new();
    for (number, (event, _)) in events.iter().chain(&replies).enumerate() {
        described(event);
        let file = lab.folder.path().join(format!("event-{number}.json"));
        std::fs::write(&file, event.to_string()).unwrap();
        files.push(file);
    }
    valid(&files).await.expect_ok();

    // And the schema can tell: it knows one outcome's event from another's.
    let mut wrong = events[0].0.clone();
    wrong["data"]["outcome"] = json!("perhaps");
    std::fs::write(&files[0], wrong.to_string()).unwrap();
    assert_ne!(valid(&files[..1]).await.status, 0);
}

/// The schema lets consumers meet fields of later releases; this release has none that it leaves out.
fn described(event: &Value) {
    let schema: Value = serde_json::from_slice(&std::fs::read(docs("schemas/event.schema.json")).unwrap()).unwrap();
    let verdict = &schema["$defs"]["verdict"]["properties"];
    for (known, found) in [
        (&schema["properties"], event),
        (verdict, &event["data"]),
        (&verdict["image"]["properties"], &event["data"]["image"]),
    ] {
        for field in found.as_object().unwrap().keys() {
            assert!(known.get(field).is_some(), "{field} is not in the schema");
        }
    }
}

async fn valid(files: &[PathBuf]) -> Ended {
    let mut command = tokio::process::Command::new(service("TEST_PYTHON"));
    command.args(["-m", "check_jsonschema", "--schemafile"]).arg(docs("schemas/event.schema.json")).args(files);
    Ended::of(command).await
}
