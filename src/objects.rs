//! Object stores: S3 or a folder. An image reference becomes the object's bytes: from an allowed bucket only, complete,
//! within a size limit and a deadline.
//!
//! Each store maps its own errors to [`StoreError`]. An unclear failure may be the fault of the object or of the store.
//! [`Fetcher`] finds out which by asking the store for something else.

mod buffers;
mod folder;

pub mod options;
mod s3;
mod uploads;

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use time::OffsetDateTime;
use wildmatch::WildMatch;

use crate::config::{Bucket, Config, ConfigError, Objects, StorageConfig};
use crate::error_text::{Described, reason_text};
use crate::job::{ContentDigests, ContentHasher, ImageRef, Lane};
use crate::lanes::{Gate, GateClosed, Permit};
use crate::telemetry::{metrics, traces};
use buffers::{Buffer, BufferPool};
use folder::Folder;
use s3::S3;
pub use uploads::{UploadMemory, UploadShare, UploadSize};

/// A key that no object has. The answer to a request for it shows whether the store works.
const PROBE_KEY: &str = ".pixwarden-probe";
/// Longest wait for the first byte of a response.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);

/// The gates that a download passes.
pub struct DownloadGates {
    /// Downloads at the same time.
    pub downloads: Gate,
    /// Compressed bytes in memory.
    pub bytes: Gate,
}

impl DownloadGates {
    /// Refuses everything that waits now or comes later.
    pub fn close(&self) {
        self.downloads.close();
        self.bytes.close();
    }
}

/// A complete object in memory.
pub struct FetchedObject {
    pub bytes: Bytes,
    pub digests: ContentDigests,
    pub etag: Option<String>,
    pub version_id: Option<String>,
    /// When it was last modified, as the store says.
    pub modified: Option<OffsetDateTime>,
    /// The share of the memory gate that the bytes occupy.
    pub memory: Permit,
}

impl FetchedObject {
    /// The bytes, tied to their permits: both permits are returned when the last reference to the bytes is dropped.
    #[must_use]
    pub fn into_bytes_with(self, permit: Permit) -> Bytes {
        Bytes::from_owner(AdmittedBytes { bytes: self.bytes, _permits: [permit, self.memory] })
    }
}

/// An image that its sender has sent itself, complete in memory.
#[derive(Debug, Clone)]
pub struct Upload {
    /// They hold their share of the memory gate.
    bytes: Bytes,
    pub digests: ContentDigests,
}

impl Upload {
    #[must_use]
    pub fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// An image that was decoded from this upload. It keeps the memory that was reserved for both.
    #[must_use]
    pub fn decoded(self, image: Vec<u8>) -> Self {
        let digests = ContentDigests::of(&image);
        Self { bytes: Bytes::from_owner(DecodedBytes { image, _sent: self.bytes }), digests }
    }

    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The bytes, tied to one more permit.
    #[must_use]
    pub fn bytes_with(&self, permit: Permit) -> Bytes {
        Bytes::from_owner(AdmittedBytes { bytes: self.bytes.clone(), _permits: [permit] })
    }
}

struct DecodedBytes {
    image: Vec<u8>,
    _sent: Bytes,
}

impl AsRef<[u8]> for DecodedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.image
    }
}

