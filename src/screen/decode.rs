//! Bytes → pixels, on threads of its own. What an image is, is told by its first bytes; whether it may be decoded, by
//! its header, before a pixel is allocated.
//!
//! Nothing in here is trusted: every path ends in frames or in an [`Undecodable`] with a reason for people, and a panic
//! in a decoder costs one image.

mod animated;
mod budget;
pub mod child;
mod confine;
mod jpeg;
mod kept;
pub mod options;
mod process;
mod protocol;
mod rgb;
mod still;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::prepare::{Frame, Pixels, Preparer};
use crate::config::{DecodeConfig, DecodeMode, Isolation};
use crate::detector::Geometry;
use crate::job::{Lane, Seen};
use crate::lanes::Lanes;
use crate::telemetry::traces;
use budget::{Budget, Held, Memory};
use kept::Kept;
use process::Decoder;

pub use confine::Layers;

/// Why an image has no pixels, in one line for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(pub String);

impl Undecodable {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// A decoder's own words, on one line, behind the format's name.
    fn damaged(format: &str, error: &dyn std::fmt::Display) -> Self {
        let words = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Self(format!("damaged {format}: {words}"))
    }
}

/// Why an image was not read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unread {
    /// It is at fault.
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    /// The machine is.
    #[error("no process to decode in can be had: {0}")]
    NoDecoder(String),
}

/// What decoding an image gave: its facts, and for each frame one [`Pixels`] a geometry.
#[derive(Debug)]
pub struct Decoded {
    /// The facts.
    pub seen: Seen,
    /// `[frame][geometry]`, in the order asked for.
    pub frames: Vec<Vec<Arc<Pixels>>>,
}

/// What is to be decoded, and what for.
struct Wanted<'a> {
    bytes: &'a [u8],
    geometries: &'a [Geometry],
    mode: DecodeMode,
}

/// What a format's decoder works with.
struct Context<'a> {
    limits: &'a DecodeConfig,
    /// What its frames are prepared for.
    geometries: &'a [Geometry],
    mode: DecodeMode,
    memory: &'a dyn Memory,
    kept: &'a mut Kept,
    /// Takes each frame that is to be screened, in order.
    take: &'a mut dyn FnMut(&Frame) -> Result<(), Undecodable>,
}

impl<'a> Context<'a> {
    /// Checks an image's size and waits for memory to decode it.
    ///
    /// `bytes_per_pixel` is everything the decoder holds at its peak, the output included.
    fn admit(&mut self, width: u32, height: u32, bytes_per_pixel: u64) -> Result<Box<dyn Held + 'a>, Undecodable> {
        let bytes = self.check(width, height, bytes_per_pixel)?;
        self.kept.leave_room(bytes, self.limits.max_decoded_bytes);
        Ok(self.memory.take(bytes))
    }

    /// Checks an image's size, and returns what decoding all of it takes. The limits are the same in every mode: what is
    /// undecodable does not depend on the detectors.
    fn check(&self, width: u32, height: u32, bytes_per_pixel: u64) -> Result<u64, Undecodable> {
        let limits = self.limits;
        let over = |what: String| Err(Undecodable(format!("over the decode limits: {what}")));
        if width == 0 || height == 0 {
            return Err(Undecodable(format!("an image of {width}x{height} pixels has nothing to look at")));
        }
        if width > limits.max_width || height > limits.max_height {
            return over(format!("{width}x{height} pixels, the limit is {}x{}", limits.max_width, limits.max_height));
        }
        let pixels = u64::from(width) * u64::from(height);
        if pixels > limits.max_pixels {
            return over(format!("{pixels} pixels, the limit is {}", limits.max_pixels));
        }
        let bytes = pixels * bytes_per_pixel;
        if bytes > limits.max_decoded_bytes {
            return over(format!("{bytes} bytes to decode, the limit is {}", limits.max_decoded_bytes));
        }
        Ok(bytes)
    }
}

/// What a thread has from one image to the next.
struct Tools {
    preparer: Preparer,
    kept: Kept,
}

