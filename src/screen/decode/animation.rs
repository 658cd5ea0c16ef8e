//! Animations: evenly spaced frames, the first and the last among them, since animations hide things.
//!
//! Frames build on each other, so all up to the last one wanted are decoded; the number of pixels over the whole
//! animation is therefore limited.

use image::Frames;

use super::codec::explain;
use super::frame::Frame;
use super::{Context, Undecodable, rgb};
use crate::job::Seen;

/// What is known of an animation before it is decoded.
pub(super) struct Animation {
    pub(super) size: (u32, u32),
    /// Of the largest frame, or of the canvas where that is larger.
    pub(super) largest: (u32, u32),
    pub(super) count: u32,
    /// Over all frames.
    pub(super) pixels: u64,
}

impl Animation {
    /// One whose frames lie within their canvas.
    pub(super) fn of(size: (u32, u32), count: u32) -> Self {
        let pixels = u64::from(size.0) * u64::from(size.1) * u64::from(count);
        Self { size, largest: size, count, pixels }
    }
}

/// Decodes the frames that are to be screened.
pub(super) fn frames<'a>(
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
