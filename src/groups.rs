//! Gathering items into groups, so that one statement serves many.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Adds what arrives within `time`, until there are `most` items.
pub(crate) async fn linger<T>(time: Duration, from: &mut mpsc::Receiver<T>, into: &mut Vec<T>, most: usize) {
    let end = Instant::now() + time;
    while let Some(room) = most.checked_sub(into.len()).filter(|room| *room > 0) {
        match timeout_at(end, from.recv_many(into, room)).await {
            Ok(1..) => {}
            // Every sender is dropped, or the time is over.
            Ok(0) | Err(_) => return,
        }
    }
}

/// Items in groups: all items that wait, and under load also those that arrive shortly after. A single item does not wait.
pub(crate) struct Groups<T> {
    from: mpsc::Receiver<T>,
    /// The largest group.
    most: usize,
    /// How long a group waits for more items. It waits only if the last group of several ended within this time.
    time: Duration,
    /// A group of this size does not wait.
    limit: usize,
    left: Vec<T>,
    several_ended: Option<Instant>,
}

impl<T> Groups<T> {
    pub(crate) fn new(from: mpsc::Receiver<T>, most: usize, time: Duration, limit: usize) -> Self {
        Self { from, most, time, limit, left: Vec::new(), several_ended: None }
    }

    /// The next group, or `None` once every sender is dropped.
    pub(crate) async fn next(&mut self) -> Option<Vec<T>> {
        // Items left over from the last group go first and do not wait.
        let mut group = std::mem::take(&mut self.left);
        if group.is_empty() {
            if self.from.recv_many(&mut group, self.most).await == 0 {
                return None;
            }
            if self.several_ended.is_some_and(|end| end.elapsed() < self.time) {
                linger(self.time, &mut self.from, &mut group, self.limit).await;
            }
        }
        Some(group)
    }

    /// Ends a group of `size`. `left` is put into the next group.
    pub(crate) fn done(&mut self, size: usize, left: Vec<T>) {
        self.left = left;
        self.several_ended = (size > 1).then(Instant::now);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);
    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn what_comes_in_time_is_added_up_to_the_most() {
        let (sender, mut receiver) = mpsc::channel(16);
        let mut several = vec![];
        (0..3).for_each(|number| sender.try_send(number).unwrap());
        linger(MOMENT, &mut receiver, &mut several, 100).await;
        assert_eq!(several, [0, 1, 2], "the time is up");
        (3..8).for_each(|number| sender.try_send(number).unwrap());
        linger(HOUR, &mut receiver, &mut several, 5).await;
        assert_eq!(several, [0, 1, 2, 3, 4], "there are enough");
        drop(sender);
        linger(HOUR, &mut receiver, &mut several, 100).await;
        assert_eq!(several, [0, 1, 2, 3, 4, 5, 6, 7], "nothing will come any more");

        let (sender, mut receiver) = mpsc::channel(16);
        let mut several = vec![];
        let one_after_the_other = async {
            sender.send(0).await.unwrap();
            tokio::time::sleep(MOMENT).await;
            sender.send(1).await.unwrap();
        };
        tokio::join!(one_after_the_other, linger(HOUR, &mut receiver, &mut several, 2));
        assert_eq!(several, [0, 1], "the second came later");
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_lingers_close_behind_one_of_several_until_there_are_enough() {
        let (sender, receiver) = mpsc::channel(16);
        let mut groups = Groups::new(receiver, 8, HOUR, 4);
        let now = |numbers: &[i32]| numbers.iter().for_each(|number| sender.try_send(*number).unwrap());

        now(&[1]);
        assert_eq!(groups.next().now_or_never(), Some(Some(vec![1])), "one that comes alone");
        groups.done(1, vec![]);
        now(&[2, 3]);
        assert_eq!(groups.next().now_or_never(), Some(Some(vec![2, 3])), "behind one that came alone");
        groups.done(2, vec![]);

        now(&[4]);
        let mut next = Box::pin(groups.next());
        assert_eq!((&mut next).now_or_never(), None, "behind several");
        now(&[5, 6, 7, 8]);
        assert_eq!(next.await, Some(vec![4, 5, 6, 7]), "these are enough");
        groups.done(3, vec![7]);
        assert_eq!(groups.next().now_or_never(), Some(Some(vec![7])), "what was left over does not wait");
        groups.done(1, vec![]);
        drop(sender);
        assert_eq!(groups.next().await, Some(vec![8]));
        assert_eq!(groups.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_lingers_for_a_time_only_and_not_long_after_the_last_one() {
        let (sender, receiver) = mpsc::channel(16);
        let mut groups = Groups::new(receiver, 8, MOMENT, 4);
        groups.done(2, vec![]);
        sender.try_send(1).unwrap();
        let began = Instant::now();
        assert_eq!(groups.next().await, Some(vec![1]));
        assert!((MOMENT..=2 * MOMENT).contains(&began.elapsed()), "{:?}", began.elapsed());
        groups.done(2, vec![]);
        tokio::time::advance(2 * MOMENT).await;
        sender.try_send(2).unwrap();
        assert_eq!(groups.next().now_or_never(), Some(Some(vec![2])));
    }
}
