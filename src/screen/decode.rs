//! Bytes → pixels: what an image is, whether it may be decoded, and its frames, prepared for each detector.
//!
//! The format follows from the first bytes. Whether an image may be decoded follows from its header, before memory for a
//! pixel is allocated. Every path ends in frames or in an [`Undecodable`] with a reason for people. A panic in a decoder
//! costs one image.
//!
//! There is one file for each format. [`DecoderPool`] runs them on its own threads, or in confined processes (`sandbox`).

mod animation;
mod avif;
mod bmp;
mod colour;
mod encode;
mod format;
mod frame;
mod gif;
#[cfg(feature = "heic")]
mod heic;
mod ico;
mod isobmff;
mod jpeg;
mod jxl;
mod memory_budget;
pub mod options;
mod pdq;
mod png;
mod pool;
mod prepare;
mod reused_buffer;
mod rgb;
pub(crate) mod sandbox;
#[cfg(test)]
mod shown;
mod tiff;
mod views;
mod webp;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use super::error::{Undecodable, one_line};
use super::pixels::Pixels;
use crate::config::{DecodeConfig, DecodeMode};
use crate::detector::Geometry;
use crate::error_text;
use crate::job::{ImageInfo, Pdq, View, ViewHash};
use format::FileFormat;
use frame::Frame;
use memory_budget::{MemoryHold, MemorySource};
use prepare::Preparer;
use reused_buffer::ReusedBuffer;
use views::ViewTaker;

pub(crate) use encode::{encode_picture, save_png};
pub(crate) use format::{has_image_signature, is_of_image_format};
pub use pdq::hash as hash_picture;
pub use pool::DecoderPool;
pub(super) use prepare::FAST_MARGIN_TENTHS;

/// Grows by 1 with every change after which some file has other pixels than before, however few. It is a part of every
/// detector's digest, so that stored scores are not mixed with scores of other pixels.
pub(super) const PIXELS_VERSION: u32 = 2;

/// How many times `decode.max_pixels` an image may have that is shrunk while it is decoded. All of its data is read
/// nevertheless, which takes about five nanoseconds a pixel.
const SHRUNK_MAX_PIXELS_FACTOR: u64 = 4;

/// What decoding an image gave.
#[derive(Debug)]
pub struct DecodedImage {
    /// Format, size and number of frames.
    pub info: ImageInfo,
    /// What is wrong with a file that still shows something; empty where nothing is.
    pub damage: String,
    /// One or more views. The first one is the first frame over white.
    pub views: Vec<DecodedView>,
}

/// One view of an image.
#[derive(Debug)]
pub struct DecodedView {
    /// Which view it is.
    pub view: View,
    /// The hash of the picture before it is turned upright: views that differ only in their orientation share it.
    pub pdq: Pdq,
    /// The quality of the hash, 0 to 100.
    pub quality: u8,
    /// In the order of the geometries asked for.
    pub pixels: Vec<Arc<Pixels>>,
}

impl DecodedView {
    /// The hash of this view.
    #[must_use]
    pub fn hash(&self) -> ViewHash {
        ViewHash { view: self.view, pdq: self.pdq, quality: self.quality }
    }
}

/// An image to decode, and the geometries to prepare it for.
struct DecodeRequest<'a> {
    bytes: &'a [u8],
    geometries: &'a [Geometry],
    mode: DecodeMode,
}

/// What a format's decoder works with.
struct DecodeContext<'a> {
    limits: &'a DecodeConfig,
    mode: DecodeMode,
    memory: &'a dyn MemorySource,
    buffer: &'a mut ReusedBuffer,
    views: ViewTaker<'a>,
    damage: String,
}

impl<'a> DecodeContext<'a> {
    /// Takes a frame that is to be screened, in order. Its samples are used up: they may be written over.
    fn take(&mut self, frame: &mut Frame) -> Result<(), Undecodable> {
        self.views.take(frame).map_err(|e| Undecodable(error_text(&e)))
    }

