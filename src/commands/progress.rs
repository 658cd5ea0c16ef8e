//! A progress bar with rate and remaining time on stderr, where that is a terminal.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

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

/// Images per second, with one decimal below 10.
fn rate(state: &ProgressState, into: &mut dyn Write) {
    let rate = state.per_sec();
    write!(into, "{rate:.*}", usize::from(rate < 10.0)).unwrap_or(());
}
