//! The queue → deliveries. Owns the consuming connection: makes it, watches it, pauses it, makes it anew.
//!
//! Stream end, cancel, channel error, lost heartbeat and a consumer that has gone silent all lead to the same place: a
//! new connection, after a pause. Whatever was not acknowledged is delivered again.
//!
//! What it is doing it tells [`Intake`], and before it does it where that is less than consuming.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, BasicProperties, Channel, Connection, Consumer};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::health::Dependency;
use crate::broker::{ANSWER, ATTEMPT_HEADER, BrokerError, JOB_ID_HEADER, Topology, answered, connect, depth, header};
use crate::config::SecretUrl;
use crate::job::{Lane, forms};
use crate::retry::Pauses;
use crate::telemetry::intake::{Intake, IntakeState};
use crate::telemetry::metrics::{self, GaugeGuard};
use crate::telemetry::traces::TraceContext;

/// A backlog without a delivery for this long means that the consumer has gone silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How often that, and the connection, is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is counted what waits in the queues.
const COUNT: Duration = Duration::from_secs(15);

/// One message, from its arrival to its settlement.
#[derive(Debug)]
pub struct Delivery {
    /// The lane it came in.
    pub lane: Lane,
    /// Untrusted.
    pub body: Vec<u8>,
    /// The sender's, and our own attempt header.
    pub properties: BasicProperties,
    /// Somebody had it before and did not settle it; it may have been the death of them.
    pub redelivered: bool,
    /// When it came.
    pub received_at: OffsetDateTime,
    /// The same, for durations.
    pub arrived: Instant,
    acker: Acker,
    tag: u64,
    _held: GaugeGuard,
}

impl Delivery {
    fn new(lane: Lane, delivery: lapin::message::Delivery) -> Self {
        Self {
            lane,
            body: delivery.data,
            properties: delivery.properties,
            redelivered: delivery.redelivered,
            received_at: OffsetDateTime::now_utc(),
            arrived: Instant::now(),
            acker: delivery.acker,
            tag: delivery.delivery_tag,
            _held: metrics::hold_delivery(lane),
        }
    }

    /// Earlier failed attempts, as counted in the copy's header.
    #[must_use]
    pub fn failures(&self) -> u32 {
        let headers = self.properties.headers().as_ref();
        match headers.and_then(|headers| headers.inner().get(ATTEMPT_HEADER)) {
            Some(AMQPValue::LongUInt(n)) => *n,
            Some(AMQPValue::LongInt(n)) => u32::try_from(*n).unwrap_or(0),
            Some(AMQPValue::LongLongInt(n)) => u32::try_from(*n).unwrap_or(0),
            _ => 0,
        }
    }

    /// The id of the verdict that a replayed dead letter failed with.
    #[must_use]
    pub fn job_id(&self) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(JOB_ID_HEADER)? {
            AMQPValue::LongString(id) if forms::is_id(&id.to_string()) => Some(id.to_string()),
            _ => None,
        }
    }

    /// The sender's message id.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(lapin::types::ShortString::as_str)
    }

    /// The sender's correlation id.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties.correlation_id().as_ref().map(lapin::types::ShortString::as_str)
    }

    /// Where the sender wants the result.
    #[must_use]
    pub fn reply_to(&self) -> Option<&str> {
        self.properties.reply_to().as_ref().map(lapin::types::ShortString::as_str).filter(|queue| !queue.is_empty())
    }

    /// The sender's trace.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        TraceContext::parse(header(&self.properties, "traceparent"), header(&self.properties, "tracestate"))
    }

    /// The delivery's number on its channel, for logs.
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.tag
    }

    pub(super) fn acker(&self) -> &Acker {
        &self.acker
    }
}

/// A connection whose consumers are cancelled. Its channels stay open until everything is settled: lapin closes one when
/// its last handle is dropped, and acknowledgements on it would go nowhere.
pub struct Open {
    connection: Connection,
    channels: Vec<(Lane, Channel)>,
}

impl Open {
    /// Closes it, once everything is settled.
    pub async fn close(self) {
        if let Err(e) = answered("closing", self.connection.close(200, "drained".into())).await {
            tracing::debug!(error = %e, "closing the consuming connection failed");
        }
        drop(self.channels);
    }
}

