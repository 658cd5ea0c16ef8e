//! The self-test at start: a package's golden image is decoded and scored on the device that will be used, and has to get
//! the scores that it had where the package was made.
//!
//! It finds what no field of a package shows: another model under the same name, edited preprocessing, a provider or a
//! driver that computes something else. The golden image is decoded exactly in every mode, as it was where its scores were
//! made: the known error of the mode `fast` shows nothing about the package.

use std::sync::Arc;

use bytes::Bytes;

use super::decode::DecoderPool;
use super::error::ScreenError;
use super::infer::Engine;
use super::pixels::Pixels;
use crate::config::DecodeMode;
use crate::detector::GoldenImage;
use crate::error_text;
use crate::job::Lane;

/// The result of a detector's self-test.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SelfTest {
    /// Every probability is within the tolerance.
    Passed(Deviation),
    /// The package has no golden image, so that there is nothing to compare with.
    NoGoldenImage,
}

/// The largest difference between a score and the stored one.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// The label with the largest difference.
    pub label: String,
    /// The probability scored here.
    pub scored: f32,
    /// The probability in `golden.json`.
    pub stored: f32,
    /// The largest difference that `golden.json` allows.
    pub tolerance: f32,
}

impl Deviation {
    /// The difference. It is not a number where the score is not.
    pub(crate) fn size(&self) -> f32 {
        (self.scored - self.stored).abs()
    }

    /// False for a difference that is not a number.
    fn is_within(&self) -> bool {
        self.size() <= self.tolerance
    }

    /// The deviation of the label that differs most.
    fn largest(labels: &[String], scores: &[f32], golden: &GoldenImage) -> Option<Self> {
        let deviations = labels.iter().zip(scores).zip(&golden.scores).map(|((label, scored), stored)| Self {
            label: label.clone(),
            scored: *scored,
            stored: *stored,
            tolerance: golden.tolerance,
        });
        // In this order NaN is above every number.
        deviations.max_by(|a, b| a.size().total_cmp(&b.size()))
    }
}

impl std::fmt::Display for SelfTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Passed(deviation) => {
                write!(
                    f,
                    "golden image agrees within {:.6}, the tolerance is {}",
                    deviation.size(),
                    deviation.tolerance
                )
            }
            Self::NoGoldenImage => write!(f, "not tested, the package has no golden image; {}", HOW_TO_WRITE),
        }
    }
}

/// Why a detector cannot be trusted on this machine.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The scores are not those of the machine where the package was made.
    #[error(
        "detector {detector} on {device}: its golden image scores {} for \"{}\", but golden.json has {} (tolerance {})\n  hint: fetch or convert the package again, which replaces model and golden.json together; if the package is unchanged, try --device cpu: if the scores agree there, the device or its driver is at fault",
        .deviation.scored, .deviation.label, .deviation.stored, .deviation.tolerance
    )]
    Deviates {
        /// The detector's name.
        detector: String,
        /// The device that it ran on, for people.
        device: String,
        /// The label that differs most.
        deviation: Deviation,
    },
    /// The golden image has no scores.
    #[error("detector {detector} on {device}: cannot score its golden image: {}\n  hint: {}", error_text(.error), REPLACE)]
    NotScored {
        /// The detector's name.
        detector: String,
        /// The device that it ran on, for people.
        device: String,
        /// Why it has no scores.
        error: Box<ScreenError>,
    },
    /// The golden image is an animation. Of several frames the most severe would count, and what is severe depends on the
    /// policy.
    #[error(
        "detector {detector}: its golden image has {frames} frames, but must be a still image\n  hint: {}",
        REPLACE
    )]
    Animated {
        /// The detector's name.
        detector: String,
        /// The number of frames.
        frames: u32,
    },
    /// The model gives no score for any label.
    #[error("detector {detector} on {device}: the model gives no scores for its golden image")]
    NoScores {
        /// The detector's name.
        detector: String,
        /// The device that it ran on, for people.
        device: String,
    },
}

