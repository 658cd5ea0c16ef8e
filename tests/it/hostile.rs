//! Files that were made to harm a decoder: each ends as expected, within bounds, and the process goes on.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::support::{Ended, figure, service};

/// The memory that any image may take. docs/hostile.md promises 512 MiB under the default limits.
const MAX_BYTES: u64 = 512 << 20;
/// A debug build on two busy cores is several times slower than the figures in docs/hostile.md, and gets three times as much
/// processor time as `decode.deadline_ms` gives by default.
const MAX_MILLIS: f64 = 60_000.0;
const DEADLINE_MILLIS: &str = "30000";

/// Writes the files of `tests/reference/hostile.py`, and returns what is expected of each, by name.
fn make(folder: &Path) -> BTreeMap<String, String> {
    let made = std::process::Command::new(service("TEST_PYTHON"))
        .args(["-m", "reference.hostile"])
        .arg(folder)
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let expected = std::fs::read_to_string(folder.join("expected.jsonl")).unwrap();
    let lines = expected.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    lines.map(|line| (text(&line, "name"), text(&line, "expected"))).collect()
}

/// `scan --measure` with the bundled detector, which needs no service.
fn scan(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixwarden"));
    command
        .env_clear()
        .env("ORT_DYLIB_PATH", service("ORT_DYLIB_PATH"))
        .env("PIXWARDEN_DECODE_DEADLINE_MS", DEADLINE_MILLIS)
        .current_dir(folder)
        .args(["scan", "--measure", "--log", "error", "--detector"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/models/cifake-32"))
        .args(arguments)
        .kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_files_end_as_expected_within_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let expected = make(folder.path());
    let output = scan(folder.path(), &["--format", "jsonl", "files"]).output();
    let ended: Ended = tokio::time::timeout(Duration::from_secs(300), output).await.unwrap().unwrap().into();
    // An undecodable image is an outcome, not a failure of the scan.
    assert_eq!(ended.status, 0, "{}", ended.stderr);

    let rows: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), expected.len(), "one row for each file\n{}", ended.stderr);
    let mut wrong = Vec::new();
    let mut worst = (0.0f64, 0u64);
    for row in &rows {
        let name = row["image"].as_str().unwrap().trim_start_matches("files/");
        let found = match row["outcome"].as_str().unwrap() {
            "review" | "flagged" if row["damage"] != "" => "damaged",
            "passed" | "review" | "flagged" => "screened",
            other => other,
        };
        let (millis, bytes) = (row["millis"].as_f64().unwrap(), row["peak_bytes"].as_u64().unwrap());
        worst = (worst.0.max(millis), worst.1.max(bytes));
        if found != expected[name] || millis > MAX_MILLIS || bytes > MAX_BYTES {
            wrong.push(format!(
                "{name}: {found} ({}), expected {}; {millis} ms, {bytes} bytes",
                row["reason"], expected[name]
            ));
        }
    }
    figure(&format!("{} hostile files: at most {:.0} ms and {} MiB a file", rows.len(), worst.0, worst.1 >> 20));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The largest admitted image takes memory, so that a lower figure means that the measurement is broken.
    assert!(worst.1 > 128 << 20, "{} bytes at most cannot be true", worst.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cost_of_a_file_is_printed_only_with_measure() {
    let folder = tempfile::tempdir().unwrap();
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/models/cifake-32/golden.png");
    let csv = Ended::of(scan(folder.path(), &["--format", "csv", sample])).await.expect_ok().stdout;
    assert!(csv.starts_with("image,outcome,label,score,format,width,height,millis,peak_bytes,reason\n"), "{csv}");
    let table = Ended::of(scan(folder.path(), &["--format", "table", sample])).await.expect_ok().stdout;
    assert!(table.contains("millis"), "{table}");

    let row = async |command| -> Value { serde_json::from_str(&Ended::of(command).await.expect_ok().stdout).unwrap() };
    let mut measured = row(scan(folder.path(), &["--format", "jsonl", sample])).await;
    assert!(measured["millis"].as_f64().unwrap() > 0.0, "{measured}");
    let fields = measured.as_object_mut().unwrap();
    fields.retain(|field, _| !["millis", "peak_bytes"].contains(&field.as_str()));
    let mut plain = Command::new(env!("CARGO_BIN_EXE_pixwarden"));
    plain.env_clear().env("ORT_DYLIB_PATH", service("ORT_DYLIB_PATH")).args(["scan", "--format", "jsonl", sample]);
    plain.args(["--detector", concat!(env!("CARGO_MANIFEST_DIR"), "/models/cifake-32")]).current_dir(folder.path());
    assert_eq!(row(plain).await, measured, "the contract's keys and no other");
}
