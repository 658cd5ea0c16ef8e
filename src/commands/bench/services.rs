//! The services, as a worker uses them, and without a trace left in any.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::UsageError;
use super::load::{Interrupted, Tally, count};
use super::parts::Pipeline;
use super::sample::{self, Image, Sample};
use super::{Bench, Objects};
use crate::broker::Echo;
use crate::config::{Bucket, Config};
use crate::job::event::{EventContext, event};
use crate::job::{Digests, ImageRef, Judgement, Lane, Scores, Verdict, verdict_id};
use crate::lanes::Gate;
use crate::ledger::{NewVerdict, Scratch};
use crate::life::{self, CommitQueue};
use crate::objects::{DownloadGates, FetchError, Fetcher, KeyRange};
use crate::worker::{self, default_prefetch};

/// Objects of a prefix that are fetched, over and over if need be.
const OBJECTS: usize = 1_000;

/// A part that was measured, and with how much in flight.
pub(super) struct Service {
    pub in_flight: usize,
    pub tally: Tally,
}

/// What was named as s3://.
pub(super) struct Storage {
    fetcher: Fetcher,
    gates: DownloadGates,
    objects: Vec<ImageRef>,
    downloads: usize,
    fetched: AtomicU64,
    bytes: AtomicU64,
}

impl Storage {
    /// Opens the store and looks for the objects.
    ///
    /// # Errors
    /// When the store cannot be used, a bucket is not allowed, or there is nothing.
    pub(super) async fn open(references: &[&str], config: &Config) -> anyhow::Result<Self> {
        let mut config = config.clone();
        let mut parts = Vec::new();
        for text in references {
            let (bucket, key) = text["s3://".len()..].split_once('/').unwrap_or((&text["s3://".len()..], ""));
            if bucket.is_empty() {
                return Err(UsageError(format!("\"{text}\" is not s3://bucket/key or s3://bucket/prefix")).into());
            }
            parts.push((bucket.to_owned(), key.to_owned()));
        }
        if config.buckets.is_empty() {
            config.buckets = parts.iter().map(|(bucket, _)| Bucket::Name(bucket.clone())).collect();
        }
        let fetcher = Fetcher::open(&config).await?;
        let mut objects = Vec::new();
        for (bucket, key) in parts {
            if !fetcher.allows(&bucket) {
                let what =
                    format!("the bucket \"{bucket}\" is not allowed\n  hint: add it to `buckets`, or give --bucket");
                return Err(UsageError(what).into());
            }
            let image = ImageRef { bucket: bucket.clone(), key: key.clone(), version_id: None, etag: None };
            if !key.is_empty() && fetcher.head(&image).await.is_ok() {
                objects.push(image);
                continue;
            }
            let place = format!("s3://{bucket}/{key}");
            let mut listed = fetcher.list(KeyRange { bucket, prefix: key, after: None });
            while objects.len() < OBJECTS
                && let Some(object) = listed.next().await
            {
                let object = object.with_context(|| format!("listing {place}"))?;
                if object.bytes.is_none_or(|bytes| (1..=config.storage.max_object_bytes).contains(&bytes)) {
                    objects.push(object.image);
                }
            }
        }
        if objects.is_empty() {
            bail!(
                "there is nothing at {} that a worker would fetch\n  hint: name s3://bucket/key or s3://bucket/prefix with images in it",
                references.join(", ")
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

    /// Objects that are fetched in turn.
    pub(super) fn objects(&self) -> usize {
        self.objects.len()
    }

    /// What was fetched.
    pub(super) fn fetched(&self) -> Objects {
        let [bytes, objects] = [&self.bytes, &self.fetched].map(|counter| count(counter.load(Ordering::Relaxed)));
        Objects { different: self.objects.len(), mean_bytes: bytes / objects }
    }

    async fn fetch(&self, image: &ImageRef) -> anyhow::Result<Bytes> {
        let blob = self.fetcher.fetch(image, Lane::Live, &self.gates).await;
        let bytes = blob.map_err(|e: FetchError| anyhow::anyhow!("fetching {}: {e}", image.uri()))?.bytes;
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// Tells files and folders from s3:// references.
pub(super) fn sort(paths: &[PathBuf]) -> (Vec<PathBuf>, Vec<&str>) {
    let remote = |path: &Path| path.to_str().is_some_and(|path| path.starts_with("s3://"));
    let local = paths.iter().filter(|path| !remote(path)).cloned().collect();
    (local, paths.iter().filter_map(|path| path.to_str()).filter(|path| path.starts_with("s3://")).collect())
}

impl Bench<'_> {
    /// Some of the objects, from all over them, to measure the rest with.
    pub(super) async fn some_objects(&self, storage: &Storage) -> anyhow::Result<Vec<Bytes>> {
        let step = storage.objects.len().div_ceil(sample::MOST);
        let mut files = Vec::new();
        for image in storage.objects.iter().step_by(step) {
            files.push(self.stop.run_until_cancelled(storage.fetch(image)).await.ok_or(Interrupted)??);
        }
        Ok(files)
    }

    /// Fetches objects in turn and lets them go.
    pub(super) async fn fetching(&self, storage: &Storage) -> anyhow::Result<Service> {
        let mut turns = storage.objects.iter().cycle();
        let tally = self.load(storage.downloads, 1).run(|| {
            let image = turns.next();
            async move {
                let Some(image) = image else { return Ok(()) };
                storage.fetch(image).await.map(drop)
            }
        });
        Ok(Service { in_flight: storage.downloads, tally: tally.await? })
    }

    /// Commits verdicts like those of the sample, in groups as a worker does, into a ledger that is taken away again.
    pub(super) async fn committing(&self, sample: &Sample, pipeline: &Pipeline) -> anyhow::Result<Service> {
        let scratch = Scratch::create(self.config).await?;
        // Whatever a worker holds can be waiting for its commit.
        let in_flight = self.prefetch().into();
        let (commits, writing) = CommitQueue::new(Arc::clone(&scratch.ledger), life::linger_limit(in_flight));
        let writing = tokio::spawn(writing);
        let digests = self.screen.digests(None).unwrap_or_default();
        let mut turns = sample
            .images
            .iter()
            .zip(&pipeline.judged)
            .filter_map(|(image, judged)| Some((image, judged.as_ref()?)))
            .cycle();
        let committed = self.load(in_flight, 1).run(|| {
            let entry = turns.next().map(|(image, judged)| self.entry(image, judged, &digests));
            let commits = commits.clone();
            async move {
                let Some(entry) = entry else { return Ok(()) };
                Ok(commits.commit(&entry, |_| None).await.map(drop)?)
            }
        });
        let tally = committed.await;
        drop(commits);
        writing.await?;
        scratch.remove().await?;
        Ok(Service { in_flight, tally: tally? })
    }

    /// A verdict on an image that nobody has, with its event, where such a one is announced.
    fn entry(&self, image: &Image, (judgement, scores): &(Judgement, Scores), detectors: &Digests) -> NewVerdict {
        let (job_id, now) = (Uuid::new_v4().to_string(), OffsetDateTime::now_utc());
        let key = format!("bench/{job_id}.jpg");
        let verdict = Verdict {
            id: verdict_id(&job_id),
            image: ImageRef { bucket: "bench".into(), key, version_id: None, etag: Some(job_id.clone()) },
            // Content that nobody had before, as an index has it.
            sha256: Some(Sha256::digest(&job_id).into()),
            job_id,
            lane: Lane::Live,
            bytes: Some(image.bytes.len() as u64),
            seen: Some(image.seen),
            judgement: judgement.clone(),
            scores: Some(scores.clone()),
            detectors: detectors.clone(),
            policy: self.screen.policy().reference.clone(),
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

    /// Deliveries a lane of a worker that was told no other number.
    fn prefetch(&self) -> u16 {
        default_prefetch(self.screen.max_batch(), self.screen.session_count(), worker::max_objects(self.config))
    }

    /// Sends messages like jobs to a queue of our own, and takes them from there.
    pub(super) async fn echoing(&self) -> anyhow::Result<Service> {
        let in_flight = self.config.outbox.in_flight;
        let echo = Echo::open(self.config.queue()?, &self.config.prefix, (self.prefetch(), in_flight)).await?;
        let job = r#"{"image": "s3://bench/2026/11/25/0123456789abcdef0123456789abcdef.jpg"}"#;
        let tally = self.load(in_flight, 1).run(|| async { Ok(echo.send(job).await?) }).await;
        echo.close().await?;
        Ok(Service { in_flight, tally: tally? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_told_from_files() {
        let paths = ["a/b.jpg", "s3://bucket/key", "/srv/s3"].map(PathBuf::from);
        let (local, remote) = sort(&paths);
        assert_eq!((local.len(), remote), (2, vec!["s3://bucket/key"]));
    }
}
