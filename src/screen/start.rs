//! From the configuration to detectors that are loaded, warm and tested.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::watch;

use super::Screen;
use super::decode::{DecoderPool, FAST_MARGIN_TENTHS, PIXELS_VERSION};
use super::error::DecoderProcessError;
use super::infer::{Engine, InferError, OnnxRuntime};
use super::self_test::{
    BatchComparison, LARGEST_COMPARED_BATCH, SelfTest, SelfTestError, compare_batches, run_self_test, score_still,
};
use crate::config::{Config, DecodeMode, DetectorEntry, DetectorTable, Origin};
use crate::detector::{DecodeSettings, Detector, GoldenImage, PackageError, PackageSource};
use crate::policy::{PolicyError, PolicySet};

/// Why the screen cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A package is invalid.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A package is invalid, with the place where it was named.
    #[error("{origin}: {error}")]
    PackageAt {
        /// Where the package was named.
        origin: Origin,
        /// What is wrong with it.
        #[source]
        error: Box<PackageError>,
    },
    /// Two packages have the same name.
    #[error("two detectors have the name \"{0}\"\n  hint: give one of them another `name`")]
    SameName(String),
    /// There is no package at all.
    #[error("no detector is configured, and the bundled one is not at {}\n  hint: name a model package in `detectors`, with PIXWARDEN_DETECTORS or, where a command has it, with --detector DIR", .0.display())]
    NoDetector(PathBuf),
    /// The policy does not fit the detectors.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A model cannot be run.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// A model runs, but does not score its golden image as its package says.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
    /// A decoder cannot be started.
    #[error(transparent)]
    Decoder(#[from] DecoderProcessError),
    /// A package that must not get a second golden image.
    #[error("detector {0} has a golden image already\n  hint: if it is wrong, delete golden.json in the package first")]
    HasGoldenImage(String),
    /// The image that is to become the golden image gives no scores.
    #[error(
        "{}\n  hint: choose another image with --write-golden",
        .0.to_string().split("\n  hint: ").next().unwrap_or_default()
    )]
    UnsuitableGolden(SelfTestError),
    /// The golden image cannot be stored.
    #[error("cannot write a golden image to {}: {error}", .folder.display())]
    CannotWriteGolden {
        /// The package.
        folder: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// No runtime for the self-test.
    #[error("cannot start the self-test")]
    Runtime(#[source] std::io::Error),
}

impl StartError {
    /// Whether the configuration is at fault, and not this machine or a model.
    pub(crate) fn is_configuration(&self) -> bool {
        match self {
            Self::Package(_) | Self::PackageAt { .. } | Self::SameName(_) | Self::NoDetector(_) | Self::Policy(_) => {
                true
            }
            Self::Infer(_)
            | Self::SelfTest(_)
            | Self::Decoder(_)
            | Self::HasGoldenImage(_)
            | Self::UnsuitableGolden(_)
            | Self::CannotWriteGolden { .. }
            | Self::Runtime(_) => false,
        }
    }
}

/// Reads the packages and checks the policies, without loading a model.
///
/// # Errors
/// When a package or a policy is invalid.
pub(crate) fn plan(config: &Config) -> Result<(Vec<Detector>, PolicySet), StartError> {
    let detectors = packages(config)?;
    let policies = policies_for(config, &detectors)?;
    policies.require_rules(config, &detectors)?;
    Ok((detectors, policies))
}

/// As [`plan`], for policies on trial: a rule may judge a shadow detector, and a detector may be without a rule.
///
/// # Errors
/// As [`plan`].
pub(crate) fn plan_trial(config: &Config) -> Result<(Vec<Detector>, PolicySet), StartError> {
    let mut detectors = packages(config)?;
    let scoped = config.policies.iter().flat_map(|policy| &policy.rules);
    let judged: BTreeSet<&str> =
        config.policy.rules.iter().chain(scoped).filter_map(|rule| rule.detector.as_deref()).collect();
    // Without any rule there may be a default one.
    if !judged.is_empty() {
        detectors.iter_mut().for_each(|detector| detector.shadow = !judged.contains(detector.name.as_str()));
    }
    let policies = policies_for(config, &detectors)?;
    policies.require_rules(config, &detectors)?;
    Ok((detectors, policies))
}

/// Starts the screen with the configured packages, and checks the policies that judge what it finds.
///
/// # Errors
/// As [`plan`] and [`Screen::start`].
pub(crate) fn start(config: &Config) -> Result<(Screen, PolicySet), StartError> {
    let (detectors, policies) = plan(config)?;
    policies.log();
    Ok((Screen::start(config, detectors)?, policies))
}

/// Checks the configured policies against the packages.
///
/// # Errors
/// When one does not fit them.
pub(crate) fn policies_for(config: &Config, detectors: &[Detector]) -> Result<PolicySet, PolicyError> {
    // The default rule may judge a detector that is given as a bare folder. One that is given as a table needs rules.
    let may_default = config.detectors.iter().all(|entry| matches!(entry, DetectorEntry::Path(_)));
    PolicySet::resolve(config, detectors, may_default)
}

/// Reads the configured packages, or the bundled one where none is configured.
///
/// # Errors
/// When a package is invalid, or two have the same name.
pub(crate) fn packages(config: &Config) -> Result<Vec<Detector>, StartError> {
    let mut detectors: Vec<Detector> = Vec::new();
    for (index, (_, detector)) in load_packages(config)?.into_iter().enumerate() {
        let detector = detector.map_err(|error| match config.origins.of(&format!("detectors[{index}]")) {
            Some(origin) => StartError::PackageAt { origin: origin.clone(), error: Box::new(error) },
            None => error.into(),
        })?;
        if detectors.iter().any(|other| other.name == detector.name) {
            return Err(StartError::SameName(detector.name));
        }
        detectors.push(detector);
    }
    Ok(detectors)
}

/// One result for each configured package, with its folder. A package that fails hides no other.
pub(crate) type PerPackage<T, E> = Vec<(PathBuf, Result<T, E>)>;

/// Reads every configured package by itself.
fn load_packages(config: &Config) -> Result<PerPackage<Detector, PackageError>, StartError> {
    let decode_settings = DecodeSettings {
        version: PIXELS_VERSION,
        max_frames: config.decode.max_frames,
        max_views: config.decode.max_views,
        fast_tenths: match config.decode.mode {
            DecodeMode::Exact => None,
            DecodeMode::Fast => Some(FAST_MARGIN_TENTHS),
        },
    };
    let load = |folder: &Path, table: &DetectorTable| {
        let detector = Detector::load(&PackageSource {
            folder,
            name: stated(&table.name),
            file: stated(&table.file),
            sha256: stated(&table.sha256),
            shadow: table.shadow,
            decode_settings,
        });
        (folder.to_owned(), detector)
    };
    let bare = DetectorTable::default();
    if config.detectors.is_empty() {
        let bundled = bundled_package();
        if !bundled.is_dir() {
            return Err(StartError::NoDetector(bundled));
        }
        return Ok(vec![load(&bundled, &bare)]);
    }
    let load_entry = |entry: &DetectorEntry| match entry {
        DetectorEntry::Path(path) => load(Path::new(path), &bare),
        DetectorEntry::Table(table) => load(Path::new(&table.path), table),
    };
    Ok(config.detectors.iter().map(load_entry).collect())
}

/// An option's text. Empty means that it is not set.
fn stated(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// The bundled package. An installed program has it in `models/` beside itself, or in `../share/pixwarden/models`. A program
/// that was built from source finds it in the source tree. The working directory is not among these places: what a program
/// judges by must not depend on where it is started.
fn bundled_package() -> PathBuf {
    let program = std::env::current_exe().ok();
    bundled_package_of(program.as_deref(), Path::new(env!("CARGO_MANIFEST_DIR")))
}

/// The first place that exists; the first of all where none does.
fn bundled_package_of(program: Option<&Path>, source_tree: &Path) -> PathBuf {
    const PACKAGE: &str = "models/cifake-32";
    let folder = program.and_then(Path::parent);
    let installed = folder.map(|folder| [folder.join(PACKAGE), folder.join("../share/pixwarden").join(PACKAGE)]);
    let places: Vec<PathBuf> = installed.into_iter().flatten().chain([source_tree.join(PACKAGE)]).collect();
    places.iter().find(|path| path.is_dir()).unwrap_or(&places[0]).clone()
}

/// What every detector is started and tested with.
pub(super) struct DetectorStarter<'a> {
    config: &'a Config,
    runtime: OnnxRuntime,
    pub(super) decoders: DecoderPool,
    report_broken: watch::Sender<Option<String>>,
}

impl<'a> DetectorStarter<'a> {
    /// Loads the runtime and starts the decoders. A session that breaks later is reported to `report_broken`.
    pub(super) fn new(config: &'a Config, report_broken: watch::Sender<Option<String>>) -> Result<Self, StartError> {
        let runtime = OnnxRuntime::load(&config.inference)?;
        Ok(Self { config, runtime, decoders: DecoderPool::start(&config.decode)?, report_broken })
    }

    /// A detector's engine, warm, and the result of its self-test.
    pub(super) fn start(&self, detector: Detector) -> Result<(Engine, SelfTest), StartError> {
        let engine = Engine::start(&self.runtime, detector, &self.config.inference, self.report_broken.clone())?;
        let self_test = block_on(run_self_test(&engine, &self.decoders)).map_err(StartError::Runtime)??;
        Ok((engine, self_test))
    }

    /// As [`DetectorStarter::start`], for a package that gets its golden image here.
    fn start_with_new_golden(
        &self,
        folder: &Path,
        detector: Detector,
        golden: &NewGoldenImage,
    ) -> Result<(Engine, SelfTest), StartError> {
        if detector.golden.is_some() {
            return Err(StartError::HasGoldenImage(detector.name));
        }
        let (mut engine, _) = self.start(detector)?;
        let scores =
            block_on(score_still(&engine, &self.decoders, golden.bytes.clone())).map_err(StartError::Runtime)?;
        // Nothing is wrong with the package.
        let scores = scores.map_err(StartError::UnsuitableGolden)?;
        let written = GoldenImage::write(folder, &golden.file, &golden.bytes, &engine.detector.labels, &scores);
        let cannot_write = |error| StartError::CannotWriteGolden { folder: folder.to_owned(), error };
        engine.detector.golden = Some(written.map_err(cannot_write)?);
        let self_test = block_on(run_self_test(&engine, &self.decoders)).map_err(StartError::Runtime)??;
        Ok((engine, self_test))
    }
}

/// Waits for a future on another thread. Starting blocks a thread of the runtime, and such a thread must not wait for a
/// future.
fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Ok(tokio::runtime::Builder::new_current_thread().build()?.block_on(future)));
        waiting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// An image that packages without a golden image get.
