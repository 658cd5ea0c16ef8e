//! JPEG through libjpeg-turbo, bit for bit what Pillow decodes.
//!
//! A file that was cut short decodes "successfully", with grey where the data ends; only the decoder's warning tells.
//! So a warning is damage, but for the one that says that bytes between segments were skipped.

use image::metadata::Orientation;
use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat};

use super::{Context, Frame, Undecodable};
use crate::job::Seen;

/// More scans than any encoder writes; each costs a pass over the whole image.
const MAX_SCANS: u32 = 500;

pub(super) fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    let damaged = |e: &dyn std::fmt::Display| Undecodable::damaged("JPEG", e);
    let mut decompressor = Decompressor::new().map_err(|e| damaged(&e))?;
    decompressor.set_scan_limit(MAX_SCANS).map_err(|e| damaged(&e))?;
    let header = decompressor.read_header(bytes).map_err(|e| damaged(&e))?;
    let too_large = |_| Undecodable::new("damaged JPEG: impossible dimensions");
    let (width, height) = (u32::try_from(header.width).map_err(too_large)?, u32::try_from(header.height).map_err(too_large)?);

    let inks = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if inks { PixelFormat::CMYK } else { PixelFormat::RGB };
    // A progressive image keeps all its coefficients, two bytes a sample, until the last scan.
    let coefficients = if header.is_progressive { 2 * format.size() } else { 0 };
    let grant = context.admit(width, height, (format.size() + coefficients) as u64)?;

    let pitch = header.width * format.size();
    let mut pixels = vec![0; pitch * header.height];
    let image = Image { pixels: &mut pixels[..], width: header.width, pitch, height: header.height, format };
    match decompressor.decompress(bytes, image) {
        Ok(()) => {}
        // The whole image was decoded; the warning says what was skipped on the way.
        Err(e) if is_harmless(&e, bytes) => {}
        Err(e) => return Err(damaged(&e)),
    }
    let rgb = if inks { super::rgb::from_inverted_cmyk(pixels) } else { pixels };
    let orientation = orientation(bytes).map_or(1, Orientation::to_exif);
    (context.take)(&Frame { rgb, width, height, orientation })?;
    drop(grant);
    let (width, height) = super::rgb::upright(width, height, orientation);
    Ok(Seen { format: "jpeg", width, height, frames: 1 })
}

/// Whether a warning only says that padding was skipped, as some cameras write it (libjpeg's JWRN_EXTRANEOUS_DATA).
///
/// Garbage in a scan gives the same warning, since the decoder gets out of step and ends early. And only the first
/// warning is known, so that a harmless one must not hide that the data ended early: an end marker has to be there.
fn is_harmless(error: &turbojpeg::Error, bytes: &[u8]) -> bool {
    let words = error.to_string();
    let number = |text: &str| text.split_whitespace().next_back().and_then(|word| word.parse::<usize>().ok());
    let Some((before, marker)) = words.split_once(" extraneous bytes before marker 0x") else { return false };
    let (Some(skipped), Some(end)) = (number(before), bytes.windows(2).rposition(|pair| pair == [0xFF, 0xD9])) else {
        return false;
    };
    match marker.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        // Before the end marker: the bytes skipped must be padding.
        Some(0xD9) => {
            let padding = bytes[..end].get(end.saturating_sub(skipped)..).unwrap_or_default();
            padding.iter().all(|byte| *byte == 0) || padding.iter().all(|byte| *byte == 0xFF)
        }
        // Before a restart marker: the scan is out of step.
        Some(0xD0..=0xD7) | None => false,
        // Before a segment: between segments, where no pixels are.
        Some(_) => true,
    }
}

/// The orientation in the EXIF segment, if there is one before the first scan.
fn orientation(bytes: &[u8]) -> Option<Orientation> {
    let mut at = 2;
    loop {
        while *bytes.get(at)? == 0xFF && *bytes.get(at + 1)? == 0xFF {
            at += 1;
        }
        let [0xFF, marker, high, low] = *bytes.get(at..at + 4)? else { return None };
        if marker == 0xDA || marker == 0xD9 {
            return None;
        }
        let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        let segment = bytes.get(at + 4..end)?;
        if marker == 0xE1
            && let Some(exif) = segment.strip_prefix(b"Exif\0\0")
        {
            return Orientation::from_exif_chunk(exif);
        }
        at = end;
    }
}
