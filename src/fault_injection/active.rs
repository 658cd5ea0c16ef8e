//! Reads from the environment what is planted, and crashes the process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::PlantedBug;

/// Names of planted bugs, separated by commas.
const PLANTED_VARIABLE: &str = "TEST_PLANTED";
/// A crash point and a number. With `commit:17` the process aborts when it reaches `commit` for the 17th time.
const CRASH_VARIABLE: &str = "TEST_CRASH";
/// The content of an image that crashes the process, if such images are planted.
const DEADLY_IMAGE: &[u8] = b"planted: this image kills the process";

impl PlantedBug {
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
pub fn is_planted(bug: PlantedBug) -> bool {
    static PLANTED: OnceLock<String> = OnceLock::new();
    let planted = PLANTED.get_or_init(|| std::env::var(PLANTED_VARIABLE).unwrap_or_default());
    planted.split(',').any(|name| name == bug.as_str())
}

/// A place where the process can be made to crash.
pub fn crash_point(step: &str) {
    static CRASH: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static TIMES: AtomicU64 = AtomicU64::new(0);
    let crash = CRASH.get_or_init(|| {
        let variable = std::env::var(CRASH_VARIABLE).ok()?;
        let (step, times) = variable.split_once(':')?;
        Some((step.to_owned(), times.parse().ok()?))
    });
    if let Some((crash_at, times)) = crash
        && crash_at == step
        && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == *times
    {
        crash_process(&format!("after \"{step}\""));
    }
}

/// Crashes over an image that was made for that.
pub fn crash_on_deadly_image(bytes: &[u8]) {
    if is_planted(PlantedBug::DeadlyImages) && bytes.windows(DEADLY_IMAGE.len()).any(|window| window == DEADLY_IMAGE) {
        crash_process("over a deadly image");
    }
}

fn crash_process(reason: &str) {
    tracing::error!(reason, "planted crash");
    std::process::abort();
}
