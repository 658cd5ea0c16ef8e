//! What the decoder hands to the sessions.

/// What one detector sees of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// `[height, width, 3] u8`, red, green, blue.
    pub data: Vec<u8>,
}
