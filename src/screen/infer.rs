//! Pixels → probabilities. Each detector has one engine. One named thread owns its session, or two on a GPU, where one
//! fills its buffers while the other one's batch runs.
//!
//! A batch that fails is halved until the image at fault is alone. That image is tried once more, and then a blank image
//! shows whether the image or the session is at fault. A broken session ends the process: a session never recovers from a
//! fatal error of a GPU.

mod batch_queue;
mod onnx;
pub mod options;
mod run_watch;
mod session_thread;
mod warm_up;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::error::{LibraryError, ScreenError, SessionError};
use super::pixels::Pixels;
use crate::config::InferenceConfig;
use crate::detector::{Activation, Detector};
use crate::error_text;
use crate::job::Lane;
use crate::processes;
use crate::telemetry::traces;
use batch_queue::BatchQueue;
use run_watch::RunClock;
use session_thread::{QueuedPixels, SessionThread, SharedQueue};
use warm_up::{blank_image, warm_up};

pub(super) use onnx::OnnxRuntime;
pub(crate) use warm_up::{LARGEST_BATCH, gains};

/// Something that turns a batch of pixels into rows of raw outputs. Tests inject faults here.
pub(super) trait ModelSession: Send {
    /// Runs one or more images of the detector's size.
    ///
    /// # Errors
    /// When the run failed as a whole. No row is known then.
    fn run(&mut self, batch: &[Arc<Pixels>]) -> Result<SessionRun, SessionError>;

    /// The largest batch, where the model's shape fixes it.
    fn fixed_batch(&self) -> Option<usize>;

    /// The device that it runs on, for people: `CPU`, `CUDA device 0`.
    fn device(&self) -> &str;

    /// The output's name, which may show whether it holds logits.
    fn output_name(&self) -> &str;

    /// Whether the duration of a run should bound the batch, as it does on a CPU.
    fn is_slow(&self) -> bool;

    /// Frees the memory that only batches larger than `max_batch` need. It may run `image` for that.
    ///
    /// # Errors
    /// When that memory is kept.
    fn free_larger_buffers(&mut self, max_batch: usize, image: &Arc<Pixels>) -> Result<(), SessionError>;

    /// A second session of the same model with separate buffers, where filling buffers takes time that the device could
    /// use. The two take turns.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn second_session(&self) -> Result<Option<Box<dyn ModelSession>>, SessionError>;
}

/// The result of a run.
#[derive(Debug, Default)]
pub(super) struct SessionRun {
    /// One row of outputs for each image, in order.
    pub(super) rows: Vec<Vec<f32>>,
    /// The duration of the run from when no other run had the device: on a CPU with filling its buffers, on a GPU without.
    pub(super) took: Duration,
}

/// Why a detector cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// ONNX Runtime's shared library cannot be loaded.
    #[error(
        "cannot load ONNX Runtime's shared library: {}: {error}\n  hint: install it (`pip download --no-deps onnxruntime` and unzip libonnxruntime.so from the wheel), then set ORT_DYLIB_PATH or `inference.runtime` to the file", .path.display()
    )]
    Library {
        /// The file that was tried.
        path: PathBuf,
        /// What the loader answered.
        error: LibraryError,
    },
    /// The configured device cannot be used.
    #[error(
        "inference.device = \"{device}\" cannot be used: {}\n  hint: install onnxruntime-gpu and its CUDA libraries, or set `inference.device` to \"auto\" or \"cpu\"", error_text(.error)
    )]
    Device {
        /// As configured.
        device: &'static str,
        /// Why the session cannot be opened there.
        error: Box<InferError>,
    },
    /// ONNX Runtime cannot load the model.
    #[error("detector {detector}: cannot load {}", .model.display())]
    Load {
        /// The detector's name.
        detector: String,
        /// The model's file.
        model: PathBuf,
        /// What ONNX Runtime answered.
        source: LibraryError,
    },
    /// The model and its package do not fit.
    #[error("detector {detector}: {what}")]
    Model {
        /// The detector's name.
        detector: String,
        /// What does not fit and what would.
        what: String,
    },
    /// The model loads but does not run.
    #[error("detector {detector}: cannot run the model on a single image")]
    FirstRun {
        /// The detector's name.
        detector: String,
        /// What the run failed with.
        source: SessionError,
    },
    /// The system refuses a thread.
    #[error("detector {detector}: cannot start a thread for its session")]
    Thread {
        /// The detector's name.
        detector: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The device does not answer.
    #[error(
        "detector {detector}: cannot warm its session up: one step has not ended for {} s, its device hangs\n  hint: look at the device, for example with nvidia-smi, or set `inference.device = \"cpu\"`", .took.as_secs()
    )]
    Hangs {
        /// The detector's name.
        detector: String,
        /// How long the step has taken.
        took: Duration,
    },
    /// The thread that loads the model panicked.
    #[error("detector {detector}: the thread of its session panicked while it loaded the model")]
    Panicked {
        /// The detector's name.
        detector: String,
    },
}

