//! Calibration: whether eight of ten images with a score of 0.8 are positive.

use super::{ScoredImage, as_f64, share};

/// Bins of equal width over `0..=1`, as many as Guo et al., "On Calibration of Modern Neural Networks" (2017), use.
pub const CALIBRATION_BINS: usize = 15;

/// The images whose scores fall into one bin.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CalibrationBin {
    pub images: u64,
    pub positives: u64,
    sum: f64,
}

impl CalibrationBin {
    /// The mean score; `None` in an empty bin.
    #[must_use]
    pub fn mean_score(&self) -> Option<f64> {
        (self.images > 0).then(|| self.sum / as_f64(self.images))
    }

    /// The share that is positive; `None` in an empty bin.
    #[must_use]
    pub fn share_positive(&self) -> Option<f64> {
        share(self.positives, self.images)
    }
}

/// Scores against what the images are, by bin: bin i of n holds `i/n <= score < (i+1)/n`, the last one also 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// From 0 to 1.
    pub bins: [CalibrationBin; CALIBRATION_BINS],
}

impl Calibration {
    /// Sorts the images into bins.
    pub fn new(images: impl IntoIterator<Item = ScoredImage>) -> Self {
        let mut bins = [CalibrationBin::default(); CALIBRATION_BINS];
        for image in images {
            let bin = &mut bins[bin_index(image.score, CALIBRATION_BINS)];
            bin.images += 1;
            bin.positives += u64::from(image.positive);
            bin.sum += f64::from(image.score);
        }
        Self { bins }
    }

    /// Expected calibration error of the positive class: `Σ n_b/n · |mean score_b − share positive_b|` over the bins.
    /// `None` without an image.
    #[must_use]
    pub fn expected_error(&self) -> Option<f64> {
        let images: u64 = self.bins.iter().map(|bin| bin.images).sum();
        // n_b · |mean − share| is |sum of scores − positives|.
        let gaps: f64 = self.bins.iter().map(|bin| (bin.sum - as_f64(bin.positives)).abs()).sum();
        (images > 0).then(|| gaps / as_f64(images))
    }
}

/// The index of the bin that a score falls into, of `bins` bins of equal width.
pub(in crate::evaluate) fn bin_index(score: f32, bins: usize) -> usize {
    let upper = |bin: usize| as_f64(bin as u64 + 1) / as_f64(bins as u64);
    (0..bins).find(|bin| f64::from(score) < upper(*bin)).unwrap_or(bins - 1)
}

#[cfg(test)]
mod tests {
    use super::super::tests::scored;
    use super::*;

    #[test]
    fn a_bin_begins_at_its_lower_edge_and_the_last_one_ends_with_1() {
        assert_eq!([0.0, 0.249_999, 0.25, 0.75, 1.0].map(|score| bin_index(score, 4)), [0, 0, 1, 3, 3]);
    }

    #[test]
    fn the_error_of_a_case_computed_by_hand() {
        // Two of ten at 0.2 are positive: no error. Of ten at 0.9 only five are, of ten at 0.4 eight: off by 0.4 either
        // way, over two thirds of all images.
        let ten = |score: f32, positives: u8| (0..10).map(move |i| (score, i < positives));
        let images: Vec<_> = ten(0.2, 2).chain(ten(0.9, 5)).chain(ten(0.4, 8)).collect();
        let error = Calibration::new(scored(&images)).expected_error().unwrap();
        assert!((error - 0.8 / 3.0).abs() < 1e-6, "{error}");
        assert_eq!(Calibration::new([]).expected_error(), None);
    }
}