pub(crate) struct NewGoldenImage {
    /// The file it was read from, whose extension it keeps.
    pub(crate) file: PathBuf,
    /// The file's content.
    pub(crate) bytes: Bytes,
}

/// A detector that runs on this machine.
pub(crate) struct CheckedDetector {
    /// The package.
    pub(crate) detector: Detector,
    /// The device that it runs on, for people.
    pub(crate) device: String,
    /// The result of its self-test.
    pub(crate) self_test: SelfTest,
    /// Whether its scores depend on the batch; `None` where a batch is one image.
    pub(crate) batch: Option<BatchComparison>,
}

/// As configured, but with batches of several images, also where this machine gains nothing by them: another one may. A
/// configured size stays.
fn comparing_batches(config: &Config) -> Config {
    const LONGEST_RUN_MS: u64 = 60_000;
    let mut config = config.clone();
    if config.inference.max_batch == 0 {
        config.inference.max_batch = LARGEST_COMPARED_BATCH;
        config.inference.max_run_ms = config.inference.max_run_ms.max(LONGEST_RUN_MS);
    }
    config
}

/// Loads, warms and tests every configured detector by itself. Nothing is judged, so that no policy is needed. With `golden`
/// each package first gets its golden image, with the scores on this machine.
///
/// # Errors
/// When there is no package, no runtime or no decoder. What is wrong with one package is that package's own result. A package
/// whose device hangs is the last one.
pub(crate) fn check_detectors(
    config: &Config,
    golden: Option<&NewGoldenImage>,
) -> Result<PerPackage<CheckedDetector, StartError>, StartError> {
    let packages = load_packages(config)?;
    let (report_broken, _) = watch::channel(None);
    let config = comparing_batches(config);
    let starter = DetectorStarter::new(&config, report_broken)?;
    let check = |folder: &Path, detector: Result<Detector, PackageError>| {
        let detector = detector?;
        let (engine, self_test) = match golden {
            Some(golden) => starter.start_with_new_golden(folder, detector, golden)?,
            None => starter.start(detector)?,
        };
        let batch = block_on(compare_batches(&engine, &starter.decoders)).map_err(StartError::Runtime)??;
        Ok(CheckedDetector { detector: engine.detector.clone(), device: engine.device.clone(), self_test, batch })
    };
    let mut all_checked = Vec::new();
    for (folder, detector) in packages {
        let checked = check(&folder, detector);
        let hangs = matches!(checked, Err(StartError::Infer(InferError::Hangs { .. })));
        all_checked.push((folder, checked));
        if hangs {
            // The next package would wait for the same device, and the process is about to end.
            break;
        }
    }
    Ok(all_checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_detector_is_found_beside_the_program_then_in_share_then_in_the_source_tree() {
        let root = tempfile::tempdir().unwrap();
        let (program, source) = (root.path().join("bin/pixwarden"), root.path().join("source"));
        let place = |path: &str| root.path().join(path).join("models/cifake-32");
        let found = || bundled_package_of(Some(&program), &source).components().collect::<PathBuf>();
        assert_eq!(found(), place("bin"), "the error names the first place");
        for folder in ["source", "bin/../share/pixwarden", "bin"] {
            std::fs::create_dir_all(root.path().join("bin")).unwrap();
            std::fs::create_dir_all(place(folder)).unwrap();
            assert_eq!(found(), place(folder));
        }
        // In a test the source tree is the one that this test was built from, from any working directory.
        assert!(bundled_package().is_absolute() && bundled_package().is_dir());
    }
}
