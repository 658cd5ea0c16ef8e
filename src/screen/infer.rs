//! Pixels → probabilities: one engine a detector, its session owned by one named thread; or by two on a GPU, of which one
//! fills its buffers while the other one's batch runs.
//!
//! A batch that fails is halved until the bad item stands alone; it is tried once more, and then the session itself
//! has to prove itself on a blank image. If it cannot, it is the session that is broken, not the image, and the process
//! has to end: a session after a fatal GPU error never recovers.

mod onnx;
pub mod options;
mod warm;

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::gather::{Gather, Next};
use super::prepare::Pixels;
use crate::config::InferenceConfig;
use crate::detector::{Activation, Detector};
use crate::job::Lane;
use crate::telemetry::{metrics, traces};

pub use onnx::Runtime;
pub use warm::{LARGEST_BATCH, gains};
use warm::{plain, warm_up};

/// Something that turns a batch of pixels into rows of raw outputs. A seam: tests inject faults here.
pub trait Session: Send {
    /// Runs `1..` images of the detector's size.
    ///
    /// # Errors
    /// When the run failed as a whole; no row is known then.
    fn run(&mut self, batch: &[Arc<Pixels>]) -> Result<Run, SessionError>;

    /// Images a run at the most, where the model's shape fixes it.
    fn fixed_batch(&self) -> Option<usize>;

    /// Where it runs, for people: `CPU`, `CUDA device 0`.
    fn place(&self) -> &str;

    /// The output's name, which may tell whether it holds logits.
    fn output_name(&self) -> &str;

    /// Whether a run's duration should bound the batch, as it does on a CPU.
    fn is_slow(&self) -> bool;

    /// Lets go of what only larger batches than `max_batch` need, which will not come. It may run an image for that.
    ///
    /// # Errors
    /// When that memory is kept.
    fn settle(&mut self, max_batch: usize, image: &Arc<Pixels>) -> Result<(), SessionError>;

    /// Another one of the same model with buffers of its own: where filling them takes time that the device could use, two
    /// take turns.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn twin(&self) -> Result<Option<Box<dyn Session>>, SessionError>;
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Run {
    /// One row of outputs an image, in order.
    pub rows: Vec<Vec<f32>>,
    /// How long it took, once no other one had the device: on a CPU with filling its buffers, on a GPU without.
    pub took: Duration,
}

/// Why a run failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// The device has too little memory for this batch.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Why a detector cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The shared library cannot be loaded.
    #[error(
        "ONNX Runtime's shared library cannot be loaded: {0}\n  hint: install it (`pip download --no-deps onnxruntime` and unzip libonnxruntime.so from the wheel), then set ORT_DYLIB_PATH or `inference.runtime` to the file"
    )]
    Library(String),
    /// The device that was asked for cannot be had.
    #[error(
        "device = \"{device}\" was asked for, but cannot be had: {error}\n  hint: install onnxruntime-gpu and its CUDA libraries, or set `inference.device` to \"auto\" or \"cpu\""
    )]
    Device {
        /// As configured.
        device: &'static str,
        /// What ONNX Runtime says.
        error: String,
    },
    /// The model and its package do not fit.
    #[error("detector {detector}: {what}")]
    Model {
        /// The detector.
        detector: String,
        /// What does not fit and what would.
        what: String,
    },
}

/// Why one image has no scores.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unscored {
    /// The model cannot run this image; it can run others.
    #[error("the model cannot score it: {0}")]
    Item(String),
    /// The session is gone, and the process should be too.
    #[error("the session of {0} is broken")]
    Broken(String),
}

struct Item {
    pixels: Arc<Pixels>,
    job: traces::Link,
    reply: oneshot::Sender<Result<Vec<f32>, Unscored>>,
}

struct Queue {
    gather: Mutex<Gather<Item>>,
    ready: Condvar,
}

impl Queue {
    fn with<R>(&self, act: impl FnOnce(&mut Gather<Item>) -> R) -> R {
        let result = act(&mut self.gather.lock().unwrap_or_else(PoisonError::into_inner));
        self.ready.notify_all();
        result
    }

