//! The lanes' queues become deliveries. This file owns the consuming connection: it connects, watches, pauses, reconnects.
//!
//! The end of a stream, a cancel, a channel error, a lost heartbeat and a silent consumer are all treated alike: a new
//! connection after a delay. The broker delivers again what was not acknowledged.
//!
//! [`Intake`] always holds the present state. The state changes to paused or lost before consuming stops.

mod connection;
#[cfg(test)]
pub(super) mod fake;
mod rabbitmq;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Delivery;
use crate::broker::{BrokerError, RESPONSE_TIMEOUT, Topology};
use crate::job::Lane;
use crate::life::Dependency;
use crate::retry::Delays;
use crate::telemetry::intake::{Intake, IntakeState};
use crate::telemetry::metrics;
pub use connection::{CloseReason, DeliveryBroker, DrainingConnection};
use connection::{ConsumingConnection, Deliveries};
pub use rabbitmq::RabbitMq;

/// A consumer that gets nothing for this long while messages wait is silent: the connection is replaced.
const SILENT_CONSUMER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between checks of the connection and of silent consumers.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Time between measurements of the queues' depths.
const QUEUE_DEPTH_INTERVAL: Duration = Duration::from_secs(15);

/// Consumes both lanes.
pub struct Acceptor<B> {
    pub broker: B,
    pub topology: Topology,
    /// Unsettled deliveries per lane.
    pub prefetch: u16,
    /// The broken dependencies. Any of them pauses intake.
    pub broken: watch::Receiver<BTreeMap<Dependency, String>>,
    pub intake: Intake,
    /// Set when the worker drains.
    pub stop: CancellationToken,
}

impl<B: DeliveryBroker> Acceptor<B> {
    /// Passes deliveries to `take` until the worker drains, and reconnects as often as needed. `in_flight` returns the number
    /// of unsettled deliveries of a lane. Returns the connection on which the remaining deliveries are settled.
    pub async fn run(
        mut self,
        first: Box<dyn ConsumingConnection>,
        take: impl Fn(Delivery),
        in_flight: impl Fn(Lane) -> usize,
    ) -> Option<DrainingConnection> {
        let mut connection = Some(first);
        let mut delays = Delays::default();
        loop {
            let opened = match connection.take() {
                Some(connection) => Ok(connection),
                None => self.broker.open().await,
            };
            let lost = match opened {
                Ok(connection) => {
                    let began = Instant::now();
                    match self.consume(connection.as_ref(), &take, &in_flight).await {
                        Ok(()) => return Some(DrainingConnection::of(connection)),
                        Err(e) => {
                            // A connection that held for a while was good, so the next delay is short again.
                            if began.elapsed() > SILENT_CONSUMER_TIMEOUT {
                                delays.reset();
                            }
                            drop(tokio::spawn(async move { connection.close(CloseReason::Lost).await }));
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
        connection: &dyn ConsumingConnection,
        take: &impl Fn(Delivery),
        in_flight: &impl Fn(Lane) -> usize,
    ) -> Result<(), BrokerError> {
        let queues = [self.topology.lane(Lane::Live), self.topology.lane(Lane::Backfill), self.topology.dead()];
        tokio::select! {
            ended = self.consume_when_healthy(connection, take, in_flight) => ended,
            never = poll_queue_depths(connection, &queues), if metrics::are_enabled() => match never {},
        }
    }

    /// Consumes whenever no dependency is broken.
    async fn consume_when_healthy(
        &mut self,
        connection: &dyn ConsumingConnection,
        take: &impl Fn(Delivery),
        in_flight: &impl Fn(Lane) -> usize,
    ) -> Result<(), BrokerError> {
        let mut turn = 0;
        while !self.stop.is_cancelled() {
            if self.broken.borrow_and_update().is_empty() {
                turn += 1;
                self.consume_until_paused(connection, turn, take, in_flight).await?;
            } else {
                self.set_paused();
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    _ = self.broken.changed() => {}
                    () = tokio::time::sleep(CHECK_INTERVAL) => check_open(connection)?,
                }
            }
        }
        Ok(())
    }

    /// Consumes both lanes until intake pauses or the worker drains. Then the consumers are cancelled, and what was on its
    /// way is taken too. `turn` counts the calls.
    async fn consume_until_paused(
        &self,
        connection: &dyn ConsumingConnection,
        turn: u32,
        take: &impl Fn(Delivery),
        in_flight: &impl Fn(Lane) -> usize,
    ) -> Result<(), BrokerError> {
        // A tag is used once: RabbitMQ 3.10 closes the connection if a cancelled one is used again on its channel.
        let tag = |lane: Lane| format!("pixwarden.{lane}.{turn}");
        let mut live = connection.consume(Lane::Live, &tag(Lane::Live)).await?;
        let mut backfill = connection.consume(Lane::Backfill, &tag(Lane::Backfill)).await?;
        self.intake.set_state(IntakeState::Consuming);
        tracing::info!(prefetch = self.prefetch, "consuming");
        let mut broken = self.broken.clone();
        let mut last = [Instant::now(); 2];
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        loop {
            let (lane, delivery) = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = async { drop(broken.wait_for(|broken| !broken.is_empty()).await) } => break,
                delivery = live.next() => (Lane::Live, delivery),
                delivery = backfill.next() => (Lane::Backfill, delivery),
                _ = check.tick() => {
                    check_open(connection)?;
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
            // Without a request from here, only the broker ends a stream.
            take(delivery.unwrap_or(Err(BrokerError::ConsumerCancelled))?);
        }
        self.set_paused();
        for lane in Lane::ALL {
            connection.cancel(lane, &tag(lane)).await?;
        }
        for mut deliveries in [live, backfill] {
            while let Some(delivery) = next_before_end(&mut deliveries).await {
                take(delivery?);
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
    async fn check_not_silent(&self, connection: &dyn ConsumingConnection, lane: Lane) -> Result<(), BrokerError> {
        let queue = self.topology.lane(lane);
        match connection.ready_messages(&queue).await? {
            Some(messages) if messages > 0 => Err(BrokerError::ConsumerSilent { queue, messages }),
            _ => Ok(()),
        }
    }
}

/// Measures the number of ready messages in each queue. After a failure the last value stays.
async fn poll_queue_depths(connection: &dyn ConsumingConnection, queues: &[String]) -> Infallible {
    let mut ticks = tokio::time::interval(QUEUE_DEPTH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for queue in queues {
            match connection.ready_messages(queue).await {
                Ok(messages) => metrics::set_queue_depth(queue, messages.unwrap_or_default()),
                Err(e) => tracing::debug!(error = %e, queue, "queue depth not measured"),
            }
        }
    }
}

/// The next delivery of a cancelled consumer, until its stream ends.
async fn next_before_end(deliveries: &mut Deliveries) -> Option<Result<Delivery, BrokerError>> {
    tokio::time::timeout(RESPONSE_TIMEOUT, deliveries.next()).await.unwrap_or(None)
}

fn check_open(connection: &dyn ConsumingConnection) -> Result<(), BrokerError> {
    if connection.is_open() { Ok(()) } else { Err(BrokerError::ConnectionClosed) }
}
