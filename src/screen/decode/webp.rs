//! WebP, still or animated, decoded by libwebp.
//!
//! What Chromium shows is the measure, also where it departs from the specification: the profile of an animation and the
//! colour of its background are ignored, and a frame that cannot be decoded ends the animation.

mod container;
mod libwebp;

use image::metadata::Orientation;

use super::animation::{FRAME_COST_PIXELS, FrameChoice};
use super::colour::{ColourModel, ToSrgb};
use super::frame::{Channels, Frame};
use super::{DecodeContext, Undecodable};
use crate::job::ImageInfo;
use container::{Container, FrameChunks};

/// libwebp's memory for a pixel: the samples that it writes, and for lossless images and alpha a copy before transforms.
/// A lossy image with alpha has both, and alpha alone.
///
/// The tables of Huffman codes are not counted. Real images have few. A hostile lossless image may have 65,536 groups of
/// them, which are about 384 MiB. Decoder processes have a limit of their address space, and only one image is lost there.
const DECODE_BYTES: u64 = 4 + 4 + 1;
/// Memory for a pixel of an animation: the canvas beside a frame.
const ANIMATION_BYTES: u64 = 4 + DECODE_BYTES;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let container = Container::read(bytes).map_err(|reason| Undecodable::damaged("WebP", &reason))?;
    if container.is_animation {
        decode_animation(bytes, &container, context)
    } else {
        decode_still(bytes, &container, context)
    }?;
    if let Some(damage) = container.damage {
        context.record_damage("WebP", &damage);
    }
    let Container { width, height, .. } = container;
    Ok(ImageInfo { format: "webp", width, height, frames: u32::try_from(container.frames.len()).unwrap_or(u32::MAX) })
}

fn decode_still(bytes: &[u8], container: &Container<'_>, context: &mut DecodeContext<'_>) -> Result<(), Undecodable> {
    let &Container { width, height, has_alpha_flag, ref frames, .. } = container;
    let Some(image) = frames.first() else { return Err(Undecodable::damaged("WebP", &"it holds no image")) };
    let grant = context.admit(width, height, DECODE_BYTES)?;
    let mut samples = vec![0; samples_of(image)];
    let is_whole = libwebp::decode(image.chunks, width, false, &mut samples);
    check_rows(is_whole, &samples, context)?;
    let mut colour = container.icc.and_then(|profile| ToSrgb::of_icc(profile, ColourModel::Rgb));
    // Alpha that the flags deny is shown in an odd way: the colours count as multiplied with it already. Where there is a
    // profile, they are multiplied after the conversion. What is damaged is shown as it left libwebp.
    let is_multiplied = if colour.is_some() { !is_whole } else { !has_alpha_flag };
    if is_multiplied {
        colour = None;
    }
    let other_orientation = other_orientation(bytes);
    let frame = Frame::new(samples, Channels::Rgba, (width, height));
    context.take(&mut Frame { is_multiplied, colour, other_orientation, ..frame })?;
    drop(grant);
    Ok(())
}

fn decode_animation(
    bytes: &[u8],
    container: &Container<'_>,
    context: &mut DecodeContext<'_>,
) -> Result<(), Undecodable> {
    let &Container { width, height, has_alpha_flag, ref frames, .. } = container;
    let grant = context.admit(width, height, ANIMATION_BYTES)?;
    let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
    let cost = (u64::from(width) * u64::from(height)).max(FRAME_COST_PIXELS);
    context.check_animation(count, cost * u64::from(count))?;
    let durations: Vec<u32> = frames.iter().map(|frame| frame.duration_ms).collect();
    let mut choice = FrameChoice::new(&durations, durations.len(), context.limits.max_frames);
    let other_orientation = other_orientation(bytes);
    let mut canvas = Canvas::new(width, height);
    for (number, frame) in (0u32..).zip(frames) {
        let is_whole = canvas.draw(frame, has_alpha_flag);
        if let Err(nothing) = check_rows(is_whole, &canvas.rgba, context)
            && number == 0
        {
            return Err(nothing);
        }
        let takes = match is_whole {
            true => choice.takes(number, &canvas.rgba),
            false => choice.takes_last(&canvas.rgba),
        };
        if takes {
            let frame = Frame::new(canvas.rgba.clone(), Channels::Rgba, (width, height));
            context.take(&mut Frame { number, is_multiplied: true, other_orientation, ..frame })?;
        }
        if !is_whole {
            break;
        }
    }
    drop(grant);
    Ok(())
}

