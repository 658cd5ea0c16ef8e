//! An archive and its ledger: everything gets a job once, however often and however interrupted a backfill runs.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use pixwarden::job::Lane;
use serde_json::{Value, json};
use tokio::process::Child;

use crate::support::{Ended, Lab, Worker, fault, good_image};

/// What a run says it did.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    pub met: u64,
    pub filtered: u64,
    pub screened: u64,
    pub waiting: u64,
    pub published: u64,
}

fn summary(ended: &Ended) -> Summary {
    let row: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {}", ended.stdout));
    let n = |name: &str| row[name].as_u64().unwrap();
    Summary {
        met: n("met"),
        filtered: n("filtered"),
        screened: n("screened"),
        waiting: n("waiting"),
        published: row.get("published").or(row.get("to_publish")).and_then(Value::as_u64).unwrap(),
    }
}

pub async fn backfill(lab: &Lab, arguments: &[&str]) -> Summary {
    summary(&lab.run(&[&["backfill"][..], arguments].concat()).await.expect_ok())
}

/// A backfill in a separate process.
pub fn started(lab: &Lab, arguments: &[&str]) -> Child {
    let mut command = lab.command();
    command.arg("--config").arg(lab.config_of("backfill")).arg("backfill").args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

async fn ended(child: Child) -> Ended {
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
    output.expect("the backfill does not end").unwrap().into()
}

/// Stores small objects, many at a time. That they are no images makes no difference here.
async fn put(lab: &Lab, keys: impl IntoIterator<Item = String>) {
    let puts = keys.into_iter().map(|key| async move {
        let body = key.clone().into_bytes();
        lab.put(&key, body).await;
    });
    futures_util::stream::iter(puts).buffer_unordered(32).collect::<Vec<_>>().await;
}

pub async fn answered(lab: &Lab, verdicts: usize, worker: &Worker) {
    lab.until("SELECT count(*) FROM verdicts", i64::try_from(verdicts).unwrap(), worker).await;
    lab.until_settled(worker).await;
}

/// Every key that has a verdict, with how many.
pub async fn verdicts(lab: &Lab) -> BTreeMap<String, i64> {
    let query = "SELECT key, count(*) FROM verdicts GROUP BY key";
    sqlx::query_as(query).fetch_all(&lab.db).await.unwrap().into_iter().collect()
}

/// A world whose objects lie in a folder, where thousands cost nothing.
pub async fn with_folder(objects: usize) -> Lab {
    fill_folder(Lab::new().await, objects)
}

fn fill_folder(mut lab: Lab, objects: usize) -> Lab {
    let root = lab.folder.path().join("objects");
    std::fs::create_dir_all(root.join(&lab.bucket)).unwrap();
    for i in 0..objects {
        let path = root.join(&lab.bucket).join(format!("{:02}/{i:05}.jpg", i % 7));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{i}")).unwrap();
    }
    lab.objects = format!("file://{}", root.display());
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_are_filled_and_nothing_else() {
    let mut lab = Lab::new().await;
    let odd = ["a b.jpg", "a+b.jpg", "a%20b.jpg", "ü/ß.jpg", "tab\there", "line\nbreak", "q?&=#.jpg", "😀", "e\u{301}"];
    // More than a store lists at a time.
    let plain: Vec<String> = (0..1_100).map(|i| format!("many/{i:04}.jpg")).collect();
    let mut keys: BTreeSet<String> = odd.iter().map(|key| (*key).to_owned()).chain(plain).collect();
    put(&lab, keys.iter().cloned()).await;
    lab.put("folder/", Vec::new()).await;
    let source = format!("s3://{}/", lab.bucket);

    // Some were screened as they came, under ids of their own.
    let mut worker = lab.started_worker().await;
    for (i, key) in odd.iter().take(3).enumerate() {
        let image = json!({"bucket": lab.bucket, "key": key});
        lab.job(Lane::Live, json!({"id": format!("upload-{i}"), "image": image})).await;
    }
    answered(&lab, 3, &worker).await;

    let total = keys.len() as u64;
    let expected = Summary { met: total + 1, filtered: 1, screened: 3, waiting: 0, published: total - 3 };
    assert_eq!(backfill(&lab, &[&source, "--dry-run"]).await, expected);
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 3, "a dry run publishes nothing");
    assert_eq!(backfill(&lab, &[&source]).await, expected);
    answered(&lab, keys.len(), &worker).await;
    let found = verdicts(&lab).await;
    assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), keys, "every key, letter by letter");
    assert!(found.values().all(|n| *n == 1), "{found:?}");
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE outcome = 'missing'").await, 0);

    // A second run publishes nothing, but what has come or changed meanwhile.
    let nothing = Summary { met: total + 1, filtered: 1, screened: total, waiting: 0, published: 0 };
    assert_eq!(backfill(&lab, &[&source]).await, nothing);
    lab.put("many/0007.jpg", b"another state of it".to_vec()).await;
    put(&lab, ["new.jpg".to_owned()]).await;
    keys.insert("new.jpg".into());
    assert_eq!(backfill(&lab, &[&source]).await.published, 2);
    answered(&lab, keys.len() + 1, &worker).await;
    assert_eq!(backfill(&lab, &[&source, "--dry-run"]).await.published, 0);
    assert_eq!(lab.count("SELECT count(*) FROM backfill_progress").await, 0, "a run that ended leaves no mark");
    assert!(worker.terminate().await.success());

    // Another detector has seen none of them.
    lab.detectors.push_str(&format!(", {:?}", crate::support::fixtures().join("detectors/spread-nchw")));
    lab.extra = ["spread-nhwc", "spread-nchw"]
        .map(|name| {
            format!("[[policy.rules]]\ndetector = {name:?}\nlabel = \"by AI\"\nreview_at = 0.5\nflag_at = 0.9\n")
        })
        .concat();
    let total = keys.len() as u64;
    let all = Summary { met: total + 1, filtered: 1, screened: 0, waiting: 0, published: total };
    assert_eq!(backfill(&lab, &[&source, "--dry-run"]).await, all);
    let mut worker = lab.started_worker().await;
    assert_eq!(backfill(&lab, &[&source]).await, all);
    answered(&lab, 2 * keys.len() + 1, &worker).await;
    assert_eq!(backfill(&lab, &[&source]).await.published, 0);
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_after_a_killed_one_continues_and_loses_nothing() {
    const OBJECTS: usize = 3_000;
    let lab = with_folder(OBJECTS).await;
    let source = format!("s3://{}/", lab.bucket);
    let lane = lab.topology.lane(Lane::Backfill);
    // Once in the middle of a page, and once behind a whole one.
    for reached in [600, 1_700] {
        let mut run = started(&lab, &[&source, "--rate", "1500"]);
        let since = Instant::now();
        while lab.waiting(&lane).await < reached {
            assert!(since.elapsed() < Duration::from_secs(60), "{} published", lab.waiting(&lane).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        run.kill().await.unwrap();
    }
    assert_eq!(lab.count("SELECT count(*) FROM backfill_progress").await, 1, "a mark is left");
    let began = Instant::now();
    let last = lab.run(&["backfill", &source]).await.expect_ok();
    assert!(last.stderr.contains("continuing where an earlier run stopped"), "{}", last.stderr);
    assert!(last.stderr.contains("waiting for another backfill"), "{}", last.stderr);
    assert!(began.elapsed() < Duration::from_secs(40), "a dead run's turn ends: {:?}", began.elapsed());
    assert!(summary(&last).met < OBJECTS as u64, "the first page is not read again: {last:?}", last = summary(&last));

    let bodies: Vec<String> = lab.drain(&lane).await.into_iter().map(|(body, _)| body.to_string()).collect();
    let distinct: BTreeSet<&String> = bodies.iter().collect();
    assert_eq!(distinct.len(), OBJECTS, "every object has its job");
    // What was published and not noted when it was killed.
    assert!(bodies.len() <= OBJECTS + 2 * 250, "{} jobs", bodies.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_at_once_and_one_before_the_lane_is_empty_publish_nothing_twice() {
    const OBJECTS: usize = 1_500;
    let lab = with_folder(OBJECTS).await;
    let whole = format!("s3://{}/", lab.bucket);
    let part = format!("s3://{}/03/", lab.bucket);
    let runs = [started(&lab, &[&whole]), started(&lab, &[&whole]), started(&lab, &[&part])];
    let mut published = 0;
    for run in runs {
        published += summary(&ended(run).await.expect_ok()).published;
    }
    let lane = lab.topology.lane(Lane::Backfill);
    assert_eq!((published, lab.waiting(&lane).await), (1_500, 1_500));
    let waiting = Summary { met: 1_500, filtered: 0, screened: 0, waiting: 1_500, published: 0 };
    assert_eq!(backfill(&lab, &[&whole]).await, waiting);
    assert_eq!(backfill(&lab, &[&whole, "--dry-run"]).await, waiting);
    // A lane that was emptied by hand: its jobs are lost, and are published again once they are old enough.
    lab.drain(&lane).await;
    assert_eq!(backfill(&lab, &[&whole, &part, "--again-after", "0s"]).await.published, 1_500);
    assert_eq!(backfill(&lab, &[&whole]).await, waiting, "what that one published waits like any other");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_is_never_fuller_than_allowed() {
    const OBJECTS: usize = 400;
    let lab = with_folder(OBJECTS).await;
    let folder = format!("{}/{}", lab.objects, lab.bucket);
    let run = started(&lab, &[&folder, "--depth", "50"]);
    let lane = lab.topology.lane(Lane::Backfill);
    let since = Instant::now();
    while lab.waiting(&lane).await < 50 {
        assert!(since.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // It looks again twice a second, and must not find room where there is none.
    for _ in 0..15 {
        assert_eq!(lab.waiting(&lane).await, 50);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut worker = lab.started_worker().await;
    assert_eq!(summary(&ended(run).await.expect_ok()).published, OBJECTS as u64);
    answered(&lab, OBJECTS, &worker).await;
    assert!(verdicts(&lab).await.values().all(|n| *n == 1));
    // Nothing but what the limit allows, and the rest the next time.
    std::fs::remove_dir_all(lab.folder.path().join("objects").join(&lab.bucket).join("00")).unwrap();
    assert_eq!(backfill(&lab, &[&folder]).await.published, 0);
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_and_filters_bound_what_is_published() {
    let lab = with_folder(60).await;
    let source = format!("s3://{}/", lab.bucket);
    let first = lab.run(&["backfill", &source, "--limit", "25"]).await.expect_ok();
    assert_eq!(summary(&first).published, 25);
    assert!(first.stderr.contains("the limit is reached"), "{}", first.stderr);
    let rest = backfill(&lab, &[&source]).await;
    assert_eq!((rest.published, rest.waiting), (35, 25));
    let counted = |arguments: &'static [&'static str]| {
        let arguments = [&[source.as_str(), "--dry-run", "--again-after", "0s"][..], arguments].concat();
        let lab = &lab;
        async move { backfill(lab, &arguments).await.published }
    };
    let (one, other) = (format!("{source}00/"), format!("{source}01/"));
    let side_by_side = backfill(&lab, &[&one, &other, "--dry-run"]).await;
    assert_eq!((side_by_side.met, side_by_side.waiting), (18, 18), "{side_by_side:?}");
    assert_eq!(counted(&["--suffix", ".JPG"]).await, 60);
    assert_eq!(counted(&["--suffix", ".png"]).await, 0);
    assert_eq!(counted(&["--min-bytes", "2"]).await, 50, "two digits");
    assert_eq!(counted(&["--max-bytes", "1"]).await, 10);
    assert_eq!(counted(&["--until", "2026-01-01"]).await, 0);
    assert_eq!(counted(&["--since", "2026-01-01"]).await, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_and_missing_images_are_published_again_only_on_request() {
    let lab = with_folder(3).await;
    let root = lab.folder.path().join("objects").join(&lab.bucket);
    let source = format!("s3://{}/", lab.bucket);
    std::fs::write(root.join("00/00000.jpg"), good_image()).unwrap();
    assert_eq!(backfill(&lab, &[&source]).await.published, 3);
    // One is away while its job is worked on, and one fails.
    std::fs::rename(root.join("01"), root.join("away")).unwrap();
    let mut worker = lab.started_worker().await;
    answered(&lab, 3, &worker).await;
    sqlx::query("UPDATE verdicts SET outcome = 'failed' WHERE key LIKE '02/%'").execute(&lab.db).await.unwrap();
    std::fs::rename(root.join("away"), root.join("01")).unwrap();
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE outcome = 'missing'").await, 1);

    assert_eq!(backfill(&lab, &[&source]).await.published, 0, "each has a verdict");
    assert_eq!(backfill(&lab, &[&source, "--retry-failed", "--dry-run"]).await.published, 2);
    assert_eq!(backfill(&lab, &[&source, "--retry-failed"]).await.published, 2);
    let query = "SELECT count(*) FROM verdicts WHERE outcome = 'undecodable'";
    lab.until(query, 2, &worker).await;
    lab.until_settled(&worker).await;
    assert_eq!(backfill(&lab, &[&source, "--retry-failed"]).await.published, 0);
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE key LIKE '02/%'").await, 1, "the failed one is replaced");

    // The second job of what was missing fails in its turn: its verdict is not the first job's.
    let fail = "UPDATE verdicts SET outcome = 'failed' WHERE key LIKE '01/%' AND outcome = 'undecodable'";
    sqlx::query(fail).execute(&lab.db).await.unwrap();
    assert_eq!(backfill(&lab, &[&source, "--retry-failed"]).await.published, 1);
    lab.until(query, 2, &worker).await;
    lab.until_settled(&worker).await;
    assert_eq!(backfill(&lab, &[&source, "--retry-failed"]).await.published, 0);
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_interrupted_long_ago_starts_at_the_beginning() {
    let lab = with_folder(1_200).await;
    let source = format!("s3://{}/", lab.bucket);
    let mut run = started(&lab, &[&source, "--depth", "1100"]);
    let since = Instant::now();
    while lab.count("SELECT count(*) FROM backfill_jobs").await < 1_100 {
        assert!(since.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    run.kill().await.unwrap();
    let forget =
        "WITH gone AS (DELETE FROM backfill_turn) UPDATE backfill_progress SET kept_at = now() - interval '2 days'";
    sqlx::query(forget).execute(&lab.db).await.unwrap();
    let again = backfill(&lab, &[&source, "--limit", "0"]).await;
    assert_eq!((again.met, again.waiting), (1_100, 1_100), "it starts at the first page and publishes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_arguments_are_refused_with_a_hint() {
    let lab = with_folder(1).await;
    let inventory = lab.folder.path().join("manifest.json");
    std::fs::write(&inventory, json!({"fileFormat": "ORC", "fileSchema": "", "files": []}).to_string()).unwrap();
    let list = lab.folder.path().join("list.jsonl");
    std::fs::write(&list, format!("{{\"source-ref\": \"s3://{}/00/00000.jpg\"}}\nnonsense\n", lab.bucket)).unwrap();
    let (inventory, list) = (inventory.to_str().unwrap(), list.to_str().unwrap());
    for (arguments, status, words) in [
        (vec![], 2, "SOURCE"),
        (vec!["s3://other/"], 2, "hint: add it to `buckets`"),
        (vec!["file:///elsewhere"], 2, "is not in"),
        (vec!["s3://gone/", "--bucket", "gone"], 1, "cannot open the bucket \"gone\""),
        (vec!["uploads/x"], 2, "is neither s3://bucket/prefix nor file:///folder"),
        (vec!["--manifest", "nothing.jsonl"], 1, "cannot read nothing.jsonl"),
        (vec!["--manifest", list], 1, "line 2:"),
        (vec!["--inventory", inventory], 1, "hint: configure S3 to write it as CSV"),
        (vec!["s3://x/", "--rate", "0"], 2, "from 0.001"),
        (vec!["s3://x/", "--again-after", "99999999d"], 2, "a hundred years"),
    ] {
        let refused = lab.run(&[&["backfill"][..], &arguments].concat()).await;
        assert_eq!(refused.status, status, "{arguments:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(words), "{arguments:?}: {}", refused.stderr);
    }
    assert_eq!(lab.waiting(&lab.topology.lane(Lane::Backfill)).await, 1, "what came before the wrong line");
    let half = lab.run(&["backfill", "--dry-run", "--manifest", list]).await;
    assert_eq!((half.status, half.stdout.as_str()), (1, ""), "half a listing gives no counts");
    assert!(!half.stderr.contains("would be published"), "{}", half.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_a_broker_and_a_ledger_that_are_down() {
    const OBJECTS: usize = 2_000;
    let lab = fill_folder(Lab::with_stoppable_services().await, OBJECTS);
    let run = started(&lab, &[&format!("s3://{}/", lab.bucket), "--rate", "200"]);
    let since = Instant::now();
    while lab.count("SELECT count(*) FROM backfill_jobs").await < 200 {
        assert!(since.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fault(&["rabbitmq", "restart"]).await;
    fault(&["postgres", "restart"]).await;
    let ended = ended(run).await.expect_ok();
    assert!(ended.stderr.contains("retrying after a delay"), "{}", ended.stderr);
    assert_eq!(summary(&ended).published, OBJECTS as u64);
    // Our own connections are gone; a new world looks.
    let fresh = Lab::with_stoppable_services().await;
    let bodies = fresh.drain(&lab.topology.lane(Lane::Backfill)).await;
    let distinct: BTreeSet<String> = bodies.iter().map(|(body, _)| body.to_string()).collect();
    assert_eq!(distinct.len(), OBJECTS, "{} jobs", bodies.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_releases_its_lock() {
    let lab = with_folder(300).await;
    let source = format!("s3://{}/", lab.bucket);
    let run = started(&lab, &[&source, "--depth", "20"]);
    let lane = lab.topology.lane(Lane::Backfill);
    let since = Instant::now();
    while lab.waiting(&lane).await < 20 {
        assert!(since.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let interrupted = tokio::process::Command::new("kill").args(["-INT", &run.id().unwrap().to_string()]).status();
    assert!(interrupted.await.unwrap().success());
    let stopped = ended(run).await;
    assert_eq!(stopped.status, 130, "{}", stopped.stderr);
    assert!(stopped.stderr.contains("stopped, the same command continues from here"), "{}", stopped.stderr);
    let rest = lab.run(&["backfill", &source]).await.expect_ok();
    assert!(!rest.stderr.contains("waiting for another backfill"), "{}", rest.stderr);
    assert_eq!((summary(&rest).waiting, summary(&rest).published), (20, 280));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_with_a_sqlite_ledger_works_alike() {
    let mut lab = with_folder(1_200).await;
    lab.ledger_url = format!("sqlite://{}", lab.folder.path().join("ledger.db").display());
    lab.run(&["migrate"]).await.expect_ok();
    let source = format!("s3://{}/", lab.bucket);
    assert_eq!(backfill(&lab, &[&source, "--limit", "1100"]).await.published, 1_100);
    let rest = backfill(&lab, &[&source]).await;
    assert_eq!((rest.met, rest.waiting, rest.published), (200, 100, 100), "it goes on behind its first page");
    let again = backfill(&lab, &[&source]).await;
    assert_eq!((again.waiting, again.published), (1_200, 0));
    assert_eq!(lab.waiting(&lab.topology.lane(Lane::Backfill)).await, 1_200);
}
