//! RabbitMQ as the stages need it: a connection with deadlines, the topology, and publishing that is only done when the
//! broker has confirmed and routed.
//!
//! lapin is named here and in the stages that talk to the broker (`accept`, `publish`, `settle`). Its own recovery is
//! not used: it is silent, and deliveries of a dead connection keep arriving. Whoever owns a connection makes a new one.

use std::time::{Duration, Instant};

use lapin::message::{BasicReturnMessage, Delivery};
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use tokio::sync::{Mutex, Semaphore};

use crate::config::SecretUrl;
use crate::job::{Lane, Outcome};
use crate::retry::{Pauses, RUNGS};

/// Longest wait for a connection, TLS and login included; some failures otherwise hang for ever.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for an answer to one request.
pub const ANSWER: Duration = Duration::from_secs(10);
/// Seconds between heartbeats; the broker is given up after twice that.
const HEARTBEAT_S: u16 = 10;
/// An absent limit means 20 on new brokers, and -1 drops messages on old ones: so a number that is never reached.
const DELIVERY_LIMIT: i32 = 1_000_000_000;

/// Says why a message lies among the dead letters.
pub const REASON_HEADER: &str = "x-pixwarden-reason";
/// The id a dead-lettered job has failed under, where it was derived; kept by a replay.
pub const JOB_ID_HEADER: &str = "x-pixwarden-job-id";
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

