//! From the datasets as they were named to one labelled image after another.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use walkdir::WalkDir;

use super::columns::{ParquetImages, ParquetRow, UnreadableRows};
use super::dataset::{Dataset, DatasetError, LabelResolver, LabelSource, LabelValue};
use super::results::UnscoredImages;
use crate::files;

/// The datasets, checked as far as that is possible without reading every row.
pub(crate) struct DatasetReader {
    /// The names of the datasets, each once.
    pub names: Vec<String>,
    parts: Vec<DatasetPart>,
    labels: LabelResolver,
}

struct DatasetPart {
    /// Index of the dataset's name.
    dataset: usize,
    content: PartContent,
    images: u64,
}

enum PartContent {
    /// Image files: one, or all in a folder.
    Files { path: PathBuf, positive: Arc<[bool]> },
    /// A parquet file. It is opened again when it is read: a dataset may have more files than a process may hold open.
    Parquet { path: PathBuf, label: LabelSource },
}

/// An image with its label.
pub(crate) struct LabelledImage {
    /// Index of the dataset.
    pub dataset: usize,
    /// The file, and the row in it, for people.
    pub name: String,
    /// `[subject]`: whether the image is positive.
    pub positive: Arc<[bool]>,
    pub content: ImageContent,
}

pub(crate) enum ImageContent {
    File(PathBuf),
    Bytes(Bytes),
}

pub(crate) enum DatasetEntry {
    Image(LabelledImage),
    Unscored(UnscoredImages),
}

impl DatasetReader {
    /// Finds the image files and the columns of parquet files, and checks the labels given by name.
    ///
    /// # Errors
    /// When a path cannot be read, a parquet file has no such columns, or a label is unknown.
    pub(crate) fn open(datasets: &[Dataset], mut labels: LabelResolver) -> Result<Self, DatasetError> {
        let mut names: Vec<String> = Vec::new();
        let mut parts = Vec::new();
        for given in datasets {
            let dataset = names.iter().position(|name| *name == given.name).unwrap_or_else(|| {
                names.push(given.name.clone());
                names.len() - 1
            });
            let positive = match &given.label {
                LabelSource::All(name) => Some(
                    labels.resolve(&LabelValue::Name(name.clone()), || format!("the dataset \"{}\"", given.name))?,
                ),
                LabelSource::Column { .. } => None,
            };
            let is_folder = given.path.is_dir();
            let shards = match &positive {
                None if is_folder => shards(&given.path)?,
                Some(_) if is_folder || !is_parquet(&given.path)? => Vec::new(),
                _ => vec![given.path.clone()],
            };
            for path in &shards {
                let images = ParquetImages::open(path, &given.label)?.rows();
                let content = PartContent::Parquet { path: path.clone(), label: given.label.clone() };
                parts.push(DatasetPart { dataset, content, images });
            }
            if let (true, Some(positive)) = (shards.is_empty(), positive) {
                let images = files::walk(vec![given.path.clone()]).count() as u64;
                let content = PartContent::Files { path: given.path.clone(), positive };
                parts.push(DatasetPart { dataset, content, images });
            }
        }
        Ok(Self { names, parts, labels })
    }

    /// The number of images in all datasets.
    pub(crate) fn images(&self) -> u64 {
        self.parts.iter().map(|part| part.images).sum()
    }

    /// Passes one entry after another to `take`, until `take` returns `false`. An error is the last thing passed.
    /// Blocks the thread.
    pub(crate) fn read(self, mut take: impl FnMut(Result<DatasetEntry, DatasetError>) -> bool) {
        let Self { parts, mut labels, names } = self;
        for DatasetPart { dataset, content, .. } in parts {
            let goes_on = match content {
                PartContent::Files { path, positive } => files::walk(vec![path.clone()]).all(|file| {
                    take(Ok(match file {
                        Ok(file) => DatasetEntry::file(dataset, file, Arc::clone(&positive)),
                        Err(e) => {
                            DatasetEntry::unscored(dataset, files::path_text(&path).into_owned(), format!("{e:#}"), 1)
                        }
                    }))
                }),
                PartContent::Parquet { path, label } => match ParquetImages::open(&path, &label) {
                    Ok(images) => images.read().all(|row| {
                        let entry = DatasetEntry::row(dataset, row, &mut labels, &names[dataset]);
                        let failed = entry.is_err();
                        take(entry) && !failed
                    }),
                    Err(e) => {
                        take(Err(e));
                        false
                    }
                },
            };
            if !goes_on {
                return;
            }
        }
    }
}

impl DatasetEntry {
    fn file(dataset: usize, path: PathBuf, positive: Arc<[bool]>) -> Self {
        let name = files::path_text(&path).into_owned();
        Self::Image(LabelledImage { dataset, name, positive, content: ImageContent::File(path) })
    }

    fn row(
        dataset: usize,
        row: Result<ParquetRow, UnreadableRows>,
        labels: &mut LabelResolver,
        dataset_name: &str,
    ) -> Result<Self, DatasetError> {
        let ParquetRow { name, label, bytes } = match row {
            Ok(row) => row,
            Err(UnreadableRows { rows, from, error }) => {
                return Ok(Self::unscored(dataset, from, format!("{rows} rows cannot be read: {error}"), rows));
            }
        };
        let Some(label) = label else { return Ok(Self::unscored(dataset, name, "the row has no label".into(), 1)) };
        let positive = labels.resolve(&label, || format!("the dataset \"{dataset_name}\" ({name})"))?;
        Ok(match bytes {
            Some(bytes) => Self::Image(LabelledImage { dataset, name, positive, content: ImageContent::Bytes(bytes) }),
            None => Self::unscored(dataset, name, "the row holds no image".into(), 1),
        })
    }

    fn unscored(dataset: usize, image: String, reason: String, images: u64) -> Self {
        Self::Unscored(UnscoredImages { dataset, image, reason, images })
    }
}

/// The parquet files below a folder, by name.
fn shards(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let shown = || folder.display().to_string();
    let mut shards = Vec::new();
    for entry in WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.map_err(|error| DatasetError::Unlistable { path: shown(), error })?;
        if entry.path().extension().is_some_and(|extension| extension == "parquet") {
            shards.push(entry.into_path());
        }
    }
    if shards.is_empty() {
        let what =
            "a column is named, but the folder has no *.parquet file\n  hint: for a folder of images give a label";
        return Err(DatasetError::File { path: shown(), what: what.into() });
    }
    Ok(shards)
}

/// Decides by the magic bytes: a file's name can be wrong.
fn is_parquet(path: &Path) -> Result<bool, DatasetError> {
    use std::io::Read;
    let invalid = |error| DatasetError::Unreadable { path: path.display().to_string(), error };
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).map_err(invalid)?.read(&mut magic).map_err(invalid)?;
    Ok(magic[..read] == *b"PAR1")
}