    /// Has no run take more images than that, and none a size that warm-up did not run. Returns how many one may take.
    fn limit(&self, images: usize) -> usize {
        self.with(|gather| {
            if images < gather.max_batch() {
                gather.limit(of_warm_up(images));
            }
            gather.max_batch()
        })
    }

    /// Blocks until there is a batch, or nothing will come any more. After its run, [`Gather::done`] wants to be told.
    fn next(&self) -> Option<Vec<Item>> {
        let mut gather = self.gather.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match gather.next(|item| item.reply.is_closed()) {
                Next::Batch(batch) => return Some(batch),
                Next::End => return None,
                Next::Wait => gather = self.ready.wait(gather).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// One detector, ready to score.
pub struct Engine {
    /// The package.
    pub detector: Detector,
    /// Where it runs, for people.
    pub place: String,
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

/// What the first thread has once it is warm.
struct Warm {
    activation: Activation,
    max_batch: usize,
    place: String,
    twin: Option<Box<dyn Session>>,
}

impl Engine {
    /// Loads the session on its own thread, warms it up, and returns when it can score.
    ///
    /// # Errors
    /// When the model cannot be loaded or does not fit its package.
    pub fn start(
        runtime: &Runtime,
        detector: Detector,
        config: &InferenceConfig,
        broken: watch::Sender<Option<String>>,
    ) -> Result<Self, InferError> {
        let runtime = runtime.clone();
        let for_session = detector.clone();
        Self::start_with(detector, config, broken, move || runtime.session(&for_session))
    }

    /// As [`Engine::start`], with any session.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_with(
        detector: Detector,
        config: &InferenceConfig,
        broken: watch::Sender<Option<String>>,
        open: impl FnOnce() -> Result<Box<dyn Session>, InferError> + Send + 'static,
    ) -> Result<Self, InferError> {
        let model = |what: String| InferError::Model { detector: detector.name.clone(), what };
        let queue = Arc::new(Queue { gather: Mutex::new(Gather::new(1)), ready: Condvar::new() });
        let (report, warm) = std::sync::mpsc::channel();
        let first = spawn(&detector, {
            let (queue, detector, config, broken) =
                (Arc::clone(&queue), detector.clone(), config.clone(), broken.clone());
            move || match open().and_then(|session| warmed(session, &detector, &config)) {
                Err(e) => drop(report.send(Err(e))),
                Ok((session, warm)) => {
                    queue.with(|gather| *gather = Gather::new(warm.max_batch));
                    let activation = warm.activation;
                    drop(report.send(Ok(warm)));
                    Worker { session, activation, queue: &queue, detector: &detector, broken: &broken }.work();
                }
            }
        })?;
        let warm = warm.recv().unwrap_or_else(|_| Err(model("its session's thread panicked while loading".into())))?;
        let place = warm.place;
        let mut engine = Self { detector: detector.clone(), place, queue: Arc::clone(&queue), threads: vec![first] };
        if let Some(session) = warm.twin {
            let activation = warm.activation;
            engine.threads.push(spawn(&engine.detector, move || {
                Worker { session, activation, queue: &queue, detector: &detector, broken: &broken }.work();
            })?);
        }
        Ok(engine)
    }

    /// Images a run at the most: after warm-up as it found best, later as many as there is memory for.
    #[must_use]
    pub fn max_batch(&self) -> usize {
        self.queue.gather.lock().unwrap_or_else(PoisonError::into_inner).max_batch()
    }

    /// Has no run take more images than that.
    pub fn limit(&self, max_batch: usize) {
        self.queue.limit(max_batch);
    }

    /// Scores one image: a probability a label, in the detector's order. Dropping the future abandons an image that
    /// still waits.
    ///
    /// # Errors
    /// When the model cannot run this image, or the session is gone.
    pub async fn score(&self, lane: Lane, pixels: Arc<Pixels>) -> Result<Vec<f32>, Unscored> {
        let (reply, scored) = oneshot::channel();
        let broken = || Unscored::Broken(self.detector.name.clone());
        self.queue
            .with(|gather| gather.push(lane, Item { pixels, job: traces::Link::here(), reply }))
            .map_err(|_| broken())?;
        scored.await.unwrap_or_else(|_| Err(broken()))
    }

    /// Scores images that arrive at one moment, so that an idle session takes up to `max_batch` of them in one run.
    ///
    /// # Errors
    /// As [`Engine::score`], for the first image that has no scores.
    pub async fn score_together(&self, lane: Lane, images: Vec<Arc<Pixels>>) -> Result<Vec<Vec<f32>>, Unscored> {
        let broken = || Unscored::Broken(self.detector.name.clone());
        let scored = self.queue.with(|gather| {
            let push = |pixels| {
                let (reply, scored) = oneshot::channel();
                let item = Item { pixels, job: traces::Link::here(), reply };
                gather.push(lane, item).map(|()| scored).map_err(|_| broken())
            };
            images.into_iter().map(push).collect::<Result<Vec<_>, _>>()
        })?;
        let answer = |scored: oneshot::Receiver<_>| async { scored.await.unwrap_or_else(|_| Err(broken())) };
        futures_util::future::try_join_all(scored.into_iter().map(answer)).await
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.with(Gather::close);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(detector = self.detector.name, "the session's thread panicked");
            }
        }
    }
}

fn spawn(detector: &Detector, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, InferError> {
    let named = std::thread::Builder::new().name(format!("session-{}", detector.name));
    named.spawn(work).map_err(|e| InferError::Model {
        detector: detector.name.clone(),
        what: format!("no thread for its session: {e}"),
    })
}

/// A session that is ready to score, and what was found out about it.
fn warmed(
    mut session: Box<dyn Session>,
    detector: &Detector,
    config: &InferenceConfig,
) -> Result<(Box<dyn Session>, Warm), InferError> {
    let (activation, max_batch) = warm_up(session.as_mut(), detector, config)?;
    // Neither is needed: without the first it is larger, without the second slower, and no less right.
    if let Err(e) = session.settle(max_batch, &plain(detector, 127)) {
        tracing::warn!(detector = detector.name, error = %e, "the memory that larger batches took in warm-up is kept");
    }
    let twin = session.twin().unwrap_or_else(|e| {
        tracing::warn!(detector = detector.name, error = %e, "no second set of buffers, so no batch is filled while another one runs");
        None
    });
    let warm = Warm { activation, max_batch, place: session.place().to_owned(), twin };
    Ok((session, warm))
}

/// The largest batch of up to `images` that warm-up ran, whose sizes double: where memory for one is bound, any other is
/// padded to the next larger.
fn of_warm_up(images: usize) -> usize {
    1 << images.max(1).ilog2()
}

fn activate(activation: Activation, row: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Sigmoid => row.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
        Activation::Softmax => {
            // Shifted by the maximum, so that exp cannot overflow; NaN stays NaN.
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|x| *x = (*x - max).exp());
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|x| *x /= sum);
        }
    }
}

