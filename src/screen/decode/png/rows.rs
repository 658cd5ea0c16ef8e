//! Raw rows of any colour type and depth → pixels of 8 bits.

use png::{BitDepth, ColorType, Info};

use super::super::Undecodable;
use super::super::colour::ToSrgb;
use super::super::frame::Channels;
use super::super::rgb::divided_by_257;

/// How the samples of a file's rows become pixels.
pub(super) struct RowFormat {
    color: ColorType,
    depth: u8,
    /// The colour of each index, for [`ColorType::Indexed`].
    palette: Vec<[u8; 4]>,
    /// The grey or the colour that is transparent.
    transparent: Option<[u16; 3]>,
    /// Grey of 16 bits as one of 8.
    grey: fn(u16) -> u8,
}

impl RowFormat {
    /// `colour` is the conversion to sRGB of the pixels that are written.
    pub(super) fn of(info: &Info<'_>, colour: Option<&ToSrgb>) -> Result<Self, Undecodable> {
        let (color, depth) = (info.color_type, info.bit_depth as u8);
        let palette = match (color, &info.palette) {
            (ColorType::Indexed, Some(colors)) => palette(colors, info.trns.as_deref().unwrap_or_default(), depth),
            (ColorType::Indexed, None) => return Err(Undecodable::new("damaged PNG: it has no palette")),
            _ => Vec::new(),
        };
        let transparent = info.trns.as_deref().and_then(|key| match color {
            ColorType::Grayscale => samples(key, info.bit_depth).map(|grey: [u16; 1]| [grey[0]; 3]),
            ColorType::Rgb => samples(key, info.bit_depth),
            _ => None,
        });
        // Browsers convert the high byte to sRGB. A steep curve would show what is in the low byte.
        let is_converted = (color, depth) == (ColorType::Grayscale, 16) && colour.is_some();
        let grey = if is_converted { high_byte } else { divided_by_257 };
        Ok(Self { color, depth, palette, transparent, grey })
    }

    /// Whether a pixel may be transparent.
    pub(super) fn has_alpha(&self) -> bool {
        let by_type = matches!(self.color, ColorType::GrayscaleAlpha | ColorType::Rgba);
        by_type || self.transparent.is_some() || self.palette.iter().any(|color| color[3] != 255)
    }

    /// The memory for raw rows: the decoder holds a few of them at a time.
    pub(super) fn row_bytes_per_pixel(&self, height: u32) -> u64 {
        const ROWS: u64 = 4;
        (ROWS * self.bits_per_pixel().div_ceil(8) as u64).div_ceil(u64::from(height))
    }

    fn bits_per_pixel(&self) -> usize {
        self.color.samples() * usize::from(self.depth)
    }

    /// Writes a raw row's pixels. What either of the two is longer is left.
    pub(super) fn write(&self, raw: &[u8], channels: Channels, pixels: &mut [u8]) {
        match channels {
            Channels::Rgb => self.write_channels::<3>(raw, pixels),
            Channels::Rgba => self.write_channels::<4>(raw, pixels),
        }
    }

    fn write_channels<const N: usize>(&self, raw: &[u8], pixels: &mut [u8]) {
        let alpha = |color: [u16; 3]| if self.transparent == Some(color) { 0 } else { 255 };
        match (self.color, self.depth) {
            (ColorType::Indexed, depth) => {
                put::<N>(pixels, small_samples(raw, depth).map(|index| self.palette[usize::from(index)]));
            }
            (ColorType::Grayscale, 16) => put::<N>(
                pixels,
                words(raw).map(|word| {
                    let grey = (self.grey)(word);
                    [grey, grey, grey, alpha([word; 3])]
                }),
            ),
            (ColorType::Grayscale, depth) => {
                let scale = 255 / max_sample(depth);
                put::<N>(
                    pixels,
                    small_samples(raw, depth).map(|grey| {
                        let value = grey * scale;
                        [value, value, value, alpha([u16::from(grey); 3])]
                    }),
                );
            }
            (ColorType::GrayscaleAlpha, 16) => put::<N>(pixels, raw.chunks_exact(4).map(|p| [p[0], p[0], p[0], p[2]])),
            (ColorType::GrayscaleAlpha, _) => put::<N>(pixels, raw.chunks_exact(2).map(|p| [p[0], p[0], p[0], p[1]])),
            (ColorType::Rgb, 16) => put::<N>(
                pixels,
                raw.chunks_exact(6).map(|p| {
                    let color = [0, 2, 4].map(|at| u16::from_be_bytes([p[at], p[at + 1]]));
                    [p[0], p[2], p[4], alpha(color)]
                }),
            ),
            (ColorType::Rgb, _) if N == 3 => copy(raw, pixels),
            (ColorType::Rgb, _) => {
                put::<N>(
                    pixels,
                    raw.chunks_exact(3).map(|p| [p[0], p[1], p[2], alpha([p[0], p[1], p[2]].map(u16::from))]),
                );
            }
            (ColorType::Rgba, 16) => put::<N>(pixels, raw.chunks_exact(8).map(|p| [p[0], p[2], p[4], p[6]])),
            (ColorType::Rgba, _) if N == 4 => copy(raw, pixels),
            (ColorType::Rgba, _) => put::<N>(pixels, raw.chunks_exact(4).map(|p| [p[0], p[1], p[2], p[3]])),
        }
    }
}

fn put<const N: usize>(pixels: &mut [u8], colors: impl Iterator<Item = [u8; 4]>) {
    for (pixel, color) in pixels.chunks_exact_mut(N).zip(colors) {
        pixel.copy_from_slice(&color[..N]);
    }
}

fn copy(raw: &[u8], pixels: &mut [u8]) {
    let length = raw.len().min(pixels.len());
    pixels[..length].copy_from_slice(&raw[..length]);
}

/// A colour for every index that this depth has. Browsers show an index beyond the palette in its last colour, and alpha
/// beyond it is ignored.
fn palette(colors: &[u8], alpha: &[u8], depth: u8) -> Vec<[u8; 4]> {
    let alpha = alpha.iter().copied().chain(std::iter::repeat(255));
    let mut palette: Vec<_> = colors.chunks_exact(3).zip(alpha).map(|(c, alpha)| [c[0], c[1], c[2], alpha]).collect();
    let last = palette.last().copied().unwrap_or([0, 0, 0, 255]);
    palette.resize(1 << depth, last);
    palette
}

/// The samples of a transparent colour, which the crate has shortened to one byte each where the depth is less than 16.
fn samples<const COUNT: usize>(key: &[u8], depth: BitDepth) -> Option<[u16; COUNT]> {
    let mut samples = [0; COUNT];
    for (at, sample) in samples.iter_mut().enumerate() {
        *sample = match depth {
            BitDepth::Sixteen => u16::from_be_bytes([*key.get(2 * at)?, *key.get(2 * at + 1)?]),
            _ => u16::from(*key.get(at)?),
        };
    }
    Some(samples)
}

/// Samples of 1, 2, 4 or 8 bits, the highest bits first.
fn small_samples(raw: &[u8], depth: u8) -> impl Iterator<Item = u8> {
    let per_byte = 8 / depth;
    raw.iter().flat_map(move |byte| (1..=per_byte).map(move |place| (byte >> (8 - place * depth)) & max_sample(depth)))
}

fn max_sample(depth: u8) -> u8 {
    u8::MAX >> (8 - depth)
}

fn high_byte(word: u16) -> u8 {
    word.to_be_bytes()[0]
}

fn words(raw: &[u8]) -> impl Iterator<Item = u16> {
    raw.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}
