//! Two thousand jobs in all forms, over both lanes, over good, damaged, missing, oversized and forbidden objects, with
//! malformed messages between them: each ends as the reference says, once, with its event.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::StreamExt;
use lapin::BasicProperties;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pixwarden::job::Lane;
use serde_json::{Value, json};

use crate::support::{Lab, Worker, figure, judged_fixtures, reason};

const JOBS: usize = 2_000;
const MALFORMED: usize = 40;

/// What was published, and what has to come of it.
struct Plan {
    /// The jobs' ids where the sender names them, else the key.
    expected: HashMap<String, &'static str>,
    messages: Vec<(Lane, Vec<u8>, BasicProperties)>,
}

/// Keys as people really name files.
fn key(i: usize) -> String {
    format!("2026/{i}/a b+c %20 50%/ä é 漢/{i}.jpg")
}

async fn plan(lab: &Lab) -> Plan {
    let fixtures = judged_fixtures();
    // Every good image, and of the bad ones so few that each outcome has at least a tenth.
    let (bad, good): (Vec<_>, Vec<_>) = fixtures.into_iter().partition(|fixture| fixture.outcome == "undecodable");
    let fixtures: Vec<_> = good.into_iter().chain(bad.into_iter().step_by(4)).collect();

    let mut plan = Plan { expected: HashMap::new(), messages: Vec::new() };
    let mut uploads = Vec::new();
    for i in 0..JOBS {
        let (key, id) = (key(i), format!("job-{i}"));
        let uri = format!("s3://{}/{key}", lab.bucket);
        let lane = if i % 3 == 0 { Lane::Live } else { Lane::Backfill };
        let plain = |uri: &str| json!({"image": uri, "id": id, "metadata": {"n": i}}).to_string().into_bytes();
        let properties = BasicProperties::default();
        let (identity, outcome, message) = match i % 40 {
            0 => (id.clone(), "missing", (plain(&format!("s3://{}/not/there/{i}", lab.bucket)), properties)),
            1 => (id.clone(), "rejected", (plain("s3://somebody-else/a.jpg"), properties)),
            2 => (id.clone(), "rejected", (plain(&format!("s3://{}/too-large", lab.bucket)), properties)),
            3 => {
                let body = json!({"image": uri, "id": id, "detectors": ["no-such-detector"]}).to_string().into_bytes();
                (id.clone(), "rejected", (body, properties))
            }
            _ => {
                let fixture = &fixtures[i % fixtures.len()];
                uploads.push((key.clone(), fixture.bytes.clone()));
                let outcome: &'static str = match fixture.outcome.as_str() {
                    "passed" => "passed",
                    "review" => "review",
                    "flagged" => "flagged",
                    _ => "undecodable",
                };
                let (identity, body, properties) = form(i, &lab.bucket, &key, &id);
                (identity, outcome, (body, properties))
            }
        };
        plan.expected.insert(identity, outcome);
        plan.messages.push((lane, message.0, message.1));
        if i % (JOBS / MALFORMED) == 0 {
            let body =
                [&b"not a job"[..], b"{\"image\": 7}", b"\xff\xfe", b"{\"Records\": 1}"][i / (JOBS / MALFORMED) % 4];
            plan.messages.push((lane, body.to_vec(), BasicProperties::default()));
        }
    }
    uploads.push(("too-large".into(), vec![0; 9 << 20]));
    futures_util::stream::iter(uploads)
        .map(|(key, bytes)| async move { lab.put(&key, bytes).await })
        .buffer_unordered(16)
        .collect::<Vec<_>>()
        .await;
    plan
}

/// The job in one of its forms: by what its verdict is found, its body and its properties.
fn form(i: usize, bucket: &str, key: &str, id: &str) -> (String, Vec<u8>, BasicProperties) {
    let encoded = utf8_percent_encode(key, NON_ALPHANUMERIC).to_string().replace("%20", "+");
    let record = json!({"eventVersion": "2.1", "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": {"key": encoded, "size": 1, "sequencer": format!("{i:016X}")}}});
    let uri = format!("s3://{bucket}/{key}");
    let none = BasicProperties::default();
    let with_id = || BasicProperties::default().with_message_id(id.into());
    let by_key = |body: Value| (key.to_owned(), body.to_string().into_bytes(), BasicProperties::default());
    match i % 9 {
        0 => (id.into(), json!({"image": uri, "id": id, "metadata": {"n": i}}).to_string().into_bytes(), none),
        1 => (id.into(), json!({"image": {"bucket": bucket, "key": key}}).to_string().into_bytes(), with_id()),
        2 => (id.into(), uri.into_bytes(), with_id()),
        3 => by_key(json!(uri)),
        4 => by_key(json!({"Records": [record]})),
        5 => {
            by_key(json!({"EventName": "s3:ObjectCreated:Put", "Key": format!("{bucket}/{key}"), "Records": [record]}))
        }
        6 => by_key(
            json!({"Type": "Notification", "TopicArn": "arn:aws:sns:x", "Message": json!({"Records": [record]}).to_string()}),
        ),
        7 => by_key(json!({"detail-type": "Object Created", "source": "aws.s3", "id": "x",
            "detail": {"bucket": {"name": bucket}, "object": {"key": key, "sequencer": "1"}}})),
        _ => {
            let event = json!({"specversion": "1.0", "type": "com.example.upload", "source": "/t", "id": "1",
                "data": {"image": uri, "id": id}});
            (id.into(), event.to_string().into_bytes(), none)
        }
    }
}

