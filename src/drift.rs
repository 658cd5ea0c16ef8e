//! Distributions of scores, and how far two of them are apart.
//!
//! A detector whose scores drift sees other images than before, or another quality of them: its thresholds may no longer mean
//! what they meant. The measure is the population stability index, the sum of `(a - e) * ln(a / e)` over classes of scores,
//! where `e` and `a` are the shares of the baseline and of the present scores. It is also known as Jeffreys' divergence (1946).
//! By custom, less than 0.1 is no drift, and more than 0.25 a large one.

use std::collections::BTreeMap;

use crate::job::{Digests, Scores};
use crate::ledger::ScoreBaseline;

/// Classes of equal width on the logit scale: most scores are close to 0 or 1, where classes of equal probability would
/// not tell them apart.
pub const CLASSES: usize = 20;
/// The largest logit that has a class of its own; it is a probability of 0.99995.
const MAX_LOGIT: f64 = 10.0;
/// Fewer scores are too few: the index of two samples of one distribution is about `CLASSES * (1 / n + 1 / m)`.
pub const MIN_SCORES: u64 = 1_000;

/// Scores counted by class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreHistogram {
    counts: Vec<u64>,
}

impl Default for ScoreHistogram {
    fn default() -> Self {
        Self { counts: vec![0; CLASSES] }
    }
}

impl ScoreHistogram {
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Counts a probability.
    pub fn add(&mut self, score: f32) {
        let p = f64::from(score);
        #[expect(clippy::cast_precision_loss, reason = "the number of classes is small")]
        let class = ((p / (1.0 - p)).ln() + MAX_LOGIT) * CLASSES as f64 / (2.0 * MAX_LOGIT);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        let class = (class as usize).min(CLASSES - 1);
        self.counts[class] += 1;
    }

    /// Halves all counts, so that older scores count less and less.
    pub fn halve(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2);
    }

    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The population stability index of `present` against this baseline. `None` where either has fewer than
    /// [`MIN_SCORES`].
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 scores")]
    pub fn drift(&self, present: &Self) -> Option<f64> {
        let (before, now) = (self.total(), present.total());
        if before < MIN_SCORES || now < MIN_SCORES {
            return None;
        }
        let share = |count: u64, total: u64| {
            // Half a score more for each class: a class without any would be infinitely far away.
            (count as f64 + 0.5) / (total as f64 + 0.5 * CLASSES as f64)
        };
        let part = |(e, a): (&u64, &u64)| {
            let (e, a) = (share(*e, before), share(*a, now));
            (a - e) * (a / e).ln()
        };
        Some(self.counts.iter().zip(&present.counts).map(part).sum())
    }
}

/// A label of a detector.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScoredLabel {
    pub detector: String,
    /// The detector's digest: scores of another model or another preprocessing are not comparable.
    pub digest: String,
    pub label: String,
}

impl ScoredLabel {
    /// The stored baseline of this label. `None` where there is none, or where another release has stored other classes.
    #[must_use]
    pub fn baseline<'b>(&self, baselines: &'b [ScoreBaseline]) -> Option<(&'b ScoreBaseline, ScoreHistogram)> {
        let stored = baselines.iter().find(|stored| stored.digest == self.digest && stored.label == self.label)?;
        (stored.counts.len() == CLASSES).then(|| (stored, ScoreHistogram { counts: stored.counts.clone() }))
    }
}

/// The scores of each label.
#[derive(Debug, Clone, Default)]
pub struct ScoreHistograms(pub BTreeMap<ScoredLabel, ScoreHistogram>);

impl ScoreHistograms {
    /// Counts the scores of one image by these detectors.
    pub fn add(&mut self, scores: &Scores, detectors: &Digests) {
        for (detector, labels) in scores {
            let Some(digest) = detectors.get(detector) else { continue };
            for (label, score) in labels {
                let label = ScoredLabel { detector: detector.clone(), digest: digest.clone(), label: label.clone() };
                self.0.entry(label).or_default().add(*score);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn histogram(scores: impl IntoIterator<Item = (f32, usize)>) -> ScoreHistogram {
        let mut histogram = ScoreHistogram::default();
        for (score, times) in scores {
            (0..times).for_each(|_| histogram.add(score));
        }
        histogram
    }

    #[test]
    fn the_index_is_that_of_the_formula() {
        let before = histogram([(0.01, 50_000), (0.99, 50_000)]);
        let now = histogram([(0.01, 60_000), (0.99, 40_000)]);
        // 0.1 * ln(0.6 / 0.5) - 0.1 * ln(0.4 / 0.5)
        assert!((before.drift(&now).unwrap() - 0.040_546).abs() < 1e-5, "{:?}", before.drift(&now));
        assert!(before.drift(&histogram([(0.01, 50_000)])).unwrap() > 1.0, "a class without scores");
        assert_eq!(before.drift(&histogram([(0.01, 999)])), None, "too few");
    }

    #[test]
    fn scores_near_the_ends_are_told_apart_and_the_ends_themselves_have_a_class() {
        let tiny = histogram([(0.000_1, 1000)]);
        assert!(tiny.drift(&histogram([(0.001, 1000)])).unwrap() > 1.0);
        for (end, class) in [(0.0, 0), (1.0, CLASSES - 1), (0.5, CLASSES / 2)] {
            assert_eq!(histogram([(end, 1)]).counts()[class], 1, "{end}");
        }
    }

    proptest! {
        #[test]
        fn equal_distributions_do_not_drift_and_no_index_is_negative(
            a in prop::collection::vec(0.0f32..=1.0, 1000..1100), b in prop::collection::vec(0.0f32..=1.0, 1000..1100),
        ) {
            let (a, b) = (histogram(a.into_iter().map(|p| (p, 1))), histogram(b.into_iter().map(|p| (p, 1))));
            prop_assert!(a.drift(&a).unwrap().abs() < 1e-9);
            prop_assert!(a.drift(&b).unwrap() >= 0.0);
        }
    }
}
