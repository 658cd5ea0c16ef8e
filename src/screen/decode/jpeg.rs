//! JPEG through libjpeg-turbo, bit for bit what Pillow decodes.
//!
//! A file that was cut short decodes without an error, with grey where the data ends. Only the decoder's warning shows it,
//! and much of what it warns about changes no pixel. After a warning a repaired copy is decoded (`repair`); what is still
//! warned about is damage. Of a cut file browsers show the rows that are whole (`cut`), other viewers all of it, and both
//! pictures are screened.
//!
//! In the mode `fast` a large image is decoded at a fraction of its size, and in both modes one that is too large for
//! the limits. All of its data is read nevertheless, so that the same files are damaged in both modes.

mod cut;
mod layout;
mod repair;
mod segments;

use turbojpeg::{Colorspace, DecompressHeader, Decompressor, Image, PixelFormat, ScalingFactor};

use super::colour::{ColourModel, ToSrgb};
use super::frame::{Channels, Frame};
use super::memory_budget::MemoryHold;
use super::{DecodeContext, Shrinkable, Shrinking, Undecodable, rgb};
use crate::job::ImageInfo;
use layout::JpegLayout;
use repair::{RepairOptions, Repaired, repair};

/// What the buffer holds before a damaged image is decoded into it. Where it still does afterwards, nothing was decoded.
const UNTOUCHED: u8 = 0xA5;

/// The decoder's message without its prefixes. The most frequent messages are replaced by one that is easier to
/// understand; the text decides nothing.
fn message(error: &turbojpeg::Error) -> String {
    let message = error.to_string();
    let message = message.trim_start_matches("TurboJPEG error: ").trim_start_matches("Corrupt JPEG data: ");
    if let turbojpeg::Error::IntegerOverflow(what) = error {
        return format!("its {what} is too large");
    }
    let is_cut = ["Premature end of JPEG file", "premature end of data segment"].contains(&message);
    if is_cut { "the file ends before the image does".to_owned() } else { message.to_owned() }
}

fn explain(error: &turbojpeg::Error) -> Undecodable {
    Undecodable::damaged("JPEG", &message(error))
}

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let layout = JpegLayout::of(bytes);
    let mut decompressor = new_decompressor(&layout)?;
    let error = match decompressor.read_header(bytes) {
        Ok(header) => {
            let picture = Picture::new(header, &layout, Copies::One, context)?;
            let hold = picture.take_memory(context);
            let mut samples = context.buffer.take(picture.length());
            match picture.decode(&mut decompressor, bytes, &mut samples) {
                Ok(()) => {
                    let frame = picture.take(samples, context)?;
                    context.buffer.give_back(frame.samples);
                    drop(hold);
                    return Ok(picture.info());
                }
                Err(e) => {
                    context.buffer.give_back(samples);
                    e
                }
            }
        }
        Err(e) => e,
    };
    if let Some(kind) = layout.unsupported_kind() {
        return Err(Undecodable(format!("unsupported kind of JPEG: {kind}")));
    }
    decode_repaired(bytes, &layout, context).unwrap_or_else(|| Err(explain(&error)))
}

fn new_decompressor(layout: &JpegLayout<'_>) -> Result<Decompressor, Undecodable> {
    let mut decompressor = Decompressor::new().map_err(|e| explain(&e))?;
    decompressor.set_scan_limit(layout.max_scans()).map_err(|e| explain(&e))?;
    Ok(decompressor)
}

/// With several scans all coefficients are kept until the last scan.
fn kept_bytes(header: &DecompressHeader, layout: &JpegLayout<'_>) -> u64 {
    if header.is_progressive || layout.has_several_scans() { layout.coefficient_bytes() } else { 0 }
}

/// A JPEG within a file of another format, of which the header was read.
pub(super) struct InnerJpeg<'a> {
    bytes: &'a [u8],
    decompressor: Decompressor,
    pub(super) width: usize,
    pub(super) height: usize,
    /// What is held beside its pixels while it is decoded.
    pub(super) kept_bytes: u64,
}

