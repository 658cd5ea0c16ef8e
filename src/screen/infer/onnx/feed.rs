//! How a batch of pixels gets to the model, in memory that is there already: a steady state allocates no input.
//!
//! On the host ONNX Runtime reads a buffer of ours where it lies. A device copies it: from pinned memory, which it does
//! by itself and at full speed, and before the model is free, so that a copy overlaps the run of another batch. There each
//! size of a batch that was ever run has a tensor of its own, and a smaller batch takes the next larger one: kernels are
//! searched for every shape anew, which takes seconds, and those of warm-up are enough.

use std::sync::Arc;
use std::time::Instant;

use half::f16;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions};
use ort::value::{DynTensor, PrimitiveTensorElementType, TensorElementType, TensorRef};

use super::{Channels, HostMemory, Layout, Model, Normalisation, Pixels, Place, Run, SessionError, failure};

/// ONNX Runtime's name (onnxruntime_run_options_config_keys.h).
const SHRINK_ARENA: &str = "memory.enable_memory_arena_shrinkage";

/// The way in, by where the model runs.
pub(super) enum Feed {
    /// Read where it lies, whatever its size.
    Lent(Buffer),
    /// Copied by the device, from this memory; by size, ascending.
    Bound(HostMemory, Vec<Bound>),
}

#[derive(Default)]
pub(super) struct Buffer {
    /// The largest batch that was tried, in images: one that failed took memory too.
    largest: usize,
    bytes: Vec<u8>,
    floats: Vec<f32>,
    halves: Vec<f16>,
}

/// A tensor in pinned memory, and what binds it to the model's input.
pub(super) struct Bound {
    images: usize,
    edges: (usize, usize),
    tensor: DynTensor,
    binding: IoBinding,
}

impl Feed {
    pub(super) fn new(place: &Place) -> Self {
        match &place.copies_from {
            None => Self::Lent(Buffer::default()),
            Some(memory) => Self::Bound(memory.clone(), Vec::new()),
        }
    }

    /// Lets go of what larger batches than `max_batch` would need. On the host that includes the arena's memory. ONNX
    /// Runtime gives it back only at the end of a run that asks for it, and that run's own with it.
    pub(super) fn settle(&mut self, max_batch: usize, image: &Arc<Pixels>, model: &Model) -> Result<(), SessionError> {
        match self {
            Self::Lent(buffer) if buffer.largest > max_batch => {
                *buffer = Buffer::default();
                let mut options = RunOptions::new().map_err(failure)?;
                options.set(SHRINK_ARENA, "cpu:0").map_err(failure)?;
                buffer.run(std::slice::from_ref(image), model, Some(&options))?;
            }
            Self::Lent(_) => {}
            Self::Bound(_, sizes) => sizes.retain(|bound| bound.images <= max_batch),
        }
        Ok(())
    }

    /// Another one of the same sizes, where two can be filled by turns.
    pub(super) fn twin(&self, model: &Model) -> Result<Option<Self>, SessionError> {
        let Self::Bound(memory, sizes) = self else { return Ok(None) };
        let twin = |bound: &Bound| Bound::new(memory, bound.images, bound.edges, model);
        Ok(Some(Self::Bound(memory.clone(), sizes.iter().map(twin).collect::<Result<_, _>>()?)))
    }

    /// Runs the model on a batch.
    pub(super) fn run(&mut self, batch: &[Arc<Pixels>], model: &Model) -> Result<Run, SessionError> {
        let Some(first) = batch.first() else { return Ok(Run::default()) };
        match self {
            Self::Lent(buffer) => buffer.run(batch, model, None),
            Self::Bound(memory, sizes) => {
                let edges = edges(first);
                let at = match sizes.iter().position(|bound| bound.images >= batch.len()) {
                    Some(at) => at,
                    None => {
                        sizes.push(Bound::new(memory, batch.len(), edges, model)?);
                        sizes.len() - 1
                    }
                };
                sizes[at].run(batch, model)
            }
        }
    }
}

impl Buffer {
    fn run(&mut self, batch: &[Arc<Pixels>], model: &Model, options: Option<&RunOptions>) -> Result<Run, SessionError> {
        // Nobody else runs this model, so that filling is all it may wait for.
        let began = Instant::now();
        self.largest = self.largest.max(batch.len());
        let shape = model.layout.shape(batch.len(), edges(&batch[0]));
        let values = shape.iter().product();
        match model.layout {
            Layout::BytesNhwc => {
                self.bytes.resize(values, 0);
                bytes(batch, &mut self.bytes);
                lend(&self.bytes, shape, model, options, began)
            }
            Layout::FloatNchw(normalisation) => {
                self.floats.resize(values, 0.0);
                planes(batch, normalisation, &mut self.floats, |x| x);
                lend(&self.floats, shape, model, options, began)
            }
            Layout::HalfNchw(normalisation) => {
                self.halves.resize(values, f16::ZERO);
                planes(batch, normalisation, &mut self.halves, f16::from_f32);
                lend(&self.halves, shape, model, options, began)
            }
        }
    }
}

