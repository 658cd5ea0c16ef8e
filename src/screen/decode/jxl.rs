//! JPEG XL (ISO/IEC 18181), still or animated, as a bare codestream or in a container.

use jxl::api::{
    AlphaMode, Event, JxlColorEncoding, JxlColorProfile, JxlColorType, JxlDataFormat, JxlDecoder, JxlDecoderOptions,
    JxlOutputBuffer, JxlPixelFormat, JxlPrimaries, JxlTransferFunction, JxlWhitePoint, ProfileLevel,
};

use super::animation::FrameChoice;
use super::colour::{ColourModel, ToSrgb};
use super::frame::{Channels, Frame};
use super::{DecodeContext, Undecodable, over_limits, rgb};
use crate::job::ImageInfo;

/// Frames that are only referred to may be larger than the image. Up to this many pixels, that is no matter.
const MIN_FRAME_PIXELS: usize = 1 << 20;

/// Red, green, blue and alpha.
const CHANNELS: usize = 4;

/// How often all channels of a frame are held: once, and with others that it refers to. A usual image takes much less.
const HELD_FRAMES: u64 = 1;
const HELD_FRAMES_OF_ANIMATION: u64 = 3;

pub(super) fn decode(bytes: &[u8], context: &mut DecodeContext<'_>) -> Result<ImageInfo, Undecodable> {
    let header = Header::of(bytes, context)?;
    let (width, height) = header.size;
    let count = u32::try_from(header.durations_ms.len()).unwrap_or(u32::MAX);
    context.check_animation(count, (u64::from(width) * u64::from(height)).saturating_mul(count.into()))?;
    let held = if header.is_animated { HELD_FRAMES_OF_ANIMATION } else { HELD_FRAMES };
    // A frame and the copy over a background, or the frame before.
    let copy = if header.is_animated { CHANNELS as u64 } else { 3 };
    // The decoder computes in floats and 32-bit numbers.
    let decoding = 4 * (3 + header.extra_channels as u64) * held;
    let hold = context.admit(width, height, decoding + CHANNELS as u64 + copy)?;
    let mut decoder = JxlDecoder::new(options(header.max_samples()));
    let mut images = Images { decoder: &mut decoder, input: bytes, header: &header };
    images.start()?;

    let mut choice = FrameChoice::new(&header.durations_ms, header.durations_ms.len(), context.limits.max_frames);
    let mut last: Option<(u32, Vec<u8>)> = None;
    for number in 0.. {
        let (samples, end) = match images.next() {
            Shown::Whole(samples) => (Some(samples), None),
            Shown::Partly(samples, why) => (Some(samples), Some(why)),
            Shown::Nothing(why) => (None, Some(why)),
            Shown::End => break,
        };
        if let Some(samples) = samples {
            let is_taken = match end {
                None => choice.takes(number, &samples),
                Some(_) => choice.takes_last(&samples),
            };
            last = None;
            if is_taken {
                images.take(number, samples, context)?;
            } else {
                last = Some((number, samples));
            }
        } else if number == 0 {
            return Err(Undecodable::damaged("JPEG XL", &end.unwrap_or_default()));
        }
        if let Some(why) = end {
            context.record_damage("JPEG XL", &why);
            if let Some((number, samples)) = last.filter(|(_, samples)| choice.takes_last(samples)) {
                images.take(number, samples, context)?;
            }
            break;
        }
    }
    drop(hold);
    Ok(ImageInfo { format: "jxl", width, height, frames: count.max(1) })
}

fn options(max_samples: usize) -> JxlDecoderOptions {
    let mut options = JxlDecoderOptions::default();
    options.sample_limit = Some(max_samples);
    // As browsers ask for it: colours beyond white, or an alpha beyond opaque, come out alike only so.
    options.alpha_mode = AlphaMode::Premultiplied;
    options.max_profile_level = ProfileLevel::Main10;
    options
}

/// What is known of an image before a pixel is decoded.
struct Header {
    /// As displayed.
    size: (u32, u32),
    extra_channels: usize,
    is_animated: bool,
    /// One for each frame that is shown.
    durations_ms: Vec<u32>,
}

