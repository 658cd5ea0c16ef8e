//! Waiting a little for more, so that one statement serves many.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Adds what else comes within `time`, until there are `most`.
pub(super) async fn linger<T>(time: Duration, from: &mut mpsc::Receiver<T>, into: &mut Vec<T>, most: usize) {
    let end = Instant::now() + time;
    while let Some(room) = most.checked_sub(into.len()).filter(|room| *room > 0) {
        match timeout_at(end, from.recv_many(into, room)).await {
            Ok(1..) => {}
            // Nothing will come any more, or not in time.
            Ok(0) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_in_time_is_added_up_to_the_most() {
        let (sender, mut receiver) = mpsc::channel(16);
        let mut several = vec![];
        let (moment, hour) = (Duration::from_millis(1), Duration::from_secs(3600));
        (0..3).for_each(|number| sender.try_send(number).unwrap());
        linger(moment, &mut receiver, &mut several, 100).await;
        assert_eq!(several, [0, 1, 2], "the time is up");
        (3..8).for_each(|number| sender.try_send(number).unwrap());
        linger(hour, &mut receiver, &mut several, 5).await;
        assert_eq!(several, [0, 1, 2, 3, 4], "there are enough");
        drop(sender);
        linger(hour, &mut receiver, &mut several, 100).await;
        assert_eq!(several, [0, 1, 2, 3, 4, 5, 6, 7], "nothing will come any more");

        let (sender, mut receiver) = mpsc::channel(16);
        let mut several = vec![];
        let one_after_the_other = async {
            sender.send(0).await.unwrap();
            tokio::time::sleep(moment).await;
            sender.send(1).await.unwrap();
        };
        tokio::join!(one_after_the_other, linger(hour, &mut receiver, &mut several, 2));
        assert_eq!(several, [0, 1], "the second came later");
    }
}
