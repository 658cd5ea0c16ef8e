//! JPEG through libjpeg-turbo, bit for bit what Pillow decodes.
//!
//! A file that was cut short decodes "successfully", with grey where the data ends; only the decoder's warning tells.
//! So a warning is damage, but for the one that says that bytes between segments were skipped.
//!
//! Where `decode.mode` is fast, a large image is decoded at a fraction of its size. All of its data is read all the same,
//! so that damage shows alike.

use image::metadata::Orientation;
use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat, ScalingFactor};

use super::frame::Frame;
use super::{Context, Undecodable};
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
    let output = format.size() + converted;
    let whole_bytes = context.check(width, height, (output + coefficients) as u64)?;
    let can_shrink = !inks && !header.is_lossless;
    let shrunk = if can_shrink { context.may_shrink((width, height), layout.orientation) } else { 1 };
    let scale = ScalingFactor::new(1, shrunk as usize);
    decompressor.set_scaling_factor(scale).map_err(|e| explain(&e))?;
    let scaled = header.scaled(scale);
    let spared_bytes = (header.width * header.height - scaled.width * scaled.height) * output;
    let grant = context.memory.take(whole_bytes - spared_bytes as u64);

    let pitch = scaled.width * format.size();
    let mut pixels = context.kept.take(pitch * scaled.height);
    let image = Image { pixels: &mut pixels[..], width: scaled.width, pitch, height: scaled.height, format };
    match decompressor.decompress(bytes, image) {
        Ok(()) => {}
        // The whole image was decoded; the warning says what was skipped on the way.
        Err(e) if is_harmless(&e, bytes) => {}
        Err(e) => return Err(explain(&e)),
    }
    let rgb = if inks { super::rgb::from_inverted_cmyk(pixels) } else { pixels };
    let orientation = layout.orientation;
    let frame = Frame { rgb, width, height, orientation, shrunk };
    (context.take)(&frame)?;
    context.kept.give_back(frame.rgb);
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use turbojpeg::{Compressor, Subsamp};

    use super::*;
    use crate::config::{DecodeConfig, DecodeMode};
    use crate::detector::{CropRounding, Filter, Geometry, Resize};
    use crate::screen::decode::budget::{Held, Memory};
    use crate::screen::decode::{Decoded, Tools, Wanted, decode_safely};

    /// What a JPEG is made of.
    #[derive(Debug, Clone, Copy)]
    struct Made {
        size: (usize, usize),
        subsamp: Subsamp,
        is_progressive: bool,
        orientation: u8,
    }

    const PLAIN: Made = Made { size: (801, 599), subsamp: Subsamp::Sub2x2, is_progressive: false, orientation: 1 };

    /// Slopes, an edge, a texture and grain, as in a photograph.
    fn jpeg(made: Made) -> Vec<u8> {
        let (width, height) = made.size;
        let mut state = 1u32;
        let mut pixels = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            for x in 0..width {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let grain = (state >> 28) as usize;
                let is_inside = (x * 3).abs_diff(width) + (y * 2).abs_diff(height) < width / 2;
                let texture = if is_inside { 60 + (x / 5 + y / 3) % 2 * 20 } else { 0 };
                let [red, blue] = [x * 120 / width, y * 120 / height].map(|slope| slope + texture + grain);
                pixels.extend([red, 40 + texture + grain, blue].map(|sample| u8::try_from(sample).unwrap()));
            }
        }
        let mut compressor = Compressor::new().unwrap();
        compressor.set_quality(88).unwrap();
        compressor.set_subsamp(made.subsamp).unwrap();
        compressor.set_progressive(made.is_progressive).unwrap();
        let image = Image { pixels: &pixels[..], width, pitch: width * 3, height, format: PixelFormat::RGB };
        let mut bytes = compressor.compress_to_vec(image).unwrap();
        // One entry, tag 0x0112 (Exif 2.32, 4.6.4), behind the start of the image.
        let mut exif = b"\xFF\xE1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
        exif.extend([0, made.orientation, 0, 0, 0, 0, 0, 0]);
        bytes.splice(2..2, exif);
        bytes
    }

    /// Keeps what was asked for.
    #[derive(Default)]
    struct Asked(RefCell<Vec<u64>>);

    struct Nothing;

    impl Held for Nothing {}

    impl Memory for Asked {
        fn take(&self, bytes: u64) -> Box<dyn Held + '_> {
            self.0.borrow_mut().push(bytes);
            Box::new(Nothing)
        }
    }

    fn geometry(edge: u32) -> Geometry {
        let resize = Resize::Exact { width: edge, height: edge };
        Geometry { resize, filter: Filter::Bicubic, width: edge, height: edge, rounding: CropRounding::HalfToEven }
    }

    fn look(
        bytes: &[u8],
        edge: u32,
        mode: DecodeMode,
        limits: &DecodeConfig,
    ) -> (Result<Decoded, Undecodable>, Vec<u64>) {
        let asked = Asked::default();
        let wanted = Wanted { bytes, geometries: &[geometry(edge)], mode };
        let decoded = decode_safely(&wanted, limits, &asked, &mut Tools::new(limits));
        (decoded, asked.0.into_inner())
    }

    fn both(bytes: &[u8], edge: u32) -> [Result<Decoded, Undecodable>; 2] {
        [DecodeMode::Exact, DecodeMode::Fast].map(|mode| look(bytes, edge, mode, &DecodeConfig::default()).0)
    }

    /// Decibels.
    fn signal_to_noise(a: &[u8], b: &[u8]) -> f64 {
        let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
        #[expect(clippy::cast_precision_loss, reason = "thumbnails")]
        let samples = a.len() as f64;
        10.0 * (255.0 * 255.0 * samples / squares).log10()
    }

    #[test]
    fn fast_is_another_way_to_nearly_the_same_pixels() {
        let subsamplings = [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Sub1x2, Subsamp::Gray];
        let made = subsamplings.into_iter().map(|subsamp| Made { subsamp, ..PLAIN });
        let made = made.chain([Made { is_progressive: true, ..PLAIN }]);
        let made = made.chain((1..=8).map(|orientation| Made { orientation, ..PLAIN }));
        let made = made.chain([(800, 600), (805, 603), (1027, 577)].map(|size| Made { size, ..PLAIN }));
        for made in made {
            let bytes = jpeg(made);
            for edge in [32, 64, 140] {
                let [exact, fast] = both(&bytes, edge).map(Result::unwrap);
                assert_eq!(fast.seen, exact.seen);
                let (exact, fast) = (&exact.frames[0][0].data, &fast.frames[0][0].data);
                assert!(exact != fast, "{made:?} to {edge} is not shrunk");
                let decibels = signal_to_noise(exact, fast);
                // 39 are promised, of any picture.
                assert!(decibels >= 48.0, "{made:?} to {edge}: {decibels:.1} dB");
            }
            let [exact, fast] = both(&bytes, 384).map(Result::unwrap);
            assert!(exact.frames == fast.frames, "{made:?} is too small to be shrunk");
        }
    }

    #[test]
    fn damage_is_seen_as_well_where_less_is_decoded() {
        for is_progressive in [false, true] {
            for subsamp in [Subsamp::None, Subsamp::Sub2x2] {
                let whole = jpeg(Made { is_progressive, subsamp, ..PLAIN });
                for edge in [32, 64, 140] {
                    for tenth in 0..10 {
                        let cut = &whole[..whole.len() * tenth / 10];
                        let closed = [cut, &[0xFF, 0xD9]].concat();
                        for damaged in [cut, &closed] {
                            let [exact, fast] = both(damaged, edge).map(Result::unwrap_err);
                            assert_eq!(exact, fast, "cut at {tenth}/10, to {edge}");
                        }
                    }
                    assert!(both(&whole[..whole.len() - 1], edge).iter().all(Result::is_err), "without its last byte");
                }
            }
        }
    }

    /// The coefficients that a smaller transform leaves out are read all the same.
    #[test]
    fn a_changed_byte_is_damage_in_both_modes_or_in_neither() {
        for is_progressive in [false, true] {
            let whole = jpeg(Made { is_progressive, ..PLAIN });
            for at in (whole.len() / 50..whole.len()).step_by(whole.len() / 40) {
                for flipped in [0x01, 0x80, 0xFF] {
                    let mut bytes = whole.clone();
                    bytes[at] ^= flipped;
                    let [exact, fast] = both(&bytes, 64).map(|decoded| decoded.map(|decoded| decoded.seen));
                    assert_eq!(exact, fast, "byte {at} ^ {flipped:#x}");
                }
            }
        }
    }

    #[test]
    fn limits_are_those_of_the_whole_image_and_memory_is_what_is_taken() {
        let (whole, shrunk) = (800 * 600, 400 * 300);
        for (is_progressive, coefficients) in [(false, 0), (true, 6 * whole)] {
            let bytes = jpeg(Made { size: (800, 600), is_progressive, ..PLAIN });
            let limits = DecodeConfig::default();
            assert_eq!(look(&bytes, 140, DecodeMode::Exact, &limits).1, [3 * whole + coefficients]);
            assert_eq!(look(&bytes, 140, DecodeMode::Fast, &limits).1, [3 * shrunk + coefficients]);
            for limits in [
                DecodeConfig { max_width: 799, ..DecodeConfig::default() },
                DecodeConfig { max_pixels: whole - 1, ..DecodeConfig::default() },
                DecodeConfig { max_decoded_bytes: 3 * whole + coefficients - 1, ..DecodeConfig::default() },
            ] {
                let [exact, fast] = [DecodeMode::Exact, DecodeMode::Fast].map(|mode| look(&bytes, 140, mode, &limits));
                assert_eq!(exact.0.unwrap_err(), fast.0.unwrap_err());
                assert!(fast.1.is_empty());
            }
        }
    }

    #[test]
    fn inks_are_decoded_whole() {
        let (width, height) = (400, 300);
        let inks: Vec<u8> = (0..width * height * 4).map(|i| u8::try_from(i / 7 % 251).unwrap()).collect();
        let image = Image { pixels: &inks[..], width, pitch: width * 4, height, format: PixelFormat::CMYK };
        let bytes = turbojpeg::compress(image, 90, Subsamp::None).unwrap();
        let [exact, fast] = both(bytes.as_ref(), 32).map(Result::unwrap);
        assert!(exact.frames == fast.frames);
    }
}
