//! What a directory says of its page, checked, so that the rest of the decoder may rely on it.

use super::directory::{Directory, Values};
use crate::screen::decode::Undecodable;

/// The most strips or tiles of a page, those of every plane counted.
const MAX_CHUNKS: usize = 1 << 20;

/// The most samples of a pixel.
const MAX_SAMPLES: usize = 16;

/// A page. Tags are named as in TIFF 6.0.
pub(super) struct Page<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) bits: usize,
    /// Samples of a pixel, those included that no picture needs.
    pub(super) samples: usize,
    pub(super) colours: Colours,
    pub(super) alpha: Option<Alpha>,
    pub(super) compression: Compression,
    /// Whether each sample has strips for itself.
    pub(super) is_planar: bool,
    pub(super) has_predictor: bool,
    /// Whether the first pixel is in the lowest bit of a byte.
    pub(super) is_reversed: bool,
    /// Width and height of a strip or tile.
    pub(super) chunk: (usize, usize),
    pub(super) offsets: Values<'a>,
    pub(super) lengths: Option<Values<'a>>,
    /// How many pixels across and down share a sample of chroma.
    pub(super) subsampling: (usize, usize),
    pub(super) jpeg_tables: &'a [u8],
    /// Red, green and blue of each index.
    pub(super) palette: Vec<[u8; 3]>,
    pub(super) icc: Option<&'a [u8]>,
    pub(super) orientation: u8,
    pub(super) is_little: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    WhiteIsZero,
    BlackIsZero,
    Rgb,
    Palette,
    Cmyk,
    YCbCr,
}

