//! One dead letter: its fields, its position, its JSON form, and the message that is sent back.

use std::collections::HashMap;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::ShortString;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::broker::{
    ATTEMPT_HEADER, DEAD_SINCE_HEADER, JOB_ID_HEADER, Message, REASON_HEADER, copied_properties, header, header_json,
    is_added_by_broker,
};
use crate::canonical;
use crate::escape::escape_late_controls;
use crate::job::Lane;

/// Characters of the body in a row.
const MAX_BODY_CHARS: usize = 400;
/// Hexadecimal digits of a position. With 100,000 dead letters, two share their digits once in 56,000 cases.
const POSITION_DIGITS: usize = 12;

/// A message of the queue of dead letters.
pub(super) struct LetterMessage<'a> {
    exchange: &'a str,
    routing_key: &'a str,
    properties: &'a BasicProperties,
    data: &'a [u8],
}

impl<'a> LetterMessage<'a> {
    pub(super) fn of(delivery: &'a Delivery) -> Self {
        Self {
            exchange: delivery.exchange.as_str(),
            routing_key: delivery.routing_key.as_str(),
            properties: &delivery.properties,
            data: &delivery.data,
        }
    }
}

pub(crate) struct DeadLetter {
    /// See [`Positions`].
    position: String,
    pub(super) reason: Option<String>,
    /// `None` where the routing key is not a lane: the message was published to a lane that does not exist.
    pub(super) lane: Option<Lane>,
    job_id: Option<String>,
    message_id: Option<String>,
    failed_attempts: Option<u32>,
    dead_since: Option<OffsetDateTime>,
    body: String,
}