    /// Records that the file is damaged although it shows something. The first damage that is found is kept.
    fn record_damage(&mut self, format: &str, what: &dyn fmt::Display) {
        if self.damage.is_empty() {
            let what = one_line(&what.to_string());
            let what = what.strip_prefix(&format!("damaged {format}: ")).unwrap_or(&what);
            self.damage = format!("{format}: {what}");
        }
    }

    /// Checks an image's size and waits for memory to decode it.
    ///
    /// `bytes_per_pixel` is everything the decoder holds at its peak, the output included.
    fn admit(
        &mut self,
        width: u32,
        height: u32,
        bytes_per_pixel: u64,
    ) -> Result<Box<dyn MemoryHold + 'a>, Undecodable> {
        let bytes = self.check_size(width, height, bytes_per_pixel)?;
        self.buffer.leave_room(bytes, self.limits.max_decoded_bytes);
        Ok(self.memory.take(bytes))
    }

    /// Checks an image's size, and returns by how much it is shrunk while it is decoded (by 8, 4, 2, or by 1, which is not
    /// at all) and the bytes that this takes.
    ///
    /// In every mode an image that is too large for the limits is shrunk until it fits, as long as that leaves enough for
    /// each detector. So the same images are undecodable in every mode.
    fn check_shrunk(&self, image: &Shrinkable) -> Result<(u32, u64), Undecodable> {
        let &Shrinkable { size, orientation, bytes_per_pixel, fixed_bytes, shrinking } = image;
        self.check_sides(size.0, size.1)?;
        let check = |by: u32| self.check_area((size.0.div_ceil(by), size.1.div_ceil(by)), bytes_per_pixel, fixed_bytes);
        let whole = check(1);
        let is_small_enough =
            u64::from(size.0) * u64::from(size.1) <= SHRUNK_MAX_PIXELS_FACTOR.saturating_mul(self.limits.max_pixels);
        let may_shrink = match (shrinking, self.mode) {
            (Shrinking::Never, _) => false,
            (Shrinking::ByMode, DecodeMode::Fast) => true,
            (Shrinking::ByMode | Shrinking::WhereTooLarge, _) => whole.is_err() && is_small_enough,
        };
        if !may_shrink {
            return Ok((1, whole?));
        }
        let largest = prepare::largest_shrink(size, orientation, self.views.geometries());
        let fitting = [1, 2, 4, 8].into_iter().take_while(|by| *by <= largest).find(|by| check(*by).is_ok());
        match fitting.filter(|by| *by == 1 || is_small_enough) {
            None => Err(whole.err().unwrap_or_else(|| Undecodable::new("over the decode limits"))),
            Some(_) if self.mode == DecodeMode::Fast && shrinking == Shrinking::ByMode => {
                Ok((largest, check(largest)?))
            }
            Some(by) => Ok((by, check(by)?)),
        }
    }

    /// Checks an image's size, and returns the bytes that decoding all of it takes.
    fn check_size(&self, width: u32, height: u32, bytes_per_pixel: u64) -> Result<u64, Undecodable> {
        self.check_sides(width, height)?;
        self.check_area((width, height), bytes_per_pixel, 0)
    }

    fn check_sides(&self, width: u32, height: u32) -> Result<(), Undecodable> {
        let (max_width, max_height) = (self.limits.max_width, self.limits.max_height);
        if width == 0 || height == 0 {
            return Err(Undecodable(format!("the image has no pixels: its size is {width}x{height}")));
        }
        if width > max_width || height > max_height {
            return Err(over_limits(format!("{width}x{height} pixels, the limit is {max_width}x{max_height}")));
        }
        Ok(())
    }

    fn check_area(
        &self,
        (width, height): (u32, u32),
        bytes_per_pixel: u64,
        fixed_bytes: u64,
    ) -> Result<u64, Undecodable> {
        let limits = self.limits;
        let pixels = u64::from(width) * u64::from(height);
        if pixels > limits.max_pixels {
            return Err(over_limits(format!("{pixels} pixels, the limit is {}", limits.max_pixels)));
        }
        let bytes = pixels.saturating_mul(bytes_per_pixel).saturating_add(fixed_bytes);
        if bytes > limits.max_decoded_bytes {
            return Err(over_limits(format!("{bytes} bytes to decode, the limit is {}", limits.max_decoded_bytes)));
        }
        Ok(bytes)
    }
}

