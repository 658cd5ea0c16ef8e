//! Colours of any kind → sRGB, at the image's full size. After resizing it would be too late: a fine pattern under an odd
//! gamma looks plain once its pixels were averaged.
//!
//! The reference is what browsers do: a profile's table (A2B0, A2B1) goes before its matrix and curves, the rendering
//! intent and the black point are not heeded, and the sums are done in floating point without a table in between. A colour
//! engine that first samples a profile on a grid would not see a picture within a few levels under a steep curve.

mod cicp;
mod curve;
mod gamut;
mod icc;
mod lut;

use std::sync::{Arc, LazyLock};

use super::rgb;

use cicp::ToneMap;
use curve::{Curve, Formula};
use gamut::{Matrix, Primaries};
use icc::{Device, Profile};
use lut::Lut;

/// A conversion to sRGB. A copy is cheap.
#[derive(Clone)]
pub(super) struct ToSrgb(Arc<Conversion>);

/// What a profile's samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColourModel {
    /// Red, green and blue.
    Rgb,
    /// Grey. The samples to convert are red, green and blue with equal values.
    Grey,
    /// Red, green and blue of a PNG. There browsers heed a profile of any colours but grey and CMYK.
    PngRgb,
    /// Grey of a PNG, where a profile of any colours but CMYK counts.
    PngGrey,
    /// Cyan, magenta, yellow and black.
    Cmyk,
}

enum Conversion {
    /// Each channel for itself.
    Levels(Box<[[u8; LEVELS]; 3]>),
    Matrix(Box<Shaper>),
    Table(Box<Lut>),
}

/// Levels of a sample.
const LEVELS: usize = 256;

/// Curves, then a matrix.
struct Shaper {
    /// The linear light of each level of each channel.
    linear: [[f32; LEVELS]; 3],
    /// Linear light to that of sRGB, or to that of BT.2020 where there is a tone map.
    matrix: Matrix,
    tone: Option<ToneMap>,
}

impl ToSrgb {
    /// By an ICC profile. `None` where the profile is sRGB within a level, or where browsers ignore it.
    pub(super) fn of_icc(profile: &[u8], model: ColourModel) -> Option<Self> {
        let profile = Profile::read(profile)?;
        let conversion = match profile.device(model)? {
            Device::Grey(curve) => Conversion::Levels(Box::new([levels(&curve.linear_levels()); 3])),
            Device::Rgb { curves, to_xyz, tone } => Conversion::shaper(&curves, to_xyz, tone),
            Device::Table(lut) => Conversion::Table(Box::new(lut)),
        };
        let is_srgb = match model {
            ColourModel::Rgb | ColourModel::PngRgb => conversion.keeps_greys() && conversion.keeps_colours(),
            ColourModel::Grey | ColourModel::PngGrey => conversion.keeps_greys(),
            ColourModel::Cmyk => false,
        };
        (!is_srgb).then(|| Self(Arc::new(conversion)))
    }

    /// Whether browsers can read this profile. Where they cannot, the image's next best colour information counts.
    pub(super) fn knows_icc(profile: &[u8]) -> bool {
        const MODELS: [ColourModel; 3] = [ColourModel::PngRgb, ColourModel::PngGrey, ColourModel::Cmyk];
        Profile::read(profile).is_some_and(|profile| MODELS.iter().any(|model| profile.device(*model).is_some()))
    }

    /// By the code points of ITU-T H.273: colour primaries, transfer characteristics. `None` as for a profile, and where
    /// [`knows_cicp`](Self::knows_cicp) is false.
    pub(super) fn of_cicp(primaries: u8, transfer: u8) -> Option<Self> {
        Self::of_cicp_up_to(primaries, transfer, None)
    }

    /// As [`of_cicp`](Self::of_cicp). Where the file says so, the brightest light of its content has `max_light` cd/m²; that
    /// matters to high dynamic range.
    pub(super) fn of_cicp_up_to(primaries: u8, transfer: u8, max_light: Option<u16>) -> Option<Self> {
        let to_xyz = cicp::primaries(primaries)?.to_xyz()?;
        let (curve, tone) = cicp::transfer(transfer)?;
        let tone = tone.map(|tone| max_light.map_or(tone, |light| tone.up_to(light)));
        Self::unless_srgb(Conversion::shaper(&[curve.clone(), curve.clone(), curve], to_xyz, tone))
    }