impl DeadLetter {
    /// `jobs` is the exchange of jobs.
    pub(super) fn of(message: &LetterMessage<'_>, position: String, jobs: &str) -> Self {
        let own = |name: &str| header(message.properties, name);
        let body = String::from_utf8_lossy(message.data).into_owned();
        let in_body = || serde_json::from_str::<Value>(&body).ok()?.get("id")?.as_str().map(str::to_owned);
        Self {
            position,
            reason: reason(message, jobs),
            lane: lane(message),
            job_id: own(JOB_ID_HEADER).or_else(in_body),
            message_id: message.properties.message_id().as_ref().map(ToString::to_string),
            failed_attempts: own(ATTEMPT_HEADER).and_then(|count| count.parse().ok()),
            dead_since: own(DEAD_SINCE_HEADER).and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok()),
            body,
        }
    }

    /// Whether `id` is the id of the job or of the message, or the position.
    pub(super) fn is_called(&self, id: &str) -> bool {
        [self.job_id.as_deref(), self.message_id.as_deref(), Some(&self.position)].contains(&Some(id))
    }

    /// What dead letters are ordered by. No two are equal.
    pub(super) fn order(&self) -> (Option<OffsetDateTime>, String) {
        (self.dead_since, self.position.clone())
    }

    /// How long the letter has been dead, where the message says so.
    pub(super) fn age(&self) -> Option<Duration> {
        let since = self.dead_since?;
        Some(Duration::try_from(OffsetDateTime::now_utc() - since).unwrap_or_default())
    }

    pub(crate) fn row(&self) -> Map<String, Value> {
        let fields = [
            ("position", json!(self.position)),
            ("dead_since", json!(self.dead_since.and_then(|at| at.format(&Rfc3339).ok()))),
            ("reason", json!(self.reason)),
            ("lane", json!(self.lane)),
            ("attempts", json!(self.failed_attempts)),
            ("job_id", json!(self.job_id)),
            ("message_id", json!(self.message_id)),
            ("body", json!(self.body.chars().take(MAX_BODY_CHARS).collect::<String>())),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

fn lane(message: &LetterMessage<'_>) -> Option<Lane> {
    Lane::ALL.into_iter().find(|lane| lane.as_str() == message.routing_key)
}

/// Why a message is a dead letter.
fn reason(message: &LetterMessage<'_>, jobs: &str) -> Option<String> {
    let own = |name: &str| header(message.properties, name);
    // Still at the exchange of jobs: no worker has had it. The broker sent it to the alternate exchange, and added nothing.
    if message.exchange == jobs {
        let key = message.routing_key;
        return Some(match lane(message) {
            None => format!("no lane \"{key}\": a job's routing key is {} or {}", Lane::Live, Lane::Backfill),
            Some(lane) => format!("no queue was bound for the lane \"{lane}\""),
        });
    }
    own(REASON_HEADER).or_else(|| {
        let cause = own("x-first-death-reason")?;
        let queue = own("x-first-death-queue").unwrap_or_default();
        Some(format!("the broker dead-lettered it from the queue \"{queue}\": {cause}"))
    })
}

/// Gives each dead letter a position: a name that stays the same while the letter is in the queue.
///
/// A letter's place in the queue is no such name. What was read and returned to a quorum queue comes back in another order,
/// and a place would move to another letter when an earlier one is removed. So the position is made from the message
/// itself. Letters that are equal in everything are numbered.
#[derive(Default)]
pub(super) struct Positions(HashMap<String, u32>);

impl Positions {
    /// The position of the next message of the queue.
    pub(super) fn next(&mut self, message: &LetterMessage<'_>) -> String {
        let name = fingerprint(message);
        let count = self.0.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 { name } else { format!("{name}-{count}") }
    }
}

/// A digest of all that stays the same when a message is read and returned.
fn fingerprint(message: &LetterMessage<'_>) -> String {
    let properties = message.properties;
    let mut headers = headers(message);
    // The broker counts how often it has delivered the message.
    headers.retain(|key, _| !is_added_by_broker(key));
    let digested = json!({
        "body_sha256": hex::encode(Sha256::digest(message.data)),
        "content_encoding": text(properties.content_encoding()),
        "content_type": text(properties.content_type()),
        "correlation_id": text(properties.correlation_id()),
        "exchange": message.exchange,
        "headers": headers,
        "message_id": text(properties.message_id()),
        "reply_to": text(properties.reply_to()),
        "routing_key": message.routing_key,
        "timestamp": properties.timestamp(),
        "version": 1,
    });
    let mut digest = canonical::sha256(&canonical::text(&digested));
    digest.truncate(POSITION_DIGITS);
    digest
}

fn headers(message: &LetterMessage<'_>) -> Map<String, Value> {
    let headers = message.properties.headers().iter().flat_map(|headers| headers.inner());
    headers.map(|(key, value)| (key.to_string(), header_json(value))).collect()
}

fn text(value: &Option<ShortString>) -> Value {
    json!(value.as_ref().map(ShortString::as_str))
}

/// The whole message as JSON. Control characters are escaped, since the content is untrusted.
pub(super) fn as_json(message: &LetterMessage<'_>, letter: &DeadLetter) -> String {
    let properties = message.properties;
    let body = match std::str::from_utf8(message.data) {
        Ok(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Err(_) => json!({"not_utf8_hex": hex::encode(message.data)}),
    };
    let message = json!({
        "position": letter.position,
        "reason": letter.reason,
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "message_id": text(properties.message_id()),
        "correlation_id": text(properties.correlation_id()),
        "reply_to": text(properties.reply_to()),
        "content_type": text(properties.content_type()),
        "content_encoding": text(properties.content_encoding()),
        "headers": headers(message),
        "body": body,
    });
    escape_late_controls(&serde_json::to_string_pretty(&message).unwrap_or_default()).into_owned()
}

/// The message that is sent back: as its sender published it, with the job id it failed under, and without what was added
/// since.
pub(super) fn revived<'a>(message: &LetterMessage<'a>, exchange: &'a str, lane: Lane) -> Message<'a> {
    let properties = copied_properties(message.properties, &[]);
    Message { exchange, routing_key: lane.as_str(), payload: message.data, properties }
}

#[cfg(test)]
mod tests {
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;

    fn properties(headers: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (key, value) in headers {
            table.insert((*key).into(), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    fn text(value: &str) -> AMQPValue {
        AMQPValue::LongString(value.into())
    }

    fn letter(exchange: &str, routing_key: &str, properties: &BasicProperties) -> DeadLetter {
        let message = LetterMessage { exchange, routing_key, properties, data: b"{}" };
        DeadLetter::of(&message, "here".into(), "pixwarden.jobs")
    }

    #[test]
    fn the_reason_is_the_workers_or_the_brokers_or_an_unknown_lane() {
        let death = [("x-first-death-reason", text("expired")), ("x-first-death-queue", text("q"))];
        let worker = [(REASON_HEADER, text("id_conflict: why")), death[0].clone(), death[1].clone()];
        for (exchange, key, headers, expected) in [
            ("pixwarden.dead", "live", &worker[..], Some("id_conflict: why")),
            ("pixwarden.dead", "live", &death[..], Some("the broker dead-lettered it from the queue \"q\": expired")),
            (
                "pixwarden.jobs",
                "uploads",
                &[][..],
                Some("no lane \"uploads\": a job's routing key is live or backfill"),
            ),
            // It was in another queue before, and that is not why it is here.
            ("pixwarden.jobs", "", &death[..], Some("no lane \"\": a job's routing key is live or backfill")),
            ("pixwarden.jobs", "live", &[][..], Some("no queue was bound for the lane \"live\"")),
            ("", "pixwarden.dead", &[][..], None),
        ] {
            assert_eq!(letter(exchange, key, &properties(headers)).reason.as_deref(), expected, "{exchange} {key}");
        }
    }

    #[test]
    fn a_position_depends_on_the_message_and_on_nothing_that_reading_changes() {
        let position = |properties: &BasicProperties, data: &[u8]| {
            let message = LetterMessage { exchange: "e", routing_key: "live", properties, data };
            Positions::default().next(&message)
        };
        let first = position(&properties(&[(REASON_HEADER, text("why"))]), b"a");
        // People write positions down.
        assert_eq!(first, "d1793dd930b3");
        let delivered = properties(&[(REASON_HEADER, text("why")), ("x-delivery-count", AMQPValue::LongLongInt(3))]);
        assert_eq!(first, position(&delivered, b"a"));
        assert_ne!(first, position(&properties(&[(REASON_HEADER, text("why"))]), b"b"));
        assert_ne!(first, position(&properties(&[(REASON_HEADER, text("other"))]), b"a"));

        let mut positions = Positions::default();
        let same = properties(&[]);
        let message = LetterMessage { exchange: "e", routing_key: "live", properties: &same, data: b"a" };
        let (one, two) = (positions.next(&message), positions.next(&message));
        assert_eq!(two, format!("{one}-2"), "equal letters are numbered");
    }

    #[test]
    fn a_letter_is_found_by_job_id_message_id_and_position() {
        let by_message = properties(&[(JOB_ID_HEADER, text("job-1"))]).with_message_id("m".into());
        let letter = letter("pixwarden.dead", "live", &by_message);
        assert!(["job-1", "m", "here"].iter().all(|id| letter.is_called(id)) && !letter.is_called("other"));
    }

    #[test]
    fn attempts_are_a_number_and_nested_headers_are_shown() {
        let death = AMQPValue::FieldArray(
            vec![AMQPValue::FieldTable(properties(&[("queue", text("q"))]).headers().clone().unwrap())].into(),
        );
        let properties = properties(&[(ATTEMPT_HEADER, AMQPValue::LongUInt(5)), ("x-death", death)]);
        let message =
            LetterMessage { exchange: "pixwarden.dead", routing_key: "live", properties: &properties, data: b"{}" };
        let letter = DeadLetter::of(&message, "here".into(), "pixwarden.jobs");
        assert_eq!(letter.row()["attempts"], json!(5));
        let shown: Value = serde_json::from_str(&as_json(&message, &letter)).unwrap();
        assert_eq!(shown["headers"]["x-death"], json!([{"queue": "q"}]));
        assert_eq!(shown["position"], "here");
    }

    #[test]
    fn a_replayed_letter_has_nothing_that_the_broker_would_refuse_or_route_elsewhere() {
        let headers = [("CC", text("pixwarden.flagged")), (REASON_HEADER, text("why")), (JOB_ID_HEADER, text("job-1"))];
        let properties = properties(&headers).with_user_id("sender".into()).with_expiration("1".into());
        let message =
            LetterMessage { exchange: "pixwarden.dead", routing_key: "live", properties: &properties, data: b"{}" };
        let revived = revived(&message, "pixwarden.jobs", Lane::Live).properties;
        assert_eq!((revived.user_id(), revived.expiration()), (&None, &None));
        let kept: Vec<_> = revived.headers().as_ref().unwrap().inner().keys().map(ToString::to_string).collect();
        assert_eq!(kept, [JOB_ID_HEADER]);
    }
}