/// How phones turn the image. Browsers do not.
fn other_orientation(bytes: &[u8]) -> Option<u8> {
    let exif = container::exif(bytes)?;
    let code = Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))?.to_exif();
    (code != 1).then_some(code)
}

/// The length of a frame's samples. Its size was admitted with the canvas, in which it lies.
fn samples_of(frame: &FrameChunks<'_>) -> usize {
    frame.width as usize * frame.height as usize * 4
}

/// Records that rows are missing. It is an error where nothing is left to see.
fn check_rows(is_whole: bool, rgba: &[u8], context: &mut DecodeContext<'_>) -> Result<(), Undecodable> {
    if is_whole {
        return Ok(());
    }
    context.record_damage("WebP", &"an image cannot be decoded to its last row");
    match rgba.iter().any(|sample| *sample != 0) {
        true => Ok(()),
        false => Err(Undecodable::damaged("WebP", &"no row can be decoded")),
    }
}

/// What an animation is drawn on. It is transparent at first, whatever the file's colour for the background is.
struct Canvas {
    width: usize,
    height: usize,
    /// `[height, width, 4] u8`, premultiplied.
    rgba: Vec<u8>,
    /// Left, top, width and height of what becomes transparent before the next frame.
    disposed: Option<[usize; 4]>,
    is_empty: bool,
}

impl Canvas {
    fn new(width: u32, height: u32) -> Self {
        let (width, height) = (width as usize, height as usize);
        Self { width, height, rgba: vec![0; width * height * 4], disposed: None, is_empty: true }
    }

    /// Decodes a frame and draws it (RFC 9649, section 2.7.1.1), as Chromium does. Returns whether the frame is whole.
    fn draw(&mut self, frame: &FrameChunks<'_>, premultiply: bool) -> bool {
        if let Some([left, top, width, height]) = self.disposed.take() {
            for line in top..top + height {
                self.row(left, line, width).fill(0);
            }
        }
        let [left, top, width, height] = [frame.left, frame.top, frame.width, frame.height].map(|edge| edge as usize);
        let is_replaced = (width, height) == (self.width, self.height) && !(frame.is_blended && frame.has_alpha);
        if is_replaced {
            self.rgba.fill(0);
        }
        // Rows that cannot be decoded stay as the canvas is.
        let mut samples = Vec::with_capacity(samples_of(frame));
        for line in top..top + height {
            samples.extend_from_slice(self.row(left, line, width));
        }
        let is_whole = libwebp::decode(frame.chunks, frame.width, premultiply, &mut samples);
        let is_blended = frame.is_blended && is_whole && !is_replaced && !self.is_empty;
        for (row, line) in samples.chunks_exact(4 * width).zip(top..) {
            let below = self.row(left, line, width);
            if is_blended {
                blend(row, below);
            } else {
                below.copy_from_slice(row);
            }
        }
        self.is_empty = false;
        self.disposed = frame.is_disposed.then_some([left, top, width, height]);
        is_whole
    }

    fn row(&mut self, left: usize, row: usize, width: usize) -> &mut [u8] {
        let begin = 4 * (row * self.width + left);
        &mut self.rgba[begin..begin + 4 * width]
    }
}

