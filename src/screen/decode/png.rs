//! PNG, still or animated.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::{AnimationDecoder, ImageDecoder};

use super::animation::{Animation, frames};
use super::codec::{explain, header_limits, limits};
use super::still::still;
use super::{Context, Undecodable};
use crate::job::Seen;

pub(super) fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    let layout = PngLayout::of(bytes)?;
    if layout.frames > 1 {
        return apng(bytes, layout.frames, context);
    }
    still("PNG", "png", PngDecoder::with_limits(Cursor::new(bytes), header_limits()), context)
}

fn apng(bytes: &[u8], count: u32, context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    let mut decoder = PngDecoder::with_limits(Cursor::new(bytes), header_limits()).map_err(|e| explain("PNG", &e))?;
    let size = decoder.dimensions();
    decoder.set_limits(limits(context)).map_err(|e| explain("PNG", &e))?;
    let decoder = decoder.apng().map_err(|e| explain("PNG", &e))?;
    frames("PNG", "png", Animation::of(size, count), || decoder.into_frames(), context)
}

/// What the chunks of a PNG say before it is decoded.
struct PngLayout {
    frames: u32,
}

impl PngLayout {
    /// Walks the chunks up to IEND; a file without it was cut, even if all pixels happen to be there.
    fn of(bytes: &[u8]) -> Result<Self, Undecodable> {
        let mut at = 8;
        let mut frames = 1;
        loop {
            let cut = || Undecodable::new("damaged PNG: the file ends before its end marker");
            let head = bytes.get(at..at + 8).ok_or_else(cut)?;
            let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let body = bytes.get(at + 8..(at + 8).saturating_add(length)).ok_or_else(cut)?;
            match &head[4..8] {
                // The end marker has its checksum behind it.
                b"IEND" if bytes.len() >= at + 12 => return Ok(Self { frames }),
                b"acTL" if body.len() >= 4 => frames = u32::from_be_bytes([body[0], body[1], body[2], body[3]]),
                _ => {}
            }
            at += 12 + length;
        }
    }
}
