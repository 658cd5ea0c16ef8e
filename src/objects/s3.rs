//! S3 and compatible stores. The only file that names the S3 SDK.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation, retry::RetryConfig};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::EncodingType;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use percent_encoding::percent_decode_str;
use time::OffsetDateTime;
use wildmatch::WildMatch;

use super::{FIRST_BYTE_TIMEOUT, KeyRange, ListedObject, ObjectStore, OpenedObject, PROBE_KEY, StoreError};
use crate::certificates;
use crate::config::{Bucket, Config};
use crate::error_text::{Described, innermost_text};
use crate::job::{ImageRef, NULL_VERSION};

/// A cheap handle: clones share their clients.
#[derive(Clone)]
pub(super) struct S3 {
    /// One client for each bucket table, in order, and last the client for all other buckets.
    clients: Arc<[BucketClient]>,
    /// Buckets allowed by their full name.
    named: Arc<[String]>,
}

/// The client for the buckets of some names.
struct BucketClient {
    pattern: WildMatch,
    client: Client,
    /// Endpoint and region: the store that the client talks to.
    address: String,
}

impl S3 {
    pub(super) async fn new(config: &Config, named: Vec<String>) -> Self {
        let storage = &config.storage;
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
                aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring,
            ))
            .build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_millis(storage.connect_timeout_ms))
            .operation_attempt_timeout(FIRST_BYTE_TIMEOUT)
            .build();
        let shared = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_initial_backoff(Duration::from_millis(50)))
            .load()
            .await;
        // In the SDK's order. A profile may name another one for S3 only, which the SDK does not show.
        let standard = std::env::var("AWS_ENDPOINT_URL_S3").ok().or_else(|| shared.endpoint_url().map(str::to_owned));
        let standard = standard.unwrap_or_else(|| match std::env::var("AWS_PROFILE") {
            Ok(profile) => format!("AWS, or the S3 endpoint of the profile \"{profile}\""),
            Err(_) => "AWS".into(),
        });
        let client = |pattern: &str, region: &str, endpoint: &str, path_style: bool| {
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
                // Stores without regions still need one in the signature.
                builder = builder.region(Region::new("us-east-1"));
            }
            let client = Client::from_conf(builder.build());
            let region = client.config().region().map(ToString::to_string).unwrap_or_default();
            let address = format!("{}, region {region}", if endpoint.is_empty() { &standard } else { endpoint });
            BucketClient { pattern: WildMatch::new(pattern), client, address }
        };
        let or = |own: &str, general: &str| if own.is_empty() { general.to_owned() } else { own.to_owned() };
        let mut clients = Vec::new();
        for bucket in &config.buckets {
            if let Bucket::Table(table) = bucket {
                let (region, endpoint) = (or(&table.region, &storage.region), or(&table.endpoint, &storage.endpoint));
                let path_style = table.path_style || storage.path_style;
                clients.push(client(&table.name, &region, &endpoint, path_style));
            }
        }
        clients.push(client("*", &storage.region, &storage.endpoint, storage.path_style));
        Self { clients: clients.into(), named: named.into() }
    }

    /// The bucket with its endpoint and region, for messages.
    fn place(&self, bucket: &str) -> String {
        format!("bucket \"{bucket}\" at {}", self.bucket_client(bucket).address)
    }

    /// An error without a response: the request or the response did not get through, or there are no credentials.
    fn classify_failure<E: std::error::Error + 'static>(&self, bucket: &str, error: &SdkError<E>) -> (Kind, String) {
        let (place, cause) = (self.place(bucket), innermost_text(error));
        // The SDK lists every source of credentials that it tried.
        let first_line = cause.lines().next().unwrap_or_default().split(". ").next().unwrap_or_default();
        match error {
            // Everything that fails before a connection is opened: there is no other cause than the credentials.
            SdkError::DispatchFailure(failure) if failure.is_other() || failure.is_user() => {
                (StoreError::Down, format!("{place}: no usable credentials: {first_line}{CREDENTIALS_HINT}"))
            }
            SdkError::DispatchFailure(_) | SdkError::TimeoutError(_) => {
                let hint = match certificates::hint(error) {
                    "" => ENDPOINT_HINT,
                    hint => hint,
                };
                (StoreError::Unclear, format!("cannot reach the {place}: {first_line}{hint}"))
            }
            _ => (StoreError::Unclear, format!("{place}: {}{}", one_line(error), certificates::hint(error))),
        }
    }

    fn client(&self, bucket: &str) -> &Client {
        &self.bucket_client(bucket).client
    }

    fn bucket_client(&self, bucket: &str) -> &BucketClient {
        let found = self.clients.iter().find(|client| client.pattern.matches(bucket));
        // The last pattern matches everything.
        found.unwrap_or(&self.clients[self.clients.len() - 1])
    }

    /// Maps an error of a request for something in `bucket` to what it means.
    fn classify_error<E>(&self, bucket: &str, error: SdkError<E>) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let (kind, text) = self.classify(bucket, &error);
        kind(Described::new(text, error))
    }

    fn classify<E>(&self, bucket: &str, error: &SdkError<E>) -> (Kind, String)
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let SdkError::ServiceError(service) = error else { return self.classify_failure(bucket, error) };
        let named = self.named.iter().any(|named| named == bucket);
        let (code, status) = (service.err().code().unwrap_or_default(), service.raw().status().as_u16());
        let message = service.err().message().unwrap_or_default();
        let words = words(code, status, message);
        match (code, status) {
            ("NoSuchBucket", _) if named => (StoreError::BucketDown, format!("there is no {}", self.place(bucket))),
            // The bucket is allowed by a wildcard only, so its name came from the job.
            ("NoSuchBucket", _) => (StoreError::Missing, format!("there is no bucket \"{bucket}\"")),
            ("NoSuchVersion", _) => (StoreError::Missing, "there is no such version of the object".into()),
            // Only our own If-Match is answered like this, by the store or by a proxy.
            (_, 412) => (StoreError::Missing, CHANGED.into()),
            ("MethodNotAllowed", _) => (StoreError::Missing, "the object has been deleted".into()),
            // Only the store's own code counts: a proxy that answers 404 has not looked for the object.
            ("NoSuchKey", _) => (StoreError::Missing, "there is no such object".into()),
            // The name came from a job, so the bucket may belong to another store.
            ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) if !named => {
                (StoreError::Denied, format!("the bucket is in another region or store: {words}"))
            }
            ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) => {
                let region = service.raw().headers().get("x-amz-bucket-region");
                let hint = region.map_or_else(
                    || REGION_HINT.to_owned(),
                    |region| format!("{REGION_HINT}; the store says that it is {region}"),
                );
                (StoreError::BucketDown, format!("{}: wrong region: {words}{hint}", self.place(bucket)))
            }
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"
                | "TokenRefreshRequired"
                | "RequestTimeTooSkewed"
                | "NotSignedUp"
                | "AccountProblem"
                | "InvalidSecurity",
                _,
            ) => self.refused_credentials(bucket, &words),
            // Garage has no separate codes for an unknown key and a wrong secret, so its message is read.
            (_, 403) if message.contains("Invalid signature") || message.contains("No such key") => {
                self.refused_credentials(bucket, &words)
            }
            // S3 has no code of its own for this, so its message is read.
            ("InvalidRequest", 400) if message.contains("Server Side Encryption") => (
                StoreError::Unsupported,
                "the object is encrypted with its owner's key (SSE-C), which Pixwarden does not have".into(),
            ),
            (_, 403) => (StoreError::Denied, format!("access to the object is denied: {words}")),
            (_, 400) => (StoreError::Denied, format!("the store refused the request: {words}")),
            _ => (StoreError::Unclear, format!("{}: {words}", self.place(bucket))),
        }
    }

    fn refused_credentials(&self, bucket: &str, words: &str) -> (Kind, String) {
        let place = self.place(bucket);
        (StoreError::Down, format!("{place}: the store refused the credentials: {words}{CREDENTIALS_HINT}"))
    }
}

