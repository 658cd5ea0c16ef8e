//! Webhooks: signed requests to a receiver, from real workers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pixwarden::config::SecretUrl;
use pixwarden::http::Scope;
use pixwarden::job::Lane;
use pixwarden::ledger::{AfterFailure, FailedAttempt, Ledger, Postgres};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::http::{Client, address};
use crate::support::{Ended, Lab, Worker, good_image, judged_fixtures, service};

/// 32 bytes that look like nothing else in a log.
const KEY: [u8; 32] = [0xb5; 32];
/// The key before it.
const OLD_KEY: [u8; 24] = [0xa7; 24];

fn secret() -> String {
    format!("whsec_{}", STANDARD.encode(KEY))
}

/// A request that the receiver got.
#[derive(Clone)]
struct Got {
    path: String,
    id: String,
    timestamp: String,
    signature: String,
    content_type: String,
    body: String,
    at: Instant,
}

impl Got {
    fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// An HTTP server that answers by path.
#[derive(Clone, Default)]
struct Receiver {
    got: Arc<Mutex<Vec<Got>>>,
    /// Statuses by path, taken one by one; the last one stays. Without any, 204.
    answers: Arc<Mutex<BTreeMap<String, Vec<u16>>>>,
    address: Option<SocketAddr>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self { address: Some(listener.local_addr().unwrap()), ..Self::default() };
        let answering = receiver.clone();
        let answer = move |uri: axum::http::Uri, headers: HeaderMap, body: String| {
            let answering = answering.clone();
            async move { answering.answer(uri.path(), &headers, body) }
        };
        drop(tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await }));
        receiver
    }

    fn answer(&self, path: &str, headers: &HeaderMap, body: String) -> (StatusCode, HeaderMap, String) {
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        self.got.lock().unwrap().push(Got {
            path: path.to_owned(),
            id: header("webhook-id"),
            timestamp: header("webhook-timestamp"),
            signature: header("webhook-signature"),
            content_type: header("content-type"),
            body,
            at: Instant::now(),
        });
        let mut answers = self.answers.lock().unwrap();
        let status = match answers.get_mut(path) {
            Some(statuses) if statuses.len() > 1 => statuses.remove(0),
            Some(statuses) => statuses[0],
            None => 204,
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, self.url("/elsewhere").parse().unwrap());
        (StatusCode::from_u16(status).unwrap(), headers, format!("the receiver\n says {status}"))
    }

    fn answers(&self, path: &str, statuses: &[u16]) {
        self.answers.lock().unwrap().insert(path.to_owned(), statuses.to_vec());
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address.unwrap())
    }

    fn at(&self, path: &str) -> Vec<Got> {
        self.got.lock().unwrap().iter().filter(|got| got.path == path).cloned().collect()
    }

    /// Waits until a path has got at least so many requests.
    async fn until(&self, path: &str, at_least: usize, worker: &Worker) -> Vec<Got> {
        let since = Instant::now();
        loop {
            let got = self.at(path);
            if got.len() >= at_least {
                return got;
            }
            assert!(
                since.elapsed() < Duration::from_secs(120),
                "{} requests instead of {at_least} at {path}\n{}",
                got.len(),
                worker.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A table of `[[webhooks]]`.
fn webhook(name: &str, url: &str, more: &str) -> String {
    format!("[[webhooks]]\nname = {name:?}\nurl = {url:?}\nsecret = {:?}\n{more}\n", secret())
}

/// HMAC-SHA256 by its definition in RFC 2104.
fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    let pad = |byte: u8| -> Vec<u8> { (0..64).map(|i| key.get(i).copied().unwrap_or(0) ^ byte).collect() };
    let inner = Sha256::digest([pad(0x36), message.as_bytes().to_vec()].concat());
    Sha256::digest([pad(0x5c), inner.to_vec()].concat()).to_vec()
}

fn assert_is_signed(got: &Got) {
    assert_is_signed_with(got, &[&KEY]);
}

fn assert_is_signed_with(got: &Got, keys: &[&[u8]]) {
    let message = format!("{}.{}.{}", got.id, got.timestamp, got.body);
    let signatures: Vec<_> = keys.iter().map(|key| format!("v1,{}", STANDARD.encode(hmac(key, &message)))).collect();
    assert_eq!(got.signature, signatures.join(" "));
    let age = time::OffsetDateTime::now_utc().unix_timestamp() - got.timestamp.parse::<i64>().unwrap();
    assert!((-1..120).contains(&age), "{age}");
}

/// An image that is flagged.
fn flagged_image() -> Vec<u8> {
    judged_fixtures().into_iter().find(|fixture| fixture.outcome == "flagged").unwrap().bytes
}

async fn screen(lab: &Lab, id: &str, bytes: Vec<u8>) {
    lab.put(id, bytes).await;
    lab.job(Lane::Live, json!({"id": id, "image": format!("s3://{}/{id}", lab.bucket)})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_sent_signed_and_an_endpoint_gets_only_what_it_asked_for() {
    let (mut lab, receiver) = (Lab::new().await, Receiver::start().await);
    // Nothing but failures is published: what a webhook gets is its own list.
    lab.extra = format!(
        "{}{}{}[events]\npublish = [\"image.failed\"]",
        webhook("all", &receiver.url("/all"), ""),
        webhook(
            "passed",
            &receiver.url("/passed?token=t0ken"),
            &format!("events = [\"image.passed\"]\nold_secret = \"whsec_{}\"", STANDARD.encode(OLD_KEY)),
        ),
        webhook("failures", &receiver.url("/failures"), "events = [\"image.failed\"]"),
    );
    let mut worker = lab.started_worker().await;
    screen(&lab, "flagged", flagged_image()).await;
    screen(&lab, "passes", good_image()).await;
    lab.job(Lane::Live, json!({"id": "absent", "image": format!("s3://{}/absent", lab.bucket)})).await;
    let all = receiver.until("/all", 2, &worker).await;
    let passed = receiver.until("/passed", 1, &worker).await;
    receiver.until("/failures", 1, &worker).await;
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL", 4, &worker).await;

    let subjects = |got: &[Got]| {
        let mut types: Vec<_> = got.iter().map(|got| got.event()["type"].as_str().unwrap().to_owned()).collect();
        types.sort();
        types
    };
    assert_eq!(subjects(&all), ["io.pixwarden.image.flagged.v1", "io.pixwarden.image.missing.v1"]);
    assert_eq!(subjects(&passed), ["io.pixwarden.image.passed.v1"]);
    for got in receiver.got.lock().unwrap().iter() {
        // While its secret is changed, an endpoint gets a signature by each.
        assert_is_signed_with(got, if got.path == "/passed" { &[&KEY, &OLD_KEY] } else { &[&KEY] });
        let event = got.event();
        assert_eq!((&event["id"], got.content_type.as_str()), (&json!(got.id), "application/cloudevents+json"));
        assert_eq!(event["data"]["restricted"], json!(false));
    }
    // What was sent is what is stored, byte for byte, and the outbox has the one key that is published.
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT payload FROM webhook_deliveries").fetch_all(&lab.db).await.unwrap();
    assert!(all.iter().all(|got| stored.contains(&got.body)));
    assert_eq!(lab.count("SELECT count(*) FROM outbox").await, 1);
    // The same event has the same id everywhere.
    let outbox: uuid::Uuid = sqlx::query_scalar("SELECT event_id FROM outbox").fetch_one(&lab.db).await.unwrap();
    assert_eq!(receiver.at("/failures")[0].id, outbox.to_string());

    // The library of the specification accepts them, and refuses another body.
    let program = "import json, sys\nfrom standardwebhooks import Webhook, WebhookVerificationError\n\
                   requests = json.load(sys.stdin)\n\
                   for secret, headers, body in requests:\n    Webhook(secret).verify(body, headers)\n    \
                   try:\n        Webhook(secret).verify(body + ' ', headers)\n    \
                   except WebhookVerificationError:\n        continue\n    sys.exit('accepted')\nprint(len(requests))\n";
    let old_secret = format!("whsec_{}", STANDARD.encode(OLD_KEY));
    let by_secret = all.iter().chain(&passed).map(|got| (secret(), got));
    let requests: Vec<_> = by_secret
        .chain(passed.iter().map(|got| (old_secret.clone(), got)))
        .map(|(secret, got)| {
            let (id, at, signature) = (&got.id, &got.timestamp, &got.signature);
            json!([secret, {"webhook-id": id, "webhook-timestamp": at, "webhook-signature": signature}, got.body])
        })
        .collect();
    let input = lab.folder.path().join("requests.json");
    std::fs::write(&input, json!(requests).to_string()).unwrap();
    let mut verify = Command::new(service("TEST_PYTHON"));
    verify.args(["-c", program]).stdin(std::fs::File::open(&input).unwrap()).kill_on_drop(true);
    assert_eq!(Ended::of(verify).await.expect_ok().stdout, "4\n");

    let scrape = worker.get("/metrics").await.1;
    for line in [
        r#"pixwarden_webhook_attempts_total{endpoint="all",result="delivered"} 2"#,
        r#"pixwarden_webhook_attempts_total{endpoint="all",result="failed"} 0"#,
        r#"pixwarden_webhook_waiting{endpoint="passed"}"#,
        r#"pixwarden_webhook_oldest_seconds{endpoint="failures"}"#,
    ] {
        assert!(scrape.contains(line), "{line}\n{scrape}");
    }
    assert!(worker.terminate().await.success());
    let log = std::fs::read_to_string(lab.folder.path().join("worker.log")).unwrap();
    assert!(
        !log.contains(&STANDARD.encode(KEY))
            && !log.contains(&STANDARD.encode(OLD_KEY))
            && !log.contains("t0ken")
            && !log.contains("without encryption"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_repeated_a_redirect_is_one_and_a_dead_endpoint_delays_no_other() {
    let (mut lab, receiver) = (Lab::new().await, Receiver::start().await);
    receiver.answers("/flaky", &[500, 204]);
    receiver.answers("/moved", &[307]);
    receiver.answers("/gone", &[410]);
    lab.extra = ["flaky", "moved", "gone"].map(|name| webhook(name, &receiver.url(&format!("/{name}")), "")).concat();
    // Nothing listens at this port.
    lab.extra += &webhook("dead", "http://127.0.0.1:1/", "");
    let worker = lab.started_worker().await;
    screen(&lab, "flagged", flagged_image()).await;
    let flaky = receiver.until("/flaky", 2, &worker).await;
    assert_eq!((&flaky[0].id, &flaky[0].body), (&flaky[1].id, &flaky[1].body));
    assert!(flaky[1].at.duration_since(flaky[0].at) > Duration::from_secs(2), "there is a pause");
    flaky.iter().for_each(assert_is_signed);
    lab.until(
        "SELECT count(*) FROM webhook_deliveries WHERE endpoint = 'flaky' AND delivered_at IS NOT NULL",
        1,
        &worker,
    )
    .await;
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE last_error IS NOT NULL", 3, &worker).await;
    let errors: BTreeMap<String, (Option<i32>, String)> = sqlx::query_as::<_, (String, Option<i32>, String)>(
        "SELECT endpoint, last_status, last_error FROM webhook_deliveries WHERE last_error IS NOT NULL",
    )
    .fetch_all(&lab.db)
    .await
    .unwrap()
    .into_iter()
    .map(|(endpoint, status, error)| (endpoint, (status, error)))
    .collect();
    assert_eq!(errors["moved"], (Some(307), "HTTP status 307: redirects are not followed".into()));
    assert_eq!(errors["gone"], (Some(410), "HTTP status 410: the endpoint is gone".into()));
    assert!(errors["dead"].0.is_none() && errors["dead"].1.contains("onnection refused"), "{errors:?}");
    assert_eq!(receiver.at("/elsewhere").len(), 0, "a redirect was followed");
    // What fails is listed, with what the receiver has said.
    receiver.answers("/flaky", &[503]);
    screen(&lab, "another", flagged_image()).await;
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE endpoint = 'flaky' AND last_status = 503", 1, &worker)
        .await;
    let listed = lab.run(&["webhook", "list", "--pending", "--endpoint", "flaky"]).await.expect_ok();
    let row: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(
        (&row["state"], &row["status"], &row["routing_key"]),
        (&json!("pending"), &json!(503), &json!("image.flagged"))
    );
    assert_eq!(row["error"], "HTTP status 503, \"the receiver says 503\"");
    assert_eq!(lab.run(&["webhook", "list", "--failed"]).await.expect_ok().stdout, "");
    // An endpoint that is gone gets nothing more from this process.
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE endpoint = 'gone'", 2, &worker).await;
    assert_eq!(receiver.at("/gone").len(), 1);
    assert!(worker.log_has("its endpoint is gone"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_killed_processes_held_arrives_and_two_workers_lose_nothing() {
    let (mut lab, receiver) = (Lab::new().await, Receiver::start().await);
    lab.extra =
        webhook("all", &receiver.url("/all"), "events = [\"image.passed\", \"image.flagged\", \"image.review\"]");
    // It dies when an endpoint has accepted an event, before that is recorded.
    lab.environment = vec![("TEST_CRASH", "webhook:1".into())];
    let mut first = lab.started_worker().await;
    screen(&lab, "one", flagged_image()).await;
    let status = tokio::time::timeout(Duration::from_secs(60), first.child.wait()).await.unwrap().unwrap();
    assert!(!status.success());
    assert_eq!(receiver.at("/all").len(), 1);
    assert_eq!(lab.count("SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NULL").await, 1);
    // And one that a worker without the endpoint has committed is killed before it is sent.
    lab.environment.clear();
    let extra = std::mem::take(&mut lab.extra);
    lab.extra = extra.replace(&receiver.url("/all"), "http://127.0.0.1:1/");
    let mut second = lab.started_worker().await;
    screen(&lab, "two", flagged_image()).await;
    lab.until("SELECT count(*) FROM webhook_deliveries", 2, &second).await;
    second.kill().await;

    lab.extra = extra;
    // Their leases would end after a minute; the retry after seconds.
    sqlx::query("UPDATE webhook_deliveries SET due_at = now()").execute(&lab.db).await.unwrap();
    let (mut a, mut b) = (lab.started_worker().await, lab.worker());
    for i in 0..40 {
        screen(&lab, &format!("more-{i}"), good_image()).await;
    }
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL", 42, &a).await;
    let mut ids: BTreeMap<String, usize> = BTreeMap::new();
    for got in receiver.at("/all") {
        *ids.entry(got.id).or_default() += 1;
    }
    assert_eq!(ids.len(), 42);
    let sent_twice = ids.values().filter(|times| **times > 1).count();
    assert_eq!(sent_twice, 1, "only what was sent before a crash is sent again: {ids:?}");
    assert!(a.terminate().await.success());
    assert!(b.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_a_later_judgement_makes_wrong_is_not_sent_and_a_rejudge_sends_its_own() {
    let (mut lab, receiver) = (Lab::new().await, Receiver::start().await);
    receiver.answers("/all", &[500]);
    lab.extra = webhook("all", &receiver.url("/all"), "");
    let mut worker = lab.started_worker().await;
    screen(&lab, "flagged", flagged_image()).await;
    receiver.until("/all", 1, &worker).await;
    assert!(worker.terminate().await.success());
    let first: uuid::Uuid =
        sqlx::query_scalar("SELECT event_id FROM webhook_deliveries").fetch_one(&lab.db).await.unwrap();
    // Nothing is flagged any more. The command has the endpoint configured as the worker has.
    lab.run(&["rejudge", "--review-at", "1", "--flag-at", "1"]).await.expect_ok();
    let rows: Vec<(uuid::Uuid, String)> =
        sqlx::query_as("SELECT event_id, routing_key FROM webhook_deliveries").fetch_all(&lab.db).await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert!(rows[0].0 != first && rows[0].1 == "image.cleared", "{rows:?}");
    receiver.answers("/all", &[204]);
    let mut worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL", 1, &worker).await;
    let last = receiver.at("/all").pop().unwrap();
    assert_eq!((last.id.clone(), last.event_type()), (rows[0].0.to_string(), "io.pixwarden.image.cleared.v1".into()));
    assert!(worker.terminate().await.success());
    // A configuration without webhooks deletes what is wrong as well.
    receiver.answers("/all", &[500]);
    sqlx::query("UPDATE webhook_deliveries SET delivered_at = NULL").execute(&lab.db).await.unwrap();
    lab.extra.clear();
    lab.run(&["rejudge"]).await.expect_ok();
    assert_eq!(lab.count("SELECT count(*) FROM webhook_deliveries").await, 0);
}

impl Got {
    fn event_type(&self) -> String {
        self.event()["type"].as_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_listed_and_replayed_and_erase_and_prune_remove_it() {
    let (mut lab, receiver) = (Lab::new().await, Receiver::start().await);
    receiver.answers("/all", &[500]);
    lab.extra = webhook("all", &receiver.url("/all"), "");
    let mut worker = lab.started_worker().await;
    for id in ["a", "b", "c"] {
        screen(&lab, id, flagged_image()).await;
    }
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE last_status = 500", 3, &worker).await;
    // The last attempt of each.
    sqlx::query("UPDATE webhook_deliveries SET attempts = 12, due_at = now()").execute(&lab.db).await.unwrap();
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE given_up_at IS NOT NULL", 3, &worker).await;
    assert!(worker.log_has("webhook given up"), "{}", worker.log());
    assert!(worker.get("/metrics").await.1.contains(r#"{endpoint="all",result="given_up"} 3"#));
    let listed = lab.run(&["webhook", "list", "--failed", "--limit", "2"]).await.expect_ok();
    let rows: Vec<Value> = listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    assert!(listed.stderr.contains("there are more"), "{}", listed.stderr);
    assert!(rows.iter().all(|row| row["state"] == "failed" && row["attempts"] == 13), "{rows:?}");

    receiver.answers("/all", &[204]);
    let id = rows[0]["id"].to_string();
    let replayed = lab.run(&["webhook", "replay", &id]).await.expect_ok();
    assert!(replayed.stderr.contains("1 event is sent again"), "{}", replayed.stderr);
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL", 1, &worker).await;
    let unknown = lab.run(&["webhook", "replay", &id, "4000000"]).await;
    assert!(
        unknown.status == 1 && unknown.stderr.contains("1 id does not exist; 1 event is sent again\n  hint: "),
        "{}",
        unknown.stderr
    );
    let other = lab.run(&["webhook", "replay", "--failed", "--endpoint", "other"]).await.expect_ok();
    assert!(other.stderr.contains("0 events are sent again"), "{}", other.stderr);
    lab.run(&["webhook", "replay", "--failed", "--endpoint", "all"]).await.expect_ok();
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL", 3, &worker).await;
    // A receiver that has lost everything gets everything again, under the same ids.
    let before = receiver.at("/all").len();
    lab.run(&["webhook", "replay", "--since", "2026-01-01", "--endpoint", "all"]).await.expect_ok();
    let again = receiver.until("/all", before + 3, &worker).await;
    let ids = |got: &[Got]| got.iter().map(|got| got.id.clone()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&again[before..]), ids(&again));
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL", 3, &worker).await;
    assert!(worker.terminate().await.success());

    // What waits keeps its verdict; what was delivered goes with it.
    sqlx::query("UPDATE webhook_deliveries SET delivered_at = NULL WHERE verdict_id = (SELECT id FROM verdicts WHERE job_id = 'a')")
        .execute(&lab.db)
        .await
        .unwrap();
    let pruned = lab.run(&["prune", "--until", "2099-01-01", "--yes"]).await.expect_ok();
    assert!(
        pruned.stderr.contains("2 verdicts deleted; 1 stays, because its event is not published yet"),
        "{}",
        pruned.stderr
    );
    assert_eq!(lab.count("SELECT count(*) FROM webhook_deliveries").await, 1);
    let erased = lab.run(&["erase", "--image", &format!("s3://{}/a", lab.bucket), "--yes"]).await.expect_ok();
    assert!(erased.stdout.contains(r#"{"table":"webhook_deliveries","deleted":1}"#), "{}", erased.stdout);
    assert_eq!(lab.count("SELECT count(*) FROM webhook_deliveries").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_tested_and_checked_without_an_event_of_an_image() {
    let (mut lab, receiver) = (Lab::new().await, Receiver::start().await);
    receiver.answers("/moved", &[308]);
    receiver.answers("/closed", &[401]);
    lab.extra = ["good", "moved", "closed"].map(|name| webhook(name, &receiver.url(&format!("/{name}")), "")).concat();
    let tested = lab.run(&["webhook", "test", "good", "--log", "trace"]).await.expect_ok();
    let bytes: Vec<String> = KEY.iter().map(ToString::to_string).collect();
    for form in [STANDARD.encode(KEY), bytes.join(", "), hex::encode(KEY)] {
        assert!(!format!("{}{}", tested.stdout, tested.stderr).contains(&form), "{}", tested.stderr);
    }
    let row: Value = serde_json::from_str(&tested.stdout).unwrap();
    assert_eq!((&row["endpoint"], &row["status"]), (&json!("good"), &json!(204)));
    let got = receiver.at("/good").remove(0);
    assert_is_signed(&got);
    assert_eq!((json!(got.id), got.event()["type"].as_str()), (row["event_id"].clone(), Some("io.pixwarden.test.v1")));
    for (name, words) in [
        ("moved", "HTTP status 308: redirects are not followed"),
        ("moved", "hint: write the address that it redirects to into `url`"),
        ("closed", "HTTP status 401, \"the receiver says 401\""),
        ("closed", "hint: check that the receiver has the same secret"),
    ] {
        let failed = lab.run(&["webhook", "test", name]).await;
        assert!(failed.status == 1 && failed.stderr.contains(words), "{}", failed.stderr);
    }
    let unknown = lab.run(&["webhook", "test", "gud"]).await;
    assert!(
        unknown.status == 2 && unknown.stderr.contains("hint: the webhooks are \"good\", \"moved\", \"closed\""),
        "{}",
        unknown.stderr
    );

    let before = receiver.at("/good").len();
    let checked = lab.run(&["check", "--log", "off"]).await.expect_ok().stdout;
    assert!(
        checked.contains(&format!("ok      webhooks   good: http://{} responds", receiver.address.unwrap())),
        "{checked}"
    );
    let probes: Vec<_> = receiver.at("/good").split_off(before);
    assert!(probes.iter().all(|probe| probe.id.is_empty() && probe.body.is_empty()), "no event");
    lab.extra = webhook("dead", "http://127.0.0.1:1/", "");
    let checked = lab.run(&["check", "--log", "off"]).await;
    assert!(
        checked.status == 1 && checked.stdout.contains("dead: cannot reach http://127.0.0.1:1: "),
        "{}",
        checked.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_in_a_file_refuses_webhooks_and_a_wrong_entry_is_named() {
    let mut lab = Lab::new().await;
    lab.extra = webhook("a", "https://127.0.0.1:1/", "");
    lab.ledger_url = format!("sqlite://{}", lab.folder.path().join("ledger.db").display());
    lab.run(&["migrate"]).await.expect_ok();
    for command in [&["worker"][..], &["rejudge"], &["webhook", "list"]] {
        let refused = lab.run(command).await;
        assert!(
            refused.status == 2 && refused.stderr.contains("webhooks need PostgreSQL"),
            "{command:?}: {}",
            refused.stderr
        );
    }
    lab.extra = format!("[[webhooks]]\nurl = \"https://h/\"\nsecret = \"{}\"", &secret()[..40]);
    let refused = lab.run(&["worker"]).await;
    assert!(refused.status == 2 && refused.stderr.contains("`webhooks[0].secret`"), "{}", refused.stderr);
    assert!(!refused.stderr.contains(&secret()[6..40]), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_a_queue_sends_what_it_has_screened_over_http() {
    let (mut lab, receiver) = (Lab::new().await, Receiver::start().await);
    let (key, table) = crate::http::key("app", &[Scope::Admin], "");
    lab.extra = format!("[http]\nlisten = \"127.0.0.1:0\"\n{table}{}", webhook("all", &receiver.url("/all"), ""));
    lab.environment = vec![("PIXWARDEN_QUEUE", String::new())];
    let mut serve = lab.process("serve.log", &lab.config(), &["serve"]);
    let client = Client::new(&address(&serve).await, &key);
    assert_eq!(client.screen(flagged_image()).await.status, 200);
    let got = receiver.until("/all", 1, &serve).await.remove(0);
    assert_is_signed(&got);
    assert_eq!(got.event_type(), "io.pixwarden.image.flagged.v1");
    assert!(serve.terminate().await.success(), "{}", serve.log());
    assert_eq!(lab.count("SELECT count(*) FROM outbox").await, 0, "there is no broker");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_webhook_of_each_answer_before_a_kill_arrives() {
    let (mut lab, receiver) = (Lab::new().await, Receiver::start().await);
    let every = "events = [\"image.flagged\", \"image.review\", \"image.failed\", \"image.noted\", \"image.cleared\", \"image.passed\"]";
    lab.extra = webhook("all", &receiver.url("/all"), every);
    let (mut worker, client) = crate::http::worker_with_http(&mut lab, "").await;
    let answered = Arc::new(Mutex::new(Vec::new()));
    let senders: Vec<_> = (0..4)
        .map(|sender| {
            let (client, answered) = (client.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                for (index, fixture) in judged_fixtures().iter().cycle().enumerate() {
                    // The kill ends the connection, and with it this task.
                    let keyed = client.with("idempotency-key", &format!("{sender}-{index}"));
                    let answer = keyed.screen(fixture.bytes.clone()).await;
                    if answer.status == 200 {
                        answered.lock().unwrap().push(answer.json()["verdict_id"].as_str().unwrap().to_owned());
                    }
                }
            })
        })
        .collect();
    while answered.lock().unwrap().len() < 40 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    worker.kill().await;
    for sender in senders {
        assert!(sender.await.unwrap_err().is_panic(), "the worker answered after its end");
    }
    // Their leases would end after a minute.
    sqlx::query("UPDATE webhook_deliveries SET due_at = now()").execute(&lab.db).await.unwrap();
    let worker = lab.started_worker().await;
    let verdicts = lab.count("SELECT count(*) FROM verdicts").await;
    lab.until("SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL", verdicts, &worker).await;
    let arrived: std::collections::BTreeSet<_> =
        receiver.at("/all").iter().map(|got| got.event()["data"]["verdict_id"].as_str().unwrap().to_owned()).collect();
    let answered = answered.lock().unwrap();
    assert!(answered.len() >= 40);
    for verdict in answered.iter() {
        assert!(arrived.contains(verdict), "{verdict} was answered and its webhook has not arrived");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_share_what_is_due_and_what_has_waited_too_long_is_given_up() {
    let lab = Lab::new().await;
    let postgres: Arc<dyn Ledger> = Arc::new(Postgres::open(&SecretUrl::from(lab.ledger_url.clone())).await.unwrap());
    let ledger = postgres.webhooks().unwrap();
    let fill = "INSERT INTO webhook_deliveries (endpoint, event_id, verdict_id, routing_key, payload)
                SELECT endpoint, gen_random_uuid(), gen_random_uuid(), 'image.flagged', '{}'
                FROM generate_series(1, 100), UNNEST(ARRAY['a', 'b', 'removed']) AS endpoint";
    sqlx::query(fill).execute(&lab.db).await.unwrap();
    let leasing = (0..4).map(|_| {
        let ledger = Arc::clone(&ledger);
        tokio::spawn(async move {
            let mut leased = Vec::new();
            loop {
                let more = ledger.lease_deliveries("a", 7).await.unwrap();
                if more.is_empty() {
                    return leased;
                }
                leased.extend(more);
            }
        })
    });
    let mut leased =
        futures_util::future::join_all(leasing).await.into_iter().flat_map(Result::unwrap).collect::<Vec<_>>();
    leased.sort_by_key(|delivery| delivery.id);
    leased.dedup_by_key(|delivery| delivery.id);
    assert_eq!(leased.len(), 100);
    assert!(leased.iter().all(|delivery| delivery.attempts == 1 && delivery.payload == "{}"));
    let lease =
        "SELECT count(*) FROM webhook_deliveries WHERE endpoint = 'a' AND due_at > now() + interval '30 seconds'";
    assert_eq!(lab.count(lease).await, 100);

    // A process whose lease has ended does not overwrite what came later.
    let failed =
        |attempts, next| FailedAttempt { id: leased[0].id, attempts, status: Some(500), error: "e".into(), next };
    ledger.record_failure(&failed(2, AfterFailure::GiveUp)).await.unwrap();
    assert_eq!(lab.count("SELECT count(*) FROM webhook_deliveries WHERE last_error IS NOT NULL").await, 0);
    ledger.record_failure(&failed(1, AfterFailure::RetryIn(Duration::from_secs(7200)))).await.unwrap();
    let later =
        "SELECT count(*) FROM webhook_deliveries WHERE last_status = 500 AND due_at > now() + interval '1 hour'";
    assert_eq!(lab.count(later).await, 1);
    ledger.mark_delivered(leased[1].id, 204).await.unwrap();
    ledger.record_failure(&FailedAttempt { id: leased[1].id, ..failed(1, AfterFailure::GiveUp) }).await.unwrap();
    let delivered = "SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL AND given_up_at IS NULL";
    assert_eq!(lab.count(delivered).await, 1);

    // Only what has waited for more than 80 hours is given up.
    let older = "UPDATE webhook_deliveries SET waiting_since = now() - interval '81 hours' WHERE id % 2 = 0";
    sqlx::query(older).execute(&lab.db).await.unwrap();
    let old = lab.count("SELECT count(*) FROM webhook_deliveries WHERE endpoint = 'b' AND id % 2 = 0").await;
    assert_eq!(i64::try_from(ledger.give_up_waiting("b", "too long").await.unwrap()).unwrap(), old);
    let configured = ["a".to_owned(), "b".to_owned()];
    let orphans = lab.count("SELECT count(*) FROM webhook_deliveries WHERE endpoint = 'removed' AND id % 2 = 0").await;
    assert_eq!(i64::try_from(ledger.give_up_orphans(&configured, "none").await.unwrap()).unwrap(), orphans);
    let waiting = ledger.count_waiting(&["b".to_owned(), "none".to_owned()]).await.unwrap();
    assert_eq!(i64::try_from(waiting[0].deliveries).unwrap(), 100 - old);
    assert_eq!((waiting[1].deliveries, waiting[1].oldest), (0, Duration::ZERO));

    // What was delivered is deleted after its time.
    assert_eq!(ledger.prune_deliveries(Duration::from_secs(3600), 10).await.unwrap(), 0);
    assert_eq!(ledger.prune_deliveries(Duration::ZERO, 10).await.unwrap(), 1);
}
