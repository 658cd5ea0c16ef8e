//! The decoder threads and the images that wait for them.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::budget::Budget;
use super::sandbox::{Decoder, Layers};
use super::{Decoded, Tools, Undecodable, Unread, Wanted, decode_safely};
use crate::config::{DecodeConfig, DecodeMode, Isolation};
use crate::detector::Geometry;
use crate::job::Lane;
use crate::lanes::Lanes;
use crate::telemetry::traces;

/// The decoder threads and the images that wait for one, live before backfill.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    layers: Option<Layers>,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    limits: DecodeConfig,
    budget: Budget,
}

#[derive(Default)]
struct Queue {
    waiting: Lanes<Task>,
    closed: bool,
}

struct Task {
    bytes: Bytes,
    geometries: Arc<[Geometry]>,
    mode: DecodeMode,
    reply: oneshot::Sender<Result<Decoded, Unread>>,
}

impl Pool {
    /// Starts the threads, and a process for each if that is wanted.
    ///
    /// # Errors
    /// When the system refuses a thread or a process.
    pub fn start(config: &DecodeConfig) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            ready: Condvar::new(),
            limits: config.clone(),
            budget: Budget::new(config.memory_bytes),
        });
        let mut pool = Self { shared: Arc::clone(&shared), threads: Vec::new(), layers: None };
        let (started, starting) = std::sync::mpsc::channel();
        for i in 0..Self::threads(config) {
            let (shared, started) = (Arc::clone(&shared), started.clone());
            let work = move || match Worker::start(&shared) {
                Ok(worker) => {
                    drop(started.send(Ok(worker.layers())));
                    drop(started);
                    worker.work(&shared);
                }
                Err(e) => drop(started.send(Err(e))),
            };
            pool.threads.push(std::thread::Builder::new().name(format!("decode-{i}")).spawn(work)?);
        }
        drop(started);
        // The channel ends once all have begun to work. They are all of one program, confined alike.
        for layers in starting {
            pool.layers = layers?;
        }
        if let Some(layers) = pool.layers.as_ref().filter(|layers| !layers.missing.is_empty()) {
            tracing::warn!(%layers, "decoders are not confined as they could be");
        }
        Ok(pool)
    }

    /// What confines the processes that decode, if there are any.
    #[must_use]
    pub fn layers(&self) -> Option<&Layers> {
        self.layers.as_ref()
    }

    /// How many threads a configuration means.
    #[must_use]
    pub fn threads(config: &DecodeConfig) -> usize {
        if config.threads > 0 { config.threads } else { num_cpus::get() }
    }

    /// Decodes an image for every geometry. Dropping the future abandons an image that still waits.
    ///
    /// # Errors
    /// When the bytes are not a whole image that may be decoded.
    pub async fn decode(&self, lane: Lane, bytes: Bytes, geometries: Arc<[Geometry]>) -> Result<Decoded, Unread> {
        self.decode_in(self.shared.limits.mode, lane, bytes, geometries).await
    }

    /// As [`Pool::decode`], in a mode of its own.
    ///
    /// # Errors
    /// As [`Pool::decode`].
    pub async fn decode_in(
        &self,
        mode: DecodeMode,
        lane: Lane,
        bytes: Bytes,
        geometries: Arc<[Geometry]>,
    ) -> Result<Decoded, Unread> {
        let (reply, decoded) = oneshot::channel();
        {
            let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.waiting.push(lane, Task { bytes, geometries, mode, reply });
        }
        self.shared.ready.notify_one();
        let decoded = decoded.await.unwrap_or_else(|_| Err(Undecodable::new("the decoder gave no answer").into()))?;
        traces::note("pixwarden.image.format", decoded.seen.format);
        Ok(decoded)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.ready.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a decoder thread panicked");
            }
        }
    }
}

/// What a decoder thread works with.
enum Worker<'a> {
    Alone(Tools),
    With(Decoder<'a>),
}

impl<'a> Worker<'a> {
    fn start(shared: &'a Shared) -> std::io::Result<Self> {
        Ok(match shared.limits.isolation {
            Isolation::Thread => Self::Alone(Tools::new(&shared.limits)),
            Isolation::Process => Self::With(Decoder::start(&shared.limits, &shared.budget)?),
        })
    }

    fn layers(&self) -> Option<Layers> {
        match self {
            Self::Alone(_) => None,
            Self::With(decoder) => decoder.layers(),
        }
    }

    fn work(mut self, shared: &Shared) {
        while let Some(task) = shared.next() {
            let wanted = Wanted { bytes: &task.bytes, geometries: &task.geometries, mode: task.mode };
            let decoded = match &mut self {
                Self::Alone(tools) => {
                    decode_safely(&wanted, &shared.limits, &shared.budget, tools).map_err(Unread::from)
                }
                Self::With(decoder) => decoder.decode(&wanted),
            };
            // Nobody waits for an answer once the job was given up.
            drop(task.reply.send(decoded));
        }
    }
}

impl Shared {
    /// The next task somebody still waits for, or `None` once the pool is closed and empty.
    fn next(&self) -> Option<Task> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match queue.waiting.pop() {
                Some(task) if task.reply.is_closed() => {}
                Some(task) => return Some(task),
                None if queue.closed => return None,
                None => queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
