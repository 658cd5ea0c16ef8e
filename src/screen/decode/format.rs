//! The format of an image, by its first bytes. Names and content types are not trusted.

use super::Undecodable;

/// Whether a file that begins with these bytes may be an image that can be decoded.
#[must_use]
pub(crate) fn has_image_signature(head: &[u8]) -> bool {
    FileFormat::of(head).is_ok()
}

/// Whether a file that begins with these bytes is of an image format, also of one that is not decoded. A kilobyte
/// suffices.
#[must_use]
pub(crate) fn is_of_image_format(head: &[u8]) -> bool {
    has_image_signature(head) || UnsupportedFormat::of(head).is_some_and(|format| format.shows_a_picture)
}

/// A format that is recognised only to be refused by name.
struct UnsupportedFormat {
    name: &'static str,
    /// Whether its files are pictures, or documents or films.
    shows_a_picture: bool,
}

impl UnsupportedFormat {
    fn of(bytes: &[u8]) -> Option<Self> {
        let picture = |name| Some(Self { name, shows_a_picture: true });
        let other = |name| Some(Self { name, shows_a_picture: false });
        match bytes {
            [b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..] => picture("BigTIFF"),
            // ISO/IEC 14496-12: a box `ftyp` with the brand.
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => match bytes.get(8..12).unwrap_or_default() {
                b"avif" | b"avis" => picture("AVIF"),
                b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"hevm" | b"hevs" | b"mif1" | b"msf1" => {
                    picture("HEIC")
                }
                _ => other("MPEG-4"),
            },
            [0xFF, 0x0A, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => picture("JPEG XL"),
            [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => picture("JPEG 2000"),
            // A count of pictures follows.
            [0, 0, 1, 0, count, 0, ..] if *count > 0 => picture("ICO"),
            [0, 0, 2, 0, count, 0, ..] if *count > 0 => picture("CUR"),
            [b'8', b'B', b'P', b'S', ..] => picture("Photoshop"),
            [0x76, 0x2F, 0x31, 0x01, ..] => picture("OpenEXR"),
            [b'q', b'o', b'i', b'f', ..] => picture("QOI"),
            [b'%', b'P', b'D', b'F', ..] => other("PDF"),
            // A browser shows it.
            _ if is_svg(bytes) => picture("SVG"),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileFormat {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

impl FileFormat {
    /// The format, or the reason why a file of this kind is not decoded.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, Undecodable> {
        let brand = bytes.get(8..12).unwrap_or_default();
        Ok(match bytes {
            [] => return Err(Undecodable::new("the file is empty")),
            [0xFF, 0xD8, 0xFF, ..] => Self::Jpeg,
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Self::Png,
            [b'R', b'I', b'F', b'F', ..] if brand == b"WEBP" => Self::WebP,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Self::Gif,
            [b'B', b'M', ..] => Self::Bmp,
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Self::Tiff,
            _ => {
                return Err(match UnsupportedFormat::of(bytes) {
                    Some(UnsupportedFormat { name, .. }) => Undecodable(format!("unsupported format: {name}")),
                    None => Undecodable::new("not an image: the first bytes are of no known format"),
                });
            }
        })
    }
}

/// Whether this is a text that begins with a tag, has the tag `svg` in its first kilobyte, and is no page around it.
fn is_svg(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(1024)];
    let has = |tag: &[u8]| head.windows(tag.len()).any(|window| window.eq_ignore_ascii_case(tag));
    let text = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start();
    text.starts_with(b"<") && has(b"<svg") && !has(b"<html")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_that_are_not_decoded_are_told_from_other_files() {
        for (head, name) in [
            (&b"\0\0\0\x1cftypheis"[..], "HEIC"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
            (b"\xff\x0a\xfa", "JPEG XL"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
            (b"\0\0\x01\0\x02\0\x10\x10", "ICO"),
            (b"8BPS\0\x01", "Photoshop"),
            (b"<?xml?><svg/>", "SVG"),
        ] {
            assert_eq!(FileFormat::of(head).unwrap_err().0, format!("unsupported format: {name}"));
            assert!(is_of_image_format(head), "{name}");
        }
        for head in [
            &b""[..],
            b"hello",
            b"%PDF-1.7",
            b"\0\0\0\x1cftypisom",
            b"\0\x01\0\0\0\x0f",
            b"\x7fELF",
            b"<!doctype html><html><svg>",
        ] {
            assert!(!is_of_image_format(head), "{head:?}");
        }
        assert!(is_of_image_format(b"GIF89a"));
    }
}
