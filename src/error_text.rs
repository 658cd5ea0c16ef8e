//! The text of an error, made where a person reads it.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Begins a hint: it stands on a line of its own behind the message.
const HINT: &str = "\n  hint: ";

/// What people read of an error: what was tried, the innermost cause in plain words, and a hint. It is made where all of that
/// is known. The error that it came from is its source, which [`error_text`] does not print: its text says the same in
/// other words.
#[derive(Debug, Clone)]
pub struct Described {
    text: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl Described {
    /// Describes an error.
    pub(crate) fn new(text: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self { text: text.into(), source: Some(Arc::new(source)) }
    }
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Described {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.source.as_deref()?)
    }
}

/// An error that this program found by itself.
impl From<String> for Described {
    fn from(text: String) -> Self {
        Self { text, source: None }
    }
}

impl From<&str> for Described {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// The text of an error and its causes: one line from what was tried to the innermost cause, then the hints.
///
/// A cause that its parent's message already ends with is not repeated.
#[must_use]
pub fn error_text(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut hints) = (String::new(), String::new());
    let mut next = Some(error);
    while let Some(error) = next {
        let original = error.to_string();
        let message = error.downcast_ref::<io::Error>().map_or_else(|| original.clone(), io_text);
        let (message, hint) = match message.split_once(HINT) {
            Some((message, hint)) => (message, format!("{HINT}{hint}")),
            None => (message.as_str(), String::new()),
        };
        if !text.ends_with(message) && !text.ends_with(&original) {
            if !text.is_empty() {
                text += ": ";
            }
            text += message;
        }
        if !hints.contains(&hint) {
            hints += &hint;
        }
        next = if error.is::<Described>() { None } else { error.source() };
    }
    text + &hints
}

/// The text of an error and its causes on one line, without hints: the reason of an outcome.
#[must_use]
pub(crate) fn reason_text(error: &(dyn Error + 'static)) -> String {
    error_text(error).lines().next().unwrap_or_default().to_owned()
}

/// The words of a system error: "connection refused" and not "Connection refused (os error 111)".
#[must_use]
pub(crate) fn io_text(error: &io::Error) -> String {
    // Without a number it is no error of the system, and has its own words.
    let Some(number) = error.raw_os_error() else { return error.to_string() };
    let text = error.to_string();
    let words = text.strip_suffix(&format!(" (os error {number})")).unwrap_or(&text);
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// The words of the last error in a chain of causes.
#[must_use]
pub(crate) fn innermost_text(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    loop {
        // The source of an `io::Error` is the source of the error inside, not the error inside itself.
        let inside = last.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| last.source()) {
            Some(next) => last = next,
            None => return last.downcast_ref::<io::Error>().map_or_else(|| last.to_string(), io_text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {0}: {1}\n  hint: mount the disk")]
    struct Quoting(&'static str, #[source] std::io::Error);

    #[test]
    fn a_system_error_is_named_by_its_words() {
        let refused = || io::Error::from_raw_os_error(111);
        assert_eq!(io_text(&refused()), "connection refused");
        assert_eq!(io_text(&io::Error::other("TLS is off")), "TLS is off");
        let wrapped = io::Error::other(Quoting("a.jpg", refused()));
        assert_eq!(innermost_text(&wrapped), "connection refused");
    }

    #[test]
    fn each_cause_is_named_once_and_hints_follow() {
        let cause = || std::io::Error::other("the disk is gone");
        let error = anyhow::Error::new(Quoting("a.jpg", cause())).context("screening");
        let expected = "screening: cannot read a.jpg: the disk is gone\n  hint: mount the disk";
        assert_eq!(error_text(error.as_ref()), expected);
        let error = anyhow::Error::new(cause()).context("reading b.jpg\n  hint: try again");
        assert_eq!(error_text(error.as_ref()), "reading b.jpg: the disk is gone\n  hint: try again");
    }

    #[test]
    fn an_error_that_is_described_keeps_its_source_and_does_not_print_it() {
        let source = Quoting("the socket", io::Error::from_raw_os_error(111));
        let described = Described::new("cannot reach the store: connection refused\n  hint: start it", source);
        assert!(described.source().unwrap().is::<Quoting>());
        let error = anyhow::Error::new(described).context("cannot fetch a.jpg");
        let text = "cannot fetch a.jpg: cannot reach the store: connection refused";
        assert_eq!(error_text(error.as_ref()), format!("{text}\n  hint: start it"));
        assert_eq!(reason_text(error.as_ref()), text);
    }
}
