//! GIF, WebP and animated PNG: evenly spaced frames, the first and the last among them, since animations hide things.
//!
//! Frames build on each other, so all up to the last one wanted are decoded; the number of pixels over the whole
//! animation is therefore limited.

use std::io::Cursor;

use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{AnimationDecoder, Frames, ImageDecoder};

use super::still::{explain, header_limits, limits, still};
use super::{Context, Frame, Undecodable, rgb};
use crate::job::Seen;

pub(super) fn gif(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    let layout = GifLayout::of(bytes)?;
    // A frame may be larger than the screen it is drawn on, and the decoder would allocate all of it.
    let grant = context.admit(layout.width, layout.height, 5)?;
    let decoder = GifDecoder::new(Cursor::new(bytes)).map_err(|e| explain("GIF", &e))?;
    drop(grant);
    if layout.frames == 1 {
        return still("GIF", "gif", Ok(decoder), context);
    }
    let (size, largest) = (decoder.dimensions(), (layout.width, layout.height));
    let animation = Animation { size, largest, count: layout.frames, pixels: layout.pixels };
    frames("GIF", "gif", animation, || decoder.into_frames(), context)
}

pub(super) fn webp(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    let count = count_webp_frames(bytes)?;
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|e| explain("WebP", &e))?;
    if !decoder.has_animation() {
        return still("WebP", "webp", Ok(decoder), context);
    }
    let size = decoder.dimensions();
    frames("WebP", "webp", Animation::of(size, count), || decoder.into_frames(), context)
}

pub(super) fn apng(bytes: &[u8], count: u32, context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    let mut decoder = PngDecoder::with_limits(Cursor::new(bytes), header_limits()).map_err(|e| explain("PNG", &e))?;
    let size = decoder.dimensions();
    decoder.set_limits(limits(context)).map_err(|e| explain("PNG", &e))?;
    let decoder = decoder.apng().map_err(|e| explain("PNG", &e))?;
    frames("PNG", "png", Animation::of(size, count), || decoder.into_frames(), context)
}

struct Animation {
    size: (u32, u32),
    /// Of the largest frame, or of the canvas where that is larger.
    largest: (u32, u32),
    count: u32,
    /// Over all frames.
    pixels: u64,
}

impl Animation {
    /// One whose frames lie within their canvas.
    fn of(size: (u32, u32), count: u32) -> Self {
        let pixels = u64::from(size.0) * u64::from(size.1) * u64::from(count);
        Self { size, largest: size, count, pixels }
    }
}

fn frames<'a>(
    name: &str,
    format: &'static str,
    animation: Animation,
    open: impl FnOnce() -> Frames<'a>,
    context: &mut Context<'_>,
) -> Result<Seen, Undecodable> {
    let Animation { size: (width, height), largest, count, pixels } = animation;
    if count == 0 {
        return Err(Undecodable(format!("damaged {name}: it holds no image")));
    }
    // The decoder's canvas and frame, RGBA, the copy handed out, and its RGB.
    let grant = context.admit(largest.0, largest.1, 4 * 3 + 3)?;
    if pixels > context.limits.max_animation_pixels {
        return Err(Undecodable(format!(
            "over the decode limits: {count} frames of {width}x{height} are {pixels} pixels, the limit is {}",
            context.limits.max_animation_pixels
        )));
    }
    let wanted = spread(count, context.limits.max_frames);
    let mut left = wanted.as_slice();
    for (i, frame) in (0u32..).zip(open()) {
        let Some((first, rest)) = left.split_first() else { break };
        let frame = frame.map_err(|e| explain(name, &e))?;
        if i == *first {
            let canvas = frame.into_buffer();
            let (width, height) = canvas.dimensions();
            let rgb = rgb::over_white(canvas.as_raw());
            (context.take)(&Frame::whole(rgb, width, height, 1))?;
            left = rest;
        }
    }
    if !left.is_empty() {
        return Err(Undecodable(format!("damaged {name}: it ends before its last frame")));
    }
    drop(grant);
    Ok(Seen { format, width, height, frames: count })
}

/// Up to `most` indices out of `0..count`, evenly spaced, the first and the last among them.
fn spread(count: u32, most: u32) -> Vec<u32> {
    if count <= most {
        return (0..count).collect();
    }
    if most == 1 {
        return vec![0];
    }
    let (last, steps) = (u64::from(count - 1), u64::from(most - 1));
    (0..=steps).filter_map(|i| u32::try_from(i * last / steps).ok()).collect()
}

/// What the blocks of a GIF say before it is decoded.
struct GifLayout {
    frames: u32,
    /// Of the screen and every frame.
    width: u32,
    height: u32,
    /// Over all frames, each as large as the screen at least.
    pixels: u64,
}

impl GifLayout {
    /// Walks the blocks (CompuServe GIF89a, §17–27) to the trailer.
    fn of(bytes: &[u8]) -> Result<Self, Undecodable> {
        match Self::walk(bytes) {
            None => Err(Undecodable::new("damaged GIF: the file ends before its end marker")),
            Some(layout) if layout.frames == 0 => Err(Undecodable::new("damaged GIF: it holds no image")),
            Some(layout) => Ok(layout),
        }
    }

    fn walk(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
        let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3usize << ((flags & 7) + 1) };
        let skip_blocks = |mut at: usize| loop {
            match *bytes.get(at)? {
                0 => return Some(at + 1),
                length => at += 1 + usize::from(length),
            }
        };
        let screen = u64::from(word(6)?) * u64::from(word(8)?);
        let mut layout = Self { frames: 0, width: word(6)?, height: word(8)?, pixels: 0 };
        let mut at = 13 + table(*bytes.get(10)?);
        loop {
            match *bytes.get(at)? {
                0x21 => at = skip_blocks(at + 2)?,
                0x2C => {
                    let (width, height) = (word(at + 5)?, word(at + 7)?);
                    layout.frames += 1;
                    layout.width = layout.width.max(width);
                    layout.height = layout.height.max(height);
                    layout.pixels += screen.max(u64::from(width) * u64::from(height));
                    at = skip_blocks(at + 11 + table(*bytes.get(at + 9)?))?;
                }
                0x3B => return Some(layout),
                _ => return None,
            }
        }
    }
}

/// Counts the ANMF chunks of a WebP, and checks that the file is as long as its header says.
fn count_webp_frames(bytes: &[u8]) -> Result<u32, Undecodable> {
    let cut = || Undecodable::new("damaged WebP: the file is shorter than its header says");
    let word = |at: usize| -> Option<usize> {
        let four = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes([four[0], four[1], four[2], four[3]]) as usize)
    };
    let end = word(4).ok_or_else(cut)?.saturating_add(8);
    if end > bytes.len() {
        return Err(cut());
    }
    let (mut at, mut frames) = (12, 0);
    while at + 8 <= end {
        let length = word(at + 4).ok_or_else(cut)?;
        frames += u32::from(&bytes[at..at + 4] == b"ANMF");
        at = at.saturating_add(8 + length + length % 2);
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_frame_are_always_among_those_taken() {
        assert_eq!(spread(3, 4), [0, 1, 2]);
        assert_eq!(spread(10, 4), [0, 3, 6, 9]);
        assert_eq!(spread(11, 4), [0, 3, 6, 10]);
        assert_eq!(spread(u32::MAX, 4).last(), Some(&(u32::MAX - 1)));
        assert_eq!(spread(9, 1), [0]);
    }
}
