//! What commands write to stdout and stderr. Nothing else in the program prints: the macros of the standard library end the
//! process with a panic where the output cannot be written.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use super::UsageError;
use crate::error_text::io_text;

/// Writes a formatted line to stderr, as [`print_note`] does.
macro_rules! note {
    ($($argument:tt)*) => {
        $crate::commands::console::print_note(format_args!($($argument)*))
    };
}
pub(super) use note;

/// The exit status where the reader of stdout closed the pipe: that of a program that SIGPIPE ended. It is not 0, so that
/// `scan --fail-on` never looks like a clean result.
pub const CLOSED_PIPE: u8 = 141;

/// Standard output. A failed write is an error of the command; its cause is a [`StdoutError`].
pub(super) struct Stdout(io::Stdout);

pub(super) fn stdout() -> Stdout {
    Stdout(io::stdout())
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(StdoutError::wrap)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(StdoutError::wrap)
    }
}

/// Stdout cannot be written. A type of its own: a connection that breaks is another matter.
#[derive(Debug)]
struct StdoutError(io::Error);

impl StdoutError {
    fn wrap(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), Self(error))
    }
}

impl fmt::Display for StdoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to stdout: {}", io_text(&self.0))
    }
}

impl std::error::Error for StdoutError {}

/// Whether an error says that the reader of stdout has closed the pipe. That is no failure to report.
pub fn is_closed_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(StdoutError(cause)) = inside.and_then(|inside| inside.downcast_ref()) {
            return cause.kind() == io::ErrorKind::BrokenPipe;
        }
        // The CSV writer's error does not name its source.
        let csv = inside.and_then(|inside| inside.downcast_ref::<csv::Error>()).map(csv::Error::kind);
        if let Some(csv::ErrorKind::Io(cause)) = csv {
            return is_closed_pipe(cause);
        }
        next = error.source();
    }
    false
}

/// Prints help or the version to stdout, or a usage error to stderr. Returns the exit status.
pub fn print_parser_text(text: &clap::Error) -> u8 {
    match text.print() {
        Err(error) if text.use_stderr() || error.kind() == io::ErrorKind::BrokenPipe => {
            if text.use_stderr() {
                2
            } else {
                CLOSED_PIPE
            }
        }
        Err(error) => {
            note!("error: {}", StdoutError(error));
            1
        }
        Ok(()) => u8::try_from(text.exit_code()).unwrap_or(2),
    }
}

/// Writes a line to stderr. Where that fails there is no place to report it, and the command goes on.
pub fn print_note(line: fmt::Arguments<'_>) {
    writeln!(io::stderr(), "{line}").unwrap_or(());
}

/// A number with its noun: "1 job", "2 jobs".
pub(super) fn counted(n: u64, one: &str, several: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { several })
}

/// Refuses a deletion that cannot be confirmed, because no terminal is attached. `what` is what is deleted, `delete` the verb.
pub(super) fn require_terminal(delete: &str, what: &str) -> Result<(), UsageError> {
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        return Ok(());
    }
    Err(UsageError(format!(
        "cannot {delete} {what}: there is no terminal to ask on\n  hint: count them with --dry-run, then {delete} them with --yes"
    )))
}

/// Asks on a terminal. Only a clear yes is one.
pub(super) fn is_confirmed(question: &str) -> io::Result<bool> {
    let mut stderr = io::stderr();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stdout_counts_as_a_closed_pipe() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        let stdout = anyhow::Error::new(StdoutError::wrap(broken())).context("printing");
        assert!(is_closed_pipe(stdout.as_ref()));
        // The CSV writer has an error type around it.
        let csv: io::Error = csv::Error::from(StdoutError::wrap(broken())).into();
        assert!(is_closed_pipe(&csv));
        assert!(!is_closed_pipe(&broken()), "a connection may have broken");
        let full = StdoutError::wrap(io::Error::from_raw_os_error(28));
        assert!(!is_closed_pipe(&full));
        assert_eq!(crate::error_text(&full), "cannot write to stdout: no space left on device");
    }
}
