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
    if tiff_may_hold_jpeg(bytes) {
        return Err(Undecodable::new("unsupported kind of TIFF: JPEG compression"));
    }
    still("TIFF", "tiff", TiffDecoder::new(Cursor::new(bytes)), context)
}

/// Whether any compression tag (259) of the first directory says 6 or 7, JPEG old and new, in whatever type it is written
/// (TIFF 6.0, section 2). A directory with two of them is read by its decoder as that likes.
fn tiff_may_hold_jpeg(bytes: &[u8]) -> bool {
    const COMPRESSION: u32 = 259;
    const JPEG: [u32; 2] = [6, 7];
    let little = bytes.first() == Some(&b'I');
    let number = |at: usize, length: usize| -> Option<u32> {
        let digits = bytes.get(at..at.checked_add(length)?)?.iter();
        let add = |sum: u32, byte: &u8| sum << 8 | u32::from(*byte);
        Some(if little { digits.rev().fold(0, add) } else { digits.fold(0, add) })
    };
    let says_jpeg = |entry: usize| {
        // One value, or several somewhere else, which no compression has.
        let values = [1, 2, 4].into_iter().filter_map(|length| number(entry + 8, length));
        number(entry + 4, 4) != Some(1) || values.into_iter().any(|value| JPEG.contains(&value))
    };
    let Some((directory, entries)) = number(4, 4)
        .and_then(|at| usize::try_from(at).ok())
        .and_then(|directory| Some((directory, number(directory, 2)? as usize)))
    else {
        return false;
    };
    (0..entries)
        .map(|i| directory + 2 + 12 * i)
        .take_while(|entry| *entry < bytes.len())
        .any(|entry| number(entry, 2) == Some(COMPRESSION) && says_jpeg(entry))
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
    (context.take)(&Frame::whole(rgb, width, height, orientation))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A header and one directory: tag, type, count, value as it lies in its four bytes.
    fn directory(little: bool, entries: &[(u16, u16, u32, [u8; 4])]) -> Vec<u8> {
        let short = |n: u16| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let long = |n: u32| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let mut bytes = if little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        bytes.extend(long(8));
        bytes.extend(short(u16::try_from(entries.len()).unwrap()));
        for (tag, kind, count, value) in entries {
            bytes.extend(short(*tag).into_iter().chain(short(*kind)).chain(long(*count)).chain(*value));
        }
        bytes
    }

    #[test]
    fn jpeg_in_a_tiff_is_seen_however_it_is_said() {
        let none = (259, 3, 1, [1, 0, 0, 0]);
        for (little, entry) in [
            (true, (259, 3, 1, [7, 0, 0, 0])),
            (true, (259, 4, 1, [6, 0, 0, 0])),
            (false, (259, 3, 1, [0, 7, 0, 0])),
            (false, (259, 4, 1, [0, 0, 0, 7])),
            (false, (259, 1, 1, [7, 0, 0, 0])),
            (false, (259, 3, 4, [0, 0, 0, 8])),
        ] {
            assert!(tiff_may_hold_jpeg(&directory(little, &[entry])), "{little} {entry:?}");
            assert!(tiff_may_hold_jpeg(&directory(little, &[none, entry])), "the second of two: {entry:?}");
        }
        for (little, value) in [(true, [5, 0x80, 0, 0]), (false, [0x80, 5, 0, 0]), (false, [0, 8, 0, 0])] {
            let bytes = directory(little, &[(256, 3, 1, [7, 7, 7, 7]), (259, 3, 1, value)]);
            assert!(!tiff_may_hold_jpeg(&bytes), "{value:?}");
        }
        for cut in 0..40 {
            let whole = directory(true, &[none, (259, 3, 1, [7, 0, 0, 0])]);
            // Whatever it says, it must not panic.
            tiff_may_hold_jpeg(&whole[..cut.min(whole.len())]);
        }
    }
}
