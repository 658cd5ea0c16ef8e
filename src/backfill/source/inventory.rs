//! An S3 Inventory in CSV (Amazon S3 User Guide, "Amazon S3 Inventory list"): a `manifest.json` that names columns and
//! data files, and the gzip-compressed data files. The mark is a file's number and a row's number in it.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use csv::StringRecord;
use flate2::read::MultiGzDecoder;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::lines::BoundedLines;
use super::{ListLocation, SourceEntry, SourceError};
use crate::job::ImageRef;
use crate::objects::{Fetcher, ListedObject};
use crate::offload::{self, ItemSink, ReceiverDropped};

/// A `manifest.json` has a few kilobytes; a larger file is something else.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InventoryManifest {
    file_format: String,
    file_schema: String,
    files: Vec<DataFile>,
}

#[derive(Deserialize)]
struct DataFile {
    key: String,
}

/// The position of each column in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct InventoryColumns {
    bucket: usize,
    key: usize,
    etag: Option<usize>,
    size: Option<usize>,
    modified: Option<usize>,
    is_latest: Option<usize>,
    is_delete_marker: Option<usize>,
}

/// A data file, and the number of its rows that an earlier run has read.
struct InventoryFile {
    location: ListLocation,
    number: usize,
    read_rows: u64,
    columns: InventoryColumns,
}

pub(super) fn entries(
    location: ListLocation,
    fetcher: Arc<Fetcher>,
    after: Option<String>,
) -> BoxStream<'static, Result<SourceEntry, SourceError>> {
    let mark = after.and_then(|mark| {
        let (file, row) = mark.split_once(':')?;
        Some((file.parse().ok()?, row.parse().ok()?))
    });
    let (first, read_rows): (usize, u64) = mark.unwrap_or((0, 0));
    stream::once(async move {
        let (columns, files) = match open(&location, &fetcher).await {
            Ok(opened) => opened,
            Err(e) => return stream::iter([Err(e)]).boxed(),
        };
        let files = files.into_iter().enumerate().skip(first).map(move |(number, location)| {
            let read_rows = if number == first { read_rows } else { 0 };
            InventoryFile { location, number, read_rows, columns: columns.clone() }
        });
        let rows = move |file: InventoryFile| {
            let fetcher = Arc::clone(&fetcher);
            async move {
                match file.location.file(&fetcher).await {
                    Ok(content) => offload::stream_from_thread(move |sink| file.read(content, sink)),
                    Err(e) => stream::iter([Err(e)]).boxed(),
                }
            }
        };
        stream::iter(files).then(rows).flatten().boxed()
    })
    .flatten()
    .boxed()
}

/// Reads the manifest: the columns, and the locations of the data files.
async fn open(
    location: &ListLocation,
    fetcher: &Fetcher,
) -> Result<(InventoryColumns, Vec<ListLocation>), SourceError> {
    let file = location.file(fetcher).await?;
    let mut text = Vec::new();
    let read = file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text);
    read.map_err(|error| SourceError::File { location: location.clone(), error })?;
    let manifest: InventoryManifest = serde_json::from_slice(&text)
        .map_err(|error| SourceError::NotAnInventory { location: location.clone(), error })?;
    if manifest.file_format != "CSV" {
        let what =
            format!("the inventory has the format {}\n  hint: configure S3 to write it as CSV", manifest.file_format);
        return Err(location.invalid(what));
    }
    let columns = InventoryColumns::of(&manifest.file_schema).map_err(|what| location.invalid(what))?;
    let files = manifest.files.iter().map(|file| data_file(location, &file.key)).collect();
    Ok((columns, files))
}

/// Where a data file is: in the manifest's bucket under its own key, or, of an inventory that was copied here, beside
/// the manifest or in `data` beside its folder, as S3 lays them out.
fn data_file(manifest: &ListLocation, key: &str) -> ListLocation {
    match manifest {
        ListLocation::Object(object) => {
            ListLocation::Object(ImageRef { key: key.to_owned(), etag: None, ..object.clone() })
        }
        ListLocation::File { path, .. } => {
            let folder = path.parent().unwrap_or(Path::new(""));
            let name = key.rsplit('/').next().unwrap_or(key);
            let beside = folder.join(name);
            let path = if beside.exists() { beside } else { folder.join("../data").join(name) };
            ListLocation::File { path, state: String::new() }
        }
    }
}

