//! Sessions of ONNX Runtime. The only file that names `ort`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::ep::{self, ExecutionProviderDispatch};
use ort::session::Session as OrtSession;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{TensorElementType, TensorRef, ValueType};

use super::{InferError, Pixels, Session, SessionError};
use crate::config::{Device, InferenceConfig};
use crate::detector::{Detector, Normalisation};

/// The shared library's name where the system's loader is asked.
const LIBRARY: &str = "libonnxruntime.so";

/// The loaded library and its one thread pool for all sessions.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    config: InferenceConfig,
}

impl Runtime {
    /// Loads the shared library: `inference.runtime`, else `ORT_DYLIB_PATH`, else `lib/` beside the executable, else
    /// the system's.
    ///
    /// # Errors
    /// When it cannot be loaded or is too old.
    pub fn load(config: &InferenceConfig) -> Result<Self, InferError> {
        let path = library(config);
        let failed = |e: &dyn std::fmt::Display| InferError::Library(format!("{}: {e}", path.display()));
        let threads = if config.threads > 0 { config.threads } else { num_cpus::get() };
        // Before anything else of ort: making the pool's options is a call into the library already.
        let builder = ort::init_from(&path).map_err(|e| failed(&e))?;
        // Spinning would burn the cores that decode.
        let pool = GlobalThreadPoolOptions::default()
            .with_intra_threads(threads)
            .and_then(|pool| pool.with_inter_threads(1))
            .and_then(|pool| pool.with_spin_control(false))
            .map_err(|e| failed(&e))?;
        let environment = builder
            .with_name("pixwarden")
            .with_telemetry(false)
            .with_global_thread_pool(pool)
            .build()
            .map_err(|e| failed(&e))?;
        Ok(Self { environment, config: config.clone() })
    }

    /// Opens a detector's session on the configured device.
    pub(super) fn session(&self, detector: &Detector) -> Result<Box<dyn Session>, InferError> {
        match self.config.device {
            Device::Cpu => self.on_cpu(detector),
            Device::Cuda => {
                self.on_cuda(detector).map_err(|e| InferError::Device { device: "cuda", error: e.to_string() })
            }
            Device::Auto => match self.on_cuda(detector) {
                Ok(session) => Ok(session),
                Err(e) => {
                    tracing::debug!(detector = detector.name, error = %e, "no GPU, taking the CPU");
                    self.on_cpu(detector)
                }
            },
        }
    }

    fn on_cpu(&self, detector: &Detector) -> Result<Box<dyn Session>, InferError> {
        self.open(detector, &[ep::CPU::default().with_arena_allocator(true).build()], "CPU")
    }

    fn on_cuda(&self, detector: &Detector) -> Result<Box<dyn Session>, InferError> {
        let mut cuda = ep::CUDA::default();
        if self.config.gpu_memory_bytes > 0 {
            cuda = cuda.with_memory_limit(self.config.gpu_memory_bytes);
        }
        // Without this a provider that cannot be had is silently replaced by the CPU.
        self.open(detector, &[cuda.build().error_on_failure()], "CUDA device 0")
    }

    fn open(
        &self,
        detector: &Detector,
        providers: &[ExecutionProviderDispatch],
        place: &'static str,
    ) -> Result<Box<dyn Session>, InferError> {
        let model = |what: String| InferError::Model { detector: detector.name.clone(), what };
        let loading = |e: &dyn std::fmt::Display| model(format!("{} cannot be loaded: {e}", detector.model.display()));
        let mut builder = OrtSession::builder(&self.environment)
            .map_err(|e| loading(&e))?
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(|e| loading(&e))?
            .with_execution_providers(providers)
            .map_err(|e| loading(&e))?;
        let session = builder.commit_from_file(&detector.model).map_err(|e| loading(&e))?;

        let [input] = session.inputs() else {
            return Err(model(format!(
                "the model has {} inputs, and one, the image, is supported",
                session.inputs().len()
            )));
        };
        let ValueType::Tensor { ty, shape, .. } = input.dtype() else {
            return Err(model("the model's input is not a tensor".into()));
        };
        let (layout, fixed_batch) = layout(*ty, shape, detector).map_err(model)?;
        let output = session.outputs().first().map(|output| output.name().to_owned());
        let output = output.ok_or_else(|| model("the model has no output".into()))?;
        Ok(Box::new(Onnx { session, layout, fixed_batch, output, place, buffer: Buffer::default() }))
    }
}

fn library(config: &InferenceConfig) -> PathBuf {
    if !config.runtime.is_empty() {
        return PathBuf::from(&config.runtime);
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return PathBuf::from(path);
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("lib").join(LIBRARY)));
    match beside {
        Some(path) if path.is_file() => path,
        _ => Path::new(LIBRARY).to_owned(),
    }
}

/// What the model's input wants.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    /// `[batch, height, width, 3] u8`, normalised in the graph.
    BytesNhwc,
    /// `[batch, 3, height, width] f32`, normalised here.
    FloatNchw(Normalisation),
    /// As `FloatNchw`, in half precision.
    HalfNchw(Normalisation),
}

