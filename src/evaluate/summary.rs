//! One subject's figures, ready to be printed and drawn.

use super::metrics::{
    Calibration, ClassCounts, Curve, ScoredImage, ThresholdFigures, auc_interval, recommend, share, wilson_interval,
};
use super::results::EvaluationResults;
use super::slices::{self, Slice};
use super::subject::Subject;

/// Thresholds that every table has.
const SWEEP_THRESHOLDS: [f32; 13] = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99];

/// The false-positive rates to keep: of all negative images, the share that may reach a threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetRates {
    /// For `review_at`; at least as high as for `flag_at`.
    pub review: f64,
    /// For `flag_at`.
    pub flag: f64,
}

#[derive(Debug, Clone)]
pub struct Summary<'a> {
    pub subject: &'a Subject,
    pub datasets: Vec<DatasetSummary<'a>>,
    scored: &'a [Vec<ScoredImage>],
    /// Over all datasets.
    pub curve: Curve,
    /// Over all datasets.
    pub calibration: Calibration,
    /// As `calibration`, of the scores before the package's own calibration, where a package has one.
    pub before_calibration: Option<Calibration>,
    /// Ascending, each with the reasons why it is shown.
    pub thresholds: Vec<(ThresholdFigures, Vec<ThresholdRole>)>,
    pub target_rates: TargetRates,
    /// The lowest threshold that keeps the rate for review, where there is one.
    pub review_at: Option<f32>,
    /// The lowest threshold that keeps the rate for flagging, where there is one.
    pub flag_at: Option<f32>,
    /// The images by format, size, compression and dataset; empty where they were not asked for.
    pub slices: Vec<Slice>,
}

/// One dataset's figures for one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatasetSummary<'a> {
    pub name: &'a str,
    /// Images with scores, by class.
    pub images: ClassCounts,
    /// Images that are classified correctly.
    pub correct: u64,
    /// Images without scores.
    pub unscored: u64,
}

impl DatasetSummary<'_> {
    /// The share of correctly classified images; `None` without an image.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        share(self.correct, self.images.images())
    }

    /// What the accuracy may be on other images like these, with 95 % confidence.
    #[must_use]
    pub fn accuracy_interval(&self) -> Option<(f64, f64)> {
        wilson_interval(self.correct, self.images.images())
    }
}

/// Why a threshold is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThresholdRole {
    PolicyReview,
    PolicyFlag,
    RecommendedReview,
    RecommendedFlag,
}

impl ThresholdRole {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PolicyReview => "policy's review_at",
            Self::PolicyFlag => "policy's flag_at",
            Self::RecommendedReview => "recommended review_at",
            Self::RecommendedFlag => "recommended flag_at",
        }
    }
}

impl<'a> Summary<'a> {
    /// Summarises the results of the subject with this index.
    #[must_use]
    pub fn new(results: &'a EvaluationResults, index: usize, target_rates: TargetRates) -> Self {
        let (subject, scored) = (&results.subjects[index], &results.scored[index]);
        let datasets = results.datasets.iter().zip(scored).enumerate();
        let datasets =
            datasets.map(|(i, (name, scored))| dataset_summary(name, scored, results.unscored_in(i))).collect();
        let curve = Curve::new(scored.iter().flatten().copied());
        let (review_at, flag_at) = (recommend(&curve, target_rates.review), recommend(&curve, target_rates.flag));
        let roles = [
            (subject.review_at, ThresholdRole::PolicyReview),
            (subject.flag_at, ThresholdRole::PolicyFlag),
            (review_at, ThresholdRole::RecommendedReview),
            (flag_at, ThresholdRole::RecommendedFlag),
        ];
        let mut at: Vec<f32> = SWEEP_THRESHOLDS.into_iter().chain(roles.iter().filter_map(|(at, _)| *at)).collect();
        at.sort_by(f32::total_cmp);
        at.dedup();
        let roles_at = |at| roles.iter().filter(|(other, _)| *other == Some(at)).map(|(_, role)| *role).collect();
        let thresholds = at.into_iter().map(|at| (ThresholdFigures::new(&curve, at), roles_at(at))).collect();
        let calibration = Calibration::new(scored.iter().flatten().copied());
        let before = &results.uncalibrated[index];
        let before_calibration = (!before.is_empty()).then(|| Calibration::new(before.iter().copied()));
        Self {
            subject,
            datasets,
            scored,
            curve,
            calibration,
            before_calibration,
            thresholds,
            target_rates,
            review_at,
            flag_at,
            slices: Vec::new(),
        }
    }

    /// Adds the figures of the images by format, size, compression and dataset.
    #[must_use]
    pub fn with_slices(self, results: &EvaluationResults, index: usize) -> Self {
        Self { slices: slices::slices(&results.sliced[index], &results.datasets), ..self }
    }