    /// Whether browsers heed these code points. Where they do not, the image's next best colour information counts.
    pub(super) fn knows_cicp(primaries: u8, transfer: u8) -> bool {
        cicp::primaries(primaries).is_some() && cicp::transfer(transfer).is_some()
    }

    /// By PNG's gAMA and cHRM, both in 100,000ths; the chromaticities are x and y of white, red, green, blue. `None` as for a
    /// profile. Browsers heed cHRM only beside gAMA. A gAMA within libpng's threshold of 1/2.2 is sRGB where it stands alone.
    pub(super) fn of_gamma(gamma: Option<u32>, chromaticities: Option<[u32; 8]>) -> Option<Self> {
        const THRESHOLD: f32 = 0.05;
        let fixed = |value: u32| to_float(value as usize) / 100_000.0;
        let gamma = gamma.filter(|gamma| *gamma > 0).map(fixed)?;
        let to_xyz = match chromaticities {
            Some(chromaticities) => Primaries::of(chromaticities.map(fixed)).to_xyz()?,
            None if (gamma * 2.2 - 1.0).abs() < THRESHOLD => return None,
            None => gamut::SRGB_TO_XYZ,
        };
        let curve = Curve::Formula(Formula::power(1.0 / gamma));
        Self::unless_srgb(Conversion::shaper(&[curve.clone(), curve.clone(), curve], to_xyz, None))
    }

    fn unless_srgb(conversion: Conversion) -> Option<Self> {
        let is_srgb = conversion.keeps_greys() && conversion.keeps_colours();
        (!is_srgb).then(|| Self(Arc::new(conversion)))
    }

    /// Converts pixels of three or four samples in place. The fourth sample stays as it is.
    pub(super) fn convert(&self, samples: &mut [u8], channels: usize) {
        match &*self.0 {
            Conversion::Levels(levels) => {
                let [red, green, blue] = &**levels;
                for pixel in samples.chunks_exact_mut(channels) {
                    pixel[0] = red[usize::from(pixel[0])];
                    pixel[1] = green[usize::from(pixel[1])];
                    pixel[2] = blue[usize::from(pixel[2])];
                }
            }
            Conversion::Matrix(shaper) => {
                let encoder = Encoder::get();
                for pixel in samples.chunks_exact_mut(channels) {
                    let rgb = encoder.encode(shaper.linear([pixel[0], pixel[1], pixel[2]]));
                    pixel[..3].copy_from_slice(&rgb);
                }
            }
            Conversion::Table(lut) => {
                let mut recent = RecentColours::new(lut);
                for pixel in samples.chunks_exact_mut(channels) {
                    // A fourth sample that a table asks for is alpha, which counts as opaque.
                    let rgb = recent.rgb([pixel[0], pixel[1], pixel[2], 255]);
                    pixel[..3].copy_from_slice(&rgb);
                }
            }
        }
    }

    /// Converts pixels of three samples in place: what cyan, magenta and yellow ink leave of red, green and blue.
    pub(super) fn convert_inks_without_black(&self, rgb: &mut [u8]) {
        if let Conversion::Table(lut) = &*self.0 {
            let mut recent = RecentColours::new(lut);
            for pixel in rgb.chunks_exact_mut(3) {
                let shown = recent.rgb([255 - pixel[0], 255 - pixel[1], 255 - pixel[2], 0]);
                pixel.copy_from_slice(&shown);
            }
        } else {
            self.convert(rgb, 3);
        }
    }

    /// Converts CMYK, where 0 is no ink, to RGB.
    pub(super) fn convert_cmyk(&self, cmyk: &[u8]) -> Vec<u8> {
        if let Conversion::Table(lut) = &*self.0 {
            let mut recent = RecentColours::new(lut);
            let pixels = cmyk.chunks_exact(4).map(|pixel| [pixel[0], pixel[1], pixel[2], pixel[3]]);
            return pixels.flat_map(|pixel| recent.rgb(pixel)).collect();
        }
        // Without a table the colours are what the inks leave of red, green and blue.
        let mut rgb = rgb::from_inverted_cmyk(cmyk.iter().map(|ink| 255 - ink).collect());
        self.convert(&mut rgb, 3);
        rgb
    }
}

/// The results of a table for colours that it had lately. A table takes ten times as long as a matrix.
struct RecentColours<'a> {
    lut: &'a Lut,
    encoder: &'static Encoder,
    entries: Vec<([u8; 4], [u8; 3])>,
}

