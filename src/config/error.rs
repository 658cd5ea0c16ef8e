//! Why a configuration cannot be used.

use std::path::PathBuf;

use super::origin::{Origin, Origins};
use crate::error_text::io_text;

/// Why the configuration cannot be used. The process exits with 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {}\n  hint: check the path", io_text(error))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}, line {line}: invalid TOML: {what}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there, without the line itself, which may contain a password.
        what: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown option `{key}`{}", hint(nearest))]
    Unknown {
        /// Its line.
        origin: Origin,
        /// The key, with its table.
        key: String,
        /// The most similar known key.
        nearest: Option<String>,
    },
    /// A variable whose name is almost that of an option.
    #[error("unknown variable {name}\n  hint: did you mean {nearest}?")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The most similar known one.
        nearest: String,
    },
    /// A value that cannot be used, with the place where it was set.
    #[error("{origin}: {error}")]
    At {
        /// Where the value was set.
        origin: Origin,
        /// What is wrong.
        #[source]
        error: Box<ConfigError>,
    },
    /// A value that cannot be used.
    #[error("`{option}`: {what}")]
    Invalid {
        /// The option.
        option: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// The system refuses what a value asks for.
    #[error("`{option}`: {what}")]
    Refused {
        /// The option.
        option: String,
        /// What was tried, with a hint.
        what: String,
        /// Why it failed.
        #[source]
        error: std::io::Error,
    },
    /// An option that this command needs is not set.
    #[error(
        "`{option}` is not set\n  hint: give --{option} {example}, set PIXWARDEN_{}, or write `{option} = \"…\"` in the configuration file",
        option.to_uppercase()
    )]
    Missing {
        /// The option.
        option: String,
        /// The beginning of a value.
        example: String,
    },
}

impl ConfigError {
    /// A value that cannot be used.
    pub(crate) fn invalid(option: &str, what: impl Into<String>) -> Self {
        Self::Invalid { option: option.to_owned(), what: what.into() }
    }

    /// Adds where the value was set.
    #[must_use]
    pub(crate) fn at(mut self, origins: &Origins) -> Self {
        self.set_origin(origins);
        self
    }

    /// As [`ConfigError::at`], for an error inside another one.
    pub(crate) fn set_origin(&mut self, origins: &Origins) {
        if let Self::Invalid { option, .. } | Self::Refused { option, .. } = self
            && let Some(origin) = origins.of(option)
        {
            let nothing = Self::invalid("", "");
            *self = Self::At { origin: origin.clone(), error: Box::new(std::mem::replace(self, nothing)) };
        }
    }

    /// Refuses the first of these options whose value is 0.
    pub(crate) fn refuse_zero(options: &[(&str, u64)]) -> Result<(), Self> {
        match options.iter().find(|(_, value)| *value == 0) {
            Some((option, _)) => Err(Self::invalid(option, "0 is too small, the smallest value is 1")),
            None => Ok(()),
        }
    }
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("\n  hint: did you mean `{key}`?")).unwrap_or_default()
}
