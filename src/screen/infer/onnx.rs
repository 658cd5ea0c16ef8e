//! Sessions of ONNX Runtime. Only this file and `onnx/input_buffers.rs` name `ort`.

mod input_buffers;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use half::f16;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::ep::{self, ExecutionProviderDispatch};
use ort::memory::{AllocationDevice, MemoryType};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session as OrtSession, SessionOutputs};
use ort::value::{TensorElementType, ValueType};

use super::{InferError, ModelSession, Pixels, SessionError, SessionRun};
use crate::config::{Device, InferenceConfig};
use crate::detector::{Axes, Channels, Detector, Normalisation};
use crate::error_text;
use input_buffers::InputBuffers;

/// The shared library's name for the system's loader.
const LIBRARY: &str = "libonnxruntime.so";

/// A kind of host memory, as ONNX Runtime names it.
type HostMemory = (AllocationDevice<'static>, MemoryType);

/// The device that a session runs on.
#[derive(Debug, Clone)]
struct SessionDevice {
    /// For people, for metrics and for `models check`.
    name: &'static str,
    /// Memory of the host from which the device copies a batch. `None`: the device is the host.
    copies_from: Option<HostMemory>,
    /// Whether the duration of a run should bound the batch.
    is_slow: bool,
}

const CPU: SessionDevice = SessionDevice { name: "CPU", copies_from: None, is_slow: true };
const CUDA: SessionDevice = SessionDevice {
    name: "CUDA device 0",
    copies_from: Some((AllocationDevice::CUDA_PINNED, MemoryType::CPUInput)),
    is_slow: false,
};

/// The loaded library, and its one thread pool for all sessions.
#[derive(Clone)]
pub(in crate::screen) struct OnnxRuntime {
    environment: Environment,
    config: InferenceConfig,
}

impl OnnxRuntime {
    /// Loads the shared library: `inference.runtime`, else `ORT_DYLIB_PATH`, else `lib/` beside the executable, else
    /// the system's.
    ///
    /// # Errors
    /// When it cannot be loaded or is too old.
    pub(in crate::screen) fn load(config: &InferenceConfig) -> Result<Self, InferError> {
        let path = library_path(config);
        let failed =
            |e: &dyn std::fmt::Display| InferError::Library { path: path.clone(), error: e.to_string().into() };
        let threads = if config.threads > 0 { config.threads } else { num_cpus::get() };
        // Before anything else of `ort`: making the pool's options already calls the library.
        let builder = ort::init_from(&path).map_err(|e| failed(&e))?;
        // Spinning threads would take the cores that decode.
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
    pub(super) fn session(&self, detector: &Detector) -> Result<Box<dyn ModelSession>, InferError> {
        match self.config.device {
            Device::Cpu => self.on_cpu(detector),
            Device::Cuda => {
                self.on_cuda(detector).map_err(|e| InferError::Device { device: "cuda", error: Box::new(e) })
            }
            Device::Auto => match self.on_cuda(detector) {
                Ok(session) => Ok(session),
                Err(e) => {
                    tracing::debug!(detector = detector.name, error = error_text(&e), "no GPU, using the CPU");
                    self.on_cpu(detector)
                }
            },
        }
    }

    fn on_cpu(&self, detector: &Detector) -> Result<Box<dyn ModelSession>, InferError> {
        self.open(detector, &cpu_provider(), CPU)
    }

    fn on_cuda(&self, detector: &Detector) -> Result<Box<dyn ModelSession>, InferError> {
        let mut cuda = ep::CUDA::default();
        if self.config.gpu_memory_bytes > 0 {
            cuda = cuda.with_memory_limit(self.config.gpu_memory_bytes);
        }
        // Without this a provider that fails is silently replaced by the CPU.
        self.open(detector, &[cuda.build().error_on_failure()], CUDA)
    }

    fn open(
        &self,
        detector: &Detector,
        providers: &[ExecutionProviderDispatch],
        device: SessionDevice,
    ) -> Result<Box<dyn ModelSession>, InferError> {
        let model = |what: String| InferError::Model { detector: detector.name.clone(), what };
        let loading = |e: &dyn std::fmt::Display| InferError::Load {
            detector: detector.name.clone(),
            model: detector.model.clone(),
            source: e.to_string().into(),
        };
        let mut builder = OrtSession::builder(&self.environment)
            .map_err(|e| loading(&e))?
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(|e| loading(&e))?
            .with_execution_providers(providers)
            .map_err(|e| loading(&e))?;
        let session = builder.commit_from_file(&detector.model).map_err(|e| loading(&e))?;

        let [input] = session.inputs() else {
            return Err(model(format!(
                "the model has {} inputs, but only one, the image, is supported",
                session.inputs().len()
            )));
        };
        let ValueType::Tensor { ty, shape, .. } = input.dtype() else {
            return Err(model("the model's input is not a tensor".into()));
        };
        let (layout, fixed_batch) = input_layout(*ty, shape, detector).map_err(model)?;
        let input = input.name().to_owned();
        let outputs: Vec<_> = session.outputs().iter().map(|output| (output.name(), output.dtype())).collect();
        let output = scores_output(&outputs, detector.labels.len()).map_err(model)?.to_owned();
        let buffers = InputBuffers::new(&device);
        let model = LoadedModel { session: Mutex::new(session), layout, fixed_batch, input, output, device };
        Ok(Box::new(OnnxSession { model: Arc::new(model), buffers }))
    }
}

/// The provider for the CPU. Without the arena the memory of activations would stay in the C library's heap, in fragments.
fn cpu_provider() -> [ExecutionProviderDispatch; 1] {
    [ep::CPU::default().with_arena_allocator(true).build()]
}

fn library_path(config: &InferenceConfig) -> PathBuf {
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

/// The type and shape of the model's input.
#[derive(Debug, Clone, Copy, PartialEq)]
struct InputLayout {
    axes: Axes,
    element: InputElement,
}

/// The type of the model's input, and how a byte becomes one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum InputElement {
    /// `u8`, normalised in the graph.
    Byte,
    /// `f32`, normalised here.
    Float(Normalisation),
    /// `f16`, normalised here.
    Half(Normalisation),
}

/// Finds the layout by the input's type and shape, and checks its size against the package.
fn input_layout(
    ty: TensorElementType,
    shape: &[i64],
    detector: &Detector,
) -> Result<(InputLayout, Option<usize>), String> {
    let (width, height) = (detector.geometry.width, detector.geometry.height);
    let element = match ty {
        TensorElementType::Uint8 if detector.normalisation.channels == Channels::Bgr => {
            return Err("the model takes bytes and orders their channels itself, but the package puts blue first (`pixel_order` in config.json, or `do_flip_channel_order`)\n  hint: remove it, or set it to false, and flip in the graph if the model needs it".into());
        }
        TensorElementType::Uint8 => Some(InputElement::Byte),
        TensorElementType::Float32 => Some(InputElement::Float(detector.normalisation)),
        TensorElementType::Float16 => Some(InputElement::Half(detector.normalisation)),
        _ => None,
    };
    let (Some(element), &[batch, one, two, three]) = (element, shape) else {
        return Err(format!(
            "the model's input is {ty} {shape:?}; supported are uint8, float32 and float16, as [batch, 3, height, width] or [batch, height, width, 3]"
        ));
    };
    let axes = match detector.axes {
        Some(stated) => stated,
        None => axes_of([one, two, three], (width, height), element)
            .map_err(|what| format!("the model's input is {shape:?}: {what}"))?,
    };
    // A dimension below 0 is free.
    let fits = |dimension: i64, size: u32| dimension < 0 || dimension == i64::from(size);
    let (channels, found_height, found_width) = match axes {
        Axes::Nchw => (one, two, three),
        Axes::Nhwc => (three, one, two),
    };
    if !fits(channels, 3) {
        return Err(format!("the model's input is {shape:?}, which has {channels} channels, but images have 3"));
    }
    if !fits(found_height, height) || !fits(found_width, width) {
        return Err(format!("the model's input is {shape:?}, but the preprocessing makes images of {width}x{height}"));
    }
    let layout = InputLayout { axes, element };
    match batch {
        ..=-1 => Ok((layout, None)),
        1 => Ok((layout, Some(1))),
        n => Err(format!("the model's batch is fixed to {n}; export it with a dynamic batch (or a batch of 1)")),
    }
}

/// The order of the axes by where the three channels are.
fn axes_of(
    dimensions @ [first, _, last]: [i64; 3],
    (width, height): (u32, u32),
    element: InputElement,
) -> Result<Axes, &'static str> {
    let may_be = |dimension: i64| dimension < 0 || dimension == 3;
    match (may_be(first), may_be(last)) {
        (true, false) => Ok(Axes::Nchw),
        (false, true) => Ok(Axes::Nhwc),
        (false, false) => Err("no axis has 3 channels; images have 3"),
        (true, true) if first != last => Ok(if first == 3 { Axes::Nchw } else { Axes::Nhwc }),
        // No axis is fixed: exporters of floats are mostly those of PyTorch, and our own takes bytes.
        (true, true) if first < 0 => Ok(if element == InputElement::Byte { Axes::Nhwc } else { Axes::Nchw }),
        (true, true) => {
            let image = [i64::from(height), i64::from(width)];
            let fits = |found: &[i64]| found.iter().zip(image).all(|(found, edge)| *found < 0 || *found == edge);
            match (fits(&dimensions[1..]), fits(&dimensions[..2])) {
                (true, false) => Ok(Axes::Nchw),
                (false, true) => Ok(Axes::Nhwc),
                _ => Err(
                    "it is unclear which axis has the channels\n  hint: state it in config.json: \"pixwarden\": {\"layout\": \"NCHW\"} or \"NHWC\"",
                ),
            }
        }
    }
}

/// Chooses the output that holds the scores: the only one, else the one named `logits`, else the only one whose shape is
/// `[batch, labels]`. Exporters add hidden states and attentions, in any order.
fn scores_output<'a>(outputs: &[(&'a str, &ValueType)], labels: usize) -> Result<&'a str, String> {
    let shown = |(name, dtype): &(&str, &ValueType)| format!("\"{name}\" {dtype}");
    let fits = |dtype: &ValueType| match dtype {
        ValueType::Tensor { ty: TensorElementType::Float32 | TensorElementType::Float16, shape, .. } => {
            // A file without dimensions leaves it to the first run, which checks the width.
            shape.is_empty() || matches!(shape[..], [_, width] if width < 0 || usize::try_from(width) == Ok(labels))
        }
        _ => false,
    };
    let needed = format!("float [batch, {labels}] is needed, a row of {labels} scores for each image");
    let chosen = match outputs {
        [] => return Err("the model has no output".into()),
        [only] => only,
        several => match several.iter().find(|(name, _)| *name == "logits") {
            Some(logits) => logits,
            None => {
                let fitting: Vec<_> = several.iter().filter(|(_, dtype)| fits(dtype)).collect();
                match fitting[..] {
                    [only] => only,
                    _ => {
                        let all: Vec<_> = several.iter().map(shown).collect();
                        return Err(format!(
                            "it is unclear which of the model's outputs holds the scores: {}; {needed}\n  hint: export the model with one output, or name the output with the scores \"logits\"",
                            all.join(", ")
                        ));
                    }
                }
            }
        },
    };
    if fits(chosen.1) { Ok(chosen.0) } else { Err(format!("the model's output is {}; {needed}", shown(chosen))) }
}

