//! Parses messages into jobs. The form of a message is recognised by its shape.
//!
//! Everything in here is untrusted. A message that cannot be parsed is [`Malformed`], with a reason. A message that can be
//! parsed but requests nothing, such as a test event, is [`Reading::Nothing`].

mod foreign;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Identity, ImageRef, Job, NULL_VERSION, Removal};

pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Measured as JSON text.
pub const MAX_METADATA_BYTES: usize = 16 * 1024;
/// The limit of S3.
pub const MAX_KEY_BYTES: usize = 1024;
const MAX_BUCKET_BYTES: usize = 255;
const MAX_ID_CHARS: usize = 200;

/// The white space of JSON.
const WHITE_SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
/// Some programs write it before UTF-8.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The properties of a message that its reading depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MessageProperties<'a> {
    /// It becomes the job's id if the body has none.
    pub message_id: Option<&'a str>,
    /// Only a body that cannot be parsed is explained with it.
    pub content_encoding: Option<&'a str>,
    /// The attributes of a CloudEvent are among the headers. Only a body that cannot be parsed is explained with it.
    pub is_binary_cloud_event: bool,
}

/// What a message requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    Job(Box<Job>),
    /// Several records. Each text is the body of a separate message. A record that requests nothing is among them, so that
    /// each record is counted and logged.
    Several(Vec<String>),
    /// No job: an object was removed.
    Removed(Box<Removal>),
    /// No job, with the reason.
    Nothing(String),
}

/// Why a message is not a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

fn malformed<T>(reason: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(reason.into()))
}

/// Parses a message's body.
///
/// # Errors
/// When the body has no known form, is too large, or holds something that cannot be stored.
pub fn read(body: &[u8], properties: MessageProperties<'_>) -> Result<Reading, Malformed> {
    if body.len() > MAX_BODY_BYTES {
        return malformed(format!("the body has {} bytes, the limit is {MAX_BODY_BYTES}", body.len()));
    }
    read_body(body, properties.message_id).map_err(|error| foreign::explained(error, body, properties))
}

fn read_body(body: &[u8], message_id: Option<&str>) -> Result<Reading, Malformed> {
    let Ok(text) = std::str::from_utf8(body) else { return malformed("the body is not UTF-8") };
    let is_ignored = |c: char| c == BYTE_ORDER_MARK || WHITE_SPACE.contains(&c);
    let text = text.trim_start_matches(is_ignored).trim_end_matches(WHITE_SPACE);
    if text.starts_with("s3://") {
        return bare_uri(text, message_id);
    }
    match serde_json::from_str(text) {
        Ok(Value::String(uri)) => bare_uri(&uri, message_id),
        Ok(Value::Object(object)) => by_shape(&object, message_id, Depth::Outer),
        Ok(Value::Array(items)) => match foreign::name_of_batch(&items) {
            Some(name) => malformed(format!("{name}, which is not read")),
            None => malformed("the body is a JSON array, and not an object or a string"),
        },
        Ok(_) => malformed("the body is JSON, but neither an object nor a string"),
        Err(e) => malformed(format!("the body is neither JSON nor s3://bucket/key: {e}")),
    }
}

/// Whether a form was found inside an envelope. An envelope may not hold another envelope.
#[derive(Clone, Copy, PartialEq)]
enum Depth {
    Outer,
    Inner,
}

fn by_shape(object: &Map<String, Value>, message_id: Option<&str>, depth: Depth) -> Result<Reading, Malformed> {
    let text = |field: &str| object.get(field).and_then(Value::as_str);
    if depth == Depth::Outer && text("specversion").is_some() {
        return cloud_event(object, message_id);
    }
    if depth == Depth::Outer && text("Type").is_some() && text("TopicArn").is_some() {
        return notification(object, message_id);
    }
    if let Some(records) = object.get("Records") {
        let Some(records) = records.as_array() else { return malformed("`Records` is not a list") };
        return s3_records(records);
    }
    if text("Event") == Some("s3:TestEvent") {
        return Ok(Reading::Nothing("an S3 test event".into()));
    }
    if text("detail-type").is_some() && object.contains_key("detail") {
        return event_bridge(object);
    }
    if let Some(image) = object.get("image") {
        return job_object(object, image, message_id);
    }
    match foreign::name_of(object) {
        Some(name) => malformed(format!("{name}, which is not read")),
        None => malformed("the body is not a job: it has none of `image`, `Records`, `detail` and `specversion`"),
    }
}

/// Form 4: `s3://bucket/key` alone.
fn bare_uri(uri: &str, message_id: Option<&str>) -> Result<Reading, Malformed> {
    let image = uri_ref(uri)?;
    checked_job(identity(None, message_id)?, image, None, None)
}

