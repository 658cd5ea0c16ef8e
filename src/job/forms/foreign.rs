//! Messages that are not read, but that can be recognised: their reason names what they are.

use serde_json::{Map, Value};

use super::{Malformed, MessageProperties, shortened};

/// The first bytes of compressed data, and the name of the compression.
const COMPRESSIONS: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz")];
/// Content encodings that change nothing in the bytes of a UTF-8 text.
const PLAIN_ENCODINGS: [&str; 4] = ["", "identity", "utf-8", "utf8"];

/// The error for a body that could not be parsed, with the cause where the bytes or the properties name it.
pub(super) fn explained(error: Malformed, body: &[u8], properties: MessageProperties<'_>) -> Malformed {
    if let Some((_, name)) = COMPRESSIONS.iter().find(|(magic, _)| body.starts_with(magic)) {
        return Malformed(format!("the body is compressed ({name}), and compressed bodies are not read"));
    }
    let encoding = properties.content_encoding.unwrap_or_default();
    if !PLAIN_ENCODINGS.iter().any(|plain| plain.eq_ignore_ascii_case(encoding)) {
        let encoding = shortened(encoding);
        return Malformed(format!("the body has the content_encoding \"{encoding}\", which is not read: {error}"));
    }
    if body.starts_with(&[0xFF, 0xFE]) || body.starts_with(&[0xFE, 0xFF]) {
        return Malformed("the body begins with the byte-order mark of UTF-16, and is not UTF-8".into());
    }
    if properties.is_binary_cloud_event {
        return Malformed(format!("a CloudEvent in binary mode, whose body is no job by itself: {error}"));
    }
    error
}

/// What an object without a known form is.
pub(super) fn name_of(object: &Map<String, Value>) -> Option<&'static str> {
    let text = |field: &str| object.get(field).and_then(Value::as_str);
    let message = object.get("message");
    if text("kind").is_some_and(|kind| kind.starts_with("storage#")) {
        return Some("a notification of Google Cloud Storage");
    }
    if text("subscription").is_some() && message.is_some_and(|message| message.get("data").is_some()) {
        return Some("a message of Google Pub/Sub");
    }
    is_event_grid(object).then_some("an event of Azure Event Grid")
}

/// What an array is.
pub(super) fn name_of_batch(items: &[Value]) -> Option<&'static str> {
    let first = items.first()?.as_object()?;
    if first.contains_key("specversion") {
        return Some("a batch of CloudEvents");
    }
    is_event_grid(first).then_some("a batch of events of Azure Event Grid")
}

/// The sender of a CloudEvent whose data has no known form.
pub(super) fn name_of_cloud_event(kind: &str) -> Option<&'static str> {
    if kind.starts_with("Microsoft.") {
        return Some("an event of Azure Event Grid");
    }
    kind.starts_with("google.cloud.storage.").then_some("a notification of Google Cloud Storage")
}

fn is_event_grid(object: &Map<String, Value>) -> bool {
    ["eventType", "subject", "data", "eventTime"].iter().all(|field| object.contains_key(*field))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{MessageProperties, read};

    fn reason(body: &[u8], properties: MessageProperties<'_>) -> String {
        read(body, properties).unwrap_err().0
    }

    #[test]
    fn messages_of_other_services_are_named() {
        let blob = json!({"topic": "/subscriptions/x", "subject": "/blobServices/default/containers/c/blobs/k.png",
            "eventType": "Microsoft.Storage.BlobCreated", "eventTime": "2026-11-01T00:00:00Z", "id": "1",
            "data": {"api": "PutBlob", "url": "https://a.blob.core.windows.net/c/k.png"}});
        let cloud_event = |kind: &str| json!({"specversion": "1.0", "type": kind, "source": "/s", "id": "1", "data": {"bucket": "b", "name": "k"}});
        for (body, name) in [
            (json!({"kind": "storage#object", "name": "k", "bucket": "b", "etag": "x"}), "Google Cloud Storage"),
            (
                json!({"message": {"data": "e30=", "attributes": {"eventType": "OBJECT_FINALIZE"}}, "subscription": "s"}),
                "Google Pub/Sub",
            ),
            (cloud_event("google.cloud.storage.object.v1.finalized"), "Google Cloud Storage"),
            (blob.clone(), "Azure Event Grid"),
            (json!([blob]), "Azure Event Grid"),
            (cloud_event("Microsoft.Storage.BlobCreated"), "Azure Event Grid"),
            (json!([cloud_event("com.example.upload")]), "a batch of CloudEvents"),
        ] {
            let reason = reason(body.to_string().as_bytes(), MessageProperties::default());
            assert!(reason.contains(name) && reason.ends_with("which is not read"), "{body}: {reason}");
        }
    }

    #[test]
    fn compressed_bodies_and_other_encodings_are_named_only_where_the_body_cannot_be_read() {
        let with = |content_encoding| MessageProperties { content_encoding, ..MessageProperties::default() };
        assert!(reason(b"\x1f\x8b\x08\x00\xb2\x62", with(None)).contains("compressed (gzip)"));
        assert!(reason(b"\x28\xb5\x2f\xfd\x00", with(Some("zstd"))).contains("compressed (zstd)"));
        assert!(reason(b"\x0b\x0f\x80{}", with(Some("br"))).contains("content_encoding \"br\""));
        assert!(reason(b"\xff\xfe{\0", with(None)).contains("UTF-16"));
        for encoding in ["utf-8", "UTF8", "identity", ""] {
            assert!(!reason(b"{}", with(Some(encoding))).contains("encoding"), "{encoding}");
        }
        // What can be read is read.
        assert!(read(br#"{"image": "s3://b/k"}"#, with(Some("gzip"))).is_ok());
    }

    #[test]
    fn a_cloud_event_in_binary_mode_is_read_by_its_body_alone() {
        let binary = MessageProperties { is_binary_cloud_event: true, ..MessageProperties::default() };
        assert!(reason(br#"{"user": 7}"#, binary).contains("CloudEvent in binary mode"));
        assert!(read(br#"{"image": "s3://b/k"}"#, binary).is_ok());
    }
}