/// Whose fault an error is.
type Kind = fn(Described) -> StoreError;

const CHANGED: &str = "the object has changed since the job was made: its ETag differs";
const ENDPOINT_HINT: &str = "\n  hint: check that the store runs, and `storage.endpoint` or AWS_ENDPOINT_URL_S3";
const CREDENTIALS_HINT: &str = "\n  hint: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role that may read the bucket";
const REGION_HINT: &str = "\n  hint: set the bucket's `region`, `storage.region` or AWS_REGION";

/// The store's own words for an error: a response to HEAD has only a status.
fn words(code: &str, status: u16, message: &str) -> String {
    match (code, message) {
        ("", "") => format!("status {status}"),
        ("", message) => format!("{message} (status {status})"),
        (code, "") => format!("{code} (status {status})"),
        (code, message) => format!("{message} ({code})"),
    }
}

#[async_trait]
impl ObjectStore for S3 {
    async fn open(&self, image: &ImageRef) -> Result<OpenedObject, StoreError> {
        let request = self
            .client(&image.bucket)
            .get_object()
            .bucket(&image.bucket)
            .key(&image.key)
            .set_version_id(image.version_id.clone())
            .set_if_match(image.etag.as_ref().map(|etag| format!("\"{etag}\"")));
        let answer = request.send().await.map_err(|e| self.classify_error(&image.bucket, e))?;
        let Some(length) = answer.content_length().and_then(|n| u64::try_from(n).ok()) else {
            let place = self.place(&image.bucket);
            return Err(StoreError::Unclear(format!("{place}: the response has no Content-Length").into()));
        };
        let etag = answer.e_tag().map(unquoted);
        // Not every store supports If-Match, and a verdict must be about the object that its job names.
        if let (Some(wanted), Some(found)) = (&image.etag, &etag)
            && wanted != found
        {
            return Err(StoreError::Missing(CHANGED.into()));
        }
        let version_id = answer.version_id().map(str::to_owned);
        let modified = answer.last_modified().and_then(instant);
        // A store without versions ignores the parameter, and returns whatever it has.
        if let Some(wanted) = &image.version_id
            && wanted != version_id.as_deref().unwrap_or(NULL_VERSION)
        {
            let found = match &version_id {
                Some(found) => format!("the store returned the version \"{found}\" instead of \"{wanted}\""),
                None => format!("the store returned an object without a version instead of the version \"{wanted}\""),
            };
            return Err(StoreError::Missing(found.into()));
        }
        let body = stream::unfold(answer.body, |mut body| async move {
            let chunk = body.next().await?;
            Some((chunk.map_err(|e| StoreError::Unclear(Described::new(one_line(&e), e))), body))
        });
        Ok(OpenedObject { length, etag, version_id, modified, body: body.boxed() })
    }

