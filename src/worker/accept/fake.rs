//! A broker without a network: a test sends its deliveries, and sees what is asked of each connection.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::mpsc;

use super::connection::{CloseReason, ConsumingConnection, Deliveries, DeliveryBroker};
use crate::broker::{Acknowledger, BrokerError};
use crate::job::Lane;
use crate::worker::Delivery;

/// What was asked of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Consume, with this tag.
    Consume(String),
    /// Cancel the consumer of this tag.
    Cancel(String),
    Close(CloseReason),
}

/// A broker that accepts connections, once it has refused as many as it is told to.
pub struct FakeBroker {
    pub refusals: AtomicU32,
    /// Gets each connection that is opened.
    pub opened: mpsc::UnboundedSender<TestEnd>,
}

#[async_trait]
impl DeliveryBroker for FakeBroker {
    async fn open(&self) -> Result<Box<dyn ConsumingConnection>, BrokerError> {
        let refuse = |left: u32| left.checked_sub(1);
        if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, refuse).is_ok() {
            return Err(BrokerError::ConnectionClosed);
        }
        let (connection, test_end) = FakeConnection::new();
        self.opened.send(test_end).unwrap();
        Ok(Box::new(connection))
    }
}

/// The side of a connection that the loop has.
pub struct FakeConnection {
    requests: mpsc::UnboundedSender<Request>,
    state: Arc<State>,
}

/// The side of a connection that the test has.
pub struct TestEnd {
    requests: mpsc::UnboundedReceiver<Request>,
    state: Arc<State>,
}

/// Feeds the stream of one consumer, which ends when this is dropped.
type Consumer = mpsc::UnboundedSender<Result<Delivery, BrokerError>>;

#[derive(Default)]
struct State {
    consumers: Mutex<Vec<(Lane, Consumer)>>,
    /// What arrives between the request to cancel a lane's consumer and its end.
    late: Mutex<Vec<(Lane, Delivery)>>,
    /// A cancelled consumer's stream does not end.
    is_endless: AtomicBool,
    is_closed: AtomicBool,
    /// Messages that wait, in every queue.
    ready: AtomicU32,
    /// How often that was asked.
    counted: AtomicU32,
}

impl State {
    fn send(&self, lane: Lane, delivery: Result<Delivery, BrokerError>) {
        let consumers = self.consumers.lock().unwrap();
        let consumer = consumers.iter().find(|(of, _)| *of == lane).expect("the lane has a consumer");
        consumer.1.send(delivery).unwrap();
    }
}

impl FakeConnection {
    pub fn new() -> (Self, TestEnd) {
        let (sender, requests) = mpsc::unbounded_channel();
        let state = Arc::new(State::default());
        (Self { requests: sender, state: Arc::clone(&state) }, TestEnd { requests, state })
    }

    fn request(&self, request: Request) {
        // Where the test has ended already, nothing is asked any more.
        drop(self.requests.send(request));
    }
}

#[async_trait]
impl ConsumingConnection for FakeConnection {
    async fn consume(&self, lane: Lane, tag: &str) -> Result<Deliveries, BrokerError> {
        let (consumer, deliveries) = mpsc::unbounded_channel();
        self.state.consumers.lock().unwrap().push((lane, consumer));
        self.request(Request::Consume(tag.to_owned()));
        let next = |mut deliveries: mpsc::UnboundedReceiver<_>| async { Some((deliveries.recv().await?, deliveries)) };
        Ok(stream::unfold(deliveries, next).boxed())
    }

    async fn cancel(&self, lane: Lane, tag: &str) -> Result<(), BrokerError> {
        let late = std::mem::take(&mut *self.state.late.lock().unwrap());
        for (of, delivery) in late {
            if of == lane {
                self.state.send(lane, Ok(delivery));
            } else {
                self.state.late.lock().unwrap().push((of, delivery));
            }
        }
        if !self.state.is_endless.load(Ordering::SeqCst) {
            self.state.consumers.lock().unwrap().retain(|(of, _)| *of != lane);
        }
        self.request(Request::Cancel(tag.to_owned()));
        Ok(())
    }

    fn is_open(&self) -> bool {
        !self.state.is_closed.load(Ordering::SeqCst)
    }

    async fn ready_messages(&self, _queue: &str) -> Result<Option<u32>, BrokerError> {
        self.state.counted.fetch_add(1, Ordering::SeqCst);
        Ok(Some(self.state.ready.load(Ordering::SeqCst)))
    }

    async fn close(&self, why: CloseReason) {
        self.request(Request::Close(why));
    }
}

impl TestEnd {
    /// The next request. With a paused clock, a request that does not come fails at once.
    pub async fn request(&mut self) -> Request {
        let request = tokio::time::timeout(Duration::from_secs(3600), self.requests.recv()).await;
        request.expect("nothing was asked of the connection").expect("the connection was dropped")
    }

    /// What was asked until now and not looked at.
    pub fn requests(&mut self) -> Vec<Request> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }

    pub fn deliver(&self, lane: Lane, body: &str) {
        self.state.send(lane, Ok(delivery(lane, body)));
    }

    /// A message that arrives after the request to cancel the consumer.
    pub fn deliver_late(&self, lane: Lane, body: &str) {
        self.state.late.lock().unwrap().push((lane, delivery(lane, body)));
    }

    /// The stream of a lane fails.
    pub fn fail(&self, lane: Lane, error: BrokerError) {
        self.state.send(lane, Err(error));
    }

    /// The broker cancels the consumer of a lane: its stream ends.
    pub fn end(&self, lane: Lane) {
        self.state.consumers.lock().unwrap().retain(|(of, _)| *of != lane);
    }

    pub fn keep_streams_open(&self) {
        self.state.is_endless.store(true, Ordering::SeqCst);
    }

    /// The connection is closed, and no stream tells it.
    pub fn break_silently(&self) {
        self.state.is_closed.store(true, Ordering::SeqCst);
    }

    /// This many messages wait in each queue.
    pub fn set_ready(&self, messages: u32) {
        self.state.ready.store(messages, Ordering::SeqCst);
    }

    /// How often the messages of a queue were counted.
    pub fn counted(&self) -> u32 {
        self.state.counted.load(Ordering::SeqCst)
    }
}

fn delivery(lane: Lane, body: &str) -> Delivery {
    Delivery::new(lane, body.as_bytes().to_vec(), Default::default(), false, Box::new(NeverSettled))
}

/// Deliveries are only taken here.
#[derive(Debug)]
struct NeverSettled;

#[async_trait]
impl Acknowledger for NeverSettled {
    async fn acknowledge(&self) -> Result<bool, BrokerError> {
        unreachable!("no test settles it")
    }

    async fn requeue(&self) -> Result<bool, BrokerError> {
        unreachable!("no test settles it")
    }

    async fn reject(&self) -> Result<bool, BrokerError> {
        unreachable!("no test settles it")
    }
}
