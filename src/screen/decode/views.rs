//! Frames → views: the different pictures that people may see of a file, each prepared for every detector.
//!
//! A frame is converted to sRGB first. Where it is transparent, it gives a view over white and, where that looks
//! different, one over black. Where viewers do not agree which way up it is, it gives views both ways up.

use std::sync::Arc;

use super::frame::{Channels, Frame};
use super::prepare::{Picture, PrepareError, Preparer};
use super::{DecodedView, pdq, rgb};
use crate::detector::Geometry;
use crate::job::{Background, Pdq, View};
use crate::screen::pixels::Pixels;

/// Takes frames and keeps their views.
pub(super) struct ViewTaker<'a> {
    geometries: &'a [Geometry],
    preparer: &'a mut Preparer,
    /// Each frame over white, as the reference turns it.
    first: Vec<DecodedView>,
    /// Other backgrounds and orientations.
    others: Vec<DecodedView>,
}

impl<'a> ViewTaker<'a> {
    pub(super) fn new(geometries: &'a [Geometry], preparer: &'a mut Preparer) -> Self {
        Self { geometries, preparer, first: Vec::new(), others: Vec::new() }
    }

    /// What the frames are prepared for.
    pub(super) fn geometries(&self) -> &'a [Geometry] {
        self.geometries
    }

    /// Whether no frame was taken yet.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// The number of views.
    pub(super) fn count(&self) -> usize {
        self.first.len() + self.others.len()
    }

    /// All views, at most `max`. Frames have their first views before any has another one.
    pub(super) fn into_views(self, max: u32) -> Vec<DecodedView> {
        self.first.into_iter().chain(self.others).take(max as usize).collect()
    }

    /// Takes a frame. Its samples are used up: they may be written over.
    pub(super) fn take(&mut self, frame: &mut Frame) -> Result<(), PrepareError> {
        if let Some(to_srgb) = frame.colour.take() {
            to_srgb.convert(&mut frame.samples, frame.channels.count());
        }
        let composite = if frame.is_multiplied { rgb::add_over } else { rgb::over };
        if frame.channels == Channels::Rgba && rgb::drop_opaque_alpha(&mut frame.samples) {
            frame.channels = Channels::Rgb;
        }
        let transparent = match frame.channels {
            Channels::Rgb => None,
            Channels::Rgba => Some(std::mem::take(&mut frame.samples)),
        };
        if let Some(rgba) = &transparent {
            composite(rgba, Background::White, &mut frame.samples);
        }
        let orientations = || [Some(frame.orientation), frame.other_orientation].into_iter().flatten();
        let mut over_white = Vec::new();
        let (pdq, quality) = hash(frame);
        for orientation in orientations() {
            let view = View { frame: frame.number, background: Background::White, orientation };
            over_white.push(DecodedView { view, pdq, quality, pixels: self.prepare(frame, orientation)? });
        }
        if let Some(rgba) = transparent {
            composite(&rgba, Background::Black, &mut frame.samples);
            let (pdq, quality) = hash(frame);
            for (orientation, white) in orientations().zip(&over_white) {
                let view = View { frame: frame.number, background: Background::Black, orientation };
                let black = DecodedView { view, pdq, quality, pixels: self.prepare(frame, orientation)? };
                if white.differs_from(&black) {
                    self.others.push(black);
                }
            }
        }
        let mut over_white = over_white.into_iter();
        self.first.extend(over_white.next());
        self.others.extend(over_white);
        Ok(())
    }

    fn prepare(&mut self, frame: &Frame, orientation: u8) -> Result<Vec<Arc<Pixels>>, PrepareError> {
        let &Frame { ref samples, width, height, shrunk, .. } = frame;
        let picture = Picture { rgb: samples, width, height, orientation, shrunk };
        self.geometries.iter().map(|geometry| self.preparer.prepare(&picture, geometry).map(Arc::new)).collect()
    }
}

