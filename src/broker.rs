//! RabbitMQ: connecting and requests with timeouts (here), the topology, publishing with confirms, and inspecting queues.
//!
//! lapin's own recovery is not used: it reports nothing, and deliveries of a dead connection keep arriving. The owner of a
//! connection replaces it.

mod acknowledge;
mod copies;
mod echo;
mod inspect;
mod message_size;
mod publisher;
mod replies;
mod topology;

use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ErrorKind};

use crate::certificates;
use crate::config::SecretUrl;
use crate::error_text::innermost_text;
use crate::telemetry::metrics;

pub use acknowledge::Acknowledger;
pub use copies::{copied_properties, is_added_by_broker};
pub use echo::Echo;
pub use inspect::{Fate, depth, header, header_json, visit_messages};
pub use message_size::{MAX_MESSAGE_BYTES, accepts_message_of};
pub use publisher::{Message, MessagePublisher, PublishError, Publisher};
pub use replies::{Reply, ReplyChannel};
pub use topology::{DELAY_QUEUES, Topology, delay_queue_index, hold_queue_index};

/// Longest wait for a connection, including TLS and login. Without a limit some failures hang for ever.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the response to one request.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between heartbeats. Without one for twice this time, the connection is lost.
const HEARTBEAT_INTERVAL_S: u16 = 10;

/// Why a message was dead-lettered.
pub const REASON_HEADER: &str = "x-pixwarden-reason";
/// The job id that a dead-lettered job failed under. A replay keeps it.
pub const JOB_ID_HEADER: &str = "x-pixwarden-job-id";
/// When a message was dead-lettered, as RFC 3339.
pub const DEAD_SINCE_HEADER: &str = "x-pixwarden-dead-since";
/// How many attempts at a job have failed.
pub const ATTEMPT_HEADER: &str = "x-pixwarden-attempt";
/// Set in a copy in a delay queue if a process had the original before and did not settle it.
pub const REDELIVERED_HEADER: &str = "x-pixwarden-redelivered";

/// Why a request to the broker failed. The texts hold the broker's own message, because a hint follows it; so lapin's error
/// is a field and not the source.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    #[error("not an AMQP URL: {url}: {reason}")]
    InvalidUrl { url: String, reason: String },
    /// The broker cannot be reached. It may come back.
    #[error("cannot connect to the broker at {url}: {}{}", innermost_text(error), unreachable_hint(error))]
    Unreachable {
        /// Without its password.
        url: String,
        error: lapin::Error,
    },
    #[error("cannot connect to the broker at {url}: no response within {} s{REACH_HINT}", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout {
        /// Without its password.
        url: String,
    },
    /// Retrying does not help.
    #[error("the broker at {url} refused the login: {}{}", message(error), login_hint(error))]
    LoginRefused {
        /// Without its password.
        url: String,
        error: lapin::Error,
    },
    #[error("the broker refused the request: {}\n  hint: docs/access.md lists the permissions that each command needs", message(.0))]
    Forbidden(lapin::Error),
    /// There is no such queue or exchange.
    #[error("not found: {}", message(.0))]
    NotFound(lapin::Error),
    #[error(
        "{} \"{}\" exists with another `{}`: the broker has {}, Pixwarden declares {}\n  hint: delete it once it is empty and unused, or choose another `prefix`",
        .0.kind, .0.name, .0.argument, .0.existing, .0.declared
    )]
    ArgumentMismatch(Box<ArgumentMismatch>),
    /// The broker does not accept what was sent, such as a message larger than it allows. Sending it again does not help.
    #[error("the broker refused what was sent: {}", message(.0))]
    PreconditionFailed(lapin::Error),
    #[error("the broker did not respond within {} s: {request}", RESPONSE_TIMEOUT.as_secs())]
    ResponseTimeout { request: &'static str },
    #[error("the consumer of {queue} received no message although {messages} messages wait")]
    ConsumerSilent { queue: String, messages: u32 },
    #[error("the broker cancelled the consumer")]
    ConsumerCancelled,
    #[error("the connection to the broker or a channel is closed")]
    ConnectionClosed,
    #[error("a request to the broker failed: {}", message(.0))]
    Protocol(lapin::Error),
}

/// A queue or exchange that exists with another argument than Pixwarden declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgumentMismatch {
    /// `queue` or `exchange`.
    pub kind: String,
    pub name: String,
    pub argument: String,
    pub existing: String,
    pub declared: String,
}