/// The consuming side.
pub struct Accept {
    /// The broker.
    pub url: SecretUrl,
    /// What to declare and to consume.
    pub topology: Topology,
    /// Unsettled deliveries a lane.
    pub prefetch: u16,
    /// Broken dependencies; any of them pauses intake.
    pub broken: watch::Receiver<BTreeMap<Dependency, String>>,
    /// Where to say what it is doing.
    pub intake: Intake,
    /// Set when the worker drains.
    pub stop: CancellationToken,
}

impl Accept {
    /// Connects and declares the topology: what has to work before a worker is started.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses us, or a queue is there with other arguments.
    pub async fn open(&self) -> Result<Connection, BrokerError> {
        let connection = connect(&self.url, "consuming").await?;
        self.topology.declare(&connection).await?;
        Ok(connection)
    }

    /// Hands deliveries to `take` until the worker drains, reconnecting as often as it must. `in_flight` tells how many
    /// of them are not settled yet. Returns what the rest is to be settled on.
    pub async fn run(
        mut self,
        first: Connection,
        take: impl Fn(Delivery),
        in_flight: impl Fn() -> usize,
    ) -> Option<Open> {
        let mut connection = Some(first);
        let mut pauses = Pauses::default();
        loop {
            let opened = match connection.take() {
                Some(connection) => Ok(connection),
                None => self.open().await,
            };
            let lost = match opened {
                Ok(connection) => {
                    let began = Instant::now();
                    match self.consume(&connection, &take, &in_flight).await {
                        Ok(channels) => return Some(Open { connection, channels }),
                        Err(e) => {
                            // One that held for a while starts the pauses anew.
                            if began.elapsed() > SILENCE {
                                pauses.reset();
                            }
                            abandon(connection);
                            e
                        }
                    }
                }
                Err(e) => e,
            };
            self.intake.set_state(IntakeState::Lost(lost.to_string()));
            let pause = pauses.longer();
            tracing::warn!(error = %lost, pause_ms = pause.as_millis(), "the broker is lost, connecting anew");
            self.stop.run_until_cancelled(tokio::time::sleep(pause)).await?;
        }
    }

    /// Consumes on one connection until the worker drains, and counts meanwhile what waits in the queues.
    async fn consume(
        &mut self,
        connection: &Connection,
        take: &impl Fn(Delivery),
        in_flight: &impl Fn() -> usize,
    ) -> Result<Vec<(Lane, Channel)>, BrokerError> {
        let queues = [self.topology.lane(Lane::Live), self.topology.lane(Lane::Backfill), self.topology.dead()];
        tokio::select! {
            ended = self.turns(connection, take, in_flight) => ended,
            never = count(connection, &queues), if metrics::are_enabled() => match never {},
        }
    }

    /// Consumes in turns of open intake.
    async fn turns(
        &mut self,
        connection: &Connection,
        take: &impl Fn(Delivery),
        in_flight: &impl Fn() -> usize,
    ) -> Result<Vec<(Lane, Channel)>, BrokerError> {
        let mut channels = Vec::new();
        for lane in Lane::ALL {
            let channel = answered("opening a channel", connection.create_channel()).await?;
            // Per consumer: a limit for the whole channel is refused by quorum queues.
            answered("setting the prefetch", channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
            channels.push((lane, channel));
        }
        while !self.stop.is_cancelled() {
            if self.broken.borrow_and_update().is_empty() {
                self.turn(connection, &channels, take, in_flight).await?;
            } else {
                self.say_paused();
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    _ = self.broken.changed() => {}
                    () = tokio::time::sleep(LOOK) => still_open(connection, &channels)?,
                }
            }
        }
        Ok(channels)
    }

