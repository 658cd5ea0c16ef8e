//! An image's reference → its bytes: from an allowed bucket only, within a size and a deadline, whole.
//!
//! The stores themselves are in `blob/`: each sorts what it hears into what that means for the job. Whether an unclear
//! failure is the object's or the store's is told here, by asking the store for something else.

mod folder;
pub mod options;
mod s3;
mod spare;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use wildmatch::WildMatch;

use super::admit::{Closed, Fetching, Permit};
use crate::config::{Bucket, Config, ConfigError, Objects, StorageConfig};
use crate::job::{ImageRef, Lane};
use crate::telemetry::{metrics, traces};
use folder::Folder;
use s3::S3;
use spare::Spare;

/// A key that nobody has: asking for it shows whether the store answers at all.
const PROBE_KEY: &str = ".pixwarden-probe";
/// Longest wait for the first byte of an answer.
const FIRST_BYTE: Duration = Duration::from_secs(10);

/// An object, whole.
pub struct Blob {
    /// Its bytes.
    pub bytes: Bytes,
    /// Of all of them.
    pub sha256: [u8; 32],
    /// As fetched.
    pub etag: Option<String>,
    /// As fetched.
    pub version_id: Option<String>,
    /// The memory it was admitted with.
    pub memory: Permit,
}

impl Blob {
    /// The bytes. They give its place among the objects, and its memory, back when the last of them is dropped.
    #[must_use]
    pub fn in_place(self, place: Permit) -> Bytes {
        Bytes::from_owner(InPlace { bytes: self.bytes, _permits: [place, self.memory] })
    }
}

struct InPlace {
    bytes: Bytes,
    _permits: [Permit; 2],
}

impl AsRef<[u8]> for InPlace {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why there is no blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No such object or version, or it has changed since.
    #[error("{0}")]
    Missing(String),
    /// Too large, and its `ETag`, which a derived job id needs.
    #[error("{0}")]
    TooLarge(String, Option<String>),
    /// This object failed, and others do not: worth another attempt.
    #[error("{0}")]
    Failed(String),
    /// The store cannot be reached or used: nobody's fault but the store's.
    #[error("{0}")]
    Down(String),
    /// The worker drains.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// What a store says to a request.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// As [`FetchError::Missing`].
    #[error("{0}")]
    Missing(String),
    /// Access to this object is denied.
    #[error("{0}")]
    Denied(String),
    /// The store cannot be used as configured.
    #[error("{0}")]
    Down(String),
    /// The object's fault or the store's; `Store::probe` tells.
    #[error("{0}")]
    Unclear(String),
}

/// An object that has begun to arrive.
pub struct Object {
    /// As announced, to be verified.
    pub length: u64,
    /// Without quotes.
    pub etag: Option<String>,
    /// Where the bucket keeps versions.
    pub version_id: Option<String>,
    /// The rest.
    pub body: BoxStream<'static, Result<Bytes, String>>,
}

/// An object as a store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Without a version; with its `ETag`, unless a list of somebody's does not say it.
    pub image: ImageRef,
    /// Its length.
    pub bytes: Option<u64>,
    /// When it was written last.
    pub modified: Option<OffsetDateTime>,
}

/// Part of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The bucket.
    pub bucket: String,
    /// What the keys begin with.
    pub prefix: String,
    /// Only keys behind this one, in the order of their bytes.
    pub after: Option<String>,
}

/// Where objects are: S3, or a folder.
#[async_trait]
pub trait Store: Send + Sync {
    /// Asks for an object, and returns once it has begun to arrive.
    async fn open(&self, image: &ImageRef) -> Result<Object, StoreError>;

    /// Lists objects in the order of their keys' bytes, a bounded number ahead of whoever reads.
    fn list(&self, part: Part) -> BoxStream<'static, Result<Listed, StoreError>>;

    /// Asks what an object is, without its bytes.
    async fn head(&self, image: &ImageRef) -> Result<Listed, StoreError>;

    /// Asks whether the store answers for a bucket.
    async fn probe(&self, bucket: &str) -> Result<(), String>;
}

