//! Figures over labelled scores. All are computed from one curve: the number of images of either class that reach a
//! threshold, for every threshold at which that number changes.

mod calibration;
mod interval;
mod thresholds;

pub(super) use calibration::bin_index;
pub use calibration::{CALIBRATION_BINS, Calibration, CalibrationBin};
pub use interval::{auc_interval, wilson_interval};
pub use thresholds::{ThresholdFigures, recommend};

/// For accuracy, an image counts as classified positive from this score on. With two labels under a softmax this is the
/// more likely label.
pub const ACCURACY_THRESHOLD: f32 = 0.5;

/// One image as one detector scored it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredImage {
    /// Probability of the positive class, in `0..=1`.
    pub score: f32,
    /// Whether the image is of the positive class.
    pub positive: bool,
}

impl ScoredImage {
    /// Whether the image is classified correctly at [`ACCURACY_THRESHOLD`].
    #[must_use]
    pub fn is_correct(self) -> bool {
        (self.score >= ACCURACY_THRESHOLD) == self.positive
    }
}

/// Numbers of images that reach a threshold, by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassCounts {
    pub positives: u64,
    /// Those among them that reach a threshold are false alarms.
    pub negatives: u64,
}

/// The images that reach each threshold. A score equal to the threshold reaches it, as in the policy.
#[derive(Debug, Clone)]
pub struct Curve {
    /// One step per distinct score, the highest first; the counts grow.
    steps: Vec<(f32, ClassCounts)>,
    total: ClassCounts,
}

impl Curve {
    /// Sorts the images. Equal scores make one step, since there is no order among them.
    pub fn new(images: impl IntoIterator<Item = ScoredImage>) -> Self {
        let mut images: Vec<ScoredImage> = images.into_iter().collect();
        images.sort_unstable_by(|a, b| b.score.total_cmp(&a.score));
        let mut total = ClassCounts::default();
        let mut steps: Vec<(f32, ClassCounts)> = Vec::new();
        for image in images {
            total.positives += u64::from(image.positive);
            total.negatives += u64::from(!image.positive);
            match steps.last_mut() {
                Some((score, reached)) if *score == image.score => *reached = total,
                _ => steps.push((image.score, total)),
            }
        }
        Self { steps, total }
    }

    /// All images, by class.
    #[must_use]
    pub fn total(&self) -> ClassCounts {
        self.total
    }

    /// The images that reach a threshold.
    #[must_use]
    pub fn at(&self, threshold: f32) -> ClassCounts {
        let reaching = self.steps.partition_point(|(score, _)| *score >= threshold);
        reaching.checked_sub(1).map_or_else(ClassCounts::default, |last| self.steps[last].1)
    }

    /// The distinct scores, highest first, each with the images that reach it.
    #[must_use]
    pub fn steps(&self) -> &[(f32, ClassCounts)] {
        &self.steps
    }

    /// The images that are classified correctly at [`ACCURACY_THRESHOLD`].
    #[must_use]
    pub fn correct(&self) -> u64 {
        let reached = self.at(ACCURACY_THRESHOLD);
        reached.positives + self.total.negatives - reached.negatives
    }

    /// Area under the ROC curve: the probability that a positive image scores higher than a negative one, ties counting
    /// half (the Mann-Whitney statistic). `None` without images of both classes.
    #[must_use]
    pub fn roc_auc(&self) -> Option<f64> {
        let mut before = ClassCounts::default();
        // Twice the number of pairs in the right order, in whole numbers, so that no rounding adds up.
        let mut twice = 0u128;
        for (_, reached) in &self.steps {
            let here = u128::from(reached.negatives - before.negatives);
            twice += here * u128::from(before.positives + reached.positives);
            before = *reached;
        }
        let pairs = u128::from(self.total.positives) * u128::from(self.total.negatives);
        #[expect(clippy::cast_precision_loss, reason = "pairs of a million images each are far below 2^53")]
        let area = (pairs > 0).then(|| twice as f64 / (2 * pairs) as f64);
        area
    }

    /// Average precision, `Σ (R_n − R_{n−1}) P_n` over the distinct scores from the highest down: the area under the
    /// precision-recall curve without interpolation. `None` without a positive image.
    #[must_use]
    pub fn average_precision(&self) -> Option<f64> {
        if self.total.positives == 0 {
            return None;
        }
        let mut before = 0;
        let mut sum = 0.0;
        for (_, reached) in &self.steps {
            let gained = as_f64(reached.positives - before);
            sum += gained * reached.precision().unwrap_or_default();
            before = reached.positives;
        }
        Some(sum / as_f64(self.total.positives))
    }

    /// `(false-positive rate, recall)` from `(0, 0)` to `(1, 1)`. Empty without images of both classes.
    #[must_use]
    pub fn roc(&self) -> Vec<(f64, f64)> {
        let point = |reached: &ClassCounts| {
            Some((share(reached.negatives, self.total.negatives)?, share(reached.positives, self.total.positives)?))
        };
        let steps = self.steps.iter().map(|(_, reached)| reached);
        std::iter::once(&ClassCounts::default()).chain(steps).filter_map(point).collect()
    }

