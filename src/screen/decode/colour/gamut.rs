//! Primaries and the matrices between colour spaces. What connects them is XYZ under D50 (ICC.1:2022, 6.3.1).

use std::sync::LazyLock;

/// Rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Matrix(pub(super) [[f32; 3]; 3]);

/// sRGB's linear light to XYZ under D50, with the rounding of ICC's numbers, which are 65,536ths.
pub(super) const SRGB_TO_XYZ: Matrix = Matrix([
    [0.436_065_67, 0.385_147_1, 0.143_066_4],
    [0.222_488_4, 0.716_873_17, 0.060_607_91],
    [0.013_916_016, 0.097_076_42, 0.714_096_07],
]);

/// XYZ under D50 to sRGB's linear light.
pub(super) static XYZ_TO_SRGB: LazyLock<Matrix> = LazyLock::new(|| SRGB_TO_XYZ.inverse().unwrap_or(Matrix::IDENTITY));

/// XYZ under D50 to BT.2020's linear light.
pub(super) static XYZ_TO_BT2020: LazyLock<Matrix> = LazyLock::new(|| {
    let to_xyz = Primaries::BT2020.to_xyz();
    to_xyz.and_then(|matrix| matrix.inverse()).unwrap_or(Matrix::IDENTITY)
});

/// BT.2020's linear light to that of sRGB.
pub(super) static BT2020_TO_SRGB: LazyLock<Matrix> = LazyLock::new(|| {
    let to_xyz = Primaries::BT2020.to_xyz().unwrap_or(Matrix::IDENTITY);
    XYZ_TO_SRGB.after(&to_xyz)
});

impl Matrix {
    pub(super) const IDENTITY: Self = Self([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);

    #[inline]
    pub(super) fn times(&self, [x, y, z]: [f32; 3]) -> [f32; 3] {
        self.0.map(|row| row[0] * x + row[1] * y + row[2] * z)
    }

    /// The matrix that does what `first` does, and then what this one does.
    pub(super) fn after(&self, first: &Self) -> Self {
        let columns = [0, 1, 2].map(|column| self.times(first.0.map(|row| row[column])));
        Self([0, 1, 2].map(|row| columns.map(|column| column[row])))
    }

    /// Whether no level changes by it.
    pub(super) fn is_identity(&self) -> bool {
        let differences = self.0.iter().flatten().zip(Self::IDENTITY.0.iter().flatten());
        differences.into_iter().all(|(value, one)| (value - one).abs() < 1e-5)
    }

    pub(super) fn inverse(&self) -> Option<Self> {
        let m = self.0.map(|row| row.map(f64::from));
        let cofactor = |row: usize, column: usize| {
            let (r, c) = ([(row + 1) % 3, (row + 2) % 3], [(column + 1) % 3, (column + 2) % 3]);
            m[r[0]][c[0]] * m[r[1]][c[1]] - m[r[0]][c[1]] * m[r[1]][c[0]]
        };
        let determinant: f64 = (0..3).map(|column| m[0][column] * cofactor(0, column)).sum();
        #[expect(clippy::cast_possible_truncation, reason = "what does not fit becomes infinite, and is refused")]
        let inverse = Self([0, 1, 2].map(|row| [0, 1, 2].map(|column| (cofactor(column, row) / determinant) as f32)));
        inverse.0.iter().flatten().all(|value| value.is_finite()).then_some(inverse)
    }
}

/// Chromaticities, x and y of each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Primaries {
    white: [f32; 2],
    rgb: [[f32; 2]; 3],
}

impl Primaries {
    pub(super) const BT2020: Self = Self::new(D65, [[0.708, 0.292], [0.170, 0.797], [0.131, 0.046]]);

    pub(super) const fn new(white: [f32; 2], rgb: [[f32; 2]; 3]) -> Self {
        Self { white, rgb }
    }

    /// Of x and y of white, red, green, blue.
    pub(super) fn of(xy: [f32; 8]) -> Self {
        Self { white: [xy[0], xy[1]], rgb: [[xy[2], xy[3]], [xy[4], xy[5]], [xy[6], xy[7]]] }
    }

    /// Linear light to XYZ under D50. `None` where the chromaticities are none, or lie on a line.
    pub(super) fn to_xyz(self) -> Option<Matrix> {
        let whole = |[x, y]: [f32; 2]| [x, y, 1.0 - x - y];
        let all = self.rgb.iter().chain([&self.white]).flatten();
        if !all.into_iter().all(|value| (0.0..=1.0).contains(value)) {
            return None;
        }
        let [red, green, blue] = self.rgb.map(whole);
        let primaries = Matrix([0, 1, 2].map(|row| [red[row], green[row], blue[row]]));
        let white = whole(self.white).map(|value| value / self.white[1]);
        let scales = primaries.inverse()?.times(white);
        let to_xyz = Matrix(primaries.0.map(|row| [0, 1, 2].map(|column| row[column] * scales[column])));
        let adapted = adapt_to_d50(white)?.after(&to_xyz);
        adapted.0.iter().flatten().all(|value| value.is_finite()).then_some(adapted)
    }
}

pub(super) const D65: [f32; 2] = [0.3127, 0.3290];

/// The white of XYZ under D50 (ICC.1:2022, 7.2.16).
pub(super) const D50: [f32; 3] = [0.964_202_9, 1.0, 0.824_905_1];

/// The linear Bradford adaptation (ICC.1:2022, annex E).
fn adapt_to_d50(white: [f32; 3]) -> Option<Matrix> {
    const BRADFORD: Matrix = Matrix([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]);
    let (from, to) = (BRADFORD.times(white), BRADFORD.times(D50));
    let mut scale = Matrix([[0.0; 3]; 3]);
    for (index, row) in scale.0.iter_mut().enumerate() {
        row[index] = to[index] / from[index];
    }
    Some(BRADFORD.inverse()?.after(&scale.after(&BRADFORD)))
}