    fn list(&self, range: KeyRange) -> BoxStream<'static, Result<ListedObject, StoreError>> {
        let KeyRange { bucket, prefix, after } = range;
        let pages = self
            .client(&bucket)
            .list_objects_v2()
            .bucket(&bucket)
            .prefix(prefix)
            .set_start_after(after)
            // XML cannot represent some characters that a key may contain.
            .encoding_type(EncodingType::Url)
            .into_paginator()
            .send();
        let this = self.clone();
        stream::unfold(pages, |mut pages| async move { Some((pages.next().await?, pages)) })
            .flat_map(move |page| {
                let listed: Vec<_> = match page {
                    Ok(page) => {
                        let encoded = page.encoding_type() == Some(&EncodingType::Url);
                        page.contents().iter().map(|object| listed(&bucket, object, encoded)).collect()
                    }
                    Err(e) => vec![Err(match this.classify_error(&bucket, e) {
                        StoreError::Denied(why) => {
                            let text = format!(
                                "cannot list the bucket \"{bucket}\": {why}\n  hint: that needs s3:ListBucket on the bucket"
                            );
                            StoreError::Denied(Described::new(text, why))
                        }
                        other => other,
                    })],
                };
                stream::iter(listed)
            })
            .boxed()
    }

    async fn head(&self, image: &ImageRef) -> Result<ListedObject, StoreError> {
        let answer = self.client(&image.bucket).head_object().bucket(&image.bucket).key(&image.key).send().await;
        let answer = answer.map_err(|e| match &e {
            // An answer to HEAD has no body, and so no code.
            SdkError::ServiceError(service) if service.err().is_not_found() => {
                StoreError::Missing(Described::new("there is no such object", e))
            }
            _ => self.classify_error(&image.bucket, e),
        })?;
        Ok(ListedObject {
            image: ImageRef { etag: answer.e_tag().map(unquoted), version_id: None, ..image.clone() },
            bytes: answer.content_length().and_then(|n| u64::try_from(n).ok()),
            modified: answer.last_modified().and_then(instant),
        })
    }

    async fn put(&self, image: &ImageRef, bytes: Bytes) -> Result<(), StoreError> {
        let put = self.client(&image.bucket).put_object().bucket(&image.bucket).key(&image.key);
        let stored = put.body(bytes.into()).send().await;
        stored.map(drop).map_err(|e| self.classify_error(&image.bucket, e))
    }

    async fn probe(&self, bucket: &str) -> Result<(), StoreError> {
        let image = ImageRef { bucket: bucket.into(), key: PROBE_KEY.into(), version_id: None, etag: None };
        match tokio::time::timeout(FIRST_BYTE_TIMEOUT, self.open(&image)).await {
            Ok(Ok(_) | Err(StoreError::Missing(_) | StoreError::Denied(_) | StoreError::Unsupported(_))) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let (place, timeout_s) = (self.place(bucket), FIRST_BYTE_TIMEOUT.as_secs());
                Err(StoreError::Down(format!("{place}: the store did not respond within {timeout_s} s").into()))
            }
        }
    }

    fn address(&self, bucket: &str) -> &str {
        &self.bucket_client(bucket).address
    }
}