async fn publish(lab: &Lab, messages: Vec<(Lane, Vec<u8>, BasicProperties)>) {
    futures_util::stream::iter(messages)
        .map(|(lane, body, properties)| lab.publish(lane, body, properties))
        .buffer_unordered(200)
        .collect::<Vec<_>>()
        .await;
}

/// The end state that every run must reach, however it went.
async fn check(lab: &Lab, expected: &HashMap<String, &str>, listener: &str, worker: &Worker) {
    lab.until("SELECT count(*) FROM verdicts", i64::try_from(JOBS).unwrap(), worker).await;
    lab.until_settled(worker).await;
    lab.until_published(worker).await;

    let rows: Vec<(String, String, String, Option<String>)> =
        sqlx::query_as("SELECT job_id, key, outcome, reason FROM verdicts").fetch_all(&lab.db).await.unwrap();
    assert_eq!(rows.len(), JOBS, "one verdict a job");
    let mut wrong = Vec::new();
    let mut by_outcome: BTreeMap<&str, usize> = BTreeMap::new();
    for (job_id, key, outcome, reason) in &rows {
        let wanted = expected.get(job_id).or_else(|| expected.get(key));
        *by_outcome.entry(outcome).or_default() += 1;
        if wanted != Some(&outcome.as_str()) {
            wrong.push((job_id, key, wanted, outcome, reason));
        }
    }
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    for outcome in ["passed", "review", "flagged"] {
        assert!(by_outcome[outcome] * 10 >= JOBS, "too few {outcome}: {by_outcome:?}");
    }
    figure(&format!("{JOBS} jobs: {by_outcome:?}"));

    // Rows that owe an event, outbox rows and events received are the same set.
    let owed: Vec<(uuid::Uuid, String)> =
        sqlx::query_as("SELECT id, outcome FROM verdicts WHERE outcome <> 'passed'").fetch_all(&lab.db).await.unwrap();
    let owed: HashSet<String> = owed
        .iter()
        .map(|(id, outcome)| {
            pixwarden::job::event_id(*id, pixwarden::job::Outcome::parse(outcome).unwrap()).to_string()
        })
        .collect();
    let outbox: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT event_id FROM outbox").fetch_all(&lab.db).await.unwrap();
    assert_eq!(outbox.iter().map(ToString::to_string).collect::<HashSet<_>>(), owed);
    let mut received: HashMap<String, Value> = HashMap::new();
    for (event, properties) in lab.drain(listener).await {
        let id = event["id"].as_str().unwrap().to_owned();
        assert_eq!(properties.message_id().as_ref().unwrap().as_str(), id);
        if let Some(before) = received.insert(id, event.clone()) {
            assert_eq!(before, event, "a doubled event has the same body");
        }
    }
    assert_eq!(received.keys().cloned().collect::<HashSet<_>>(), owed);

    let dead = lab.drain(&lab.topology.dead()).await;
    assert!(dead.iter().all(|(_, properties)| !reason(properties).is_empty()));
    assert!(dead.len() >= MALFORMED, "{} of {MALFORMED} malformed messages are dead letters", dead.len());
    let bodies: Vec<_> = dead.iter().map(|(body, _)| body.to_string()).collect();
    assert!(bodies.iter().all(|body| !body.contains("job-")), "a job is among the dead letters: {bodies:?}");
}

async fn lab() -> Lab {
    let mut lab = Lab::new().await;
    // A worker that has to decode and score each image: equal content would let it off.
    lab.extra = "max_object_bytes = 8000000\n[worker]\nreuse_scores = false".into();
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_jobs_of_every_form_end_as_the_reference_says() {
    let lab = lab().await;
    let Plan { expected, messages } = plan(&lab).await;
    let listener = lab.listen().await;
    let mut worker = lab.started_worker().await;
    publish(&lab, messages).await;
    check(&lab, &expected, &listener, &worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE attempts > 1").await, 0);
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_sigkills_lose_nothing_double_nothing_and_fail_nothing() {
    let lab = lab().await;
    let Plan { expected, messages } = plan(&lab).await;
    let listener = lab.listen().await;
    publish(&lab, messages).await;
    let mut worker = lab.started_worker().await;
    for i in 0..10 {
        // At a random moment: the progress is the clock, and the operating system the dice.
        lab.until("SELECT count(*) FROM verdicts", i * i64::try_from(JOBS).unwrap() / 12 + 20, &worker).await;
        worker.kill().await;
        worker = lab.started_worker().await;
    }
    check(&lab, &expected, &listener, &worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE outcome = 'failed'").await, 0);
    assert_eq!(lab.count("SELECT count(*) FROM suspects").await, 0, "no suspicion outlives its job");
    assert!(worker.terminate().await.success());
}
