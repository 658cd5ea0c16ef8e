//! The options of a detector: `[[detectors]]`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::text_or_table::text_or_table;

/// One model package: a folder, or a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum DetectorEntry {
    /// The folder. A single detector without a rule gets the default rule.
    Path(String),
    /// The folder with a name, a chosen or pinned model file, or the shadow mark.
    Table(DetectorTable),
}

/// See [`DetectorEntry::Table`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectorTable {
    /// Empty: the folder's name.
    pub name: String,
    /// The folder.
    pub path: String,
    /// The ONNX file, relative to the folder; empty: model.onnx or onnx/model.onnx.
    pub file: String,
    /// The model file's SHA-256; empty: not pinned.
    pub sha256: String,
    /// The detector's scores are recorded, but not judged.
    pub shadow: bool,
}

impl<'de> Deserialize<'de> for DetectorEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_table(deserializer, Self::Path, Self::Table)
    }
}

impl DetectorEntry {
    pub(crate) fn path(&self) -> &str {
        match self {
            Self::Path(path) => path,
            Self::Table(table) => &table.path,
        }
    }
}
