//! Buckets whose jobs wait. A bucket is held when it is missing, or when many refusals in a row show that not a single
//! object is at fault but the access to the bucket: a revoked grant, or a key that decrypts its objects no longer.
//!
//! While a bucket is held its jobs go to a delay queue without being tried. Every now and then one of them is tried. The
//! first one that the store does not refuse ends the hold.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::request::Held;
use crate::retry::Delays;
use crate::telemetry::metrics;

/// Refusals in a row after which the bucket is at fault, and not the objects.
const MAX_REFUSALS: u32 = 20;
/// Buckets that are remembered. Jobs name buckets, so there may be any number where a wildcard allows them.
const MAX_BUCKETS: usize = 10_000;

/// Buckets with refusals, and held buckets.
#[derive(Default)]
pub struct BucketHolds {
    buckets: Mutex<HashMap<String, BucketState>>,
}

#[derive(Default)]
struct BucketState {
    refusals: u32,
    hold: Option<Hold>,
}

struct Hold {
    reason: String,
    since: Instant,
    delays: Delays,
    next_try: Instant,
}

impl BucketHolds {
    /// Whether a job for this bucket has to wait. If not, the job may be the one that tries a held bucket.
    pub fn check(&self, bucket: &str) -> Option<Held> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let hold = buckets.get_mut(bucket)?.hold.as_mut()?;
        let now = Instant::now();
        if now >= hold.next_try {
            hold.next_try = now + hold.delays.next_delay();
            return None;
        }
        Some(hold.held())
    }

    /// The store has answered a request for an object of this bucket.
    pub fn accessible(&self, bucket: &str) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(BucketState { hold: Some(hold), .. }) = buckets.remove(bucket) {
            tracing::info!(bucket, outage_ms = hold.since.elapsed().as_millis(), "bucket accessible again");
            metrics::set_buckets_held(held_count(&buckets));
        }
    }

    /// The store has refused access to an object of this bucket. Returns a value if the bucket is at fault.
    pub fn refused(&self, bucket: &str, reason: &str) -> Option<Held> {
        self.change(bucket, reason, |state| {
            state.refusals = state.refusals.saturating_add(1);
            state.refusals >= MAX_REFUSALS
        })
    }

    /// The bucket cannot be used at all.
    pub fn unusable(&self, bucket: &str, reason: &str) -> Held {
        let held = self.change(bucket, reason, |_| true);
        held.unwrap_or_else(|| Held { reason: reason.to_owned(), duration: Duration::ZERO })
    }

    fn change(&self, bucket: &str, reason: &str, is_at_fault: impl FnOnce(&mut BucketState) -> bool) -> Option<Held> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(bucket) {
            buckets.retain(|_, state| state.hold.is_some());
        }
        let state = buckets.entry(bucket.to_owned()).or_default();
        if let Some(hold) = &state.hold {
            return Some(hold.held());
        }
        if !is_at_fault(state) {
            return None;
        }
        let mut delays = Delays::default();
        let now = Instant::now();
        let next_try = now + delays.next_delay();
        let hold = Hold { reason: reason.to_owned(), since: now, delays, next_try };
        let held = hold.held();
        state.hold = Some(hold);
        tracing::warn!(bucket, reason, "bucket held, its jobs wait in a delay queue");
        metrics::set_buckets_held(held_count(&buckets));
        Some(held)
    }
}

impl Hold {
    fn held(&self) -> Held {
        Held { reason: self.reason.clone(), duration: self.since.elapsed() }
    }
}

fn held_count(buckets: &HashMap<String, BucketState>) -> usize {
    buckets.values().filter(|state| state.hold.is_some()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_refusals_in_a_row_hold_the_bucket_and_an_answer_between_them_does_not() {
        let holds = BucketHolds::default();
        for _ in 0..3 {
            for _ in 1..MAX_REFUSALS {
                assert_eq!(holds.refused("a", "denied"), None);
            }
            holds.accessible("a");
        }
        for _ in 1..MAX_REFUSALS {
            assert_eq!(holds.refused("a", "denied"), None);
            assert_eq!(holds.check("a"), None);
        }
        assert_eq!(holds.refused("a", "denied").unwrap().reason, "denied");
        assert_eq!(holds.check("a").unwrap().reason, "denied");
        assert_eq!(holds.check("b"), None, "another bucket is not held");
    }

    #[test]
    fn a_held_bucket_is_tried_by_one_job_at_a_time_until_it_is_accessible() {
        let holds = BucketHolds::default();
        assert_eq!(holds.unusable("a", "there is no such bucket").reason, "there is no such bucket");
        let mut tries = 0;
        let deadline = Instant::now() + Duration::from_secs(30);
        while tries < 1 && Instant::now() < deadline {
            tries += u32::from(holds.check("a").is_none());
        }
        assert_eq!(tries, 1, "one job tries the bucket when the delay is over");
        assert!(holds.check("a").is_some(), "the others go on waiting");
        holds.accessible("a");
        assert_eq!(holds.check("a"), None);
    }

    #[test]
    fn made_up_buckets_are_forgotten() {
        let holds = BucketHolds::default();
        for n in 0..2 * MAX_BUCKETS {
            holds.refused(&format!("made-up-{n}"), "denied");
        }
        assert!(holds.buckets.lock().unwrap().len() <= MAX_BUCKETS);
    }
}
