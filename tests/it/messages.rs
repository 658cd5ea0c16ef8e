//! Single messages and what has to come of them.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use pixwarden::broker::{self, Message, Topology, text};
use pixwarden::job::Lane;
use serde_json::{Value, json};

use crate::support::{Lab, good_image, judged_fixtures, reason};

fn with_id(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_records_in_one_message_are_three_verdicts() {
    let lab = Lab::new().await;
    let worker = lab.started_worker().await;
    let mut records = Vec::new();
    for i in 0..3 {
        let etag = lab.put(&format!("a {i}.jpg"), good_image()).await;
        records.push(json!({"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": lab.bucket},
            "object": {"key": format!("a+{i}.jpg"), "eTag": etag, "sequencer": "0A"}}}));
    }
    records.push(json!({"eventName": "ObjectRemoved:Delete", "s3": {"bucket": {"name": lab.bucket}, "object": {"key": "a+0.jpg"}}}));
    lab.publish(Lane::Live, json!({"Records": records}).to_string(), with_id("one-for-all")).await;
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'passed'", 3, &worker).await;
    lab.until_settled(&worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_overwritten_twice_is_a_verdict_a_state() {
    let lab = Lab::new().await;
    let worker = lab.started_worker().await;
    let images = judged_fixtures();
    let good: Vec<_> = images.iter().filter(|f| f.outcome == "passed").collect();
    let record = |etag: &str| {
        json!({"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": lab.bucket},
            "object": {"key": "k.jpg", "eTag": etag}}}]})
    };
    for (n, image) in (1..).zip([good[0], good[1]]) {
        let etag = lab.put("k.jpg", image.bytes.clone()).await;
        lab.job(Lane::Live, record(&etag)).await;
        lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'passed'", n, &worker).await;
    }
    // A late announcement of the first state: the object has changed since, and that job already has its verdict.
    let stale =
        lab.s3.put_object().bucket(&lab.bucket).key("k.jpg").body(good[2].bytes.clone().into()).send().await.unwrap();
    assert!(stale.e_tag().is_some());
    let never_seen = record("00000000000000000000000000000000");
    lab.job(Lane::Live, never_seen).await;
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'missing' AND reason LIKE '%has changed%'", 1, &worker)
        .await;
    assert_eq!(lab.count("SELECT count(DISTINCT etag) FROM verdicts").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_fetched_as_it_was() {
    let lab = Lab::new().await;
    let versioning = aws_sdk_s3::types::VersioningConfiguration::builder()
        .status(aws_sdk_s3::types::BucketVersioningStatus::Enabled)
        .build();
    lab.s3.put_bucket_versioning().bucket(&lab.bucket).versioning_configuration(versioning).send().await.unwrap();
    let images = judged_fixtures();
    let find = |outcome: &str| images.iter().find(|f| f.outcome == outcome).unwrap().bytes.clone();
    let mut versions = Vec::new();
    for bytes in [find("flagged"), find("passed")] {
        let put = lab.s3.put_object().bucket(&lab.bucket).key("k").body(bytes.into()).send().await.unwrap();
        versions.push(put.version_id().unwrap().to_owned());
    }
    let worker = lab.started_worker().await;
    for (id, version) in
        [("first", versions[0].as_str()), ("second", versions[1].as_str()), ("none", "no-such-version")]
    {
        lab.job(Lane::Live, json!({"id": id, "image": {"bucket": lab.bucket, "key": "k", "version_id": version}}))
            .await;
    }
    lab.until("SELECT count(*) FROM verdicts", 3, &worker).await;
    let outcomes = lab.outcomes().await;
    assert_eq!((outcomes["first"].as_str(), outcomes["second"].as_str()), ("flagged", "passed"));
    assert_eq!(outcomes["none"], "missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_job_twice_is_one_verdict_and_one_event() {
    let lab = Lab::new().await;
    let listener = lab.listen().await;
    let flagged = judged_fixtures().into_iter().find(|f| f.outcome == "flagged").unwrap().bytes;
    lab.put("f.jpg", flagged).await;
    let worker = lab.started_worker().await;
    for _ in 0..5 {
        lab.job(Lane::Live, json!({"id": "once", "image": format!("s3://{}/f.jpg", lab.bucket)})).await;
    }
    lab.until("SELECT count(*) FROM verdicts", 1, &worker).await;
    lab.until_settled(&worker).await;
    lab.until_published(&worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 1);
    assert_eq!(lab.waiting(&listener).await, 1);
    assert_eq!(lab.waiting(&lab.topology.flagged()).await, 1, "kept for a later consumer");
    assert_eq!(lab.waiting(&lab.topology.dead()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_fill_a_frame_stop_nobody() {
    let lab = Lab::new().await;
    lab.put("k", good_image()).await;
    let worker = lab.started_worker().await;
    // As much as one frame of the broker's default size carries: nothing can be added to it.
    let mut headers = lapin::types::FieldTable::default();
    headers.insert("x".into(), lapin::types::AMQPValue::LongString("a".repeat(130_990).into()));
    let full = || BasicProperties::default().with_headers(headers.clone());
    lab.publish(Lane::Live, "no job", full()).await;
    let job = json!({"id": "full", "image": format!("s3://{}/k", lab.bucket)}).to_string();
    lab.publish(Lane::Live, job, full()).await;
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'passed'", 1, &worker).await;
    lab.until_settled(&worker).await;
    let dead = lab.drain(&lab.topology.dead()).await;
    let [(body, properties)] = &dead[..] else { panic!("{} dead letters", dead.len()) };
    assert_eq!(body, "no job");
    assert!(!properties.headers().as_ref().unwrap().inner().contains_key("x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_for_another_image_is_dead_lettered() {
    let lab = Lab::new().await;
    lab.put("a.jpg", good_image()).await;
    lab.put("b.jpg", good_image()).await;
    let worker = lab.started_worker().await;
    lab.job(Lane::Live, json!({"id": "x", "image": format!("s3://{}/a.jpg", lab.bucket)})).await;
    lab.until("SELECT count(*) FROM verdicts", 1, &worker).await;
    lab.job(Lane::Live, json!({"id": "x", "image": format!("s3://{}/b.jpg", lab.bucket)})).await;
    let (body, properties) = lab.next(&lab.topology.dead()).await;
    assert_eq!(body["id"], "x");
    let reason = reason(&properties);
    assert!(reason.starts_with("id_conflict"), "{reason}");
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE key = 'a.jpg'").await, 1);
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_is_sent_whatever_the_outcome_but_never_to_our_own_queues() {
    let lab = Lab::new().await;
    lab.put("a.jpg", good_image()).await;
    let worker = lab.started_worker().await;
    let queue = lab.listen().await;
    let body = |id: &str| json!({"id": id, "image": format!("s3://{}/a.jpg", lab.bucket)}).to_string();
    let properties = with_id("m").with_correlation_id("c-1".into()).with_reply_to(queue.as_str().into());
    lab.publish(Lane::Live, body("wanted"), properties).await;
    let (event, properties) = lab.next(&queue).await;
    assert_eq!(event["type"], "io.pixwarden.image.passed.v1");
    assert_eq!(event["data"]["job_id"], "wanted");
    assert_eq!(properties.correlation_id().as_ref().unwrap().as_str(), "c-1");
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/cloudevents+json");

    let looped = BasicProperties::default().with_reply_to(lab.topology.lane(Lane::Live).as_str().into());
    lab.publish(Lane::Live, body("looped"), looped).await;
    lab.until("SELECT count(*) FROM verdicts", 2, &worker).await;
    lab.until_settled(&worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 2);
    assert_eq!(lab.waiting(&lab.topology.dead()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_listener_waits_in_the_outbox_and_holds_up_nothing() {
    let mut lab = Lab::new().await;
    lab.extra = "[outbox]\nsweep_ms = 200\n[events]\npublish = [\"image.passed\", \"image.failed\"]".into();
    lab.put("good", good_image()).await;
    lab.put("junk", b"not an image".to_vec()).await;
    let worker = lab.started_worker().await;
    // image.passed has no queue until somebody binds one.
    for key in ["good", "junk"] {
        lab.job(Lane::Live, json!({"id": key, "image": format!("s3://{}/{key}", lab.bucket)})).await;
    }
    let (event, _) = lab.next(&lab.topology.unscreened()).await;
    assert_eq!(event["data"]["outcome"], "undecodable");
    lab.until("SELECT count(*) FROM outbox WHERE last_error LIKE '%no queue is bound%'", 1, &worker).await;
    lab.until_settled(&worker).await;
    let listener = lab.listen().await;
    sqlx::query("UPDATE outbox SET due_at = now()").execute(&lab.db).await.unwrap();
    let (event, _) = lab.next(&listener).await;
    assert_eq!(event["data"]["outcome"], "passed");
    lab.until_published(&worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_for_events_that_was_declared_without_a_bound_is_used_as_it_is() {
    let lab = Lab::new().await;
    let topology = Topology::new(&format!("{}-old", lab.prefix), true);
    let declare = async |arguments: &[(&str, AMQPValue)]| {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        lab.channel.queue_declare(topology.flagged().as_str().into(), options, table).await
    };
    let quorum = [("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongInt(1_000_000_000))];
    declare(&quorum).await.unwrap();
    // Twice, as two starts.
    topology.declare(&lab.connection).await.unwrap();
    topology.declare(&lab.connection).await.unwrap();
    let exchange = topology.events();
    for routing_key in ["image.flagged", "image.review", "image.failed", "image.noted", "image.cleared"] {
        let message =
            Message { exchange: &exchange, routing_key, payload: b"{}", properties: BasicProperties::default() };
        lab.publisher.publish(message).await.unwrap();
    }
    for (queue, messages) in [(topology.flagged(), 2), (topology.unscreened(), 1), (topology.updates(), 2)] {
        lab.until_waiting(&queue, messages).await;
    }

    // Another difference is a mistake, and is told.
    let other = Topology::new(&format!("{}-other", lab.prefix), true);
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    lab.channel.queue_declare(other.updates().as_str().into(), options, FieldTable::default()).await.unwrap();
    let refused = other.declare(&lab.connection).await.unwrap_err().to_string();
    assert!(refused.contains(&other.updates()) && refused.contains("hint:"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_content_takes_over_earlier_scores() {
    let lab = Lab::new().await;
    let image = good_image();
    for key in ["a", "b"] {
        lab.put(key, image.clone()).await;
    }
    let worker = lab.started_worker().await;
    for (n, key) in (1..).zip(["a", "b"]) {
        lab.job(Lane::Live, json!({"id": key, "image": format!("s3://{}/{key}", lab.bucket)})).await;
        lab.until("SELECT count(*) FROM verdicts", n, &worker).await;
    }
    let equal = "SELECT count(*) FROM verdicts a JOIN verdicts b ON b.reused_from = a.id
                 WHERE a.job_id = 'a' AND a.scores = b.scores AND a.score = b.score AND a.outcome = b.outcome
                     AND a.width = b.width AND a.format = b.format";
    assert_eq!(lab.count(equal).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_is_replaced_by_a_later_delivery_that_succeeds() {
    let mut lab = Lab::new().await;
    lab.detectors = format!("{:?}", crate::support::fixtures().join("detectors/nan"));
    lab.listen().await;
    let folder = crate::support::fixtures();
    lab.put("k", std::fs::read(folder.join("images/png-bright-red-0.png")).unwrap()).await;
    let worker = lab.started_worker().await;
    let body = json!({"id": "j", "image": format!("s3://{}/k", lab.bucket)});
    lab.job(Lane::Live, body.clone()).await;
    lab.until(
        "SELECT count(*) FROM verdicts WHERE outcome = 'failed' AND reason LIKE '%not a probability%'",
        1,
        &worker,
    )
    .await;
    let (dead, _) = lab.next(&lab.topology.dead()).await;
    assert_eq!(dead, body, "only a failed job is dead-lettered, as it came");
    lab.put("k", good_image()).await;
    lab.job(Lane::Live, dead).await;
    lab.until("SELECT count(*) FROM verdicts WHERE outcome <> 'failed'", 1, &worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 1);
    // And nothing but a failed one ever is.
    lab.put("k", b"junk".to_vec()).await;
    lab.job(Lane::Live, body).await;
    lab.until_settled(&worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE outcome IN ('undecodable', 'failed')").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn enqueue_and_dead_list_do_what_they_say() {
    let lab = Lab::new().await;
    lab.put("a b.jpg", good_image()).await;
    let worker = lab.started_worker().await;
    let uri = format!("s3://{}/a b.jpg", lab.bucket);
    let sent = lab.run(&["enqueue", "--lane", "backfill", &uri]).await.expect_ok();
    assert!(sent.stdout.is_empty(), "data only goes to stdout");
    // The verdicts come back over RabbitMQ's direct reply-to, for which the sender needs no further permission.
    let options = ["--metadata", r#"{"user": 7}"#, "--detectors", "spread-nhwc", "--wait", "--format", "jsonl"];
    let absent = format!("s3://{}/absent", lab.bucket);
    let waited = lab.run(&[&["enqueue", &uri, &absent][..], &options].concat()).await.expect_ok();
    let rows = waited.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let rows: std::collections::BTreeMap<String, serde_json::Value> =
        rows.map(|row| (row["subject"].as_str().unwrap().to_owned(), row)).collect();
    assert_eq!((&rows[&uri]["outcome"], &rows[&absent]["outcome"]), (&json!("passed"), &json!("missing")));
    assert_eq!(rows[&uri]["metadata"], json!({"user": 7}));
    let named = lab.run(&["enqueue", &uri, "--id", "mine", "--wait", "--format", "jsonl"]).await.expect_ok();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&named.stdout).unwrap()["job_id"], "mine");
    // Nobody consumes the other lane's exchange here: a queue without a worker.
    let two = lab.run(&["enqueue", &uri, &absent, "--id", "mine"]).await;
    assert_eq!(two.status, 2, "{}", two.stderr);
    lab.until("SELECT count(*) FROM verdicts WHERE lane = 'backfill' AND outcome = 'passed'", 1, &worker).await;

    for i in 0..3 {
        lab.publish(Lane::Live, format!("junk {i}"), BasicProperties::default()).await;
    }
    lab.until_settled(&worker).await;
    // Looking never consumes, however often.
    for _ in 0..3 {
        let listed = lab.run(&["dead", "list", "--format", "jsonl"]).await.expect_ok();
        let lines: Vec<serde_json::Value> =
            listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // What went back to a quorum queue may come in another order.
        let mut bodies: Vec<&str> = lines.iter().map(|line| line["body"].as_str().unwrap()).collect();
        bodies.sort_unstable();
        assert_eq!(bodies, ["junk 0", "junk 1", "junk 2"]);
        assert!(lines[0]["reason"].as_str().unwrap().contains("neither JSON nor s3://"));
    }
    let check = lab.run(&["check"]).await.expect_ok();
    let starting_with = |word: &str| check.stdout.lines().filter(|line| line.starts_with(word)).collect::<Vec<_>>();
    assert_eq!(starting_with("ok").len(), 7, "{}", check.stdout);
    let warnings = starting_with("warn");
    assert!(matches!(&warnings[..], [only] if only.contains("unscreened")), "{}", check.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_warns_where_flagged_is_consumed_and_cleared_is_not() {
    let mut lab = Lab::new().await;
    let warnings = async |lab: &Lab| {
        let check = lab.run(&["check", "--no-size-probe", "--log", "off"]).await.expect_ok();
        let warned = check.stdout.split("warn  ").skip(1).map(str::to_owned);
        warned.filter(|words| words.contains("would never show one again")).collect::<Vec<_>>()
    };
    let consume = async |queue: String| {
        let consume = lab.channel.basic_consume(
            queue.as_str().into(),
            queue.as_str().into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        consume.await.unwrap()
    };
    assert!(warnings(&lab).await.is_empty(), "no queue is consumed yet");
    let _flagged = consume(lab.topology.flagged()).await;
    let (flagged, updates) = (lab.topology.flagged(), lab.topology.updates());
    let warned = warnings(&lab).await;
    assert!(
        matches!(&warned[..], [one] if one.contains(&format!("{flagged} is consumed and {updates} is not"))
        && one.contains(&format!("hint: consume {updates} too"))),
        "{warned:?}"
    );
    let _updates = consume(updates).await;
    assert!(warnings(&lab).await.is_empty());

    lab.extra = "[events]\npublish = [\"image.flagged\"]".into();
    let warned = warnings(&lab).await;
    assert!(
        matches!(&warned[..], [one] if one.contains("image.flagged is published and image.cleared is not")
        && one.contains("hint: add \"image.cleared\" to `events.publish`")),
        "{warned:?}"
    );

    // With the user's own queues, an event that waits long in the outbox is what can be seen.
    lab.extra = "[events]\ndefault_queue = false".into();
    assert!(warnings(&lab).await.is_empty());
    let wait = "INSERT INTO outbox (event_id, verdict_id, routing_key, correlation_id, payload, created_at, due_at) \
                VALUES (gen_random_uuid(), gen_random_uuid(), $1, 'x', '{}', now() - interval '1 hour', now())";
    sqlx::query(wait).bind("image.cleared").execute(&lab.db).await.unwrap();
    let warned = warnings(&lab).await;
    assert!(
        matches!(&warned[..], [one] if one.contains("no queue takes the events of image.cleared")
        && one.contains("hint: bind the queue of that service to image.cleared at")),
        "{warned:?}"
    );
    sqlx::query(wait).bind("image.flagged").execute(&lab.db).await.unwrap();
    assert!(warnings(&lab).await.is_empty(), "no queue takes image.flagged either");
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_what_is_inside_and_returns_the_rest() {
    let lab = Lab::new().await;
    let image = good_image();
    lab.put("k", image).await;
    for i in 0..500 {
        lab.job(Lane::Backfill, json!({"id": format!("j{i}"), "image": format!("s3://{}/k", lab.bucket)})).await;
    }
    let mut worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts", 20, &worker).await;
    let status = worker.terminate().await;
    assert!(status.success(), "{}", worker.log());
    let done = lab.count("SELECT count(*) FROM verdicts").await;
    let since = std::time::Instant::now();
    // What the broker says of a quorum queue is a moment old.
    loop {
        let waiting = i64::from(lab.waiting(&lab.topology.lane(Lane::Backfill)).await);
        if done + waiting == 500 {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(10), "{done} are done and {waiting} wait, which is not 500");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_detectors_look_at_one_decode_and_a_shadow_is_never_judged() {
    let mut lab = Lab::new().await;
    let folder = crate::support::fixtures().join("detectors");
    // Bytes in and floats in, one label out of two and four independent ones.
    lab.detectors = format!(
        "{{ path = {:?} }}, {{ path = {:?}, shadow = true }}",
        folder.join("spread-nhwc"),
        folder.join("multi")
    );
    lab.extra =
        "[[policy.rules]]\ndetector = \"spread-nhwc\"\nlabel = \"by AI\"\nreview_at = 0.5\nflag_at = 0.9".into();
    lab.put("k", good_image()).await;
    let worker = lab.started_worker().await;
    let image = format!("s3://{}/k", lab.bucket);
    lab.job(Lane::Live, json!({"id": "both", "image": image})).await;
    lab.job(Lane::Live, json!({"id": "one", "image": image, "detectors": ["spread-nhwc"]})).await;
    lab.job(Lane::Live, json!({"id": "shadow", "image": image, "detectors": ["multi"]})).await;
    lab.until("SELECT count(*) FROM verdicts", 3, &worker).await;
    let outcomes = lab.outcomes().await;
    assert_eq!((outcomes["both"].as_str(), outcomes["one"].as_str()), ("passed", "passed"));
    assert_eq!(outcomes["shadow"], "rejected", "no rule judges it, and that is no pass");

    let (scores, detectors): (serde_json::Value, serde_json::Value) =
        sqlx::query_as("SELECT scores, detectors FROM verdicts WHERE job_id = 'both'")
            .fetch_one(&lab.db)
            .await
            .unwrap();
    assert_eq!(detectors.as_object().unwrap().len(), 2, "a verdict names who scored");
    let expected = std::fs::read_to_string(crate::support::fixtures().join("expected.jsonl")).unwrap();
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(good_image()));
    let expected: serde_json::Value =
        serde_json::from_str(expected.lines().find(|l| l.contains(&sha256)).unwrap()).unwrap();
    for detector in ["spread-nhwc", "multi"] {
        for (label, p) in expected["scores"][detector].as_object().unwrap() {
            let found = scores[detector][label].as_f64().unwrap();
            assert!((found - p.as_f64().unwrap()).abs() <= 0.005, "{detector}, {label}: {found} instead of {p}");
        }
    }
}

/// An S3 event about one object.
fn s3_event(lab: &Lab, source: &str, name: &str, object: &Value) -> String {
    let stored = json!({"bucket": {"name": lab.bucket}, "object": object});
    json!({"Records": [{"eventSource": source, "eventName": name, "s3": stored}]}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_other_stores_are_read_as_they_are_meant() {
    let lab = Lab::new().await;
    for key in ["ceph/a+b%20c.png", "synced.png", "null.png", "weak.png", "mark.png"] {
        lab.put(key, good_image()).await;
    }
    lab.put("new/", Vec::new()).await;
    let weak = lab.put("weak.png", good_image()).await;
    let worker = lab.started_worker().await;
    let created = "ObjectCreated:Put";
    let weak = json!({"image": {"bucket": lab.bucket, "key": "weak.png", "etag": format!("W/\"{weak}\"")}});
    for body in [
        s3_event(&lab, "ceph:s3", created, &json!({"key": "ceph/a+b%20c.png", "size": 1, "versionId": "", "eTag": ""})),
        s3_event(&lab, "ceph:s3", "ObjectSynced:Create", &json!({"key": "synced.png", "size": 1})),
        s3_event(&lab, "minio:s3", created, &json!({"key": "null.png", "size": 1, "versionId": "null"})),
        s3_event(&lab, "aws:s3", created, &json!({"key": "new/", "size": 0})),
        weak.to_string(),
        format!("\u{feff}{}\n", json!({"image": format!("s3://{}/mark.png", lab.bucket)})),
    ] {
        lab.publish(Lane::Live, body, BasicProperties::default()).await;
    }
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'passed'", 5, &worker).await;
    lab.until_settled(&worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 5, "a folder marker has no verdict");
    assert_eq!(lab.waiting(&lab.topology.dead()).await, 0);
    assert!(worker.log_has("a folder marker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_says_what_its_message_is() {
    let lab = Lab::new().await;
    let worker = lab.started_worker().await;
    let mut death = FieldTable::default();
    death.insert("queue".into(), broker::text("q"));
    let mut headers = FieldTable::default();
    headers.insert("x-big".into(), broker::text(&"x".repeat(100_000)));
    let deaths = lapin::types::FieldArray::from(vec![lapin::types::AMQPValue::FieldTable(death)]);
    headers.insert("x-death".into(), lapin::types::AMQPValue::FieldArray(deaths));
    let plain = BasicProperties::default;
    let cases = [
        (&b"\x1f\x8b\x08\x00\xb2\x62\x07\x62"[..], plain().with_content_encoding("gzip".into()), "compressed (gzip)"),
        (
            br#"{"kind": "storage#object", "name": "p/gcs.png", "bucket": "b", "etag": "x"}"#,
            plain(),
            "Google Cloud Storage",
        ),
        (br#"{"nonsense": 2}"#, plain().with_headers(headers), "not a job"),
    ];
    for (body, properties, says) in cases {
        lab.publish(Lane::Live, body, properties).await;
        lab.until_settled(&worker).await;
        let dead = lab.drain(&lab.topology.dead()).await;
        let [(_, properties)] = &dead[..] else { panic!("{} dead letters", dead.len()) };
        assert!(reason(properties).contains(says), "{}", reason(properties));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_object_is_screened_under_the_very_key_that_the_store_holds() {
    let lab = Lab::new().await;
    let image = good_image();
    let long = format!("{}.png", "a".repeat(1020));
    let keys = [
        "/lead",
        "a//b",
        "a/./b",
        "a/../b",
        "..",
        "dots/..",
        "q?x=1",
        "h#1",
        "per%41cent",
        "pl+us",
        "back\\slash",
        "new\nline",
        "emoji-\u{1f600}",
        "e\u{301}",
        "\u{e9}",
        "sp ace ",
        " lead",
        "tab\t.png",
        "star*",
        "amp&eq=",
        "quote'\"",
        "trail/",
        "\u{202e}.png",
        "ctl\u{1}",
        &long,
    ];
    let mut held = Vec::new();
    for key in keys {
        // A server may refuse some of them.
        let put = lab.s3.put_object().bucket(&lab.bucket).key(key).body(image.clone().into());
        if put.send().await.is_ok() {
            held.push(key.to_owned());
        }
    }
    assert!(held.len() > 15, "{held:?}");
    let worker = lab.started_worker().await;
    for key in &held {
        lab.job(Lane::Live, json!({"image": {"bucket": lab.bucket, "key": key}})).await;
    }
    lab.until("SELECT count(*) FROM verdicts", held.len() as i64, &worker).await;
    let mut screened: Vec<String> =
        sqlx::query_scalar("SELECT key FROM verdicts WHERE outcome = 'passed'").fetch_all(&lab.db).await.unwrap();
    screened.sort_unstable();
    held.sort_unstable();
    assert_eq!(screened, held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_reply_arrives_and_is_not_logged_as_lost() {
    let lab = Lab::new().await;
    lab.put("a.jpg", good_image()).await;
    let worker = lab.started_worker().await;
    let channel = lab.connection.create_channel().await.unwrap();
    let (queue, options) = ("amq.rabbitmq.reply-to", BasicConsumeOptions { no_ack: true, ..Default::default() });
    let mut replies = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.unwrap();
    let job = json!({"image": format!("s3://{}/a.jpg", lab.bucket)}).to_string();
    for (id, body) in [("job", job.as_str()), ("none", "no job")] {
        let properties = BasicProperties::default().with_reply_to(queue.into()).with_correlation_id(id.into());
        let (exchange, lane) = (lab.topology.jobs(), Lane::Live.as_str());
        let options = BasicPublishOptions::default();
        let published =
            channel.basic_publish(exchange.as_str().into(), lane.into(), options, body.as_bytes(), properties);
        drop(published.await.unwrap());
        let reply = tokio::time::timeout(Duration::from_secs(60), replies.next()).await;
        let reply = reply.expect("no reply within a minute").unwrap().unwrap();
        assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), id);
        let body: Value = serde_json::from_slice(&reply.data).unwrap();
        match id {
            "job" => assert_eq!(body["data"]["outcome"], "passed"),
            _ => assert_eq!(body["error"]["code"], "not_understood"),
        }
    }
    lab.until_settled(&worker).await;
    assert!(!worker.log_has("reply not delivered"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_shows_how_large_a_message_may_be() {
    let lab = Lab::new().await;
    // The test's broker has the limit of deploy/rabbitmq/rabbitmq.conf.
    assert!(broker::accepts_message_of(&lab.connection, broker::MAX_MESSAGE_BYTES).await.unwrap());
    assert!(!broker::accepts_message_of(&lab.connection, broker::MAX_MESSAGE_BYTES + 1).await.unwrap());
    let check = lab.run(&["check"]).await;
    assert!(check.stdout.contains("messages of more than 512 KiB are refused"), "{}", check.stdout);
    let check = lab.run(&["check", "--no-size-probe"]).await;
    assert!(!check.stdout.contains("KiB are refused"), "{}", check.stdout);
}
