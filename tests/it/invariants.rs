//! The boundaries that `src/lib.rs` promises, checked in the source itself.
//!
//! The check reads paths, not lines of text: `use` statements are expanded and resolved to whole module paths, so that a
//! prefix, a nested group, a line break or a nested file cannot hide an import.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A source file without comments, texts and tests.
struct SourceFile {
    /// Relative to `src/`.
    file: String,
    /// Its module, `["worker", "accept"]` for instance.
    module: Vec<String>,
    code: String,
}

fn sources() -> Vec<SourceFile> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, into) } else { into.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        // Tests may use what they test with.
        .filter(|path| path.file_stem().is_some_and(|stem| stem != "tests"))
        .map(|path| {
            let file = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let module = file.trim_end_matches(".rs").split('/').map(str::to_owned);
            let module = module.filter(|part| !["lib", "main"].contains(&part.as_str())).collect();
            let text = std::fs::read_to_string(path).unwrap();
            let tests = ["mod tests {", "pub(crate) mod tests {"].map(|module| format!("#[cfg(test)]\n{module}"));
            let end = tests.iter().filter_map(|module| text.find(module)).min().unwrap_or(text.len());
            let code = without_comments_and_texts(&text[..end]);
            SourceFile { file, module, code }
        })
        .collect()
}

/// Replaces comments, string literals and character literals by nothing.
fn without_comments_and_texts(source: &str) -> String {
    let bytes = source.as_bytes();
    let (mut code, mut at) = (String::new(), 0);
    let find = |from: usize, text: &str| source[from..].find(text).map_or(bytes.len(), |found| from + found);
    while at < bytes.len() {
        let rest = &source[at..];
        let raw_hashes = rest.strip_prefix('r').map(|rest| rest.len() - rest.trim_start_matches('#').len());
        if rest.starts_with("//") {
            at = find(at, "\n");
        } else if rest.starts_with("/*") {
            at = find(at, "*/") + 2;
        } else if let Some(hashes) = raw_hashes.filter(|n| rest[1 + n..].starts_with('"') && !ends_in_word(&code)) {
            let end = format!("\"{}", "#".repeat(hashes));
            at = find(at + hashes + 2, &end) + end.len();
            code.push_str("\"\"");
        } else if rest.starts_with('"') {
            at += 1;
            while at < bytes.len() && bytes[at] != b'"' {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at += 1;
            code.push_str("\"\"");
        } else if rest.starts_with("'\\") || (rest.starts_with('\'') && rest.chars().nth(2) == Some('\'')) {
            let skip = if rest.starts_with("'\\") { 3 } else { 1 };
            at = find(at + skip, "'") + 1;
        } else {
            let next = rest.chars().next().unwrap();
            code.push(next);
            at += next.len_utf8();
        }
    }
    code
}

fn ends_in_word(code: &str) -> bool {
    code.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
}

impl SourceFile {
    /// Every path of the crate that this file names, from the crate's root: `worker::accept::Acceptor`.
    fn paths(&self) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        let mut code = String::new();
        let mut rest = self.code.as_str();
        while let Some(found) = rest.find("use ") {
            let starts_word = !ends_in_word(&rest[..found]);
            if !starts_word {
                code.push_str(&rest[..found + 4]);
                rest = &rest[found + 4..];
                continue;
            }
            code.push_str(&rest[..found]);
            let statement = &rest[found + 4..];
            let end = statement.find(';').unwrap_or(statement.len());
            for path in expand(&statement[..end].split_whitespace().collect::<Vec<_>>().join(" ")) {
                let resolved = self.resolve(&path);
                // Another name for the crate would hide what is imported through it.
                assert_ne!(resolved.as_deref(), Some(""), "{}: `use {path}`", self.file);
                paths.extend(resolved);
            }
            rest = &statement[end..];
        }
        code.push_str(rest);
        for start in ["crate::", "super::", "self::"] {
            for (at, _) in code.match_indices(start) {
                // `super::super::x` is found at its first part.
                if ends_in_word(&code[..at]) || code[..at].ends_with("::") {
                    continue;
                }
                let path: String =
                    code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
                paths.extend(self.resolve(path.trim_end_matches(':')));
            }
        }
        paths
    }

    /// A path from the crate's root, or `None` for a path of another crate.
    fn resolve(&self, path: &str) -> Option<String> {
        let path = path.split(" as ").next().unwrap().trim().trim_start_matches('$');
        let mut parts: Vec<&str> = path.split("::").map(str::trim).collect();
        let mut module: Vec<&str> = self.module.iter().map(String::as_str).collect();
        match parts.first().copied()? {
            "crate" => module.clear(),
            "self" => {}
            "super" => {
                module.pop();
            }
            // A child module, named without `self`.
            child if self.code.contains(&format!("mod {child};")) => parts.insert(0, "self"),
            _ => return None,
        }
        let mut parts = parts.into_iter().skip(1).peekable();
        while parts.next_if_eq(&"super").is_some() {
            module.pop();
        }
        module.extend(parts.filter(|part| *part != "self"));
        Some(module.join("::"))
    }

    fn is_in(&self, place: &str) -> bool {
        match place.strip_suffix('/') {
            Some(folder) => self.file.starts_with(&format!("{folder}/")) || self.file == format!("{folder}.rs"),
            None => self.file == place,
        }
    }

    /// Whether the code names a crate: as the first part of a path.
    fn names_crate(&self, name: &str) -> bool {
        self.code.match_indices(name).any(|(at, _)| {
            let (before, after) = (&self.code[..at], &self.code[at + name.len()..]);
            let is_absolute = before.strip_suffix("::").is_some_and(|before| !ends_in_word(before));
            let starts = is_absolute || !ends_in_word(before) && !before.ends_with("::") && !before.ends_with('.');
            starts && (after.starts_with("::") || (before.ends_with("use ") && after.starts_with([';', ' '])))
        })
    }
}

