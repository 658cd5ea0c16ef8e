//! Pixels as files, for people.

use crate::screen::pixels::Pixels;

/// Writes what a detector sees as a PNG.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn save_png(file: &std::path::Path, pixels: &Pixels) -> image::ImageResult<()> {
    image::save_buffer(file, &pixels.data, pixels.width, pixels.height, image::ExtendedColorType::Rgb8)
}

/// What a detector sees, encoded for a page.
pub(crate) struct EncodedPicture {
    /// `image/png` or `image/jpeg`.
    pub(crate) media_type: &'static str,
    /// The content of the file.
    pub(crate) bytes: Vec<u8>,
}

/// Encodes what a detector sees: as a PNG where neither side exceeds `edge`, else shrunk to that and as a JPEG.
///
/// # Errors
/// When the encoder refuses.
pub(crate) fn encode_picture(pixels: &Pixels, edge: u32) -> image::ImageResult<EncodedPicture> {
    use image::error::{ImageError, ParameterError, ParameterErrorKind};
    let Pixels { width, height, data } = pixels;
    let rgb = image::ImageBuffer::<image::Rgb<u8>, _>::from_raw(*width, *height, data.as_slice());
    let mismatch = || ImageError::Parameter(ParameterError::from_kind(ParameterErrorKind::DimensionMismatch));
    let rgb = rgb.ok_or_else(mismatch)?;
    let mut bytes = std::io::Cursor::new(Vec::new());
    let longest = *width.max(height);
    if longest <= edge {
        rgb.write_to(&mut bytes, image::ImageFormat::Png)?;
        return Ok(EncodedPicture { media_type: "image/png", bytes: bytes.into_inner() });
    }
    let shrunk = |side: u32| (side * edge / longest).max(1);
    let small = image::imageops::thumbnail(&rgb, shrunk(*width), shrunk(*height));
    small.write_to(&mut bytes, image::ImageFormat::Jpeg)?;
    Ok(EncodedPicture { media_type: "image/jpeg", bytes: bytes.into_inner() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_exact_where_it_fits_and_small_where_it_does_not() {
        let pixels = |width: u32, height: u32| Pixels { width, height, data: vec![90; (width * height * 3) as usize] };
        let read = |picture: EncodedPicture| image::load_from_memory(&picture.bytes).unwrap();
        let small = encode_picture(&pixels(32, 20), 32).unwrap();
        assert_eq!(small.media_type, "image/png");
        assert_eq!(read(small).to_rgb8().into_raw(), pixels(32, 20).data);
        let large = encode_picture(&pixels(400, 100), 128).unwrap();
        assert_eq!(large.media_type, "image/jpeg");
        let large = read(large);
        assert_eq!((large.width(), large.height()), (128, 32));
        assert!(encode_picture(&Pixels { width: 9, ..pixels(8, 8) }, 32).is_err());
    }
}