/// One detector, ready to score.
pub(crate) struct Engine {
    /// The package.
    pub(crate) detector: Detector,
    /// The device that it runs on, for people.
    pub(crate) device: String,
    queue: Arc<SharedQueue>,
    threads: Vec<JoinHandle<()>>,
    /// Set once a run has hung: its thread never ends.
    is_hung: Arc<AtomicBool>,
    /// The reason why a session of this process is broken.
    broken: watch::Receiver<Option<String>>,
    /// Ends the watch of the runs when it is dropped.
    _watch: std::sync::mpsc::Sender<()>,
}

/// What is known of a session once it is warm.
struct WarmSession {
    activation: Activation,
    max_batch: usize,
    device: String,
    second_session: Option<Box<dyn ModelSession>>,
}

impl Engine {
    /// Loads the session on its own thread, warms it up, and returns when it can score.
    ///
    /// # Errors
    /// When the model cannot be loaded or does not fit its package.
    pub(super) fn start(
        runtime: &OnnxRuntime,
        detector: Detector,
        config: &InferenceConfig,
        report_broken: watch::Sender<Option<String>>,
    ) -> Result<Self, InferError> {
        let runtime = runtime.clone();
        let for_session = detector.clone();
        Self::start_with(detector, config, report_broken, move || runtime.session(&for_session))
    }

    /// As [`Engine::start`], with any session.
    fn start_with(
        detector: Detector,
        config: &InferenceConfig,
        report_broken: watch::Sender<Option<String>>,
        open: impl FnOnce() -> Result<Box<dyn ModelSession>, InferError> + Send + 'static,
    ) -> Result<Self, InferError> {
        let queue = Arc::new(SharedQueue::new());
        let clocks: [Arc<RunClock>; 2] = Default::default();
        let (report_warm, warm) = std::sync::mpsc::channel();
        let first = spawn(&detector, {
            let (queue, detector, config) = (Arc::clone(&queue), detector.clone(), config.clone());
            let (report_broken, clocks) = (report_broken.clone(), clocks.clone());
            let began = Instant::now();
            move || match make_warm(open, &detector, &config, &clocks[0]) {
                Err(e) => drop(report_warm.send(Err(e))),
                Ok((session, warm)) => {
                    queue.with(|queue| *queue = BatchQueue::new(warm.max_batch));
                    clocks.iter().for_each(|clock| clock.end_warm_up(began.elapsed()));
                    let activation = warm.activation;
                    if report_warm.send(Ok(warm)).is_err() {
                        // It was taken for hung, and no image will come.
                        return;
                    }
                    let (queue, detector, clock, report_broken) = (&queue, &detector, &clocks[0], &report_broken);
                    SessionThread { session, activation, queue, detector, clock, report_broken }.run();
                }
            }
        })?;
        let warm = match run_watch::watch(&clocks, &warm) {
            Ok(Some(warm)) => warm?,
            Ok(None) => return Err(InferError::Panicked { detector: detector.name.clone() }),
            Err(took) => {
                processes::end_in_time();
                return Err(InferError::Hangs { detector: detector.name.clone(), took });
            }
        };
        let device = warm.device;
        let mut threads = vec![first];
        if let Some(session) = warm.second_session {
            let activation = warm.activation;
            let (queue, detector, report_broken) = (Arc::clone(&queue), detector.clone(), report_broken.clone());
            let clock = Arc::clone(&clocks[1]);
            threads.push(spawn(&detector.clone(), move || {
                let (queue, detector, clock, report_broken) = (&queue, &detector, &clock, &report_broken);
                SessionThread { session, activation, queue, detector, clock, report_broken }.run();
            })?);
        }
        let broken = report_broken.subscribe();
        let is_hung = Arc::new(AtomicBool::new(false));
        let watch = watch_runs(&detector, clocks, Arc::clone(&queue), Arc::clone(&is_hung), report_broken)?;
        Ok(Self { detector, device, queue, threads, is_hung, broken, _watch: watch })
    }

