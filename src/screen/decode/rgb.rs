//! From any kind of samples to RGB or RGBA of 8 bits, as a person sees it and as the reference (Pillow) defines it: 16-bit
//! grey divided by 257, other 16-bit samples by their high byte, CMYK as Pillow converts it.

use crate::job::Background;

/// `word / 257`, rounded to the nearest: 0 → 0, 65535 → 255.
pub(super) fn divided_by_257(word: u16) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "65535 / 257 is 255")]
    let byte = ((u32::from(word) + 128) / 257) as u8;
    byte
}

/// Composites RGBA over a background, into `rgb`.
pub(super) fn over(rgba: &[u8], background: Background, rgb: &mut Vec<u8>) {
    let behind = match background {
        Background::White => 255,
        Background::Black => 0,
    };
    rgb.clear();
    rgb.reserve_exact(rgba.len() / 4 * 3);
    rgb.extend(rgba.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]].map(|value| blend(value, p[3], behind))));
}

/// Divides the colours of RGBA by alpha, in place.
pub(super) fn unmultiply(samples: &mut [u8]) {
    for pixel in samples.chunks_exact_mut(4) {
        let alpha = u16::from(pixel[3]);
        if alpha == 0 || alpha == 255 {
            continue;
        }
        for sample in &mut pixel[..3] {
            let divided = (u16::from(*sample) * 255 + alpha / 2) / alpha;
            *sample = u8::try_from(divided).unwrap_or(u8::MAX);
        }
    }
}

/// As [`over`], where the colours are multiplied with alpha.
pub(super) fn add_over(rgba: &[u8], background: Background, rgb: &mut Vec<u8>) {
    let behind = |alpha: u8| match background {
        Background::White => 255 - alpha,
        Background::Black => 0,
    };
    rgb.clear();
    rgb.reserve_exact(rgba.len() / 4 * 3);
    rgb.extend(rgba.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]].map(|value| value.saturating_add(behind(p[3])))));
}

/// Removes alpha from RGBA in place where every pixel is opaque, and returns whether that is so.
pub(super) fn drop_opaque_alpha(samples: &mut Vec<u8>) -> bool {
    if samples.chunks_exact(4).any(|pixel| pixel[3] != 255) {
        return false;
    }
    let pixels = samples.len() / 4;
    for i in 0..pixels {
        samples.copy_within(4 * i..4 * i + 3, 3 * i);
    }
    samples.truncate(3 * pixels);
    true
}

/// `(value * alpha + behind * (255 - alpha)) / 255`, rounded.
fn blend(value: u8, alpha: u8, behind: u8) -> u8 {
    let sum = u32::from(value) * u32::from(alpha) + u32::from(behind) * (255 - u32::from(alpha)) + 128;
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
    fn alpha_goes_over_white_and_over_black() {
        let composite = |background| {
            let mut rgb = vec![7; 99];
            over(&[10, 20, 30, 255, 10, 20, 30, 0], background, &mut rgb);
            rgb
        };
        assert_eq!(composite(Background::White), [10, 20, 30, 255, 255, 255]);
        assert_eq!(composite(Background::Black), [10, 20, 30, 0, 0, 0]);
        assert_eq!((blend(0, 128, 255), blend(255, 128, 0)), (127, 128));
    }

    #[test]
    fn colours_that_were_multiplied_by_alpha_are_divided_by_it() {
        let mut samples = vec![0, 64, 128, 128, 9, 9, 9, 0, 9, 9, 9, 255, 200, 100, 50, 100];
        unmultiply(&mut samples);
        assert_eq!(samples, [0, 128, 255, 128, 9, 9, 9, 0, 9, 9, 9, 255, 255, 255, 128, 100]);
    }

    #[test]
    fn colours_that_exceed_their_alpha_glow_over_the_background() {
        let composite = |background| {
            let mut rgb = Vec::new();
            add_over(&[10, 20, 30, 255, 10, 20, 30, 40, 200, 100, 0, 128], background, &mut rgb);
            rgb
        };
        assert_eq!(composite(Background::White), [10, 20, 30, 225, 235, 245, 255, 227, 127]);
        assert_eq!(composite(Background::Black), [10, 20, 30, 10, 20, 30, 200, 100, 0]);
    }

    #[test]
    fn alpha_is_dropped_only_where_every_pixel_is_opaque() {
        let mut opaque = vec![1, 2, 3, 255, 4, 5, 6, 255, 7, 8, 9, 255];
        assert!(drop_opaque_alpha(&mut opaque));
        assert_eq!(opaque, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let mut transparent = vec![1, 2, 3, 255, 4, 5, 6, 254];
        assert!(!drop_opaque_alpha(&mut transparent));
        assert_eq!(transparent, [1, 2, 3, 255, 4, 5, 6, 254]);
    }

    #[test]
    fn sixteen_bit_grey_spans_the_whole_range() {
        assert_eq!([0, 257, 128 * 257, 65535].map(divided_by_257), [0, 1, 128, 255]);
    }

    #[test]
    fn no_ink_is_white_and_all_black_ink_is_black() {
        assert_eq!(
            from_inverted_cmyk(vec![255, 255, 255, 255, 255, 255, 255, 0, 0, 255, 255, 255]),
            [255, 255, 255, 0, 0, 0, 0, 255, 255]
        );
    }
}
