//! The figures of a threshold, and the threshold to recommend for a false-positive rate.

use super::{ClassCounts, Curve, share};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ThresholdFigures {
    /// ClassCounts by scores from here on.
    pub at: f32,
    /// The images that reach it.
    pub reached: ClassCounts,
    /// The share of positives among them; `None` where no image reaches it.
    pub precision: Option<f64>,
    /// The share of all positives that reach it; `None` without a positive image.
    pub recall: Option<f64>,
    /// The share of all negatives that reach it; `None` without a negative image.
    pub false_positive_rate: Option<f64>,
}

impl ThresholdFigures {
    #[must_use]
    pub fn new(curve: &Curve, at: f32) -> Self {
        let (reached, total) = (curve.at(at), curve.total());
        Self {
            at,
            reached,
            precision: reached.precision(),
            recall: share(reached.positives, total.positives),
            false_positive_rate: share(reached.negatives, total.negatives),
        }
    }
}

/// The lowest threshold that at most the share `max_rate` of the negative images reaches; the lowest one finds the most
/// positive images. Of thresholds between which there is no score, the one with the fewest decimals.
///
/// `None` where there is no negative image, or where more than that share of them have the score 1.
#[must_use]
pub fn recommend(curve: &Curve, max_rate: f64) -> Option<f32> {
    let negatives = curve.total().negatives;
    let within = |reached: ClassCounts| share(reached.negatives, negatives).is_some_and(|rate| rate <= max_rate);
    if negatives == 0 {
        return None;
    }
    let steps = curve.steps();
    let allowed = steps.partition_point(|(_, reached)| within(*reached));
    let highest = allowed.checked_sub(1).map_or(1.0, |last| steps[last].0);
    // Where every score may reach it, the threshold is 0.
    let Some((above, _)) = steps.get(allowed) else { return Some(0.0) };
    (*above < highest).then(|| fewest_decimals(*above, highest))
}

/// The number in `above < x <= highest` with the fewest decimals; the smallest of several.
fn fewest_decimals(above: f32, highest: f32) -> f32 {
    let candidates = (1..=9).map(|decimals| {
        let scale = 10f64.powi(decimals);
        ((f64::from(above) * scale).floor() + 1.0) / scale
    });
    #[expect(clippy::cast_possible_truncation, reason = "the policy's thresholds are float32, like the scores")]
    let mut candidates = candidates.map(|x| x as f32);
    candidates.find(|x| above < *x && *x <= highest).unwrap_or(highest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{images, scored};
    use super::*;

    proptest! {
        #[test]
        fn a_higher_threshold_is_reached_by_fewer(images in images(), a in 0.0f32..=1.0, b in 0.0f32..=1.0) {
            let curve = Curve::new(images);
            let (low, high) = (ThresholdFigures::new(&curve, a.min(b)), ThresholdFigures::new(&curve, a.max(b)));
            prop_assert!(low.recall >= high.recall && low.false_positive_rate >= high.false_positive_rate);
        }

        #[test]
        fn a_recommendation_keeps_the_rate_and_no_lower_score_would(images in images(), wanted in 0.0f64..=1.0) {
            let curve = Curve::new(images);
            let Some(threshold) = recommend(&curve, wanted) else {
                let top = ThresholdFigures::new(&curve, 1.0);
                prop_assert!(top.false_positive_rate.is_none_or(|rate| rate > wanted));
                return Ok(());
            };
            let rate = |at| ThresholdFigures::new(&curve, at).false_positive_rate.unwrap();
            prop_assert!((0.0..=1.0).contains(&threshold) && rate(threshold) <= wanted);
            for (score, _) in curve.steps().iter().filter(|(score, _)| *score < threshold) {
                prop_assert!(rate(*score) > wanted);
            }
        }

        #[test]
        fn more_false_alarms_allowed_never_recommend_a_higher_threshold(images in images(), a in 0.0f64..=1.0) {
            let curve = Curve::new(images);
            if let (Some(strict), Some(loose)) = (recommend(&curve, a / 5.0), recommend(&curve, a)) {
                prop_assert!(loose <= strict);
            }
        }
    }

    #[test]
    fn a_recommendation_is_short_to_write() {
        let curve = Curve::new(scored(&[(0.912_34, true), (0.873_21, true), (0.811_11, false), (0.1, false)]));
        // Every threshold above 0.81111 and up to 0.87321 has the same figures.
        assert_eq!(recommend(&curve, 0.0), Some(0.82));
        assert_eq!(recommend(&curve, 0.5), Some(0.2));
        assert_eq!(recommend(&curve, 1.0), Some(0.0));
        assert_eq!(fewest_decimals(0.499_999_97, 0.5), 0.5);
    }

    #[test]
    fn a_rate_that_no_threshold_keeps_gets_no_recommendation() {
        assert_eq!(recommend(&Curve::new(scored(&[(1.0, false), (0.3, true)])), 0.5), None);
        assert_eq!(recommend(&Curve::new(scored(&[(0.9, true)])), 0.5), None);
        // A negative image has the highest score: only a threshold above all scores keeps the rate.
        assert_eq!(recommend(&Curve::new(scored(&[(0.95, false), (0.3, true)])), 0.5), Some(1.0));
    }
}
