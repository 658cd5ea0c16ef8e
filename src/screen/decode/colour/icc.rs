//! ICC profiles (ICC.1:2022), read as browsers read them: what they need must be sound, and the rest may be anything.

use std::borrow::Cow;

use super::ColourModel;
use super::cicp::{self, ToneMap};
use super::curve::{Curve, Formula};
use super::gamut::{D50, Matrix, Primaries};
use super::lut::{Connection, Grid, Lut};

/// A larger profile is ignored.
const MAX_PROFILE_BYTES: usize = 16 << 20;
/// A table with more points is ignored. The largest that is known has a fifth of them.
const MAX_GRID_POINTS: usize = 1 << 21;
/// A longer curve behind a grid is ignored. Only such curves are copied.
const MAX_CURVE_BYTES: usize = 1 << 18;
const HEADER_BYTES: usize = 128;

/// A profile's header and its list of tags.
pub(super) struct Profile<'a> {
    bytes: &'a [u8],
    /// Entries of 12 bytes.
    tags: &'a [u8],
    connection: Connection,
}

/// What a profile says of its samples.
pub(super) enum Device<'a> {
    Grey(Curve<'a>),
    Rgb { curves: [Curve<'a>; 3], to_xyz: Matrix, tone: Option<ToneMap> },
    Table(Lut),
}

impl<'a> Profile<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let size = number(bytes, 0)?;
        let bytes = bytes.get(..size).filter(|bytes| bytes.len() <= MAX_PROFILE_BYTES)?;
        let count = number(bytes, HEADER_BYTES)?;
        let tags = bytes.get(HEADER_BYTES + 4..)?.get(..count.checked_mul(12)?)?;
        let is_sound_tag = |tag: &[u8]| {
            let (Some(offset), Some(length)) = (number(tag, 4), number(tag, 8)) else { return false };
            length >= 4 && offset.checked_add(length).is_some_and(|end| end <= size)
        };
        let white = [0, 1, 2].map(|axis| fixed(bytes, 68 + 4 * axis));
        let is_d50 = white.iter().zip(D50).all(|(value, d50)| value.is_some_and(|value| (value - d50).abs() <= 0.01));
        let is_profile = bytes.get(36..40)? == b"acsp" && *bytes.get(8)? <= 4;
        if !is_profile || !is_d50 || !tags.chunks_exact(12).all(is_sound_tag) {
            return None;
        }
        let connection = match bytes.get(20..24)? {
            b"XYZ " => Connection::Xyz,
            b"Lab " => Connection::Lab,
            _ => return None,
        };
        Some(Self { bytes, tags, connection })
    }

    /// What the profile says of samples of this model. `None` where it says nothing that browsers heed.
    pub(super) fn device(&self, model: ColourModel) -> Option<Device<'a>> {
        let is_grey = match (self.bytes.get(16..20)?, model) {
            (b"GRAY", ColourModel::Grey | ColourModel::PngGrey) => true,
            (b"GRAY" | b"CMYK", ColourModel::PngRgb | ColourModel::PngGrey) => return None,
            (b"RGB ", ColourModel::Rgb | ColourModel::Grey) | (b"CMYK", ColourModel::Cmyk) => false,
            (_, ColourModel::PngRgb | ColourModel::PngGrey) => false,
            _ => return None,
        };
        // A part that is there and damaged makes browsers ignore the whole profile, even if it is not used.
        let grey = match self.tag(b"kTRC").filter(|_| is_grey) {
            Some(tag) => Some(curve(tag)?.0),
            None => None,
        };
        let has_grey = grey.is_some();
        let curves = match [b"rTRC", b"gTRC", b"bTRC"].map(|name| self.tag(name)) {
            [Some(red), Some(green), Some(blue)] if !has_grey => Some([curve(red)?.0, curve(green)?.0, curve(blue)?.0]),
            _ => None,
        };
        let colorants = match [b"rXYZ", b"gXYZ", b"bXYZ"].map(|name| self.tag(name)) {
            [Some(red), Some(green), Some(blue)] if !has_grey => {
                let [red, green, blue] = [xyz(red)?, xyz(green)?, xyz(blue)?];
                Some(Matrix([0, 1, 2].map(|row| [red[row], green[row], blue[row]])))
            }
            _ => None,
        };
        let table = match self.first_tag([b"A2B0", b"A2B1"]) {
            Some(tag) => Some(self.table(tag)?),
            None => None,
        };
        if self.first_tag([b"B2A0", b"B2A1"]).is_some_and(|tag| table_back(tag).is_none()) {
            return None;
        }
        let cicp = match self.tag(b"cicp") {
            Some(tag) => Some(tag.starts_with(b"cicp").then(|| tag.get(8..12)).flatten()?),
            None => None,
        };
        // Adaptive gain curves, which count on other screens.
        let is_gain_sound = |tag: &[u8]| {
            tag.starts_with(b"hagc") && number(tag, 8).is_some_and(|length| length.saturating_add(12) <= tag.len())
        };
        if self.tag(b"HAGC").is_some_and(|tag| !is_gain_sound(tag)) {
            return None;
        }
        let curves = curves.zip(colorants);
        let grey = grey.filter(|_| self.connection == Connection::Xyz);
        if table.is_none() && curves.is_none() && grey.is_none() {
            return None;
        }
        // Code points go before tables, and tables before curves.
        if let Some(&[primaries, transfer, 0, 1]) = cicp {
            let known = cicp::primaries(primaries).and_then(Primaries::to_xyz);
            // Of primaries that are not known, those of the profile count, but only for a high dynamic range.
            let own = curves.as_ref().filter(|_| matches!(transfer, 16 | 18)).map(|(_, to_xyz)| *to_xyz);
            if let (Some(to_xyz), Some((curve, tone))) = (known.or(own), cicp::transfer(transfer)) {
                return Some(Device::Rgb { curves: [curve.clone(), curve.clone(), curve], to_xyz, tone });
            }
        }
        if let Some(lut) = table {
            let inputs = lut.grid.as_ref().map_or(3, Grid::inputs);
            return (model != ColourModel::Cmyk || inputs == 4).then_some(Device::Table(lut));
        }
        if let Some(curve) = grey {
            return Some(Device::Grey(curve));
        }
        let (curves, to_xyz) = curves?;
        Some(Device::Rgb { curves, to_xyz, tone: None })
    }

    fn first_tag(&self, names: [&[u8; 4]; 2]) -> Option<&'a [u8]> {
        names.into_iter().find_map(|name| self.tag(name))
    }

    /// The first tag of that name.
    fn tag(&self, name: &[u8; 4]) -> Option<&'a [u8]> {
        let entry = self.tags.chunks_exact(12).find(|entry| entry.starts_with(name))?;
        self.bytes.get(number(entry, 4)?..)?.get(..number(entry, 8)?)
    }

    fn table(&self, tag: &'a [u8]) -> Option<Lut> {
        match tag.get(..4)? {
            b"mft1" => self.lut(tag, false),
            b"mft2" => self.lut(tag, true),
            b"mAB " => self.lut_a_to_b(tag),
            _ => None,
        }
    }

    /// lut8Type and lut16Type (10.11, 10.10). Their matrix counts only for colours that no image has.
    fn lut(&self, tag: &'a [u8], is_wide: bool) -> Option<Lut> {
        let (inputs, outputs, points) = (*tag.get(8)?, *tag.get(9)?, usize::from(*tag.get(10)?));
        let (lengths, start) = if is_wide { ([short(tag, 48)?, short(tag, 50)?], 52) } else { ([256; 2], 48) };
        if !(1..=4).contains(&inputs) || outputs != 3 || !lengths.iter().all(|length| (2..=4096).contains(length)) {
            return None;
        }
        let width = if is_wide { 2 } else { 1 };
        let mut rest = tag.get(start..)?;
        let mut tables = |count: usize, length: usize| {
            (0..count)
                .map(|_| {
                    let (values, after) = rest.split_at_checked(length * width)?;
                    rest = after;
                    Some(values)
                })
                .collect::<Option<Vec<&'a [u8]>>>()
        };
        let as_curve = |values: &'a [u8]| Curve::Table { values: Cow::Borrowed(values), is_wide };
        let points = vec![points; usize::from(inputs)];
        let before: Vec<_> = tables(points.len(), lengths[0])?.into_iter().map(as_curve).collect();
        let size = grid_size(&points)?;
        let grid = tables(1, size * 3)?[0];
        let after: Vec<_> = tables(3, lengths[1])?.into_iter().map(|values| as_curve(values).into_owned()).collect();
        let grid = Grid::new(&before, &points, grid_values(grid, is_wide));
        Some(Lut { grid: Some(grid), middle: None, outputs: after.try_into().ok()?, connection: self.connection })
    }

    /// lutAToBType (10.12).
    fn lut_a_to_b(&self, tag: &'a [u8]) -> Option<Lut> {
        let inputs = usize::from(*tag.get(8)?);
        if inputs > 4 || *tag.get(9)? != 3 {
            return None;
        }
        let offset = |at: usize| number(tag, at);
        let [b, matrix, m, grid, a] = [offset(12)?, offset(16)?, offset(20)?, offset(24)?, offset(28)?];
        // The curves named M and the matrix come together, and so do the curves named A and the grid.
        if b == 0 || (m == 0) != (matrix == 0) || (a == 0) != (grid == 0) || (a == 0 && inputs != 3) {
            return None;
        }
        let behind = |at: usize| -> Option<[Curve<'static>; 3]> {
            let curves = curves(tag, at, 3)?.into_iter();
            let owned = curves.map(|(curve, length)| (length <= MAX_CURVE_BYTES).then(|| curve.into_owned()));
            owned.collect::<Option<Vec<_>>>()?.try_into().ok()
        };
        let middle = if m == 0 {
            None
        } else {
            // XYZ is encoded so that 1.0 is 32,768 of 65,535.
            let factor = if self.connection == Connection::Xyz { 65_535.0 / 32_768.0 } else { 1.0 };
            let mut rows = [[0.0; 4]; 3];
            for (row, values) in rows.iter_mut().enumerate() {
                for (column, value) in values.iter_mut().enumerate() {
                    let index = if column < 3 { 3 * row + column } else { 9 + row };
                    *value = factor * fixed(tag, matrix.checked_add(4 * index)?)?;
                }
            }
            Some((behind(m)?, rows))
        };
        let grid = if a == 0 {
            None
        } else {
            let points: Vec<_> = tag.get(grid..)?.get(..inputs)?.iter().map(|points| usize::from(*points)).collect();
            let is_wide = match tag.get(grid.checked_add(16)?)? {
                1 => false,
                2 => true,
                _ => return None,
            };
            let width = if is_wide { 2 } else { 1 };
            let values = tag.get(grid.checked_add(20)?..)?.get(..grid_size(&points)? * 3 * width)?;
            let before: Vec<_> = curves(tag, a, inputs)?.into_iter().map(|(curve, _)| curve).collect();
            Some(Grid::new(&before, &points, grid_values(values, is_wide)))
        };
        Some(Lut { grid, middle, outputs: behind(b)?, connection: self.connection })
    }
}