/// Reads the layout from the input's type and shape, and checks its size against the package.
fn layout(ty: TensorElementType, shape: &[i64], detector: &Detector) -> Result<(Layout, Option<usize>), String> {
    let (width, height) = (detector.geometry.width, detector.geometry.height);
    // A dimension below 0 is free.
    let fits = |dimension: i64, wanted: u32| dimension < 0 || dimension == i64::from(wanted);
    let supported = "supported are uint8 [batch, height, width, 3] and float [batch, 3, height, width]";
    let (layout, found, size_fits) = match (ty, shape) {
        (TensorElementType::Uint8, &[n, h, w, c]) if fits(c, 3) => {
            (Layout::BytesNhwc, n, fits(h, height) && fits(w, width))
        }
        (TensorElementType::Float32, &[n, c, h, w]) if fits(c, 3) => {
            (Layout::FloatNchw(detector.normalisation), n, fits(h, height) && fits(w, width))
        }
        (TensorElementType::Float16, &[n, c, h, w]) if fits(c, 3) => {
            (Layout::HalfNchw(detector.normalisation), n, fits(h, height) && fits(w, width))
        }
        _ => return Err(format!("the model's input is {ty} {shape:?}; {supported}")),
    };
    if !size_fits {
        return Err(format!("the model's input is {shape:?}, but the preprocessing makes images of {width}x{height}"));
    }
    match found {
        ..=-1 => Ok((layout, None)),
        1 => Ok((layout, Some(1))),
        n => Err(format!("the model's batch is fixed to {n}; export it with a dynamic batch (or a batch of 1)")),
    }
}

/// Reused between runs, so that a steady state allocates nothing a batch.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    floats: Vec<f32>,
    halves: Vec<f16>,
}

struct Onnx {
    session: OrtSession,
    layout: Layout,
    fixed_batch: Option<usize>,
    output: String,
    place: &'static str,
    buffer: Buffer,
}

impl Session for Onnx {
    fn run(&mut self, batch: &[Arc<Pixels>]) -> Result<Vec<Vec<f32>>, SessionError> {
        let Some(first) = batch.first() else { return Ok(Vec::new()) };
        let (n, h, w) = (batch.len(), first.height as usize, first.width as usize);
        let buffer = &mut self.buffer;
        let outputs = match self.layout {
            Layout::BytesNhwc => {
                buffer.bytes.clear();
                batch.iter().for_each(|pixels| buffer.bytes.extend_from_slice(&pixels.data));
                let input = TensorRef::from_array_view(([n, h, w, 3], &buffer.bytes[..])).map_err(failure)?;
                self.session.run(ort::inputs![input])
            }
            Layout::FloatNchw(normalisation) => {
                planes(batch, normalisation, &mut buffer.floats, |x| x);
                let input = TensorRef::from_array_view(([n, 3, h, w], &buffer.floats[..])).map_err(failure)?;
                self.session.run(ort::inputs![input])
            }
            Layout::HalfNchw(normalisation) => {
                planes(batch, normalisation, &mut buffer.halves, f16::from_f32);
                let input = TensorRef::from_array_view(([n, 3, h, w], &buffer.halves[..])).map_err(failure)?;
                self.session.run(ort::inputs![input])
            }
        }
        .map_err(failure)?;

        let output = &outputs[0];
        let values: Vec<f32> = match output.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float16, .. } => {
                output.try_extract_tensor::<f16>().map_err(failure)?.1.iter().map(|x| x.to_f32()).collect()
            }
            _ => output.try_extract_tensor::<f32>().map_err(failure)?.1.to_vec(),
        };
        if values.is_empty() || !values.len().is_multiple_of(n) {
            return Err(SessionError::Other(format!("{} outputs for {n} images", values.len())));
        }
        Ok(values.chunks(values.len() / n).map(<[f32]>::to_vec).collect())
    }

    fn fixed_batch(&self) -> Option<usize> {
        self.fixed_batch
    }

    fn place(&self) -> &str {
        self.place
    }

    fn output_name(&self) -> &str {
        &self.output
    }

    fn is_slow(&self) -> bool {
        self.place == "CPU"
    }
}

/// Normalises `[height, width, 3] u8` images into `[batch, 3, height, width]`.
fn planes<T>(batch: &[Arc<Pixels>], n: Normalisation, into: &mut Vec<T>, convert: impl Fn(f32) -> T) {
    into.clear();
    for pixels in batch {
        for channel in 0..3 {
            let (mean, std) = (n.mean[channel], n.std[channel]);
            into.extend(
                pixels
                    .data
                    .iter()
                    .skip(channel)
                    .step_by(3)
                    .map(|byte| convert((f32::from(*byte) * n.scale - mean) / std)),
            );
        }
    }
}

fn failure(error: ort::Error) -> SessionError {
    let words = error.to_string();
    let lower = words.to_ascii_lowercase();
    if lower.contains("out of memory") || lower.contains("failed to allocate") || lower.contains("bad_alloc") {
        SessionError::OutOfMemory(words)
    } else {
        SessionError::Other(words)
    }
}
