//! The format of an image, by its first bytes. Names and content types are not trusted.

use super::Undecodable;

/// Whether a file that begins with these bytes may be an image that can be decoded.
#[must_use]
pub(crate) fn has_image_signature(head: &[u8]) -> bool {
    FileFormat::of(head).is_ok()
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
            [b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..] => {
                return Err(Undecodable::new("unsupported format: BigTIFF"));
            }
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => {
                return Err(Undecodable(match brand {
                    b"avif" | b"avis" => "unsupported format: AVIF".into(),
                    b"heic" | b"heix" | b"mif1" | b"msf1" => "unsupported format: HEIC".into(),
                    _ => "unsupported format: MPEG-4".into(),
                }));
            }
            [b'%', b'P', b'D', b'F', ..] => return Err(Undecodable::new("unsupported format: PDF")),
            _ if begins_with_tag(bytes, "<svg") => return Err(Undecodable::new("unsupported format: SVG")),
            _ => return Err(Undecodable::new("not an image: the first bytes are of no known format")),
        })
    }
}

/// Whether a tag stands somewhere in the first kilobyte of a text.
fn begins_with_tag(bytes: &[u8], tag: &str) -> bool {
    let head = &bytes[..bytes.len().min(1024)];
    head.windows(tag.len()).any(|window| window.eq_ignore_ascii_case(tag.as_bytes()))
}