impl<'a> RecentColours<'a> {
    const ENTRIES: u32 = 1 << 13;

    fn new(lut: &'a Lut) -> Self {
        let encoder = Encoder::get();
        let entries = vec![([0; 4], encoder.encode(lut.linear([0; 4]))); Self::ENTRIES as usize];
        Self { lut, encoder, entries }
    }

    #[inline]
    fn rgb(&mut self, device: [u8; 4]) -> [u8; 3] {
        let hash = u32::from_ne_bytes(device).wrapping_mul(0x9E37_79B1) >> (32 - Self::ENTRIES.trailing_zeros());
        let entry = &mut self.entries[hash as usize];
        if entry.0 != device {
            *entry = (device, self.encoder.encode(self.lut.linear(device)));
        }
        entry.1
    }
}

impl Conversion {
    fn shaper(curves: &[Curve<'_>; 3], to_xyz: Matrix, tone: Option<ToneMap>) -> Self {
        let red = curves[0].linear_levels();
        let other = |curve: &Curve<'_>| if *curve == curves[0] { red } else { curve.linear_levels() };
        let linear = [red, other(&curves[1]), other(&curves[2])];
        let from_xyz = if tone.is_some() { *gamut::XYZ_TO_BT2020 } else { *gamut::XYZ_TO_SRGB };
        let matrix = from_xyz.after(&to_xyz);
        if tone.is_none() && matrix.is_identity() {
            return Self::Levels(Box::new([0, 1, 2].map(|channel| levels(&linear[channel]))));
        }
        Self::Matrix(Box::new(Shaper { linear, matrix, tone }))
    }

    fn rgb(&self, device: [u8; 3]) -> [u8; 3] {
        let [red, green, blue] = device;
        match self {
            Self::Levels(levels) => [0, 1, 2].map(|channel| levels[channel][usize::from(device[channel])]),
            Self::Matrix(shaper) => Encoder::get().encode(shaper.linear(device)),
            Self::Table(lut) => Encoder::get().encode(lut.linear([red, green, blue, 255])),
        }
    }

    /// Whether every grey stays as it is, within a level. A curve may be odd at a single level, so that all are looked at.
    fn keeps_greys(&self) -> bool {
        (0..=u8::MAX).all(|level| self.keeps([level; 3]))
    }

    /// Whether colours stay as they are, within a level: every level of every channel for itself, and a coarse grid.
    fn keeps_colours(&self) -> bool {
        const GRID: [u8; 5] = [0, 64, 128, 191, 255];
        let mut ramps = (0..=u8::MAX).flat_map(|level| [[level, 0, 0], [0, level, 0], [0, 0, level]]);
        let mut grid = GRID.iter().flat_map(|r| GRID.iter().flat_map(|g| GRID.iter().map(|b| [*r, *g, *b])));
        ramps.all(|rgb| self.keeps(rgb)) && grid.all(|rgb| self.keeps(rgb))
    }

    fn keeps(&self, rgb: [u8; 3]) -> bool {
        let shown = self.rgb(rgb);
        shown.iter().zip(rgb).all(|(shown, sample)| shown.abs_diff(sample) <= 1)
    }
}

impl Shaper {
    /// A pixel in the linear light of sRGB.
    #[inline]
    fn linear(&self, rgb: [u8; 3]) -> [f32; 3] {
        let light = [0, 1, 2].map(|channel| self.linear[channel][usize::from(rgb[channel])]);
        let light = self.matrix.times(light);
        match &self.tone {
            None => light,
            Some(tone) => gamut::BT2020_TO_SRGB.times(tone.map(light)),
        }
    }
}

/// Each level of a channel, by its linear light.
fn levels(linear: &[f32; LEVELS]) -> [u8; LEVELS] {
    let encoder = Encoder::get();
    linear.map(|light| encoder.level(light))
}

/// Linear light → levels of sRGB.
struct Encoder {
    /// The level of each of evenly spaced lights from 0 to 1. Where sRGB is steepest, they lie 0.2 levels apart. What is
    /// behind `STEPS` is never read; its size spares a check.
    levels: [u8; 1 << 15],
}

impl Encoder {
    const STEPS: f32 = 16_384.0;

