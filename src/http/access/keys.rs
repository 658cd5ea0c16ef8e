//! The keys of machines. Only their SHA-256 is configured, so that a configuration file gives none away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use wildmatch::WildMatch;

use super::{Identity, unknown};
use crate::http::options::KeyConfig;
use crate::http::problem::Problem;

/// A key begins with this text, so that it is found where it should not be.
const PREFIX: &str = "pixwarden_";
/// A caller may use up this time of its rate at once.
const BURST: Duration = Duration::from_secs(10);

/// A key that no configuration has yet.
#[derive(Debug)]
pub struct NewKey {
    pub key: String,
    /// In hexadecimal digits.
    pub sha256: String,
}

/// Makes a key.
#[must_use]
pub fn new_key() -> NewKey {
    let key = format!("{PREFIX}{}", secret());
    let sha256 = hex::encode(Sha256::digest(&key));
    NewKey { key, sha256 }
}

/// A text of 244 random bits.
pub(super) fn secret() -> String {
    let bits = [Uuid::new_v4(), Uuid::new_v4()].map(Uuid::into_bytes).concat();
    URL_SAFE_NO_PAD.encode(bits)
}

/// All keys by their SHA-256. A search by the digest takes no longer for a key that is almost right.
pub(super) struct Keys(HashMap<[u8; 32], Key>);

struct Key {
    identity: Arc<Identity>,
    rate: Option<Rate>,
}

impl Keys {
    pub(super) fn new(keys: &[KeyConfig]) -> Self {
        let entry = |key: &KeyConfig| {
            let mut digest = [0; 32];
            // The configuration was checked.
            hex::decode_to_slice(&key.sha256, &mut digest).ok()?;
            let identity = Identity {
                name: key.name.clone(),
                scopes: key.scopes.iter().copied().collect(),
                buckets: key.buckets.iter().map(|pattern| WildMatch::new(pattern)).collect(),
                policies: key.policies.clone(),
            };
            let rate = (key.per_second > 0).then(|| Rate::new(key.per_second));
            Some((digest, Key { identity: Arc::new(identity), rate }))
        };
        Self(keys.iter().filter_map(entry).collect())
    }

    pub(super) fn recognise(&self, key: &str) -> Result<Arc<Identity>, Problem> {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let Some(Key { identity, rate }) = self.0.get(&digest) else {
            return Err(unknown("the key is not known"));
        };
        match rate.as_ref().and_then(|rate| rate.refuse(Instant::now())) {
            None => Ok(Arc::clone(identity)),
            Some(delay) => {
                let what = format!("the key \"{}\" has sent too many requests", identity.name);
                Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", what).retry_after(delay))
            }
        }
    }
}

/// Requests a second: each moves a time forwards, which may be ahead of the clock by the burst (the generic cell rate
/// algorithm of ITU-T I.371).
pub(super) struct Rate {
    interval: Duration,
    next: Mutex<Option<Instant>>,
}

impl Rate {
    pub(super) fn new(per_second: u32) -> Self {
        Self { interval: Duration::from_secs(1) / per_second, next: Mutex::default() }
    }

    /// How long a request at `now` is too early, if it is refused.
    pub(super) fn refuse(&self, now: Instant) -> Option<Duration> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let after = next.map_or(now, |next| next.max(now)) + self.interval;
        let early = after.duration_since(now).saturating_sub(BURST.max(self.interval));
        if early.is_zero() {
            *next = Some(after);
            return None;
        }
        Some(early)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_allows_a_burst_and_then_its_pace() {
        let rate = Rate::new(2);
        let start = Instant::now();
        let allowed = |at: Duration| rate.refuse(start + at).is_none();
        assert_eq!((0..100).filter(|_| allowed(Duration::ZERO)).count(), 20, "ten seconds of it");
        let delay = rate.refuse(start).unwrap();
        assert!(!allowed(delay - Duration::from_millis(1)) && allowed(delay));
        let later = Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| allowed(later)).count(), 20);
    }

    #[test]
    fn keys_differ_and_show_what_they_are() {
        let (one, other) = (new_key(), new_key());
        assert!(one.key.starts_with("pixwarden_") && one.key != other.key && one.key.len() > 50, "{one:?}");
        assert_eq!(one.sha256, hex::encode(Sha256::digest(&one.key)));
    }
}
