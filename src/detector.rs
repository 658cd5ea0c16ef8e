//! A detector: a model package read from its folder, as Hugging Face or timm export it.
//!
//! The files are read and checked against each other, and the model is not run. Whether the model's own shapes agree with
//! the package is checked by `screen::infer` when it opens the session.

mod calibration;
mod digest;
mod golden_image;
mod labels;
mod model_file;
mod non_finite;
mod onnx_outline;
pub mod options;
mod preprocessing;
mod statements;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use digest::DigestInput;
use model_file::ModelFile;
use onnx_outline::OutlineError;
use preprocessing::ProcessorFiles;
use statements::Statements;

pub use calibration::ScoreCalibration;
pub use digest::DecodeSettings;
pub(crate) use golden_image::GoldenImage;
pub(crate) use model_file::{MODEL_PATHS, external_files};
pub use preprocessing::{Channels, CropRounding, Geometry, Normalisation, ResampleFilter, Resize};
pub use statements::Axes;

/// A JSON file's content.
type JsonObject = Map<String, Value>;

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
    /// One label for each output, in the outputs' order.
    pub labels: Vec<String>,
    /// How an image becomes `[height, width, 3] u8`.
    pub geometry: Geometry,
    /// How these bytes become floats, for models that take floats.
    pub normalisation: Normalisation,
    /// The order of the input's axes, as the package states it. `None`: the model's shape shows it.
    pub axes: Option<Axes>,
    /// As the package states it. `None`: the model's output name or its values show it.
    pub activation: Option<Activation>,
    /// Whether the labels are independent, so that logits need a sigmoid and not a softmax.
    pub multi_label: bool,
    /// What is made of its probabilities, where the package has `calibration.json`.
    pub calibration: Option<ScoreCalibration>,
    /// Whether its scores are only recorded and never judged.
    pub shadow: bool,
    /// SHA-256 over everything that decides its scores, hexadecimal; see `detector/digest.rs`.
    pub digest: String,
    /// SHA-256 of the model file, hexadecimal, which a configuration may pin.
    pub model_sha256: String,
    /// An image and its scores where the package was made, for the self-test at start.
    pub(crate) golden: Option<GoldenImage>,
}

/// What is wrong with a package. Every message names the folder and the field.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The folder is not a package.
    #[error("detector {folder}: {what}")]
    Folder {
        /// The package's folder.
        folder: String,
        /// What is missing.
        what: String,
    },
    /// A file cannot be read.
    #[error("detector {folder}: cannot read {file}")]
    Read {
        /// The package's folder.
        folder: String,
        /// The file.
        file: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// A file does not hold a JSON object.
    #[error("detector {folder}: {file} is not a JSON object")]
    Json {
        /// The package's folder.
        folder: String,
        /// The file.
        file: &'static str,
        /// What the parser found.
        source: serde_json::Error,
    },
    /// The model's file is not ONNX, or it is damaged.
    #[error("detector {folder}: cannot use {file}")]
    Model {
        /// The package's folder.
        folder: String,
        /// The model's file.
        file: String,
        /// What is wrong with it.
        source: OutlineError,
    },
    /// A field is missing, contradictory or not supported.
    #[error("detector {folder}: `{field}` in {file}: {what}")]
    Field {
        /// The package's folder.
        folder: String,
        /// The file of the field.
        file: Cow<'static, str>,
        /// The field.
        field: Cow<'static, str>,
        /// What is wrong with it and what would be right.
        what: String,
    },
    /// The model is not the pinned one.
    #[error(
        "detector {folder}: the model's SHA-256 is {found}, but the configuration pins {pinned}\n  hint: if the other model is intended, change `sha256` in its [[detectors]] table"
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

/// A field that is wrong. The folder is added by [`FieldError::in_folder`].
#[derive(Debug)]
pub(crate) struct FieldError {
    pub file: Cow<'static, str>,
    pub field: Cow<'static, str>,
    pub what: String,
}

impl FieldError {
    pub(crate) fn new(
        file: impl Into<Cow<'static, str>>,
        field: impl Into<Cow<'static, str>>,
        what: impl Into<String>,
    ) -> Self {
        Self { file: file.into(), field: field.into(), what: what.into() }
    }

    fn in_folder(self, folder: &Path) -> PackageError {
        let folder = folder.display().to_string();
        PackageError::Field { folder, file: self.file, field: self.field, what: self.what }
    }
}

/// Where a package is, and what is configured for it.
#[derive(Debug, Clone)]
pub struct PackageSource<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// A name to use in place of the folder's.
    pub name: Option<&'a str>,
    /// The ONNX file, relative to the folder. `None`: `model.onnx` or `onnx/model.onnx`.
    pub file: Option<&'a str>,
    /// The SHA-256 that the model file must have, hexadecimal.
    pub sha256: Option<&'a str>,
    /// Whether its scores are only recorded and never judged.
    pub shadow: bool,
    /// The settings of the decoder that decide the pixels: part of the digest.
    pub decode_settings: DecodeSettings,
}