    /// The largest batch: what warm-up found best, and less where there was too little memory since.
    pub(crate) fn max_batch(&self) -> usize {
        self.queue.max_batch()
    }

    /// Lowers the largest batch to this many images.
    pub(crate) fn lower_max_batch(&self, max_batch: usize) {
        self.queue.lower_max_batch(max_batch);
    }

    /// Scores one image: one probability for each label, in the detector's order. Dropping the future abandons an image
    /// that still waits.
    ///
    /// # Errors
    /// When the model cannot run this image, or the session is broken.
    pub(super) async fn score(&self, lane: Lane, pixels: Arc<Pixels>) -> Result<Vec<f32>, ScreenError> {
        let (reply, row) = oneshot::channel();
        let item = QueuedPixels { pixels, job: traces::SpanLink::current(), reply };
        self.queue.with(|queue| queue.push(lane, item)).map_err(|_| self.broken())?;
        self.reply(row).await
    }

    /// Waits for an image's scores. A session that hangs never sends them.
    async fn reply(&self, row: oneshot::Receiver<Result<Vec<f32>, ScreenError>>) -> Result<Vec<f32>, ScreenError> {
        let mut broken = self.broken.clone();
        let hangs = async {
            // An error means that the session's threads have ended, and then the reply is an error too.
            if broken.wait_for(Option::is_some).await.is_err() || !self.is_hung.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            row = row => row.unwrap_or_else(|_| Err(self.broken())),
            () = hangs => Err(self.broken()),
        }
    }

    /// Scores images that arrive at the same moment, so that an idle session takes up to `max_batch` of them in one run.
    ///
    /// # Errors
    /// As [`Engine::score`], for the first image that has no scores.
    pub(crate) async fn score_together(
        &self,
        lane: Lane,
        images: Vec<Arc<Pixels>>,
    ) -> Result<Vec<Vec<f32>>, ScreenError> {
        let rows = self.queue.with(|queue| {
            let push = |pixels| {
                let (reply, row) = oneshot::channel();
                let item = QueuedPixels { pixels, job: traces::SpanLink::current(), reply };
                queue.push(lane, item).map(|()| row).map_err(|_| self.broken())
            };
            images.into_iter().map(push).collect::<Result<Vec<_>, _>>()
        })?;
        futures_util::future::try_join_all(rows.into_iter().map(|row| self.reply(row))).await
    }

    fn broken(&self) -> ScreenError {
        ScreenError::SessionBroken { detector: self.detector.name.clone() }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.with(BatchQueue::close);
        if self.is_hung.load(Ordering::Acquire) {
            // Waiting for its thread would keep the process alive.
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(detector = self.detector.name, "the thread of a session panicked");
            }
        }
    }
}

