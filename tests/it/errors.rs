//! Errors say what was tried, what happened and what to do; and they end with the right status.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Ended, Lab, fixtures, service};

/// Runs `worker` with a changed configuration; it has to refuse to start.
async fn refused(lab: &Lab, arguments: &[&str], status: i32) -> String {
    let ended = lab.run(&[&["worker", "--log", "off"][..], arguments].concat()).await;
    assert_eq!(ended.status, status, "{}", ended.stderr);
    assert!(ended.stdout.is_empty(), "{}", ended.stdout);
    assert!(ended.stderr.starts_with("error: "), "{}", ended.stderr);
    // Passwords of the services must not be in any of them.
    for secret in ["TEST_AMQP_URL", "TEST_POSTGRES_URL"] {
        let url: url::Url = service(secret).parse().unwrap();
        assert!(!ended.stderr.contains(url.password().unwrap()), "{}", ended.stderr);
    }
    ended.stderr
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "\"{part}\" is missing in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_the_login_is_reported() {
    let lab = Lab::new().await;
    let mut url: url::Url = service("TEST_AMQP_URL").parse().unwrap();
    let nowhere = format!("{}nowhere", service("TEST_AMQP_URL").trim_end_matches("%2f"));
    contains(
        &refused(&lab, &["--queue", &nowhere], 1).await,
        &["nowhere", "refused the login", "hint: create the virtual host"],
    );
    url.set_password(Some("wrong")).unwrap();
    contains(
        &refused(&lab, &["--queue", url.as_str()], 1).await,
        &["refused the login", "ACCESS_REFUSED", "hint: check user and password"],
    );
    url.set_port(Some(1)).unwrap();
    let nothing = refused(&lab, &["--queue", url.as_str()], 1).await;
    contains(
        &nothing,
        &["cannot connect to the broker", "127.0.0.1:1", ": connection refused\n", "hint: check that RabbitMQ runs"],
    );
    // The port and the virtual host that are used without being named are named.
    url.set_host(Some("nohost.invalid")).unwrap();
    url.set_port(None).unwrap();
    url.set_path("");
    let nowhere = refused(&lab, &["--queue", url.as_str()], 1).await;
    contains(&nowhere, &["@nohost.invalid:5672/%2f: ", "hint: check that RabbitMQ runs, and host and port"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_is_reported() {
    use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
    use lapin::types::{AMQPValue, FieldTable};
    let lab = Lab::new().await;
    let queue = lab.topology.lane(pixwarden::job::Lane::Live);
    lab.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(20));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    lab.channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();
    let words = refused(&lab, &[], 1).await;
    contains(&words, &[&queue, "the broker has", "Pixwarden declares", "hint: delete it"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_ledger_is_reported() {
    let lab = Lab::new().await;
    let mut url: url::Url = lab.ledger_url.parse().unwrap();
    url.set_password(Some("wrong")).unwrap();
    contains(
        &refused(&lab, &["--ledger", url.as_str()], 1).await,
        &["cannot open the ledger", "password authentication failed", "hint: check user and password"],
    );
    url = lab.ledger_url.parse().unwrap();
    url.set_path("no-such-database");
    let missing = refused(&lab, &["--ledger", url.as_str()], 1).await;
    contains(
        &missing,
        &["/no-such-database: database \"no-such-database\" does not exist\n", "hint: create the database"],
    );
    url.set_port(Some(1)).unwrap();
    let nothing = refused(&lab, &["--ledger", url.as_str()], 1).await;
    contains(&nothing, &["127.0.0.1:1/no-such-database: connection refused\n", "hint: check that PostgreSQL runs"]);
    let nowhere = refused(&lab, &["--ledger", "postgres://someone@nohost.invalid"], 1).await;
    contains(
        &nowhere,
        &["someone@nohost.invalid:5432/someone: ", "hint: check that PostgreSQL runs, and host and port"],
    );
    sqlx::query("DROP TABLE _sqlx_migrations").execute(&lab.db).await.unwrap();
    contains(&refused(&lab, &[], 1).await, &["schema is at version 0", "hint: run `pixwarden migrate`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_file_or_folder_is_reported() {
    let lab = Lab::new().await;
    let at = |name: &str| format!("sqlite://{}", lab.folder.path().join(name).display());
    for nothing in ["sqlite://", "sqlite://:memory:"] {
        contains(&refused(&lab, &["--ledger", nothing], 2).await, &["`ledger`", "names no file", "hint: sqlite://"]);
    }
    contains(&refused(&lab, &["--ledger", &at("typo.db")], 1).await, &["no such file", "hint: `pixwarden migrate`"]);
    assert!(!lab.folder.path().join("typo.db").exists(), "a mistyped name does not become a ledger");
    std::fs::write(lab.folder.path().join("text"), "this is no database, however long it goes on".repeat(99)).unwrap();
    for (name, words) in [("text", "not a database"), ("", "unable to open")] {
        contains(&refused(&lab, &["--ledger", &at(name)], 1).await, &[words, "hint: it must be a SQLite database"]);
    }
    let objects = ["s3://bucket", "file://relative/path", "/just/a/path"];
    for wrong in objects {
        contains(&refused(&lab, &["--objects", wrong], 2).await, &["`objects`", wrong, "hint: buckets are named by"]);
    }
    let nowhere = refused(&lab, &["--objects", "file:///nowhere/at/all"], 2).await;
    contains(&nowhere, &["cannot open the folder /nowhere/at/all", "hint: objects = \"file:///folder\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_is_reported_by_check_and_its_jobs_wait() {
    let mut lab = Lab::new().await;
    let check = lab.run(&["check", "--bucket", "it-no-such-bucket"]).await;
    assert_eq!(check.status, 1);
    contains(&check.stdout, &["FAILED  objects", "it-no-such-bucket"]);
    lab.bucket = "it-no-such-bucket".into();
    let worker = lab.started_worker().await;
    lab.job(pixwarden::job::Lane::Live, serde_json::json!("s3://it-no-such-bucket/k")).await;
    let since = std::time::Instant::now();
    while !worker.log().contains("bucket held") {
        assert!(since.elapsed().as_secs() < 30, "{}", worker.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    contains(&worker.log(), &["there is no bucket"]);
    assert!(!worker.log().contains("dependency broken"), "the store works");
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 0, "no job has failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_object_store_is_reported_with_bucket_endpoint_and_region() {
    let mut lab = Lab::new().await;
    let place = |lab: &Lab| format!("\"{}\" at {}, region {}", lab.bucket, lab.endpoint, lab.region);
    let check = async |lab: &Lab| lab.run(&["check", "--log", "off"]).await.stdout;
    let wrong = ("AWS_SECRET_ACCESS_KEY", "wrong".to_owned());
    lab.environment.push(wrong);
    contains(&check(&lab).await, &[&place(&lab), "the store refused the credentials: ", "hint: set AWS_ACCESS_KEY_ID"]);
    lab.environment.clear();
    let mut command = lab.command();
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    command.arg("--config").arg(lab.config()).args(["check", "--log", "off"]);
    let without = Ended::of(command).await.stdout;
    contains(&without, &[&place(&lab), "no usable credentials: no credentials found", "hint: set AWS_ACCESS_KEY_ID"]);
    assert!(!without.contains("Attempted"), "{without}");

    // A store that expects another region in the signature, as AWS answers.
    lab.endpoint = store(
        "400 Bad Request\r\nx-amz-bucket-region: eu-central-1",
        "<Error><Code>AuthorizationHeaderMalformed</Code><Message>expecting 'eu-central-1'</Message></Error>",
    )
    .await;
    let elsewhere = check(&lab).await;
    contains(&elsewhere, &[&place(&lab), "wrong region: expecting 'eu-central-1'", "hint: set the bucket's `region`"]);
    contains(&elsewhere, &["the store says that it is eu-central-1"]);
    // An answer that says nothing of the bucket.
    lab.endpoint = store("503 Service Unavailable", "").await;
    contains(&check(&lab).await, &[&format!("{}: status 503", place(&lab))]);
    let absent = "http://127.0.0.1:1";
    lab.endpoint = absent.into();
    contains(&check(&lab).await, &[&place(&lab), ": connection refused\n", "hint: check that the store runs"]);

    // An endpoint that a profile names, for every service or for S3 only.
    let profile = lab.folder.path().join("profile");
    lab.endpoint = String::new();
    lab.environment = vec![("AWS_PROFILE", "ours".into()), ("AWS_CONFIG_FILE", profile.to_str().unwrap().to_owned())];
    for (text, place) in [
        (format!("endpoint_url = {absent}"), absent),
        (
            format!("services = stores\n[services stores]\ns3 =\n  endpoint_url = {absent}"),
            "AWS, or the S3 endpoint of the profile \"ours\"",
        ),
    ] {
        std::fs::write(&profile, format!("[profile ours]\n{text}\n")).unwrap();
        let place = format!("\"{}\" at {place}, region {}: connection refused\n", lab.bucket, lab.region);
        contains(&check(&lab).await, &[&place, "hint: check that the store runs"]);
    }
}

/// A store that gives every request the same answer. Returns its address.
async fn store(head: &'static str, body: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let end = format!("\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let mut request = [0; 64 << 10];
            drop(client.read(&mut request).await);
            drop(client.write_all(format!("HTTP/1.1 {head}{end}").as_bytes()).await);
        }
    }));
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_detector_or_policy_is_reported() {
    let mut lab = Lab::new().await;
    let folder = lab.folder.path().join("no-labels");
    std::fs::create_dir(&folder).unwrap();
    let good = fixtures().join("detectors/spread-nhwc");
    std::fs::copy(good.join("model.onnx"), folder.join("model.onnx")).unwrap();
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    let path = folder.to_str().unwrap().to_owned();
    contains(
        &refused(&lab, &["--detector", &path], 2).await,
        &["no-labels", "`id2label` in config.json", "there are no labels"],
    );
    contains(&refused(&lab, &["--detector", "/nowhere/at/all"], 2).await, &["/nowhere/at/all", "no such folder"]);
    contains(&refused(&lab, &["--label", "by ai"], 2).await, &["\"by ai\"", "labels of spread-nhwc are", "\"by AI\""]);
    contains(&refused(&lab, &["--prefetch", "3"], 2).await, &["worker.prefetch", "hint: raise it to"]);
    lab.extra = "[[policy.rules]]\ndetector = \"spread\"\nlabel = \"by AI\"\nreview_at = 0.5\nflag_at = 0.9".into();
    contains(&refused(&lab, &[], 2).await, &["names the detector \"spread\"", "\"spread-nhwc\""]);
    lab.extra = "[worker]\natempts = 3".into();
    contains(&refused(&lab, &[], 2).await, &["unknown option `worker.atempts`", "did you mean `worker.attempts`"]);
    lab.extra = String::new();
    lab.bucket = String::new();
    contains(&refused(&lab, &[], 2).await, &["worker.toml, line ", "`buckets[0]`: the entry has no name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_runtime_or_device_refuses_to_start() {
    let lab = Lab::new().await;
    let mut command = lab.command();
    command.env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so").arg("--config").arg(lab.config()).arg("worker");
    let ended = Ended::of(command).await;
    assert_eq!(ended.status, 1);
    contains(&ended.stderr, &["/nowhere/libonnxruntime.so", "cannot load", "ORT_DYLIB_PATH"]);
    contains(&refused(&lab, &["--device", "cuda"], 1).await, &["device = \"cuda\"", "cannot be used", "hint:"]);
}
