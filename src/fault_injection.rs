//! Bugs and crashes that `tests/chaos` plants in a worker, to prove that its checker finds them and that a crash between
//! any two steps loses nothing.
//!
//! Only a build with the cargo feature `fault-injection` has them. In every other build these functions are empty.

#[cfg(feature = "fault-injection")]
mod active;

#[cfg(feature = "fault-injection")]
pub use active::{crash_on_deadly_image, crash_point, is_planted};

/// A bug that this program does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// A job is acknowledged on arrival.
    AckBeforeCommit,
    /// Events that no queue is bound to count as published.
    NoMandatory,
    /// The sweeper takes only events whose ids are greater than any published one.
    OutboxByIdCursor,
    /// An image that cannot be decoded is `passed`.
    ErrorIsPassed,
    /// The attempt to screen a quarantined job is recorded after the screening.
    AttemptsAfterWork,
    /// An event is published after the commit of its verdict, without a row in the outbox.
    NoEventOnRedelivery,
    /// Not a bug of the worker: some images crash the process.
    DeadlyImages,
}

/// Whether a bug is planted.
#[cfg(not(feature = "fault-injection"))]
#[must_use]
pub const fn is_planted(_: PlantedBug) -> bool {
    false
}

/// A place where the process can be made to crash.
#[cfg(not(feature = "fault-injection"))]
pub const fn crash_point(_step: &str) {}

/// Crashes over an image that was made for that.
#[cfg(not(feature = "fault-injection"))]
pub const fn crash_on_deadly_image(_bytes: &[u8]) {}

#[cfg(test)]
mod tests {
    #[test]
    fn a_default_build_has_no_fault_injection() {
        let manifest = include_str!("../Cargo.toml");
        assert!(manifest.contains("\nfault-injection = []\n"), "the feature enables no other feature");
        assert!(!manifest.contains("\ndefault = "), "there are no default features");
        let this = include_str!("fault_injection.rs");
        assert!(this.contains("#[cfg(feature = \"fault-injection\")]\nmod active;\n"), "only the feature compiles it");
    }

    #[cfg(not(feature = "fault-injection"))]
    #[test]
    fn without_the_feature_a_crash_point_costs_nothing() {
        const IS_PLANTED: bool = super::is_planted(super::PlantedBug::AckBeforeCommit);
        const { assert!(!IS_PLANTED) };
        super::crash_point("commit");
    }
}