/// Curves that follow each other, each at a multiple of four bytes.
fn curves(tag: &[u8], mut at: usize, count: usize) -> Option<Vec<(Curve<'_>, usize)>> {
    let mut curves = Vec::with_capacity(count);
    for _ in 0..count {
        let (curve, length) = curve(tag.get(at..)?)?;
        curves.push((curve, length));
        at = at.checked_add(length.next_multiple_of(4))?;
    }
    Some(curves)
}

/// A curve (10.6, 10.18), and how many bytes it takes.
fn curve(bytes: &[u8]) -> Option<(Curve<'_>, usize)> {
    match bytes.get(..4)? {
        b"curv" => {
            let count = number(bytes, 8)?;
            let length = count.checked_mul(2)?.checked_add(12)?;
            let values = bytes.get(12..length)?;
            let curve = match count {
                0 => Curve::Formula(Formula::power(1.0)),
                1 => Curve::Formula(Formula::power(f32::from(u16::from_be_bytes([values[0], values[1]])) / 256.0)),
                _ => Curve::Table { values: Cow::Borrowed(values), is_wide: true },
            };
            Some((curve, length))
        }
        b"para" => {
            let kind = short(bytes, 8)?;
            let count = *[1, 3, 4, 5, 7].get(kind)?;
            let mut p = [0.0; 7];
            for (index, value) in p.iter_mut().enumerate().take(count) {
                *value = fixed(bytes, 12 + 4 * index)?;
            }
            let [g, a, b, c, d, e, f] = p;
            let formula = match kind {
                0 => Formula::power(g),
                // Type 2 calls the offset c. Below -b / a, both are constant.
                1 | 2 if a == 0.0 => return None,
                1 | 2 => Formula { g, a, b, c: 0.0, d: -b / a, e: c, f: c },
                _ => Formula { g, a, b, c, d, e, f },
            };
            formula.is_sound().then_some((Curve::Formula(formula), 12 + 4 * count))
        }
        _ => None,
    }
}