impl Header {
    /// Reads the headers of all frames. A file that is cut has fewer frames, or one that is not whole.
    fn of(bytes: &[u8], context: &DecodeContext<'_>) -> Result<Self, Undecodable> {
        let max_pixels = usize::try_from(context.limits.max_pixels).unwrap_or(usize::MAX);
        let mut options = options(max_pixels.saturating_mul(16));
        options.scan_frames_only = true;
        let mut decoder = JxlDecoder::new(options);
        let mut input = bytes;
        loop {
            match decoder.process(&mut input, None, None) {
                Ok(Event::Complete | Event::NeedMoreInput { .. }) | Err(_) if decoder.basic_info().is_some() => break,
                Ok(Event::Complete | Event::NeedMoreInput { .. }) => {
                    return Err(Undecodable::new("damaged JPEG XL: the file ends before its pixels"));
                }
                Ok(_) => {
                    if decoder.scanned_frames().len() > MAX_FRAMES {
                        return Err(over_limits(format_args!("it has more than {MAX_FRAMES} frames")));
                    }
                }
                Err(error) => return Err(Undecodable::damaged("JPEG XL", &error)),
            }
        }
        let info = decoder.basic_info().ok_or_else(|| Undecodable::new("damaged JPEG XL: it has no header"))?;
        let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it stops at 0 and at the largest")]
        let durations_ms = decoder.scanned_frames().iter().map(|frame| frame.duration_ms as u32).collect();
        Ok(Self {
            size: (side(info.size.0), side(info.size.1)),
            extra_channels: info.extra_channels.len(),
            is_animated: info.animation.is_some(),
            durations_ms,
        })
    }

    /// The most samples of a frame, of all its channels.
    fn max_samples(&self) -> usize {
        // The decoder counts at least 16 pixels across.
        let pixels = (self.size.0.max(16) as usize).saturating_mul(self.size.1 as usize);
        pixels.max(MIN_FRAME_PIXELS).saturating_mul(3 + self.extra_channels).saturating_add(1)
    }
}

/// The most frames of an animation. Frames may be so small that the limit for pixels does not bound them.
const MAX_FRAMES: usize = 1 << 16;

/// The frames of an image, in order.
struct Images<'a> {
    decoder: &'a mut JxlDecoder,
    input: &'a [u8],
    header: &'a Header,
}

/// The next frame.
enum Shown {
    Whole(Vec<u8>),
    /// What there is of a frame, and why there is no more.
    Partly(Vec<u8>, String),
    Nothing(String),
    End,
}

impl Images<'_> {
    /// Decodes the header, and says which samples are wanted.
    fn start(&mut self) -> Result<(), Undecodable> {
        match self.decoder.process(&mut self.input, None, None) {
            Ok(Event::BasicInfo) => {}
            Ok(_) => return Err(Undecodable::new("damaged JPEG XL: the file ends before its pixels")),
            Err(error) => return Err(Undecodable::damaged("JPEG XL", &error)),
        }
        let is_cmyk = self.decoder.embedded_color_profile().is_some_and(JxlColorProfile::is_cmyk);
        if is_cmyk {
            return Err(Undecodable::new("unsupported kind of JPEG XL: CMYK"));
        }
        let format = JxlPixelFormat {
            // Also without alpha: what a cut file does not have stays transparent.
            color_type: JxlColorType::Rgba,
            color_data_format: Some(JxlDataFormat::U8 { bit_depth: 8 }),
            extra_channel_format: vec![None; self.header.extra_channels],
        };
        self.decoder.set_pixel_format(format).map_err(|error| Undecodable::damaged("JPEG XL", &error))
    }

    fn next(&mut self) -> Shown {
        let (width, height) = (self.header.size.0 as usize, self.header.size.1 as usize);
        let row_bytes = width * CHANNELS;
        let mut samples = vec![0; row_bytes * height];
        let mut buffers = [JxlOutputBuffer::new(&mut samples, height, row_bytes)];
        loop {
            match self.decoder.process(&mut self.input, Some(&mut buffers), None) {
                Ok(Event::FrameComplete { .. }) => return Shown::Whole(samples),
                Ok(Event::Complete) => return Shown::End,
                Ok(Event::BasicInfo | Event::FrameHeader) => {}
                Ok(Event::NeedMoreInput { .. }) => {
                    let why = "the file ends before its last pixels".to_owned();
                    return match self.decoder.flush_pixels(&mut buffers, None) {
                        Ok(true) => Shown::Partly(samples, why),
                        _ => Shown::Nothing(why),
                    };
                }
                Err(error) => return Shown::Nothing(error.to_string()),
            }
        }
    }

    fn take(&self, number: u32, samples: Vec<u8>, context: &mut DecodeContext<'_>) -> Result<(), Undecodable> {
        let mut samples = samples;
        rgb::unmultiply(&mut samples);
        let mut frame = Frame::new(samples, Channels::Rgba, self.header.size);
        frame.number = number;
        frame.colour = self.decoder.output_color_profile().and_then(to_srgb);
        context.take(&mut frame)
    }
}

