//! Properties for a message that is published once more: as a retry, a dead letter, a part, or a replay.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use super::replies::DIRECT_REPLY_TO;
use super::{ATTEMPT_HEADER, DEAD_SINCE_HEADER, JOB_ID_HEADER, REASON_HEADER, REDELIVERED_HEADER};

/// Bytes of the sender's headers that a copy keeps. All headers travel in one frame, of 128 KiB by default. A table that
/// fills the frame leaves no room for our headers, and the broker would close the connection.
const MAX_SENDER_HEADER_BYTES: usize = 64 << 10;
/// Largest size of a header that is kept even if the others fill the limit.
const MAX_REQUIRED_HEADER_BYTES: usize = 4 << 10;

/// The sender's properties with additional headers, for a copy of its message.
///
/// Left out is what was added to the message since its sender published it, and what would make the broker refuse or lose
/// the copy: `expiration`, `user_id`, which the broker accepts only from that user, and a `reply_to` that was never resolved.
#[must_use]
pub fn copied_properties(properties: &BasicProperties, added: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut all = FieldTable::default();
    let mut left = MAX_SENDER_HEADER_BYTES;
    for (key, value) in properties.headers().iter().flat_map(|headers| headers.inner()) {
        if !is_copied(key.as_str()) {
            continue;
        }
        let size = key.as_str().len() + header_value_bytes(value);
        // A replayed job would get another verdict if it lost its id.
        let is_required =
            [JOB_ID_HEADER, "traceparent", "tracestate"].contains(&key.as_str()) && size <= MAX_REQUIRED_HEADER_BYTES;
        if size > left && !is_required {
            tracing::warn!(header = key.as_str(), bytes = size, "header too large, left out of the copy");
            continue;
        }
        left = left.saturating_sub(size);
        all.insert(key.clone(), value.clone());
    }
    for (key, value) in added {
        all.insert((*key).into(), value.clone());
    }
    let mut copy = BasicProperties::default().with_headers(all);
    if let Some(value) = properties.content_type() {
        copy = copy.with_content_type(value.clone());
    }
    if let Some(value) = properties.content_encoding() {
        copy = copy.with_content_encoding(value.clone());
    }
    if let Some(value) = properties.priority() {
        copy = copy.with_priority(*value);
    }
    if let Some(value) = properties.correlation_id() {
        copy = copy.with_correlation_id(value.clone());
    }
    if let Some(value) = properties.reply_to().as_ref().filter(|queue| queue.as_str() != DIRECT_REPLY_TO) {
        copy = copy.with_reply_to(value.clone());
    }
    if let Some(value) = properties.message_id() {
        copy = copy.with_message_id(value.clone());
    }
    if let Some(value) = properties.timestamp() {
        copy = copy.with_timestamp(*value);
    }
    if let Some(value) = properties.kind() {
        copy = copy.with_type(value.clone());
    }
    if let Some(value) = properties.app_id() {
        copy = copy.with_app_id(value.clone());
    }
    copy
}

/// Whether a copy keeps a header.
fn is_copied(key: &str) -> bool {
    // The queues that CC and BCC name have received the original already.
    let routes = ["CC", "BCC"].contains(&key);
    // A copy gets its own, if any.
    let is_ours = [REASON_HEADER, ATTEMPT_HEADER, DEAD_SINCE_HEADER, REDELIVERED_HEADER].contains(&key);
    !routes && !is_ours && !is_added_by_broker(key)
}

/// Whether the broker adds a header. By `x-death` it recognises that a message was in a queue before, and then drops it:
/// with one that its sender wrote, a job would not come back from its delay queue.
#[must_use]
pub fn is_added_by_broker(key: &str) -> bool {
    key == "x-death"
        || ["x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count"]
            .iter()
            .any(|prefix| key.starts_with(prefix))
}

/// An upper bound of a header value's size in its frame, in bytes.
fn header_value_bytes(value: &AMQPValue) -> usize {
    const FIXED: usize = 16;
    let inner = match value {
        AMQPValue::ShortString(text) => text.as_str().len(),
        AMQPValue::LongString(text) => text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(header_value_bytes).sum(),
        AMQPValue::FieldTable(table) => {
            table.inner().iter().map(|(key, value)| key.as_str().len() + header_value_bytes(value)).sum()
        }
        _ => 0,
    };
    FIXED + inner
}

