//! A steady load on one part: a fixed number of operations in flight, for a given time, and the figures of it.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::processes::processor_time;

/// Fewer completed operations give no meaningful rate, however long each takes.
const MIN_COMPLETED: u64 = 3;
/// Durations kept for the percentiles; bounds memory during an hour of the fastest part.
const MAX_DURATIONS: usize = 1_000_000;

/// The measurement was stopped before its end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// How a part is loaded.
pub(super) struct SteadyLoad<'a> {
    /// Operations in flight, at least 1.
    pub in_flight: usize,
    /// How long the count lasts. It begins once as many operations have completed as are in flight.
    pub time: Duration,
    /// Operations per round, at least 1. Images differ in size, and every part must be measured with the same mixture:
    /// only whole rounds count, unless one round takes longer than `time`.
    pub round: usize,
    pub stop: &'a CancellationToken,
}

/// The figures of one load.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadResult {
    pub completed: u64,
    pub seconds: f64,
    /// Processor time of this process and its decoders during the count; `None` where the system does not report it.
    pub processor_s: Option<f64>,
    /// The duration of each operation, ascending.
    durations: Vec<Duration>,
}

impl LoadResult {
    pub(crate) fn per_second(&self) -> f64 {
        as_f64(self.completed) / self.seconds
    }

    /// The duration in milliseconds that this fraction of the operations did not exceed, by the nearest rank.
    pub(crate) fn percentile_ms(&self, fraction: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank is a small number, and never below 0"
        )]
        let rank = (as_f64(self.durations.len() as u64) * fraction).ceil() as usize;
        self.durations.get(rank.saturating_sub(1)).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
    }

    /// Processor time per operation in milliseconds.
    pub(crate) fn processor_ms(&self) -> Option<f64> {
        self.processor_s.map(|seconds| seconds * 1e3 / as_f64(self.completed))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one measurement stay far below 2^52")]
pub(crate) fn as_f64(n: u64) -> f64 {
    n as f64
}

impl SteadyLoad<'_> {
    /// Keeps `in_flight` operations running, each started by `next`. The first ones warm up and do not count. The count
    /// begins and ends with a completed operation, so that no slow operation is counted in part.
    ///
    /// # Errors
    /// [`Interrupted`], or the first failure of an operation.
    pub(super) async fn run<F>(self, mut next: impl FnMut() -> F) -> anyhow::Result<LoadResult>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let mut start = || {
            let (started, operation) = (Instant::now(), next());
            operation.map(move |outcome| outcome.map(|()| started.elapsed()))
        };
        let mut running: FuturesUnordered<_> = (0..self.in_flight.max(1)).map(|_| start()).collect();
        let started = Instant::now();
        let mut warmed_up = 0;
        let mut counting: Option<(Instant, Option<Duration>)> = None;
        let mut result = LoadResult::default();
        loop {
            let completed = self.stop.run_until_cancelled(running.next()).await.ok_or(Interrupted)?;
            let mut completed = completed.into_iter().collect::<Result<Vec<_>, _>>()?;
            running.push(start());
            // The images of a batch complete together: the count must begin and end between batches.
            while completed.len() < self.in_flight
                && let Some(Some(another)) = running.next().now_or_never()
            {
                completed.push(another?);
                running.push(start());
            }
            match counting {
                None => {
                    warmed_up += completed.len();
                    if warmed_up >= self.in_flight || started.elapsed() >= self.time {
                        counting = Some((Instant::now(), processor_time()));
                    }
                }
                Some((since, processor)) => {
                    let rounds_before = result.completed / self.round.max(1) as u64;
                    result.completed += completed.len() as u64;
                    let ends_round = result.completed / self.round.max(1) as u64 > rounds_before;
                    let elapsed = since.elapsed();
                    let is_over = elapsed >= self.time && ends_round || elapsed >= self.time * 2;
                    let room = MAX_DURATIONS.saturating_sub(result.durations.len());
                    result.durations.extend(completed.into_iter().take(room));
                    if is_over && result.completed >= MIN_COMPLETED {
                        result.seconds = elapsed.as_secs_f64();
                        let used = processor_time().zip(processor);
                        result.processor_s = used.map(|(now, before)| now.saturating_sub(before).as_secs_f64());
                        result.durations.sort_unstable();
                        return Ok(result);
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
        let durations = (1..=20).map(Duration::from_millis).collect();
        let result = LoadResult { completed: 20, seconds: 2.0, processor_s: Some(1.0), durations };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        close(result.percentile_ms(0.5), 10.0);
        close(result.percentile_ms(0.95), 19.0);
        close(result.percentile_ms(1.0), 20.0);
        close(result.per_second(), 10.0);
        close(result.processor_ms().unwrap(), 50.0);
    }

    #[tokio::test]
    async fn a_completed_operation_is_replaced_and_the_first_ones_do_not_count() {
        let (started, in_flight, highest) = (Cell::new(0u64), Cell::new(0), Cell::new(0));
        let stop = CancellationToken::new();
        let load = SteadyLoad { in_flight: 4, time: Duration::from_millis(20), round: 7, stop: &stop };
        let result = load
            .run(|| {
                started.set(started.get() + 1);
                in_flight.set(in_flight.get() + 1);
                highest.set(highest.get().max(in_flight.get()));
                async {
                    tokio::task::yield_now().await;
                    in_flight.set(in_flight.get() - 1);
                    Ok(())
                }
            })
            .await
            .unwrap();
        assert!(highest.get() <= 5, "an operation is replaced as soon as it has completed: {}", highest.get());
        assert!(result.completed >= MIN_COMPLETED && result.completed < started.get(), "the first do not count");
        assert!(result.seconds >= 0.02);
    }

    #[tokio::test]
    async fn a_load_ends_when_it_is_stopped_or_an_operation_fails() {
        let stop = CancellationToken::new();
        let load = || SteadyLoad { in_flight: 2, time: Duration::from_secs(60), round: 1, stop: &stop };
        let failed = load().run(|| std::future::ready(Err(anyhow::anyhow!("broken")))).await.unwrap_err();
        assert_eq!(failed.to_string(), "broken");
        stop.cancel();
        assert!(load().run(std::future::pending).await.unwrap_err().is::<Interrupted>());
    }
}
