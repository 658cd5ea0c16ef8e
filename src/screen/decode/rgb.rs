//! From any kind of samples to RGB, as a person sees it and as the reference (Pillow) defines it: alpha over white, 16-bit
//! grey divided by 257, other 16-bit samples by their high byte, CMYK as Pillow converts it.

use image::ColorType;

use super::Undecodable;

/// Converts a decoder's buffer (16-bit samples in native order) to `[height, width, 3] u8`.
pub(super) fn from_samples(color: ColorType, samples: Vec<u8>) -> Result<Vec<u8>, Undecodable> {
    let high = |samples: &[u8]| -> Vec<u8> { words(samples).map(|word| (word >> 8) as u8).collect() };
    Ok(match color {
        ColorType::Rgb8 => samples,
        ColorType::L8 => samples.iter().flat_map(|grey| [*grey; 3]).collect(),
        ColorType::La8 => grey_over_white(&samples),
        ColorType::Rgba8 => over_white(&samples),
        ColorType::L16 => words(&samples).flat_map(|word| [divided_by_257(word); 3]).collect(),
        ColorType::La16 => grey_over_white(&high(&samples)),
        ColorType::Rgb16 => high(&samples),
        ColorType::Rgba16 => over_white(&high(&samples)),
        other => return Err(Undecodable(format!("unsupported colour type {other:?}"))),
    })
}

fn words(samples: &[u8]) -> impl Iterator<Item = u16> {
    samples.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
}

/// `word / 257`, rounded to the nearest: 0 → 0, 65535 → 255.
fn divided_by_257(word: u16) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "65535 / 257 is 255")]
    let byte = ((u32::from(word) + 128) / 257) as u8;
    byte
}

/// `[n, 4]` RGBA composited over white.
pub(super) fn over_white(rgba: &[u8]) -> Vec<u8> {
    rgba.chunks_exact(4).flat_map(|p| [blend(p[0], p[3]), blend(p[1], p[3]), blend(p[2], p[3])]).collect()
}

fn grey_over_white(grey_alpha: &[u8]) -> Vec<u8> {
    grey_alpha.chunks_exact(2).flat_map(|p| [blend(p[0], p[1]); 3]).collect()
}

/// `(value * alpha + 255 * (255 - alpha)) / 255`, rounded.
fn blend(value: u8, alpha: u8) -> u8 {
    let sum = u32::from(value) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 128;
    #[expect(clippy::cast_possible_truncation, reason = "a weighted mean of bytes is a byte")]
    let byte = (((sum >> 8) + sum) >> 8) as u8;
    byte
}

/// CMYK as Adobe writes it into JPEG, which is inverted, to RGB as Pillow does it: `(255 - k) * (255 - ink) / 255`.
pub(super) fn from_inverted_cmyk(cmyk: Vec<u8>) -> Vec<u8> {
    let multiply = |a: u8, b: u8| {
        let product = u32::from(a) * u32::from(b) + 128;
        #[expect(clippy::cast_possible_truncation, reason = "a product of bytes over 255 is a byte")]
        let byte = (((product >> 8) + product) >> 8) as u8;
        byte
    };
    // Pillow: nk = 255 - K; R = nk - nk * C / 255. With C and K inverted, nk is the stored byte.
    cmyk.chunks_exact(4)
        .flat_map(|p| {
            let nk = p[3];
            [p[0], p[1], p[2]].map(|ink| nk - multiply(255 - ink, nk))
        })
        .collect()
}

/// Width and height of an image after it was turned upright.
pub(super) fn upright(width: u32, height: u32, orientation: u8) -> (u32, u32) {
    if orientation >= 5 { (height, width) } else { (width, height) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_goes_over_white() {
        assert_eq!(over_white(&[10, 20, 30, 255, 10, 20, 30, 0]), [10, 20, 30, 255, 255, 255]);
        assert_eq!(blend(0, 128), 127);
    }

    #[test]
    fn sixteen_bit_grey_spans_the_whole_range() {
        let samples: Vec<u8> = [0u16, 257, 128 * 257, 65535].iter().flat_map(|w| w.to_ne_bytes()).collect();
        let rgb = from_samples(ColorType::L16, samples).unwrap();
        assert_eq!(rgb.chunks(3).map(|p| p[0]).collect::<Vec<_>>(), [0, 1, 128, 255]);
    }

    #[test]
    fn no_ink_is_white_and_all_black_ink_is_black() {
        assert_eq!(
            from_inverted_cmyk(vec![255, 255, 255, 255, 255, 255, 255, 0, 0, 255, 255, 255]),
            [255, 255, 255, 0, 0, 0, 0, 255, 255]
        );
    }
}
