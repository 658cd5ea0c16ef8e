//! The gate before the first byte is fetched: it bounds jobs, objects, downloads and compressed bytes in flight, lets
//! live jobs in before backfill, and keeps a part for live that backfill never fills.
//!
//! It is the one place where lanes compete for entry; `Lanes` holds the rule.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::job::Lane;
use crate::lanes::Lanes;
use crate::telemetry::metrics::GaugeGuard;

/// One of this many parts of a gate is kept for live jobs.
const LIVE_SHARE: u64 = 4;

/// The gate is closed: the worker drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker is draining")]
pub struct Closed;

/// The gates every job passes.
pub struct Admit {
    /// Jobs between here and their verdict.
    pub jobs: Gate,
    /// Objects that arrive, wait for a decoder or are being decoded.
    pub objects: Gate,
    /// What fetching passes.
    pub fetching: Fetching,
}

/// The gates of fetching.
pub struct Fetching {
    /// Downloads at a time.
    pub downloads: Gate,
    /// Compressed bytes held.
    pub bytes: Gate,
}

impl Admit {
    /// A place for a job, and one for its object.
    ///
    /// # Errors
    /// [`Closed`] when the worker drains.
    pub async fn enter(&self, lane: Lane) -> Result<(Permit, Permit), Closed> {
        Ok((self.jobs.enter(lane, 1).await?, self.objects.enter(lane, 1).await?))
    }

    /// Refuses all who wait and all who come.
    pub fn close(&self) {
        for gate in [&self.jobs, &self.objects, &self.fetching.downloads, &self.fetching.bytes] {
            gate.close();
        }
    }
}

/// A counting gate with two lanes.
pub struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    total: u64,
    /// What backfill may have at the most.
    backfill_total: u64,
    /// Shows what is taken.
    show: Option<fn(u64) -> GaugeGuard>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
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

/// What was taken; dropping it gives it back.
pub struct Permit {
    shared: Arc<Shared>,
    lane: Lane,
    amount: u64,
    _shown: Option<GaugeGuard>,
}

impl Gate {
    /// A gate for `total` units, at least 1.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self::with(total, None)
    }

    /// As [`Gate::new`], for units of which a metric shows how many are taken.
    #[must_use]
    pub fn shown(total: u64, show: fn(u64) -> GaugeGuard) -> Self {
        Self::with(total, Some(show))
    }

    fn with(total: u64, show: Option<fn(u64) -> GaugeGuard>) -> Self {
        let total = total.max(1);
        let backfill_total = (total - total / LIVE_SHARE).max(1);
        Self { shared: Arc::new(Shared { total, backfill_total, show, state: Mutex::default() }) }
    }

    /// Waits for `amount` units. More than there is counts as all there is, so that nothing waits for ever.
    ///
    /// # Errors
    /// [`Closed`] when the worker drains.
    pub async fn enter(&self, lane: Lane, amount: u64) -> Result<Permit, Closed> {
        let amount = amount.min(match lane {
            Lane::Live => self.shared.total,
            Lane::Backfill => self.shared.backfill_total,
        });
        let (enter, entered) = oneshot::channel();
        {
            let mut state = self.shared.lock();
            if state.closed {
                return Err(Closed);
            }
            state.waiting.push(lane, Waiter { amount, lane, enter });
        }
        self.shared.admit();
        entered.await.map_err(|_| Closed)
    }

    /// Refuses all who wait and all who come.
    pub fn close(&self) {
        let refused: Vec<Waiter> = {
            let mut state = self.shared.lock();
            state.closed = true;
            state.waiting.drain().collect()
        };
        // Dropping a waiter tells it; not under the lock, as dropping may give permits back.
        drop(refused);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets in whoever's turn it is, as long as there is room.
    fn admit(self: &Arc<Self>) {
        loop {
            let (waiter, permit) = {
                let mut state = self.lock();
                let Some(waiter) = self.next(&mut state) else { return };
                state.taken += waiter.amount;
                if waiter.lane == Lane::Backfill {
                    state.taken_by_backfill += waiter.amount;
                }
                let shown = self.show.map(|show| show(waiter.amount));
                let permit =
                    Permit { shared: Arc::clone(self), lane: waiter.lane, amount: waiter.amount, _shown: shown };
                (waiter, permit)
            };
            // One who no longer waits gives its permit straight back.
            drop(waiter.enter.send(permit));
        }
    }

    fn next(&self, state: &mut State) -> Option<Waiter> {
        let amount = |lane: Lane| state.waiting.front(lane).map(|waiter| waiter.amount);
        let room = |amount: u64| state.taken + amount <= self.total;
        let turn = state.waiting.turn()?;
        let wanted = amount(turn)?;
        let lane = match turn {
            // Backfill has had its part; live need not wait for it.
            Lane::Backfill if state.taken_by_backfill + wanted > self.backfill_total => {
                amount(Lane::Live).filter(|wanted| room(*wanted)).map(|_| Lane::Live)?
            }
            // Nobody overtakes whose turn it is, or a large job would wait for ever.
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
        // Nobody overtakes it for ever.
        assert!(now(gate.enter(Lane::Backfill, 1)).is_none());
        drop(small);
        assert!(now(large).unwrap().is_ok());
    }

    #[tokio::test]
    async fn who_stops_waiting_takes_nothing() {
        let gate = Gate::new(1);
        let held = gate.enter(Lane::Live, 1).await.unwrap();
        drop(now(gate.enter(Lane::Live, 1)));
        drop(held);
        assert_eq!(gate.shared.lock().taken, 0);
        assert!(now(gate.enter(Lane::Live, 1)).unwrap().is_ok());
    }

    #[tokio::test]
    async fn closing_refuses_who_waits_and_who_comes() {
        let gate = Gate::new(1);
        let held = gate.enter(Lane::Live, 1).await.unwrap();
        let mut waits = Box::pin(gate.enter(Lane::Live, 1));
        assert!(now(&mut waits).is_none());
        gate.close();
        assert_eq!(waits.await.err(), Some(Closed));
        assert_eq!(gate.enter(Lane::Live, 1).await.err(), Some(Closed));
        drop(held);
    }
}
