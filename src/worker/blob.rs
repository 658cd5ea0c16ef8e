//! An image's reference → its bytes: from an allowed bucket only, within a size and a deadline, whole.
//!
//! The only file that names the S3 SDK. What a store says is sorted here into what it means for the job; whether an
//! unclear failure is the object's or the store's is told by asking the store for something else.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation, retry::RetryConfig};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectError;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sha2::{Digest, Sha256};
use wildmatch::WildMatch;

use super::admit::{Admit, Closed, Permit};
use crate::config::{Bucket, Config, ConfigError, StorageConfig};
use crate::job::{ImageRef, Lane};

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
    /// The memory it was admitted with; held as long as the bytes are.
    pub permit: Permit,
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
#[derive(Debug)]
pub enum StoreError {
    /// As [`FetchError::Missing`].
    Missing(String),
    /// Access to this object is denied.
    Denied(String),
    /// The store cannot be used as configured.
    Down(String),
    /// The object's fault or the store's; `Store::probe` tells.
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

/// Where objects are. A seam: `file://` will be another one.
#[async_trait]
pub trait Store: Send + Sync {
    /// Asks for an object, and returns once it has begun to arrive.
    async fn open(&self, image: &ImageRef) -> Result<Object, StoreError>;

    /// Asks whether the store answers for a bucket.
    async fn probe(&self, bucket: &str) -> Result<(), String>;
}

/// Fetches objects within bounds.
pub struct Fetcher {
    store: Box<dyn Store>,
    allowed: Vec<WildMatch>,
    limits: StorageConfig,
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
        if config.objects != "s3://" {
            let what = format!("\"{}\" is not supported; it must be \"s3://\"", config.objects);
            return Err(ConfigError::Invalid { option: "objects".into(), what });
        }
        let allowed = config.buckets.iter().map(|bucket| WildMatch::new(bucket.pattern())).collect();
        Ok(Self {
            store: Box::new(S3::new(config).await),
            allowed,
            limits: config.storage.clone(),
            answered: Mutex::default(),
        })
    }

    /// Whether jobs may name this bucket. Characters that no bucket has are refused whatever the pattern: in the place
    /// of a bucket they could mean another kind of address.
    #[must_use]
    pub fn allows(&self, bucket: &str) -> bool {
        let plain = bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        plain && self.allowed.iter().any(|pattern| pattern.matches(bucket))
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

    /// Fetches an object whole.
    ///
    /// A failure may be the object's or the store's. If the store answers for something else, the object is tried once
    /// more, as the store may have come back just now; only then it is the object's.
    ///
    /// # Errors
    /// Sorted by what it means for the job.
    pub async fn fetch(&self, image: &ImageRef, lane: Lane, admit: &Admit) -> Result<Blob, FetchError> {
        let _download = admit.downloads.enter(lane, 1).await?;
        let mut tried_again = false;
        loop {
            let why = match self.once(image, lane, admit).await? {
                Ok(blob) => {
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
    async fn once(&self, image: &ImageRef, lane: Lane, admit: &Admit) -> Result<Result<Blob, String>, FetchError> {
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
        let permit = admit.bytes.enter(lane, object.length).await?;
        match tokio::time::timeout(left, read(object.body, object.length)).await {
            Ok(Ok((bytes, sha256))) => {
                Ok(Ok(Blob { bytes, sha256, etag: object.etag, version_id: object.version_id, permit }))
            }
            Ok(Err(why)) => Ok(Err(why)),
            Err(_) => late(),
        }
    }
}

/// Reads a body to its announced end, hashing on the way. A body cut short has been seen to end like a whole one.
async fn read(mut body: BoxStream<'static, Result<Bytes, String>>, length: u64) -> Result<(Bytes, [u8; 32]), String> {
    let capacity = usize::try_from(length).map_err(|_| "the object is larger than memory".to_owned())?;
    let mut bytes = BytesMut::with_capacity(capacity);
    let mut hasher = Sha256::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        if bytes.len() + chunk.len() > capacity {
            return Err(format!("the object is longer than the {length} bytes announced"));
        }
        hasher.update(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    if bytes.len() != capacity {
        return Err(format!("the object was cut short: {} of {length} bytes arrived", bytes.len()));
    }
    Ok((bytes.freeze(), hasher.finalize().into()))
}

/// S3 and stores that speak like it.
struct S3 {
    /// Buckets with a place of their own, and last the place of all others.
    clients: Vec<(WildMatch, Client)>,
    /// Buckets allowed by their full name; that one of them does not exist is the operator's matter.
    named: Vec<String>,
}

impl S3 {
    async fn new(config: &Config) -> Self {
        let storage = &config.storage;
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
                aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring,
            ))
            .build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_millis(storage.connect_timeout_ms))
            .operation_attempt_timeout(FIRST_BYTE)
            .build();
        let shared = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_initial_backoff(Duration::from_millis(50)))
            .load()
            .await;
        let client = |region: &str, endpoint: &str, path_style: bool| {
            let mut builder = aws_sdk_s3::config::Builder::from(&shared)
                .force_path_style(path_style)
                // Other stores than AWS reject the newer checksum headers.
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
            if !endpoint.is_empty() {
                builder = builder.endpoint_url(endpoint);
            }
            if !region.is_empty() {
                builder = builder.region(Region::new(region.to_owned()));
            } else if shared.region().is_none() {
                // Stores that know no regions still want one in the signature.
                builder = builder.region(Region::new("us-east-1"));
            }
            Client::from_conf(builder.build())
        };
        let or = |own: &str, general: &str| if own.is_empty() { general.to_owned() } else { own.to_owned() };
        let mut clients = Vec::new();
        for bucket in &config.buckets {
            if let Bucket::Table(table) = bucket {
                let (region, endpoint) = (or(&table.region, &storage.region), or(&table.endpoint, &storage.endpoint));
                let path_style = table.path_style || storage.path_style;
                clients.push((WildMatch::new(&table.name), client(&region, &endpoint, path_style)));
            }
        }
        clients.push((WildMatch::new("*"), client(&storage.region, &storage.endpoint, storage.path_style)));
        let named =
            config.buckets.iter().map(Bucket::pattern).filter(|name| !name.contains('*')).map(str::to_owned).collect();
        Self { clients, named }
    }

    fn client(&self, bucket: &str) -> &Client {
        let found = self.clients.iter().find(|(pattern, _)| pattern.matches(bucket));
        // The last pattern matches everything.
        &found.unwrap_or(&self.clients[self.clients.len() - 1]).1
    }

    fn sort(&self, image: &ImageRef, error: &SdkError<GetObjectError>) -> StoreError {
        let words = one_line(error);
        let SdkError::ServiceError(service) = error else {
            return StoreError::Unclear(words);
        };
        let named = self.named.contains(&image.bucket);
        let (code, status) = (service.err().code().unwrap_or_default(), service.raw().status().as_u16());
        let message = service.err().message().unwrap_or_default();
        match (code, status) {
            ("NoSuchBucket", _) if named => StoreError::Down(format!("there is no bucket \"{}\"", image.bucket)),
            // Allowed by a wildcard only: then the name was the job's.
            ("NoSuchBucket", _) => StoreError::Missing(format!("there is no bucket \"{}\"", image.bucket)),
            ("NoSuchVersion", _) => StoreError::Missing("there is no such version of the object".into()),
            // Nothing but our own If-Match has this answer, whoever gives it.
            (_, 412) => StoreError::Missing("the object has changed since the job was made: its ETag differs".into()),
            ("MethodNotAllowed", _) => StoreError::Missing("the object has been deleted".into()),
            // By the store's own code only: a proxy that answers 404 knows nothing of objects.
            ("NoSuchKey", _) => StoreError::Missing("there is no such object".into()),
            // A bucket that a job has made up may lie anywhere.
            ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) if !named => {
                StoreError::Denied(format!("the bucket is not where this store is: {words}"))
            }
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"
                | "TokenRefreshRequired"
                | "RequestTimeTooSkewed"
                | "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "NotSignedUp"
                | "AccountProblem"
                | "InvalidSecurity",
                _,
            ) => StoreError::Down(format!("the store does not accept our credentials: {words}")),
            // Garage has no codes of its own for an unknown key and a wrong secret.
            (_, 403) if message.contains("Invalid signature") || message.contains("No such key") => {
                StoreError::Down(format!("the store does not accept our credentials: {words}"))
            }
            (_, 403) => StoreError::Denied(format!("access to the object is denied: {words}")),
            (_, 400) => StoreError::Denied(format!("the store refuses the request: {words}")),
            _ => StoreError::Unclear(words),
        }
    }
}

