//! The sources of a backfill: a listing, an inventory, a manifest. Each yields its objects in a fixed order, and with every
//! object a mark, behind which a later run can continue.

mod inventory;
mod lines;
mod manifest;
mod parse;

use std::fmt;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::RETRY_DEADLINE;
use super::filter::ObjectFilter;
use crate::error_text::Described;
use crate::job::ImageRef;
use crate::objects::{Fetcher, KeyRange, ListedObject, StoreError};
use crate::retry::{self, Delays};
pub use parse::{SourceNameError, allowed_buckets};

/// Objects whose properties are requested one by one, concurrently.
const MAX_CONCURRENT_HEADS: usize = 64;

/// Where the objects of a backfill come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackfillSource {
    /// All objects of a bucket whose key begins with a prefix.
    Prefix {
        bucket: String,
        /// May be empty, and need not end with a slash.
        prefix: String,
    },
    /// The `manifest.json` of an S3 Inventory in CSV.
    Inventory(ListLocation),
    /// A manifest of Amazon Rekognition: JSON lines with `source-ref`.
    Manifest(ListLocation),
}

/// Where an inventory or a manifest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListLocation {
    Object(ImageRef),
    File {
        path: PathBuf,
        /// Path, length and time of the file, to recognise a changed one; empty before [`BackfillSource::pin`].
        state: String,
    },
}

/// One entry of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceEntry {
    /// A later run continues behind this mark.
    pub mark: String,
    /// `None` for an entry that is no present object, such as an older version.
    pub object: Option<ListedObject>,
}

/// Why a source cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot read {location}: {error}")]
    File {
        location: ListLocation,
        #[source]
        error: std::io::Error,
    },
    /// The root file system may be read-only, as in a container.
    #[error(
        "cannot copy {location} to a temporary file in {}: {error}\n  hint: name a folder that can be written with the variable TMPDIR, or mount one there", std::env::temp_dir().display()
    )]
    TemporaryFile {
        location: ListLocation,
        #[source]
        error: std::io::Error,
    },
    /// There is no such inventory or manifest.
    #[error("{location}: {error}")]
    Missing {
        location: Box<ListLocation>,
        #[source]
        error: Described,
    },
    #[error("{location}: not the manifest.json of an S3 Inventory: {error}")]
    NotAnInventory {
        location: ListLocation,
        #[source]
        error: serde_json::Error,
    },
    /// The content of an inventory or a manifest is invalid.
    #[error("{location}: {what}")]
    Invalid { location: ListLocation, what: String },
}

impl SourceError {
    /// Whether a retry may succeed.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Store(StoreError::Down(_) | StoreError::BucketDown(_) | StoreError::Unclear(_)))
    }
}

impl fmt::Display for ListLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(object) => f.write_str(&object.uri()),
            Self::File { path, .. } => path.display().fmt(f),
        }
    }
}

impl fmt::Display for BackfillSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Inventory(location) => write!(f, "inventory {location}"),
            Self::Manifest(location) => write!(f, "manifest {location}"),
        }
    }
}

impl BackfillSource {
    /// Ties an inventory or manifest to its present content: a mark in it must not be applied to other content.
    ///
    /// # Errors
    /// When it does not exist or cannot be accessed.
    pub async fn pin(self, fetcher: &Fetcher) -> Result<Self, SourceError> {
        Ok(match self {
            Self::Prefix { .. } => self,
            Self::Inventory(location) => Self::Inventory(location.pin(fetcher).await?),
            Self::Manifest(location) => Self::Manifest(location.pin(fetcher).await?),
        })
    }

    /// A text that is different for every source, and for every content of an inventory or manifest.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Inventory(ListLocation::Object(list)) | Self::Manifest(ListLocation::Object(list)) => {
                format!("{self} {}", list.etag.as_deref().unwrap_or_default())
            }
            Self::Inventory(ListLocation::File { state, .. }) | Self::Manifest(ListLocation::File { state, .. }) => {
                format!("{self} {state}")
            }
            Self::Prefix { .. } => self.to_string(),
        }
    }

    /// The entries behind a mark, as the listing or file has them.
    pub fn entries(
        &self,
        fetcher: &Arc<Fetcher>,
        after: Option<String>,
    ) -> BoxStream<'static, Result<SourceEntry, SourceError>> {
        match self {
            Self::Prefix { bucket, prefix } => {
                let part = KeyRange { bucket: bucket.clone(), prefix: prefix.clone(), after };
                let item = |object: ListedObject| SourceEntry { mark: object.image.key.clone(), object: Some(object) };
                fetcher.list(part).map(move |listed| Ok(item(listed?))).boxed()
            }
            Self::Inventory(location) => inventory::entries(location.clone(), Arc::clone(fetcher), after),
            Self::Manifest(location) => manifest::entries(location.clone(), Arc::clone(fetcher), after),
        }
    }

    /// The objects behind a mark, each with the properties that filtering and comparing need. Waits for a store that is
    /// down.
    pub fn objects(
        &self,
        fetcher: &Arc<Fetcher>,
        filter: &ObjectFilter,
        after: Option<String>,
    ) -> BoxStream<'static, Result<SourceEntry, SourceError>> {
        let reader = ResumingReader {
            source: self.clone(),
            fetcher: Arc::clone(fetcher),
            filter: Arc::new(filter.clone()),
            after,
            entries: None,
            has_begun: false,
            failing_since: None,
            pauses: Delays::default(),
        };
        stream::unfold(reader, |mut reader| async move { Some((reader.next().await?, reader)) }).boxed()
    }
}

