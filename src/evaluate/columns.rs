//! A parquet file with an image column as Hugging Face writes it: a group `{bytes, path}`, or the bytes alone.
//!
//! Only the needed columns are read, row group by row group, a few rows at a time.

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

use super::dataset::{DatasetError, LabelSource, LabelValue};

/// Rows in memory at the same time. Sixteen large images are bounded; a whole row group is not.
const ROWS_PER_READ: usize = 16;

/// A parquet file with an image column, and the columns to read from it.
pub struct ParquetImages {
    path: PathBuf,
    file: SerializedFileReader<File>,
    /// The image column, followed by the label column where there is one.
    columns: Arc<SchemaDescriptor>,
    label: LabelColumn,
}

/// How values of the label column are read.
#[derive(Debug, Clone)]
enum LabelColumn {
    /// There is no label column: all rows have this label.
    All(String),
    /// Numbers are positions in these names.
    Names(Vec<String>),
    /// Numbers are positions in the detector's labels.
    DetectorLabels,
    /// The first value means positive, any other one negative. The names of numbers follow, where the file has them.
    PositiveValue(String, Option<Vec<String>>),
}

#[derive(Debug, PartialEq)]
pub struct ParquetRow {
    /// The file, the row counted from 0, and the path in the row, for people.
    pub name: String,
    /// `None` where the row has no label: null, or -1 as in published test splits.
    pub label: Option<LabelValue>,
    /// The content of the image file; `None` where the row holds no bytes.
    pub bytes: Option<Bytes>,
}

/// Rows at the end of a file that cannot be read.
#[derive(Debug)]
pub struct UnreadableRows {
    pub rows: u64,
    /// The file and the first of the rows.
    pub from: String,
    pub error: ParquetError,
}

impl ParquetImages {
    /// Opens a file and finds the image column: the only group with a field `bytes`, or else the only binary column that
    /// is not text. Of several candidates, the column called `image`.
    ///
    /// Numbers in the label column are positions in the names that the Hugging Face metadata give for the column
    /// (`info.features.NAME.names`); without such metadata, positions in the detector's labels.
    ///
    /// # Errors
    /// When the file is not parquet or has no such columns; the message lists the columns that it has.
    pub fn open(path: &Path, label: &LabelSource) -> Result<Self, DatasetError> {
        let shown = || path.display().to_string();
        let invalid = |what: String| DatasetError::File { path: shown(), what };
        let not_parquet = |error: ParquetError| DatasetError::NotParquet { path: shown(), error: error.into() };
        let file = File::open(path).map_err(|error| DatasetError::Unreadable { path: shown(), error })?;
        let file = SerializedFileReader::new(file).map_err(not_parquet)?;
        let schema = file.metadata().file_metadata().schema();
        let has = || {
            let names = schema.get_fields().iter().map(|field| format!("\"{}\"", field.name()));
            names.collect::<Vec<_>>().join(", ")
        };
        let mut columns = vec![image_column(schema).ok_or_else(|| {
            invalid(format!(
                "no column holds images, or several do and none is called \"image\"; the columns are {}",
                has()
            ))
        })?];
        let label = match label {
            LabelSource::All(word) => LabelColumn::All(word.clone()),
            LabelSource::Column { name, positive } => {
                let column = schema.get_fields().iter().find(|field| field.name() == name);
                let column = column.filter(|column| column.is_primitive() && column.name() != columns[0].name());
                let column = column
                    .ok_or_else(|| invalid(format!("no column \"{name}\" holds labels; the columns are {}", has())))?;
                columns.push(Arc::clone(column));
                let names = class_names(&file, name);
                match (positive, names) {
                    (Some(value), names) => LabelColumn::PositiveValue(value.clone(), names),
                    (None, Some(names)) => LabelColumn::Names(names),
                    (None, None) => LabelColumn::DetectorLabels,
                }
            }
        };
        let columns = Type::group_type_builder(schema.name()).with_fields(columns).build();
        let columns = columns.map_err(not_parquet)?;
        let columns = Arc::new(SchemaDescriptor::new(Arc::new(columns)));
        Ok(Self { path: path.to_owned(), file, columns, label })
    }

    #[must_use]
    pub fn rows(&self) -> u64 {
        u64::try_from(self.file.metadata().file_metadata().num_rows()).unwrap_or_default()
    }

