//! What colours a PNG means: cICP counts first, then iCCP, sRGB, and gAMA with cHRM (PNG, third edition, section 4.3).

use std::io::{self, Read};

use flate2::read::ZlibDecoder;
use png::{ColorType, Info, ScaledFloat, SourceChromaticities};

use super::super::colour::{ColourModel, ToSrgb};
use super::MAX_METADATA_BYTES;

#[cfg(test)]
thread_local! {
    /// How often this thread has looked for a conversion.
    pub(super) static CALLS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// The conversion to sRGB, as browsers choose it. A chunk that they do not understand leaves the choice to the next.
pub(super) fn to_srgb(info: &Info<'_>) -> Option<ToSrgb> {
    #[cfg(test)]
    CALLS.set(CALLS.get() + 1);
    if let Some(code) = info.coding_independent_code_points
        && code.is_video_full_range_image
        && ToSrgb::knows_cicp(code.color_primaries, code.transfer_function)
    {
        return ToSrgb::of_cicp(code.color_primaries, code.transfer_function);
    }
    if let Some(profile) = info.icc_profile.as_deref() {
        let model = match info.color_type {
            ColorType::Grayscale | ColorType::GrayscaleAlpha => ColourModel::PngGrey,
            _ => ColourModel::PngRgb,
        };
        let conversion = ToSrgb::of_icc(profile, model);
        if conversion.is_some() || ToSrgb::knows_icc(profile) {
            return conversion;
        }
    }
    if info.srgb.is_some() {
        return None;
    }
    ToSrgb::of_gamma(info.gama_chunk.map(ScaledFloat::into_scaled), info.chrm_chunk.map(numbers))
}

/// Whether browsers may heed this profile and we do not, because it is too long. `chunk` is an iCCP chunk's body.
pub(super) fn is_too_long(chunk: &[u8]) -> bool {
    // What browsers allow a picture to hold beside its pixels. They ignore a profile that is longer.
    const BROWSERS_MAX_BYTES: u64 = 64 << 20;
    let name = chunk.iter().position(|byte| *byte == 0).unwrap_or(chunk.len());
    let data = chunk.get(name + 2..).unwrap_or_default();
    let mut inflated = ZlibDecoder::new(data).take(BROWSERS_MAX_BYTES + 1);
    // A broken stream makes every viewer ignore the profile. A part of the limit may be used up by the compressed data.
    let length = io::copy(&mut inflated, &mut io::sink()).unwrap_or_default();
    (MAX_METADATA_BYTES as u64 / 2..=BROWSERS_MAX_BYTES).contains(&length)
}

fn numbers(c: SourceChromaticities) -> [u32; 8] {
    [c.white.0, c.white.1, c.red.0, c.red.1, c.green.0, c.green.1, c.blue.0, c.blue.1].map(ScaledFloat::into_scaled)
}
