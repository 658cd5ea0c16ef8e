//! An S3 Inventory in CSV (Amazon S3 User Guide, "Amazon S3 Inventory list"): a `manifest.json` that names columns and
//! data files, and the files, compressed by gzip. The mark is a file's number and a row's number in it.

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

use super::{Item, Place, SourceError};
use crate::job::ImageRef;
use crate::objects::{Fetcher, ListedObject};
use crate::offload::{self, ItemSink, ReceiverDropped};

/// A `manifest.json` is a few kilobytes; what is larger than this is something else.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    file_format: String,
    file_schema: String,
    files: Vec<DataFile>,
}

#[derive(Deserialize)]
struct DataFile {
    key: String,
}

/// Where in a row each column is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Columns {
    bucket: usize,
    key: usize,
    etag: Option<usize>,
    size: Option<usize>,
    modified: Option<usize>,
    is_latest: Option<usize>,
    is_delete_marker: Option<usize>,
}

/// A data file, and the rows of it that are done.
struct Rest {
    place: Place,
    number: usize,
    done: u64,
    columns: Columns,
}

pub(super) fn entries(
    place: Place,
    fetcher: Arc<Fetcher>,
    after: Option<String>,
) -> BoxStream<'static, Result<Item, SourceError>> {
    let mark = after.and_then(|mark| {
        let (file, row) = mark.split_once(':')?;
        Some((file.parse().ok()?, row.parse().ok()?))
    });
    let (first, done): (usize, u64) = mark.unwrap_or((0, 0));
    stream::once(async move {
        let (columns, files) = match open(&place, &fetcher).await {
            Ok(opened) => opened,
            Err(e) => return stream::iter([Err(e)]).boxed(),
        };
        let rest = files.into_iter().enumerate().skip(first).map(move |(number, place)| {
            let done = if number == first { done } else { 0 };
            Rest { place, number, done, columns: columns.clone() }
        });
        let rows = move |rest: Rest| {
            let fetcher = Arc::clone(&fetcher);
            async move {
                match rest.place.file(&fetcher).await {
                    Ok(file) => offload::stream_from_thread(move |sink| rest.read(file, sink)),
                    Err(e) => stream::iter([Err(e)]).boxed(),
                }
            }
        };
        stream::iter(rest).then(rows).flatten().boxed()
    })
    .flatten()
    .boxed()
}

/// Reads the manifest: the columns, and where the data files are.
async fn open(place: &Place, fetcher: &Fetcher) -> Result<(Columns, Vec<Place>), SourceError> {
    let file = place.file(fetcher).await?;
    let mut text = Vec::new();
    let read = file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text);
    read.map_err(|error| SourceError::File { place: place.clone(), error })?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|e| place.wrong(format!("it is not the manifest.json of an S3 Inventory: {e}")))?;
    if manifest.file_format != "CSV" {
        let what = format!("the inventory is in {}\n  hint: have it made in CSV", manifest.file_format);
        return Err(place.wrong(what));
    }
    let columns = Columns::of(&manifest.file_schema).map_err(|what| place.wrong(what))?;
    let files = manifest.files.iter().map(|file| data_file(place, &file.key)).collect();
    Ok((columns, files))
}

/// Where a data file is: in the manifest's bucket under its own key, or, of an inventory that was copied here, beside
/// the manifest or in `data` beside its folder, as S3 lays them out.
fn data_file(manifest: &Place, key: &str) -> Place {
    match manifest {
        Place::Object(object) => Place::Object(ImageRef { key: key.to_owned(), etag: None, ..object.clone() }),
        Place::File { path, .. } => {
            let folder = path.parent().unwrap_or(Path::new(""));
            let name = key.rsplit('/').next().unwrap_or(key);
            let beside = folder.join(name);
            let path = if beside.exists() { beside } else { folder.join("../data").join(name) };
            Place::File { path, state: String::new() }
        }
    }
}

