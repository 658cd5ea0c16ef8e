//! The lanes' queues become deliveries. This file owns the consuming connection: it connects, watches, pauses, reconnects.
//!
//! The end of a stream, a cancel, a channel error, a lost heartbeat and a silent consumer are all treated alike: a new
//! connection after a delay. The broker delivers again what was not acknowledged.
//!
//! [`Intake`] always holds the present state. The state changes to paused or lost before consuming stops.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Delivery;
use crate::broker::{BrokerError, RESPONSE_TIMEOUT, Topology, connect, depth, with_timeout};
use crate::config::SecretUrl;
use crate::job::Lane;
use crate::life::Dependency;
use crate::retry::Delays;
use crate::telemetry::intake::{Intake, IntakeState};
use crate::telemetry::metrics;

/// A consumer that gets nothing for this long while messages wait is silent: the connection is replaced.
const SILENT_CONSUMER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between checks of the connection and of silent consumers.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Time between measurements of the queues' depths.
const QUEUE_DEPTH_INTERVAL: Duration = Duration::from_secs(15);

/// A connection whose consumers are cancelled. Its channels stay open until every delivery is settled: lapin closes a
/// channel when its last handle is dropped, and later acknowledgements on it would be lost.
pub struct DrainingConnection {
    connection: Connection,
    channels: Vec<(Lane, Channel)>,
}

impl DrainingConnection {
    /// Closes the connection once every delivery is settled.
    pub async fn close(self) {
        if let Err(e) = with_timeout("closing", self.connection.close(200, "drained".into())).await {
            tracing::debug!(error = %e, "closing the consuming connection failed");
        }
        drop(self.channels);
    }
}

/// Consumes both lanes.
pub struct Acceptor {
    pub url: SecretUrl,
    pub topology: Topology,
    /// Unsettled deliveries per lane.
    pub prefetch: u16,
    /// The broken dependencies. Any of them pauses intake.
    pub broken: watch::Receiver<BTreeMap<Dependency, String>>,
    pub intake: Intake,
    /// Set when the worker drains.
    pub stop: CancellationToken,
}

impl Acceptor {
    /// Connects and declares the topology. A worker does not start before this has worked.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses the login, or a queue exists with other arguments.
    pub async fn open(&self) -> Result<Connection, BrokerError> {
        let connection = connect(&self.url, "consuming").await?;
        self.topology.declare(&connection).await?;
        Ok(connection)
    }

    /// Passes deliveries to `take` until the worker drains, and reconnects as often as needed. `in_flight` returns the number
    /// of unsettled deliveries of a lane. Returns the connection on which the remaining deliveries are settled.
    pub async fn run(
        mut self,
        first: Connection,
        take: impl Fn(Delivery),
        in_flight: impl Fn(Lane) -> usize,
    ) -> Option<DrainingConnection> {
        let mut connection = Some(first);
        let mut delays = Delays::default();
        loop {
            let opened = match connection.take() {
                Some(connection) => Ok(connection),
                None => self.open().await,
            };
            let lost = match opened {
                Ok(connection) => {
                    let began = Instant::now();
                    match self.consume(&connection, &take, &in_flight).await {
                        Ok(channels) => return Some(DrainingConnection { connection, channels }),
                        Err(e) => {
                            // A connection that held for a while was good, so the next delay is short again.
                            if began.elapsed() > SILENT_CONSUMER_TIMEOUT {
                                delays.reset();
                            }
                            close_in_background(connection);
                            e
                        }
                    }
                }
                Err(e) => e,
            };
            self.intake.set_state(IntakeState::Lost(lost.to_string()));
            let delay = delays.next_delay();
            tracing::warn!(error = %lost, delay_ms = delay.as_millis(), "lost the broker, reconnecting after a delay");
            self.stop.run_until_cancelled(tokio::time::sleep(delay)).await?;
        }
    }

    /// Consumes on one connection until the worker drains, and meanwhile measures the queues' depths.
    async fn consume(
        &mut self,
        connection: &Connection,
        take: &impl Fn(Delivery),
        in_flight: &impl Fn(Lane) -> usize,
    ) -> Result<Vec<(Lane, Channel)>, BrokerError> {
        let queues = [self.topology.lane(Lane::Live), self.topology.lane(Lane::Backfill), self.topology.dead()];
        tokio::select! {
            ended = self.consume_when_healthy(connection, take, in_flight) => ended,
            never = poll_queue_depths(connection, &queues), if metrics::are_enabled() => match never {},
        }
    }

    /// Consumes whenever no dependency is broken.
    async fn consume_when_healthy(
        &mut self,
        connection: &Connection,
        take: &impl Fn(Delivery),
        in_flight: &impl Fn(Lane) -> usize,
    ) -> Result<Vec<(Lane, Channel)>, BrokerError> {
        let mut channels = Vec::new();
        for lane in Lane::ALL {
            let channel = with_timeout("opening a channel", connection.create_channel()).await?;
            // Set for each consumer: quorum queues refuse a limit for the whole channel.
            with_timeout("setting the prefetch", channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
            channels.push((lane, channel));
        }
        let mut turn = 0;
        while !self.stop.is_cancelled() {
            if self.broken.borrow_and_update().is_empty() {
                turn += 1;
                self.consume_until_paused(connection, &channels, turn, take, in_flight).await?;
            } else {
                self.set_paused();
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    _ = self.broken.changed() => {}
                    () = tokio::time::sleep(CHECK_INTERVAL) => check_open(connection, &channels)?,
                }
            }
        }
        Ok(channels)
    }