#[cfg(test)]
mod tests {
    use super::super::text;
    use super::*;

    fn with_headers(headers: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (key, value) in headers {
            table.insert((*key).into(), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    #[test]
    fn a_copy_keeps_the_senders_properties_except_those_that_could_make_it_disappear() {
        let original = with_headers(&[("traceparent", text("00-1-2-01")), ("CC", text("elsewhere"))])
            .with_message_id("m".into())
            .with_correlation_id("c".into())
            .with_reply_to("r".into())
            .with_content_type("application/json".into())
            .with_expiration("1000".into())
            .with_user_id("another".into());
        let copy = copied_properties(&original, &[(REASON_HEADER, text("why"))]);
        assert_eq!(copy.expiration(), &None);
        assert_eq!(copy.user_id(), &None);
        let (id, correlation, reply) = (copy.message_id(), copy.correlation_id(), copy.reply_to());
        assert_eq!((id, correlation, reply), (original.message_id(), original.correlation_id(), original.reply_to()));
        let headers = copy.headers().as_ref().unwrap().inner();
        assert_eq!(headers.get("traceparent"), Some(&text("00-1-2-01")));
        assert_eq!(headers.get(REASON_HEADER), Some(&text("why")));
        assert_eq!(headers.get("CC"), None);
    }

    #[test]
    fn a_copy_has_no_header_that_the_broker_or_an_earlier_copy_added() {
        let added = [
            "x-death",
            "x-first-death-queue",
            "x-last-death-reason",
            "x-delivery-count",
            REASON_HEADER,
            ATTEMPT_HEADER,
            DEAD_SINCE_HEADER,
            "BCC",
        ];
        let mut headers: Vec<_> = added.iter().map(|key| (*key, text("x"))).collect();
        headers.extend([("x-mine", text("y")), (JOB_ID_HEADER, text("job-1"))]);
        let copy = copied_properties(&with_headers(&headers), &[]);
        let kept: Vec<_> = copy.headers().as_ref().unwrap().inner().keys().map(ToString::to_string).collect();
        assert_eq!(kept, ["x-mine", JOB_ID_HEADER]);
    }

    #[test]
    fn a_copy_has_no_reply_address_that_the_broker_refuses() {
        let to = |queue: &str| copied_properties(&BasicProperties::default().with_reply_to(queue.into()), &[]);
        assert_eq!(to("amq.rabbitmq.reply-to").reply_to(), &None);
        assert!(to("amq.rabbitmq.reply-to.g1h2.x").reply_to().is_some(), "a resolved address");
    }

    #[test]
    fn a_copy_leaves_out_headers_that_would_fill_its_frame() {
        let mut nested = FieldTable::default();
        nested.insert("inside".into(), text(&"a".repeat(MAX_SENDER_HEADER_BYTES)));
        let mut headers = FieldTable::default();
        headers.insert("a-long".into(), text(&"a".repeat(MAX_SENDER_HEADER_BYTES)));
        headers.insert("b-nested".into(), AMQPValue::FieldTable(nested));
        for i in 0..10_000 {
            headers.insert(format!("c-{i}").into(), AMQPValue::Boolean(true));
        }
        headers.insert(JOB_ID_HEADER.into(), text("job-1"));
        let original = BasicProperties::default().with_headers(headers);
        let copy = copied_properties(&original, &[(REASON_HEADER, text("why"))]);
        let kept = copy.headers().as_ref().unwrap().inner();
        assert_eq!(kept.get(JOB_ID_HEADER), Some(&text("job-1")), "a replayed job keeps its id");
        assert!(!kept.contains_key("a-long") && !kept.contains_key("b-nested"));
        assert!((1_000..10_000).contains(&kept.len()), "{} of the small ones are kept", kept.len());
        assert_eq!(kept.get(REASON_HEADER), Some(&text("why")));
    }
}