/// Why a message did not arrive.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound where it was sent.
    #[error("no queue is bound for \"{routing_key}\" at \"{exchange}\" ({reply})")]
    Unroutable {
        /// Where it was sent.
        exchange: String,
        /// With which key.
        routing_key: String,
        /// The broker's words.
        reply: String,
    },
    /// The broker did not take it, for example as a queue is full.
    #[error("the broker did not take the message")]
    Nacked,
    /// The name of an exchange or queue is longer than the protocol allows.
    #[error("the name of an exchange, a queue or a key is longer than 255 bytes")]
    Name,
    /// The connection.
    #[error(transparent)]
    Broker(#[from] BrokerError),
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
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(e)) => Err(match e.kind() {
            ErrorKind::ProtocolError(amqp) => {
                BrokerError::Refused { url: url.to_string(), error: amqp.get_message().to_string() }
            }
            _ => unreachable(e.to_string()),
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

/// The names of everything Pixwarden declares, and their arguments, valid on RabbitMQ 3.10 and 4.x.
#[derive(Debug, Clone)]
pub struct Topology {
    prefix: String,
    default_queue: bool,
}

impl Topology {
    /// Names below a prefix; `default_queue` also declares `PREFIX.flagged`.
    #[must_use]
    pub fn new(prefix: &str, default_queue: bool) -> Self {
        Self { prefix: prefix.to_owned(), default_queue }
    }

    /// Where jobs are published, with the lane as the routing key.
    #[must_use]
    pub fn jobs(&self) -> String {
        format!("{}.jobs", self.prefix)
    }

    /// The queue of a lane.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> String {
        format!("{}.jobs.{lane}", self.prefix)
    }

    /// The queue in which a job of a lane waits for its next attempt.
    #[must_use]
    pub fn delay(&self, lane: Lane, rung: usize) -> String {
        format!("{}.delay.{lane}.{}", self.prefix, RUNGS[rung].0)
    }

    /// The exchange and the queue of dead letters.
    #[must_use]
    pub fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// Where events are published, with the outcome's routing key.
    #[must_use]
    pub fn events(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// The queue that keeps flags until somebody listens.
    #[must_use]
    pub fn flagged(&self) -> String {
        format!("{}.flagged", self.prefix)
    }

    /// Whether a queue is one of ours, where no reply may go.
    #[must_use]
    pub fn owns(&self, queue: &str) -> bool {
        queue.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Declares everything. Declaring again what is there already changes nothing.
    ///
    /// # Errors
    /// [`BrokerError::Mismatch`] where something is there with other arguments.
    pub async fn declare(&self, connection: &Connection) -> Result<(), BrokerError> {
        let channel = answered("opening a channel", connection.create_channel()).await?;
        let dead = self.dead();
        self.exchange(&channel, &dead, ExchangeKind::Fanout, &[]).await?;
        self.queue(&channel, &dead, &[]).await?;
        self.bind(&channel, &dead, &dead, "").await?;

        self.exchange(&channel, &self.jobs(), ExchangeKind::Direct, &[("alternate-exchange", text(&dead))]).await?;
        for lane in Lane::ALL {
            // At-least-once, so that not even a dead letter is lost; it demands reject-publish.
            let arguments = [
                ("x-dead-letter-exchange", text(&dead)),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
            ];
            self.queue(&channel, &self.lane(lane), &arguments).await?;
            self.bind(&channel, &self.lane(lane), &self.jobs(), lane.as_str()).await?;
            for (rung, (_, delay)) in RUNGS.iter().enumerate() {
                let delay = i32::try_from(delay.as_millis()).unwrap_or(i32::MAX);
                // The time is the queue's: a message's own would block at the queue's head.
                let arguments = [
                    ("x-message-ttl", AMQPValue::LongInt(delay)),
                    ("x-dead-letter-exchange", text(&self.jobs())),
                    ("x-dead-letter-routing-key", text(lane.as_str())),
                    ("x-dead-letter-strategy", text("at-least-once")),
                    ("x-overflow", text("reject-publish")),
                ];
                self.queue(&channel, &self.delay(lane, rung), &arguments).await?;
            }
        }

        self.exchange(&channel, &self.events(), ExchangeKind::Topic, &[]).await?;
        if self.default_queue {
            self.queue(&channel, &self.flagged(), &[]).await?;
            for outcome in [Outcome::Flagged, Outcome::Review] {
                self.bind(&channel, &self.flagged(), &self.events(), outcome.routing_key()).await?;
            }
        }
        answered("closing a channel", channel.close(200, "declared".into())).await
    }

    async fn exchange(
        &self,
        channel: &Channel,
        name: &str,
        kind: ExchangeKind,
        arguments: &[(&str, AMQPValue)],
    ) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        answered("declaring an exchange", channel.exchange_declare(name.into(), kind, options, table(arguments))).await
    }

    /// A quorum queue with an explicit delivery limit.
    async fn queue(&self, channel: &Channel, name: &str, arguments: &[(&str, AMQPValue)]) -> Result<(), BrokerError> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut table = table(arguments);
        table.insert("x-queue-type".into(), text("quorum"));
        table.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
        answered("declaring a queue", channel.queue_declare(name.into(), options, table)).await.map(drop)
    }

    async fn bind(&self, channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), BrokerError> {
        let options = QueueBindOptions::default();
        let request = channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
        answered("binding a queue", request).await
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

/// Messages in a queue, and its consumers; `None` when there is no such queue.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn depth(connection: &Connection, queue: &str) -> Result<Option<(u32, u32)>, BrokerError> {
    let channel = answered("opening a channel", connection.create_channel()).await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match answered("asking for a queue", channel.queue_declare(queue.into(), options, FieldTable::default())).await {
        Ok(queue) => {
            answered("closing a channel", channel.close(200, "asked".into())).await?;
            Ok(Some((queue.message_count(), queue.consumer_count())))
        }
        Err(BrokerError::Protocol(words)) if words.starts_with("NOT_FOUND") => Ok(None),
        Err(e) => Err(e),
    }
}

/// One message to be published.
pub struct Message<'a> {
    /// The exchange; empty means straight to the queue named by the key.
    pub exchange: &'a str,
    /// The routing key, or the queue's name.
    pub routing_key: &'a str,
    /// The body.
    pub payload: &'a [u8],
    /// Headers and the rest; delivery mode 2 is set here.
    pub properties: BasicProperties,
}

/// Publishes with confirms and `mandatory`, on a connection of its own: a broker in alarm stops reading from
/// connections that publish, and acknowledgements must not wait behind that.
///
/// Each channel has one unconfirmed message at a time. lapin gives a returned message to whatever confirm comes next on
/// its channel, and the broker confirms many at once: with more in flight a lost event would be taken for published,
/// and a published copy for lost. Many channels make up for it.
pub struct Publisher {
    url: SecretUrl,
    name: &'static str,
    room: Semaphore,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    /// Channels of this connection that nobody publishes on now.
    idle: Vec<Channel>,
    /// Which connection this is, so that a late failure on an old one does not close a new one.
    generation: u64,
    pauses: Pauses,
    failed: Option<(Instant, BrokerError)>,
}

impl Publisher {
    /// Connects on first use, and again after a loss; up to `channels` messages are on their way at a time.
    #[must_use]
    pub fn new(url: SecretUrl, name: &'static str, channels: usize) -> Self {
        Self { url, name, room: Semaphore::new(channels.max(1)), link: Mutex::default() }
    }

    /// Publishes one message and waits until the broker has taken responsibility for it.
    ///
    /// # Errors
    /// When it was returned, refused, or not confirmed in time; it may have arrived nevertheless.
    pub async fn publish(&self, message: Message<'_>) -> Result<(), PublishError> {
        let name = |name: &str| ShortString::try_new(name).map_err(|_| PublishError::Name);
        let (exchange, routing_key) = (name(message.exchange)?, name(message.routing_key)?);
        let _place = self.room.acquire().await;
        let (generation, channel) = self.check_out().await?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = message.properties.with_delivery_mode(2);
        let confirmed = answered("confirming a message", async {
            channel.basic_publish(exchange, routing_key, options, message.payload, properties).await?.await
        });
        let confirmation = match confirmed.await {
            Ok(confirmation) => confirmation,
            Err(e) => {
                // A confirm that never came leaves a connection nobody can trust.
                self.drop_link(generation).await;
                return Err(e.into());
            }
        };
        self.check_in(generation, channel).await;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            // Confirmed and returned: the broker has dropped it.
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                Err(unroutable(message.exchange, &returned))
            }
            Confirmation::Nack(None) | Confirmation::NotRequested => Err(PublishError::Nacked),
        }
    }

    /// Connects if there is no connection, and says whether there is one now.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ready(&self) -> Result<(), BrokerError> {
        let (generation, channel) = self.check_out().await?;
        self.check_in(generation, channel).await;
        Ok(())
    }

    /// Closes the connection, if there is one.
    pub async fn close(&self) {
        if let Some(connection) = self.link.lock().await.connection.take()
            && let Err(e) = answered("closing", connection.close(200, "done".into())).await
        {
            tracing::debug!(error = %e, "closing the publishing connection failed");
        }
    }

    async fn check_out(&self) -> Result<(u64, Channel), BrokerError> {
        let mut link = self.link.lock().await;
        let link = &mut *link;
        while let Some(channel) = link.idle.pop() {
            if channel.status().connected() {
                return Ok((link.generation, channel));
            }
        }
        if let Some(connection) = link.connection.take_if(|connection| !connection.status().connected()) {
            drop(connection);
        }
        if let Some(connection) = &link.connection {
            return Ok((link.generation, confirming(connection).await?));
        }
        // While the broker is away, everybody is told at once instead of queueing for a connection.
        if let Some((until, error)) = &link.failed
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let opened = match connect(&self.url, self.name).await {
            Ok(connection) => confirming(&connection).await.map(|channel| (connection, channel)),
            Err(e) => Err(e),
        };
        match opened {
            Ok((connection, channel)) => {
                link.pauses.reset();
                link.failed = None;
                link.generation += 1;
                link.connection = Some(connection);
                Ok((link.generation, channel))
            }
            Err(e) => {
                link.failed = Some((Instant::now() + link.pauses.longer(), e.clone()));
                Err(e)
            }
        }
    }

    async fn check_in(&self, generation: u64, channel: Channel) {
        let mut link = self.link.lock().await;
        if link.generation == generation {
            link.idle.push(channel);
        }
    }

    /// Forgets a connection, unless it has been replaced already.
    async fn drop_link(&self, generation: u64) {
        let mut link = self.link.lock().await;
        if link.generation != generation {
            return;
        }
        link.idle.clear();
        if let Some(connection) = link.connection.take() {
            // A silent broker would let this wait; nobody needs its answer.
            drop(tokio::spawn(async move {
                if let Err(e) = answered("closing", connection.close(320, "lost".into())).await {
                    tracing::debug!(error = %e, "closing a lost connection failed");
                }
            }));
        }
    }
}