impl Columns {
    /// Reads `fileSchema`, such as `Bucket, Key, Size, LastModifiedDate, ETag`.
    fn of(schema: &str) -> Result<Self, String> {
        let names: Vec<&str> = schema.split(',').map(str::trim).collect();
        let place = |name: &str| names.iter().position(|column| *column == name);
        let needed = |name: &str| place(name).ok_or_else(|| format!("its columns lack \"{name}\": {schema}"));
        Ok(Self {
            bucket: needed("Bucket")?,
            key: needed("Key")?,
            etag: place("ETag"),
            size: place("Size"),
            modified: place("LastModifiedDate"),
            is_latest: place("IsLatest"),
            is_delete_marker: place("IsDeleteMarker"),
        })
    }

    /// A row's object; `None` for an older version or a deletion.
    fn object(&self, row: &StringRecord) -> Result<Option<ListedObject>, String> {
        let cell = |place: Option<usize>| place.and_then(|place| row.get(place)).filter(|cell| !cell.is_empty());
        let is = |place, word: &str| cell(place).is_some_and(|cell| cell.eq_ignore_ascii_case(word));
        if is(self.is_latest, "false") || is(self.is_delete_marker, "true") {
            return Ok(None);
        }
        let bucket = cell(Some(self.bucket)).ok_or("it names no bucket")?;
        let encoded = cell(Some(self.key)).ok_or("it names no key")?.replace('+', "%20");
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

impl Rest {
    fn read(&self, file: File, sink: &ItemSink<Result<Item, SourceError>>) -> Result<(), ReceiverDropped> {
        let failed = |error: std::io::Error| SourceError::File { place: self.place.clone(), error };
        let plain = match uncompressed(file) {
            Ok(plain) => plain,
            Err(e) => return sink.put(Err(failed(e))),
        };
        let mut rows = csv::ReaderBuilder::new().has_headers(false).from_reader(plain);
        for (number, row) in (1u64..).zip(rows.records()) {
            if number <= self.done {
                continue;
            }
            let object = match row {
                Ok(row) => self.columns.object(&row),
                Err(e) => Err(e.to_string()),
            };
            match object {
                Ok(object) => sink.put(Ok(Item { mark: format!("{}:{number}", self.number), object }))?,
                Err(what) => return sink.put(Err(self.place.wrong(format!("row {number}: {what}")))),
            }
        }
        Ok(())
    }
}

/// What a file holds, which gzip's first two bytes tell (RFC 1952).
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
    fn a_row_is_read_by_its_columns_names_and_its_key_is_decoded() {
        let schema = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag";
        let columns = Columns::of(schema).unwrap();
        let row = |cells: &[&str]| columns.object(&StringRecord::from(cells.to_vec()));
        let listed = row(&["b", "a%2Fb+c%2B.jpg", "v", "true", "false", "12", "2026-01-02T03:04:05.000Z", "\"e\""]);
        let listed = listed.unwrap().unwrap();
        assert_eq!((listed.image.key.as_str(), listed.image.etag.as_deref()), ("a/b c+.jpg", Some("e")));
        assert_eq!((listed.bytes, listed.modified.map(|at| at.unix_timestamp())), (Some(12), Some(1_767_323_045)));
        assert_eq!(row(&["b", "k", "v", "false", "false", "1", "", "e"]).unwrap(), None, "an older version");
        assert_eq!(row(&["b", "k", "v", "true", "true", "", "", ""]).unwrap(), None, "a deletion");
        assert!(row(&["b", ""]).unwrap_err().contains("no key"));
        assert!(row(&["b", "%ff"]).unwrap_err().contains("not UTF-8"));
        assert!(Columns::of("Bucket, Size").unwrap_err().contains("\"Key\""));
        let bare = Columns::of("Bucket, Key").unwrap().object(&StringRecord::from(vec!["b", "k"])).unwrap().unwrap();
        assert_eq!((bare.image.etag, bare.bytes, bare.modified), (None, None, None));
    }
}
