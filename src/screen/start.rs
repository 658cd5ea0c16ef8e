//! From configuration to detectors that are loaded, warm and proved.

use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::decode::{LEAVES_TENTHS, PIXELS_VERSION, Pool};
use super::infer::{Engine, InferError, Runtime};
use super::proof::{Proof, ProofError, prove};
use crate::config::{Config, DecodeMode, DetectorEntry};
use crate::detector::{DecodeSettings, Detector, PackageError, PackageSource};
use crate::policy::{Policy, PolicyError};

/// Why there is no screen.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A package is not in order.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// Two packages of one name.
    #[error("two detectors are called \"{0}\"; give one of them another `name`")]
    SameName(String),
    /// There is no package at all.
    #[error("no detector is configured, and the bundled one is not at {}\n  hint: name a model package with --detector DIR", .0.display())]
    NoDetector(PathBuf),
    /// The policy does not fit the detectors.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A model cannot be run.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// A model runs, but not as its package says.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// No threads, or no processes.
    #[error("there is nothing to decode on: {0}")]
    Threads(#[from] std::io::Error),
}

/// Reads the packages and checks the policy, without loading a model: what `check` and `models list` need.
///
/// # Errors
/// When a package or the policy is not in order.
pub fn plan(config: &Config) -> Result<(Vec<Detector>, Policy), StartError> {
    let detectors = packages(config)?;
    let policy = policy_for(config, &detectors)?;
    Ok((detectors, policy))
}

/// Checks the configured policy against the packages.
///
/// # Errors
/// When it does not fit them.
pub fn policy_for(config: &Config, detectors: &[Detector]) -> Result<Policy, PolicyError> {
    // A bare folder may be judged by the default rule; a table in the file is expected to come with rules.
    let bare = config.detectors.iter().all(|entry| matches!(entry, DetectorEntry::Path(_)));
    Policy::resolve(&config.policy, detectors, bare)
}

/// Reads the configured packages, or the bundled one where none is configured.
///
/// # Errors
/// When a package is not in order, or two have the same name.
pub fn packages(config: &Config) -> Result<Vec<Detector>, StartError> {
    let mut detectors: Vec<Detector> = Vec::new();
    for (_, detector) in configured(config)? {
        let detector = detector?;
        if detectors.iter().any(|other| other.name == detector.name) {
            return Err(StartError::SameName(detector.name));
        }
        detectors.push(detector);
    }
    Ok(detectors)
}

/// What came of each configured package, by its folder: one that fails hides no other.
pub type Each<T, E> = Vec<(PathBuf, Result<T, E>)>;

/// Reads every configured package by itself.
fn configured(config: &Config) -> Result<Each<Detector, PackageError>, StartError> {
    let decode_settings = DecodeSettings {
        version: PIXELS_VERSION,
        max_frames: config.decode.max_frames,
        fast_tenths: match config.decode.mode {
            DecodeMode::Exact => None,
            DecodeMode::Fast => Some(LEAVES_TENTHS),
        },
    };
    let load = |folder: &Path, name: &str, sha256: &str, shadow: bool| {
        let detector = Detector::load(&PackageSource {
            folder,
            name: Some(name).filter(|n| !n.is_empty()),
            sha256: Some(sha256).filter(|s| !s.is_empty()),
            shadow,
            decode_settings,
        });
        (folder.to_owned(), detector)
    };
    if config.detectors.is_empty() {
        let bundled = bundled();
        if !bundled.is_dir() {
            return Err(StartError::NoDetector(bundled));
        }
        return Ok(vec![load(&bundled, "", "", false)]);
    }
    let load = |entry: &DetectorEntry| match entry {
        DetectorEntry::Path(path) => load(Path::new(path), "", "", false),
        DetectorEntry::Table(table) => load(Path::new(&table.path), &table.name, &table.sha256, table.shadow),
    };
    Ok(config.detectors.iter().map(load).collect())
}

/// The bundled package: in `models/` beside the executable or in the working directory.
fn bundled() -> PathBuf {
    const PACKAGE: &str = "models/cifake-32";
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(PACKAGE)));
    beside.filter(|path| path.is_dir()).unwrap_or_else(|| PathBuf::from(PACKAGE))
}

/// What every detector is started and proved with.
pub(super) struct Starter<'a> {
    config: &'a Config,
    runtime: Runtime,
    pub(super) decoders: Pool,
    tell_broken: watch::Sender<Option<String>>,
}

impl<'a> Starter<'a> {
    /// Loads the runtime and starts the decoders. A session that breaks later says so in `tell_broken`.
    pub(super) fn new(config: &'a Config, tell_broken: watch::Sender<Option<String>>) -> Result<Self, StartError> {
        let runtime = Runtime::load(&config.inference)?;
        Ok(Self { config, runtime, decoders: Pool::start(&config.decode)?, tell_broken })
    }

    /// A detector's engine, warm, and how it did on its golden image.
    pub(super) fn engine(&self, detector: Detector) -> Result<(Engine, Proof), StartError> {
        let engine = Engine::start(&self.runtime, detector, &self.config.inference, self.tell_broken.clone())?;
        let proof = wait_for(prove(&engine, &self.decoders))??;
        Ok((engine, proof))
    }
}

/// Waits for a future. Starting blocks, and happens on a thread of the runtime, which must not wait for a future itself:
/// another thread does.
fn wait_for<T: Send>(future: impl Future<Output = T> + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Ok(tokio::runtime::Builder::new_current_thread().build()?.block_on(future)));
        waiting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A detector that runs here and gives what its maker saw, as far as that can be known.
pub struct Examined {
    /// The package.
    pub detector: Detector,
    /// Where it runs, for people.
    pub place: String,
    /// How it did on its golden image.
    pub proof: Proof,
}

/// Loads, warms and proves every configured detector by itself. Nothing is judged, so no policy is needed.
///
/// # Errors
/// When there is nothing to examine, or nothing to examine it with; what is wrong with one package is its own result.
pub fn examine(config: &Config) -> Result<Each<Examined, StartError>, StartError> {
    let configured = configured(config)?;
    let (tell_broken, _) = watch::channel(None);
    let starter = Starter::new(config, tell_broken)?;
    let examine = |detector: Result<Detector, PackageError>| {
        let (engine, proof) = starter.engine(detector?)?;
        Ok(Examined { detector: engine.detector.clone(), place: engine.place.clone(), proof })
    };
    Ok(configured.into_iter().map(|(folder, detector)| (folder, examine(detector))).collect())
}
