//! What a worker's intake is doing: the one truth behind `/readyz` and `pixwarden_ready`.

use std::fmt;

use tokio::sync::watch;

use super::metrics;

/// What intake is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing has been consumed yet.
    Starting,
    /// Both lanes have a consumer on a connection that is up.
    Consuming,
    /// A dependency is broken: which, and why.
    Paused(String),
    /// The broker is: why.
    Lost(String),
    /// The worker is about to end.
    Draining,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Consuming => f.write_str("consuming"),
            Self::Paused(why) => write!(f, "paused: {why}"),
            Self::Lost(why) => write!(f, "broker lost: {why}"),
            Self::Draining => f.write_str("draining"),
        }
    }
}

/// Where intake says what it is doing, and whoever wants to know may look.
#[derive(Debug, Clone)]
pub struct Intake(watch::Sender<State>);

impl Default for Intake {
    fn default() -> Self {
        Self(watch::channel(State::Starting).0)
    }
}

impl Intake {
    /// This is what it is doing now. Whoever drains does nothing else any more.
    pub fn is(&self, state: State) {
        self.0.send_if_modified(|now| {
            let is_news = *now != State::Draining && *now != state;
            if is_news {
                metrics::set_ready(state == State::Consuming);
                *now = state;
            }
            is_news
        });
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_drains_never_says_again_that_it_consumes() {
        let intake = Intake::default();
        intake.is(State::Consuming);
        assert_eq!(intake.state(), State::Consuming);
        intake.is(State::Draining);
        intake.is(State::Consuming);
        assert_eq!(intake.state(), State::Draining);
    }
}