    /// `(recall, precision)` from the highest score down. Empty without a positive image.
    #[must_use]
    pub fn precision_recall(&self) -> Vec<(f64, f64)> {
        let point =
            |reached: &ClassCounts| Some((share(reached.positives, self.total.positives)?, reached.precision()?));
        self.steps.iter().filter_map(|(_, reached)| point(reached)).collect()
    }
}

impl ClassCounts {
    #[must_use]
    pub fn images(self) -> u64 {
        self.positives + self.negatives
    }

    /// The share of positives; `None` where there is no image.
    #[must_use]
    pub fn precision(self) -> Option<f64> {
        share(self.positives, self.images())
    }
}

/// `part / whole`; `None` where the whole is 0.
#[must_use]
pub fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| as_f64(part) / as_f64(whole))
}

#[expect(clippy::cast_precision_loss, reason = "counts of images stay far below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn scored(images: &[(f32, bool)]) -> Vec<ScoredImage> {
        images.iter().map(|(score, positive)| ScoredImage { score: *score, positive: *positive }).collect()
    }

    /// Few distinct scores, so that ties are common.
    pub(crate) fn images() -> impl Strategy<Value = Vec<ScoredImage>> {
        let image = (0u8..=20, any::<bool>());
        proptest::collection::vec(image, 0..60).prop_map(|images| {
            images
                .into_iter()
                .map(|(score, positive)| ScoredImage { score: f32::from(score) / 20.0, positive })
                .collect()
        })
    }

    /// The definition: over all pairs of a positive and a negative image.
    fn pairwise_auc(images: &[ScoredImage]) -> Option<f64> {
        let of = |positive| images.iter().filter(move |image| image.positive == positive);
        let pairs = of(true).flat_map(|p| of(false).map(move |n| (p.score, n.score)));
        let worth = |(p, n): (f32, f32)| {
            if p > n {
                1.0
            } else if p == n {
                0.5
            } else {
                0.0
            }
        };
        let (sum, count) = pairs.fold((0.0, 0u32), |(sum, count), pair| (sum + worth(pair), count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }

    proptest! {
        #[test]
        fn auc_is_the_share_of_pairs_in_order(images in images()) {
            let (curve, expected) = (Curve::new(images.clone()).roc_auc(), pairwise_auc(&images));
            prop_assert_eq!(curve.is_some(), expected.is_some());
            prop_assert!((curve.unwrap_or_default() - expected.unwrap_or_default()).abs() < 1e-12);
        }

        #[test]
        fn the_order_of_the_images_changes_nothing(images in images()) {
            let reversed = images.iter().rev().copied();
            let (a, b) = (Curve::new(images.clone()), Curve::new(reversed));
            prop_assert_eq!(a.steps(), b.steps());
        }

        #[test]
        fn the_roc_rises_from_corner_to_corner(images in images()) {
            let curve = Curve::new(images);
            let roc = curve.roc();
            if curve.roc_auc().is_none() {
                prop_assert!(roc.is_empty());
            } else {
                prop_assert_eq!((roc[0], roc[roc.len() - 1]), ((0.0, 0.0), (1.0, 1.0)));
                prop_assert!(roc.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1));
                let trapezoids: f64 =
                    roc.windows(2).map(|pair| (pair[1].0 - pair[0].0) * (pair[1].1 + pair[0].1) / 2.0).sum();
                prop_assert!((trapezoids - curve.roc_auc().unwrap()).abs() < 1e-12);
            }
        }

        #[test]
        fn a_threshold_counts_the_images_that_reach_it(images in images(), threshold in 0.0f32..=1.0) {
            let reaching = |positive| {
                images.iter().filter(|image| image.positive == positive && image.score >= threshold).count() as u64
            };
            let expected = ClassCounts { positives: reaching(true), negatives: reaching(false) };
            let curve = Curve::new(images.clone());
            prop_assert_eq!(curve.at(threshold), expected);
            prop_assert_eq!(curve.correct(), images.iter().filter(|image| image.is_correct()).count() as u64);
        }
    }

    #[test]
    fn average_precision_of_a_case_computed_by_hand() {
        // By rank: + at 1 (1/1), − at 2, + and − tied at 3 and 4 (2/4), + at 5 (3/5).
        let images = scored(&[(0.9, true), (0.8, false), (0.5, true), (0.5, false), (0.1, true)]);
        let expected = (1.0 + 0.5 + 0.6) / 3.0;
        assert!((Curve::new(images).average_precision().unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn a_score_of_one_half_counts_as_positive() {
        let correct = |score, positive| ScoredImage { score, positive }.is_correct();
        assert!(correct(0.5, true) && !correct(0.5, false) && correct(0.499_999_97, false));
    }

    #[test]
    fn one_class_alone_has_no_auc() {
        let curve = Curve::new(scored(&[(0.2, true), (0.7, true)]));
        assert_eq!((curve.roc_auc(), curve.average_precision()), (None, Some(1.0)));
        assert_eq!(Curve::new([]).average_precision(), None);
    }
}