/// The keys of form 1.
pub const JOB_KEYS: [&str; 4] = ["image", "id", "detectors", "metadata"];

/// Form 1: `{"image": …}`.
fn job_object(object: &Map<String, Value>, image: &Value, message_id: Option<&str>) -> Result<Reading, Malformed> {
    // A misspelt key would otherwise be ignored, and the job screened in another way than its sender expects.
    if let Some(unknown) = object.keys().find(|key| !JOB_KEYS.contains(&key.as_str())) {
        return malformed(format!("unknown key \"{}\"; a job has {}", shortened(unknown), JOB_KEYS.join(", ")));
    }
    let image = match image {
        Value::String(uri) => uri_ref(uri)?,
        Value::Object(fields) => {
            let text = |field| optional_text(fields, field, "image");
            let (Some(bucket), Some(key)) = (text("bucket")?, text("key")?) else {
                return malformed("`image` needs `bucket` and `key`");
            };
            let etag = text("etag")?.map(unquoted);
            if etag.as_deref() == Some("") {
                return malformed("`image.etag` is empty");
            }
            ImageRef { bucket, key, version_id: text("version_id")?, etag }
        }
        _ => return malformed("`image` is neither a string nor an object"),
    };
    let detectors = match object.get("detectors") {
        None | Some(Value::Null) => None,
        Some(Value::Array(names)) if !names.is_empty() => {
            let names: Option<Vec<String>> = names.iter().map(|name| name.as_str().map(str::to_owned)).collect();
            Some(names.ok_or_else(|| Malformed("`detectors` is not a list of names".into()))?)
        }
        Some(_) => return malformed("`detectors` is not a list of at least one name"),
    };
    let metadata = match object.get("metadata") {
        None | Some(Value::Null) => None,
        Some(value @ Value::Object(_)) => Some(value.clone()),
        Some(_) => return malformed("`metadata` is not an object"),
    };
    let id = match object.get("id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(id.as_str()),
        Some(_) => return malformed("`id` is not a string"),
    };
    checked_job(identity(id, message_id)?, image, detectors, metadata)
}

/// Form 2: an S3 notification. Each created object is one job.
fn s3_records(records: &[Value]) -> Result<Reading, Malformed> {
    let mut names = Vec::new();
    for record in records {
        let Some(name) = record.get("eventName").and_then(Value::as_str) else {
            return malformed("a record has no `eventName`");
        };
        names.push(name);
    }
    match (records, &names[..]) {
        ([], _) => Ok(Reading::Nothing("an S3 notification without records".into())),
        ([record], [name]) if announces_object(name) => s3_record(record),
        ([record], [name]) if announces_removal(name) => Ok(s3_removal(record, name)),
        _ if names.iter().any(|name| announces_object(name) || announces_removal(name)) => {
            Ok(Reading::Several(records.iter().map(|record| json!({"Records": [record]}).to_string()).collect()))
        }
        _ => {
            names.dedup();
            Ok(Reading::Nothing(format!("no record of a created or removed object: {}", shortened(&names.join(", ")))))
        }
    }
}

/// Whether an S3 event says that an object is new in its bucket. Ceph announces an object that arrived by replication as
/// synced, and no other event announces it in that bucket.
fn announces_object(event_name: &str) -> bool {
    let name = event_name.trim_start_matches("s3:");
    name.starts_with("ObjectCreated:") || name.starts_with("ObjectSynced:Create")
}

fn s3_record(record: &Value) -> Result<Reading, Malformed> {
    let (bucket, object) = (&record["s3"]["bucket"], &record["s3"]["object"]);
    let (Some(bucket), Some(key)) = (filled_text(&bucket["name"]), filled_text(&object["key"])) else {
        return malformed("an S3 record without `s3.bucket.name` or `s3.object.key`");
    };
    let Some(key) = s3_key(record, key) else { return malformed("`s3.object.key` is not form-encoded UTF-8") };
    let Event { version, etag, sequencer } = Event::of(object, "versionId", "eTag");
    announced(ImageRef { bucket, key, version_id: version, etag }, sequencer, &object["size"])
}

