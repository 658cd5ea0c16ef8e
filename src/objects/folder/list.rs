//! Lists a folder's files in the order of S3: by the bytes of their keys.
//!
//! Only the names of one folder, and of the folders above it, are in memory. Links are skipped: their target is listed under
//! its own name, or lies outside.

use std::io;

use cap_std::fs::{Dir, Metadata};
use futures_util::stream::BoxStream;

use super::{Folder, KeyRange, ListedObject, StoreError, classify_error, failed, is_plain, listed};
use crate::error_text::Described;
use crate::offload::{self, ItemSink, ReceiverDropped};

/// Lists on a separate thread.
pub(super) fn list(folder: Folder, range: KeyRange) -> BoxStream<'static, Result<ListedObject, StoreError>> {
    offload::stream_from_thread(move |sink| {
        let walk = Walk { range: &range, sink };
        match walk.bucket(&folder) {
            Err(WalkEnd::Failed(e)) => sink.put(Err(e)),
            Ok(()) | Err(WalkEnd::ReceiverDropped) => Ok(()),
        }
    })
}

struct Walk<'a> {
    range: &'a KeyRange,
    sink: &'a ItemSink<Result<ListedObject, StoreError>>,
}

/// Why a walk ends before its end.
enum WalkEnd {
    ReceiverDropped,
    Failed(StoreError),
}

impl From<ReceiverDropped> for WalkEnd {
    fn from(_: ReceiverDropped) -> Self {
        Self::ReceiverDropped
    }
}

impl From<StoreError> for WalkEnd {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Walk<'_> {
    fn bucket(&self, folder: &Folder) -> Result<(), WalkEnd> {
        let bucket = folder.bucket(&self.range.bucket)?;
        // Every key begins with the prefix, so the walk starts in the last folder that it names.
        let Some((above, _)) = self.range.prefix.rsplit_once('/') else { return self.folder(&bucket, "") };
        if !is_plain(above) {
            // No key begins like this.
            return Ok(());
        }
        self.below(&format!("{above}/"), bucket.open_dir(above))
    }

    /// Lists a subfolder. It may have been removed since its name was read.
    fn below(&self, path: &str, opened: io::Result<Dir>) -> Result<(), WalkEnd> {
        match opened.map_err(classify_error) {
            Ok(dir) => self.folder(&dir, path),
            Err(StoreError::Missing(_)) => Ok(()),
            Err(StoreError::Denied(why)) => {
                let text = format!("cannot list the folder {path}: {why}");
                Err(StoreError::Denied(Described::new(text, why)).into())
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Lists a folder whose keys begin with `path`, which is empty or ends with a slash.
    fn folder(&self, dir: &Dir, path: &str) -> Result<(), WalkEnd> {
        let failed = |e: io::Error| StoreError::Unclear(failed(&format!("cannot list the folder /{path}"), e));
        let mut keys = Vec::new();
        for entry in dir.entries().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                tracing::warn!(folder = path, name = ?entry.file_name(), "file skipped, its name is not UTF-8");
                continue;
            };
            let mut kind = entry.file_type().map_err(failed)?;
            if !(kind.is_dir() || kind.is_file() || kind.is_symlink()) {
                // Some file systems do not return the type with the name.
                kind = dir.symlink_metadata(&name).map_err(failed)?.file_type();
            }
            // A folder is sorted like its keys, with the slash.
            let slash = if kind.is_dir() { "/" } else { "" };
            if kind.is_dir() || kind.is_file() {
                keys.push(format!("{path}{name}{slash}"));
            }
        }
        keys.sort_unstable();
        for key in keys.into_iter().filter(|key| self.is_in_range(key)) {
            let name = &key[path.len()..];
            match name.strip_suffix('/') {
                Some(name) => self.below(&key, dir.open_dir(name))?,
                None => self.file(&key, dir.symlink_metadata(name))?,
            }
        }
        Ok(())
    }

    /// Whether this key, or any key below this folder, is in the range.
    fn is_in_range(&self, key: &str) -> bool {
        let KeyRange { prefix, after, .. } = self.range;
        let after = after.as_deref().unwrap_or_default();
        if key.ends_with('/') {
            (key.starts_with(prefix.as_str()) || prefix.starts_with(key)) && (key > after || after.starts_with(key))
        } else {
            key.starts_with(prefix.as_str()) && key > after
        }
    }

    fn file(&self, key: &str, found: io::Result<Metadata>) -> Result<(), WalkEnd> {
        let found = match found {
            // Removed since its name was read.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(classify_error)?,
        };
        Ok(self.sink.put(listed(&self.range.bucket, key, &found))?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use futures_util::StreamExt;

    use super::*;

    async fn keys(folder: &Folder, prefix: &str, after: Option<&str>) -> Vec<String> {
        let part = KeyRange { bucket: "b".into(), prefix: prefix.into(), after: after.map(str::to_owned) };
        list(folder.clone(), part).map(|listed| listed.unwrap().image.key).collect().await
    }

    #[tokio::test]
    async fn keys_come_in_the_order_of_their_bytes_from_wherever_one_begins() {
        let root = tempfile::tempdir().unwrap();
        let all = ["a-b", "a.jpg", "a/b/c", "a/b/d", "a/b.jpg", "a/c", "a0", "b/x", "é"];
        let mut sorted = all.map(str::to_owned).to_vec();
        sorted.sort();
        for key in all {
            let path = root.path().join("b").join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, key).unwrap();
        }
        symlink("a/c", root.path().join("b/link")).unwrap();
        symlink("a", root.path().join("b/folder-link")).unwrap();
        let folder = Folder::open(root.path(), vec!["b".into()]).unwrap();
        assert_eq!(keys(&folder, "", None).await, sorted, "links are passed over");
        for (i, after) in sorted.iter().enumerate() {
            assert_eq!(keys(&folder, "", Some(after)).await, sorted[i + 1..], "behind {after}");
        }
        for prefix in ["a", "a/", "a/b", "a/b/", "a/b/c", "b/", "nothing/", "nothing/at/all", "a//b", "./a"] {
            let expected: Vec<_> = sorted.iter().filter(|key| key.starts_with(prefix)).cloned().collect();
            assert_eq!(keys(&folder, prefix, None).await, expected, "{prefix}");
        }
        // What is listed is what is opened.
        let part = KeyRange { bucket: "b".into(), prefix: "a/c".into(), after: None };
        let listed = list(folder.clone(), part).next().await.unwrap().unwrap();
        let opened = super::super::ObjectStore::open(&folder, &listed.image).await.unwrap();
        assert_eq!((opened.etag, Some(opened.length)), (listed.image.etag, listed.bytes));
    }
}