/// The conversion of the samples that the decoder gives.
fn to_srgb(profile: &JxlColorProfile) -> Option<ToSrgb> {
    match profile {
        JxlColorProfile::Simple(encoding) => {
            of_encoding(encoding).unwrap_or_else(|| ToSrgb::of_icc(profile.try_as_icc()?.as_slice(), model(encoding)))
        }
        JxlColorProfile::Icc(icc) => {
            let model = if icc.get(16..20) == Some(b"GRAY") { ColourModel::Grey } else { ColourModel::Rgb };
            ToSrgb::of_icc(icc, model)
        }
    }
}

fn model(encoding: &JxlColorEncoding) -> ColourModel {
    match encoding {
        JxlColorEncoding::GrayscaleColorSpace { .. } => ColourModel::Grey,
        _ => ColourModel::Rgb,
    }
}

/// By the code points of ITU-T H.273. `None` where there are none for these colours.
fn of_encoding(encoding: &JxlColorEncoding) -> Option<Option<ToSrgb>> {
    let (white, primaries, transfer) = match encoding {
        JxlColorEncoding::RgbColorSpace { white_point, primaries, transfer_function, .. } => {
            (white_point, primaries, transfer_function)
        }
        JxlColorEncoding::GrayscaleColorSpace { white_point, transfer_function, .. } => {
            (white_point, &JxlPrimaries::SRGB, transfer_function)
        }
        JxlColorEncoding::XYB { .. } => return None,
    };
    let primaries = match primaries {
        JxlPrimaries::SRGB => 1,
        JxlPrimaries::BT2100 => 9,
        JxlPrimaries::P3 => 12,
        JxlPrimaries::Chromaticities { .. } => return None,
    };
    let transfer = match transfer {
        JxlTransferFunction::Linear => 8,
        // Browsers show films' camera curve in a picture as if it was sRGB's.
        JxlTransferFunction::SRGB | JxlTransferFunction::BT709 => 13,
        JxlTransferFunction::PQ => 16,
        JxlTransferFunction::HLG => 18,
        JxlTransferFunction::DCI | JxlTransferFunction::Gamma(_) => return None,
    };
    (*white == JxlWhitePoint::D65).then(|| ToSrgb::of_cicp(primaries, transfer))
}

#[cfg(test)]
mod tests {
    use base64::Engine;

    use super::super::DecodedImage;
    use super::super::shown::{colours, decode_columns, is_near};
    use super::*;
    use crate::config::DecodeConfig;

    /// 16 × 8 pixels, drawn for this test: the left half red, the right half blue. Encoded with pillow-jxl-plugin:
    /// `Image.save(path, "JXL", lossless=True)`.
    const STILL: &str = "/wrBQSQIAAEAeABLGIsVANSIjFExxl4gBABKShcASE+qsyIaJh40AFs=";

    /// The same, but the right half is transparent.
    const ALPHA: &str = "/wrBwUoIABAAgABLGIsVANSIjFExxl5ABIBOSqlcyLMiTBmaYUo0iH4AWw==";

    /// The same, but the right half is half transparent.
    const HALF_ALPHA: &str = "/wrBwUoIABAAiABLGIsVANSIjFExshcQAUCRDAGglBLyrGhThgaNgRCiD6QL";

    /// Four frames: as the first image, the halves exchanged, as the first image, and all red. Encoded with imagecodecs:
    /// `jpegxl_encode(frames, lossless=True)`.
    const ANIMATION: &str = "/wrBBU0AICYIBAEAeABLGIsVANSNjFExxl4gBABKShcASE+qsyIaJh40AFsIBAEAeABLGIsVANQlY1SMsRcIAQCZUuIH8qxU\
         tIgGIgANuDkIBAEAeABLGIsVANSNjFExxl4gBABKShcASE+qsyIaJh40AFsIBAUAbABLGIsVANQX48XMGPMAosEYBoB7Gp+v\
         MwSjpAI=";

    fn file(base64: &str) -> Vec<u8> {
        base64::engine::general_purpose::STANDARD.decode(base64).unwrap()
    }

    fn decode(bytes: &[u8]) -> Result<DecodedImage, Undecodable> {
        decode_columns(bytes, 8, &DecodeConfig::default())
    }

