//! `scan`: in order, remembered, interrupted and taken up again.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use sqlx::SqlitePool;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::{Ended, Lab, judged_fixtures};

/// A folder of images under names that say nothing of their kind, and a place for a ledger.
struct Desk {
    lab: Lab,
    images: PathBuf,
    ledger: String,
}

impl Desk {
    async fn new(copies: usize) -> Self {
        let mut lab = Lab::new().await;
        // A scan that has to decode and score every image is slow enough to be interrupted.
        lab.extra = "[worker]\nreuse_scores = false".into();
        let images = lab.folder.path().join("images");
        std::fs::create_dir(&images).unwrap();
        let fixtures = judged_fixtures();
        for i in 0..copies * fixtures.len() {
            std::fs::write(images.join(format!("{i:05}")), &fixtures[i % fixtures.len()].bytes).unwrap();
        }
        let ledger = format!("sqlite://{}", lab.folder.path().join("scan.db").display());
        Self { lab, images, ledger }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(&self.images).unwrap().map(|entry| entry.unwrap().path().display().to_string()).collect();
        names.sort();
        names
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.command();
        command.arg("--config").arg(self.lab.config()).args(["scan", "--log", "error", "--format", "jsonl"]);
        command.arg(&self.images).args(["--ledger", &self.ledger]).args(arguments);
        command
    }

    async fn scan(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments)).await
    }

    /// Scans until so many rows are printed, then sends a signal; the rows, what it said, and how it ended.
    async fn interrupted(&self, after: usize, signal: &str) -> (Vec<Value>, String, Option<i32>) {
        let mut child = self.command(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut rows = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            rows.push(serde_json::from_str(&line).unwrap());
            if rows.len() == after {
                let pid = child.id().unwrap().to_string();
                assert!(Command::new("kill").args(["-s", signal, &pid]).status().await.unwrap().success());
            }
        }
        let ended = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.unwrap().unwrap();
        (rows, String::from_utf8(ended.stderr).unwrap(), ended.status.code())
    }

    async fn database(&self) -> SqlitePool {
        SqlitePool::connect(&self.ledger).await.unwrap()
    }
}

fn rows(ended: &Ended) -> Vec<Value> {
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn images(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["image"].as_str().unwrap()).collect()
}

