//! Notices a run that never ends, because its device hangs. The steps of warm-up are runs too.
//!
//! A run cannot be cancelled, so its session is lost, and with it the process. Until then its jobs must not wait for ever.
//! Time is counted in checks: a process that was stopped, or a machine that slept, must not be taken for a hung device.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A run that takes less is never taken for a hung one.
const MIN_LIMIT: Duration = if cfg!(test) { Duration::from_secs(4) } else { Duration::from_secs(60) };
/// A run may take this many times as long as runs usually take.
const LIMIT_FACTOR: u32 = 20;
/// A step of warm-up may take this long: loading a large model from a slow disk, or the first run on a device.
const WARM_UP_LIMIT: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(600) };
/// Time between two checks.
const CHECK_INTERVAL: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(1) };

/// The runs of one session.
#[derive(Default)]
pub(super) struct RunClock {
    state: Mutex<RunState>,
}

#[derive(Default)]
struct RunState {
    running_since: Option<Instant>,
    /// Checks that the present run has outlasted.
    checks: u32,
    /// A moving average of the runs.
    usual: Duration,
    /// How long warm-up took, which runs the largest batch too. `None` until it has ended.
    warm_up: Option<Duration>,
}

impl RunClock {
    /// Ends warm-up, which took this long: a run may take as long. Its own steps do not count as usual runs.
    pub(super) fn end_warm_up(&self, took: Duration) {
        let mut state = self.state();
        (state.warm_up, state.usual) = (Some(took), Duration::ZERO);
    }

    /// Measures a run.
    pub(super) fn measure<T>(&self, run: impl FnOnce() -> T) -> T {
        {
            let mut state = self.state();
            (state.running_since, state.checks) = (Some(Instant::now()), 0);
        }
        let result = run();
        let mut state = self.state();
        if let Some(since) = state.running_since.take() {
            // A stopped process must not make runs appear slow.
            let took = since.elapsed().min(CHECK_INTERVAL * state.checks.saturating_add(1));
            state.usual = if state.usual.is_zero() { took } else { (state.usual * 7 + took) / 8 };
        }
        result
    }

    /// Counts a check. Returns how long the present run has taken, if that is too long.
    fn check(&self) -> Option<Duration> {
        let mut state = self.state();
        state.running_since?;
        state.checks = state.checks.saturating_add(1);
        let took = CHECK_INTERVAL * state.checks;
        let limit = match state.warm_up {
            Some(warm_up) => MIN_LIMIT.max(warm_up).max(state.usual * LIMIT_FACTOR),
            None => WARM_UP_LIMIT,
        };
        (took > limit).then_some(took)
    }

    fn state(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the clocks until a result arrives. `None` means that it has no sender any more.
///
/// # Errors
/// How long a run has taken, if that is too long.
pub(super) fn watch<T>(clocks: &[Arc<RunClock>], result: &Receiver<T>) -> Result<Option<T>, Duration> {
    loop {
        match result.recv_timeout(CHECK_INTERVAL) {
            Ok(result) => return Ok(Some(result)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => clocks.iter().find_map(|clock| clock.check()).map_or(Ok(()), Err)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_may_take_as_long_as_warm_up_and_many_times_as_long_as_usual() {
        let checks_until_overdue = |clock: &RunClock| {
            clock.measure(|| (1..100_000).find(|_| clock.check().is_some())).unwrap() * CHECK_INTERVAL
        };
        let warm_after = |warm_up| {
            let clock = RunClock::default();
            clock.end_warm_up(warm_up);
            clock
        };
        assert!(checks_until_overdue(&warm_after(Duration::ZERO)) <= MIN_LIMIT + 2 * CHECK_INTERVAL);
        assert!(checks_until_overdue(&warm_after(MIN_LIMIT * 3)) > MIN_LIMIT * 3);
        let clock = warm_after(Duration::ZERO);
        clock.state().usual = MIN_LIMIT;
        assert!(checks_until_overdue(&clock) > MIN_LIMIT * LIMIT_FACTOR);
    }

    #[test]
    fn each_step_of_warm_up_has_a_limit_and_is_no_usual_run() {
        let clock = RunClock::default();
        for _ in 0..2 {
            let checks = clock.measure(|| (1..100_000).find(|_| clock.check().is_some())).unwrap() * CHECK_INTERVAL;
            assert!(checks > WARM_UP_LIMIT && checks <= WARM_UP_LIMIT + 2 * CHECK_INTERVAL);
        }
        clock.state().usual = MIN_LIMIT;
        clock.end_warm_up(Duration::ZERO);
        assert!(clock.state().usual.is_zero());
    }
}