impl<'a> InnerJpeg<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Result<Self, Undecodable> {
        let layout = JpegLayout::of(bytes);
        let mut decompressor = new_decompressor(&layout)?;
        let header = decompressor.read_header(bytes).map_err(|e| explain(&e))?;
        let kept_bytes = kept_bytes(&header, &layout);
        Ok(Self { bytes, decompressor, width: header.width, height: header.height, kept_bytes })
    }

    /// Its pixels of one (grey), three (red, green, blue) or four samples (ink), and what its decoder warned about.
    pub(super) fn decode(mut self, samples: usize) -> Result<(Vec<u8>, Option<String>), Undecodable> {
        let format = match samples {
            1 => PixelFormat::GRAY,
            3 => PixelFormat::RGB,
            4 => PixelFormat::CMYK,
            _ => return Err(Undecodable::damaged("JPEG", &"it has other samples")),
        };
        let (width, height, pitch) = (self.width, self.height, self.width * samples);
        let mut pixels = vec![0; pitch * height];
        let image = Image { pixels: &mut pixels[..], width, pitch, height, format };
        let warning = self.decompressor.decompress(self.bytes, image).err();
        Ok((pixels, warning.map(|e| explain(&e).0)))
    }
}

/// Decodes a repaired copy of a file whose decoder warned or failed. `None` where no picture begins.
fn decode_repaired(
    bytes: &[u8],
    layout: &JpegLayout<'_>,
    context: &mut DecodeContext<'_>,
) -> Option<Result<ImageInfo, Undecodable>> {
    let options = RepairOptions { max_scans: layout.max_scans(), zeros_kept: usize::MAX };
    let repaired = repair(bytes, options)?;
    Some(decode_damaged(bytes, layout, &repaired, context))
}

fn decode_damaged(
    bytes: &[u8],
    layout: &JpegLayout<'_>,
    repaired: &Repaired<'_>,
    context: &mut DecodeContext<'_>,
) -> Result<ImageInfo, Undecodable> {
    // After a failed header a decompressor cannot be used again.
    let mut decompressor = new_decompressor(layout)?;
    let header = decompressor.read_header(&repaired.bytes).map_err(|e| explain(&e))?;
    let rows = repaired.cut.as_ref().and_then(cut::CutScan::rows_shown);
    let rows = rows.filter(|rows| (1..header.height).contains(&(*rows as usize)));
    let both = rows.and_then(|rows| Some((rows, Picture::new(header, layout, Copies::Two, context).ok()?)));
    let (rows, picture) = match both {
        Some((rows, picture)) => (Some(rows), picture),
        None => (None, Picture::new(header, layout, Copies::One, context)?),
    };
    let hold = picture.take_memory(context);
    let mut samples = context.buffer.take(picture.length());
    samples.fill(UNTOUCHED);
    let mut decoded = picture.decode(&mut decompressor, &repaired.bytes, &mut samples);
    if let Err(e) = &decoded
        && samples.iter().all(|byte| *byte == UNTOUCHED)
    {
        return Err(explain(e));
    }
    if decoded.is_err() && repaired.is_padded {
        // Zeros behind the data of a scan are padding if the data is complete without them. The last one may be data.
        decoded = [0, 1].iter().fold(decoded, |decoded, zeros_kept| {
            let options = RepairOptions { max_scans: layout.max_scans(), zeros_kept: *zeros_kept };
            match (&decoded, repair(bytes, options)) {
                (Err(_), Some(trimmed)) => picture.decode(&mut decompressor, &trimmed.bytes, &mut samples).or(decoded),
                _ => decoded,
            }
        });
    }
    let warning = decoded.err().map(|e| message(&e));
    if let Some(damage) = repaired.missing.map(str::to_owned).or(warning) {
        context.record_damage("JPEG", &damage);
    }
    if let Some(rows) = rows {
        picture.take_rows(samples, rows, context)?;
        samples = context.buffer.take(picture.length());
        // The same warning, or none.
        let _known = picture.decode(&mut decompressor, &repaired.bytes, &mut samples);
    }
    let frame = picture.take(samples, context)?;
    context.buffer.give_back(frame.samples);
    drop(hold);
    Ok(picture.info())
}

