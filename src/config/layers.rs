//! Merges the layers: defaults ← file ← environment ← flags. A later layer wins. An unknown key is an error that suggests
//! the most similar known key.

use std::path::{Path, PathBuf};

use toml::de::DeTable;
use toml::{Table, Value};

use super::origin::{Origin, Origins, join, line};
use super::{Config, ConfigError, value};
use crate::policy::options::RULE_KEYS;

/// The file to read when none is named; it may be absent.
const DEFAULT_FILE: &str = "pixwarden.toml";

const VARIABLE_PREFIX: &str = "PIXWARDEN_";

/// The variable that names the file.
const FILE_VARIABLE: &str = "PIXWARDEN_CONFIG";

/// A variable that is tried for another one, which it is not similar to.
const MISTAKEN_VARIABLE: (&str, &str) = ("PIXWARDEN_LOG", "PIXWARDEN_LOG_FILTER");

/// The keys of tables in lists. The defaults do not contain them, since the lists are empty.
const LIST_KEYS: [(&str, &[&str]); 7] = [
    ("buckets", &["name", "region", "endpoint", "path_style"]),
    ("detectors", &["name", "path", "file", "sha256", "shadow"]),
    ("policy.rules", &RULE_KEYS),
    ("policies", &["name", "when", "inherit", "rules"]),
    ("policies.when", &["bucket", "key_prefix", "lane", "metadata"]),
    ("policies.rules", &RULE_KEYS),
    ("webhooks", &["name", "url", "secret", "old_secret", "events"]),
];

/// A suggestion must be at least this similar to the unknown key, of 1.0 (Jaro-Winkler similarity).
const MIN_SIMILARITY: f64 = 0.75;

/// A variable this similar to a known one is a typing mistake (Damerau-Levenshtein distance over the length, from 1.0).
/// Variables that Kubernetes injects, such as `PIXWARDEN_METRICS_PORT`, are less similar to every option.
const MIN_VARIABLE_SIMILARITY: f64 = 0.75;

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

/// Merges all layers and checks the result. `warn` gets what may be a mistake. Paths in the file are relative to its folder.
///
/// # Errors
/// When a named file cannot be read, a key is unknown, or a value is of the wrong type or out of range.
pub fn load(
    overlay: &Overlay,
    environment: impl Iterator<Item = (String, String)>,
    warn: impl FnMut(&str),
) -> Result<Config, ConfigError> {
    let defaults = defaults();
    let mut merged = defaults.clone();
    let mut origins = Origins::default();

    let path = overlay.file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    match std::fs::read_to_string(&path) {
        Ok(text) => merge(&mut merged, read_file(&path, &text, &defaults, &mut origins)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && overlay.file.is_none() => {}
        Err(error) => return Err(ConfigError::Unreadable { path, error }),
    }
    for (name, path, value) in environment_values(&defaults, environment, warn)? {
        set(&mut merged, &path, value);
        origins.replace(&path, Origin::Variable(name));
    }
    for FlagValue { option, flag, value } in &overlay.values {
        set(&mut merged, option, value.clone());
        origins.replace(option, Origin::Flag(flag));
    }
    let config: Config = value::read(merged).map_err(|e| e.at(&origins))?;
    config.check().map_err(|e| e.at(&origins))?;
    Ok(Config { origins, ..config })
}

/// A configuration whose policies are those of another file.
///
/// # Errors
/// As [`load`].
pub(crate) fn policies_of_file(config: &Config, path: &Path) -> Result<Config, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    let (defaults, mut origins) = (defaults(), Origins::default());
    let mut merged = defaults.clone();
    merge(&mut merged, read_file(path, &text, &defaults, &mut origins)?);
    let file: Config = value::read(merged).map_err(|e| e.at(&origins))?;
    let Config { policy, policies, trusted_metadata, .. } = file;
    let tried = Config { policy, policies, trusted_metadata, origins, ..config.clone() };
    if tried.policy.rules.is_empty() && tried.policies.iter().all(|policy| policy.rules.is_empty()) {
        let what =
            format!("{} has no rule\n  hint: give a file with `[[policy.rules]]` or `[[policies]]`", path.display());
        return Err(ConfigError::Invalid { option: "--policy".into(), what });
    }
    tried.check_kept_metadata().map_err(|e| e.at(&config.origins))?;
    Ok(tried)
}

