//! A folder as an object store: its subfolders are the buckets, and the path of a file below a bucket is its key.
//!
//! Keys are untrusted. A key is resolved beneath its bucket's folder only: `cap_std` refuses every path that leads out of it,
//! by `..`, an absolute path or a symbolic link, even if a link is created while the path is resolved.

mod list;

use std::io::{self, ErrorKind, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use bytes::Bytes;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, Metadata, OpenOptions, OpenOptionsExt};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use uuid::Uuid;

use super::{FIRST_BYTE_TIMEOUT, KeyRange, ListedObject, ObjectStore, OpenedObject, StoreError};
use crate::config::ConfigError;
use crate::error_text::{Described, io_text};
use crate::job::{ImageRef, NULL_VERSION};

/// Bytes per read.
const CHUNK_BYTES: usize = 256 << 10;

/// `O_NONBLOCK`: opening a pipe without a writer does not block.
const NON_BLOCKING: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

/// The folder behind `file:///folder`. A cheap handle: clones share the folder.
#[derive(Clone)]
pub(super) struct Folder {
    root: Arc<Dir>,
    /// Buckets allowed by their full name.
    named: Arc<[String]>,
}

impl Folder {
    pub(super) fn open(root: &Path, named: Vec<String>) -> Result<Self, ConfigError> {
        match Dir::open_ambient_dir(root, ambient_authority()) {
            Ok(root) => Ok(Self { root: Arc::new(root), named: named.into() }),
            Err(error) => Err(ConfigError::Refused {
                option: "objects".into(),
                what: format!(
                    "cannot open the folder {}\n  hint: objects = \"file:///folder\" needs a folder whose subfolders are the buckets",
                    root.display()
                ),
                error,
            }),
        }
    }

    /// The folder of a bucket. A bucket that the configuration names must exist: its absence is the operator's fault. Any
    /// other name comes from a job.
    fn bucket(&self, name: &str) -> Result<Dir, StoreError> {
        let missing = format!("there is no bucket \"{name}\"");
        if !is_plain(name) || name.contains('/') {
            return Err(StoreError::Missing(missing.into()));
        }
        self.root.open_dir(name).map_err(|e| {
            let what = format!("cannot open the bucket \"{name}\"");
            match e.kind() {
                _ if self.named.iter().any(|named| named == name) => StoreError::BucketDown(failed(&what, e)),
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename => {
                    StoreError::Missing(Described::new(missing, e))
                }
                // `cap_std` reports a link that leads out in the same way.
                ErrorKind::PermissionDenied => StoreError::Denied(failed(&what, e)),
                _ => StoreError::Unclear(failed(&what, e)),
            }
        })
    }

    /// Runs `act` on a thread for blocking calls, because a file system can be as slow as a network.
    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let folder = self.clone();
        let done = tokio::task::spawn_blocking(move || act(&folder)).await;
        done.unwrap_or_else(|e| Err(StoreError::Unclear(Described::new("reading the folder panicked", e))))
    }
}

#[async_trait]
impl ObjectStore for Folder {
    async fn open(&self, image: &ImageRef) -> Result<OpenedObject, StoreError> {
        let image = image.clone();
        self.blocking(move |folder| open(&folder.bucket(&image.bucket)?, &image)).await
    }

