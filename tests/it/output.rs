//! A command whose output cannot be written ends with a status and never with a panic.

use std::fs::File;
use std::process::Stdio;

use lapin::BasicProperties;
use pixwarden::broker::Message;
use pixwarden::commands::CLOSED_PIPE;
use serde_json::Value;

use crate::support::{Ended, Lab, judged_fixtures};

/// A lab with a file for `scan`, its verdict in a SQLite ledger and a dead letter.
struct Stage {
    lab: Lab,
    ledger: String,
    image: String,
    job: String,
}

async fn stage() -> Stage {
    let mut lab = Lab::new().await;
    let ledger = format!("sqlite://{}", lab.folder.path().join("scan.db").display());
    let image = lab.folder.path().join("image.png");
    std::fs::write(&image, &judged_fixtures()[0].bytes).unwrap();
    let image = image.to_str().unwrap().to_owned();
    lab.run(&["scan", &image, "--ledger", &ledger]).await.expect_ok();
    let exported = lab.run(&["export", "--lag", "0s", "--ledger", &ledger]).await.expect_ok();
    let row: Value = serde_json::from_str(&exported.stdout).unwrap();
    let properties = BasicProperties::default().with_message_id("letter".into());
    let dead = lab.topology.dead();
    let message = Message { exchange: "", routing_key: &dead, payload: b"nonsense", properties };
    lab.publisher.publish(message).await.unwrap();
    // Only for the services that `check` tries.
    lab.listen = "off";
    Stage { job: row["job_id"].as_str().unwrap().to_owned(), lab, ledger, image }
}

impl Stage {
    /// Commands that print to stdout, with the status they have when it works.
    fn printing(&self) -> Vec<Vec<&str>> {
        let Self { ledger, image, job, .. } = self;
        let bucket = Box::leak(format!("s3://{}/", self.lab.bucket).into_boxed_str());
        let dataset = Box::leak(format!("set=positive:{image}").into_boxed_str());
        vec![
            vec!["--help"],
            vec!["--version"],
            vec!["scan", "--help"],
            vec!["completions", "bash"],
            vec!["scan", image, "--format", "table"],
            vec!["scan", image, "--format", "jsonl"],
            vec!["scan", image, "--format", "csv"],
            vec!["evaluate", "--dataset", dataset, "--format", "table"],
            vec!["evaluate", "--dataset", dataset, "--format", "jsonl"],
            vec!["bench", image, "--seconds", "0.01", "--queue", "", "--ledger", "", "--format", "table"],
            vec!["models", "list"],
            vec!["models", "check", "--format", "table"],
            vec!["check"],
            vec!["show", job, "--ledger", ledger],
            vec!["export", "--lag", "0s", "--ledger", ledger],
            vec!["export", "--lag", "0s", "--ledger", ledger, "--format", "csv"],
            // Every stored score is judged again by other thresholds, so that there is a row.
            vec!["rejudge", "--ledger", ledger, "--review-at", "0", "--flag-at", "0", "--dry-run"],
            vec!["dead", "list"],
            vec!["dead", "show", "letter"],
            vec!["backfill", "--dry-run", bucket],
        ]
    }

    async fn run(&self, arguments: &[&str], stdout: Stdio, stderr: Stdio) -> Ended {
        let mut command = self.lab.command();
        command.args(arguments).stdout(stdout).stderr(stderr).stdin(Stdio::null());
        if !arguments[0].starts_with('-') && arguments[0] != "completions" {
            command.arg("--config").arg(self.lab.config()).args(["--log", "off"]);
        }
        let child = command.spawn().unwrap();
        // Otherwise this process would keep the pipe's end open.
        drop(command);
        child.wait_with_output().await.unwrap().into()
    }
}

fn full() -> Stdio {
    Stdio::from(File::options().write(true).open("/dev/full").unwrap())
}

fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_and_a_closed_pipe_is_none() {
    let stage = stage().await;
    for arguments in stage.printing() {
        let ended = stage.run(&arguments, full(), Stdio::piped()).await;
        assert_eq!(ended.status, 1, "{arguments:?}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("error: cannot write to stdout: no space left"),
            "{arguments:?}: {}",
            ended.stderr
        );
        assert!(!ended.stderr.contains("panicked"), "{arguments:?}: {}", ended.stderr);

        let ended = stage.run(&arguments, closed(), Stdio::piped()).await;
        assert_eq!(ended.status, i32::from(CLOSED_PIPE), "{arguments:?}: {}", ended.stderr);
        for word in ["panicked", "error", "roken pipe"] {
            assert!(!ended.stderr.contains(word), "{arguments:?}: {}", ended.stderr);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stderr_that_cannot_be_written_changes_no_status() {
    let stage = stage().await;
    let (ledger, image) = (stage.ledger.as_str(), stage.image.as_str());
    let man = stage.lab.folder.path().join("man");
    for arguments in [
        vec!["scan", image],
        vec!["export", "--lag", "0s", "--ledger", ledger],
        vec!["rejudge", "--ledger", ledger],
        vec!["prune", "--older-than", "90d", "--ledger", ledger, "--dry-run"],
        vec!["migrate", "--ledger", ledger],
        vec!["dead", "replay", "--all", "--dry-run"],
        vec!["man", man.to_str().unwrap()],
        vec!["models", "list"],
    ] {
        for stderr in [full(), closed()] {
            let ended = stage.run(&arguments, Stdio::piped(), stderr).await;
            assert_eq!(ended.status, 0, "{arguments:?}");
        }
    }
    // A usage error and a failure keep their statuses too.
    for (arguments, status) in [(vec!["scan"], 2), (vec!["show", "nothing", "--ledger", ledger], 1)] {
        assert_eq!(stage.run(&arguments, Stdio::piped(), full()).await.status, status, "{arguments:?}");
    }
    // Log lines go to stderr.
    let mut command = stage.lab.command();
    command.args(["scan", image, "--log", "debug"]).stderr(full()).stdout(Stdio::piped());
    assert_eq!(Ended::from(command.spawn().unwrap().wait_with_output().await.unwrap()).status, 0);
}
