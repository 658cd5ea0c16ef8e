//! When to try again. Only this file names the crate `backoff`. It is small and works, but is no longer maintained: if it
//! must be replaced one day, only this file changes.

use std::time::{Duration, Instant};

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// How long to wait after `failures` failures (1 or more): 1 s, five times longer with each failure up to `longest`, and
/// half of it random.
#[must_use]
pub fn jittered_delay(failures: u32, longest: Duration) -> Duration {
    let grown = Duration::from_secs(1).saturating_mul(5u32.saturating_pow(failures.saturating_sub(1).min(9)));
    let mut jitter = ExponentialBackoffBuilder::new()
        .with_initial_interval(grown.min(longest))
        .with_randomization_factor(0.5)
        .with_max_elapsed_time(None)
        .build();
    jitter.next_backoff().unwrap_or(grown)
}

/// Growing delays without an end, for work that must not give up: 0.2 s to 10 s, each with a random part of one half.
#[derive(Debug)]
pub struct Delays(ExponentialBackoff);

impl Default for Delays {
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

impl Delays {
    /// The next, longer delay.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(Duration::from_secs(10))
    }

    /// Starts again with the shortest delay.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// Repeats an operation a few times within two seconds, while its error is `transient`.
///
/// # Errors
/// The last error.
pub async fn retry_briefly<T, E, F>(transient: impl Fn(&E) -> bool, mut operation: impl FnMut() -> F) -> Result<T, E>
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

/// Repeats an operation with growing delays, while its error is `transient` and `patience` is not over.
///
/// # Errors
/// The last error.
pub async fn retry_patiently<T, E: std::fmt::Display>(
    patience: Duration,
    transient: impl Fn(&E) -> bool,
    mut operation: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut delays = Delays::default();
    let began = Instant::now();
    loop {
        match operation().await {
            Err(e) if transient(&e) && began.elapsed() < patience => {
                let delay = delays.next_delay();
                tracing::warn!(error = %e, delay_ms = delay.as_millis(), "operation failed, retrying after a delay");
                tokio::time::sleep(delay).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
        let mut tries = 0;
        let result: Result<(), u8> = retry_briefly(
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
