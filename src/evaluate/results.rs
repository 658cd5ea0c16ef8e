//! The results of an evaluation: a few bytes per image and detector, and more only for the worst mistakes.

use std::sync::Arc;

use super::metrics::ScoredImage;
use super::slices::SlicedImage;
use super::subject::Subject;

#[derive(Debug)]
pub struct EvaluationResults {
    pub subjects: Arc<[Subject]>,
    /// The names of the datasets, in the order of their first mention.
    pub datasets: Vec<String>,
    /// `[subject][dataset]`: the scores.
    pub scored: Vec<Vec<Vec<ScoredImage>>>,
    /// `[subject]`: the scores before the calibration of packages that have one.
    pub uncalibrated: Vec<Vec<ScoredImage>>,
    /// `[subject]`: the scores with what images are grouped by.
    pub sliced: Vec<Vec<SlicedImage>>,
    /// `[subject]`: the mistakes to show.
    pub worst: Vec<WorstMistakes>,
    /// Images without scores, in the order of reading.
    pub unscored: Vec<UnscoredImages>,
}

/// An image that could not be scored, or rows that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnscoredImages {
    /// Index of the dataset.
    pub dataset: usize,
    /// The image, or the first one of several rows.
    pub image: String,
    /// One line.
    pub reason: String,
    /// The number of images: more than one where the rest of a file cannot be read.
    pub images: u64,
}

/// An image on the wrong side of the accuracy threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct Mistake {
    /// Index of the dataset.
    pub dataset: usize,
    pub image: String,
    /// Probability of the positive class.
    pub score: f32,
    /// The pixels that the detector was given, as a `data:` URI.
    pub picture: Option<String>,
}

impl EvaluationResults {
    /// Empty results. Per subject, up to `keep` mistakes of either kind will be kept.
    #[must_use]
    pub fn new(subjects: Arc<[Subject]>, datasets: Vec<String>, keep: usize) -> Self {
        let scored = vec![vec![Vec::new(); datasets.len()]; subjects.len()];
        let uncalibrated = vec![Vec::new(); subjects.len()];
        let sliced = vec![Vec::new(); subjects.len()];
        let worst = subjects.iter().map(|_| WorstMistakes::new(keep)).collect();
        Self { subjects, datasets, scored, uncalibrated, sliced, worst, unscored: Vec::new() }
    }

    /// Whether no image has a score.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scored.iter().flatten().all(Vec::is_empty)
    }

    #[must_use]
    pub fn unscored_in(&self, dataset: usize) -> u64 {
        self.unscored.iter().filter(|found| found.dataset == dataset).map(|found| found.images).sum()
    }
}

/// The mistakes with the largest error, the worst first; of equal ones, those that were read first.
#[derive(Debug)]
pub struct WorstMistakes {
    keep: usize,
    /// Negative images with the highest scores.
    pub false_alarms: Vec<Mistake>,
    /// Positive images with the lowest scores.
    pub missed: Vec<Mistake>,
}

impl WorstMistakes {
    fn new(keep: usize) -> Self {
        Self { keep, false_alarms: Vec::new(), missed: Vec::new() }
    }

    /// Keeps an image if it is a mistake and among the worst so far. Only then `make` is called.
    pub fn offer(&mut self, image: ScoredImage, make: impl FnOnce() -> Mistake) {
        if image.is_correct() {
            return;
        }
        let error = |score: f32| if image.positive { 1.0 - score } else { score };
        let list = if image.positive { &mut self.missed } else { &mut self.false_alarms };
        let index = list.partition_point(|other| error(other.score) >= error(image.score));
        if index < self.keep {
            list.insert(index, make());
            list.truncate(self.keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_worst_mistakes_are_kept_and_pictured() {
        let mut worst = WorstMistakes::new(2);
        let mut made = 0;
        let offered = [
            (0.6, false),
            (0.9, false),
            (0.4, false),
            (0.9, false),
            (0.7, false),
            (0.3, true),
            (0.1, true),
            (0.8, true),
        ];
        for (i, (score, positive)) in offered.into_iter().enumerate() {
            worst.offer(ScoredImage { score, positive }, || {
                made += 1;
                Mistake { dataset: 0, image: i.to_string(), score, picture: None }
            });
        }
        let names = |list: &[Mistake]| list.iter().map(|mistake| mistake.image.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&worst.false_alarms), names(&worst.missed)),
            (vec!["1".into(), "3".into()], vec!["6".into(), "5".into()])
        );
        assert_eq!(made, 5, "correct images and smaller mistakes are not pictured");
    }
}
