//! How errors are written for people.

use std::error::Error;

/// An error with its causes on one line: `what was tried: why: the innermost cause`. A cause whose text is part of the line
/// already is left out, because some errors name their cause themselves.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("cannot open the file")]
        Plain(#[source] std::io::Error),
        #[error("cannot open the file: {0}\n  hint: create it")]
        WithCause(#[source] std::io::Error),
    }

    #[test]
    fn a_cause_is_written_once() {
        let cause = || std::io::Error::other("disk full");
        assert_eq!(with_causes(&Failure::Plain(cause())), "cannot open the file: disk full");
        assert_eq!(with_causes(&Failure::WithCause(cause())), "cannot open the file: disk full\n  hint: create it");
    }
}
