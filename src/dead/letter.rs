//! One dead letter: its fields, its JSON form, and the message that is sent back.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{FieldTable, ShortString};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::broker::{ATTEMPT_HEADER, DEAD_SINCE_HEADER, JOB_ID_HEADER, Message, REASON_HEADER, header};
use crate::escape::escape_late_controls;
use crate::job::Lane;

/// Characters of the body in a row.
const MAX_BODY_CHARS: usize = 400;

pub(crate) struct DeadLetter {
    pub(super) reason: Option<String>,
    /// `None` where the routing key is not a lane: the message was published to a queue that does not exist.
    pub(super) lane: Option<Lane>,
    job_id: Option<String>,
    message_id: Option<String>,
    attempts: Option<String>,
    dead_since: Option<OffsetDateTime>,
    body: String,
}

impl DeadLetter {
    pub(super) fn of(message: &Delivery) -> Self {
        let own = |name: &str| header(&message.properties, name);
        let body = String::from_utf8_lossy(&message.data).into_owned();
        let in_body = || serde_json::from_str::<Value>(&body).ok()?.get("id")?.as_str().map(str::to_owned);
        Self {
            // A message that the broker dead-lettered by itself has only the broker's reason.
            reason: own(REASON_HEADER).or_else(|| own("x-first-death-reason")),
            lane: Lane::ALL.into_iter().find(|lane| lane.as_str() == message.routing_key.as_str()),
            job_id: own(JOB_ID_HEADER).or_else(in_body),
            message_id: message.properties.message_id().as_ref().map(ToString::to_string),
            attempts: own(ATTEMPT_HEADER),
            dead_since: own(DEAD_SINCE_HEADER).and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok()),
            body,
        }
    }

    /// Whether `id` is the id of the job or of the message.
    pub(super) fn has_id(&self, id: &str) -> bool {
        self.job_id.as_deref() == Some(id) || self.message_id.as_deref() == Some(id)
    }

    /// How long the letter has been dead, where the message says so.
    pub(super) fn age(&self) -> Option<Duration> {
        let since = self.dead_since?;
        Some(Duration::try_from(OffsetDateTime::now_utc() - since).unwrap_or_default())
    }

    /// The reason up to its first colon. The rest differs from letter to letter.
    pub(super) fn reason_prefix(&self) -> String {
        let reason = self.reason.as_deref().unwrap_or("without a reason");
        reason.split(':').next().unwrap_or_default().to_owned()
    }

    pub(crate) fn row(&self) -> Map<String, Value> {
        let fields = [
            ("dead_since", json!(self.dead_since.and_then(|at| at.format(&Rfc3339).ok()))),
            ("reason", json!(self.reason)),
            ("lane", json!(self.lane)),
            ("attempts", json!(self.attempts)),
            ("job_id", json!(self.job_id)),
            ("message_id", json!(self.message_id)),
            ("body", json!(self.body.chars().take(MAX_BODY_CHARS).collect::<String>())),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// The whole message as JSON. Control characters are escaped, since the content is untrusted.
pub(super) fn as_json(message: &Delivery) -> String {
    let properties = &message.properties;
    let mut headers = Map::new();
    for key in properties.headers().iter().flat_map(|headers| headers.inner().keys()) {
        headers.insert(key.to_string(), json!(header(properties, key.as_str())));
    }
    let text = |value: &Option<ShortString>| json!(value.as_ref().map(ToString::to_string));
    let body = match std::str::from_utf8(&message.data) {
        Ok(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Err(_) => json!({"not_utf8_hex": hex::encode(&message.data)}),
    };
    let message = json!({
        "routing_key": message.routing_key.as_str(),
        "message_id": text(properties.message_id()),
        "correlation_id": text(properties.correlation_id()),
        "reply_to": text(properties.reply_to()),
        "content_type": text(properties.content_type()),
        "headers": headers,
        "body": body,
    });
    escape_late_controls(&serde_json::to_string_pretty(&message).unwrap_or_default()).into_owned()
}

/// The message that is sent back: as its sender published it, with the job id it failed under, and without the headers
/// that were added since.
pub(super) fn revived<'a>(message: &'a Delivery, exchange: &'a str, lane: Lane) -> Message<'a> {
    let mut headers = FieldTable::default();
    for (key, value) in message.properties.headers().iter().flat_map(|headers| headers.inner()) {
        if !is_added_header(key.as_str()) {
            headers.insert(key.clone(), value.clone());
        }
    }
    let properties: BasicProperties = message.properties.clone().with_headers(headers);
    Message { exchange, routing_key: lane.as_str(), payload: &message.data, properties }
}

/// Headers that were added after the message was published: Pixwarden's, and those of the broker's dead-lettering.
fn is_added_header(key: &str) -> bool {
    [REASON_HEADER, ATTEMPT_HEADER, DEAD_SINCE_HEADER, "x-death"].contains(&key)
        || key.starts_with("x-first-death-")
        || key.starts_with("x-last-death-")
}
