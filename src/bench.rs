//! Measures what this machine does with the configured detectors, and what limits it.
//!
//! Each part is measured alone (`parts`, `services`) under a steady load (`load`) and with the same images (`sample`),
//! then the screen as a whole. `findings` draws the conclusions. Nothing in here reads arguments or prints.

mod findings;
mod load;
mod parts;
mod sample;
mod services;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error_text;
use crate::policy::PolicySet;
use crate::screen::decode::DecoderPool;
use crate::screen::infer::LARGEST_BATCH;
use crate::screen::{self, Screen, StartError};
use findings::smallest_efficient_batch;
use load::SteadyLoad;
use parts::{batch_sizes, distinct_geometries, single_decoder_pool};
use sample::SampleCandidates;
use services::StorageTarget;

pub(crate) use findings::{Conclusions, MillionImages, RecommendedOptions};
pub(crate) use load::{Interrupted, LoadResult, as_f64};
pub(crate) use parts::{BatchResult, DecodingResult, PipelineResult, SessionResult};
pub(crate) use sample::{Sample, SampleOrigin};
pub(crate) use services::{FetchedObjects, ObjectPath, ServiceResult};

/// Follows the measurements while they run.
pub(crate) trait BenchObserver: Send + Sync {
    /// This many measurements will follow.
    fn planned(&self, measurements: u64);
    fn started(&self, measurement: &str);
    fn completed(&self);
    /// A file was left out of the sample because of this error.
    fn unreadable(&self, error: &anyhow::Error);
}

/// What every measurement needs.
pub(crate) struct Bench<'a> {
    pub config: &'a Config,
    pub screen: &'a Screen,
    pub policies: &'a PolicySet,
    /// How long each part is measured.
    pub time: Duration,
    /// Ends the measuring early.
    pub stop: CancellationToken,
    pub observer: Arc<dyn BenchObserver>,
}

/// The figures of all parts.
pub(crate) struct BenchReport {
    pub sample: Sample,
    pub one_decoder: DecodingResult,
    pub all_decoders: DecodingResult,
    pub sessions: Vec<SessionResult>,
    pub pipeline: PipelineResult,
    pub storage: ServiceMeasurement,
    /// Where storage was measured.
    pub objects: Option<FetchedObjects>,
    pub ledger: ServiceMeasurement,
    pub broker: ServiceMeasurement,
}

/// The figures of a service, or why there are none.
pub(crate) enum ServiceMeasurement {
    Measured(ServiceResult),
    /// Not asked for, with the reason.
    Skipped(&'static str),
    /// The service is configured but does not work.
    Failed(String),
}

impl BenchReport {
    /// Why configured services have no figures.
    pub(crate) fn failures(&self) -> Vec<&str> {
        let services = [&self.ledger, &self.broker].into_iter();
        services
            .filter_map(|measurement| match measurement {
                ServiceMeasurement::Failed(why) => Some(why.as_str()),
                ServiceMeasurement::Measured(_) | ServiceMeasurement::Skipped(_) => None,
            })
            .collect()
    }
}

impl ServiceMeasurement {
    pub(crate) fn result(&self) -> Option<&ServiceResult> {
        match self {
            Self::Measured(service) => Some(service),
            Self::Skipped(_) | Self::Failed(_) => None,
        }
    }