async fn decided(db: &SqlitePool) -> Vec<(String, String)> {
    sqlx::query_as("SELECT key, decided_at FROM verdicts ORDER BY key").fetch_all(db).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_scans_are_taken_up_where_they_were_and_repeat_nothing() {
    let desk = Desk::new(4).await;
    let names = desk.names();
    assert!(names.len() > 500, "{}", names.len());

    let (rows_before, said, status) = desk.interrupted(100, "INT").await;
    assert_eq!(status, Some(130), "{said}");
    assert!(said.contains("stopped before the end; run the same command to continue"), "{said}");
    assert!((100..names.len()).contains(&rows_before.len()), "{} rows", rows_before.len());
    assert_eq!(images(&rows_before), names[..rows_before.len()], "in order, and without a gap");
    let db = desk.database().await;
    let first = decided(&db).await;
    assert_eq!(first.len(), rows_before.len(), "what was printed is kept, and nothing else was begun");

    let (rows_killed, _, status) = desk.interrupted(rows_before.len() + 100, "KILL").await;
    assert_eq!(status, None);
    let second = decided(&db).await;
    assert!(second.len() >= rows_killed.len(), "{} printed, {} kept", rows_killed.len(), second.len());

    let whole = desk.scan(&[]).await;
    let whole_rows = rows(&whole);
    assert_eq!(images(&whole_rows), names);
    assert!(whole.stderr.contains(&format!("{} unchanged since an earlier scan", second.len())), "{}", whole.stderr);
    let last = decided(&db).await;
    assert_eq!(last.len(), names.len(), "one verdict a file");
    assert!(first.iter().chain(&second).all(|row| last.contains(row)), "what was decided stays as it was");
    // The same as without any interruption, and without a ledger.
    let mut plain = desk.lab.command();
    plain
        .arg("--config")
        .arg(desk.lab.config())
        .args(["scan", "--log", "error", "--format", "jsonl"])
        .arg(&desk.images);
    assert_eq!(rows(&Ended::of(plain).await), whole_rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_scan_screens_what_has_changed_and_judges_the_rest_by_the_new_policy() {
    let mut desk = Desk::new(1).await;
    let total = desk.names().len();
    desk.scan(&[]).await;
    let again = desk.scan(&[]).await;
    assert!(again.stderr.contains(&format!("; {total} unchanged since")), "{}", again.stderr);

    // Other content under an old name, as long as before and as old as before.
    let (changed, other) = (desk.images.join("00000"), desk.images.join("00001"));
    let (before, modified) =
        (std::fs::read(&changed).unwrap(), std::fs::metadata(&changed).unwrap().modified().unwrap());
    let mut bytes = std::fs::read(&other).unwrap();
    bytes.resize(before.len(), 0);
    std::fs::write(&changed, &bytes).unwrap();
    std::fs::File::options().append(true).open(&changed).unwrap().set_modified(modified).unwrap();
    let third = desk.scan(&[]).await;
    assert!(third.stderr.contains(&format!("; {} unchanged since", total - 1)), "{}", third.stderr);

    // Other thresholds: judged again, from the stored scores.
    desk.lab.extra = String::new();
    let strict = rows(&desk.scan(&["--review-at", "0", "--flag-at", "0"]).await);
    let scored = strict.iter().filter(|row| !row["scores"].is_null()).count();
    assert!(scored > total / 2, "{scored}");
    assert_eq!(strict.iter().filter(|row| row["outcome"] == "flagged").count(), scored);
    let query = "SELECT count(*) FROM verdicts WHERE outcome = 'flagged' AND reused_from IS NOT NULL";
    let reused: i64 = sqlx::query_scalar(query).fetch_one(&desk.database().await).await.unwrap();
    assert!(usize::try_from(reused).unwrap() > scored * 9 / 10, "{reused} of {scored} were not inferred again");
    // And the first thresholds still have their own verdicts.
    let back = desk.scan(&[]).await;
    assert!(back.stderr.contains(&format!("; {total} unchanged since")), "{}", back.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_verdict_is_tried_again() {
    let desk = Desk::new(1).await;
    desk.scan(&[]).await;
    let db = desk.database().await;
    sqlx::query("UPDATE verdicts SET outcome = 'failed' WHERE key LIKE '%/00003'").execute(&db).await.unwrap();
    let before: i64 = sqlx::query_scalar("SELECT count(*) FROM verdicts").fetch_one(&db).await.unwrap();
    desk.scan(&[]).await;
    let failed: i64 =
        sqlx::query_scalar("SELECT count(*) FROM verdicts WHERE outcome = 'failed'").fetch_one(&db).await.unwrap();
    let after: i64 = sqlx::query_scalar("SELECT count(*) FROM verdicts").fetch_one(&db).await.unwrap();
    assert_eq!((failed, after), (0, before));
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_that_are_there_do_not_let_an_image_through_that_is_over_the_limits_now() {
    let mut desk = Desk::new(1).await;
    desk.lab.extra = String::new();
    let before = rows(&desk.scan(&[]).await);
    desk.lab.extra = "[decode]\nmax_width = 10".into();
    let after = rows(&desk.scan(&[]).await);
    let wide = before.iter().filter(|row| row["width"].as_u64().is_some_and(|width| width > 10)).count();
    assert!(wide > 10, "{wide}");
    assert_eq!(after.iter().filter(|row| row["width"].as_u64().is_some_and(|width| width > 10)).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_among_the_images_is_none_of_them() {
    let mut desk = Desk::new(1).await;
    let total = desk.names().len();
    desk.ledger = format!("sqlite://{}", desk.images.join("00000.db").display());
    let first = desk.scan(&[]).await;
    assert_eq!(rows(&first).len(), total);
    let again = desk.scan(&[]).await;
    assert!(again.stderr.contains(&format!("{total} images")), "{}", again.stderr);
    assert!(again.stderr.contains(&format!("; {total} unchanged since")), "{}", again.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_reported_as_given_and_what_is_no_image_file_is_told() {
    let desk = Desk::new(1).await;
    let folder = desk.lab.folder.path();
    let make = |path: &str| {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(desk.images.join("00002"), &path).unwrap();
    };
    ["z/b.txt", "z/a", "a/deep/er/x"].iter().for_each(|path| make(path));
    std::os::unix::fs::symlink("..", folder.join("z/loop")).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(folder.join("z/pipe")).status().unwrap();
    assert!(pipe.success());

    let scan = async |arguments: &[&str]| {
        let mut command = desk.lab.command();
        command
            .arg("--config")
            .arg(desk.lab.config())
            .args(["scan", "--log", "error", "--format", "csv"])
            .args(arguments);
        Ended::of(command).await
    };
    let ended = scan(&["z", "a", "z/a"]).await;
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    let first: Vec<_> = ended.stdout.lines().skip(1).map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(first, ["z/a", "z/b.txt", "a/deep/er/x", "z/a"], "the pipe and the loop are passed by");

    std::os::unix::fs::symlink("z", folder.join("link")).unwrap();
    let linked = scan(&["link"]).await;
    assert_eq!((linked.status, linked.stdout.lines().count()), (0, 3), "{}", linked.stderr);

    let missing = scan(&["nowhere", "z/a"]).await;
    assert_eq!((missing.status, missing.stdout.lines().count()), (1, 2), "{}", missing.stdout);
    assert!(missing.stderr.contains("error: cannot read nowhere: No such file"), "{}", missing.stderr);
    assert!(missing.stderr.contains("1 could not be read"), "{}", missing.stderr);
    let pipe = scan(&["z/pipe"]).await;
    assert!(pipe.stderr.contains("cannot read z/pipe: not a file or a folder"), "{}", pipe.stderr);

    let everything = ["--review-at", "0", "--flag-at", "0.99999"];
    let status = async |fail_on: &str| scan(&[&["z", "--fail-on", fail_on][..], &everything].concat()).await.status;
    assert_eq!((status("review").await, status("flagged").await), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_ledger_on_the_command_line_is_written_to() {
    let desk = Desk::new(1).await;
    let image = desk.images.join("00000");
    let scan = async |flags: &[&str]| {
        let arguments = [&["scan", path(&image)][..], flags].concat();
        desk.lab.run(&arguments).await.expect_ok();
        desk.lab.count("SELECT count(*) FROM verdicts").await
    };
    assert_eq!(scan(&[]).await, 0, "the configured ledger is the worker's");
    assert_eq!(scan(&["--ledger", &desk.lab.ledger_url]).await, 1);
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
