//! Notices a run that never ends, because its device hangs.
//!
//! A run cannot be cancelled, so its session is lost, and with it the process. Until then its jobs must not wait for ever.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A run that takes less is never taken for a hung one.
const MIN_LIMIT: Duration = if cfg!(test) { Duration::from_secs(4) } else { Duration::from_secs(60) };
/// A run may take this many times as long as the longest one before it.
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
    longest: Duration,
}

impl RunClock {
    /// Measures a run.
    pub(super) fn measure<T>(&self, run: impl FnOnce() -> T) -> T {
        self.state().running_since = Some(Instant::now());
        let result = run();
        let mut state = self.state();
        if let Some(since) = state.running_since.take() {
            state.longest = state.longest.max(since.elapsed());
        }
        result
    }

    /// How long the present run has taken, if that is too long.
    fn overdue(&self) -> Option<Duration> {
        let state = self.state();
        let took = state.running_since?.elapsed();
        (took > MIN_LIMIT.max(state.longest * LIMIT_FACTOR)).then_some(took)
    }

    fn state(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the clocks until `closed` has no sender any more, or a run takes too long. Then `on_hang` gets its duration.
pub(super) fn watch(clocks: &[Arc<RunClock>], closed: &Receiver<()>, on_hang: impl FnOnce(Duration)) {
    while let Err(RecvTimeoutError::Timeout) = closed.recv_timeout(CHECK_INTERVAL) {
        if let Some(took) = clocks.iter().find_map(|clock| clock.overdue()) {
            on_hang(took);
            return;
        }
    }
}
