//! Single items → batches, work-conserving: a free session takes what waits, live before backfill, up to the maximum.
//!
//! A pure state machine, so that every order of arrivals can be tested. There is no lingering for fuller batches:
//! while a session runs, the next batch fills by itself, and an idle session that waits only adds latency. Of two sessions
//! that take turns on one device, the second takes a full batch while the first one's runs, to have it at hand; less than
//! that goes on filling until the device is free.

use crate::job::Lane;
use crate::lanes::Lanes;

/// What waits for one session, and how much of it one run may take.
#[derive(Debug)]
pub struct Gather<T> {
    waiting: Lanes<T>,
    max_batch: usize,
    running: usize,
    closed: bool,
}

/// What the session's thread should do.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Run these, `1..=max_batch` of them.
    Batch(Vec<T>),
    /// Wait for an item or for closing.
    Wait,
    /// Nothing waits and nothing will come.
    End,
}

impl<T> Gather<T> {
    /// An empty queue for batches of up to `max_batch` items, at least 1.
    #[must_use]
    pub fn new(max_batch: usize) -> Self {
        Self { waiting: Lanes::default(), max_batch: max_batch.max(1), running: 0, closed: false }
    }

    /// Adds an item, or gives it back if the queue is closed.
    ///
    /// # Errors
    /// The item, when nobody will take it any more.
    pub fn push(&mut self, lane: Lane, item: T) -> Result<(), T> {
        if self.closed {
            return Err(item);
        }
        self.waiting.push(lane, item);
        Ok(())
    }

    /// Decides what a free session does now. Items for which `abandoned` holds are dropped on the way.
    pub fn next(&mut self, abandoned: impl Fn(&T) -> bool) -> Next<T> {
        // The abandoned count here: a batch at hand may turn out smaller, which costs little.
        if self.running > 0 && self.waiting.len() < self.max_batch && !self.closed {
            return Next::Wait;
        }
        let mut batch = Vec::new();
        while batch.len() < self.max_batch {
            match self.waiting.pop() {
                Some(item) if abandoned(&item) => {}
                Some(item) => batch.push(item),
                None => break,
            }
        }
        match (batch.is_empty(), self.closed) {
            (false, _) => {
                self.running += 1;
                Next::Batch(batch)
            }
            (true, false) => Next::Wait,
            (true, true) => Next::End,
        }
    }

    /// A batch that was handed out has run.
    pub fn done(&mut self) {
        self.running -= 1;
    }

    /// Images a batch at the most.
    #[must_use]
    pub fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// Lowers the maximum after a run that did not fit in memory; it never rises again.
    pub fn limit(&mut self, max_batch: usize) {
        self.max_batch = self.max_batch.min(max_batch.max(1));
    }

    /// Lets what waits be taken and refuses the rest.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Closes and empties the queue: the session is gone.
    pub fn abandon(&mut self) {
        self.closed = true;
        self.waiting.drain().for_each(drop);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_closed_queue_hands_out_what_waits_and_then_ends() {
        let mut gather = Gather::new(2);
        for i in 0..3 {
            gather.push(Lane::Live, i).unwrap();
        }
        gather.close();
        assert_eq!(gather.push(Lane::Live, 9), Err(9));
        assert_eq!(gather.next(|_| false), Next::Batch(vec![0, 1]));
        assert_eq!(gather.next(|_| false), Next::Batch(vec![2]));
        assert_eq!(gather.next(|_| false), Next::End);
    }

    #[test]
    fn while_a_batch_runs_only_a_full_one_is_handed_out() {
        let mut gather = Gather::new(2);
        gather.push(Lane::Live, 0).unwrap();
        assert_eq!(gather.next(|_| false), Next::Batch(vec![0]));
        gather.push(Lane::Live, 1).unwrap();
        assert_eq!(gather.next(|_| false), Next::Wait, "it can still grow");
        gather.push(Lane::Live, 2).unwrap();
        gather.push(Lane::Live, 3).unwrap();
        assert_eq!(gather.next(|_| false), Next::Batch(vec![1, 2]));
        gather.done();
        assert_eq!(gather.next(|_| false), Next::Wait, "the other one runs");
        gather.done();
        assert_eq!(gather.next(|_| false), Next::Batch(vec![3]));
    }

    #[test]
    fn abandoned_items_take_no_place_in_a_batch() {
        let mut gather = Gather::new(2);
        for i in 0..4 {
            gather.push(Lane::Live, i).unwrap();
        }
        assert_eq!(gather.next(|i| i % 2 == 0), Next::Batch(vec![1, 3]));
        gather.done();
        assert_eq!(gather.next(|_| false), Next::Wait);
    }

    #[test]
    fn a_live_item_is_in_the_very_next_batch() {
        let mut gather = Gather::new(4);
        for i in 0..100 {
            gather.push(Lane::Backfill, i).unwrap();
        }
        gather.push(Lane::Live, 1000).unwrap();
        match gather.next(|_| false) {
            Next::Batch(batch) => assert!(batch.contains(&1000)),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_or_over_the_maximum(
            steps in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(3), Just(4)], 0..200),
            max_batch in 1usize..9,
        ) {
            let mut gather = Gather::new(max_batch);
            let (mut pushed, mut taken, mut limit, mut running) = (0, Vec::new(), max_batch, 0);
            for step in steps {
                match step {
                    0 | 1 => {
                        let lane = if step == 0 { Lane::Live } else { Lane::Backfill };
                        gather.push(lane, pushed).unwrap();
                        pushed += 1;
                    }
                    2 => {
                        limit = (limit / 2).max(1);
                        gather.limit(limit);
                    }
                    3 if running > 0 => {
                        gather.done();
                        running -= 1;
                    }
                    _ => match gather.next(|_| false) {
                        Next::Batch(batch) => {
                            prop_assert!((1..=limit).contains(&batch.len()));
                            prop_assert!(running == 0 || batch.len() == limit);
                            taken.extend(batch);
                            running += 1;
                        }
                        Next::Wait if running > 0 => prop_assert!(pushed - taken.len() < limit),
                        Next::Wait => prop_assert_eq!(taken.len(), pushed),
                        Next::End => prop_assert!(false, "ended while open"),
                    },
                }
            }
            gather.close();
            while let Next::Batch(batch) = gather.next(|_| false) {
                taken.extend(batch);
            }
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..pushed).collect::<Vec<_>>());
        }
    }
}
