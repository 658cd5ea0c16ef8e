//! PNG, still or animated, as browsers show it.
//!
//! Chromium reads PNG with the `png` crate. So does this file, with the same options and row by row, so that a damaged file
//! shows the same rows here and there. `chunks` finds what browsers leave out and other viewers show. `animation` composes
//! frames, `rows` turns rows into pixels, `colour` finds the colours that a file means.

mod animation;
mod chunks;
mod colour;
mod rows;

use std::fmt;
use std::io::{Cursor, ErrorKind};

use image::metadata::Orientation;
use png::{DecodeOptions, Decoder, DecodingError, InterlaceInfo, Limits};

use super::colour::ToSrgb;
use super::frame::{Channels, Frame};
use super::{DecodeContext, Undecodable, rgb};
use crate::job::ImageInfo;
use chunks::Layout;
use rows::RowFormat;

/// A picture with more metadata before its rows is refused.
const MAX_METADATA_BYTES: usize = 16 << 20;

type Reader<'a> = png::Reader<Cursor<&'a [u8]>>;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let mut decoder = decoder_of(bytes, true);
    let header = decoder.read_header_info().map_err(|e| refuse(&e))?;
    let size = (header.width, header.height);
    // The chunks before the first row may take memory, so that the size is checked first.
    context.check_size(size.0, size.1, 1)?;
    decoder.set_limits(limits(size.0));
    let reader = decoder.read_info().map_err(|e| refuse(&e))?;
    let layout = Layout::of(bytes, skips_default_image(reader.info()));
    if reader.info().icc_profile.is_none() && layout.profile.is_some_and(colour::is_too_long) {
        return Err(Undecodable::new("over the decode limits: PNG: its colour profile is too long"));
    }
    for flaw in layout.flaws() {
        context.record_damage("PNG", &flaw);
    }
    let orientation = reader.info().exif_metadata.as_deref().and_then(orientation).unwrap_or(1);
    let other_orientation = layout.exif.and_then(orientation_of_any).filter(|other| *other != orientation);
    let colour = colour::to_srgb(reader.info());
    let rows = RowFormat::of(reader.info(), colour.as_ref())?;
    let picture = Picture { bytes, size, orientation, other_orientation, colour, rows };
    if layout.is_animated() {
        animation::decode(&picture, &layout, reader, context)?;
    } else {
        decode_still(&picture, reader, context)?;
    }
    let (width, height) = rgb::upright(size.0, size.1, orientation);
    Ok(ImageInfo { format: "png", width, height, frames: layout.frame_count() })
}

/// What all frames of a file have in common.
struct Picture<'a> {
    bytes: &'a [u8],
    size: (u32, u32),
    orientation: u8,
    other_orientation: Option<u8>,
    /// A profile may take milliseconds to read, and a file may have thousands of frames.
    colour: Option<ToSrgb>,
    rows: RowFormat,
}

impl Picture<'_> {
    /// Pixels of the whole picture as a frame.
    fn frame(&self, samples: Vec<u8>, channels: Channels) -> Frame {
        Frame {
            colour: self.colour.clone(),
            orientation: self.orientation,
            other_orientation: self.other_orientation,
            ..Frame::new(samples, channels, self.size)
        }
    }
}

fn decode_still<'a>(
    picture: &Picture<'a>,
    mut reader: Reader<'a>,
    context: &mut DecodeContext<'_>,
) -> Result<(), Undecodable> {
    let (width, height) = picture.size;
    let format = &picture.rows;
    let mut channels = if format.has_alpha() { Channels::Rgba } else { Channels::Rgb };
    loop {
        // A transparent picture has a copy over its background.
        let bytes_per_pixel = if channels == Channels::Rgba { 4 + 3 } else { 3 };
        let grant = context.admit(width, height, bytes_per_pixel + format.row_bytes_per_pixel(height))?;
        let mut samples = vec![0; width as usize * height as usize * channels.count()];
        let target = Target { samples: &mut samples, channels, size: picture.size };
        let outcome = read_picture(&mut reader, format, target);
        if let Err(Unfinished { error, rows }) = outcome {
            if rows == 0 {
                return Err(refuse(&error));
            }
            if channels == Channels::Rgb {
                // The rows that are missing are transparent, so that it is read once more, with alpha.
                channels = Channels::Rgba;
                reader = open(picture.bytes, true).map_err(|e| refuse(&e))?;
                continue;
            }
            context.record_damage("PNG", &Shortage(error));
        }
        context.take(&mut picture.frame(samples, channels))?;
        drop(grant);
        return Ok(());
    }
}

/// Whether the first picture is no frame of the animation. Browsers know of an animation, and of its first frame, only from
/// the chunks before it.
fn skips_default_image(info: &png::Info<'_>) -> bool {
    info.animation_control.is_some() && info.frame_control.is_none()
}

