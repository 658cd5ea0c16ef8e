//! TIFF: each page of the main chain is a frame, as in viewers that turn pages.
//!
//! Files are read as libtiff reads them: what is there of a damaged strip is shown, and it is damage. The crate's decoder
//! shows nothing of such a page, and no palettes, subsampled chroma or planes.

mod chunk;
mod directory;
mod page;

use chunk::{Budget, Damage, OVERLAP, Strips};
use directory::File;
use page::{Alpha, Colours, Page};

use sha2::{Digest, Sha256};

use super::animation::FrameChoice;
use super::colour::{ColourModel, ToSrgb};
use super::frame::{Channels, Frame};
use super::{DecodeContext, Undecodable, rgb};
use crate::job::ImageInfo;

/// More pages than a scan has.
const MAX_PAGES: usize = 10_000;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let file = File::new(bytes).ok_or_else(|| Undecodable::damaged("TIFF", &"it has no header"))?;
    let (directories, is_whole) = file.directories(MAX_PAGES);
    let pages: Vec<_> = directories.iter().map(|directory| Page::new(directory, file.is_little)).collect();
    let frames = u32::try_from(pages.len()).unwrap_or(u32::MAX);
    let pixels = pages.iter().flatten().fold(0_u64, |sum, page| sum.saturating_add(page.pixels()));
    context.check_animation(frames, pixels)?;
    let info = pages.iter().flatten().next().map(|page| {
        let (width, height) = size(page);
        let (width, height) = rgb::upright(width, height, page.orientation);
        ImageInfo { format: "tiff", width, height, frames }
    });
    let pages: Vec<_> = pages.into_iter().map(|page| page.and_then(|page| SizedPage::new(page, context))).collect();
    // All pages share the memory of the largest one. A decoder may not ask for each.
    let largest = pages.iter().flatten().map(|sized| sized.bytes).max();
    let hold = largest.map(|bytes| {
        context.buffer.leave_room(bytes, context.limits.max_decoded_bytes);
        context.memory.take(bytes)
    });
    let choice = FrameChoice::new(&vec![0; pages.len()], pages.len(), context.limits.max_frames);
    let mut reader = Reader { file: bytes, choice, budget: Budget::new(bytes) };
    let mut first_error = None;
    for (number, page) in (0..).zip(pages) {
        if let Err(error) = page.and_then(|sized| reader.take(number, &sized, context)) {
            first_error.get_or_insert(error);
        }
    }
    drop(hold);
    if !is_whole {
        first_error.get_or_insert_with(|| Undecodable::damaged("TIFF", &"its list of pages is broken"));
    }
    match (info, first_error) {
        (Some(info), None) => Ok(info),
        // A page that cannot be shown is one that a person has to look at.
        (Some(info), Some(error)) if !context.views.is_empty() => {
            context.record_damage("TIFF", &error);
            Ok(info)
        }
        (_, Some(error)) => Err(error),
        (None, None) => Err(Undecodable::damaged("TIFF", &"it has no page")),
    }
}

/// Both fit, as [`Page::new`] checked.
fn size(page: &Page<'_>) -> (u32, u32) {
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    (side(page.width), side(page.height))
}

/// A page within the limits, and the memory that decoding it takes.
struct SizedPage<'a> {
    page: Page<'a>,
    bytes: u64,
    /// What of it is for the coefficients of a JPEG.
    coefficient_bytes: u64,
}

impl<'a> SizedPage<'a> {
    fn new(page: Page<'a>, context: &DecodeContext<'_>) -> Result<Self, Undecodable> {
        let (width, height) = size(&page);
        let chunk_bytes =
            page.chunk_bytes(page.chunk.1).max(page.chunk.0.saturating_mul(page.chunk.1).saturating_mul(3));
        // A strip twice: JPEG, or one whose bits are reversed.
        let strips = (chunk_bytes as u64).saturating_mul(2).div_ceil(page.pixels());
        // The samples, the pixels, and those over a background.
        let per_pixel = strips.saturating_add(page.shown_samples() as u64 + 4 + 3);
        let bytes = context.check_size(width, height, per_pixel)?;
        // Few JPEGs need it, so that a page is not refused for it before its strips are known.
        let left = context.limits.max_decoded_bytes.saturating_sub(bytes);
        let coefficient_bytes = page.coefficient_bytes().min(left);
        Ok(Self { page, bytes: bytes.saturating_add(coefficient_bytes), coefficient_bytes })
    }
}

/// Reads the pages that are screened.
struct Reader<'a> {
    file: &'a [u8],
    choice: FrameChoice,
    budget: Budget,
}

impl Reader<'_> {
    /// Takes a page if it is one of those that are screened.
    fn take(&mut self, number: u32, sized: &SizedPage<'_>, context: &mut DecodeContext<'_>) -> Result<(), Undecodable> {
        if !self.choice.wants(number) {
            return Ok(());
        }
        let &SizedPage { ref page, coefficient_bytes, .. } = sized;
        if !self.budget.spend(page.icc.map_or(0, <[u8]>::len)) {
            return Err(Undecodable::damaged("TIFF", &"its profiles overlap"));
        }
        let strips = Strips { page, file: self.file, budget: &mut self.budget, coefficient_bytes };
        let (samples, damage) = samples(strips)?;
        if let Some(damage) = damage {
            context.record_damage("TIFF", &damage);
        }
        let mut frame = Frame { number, orientation: page.orientation, ..frame(page, samples, size(page)) };
        if self.choice.takes(number, &look(page, &frame)) {
            context.take(&mut frame)?;
        }
        Ok(())
    }
}

