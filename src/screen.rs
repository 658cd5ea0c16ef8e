//! Bytes → scores → judgement: decode, prepare, gather, infer, judge. No network, no broker, no database in here.
//!
//! `worker` and `scan` share one [`Screen`]; they differ in where bytes come from and where verdicts go.

pub mod decode;
pub mod gather;
pub mod infer;
pub mod judge;
pub mod prepare;
mod proof;
mod start;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use crate::config::Config;
use crate::detector::{Detector, Geometry};
use crate::fault_injection;
use crate::job::{Digests, Judgement, Lane, Scores, Seen};
use crate::policy::Policy;
use crate::telemetry::{Stage, metrics, timed};
use decode::{Pool, Undecodable, Unread};
use infer::{Engine, Unscored};
use prepare::Pixels;
use start::Starter;

pub use proof::{Deviation, Proof, ProofError};
pub use start::{Each, Examined, StartError, examine, packages, plan, policy_for};

/// Everything that turns bytes into a judgement, warm.
pub struct Screen {
    engines: Vec<Engine>,
    decoders: Pool,
    policy: Policy,
    broken: watch::Receiver<Option<String>>,
}

/// What was seen in one image. The scores are those of the most severe frame.
#[derive(Debug, Clone)]
pub struct Sight {
    /// The facts.
    pub seen: Seen,
    /// What the detectors say.
    pub scores: Scores,
    /// What they say of each frame.
    pub frames: Vec<Scores>,
    /// What the policy makes of it.
    pub judgement: Judgement,
    /// What each detector asked for was shown of the first frame.
    pub shown: Vec<(String, Arc<Pixels>)>,
}

/// Why an image has no scores.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unseen {
    /// It is no whole image, or one over the limits.
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    /// Nothing could decode it, whatever it is.
    #[error("{0}")]
    Undecoded(String),
    /// A detector could not score it, or is gone.
    #[error(transparent)]
    Unscored(#[from] Unscored),
}

impl From<Unread> for Unseen {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Undecodable(undecodable) => Self::Undecodable(undecodable),
            Unread::NoDecoder(_) => Self::Undecoded(unread.to_string()),
        }
    }
}

