//! The model file with the files it refers to: where they are, and one SHA-256 over them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::external::{beneath, outline};
use super::{FieldError, PackageError};

/// Where a package's model may be, the first that is there counting.
pub const PLACES: [&str; 2] = ["model.onnx", "onnx/model.onnx"];

/// The files in which a model keeps tensors, relative to its own folder, as it names them and each once.
///
/// # Errors
/// When the model cannot be read.
pub fn companions(model: &Path) -> Result<BTreeSet<String>, PackageError> {
    let in_file = |what: String| PackageError::File { folder: model.display().to_string(), what };
    let bytes = std::fs::read(model).map_err(|e| in_file(format!("cannot be read: {e}")))?;
    let outline = outline(&bytes).map_err(|e| in_file(e.to_string()))?;
    Ok(outline.external.into_iter().map(|external| external.location).collect())
}

/// A package's model.
pub(super) struct Weights {
    /// The ONNX file.
    pub(super) model: PathBuf,
    /// The file's SHA-256. Where tensors are in other files, the SHA-256 of what `sha256sum` prints for the model and
    /// then, by name, for those: `sha256sum model.onnx model.onnx_data | sha256sum` in the model's folder.
    pub(super) sha256: String,
    /// Height and width of the image that the model takes, where its file fixes them.
    pub(super) image: Option<(u32, u32)>,
}

impl Weights {
    /// Finds the model in a package and reads it, without running it.
    pub(super) fn read(folder: &Path) -> Result<Self, PackageError> {
        let shown = folder.display().to_string();
        let in_file = |what: String| PackageError::File { folder: shown.clone(), what };
        let (place, model) = PLACES
            .iter()
            .map(|place| (*place, folder.join(place)))
            .find(|(_, file)| file.is_file())
            .ok_or_else(|| in_file("neither model.onnx nor onnx/model.onnx is in it".into()))?;
        let bytes = std::fs::read(&model).map_err(|e| in_file(format!("cannot read {}: {e}", model.display())))?;
        let outline = outline(&bytes).map_err(|e| in_file(format!("{place}: {e}")))?;

        let mut others = BTreeMap::new();
        for external in outline.external {
            if others.contains_key(&external.location) {
                continue;
            }
            let sha256 = beneath(folder, &model, &external.location)
                .and_then(|file| sha256_of(&file).map_err(|e| format!("cannot read {}: {e}", file.display())));
            let sha256 = sha256.map_err(|why| {
                let what =
                    format!("the tensor \"{}\" is in the file \"{}\": {why}", external.tensor, external.location);
                FieldError::new(place, "external_data", what).of(folder)
            })?;
            others.insert(external.location, sha256);
        }
        let own = hex::encode(Sha256::digest(&bytes));
        let sha256 = if others.is_empty() { own } else { together(&own, &others) };
        Ok(Self { model, sha256, image: outline.image })
    }
}

/// Each line as `sha256sum` prints it.
fn together(model: &str, others: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{model}  model.onnx\n"));
    for (location, sha256) in others {
        hash.update(format!("{sha256}  {location}\n"));
    }
    hex::encode(hash.finalize())
}

/// SHA-256 of a file, read in pieces: weights may be larger than what should be in memory at once.
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