impl Colours {
    /// Samples of a pixel without alpha.
    pub(super) fn samples(self) -> usize {
        match self {
            Self::WhiteIsZero | Self::BlackIsZero | Self::Palette => 1,
            Self::Rgb | Self::YCbCr => 3,
            Self::Cmyk => 4,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpha {
    /// The colours are multiplied by it.
    Associated,
    Unassociated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Fax4,
    Lzw,
    Jpeg,
    Deflate,
    PackBits,
}

/// A kind of TIFF that is refused.
fn unsupported(what: &str) -> Undecodable {
    Undecodable(format!("unsupported kind of TIFF: {what}"))
}

fn damaged(what: &str) -> Undecodable {
    Undecodable::damaged("TIFF", &what)
}

impl<'a> Page<'a> {
    pub(super) fn new(directory: &Directory<'a>, is_little: bool) -> Result<Self, Undecodable> {
        let number = |tag: u16, default: usize| match directory.value(tag) {
            Some(value) => usize::try_from(value).map_err(|_| damaged("a tag's value is too large")),
            None => Ok(default),
        };
        let (width, height) = (number(256, 0)?, number(257, 0)?);
        if width == 0 || height == 0 || u32::try_from(width.max(height)).is_err() {
            return Err(damaged("it has no size"));
        }
        let samples = number(277, 1)?;
        let bits = depth(directory, samples)?;
        let compression = compression(number(259, 1)?)?;
        // A page without the tag is grey or in colour by its samples, as libtiff guesses.
        let colours = match number(262, if samples >= 3 { 2 } else { 1 })? {
            0 => Colours::WhiteIsZero,
            1 | 4 => Colours::BlackIsZero,
            2 => Colours::Rgb,
            3 => Colours::Palette,
            5 => Colours::Cmyk,
            6 => Colours::YCbCr,
            8..=10 => return Err(unsupported("CIELAB")),
            other => return Err(unsupported(&format!("colours of kind {other}"))),
        };
        let is_deep_enough = matches!(bits, 8 | 16) || colours.samples() == 1;
        if !is_deep_enough || (colours == Colours::YCbCr && bits != 8) || (colours == Colours::Palette && bits > 8) {
            return Err(unsupported(&format!("{bits} bits in a sample of this kind")));
        }
        if !(colours.samples()..=MAX_SAMPLES).contains(&samples) {
            return Err(unsupported(&format!("{samples} samples in a pixel of this kind")));
        }
        let has_predictor = match number(317, 1)? {
            1 => false,
            2 if matches!(compression, Compression::Lzw | Compression::Deflate) => true,
            2 => false,
            other => return Err(unsupported(&format!("predictor {other}"))),
        };
        if has_predictor && bits < 8 {
            return Err(unsupported("a predictor of less than 8 bits"));
        }
        let subsampling = match (colours, directory.values(530)) {
            (Colours::YCbCr, Some(values)) => (values.get(0).unwrap_or(2), values.get(1).unwrap_or(2)),
            (Colours::YCbCr, None) => (2, 2),
            _ => (1, 1),
        };
        let is_planar = samples > 1 && number(284, 1)? == 2;
        let [across, down] = [subsampling.0, subsampling.1].map(|by| usize::try_from(by).unwrap_or_default());
        let is_known = matches!((across, down), (1 | 2 | 4, 1 | 2 | 4));
        let is_subsampled = (across, down) != (1, 1) && compression != Compression::Jpeg;
        if !is_known || (is_subsampled && (is_planar || has_predictor || samples != 3)) {
            return Err(unsupported(&format!("chroma subsampling {across}x{down} of this kind")));
        }
        if compression == Compression::Jpeg && !is_planar && !matches!(samples, 1 | 3 | 4) {
            return Err(unsupported(&format!("JPEG of {samples} samples")));
        }
        let is_tiled = directory.values(324).is_some();
        let (chunk, offsets, lengths) = if is_tiled {
            ((number(322, 0)?, number(323, 0)?), directory.values(324), directory.values(325))
        } else {
            let rows = number(278, height)?.min(height);
            ((width, rows), directory.values(273), directory.values(279))
        };
        // A tile of an ordinary page is not much larger than the page.
        if chunk.0 == 0 || chunk.1 == 0 || chunk.0 > width.saturating_add(4096) || chunk.1 > height.saturating_add(4096)
        {
            return Err(damaged("its strips have no possible size"));
        }
        // Each strip costs the decoder's start. Tiles have 16 pixels or more on each side (TIFF 6.0, section 15).
        let chunks = width.div_ceil(chunk.0).saturating_mul(height.div_ceil(chunk.1));
        if chunks.saturating_mul(samples) > MAX_CHUNKS {
            return Err(damaged("it has too many strips"));
        }
        let orientation = number(274, 1)?;
        Ok(Self {
            width,
            height,
            bits,
            samples,
            colours,
            alpha: alpha(directory, colours, samples),
            compression,
            is_planar,
            has_predictor,
            is_reversed: number(266, 1)? == 2,
            chunk,
            offsets: offsets.ok_or_else(|| damaged("it has no strips"))?,
            lengths,
            subsampling: if compression == Compression::Jpeg { (1, 1) } else { (across, down) },
            jpeg_tables: directory.values(347).map_or(&[], |values| values.bytes),
            palette: if colours == Colours::Palette { palette(directory, bits)? } else { Vec::new() },
            icc: directory.values(34675).map(|values| values.bytes),
            orientation: u8::try_from(orientation).ok().filter(|code| (1..=8).contains(code)).unwrap_or(1),
            is_little,
        })
    }

    /// Strips or tiles across and down.
    pub(super) fn chunks(&self) -> (usize, usize) {
        (self.width.div_ceil(self.chunk.0), self.height.div_ceil(self.chunk.1))
    }

    /// Samples of a pixel that a strip holds.
    pub(super) fn samples_in_chunk(&self) -> usize {
        if self.is_planar { 1 } else { self.samples }
    }

    /// Bytes of a strip of so many rows.
    pub(super) fn chunk_bytes(&self, rows: usize) -> usize {
        let (across, down) = self.subsampling;
        if (across, down) != (1, 1) {
            let units = self.chunk.0.div_ceil(across).saturating_mul(rows.div_ceil(down));
            return units.saturating_mul(across * down + 2);
        }
        self.row_bytes().saturating_mul(rows)
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.chunk.0.saturating_mul(self.samples_in_chunk() * self.bits).div_ceil(8)
    }

    pub(super) fn pixels(&self) -> u64 {
        (self.width as u64).saturating_mul(self.height as u64)
    }

    /// What libjpeg keeps at most of a strip between its scans: two bytes for each of four components, in units of up to four
    /// blocks on each side (T.81, A.2.4).
    pub(super) fn coefficient_bytes(&self) -> u64 {
        if self.compression != Compression::Jpeg {
            return 0;
        }
        let [across, down] = [self.chunk.0, self.chunk.1].map(|side| (side as u64).next_multiple_of(32));
        across.saturating_mul(down).saturating_mul(2 * 4)
    }

    /// How many samples of a pixel are needed to show it.
    pub(super) fn shown_samples(&self) -> usize {
        self.colours.samples() + usize::from(self.alpha.is_some())
    }
}

/// Bits of a sample, which are the same for all. A tag may have millions of values, and thousands of pages may share it: no
/// more of them are read than the page has samples.
fn depth(directory: &Directory<'_>, samples: usize) -> Result<usize, Undecodable> {
    let samples = samples.min(MAX_SAMPLES);
    if directory.values(339).is_some_and(|formats| formats.iter().take(samples).any(|of| !matches!(of, 1 | 4))) {
        return Err(unsupported("samples with a sign or of floating point"));
    }
    let Some(values) = directory.values(258) else { return Ok(1) };
    let bits = values.get(0).unwrap_or(1);
    if !matches!(bits, 1 | 2 | 4 | 8 | 16) || values.iter().take(samples).any(|other| other != bits) {
        return Err(unsupported(&format!("{bits} bits in a sample, or not the same number in all")));
    }
    usize::try_from(bits).map_err(|_| damaged("it has no depth"))
}

fn compression(code: usize) -> Result<Compression, Undecodable> {
    Ok(match code {
        1 => Compression::None,
        4 => Compression::Fax4,
        5 => Compression::Lzw,
        7 => Compression::Jpeg,
        8 | 32_946 => Compression::Deflate,
        32_773 => Compression::PackBits,
        2 | 3 => return Err(unsupported("compression CCITT group 3")),
        6 => return Err(unsupported("compression JPEG of the old kind")),
        34_925 => return Err(unsupported("compression LZMA")),
        50_000 => return Err(unsupported("compression Zstandard")),
        50_001 => return Err(unsupported("compression WebP")),
        other => return Err(unsupported(&format!("compression {other}"))),
    })
}

/// What the sample behind the colours is (ExtraSamples). A fourth sample that no tag explains is alpha in most viewers.
fn alpha(directory: &Directory<'_>, colours: Colours, samples: usize) -> Option<Alpha> {
    if samples <= colours.samples() || !matches!(colours, Colours::Rgb | Colours::BlackIsZero) {
        return None;
    }
    match directory.value(338) {
        Some(1) => Some(Alpha::Associated),
        Some(2) => Some(Alpha::Unassociated),
        None if colours == Colours::Rgb => Some(Alpha::Unassociated),
        _ => None,
    }
}

/// The colour map: all reds, all greens, all blues, of 16 bits each. Some writers wrote 8 bits, as libtiff knows.
fn palette(directory: &Directory<'_>, bits: usize) -> Result<Vec<[u8; 3]>, Undecodable> {
    let values = directory.values(320).ok_or_else(|| damaged("it has no colour map"))?;
    let count = 1 << bits;
    let is_wide = values.iter().take(3 * count).any(|value| value > 255);
    let level = |index: usize| {
        let value = values.get(index).unwrap_or_default();
        u8::try_from(if is_wide { value >> 8 } else { value }).unwrap_or(255)
    };
    Ok((0..count).map(|index| [level(index), level(count + index), level(2 * count + index)]).collect())
}
