//! The way in for a person on the same machine, where no key is configured: a link that is printed at the start and opens
//! one session.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::keys::secret;
use super::{Identity, LOCAL_NAME};
use crate::http::options::Scope;

/// The cookie of a session. Without the prefix `__Host-`, which browsers accept only over HTTPS.
pub const SESSION_COOKIE: &str = "pixwarden_session";
/// How long a session lasts.
pub(super) const SESSION: Duration = Duration::from_secs(12 * 3_600);

/// The link, or the session that it has opened. Secrets are kept as digests.
pub struct Link {
    state: Mutex<State>,
    identity: Arc<Identity>,
}

enum State {
    Printed { token: [u8; 32] },
    Opened { session: [u8; 32], until: Instant },
}

impl Link {
    /// A link that was not opened yet, and its token.
    #[must_use]
    pub fn new() -> (Self, String) {
        let token = secret();
        let identity =
            Identity { name: LOCAL_NAME.into(), scopes: vec![Scope::Admin], buckets: Vec::new(), policies: Vec::new() };
        let state = Mutex::new(State::Printed { token: digest(&token) });
        (Self { state, identity: Arc::new(identity) }, token)
    }

    /// Opens the session, once. Returns its secret.
    pub(super) fn open(&self, token: &str) -> Option<String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Printed { token: expected } if expected == digest(token) => {
                let session = secret();
                *state = State::Opened { session: digest(&session), until: Instant::now() + SESSION };
                Some(session)
            }
            _ => None,
        }
    }

    pub(super) fn identity(&self, session: &str) -> Option<Arc<Identity>> {
        match *self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Opened { session: expected, until } if expected == digest(session) && Instant::now() < until => {
                Some(Arc::clone(&self.identity))
            }
            _ => None,
        }
    }
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}
