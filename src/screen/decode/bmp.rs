//! BMP.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;

use super::still::still;
use super::{Context, Undecodable};
use crate::job::Seen;

pub(super) fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    still("BMP", "bmp", BmpDecoder::new(Cursor::new(bytes)), context)
}
