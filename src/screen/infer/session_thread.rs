//! The thread that owns a session: it takes batches from the queue and answers each image.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{oneshot, watch};

use super::batch_queue::{BatchQueue, NextStep};
use super::run_watch::RunClock;
use super::warm_up::blank_image;
use super::{ModelSession, largest_warm_batch};
use crate::detector::{Activation, Detector};
use crate::error_text;
use crate::screen::error::{ScreenError, SessionError};
use crate::screen::pixels::Pixels;
use crate::telemetry::{metrics, traces};

/// One image that waits for a run.
pub(super) struct QueuedPixels {
    pub(super) pixels: Arc<Pixels>,
    pub(super) job: traces::SpanLink,
    pub(super) reply: oneshot::Sender<Result<Vec<f32>, ScreenError>>,
}

/// A detector's queue, shared by its engine and the threads that own its sessions.
pub(super) struct SharedQueue {
    queue: Mutex<BatchQueue<QueuedPixels>>,
    changed: Condvar,
}

impl SharedQueue {
    pub(super) fn new() -> Self {
        Self { queue: Mutex::new(BatchQueue::new(1)), changed: Condvar::new() }
    }

    /// Changes the queue, and wakes the threads that wait for a change.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut BatchQueue<QueuedPixels>) -> R) -> R {
        let result = act(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        result
    }

    pub(super) fn max_batch(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).max_batch()
    }

    /// Lowers the largest batch to a size that warm-up ran, of this many images or fewer. Returns the largest batch.
    pub(super) fn lower_max_batch(&self, images: usize) -> usize {
        self.with(|queue| {
            if images < queue.max_batch() {
                queue.lower_max_batch(largest_warm_batch(images));
            }
            queue.max_batch()
        })
    }

    /// Waits for a batch; `None` once the queue is closed and empty. After the run [`BatchQueue::batch_done`] is due.
    fn next_batch(&self) -> Option<Vec<QueuedPixels>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match queue.next_step(|item| item.reply.is_closed()) {
                NextStep::Run(batch) => return Some(batch),
                NextStep::End => return None,
                NextStep::Wait => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// What a session's thread works with.
pub(super) struct SessionThread<'a> {
    pub(super) session: Box<dyn ModelSession>,
    pub(super) activation: Activation,
    pub(super) queue: &'a SharedQueue,
    pub(super) detector: &'a Detector,
    pub(super) clock: &'a RunClock,
    /// Takes the reason once the session is broken.
    pub(super) report_broken: &'a watch::Sender<Option<String>>,
}

/// Empties the queue when a session's thread ends, also by a panic, so that no image waits for ever.
struct ThreadEndGuard<'a> {
    queue: &'a SharedQueue,
    detector: &'a Detector,
    report_broken: &'a watch::Sender<Option<String>>,
}

impl Drop for ThreadEndGuard<'_> {
    fn drop(&mut self) {
        self.queue.with(BatchQueue::abandon);
        if std::thread::panicking() {
            let reason = format!("detector {}: the thread of its session panicked", self.detector.name);
            self.report_broken.send_replace(Some(reason));
        }
    }
}

impl SessionThread<'_> {
    /// Runs batches until the queue is closed or the session is broken.
    pub(super) fn run(&mut self) {
        let _guard = ThreadEndGuard { queue: self.queue, detector: self.detector, report_broken: self.report_broken };
        while let Some(batch) = self.queue.next_batch() {
            let answered = self.answer(batch);
            self.queue.with(BatchQueue::batch_done);
            if let Err(error) = answered {
                let reason = format!("a blank image cannot be scored either: {}", error_text(&error));
                tracing::error!(detector = self.detector.name, reason, "session broken");
                let reason = format!("detector {}: its session is broken: {reason}", self.detector.name);
                self.report_broken.send_replace(Some(reason));
                return;
            }
        }
    }

    /// Runs a batch, measured, in a span that points to its jobs.
    fn run_batch(&mut self, batch: &[QueuedPixels]) -> Result<Vec<Vec<f32>>, SessionError> {
        let pixels: Vec<_> = batch.iter().map(|item| Arc::clone(&item.pixels)).collect();
        let span = traces::batch_span(&self.detector.name, batch.iter().map(|item| &item.job));
        let began = Instant::now();
        let run = span.in_scope(|| self.clock.measure(|| self.session.run(&pixels)));
        let took = run.as_ref().map_or_else(|_| began.elapsed(), |run| run.took);
        metrics::session_ran(&self.detector.name, pixels.len(), took);
        run.map(|run| run.rows)
    }

    /// Answers every image of a batch. A batch that fails is halved until the image at fault is alone.
    ///
    /// # Errors
    /// When the session is broken. Images without an answer are dropped then, which their owners take for the same.
    fn answer(&mut self, mut batch: Vec<QueuedPixels>) -> Result<(), SessionError> {
        let error = match self.run_batch(&batch) {
            Ok(rows) => {
                for (item, row) in batch.into_iter().zip(rows) {
                    self.reply(item, row);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if batch.len() > 1 {
            // The run that failed may have been padded to the next size.
            let half = batch.len().next_power_of_two() / 2;
            if let SessionError::OutOfMemory(_) = error {
                let max_batch = self.queue.lower_max_batch(half);
                tracing::warn!(detector = self.detector.name, max_batch, "out of memory, batches were halved");
                metrics::set_batch_limit(&self.detector.name, max_batch);
            }
            let rest = batch.split_off(half);
            self.answer(batch)?;
            return self.answer(rest);
        }
        match batch.pop() {
            Some(item) => self.answer_failed(item),
            None => Ok(()),
        }
    }

    /// Answers an image that failed alone. It is tried once more. Where it fails again, a blank image shows whether the
    /// image or the session is at fault.
    fn answer_failed(&mut self, item: QueuedPixels) -> Result<(), SessionError> {
        match self.run_batch(std::slice::from_ref(&item)) {
            Ok(rows) => self.reply(item, rows.into_iter().next().unwrap_or_default()),
            Err(source) => {
                self.clock.measure(|| self.session.run(&[blank_image(self.detector, 127)]))?;
                let error = ScreenError::SessionFailed { detector: self.detector.name.clone(), source };
                drop(item.reply.send(Err(error)));
            }
        }
        Ok(())
    }

    /// Sends an image's probabilities. Its receiver is gone if the job was abandoned meanwhile.
    fn reply(&self, item: QueuedPixels, mut row: Vec<f32>) {
        activate(self.activation, &mut row);
        drop(item.reply.send(Ok(row)));
    }
}

/// Turns a row of outputs into probabilities.
pub(super) fn activate(activation: Activation, row: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Sigmoid => row.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
        Activation::Softmax => {
            // Shifted by the maximum, so that exp cannot overflow. NaN stays NaN.
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|x| *x = (*x - max).exp());
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|x| *x /= sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
