//! Why an image has no scores. All stages of the screen share these errors.

use std::error::Error;
use std::fmt;
use std::io;

/// An error of a library that only one file may name.
pub type LibraryError = Box<dyn Error + Send + Sync>;

/// Why an image has no scores.
#[derive(Debug, thiserror::Error)]
pub enum ScreenError {
    /// The image is at fault.
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    /// The machine is at fault: another attempt may succeed.
    #[error(transparent)]
    DecoderUnavailable(#[from] DecoderProcessError),
    /// The model cannot run this image, but it can run others.
    #[error("detector {detector}: cannot score the image")]
    SessionFailed {
        /// The detector's name.
        detector: String,
        /// What the last run failed with.
        source: SessionError,
    },
    /// The model can run no image any more. The process has to end.
    #[error("detector {detector}: its session is broken")]
    SessionBroken {
        /// The detector's name.
        detector: String,
    },
}

/// Why an image has no pixels, in one line for people: not an image, an unsupported format, damaged, or over the decode
/// limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(pub String);

impl Undecodable {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// A decoder's message on one line, behind the format's name.
    pub(super) fn damaged(format: &str, error: &dyn fmt::Display) -> Self {
        let message = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Self(format!("damaged {format}: {message}"))
    }
}

/// Why there is no decoder for an image.
#[derive(Debug, thiserror::Error)]
pub enum DecoderProcessError {
    /// The system refuses a thread.
    #[error("cannot start a decoder thread")]
    Thread(#[source] io::Error),
    /// The system refuses a process.
    #[error("cannot start a decoder process: {program}")]
    Spawn {
        /// The program.
        program: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A process ended, or failed, before it was ready.
    #[error("cannot start a decoder process: {program} ended before it was ready: {ending}")]
    NotReady {
        /// The program.
        program: String,
        /// How it ended.
        ending: ProcessEnding,
    },
    /// Every process ended before it had the image, so that the image cannot be at fault.
    #[error("{count} decoder processes in a row ended before they received the image: {ending}")]
    EndedBeforeImage {
        /// How many.
        count: u32,
        /// How the last one ended.
        ending: ProcessEnding,
    },
    /// Every process was killed from outside. No image does that, but a machine without free memory does.
    #[error("{count} decoder processes were killed while they decoded the image, the last by signal 9")]
    Killed {
        /// How many.
        count: u32,
    },
}

/// How a decoder process ended.
#[derive(Debug)]
pub enum ProcessEnding {
    /// By a signal.
    Signal(i32),
    /// By itself.
    Exited(i32),
    /// It still runs, but the socket to it failed, or it sent what it must not send.
    Failed(io::Error),
}

impl ProcessEnding {
    /// Whether it was ended by SIGKILL, which a process does not send to itself.
    pub(super) fn is_killed(&self) -> bool {
        matches!(self, Self::Signal(libc::SIGKILL))
    }
}

impl fmt::Display for ProcessEnding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Failed(error) => f.write_str(&one_line(&error.to_string())),
        }
    }
}

/// Why a run of a model failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The device has too little memory for this batch.
    #[error("out of memory")]
    OutOfMemory(#[source] LibraryError),
    /// Any other failure of the run.
    #[error("the run failed")]
    RunFailed(#[source] LibraryError),
    /// The run gave something else than a row of scores for each image.
    #[error("the model's output is {0}")]
    Output(String),
}

/// The longest text of a decoder process that is kept. A process that decodes untrusted bytes may send anything.
const MAX_TEXT_CHARS: usize = 1000;

/// A text from a decoder process on one line, without control characters.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_text;

    #[test]
    fn the_innermost_cause_comes_last() {
        let source = SessionError::RunFailed("Conv node".into());
        let error = ScreenError::SessionFailed { detector: "d".into(), source };
        assert_eq!(error_text(&error), "detector d: cannot score the image: the run failed: Conv node");
        let spawn = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let error = DecoderProcessError::Spawn { program: "helper".into(), source: spawn };
        assert_eq!(error_text(&ScreenError::from(error)), "cannot start a decoder process: helper: no such file");
    }
}
