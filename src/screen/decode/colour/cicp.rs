//! The code points of ITU-T H.273 that browsers heed, and how they show high dynamic range on an ordinary screen.

use super::curve::{Curve, Formula};
use super::gamut::{D65, Primaries};

/// H.273, table 2.
pub(super) fn primaries(code: u8) -> Option<Primaries> {
    const C: [f32; 2] = [0.310, 0.316];
    const SMPTE_170M: [[f32; 2]; 3] = [[0.630, 0.340], [0.310, 0.595], [0.155, 0.070]];
    const P3: [[f32; 2]; 3] = [[0.680, 0.320], [0.265, 0.690], [0.150, 0.060]];
    Some(match code {
        1 => Primaries::new(D65, [[0.640, 0.330], [0.300, 0.600], [0.150, 0.060]]),
        4 => Primaries::new(C, [[0.670, 0.330], [0.210, 0.710], [0.140, 0.080]]),
        5 => Primaries::new(D65, [[0.640, 0.330], [0.290, 0.600], [0.150, 0.060]]),
        6 | 7 => Primaries::new(D65, SMPTE_170M),
        8 => Primaries::new(C, [[0.681, 0.319], [0.243, 0.692], [0.145, 0.049]]),
        9 => Primaries::BT2020,
        10 => Primaries::new([1.0 / 3.0, 1.0 / 3.0], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
        11 => Primaries::new([0.314, 0.351], P3),
        12 => Primaries::new(D65, P3),
        22 => Primaries::new(D65, [[0.630, 0.340], [0.295, 0.605], [0.155, 0.077]]),
        _ => return None,
    })
}

/// H.273, table 3.
pub(super) fn transfer(code: u8) -> Option<(Curve<'static>, Option<ToneMap>)> {
    /// Not the inverse of the camera's curve, but the screen's of BT.1886.
    const BT1886: Formula = Formula::power(2.4);
    const SMPTE_240M: Formula = Formula {
        g: 1.0 / 0.45,
        a: 1.0 / 1.111_572_2,
        b: 0.111_572_2 / 1.111_572_2,
        c: 0.25,
        d: 0.091_286_34,
        e: 0.0,
        f: 0.0,
    };
    const SRGB: Formula =
        Formula { g: 2.4, a: 1.0 / 1.055, b: 0.055 / 1.055, c: 1.0 / 12.92, d: 0.040_45, e: 0.0, f: 0.0 };
    /// SMPTE ST 428-1: 48 of 52.37 cd/m² are white.
    const SMPTE_428: Formula = Formula { g: 2.6, a: 1.034_080_8, ..Formula::power(2.6) };
    let formula = match code {
        1 | 6 | 11 | 14 | 15 => BT1886,
        4 => Formula::power(2.2),
        5 => Formula::power(2.8),
        7 => SMPTE_240M,
        8 => Formula::power(1.0),
        13 => SRGB,
        16 => return Some((Curve::Pq, Some(ToneMap::new(false)))),
        17 => SMPTE_428,
        18 => return Some((Curve::Hlg, Some(ToneMap::new(true)))),
        _ => return None,
    };
    Some((Curve::Formula(formula), None))
}

/// High dynamic range for a screen that has none: SMPTE ST 2094-50's mapping by the reference white. Browsers assume content
/// up to 1,000 cd/m² where the file does not say how bright its content is. It works on BT.2020's linear light, where 1 is
/// the reference white of 203 cd/m².
#[derive(Debug, Clone, Copy)]
pub(super) struct ToneMap {
    /// Whether the light is HLG's scene light, which gets BT.2100's system gamma of 1.2 on a screen of 1,000 cd/m².
    has_system_gamma: bool,
    /// The brightest light of the content over the reference white.
    peak: f32,
}

impl ToneMap {
    fn new(has_system_gamma: bool) -> Self {
        Self { has_system_gamma, peak: PEAK }
    }

    /// The same for content whose brightest light has this many cd/m².
    pub(super) fn up_to(self, max_light: u16) -> Self {
        Self { peak: (f32::from(max_light) / REFERENCE_WHITE).max(1.0), ..self }
    }

    pub(super) fn map(&self, light: [f32; 3]) -> [f32; 3] {
        let light = if self.has_system_gamma { system_gamma(light) } else { light };
        let largest = light[0].max(light[1]).max(light[2]);
        if largest <= 0.0 {
            return light;
        }
        let gain = shown(largest, self.peak) / largest;
        light.map(|value| value * gain)
    }
}

/// In cd/m².
const REFERENCE_WHITE: f32 = 203.0;

/// The brightest light of content that does not say it, over the reference white.
const PEAK: f32 = 1000.0 / REFERENCE_WHITE;

fn system_gamma(light: [f32; 3]) -> [f32; 3] {
    let luminance = 0.2627 * light[0] + 0.6780 * light[1] + 0.0593 * light[2];
    let scale = luminance.max(0.0).powf(0.2) * PEAK;
    light.map(|value| value * scale)
}

/// Up to the reference white, light is halved, or less where the content is not so bright. Above it there is a quadratic
/// Bézier curve up to the peak, which is shown as white.
fn shown(light: f32, peak: f32) -> f32 {
    const KAPPA: f32 = 0.65;
    // How bright the reference white is shown.
    let white = 1.0 - 0.5 * (peak.log2() / PEAK.log2()).min(1.0);
    if light <= 1.0 {
        return light * white;
    }
    if light >= peak {
        return 1.0;
    }
    let (middle_x, middle_y) = (1.0 - KAPPA + KAPPA / white, (1.0 - KAPPA) * white + KAPPA);
    let (ax, ay) = (1.0 - 2.0 * middle_x + peak, white - 2.0 * middle_y + 1.0);
    let (bx, by) = (2.0 * (middle_x - 1.0), 2.0 * (middle_y - white));
    let t = ((bx * bx + 4.0 * ax * (light - 1.0)).sqrt() - bx) / (2.0 * ax);
    white + t * (by + t * ay)
}