/// A loaded model. Several sessions share it, and one runs it at a time.
struct LoadedModel {
    session: Mutex<OrtSession>,
    layout: InputLayout,
    fixed_batch: Option<usize>,
    input: String,
    output: String,
    device: SessionDevice,
}

struct OnnxSession {
    model: Arc<LoadedModel>,
    buffers: InputBuffers,
}

impl ModelSession for OnnxSession {
    fn run(&mut self, batch: &[Arc<Pixels>]) -> Result<SessionRun, SessionError> {
        self.buffers.run(batch, &self.model)
    }

    fn fixed_batch(&self) -> Option<usize> {
        self.model.fixed_batch
    }

    fn device(&self) -> &str {
        self.model.device.name
    }

    fn output_name(&self) -> &str {
        &self.model.output
    }

    fn is_slow(&self) -> bool {
        self.model.device.is_slow
    }

    fn free_larger_buffers(&mut self, max_batch: usize, image: &Arc<Pixels>) -> Result<(), SessionError> {
        self.buffers.free_larger(max_batch, image, &self.model)
    }

    fn second_session(&self) -> Result<Option<Box<dyn ModelSession>>, SessionError> {
        let Some(buffers) = self.buffers.second_set(&self.model)? else { return Ok(None) };
        Ok(Some(Box::new(Self { model: Arc::clone(&self.model), buffers })))
    }
}

