//! What a request sends: an image, or a job as JSON. Limits are checked before anything is read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::multipart::Field;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::error_text;
use crate::job::forms::{MAX_BODY_BYTES, MAX_METADATA_BYTES};
use crate::life::JobProcessor;
use crate::objects::{Upload, UploadError, UploadSize};

/// What a multipart request may hold besides the image: other fields, and the heads of all parts.
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
    let size = announced.map_or(UploadSize::AtMost(max), |announced| {
        let bytes = announced.min(max);
        UploadSize::Announced { bytes, reserved: bytes }
    });
    if kind == Kind::Multipart {
        return multipart(processor, request, size).await;
    }
    let upload = receive(processor, request.into_body().into_data_stream(), size).await?;
    Ok(Sent::Image { upload, fields: Map::new() })
}

/// The body of a form. The image is counted against its own memory. All else is kept by the reader of the form, and has a
/// small limit.
struct FormBody {
    body: BodyDataStream,
    counted: Arc<CountedForm>,
    gave_chunk: bool,
}

/// The bytes of a form, all of them and those of the image.
#[derive(Default)]
struct CountedForm {
    all: AtomicU64,
    image: AtomicU64,
}

impl CountedForm {
    fn is_too_large(&self) -> bool {
        let image = self.image.load(Ordering::Relaxed);
        self.all.load(Ordering::Relaxed).saturating_sub(image) > MAX_FIELDS_BYTES
    }
}

impl Stream for FormBody {
    type Item = Result<Bytes, axum::BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // The reader takes all that is there before it looks at anything. One chunk at a time keeps it from gathering the image.
        if std::mem::take(&mut self.gave_chunk) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.counted.is_too_large() {
            return Poll::Ready(Some(Err("the form is too large".into())));
        }
        let Some(chunk) = ready!(self.body.poll_next_unpin(context)) else { return Poll::Ready(None) };
        self.gave_chunk = true;
        let chunk = chunk.inspect(|chunk| {
            self.counted.all.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        });
        Poll::Ready(Some(chunk.map_err(Into::into)))
    }
}

async fn multipart(processor: &JobProcessor, request: Request, size: UploadSize) -> Result<Sent, Problem> {
    let counted = Arc::new(CountedForm::default());
    let unreadable = |what: String| {
        if counted.is_too_large() {
            return too_large(format!("the form has more than {MAX_FIELDS_BYTES} bytes beside the image"));
        }
        Problem::bad_request(format!("the multipart body cannot be read: {}", cut(&what)))
    };
    let mut request = request.map(|body| {
        let body = body.into_data_stream();
        Body::from_stream(FormBody { body, counted: Arc::clone(&counted), gave_chunk: false })
    });
    // The extractor's own limit is lower than an image may be large.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| unreadable(error.body_text()))?;
    let (mut upload, mut fields) = (None, Map::new());
    while let Some(field) = form.next_field().await.map_err(|error| unreadable(error.body_text()))? {
        let name = field.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "image" if upload.is_none() => {
                let image = field.inspect_ok(|chunk| {
                    counted.image.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                });
                upload = Some(receive(processor, image.map_err(|error| error.body_text()), size).await?);
            }
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
                    cut(&name.escape_debug().to_string())
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
    body: impl Stream<Item = Result<Bytes, E>> + Unpin + Send,
    size: UploadSize,
) -> Result<Upload, Problem> {
    let received = processor.fetcher.receive(body, size, &processor.admission.uploads).await;
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// What a reader gets of a form of so many chunks of 64 KiB, of which it says that they are the image.
    async fn chunks_read(chunks: usize, is_image: bool) -> (usize, bool) {
        let sent = futures_util::stream::iter(vec![Ok::<_, Infallible>(Bytes::from(vec![0; 64 << 10])); chunks]);
        let counted = Arc::new(CountedForm::default());
        let body = Body::from_stream(sent).into_data_stream();
        let mut form = FormBody { body, counted: Arc::clone(&counted), gave_chunk: false };
        let mut read = 0;
        while let Some(Ok(chunk)) = form.next().await {
            read += 1;
            if is_image {
                counted.image.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        }
        (read, counted.is_too_large())
    }

    #[tokio::test]
    async fn of_a_form_only_the_image_may_be_large() {
        assert_eq!(chunks_read(100, true).await, (100, false));
        assert_eq!(chunks_read(2, false).await, (2, false));
        // Read until the limit is exceeded, and no further.
        assert_eq!(chunks_read(100, false).await, (3, true));
    }

    #[tokio::test]
    async fn a_reader_gets_one_chunk_before_it_has_to_look_at_it() {
        let sent = futures_util::stream::iter(vec![Ok::<_, Infallible>(Bytes::from_static(b"a")); 2]);
        let body = Body::from_stream(sent).into_data_stream();
        let mut form = FormBody { body, counted: Arc::default(), gave_chunk: false };
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(form.poll_next_unpin(&mut context).is_ready());
        assert!(form.poll_next_unpin(&mut context).is_pending());
        assert!(form.poll_next_unpin(&mut context).is_ready());
    }
}
