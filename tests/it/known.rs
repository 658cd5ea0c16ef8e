//! Known images: what a bank knows is found in new uploads and in all that was screened before.

use std::io::Cursor;
use std::time::{Duration, Instant};

use image::{ImageFormat, Rgb, RgbImage};
use pixwarden::job::Lane;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Ended, Lab, Worker};

const RULES: &str = "
[[policy.rules]]
detector = \"spread-nhwc\"
label = \"by AI\"
flag_at = 1.0
[[policy.rules]]
name = \"known-abuse\"
category = \"abuse\"
bank = \"known\"
review_within = 31
flag_within = 15
";

/// A picture with much detail. Pictures of different numbers do not resemble each other.
fn picture(number: u32) -> RgbImage {
    let waves: Vec<[f64; 4]> = (0..24u32)
        .map(|wave| {
            let digest = Sha256::digest([number.to_be_bytes(), wave.to_be_bytes()].concat());
            let random = |byte: usize| f64::from(digest[byte]) / 255.0;
            [12.0 * random(0), 12.0 * random(1) - 6.0, std::f64::consts::TAU * random(2), random(3) - 0.5]
        })
        .collect();
    RgbImage::from_fn(400, 300, |x, y| {
        let (x, y) = (f64::from(x) / 400.0, f64::from(y) / 300.0);
        let wave = |[across, down, phase, weight]: &[f64; 4]| {
            weight * (std::f64::consts::TAU * (across * x + down * y) + phase).sin()
        };
        let sum: f64 = waves.iter().map(wave).sum();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
        let level = (127.5 + 100.0 * sum).clamp(0.0, 255.0) as u8;
        Rgb([level, level.wrapping_add(10), 255 - level])
    })
}

fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Frames that stay for a second each.
fn animation(pictures: impl Iterator<Item = RgbImage>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for picture in pictures {
        let picture = image::DynamicImage::ImageRgb8(picture).to_rgba8();
        let delay = image::Delay::from_saturating_duration(Duration::from_secs(1));
        encoder.encode_frame(image::Frame::from_parts(picture, 0, 0, delay)).unwrap();
    }
    drop(encoder);
    bytes
}

impl Lab {
    /// A lab whose policy names the bank `known`, which is there and empty.
    async fn with_bank(options: &[&str]) -> Self {
        let mut lab = Self::new().await;
        lab.extra = format!("[worker]\nreuse_scores = true\n{RULES}");
        lab.ok(&["migrate"]).await;
        lab.ok(&[&["bank", "create", "known", "--kind", "deny"], options].concat()).await;
        lab
    }

    async fn ok(&self, words: &[&str]) -> Ended {
        self.run(words).await.expect_ok()
    }

    /// Publishes a job whose id is the key.
    async fn screen(&self, key: &str, bytes: Vec<u8>) {
        self.put(key, bytes).await;
        self.job(Lane::Live, json!({"id": key, "image": format!("s3://{}/{key}", self.bucket)})).await;
    }

    async fn until_verdicts(&self, count: i64, worker: &Worker) {
        self.until("SELECT count(*) FROM verdicts", count, worker).await;
    }

    /// Outcome, revision, cause, findings and policy of a job's verdict.
    async fn state(&self, job: &str) -> (String, i32, Option<String>, Value, Value) {
        sqlx::query_as(
            "SELECT outcome, revision, cause, coalesce(findings, 'null'), policy FROM verdicts WHERE job_id = $1",
        )
        .bind(job)
        .fetch_one(&self.db)
        .await
        .unwrap()
    }

