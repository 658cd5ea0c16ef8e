//! The exchanges and queues Pixwarden declares.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

use super::{BrokerError, depth, table, text, with_timeout};
use crate::job::{Lane, Outcome};
use crate::retry;

/// A limit that is never reached. New brokers use 20 where none is set, and old ones drop messages at -1.
const DELIVERY_LIMIT: i32 = 1_000_000_000;

/// The delay queues of a lane, shortest first: the suffix of the queue's name, and how long a message stays in it.
pub const DELAY_QUEUES: [(&str, Duration); 5] = [
    ("1s", Duration::from_secs(1)),
    ("5s", Duration::from_secs(5)),
    ("30s", Duration::from_secs(30)),
    ("2m", Duration::from_secs(120)),
    ("10m", Duration::from_secs(600)),
];

/// The delay queue for a job after `failed_attempts` attempts (1 or more). The delay grows exponentially, with jitter, so
/// that jobs which failed together do not return together.
#[must_use]
pub fn delay_queue_index(failed_attempts: u32) -> usize {
    let longest = DELAY_QUEUES[DELAY_QUEUES.len() - 1].1;
    let wanted = retry::jittered_delay(failed_attempts, longest);
    DELAY_QUEUES.iter().rposition(|(_, delay)| *delay <= wanted.mul_f64(1.5)).unwrap_or(0)
}

/// The delay queue for a job whose store or bucket has been broken for `outage`. A short outage delays a job by seconds. In
/// a long one the jobs must not circulate all the time.
#[must_use]
pub fn hold_queue_index(outage: Duration) -> usize {
    match outage.as_secs() {
        0..5 => 0,
        5..60 => 1,
        60..600 => 2,
        _ => 3,
    }
}

/// The most bytes in a default queue for events. A queue without consumers must not fill the broker's disk: what does not fit
/// is rejected, and waits in the outbox. An event has one to two kilobytes.
const MAX_EVENT_QUEUE_BYTES: i32 = 1 << 30;

/// The names and arguments of everything that Pixwarden declares. They are valid on RabbitMQ 3.10 and 4.x.
#[derive(Debug, Clone)]
pub struct Topology {
    prefix: String,
    default_queue: bool,
}

impl Topology {
    /// `prefix` begins all names. `default_queue` also declares the default queues for events.
    #[must_use]
    pub fn new(prefix: &str, default_queue: bool) -> Self {
        Self { prefix: prefix.to_owned(), default_queue }
    }

    /// The exchange of jobs. The routing key is the lane.
    #[must_use]
    pub fn jobs(&self) -> String {
        format!("{}.jobs", self.prefix)
    }

