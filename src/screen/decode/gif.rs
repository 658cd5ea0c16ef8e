//! GIF, still or animated, drawn as browsers draw it: the screen grows to the first frame, an index beyond the palette is
//! black, and what is missing is transparent.

mod blocks;
mod canvas;
mod lzw;

use super::animation::{FRAME_COST_PIXELS, FrameChoice};
use super::frame::{Channels, Frame};
use super::{DecodeContext, Undecodable};
use crate::job::ImageInfo;
use blocks::GifBlocks;
use canvas::{Canvas, Drawn};
use lzw::CodeTable;

const NAME: &str = "GIF";

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let damaged = |what: &str| Undecodable::damaged(NAME, &what);
    let mut blocks = GifBlocks::of(bytes).ok_or_else(|| damaged("the file ends within its header"))?;
    let GifLayout { size, durations_ms, shown, pixels } = GifLayout::of(blocks.clone());
    let count = u32::try_from(durations_ms.len()).map_err(|_| Undecodable::new("over the decode limits: frames"))?;
    if count == 0 {
        return Err(damaged("it holds no image"));
    }
    // The canvas, and its copy over a background. An animation has a copy to be screened and one to be restored, too.
    let grant = context.admit(size.0, size.1, if count == 1 { 4 + 3 } else { 4 * 3 + 3 })?;
    context.check_animation(count, pixels)?;

    let mut choice = FrameChoice::new(&durations_ms, shown, context.limits.max_frames);
    let mut canvas = Canvas::new(size, count);
    let mut codes = CodeTable::new();
    let mut shows_something = false;
    let mut number = 0;
    while let Some(frame) = blocks.next_frame() {
        let drawn = canvas.draw(&frame, &mut codes);
        shows_something |= drawn != Drawn::Nothing;
        match drawn {
            Drawn::Whole => {}
            // Chromium shows nothing of it. Viewers differ: some enlarge it to the screen.
            Drawn::Nothing if frame.is_empty() => {
                context.record_damage(NAME, &format_args!("frame {} has no pixels", number + 1));
            }
            Drawn::Partly | Drawn::Nothing => {
                context.record_damage(NAME, &format_args!("pixels of frame {} are missing", number + 1));
            }
        }
        if shows_something && choice.takes(number, &canvas.pixels) {
            let is_last = number + 1 == count;
            let samples = if is_last { std::mem::take(&mut canvas.pixels) } else { canvas.pixels.clone() };
            context.take(&mut Frame { number, ..Frame::new(samples, Channels::Rgba, size) })?;
        }
        number += 1;
    }
    if !shows_something {
        return Err(damaged("it has no pixel that can be decoded"));
    }
    if let Some(damage) = choice.damage() {
        context.record_damage(NAME, &damage);
    }
    if blocks.is_cut {
        context.record_damage(NAME, &"the file ends within a block");
    }
    drop(grant);
    Ok(ImageInfo { format: "gif", width: size.0, height: size.1, frames: count })
}

/// What a GIF's blocks contain, read before a pixel is decoded.
struct GifLayout {
    /// Width and height of the canvas.
    size: (u32, u32),
    /// How long each frame is on screen.
    durations_ms: Vec<u32>,
    /// The number of frames that all browsers show: those before zeros between blocks.
    shown: usize,
    /// Pixels over all frames, each counted as at least as large as the canvas, and as the cost of a frame.
    pixels: u64,
}

impl GifLayout {
    fn of(mut blocks: GifBlocks<'_>) -> Self {
        let (width, height) = blocks.screen;
        let mut layout = Self { size: (width, height), durations_ms: Vec::new(), shown: 0, pixels: 0 };
        while let Some(frame) = blocks.next_frame() {
            if layout.durations_ms.is_empty() {
                layout.size = (width.max(frame.left + frame.width), height.max(frame.top + frame.height));
            }
            let area = |width: u32, height: u32| u64::from(width) * u64::from(height);
            let canvas = area(layout.size.0, layout.size.1).max(FRAME_COST_PIXELS);
            layout.pixels += canvas.max(area(frame.width, frame.height));
            layout.durations_ms.push(frame.duration_ms);
            layout.shown += usize::from(!blocks.has_zeros);
        }
        layout
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::decode_with;
    use super::super::{DecodedImage, DecodedView};
    use super::*;
    use crate::config::DecodeConfig;

    const SCREEN: (u16, u16) = (4, 4);
    const PALETTE: [[u8; 3]; 4] = [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]];

