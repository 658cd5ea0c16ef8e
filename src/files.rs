//! Local files: finding them below paths, in a fixed order, and reading them.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use walkdir::{DirEntry, WalkDir};

/// Every file below the paths: the paths in the given order, the files of a folder by name. What cannot be read is an
/// error item that names its path. Pipes, devices and links to folders are skipped inside folders, but not where they were
/// given as a path.
pub(crate) fn walk(paths: Vec<PathBuf>) -> impl Iterator<Item = anyhow::Result<PathBuf>> + Send {
    paths.into_iter().flat_map(|path| {
        WalkDir::new(path).sort_by_file_name().into_iter().filter_map(|entry| match entry {
            Ok(entry) if entry.file_type().is_dir() => None,
            // `WalkDir` follows a link that was given as a path; the link itself is no file.
            Ok(entry) if entry.depth() == 0 && entry.path_is_symlink() && entry.path().is_dir() => None,
            Ok(entry) if entry.depth() > 0 && !leads_to_file(&entry) => {
                tracing::debug!(path = %entry.path().display(), "path skipped, it is not a file");
                None
            }
            Ok(entry) => Some(Ok(entry.into_path())),
            Err(e) => Some(Err(unreadable(&e))),
        })
    })
}

/// A broken link counts as a file, so that its owner sees an error.
fn leads_to_file(entry: &DirEntry) -> bool {
    entry.file_type().is_file()
        || (entry.file_type().is_symlink() && entry.path().metadata().map_or(true, |found| found.is_file()))
}

fn unreadable(error: &walkdir::Error) -> anyhow::Error {
    let path = error.path().unwrap_or(Path::new("")).display();
    match error.io_error() {
        Some(e) => anyhow::anyhow!("cannot read {path}: {e}"),
        None => anyhow::anyhow!("cannot read {path}: {error}"),
    }
}

/// A file's bytes and their SHA-256, read on a blocking thread; `None` for a file with more than `limit` bytes, also
/// where its directory entry has a smaller length.
pub(crate) async fn read(path: PathBuf, limit: u64) -> anyhow::Result<Option<(Bytes, [u8; 32])>> {
    tokio::task::spawn_blocking(move || {
        let read = || {
            let file = std::fs::File::open(&path)?;
            let expected = file.metadata()?.len().min(limit);
            let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0).saturating_add(1));
            file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        };
        let bytes = read().with_context(|| format!("cannot read {}", path.display()))?;
        if bytes.len() as u64 > limit {
            return Ok(None);
        }
        let sha256 = Sha256::digest(&bytes).into();
        Ok(Some((Bytes::from(bytes), sha256)))
    })
    .await?
}