/// The same for frames that look the same. Equal samples are other pictures in another size, or by another profile.
fn look(page: &Page<'_>, frame: &Frame) -> [u8; 32] {
    let profile = page.icc.filter(|_| frame.colour.is_some()).unwrap_or_default();
    let mut hash = Sha256::new();
    for number in [frame.width, frame.height, u32::from(frame.orientation), u32::from(frame.channels == Channels::Rgba)]
    {
        hash.update(number.to_le_bytes());
    }
    hash.update((profile.len() as u64).to_le_bytes());
    hash.update(profile);
    hash.update(&frame.samples);
    hash.finalize().into()
}

/// The samples that are shown, 8 bits each, pixel by pixel.
fn samples(mut strips: Strips<'_>) -> Result<(Vec<u8>, Damage), Undecodable> {
    let page = strips.page;
    let shown = page.shown_samples();
    // What is missing is white, or the palette's first colour.
    let is_white_255 = matches!(page.colours, Colours::BlackIsZero | Colours::Rgb);
    let blank = if is_white_255 { 255 } else { 0 };
    let mut samples = vec![blank; page.width * page.height * shown];
    let (across, down) = page.chunks();
    let planes = if page.is_planar { page.samples } else { 1 };
    let (mut damage, mut is_empty) = (None, true);
    let mut strip = Vec::new();
    'page: for plane in 0..planes.min(shown) {
        for index in 0..across * down {
            let (left, top) = (index % across * page.chunk.0, index / across * page.chunk.1);
            let is_tile = page.chunk.0 != page.width || across > 1;
            let rows = if is_tile { page.chunk.1 } else { page.chunk.1.min(page.height - top) };
            let bytes = page.chunk_bytes(rows);
            if !strips.budget.spend_on_strip(bytes) {
                damage.get_or_insert_with(|| OVERLAP.to_owned());
                break 'page;
            }
            strip.clear();
            strip.resize(bytes, blank);
            let (filled, found) = strips.read(plane * across * down + index, rows, &mut strip);
            damage = damage.or(found);
            is_empty &= filled == 0;
            for y in 0..rows.min(page.height - top) {
                let columns = page.chunk.0.min(page.width - left);
                let start = ((top + y) * page.width + left) * shown;
                let row = &mut samples[start..start + columns * shown];
                copy_row(page, &strip, y, plane, row);
            }
        }
    }
    match damage {
        // Nothing of the page is there.
        Some(damage) if is_empty => Err(Undecodable::damaged("TIFF", &damage)),
        damage => Ok((samples, damage)),
    }
}

/// Copies a row of a strip as samples of 8 bits. `plane` is the sample that a strip of planes holds.
fn copy_row(page: &Page<'_>, strip: &[u8], y: usize, plane: usize, row: &mut [u8]) {
    let shown = page.shown_samples();
    let (by_x, by_y) = page.subsampling;
    if (by_x, by_y) != (1, 1) {
        // Units of as many luma samples as share chroma, and one of each chroma (TIFF 6.0, section 21).
        let unit_bytes = by_x * by_y + 2;
        let units = page.chunk.0.div_ceil(by_x);
        for (x, pixel) in row.chunks_exact_mut(shown).enumerate() {
            let unit = &strip[(y / by_y * units + x / by_x) * unit_bytes..][..unit_bytes];
            pixel.copy_from_slice(&[unit[y % by_y * by_x + x % by_x], unit[unit_bytes - 2], unit[unit_bytes - 1]]);
        }
        return;
    }
    let stored = page.samples_in_chunk();
    let line = &strip[y * page.row_bytes()..][..page.row_bytes()];
    if page.bits == 8 && stored == shown && !page.is_planar {
        row.copy_from_slice(&line[..row.len()]);
        return;
    }
    let (from, count) = if page.is_planar { (plane, 1) } else { (0, shown) };
    for (x, pixel) in row.chunks_exact_mut(shown).enumerate() {
        for sample in 0..count {
            pixel[from + sample] = level(page, line, x * stored + sample);
        }
    }
}

/// A sample of a row on 8 bits, or an index as it is.
#[inline]
fn level(page: &Page<'_>, line: &[u8], index: usize) -> u8 {
    match page.bits {
        8 => line[index],
        16 => {
            let bytes = [line[2 * index], line[2 * index + 1]];
            let value = if page.is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) };
            rgb::divided_by_257(value)
        }
        bits => {
            let (at, highest) = (index * bits, (1_u8 << bits) - 1);
            let value = line[at / 8] >> (8 - bits - at % 8) & highest;
            if page.colours == Colours::Palette { value } else { value * (255 / highest) }
        }
    }
}

