//! Memory for all images being decoded at a time.
//!
//! First come, first served: a large image is not overtaken for ever by small ones. One image is clamped to the whole
//! budget, so that none waits for memory that cannot exist.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::telemetry::metrics::{self, GaugeGuard};

pub(super) struct Budget {
    total: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: u64,
    /// The ticket handed out next, and the one that may take memory now.
    next: u64,
    serving: u64,
}

/// Where memory to decode in comes from: the budget itself, or whoever keeps it for a process that decodes.
pub(super) trait Memory {
    /// Waits until so much is free.
    fn take(&self, bytes: u64) -> Box<dyn Held + '_>;
}

/// Memory taken; dropping it gives the memory back.
pub(super) trait Held {}

impl Memory for Budget {
    fn take(&self, bytes: u64) -> Box<dyn Held + '_> {
        Box::new(self.acquire(bytes))
    }
}

impl Held for Grant<'_> {}

/// Memory taken of a [`Budget`].
pub(super) struct Grant<'a> {
    budget: &'a Budget,
    bytes: u64,
    _shown: GaugeGuard,
}

impl Budget {
    pub(super) fn new(total: u64) -> Self {
        Self { total, state: Mutex::new(State { free: total, next: 0, serving: 0 }), changed: Condvar::new() }
    }

    /// Waits, on a decoder thread, until the memory is free.
    pub(super) fn acquire(&self, bytes: u64) -> Grant<'_> {
        let bytes = bytes.min(self.total);
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        while state.serving != ticket || state.free < bytes {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.serving += 1;
        state.free -= bytes;
        self.changed.notify_all();
        Grant { budget: self, bytes, _shown: metrics::hold_decode_memory(bytes) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        self.budget.lock().free += self.bytes;
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn never_more_than_the_total_is_out_and_everyone_is_served() {
        let budget = Budget::new(100);
        let (out, served, start) = (AtomicU64::new(0), AtomicU64::new(0), Barrier::new(8));
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let (budget, out, served, start) = (&budget, &out, &served, &start);
                scope.spawn(move || {
                    start.wait();
                    for i in 0..200 {
                        // Some ask for more than there is.
                        let wanted = (thread * 37 + i * 13) % 150;
                        let _grant = budget.acquire(wanted);
                        let taken = wanted.min(100);
                        assert!(out.fetch_add(taken, Ordering::SeqCst) + taken <= 100);
                        out.fetch_sub(taken, Ordering::SeqCst);
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(served.into_inner(), 1600);
        assert_eq!(budget.lock().free, 100);
    }
}
