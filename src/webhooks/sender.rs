//! Sends what waits for one endpoint. Each endpoint has its own sender, so that a slow one delays no other.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::circuit::{Change, Circuit};
use super::client::{Client, Request, SendError};
use super::options::Endpoint;
use crate::fault_injection;
use crate::ledger::{AfterFailure, FailedAttempt, WebhookDelivery, Webhooks};
use crate::retry::jittered_delay;
use crate::telemetry::metrics::{self, labels::WebhookResult};

/// Requests to one endpoint that run at the same time in this process.
pub(super) const IN_FLIGHT: usize = 8;
/// How often the ledger is asked what is due.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Attempts at one delivery. The delays between them are about 5 s, 25 s, 2 min, 10 min, 52 min, 4 h, and then 12 h each:
/// three days together.
const MAX_ATTEMPTS: u32 = 13;
const MAX_RETRY_DELAY: Duration = Duration::from_hours(12);
/// How long an endpoint must have failed in this process, before what waits behind it for too long is given up.
const GIVE_UP_AFTER: Duration = Duration::from_hours(1);

/// Sends the deliveries of one endpoint.
pub(super) struct EndpointSender {
    pub endpoint: Arc<Endpoint>,
    pub ledger: Arc<dyn Webhooks>,
    pub client: Arc<dyn Client>,
    pub stop: CancellationToken,
}

impl EndpointSender {
    /// Runs until `stop`, and until the requests that run then have ended.
    pub(super) async fn run(self) {
        let (mut circuit, mut sending) = (Circuit::default(), JoinSet::new());
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Whether more may be due than was taken.
        let (mut is_due, mut give_up_due) = (true, Instant::now());
        // Until when the endpoint has asked to be left alone.
        let mut left_alone_until = Instant::now();
        while !self.stop.is_cancelled() {
            let now = Instant::now();
            let room = if now < left_alone_until { 0 } else { circuit.allowance(now, sending.len(), IN_FLIGHT) };
            if is_due && room > 0 {
                let due = self.lease(room).await;
                is_due = due.len() >= room;
                for delivery in due {
                    let (endpoint, ledger, client) =
                        (Arc::clone(&self.endpoint), Arc::clone(&self.ledger), Arc::clone(&self.client));
                    sending.spawn(async move { attempt(&endpoint, ledger.as_ref(), client.as_ref(), delivery).await });
                }
                continue;
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some(ended) = sending.join_next() => {
                    let ended = ended.unwrap_or(Attempt::Failed { retry_after: None });
                    if let Attempt::Failed { retry_after: Some(delay) } = ended {
                        left_alone_until = left_alone_until.max(Instant::now() + delay);
                    }
                    self.observe(&mut circuit, ended);
                    self.give_up_waiting(&circuit, &mut give_up_due).await;
                }
                _ = ticks.tick() => is_due = true,
            }
        }
        while sending.join_next().await.is_some() {}
    }