    /// What the ROC AUC may be on other images like these, with 95 % confidence.
    #[must_use]
    pub fn roc_auc_interval(&self) -> Option<(f64, f64)> {
        auc_interval(self.curve.roc_auc()?, self.curve.total())
    }

    /// Every image with a score, dataset by dataset.
    pub fn scored(&self) -> impl Iterator<Item = ScoredImage> + '_ {
        self.scored.iter().flatten().copied()
    }

    /// All datasets together.
    #[must_use]
    pub fn overall(&self) -> DatasetSummary<'static> {
        let unscored = self.datasets.iter().map(|row| row.unscored).sum();
        DatasetSummary { name: "all", images: self.curve.total(), correct: self.curve.correct(), unscored }
    }

    /// What makes the figures or the recommendation unreliable, the gravest first; empty where they are sound.
    #[must_use]
    pub fn cautions(&self) -> Vec<String> {
        let of_all = [self.caution_of_order(), self.caution_of_recall(), self.caution_of_rate()];
        of_all.into_iter().flatten().chain(slices::cautions(&self.slices, self.curve.roc_auc())).collect()
    }

    /// Scores that put the images in the wrong order.
    fn caution_of_order(&self) -> Option<String> {
        let area = self.curve.roc_auc().filter(|area| *area < 0.5)?;
        let label = &self.subject.positive;
        Some(format!(
            "ROC AUC {area:.4} is below 0.5, which is worse than chance: positive images score lower than negative ones; check whether \"{label}\" is the right label, and whether the datasets' labels are swapped"
        ))
    }

    /// Recommended thresholds that find nothing.
    fn caution_of_recall(&self) -> Option<String> {
        let positives = self.curve.total().positives;
        let finds_nothing = |at: &f32| positives > 0 && self.curve.at(*at).positives == 0;
        let useless: Vec<_> = [("review_at", self.review_at), ("flag_at", self.flag_at)]
            .into_iter()
            .filter_map(|(name, at)| Some(format!("{name} = {}", at.filter(finds_nothing)?)))
            .collect();
        (!useless.is_empty()).then(|| {
            format!(
                "{} would find none of the {positives} positive images (recall 0): the scores do not separate them from the negative ones at this false-positive rate",
                useless.join(" and ")
            )
        })
    }

    /// A recommendation that is missing, or made from few images.
    fn caution_of_rate(&self) -> Option<String> {
        /// Fewer false alarms than this say little about a rate.
        const MIN_FALSE_ALARMS: f64 = 10.0;
        let negatives = self.curve.total().negatives;
        if negatives == 0 {
            return Some("no image is negative, so no false-positive rate can be measured".into());
        }
        let missing: Vec<_> = [("review_at", self.review_at), ("flag_at", self.flag_at)]
            .into_iter()
            .filter_map(|(name, at)| at.is_none().then_some(name))
            .collect();
        if !missing.is_empty() {
            return Some(format!(
                "no {} keeps the rate: too many negative images have the score 1",
                missing.join(" and no ")
            ));
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of images stay far below 2^53")]
        let allowed = negatives as f64 * self.target_rates.flag;
        let rate = self.target_rates.flag;
        if rate > 0.0 && allowed < 1.0 {
            let images = if negatives == 1 { "image" } else { "images" };
            let least = (1.0 / rate).ceil();
            return Some(format!(
                "a false-positive rate of {rate} cannot be measured on {negatives} negative {images}: use at least {least:.0}"
            ));
        }
        (allowed < MIN_FALSE_ALARMS).then(|| {
            format!(
                "a rate of {rate} is only {allowed:.1} of {negatives} negative images: measure more images before relying on it"
            )
        })
    }
}