    /// Consumes both lanes until intake pauses or the worker drains. Then the consumers are cancelled, and what was on its
    /// way is taken too. `turn` counts the calls. The channels stay open, because the deliveries are acknowledged on them.
    async fn consume_until_paused(
        &self,
        connection: &Connection,
        channels: &[(Lane, Channel)],
        turn: u32,
        take: &impl Fn(Delivery),
        in_flight: &impl Fn(Lane) -> usize,
    ) -> Result<(), BrokerError> {
        // A tag is used once: RabbitMQ 3.10 closes the connection if a cancelled one is used again on its channel.
        let tag = |lane: Lane| format!("pixwarden.{lane}.{turn}");
        let mut consumers = Vec::new();
        for (lane, channel) in channels {
            let options = BasicConsumeOptions::default();
            let queue = self.topology.lane(*lane).as_str().into();
            let request = channel.basic_consume(queue, tag(*lane).as_str().into(), options, FieldTable::default());
            consumers.push((*lane, with_timeout("consuming", request).await?));
        }
        self.intake.set_state(IntakeState::Consuming);
        tracing::info!(prefetch = self.prefetch, "consuming");
        let [(live, from_live), (backfill, from_backfill)] = &mut consumers[..] else { return Ok(()) };
        let mut broken = self.broken.clone();
        let mut last = [Instant::now(); 2];
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        loop {
            let (lane, delivery) = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = async { drop(broken.wait_for(|broken| !broken.is_empty()).await) } => break,
                delivery = from_live.next() => (*live, delivery),
                delivery = from_backfill.next() => (*backfill, delivery),
                _ = check.tick() => {
                    check_open(connection, channels)?;
                    for (lane, last) in Lane::ALL.into_iter().zip(&mut last) {
                        if last.elapsed() > SILENT_CONSUMER_TIMEOUT && in_flight(lane) < usize::from(self.prefetch) {
                            self.check_not_silent(connection, lane).await?;
                            *last = Instant::now();
                        }
                    }
                    continue;
                }
            };
            last[usize::from(lane == Lane::Backfill)] = Instant::now();
            take(Delivery::from_broker(lane, received(delivery)?));
        }
        self.set_paused();
        for (lane, channel) in channels {
            let cancel = channel.basic_cancel(tag(*lane).as_str().into(), BasicCancelOptions::default());
            with_timeout("cancelling", cancel).await?;
        }
        for (lane, mut consumer) in consumers {
            while let Some(delivery) = next_before_end(&mut consumer).await {
                take(Delivery::from_broker(lane, received(Some(delivery))?));
            }
        }
        Ok(())
    }

    /// Sets the paused state with its reasons, if a dependency is broken. A draining worker stays draining.
    fn set_paused(&self) {
        let broken: Vec<_> = self.broken.borrow().iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
        if !broken.is_empty() {
            self.intake.set_state(IntakeState::Paused(broken.join("; ")));
        }
    }

    /// Fails if messages wait: the consumer has got none for a while, although it had room.
    async fn check_not_silent(&self, connection: &Connection, lane: Lane) -> Result<(), BrokerError> {
        let queue = self.topology.lane(lane);
        match depth(connection, &queue).await? {
            Some((messages, _)) if messages > 0 => Err(BrokerError::ConsumerSilent { queue, messages }),
            _ => Ok(()),
        }
    }
}

/// Measures the number of ready messages in each queue. After a failure the last value stays.
async fn poll_queue_depths(connection: &Connection, queues: &[String]) -> Infallible {
    let mut ticks = tokio::time::interval(QUEUE_DEPTH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for queue in queues {
            match depth(connection, queue).await {
                Ok(seen) => metrics::set_queue_depth(queue, seen.map_or(0, |(messages, _)| messages)),
                Err(e) => tracing::debug!(error = %e, queue, "queue depth not measured"),
            }
        }
    }
}

fn received(
    delivery: Option<lapin::Result<lapin::message::Delivery>>,
) -> Result<lapin::message::Delivery, BrokerError> {
    match delivery {
        Some(Ok(delivery)) => Ok(delivery),
        Some(Err(e)) => Err(e.into()),
        None => Err(BrokerError::ConsumerCancelled),
    }
}

/// The next delivery of a cancelled consumer, until its stream ends.
async fn next_before_end(consumer: &mut Consumer) -> Option<lapin::Result<lapin::message::Delivery>> {
    tokio::time::timeout(RESPONSE_TIMEOUT, consumer.next()).await.unwrap_or(None)
}

fn check_open(connection: &Connection, channels: &[(Lane, Channel)]) -> Result<(), BrokerError> {
    let open = connection.status().connected() && channels.iter().all(|(_, channel)| channel.status().connected());
    if open { Ok(()) } else { Err(BrokerError::ConnectionClosed) }
}

/// Closes a failed connection without waiting for it.
fn close_in_background(connection: Connection) {
    drop(tokio::spawn(async move {
        if let Err(e) = with_timeout("closing", connection.close(320, "lost".into())).await {
            tracing::debug!(error = %e, "closing a lost connection failed");
        }
    }));
}