    /// The queue of a lane.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> String {
        format!("{}.jobs.{lane}", self.prefix)
    }

    /// The queue in which a job waits for its next attempt.
    #[must_use]
    pub fn delay(&self, lane: Lane, index: usize) -> String {
        format!("{}.delay.{lane}.{}", self.prefix, DELAY_QUEUES[index].0)
    }

    /// The exchange and the queue of dead letters.
    #[must_use]
    pub fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// The exchange of events. The routing key is the outcome's.
    #[must_use]
    pub fn events(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// The queue that keeps flagged and review events until a consumer takes them.
    #[must_use]
    pub fn flagged(&self) -> String {
        format!("{}.flagged", self.prefix)
    }

    /// The queue that keeps the events of images that could not be screened until a consumer takes them.
    #[must_use]
    pub fn unscreened(&self) -> String {
        format!("{}.unscreened", self.prefix)
    }

    /// The queue that keeps events which add to an outcome or take it back, until a consumer takes them.
    #[must_use]
    pub fn updates(&self) -> String {
        format!("{}.updates", self.prefix)
    }

    /// The default queues for events, each with the routing keys that are bound to it.
    fn event_queues(&self) -> [(String, Vec<&'static str>); 3] {
        [
            (self.flagged(), vec![Outcome::Flagged.routing_key(), Outcome::Review.routing_key()]),
            (self.unscreened(), vec![Outcome::Failed.routing_key()]),
            (self.updates(), vec!["image.noted", "image.cleared"]),
        ]
    }

    /// Whether Pixwarden owns a queue. No reply may be sent to such a queue.
    #[must_use]
    pub fn owns(&self, queue: &str) -> bool {
        queue.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Declares everything. Declaring what exists already changes nothing.
    ///
    /// # Errors
    /// [`BrokerError::ArgumentMismatch`] where something exists with other arguments.
    pub async fn declare(&self, connection: &Connection) -> Result<(), BrokerError> {
        let channel = with_timeout("opening a channel", connection.create_channel()).await?;
        let dead = self.dead();
        self.exchange(&channel, &dead, ExchangeKind::Fanout, &[]).await?;
        self.queue(&channel, &dead, &[]).await?;
        self.bind(&channel, &dead, &dead, "").await?;

        self.exchange(&channel, &self.jobs(), ExchangeKind::Direct, &[("alternate-exchange", text(&dead))]).await?;
        for lane in Lane::ALL {
            // At-least-once, so that no dead letter is lost. It needs reject-publish.
            let arguments = [
                ("x-dead-letter-exchange", text(&dead)),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
            ];
            self.queue(&channel, &self.lane(lane), &arguments).await?;
            self.bind(&channel, &self.lane(lane), &self.jobs(), lane.as_str()).await?;
            for (index, (_, delay)) in DELAY_QUEUES.iter().enumerate() {
                let delay = i32::try_from(delay.as_millis()).unwrap_or(i32::MAX);
                // The time is set on the queue: a message with its own, longer time would block the head of the queue.
                let arguments = [
                    ("x-message-ttl", AMQPValue::LongInt(delay)),
                    ("x-dead-letter-exchange", text(&self.jobs())),
                    ("x-dead-letter-routing-key", text(lane.as_str())),
                    ("x-dead-letter-strategy", text("at-least-once")),
                    ("x-overflow", text("reject-publish")),
                ];
                self.queue(&channel, &self.delay(lane, index), &arguments).await?;
            }
        }

        self.exchange(&channel, &self.events(), ExchangeKind::Topic, &[]).await?;
        let mut channel = channel;
        if self.default_queue {
            for (queue, keys) in self.event_queues() {
                channel = self.event_queue(connection, channel, &queue).await?;
                for key in keys {
                    self.bind(&channel, &queue, &self.events(), key).await?;
                }
            }
        }
        with_timeout("closing a channel", channel.close(200, "declared".into())).await
    }

    /// Declares everything unless `queue` exists. A user that only publishes or inspects queues then needs no permission to
    /// declare once the first worker has run: a passive declaration needs none.
    ///
    /// # Errors
    /// As [`Topology::declare`].
    pub async fn ensure(&self, connection: &Connection, queue: &str) -> Result<(), BrokerError> {
        match depth(connection, queue).await? {
            Some(_) => Ok(()),
            None => self.declare(connection).await,
        }
    }

    async fn exchange(
        &self,
        channel: &Channel,
        name: &str,
        kind: ExchangeKind,
        arguments: &[(&str, AMQPValue)],
    ) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        with_timeout("declaring an exchange", channel.exchange_declare(name.into(), kind, options, table(arguments)))
            .await
    }

    /// A quorum queue with an explicit delivery limit.
    async fn queue(&self, channel: &Channel, name: &str, arguments: &[(&str, AMQPValue)]) -> Result<(), BrokerError> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut table = table(arguments);
        table.insert("x-queue-type".into(), text("quorum"));
        table.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
        with_timeout("declaring a queue", channel.queue_declare(name.into(), options, table)).await.map(drop)
    }

    /// A bounded queue for events. One that an earlier release declared without a bound is used as it is: it may hold events.
    /// Returns the channel for what follows, because the broker closes a channel whose declaration it refuses.
    async fn event_queue(&self, connection: &Connection, channel: Channel, name: &str) -> Result<Channel, BrokerError> {
        let bound =
            [("x-max-length-bytes", AMQPValue::LongInt(MAX_EVENT_QUEUE_BYTES)), ("x-overflow", text("reject-publish"))];
        match self.queue(&channel, name, &bound).await {
            Ok(()) => Ok(channel),
            Err(BrokerError::ArgumentMismatch(mismatch))
                if bound.iter().any(|(name, _)| *name == mismatch.argument) =>
            {
                let channel = with_timeout("opening a channel", connection.create_channel()).await?;
                self.queue(&channel, name, &[]).await?;
                tracing::warn!(
                    queue = name,
                    hint = unbounded_hint(name),
                    "the queue was declared without a bound and is used as it is"
                );
                Ok(channel)
            }
            Err(error) => Err(error),
        }
    }

    async fn bind(&self, channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), BrokerError> {
        let options = QueueBindOptions::default();
        let request = channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
        with_timeout("binding a queue", request).await
    }
}

/// How an operator bounds a queue that exists.
fn unbounded_hint(queue: &str) -> String {
    let pattern = queue.replace('.', "\\.");
    format!(
        "set a policy: rabbitmqctl set_policy --apply-to queues {queue} '^{pattern}$' \
         '{{\"max-length-bytes\":{MAX_EVENT_QUEUE_BYTES},\"overflow\":\"reject-publish\"}}'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_for_a_queue_without_a_bound_is_a_whole_command() {
        assert_eq!(
            unbounded_hint("pixwarden.flagged"),
            "set a policy: rabbitmqctl set_policy --apply-to queues pixwarden.flagged '^pixwarden\\.flagged$' \
             '{\"max-length-bytes\":1073741824,\"overflow\":\"reject-publish\"}'"
        );
    }

    #[test]
    fn delays_grow_with_failures_and_are_spread() {
        let seen = |failures| {
            let mut indexes: Vec<_> = (0..200).map(|_| delay_queue_index(failures)).collect();
            indexes.sort_unstable();
            indexes.dedup();
            indexes
        };
        assert_eq!(seen(1), [0]);
        assert!(seen(2).contains(&1) && seen(2).iter().all(|r| *r <= 1));
        assert!(seen(4).iter().all(|r| (2..=3).contains(r)));
        assert!(seen(40).iter().all(|r| *r >= 3), "the longest delays, however often it failed");
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