/// Reads a source, and continues behind the last mark after a failure.
struct ResumingReader {
    source: BackfillSource,
    fetcher: Arc<Fetcher>,
    filter: Arc<ObjectFilter>,
    after: Option<String>,
    entries: Option<BoxStream<'static, Result<SourceEntry, SourceError>>>,
    has_begun: bool,
    failing_since: Option<Instant>,
    pauses: Delays,
}

impl ResumingReader {
    async fn next(&mut self) -> Option<Result<SourceEntry, SourceError>> {
        loop {
            let entries = match &mut self.entries {
                Some(entries) => entries,
                None => {
                    let (fetcher, filter) = (Arc::clone(&self.fetcher), Arc::clone(&self.filter));
                    let complete = self.source.entries(&self.fetcher, self.after.clone()).map(move |entry| {
                        let (fetcher, filter) = (Arc::clone(&fetcher), Arc::clone(&filter));
                        async move { complete_entry(entry?, &fetcher, &filter).await }
                    });
                    self.entries.insert(complete.buffered(MAX_CONCURRENT_HEADS).boxed())
                }
            };
            match entries.next().await? {
                Ok(entry) => {
                    self.after = Some(entry.mark.clone());
                    self.has_begun = true;
                    if self.failing_since.take().is_some() {
                        self.pauses.reset();
                    }
                    return Some(Ok(entry));
                }
                // A source that never yielded an entry is more likely misspelt than down.
                Err(e)
                    if self.has_begun
                        && e.may_pass()
                        && self.failing_since.get_or_insert_with(Instant::now).elapsed() < RETRY_DEADLINE =>
                {
                    let pause = self.pauses.next_delay();
                    tracing::warn!(source = %self.source, error = %e, pause_ms = pause.as_millis(), "reading the source failed; continuing after a pause");
                    self.entries = None;
                    tokio::time::sleep(pause).await;
                }
                Err(e) => {
                    // Nothing may follow an error: a later mark would skip the entries that failed.
                    self.entries = Some(stream::empty().boxed());
                    return Some(Err(e));
                }
            }
        }
    }
}

/// Requests the properties of an object that an inventory or manifest does not have.
async fn complete_entry(
    entry: SourceEntry,
    fetcher: &Fetcher,
    filter: &ObjectFilter,
) -> Result<SourceEntry, SourceError> {
    let Some(object) = &entry.object else { return Ok(entry) };
    if filter.is_decidable(object) || !filter.accepts_key(object) {
        return Ok(entry);
    }
    let transient = |e: &StoreError| matches!(e, StoreError::Unclear(_));
    match retry::retry_briefly(transient, || fetcher.head(&object.image)).await {
        Ok(object) => Ok(SourceEntry { object: Some(object), ..entry }),
        // The worker will find the same, and record the outcome `missing`.
        Err(StoreError::Missing(_)) => Ok(entry),
        // A response to HEAD does not show whether one object is denied or the whole bucket.
        Err(StoreError::Denied(why)) => match fetcher.probe(&object.image.bucket).await {
            Ok(()) => Ok(entry),
            Err(store) => Err(StoreError::Down(Described::new(format!("{why}; {store}"), store)).into()),
        },
        Err(e) => Err(e.into()),
    }
}

impl ListLocation {
    /// Opens the inventory or manifest. An object is copied to a temporary file first, since a backfill reads it for hours.
    async fn file(&self, fetcher: &Fetcher) -> Result<File, SourceError> {
        let failed = |error| SourceError::File { location: self.clone(), error };
        let object = match self {
            Self::File { path, .. } => return File::open(path).map_err(failed),
            Self::Object(object) => object,
        };
        let mut file =
            tempfile::tempfile().map_err(|error| SourceError::TemporaryFile { location: self.clone(), error })?;
        let opened = fetcher.open_object(object).await.map_err(|e| match e {
            StoreError::Missing(error) => SourceError::Missing { location: self.clone().into(), error },
            other => other.into(),
        })?;
        let (mut body, mut bytes) = (opened.body, 0);
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            bytes += chunk.len() as u64;
            file.write_all(&chunk).map_err(failed)?;
        }
        if bytes != opened.length {
            let truncated = format!("{self} was cut short: {bytes} of {} bytes arrived", opened.length);
            return Err(StoreError::Unclear(truncated.into()).into());
        }
        file.rewind().map_err(failed)?;
        Ok(file)
    }

    async fn pin(self, fetcher: &Fetcher) -> Result<Self, SourceError> {
        match self {
            Self::Object(object) => match fetcher.head(&object).await {
                Ok(listed) => Ok(Self::Object(listed.image)),
                Err(StoreError::Missing(error)) => {
                    Err(SourceError::Missing { location: Self::Object(object).into(), error })
                }
                Err(e) => Err(e.into()),
            },
            Self::File { path, .. } => {
                let state = path.canonicalize().and_then(|whole| {
                    let found = whole.metadata()?;
                    Ok(format!("{} {} {:?}", whole.display(), found.len(), found.modified()?))
                });
                match state {
                    Ok(state) => Ok(Self::File { path, state }),
                    Err(error) => Err(SourceError::File { location: Self::File { path, state: String::new() }, error }),
                }
            }
        }
    }

    fn invalid(&self, what: impl Into<String>) -> SourceError {
        SourceError::Invalid { location: self.clone(), what: what.into() }
    }
}
