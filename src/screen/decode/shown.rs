//! What a file shows, for the tests of formats.

use super::memory_budget::StrictMemory;
use super::{DecodeRequest, DecodeScratch, DecodedImage, decode};
use crate::config::{DecodeConfig, DecodeMode};
use crate::detector::{CropRounding, Geometry, ResampleFilter, Resize};
use crate::screen::error::Undecodable;

/// Decodes a file, for a detector that sees `columns` single pixels of each view's middle line.
pub(super) fn decode_columns(bytes: &[u8], columns: u32, limits: &DecodeConfig) -> Result<DecodedImage, Undecodable> {
    let resize = Resize::Exact { width: columns, height: 1 };
    let filter = ResampleFilter::Nearest;
    let geometry = Geometry { resize, filter, width: columns, height: 1, rounding: CropRounding::Down };
    let request = DecodeRequest { bytes, geometries: &[geometry], mode: DecodeMode::Exact };
    decode(&request, limits, &StrictMemory::default(), &mut DecodeScratch::new(limits))
}

/// A colour profile by which red and blue change places. Inks are what they leave of red, green and blue.
pub(super) fn swapping_profile(space: moxcms::DataColorSpace) -> Vec<u8> {
    let mut profile = moxcms::ColorProfile::new_srgb();
    std::mem::swap(&mut profile.red_colorant, &mut profile.blue_colorant);
    // Code points would go before the colorants.
    profile.cicp = None;
    profile.color_space = space;
    profile.encode().unwrap()
}

/// Whether two pixels differ only by rounding.
pub(super) fn is_near(found: &[u8], shown: [u8; 3]) -> bool {
    found.len() == 3 && found.iter().zip(shown).all(|(found, shown)| found.abs_diff(shown) <= 3)
}

/// The nearest corner of the colour cube for each pixel of a view: `K`, `R`, `G`, `B`, `C`, `M`, `Y` or `W`.
pub(super) fn colours(image: &DecodedImage, view: usize) -> String {
    let name = |pixel: &[u8]| match [pixel[0], pixel[1], pixel[2]].map(|sample| sample > 127) {
        [false, false, false] => 'K',
        [true, false, false] => 'R',
        [false, true, false] => 'G',
        [false, false, true] => 'B',
        [false, true, true] => 'C',
        [true, false, true] => 'M',
        [true, true, false] => 'Y',
        [true, true, true] => 'W',
    };
    image.views[view].pixels[0].data.chunks_exact(3).map(name).collect()
}
