//! Tone curves: the encoded value of a channel → its linear light.

use std::borrow::Cow;

use super::{LEVELS, to_float, to_index};

/// A tone curve.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Curve<'a> {
    Formula(Formula),
    /// Evenly spaced values of one or two bytes, between which lines are drawn. There are at least two.
    Table {
        values: Cow<'a, [u8]>,
        is_wide: bool,
    },
    /// SMPTE ST 2084, where 1 is BT.2408's reference white of 203 cd/m².
    Pq,
    /// BT.2100's HLG without its system gamma.
    Hlg,
}

/// `(a * x + b)^g + e`, and `c * x + f` below `d` (ICC.1:2022, 10.18, type 4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Formula {
    pub(super) g: f32,
    pub(super) a: f32,
    pub(super) b: f32,
    pub(super) c: f32,
    pub(super) d: f32,
    pub(super) e: f32,
    pub(super) f: f32,
}

impl Formula {
    /// `x^g`.
    pub(super) const fn power(g: f32) -> Self {
        Self { g, a: 1.0, b: 0.0, c: 0.0, d: 0.0, e: 0.0, f: 0.0 }
    }

    /// Whether it gives a number for every input, by which browsers judge a profile.
    pub(super) fn is_sound(&self) -> bool {
        let Self { g, a, b, c, d, e, f } = *self;
        (a + b + c + d + e + f + g).is_finite() && a >= 0.0 && c >= 0.0 && d >= 0.0 && g >= 0.0 && a * d + b >= 0.0
    }

    /// The formula below 0 is its mirror image.
    fn at(&self, x: f32) -> f32 {
        let Self { g, a, b, c, d, e, f } = *self;
        let size = x.abs();
        let base = a * size + b;
        // Browsers leave 0 at 0 even where g is 0.
        let power = if base == 0.0 { 0.0 } else { base.powf(g) };
        let value = if size < d { c * size + f } else { power + e };
        value.copysign(value * x.signum())
    }
}

impl Curve<'_> {
    pub(super) fn at(&self, x: f32) -> f32 {
        match self {
            Self::Formula(formula) => {
                if *formula == Formula::power(1.0) {
                    x
                } else {
                    formula.at(x)
                }
            }
            Self::Table { values, is_wide } => {
                let last = values.len() / if *is_wide { 2 } else { 1 } - 1;
                let value = |index: usize| {
                    if *is_wide {
                        f32::from(u16::from_be_bytes([values[2 * index], values[2 * index + 1]])) / 65_535.0
                    } else {
                        f32::from(values[index]) / 255.0
                    }
                };
                let at = x.clamp(0.0, 1.0) * to_float(last);
                let low = to_index(at).min(last);
                let (from, to) = (value(low), value((low + 1).min(last)));
                from + (to - from) * (at - to_float(low))
            }
            Self::Pq => pq(x),
            Self::Hlg => hlg(x),
        }
    }

    /// The linear light of each level.
    pub(super) fn linear_levels(&self) -> [f32; LEVELS] {
        let mut levels = [0.0; LEVELS];
        for (level, value) in (0..=u8::MAX).zip(&mut levels) {
            *value = self.at(f32::from(level) / 255.0);
        }
        levels
    }

    pub(super) fn into_owned(self) -> Curve<'static> {
        match self {
            Self::Formula(formula) => Curve::Formula(formula),
            Self::Table { values, is_wide } => Curve::Table { values: Cow::Owned(values.into_owned()), is_wide },
            Self::Pq => Curve::Pq,
            Self::Hlg => Curve::Hlg,
        }
    }
}

/// BT.2100, table 4, over the reference white.
fn pq(x: f32) -> f32 {
    const M1: f32 = 1305.0 / 8192.0;
    const M2: f32 = 2523.0 / 32.0;
    const C1: f32 = 107.0 / 128.0;
    const C2: f32 = 2413.0 / 128.0;
    const C3: f32 = 2392.0 / 128.0;
    const REFERENCE_WHITE: f32 = 203.0;
    let power = x.powf(1.0 / M2);
    ((power - C1).max(0.0) / (C2 - C3 * power)).powf(1.0 / M1) * 10_000.0 / REFERENCE_WHITE
}

/// BT.2100, table 5: the inverse of the OETF.
fn hlg(x: f32) -> f32 {
    const A: f32 = 0.178_832_8;
    const B: f32 = 0.284_668_9;
    const C: f32 = 0.559_910_7;
    if x <= 0.5 { x * x / 3.0 } else { (((x - C) / A).exp() + B) / 12.0 }
}
