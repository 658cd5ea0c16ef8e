//! The services, used as a worker uses them, without leaving anything behind in them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Bench;
use super::load::{Interrupted, LoadResult, as_f64};
use super::parts::PipelineResult;
use super::sample::{self, Sample, SampleImage};
use crate::broker::Echo;
use crate::config::{Bucket, Config, ConfigError};
use crate::job::event::{EventContext, event};
use crate::job::{BankAnswers, Digests, Facts, ImageRef, Lane, Verdict, verdict_id};
use crate::lanes::Gate;
use crate::ledger::{NewVerdict, Scratch};
use crate::life::{self, CommitQueue};
use crate::objects::{DownloadGates, Fetcher, KeyRange};
use crate::policy::judge::judge;
use crate::worker::{self, default_prefetch};

/// Objects of a prefix that are fetched, repeatedly if there are few.
const MAX_OBJECTS: usize = 1_000;

/// The figures of one service, and the operations that were in flight.
pub(crate) struct ServiceResult {
    pub in_flight: usize,
    pub result: LoadResult,
}

/// `s3://bucket/key` or `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectPath {
    pub bucket: String,
    /// A key or the beginning of keys; empty for the whole bucket.
    pub key: String,
}

impl ObjectPath {
    /// Parses what follows `s3://`; `None` where it names no bucket.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let path = text.strip_prefix("s3://")?;
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        (!bucket.is_empty()).then(|| Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

/// An object store, and the objects to fetch from it.
pub(super) struct StorageTarget {
    fetcher: Fetcher,
    gates: DownloadGates,
    objects: Vec<ImageRef>,
    downloads: usize,
    fetched: AtomicU64,
    bytes: AtomicU64,
}

/// The objects that were fetched.
pub(crate) struct FetchedObjects {
    /// The number of different objects.
    pub different: usize,
    pub mean_bytes: f64,
}

impl StorageTarget {
    /// Opens the store and lists the objects.
    ///
    /// # Errors
    /// When the store cannot be used, a bucket is not allowed, or no object is found.
    pub(super) async fn open(paths: &[ObjectPath], config: &Config) -> anyhow::Result<Self> {
        let mut config = config.clone();
        if config.buckets.is_empty() {
            config.buckets = paths.iter().map(|path| Bucket::Name(path.bucket.clone())).collect();
        }
        let fetcher = Fetcher::open(&config).await?;
        let mut objects = Vec::new();
        for path in paths {
            let ObjectPath { bucket, key } = path.clone();
            if !fetcher.allows(&bucket) {
                let what =
                    format!("the bucket \"{bucket}\" is not allowed\n  hint: add it to `buckets`, or give --bucket");
                return Err(ConfigError::Invalid { option: "buckets".into(), what }.into());
            }
            let image = ImageRef { bucket: bucket.clone(), key: key.clone(), version_id: None, etag: None };
            if !key.is_empty() && fetcher.head(&image).await.is_ok() {
                objects.push(image);
                continue;
            }
            let mut listed = fetcher.list(KeyRange { bucket, prefix: key, after: None });
            while objects.len() < MAX_OBJECTS
                && let Some(object) = listed.next().await
            {
                let object = object.with_context(|| format!("cannot list {path}"))?;
                if object.bytes.is_none_or(|bytes| (1..=config.storage.max_object_bytes).contains(&bytes)) {
                    objects.push(object.image);
                }
            }
        }
        if objects.is_empty() {
            let paths: Vec<_> = paths.iter().map(ToString::to_string).collect();
            bail!(
                "no object to fetch at {}: all are missing, empty or larger than `storage.max_object_bytes`\n  hint: name s3://bucket/key or s3://bucket/prefix with images in it",
                paths.join(", ")
            );
        }
        let limits = &config.storage;
        let gates =
            DownloadGates { downloads: Gate::new(limits.downloads as u64), bytes: Gate::new(limits.memory_bytes) };
        Ok(Self {
            fetcher,
            gates,
            objects,
            downloads: limits.downloads,
            fetched: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        })
    }

    pub(super) fn object_count(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn fetched_objects(&self) -> FetchedObjects {
        let [bytes, objects] = [&self.bytes, &self.fetched].map(|counter| as_f64(counter.load(Ordering::Relaxed)));
        FetchedObjects { different: self.objects.len(), mean_bytes: bytes / objects }
    }

    async fn fetch(&self, image: &ImageRef) -> anyhow::Result<Bytes> {
        let blob = self.fetcher.fetch(image, Lane::Live, &self.gates).await;
        let bytes = blob.with_context(|| format!("cannot fetch {}", image.uri()))?.bytes;
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

impl Bench<'_> {
    /// Fetches some of the objects, evenly spread, as images for the sample.
    pub(super) async fn fetch_sample(&self, target: &StorageTarget) -> anyhow::Result<Vec<Bytes>> {
        let step = target.objects.len().div_ceil(sample::MAX_IMAGES);
        let mut files = Vec::new();
        for image in target.objects.iter().step_by(step) {
            files.push(self.stop.run_until_cancelled(target.fetch(image)).await.ok_or(Interrupted)??);
        }
        Ok(files)
    }

    /// Fetches the objects in turn and discards them.
    pub(super) async fn measure_storage(&self, target: &StorageTarget) -> anyhow::Result<ServiceResult> {
        let mut objects = target.objects.iter().cycle();
        let result = self.load(target.downloads, 1).run(|| {
            let image = objects.next();
            async move {
                let Some(image) = image else { return Ok(()) };
                target.fetch(image).await.map(drop)
            }
        });
        Ok(ServiceResult { in_flight: target.downloads, result: result.await? })
    }

    /// Commits verdicts like those of the sample, in groups as a worker does, to a temporary ledger.
    pub(super) async fn measure_ledger(
        &self,
        sample: &Sample,
        pipeline: &PipelineResult,
    ) -> anyhow::Result<ServiceResult> {
        let scratch = Scratch::create(self.config).await?;
        // Every delivery that a worker holds can be waiting for its commit.
        let in_flight = self.prefetch().into();
        let (commits, writing) = CommitQueue::new(Arc::clone(&scratch.ledger), life::linger_limit(in_flight));
        let writing = tokio::spawn(writing);
        let digests = self.screen.digests(None).unwrap_or_default();
        let mut screened = sample
            .images
            .iter()
            .zip(&pipeline.facts)
            .filter_map(|(image, facts)| Some((image, facts.as_ref()?)))
            .cycle();
        let committed = self.load(in_flight, 1).run(|| {
            let entry = screened.next().map(|(image, facts)| self.ledger_entry(image, facts, &digests));
            let commits = commits.clone();
            async move {
                let Some(entry) = entry else { return Ok(()) };
                Ok(commits.commit(&entry, &entry.verdict.image, |_, _| None).await.map(drop)?)
            }
        });
        let result = committed.await;
        drop(commits);
        writing.await?;
        scratch.remove().await?;
        Ok(ServiceResult { in_flight, result: result? })
    }

    /// A verdict on an image that does not exist, with its event where the configuration announces such an outcome.
    fn ledger_entry(&self, image: &SampleImage, facts: &Facts, detectors: &Digests) -> NewVerdict {
        let policy = self.policies.fallback();
        let (job_id, now) = (Uuid::new_v4().to_string(), OffsetDateTime::now_utc());
        let key = format!("bench/{job_id}.jpg");
        let verdict = Verdict {
            id: verdict_id(&job_id),
            image: ImageRef { bucket: "bench".into(), key, version_id: None, etag: Some(job_id.clone()) },
            // A different content each time, so that the index on it is used as in production.
            object_at: Some(now),
            sha256: Some(Sha256::digest(&job_id).into()),
            md5: Some([7; 16]),
            job_id,
            lane: Lane::Live,
            bytes: Some(image.bytes.len() as u64),
            seen: Some(image.seen),
            judgement: judge(policy, facts, &BankAnswers::new()),
            facts: Some(facts.clone()),
            detectors: detectors.clone(),
            policy: policy.reference.clone(),
            metadata: None,
            reused_from: None,
            attempts: 1,
            received_at: now,
            decided_at: now,
        };
        let event = event(&verdict, EventContext::default(), &self.config.prefix);
        NewVerdict {
            verdict,
            event: Some(event).filter(|event| self.config.events.publish.contains(&event.routing_key)),
        }
    }

    /// The default number of deliveries per lane of a worker on this machine.
    fn prefetch(&self) -> u16 {
        default_prefetch(self.screen.max_batch(), self.screen.session_count(), worker::max_objects(self.config))
    }

    /// Sends messages like jobs to a temporary queue and consumes them from there.
    pub(super) async fn measure_broker(&self) -> anyhow::Result<ServiceResult> {
        let in_flight = self.config.outbox.in_flight;
        let echo = Echo::open(self.config.queue()?, &self.config.prefix, (self.prefetch(), in_flight)).await?;
        let job = r#"{"image": "s3://bench/2026/11/25/0123456789abcdef0123456789abcdef.jpg"}"#;
        let result = self.load(in_flight, 1).run(|| async { Ok(echo.send(job).await?) }).await;
        echo.close().await?;
        Ok(ServiceResult { in_flight, result: result? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_path_names_a_bucket_and_the_beginning_of_keys() {
        let path = |bucket: &str, key: &str| Some(ObjectPath { bucket: bucket.into(), key: key.into() });
        assert_eq!(ObjectPath::parse("s3://b/a/b"), path("b", "a/b"));
        assert_eq!(ObjectPath::parse("s3://b"), path("b", ""));
        assert_eq!(ObjectPath::parse("s3:///key"), None);
    }
}
