//! What the decoders of all formats give. `views` makes of it what is prepared for each detector.

use super::colour::ToSrgb;

/// One decoded frame, not yet turned upright.
pub(super) struct Frame {
    /// The number of the frame in the file, counted from 0.
    pub(super) number: u32,
    /// `[⌈height / shrunk⌉, ⌈width / shrunk⌉, channels] u8`.
    pub(super) samples: Vec<u8>,
    /// What the samples are.
    pub(super) channels: Channels,
    /// Whether the colours are multiplied with alpha. They may exceed it: then the pixel glows over its background.
    pub(super) is_multiplied: bool,
    /// The conversion to sRGB, where the file says that its samples stand for other colours.
    pub(super) colour: Option<ToSrgb>,
    /// The image's pixels across, before it is turned upright.
    pub(super) width: u32,
    /// The image's pixels down, before it is turned upright.
    pub(super) height: u32,
    /// EXIF's code, 1 to 8, by which the reference turns the image.
    pub(super) orientation: u8,
    /// The code by which other viewers turn it, where that is another one.
    pub(super) other_orientation: Option<u8>,
    /// The factor, on each axis, by which the decoder shrunk the image; 1: not at all.
    pub(super) shrunk: u32,
}

/// The samples of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Red, green, blue, alpha.
    Rgba,
}

impl Channels {
    pub(super) fn count(self) -> usize {
        match self {
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }
}

impl Frame {
    /// The first frame, of that size, in sRGB, and not shrunk.
    pub(super) fn new(samples: Vec<u8>, channels: Channels, (width, height): (u32, u32)) -> Self {
        Self {
            number: 0,
            samples,
            channels,
            is_multiplied: false,
            colour: None,
            width,
            height,
            orientation: 1,
            other_orientation: None,
            shrunk: 1,
        }
    }
}
