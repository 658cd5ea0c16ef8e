//! `NAME=LABEL:PATH`: which images a dataset holds, and how they are labelled.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::subject::Subject;

/// One `--dataset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The row of the table that counts its images. Datasets with the same name share a row.
    pub name: String,
    pub label: LabelSource,
    /// A folder, an image, or a parquet file; with [`LabelSource::Column`] a parquet file or a folder of parquet files.
    pub path: PathBuf,
}

/// Where the labels of a dataset's images come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelSource {
    /// All images have this label: one of the detectors' labels, or `positive` or `negative`.
    All(String),
    /// A column of the parquet file has each row's label.
    Column {
        name: String,
        /// The value that means positive, while any other value means negative; without it, values are labels.
        positive: Option<String>,
    },
}

/// The label of one image as a dataset gives it, before it is resolved for a detector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LabelValue {
    /// A label's name, `positive` or `negative`.
    Name(String),
    /// A label's position, counted from 0 in the order of the detector's outputs.
    Index(i64),
    /// Positive or not.
    Positive(bool),
}

impl std::fmt::Display for LabelValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(f, "\"{name}\""),
            Self::Index(index) => write!(f, "{index}"),
            Self::Positive(positive) => write!(f, "{positive}"),
        }
    }
}

/// Why a dataset cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The argument does not have the form `NAME=LABEL:PATH`.
    #[error("\"{given}\" {what}\n  hint: the form is NAME=LABEL:PATH, for example photos=negative:folder")]
    Form { given: String, what: &'static str },
    /// A label that a detector does not have.
    #[error(
        "{origin} has the label {label}, but the labels of {detector} are {labels}\n  hint: use one of them, or \"positive\" for \"{positive}\" and \"negative\" for any other; in column:NAME=VALUE, VALUE is the value that means positive"
    )]
    Unknown {
        /// The dataset, and the place in it.
        origin: String,
        label: LabelValue,
        detector: String,
        labels: String,
        /// The label that is looked for.
        positive: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        path: String,
        #[source]
        error: io::Error,
    },
    /// A folder cannot be listed.
    #[error("cannot list {path}")]
    Unlistable {
        path: String,
        #[source]
        error: walkdir::Error,
    },
    /// A file is not parquet, or its description of the columns is damaged.
    #[error("{path}: not a parquet file: {error}")]
    NotParquet {
        path: String,
        #[source]
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file or folder does not hold what the argument asks for.
    #[error("{path}: {what}")]
    File { path: String, what: String },
}

impl Dataset {
    /// Parses `NAME=LABEL:PATH`. The name ends at the first `=`, the label at the first `:` after it (that of `column:`
    /// does not count); the path may contain both characters.
    ///
    /// # Errors
    /// When a part is missing or empty.
    pub fn parse(given: &str) -> Result<Self, DatasetError> {
        let invalid = |what| DatasetError::Form { given: given.to_owned(), what };
        let (name, rest) = given.split_once('=').ok_or_else(|| invalid("has no ="))?;
        let no_colon = "has no : between label and path";
        let (label, path) = match rest.strip_prefix("column:") {
            Some(rest) => {
                let (column, path) = rest.split_once(':').ok_or_else(|| invalid(no_colon))?;
                let (name, positive) = match column.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (column, None),
                };
                (LabelSource::Column { name: name.to_owned(), positive }, path)
            }
            None => rest
                .split_once(':')
                .map(|(label, path)| (LabelSource::All(label.to_owned()), path))
                .ok_or_else(|| invalid(no_colon))?,
        };
        let (LabelSource::All(label_name) | LabelSource::Column { name: label_name, .. }) = &label;
        if name.is_empty() || label_name.is_empty() || path.is_empty() {
            return Err(invalid("has an empty name, label or path"));
        }
        Ok(Self { name: name.to_owned(), label, path: PathBuf::from(path) })
    }
}

/// Resolves labels: for each subject, whether a label means the positive class. Keeps what it has resolved.
#[derive(Debug)]
pub struct LabelResolver {
    subjects: Arc<[Subject]>,
    resolved: HashMap<LabelValue, Arc<[bool]>>,
}

impl LabelResolver {
    #[must_use]
    pub fn new(subjects: Arc<[Subject]>) -> Self {
        Self { subjects, resolved: HashMap::new() }
    }

