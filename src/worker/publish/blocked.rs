//! Routing keys whose events the broker returns or rejects. Each has a separate, growing pause, so that events that no
//! queue takes cost one try per pause, however many they are, and events of other keys do not wait for them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The first pause of a routing key. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause. A queue that was bound, or that has room again, gets its events after at most this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// A key of which so many events may be taken at once is not blocked any more.
const MAX_ALLOWED: u32 = 500;
/// How long one try may take before another one is allowed.
const TRY_TIMEOUT: Duration = Duration::from_secs(30);

/// The routing keys that are blocked.
#[derive(Debug, Default)]
pub(super) struct BlockedKeys(Mutex<HashMap<String, BlockedKey>>);

#[derive(Debug)]
struct BlockedKey {
    failures: u32,
    /// No event is tried before.
    until: Instant,
    /// Whether one event is being tried after a pause. Others that fail meanwhile were on their way before.
    is_tried: bool,
    /// How many events may be taken from the outbox at once. It doubles with each event that a queue takes: a queue that is
    /// full has room for a few.
    allowed: u32,
}

impl BlockedKeys {
    /// How many events may be taken from the outbox now, at most `most`. Nothing counts as tried yet.
    pub(super) fn allowance(&self, key: &str, most: u32, now: Instant) -> u32 {
        match self.keys().get(key) {
            None => most,
            Some(blocked) if blocked.until <= now => blocked.allowed.min(most),
            Some(_) => 0,
        }
    }

    /// Whether an event of this key may be published now. Of a blocked key, one event may after each pause.
    pub(super) fn may_try(&self, key: &str, now: Instant) -> bool {
        match self.keys().get_mut(key) {
            None => true,
            Some(blocked) if blocked.until > now => false,
            Some(blocked) => {
                if blocked.allowed == 1 {
                    // The next event waits for the result of this one.
                    (blocked.until, blocked.is_tried) = (now + TRY_TIMEOUT, true);
                }
                true
            }
        }
    }

    /// A queue took an event of this key.
    pub(super) fn accepted(&self, key: &str, now: Instant) {
        let mut keys = self.keys();
        let Some(blocked) = keys.get_mut(key) else { return };
        if blocked.is_tried {
            (blocked.until, blocked.is_tried) = (now, false);
        }
        blocked.allowed = blocked.allowed.saturating_mul(2);
        if blocked.allowed > MAX_ALLOWED {
            keys.remove(key);
            tracing::info!(routing_key = key, "events of this routing key are published again");
        }
    }

    /// No queue took an event of this key. Returns whether that is news.
    pub(super) fn refused(&self, key: &str, now: Instant) -> bool {
        let mut keys = self.keys();
        let (is_news, failures) = match keys.get(key) {
            None => (true, 0),
            // It was on its way with an event that came back before.
            Some(blocked) if blocked.until > now && !blocked.is_tried => return false,
            Some(blocked) => (false, blocked.failures),
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE);
        let blocked = BlockedKey { failures: failures + 1, until: now + pause, is_tried: false, allowed: 1 };
        keys.insert(key.to_owned(), blocked);
        is_news
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<String, BlockedKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_nobody_takes_is_tried_once_per_pause_and_others_are_free() {
        let (keys, start) = (BlockedKeys::default(), Instant::now());
        let after = |s| start + Duration::from_secs(s);
        assert!(keys.may_try("a", start) && keys.may_try("a", start), "nothing is known of it yet");
        assert!(keys.refused("a", start));
        assert!(!keys.refused("a", start), "they were on their way together");
        assert_eq!(keys.allowance("a", 500, start), 0);
        assert!(!keys.may_try("a", start) && keys.may_try("b", start));
        assert_eq!(keys.allowance("a", 500, after(1)), 1);
        assert!(keys.may_try("a", after(1)));
        assert!(!keys.may_try("a", after(1)), "one at a time");
        assert!(!keys.refused("a", after(1)), "no news");
        assert_eq!([2, 3].map(|s| keys.allowance("a", 500, after(s))), [0, 1], "twice as long");
    }

    #[test]
    fn a_key_that_is_taken_again_is_free_after_a_few_events() {
        let (keys, now) = (BlockedKeys::default(), Instant::now());
        keys.refused("a", now);
        let now = now + FIRST_PAUSE;
        assert!(keys.may_try("a", now));
        keys.accepted("a", now);
        assert_eq!(keys.allowance("a", 500, now), 2, "a full queue may have room for one only");
        assert!(keys.may_try("a", now) && keys.may_try("a", now));
        keys.accepted("a", now);
        keys.refused("a", now);
        assert_eq!([0, 2].map(|s| keys.allowance("a", 500, now + Duration::from_secs(s))), [0, 1], "the pauses go on");
        for _ in 0..20 {
            keys.accepted("a", now);
        }
        assert_eq!(keys.allowance("a", 500, now), 500);
    }

    #[test]
    fn pauses_end_after_two_minutes_however_often_a_key_was_tried() {
        let (keys, mut now) = (BlockedKeys::default(), Instant::now());
        for _ in 0..50 {
            assert!(keys.may_try("a", now));
            keys.refused("a", now);
            now += LONGEST_PAUSE;
        }
        assert_eq!(keys.allowance("a", 500, now), 1);
    }
}
