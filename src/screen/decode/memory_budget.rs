//! The memory for all images that are decoded at the same time.
//!
//! Requests are granted in the order in which they come, so that small images cannot overtake a large one for ever. A
//! request for more than the whole budget is granted the whole budget, so that no image waits for memory that cannot exist.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::telemetry::metrics::{self, GaugeGuard};

/// Requests for memory that one image may make. Formats make one or two.
pub(super) const MAX_MEMORY_REQUESTS: u32 = 8;

pub(super) struct MemoryBudget {
    total_bytes: u64,
    state: Mutex<BudgetState>,
    changed: Condvar,
}

struct BudgetState {
    free_bytes: u64,
    /// The ticket that the next request is given.
    next_ticket: u64,
    /// The ticket of the request that may take memory now.
    served_ticket: u64,
}

/// Where a decoder takes its memory from: the budget itself or, in a decoder process, the worker that keeps the budget.
pub(super) trait MemorySource {
    /// Waits until this much memory is free.
    fn take(&self, bytes: u64) -> Box<dyn MemoryHold + '_>;
}

/// Memory that was taken. Dropping it gives the memory back.
pub(super) trait MemoryHold {}

impl MemorySource for MemoryBudget {
    fn take(&self, bytes: u64) -> Box<dyn MemoryHold + '_> {
        Box::new(self.acquire(bytes))
    }
}

impl MemoryHold for MemoryGrant<'_> {}

/// Memory that was taken from a [`MemoryBudget`].
pub(super) struct MemoryGrant<'a> {
    budget: &'a MemoryBudget,
    bytes: u64,
    _counted: GaugeGuard,
}

impl MemoryBudget {
    pub(super) fn new(total_bytes: u64) -> Self {
        Self {
            total_bytes,
            state: Mutex::new(BudgetState { free_bytes: total_bytes, next_ticket: 0, served_ticket: 0 }),
            changed: Condvar::new(),
        }
    }

    /// Waits, on a decoder thread, until the memory is free.
    pub(super) fn acquire(&self, bytes: u64) -> MemoryGrant<'_> {
        let bytes = bytes.min(self.total_bytes);
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        while state.served_ticket != ticket || state.free_bytes < bytes {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.served_ticket += 1;
        state.free_bytes -= bytes;
        self.changed.notify_all();
        MemoryGrant { budget: self, bytes, _counted: metrics::hold_decode_memory(bytes) }
    }

    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MemoryGrant<'_> {
    fn drop(&mut self) {
        self.budget.lock().free_bytes += self.bytes;
        self.budget.changed.notify_all();
    }
}

/// Memory for the tests of formats, with the rules that hold between a decoder process and its worker.
#[cfg(test)]
#[derive(Default)]
pub(super) struct StrictMemory {
    /// The bytes of each request.
    pub(super) requests: std::cell::RefCell<Vec<u64>>,
    is_held: std::cell::Cell<bool>,
}

#[cfg(test)]
impl MemorySource for StrictMemory {
    fn take(&self, bytes: u64) -> Box<dyn MemoryHold + '_> {
        assert!(!self.is_held.replace(true), "a decoder asks for memory while it holds some");
        self.requests.borrow_mut().push(bytes);
        assert!(self.requests.borrow().len() <= MAX_MEMORY_REQUESTS as usize, "a decoder asks for memory too often");
        Box::new(StrictHold(&self.is_held))
    }
}

#[cfg(test)]
struct StrictHold<'a>(&'a std::cell::Cell<bool>);

#[cfg(test)]
impl MemoryHold for StrictHold<'_> {}

#[cfg(test)]
impl Drop for StrictHold<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn never_more_than_the_total_is_taken_and_every_request_is_granted() {
        let budget = MemoryBudget::new(100);
        let (taken, granted, start) = (AtomicU64::new(0), AtomicU64::new(0), Barrier::new(8));
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let (budget, taken, granted, start) = (&budget, &taken, &granted, &start);
                scope.spawn(move || {
                    start.wait();
                    for i in 0..200 {
                        // Some requests exceed the budget.
                        let bytes = (thread * 37 + i * 13) % 150;
                        let _grant = budget.acquire(bytes);
                        let bytes = bytes.min(100);
                        assert!(taken.fetch_add(bytes, Ordering::SeqCst) + bytes <= 100);
                        taken.fetch_sub(bytes, Ordering::SeqCst);
                        granted.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(granted.into_inner(), 1600);
        assert_eq!(budget.lock().free_bytes, 100);
    }
}
