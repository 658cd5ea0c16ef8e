//! The consuming loop with a fake broker and a paused clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::connection::CloseReason;
use super::fake::{FakeBroker, Request, TestEnd};
use super::{Acceptor, DeliveryBroker, DrainingConnection, SILENT_CONSUMER_TIMEOUT};
use crate::broker::{BrokerError, RESPONSE_TIMEOUT, Topology};
use crate::job::Lane;
use crate::life::Dependency;
use crate::telemetry::intake::{Intake, IntakeState};

const PREFETCH: u16 = 2;

/// The loop, with everything around it.
struct World {
    connections: mpsc::UnboundedReceiver<TestEnd>,
    taken: mpsc::UnboundedReceiver<(Lane, String)>,
    /// Unsettled deliveries, as the loop is told: live, backfill.
    in_flight: Arc<[AtomicUsize; 2]>,
    broken: watch::Sender<BTreeMap<Dependency, String>>,
    intake: Intake,
    stop: CancellationToken,
    /// It ends with the test, which ends what the loop depends on.
    running: AbortOnDropHandle<Option<DrainingConnection>>,
}

impl World {
    /// Starts the loop, and waits until it consumes. After the first connection the broker refuses `refusals` ones.
    async fn start(refusals: u32) -> (Self, TestEnd) {
        let (opened, connections) = mpsc::unbounded_channel();
        let broker = FakeBroker { refusals: AtomicU32::new(0), opened };
        let first = broker.open().await.unwrap();
        broker.refusals.store(refusals, Ordering::SeqCst);
        let (broken, is_broken) = watch::channel(BTreeMap::new());
        let (intake, stop) = (Intake::default(), CancellationToken::new());
        let acceptor = Acceptor {
            broker,
            topology: Topology::new("pixwarden", true),
            prefetch: PREFETCH,
            broken: is_broken,
            intake: intake.clone(),
            stop: stop.clone(),
        };
        let (take, taken) = mpsc::unbounded_channel();
        let in_flight = Arc::<[AtomicUsize; 2]>::default();
        let counts = Arc::clone(&in_flight);
        let running = tokio::spawn(acceptor.run(
            first,
            move |delivery| take.send((delivery.lane, String::from_utf8(delivery.body).unwrap())).unwrap(),
            move |lane| counts[usize::from(lane == Lane::Backfill)].load(Ordering::SeqCst),
        ));
        let running = AbortOnDropHandle::new(running);
        let mut world = Self { connections, taken, in_flight, broken, intake, stop, running };
        let first = world.connection(1).await;
        (world, first)
    }

    /// The next connection, once both lanes are consumed on it with the tags of this turn.
    async fn connection(&mut self, turn: u32) -> TestEnd {
        let opened = tokio::time::timeout(Duration::from_secs(3600), self.connections.recv()).await;
        let mut connection = opened.expect("no connection was opened").unwrap();
        consumed(&mut connection, turn).await;
        assert_eq!(self.intake.state(), IntakeState::Consuming);
        connection
    }

    async fn taken(&mut self) -> (Lane, String) {
        let taken = tokio::time::timeout(Duration::from_secs(3600), self.taken.recv()).await;
        taken.expect("no delivery was taken").unwrap()
    }

    /// The loop's end, once it drains.
    async fn drained(self) -> Option<DrainingConnection> {
        let ended = tokio::time::timeout(Duration::from_secs(3600), self.running).await;
        ended.expect("the loop did not end").unwrap()
    }

    fn set_in_flight(&self, lane: Lane, count: u16) {
        self.in_flight[usize::from(lane == Lane::Backfill)].store(count.into(), Ordering::SeqCst);
    }
}

async fn consumed(connection: &mut TestEnd, turn: u32) {
    for lane in Lane::ALL {
        assert_eq!(connection.request().await, Request::Consume(format!("pixwarden.{lane}.{turn}")));
    }
}

async fn cancelled(connection: &mut TestEnd, turn: u32) {
    for lane in Lane::ALL {
        assert_eq!(connection.request().await, Request::Cancel(format!("pixwarden.{lane}.{turn}")));
    }
}