    fn decoded(bytes: &[u8]) -> Result<DecodedImage, Undecodable> {
        decode_with(bytes, &DecodeConfig::default())
    }

    /// The header of a GIF with a palette of four colours.
    fn header((width, height): (u16, u16)) -> Vec<u8> {
        let mut bytes = b"GIF89a".to_vec();
        bytes.extend(width.to_le_bytes());
        bytes.extend(height.to_le_bytes());
        bytes.extend([0x81, 0, 0]);
        bytes.extend(PALETTE.as_flattened());
        bytes
    }

    /// A frame at this place. Each index follows a clear code, so that all codes have four bits.
    fn frame([left, top, width, height]: [u16; 4], indices: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x2C];
        for value in [left, top, width, height] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([0, 3]);
        for block in indices.chunks(255) {
            bytes.push(u8::try_from(block.len()).unwrap());
            bytes.extend(block.iter().map(|index| index << 4 | 8));
        }
        bytes.push(0);
        bytes
    }

    fn control(disposal: u8, delay: u8) -> [u8; 8] {
        [0x21, 0xF9, 4, disposal << 2, delay, 0, 0, 0]
    }

    fn whole_frame(index: u8) -> Vec<u8> {
        frame([0, 0, 4, 4], &[index; 16])
    }

    /// The canvas after each frame, and how much of the frames was there.
    fn drawn(bytes: &[u8]) -> (Canvas, Vec<Drawn>) {
        let mut blocks = GifBlocks::of(bytes).unwrap();
        let layout = GifLayout::of(blocks.clone());
        let mut canvas = Canvas::new(layout.size, u32::try_from(layout.durations_ms.len()).unwrap());
        let mut codes = CodeTable::new();
        let drawn = std::iter::from_fn(|| blocks.next_frame()).map(|frame| canvas.draw(&frame, &mut codes)).collect();
        (canvas, drawn)
    }

    fn pixel(canvas: &Canvas, x: usize, y: usize) -> [u8; 4] {
        canvas.pixels.as_chunks().0[y * 4 + x]
    }

    const RED: [u8; 4] = [255, 0, 0, 255];
    const GREEN: [u8; 4] = [0, 255, 0, 255];
    const NOTHING: [u8; 4] = [0; 4];

    #[test]
    fn an_index_beyond_the_palette_is_black() {
        let (canvas, _) = drawn(&[header(SCREEN), whole_frame(7)].concat());
        assert_eq!(pixel(&canvas, 3, 3), [0, 0, 0, 255]);
    }

    #[test]
    fn the_screen_grows_to_the_first_frame_only() {
        for (screen, first, size) in
            [((0, 0), [0, 0, 4, 4], (4, 4)), ((4, 4), [2, 1, 4, 4], (6, 5)), ((4, 4), [0, 0, 1, 1], (4, 4))]
        {
            let bytes = [header(screen), frame(first, &[1; 16]), frame([0, 0, 9, 9], &[2; 81]), vec![0x3B]].concat();
            let decoded = decoded(&bytes).unwrap();
            assert_eq!((decoded.info.width, decoded.info.height, decoded.info.frames), (size.0, size.1, 2));
            assert_eq!(decoded.damage, "");
        }
    }

    #[test]
    fn pixels_that_are_missing_are_transparent_and_damage() {
        let bytes = [header(SCREEN), frame([0, 0, 4, 4], &[1; 6])].concat();
        let (canvas, drawn) = drawn(&bytes);
        assert_eq!(drawn, [Drawn::Partly]);
        assert_eq!([pixel(&canvas, 1, 1), pixel(&canvas, 2, 1)], [RED, NOTHING]);
        assert_eq!(decoded(&bytes).unwrap().damage, "GIF: pixels of frame 1 are missing");
        // Codes behind the missing ones that stand for nothing.
        let wrong = [&bytes[..bytes.len() - 1], &[2, 0xFF, 0xFF, 0]].concat();
        assert_eq!(decoded(&wrong).unwrap().damage, "GIF: pixels of frame 1 are missing");
        let empty = [header(SCREEN), frame([0, 0, 4, 4], &[])].concat();
        assert_eq!(decoded(&empty).unwrap_err().0, "damaged GIF: it has no pixel that can be decoded");
    }

    #[test]
    fn what_changes_no_pixel_is_no_damage() {
        let frame = [header(SCREEN), whole_frame(1)].concat();
        let without_terminator = frame[..frame.len() - 1].to_vec();
        for bytes in [
            frame.clone(),
            without_terminator,
            [&frame[..], &[0x3B]].concat(),
            [&frame[..], &[0, 0, 0x3B]].concat(),
            [&frame[..], b"junk;"].concat(),
            [&frame[..], &[0x21, 0x77, 2, 1, 1, 0, 0x3B]].concat(),
        ] {
            let decoded = decoded(&bytes).unwrap();
            assert_eq!((decoded.damage.as_str(), decoded.info.frames), ("", 1), "{bytes:?}");
        }
        let cut = [&frame[..], &[0x2C, 0, 0]].concat();
        assert_eq!(decoded(&cut).unwrap().damage, "GIF: the file ends within a block");
    }

    #[test]
    fn frames_behind_zeros_are_screened_although_some_browsers_stop_there() {
        let bytes = [header(SCREEN), whole_frame(1), vec![0], whole_frame(2), vec![0x3B]].concat();
        assert_eq!(decoded(&bytes).unwrap().info.frames, 2);
    }

    #[test]
    fn frames_behind_zeros_do_not_push_out_those_before() {
        // One red frame of a second that is neither the first nor the last, and longer ones behind a zero.
        let frame_of = |number: u8, delay: u8| {
            let digits = [number % 4, number / 4 % 4, number / 16 % 4, number / 64];
            [&control(0, delay)[..], &frame([0, 0, 4, 4], &[&digits[..], &[2; 12]].concat())].concat()
        };
        let before = [header(SCREEN), frame_of(0, 5), frame_of(1, 100), frame_of(2, 5)].concat();
        let behind: Vec<u8> = (3..150).flat_map(|number| frame_of(number, 250)).collect();
        let seen = |bytes: &[u8]| {
            let DecodedImage { damage, views, .. } = decoded(bytes).unwrap();
            let frames: Vec<u32> = views.iter().map(|DecodedView { view, .. }| view.frame).collect();
            (frames[..4].to_vec(), damage)
        };
        let hidden = [&before[..], &[0], &behind, &[0x3B]].concat();
        let (frames, damage) = seen(&hidden);
        assert_eq!((frames, damage.as_str()), (vec![0, 1, 2, 3], "GIF: frames that no browser shows are left out"));
        let few = [&before[..], &[0], &frame_of(3, 250), &[0x3B]].concat();
        assert_eq!(seen(&few), (vec![0, 1, 2, 3], String::new()));
        // Without the zero all of them are shown.
        let (frames, damage) = seen(&[&before[..], &behind, &[0x3B]].concat());
        assert!(!frames.contains(&1) && damage.is_empty(), "{frames:?} {damage}");
    }

    #[test]
    fn a_frame_is_disposed_of_as_it_says() {
        let corner = |disposal: u8| {
            let bytes = [
                header(SCREEN),
                whole_frame(1),
                control(disposal, 0).to_vec(),
                frame([1, 1, 2, 2], &[2; 4]),
                frame([0, 0, 1, 1], &[3]),
            ]
            .concat();
            pixel(&drawn(&bytes).0, 2, 2)
        };
        assert_eq!([0, 1, 2, 3, 4].map(corner), [GREEN, GREEN, NOTHING, RED, RED]);
    }

    #[test]
    fn what_is_never_restored_is_not_kept() {
        let still = [header(SCREEN), control(3, 0).to_vec(), whole_frame(1)].concat();
        let two = [&still[..], &control(3, 0), &whole_frame(2)].concat();
        assert_eq!([still, two].map(|bytes| drawn(&bytes).0.before_bytes()), [0, 4 * 4 * 4]);
    }

    #[test]
    fn many_tiny_frames_are_over_the_limit_of_an_animation() {
        let frames = frame([0, 0, 1, 1], &[1]).repeat(4);
        let limits = DecodeConfig { max_animation_pixels: 4 * FRAME_COST_PIXELS - 1, ..DecodeConfig::default() };
        let error = decode_with(&[header((1, 1)), frames].concat(), &limits).unwrap_err();
        assert_eq!(error.0, "over the decode limits: 4 frames are 8192 pixels, the limit is 8191");
    }

    #[test]
    fn codes_of_the_frame_before_stand_for_nothing() {
        // The codes of the first frame are 8 (clear), 1, 1 and 10 (1, 1). That of the second frame is 10 again.
        let coded = |codes: [u8; 2]| {
            let mut bytes = frame([0, 0, 4, 1], &[]);
            bytes.pop();
            bytes.extend([2, codes[0], codes[1], 0]);
            bytes
        };
        let bytes = [header((4, 1)), coded([0x18, 0xA1]), coded([10, 0])].concat();
        let (_, drawn) = drawn(&bytes);
        assert_eq!(drawn, [Drawn::Whole, Drawn::Nothing]);
    }

    #[test]
    fn a_frame_without_columns_or_rows_is_damage() {
        for size in [[0, 4], [4, 0], [0, 0]] {
            let empty = frame([0, 0, size[0], size[1]], &[1; 16]);
            let alone = decoded(&[header(SCREEN), empty.clone()].concat()).unwrap_err();
            assert_eq!(alone.0, "damaged GIF: it has no pixel that can be decoded");
            let before = decoded(&[header(SCREEN), empty.clone(), whole_frame(1)].concat()).unwrap();
            assert_eq!((before.damage.as_str(), before.views.len()), ("GIF: frame 1 has no pixels", 1));
            let behind = decoded(&[header(SCREEN), whole_frame(1), empty].concat()).unwrap();
            assert_eq!((behind.damage.as_str(), behind.views.len()), ("GIF: frame 2 has no pixels", 1));
        }
    }

    #[test]
    fn rows_of_an_interlaced_frame_stand_for_those_below_until_they_come() {
        let mut bytes = [header((4, 16)), frame([0, 0, 4, 16], &[1, 1, 1, 1, 2, 2, 2, 2])].concat();
        // Behind the flags come the bits of a code, a length, eight codes, and the end.
        let flags = bytes.len() - 12;
        assert_eq!(bytes[flags], 0);
        bytes[flags] = 0x40;
        let (canvas, _) = drawn(&bytes);
        assert_eq!([0, 7, 8, 15].map(|row| pixel(&canvas, 3, row)), [RED, RED, GREEN, GREEN]);
    }

    #[test]
    fn codes_of_every_width_are_decoded() {
        // A noise of 256 colours fills the table of codes several times.
        let mut state = 1_u32;
        let image = image::RgbaImage::from_fn(4, 5000, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = state.to_le_bytes()[3];
            image::Rgba([value, value / 2, 255 - value, 255])
        });
        let mut bytes = Vec::new();
        image::codecs::gif::GifEncoder::new(&mut bytes).encode_frame(image::Frame::new(image.clone())).unwrap();
        let (canvas, drawn) = drawn(&bytes);
        assert_eq!(drawn, [Drawn::Whole]);
        assert!(canvas.pixels == *image.as_raw());
    }

    #[test]
    fn the_frame_that_is_shown_the_longest_is_screened() {
        let mut bytes = header(SCREEN);
        for number in 0..40 {
            bytes.extend(control(0, if number == 20 { 250 } else { 5 }));
            let digits = [number % 4, number / 4 % 4, number / 16];
            bytes.extend(frame([0, 0, 4, 4], &[&digits[..], &[2; 13]].concat()));
        }
        let views = decoded(&bytes).unwrap().views;
        assert!(views.iter().any(|DecodedView { view, .. }| view.frame == 20));
    }
}
