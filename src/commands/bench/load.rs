//! A steady load: so many of something at a time, for so long, and what came of it.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio_util::sync::CancellationToken;

use super::super::processes::processor_time;

/// Fewer say nothing, however long each takes.
const LEAST: u64 = 3;
/// Times kept for the percentiles. An hour of the fastest part would fill memory otherwise.
const MOST_TIMES: usize = 1_000_000;

/// Somebody wants the measurement to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Interrupted;

/// How to load a part.
pub(super) struct Load<'a> {
    /// How much is under way at a time, at least 1.
    pub in_flight: usize,
    /// How long is counted, after what was under way first.
    pub time: Duration,
    /// How many make a round, at least 1. Only whole rounds are counted unless one takes longer than the time itself: of
    /// large and small images every part is to see the same mixture.
    pub round: usize,
    /// Ends it early.
    pub stop: &'a CancellationToken,
}

/// What was counted.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// How many were done.
    pub done: u64,
    /// In which time.
    pub seconds: f64,
    /// Processor time meanwhile, of this process and its decoders; `None` where the system does not tell.
    pub processor_s: Option<f64>,
    /// What each took, ascending.
    took: Vec<Duration>,
}

impl Tally {
    /// How many a second.
    pub(super) fn rate(&self) -> f64 {
        count(self.done) / self.seconds
    }

    /// The time that so large a part of them stayed within, by the nearest rank, in milliseconds.
    pub(super) fn percentile_ms(&self, part: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank is a small number, and never below 0"
        )]
        let rank = (count(self.took.len() as u64) * part).ceil() as usize;
        self.took.get(rank.saturating_sub(1)).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }

    /// Processor time each, in milliseconds.
    pub(super) fn processor_ms(&self) -> Option<f64> {
        self.processor_s.map(|seconds| seconds * 1e3 / count(self.done))
    }
}

#[expect(clippy::cast_precision_loss, reason = "what can be counted in a session is far below 2^52")]
pub(super) fn count(n: u64) -> f64 {
    n as f64
}

impl Load<'_> {
    /// Keeps the load up with whatever `next` begins. What was under way first warms up and is not counted; the count
    /// begins and ends with something done, so that slow things are not counted in halves.
    ///
    /// # Errors
    /// [`Interrupted`], or the first failure.
    pub(super) async fn run<F>(self, mut next: impl FnMut() -> F) -> anyhow::Result<Tally>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let mut begin = || {
            let (began, work) = (Instant::now(), next());
            work.map(move |done| done.map(|()| began.elapsed()))
        };
        let mut running: FuturesUnordered<_> = (0..self.in_flight.max(1)).map(|_| begin()).collect();
        let started = Instant::now();
        let mut warm = 0;
        let mut counting: Option<(Instant, Option<Duration>)> = None;
        let mut tally = Tally::default();
        loop {
            let done = self.stop.run_until_cancelled(running.next()).await.ok_or(Interrupted)?;
            let mut done = done.into_iter().collect::<Result<Vec<_>, _>>()?;
            running.push(begin());
            // A batch is done at once: its end is a good moment, its middle is not.
            while done.len() < self.in_flight
                && let Some(Some(another)) = running.next().now_or_never()
            {
                done.push(another?);
                running.push(begin());
            }
            match counting {
                None => {
                    warm += done.len();
                    if warm >= self.in_flight || started.elapsed() >= self.time {
                        counting = Some((Instant::now(), processor_time()));
                    }
                }
                Some((since, processor)) => {
                    let rounds_before = tally.done / self.round.max(1) as u64;
                    tally.done += done.len() as u64;
                    let is_round = tally.done / self.round.max(1) as u64 > rounds_before;
                    let elapsed = since.elapsed();
                    let is_over = elapsed >= self.time && is_round || elapsed >= self.time * 2;
                    let room = MOST_TIMES.saturating_sub(tally.took.len());
                    tally.took.extend(done.into_iter().take(room));
                    if is_over && tally.done >= LEAST {
                        tally.seconds = elapsed.as_secs_f64();
                        let used = processor_time().zip(processor);
                        tally.processor_s = used.map(|(now, before)| now.saturating_sub(before).as_secs_f64());
                        tally.took.sort_unstable();
                        return Ok(tally);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let took = (1..=20).map(Duration::from_millis).collect();
        let tally = Tally { done: 20, seconds: 2.0, processor_s: Some(1.0), took };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        close(tally.percentile_ms(0.5), 10.0);
        close(tally.percentile_ms(0.95), 19.0);
        close(tally.percentile_ms(1.0), 20.0);
        close(tally.rate(), 10.0);
        close(tally.processor_ms().unwrap(), 50.0);
    }

    #[tokio::test]
    async fn so_many_are_under_way_and_what_is_done_is_replaced() {
        let (begun, under_way, most) = (Cell::new(0u64), Cell::new(0), Cell::new(0));
        let stop = CancellationToken::new();
        let load = Load { in_flight: 4, time: Duration::from_millis(20), round: 7, stop: &stop };
        let tally = load
            .run(|| {
                begun.set(begun.get() + 1);
                under_way.set(under_way.get() + 1);
                most.set(most.get().max(under_way.get()));
                async {
                    tokio::task::yield_now().await;
                    under_way.set(under_way.get() - 1);
                    Ok(())
                }
            })
            .await
            .unwrap();
        assert!(most.get() <= 5, "one is replaced as soon as it is done: {}", most.get());
        assert!(tally.done >= LEAST && tally.done < begun.get(), "the first round does not count");
        assert!(tally.seconds >= 0.02);
    }

    #[tokio::test]
    async fn it_ends_when_it_is_told_to_or_something_fails() {
        let stop = CancellationToken::new();
        let load = || Load { in_flight: 2, time: Duration::from_secs(60), round: 1, stop: &stop };
        let failed = load().run(|| std::future::ready(Err(anyhow::anyhow!("broken")))).await.unwrap_err();
        assert_eq!(failed.to_string(), "broken");
        stop.cancel();
        assert!(load().run(std::future::pending).await.unwrap_err().is::<Interrupted>());
    }
}
