//! A progress bar with rate and remaining time, on stderr, and only where that is a terminal.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// How far a command is. Clones show on the same bar; off a terminal there is none, and every call does nothing.
#[derive(Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
    /// Whether rows go to a terminal too, which is then the same one.
    rows_on_terminal: bool,
}

/// What is counted.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    Images,
    Bytes,
    Measurements,
}

impl Progress {
    /// A bar whose end is not known yet.
    pub(super) fn new(unit: Unit) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let template = match unit {
            Unit::Images => "{bar:30} {human_pos} of {human_len} images, {rate} a second, {eta} left {wide_msg}",
            Unit::Bytes => {
                "{bar:30} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left {wide_msg}"
            }
            Unit::Measurements => "{bar:30} {pos} of {len} measurements, {elapsed}; {wide_msg}",
        };
        // The templates are constants; a bar that cannot be drawn is no reason not to work.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.with_key("rate", rate));
        Self { bar, rows_on_terminal: std::io::stdout().is_terminal() }
    }

    /// Whether anybody sees it.
    pub(super) fn is_visible(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Sets the end.
    pub(super) fn expect(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Says what is being done.
    pub(super) fn tell(&self, what: String) {
        self.bar.set_message(what);
    }

    /// So much more is done.
    pub(super) fn advance(&self, amount: u64) {
        self.bar.inc(amount);
    }

    /// Prints something to stderr without the bar in between.
    pub(super) fn around<R>(&self, print: impl FnOnce() -> R) -> R {
        self.bar.suspend(print)
    }

    /// Prints a row to stdout. The bar makes way only where it has to: rows can be thousands a second.
    pub(super) fn around_row<R>(&self, print: impl FnOnce() -> R) -> R {
        if self.rows_on_terminal { self.around(print) } else { print() }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Whole images a second, and tenths where those are few.
fn rate(state: &ProgressState, into: &mut dyn Write) {
    let rate = state.per_sec();
    write!(into, "{rate:.*}", usize::from(rate < 10.0)).unwrap_or(());
}
