//! Luma and chroma → red, green and blue of 8 bits, or one plane → alpha.

use super::super::isobmff::Nclx;
use super::av1::YuvFrame;

/// Converts the rows of frames of one kind.
pub(super) struct YuvToRgb {
    /// The matrix: what luma and the two chroma samples add to red, green and blue of 0 to 255.
    matrix: [[f32; 3]; 3],
    /// What is subtracted from the samples first.
    offsets: [f32; 3],
    luma: Vec<u16>,
    chroma: [Vec<u16>; 2],
    /// Two rows of chroma before they are spread.
    near: Vec<u16>,
    far: Vec<u16>,
}

impl YuvToRgb {
    /// `None`: the matrix is one that viewers do not support.
    pub(super) fn new(colour: Nclx, frame: &YuvFrame) -> Option<Self> {
        let weights = Weights::of(colour)?;
        let has_chroma = frame.planes.len() == 3;
        // Identity is for red, green and blue themselves, which have no chroma to spread.
        if has_chroma && matches!(weights, Weights::Identity) && frame.subsampled != (false, false) {
            return None;
        }
        let deep = f32::from(1u16 << (frame.bit_depth - 8));
        let largest = 256.0 * deep - 1.0;
        let (black, luma_span, chroma_span) =
            if colour.is_full_range { (0.0, largest, largest) } else { (16.0 * deep, 219.0 * deep, 224.0 * deep) };
        let (luma, chroma) = (255.0 / luma_span, 255.0 / chroma_span);
        let middle = 128.0 * deep;
        let (offsets, matrix) = match weights {
            Weights::Identity => ([black; 3], [[0.0, 0.0, luma], [luma, 0.0, 0.0], [0.0, luma, 0.0]]),
            Weights::YCgCo => {
                let matrix = [[luma, -chroma, chroma], [luma, chroma, 0.0], [luma, -chroma, -chroma]];
                ([black, middle, middle], matrix)
            }
            // ITU-T H.273, 8.3: the weights of red and blue in luma.
            Weights::RedBlue(red, blue) => {
                let green = 1.0 - red - blue;
                let (to_red, to_blue) = (2.0 * (1.0 - red) * chroma, 2.0 * (1.0 - blue) * chroma);
                let to_green = [-blue / green * to_blue, -red / green * to_red];
                let matrix = [[luma, 0.0, to_red], [luma, to_green[0], to_green[1]], [luma, to_blue, 0.0]];
                ([black, middle, middle], matrix)
            }
        };
        let matrix = if has_chroma { matrix } else { [[luma, 0.0, 0.0]; 3] };
        Some(Self {
            matrix,
            offsets,
            luma: Vec::new(),
            chroma: [Vec::new(), Vec::new()],
            near: Vec::new(),
            far: Vec::new(),
        })
    }

    /// Writes a row of the frame into every `step` bytes: red, green, blue, and whatever is there already.
    pub(super) fn write_rgb(&mut self, frame: &YuvFrame, y: u32, step: usize, row: &mut [u8]) {
        read_row(frame, 0, y, &mut self.luma);
        if frame.planes.len() < 3 {
            for (pixel, luma) in row.chunks_exact_mut(step).zip(&self.luma) {
                pixel[..3].fill(to_byte((f32::from(*luma) - self.offsets[0]) * self.matrix[0][0]));
            }
            return;
        }
        self.spread_chroma(frame, y);
        // Spread chroma is sixteen times as large.
        let scale = if frame.subsampled.0 { 1.0 / 16.0 } else { 1.0 };
        let [[r0, r1, r2], [g0, g1, g2], [b0, b1, b2]] = self.matrix;
        let chroma = self.chroma[0].iter().zip(&self.chroma[1]);
        for ((pixel, luma), (first, second)) in row.chunks_exact_mut(step).zip(&self.luma).zip(chroma) {
            let y = f32::from(*luma) - self.offsets[0];
            let u = f32::from(*first) * scale - self.offsets[1];
            let v = f32::from(*second) * scale - self.offsets[2];
            pixel[0] = to_byte(r0 * y + r1 * u + r2 * v);
            pixel[1] = to_byte(g0 * y + g1 * u + g2 * v);
            pixel[2] = to_byte(b0 * y + b1 * u + b2 * v);
        }
    }

