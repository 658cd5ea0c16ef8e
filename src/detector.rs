//! A detector: a model package read from its folder, as Hugging Face or timm export it.
//!
//! This file reads files and checks them against each other. It runs nothing: that the model's own shapes agree with
//! the package is checked by `screen::infer` when the session is made.

mod golden;
mod preprocessing;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub use golden::Golden;
pub use preprocessing::{CropRounding, Filter, Geometry, Normalisation, Resize};

/// How a model's output becomes probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Exclusive labels: `exp(x_i) / Σ exp(x_j)`.
    Softmax,
    /// Independent labels: `1 / (1 + exp(-x))`.
    Sigmoid,
    /// The graph already ends in probabilities.
    Identity,
}

/// A package, checked and ready to be loaded into a session.
#[derive(Debug, Clone)]
pub struct Detector {
    /// The folder's name, unless configured otherwise.
    pub name: String,
    /// The ONNX file.
    pub model: PathBuf,
    /// One per output, in the output's order.
    pub labels: Vec<String>,
    /// How an image becomes `[height, width, 3] u8`.
    pub geometry: Geometry,
    /// How those become floats, for models that do not do it themselves.
    pub normalisation: Normalisation,
    /// Stated by the package, or `None` where the model's output name has to tell.
    pub activation: Option<Activation>,
    /// What the scores of a multi-label model need; chosen over softmax when the output holds logits.
    pub multi_label: bool,
    /// Scored and recorded, never judged.
    pub shadow: bool,
    /// SHA-256 over model, labels, preprocessing and decode settings, hexadecimal.
    pub digest: String,
    /// SHA-256 of the model file alone, hexadecimal: what a configuration pins.
    pub model_sha256: String,
    /// What it scored where it was made, for the proof at start.
    pub golden: Option<Golden>,
}

/// What is wrong with a package. Every message names the folder and the field.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A file is missing or unreadable.
    #[error("detector {folder}: {what}")]
    File {
        /// The package's folder.
        folder: String,
        /// What was looked for and what happened.
        what: String,
    },
    /// A field is missing, contradictory or not supported.
    #[error("detector {folder}: `{field}` in {file}: {what}")]
    Field {
        /// The package's folder.
        folder: String,
        /// The file the field belongs to.
        file: &'static str,
        /// The field.
        field: &'static str,
        /// What is wrong with it and what would be right.
        what: String,
    },
    /// The model file is not the one that was pinned.
    #[error(
        "detector {folder}: the model's SHA-256 is {found}, but the configuration pins {pinned}\n  hint: if the new model is meant, change `sha256` in its [[detectors]] table"
    )]
    Pinned {
        /// The package's folder.
        folder: String,
        /// The digest of the file.
        found: String,
        /// The digest in the configuration.
        pinned: String,
    },
}

/// A field that is wrong, before it is known which folder it was found in.
#[derive(Debug)]
pub(crate) struct FieldError {
    pub file: &'static str,
    pub field: &'static str,
    pub what: String,
}

impl FieldError {
    pub(crate) fn new(file: &'static str, field: &'static str, what: impl Into<String>) -> Self {
        Self { file, field, what: what.into() }
    }
}

/// Where a package is and what the configuration says of it.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// A name other than the folder's.
    pub name: Option<&'a str>,
    /// The SHA-256 the model file must have, hexadecimal.
    pub sha256: Option<&'a str>,
    /// Scored and recorded, never judged.
    pub shadow: bool,
    /// What else decides the pixels: part of the digest.
    pub decode_settings: &'a str,
}

impl Detector {
    /// Reads and checks a package.
    ///
    /// # Errors
    /// When a file is missing, a field is missing or not supported, or the model is not the pinned one.
    pub fn load(source: &Source<'_>) -> Result<Self, PackageError> {
        let folder = source.folder;
        let shown = folder.display().to_string();
        let in_file = |what: String| PackageError::File { folder: shown.clone(), what };
        let in_field =
            |e: FieldError| PackageError::Field { folder: shown.clone(), file: e.file, field: e.field, what: e.what };

        if !folder.is_dir() {
            return Err(in_file("there is no such folder".into()));
        }
        let name = match source.name {
            Some(name) => name.to_owned(),
            None => {
                folder_name(folder).ok_or_else(|| in_file("the folder has no name; give one with `name`".into()))?
            }
        };
        let model = ["model.onnx", "onnx/model.onnx"]
            .iter()
            .map(|file| folder.join(file))
            .find(|file| file.is_file())
            .ok_or_else(|| in_file("neither model.onnx nor onnx/model.onnx is in it".into()))?;

        let config = read_json(folder, "config.json")
            .map_err(&in_file)?
            .ok_or_else(|| in_file("it has no config.json, which must name the labels".into()))?;
        let preprocessor = read_json(folder, "preprocessor_config.json").map_err(&in_file)?;

        let labels = labels(&config).map_err(&in_field)?;
        let multi_label = config.get("problem_type").and_then(Value::as_str) == Some("multi_label_classification");
        if labels.len() == 1 && !multi_label {
            return Err(in_field(FieldError::new(
                "config.json",
                "id2label",
                "one label only, and a softmax over one label is always 1; a sigmoid output needs \"problem_type\": \"multi_label_classification\"",
            )));
        }
        let activation = stated_activation(&config, multi_label).map_err(&in_field)?;
        let (geometry, normalisation) = preprocessing::resolve(&config, preprocessor.as_ref()).map_err(&in_field)?;

        let golden = read_json(folder, "golden.json")
            .map_err(&in_file)?
            .map(|fields| Golden::read(folder, &fields, &labels).map_err(&in_field))
            .transpose()?;

        let bytes = std::fs::read(&model).map_err(|e| in_file(format!("cannot read {}: {e}", model.display())))?;
        let model_sha256 = hex::encode(Sha256::digest(&bytes));
        if let Some(pinned) = source.sha256.filter(|pinned| !pinned.eq_ignore_ascii_case(&model_sha256)) {
            return Err(PackageError::Pinned { folder: shown, found: model_sha256, pinned: pinned.to_owned() });
        }
        let decides = serde_json::json!([
            model_sha256,
            labels,
            format!("{geometry:?} {normalisation:?} {activation:?} {multi_label}"),
            source.decode_settings,
        ]);
        let digest = hex::encode(Sha256::digest(decides.to_string()));
        Ok(Self {
            name,
            model,
            labels,
            geometry,
            normalisation,
            activation,
            multi_label,
            shadow: source.shadow,
            digest,
            model_sha256,
            golden,
        })
    }
}