impl Screen {
    /// Loads the packages, checks the policy against them, warms every session up, and proves it by its golden image.
    ///
    /// # Errors
    /// When anything of that cannot be done; nothing is replaced silently.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let (detectors, policy) = plan(config)?;
        Self::start_with(config, detectors, policy)
    }

    /// As [`Screen::start`], with packages that have been read already: a large model takes seconds to hash.
    ///
    /// # Errors
    /// As [`Screen::start`].
    pub fn start_with(config: &Config, detectors: Vec<Detector>, policy: Policy) -> Result<Self, StartError> {
        if policy.is_default {
            let rule = &policy.rules[0];
            tracing::info!(
                detector = rule.detector,
                label = rule.label,
                review_at = %rule.review_at,
                flag_at = %rule.flag_at,
                "no policy is configured, using the default rule"
            );
        }
        let (tell_broken, broken) = watch::channel(None);
        let starter = Starter::new(config, tell_broken)?;
        let mut engines = Vec::new();
        for detector in detectors {
            let (engine, proof) = starter.engine(detector)?;
            tracing::info!(
                detector = engine.detector.name,
                digest = engine.detector.digest,
                place = engine.place,
                max_batch = engine.max_batch(),
                proof = %proof,
                "detector is ready"
            );
            metrics::detector_loaded(&engine.detector.name, &engine.detector.digest, &engine.place);
            metrics::set_batch_limit(&engine.detector.name, engine.max_batch());
            engines.push(engine);
        }
        Ok(Self { engines, decoders: starter.decoders, policy, broken })
    }

    /// The policy that judges.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The largest batch of any detector.
    #[must_use]
    pub fn max_batch(&self) -> usize {
        self.engines.iter().map(Engine::max_batch).max().unwrap_or(1)
    }

    /// Has no detector run more images at a time than that.
    pub fn limit(&self, max_batch: usize) {
        for engine in &self.engines {
            engine.limit(max_batch);
            metrics::set_batch_limit(&engine.detector.name, engine.max_batch());
        }
    }

    /// How many sessions there are.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.engines.len()
    }

    /// The sessions, to be measured one by one.
    #[must_use]
    pub fn engines(&self) -> &[Engine] {
        &self.engines
    }

    /// The decoders, to be measured alone.
    #[must_use]
    pub fn decoders(&self) -> &Pool {
        &self.decoders
    }

    /// Where images are decoded, for people.
    #[must_use]
    pub fn decoding(&self) -> String {
        match self.decoders.layers() {
            Some(layers) => format!("in processes, confined by {layers}"),
            None => "on threads of this process; what kills a decoder would kill it".into(),
        }
    }

    /// One line a detector: name, place, batch and labels.
    pub fn describe(&self) -> impl Iterator<Item = String> {
        self.engines.iter().map(|engine| {
            let labels: Vec<_> = engine.detector.labels.iter().map(|label| format!("\"{label}\"")).collect();
            format!(
                "{} runs on {}, up to {} images a run, labels {}",
                engine.detector.name,
                engine.place,
                engine.max_batch(),
                labels.join(", ")
            )
        })
    }

    /// The digests of the detectors asked for, or of all.
    ///
    /// # Errors
    /// The first name that is not a detector's.
    pub fn digests(&self, wanted: Option<&[String]>) -> Result<Digests, String> {
        let engines = self.wanted(wanted)?;
        Ok(engines.iter().map(|e| (e.detector.name.clone(), e.detector.digest.clone())).collect())
    }

    /// Resolves with the reason once a session is gone. The process has to end then.
    pub async fn broken(&self) -> String {
        let mut broken = self.broken.clone();
        match broken.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "a session's thread ended".into(),
        }
    }

    /// Looks at one image with the detectors named in `digests`.
    ///
    /// # Errors
    /// When it cannot be decoded, or a detector cannot score it.
    pub async fn look(&self, lane: Lane, bytes: Bytes, digests: &Digests) -> Result<Sight, Unseen> {
        let engines: Vec<&Engine> = self.engines.iter().filter(|e| digests.contains_key(&e.detector.name)).collect();
        fault_injection::crash_on_deadly_image(&bytes);
        // Detectors of equal geometry share one result.
        let mut geometries: Vec<Geometry> = Vec::new();
        let mut which = Vec::new();
        for engine in &engines {
            let geometry = engine.detector.geometry;
            let known = geometries.iter().position(|g| *g == geometry);
            which.push(known.unwrap_or(geometries.len()));
            if known.is_none() {
                geometries.push(geometry);
            }
        }
        let decoded = timed(Stage::Decode, self.decoders.decode(lane, bytes, geometries.into())).await?;

        let pairs = decoded
            .frames
            .iter()
            .flat_map(|frame| engines.iter().zip(&which).map(|(e, i)| (*e, Arc::clone(&frame[*i]))));
        let scoring = futures_util::future::try_join_all(pairs.map(|(engine, pixels)| engine.score(lane, pixels)));
        let rows = timed(Stage::Infer, scoring).await?;
        let mut rows = rows.into_iter();
        let frames: Vec<Scores> = decoded
            .frames
            .iter()
            .map(|_| engines.iter().zip(rows.by_ref()).map(|(engine, row)| named(engine, row)).collect())
            .collect();

        let (index, judgement) = judge::most_severe(&self.policy, &frames);
        let scores = frames.get(index).cloned().unwrap_or_default();
        let first = decoded.frames.first();
        let shown = first
            .map(|frame| {
                engines.iter().zip(&which).map(|(e, i)| (e.detector.name.clone(), Arc::clone(&frame[*i]))).collect()
            })
            .unwrap_or_default();
        Ok(Sight { seen: decoded.seen, scores, frames, judgement, shown })
    }

    fn wanted(&self, wanted: Option<&[String]>) -> Result<Vec<&Engine>, String> {
        let Some(names) = wanted else { return Ok(self.engines.iter().collect()) };
        names
            .iter()
            .map(|name| self.engines.iter().find(|e| e.detector.name == *name).ok_or_else(|| name.clone()))
            .collect()
    }
}

fn named(engine: &Engine, row: Vec<f32>) -> (String, std::collections::BTreeMap<String, f32>) {
    (engine.detector.name.clone(), engine.detector.labels.iter().cloned().zip(row).collect())
}
