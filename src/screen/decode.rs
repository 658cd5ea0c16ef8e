//! Bytes → pixels: what an image is, whether it may be decoded, and its frames, prepared for each detector.
//!
//! The format follows from the first bytes. Whether an image may be decoded follows from its header, before memory for a
//! pixel is allocated. Every path ends in frames or in an [`Undecodable`] with a reason for people. A panic in a decoder
//! costs one image.
//!
//! There is one file for each format. [`DecoderPool`] runs them on its own threads, or in confined processes (`sandbox`).

mod animation;
mod bmp;
mod codec;
mod encode;
mod format;
mod frame;
mod gif;
mod jpeg;
mod memory_budget;
pub mod options;
mod png;
mod pool;
mod prepare;
mod reused_buffer;
mod rgb;
pub(crate) mod sandbox;
mod still;
mod tiff;
mod webp;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use super::error::Undecodable;
use super::pixels::Pixels;
use crate::config::{DecodeConfig, DecodeMode};
use crate::detector::Geometry;
use crate::error_text;
use crate::job::ImageInfo;
use format::FileFormat;
use frame::Frame;
use memory_budget::{MemoryHold, MemorySource};
use prepare::Preparer;
use reused_buffer::ReusedBuffer;

pub(crate) use encode::{encode_picture, save_png};
pub(crate) use format::{has_image_signature, is_of_image_format};
pub use pool::DecoderPool;
pub(super) use prepare::FAST_MARGIN_TENTHS;

/// Grows by 1 with every change after which some file has other pixels than before, however few. It is a part of every
/// detector's digest, so that stored scores are not mixed with scores of other pixels.
pub(super) const PIXELS_VERSION: u32 = 1;

/// What decoding an image gave.
#[derive(Debug)]
pub struct DecodedImage {
    /// Format, size and number of frames.
    pub info: ImageInfo,
    /// `[frame][geometry]`, in the order of the geometries asked for.
    pub frames: Vec<Vec<Arc<Pixels>>>,
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
    /// What its frames are prepared for.
    geometries: &'a [Geometry],
    mode: DecodeMode,
    memory: &'a dyn MemorySource,
    buffer: &'a mut ReusedBuffer,
    /// Takes each frame that is to be screened, in order.
    take: &'a mut dyn FnMut(&Frame) -> Result<(), Undecodable>,
}

impl<'a> DecodeContext<'a> {
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

    /// How far an image may be shrunk while it is decoded: by 8, 4, 2, or by 1, which is not at all.
    fn largest_shrink(&self, size: (u32, u32), orientation: u8) -> u32 {
        match self.mode {
            DecodeMode::Exact => 1,
            DecodeMode::Fast => prepare::largest_shrink(size, orientation, self.geometries),
        }
    }

    /// Checks an image's size, and returns the bytes that decoding all of it takes. The limits are the same in every
    /// mode: what is undecodable does not depend on the detectors.
    fn check_size(&self, width: u32, height: u32, bytes_per_pixel: u64) -> Result<u64, Undecodable> {
        let limits = self.limits;
        let over = |what: String| Err(Undecodable(format!("over the decode limits: {what}")));
        if width == 0 || height == 0 {
            return Err(Undecodable(format!("the image has no pixels: its size is {width}x{height}")));
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
    let mut frames = Vec::new();
    let mut take = |frame: &Frame| {
        let prepared: Result<Vec<_>, _> =
            geometries.iter().map(|geometry| preparer.prepare(frame, geometry).map(Arc::new)).collect();
        frames.push(prepared.map_err(|e| Undecodable(error_text(&e)))?);
        Ok(())
    };
    let mut context = DecodeContext { limits, geometries, mode, memory, buffer, take: &mut take };
    let info = match FileFormat::of(bytes)? {
        FileFormat::Jpeg => jpeg::decode(bytes, &mut context),
        FileFormat::Png => png::decode(bytes, &mut context),
        FileFormat::Bmp => bmp::decode(bytes, &mut context),
        FileFormat::Tiff => tiff::decode(bytes, &mut context),
        FileFormat::Gif => gif::decode(bytes, &mut context),
        FileFormat::WebP => webp::decode(bytes, &mut context),
    }?;
    if frames.is_empty() {
        return Err(Undecodable::new("damaged: it holds no image"));
    }
    Ok(DecodedImage { info, frames })
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
    use super::memory_budget::MemoryBudget;
    use super::*;
    use crate::detector::{CropRounding, ResampleFilter, Resize};

    fn geometry() -> Geometry {
        let resize = Resize::Exact { width: 8, height: 8 };
        Geometry { resize, filter: ResampleFilter::Bicubic, width: 8, height: 8, rounding: CropRounding::Down }
    }

    fn decode_with(bytes: &[u8], limits: &DecodeConfig) -> Result<DecodedImage, Undecodable> {
        let request = DecodeRequest { bytes, geometries: &[geometry()], mode: limits.mode };
        decode(&request, limits, &MemoryBudget::new(limits.memory_bytes), &mut DecodeScratch::new(limits))
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
    fn what_is_no_image_is_named() {
        for (bytes, reason) in [
            (&b""[..], "the file is empty"),
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