/// Options as browsers have them: checksums of image data count, and Adler-32 does not.
fn decoder_of(bytes: &[u8], heeds_checksums: bool) -> Decoder<Cursor<&[u8]>> {
    let mut options = DecodeOptions::default();
    options.set_ignore_text_chunk(true);
    options.set_ignore_crc(!heeds_checksums);
    Decoder::new_with_options(Cursor::new(bytes), options)
}

/// Reads all that is before the first row.
fn open(bytes: &[u8], heeds_checksums: bool) -> Result<Reader<'_>, DecodingError> {
    let mut decoder = decoder_of(bytes, heeds_checksums);
    let width = decoder.read_header_info()?.width;
    decoder.set_limits(limits(width));
    decoder.read_info()
}

/// What the crate may allocate: the chunks before the first row, of which a compressed colour profile is one, and a row of
/// up to eight bytes for each pixel, which is admitted with the pixels.
fn limits(width: u32) -> Limits {
    Limits { bytes: MAX_METADATA_BYTES + 8 * width as usize }
}

/// Where the pixels of a picture go: `[height, width, channels] u8`, all zero.
struct Target<'a> {
    samples: &'a mut [u8],
    channels: Channels,
    size: (u32, u32),
}

/// Why a picture has not all of its rows, and how many it has. Rows of an interlaced picture are those of its passes.
struct Unfinished {
    error: DecodingError,
    rows: u32,
}

/// Reads the rows of a picture until all are there. What is behind them changes no pixel and is not looked at.
fn read_picture(reader: &mut Reader<'_>, format: &RowFormat, target: Target<'_>) -> Result<(), Unfinished> {
    let Target { samples, channels, size: (width, height) } = target;
    let stride = width as usize * channels.count();
    let interlaced = reader.info().interlaced;
    let rows = if interlaced { interlaced_rows(width, height) } else { height };
    let mut wide = vec![0; if interlaced { stride } else { 0 }];
    for done in 0..rows {
        let unfinished = |error| Unfinished { error, rows: done };
        let Some(row) = reader.next_interlaced_row().map_err(unfinished)? else { break };
        match row.interlace() {
            InterlaceInfo::Null(_) => {
                let start = done as usize * stride;
                format.write(row.data(), channels, &mut samples[start..start + stride]);
            }
            InterlaceInfo::Adam7(pass) => {
                format.write(row.data(), channels, &mut wide);
                // Pixels of later passes look like their neighbours until they are there.
                png::splat_interlaced_row(samples, stride, &wide, pass, bits(channels));
            }
        }
    }
    Ok(())
}

fn bits(channels: Channels) -> u8 {
    match channels {
        Channels::Rgb => 24,
        Channels::Rgba => 32,
    }
}

/// The rows of all seven passes (PNG, third edition, section 8.2). A pass without columns has none.
fn interlaced_rows(width: u32, height: u32) -> u32 {
    // The first column and row, and the steps to the next.
    const PASSES: [(u32, u32, u32, u32); 7] =
        [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)];
    PASSES.iter().filter(|(x, ..)| *x < width).map(|(_, y, _, step)| height.saturating_sub(*y).div_ceil(*step)).sum()
}

/// The orientation in the EXIF data that browsers heed.
fn orientation(exif: &[u8]) -> Option<u8> {
    Orientation::from_exif_chunk(exif).map(Orientation::to_exif)
}

/// The orientation for viewers that also heed EXIF data as JPEG has it.
fn orientation_of_any(exif: &[u8]) -> Option<u8> {
    orientation(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))
}

fn refuse(error: &DecodingError) -> Undecodable {
    match error {
        DecodingError::LimitsExceeded => {
            Undecodable::new("over the decode limits: PNG: its chunks or rows are too long")
        }
        error => Undecodable::damaged("PNG", &Cause(error)),
    }
}

/// What is missing of a picture, as a text.
struct Shortage(DecodingError);

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rows of a picture are missing: {}", Cause(&self.0))
    }
}

/// The crate's text, in words for people.
struct Cause<'a>(&'a DecodingError);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let DecodingError::IoError(error) = self.0
            && error.kind() == ErrorKind::UnexpectedEof
        {
            return f.write_str("the file ends too early");
        }
        if self.0.to_string().contains("does not have enough data") {
            return f.write_str("its data ends too early");
        }
        // A chunk's kind is printed as `ChunkType { type: IDAT, critical: true, … }`.
        let text = self.0.to_string();
        let mut parts = text.split("ChunkType { type: ");
        f.write_str(parts.next().unwrap_or_default())?;
        parts.try_for_each(|part| {
            let (kind, rest) = part.split_once(',').unwrap_or((part, ""));
            let rest = rest.split_once('}').map_or("", |(_, rest)| rest);
            write!(f, "{kind}{rest}")
        })
    }
}

#[cfg(test)]
mod tests;