/// Draws premultiplied pixels over others, with Chromium's rounding.
fn blend(above: &[u8], below: &mut [u8]) {
    for (above, below) in above.chunks_exact(4).zip(below.chunks_exact_mut(4)) {
        let share = 256 - u32::from(above[3]);
        for (above, below) in above.iter().zip(below) {
            #[expect(clippy::cast_possible_truncation, reason = "a share of a byte is a byte")]
            let behind = ((u32::from(*below) * share) >> 8) as u8;
            *below = above.saturating_add(behind);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::DecodeConfig;
    use crate::detector::{CropRounding, Geometry, ResampleFilter, Resize};
    use crate::job::{Background, View};
    use crate::screen::decode::memory_budget::MemoryBudget;
    use crate::screen::decode::{DecodeRequest, DecodeScratch, DecodedImage};

    const EDGE: u32 = 64;

    fn decoded_with(bytes: &[u8], limits: &DecodeConfig) -> Result<DecodedImage, Undecodable> {
        let as_it_is = Geometry {
            resize: Resize::None,
            filter: ResampleFilter::Bicubic,
            width: EDGE,
            height: EDGE,
            rounding: CropRounding::Down,
        };
        let request = DecodeRequest { bytes, geometries: &[as_it_is], mode: limits.mode };
        let memory = MemoryBudget::new(limits.memory_bytes);
        super::super::decode(&request, limits, &memory, &mut DecodeScratch::new(limits))
    }

    fn decoded(bytes: &[u8]) -> Result<DecodedImage, Undecodable> {
        decoded_with(bytes, &DecodeConfig::default())
    }

    /// The view's pixel at this place.
    fn pixel(image: &DecodedImage, view: View, (x, y): (u32, u32)) -> [u8; 3] {
        let view = image.views.iter().find(|decoded| decoded.view == view).unwrap();
        let at = ((y * EDGE + x) * 3) as usize;
        view.pixels[0].data[at..at + 3].try_into().unwrap()
    }

    fn over(frame: u32, background: Background) -> View {
        View { frame, background, orientation: 1 }
    }

    const WHITE: Background = Background::White;
    const BLACK: Background = Background::Black;

    /// A picture of the edge's size.
    fn picture(pixel: impl Fn(u32, u32) -> [u8; 4]) -> Vec<u8> {
        (0..EDGE * EDGE).flat_map(|i| pixel(i % EDGE, i / EDGE)).collect()
    }

    fn plain(pixel: [u8; 4]) -> Vec<u8> {
        libwebp::encode(&picture(|_, _| pixel), EDGE, None)
    }

    /// The lowest eight bits.
    fn low(value: u32) -> u8 {
        value.to_le_bytes()[0]
    }

    fn noise() -> Vec<u8> {
        picture(|x, y| {
            let value = (x * 7919 + y * 104_729 + x * y * 31) % 251;
            [low(value), low(value * 3), 255 - low(value), 255]
        })
    }

    fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let padding = &[0][..data.len() % 2];
        [name, &u32::try_from(data.len()).unwrap().to_le_bytes()[..], data, padding].concat()
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        chunk(b"RIFF", &[b"WEBP".to_vec(), chunks.concat()].concat())
    }

    fn header(flags: u8, width: u32, height: u32) -> Vec<u8> {
        let edges = [width, height].map(|edge| (edge - 1).to_le_bytes());
        chunk(b"VP8X", &[&[flags, 0, 0, 0], &edges[0][..3], &edges[1][..3]].concat())
    }

    /// The chunks of the image in a file.
    fn image_chunks(file: &[u8]) -> Vec<u8> {
        Container::read(file).unwrap().frames[0].chunks.to_vec()
    }

    /// Clears the bit of a lossless image that says that alpha is used (RFC 9649, section 3.4).
    fn without_alpha_bit(mut chunks: Vec<u8>) -> Vec<u8> {
        assert!(chunks.starts_with(b"VP8L") && chunks[12] & 0x10 != 0);
        chunks[12] &= !0x10;
        chunks
    }

    /// The settings of an animation. Its background is red.
    fn settings() -> Vec<u8> {
        chunk(b"ANIM", &[0, 0, 255, 255, 0, 0])
    }

    const IS_DISPOSED: u8 = 1;
    const IS_NOT_BLENDED: u8 = 2;

    fn frame(place: [u32; 2], flags: u8, image: &[u8]) -> Vec<u8> {
        let size = libwebp::features(image).unwrap();
        let numbers = [place[0] / 2, place[1] / 2, size.width - 1, size.height - 1, 100];
        let numbers = numbers.iter().flat_map(|number| number.to_le_bytes().into_iter().take(3));
        chunk(b"ANMF", &numbers.chain([flags]).chain(image.iter().copied()).collect::<Vec<_>>())
    }

    /// Writes bits, the lowest first.
    #[derive(Default)]
    struct Bits(Vec<bool>);

    impl Bits {
        fn put(mut self, count: u32, value: u32) -> Self {
            self.0.extend((0..count).map(|bit| value >> bit & 1 != 0));
            self
        }

        /// A lossless image of one row, opaque, without transforms.
        fn image(width: u32) -> Self {
            Self::default().put(8, 0x2F).put(14, width - 1).put(14, 0).put(1, 0).put(3, 0).put(1, 0)
        }

        /// A simple code with one symbol.
        fn one_symbol(self, symbol: u32) -> Self {
            self.put(1, 1).put(1, 0).put(1, 1).put(8, symbol)
        }

        fn decode(self, width: u32) -> Option<Vec<u8>> {
            let bytes: Vec<u8> = self
                .0
                .chunks(8)
                .map(|bits| bits.iter().enumerate().fold(0, |byte, (at, bit)| byte | u8::from(*bit) << at))
                .collect();
            let mut samples = vec![7; width as usize * 4];
            libwebp::decode(&chunk(b"VP8L", &bytes), width, false, &mut samples).then_some(samples)
        }
    }

    /// RFC 9649, section 3.7.2.1.1: the codes follow from the lengths, in the order of the symbols' values.
    #[test]
    fn the_smaller_symbol_of_a_simple_code_has_the_smaller_code() {
        let image = Bits::image(2).put(1, 0).put(1, 0).put(1, 1).put(1, 1).put(1, 1).put(8, 200).put(8, 100);
        let image = image.one_symbol(1).one_symbol(2).one_symbol(255).one_symbol(0);
        assert_eq!(image.put(1, 0).put(1, 1).decode(2), Some(vec![1, 100, 2, 255, 1, 200, 2, 255]));
    }

    #[test]
    fn an_entry_of_the_colour_cache_that_was_never_written_is_transparent_black() {
        // A cache of two entries. Green has two symbols: 0, and 280, which is the first entry of the cache. The lengths are
        // 1, zeros, 1, 0, and are coded by 0, 1, 17 (some zeros) and 18 (many zeros), of two bits each.
        let image = Bits::image(1).put(1, 1).put(4, 1).put(1, 0).put(1, 0).put(4, 0);
        let image = image.put(3, 2).put(3, 2).put(3, 2).put(3, 2).put(1, 0);
        let (zero, one, some, many) = (0b00, 0b10, 0b01, 0b11);
        let image = image.put(2, one).put(2, many).put(7, 127).put(2, many).put(7, 127).put(2, some).put(3, 0);
        let image = image.put(2, one).put(2, zero);
        let image = image.one_symbol(9).one_symbol(9).one_symbol(255).one_symbol(0);
        assert_eq!(image.put(1, 1).decode(1), Some(vec![0; 4]));
    }

    #[test]
    fn the_rows_above_the_damage_are_seen_and_the_damage_is_recorded() {
        for quality in [None, Some(90.0)] {
            let whole = libwebp::encode(&noise(), EDGE, quality);
            let first = decoded(&whole).unwrap();
            assert!(first.damage.is_empty() && first.views.len() == 1);
            // Cut, and with sizes that fit to what is left.
            let cut = whole[..whole.len() * 3 / 5].to_vec();
            let mut fitting = cut.clone();
            fitting.truncate(cut.len() / 2 * 2);
            let length = u32::try_from(fitting.len()).unwrap();
            fitting[4..8].copy_from_slice(&(length - 8).to_le_bytes());
            fitting[16..20].copy_from_slice(&(length - 20).to_le_bytes());
            for bytes in [cut, fitting] {
                let image = decoded(&bytes).unwrap();
                assert!(image.damage.starts_with("WebP: "), "{}", image.damage);
                for place in [(0, 0), (40, 2), (63, 5)] {
                    assert_eq!(pixel(&image, over(0, WHITE), place), pixel(&first, over(0, WHITE), place));
                }
                assert_eq!(pixel(&image, over(0, WHITE), (9, 63)), [255; 3]);
                assert_eq!(pixel(&image, over(0, BLACK), (9, 63)), [0; 3]);
            }
        }
    }

    #[test]
    fn an_image_without_a_row_is_undecodable() {
        let whole = libwebp::encode(&noise(), EDGE, Some(90.0));
        for length in [12, 20, 24, 40] {
            let error = decoded(&whole[..length]).unwrap_err();
            assert!(error.0.starts_with("damaged WebP: "), "{error}");
        }
    }

    #[test]
    fn bytes_behind_the_stated_end_are_no_damage() {
        let mut bytes = plain([1, 2, 3, 255]);
        bytes.extend(b"more");
        assert_eq!(decoded(&bytes).unwrap().damage, "");
    }

    #[test]
    fn alpha_that_the_flags_grant_is_over_both_backgrounds() {
        let image = decoded(&plain([200, 100, 50, 128])).unwrap();
        assert_eq!(pixel(&image, over(0, WHITE), (0, 0)), [227, 177, 152]);
        assert_eq!(pixel(&image, over(0, BLACK), (0, 0)), [100, 50, 25]);
    }

    /// The values are what Chromium paints on a page. Over black it is what viewers paint that ignore alpha.
    #[test]
    fn alpha_that_the_flags_deny_is_applied_as_if_the_colours_were_multiplied() {
        let chunks = image_chunks(&plain([200, 100, 50, 128]));
        let denied = without_alpha_bit(chunks.clone());
        for bytes in [
            file(std::slice::from_ref(&denied)),
            file(&[header(0, EDGE, EDGE), chunks.clone()]),
            file(&[header(0, EDGE, EDGE), denied.clone()]),
            file(&[header(2, EDGE, EDGE), settings(), frame([0, 0], 0, &chunks)]),
            file(&[header(2, EDGE, EDGE), settings(), frame([0, 0], 0, &denied)]),
        ] {
            let image = decoded(&bytes).unwrap();
            assert_eq!(pixel(&image, over(0, WHITE), (0, 0)), [255, 227, 177]);
            assert_eq!(pixel(&image, over(0, BLACK), (0, 0)), [200, 100, 50]);
            assert_eq!(image.damage, "");
        }
        let granted = decoded(&file(&[header(16, EDGE, EDGE), denied])).unwrap();
        assert_eq!(pixel(&granted, over(0, WHITE), (0, 0)), [227, 177, 152]);
    }

    #[test]
    fn a_chunk_of_alpha_that_the_flags_deny_is_ignored_outside_of_animations() {
        let chunks = image_chunks(&libwebp::encode(&picture(|_, _| [200, 100, 50, 0]), EDGE, Some(100.0)));
        assert!(chunks.starts_with(b"ALPH"));
        let still = decoded(&file(&[header(0, EDGE, EDGE), chunks.clone()])).unwrap();
        assert_eq!((still.views.len(), still.damage.as_str()), (1, ""));
        assert!(pixel(&still, over(0, WHITE), (0, 0)) != [255; 3]);
        let moving = decoded(&file(&[header(2, EDGE, EDGE), settings(), frame([0, 0], 0, &chunks)])).unwrap();
        assert_eq!(pixel(&moving, over(0, WHITE), (0, 0)), [255; 3]);
    }

    #[test]
    fn both_ways_up_are_views_and_the_first_exif_counts() {
        let exif = |code: u8| {
            // One entry, tag 0x0112 (Exif 2.32, 4.6.4), behind the start of the image.
            let mut exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
            exif.extend([code, 0, 0, 0, 0, 0, 0]);
            chunk(b"EXIF", &exif)
        };
        let rgba = picture(|x, y| if (x, y) == (0, 0) { [0, 0, 0, 255] } else { [250, 250, 250, 255] });
        let chunks = image_chunks(&libwebp::encode(&rgba, EDGE, None));
        for (extended, codes) in [(Some(8), &[6, 3][..]), (Some(0), &[6]), (None, &[6, 1])] {
            let mut parts: Vec<_> = extended.map(|flags| header(flags, EDGE, EDGE)).into_iter().collect();
            parts.push(chunks.clone());
            parts.extend(codes.iter().map(|code| exif(*code)));
            let image = decoded(&file(&parts)).unwrap();
            assert_eq!((image.views.len(), image.damage.as_str()), (2, ""));
            assert_eq!(pixel(&image, over(0, WHITE), (0, 0)), [0; 3]);
            assert_eq!(pixel(&image, View { orientation: 6, ..over(0, WHITE) }, (EDGE - 1, 0)), [0; 3]);
        }
        let moving = file(&[header(2, EDGE, EDGE), settings(), frame([0, 0], 0, &chunks), exif(6)]);
        assert_eq!(decoded(&moving).unwrap().views.len(), 2);
        for code in [0, 1, 9] {
            let bytes = file(&[header(8, EDGE, EDGE), chunks.clone(), exif(code)]);
            assert_eq!(decoded(&bytes).unwrap().views.len(), 1);
        }
    }

    #[test]
    fn the_profile_of_a_still_image_counts_where_the_flags_say_so() {
        let chunks = image_chunks(&plain([1, 2, 3, 255]));
        let profile = |data: &[u8]| chunk(b"ICCP", data);
        let still = |flags| file(&[header(flags, EDGE, EDGE), profile(b"one"), chunks.clone(), profile(b"two")]);
        assert_eq!(Container::read(&still(0x20)).unwrap().icc, Some(&b"one"[..]));
        assert_eq!(Container::read(&still(0)).unwrap().icc, None);
        let behind = file(&[header(0x20, EDGE, EDGE), chunks.clone(), profile(b"two")]);
        assert_eq!(Container::read(&behind).unwrap().icc, Some(&b"two"[..]));
        let moving = [header(0x22, EDGE, EDGE), profile(b"one"), settings(), frame([0, 0], 0, &chunks)];
        assert_eq!(Container::read(&file(&moving)).unwrap().icc, None);
    }

    /// A smaller frame of one colour.
    fn patch(pixel: [u8; 4]) -> Vec<u8> {
        image_chunks(&libwebp::encode(&pixel.repeat(32 * 32), 32, None))
    }

    #[test]
    fn frames_are_drawn_over_those_before_and_disposed() {
        let ground = image_chunks(&plain([255, 0, 0, 255]));
        let half = patch([0, 0, 255, 128]);
        let bytes = file(&[
            header(18, EDGE, EDGE),
            settings(),
            frame([0, 0], 0, &ground),
            frame([32, 0], IS_DISPOSED, &half),
            frame([0, 32], IS_NOT_BLENDED, &half),
        ]);
        let image = decoded(&bytes).unwrap();
        assert_eq!(image.info.frames, 3);
        assert_eq!(pixel(&image, over(0, WHITE), (40, 4)), [255, 0, 0]);
        assert_eq!(pixel(&image, over(1, WHITE), (40, 4)), [127, 0, 128]);
        assert_eq!(pixel(&image, over(1, WHITE), (4, 4)), [255, 0, 0]);
        assert_eq!(pixel(&image, over(2, WHITE), (40, 4)), [255; 3]);
        assert_eq!(pixel(&image, over(2, WHITE), (4, 40)), [127, 127, 255]);
        assert_eq!(pixel(&image, over(2, BLACK), (4, 40)), [0, 0, 128]);
    }

    #[test]
    fn the_colour_of_the_background_is_ignored() {
        let bytes = file(&[header(18, EDGE, EDGE), settings(), frame([0, 0], 0, &patch([0, 0, 255, 255]))]);
        let image = decoded(&bytes).unwrap();
        assert_eq!(pixel(&image, over(0, WHITE), (50, 50)), [255; 3]);
        assert_eq!(pixel(&image, over(0, BLACK), (50, 50)), [0; 3]);
    }

    #[test]
    fn a_frame_that_cannot_be_decoded_ends_the_animation() {
        let green = image_chunks(&plain([0, 255, 0, 255]));
        let mut broken = image_chunks(&libwebp::encode(&noise(), EDGE, None));
        let length = broken.len();
        broken[length / 2..].fill(0xFF);
        let bytes = file(&[
            header(2, EDGE, EDGE),
            settings(),
            frame([0, 0], 0, &green),
            frame([0, 0], 0, &broken),
            frame([0, 0], 0, &image_chunks(&plain([0, 0, 255, 255]))),
        ]);
        let image = decoded(&bytes).unwrap();
        assert_eq!(image.damage, "WebP: an image cannot be decoded to its last row");
        assert_eq!(image.views.iter().map(|decoded| decoded.view.frame).max(), Some(1));
        assert_eq!(pixel(&image, over(0, WHITE), (0, 0)), [0, 255, 0]);
    }

    #[test]
    fn frames_before_a_broken_one_are_kept_where_it_shows_nothing() {
        let green = image_chunks(&plain([0, 255, 0, 255]));
        let nothing = chunk(b"VP8L", &[&green[8..13], &[0xFF; 20]].concat());
        let parts =
            [header(18, EDGE, EDGE), settings(), frame([0, 0], IS_DISPOSED, &green), frame([0, 0], 0, &nothing)];
        let image = decoded(&file(&parts)).unwrap();
        assert_eq!(pixel(&image, over(0, WHITE), (0, 0)), [0, 255, 0]);
        assert_eq!(image.damage, "WebP: an image cannot be decoded to its last row");
        assert!(decoded(&file(&[header(18, EDGE, EDGE), settings(), frame([0, 0], 0, &nothing)])).is_err());
    }

    #[test]
    fn an_animation_that_is_cut_shows_its_first_frames() {
        let green = image_chunks(&plain([0, 255, 0, 255]));
        let moving = [header(2, EDGE, EDGE), settings(), frame([0, 0], 0, &green), frame([0, 0], 0, &green)];
        let whole = file(&moving);
        let image = decoded(&whole[..whole.len() - green.len() - 4]).unwrap();
        assert_eq!((image.info.frames, image.damage.as_str()), (1, "WebP: the file ends within a chunk"));
    }

    #[test]
    fn what_lies_outside_the_canvas_is_undecodable() {
        let chunks = image_chunks(&plain([1, 2, 3, 255]));
        for bytes in [
            file(&[header(0, 1, 1), chunks.clone()]),
            file(&[header(0, 2 * EDGE, EDGE), chunks.clone()]),
            file(&[header(2, 1, 1), settings(), frame([0, 0], 0, &chunks)]),
            file(&[header(2, EDGE, EDGE), settings(), frame([2, 0], 0, &chunks)]),
        ] {
            assert_eq!(decoded(&bytes).unwrap_err().0, "damaged WebP: a frame lies outside the canvas");
        }
    }

    #[test]
    fn a_fault_behind_an_image_is_damage() {
        let chunks = image_chunks(&plain([1, 2, 3, 255]));
        let head = header(0, EDGE, EDGE);
        let mut long = chunk(b"JUNK", &[]);
        long[4..8].fill(9);
        for (parts, damage) in [
            (vec![head.clone(), chunks.clone(), chunks.clone()], "it holds two images"),
            (vec![head.clone(), chunks.clone(), head.clone()], "it has two headers"),
            (vec![head, chunks.clone(), long], "a chunk is longer than the file"),
            (vec![header(1, EDGE, EDGE), chunks.clone()], "its header has unknown flags"),
            (vec![chunks, vec![0; 3]], "the file ends within a chunk"),
        ] {
            let image = decoded(&file(&parts)).unwrap();
            assert_eq!(image.damage, format!("WebP: {damage}"));
            assert_eq!(pixel(&image, over(0, WHITE), (9, 9)), [1, 2, 3]);
        }
    }

    #[test]
    fn the_canvas_and_the_sum_of_the_frames_are_limited() {
        let one = frame([0, 0], 0, &patch([0, 0, 255, 255]));
        let moving = |edge: u32, count| {
            let parts = [vec![header(2, edge, edge), settings()], vec![one.clone(); count]].concat();
            decoded_with(&file(&parts), &DecodeConfig { max_animation_pixels: 3 * 64 * 64, ..DecodeConfig::default() })
        };
        assert!(moving(64, 3).is_ok());
        for image in [moving(64, 4), moving(30_000, 1)] {
            assert!(image.unwrap_err().0.starts_with("over the decode limits: "));
        }
    }

    #[test]
    fn many_tiny_frames_are_over_the_limit_of_an_animation() {
        let dot = image_chunks(&libwebp::encode(&[0, 0, 255, 255], 1, None));
        let frames = frame([0, 0], 0, &dot).repeat(4);
        let limits = DecodeConfig { max_animation_pixels: 4 * FRAME_COST_PIXELS - 1, ..DecodeConfig::default() };
        let error = decoded_with(&file(&[header(2, 1, 1), settings(), frames]), &limits).unwrap_err();
        assert_eq!(error.0, "over the decode limits: 4 frames are 8192 pixels, the limit is 8191");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0usize..4, changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..4)) {
            let half = patch([0, 0, 255, 128]);
            let mut bytes = match kind {
                0 => libwebp::encode(&noise(), EDGE, None),
                1 => libwebp::encode(&noise(), EDGE, Some(50.0)),
                2 => libwebp::encode(&picture(|x, y| [9, 9, 9, low(x * y)]), EDGE, Some(50.0)),
                _ => file(&[header(18, EDGE, EDGE), settings(), frame([0, 0], 0, &half), frame([2, 2], 1, &half)]),
            };
            for (at, value) in changes {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            if let Ok(image) = decoded(&bytes) {
                prop_assert!(!image.views.is_empty());
            }
        }
    }
}
