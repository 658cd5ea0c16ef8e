//! WebP, still or animated.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, ImageDecoder};

use super::animation::{AnimationHeader, decode_animation};
use super::codec::explain;
use super::still::decode_still;
use super::{DecodeContext, Undecodable};
use crate::job::ImageInfo;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let frames = count_frames(bytes)?;
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|e| explain("WebP", &e))?;
    if !decoder.has_animation() {
        return decode_still("WebP", "webp", Ok(decoder), context);
    }
    let header = AnimationHeader::within_canvas("WebP", "webp", decoder.dimensions(), frames);
    decode_animation(header, || decoder.into_frames(), context)
}

/// Counts the ANMF chunks, which hold one frame each, and checks that the file is as long as its header states.
fn count_frames(bytes: &[u8]) -> Result<u32, Undecodable> {
    let cut = || Undecodable::new("damaged WebP: the file is shorter than its header states");
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
