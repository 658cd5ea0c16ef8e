//! GIF, still or animated.

use std::io::Cursor;

use image::codecs::gif::GifDecoder;
use image::{AnimationDecoder, ImageDecoder};

use super::animation::{Animation, frames};
use super::codec::explain;
use super::still::still;
use super::{Context, Undecodable};
use crate::job::Seen;

pub(super) fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
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
