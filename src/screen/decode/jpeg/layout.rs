//! What the segments before a JPEG's first scan say.

use image::metadata::Orientation;

use super::segments::{Segment, SegmentReader, marker, starts_frame};

/// Scans that every image may have, and the pixels that all scans together may go over. An encoder writes about ten scans.
/// Each costs a pass over the whole image, about a nanosecond a pixel where it holds nothing.
const MAX_SCANS: u32 = 500;
const MAX_SCANNED_PIXELS: u64 = 2_000_000_000;

/// What the segments before the first scan contain.
pub(super) struct JpegLayout<'a> {
    /// EXIF's code, 1 to 8.
    pub(super) orientation: u8,
    frame: Option<Segment<'a>>,
    /// How many components the first scan has.
    scanned: u8,
    profile_parts: Vec<&'a [u8]>,
}

impl<'a> JpegLayout<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        let mut layout = Self { orientation: 1, frame: None, scanned: 0, profile_parts: Vec::new() };
        let mut reader = SegmentReader::new(bytes);
        let mut has_exif = false;
        // A walk that ends early leaves the defaults, and the decoder will report the damage.
        while let Ok(segment) = reader.next() {
            match segment.marker {
                marker::SOS => {
                    layout.scanned = segment.body.first().copied().unwrap_or(0);
                    break;
                }
                marker::EOI => break,
                // The first block counts, also where it has no orientation. Browsers do not read the byte behind the first
                // zero.
                marker::APP1 if !has_exif && segment.body.starts_with(b"Exif\0") => {
                    has_exif = true;
                    let chunk = segment.body.get(6..).and_then(Orientation::from_exif_chunk);
                    layout.orientation = chunk.map_or(1, Orientation::to_exif);
                }
                marker::APP2 => layout.profile_parts.extend(segment.body.strip_prefix(b"ICC_PROFILE\0")),
                code if starts_frame(code) => layout.frame = layout.frame.or(Some(segment)),
                _ => {}
            }
        }
        layout
    }

    /// Whether the first scan holds only some of the components, so that all coefficients are kept until the last scan.
    pub(super) fn has_several_scans(&self) -> bool {
        self.frame.and_then(|frame| frame.body.get(5).copied()).is_some_and(|components| self.scanned < components)
    }

    /// Why no decoder here and no browser decodes it, by its frame header (T.81, table B.1).
    pub(super) fn unsupported_kind(&self) -> Option<String> {
        let frame = self.frame?;
        let kind = match frame.marker {
            0xC3 | 0xCB => "lossless",
            0xC5..=0xC7 | 0xCD..=0xCF => "hierarchical",
            _ => {
                let bits = frame.body.first().filter(|bits| **bits != 8)?;
                return Some(format!("{bits} bits a sample"));
            }
        };
        Some(kind.to_owned())
    }

    fn size(&self) -> (u64, u64) {
        let side = |at: usize| -> Option<u64> {
            let side = self.frame?.body.get(at..at + 2)?;
            Some(u64::from(side[0]) << 8 | u64::from(side[1]))
        };
        (side(3).unwrap_or(0), side(1).unwrap_or(0))
    }

    /// Two bytes for each of the samples, in whole blocks (T.81, A.2.4).
    pub(super) fn coefficient_bytes(&self) -> u64 {
        let (width, height) = self.size();
        let components = self.frame.and_then(|frame| frame.body.get(6..)).unwrap_or_default().chunks_exact(3);
        let sampling = components.map(|c| (u64::from(c[1] >> 4).max(1), u64::from(c[1] & 15).max(1)));
        let largest = sampling.clone().fold((1, 1), |most, (across, down)| (most.0.max(across), most.1.max(down)));
        let mcus = width.div_ceil(8 * largest.0) * height.div_ceil(8 * largest.1);
        sampling.map(|(across, down)| mcus * across * down * 64 * 2).sum()
    }

    /// How many scans are decoded.
    pub(super) fn max_scans(&self) -> u32 {
        let (width, height) = self.size();
        let scans = MAX_SCANNED_PIXELS / (width * height).max(1);
        u32::try_from(scans).unwrap_or(u32::MAX).clamp(MAX_SCANS, 100 * MAX_SCANS)
    }

    /// The colour profile, put together from its parts (ICC.1:2010, B.4). `None` where a part is missing, or one of several is
    /// there twice. The first profile that is a single part counts, as in browsers.
    pub(super) fn profile(&self) -> Option<Vec<u8>> {
        if let [1, 1, data @ ..] = self.profile_parts.first()? {
            return Some(data.to_vec());
        }
        let count = usize::from(*self.profile_parts.first()?.get(1)?);
        let mut parts = vec![None; count];
        for part in &self.profile_parts {
            let [number, of, data @ ..] = part else { return None };
            let place = usize::from(*number).checked_sub(1).and_then(|at| parts.get_mut(at))?;
            if usize::from(*of) != count || place.replace(data).is_some() {
                return None;
            }
        }
        parts.into_iter().collect::<Option<Vec<_>>>().map(|parts| parts.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_put_together_only_from_all_of_its_parts() {
        let profile = |parts: &[(u8, u8)]| {
            let segments = parts.iter().flat_map(|(number, of)| {
                [&[0xFF, 0xE2, 0, 17][..], b"ICC_PROFILE\0", &[*number, *of, b'a' + *number]].concat()
            });
            let bytes: Vec<u8> = [0xFF, 0xD8].into_iter().chain(segments).chain([0xFF, 0xDA, 0, 2]).collect();
            JpegLayout::of(&bytes).profile()
        };
        assert_eq!(profile(&[(1, 1)]), Some(b"b".to_vec()));
        assert_eq!(profile(&[(1, 1), (1, 1)]), Some(b"b".to_vec()));
        assert_eq!(profile(&[(1, 3), (2, 3), (3, 3)]), Some(b"bcd".to_vec()));
        assert_eq!(profile(&[(3, 3), (1, 3), (2, 3)]), Some(b"bcd".to_vec()));
        for broken in [
            &[][..],
            &[(0, 0)],
            &[(1, 0)],
            &[(0, 1)],
            &[(2, 1)],
            &[(1, 2)],
            &[(1, 2), (1, 2)],
            &[(1, 2), (2, 3)],
            &[(1, 255)],
        ] {
            assert_eq!(profile(broken), None, "{broken:?}");
        }
    }
}
