//! Where a value comes from: errors name the line, the variable or the flag.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// Where a value of the configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A line of the configuration file, counted from 1.
    Line(PathBuf, usize),
    /// A variable of the environment.
    Variable(String),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(file, line) => write!(f, "{}, line {line}", file.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// The origin of every value that is not a default. Keys are paths, such as `worker.attempts` or `buckets[1].region`.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    by_path: BTreeMap<String, Origin>,
    /// The folder of the configuration file that was read.
    pub(crate) folder: Option<PathBuf>,
}

/// Two configurations with the same values are equal, wherever the values come from.
impl PartialEq for Origins {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Origins {
    /// The origin of an option, or of the table or list that contains it. `None` for a default.
    #[must_use]
    pub fn of(&self, path: &str) -> Option<&Origin> {
        // Errors name the URL by its short form.
        let mut path = if path == "ledger" { "ledger.url" } else { path };
        loop {
            if let Some(origin) = self.by_path.get(path) {
                return Some(origin);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// Records the lines of a file.
    pub(super) fn add_file(&mut self, file: &Path, text: &str, table: &DeTable<'_>) {
        Lines { file, text, into: &mut self.by_path }.add(table, "");
        self.folder = file.parent().map(Path::to_owned);
    }

    /// Records the origin of a value that replaces an earlier one.
    pub(super) fn replace(&mut self, path: &str, origin: Origin) {
        let inside = |key: &str| key.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[']));
        self.by_path.retain(|key, _| !inside(key));
        self.by_path.insert(path.to_owned(), origin);
    }
}

/// Records the line of each key.
struct Lines<'a> {
    file: &'a Path,
    text: &'a str,
    into: &'a mut BTreeMap<String, Origin>,
}

impl Lines<'_> {
    fn add(&mut self, table: &DeTable<'_>, path: &str) {
        for (key, value) in table {
            let here = join(path, key.get_ref());
            self.insert(&here, key.span().start);
            match value.get_ref() {
                DeValue::Table(inner) => self.add(inner, &here),
                DeValue::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        let here = format!("{here}[{index}]");
                        self.insert(&here, item.span().start);
                        if let DeValue::Table(inner) = item.get_ref() {
                            self.add(inner, &here);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn insert(&mut self, path: &str, at: usize) {
        self.into.insert(path.to_owned(), Origin::Line(self.file.to_owned(), line(self.text, at)));
    }
}

/// The line of a position, counted from 1.
pub(super) fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// The path of a key in a table.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
