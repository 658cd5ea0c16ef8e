//! `NAME=LABEL:PATH`: which images a dataset holds, and what is said of them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::subject::Subject;

/// One `--dataset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The row of the table it counts in. Datasets of one name share a row.
    pub name: String,
    /// What its images are.
    pub label: Label,
    /// A folder, an image, or a parquet file; with [`Label::Column`] a parquet file or a folder of such.
    pub path: PathBuf,
}

/// Where the truth about a dataset's images is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    /// All of them are this: a label of the detectors, or `positive` or `negative`.
    All(String),
    /// A column of the parquet file says it row by row.
    Column {
        /// The column.
        name: String,
        /// The value that means positive, any other one meaning negative; without it, values are labels.
        positive: Option<String>,
    },
}

/// What is said of one image, before it is known what a detector makes of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Said {
    /// A label's name, `positive` or `negative`.
    Word(String),
    /// A label's number, counted from 0 in the order of the detector's outputs.
    Index(i64),
    /// Positive or not.
    Is(bool),
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => write!(f, "\"{word}\""),
            Self::Index(index) => write!(f, "{index}"),
            Self::Is(is) => write!(f, "{is}"),
        }
    }
}

/// What is wrong with a dataset as it was given.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// Not of the form.
    #[error("\"{given}\" {what}; the form is NAME=LABEL:PATH, for example photos=negative:folder")]
    Form {
        /// The argument.
        given: String,
        /// What it lacks.
        what: &'static str,
    },
    /// A label that a detector does not have.
    #[error(
        "{origin} says {said}, but the labels of {detector} are {labels}\n  hint: name one of them, or \"positive\" for \"{positive}\" and \"negative\" for any other; in column:NAME=VALUE, VALUE names the value that means positive"
    )]
    Unknown {
        /// Which dataset, and where in it.
        origin: String,
        /// What it says.
        said: Said,
        /// The detector.
        detector: String,
        /// Its labels.
        labels: String,
        /// The one it is evaluated for.
        positive: String,
    },
    /// A file that cannot be used as it was asked for.
    #[error("{path}: {what}")]
    File {
        /// The file or folder.
        path: String,
        /// What is wrong with it and what would be right.
        what: String,
    },
}

impl Dataset {
    /// Reads `NAME=LABEL:PATH`. The name ends at the first `=`, the label at the first `:` after it (not counting the
    /// one of `column:`); the path may hold either.
    ///
    /// # Errors
    /// When a part is missing.
    pub fn parse(given: &str) -> Result<Self, DatasetError> {
        let wrong = |what| DatasetError::Form { given: given.to_owned(), what };
        let (name, rest) = given.split_once('=').ok_or_else(|| wrong("has no ="))?;
        let no_colon = "has no : between label and path";
        let (label, path) = match rest.strip_prefix("column:") {
            Some(rest) => {
                let (column, path) = rest.split_once(':').ok_or_else(|| wrong(no_colon))?;
                let (name, positive) = match column.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (column, None),
                };
                (Label::Column { name: name.to_owned(), positive }, path)
            }
            None => rest
                .split_once(':')
                .map(|(label, path)| (Label::All(label.to_owned()), path))
                .ok_or_else(|| wrong(no_colon))?,
        };
        let (Label::All(word) | Label::Column { name: word, .. }) = &label;
        if name.is_empty() || word.is_empty() || path.is_empty() {
            return Err(wrong("has an empty name, label or path"));
        }
        Ok(Self { name: name.to_owned(), label, path: PathBuf::from(path) })
    }
}

/// Answers what is said with, subject by subject, whether it means the positive class. What was answered once is kept.
#[derive(Debug)]
pub struct Truths {
    subjects: Arc<[Subject]>,
    known: HashMap<Said, Arc<[bool]>>,
}

impl Truths {
    /// For these subjects.
    #[must_use]
    pub fn new(subjects: Arc<[Subject]>) -> Self {
        Self { subjects, known: HashMap::new() }
    }

    /// `[subject]`: whether an image of which this is said is positive. A word is a label of the detector, compared
    /// exactly and then without case, or `positive` or `negative`.
    ///
    /// # Errors
    /// When it is no label of one of the detectors; `origin` says where it was found.
    pub fn of(&mut self, said: &Said, origin: impl FnOnce() -> String) -> Result<Arc<[bool]>, DatasetError> {
        if let Some(known) = self.known.get(said) {
            return Ok(Arc::clone(known));
        }
        let truths: Result<Arc<[bool]>, &Subject> =
            self.subjects.iter().map(|subject| is_positive(subject, said).ok_or(subject)).collect();
        let truths = truths.map_err(|subject| DatasetError::Unknown {
            origin: origin(),
            said: said.clone(),
            detector: subject.detector.clone(),
            labels: subject.labels.iter().map(|label| format!("\"{label}\"")).collect::<Vec<_>>().join(", "),
            positive: subject.positive.clone(),
        })?;
        self.known.insert(said.clone(), Arc::clone(&truths));
        Ok(truths)
    }
}

fn is_positive(subject: &Subject, said: &Said) -> Option<bool> {
    let label = match said {
        Said::Is(is) => return Some(*is),
        Said::Index(index) => subject.labels.get(usize::try_from(*index).ok()?)?,
        Said::Word(word) => {
            let exact = subject.labels.iter().find(|label| *label == word);
            match exact.or_else(|| subject.labels.iter().find(|label| label.eq_ignore_ascii_case(word))) {
                Some(label) => label,
                None if word.eq_ignore_ascii_case("positive") => return Some(true),
                None if word.eq_ignore_ascii_case("negative") => return Some(false),
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
        Subject { detector: detector.into(), labels, positive: positive.into(), thresholds: None }
    }

    fn column(name: &str, positive: Option<&str>) -> Label {
        Label::Column { name: name.into(), positive: positive.map(str::to_owned) }
    }

    #[test]
    fn the_form_is_name_label_path() {
        for (given, name, label, path) in [
            ("faces=by AI:some/folder", "faces", Label::All("by AI".into()), "some/folder"),
            ("a=positive:b=c:d.parquet", "a", Label::All("positive".into()), "b=c:d.parquet"),
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
    fn each_subject_has_its_own_truth() {
        let subjects =
            [subject("a", &["by human", "by AI"], "by AI"), subject("b", &["by AI", "by human"], "by human")];
        let mut truths = Truths::new(subjects.into());
        for (said, expected) in [
            (Said::Word("by AI".into()), [true, false]),
            (Said::Word("BY HUMAN".into()), [false, true]),
            (Said::Word("positive".into()), [true, true]),
            (Said::Word("Negative".into()), [false, false]),
            (Said::Index(1), [true, true]),
            (Said::Index(0), [false, false]),
            (Said::Is(true), [true, true]),
        ] {
            assert_eq!(*truths.of(&said, String::new).unwrap(), expected, "{said}");
            assert_eq!(*truths.of(&said, String::new).unwrap(), expected, "{said}, asked again");
        }
    }

    #[test]
    fn a_label_that_nobody_has_is_refused_with_those_there_are() {
        let mut truths = Truths::new([subject("a", &["by human", "by AI"], "by AI")].into());
        for said in [Said::Word("fake".into()), Said::Index(2), Said::Index(-1)] {
            let error = truths.of(&said, || "set".into()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("set says {said}, but the labels of a are \"by human\"")), "{error}");
        }
    }

    #[test]
    fn a_detectors_own_label_goes_before_the_short_form() {
        let mut truths = Truths::new([subject("a", &["negative", "other"], "negative")].into());
        assert!(truths.of(&Said::Word("negative".into()), String::new).unwrap()[0]);
    }
}
