//! Two lanes: live jobs go first, and backfill is never starved.
//!
//! One rule decides which job enters a [`Gate`], which image is decoded next and which images are in the next batch. A live
//! job therefore waits only for work that is already running, and on a GPU also for the batch that is being filled.

mod gate;

use std::collections::VecDeque;

use crate::job::Lane;

pub use gate::{Gate, GateClosed, Permit};

/// While both lanes wait, one turn in this many goes to backfill.
pub const BACKFILL_TURN: u32 = 8;

/// Two first-in-first-out queues, and the lane whose turn it is.
#[derive(Debug)]
pub struct Lanes<T> {
    live: VecDeque<T>,
    backfill: VecDeque<T>,
    live_in_a_row: u32,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { live: VecDeque::new(), backfill: VecDeque::new(), live_in_a_row: 0 }
    }
}

impl<T> Lanes<T> {
    /// Puts an item at the end of its lane.
    pub fn push(&mut self, lane: Lane, item: T) {
        self.queue(lane).push_back(item);
    }

    /// Takes the item whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let lane = self.turn()?;
        self.take(lane)
    }

    /// The lane whose turn it is, or `None` when nothing waits.
    #[must_use]
    pub fn turn(&self) -> Option<Lane> {
        match (self.live.is_empty(), self.backfill.is_empty()) {
            (true, true) => None,
            (false, true) => Some(Lane::Live),
            (true, false) => Some(Lane::Backfill),
            (false, false) if self.live_in_a_row + 1 < BACKFILL_TURN => Some(Lane::Live),
            (false, false) => Some(Lane::Backfill),
        }
    }

    /// The first item of a lane.
    #[must_use]
    pub fn front(&self, lane: Lane) -> Option<&T> {
        match lane {
            Lane::Live => self.live.front(),
            Lane::Backfill => self.backfill.front(),
        }
    }

    /// Takes the first item of a lane, whichever lane's turn it is.
    pub fn take(&mut self, lane: Lane) -> Option<T> {
        let item = self.queue(lane).pop_front()?;
        self.live_in_a_row = match lane {
            // Turns count only while backfill waits.
            Lane::Live if !self.backfill.is_empty() => self.live_in_a_row + 1,
            Lane::Live | Lane::Backfill => 0,
        };
        Some(item)
    }

    /// Items waiting in both lanes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live.len() + self.backfill.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Empties both lanes, live first.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        self.live.drain(..).chain(self.backfill.drain(..))
    }

    fn queue(&mut self, lane: Lane) -> &mut VecDeque<T> {
        match lane {
            Lane::Live => &mut self.live,
            Lane::Backfill => &mut self.backfill,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn live_goes_first_but_backfill_gets_its_turn() {
        let mut lanes = Lanes::default();
        for i in 0..20 {
            lanes.push(Lane::Backfill, (Lane::Backfill, i));
            lanes.push(Lane::Live, (Lane::Live, i));
        }
        let order: Vec<_> = std::iter::from_fn(|| lanes.pop()).map(|(lane, _)| lane).collect();
        assert!(order[..7].iter().all(|lane| *lane == Lane::Live));
        assert_eq!(order[7], Lane::Backfill);
        assert!(order[8..15].iter().all(|lane| *lane == Lane::Live));
        assert_eq!(order.len(), 40);
    }

    proptest! {
        #[test]
        fn each_lane_stays_in_order_and_backfill_waits_for_one_turn_at_most(arrivals in proptest::collection::vec(any::<bool>(), 1..200)) {
            let mut lanes = Lanes::default();
            for (i, live) in arrivals.iter().enumerate() {
                lanes.push(if *live { Lane::Live } else { Lane::Backfill }, (*live, i));
            }
            let mut waited = 0;
            let mut last = [None, None];
            while !lanes.is_empty() {
                let backfill_waits = lanes.front(Lane::Backfill).is_some();
                let (live, i) = lanes.pop().unwrap();
                prop_assert!(last[usize::from(live)].is_none_or(|before| before < i));
                last[usize::from(live)] = Some(i);
                waited = if live && backfill_waits { waited + 1 } else { 0 };
                prop_assert!(waited < BACKFILL_TURN);
            }
        }
    }
}
