//! ICO and CUR (Microsoft's ICONDIR and ICONDIRENTRY): several pictures of different sizes. The largest picture is screened,
//! as browsers show it and no other.

use super::{DecodeContext, Undecodable, bmp, png};
use crate::job::ImageInfo;

const NAME: &str = "ICO";
const HEADER: usize = 6;
const ENTRY: usize = 16;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let damaged = |what: &str| Undecodable::damaged(NAME, &what);
    let directory = Directory::of(bytes).ok_or_else(|| damaged("the file ends within its directory"))?;
    let entry = directory.shown().ok_or_else(|| damaged("it holds no image"))?;
    let picture = bytes.get(entry.offset..).unwrap_or_default();
    let info = if picture.starts_with(b"\x89PNG") {
        png::decode(picture, context)?
    } else {
        bmp::decode_in_icon(picture, context)?
    };
    if (info.width, info.height) != (entry.width, entry.height) {
        context.record_damage(NAME, &"its picture has another size than its directory says");
    }
    Ok(ImageInfo { format: if directory.is_cursor { "cur" } else { "ico" }, ..info })
}

struct Directory<'a> {
    is_cursor: bool,
    entries: &'a [[u8; ENTRY]],
}

/// One picture, as the directory describes it.
struct Entry {
    width: u32,
    height: u32,
    bits: u32,
    offset: usize,
}

impl<'a> Directory<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let [_, _, kind, _, low, high] = *bytes.first_chunk::<HEADER>()?;
        let count = usize::from(u16::from_le_bytes([low, high]));
        let (entries, _) = bytes.get(HEADER..HEADER + count * ENTRY)?.as_chunks();
        Some(Self { is_cursor: kind == 2, entries })
    }

    /// The largest picture; among equally large pictures that with the most bits, as in Chromium.
    fn shown(&self) -> Option<Entry> {
        let entries = self.entries.iter().rev().map(|entry| self.entry(entry));
        entries.max_by_key(|entry| (entry.width * entry.height, entry.bits))
    }

    fn entry(&self, bytes: &[u8; ENTRY]) -> Entry {
        let [width, height, colours, _, _, _, b0, b1, _, _, _, _, o0, o1, o2, o3] = *bytes;
        let pixels = |side: u8| if side == 0 { 256 } else { u32::from(side) };
        // A cursor has the place of its tip there. Old icons have the number of their colours instead.
        let bits = match (self.is_cursor, u32::from(u16::from_le_bytes([b0, b1]))) {
            (false, bits @ 1..) => bits,
            // 0 colours are 256.
            _ => u8::BITS - colours.wrapping_sub(1).leading_zeros(),
        };
        let offset = u32::from_le_bytes([o0, o1, o2, o3]) as usize;
        Entry { width: pixels(width), height: pixels(height), bits, offset }
    }
}

#[cfg(test)]
mod tests {
    use super::super::DecodedImage;
    use super::super::tests::decode_with;
    use super::*;
    use crate::config::DecodeConfig;

    /// A picture, and what the directory says of it: width, height, number of colours, bits.
    type Made = ([u8; 3], u8, Vec<u8>);

    fn icon(kind: u8, pictures: &[Made]) -> Vec<u8> {
        let count = u8::try_from(pictures.len()).unwrap();
        let mut bytes = vec![0, 0, kind, 0, count, 0];
        let mut offset = HEADER + ENTRY * pictures.len();
        for ([width, height, colours], bits, picture) in pictures {
            bytes.extend([*width, *height, *colours, 0, 1, 0, *bits, 0, 0, 0, 0, 0]);
            bytes.extend(u32::try_from(offset).unwrap().to_le_bytes());
            offset += picture.len();
        }
        bytes.extend(pictures.iter().flat_map(|(_, _, picture)| picture));
        bytes
    }