/// The hash of a frame over its background, as the file has it: not turned upright.
fn hash(frame: &Frame) -> (Pdq, u8) {
    let &Frame { ref samples, width, height, shrunk, .. } = frame;
    pdq::hash(samples, (width, height), shrunk)
}

impl DecodedView {
    /// Whether any detector sees something else: more than one level of 255 in the mean.
    fn differs_from(&self, other: &Self) -> bool {
        let distance = |(one, other): (&Arc<Pixels>, &Arc<Pixels>)| -> bool {
            let levels: u64 = one.data.iter().zip(&other.data).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            levels > one.data.len() as u64
        };
        self.pixels.iter().zip(&other.pixels).any(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shown::decode_columns;
    use super::*;
    use crate::config::DecodeConfig;

    fn views(frame: &mut Frame, geometries: &[Geometry]) -> Vec<DecodedView> {
        let mut preparer = Preparer::default();
        let mut taker = ViewTaker::new(geometries, &mut preparer);
        taker.take(frame).unwrap();
        taker.into_views(10)
    }

    #[test]
    fn views_that_differ_in_their_orientation_only_share_the_hash_of_the_file_s_own() {
        let rgba: Vec<u8> =
            (0..96u32 * 80).flat_map(|i| [i / 96 * 3, i % 96 * 2, i % 7 * 30, i % 256]).map(byte).collect();
        let resize = crate::detector::Resize::Exact { width: 8, height: 8 };
        let (filter, rounding) = (crate::detector::ResampleFilter::Box, crate::detector::CropRounding::Down);
        let geometry = Geometry { resize, filter, width: 8, height: 8, rounding };
        let mut frame = Frame::new(rgba.clone(), Channels::Rgba, (96, 80));
        (frame.orientation, frame.other_orientation) = (6, Some(1));
        let hashes: Vec<_> = views(&mut frame, &[geometry]).iter().map(DecodedView::hash).collect();
        let ways: Vec<_> = hashes.iter().map(|hash| (hash.view.background, hash.view.orientation)).collect();
        use Background::{Black, White};
        assert_eq!(ways, [(White, 6), (Black, 6), (Black, 1), (White, 1)]);

        let over = |background| {
            let mut rgb = Vec::new();
            rgb::over(&rgba, background, &mut rgb);
            pdq::hash(&rgb, (96, 80), 1)
        };
        for hash in &hashes {
            assert_eq!((hash.pdq, hash.quality), over(hash.view.background), "{:?}", hash.view);
        }
        assert!(hashes[0].pdq.distance(&hashes[1].pdq) > 10);
    }

    #[test]
    fn of_a_shrunk_image_the_hash_is_of_its_whole_size() {
        let samples: Vec<u8> = (0..651u32 * 301 * 3).map(|i| i / 651 % 256).map(byte).collect();
        let mut frame = Frame { shrunk: 2, ..Frame::new(samples.clone(), Channels::Rgb, (1301, 601)) };
        let views = views(&mut frame, &[]);
        assert_eq!((views[0].pdq, views[0].quality), pdq::hash(&samples, (1301, 601), 2));
    }

    fn byte(value: u32) -> u8 {
        u8::try_from(value).unwrap()
    }

    #[test]
    fn a_file_of_which_views_are_left_out_is_damaged() {
        // A light picture that only shows on black.
        let image = image::RgbaImage::from_fn(8, 8, |x, _| image::Rgba([255, 255, 255, if x < 4 { 255 } else { 0 }]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let decoded = |max_views| {
            let limits = DecodeConfig { max_views, max_frames: 1, ..DecodeConfig::default() };
            decode_columns(bytes.get_ref(), 8, &limits).unwrap()
        };
        let (all, cut) = (decoded(2), decoded(1));
        assert_eq!((all.views.len(), all.damage.as_str()), (2, ""));
        assert_eq!(cut.views.len(), 1);
        assert_eq!(cut.damage, "image: it has 2 views, and decode.max_views is 1: some are left out");
    }
}