/// Expands a `use` statement: `a::{b, c::{d, e}}` becomes `a::b`, `a::c::d` and `a::c::e`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else { return vec![tree.to_owned()] };
    let (prefix, group) = (&tree[..open], &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())]);
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = group[start..at].trim();
                if !part.is_empty() {
                    paths.extend(expand(part).into_iter().map(|path| format!("{prefix}{path}")));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    paths
}

fn is_below(path: &str, module: &str) -> bool {
    path == module || path.strip_prefix(module).is_some_and(|rest| rest.starts_with("::"))
}

#[test]
fn each_library_is_named_only_where_it_belongs() {
    let allowed: &[(&str, &[&str])] = &[
        (
            "lapin",
            &[
                "broker/",
                "worker/accept/rabbitmq.rs",
                "worker/delivery.rs",
                "worker/publish.rs",
                "worker/settle.rs",
                // The connection on which it measures the lane's depth.
                "backfill/pace.rs",
                "dead/",
            ],
        ),
        ("aws_config", &["objects/s3.rs"]),
        ("aws_sdk_s3", &["objects/s3.rs"]),
        ("aws_smithy_http_client", &["objects/s3.rs"]),
        ("tokio::net", &["http/", "telemetry/http.rs"]),
        ("memmap2", &["objects/buffers.rs"]),
        ("cap_std", &["objects/folder/", "hub/download.rs"]),
        ("ort", &["screen/infer/onnx/"]),
        ("image", &["screen/decode/"]),
        ("landlock", &["screen/decode/sandbox/confine.rs"]),
        ("seccompiler", &["screen/decode/sandbox/confine.rs"]),
        ("turbojpeg", &["screen/decode/jpeg.rs"]),
        ("libwebp_sys", &["screen/decode/webp/libwebp.rs"]),
        ("fast_image_resize", &["screen/decode/prepare.rs"]),
        ("parquet", &["evaluate/columns.rs"]),
        ("sqlx", &["ledger/"]),
        ("backoff", &["retry.rs"]),
        ("ureq", &["certificates.rs", "hub/", "telemetry/traces/export.rs", "webhooks/client.rs"]),
        ("axum", &["http/", "telemetry/http.rs"]),
        ("hyper", &["http/connection.rs", "http/server.rs"]),
        ("hyper_util", &["http/connection.rs", "http/server.rs"]),
        ("metrics_exporter_prometheus", &["telemetry/metrics/"]),
        ("opentelemetry", &["telemetry/traces/"]),
        ("tracing_opentelemetry", &["telemetry/traces/"]),
    ];
    for source in sources() {
        for (library, places) in allowed {
            let expected = places.iter().any(|place| source.is_in(place));
            assert!(!source.names_crate(library) || expected, "{} names {library}, which {places:?} may", source.file);
        }
    }
}

#[test]
fn only_the_file_that_calls_libwebp_has_unsafe_code() {
    let unsafe_files: Vec<_> = sources().into_iter().filter(|source| source.code.contains("unsafe")).collect();
    let files: Vec<_> = unsafe_files.iter().map(|source| source.file.as_str()).collect();
    assert_eq!(files, ["screen/decode/webp/libwebp.rs"]);
}