    /// Writes the luma of a row into every fourth byte.
    pub(super) fn write_alpha(&mut self, frame: &YuvFrame, y: u32, row: &mut [u8]) {
        read_row(frame, 0, y, &mut self.luma);
        for (pixel, luma) in row.chunks_exact_mut(4).zip(&self.luma) {
            pixel[3] = to_byte((f32::from(*luma) - self.offsets[0]) * self.matrix[1][0]);
        }
    }

    /// Makes two rows of chroma as wide as luma. Where chroma is subsampled, each sample lies in the middle of its luma
    /// samples, and those between two are weighted by how near they are.
    fn spread_chroma(&mut self, frame: &YuvFrame, y: u32) {
        let (across, down) = frame.subsampled;
        for plane in [1, 2] {
            let spread = &mut self.chroma[plane - 1];
            if !across {
                read_row(frame, plane, y, spread);
                continue;
            }
            let nearest = if down { y / 2 } else { y };
            read_row(frame, plane, nearest, &mut self.near);
            let next = match (down, y % 2) {
                (true, 0) => nearest.saturating_sub(1),
                (true, _) => (nearest + 1).min(frame.height.div_ceil(2) - 1),
                (false, _) => nearest,
            };
            read_row(frame, plane, next, &mut self.far);
            // Of at most 4 × 4,095.
            let mixed: &mut Vec<u16> = &mut self.near;
            mixed.iter_mut().zip(&self.far).for_each(|(near, far)| *near = 3 * *near + far);
            spread.clear();
            for (x, sample) in mixed.iter().enumerate() {
                let before = mixed[x.saturating_sub(1)];
                let after = mixed.get(x + 1).unwrap_or(sample);
                // Of at most 16 × 4,095.
                spread.extend([3 * sample + before, 3 * sample + after]);
            }
        }
    }
}

/// How colours make up luma.
enum Weights {
    /// The planes are green, blue and red.
    Identity,
    YCgCo,
    /// The weights of red and blue; what is left is green.
    RedBlue(f32, f32),
}

impl Weights {
    /// ITU-T H.273, table 4. What is unspecified, or reserved for "others", is taken for BT.601, as browsers do.
    fn of(colour: Nclx) -> Option<Self> {
        const BT_601: Weights = Weights::RedBlue(0.299, 0.114);
        const BT_709: Weights = Weights::RedBlue(0.2126, 0.0722);
        const BT_2020: Weights = Weights::RedBlue(0.2627, 0.0593);
        Some(match colour.matrix {
            0 => Self::Identity,
            1 => BT_709,
            2 | 5 | 6 | 15 => BT_601,
            4 => Self::RedBlue(0.30, 0.11),
            7 => Self::RedBlue(0.212, 0.087),
            8 => Self::YCgCo,
            9 => BT_2020,
            // Derived from the primaries.
            12 => match colour.primaries {
                1 => BT_709,
                9 => BT_2020,
                12 => Self::RedBlue(0.228_97, 0.079_29),
                _ => BT_601,
            },
            _ => return None,
        })
    }
}

pub(super) fn to_byte(value: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the conversion stops at 0 and 255")]
    let byte = (value + 0.5) as u8;
    byte
}

