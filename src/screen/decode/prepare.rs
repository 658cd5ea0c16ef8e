//! Full-size pixels → what a detector sees: turned upright, resized, cropped, `[height, width, 3] u8`.
//!
//! This runs in the decoder, since only the small result should travel from there.
//!
//! Pillow resizes in two passes through bytes, one for each axis. So does this file, in two calls, in Pillow's order. An
//! image that lies on its side is resized as it lies, with the axes swapped, and only the small result is turned. That
//! gives the same bytes without a second full-size copy.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{CropBoxError, FilterType, PixelType, ResizeAlg, ResizeError, ResizeOptions, Resizer};

use crate::detector::{CropRounding, Geometry, ResampleFilter, Resize};
use crate::screen::pixels::Pixels;

/// The largest result of a pass. Only an image of an extreme shape exceeds it: it is resized far beyond the crop.
const MAX_PASS_BYTES: u64 = 64 << 20;

/// Why a frame cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The image is too long and thin.
    #[error("over the decode limits: the image resized to {0}x{1} would take too much memory")]
    Shape(u32, u32),
    /// The resizer refuses the sizes. They were checked before, so that this would be a bug.
    #[error("cannot resize the image")]
    Resize(#[from] ResizeError),
}

/// How many times, in tenths, a shrunk image still exceeds what it is resized to. Scores depend on it, so it is a part of
/// the detectors' digests.
pub(in crate::screen) const FAST_MARGIN_TENTHS: u64 = 19;

/// How far a decoder may shrink an image before it is resized: by 8, 4, 2, or by 1, which is not at all.
///
/// On both axes this leaves at least 1.9 times what any geometry resizes the image to, so that the filter, and not the
/// decoder, decides what is seen. (Twice would be too much for the most frequent camera: a quarter of 4000x3000 leaves 750
/// lines for 384.) A filter that picks single pixels needs all of them. Fractions between these are not faster, since
/// libjpeg-turbo has no vector code for them.
pub(super) fn largest_shrink(size: (u32, u32), orientation: u8, geometries: &[Geometry]) -> u32 {
    let lying = orientation >= 5;
    let (width, height) = if lying { (size.1, size.0) } else { size };
    let leaves_enough = |by: &u32| {
        geometries.iter().all(|geometry| {
            let target = target((width, height), geometry.resize);
            let enough = |edge: u32, target: u32| {
                10 * u64::from(edge) >= FAST_MARGIN_TENTHS * u64::from(*by) * u64::from(target)
            };
            geometry.filter != ResampleFilter::Nearest && enough(width, target.0) && enough(height, target.1)
        })
    };
    [8, 4, 2].into_iter().find(leaves_enough).unwrap_or(1)
}

/// A picture of full size, not yet turned upright. The fields are those of a frame.
pub(super) struct Picture<'a> {
    /// `[⌈height / shrunk⌉, ⌈width / shrunk⌉, 3] u8`, red, green, blue.
    pub(super) rgb: &'a [u8],
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: u8,
    pub(super) shrunk: u32,
}

/// A thread's resizer with its buffers.
#[derive(Default)]
pub(super) struct Preparer {
    resizer: Resizer,
}

/// A picture on its way through the passes: `[height, width, 3] u8`.
struct Raster<'a> {
    data: std::borrow::Cow<'a, [u8]>,
    width: u32,
    height: u32,
    /// How many columns and lines the picture fills. The last column or line of a shrunk picture may stand for fewer
    /// pixels than the others.
    reach: (f64, f64),
}

impl<'a> Raster<'a> {
    /// A picture that fills all columns and lines.
    fn full(data: impl Into<std::borrow::Cow<'a, [u8]>>, width: u32, height: u32) -> Self {
        Self { data: data.into(), width, height, reach: (f64::from(width), f64::from(height)) }
    }
}

impl Preparer {
    /// Prepares a picture for a geometry.
    ///
    /// # Errors
    /// When the image is so long and thin that its resized form would not fit in memory.
    pub(super) fn prepare(&mut self, picture: &Picture<'_>, geometry: &Geometry) -> Result<Pixels, PrepareError> {
        let &Picture { rgb, width, height, orientation, shrunk } = picture;
        let lying = orientation >= 5;
        let upright = if lying { (height, width) } else { (width, height) };
        let target = target(upright, geometry.resize);
        let reach = (f64::from(width) / f64::from(shrunk), f64::from(height) / f64::from(shrunk));
        let (width, height) = (width.div_ceil(shrunk), height.div_ceil(shrunk));
        let source = Raster { data: rgb.into(), width, height, reach };
        let last = if lying { (target.1, target.0) } else { target };
        let middle = if across_first(upright, target) == lying { (width, last.1) } else { (last.0, height) };
        let halfway = self.pass(source, middle, geometry.filter)?;
        let resized = self.pass(halfway, last, geometry.filter)?;
        Ok(crop(&turn(resized, orientation), geometry))
    }