fn read_file(path: &Path, text: &str, defaults: &Table, origins: &mut Origins) -> Result<Table, ConfigError> {
    let invalid = |error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line(text, error.span().map_or(0, |span| span.start)),
        what: error.message().to_owned(),
    };
    let with_positions = DeTable::parse(text).map_err(invalid)?;
    let mut file: Table = toml::from_str(text).map_err(invalid)?;
    normalise(&mut file);
    origins.add_file(path, text, with_positions.get_ref());
    refuse_unknown(&file, defaults, "", origins)?;
    relative_to(path.parent().unwrap_or(Path::new("")), &mut file);
    Ok(file)
}

/// Options that are tables, and whose first key may be written without the table, with that key.
const SHORT_FORMS: [(&str, &str); 1] = [("ledger", "url")];

/// Turns `ledger = "URL"` into the table that it stands for.
fn normalise(file: &mut Table) {
    for (option, key) in SHORT_FORMS {
        match file.remove(option) {
            Some(Value::Table(table)) => drop(file.insert(option.into(), Value::Table(table))),
            Some(value) => drop(file.insert(option.into(), Value::Table(Table::from_iter([(key.into(), value)])))),
            None => {}
        }
    }
}

/// Makes the paths in a file relative to its folder.
fn relative_to(folder: &Path, file: &mut Table) {
    // A path that is not UTF-8 cannot be a value; such a folder leaves the path as it is.
    let resolve = |path: &str| folder.join(path).to_str().unwrap_or(path).to_owned();
    if let Some(Value::String(url)) = inner(file, "ledger", "url")
        && let Some(path) = url.strip_prefix("sqlite://").filter(|path| !path.is_empty() && *path != ":memory:")
    {
        *url = format!("sqlite://{}", resolve(path));
    }
    for entry in file.get_mut("detectors").and_then(Value::as_array_mut).into_iter().flatten() {
        let path = match entry {
            Value::Table(table) => table.get_mut("path"),
            path => Some(path),
        };
        if let Some(Value::String(path)) = path.filter(|path| path.as_str() != Some("")) {
            *path = resolve(path);
        }
    }
    // A library without a folder is searched in the system's folders.
    if let Some(Value::String(library)) = inner(file, "inference", "runtime").filter(|v| is_path(v)) {
        *library = resolve(library);
    }
    if let Some(Value::String(program)) = inner(file, "decode", "helper").filter(|v| is_path(v)) {
        let absolute = std::path::absolute(folder.join(&program)).ok();
        *program = absolute.and_then(|path| path.to_str().map(str::to_owned)).unwrap_or_else(|| program.clone());
    }
}

fn inner<'a>(file: &'a mut Table, table: &str, key: &str) -> Option<&'a mut Value> {
    file.get_mut(table)?.as_table_mut()?.get_mut(key)
}

fn is_path(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.contains('/'))
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

