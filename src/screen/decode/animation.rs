//! Animations. Evenly spaced frames are screened, the first and the last among them, since an animation can hide a picture
//! in a single frame.
//!
//! Frames build on each other, so that all frames up to the last screened one are decoded. Therefore the number of pixels
//! over all frames is limited.

use image::Frames;

use super::codec::explain;
use super::frame::Frame;
use super::{DecodeContext, Undecodable, rgb};
use crate::job::ImageInfo;

/// What is known of an animation before a frame is decoded.
pub(super) struct AnimationHeader {
    /// The format for people, such as `GIF`.
    pub(super) name: &'static str,
    /// The format's name in the ledger, such as `gif`.
    pub(super) format: &'static str,
    /// Width and height of the canvas.
    pub(super) size: (u32, u32),
    /// Width and height of the largest frame, or of the canvas where that is larger.
    pub(super) largest: (u32, u32),
    /// The number of frames.
    pub(super) frames: u32,
    /// Pixels over all frames.
    pub(super) pixels: u64,
}

impl AnimationHeader {
    /// The header of an animation whose frames lie within their canvas.
    pub(super) fn within_canvas(name: &'static str, format: &'static str, size: (u32, u32), frames: u32) -> Self {
        let pixels = u64::from(size.0) * u64::from(size.1) * u64::from(frames);
        Self { name, format, size, largest: size, frames, pixels }
    }
}

/// Decodes the frames that are to be screened. The frames are opened after the size was checked.
pub(super) fn decode_animation<'a>(
    header: AnimationHeader,
    open: impl FnOnce() -> Frames<'a>,
    context: &mut DecodeContext<'_>,
) -> Result<ImageInfo, Undecodable> {
    let AnimationHeader { name, format, size: (width, height), largest, frames: count, pixels } = header;
    if count == 0 {
        return Err(Undecodable(format!("damaged {name}: it holds no image")));
    }
    // The decoder's canvas, its frame and the copy that it hands out are RGBA, and then there is the frame in RGB.
    let grant = context.admit(largest.0, largest.1, 4 * 3 + 3)?;
    if pixels > context.limits.max_animation_pixels {
        return Err(Undecodable(format!(
            "over the decode limits: {count} frames of {width}x{height} are {pixels} pixels, the limit is {}",
            context.limits.max_animation_pixels
        )));
    }
    let indices = spread_evenly(count, context.limits.max_frames);
    let mut left = indices.as_slice();
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
    Ok(ImageInfo { format, width, height, frames: count })
}

/// Up to `max` indices out of `0..count`, evenly spaced, the first and the last among them.
pub(super) fn spread_evenly(count: u32, max: u32) -> Vec<u32> {
    if count <= max {
        return (0..count).collect();
    }
    if max == 1 {
        return vec![0];
    }
    let (last, steps) = (u64::from(count - 1), u64::from(max - 1));
    (0..=steps).filter_map(|i| u32::try_from(i * last / steps).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_frame_are_always_among_those_taken() {
        assert_eq!(spread_evenly(3, 4), [0, 1, 2]);
        assert_eq!(spread_evenly(10, 4), [0, 3, 6, 9]);
        assert_eq!(spread_evenly(11, 4), [0, 3, 6, 10]);
        assert_eq!(spread_evenly(u32::MAX, 4).last(), Some(&(u32::MAX - 1)));
        assert_eq!(spread_evenly(9, 1), [0]);
    }
}
