//! A parquet file with an image column as Hugging Face writes it: a group `{bytes, path}`, or the bytes alone.
//!
//! The file is read row group by row group, of each only the columns needed, a few rows at a time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{ConvertedType, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescriptor, Type, TypePtr};
use serde_json::Value;

use super::dataset::{DatasetError, Label, Said};

/// Rows held at a time; a batch of large images must not fill the memory.
const ROWS_AT_A_TIME: usize = 16;

/// A parquet file whose columns have been found.
pub struct Columns {
    path: PathBuf,
    file: SerializedFileReader<File>,
    /// The image column, and the label column behind it where there is one.
    wanted: Arc<SchemaDescriptor>,
    truth: Truth,
}

/// How the label column is read.
#[derive(Debug, Clone)]
enum Truth {
    /// There is none: all rows are this.
    All(String),
    /// Numbers are positions in these names.
    Names(Vec<String>),
    /// Numbers are positions in the detector's labels.
    Labels,
    /// This value means positive, any other one negative. The names of numbers, where the file has them.
    Value(String, Option<Vec<String>>),
}

/// One row.
#[derive(Debug, PartialEq)]
pub struct Labelled {
    /// For people: the file, the row counted from 0, and the path the row names.
    pub name: String,
    /// What is said of it; `None` where the row has no label (null, or -1 as in published test splits).
    pub said: Option<Said>,
    /// The image's file, or `None` where the row holds no bytes.
    pub bytes: Option<Bytes>,
}

/// Rows at a file's end that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub rows: u64,
    /// The file and the first of them.
    pub from: String,
    /// Why.
    pub error: String,
}

