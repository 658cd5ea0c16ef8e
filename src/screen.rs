//! Bytes → facts. No network, no broker, no database in here, and no policy judges in here.
//!
//! `decode` makes pixels of an image and prepares them for each detector, and `infer` gathers them into batches and scores
//! them. `start` puts the stages together, and `self_test` checks each detector with its golden image. `pixels` and `error`
//! hold what the stages share.
//!
//! `worker`, `scan`, `evaluate` and `bench` share one [`Screen`]. They differ in where bytes come from and where results go.

pub mod decode;
pub(crate) mod error;
pub(crate) mod infer;
pub(crate) mod pixels;
mod self_test;
mod start;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use crate::config::Config;
use crate::detector::{Detector, Geometry};
use crate::fault_injection;
use crate::job::{Digests, Facts, ImageInfo, Lane, Scores, View};
use crate::telemetry::{Stage, metrics, timed};
use decode::{DecodedView, DecoderPool};
use infer::Engine;
use pixels::Pixels;
use start::DetectorStarter;

pub use error::{DecoderProcessError, ProcessEnding, ScreenError, SessionError, Undecodable};
pub(crate) use self_test::{HOW_TO_WRITE, SelfTest};
pub use start::StartError;
pub(crate) use start::{
    CheckedDetector, NewGoldenImage, check_detectors, packages, plan, plan_trial, policies_for, start,
};

/// Everything that turns bytes into facts, ready to run.
pub struct Screen {
    engines: Vec<Engine>,
    decoders: DecoderPool,
    broken: watch::Receiver<Option<String>>,
}

/// What screening one image gave.
#[derive(Debug, Clone)]
pub(crate) struct ScreenedImage {
    /// Format, size and number of frames.
    pub(crate) info: ImageInfo,
    /// The scores and hashes of all views, and damage.
    pub(crate) facts: Facts,
    /// The scores before calibration, where a detector has one; nothing else.
    pub(crate) uncalibrated: Option<Facts>,
    /// What the detectors saw, the first frame over white first.
    pub(crate) seen: Vec<SeenView>,
}

/// What the detectors saw of a view.
#[derive(Debug, Clone)]
pub(crate) struct SeenView {
    /// Which view it is.
    pub(crate) view: View,
    /// By the detector's name.
    pub(crate) by_detector: Vec<(String, Arc<Pixels>)>,
}

impl Screen {
    /// Loads the models, warms every session up, and tests it with its golden image.
    ///
    /// # Errors
    /// When any of that fails. Nothing is replaced silently.
    pub(crate) fn start(config: &Config, detectors: Vec<Detector>) -> Result<Self, StartError> {
        let (report_broken, broken) = watch::channel(None);
        let starter = DetectorStarter::new(config, report_broken)?;
        let mut engines = Vec::new();
        for detector in detectors {
            let (engine, self_test) = starter.start(detector)?;
            tracing::info!(
                detector = engine.detector.name,
                digest = engine.detector.digest,
                device = engine.device,
                max_batch = engine.max_batch(),
                self_test = %self_test,
                "detector ready"
            );
            metrics::detector_loaded(&engine.detector.name, &engine.detector.digest, &engine.device);
            metrics::set_batch_limit(&engine.detector.name, engine.max_batch());
            engines.push(engine);
        }
        Ok(Self { engines, decoders: starter.decoders, broken })
    }

    /// The largest batch of any detector.
    pub(crate) fn max_batch(&self) -> usize {
        self.engines.iter().map(Engine::max_batch).max().unwrap_or(1)
    }

    /// Lowers the largest batch of every detector to this many images.
    pub(crate) fn lower_max_batch(&self, max_batch: usize) {
        for engine in &self.engines {
            engine.lower_max_batch(max_batch);
            metrics::set_batch_limit(&engine.detector.name, engine.max_batch());
        }
    }

    /// The number of sessions.
    pub(crate) fn session_count(&self) -> usize {
        self.engines.len()
    }

    /// The detectors with their sessions, to be measured one by one.
    pub(crate) fn engines(&self) -> &[Engine] {
        &self.engines
    }

    /// The decoders, to be measured alone.
    pub(crate) fn decoders(&self) -> &DecoderPool {
        &self.decoders
    }

    /// Where images are decoded, for people.
    pub(crate) fn describe_decoding(&self) -> String {
        match self.decoders.confinement() {
            Some(confinement) => format!("in decoder processes, {confinement}"),
            None => "on threads of this process: if a decoder crashes, the process ends".into(),
        }
    }

    /// For people, one line for each detector: name, device, batch and labels.
    pub(crate) fn describe_detectors(&self) -> impl Iterator<Item = String> {
        self.engines.iter().map(|engine| {
            let labels: Vec<_> = engine.detector.labels.iter().map(|label| format!("\"{label}\"")).collect();
            format!(
                "{} runs on {}, up to {} per run, labels {}",
                engine.detector.name,
                engine.device,
                if engine.max_batch() == 1 { "1 image".into() } else { format!("{} images", engine.max_batch()) },
                labels.join(", ")
            )
        })
    }

