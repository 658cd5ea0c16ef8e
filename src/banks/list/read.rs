//! Reading lists.

use std::collections::{BTreeMap, VecDeque};
use std::io::BufRead;

use csv::StringRecord;
use serde_json::{Map, Value};

use super::lines::{Lines, Rows};
use super::{HashType, ListEntry, ListError, shown};
use crate::job::KnownHash;

/// Types of the `threatexchange` library that are no hashes of images.
const OTHER_TYPES: [&str; 11] = [
    "raw_text",
    "text_md5",
    "text_tlsh",
    "tlsh_pdf",
    "url",
    "url_md5",
    "trend_query",
    "pdq_ocr",
    "video_tmk_pdqf",
    "vpdq",
    "clip",
];

/// The hashes of a list, read one after the other in bounded memory. The form of the list is recognised by its first line.
///
/// A line that is no hash is an error, behind which the next line is read. Behind an error of reading, of the encoding, of
/// the header row or of a line that is too long there is nothing more.
pub struct ListReader<R> {
    form: Form<R>,
    assumed: Option<HashType>,
    left_out: BTreeMap<&'static str, u64>,
    /// A row with several hashes.
    waiting: VecDeque<Result<ListEntry, ListError>>,
}

enum Form<R> {
    Unknown(Lines<R>),
    Lines(Lines<R>),
    Csv(Box<Table<R>>),
    Ended,
}

struct Table<R> {
    rows: csv::Reader<Rows<R>>,
    row: StringRecord,
    columns: Vec<Column>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Column {
    Hash,
    Type,
    HashOf(HashType),
    Metadata(String),
    /// Spreadsheets write such columns, which are empty.
    Unnamed,
}

/// What a cell or a line says about a type.
enum NamedType {
    Hash(HashType),
    Other(&'static str),
}

impl<R: BufRead> ListReader<R> {
    /// Hashes without a type have the one that is assumed. Where none is, 32 digits are an MD5, and 64 digits are an error.
    pub fn new(input: R, assumed: Option<HashType>) -> Self {
        Self { form: Form::Unknown(Lines::new(input)), assumed, left_out: BTreeMap::new(), waiting: VecDeque::new() }
    }

    /// How many entries were left out so far, because their type is none of an image's, by type.
    pub fn left_out(&self) -> &BTreeMap<&'static str, u64> {
        &self.left_out
    }

    /// Reads a line or a row. `None` at the end.
    fn read(&mut self) -> Option<Result<(), ListError>> {
        match std::mem::replace(&mut self.form, Form::Ended) {
            Form::Ended => None,
            Form::Unknown(mut lines) => match lines.advance_to_content() {
                Ok(true) => Some(self.begin(lines)),
                Ok(false) => None,
                Err(e) => Some(Err(e)),
            },
            Form::Lines(mut lines) => match lines.advance_to_content() {
                Ok(true) => Some(self.read_line(lines)),
                Ok(false) => None,
                Err(e) => Some(Err(e)),
            },
            Form::Csv(mut table) => match table.advance() {
                Ok(true) => {
                    self.read_row(&table);
                    self.form = Form::Csv(table);
                    Some(Ok(()))
                }
                Ok(false) => None,
                Err(e) => Some(Err(e)),
            },
        }
    }

    /// Recognises the form by the first line.
    fn begin(&mut self, lines: Lines<R>) -> Result<(), ListError> {
        let is_header = lines.text()?.split(',').any(|cell| {
            let column = Column::of(cell.trim().trim_matches('"'));
            matches!(column, Column::Hash | Column::HashOf(_))
        });
        if is_header {
            self.form = Form::Csv(Box::new(Table::new(lines)?));
            Ok(())
        } else {
            self.read_line(lines)
        }
    }

    /// Reads the current line.
    fn read_line(&mut self, lines: Lines<R>) -> Result<(), ListError> {
        let (line, text) = (lines.number(), lines.text()?.trim());
        let read = match text.split_once(|c: char| c.is_ascii_whitespace()) {
            Some((word, digits)) => match named_type(word) {
                Some(named) => self.hash_of(line, digits.trim(), Some(named)),
                None if is_hexadecimal(digits.trim()) => Err(ListError::UnknownType { line, text: shown(word) }),
                None => Err(ListError::NoHash { line, text: shown(text) }),
            },
            None => self.hash_of(line, text, None),
        };
        let entry = |hash| ListEntry { line, hash, metadata: Map::new() };
        self.waiting.extend(read.map(|hash| hash.map(entry)).transpose());
        self.form = Form::Lines(lines);
        Ok(())
    }

