//! GIF, still or animated.

use std::io::Cursor;

use image::codecs::gif::GifDecoder;
use image::{AnimationDecoder, ImageDecoder};

use super::animation::{AnimationHeader, decode_animation};
use super::codec::explain;
use super::still::decode_still;
use super::{DecodeContext, Undecodable};
use crate::job::ImageInfo;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let layout = GifLayout::of(bytes)?;
    // A frame may be larger than the screen that it is drawn on, and the decoder would allocate all of it.
    let grant = context.admit(layout.width, layout.height, 5)?;
    let decoder = GifDecoder::new(Cursor::new(bytes)).map_err(|e| explain("GIF", &e))?;
    drop(grant);
    if layout.frames == 1 {
        return decode_still("GIF", "gif", Ok(decoder), context);
    }
    let header = AnimationHeader {
        name: "GIF",
        format: "gif",
        size: decoder.dimensions(),
        largest: (layout.width, layout.height),
        frames: layout.frames,
        pixels: layout.pixels,
    };
    decode_animation(header, || decoder.into_frames(), context)
}

/// What a GIF's blocks contain, read before it is decoded.
struct GifLayout {
    frames: u32,
    /// The largest width of the screen and all frames.
    width: u32,
    /// The largest height of the screen and all frames.
    height: u32,
    /// Pixels over all frames, each counted as at least as large as the screen.
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