/// How many copies of the picture are held at a time.
#[derive(Clone, Copy)]
enum Copies {
    One,
    /// With transparency and without.
    Two,
}

/// A picture that is about to be decoded.
struct Picture<'a> {
    layout: &'a JpegLayout<'a>,
    header: DecompressHeader,
    /// The size before it is shrunk.
    size: (u32, u32),
    format: PixelFormat,
    shrunk: u32,
    scaled: DecompressHeader,
    bytes: u64,
}

impl<'a> Picture<'a> {
    /// Checks the size and decides how far the picture is shrunk.
    fn new(
        header: DecompressHeader,
        layout: &'a JpegLayout<'a>,
        copies: Copies,
        context: &DecodeContext<'_>,
    ) -> Result<Self, Undecodable> {
        let too_large = |_| Undecodable::new("damaged JPEG: impossible dimensions");
        let size = (u32::try_from(header.width).map_err(too_large)?, u32::try_from(header.height).map_err(too_large)?);
        let is_cmyk = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
        let format = if is_cmyk { PixelFormat::CMYK } else { PixelFormat::RGB };
        let bytes_per_pixel = match (copies, is_cmyk) {
            (Copies::One, false) => 3,
            // CMYK is converted into a second buffer, and RGBA is composited into one.
            (Copies::One, true) | (Copies::Two, _) => 4 + 3,
        };
        let fixed_bytes = kept_bytes(&header, layout);
        let shrinking = match (header.is_lossless, is_cmyk) {
            (true, _) => Shrinking::Never,
            (false, true) => Shrinking::WhereTooLarge,
            (false, false) => Shrinking::ByMode,
        };
        let image = Shrinkable { size, orientation: layout.orientation, bytes_per_pixel, fixed_bytes, shrinking };
        let (shrunk, bytes) = context.check_shrunk(&image)?;
        let scaled = header.scaled(ScalingFactor::new(1, shrunk as usize));
        Ok(Self { layout, header, size, format, shrunk, scaled, bytes })
    }