/// Reads one entry of a listing. The key is encoded where the store says so: AWS writes a space as `+`, other stores as
/// `%20`. Both write a literal `+` as `%2B`.
fn listed(bucket: &str, object: &aws_sdk_s3::types::Object, encoded: bool) -> Result<ListedObject, StoreError> {
    let key = object.key().unwrap_or_default();
    let form = key.replace('+', "%20");
    let key = if encoded {
        percent_decode_str(&form).decode_utf8().map_err(|e| {
            let what = format!("the bucket \"{bucket}\" has a key that is not UTF-8, as the store lists it: {key}");
            StoreError::Down(Described::new(what, e))
        })?
    } else {
        key.into()
    };
    Ok(ListedObject {
        image: ImageRef {
            bucket: bucket.to_owned(),
            key: key.into_owned(),
            version_id: None,
            etag: object.e_tag().map(unquoted),
        },
        bytes: object.size().and_then(|n| u64::try_from(n).ok()),
        modified: object.last_modified().and_then(instant),
    })
}

fn unquoted(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

fn instant(time: &DateTime) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(time.as_nanos()).ok()
}

/// An error with all its causes on one line.
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
    use aws_sdk_s3::config::Credentials;
    use aws_sdk_s3::operation::get_object::GetObjectError;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A store that gives every request the same response.
    async fn store_responding(response: &'static str) -> S3 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        drop(tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 8192];
                let _length = stream.read(&mut request).await.unwrap();
                stream.write_all(response.replace('\n', "\r\n").as_bytes()).await.unwrap();
            }
        }));
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(&endpoint)
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("key", "secret", None, None, "tests"))
            .retry_config(RetryConfig::disabled())
            .force_path_style(true)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        let client =
            BucketClient { pattern: WildMatch::new("*"), client: Client::from_conf(config), address: endpoint };
        S3 { clients: [client].into(), named: ["named".to_owned()].into() }
    }

    async fn open(store: &S3, bucket: &str, version: Option<&str>) -> Result<OpenedObject, StoreError> {
        let version_id = version.map(str::to_owned);
        store.open(&ImageRef { bucket: bucket.into(), key: "k".into(), version_id, etag: None }).await
    }

    #[tokio::test]
    async fn a_version_that_the_store_does_not_return_is_missing() {
        let plain = "HTTP/1.1 200 OK\ncontent-length: 1\netag: \"e\"\nconnection: close\n\nx";
        let store = store_responding(plain).await;
        assert!(
            matches!(open(&store, "b", Some("v1")).await, Err(StoreError::Missing(why)) if why.to_string().contains("\"v1\""))
        );
        assert!(open(&store, "b", Some("null")).await.is_ok(), "a bucket without versions says \"null\"");
        assert!(open(&store, "b", None).await.is_ok());
        let versioned = "HTTP/1.1 200 OK\ncontent-length: 1\nx-amz-version-id: v2\nconnection: close\n\nx";
        let store = store_responding(versioned).await;
        assert!(open(&store, "b", Some("v2")).await.is_ok());
        for other in ["v1", "null"] {
            assert!(matches!(open(&store, "b", Some(other)).await, Err(StoreError::Missing(_))), "{other}");
        }
    }

    #[tokio::test]
    async fn errors_are_blamed_on_the_object_the_bucket_or_the_store() {
        let error = |status: &str, code: &str, message: &str| -> &'static str {
            let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
            let head = format!("HTTP/1.1 {status}\ncontent-type: application/xml\nconnection: close");
            Box::leak(format!("{head}\ncontent-length: {}\n\n{body}", body.len()).into_boxed_str())
        };
        let encrypted = "The object was stored using a form of Server Side Encryption. The correct parameters must be \
                         provided to retrieve the object.";
        let found =
            open(&store_responding(error("400 Bad Request", "InvalidRequest", encrypted)).await, "b", None).await;
        assert!(
            matches!(&found, Err(StoreError::Unsupported(why)) if why.to_string().contains("SSE-C")),
            "{:?}",
            found.err()
        );

        let no_bucket = store_responding(error("404 Not Found", "NoSuchBucket", "no such bucket")).await;
        assert!(matches!(open(&no_bucket, "named", None).await, Err(StoreError::BucketDown(_))));
        assert!(matches!(open(&no_bucket, "made-up", None).await, Err(StoreError::Missing(_))));

        let denied = store_responding(error("403 Forbidden", "AccessDenied", "denied")).await;
        assert!(matches!(open(&denied, "named", None).await, Err(StoreError::Denied(_))));
        let credentials = store_responding(error("403 Forbidden", "InvalidAccessKeyId", "unknown key")).await;
        let error = open(&credentials, "named", None).await.err().unwrap();
        assert!(matches!(error, StoreError::Down(_)), "{error}");
        let source = std::error::Error::source(&error).and_then(std::error::Error::source).unwrap();
        assert!(source.is::<SdkError<GetObjectError>>(), "the SDK's error is kept: {source:?}");
    }
}
