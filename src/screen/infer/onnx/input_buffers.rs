//! How a batch of pixels gets to the model. Buffers are reused, so that a steady state allocates no input.
//!
//! On the host ONNX Runtime reads our buffer directly. A GPU copies it from pinned memory, which needs no processor and has
//! full speed, and it does so before the model is free, so that the copy overlaps the run of another batch. For a GPU each
//! batch size that was run has its own tensor, and a batch of another size takes the next larger tensor: the search for
//! kernels takes seconds for every new shape, and the shapes of warm-up are enough.

use std::sync::Arc;
use std::time::Instant;

use half::f16;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions};
use ort::value::{DynTensor, PrimitiveTensorElementType, TensorElementType, TensorRef};

use super::{
    Axes, Channels, HostMemory, InputElement, InputLayout, LoadedModel, Normalisation, Pixels, SessionDevice,
    SessionError, SessionRun, run_error,
};

/// A run option (onnxruntime_run_options_config_keys.h).
const SHRINK_ARENA: &str = "memory.enable_memory_arena_shrinkage";

/// The buffers of one session, by the kind of device.
pub(super) enum InputBuffers {
    /// One buffer for all sizes, which the model reads directly.
    Host(HostBuffer),
    /// Tensors in this kind of memory, from which the device copies; ascending by size.
    Pinned(HostMemory, Vec<PinnedTensor>),
}

#[derive(Default)]
pub(super) struct HostBuffer {
    /// The largest batch that was tried, in images. A batch that failed took memory too.
    largest: usize,
    bytes: Vec<u8>,
    floats: Vec<f32>,
    halves: Vec<f16>,
}

/// A tensor in pinned memory, and what binds it to the model's input.
pub(super) struct PinnedTensor {
    images: usize,
    /// Width and height.
    edges: (usize, usize),
    tensor: DynTensor,
    binding: IoBinding,
}

impl InputBuffers {
    pub(super) fn new(device: &SessionDevice) -> Self {
        match &device.copies_from {
            None => Self::Host(HostBuffer::default()),
            Some(memory) => Self::Pinned(memory.clone(), Vec::new()),
        }
    }

    /// Frees what only batches larger than `max_batch` need. On the host this includes the arena's memory, which ONNX
    /// Runtime frees only at the end of a run that asks for it, together with what that run took.
    pub(super) fn free_larger(
        &mut self,
        max_batch: usize,
        image: &Arc<Pixels>,
        model: &LoadedModel,
    ) -> Result<(), SessionError> {
        match self {
            Self::Host(buffer) if buffer.largest > max_batch => {
                *buffer = HostBuffer::default();
                let mut options = RunOptions::new().map_err(run_error)?;
                options.set(SHRINK_ARENA, "cpu:0").map_err(run_error)?;
                buffer.run(std::slice::from_ref(image), model, Some(&options))?;
            }
            Self::Host(_) => {}
            Self::Pinned(_, tensors) => tensors.retain(|tensor| tensor.images <= max_batch),
        }
        Ok(())
    }

    /// A second set of the same sizes, where the two can be filled in turns.
    pub(super) fn second_set(&self, model: &LoadedModel) -> Result<Option<Self>, SessionError> {
        let Self::Pinned(memory, tensors) = self else { return Ok(None) };
        let copy = |tensor: &PinnedTensor| PinnedTensor::new(memory, tensor.images, tensor.edges, model);
        Ok(Some(Self::Pinned(memory.clone(), tensors.iter().map(copy).collect::<Result<_, _>>()?)))
    }

    /// Runs the model on a batch.
    pub(super) fn run(&mut self, batch: &[Arc<Pixels>], model: &LoadedModel) -> Result<SessionRun, SessionError> {
        let Some(first) = batch.first() else { return Ok(SessionRun::default()) };
        match self {
            Self::Host(buffer) => buffer.run(batch, model, None),
            Self::Pinned(memory, tensors) => {
                let edges = edges(first);
                let index = match tensors.iter().position(|tensor| tensor.images >= batch.len()) {
                    Some(index) => index,
                    None => {
                        tensors.push(PinnedTensor::new(memory, batch.len(), edges, model)?);
                        tensors.len() - 1
                    }
                };
                tensors[index].run(batch, model)
            }
        }
    }
}