impl LoadedModel {
    /// Waits until no other session runs it.
    fn lock(&self) -> MutexGuard<'_, OrtSession> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of the first `images` of a batch of `all`, from a run that `began` then.
    fn rows(
        &self,
        outputs: &SessionOutputs<'_>,
        (all, images): (usize, usize),
        began: Instant,
    ) -> Result<SessionRun, SessionError> {
        let output =
            outputs.get(&self.output).ok_or_else(|| SessionError::Output(format!("not there: \"{}\"", self.output)))?;
        let (shape, values): (_, Vec<f32>) = match output.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float16, .. } => {
                let (shape, halves) = output.try_extract_tensor::<f16>().map_err(run_error)?;
                (shape, halves.iter().map(|x| x.to_f32()).collect())
            }
            _ => {
                let (shape, floats) = output.try_extract_tensor::<f32>().map_err(run_error)?;
                (shape, floats.to_vec())
            }
        };
        match shape[..] {
            [rows, width] if usize::try_from(rows) == Ok(all) && width > 0 => {
                let rows = values.chunks(values.len() / all).take(images).map(<[f32]>::to_vec).collect();
                Ok(SessionRun { rows, took: began.elapsed() })
            }
            _ => Err(SessionError::Output(format!("of the shape {shape:?} for {all} images"))),
        }
    }
}