    #[test]
    fn a_codestream_is_shown_by_itself_and_in_a_container() {
        let codestream = file(STILL);
        let size = u32::try_from(codestream.len() + 8).unwrap().to_be_bytes();
        let container = [&b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl "[..], &size, b"jxlc", &codestream];
        for bytes in [codestream.clone(), container.concat()] {
            let image = decode(&bytes).unwrap();
            assert_eq!(image.info, ImageInfo { format: "jxl", width: 16, height: 8, frames: 1 });
            assert_eq!((colours(&image, 0).as_str(), image.damage.as_str()), ("RRRRBBBB", ""));
            assert_eq!(image.views[0].pixels[0].data[..3], [200, 30, 20]);
        }
    }

    #[test]
    fn alpha_is_shown_over_both_backgrounds() {
        let image = decode(&file(ALPHA)).unwrap();
        assert_eq!((colours(&image, 0).as_str(), colours(&image, 1).as_str()), ("RRRRWWWW", "RRRRKKKK"));
    }

    #[test]
    fn colours_that_are_half_transparent_are_mixed_with_the_background_once() {
        let image = decode(&file(HALF_ALPHA)).unwrap();
        let right = |view: usize| &image.views[view].pixels[0].data[21..];
        assert!(is_near(right(0), [137, 142, 227]), "{:?}", right(0));
        assert!(is_near(right(1), [10, 15, 100]), "{:?}", right(1));
    }

    #[test]
    fn a_picture_with_a_profile_is_decoded_as_chromium_shows_it() {
        // The drawn picture of the tests of what is visible. The file is lossy, so the decoder itself converts its colours, and
        // no profile is left to apply. At the left the ground is blue, and then there is a yellow disc.
        let image = decode(include_bytes!("../../../tests/visible/jpeg-xl/profile-swapped.jxl")).unwrap();
        assert_eq!((&colours(&image, 0)[..2], image.damage.as_str()), ("BY", ""));
    }

    #[test]
    fn the_distinct_frames_of_an_animation_are_shown() {
        let whole = file(ANIMATION);
        let image = decode(&whole).unwrap();
        assert_eq!((image.info.frames, image.damage.as_str()), (4, ""));
        let found: Vec<_> =
            (0..image.views.len()).map(|at| (image.views[at].view.frame, colours(&image, at))).collect();
        assert_eq!(found, [(0, "RRRRBBBB".into()), (1, "BBBBRRRR".into()), (3, "RRRRRRRR".into())]);
        let few = DecodeConfig { max_frames: 1, ..DecodeConfig::default() };
        assert_eq!(decode_columns(&whole, 8, &few).unwrap().views.len(), 1);
        let small = DecodeConfig { max_animation_pixels: 16 * 8 * 4 - 1, ..DecodeConfig::default() };
        assert!(decode_columns(&whole, 8, &small).unwrap_err().0.starts_with("over the decode limits"));
    }

    #[test]
    fn the_frames_before_the_end_of_a_cut_animation_are_shown_and_it_is_damaged() {
        let whole = file(ANIMATION);
        let image = decode(&whole[..whole.len() - 1]).unwrap();
        let frames: Vec<_> = image.views.iter().map(|view| view.view.frame).collect();
        assert!(frames.starts_with(&[0, 1]), "{frames:?}");
        assert_eq!(image.damage, "JPEG XL: the file ends before its last pixels");
    }

    #[test]
    fn a_cut_file_shows_nothing_or_is_damaged() {
        let whole = file(STILL);
        for length in 0..whole.len() {
            if let Ok(image) = decode(&whole[..length]) {
                assert_eq!(image.damage, "JPEG XL: the file ends before its last pixels", "cut to {length} bytes");
            }
        }
    }

    #[test]
    fn limits_count_before_a_pixel_is_decoded() {
        for limits in [
            DecodeConfig { max_width: 15, ..DecodeConfig::default() },
            DecodeConfig { max_decoded_bytes: 16 * 8, ..DecodeConfig::default() },
        ] {
            let error = decode_columns(&file(STILL), 8, &limits).unwrap_err();
            assert!(error.0.starts_with("over the decode limits"), "{error}");
        }
    }

    #[test]
    fn no_changed_byte_makes_the_decoder_panic() {
        for whole in [file(STILL), file(ALPHA), file(ANIMATION)] {
            for at in 2..whole.len() {
                // A quarter of all values, another one at each place; all of them take minutes.
                for byte in (0..=u8::MAX).skip(at % 4).step_by(4) {
                    let mut changed = whole.clone();
                    changed[at] = byte;
                    drop(decode(&changed));
                }
            }
        }
    }
}