impl HostBuffer {
    fn run(
        &mut self,
        batch: &[Arc<Pixels>],
        model: &LoadedModel,
        options: Option<&RunOptions>,
    ) -> Result<SessionRun, SessionError> {
        // No other session runs this model, so that filling the buffer counts as a part of the run.
        let began = Instant::now();
        self.largest = self.largest.max(batch.len());
        let shape = model.layout.shape(batch.len(), edges(&batch[0]));
        let values = shape.iter().product();
        let axes = model.layout.axes;
        match model.layout.element {
            InputElement::Byte => {
                self.bytes.resize(values, 0);
                copy_bytes(batch, axes, &mut self.bytes);
                run_on_host(&self.bytes, shape, model, options, began)
            }
            InputElement::Float(normalisation) => {
                self.floats.resize(values, 0.0);
                normalise(batch, normalisation, axes, &mut self.floats, |x| x);
                run_on_host(&self.floats, shape, model, options, began)
            }
            InputElement::Half(normalisation) => {
                self.halves.resize(values, f16::ZERO);
                normalise(batch, normalisation, axes, &mut self.halves, f16::from_f32);
                run_on_host(&self.halves, shape, model, options, began)
            }
        }
    }
}

/// Runs the model on the values of a buffer.
fn run_on_host<T>(
    values: &[T],
    shape: [usize; 4],
    model: &LoadedModel,
    options: Option<&RunOptions>,
    began: Instant,
) -> Result<SessionRun, SessionError>
where
    T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    let input = TensorRef::from_array_view((shape, values)).map_err(run_error)?;
    let mut session = model.lock();
    let inputs = ort::inputs![input];
    let outputs = match options {
        None => session.run(inputs),
        Some(options) => session.run_with_options(inputs, options),
    };
    model.rows(&outputs.map_err(run_error)?, (shape[0], shape[0]), began)
}

impl PinnedTensor {
    fn new(
        (device, kind): &HostMemory,
        images: usize,
        edges: (usize, usize),
        model: &LoadedModel,
    ) -> Result<Self, SessionError> {
        let session = model.lock();
        let memory = MemoryInfo::new(device.clone(), 0, AllocatorType::Device, *kind).map_err(run_error)?;
        let allocator = Allocator::new(&session, memory).map_err(run_error)?;
        let shape = model.layout.shape(images, edges);
        let tensor = DynTensor::new(&allocator, model.layout.element(), shape).map_err(run_error)?;
        let mut binding = session.create_binding().map_err(run_error)?;
        let host = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput);
        binding.bind_output_to_device(&model.output, &host.map_err(run_error)?).map_err(run_error)?;
        Ok(Self { images, edges, tensor, binding })
    }

    /// The rest of the tensor still holds earlier images. Their rows are dropped.
    fn run(&mut self, batch: &[Arc<Pixels>], model: &LoadedModel) -> Result<SessionRun, SessionError> {
        let (tensor, axes) = (&mut self.tensor, model.layout.axes);
        match model.layout.element {
            InputElement::Byte => copy_bytes(batch, axes, tensor.try_extract_tensor_mut().map_err(run_error)?.1),
            InputElement::Float(n) => {
                normalise(batch, n, axes, tensor.try_extract_tensor_mut().map_err(run_error)?.1, |x: f32| x);
            }
            InputElement::Half(n) => {
                normalise(batch, n, axes, tensor.try_extract_tensor_mut().map_err(run_error)?.1, f16::from_f32);
            }
        }
        // This starts the copy to the device, while another batch may run there.
        self.binding.bind_input(&model.input, tensor).map_err(run_error)?;
        let run = {
            let mut session = model.lock();
            let began = Instant::now();
            // A run does not wait for copies. No other batch runs now, so that this waits only for this copy.
            let copied = self.binding.synchronize_inputs();
            let outputs = copied.and_then(|()| session.run_binding(&self.binding)).map_err(run_error);
            outputs.and_then(|outputs| model.rows(&outputs, (self.images, batch.len()), began))
        };
        // The copy on the device can be reused for the next batch.
        self.binding.clear_inputs();
        run
    }
}

fn edges(pixels: &Pixels) -> (usize, usize) {
    (pixels.width as usize, pixels.height as usize)
}

impl InputLayout {
    fn shape(self, images: usize, (width, height): (usize, usize)) -> [usize; 4] {
        match self.axes {
            Axes::Nhwc => [images, height, width, 3],
            Axes::Nchw => [images, 3, height, width],
        }
    }

    fn element(self) -> TensorElementType {
        match self.element {
            InputElement::Byte => TensorElementType::Uint8,
            InputElement::Float(_) => TensorElementType::Float32,
            InputElement::Half(_) => TensorElementType::Float16,
        }
    }
}