/// The last component of a path, resolving a trailing `.` or `..`.
fn folder_name(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    Some(folder.file_name()?.to_string_lossy().into_owned())
}

fn read_json(folder: &Path, file: &str) -> Result<Option<Map<String, Value>>, String> {
    let text = match std::fs::read_to_string(folder.join(file)) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("cannot read {file}: {e}")),
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(format!("{file} is not a JSON object")),
        Err(e) => Err(format!("{file} is not valid JSON: {e}")),
    }
}

/// Finds the labels where Hugging Face (`id2label`) or timm (`label_names`, `labels`) puts them.
fn labels(config: &Map<String, Value>) -> Result<Vec<String>, FieldError> {
    const FILE: &str = "config.json";
    for field in ["label_names", "labels"] {
        if let Some(list) = config.get(field).and_then(Value::as_array) {
            return distinct(field, list.iter().map(|label| label.as_str().map(str::to_owned)).collect());
        }
    }
    let Some(by_id) = config.get("id2label").and_then(Value::as_object) else {
        return Err(FieldError::new(
            FILE,
            "id2label",
            "no labels found; give `id2label` (Hugging Face) or `label_names` (timm)",
        ));
    };
    let in_order = (0..by_id.len()).map(|i| by_id.get(&i.to_string())?.as_str().map(str::to_owned)).collect();
    distinct("id2label", in_order)
}

fn distinct(field: &'static str, labels: Option<Vec<String>>) -> Result<Vec<String>, FieldError> {
    const FILE: &str = "config.json";
    let labels = labels
        .ok_or_else(|| FieldError::new(FILE, field, "every label must be a string, numbered from 0 without a gap"))?;
    if labels.is_empty() {
        return Err(FieldError::new(FILE, field, "it is empty"));
    }
    let mut sorted = labels.clone();
    sorted.sort();
    sorted.dedup();
    if sorted.len() != labels.len() {
        return Err(FieldError::new(FILE, field, "two labels have the same name, so a rule could not tell them apart"));
    }
    Ok(labels)
}

/// `"pixwarden": {"output": "logits" | "probabilities"}` in `config.json`, written by our converter.
fn stated_activation(config: &Map<String, Value>, multi_label: bool) -> Result<Option<Activation>, FieldError> {
    let Some(output) = config.get("pixwarden").and_then(|ours| ours.get("output")) else { return Ok(None) };
    match output.as_str() {
        Some("logits") if multi_label => Ok(Some(Activation::Sigmoid)),
        Some("logits") => Ok(Some(Activation::Softmax)),
        Some("probabilities") => Ok(Some(Activation::Identity)),
        _ => Err(FieldError::new(
            "config.json",
            "pixwarden.output",
            format!("{output} is neither \"logits\" nor \"probabilities\""),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn labels_are_found_in_each_of_their_places() {
        let expected = vec!["real".to_owned(), "fake".to_owned()];
        assert_eq!(labels(&object(r#"{"id2label": {"1": "fake", "0": "real"}}"#)).unwrap(), expected);
        assert_eq!(labels(&object(r#"{"label_names": ["real", "fake"]}"#)).unwrap(), expected);
        assert_eq!(labels(&object(r#"{"labels": ["real", "fake"]}"#)).unwrap(), expected);
    }

    #[test]
    fn labels_that_cannot_be_trusted_are_refused_by_field() {
        for (json, field) in [
            ("{}", "id2label"),
            (r#"{"id2label": {"0": "a", "2": "b"}}"#, "id2label"),
            (r#"{"label_names": ["a", "a"]}"#, "label_names"),
            (r#"{"labels": []}"#, "labels"),
            (r#"{"labels": ["a", 1]}"#, "labels"),
        ] {
            assert_eq!(labels(&object(json)).unwrap_err().field, field, "{json}");
        }
    }
}