/// Fetches objects within bounds.
pub struct Fetcher {
    store: Box<dyn Store>,
    allowed: Vec<WildMatch>,
    limits: StorageConfig,
    spare: Spare,
    /// The bucket that answered last.
    answered: Mutex<Option<String>>,
}

impl Fetcher {
    /// Opens the configured store.
    ///
    /// # Errors
    /// When no bucket is allowed, or the URL names no store that is supported.
    pub async fn open(config: &Config) -> Result<Self, ConfigError> {
        if config.buckets.is_empty() {
            return Err(ConfigError::Invalid {
                option: "buckets".into(),
                what: "no bucket is allowed, so every job would be rejected\n  hint: give --bucket NAME, set PIXWARDEN_BUCKETS, or list `buckets` in the configuration file; \"*\" allows all".into(),
            });
        }
        // That a bucket allowed by its full name does not exist is the operator's matter; any other name is a job's.
        let named: Vec<String> =
            config.buckets.iter().map(Bucket::pattern).filter(|name| !name.contains('*')).map(str::to_owned).collect();
        let store: Box<dyn Store> = match config.objects()? {
            Objects::S3 => Box::new(S3::new(config, named).await),
            Objects::Folder(root) => Box::new(Folder::open(&root, named)?),
        };
        Ok(Self::on(store, config))
    }

    /// Fetches from a store that is open already.
    #[must_use]
    pub fn on(store: Box<dyn Store>, config: &Config) -> Self {
        let allowed = config.buckets.iter().map(|bucket| WildMatch::new(bucket.pattern())).collect();
        Self { store, allowed, limits: config.storage.clone(), spare: Spare::default(), answered: Mutex::default() }
    }

    /// Whether jobs may name this bucket.
    #[must_use]
    pub fn allows(&self, bucket: &str) -> bool {
        is_bucket(bucket) && self.allowed.iter().any(|pattern| pattern.matches(bucket))
    }

    /// The buckets that are allowed by name.
    pub fn named_buckets(&self) -> impl Iterator<Item = String> {
        self.allowed.iter().map(ToString::to_string).filter(|pattern| !pattern.contains('*'))
    }

    /// Asks whether the store answers: for a bucket that is allowed by name, or else for one that did answer before. A
    /// bucket that a job has made up says nothing about the store.
    ///
    /// # Errors
    /// Why it does not, in one line.
    pub async fn probe(&self, bucket: &str) -> Result<(), String> {
        let named = self.named_buckets().any(|name| name == bucket);
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let asked = if named { bucket } else { answered.as_deref().unwrap_or(bucket) };
        self.store.probe(asked).await
    }