/// Runs the model on values that lie there already.
fn lend<T>(
    values: &[T],
    shape: [usize; 4],
    model: &Model,
    options: Option<&RunOptions>,
    began: Instant,
) -> Result<Run, SessionError>
where
    T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    let input = TensorRef::from_array_view((shape, values)).map_err(failure)?;
    let mut session = model.lock();
    let inputs = ort::inputs![input];
    let outputs = match options {
        None => session.run(inputs),
        Some(options) => session.run_with_options(inputs, options),
    };
    model.read(&outputs.map_err(failure)?, (shape[0], shape[0]), began)
}

impl Bound {
    fn new(
        (device, kind): &HostMemory,
        images: usize,
        edges: (usize, usize),
        model: &Model,
    ) -> Result<Self, SessionError> {
        let session = model.lock();
        let memory = MemoryInfo::new(device.clone(), 0, AllocatorType::Device, *kind).map_err(failure)?;
        let allocator = Allocator::new(&session, memory).map_err(failure)?;
        let shape = model.layout.shape(images, edges);
        let tensor = DynTensor::new(&allocator, model.layout.element(), shape).map_err(failure)?;
        let mut binding = session.create_binding().map_err(failure)?;
        let host = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput);
        binding.bind_output_to_device(&model.output, &host.map_err(failure)?).map_err(failure)?;
        Ok(Self { images, edges, tensor, binding })
    }

    /// What is left of the tensor holds what it held, and what the model says of that is not looked at.
    fn run(&mut self, batch: &[Arc<Pixels>], model: &Model) -> Result<Run, SessionError> {
        let tensor = &mut self.tensor;
        match model.layout {
            Layout::BytesNhwc => bytes(batch, tensor.try_extract_tensor_mut().map_err(failure)?.1),
            Layout::FloatNchw(n) => planes(batch, n, tensor.try_extract_tensor_mut().map_err(failure)?.1, |x: f32| x),
            Layout::HalfNchw(n) => planes(batch, n, tensor.try_extract_tensor_mut().map_err(failure)?.1, f16::from_f32),
        }
        // This begins to copy to the device, while another batch may run there.
        self.binding.bind_input(&model.input, tensor).map_err(failure)?;
        let run = {
            let mut session = model.lock();
            let began = Instant::now();
            // A run does not wait for copies by itself. Now nothing else runs, so this waits for ours alone.
            let copied = self.binding.synchronize_inputs();
            let outputs = copied.and_then(|()| session.run_binding(&self.binding)).map_err(failure);
            outputs.and_then(|outputs| model.read(&outputs, (self.images, batch.len()), began))
        };
        // What lies on the device is free for the next batch.
        self.binding.clear_inputs();
        run
    }
}

fn edges(pixels: &Pixels) -> (usize, usize) {
    (pixels.width as usize, pixels.height as usize)
}

impl Layout {
    fn shape(self, images: usize, (width, height): (usize, usize)) -> [usize; 4] {
        match self {
            Self::BytesNhwc => [images, height, width, 3],
            Self::FloatNchw(_) | Self::HalfNchw(_) => [images, 3, height, width],
        }
    }

    fn element(self) -> TensorElementType {
        match self {
            Self::BytesNhwc => TensorElementType::Uint8,
            Self::FloatNchw(_) => TensorElementType::Float32,
            Self::HalfNchw(_) => TensorElementType::Float16,
        }
    }
}

/// Lays `[height, width, 3] u8` images one behind the other.
fn bytes(batch: &[Arc<Pixels>], into: &mut [u8]) {
    for (pixels, image) in batch.iter().zip(into.chunks_exact_mut(batch[0].data.len())) {
        image.copy_from_slice(&pixels.data);
    }
}

/// Normalises `[height, width, 3] u8` images into `[batch, 3, height, width]`.
fn planes<T: Copy>(batch: &[Arc<Pixels>], n: Normalisation, into: &mut [T], convert: impl Fn(f32) -> T) {
    let order = match n.channels {
        Channels::Rgb => [0, 1, 2],
        Channels::Bgr => [2, 1, 0],
    };
    // A byte has 256 values, and an image many more bytes.
    let normalised = order.map(|channel| {
        let value = |byte| (f32::from(byte) * n.scale - n.mean[channel]) / n.std[channel];
        std::array::from_fn::<T, 256, _>(|byte| convert(value(u8::try_from(byte).unwrap_or_default())))
    });
    for (pixels, image) in batch.iter().zip(into.chunks_exact_mut(batch[0].data.len())) {
        let planes = image.chunks_exact_mut(image.len() / 3);
        for ((plane, channel), values) in planes.zip(order).zip(&normalised) {
            for (value, byte) in plane.iter_mut().zip(pixels.data.iter().skip(channel).step_by(3)) {
                *value = values[usize::from(*byte)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blue_comes_first_where_the_model_wants_it() {
        let pixels = Arc::new(Pixels { width: 1, height: 1, data: vec![10, 20, 30] });
        let n = Normalisation { scale: 1.0, mean: [0.0, 0.0, 10.0], std: [1.0; 3], channels: Channels::Bgr };
        let mut floats = [0.0; 3];
        planes(&[Arc::clone(&pixels)], n, &mut floats, |x| x);
        assert_eq!(floats, [20.0, 20.0, 10.0], "a mean belongs to its colour, not to its place");
        planes(&[pixels], Normalisation { channels: Channels::Rgb, ..n }, &mut floats, |x| x);
        assert_eq!(floats, [10.0, 20.0, 20.0]);
    }
}