    /// Resizes along one axis, or returns the picture as it is where its size does not change.
    fn pass<'a>(
        &mut self,
        source: Raster<'a>,
        (width, height): (u32, u32),
        filter: ResampleFilter,
    ) -> Result<Raster<'a>, PrepareError> {
        if (source.width, source.height) == (width, height) {
            return Ok(source);
        }
        if u64::from(width) * u64::from(height) * 3 > MAX_PASS_BYTES {
            return Err(PrepareError::Shape(width, height));
        }
        let from = ImageRef::new(source.width, source.height, &source.data, PixelType::U8x3)
            .map_err(|_| ResizeError::SrcCroppingError(CropBoxError::SizeIsOutOfImageBoundaries))?;
        let mut to = Image::new(width, height, PixelType::U8x3);
        // An axis that this pass does not change keeps its reach for the other pass.
        let along = |from: u32, to: u32, reach: f64| {
            if from == to { (f64::from(from), reach) } else { (reach, f64::from(to)) }
        };
        let (across, reach_across) = along(source.width, width, source.reach.0);
        let (down, reach_down) = along(source.height, height, source.reach.1);
        let options = ResizeOptions::new().resize_alg(algorithm(filter)).use_alpha(false).crop(0.0, 0.0, across, down);
        self.resizer.resize(&from, &mut to, &options)?;
        Ok(Raster { data: to.into_vec().into(), width, height, reach: (reach_across, reach_down) })
    }
}

fn algorithm(filter: ResampleFilter) -> ResizeAlg {
    match filter {
        ResampleFilter::Nearest => ResizeAlg::Nearest,
        ResampleFilter::Lanczos => ResizeAlg::Convolution(FilterType::Lanczos3),
        ResampleFilter::Bilinear => ResizeAlg::Convolution(FilterType::Bilinear),
        // PIL's bicubic has a = -0.5, which is Catmull-Rom.
        ResampleFilter::Bicubic => ResizeAlg::Convolution(FilterType::CatmullRom),
        ResampleFilter::Box => ResizeAlg::Convolution(FilterType::Box),
        ResampleFilter::Hamming => ResizeAlg::Convolution(FilterType::Hamming),
    }
}

/// Whether Pillow resizes across the image first. It resizes down first where that removes more than twice as many lines
/// as the other pass removes columns (found by comparing sizes with Pillow 13).
fn across_first(upright: (u32, u32), target: (u32, u32)) -> bool {
    let (columns, lines) = (upright.0.saturating_sub(target.0), upright.1.saturating_sub(target.1));
    u64::from(lines) <= 2 * u64::from(columns)
}

/// The size of the upright image after the resize.
fn target((width, height): (u32, u32), resize: Resize) -> (u32, u32) {
    match resize {
        Resize::None => (width, height),
        Resize::Exact { width, height } => (width, height),
        // torchvision and transformers: int(edge * long / short).
        Resize::ShortestEdge(edge) => {
            let longer = |long: u32, short: u32| clamp(u64::from(edge) * u64::from(long) / u64::from(short));
            if width <= height { (edge, longer(height, width)) } else { (longer(width, height), edge) }
        }
        Resize::ShortestEdgeWithin { edge, longest } => shortest_edge_within((width, height), edge, longest),
        Resize::Cover { width: w, height: h } => {
            keep_ratio((width, height), (f64::from(width) / f64::from(w)).min(f64::from(height) / f64::from(h)))
        }
        Resize::Fit { width: w, height: h, .. } => {
            keep_ratio((width, height), (f64::from(width) / f64::from(w)).max(f64::from(height) / f64::from(h)))
        }
    }
}

/// timm's `ResizeKeepRatio`: `round(side / ratio)`, halves to even.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a ratio is above 0, and a cast saturates")]
fn keep_ratio((width, height): (u32, u32), ratio: f64) -> (u32, u32) {
    let scaled = |side: u32| ((f64::from(side) / ratio).round_ties_even() as u32).max(1);
    (scaled(width), scaled(height))
}

/// transformers' `get_size_with_aspect_ratio`. Where the longer edge would exceed its limit, the shorter edge follows from
/// the limit, and the longer edge from the shorter one before that was rounded.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "edges are above 0, and a cast saturates")]
fn shortest_edge_within((width, height): (u32, u32), edge: u32, longest: u32) -> (u32, u32) {
    let (short, long) = (f64::from(width.min(height)), f64::from(width.max(height)));
    let left = f64::from(longest) * short / long;
    let is_limited = long / short * f64::from(edge) > f64::from(longest);
    let exact = if is_limited { left } else { f64::from(edge) };
    let shorter = exact.round_ties_even() as u32;
    if shorter == width.min(height) {
        return (width, height);
    }
    let (shorter, longer) = (shorter.max(1), ((exact * long / short) as u32).max(1));
    if width < height { (shorter, longer) } else { (longer, shorter) }
}

