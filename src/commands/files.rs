//! Local files: finding and reading them.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use walkdir::{DirEntry, WalkDir};

/// Every file below the paths: the paths in the given order, a folder's content by name. A path that cannot be read is an
/// error that names it. Pipes, devices and links to folders are skipped inside folders, but never as a given path.
pub(super) fn walk(paths: Vec<PathBuf>) -> impl Iterator<Item = anyhow::Result<PathBuf>> + Send {
    paths.into_iter().flat_map(|path| {
        WalkDir::new(path).sort_by_file_name().into_iter().filter_map(|entry| match entry {
            Ok(entry) if entry.file_type().is_dir() => None,
            // A given link to a folder is followed. The link itself is not a file.
            Ok(entry) if entry.depth() == 0 && entry.path_is_symlink() && entry.path().is_dir() => None,
            Ok(entry) if entry.depth() > 0 && !leads_to_file(&entry) => {
                tracing::debug!(path = %entry.path().display(), "skipped, not a file");
                None
            }
            Ok(entry) => Some(Ok(entry.into_path())),
            Err(e) => Some(Err(unreadable(&e))),
        })
    })
}

/// A broken link counts as a file, so that its error is reported.
fn leads_to_file(entry: &DirEntry) -> bool {
    entry.file_type().is_file()
        || (entry.file_type().is_symlink() && entry.path().metadata().map_or(true, |found| found.is_file()))
}

fn unreadable(error: &walkdir::Error) -> anyhow::Error {
    let path = error.path().unwrap_or(Path::new("")).display();
    match error.io_error() {
        Some(e) => anyhow::anyhow!("reading {path}: {e}"),
        None => anyhow::anyhow!("reading {path}: {error}"),
    }
}

/// A file's bytes and their SHA-256, read off the runtime's threads; `None` for a file that turns out to be longer than
/// `limit` bytes, whatever its directory entry says.
pub(super) async fn read(path: PathBuf, limit: u64) -> anyhow::Result<Option<(Bytes, [u8; 32])>> {
    tokio::task::spawn_blocking(move || {
        let read = || {
            let file = std::fs::File::open(&path)?;
            let expected = file.metadata()?.len().min(limit);
            let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0).saturating_add(1));
            file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        };
        let bytes = read().with_context(|| format!("reading {}", path.display()))?;
        if bytes.len() as u64 > limit {
            return Ok(None);
        }
        let sha256 = Sha256::digest(&bytes).into();
        Ok(Some((Bytes::from(bytes), sha256)))
    })
    .await?
}
