//! Merges the layers: defaults ← file ← environment ← flags. A later layer wins. An unknown key is an error that suggests
//! the most similar known key.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Config;

/// The file to read when none is named; it may be absent.
const DEFAULT_FILE: &str = "pixwarden.toml";

/// The keys of tables in lists. The defaults do not contain them, since the lists are empty.
const LIST_KEYS: [(&str, &[&str]); 3] = [
    ("buckets", &["name", "region", "endpoint", "path_style"]),
    ("detectors", &["name", "path", "sha256", "shadow"]),
    ("policy.rules", &["detector", "label", "review_at", "flag_at"]),
];

/// A suggestion must be at least this similar to the unknown key, of 1.0 (Jaro-Winkler similarity).
const MIN_SIMILARITY: f64 = 0.75;

/// Why the configuration cannot be used. The process exits with 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}, line {line}: invalid TOML: {what}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there, without the line itself, which may contain a password.
        what: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown option `{key}`{}", hint(nearest))]
    Unknown {
        /// The file.
        origin: String,
        /// The key, with its table.
        key: String,
        /// The most similar known key.
        nearest: Option<String>,
    },
    /// A value of the wrong type.
    #[error("invalid configuration: {0}")]
    Type(String),
    /// A value that cannot be used.
    #[error("`{option}`: {what}")]
    Invalid {
        /// The option.
        option: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// An option that this command needs is not set.
    #[error(
        "`{option}` is not set\n  hint: give --{option} {example}, set PIXWARDEN_{}, or write `{option} = \"…\"` in the configuration file",
        option.to_uppercase()
    )]
    Missing {
        /// The option.
        option: String,
        /// The beginning of a value.
        example: String,
    },
}

impl ConfigError {
    /// A value that cannot be used.
    pub(crate) fn invalid(option: &str, what: impl Into<String>) -> Self {
        Self::Invalid { option: option.to_owned(), what: what.into() }
    }

    /// Refuses the first of these options whose value is 0.
    pub(crate) fn refuse_zero(options: &[(&str, u64)]) -> Result<(), Self> {
        match options.iter().find(|(_, value)| *value == 0) {
            Some((option, _)) => Err(Self::invalid(option, "must be at least 1")),
            None => Ok(()),
        }
    }
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("\n  hint: did you mean `{key}`?")).unwrap_or_default()
}

/// Values given by flags.
#[derive(Debug, Default, Clone)]
pub struct Overlay {
    /// The file named by `--config`.
    pub file: Option<PathBuf>,
    /// Values in the order of the flags.
    pub values: Vec<FlagValue>,
}

/// A value given by a flag.
#[derive(Debug, Clone)]
pub struct FlagValue {
    /// The path of the option, such as `policy.review_at`.
    pub option: &'static str,
    /// The flag, such as `--review-at`.
    pub flag: &'static str,
    /// The value.
    pub value: Value,
}

impl Overlay {
    /// Sets a value if the flag was given.
    pub fn set(&mut self, option: &'static str, flag: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.values.push(FlagValue { option, flag, value: value.into() });
        }
    }

    /// Sets a list if the flag was given at least once.
    pub fn set_list(&mut self, option: &'static str, flag: &'static str, values: &[String]) {
        if !values.is_empty() {
            self.set(option, flag, Some(Value::Array(values.iter().cloned().map(Value::String).collect())));
        }
    }
}

/// Merges all layers and checks the result.
///
/// # Errors
/// When a named file cannot be read, a key is unknown, or a value is of the wrong type or out of range.
pub fn load(overlay: &Overlay, environment: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigError> {
    let defaults = defaults();
    let mut merged = defaults.clone();

    let path = overlay.file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let file: Table = toml::from_str(&text).map_err(|error| {
                let start = error.span().map_or(0, |span| span.start);
                let line = text.get(..start).unwrap_or_default().lines().count().max(1);
                ConfigError::Syntax { path: path.clone(), line, what: error.message().to_owned() }
            })?;
            refuse_unknown(&file, &defaults, "", &path)?;
            merge(&mut merged, file);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && overlay.file.is_none() => {}
        Err(error) => return Err(ConfigError::Unreadable { path, error }),
    }
    apply_environment(&mut merged, &defaults, environment)?;
    for FlagValue { option, value, .. } in &overlay.values {
        set(&mut merged, option, value.clone());
    }
    let config: Config =
        Value::Table(merged).try_into().map_err(|e: toml::de::Error| ConfigError::Type(e.message().to_owned()))?;
    config.check()?;
    Ok(config)
}

