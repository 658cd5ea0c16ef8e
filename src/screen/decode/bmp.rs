//! BMP, and the bitmaps in icons, drawn as browsers draw them: rows that are missing are transparent.

mod header;
mod raster;

use super::colour::{ColourModel, ToSrgb};
use super::frame::{Channels, Frame};
use super::{DecodeContext, Undecodable};
use crate::job::ImageInfo;
use header::{BitmapHeader, Container, Storage};
use raster::Raster;

/// The length of the header that comes before the bitmap's.
const FILE_HEADER: usize = 14;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let bitmap = bytes.get(FILE_HEADER..).unwrap_or_default();
    let header = BitmapHeader::of(bitmap, Container::File).map_err(|e| refused("BMP", e))?;
    let pixels_at = bytes[10..].first_chunk().map_or(0, |at| u32::from_le_bytes(*at));
    let pixels = bytes.get(pixels_at as usize..).unwrap_or_default();
    draw(&Bitmap { name: "BMP", container: Container::File, bytes: bitmap, pixels }, &header, context)
}

/// Decodes the bitmap of an icon, which has no header of its file.
pub(super) fn decode_in_icon(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let header = BitmapHeader::of(bytes, Container::Icon).map_err(|e| refused("ICO", e))?;
    let pixels = bytes.get(header.end..).unwrap_or_default();
    draw(&Bitmap { name: "ICO", container: Container::Icon, bytes, pixels }, &header, context)
}

fn refused(name: &str, why: &str) -> Undecodable {
    Undecodable(format!("damaged or unsupported {name}: {why}"))
}

struct Bitmap<'a> {
    name: &'static str,
    container: Container,
    /// The header and what follows it.
    bytes: &'a [u8],
    /// The pixels and what follows them.
    pixels: &'a [u8],
}

fn draw(bitmap: &Bitmap<'_>, header: &BitmapHeader, context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let Bitmap { name, container, bytes, pixels } = *bitmap;
    let size @ (width, height) = (header.width, header.height);
    // The pixels, and their copy over a background.
    let grant = context.admit(width, height, 4 + 3)?;
    let mut raster = Raster::new(header);
    raster.decode(header, pixels);
    if !raster.has_begun() {
        return Err(Undecodable::damaged(name, &"the file ends before its first row"));
    }
    // Many bitmaps have room for alpha and leave it empty. Programs that heed it show nothing, others show a picture.
    let has_alpha = header.has_alpha() && !raster.drop_empty_alpha();
    if !raster.is_whole() {
        context.record_damage(name, &"the file ends before its last row");
    } else if container == Container::Icon && header.storage == Storage::Runs {
        context.record_damage(name, &"its pixels are stored as runs, which viewers read differently");
    } else if container == Container::Icon && !has_alpha && !raster.apply_mask(header, pixels) {
        context.record_damage(name, &"the file ends before the last row of its mask");
    }
    let profile = header.profile.and_then(|(at, length)| bytes.get(at..)?.get(..length));
    let colour = profile.and_then(|profile| ToSrgb::of_icc(profile, ColourModel::Rgb));
    context.take(&mut Frame { colour, ..Frame::new(raster.pixels, Channels::Rgba, size) })?;
    drop(grant);
    Ok(ImageInfo { format: "bmp", width, height, frames: 1 })
}

#[cfg(test)]
mod tests {
    use super::super::shown::{is_near, swapping_profile};
    use super::super::tests::decode_with;
    use super::*;
    use crate::config::DecodeConfig;