/// Why an upload was not received.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("the image has more than {0} bytes")]
    TooLarge(u64),
    #[error("the upload ended early: {0}")]
    CutShort(#[source] Box<dyn Error + Send + Sync>),
    #[error("no memory for the image: {0}")]
    NoMemory(#[source] io::Error),
    #[error(transparent)]
    GateClosed(#[from] GateClosed),
}

/// The bytes of an upload, with the memory that they occupy.
struct UploadedBytes {
    buffer: Buffer,
    _share: UploadShare,
}

impl AsRef<[u8]> for UploadedBytes {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref()
    }
}

struct AdmittedBytes<const N: usize> {
    bytes: Bytes,
    _permits: [Permit; N],
}

impl<const N: usize> AsRef<[u8]> for AdmittedBytes<N> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why an object could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no such object or version, or it has changed since the job was made.
    #[error("{0}")]
    Missing(#[source] Described),
    /// The object is larger than the limit. A derived job id needs its `ETag`.
    #[error("the object has {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: u64, limit: u64, etag: Option<String> },
    /// The object is stored in a way that Pixwarden cannot read.
    #[error("{0}")]
    Unsupported(#[source] Described),
    /// Access to this object is denied. One refusal may be the object's fault; many in a row are the bucket's.
    #[error("{0}")]
    Denied(#[source] Described),
    /// This object failed while the store works. Another attempt may succeed.
    #[error("{error}")]
    Failed {
        #[source]
        error: TransferError,
        etag: Option<String>,
    },
    /// The bucket is unusable, as the object or the probe after it showed. The job is not at fault.
    #[error("{}", with_object(object.as_ref(), bucket))]
    BucketDown {
        object: Option<TransferError>,
        #[source]
        bucket: Described,
    },
    /// The store is unreachable or unusable, as the probe after the object showed. The job is not at fault.
    #[error("{}", with_object(Some(object), store))]
    StoreDown {
        object: TransferError,
        #[source]
        store: StoreError,
    },
    /// The process is shutting down.
    #[error(transparent)]
    GateClosed(#[from] GateClosed),
}

/// What an object failed with, then what the probe of its store failed with. Both fail alike where the store is down.
fn with_object(object: Option<&TransferError>, probe: &(dyn Error + 'static)) -> String {
    let probe = reason_text(probe);
    match object.map(|object| reason_text(object)).filter(|object| *object != probe) {
        Some(object) => format!("{object}; {probe}"),
        None => probe,
    }
}

/// Why an object did not arrive. The fault is the object's or the store's.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The store's own error.
    #[error(transparent)]
    Store(StoreError),
    /// The deadline has passed.
    #[error("the object did not arrive within {deadline_ms} ms")]
    Late { deadline_ms: u64 },
    /// This machine has no memory for the object.
    #[error("no memory for an object of {bytes} bytes: {error}")]
    NoMemory {
        bytes: u64,
        #[source]
        error: io::Error,
    },
    /// More bytes arrived than the store announced.
    #[error("the object is longer than its announced {bytes} bytes")]
    TooLong { bytes: u64 },
    /// Fewer bytes arrived than the store announced.
    #[error("the object was cut short: {arrived} of {bytes} bytes arrived")]
    CutShort { arrived: u64, bytes: u64 },
}

/// Why a store did not answer a request with an object.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object or version, or it has changed since the job was made.
    #[error("{0}")]
    Missing(#[source] Described),
    /// Access to this object is denied.
    #[error("{0}")]
    Denied(#[source] Described),
    /// The object is stored in a way that Pixwarden cannot read.
    #[error("{0}")]
    Unsupported(#[source] Described),
    /// The bucket cannot be used as configured; the store can.
    #[error("{0}")]
    BucketDown(#[source] Described),
    /// The store cannot be used as configured.
    #[error("{0}")]
    Down(#[source] Described),
    /// The fault is the object's or the store's. [`ObjectStore::probe`] finds out which.
    #[error("{0}")]
    Unclear(#[source] Described),
}

/// An object whose first bytes have arrived.
pub struct OpenedObject {
    /// As announced by the store, to be verified.
    pub length: u64,
    /// Without quotes.
    pub etag: Option<String>,
    /// Set where the bucket keeps versions.
    pub version_id: Option<String>,
    pub modified: Option<OffsetDateTime>,
    pub body: BoxStream<'static, Result<Bytes, StoreError>>,
}

/// An object as a store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Without a version. The `ETag` is absent where an inventory or manifest does not have it.
    pub image: ImageRef,
    pub bytes: Option<u64>,
    pub modified: Option<OffsetDateTime>,
}

/// A range of a bucket's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    pub bucket: String,
    pub prefix: String,
    /// Only keys behind this one, in the order of their bytes.
    pub after: Option<String>,
}

/// A place that holds objects: S3, or a folder.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// Requests an object, and returns once its first bytes have arrived.
    async fn open(&self, image: &ImageRef) -> Result<OpenedObject, StoreError>;

    /// Lists objects in the order of their keys' bytes. The store reads a bounded number of objects ahead.
    fn list(&self, range: KeyRange) -> BoxStream<'static, Result<ListedObject, StoreError>>;

    /// Reads an object's properties without its bytes.
    async fn head(&self, image: &ImageRef) -> Result<ListedObject, StoreError>;

    /// Stores an object, in place of one that is there.
    async fn put(&self, image: &ImageRef, bytes: Bytes) -> Result<(), StoreError>;

    /// Checks whether the store answers requests for a bucket. Errors name the bucket.
    async fn probe(&self, bucket: &str) -> Result<(), StoreError>;

    /// The store that keeps a bucket, by its address. Buckets of one store work or fail together.
    fn address(&self, bucket: &str) -> &str;
}

/// Fetches objects from the configured store, within the configured limits.
pub struct Fetcher {
    store: Box<dyn ObjectStore>,
    allowed: Vec<WildMatch>,
    limits: StorageConfig,
    buffers: BufferPool,
    /// For each store the bucket that the last object was fetched from.
    last_good_buckets: Mutex<HashMap<String, String>>,
}

impl Fetcher {
    /// Opens the configured store.
    ///
    /// # Errors
    /// When no bucket is allowed, or the URL names a store that is not supported.
    pub async fn open(config: &Config) -> Result<Self, ConfigError> {
        if config.buckets.is_empty() {
            return Err(ConfigError::Invalid {
                option: "buckets".into(),
                what: "no bucket is allowed, so every job would be rejected\n  hint: give --bucket NAME, set PIXWARDEN_BUCKETS, or list `buckets` in the configuration file; \"*\" allows all".into(),
            });
        }
        // A bucket allowed by its full name must exist: its absence is the operator's fault. Any other name comes from a job.
        let named: Vec<String> =
            config.buckets.iter().map(Bucket::pattern).filter(|name| !name.contains('*')).map(str::to_owned).collect();
        Ok(Self::on(Self::store(config, named).await?, config))
    }

    /// As [`Fetcher::open`]; without an allowed bucket every reference is rejected.
    ///
    /// # Errors
    /// When the URL names a store that is not supported.
    pub async fn open_without_buckets(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self::on(Self::store(config, Vec::new()).await?, config))
    }

    async fn store(config: &Config, mut named: Vec<String>) -> Result<Box<dyn ObjectStore>, ConfigError> {
        named.extend(config.http.kept_at("0").map(|kept| kept.bucket));
        Ok(match config.objects()? {
            Objects::S3 => Box::new(S3::new(config, named).await),
            Objects::Folder(root) => Box::new(Folder::open(&root, named)?),
        })
    }

    /// Fetches from a store that is already open.
    #[must_use]
    pub fn on(store: Box<dyn ObjectStore>, config: &Config) -> Self {
        let allowed = config.buckets.iter().map(|bucket| WildMatch::new(bucket.pattern())).collect();
        Self {
            store,
            allowed,
            limits: config.storage.clone(),
            buffers: BufferPool::default(),
            last_good_buckets: Mutex::default(),
        }
    }

    /// Whether a job may name this bucket.
    #[must_use]
    pub fn allows(&self, bucket: &str) -> bool {
        is_bucket(bucket) && self.allowed.iter().any(|pattern| pattern.matches(bucket))
    }

    /// The buckets that are allowed by name.
    pub fn named_buckets(&self) -> impl Iterator<Item = String> {
        self.allowed.iter().map(ToString::to_string).filter(|pattern| !pattern.contains('*'))
    }

    /// The store that keeps a bucket, by its address.
    #[must_use]
    pub fn address(&self, bucket: &str) -> &str {
        self.store.address(bucket)
    }

    /// The addresses of all stores that jobs may name buckets of.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<String> {
        self.allowed.iter().map(|pattern| self.store.address(&pattern.to_string()).to_owned()).collect()
    }

    /// Checks whether the store of a bucket works: with this bucket if it is allowed by its full name, otherwise with the
    /// bucket of the last good fetch from this store. A bucket name invented by a job proves nothing about the store.
    ///
    /// # Errors
    /// Why the store does not work.
    pub async fn probe(&self, bucket: &str) -> Result<(), StoreError> {
        let named = self.named_buckets().any(|name| name == bucket);
        let last_good = self.last_good_buckets().get(self.store.address(bucket)).cloned();
        let probed = if named { bucket } else { last_good.as_deref().unwrap_or(bucket) };
        self.store.probe(probed).await
    }

    fn last_good_buckets(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.last_good_buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists objects, as [`ObjectStore::list`] does.
    #[must_use]
    pub fn list(&self, range: KeyRange) -> BoxStream<'static, Result<ListedObject, StoreError>> {
        self.store.list(range)
    }

    /// Reads an object's properties, as [`ObjectStore::head`] does.
    ///
    /// # Errors
    /// As the store classifies them.
    pub async fn head(&self, image: &ImageRef) -> Result<ListedObject, StoreError> {
        check_bucket(image)?;
        self.store.head(image).await
    }

    /// Opens an object that is not an image and has no size limit, such as an inventory.
    ///
    /// # Errors
    /// As the store classifies them.
    pub async fn open_object(&self, image: &ImageRef) -> Result<OpenedObject, StoreError> {
        check_bucket(image)?;
        self.store.open(image).await
    }

    /// Fetches a complete object.
    ///
    /// After an unclear failure the store is probed. If it works, the object is tried once more, since the store may have
    /// recovered just now; a second failure is the object's own.
    ///
    /// # Errors
    /// Classified by what the failure means for the job.
    pub async fn fetch(
        &self,
        image: &ImageRef,
        lane: Lane,
        gates: &DownloadGates,
    ) -> Result<FetchedObject, FetchError> {
        let _download = gates.downloads.enter(lane, 1).await?;
        let mut is_second_try = false;
        loop {
            let (object, etag) = match self.try_fetch(image, lane, gates).await {
                Ok(object) => {
                    metrics::object_fetched(object.bytes.len() as u64);
                    traces::record_number("pixwarden.image.bytes", object.bytes.len() as u64);
                    let address = self.store.address(&image.bucket).to_owned();
                    self.last_good_buckets().insert(address, image.bucket.clone());
                    return Ok(object);
                }
                Err(TryError::Clear(error)) => return Err(error),
                Err(TryError::Unclear { error, etag }) => (error, etag),
            };
            match self.probe(&image.bucket).await {
                Ok(()) => {}
                Err(StoreError::BucketDown(bucket)) => {
                    return Err(FetchError::BucketDown { object: Some(object), bucket });
                }
                Err(store) => return Err(FetchError::StoreDown { object, store }),
            }
            if is_second_try {
                return Err(FetchError::Failed { error: object, etag });
            }
            is_second_try = true;
        }
    }

    /// Receives an image from its sender, into bounded memory. Its share of the memory is taken until the upload is dropped.
    ///
    /// # Errors
    /// When it is larger than `size`, or ends with an error.
    pub async fn receive<E: Into<Box<dyn Error + Send + Sync>>>(
        &self,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin + Send,
        size: UploadSize,
        memory: &UploadMemory,
    ) -> Result<Upload, UploadError> {
        let mut share = memory.begin(size).await?;
        // A part of the buffer that the image does not reach takes no memory.
        let mut buffer = self.buffers.take(size.most()).map_err(UploadError::NoMemory)?;
        let mut hasher = ContentHasher::default();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| UploadError::CutShort(error.into()))?;
            let arrived = (buffer.as_ref().len() + chunk.len()) as u64;
            if arrived > size.most() {
                return Err(UploadError::TooLarge(size.most()));
            }
            memory.grow(&mut share, arrived).await?;
            if !buffer.push(&chunk) {
                return Err(UploadError::TooLarge(size.most()));
            }
            hasher.update(&chunk);
        }
        let bytes = UploadedBytes { buffer, _share: share };
        Ok(Upload { bytes: Bytes::from_owner(bytes), digests: hasher.finish() })
    }

    /// Stores an image that was sent itself. The place is the operator's, so that no list of buckets applies.
    ///
    /// # Errors
    /// As the store classifies them, and when the deadline for objects has passed.
    pub async fn keep(&self, image: &ImageRef, upload: &Upload) -> Result<(), StoreError> {
        let deadline = Duration::from_millis(self.limits.deadline_ms);
        let stored = tokio::time::timeout(deadline, self.store.put(image, upload.bytes.clone())).await;
        stored.unwrap_or_else(|_| {
            Err(StoreError::Unclear(format!("the store did not take it within {} ms", deadline.as_millis()).into()))
        })
    }

    /// Checks whether the store answers requests for the bucket in which uploads are kept, which no list names.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn probe_kept(&self, bucket: &str) -> Result<(), StoreError> {
        self.store.probe(bucket).await
    }

    /// The largest object that is accepted.
    #[must_use]
    pub const fn max_object_bytes(&self) -> u64 {
        self.limits.max_object_bytes
    }

    /// One try under one deadline.
    async fn try_fetch(&self, image: &ImageRef, lane: Lane, gates: &DownloadGates) -> Result<FetchedObject, TryError> {
        let deadline_ms = self.limits.deadline_ms;
        let deadline = Duration::from_millis(deadline_ms);
        let late = || TransferError::Late { deadline_ms };
        let began = Instant::now();
        let opened = tokio::time::timeout(deadline, self.store.open(image)).await;
        let object = opened.map_err(|_| TryError::Unclear { error: late(), etag: None })??;
        let left = deadline.saturating_sub(began.elapsed());
        let limit = self.limits.max_object_bytes;
        if object.length > limit {
            return Err(FetchError::TooLarge { bytes: object.length, limit, etag: object.etag }.into());
        }
        // The time spent waiting for memory does not count against the store.
        let memory = gates.bytes.enter(lane, object.length).await.map_err(FetchError::from)?;
        let OpenedObject { length, etag, version_id, modified, body } = object;
        let body = read_body(body, length, &self.buffers);
        let arrived = tokio::time::timeout(left, body).await.unwrap_or_else(|_| Err(late()));
        let unclear = |error| TryError::Unclear { error, etag: etag.clone() };
        let (bytes, digests) = arrived.map_err(unclear)?;
        Ok(FetchedObject { bytes, digests, etag, version_id, modified, memory })
    }
}

/// Why one try failed.
enum TryError {
    /// It is known whose fault it is.
    Clear(FetchError),
    /// The fault is the object's or the store's. The `ETag` is known if the store announced the object.
    Unclear { error: TransferError, etag: Option<String> },
}

impl From<FetchError> for TryError {
    fn from(error: FetchError) -> Self {
        Self::Clear(error)
    }
}

impl From<StoreError> for TryError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing(error) => Self::Clear(FetchError::Missing(error)),
            StoreError::Denied(error) => Self::Clear(FetchError::Denied(error)),
            StoreError::Unsupported(error) => Self::Clear(FetchError::Unsupported(error)),
            StoreError::BucketDown(bucket) => Self::Clear(FetchError::BucketDown { object: None, bucket }),
            // The store says that of itself in response to one key, and keys come from senders: the probe decides.
            error @ (StoreError::Down(_) | StoreError::Unclear(_)) => {
                Self::Unclear { error: TransferError::Store(error), etag: None }
            }
        }
    }
}