/// The key of a record: only Ceph does not encode it.
fn s3_key(record: &Value, key: String) -> Option<String> {
    if record["eventSource"].as_str().is_some_and(|source| source.starts_with("ceph:")) {
        return Some(key);
    }
    percent_decode_str(&key.replace('+', " ")).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// Whether an S3 event says that an object is no longer there, by a request or by a rule of the bucket. `NoOP` is the
/// removal of what was not there.
fn announces_removal(event_name: &str) -> bool {
    let name = event_name.trim_start_matches("s3:");
    let removals = ["ObjectRemoved:", "ObjectSynced:Delete", "LifecycleExpiration:", "ObjectLifecycle:Expiration:"];
    removals.iter().any(|removal| name.starts_with(removal)) && !name.ends_with(":NoOP")
}

fn s3_removal(record: &Value, event_name: &str) -> Reading {
    let (bucket, object) = (&record["s3"]["bucket"], &record["s3"]["object"]);
    // The version of a delete marker is the marker's.
    let removes_version = !["DeleteMarkerCreated", "DeleteAllVersions"].iter().any(|kind| event_name.ends_with(kind));
    removed(
        filled_text(&bucket["name"]),
        filled_text(&object["key"]).and_then(|key| s3_key(record, key)),
        filled_text(&object["versionId"]).filter(|_| removes_version),
        &record["eventTime"],
    )
}

/// A removal. An event without what it must name requests nothing: its sender could not correct it.
fn removed(bucket: Option<String>, key: Option<String>, version_id: Option<String>, time: &Value) -> Reading {
    let at = time.as_str().and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
    let storable = |text: &String| !text.contains('\0');
    match (bucket.filter(storable), key.filter(storable), at) {
        (Some(bucket), Some(key), Some(at)) if version_id.as_ref().is_none_or(storable) => {
            Reading::Removed(Box::new(Removal { bucket, key, version_id, at }))
        }
        _ => Reading::Nothing("the removal of an object, without its bucket, its key or its time".into()),
    }
}

/// EventBridge's form of a notification. Its key is not encoded.
fn event_bridge(object: &Map<String, Value>) -> Result<Reading, Malformed> {
    let kind = object.get("detail-type").and_then(Value::as_str).unwrap_or_default();
    let detail = &object["detail"];
    if kind == "Object Deleted" {
        let removes_version = detail["deletion-type"] != "Delete Marker Created";
        return Ok(removed(
            filled_text(&detail["bucket"]["name"]),
            filled_text(&detail["object"]["key"]),
            filled_text(&detail["object"]["version-id"]).filter(|_| removes_version),
            object.get("time").unwrap_or(&Value::Null),
        ));
    }
    if kind != "Object Created" {
        let kind = shortened(kind);
        return Ok(Reading::Nothing(format!(
            "an EventBridge event other than Object Created and Object Deleted: {kind}"
        )));
    }
    let (Some(bucket), Some(key)) = (filled_text(&detail["bucket"]["name"]), filled_text(&detail["object"]["key"]))
    else {
        return malformed("an EventBridge event without `detail.bucket.name` or `detail.object.key`");
    };
    let Event { version, etag, sequencer } = Event::of(&detail["object"], "version-id", "etag");
    announced(ImageRef { bucket, key, version_id: version, etag }, sequencer, &detail["object"]["size"])
}

/// What a notification says of the state of its object.
struct Event {
    version: Option<String>,
    etag: Option<String>,
    sequencer: Option<String>,
}

impl Event {
    fn of(object: &Value, version: &str, etag: &str) -> Self {
        Self {
            // The object that an event announces without a version is the current one.
            version: filled_text(&object[version]).filter(|version| version != NULL_VERSION),
            etag: filled_text(&object[etag]).map(unquoted).filter(|etag| !etag.is_empty()),
            sequencer: filled_text(&object["sequencer"]),
        }
    }
}

/// The job for an object that a notification announces.
fn announced(image: ImageRef, sequencer: Option<String>, size: &Value) -> Result<Reading, Malformed> {
    // Consoles and tools store a folder as an empty object.
    if image.key.ends_with('/') && size.as_u64() == Some(0) {
        return Ok(Reading::Nothing("a folder marker: an empty object whose key ends with a slash".into()));
    }
    checked_job(Identity::Derived { sequencer }, image, None, None)
}

/// A text that is not empty. Some stores write an empty text where they have no value.
fn filled_text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// An SNS envelope around form 2.
fn notification(object: &Map<String, Value>, message_id: Option<&str>) -> Result<Reading, Malformed> {
    if object.get("Type").and_then(Value::as_str) != Some("Notification") {
        return Ok(Reading::Nothing("an SNS message other than a notification".into()));
    }
    match object.get("Message").and_then(Value::as_str).map(serde_json::from_str) {
        Some(Ok(Value::Object(inner))) => by_shape(&inner, message_id, Depth::Inner),
        _ => malformed("an SNS notification whose `Message` is not a JSON object"),
    }
}

/// Form 3: form 1 or 2 as the data of a CloudEvent.
fn cloud_event(object: &Map<String, Value>, message_id: Option<&str>) -> Result<Reading, Malformed> {
    let kind = object.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind.starts_with("io.pixwarden.") {
        return malformed(format!("{kind} is an event of Pixwarden; events are not screened, because they would loop"));
    }
    let read = match object.get("data") {
        Some(Value::Object(data)) => by_shape(data, message_id, Depth::Inner),
        _ => malformed("a CloudEvent without `data` of form 1 or 2"),
    };
    read.map_err(|error| match foreign::name_of_cloud_event(kind) {
        Some(name) => Malformed(format!("{name}, which is not read")),
        None => error,
    })
}

fn uri_ref(uri: &str) -> Result<ImageRef, Malformed> {
    ImageRef::from_uri(uri).ok_or_else(|| Malformed(format!("\"{}\" is not s3://bucket/key", shortened(uri))))
}

fn identity(in_body: Option<&str>, message_id: Option<&str>) -> Result<Identity, Malformed> {
    let (field, id) = match (in_body, message_id.filter(|id| !id.is_empty())) {
        (Some(id), _) => ("`id`", id),
        (None, Some(id)) => ("the message_id", id),
        (None, None) => return Ok(Identity::Derived { sequencer: None }),
    };
    if !is_id(id) {
        return malformed(format!("{field} is not 1 to {MAX_ID_CHARS} printable ASCII characters"));
    }
    Ok(Identity::Given(id.to_owned()))
}

/// Whether a text may be a job's id.
#[must_use]
pub fn is_id(text: &str) -> bool {
    (1..=MAX_ID_CHARS).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

/// The checks that all forms share.
fn checked_job(
    identity: Identity,
    image: ImageRef,
    detectors: Option<Vec<String>>,
    metadata: Option<Value>,
) -> Result<Reading, Malformed> {
    if image.bucket.is_empty() || image.bucket.len() > MAX_BUCKET_BYTES {
        return malformed(format!("the bucket's name is not 1 to {MAX_BUCKET_BYTES} bytes long"));
    }
    if image.key.is_empty() || image.key.len() > MAX_KEY_BYTES {
        return malformed(format!("the key is not 1 to {MAX_KEY_BYTES} bytes long"));
    }
    // Both are sent in HTTP headers or URLs, which do not allow other characters.
    let visible = |text: &String| text.len() <= MAX_KEY_BYTES && text.bytes().all(|b| b.is_ascii_graphic());
    if !image.etag.as_ref().is_none_or(visible) || !image.version_id.as_ref().is_none_or(visible) {
        return malformed(format!("an ETag or a version id is not up to {MAX_KEY_BYTES} visible ASCII characters"));
    }
    if metadata.as_ref().is_some_and(|m| m.to_string().len() > MAX_METADATA_BYTES) {
        return malformed(format!("`metadata` is larger than {MAX_METADATA_BYTES} bytes"));
    }
    let texts = [Some(&image.bucket), Some(&image.key), image.version_id.as_ref(), image.etag.as_ref()];
    let nul = texts.into_iter().flatten().any(|text| text.contains('\0'))
        || detectors.iter().flatten().any(|name| name.contains('\0'))
        || metadata.as_ref().is_some_and(holds_nul);
    if nul {
        return malformed("the job holds the character U+0000, which PostgreSQL cannot store");
    }
    Ok(Reading::Job(Box::new(Job { identity, image, detectors, metadata })))
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || holds_nul(value)),
        _ => false,
    }
}

