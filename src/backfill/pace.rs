//! How fast jobs are published: limited by a rate and by the number of jobs that wait in the lane. Ten million jobs at once
//! would fill the broker and make no worker faster.

use std::time::{Duration, Instant};

use lapin::Connection;

use super::RETRY_DEADLINE;
use crate::broker::{self, BrokerError};
use crate::config::SecretUrl;
use crate::retry;

/// How often the depth of a full lane is read.
const DEPTH_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum number of jobs that are published before the ledger records them. Jobs that were not recorded when a run was
/// killed are published again; they have the same id and get no second verdict.
const MAX_CHUNK_JOBS: u32 = 250;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PublishLimits {
    /// Maximum jobs per second; `None`: as fast as the broker confirms.
    pub rate: Option<f64>,
    /// Maximum jobs that wait in the lane.
    pub depth: u32,
}

/// Decides when jobs may be published to a lane.
pub struct PublishPace {
    url: SecretUrl,
    queue: String,
    limits: PublishLimits,
    schedule: RateSchedule,
    connection: Option<Connection>,
    /// The free room in the lane when its depth was last read, less the jobs published since.
    room: u32,
}

impl PublishPace {
    pub(super) fn new(url: SecretUrl, queue: String, limits: PublishLimits) -> Self {
        Self { url, queue, limits, schedule: RateSchedule::new(limits.rate, Instant::now()), connection: None, room: 0 }
    }

    /// Jobs to publish together: about one second's, so that a slow run stops soon and loses few records.
    pub(super) fn chunk(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
        self.limits.rate.map_or(MAX_CHUNK_JOBS, |rate| rate.ceil().clamp(1.0, f64::from(MAX_CHUNK_JOBS)) as u32)
    }

    /// Waits for room in the lane, and takes up to `wanted` jobs of it. The depth is not read again before that room is used
    /// up: other programs publish little to this lane.
    pub(super) async fn room(&mut self, wanted: u32) -> Result<u32, BrokerError> {
        while self.room == 0 {
            let may_pass = |e: &BrokerError| !matches!(e, BrokerError::LoginRefused { .. });
            let depth = retry::retry_patiently(RETRY_DEADLINE, may_pass, async || self.read_depth().await).await?;
            self.room = self.limits.depth.saturating_sub(depth);
            if self.room == 0 {
                tokio::time::sleep(DEPTH_POLL_INTERVAL).await;
            }
        }
        let taken = wanted.min(self.room);
        self.room -= taken;
        Ok(taken)
    }

    /// How long to wait before the next job.
    pub(super) fn delay(&mut self) -> Duration {
        self.schedule.delay(Instant::now())
    }

    async fn read_depth(&mut self) -> Result<u32, BrokerError> {
        let connection = match self.connection.take() {
            Some(connection) if connection.status().connected() => connection,
            _ => broker::connect(&self.url, "backfill").await?,
        };
        let depth = broker::depth(&connection, &self.queue).await?;
        self.connection = Some(connection);
        Ok(depth.map_or(0, |(messages, _)| messages))
    }
}

/// Evenly spaced times.
#[derive(Debug)]
struct RateSchedule {
    interval: Option<Duration>,
    due: Instant,
}

impl RateSchedule {
    fn new(rate: Option<f64>, now: Instant) -> Self {
        Self { interval: rate.map(|rate| Duration::from_secs_f64(1.0 / rate)), due: now }
    }

    /// How long to wait before the next one. After a pause the schedule does not catch up.
    fn delay(&mut self, now: Instant) -> Duration {
        let Some(interval) = self.interval else { return Duration::ZERO };
        let due = self.due.max(now);
        self.due = due + interval;
        due - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_even_and_does_not_catch_up() {
        let start = Instant::now();
        let mut schedule = RateSchedule::new(Some(10.0), start);
        let delays: Vec<_> = (0..4).map(|_| schedule.delay(start).as_millis()).collect();
        assert_eq!(delays, [0, 100, 200, 300]);
        let late = start + Duration::from_secs(60);
        assert_eq!([schedule.delay(late).as_millis(), schedule.delay(late).as_millis()], [0, 100]);
        assert_eq!(RateSchedule::new(None, start).delay(start), Duration::ZERO);
    }

    #[test]
    fn a_slow_run_publishes_one_second_of_jobs_at_a_time() {
        let chunk =
            |rate| PublishPace::new(SecretUrl::default(), String::new(), PublishLimits { rate, depth: 1 }).chunk();
        assert_eq!(
            [chunk(None), chunk(Some(0.1)), chunk(Some(40.0)), chunk(Some(1e9))],
            [MAX_CHUNK_JOBS, 1, 40, MAX_CHUNK_JOBS]
        );
    }
}
