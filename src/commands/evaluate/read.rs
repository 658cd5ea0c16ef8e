//! From datasets as they were named to one image after the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use walkdir::WalkDir;

use super::files;
use crate::evaluate::columns::{Columns, Labelled, Lost};
use crate::evaluate::dataset::{Dataset, DatasetError, Label, Said, Truths};
use crate::evaluate::findings::Unscored;

/// The datasets, checked as far as that goes without reading every row.
pub(super) struct Sources {
    /// Their names, each once.
    pub(super) names: Vec<String>,
    sources: Vec<Source>,
    truths: Truths,
}

/// A part of a dataset.
struct Source {
    /// Index of the dataset's name.
    dataset: usize,
    kind: Kind,
    images: u64,
}

enum Kind {
    /// Image files: one, or all in a folder.
    Files { path: PathBuf, truths: Arc<[bool]> },
    /// A parquet file. It is opened anew when its turn comes; a dataset may have more files than a process may hold open.
    Columns { path: PathBuf, label: Label },
}

/// An image and the truth about it.
pub(super) struct Image {
    /// Index of the dataset.
    pub(super) dataset: usize,
    /// For people.
    pub(super) name: String,
    /// `[subject]`: whether it is positive.
    pub(super) truths: Arc<[bool]>,
    pub(super) content: Content,
}

/// Where an image's bytes are.
pub(super) enum Content {
    File(PathBuf),
    Bytes(Bytes),
}

/// What reading comes upon.
pub(super) enum Found {
    Image(Image),
    Unscored(Unscored),
}

impl Sources {
    /// Finds the files, and the columns in those that are parquet, and checks the labels given by name.
    pub(super) fn open(datasets: &[Dataset], mut truths: Truths) -> Result<Self, DatasetError> {
        let mut names: Vec<String> = Vec::new();
        let mut sources = Vec::new();
        for given in datasets {
            let dataset = names.iter().position(|name| *name == given.name).unwrap_or_else(|| {
                names.push(given.name.clone());
                names.len() - 1
            });
            let all = match &given.label {
                Label::All(word) => {
                    Some(truths.of(&Said::Word(word.clone()), || format!("the dataset \"{}\"", given.name))?)
                }
                Label::Column { .. } => None,
            };
            let is_folder = given.path.is_dir();
            let shards = match &all {
                None if is_folder => shards(&given.path)?,
                Some(_) if is_folder || !is_parquet(&given.path)? => Vec::new(),
                _ => vec![given.path.clone()],
            };
            for path in &shards {
                let images = Columns::open(path, &given.label)?.rows();
                let kind = Kind::Columns { path: path.clone(), label: given.label.clone() };
                sources.push(Source { dataset, kind, images });
            }
            if let (true, Some(truths)) = (shards.is_empty(), all) {
                let images = files::walk(vec![given.path.clone()]).count() as u64;
                let kind = Kind::Files { path: given.path.clone(), truths };
                sources.push(Source { dataset, kind, images });
            }
        }
        Ok(Self { names, sources, truths })
    }

    /// How many images there are, for the bar.
    pub(super) fn images(&self) -> u64 {
        self.sources.iter().map(|source| source.images).sum()
    }

    /// Hands one image after the other to `take`, until that answers `false`. An error is the last thing handed over.
    /// Blocks.
    pub(super) fn read(self, mut take: impl FnMut(Result<Found, DatasetError>) -> bool) {
        let Self { sources, mut truths, names } = self;
        for Source { dataset, kind, .. } in sources {
            let goes_on = match kind {
                Kind::Files { path, truths } => files::walk(vec![path.clone()]).all(|file| {
                    take(Ok(match file {
                        Ok(file) => Found::file(dataset, file, Arc::clone(&truths)),
                        Err(e) => Found::unscored(dataset, path.display().to_string(), format!("{e:#}"), 1),
                    }))
                }),
                Kind::Columns { path, label } => match Columns::open(&path, &label) {
                    Ok(columns) => columns.read().all(|row| {
                        let found = Found::row(dataset, row, &mut truths, &names[dataset]);
                        let failed = found.is_err();
                        take(found) && !failed
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

impl Found {
    fn file(dataset: usize, path: PathBuf, truths: Arc<[bool]>) -> Self {
        Self::Image(Image { dataset, name: path.display().to_string(), truths, content: Content::File(path) })
    }

    fn row(
        dataset: usize,
        row: Result<Labelled, Lost>,
        truths: &mut Truths,
        dataset_name: &str,
    ) -> Result<Self, DatasetError> {
        let Labelled { name, said, bytes } = match row {
            Ok(labelled) => labelled,
            Err(Lost { rows, from, error }) => {
                return Ok(Self::unscored(dataset, from, format!("{rows} rows cannot be read: {error}"), rows));
            }
        };
        let Some(said) = said else { return Ok(Self::unscored(dataset, name, "the row has no label".into(), 1)) };
        let truths = truths.of(&said, || format!("the dataset \"{dataset_name}\" ({name})"))?;
        Ok(match bytes {
            Some(bytes) => Self::Image(Image { dataset, name, truths, content: Content::Bytes(bytes) }),
            None => Self::unscored(dataset, name, "the row holds no image".into(), 1),
        })
    }

    fn unscored(dataset: usize, image: String, reason: String, images: u64) -> Self {
        Self::Unscored(Unscored { dataset, image, reason, images })
    }
}

/// The parquet files beneath a folder, by name.
fn shards(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let wrong = |what: String| DatasetError::File { path: folder.display().to_string(), what };
    let mut shards = Vec::new();
    for entry in WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.map_err(|e| wrong(e.to_string()))?;
        if entry.path().extension().is_some_and(|extension| extension == "parquet") {
            shards.push(entry.into_path());
        }
    }
    if shards.is_empty() {
        return Err(wrong(
            "a column was named, but there is no *.parquet in it; for a folder of images give a label".into(),
        ));
    }
    Ok(shards)
}

/// By the magic bytes; names lie.
fn is_parquet(path: &Path) -> Result<bool, DatasetError> {
    use std::io::Read;
    let wrong = |e: std::io::Error| DatasetError::File { path: path.display().to_string(), what: e.to_string() };
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).map_err(wrong)?.read(&mut magic).map_err(wrong)?;
    Ok(magic[..read] == *b"PAR1")
}
