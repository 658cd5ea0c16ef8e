//! One screen behind three doors: `scan`, a worker with S3 and Postgres, and a worker with a folder and SQLite.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pixwarden::config::SecretUrl;
use pixwarden::job::{Lane, Verdict, exact, exact_scores, verdict_id};
use pixwarden::ledger::{Archive, Ledger, MissingFile, Postgres, Sqlite};
use serde_json::{Value, json};

use crate::support::{Lab, Worker, judged_fixtures};

const IMAGES: usize = 200;

/// Two hundred different files: every fixture, and after them some with their colours turned.
fn images() -> Vec<(String, Vec<u8>)> {
    let fixtures: Vec<_> = judged_fixtures().into_iter().map(|fixture| fixture.bytes).collect();
    let more = fixtures.iter().filter_map(|bytes| image::load_from_memory(bytes).ok()).map(|image| {
        let mut png = std::io::Cursor::new(Vec::new());
        image.huerotate(120).to_rgb8().write_to(&mut png, image::ImageFormat::Png).unwrap();
        png.into_inner()
    });
    let all: Vec<_> = fixtures.iter().cloned().chain(more).take(IMAGES).collect();
    assert_eq!(all.len(), IMAGES);
    all.into_iter().enumerate().map(|(i, bytes)| (format!("{i:03}"), bytes)).collect()
}

/// What `scan` prints of an image, but its name.
fn row(verdict: &Verdict) -> Value {
    json!({
        "outcome": verdict.judgement.outcome, "reason": verdict.judgement.reason, "label": verdict.judgement.label,
        "score": verdict.judgement.score.map(exact), "allow": verdict.judgement.allows(),
        "scores": verdict.facts.as_ref().map(|facts| exact_scores(&facts.scores)), "findings": verdict.judgement.findings,
        "sha256": verdict.sha256.map(hex::encode), "bytes": verdict.bytes,
        "format": verdict.seen.map(|seen| seen.format), "width": verdict.seen.map(|seen| seen.width),
        "height": verdict.seen.map(|seen| seen.height), "frames": verdict.seen.map(|seen| seen.frames),
        "damage": verdict.facts.as_ref().map(|facts| &facts.damage),
        "hashes": verdict.facts.as_ref().map(|facts| &facts.hashes),
    })
}

/// Publishes a job an image and reads their verdicts.
async fn screened(lab: &Lab, ledger: &dyn Ledger, worker: &mut Worker) -> BTreeMap<String, Value> {
    for i in 0..IMAGES {
        let name = format!("{i:03}");
        lab.job(Lane::Live, json!({"id": name, "image": format!("s3://{}/{name}", lab.bucket)})).await;
    }
    let (began, mut rows) = (Instant::now(), BTreeMap::new());
    for i in 0..IMAGES {
        let name = format!("{i:03}");
        let verdict = loop {
            if let Some(stored) = ledger.read_verdict(verdict_id(&name)).await.unwrap() {
                break stored.verdict;
            }
            assert!(began.elapsed() < Duration::from_secs(100), "no verdict on {name}:\n{}", worker.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        rows.insert(name, row(&verdict));
    }
    assert!(worker.terminate().await.success());
    rows
}

/// A world whose worker has a folder and a SQLite file.
async fn embedded() -> (Lab, PathBuf) {
    let mut lab = Lab::new().await;
    lab.extra = "[worker]\nreuse_scores = false\nattempts = 1".into();
    lab.bucket = "uploads".into();
    let store = lab.folder.path().join("store");
    std::fs::create_dir_all(store.join("uploads")).unwrap();
    let file = lab.folder.path().join("ledger.db");
    let (objects, ledger) = (format!("file://{}", store.display()), format!("sqlite://{}", file.display()));
    // Its own first start makes the file.
    lab.flags = ["--objects", &objects, "--ledger", &ledger, "--migrate"].map(str::to_owned).to_vec();
    (lab, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn scan_and_both_kinds_of_worker_say_the_same_of_two_hundred_images() {
    let mut lab = Lab::new().await;
    lab.extra = "[worker]\nreuse_scores = false".into();
    let (embedded, file) = embedded().await;
    let uploads = embedded.folder.path().join("store/uploads");
    for (name, bytes) in images() {
        std::fs::write(uploads.join(&name), &bytes).unwrap();
        lab.put(&name, bytes).await;
    }

    let scan = lab.run(&["scan", "--format", "jsonl", uploads.to_str().unwrap()]).await.expect_ok();
    let scanned: BTreeMap<String, Value> = scan
        .stdout
        .lines()
        .map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            let image = row.as_object_mut().unwrap().remove("image").unwrap();
            (image.as_str().unwrap().rsplit('/').next().unwrap().to_owned(), row)
        })
        .collect();
    assert_eq!(scanned.len(), IMAGES);
    let outcomes: std::collections::BTreeSet<_> =
        scanned.values().map(|row| row["outcome"].as_str().unwrap().to_owned()).collect();
    assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), ["flagged", "passed", "review", "undecodable"]);

    let postgres = Postgres::open(&SecretUrl::from(lab.ledger_url.clone())).await.unwrap();
    let mut worker = lab.started_worker().await;
    same(&screened(&lab, &postgres, &mut worker).await, &scanned);
    let mut worker = embedded.started_worker().await;
    let sqlite = Sqlite::open(&file, MissingFile::Refuse).await.unwrap();
    same(&screened(&embedded, &sqlite, &mut worker).await, &scanned);
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, i64::try_from(IMAGES).unwrap());
}