/// What each room may import from the crate besides itself. `config` gathers the options of all stages.
const ROOMS: &[(&str, &[&str])] = &[
    ("job", &["telemetry::traces"]),
    (
        "config",
        &[
            "detector::options",
            "error_text",
            "http::options",
            "job::event",
            "ledger::options",
            "objects::options",
            "policy::options",
            "review::options",
            "screen::decode::options",
            "screen::infer::options",
            "telemetry::options",
            "webhooks::options",
            "worker::options",
            "worker::publish::options",
        ],
    ),
    ("lanes", &["job", "telemetry"]),
    ("detector", &["canonical", "error_text", "text_or_table"]),
    ("policy", &["canonical", "config", "detector", "job"]),
    ("objects", &["certificates", "config", "error_text", "job", "lanes", "offload", "telemetry", "text_or_table"]),
    (
        "screen",
        &["config", "detector", "error_text", "fault_injection", "job", "lanes", "policy", "processes", "telemetry"],
    ),
    ("banks", &["config", "job", "ledger", "policy", "telemetry"]),
    ("ledger", &["certificates", "config", "error_text", "fault_injection", "job", "retry", "telemetry"]),
    (
        "life",
        &[
            "banks",
            "config",
            "error_text",
            "fault_injection",
            "groups",
            "job",
            "lanes",
            "ledger",
            "objects",
            "policy",
            "retry",
            "screen",
            "telemetry",
        ],
    ),
    ("broker", &["certificates", "config", "error_text", "fault_injection", "job", "retry", "telemetry"]),
    (
        "worker",
        &[
            "banks",
            "broker",
            "config",
            "drift",
            "fault_injection",
            "groups",
            "http",
            "job",
            "lanes",
            "ledger",
            "life",
            "objects",
            "policy",
            "processes",
            "retry",
            "screen",
            "telemetry",
            "webhooks",
        ],
    ),
    (
        "webhooks",
        &["certificates", "config", "error_text", "fault_injection", "job::event", "ledger", "retry", "telemetry"],
    ),
    ("http", &["broker", "config", "error_text", "job", "ledger", "life", "objects", "review", "screen", "telemetry"]),
    ("backfill", &["broker", "config", "error_text", "job", "ledger", "objects", "offload", "retry", "screen"]),
    ("rejudge", &["backfill", "banks", "config", "job", "ledger", "policy"]),
    ("matching", &["banks", "config", "job", "ledger", "policy", "rejudge"]),
    ("review", &["banks", "config", "job", "ledger", "policy"]),
    ("compare", &["banks", "drift", "job", "ledger", "policy", "rejudge"]),
    ("dead", &["broker", "canonical", "config", "escape", "job"]),
    ("evaluate", &["config", "detector", "error_text", "files", "job", "lanes", "policy", "screen"]),
    (
        "bench",
        &[
            "broker",
            "config",
            "detector",
            "error_text",
            "files",
            "job",
            "lanes",
            "ledger",
            "life",
            "objects",
            "policy",
            "processes",
            "screen",
            "worker",
        ],
    ),
    ("hub", &["certificates", "retry"]),
    ("telemetry", &["certificates", "config", "job"]),
    ("commands", &["*"]),
    ("canonical", &[]),
    ("certificates", &[]),
    ("drift", &["job", "ledger"]),
    ("error_text", &[]),
    ("escape", &[]),
    ("fault_injection", &[]),
    ("files", &["error_text", "job"]),
    ("groups", &[]),
    ("offload", &[]),
    ("processes", &[]),
    ("retry", &[]),
    ("text_or_table", &[]),
];

#[test]
fn rooms_import_only_what_the_map_allows() {
    for source in sources() {
        let Some(room) = source.module.first() else { continue };
        let allowed = ROOMS.iter().find(|(name, _)| name == room).map(|(_, allowed)| *allowed);
        let allowed = allowed.unwrap_or_else(|| panic!("{room} is not on the map"));
        for path in source.paths() {
            let is_own = is_below(&path, room) || path.is_empty();
            let is_allowed = allowed.iter().any(|module| is_below(&path, module) || *module == "*");
            assert!(is_own || is_allowed, "{} imports {path}, but {room} may import only {allowed:?}", source.file);
        }
    }
}

