//! What an operator does: looking at dead letters and sending them back, asking what is known, exporting, rejudging.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use pixwarden::broker::{Message, text};
use pixwarden::job::Lane;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::{Ended, Lab, judged_fixtures};

fn rows(ended: &Ended) -> Vec<Value> {
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn field<'a>(rows: &'a [Value], name: &str) -> Vec<&'a str> {
    rows.iter().map(|row| row[name].as_str().unwrap_or_default()).collect()
}

/// The header by which the broker recognises that a message was in a queue before.
fn death_in(queue: &str) -> AMQPValue {
    let mut death = FieldTable::default();
    for (key, value) in [("queue", queue), ("reason", "expired"), ("exchange", "")] {
        death.insert(key.into(), text(value));
    }
    death.insert("count".into(), AMQPValue::LongLongInt(1));
    death.insert("routing-keys".into(), AMQPValue::FieldArray(vec![text("backfill")].into()));
    AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into())
}

/// Two jobs that failed because of broken downloads, and an invalid message.
async fn with_dead_letters() -> Lab {
    let mut lab = Lab::new().await;
    let direct = lab.endpoint.clone();
    lab.endpoint = crate::proxy::start(&lab.endpoint).await;
    // Two, so that what was counted lies among the headers.
    lab.extra = "[worker]\nattempts = 2".into();
    let image = judged_fixtures().into_iter().find(|fixture| fixture.outcome == "flagged").unwrap().bytes;
    for key in ["cut-1", "cut-2"] {
        lab.put(key, image.clone()).await;
    }
    let mut worker = lab.started_worker().await;
    let job = |i: u8| json!({"id": format!("job-{i}"), "image": format!("s3://{}/cut-{i}", lab.bucket)}).to_string();
    let headers = {
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), text("00-1-2-01"));
        headers.insert("x-death".into(), death_in(&lab.topology.lane(Lane::Backfill)));
        headers
    };
    for i in [1, 2] {
        let properties = BasicProperties::default().with_headers(headers.clone()).with_correlation_id("mine".into());
        lab.publish(Lane::Backfill, job(i), properties).await;
    }
    lab.publish(Lane::Live, "nonsense", BasicProperties::default().with_message_id("odd".into())).await;
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'failed'", 2, &worker).await;
    lab.until_settled(&worker).await;
    assert!(worker.terminate().await.success());
    lab.endpoint = direct;
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn listing_dead_letters_consumes_none() {
    let lab = with_dead_letters().await;
    for _ in 0..30 {
        let listed = lab.run(&["dead", "list", "--format", "jsonl"]).await.expect_ok();
        assert_eq!(rows(&listed).len(), 3, "{}", listed.stdout);
    }
    let failed = rows(&lab.run(&["dead", "list", "--format", "jsonl", "--reason", "given up after"]).await.expect_ok());
    let mut ids = field(&failed, "job_id");
    ids.sort_unstable();
    assert_eq!(ids, ["job-1", "job-2"]);
    assert!(failed.iter().all(|row| row["lane"] == "backfill" && row["dead_since"].is_string()), "{failed:?}");
    assert!(failed.iter().all(|row| row["attempts"] == 2), "as the reason says: {failed:?}");
    assert_eq!(rows(&lab.run(&["dead", "list", "--older-than", "1h", "--format", "jsonl"]).await.expect_ok()).len(), 0);
    assert_eq!(rows(&lab.run(&["dead", "list", "--older-than", "0s", "--format", "jsonl"]).await.expect_ok()).len(), 3);

    let shown: Value = serde_json::from_str(&lab.run(&["dead", "show", "job-2"]).await.expect_ok().stdout).unwrap();
    assert_eq!((&shown["body"]["id"], &shown["headers"]["traceparent"]), (&json!("job-2"), &json!("00-1-2-01")));
    assert_eq!(shown["correlation_id"], "mine");
    let odd: Value = serde_json::from_str(&lab.run(&["dead", "show", "odd"]).await.expect_ok().stdout).unwrap();
    assert_eq!(odd["body"], "nonsense");
    let nobody = lab.run(&["dead", "show", "nobody"]).await;
    assert_eq!(nobody.status, 1);
    assert!(
        nobody.stderr.contains("no dead letter has the job id, the message id or the position \"nobody\""),
        "{}",
        nobody.stderr
    );
    lab.until_waiting(&lab.topology.dead(), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_job_keeps_its_id_counts_from_zero_and_gets_its_verdict() {
    let lab = with_dead_letters().await;
    let careless = lab.run(&["dead", "replay"]).await;
    assert_eq!(careless.status, 2, "{}", careless.stderr);
    assert!(careless.stderr.contains("hint: give --reason"), "{}", careless.stderr);
    let counted = lab.run(&["dead", "replay", "--all", "--dry-run"]).await.expect_ok();
    assert!(counted.stderr.contains("3 dead letters would be replayed"), "{}", counted.stderr);
    lab.until_waiting(&lab.topology.dead(), 3).await;

    let replayed = lab.run(&["dead", "replay", "--id", "job-1"]).await.expect_ok();
    assert!(replayed.stderr.contains("1 dead letter replayed\n  1  given up after 2 attempts"), "{}", replayed.stderr);
    let lane = lab.topology.lane(Lane::Backfill);
    let waiting = lab.drain(&lane).await;
    let (body, properties) = &waiting[0];
    assert_eq!((waiting.len(), &body["id"]), (1, &json!("job-1")));
    let headers = properties.headers().clone().unwrap();
    let names: Vec<_> =
        headers.inner().keys().map(ToString::to_string).filter(|name| !name.starts_with("x-delivery")).collect();
    assert_eq!(names, ["traceparent", "x-pixwarden-job-id"], "what was counted and noted is gone");
    lab.publish(Lane::Backfill, body.to_string(), properties.clone()).await;

    lab.run(&["dead", "replay", "--reason", "given up after"]).await.expect_ok();
    let mut worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'flagged' AND attempts = 1", 2, &worker).await;
    lab.until_settled(&worker).await;
    assert!(worker.terminate().await.success());
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 2, "the same jobs, and no others");
    // The events of the failures are out, or were deleted by the transaction that replaced their verdict.
    let stale = "SELECT count(*) FROM outbox WHERE routing_key = 'image.failed' AND published_at IS NULL";
    assert_eq!(lab.count(stale).await, 0);
    assert_eq!(lab.count("SELECT count(*) FROM outbox WHERE routing_key = 'image.flagged'").await, 2);
    let replayed = "SELECT count(*) FROM verdicts WHERE revision = 2 AND cause = 'replayed'";
    assert_eq!(lab.count(replayed).await, 2);
    assert_eq!(lab.count("SELECT count(*) FROM verdict_history WHERE outcome = 'failed'").await, 2);
    let left = lab.drain(&lab.topology.dead()).await;
    assert_eq!(left.iter().map(|(body, _)| body).collect::<Vec<_>>(), [&json!("nonsense")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_letters_are_gone_and_the_others_stay() {
    let lab = with_dead_letters().await;
    let refused = lab.run(&["dead", "drop", "--all"]).await;
    assert_eq!(refused.status, 2, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("cannot discard dead letters: there is no terminal to ask on"),
        "{}",
        refused.stderr
    );
    let dropped = lab.run(&["dead", "drop", "--yes", "--id", "job-1", "--id", "odd"]).await.expect_ok();
    assert!(dropped.stderr.contains("2 dead letters dropped"), "{}", dropped.stderr);
    let left = rows(&lab.run(&["dead", "list", "--format", "jsonl"]).await.expect_ok());
    assert_eq!(field(&left, "job_id"), ["job-2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_without_an_id_are_found_by_a_position_that_stays() {
    let lab = Lab::new().await;
    let sender = lab.queue.parse::<url::Url>().unwrap().username().to_owned();
    // Enough that the broker returns them in another order, and each of them twice.
    for i in 0..40 {
        let (exchange, body) = (lab.topology.jobs(), format!("junk {}", i % 20));
        let properties = BasicProperties::default().with_user_id(sender.as_str().into());
        let message = Message { exchange: &exchange, routing_key: "uploads", payload: body.as_bytes(), properties };
        lab.publisher.publish(message).await.unwrap();
    }
    let list = async |limit| rows(&lab.run(&["dead", "list", "--format", "jsonl", "--limit", limit]).await.expect_ok());
    let first = list("100").await;
    let positions: std::collections::BTreeSet<_> = field(&first, "position").into_iter().collect();
    assert_eq!(positions.len(), 40, "no two are equal");
    assert!(field(&first, "reason").iter().all(|reason| reason.starts_with("no lane \"uploads\"")), "{first:?}");
    for _ in 0..3 {
        assert_eq!(list("100").await, first);
        assert_eq!(list("7").await, first[..7], "the same ones, however many are printed");
    }

    let (position, body) = (first[11]["position"].as_str().unwrap(), &first[11]["body"]);
    let shown: Value = serde_json::from_str(&lab.run(&["dead", "show", position]).await.expect_ok().stdout).unwrap();
    assert_eq!(&shown["body"], body);
    let nowhere = lab.run(&["dead", "replay", "--id", position]).await.expect_ok();
    assert!(nowhere.stderr.contains("1 name no lane"), "{}", nowhere.stderr);
    let replayed = lab.run(&["dead", "replay", "--position", position, "--lane", "live"]).await.expect_ok();
    assert!(replayed.stderr.contains("1 dead letter replayed\n  1  no lane \"uploads\": a"), "{}", replayed.stderr);
    let revived = lab.drain(&lab.topology.lane(Lane::Live)).await;
    assert_eq!(revived.iter().map(|(body, _)| body).collect::<Vec<_>>(), [body]);
    let position = first[0]["position"].as_str().unwrap();
    let dropped = lab.run(&["dead", "drop", "--yes", "--id", position]).await.expect_ok();
    assert!(dropped.stderr.contains("1 dead letter dropped"), "{}", dropped.stderr);
    assert_eq!(list("100").await.len(), 38);
}

/// A ledger with a verdict on every fixture, and what the worker told of each.
async fn with_verdicts() -> (Lab, String, BTreeMap<String, String>) {
    let lab = Lab::new().await;
    let listener = lab.listen().await;
    let fixtures: Vec<_> = judged_fixtures().into_iter().step_by(3).collect();
    let mut expected = BTreeMap::new();
    for (i, fixture) in fixtures.iter().enumerate() {
        lab.put(&format!("{i:03}"), fixture.bytes.clone()).await;
        expected.insert(format!("job-{i:03}"), fixture.outcome.clone());
    }
    let mut worker = lab.started_worker().await;
    for i in 0..fixtures.len() {
        let id = format!("job-{i:03}");
        let image = format!("s3://{}/{i:03}", lab.bucket);
        lab.job(Lane::Live, json!({"id": id, "image": image, "metadata": {"n": i, "text": "a,\"b\"\n"}})).await;
    }
    lab.until("SELECT count(*) FROM verdicts", i64::try_from(fixtures.len()).unwrap(), &worker).await;
    lab.until_published(&worker).await;
    assert!(worker.terminate().await.success());
    (lab, listener, expected)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_a_job_and_of_an_image_is_shown() {
    let (lab, ..) = with_verdicts().await;
    let by_job = rows(&lab.run(&["show", "job-000", "--format", "jsonl"]).await.expect_ok());
    let image = format!("s3://{}/000", lab.bucket);
    let by_image = rows(&lab.run(&["show", &image, "--format", "jsonl"]).await.expect_ok());
    assert_eq!((by_job.len(), &by_job), (1, &by_image));
    assert_eq!((&by_job[0]["key"], &by_job[0]["metadata"]["n"]), (&json!("000"), &json!(0)));
    let flagged: String = sqlx::query_scalar("SELECT job_id FROM verdicts WHERE outcome = 'flagged' LIMIT 1")
        .fetch_one(&lab.db)
        .await
        .unwrap();
    let told = rows(&lab.run(&["show", &flagged, "--format", "jsonl"]).await.expect_ok());
    assert!(told[0]["announced"].as_str().unwrap().starts_with("image.flagged at 20"), "{told:?}");
    assert!(told[0]["events"][0]["published_at"].is_string(), "{told:?}");
    assert_eq!((&told[0]["revision"], &told[0]["judged_at"]), (&json!(1), &told[0]["decided_at"]));
    let verdict = told[0]["id"].as_str().unwrap();
    assert_eq!(rows(&lab.run(&["show", verdict, "--format", "jsonl"]).await.expect_ok()), told, "by the verdict's id");
    let nobody = lab.run(&["show", "nobody"]).await;
    assert_eq!(nobody.status, 1);
    assert!(
        nobody.stderr.contains("has no verdict on \"nobody\"") && nobody.stderr.contains("hint:"),
        "{}",
        nobody.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_holds_every_verdict_once_and_only_those_asked_for() {
    let (lab, _, expected) = with_verdicts().await;
    let early = lab.run(&["export"]).await.expect_ok();
    assert_eq!(early.stdout, "", "what was decided just now may have company that is not committed yet");
    assert!(early.stderr.contains("next: --since 20") && early.stderr.contains("hint:"), "{}", early.stderr);
    let all = rows(&lab.run(&["export", "--lag", "0s"]).await.expect_ok());
    let found: BTreeMap<_, _> = all
        .iter()
        .map(|row| (row["job_id"].as_str().unwrap().to_owned(), row["outcome"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!((all.len(), &found), (expected.len(), &expected));
    let times = field(&all, "decided_at");
    // As times, not as text: RFC 3339 leaves out zeros at the end of a fraction, and "Z" is after every digit.
    let moments: Vec<_> = times.iter().map(|at| OffsetDateTime::parse(at, &Rfc3339).unwrap()).collect();
    assert!(moments.is_sorted(), "{times:?}");

    let count = async |arguments: &[&str]| {
        rows(&lab.run(&[&["export", "--lag", "0s"][..], arguments].concat()).await.expect_ok()).len()
    };
    let wanted = expected.values().filter(|outcome| *outcome == "flagged" || *outcome == "review").count();
    assert_eq!(count(&["--outcome", "flagged", "--outcome", "review"]).await, wanted);
    assert_eq!(count(&["--detector", "spread-nhwc"]).await, expected.len());
    assert_eq!(count(&["--scored-by", "spread-nhwc"]).await, expected.len(), "the earlier name");
    for nothing in [["--detector", "another"], ["--bucket", "another"], ["--key-prefix", "x"], ["--label", "x"]] {
        assert_eq!(count(&nothing).await, 0, "{nothing:?}");
    }
    assert_eq!(count(&["--bucket", "another", "--bucket", "it-*", "--key-prefix", "0"]).await, expected.len());
    let scored =
        expected.values().filter(|outcome| ["passed", "review", "flagged"].contains(&outcome.as_str())).count();
    assert_eq!(count(&["--label", "by AI"]).await, scored);
    let middle = times[times.len() / 2];
    let (before, after) = (count(&["--until", middle]).await, count(&["--since", middle]).await);
    assert_eq!(before + after, expected.len());
    assert!(before > 0 && after > 0);

    // More than are read at a time, and many of them decided at the same moment.
    let many = "INSERT INTO verdicts (id, job_id, lane, bucket, key, outcome, detectors, policy, attempts, received_at, decided_at)
                SELECT gen_random_uuid(), 'many-' || n, 'backfill', 'b', 'k', 'missing', '{}', '{\"name\": \"p\", \"sha256\": \"\"}', 1,
                       now(), date_trunc('hour', now()) - n / 1000 * interval '1 hour'
                FROM generate_series(1, 2500) AS n";
    sqlx::query(many).execute(&lab.db).await.unwrap();
    let many = rows(&lab.run(&["export", "--lag", "0s", "--outcome", "missing"]).await.expect_ok());
    let distinct: std::collections::BTreeSet<_> =
        field(&many, "job_id").into_iter().filter(|id| id.starts_with("many-")).collect();
    assert_eq!(distinct.len(), 2500);
    assert_eq!(many.len(), 2500 + expected.values().filter(|outcome| *outcome == "missing").count());
    sqlx::query("DELETE FROM verdicts WHERE job_id LIKE 'many-%'").execute(&lab.db).await.unwrap();

    let csv = lab.run(&["export", "--lag", "0s", "--format", "csv"]).await.expect_ok();
    let mut reader = csv::Reader::from_reader(csv.stdout.as_bytes());
    let metadata = reader.headers().unwrap().iter().position(|name| name == "metadata").unwrap();
    let records: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(records.len(), expected.len());
    let text: Value = serde_json::from_str(&records[0][metadata]).unwrap();
    assert_eq!(text["text"], "a,\"b\"\n");
    assert_eq!(lab.run(&["export", "--outcome", "flaged"]).await.status, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_is_applied_to_stored_scores_and_told_only_where_the_outcome_changes() {
    let (lab, listener, expected) = with_verdicts().await;
    lab.drain(&listener).await;
    let snapshot = async || -> Vec<(String, String, String)> {
        let query = "SELECT job_id, outcome, policy->>'sha256' FROM verdicts ORDER BY job_id";
        sqlx::query_as(query).fetch_all(&lab.db).await.unwrap()
    };
    let before = snapshot().await;
    let strict = ["--review-at", "0", "--flag-at", "0"];
    let dry = lab.run(&[&["rejudge", "--dry-run", "--format", "jsonl"][..], &strict].concat()).await.expect_ok();
    assert_eq!(snapshot().await, before, "a dry run writes nothing");

    let done = lab.run(&[&["rejudge", "--format", "jsonl"][..], &strict].concat()).await.expect_ok();
    assert_eq!(rows(&dry), rows(&done), "and tells what would be");
    let after = snapshot().await;
    let (in_review, ..) = before.iter().find(|(_, old, _)| old == "review").unwrap();
    let show = async || rows(&lab.run(&["show", in_review, "--format", "jsonl"]).await.expect_ok()).remove(0);
    let shown = show().await;
    assert_eq!((&shown["revision"], &shown["cause"]), (&json!(2), &json!("rejudged")));
    assert_eq!((&shown["history"][0]["revision"], &shown["history"][0]["outcome"]), (&json!(1), &json!("review")));
    assert_eq!(shown["history"][0]["judged_at"], shown["decided_at"]);
    assert_eq!(shown["announced"], "image.flagged not published yet");
    let exported = rows(&lab.run(&["export", "--lag", "0s"]).await.expect_ok());
    let exported = exported.iter().find(|row| row["job_id"] == in_review.as_str()).unwrap();
    assert_eq!((&exported["revision"], &exported["judged_at"]), (&shown["revision"], &shown["judged_at"]));
    let mut changed = 0;
    for ((job, old, _), (_, new, _)) in before.iter().zip(&after) {
        let scored = ["passed", "review", "flagged"].contains(&expected[job].as_str());
        assert_eq!(new, if scored { "flagged" } else { old }, "{job}");
        changed += usize::from(old != new);
    }
    assert!(changed > 5, "{changed}");
    let again = lab.run(&[&["rejudge", "--format", "jsonl"][..], &strict].concat()).await.expect_ok();
    assert_eq!((rows(&again).len(), snapshot().await), (0, after), "a second time changes nothing");

    // A worker that runs anyway tells of them.
    let mut worker = lab.started_worker().await;
    lab.until_published(&worker).await;
    let events = lab.drain(&listener).await;
    assert_eq!(events.len(), changed, "events only for what changed");
    assert!(show().await["announced"].as_str().unwrap().starts_with("image.flagged at 20"));
    assert!(events.iter().all(|(event, _)| event["type"] == "io.pixwarden.image.flagged.v1"));
    // Back under the first policy: told again, under ids of their own.
    let back = lab.run(&["rejudge"]).await.expect_ok();
    assert!(back.stderr.contains(&format!("{changed} with another outcome")), "{}", back.stderr);
    assert_eq!(snapshot().await, before);
    lab.until_published(&worker).await;
    let told: Vec<_> = lab.drain(&listener).await.into_iter().map(|(event, _)| event).collect();
    let passed = before.iter().filter(|(_, old, _)| old == "passed").count();
    let cleared: Vec<_> = told.iter().filter(|event| event["type"] == "io.pixwarden.image.cleared.v1").collect();
    assert_eq!((told.len(), cleared.len()), (changed, passed), "what passes again is cleared");
    assert!(cleared.iter().all(|event| event["data"]["allow"] == true && event["data"]["revision"] == 3));
    // And once more: what was told before is told again, as it is news again.
    lab.run(&[&["rejudge"][..], &strict].concat()).await.expect_ok();
    lab.until_published(&worker).await;
    let ids = |events: &[(Value, BasicProperties)]| -> std::collections::BTreeSet<String> {
        events.iter().map(|(event, _)| event["id"].as_str().unwrap().to_owned()).collect()
    };
    let again = lab.drain(&listener).await;
    assert_eq!(again.len(), changed);
    assert!(ids(&again).is_disjoint(&ids(&events)), "news, and no repetition of the old");
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_on_trial_is_compared_by_what_workers_with_it_then_say() {
    let (mut lab, _, expected) = with_verdicts().await;
    // As an operator would: a copy of the configuration with other rules, and a detector that was only shadowed.
    let rules =
        "[[policy.rules]]\ndetector = \"spread-nhwc\"\nlabel = \"by human\"\ncategory = \"a/photo\"\nflag_at = 0.5\n";
    lab.detectors = format!(
        "{{ name = \"spread-nhwc\", path = {:?}, shadow = true }}",
        crate::support::fixtures().join("detectors/spread-nhwc")
    );
    let candidate = lab.folder.path().join("candidate.toml");
    std::fs::write(&candidate, rules).unwrap();
    let compare = ["compare", "--policy", candidate.to_str().unwrap(), "--show", "1000", "--format", "jsonl"];
    let before = lab.outcomes().await;
    let compared = lab.run(&compare).await.expect_ok();
    assert_eq!(lab.outcomes().await, before);
    let compared_rows = rows(&compared);
    let of_kind = |kind: &str| compared_rows.iter().filter(|row| row["kind"] == kind).cloned().collect::<Vec<_>>();
    let scored =
        expected.values().filter(|outcome| ["passed", "review", "flagged"].contains(&outcome.as_str())).count();
    let counted: u64 = of_kind("transition").iter().map(|row| row["verdicts"].as_u64().unwrap()).sum();
    assert_eq!(counted, scored as u64, "{}", compared.stderr);
    let flagged = of_kind("transition").iter().find(|row| row["after"] == "flagged").cloned().unwrap();
    assert_eq!(flagged["category"], "a/photo");
    let [low, share, high] = ["low", "share", "high"].map(|field| flagged[field].as_f64().unwrap());
    assert!(0.0 < low && low < share && share < high && high < 1.0, "{flagged}");
    let announced = of_kind("announcement").iter().find(|row| row["routing_key"] == "image.flagged").cloned().unwrap();
    assert!(announced["after"].as_u64() > announced["before"].as_u64(), "{announced}");

    // Workers with these rules, on new jobs for the same images.
    lab.detectors = format!("{:?}", crate::support::fixtures().join("detectors/spread-nhwc"));
    lab.extra = rules.into();
    let mut worker = lab.started_worker().await;
    for i in 0..expected.len() {
        let image = format!("s3://{}/{i:03}", lab.bucket);
        lab.job(Lane::Live, json!({"id": format!("trial-{i:03}"), "image": image})).await;
    }
    lab.until("SELECT count(*) FROM verdicts", i64::try_from(2 * expected.len()).unwrap(), &worker).await;
    assert!(worker.terminate().await.success());
    let after = lab.outcomes().await;
    let changes = of_kind("change");
    for (job, outcome) in &before {
        let change = changes.iter().find(|row| row["job_id"] == job.as_str());
        let said = change.map_or(outcome.as_str(), |row| row["after"].as_str().unwrap());
        assert_eq!(after[&job.replace("job", "trial")], said, "{job}");
    }
    assert!(changes.iter().any(|row| row["before"] != row["after"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_names_the_line_of_its_file_and_scores_drift_against_a_saved_baseline() {
    let lab = Lab::new().await;
    let candidate = lab.folder.path().join("candidate.toml");
    std::fs::write(&candidate, "[[policy.rules]]\n\ndetector = \"spread-nhwc\"\nlabel = \"by IA\"\nflag_at = 0.5\n")
        .unwrap();
    let refused = lab.run(&["compare", "--policy", candidate.to_str().unwrap()]).await;
    assert_eq!(refused.status, 2);
    assert!(
        refused.stderr.contains("candidate.toml, line 1") && refused.stderr.contains("by IA"),
        "{}",
        refused.stderr
    );
    std::fs::write(&candidate, "prefix = \"x\"\n").unwrap();
    let empty = lab.run(&["compare", "--policy", candidate.to_str().unwrap()]).await;
    assert_eq!(empty.status, 2, "{}", empty.stderr);
    assert!(empty.stderr.contains("candidate.toml has no rule\n  hint:"), "{}", empty.stderr);
    let missing = lab.run(&["compare", "--policy", "nowhere.toml"]).await;
    assert_eq!(missing.status, 2);
    assert!(missing.stderr.contains("nowhere.toml") && missing.stderr.contains("hint:"), "{}", missing.stderr);

    sqlx::query(OLD_VERDICTS).bind(1500).execute(&lab.db).await.unwrap();
    let ledger = lab.ledger_as("pixwarden_operator");
    let saved = lab.run(&["compare", "--save-baseline", "--ledger", &ledger]).await.expect_ok();
    assert!(saved.stderr.contains("the scores of 2 labels are the baseline now"), "{}", saved.stderr);
    assert!(saved.stderr.contains("1500 verdicts are left out: each was scored by another model"), "{}", saved.stderr);
    let drift = async || {
        let compared = lab.run(&["compare", "--format", "jsonl"]).await.expect_ok();
        let drift: Vec<_> = rows(&compared).into_iter().filter(|row| row["kind"] == "drift").collect();
        assert_eq!(drift.len(), 2, "{}", compared.stdout);
        drift[0]["drift"].as_f64().unwrap()
    };
    assert!(drift().await.abs() < 1e-9);
    sqlx::query(
        "UPDATE verdicts SET scores = jsonb_set(scores, '{spread-nhwc,by AI}', '0.9') WHERE length(job_id) % 2 = 0",
    )
    .execute(&lab.db)
    .await
    .unwrap();
    assert!(drift().await > 0.25);
}

/// As `INSERT` and its columns, with one verdict per number from 1 to `$1`.
const OLD_VERDICTS: &str = "INSERT INTO verdicts (id, job_id, lane, bucket, key, etag, outcome, scores, detectors, policy, attempts, received_at, decided_at)
    SELECT gen_random_uuid(), 'old-' || n, 'live', CASE WHEN n % 2 = 0 THEN 'uploads' ELSE 'archive' END, 'k/' || n, 'e' || n, 'passed',
           '{\"spread-nhwc\": {\"by AI\": 0.1, \"by human\": 0.9}}', '{\"spread-nhwc\": \"an earlier digest\"}',
           '{\"name\": \"p\", \"sha256\": \"earlier\"}', 1, now(), now() - interval '400 days'
    FROM generate_series(1, $1) AS n";

#[tokio::test(flavor = "multi_thread")]
async fn prune_deletes_only_what_is_selected_and_only_on_request() {
    let lab = Lab::new().await;
    sqlx::query(OLD_VERDICTS).bind(10).execute(&lab.db).await.unwrap();
    let count = async || lab.count("SELECT count(*) FROM verdicts").await;
    let old = ["prune", "--older-than", "90d"];
    let refused = lab.run(&old).await;
    assert_eq!((refused.status, count().await), (2, 10), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("hint: count them with --dry-run, then delete them with --yes"),
        "{}",
        refused.stderr
    );
    assert_eq!(lab.run(&["prune", "--yes"]).await.status, 2, "without an age");
    for command in [&["prune", "--yes"][..], &["rejudge"], &["compare"]] {
        let backwards = lab.run(&[command, &["--since", "2026-02-01", "--until", "2026-01-01"]].concat()).await;
        assert_eq!(backwards.status, 2, "{command:?}");
        assert!(backwards.stderr.contains("is before --since 2026-02-01"), "{}", backwards.stderr);
    }

    let dry = lab.run(&[&old[..], &["--dry-run", "--bucket", "up*"]].concat()).await.expect_ok();
    assert!(dry.stderr.contains("5 verdicts would be deleted"), "{}", dry.stderr);
    for (arguments, left) in [
        (["--bucket", "another"], 10),
        (["--key-prefix", "k/1"], 8),
        (["--label", "by AI"], 8),
        (["--detector", "another"], 8),
        (["--outcome", "flagged"], 8),
        (["--until", "2001-01-01"], 8),
        (["--bucket", "uploads"], 4),
        (["--detector", "spread-nhwc"], 0),
    ] {
        lab.run(&[&old[..], &["--yes"], &arguments].concat()).await.expect_ok();
        assert_eq!(count().await, left, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_without_a_score_for_a_new_rule_never_passes_and_is_screened_again_on_request() {
    let mut lab = Lab::new().await;
    sqlx::query(OLD_VERDICTS).bind(3).execute(&lab.db).await.unwrap();
    // Its bucket is another one, and its policy has one more rule.
    lab.detectors.push_str(&format!(", {:?}", crate::support::fixtures().join("detectors/spread-nchw")));
    lab.extra = ["spread-nhwc", "spread-nchw"]
        .map(|name| {
            format!("[[policy.rules]]\ndetector = {name:?}\nlabel = \"by AI\"\nreview_at = 0.05\nflag_at = 0.9\n")
        })
        .concat();
    let unchanged =
        "SELECT count(*) FROM verdicts WHERE outcome = 'passed' AND revision = 1 AND policy->>'sha256' = 'earlier'";
    let rejudged = lab.run(&["rejudge"]).await.expect_ok();
    assert!(rejudged.stderr.contains("0 verdicts were rejudged"), "{}", rejudged.stderr);
    assert!(
        rejudged
            .stderr
            .contains("3 verdicts are unchanged: they have no score for a rule of this policy\n  hint: --enqueue"),
        "{}",
        rejudged.stderr
    );
    assert_eq!(lab.count(unchanged).await, 3);

    let lane = lab.topology.lane(Lane::Backfill);
    let filtered = ["rejudge", "--enqueue", "--bucket", "archive"];
    let dry = lab.run(&[&filtered[..], &["--dry-run"]].concat()).await.expect_ok();
    assert!(dry.stderr.contains("2 jobs would be published"), "{}", dry.stderr);
    lab.run(&filtered).await.expect_ok();
    let again = lab.run(&["rejudge", "--enqueue"]).await.expect_ok();
    assert!(again.stderr.contains("1 job published; 2 images have a job"), "{}", again.stderr);
    let mut keys: Vec<String> = Vec::new();
    for (body, _) in lab.drain(&lane).await {
        keys.push(
            format!("{}/{} {}", body["image"]["bucket"], body["image"]["key"], body["image"]["etag"]).replace('"', ""),
        );
    }
    keys.sort_unstable();
    assert_eq!(keys, ["archive/k/1 e1", "archive/k/3 e3", "uploads/k/2 e2"]);
    assert_eq!(lab.count(unchanged).await, 3);
}
