//! What the decoders of all formats give, and what is then prepared for each detector.

/// One decoded frame, not yet turned upright.
pub(super) struct Frame {
    /// `[⌈height / shrunk⌉, ⌈width / shrunk⌉, 3] u8`, red, green, blue.
    pub(super) rgb: Vec<u8>,
    /// The image's pixels across, before it is turned upright.
    pub(super) width: u32,
    /// The image's pixels down, before it is turned upright.
    pub(super) height: u32,
    /// EXIF's code, 1 to 8.
    pub(super) orientation: u8,
    /// The factor, on each axis, by which the decoder shrunk the image; 1: not at all.
    pub(super) shrunk: u32,
}

impl Frame {
    /// A frame that was not shrunk.
    pub(super) fn whole(rgb: Vec<u8>, width: u32, height: u32, orientation: u8) -> Self {
        Self { rgb, width, height, orientation, shrunk: 1 }
    }
}
