//! Backfills from lists of images: S3 inventories and Rekognition manifests.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use pixwarden::job::Lane;
use serde_json::json;

use crate::backfill::{Summary, answered, backfill, started, verdicts, with_folder};
use crate::support::Lab;

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_read_from_the_store_and_from_local_files() {
    let lab = Lab::new().await;
    let bucket = &lab.bucket;
    let mut etags = BTreeMap::new();
    for key in ["in/a b+.jpg", "in/c.jpg", "in/d.jpg"] {
        etags.insert(key, lab.put(key, key.as_bytes().to_vec()).await);
    }
    let rows = |keys: &[(&str, &str, &str)]| -> String {
        let row = |(key, latest, deleted): &(&str, &str, &str)| {
            let etag = etags.get(key.replace('+', " ").replace("%2B", "+").as_str()).map_or("e", |etag| etag);
            format!(
                "\"{bucket}\",\"{key}\",\"v\",\"{latest}\",\"{deleted}\",\"5\",\"2026-01-02T03:04:05.000Z\",\"{etag}\"\n"
            )
        };
        keys.iter().map(row).collect()
    };
    let data = [
        rows(&[("in/a+b%2B.jpg", "true", "false"), ("in/c.jpg", "false", "false")]),
        rows(&[("in/c.jpg", "true", "false"), ("in/gone.jpg", "true", "true")]),
    ];
    let schema = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag";
    let manifest = json!({"sourceBucket": bucket, "fileFormat": "CSV", "fileSchema": schema, "version": "2016-11-30",
        "files": [{"key": "inventory/data/1.csv.gz", "size": 1}, {"key": "inventory/data/2.csv.gz", "size": 1}]});
    for (i, text) in data.iter().enumerate() {
        lab.put(&format!("inventory/data/{}.csv.gz", i + 1), gzip(text)).await;
    }
    lab.put("inventory/2026-01-02T00-00Z/manifest.json", manifest.to_string().into_bytes()).await;
    let inventory = format!("s3://{bucket}/inventory/2026-01-02T00-00Z/manifest.json");
    let met = Summary { met: 4, filtered: 2, screened: 0, waiting: 0, published: 2 };
    assert_eq!(backfill(&lab, &["--inventory", &inventory, "--dry-run"]).await, met);

    // The same files in a local folder.
    let here = lab.folder.path().join("inventory");
    std::fs::create_dir_all(here.join("data")).unwrap();
    std::fs::create_dir_all(here.join("2026-01-02T00-00Z")).unwrap();
    for (i, text) in data.iter().enumerate() {
        std::fs::write(here.join(format!("data/{}.csv.gz", i + 1)), gzip(text)).unwrap();
    }
    let local = here.join("2026-01-02T00-00Z/manifest.json");
    std::fs::write(&local, manifest.to_string()).unwrap();
    assert_eq!(backfill(&lab, &["--inventory", local.to_str().unwrap()]).await, met);

    // A manifest has only names, so that the store is asked for each object; a missing object gets a verdict too.
    let lines: String = ["in/c.jpg", "in/d.jpg", "in/d.jpg", "in/gone.jpg"]
        .iter()
        .map(|key| json!({"source-ref": format!("s3://{bucket}/{key}"), "x": 1}).to_string() + "\n")
        .collect();
    let list = lab.folder.path().join("list.jsonl");
    std::fs::write(&list, &lines).unwrap();
    lab.put("list.jsonl", lines.into_bytes()).await;
    let met = Summary { met: 4, filtered: 0, screened: 0, waiting: 2, published: 2 };
    assert_eq!(backfill(&lab, &["--manifest", list.to_str().unwrap()]).await, met);
    let mut worker = lab.started_worker().await;
    answered(&lab, 4, &worker).await;
    assert_eq!(
        verdicts(&lab).await.into_keys().collect::<Vec<_>>(),
        ["in/a b+.jpg", "in/c.jpg", "in/d.jpg", "in/gone.jpg"]
    );
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE outcome = 'missing'").await, 1);
    let again = backfill(&lab, &["--manifest", &format!("s3://{bucket}/list.jsonl")]).await;
    assert_eq!((again.screened, again.published), (4, 0), "{again:?}");
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_of_an_inventory_stops_the_run_and_loses_no_later_row() {
    let lab = with_folder(0).await;
    let here = lab.folder.path().join("inventory");
    std::fs::create_dir(&here).unwrap();
    let manifest = json!({"fileFormat": "CSV", "fileSchema": "Bucket, Key, ETag",
        "files": [{"key": "data/1.csv.gz"}, {"key": "data/2.csv"}]});
    let path = here.join("manifest.json");
    std::fs::write(&path, manifest.to_string()).unwrap();
    let row = |key: &str| format!("\"{}\",\"{key}\",\"e\"\n", lab.bucket);
    let first =
        |middle: String| std::fs::write(here.join("1.csv.gz"), gzip(&(row("1") + &middle + &row("3")))).unwrap();
    first("\"bucket and no more\"\n".into());
    std::fs::write(here.join("2.csv"), row("4") + &row("5")).unwrap();

    let arguments = ["backfill", "--inventory", path.to_str().unwrap()];
    let failed = lab.run(&arguments).await;
    assert_eq!(failed.status, 1, "{}", failed.stderr);
    assert!(failed.stderr.contains("1.csv.gz: row 2:"), "{}", failed.stderr);
    let lane = lab.topology.lane(Lane::Backfill);
    assert_eq!(lab.waiting(&lane).await, 1, "no row after the damaged one");
    // With the row repaired, the next run continues there.
    first(row("2"));
    lab.run(&arguments).await.expect_ok();
    let mut keys: Vec<String> =
        lab.drain(&lane).await.iter().map(|(body, _)| body["image"]["key"].as_str().unwrap().to_owned()).collect();
    keys.sort();
    assert_eq!(keys, ["1", "2", "3", "4", "5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_progress_mark_belongs_to_the_list_that_it_was_made_in() {
    let lab = with_folder(1_200).await;
    let path = lab.folder.path().join("list.jsonl");
    let list = |numbers: std::ops::Range<usize>| {
        let line = |i| json!({"source-ref": format!("s3://{}/{:02}/{i:05}.jpg", lab.bucket, i % 7)}).to_string() + "\n";
        std::fs::write(&path, numbers.map(line).collect::<String>()).unwrap();
    };
    list(0..1_195);
    let arguments = ["--manifest", path.to_str().unwrap()];
    let mut run = started(&lab, &[&arguments[..], &["--depth", "1100"]].concat());
    let since = Instant::now();
    while lab.count("SELECT count(*) FROM backfill_jobs").await < 1_100 {
        assert!(since.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    run.kill().await.unwrap();
    sqlx::query("DELETE FROM backfill_turn").execute(&lab.db).await.unwrap();
    // Another list under the same name: the run starts at its beginning.
    list(1_190..1_200);
    let other = backfill(&lab, &arguments).await;
    assert_eq!((other.met, other.published), (10, 10));
    list(0..1_195);
    let whole = backfill(&lab, &arguments).await;
    assert_eq!((whole.met, whole.published), (1_195, 90), "{whole:?}");
}