impl Detector {
    /// Reads and checks a package.
    ///
    /// # Errors
    /// When a file is missing, a field is missing or not supported, or the model is not the pinned one.
    pub fn load(source: &PackageSource<'_>) -> Result<Self, PackageError> {
        let folder = source.folder;
        let refused = |what: &str| PackageError::Folder { folder: folder.display().to_string(), what: what.to_owned() };
        let in_folder = |e: FieldError| e.in_folder(folder);

        if !folder.is_dir() {
            return Err(refused("there is no such folder"));
        }
        let name = match source.name {
            Some(name) => name.to_owned(),
            None => folder_name(folder).ok_or_else(|| refused("the folder has no name; give one with `name`"))?,
        };
        let model = ModelFile::read(folder, source.file)?;
        if let Some(pinned) = source.sha256.filter(|pinned| !pinned.eq_ignore_ascii_case(&model.sha256)) {
            let folder = folder.display().to_string();
            return Err(PackageError::Pinned { folder, found: model.sha256, pinned: pinned.to_owned() });
        }

        let config = read_json(folder, "config.json")?
            .ok_or_else(|| refused("it has no config.json, which must name the labels"))?;
        let labels = labels::read(&config).map_err(in_folder)?;
        let multi_label = labels::multi_label(&config).map_err(in_folder)?;
        if labels.len() == 1 && !multi_label {
            return Err(in_folder(FieldError::new(
                "config.json",
                "id2label",
                "it names one label, and a softmax over one label is always 1; a sigmoid output needs \"problem_type\": \"multi_label_classification\"",
            )));
        }
        let statements = Statements::read(&config).map_err(in_folder)?;
        let activation = statements.activation(multi_label);
        let preprocessor = read_json(folder, "preprocessor_config.json")?;
        let processor = read_json(folder, "processor_config.json")?;
        let files = ProcessorFiles { preprocessor: preprocessor.as_ref(), processor: processor.as_ref() };
        let (geometry, normalisation) =
            preprocessing::resolve(&config, files, statements.pixel_order, model.image).map_err(in_folder)?;
        let calibration = read_json(folder, "calibration.json")?
            .map(|fields| ScoreCalibration::read(&fields, &labels).map_err(in_folder))
            .transpose()?;
        let golden = read_json(folder, "golden.json")?
            .map(|fields| GoldenImage::read(folder, &fields, &labels).map_err(in_folder))
            .transpose()?;

        let digest = DigestInput {
            model_sha256: &model.sha256,
            labels: &labels,
            geometry,
            normalisation,
            axes: statements.axes,
            activation,
            multi_label,
            calibration: calibration.as_ref(),
            decode: source.decode_settings,
        }
        .sha256();
        Ok(Self {
            name,
            model: model.path,
            labels,
            geometry,
            normalisation,
            axes: statements.axes,
            activation,
            multi_label,
            calibration,
            shadow: source.shadow,
            digest,
            model_sha256: model.sha256,
            golden,
        })
    }
}

/// The last component of a path, resolving a trailing `.` or `..`.
fn folder_name(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    Some(folder.file_name()?.to_string_lossy().into_owned())
}

fn read_json(folder: &Path, file: &'static str) -> Result<Option<JsonObject>, PackageError> {
    let shown = || folder.display().to_string();
    let text = match std::fs::read_to_string(folder.join(file)) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PackageError::Read { folder: shown(), file: file.to_owned(), source }),
    };
    non_finite::parse(&text).map(Some).map_err(|source| PackageError::Json { folder: shown(), file, source })
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// A package whose one tensor is in the file `weights.bin`.
    fn package(location: &str, weights: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |file: &str| folder.path().join(file);
        std::fs::write(at("model.onnx"), onnx_outline::tests::model(&onnx_outline::tests::tensor(location))).unwrap();
        std::fs::write(at("weights.bin"), weights).unwrap();
        std::fs::write(at("config.json"), r#"{"label_names": ["a", "b"], "input_size": [3, 8, 8]}"#).unwrap();
        folder
    }

    fn load(folder: &Path, sha256: Option<&str>) -> Result<Detector, PackageError> {
        Detector::load(&PackageSource {
            folder,
            name: None,
            file: None,
            sha256,
            shadow: false,
            decode_settings: DecodeSettings::default(),
        })
    }

    /// This value may change only together with what it covers: stored scores are found by it.
    #[test]
    fn the_digest_of_a_package_is_pinned_by_value() {
        let package = package("weights.bin", b"weights");
        let decode_settings = DecodeSettings { version: 1, max_frames: 4, max_views: 12, fast_tenths: None };
        let source = PackageSource {
            folder: package.path(),
            name: Some("any"),
            file: None,
            sha256: None,
            shadow: true,
            decode_settings,
        };
        let digest = Detector::load(&source).unwrap().digest;
        assert_eq!(digest, "500d9424321cf71431f0ce3a080503cc2b45c4ad63d7c0ac1acf875655362a2a");
    }

    #[test]
    fn weights_in_another_file_are_part_of_the_digest_and_of_the_pinned_sha256() {
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