/// Whether a table to the device, which is not used, is sound.
fn table_back(tag: &[u8]) -> Option<()> {
    let (inputs, outputs) = (usize::from(*tag.get(8)?), usize::from(*tag.get(9)?));
    if inputs != 3 || !matches!(outputs, 3 | 4) {
        return None;
    }
    if tag.starts_with(b"mft1") || tag.starts_with(b"mft2") {
        let is_wide = tag.starts_with(b"mft2");
        let ([before, after], start) = if is_wide { ([short(tag, 48)?, short(tag, 50)?], 52) } else { ([256; 2], 48) };
        let grid = grid_size(&[usize::from(*tag.get(10)?); 3])? * outputs;
        let is_possible = (2..=4096).contains(&before) && (2..=4096).contains(&after);
        let values = before * inputs + grid + after * outputs;
        let end = start + values * if is_wide { 2 } else { 1 };
        return (is_possible && end <= tag.len()).then_some(());
    }
    if !tag.starts_with(b"mBA ") {
        return None;
    }
    let offset = |at: usize| number(tag, at);
    let [b, matrix, m, grid, a] = [offset(12)?, offset(16)?, offset(20)?, offset(24)?, offset(28)?];
    if b == 0 || (m == 0) != (matrix == 0) || (a == 0) != (grid == 0) || (a == 0 && outputs != 3) {
        return None;
    }
    curves(tag, b, 3)?;
    if m != 0 {
        curves(tag, m, 3)?;
        tag.get(matrix..)?.get(..48)?;
    }
    if a != 0 {
        curves(tag, a, outputs)?;
        let points = tag.get(grid..)?.get(..3)?;
        let points = [points[0], points[1], points[2]].map(usize::from);
        let width = usize::from(*tag.get(grid.checked_add(16)?)?);
        let bytes = grid_size(&points)? * outputs * width;
        (matches!(width, 1 | 2) && tag.get(grid.checked_add(20)?..)?.len() >= bytes).then_some(())?;
    }
    Some(())
}