fn body(lane: Lane, text: &str) -> (Lane, String) {
    (lane, text.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_the_broker_cancels_or_that_fails_gets_a_new_connection() {
    type Break = fn(&TestEnd);
    let breaks: [(BrokerError, Break); 4] = [
        (BrokerError::ConsumerCancelled, |connection| connection.end(Lane::Live)),
        (BrokerError::ConsumerCancelled, |connection| connection.end(Lane::Backfill)),
        (BrokerError::ConnectionClosed, |connection| connection.fail(Lane::Backfill, BrokerError::ConnectionClosed)),
        (BrokerError::ConnectionClosed, TestEnd::break_silently),
    ];
    for (reason, break_it) in breaks {
        let (mut world, mut first) = World::start(0).await;
        first.deliver(Lane::Live, "before");
        assert_eq!(world.taken().await, body(Lane::Live, "before"));
        break_it(&first);
        assert_eq!(first.request().await, Request::Close(CloseReason::Lost));
        assert_eq!(world.intake.state(), IntakeState::Lost(reason.to_string()));
        let second = world.connection(1).await;
        second.deliver(Lane::Backfill, "after");
        assert_eq!(world.taken().await, body(Lane::Backfill, "after"));
        assert_eq!(first.requests(), [], "nothing more is asked of a lost connection");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_refuses_connections_is_asked_until_it_accepts_one() {
    let (mut world, first) = World::start(5).await;
    let began = Instant::now();
    first.end(Lane::Live);
    world.connection(1).await;
    // Six delays that double, each at least half as long as meant: 0.1 + 0.2 + 0.4 + 0.8 + 1.6 + 3.2 s.
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(6300), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_consumer_without_deliveries_is_replaced_only_if_messages_wait_and_it_has_room() {
    let (mut world, first) = World::start(0).await;
    tokio::time::sleep(10 * SILENT_CONSUMER_TIMEOUT).await;
    assert!(first.counted() > 0 && world.connections.try_recv().is_err(), "an empty queue delivers nothing");

    first.set_ready(5);
    for lane in Lane::ALL {
        world.set_in_flight(lane, PREFETCH);
    }
    let counted = first.counted();
    tokio::time::sleep(10 * SILENT_CONSUMER_TIMEOUT).await;
    assert_eq!(first.counted(), counted, "a full consumer gets nothing, and the broker is not asked");
    assert!(world.connections.try_recv().is_err());

    // A full backfill must not hide that the live consumer gets nothing.
    world.set_in_flight(Lane::Live, PREFETCH - 1);
    let mut second = world.connection(1).await;
    assert_eq!(second.requests(), []);
}

#[tokio::test(start_paused = true)]
async fn a_silent_consumer_is_named_with_its_queue_and_one_that_delivers_is_not_silent() {
    let (mut world, mut first) = World::start(0).await;
    first.set_ready(5);
    world.set_in_flight(Lane::Backfill, PREFETCH);
    for _ in 0..10 {
        tokio::time::sleep(SILENT_CONSUMER_TIMEOUT - Duration::from_secs(1)).await;
        first.deliver(Lane::Live, "job");
        world.taken().await;
    }
    assert_eq!(first.counted(), 0);
    let since = Instant::now();
    assert_eq!(first.request().await, Request::Close(CloseReason::Lost));
    let silent = BrokerError::ConsumerSilent { queue: "pixwarden.jobs.live".into(), messages: 5 };
    assert_eq!(world.intake.state(), IntakeState::Lost(silent.to_string()));
    assert!(since.elapsed() > SILENT_CONSUMER_TIMEOUT, "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_broken_dependency_pauses_intake_on_the_same_connection() {
    let (mut world, mut connection) = World::start(0).await;
    connection.deliver_late(Lane::Live, "on its way");
    let broken = BTreeMap::from([(Dependency::Ledger, "the disk is full".to_owned())]);
    world.broken.send_replace(broken);
    cancelled(&mut connection, 1).await;
    assert_eq!(world.taken().await, body(Lane::Live, "on its way"));
    assert_eq!(world.intake.state(), IntakeState::Paused("ledger: the disk is full".into()));

    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(connection.requests(), [], "nothing is consumed meanwhile");
    world.broken.send_replace(BTreeMap::new());
    consumed(&mut connection, 2).await;
    assert_eq!(world.intake.state(), IntakeState::Consuming);
    connection.deliver(Lane::Live, "next");
    assert_eq!(world.taken().await, body(Lane::Live, "next"));

    // A connection that breaks during the pause is replaced during the pause.
    world.broken.send_replace(BTreeMap::from([(Dependency::Storage, "away".to_owned())]));
    cancelled(&mut connection, 2).await;
    connection.break_silently();
    assert_eq!(connection.request().await, Request::Close(CloseReason::Lost));
    world.broken.send_replace(BTreeMap::new());
    world.connection(1).await;
}

#[tokio::test(start_paused = true)]
async fn draining_takes_what_is_on_its_way_and_leaves_the_connection_open() {
    let (mut world, mut connection) = World::start(0).await;
    connection.deliver_late(Lane::Backfill, "backfill");
    connection.deliver_late(Lane::Live, "live");
    world.stop.cancel();
    cancelled(&mut connection, 1).await;
    assert_eq!(world.taken().await, body(Lane::Live, "live"));
    assert_eq!(world.taken().await, body(Lane::Backfill, "backfill"));
    let draining = world.drained().await.expect("what was delivered is settled on this connection");
    assert_eq!(connection.requests(), [], "the connection stays open until its owner closes it");
    draining.close().await;
    assert_eq!(connection.request().await, Request::Close(CloseReason::Drained));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_stream_that_never_ends_does_not_stop_the_drain() {
    let (world, mut connection) = World::start(0).await;
    connection.keep_streams_open();
    let began = Instant::now();
    world.stop.cancel();
    cancelled(&mut connection, 1).await;
    assert!(world.drained().await.is_some());
    let took = began.elapsed();
    assert!(took >= 2 * RESPONSE_TIMEOUT && took < 3 * RESPONSE_TIMEOUT, "one timeout for each lane: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn draining_does_not_wait_for_a_broker_that_is_away() {
    let (world, mut first) = World::start(u32::MAX).await;
    first.end(Lane::Live);
    assert_eq!(first.request().await, Request::Close(CloseReason::Lost));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(matches!(world.intake.state(), IntakeState::Lost(_)));
    world.stop.cancel();
    assert!(world.drained().await.is_none(), "there is no connection to settle anything on");
}
