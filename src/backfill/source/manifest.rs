//! A manifest of Amazon Rekognition's bulk analysis: one JSON object per line, `{"source-ref": "s3://bucket/key"}`, with
//! any other fields. The mark is the line's number.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde::Deserialize;

use super::lines::BoundedLines;
use super::{ListLocation, SourceEntry, SourceError};
use crate::job::ImageRef;
use crate::objects::{Fetcher, ListedObject};
use crate::offload::{self, ItemSink, ReceiverDropped};

#[derive(Deserialize)]
struct ManifestLine {
    #[serde(rename = "source-ref")]
    source_ref: String,
}

pub(super) fn entries(
    location: ListLocation,
    fetcher: Arc<Fetcher>,
    after: Option<String>,
) -> BoxStream<'static, Result<SourceEntry, SourceError>> {
    let read_lines: u64 = after.and_then(|mark| mark.parse().ok()).unwrap_or(0);
    stream::once(async move {
        match location.file(&fetcher).await {
            Ok(file) => offload::stream_from_thread(move |sink| read(&location, file, read_lines, sink)),
            Err(e) => stream::iter([Err(e)]).boxed(),
        }
    })
    .flatten()
    .boxed()
}

fn read(
    location: &ListLocation,
    file: File,
    read_lines: u64,
    sink: &ItemSink<Result<SourceEntry, SourceError>>,
) -> Result<(), ReceiverDropped> {
    for (number, line) in (1u64..).zip(BufReader::new(BoundedLines::new(file)).lines()) {
        let line = match line {
            Ok(line) => line,
            Err(error) => return sink.put(Err(SourceError::File { location: location.clone(), error })),
        };
        if number <= read_lines || line.trim().is_empty() {
            continue;
        }
        match object(&line) {
            Ok(object) => sink.put(Ok(SourceEntry { mark: number.to_string(), object: Some(object) }))?,
            Err(what) => return sink.put(Err(location.invalid(format!("line {number}: {what}")))),
        }
    }
    Ok(())
}

fn object(line: &str) -> Result<ListedObject, String> {
    let line: ManifestLine = serde_json::from_str(line).map_err(|e| {
        format!(
            "{e}\n  hint: each line has the form {{\"source-ref\": \"s3://bucket/key\"}}, as in a Rekognition manifest"
        )
    })?;
    let image = ImageRef::from_uri(&line.source_ref);
    let image = image.ok_or_else(|| format!("\"{}\" is not s3://bucket/key", line.source_ref))?;
    Ok(ListedObject { image, bytes: None, modified: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_one_image_and_an_invalid_line_is_explained() {
        assert_eq!(object(r#"{"source-ref": "s3://b/a%20b", "x": {}}"#).unwrap().image.key, "a%20b");
        assert!(object(r#"{"source": "s3://b/k"}"#).unwrap_err().contains("source-ref"));
        assert!(object(r#"{"source-ref": "b/k"}"#).unwrap_err().contains("\"b/k\" is not s3://"));
        assert!(object("s3://b/k").unwrap_err().contains("hint"));
    }
}
