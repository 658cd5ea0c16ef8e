//! TIFF.

use std::io::Cursor;

use image::codecs::tiff::TiffDecoder;

use super::still::decode_still;
use super::{DecodeContext, Undecodable};
use crate::job::ImageInfo;

/// Decodes the first page. JPEG inside TIFF is refused: its decoder fills in missing data and reports no error.
pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    if may_hold_jpeg(bytes) {
        return Err(Undecodable::new("unsupported kind of TIFF: JPEG compression"));
    }
    decode_still("TIFF", "tiff", TiffDecoder::new(Cursor::new(bytes)), context)
}

/// Whether any compression tag (259) of the first directory is 6 or 7, old and new JPEG, whatever type its value has
/// (TIFF 6.0, section 2). Which of two such tags a decoder takes is not specified, so both count.
fn may_hold_jpeg(bytes: &[u8]) -> bool {
    const COMPRESSION: u32 = 259;
    const JPEG: [u32; 2] = [6, 7];
    let little = bytes.first() == Some(&b'I');
    let number = |at: usize, length: usize| -> Option<u32> {
        let digits = bytes.get(at..at.checked_add(length)?)?.iter();
        let add = |sum: u32, byte: &u8| sum << 8 | u32::from(*byte);
        Some(if little { digits.rev().fold(0, add) } else { digits.fold(0, add) })
    };
    let is_jpeg = |entry: usize| {
        // Several values would be stored somewhere else. No compression tag has several, so they count as JPEG.
        let values = [1, 2, 4].into_iter().filter_map(|length| number(entry + 8, length));
        number(entry + 4, 4) != Some(1) || values.into_iter().any(|value| JPEG.contains(&value))
    };
    let Some((directory, entries)) = number(4, 4)
        .and_then(|at| usize::try_from(at).ok())
        .and_then(|directory| Some((directory, number(directory, 2)? as usize)))
    else {
        return false;
    };
    (0..entries)
        .map(|i| directory + 2 + 12 * i)
        .take_while(|entry| *entry < bytes.len())
        .any(|entry| number(entry, 2) == Some(COMPRESSION) && is_jpeg(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header and one directory of tag, type, count, and the four bytes of the value.
    fn directory(little: bool, entries: &[(u16, u16, u32, [u8; 4])]) -> Vec<u8> {
        let short = |n: u16| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let long = |n: u32| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let mut bytes = if little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        bytes.extend(long(8));
        bytes.extend(short(u16::try_from(entries.len()).unwrap()));
        for (tag, kind, count, value) in entries {
            bytes.extend(short(*tag).into_iter().chain(short(*kind)).chain(long(*count)).chain(*value));
        }
        bytes
    }

    #[test]
    fn jpeg_in_a_tiff_is_found_in_every_type_of_its_tag() {
        let none = (259, 3, 1, [1, 0, 0, 0]);
        for (little, entry) in [
            (true, (259, 3, 1, [7, 0, 0, 0])),
            (true, (259, 4, 1, [6, 0, 0, 0])),
            (false, (259, 3, 1, [0, 7, 0, 0])),
            (false, (259, 4, 1, [0, 0, 0, 7])),
            (false, (259, 1, 1, [7, 0, 0, 0])),
            (false, (259, 3, 4, [0, 0, 0, 8])),
        ] {
            assert!(may_hold_jpeg(&directory(little, &[entry])), "{little} {entry:?}");
            assert!(may_hold_jpeg(&directory(little, &[none, entry])), "the second of two: {entry:?}");
        }
        for (little, value) in [(true, [5, 0x80, 0, 0]), (false, [0x80, 5, 0, 0]), (false, [0, 8, 0, 0])] {
            let bytes = directory(little, &[(256, 3, 1, [7, 7, 7, 7]), (259, 3, 1, value)]);
            assert!(!may_hold_jpeg(&bytes), "{value:?}");
        }
        for cut in 0..40 {
            let whole = directory(true, &[none, (259, 3, 1, [7, 0, 0, 0])]);
            // The answer does not matter, but it must not panic.
            may_hold_jpeg(&whole[..cut.min(whole.len())]);
        }
    }
}
