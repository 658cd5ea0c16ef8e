//! TIFF.

use std::io::Cursor;

use image::codecs::tiff::TiffDecoder;

use super::still::still;
use super::{Context, Undecodable};
use crate::job::Seen;

/// The first page only. JPEG inside TIFF is refused: its decoder fills in what is missing and says nothing.
pub(super) fn decode(bytes: &[u8], context: &mut Context<'_>) -> Result<Seen, Undecodable> {
    if tiff_may_hold_jpeg(bytes) {
        return Err(Undecodable::new("unsupported kind of TIFF: JPEG compression"));
    }
    still("TIFF", "tiff", TiffDecoder::new(Cursor::new(bytes)), context)
}

/// Whether any compression tag (259) of the first directory says 6 or 7, JPEG old and new, in whatever type it is written
/// (TIFF 6.0, section 2). A directory with two of them is read by its decoder as that likes.
fn tiff_may_hold_jpeg(bytes: &[u8]) -> bool {
    const COMPRESSION: u32 = 259;
    const JPEG: [u32; 2] = [6, 7];
    let little = bytes.first() == Some(&b'I');
    let number = |at: usize, length: usize| -> Option<u32> {
        let digits = bytes.get(at..at.checked_add(length)?)?.iter();
        let add = |sum: u32, byte: &u8| sum << 8 | u32::from(*byte);
        Some(if little { digits.rev().fold(0, add) } else { digits.fold(0, add) })
    };
    let says_jpeg = |entry: usize| {
        // One value, or several somewhere else, which no compression has.
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
        .any(|entry| number(entry, 2) == Some(COMPRESSION) && says_jpeg(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header and one directory: tag, type, count, value as it lies in its four bytes.
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
    fn jpeg_in_a_tiff_is_seen_however_it_is_said() {
        let none = (259, 3, 1, [1, 0, 0, 0]);
        for (little, entry) in [
            (true, (259, 3, 1, [7, 0, 0, 0])),
            (true, (259, 4, 1, [6, 0, 0, 0])),
            (false, (259, 3, 1, [0, 7, 0, 0])),
            (false, (259, 4, 1, [0, 0, 0, 7])),
            (false, (259, 1, 1, [7, 0, 0, 0])),
            (false, (259, 3, 4, [0, 0, 0, 8])),
        ] {
            assert!(tiff_may_hold_jpeg(&directory(little, &[entry])), "{little} {entry:?}");
            assert!(tiff_may_hold_jpeg(&directory(little, &[none, entry])), "the second of two: {entry:?}");
        }
        for (little, value) in [(true, [5, 0x80, 0, 0]), (false, [0x80, 5, 0, 0]), (false, [0, 8, 0, 0])] {
            let bytes = directory(little, &[(256, 3, 1, [7, 7, 7, 7]), (259, 3, 1, value)]);
            assert!(!tiff_may_hold_jpeg(&bytes), "{value:?}");
        }
        for cut in 0..40 {
            let whole = directory(true, &[none, (259, 3, 1, [7, 0, 0, 0])]);
            // Whatever it says, it must not panic.
            tiff_may_hold_jpeg(&whole[..cut.min(whole.len())]);
        }
    }
}
