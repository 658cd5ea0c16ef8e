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

/// The decoder's words without its name, and the most usual one as a person would say it.
fn explain(error: &turbojpeg::Error) -> Undecodable {
    let words = error.to_string();
    let words = words.trim_start_matches("TurboJPEG error: ").trim_start_matches("Corrupt JPEG data: ");
    let cut = ["Premature end of JPEG file", "premature end of data segment"];
    Undecodable::damaged("JPEG", if cut.contains(&words) { &"the file ends before the image does" } else { &words })
}

pub(super) fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    let mut decompressor = Decompressor::new().map_err(|e| explain(&e))?;
    decompressor.set_scan_limit(MAX_SCANS).map_err(|e| explain(&e))?;
    let header = decompressor.read_header(bytes).map_err(|e| explain(&e))?;
    let too_large = |_| Undecodable::new("damaged JPEG: impossible dimensions");
    let (width, height) =
        (u32::try_from(header.width).map_err(too_large)?, u32::try_from(header.height).map_err(too_large)?);

    let inks = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if inks { PixelFormat::CMYK } else { PixelFormat::RGB };
    // Several scans keep all coefficients, two bytes a sample, until the last one.
    let layout = Layout::of(bytes);
    let coefficients = if header.is_progressive || layout.several_scans { 2 * format.size() } else { 0 };
    // Inks are converted into a second buffer.
    let converted = if inks { 3 } else { 0 };
    let grant = context.admit(width, height, (format.size() + coefficients + converted) as u64)?;

    let pitch = header.width * format.size();
    let mut pixels = vec![0; pitch * header.height];
    let image = Image { pixels: &mut pixels[..], width: header.width, pitch, height: header.height, format };
    match decompressor.decompress(bytes, image) {
        Ok(()) => {}
        // The whole image was decoded; the warning says what was skipped on the way.
        Err(e) if is_harmless(&e, bytes) => {}
        Err(e) => return Err(explain(&e)),
    }
    let rgb = if inks { super::rgb::from_inverted_cmyk(pixels) } else { pixels };
    let orientation = layout.orientation;
    (context.take)(&Frame { rgb, width, height, orientation })?;
    drop(grant);
    let (width, height) = super::rgb::upright(width, height, orientation);
    Ok(Seen { format: "jpeg", width, height, frames: 1 })
}

/// Whether a warning only says that padding before the end marker was skipped, as some cameras write it (libjpeg's
/// JWRN_EXTRANEOUS_DATA). The same words before any other marker mean that a scan got out of step; and since only the
/// first warning is known, what was skipped must be nothing but padding.
fn is_harmless(error: &turbojpeg::Error, bytes: &[u8]) -> bool {
    let words = error.to_string();
    let Some((before, marker)) = words.split_once(" extraneous bytes before marker 0x") else { return false };
    let skipped = before.split_whitespace().next_back().and_then(|word| word.parse::<usize>().ok());
    let end = bytes.windows(2).rposition(|pair| pair == [0xFF, 0xD9]);
    let (true, Some(skipped), Some(end)) = (marker.starts_with("d9"), skipped, end) else { return false };
    let padding = bytes[..end].get(end.saturating_sub(skipped)..).unwrap_or_default();
    padding.iter().all(|byte| *byte == 0) || padding.iter().all(|byte| *byte == 0xFF)
}

/// What the segments before the first scan say.
struct Layout {
    orientation: u8,
    /// The first scan holds some components only, so that all coefficients are kept until the last one.
    several_scans: bool,
}

impl Layout {
    fn of(bytes: &[u8]) -> Self {
        let mut layout = Self { orientation: 1, several_scans: false };
        // A walk that ends early leaves the defaults; the decoder will have its own words.
        let _complete = layout.walk(bytes);
        layout
    }

    fn walk(&mut self, bytes: &[u8]) -> Option<()> {
        let mut at = 2;
        let mut components = 0;
        loop {
            while *bytes.get(at)? == 0xFF && *bytes.get(at + 1)? == 0xFF {
                at += 1;
            }
            let [0xFF, marker, high, low] = *bytes.get(at..at + 4)? else { return None };
            let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
            let segment = bytes.get(at + 4..end)?;
            match marker {
                // Every start of frame but DHT, JPG and DAC, which lie among them.
                0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => components = *segment.get(5)?,
                0xDA => {
                    self.several_scans = *segment.first()? < components;
                    return Some(());
                }
                0xD9 => return None,
                0xE1 => {
                    if let Some(found) = segment.strip_prefix(b"Exif\0\0").and_then(Orientation::from_exif_chunk) {
                        self.orientation = found.to_exif();
                    }
                }
                _ => {}
            }
            at = end;
        }
    }
}
