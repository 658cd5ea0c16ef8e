//! Where a backfill takes its objects from: a listing, an inventory, a manifest. Each gives its objects in an order that
//! stays the same, and with each a mark from behind which it can go on.

mod inventory;
mod manifest;

use std::fmt;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::PATIENCE;
use super::filter::Filter;
use crate::job::ImageRef;
use crate::objects::{Fetcher, KeyRange, ListedObject, StoreError};
use crate::retry::{self, Delays};

/// Objects asked for one by one at a time.
const HEADS: usize = 64;

/// Where objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Everything in a bucket whose key begins so.
    Prefix {
        /// The bucket.
        bucket: String,
        /// May be empty, and need not end with a slash.
        prefix: String,
    },
    /// The `manifest.json` of an S3 Inventory in CSV.
    Inventory(Place),
    /// A manifest as Rekognition takes it: JSON lines with `source-ref`.
    Manifest(Place),
}

/// Where a list of images lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the object store.
    Object(ImageRef),
    /// On this machine.
    File {
        /// Where.
        path: PathBuf,
        /// What tells it from another file of that name; empty before [`Source::pin`].
        state: String,
    },
}

/// One entry of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// From behind here the source can go on.
    pub mark: String,
    /// The object; `None` for what is no present object, an older version for one.
    pub object: Option<ListedObject>,
}

/// Why a source gives no more.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file on this machine.
    #[error("{place} cannot be read: {error}")]
    File {
        /// The file.
        place: Place,
        /// What the system says.
        error: std::io::Error,
    },
    /// A list that is not as it should be.
    #[error("{place}: {what}")]
    List {
        /// The list.
        place: Place,
        /// What is wrong with it, and where.
        what: String,
    },
}

impl SourceError {
    /// Whether asking again may help.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Store(StoreError::Down(_) | StoreError::Unclear(_)))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(object) => f.write_str(&object.uri()),
            Self::File { path, .. } => path.display().fmt(f),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Inventory(place) => write!(f, "inventory {place}"),
            Self::Manifest(place) => write!(f, "manifest {place}"),
        }
    }
}

impl Source {
    /// Ties a list to what it holds now: neither a mark in it nor a second reading may be of another one.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn pin(self, fetcher: &Fetcher) -> Result<Self, SourceError> {
        Ok(match self {
            Self::Prefix { .. } => self,
            Self::Inventory(place) => Self::Inventory(place.pin(fetcher).await?),
            Self::Manifest(place) => Self::Manifest(place.pin(fetcher).await?),
        })
    }

    /// Tells it from every other source, and from an earlier state of its list.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Inventory(Place::Object(list)) | Self::Manifest(Place::Object(list)) => {
                format!("{self} {}", list.etag.as_deref().unwrap_or_default())
            }
            Self::Inventory(Place::File { state, .. }) | Self::Manifest(Place::File { state, .. }) => {
                format!("{self} {state}")
            }
            Self::Prefix { .. } => self.to_string(),
        }
    }

    /// Its entries behind a mark, as they are written down.
    pub fn entries(
        &self,
        fetcher: &Arc<Fetcher>,
        after: Option<String>,
    ) -> BoxStream<'static, Result<Item, SourceError>> {
        match self {
            Self::Prefix { bucket, prefix } => {
                let part = KeyRange { bucket: bucket.clone(), prefix: prefix.clone(), after };
                let item = |object: ListedObject| Item { mark: object.image.key.clone(), object: Some(object) };
                fetcher.list(part).map(move |listed| Ok(item(listed?))).boxed()
            }
            Self::Inventory(place) => inventory::entries(place.clone(), Arc::clone(fetcher), after),
            Self::Manifest(place) => manifest::entries(place.clone(), Arc::clone(fetcher), after),
        }
    }

    /// Its objects behind a mark, each with what comparing and filtering it needs. A store that is away is waited for.
    pub fn objects(
        &self,
        fetcher: &Arc<Fetcher>,
        filter: &Filter,
        after: Option<String>,
    ) -> BoxStream<'static, Result<Item, SourceError>> {
        let reading = Reading {
            source: self.clone(),
            fetcher: Arc::clone(fetcher),
            filter: Arc::new(filter.clone()),
            after,
            items: None,
            begun: false,
            failing: None,
            pauses: Delays::default(),
        };
        stream::unfold(reading, |mut reading| async move { Some((reading.next().await?, reading)) }).boxed()
    }
}

