//! PNG, still or animated.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::{AnimationDecoder, ImageDecoder};

use super::animation::{AnimationHeader, decode_animation};
use super::codec::{decoder_limits, explain, header_limits};
use super::still::decode_still;
use super::{DecodeContext, Undecodable};
use crate::job::ImageInfo;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let layout = PngLayout::of(bytes)?;
    if layout.frames > 1 {
        return decode_apng(bytes, layout.frames, context);
    }
    decode_still("PNG", "png", PngDecoder::with_limits(Cursor::new(bytes), header_limits()), context)
}

fn decode_apng(bytes: &[u8], frames: u32, context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let mut decoder = PngDecoder::with_limits(Cursor::new(bytes), header_limits()).map_err(|e| explain("PNG", &e))?;
    let size = decoder.dimensions();
    decoder.set_limits(decoder_limits(context)).map_err(|e| explain("PNG", &e))?;
    let decoder = decoder.apng().map_err(|e| explain("PNG", &e))?;
    let header = AnimationHeader::within_canvas("PNG", "png", size, frames);
    decode_animation(header, || decoder.into_frames(), context)
}

/// What a PNG's chunks contain, read before it is decoded.
struct PngLayout {
    frames: u32,
}

impl PngLayout {
    /// Walks the chunks up to IEND. A file without it was cut, even where all pixels happen to be there.
    fn of(bytes: &[u8]) -> Result<Self, Undecodable> {
        let mut at = 8;
        let mut frames = 1;
        loop {
            let cut = || Undecodable::new("damaged PNG: the file ends before its end marker");
            let head = bytes.get(at..at + 8).ok_or_else(cut)?;
            let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let body = bytes.get(at + 8..(at + 8).saturating_add(length)).ok_or_else(cut)?;
            match &head[4..8] {
                // A checksum follows the end marker.
                b"IEND" if bytes.len() >= at + 12 => return Ok(Self { frames }),
                b"acTL" if body.len() >= 4 => frames = u32::from_be_bytes([body[0], body[1], body[2], body[3]]),
                _ => {}
            }
            at += 12 + length;
        }
    }
}