/// A failed run as an error. ONNX Runtime has no error code for too little memory, so that only the message shows it. Only
/// this function decides by a message of ONNX Runtime.
fn run_error(error: ort::Error) -> SessionError {
    let message = error.to_string().to_ascii_lowercase();
    // In this order: the arena under a limit, the allocator below it, CUDA, cuBLAS and cuDNN, C++.
    let is_out_of_memory =
        ["smaller than requested bytes", "failed to allocate", "out of memory", "alloc_failed", "bad_alloc"]
            .iter()
            .any(|part| message.contains(part));
    if is_out_of_memory { SessionError::OutOfMemory(Box::new(error)) } else { SessionError::RunFailed(Box::new(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::{DecodeSettings, PackageSource};
    use ort::value::{Shape, SymbolicDimensions};

    fn tensor(shape: &[i64]) -> ValueType {
        let dimension_symbols = SymbolicDimensions::empty(shape.len());
        ValueType::Tensor { ty: TensorElementType::Float32, shape: Shape::from(shape.to_vec()), dimension_symbols }
    }

    #[test]
    fn of_several_outputs_the_scores_are_found_or_none_is_taken() {
        let (scores_2, scores_free, hidden, states) =
            (tensor(&[-1, 2]), tensor(&[-1, -1]), tensor(&[-1, 768]), tensor(&[-1, 197, 768]));
        assert_eq!(scores_output(&[("output", &scores_2)], 2), Ok("output"));
        assert_eq!(scores_output(&[("pooled", &hidden), ("logits", &scores_free)], 2), Ok("logits"));
        assert_eq!(scores_output(&[("states", &states), ("pooled", &hidden), ("out", &scores_2)], 2), Ok("out"));
        let ambiguous = scores_output(&[("a", &scores_2), ("b", &scores_free), ("states", &states)], 2).unwrap_err();
        for part in ["\"a\"", "\"b\"", "\"states\"", "float [batch, 2]", "hint:"] {
            assert!(ambiguous.contains(part), "{ambiguous}");
        }
        assert!(scores_output(&[("states", &states), ("pooled", &hidden)], 2).is_err());
        assert!(scores_output(&[("states", &states)], 2).unwrap_err().contains("the model's output is \"states\""));
        assert!(scores_output(&[("logits", &states), ("out", &scores_2)], 2).is_err(), "a name alone is not enough");
        assert!(scores_output(&[], 2).is_err());
    }

    #[test]
    fn the_axes_are_found_by_where_the_channels_are() {
        let float = |dimensions| {
            axes_of(dimensions, (8, 3), InputElement::Half(crate::policy::tests::detector("d", &["a"]).normalisation))
        };
        for (dimensions, axes) in [
            ([3, 3, 8], Axes::Nchw),
            ([3, 8, 3], Axes::Nhwc),
            ([-1, 3, 8], Axes::Nchw),
            ([3, -1, -1], Axes::Nchw),
            ([-1, -1, 3], Axes::Nhwc),
            ([3, 8, -1], Axes::Nchw),
            ([224, 224, -1], Axes::Nhwc),
            ([-1, 224, 224], Axes::Nchw),
            ([-1, -1, -1], Axes::Nchw),
        ] {
            assert_eq!(float(dimensions), Ok(axes), "{dimensions:?}");
        }
        assert_eq!(axes_of([-1, -1, -1], (8, 8), InputElement::Byte), Ok(Axes::Nhwc));
        assert!(float([3, 3, 3]).unwrap_err().contains("hint: state it in config.json"));
        assert!(float([1, 28, 28]).unwrap_err().contains("no axis has 3 channels"));
    }

    #[test]
    fn what_does_not_fit_the_input_is_refused_by_its_shape() {
        let detector = crate::policy::tests::detector("d", &["a", "b"]);
        let layout = |ty, shape: &[i64]| input_layout(ty, shape, &detector).map(|(layout, batch)| (layout.axes, batch));
        assert_eq!(layout(TensorElementType::Float32, &[-1, 8, 8, 3]), Ok((Axes::Nhwc, None)));
        assert_eq!(layout(TensorElementType::Uint8, &[1, 3, 8, 8]), Ok((Axes::Nchw, Some(1))));
        let stated = Detector { axes: Some(Axes::Nhwc), ..detector.clone() };
        let free = input_layout(TensorElementType::Float32, &[-1, -1, -1, -1], &stated).unwrap();
        assert_eq!(free.0.axes, Axes::Nhwc, "what the package states counts");
        for (ty, shape, part) in [
            (TensorElementType::Float64, &[-1, 3, 8, 8][..], "supported are"),
            (TensorElementType::Float32, &[-1, 192], "supported are"),
            (TensorElementType::Float32, &[-1, 9, 9, 3], "images of 8x8"),
            (TensorElementType::Float32, &[4, 3, 8, 8], "fixed to 4"),
            (TensorElementType::Float32, &[-1, 1, 8, 8], "no axis has 3 channels"),
        ] {
            let refused = layout(ty, shape).unwrap_err();
            assert!(refused.contains(part), "{refused}");
        }
        let bgr =
            Detector { normalisation: Normalisation { channels: Channels::Bgr, ..detector.normalisation }, ..detector };
        assert!(input_layout(TensorElementType::Uint8, &[-1, 8, 8, 3], &bgr).unwrap_err().contains("pixel_order"));
    }

    #[test]
    fn too_little_memory_is_distinguished_from_other_failures() {
        // An error is made by the library.
        let Some(_runtime) = runtime(&InferenceConfig::default()) else { return };
        for (words, is_memory) in [
            ("BFCArena::AllocateRawInternal Available memory of 9 is smaller than requested bytes of 10", true),
            ("Failed to allocate memory for requested buffer of size 10", true),
            ("CUDA failure 2: out of memory", true),
            ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", true),
            ("std::bad_alloc", true),
            ("Non-zero status code returned while running Conv node", false),
        ] {
            let error = run_error(ort::Error::new(words));
            assert_eq!(matches!(error, SessionError::OutOfMemory(_)), is_memory, "{error:?}");
        }
    }

    /// ONNX Runtime, or `None` where `ORT_DYLIB_PATH` is not set: `cargo test` then leaves these tests out. `make check` and
    /// `make test` set it.
    fn runtime(config: &InferenceConfig) -> Option<OnnxRuntime> {
        if std::env::var_os("ORT_DYLIB_PATH").is_none() {
            eprintln!("left out: ORT_DYLIB_PATH is not set");
            return None;
        }
        Some(OnnxRuntime::load(config).unwrap())
    }

    fn open(runtime: &OnnxRuntime, device: SessionDevice) -> Box<dyn ModelSession> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cifake-32");
        let decode_settings = DecodeSettings::default();
        let source =
            PackageSource { folder: &folder, name: None, file: None, sha256: None, shadow: false, decode_settings };
        let detector = Detector::load(&source).unwrap();
        runtime.open(&detector, &cpu_provider(), device).unwrap()
    }

    fn shades(values: impl IntoIterator<Item = u8>) -> Vec<Arc<Pixels>> {
        let image = |value: u8| {
            let data = (0..=250).cycle().take(32 * 32 * 3).map(|at: u8| value.wrapping_mul(17) ^ at).collect();
            Arc::new(Pixels { width: 32, height: 32, data })
        };
        values.into_iter().map(image).collect()
    }

    /// What a GPU does, tested without one: the same tensors and bindings, in the host's memory.
    const PINNED: SessionDevice =
        SessionDevice { copies_from: Some((AllocationDevice::CPU, MemoryType::Default)), is_slow: false, ..CPU };

    #[test]
    fn a_batch_in_pinned_memory_scores_as_one_on_the_host_does() {
        let Some(runtime) = runtime(&InferenceConfig::default()) else { return };
        let (mut host, mut pinned) = (open(&runtime, CPU), open(&runtime, PINNED));
        // The sizes of warm-up, and then sizes between them, which take a larger tensor that still holds other images.
        for (turn, size) in (0u8..).zip([1, 2, 4, 8, 3, 5, 1, 8, 7]) {
            let batch = shades((0..size).map(|index| turn * 16 + index));
            let (expected, rows) = (host.run(&batch).unwrap().rows, pinned.run(&batch).unwrap().rows);
            assert_eq!(rows.len(), usize::from(size));
            for (row, expected) in rows.iter().zip(&expected) {
                assert!(row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{size}: {row:?} {expected:?}");
            }
        }
        let rows = host.run(&shades(0..8)).unwrap().rows;
        assert!(
            rows.windows(2).any(|pair| (pair[0][0] - pair[1][0]).abs() > 1e-3),
            "the images are too alike: {rows:?}"
        );
    }

    /// Counted page by page, which `VmRSS` is not.
    fn resident_bytes() -> u64 {
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let kibibytes = rollup.lines().find_map(|line| line.strip_prefix("Rss:")?.split_whitespace().next()).unwrap();
        kibibytes.parse::<u64>().unwrap() << 10
    }

    /// Needs the process for itself, as nextest gives one to each test: other tests would take memory meanwhile.
    #[test]
    fn memory_of_batches_that_will_not_come_is_freed() {
        let config = InferenceConfig { threads: 1, ..InferenceConfig::default() };
        let Some(runtime) = runtime(&config) else { return };
        let mut session = open(&runtime, CPU);
        let image = shades([7]).remove(0);
        let expected = session.run(&[Arc::clone(&image)]).unwrap().rows;
        let before = resident_bytes();
        session.run(&vec![Arc::clone(&image); 2048]).unwrap();
        let large = resident_bytes().saturating_sub(before);
        session.free_larger_buffers(2048, &image).unwrap();
        let kept = resident_bytes().saturating_sub(before);
        assert!(kept > large / 2, "{} of {} MB are left of the batch that was chosen", kept >> 20, large >> 20);
        session.free_larger_buffers(1, &image).unwrap();
        let left = resident_bytes().saturating_sub(before);
        assert!(large > 100 << 20, "{} MB are too little to measure", large >> 20);
        // The bytes of that batch alone are 6 MiB.
        assert!(left < 5 << 20, "{} of {} MB are left", left >> 20, large >> 20);
        assert_eq!(session.run(&[image]).unwrap().rows, expected);
    }

    #[test]
    fn two_sessions_take_turns_and_do_not_mix_their_batches() {
        let Some(runtime) = runtime(&InferenceConfig::default()) else { return };
        let mut first = open(&runtime, PINNED);
        let expected = [first.run(&shades([7; 4])).unwrap().rows, first.run(&shades([200; 4])).unwrap().rows];
        let second = first.second_session().unwrap().unwrap();
        assert!(open(&runtime, CPU).second_session().unwrap().is_none(), "the host needs no second set of buffers");
        let run = |mut session: Box<dyn ModelSession>, shade: u8, expected: Vec<Vec<f32>>| {
            std::thread::spawn(move || {
                for _ in 0..200 {
                    assert_eq!(session.run(&shades([shade; 4])).unwrap().rows, expected);
                }
            })
        };
        let [sevens, others] = expected;
        let threads = [run(first, 7, sevens), run(second, 200, others)];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