/// Samples as they are stored → red, green, blue, and alpha.
fn frame(page: &Page<'_>, mut samples: Vec<u8>, size: (u32, u32)) -> Frame {
    let shown = page.shown_samples();
    let channels = if page.alpha.is_some() { Channels::Rgba } else { Channels::Rgb };
    let mut model = ColourModel::Rgb;
    let samples = match page.colours {
        Colours::Rgb => samples,
        Colours::YCbCr if page.compression == page::Compression::Jpeg && !page.is_planar => samples,
        Colours::YCbCr => {
            for pixel in samples.chunks_exact_mut(3) {
                pixel.copy_from_slice(&from_ycbcr([pixel[0], pixel[1], pixel[2]]));
            }
            samples
        }
        Colours::Palette => samples.iter().flat_map(|index| page.palette[usize::from(*index)]).collect(),
        Colours::BlackIsZero | Colours::WhiteIsZero => {
            model = ColourModel::Grey;
            let invert = if page.colours == Colours::WhiteIsZero { 255 } else { 0 };
            let grey = |pixel: &[u8]| {
                let level = pixel[0] ^ invert;
                [level, level, level, *pixel.last().unwrap_or(&255)]
            };
            samples.chunks_exact(shown).flat_map(|pixel| grey(pixel).into_iter().take(channels.count())).collect()
        }
        Colours::Cmyk => {
            return match page.icc.and_then(|icc| ToSrgb::of_icc(icc, ColourModel::Cmyk)) {
                Some(colour) => Frame::new(colour.convert_cmyk(&samples), channels, size),
                None => {
                    samples.iter_mut().for_each(|ink| *ink = 255 - *ink);
                    Frame::new(rgb::from_inverted_cmyk(samples), channels, size)
                }
            };
        }
    };
    let mut frame = Frame::new(samples, channels, size);
    if page.alpha == Some(Alpha::Associated) {
        rgb::unmultiply(&mut frame.samples);
    }
    frame.colour = page.icc.and_then(|icc| ToSrgb::of_icc(icc, model));
    frame
}