/// Equal to the letter, but for scores: a model's sums may round otherwise in a batch of another size.
fn same(found: &BTreeMap<String, Value>, wanted: &BTreeMap<String, Value>) {
    const ROUNDING: f64 = 1e-5;
    for (name, wanted) in wanted {
        let found = &found[name];
        for (field, value) in wanted.as_object().unwrap() {
            let alike = match field.as_str() {
                "score" => near(&found[field], value, ROUNDING),
                "scores" => match (found[field].as_object(), value.as_object()) {
                    (Some(found), Some(wanted)) => wanted.iter().all(|(detector, labels)| {
                        let labels = labels.as_object().unwrap();
                        labels.iter().all(|(label, p)| near(&found[detector][label], p, ROUNDING))
                    }),
                    (found, wanted) => found.is_none() && wanted.is_none(),
                },
                _ => found[field] == *value,
            };
            assert!(alike, "{name}: {field} is {}, scan says {value}", found[field]);
        }
    }
}

fn near(found: &Value, wanted: &Value, tolerance: f64) -> bool {
    match (found.as_f64(), wanted.as_f64()) {
        (Some(found), Some(wanted)) => (found - wanted).abs() <= tolerance,
        (found, wanted) => found == wanted,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_reads_a_file_outside_of_its_bucket() {
    let (mut lab, file) = embedded().await;
    lab.bucket = "*".into();
    let store = lab.folder.path().join("store");
    let good = judged_fixtures().into_iter().find(|fixture| fixture.outcome == "flagged").unwrap().bytes;
    std::fs::create_dir(store.join("private")).unwrap();
    for path in ["outside", "store/in-no-bucket", "store/private/secret", "store/uploads/mine"] {
        std::fs::write(lab.folder.path().join(path), &good).unwrap();
    }
    std::os::unix::fs::symlink("../private/secret", store.join("uploads/link")).unwrap();
    std::os::unix::fs::symlink(lab.folder.path(), store.join("uploads/up")).unwrap();
    std::os::unix::fs::symlink(lab.folder.path(), store.join("linked")).unwrap();
    let listener = lab.listen().await;
    let mut worker = lab.started_worker().await;
    let sqlite = Sqlite::open(&file, MissingFile::Refuse).await.unwrap();
    let absolute = lab.folder.path().join("outside").display().to_string();
    let cases = [
        // Every name is allowed, and these are no buckets.
        ("root", ".", "in-no-bucket", "rejected"),
        ("above", "..", "outside", "rejected"),
        ("linked-bucket", "linked", "outside", "failed"),
        ("dots", "uploads", "../private/secret", "missing"),
        ("far", "uploads", "../../outside", "missing"),
        ("absolute", "uploads", absolute.as_str(), "missing"),
        ("link", "uploads", "link", "failed"),
        ("linked-folder", "uploads", "up/outside", "failed"),
        ("mine", "uploads", "mine", "flagged"),
    ];
    for (id, bucket, key, _) in cases {
        lab.job(Lane::Live, json!({"id": id, "image": {"bucket": bucket, "key": key}})).await;
    }
    let began = Instant::now();
    for (id, _, key, outcome) in cases {
        let verdict = loop {
            match sqlite.read_verdict(verdict_id(id)).await.unwrap().map(|stored| stored.verdict) {
                Some(verdict) => break verdict,
                None => assert!(began.elapsed() < Duration::from_secs(60), "{id}:\n{}", worker.log()),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(verdict.judgement.outcome.as_str(), outcome, "{key}: {:?}", verdict.judgement.reason);
        assert_eq!(verdict.sha256.is_some(), outcome == "flagged", "{key} was read");
    }
    lab.until_settled(&worker).await;
    assert!(worker.terminate().await.success());
    let mut told: Vec<_> =
        lab.drain(&listener).await.into_iter().map(|(event, _)| event["data"]["job_id"].clone()).collect();
    told.sort_by_key(ToString::to_string);
    let mut all: Vec<_> = cases.iter().map(|(id, ..)| json!(id)).collect();
    all.sort_by_key(ToString::to_string);
    assert_eq!(told, all, "its outbox works as well");
    assert!(!worker.log().contains("dependency broken"), "names that jobs make up say nothing of the store");
}
