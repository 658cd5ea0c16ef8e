//! `bench`: figures that agree with each other, and nothing left of the measuring. How fast anything is, is not tested.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Ended, Lab, good_image, judged_fixtures};

/// A world whose batches may take as long as they like, with pictures in a folder.
async fn lab_with_images() -> (Lab, PathBuf) {
    let mut lab = Lab::new().await;
    lab.extra = "[inference]\nmax_batch = 6\nmax_run_ms = 600000".into();
    let images = lab.folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for (i, fixture) in judged_fixtures().iter().take(40).enumerate() {
        std::fs::write(images.join(i.to_string()), &fixture.bytes).unwrap();
    }
    std::fs::write(images.join("good.jpg"), good_image()).unwrap();
    std::fs::write(images.join("notes.txt"), "no image").unwrap();
    (lab, images)
}

fn command(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = lab.command();
    command.arg("--config").arg(lab.config()).args(["bench", "--log", "error"]).args(arguments);
    command
}

async fn bench(lab: &Lab, arguments: &[&str]) -> (Value, Ended) {
    let ended = Ended::of(command(lab, &[&["--seconds", "0.05"], arguments].concat())).await;
    let report = serde_json::from_str(&ended.stdout);
    (report.unwrap_or_else(|e| panic!("{e}: {}{}", ended.stdout, ended.stderr)), ended)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

async fn schemas(lab: &Lab) -> i64 {
    lab.count("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pixwarden_bench%'").await
}

/// Whether every table is as empty and the broker has the same queues as before.
async fn is_untouched(lab: &Lab, queues_before: &BTreeSet<String>) {
    assert_eq!(schemas(lab).await, 0);
    for query in ["SELECT count(*) FROM verdicts", "SELECT count(*) FROM outbox"] {
        assert_eq!(lab.count(query).await, 0, "{query}");
    }
    assert_eq!(queues(lab).await, *queues_before);
    for queue in [lab.topology.lane(pixwarden::job::Lane::Live), lab.topology.dead()] {
        assert_eq!(lab.waiting(&queue).await, 0, "{queue}");
    }
}

async fn queues(lab: &Lab) -> BTreeSet<String> {
    lab.queue_counts().await.into_iter().map(|(name, ..)| name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_part_is_measured_the_figures_agree_and_nothing_is_left_behind() {
    let (lab, images) = lab_with_images().await;
    for key in ["archive/a.jpg", "archive/b.jpg"] {
        lab.put(key, good_image()).await;
    }
    let before = queues(&lab).await;
    let archive = format!("s3://{}/archive/", lab.bucket);
    let arguments = [images.to_str().unwrap(), &archive, "--ledger", &lab.ledger_url, "--price-per-hour", "0.9"];
    let (report, ended) = bench(&lab, &arguments).await;
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    is_untouched(&lab, &before).await;

    let found = &report["images"];
    assert_eq!(found["source"], "paths");
    assert!(number(&found["count"]) >= 1.0 && number(&found["count"]) <= number(&found["found"]), "{found}");
    assert!(number(&found["megapixels"]) > 0.0 && number(&found["frames"]) >= 1.0, "{found}");

    let detectors = report["detectors"].as_array().unwrap();
    assert_eq!((detectors.len(), &detectors[0]["name"]), (1, &json!("spread-nhwc")));
    let batches = detectors[0]["batches"].as_array().unwrap();
    assert_eq!(batches.iter().map(|batch| number(&batch["batch"])).collect::<Vec<_>>(), [1.0, 2.0, 4.0, 6.0]);
    assert_eq!(detectors[0]["max_batch"], 6);
    for batch in batches {
        assert!(
            number(&batch["p50_ms"]) <= number(&batch["p95_ms"]) && number(&batch["images_per_s"]) > 0.0,
            "{batch}"
        );
    }

    let (storage, ledger, broker) = (&report["storage"], &report["ledger"], &report["broker"]);
    assert_eq!(storage["objects"], 2);
    #[expect(clippy::cast_precision_loss, reason = "a small file")]
    let length = good_image().len() as f64;
    assert!((number(&storage["bytes"]) - length).abs() < 1e-6, "{storage}");
    let rates = [
        ("pipeline", &report["pipeline"]["images_per_s"]),
        ("storage", &storage["images_per_s"]),
        ("ledger", &ledger["rows_per_s"]),
        ("broker", &broker["messages_per_s"]),
    ];
    let (slowest, rate) = rates.iter().min_by(|a, b| number(a.1).total_cmp(&number(b.1))).unwrap();
    let bound = &report["bound"];
    assert_eq!(&bound["images_per_s"], *rate);
    match *slowest {
        "pipeline" => assert!(bound["by"] == "decode" || bound["by"] == "session", "{bound}"),
        service => assert_eq!(bound["by"], service),
    }
    let million = &report["million_images"];
    let hours = 1e6 / number(rate) / 3600.0;
    assert!((number(&million["hours"]) - hours).abs() < 1e-9 * hours, "{million}");
    assert!((number(&million["cost"]) - hours * 0.9).abs() < 1e-9 * hours, "{million}");

    // What is recommended is accepted.
    let recommended = &report["recommended"];
    let max_batch = recommended["inference.max_batch"].as_u64().unwrap();
    assert!([1, 2, 4, 6].contains(&max_batch), "{recommended}");
    assert_eq!(recommended["decode.threads"], report["cores"]);
    assert_eq!(recommended["worker.prefetch"], 2 * max_batch + report["cores"].as_u64().unwrap() + 16 + 64);
    assert_eq!(report["not_measured"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_fails_is_reported_and_the_others_are_measured() {
    let (mut lab, images) = lab_with_images().await;
    let before = queues(&lab).await;
    let images = images.to_str().unwrap();
    // A worker's user may make no schema, and must not need to.
    let (report, ended) = bench(&lab, &[images]).await;
    assert_eq!(ended.status, 1);
    let why = report["not_measured"]["ledger"].as_str().unwrap();
    assert!(why.contains("permission denied") && why.contains("hint: "), "{why}");
    assert!(ended.stderr.contains(why), "{}", ended.stderr);
    assert!(report["ledger"].is_null() && number(&report["broker"]["messages_per_s"]) > 0.0, "{report}");
    assert_eq!(report["not_measured"]["storage"], "no PATH names s3://");
    is_untouched(&lab, &before).await;

    // Without services, none is tried; without a price there is no cost.
    lab.environment = vec![("PIXWARDEN_QUEUE", String::new()), ("PIXWARDEN_LEDGER", String::new())];
    let (report, ended) = bench(&lab, &[images]).await;
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    for part in ["storage", "ledger", "broker"] {
        assert!(report[part].is_null() && report["not_measured"][part].is_string(), "{part}: {report}");
    }
    assert!(report["million_images"]["cost"].is_null());
    assert_eq!(number(&report["bound"]["images_per_s"]), number(&report["pipeline"]["images_per_s"]));

    let table = Ended::of(command(&lab, &[images, "--seconds", "0.05", "--format", "table"])).await.expect_ok();
    for words in ["spread-nhwc on CPU", "not measured: ledger", "bottleneck: ", "max_batch = ", "a million such images"]
    {
        assert!(table.stdout.contains(words), "\"{words}\" is missing in:\n{}", table.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_ledger_and_its_folder_are_not_changed() {
    let (lab, images) = lab_with_images().await;
    let folder = lab.folder.path().join("ledger");
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("verdicts.db");
    std::fs::write(&file, "not even a database").unwrap();
    let ledger = format!("sqlite://{}", file.display());
    let (report, ended) = bench(&lab, &[images.to_str().unwrap(), "--ledger", &ledger]).await;
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    assert!(number(&report["ledger"]["rows_per_s"]) > 0.0, "{report}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "not even a database");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_sample_is_an_error_with_a_hint() {
    let (lab, images) = lab_with_images().await;
    let empty = lab.folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    std::fs::write(empty.join("notes.txt"), "no image").unwrap();
    std::fs::write(empty.join("cut.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    let nothing = format!("s3://{}/nothing/", lab.bucket);
    for (path, status, words) in [
        (empty.to_str().unwrap(), 1, ["1 files look like images, but none decodes", "hint: name files"]),
        ("nowhere", 1, ["cannot read nowhere", "no such file"]),
        (&nothing, 1, ["no object to fetch at s3://", "hint: name s3://bucket/key"]),
        ("s3://another/a.jpg", 2, ["\"another\" is not allowed", "hint: add it"]),
        ("s3:///a.jpg", 2, ["is not s3://bucket/key", "\"s3:///a.jpg\""]),
    ] {
        let ended = Ended::of(command(&lab, &[path, "--seconds", "0.05"])).await;
        assert_eq!(ended.status, status, "{path}: {}", ended.stderr);
        assert!(ended.stdout.is_empty() && ended.stderr.contains("error: "), "{path}: {}", ended.stderr);
        for words in words {
            assert!(ended.stderr.contains(words), "\"{words}\" is missing in:\n{}", ended.stderr);
        }
    }
    for wrong in [["--seconds", "0"], ["--seconds", "NaN"], ["--price-per-hour", "-1"]] {
        let ended = Ended::of(command(&lab, &[&[images.to_str().unwrap()], &wrong[..]].concat())).await;
        assert_eq!(ended.status, 2, "{wrong:?}: {}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_during_commits_still_drops_the_tables() {
    let (mut lab, images) = lab_with_images().await;
    lab.extra = "[inference]\nmax_batch = 1".into();
    let before = queues(&lab).await;
    let image = images.join("good.jpg");
    let arguments = [image.to_str().unwrap(), "--seconds", "3", "--ledger", &lab.ledger_url];
    let child = command(&lab, &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let since = Instant::now();
    while schemas(&lab).await == 0 {
        assert!(since.elapsed() < Duration::from_secs(60), "no commit is measured");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &pid]).status().await.unwrap().success());
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(ended.stdout.is_empty() && said.contains("stopped before the end"), "{said}");
    is_untouched(&lab, &before).await;
}