/// An image that its decoder can shrink.
struct Shrinkable {
    /// Width and height of the whole image.
    size: (u32, u32),
    /// EXIF's code, 1 to 8.
    orientation: u8,
    /// What is held for each pixel of the shrunk image.
    bytes_per_pixel: u64,
    /// What is held however far it is shrunk.
    fixed_bytes: u64,
    shrinking: Shrinking,
}

/// When an image is shrunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shrinking {
    Never,
    /// Only where the whole image would be over the limits.
    WhereTooLarge,
    /// Also in the mode `fast`.
    ByMode,
}

fn over_limits(what: impl fmt::Display) -> Undecodable {
    Undecodable(format!("over the decode limits: {what}"))
}

/// What a decoder thread keeps from one image to the next.
struct DecodeScratch {
    preparer: Preparer,
    buffer: ReusedBuffer,
}

impl DecodeScratch {
    /// All threads together keep no more memory than may be used for decoding.
    fn new(limits: &DecodeConfig) -> Self {
        let share_bytes = limits.memory_bytes / DecoderPool::thread_count(limits) as u64;
        let buffer = ReusedBuffer::new(usize::try_from(share_bytes).unwrap_or(usize::MAX));
        Self { preparer: Preparer::default(), buffer }
    }
}

/// As [`decode`], but a panic in a decoder makes the image undecodable.
fn decode_safely(
    request: &DecodeRequest<'_>,
    limits: &DecodeConfig,
    memory: &dyn MemorySource,
    scratch: &mut DecodeScratch,
) -> Result<DecodedImage, Undecodable> {
    let decoded = std::panic::catch_unwind(AssertUnwindSafe(|| decode(request, limits, memory, &mut *scratch)));
    decoded.unwrap_or_else(|_| {
        // The resizer's buffers may be half-written.
        scratch.preparer = Preparer::default();
        Err(Undecodable::new("damaged: the decoder panicked"))
    })
}

/// Decodes one image and prepares each of its frames for every geometry.
fn decode(
    request: &DecodeRequest<'_>,
    limits: &DecodeConfig,
    memory: &dyn MemorySource,
    scratch: &mut DecodeScratch,
) -> Result<DecodedImage, Undecodable> {
    let DecodeScratch { preparer, buffer } = scratch;
    let &DecodeRequest { bytes, geometries, mode } = request;
    let views = ViewTaker::new(geometries, preparer);
    let mut context = DecodeContext { limits, mode, memory, buffer, views, damage: String::new() };
    let info = match FileFormat::of(bytes)? {
        FileFormat::Jpeg => jpeg::decode(bytes, &mut context),
        FileFormat::Png => png::decode(bytes, &mut context),
        FileFormat::Bmp => bmp::decode(bytes, &mut context),
        FileFormat::Tiff => tiff::decode(bytes, &mut context),
        FileFormat::Gif => gif::decode(bytes, &mut context),
        FileFormat::Ico => ico::decode(bytes, &mut context),
        FileFormat::WebP => webp::decode(bytes, &mut context),
        FileFormat::Avif => avif::decode(bytes, &mut context),
        FileFormat::JpegXl => jxl::decode(bytes, &mut context),
        #[cfg(feature = "heic")]
        FileFormat::Heic => heic::decode(bytes, &mut context),
    }?;
    let (count, max) = (context.views.count(), limits.max_views);
    if count > max as usize {
        let what = format_args!("it has {count} views, and decode.max_views is {max}: some are left out");
        context.record_damage("image", &what);
    }
    let DecodeContext { views, damage, .. } = context;
    if views.is_empty() {
        let what = if damage.is_empty() { format!("{}: it holds no image", info.format) } else { damage };
        return Err(Undecodable(format!("damaged {what}")));
    }
    Ok(DecodedImage { info, damage, views: views.into_views(limits.max_views) })
}

