//! Bugs and crashes that the fault-injection run (`tests/chaos`) asks a debug build for, to see its own checker find them
//! and to die in every window between two steps. A release build has none of this, whatever its environment says.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A variable with the names of what is planted, separated by commas.
const PLANTED: &str = "TEST_PLANTED";
/// A variable with a step and a number, `commit:17`: the process aborts when it passes that step for the 17th time.
const CRASH: &str = "TEST_CRASH";
/// What an image that kills the process holds, where such images are planted.
const DEADLY: &[u8] = b"planted: this image kills the process";

/// A mistake that this program does not make, and that others have made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A job is acknowledged when it comes.
    AckBeforeCommit,
    /// Events that no queue is bound for count as published.
    NoMandatory,
    /// The sweeper takes only events whose ids are greater than any published one.
    OutboxByIdCursor,
    /// What cannot be decoded is `passed`.
    ErrorIsPassed,
    /// That a suspect's screening began is noted when it has ended.
    AttemptsAfterWork,
    /// An event is published after its verdict's commit, and is not in the outbox.
    NoEventOnRedelivery,
    /// Not a mistake of ours: there are images that kill the process.
    DeadlyImages,
}

impl Bug {
    const fn as_str(self) -> &'static str {
        match self {
            Self::AckBeforeCommit => "ack-before-commit",
            Self::NoMandatory => "no-mandatory",
            Self::OutboxByIdCursor => "outbox-by-id-cursor",
            Self::ErrorIsPassed => "error-is-passed",
            Self::AttemptsAfterWork => "attempts-after-work",
            Self::NoEventOnRedelivery => "no-event-on-redelivery",
            Self::DeadlyImages => "deadly-images",
        }
    }
}

/// Whether a bug is planted.
#[must_use]
pub fn has(bug: Bug) -> bool {
    static PRESENT: OnceLock<String> = OnceLock::new();
    cfg!(debug_assertions)
        && PRESENT
            .get_or_init(|| std::env::var(PLANTED).unwrap_or_default())
            .split(',')
            .any(|name| name == bug.as_str())
}

/// Aborts the process over an image that was made to do that.
pub fn look_at(bytes: &[u8]) {
    if has(Bug::DeadlyImages) && bytes.windows(DEADLY.len()).any(|window| window == DEADLY) {
        die("over a deadly image");
    }
}

/// Aborts the process if it is to die after this step.
pub fn passed(step: &str) {
    static DEATH: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static TIMES: AtomicU64 = AtomicU64::new(0);
    if !cfg!(debug_assertions) {
        return;
    }
    let death = DEATH.get_or_init(|| {
        let (step, times) = std::env::var(CRASH).ok()?.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        Some((step, times.parse().ok()?))
    });
    if let Some((there, times)) = death
        && there == step
        && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == *times
    {
        die(&format!("after \"{step}\""));
    }
}

fn die(why: &str) {
    tracing::error!("planted: dying {why}");
    std::process::abort();
}