fn defaults() -> Table {
    match Value::try_from(Config::default()) {
        Ok(Value::Table(table)) => table,
        // The defaults are constants, and every test loads them.
        other => unreachable!("the defaults are a table: {other:?}"),
    }
}

/// Every key that is not a table, with its path.
fn leaves(table: &Table, path: &str) -> Vec<(String, Value)> {
    let mut leaves_so_far = Vec::new();
    for (key, value) in table {
        let path = join(path, key);
        match value {
            Value::Table(inner) => leaves_so_far.extend(leaves(inner, &path)),
            leaf => leaves_so_far.push((path, leaf.clone())),
        }
    }
    leaves_so_far
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn refuse_unknown(table: &Table, known: &Table, path: &str, file: &Path) -> Result<(), ConfigError> {
    for (key, value) in table {
        let here = join(path, key);
        let unknown = |key: &str, candidates: Vec<String>| ConfigError::Unknown {
            origin: file.display().to_string(),
            key: key.to_owned(),
            nearest: nearest(key, candidates),
        };
        let Some(default) = known.get(key) else {
            let all = leaves(&defaults(), "").into_iter().map(|(path, _)| path);
            let siblings = known.keys().map(|key| join(path, key));
            return Err(unknown(&here, siblings.chain(all).collect()));
        };
        match (value, default) {
            (Value::Table(inner), Value::Table(known)) => refuse_unknown(inner, known, &here, file)?,
            (Value::Array(items), Value::Array(_)) => {
                let keys = LIST_KEYS.iter().find(|(list, _)| *list == here).map_or(&[][..], |(_, keys)| *keys);
                for table in items.iter().filter_map(Value::as_table) {
                    if let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) {
                        return Err(unknown(&join(&here, key), keys.iter().map(|key| join(&here, key)).collect()));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The candidate that is most similar to a key; `None` where none is similar enough.
fn nearest(key: &str, candidates: Vec<String>) -> Option<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    candidates
        .into_iter()
        .map(|candidate| {
            let whole = strsim::jaro_winkler(key, &candidate);
            let similarity = whole.max(strsim::jaro_winkler(&last(key), &last(&candidate)));
            (similarity, candidate)
        })
        .filter(|(similarity, _)| *similarity > MIN_SIMILARITY)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn set(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        Some((head, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(head) {
                set(inner, rest, value);
            }
        }
        None => {
            table.insert(path.to_owned(), value);
        }
    }
}

/// Each option `a.b_c` is also the variable `PIXWARDEN_A_B_C`; lists are separated by commas.
fn apply_environment(
    merged: &mut Table,
    defaults: &Table,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(), ConfigError> {
    let names: Vec<(String, String, Value)> =
        leaves(defaults, "").into_iter().map(|(path, default)| (variable(&path), path, default)).collect();
    for (name, text) in environment {
        if !name.starts_with("PIXWARDEN_") || name == "PIXWARDEN_CONFIG" {
            continue;
        }
        let Some((_, path, default)) = names.iter().find(|(known, ..)| *known == name) else {
            // Not an error: Kubernetes sets such variables for a service of that name, for example PIXWARDEN_PORT.
            let nearest = nearest(&name, names.iter().map(|(known, ..)| known.clone()).collect());
            let suggestion = nearest.map(|known| format!("\n  hint: did you mean {known}?")).unwrap_or_default();
            eprintln!("warning: ignoring the variable {name}: there is no such option{suggestion}");
            continue;
        };
        set(merged, path, typed(&name, &text, default)?);
    }
    Ok(())
}

/// The environment variable of an option.
pub(super) fn variable(path: &str) -> String {
    format!("PIXWARDEN_{}", path.replace('.', "_").to_uppercase())
}

fn typed(name: &str, text: &str, default: &Value) -> Result<Value, ConfigError> {
    let invalid =
        |kind: &str| ConfigError::Invalid { option: name.to_owned(), what: format!("\"{text}\" is not {kind}") };
    Ok(match default {
        Value::Integer(_) => Value::Integer(text.parse().map_err(|_| invalid("a whole number"))?),
        Value::Float(_) => Value::Float(text.parse().map_err(|_| invalid("a number"))?),
        Value::Boolean(_) => Value::Boolean(text.parse().map_err(|_| invalid("true or false"))?),
        Value::Array(_) => Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Value::String(item.into()))
                .collect(),
        ),
        _ => Value::String(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn load_file(text: &str) -> Result<Config, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        load(&Overlay { file: Some(file.path().to_owned()), values: Vec::new() }, std::iter::empty())
    }

    fn nearest_of(text: &str) -> Option<String> {
        match load_file(text) {
            Err(ConfigError::Unknown { nearest, .. }) => nearest,
            other => panic!("expected an unknown key, got {other:?}"),
        }
    }

    #[test]
    fn later_layers_win() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "prefix = \"file\"\n[worker]\nattempts = 7\ndeaths = 2\n").unwrap();
        let mut overlay = Overlay { file: Some(file.path().to_owned()), values: Vec::new() };
        overlay.set("worker.deaths", "--deaths", Some(9));
        let environment =
            [("PIXWARDEN_PREFIX", "environment"), ("PIXWARDEN_BUCKETS", "a, b"), ("PIXWARDEN_WORKER_DEATHS", "8")];
        let config = load(&overlay, environment.iter().map(|(k, v)| ((*k).into(), (*v).into()))).unwrap();
        assert_eq!(config.prefix, "environment");
        assert_eq!((config.worker.attempts, config.worker.deaths), (7, 9));
        assert_eq!(config.buckets.iter().map(super::super::Bucket::pattern).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_typo_gets_a_suggestion() {
        assert_eq!(nearest_of("que = \"amqp://x\"").as_deref(), Some("queue"));
        assert_eq!(nearest_of("[worker]\natempts = 3").as_deref(), Some("worker.attempts"));
        assert_eq!(nearest_of("max_batch = 3").as_deref(), Some("inference.max_batch"));
        assert_eq!(nearest_of("[[policy.rules]]\nflag_a = 1").as_deref(), Some("policy.rules.flag_at"));
        assert_eq!(nearest_of("[[detectors]]\npaht = \"x\"").as_deref(), Some("detectors.path"));
        assert_eq!(nearest_of("zzzzzzzz = 1"), None);
    }

    #[test]
    fn no_two_options_share_a_variable() {
        let mut names: Vec<_> = leaves(&defaults(), "").into_iter().map(|(path, _)| variable(&path)).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn the_example_file_is_the_defaults() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/pixwarden.example.toml");
        let text = std::fs::read_to_string(example).unwrap();
        let table: Table = toml::from_str(&text).unwrap();
        let written: Vec<_> = leaves(&table, "").into_iter().map(|(path, _)| path).collect();
        for (path, _) in leaves(&defaults(), "") {
            assert!(written.contains(&path), "{path} is not in the example");
        }
        assert_eq!(load_file(&text).unwrap(), Config::default());
    }

    #[test]
    fn a_value_out_of_range_names_its_option() {
        for (text, option) in [
            ("[inference]\nmax_run_ms = 0", "inference.max_run_ms"),
            ("[events]\npublish = [\"image.flaged\"]", "events.publish"),
            ("prefix = \"\"", "prefix"),
            ("buckets = [\"\"]", "buckets"),
            ("[traces]\nsample = 1.5", "traces.sample"),
            ("[traces]\nsample = nan", "traces.sample"),
            ("[traces]\nendpoint = \"localhost:4318\"", "traces.endpoint"),
        ] {
            match load_file(text) {
                Err(ConfigError::Invalid { option: named, .. }) => assert_eq!(named, option),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