fn clamp(edge: u64) -> u32 {
    u32::try_from(edge.max(1)).unwrap_or(u32::MAX)
}

/// Turns a small image upright by its EXIF code.
fn turn(view: Raster<'_>, orientation: u8) -> Raster<'_> {
    if !(2..=8).contains(&orientation) {
        return view;
    }
    let (w, h) = (view.width as usize, view.height as usize);
    let (width, height) = if orientation >= 5 { (h, w) } else { (w, h) };
    let mut data = Vec::with_capacity(view.data.len());
    for y in 0..height {
        for x in 0..width {
            let (sx, sy) = match orientation {
                2 => (w - 1 - x, y),
                3 => (w - 1 - x, h - 1 - y),
                4 => (x, h - 1 - y),
                5 => (y, x),
                6 => (y, h - 1 - x),
                7 => (w - 1 - y, h - 1 - x),
                _ => (w - 1 - y, x),
            };
            let at = (sy * w + sx) * 3;
            data.extend_from_slice(&view.data[at..at + 3]);
        }
    }
    let (width, height) = if orientation >= 5 { (view.height, view.width) } else { (view.width, view.height) };
    Raster::full(data, width, height)
}

/// Crops or pads around the centre to exactly the geometry's size.
fn crop(view: &Raster<'_>, geometry: &Geometry) -> Pixels {
    let (width, height) = (geometry.width, geometry.height);
    if (view.width, view.height) == (width, height) {
        return Pixels { width, height, data: view.data.to_vec() };
    }
    let fill = match geometry.resize {
        Resize::Fit { fill, .. } => fill,
        _ => [0; 3],
    };
    let (left, top) = (offset(view.width, width, geometry.rounding), offset(view.height, height, geometry.rounding));
    let mut data = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..i64::from(height) {
        for x in 0..i64::from(width) {
            let (sx, sy) = (x + left, y + top);
            let inside = (0..i64::from(view.width)).contains(&sx) && (0..i64::from(view.height)).contains(&sy);
            if let (true, Ok(at)) = (inside, usize::try_from((sy * i64::from(view.width) + sx) * 3)) {
                data.extend_from_slice(&view.data[at..at + 3]);
            } else {
                data.extend_from_slice(&fill);
            }
        }
    }
    Pixels { width, height, data }
}

/// Where the crop begins in the image. It is negative where the image is padded.
fn offset(edge: u32, crop: u32, rounding: CropRounding) -> i64 {
    let spare = i64::from(edge) - i64::from(crop);
    match rounding {
        // Rounded down also below 0: transformers puts the larger half of the padding first, torchvision the smaller half.
        CropRounding::Down => spare.div_euclid(2),
        CropRounding::HalfToEven if spare < 0 => -(-spare / 2),
        CropRounding::HalfToEven => {
            let half = spare / 2;
            if spare % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(resize: Resize, width: u32, height: u32) -> Geometry {
        Geometry { resize, filter: ResampleFilter::Bicubic, width, height, rounding: CropRounding::HalfToEven }
    }

    fn whole(rgb: &[u8], width: u32, height: u32, orientation: u8) -> Picture<'_> {
        Picture { rgb, width, height, orientation, shrunk: 1 }
    }

    fn noise(width: u32, height: u32) -> Vec<u8> {
        let mut state = 1u32;
        (0..width * height * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect()
    }

    /// By definition an image is turned first and then resized. The other order must give the same bytes.
    #[test]
    fn turning_after_the_resize_gives_the_same_bytes() {
        let (w, h) = (61, 40);
        let rgb = noise(w, h);
        for orientation in 1..=8 {
            let geometry = geometry(Resize::Exact { width: 17, height: 23 }, 17, 23);
            let lying = whole(&rgb, w, h, orientation);
            let fast = Preparer::default().prepare(&lying, &geometry).unwrap();
            let upright = turn(Raster::full(&rgb, w, h), orientation);
            let upright = whole(&upright.data, upright.width, upright.height, 1);
            let slow = Preparer::default().prepare(&upright, &geometry).unwrap();
            assert_eq!(fast, slow, "orientation {orientation}");
        }
    }

    #[test]
    fn sizes_follow_the_reference() {
        assert_eq!(target((100, 67), Resize::ShortestEdge(50)), (74, 50));
        assert_eq!(target((67, 100), Resize::ShortestEdge(50)), (50, 74));
        let fill = [1, 2, 3];
        assert_eq!(target((100, 67), Resize::Fit { width: 50, height: 50, fill }), (50, 34));
        assert_eq!(target((5000, 1), Resize::Fit { width: 50, height: 50, fill }), (50, 1));
        assert_eq!(target((100, 67), Resize::Fit { width: 50, height: 20, fill }), (30, 20));
        assert_eq!(target((100, 67), Resize::Cover { width: 50, height: 50 }), (75, 50));
        assert_eq!(target((100, 67), Resize::Cover { width: 50, height: 20 }), (50, 34));
        // Computed by transformers 5.24's get_size_with_aspect_ratio.
        let within = |size| target(size, Resize::ShortestEdgeWithin { edge: 50, longest: 80 });
        assert_eq!((within((100, 67)), within((67, 100))), ((74, 50), (50, 74)));
        assert_eq!((within((200, 67)), within((67, 200))), ((80, 27), (27, 80)));
        assert_eq!((within((50, 77)), within((77, 50))), ((50, 77), (77, 50)));
    }

    #[test]
    fn a_shrunk_image_still_has_nearly_twice_the_size_that_each_geometry_resizes_it_to() {
        let square = |edge| geometry(Resize::Exact { width: edge, height: edge }, edge, edge);
        let flat = geometry(Resize::Exact { width: 400, height: 100 }, 400, 100);
        let shortest = geometry(Resize::ShortestEdge(256), 224, 224);
        let fill = [0; 3];
        let fit = geometry(Resize::Fit { width: 384, height: 384, fill }, 384, 384);
        for (size, orientation, geometries, by) in [
            ((4000, 3000), 1, &[square(384)][..], 4),
            ((4000, 2919), 1, &[square(384)], 4),
            ((4000, 2918), 1, &[square(384)], 2),
            ((5837, 5837), 1, &[square(384)], 8),
            ((60_000, 60_000), 1, &[square(384)], 8),
            ((1600, 1200), 1, &[square(384)], 1),
            ((767, 5000), 1, &[square(384)], 1),
            ((4000, 3000), 1, &[square(32)], 8),
            // The largest decides.
            ((4000, 3000), 1, &[square(32), square(384)], 4),
            ((4000, 3000), 1, &[square(384), square(32)], 4),
            // As it lies, and as it stands upright.
            ((3200, 800), 1, &[flat], 4),
            ((3200, 800), 6, &[flat], 1),
            ((800, 3200), 6, &[flat], 4),
            ((800, 3200), 3, &[flat], 1),
            // Before the crop: 1024x256, and 384x192.
            ((4096, 1024), 1, &[shortest], 2),
            ((4000, 2000), 1, &[fit], 4),
        ] {
            assert_eq!(largest_shrink(size, orientation, geometries), by, "{size:?} {orientation} {geometries:?}");
        }
        let as_it_is = geometry(Resize::None, 384, 384);
        assert_eq!(largest_shrink((8000, 8000), 1, &[as_it_is, square(8)]), 1);
        let pixels = Geometry { filter: ResampleFilter::Nearest, ..square(8) };
        assert_eq!(largest_shrink((8000, 8000), 1, &[pixels]), 1);
    }

    #[test]
    fn a_long_and_thin_image_does_not_take_all_memory() {
        let geometry = geometry(Resize::ShortestEdge(224), 224, 224);
        let thin = Preparer::default().prepare(&whole(&[0; 16_384 * 3], 16_384, 1, 1), &geometry);
        assert!(matches!(thin, Err(PrepareError::Shape(..))));
    }

    #[test]
    fn a_crop_is_centred_with_the_library_s_rounding() {
        for (edge, crop, half_to_even, down) in
            [(10, 8, 1, 1), (9, 8, 0, 0), (11, 8, 2, 1), (13, 8, 2, 2), (8, 11, -1, -2)]
        {
            assert_eq!(offset(edge, crop, CropRounding::HalfToEven), half_to_even, "{edge} {crop}");
            assert_eq!(offset(edge, crop, CropRounding::Down), down, "{edge} {crop}");
        }
    }

    #[test]
    fn the_border_is_filled_with_the_mean() {
        let geometry = geometry(Resize::Fit { width: 4, height: 4, fill: [9, 8, 7] }, 4, 4);
        let pixels = Preparer::default().prepare(&whole(&[200; 8 * 4 * 3], 8, 4, 1), &geometry).unwrap();
        let rows: Vec<_> = pixels.data.chunks(12).map(|row| row[0]).collect();
        assert_eq!(rows, [9, 200, 200, 9]);
    }
}
