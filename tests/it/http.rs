//! Images over HTTP, from a worker beside the queue and from `serve`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use pixwarden::http::{Scope, new_key, routes};
use pixwarden::job::Lane;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Lab, Worker, fixtures, good_image, judged_fixtures, service};

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A process that is asked over HTTP.
#[derive(Clone)]
pub(crate) struct Client {
    pub address: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Client {
    /// With a key.
    pub(crate) fn new(address: &str, key: &str) -> Self {
        Self { address: address.to_owned(), headers: vec![("authorization".into(), format!("Bearer {key}"))] }
    }

    fn anonymous(address: &str) -> Self {
        Self { address: address.to_owned(), headers: Vec::new() }
    }

    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.push((name.into(), value.into()));
        Self { headers, ..self.clone() }
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        let (client, body) = (self.clone(), body.into());
        let (method, path) = (method.to_owned(), path.to_owned());
        tokio::task::spawn_blocking(move || client.send_blocking(&method, &path, &body)).await.unwrap()
    }

    fn send_blocking(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let agent = ureq::Agent::new_with_config(
            ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).build(),
        );
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let mut response = agent.run(request.body(body).unwrap()).unwrap();
        let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap().to_owned();
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            text: response.body_mut().read_to_string().unwrap(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, Vec::new()).await
    }

    pub async fn screen(&self, bytes: Vec<u8>) -> Answer {
        self.send("POST", "/v1/screen", bytes).await
    }
}

/// A key, and its table for the configuration.
pub(crate) fn key(name: &str, scopes: &[Scope], more: &str) -> (String, String) {
    let new = new_key();
    let scopes: Vec<_> = scopes.iter().map(|scope| format!("\"{}\"", scope.as_str())).collect();
    let scopes = scopes.join(", ");
    (new.key, format!("[[http.keys]]\nname = \"{name}\"\nsha256 = \"{}\"\nscopes = [{scopes}]\n{more}\n", new.sha256))
}