/// ITU-R BT.601 over the whole range, which is what libtiff assumes (TIFF 6.0, section 21).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
fn from_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    let rgb = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
    rgb.map(|value| (value + 0.5) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DecodeConfig;
    use crate::detector::{CropRounding, Geometry, ResampleFilter, Resize};
    use crate::screen::decode::memory_budget::StrictMemory;
    use crate::screen::decode::{DecodeRequest, DecodeScratch, DecodedImage};

    /// A page to be: its tags without those of its strips, and its strips.
    struct Made {
        tags: Vec<(u16, Vec<u32>)>,
        strips: Vec<Vec<u8>>,
    }

    fn made(tags: &[(u16, &[u32])], strips: &[&[u8]]) -> Made {
        Made {
            tags: tags.iter().map(|(tag, values)| (*tag, values.to_vec())).collect(),
            strips: strips.iter().map(|strip| strip.to_vec()).collect(),
        }
    }

    /// The bytes of a file of these pages. All values are LONG.
    fn file(is_little: bool, is_big: bool, pages: &[Made]) -> Vec<u8> {
        let width = if is_big { 8 } else { 4 };
        let number = |value: usize, width: usize| {
            let mut bytes = value.to_le_bytes()[..width].to_vec();
            if !is_little {
                bytes.reverse();
            }
            bytes
        };
        let mut bytes = if is_little { b"II".to_vec() } else { b"MM".to_vec() };
        bytes.extend(number(if is_big { 43 } else { 42 }, 2));
        if is_big {
            bytes.extend(number(8, 2).into_iter().chain([0, 0]));
        }
        let mut link = bytes.len();
        bytes.extend(number(0, width));
        for page in pages {
            let mut tags = page.tags.clone();
            let mut offsets = Vec::new();
            for strip in &page.strips {
                offsets.push(u32::try_from(bytes.len()).unwrap());
                bytes.extend(strip);
            }
            let is_tiled = tags.iter().any(|(tag, _)| *tag == 322);
            let lengths = page.strips.iter().map(|strip| u32::try_from(strip.len()).unwrap()).collect();
            let (at, length) = if is_tiled { (324, 325) } else { (273, 279) };
            tags.extend([(at, offsets), (length, lengths)]);
            let mut entries = Vec::new();
            for (tag, values) in tags {
                let values: Vec<u8> = values.iter().flat_map(|value| number(*value as usize, 4)).collect();
                entries.extend(number(usize::from(tag), 2).into_iter().chain(number(4, 2)));
                entries.extend(number(values.len() / 4, width));
                if values.len() <= width {
                    entries.extend(values.iter().copied().chain(vec![0; width - values.len()]));
                } else {
                    entries.extend(number(bytes.len(), width));
                    bytes.extend(values);
                }
            }
            let here = number(bytes.len(), width);
            bytes[link..link + width].copy_from_slice(&here);
            bytes.extend(number(entries.len() / if is_big { 20 } else { 12 }, if is_big { 8 } else { 2 }));
            bytes.extend(entries);
            link = bytes.len();
            bytes.extend(number(0, width));
        }
        bytes
    }

    /// Red, green, blue, and perhaps alpha of the first page, and its damage.
    fn shown(bytes: &[u8]) -> (Vec<u8>, Damage) {
        shown_within(&mut Budget::new(bytes), u64::MAX, bytes).unwrap()
    }

    fn shown_within(
        budget: &mut Budget,
        coefficient_bytes: u64,
        bytes: &[u8],
    ) -> Result<(Vec<u8>, Damage), Undecodable> {
        let file = File::new(bytes).unwrap();
        let (directories, _) = file.directories(9);
        let page = &Page::new(&directories[0], file.is_little).unwrap();
        let (samples, damage) = samples(Strips { page, file: bytes, budget, coefficient_bytes })?;
        Ok((frame(page, samples, (1, 1)).samples, damage))
    }

    fn whole(page: Made) -> Vec<u8> {
        let (samples, damage) = shown(&file(true, false, &[page]));
        assert_eq!(damage, None);
        samples
    }

    fn reason(page: Made) -> String {
        decoded(&file(true, false, &[page]), &DecodeConfig::default()).unwrap_err().0
    }

    fn decoded(bytes: &[u8], limits: &DecodeConfig) -> Result<DecodedImage, Undecodable> {
        decoded_in(&StrictMemory::default(), bytes, limits)
    }

    fn decoded_in(memory: &StrictMemory, bytes: &[u8], limits: &DecodeConfig) -> Result<DecodedImage, Undecodable> {
        let geometry = Geometry {
            resize: Resize::Exact { width: 2, height: 2 },
            filter: ResampleFilter::Nearest,
            width: 2,
            height: 2,
            rounding: CropRounding::Down,
        };
        let request = DecodeRequest { bytes, geometries: &[geometry], mode: limits.mode };
        crate::screen::decode::decode(&request, limits, memory, &mut DecodeScratch::new(limits))
    }

    const RGB: (u16, &[u32]) = (262, &[2]);
    const GREY: (u16, &[u32]) = (262, &[1]);

    /// Two pixels of red, green, blue in one strip.
    fn two_pixels(strip: &[u8]) -> Made {
        made(&[(256, &[2]), (257, &[1]), (258, &[8, 8, 8]), (277, &[3]), RGB], &[strip])
    }

    #[test]
    fn both_byte_orders_and_both_sizes_of_files_are_read() {
        for (is_little, is_big) in [(true, false), (false, false), (true, true), (false, true)] {
            let bytes = file(is_little, is_big, &[two_pixels(&[1, 2, 3, 4, 5, 6])]);
            assert_eq!(shown(&bytes), (vec![1, 2, 3, 4, 5, 6], None), "{is_little} {is_big}");
            let image = decoded(&bytes, &DecodeConfig::default()).unwrap();
            assert_eq!(image.info, ImageInfo { format: "tiff", width: 2, height: 1, frames: 1 });
        }
    }

    #[test]
    fn every_depth_of_grey_and_palettes_is_read() {
        for (bits, strip, expected) in [
            (1, &[0b0100_0000][..], [0, 255]),
            (2, &[0b0110_0000], [85, 170]),
            (4, &[0x3C], [51, 204]),
            (8, &[7, 9], [7, 9]),
            (16, &[0, 1, 0xFF, 0xFF], [1, 255]),
        ] {
            let tags = [(256, &[2][..]), (257, &[1]), (258, &[bits]), GREY];
            assert_eq!(whole(made(&tags, &[strip])), expected.map(|level| [level; 3]).concat(), "{bits} bits");
            let inverted = [(256, &[2][..]), (257, &[1]), (258, &[bits]), (262, &[0])];
            assert_eq!(whole(made(&inverted, &[strip])), expected.map(|level| [255 - level; 3]).concat());
        }
        let map: Vec<u32> = (0..48).map(|index| index << 8).collect();
        let tags = [(256, &[2][..]), (257, &[1]), (258, &[4]), (262, &[3]), (320, &map)];
        assert_eq!(whole(made(&tags, &[&[0x3F]])), [3, 19, 35, 15, 31, 47]);
    }

    #[test]
    fn alpha_of_both_kinds_is_read_and_other_samples_are_not_shown() {
        let page = |extra: &[u32]| {
            let tags = [(256, &[1][..]), (257, &[1]), (258, &[8]), (277, &[4]), RGB, (338, extra)];
            whole(made(&tags, &[&[10, 20, 40, 128]]))
        };
        assert_eq!(page(&[2]), [10, 20, 40, 128]);
        assert_eq!(page(&[1]), [20, 40, 80, 128]);
        assert_eq!(page(&[0]), [10, 20, 40]);
        let tags = [(256, &[1][..]), (257, &[1]), (258, &[8]), (277, &[2]), GREY, (338, &[2])];
        assert_eq!(whole(made(&tags, &[&[10, 128]])), [10, 10, 10, 128]);
    }

    #[test]
    fn tiles_and_planes_are_put_together() {
        let planes = made(
            &[(256, &[2]), (257, &[1]), (258, &[8, 8, 8]), (277, &[3]), RGB, (284, &[2])],
            &[&[1, 4], &[2, 5], &[3, 6]],
        );
        assert_eq!(whole(planes), [1, 2, 3, 4, 5, 6]);
        // Four tiles of 2x2 of a page of 3x3.
        let tiles = made(
            &[(256, &[3]), (257, &[3]), (258, &[8]), GREY, (322, &[2]), (323, &[2])],
            &[&[1, 2, 4, 5], &[3, 0, 6, 0], &[7, 8, 0, 0], &[9, 0, 0, 0]],
        );
        let expected: Vec<u8> = (1..=9).flat_map(|level| [level; 3]).collect();
        assert_eq!(whole(tiles), expected);
    }

    #[test]
    fn chroma_is_spread_over_the_pixels_that_share_it() {
        // 3x2 pixels, of which 2x2 share chroma. Without chroma, luma is grey.
        let tags = [(256, &[3][..]), (257, &[2]), (258, &[8, 8, 8]), (277, &[3]), (262, &[6]), (530, &[2, 2])];
        let strip = [1, 2, 4, 5, 128, 128, 3, 0, 6, 0, 128, 128];
        let expected: Vec<u8> = (1..=6).flat_map(|level| [level; 3]).collect();
        assert_eq!(whole(made(&tags, &[&strip])), expected);
        assert_eq!(from_ycbcr([76, 85, 255]), [254, 0, 0]);
        let bad = [(256, &[3][..]), (257, &[2]), (258, &[8, 8, 8]), (277, &[3]), (262, &[6]), (530, &[3, 0])];
        assert!(reason(made(&bad, &[&strip])).contains("chroma subsampling 3x0"));
    }

    #[test]
    fn ink_becomes_light() {
        let tags = [(256, &[2][..]), (257, &[1]), (258, &[8]), (277, &[4]), (262, &[5])];
        assert_eq!(whole(made(&tags, &[&[0, 0, 0, 0, 255, 0, 0, 0]])), [255, 255, 255, 0, 255, 255]);
    }

    fn compressed(compression: u32, strip: &[u8]) -> Made {
        made(&[(256, &[4]), (257, &[3]), (258, &[8]), (259, &[compression]), GREY], &[strip])
    }

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::none());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn lzw(bytes: &[u8]) -> Vec<u8> {
        weezl::encode::Encoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8).encode(bytes).unwrap()
    }

    #[test]
    fn every_compression_is_read_and_what_is_there_of_a_cut_strip_is_shown() {
        let levels: Vec<u8> = (1..=12).map(|level| level * 20).collect();
        let expected: Vec<u8> = levels.iter().flat_map(|level| [*level; 3]).collect();
        let packed = [&[11][..], &levels].concat();
        for (compression, strip) in [
            (1, levels.clone()),
            (5, lzw(&levels)),
            (8, deflate(&levels)),
            (32_946, deflate(&levels)),
            (32_773, packed),
        ] {
            let bytes = file(true, false, &[compressed(compression, &strip)]);
            assert_eq!(shown(&bytes), (expected.clone(), None), "{compression}");
            let cut = strip.len() - 6;
            let cut = file(true, false, &[compressed(compression, &strip[..cut])]);
            let (samples, damage) = shown(&cut);
            assert_eq!(damage.as_deref(), Some("a strip is damaged or ends early"), "{compression}");
            let image = decoded(&cut, &DecodeConfig::default()).unwrap();
            assert_eq!(image.damage, "TIFF: a strip is damaged or ends early", "{compression}");
            assert!(samples.starts_with(&expected[..9]) && samples.ends_with(&[255; 3]), "{compression}: {samples:?}");
        }
        // A run is as long as 257 less its header.
        let runs = file(true, false, &[compressed(32_773, &[0xFB, 7, 0x80, 0xFB, 9])]);
        assert_eq!(shown(&runs), ([[7; 18], [9; 18]].concat(), None));
    }

    #[test]
    fn differences_between_neighbours_are_added_up() {
        let page = |bits: u32, strip: &[u8]| {
            let tags = [(256, &[3][..]), (257, &[1]), (258, &[bits]), (259, &[8]), GREY, (317, &[2])];
            whole(made(&tags, &[&deflate(strip)]))
        };
        assert_eq!(page(8, &[10, 10, 246]), [[10; 3], [20; 3], [10; 3]].concat());
        assert_eq!(page(16, &[1, 1, 1, 1, 0xFE, 0xFD]), [[1; 3], [2; 3], [0; 3]].concat());
    }

    /// The lowest eight bits.
    fn level(value: usize) -> u8 {
        value.to_le_bytes()[0]
    }

    #[test]
    fn jpeg_inside_is_read_with_its_tables_and_its_damage_is_found() {
        let pixels: Vec<u8> = (0..16 * 16).flat_map(|at: usize| [level(at * 7), level(at * 3), 90]).collect();
        let image = turbojpeg::Image {
            pixels: &pixels[..],
            width: 16,
            pitch: 48,
            height: 16,
            format: turbojpeg::PixelFormat::RGB,
        };
        let jpeg = turbojpeg::compress(image, 95, turbojpeg::Subsamp::None).unwrap();
        let expected = turbojpeg::decompress(&jpeg, turbojpeg::PixelFormat::RGB).unwrap().pixels;
        let tags =
            [(256, &[16][..]), (257, &[16]), (258, &[8, 8, 8]), (259, &[7]), (277, &[3]), (262, &[6]), (530, &[2, 2])];
        assert_eq!(whole(made(&tags, &[&jpeg])), expected);
        let (samples, damage) = shown(&file(true, false, &[made(&tags, &[&jpeg[..jpeg.len() - 40]])]));
        assert!(damage.is_some());
        assert_eq!(samples[..48 * 4], expected[..48 * 4]);
        assert_eq!(reason(made(&tags, &[&pixels])), "damaged TIFF: a strip is no JPEG");
    }

    #[test]
    fn fax_pages_are_read() {
        // Group 4: every line is like the white one above it (V0), and then the end of the block follows.
        let tags = [(256, &[4][..]), (257, &[3]), (258, &[1]), (259, &[4]), (262, &[0])];
        assert_eq!(whole(made(&tags, &[&[0b1110_0000, 0b0000_0001, 0, 0b0001_0000]])), [255; 36]);
        let (_, damage) = shown(&file(true, false, &[made(&tags, &[&[0, 0, 0, 0]])]));
        assert!(damage.is_some());
    }

    #[test]
    fn bits_may_be_in_the_other_order() {
        let tags = [(256, &[8][..]), (257, &[1]), (258, &[1]), GREY, (266, &[2])];
        assert_eq!(whole(made(&tags, &[&[0b0000_0001]]))[..6], [255, 255, 255, 0, 0, 0]);
    }

    #[test]
    fn pages_are_frames_and_a_page_that_is_not_shown_is_damage() {
        let page = |level: u8| made(&[(256, &[1]), (257, &[1]), (258, &[8]), GREY], &[&[level]]);
        let image =
            decoded(&file(true, false, &[page(255), page(9), page(9), page(7)]), &DecodeConfig::default()).unwrap();
        assert_eq!((image.info.frames, image.damage.as_str()), (4, ""));
        let views: Vec<_> = image.views.iter().map(|view| (view.view.frame, view.pixels[0].data[0])).collect();
        assert_eq!(views, [(0, 255), (1, 9), (3, 7)]);
        let other = made(&[(256, &[1]), (257, &[1]), (258, &[8]), (259, &[50_000]), GREY], &[&[1]]);
        let image = decoded(&file(true, false, &[page(5), other]), &DecodeConfig::default()).unwrap();
        assert!(image.damage.contains("Zstandard"), "{}", image.damage);
        let one = file(true, false, &[page(5)]);
        let mut circular = one.clone();
        let next = circular.len() - 4;
        circular.copy_within(4..8, next);
        let image = decoded(&circular, &DecodeConfig::default()).unwrap();
        assert_eq!(image.damage, "TIFF: its list of pages is broken");
    }

    /// A profile that is not sRGB, and the same as a tag's values.
    fn profile() -> (Vec<u8>, Vec<u32>) {
        let mut icc = moxcms::ColorProfile::new_display_p3().encode().unwrap();
        icc.resize(icc.len().next_multiple_of(4), 0);
        let values = longs(&icc);
        (icc, values)
    }

    /// Bytes as a tag's values, in a file that begins with the lowest byte.
    fn longs(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    #[test]
    fn pages_are_turned_and_their_profiles_are_heeded() {
        let (icc, values) = profile();
        let pixels = [200, 100, 50, 10, 220, 30];
        let mut page = two_pixels(&pixels);
        page.tags.extend([(274, vec![6]), (34_675, values)]);
        let image = decoded(&file(true, false, &[page]), &DecodeConfig::default()).unwrap();
        assert_eq!((image.info.width, image.info.height), (1, 2));
        let mut expected = pixels;
        ToSrgb::of_icc(&icc, ColourModel::Rgb).unwrap().convert(&mut expected, 3);
        assert_ne!(expected, pixels);
        let data = &image.views[0].pixels[0].data;
        assert_eq!((&data[..3], &data[6..9]), (&expected[..3], &expected[3..]));
    }

    fn frames(image: &DecodedImage) -> Vec<u32> {
        image.views.iter().map(|view| view.view.frame).collect()
    }

    #[test]
    fn equal_samples_in_another_size_or_of_other_colours_are_another_picture() {
        let page = |width: u32, more: &[(u16, Vec<u32>)]| {
            let tags = [(256, &[width][..]), (257, &[4 / width]), (258, &[8, 8, 8]), (277, &[3]), RGB];
            let mut page = made(&tags, &[&[200, 100, 50, 10, 220, 30, 1, 2, 3, 90, 80, 70]]);
            page.tags.extend_from_slice(more);
            page
        };
        let pages = [
            page(4, &[]),
            page(2, &[]),
            page(1, &[]),
            page(4, &[]),
            page(4, &[(274, vec![3])]),
            page(4, &[(34_675, profile().1)]),
        ];
        let limits = DecodeConfig { max_frames: 12, max_views: 12, ..DecodeConfig::default() };
        let image = decoded(&file(true, false, &pages), &limits).unwrap();
        assert_eq!((frames(&image), image.damage.as_str()), (vec![0, 1, 2, 4, 5], ""));
    }

    #[test]
    fn all_pages_share_one_request_for_memory() {
        let page = |level: u32| {
            made(&[(256, &[level]), (257, &[1]), (258, &[8]), GREY], &[&[u8::try_from(level).unwrap(); 40]])
        };
        let pages: Vec<_> = (1..=40).map(page).collect();
        let limits = DecodeConfig { max_frames: 12, max_views: 12, ..DecodeConfig::default() };
        let memory = StrictMemory::default();
        let image = decoded_in(&memory, &file(true, false, &pages), &limits).unwrap();
        assert_eq!((image.info.frames, image.damage.as_str(), image.views.len()), (40, "", 12));
        let alone = StrictMemory::default();
        decoded_in(&alone, &file(true, false, &pages[39..]), &limits).unwrap();
        assert_eq!(memory.requests, alone.requests, "the largest page");
        assert_eq!(alone.requests.borrow().len(), 1);
    }

    #[test]
    fn no_more_of_a_tag_is_read_than_its_page_needs() {
        // What follows would be refused, or would make the colour map one of 16 bits.
        let tags = [(256, &[1][..]), (257, &[1]), (258, &[8, 9]), (339, &[1, 3]), GREY];
        assert_eq!(whole(made(&tags, &[&[7]])), [7; 3]);
        let map: Vec<u32> = (0..6).chain([300]).collect();
        let tags = [(256, &[2][..]), (257, &[1]), (258, &[1]), (262, &[3]), (320, &map)];
        assert_eq!(whole(made(&tags, &[&[0b0100_0000]])), [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn directories_together_have_a_bounded_number_of_entries() {
        let long = |entries: usize| {
            let mut page = two_pixels(&[0; 6]);
            page.tags.extend((0..entries).map(|_| (40_000, vec![1])));
            page
        };
        let damage = |pages: &[Made]| decoded(&file(true, false, pages), &DecodeConfig::default()).unwrap().damage;
        assert_eq!(damage(&[long(0), long(4000)]), "");
        assert_eq!(damage(&[long(0), long(4200)]), "TIFF: its list of pages is broken");
        // Directories that overlap but for four bytes each, and then none.
        let mut bytes = file(true, false, &[]);
        bytes[4..8].copy_from_slice(&8_u32.to_le_bytes());
        let (count, entries) = (300, 4000_usize);
        bytes.resize(8 + count * 12 + entries * 12 + 100, 0);
        for number in 0..count {
            let at = 8 + number * 12;
            bytes[at..at + 2].copy_from_slice(&u16::try_from(entries).unwrap().to_le_bytes());
            let next = u32::try_from(if number + 1 < count { at + 12 } else { 0 }).unwrap();
            bytes[at + 2 + entries * 12..][..4].copy_from_slice(&next.to_le_bytes());
        }
        let (directories, is_whole) = File::new(&bytes).unwrap().directories(MAX_PAGES);
        assert!(!is_whole && directories.len() < count, "{}", directories.len());
    }

    #[test]
    fn pages_that_overlap_end_the_file() {
        let strip = vec![0; 1 << 20];
        let first = made(&[(256, &[1]), (257, &[1]), (258, &[8]), GREY], &[&strip]);
        let mut pages = vec![first];
        for _ in 0..160 {
            let mut page = made(&[(256, &[1]), (257, &[1]), (258, &[8]), GREY], &[]);
            page.tags.extend([(273, vec![8]), (279, vec![1 << 20])]);
            pages.push(page);
        }
        let image = decoded(&file(true, false, &pages), &DecodeConfig::default()).unwrap();
        assert_eq!((image.views.len(), image.damage.as_str()), (1, "TIFF: its strips overlap"));
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let page = || {
            let tags = [(256, &[u32::MAX][..]), (257, &[u32::MAX]), (258, &[16]), (277, &[16]), GREY, (338, &[0])];
            made(&tags, &[&[0]])
        };
        for count in [1, 2, 3] {
            let pages: Vec<_> = (0..count).map(|_| page()).collect();
            let error = decoded(&file(true, false, &pages), &DecodeConfig::default()).unwrap_err();
            assert!(error.0.starts_with("over the decode limits"), "{error}");
        }
        let bytes = file(true, false, &[page()]);
        let file = File::new(&bytes).unwrap();
        let page = Page::new(&file.directories(1).0[0], true).unwrap();
        assert_eq!(page.chunk_bytes(page.chunk.1), usize::MAX);
    }

    /// A JPEG of 16x16, and the tags of its page.
    fn inner_jpeg(is_progressive: bool) -> (Vec<u8>, Made) {
        let pixels: Vec<u8> = (0..16 * 16 * 3).map(|at: usize| level(at * 7)).collect();
        let mut compressor = turbojpeg::Compressor::new().unwrap();
        compressor.set_progressive(is_progressive).unwrap();
        compressor.set_subsamp(turbojpeg::Subsamp::None).unwrap();
        let format = turbojpeg::PixelFormat::RGB;
        let image = turbojpeg::Image { pixels: &pixels[..], width: 16, pitch: 48, height: 16, format };
        let jpeg = compressor.compress_to_vec(image).unwrap();
        let tags = [(256, &[16][..]), (257, &[16]), (258, &[8, 8, 8]), (259, &[7]), (277, &[3]), (262, &[6])];
        let page = made(&tags, &[&jpeg]);
        (jpeg, page)
    }

    #[test]
    fn tables_count_for_each_strip() {
        let (jpeg, mut page) = inner_jpeg(false);
        let tables = [&[0xFF, 0xD8, 0xFF, 0xFE, 0x1F, 0xFE][..], &[0; 0x1FFC], &[0xFF, 0xD9]].concat();
        page.tags.push((347, longs(&tables)));
        let bytes = file(true, false, &[page]);
        let enough = jpeg.len() + tables.len() + 1000;
        assert_eq!(shown_within(&mut Budget(enough), 0, &bytes).unwrap().1, None);
        let error = shown_within(&mut Budget(enough - 2000), 0, &bytes).unwrap_err();
        assert_eq!(error.0, "damaged TIFF: its strips overlap");
    }

    #[test]
    fn what_a_progressive_jpeg_keeps_is_admitted() {
        for (is_progressive, kept) in [(false, 0), (true, 16 * 16 * 3 * 2)] {
            let (_, page) = inner_jpeg(is_progressive);
            let bytes = file(true, false, &[page]);
            let budget = || Budget::new(&bytes);
            assert_eq!(shown_within(&mut budget(), kept, &bytes).unwrap().1, None);
            let below = kept.checked_sub(1).map(|less| shown_within(&mut budget(), less, &bytes).unwrap_err().0);
            let refused = "damaged TIFF: a strip is a JPEG that takes too much memory";
            assert_eq!(below.as_deref(), is_progressive.then_some(refused));
        }
        let memory = StrictMemory::default();
        decoded_in(&memory, &file(true, false, &[inner_jpeg(true).1]), &DecodeConfig::default()).unwrap();
        let pixels = 16 * 16 * (3 + 2 * 3 + 4 + 3);
        assert_eq!(*memory.requests.borrow(), [pixels + 32 * 32 * 4 * 2]);
        // A page is not refused for what its JPEG does not need.
        let limits = DecodeConfig { max_decoded_bytes: pixels, ..DecodeConfig::default() };
        assert_eq!(decoded(&file(true, false, &[inner_jpeg(false).1]), &limits).unwrap().damage, "");
    }

    #[test]
    fn a_jpeg_inside_has_a_bounded_number_of_scans() {
        let (jpeg, mut page) = inner_jpeg(true);
        let place = |from: usize, code: u8| from + jpeg[from..].windows(2).position(|at| at == [0xFF, code]).unwrap();
        let scan = place(0, 0xDA);
        let end = place(scan + 10, 0xC4);
        page.strips = vec![[&jpeg[..end], &jpeg[scan..end].repeat(50_001), &[0xFF, 0xD9]].concat()];
        let (_, damage) = shown(&file(true, false, &[page]));
        assert!(damage.as_deref().is_some_and(|damage| damage.contains("scans")), "{damage:?}");
    }

    #[test]
    fn what_is_not_read_is_named() {
        let kind = |tag: u16, value: u32| {
            let mut tags = vec![(256, vec![1]), (257, vec![1]), (258, vec![8]), (262, vec![1])];
            tags.retain(|(other, _)| *other != tag);
            tags.push((tag, vec![value]));
            reason(Made { tags, strips: vec![vec![0]] })
        };
        assert_eq!(kind(259, 50_000), "unsupported kind of TIFF: compression Zstandard");
        assert_eq!(kind(259, 6), "unsupported kind of TIFF: compression JPEG of the old kind");
        assert!(kind(258, 12).starts_with("unsupported kind of TIFF: 12 bits"));
        assert!(kind(339, 3).starts_with("unsupported kind of TIFF: samples with a sign"));
        assert!(kind(262, 9).starts_with("unsupported kind of TIFF: CIELAB"));
        assert!(kind(256, 0).starts_with("damaged TIFF"));
        assert!(kind(256, 1 << 30).starts_with("over the decode limits"));
    }

    #[test]
    fn strips_that_overlap_end_the_page() {
        // A byte behind many that mean nothing.
        let mut slow = [0x80; 64];
        slow[62..].copy_from_slice(&[0, 7]);
        let mut page = made(&[(256, &[1]), (257, &[64]), (258, &[8]), (259, &[32_773]), (278, &[1]), GREY], &[&slow]);
        page.tags.extend([(273, vec![8; 64]), (279, vec![64; 64])]);
        let (_, damage) = shown_within(&mut Budget(9000), 0, &file(true, false, &[page])).unwrap();
        assert_eq!(damage.as_deref(), Some("its strips overlap"));
    }

    #[test]
    fn what_no_page_shows_of_a_tile_counts() {
        let tags = [(256, &[1][..]), (257, &[64]), (258, &[8]), (259, &[32_773]), GREY, (322, &[4096]), (323, &[1])];
        let mut page = made(&tags, &[&[0x81, 7].repeat(32)]);
        page.tags.extend([(324, vec![8; 64]), (325, vec![64; 64])]);
        let bytes = file(true, false, &[page]);
        let damage = |budget| shown_within(&mut Budget(budget), 0, &bytes).unwrap().1;
        assert_eq!(damage(64 * (256 + 64 + 4096 / 64)), None);
        assert_eq!(damage(64 * (256 + 64 + 4096 / 64) - 1).as_deref(), Some("its strips overlap"));
    }

    #[test]
    fn no_damage_panics() {
        let whole = file(true, false, &[two_pixels(&[1, 2, 3, 4, 5, 6]), compressed(5, &lzw(&[9; 12]))]);
        for cut in 0..whole.len() {
            drop(decoded(&whole[..cut], &DecodeConfig::default()));
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 7, 0x7F, 0xFF] {
                let mut other = whole.clone();
                other[at] = value;
                drop(decoded(&other, &DecodeConfig::default()));
            }
        }
    }
}