#[async_trait]
impl Store for S3 {
    async fn open(&self, image: &ImageRef) -> Result<Object, StoreError> {
        let request = self
            .client(&image.bucket)
            .get_object()
            .bucket(&image.bucket)
            .key(&image.key)
            .set_version_id(image.version_id.clone())
            .set_if_match(image.etag.as_ref().map(|etag| format!("\"{etag}\"")));
        let answer = request.send().await.map_err(|e| self.sort(image, &e))?;
        let Some(length) = answer.content_length().and_then(|n| u64::try_from(n).ok()) else {
            return Err(StoreError::Unclear("the store did not say how long the object is".into()));
        };
        let etag = answer.e_tag().map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let version_id = answer.version_id().map(str::to_owned);
        let body = futures_util::stream::unfold(answer.body, |mut body| async move {
            let chunk = body.next().await?;
            Some((chunk.map_err(|e| one_line(&e)), body))
        });
        Ok(Object { length, etag, version_id, body: body.boxed() })
    }

    async fn probe(&self, bucket: &str) -> Result<(), String> {
        let image = ImageRef { bucket: bucket.into(), key: PROBE_KEY.into(), version_id: None, etag: None };
        match tokio::time::timeout(FIRST_BYTE, self.open(&image)).await {
            Ok(Ok(_) | Err(StoreError::Missing(_) | StoreError::Denied(_))) => Ok(()),
            Ok(Err(StoreError::Down(why) | StoreError::Unclear(why))) => Err(why),
            Err(_) => Err(format!("the store did not answer within {} s", FIRST_BYTE.as_secs())),
        }
    }
}

/// An error with all its causes, on one line.
fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if words.last().is_none_or(|last| !last.contains(&text)) {
            words.push(text);
        }
        next = error.source();
    }
    words.join(": ").split_whitespace().collect::<Vec<_>>().join(" ")
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
        let (bytes, sha256) = read(body(&[b"ab", b"c"]), 3).await.unwrap();
        assert_eq!(&bytes[..], b"abc");
        assert_eq!(hex::encode(sha256), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(read(body(&[b"ab"]), 3).await.unwrap_err().contains("cut short: 2 of 3"));
        assert!(read(body(&[b"abcd"]), 3).await.unwrap_err().contains("longer"));
    }
}