impl Tools {
    /// All threads together keep no more than may be used at a time.
    fn new(limits: &DecodeConfig) -> Self {
        let share_bytes = limits.memory_bytes / Pool::threads(limits) as u64;
        Self { preparer: Preparer::default(), kept: Kept::new(usize::try_from(share_bytes).unwrap_or(usize::MAX)) }
    }
}

/// As [`decode`]; a panic in a decoder is the image's fault.
fn decode_safely(
    wanted: &Wanted<'_>,
    limits: &DecodeConfig,
    memory: &dyn Memory,
    tools: &mut Tools,
) -> Result<Decoded, Undecodable> {
    let decoded = std::panic::catch_unwind(AssertUnwindSafe(|| decode(wanted, limits, memory, &mut *tools)));
    decoded.unwrap_or_else(|_| {
        // The resizer's buffers may be half-written.
        tools.preparer = Preparer::default();
        Err(Undecodable::new("damaged: the decoder could not cope with it"))
    })
}

/// Decodes one image and prepares each of its frames for every geometry.
fn decode(
    wanted: &Wanted<'_>,
    limits: &DecodeConfig,
    memory: &dyn Memory,
    tools: &mut Tools,
) -> Result<Decoded, Undecodable> {
    let Tools { preparer, kept } = tools;
    let &Wanted { bytes, geometries, mode } = wanted;
    let mut frames = Vec::new();
    let mut take = |frame: &Frame| {
        let prepared: Result<Vec<_>, _> =
            geometries.iter().map(|geometry| preparer.prepare(frame, geometry).map(Arc::new)).collect();
        frames.push(prepared.map_err(|e| Undecodable(e.to_string()))?);
        Ok(())
    };
    let mut context = Context { limits, geometries, mode, memory, kept, take: &mut take };
    let seen = match Format::of(bytes)? {
        Format::Jpeg => jpeg::decode(bytes, &mut context),
        Format::Png => still::png(bytes, &mut context),
        Format::Bmp => still::bmp(bytes, &mut context),
        Format::Tiff => still::tiff(bytes, &mut context),
        Format::Gif => animated::gif(bytes, &mut context),
        Format::WebP => animated::webp(bytes, &mut context),
    }?;
    if frames.is_empty() {
        return Err(Undecodable::new("damaged: it holds no image"));
    }
    Ok(Decoded { seen, frames })
}

/// Whether an image that was decoded once, perhaps under other limits, surely is within these. Its size is known as it
/// stands upright, so a turned one has to fit both ways.
#[must_use]
pub fn allows(limits: &DecodeConfig, seen: Seen) -> bool {
    let pixels = u64::from(seen.width) * u64::from(seen.height);
    seen.width.max(seen.height) <= limits.max_width.min(limits.max_height) && pixels <= limits.max_pixels
}

