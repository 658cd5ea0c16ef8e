//! The text of an error, made where a person reads it.

use std::error::Error;

/// Begins a hint: it stands on a line of its own behind the message.
const HINT: &str = "\n  hint: ";

/// The text of an error and its causes: one line from what was tried to the innermost cause, then the hints.
///
/// A cause that its parent's message already ends with is not repeated.
#[must_use]
pub fn error_text(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut hints) = (String::new(), String::new());
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        let (message, hint) = match message.split_once(HINT) {
            Some((message, hint)) => (message, format!("{HINT}{hint}")),
            None => (message.as_str(), String::new()),
        };
        if !text.ends_with(message) {
            if !text.is_empty() {
                text += ": ";
            }
            text += message;
        }
        if !hints.contains(&hint) {
            hints += &hint;
        }
        next = error.source();
    }
    text + &hints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {0}: {1}\n  hint: mount the disk")]
    struct Quoting(&'static str, #[source] std::io::Error);

    #[test]
    fn each_cause_is_named_once_and_hints_follow() {
        let cause = || std::io::Error::other("the disk is gone");
        let error = anyhow::Error::new(Quoting("a.jpg", cause())).context("screening");
        let expected = "screening: cannot read a.jpg: the disk is gone\n  hint: mount the disk";
        assert_eq!(error_text(error.as_ref()), expected);
        let error = anyhow::Error::new(cause()).context("reading b.jpg\n  hint: try again");
        assert_eq!(error_text(error.as_ref()), "reading b.jpg: the disk is gone\n  hint: try again");
    }
}
