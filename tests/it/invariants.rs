//! The boundaries that `src/lib.rs` promises, checked in the source itself.

use std::path::{Path, PathBuf};

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, into) } else { into.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    files
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        // Tests may use what they test with.
        .map(|path| {
            (name(path), std::fs::read_to_string(path).unwrap().split("#[cfg(test)]\n").next().unwrap().to_owned())
        })
        .collect()
}

/// Whether code, not a comment, holds a word.
fn names(source: &str, word: &str) -> bool {
    source.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| line.contains(word))
}

#[test]
fn each_library_is_named_only_where_it_belongs() {
    let allowed: [(&str, &[&str]); 21] = [
        (
            "lapin",
            &[
                "broker.rs",
                "broker/",
                // The connection on which it looks at the lane.
                "backfill/pace.rs",
                "worker/accept.rs",
                "worker/publish.rs",
                "worker/settle.rs",
                "dead.rs",
                "dead/",
                // By the name its log lines go under.
                "telemetry.rs",
            ],
        ),
        ("aws_", &["worker/blob/s3.rs"]),
        ("memmap2::", &["worker/blob/spare.rs"]),
        ("cap_std", &["worker/blob/folder.rs", "worker/blob/folder/", "hub/download.rs"]),
        ("ort::", &["screen/infer/onnx.rs", "screen/infer/onnx/input_buffers.rs"]),
        ("image::", &["screen/decode.rs", "screen/decode/"]),
        ("landlock::", &["screen/decode/sandbox/confine.rs"]),
        ("seccompiler", &["screen/decode/sandbox/confine.rs"]),
        ("turbojpeg", &["screen/decode/jpeg.rs"]),
        ("fast_image_resize", &["screen/decode/prepare.rs"]),
        ("parquet::", &["evaluate/columns.rs"]),
        ("sqlx", &["ledger/"]),
        ("backoff::", &["retry.rs"]),
        ("ureq::", &["certificates.rs", "hub.rs", "hub/", "telemetry/traces/export.rs"]),
        ("axum", &["telemetry/http.rs"]),
        ("counter!", &["telemetry/metrics/typed.rs"]),
        ("gauge!", &["telemetry/metrics/typed.rs"]),
        ("histogram!", &["telemetry/metrics/typed.rs"]),
        ("opentelemetry", &["telemetry/traces.rs", "telemetry/traces/"]),
        ("tracing_opentelemetry", &["telemetry/traces.rs"]),
        ("acker()", &["worker/accept.rs", "worker/settle.rs"]),
    ];
    for (file, source) in sources() {
        for (library, places) in &allowed {
            let expected =
                places.iter().any(|place| file == *place || (place.ends_with('/') && file.starts_with(place)));
            // `lapin=error` is a log filter, and `export::`-like words are no paths of ours.
            let named = source.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| {
                line.match_indices(library).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    let starts = before.is_none_or(|c| !c.is_alphanumeric() && c != '_');
                    starts && !line[at + library.len()..].starts_with('=')
                })
            });
            assert!(!named || expected, "{file} names {library}, which belongs to {places:?}");
        }
    }
}

#[test]
fn stages_do_not_know_each_other() {
    let words = [
        "super::prepare::Pixels",
        "super::prepare::{Frame, Pixels",
        "super::accept::Delivery",
        "super::health::Dependency",
        "super::admit::{Closed, Fetching, Permit}",
    ];
    let stages = ["accept", "admit", "blob", "persist", "publish", "settle", "decode", "gather", "judge", "prepare"];
    for (file, source) in sources() {
        let Some(stage) = file.strip_prefix("worker/").or_else(|| file.strip_prefix("screen/")) else { continue };
        let stage = stage.trim_end_matches(".rs").split('/').next().unwrap();
        // Starting, proving and draining are about all of them.
        if ["run", "start", "self_test"].contains(&stage) {
            continue;
        }
        for line in source.lines().filter(|line| line.trim_start().starts_with("use super::")) {
            let other = stages.iter().find(|other| line.contains(&format!("super::{other}::")) && **other != stage);
            // The engine is what gathering is for.
            let allowed =
                words.iter().any(|word| line.contains(word)) || (stage == "infer" && other == Some(&"gather"));
            assert!(other.is_none() || allowed || file.matches('/').count() > 1, "{file}: {line}");
        }
    }
}

#[test]
fn the_screen_names_no_service() {
    for (file, source) in sources().into_iter().filter(|(file, _)| file.starts_with("screen")) {
        for service in ["crate::broker", "crate::ledger", "crate::worker", "tokio::net", "url::"] {
            assert!(!names(&source, service), "{file} names {service}");
        }
    }
}

#[test]
fn figures_know_no_model_and_no_service() {
    for (file, source) in sources().into_iter().filter(|(file, _)| file.starts_with("evaluate")) {
        // It has the images scored, which become the figures of the others.
        if file == "evaluate/screening.rs" {
            continue;
        }
        for other in ["crate::screen", "crate::worker", "crate::broker", "crate::ledger", "crate::commands", "tokio"] {
            assert!(!names(&source, other), "{file} names {other}");
        }
    }
}
