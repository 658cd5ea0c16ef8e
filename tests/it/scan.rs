//! `scan`: in order, remembered, interrupted and taken up again.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use md5::{Digest, Md5};
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
    let desk = Desk::new(5).await;
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
    assert_eq!(rows(&again).len(), total);
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
    assert!(missing.stderr.contains("error: cannot read nowhere: no such file"), "{}", missing.stderr);
    assert!(missing.stderr.contains("1 path could not be read"), "{}", missing.stderr);
    let pipe = scan(&["z/pipe"]).await;
    assert!(pipe.stderr.contains("cannot read z/pipe: not a file or a folder"), "{}", pipe.stderr);

    assert!(linked.stderr.contains("skipped link/loop: a symbolic link to a folder\n"), "{}", linked.stderr);
    assert!(linked.stderr.contains("skipped link/pipe: not a file or a folder\n"), "{}", linked.stderr);
    assert!(linked.stderr.contains("2 images: 2 passed; 2 skipped; "), "{}", linked.stderr);

    let everything = ["--review-at", "0", "--flag-at", "0.99999", "--allow-unscreened"];
    let status = async |fail_on: &str| scan(&[&["z", "--fail-on", fail_on][..], &everything].concat()).await.status;
    assert_eq!((status("review").await, status("flagged").await), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_lets_nothing_pass_that_was_not_screened() {
    let desk = Desk::new(1).await;
    let folder = desk.lab.folder.path();
    let put = |path: &str, bytes: &[u8]| {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let image = std::fs::read(desk.images.join("00002")).unwrap();
    put("good/a", &image);
    put("good/notes.txt", b"no image");
    put("good/deep/b", &image);
    put("elsewhere/c", &image);
    put("damaged/a", &image);
    put("damaged/cut.png", b"\x89PNG\r\n\x1a\n");
    put("foreign/a", &image);
    put("foreign/b.heic", b"\0\0\0\x1cftypheic........");
    put("texts/notes.txt", b"no image");
    put("linked/a", &image);
    put("dangling/a", &image);
    put("within/a", &image);
    put("within/deep/b", &image);
    std::fs::create_dir(folder.join("empty")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", folder.join("linked/to-elsewhere")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.join("dangling/b")).unwrap();
    std::os::unix::fs::symlink("deep", folder.join("within/to-deep")).unwrap();

    let scan = async |arguments: &[&str]| {
        let mut command = desk.lab.command();
        command.arg("--config").arg(desk.lab.config()).args(["scan", "--log", "error", "--format", "jsonl"]);
        command.args(["--review-at", "0.99998", "--flag-at", "0.99999"]).args(arguments);
        Ended::of(command).await
    };
    for (paths, status, allowed) in [
        (&["good"][..], 0, 0),
        (&["within"], 0, 0),
        (&["linked", "elsewhere"], 0, 0),
        (&["damaged"], 3, 0),
        (&["foreign"], 3, 0),
        // Named, every file counts.
        (&["good/notes.txt"], 3, 0),
        (&["texts"], 3, 0),
        (&["empty"], 3, 0),
        (&["good", "empty"], 3, 0),
        (&["linked"], 3, 0),
        // What cannot be read is a failure also where it may pass.
        (&["dangling"], 3, 1),
        (&["nowhere"], 3, 1),
    ] {
        let ended = scan(&[paths, &["--fail-on", "flagged"]].concat()).await;
        assert_eq!(ended.status, status, "{paths:?}: {}", ended.stderr);
        let words = "--fail-on flagged is reached: 1 path could not be screened";
        assert_eq!(ended.stderr.contains(words), status == 3, "{paths:?}: {}", ended.stderr);
        let ended = scan(&[paths, &["--fail-on", "flagged", "--allow-unscreened"]].concat()).await;
        assert_eq!(ended.status, allowed, "{paths:?}: {}", ended.stderr);
    }
    let good = scan(&["good"]).await;
    assert!(good.stderr.contains("2 images: 2 passed; 1 file is not an image; "), "{}", good.stderr);
    let empty = scan(&["empty"]).await;
    assert_eq!((empty.status, empty.stderr.contains("no image in empty\n")), (0, true), "{}", empty.stderr);
    for ignored in [&["--allow-unscreened"][..], &["--fail-on", "unscreened", "--allow-unscreened"], &["--null"]] {
        assert_eq!(scan(&[&["good"], ignored].concat()).await.status, 2, "{ignored:?}");
    }
    // A file that an earlier scan has stored counts as before.
    for _ in 0..2 {
        let ended = scan(&["good", "texts", "--fail-on", "unscreened", "--ledger", "sqlite://gate.db"]).await;
        assert!(ended.stderr.contains("2 images: 2 passed; "), "{}", ended.stderr);
        assert!(ended.stderr.contains("2 files are not images; "), "{}", ended.stderr);
        assert_eq!(ended.status, 3, "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_come_from_stdin_and_rows_are_chosen_and_sorted() {
    let desk = Desk::new(0).await;
    let scan = async |arguments: &[&str], stdin: Vec<u8>| {
        let mut command = desk.lab.command();
        command.arg("--config").arg(desk.lab.config()).args(["scan", "--log", "error", "--format", "jsonl"]);
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let writing = tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut input, &stdin).await });
        let ended = child.wait_with_output().await.unwrap();
        writing.await.unwrap().unwrap();
        Ended::from(ended)
    };
    // Two of each outcome, so that each scan is short.
    for outcome in ["passed", "review", "flagged", "undecodable"] {
        for (i, fixture) in judged_fixtures().iter().filter(|fixture| fixture.outcome == outcome).take(2).enumerate() {
            std::fs::write(desk.images.join(format!("{i} {outcome}")), &fixture.bytes).unwrap();
        }
    }
    let odd = desk.images.join("a line\nbreak");
    std::fs::copy(desk.images.join("1 passed"), &odd).unwrap();
    let names = desk.names();
    let by_folder = rows(&scan(&[path(&desk.images)], Vec::new()).await);
    assert_eq!(by_folder.len(), names.len());

    let by_nul = rows(&scan(&["-0", "-"], names.join("\0").into_bytes()).await);
    assert_eq!(by_nul, by_folder);
    let first = scan(&["-", path(&odd)], format!("{}\n\n{}\n", names[1], names[0]).into_bytes()).await;
    assert_eq!(images(&rows(&first)), [names[1].as_str(), &names[0], path(&odd)]);
    let nothing = scan(&["-", "--fail-on", "flagged"], Vec::new()).await;
    assert_eq!(nothing.status, 3, "{}", nothing.stderr);

    let chosen = scan(&[path(&desk.images), "--only", "flagged,review"], Vec::new()).await;
    let expected: Vec<_> = by_folder
        .iter()
        .filter(|row| ["flagged", "review"].contains(&row["outcome"].as_str().unwrap()))
        .cloned()
        .collect();
    assert!(!expected.is_empty() && expected.len() < by_folder.len());
    assert_eq!(rows(&chosen), expected);
    let sorted = rows(&scan(&[path(&desk.images), "--sort", "score"], Vec::new()).await);
    let scores: Vec<_> = sorted.iter().map(|row| row["score"].as_f64()).collect();
    assert!(scores.is_sorted_by(|a, b| b <= a), "{scores:?}");
    assert_eq!(sorted.len(), by_folder.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_checked_shown_and_explained() {
    let mut lab = Lab::new().await;
    lab.extra = r#"
[[policies]]
name = "art"
when = { key_prefix = "/art/", bucket = "art-*" }
rules = [{ name = "ai", category = "synthetic", severity = 2, detector = "spread-nhwc", label = "by AI", note_at = 0.25 }]
"#
    .into();
    let ledger = format!("sqlite://{}", lab.folder.path().join("scan.db").display());
    let image = lab.folder.path().join("image.jpg");
    std::fs::write(&image, crate::support::good_image()).unwrap();
    let image = image.to_str().unwrap();
    let run =
        async |arguments: &[&str]| rows(&lab.run(&[arguments, &["--format", "jsonl"]].concat()).await.expect_ok());

    let checked = run(&["policy", "check"]).await;
    let named: Vec<_> =
        checked.iter().map(|row| (row["policy"].as_str().unwrap(), row["when"].as_str().unwrap())).collect();
    assert_eq!(named, [("art", "bucket \"art-*\", key begins with \"/art/\""), ("default", "every other job")]);
    let shown = run(&["policy", "show", "art"]).await;
    assert_eq!((&shown[0]["category"], &shown[0]["note_at"]), (&"synthetic".into(), &0.25.into()));
    let unknown = lab.run(&["policy", "show", "unknown"]).await;
    assert_eq!(unknown.status, 2);
    assert!(unknown.stderr.contains("hint: the policies are \"art\", \"default\""), "{}", unknown.stderr);

    let scanned = run(&["scan", image, "--ledger", &ledger]).await;
    // Other thresholds since then.
    let explained = run(&["policy", "explain", image, "--ledger", &ledger, "--review-at", "0", "--flag-at", "0"]).await;
    let outcomes: Vec<_> = explained.iter().map(|row| (row["judged"].as_str(), row["outcome"].as_str())).collect();
    assert_eq!(outcomes, [(Some("then"), scanned[0]["outcome"].as_str()), (Some("now"), Some("flagged"))]);
    assert_eq!(explained[0]["score"], scanned[0]["score"]);
    assert_eq!((&explained[1]["reached"], &explained[1]["threshold"]), (&"flagged".into(), &0.into()));
    assert_ne!(explained[0]["sha256"], explained[1]["sha256"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scanned_file_is_shown_by_path_content_and_verdict() {
    use std::os::unix::ffi::OsStrExt;
    let desk = Desk::new(1).await;
    let folder = desk.lab.folder.path();
    std::fs::create_dir(folder.join("few")).unwrap();
    let names: [&[u8]; 3] = [b"caf\xe9.jpg", b"caf\xe8.jpg", b"plain.jpg"];
    for (i, name) in names.iter().enumerate() {
        let image = desk.images.join(format!("{i:05}"));
        std::fs::copy(image, folder.join("few").join(std::ffi::OsStr::from_bytes(name))).unwrap();
    }
    let run = async |arguments: &[&std::ffi::OsStr]| {
        let mut command = desk.lab.command();
        command.arg("--config").arg(desk.lab.config()).args(arguments);
        command.args(["--ledger", &desk.ledger, "--format", "jsonl", "--log", "error"]);
        Ended::of(command).await
    };
    let scanned = rows(&run(&["scan".as_ref(), "few".as_ref()]).await);
    assert_eq!(images(&scanned), ["$'few/caf\\xe8.jpg'", "$'few/caf\\xe9.jpg'", "few/plain.jpg"]);

    let show = async |subject: &std::ffi::OsStr| rows(&run(&["show".as_ref(), subject]).await.expect_ok());
    for name in names {
        let name = std::ffi::OsStr::from_bytes(name);
        let shown = show(&folder.join("few").join(name).into_os_string()).await;
        assert_eq!(shown.len(), 1, "{name:?}");
        assert_eq!(show(&Path::new("few/../few/./").join(name).into_os_string()).await, shown);
        assert_eq!(show(format!("sha256:{}", shown[0]["sha256"].as_str().unwrap()).as_ref()).await, shown);
        for id in ["id", "job_id"] {
            assert_eq!(show(shown[0][id].as_str().unwrap().as_ref()).await, shown, "{id}");
        }
        assert_eq!(shown[0]["announced"], "not announced");
        let bytes = std::fs::read(folder.join("few").join(name)).unwrap();
        assert_eq!(shown[0]["md5"], hex::encode(Md5::digest(&bytes)));
        let row = scanned.iter().find(|row| row["sha256"] == shown[0]["sha256"]).unwrap();
        assert_eq!(shown[0]["hashes"], row["hashes"]);
        let hash = &row["hashes"][0];
        assert_eq!(hash["view"], serde_json::json!({"frame": 0, "background": "white", "orientation": 1}));
        assert!(hash["pdq"].as_str().unwrap().len() == 64 && hash["quality"].as_u64().unwrap() <= 100, "{hash}");
        assert_eq!((&shown[0]["revision"], &shown[0]["judged_at"]), (&serde_json::json!(1), &shown[0]["decided_at"]));
    }
    let wrong = run(&["show".as_ref(), "sha256:abc".as_ref()]).await;
    assert_eq!(wrong.status, 2, "{}", wrong.stderr);
    let nothing = run(&["show".as_ref(), "few".as_ref()]).await;
    assert_eq!(nothing.status, 1);
    assert!(nothing.stderr.contains("no path that `scan --ledger` has stored"), "{}", nothing.stderr);
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
