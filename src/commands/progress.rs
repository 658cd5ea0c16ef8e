//! A progress bar with rate and remaining time, on stderr, and only where that is a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How far a command is. Clones show on the same bar; off a terminal there is none, and every call does nothing.
#[derive(Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
}

/// What is counted.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    Images,
    Bytes,
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
            Unit::Images => "{bar:30} {human_pos} of {human_len} images, {per_sec}, {eta} left {wide_msg}",
            Unit::Bytes => {
                "{bar:30} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left {wide_msg}"
            }
        };
        // The templates are constants; a bar that cannot be drawn is no reason not to work.
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar }
    }

    /// Sets the end.
    pub(super) fn expect(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// So much more is done.
    pub(super) fn advance(&self, amount: u64) {
        self.bar.inc(amount);
    }

    /// Prints something without the bar in between.
    pub(super) fn around<R>(&self, print: impl FnOnce() -> R) -> R {
        self.bar.suspend(print)
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
