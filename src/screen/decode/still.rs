//! Still images through the `image` crate, which decodes them bit for bit as Pillow does.

use image::{ImageDecoder, ImageResult};

use super::codec::{decoder_limits, explain};
use super::frame::Frame;
use super::{DecodeContext, Undecodable, rgb};
use crate::job::ImageInfo;

/// Decodes a still image of any colour type. `decoder` may be the error of a decoder that refuses the header.
pub(super) fn decode_still<D: ImageDecoder>(
    name: &str,
    format: &'static str,
    decoder: ImageResult<D>,
    context: &mut DecodeContext<'_>,
) -> Result<ImageInfo, Undecodable> {
    let mut decoder = decoder.map_err(|e| explain(name, &e))?;
    let ((width, height), color) = (decoder.dimensions(), decoder.color_type());
    // Beside the samples there is the copy in RGB or, in some decoders, a second set of samples. Lossless WebP is decoded
    // with alpha even where it has none.
    let samples = u64::from(color.bytes_per_pixel());
    let beside = if format == "webp" { 4 } else { 3 };
    let grant = context.admit(width, height, samples + samples.max(beside))?;
    let orientation = decoder.orientation().map_or(1, image::metadata::Orientation::to_exif);
    decoder.set_limits(decoder_limits(context)).map_err(|e| explain(name, &e))?;

    let length = usize::try_from(decoder.total_bytes()).map_err(|_| Undecodable::new("over the decode limits"))?;
    let mut samples = vec![0; length];
    decoder.read_image(&mut samples).map_err(|e| explain(name, &e))?;
    let rgb = rgb::from_samples(color, samples)?;
    (context.take)(&Frame::whole(rgb, width, height, orientation))?;
    drop(grant);
    let (width, height) = rgb::upright(width, height, orientation);
    Ok(ImageInfo { format, width, height, frames: 1 })
}
