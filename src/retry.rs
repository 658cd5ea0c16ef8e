//! When to try again. The one place that names `backoff`, which is small, does its work, and is no longer maintained:
//! should it have to go, it goes here.

use std::time::{Duration, Instant};

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// The delay queues, shortest first: the suffix of the queue's name and how long a message stays in it.
pub const RUNGS: [(&str, Duration); 5] = [
    ("1s", Duration::from_secs(1)),
    ("5s", Duration::from_secs(5)),
    ("30s", Duration::from_secs(30)),
    ("2m", Duration::from_secs(120)),
    ("10m", Duration::from_secs(600)),
];

/// The delay queue for a job after `failures` failed attempts (1 or more): exponential with jitter, so that jobs which
/// failed together do not come back together.
#[must_use]
pub fn rung(failures: u32) -> usize {
    let grown = Duration::from_secs(1).saturating_mul(5u32.saturating_pow(failures.saturating_sub(1).min(9)));
    let mut jitter = ExponentialBackoffBuilder::new()
        .with_initial_interval(grown.min(RUNGS[RUNGS.len() - 1].1))
        .with_randomization_factor(0.5)
        .with_max_elapsed_time(None)
        .build();
    let wanted = jitter.next_backoff().unwrap_or(grown);
    RUNGS.iter().rposition(|(_, delay)| *delay <= wanted.mul_f64(1.5)).unwrap_or(0)
}

/// Growing pauses without an end, for whoever must not give up: 0.2 s to 10 s, each jittered by half.
#[derive(Debug)]
pub struct Pauses(ExponentialBackoff);

impl Default for Pauses {
    fn default() -> Self {
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(Duration::from_millis(200))
                .with_multiplier(2.0)
                .with_max_interval(Duration::from_secs(10))
                .with_max_elapsed_time(None)
                .build(),
        )
    }
}

impl Pauses {
    /// The next, longer pause.
    pub fn longer(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(Duration::from_secs(10))
    }

    /// Starts anew after a success.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// Repeats an operation a few times within two seconds, as long as `transient` says that its error may pass.
///
/// # Errors
/// The last error.
pub async fn briefly<T, E, F>(transient: impl Fn(&E) -> bool, mut operation: impl FnMut() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let policy = ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(20))
        .with_max_elapsed_time(Some(Duration::from_secs(2)))
        .build();
    backoff::future::retry(policy, || {
        let attempt = operation();
        let transient = &transient;
        async move {
            attempt
                .await
                .map_err(|e| if transient(&e) { backoff::Error::transient(e) } else { backoff::Error::permanent(e) })
        }
    })
    .await
}

/// Repeats an operation, with growing pauses, as long as `transient` says that its error may pass and `patience` has not
/// run out.
///
/// # Errors
/// The last error.
pub async fn patiently<T, E: std::fmt::Display>(
    patience: Duration,
    transient: impl Fn(&E) -> bool,
    mut operation: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut pauses = Pauses::default();
    let began = Instant::now();
    loop {
        match operation().await {
            Err(e) if transient(&e) && began.elapsed() < patience => {
                let pause = pauses.longer();
                tracing::warn!(error = %e, pause_ms = pause.as_millis(), "it is tried again after a pause");
                tokio::time::sleep(pause).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_grow_with_failures_and_are_spread() {
        let seen = |failures| {
            let mut rungs: Vec<_> = (0..200).map(|_| rung(failures)).collect();
            rungs.sort_unstable();
            rungs.dedup();
            rungs
        };
        assert_eq!(seen(1), [0]);
        assert!(seen(2).contains(&1) && seen(2).iter().all(|r| *r <= 1));
        assert!(seen(4).iter().all(|r| (2..=3).contains(r)));
        assert!(seen(40).iter().all(|r| *r >= 3), "the longest delays, however often it failed");
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
        let mut tries = 0;
        let result: Result<(), u8> = briefly(
            |e| *e == 1,
            || {
                tries += 1;
                let result = if tries < 3 { Err(1) } else { Err(2) };
                async move { result }
            },
        )
        .await;
        assert_eq!((result, tries), (Err(2), 3));
    }
}