    /// Reads the current row.
    fn read_row(&mut self, table: &Table<R>) {
        let line = table.rows.get_ref().first_line();
        let (found, expected) = (table.row.len(), table.columns.len());
        if found != expected {
            self.waiting.push_back(Err(ListError::Cells { line, found, expected }));
            return;
        }
        let cells = || table.columns.iter().zip(&table.row).filter(|(_, cell)| !cell.trim().is_empty());
        let metadata: Map<String, Value> = cells()
            .filter_map(|(column, cell)| match column {
                Column::Metadata(name) => Some((name.clone(), cell.into())),
                _ => None,
            })
            .collect();
        let word = cells().find(|(column, _)| **column == Column::Type).map(|(_, cell)| cell.trim());
        let mut has_hash = false;
        for (column, digits) in cells() {
            let named = match (column, word) {
                (Column::HashOf(hash_type), _) => Ok(Some(NamedType::Hash(*hash_type))),
                (Column::Hash, None) => Ok(None),
                (Column::Hash, Some(word)) => {
                    let unknown = || ListError::UnknownType { line, text: shown(word) };
                    named_type(word).ok_or_else(unknown).map(Some)
                }
                (Column::Type | Column::Metadata(_) | Column::Unnamed, _) => continue,
            };
            has_hash = true;
            let hash = named.and_then(|named| self.hash_of(line, digits.trim(), named));
            let entry = |hash| ListEntry { line, hash, metadata: metadata.clone() };
            self.waiting.extend(hash.map(|hash| hash.map(entry)).transpose());
        }
        if !has_hash {
            self.waiting.push_back(Err(ListError::NoHashInRow { line, columns: table.hash_columns() }));
        }
    }

    /// The hash, or `None` where its type is none of an image's.
    fn hash_of(&mut self, line: u64, text: &str, named: Option<NamedType>) -> Result<Option<KnownHash>, ListError> {
        let hash_type = match (named, self.assumed) {
            (Some(NamedType::Other(name)), _) => {
                *self.left_out.entry(name).or_default() += 1;
                return Ok(None);
            }
            (Some(NamedType::Hash(hash_type)), _) | (None, Some(hash_type)) => hash_type,
            (None, None) => match text.len() {
                _ if !is_hexadecimal(text) => {
                    return Err(ListError::NoHash { line, text: shown(text) });
                }
                64 => return Err(ListError::Ambiguous { line, text: shown(text) }),
                32 => HashType::Md5,
                _ => return Err(ListError::NoHash { line, text: shown(text) }),
            },
        };
        let wrong = || ListError::WrongHash { line, text: shown(text), hash_type };
        hash_type.parse(text).map(Some).ok_or_else(wrong)
    }
}

impl<R: BufRead> Iterator for ListReader<R> {
    type Item = Result<ListEntry, ListError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.waiting.pop_front() {
                return Some(entry);
            }
            if let Err(e) = self.read()? {
                return Some(Err(e));
            }
        }
    }
}

impl<R: BufRead> Table<R> {
    /// Reads the header row, which begins with the current line.
    fn new(lines: Lines<R>) -> Result<Self, ListError> {
        let rows = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(Rows::new(lines));
        let mut table = Self { rows, row: StringRecord::new(), columns: Vec::new() };
        table.read_row()?;
        let line = table.rows.get_ref().first_line();
        let error = |text: &str, what| ListError::Header { line, text: shown(text), what };
        for name in table.row.iter().map(str::trim) {
            let column = Column::of(name);
            if column != Column::Unnamed && table.columns.contains(&column) {
                return Err(error(name, "occurs twice"));
            }
            table.columns.push(column);
        }
        if table.columns.contains(&Column::Type) && !table.columns.contains(&Column::Hash) {
            return Err(error("type", "needs a column \"hash\""));
        }
        Ok(table)
    }

    /// Goes to the next row. `false` at the end of the list.
    fn advance(&mut self) -> Result<bool, ListError> {
        self.rows.get_mut().begin();
        self.read_row()
    }

    fn read_row(&mut self) -> Result<bool, ListError> {
        let read = self.rows.read_record(&mut self.row);
        read.map_err(|e| {
            let rows = self.rows.get_mut();
            let line = rows.first_line();
            rows.take_error().unwrap_or_else(|| match e.kind() {
                csv::ErrorKind::Utf8 { .. } => ListError::NotUtf8 { line },
                _ => ListError::Read { line, source: e.into() },
            })
        })
    }

    fn hash_columns(&self) -> String {
        let names = self.columns.iter().filter_map(|column| match column {
            Column::Hash => Some("hash"),
            Column::HashOf(hash_type) => Some(hash_type.as_str()),
            Column::Type | Column::Metadata(_) | Column::Unnamed => None,
        });
        names.collect::<Vec<_>>().join(", ")
    }
}

impl Column {
    /// Case is ignored, except in the names of metadata.
    fn of(name: &str) -> Self {
        match &*name.to_ascii_lowercase() {
            "hash" | "signal_str" => Self::Hash,
            "type" | "signal_type" => Self::Type,
            "pdq" => Self::HashOf(HashType::Pdq),
            "sha256" | "sha-256" | "sha_256" => Self::HashOf(HashType::Sha256),
            "md5" => Self::HashOf(HashType::Md5),
            "" => Self::Unnamed,
            _ => Self::Metadata(name.to_owned()),
        }
    }
}

/// The type that a word names, or `None` for an unknown word.
fn named_type(word: &str) -> Option<NamedType> {
    let word = word.to_ascii_lowercase();
    Some(match &*word {
        "pdq" => NamedType::Hash(HashType::Pdq),
        "sha256" | "sha-256" | "sha_256" | "video_sha256" => NamedType::Hash(HashType::Sha256),
        "md5" | "video_md5" => NamedType::Hash(HashType::Md5),
        _ => NamedType::Other(OTHER_TYPES.into_iter().find(|other| *other == word)?),
    })
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