/// Whether a file that begins with these bytes may be an image that can be decoded.
#[must_use]
pub fn may_be_image(head: &[u8]) -> bool {
    Format::of(head).is_ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

impl Format {
    /// By magic bytes; names and content types lie.
    fn of(bytes: &[u8]) -> Result<Self, Undecodable> {
        let brand = bytes.get(8..12).unwrap_or_default();
        Ok(match bytes {
            [] => return Err(Undecodable::new("it is empty")),
            [0xFF, 0xD8, 0xFF, ..] => Self::Jpeg,
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Self::Png,
            [b'R', b'I', b'F', b'F', ..] if brand == b"WEBP" => Self::WebP,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Self::Gif,
            [b'B', b'M', ..] => Self::Bmp,
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Self::Tiff,
            [b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..] => {
                return Err(Undecodable::new("unsupported format: BigTIFF"));
            }
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => {
                return Err(Undecodable(match brand {
                    b"avif" | b"avis" => "unsupported format: AVIF".into(),
                    b"heic" | b"heix" | b"mif1" | b"msf1" => "unsupported format: HEIC".into(),
                    _ => "unsupported format: MPEG-4".into(),
                }));
            }
            [b'%', b'P', b'D', b'F', ..] => return Err(Undecodable::new("unsupported format: PDF")),
            _ if looks_like(bytes, "<svg") => return Err(Undecodable::new("unsupported format: SVG")),
            _ => return Err(Undecodable::new("not an image: the first bytes are of no known format")),
        })
    }
}

/// Whether a text begins, somewhere in its first kilobyte, with a tag.
fn looks_like(bytes: &[u8], tag: &str) -> bool {
    let head = &bytes[..bytes.len().min(1024)];
    head.windows(tag.len()).any(|window| window.eq_ignore_ascii_case(tag.as_bytes()))
}

/// Writes what a detector saw as a PNG.
///
/// # Errors
/// When the file cannot be written.
pub fn save_png(file: &std::path::Path, pixels: &Pixels) -> image::ImageResult<()> {
    image::save_buffer(file, &pixels.data, pixels.width, pixels.height, image::ExtendedColorType::Rgb8)
}

/// A small picture of what a detector saw, encoded for a page.
pub struct Picture {
    /// `image/png` or `image/jpeg`.
    pub media_type: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
}

/// Encodes what a detector saw: as a PNG where neither side exceeds `edge`, else shrunk to that and as a JPEG.
///
/// # Errors
/// When the encoder refuses.
pub fn picture(pixels: &Pixels, edge: u32) -> image::ImageResult<Picture> {
    use image::error::{ImageError, ParameterError, ParameterErrorKind};
    let Pixels { width, height, data } = pixels;
    let rgb = image::ImageBuffer::<image::Rgb<u8>, _>::from_raw(*width, *height, data.as_slice());
    let mismatch = || ImageError::Parameter(ParameterError::from_kind(ParameterErrorKind::DimensionMismatch));
    let rgb = rgb.ok_or_else(mismatch)?;
    let mut bytes = std::io::Cursor::new(Vec::new());
    let longest = *width.max(height);
    if longest <= edge {
        rgb.write_to(&mut bytes, image::ImageFormat::Png)?;
        return Ok(Picture { media_type: "image/png", bytes: bytes.into_inner() });
    }
    let shrunk = |side: u32| (side * edge / longest).max(1);
    let small = image::imageops::thumbnail(&rgb, shrunk(*width), shrunk(*height));
    small.write_to(&mut bytes, image::ImageFormat::Jpeg)?;
    Ok(Picture { media_type: "image/jpeg", bytes: bytes.into_inner() })
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::{CropRounding, Filter, Resize};

    fn geometry() -> Geometry {
        let resize = Resize::Exact { width: 8, height: 8 };
        Geometry { resize, filter: Filter::Bicubic, width: 8, height: 8, rounding: CropRounding::Down }
    }

    fn decode_with(bytes: &[u8], limits: &DecodeConfig) -> Result<Decoded, Undecodable> {
        let wanted = Wanted { bytes, geometries: &[geometry()], mode: limits.mode };
        decode(&wanted, limits, &Budget::new(limits.memory_bytes), &mut Tools::new(limits))
    }

    fn encoded(format: image::ImageFormat) -> Vec<u8> {
        let image = image::RgbImage::from_fn(64, 48, |x, y| {
            image::Rgb([x * 3, y * 5, x * y].map(|sample| u8::try_from(sample % 256).unwrap()))
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    const FORMATS: [(image::ImageFormat, &str); 6] = [
        (image::ImageFormat::Jpeg, "jpeg"),
        (image::ImageFormat::Png, "png"),
        (image::ImageFormat::WebP, "webp"),
        (image::ImageFormat::Gif, "gif"),
        (image::ImageFormat::Bmp, "bmp"),
        (image::ImageFormat::Tiff, "tiff"),
    ];

    #[test]
    fn every_format_is_known_by_its_bytes() {
        for (format, name) in FORMATS {
            let decoded = decode_with(&encoded(format), &DecodeConfig::default()).unwrap();
            assert_eq!(decoded.seen, Seen { format: name, width: 64, height: 48, frames: 1 });
            assert_eq!(decoded.frames[0][0].data.len(), 8 * 8 * 3);
        }
    }

    #[test]
    fn an_image_cut_anywhere_is_undecodable() {
        for (format, name) in FORMATS {
            let whole = encoded(format);
            for tenth in 0..10 {
                let cut = &whole[..whole.len() * tenth / 10];
                assert!(
                    decode_with(cut, &DecodeConfig::default()).is_err(),
                    "{name} cut at {tenth}/10 passed as whole"
                );
            }
            let almost = &whole[..whole.len() - 1];
            // BMP and TIFF carry padding or directories whose last byte no pixel needs.
            if !matches!(format, image::ImageFormat::Bmp | image::ImageFormat::Tiff) {
                assert!(decode_with(almost, &DecodeConfig::default()).is_err(), "{name} without its last byte");
            }
        }
    }

    #[test]
    fn a_jpeg_cut_in_half_and_closed_by_an_end_marker_is_undecodable() {
        let whole = encoded(image::ImageFormat::Jpeg);
        let mut forged = whole[..whole.len() / 2].to_vec();
        forged.extend([0xFF, 0xD9]);
        assert!(decode_with(&forged, &DecodeConfig::default()).is_err());
    }

    #[test]
    fn padding_before_the_end_of_a_jpeg_is_no_damage_and_garbage_is() {
        let whole = encoded(image::ImageFormat::Jpeg);
        let with = |middle: &[u8]| {
            let mut bytes = whole[..whole.len() - 2].to_vec();
            bytes.extend_from_slice(middle);
            bytes.extend([0xFF, 0xD9]);
            decode_with(&bytes, &DecodeConfig::default())
        };
        assert!(with(&[0; 20]).is_ok());
        assert!(with(b"garbage that is no padding").is_err());
    }

    #[test]
    fn limits_count_before_pixels_are_allocated() {
        let limits = DecodeConfig { max_width: 63, ..DecodeConfig::default() };
        for (format, name) in FORMATS {
            let error = decode_with(&encoded(format), &limits).unwrap_err();
            assert!(error.0.starts_with("over the decode limits"), "{name}: {error}");
        }
        let limits = DecodeConfig { max_decoded_bytes: 64 * 48, ..DecodeConfig::default() };
        for (format, name) in FORMATS {
            let error = decode_with(&encoded(format), &limits).unwrap_err();
            assert!(error.0.contains("bytes to decode"), "{name}: {error}");
        }
    }

    #[test]
    fn a_picture_is_exact_where_it_fits_and_small_where_it_does_not() {
        let pixels = |width: u32, height: u32| Pixels { width, height, data: vec![90; (width * height * 3) as usize] };
        let read = |picture: Picture| image::load_from_memory(&picture.bytes).unwrap();
        let small = picture(&pixels(32, 20), 32).unwrap();
        assert_eq!(small.media_type, "image/png");
        assert_eq!(read(small).to_rgb8().into_raw(), pixels(32, 20).data);
        let large = picture(&pixels(400, 100), 128).unwrap();
        assert_eq!(large.media_type, "image/jpeg");
        let large = read(large);
        assert_eq!((large.width(), large.height()), (128, 32));
        assert!(picture(&Pixels { width: 9, ..pixels(8, 8) }, 32).is_err());
    }

    #[test]
    fn what_is_no_image_is_named() {
        for (bytes, reason) in [
            (&b""[..], "it is empty"),
            (b"hello", "not an image"),
            (b"<?xml version='1.0'?><SVG></SVG>", "unsupported format: SVG"),
            (b"%PDF-1.7", "unsupported format: PDF"),
            (b"\0\0\0\x1cftypavif....", "unsupported format: AVIF"),
        ] {
            let error = decode_with(bytes, &DecodeConfig::default()).unwrap_err();
            assert!(error.0.starts_with(reason), "{error}");
        }
    }
}