fn dataset_summary<'a>(name: &'a str, scored: &[ScoredImage], unscored: u64) -> DatasetSummary<'a> {
    let count = |counts: fn(&ScoredImage) -> bool| scored.iter().filter(|image| counts(image)).count() as u64;
    let images = ClassCounts { positives: count(|image| image.positive), negatives: count(|image| !image.positive) };
    DatasetSummary { name, images, correct: count(|image| image.is_correct()), unscored }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::evaluate::results::{Mistake, UnscoredImages};
    use crate::evaluate::slices::{ImageProperties, SlicedImage};

    /// Two datasets of made-up scores, with one image that could not be read and one mistake that is worth showing.
    pub(crate) fn results() -> EvaluationResults {
        let subject = Subject {
            detector: "synthetic-2.0".into(),
            labels: vec!["by human".into(), "by AI".into()],
            positive: "by AI".into(),
            category: Some("synthetic".into()),
            review_at: Some(0.5),
            flag_at: Some(0.9),
        };
        let mut results = EvaluationResults::new([subject].into(), vec!["photos".into(), "faces <b>".into()], 3);
        for i in 0u8..200 {
            let score = f32::from(i) / 199.0;
            let photo = ScoredImage { score: score * score * 0.8, positive: false };
            let face = ScoredImage { score: 1.0 - score * score * 0.75, positive: true };
            for (dataset, format, image) in [(0, "jpeg", photo), (1, "png", face)] {
                results.scored[0][dataset].push(image);
                let properties = ImageProperties::new(format, [800, 600], 90_000, dataset);
                results.sliced[0].push(SlicedImage { image, properties });
            }
        }
        let mistake = Mistake {
            dataset: 0,
            image: "photos/<script>alert(1)</script>.jpg".into(),
            score: 0.8,
            picture: Some("data:image/png;base64,AAAA".into()),
        };
        results.worst[0].offer(ScoredImage { score: 0.8, positive: false }, || mistake);
        let reason = "damaged JPEG: <i>cut short</i>".into();
        results.unscored.push(UnscoredImages { dataset: 1, image: "faces/7.jpg".into(), reason, images: 1 });
        results
    }

    #[test]
    fn the_error_before_a_packages_own_calibration_is_kept_beside_the_one_after_it() {
        let mut results = results();
        assert_eq!(Summary::new(&results, 0, TARGET_RATES).before_calibration, None);
        // Two sure scores, of which one is wrong.
        results.uncalibrated[0] = [true, false].map(|positive| ScoredImage { score: 1.0, positive }).to_vec();
        let summary = Summary::new(&results, 0, TARGET_RATES);
        let before = summary.before_calibration.and_then(|before| before.expected_error()).unwrap();
        assert!((before - 0.5).abs() < 1e-9, "{before}");
        assert_ne!(summary.calibration.expected_error(), Some(before));
    }

    pub(crate) const TARGET_RATES: TargetRates = TargetRates { review: 0.05, flag: 0.01 };

    #[test]
    fn rows_add_up() {
        let results = results();
        let summary = Summary::new(&results, 0, TARGET_RATES);
        let overall = summary.overall();
        assert_eq!(overall.images.images(), summary.datasets.iter().map(|row| row.images.images()).sum::<u64>());
        assert_eq!(overall.correct, summary.datasets.iter().map(|row| row.correct).sum::<u64>());
        assert_eq!((summary.datasets[0].unscored, summary.datasets[1].unscored, overall.unscored), (0, 1, 1));
    }

    #[test]
    fn every_threshold_with_a_role_is_in_the_table_once_and_in_order() {
        let results = results();
        let summary = Summary::new(&results, 0, TARGET_RATES);
        let roles: Vec<ThresholdRole> = summary.thresholds.iter().flat_map(|(_, roles)| roles.clone()).collect();
        assert_eq!(roles.len(), 4, "{roles:?}");
        assert!(summary.thresholds.windows(2).all(|pair| pair[0].0.at < pair[1].0.at));
        assert!(summary.review_at.unwrap() <= summary.flag_at.unwrap());
    }

    #[test]
    fn a_rate_of_few_images_gets_a_caution() {
        let results = results();
        let cautions = |flag| Summary::new(&results, 0, TargetRates { review: 0.5, flag }).cautions();
        assert!(
            matches!(&cautions(0.01)[..], [words] if words.starts_with("a rate of 0.01 is only 2.0 of 200 negative images"))
        );
        assert!(cautions(0.05).is_empty());
        let none = "a false-positive rate of 0.001 cannot be measured on 200 negative images: use at least 1000";
        assert_eq!(cautions(0.001), [none]);
    }

    #[test]
    fn scores_in_the_wrong_order_and_thresholds_that_find_nothing_are_told_in_words() {
        let mut results = results();
        for image in results.scored[0].iter_mut().flatten() {
            image.score = 1.0 - image.score;
        }
        let summary = Summary::new(&results, 0, TargetRates { review: 0.05, flag: 0.05 });
        let cautions = summary.cautions();
        assert!(cautions[0].starts_with("ROC AUC 0.087"), "{cautions:?}");
        assert!(cautions[0].contains(" is below 0.5, which is worse than chance"), "{cautions:?}");
        let threshold = summary.flag_at.unwrap();
        let expected = format!(
            "review_at = {threshold} and flag_at = {threshold} would find none of the 200 positive images (recall 0)"
        );
        assert!(cautions[1].starts_with(&expected), "{cautions:?}");
        assert_eq!(cautions.len(), 2, "{cautions:?}");
    }
}