fn spawn(detector: &Detector, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, InferError> {
    let thread = std::thread::Builder::new().name(format!("session-{}", detector.name));
    thread.spawn(body).map_err(|source| InferError::Thread { detector: detector.name.clone(), source })
}

/// Starts the thread that watches the runs. It ends when the returned sender is dropped.
fn watch_runs(
    detector: &Detector,
    clocks: [Arc<RunClock>; 2],
    queue: Arc<SharedQueue>,
    is_hung: Arc<AtomicBool>,
    report_broken: watch::Sender<Option<String>>,
) -> Result<std::sync::mpsc::Sender<()>, InferError> {
    let (sender, closed) = std::sync::mpsc::channel();
    let name = detector.name.clone();
    let watching = std::thread::Builder::new().name(format!("watch-{name}")).spawn(move || {
        let Err(took) = run_watch::watch(&clocks, &closed) else { return };
        let reason = format!("detector {name}: a run has not ended for {} s, its device hangs", took.as_secs());
        tracing::error!(detector = name, run_s = took.as_secs(), "run does not end, session broken");
        processes::end_in_time();
        is_hung.store(true, Ordering::Release);
        report_broken.send_replace(Some(reason));
        queue.with(BatchQueue::abandon);
    });
    watching.map_err(|source| InferError::Thread { detector: detector.name.clone(), source })?;
    Ok(sender)
}

/// Opens a session, warms it up, and makes its second session, if it has one. `clock` measures each step.
fn make_warm(
    open: impl FnOnce() -> Result<Box<dyn ModelSession>, InferError>,
    detector: &Detector,
    config: &InferenceConfig,
    clock: &RunClock,
) -> Result<(Box<dyn ModelSession>, WarmSession), InferError> {
    let mut session = clock.measure(open)?;
    let (activation, max_batch) = warm_up(session.as_mut(), detector, config, clock)?;
    // Both steps may fail. Without the first the session takes more memory, without the second more time.
    let image = blank_image(detector, 127);
    if let Err(e) = clock.measure(|| session.free_larger_buffers(max_batch, &image)) {
        let error = error_text(&e);
        tracing::warn!(detector = detector.name, error, "memory of larger batches was not freed after warm-up");
    }
    let second_session = clock.measure(|| session.second_session()).unwrap_or_else(|e| {
        let error = error_text(&e);
        tracing::warn!(
            detector = detector.name,
            error,
            "second set of buffers not allocated, batches are filled only between runs"
        );
        None
    });
    let warm = WarmSession { activation, max_batch, device: session.device().to_owned(), second_session };
    Ok((session, warm))
}

/// The largest batch of up to this many images that warm-up ran, where sizes double. A batch of another size would be
/// padded to the next larger size.
fn largest_warm_batch(images: usize) -> usize {
    1 << images.max(1).ilog2()
}

#[cfg(test)]
impl Engine {
    /// An engine whose session makes each row of outputs from the first pixel of an image. `None` fails the run.
    pub(super) fn with_fake_session(
        detector: Detector,
        config: &InferenceConfig,
        report_broken: watch::Sender<Option<String>>,
        outputs: fn([u8; 3]) -> Option<Vec<f32>>,
    ) -> Self {
        let open = move || Ok(Box::new(PixelSession(outputs)) as Box<dyn ModelSession>);
        Self::start_with(detector, config, report_broken, open).unwrap()
    }
}

#[cfg(test)]
struct PixelSession(fn([u8; 3]) -> Option<Vec<f32>>);

#[cfg(test)]
impl ModelSession for PixelSession {
    fn run(&mut self, batch: &[Arc<Pixels>]) -> Result<SessionRun, SessionError> {
        let row = |pixels: &Arc<Pixels>| (self.0)([pixels.data[0], pixels.data[1], pixels.data[2]]);
        match batch.iter().map(row).collect::<Option<Vec<_>>>() {
            Some(rows) => Ok(SessionRun { rows, took: Duration::ZERO }),
            None => Err(SessionError::RunFailed("the fake session fails for this image".into())),
        }
    }

    fn fixed_batch(&self) -> Option<usize> {
        None
    }

    fn device(&self) -> &'static str {
        "fake"
    }

    fn output_name(&self) -> &'static str {
        "probabilities"
    }

    fn is_slow(&self) -> bool {
        false
    }

    fn free_larger_buffers(&mut self, _max_batch: usize, _image: &Arc<Pixels>) -> Result<(), SessionError> {
        Ok(())
    }

    fn second_session(&self) -> Result<Option<Box<dyn ModelSession>>, SessionError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::policy::tests::detector;

    type Rows = Result<Vec<Vec<f32>>, SessionError>;

    #[test]
    fn a_batch_is_lowered_to_a_size_that_warm_up_ran() {
        assert_eq!([0, 1, 2, 3, 42, 64].map(largest_warm_batch), [1, 1, 2, 2, 32, 64]);
    }

    /// A session that is given the first byte of each image.
    #[derive(Clone)]
    struct FakeSession<R> {
        run: R,
        has_second: bool,
        has_freed: bool,
    }

    impl<R: FnMut(&[u8]) -> Rows + Clone + Send + 'static> ModelSession for FakeSession<R> {
        fn run(&mut self, batch: &[Arc<Pixels>]) -> Result<SessionRun, SessionError> {
            let shades: Vec<u8> = batch.iter().map(|pixels| pixels.data[0]).collect();
            Ok(SessionRun { rows: (self.run)(&shades)?, took: Duration::ZERO })
        }

        fn fixed_batch(&self) -> Option<usize> {
            None
        }

        fn device(&self) -> &'static str {
            "test"
        }

        fn output_name(&self) -> &'static str {
            "logits"
        }

        fn is_slow(&self) -> bool {
            false
        }

        fn free_larger_buffers(&mut self, max_batch: usize, _image: &Arc<Pixels>) -> Result<(), SessionError> {
            assert_eq!(max_batch, 8);
            self.has_freed = true;
            Ok(())
        }

        fn second_session(&self) -> Result<Option<Box<dyn ModelSession>>, SessionError> {
            assert!(self.has_freed, "memory of larger batches is freed before there is a second session");
            Ok(self.has_second.then(|| Box::new(self.clone()) as Box<dyn ModelSession>))
        }
    }

    /// An engine with batches of up to 8 images, and whether its session is broken.
    fn start(
        has_second: bool,
        run: impl FnMut(&[u8]) -> Rows + Clone + Send + 'static,
    ) -> Result<(Engine, watch::Receiver<Option<String>>), InferError> {
        let (broken, is_broken) = watch::channel(None);
        let config = InferenceConfig { max_batch: 8, ..InferenceConfig::default() };
        let open = move || Ok(Box::new(FakeSession { run, has_second, has_freed: false }) as Box<dyn ModelSession>);
        Ok((Engine::start_with(detector("d", &["a", "b"]), &config, broken, open)?, is_broken))
    }

    /// One row for each image, from its shade.
    fn rows(shades: &[u8]) -> Vec<Vec<f32>> {
        shades.iter().map(|shade| vec![0.0, f32::from(*shade)]).collect()
    }

    /// A session that fails on the shade 66, on batches larger than `memory`, and on every batch after the shade `dies_on`.
    fn faulty(memory: usize, dies_on: Option<u8>) -> Result<(Engine, watch::Receiver<Option<String>>), InferError> {
        let mut dead = false;
        start(false, move |shades| {
            dead |= shades.iter().any(|shade| Some(*shade) == dies_on);
            if dead || shades.contains(&66) {
                return Err(SessionError::RunFailed("bad item".into()));
            }
            if shades.len() > memory {
                return Err(SessionError::OutOfMemory("too many".into()));
            }
            Ok(rows(shades))
        })
    }

    fn shade(value: u8) -> Arc<Pixels> {
        Arc::new(Pixels { width: 8, height: 8, data: vec![value; 192] })
    }

    #[tokio::test]
    async fn a_bad_image_fails_alone() {
        let (engine, broken) = faulty(64, None).unwrap();
        let jobs = (60..70u8).map(|value| engine.score(Lane::Live, shade(value)));
        let results = futures_util::future::join_all(jobs).await;
        for (value, result) in (60..70u8).zip(results) {
            assert_eq!(result.is_err(), value == 66, "{value}: {result:?}");
        }
        assert!(broken.borrow().is_none());
    }

    #[tokio::test]
    async fn too_little_memory_lowers_batches_to_the_size_below_the_one_that_failed() {
        // After warm-up there is memory for four images, and a session may have padded seven to eight.
        let mut ran = 0;
        let (engine, broken) = start(false, move |shades| {
            ran += usize::from(shades[0] == 1);
            if ran > 0 && shades.len() > 4 {
                return Err(SessionError::OutOfMemory("too many".into()));
            }
            Ok(rows(shades))
        })
        .unwrap();
        assert_eq!(engine.max_batch(), 8);
        let scored = engine.score_together(Lane::Live, vec![shade(1); 7]).await.unwrap();
        assert_eq!((scored.len(), engine.max_batch()), (7, 4));
        assert!(broken.borrow().is_none());
    }

    #[tokio::test]
    async fn images_that_arrive_together_share_a_run() {
        // The score of each image is the number of images in its run.
        let counting = |shades: &[u8]| {
            #[expect(clippy::cast_precision_loss, reason = "at most 8")]
            let images = shades.len() as f32;
            Ok(vec![vec![0.0, images]; shades.len()])
        };
        let (engine, _broken) = start(false, counting).unwrap();
        for (images, logit) in [(1, 1f32), (3, 3.0), (8, 8.0)] {
            let rows = engine.score_together(Lane::Live, vec![shade(1); images]).await.unwrap();
            let expected = 1.0 / (1.0 + (-logit).exp());
            assert_eq!(rows.len(), images);
            assert!(rows.iter().all(|row| (row[1] - expected).abs() < 1e-6), "{images}: {rows:?}");
        }
    }

    #[tokio::test]
    async fn a_broken_session_is_reported_and_gives_no_wrong_scores() {
        let (engine, mut broken) = faulty(64, Some(7)).unwrap();
        let jobs = [1, 7, 2].map(|value| engine.score(Lane::Live, shade(value)));
        for result in futures_util::future::join_all(jobs).await.into_iter().skip(1) {
            assert!(matches!(result, Err(ScreenError::SessionBroken { .. })), "{result:?}");
        }
        assert!(broken.wait_for(Option::is_some).await.is_ok());
        assert!(matches!(engine.score(Lane::Live, shade(1)).await, Err(ScreenError::SessionBroken { .. })));
    }

    /// Two sessions whose full batches end only together. The shade 66 breaks both.
    fn two_sessions() -> (Engine, watch::Receiver<Option<String>>) {
        let (together, dead) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
        let run = move |shades: &[u8]| {
            dead.fetch_or(shades.contains(&66), Ordering::SeqCst);
            if dead.load(Ordering::SeqCst) {
                return Err(SessionError::RunFailed("dead".into()));
            }
            // Warm-up's batches, which are of 127, come alone.
            if shades.len() == 8 && shades[0] != 127 {
                together.wait();
            }
            Ok(rows(shades))
        };
        start(true, run).unwrap()
    }

    #[tokio::test]
    async fn two_full_batches_run_at_once_and_every_image_is_answered() {
        let (engine, _broken) = two_sessions();
        for round in 0..20 {
            // Neither batch would end without the other.
            let rows = engine.score_together(Lane::Live, (0..16).map(shade).collect()).await.unwrap();
            assert_eq!(rows.len(), 16);
            assert!(rows.windows(2).all(|pair| pair[0][1] <= pair[1][1]), "{round}: out of order: {rows:?}");
        }
        let row = engine.score(Lane::Live, shade(1)).await.unwrap();
        assert!((row[1] - 1.0 / (1.0 + (-1f32).exp())).abs() < 1e-6, "a single image waits for no other: {row:?}");
    }

    #[tokio::test]
    async fn when_one_of_two_sessions_breaks_both_threads_end() {
        let (engine, mut broken) = two_sessions();
        let dying = engine.score(Lane::Live, shade(66)).await;
        assert!(matches!(dying, Err(ScreenError::SessionBroken { .. })), "{dying:?}");
        assert!(broken.wait_for(Option::is_some).await.is_ok());
        assert!(matches!(engine.score(Lane::Live, shade(1)).await, Err(ScreenError::SessionBroken { .. })));
        // Dropping waits for both threads.
        drop(engine);
    }

    #[test]
    fn a_model_with_too_little_memory_in_warm_up_is_refused() {
        let refused = faulty(0, None);
        assert!(matches!(refused, Err(InferError::FirstRun { .. })));
    }

    #[test]
    fn a_device_that_hangs_in_warm_up_ends_the_start() {
        // The third run is that of the last single image; a larger batch hangs too.
        for hangs_at in [1, 3, 5] {
            let (release, mut ran) = (Arc::new(Barrier::new(2)), 0);
            let hanging = Arc::clone(&release);
            let started = start(false, move |shades| {
                ran += 1;
                if ran == hangs_at {
                    hanging.wait();
                }
                Ok(rows(shades))
            });
            let Err(error) = started else { panic!("started, though run {hangs_at} has not ended") };
            assert!(matches!(error, InferError::Hangs { .. }), "{error}");
            assert!(error.to_string().contains("detector d: cannot warm its session up"), "{error}");
            release.wait();
        }
    }
}