impl InventoryColumns {
    /// Reads `fileSchema`, such as `Bucket, Key, Size, LastModifiedDate, ETag`.
    fn of(schema: &str) -> Result<Self, String> {
        let names: Vec<&str> = schema.split(',').map(str::trim).collect();
        let position = |name: &str| names.iter().position(|column| *column == name);
        let required =
            |name: &str| position(name).ok_or_else(|| format!("no column \"{name}\"; the columns are {schema}"));
        Ok(Self {
            bucket: required("Bucket")?,
            key: required("Key")?,
            etag: position("ETag"),
            size: position("Size"),
            modified: position("LastModifiedDate"),
            is_latest: position("IsLatest"),
            is_delete_marker: position("IsDeleteMarker"),
        })
    }

    /// The object of a row; `None` for an older version or a delete marker.
    fn object(&self, row: &StringRecord) -> Result<Option<ListedObject>, String> {
        let cell =
            |position: Option<usize>| position.and_then(|position| row.get(position)).filter(|cell| !cell.is_empty());
        let is = |position, word: &str| cell(position).is_some_and(|cell| cell.eq_ignore_ascii_case(word));
        if is(self.is_latest, "false") || is(self.is_delete_marker, "true") {
            return Ok(None);
        }
        let bucket = cell(Some(self.bucket)).ok_or("the row has no bucket")?;
        let encoded = cell(Some(self.key)).ok_or("the row has no key")?.replace('+', "%20");
        let key = percent_decode_str(&encoded).decode_utf8().map_err(|_| format!("the key {encoded} is not UTF-8"))?;
        let image = ImageRef {
            bucket: bucket.to_owned(),
            key: key.into_owned(),
            version_id: None,
            etag: cell(self.etag).map(|etag| etag.trim_matches('"').to_owned()),
        };
        let modified = cell(self.modified).and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
        Ok(Some(ListedObject { image, bytes: cell(self.size).and_then(|n| n.parse().ok()), modified }))
    }
}

impl InventoryFile {
    fn read(&self, file: File, sink: &ItemSink<Result<SourceEntry, SourceError>>) -> Result<(), ReceiverDropped> {
        let failed = |error: std::io::Error| SourceError::File { location: self.location.clone(), error };
        let plain = match uncompressed(file) {
            Ok(plain) => plain,
            Err(e) => return sink.put(Err(failed(e))),
        };
        let mut rows = csv::ReaderBuilder::new().has_headers(false).from_reader(BoundedLines::new(plain));
        for (number, row) in (1u64..).zip(rows.records()) {
            if number <= self.read_rows {
                continue;
            }
            let object = match row {
                Ok(row) => self.columns.object(&row),
                Err(e) => Err(e.to_string()),
            };
            match object {
                Ok(object) => sink.put(Ok(SourceEntry { mark: format!("{}:{number}", self.number), object }))?,
                Err(what) => return sink.put(Err(self.location.invalid(format!("row {number}: {what}")))),
            }
        }
        Ok(())
    }
}

/// The uncompressed content of a file. Gzip is recognised by its first two bytes (RFC 1952).
fn uncompressed(mut file: File) -> std::io::Result<Box<dyn Read>> {
    let mut magic = Vec::new();
    (&file).take(2).read_to_end(&mut magic)?;
    file.rewind()?;
    let file = BufReader::new(file);
    Ok(if magic == [0x1F, 0x8B] { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_by_column_name_and_its_key_is_decoded() {
        let schema = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag";
        let columns = InventoryColumns::of(schema).unwrap();
        let row = |cells: &[&str]| columns.object(&StringRecord::from(cells.to_vec()));
        let listed = row(&["b", "a%2Fb+c%2B.jpg", "v", "true", "false", "12", "2026-01-02T03:04:05.000Z", "\"e\""]);
        let listed = listed.unwrap().unwrap();
        assert_eq!((listed.image.key.as_str(), listed.image.etag.as_deref()), ("a/b c+.jpg", Some("e")));
        assert_eq!((listed.bytes, listed.modified.map(|at| at.unix_timestamp())), (Some(12), Some(1_767_323_045)));
        assert_eq!(row(&["b", "k", "v", "false", "false", "1", "", "e"]).unwrap(), None, "an older version");
        assert_eq!(row(&["b", "k", "v", "true", "true", "", "", ""]).unwrap(), None, "a delete marker");
        assert!(row(&["b", ""]).unwrap_err().contains("no key"));
        assert!(row(&["b", "%ff"]).unwrap_err().contains("not UTF-8"));
        assert!(InventoryColumns::of("Bucket, Size").unwrap_err().contains("\"Key\""));
        let bare =
            InventoryColumns::of("Bucket, Key").unwrap().object(&StringRecord::from(vec!["b", "k"])).unwrap().unwrap();
        assert_eq!((bare.image.etag, bare.bytes, bare.modified), (None, None, None));
    }
}