    /// The digests of the detectors asked for, or of all detectors.
    ///
    /// # Errors
    /// The first name that is not a detector's.
    pub(crate) fn digests(&self, names: Option<&[String]>) -> Result<Digests, String> {
        let engines: Vec<&Engine> = match names {
            None => self.engines.iter().collect(),
            Some(names) => {
                let find = |name: &String| self.engines.iter().find(|engine| engine.detector.name == *name);
                names.iter().map(|name| find(name).ok_or_else(|| name.clone())).collect::<Result<_, _>>()?
            }
        };
        Ok(engines.iter().map(|engine| (engine.detector.name.clone(), engine.detector.digest.clone())).collect())
    }

    /// Resolves with the reason once a session is broken. The process has to end then.
    pub(crate) async fn session_broken(&self) -> String {
        let mut broken = self.broken.clone();
        match broken.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "a session's thread ended".into(),
        }
    }

    /// Screens one image with the detectors named in `digests`.
    ///
    /// # Errors
    /// When it cannot be decoded, or a detector cannot score it.
    pub(crate) async fn screen_image(
        &self,
        lane: Lane,
        bytes: Bytes,
        digests: &Digests,
    ) -> Result<ScreenedImage, ScreenError> {
        let engines: Vec<&Engine> = self.engines.iter().filter(|e| digests.contains_key(&e.detector.name)).collect();
        fault_injection::crash_on_deadly_image(&bytes);
        let (geometries, geometry_of) = share_geometries(&engines);
        let decoded = timed(Stage::Decode, self.decoders.decode(lane, bytes, geometries.into())).await?;

        let inputs_of = |decoded: &DecodedView| -> Vec<Arc<Pixels>> {
            geometry_of.iter().map(|index| Arc::clone(&decoded.pixels[*index])).collect()
        };
        let inputs = decoded.views.iter().flat_map(|view| engines.iter().zip(inputs_of(view)));
        let runs = inputs.map(|(engine, pixels)| engine.score(lane, pixels));
        let rows = timed(Stage::Infer, futures_util::future::try_join_all(runs)).await?;
        // One row for each view and detector.
        let facts_of = |rows: Vec<Vec<f32>>| {
            let mut rows = rows.into_iter();
            let mut view_scores =
                || -> Scores { engines.iter().zip(rows.by_ref()).map(|(engine, row)| by_label(engine, row)).collect() };
            Facts::of_views(decoded.views.iter().map(|decoded| (decoded.view, view_scores())))
        };
        let is_calibrated = engines.iter().any(|engine| engine.detector.calibration.is_some());
        let uncalibrated = is_calibrated.then(|| facts_of(rows.clone()));
        let mut rows = rows;
        for (row, engine) in rows.iter_mut().zip(engines.iter().cycle()) {
            let detector = &engine.detector;
            if let Some(calibration) = &detector.calibration {
                calibration.apply(row, detector.multi_label);
            }
        }
        let facts = facts_of(rows);
        let hashes = Some(decoded.views.iter().map(DecodedView::hash).collect());
        let facts = Facts { damage: Some(decoded.damage), hashes, ..facts };
        let names = || engines.iter().map(|engine| engine.detector.name.clone());
        let seen = decoded.views.iter();
        let seen = seen.map(|view| SeenView { view: view.view, by_detector: names().zip(inputs_of(view)).collect() });
        Ok(ScreenedImage { info: decoded.info, facts, uncalibrated, seen: seen.collect() })
    }
}

#[cfg(test)]
impl Screen {
    /// A screen without models, with the detector "fake" and those that the configured rules name: `outputs` makes the scores
    /// of the labels "by human" and "by AI" from the first pixel. `None` fails the run.
    pub(crate) fn with_fake_session(config: &Config, outputs: fn([u8; 3]) -> Option<Vec<f32>>) -> Self {
        let (report_broken, broken) = watch::channel(None);
        let engine = |detector| Engine::with_fake_session(detector, &config.inference, report_broken.clone(), outputs);
        let engines = Self::fake_detectors(config).into_iter().map(engine).collect();
        Self { engines, decoders: DecoderPool::start(&config.decode).unwrap(), broken }
    }

    /// The detectors of [`Screen::with_fake_session`].
    pub(crate) fn fake_detectors(config: &Config) -> Vec<Detector> {
        let named = config.policy.rules.iter().chain(config.policies.iter().flat_map(|policy| &policy.rules));
        let mut names: Vec<&str> = named.filter_map(|rule| rule.detector.as_deref()).chain(["fake"]).collect();
        names.sort_unstable();
        names.dedup();
        let detector = |name: &str| Detector {
            activation: Some(crate::detector::Activation::Identity),
            ..crate::policy::tests::detector(name, &["by human", "by AI"])
        };
        names.into_iter().map(detector).collect()
    }
}

/// The different geometries of these detectors, and for each detector the index of its own: detectors of equal geometry
/// share one result.
fn share_geometries(engines: &[&Engine]) -> (Vec<Geometry>, Vec<usize>) {
    let mut geometries: Vec<Geometry> = Vec::new();
    let mut geometry_of = Vec::new();
    for engine in engines {
        let geometry = engine.detector.geometry;
        let known = geometries.iter().position(|other| *other == geometry);
        geometry_of.push(known.unwrap_or(geometries.len()));
        if known.is_none() {
            geometries.push(geometry);
        }
    }
    (geometries, geometry_of)
}

/// A detector's name, and its scores by label.
fn by_label(engine: &Engine, row: Vec<f32>) -> (String, BTreeMap<String, f32>) {
    (engine.detector.name.clone(), engine.detector.labels.iter().cloned().zip(row).collect())
}
