//! Bytes → pixels, on threads of its own. What an image is, is told by its first bytes; whether it may be decoded, by
//! its header, before a pixel is allocated.
//!
//! Nothing in here is trusted: every path ends in frames or in an [`Undecodable`] with a reason for people, and a panic
//! in a decoder costs one image.

mod animation;
mod bmp;
mod budget;
mod codec;
mod encode;
mod format;
mod frame;
mod gif;
mod jpeg;
mod kept;
mod png;
mod pool;
mod prepare;
mod rgb;
pub mod sandbox;
mod still;
mod tiff;
mod webp;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use super::pixels::Pixels;
use crate::config::{DecodeConfig, DecodeMode};
use crate::detector::Geometry;
use crate::job::Seen;
use budget::{Held, Memory};
use format::Format;
use frame::Frame;
use kept::Kept;
use prepare::Preparer;

pub use encode::{Picture, picture, save_png};
pub use pool::Pool;
pub(super) use prepare::LEAVES_TENTHS;
pub use sandbox::Layers;

/// Grows by 1 with every change after which some file has other pixels than before, however few. It is a part of every
/// detector's digest, so that stored scores are not mixed with scores of other pixels.
pub(super) const PIXELS_VERSION: u32 = 1;

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

    /// How far an image may be shrunk while it is decoded: by 8, 4, 2, or by 1, which is not at all.
    fn may_shrink(&self, size: (u32, u32), orientation: u8) -> u32 {
        match self.mode {
            DecodeMode::Exact => 1,
            DecodeMode::Fast => prepare::may_shrink(size, orientation, self.geometries),
        }
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
        Format::Png => png::decode(bytes, &mut context),
        Format::Bmp => bmp::decode(bytes, &mut context),
        Format::Tiff => tiff::decode(bytes, &mut context),
        Format::Gif => gif::decode(bytes, &mut context),
        Format::WebP => webp::decode(bytes, &mut context),
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

#[cfg(test)]
mod tests {
    use super::budget::Budget;
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
