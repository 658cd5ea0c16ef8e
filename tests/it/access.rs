//! TLS with an authority of one's own, users that may do no more than they must, and secrets that stay secret.

use futures_util::StreamExt;
use pixwarden::job::Lane;
use serde_json::json;

use crate::support::{Ended, Lab, good_image, service};

/// A world that is reached over TLS, at a name and trusting whom a file names.
async fn over_tls(host: &str, authorities: &str) -> Lab {
    let mut lab = Lab::new().await;
    lab.endpoint = format!("https://{host}:{}", service("TEST_S3_TLS_PORT"));
    let port = service("TEST_AMQP_TLS_PORT").parse().unwrap();
    let mut queue: url::Url = lab.queue_as("pixwarden-worker").replacen("amqp:", "amqps:", 1).parse().unwrap();
    queue.set_host(Some(host)).unwrap();
    queue.set_port(Some(port)).unwrap();
    let mut ledger: url::Url = lab.ledger_as("pixwarden_worker").parse().unwrap();
    ledger.set_host(Some(host)).unwrap();
    ledger.set_query(Some("sslmode=verify-full"));
    // Variables go before the file.
    lab.environment = vec![
        ("PIXWARDEN_QUEUE", queue.into()),
        ("PIXWARDEN_LEDGER", ledger.into()),
        ("SSL_CERT_FILE", service(authorities)),
    ];
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_screens_over_tls_with_a_private_authority() {
    let lab = over_tls("localhost", "TEST_TLS_CA").await;
    let mut worker = lab.started_worker().await;
    lab.put("a.jpg", good_image()).await;
    lab.job(Lane::Live, json!({"image": format!("s3://{}/a.jpg", lab.bucket)})).await;
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'passed'", 1, &worker).await;
    assert!(worker.terminate().await.success());
    lab.run(&["check", "--log", "off"]).await.expect_ok();
}

/// What `check` says of the queue, the ledger and the objects, each of which has to fail.
async fn three_failures(lab: &Lab) -> Vec<String> {
    let Ended { status, stdout, .. } = lab.run(&["check", "--log", "off"]).await;
    assert_eq!(status, 1, "{stdout}");
    let failed: Vec<_> = stdout.split("FAILED").skip(1).map(str::to_owned).collect();
    for what in ["queue", "ledger", "objects"] {
        assert!(failed.iter().any(|words| words.trim_start().starts_with(what)), "{what} was accepted:\n{stdout}");
    }
    let asked = |words: &String| !words.trim_start().starts_with("detector");
    failed.into_iter().filter(asked).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_authority_is_refused_by_all_three_with_a_hint() {
    let lab = over_tls("localhost", "TEST_TLS_STRANGER").await;
    for words in three_failures(&lab).await {
        assert!(words.contains("UnknownIssuer") && words.contains("SSL_CERT_FILE"), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_is_refused_by_all_three_with_a_hint() {
    let lab = over_tls("127.0.0.1", "TEST_TLS_CA").await;
    for words in three_failures(&lab).await {
        assert!(words.contains("not valid for name") && words.contains("hint: use the name"), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_reported() {
    let mut lab = over_tls("localhost", "TEST_TLS_CA").await;
    lab.endpoint = format!("https://localhost:{}", service("TEST_S3_EXPIRED_PORT"));
    let said = lab.run(&["check", "--log", "off"]).await;
    assert_eq!(said.status, 1, "{}", said.stdout);
    assert!(said.stdout.contains("expired") && said.stdout.contains("hint: renew"), "{}", said.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_a_users_permissions_lack() {
    let mut lab = Lab::new().await;
    lab.run(&["check", "--log", "off"]).await.expect_ok();
    sqlx::query("REVOKE UPDATE ON outbox FROM pixwarden_worker").execute(&lab.db).await.unwrap();
    lab.environment = vec![("PIXWARDEN_QUEUE", lab.queue_as("pixwarden-operator"))];
    let said = lab.run(&["check", "--log", "off"]).await;
    assert_eq!(said.status, 1, "{}", said.stdout);
    for words in ["ACCESS_REFUSED", "docs/access.md", "a worker needs more permissions: UPDATE on outbox", "roles.sql"]
    {
        assert!(said.stdout.contains(words), "\"{words}\" is missing in:\n{}", said.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_has_only_the_permissions_it_needs() {
    let lab = Lab::new().await;
    let as_role = async |role: &str| sqlx::PgPool::connect(&lab.ledger_as(role)).await.unwrap();
    let (worker, reader) = (as_role("pixwarden_worker").await, as_role("pixwarden_reader").await);
    for (pool, statement) in [
        (&worker, "DELETE FROM verdicts"),
        (&worker, "TRUNCATE outbox"),
        (&worker, "CREATE TABLE mine (id int)"),
        (&worker, "DELETE FROM _sqlx_migrations"),
        (&worker, "COPY verdicts TO PROGRAM 'cat'"),
        (&worker, "UPDATE banks SET enabled = false"),
        (&worker, "DELETE FROM bank_entries"),
        (&worker, "CREATE TEMPORARY TABLE mine (id int)"),
        (&worker, "UPDATE decisions SET action = 'clear'"),
        (&worker, "DELETE FROM decisions"),
        (&worker, "TRUNCATE decisions"),
        (&worker, "DELETE FROM reports"),
        (&worker, "UPDATE decision_notes SET note = NULL"),
        (&reader, "UPDATE verdicts SET outcome = 'passed'"),
        (&reader, "SELECT count(*) FROM suspects"),
        (&reader, "SELECT count(*) FROM bank_entries"),
        (&reader, "SELECT count(*) FROM webhook_deliveries"),
    ] {
        let refused = sqlx::raw_sql(statement).execute(pool).await.map(drop).unwrap_err();
        let code = refused.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
        assert_eq!(code, "42501", "{statement}: {refused}");
    }
    // A publisher can neither read dead letters nor declare anything.
    let dead = lab.topology.dead();
    let properties = lapin::BasicProperties::default();
    let letter = pixwarden::broker::Message { exchange: "", routing_key: &dead, payload: b"nonsense", properties };
    lab.publisher.publish(letter).await.unwrap();
    let mut command = lab.command();
    command.env("PIXWARDEN_QUEUE", lab.queue_as("pixwarden-publisher"));
    command.arg("--config").arg(lab.config()).args(["dead", "list"]);
    let refused = Ended::of(command).await;
    assert!(refused.status == 1 && refused.stderr.contains("ACCESS_REFUSED"), "{}", refused.stderr);
    // What a worker's key may not do to a bucket.
    let mut reads = lab.s3.config().to_builder();
    reads.set_credentials_provider(Some(aws_sdk_s3::config::SharedCredentialsProvider::new(
        aws_sdk_s3::config::Credentials::new(
            service("TEST_S3_READ_ACCESS_KEY"),
            service("TEST_S3_READ_SECRET_KEY"),
            None,
            None,
            "tests",
        ),
    )));
    let reads = aws_sdk_s3::Client::from_conf(reads.build());
    let refused = reads.put_object().bucket(&lab.bucket).key("k").body(vec![1].into()).send().await.unwrap_err();
    assert_eq!(refused.raw_response().unwrap().status().as_u16(), 403);
}

/// Not to be found in anything that Pixwarden prints, serves, sends or stores.
const CANARY: &str = "c4naryb1rd";

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_ever_printed() {
    let lab = Lab::new().await;
    let worker = lab.started_worker().await;
    let port = |name: &str| service(name).parse::<url::Url>().unwrap().port().unwrap();
    let (amqp, postgres) = (port("TEST_AMQP_URL"), port("TEST_POSTGRES_URL"));
    // Wrong, refused, unescaped in three ways, and no URL at all.
    let urls = |scheme: &str, port: u16| {
        [
            format!("{scheme}://u:{CANARY}@127.0.0.1:{port}/x"),
            format!("{scheme}://u:{CANARY}@127.0.0.1:1/x"),
            format!("{scheme}://u:p@{CANARY}@127.0.0.1:{port}/x"),
            format!("{scheme}://u:12/{CANARY}@127.0.0.1:{port}/x"),
            format!("{scheme}://u:12#{CANARY}@127.0.0.1:{port}/x"),
            format!("{scheme}://u:12?{CANARY}@127.0.0.1:{port}/x"),
            format!("{scheme}//u:{CANARY}@127.0.0.1"),
        ]
    };
    let image = format!("s3://{}/a.jpg", lab.bucket);
    let small = lab.folder.path().join("small.jpg").display().to_string();
    std::fs::write(&small, good_image()).unwrap();
    let commands: [&[&str]; 8] = [
        &["worker"],
        &["check"],
        &["enqueue", &image],
        &["dead", "list"],
        &["show", &image],
        &["export"],
        &["backfill", &image],
        // With a small image: without a path it makes large ones, which takes five seconds of processor time.
        &["bench", &small, "--seconds", "0.01"],
    ];
    let tell = async |arguments: &[&str], name: &'static str, value: &str| {
        let mut command = lab.command();
        command.env("RUST_LOG", "trace").env("HF_TOKEN", CANARY).env("AWS_SECRET_ACCESS_KEY", CANARY).env(name, value);
        command.env("PIXWARDEN_LOG_FILTER", "trace").env("RUST_BACKTRACE", "1");
        command.arg("--config").arg(lab.config()).args(arguments);
        let told = Ended::of(command).await;
        let text = format!("{}{}", told.stdout, told.stderr);
        let line = text.lines().find(|line| line.contains(CANARY) || line.contains(&encoded(CANARY)));
        assert!(line.is_none(), "{arguments:?} with {name}={value}: {line:?}");
        told.status
    };
    let mut runs = Vec::new();
    for (queue, ledger) in std::iter::zip(urls("amqp", amqp), urls("postgres", postgres)) {
        for arguments in commands {
            let reads_queue = !["show", "export"].contains(&arguments[0]);
            let reads_ledger = ["worker", "check", "show", "export", "backfill", "bench"].contains(&arguments[0]);
            if reads_queue {
                runs.push((arguments, "PIXWARDEN_QUEUE", queue.clone()));
            }
            if reads_ledger {
                runs.push((arguments, "PIXWARDEN_LEDGER", ledger.clone()));
            }
        }
    }
    // Most of them wait five seconds for a connection.
    let runs = futures_util::stream::iter(runs).map(async |(arguments, name, value)| {
        assert_ne!(tell(arguments, name, &value).await, 0, "{arguments:?} {name}={value}");
    });
    runs.buffer_unordered(8).collect::<()>().await;
    // A line that is not TOML, a value of another type, and an unknown flag.
    for text in [format!("queue = \"amqp://u:{CANARY}@h\nprefix = 1"), format!("queue = [\"amqp://u:{CANARY}@h\"]")] {
        let file = lab.folder.path().join("broken.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = lab.command();
        command.arg("--config").arg(&file).arg("check");
        let told = Ended::of(command).await;
        assert!(told.status != 0 && !told.stderr.contains(CANARY), "{}", told.stderr);
    }

    // A job that is missing, one that fails, and a message that is none: what is kept of them names no secret of the
    // worker's either.
    lab.publish(Lane::Live, "neither", lapin::BasicProperties::default()).await;
    lab.job(Lane::Live, json!({"image": image})).await;
    // What the ledger refuses fails.
    sqlx::query("ALTER TABLE verdicts ADD CHECK (metadata IS NULL)").execute(&lab.db).await.unwrap();
    lab.job(Lane::Live, json!({"id": "fails", "image": image, "metadata": {"a": 1}})).await;
    lab.until("SELECT count(*) FROM verdicts WHERE job_id = 'fails' AND outcome = 'failed'", 1, &worker).await;
    lab.until("SELECT count(*) FROM verdicts", 2, &worker).await;
    lab.until_settled(&worker).await;
    let rows: String =
        sqlx::query_scalar("SELECT coalesce(string_agg(v::text || o::text, ''), '') FROM verdicts v, outbox o")
            .fetch_one(&lab.db)
            .await
            .unwrap();
    let dead = lab.drain(&lab.topology.dead()).await;
    assert_eq!(dead.len(), 2, "{dead:?}");
    let dead = format!("{dead:?}");
    let served = format!("{}{}", worker.get("/metrics").await.1, worker.get("/readyz").await.1);
    for name in ["TEST_AMQP_PASSWORD", "TEST_POSTGRES_PASSWORD", "TEST_S3_READ_SECRET_KEY"] {
        let secret = service(name);
        for (what, text) in [("rows", &rows), ("dead letters", &dead), ("http", &served), ("log", &worker.log())] {
            assert!(!text.contains(&secret) && !text.contains(&encoded(&secret)), "{name} is in {what}");
        }
    }
}

/// A byte string as `{:?}` of a `Vec<u8>` shows it.
fn encoded(text: &str) -> String {
    let bytes: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    bytes.join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_answers_reads_and_refuses_writes_is_down_until_it_accepts_them() {
    let mut lab = Lab::new().await;
    lab.environment = vec![("PIXWARDEN_LEDGER", lab.ledger_as("pixwarden_worker"))];
    lab.put("k", good_image()).await;
    let mut worker = lab.started_worker().await;
    sqlx::query("REVOKE INSERT ON verdicts FROM pixwarden_worker").execute(&lab.db).await.unwrap();
    lab.job(Lane::Live, json!({"image": format!("s3://{}/k", lab.bucket)})).await;
    worker.until_ready_says(503, "paused: ledger").await;
    // Several probes. One that only read would resume intake.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(worker.log().matches("dependency broken").count(), 1, "{}", worker.log());
    assert!(!worker.log_has("dependency recovered"), "{}", worker.log());
    sqlx::query("GRANT INSERT ON verdicts TO pixwarden_worker").execute(&lab.db).await.unwrap();
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'passed' AND attempts = 1", 1, &worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 1, "no probe is kept");
    assert!(worker.terminate().await.success());
}