    /// `[subject]`: whether an image with this label is positive. A name is a label of the detector, compared exactly and
    /// then without case, or else `positive` or `negative`.
    ///
    /// # Errors
    /// When a detector has no such label; `origin` is the place of the label, for the message.
    pub fn resolve(
        &mut self,
        label: &LabelValue,
        origin: impl FnOnce() -> String,
    ) -> Result<Arc<[bool]>, DatasetError> {
        if let Some(resolved) = self.resolved.get(label) {
            return Ok(Arc::clone(resolved));
        }
        let positive: Result<Arc<[bool]>, &Subject> =
            self.subjects.iter().map(|subject| is_positive(subject, label).ok_or(subject)).collect();
        let positive = positive.map_err(|subject| DatasetError::Unknown {
            origin: origin(),
            label: label.clone(),
            detector: subject.detector.clone(),
            labels: subject.labels.iter().map(|label| format!("\"{label}\"")).collect::<Vec<_>>().join(", "),
            positive: subject.positive.clone(),
        })?;
        self.resolved.insert(label.clone(), Arc::clone(&positive));
        Ok(positive)
    }
}

fn is_positive(subject: &Subject, label: &LabelValue) -> Option<bool> {
    let label = match label {
        LabelValue::Positive(positive) => return Some(*positive),
        LabelValue::Index(index) => subject.labels.get(usize::try_from(*index).ok()?)?,
        LabelValue::Name(name) => {
            let exact = subject.labels.iter().find(|label| *label == name);
            match exact.or_else(|| subject.labels.iter().find(|label| label.eq_ignore_ascii_case(name))) {
                Some(label) => label,
                None if name.eq_ignore_ascii_case("positive") => return Some(true),
                None if name.eq_ignore_ascii_case("negative") => return Some(false),
                None => return None,
            }
        }
    };
    Some(*label == subject.positive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(detector: &str, labels: &[&str], positive: &str) -> Subject {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        Subject {
            detector: detector.into(),
            labels,
            positive: positive.into(),
            category: None,
            review_at: None,
            flag_at: None,
        }
    }

    fn column(name: &str, positive: Option<&str>) -> LabelSource {
        LabelSource::Column { name: name.into(), positive: positive.map(str::to_owned) }
    }

    #[test]
    fn the_form_is_name_label_path() {
        for (given, name, label, path) in [
            ("faces=by AI:some/folder", "faces", LabelSource::All("by AI".into()), "some/folder"),
            ("a=positive:b=c:d.parquet", "a", LabelSource::All("positive".into()), "b=c:d.parquet"),
            ("cifake=column:label:val.parquet", "cifake", column("label", None), "val.parquet"),
            ("x=column:label=1:a:b.parquet", "x", column("label", Some("1")), "a:b.parquet"),
            ("x=column:kind=by AI:p", "x", column("kind", Some("by AI")), "p"),
        ] {
            let expected = Dataset { name: name.into(), label, path: path.into() };
            assert_eq!(Dataset::parse(given).unwrap(), expected, "{given}");
        }
        for given in ["", "folder", "a=folder", "=x:y", "a=:y", "a=x:", "a=column:label", "a=column::p"] {
            assert!(matches!(Dataset::parse(given), Err(DatasetError::Form { .. })), "{given}");
        }
    }

    #[test]
    fn a_label_is_resolved_for_each_subject() {
        let subjects =
            [subject("a", &["by human", "by AI"], "by AI"), subject("b", &["by AI", "by human"], "by human")];
        let mut labels = LabelResolver::new(subjects.into());
        for (label, expected) in [
            (LabelValue::Name("by AI".into()), [true, false]),
            (LabelValue::Name("BY HUMAN".into()), [false, true]),
            (LabelValue::Name("positive".into()), [true, true]),
            (LabelValue::Name("Negative".into()), [false, false]),
            (LabelValue::Index(1), [true, true]),
            (LabelValue::Index(0), [false, false]),
            (LabelValue::Positive(true), [true, true]),
        ] {
            assert_eq!(*labels.resolve(&label, String::new).unwrap(), expected, "{label}");
            assert_eq!(*labels.resolve(&label, String::new).unwrap(), expected, "{label}, resolved again");
        }
    }

    #[test]
    fn an_unknown_label_is_refused_and_the_known_ones_are_listed() {
        let mut labels = LabelResolver::new([subject("a", &["by human", "by AI"], "by AI")].into());
        for label in [LabelValue::Name("fake".into()), LabelValue::Index(2), LabelValue::Index(-1)] {
            let error = labels.resolve(&label, || "set".into()).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("set has the label {label}, but the labels of a are \"by human\"")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_detectors_own_label_goes_before_the_short_form() {
        let mut labels = LabelResolver::new([subject("a", &["negative", "other"], "negative")].into());
        assert!(labels.resolve(&LabelValue::Name("negative".into()), String::new).unwrap()[0]);
    }
}