/// Rooms of stages: the parts that put the stages together, and the parts that stages share.
const STAGES: &[(&str, &[&str], &[&str])] = &[
    ("worker", &["run", "serve"], &["delivery", "options"]),
    ("screen", &["start", "self_test"], &["error", "pixels"]),
    ("life", &["outages", "screening"], &["health", "pictures", "refusals", "request"]),
    ("objects", &[], &["options"]),
    (
        "ledger",
        &["scratch"],
        &[
            "archive",
            "banks",
            "baselines",
            "columns",
            "erasure",
            "error",
            "image_hashes",
            "options",
            "outbox",
            "probe",
            "quarantine",
            "reconcile",
            "reviews",
            "schema",
            "verdicts",
            "webhooks",
        ],
    ),
];

#[test]
fn stages_do_not_import_each_other() {
    let sources = sources();
    for source in &sources {
        for (room, joining, shared) in STAGES {
            // What the room's own file imports from its stages is available to all of them under the room's name.
            let own_file = sources.iter().find(|source| source.module == [*room]).unwrap().paths();
            let stage_of_name = |name: &str| {
                let parts = own_file.iter().filter_map(|path| stage_of(path, room));
                parts.filter(|(_, rest)| rest == name).map(|(stage, _)| stage).next()
            };
            let Some((stage, _)) = stage_of(&source.module.join("::"), room) else { continue };
            if joining.contains(&stage.as_str()) {
                continue;
            }
            for path in source.paths() {
                let Some((other, _)) = stage_of(&path, room) else { continue };
                let imported_from = stage_of_name(&other);
                let is_joined = imported_from.as_ref().is_some_and(|stage| !joining.contains(&stage.as_str()));
                let other = imported_from.clone().filter(|_| is_joined).unwrap_or(other);
                let path = imported_from.map_or(path, |stage| format!("{room}::{stage}"));
                // A type that the room's own file defines has an upper-case name.
                let is_stage = other.starts_with(char::is_lowercase) && !joining.contains(&other.as_str());
                let is_shared = shared.iter().any(|shared| is_below(&path, &format!("{room}::{shared}")));
                assert!(!is_stage || other == stage || is_shared, "{} imports {path}", source.file);
            }
        }
    }
}

/// The part behind the room's name, and the rest.
fn stage_of(path: &str, room: &str) -> Option<(String, String)> {
    let rest = path.strip_prefix(room)?.strip_prefix("::")?;
    let (stage, rest) = rest.split_once("::").unwrap_or((rest, ""));
    Some((stage.to_owned(), rest.to_owned()))
}

#[test]
fn a_delivery_is_acknowledged_only_where_it_is_settled() {
    for source in sources() {
        let is_expected = ["worker/settle.rs", "broker/"].iter().any(|place| source.is_in(place));
        for call in [".ack(", ".nack(", ".reject(", ".acknowledge(", ".requeue("] {
            assert!(!source.code.contains(call) || is_expected, "{} calls {call}", source.file);
        }
    }
}

#[test]
fn the_check_itself_sees_through_groups_prefixes_and_texts() {
    let file = |code: &str| SourceFile {
        file: "worker/accept.rs".into(),
        module: vec!["worker".into(), "accept".into()],
        code: without_comments_and_texts(code),
    };
    let paths = |code: &str| file(code).paths().into_iter().collect::<Vec<_>>();
    assert_eq!(
        paths("use super::{settle::{Settler,\n  Settlement as S}, Delivery};"),
        ["worker::Delivery", "worker::settle::Settlement", "worker::settle::Settler"]
    );
    assert_eq!(
        paths("fn f() { super::super::job::id(); crate::lanes::Gate::new(1) }"),
        ["job::id", "lanes::Gate::new"]
    );
    assert_eq!(
        paths("// use crate::a;\nlet x = \"use crate::b;\"; mod child;\nuse child::C;"),
        ["worker::accept::child::C"]
    );
    assert!(is_below("screen::pixels::Pixels", "screen::pixels::Pixels"));
    assert!(!is_below("screen::pixels::PixelsOf", "screen::pixels::Pixels"), "a prefix of a name is no match");
    assert!(file("use lapin;").names_crate("lapin") && file("lapin::Channel").names_crate("lapin"));
    assert!(file("::lapin::Channel").names_crate("lapin"));
    assert!(!file("let lapin_level = config.lapin::x").names_crate("lapin"));
    assert_eq!(paths("macro_rules! m { () => { use $crate::worker::settle::Settler; } }"), ["worker::settle::Settler"]);
}