    /// A bitmap of 2×2 pixels, and what differs from case to case.
    struct Made<'a> {
        header_size: u32,
        height: i32,
        bits: u16,
        compression: u32,
        colours_used: u32,
        /// What the header has behind its first 40 bytes.
        masks: [u32; 4],
        palette: &'a [[u8; 4]],
        pixels: &'a [u8],
    }

    const MADE: Made<'static> = Made {
        header_size: 40,
        height: 2,
        bits: 24,
        compression: 0,
        colours_used: 0,
        masks: [0; 4],
        palette: &[],
        pixels: &[],
    };

    impl Made<'_> {
        fn bytes(&self) -> Vec<u8> {
            let mut header: Vec<u8> = [self.header_size, 2].iter().flat_map(|value| value.to_le_bytes()).collect();
            header.extend(self.height.to_le_bytes());
            // The number of planes should be 1. Browsers do not look at it.
            header.extend([7, 0]);
            header.extend(self.bits.to_le_bytes());
            header.extend(self.compression.to_le_bytes());
            header.extend([0; 12]);
            header.extend(self.colours_used.to_le_bytes());
            header.extend([0; 4]);
            header.extend(self.masks.iter().flat_map(|mask| mask.to_le_bytes()));
            header.resize(self.header_size as usize, 0);
            header.extend(self.palette.as_flattened());
            let mut bytes = b"BM\0\0\0\0\0\0\0\0".to_vec();
            bytes.extend(u32::try_from(FILE_HEADER + header.len()).unwrap().to_le_bytes());
            bytes.extend(header);
            bytes.extend(self.pixels);
            bytes
        }

        /// The pixels, the upper row first, and whether they are whole.
        fn drawn(&self) -> (Vec<[u8; 4]>, bool) {
            let bytes = self.bytes();
            let header = BitmapHeader::of(&bytes[FILE_HEADER..], Container::File).unwrap();
            let mut raster = Raster::new(&header);
            raster.decode(&header, &bytes[bytes.len() - self.pixels.len()..]);
            if header.has_alpha() {
                raster.drop_empty_alpha();
            }
            let is_whole = raster.is_whole();
            (raster.pixels.as_chunks().0.to_vec(), is_whole)
        }
    }

    const NOTHING: [u8; 4] = [0; 4];
    const BLACK: [u8; 4] = [0, 0, 0, 255];
    const RED: [u8; 4] = [255, 0, 0, 255];
    const GREEN: [u8; 4] = [0, 255, 0, 255];
    /// Black, red and green.
    const PALETTE: [[u8; 4]; 3] = [[0, 0, 0, 0], [0, 0, 255, 0], [0, 255, 0, 0]];

    #[test]
    fn rows_come_from_the_bottom_and_those_that_are_missing_are_transparent_and_damage() {
        let made = Made { pixels: &[0, 0, 255, 0, 255, 0, 9, 9, 1, 2], ..MADE };
        assert_eq!(made.drawn(), (vec![NOTHING, NOTHING, RED, GREEN], false));
        assert_eq!(Made { height: -2, ..made }.drawn(), (vec![RED, GREEN, NOTHING, NOTHING], false));
        let decode = |made: Made<'_>| decode_with(&made.bytes(), &DecodeConfig::default());
        let cut = decode(Made { pixels: &[0; 8], ..MADE }).unwrap();
        assert_eq!(cut.damage, "BMP: the file ends before its last row");
        assert_eq!(decode(Made { pixels: &[0; 16], ..MADE }).unwrap().damage, "");
        let nothing = decode(Made { pixels: &[0; 7], ..MADE }).unwrap_err();
        assert_eq!(nothing.0, "damaged BMP: the file ends before its first row");
    }

    #[test]
    fn an_index_beyond_the_palette_is_black_however_many_colours_are_said_to_be_used() {
        let palette = [[0, 255, 0, 0]; 256];
        for (colours_used, palette) in [(2, &palette[..2]), (0, &palette), (300, &palette), (u32::MAX, &palette)] {
            let made = Made { bits: 8, colours_used, palette, pixels: &[0, 1, 0, 0, 2, 1, 0, 0], ..MADE };
            let beyond = if colours_used == 2 { BLACK } else { GREEN };
            assert_eq!(made.drawn(), (vec![beyond, GREEN, GREEN, GREEN], true), "{colours_used}");
        }
    }

    #[test]
    fn alpha_counts_where_the_header_has_a_mask_for_it() {
        let pixels = [0, 0, 255, 128, 0, 255, 0, 0, 0, 0, 255, 255, 0, 255, 0, 255];
        let with_alpha = vec![RED, GREEN, [255, 0, 0, 128], [0, 255, 0, 0]];
        let without = vec![RED, GREEN, RED, GREEN];
        let masks = [0xFF_0000, 0xFF00, 0xFF, 0xFF00_0000];
        for (header_size, compression, expected) in [
            (40, 0, &without),
            (56, 0, &without),
            (108, 0, &with_alpha),
            (124, 0, &with_alpha),
            (52, 3, &without),
            (56, 3, &with_alpha),
            (124, 3, &with_alpha),
        ] {
            let made = Made { header_size, bits: 32, compression, masks, pixels: &pixels, ..MADE };
            assert_eq!(made.drawn(), (expected.clone(), true), "{header_size} {compression}");
        }
    }

    #[test]
    fn alpha_that_is_empty_does_not_hide_the_picture() {
        let masks = [0xFF_0000, 0xFF00, 0xFF, 0xFF00_0000];
        let made = Made { header_size: 124, bits: 32, masks, pixels: &[0, 0, 255, 0].repeat(4), ..MADE };
        assert_eq!(made.drawn(), (vec![RED; 4], true));
        let decoded = decode_with(&made.bytes(), &DecodeConfig::default()).unwrap();
        assert_eq!((decoded.views.len(), &decoded.views[0].pixels[0].data[..3]), (1, &RED[..3]));
    }

    #[test]
    fn a_profile_in_the_file_is_heeded_and_one_in_another_file_is_not() {
        let mut bytes = Made { header_size: 124, pixels: &[0, 0, 255, 0, 0, 255, 0, 0].repeat(2), ..MADE }.bytes();
        let profile = swapping_profile(moxcms::DataColorSpace::Rgb);
        let place =
            [bytes.len() - FILE_HEADER, profile.len()].map(|number| u32::try_from(number).unwrap().to_le_bytes());
        bytes[FILE_HEADER + 112..][..8].copy_from_slice(place.as_flattened());
        bytes.extend(profile);
        // The numbers of `MBED` and `LINK`.
        for (kind, shown) in [(b"DEBM", [0, 0, 255]), (b"KNIL", [255, 0, 0])] {
            bytes[FILE_HEADER + 56..][..4].copy_from_slice(kind);
            let decoded = decode_with(&bytes, &DecodeConfig::default()).unwrap();
            assert_eq!(decoded.damage, "");
            assert!(is_near(&decoded.views[0].pixels[0].data[..3], shown), "{shown:?}");
        }
    }

    #[test]
    fn masks_take_the_parts_of_a_pixel() {
        let pixels = [0xFF, 0x7F, 0x1F, 0, 0xE0, 0x03, 0, 0x40];
        let plain = Made { bits: 16, pixels: &pixels, ..MADE };
        assert_eq!(plain.drawn().0, [[0, 255, 0, 255], [132, 0, 0, 255], [255, 255, 255, 255], [0, 0, 255, 255]]);
        let masks = [0xF800, 0x7E0, 0x1F, 0];
        let made = Made { header_size: 56, bits: 16, compression: 3, masks, pixels: &pixels, ..MADE };
        assert_eq!(made.drawn().0[2], [123, 255, 255, 255]);
        let gap = Made { masks: [0xA000, 0x7E0, 0x1F, 0], ..made };
        let error = decode_with(&gap.bytes(), &DecodeConfig::default()).unwrap_err();
        assert_eq!(error.0, "damaged or unsupported BMP: its masks have gaps, or are wider than a pixel");
    }

    #[test]
    fn runs_leave_black_what_they_skip_and_drop_what_does_not_fit() {
        let runs = |pixels: &[u8], height: i32| {
            Made { bits: 8, compression: 1, height, colours_used: 3, palette: &PALETTE, pixels, ..MADE }.drawn()
        };
        // The lower row comes first. Its end may be missing with the image's.
        assert_eq!(runs(&[9, 1, 0, 0, 2, 2, 0, 0], 2), (vec![GREEN, GREEN, RED, RED], true));
        assert_eq!(runs(&[2, 1, 0, 0, 2, 2, 0, 0], -2), (vec![RED, RED, GREEN, GREEN], true));
        assert_eq!(runs(&[1, 1, 0, 1], 2), (vec![BLACK, BLACK, RED, BLACK], true));
        assert_eq!(runs(&[0, 2, 1, 1, 1, 2, 0, 1], 2), (vec![BLACK, GREEN, BLACK, BLACK], true));
        assert_eq!(runs(&[0, 3, 1, 2, 1, 0, 0, 0], 2), (vec![NOTHING, NOTHING, RED, GREEN], false));
        assert_eq!(runs(&[0, 2, 9, 200], 2), (vec![BLACK; 4], true));
    }

    #[test]
    fn runs_of_other_kinds_are_decoded() {
        let four =
            Made { bits: 4, compression: 2, colours_used: 3, palette: &PALETTE, pixels: &[2, 0x12, 0, 1], ..MADE };
        assert_eq!(four.drawn(), (vec![BLACK, BLACK, RED, GREEN], true));
        let os2 = Made { header_size: 64, compression: 4, pixels: &[1, 0, 0, 255, 1, 0, 255, 0, 0, 1], ..MADE };
        assert_eq!(os2.drawn(), (vec![BLACK, BLACK, RED, GREEN], true));
    }

    #[test]
    fn the_first_header_of_os2_is_decoded() {
        let mut bytes = b"BM\0\0\0\0\0\0\0\0\x20\0\0\0\x0C\0\0\0\x02\0\x01\0\x01\0\x01\0".to_vec();
        bytes.extend([0, 0, 255, 0, 255, 0, 0x40, 0, 0, 0]);
        let decoded = decode_with(&bytes, &DecodeConfig::default()).unwrap();
        assert_eq!((decoded.info.width, decoded.info.height, decoded.damage.as_str()), (2, 1, ""));
    }

    #[test]
    fn what_no_browser_shows_is_undecodable() {
        for (made, reason) in [
            (Made { header_size: 80, ..MADE }, "its header has an unknown size"),
            (Made { height: 0, ..MADE }, "it has a size that is not shown"),
            (Made { compression: 4, ..MADE }, "its compression and its bits per pixel do not go together"),
            (Made { bits: 8, ..MADE }, "the file ends within its header"),
        ] {
            let error = decode_with(&made.bytes(), &DecodeConfig::default()).unwrap_err();
            assert_eq!(error.0, format!("damaged or unsupported BMP: {reason}"));
        }
    }
}