    /// The payloads of the events of a job, the oldest first.
    async fn events(&self, job: &str) -> Vec<Value> {
        let query = "SELECT payload FROM outbox JOIN verdicts ON verdicts.id = verdict_id WHERE job_id = $1 ORDER BY created_at";
        sqlx::query_scalar(query).bind(job).fetch_all(&self.db).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_bank_takes_effect_in_three_workers_within_ten_seconds() {
    let lab = Lab::with_bank(&[]).await;
    let first = lab.started_worker().await;
    let _others = [lab.worker(), lab.worker()];
    lab.screen("before", encoded(&picture(1), ImageFormat::Png)).await;
    lab.until_verdicts(1, &first).await;
    let (outcome, _, _, findings, policy) = lab.state("before").await;
    assert_eq!((outcome.as_str(), &findings, &policy["banks"]), ("passed", &Value::Null, &json!({"known": 0})));

    lab.ok(&["bank", "add", "known", "--from", "before"]).await;
    let changed = Instant::now();
    // Jobs go on while the bank changes.
    for number in 100..130 {
        lab.screen(&format!("other-{number}"), encoded(&picture(number), ImageFormat::Jpeg)).await;
    }
    while first.log().matches("bank changed").count() < 3 {
        assert!(changed.elapsed() < Duration::from_secs(10), "{}", first.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let turned = image::imageops::flip_horizontal(&image::imageops::rotate90(&picture(1)));
    for job in 0..12 {
        lab.screen(&format!("jpeg-{job}"), encoded(&picture(1), ImageFormat::Jpeg)).await;
    }
    lab.screen("turned", encoded(&turned, ImageFormat::Jpeg)).await;
    lab.until_verdicts(1 + 30 + 12 + 1, &first).await;
    for job in (0..12).map(|job| format!("jpeg-{job}")).chain(["turned".to_owned()]) {
        let (outcome, revision, _, findings, policy) = lab.state(&job).await;
        assert_eq!((outcome.as_str(), revision, &policy["banks"]), ("flagged", 1, &json!({"known": 1})), "{job}");
        assert_eq!((&findings[0]["bank"], &findings[0]["category"]), (&json!("known"), &json!("abuse")), "{findings}");
        assert!(findings[0]["distance"].as_u64().unwrap() <= 15, "{findings}");
    }
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE job_id LIKE 'other-%' AND outcome = 'passed'").await, 30);
    // Every view of every verdict is stored beside it.
    assert_eq!(lab.count("SELECT count(DISTINCT verdict_id) FROM image_hashes WHERE pdq IS NOT NULL").await, 44);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_screened_before_is_matched_and_announced_and_taken_back() {
    let lab = Lab::with_bank(&[]).await;
    let mut worker = lab.started_worker().await;
    let frames = || (10..16).map(picture);
    lab.screen("film", animation(frames())).await;
    lab.screen("png", encoded(&picture(12), ImageFormat::Png)).await;
    lab.screen("gone", encoded(&picture(12), ImageFormat::Jpeg)).await;
    for number in 20..30 {
        lab.screen(&format!("other-{number}"), encoded(&picture(number), ImageFormat::Jpeg)).await;
    }
    lab.until_verdicts(13, &worker).await;
    lab.until_settled(&worker).await;
    sqlx::query("UPDATE verdicts SET deleted_at = now() WHERE job_id = 'gone'").execute(&lab.db).await.unwrap();
    let nothing = lab.ok(&["bank", "match", "known"]).await;
    assert!(nothing.stderr.contains("has no entry that an earlier run has not looked for"), "{}", nothing.stderr);

    lab.ok(&["bank", "add", "known", "--from", "png"]).await;
    let dry = lab.ok(&["bank", "match", "known", "--dry-run", "--show", "9"]).await;
    assert!(dry.stderr.contains("3 verdicts with a match, 3 would be revised; nothing was written"), "{}", dry.stderr);
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE revision > 1").await, 0);
    let run = lab.ok(&["bank", "match", "known"]).await;
    assert!(run.stderr.contains("3 verdicts with a match, 3 revised"), "{}", run.stderr);
    for job in ["film", "png", "gone"] {
        let (outcome, revision, cause, findings, policy) = lab.state(job).await;
        let expected = ("flagged", 2, Some("matched"), &json!({"known": 1}));
        assert_eq!((outcome.as_str(), revision, cause.as_deref(), &policy["banks"]), expected, "{job}: {findings}");
        let event = lab.events(job).await.pop().unwrap();
        assert_eq!(
            (&event["type"], &event["data"]["cause"]),
            (&json!("io.pixwarden.image.flagged.v1"), &json!("matched"))
        );
        assert_eq!(event["data"]["deleted_at"].is_string(), job == "gone", "{event}");
    }
    let (_, _, _, findings, _) = lab.state("film").await;
    assert_eq!(findings[0]["view"]["frame"], 2, "the third frame is the known one: {findings}");
    assert_eq!(lab.state("png").await.3[0]["distance"], 0);
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE revision > 1").await, 3, "and nothing else");

    let again = lab.ok(&["bank", "match", "known"]).await;
    assert!(again.stderr.contains("has no entry that an earlier run has not looked for"), "{}", again.stderr);
    let all = lab.ok(&["bank", "match", "known", "--all"]).await;
    assert!(all.stderr.contains("3 verdicts with a match, 0 revised"), "{}", all.stderr);

    let exported = lab.ok(&["bank", "export", "known", "--format", "csv"]).await.stdout;
    let id_column = exported.lines().next().unwrap().split(',').position(|column| column == "entry").unwrap();
    let ids = exported.lines().skip(1).map(|line| line.split(',').nth(id_column).unwrap());
    let entries: Vec<&str> = ids.flat_map(|id| ["--entry", id]).collect();
    lab.ok(&[&["bank", "remove", "known"], &entries[..]].concat()).await;
    lab.ok(&["rejudge"]).await;
    for job in ["film", "png", "gone"] {
        let (outcome, revision, cause, ..) = lab.state(job).await;
        assert_eq!((outcome.as_str(), revision, cause.as_deref()), ("passed", 3, Some("rejudged")), "{job}");
        let event = lab.events(job).await.pop().unwrap();
        assert_eq!(event["type"], "io.pixwarden.image.cleared.v1");
    }
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_are_judged_while_a_bank_changes_are_matched_too() {
    let mut lab = Lab::with_bank(&[]).await;
    lab.extra = format!("[worker]\nreuse_scores = false\n{RULES}");
    let worker = lab.started_worker().await;
    lab.screen("first", encoded(&picture(1), ImageFormat::Png)).await;
    lab.until_verdicts(1, &worker).await;
    let uploads = async {
        for upload in 0..60 {
            lab.screen(&format!("upload-{upload}"), encoded(&picture(1), ImageFormat::Jpeg)).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let change = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        lab.ok(&["bank", "add", "known", "--from", "first"]).await;
        lab.ok(&["bank", "match", "known"]).await.stderr
    };
    let ((), said) = tokio::join!(uploads, change);
    lab.until_verdicts(61, &worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE outcome = 'flagged'").await, 61, "{said}");
    let by_matched = "SELECT count(*) FROM verdicts WHERE job_id LIKE 'upload-%' AND cause = 'matched'";
    let matched: i64 = sqlx::query_scalar(by_matched).fetch_one(&lab.db).await.unwrap();
    assert!((1..60).contains(&matched), "some before the change and some after it: {matched}");

    // Switched off and on again, what came meanwhile is looked for.
    lab.ok(&["bank", "set", "known", "--disabled"]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    lab.screen("meanwhile", encoded(&picture(1), ImageFormat::Jpeg)).await;
    lab.until_verdicts(62, &worker).await;
    assert_eq!(lab.state("meanwhile").await.0, "passed");
    lab.ok(&["bank", "set", "known", "--enabled"]).await;
    lab.ok(&["bank", "match", "known"]).await;
    assert_eq!(lab.state("meanwhile").await.0, "flagged");
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_resemble_one_are_found() {
    let lab = Lab::with_bank(&[]).await;
    let worker = lab.started_worker().await;
    lab.screen("png", encoded(&picture(1), ImageFormat::Png)).await;
    lab.screen("jpeg", encoded(&image::imageops::flip_vertical(&picture(1)), ImageFormat::Jpeg)).await;
    lab.screen("other", encoded(&picture(2), ImageFormat::Png)).await;
    lab.until_verdicts(3, &worker).await;
    let shown: Value = serde_json::from_str(&lab.ok(&["show", "png"]).await.stdout).unwrap();
    let hash = shown["hashes"][0]["pdq"].as_str().unwrap();
    for command in ["show", "export"] {
        let found = lab.ok(&[command, "--near", hash]).await.stdout;
        let found: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let jobs: Vec<&str> = found.iter().map(|row| row["job_id"].as_str().unwrap()).collect();
        assert_eq!(jobs, ["png", "jpeg"], "{command}");
        assert_eq!(found[0]["distance"], 0);
        assert!((1..=31).contains(&found[1]["distance"].as_u64().unwrap()), "{}", found[1]["distance"]);
    }
    let none = lab.run(&["show", "--near", &"0f".repeat(32)]).await;
    assert!(none.status == 1 && none.stderr.contains("no picture within 31 bits"), "{}", none.stderr);
    let both = lab.run(&["export", "--near", hash, "--outcome", "passed"]).await;
    assert!(both.status == 2 && both.stderr.contains("takes no other selection"), "{}", both.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_allows_takes_away_its_category_and_a_likeness_only_softens() {
    let mut lab = Lab::new().await;
    lab.extra = "
[[policy.rules]]
category = \"synthetic/made\"
detector = \"spread-nhwc\"
label = \"by AI\"
flag_at = 0.0
[[policy.rules]]
bank = \"fine\"
category = \"synthetic\"
review_within = 31
"
    .into();
    lab.ok(&["migrate"]).await;
    lab.ok(&["bank", "create", "fine", "--kind", "allow"]).await;
    let mut worker = lab.started_worker().await;
    lab.screen("first", encoded(&picture(1), ImageFormat::Png)).await;
    lab.until_verdicts(1, &worker).await;
    assert_eq!(lab.state("first").await.0, "flagged");
    assert!(worker.terminate().await.success());

    lab.ok(&["bank", "add", "fine", "--from", "first"]).await;
    let worker = lab.started_worker().await;
    lab.screen("same", encoded(&picture(1), ImageFormat::Png)).await;
    lab.screen("like", encoded(&picture(1), ImageFormat::Jpeg)).await;
    lab.screen("other", encoded(&picture(2), ImageFormat::Png)).await;
    lab.until_verdicts(4, &worker).await;
    let outcomes = lab.outcomes().await;
    let outcome = |job: &str| outcomes[job].as_str();
    assert_eq!([outcome("same"), outcome("like"), outcome("other")], ["passed", "review", "flagged"]);
    let reason: String =
        sqlx::query_scalar("SELECT reason FROM verdicts WHERE job_id = 'same'").fetch_one(&lab.db).await.unwrap();
    assert!(reason.ends_with("of the bank \"fine\" allows synthetic"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_picture_of_a_restricted_image_is_written_and_its_event_says_so() {
    let lab = Lab::with_bank(&["--restricted"]).await;
    let worker = lab.started_worker().await;
    lab.screen("first", encoded(&picture(1), ImageFormat::Png)).await;
    lab.until_verdicts(1, &worker).await;
    lab.ok(&["bank", "add", "known", "--from", "first"]).await;
    lab.ok(&["bank", "match", "known"]).await;
    let event = lab.events("first").await.pop().unwrap();
    assert_eq!(event["data"]["restricted"], true, "{event}");
    assert_eq!(event["data"]["findings"][0]["restricted"], true);

    let images = lab.folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    std::fs::write(images.join("known.jpg"), encoded(&picture(1), ImageFormat::Jpeg)).unwrap();
    std::fs::write(images.join("other.jpg"), encoded(&picture(2), ImageFormat::Jpeg)).unwrap();
    let ledger = lab.ledger_url.clone();
    let saved = lab.folder.path().join("saved");
    let scan = lab
        .ok(&["scan", images.to_str().unwrap(), "--ledger", &ledger, "--save-pixels", saved.to_str().unwrap()])
        .await;
    let rows: Vec<Value> = scan.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let outcomes: Vec<&str> = rows.iter().map(|row| row["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["flagged", "passed"], "{}", scan.stdout);
    let written: Vec<String> = std::fs::read_dir(saved.join("spread-nhwc"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(written, [format!("{}.png", rows[1]["sha256"].as_str().unwrap())], "only of the other one");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_do_not_fit_the_banks_refuse_to_start() {
    let mut lab = Lab::new().await;
    lab.extra = RULES.into();
    lab.ok(&["migrate"]).await;
    for command in [&["rejudge", "--dry-run"][..], &["compare"], &["scan", "--ledger", &lab.ledger_url, "."]] {
        let refused = lab.run(command).await;
        assert_eq!(refused.status, 2, "{command:?} {}", refused.stderr);
        assert!(
            refused.stderr.contains("the ledger has none\n  hint: pixwarden bank create known"),
            "{}",
            refused.stderr
        );
    }
    let mut worker = lab.worker();
    let ended = tokio::time::timeout(Duration::from_secs(60), worker.child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(2), "{}", worker.log());
    let without = lab.run(&["scan", "."]).await;
    assert!(without.status == 2 && without.stderr.contains("and banks are in a ledger"), "{}", without.stderr);
}