/// Reads a row of a plane. What the plane does not have is left out.
fn read_row(frame: &YuvFrame, plane: usize, y: u32, row: &mut Vec<u16>) {
    row.clear();
    let width = if plane > 0 && frame.subsampled.0 { frame.width.div_ceil(2) } else { frame.width } as usize;
    let plane = &frame.planes[plane];
    let samples = (*plane.samples).as_ref();
    let samples = samples.get(y as usize * plane.stride..).unwrap_or_default();
    if frame.bit_depth > 8 {
        row.extend(samples.chunks_exact(2).take(width).map(|pair| u16::from_ne_bytes([pair[0], pair[1]])));
    } else {
        row.extend(samples.iter().take(width).map(|sample| u16::from(*sample)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::av1::YuvPlane;
    use super::*;

    /// A frame of 4 × 2 pixels whose samples all are these.
    fn frame(samples: [u16; 3], bit_depth: u8, subsampled: (bool, bool), planes: usize) -> YuvFrame {
        let plane = |sample: &u16| {
            let bytes: Vec<u8> = match bit_depth {
                8 => vec![u8::try_from(*sample).unwrap(); 16],
                _ => sample.to_ne_bytes().repeat(16),
            };
            YuvPlane { samples: Box::new(bytes), stride: if bit_depth > 8 { 16 } else { 8 } }
        };
        let planes = samples.iter().take(planes).map(plane).collect();
        YuvFrame { width: 4, height: 2, bit_depth, subsampled, planes, is_damaged: false }
    }

    fn rgb(matrix: u16, is_full_range: bool, frame: &YuvFrame) -> Option<[u8; 3]> {
        let colour = Nclx { primaries: 1, transfer: 13, matrix, is_full_range };
        let mut row = [0; 12];
        YuvToRgb::new(colour, frame)?.write_rgb(frame, 1, 3, &mut row);
        assert_eq!(row[..3], row[9..], "all pixels are alike");
        row[..3].try_into().ok()
    }

    #[test]
    fn known_colours_come_out_for_each_matrix_range_depth_and_subsampling() {
        for subsampled in [(true, true), (true, false), (false, false)] {
            // Red in BT.601: luma 81, chroma 90 and 240, in the limited range.
            assert_eq!(rgb(6, false, &frame([81, 90, 240], 8, subsampled, 3)), Some([254, 0, 0]));
            assert_eq!(rgb(6, false, &frame([4 * 81, 4 * 90, 4 * 240], 10, subsampled, 3)), Some([254, 0, 0]));
            // Blue in BT.709 (18, 255, 116) and in BT.2020 (15, 255, 118), in the full range.
            assert_eq!(rgb(1, true, &frame([18, 255, 116], 8, subsampled, 3)), Some([0, 0, 254]));
            assert_eq!(rgb(9, true, &frame([15, 255, 118], 8, subsampled, 3)), Some([0, 0, 254]));
            assert_eq!(rgb(2, true, &frame([4095, 2048, 2048], 12, subsampled, 3)), Some([255; 3]));
        }
        assert_eq!(rgb(0, true, &frame([10, 20, 30], 8, (false, false), 3)), Some([30, 10, 20]));
        assert_eq!(rgb(8, true, &frame([100, 138, 108], 8, (false, false), 3)), Some([70, 110, 110]));
        assert_eq!(rgb(1, false, &frame([16, 0, 0], 8, (true, true), 1)), Some([0; 3]));
        assert_eq!(rgb(1, false, &frame([235, 0, 0], 8, (true, true), 1)), Some([255; 3]));
    }

    #[test]
    fn a_matrix_that_viewers_do_not_support_is_refused() {
        assert_eq!(rgb(14, true, &frame([1, 2, 3], 8, (false, false), 3)), None);
        assert_eq!(rgb(0, true, &frame([1, 2, 3], 8, (true, true), 3)), None);
    }

    #[test]
    fn chroma_is_spread_between_its_samples() {
        let mut frame = frame([0, 128, 128], 8, (true, false), 3);
        frame.planes[1].samples = Box::new(vec![0, 64, 0, 0, 0, 0, 0, 0, 0, 64]);
        let mut converter =
            YuvToRgb::new(Nclx { primaries: 1, transfer: 13, matrix: 6, is_full_range: true }, &frame).unwrap();
        converter.spread_chroma(&frame, 1);
        assert_eq!(converter.chroma[0], [0, 16 * 16, 48 * 16, 64 * 16]);
    }
}