    pub(crate) fn why_not(&self) -> Option<&str> {
        match self {
            Self::Measured(_) => None,
            Self::Skipped(why) => Some(why),
            Self::Failed(why) => Some(why),
        }
    }
}

/// Checks the configured services' URLs before any measurement, and starts the screen. Without a configured
/// `inference.max_batch` the sessions accept the largest batch, so that every size can be measured.
///
/// # Errors
/// When a URL is invalid, or detectors, policy or decoders do not start.
pub(crate) fn start_screen(config: &Config) -> anyhow::Result<(Screen, PolicySet)> {
    let mut config = config.clone();
    if config.inference.max_batch == 0 {
        config.inference.max_batch = LARGEST_BATCH as usize;
    }
    Ok(screen::start(&config)?)
}

impl Bench<'_> {
    /// Runs one measurement after another, never two at a time. The sample is made of the `local` files and folders,
    /// else of the `remote` objects, else of the bundled samples.
    ///
    /// # Errors
    /// [`Interrupted`], or when images cannot be read or the screen fails. A ledger or broker that does not work is
    /// part of the report.
    pub(crate) async fn measure(&self, local: Vec<PathBuf>, remote: &[ObjectPath]) -> anyhow::Result<BenchReport> {
        let config = self.config;
        let (has_ledger, has_queue) = (!config.ledger.url.is_empty(), !config.queue.is_empty());
        let batches: usize = self.screen.engines().iter().map(|engine| batch_sizes(engine.max_batch()).len()).sum();
        let services = [!remote.is_empty(), has_ledger, has_queue].into_iter().filter(|is| *is).count();
        self.observer.planned((4 + batches + services) as u64);

        let target = match remote {
            [] => None,
            _ => Some(self.stop.run_until_cancelled(StorageTarget::open(remote, config)).await.ok_or(Interrupted)??),
        };
        let pool = single_decoder_pool(&config.decode).map_err(StartError::from)?;
        let sample = self.step("choosing images", self.choose_sample(local, target.as_ref(), &pool)).await?;
        let one_decoder = self.step("one decoder", self.measure_decoding(&sample, &pool, 1)).await?;
        drop(pool);
        let decoders = DecoderPool::thread_count(&config.decode);
        let decoding = self.measure_decoding(&sample, self.screen.decoders(), decoders);
        let all_decoders = self.step(&format!("{decoders} decoders"), decoding).await?;
        let sessions = self.measure_sessions(&sample).await?;
        let pipeline = self.step("the pipeline, from memory", self.measure_pipeline(&sample)).await?;

        let (storage, objects) = match &target {
            None => (ServiceMeasurement::Skipped("no PATH names s3://"), None),
            Some(target) => {
                let result = self.step("storage", self.measure_storage(target)).await?;
                (ServiceMeasurement::Measured(result), Some(target.fetched_objects()))
            }
        };
        let ledger = match has_ledger {
            true => report_failure(self.step("ledger", self.measure_ledger(&sample, &pipeline)).await)?,
            false => ServiceMeasurement::Skipped("no `ledger` is configured"),
        };
        let broker = match has_queue {
            true => report_failure(self.step("broker", self.measure_broker()).await)?,
            false => ServiceMeasurement::Skipped("no `queue` is configured"),
        };
        Ok(BenchReport { sample, one_decoder, all_decoders, sessions, pipeline, storage, objects, ledger, broker })
    }

    async fn choose_sample(
        &self,
        local: Vec<PathBuf>,
        target: Option<&StorageTarget>,
        pool: &DecoderPool,
    ) -> anyhow::Result<Sample> {
        let candidates = match target {
            Some(target) if local.is_empty() => {
                let files = self.fetch_sample(target).await?;
                SampleCandidates { origin: SampleOrigin::Paths, found: target.object_count(), files }
            }
            _ => {
                let limit = self.config.storage.max_object_bytes;
                SampleCandidates::of(local, limit, &self.stop, &self.observer).await?
            }
        };
        let geometries = distinct_geometries(self.screen.engines());
        Sample::of(candidates, (pool, &geometries), self.time, &self.stop).await
    }

    /// Measures every session with every batch size, and then limits each to the batch that a worker would choose:
    /// the pipeline must run as it does in a worker.
    async fn measure_sessions(&self, sample: &Sample) -> anyhow::Result<Vec<SessionResult>> {
        let mut sessions = Vec::new();
        for engine in self.screen.engines() {
            let mut batches = Vec::new();
            for size in batch_sizes(engine.max_batch()) {
                let what = format!("{}, batches of {size}", engine.detector.name);
                batches.push(self.step(&what, self.measure_batch(sample, engine, size)).await?);
            }
            let session = SessionResult {
                detector: engine.detector.name.clone(),
                digest: engine.detector.digest.clone(),
                device: engine.device.clone(),
                batches,
            };
            if self.config.inference.max_batch == 0 {
                engine.lower_max_batch(smallest_efficient_batch(&session.rates()));
            }
            sessions.push(session);
        }
        Ok(sessions)
    }

    async fn step<T>(&self, measurement: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.observer.started(measurement);
        let outcome = work.await;
        self.observer.completed();
        outcome
    }

    fn load(&self, in_flight: usize, round: usize) -> SteadyLoad<'_> {
        SteadyLoad { in_flight, round, time: self.time, stop: &self.stop }
    }
}

/// A service that fails is reported and does not end the other measurements.
fn report_failure(measured: anyhow::Result<ServiceResult>) -> anyhow::Result<ServiceMeasurement> {
    match measured {
        Ok(service) => Ok(ServiceMeasurement::Measured(service)),
        Err(e) if e.is::<Interrupted>() => Err(e),
        Err(e) => Ok(ServiceMeasurement::Failed(error_text(e.as_ref()))),
    }
}
