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

#[cfg(test)]
mod tests {
    //! The pictures were drawn for these tests, 64 × 64 pixels, the left half red (200, 30, 20) and the right half blue
    //! (20, 30, 200), and encoded with pillow-heif 1.8: `Image.save(path, "HEIF", quality=80)`.

    use base64::Engine;

    use super::super::DecodedImage;
    use super::super::shown::{colours, decode_columns, is_near};
    use super::*;
    use crate::config::DecodeConfig;
    use crate::job::Background;

    const STILL: &str = "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA\
         AERAAAEAAQAAAAABegABAAAAAAAAAC4AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA1mlwcnAAAAC3\
         aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAA\
         AwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAABBw\
         aXhpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAADZtZGF0AAAAKigBrwT4QTJp2//GV///+4BvZf2uioYQf5Mjz7/PmV//6uGOd2m2\
         e/rD/g==";

    /// The right half is transparent.
    const ALPHA: &str = "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAkVtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAAAA\
         AERAAAIAAQAAAAACaQABAAAAAAAAAC4AAgAAAAAClwABAAAAAAAAAB0AAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZl\
         AgAAAAACAABodmMxAAAAAA5waXRtAAAAAAABAAABhGlwcnAAAAFeaXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH/\
         /wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNj\
         b2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAABBwaXhpAAAAAAMICAgAAAByaHZjQwEECAAAAJ/4AAAAAB7wAPz8+PgAAA8DYAAB\
         ABdAAQwB//8ECAAAAwCf+AAAAwAAHroCQGEAAQAmQgEBBAgAAAMAn/gAAAMAAB7AggQWW6kkprmwIAAAAwMgAAADACFiAAEAB0QBwXKwIkAAAAAO\
         cGl4aQAAAAABCAAAACdhdXhDAAAAAHVybjptcGVnOmhldmM6MjAxNTphdXhpZDoxAAAAAB5pcG1hAAAAAAAAAAIAAQSBAgMEAAIEhQMGhwAAABpp\
         cmVmAAAAAAAAAA5hdXhsAAIAAQABAAAAU21kYXQAAAAqKAGvBPhBMmnb/8ZX///7gG9l/a6KhhB/kyPPv8+ZX//q4Y53abZ7+sP+AAAAGSgBrgnw\
         ZDyVtP73qF6g/+KiUz85f+3J34A=";

    fn file(base64: &str) -> Vec<u8> {
        base64::engine::general_purpose::STANDARD.decode(base64).unwrap()
    }

    fn decode(bytes: &[u8]) -> Result<DecodedImage, Undecodable> {
        decode_columns(bytes, 8, &DecodeConfig::default())
    }

    #[test]
    fn a_still_image_is_shown_as_another_decoder_shows_it() {
        let image = decode(&file(STILL)).unwrap();
        assert_eq!(image.info, ImageInfo { format: "heic", width: 64, height: 64, frames: 1 });
        assert_eq!((colours(&image, 0).as_str(), image.views.len(), image.damage.as_str()), ("RRRRBBBB", 1, ""));
        let pixels = &image.views[0].pixels[0].data;
        // As pillow-heif decodes it.
        assert!(is_near(&pixels[..3], [201, 30, 20]) && is_near(&pixels[21..], [19, 30, 200]), "{pixels:?}");
    }

    #[test]
    fn alpha_is_shown_over_both_backgrounds() {
        let image = decode(&file(ALPHA)).unwrap();
        assert_eq!((colours(&image, 0).as_str(), image.views[0].view.background), ("RRRRWWWW", Background::White));
        assert_eq!((colours(&image, 1).as_str(), image.views[1].view.background), ("RRRRKKKK", Background::Black));
    }

    #[test]
    fn a_file_that_is_cut_shows_nothing() {
        let whole = file(STILL);
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn limits_count_before_a_pixel_is_decoded() {
        let limits = DecodeConfig { max_width: 63, ..DecodeConfig::default() };
        let error = decode_columns(&file(STILL), 8, &limits).unwrap_err();
        assert!(error.0.starts_with("over the decode limits"), "{error}");
    }
}
