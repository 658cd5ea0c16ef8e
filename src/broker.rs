//! RabbitMQ as the stages need it: a connection with deadlines (here), the topology, publishing that is only done when
//! the broker has confirmed and routed, and looking into queues.
//!
//! lapin is named here and in the stages that talk to the broker (`accept`, `publish`, `settle`). Its own recovery is
//! not used: it is silent, and deliveries of a dead connection keep arriving. Whoever owns a connection makes a new one.

mod echo;
mod look;
mod publisher;
mod topology;

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ErrorKind};

use crate::certificates;
use crate::config::SecretUrl;
use crate::telemetry::metrics;

pub use echo::Echo;
pub use look::{Fate, depth, header, peek, sift};
pub use publisher::{Message, PublishError, Publisher};
pub use topology::Topology;

/// Longest wait for a connection, TLS and login included; some failures otherwise hang for ever.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for an answer to one request.
pub const ANSWER: Duration = Duration::from_secs(10);
/// Seconds between heartbeats; the broker is given up after twice that.
const HEARTBEAT_S: u16 = 10;

/// Says why a message lies among the dead letters.
pub const REASON_HEADER: &str = "x-pixwarden-reason";
/// The id a dead-lettered job has failed under, where it was derived; kept by a replay.
pub const JOB_ID_HEADER: &str = "x-pixwarden-job-id";
/// Since when a message lies among the dead letters, as RFC 3339 has it.
pub const DEAD_SINCE_HEADER: &str = "x-pixwarden-dead-since";
/// How often a job has failed so far.
pub const ATTEMPT_HEADER: &str = "x-pixwarden-attempt";

/// What went wrong with the broker.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// Cannot be reached, or the connection was lost. It may pass.
    #[error("the broker at {url} cannot be reached: {error}")]
    Unreachable {
        /// Without its password.
        url: String,
        /// What the system says.
        error: String,
    },
    /// User, password or virtual host are not accepted.
    #[error(
        "the broker at {url} refuses us: {error}\n  hint: check user, password and virtual host (\"/\" is written %2f), and the user's permissions on it"
    )]
    Refused {
        /// Without its password.
        url: String,
        /// The broker's words.
        error: String,
    },
    /// The user may not do this.
    #[error("the broker: {0}\n  hint: which permissions each command needs is in docs/access.md")]
    Forbidden(String),
    /// A queue or exchange is there with another argument.
    #[error(
        "{kind} \"{name}\" is there with another `{argument}`: the broker has {existing}, Pixwarden declares {ours}\n  hint: delete it once it is empty and nobody uses it, or choose another `prefix`"
    )]
    Mismatch {
        /// `queue` or `exchange`.
        kind: String,
        /// Its name.
        name: String,
        /// The argument that differs.
        argument: String,
        /// As it is.
        existing: String,
        /// As it would have to be.
        ours: String,
    },
    /// A call that the broker did not answer in time.
    #[error("the broker did not answer within {} s: {what}", ANSWER.as_secs())]
    Silent {
        /// The request.
        what: &'static str,
    },
    /// Anything else the broker or the connection says.
    #[error("the broker: {0}")]
    Protocol(String),
}

/// Connects, with a deadline.
///
/// # Errors
/// [`BrokerError::Refused`] for a wrong login or virtual host, which does not pass by itself; else
/// [`BrokerError::Unreachable`].
pub async fn connect(url: &SecretUrl, name: &str) -> Result<Connection, BrokerError> {
    let unreachable = |error: String| BrokerError::Unreachable { url: url.to_string(), error };
    let mut uri: AMQPUri = url.expose().parse().map_err(|e: String| unreachable(format!("not an AMQP URL: {e}")))?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    let properties = ConnectionProperties::default().with_connection_name(format!("pixwarden {name}").into());
    match tokio::time::timeout(CONNECT, Connection::connect_uri(uri, properties)).await {
        Err(_) => Err(unreachable(format!("no answer within {} s", CONNECT.as_secs()))),
        Ok(Ok(connection)) => {
            metrics::connected(name);
            Ok(connection)
        }
        Ok(Err(e)) => Err(match e.kind() {
            ErrorKind::ProtocolError(amqp) => {
                BrokerError::Refused { url: url.to_string(), error: amqp.get_message().to_string() }
            }
            _ => {
                let words = e.to_string();
                let hint = certificates::hint(&e);
                unreachable(words + hint)
            }
        }),
    }
}

/// Runs one request with a deadline.
///
/// # Errors
/// What lapin says, or that nothing was said.
pub async fn answered<T>(
    what: &'static str,
    request: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match tokio::time::timeout(ANSWER, request).await {
        Ok(answer) => answer.map_err(|e| explain(&e)),
        Err(_) => Err(BrokerError::Silent { what }),
    }
}

fn explain(error: &lapin::Error) -> BrokerError {
    let words = match error.kind() {
        ErrorKind::ProtocolError(amqp) => amqp.get_message().to_string(),
        _ => error.to_string(),
    };
    if words.starts_with("ACCESS_REFUSED") {
        return BrokerError::Forbidden(words);
    }
    mismatch(&words).unwrap_or(BrokerError::Protocol(words))
}

/// Reads `PRECONDITION_FAILED - inequivalent arg 'x' for queue 'q' in vhost '/': received … but current is …`.
fn mismatch(words: &str) -> Option<BrokerError> {
    let (_, rest) = words.split_once("inequivalent arg '")?;
    let (argument, rest) = rest.split_once("' for ")?;
    let (kind, rest) = rest.split_once(" '")?;
    let (name, rest) = rest.split_once("' in vhost ")?;
    let (_, values) = rest.split_once(": received ")?;
    let (ours, existing) = values.split_once(" but current is ")?;
    let own = str::to_owned;
    Some(BrokerError::Mismatch {
        kind: own(kind),
        name: own(name),
        argument: own(argument),
        existing: own(existing),
        ours: own(ours),
    })
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
    fn a_queue_with_other_arguments_is_told_by_queue_argument_and_both_values() {
        let words = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'pixwarden.delay.live.1s' in vhost '/': received the value '1000' of type 'signedint' but current is none";
        let Some(BrokerError::Mismatch { kind, name, argument, existing, ours }) = mismatch(words) else { panic!() };
        assert_eq!(
            (kind.as_str(), name.as_str(), argument.as_str()),
            ("queue", "pixwarden.delay.live.1s", "x-message-ttl")
        );
        assert_eq!((ours.as_str(), existing.as_str()), ("the value '1000' of type 'signedint'", "none"));
        assert!(mismatch("NOT_FOUND - no queue 'x' in vhost '/'").is_none());
    }
}