impl Columns {
    /// Opens a file and finds the image column: the one group with a field `bytes`, or else the one binary column that is
    /// no text. Of several, the one called `image`.
    ///
    /// Numbers in the label column are positions in the names which Hugging Face's metadata give that column
    /// (`info.features.NAME.names`), and without such metadata, in the detector's labels.
    ///
    /// # Errors
    /// When the file is not parquet or has no such columns; the message lists those it has.
    pub fn open(path: &Path, label: &Label) -> Result<Self, DatasetError> {
        let wrong = |what: String| DatasetError::File { path: path.display().to_string(), what };
        let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
        let file = SerializedFileReader::new(file).map_err(|e| wrong(format!("it is not a parquet file: {e}")))?;
        let schema = file.metadata().file_metadata().schema();
        let has = || {
            let names = schema.get_fields().iter().map(|field| format!("\"{}\"", field.name()));
            names.collect::<Vec<_>>().join(", ")
        };
        let mut wanted = vec![image_column(schema).ok_or_else(|| {
            wrong(format!(
                "no column holds images, or several do and none is called \"image\"; its columns are {}",
                has()
            ))
        })?];
        let truth = match label {
            Label::All(word) => Truth::All(word.clone()),
            Label::Column { name, positive } => {
                let column = schema.get_fields().iter().find(|field| field.name() == name);
                let column = column.filter(|column| column.is_primitive() && column.name() != wanted[0].name());
                let column = column
                    .ok_or_else(|| wrong(format!("no column \"{name}\" holds labels; its columns are {}", has())))?;
                wanted.push(Arc::clone(column));
                let names = class_names(&file, name);
                match (positive, names) {
                    (Some(value), names) => Truth::Value(value.clone(), names),
                    (None, Some(names)) => Truth::Names(names),
                    (None, None) => Truth::Labels,
                }
            }
        };
        let wanted = Type::group_type_builder(schema.name()).with_fields(wanted).build();
        let wanted = wanted.map_err(|e| wrong(e.to_string()))?;
        let wanted = Arc::new(SchemaDescriptor::new(Arc::new(wanted)));
        Ok(Self { path: path.to_owned(), file, wanted, truth })
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> u64 {
        u64::try_from(self.file.metadata().file_metadata().num_rows()).unwrap_or_default()
    }

    /// Reads the rows in order. After what is lost nothing follows.
    pub fn read(self) -> impl Iterator<Item = Result<Labelled, Lost>> {
        let mut group = 0;
        let mut rows: Option<ReaderIter> = None;
        let mut number = 0;
        std::iter::from_fn(move || {
            let row = loop {
                if let Some(row) = rows.as_mut().and_then(Iterator::next) {
                    break row;
                }
                if group == self.file.num_row_groups() {
                    return None;
                }
                match self.group(group) {
                    Ok(next) => rows = Some(next),
                    Err(e) => break Err(e),
                }
                group += 1;
            };
            let labelled = row.map_err(|e| {
                (rows, group) = (None, self.file.num_row_groups());
                let from = format!("{}, from row {number} on", self.path.display());
                // A damaged file may have said too few.
                Lost { rows: self.rows().saturating_sub(number).max(1), from, error: e.to_string() }
            });
            let labelled = labelled.map(|row| self.labelled(row, number));
            number += 1;
            Some(labelled)
        })
    }

    fn group(&self, index: usize) -> Result<ReaderIter, ParquetError> {
        let group = self.file.get_row_group(index)?;
        TreeBuilder::new().with_batch_size(ROWS_AT_A_TIME).as_iter(Arc::clone(&self.wanted), &*group)
    }

    /// Bytes are copied, so that the page they were read from can go.
    fn labelled(&self, row: Row, number: u64) -> Labelled {
        let mut fields = row.into_columns().into_iter().map(|(_, field)| field);
        let (bytes, inside) = match fields.next() {
            Some(Field::Group(group)) => image_of(group),
            Some(Field::Bytes(bytes)) => (Some(Bytes::copy_from_slice(bytes.data())), None),
            _ => (None, None),
        };
        let inside = inside.map(|path| format!(" ({path})")).unwrap_or_default();
        let said = match &self.truth {
            Truth::All(word) => Some(Said::Word(word.clone())),
            truth => fields.next().and_then(|field| truth.said(&field)),
        };
        Labelled { name: format!("{}, row {number}{inside}", self.path.display()), said, bytes }
    }
}

impl Truth {
    /// What a value says; `None` for no label.
    fn said(&self, field: &Field) -> Option<Said> {
        let said = value(field)?;
        let name = |names: &[String], index: i64| usize::try_from(index).ok().and_then(|i| names.get(i).cloned());
        match (self, said) {
            // A number that has no name is no label either, and is refused as it stands.
            (Self::Names(names), Said::Index(index)) => {
                Some(Said::Word(name(names, index).unwrap_or_else(|| index.to_string())))
            }
            (Self::Value(positive, names), said) => {
                let (as_written, as_named) = match said {
                    Said::Index(index) => (index.to_string(), names.as_deref().and_then(|names| name(names, index))),
                    Said::Word(word) => (word, None),
                    Said::Is(is) => (is.to_string(), None),
                };
                Some(Said::Is(as_written == *positive || as_named.as_ref() == Some(positive)))
            }
            (_, said) => Some(said),
        }
    }
}

/// A label column's value. A float or a date is no label.
fn value(field: &Field) -> Option<Said> {
    let index = match field {
        Field::Bool(is) => return Some(Said::Is(*is)),
        Field::Str(word) => return Some(Said::Word(word.clone())),
        Field::Bytes(bytes) => return Some(Said::Word(String::from_utf8_lossy(bytes.data()).into_owned())),
        Field::Byte(n) => i64::from(*n),
        Field::Short(n) => i64::from(*n),
        Field::Int(n) => i64::from(*n),
        Field::Long(n) => *n,
        Field::UByte(n) => i64::from(*n),
        Field::UShort(n) => i64::from(*n),
        Field::UInt(n) => i64::from(*n),
        Field::ULong(n) => i64::try_from(*n).ok()?,
        Field::Null => return None,
        other => return Some(Said::Word(other.to_string())),
    };
    (index != -1).then_some(Said::Index(index))
}

/// Bytes and path of an image as Hugging Face writes it. Either may be null.
fn image_of(group: Row) -> (Option<Bytes>, Option<String>) {
    let (mut bytes, mut path) = (None, None);
    for (name, field) in group.into_columns() {
        match (name.as_str(), field) {
            ("bytes", Field::Bytes(found)) => bytes = Some(Bytes::copy_from_slice(found.data())),
            ("path", Field::Str(found)) => path = Some(found),
            _ => {}
        }
    }
    (bytes, path)
}

fn image_column(schema: &Type) -> Option<TypePtr> {
    let is_bytes = |field: &TypePtr| {
        field.is_primitive()
            && field.get_physical_type() == Physical::BYTE_ARRAY
            && field.get_basic_info().converted_type() == ConvertedType::NONE
    };
    let is_image = |field: &TypePtr| {
        field.is_group() && field.get_fields().iter().any(|inner| inner.name() == "bytes" && is_bytes(inner))
    };
    let the_one = |fits: &dyn Fn(&TypePtr) -> bool| {
        let candidates: Vec<_> = schema.get_fields().iter().filter(|field| fits(field)).collect();
        match candidates[..] {
            [one] => Some(Arc::clone(one)),
            _ => candidates.into_iter().find(|field| field.name() == "image").map(Arc::clone),
        }
    };
    the_one(&is_image).or_else(|| the_one(&is_bytes))
}

/// The names of a class column, from the metadata that Hugging Face's `datasets` writes under the key `huggingface`.
fn class_names(file: &SerializedFileReader<File>, column: &str) -> Option<Vec<String>> {
    let entries = file.metadata().file_metadata().key_value_metadata()?;
    let text = entries.iter().find(|entry| entry.key == "huggingface")?.value.as_deref()?;
    let metadata: Value = serde_json::from_str(text).ok()?;
    let names = metadata.get("info")?.get("features")?.get(column)?.get("names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::metadata::KeyValue;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
    use parquet::schema::parser::parse_message_type;

    use super::*;

    const SCHEMA: &str = "message schema {
        optional binary caption (UTF8);
        optional group image { optional binary bytes; optional binary path (UTF8); }
        optional int64 label;
        optional binary kind (UTF8);
    }";

    /// `(image's bytes, its path, label, kind)`.
    type Given<'a> = (Option<&'a str>, Option<&'a str>, Option<i64>, Option<&'a str>);