/// A source that is being read, and read on after a failure.
struct Reading {
    source: Source,
    fetcher: Arc<Fetcher>,
    filter: Arc<Filter>,
    after: Option<String>,
    items: Option<BoxStream<'static, Result<Item, SourceError>>>,
    begun: bool,
    failing: Option<Instant>,
    pauses: Delays,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<Item, SourceError>> {
        loop {
            let items = match &mut self.items {
                Some(items) => items,
                None => {
                    let (fetcher, filter) = (Arc::clone(&self.fetcher), Arc::clone(&self.filter));
                    let known = self.source.entries(&self.fetcher, self.after.clone()).map(move |item| {
                        let (fetcher, filter) = (Arc::clone(&fetcher), Arc::clone(&filter));
                        async move { known(item?, &fetcher, &filter).await }
                    });
                    self.items.insert(known.buffered(HEADS).boxed())
                }
            };
            match items.next().await? {
                Ok(item) => {
                    self.after = Some(item.mark.clone());
                    self.begun = true;
                    if self.failing.take().is_some() {
                        self.pauses.reset();
                    }
                    return Some(Ok(item));
                }
                // One that never gave anything is more likely misspelt than away.
                Err(e)
                    if self.begun
                        && e.may_pass()
                        && self.failing.get_or_insert_with(Instant::now).elapsed() < PATIENCE =>
                {
                    let pause = self.pauses.next_delay();
                    tracing::warn!(source = %self.source, error = %e, pause_ms = pause.as_millis(), "the source is read on after a pause");
                    self.items = None;
                    tokio::time::sleep(pause).await;
                }
                Err(e) => {
                    // What comes behind an error must not be taken for all there was: the mark would pass over the rest.
                    self.items = Some(stream::empty().boxed());
                    return Some(Err(e));
                }
            }
        }
    }
}

/// Asks the store for what a list does not say of an object.
async fn known(item: Item, fetcher: &Fetcher, filter: &Filter) -> Result<Item, SourceError> {
    let Some(object) = &item.object else { return Ok(item) };
    if filter.knows_enough(object) || !filter.names(object) {
        return Ok(item);
    }
    let transient = |e: &StoreError| matches!(e, StoreError::Unclear(_));
    match retry::retry_briefly(transient, || fetcher.head(&object.image)).await {
        Ok(object) => Ok(Item { object: Some(object), ..item }),
        // The worker says so, and the ledger will have it.
        Err(StoreError::Missing(_)) => Ok(item),
        // The object's own, unless nothing else may be read either: an answer to HEAD does not tell.
        Err(StoreError::Denied(why)) => match fetcher.probe(&object.image.bucket).await {
            Ok(()) => Ok(item),
            Err(store) => Err(StoreError::Down(format!("{why}; {store}")).into()),
        },
        Err(e) => Err(e.into()),
    }
}

impl Place {
    /// The list as a file on this machine. One from the store is copied: it may be read for as long as a backfill takes.
    async fn file(&self, fetcher: &Fetcher) -> Result<File, SourceError> {
        let failed = |error| SourceError::File { place: self.clone(), error };
        let object = match self {
            Self::File { path, .. } => return File::open(path).map_err(failed),
            Self::Object(object) => object,
        };
        let mut file = tempfile::tempfile().map_err(failed)?;
        let opened = fetcher.open_object(object).await.map_err(|e| match e {
            StoreError::Missing(why) => self.wrong(why),
            other => other.into(),
        })?;
        let (mut body, mut bytes) = (opened.body, 0);
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            bytes += chunk.len() as u64;
            file.write_all(&chunk).map_err(failed)?;
        }
        if bytes != opened.length {
            let cut = format!("{self} was cut short: {bytes} of {} bytes arrived", opened.length);
            return Err(StoreError::Unclear(cut).into());
        }
        file.rewind().map_err(failed)?;
        Ok(file)
    }

    async fn pin(self, fetcher: &Fetcher) -> Result<Self, SourceError> {
        match self {
            Self::Object(object) => match fetcher.head(&object).await {
                Ok(listed) => Ok(Self::Object(listed.image)),
                Err(StoreError::Missing(why)) => Err(Self::Object(object).wrong(why)),
                Err(e) => Err(e.into()),
            },
            Self::File { path, .. } => {
                let state = path.canonicalize().and_then(|whole| {
                    let found = whole.metadata()?;
                    Ok(format!("{} {} {:?}", whole.display(), found.len(), found.modified()?))
                });
                match state {
                    Ok(state) => Ok(Self::File { path, state }),
                    Err(error) => Err(SourceError::File { place: Self::File { path, state: String::new() }, error }),
                }
            }
        }
    }

    fn wrong(&self, what: impl Into<String>) -> SourceError {
        SourceError::List { place: self.clone(), what: what.into() }
    }
}