    /// Lists part of a bucket, as [`Store::list`] does.
    #[must_use]
    pub fn list(&self, part: Part) -> BoxStream<'static, Result<Listed, StoreError>> {
        self.store.list(part)
    }

    /// Asks what an object is, as [`Store::head`] does.
    ///
    /// # Errors
    /// As the store sorts them.
    pub async fn head(&self, image: &ImageRef) -> Result<Listed, StoreError> {
        self.store.head(image).await
    }

    /// Begins to fetch an object that is not an image and knows no limits, a list of images for one.
    ///
    /// # Errors
    /// As the store sorts them.
    pub async fn open_object(&self, image: &ImageRef) -> Result<Object, StoreError> {
        self.store.open(image).await
    }

    /// Fetches an object whole.
    ///
    /// A failure may be the object's or the store's. If the store answers for something else, the object is tried once
    /// more, as the store may have come back just now; only then it is the object's.
    ///
    /// # Errors
    /// Sorted by what it means for the job.
    pub async fn fetch(&self, image: &ImageRef, lane: Lane, gates: &Fetching) -> Result<Blob, FetchError> {
        let _download = gates.downloads.enter(lane, 1).await?;
        let mut tried_again = false;
        loop {
            let why = match self.once(image, lane, gates).await? {
                Ok(blob) => {
                    metrics::fetched(blob.bytes.len() as u64);
                    traces::count("pixwarden.image.bytes", blob.bytes.len() as u64);
                    *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(image.bucket.clone());
                    return Ok(blob);
                }
                Err(why) => why,
            };
            if let Err(store) = self.probe(&image.bucket).await {
                return Err(FetchError::Down(format!("{why}; {store}")));
            }
            if tried_again {
                return Err(FetchError::Failed(why));
            }
            tried_again = true;
        }
    }

    /// One try, under one deadline. The inner error is unclear.
    async fn once(&self, image: &ImageRef, lane: Lane, gates: &Fetching) -> Result<Result<Blob, String>, FetchError> {
        let allowed = Duration::from_millis(self.limits.deadline_ms);
        let late = || Ok(Err(format!("the object did not arrive within {} ms", allowed.as_millis())));
        let began = Instant::now();
        let object = match tokio::time::timeout(allowed, self.store.open(image)).await {
            Ok(Ok(object)) => object,
            Ok(Err(StoreError::Missing(why))) => return Err(FetchError::Missing(why)),
            Ok(Err(StoreError::Denied(why))) => return Err(FetchError::Failed(why)),
            Ok(Err(StoreError::Down(why))) => return Err(FetchError::Down(why)),
            Ok(Err(StoreError::Unclear(why))) => return Ok(Err(why)),
            Err(_) => return late(),
        };
        let left = allowed.saturating_sub(began.elapsed());
        let max = self.limits.max_object_bytes;
        if object.length > max {
            let why = format!("the object has {} bytes, the limit is {max}", object.length);
            return Err(FetchError::TooLarge(why, object.etag));
        }
        // Waiting for memory is not the store's time.
        let memory = gates.bytes.enter(lane, object.length).await?;
        match tokio::time::timeout(left, read(object.body, object.length, &self.spare)).await {
            Ok(Ok((bytes, sha256))) => {
                Ok(Ok(Blob { bytes, sha256, etag: object.etag, version_id: object.version_id, memory }))
            }
            Ok(Err(why)) => Ok(Err(why)),
            Err(_) => late(),
        }
    }
}

/// Whether this can be a bucket's name. Characters that no bucket has are refused whatever is allowed: in the place of a
/// bucket they could mean another kind of address.
#[must_use]
pub fn is_bucket(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Reads a body to its announced end, hashing on the way. A body cut short has been seen to end like a whole one.
async fn read(
    mut body: BoxStream<'static, Result<Bytes, String>>,
    length: u64,
    spare: &Spare,
) -> Result<(Bytes, [u8; 32]), String> {
    let mut buffer =
        spare.take(length).map_err(|e| format!("there is no memory for an object of {length} bytes: {e}"))?;
    let mut hasher = Sha256::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        if !buffer.push(&chunk) {
            return Err(format!("the object is longer than the {length} bytes announced"));
        }
        hasher.update(&chunk);
    }
    let arrived = buffer.as_ref().len() as u64;
    if arrived != length {
        return Err(format!("the object was cut short: {arrived} of {length} bytes arrived"));
    }
    Ok((Bytes::from_owner(buffer), hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(chunks: &[&'static [u8]]) -> BoxStream<'static, Result<Bytes, String>> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk))).collect();
        futures_util::stream::iter(chunks).boxed()
    }

    #[tokio::test]
    async fn a_body_counts_only_when_it_is_as_long_as_announced() {
        let spare = Spare::default();
        let (bytes, sha256) = read(body(&[b"ab", b"c"]), 3, &spare).await.unwrap();
        assert_eq!(&bytes[..], b"abc");
        assert_eq!(hex::encode(sha256), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(read(body(&[b"ab"]), 3, &spare).await.unwrap_err().contains("cut short: 2 of 3"));
        assert!(read(body(&[b"abcd"]), 3, &spare).await.unwrap_err().contains("longer"));
        assert!(read(body(&[b"ab"]), u64::MAX, &spare).await.unwrap_err().contains("no memory"));
    }
}