    fn get() -> &'static Self {
        static ENCODER: LazyLock<Box<Encoder>> = LazyLock::new(|| {
            let mut levels = [255; 1 << 15];
            for (step, level) in (0..=16_384_u16).zip(&mut levels) {
                let light = f32::from(step) / Encoder::STEPS;
                // IEC 61966-2-1, 5.2.
                let encoded = if light <= 0.003_130_8 { 12.92 * light } else { 1.055 * light.powf(1.0 / 2.4) - 0.055 };
                *level = u8::try_from(to_index(encoded * 255.0 + 0.5)).unwrap_or(255);
            }
            Box::new(Encoder { levels })
        });
        &ENCODER
    }

    #[inline]
    fn level(&self, light: f32) -> u8 {
        // Behind 2 to the power of 23, a number's lowest bits are its integer part, which is rounded.
        const ROUND: f32 = 8_388_608.0;
        let bits = (light.clamp(0.0, 1.0) * Self::STEPS + ROUND).to_bits();
        self.levels[bits as usize % self.levels.len()]
    }

    #[inline]
    fn encode(&self, light: [f32; 3]) -> [u8; 3] {
        light.map(|light| self.level(light))
    }
}

/// The integer part of a number that is no less than 0.
#[inline]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
fn to_index(value: f32) -> usize {
    value as usize
}