    /// A square bitmap of 32 bits, which begins with the length of its header.
    fn bitmap(side: u8, pixel: [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![40, 0, 0, 0, side, 0, 0, 0, side * 2, 0, 0, 0, 1, 0, 32, 0];
        bytes.resize(40, 0);
        bytes.extend(pixel.repeat(usize::from(side) * usize::from(side)));
        bytes
    }

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(width, height).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn decoded(bytes: &[u8]) -> DecodedImage {
        decode_with(bytes, &DecodeConfig::default()).unwrap()
    }

    const RED: [u8; 4] = [0, 0, 255, 255];

    #[test]
    fn the_largest_picture_counts_and_then_the_number_of_bits() {
        for (pictures, size) in [
            (vec![([8, 8, 0], 32, bitmap(8, RED)), ([9, 9, 0], 1, bitmap(9, RED))], 9),
            (vec![([9, 9, 0], 1, bitmap(9, RED)), ([8, 8, 0], 32, bitmap(8, RED))], 9),
            (vec![([8, 8, 0], 8, bitmap(7, RED)), ([8, 8, 0], 32, bitmap(8, RED))], 8),
            (vec![([8, 8, 0], 8, bitmap(8, RED)), ([8, 8, 0], 8, bitmap(7, RED))], 8),
            (vec![([8, 8, 16], 0, bitmap(8, RED)), ([8, 8, 2], 0, bitmap(7, RED))], 8),
            (vec![([8, 8, 0], 1, bitmap(8, RED)), ([0, 0, 0], 1, png(256, 256))], 256),
        ] {
            let decoded = decoded(&icon(1, &pictures));
            let info = ImageInfo { format: "ico", width: size, height: size, frames: 1 };
            assert_eq!((decoded.info, decoded.damage.as_str()), (info, ""));
        }
    }

    #[test]
    fn a_cursor_has_no_bits_in_its_directory() {
        let pictures = [([8, 8, 2], 9, bitmap(7, RED)), ([8, 8, 0], 1, bitmap(8, RED))];
        let decoded = decoded(&icon(2, &pictures));
        assert_eq!((decoded.info.format, decoded.info.width), ("cur", 8));
    }

    #[test]
    fn a_picture_of_another_size_than_the_directory_says_is_damage() {
        for picture in [bitmap(7, RED), png(7, 8)] {
            let decoded = decoded(&icon(1, &[([8, 8, 0], 32, picture)]));
            assert_eq!(decoded.damage, "ICO: its picture has another size than its directory says");
        }
    }

    #[test]
    fn the_mask_counts_where_there_is_no_alpha() {
        let opaque = bitmap(8, [0, 0, 255, 0]);
        let without_mask = decoded(&icon(1, &[([8, 8, 0], 32, opaque.clone())]));
        assert_eq!(without_mask.damage, "ICO: the file ends before the last row of its mask");
        assert_eq!(without_mask.views.len(), 1);
        let masked = |bits: u8| {
            let mask = [bits, 0, 0, 0].repeat(8);
            decoded(&icon(1, &[([8, 8, 0], 32, [opaque.clone(), mask].concat())]))
        };
        // What is transparent has a view over black, too.
        assert_eq!((masked(0xF0).damage.as_str(), masked(0xF0).views.len()), ("", 2));
        assert_eq!(masked(0).views.len(), 1);
    }

    #[test]
    fn runs_in_an_icon_are_damage() {
        let mut runs = vec![40, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0, 0, 1, 0, 8, 0, 1];
        runs.resize(40, 0);
        runs.extend([0, 0, 255, 0].repeat(256));
        runs.extend([8, 0, 0, 0].repeat(8));
        let decoded = decoded(&icon(1, &[([8, 8, 0], 8, runs)]));
        assert_eq!(decoded.damage, "ICO: its pixels are stored as runs, which viewers read differently");
    }

    #[test]
    fn an_icon_that_ends_early_shows_nothing() {
        let bytes = icon(1, &[([8, 8, 0], 32, bitmap(8, RED))]);
        for (length, reason) in [
            (20, "damaged ICO: the file ends within its directory"),
            (40, "damaged or unsupported ICO: the file ends within its header"),
            (70, "damaged ICO: the file ends before its first row"),
        ] {
            let error = decode_with(&bytes[..length], &DecodeConfig::default()).unwrap_err();
            assert_eq!(error.0, reason);
        }
    }
}
