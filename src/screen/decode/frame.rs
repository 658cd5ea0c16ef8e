//! What the decoders of all formats give, and `prepare` takes.

/// One decoded frame, not yet turned upright.
pub(super) struct Frame {
    /// `[⌈height / shrunk⌉, ⌈width / shrunk⌉, 3] u8`, red, green, blue.
    pub(super) rgb: Vec<u8>,
    /// The image's pixels across, as it lies.
    pub(super) width: u32,
    /// The image's pixels down, as it lies.
    pub(super) height: u32,
    /// EXIF's code, 1 to 8.
    pub(super) orientation: u8,
    /// How many of the image's pixels, on each axis, its decoder made one of.
    pub(super) shrunk: u32,
}

impl Frame {
    /// One that was not shrunk.
    pub(super) fn whole(rgb: Vec<u8>, width: u32, height: u32, orientation: u8) -> Self {
        Self { rgb, width, height, orientation, shrunk: 1 }
    }
}