/// A small number, such as that of a table's entries.
#[inline]
#[expect(clippy::cast_precision_loss, reason = "browsers round it so")]
fn to_float(value: usize) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
    fn word(value: f32) -> u16 {
        (value * 65_535.0).round() as u16
    }

    #[expect(clippy::cast_possible_truncation, reason = "the numbers of profiles are small")]
    fn number(value: f64) -> [u8; 4] {
        ((value * 65_536.0).round() as i32).to_be_bytes()
    }

    fn xyz(values: [f64; 3]) -> Vec<u8> {
        [b"XYZ \0\0\0\0".to_vec(), values.map(number).concat()].concat()
    }

    /// A formula of type 3.
    fn para(values: [f64; 5]) -> Vec<u8> {
        [b"para\0\0\0\0\0\x03\0\0".to_vec(), values.map(number).concat()].concat()
    }

    fn table(values: &[u16]) -> Vec<u8> {
        let count = u32::try_from(values.len()).unwrap().to_be_bytes();
        let values = values.iter().flat_map(|value| value.to_be_bytes());
        b"curv\0\0\0\0".iter().copied().chain(count).chain(values).collect()
    }

    const SRGB: [f64; 5] = [2.4, 1.0 / 1.055, 0.055 / 1.055, 1.0 / 12.92, 0.04045];
    const COLORANTS: [[f64; 3]; 3] =
        [[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]];

    fn profile(space: &[u8; 4], connection: &[u8; 4], tags: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes[8] = 4;
        bytes[12..16].copy_from_slice(b"mntr");
        bytes[16..20].copy_from_slice(space);
        bytes[20..24].copy_from_slice(connection);
        bytes[36..40].copy_from_slice(b"acsp");
        bytes[68..80].copy_from_slice(&[0.9642, 1.0, 0.8249].map(number).concat());
        bytes.extend(u32::try_from(tags.len()).unwrap().to_be_bytes());
        let mut offset = 132 + 12 * tags.len();
        for (name, tag) in tags {
            bytes.extend(*name);
            bytes.extend(u32::try_from(offset).unwrap().to_be_bytes());
            bytes.extend(u32::try_from(tag.len()).unwrap().to_be_bytes());
            offset += tag.len().next_multiple_of(4);
        }
        for (_, tag) in tags {
            bytes.extend(tag);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let size = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&size.to_be_bytes());
        bytes
    }

    fn shaper(curves: [Vec<u8>; 3], [red, green, blue]: [[f64; 3]; 3]) -> Vec<(&'static [u8; 4], Vec<u8>)> {
        let [r, g, b] = curves;
        vec![(b"rTRC", r), (b"gTRC", g), (b"bTRC", b), (b"rXYZ", xyz(red)), (b"gXYZ", xyz(green)), (b"bXYZ", xyz(blue))]
    }

    fn rgb_profile(curve: &[u8], colorants: [[f64; 3]; 3]) -> Vec<u8> {
        profile(b"RGB ", b"XYZ ", &shaper([curve.to_vec(), curve.to_vec(), curve.to_vec()], colorants))
    }

    fn of_rgb(profile: &[u8]) -> Option<ToSrgb> {
        ToSrgb::of_icc(profile, ColourModel::Rgb)
    }

    fn converted(conversion: &ToSrgb, rgb: [u8; 3]) -> [u8; 3] {
        let mut with_alpha = [rgb[0], rgb[1], rgb[2], 77];
        conversion.convert(&mut with_alpha, 4);
        let mut plain = rgb;
        conversion.convert(&mut plain, 3);
        assert_eq!(with_alpha, [plain[0], plain[1], plain[2], 77]);
        plain
    }

    #[test]
    fn a_profile_that_is_srgb_within_a_level_needs_no_conversion() {
        assert!(of_rgb(&rgb_profile(&para(SRGB), COLORANTS)).is_none());
        let srgb = Curve::Formula(Formula {
            g: 2.4,
            a: 1.0 / 1.055,
            b: 0.055 / 1.055,
            c: 1.0 / 12.92,
            d: 0.04045,
            e: 0.0,
            f: 0.0,
        });
        let mut values: Vec<u16> = (0..1024u16).map(|i| word(srgb.at(f32::from(i) / 1023.0))).collect();
        assert!(of_rgb(&rgb_profile(&table(&values), COLORANTS)).is_none());
        let shifted = |levels: f32| {
            let value = |i: u16| word(srgb.at((f32::from(i) / 1023.0 + levels / 255.0).min(1.0)));
            of_rgb(&rgb_profile(&table(&(0..1024).map(value).collect::<Vec<_>>()), COLORANTS))
        };
        assert!(shifted(0.6).is_none() && shifted(2.5).is_some());
        // A single step that is off counts.
        for value in &mut values[400..410] {
            *value = 40_000;
        }
        assert!(of_rgb(&rgb_profile(&table(&values), COLORANTS)).is_some());
        assert!(ToSrgb::of_cicp(1, 13).is_none());
    }

    #[test]
    fn conversions_are_those_of_another_colour_engine() {
        use moxcms::{ColorProfile, Layout, TransformOptions};
        for source in [ColorProfile::new_display_p3(), ColorProfile::new_adobe_rgb(), ColorProfile::new_pro_photo_rgb()]
        {
            let conversion = of_rgb(&source.encode().unwrap()).unwrap();
            let options = TransformOptions { prefer_fixed_point: false, ..TransformOptions::default() };
            let srgb = ColorProfile::new_srgb();
            let other = source.create_transform_8bit(Layout::Rgb, &srgb, Layout::Rgb, options).unwrap();
            let grid = (0..=255).step_by(15);
            let samples: Vec<u8> =
                grid.clone().flat_map(|r| grid.clone().flat_map(move |g| [[r, g, 40], [40, r, g]])).flatten().collect();
            let (mut ours, mut theirs) = (samples.clone(), samples.clone());
            conversion.convert(&mut ours, 3);
            other.transform(&samples, &mut theirs).unwrap();
            let largest = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(largest <= Some(2), "{largest:?}");
        }
    }

    #[test]
    fn channels_may_be_swapped_and_inverted() {
        let [red, green, blue] = COLORANTS;
        let swapped = of_rgb(&rgb_profile(&para(SRGB), [blue, green, red])).unwrap();
        assert_eq!(converted(&swapped, [200, 100, 50]), [50, 100, 200]);
        let inverted = of_rgb(&rgb_profile(&table(&[65_535, 0]), COLORANTS)).unwrap();
        assert_eq!(converted(&inverted, [255, 255, 0]), [0, 0, 255]);
    }

    #[test]
    fn a_picture_within_a_few_levels_under_a_steep_curve_is_seen() {
        let steep: Vec<u16> = (0..=255).map(|level: u16| level.saturating_sub(236) * 3449).collect();
        let conversion = of_rgb(&rgb_profile(&table(&steep), COLORANTS)).unwrap();
        let shown: Vec<u8> = (236..=255).map(|level| converted(&conversion, [level; 3])[0]).collect();
        assert!(shown.windows(2).all(|pair| pair[0] < pair[1]), "{shown:?}");
        assert_eq!((shown[0], shown[19]), (0, 255));
        // The curves may be almost black, and the matrix may be large.
        let dark: Vec<u16> = (0..=255).map(|level: u16| level * 2).collect();
        let bright = COLORANTS.map(|column| column.map(|value| value * 65_535.0 / 510.0));
        let conversion = of_rgb(&rgb_profile(&table(&dark), bright)).unwrap();
        let expected = of_rgb(&rgb_profile(&table(&[0, 65_535]), COLORANTS)).unwrap();
        for level in 0..=255 {
            let (shown, linear) = (converted(&conversion, [level; 3])[0], converted(&expected, [level; 3])[0]);
            assert!(shown.abs_diff(linear) <= 1, "{level}: {shown}, not {linear}");
        }
    }

    #[test]
    fn code_points_in_a_profile_go_before_its_curves_and_tables() {
        let mut tags = shaper([table(&[65_535, 0]), table(&[65_535, 0]), table(&[65_535, 0])], COLORANTS);
        for (code_points, expected) in [
            ([1, 8, 0, 1], Some(188)),
            // Of a range that is not full, and unknown ones, do not count.
            ([1, 8, 0, 0], None),
            ([1, 2, 0, 1], None),
            ([2, 8, 0, 1], None),
        ] {
            tags.push((b"cicp", [&b"cicp\0\0\0\0"[..], &code_points].concat()));
            let shown = converted(&of_rgb(&profile(b"RGB ", b"XYZ ", &tags)).unwrap(), [128; 3]);
            let inverted = converted(&of_rgb(&rgb_profile(&table(&[65_535, 0]), COLORANTS)).unwrap(), [128; 3]);
            assert_eq!(shown, expected.map_or(inverted, |level| [level; 3]), "{code_points:?}");
            tags.pop();
        }
    }

    #[test]
    fn a_profile_is_ignored_where_a_table_that_is_not_used_is_damaged() {
        let [red, green, blue] = COLORANTS;
        let tags = shaper([para(SRGB), para(SRGB), para(SRGB)], [blue, green, red]);
        let with =
            |tag: Vec<u8>| of_rgb(&profile(b"RGB ", b"XYZ ", &[&tags[..], &[(b"B2A0", tag)]].concat())).is_some();
        let back = lut8(3, |_| [0; 3]);
        assert!(with(back.clone()) && !with(back[..back.len() - 1].to_vec()) && !with(b"abcd".to_vec()));
        let mut curves_only = b"mBA \0\0\0\0\x03\x03\0\0\0\0\0\x20".to_vec();
        curves_only.resize(32, 0);
        curves_only.extend((0..3).flat_map(|_| table(&[])));
        assert!(with(curves_only.clone()) && !with(curves_only[..60].to_vec()));
        let forwards = lut8(3, |_| [0; 3]);
        let with_table =
            |tag: Vec<u8>| of_rgb(&profile(b"RGB ", b"XYZ ", &[&tags[..], &[(b"A2B0", tag)]].concat())).is_some();
        assert!(with_table(forwards.clone()) && !with_table(forwards[..forwards.len() - 1].to_vec()));
        let gain = |length: u8| {
            let tag = [&b"hagc\0\0\0\0\0\0\0"[..], &[length, 1, 2]].concat();
            of_rgb(&profile(b"RGB ", b"XYZ ", &[&tags[..], &[(b"HAGC", tag)]].concat())).is_some()
        };
        assert!(gain(2) && !gain(3));
        // Other tags may be anything.
        let other = [&tags[..], &[(b"desc", b"desc\0\0\0\0\xFF\xFF\xFF\xFF".to_vec())]].concat();
        assert!(of_rgb(&profile(b"RGB ", b"XYZ ", &other)).is_some());
    }

    #[test]
    fn a_png_may_have_a_profile_of_any_colours_but_grey_and_ink() {
        let [red, green, blue] = COLORANTS;
        let tags = shaper([para(SRGB), para(SRGB), para(SRGB)], [blue, green, red]);
        let of = |space, model| ToSrgb::of_icc(&profile(space, b"XYZ ", &tags), model).is_some();
        assert!(
            of(b"Lab ", ColourModel::PngRgb) && !of(b"Lab ", ColourModel::Rgb) && !of(b"CMYK", ColourModel::PngRgb)
        );
        assert!(!of(b"GRAY", ColourModel::PngRgb));
        let inverted = rgb_profile(&table(&[65_535, 0]), COLORANTS);
        assert!(ToSrgb::of_icc(&inverted, ColourModel::PngGrey).is_some());
    }

    #[test]
    fn grey_profiles_are_curves() {
        let grey = profile(b"GRAY", b"XYZ ", &[(b"kTRC", table(&[0x0100]))]);
        let conversion = ToSrgb::of_icc(&grey, ColourModel::Grey).unwrap();
        assert_eq!(converted(&conversion, [128; 3]), [188; 3]);
        assert!(of_rgb(&grey).is_none());
        // A gamma of 0 leaves black.
        let grey = profile(b"GRAY", b"XYZ ", &[(b"kTRC", table(&[0]))]);
        let conversion = ToSrgb::of_icc(&grey, ColourModel::Grey).unwrap();
        assert_eq!((converted(&conversion, [0; 3]), converted(&conversion, [1; 3])), ([0; 3], [255; 3]));
        let of_srgb = profile(b"GRAY", b"XYZ ", &[(b"kTRC", para(SRGB))]);
        assert!(ToSrgb::of_icc(&of_srgb, ColourModel::Grey).is_none());
    }

    /// lut8Type with straight curves and a grid of two points in each dimension.
    fn lut8(inputs: u8, value: impl Fn(usize) -> [u8; 3]) -> Vec<u8> {
        let mut tag = b"mft1\0\0\0\0".to_vec();
        tag.extend([inputs, 3, 2, 0]);
        tag.extend([0; 36]);
        tag.extend((0..inputs).flat_map(|_| 0..=255));
        tag.extend((0..1 << inputs).flat_map(value));
        tag.extend((0..3).flat_map(|_| 0..=255));
        tag
    }

    #[test]
    fn a_table_goes_before_curves_and_colorants() {
        // The lightness is the mean of red and green.
        let lut = lut8(3, |at| [[0, 127, 127, 255][at >> 1], 128, 128]);
        let mut tags = shaper([para(SRGB), para(SRGB), para(SRGB)], COLORANTS);
        tags.push((b"A2B0", lut.clone()));
        let conversion = of_rgb(&profile(b"RGB ", b"Lab ", &tags)).unwrap();
        assert_eq!(converted(&conversion, [255, 255, 7]), [255; 3]);
        assert_eq!(converted(&conversion, [0, 0, 7]), [0; 3]);
        let half = converted(&conversion, [255, 0, 7]);
        assert!(half.iter().all(|level| level.abs_diff(118) <= 2), "{half:?}");
        // A damaged table makes the profile one that is ignored.
        tags.pop();
        tags.push((b"A2B0", lut[..lut.len() - 1].to_vec()));
        assert!(of_rgb(&profile(b"RGB ", b"Lab ", &tags)).is_none());
    }

    #[test]
    fn cmyk_is_converted_by_its_table() {
        // Black ink makes it dark, and the others do nothing.
        let lut = lut8(4, |at| [if at & 1 == 1 { 0 } else { 255 }, 128, 128]);
        let profile = profile(b"CMYK", b"Lab ", &[(b"A2B0", lut)]);
        let conversion = ToSrgb::of_icc(&profile, ColourModel::Cmyk).unwrap();
        assert_eq!(conversion.convert_cmyk(&[0, 0, 0, 0, 9, 0, 0, 255]), [255, 255, 255, 0, 0, 0]);
        let mut rgb = [255, 255, 255, 0, 0, 0];
        conversion.convert_inks_without_black(&mut rgb);
        assert_eq!(rgb, [255; 6], "the other inks do nothing");
        assert!(of_rgb(&profile).is_none());
    }

    #[test]
    fn ink_without_a_table_is_what_is_left_of_light() {
        let [red, green, blue] = COLORANTS;
        let tags = shaper([para(SRGB), para(SRGB), para(SRGB)], [blue, green, red]);
        let conversion = ToSrgb::of_icc(&profile(b"CMYK", b"XYZ ", &tags), ColourModel::Cmyk).unwrap();
        assert_eq!(conversion.convert_cmyk(&[55, 155, 205, 0]), [50, 100, 200]);
        // Half of the light is left by black ink.
        let half = conversion.convert_cmyk(&[55, 155, 205, 127]);
        assert!(half.iter().zip([25, 50, 100]).all(|(found, level): (&u8, u8)| found.abs_diff(level) <= 1), "{half:?}");
    }

    #[test]
    fn a_table_may_have_any_number_of_inputs() {
        // The first of one, and the fourth of four, which is opaque.
        for (inputs, light) in [(1, 1), (4, 1)] {
            let lut = lut8(inputs, |at| [if at & light == 0 { 0 } else { 255 }, 128, 128]);
            let conversion = of_rgb(&profile(b"RGB ", b"Lab ", &[(b"A2B0", lut)])).unwrap();
            assert_eq!(converted(&conversion, [255, 0, 0]), [255; 3]);
        }
    }

    #[test]
    fn curves_of_lut_a_to_b_type_are_heeded() {
        // Only curves, a matrix that swaps red and blue, and curves.
        let mut tag = b"mAB \0\0\0\0\x03\x03\0\0".to_vec();
        let curves: Vec<u8> = (0..3).flat_map(|_| table(&[])).collect();
        for offset in [32, 32 + 36, 32 + 36 + 48, 0, 0_u32] {
            tag.extend(offset.to_be_bytes());
        }
        tag.extend(&curves);
        let half = 32_768.0 / 65_535.0;
        let [red, green, blue] = COLORANTS;
        let rows = [0, 1, 2].map(|row| [blue[row], green[row], red[row]].map(|value| number(value * half)).concat());
        tag.extend(rows.concat());
        tag.extend([0; 12]);
        tag.extend((0..3).flat_map(|_| para(SRGB)));
        let conversion = of_rgb(&profile(b"RGB ", b"XYZ ", &[(b"A2B1", tag)])).unwrap();
        assert_eq!(converted(&conversion, [200, 100, 50]), [50, 100, 200]);
    }

    #[test]
    fn profiles_cut_anywhere_and_of_the_wrong_kind_are_ignored() {
        let [red, green, blue] = COLORANTS;
        let whole = rgb_profile(&para(SRGB), [blue, green, red]);
        assert!(of_rgb(&whole).is_some());
        for length in 0..whole.len() {
            assert!(of_rgb(&whole[..length]).is_none(), "{length}");
        }
        for (at, bytes) in
            [(16, b"Lab "), (16, b"CMYK"), (20, b"RGB "), (36, b"abcd"), (68, b"\0\0\0\0"), (8, b"\x05\0\0\0")]
        {
            let mut other = whole.clone();
            other[at..at + 4].copy_from_slice(bytes);
            assert!(of_rgb(&other).is_none(), "{at}");
        }
        // Damage in any byte must not panic.
        for at in 0..whole.len() {
            for value in [0, 1, 0x7F, 0xFF] {
                let mut other = whole.clone();
                other[at] = value;
                let _: Option<ToSrgb> = of_rgb(&other);
            }
        }
    }

    #[test]
    fn gamma_counts_beyond_libpngs_threshold_and_chromaticities_only_beside_it() {
        let srgb = [31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000];
        assert!(ToSrgb::of_gamma(Some(45_455), None).is_none());
        assert!(
            ToSrgb::of_gamma(None, Some([31_270, 32_900, 15_000, 6_000, 30_000, 60_000, 64_000, 33_000])).is_none()
        );
        assert!(ToSrgb::of_gamma(Some(0), None).is_none());
        assert!(ToSrgb::of_gamma(Some(45_455), Some([0; 8])).is_none());
        let linear = ToSrgb::of_gamma(Some(100_000), Some(srgb)).unwrap();
        assert_eq!(converted(&linear, [128; 3]), [188; 3]);
        let steep = ToSrgb::of_gamma(Some(2_000), None).unwrap();
        assert_eq!((converted(&steep, [236; 3])[0], converted(&steep, [254; 3])[0]), (40, 234));
        let swapped = [31_270, 32_900, 15_000, 6_000, 30_000, 60_000, 64_000, 33_000];
        let swapped = ToSrgb::of_gamma(Some(45_455), Some(swapped)).unwrap();
        let shown = converted(&swapped, [200, 100, 50]);
        assert!(shown.iter().zip([50, 100, 200]).all(|(a, b)| a.abs_diff(b) <= 5), "{shown:?}");
    }

    #[test]
    fn high_dynamic_range_is_shown_with_its_reference_white_at_half() {
        assert!(ToSrgb::knows_cicp(9, 16) && !ToSrgb::knows_cicp(2, 13) && !ToSrgb::knows_cicp(1, 2));
        let pq = ToSrgb::of_cicp(9, 16).unwrap();
        // PQ's code 148 of 255 is 203 cd/m², and 192 is 1,000.
        assert!(converted(&pq, [148; 3])[0].abs_diff(188) <= 1);
        assert!(converted(&pq, [192; 3])[0] >= 254 && converted(&pq, [255; 3])[0] == 255);
        let hlg = ToSrgb::of_cicp(9, 18).unwrap();
        assert_eq!(converted(&hlg, [255; 3]), [255; 3]);
    }
}
