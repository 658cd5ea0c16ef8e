//! AV1 data → frames, by a library that only this file names.

use super::sequence_header::padded;
use re_rav1d::dav1d::{Decoder, Error, Picture, PixelLayout, PlanarImageComponent, Settings};

/// What decodes AV1.
pub(super) trait Av1Decoder {
    /// Decodes one sample, which shows one frame. The samples of a track are given in order.
    fn decode(&mut self, sample: &[u8]) -> Result<YuvFrame, String>;
}

/// How AV1 is decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Av1Options {
    /// The most pixels that a frame may have.
    pub(super) max_pixels: u32,
    /// Which of the operating points in the sequence header.
    pub(super) operating_point: u8,
    /// Whether the last frame of a sample is meant, of whatever layer, and not the one of the highest layer.
    pub(super) takes_last_layer: bool,
}

/// A decoded frame: luma, and where there is colour two planes of chroma.
pub(super) struct YuvFrame {
    pub(super) width: u32,
    pub(super) height: u32,
    /// 8, 10 or 12. Samples of more than 8 bits take two bytes.
    pub(super) bit_depth: u8,
    /// Whether there is one chroma sample for two luma samples across, and down.
    pub(super) subsampled: (bool, bool),
    /// One or three.
    pub(super) planes: Vec<YuvPlane>,
    /// Whether some of its samples are made up, because its data is damaged.
    pub(super) is_damaged: bool,
}

/// Samples in native order, and the bytes from one row to the next.
pub(super) struct YuvPlane {
    pub(super) samples: Box<dyn AsRef<[u8]>>,
    pub(super) stride: usize,
}

/// A decoder that uses this thread only.
pub(super) fn open(options: Av1Options) -> Result<Box<dyn Av1Decoder>, String> {
    let mut settings = Settings::new();
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_frame_size_limit(options.max_pixels);
    settings.set_operating_point(options.operating_point.into());
    settings.set_all_layers(options.takes_last_layer);
    let decoder = Decoder::with_settings(&settings).map_err(|e| e.to_string())?;
    Ok(Box::new(Rav1d { decoder, takes_last: options.takes_last_layer, padding: padding(options.max_pixels) }))
}

/// How many zeros are put behind the data of damaged frames.
pub(super) fn padding(max_pixels: u32) -> usize {
    (max_pixels as usize).saturating_add(1024).min(4 << 20)
}

struct Rav1d {
    decoder: Decoder,
    takes_last: bool,
    padding: usize,
}

impl Rav1d {
    /// The frame that a sample shows, and the error that ended it.
    fn decode_units(&mut self, sample: Vec<u8>) -> (Option<Picture>, Option<Error>) {
        let mut shown: Option<Picture> = None;
        let mut sent = self.decoder.send_data(sample, None, None, None);
        loop {
            let mut is_stuck = true;
            // The decoder gives a frame of several layers only when it is asked a second time.
            let mut asks = 2;
            while asks > 0 {
                match self.decoder.get_picture() {
                    Ok(picture) => {
                        is_stuck = false;
                        if shown.is_none() || self.takes_last {
                            shown = Some(picture);
                        }
                    }
                    Err(Error::Again) => asks -= 1,
                    Err(error) => return (shown, Some(error)),
                }
            }
            match sent {
                Ok(()) => return (shown, None),
                Err(Error::Again) if !is_stuck => sent = self.decoder.send_pending_data(),
                Err(error) => return (shown, Some(error)),
            }
        }
    }
}

impl Av1Decoder for Rav1d {
    fn decode(&mut self, sample: &[u8]) -> Result<YuvFrame, String> {
        if sample.is_empty() {
            return Err("it has no AV1 data".into());
        }
        let (mut shown, mut error) = self.decode_units(sample.to_vec());
        let is_damaged = error.is_some();
        // Damage in entropy-coded data makes the decoder read beyond its end. There are zeros (AV1 specification, 8.2.2), and
        // browsers show what comes out. This decoder refuses it, so that it is given the zeros.
        if shown.is_none()
            && let Some(Error::InvalidArgument) = error
            && let Some(longer) = padded(sample, self.padding)
        {
            (shown, error) = self.decode_units(longer);
        }
        match (shown, error) {
            (Some(picture), _) => Ok(YuvFrame { is_damaged, ..YuvFrame::from(picture) }),
            (None, Some(error)) => Err(explain(error)),
            (None, None) => Err("the AV1 data shows no frame".into()),
        }
    }
}

fn explain(error: Error) -> String {
    match error {
        Error::InvalidArgument => "the AV1 data is invalid, or larger than the file says".into(),
        Error::UnsupportedBitstream => "the AV1 data is of an unknown kind".into(),
        Error::NotEnoughMemory => "there is too little memory for the AV1 data".into(),
        _ => "the AV1 data cannot be decoded".into(),
    }
}

impl From<Picture> for YuvFrame {
    fn from(picture: Picture) -> Self {
        let subsampled = match picture.pixel_layout() {
            PixelLayout::I400 | PixelLayout::I420 => (true, true),
            PixelLayout::I422 => (true, false),
            PixelLayout::I444 => (false, false),
        };
        let components: &[_] = match picture.pixel_layout() {
            PixelLayout::I400 => &[PlanarImageComponent::Y],
            _ => &[PlanarImageComponent::Y, PlanarImageComponent::U, PlanarImageComponent::V],
        };
        let plane = |component: &PlanarImageComponent| YuvPlane {
            samples: Box::new(picture.plane(*component)),
            stride: picture.stride(*component) as usize,
        };
        Self {
            width: picture.width(),
            height: picture.height(),
            bit_depth: u8::try_from(picture.bit_depth()).unwrap_or(8),
            subsampled,
            planes: components.iter().map(plane).collect(),
            is_damaged: false,
        }
    }
}
