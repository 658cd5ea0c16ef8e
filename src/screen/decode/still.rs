//! PNG, BMP and TIFF through the `image` crate, which decodes them bit for bit as Pillow does.
//!
//! A PNG may be animated; its frames are read in `animated`.

use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, png::PngDecoder, tiff::TiffDecoder};
use image::{ImageDecoder, ImageError, ImageResult, Limits};

use super::{Context, Frame, Undecodable, animated, rgb};
use crate::job::Seen;

pub(super) fn png(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    let layout = PngLayout::of(bytes)?;
    if layout.frames > 1 {
        return animated::apng(bytes, layout.frames, context);
    }
    still("PNG", "png", PngDecoder::with_limits(Cursor::new(bytes), header_limits()), context)
}

pub(super) fn bmp(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    still("BMP", "bmp", BmpDecoder::new(Cursor::new(bytes)), context)
}

/// The first page only. JPEG inside TIFF is refused: its decoder fills in what is missing and says nothing.
pub(super) fn tiff(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    const OLD_JPEG: u16 = 6;
    const JPEG: u16 = 7;
    if matches!(tiff_compression(bytes), Some(OLD_JPEG | JPEG)) {
        return Err(Undecodable::new("unsupported kind of TIFF: JPEG compression"));
    }
    still("TIFF", "tiff", TiffDecoder::new(Cursor::new(bytes)), context)
}

/// The compression tag (259) of the first directory (TIFF 6.0, section 2).
fn tiff_compression(bytes: &[u8]) -> Option<u16> {
    let little = bytes.first() == Some(&b'I');
    let short = |at: usize| -> Option<u16> {
        let pair = [*bytes.get(at)?, *bytes.get(at + 1)?];
        Some(if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) })
    };
    let long = |at: usize| -> Option<usize> {
        let (a, b) = (usize::from(short(at)?), usize::from(short(at + 2)?));
        Some(if little { b << 16 | a } else { a << 16 | b })
    };
    let directory = long(4)?;
    let entries = usize::from(short(directory)?);
    let tags = (0..entries).map(|i| directory + 2 + 12 * i);
    tags.take_while(|at| *at < bytes.len()).find(|at| short(*at) == Some(259)).and_then(|at| short(at + 8))
}

/// What may be allocated for a PNG's header, of which a compressed colour profile is a part.
pub(super) fn header_limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(16 << 20);
    limits
}

/// What a decoder may allocate besides the pixels, which `Context::admit` has counted.
pub(super) fn limits(context: &Context<'_>) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(context.limits.max_decoded_bytes);
    limits
}

/// Reads a still image of any colour type. The error of a decoder that refuses the header is explained here too.
pub(super) fn still<D: ImageDecoder>(
    name: &str,
    format: &'static str,
    decoder: ImageResult<D>,
    context: &mut Context<'_>,
) -> Result<Seen, Undecodable> {
    let mut decoder = decoder.map_err(|e| explain(name, &e))?;
    let ((width, height), color) = (decoder.dimensions(), decoder.color_type());
    // The samples, and beside them either the copy in RGB or, in some decoders, a second set of samples. Lossless WebP is
    // decoded with alpha even where it has none.
    let samples = u64::from(color.bytes_per_pixel());
    let beside = if format == "webp" { 4 } else { 3 };
    let grant = context.admit(width, height, samples + samples.max(beside))?;
    let orientation = decoder.orientation().map_or(1, image::metadata::Orientation::to_exif);
    decoder.set_limits(limits(context)).map_err(|e| explain(name, &e))?;

    let length = usize::try_from(decoder.total_bytes()).map_err(|_| Undecodable::new("over the decode limits"))?;
    let mut samples = vec![0; length];
    decoder.read_image(&mut samples).map_err(|e| explain(name, &e))?;
    let rgb = rgb::from_samples(color, samples)?;
    (context.take)(&Frame { rgb, width, height, orientation })?;
    drop(grant);
    let (width, height) = rgb::upright(width, height, orientation);
    Ok(Seen { format, width, height, frames: 1 })
}

pub(super) fn explain(name: &str, error: &ImageError) -> Undecodable {
    match error {
        ImageError::Limits(_) => Undecodable(format!("over the decode limits: {name}: {error}")),
        ImageError::Unsupported(_) => Undecodable(format!("unsupported kind of {name}: {error}")),
        _ => Undecodable::damaged(name, error),
    }
}

/// What the chunks of a PNG say before it is decoded.
struct PngLayout {
    frames: u32,
}

impl PngLayout {
    /// Walks the chunks up to IEND; a file without it was cut, even if all pixels happen to be there.
    fn of(bytes: &[u8]) -> Result<Self, Undecodable> {
        let mut at = 8;
        let mut frames = 1;
        loop {
            let cut = || Undecodable::new("damaged PNG: the file ends before its end marker");
            let head = bytes.get(at..at + 8).ok_or_else(cut)?;
            let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let body = bytes.get(at + 8..(at + 8).saturating_add(length)).ok_or_else(cut)?;
            match &head[4..8] {
                // The end marker has its checksum behind it.
                b"IEND" if bytes.len() >= at + 12 => return Ok(Self { frames }),
                b"acTL" if body.len() >= 4 => frames = u32::from_be_bytes([body[0], body[1], body[2], body[3]]),
                _ => {}
            }
            at += 12 + length;
        }
    }
}