    /// Reads the rows in order. Nothing follows after unreadable rows.
    pub fn read(self) -> impl Iterator<Item = Result<ParquetRow, UnreadableRows>> {
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
            let row = row.map_err(|e| {
                (rows, group) = (None, self.file.num_row_groups());
                let from = format!("{}, from row {number} on", self.path.display());
                // The number of rows in a damaged file may be too low.
                UnreadableRows { rows: self.rows().saturating_sub(number).max(1), from, error: e }
            });
            let row = row.map(|row| self.row(row, number));
            number += 1;
            Some(row)
        })
    }

    fn group(&self, index: usize) -> Result<ReaderIter, ParquetError> {
        let group = self.file.get_row_group(index)?;
        TreeBuilder::new().with_batch_size(ROWS_PER_READ).as_iter(Arc::clone(&self.columns), &*group)
    }

    /// Copies the bytes, so that the parquet page they were read from is freed.
    fn row(&self, row: Row, number: u64) -> ParquetRow {
        let mut fields = row.into_columns().into_iter().map(|(_, field)| field);
        let (bytes, inner_path) = match fields.next() {
            Some(Field::Group(group)) => image_of(group),
            Some(Field::Bytes(bytes)) => (Some(Bytes::copy_from_slice(bytes.data())), None),
            _ => (None, None),
        };
        let inner_path = inner_path.map(|path| format!(" ({path})")).unwrap_or_default();
        let label = match &self.label {
            LabelColumn::All(name) => Some(LabelValue::Name(name.clone())),
            column => fields.next().and_then(|field| column.label(&field)),
        };
        ParquetRow { name: format!("{}, row {number}{inner_path}", self.path.display()), label, bytes }
    }
}

impl LabelColumn {
    /// The label that a value stands for; `None` for no label.
    fn label(&self, field: &Field) -> Option<LabelValue> {
        let label = label_value(field)?;
        let name = |names: &[String], index: i64| usize::try_from(index).ok().and_then(|i| names.get(i).cloned());
        match (self, label) {
            // A number without a name is kept as a name: it is then refused as an unknown label.
            (Self::Names(names), LabelValue::Index(index)) => {
                Some(LabelValue::Name(name(names, index).unwrap_or_else(|| index.to_string())))
            }
            (Self::PositiveValue(positive, names), label) => {
                let (as_written, as_named) = match label {
                    LabelValue::Index(index) => {
                        (index.to_string(), names.as_deref().and_then(|names| name(names, index)))
                    }
                    LabelValue::Name(name) => (name, None),
                    LabelValue::Positive(positive) => (positive.to_string(), None),
                };
                Some(LabelValue::Positive(as_written == *positive || as_named.as_ref() == Some(positive)))
            }
            (_, label) => Some(label),
        }
    }
}

/// A value of the label column; `None` for null and -1. A float or a date is kept as a name, which no detector has.
fn label_value(field: &Field) -> Option<LabelValue> {
    let index = match field {
        Field::Bool(positive) => return Some(LabelValue::Positive(*positive)),
        Field::Str(name) => return Some(LabelValue::Name(name.clone())),
        Field::Bytes(bytes) => return Some(LabelValue::Name(String::from_utf8_lossy(bytes.data()).into_owned())),
        Field::Byte(n) => i64::from(*n),
        Field::Short(n) => i64::from(*n),
        Field::Int(n) => i64::from(*n),
        Field::Long(n) => *n,
        Field::UByte(n) => i64::from(*n),
        Field::UShort(n) => i64::from(*n),
        Field::UInt(n) => i64::from(*n),
        Field::ULong(n) => i64::try_from(*n).ok()?,
        Field::Null => return None,
        other => return Some(LabelValue::Name(other.to_string())),
    };
    (index != -1).then_some(LabelValue::Index(index))
}

/// Bytes and path of an image as Hugging Face writes it. Both may be null.
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
    let only = |fits: &dyn Fn(&TypePtr) -> bool| {
        let candidates: Vec<_> = schema.get_fields().iter().filter(|field| fits(field)).collect();
        match candidates[..] {
            [one] => Some(Arc::clone(one)),
            _ => candidates.into_iter().find(|field| field.name() == "image").map(Arc::clone),
        }
    };
    only(&is_image).or_else(|| only(&is_bytes))
}

