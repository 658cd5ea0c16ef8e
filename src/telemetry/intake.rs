//! The state of a worker's intake. `/readyz` and `pixwarden_ready` show it.

use std::fmt;

use tokio::sync::watch;

use super::metrics;

/// Whether a worker consumes deliveries, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntakeState {
    /// Nothing has been consumed yet.
    Starting,
    /// Both lanes have a consumer on an open connection.
    Consuming,
    /// Images are screened over HTTP, and no queue is consumed.
    Serving,
    /// A dependency is broken. The text has its name and the reason.
    Paused(String),
    /// The connection to the broker is lost. The text has the reason.
    Lost(String),
    /// The worker finishes what it has and ends.
    Draining,
    /// The process is about to end because it cannot work any more. The text has the reason.
    Broken(String),
}

impl IntakeState {
    /// Whether the process takes images.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self, Self::Consuming | Self::Serving)
    }
}

impl fmt::Display for IntakeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Consuming => f.write_str("consuming"),
            Self::Serving => f.write_str("serving"),
            Self::Paused(why) => write!(f, "paused: {why}"),
            Self::Lost(why) => write!(f, "broker lost: {why}"),
            Self::Draining => f.write_str("draining"),
            Self::Broken(why) => write!(f, "broken: {why}"),
        }
    }
}

/// The shared state of intake: set by the consumer of the queues, read by the health endpoint.
#[derive(Debug, Clone)]
pub struct Intake(watch::Sender<IntakeState>);

impl Default for Intake {
    fn default() -> Self {
        Self(watch::channel(IntakeState::Starting).0)
    }
}

impl Intake {
    /// Sets the state. A worker that drains or is broken stays in that state.
    pub fn set_state(&self, state: IntakeState) {
        self.0.send_if_modified(|current| {
            let is_last = matches!(*current, IntakeState::Draining | IntakeState::Broken(_));
            let has_changed = !is_last && *current != state;
            if has_changed {
                metrics::set_ready(state.is_ready());
                *current = state;
            }
            has_changed
        });
    }

    #[must_use]
    pub fn state(&self) -> IntakeState {
        self.0.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draining_worker_never_becomes_ready_again() {
        let intake = Intake::default();
        intake.set_state(IntakeState::Consuming);
        assert_eq!(intake.state(), IntakeState::Consuming);
        intake.set_state(IntakeState::Draining);
        intake.set_state(IntakeState::Consuming);
        assert_eq!(intake.state(), IntakeState::Draining);
    }
}
