//! JPEG through libjpeg-turbo, bit for bit what Pillow decodes.
//!
//! A file that was cut short decodes without an error, with grey where the data ends. Only the decoder's warning shows it.
//! So a warning means damage, except for the one about padding before the end marker.
//!
//! In the mode `fast` a large image is decoded at a fraction of its size. All of its data is read nevertheless, so that the
//! same files are damaged in both modes.

use image::metadata::Orientation;
use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat, ScalingFactor};

use super::frame::Frame;
use super::{DecodeContext, Undecodable};
use crate::job::ImageInfo;

/// More scans than any encoder writes. Each costs a pass over the whole image.
const MAX_SCANS: u32 = 500;

/// The decoder's message without its prefixes. The most frequent messages are replaced by one that is easier to
/// understand; the text decides nothing.
fn explain(error: &turbojpeg::Error) -> Undecodable {
    let message = error.to_string();
    let message = message.trim_start_matches("TurboJPEG error: ").trim_start_matches("Corrupt JPEG data: ");
    let is_cut = ["Premature end of JPEG file", "premature end of data segment"].contains(&message);
    Undecodable::damaged("JPEG", if is_cut { &"the file ends before the image does" } else { &message })
}

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let mut decompressor = Decompressor::new().map_err(|e| explain(&e))?;
    decompressor.set_scan_limit(MAX_SCANS).map_err(|e| explain(&e))?;
    let header = decompressor.read_header(bytes).map_err(|e| explain(&e))?;
    let too_large = |_| Undecodable::new("damaged JPEG: impossible dimensions");
    let (width, height) =
        (u32::try_from(header.width).map_err(too_large)?, u32::try_from(header.height).map_err(too_large)?);

    let is_cmyk = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if is_cmyk { PixelFormat::CMYK } else { PixelFormat::RGB };
    // With several scans all coefficients, two bytes per sample, are kept until the last scan.
    let layout = JpegLayout::of(bytes);
    let coefficients = if header.is_progressive || layout.several_scans { 2 * format.size() } else { 0 };
    // CMYK is converted into a second buffer.
    let converted = if is_cmyk { 3 } else { 0 };
    let output = format.size() + converted;
    let whole_bytes = context.check_size(width, height, (output + coefficients) as u64)?;
    let can_shrink = !is_cmyk && !header.is_lossless;
    let shrunk = if can_shrink { context.largest_shrink((width, height), layout.orientation) } else { 1 };
    let scale = ScalingFactor::new(1, shrunk as usize);
    decompressor.set_scaling_factor(scale).map_err(|e| explain(&e))?;
    let scaled = header.scaled(scale);
    let spared_bytes = (header.width * header.height - scaled.width * scaled.height) * output;
    let grant = context.memory.take(whole_bytes - spared_bytes as u64);

    let pitch = scaled.width * format.size();
    let mut pixels = context.buffer.take(pitch * scaled.height);
    let image = Image { pixels: &mut pixels[..], width: scaled.width, pitch, height: scaled.height, format };
    match decompressor.decompress(bytes, image) {
        Ok(()) => {}
        // The whole image was decoded, and the warning is about skipped padding.
        Err(e) if is_harmless(&e, bytes) => {}
        Err(e) => return Err(explain(&e)),
    }
    let rgb = if is_cmyk { super::rgb::from_inverted_cmyk(pixels) } else { pixels };
    let orientation = layout.orientation;
    let frame = Frame { rgb, width, height, orientation, shrunk };
    (context.take)(&frame)?;
    context.buffer.give_back(frame.rgb);
    drop(grant);
    let (width, height) = super::rgb::upright(width, height, orientation);
    Ok(ImageInfo { format: "jpeg", width, height, frames: 1 })
}

/// Whether a warning only means that padding before the end marker was skipped, as some cameras write it.
///
/// The `turbojpeg` crate gives warnings as texts only (this one is JWRN_EXTRANEOUS_DATA), so that the text has to be read. Before
/// any other marker the same warning means that a scan lost its place. Only the first warning is known, so that the skipped
/// bytes are checked to be nothing but padding.
fn is_harmless(error: &turbojpeg::Error, bytes: &[u8]) -> bool {
    let message = error.to_string();
    let Some((before, marker)) = message.split_once(" extraneous bytes before marker 0x") else { return false };
    let skipped = before.split_whitespace().next_back().and_then(|word| word.parse::<usize>().ok());
    let end = bytes.windows(2).rposition(|pair| pair == [0xFF, 0xD9]);
    let (true, Some(skipped), Some(end)) = (marker.starts_with("d9"), skipped, end) else { return false };
    let padding = bytes[..end].get(end.saturating_sub(skipped)..).unwrap_or_default();
    padding.iter().all(|byte| *byte == 0) || padding.iter().all(|byte| *byte == 0xFF)
}

/// What the segments before the first scan contain.
struct JpegLayout {
    orientation: u8,
    /// Whether the first scan holds only some of the components, so that all coefficients are kept until the last scan.
    several_scans: bool,
}

impl JpegLayout {
    fn of(bytes: &[u8]) -> Self {
        let mut layout = Self { orientation: 1, several_scans: false };
        // A walk that ends early leaves the defaults, and the decoder will report the damage.
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
                // Every start-of-frame marker. DHT, JPG and DAC lie in the same range and are none.
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
    use crate::detector::{CropRounding, Geometry, ResampleFilter, Resize};
    use crate::screen::decode::memory_budget::{MemoryHold, MemorySource};
    use crate::screen::decode::{DecodeRequest, DecodeScratch, DecodedImage, decode_safely};

    /// How a test's JPEG is made.
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

    /// Records the memory that was asked for.
    #[derive(Default)]
    struct RecordedMemory(RefCell<Vec<u64>>);

    struct NoHold;

    impl MemoryHold for NoHold {}

    impl MemorySource for RecordedMemory {
        fn take(&self, bytes: u64) -> Box<dyn MemoryHold + '_> {
            self.0.borrow_mut().push(bytes);
            Box::new(NoHold)
        }
    }

