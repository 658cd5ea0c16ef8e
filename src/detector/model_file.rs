//! A package's model file, with the files in which it keeps tensors, and one SHA-256 over them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

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
    /// Finds the model in a package and reads it, without running it. `chosen` is its path in the folder, where one is
    /// configured.
    pub(super) fn read(folder: &Path, chosen: Option<&str>) -> Result<Self, PackageError> {
        let shown = || folder.display().to_string();
        let name = file_name(folder, chosen)?;
        let path = folder.join(&*name);
        let read_error = |source| PackageError::Read { folder: shown(), file: name.clone().into_owned(), source };
        let bytes = std::fs::read(&path).map_err(read_error)?;
        let outline = OnnxOutline::of(&bytes).map_err(|source| PackageError::Model {
            folder: shown(),
            file: name.clone().into_owned(),
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
                FieldError::new(name.clone().into_owned(), "external_data", what).in_folder(folder)
            })?;
            others.insert(external.location, sha256);
        }
        let own = hex::encode(Sha256::digest(&bytes));
        let sha256 = if others.is_empty() { own } else { combined_sha256(&path, &own, &others) };
        Ok(Self { path, sha256, image: outline.image })
    }
}

/// The model's path in a package's folder: the configured one, or the first of the usual ones.
fn file_name<'a>(folder: &Path, chosen: Option<&'a str>) -> Result<Cow<'a, str>, PackageError> {
    let refused = |what: String| PackageError::Folder { folder: folder.display().to_string(), what };
    let others = || other_models(folder);
    let Some(chosen) = chosen else {
        let found = MODEL_PATHS.iter().find(|name| folder.join(name).is_file());
        return found.map(|name| Cow::Borrowed(*name)).ok_or_else(|| {
            let what = "neither model.onnx nor onnx/model.onnx is in it";
            refused(match others().as_slice() {
                [] => format!(
                    "{what}\n  hint: `pixwarden models fetch` fetches a package, and models/convert.py makes one"
                ),
                [first, ..] => format!(
                    "{what}, but {} is\n  hint: choose one in a [[detectors]] table: file = \"{first}\"",
                    others().join(", ")
                ),
            })
        });
    };
    let is_inside = Path::new(chosen).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !is_inside {
        return Err(refused(format!("`file` is \"{chosen}\", but must be a path inside the folder, without `..`")));
    }
    if !folder.join(chosen).is_file() {
        let hint = match others().as_slice() {
            [] => "there is no ONNX file in it".to_owned(),
            others => format!("its ONNX files are {}", others.join(", ")),
        };
        return Err(refused(format!("`file` is \"{chosen}\", and no such file is in it\n  hint: {hint}")));
    }
    Ok(Cow::Borrowed(chosen))
}

/// The ONNX files of a package, as paths in its folder: for messages.
fn other_models(folder: &Path) -> Vec<String> {
    let in_folder = |within: &str| {
        let entries = std::fs::read_dir(folder.join(within)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let models = names.filter(|name| name.ends_with(".onnx"));
        models.map(|name| format!("{within}{name}")).collect::<Vec<_>>()
    };
    let mut found = [in_folder(""), in_folder("onnx/")].concat();
    found.sort();
    found
}

/// Hashes one line for each file, as `sha256sum` prints it in the model's folder.
fn combined_sha256(path: &Path, model: &str, others: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    hash.update(format!("{model}  {name}\n"));
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
