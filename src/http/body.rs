//! What a request sends: an image, or a job as JSON. Limits are checked before anything is read.

use std::time::Duration;

use axum::extract::multipart::Field;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::error_text;
use crate::job::forms::{MAX_BODY_BYTES, MAX_METADATA_BYTES};
use crate::life::JobProcessor;
use crate::objects::{Upload, UploadError};

/// What a multipart request may hold besides the image.
const MAX_FIELDS_BYTES: u64 = 128 << 10;

/// The longest text of a sender that an answer or a log line quotes.
const MAX_QUOTED_CHARS: usize = 200;

/// What was sent.
pub(super) enum Sent {
    /// An image, with the other fields of its job.
    Image { upload: Upload, fields: Map<String, Value> },
    /// A job in form 1.
    Job(Map<String, Value>),
}

/// The kind of a body, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Json,
    Multipart,
    /// The bytes of an image. What they are is found out from themselves.
    Raw,
}

impl Kind {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" => Self::Json,
            "multipart/form-data" => Self::Multipart,
            _ => Self::Raw,
        }
    }
}

/// Reads the body of a request, in time.
pub(super) async fn in_time<T>(limit: Duration, read: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    tokio::time::timeout(limit, read).await.unwrap_or_else(|_| {
        let what = format!("the request did not arrive within {} ms", limit.as_millis());
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", what).retry_after(super::RETRY_AFTER))
    })
}

/// Reads an image, alone or with fields beside it.
pub(super) async fn image(processor: &JobProcessor, request: Request, kind: Kind) -> Result<Sent, Problem> {
    let max = processor.fetcher.max_object_bytes();
    let announced = announced_bytes(request.headers())?;
    let fields_bytes = if kind == Kind::Multipart { MAX_FIELDS_BYTES } else { 0 };
    if let Some(bytes) = announced.filter(|bytes| *bytes > max.saturating_add(fields_bytes)) {
        return Err(too_large(format!("the request has {bytes} bytes, an image may have {max}")));
    }
    let at_most = announced.map_or(max, |announced| announced.min(max));
    if kind == Kind::Multipart {
        return multipart(processor, request, at_most).await;
    }
    let upload = receive(processor, request.into_body().into_data_stream(), at_most, at_most).await?;
    Ok(Sent::Image { upload, fields: Map::new() })
}

async fn multipart(processor: &JobProcessor, mut request: Request, at_most: u64) -> Result<Sent, Problem> {
    let unreadable = |what: String| Problem::bad_request(format!("the multipart body cannot be read: {what}"));
    // The extractor's own limit is lower. This one also bounds what it keeps of fields that never end.
    let whole = processor.fetcher.max_object_bytes().saturating_add(MAX_FIELDS_BYTES);
    DefaultBodyLimit::max(usize::try_from(whole).unwrap_or(usize::MAX)).apply(&mut request);
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| unreadable(error.body_text()))?;
    let (mut upload, mut fields) = (None, Map::new());
    while let Some(field) = form.next_field().await.map_err(|error| unreadable(error.body_text()))? {
        let name = field.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "image" if upload.is_none() => upload = Some(receive(processor, field, at_most, at_most).await?),
            "metadata" | "detectors" if !fields.contains_key(&name) => {
                let text = short_text(field).await?;
                let value = serde_json::from_str(&text)
                    .map_err(|error| Problem::bad_request(format!("the field \"{name}\" is not JSON: {error}")))?;
                fields.insert(name, value);
            }
            "image" | "metadata" | "detectors" => {
                return Err(Problem::bad_request(format!("the field \"{name}\" was sent twice")));
            }
            _ => {
                let what = format!(
                    "the field \"{}\" is not known; there are image, metadata and detectors",
                    name.escape_debug()
                );
                return Err(Problem::bad_request(what));
            }
        }
    }
    match upload {
        Some(upload) => Ok(Sent::Image { upload, fields }),
        None => Err(Problem::bad_request("there is no field \"image\"")),
    }
}

async fn short_text(mut field: Field<'_>) -> Result<String, Problem> {
    let mut text = Vec::new();
    while let Some(chunk) = field.next().await {
        text.extend(
            chunk.map_err(|error| Problem::bad_request(format!("a field cannot be read: {}", error.body_text())))?,
        );
        if text.len() > MAX_METADATA_BYTES {
            return Err(too_large(format!("a field has more than {MAX_METADATA_BYTES} bytes")));
        }
    }
    String::from_utf8(text).map_err(|_| Problem::bad_request("a field is not UTF-8"))
}

/// Reads a job as JSON.
pub(super) async fn json(request: Request) -> Result<Map<String, Value>, Problem> {
    if announced_bytes(request.headers())?.is_some_and(|bytes| bytes > MAX_BODY_BYTES as u64) {
        return Err(too_large(format!("the JSON has more than {MAX_BODY_BYTES} bytes")));
    }
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES).await;
    let body = body.map_err(|error| Problem::bad_request(format!("the JSON cannot be read: {error}")))?;
    match serde_json::from_slice(&body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Problem::bad_request("the JSON is no object")),
        Err(error) => Err(Problem::bad_request(format!("the body is not JSON: {}", cut(&error.to_string())))),
    }
}

pub(super) async fn receive<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    processor: &JobProcessor,
    body: impl futures_util::Stream<Item = Result<bytes::Bytes, E>> + Unpin + Send,
    at_most: u64,
    reserved: u64,
) -> Result<Upload, Problem> {
    let received = processor.fetcher.receive(body, at_most, reserved, &processor.admission.uploads).await;
    received.map_err(|error| match error {
        UploadError::TooLarge(_) => too_large(error_text(&error)),
        UploadError::CutShort(_) => Problem::bad_request(error_text(&error)),
        UploadError::NoMemory(_) => Problem::unavailable("overload", error_text(&error), super::RETRY_AFTER),
        UploadError::GateClosed(_) => draining(),
    })
}

/// The beginning of a text that may have any length: an error can quote what was sent.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(MAX_QUOTED_CHARS).collect()
}

/// The process ends.
pub(super) fn draining() -> Problem {
    Problem::unavailable("draining", "Pixwarden is about to end", super::RETRY_AFTER)
}

pub(super) fn too_large(what: String) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", what)
}

pub(super) fn announced_bytes(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let length = length.to_str().ok().and_then(|length| length.parse().ok());
    length.map(Some).ok_or_else(|| Problem::bad_request("Content-Length is not a number of bytes"))
}