fn refuse_unknown(table: &Table, known: &Table, path: &str, origins: &Origins) -> Result<(), ConfigError> {
    let unknown = |path: &str, candidates: Vec<String>| match origins.of(path) {
        Some(origin) => Err(ConfigError::Unknown {
            origin: origin.clone(),
            key: without_positions(path),
            nearest: nearest(&without_positions(path), candidates),
        }),
        // Every key of a file has a line.
        None => Ok(()),
    };
    for (key, value) in table {
        let here = join(path, key);
        let Some(default) = known.get(key) else {
            let all = leaves(&defaults(), "").into_iter().map(|(path, _)| path);
            let siblings = known.keys().map(|key| join(path, key));
            return unknown(&here, siblings.chain(all).collect());
        };
        match (value, default) {
            (Value::Table(inner), Value::Table(known)) => refuse_unknown(inner, known, &here, origins)?,
            (Value::Array(items), Value::Array(_)) => {
                let tables = items.iter().enumerate().filter_map(|(index, item)| Some((index, item.as_table()?)));
                for (index, table) in tables {
                    if let Some((path, candidates)) = unknown_in_list(table, &format!("{here}[{index}]")) {
                        return unknown(&path, candidates);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The first unknown key in a table of a list, and the known ones. Tables inside it are in [`LIST_KEYS`] too; the keys of
/// others are free.
fn unknown_in_list(table: &Table, path: &str) -> Option<(String, Vec<String>)> {
    let list = without_positions(path);
    let (_, keys) = LIST_KEYS.iter().find(|(known, _)| *known == list)?;
    table.iter().find_map(|(key, value)| {
        let here = join(path, key);
        if !keys.contains(&key.as_str()) {
            return Some((here, keys.iter().map(|key| join(&list, key)).collect()));
        }
        match value {
            Value::Table(inner) => unknown_in_list(inner, &here),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .find_map(|(index, item)| unknown_in_list(item.as_table()?, &format!("{here}[{index}]"))),
            _ => None,
        }
    })
}

/// `detectors[0].path` as `detectors.path`.
fn without_positions(path: &str) -> String {
    path.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest)).collect()
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

/// Each option `a.b_c` is also the variable `PIXWARDEN_A_B_C`; lists are separated by commas. Returns the variables that
/// are set, with their options and values.
fn environment_values(
    defaults: &Table,
    environment: impl Iterator<Item = (String, String)>,
    mut warn: impl FnMut(&str),
) -> Result<Vec<(String, String, Value)>, ConfigError> {
    let mut options: Vec<(String, String, Value)> =
        leaves(defaults, "").into_iter().map(|(path, default)| (variable(&path), path, default)).collect();
    for (option, key) in SHORT_FORMS {
        options.push((variable(option), join(option, key), Value::String(String::new())));
    }
    let mut values = Vec::new();
    for (name, text) in environment {
        if !name.starts_with(VARIABLE_PREFIX) || name == FILE_VARIABLE {
            continue;
        }
        match options.iter().find(|(known, ..)| *known == name) {
            Some((_, path, default)) => values.push((name, path.clone(), typed(&text, default))),
            None => match misspelt(&name, options.iter().map(|(known, ..)| known.as_str()).chain([FILE_VARIABLE])) {
                Some(nearest) => return Err(ConfigError::UnknownVariable { name, nearest: nearest.to_owned() }),
                // Not an error: Kubernetes sets such variables for a service of that name, for example PIXWARDEN_PORT.
                None => warn(&format!("ignoring the variable {name}: there is no such option")),
            },
        }
    }
    Ok(values)
}

/// The known variable that an unknown one almost is, or whose last part it is: `PIXWARDEN_ATTEMPTS` is meant as
/// `PIXWARDEN_WORKER_ATTEMPTS`.
fn misspelt<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name == MISTAKEN_VARIABLE.0 {
        return Some(MISTAKEN_VARIABLE.1);
    }
    let name = name.strip_prefix(VARIABLE_PREFIX)?;
    let similarity = |known: &str| {
        let known = known.strip_prefix(VARIABLE_PREFIX).unwrap_or(known);
        let is_last_part = known.split_once('_').is_some_and(|(_, last)| last == name);
        if is_last_part || known.replace('_', "") == name.replace('_', "") {
            return 1.0;
        }
        strsim::normalized_damerau_levenshtein(name, known)
    };
    known
        .map(|known| (similarity(known), known))
        .filter(|(similarity, _)| *similarity >= MIN_VARIABLE_SIMILARITY)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// The environment variable of an option.
pub(super) fn variable(path: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", path.replace('.', "_").to_uppercase())
}

/// The value of a variable. A text that is not of the option's kind stays a text, which is refused later, when all values
/// are read.
fn typed(text: &str, default: &Value) -> Value {
    let parsed = match default {
        Value::Integer(_) => text.parse().ok().map(Value::Integer),
        Value::Float(_) => text.parse().ok().map(Value::Float),
        Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
        Value::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::Array(items.map(|item| Value::String(item.into())).collect()))
        }
        _ => None,
    };
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::config::{DetectorEntry, LedgerConfig, SecretUrl};

    fn load_file(text: &str) -> Result<Config, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        load(&Overlay { file: Some(file.path().to_owned()), values: Vec::new() }, std::iter::empty(), |_| {})
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
        let config = load(&overlay, environment.iter().map(|(k, v)| ((*k).into(), (*v).into())), |_| {}).unwrap();
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
        assert_eq!(nearest_of("[[policies]]\nwen = 1").as_deref(), Some("policies.when"));
        assert_eq!(nearest_of("[[policies]]\nwhen.buket = \"b\"").as_deref(), Some("policies.when.bucket"));
        assert_eq!(
            nearest_of("[[policies]]\n[[policies.rules]]\nseverty = 1").as_deref(),
            Some("policies.rules.severity")
        );
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
            ("buckets = [\"\"]", "buckets[0]"),
            ("[traces]\nsample = 1.5", "traces.sample"),
            ("[traces]\nsample = nan", "traces.sample"),
            ("[traces]\nendpoint = \"localhost:4318\"", "traces.endpoint"),
        ] {
            match load_file(text) {
                Err(ConfigError::At { error, .. }) => match *error {
                    ConfigError::Invalid { option: named, .. } => assert_eq!(named, option),
                    other => panic!("{text}: {other:?}"),
                },
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    /// The error of a file, after its line.
    fn refused(text: &str, line: usize) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let overlay = Overlay { file: Some(file.path().to_owned()), values: Vec::new() };
        let error = load(&overlay, std::iter::empty(), |_| {}).unwrap_err();
        let place = format!("{}, line {line}: ", file.path().display());
        let text = crate::error_text(&error);
        text.strip_prefix(&place).unwrap_or_else(|| panic!("line {line} is not named: {text}")).to_owned()
    }

    #[test]
    fn a_wrong_value_names_its_line_and_what_is_allowed() {
        for (text, line, expected) in [
            ("\n[worker]\nattempts = \"x\"", 3, "`worker.attempts`: \"x\" is not a whole number from 1 to 4294967295"),
            ("[worker]\nprefetch = 70000", 2, "`worker.prefetch`: 70000 is not a whole number from 0 to 65535"),
            ("worker.prefetch = -1", 1, "`worker.prefetch`: -1 is not a whole number from 0 to 65535"),
            ("[worker]\nreuse_scores = \"yes\"", 2, "`worker.reuse_scores`: \"yes\" is not true or false"),
            ("[storage]\ndownloads = 1.5", 2, "`storage.downloads`: 1.5 is not a whole number, at least 0"),
            ("[policy]\n\nreview_at = []", 3, "`policy.review_at`: a list is not a number"),
            (
                "[inference]\ndevice = \"gpu\"",
                2,
                "`inference.device`: \"gpu\" is not one of \"auto\", \"cpu\", \"cuda\"",
            ),
            ("[log]\nformat = 1", 2, "`log.format`: 1 is not one of \"auto\", \"text\", \"json\""),
            ("prefix = 1979-05-27", 1, "`prefix`: a date is not text in quotes"),
            ("# one\nworker = 3", 2, "`worker`: 3 is not a table"),
            ("buckets = \"uploads\"", 1, "`buckets`: \"uploads\" is not a list in brackets"),
            ("buckets = [\"a\",\n  7]", 2, "`buckets[1]`: 7 is not text in quotes or a table"),
            (
                "[[buckets]]\nname = \"a\"\n[[buckets]]\nname = \"b\"\npath_style = \"no\"",
                5,
                "`buckets[1].path_style`: \"no\" is not true or false",
            ),
            (
                "[[policies]]\nname = \"a\"\nwhen.lane = 3",
                3,
                "`policies[0].when.lane`: 3 is not text in quotes, or a list of texts",
            ),
            (
                "[[policies]]\nname = \"a\"\nwhen.bucket = []",
                3,
                "`policies[0].when.bucket`: an empty list holds for no job\n  hint: leave the key out where it is no condition",
            ),
            (
                "[[policies]]\n[[policies.rules]]\nseverity = \"x\"",
                3,
                "`policies[0].rules[0].severity`: \"x\" is not a whole number from 0 to 4294967295",
            ),
            ("[[policy.rules]]\n\nlabel = 3", 3, "`policy.rules[0].label`: 3 is not text in quotes"),
            ("[events]\npublish = [\n1]", 3, "`events.publish[0]`: 1 is not text in quotes"),
            ("queue = \"http://host\"", 1, "`queue`: http://host/ is not a URL that begins with amqp:// or amqps://"),
            (
                "[storage]\nendpoint = \"nourl\"",
                2,
                "`storage.endpoint`: \"nourl\" is not a URL that begins with http:// or https://",
            ),
            (
                "[[buckets]]\nname = \"a\"\nendpoint = \"host:9000\"",
                3,
                "`buckets[0].endpoint`: \"host:9000\" is not a URL that begins with http:// or https://",
            ),
            (
                "[[webhooks]]\nurl = \"https://h/\"\nsecrte = \"s3cret\"",
                3,
                "unknown option `webhooks.secrte`\n  hint: did you mean `webhooks.secret`?",
            ),
            ("[[webhooks]]\nsecret = [\"s3cret\"]", 2, "`webhooks[0].secret`: a list is not text in quotes"),
            (
                "[[webhooks]]\n\nurl = \"h/\"",
                3,
                "`webhooks[0].url`: (not a URL) is not a URL that begins with http:// or https://",
            ),
            ("[worker]\nattempts = 0", 2, "`worker.attempts`: 0 is not a whole number from 1 to 4294967295"),
            ("[worker]\natempts = 3", 2, "unknown option `worker.atempts`\n  hint: did you mean `worker.attempts`?"),
            (
                "[[detectors]]\npath = \"x\"\n[[detectors]]\npaht = \"x\"",
                4,
                "unknown option `detectors.paht`\n  hint: did you mean `detectors.path`?",
            ),
        ] {
            assert_eq!(refused(text, line), expected, "{text}");
        }
    }

    fn load_variable(name: &str, value: &str) -> (Result<Config, String>, Vec<String>) {
        let mut warnings = Vec::new();
        let environment = std::iter::once((name.to_owned(), value.to_owned()));
        // No file of the working directory may take part.
        let file = tempfile::NamedTempFile::new().unwrap();
        let overlay = Overlay { file: Some(file.path().to_owned()), values: Vec::new() };
        let loaded = load(&overlay, environment, |warning| warnings.push(warning.to_owned()));
        (loaded.map_err(|error| crate::error_text(&error)), warnings)
    }

    #[test]
    fn a_wrong_value_of_a_variable_or_flag_names_it() {
        for (name, value, expected) in [
            ("PIXWARDEN_WORKER_ATTEMPTS", "x", "`worker.attempts`: \"x\" is not a whole number from 1 to 4294967295"),
            ("PIXWARDEN_WORKER_PREFETCH", "70000", "`worker.prefetch`: 70000 is not a whole number from 0 to 65535"),
            ("PIXWARDEN_WORKER_REUSE_SCORES", "yes", "`worker.reuse_scores`: \"yes\" is not true or false"),
            ("PIXWARDEN_POLICY_RULES", "x", "`policy.rules[0]`: \"x\" is not a table"),
            (
                "PIXWARDEN_LEDGER",
                "mysql://h",
                "`ledger`: mysql://h is not a URL that begins with postgres:// or postgresql:// or sqlite://",
            ),
        ] {
            assert_eq!(load_variable(name, value).0.unwrap_err(), format!("{name}: {expected}"));
        }
        let mut overlay = Overlay::default();
        overlay.set("worker.attempts", "--attempts", Some(0));
        let environment = std::iter::once(("PIXWARDEN_WORKER_ATTEMPTS".into(), "5".into()));
        let error = load(&overlay, environment, |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "--attempts: `worker.attempts`: 0 is not a whole number from 1 to 4294967295");
    }

    #[test]
    fn a_misspelt_variable_is_an_error_and_one_of_kubernetes_a_warning() {
        for (name, meant) in [
            ("PIXWARDEN_QUEU", "PIXWARDEN_QUEUE"),
            ("PIXWARDEN_BUCKET", "PIXWARDEN_BUCKETS"),
            ("PIXWARDEN_WORKER_ATEMPTS", "PIXWARDEN_WORKER_ATTEMPTS"),
            ("PIXWARDEN_ATTEMPTS", "PIXWARDEN_WORKER_ATTEMPTS"),
            ("PIXWARDEN_CONFG", "PIXWARDEN_CONFIG"),
            ("PIXWARDEN_LOG", "PIXWARDEN_LOG_FILTER"),
            ("PIXWARDEN_POLICY_FLAGAT", "PIXWARDEN_POLICY_FLAG_AT"),
            ("PIXWARDEN_STORAGE_ENDPONIT", "PIXWARDEN_STORAGE_ENDPOINT"),
        ] {
            let (loaded, _) = load_variable(name, "1");
            let error = loaded.unwrap_err();
            assert!(error.starts_with(&format!("unknown variable {name}\n  hint: did you mean ")), "{error}");
            let rest = meant.trim_start_matches(VARIABLE_PREFIX);
            assert!(error.trim_end_matches('?').ends_with(rest), "{error}");
        }
        // Kubernetes derives these names from the names of services in the namespace.
        for service in ["", "METRICS_", "WORKER_", "QUEUE_", "LEDGER_", "STORAGE_", "LOG_", "TRACES_", "EVENTS_"] {
            for rest in ["SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_9464_TCP", "PORT_9464_TCP_ADDR"] {
                let name = format!("PIXWARDEN_{service}{rest}");
                let (loaded, warnings) = load_variable(&name, "tcp://10.0.0.1:9464");
                assert!(loaded.is_ok(), "{name}: {loaded:?}");
                assert_eq!(warnings, [format!("ignoring the variable {name}: there is no such option")]);
            }
        }
    }

    #[test]
    fn the_ledger_is_a_url_or_a_table_and_a_later_layer_replaces_the_url_alone() {
        let table = "[ledger]\nurl = \"postgres://file/db\"\nmetadata = [\"tenant\"]";
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(table.as_bytes()).unwrap();
        let load_with = |variables: &[(&str, &str)], flag: Option<&str>| {
            let mut overlay = Overlay { file: Some(file.path().to_owned()), values: Vec::new() };
            overlay.set("ledger.url", "--ledger", flag);
            let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            load(&overlay, environment.collect::<Vec<_>>().into_iter(), |_| {}).map(|config| config.ledger)
        };
        let ledger = |url: &str, fields: &[&str]| LedgerConfig {
            url: SecretUrl::from(url.to_owned()),
            metadata: fields.iter().map(|field| (*field).to_owned()).collect(),
        };
        assert_eq!(load_with(&[], None).unwrap(), ledger("postgres://file/db", &["tenant"]));
        let variable = ("PIXWARDEN_LEDGER", "postgres://variable/db");
        assert_eq!(load_with(&[variable], None).unwrap(), ledger("postgres://variable/db", &["tenant"]));
        let flagged = load_with(&[variable, ("PIXWARDEN_LEDGER_METADATA", "a, b")], Some("postgres://flag/db"));
        assert_eq!(flagged.unwrap(), ledger("postgres://flag/db", &["a", "b"]));
        assert_eq!(load_with(&[("PIXWARDEN_LEDGER_METADATA", "")], None).unwrap().metadata, [""; 0]);
        // An error names what has set the URL.
        let error = load_with(&[("PIXWARDEN_LEDGER", "mysql://h")], None).unwrap_err().to_string();
        assert!(error.starts_with("PIXWARDEN_LEDGER: `ledger`: mysql://h is not a URL"), "{error}");
        let short = load_file("ledger = \"postgres://h/db\"").unwrap().ledger;
        assert_eq!(short, ledger("postgres://h/db", &["*"]));
        for (text, expected) in [
            ("prefix = \"p\"\nledger = 3", "line 2: `ledger.url`: 3 is not text in quotes"),
            ("[ledger]\nurl = \"mysql://h\"", "line 2: `ledger`: mysql://h is not a URL"),
            ("[ledger]\nmetdata = []", "line 2: unknown option `ledger.metdata`"),
            ("[ledger]\nmetadata = [\"\"]", "line 2: `ledger.metadata`: a field without a name"),
        ] {
            let error = load_file(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_field_that_chooses_the_policy_must_be_kept() {
        let policies = "trusted_metadata = true\n[[policies]]\nname = \"p\"\nwhen.metadata.tenant = \"t\"\n\
                        rules = [{ detector = \"d\", label = \"l\", flag_at = 0.5 }]\n";
        assert!(load_file(policies).is_ok());
        let kept = |fields: &str| load_file(&format!("{policies}[ledger]\nmetadata = {fields}"));
        assert!(kept("[\"user\", \"tenant\"]").is_ok());
        for fields in ["[]", "[\"user\"]"] {
            let error = kept(fields).unwrap_err().to_string();
            assert!(
                error.contains("the field \"tenant\" is not kept, and `policies[0].when.metadata` needs it"),
                "{error}"
            );
        }
        // Also where the policies are tried by `compare`.
        let mut tried = tempfile::NamedTempFile::new().unwrap();
        tried.write_all(policies.as_bytes()).unwrap();
        let configured = |fields: &str| load_file(&format!("[ledger]\nmetadata = {fields}")).unwrap();
        let of_file = |fields: &str| policies_of_file(&configured(fields), tried.path());
        assert_eq!(of_file("[\"tenant\"]").unwrap().policies.len(), 1);
        let error = of_file("[\"user\"]").unwrap_err().to_string();
        assert!(error.contains("the field \"tenant\" is not kept"), "{error}");
    }

    #[test]
    fn paths_in_a_file_are_relative_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pixwarden.toml");
        let text = "ledger = \"sqlite://a.db\"\ndetectors = [\"models/one\", \"/abs\"]\n\
                    inference.runtime = \"lib/libonnxruntime.so\"\ndecode.helper = \"bin/helper\"";
        std::fs::write(&file, text).unwrap();
        let overlay = Overlay { file: Some(file.clone()), values: Vec::new() };
        let config = load(&overlay, std::iter::empty(), |_| {}).unwrap();
        let inside = |path: &str| folder.path().join(path).to_str().unwrap().to_owned();
        assert_eq!(config.ledger.url.expose(), format!("sqlite://{}", inside("a.db")));
        assert_eq!(
            config.detectors.iter().map(DetectorEntry::path).collect::<Vec<_>>(),
            [&inside("models/one"), "/abs"]
        );
        assert_eq!(config.inference.runtime, inside("lib/libonnxruntime.so"));
        assert_eq!(config.decode.helper, inside("bin/helper"));

        // The working directory stays the base of variables and flags, and a library without a folder is searched.
        std::fs::write(&file, "[[detectors]]\npath = \"one\"\n[inference]\nruntime = \"libonnxruntime.so\"").unwrap();
        let environment = std::iter::once(("PIXWARDEN_LEDGER".to_owned(), "sqlite://b.db".to_owned()));
        let config = load(&overlay, environment, |_| {}).unwrap();
        assert_eq!((config.ledger.url.expose(), config.detectors[0].path()), ("sqlite://b.db", inside("one").as_str()));
        assert_eq!(config.inference.runtime, "libonnxruntime.so");
    }
}