/// A list of images may name anything as a bucket.
fn check_bucket(image: &ImageRef) -> Result<(), StoreError> {
    if is_bucket(&image.bucket) {
        return Ok(());
    }
    Err(StoreError::Missing(format!("\"{}\" is no name of a bucket", image.bucket).into()))
}

/// Whether a bucket can have this name. Other characters are refused even where every bucket is allowed: an S3 client
/// could take such a name for another kind of address.
#[must_use]
pub fn is_bucket(name: &str) -> bool {
    !["", ".", ".."].contains(&name) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Reads a body up to its announced length and hashes it on the way. The length is checked because a body cut short has
/// been seen to end without an error.
async fn read_body(
    mut body: BoxStream<'static, Result<Bytes, StoreError>>,
    length: u64,
    buffers: &BufferPool,
) -> Result<(Bytes, ContentDigests), TransferError> {
    let no_memory = |error| TransferError::NoMemory { bytes: length, error };
    let mut buffer = buffers.take(length).map_err(no_memory)?;
    let mut hasher = ContentHasher::default();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(TransferError::Store)?;
        if !buffer.push(&chunk) {
            return Err(TransferError::TooLong { bytes: length });
        }
        hasher.update(&chunk);
    }
    let arrived = buffer.as_ref().len() as u64;
    if arrived != length {
        return Err(TransferError::CutShort { arrived, bytes: length });
    }
    Ok((Bytes::from_owner(buffer), hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_text;

    #[test]
    fn a_name_that_leads_out_of_a_folder_is_no_bucket() {
        for name in ["uploads", "a.b", "..a", "A_b-1"] {
            assert!(is_bucket(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "ü"] {
            assert!(!is_bucket(name), "{name}");
        }
    }

    fn body(chunks: &[&'static [u8]]) -> BoxStream<'static, Result<Bytes, StoreError>> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk))).collect();
        futures_util::stream::iter(chunks).boxed()
    }

    #[tokio::test]
    async fn a_body_counts_only_when_it_is_as_long_as_announced() {
        let buffers = BufferPool::default();
        let (bytes, digests) = read_body(body(&[b"ab", b"c"]), 3, &buffers).await.unwrap();
        assert_eq!(&bytes[..], b"abc");
        assert_eq!(digests, ContentDigests::of(b"abc"));
        let cut = read_body(body(&[b"ab"]), 3, &buffers).await.unwrap_err();
        assert!(matches!(cut, TransferError::CutShort { arrived: 2, bytes: 3 }), "{cut}");
        let long = read_body(body(&[b"abcd"]), 3, &buffers).await.unwrap_err();
        assert!(matches!(long, TransferError::TooLong { bytes: 3 }), "{long}");
        let huge = read_body(body(&[b"ab"]), u64::MAX, &buffers).await.unwrap_err();
        assert!(matches!(huge, TransferError::NoMemory { .. }), "{huge}");
    }

    #[test]
    fn a_failed_fetch_names_the_object_and_the_store_once_and_keeps_both() {
        let refused =
            || Described::new("cannot reach the store: refused\n  hint: start it", io::Error::other("refused"));
        let alike = FetchError::StoreDown {
            object: TransferError::Store(StoreError::Unclear(refused())),
            store: StoreError::Unclear(refused()),
        };
        assert_eq!(reason_text(&alike), "cannot reach the store: refused");
        assert_eq!(error_text(&alike), "cannot reach the store: refused\n  hint: start it");
        let object = TransferError::CutShort { arrived: 2, bytes: 3 };
        let error = FetchError::BucketDown { object: Some(object), bucket: refused() };
        let text = "the object was cut short: 2 of 3 bytes arrived; cannot reach the store: refused";
        assert_eq!(reason_text(&error), text);
        let innermost = error.source().and_then(Error::source).unwrap();
        assert!(innermost.is::<io::Error>(), "{innermost}");
    }
}
