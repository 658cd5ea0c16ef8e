//! The format of an image, by its first bytes. Names and content types are not trusted.

use super::{Undecodable, isobmff};

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
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => match IsoPicture::of(bytes) {
                Some(IsoPicture::Avif) => picture("AVIF"),
                Some(IsoPicture::Heic) => picture("HEIC"),
                Some(IsoPicture::OtherHeif) => picture("HEIF without AV1 or HEVC"),
                None => other("MPEG-4"),
            },
            [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => picture("JPEG 2000"),
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

/// What a file of ISO/IEC 14496-12 shows, by its brands. The major one may be a common one, so that all count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IsoPicture {
    Avif,
    Heic,
    /// Images that are coded in another way, such as JPEG.
    OtherHeif,
}

impl IsoPicture {
    fn of(bytes: &[u8]) -> Option<Self> {
        let brands = isobmff::brands(bytes);
        let has = |names: &[&isobmff::Code]| brands.iter().any(|brand| names.contains(&brand));
        if has(&[b"avif", b"avis"]) {
            Some(Self::Avif)
        } else if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"]) {
            Some(Self::Heic)
        } else if has(&[b"mif1", b"mif2", b"msf1", b"miaf"]) {
            Some(Self::OtherHeif)
        } else {
            None
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileFormat {
    Jpeg,
    Png,
    WebP,
    Gif,
    Ico,
    Bmp,
    Tiff,
    Avif,
    JpegXl,
    #[cfg(feature = "heic")]
    Heic,
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
            // 43 is BigTIFF.
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Self::Tiff,
            // An icon or a cursor, and the number of its pictures.
            [0, 0, 1 | 2, 0, low, high, ..] if *low > 0 || *high > 0 => Self::Ico,
            [0xFF, 0x0A, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => Self::JpegXl,
            _ if IsoPicture::of(bytes) == Some(IsoPicture::Avif) => Self::Avif,
            #[cfg(feature = "heic")]
            _ if IsoPicture::of(bytes) == Some(IsoPicture::Heic) => Self::Heic,
            _ => {
                return Err(match UnsupportedFormat::of(bytes) {
                    #[cfg(not(feature = "heic"))]
                    Some(UnsupportedFormat { name: "HEIC", .. }) => {
                        Undecodable::new("unsupported format: HEIC: this build was made without the cargo feature heic")
                    }
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
            (&b"\0\0\0\x14ftypmif1\0\0\0\0miaf"[..], "HEIF without AV1 or HEVC"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
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
        assert!(has_image_signature(b"\0\0\x02\0\x01\0\x10\x10"));
    }

    #[test]
    fn brands_are_read_from_the_whole_list() {
        for head in [
            &b"\0\0\0\x14ftypavif\0\0\0\0mif1"[..],
            b"\0\0\0\x18ftypmif1\0\0\0\0heicavif",
            b"\0\0\0\x18ftypisom\0\0\0\0iso8avis",
        ] {
            assert_eq!(FileFormat::of(head), Ok(FileFormat::Avif));
        }
        // The minor version is no brand, and what follows the box is no part of it.
        for head in [&b"\0\0\0\x14ftypisomavifiso8"[..], b"\0\0\0\x14ftypisom\0\0\0\0iso8avif"] {
            assert_eq!(FileFormat::of(head).unwrap_err().0, "unsupported format: MPEG-4");
            assert!(!is_of_image_format(head));
        }
    }

    #[test]
    fn heic_is_known_in_every_build() {
        for head in [
            &b"\0\0\0\x14ftypheis\0\0\0\0mif1"[..],
            b"\0\0\0\x18ftypmif1\0\0\0\0miafheic",
            b"\0\0\0\x18ftypisom\0\0\0\0mif1hevc",
        ] {
            assert!(is_of_image_format(head));
            #[cfg(feature = "heic")]
            assert_eq!(FileFormat::of(head), Ok(FileFormat::Heic));
            #[cfg(not(feature = "heic"))]
            assert_eq!(
                FileFormat::of(head).unwrap_err().0,
                "unsupported format: HEIC: this build was made without the cargo feature heic"
            );
        }
    }

    #[test]
    fn jpeg_xl_is_a_codestream_or_a_container() {
        for head in [&b"\0\0\0\x0cJXL \r\n\x87\n"[..], b"\xff\x0a\xfa"] {
            assert_eq!(FileFormat::of(head), Ok(FileFormat::JpegXl));
        }
    }
}