/// Whether an image that was decoded once, perhaps under other limits, surely is within these. Its size is known only
/// after it was turned upright, so that a turned image has to fit both ways.
#[must_use]
pub fn is_within_limits(limits: &DecodeConfig, info: ImageInfo) -> bool {
    let pixels = u64::from(info.width) * u64::from(info.height);
    info.width.max(info.height) <= limits.max_width.min(limits.max_height) && pixels <= limits.max_pixels
}

#[cfg(test)]
mod tests {
    use super::memory_budget::StrictMemory;
    use super::*;
    use crate::detector::{CropRounding, ResampleFilter, Resize};

    fn geometry() -> Geometry {
        let resize = Resize::Exact { width: 8, height: 8 };
        Geometry { resize, filter: ResampleFilter::Bicubic, width: 8, height: 8, rounding: CropRounding::Down }
    }

    pub(super) fn decode_with(bytes: &[u8], limits: &DecodeConfig) -> Result<DecodedImage, Undecodable> {
        let request = DecodeRequest { bytes, geometries: &[geometry()], mode: limits.mode };
        decode(&request, limits, &StrictMemory::default(), &mut DecodeScratch::new(limits))
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
            assert_eq!(decoded.info, ImageInfo { format: name, width: 64, height: 48, frames: 1 });
            assert_eq!(decoded.views[0].pixels[0].data.len(), 8 * 8 * 3);
        }
    }

    #[test]
    fn an_image_cut_anywhere_does_not_pass_as_whole() {
        let passes =
            |bytes: &[u8]| decode_with(bytes, &DecodeConfig::default()).is_ok_and(|decoded| decoded.damage.is_empty());
        for (format, name) in FORMATS {
            let whole = encoded(format);
            for tenth in 0..10 {
                let cut = &whole[..whole.len() * tenth / 10];
                assert!(!passes(cut), "{name} cut at {tenth}/10");
            }
            let almost = &whole[..whole.len() - 1];
            // No pixel needs the last byte of these: padding, a directory, a checksum, or an end marker.
            use image::ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff};
            if !matches!(format, Bmp | Gif | Jpeg | Png | Tiff) {
                assert!(!passes(almost), "{name} without its last byte");
            }
        }
    }

    #[test]
    fn limits_count_before_pixels_are_allocated() {
        let limits = DecodeConfig { max_width: 63, ..DecodeConfig::default() };
        for (format, name) in FORMATS {
            let error = decode_with(&encoded(format), &limits).unwrap_err();
            assert!(error.0.starts_with("over the decode limits"), "{name}: {error}");
        }
        let limits = DecodeConfig { max_decoded_bytes: 64, ..DecodeConfig::default() };
        for (format, name) in FORMATS {
            let error = decode_with(&encoded(format), &limits).unwrap_err();
            assert!(error.0.contains("bytes to decode"), "{name}: {error}");
        }
    }

    #[test]
    fn what_is_no_image_is_named() {
        for (bytes, reason) in [
            (&b""[..], "the file is empty"),
            (b"hello", "not an image"),
            (b"<?xml version='1.0'?><SVG></SVG>", "unsupported format: SVG"),
            (b"%PDF-1.7", "unsupported format: PDF"),
            (b"\0\0\0\x1cftypavif....", "damaged AVIF"),
            (b"\xff\x0a\xff", "damaged JPEG XL"),
        ] {
            let error = decode_with(bytes, &DecodeConfig::default()).unwrap_err();
            assert!(error.0.starts_with(reason), "{error}");
        }
    }
}
