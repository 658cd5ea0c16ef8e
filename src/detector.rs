//! A detector: a model package read from its folder, as Hugging Face or timm export it.
//!
//! This file reads files and checks them against each other. It runs nothing: that the model's own shapes agree with
//! the package is checked by `screen::infer` when the session is made.

mod external;
mod golden;
mod labels;
pub mod options;
mod preprocessing;
mod weights;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use weights::Weights;

pub use golden::Golden;
pub use preprocessing::{Channels, CropRounding, Filter, Geometry, Normalisation, Resize};
pub use weights::{PLACES as MODEL_PLACES, companions};

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
        field: Cow<'static, str>,
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
    pub field: Cow<'static, str>,
    pub what: String,
}

impl FieldError {
    pub(crate) fn new(file: &'static str, field: impl Into<Cow<'static, str>>, what: impl Into<String>) -> Self {
        Self { file, field: field.into(), what: what.into() }
    }

    fn of(self, folder: &Path) -> PackageError {
        let folder = folder.display().to_string();
        PackageError::Field { folder, file: self.file, field: self.field, what: self.what }
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
        let in_file = |what: &str| PackageError::File { folder: folder.display().to_string(), what: what.into() };
        let in_field = |e: FieldError| e.of(folder);

        if !folder.is_dir() {
            return Err(in_file("there is no such folder"));
        }
        let name = match source.name {
            Some(name) => name.to_owned(),
            None => folder_name(folder).ok_or_else(|| in_file("the folder has no name; give one with `name`"))?,
        };
        let weights = Weights::read(folder)?;
        if let Some(pinned) = source.sha256.filter(|pinned| !pinned.eq_ignore_ascii_case(&weights.sha256)) {
            let folder = folder.display().to_string();
            return Err(PackageError::Pinned { folder, found: weights.sha256, pinned: pinned.to_owned() });
        }

        let config = read_json(folder, "config.json")?
            .ok_or_else(|| in_file("it has no config.json, which must name the labels"))?;
        let labels = labels::read(&config).map_err(in_field)?;
        let multi_label = labels::multi_label(&config).map_err(in_field)?;
        if labels.len() == 1 && !multi_label {
            return Err(in_field(FieldError::new(
                "config.json",
                "id2label",
                "one label only, and a softmax over one label is always 1; a sigmoid output needs \"problem_type\": \"multi_label_classification\"",
            )));
        }
        let activation = labels::activation(&config, multi_label).map_err(in_field)?;
        let preprocessor = read_json(folder, "preprocessor_config.json")?;
        let (geometry, normalisation) =
            preprocessing::resolve(&config, preprocessor.as_ref(), weights.image).map_err(in_field)?;
        let golden = read_json(folder, "golden.json")?
            .map(|fields| Golden::read(folder, &fields, &labels).map_err(in_field))
            .transpose()?;

        let decides = serde_json::json!([
            weights.sha256,
            labels,
            format!("{geometry:?} {normalisation:?} {activation:?} {multi_label}"),
            source.decode_settings,
        ]);
        Ok(Self {
            name,
            model: weights.model,
            labels,
            geometry,
            normalisation,
            activation,
            multi_label,
            shadow: source.shadow,
            digest: hex::encode(Sha256::digest(decides.to_string())),
            model_sha256: weights.sha256,
            golden,
        })
    }
}

/// The last component of a path, resolving a trailing `.` or `..`.
fn folder_name(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    Some(folder.file_name()?.to_string_lossy().into_owned())
}

fn read_json(folder: &Path, file: &str) -> Result<Option<Map<String, Value>>, PackageError> {
    let in_file = |what: String| PackageError::File { folder: folder.display().to_string(), what };
    let text = match std::fs::read_to_string(folder.join(file)) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(in_file(format!("cannot read {file}: {e}"))),
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(in_file(format!("{file} is not a JSON object"))),
        Err(e) => Err(in_file(format!("{file} is not valid JSON: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A package whose one tensor is in the file `weights.bin`.
    fn package(location: &str, weights: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |file: &str| folder.path().join(file);
        std::fs::write(at("model.onnx"), external::tests::model(&external::tests::tensor(location))).unwrap();
        std::fs::write(at("weights.bin"), weights).unwrap();
        std::fs::write(at("config.json"), r#"{"label_names": ["a", "b"], "input_size": [3, 8, 8]}"#).unwrap();
        folder
    }

    fn load(folder: &Path, sha256: Option<&str>) -> Result<Detector, PackageError> {
        Detector::load(&Source { folder, name: None, sha256, shadow: false, decode_settings: "" })
    }

    #[test]
    fn weights_in_another_file_are_part_of_the_digest_and_of_what_is_pinned() {
        let (one, other) = (package("weights.bin", b"one"), package("weights.bin", b"other"));
        let (first, second) = (load(one.path(), None).unwrap(), load(other.path(), None).unwrap());
        assert_ne!((&first.digest, &first.model_sha256), (&second.digest, &second.model_sha256));
        assert!(load(one.path(), Some(&first.model_sha256)).is_ok());
        assert!(matches!(load(other.path(), Some(&first.model_sha256)), Err(PackageError::Pinned { .. })));

        let printed = std::process::Command::new("sha256sum")
            .args(["model.onnx", "weights.bin"])
            .current_dir(one.path())
            .output()
            .unwrap();
        assert_eq!(first.model_sha256, hex::encode(Sha256::digest(printed.stdout)));
    }

    #[test]
    fn weights_outside_the_package_are_refused_by_tensor_and_location() {
        for location in ["../weights.bin", "/etc/hostname", "missing.bin"] {
            let words = load(package(location, b"").path(), None).unwrap_err().to_string();
            for part in ["`external_data` in model.onnx", "the tensor \"w\"", location] {
                assert!(words.contains(part), "{words}");
            }
        }
    }
}