    /// Consumes both lanes until intake pauses or the worker drains, and then cancels the consumers and takes what was
    /// on its way. The channels stay: on them everything is still to be acknowledged.
    async fn turn(
        &self,
        connection: &Connection,
        channels: &[(Lane, Channel)],
        take: &impl Fn(Delivery),
        in_flight: &impl Fn() -> usize,
    ) -> Result<(), BrokerError> {
        let mut consumers = Vec::new();
        for (lane, channel) in channels {
            let tag = format!("pixwarden.{lane}");
            let options = BasicConsumeOptions::default();
            let queue = self.topology.lane(*lane).as_str().into();
            let request = channel.basic_consume(queue, tag.as_str().into(), options, FieldTable::default());
            consumers.push((*lane, answered("consuming", request).await?));
        }
        self.intake.set_state(IntakeState::Consuming);
        tracing::info!(prefetch = self.prefetch, "consuming");
        let [(live, from_live), (backfill, from_backfill)] = &mut consumers[..] else { return Ok(()) };
        let mut broken = self.broken.clone();
        let mut last = [Instant::now(); 2];
        let mut look = tokio::time::interval(LOOK);
        loop {
            let (lane, delivery) = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = async { drop(broken.wait_for(|broken| !broken.is_empty()).await) } => break,
                delivery = from_live.next() => (*live, delivery),
                delivery = from_backfill.next() => (*backfill, delivery),
                _ = look.tick() => {
                    still_open(connection, channels)?;
                    for (lane, last) in Lane::ALL.into_iter().zip(&mut last) {
                        if last.elapsed() > SILENCE && in_flight() < usize::from(self.prefetch) {
                            self.not_silent(connection, lane).await?;
                            *last = Instant::now();
                        }
                    }
                    continue;
                }
            };
            last[usize::from(lane == Lane::Backfill)] = Instant::now();
            take(Delivery::new(lane, arrived(delivery)?));
        }
        self.say_paused();
        for (lane, channel) in channels {
            let tag = format!("pixwarden.{lane}");
            answered("cancelling", channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default())).await?;
        }
        for (lane, mut consumer) in consumers {
            while let Some(delivery) = ended(&mut consumer).await {
                take(Delivery::new(lane, arrived(Some(delivery))?));
            }
        }
        Ok(())
    }

    /// Says what it is paused for, if it is; who drains has said so already.
    fn say_paused(&self) {
        let broken: Vec<_> = self.broken.borrow().iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
        if !broken.is_empty() {
            self.intake.set_state(IntakeState::Paused(broken.join("; ")));
        }
    }

    /// An error if there is a backlog: nothing has come for a while, although there was room.
    async fn not_silent(&self, connection: &Connection, lane: Lane) -> Result<(), BrokerError> {
        let queue = self.topology.lane(lane);
        match depth(connection, &queue).await? {
            Some((messages, _)) if messages > 0 => {
                Err(BrokerError::Protocol(format!("{messages} messages wait in {queue}, and none was delivered")))
            }
            _ => Ok(()),
        }
    }
}

/// Shows how many messages are ready in each queue. A question that fails leaves what was seen last.
async fn count(connection: &Connection, queues: &[String]) -> Infallible {
    let mut pace = tokio::time::interval(COUNT);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        for queue in queues {
            match depth(connection, queue).await {
                Ok(seen) => metrics::set_queue_depth(queue, seen.map_or(0, |(messages, _)| messages)),
                Err(e) => tracing::debug!(error = %e, queue, "the queue could not be counted"),
            }
        }
    }
}

fn arrived(delivery: Option<lapin::Result<lapin::message::Delivery>>) -> Result<lapin::message::Delivery, BrokerError> {
    match delivery {
        Some(Ok(delivery)) => Ok(delivery),
        Some(Err(e)) => Err(BrokerError::Protocol(e.to_string())),
        None => Err(BrokerError::Protocol("the broker has cancelled the consumer".into())),
    }
}

/// The next delivery of a consumer that was cancelled, until its stream ends.
async fn ended(consumer: &mut Consumer) -> Option<lapin::Result<lapin::message::Delivery>> {
    tokio::time::timeout(ANSWER, consumer.next()).await.unwrap_or(None)
}

fn still_open(connection: &Connection, channels: &[(Lane, Channel)]) -> Result<(), BrokerError> {
    let open = connection.status().connected() && channels.iter().all(|(_, channel)| channel.status().connected());
    if open { Ok(()) } else { Err(BrokerError::Protocol("the connection or a channel is closed".into())) }
}

/// Closes a connection nobody trusts any more, without waiting for it.
fn abandon(connection: Connection) {
    drop(tokio::spawn(async move {
        if let Err(e) = answered("closing", connection.close(320, "lost".into())).await {
            tracing::debug!(error = %e, "closing a lost connection failed");
        }
    }));
}