/// The scores of some pictures alone, compared with their scores in one batch.
///
/// A model that is quantised while it runs takes its scale from the whole batch, so that a picture's score depends on its
/// neighbours. Its scores cannot be repeated, and nothing in the package shows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BatchComparison {
    /// The pictures of the batch.
    pub(crate) images: usize,
    /// The label with the largest difference.
    pub(crate) label: String,
    /// That difference. It is not a number where a score is not.
    pub(crate) deviation: f32,
}

/// A difference up to which scores count as equal: kernels for several images add in another order.
const BATCH_TOLERANCE: f32 = 0.002;

impl BatchComparison {
    /// Whether a picture's score depends on its neighbours. True for a difference that is not a number.
    pub(crate) fn depends_on_neighbours(&self) -> bool {
        self.deviation.is_nan() || self.deviation > BATCH_TOLERANCE
    }

    /// The largest difference between two sets of rows.
    fn of(labels: &[String], alone: &[Vec<f32>], together: &[Vec<f32>]) -> Option<Self> {
        let pairs =
            alone.iter().zip(together).flat_map(|(alone, together)| labels.iter().zip(alone.iter().zip(together)));
        let deviations = pairs.map(|(label, (alone, together))| ((alone - together).abs(), label));
        // In this order NaN is above every number.
        let (deviation, label) = deviations.max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(Self { images: alone.len(), label: label.clone(), deviation })
    }
}

/// Scores drawn pictures and the golden image, each alone and all in one batch. `None` where batches hold one image.
pub(super) async fn compare_batches(
    engine: &Engine,
    decoders: &DecoderPool,
) -> Result<Option<BatchComparison>, SelfTestError> {
    let images = engine.max_batch().min(LARGEST_COMPARED_BATCH);
    if images < 2 {
        return Ok(None);
    }
    let not_scored = |error| SelfTestError::NotScored {
        detector: engine.detector.name.clone(),
        device: engine.device.clone(),
        error: Box::new(error),
    };
    let mut pictures: Vec<_> = (0..images).map(|variant| drawn(engine, variant)).collect();
    if let Some(golden) = &engine.detector.golden {
        pictures[0] = pixels_of_still(engine, decoders, golden.image.clone()).await?;
    }
    let mut alone = Vec::new();
    for picture in &pictures {
        alone.push(engine.score(Lane::Live, Arc::clone(picture)).await.map_err(not_scored)?);
    }
    let together = engine.score_together(Lane::Live, pictures).await.map_err(not_scored)?;
    Ok(BatchComparison::of(&engine.detector.labels, &alone, &together))
}

/// Enough to bring flat and grainy pictures together.
pub(super) const LARGEST_COMPARED_BATCH: usize = 8;

/// A picture with more or less grain, half of them over a gradient, so that their values have different ranges.
fn drawn(engine: &Engine, variant: usize) -> Arc<Pixels> {
    let (width, height) = (engine.detector.geometry.width, engine.detector.geometry.height);
    let grain = [0, 10, 40, 127][variant % 4];
    let mut state = u32::try_from(variant).unwrap_or_default();
    let bytes = (0..width as usize * height as usize * 3).map(|at| {
        // The constants of Numerical Recipes' linear congruential generator.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = i64::from(state >> 16) % (2 * grain + 1) - grain;
        let across = i64::try_from(at / 3 % width as usize).unwrap_or_default();
        let slope = if variant >= 4 { across * 160 / i64::from(width) - 80 } else { 0 };
        u8::try_from((128 + noise + slope).clamp(0, 255)).unwrap_or_default()
    });
    Arc::new(Pixels { width, height, data: bytes.collect() })
}

/// How a package gets a golden image.
pub(crate) const HOW_TO_WRITE: &str = "`pixwarden models check --write-golden IMAGE` makes one";