/// The names of a class column, from the metadata that the library `datasets` writes under the key `huggingface`.
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

    /// Writes the rows, two per row group.
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

    fn column(name: &str, positive: Option<&str>) -> LabelSource {
        LabelSource::Column { name: name.into(), positive: positive.map(str::to_owned) }
    }

    fn labels(path: &Path, label: &LabelSource) -> Vec<Option<LabelValue>> {
        ParquetImages::open(path, label).unwrap().read().map(|row| row.unwrap().label).collect()
    }

    const ROWS: [Given<'static>; 5] = [
        (Some("one"), Some("REAL/1.jpg"), Some(0), Some("photo")),
        (Some("two"), None, Some(1), Some("drawing")),
        (None, Some("lost.jpg"), Some(1), None),
        (Some("four"), None, Some(-1), Some("photo")),
        (Some("five"), None, None, Some("drawing")),
    ];

    fn word(word: &str) -> Option<LabelValue> {
        Some(LabelValue::Name(word.into()))
    }

    #[test]
    fn rows_come_in_order_with_names_and_over_row_groups() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), None, &ROWS);
        let columns = ParquetImages::open(&path, &column("label", None)).unwrap();
        assert_eq!((columns.rows(), columns.file.num_row_groups()), (5, 3));
        let rows: Vec<ParquetRow> = columns.read().map(Result::unwrap).collect();
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
        let index = |i| Some(LabelValue::Index(i));
        let path = write(folder.path(), None, &ROWS);
        assert_eq!(labels(&path, &label), [index(0), index(1), index(1), None, None]);
        let names = r#"{"info": {"features": {"label": {"names": ["fake", "real"], "_type": "ClassLabel"}}}}"#;
        let path = write(folder.path(), Some(names), &ROWS);
        assert_eq!(labels(&path, &label), [word("fake"), word("real"), word("real"), None, None]);
    }

    #[test]
    fn words_are_labels_and_a_named_value_is_the_positive_class() {
        let folder = tempfile::tempdir().unwrap();
        let names = r#"{"info": {"features": {"label": {"names": ["fake", "real"]}}}}"#;
        let path = write(folder.path(), Some(names), &ROWS);
        let kinds = [word("photo"), word("drawing"), None, word("photo"), word("drawing")];
        assert_eq!(labels(&path, &column("kind", None)), kinds);
        let is = |is| Some(LabelValue::Positive(is));
        assert_eq!(labels(&path, &column("kind", Some("drawing"))), [is(false), is(true), None, is(false), is(true)]);
        // By the number as it is written, and by its name.
        assert_eq!(labels(&path, &column("label", Some("1")))[..2], [is(false), is(true)]);
        assert_eq!(labels(&path, &column("label", Some("fake")))[..2], [is(true), is(false)]);
        assert_eq!(labels(&path, &LabelSource::All("by AI".into())), vec![word("by AI"); 5]);
    }

    #[test]
    fn a_missing_column_is_reported_with_the_existing_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), None, &ROWS);
        for name in ["lable", "image"] {
            let error = ParquetImages::open(&path, &column(name, None)).err().unwrap().to_string();
            assert!(error.contains(r#"the columns are "caption", "image", "label", "kind""#), "{error}");
        }
        let no_parquet = folder.path().join("x");
        std::fs::write(&no_parquet, "hello").unwrap();
        assert!(
            ParquetImages::open(&no_parquet, &LabelSource::All("x".into()))
                .err()
                .unwrap()
                .to_string()
                .contains("not a parquet")
        );
    }

    #[test]
    fn a_damaged_file_reports_how_many_rows_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), None, &ROWS);
        let columns = ParquetImages::open(&path, &column("label", None)).unwrap();
        let second = columns.file.metadata().row_group(1).column(1).clone();
        let mut bytes = std::fs::read(&path).unwrap();
        let start = usize::try_from(second.byte_range().0).unwrap();
        bytes[start..start + 8].fill(0xFF);
        std::fs::write(&path, bytes).unwrap();
        let rows: Vec<_> = ParquetImages::open(&path, &column("label", None)).unwrap().read().collect();
        assert_eq!(rows.len(), 3);
        let unreadable = rows[2].as_ref().unwrap_err();
        assert!(unreadable.rows == 3 && unreadable.from.ends_with("part.parquet, from row 2 on"), "{unreadable:?}");
    }
}
