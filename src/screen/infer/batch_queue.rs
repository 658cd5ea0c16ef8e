//! Images → batches, work-conserving: a free session takes what waits, live before backfill, up to the largest batch.
//!
//! A pure state machine, so that tests can try every order of arrivals. It never waits for a fuller batch: while a session
//! runs, the next batch fills anyway, and an idle session that waits only adds latency. Where two sessions take turns on
//! one device, the second takes a full batch while the first one's runs, to have its copy on the device in time. A batch
//! that is not full goes on filling until the device is free.

use crate::job::Lane;
use crate::lanes::Lanes;

/// What waits for a model, and how much of it one run may take.
#[derive(Debug)]
pub(super) struct BatchQueue<T> {
    waiting: Lanes<T>,
    max_batch: usize,
    /// Batches that were handed out and have not run yet.
    running: usize,
    closed: bool,
}

/// What a session's thread should do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextStep<T> {
    /// Run these items, `1..=max_batch` of them.
    Run(Vec<T>),
    /// Wait until the queue changes.
    Wait,
    /// End: nothing waits, and the queue is closed.
    End,
}

impl<T> BatchQueue<T> {
    /// An empty queue for batches of up to `max_batch` items, at least 1.
    pub(super) fn new(max_batch: usize) -> Self {
        Self { waiting: Lanes::default(), max_batch: max_batch.max(1), running: 0, closed: false }
    }

    /// Adds an item.
    ///
    /// # Errors
    /// The item, when the queue is closed.
    pub(super) fn push(&mut self, lane: Lane, item: T) -> Result<(), T> {
        if self.closed {
            return Err(item);
        }
        self.waiting.push(lane, item);
        Ok(())
    }

    /// Decides what a free session does now. Items for which `is_abandoned` holds are dropped.
    pub(super) fn next_step(&mut self, is_abandoned: impl Fn(&T) -> bool) -> NextStep<T> {
        // Abandoned items count here, so that a batch may turn out smaller, which costs little.
        if self.running > 0 && self.waiting.len() < self.max_batch && !self.closed {
            return NextStep::Wait;
        }
        let mut batch = Vec::new();
        while batch.len() < self.max_batch {
            match self.waiting.pop() {
                Some(item) if is_abandoned(&item) => {}
                Some(item) => batch.push(item),
                None => break,
            }
        }
        match (batch.is_empty(), self.closed) {
            (false, _) => {
                self.running += 1;
                NextStep::Run(batch)
            }
            (true, false) => NextStep::Wait,
            (true, true) => NextStep::End,
        }
    }

    /// Records that a batch which was handed out has run.
    pub(super) fn batch_done(&mut self) {
        self.running -= 1;
    }

    /// The largest batch.
    pub(super) fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// Lowers the largest batch. It never rises again.
    pub(super) fn lower_max_batch(&mut self, max_batch: usize) {
        self.max_batch = self.max_batch.min(max_batch.max(1));
    }

    /// Refuses further items. What waits can still be taken.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Closes and empties the queue, since no session is left.
    pub(super) fn abandon(&mut self) {
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
        let mut queue = BatchQueue::new(2);
        for i in 0..3 {
            queue.push(Lane::Live, i).unwrap();
        }
        queue.close();
        assert_eq!(queue.push(Lane::Live, 9), Err(9));
        assert_eq!(queue.next_step(|_| false), NextStep::Run(vec![0, 1]));
        assert_eq!(queue.next_step(|_| false), NextStep::Run(vec![2]));
        assert_eq!(queue.next_step(|_| false), NextStep::End);
    }

    #[test]
    fn while_a_batch_runs_only_a_full_one_is_handed_out() {
        let mut queue = BatchQueue::new(2);
        queue.push(Lane::Live, 0).unwrap();
        assert_eq!(queue.next_step(|_| false), NextStep::Run(vec![0]));
        queue.push(Lane::Live, 1).unwrap();
        assert_eq!(queue.next_step(|_| false), NextStep::Wait, "the batch can still grow");
        queue.push(Lane::Live, 2).unwrap();
        queue.push(Lane::Live, 3).unwrap();
        assert_eq!(queue.next_step(|_| false), NextStep::Run(vec![1, 2]));
        queue.batch_done();
        assert_eq!(queue.next_step(|_| false), NextStep::Wait, "the other batch still runs");
        queue.batch_done();
        assert_eq!(queue.next_step(|_| false), NextStep::Run(vec![3]));
    }

    #[test]
    fn abandoned_items_are_not_in_a_batch() {
        let mut queue = BatchQueue::new(2);
        for i in 0..4 {
            queue.push(Lane::Live, i).unwrap();
        }
        assert_eq!(queue.next_step(|i| i % 2 == 0), NextStep::Run(vec![1, 3]));
        queue.batch_done();
        assert_eq!(queue.next_step(|_| false), NextStep::Wait);
    }

    #[test]
    fn a_live_item_is_in_the_very_next_batch() {
        let mut queue = BatchQueue::new(4);
        for i in 0..100 {
            queue.push(Lane::Backfill, i).unwrap();
        }
        queue.push(Lane::Live, 1000).unwrap();
        match queue.next_step(|_| false) {
            NextStep::Run(batch) => assert!(batch.contains(&1000)),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_or_over_the_maximum(
            steps in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(3), Just(4)], 0..200),
            max_batch in 1usize..9,
        ) {
            let mut queue = BatchQueue::new(max_batch);
            let (mut pushed, mut taken, mut limit, mut running) = (0, Vec::new(), max_batch, 0);
            for step in steps {
                match step {
                    0 | 1 => {
                        let lane = if step == 0 { Lane::Live } else { Lane::Backfill };
                        queue.push(lane, pushed).unwrap();
                        pushed += 1;
                    }
                    2 => {
                        limit = (limit / 2).max(1);
                        queue.lower_max_batch(limit);
                    }
                    3 if running > 0 => {
                        queue.batch_done();
                        running -= 1;
                    }
                    _ => match queue.next_step(|_| false) {
                        NextStep::Run(batch) => {
                            prop_assert!((1..=limit).contains(&batch.len()));
                            prop_assert!(running == 0 || batch.len() == limit);
                            taken.extend(batch);
                            running += 1;
                        }
                        NextStep::Wait if running > 0 => prop_assert!(pushed - taken.len() < limit),
                        NextStep::Wait => prop_assert_eq!(taken.len(), pushed),
                        NextStep::End => prop_assert!(false, "ended while open"),
                    },
                }
            }
            queue.close();
            while let NextStep::Run(batch) = queue.next_step(|_| false) {
                taken.extend(batch);
            }
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..pushed).collect::<Vec<_>>());
        }
    }
}