    fn geometry(edge: u32) -> Geometry {
        let resize = Resize::Exact { width: edge, height: edge };
        Geometry {
            resize,
            filter: ResampleFilter::Bicubic,
            width: edge,
            height: edge,
            rounding: CropRounding::HalfToEven,
        }
    }

    fn decode_with(
        bytes: &[u8],
        edge: u32,
        mode: DecodeMode,
        limits: &DecodeConfig,
    ) -> (Result<DecodedImage, Undecodable>, Vec<u64>) {
        let memory = RecordedMemory::default();
        let request = DecodeRequest { bytes, geometries: &[geometry(edge)], mode };
        let decoded = decode_safely(&request, limits, &memory, &mut DecodeScratch::new(limits));
        (decoded, memory.0.into_inner())
    }

    fn both(bytes: &[u8], edge: u32) -> [Result<DecodedImage, Undecodable>; 2] {
        [DecodeMode::Exact, DecodeMode::Fast].map(|mode| decode_with(bytes, edge, mode, &DecodeConfig::default()).0)
    }

    /// Decibels.
    fn signal_to_noise(a: &[u8], b: &[u8]) -> f64 {
        let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
        #[expect(clippy::cast_precision_loss, reason = "thumbnails")]
        let samples = a.len() as f64;
        10.0 * (255.0 * 255.0 * samples / squares).log10()
    }

    #[test]
    fn the_fast_mode_gives_nearly_the_same_pixels() {
        let subsamplings = [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Sub1x2, Subsamp::Gray];
        let made = subsamplings.into_iter().map(|subsamp| Made { subsamp, ..PLAIN });
        let made = made.chain([Made { is_progressive: true, ..PLAIN }]);
        let made = made.chain((1..=8).map(|orientation| Made { orientation, ..PLAIN }));
        let made = made.chain([(800, 600), (805, 603), (1027, 577)].map(|size| Made { size, ..PLAIN }));
        for made in made {
            let bytes = jpeg(made);
            for edge in [32, 64, 140] {
                let [exact, fast] = both(&bytes, edge).map(Result::unwrap);
                assert_eq!(fast.info, exact.info);
                let (exact, fast) = (&exact.frames[0][0].data, &fast.frames[0][0].data);
                assert!(exact != fast, "{made:?} to {edge} is not shrunk");
                let decibels = signal_to_noise(exact, fast);
                // The documentation promises 39 for any picture.
                assert!(decibels >= 48.0, "{made:?} to {edge}: {decibels:.1} dB");
            }
            let [exact, fast] = both(&bytes, 384).map(Result::unwrap);
            assert!(exact.frames == fast.frames, "{made:?} is too small to be shrunk");
        }
    }

    #[test]
    fn damage_is_found_in_both_modes() {
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

    /// The coefficients that a smaller transform leaves out are read nevertheless.
    #[test]
    fn a_changed_byte_is_damage_in_both_modes_or_in_neither() {
        for is_progressive in [false, true] {
            let whole = jpeg(Made { is_progressive, ..PLAIN });
            for at in (whole.len() / 50..whole.len()).step_by(whole.len() / 40) {
                for flipped in [0x01, 0x80, 0xFF] {
                    let mut bytes = whole.clone();
                    bytes[at] ^= flipped;
                    let [exact, fast] = both(&bytes, 64).map(|decoded| decoded.map(|decoded| decoded.info));
                    assert_eq!(exact, fast, "byte {at} ^ {flipped:#x}");
                }
            }
        }
    }

    #[test]
    fn limits_count_the_whole_image_and_memory_counts_the_shrunk_one() {
        let (whole, shrunk) = (800 * 600, 400 * 300);
        for (is_progressive, coefficients) in [(false, 0), (true, 6 * whole)] {
            let bytes = jpeg(Made { size: (800, 600), is_progressive, ..PLAIN });
            let limits = DecodeConfig::default();
            assert_eq!(decode_with(&bytes, 140, DecodeMode::Exact, &limits).1, [3 * whole + coefficients]);
            assert_eq!(decode_with(&bytes, 140, DecodeMode::Fast, &limits).1, [3 * shrunk + coefficients]);
            for limits in [
                DecodeConfig { max_width: 799, ..DecodeConfig::default() },
                DecodeConfig { max_pixels: whole - 1, ..DecodeConfig::default() },
                DecodeConfig { max_decoded_bytes: 3 * whole + coefficients - 1, ..DecodeConfig::default() },
            ] {
                let [exact, fast] =
                    [DecodeMode::Exact, DecodeMode::Fast].map(|mode| decode_with(&bytes, 140, mode, &limits));
                assert_eq!(exact.0.unwrap_err(), fast.0.unwrap_err());
                assert!(fast.1.is_empty());
            }
        }
    }

    #[test]
    fn cmyk_is_never_shrunk() {
        let (width, height) = (400, 300);
        let inks: Vec<u8> = (0..width * height * 4).map(|i| u8::try_from(i / 7 % 251).unwrap()).collect();
        let image = Image { pixels: &inks[..], width, pitch: width * 4, height, format: PixelFormat::CMYK };
        let bytes = turbojpeg::compress(image, 90, Subsamp::None).unwrap();
        let [exact, fast] = both(bytes.as_ref(), 32).map(Result::unwrap);
        assert!(exact.frames == fast.frames);
    }
}
