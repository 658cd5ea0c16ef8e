//! BMP.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;

use super::still::decode_still;
use super::{DecodeContext, Undecodable};
use crate::job::ImageInfo;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    decode_still("BMP", "bmp", BmpDecoder::new(Cursor::new(bytes)), context)
}
