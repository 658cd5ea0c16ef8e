//! Notices a run that never ends, because its device hangs.
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
    /// How long warm-up took, which runs the largest batch too.
    warm_up: Duration,
}

impl RunClock {
    /// Sets how long warm-up took: a run may take as long.
    pub(super) fn set_warm_up(&self, took: Duration) {
        self.state().warm_up = took;
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
        (took > MIN_LIMIT.max(state.warm_up).max(state.usual * LIMIT_FACTOR)).then_some(took)
    }

    fn state(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the clocks until `closed` has no sender any more, or a run takes too long. Then `on_hang` gets its duration.
pub(super) fn watch(clocks: &[Arc<RunClock>], closed: &Receiver<()>, on_hang: impl FnOnce(Duration)) {
    while let Err(RecvTimeoutError::Timeout) = closed.recv_timeout(CHECK_INTERVAL) {
        if let Some(took) = clocks.iter().find_map(|clock| clock.check()) {
            on_hang(took);
            return;
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
        assert!(checks_until_overdue(&RunClock::default()) <= MIN_LIMIT + 2 * CHECK_INTERVAL);
        let clock = RunClock::default();
        clock.set_warm_up(MIN_LIMIT * 3);
        assert!(checks_until_overdue(&clock) > MIN_LIMIT * 3);
        let clock = RunClock::default();
        clock.state().usual = MIN_LIMIT;
        assert!(checks_until_overdue(&clock) > MIN_LIMIT * LIMIT_FACTOR);
    }
}