async fn confirming(connection: &Connection) -> Result<Channel, BrokerError> {
    let channel = answered("opening a channel", connection.create_channel()).await?;
    answered("turning on confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// Messages of a queue, for looking only: none is acknowledged, and all go back when the connection is closed.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn peek(connection: &Connection, queue: &str, limit: usize) -> Result<(Vec<Delivery>, u32), BrokerError> {
    let channel = answered("opening a channel", connection.create_channel()).await?;
    let (mut seen, mut left) = (Vec::new(), 0);
    while seen.len() < limit {
        let got = answered("getting a message", channel.basic_get(queue.into(), BasicGetOptions::default()));
        let Some(message) = got.await? else { break };
        left = message.message_count;
        seen.push(message.delivery);
    }
    // Closed, so that every message is back before anybody looks again.
    answered("closing a channel", channel.close(200, "looked".into())).await?;
    Ok((seen, left))
}

/// A header as text or number.
#[must_use]
pub fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        AMQPValue::LongUInt(n) => Some(n.to_string()),
        AMQPValue::LongInt(n) => Some(n.to_string()),
        AMQPValue::LongLongInt(n) => Some(n.to_string()),
        _ => None,
    }
}

fn unroutable(exchange: &str, returned: &BasicReturnMessage) -> PublishError {
    PublishError::Unroutable {
        exchange: exchange.to_owned(),
        routing_key: returned.routing_key.to_string(),
        reply: returned.reply_text.to_string(),
    }
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

    #[test]
    fn our_own_queues_are_known_and_others_are_not() {
        let topology = Topology::new("pixwarden", true);
        for own in ["pixwarden", "pixwarden.jobs.live", "pixwarden.dead"] {
            assert!(topology.owns(own), "{own}");
        }
        for other in ["pixwardens", "replies", "x.pixwarden.jobs"] {
            assert!(!topology.owns(other), "{other}");
        }
    }
}
