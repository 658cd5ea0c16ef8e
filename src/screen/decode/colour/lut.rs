//! A profile's table (ICC.1:2022, 10.10, 10.11, 10.12): curves, a grid of up to four dimensions, curves, a matrix, curves.

use super::curve::Curve;
use super::gamut::{D50, XYZ_TO_SRGB};
use super::{LEVELS, to_float, to_index};

/// What a table's results are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    Lab,
    Xyz,
}

/// A table to the linear light of sRGB.
pub(super) struct Lut {
    pub(super) grid: Option<Grid>,
    /// The curves before the matrix, and the matrix with its offsets in the fourth column.
    pub(super) middle: Option<([Curve<'static>; 3], [[f32; 4]; 3])>,
    pub(super) outputs: [Curve<'static>; 3],
    pub(super) connection: Connection,
}

/// A grid with a curve before each of its dimensions.
pub(super) struct Grid {
    dimensions: Vec<Dimension>,
    values: Vec<[u16; 3]>,
}

struct Dimension {
    /// Of each level, the grid point below it, counted in values, and how far the level lies on the way to the next point.
    places: Box<[(u32, f32); LEVELS]>,
    /// From a point to the next one, in values.
    stride: usize,
}

impl Grid {
    /// A grid of as many dimensions as there are curves, with two points or more in each. The last dimension varies fastest.
    pub(super) fn new(curves: &[Curve<'_>], points: &[usize], values: Vec<[u16; 3]>) -> Self {
        let mut stride = values.len();
        let dimensions = curves.iter().zip(points).map(|(curve, points)| {
            stride /= points;
            let last = points - 1;
            let place = |value: f32| {
                let at = value.clamp(0.0, 1.0) * to_float(last);
                let low = to_index(at).min(last);
                (u32::try_from(low * stride).unwrap_or_default(), at - to_float(low))
            };
            Dimension { places: Box::new(curve.linear_levels().map(place)), stride }
        });
        Self { dimensions: dimensions.collect(), values }
    }

    /// Linear between the points of every dimension.
    fn at(&self, device: [u8; 4]) -> [f32; 3] {
        // The corners of the cell that have a weight.
        let (mut corners, mut count) = ([(0, 1.0); 16], 1);
        for (dimension, level) in self.dimensions.iter().zip(device) {
            let (low, way) = dimension.places[usize::from(level)];
            for corner in 0..count {
                let (index, weight): (usize, f32) = corners[corner];
                let index = index + low as usize;
                corners[corner] = (index, weight * (1.0 - way));
                if way > 0.0 {
                    corners[corner + count] = (index + dimension.stride, weight * way);
                }
            }
            count *= if way > 0.0 { 2 } else { 1 };
        }
        let mut sum = [0.0; 3];
        for (index, weight) in &corners[..count] {
            let value = self.values[*index];
            sum = [0, 1, 2].map(|channel| sum[channel] + weight * f32::from(value[channel]));
        }
        sum.map(|sum| sum * (1.0 / 65_535.0))
    }

    /// The number of samples of a pixel.
    pub(super) fn inputs(&self) -> usize {
        self.dimensions.len()
    }
}

impl Lut {
    /// A pixel in the linear light of sRGB.
    pub(super) fn linear(&self, device: [u8; 4]) -> [f32; 3] {
        let mut value = match &self.grid {
            Some(grid) => grid.at(device),
            None => [device[0], device[1], device[2]].map(|level| f32::from(level) / 255.0),
        };
        if let Some((curves, matrix)) = &self.middle {
            value = each(curves, value);
            value = matrix.map(|row| row[0] * value[0] + row[1] * value[1] + row[2] * value[2] + row[3]);
        }
        value = each(&self.outputs, value);
        if self.connection == Connection::Lab {
            value = lab_to_xyz(value);
        }
        XYZ_TO_SRGB.times(value)
    }
}

fn each(curves: &[Curve<'_>; 3], value: [f32; 3]) -> [f32; 3] {
    [0, 1, 2].map(|channel| curves[channel].at(value[channel]))
}

/// CIELAB, of which 0 to 1 stands for 0 to 100 and for -128 to 127, to XYZ under D50.
fn lab_to_xyz([l, a, b]: [f32; 3]) -> [f32; 3] {
    let y = (l * 100.0 + 16.0) / 116.0;
    let (x, z) = (y + (a * 255.0 - 128.0) / 500.0, y - (b * 255.0 - 128.0) / 200.0);
    let light = |t: f32| if t * t * t > 0.008_856 { t * t * t } else { (t - 16.0 / 116.0) / 7.787 };
    [light(x) * D50[0], light(y) * D50[1], light(z) * D50[2]]
}
