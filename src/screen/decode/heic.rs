//! HEIC: HEVC images in a HEIF file. Only in builds with the feature `heic`, because of the patents on HEVC.

use super::frame::{Channels, Frame};
use super::isobmff::{ColourProperties, Items};
use super::{DecodeContext, Undecodable};
use crate::job::ImageInfo;

/// The decoder's planes of 16 bits, the image as RGBA, a turned copy of it, and the copy over a background.
const BYTES_PER_PIXEL: u64 = 3 * 2 + 4 + 4 + 3;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let no_list = || Undecodable::new("damaged HEIC: it has no valid list of images");
    let items = Items::of(bytes).ok_or_else(no_list)?;
    let item = items.item(items.primary).ok_or_else(no_list)?;
    let (width, height) = item.size().ok_or_else(|| Undecodable::new("damaged HEIC: its image has no size"))?;
    // HEVC codes whole blocks of at most 64 × 64 (H.265, 7.4.3.2.1), and the file says what is shown of them. Every image in
    // the file, such as a tile, may have as many pixels as a tile of 512 × 512 or as the image.
    let [coded_width, coded_height] = [width, height].map(|side| u64::from(side).next_multiple_of(64));
    let max_pixels = coded_width.saturating_mul(coded_height).max(512 * 512);
    let pixels = (u64::from(width) * u64::from(height)).max(1);
    let hold = context.admit(width, height, max_pixels.saturating_mul(BYTES_PER_PIXEL).div_ceil(pixels))?;
    let options = heifer::Options { max_threads: 1, max_pixels };
    let image = heifer::decode_rgba8(bytes, &options).map_err(|e| Undecodable::damaged("HEIC", &e))?;
    // It is upright.
    let (width, height) = (image.width, image.height);
    let mut frame = Frame::new(image.data, Channels::Rgba, (width, height));
    // A grid without colours has those of its first tile.
    let tile = items.referred(items.primary, b"dimg").first().and_then(|id| items.item(*id));
    let mut colours = [Some(item), tile].into_iter().flatten().map(|item| ColourProperties::of(&item.properties));
    frame.colour = colours.find(|colours| !colours.is_empty()).and_then(|colours| colours.conversion(None));
    context.take(&mut frame)?;
    drop(hold);
    Ok(ImageInfo { format: "heic", width, height, frames: 1 })
}
