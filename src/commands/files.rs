//! Local files: which, in what order, and what is in them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// Every file beneath the paths: paths in the order given, what is in a folder by name. What cannot be read is an item
/// too, and says which path it is.
pub(super) fn walk(paths: &[PathBuf]) -> impl Iterator<Item = anyhow::Result<PathBuf>> + Send + use<> {
    paths.to_vec().into_iter().flat_map(|path| {
        WalkDir::new(path).sort_by_file_name().into_iter().filter_map(|entry| match entry {
            Ok(entry) if entry.file_type().is_dir() => None,
            Ok(entry) => Some(Ok(entry.into_path())),
            Err(e) => Some(Err(unreadable(&e))),
        })
    })
}

fn unreadable(error: &walkdir::Error) -> anyhow::Error {
    let path = error.path().unwrap_or(Path::new("")).display();
    match error.io_error() {
        Some(e) => anyhow::anyhow!("reading {path}: {e}"),
        None => anyhow::anyhow!("reading {path}: {error}"),
    }
}

/// A whole file and its SHA-256, off the runtime's threads.
pub(super) async fn read(path: PathBuf) -> anyhow::Result<(Bytes, [u8; 32])> {
    tokio::task::spawn_blocking(move || {
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let sha256 = Sha256::digest(&bytes).into();
        Ok((Bytes::from(bytes), sha256))
    })
    .await?
}