    fn list(&self, range: KeyRange) -> BoxStream<'static, Result<ListedObject, StoreError>> {
        list::list(self.clone(), range)
    }

    async fn head(&self, image: &ImageRef) -> Result<ListedObject, StoreError> {
        let image = image.clone();
        self.blocking(move |folder| {
            let (_, found) = open_file(&folder.bucket(&image.bucket)?, &image.key)?;
            listed(&image.bucket, &image.key, &found)
        })
        .await
    }

    async fn put(&self, image: &ImageRef, bytes: Bytes) -> Result<(), StoreError> {
        let image = image.clone();
        self.blocking(move |folder| put(&folder.bucket(&image.bucket)?, &image.key, &bytes)).await
    }

    async fn probe(&self, bucket: &str) -> Result<(), StoreError> {
        let name = bucket.to_owned();
        let opened = self.blocking(move |folder| folder.bucket(&name).map(drop));
        match tokio::time::timeout(FIRST_BYTE_TIMEOUT, opened).await.unwrap_or_else(|_| {
            let timeout_s = FIRST_BYTE_TIMEOUT.as_secs();
            let what = format!("bucket \"{bucket}\": the folder did not respond within {timeout_s} s");
            Err(StoreError::Unclear(what.into()))
        }) {
            Ok(()) | Err(StoreError::Missing(_) | StoreError::Denied(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn address(&self, _bucket: &str) -> &str {
        "the folder"
    }
}

fn open(bucket: &Dir, image: &ImageRef) -> Result<OpenedObject, StoreError> {
    // Stores say "null" for an object without a version.
    if image.version_id.as_ref().is_some_and(|version| version != NULL_VERSION) {
        return Err(StoreError::Missing("a folder store has no versions".into()));
    }
    let (file, found) = open_file(bucket, &image.key)?;
    let etag = etag(&found)?;
    if image.etag.as_ref().is_some_and(|wanted| *wanted != etag) {
        return Err(StoreError::Missing("the object has changed since the job was made: its ETag differs".into()));
    }
    let modified = found.modified().ok().map(|time| time.into_std().into());
    Ok(OpenedObject { length: found.len(), etag: Some(etag), version_id: None, modified, body: body(file) })
}

/// Writes a file under another name first, so that a reader finds all of it or nothing.
fn put(bucket: &Dir, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
    if !is_plain(key) {
        return Err(StoreError::Missing("the key is not a plain path below the bucket".into()));
    }
    let unclear = |error: io::Error| StoreError::Unclear(failed("cannot write the file", error));
    if let Some(parent) = Path::new(key).parent().filter(|parent| !parent.as_os_str().is_empty()) {
        bucket.create_dir_all(parent).map_err(unclear)?;
    }
    let unfinished = format!("{key}.{}", Uuid::new_v4());
    let written = bucket.write(&unfinished, bytes).and_then(|()| bucket.rename(&unfinished, bucket, key));
    if written.is_err() {
        // The first error counts.
        drop(bucket.remove_file(&unfinished));
    }
    written.map_err(unclear)
}

/// Opens the file of a key.
fn open_file(bucket: &Dir, key: &str) -> Result<(File, Metadata), StoreError> {
    if !is_plain(key) {
        return Err(StoreError::Missing(
            "there is no such object: its key is not a plain path below the bucket".into(),
        ));
    }
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(NON_BLOCKING);
    let file = bucket.open_with(key, &options).map_err(classify_error)?;
    let found = file.metadata().map_err(classify_error)?;
    if !found.is_file() {
        return Err(StoreError::Missing("there is no such object: the path is not a file".into()));
    }
    Ok((file, found))
}

/// An `ETag` from the length and the time of modification.
fn etag(found: &Metadata) -> Result<String, StoreError> {
    let modified = found.modified().map_err(classify_error)?.into_std();
    let nanoseconds = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    Ok(format!("{:x}-{nanoseconds:x}", found.len()))
}

fn listed(bucket: &str, key: &str, found: &Metadata) -> Result<ListedObject, StoreError> {
    let etag = Some(etag(found)?);
    Ok(ListedObject {
        image: ImageRef { bucket: bucket.to_owned(), key: key.to_owned(), version_id: None, etag },
        bytes: Some(found.len()),
        modified: found.modified().ok().map(|time| time.into_std().into()),
    })
}

/// Whether a path consists of names with single slashes between them. With any other form two keys could name one file, and
/// an image would have several verdicts.
fn is_plain(path: &str) -> bool {
    let parts = Path::new(path).components();
    parts.clone().all(|part| matches!(part, Component::Normal(_)))
        && !path.is_empty()
        && parts.collect::<PathBuf>().as_os_str() == path
}

/// What was tried, and why the system refused it.
fn failed(what: &str, error: io::Error) -> Described {
    Described::new(format!("{what}: {}", io_text(&error)), error)
}

fn classify_error(error: io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename | ErrorKind::InvalidInput => {
            StoreError::Missing(Described::new("there is no such object", error))
        }
        // `cap_std` reports a path that leads out in the same way.
        ErrorKind::PermissionDenied => StoreError::Denied(failed("access to the object is denied", error)),
        _ => StoreError::Unclear(failed("cannot read the file", error)),
    }
}

/// A file's bytes, read on a thread for blocking calls.
fn body(file: File) -> BoxStream<'static, Result<Bytes, StoreError>> {
    stream::try_unfold(file, |mut file| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            let length = file.read(&mut chunk)?;
            chunk.truncate(length);
            Ok::<_, io::Error>((Bytes::from(chunk), file))
        });
        match read.await {
            Ok(Ok((chunk, _))) if chunk.is_empty() => Ok(None),
            Ok(Ok((chunk, file))) => Ok(Some((chunk, file))),
            Ok(Err(e)) => Err(StoreError::Unclear(failed("cannot read the file", e))),
            Err(e) => Err(StoreError::Unclear(Described::new("reading the file panicked", e))),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Two buckets, with links and pipes that an attacker may have created.
    fn folder() -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("store/uploads/sub")).unwrap();
        fs::create_dir_all(at("store/private")).unwrap();
        for path in
            ["outside", "store/in-no-bucket", "store/private/secret", "store/uploads/a b%20.jpg", "store/uploads/sub/k"]
        {
            fs::write(at(path), path).unwrap();
        }
        symlink(at("outside"), at("store/uploads/absolute")).unwrap();
        symlink("../private/secret", at("store/uploads/sideways")).unwrap();
        symlink("../..", at("store/uploads/up")).unwrap();
        symlink("sub/k", at("store/uploads/within")).unwrap();
        symlink(at(""), at("store/linked")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(at("store/uploads/pipe")).status().unwrap();
        assert!(pipe.success());
        let folder = Folder::open(&at("store"), vec!["uploads".into(), "gone".into()]).unwrap();
        (root, folder)
    }

    fn image(bucket: &str, key: &str) -> ImageRef {
        ImageRef { bucket: bucket.into(), key: key.into(), version_id: None, etag: None }
    }

    async fn read(folder: &Folder, image: &ImageRef) -> Result<String, StoreError> {
        let object = folder.open(image).await?;
        let chunks: Vec<_> = object.body.collect().await;
        let bytes: Vec<u8> = chunks.into_iter().flat_map(Result::unwrap).collect();
        assert_eq!(bytes.len() as u64, object.length);
        Ok(String::from_utf8(bytes).unwrap())
    }

    #[tokio::test]
    async fn a_key_is_a_path_below_its_bucket() {
        let (_root, folder) = folder();
        assert_eq!(read(&folder, &image("uploads", "sub/k")).await.unwrap(), "store/uploads/sub/k");
        assert_eq!(read(&folder, &image("uploads", "a b%20.jpg")).await.unwrap(), "store/uploads/a b%20.jpg");
        assert_eq!(read(&folder, &image("uploads", "within")).await.unwrap(), "store/uploads/sub/k");
    }

    #[tokio::test]
    async fn nothing_outside_of_the_bucket_is_ever_read() {
        let (root, folder) = folder();
        let absolute = root.path().join("outside").display().to_string();
        for key in [
            "../private/secret",
            "sub/../../private/secret",
            "../../outside",
            "absolute",
            "sideways",
            "up/outside",
            "/etc/passwd",
            absolute.as_str(),
        ] {
            let refused = read(&folder, &image("uploads", key)).await;
            assert!(matches!(refused, Err(StoreError::Missing(_) | StoreError::Denied(_))), "{key}: {refused:?}");
        }
        for (bucket, key) in [("..", "outside"), (".", "in-no-bucket"), (".", "uploads/sub/k"), ("/", "etc/passwd")] {
            let refused = read(&folder, &image(bucket, key)).await;
            assert!(matches!(refused, Err(StoreError::Missing(_))), "{bucket} {key}: {refused:?}");
        }
        let linked = read(&folder, &image("linked", "outside")).await;
        assert!(matches!(linked, Err(StoreError::Denied(_))), "{linked:?}");
    }

    #[tokio::test]
    async fn a_file_has_one_key_only() {
        let (_root, folder) = folder();
        for key in ["sub/./k", "sub//k", "./sub/k", "sub/k/", "sub/../sub/k", "sub", "", "a\0b", "pipe", "nothing"] {
            let missing = read(&folder, &image("uploads", key)).await;
            assert!(matches!(missing, Err(StoreError::Missing(_))), "{key:?}: {missing:?}");
        }
    }

    #[tokio::test]
    async fn a_changed_file_is_missing_for_its_job() {
        let (root, folder) = folder();
        let etag = folder.open(&image("uploads", "sub/k")).await.unwrap().etag;
        let meant = ImageRef { etag, ..image("uploads", "sub/k") };
        assert!(folder.open(&meant).await.is_ok());
        fs::write(root.path().join("store/uploads/sub/k"), "longer than before, and so another").unwrap();
        assert!(
            matches!(folder.open(&meant).await, Err(StoreError::Missing(why)) if why.to_string().contains("has changed"))
        );
        let version = ImageRef { version_id: Some("1".into()), ..image("uploads", "sub/k") };
        assert!(matches!(folder.open(&version).await, Err(StoreError::Missing(_))));
    }

    #[tokio::test]
    async fn a_missing_bucket_is_the_operators_fault_if_the_configuration_names_it() {
        let (_root, folder) = folder();
        assert!(matches!(folder.open(&image("gone", "k")).await, Err(StoreError::BucketDown(_))));
        for made_up in ["made-up", &"long".repeat(100), "in-no-bucket"] {
            assert!(matches!(folder.open(&image(made_up, "k")).await, Err(StoreError::Missing(_))), "{made_up}");
        }
        assert!(folder.probe("uploads").await.is_ok());
        assert!(folder.probe("gone").await.unwrap_err().to_string().contains("\"gone\""));
    }
}