/// Copies `[height, width, 3] u8` images into the model's order of axes.
fn copy_bytes(batch: &[Arc<Pixels>], axes: Axes, into: &mut [u8]) {
    for (pixels, image) in batch.iter().zip(into.chunks_exact_mut(batch[0].data.len())) {
        match axes {
            Axes::Nhwc => image.copy_from_slice(&pixels.data),
            Axes::Nchw => {
                for (channel, plane) in image.chunks_exact_mut(pixels.data.len() / 3).enumerate() {
                    let bytes = pixels.data.iter().skip(channel).step_by(3);
                    plane.iter_mut().zip(bytes).for_each(|(value, byte)| *value = *byte);
                }
            }
        }
    }
}

/// Normalises `[height, width, 3] u8` images into the model's order of axes and of channels.
fn normalise<T: Copy>(batch: &[Arc<Pixels>], n: Normalisation, axes: Axes, into: &mut [T], convert: impl Fn(f32) -> T) {
    let order = match n.channels {
        Channels::Rgb => [0, 1, 2],
        Channels::Bgr => [2, 1, 0],
    };
    // A table of the 256 values of a byte costs less than computing each byte of an image.
    let normalised = order.map(|channel| {
        let value = |byte| (f32::from(byte) * n.scale - n.mean[channel]) / n.std[channel];
        std::array::from_fn::<T, 256, _>(|byte| convert(value(u8::try_from(byte).unwrap_or_default())))
    });
    for (pixels, image) in batch.iter().zip(into.chunks_exact_mut(batch[0].data.len())) {
        match axes {
            Axes::Nhwc => {
                for (values, bytes) in image.chunks_exact_mut(3).zip(pixels.data.chunks_exact(3)) {
                    for ((value, channel), table) in values.iter_mut().zip(order).zip(&normalised) {
                        *value = table[usize::from(bytes[channel])];
                    }
                }
            }
            Axes::Nchw => {
                let planes = image.chunks_exact_mut(pixels.data.len() / 3);
                for ((plane, channel), table) in planes.zip(order).zip(&normalised) {
                    for (value, byte) in plane.iter_mut().zip(pixels.data.iter().skip(channel).step_by(3)) {
                        *value = table[usize::from(*byte)];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blue_comes_first_where_the_package_asks_for_it() {
        let pixels = Arc::new(Pixels { width: 1, height: 1, data: vec![10, 20, 30] });
        let n = Normalisation { scale: 1.0, mean: [0.0, 0.0, 10.0], std: [1.0; 3], channels: Channels::Bgr };
        let mut floats = [0.0; 3];
        normalise(&[Arc::clone(&pixels)], n, Axes::Nchw, &mut floats, |x| x);
        assert_eq!(floats, [20.0, 20.0, 10.0], "a mean belongs to its colour, not to its position");
        normalise(&[pixels], Normalisation { channels: Channels::Rgb, ..n }, Axes::Nchw, &mut floats, |x| x);
        assert_eq!(floats, [10.0, 20.0, 20.0]);
    }

    #[test]
    fn both_orders_of_axes_hold_the_same_values() {
        // Two images of 2x2.
        let data: Vec<u8> = (0..24).collect();
        let batch: Vec<_> =
            data.chunks(12).map(|data| Arc::new(Pixels { width: 2, height: 2, data: data.to_vec() })).collect();
        let n = Normalisation { scale: 0.5, mean: [1.0, 2.0, 3.0], std: [1.0, 2.0, 4.0], channels: Channels::Bgr };
        let (mut planes, mut pixels) = ([0.0; 24], [0.0; 24]);
        normalise(&batch, n, Axes::Nchw, &mut planes, |x| x);
        normalise(&batch, n, Axes::Nhwc, &mut pixels, |x| x);
        let (mut byte_planes, mut bytes) = ([0; 24], [0; 24]);
        copy_bytes(&batch, Axes::Nchw, &mut byte_planes);
        copy_bytes(&batch, Axes::Nhwc, &mut bytes);
        assert_eq!(bytes.to_vec(), data);
        for (image, pixel, channel) in [(0, 0, 0), (0, 3, 2), (1, 0, 1), (1, 2, 2)] {
            let (plane_at, pixel_at) = (image * 12 + channel * 4 + pixel, image * 12 + pixel * 3 + channel);
            assert_eq!(planes[plane_at], pixels[pixel_at], "{image} {pixel} {channel}");
            assert_eq!(byte_planes[plane_at], bytes[pixel_at], "{image} {pixel} {channel}");
            let colour = 2 - channel;
            let byte = f32::from(data[image * 12 + pixel * 3 + colour]);
            assert_eq!(pixels[pixel_at], (byte * 0.5 - n.mean[colour]) / n.std[colour]);
        }
    }
}
