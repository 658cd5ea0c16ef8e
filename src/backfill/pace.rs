//! How fast jobs are published: by a rate, and by how many wait in the lane already. Ten million objects must not fill
//! the broker, and a worker that falls behind is not helped by more.

use std::time::{Duration, Instant};

use lapin::Connection;

use super::PATIENCE;
use crate::broker::{self, BrokerError};
use crate::config::SecretUrl;
use crate::retry;

/// How often a full lane is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Jobs published before that is noted, at the most. What was not noted when a run is killed is published again; it is
/// the same job, and gets no second verdict.
const CHUNK: u32 = 250;

/// Bounds on publishing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Jobs a second at the most; none: as fast as the broker confirms.
    pub rate: Option<f64>,
    /// Jobs that may wait in the lane.
    pub depth: u32,
}

/// A lane, and when something may be published to it.
pub(super) struct Pace {
    url: SecretUrl,
    queue: String,
    bounds: Bounds,
    beat: Beat,
    connection: Option<Connection>,
    /// What the lane had left when it was looked at, less what was taken since.
    room: u32,
}

impl Pace {
    pub(super) fn new(url: SecretUrl, queue: String, bounds: Bounds) -> Self {
        Self { url, queue, bounds, beat: Beat::new(bounds.rate, Instant::now()), connection: None, room: 0 }
    }

    /// Jobs to be published together: about a second's, so that a slow run is soon stopped and loses little.
    pub(super) fn chunk(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
        self.bounds.rate.map_or(CHUNK, |rate| rate.ceil().clamp(1.0, f64::from(CHUNK)) as u32)
    }

    /// Waits for room in the lane, and takes up to `wanted` of it. Room that was seen once is taken to be still there:
    /// all others publish little to this lane.
    pub(super) async fn room(&mut self, wanted: u32) -> Result<u32, BrokerError> {
        while self.room == 0 {
            let may_pass = |e: &BrokerError| !matches!(e, BrokerError::LoginRefused { .. });
            let waiting = retry::retry_patiently(PATIENCE, may_pass, async || self.waiting().await).await?;
            self.room = self.bounds.depth.saturating_sub(waiting);
            if self.room == 0 {
                tokio::time::sleep(LOOK).await;
            }
        }
        let taken = wanted.min(self.room);
        self.room -= taken;
        Ok(taken)
    }

    /// How long to wait before the next job.
    pub(super) fn wait(&mut self) -> Duration {
        self.beat.wait(Instant::now())
    }

    async fn waiting(&mut self) -> Result<u32, BrokerError> {
        let connection = match self.connection.take() {
            Some(connection) if connection.status().connected() => connection,
            _ => broker::connect(&self.url, "backfill").await?,
        };
        let depth = broker::depth(&connection, &self.queue).await?;
        self.connection = Some(connection);
        Ok(depth.map_or(0, |(messages, _)| messages))
    }
}

/// Evenly spaced moments.
#[derive(Debug)]
struct Beat {
    interval: Option<Duration>,
    due: Instant,
}

impl Beat {
    fn new(rate: Option<f64>, now: Instant) -> Self {
        Self { interval: rate.map(|rate| Duration::from_secs_f64(1.0 / rate)), due: now }
    }

    /// How long to wait before the next one. Time that was lost is not made up for.
    fn wait(&mut self, now: Instant) -> Duration {
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
    fn a_beat_is_even_and_makes_up_for_nothing() {
        let start = Instant::now();
        let mut beat = Beat::new(Some(10.0), start);
        let waits: Vec<_> = (0..4).map(|_| beat.wait(start).as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 300]);
        let late = start + Duration::from_secs(60);
        assert_eq!([beat.wait(late).as_millis(), beat.wait(late).as_millis()], [0, 100]);
        assert_eq!(Beat::new(None, start).wait(start), Duration::ZERO);
    }

    #[test]
    fn a_slow_run_publishes_a_second_at_a_time() {
        let chunk = |rate| Pace::new(SecretUrl::default(), String::new(), Bounds { rate, depth: 1 }).chunk();
        assert_eq!([chunk(None), chunk(Some(0.1)), chunk(Some(40.0)), chunk(Some(1e9))], [CHUNK, 1, 40, CHUNK]);
    }
}