fn optional_text(fields: &Map<String, Value>, field: &str, of: &str) -> Result<Option<String>, Malformed> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => malformed(format!("`{of}.{field}` is not a non-empty string")),
    }
}

/// An `ETag` without the quotes of the HTTP header, and without the mark of a weak tag (RFC 9110, section 8.8.3).
fn unquoted(etag: String) -> String {
    let quoted = etag.strip_prefix("W/").unwrap_or(&etag);
    match quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.to_owned(),
        None => etag,
    }
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(80).flat_map(char::escape_default).collect();
    if text.chars().count() > 80 {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;

    fn one(body: &str) -> Job {
        one_with(body, None)
    }

    fn one_with(body: &str, message_id: Option<&str>) -> Job {
        match read(body.as_bytes(), MessageProperties { message_id, ..MessageProperties::default() }) {
            Ok(Reading::Job(job)) => *job,
            other => panic!("{body}: {other:?}"),
        }
    }

    fn read_alone(body: &[u8]) -> Result<Reading, Malformed> {
        read(body, MessageProperties::default())
    }

    fn reason(body: &str) -> String {
        read_alone(body.as_bytes()).unwrap_err().0
    }

    /// The reason why a message requests nothing.
    fn nothing(body: &Value) -> String {
        match read_alone(body.to_string().as_bytes()) {
            Ok(Reading::Nothing(reason)) => reason,
            other => panic!("{body}: {other:?}"),
        }
    }

    /// A record of a created object, with further fields of the object.
    fn record(source: &str, key: &str, object: Value) -> Value {
        let mut fields = json!({"key": key});
        fields.as_object_mut().unwrap().extend(object.as_object().unwrap().clone());
        json!({"eventSource": source, "eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": fields}})
    }

    fn records(record: Value) -> String {
        json!({"Records": [record]}).to_string()
    }

    #[test]
    fn a_removal_names_its_version_unless_a_delete_marker_hides_all() {
        let at = time::macros::datetime!(2026-11-25 02:40:29.5 UTC);
        let removed = |body: &Value| match read_alone(body.to_string().as_bytes()) {
            Ok(Reading::Removed(removal)) => *removal,
            other => panic!("{body}: {other:?}"),
        };
        let record = |name: &str, source: &str, key: &str, version: &str| {
            json!({"Records": [{"eventName": name, "eventSource": source, "eventTime": "2026-11-25T02:40:29.500Z",
                "s3": {"bucket": {"name": "b"}, "object": {"key": key, "versionId": version}}}]})
        };
        let removal = |version: Option<&str>| Removal {
            bucket: "b".into(),
            key: "a b".into(),
            version_id: version.map(str::to_owned),
            at,
        };
        for (name, source, key, version, expected) in [
            ("ObjectRemoved:Delete", "aws:s3", "a+b", "", None),
            ("s3:ObjectRemoved:Delete", "minio:s3", "a%20b", "v", Some("v")),
            ("ObjectRemoved:Delete", "ceph:s3.r", "a b", "null", Some("null")),
            ("ObjectRemoved:DeleteMarkerCreated", "aws:s3", "a+b", "marker", None),
            ("LifecycleExpiration:DeleteMarkerCreated", "aws:s3", "a+b", "marker", None),
            ("s3:LifecycleExpiration:Delete", "aws:s3", "a+b", "v", Some("v")),
            ("s3:ObjectRemoved:DeleteAllVersions", "minio:s3", "a+b", "v", None),
            ("ObjectLifecycle:Expiration:NonCurrent", "ceph:s3.r", "a b", "v", Some("v")),
            ("ObjectSynced:Delete", "ceph:s3.r", "a b", "", None),
        ] {
            assert_eq!(removed(&record(name, source, key, version)), removal(expected), "{name}");
        }
        let event_bridge = |kind: &str| {
            json!({"detail-type": "Object Deleted", "time": "2026-11-25T02:40:29.5Z", "detail": {"deletion-type": kind,
                "bucket": {"name": "b"}, "object": {"key": "a b", "version-id": "v"}}})
        };
        assert_eq!(removed(&event_bridge("Permanently Deleted")), removal(Some("v")));
        assert_eq!(removed(&event_bridge("Delete Marker Created")), removal(None));
        let Ok(Reading::Several(bodies)) = read_alone(
            json!({"Records": [record("ObjectRemoved:Delete", "", "k", "")["Records"][0],
                               record("ObjectRemoved:Delete", "", "l", "")["Records"][0]]})
            .to_string()
            .as_bytes(),
        ) else {
            panic!("each removal is a message");
        };
        assert_eq!(bodies.len(), 2);
        for unusable in [record("ObjectRemoved:Delete", "", "%00", ""), record("ObjectRemoved:Delete", "", "", "")] {
            assert!(nothing(&unusable).starts_with("the removal of an object, without"), "{unusable}");
        }
        assert!(!removal(Some("null")).names_version() && removal(Some("v")).names_version());
    }

    #[test]
    fn each_form_names_the_same_image() {
        let image = ImageRef::from_uri("s3://uploads/a b+c%20/ü.jpg").unwrap();
        let encoded = "a+b%2Bc%2520/%C3%BC.jpg";
        let record = json!({"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "uploads"}, "object": {"key": encoded}}});
        let minio = json!({"EventName": "s3:ObjectCreated:Put", "Key": "uploads/a b+c%20/ü.jpg", "Records": [
            {"eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {"name": "uploads"}, "object": {"key": encoded}}}]});
        let forms = [
            "s3://uploads/a b+c%20/ü.jpg".to_owned(),
            "s3://uploads/a b+c%20/ü.jpg\n".to_owned(),
            json!("s3://uploads/a b+c%20/ü.jpg").to_string(),
            json!({"image": "s3://uploads/a b+c%20/ü.jpg"}).to_string(),
            json!({"image": {"bucket": "uploads", "key": "a b+c%20/ü.jpg"}}).to_string(),
            json!({"Records": [record]}).to_string(),
            minio.to_string(),
            json!({"Type": "Notification", "TopicArn": "arn", "Message": json!({"Records": [record]}).to_string()}).to_string(),
            json!({"detail-type": "Object Created", "source": "aws.s3", "id": "x",
                "detail": {"bucket": {"name": "uploads"}, "object": {"key": "a b+c%20/ü.jpg"}}}).to_string(),
            json!({"specversion": "1.0", "type": "com.example.upload", "source": "/s", "id": "1", "data": {"image": "s3://uploads/a b+c%20/ü.jpg"}}).to_string(),
            json!({"specversion": "1.0", "type": "com.example.s3", "source": "/s", "id": "1", "data": {"Records": [record]}}).to_string(),
        ];
        for form in forms {
            assert_eq!(one(&form).image, image, "{form}");
        }
    }

    #[test]
    fn the_id_is_the_body_s_then_the_message_s_but_never_for_s3_records() {
        assert_eq!(one_with(r#"{"image": "s3://b/k", "id": "a"}"#, Some("m")).identity, Identity::Given("a".into()));
        assert_eq!(one_with(r#"{"image": "s3://b/k"}"#, Some("m")).identity, Identity::Given("m".into()));
        assert_eq!(one_with("s3://b/k", Some("m")).identity, Identity::Given("m".into()));
        let record = r#"{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": "k", "eTag": "\"e\"", "versionId": "v", "sequencer": "0A"}}}]}"#;
        let job = one_with(record, Some("m"));
        assert_eq!(job.identity, Identity::Derived { sequencer: Some("0A".into()) });
        assert_eq!((job.image.etag.as_deref(), job.image.version_id.as_deref()), (Some("e"), Some("v")));
    }

    #[test]
    fn several_records_become_a_message_each_and_other_events_nothing() {
        let record =
            |key: &str, name: &str| json!({"eventName": name, "s3": {"bucket": {"name": "b"}, "object": {"key": key}}});
        let body = json!({"Records": [record("1", "ObjectCreated:Put"), record("2", "ObjectRemoved:Delete"), record("3", "ObjectCreated:Copy")]});
        let Ok(Reading::Several(bodies)) = read_alone(body.to_string().as_bytes()) else { panic!() };
        assert_eq!((bodies.len(), one(&bodies[0]).image.key, one(&bodies[2]).image.key), (3, "1".into(), "3".into()));
        // The removal becomes a message too, so that it is counted and logged by itself.
        let removal = serde_json::from_str(&bodies[1]).unwrap();
        assert_eq!(nothing(&removal), "the removal of an object, without its bucket, its key or its time");
        for (body, says) in [
            (
                json!({"Records": [record("2", "s3:ObjectRemoved:NoOP"), record("3", "ObjectTagging:Put")]}),
                "s3:ObjectRemoved:NoOP, ObjectTagging:Put",
            ),
            (json!({"Records": []}), "without records"),
            (json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}), "test event"),
            (json!({"detail-type": "Object Deleted", "detail": {}}), "the removal of an object, without"),
            (json!({"detail-type": "Object Tags Added", "detail": {}}), "Object Tags Added"),
            (json!({"Type": "SubscriptionConfirmation", "TopicArn": "arn"}), "SNS"),
        ] {
            assert!(nothing(&body).contains(says), "{body}: {}", nothing(&body));
        }
    }

    #[test]
    fn a_key_is_decoded_as_its_sender_encodes_it() {
        for (source, key) in [("ceph:s3", "a+b%20c.png"), ("aws:s3", "a b c.png"), ("minio:s3", "a b c.png")] {
            assert_eq!(one(&records(record(source, "a+b%20c.png", json!({})))).image.key, key, "{source}");
        }
        // Ceph writes an empty text where it has no value.
        let image = one(&records(record("ceph:s3", "k", json!({"versionId": "", "eTag": "", "sequencer": ""})))).image;
        assert_eq!((image.version_id, image.etag), (None, None));
    }

    #[test]
    fn an_object_that_arrived_by_replication_is_a_job() {
        for name in ["ObjectSynced:Create", "s3:ObjectSynced:Create"] {
            let mut synced = record("ceph:s3", "p/synced.png", json!({"size": 1}));
            synced["eventName"] = json!(name);
            assert_eq!(one(&records(synced)).image.key, "p/synced.png", "{name}");
        }
    }

    #[test]
    fn a_folder_marker_requests_nothing_and_an_image_under_such_a_key_is_a_job() {
        let event_bridge = |size: u32| json!({"detail-type": "Object Created", "detail": {"bucket": {"name": "b"}, "object": {"key": "new/", "size": size}}});
        let notification = |size: u32| json!({"Records": [record("aws:s3", "new/", json!({"size": size}))]});
        for marker in [notification(0), event_bridge(0)] {
            assert!(nothing(&marker).contains("folder marker"), "{marker}");
        }
        for image in [notification(70), event_bridge(70)] {
            assert_eq!(one(&image.to_string()).image.key, "new/");
        }
        let no_folder = records(record("aws:s3", "empty.png", json!({"size": 0})));
        assert_eq!(one(&no_folder).image.key, "empty.png", "an empty image is undecodable, and that is an outcome");
        assert_eq!(one(&records(record("aws:s3", "new/", json!({})))).image.key, "new/", "of unknown size");
    }

    #[test]
    fn a_byte_order_mark_and_white_space_around_a_body_are_ignored() {
        let body = r#"{"image": "s3://b/k"}"#;
        for text in [format!("\u{feff}{body}"), format!(" \r\n\u{feff}\t{body}\n "), format!("\n{body}")] {
            assert_eq!(one(&text).image.key, "k", "{text:?}");
        }
        for text in ["\u{feff}s3://b/k", " s3://b/k \t\r\n", "s3://b/k\n\n", "\n\"s3://b/k\""] {
            assert_eq!(one(text).image.key, "k", "{text:?}");
        }
        assert_eq!(one(r#""s3://b/ k ""#).image.key, " k ", "inside of the JSON string it is part of the key");
    }

    #[test]
    fn a_weak_etag_is_the_tag_without_its_mark() {
        for etag in [r#""e""#, r#"W/"e""#, "e"] {
            let job = json!({"image": {"bucket": "b", "key": "k", "etag": etag}}).to_string();
            assert_eq!(one(&job).image.etag.as_deref(), Some("e"), "{etag}");
            assert_eq!(one(&records(record("aws:s3", "k", json!({"eTag": etag})))).image.etag.as_deref(), Some("e"));
        }
        assert_eq!(one(&records(record("aws:s3", "k", json!({"eTag": "\"\""})))).image.etag, None);
        assert!(
            reason(r#"{"image": {"bucket": "b", "key": "k", "etag": "W/\"\""}}"#).contains("`image.etag` is empty")
        );
    }

    #[test]
    fn the_null_version_of_an_event_is_the_current_object_and_no_state() {
        let digests = crate::job::Digests::new();
        let uploaded = |etag: &str| one(&records(record("minio:s3", "k", json!({"versionId": "null", "eTag": etag}))));
        assert_eq!(uploaded("e1").image.version_id, None);
        assert_ne!(uploaded("e1").id(None, &digests), uploaded("e2").id(None, &digests), "two uploads are two jobs");
        let event = json!({"detail-type": "Object Created",
            "detail": {"bucket": {"name": "b"}, "object": {"key": "k", "version-id": "null"}}});
        assert_eq!(one(&event.to_string()).image.version_id, None);
        // A sender that names it gets it, but it does not tell two uploads apart.
        let named = one(r#"{"image": {"bucket": "b", "key": "k", "version_id": "null"}}"#);
        assert_eq!(named.image.version_id.as_deref(), Some("null"));
        assert!(!named.id_is_known());
        assert_ne!(named.id(Some("e1"), &digests), named.id(Some("e2"), &digests));
    }

    #[test]
    fn what_cannot_be_understood_is_refused_with_a_reason() {
        for (body, says) in [
            ("", "neither JSON nor s3://"),
            ("[]", "a JSON array"),
            ("3", "neither an object nor a string"),
            ("{}", "not a job"),
            (r#"{"image": "s3://b/k", "detector": ["x"]}"#, "unknown key \"detector\""),
            (r#"{"specversion": "1.0", "type": "x", "data": {"image": "s3://b/k", "Id": 1}}"#, "unknown key \"Id\""),
            (r#""https://x/y""#, "is not s3://bucket/key"),
            (r#"{"image": {"bucket": "b"}}"#, "needs `bucket` and `key`"),
            (r#"{"image": 3}"#, "neither a string nor an object"),
            (r#"{"image": {"bucket": "b", "key": "k", "etag": "ü"}}"#, "visible ASCII"),
            (r#"{"image": {"bucket": "b", "key": "k", "version_id": "a b"}}"#, "visible ASCII"),
            (r#"{"image": "s3://b/k", "id": ""}"#, "printable ASCII"),
            (r#"{"image": "s3://b/k", "id": "ü"}"#, "printable ASCII"),
            (r#"{"image": "s3://b/k", "detectors": []}"#, "at least one name"),
            (r#"{"image": "s3://b/k", "metadata": []}"#, "not an object"),
            (r#"{"image": "s3://b/k", "metadata": {"a": "\u0000"}}"#, "U+0000"),
            (r#"{"image": "s3://b/k\u0000"}"#, "U+0000"),
            (r#"{"Records": [{}]}"#, "eventName"),
            (r#"{"Records": [{"eventName": "ObjectCreated:Put"}]}"#, "s3.bucket.name"),
            (
                r#"{"specversion": "1.0", "type": "io.pixwarden.image.flagged.v1", "data": {"image": "s3://b/k"}}"#,
                "would loop",
            ),
            (r#"{"specversion": "1.0", "type": "x", "data": {"specversion": "1.0", "data": {}}}"#, "not a job"),
        ] {
            assert!(reason(body).contains(says), "{body}: {}", reason(body));
        }
        assert!(reason(&format!("s3://b/{}", "k".repeat(70_000))).contains("the limit is 65536"));
        assert!(reason(&format!("s3://b/{}", "k".repeat(2000))).contains("1 to 1024"));
        let large = json!({"image": "s3://b/k", "metadata": {"a": "x".repeat(17_000)}}).to_string();
        assert!(reason(&large).contains("metadata"));
        assert!(read_alone(&[0xFF, b'a']).unwrap_err().0.contains("UTF-8"));
    }

    #[test]
    fn sizes_are_exact_depth_is_bounded_and_the_last_of_equal_keys_counts() {
        // Valid but for their length, so that nothing but the limit can refuse them.
        let padded = |bytes: usize| {
            let job = r#"{"image": "s3://b/k"}"#;
            format!("{job}{}", " ".repeat(bytes - job.len()))
        };
        assert_eq!(one(&padded(MAX_BODY_BYTES)).image.key, "k");
        assert!(reason(&padded(MAX_BODY_BYTES + 1)).contains("the limit is 65536"));
        let with = |bytes: usize| json!({"image": "s3://b/k", "metadata": {"a": "x".repeat(bytes - 8)}}).to_string();
        assert!(one(&with(MAX_METADATA_BYTES)).metadata.is_some());
        assert!(reason(&with(MAX_METADATA_BYTES + 1)).contains("`metadata` is larger"));
        let deep = |levels: usize| {
            let metadata = format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
            format!(r#"{{"image": "s3://b/k", "metadata": {metadata}}}"#)
        };
        assert!(one(&deep(100)).metadata.is_some());
        assert!(reason(&deep(5_000)).contains("recursion limit"));
        assert_eq!(one(r#"{"image": "s3://b/1", "image": "s3://b/2"}"#).image.key, "2");
    }

    /// What S3 leaves unencoded in a notification's key.
    const FORM: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'*').remove(b' ');

    proptest! {
        #[test]
        fn any_key_survives_the_encoding_of_s3_events(key in "[^\u{0}]{1,80}") {
            let encoded = utf8_percent_encode(&key, FORM).to_string().replace(' ', "+");
            let record = json!({"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": encoded}}});
            prop_assert_eq!(one(&json!({"Records": [record]}).to_string()).image.key, key);
        }

        #[test]
        fn any_key_survives_the_plain_forms(key in "[^\u{0}\r\n]{1,80}") {
            let uri = format!("s3://bucket/{key}");
            prop_assert_eq!(&one(&json!({"image": uri}).to_string()).image.key, &key);
            prop_assert_eq!(&one(&json!(uri).to_string()).image.key, &key);
            // White space around a body is ignored, so plain text cannot name a key that ends with it.
            if !key.ends_with(WHITE_SPACE) {
                prop_assert_eq!(&one(&uri).image.key, &key);
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _reading = read_alone(&body);
        }

        #[test]
        fn no_json_makes_the_parser_panic_or_pass_on_what_cannot_be_stored(
            image in prop_oneof![Just(json!("s3://b/k")), Just(json!({"bucket": "b", "key": "k\u{0}"})), Just(json!(null))],
            id in proptest::option::of(".{0,250}"),
            metadata in proptest::option::of(proptest::collection::btree_map(".{0,9}", ".{0,9}", 0..5)),
        ) {
            let body = json!({"image": image, "id": id, "metadata": metadata}).to_string();
            if let Ok(Reading::Job(job)) = read_alone(body.as_bytes()) {
                prop_assert!(!job.image.key.contains('\0'));
                prop_assert!(!job.metadata.iter().any(holds_nul));
                if let Identity::Given(id) = &job.identity {
                    prop_assert!((1..=200).contains(&id.len()) && id.is_ascii());
                }
            }
        }
    }
}
