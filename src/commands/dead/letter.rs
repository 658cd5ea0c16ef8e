//! One dead letter: what can be told of it, and what it is like when it is sent back.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{FieldTable, ShortString};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::broker::{ATTEMPT_HEADER, DEAD_SINCE_HEADER, JOB_ID_HEADER, Message, REASON_HEADER, header};
use crate::commands::output::escaped;
use crate::job::Lane;

/// Characters of a body that a list shows.
const SHOWN: usize = 400;

/// What can be told of a dead letter.
pub(super) struct Letter {
    pub(super) reason: Option<String>,
    /// `None` where the routing key is no lane's: whoever published it named a queue that does not exist.
    pub(super) lane: Option<Lane>,
    job_id: Option<String>,
    message_id: Option<String>,
    attempts: Option<String>,
    dead_since: Option<OffsetDateTime>,
    body: String,
}

impl Letter {
    pub(super) fn of(message: &Delivery) -> Self {
        let own = |name: &str| header(&message.properties, name);
        let body = String::from_utf8_lossy(&message.data).into_owned();
        let in_body = || serde_json::from_str::<Value>(&body).ok()?.get("id")?.as_str().map(str::to_owned);
        Self {
            // A message that the broker itself gave up has no reason of ours.
            reason: own(REASON_HEADER).or_else(|| own("x-first-death-reason")),
            lane: Lane::ALL.into_iter().find(|lane| lane.as_str() == message.routing_key.as_str()),
            job_id: own(JOB_ID_HEADER).or_else(in_body),
            message_id: message.properties.message_id().as_ref().map(ToString::to_string),
            attempts: own(ATTEMPT_HEADER),
            dead_since: own(DEAD_SINCE_HEADER).and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok()),
            body,
        }
    }

    /// Whether this is the id of the letter's job or message.
    pub(super) fn is(&self, id: &str) -> bool {
        self.job_id.as_deref() == Some(id) || self.message_id.as_deref() == Some(id)
    }

    /// How long it has been dead, where that is known.
    pub(super) fn age(&self) -> Option<Duration> {
        let since = self.dead_since?;
        Some(Duration::try_from(OffsetDateTime::now_utc() - since).unwrap_or_default())
    }

    /// The reason up to its first colon: what comes after it differs from letter to letter.
    pub(super) fn kind(&self) -> String {
        let reason = self.reason.as_deref().unwrap_or("without a reason");
        reason.split(':').next().unwrap_or_default().to_owned()
    }

    pub(super) fn row(&self) -> Map<String, Value> {
        let fields = [
            ("dead_since", json!(self.dead_since.and_then(|at| at.format(&Rfc3339).ok()))),
            ("reason", json!(self.reason)),
            ("lane", json!(self.lane)),
            ("attempts", json!(self.attempts)),
            ("job_id", json!(self.job_id)),
            ("message_id", json!(self.message_id)),
            ("body", json!(self.body.chars().take(SHOWN).collect::<String>())),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// All of a message, as JSON. Control characters come out escaped, whoever wrote them.
pub(super) fn whole(message: &Delivery) -> String {
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
    let whole = json!({
        "routing_key": message.routing_key.as_str(),
        "message_id": text(properties.message_id()),
        "correlation_id": text(properties.correlation_id()),
        "reply_to": text(properties.reply_to()),
        "content_type": text(properties.content_type()),
        "headers": headers,
        "body": body,
    });
    escaped(&serde_json::to_string_pretty(&whole).unwrap_or_default()).into_owned()
}

/// The message as it is sent back: as its sender wrote it, with the id it failed under, and without what was counted or
/// noted since.
pub(super) fn revived<'a>(message: &'a Delivery, exchange: &'a str, lane: Lane) -> Message<'a> {
    let mut headers = FieldTable::default();
    for (key, value) in message.properties.headers().iter().flat_map(|headers| headers.inner()) {
        if !is_note(key.as_str()) {
            headers.insert(key.clone(), value.clone());
        }
    }
    let properties: BasicProperties = message.properties.clone().with_headers(headers);
    Message { exchange, routing_key: lane.as_str(), payload: &message.data, properties }
}

/// Headers that tell of the first life: ours, and the broker's own record of its dead-lettering.
fn is_note(key: &str) -> bool {
    [REASON_HEADER, ATTEMPT_HEADER, DEAD_SINCE_HEADER, "x-death"].contains(&key)
        || key.starts_with("x-first-death-")
        || key.starts_with("x-last-death-")
}
