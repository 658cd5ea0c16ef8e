//! A gate bounds how much of something is in use: jobs in flight, downloads, bytes of memory.
//!
//! Live jobs enter before backfill jobs, and a part of every gate is kept for live jobs, so that backfill never fills it.
//! Which lane goes first is decided by [`Lanes`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Lanes;
use crate::job::Lane;
use crate::telemetry::metrics::GaugeGuard;

/// One of this many parts of a gate is kept for live jobs.
const LIVE_SHARE: u64 = 4;

/// The gate was closed because the process is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker is draining")]
pub struct GateClosed;

/// A counting gate with two lanes.
pub struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    total: u64,
    /// The share that backfill jobs may use.
    backfill_total: u64,
    /// Reports the units in use as a metric.
    gauge: Option<fn(u64) -> GaugeGuard>,
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    taken: u64,
    taken_by_backfill: u64,
    waiting: Lanes<Waiter>,
    closed: bool,
}

struct Waiter {
    amount: u64,
    lane: Lane,
    enter: oneshot::Sender<Permit>,
}

/// Units of a gate in use. Dropping the permit returns them.
pub struct Permit {
    shared: Arc<Shared>,
    lane: Lane,
    amount: u64,
    _gauge: Option<GaugeGuard>,
}

impl Gate {
    /// A gate for `total` units, at least 1.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self::with(total, None)
    }

    /// As [`Gate::new`]; the units in use are also shown by a metric.
    #[must_use]
    pub fn with_gauge(total: u64, gauge: fn(u64) -> GaugeGuard) -> Self {
        Self::with(total, Some(gauge))
    }

    fn with(total: u64, gauge: Option<fn(u64) -> GaugeGuard>) -> Self {
        let total = total.max(1);
        let backfill_total = (total - total / LIVE_SHARE).max(1);
        Self { shared: Arc::new(Shared { total, backfill_total, gauge, state: Mutex::default() }) }
    }

    /// Waits for `amount` units. An amount larger than the gate counts as the whole gate, so that no job waits for ever.
    ///
    /// # Errors
    /// [`GateClosed`] when the process is shutting down.
    pub async fn enter(&self, lane: Lane, amount: u64) -> Result<Permit, GateClosed> {
        let amount = amount.min(match lane {
            Lane::Live => self.shared.total,
            Lane::Backfill => self.shared.backfill_total,
        });
        let (enter, entered) = oneshot::channel();
        {
            let mut state = self.shared.lock();
            if state.closed {
                return Err(GateClosed);
            }
            state.waiting.push(lane, Waiter { amount, lane, enter });
        }
        self.shared.admit();
        entered.await.map_err(|_| GateClosed)
    }

    /// Takes `amount` units if they are free, also before what waits. None where they are not, and in a gate that is closed.
    #[must_use]
    pub fn enter_if_free(&self, lane: Lane, amount: u64) -> Option<Permit> {
        let mut state = self.shared.lock();
        let backfill = if lane == Lane::Backfill { state.taken_by_backfill + amount } else { 0 };
        if state.closed || state.taken + amount > self.shared.total || backfill > self.shared.backfill_total {
            return None;
        }
        Some(self.shared.take(&mut state, lane, amount))
    }

    /// Refuses everything that waits now or comes later.
    pub fn close(&self) {
        let refused: Vec<Waiter> = {
            let mut state = self.shared.lock();
            state.closed = true;
            state.waiting.drain().collect()
        };
        // A dropped waiter gets its refusal. Not under the lock: dropping may return permits, which takes the lock too.
        drop(refused);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits waiters in turn while there is room.
    fn admit(self: &Arc<Self>) {
        loop {
            let (waiter, permit) = {
                let mut state = self.lock();
                let Some(waiter) = self.next(&mut state) else { return };
                let permit = self.take(&mut state, waiter.lane, waiter.amount);
                (waiter, permit)
            };
            // A waiter that has gone away drops its permit, which returns the units.
            drop(waiter.enter.send(permit));
        }
    }

    fn take(self: &Arc<Self>, state: &mut GateState, lane: Lane, amount: u64) -> Permit {
        state.taken += amount;
        if lane == Lane::Backfill {
            state.taken_by_backfill += amount;
        }
        Permit { shared: Arc::clone(self), lane, amount, _gauge: self.gauge.map(|gauge| gauge(amount)) }
    }

    fn next(&self, state: &mut GateState) -> Option<Waiter> {
        let amount = |lane: Lane| state.waiting.front(lane).map(|waiter| waiter.amount);
        let room = |amount: u64| state.taken + amount <= self.total;
        let turn = state.waiting.turn()?;
        let wanted = amount(turn)?;
        let lane = match turn {
            // Backfill uses its whole share; live jobs need not wait behind it.
            Lane::Backfill if state.taken_by_backfill + wanted > self.backfill_total => {
                amount(Lane::Live).filter(|wanted| room(*wanted)).map(|_| Lane::Live)?
            }
            // Nothing overtakes the waiter in turn, or a large job would wait for ever.
            _ if room(wanted) => turn,
            _ => return None,
        };
        state.waiting.take(lane)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.taken -= self.amount;
            if self.lane == Lane::Backfill {
                state.taken_by_backfill -= self.amount;
            }
        }
        self.shared.admit();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        future.now_or_never()
    }

    #[tokio::test]
    async fn a_part_is_kept_for_live() {
        let gate = Gate::new(8);
        let backfill: Vec<_> = std::iter::from_fn(|| now(gate.enter(Lane::Backfill, 1))).collect();
        assert_eq!(backfill.len(), 6);
        let live: Vec<_> = std::iter::from_fn(|| now(gate.enter(Lane::Live, 1))).collect();
        assert_eq!(live.len(), 2);
    }

    #[tokio::test]
    async fn live_enters_first_and_backfill_is_not_starved() {
        let gate = Arc::new(Gate::new(1));
        let held = gate.enter(Lane::Live, 1).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for lane in [Lane::Backfill, Lane::Live] {
            for _ in 0..10 {
                let (gate, order) = (Arc::clone(&gate), Arc::clone(&order));
                tasks.push(tokio::spawn(async move {
                    let _permit = gate.enter(lane, 1).await.unwrap();
                    order.lock().unwrap().push(lane);
                }));
            }
        }
        while gate.shared.lock().waiting.len() < 20 {
            tokio::task::yield_now().await;
        }
        drop(held);
        futures_util::future::join_all(tasks).await;
        let order = order.lock().unwrap();
        assert!(order[..7].iter().all(|lane| *lane == Lane::Live), "{order:?}");
        assert_eq!(order[7], Lane::Backfill);
    }

    #[tokio::test]
    async fn one_larger_than_the_gate_enters_alone() {
        let gate = Gate::new(10);
        let small = gate.enter(Lane::Backfill, 1).await.unwrap();
        let mut large = Box::pin(gate.enter(Lane::Live, 1000));
        assert!(now(&mut large).is_none());
        // Nothing overtakes it.
        assert!(now(gate.enter(Lane::Backfill, 1)).is_none());
        drop(small);
        assert!(now(large).unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_waiter_that_goes_away_takes_nothing() {
        let gate = Gate::new(1);
        let held = gate.enter(Lane::Live, 1).await.unwrap();
        drop(now(gate.enter(Lane::Live, 1)));
        drop(held);
        assert_eq!(gate.shared.lock().taken, 0);
        assert!(now(gate.enter(Lane::Live, 1)).unwrap().is_ok());
    }

    #[tokio::test]
    async fn closing_refuses_waiters_and_newcomers() {
        let gate = Gate::new(1);
        let held = gate.enter(Lane::Live, 1).await.unwrap();
        let mut waits = Box::pin(gate.enter(Lane::Live, 1));
        assert!(now(&mut waits).is_none());
        gate.close();
        assert_eq!(waits.await.err(), Some(GateClosed));
        assert_eq!(gate.enter(Lane::Live, 1).await.err(), Some(GateClosed));
        drop(held);
    }
}