/// What to do about a golden image that cannot be scored.
const REPLACE: &str = "replace the image and golden.json by converting the package again";

/// Runs a detector's golden image, if it has one, through the decoders and the detector's own session.
pub(super) async fn run_self_test(engine: &Engine, decoders: &DecoderPool) -> Result<SelfTest, SelfTestError> {
    let Some(golden) = &engine.detector.golden else { return Ok(SelfTest::NoGoldenImage) };
    let scores = score_still(engine, decoders, golden.image.clone()).await?;
    let (detector, device) = (engine.detector.name.clone(), engine.device.clone());
    match Deviation::largest(&engine.detector.labels, &scores, golden) {
        Some(deviation) if deviation.is_within() => Ok(SelfTest::Passed(deviation)),
        Some(deviation) => Err(SelfTestError::Deviates { detector, device, deviation }),
        None => Err(SelfTestError::NoScores { detector, device }),
    }
}

/// The probabilities of a still image, in the order of the detector's labels.
pub(super) async fn score_still(
    engine: &Engine,
    decoders: &DecoderPool,
    image: Bytes,
) -> Result<Vec<f32>, SelfTestError> {
    let pixels = pixels_of_still(engine, decoders, image).await?;
    engine.score(Lane::Live, pixels).await.map_err(|error| SelfTestError::NotScored {
        detector: engine.detector.name.clone(),
        device: engine.device.clone(),
        error: Box::new(error),
    })
}

/// The pixels of a still image, as the detector takes them.
async fn pixels_of_still(engine: &Engine, decoders: &DecoderPool, image: Bytes) -> Result<Arc<Pixels>, SelfTestError> {
    let names = || (engine.detector.name.clone(), engine.device.clone());
    let not_scored = |error| {
        let (detector, device) = names();
        SelfTestError::NotScored { detector, device, error: Box::new(error) }
    };

    let geometries = Arc::from([engine.detector.geometry]);
    let decoded = decoders.decode_with_mode(DecodeMode::Exact, Lane::Live, image, geometries);
    let decoded = decoded.await.map_err(not_scored)?;
    let (1, Some(view)) = (decoded.info.frames, decoded.views.first()) else {
        return Err(SelfTestError::Animated { detector: names().0, frames: decoded.info.frames });
    };
    Ok(Arc::clone(&view.pixels[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn largest(scores: [f32; 2], tolerance: f32) -> Deviation {
        let golden = GoldenImage { image: bytes::Bytes::new(), scores: vec![0.25, 0.75], tolerance };
        Deviation::largest(&["real".into(), "fake".into()], &scores, &golden).unwrap()
    }

    #[test]
    fn the_label_that_differs_most_decides() {
        let deviation = largest([0.26, 0.70], 0.02);
        assert_eq!((deviation.label.as_str(), deviation.is_within()), ("fake", false));
        assert!(largest([0.26, 0.74], 0.02).is_within());
    }

    #[test]
    fn a_picture_whose_score_depends_on_its_neighbours_is_found() {
        let labels = ["real".to_owned(), "fake".to_owned()];
        let compare = |together: [f32; 2]| {
            let rows = [vec![0.5, 0.5], vec![0.25, 0.75]];
            BatchComparison::of(&labels, &rows, &[rows[0].clone(), together.to_vec()]).unwrap()
        };
        assert!(!compare([0.25, 0.751]).depends_on_neighbours());
        let other = compare([0.25, 0.745]);
        assert_eq!((other.images, other.label.as_str(), other.depends_on_neighbours()), (2, "fake", true));
        assert!(compare([f32::NAN, 0.75]).depends_on_neighbours());
    }

    #[test]
    fn a_score_that_is_not_a_number_fails() {
        for found in [[f32::NAN, 0.75], [0.25, f32::NAN], [-f32::NAN, 0.75]] {
            assert!(!largest(found, 0.49).is_within(), "{found:?}");
        }
    }
}