    /// Writes the rows, two a row group.
    fn write(folder: &Path, metadata: Option<&str>, rows: &[Given<'_>]) -> PathBuf {
        let path = folder.join("part.parquet");
        let metadata = metadata.map(|text| vec![KeyValue::new("huggingface".to_owned(), text.to_owned())]);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_key_value_metadata(metadata)
            .build();
        let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
        let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::new(properties)).unwrap();
        for rows in rows.chunks(2) {
            let mut group = writer.next_row_group().unwrap();
            text(&mut group, rows.iter().map(|_| Some("words")), 1);
            text(&mut group, rows.iter().map(|row| row.0), 2);
            text(&mut group, rows.iter().map(|row| row.1), 2);
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<i64> = rows.iter().filter_map(|row| row.2).collect();
            let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.2.is_some())).collect();
            column.typed::<Int64Type>().write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
            text(&mut group, rows.iter().map(|row| row.3), 1);
            group.close().unwrap();
        }
        writer.close().unwrap();
        path
    }

    fn text<'a>(
        group: &mut SerializedRowGroupWriter<'_, File>,
        cells: impl Iterator<Item = Option<&'a str>> + Clone,
        present: i16,
    ) {
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = cells.clone().flatten().map(ByteArray::from).collect();
        let levels: Vec<i16> = cells.map(|cell| if cell.is_some() { present } else { present - 1 }).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
    }

    fn column(name: &str, positive: Option<&str>) -> Label {
        Label::Column { name: name.into(), positive: positive.map(str::to_owned) }
    }

    fn said(path: &Path, label: &Label) -> Vec<Option<Said>> {
        Columns::open(path, label).unwrap().read().map(|row| row.unwrap().said).collect()
    }

    const ROWS: [Given<'static>; 5] = [
        (Some("one"), Some("REAL/1.jpg"), Some(0), Some("photo")),
        (Some("two"), None, Some(1), Some("drawing")),
        (None, Some("lost.jpg"), Some(1), None),
        (Some("four"), None, Some(-1), Some("photo")),
        (Some("five"), None, None, Some("drawing")),
    ];

    fn word(word: &str) -> Option<Said> {
        Some(Said::Word(word.into()))
    }

    #[test]
    fn rows_come_in_order_with_names_and_over_row_groups() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), None, &ROWS);
        let columns = Columns::open(&path, &column("label", None)).unwrap();
        assert_eq!((columns.rows(), columns.file.num_row_groups()), (5, 3));
        let rows: Vec<Labelled> = columns.read().map(Result::unwrap).collect();
        let bytes: Vec<_> = rows.iter().map(|row| row.bytes.as_deref().unwrap_or_default()).collect();
        assert_eq!(bytes, [&b"one"[..], b"two", b"", b"four", b"five"]);
        assert!(rows[2].bytes.is_none());
        assert!(rows[0].name.ends_with("part.parquet, row 0 (REAL/1.jpg)"), "{}", rows[0].name);
        assert!(rows[4].name.ends_with("part.parquet, row 4"), "{}", rows[4].name);
    }

    #[test]
    fn numbers_are_positions_unless_the_file_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let label = column("label", None);
        let index = |i| Some(Said::Index(i));
        let path = write(folder.path(), None, &ROWS);
        assert_eq!(said(&path, &label), [index(0), index(1), index(1), None, None]);
        let names = r#"{"info": {"features": {"label": {"names": ["fake", "real"], "_type": "ClassLabel"}}}}"#;
        let path = write(folder.path(), Some(names), &ROWS);
        assert_eq!(said(&path, &label), [word("fake"), word("real"), word("real"), None, None]);
    }

    #[test]
    fn words_are_labels_and_a_named_value_is_the_positive_class() {
        let folder = tempfile::tempdir().unwrap();
        let names = r#"{"info": {"features": {"label": {"names": ["fake", "real"]}}}}"#;
        let path = write(folder.path(), Some(names), &ROWS);
        let kinds = [word("photo"), word("drawing"), None, word("photo"), word("drawing")];
        assert_eq!(said(&path, &column("kind", None)), kinds);
        let is = |is| Some(Said::Is(is));
        assert_eq!(said(&path, &column("kind", Some("drawing"))), [is(false), is(true), None, is(false), is(true)]);
        // By the number as it is written, and by its name.
        assert_eq!(said(&path, &column("label", Some("1")))[..2], [is(false), is(true)]);
        assert_eq!(said(&path, &column("label", Some("fake")))[..2], [is(true), is(false)]);
        assert_eq!(said(&path, &Label::All("by AI".into())), vec![word("by AI"); 5]);
    }

    #[test]
    fn a_column_that_is_not_there_is_told_with_those_that_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), None, &ROWS);
        for name in ["lable", "image"] {
            let error = Columns::open(&path, &column(name, None)).err().unwrap().to_string();
            assert!(error.contains(r#"its columns are "caption", "image", "label", "kind""#), "{error}");
        }
        let no_parquet = folder.path().join("x");
        std::fs::write(&no_parquet, "hello").unwrap();
        assert!(
            Columns::open(&no_parquet, &Label::All("x".into())).err().unwrap().to_string().contains("not a parquet")
        );
    }

    #[test]
    fn a_damaged_file_tells_how_many_rows_are_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), None, &ROWS);
        let columns = Columns::open(&path, &column("label", None)).unwrap();
        let second = columns.file.metadata().row_group(1).column(1).clone();
        let mut bytes = std::fs::read(&path).unwrap();
        let start = usize::try_from(second.byte_range().0).unwrap();
        bytes[start..start + 8].fill(0xFF);
        std::fs::write(&path, bytes).unwrap();
        let rows: Vec<_> = Columns::open(&path, &column("label", None)).unwrap().read().collect();
        assert_eq!(rows.len(), 3);
        let lost = rows[2].as_ref().unwrap_err();
        assert!(lost.rows == 3 && lost.from.ends_with("part.parquet, from row 2 on"), "{lost:?}");
    }
}