    async fn lease(&self, limit: usize) -> Vec<WebhookDelivery> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        self.ledger.lease_deliveries(&self.endpoint.name, limit).await.unwrap_or_else(|error| {
            tracing::debug!(endpoint = self.endpoint.name, %error, "due webhooks not read");
            Vec::new()
        })
    }

    fn observe(&self, circuit: &mut Circuit, ended: Attempt) {
        let (endpoint, now) = (&self.endpoint.name, Instant::now());
        let change = match ended {
            Attempt::Succeeded => circuit.succeeded(),
            Attempt::Failed { .. } => circuit.failed(now),
            Attempt::Gone => {
                if !matches!(circuit, Circuit::Gone) {
                    let hint =
                        "remove the entry from `webhooks`, or start this process again when the endpoint is back";
                    tracing::warn!(endpoint, hint, "webhook switched off, its endpoint is gone (HTTP status 410)");
                }
                *circuit = Circuit::Gone;
                Change::None
            }
        };
        match change {
            Change::Opened => {
                tracing::warn!(
                    endpoint,
                    "webhook fails again and again, one event at a time is tried until one succeeds"
                );
            }
            Change::Closed => tracing::info!(endpoint, "webhook works again"),
            Change::None => {}
        }
    }

    /// Gives up what has waited too long behind an endpoint that fails, at most once in [`GIVE_UP_AFTER`].
    async fn give_up_waiting(&self, circuit: &Circuit, due: &mut Instant) {
        let (endpoint, now) = (&self.endpoint.name, Instant::now());
        if circuit.open_for(now) < GIVE_UP_AFTER || now < *due {
            return;
        }
        *due = now + GIVE_UP_AFTER;
        match self.ledger.give_up_waiting(endpoint, "the endpoint has failed for too long").await {
            Ok(0) => {}
            Ok(deliveries) => {
                metrics::webhooks_given_up(endpoint, deliveries);
                tracing::warn!(endpoint, deliveries, "events for a webhook given up, they waited for too long");
            }
            Err(error) => tracing::debug!(endpoint, %error, "old webhooks not given up"),
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Succeeded,
    /// The endpoint may have asked to be left alone.
    Failed {
        retry_after: Option<Duration>,
    },
    Gone,
}

/// Sends a delivery once, and records how that ended. A success that cannot be recorded is sent again.
async fn attempt(
    endpoint: &Arc<Endpoint>,
    ledger: &dyn Webhooks,
    client: &dyn Client,
    delivery: WebhookDelivery,
) -> Attempt {
    let WebhookDelivery { id, event_id, routing_key, payload, attempts } = delivery;
    let name = &endpoint.name;
    let request = Request { id: event_id.to_string(), body: payload };
    match client.send(endpoint, request).await {
        Ok(status) => {
            fault_injection::crash_point("webhook");
            metrics::webhook_attempted(name, WebhookResult::Delivered);
            if let Err(error) = ledger.mark_delivered(id, status).await {
                tracing::debug!(endpoint = name, event = %event_id, %error, "delivered webhook not marked, it is sent again later");
            }
            Attempt::Succeeded
        }
        Err(error) => {
            let next = after(attempts, error.retry_after());
            let result = if next == AfterFailure::GiveUp { WebhookResult::GivenUp } else { WebhookResult::Failed };
            metrics::webhook_attempted(name, result);
            if next == AfterFailure::GiveUp {
                tracing::warn!(endpoint = name, event = %event_id, routing_key, attempts, %error, hint = "`pixwarden webhook replay` sends it again", "webhook given up");
            } else {
                tracing::debug!(endpoint = name, event = %event_id, routing_key, attempts, %error, "webhook not delivered");
            }
            let failed = FailedAttempt { id, attempts, status: error.status(), error: plain(&error), next };
            if let Err(error) = ledger.record_failure(&failed).await {
                tracing::debug!(endpoint = name, event = %event_id, %error, "reason of a failed webhook not recorded");
            }
            if error.is_gone() { Attempt::Gone } else { Attempt::Failed { retry_after: error.retry_after() } }
        }
    }
}

/// What follows the failure of this attempt, counted from 1. A pause that the endpoint asks for makes the delay no shorter.
fn after(attempts: u32, retry_after: Option<Duration>) -> AfterFailure {
    if attempts >= MAX_ATTEMPTS {
        AfterFailure::GiveUp
    } else {
        AfterFailure::RetryIn(jittered_delay(attempts + 1, MAX_RETRY_DELAY).max(retry_after.unwrap_or_default()))
    }
}

/// The error on one line, without its hint.
fn plain(error: &SendError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use uuid::Uuid;

    use super::*;
    use crate::ledger::{DeliveryFilter, LedgerError, ReplaySelection, StoredDelivery, WaitingDeliveries};

    /// A delivery in memory: its endpoint, when it is due, its attempts, and whether it has ended.
    struct Row {
        endpoint: &'static str,
        due_at: Instant,
        attempts: u32,
        ended: Option<&'static str>,
    }

    /// A ledger in memory.
    #[derive(Default)]
    struct FakeLedger(Mutex<BTreeMap<i64, Row>>);

    impl FakeLedger {
        fn with(rows: &[(&'static str, usize)]) -> Arc<Self> {
            let ledger = Self::default();
            for (endpoint, count) in rows {
                for _ in 0..*count {
                    ledger.add(endpoint);
                }
            }
            Arc::new(ledger)
        }

        fn add(&self, endpoint: &'static str) {
            let mut rows = self.0.lock().unwrap();
            let id = i64::try_from(rows.len()).unwrap();
            rows.insert(id, Row { endpoint, due_at: Instant::now(), attempts: 0, ended: None });
        }

        fn ended(&self, how: &str) -> usize {
            self.0.lock().unwrap().values().filter(|row| row.ended == Some(how)).count()
        }
    }

    #[async_trait]
    impl Webhooks for FakeLedger {
        async fn lease_deliveries(&self, endpoint: &str, limit: u32) -> Result<Vec<WebhookDelivery>, LedgerError> {
            let mut rows = self.0.lock().unwrap();
            let due = |row: &&mut Row| row.endpoint == endpoint && row.ended.is_none() && row.due_at <= Instant::now();
            let due = rows.iter_mut().filter(|(_, row)| due(row)).take(limit as usize);
            Ok(due
                .map(|(id, row)| {
                    row.due_at += Duration::from_mins(1);
                    row.attempts += 1;
                    let (event_id, routing_key) = (Uuid::nil(), "image.flagged".into());
                    WebhookDelivery { id: *id, event_id, routing_key, payload: id.to_string(), attempts: row.attempts }
                })
                .collect())
        }

        async fn mark_delivered(&self, id: i64, _: u16) -> Result<(), LedgerError> {
            self.0.lock().unwrap().get_mut(&id).unwrap().ended = Some("delivered");
            Ok(())
        }

        async fn record_failure(&self, failed: &FailedAttempt) -> Result<(), LedgerError> {
            let mut rows = self.0.lock().unwrap();
            let row = rows.get_mut(&failed.id).unwrap();
            match failed.next {
                AfterFailure::RetryIn(delay) => row.due_at = Instant::now() + delay,
                AfterFailure::GiveUp => row.ended = Some("given up"),
            }
            Ok(())
        }

        async fn give_up_waiting(&self, _: &str, _: &str) -> Result<u64, LedgerError> {
            Ok(0)
        }

        async fn give_up_orphans(&self, _: &[String], _: &str) -> Result<u64, LedgerError> {
            Ok(0)
        }

        async fn prune_deliveries(&self, _: Duration, _: u32) -> Result<u64, LedgerError> {
            Ok(0)
        }

        async fn count_waiting(&self, _: &[String]) -> Result<Vec<WaitingDeliveries>, LedgerError> {
            Ok(Vec::new())
        }

        async fn find_deliveries(&self, _: &DeliveryFilter, _: u32) -> Result<Vec<StoredDelivery>, LedgerError> {
            Ok(Vec::new())
        }

        async fn replay_deliveries(&self, _: &ReplaySelection) -> Result<u64, LedgerError> {
            Ok(0)
        }
    }

    /// The attempts at each endpoint, each of which takes a second.
    #[derive(Default)]
    struct FakeClient {
        answers: BTreeMap<&'static str, u16>,
        retry_after: BTreeMap<&'static str, Duration>,
        began: Mutex<Vec<(String, Instant)>>,
        /// Now, and at most.
        running: Mutex<(usize, usize)>,
    }

    #[async_trait]
    impl Client for FakeClient {
        async fn send(&self, endpoint: &Arc<Endpoint>, _: Request) -> Result<u16, SendError> {
            self.began.lock().unwrap().push((endpoint.name.clone(), Instant::now()));
            {
                let mut running = self.running.lock().unwrap();
                running.0 += 1;
                running.1 = running.1.max(running.0);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.running.lock().unwrap().0 -= 1;
            match self.answers.get(endpoint.name.as_str()) {
                None => Ok(204),
                Some(status) => {
                    let retry_after = self.retry_after.get(endpoint.name.as_str()).copied();
                    Err(SendError::Refused { status: *status, said: String::new(), retry_after })
                }
            }
        }
    }

    impl FakeClient {
        fn attempts(&self, endpoint: &str) -> usize {
            self.began.lock().unwrap().iter().filter(|(name, _)| name == endpoint).count()
        }
    }

    /// Runs the senders of some endpoints for a time, which does not pass in fact.
    async fn run(ledger: &Arc<FakeLedger>, client: &Arc<FakeClient>, endpoints: &[&str], time: Duration) {
        let stop = CancellationToken::new();
        let mut senders = JoinSet::new();
        for name in endpoints {
            let url = url::Url::parse("https://h/").unwrap();
            let endpoint = Arc::new(Endpoint { name: (*name).to_owned(), url, keys: vec![vec![7; 24]] });
            let sender = EndpointSender {
                endpoint,
                ledger: Arc::clone(ledger) as _,
                client: Arc::clone(client) as _,
                stop: stop.clone(),
            };
            senders.spawn(sender.run());
        }
        tokio::time::sleep(time).await;
        stop.cancel();
        while senders.join_next().await.is_some() {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_endpoint_gets_a_few_probes_and_delays_no_other() {
        let ledger = FakeLedger::with(&[("dead", 1_000), ("alive", 100)]);
        let client = Arc::new(FakeClient { answers: [("dead", 500)].into(), ..FakeClient::default() });
        run(&ledger, &client, &["dead", "alive"], Duration::from_secs(20)).await;
        assert_eq!((client.attempts("alive"), ledger.ended("delivered")), (100, 100));
        // Those that ran when it was noticed, and a probe after some seconds.
        assert!((5..=IN_FLIGHT + 5).contains(&client.attempts("dead")), "{}", client.attempts("dead"));
        let before = client.attempts("dead");
        run(&ledger, &client, &["dead"], Duration::from_hours(1)).await;
        // A new process finds out once more; then one probe in one or two minutes.
        let probes = client.attempts("dead") - before;
        assert!((20..100).contains(&probes), "{probes}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_endpoint_gets_more_requests_at_a_time_than_it_may() {
        let ledger = FakeLedger::with(&[("a", 50)]);
        let client = Arc::new(FakeClient::default());
        run(&ledger, &client, &["a"], Duration::from_secs(8)).await;
        assert_eq!((ledger.ended("delivered"), client.running.lock().unwrap().1), (50, IN_FLIGHT));
        // What comes later is found as well.
        ledger.add("a");
        run(&ledger, &client, &["a"], Duration::from_secs(3)).await;
        assert_eq!(ledger.ended("delivered"), 51);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_after_some_seconds_and_given_up_after_the_last_attempt() {
        let ledger = FakeLedger::with(&[("a", 1)]);
        let client = Arc::new(FakeClient { answers: [("a", 400)].into(), ..FakeClient::default() });
        run(&ledger, &client, &["a"], Duration::from_secs(12)).await;
        let times: Vec<Instant> = client.began.lock().unwrap().iter().map(|(_, at)| *at).collect();
        let pause = times[1].duration_since(times[0]);
        assert!((Duration::from_secs(2)..Duration::from_secs(12)).contains(&pause), "{pause:?}");
        ledger.0.lock().unwrap().get_mut(&0).unwrap().attempts = MAX_ATTEMPTS - 1;
        run(&ledger, &client, &["a"], Duration::from_mins(2)).await;
        assert_eq!((client.attempts("a"), ledger.ended("given up")), (times.len() + 1, 1));
    }

    #[test]
    fn the_attempts_take_about_three_days_and_the_delays_grow_to_half_a_day() {
        let delays: Vec<Duration> = (1..MAX_ATTEMPTS)
            .map(|attempts| match after(attempts, None) {
                AfterFailure::RetryIn(delay) => delay,
                AfterFailure::GiveUp => panic!("given up after {attempts} attempts"),
            })
            .collect();
        let asked = Some(Duration::from_mins(30));
        assert_eq!(after(MAX_ATTEMPTS, asked), AfterFailure::GiveUp);
        assert_eq!(after(1, asked), AfterFailure::RetryIn(Duration::from_mins(30)));
        // Half of each delay is random.
        let is_near = |delay: Duration, expected: Duration| delay >= expected / 2 && delay <= expected * 3 / 2;
        assert!(
            is_near(delays[0], Duration::from_secs(5)) && is_near(delays[3], Duration::from_mins(10)),
            "{delays:?}"
        );
        assert!(is_near(delays[MAX_ATTEMPTS as usize - 2], MAX_RETRY_DELAY), "{delays:?}");
        assert!(is_near(delays.iter().sum(), Duration::from_hours(77)), "{delays:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_asks_to_be_left_alone_gets_no_request_of_any_event_meanwhile() {
        let ledger = FakeLedger::with(&[("busy", 100), ("alive", 100)]);
        let retry_after = [("busy", Duration::from_mins(10))].into();
        let client = Arc::new(FakeClient { answers: [("busy", 429)].into(), retry_after, ..FakeClient::default() });
        run(&ledger, &client, &["busy", "alive"], Duration::from_mins(9)).await;
        assert_eq!((client.attempts("busy"), client.attempts("alive")), (IN_FLIGHT, 100));
        let began = Instant::now();
        run(&ledger, &client, &["busy"], Duration::from_mins(25)).await;
        // A new process finds out once more, and asks again after the pause.
        let times: Vec<Instant> = client.began.lock().unwrap().iter().map(|(_, at)| *at).collect();
        let pauses: Vec<_> = times.iter().filter(|at| **at > began).map(|at| at.duration_since(began)).collect();
        let is_within = |pause: &Duration| *pause > Duration::from_secs(2) && *pause < Duration::from_mins(10);
        assert!(!pauses.iter().any(is_within), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause >= Duration::from_mins(10)), "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_is_gone_gets_no_further_request_until_the_process_starts_again() {
        let ledger = FakeLedger::with(&[("a", 100)]);
        let client = Arc::new(FakeClient { answers: [("a", 410)].into(), ..FakeClient::default() });
        run(&ledger, &client, &["a"], Duration::from_mins(20)).await;
        assert_eq!(client.attempts("a"), IN_FLIGHT);
        run(&ledger, &client, &["a"], Duration::from_mins(2)).await;
        assert_eq!(client.attempts("a"), 2 * IN_FLIGHT);
    }
}