/// Whatever ends the session's thread, a panic included: nobody waits for it any more.
struct LastWords<'a> {
    queue: &'a Queue,
    detector: &'a Detector,
    broken: &'a watch::Sender<Option<String>>,
}

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        self.queue.with(Gather::abandon);
        if std::thread::panicking() {
            self.broken.send_replace(Some(format!("the session's thread of {} panicked", self.detector.name)));
        }
    }
}

struct Worker<'a> {
    session: Box<dyn Session>,
    activation: Activation,
    queue: &'a Queue,
    detector: &'a Detector,
    broken: &'a watch::Sender<Option<String>>,
}

impl Worker<'_> {
    fn work(&mut self) {
        let _last_words = LastWords { queue: self.queue, detector: self.detector, broken: self.broken };
        while let Some(batch) = self.queue.next() {
            let scored = self.score(batch);
            self.queue.with(Gather::done);
            if let Err(reason) = scored {
                tracing::error!(detector = self.detector.name, reason, "session is broken");
                self.broken.send_replace(Some(format!("the session of {} is broken: {reason}", self.detector.name)));
                return;
            }
        }
    }

    /// One run, counted, in a span that points to its jobs.
    fn run(&mut self, batch: &[Item]) -> Result<Vec<Vec<f32>>, SessionError> {
        let pixels: Vec<_> = batch.iter().map(|item| Arc::clone(&item.pixels)).collect();
        let span = traces::batch(&self.detector.name, batch.iter().map(|item| &item.job));
        let began = Instant::now();
        let run = span.in_scope(|| self.session.run(&pixels));
        let took = run.as_ref().map_or_else(|_| began.elapsed(), |run| run.took);
        metrics::ran(&self.detector.name, pixels.len(), took);
        run.map(|run| run.rows)
    }

    /// Answers every item of a batch. The error is the session's death, and leaves items unanswered: they are dropped,
    /// which tells their owners the same.
    fn score(&mut self, mut batch: Vec<Item>) -> Result<(), String> {
        let error = match self.run(&batch) {
            Ok(rows) => {
                for (item, mut row) in batch.into_iter().zip(rows) {
                    activate(self.activation, &mut row);
                    drop(item.reply.send(Ok(row)));
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if batch.len() > 1 {
            // What failed may have been padded to the next size.
            let half = batch.len().next_power_of_two() / 2;
            if let SessionError::OutOfMemory(_) = error {
                let max_batch = self.queue.limit(half);
                tracing::warn!(detector = self.detector.name, max_batch, "out of memory, batches are halved");
                metrics::batch_limit(&self.detector.name, max_batch);
            }
            let rest = batch.split_off(half);
            self.score(batch)?;
            return self.score(rest);
        }
        let Some(item) = batch.pop() else { return Ok(()) };
        match self.run(std::slice::from_ref(&item)) {
            Ok(rows) => {
                let mut row = rows.into_iter().next().unwrap_or_default();
                activate(self.activation, &mut row);
                drop(item.reply.send(Ok(row)));
                Ok(())
            }
            Err(again) => {
                self.session
                    .run(&[plain(self.detector, 127)])
                    .map_err(|e| format!("{error}; on a blank image: {e}"))?;
                drop(item.reply.send(Err(Unscored::Item(again.to_string()))));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::policy::tests::detector;

    type Ran = Result<Vec<Vec<f32>>, SessionError>;

    #[test]
    fn a_batch_is_lowered_to_a_size_that_warm_up_ran() {
        assert_eq!([0, 1, 2, 3, 42, 64].map(of_warm_up), [1, 1, 2, 2, 32, 64]);
    }

    /// A session that is nothing but what it does with a batch of first bytes.
    #[derive(Clone)]
    struct Fake<R> {
        run: R,
        has_twin: bool,
        has_settled: bool,
    }

    impl<R: FnMut(&[u8]) -> Ran + Clone + Send + 'static> Session for Fake<R> {
        fn run(&mut self, batch: &[Arc<Pixels>]) -> Result<Run, SessionError> {
            let shades: Vec<u8> = batch.iter().map(|pixels| pixels.data[0]).collect();
            Ok(Run { rows: (self.run)(&shades)?, took: Duration::ZERO })
        }

        fn fixed_batch(&self) -> Option<usize> {
            None
        }

        fn place(&self) -> &'static str {
            "test"
        }

        fn output_name(&self) -> &'static str {
            "logits"
        }

        fn is_slow(&self) -> bool {
            false
        }

        fn settle(&mut self, max_batch: usize, _image: &Arc<Pixels>) -> Result<(), SessionError> {
            assert_eq!(max_batch, 8);
            self.has_settled = true;
            Ok(())
        }

        fn twin(&self) -> Result<Option<Box<dyn Session>>, SessionError> {
            assert!(self.has_settled, "a twin has buffers for what will come only");
            Ok(self.has_twin.then(|| Box::new(self.clone()) as Box<dyn Session>))
        }
    }

    /// An engine of batches of 8, and whether it broke.
    fn start(
        has_twin: bool,
        run: impl FnMut(&[u8]) -> Ran + Clone + Send + 'static,
    ) -> Result<(Engine, watch::Receiver<Option<String>>), InferError> {
        let (broken, is_broken) = watch::channel(None);
        let config = InferenceConfig { max_batch: 8, ..InferenceConfig::default() };
        let open = move || Ok(Box::new(Fake { run, has_twin, has_settled: false }) as Box<dyn Session>);
        Ok((Engine::start_with(detector("d", &["a", "b"]), &config, broken, open)?, is_broken))
    }

    /// A row an image, from its shade.
    fn rows(shades: &[u8]) -> Vec<Vec<f32>> {
        shades.iter().map(|shade| vec![0.0, f32::from(*shade)]).collect()
    }

    /// Fails on any batch that holds the shade 66, on more than fit in `memory`, and on all after `dies_on`.
    fn faulty(memory: usize, dies_on: Option<u8>) -> Result<(Engine, watch::Receiver<Option<String>>), InferError> {
        let mut dead = false;
        start(false, move |shades| {
            dead |= shades.iter().any(|shade| Some(*shade) == dies_on);
            if dead || shades.contains(&66) {
                return Err(SessionError::Other("bad item".into()));
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
    async fn a_bad_item_stands_alone_in_the_end() {
        let (engine, broken) = faulty(64, None).unwrap();
        let jobs = (60..70u8).map(|value| engine.score(Lane::Live, shade(value)));
        let results = futures_util::future::join_all(jobs).await;
        for (value, result) in (60..70u8).zip(results) {
            assert_eq!(result.is_err(), value == 66, "{value}: {result:?}");
        }
        assert!(broken.borrow().is_none());
    }

    #[tokio::test]
    async fn want_of_memory_lowers_batches_to_the_size_below_the_one_that_failed() {
        // Once warm there is room for four, and a session may have padded seven to eight.
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
        // Says of each image how many shared its run.
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
    async fn a_session_that_dies_says_so_and_answers_nobody_wrongly() {
        let (engine, mut broken) = faulty(64, Some(7)).unwrap();
        let jobs = [1, 7, 2].map(|value| engine.score(Lane::Live, shade(value)));
        for result in futures_util::future::join_all(jobs).await.into_iter().skip(1) {
            assert!(matches!(result, Err(Unscored::Broken(_))), "{result:?}");
        }
        assert!(broken.wait_for(Option::is_some).await.is_ok());
        assert!(matches!(engine.score(Lane::Live, shade(1)).await, Err(Unscored::Broken(_))));
    }

    /// Two whose full batches end only together. The shade 66 kills both.
    fn twins() -> (Engine, watch::Receiver<Option<String>>) {
        let (together, dead) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
        let run = move |shades: &[u8]| {
            dead.fetch_or(shades.contains(&66), Ordering::SeqCst);
            if dead.load(Ordering::SeqCst) {
                return Err(SessionError::Other("dead".into()));
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
    async fn two_full_batches_are_at_work_at_once_and_everyone_is_answered() {
        let (engine, _broken) = twins();
        for round in 0..20 {
            // Neither of the two batches would end without the other.
            let rows = engine.score_together(Lane::Live, (0..16).map(shade).collect()).await.unwrap();
            assert_eq!(rows.len(), 16);
            assert!(rows.windows(2).all(|pair| pair[0][1] <= pair[1][1]), "{round}: out of order: {rows:?}");
        }
        let row = engine.score(Lane::Live, shade(1)).await.unwrap();
        assert!((row[1] - 1.0 / (1.0 + (-1f32).exp())).abs() < 1e-6, "one alone waits for nobody: {row:?}");
    }

    #[tokio::test]
    async fn when_one_of_two_dies_both_end() {
        let (engine, mut broken) = twins();
        let dying = engine.score(Lane::Live, shade(66)).await;
        assert!(matches!(dying, Err(Unscored::Broken(_))), "{dying:?}");
        assert!(broken.wait_for(Option::is_some).await.is_ok());
        assert!(matches!(engine.score(Lane::Live, shade(1)).await, Err(Unscored::Broken(_))));
        // This waits for both threads.
        drop(engine);
    }

    #[test]
    fn a_model_that_needs_more_memory_than_there_is_in_warm_up_is_refused() {
        let refused = faulty(0, None);
        assert!(refused.is_err());
    }

    #[test]
    fn softmax_does_not_overflow_and_keeps_nan() {
        let mut row = [1000.0, 1000.0];
        activate(Activation::Softmax, &mut row);
        assert_eq!(row, [0.5, 0.5]);
        let mut row = [f32::NAN, 1.0];
        activate(Activation::Softmax, &mut row);
        assert!(row.iter().all(|x| x.is_nan()));
    }
}