/// The number of points of a grid, which has two or more in each dimension.
fn grid_size(points: &[usize]) -> Option<usize> {
    let size = points.iter().try_fold(1_usize, |size, points| size.checked_mul(*points))?;
    (points.iter().all(|points| *points >= 2) && size <= MAX_GRID_POINTS).then_some(size)
}

fn grid_values(bytes: &[u8], is_wide: bool) -> Vec<[u16; 3]> {
    if is_wide {
        let wide = |at: &[u8]| u16::from_be_bytes([at[0], at[1]]);
        bytes.chunks_exact(6).map(|at| [wide(at), wide(&at[2..]), wide(&at[4..])]).collect()
    } else {
        bytes.chunks_exact(3).map(|at| [at[0], at[1], at[2]].map(|value| u16::from(value) * 257)).collect()
    }
}

/// An XYZType (10.31).
fn xyz(tag: &[u8]) -> Option<[f32; 3]> {
    tag.starts_with(b"XYZ ").then_some(())?;
    Some([fixed(tag, 8)?, fixed(tag, 12)?, fixed(tag, 16)?])
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?)))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?)).ok()
}

/// An s15Fixed16Number (4.6).
#[expect(clippy::cast_precision_loss, reason = "browsers round it so")]
fn fixed(bytes: &[u8], at: usize) -> Option<f32> {
    Some(i32::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?) as f32 / 65_536.0)
}