impl From<lapin::Error> for BrokerError {
    fn from(error: lapin::Error) -> Self {
        let ErrorKind::ProtocolError(amqp) = error.kind() else { return Self::Protocol(error) };
        match amqp.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::Forbidden(error),
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Self::NotFound(error),
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => {
                match ArgumentMismatch::parse(&amqp.get_message().to_string()) {
                    Some(mismatch) => Self::ArgumentMismatch(Box::new(mismatch)),
                    None => Self::PreconditionFailed(error),
                }
            }
            _ => Self::Protocol(error),
        }
    }
}

const REACH_HINT: &str = "\n  hint: check that RabbitMQ runs, and host and port in `queue`";

fn unreachable_hint(error: &lapin::Error) -> &'static str {
    match certificates::hint(error) {
        "" => REACH_HINT,
        hint => hint,
    }
}

/// RabbitMQ answers a wrong virtual host with another code than a wrong user or password.
fn login_hint(error: &lapin::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) if *amqp.kind() == AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
            "\n  hint: create the virtual host and give the user permissions on it, or correct its name in `queue` (\"/\" is written %2f)"
        }
        _ => "\n  hint: check user and password in `queue`; RabbitMQ accepts the user guest only from its own machine",
    }
}

/// The broker's own text, where there is one.
fn message(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) => amqp.get_message().to_string(),
        _ => error.to_string(),
    }
}

impl ArgumentMismatch {
    /// Parses `PRECONDITION_FAILED - inequivalent arg 'x' for queue 'q' in vhost '/': received … but current is …`. AMQP has
    /// no other form of this information.
    fn parse(message: &str) -> Option<Self> {
        let (_, rest) = message.split_once("inequivalent arg '")?;
        let (argument, rest) = rest.split_once("' for ")?;
        let (kind, rest) = rest.split_once(" '")?;
        let (name, rest) = rest.split_once("' in vhost ")?;
        let (_, values) = rest.split_once(": received ")?;
        let (declared, existing) = values.split_once(" but current is ")?;
        Some(Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
            argument: argument.to_owned(),
            existing: existing.to_owned(),
            declared: declared.to_owned(),
        })
    }
}

/// Connects to the broker. `name` is shown in the broker's list of connections.
///
/// # Errors
/// [`BrokerError::LoginRefused`] for a wrong login or virtual host, which retrying does not help.
pub async fn connect(url: &SecretUrl, name: &str) -> Result<Connection, BrokerError> {
    let mut uri: AMQPUri =
        url.expose().parse().map_err(|reason| BrokerError::InvalidUrl { url: url.to_string(), reason })?;
    let address = url.with_defaults(uri.authority.port, "%2f");
    uri.query.heartbeat.get_or_insert(HEARTBEAT_INTERVAL_S);
    let properties = ConnectionProperties::default().with_connection_name(format!("pixwarden {name}").into());
    match tokio::time::timeout(CONNECT_TIMEOUT, Connection::connect_uri(uri, properties)).await {
        Err(_) => Err(BrokerError::ConnectTimeout { url: address }),
        Ok(Ok(connection)) => {
            metrics::broker_connected(name);
            Ok(connection)
        }
        Ok(Err(error)) if error.is_amqp_error() => Err(BrokerError::LoginRefused { url: address, error }),
        Ok(Err(error)) => Err(BrokerError::Unreachable { url: address, error }),
    }
}

/// Runs one request with [`RESPONSE_TIMEOUT`]. `request` names it in the error.
///
/// # Errors
/// When the broker refuses the request, or does not respond in time.
pub async fn with_timeout<T>(
    request: &'static str,
    response: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match tokio::time::timeout(RESPONSE_TIMEOUT, response).await {
        Ok(response) => response.map_err(BrokerError::from),
        Err(_) => Err(BrokerError::ResponseTimeout { request }),
    }
}

/// A text as an AMQP value.
#[must_use]
pub fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn table(arguments: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        table.insert((*key).into(), value.clone());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_mismatch_names_queue_argument_and_both_values() {
        let words = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'pixwarden.delay.live.1s' in vhost '/': received the value '1000' of type 'signedint' but current is none";
        let expected = ArgumentMismatch {
            kind: "queue".into(),
            name: "pixwarden.delay.live.1s".into(),
            argument: "x-message-ttl".into(),
            existing: "none".into(),
            declared: "the value '1000' of type 'signedint'".into(),
        };
        assert_eq!(ArgumentMismatch::parse(words), Some(expected));
        assert_eq!(ArgumentMismatch::parse("PRECONDITION_FAILED - something else"), None);
    }
}
