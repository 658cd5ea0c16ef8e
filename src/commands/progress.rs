//! A progress bar with rate and remaining time on stderr, where that is a terminal.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use time::OffsetDateTime;

use super::output::whole_seconds;

/// How often progress is logged where there is no bar.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of a command. Clones share one bar. Without a terminal there is no bar, and every method does nothing.
#[derive(Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
    /// Whether stdout is a terminal too, and rows and bar share it.
    rows_on_terminal: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Unit {
    Images,
    /// Without a known end.
    Verdicts,
    /// Without a known end.
    Entries,
    /// Without a known end.
    Views,
    Bytes,
    Measurements,
}

impl Progress {
    pub(super) fn new(unit: Unit) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let template = match unit {
            Unit::Images => "{bar:30} {human_pos} of {human_len} images, {rate} per second, {eta} left {wide_msg}",
            Unit::Verdicts => "{spinner} {human_pos} verdicts, {rate} per second, {elapsed}; {wide_msg}",
            Unit::Entries => "{spinner} {human_pos} entries, {rate} per second, {elapsed}",
            Unit::Views => "{spinner} {human_pos} hashed views, {rate} per second, {elapsed}",
            Unit::Bytes => {
                "{bar:30} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left {wide_msg}"
            }
            Unit::Measurements => "{bar:30} {pos} of {len} measurements, {elapsed}; {wide_msg}",
        };
        // The templates are constants and valid; the default style is never used.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.with_key("rate", rate));
        Self { bar, rows_on_terminal: std::io::stdout().is_terminal() }
    }

    pub(super) fn is_visible(&self) -> bool {
        !self.bar.is_hidden()
    }

    pub(super) fn expect(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Sets the text behind the bar.
    pub(super) fn set_message(&self, message: String) {
        self.bar.set_message(message);
    }

    pub(super) fn advance(&self, amount: u64) {
        self.bar.inc(amount);
    }

    /// Shows this amount as done.
    pub(super) fn set(&self, amount: u64) {
        self.bar.set_position(amount);
    }

    /// Hides the bar while `print` writes to stderr.
    pub(super) fn around<R>(&self, print: impl FnOnce() -> R) -> R {
        self.bar.suspend(print)
    }

    /// Prints a row to stdout, and hides the bar only where both share the terminal: there can be thousands of rows per
    /// second.
    pub(super) fn around_row<R>(&self, print: impl FnOnce() -> R) -> R {
        if self.rows_on_terminal { self.around(print) } else { print() }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Progress of a command that reads verdicts: on a bar, or as a line in the log from time to time.
pub(super) struct VerdictProgress {
    progress: Progress,
    /// The verdicts that were shown, and when a line was logged.
    last: Mutex<(u64, Instant)>,
}

impl VerdictProgress {
    pub(super) fn new(progress: Progress) -> Self {
        Self { progress, last: Mutex::new((0, Instant::now())) }
    }

    /// Shows the number of verdicts so far, which were decided up to `at`.
    pub(super) fn show(&self, verdicts: u64, at: Option<OffsetDateTime>) {
        let decided = at.map(whole_seconds).unwrap_or_default();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if self.progress.is_visible() {
            self.progress.advance(verdicts - last.0);
            self.progress.set_message(format!("decided up to {decided}"));
            last.0 = verdicts;
        } else if last.1.elapsed() > LOG_INTERVAL {
            let per_second = (verdicts - last.0) / last.1.elapsed().as_secs().max(1);
            tracing::info!(verdicts, per_second, decided, "reading verdicts");
            *last = (verdicts, Instant::now());
        }
    }

    pub(super) fn finish(&self) {
        self.progress.finish();
    }
}

/// Images per second, with one decimal below 10.
fn rate(state: &ProgressState, into: &mut dyn Write) {
    let rate = state.per_sec();
    write!(into, "{rate:.*}", usize::from(rate < 10.0)).unwrap_or(());
}
