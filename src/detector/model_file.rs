//! A package's model file, with the files in which it keeps tensors, and one SHA-256 over them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::onnx_outline::{ExternalFileError, OnnxOutline, external_path};
use super::{FieldError, PackageError};
use crate::error_text;

/// Where a package's model may be. The first one that exists counts.
pub(crate) const MODEL_PATHS: [&str; 2] = ["model.onnx", "onnx/model.onnx"];

/// The files in which a model keeps tensors, each once, as the model names them: relative to its own folder.
///
/// # Errors
/// When the model cannot be read.
pub(crate) fn external_files(model: &Path) -> Result<BTreeSet<String>, PackageError> {
    let folder = model.parent().unwrap_or(model).display().to_string();
    let file = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let outline = match std::fs::read(model) {
        Ok(bytes) => OnnxOutline::of(&bytes).map_err(|source| PackageError::Model { folder, file, source })?,
        Err(source) => return Err(PackageError::Read { folder, file, source }),
    };
    Ok(outline.external.into_iter().map(|external| external.location).collect())
}

/// A package's model.
pub(super) struct ModelFile {
    /// The ONNX file.
    pub(super) path: PathBuf,
    /// The file's SHA-256. Where tensors are in other files, the SHA-256 of what `sha256sum` prints for the model and
    /// then, sorted by name, for those: `sha256sum model.onnx model.onnx_data | sha256sum` in the model's folder.
    pub(super) sha256: String,
    /// Height and width of the image that the model takes, where its file fixes them.
    pub(super) image: Option<(u32, u32)>,
}

impl ModelFile {
    /// Finds the model in a package and reads it, without running it.
    pub(super) fn read(folder: &Path) -> Result<Self, PackageError> {
        let shown = || folder.display().to_string();
        let missing =
            || PackageError::Folder { folder: shown(), what: "neither model.onnx nor onnx/model.onnx is in it" };
        let mut paths = MODEL_PATHS.iter().map(|name| (*name, folder.join(name)));
        let (name, path) = paths.find(|(_, path)| path.is_file()).ok_or_else(missing)?;
        let read_error = |source| PackageError::Read { folder: shown(), file: name.to_owned(), source };
        let bytes = std::fs::read(&path).map_err(read_error)?;
        let outline = OnnxOutline::of(&bytes).map_err(|source| PackageError::Model {
            folder: shown(),
            file: name.to_owned(),
            source,
        })?;

        let mut others = BTreeMap::new();
        for external in outline.external {
            if others.contains_key(&external.location) {
                continue;
            }
            let sha256 = external_path(folder, &path, &external.location).and_then(|file| {
                sha256_of(&file).map_err(|source| ExternalFileError::Read { file: file.clone(), source })
            });
            let sha256 = sha256.map_err(|error| {
                let (tensor, location) = (&external.tensor, &external.location);
                let why = error_text(&error);
                let what = format!("the tensor \"{tensor}\" is in the file \"{location}\": {why}");
                FieldError::new(name, "external_data", what).in_folder(folder)
            })?;
            others.insert(external.location, sha256);
        }
        let own = hex::encode(Sha256::digest(&bytes));
        let sha256 = if others.is_empty() { own } else { combined_sha256(&own, &others) };
        Ok(Self { path, sha256, image: outline.image })
    }
}

/// Hashes one line for each file, as `sha256sum` prints it.
fn combined_sha256(model: &str, others: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{model}  model.onnx\n"));
    for (location, sha256) in others {
        hash.update(format!("{sha256}  {location}\n"));
    }
    hex::encode(hash.finalize())
}

/// SHA-256 of a file, read in pieces, since weights may be larger than the memory.
fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = std::fs::File::open(path)?;
    let mut piece = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut piece)? {
            0 => return Ok(hex::encode(hash.finalize())),
            n => hash.update(&piece[..n]),
        }
    }
}