    fn take_memory<'m>(&self, context: &DecodeContext<'m>) -> Box<dyn MemoryHold + 'm> {
        context.memory.take(self.bytes)
    }

    fn pitch(&self) -> usize {
        self.scaled.width * self.format.size()
    }

    fn length(&self) -> usize {
        self.pitch() * self.scaled.height
    }

    /// Decodes into samples that hold another picture, or none. They are filled also where the decoder only warns.
    fn decode(
        &self,
        decompressor: &mut Decompressor,
        bytes: &[u8],
        samples: &mut [u8],
    ) -> Result<(), turbojpeg::Error> {
        decompressor.set_scaling_factor(ScalingFactor::new(1, self.shrunk as usize))?;
        let (width, height, pitch) = (self.scaled.width, self.scaled.height, self.pitch());
        decompressor.decompress(bytes, Image { pixels: samples, width, pitch, height, format: self.format })
    }

    /// Takes the picture to be screened, and returns what is left of it.
    fn take(&self, samples: Vec<u8>, context: &mut DecodeContext<'_>) -> Result<Frame, Undecodable> {
        let mut frame = self.frame(samples);
        context.take(&mut frame)?;
        Ok(frame)
    }

    /// Takes the first rows of the picture, and nothing below them.
    fn take_rows(&self, samples: Vec<u8>, rows: u32, context: &mut DecodeContext<'_>) -> Result<(), Undecodable> {
        let mut frame = self.frame(samples);
        let shown = self.scaled.width * (rows / self.shrunk) as usize;
        frame.samples = frame
            .samples
            .chunks_exact(3)
            .enumerate()
            .flat_map(|(i, p)| [p[0], p[1], p[2], if i < shown { 255 } else { 0 }])
            .collect();
        frame.channels = Channels::Rgba;
        context.take(&mut frame)
    }

    fn frame(&self, samples: Vec<u8>) -> Frame {
        let (rgb, colour) = match (self.format, self.header.colorspace) {
            (PixelFormat::CMYK, _) => (self.cmyk_to_rgb(samples), None),
            (_, Colorspace::Gray) => (samples, self.conversion(ColourModel::Grey)),
            _ => (samples, self.conversion(ColourModel::Rgb)),
        };
        let (orientation, shrunk) = (self.layout.orientation, self.shrunk);
        Frame { orientation, shrunk, colour, ..Frame::new(rgb, Channels::Rgb, self.size) }
    }

    fn conversion(&self, model: ColourModel) -> Option<ToSrgb> {
        self.layout.profile().and_then(|profile| ToSrgb::of_icc(&profile, model))
    }

    /// Inks are stored inverted, as Adobe does it. Browsers do not ask whether Adobe did it. They mix black into the other
    /// inks, and then ask the profile for these without any black.
    fn cmyk_to_rgb(&self, samples: Vec<u8>) -> Vec<u8> {
        let mut rgb = rgb::from_inverted_cmyk(samples);
        if let Some(to_srgb) = self.conversion(ColourModel::Cmyk) {
            to_srgb.convert_inks_without_black(&mut rgb);
        }
        rgb
    }

    fn info(&self) -> ImageInfo {
        let (width, height) = rgb::upright(self.size.0, self.size.1, self.layout.orientation);
        ImageInfo { format: "jpeg", width, height, frames: 1 }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use moxcms::DataColorSpace;
    use turbojpeg::{Compressor, Subsamp};

    use super::*;
    use crate::config::{DecodeConfig, DecodeMode};
    use crate::detector::{CropRounding, Geometry, ResampleFilter, Resize};
    use crate::screen::decode::memory_budget::{MemoryHold, MemorySource};
    use crate::screen::decode::shown::{is_near, swapping_profile};
    use crate::screen::decode::{DecodeRequest, DecodeScratch, DecodedImage, DecodedView, decode_safely};

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
                let (exact, fast) = (&exact.views[0].pixels[0].data, &fast.views[0].pixels[0].data);
                assert!(exact != fast, "{made:?} to {edge} is not shrunk");
                let decibels = signal_to_noise(exact, fast);
                // The documentation promises 39 for any picture.
                assert!(decibels >= 48.0, "{made:?} to {edge}: {decibels:.1} dB");
            }
            let [exact, fast] = both(&bytes, 384).map(Result::unwrap);
            assert!(exact.views[0].pixels == fast.views[0].pixels, "{made:?} is too small to be shrunk");
        }
    }

    /// What decoding said about the file's damage: `None` where it shows nothing.
    fn damage(bytes: &[u8], edge: u32, mode: DecodeMode) -> Option<String> {
        decode_with(bytes, edge, mode, &DecodeConfig::default()).0.ok().map(|decoded| decoded.damage)
    }

    #[test]
    fn damage_is_found_in_both_modes_and_the_picture_is_screened() {
        for is_progressive in [false, true] {
            for subsamp in [Subsamp::None, Subsamp::Sub2x2] {
                let whole = jpeg(Made { size: (301, 249), is_progressive, subsamp, ..PLAIN });
                for edge in [32, 64] {
                    for tenth in [1, 3, 5, 7, 9] {
                        let cut = &whole[..whole.len() * tenth / 10];
                        let closed = [cut, &[0xFF, 0xD9]].concat();
                        for damaged in [cut, &closed] {
                            let [exact, fast] = [DecodeMode::Exact, DecodeMode::Fast].map(|m| damage(damaged, edge, m));
                            assert_eq!(exact, fast, "cut at {tenth}/10, to {edge}");
                            assert!(exact.is_some_and(|damage| !damage.is_empty()), "cut at {tenth}/10, to {edge}");
                        }
                    }
                }
            }
        }
        // Cut where a scan ends, which no decoder warns about.
        let progressive = jpeg(Made { size: (301, 249), is_progressive: true, ..PLAIN });
        let last_scan = progressive.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).unwrap();
        assert_eq!(exact(&progressive[..last_scan]).damage, "JPEG: the file ends before the image does");
        assert!(both(&jpeg(PLAIN)[..200], 32).iter().all(Result::is_err), "cut before the first scan");
    }

    fn exact(bytes: &[u8]) -> DecodedImage {
        decode_with(bytes, 64, DecodeMode::Exact, &DecodeConfig::default()).0.unwrap()
    }

    /// Where the segment with this marker begins.
    fn place(bytes: &[u8], code: u8) -> usize {
        bytes.windows(2).position(|pair| pair == [0xFF, code]).unwrap()
    }

    fn with(bytes: &[u8], at: usize, inserted: &[u8]) -> Vec<u8> {
        [&bytes[..at], inserted, &bytes[at..]].concat()
    }

    fn changed(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    }

    #[test]
    fn what_changes_no_pixel_is_no_damage() {
        for is_progressive in [false, true] {
            let whole = jpeg(Made { size: (201, 149), is_progressive, ..PLAIN });
            let end = whole.len() - 2;
            let (tables, scan) = (place(&whole, 0xDB), place(&whole, 0xDA));
            let frame = place(&whole, if is_progressive { 0xC2 } else { 0xC0 });
            let jfif = place(&whole, 0xE0);
            let profile = |number: u8, of: u8| {
                [&[0xFF, 0xE2, 0, 2 + 12 + 2 + 4][..], b"ICC_PROFILE\0", &[number, of], b"icc!"].concat()
            };
            let adobe = b"\xFF\xEE\0\x0EAdobe\0\x64\0\0\0\0\x03";
            let second = jpeg(Made { size: (40, 30), ..PLAIN });
            let mut odd = vec![
                ("bytes before a table", with(&whole, tables, &[7; 24])),
                ("zeros before the frame", with(&whole, frame, &[0; 16])),
                ("bytes before the scan", with(&whole, scan, b"junk")),
                ("a part of a profile", with(&whole, tables, &profile(1, 2))),
                ("a part that is there twice", with(&whole, tables, &[profile(1, 1), profile(1, 1)].concat())),
                ("a part 0 of 0", with(&whole, tables, &profile(0, 0))),
                ("an unknown transform", with(&whole, tables, adobe)),
                // JFIF goes before Adobe's transform.
                ("an unknown transform alone", [&whole[..jfif], adobe, &whole[jfif + 18..]].concat()),
                ("another revision of JFIF", changed(&whole, jfif + 9, &[3])),
                ("metadata of length 0", with(&whole, tables, &[0xFF, 0xE7, 0, 0])),
                ("bytes and metadata of length 0", with(&whole, tables, &[7, 7, 7, 0xFF, 0xE7, 0, 0])),
                ("zeros before the end", with(&whole, end, &[0; 20])),
                ("0xFF before the end", with(&whole, end, &[0xFF; 20])),
                ("a second image", [&whole[..], &second].concat()),
                ("padding and a second image", [&whole[..end], &[0; 9], &whole[end..], &second].concat()),
                ("bytes behind the end", [&whole[..], b"ftypmp42 and so on"].concat()),
            ];
            if !is_progressive {
                odd.push(("the last coefficient 0", changed(&whole, scan + 12, &[0])));
                odd.push(("a broken table behind the only scan", with(&whole, end, &[0xFF, 0xC4, 0, 0])));
                odd.push(("bits that are missing", changed(&whole, scan + 13, &[0x10])));
            }
            for (what, bytes) in odd {
                let decoded = exact(&bytes);
                assert_eq!(decoded.damage, "", "{what}");
                assert!(decoded.views.len() == 1 && decoded.views[0].pixels == exact(&whole).views[0].pixels, "{what}");
            }
        }
    }

    #[test]
    fn what_lost_its_place_is_damage_also_before_padding_and_a_second_image() {
        let whole = jpeg(Made { size: (201, 149), ..PLAIN });
        let end = whole.len() - 2;
        let junk = with(&whole, end, b"junk that is no padding");
        let lower = changed(&whole, place(&whole, 0xC0) + 5, &[0, 80]);
        let half_left_out = [&whole[..end / 2], &whole[end / 2 + 500..]].concat();
        for bytes in [&junk, &lower, &half_left_out] {
            let padded = [&bytes[..bytes.len() - 2], &[0; 16], &[0xFF, 0xD9]].concat();
            for bytes in [bytes, &[&bytes[..], &whole].concat(), &padded] {
                let decoded = exact(bytes);
                assert!(decoded.damage.starts_with("JPEG: "), "{:?}", decoded.damage);
            }
        }
    }

    /// Behind the rows that a browser shows there is nothing; other viewers show all that was decoded.
    #[test]
    fn a_file_without_its_end_is_screened_as_browsers_show_it_and_whole() {
        let whole = jpeg(Made { size: (160, 128), ..PLAIN });
        let pixels = &exact(&whole).views[0].pixels;
        for cut in [1, 2] {
            let decoded = exact(&whole[..whole.len() - cut]);
            assert_eq!(decoded.damage, "", "all of the scan is there");
            let [shown, all, black] = &decoded.views[..] else { panic!("{} views", decoded.views.len()) };
            assert_eq!(&all.pixels, pixels);
            let row = |view: &DecodedView, row: usize| view.pixels[0].data[row * 64 * 3..][..64 * 3].to_vec();
            // 110 of 128 rows are shown, 55 of 64: the last two of a row of blocks wait for the chroma below them.
            let options = RepairOptions { max_scans: 1, zeros_kept: usize::MAX };
            let scan = repair(&whole[..whole.len() - cut], options).unwrap().cut.unwrap();
            assert_eq!(scan.rows_shown(), Some(110));
            assert_eq!(row(shown, 50), row(all, 50));
            assert!(row(shown, 58).iter().all(|sample| *sample == 255) && row(black, 58).iter().all(|s| *s == 0));
        }
        let progressive = jpeg(Made { size: (160, 128), is_progressive: true, ..PLAIN });
        let data = place(&progressive, 0xDA) + 14;
        let scan = place(&progressive[data..], 0xC4);
        let decoded = exact(&progressive[..data + scan * 6 / 10]);
        let row = |row: usize| decoded.views[0].pixels[0].data[row * 64 * 3..][..64 * 3].to_vec();
        // Of more than half of the first scan's rows browsers hold back the last two, since they are smoothed.
        assert!(row(10).iter().any(|sample| *sample != 255) && row(28).iter().all(|sample| *sample == 255));
        let decoded = exact(&progressive[..progressive.len() - 2]);
        assert_eq!((decoded.damage.as_str(), decoded.views.len()), ("", 1), "its first scan is whole");
        assert!(decoded.views[0].pixels == exact(&progressive).views[0].pixels);
    }

    #[test]
    fn the_first_block_of_exif_counts() {
        let sideways = jpeg(Made { orientation: 6, ..PLAIN });
        let upright = jpeg(PLAIN);
        let exif = |bytes: &[u8]| bytes[2..2 + 36].to_vec();
        let size = |bytes: &[u8]| (exact(bytes).info.width, exact(bytes).info.height);
        assert_eq!(size(&with(&sideways, 2, &exif(&upright))), (801, 599));
        assert_eq!(size(&with(&upright, 2, &exif(&sideways))), (599, 801));
        let without_orientation = b"\xFF\xE1\0\x10Exif\0\0MM\0*\0\0\0\0";
        assert_eq!(size(&with(&sideways, 2, without_orientation)), (801, 599));
    }

    #[test]
    fn what_no_browser_shows_is_refused_by_name() {
        let whole = jpeg(PLAIN);
        let frame = place(&whole, 0xC0);
        for (at, byte, reason) in [
            (4, 12, "unsupported kind of JPEG: 12 bits a sample"),
            (1, 0xC3, "unsupported kind of JPEG: lossless"),
            (1, 0xC5, "unsupported kind of JPEG: hierarchical"),
        ] {
            let [error, _] = both(&changed(&whole, frame + at, &[byte]), 64);
            assert_eq!(error.unwrap_err().0, reason);
        }
        let [error, _] = both(&changed(&whole, frame + 5, &[0, 0]), 64);
        assert!(error.unwrap_err().0.starts_with("damaged JPEG: Empty JPEG image"));
    }

    /// A progressive image with as many scans as are asked for. Each of them repeats the last one.
    fn with_scans(scans: usize) -> Vec<u8> {
        let whole = jpeg(Made { size: (64, 48), is_progressive: true, ..PLAIN });
        let first = place(&whole, 0xDA);
        let end = first + 10 + place(&whole[first + 10..], 0xC4);
        [&whole[..end], &whole[first..end].repeat(scans - 1), &[0xFF, 0xD9]].concat()
    }

    #[test]
    fn thousands_of_scans_are_decoded_and_not_millions() {
        for (scans, are_too_many) in [(1, false), (2_000, false), (50_001, true)] {
            // Scans that repeat each other are damage of another kind.
            let damage = exact(&with_scans(scans)).damage;
            assert_eq!(damage == "JPEG: it has too many scans", are_too_many, "{scans}: {damage}");
        }
    }

    #[test]
    fn an_image_over_the_limits_is_shrunk_until_it_fits() {
        let bytes = jpeg(PLAIN);
        let decode = |limits: &DecodeConfig, edge: u32| {
            [DecodeMode::Exact, DecodeMode::Fast].map(|mode| decode_with(&bytes, edge, mode, limits).0)
        };
        let whole = DecodeConfig::default();
        let [expected, _] = decode(&whole, 64).map(Result::unwrap);
        // A half has 401 x 300 pixels, and takes 360,900 bytes.
        for limits in [
            DecodeConfig { max_pixels: 120_300, ..whole.clone() },
            DecodeConfig { max_decoded_bytes: 360_900, ..whole.clone() },
        ] {
            for decoded in decode(&limits, 64) {
                let decoded = decoded.unwrap();
                assert_eq!(decoded.info, expected.info);
                let (a, b) = (&expected.views[0].pixels[0].data, &decoded.views[0].pixels[0].data);
                assert!(signal_to_noise(a, b) >= 48.0);
            }
            // A half is not enough for this detector.
            let [exact, fast] = decode(&limits, 384).map(Result::unwrap_err);
            assert_eq!(exact, fast);
        }
        // More than four times as many pixels are not read at all.
        for limits in [
            DecodeConfig { max_pixels: 801 * 599 / 4, ..whole.clone() },
            DecodeConfig { max_decoded_bytes: 10_000, ..whole },
        ] {
            let [exact, fast] = decode(&limits, 32).map(Result::unwrap_err);
            assert_eq!(exact, fast);
        }
    }

    #[test]
    fn a_long_and_thin_image_is_screened() {
        let bytes = jpeg(Made { size: (10, 25_085), ..PLAIN });
        let decoded = exact(&bytes);
        assert_eq!((decoded.info.width, decoded.info.height, decoded.damage.as_str()), (10, 25_085, ""));
    }

    /// The coefficients that a smaller transform leaves out are read nevertheless.
    #[test]
    fn a_changed_byte_is_damage_in_both_modes_or_in_neither() {
        for is_progressive in [false, true] {
            let whole = jpeg(Made { size: (301, 249), is_progressive, ..PLAIN });
            for at in (whole.len() / 50..whole.len()).step_by(whole.len() / 30) {
                for flipped in [0x01, 0x80, 0xFF] {
                    let mut bytes = whole.clone();
                    bytes[at] ^= flipped;
                    let [exact, fast] =
                        both(&bytes, 64).map(|decoded| decoded.map(|decoded| (decoded.info, decoded.damage)));
                    assert_eq!(exact, fast, "byte {at} ^ {flipped:#x}");
                }
            }
        }
    }

    #[test]
    fn limits_count_the_whole_image_and_memory_counts_the_shrunk_one() {
        let (whole, shrunk) = (800 * 600, 400 * 300);
        // Luma is kept in blocks for 800 x 608 pixels, both kinds of chroma for 400 x 304.
        for (is_progressive, coefficients) in [(false, 0), (true, 2 * 800 * 608 * 3 / 2)] {
            let bytes = jpeg(Made { size: (800, 600), is_progressive, ..PLAIN });
            let limits = DecodeConfig::default();
            assert_eq!(decode_with(&bytes, 140, DecodeMode::Exact, &limits).1, [3 * whole + coefficients]);
            assert_eq!(decode_with(&bytes, 140, DecodeMode::Fast, &limits).1, [3 * shrunk + coefficients]);
            for limits in [
                DecodeConfig { max_width: 799, ..DecodeConfig::default() },
                DecodeConfig { max_pixels: shrunk / 16, ..DecodeConfig::default() },
                DecodeConfig { max_decoded_bytes: shrunk / 16 + coefficients, ..DecodeConfig::default() },
            ] {
                let [exact, fast] =
                    [DecodeMode::Exact, DecodeMode::Fast].map(|mode| decode_with(&bytes, 140, mode, &limits));
                assert_eq!(exact.0.unwrap_err(), fast.0.unwrap_err());
                assert!(fast.1.is_empty());
            }
        }
    }

    fn of_inks(width: usize, inks: &[u8]) -> Vec<u8> {
        let height = inks.len() / width / 4;
        let image = Image { pixels: inks, width, pitch: width * 4, height, format: PixelFormat::CMYK };
        turbojpeg::compress(image, 90, Subsamp::None).unwrap().to_vec()
    }

    /// The segments of a profile in two parts (ICC.1:2010, B.4).
    fn profile_segments(space: DataColorSpace) -> Vec<u8> {
        let profile = swapping_profile(space);
        let segment = |(number, part): (u8, &[u8])| {
            let length = u16::try_from(part.len() + 16).unwrap().to_be_bytes();
            [&[0xFF, 0xE2][..], &length, b"ICC_PROFILE\0", &[number, 2], part].concat()
        };
        (1..).zip(profile.chunks(profile.len().div_ceil(2))).flat_map(segment).collect()
    }

    #[test]
    fn a_profile_is_heeded_in_both_modes() {
        let plain = jpeg(PLAIN);
        let swapped = with(&plain, 2, &profile_segments(DataColorSpace::Rgb));
        for (swapped, plain) in both(&swapped, 32).into_iter().zip(both(&plain, 32)) {
            let [swapped, plain] = [swapped, plain].map(|decoded| decoded.unwrap().views.remove(0).pixels.remove(0));
            for (swapped, plain) in swapped.data.chunks_exact(3).zip(plain.data.chunks_exact(3)) {
                assert!(is_near(swapped, [plain[2], plain[1], plain[0]]), "{swapped:?} of {plain:?}");
            }
        }
        // A profile for other samples is ignored.
        let of_ink = with(&plain, 2, &profile_segments(DataColorSpace::Cmyk));
        assert!(exact(&of_ink).views[0].pixels == exact(&plain).views[0].pixels);
    }

    #[test]
    fn the_profile_of_inks_is_heeded() {
        // Stored inverted: what they leave of red, green and blue, and no black.
        let plain = of_inks(16, &[200, 100, 50, 255].repeat(16 * 16));
        assert!(is_near(&exact(&plain).views[0].pixels[0].data[..3], [200, 100, 50]));
        let swapped = with(&plain, 2, &profile_segments(DataColorSpace::Cmyk));
        assert!(is_near(&exact(&swapped).views[0].pixels[0].data[..3], [50, 100, 200]));
        let darker = of_inks(16, &[200, 100, 50, 128].repeat(16 * 16));
        let swapped = with(&darker, 2, &profile_segments(DataColorSpace::Cmyk));
        assert!(is_near(&exact(&swapped).views[0].pixels[0].data[..3], [25, 50, 100]), "black is mixed in first");
    }

    #[test]
    fn cmyk_is_never_shrunk() {
        let inks: Vec<u8> = (0..400 * 300 * 4).map(|i| u8::try_from(i / 7 % 251).unwrap()).collect();
        let bytes = of_inks(400, &inks);
        let [exact, fast] = both(&bytes, 32).map(Result::unwrap);
        assert!(exact.views[0].pixels == fast.views[0].pixels);
    }
}