/// The address at which a process answers. Waits until its log has it.
pub async fn address(process: &Worker) -> String {
    let since = Instant::now();
    loop {
        let text = process.whole_log();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if let Some(line) = lines.rfind(|line| line["message"] == "images are screened over HTTP") {
            return line["address"].as_str().unwrap().to_owned();
        }
        assert!(since.elapsed() < Duration::from_secs(60), "no HTTP:\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A worker that also answers HTTP, with one key for all scopes.
pub(crate) async fn worker_with_http(lab: &mut Lab, http: &str) -> (Worker, Client) {
    let (key, table) = key("app", &[Scope::Admin], "");
    lab.extra.push_str(&format!("\n[http]\nlisten = \"127.0.0.1:0\"\n{http}\n{table}"));
    let worker = lab.started_worker().await;
    let client = Client::new(&address(&worker).await, &key);
    (worker, client)
}

fn multipart(parts: &[(&str, &str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file, content) in parts {
        let file = if file.is_empty() { String::new() } else { format!("; filename=\"{file}\"") };
        body.extend(format!("--boundary\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes());
        body.extend_from_slice(content);
        body.extend(b"\r\n");
    }
    body.extend(b"--boundary--\r\n");
    body
}

#[tokio::test]
async fn the_same_bytes_give_the_same_verdict_by_queue_scan_and_http() {
    let mut lab = Lab::new().await;
    lab.extra.push_str("\n[worker]\nreuse_scores = false\n");
    let (worker, client) = worker_with_http(&mut lab, "").await;
    let fixtures = judged_fixtures();
    for (index, fixture) in fixtures.iter().enumerate() {
        let key = format!("{index}.image");
        std::fs::write(lab.folder.path().join(&key), &fixture.bytes).unwrap();
        lab.put(&key, fixture.bytes.clone()).await;
        let id = format!("queue-{index}");
        lab.job(Lane::Live, json!({"id": id, "image": format!("s3://{}/{key}", lab.bucket)})).await;
    }
    let mut answers = Vec::new();
    for (index, fixture) in fixtures.iter().enumerate() {
        let answer = client.with("idempotency-key", &index.to_string()).screen(fixture.bytes.clone()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answers.push(answer.json());
    }
    lab.until_settled(&worker).await;
    let mut scan = lab.command();
    scan.args(["scan", "--format", "jsonl", "--label", "by AI", "--detector"]);
    scan.arg(crate::support::fixtures().join("detectors/spread-nhwc"));
    scan.args((0..fixtures.len()).map(|index| format!("{index}.image")));
    let scanned = crate::support::Ended::of(scan).await.expect_ok().stdout;
    let scanned: Vec<Value> = scanned.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(scanned.len(), fixtures.len());
    for (index, fixture) in fixtures.iter().enumerate() {
        let (answer, scanned) = (&answers[index], &scanned[index]);
        let queued = client.get(&format!("/v1/verdicts/queue-{index}")).await.json();
        assert_eq!(answer["outcome"], fixture.outcome, "{answer}");
        for field in ["outcome", "allow", "reason", "label", "score", "scores", "findings", "damage", "format", "width"]
        {
            assert_eq!(answer[field], queued[field], "{field} of {index}");
            assert_eq!(answer[field], scanned[field], "{field} of {index}");
        }
        let sha256 = hex::encode(Sha256::digest(&fixture.bytes));
        assert_eq!(answer["image"]["bucket"], "inline:sha256");
        assert_eq!(answer["image"]["key"], sha256.as_str());
        assert_eq!(answer["job_id"], format!("app:{index}"));
    }
    // All three are in the same ledger, with their events.
    let rows = i64::try_from(2 * fixtures.len()).unwrap();
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, rows);
    lab.until_published(&worker).await;
    let events = "SELECT count(*) FROM outbox WHERE (payload->'data'->'image'->>'bucket') = 'inline:sha256'";
    let announced = fixtures.iter().filter(|fixture| fixture.outcome != "passed").count();
    assert_eq!(lab.count(events).await, i64::try_from(announced).unwrap());
}

#[tokio::test]
async fn an_image_is_taken_in_every_form_and_bad_input_is_told_what_is_wrong() {
    let mut lab = Lab::new().await;
    let (_worker, client) = worker_with_http(&mut lab, "").await;
    let image = good_image();
    let form = client.with("content-type", "multipart/form-data; boundary=boundary");
    let sent = form.send(
        "POST",
        "/v1/screen",
        multipart(&[
            ("metadata", "", br#"{"user": "u-7"}"#),
            ("image", "a.png", &image),
            ("detectors", "", br#"["spread-nhwc"]"#),
        ]),
    );
    let answer = sent.await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!((&answer.json()["metadata"], &answer.json()["allow"]), (&json!({"user": "u-7"}), &json!(true)));
    assert!(answer.json()["job_id"].as_str().unwrap().starts_with("app:"), "{answer:?}");

    // Larger than what a server of this kind takes by default. What follows an image changes no pixel.
    let large = [&image[..], &vec![0; 5 << 20]].concat();
    let answer = form.send("POST", "/v1/screen", multipart(&[("image", "a.png", &large)])).await;
    assert_eq!((answer.status, &answer.json()["bytes"]), (200, &json!(large.len())), "{answer:?}");

    lab.put("a b.png", image.clone()).await;
    let json_client = client.with("content-type", "application/json; charset=utf-8");
    let by_reference = |body: Value| {
        let client = json_client.clone();
        async move { client.send("POST", "/v1/screen?include=stages", body.to_string()).await }
    };
    let uri = format!("s3://{}/a b.png", lab.bucket);
    let answer = by_reference(json!({"image": uri, "id": "7"})).await;
    assert_eq!((answer.status, &answer.json()["job_id"]), (200, &json!("app:7")), "{answer:?}");
    assert_eq!(answer.json()["image"]["key"], "a b.png");
    let answer = by_reference(json!({"image": format!("s3://{}/none", lab.bucket)})).await;
    assert_eq!(
        (answer.status, &answer.json()["outcome"], &answer.json()["allow"]),
        (200, &json!("missing"), &json!(false))
    );
    assert!(answer.json()["stages_ms"]["fetch"].as_f64().is_some(), "{answer:?}");
    let answer = by_reference(json!({"image": "s3://elsewhere/k"})).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("rejected")), "{answer:?}");
    // What is no image has a verdict too.
    let answer = client.screen(b"<html>".to_vec()).await;
    assert_eq!(
        (answer.status, &answer.json()["outcome"], &answer.json()["allow"]),
        (200, &json!("undecodable"), &json!(false))
    );

    let pictures = client.send("POST", "/v1/screen?include=pictures,stages", image.clone()).await.json();
    let picture = pictures["pictures"][0]["picture"].as_str().unwrap();
    assert!(picture.starts_with("data:image/png;base64,"), "{picture}");
    assert!(pictures["stages_ms"]["decode"].as_f64().unwrap() > 0.0, "{pictures}");

    let refused = [
        (client.send("POST", "/v1/screen?include=all", image.clone()).await, 400, "stages and pictures"),
        (client.send("POST", "/v1/screen?deep=1", image.clone()).await, 400, "deep=1"),
        (client.with("x-timeout-ms", "soon").screen(image.clone()).await, 400, "X-Timeout-Ms"),
        (by_reference(json!({"key": "a"})).await, 400, "no `image`"),
        (by_reference(json!({"image": uri, "detectors": ["x"], "other": 1})).await, 400, "unknown key"),
        (by_reference(json!({"image": "inline:sha256/ab"})).await, 400, ""),
        (by_reference(json!({"image": {"bucket": "inline:sha256", "key": "ab"}})).await, 422, "no bucket"),
        (json_client.send("POST", "/v1/screen", "{").await, 400, "not JSON"),
        (json_client.send("POST", "/v1/screen", vec![b' '; 70_000]).await, 413, "bytes"),
        (form.send("POST", "/v1/screen", multipart(&[("other", "", b"1")])).await, 400, "\"other\" is not known"),
        (form.send("POST", "/v1/screen", multipart(&[("metadata", "", b"{}")])).await, 400, "no field \"image\""),
        (
            form.send("POST", "/v1/screen", multipart(&[("image", "", &image), ("image", "", &image)])).await,
            400,
            "twice",
        ),
        (form.send("POST", "/v1/screen", b"--boundary\r\n".to_vec()).await, 400, "multipart"),
        (client.get("/v1/verdicts/app:none").await, 404, "no verdict"),
        (client.get("/v1/verdicts?image=x").await, 400, "s3://bucket/key"),
        (client.get("/nothing").await, 404, "nothing at this path"),
        (client.get("/v1/screen").await, 405, "method"),
        (client.get("/assets/..%2F..%2Fetc%2Fpasswd").await, 404, "no such file"),
    ];
    for (answer, status, words) in refused {
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{answer:?}");
        assert_eq!(answer.json()["allow"], false, "{answer:?}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(words), "{answer:?} has no {words}");
    }
    let found = client.get(&format!("/v1/verdicts?sha256={}", hex::encode(Sha256::digest(&image)))).await.json();
    assert!(found["verdicts"].as_array().unwrap().len() >= 2, "{found}");
    let found = client.get(&format!("/v1/verdicts?image={}", uri.replace(' ', "%20"))).await.json();
    assert_eq!(found["verdicts"][0]["job_id"], "app:7", "{found}");
}

#[tokio::test]
async fn an_idempotency_key_answers_once_for_each_caller_and_takes_no_other_image() {
    let mut lab = Lab::new().await;
    let (other_key, table) = key("other", &[Scope::Screen], "");
    lab.extra.push_str(&format!("\n{table}"));
    let (_worker, client) = worker_with_http(&mut lab, "").await;
    let other = Client::new(&client.address, &other_key);
    let image = good_image();
    let again = client.with("idempotency-key", "order-1");
    let first = again.screen(image.clone()).await;
    let second = again.screen(image.clone()).await;
    assert_eq!((first.status, second.status), (200, 200), "{first:?} {second:?}");
    assert_eq!(first.json()["verdict_id"], second.json()["verdict_id"]);
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 1);
    let conflict = again.screen(b"another image".to_vec()).await;
    assert_eq!((conflict.status, &conflict.json()["code"]), (422, &json!("id_conflict")), "{conflict:?}");
    let theirs = other.with("idempotency-key", "order-1").screen(image.clone()).await;
    assert_ne!(theirs.json()["verdict_id"], first.json()["verdict_id"]);

    // Many at the same time are one verdict.
    let same = client.with("idempotency-key", "order-2");
    let asked = (0..8).map(|_| same.screen(image.clone()));
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE job_id = 'app:order-2'").await, 1);

    // An envelope cannot hold the id of another caller, and a reference without an id is a job of this caller alone.
    let uri = format!("s3://{}/none", lab.bucket);
    let inner = json!({"image": uri, "id": "app:order-1"});
    let by_reference = other.with("content-type", "application/json");
    for envelope in [
        json!({"image": uri, "specversion": "1.0", "type": "x", "data": inner}),
        json!({"image": uri, "Type": "Notification", "TopicArn": "a", "Message": inner.to_string()}),
        json!({"image": uri, "Records": []}),
    ] {
        let refused = by_reference.send("POST", "/v1/screen", envelope.to_string()).await;
        assert_eq!(refused.status, 400, "{envelope}: {refused:?}");
    }
    let body = json!({"image": uri}).to_string();
    let ids = [
        by_reference.send("POST", "/v1/screen", body.clone()).await,
        by_reference.send("POST", "/v1/screen", body).await,
    ];
    let ids = ids.map(|answer| answer.json()["job_id"].as_str().unwrap().to_owned());
    assert!(ids[0] != ids[1] && ids.iter().all(|id| id.starts_with("other:")), "{ids:?}");

    // Bytes that came in the place of others are other content, also under a key that names no version.
    let passes = judged_fixtures().into_iter().find(|fixture| fixture.outcome == "passed").unwrap().bytes;
    let flagged = judged_fixtures().into_iter().find(|fixture| fixture.outcome == "flagged").unwrap().bytes;
    lab.put("avatar", passes.clone()).await;
    let body = json!({"image": format!("s3://{}/avatar", lab.bucket)}).to_string();
    let avatar = by_reference.with("idempotency-key", "avatar-1");
    let ask = || avatar.send("POST", "/v1/screen", body.clone());
    assert_eq!((ask().await.json()["allow"].clone(), ask().await.json()["allow"].clone()), (json!(true), json!(true)));
    lab.put("avatar", flagged).await;
    let changed = ask().await;
    assert_eq!((changed.status, &changed.json()["code"]), (422, &json!("id_conflict")), "{changed:?}");
    lab.put("avatar", passes).await;
    assert_eq!(ask().await.status, 200, "the same bytes again");
    lab.s3.delete_object().bucket(&lab.bucket).key("avatar").send().await.unwrap();
    assert_eq!(ask().await.status, 200, "there is nothing else that could be shown");

    // A caller reads its own jobs only.
    assert_eq!(other.get("/v1/verdicts/other:order-1").await.status, 200);
    assert_eq!(other.get("/v1/verdicts/app:order-1").await.status, 404);
    assert_eq!(client.get("/v1/verdicts/other:order-1").await.status, 200, "it may read all");
}

#[tokio::test]
async fn every_route_asks_for_its_scope() {
    let mut lab = Lab::new().await;
    let scopes = [Scope::Screen, Scope::Read, Scope::Decide];
    let keys: Vec<_> = scopes.iter().map(|scope| key(scope.as_str(), &[*scope], "")).collect();
    for (_, table) in &keys {
        lab.extra.push_str(&format!("\n{table}"));
    }
    let (worker, admin) = worker_with_http(&mut lab, "").await;
    let routes = routes();
    assert!(routes.len() >= 8, "{routes:?}");
    for (method, path, needed) in routes {
        let path = path.replace("{job_id}", "x").replace("{name}", "x");
        let anonymous = Client::anonymous(&admin.address).send(&method, &path, Vec::new()).await;
        let wrong = Client::new(&admin.address, "pixwarden_guess").send(&method, &path, Vec::new()).await;
        for answer in [anonymous, wrong] {
            assert_eq!(answer.status == 401, !needed.is_empty(), "{method} {path}: {answer:?}");
        }
        if needed.is_empty() {
            continue;
        }
        for (scope, (key, _)) in scopes.iter().zip(&keys) {
            let answer = Client::new(&admin.address, key).send(&method, &path, Vec::new()).await;
            assert_ne!(answer.status, 401, "{method} {path} by {scope:?}: {answer:?}");
            assert_eq!(answer.status == 403, !needed.contains(scope), "{method} {path} by {scope:?}: {answer:?}");
        }
        let answer = admin.send(&method, &path, Vec::new()).await;
        assert!(![401, 403].contains(&answer.status), "{method} {path}: {answer:?}");
    }
    for (key, _) in &keys {
        assert!(!worker.log_has(key), "a key is in the log");
    }
}

#[tokio::test]
async fn a_key_is_bound_to_its_buckets_policies_and_rate() {
    let mut lab = Lab::new().await;
    let bucket = lab.bucket.clone();
    let (elsewhere, first) = key("elsewhere", &[Scope::Screen, Scope::Read], "buckets = [\"other-*\"]");
    let (strict, second) = key("strict", &[Scope::Screen], "policies = [\"strict\"]");
    let (slow, third) = key("slow", &[Scope::Read], "per_second = 1");
    lab.extra.push_str(&format!("\n{first}\n{second}\n{third}"));
    let (_worker, client) = worker_with_http(&mut lab, "").await;
    let image = good_image();
    lab.put("a.png", image.clone()).await;
    let body = json!({"image": format!("s3://{bucket}/a.png"), "id": "1"}).to_string();
    let ask = |key: &str, path: &'static str| {
        let client = Client::new(&client.address, key).with("content-type", "application/json");
        let body = body.clone();
        async move { client.send("POST", path, body).await }
    };
    for path in ["/v1/screen", "/v1/jobs"] {
        let refused = ask(&elsewhere, path).await;
        assert_eq!(refused.status, 403, "{path} {refused:?}");
        let refused = ask(&strict, path).await;
        assert_eq!(refused.status, 403, "{path} {refused:?}");
    }
    let refused = Client::new(&client.address, &strict).screen(image.clone()).await;
    assert_eq!(refused.status, 403, "another policy judges it: {refused:?}");
    assert_eq!(
        client.with("content-type", "application/json").send("POST", "/v1/screen", body.clone()).await.status,
        200
    );
    let bound = Client::new(&client.address, &elsewhere);
    assert_eq!(bound.get("/v1/verdicts/app:1").await.status, 404, "it is in another bucket");
    let found = bound.get(&format!("/v1/verdicts?image=s3://{bucket}/a.png")).await.json();
    assert_eq!(found, json!({"verdicts": []}));
    assert_eq!(bound.screen(image).await.status, 200, "what it sends itself has no bucket");

    let slow = Client::new(&client.address, &slow);
    let mut statuses = Vec::new();
    for _ in 0..40 {
        let answer = slow.get("/v1/verdicts/x").await;
        if answer.status == 429 {
            assert!(answer.headers["retry-after"].parse::<u32>().unwrap() >= 1, "{answer:?}");
        }
        statuses.push(answer.status);
    }
    assert!(statuses[..10].iter().all(|status| *status == 404) && statuses.contains(&429), "{statuses:?}");
}

#[tokio::test]
async fn an_overloaded_process_refuses_at_once_or_queues_and_never_passes_silently() {
    let mut lab = Lab::new().await;
    let (worker, client) = worker_with_http(&mut lab, "max_in_flight = 1\nbody_timeout_ms = 4000").await;
    let image = good_image();
    // The only place is taken by an upload that does not end.
    let mut slow = TcpStream::connect(&client.address).await.unwrap();
    let (_, authorization) = &client.headers[0];
    let head = format!(
        "POST /v1/screen HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\ncontent-length: 1000\r\n\r\nabc"
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let since = Instant::now();
    let refused = loop {
        let answer = client.screen(image.clone()).await;
        if answer.status != 200 {
            break answer;
        }
        assert!(since.elapsed() < Duration::from_secs(3), "the upload takes no place");
    };
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("overload")), "{refused:?}");
    assert_eq!((refused.headers["retry-after"].as_str(), &refused.json()["allow"]), ("1", &json!(false)));
    lab.put("a.png", image.clone()).await;
    let body = json!({"image": format!("s3://{}/a.png", lab.bucket)}).to_string();
    let by_reference = client.with("content-type", "application/json");
    let queued = by_reference.send("POST", "/v1/screen?on_overload=queue", body).await;
    assert_eq!((queued.status, &queued.json()["allow"]), (202, &json!(false)), "{queued:?}");
    lab.until("SELECT count(*) FROM verdicts WHERE job_id LIKE 'app:%' AND bucket NOT LIKE 'inline%'", 1, &worker)
        .await;
    let verdict = client.get(queued.json()["verdict"].as_str().unwrap()).await;
    assert_eq!((verdict.status, &verdict.json()["allow"]), (200, &json!(true)), "{verdict:?}");

    // The slow sender is told so, and its place is free again.
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(30), slow.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(client.screen(image.clone()).await.status, 200);

    // A size that is only announced takes nothing.
    let mut huge = TcpStream::connect(&client.address).await.unwrap();
    let head = format!(
        "POST /v1/screen HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\ncontent-length: 10000000000\r\nconnection: close\r\n\r\n"
    );
    huge.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(10), huge.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn uploads_and_references_do_not_wait_for_each_other() {
    let mut lab = Lab::new().await;
    // Two places for objects, and memory for two: either kind alone could fill both.
    for (name, limit) in [
        ("PIXWARDEN_STORAGE_MEMORY_BYTES", 5 << 20),
        ("PIXWARDEN_STORAGE_DOWNLOADS", 1),
        ("PIXWARDEN_DECODE_THREADS", 1),
        ("PIXWARDEN_HTTP_TIMEOUT_MS", 15_000),
    ] {
        lab.environment.push((name, limit.to_string()));
    }
    let (_worker, client) = worker_with_http(&mut lab, "").await;
    let image = [&good_image()[..], &vec![0; 2 << 20]].concat();
    lab.put("large.png", image.clone()).await;
    let body = json!({"image": format!("s3://{}/large.png", lab.bucket)}).to_string();
    let by_reference = client.with("content-type", "application/json");
    let asked = (0..12).map(|number| {
        let (client, by_reference, image, body) = (client.clone(), by_reference.clone(), image.clone(), body.clone());
        async move {
            match number % 2 {
                0 => client.screen(image).await,
                _ => by_reference.send("POST", "/v1/screen", body).await,
            }
        }
    });
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
}

#[tokio::test]
async fn at_the_deadline_the_id_stays_free() {
    let mut lab = Lab::new().await;
    let (_worker, client) = worker_with_http(&mut lab, "").await;
    let large = std::fs::read(fixtures().join("large.jpg")).unwrap_or_else(|_| good_image());
    let once = client.with("idempotency-key", "hurry");
    let late = once.with("x-timeout-ms", "1").screen(large.clone()).await;
    assert_eq!((late.status, &late.json()["code"]), (504, &json!("timeout")), "{late:?}");
    assert_eq!(late.json()["allow"], false);
    let answer = once.screen(large).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn every_answer_before_a_kill_has_its_verdict() {
    let mut lab = Lab::new().await;
    let (mut worker, client) = worker_with_http(&mut lab, "").await;
    let fixtures = judged_fixtures();
    let answered = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let senders: Vec<_> = (0..4)
        .map(|sender| {
            let (client, fixtures, answered) = (client.clone(), fixtures.clone(), std::sync::Arc::clone(&answered));
            tokio::task::spawn_blocking(move || {
                for (index, fixture) in fixtures.iter().cycle().enumerate() {
                    let client = client.with("idempotency-key", &format!("{sender}-{index}"));
                    // The kill ends the connection.
                    let sent = std::panic::catch_unwind(|| client.send_blocking("POST", "/v1/screen", &fixture.bytes));
                    let Ok(answer) = sent else { return };
                    if answer.status == 200 {
                        answered.lock().unwrap().push(answer.json()["job_id"].as_str().unwrap().to_owned());
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
        sender.await.unwrap();
    }
    let outcomes = lab.outcomes().await;
    for job_id in answered.lock().unwrap().iter() {
        assert!(outcomes.contains_key(job_id), "{job_id} was answered and has no verdict");
    }
}

/// Starts `serve` with these arguments, without any service.
fn serve(lab: &Lab, arguments: &[&str]) -> Worker {
    let config = lab.folder.path().join("serve.toml");
    let text =
        format!("detectors = [{}]\n[metrics]\nlisten = \"127.0.0.1:0\"\n[policy]\nlabel = \"by AI\"\n", lab.detectors);
    std::fs::write(&config, text).unwrap();
    lab.process("serve.log", &config, &[&["serve", "--listen", "127.0.0.1:0"], arguments].concat())
}

#[tokio::test]
async fn serve_needs_no_service_and_lets_nobody_in_but_the_person_at_the_machine() {
    let lab = Lab::new().await;
    let mut process = serve(&lab, &[]);
    let address = address(&process).await;
    let anonymous = Client::anonymous(&address);
    assert_eq!(anonymous.screen(good_image()).await.status, 401);
    assert_eq!(anonymous.get("/").await.status, 200, "the page shows nothing of an image");
    assert_eq!(anonymous.get("/open?token=guess").await.status, 401);
    let log = process.whole_log();
    let link = log.split("http://").nth(1).unwrap().split_whitespace().next().unwrap();
    let path = &link[link.find('/').unwrap()..];
    assert_eq!(anonymous.with("host", "evil.example").get(path).await.status, 421);
    let opened = anonymous.get(path).await;
    assert_eq!(opened.status, 303, "{opened:?}");
    assert_eq!(anonymous.get(path).await.status, 401, "the link works once");
    let cookie = opened.headers["set-cookie"].split(';').next().unwrap();
    assert!(opened.headers["set-cookie"].contains("HttpOnly; SameSite=Lax"), "{opened:?}");
    let person = anonymous.with("cookie", cookie);
    assert_eq!(person.screen(good_image()).await.status, 403, "without an origin");
    assert_eq!(person.with("origin", "http://evil.example").screen(good_image()).await.status, 403);
    let at_home = person.with("origin", &format!("http://{address}"));
    let answer = at_home.send("POST", "/v1/screen?include=pictures", good_image()).await;
    assert_eq!((answer.status, &answer.json()["allow"]), (200, &json!(true)), "{answer:?}");
    let job_id = answer.json()["job_id"].as_str().unwrap().to_owned();
    assert_eq!(person.get(&format!("/v1/verdicts/{job_id}")).await.status, 200);
    let by_reference = at_home.with("content-type", "application/json");
    let rejected = by_reference.send("POST", "/v1/screen", r#"{"image": "s3://b/k"}"#).await;
    assert_eq!(rejected.json()["outcome"], "rejected", "no bucket is allowed");
    let queued = by_reference.send("POST", "/v1/jobs", r#"{"image": "s3://b/k"}"#).await;
    assert_eq!(queued.status, 501, "there is no queue");
    let security = &answer.headers["content-security-policy"];
    assert!(security.contains("default-src 'none'") && !security.contains("unsafe"), "{security}");

    process.until_ready_says(200, "serving").await;
    let (_, metrics) = process.get("/metrics").await;
    assert!(metrics.contains("pixwarden_http_requests_total{route=\"/v1/screen\",status=\"200\"}"), "{metrics}");
    // A request that was accepted is answered before the end.
    let last = tokio::spawn({
        let client = at_home.clone();
        async move { client.screen(good_image()).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(process.terminate().await.success(), "{}", process.log());
    if let Ok(answer) = last.await {
        assert!([200, 503].contains(&answer.status), "{answer:?}");
    }
    assert!(process.log_has("drained"), "{}", process.log());
}

#[tokio::test]
async fn a_listener_that_all_can_reach_needs_a_key() {
    let lab = Lab::new().await;
    let config = lab.folder.path().join("open.toml");
    std::fs::write(&config, format!("detectors = [{}]\n[metrics]\nlisten = \"off\"\n", lab.detectors)).unwrap();
    let mut command = lab.command();
    command.arg("--config").arg(Path::new(&config)).args(["serve", "--listen", "0.0.0.0:0"]);
    let ended = crate::support::Ended::of(command).await;
    assert_eq!(ended.status, 2, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("no key is configured") && ended.stderr.contains("pixwarden key create"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn a_made_key_works_with_the_table_that_is_printed_with_it() {
    let mut lab = Lab::new().await;
    let mut command = lab.command();
    command.args(["key", "create", "upload-service", "--scope", "screen", "--scope", "read", "--per-second", "50"]);
    let made = crate::support::Ended::of(command).await.expect_ok().stdout;
    let (key, table) = made.split_once("\n\n").unwrap();
    lab.extra.push_str(&format!("\n{table}"));
    let (_worker, client) = worker_with_http(&mut lab, "").await;
    let answer = Client::new(&client.address, key).screen(good_image()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.json()["job_id"].as_str().unwrap().starts_with("upload-service:"), "{answer:?}");
}

#[tokio::test]
async fn a_client_of_rekognition_works_unchanged_and_nothing_unscreened_looks_clean() {
    let mut lab = Lab::new().await;
    lab.extra.push_str(
        "\n[[policies]]\nname = \"all\"\n[[policies.rules]]\ndetector = \"spread-nhwc\"\nlabel = \"by AI\"\n\
         category = \"synthetic/generated\"\nreview_at = 0.5\nflag_at = 0.9\n\
         [[http.aws_keys]]\nname = \"old\"\naccess_key_id = \"PIXWARDENOLD\"\nsecret_access_key = \"a-secret-of-the-old-client\"\n",
    );
    let (worker, client) = worker_with_http(&mut lab, "").await;
    let fixtures = judged_fixtures();
    let chosen: Vec<_> = ["passed", "review", "flagged"]
        .iter()
        .map(|outcome| fixtures.iter().find(|fixture| fixture.outcome == *outcome).unwrap())
        .collect();
    for fixture in &chosen {
        std::fs::write(lab.folder.path().join(&fixture.outcome), &fixture.bytes).unwrap();
        lab.put(&fixture.outcome, fixture.bytes.clone()).await;
    }
    let mut command = tokio::process::Command::new(service("TEST_PYTHON"));
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/rekognition.py")).current_dir(lab.folder.path());
    command.arg(format!("http://{}", client.address)).args(["PIXWARDENOLD", "a-secret-of-the-old-client", &lab.bucket]);
    command.args(chosen.iter().map(|fixture| &fixture.outcome));
    let ended = crate::support::Ended::of(command).await.expect_ok();
    let answers: BTreeMap<String, Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| (line["what"].as_str().unwrap().to_owned(), line))
        .collect();
    for way in ["bytes", "object"] {
        assert_eq!(answers[&format!("{way} passed")]["labels"], json!([]), "{answers:#?}");
        for outcome in ["review", "flagged"] {
            // A confidence of 99 was asked for, and the scores are lower.
            let labels = &answers[&format!("{way} {outcome}")]["labels"];
            assert_eq!(labels.as_array().unwrap().len(), 2, "{answers:#?}");
            assert_eq!((&labels[0][0], &labels[0][1]), (&json!(""), &json!("synthetic")));
            assert_eq!((&labels[1][0], &labels[1][1]), (&json!("synthetic"), &json!("generated")));
        }
    }
    for (what, error, is_modelled) in [
        ("no object", "InvalidS3ObjectException", true),
        ("other bucket", "AccessDeniedException", true),
        ("no image", "InvalidImageFormatException", true),
        ("no confidence", "InvalidParameterException", true),
        ("human loop", "InvalidParameterException", true),
        ("wrong secret", "InvalidSignatureException", false),
    ] {
        assert_eq!(
            (&answers[what]["error"], &answers[what]["is_modelled"]),
            (&json!(error), &json!(is_modelled)),
            "{what}: {answers:#?}"
        );
    }
    assert_eq!(answers["other operation"]["error"], "UnknownOperationException");
    assert!(!worker.log_has("a-secret-of-the-old-client"), "the secret is in the log");
    assert_eq!(
        lab.count("SELECT count(*) FROM verdicts WHERE job_id LIKE 'old:%'").await,
        8,
        "three images twice, no image and no object"
    );
}

#[tokio::test]
async fn what_was_screened_is_kept_where_the_operator_says_and_has_no_verdict_if_that_fails() {
    let mut lab = Lab::new().await;
    let root = lab.folder.path().join("objects");
    std::fs::create_dir_all(root.join("kept")).unwrap();
    std::fs::create_dir_all(root.join(&lab.bucket)).unwrap();
    lab.objects = format!("file://{}", root.display());
    lab.extra = "[[policy.rules]]\ndetector = \"spread-nhwc\"\nlabel = \"by AI\"\nreview_at = 0.5\nflag_at = 0.9\n\
                 [[policy.rules]]\nname = \"known\"\ncategory = \"abuse\"\nbank = \"known\"\nflag_within = 15\n"
        .into();
    lab.run(&["bank", "create", "known", "--kind", "deny", "--restricted"]).await.expect_ok();
    let fixtures = judged_fixtures();
    let of = |outcome: &str| fixtures.iter().find(|fixture| fixture.outcome == outcome).unwrap().bytes.clone();
    // Other bytes that show the same are known as well.
    let restricted = [&good_image()[..], b"known"].concat();
    let list = lab.folder.path().join("known.txt");
    std::fs::write(&list, format!("sha256 {}\n", hex::encode(Sha256::digest(&restricted)))).unwrap();
    lab.run(&["bank", "import", "known", list.to_str().unwrap()]).await.expect_ok();
    let (mut worker, client) = worker_with_http(&mut lab, "keep = \"s3://kept/uploads\"").await;
    let kept = || {
        let names = std::fs::read_dir(root.join("kept/uploads")).into_iter().flatten();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<std::collections::BTreeSet<_>>()
    };
    let known = client.screen(restricted).await;
    assert_eq!(known.json()["findings"][0]["restricted"], true, "{known:?}");
    assert_eq!(client.screen(b"<html>".to_vec()).await.json()["outcome"], "undecodable");
    let form = client.with("content-type", "multipart/form-data; boundary=boundary");
    let image = of("passed");
    let sent = multipart(&[("image", "a.png", &image), ("detectors", "", br#"["other"]"#)]);
    assert_eq!(form.send("POST", "/v1/screen", sent).await.json()["outcome"], "rejected");
    assert!(kept().is_empty(), "{:?}", kept());
    let mut expected = std::collections::BTreeSet::new();
    for outcome in ["passed", "review", "flagged"] {
        let image = of(outcome);
        assert_eq!(client.screen(image.clone()).await.json()["outcome"], outcome);
        let name = hex::encode(Sha256::digest(&image));
        assert_eq!(std::fs::read(root.join("kept/uploads").join(&name)).unwrap(), image);
        expected.insert(name);
    }
    assert_eq!(kept(), expected, "nothing unfinished is left");
    let checked = lab.run(&["check", "--log", "off"]).await.expect_ok();
    assert!(checked.stdout.contains("bucket \"kept\" of `http.keep` is accessible"), "{}", checked.stdout);
    assert!(!worker.log_has("images that are sent cannot be kept"));

    std::fs::remove_dir_all(root.join("kept")).unwrap();
    let verdicts = lab.count("SELECT count(*) FROM verdicts").await;
    let refused = client.screen(of("flagged")).await;
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("not_kept")), "{refused:?}");
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, verdicts);
    let checked = lab.run(&["check", "--log", "off"]).await;
    assert_eq!(checked.status, 1);
    assert!(checked.stdout.contains("FAILED  objects    `http.keep`: "), "{}", checked.stdout);
    assert!(worker.terminate().await.success());
    let worker = lab.started_worker().await;
    until_log_has(&worker, "images that are sent cannot be kept").await;
}

async fn until_log_has(process: &Worker, words: &str) {
    let since = Instant::now();
    while !process.log_has(words) {
        assert!(since.elapsed() < Duration::from_secs(60), "no \"{words}\":\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The memory that is reserved for uploads, in bytes.
async fn upload_memory(process: &Worker) -> u64 {
    let (_, metrics) = process.get("/metrics").await;
    let line = metrics.lines().find(|line| line.starts_with("pixwarden_upload_memory_bytes "));
    line.map_or(0, |line| line.split(' ').nth(1).unwrap().parse().unwrap())
}

async fn until_upload_memory(process: &Worker, is_expected: impl Fn(u64) -> bool) {
    let since = Instant::now();
    loop {
        let bytes = upload_memory(process).await;
        if is_expected(bytes) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "{bytes} bytes are reserved:\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Client {
    /// A connection on which the head of a request was sent.
    async fn begin(&self, request_line: &str, more: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{request_line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}{more}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }
}

/// Reads an answer to its end, and returns its status and the member `code`.
async fn read_answer(stream: &mut TcpStream) -> (u16, Value) {
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await;
    read.expect("no answer").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {answer:?}"));
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body["code"].clone())
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_gets_the_answer_that_refuses_it() {
    let mut lab = Lab::new().await;
    let (reader, first) = key("reader", &[Scope::Read], "");
    let (slow, second) = key("slow", &[Scope::Screen], "per_second = 1");
    lab.extra.push_str(&format!("\n{first}\n{second}"));
    lab.environment.push(("PIXWARDEN_STORAGE_MAX_OBJECT_BYTES", (4 << 20).to_string()));
    let (worker, client) = worker_with_http(&mut lab, "max_in_flight = 1").await;
    let of = |key: &str| Client::new(&client.address, key);
    const LENGTH: usize = 8 << 20;
    let length = format!("content-length: {LENGTH}");
    let refused = |client: Client, line: &'static str, more: String| async move {
        let mut stream = client.begin(line, &more).await;
        stream.write_all(&vec![b'a'; LENGTH]).await.unwrap();
        read_answer(&mut stream).await
    };
    let screen = "POST /v1/screen";
    for _ in 0..5 {
        for (client, line, more, status) in [
            (Client::anonymous(&client.address), screen, "", 401),
            (of("pixwarden_guess"), screen, "", 401),
            (of(&reader), screen, "", 403),
            (client.clone(), "POST /v1/screen?deep=1", "", 400),
            (client.clone(), screen, "\r\nx-timeout-ms: soon", 400),
            (client.clone(), screen, "\r\ncontent-type: application/json", 413),
            (client.clone(), screen, "", 413),
            (client.clone(), "POST /nothing", "", 404),
            (client.clone(), "PUT /v1/screen", "", 405),
        ] {
            let (found, code) = refused(client, line, format!("{length}{more}")).await;
            assert_eq!(found, status, "{line} {more}: {code}");
        }
    }
    // Its rate is ten requests in ten seconds.
    let mut statuses = Vec::new();
    while statuses.len() < 200 && !statuses.contains(&429) {
        statuses.push(refused(of(&slow), screen, length.clone()).await.0);
    }
    assert!(statuses.contains(&429) && statuses.iter().all(|status| [413, 429].contains(status)), "{statuses:?}");

    // The only place is taken by an upload that does not end.
    let _held = client.begin(screen, "content-length: 1000").await;
    until_metric_is(&worker, "pixwarden_http_images 1").await;
    for _ in 0..5 {
        let (status, code) = refused(client.clone(), screen, length.clone()).await;
        assert_eq!((status, code), (503, json!("overload")));
    }

    // What has no end is cut off: here after twice the largest image, 16 MiB, and what the system buffers.
    let mut endless = client.begin(screen, "transfer-encoding: chunked").await;
    let chunk = [b"100000\r\n".to_vec(), vec![b'a'; 1 << 20], b"\r\n".to_vec()].concat();
    let mut sent = 0_u64;
    while endless.write_all(&chunk).await.is_ok() {
        sent += 1 << 20;
        assert!(sent < 256 << 20, "a body without an end is read");
    }
}

async fn until_metric_is(process: &Worker, line: &str) {
    let since = Instant::now();
    while !process.get("/metrics").await.1.lines().any(|found| found == line) {
        assert!(since.elapsed() < Duration::from_secs(60), "no \"{line}\":\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_form_keeps_little_beside_its_image() {
    let mut lab = Lab::new().await;
    let (_worker, client) = worker_with_http(&mut lab, "").await;
    let form = client.with("content-type", "multipart/form-data; boundary=boundary");
    let image = good_image();
    let long = vec![b'a'; 1 << 20];
    let in_head = |name: &str| {
        let head = format!("--boundary\r\ncontent-disposition: form-data; name=\"{name}\"\r\nx-more: ");
        [head.as_bytes(), &long, b"\r\n\r\n", &image, b"\r\n--boundary--\r\n"].concat()
    };
    const END: &[u8] = b"--boundary--\r\n";
    let only_image = multipart(&[("image", "", &image)]);
    let metadata = format!("{{\"a\": \"{}\"}}", "b".repeat(1 << 20));
    for (body, words) in [
        (in_head("image"), "beside the image"),
        (in_head("metadata"), "beside the image"),
        // Before the first part, and behind an image.
        ([&long[..], &multipart(&[("image", "", &image)])].concat(), "beside the image"),
        ([&only_image[..only_image.len() - END.len()], &in_head("metadata")].concat(), "beside the image"),
        (multipart(&[("image", "", &image), ("metadata", "", metadata.as_bytes())]), "a field has more than"),
    ] {
        let answer = form.send("POST", "/v1/screen", body).await;
        assert!(answer.status == 413 && answer.text.contains(words), "{words}: {answer:?}");
    }
    // An image of any size is no part of that.
    let large = [&image[..], &vec![0; 5 << 20]].concat();
    let answer = form.send("POST", "/v1/screen", multipart(&[("metadata", "", b"{}"), ("image", "", &large)])).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn uploads_without_a_length_grow_at_the_same_time_in_little_memory() {
    const PARTS: [usize; 2] = [1 << 20, 2 << 20];
    let mut lab = Lab::new().await;
    lab.environment.push(("PIXWARDEN_STORAGE_MEMORY_BYTES", (8 << 20).to_string()));
    lab.environment.push(("PIXWARDEN_STORAGE_MAX_OBJECT_BYTES", (4 << 20).to_string()));
    let (worker, client) = worker_with_http(&mut lab, "max_in_flight = 8").await;
    // What follows an image changes no pixel. Together they are larger than the memory, and each is smaller.
    let image = [&good_image()[..], &vec![0; PARTS[0] + PARTS[1] - good_image().len()]].concat();
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = client.begin("POST /v1/screen", "transfer-encoding: chunked").await;
        stream.write_all(&chunk(&image[..PARTS[0]])).await.unwrap();
        streams.push(stream);
    }
    // All three have begun, and hold what they have.
    let begun = 3 * PARTS[0] as u64;
    until_upload_memory(&worker, |bytes| bytes >= begun).await;
    let rest = [chunk(&image[PARTS[0]..]), b"0\r\n\r\n".to_vec()].concat();
    let ends = streams.into_iter().map(|mut stream| {
        let rest = rest.clone();
        async move {
            stream.write_all(&rest).await.unwrap();
            read_answer(&mut stream).await.0
        }
    });
    assert_eq!(futures_util::future::join_all(ends).await, [200; 3]);
    until_upload_memory(&worker, |bytes| bytes == 0).await;
}

#[tokio::test]
async fn a_signed_request_reserves_memory_for_its_body_its_text_and_its_image() {
    let mut lab = Lab::new().await;
    lab.extra.push_str(
        "\n[[http.aws_keys]]\nname = \"old\"\naccess_key_id = \"PIXWARDENOLD\"\nsecret_access_key = \"a-secret-of-the-old-client\"\n",
    );
    let (worker, client) = worker_with_http(&mut lab, "").await;
    let now = time::OffsetDateTime::now_utc();
    let day = now.format(time::macros::format_description!("[year][month][day]")).unwrap();
    let at = now.format(time::macros::format_description!("[year][month][day]T[hour][minute][second]Z")).unwrap();
    let signature = format!(
        "AWS4-HMAC-SHA256 Credential=PIXWARDENOLD/{day}/eu-west-1/rekognition/aws4_request, SignedHeaders=host;x-amz-date;x-amz-target, Signature={}",
        "0".repeat(64)
    );
    let signed = Client::anonymous(&client.address)
        .with("authorization", &signature)
        .with("x-amz-date", &at)
        .with("x-amz-target", "RekognitionService.DetectModerationLabels");
    let mut held = signed.begin("POST /", "content-length: 1000000").await;
    held.write_all(b"{").await.unwrap();
    until_upload_memory(&worker, |bytes| bytes == 3_000_000).await;
    drop(held);
    until_upload_memory(&worker, |bytes| bytes == 0).await;
    // Without a length it would have to be the most that can arrive.
    let mut endless = signed.begin("POST /", "transfer-encoding: chunked").await;
    let mut answer = String::new();
    endless.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("Content-Length"), "{answer}");
}

#[tokio::test]
async fn a_request_in_flight_when_the_process_drains_is_answered() {
    let mut lab = Lab::new().await;
    let (mut worker, client) = worker_with_http(&mut lab, "max_in_flight = 8").await;
    let image = good_image();
    let mut streams = Vec::new();
    for id in 0..4 {
        let head = format!("content-length: {}\r\nidempotency-key: drain-{id}", image.len());
        let mut stream = client.begin("POST /v1/screen", &head).await;
        stream.write_all(&image[..10]).await.unwrap();
        streams.push(stream);
    }
    until_metric_is(&worker, "pixwarden_http_images 4").await;
    worker.ask_to_end().await;
    worker.until_ready_says(503, "draining").await;
    let since = Instant::now();
    while TcpStream::connect(&client.address).await.is_ok() {
        assert!(since.elapsed() < Duration::from_secs(30), "further connections are accepted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (id, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&image[10..]).await.unwrap();
        let (status, code) = read_answer(stream).await;
        assert!(status == 200 || (status == 503 && code == "draining"), "{id}: {status} {code}");
        let outcomes = lab.outcomes().await;
        assert_eq!(outcomes.contains_key(&format!("app:drain-{id}")), status == 200);
    }
    let ended = tokio::time::timeout(Duration::from_secs(60), worker.child.wait()).await.unwrap().unwrap();
    assert!(ended.success() && worker.log_has("drained"), "{}", worker.log());
}
