//! The decoder threads, and the images that wait for one.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::memory_budget::MemoryBudget;
use super::sandbox::{Confinement, SupervisedDecoder};
use super::{DecodeRequest, DecodeScratch, DecodedImage, decode_safely};
use crate::config::{DecodeConfig, DecodeMode, Isolation};
use crate::detector::Geometry;
use crate::job::Lane;
use crate::lanes::Lanes;
use crate::screen::error::{DecoderProcessError, ScreenError, Undecodable};
use crate::telemetry::traces;

/// The decoder threads, and the images that wait for one: live before backfill.
pub struct DecoderPool {
    shared: Arc<PoolShared>,
    threads: Vec<JoinHandle<()>>,
    confinement: Option<Confinement>,
}

/// What all decoder threads share.
struct PoolShared {
    queue: Mutex<DecodeQueue>,
    /// An image was queued, or the pool was closed.
    changed: Condvar,
    limits: DecodeConfig,
    budget: MemoryBudget,
}

#[derive(Default)]
struct DecodeQueue {
    waiting: Lanes<QueuedImage>,
    closed: bool,
}

struct QueuedImage {
    bytes: Bytes,
    geometries: Arc<[Geometry]>,
    mode: DecodeMode,
    reply: oneshot::Sender<Result<DecodedImage, ScreenError>>,
}

impl DecoderPool {
    /// Starts the threads, and a process for each where images are decoded in processes.
    ///
    /// # Errors
    /// When the system refuses a thread or a process.
    pub fn start(config: &DecodeConfig) -> Result<Self, DecoderProcessError> {
        let shared = Arc::new(PoolShared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            limits: config.clone(),
            budget: MemoryBudget::new(config.memory_bytes),
        });
        let mut pool = Self { shared: Arc::clone(&shared), threads: Vec::new(), confinement: None };
        let (report, reports) = std::sync::mpsc::channel();
        for i in 0..Self::thread_count(config) {
            let (shared, report) = (Arc::clone(&shared), report.clone());
            let body = move || match DecoderThread::start(&shared) {
                Ok(thread) => {
                    drop(report.send(Ok(thread.confinement())));
                    drop(report);
                    thread.run(&shared);
                }
                Err(e) => drop(report.send(Err(e))),
            };
            let thread = std::thread::Builder::new().name(format!("decode-{i}")).spawn(body);
            pool.threads.push(thread.map_err(DecoderProcessError::Thread)?);
        }
        drop(report);
        // The channel ends once every thread has started. All processes run one program, so they are confined alike.
        for confinement in reports {
            pool.confinement = confinement?;
        }
        if let Some(confinement) = pool.confinement.as_ref().filter(|confinement| !confinement.missing.is_empty()) {
            tracing::warn!(%confinement, "decoder processes started without some sandbox layers");
        }
        Ok(pool)
    }

    /// What confines the decoder processes, if there are any.
    pub(crate) fn confinement(&self) -> Option<&Confinement> {
        self.confinement.as_ref()
    }

    /// The number of threads that a configuration means.
    pub(crate) fn thread_count(config: &DecodeConfig) -> usize {
        if config.threads > 0 { config.threads } else { num_cpus::get() }
    }

    /// Decodes an image for every geometry, in the configured mode. Dropping the future abandons an image that still
    /// waits.
    ///
    /// # Errors
    /// When the image cannot be decoded, or no decoder is available.
    pub(crate) async fn decode(
        &self,
        lane: Lane,
        bytes: Bytes,
        geometries: Arc<[Geometry]>,
    ) -> Result<DecodedImage, ScreenError> {
        self.decode_with_mode(self.shared.limits.mode, lane, bytes, geometries).await
    }

    /// Decodes an image for every geometry, in the given mode.
    ///
    /// # Errors
    /// When the image cannot be decoded, or no decoder is available.
    pub async fn decode_with_mode(
        &self,
        mode: DecodeMode,
        lane: Lane,
        bytes: Bytes,
        geometries: Arc<[Geometry]>,
    ) -> Result<DecodedImage, ScreenError> {
        let (reply, decoded) = oneshot::channel();
        {
            let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.waiting.push(lane, QueuedImage { bytes, geometries, mode, reply });
        }
        self.shared.changed.notify_one();
        let decoded = decoded.await.unwrap_or_else(|_| Err(Undecodable::new("the decoder thread panicked").into()))?;
        traces::record_text("pixwarden.image.format", decoded.info.format);
        Ok(decoded)
    }
}

impl Drop for DecoderPool {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a decoder thread panicked");
            }
        }
    }
}

/// How a decoder thread decodes: by itself, or in its process.
enum DecoderThread<'a> {
    InThread(DecodeScratch),
    InProcess(SupervisedDecoder<'a>),
}

impl<'a> DecoderThread<'a> {
    fn start(shared: &'a PoolShared) -> Result<Self, DecoderProcessError> {
        Ok(match shared.limits.isolation {
            Isolation::Thread => Self::InThread(DecodeScratch::new(&shared.limits)),
            Isolation::Process => Self::InProcess(SupervisedDecoder::start(&shared.limits, &shared.budget)?),
        })
    }

    fn confinement(&self) -> Option<Confinement> {
        match self {
            Self::InThread(_) => None,
            Self::InProcess(decoder) => decoder.confinement(),
        }
    }

    fn run(mut self, shared: &PoolShared) {
        while let Some(image) = shared.next_image() {
            let request = DecodeRequest { bytes: &image.bytes, geometries: &image.geometries, mode: image.mode };
            let decoded = match &mut self {
                Self::InThread(scratch) => {
                    decode_safely(&request, &shared.limits, &shared.budget, scratch).map_err(ScreenError::from)
                }
                Self::InProcess(decoder) => decoder.decode(&request),
            };
            // The receiver is gone if the job was abandoned meanwhile.
            drop(image.reply.send(decoded));
        }
    }
}

impl PoolShared {
    /// Waits for an image that was not abandoned; `None` once the pool is closed and empty.
    fn next_image(&self) -> Option<QueuedImage> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match queue.waiting.pop() {
                Some(image) if image.reply.is_closed() => {}
                Some(image) => return Some(image),
                None if queue.closed => return None,
                None => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
