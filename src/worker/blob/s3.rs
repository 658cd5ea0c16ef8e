//! S3 and stores that speak like it. The only file that names the S3 SDK.

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
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use percent_encoding::percent_decode_str;
use time::OffsetDateTime;
use wildmatch::WildMatch;

use super::{FIRST_BYTE, Listed, Object, PROBE_KEY, Part, Store, StoreError};
use crate::certificates;
use crate::config::{Bucket, Config};
use crate::job::ImageRef;

/// S3 and stores that speak like it. Clones are the same.
#[derive(Clone)]
pub(super) struct S3 {
    /// Buckets with a place of their own, and last the place of all others.
    clients: Arc<[(WildMatch, Client)]>,
    /// Buckets allowed by their full name.
    named: Arc<[String]>,
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
        Self { clients: clients.into(), named: named.into() }
    }

    fn client(&self, bucket: &str) -> &Client {
        let found = self.clients.iter().find(|(pattern, _)| pattern.matches(bucket));
        // The last pattern matches everything.
        &found.unwrap_or(&self.clients[self.clients.len() - 1]).1
    }

    /// What an error of the store's means, asked for anything in a bucket.
    fn sort<E>(&self, bucket: &str, error: &SdkError<E>) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let words = one_line(error);
        let SdkError::ServiceError(service) = error else {
            let hint = certificates::hint(error);
            return StoreError::Unclear(words + hint);
        };
        let named = self.named.iter().any(|named| named == bucket);
        let (code, status) = (service.err().code().unwrap_or_default(), service.raw().status().as_u16());
        let message = service.err().message().unwrap_or_default();
        match (code, status) {
            ("NoSuchBucket", _) if named => StoreError::Down(format!("there is no bucket \"{bucket}\"")),
            // Allowed by a wildcard only: then the name was the job's.
            ("NoSuchBucket", _) => StoreError::Missing(format!("there is no bucket \"{bucket}\"")),
            ("NoSuchVersion", _) => StoreError::Missing("there is no such version of the object".into()),
            // Nothing but our own If-Match has this answer, whoever gives it.
            (_, 412) => changed(),
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
        let answer = request.send().await.map_err(|e| self.sort(&image.bucket, &e))?;
        let Some(length) = answer.content_length().and_then(|n| u64::try_from(n).ok()) else {
            return Err(StoreError::Unclear("the store did not say how long the object is".into()));
        };
        let etag = answer.e_tag().map(unquoted);
        // Not every store heeds If-Match, and a verdict must not be about another object than its job is.
        if let (Some(wanted), Some(found)) = (&image.etag, &etag)
            && wanted != found
        {
            return Err(changed());
        }
        let version_id = answer.version_id().map(str::to_owned);
        let body = stream::unfold(answer.body, |mut body| async move {
            let chunk = body.next().await?;
            Some((chunk.map_err(|e| one_line(&e)), body))
        });
        Ok(Object { length, etag, version_id, body: body.boxed() })
    }

    fn list(&self, part: Part) -> BoxStream<'static, Result<Listed, StoreError>> {
        let Part { bucket, prefix, after } = part;
        let pages = self
            .client(&bucket)
            .list_objects_v2()
            .bucket(&bucket)
            .prefix(prefix)
            .set_start_after(after)
            // XML has no way to write some characters that a key may hold.
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
                    Err(e) => vec![Err(match this.sort(&bucket, &e) {
                        StoreError::Denied(why) => StoreError::Denied(format!(
                            "the bucket \"{bucket}\" cannot be listed: {why}\n  hint: that needs s3:ListBucket on the bucket"
                        )),
                        other => other,
                    })],
                };
                stream::iter(listed)
            })
            .boxed()
    }

    async fn head(&self, image: &ImageRef) -> Result<Listed, StoreError> {
        let answer = self.client(&image.bucket).head_object().bucket(&image.bucket).key(&image.key).send().await;
        let answer = answer.map_err(|e| match &e {
            // An answer to HEAD has no body, and so no code.
            SdkError::ServiceError(service) if service.err().is_not_found() => {
                StoreError::Missing("there is no such object".into())
            }
            _ => self.sort(&image.bucket, &e),
        })?;
        Ok(Listed {
            image: ImageRef { etag: answer.e_tag().map(unquoted), version_id: None, ..image.clone() },
            bytes: answer.content_length().and_then(|n| u64::try_from(n).ok()),
            modified: answer.last_modified().and_then(instant),
        })
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

/// An object as it is listed, its key still encoded where the store says so: by AWS as a form is, where `+` is a space, by others with %20. A
/// literal `+` is %2B in either.
fn listed(bucket: &str, object: &aws_sdk_s3::types::Object, encoded: bool) -> Result<Listed, StoreError> {
    let key = object.key().unwrap_or_default();
    let form = key.replace('+', "%20");
    let key = if encoded {
        percent_decode_str(&form).decode_utf8().map_err(|_| {
            let what = format!("the bucket \"{bucket}\" has a key that is not UTF-8, as the store lists it: {key}");
            StoreError::Down(what)
        })?
    } else {
        key.into()
    };
    Ok(Listed {
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

fn changed() -> StoreError {
    StoreError::Missing("the object has changed since the job was made: its ETag differs".into())
}

fn unquoted(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

fn instant(time: &DateTime) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(time.as_nanos()).ok()
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
