//! What a figure may be on other images like these: intervals with 95 % confidence.

use super::{ClassCounts, as_f64, share};

/// The 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The 95 % confidence interval of the share `part / whole`: Wilson's score interval (1927), which is also valid near 0.
/// `None` where the whole is 0.
#[must_use]
pub fn wilson_interval(part: u64, whole: u64) -> Option<(f64, f64)> {
    let p = share(part, whole)?;
    let n = as_f64(whole);
    let centre = p + Z * Z / (2.0 * n);
    let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    Some((((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0)))
}

/// The 95 % confidence interval of a ROC AUC: the areas that the measured one would not be unlikely to come from. The
/// variance at an area is that of Hanley and McNeil (1982) in the form of Newcombe (2006, "Confidence intervals for an
/// effect size measure based on the Mann-Whitney statistic", part 2, method 5). Unlike a symmetric interval it is also
/// valid near 0 and 1. `None` without images of both classes.
#[must_use]
pub fn auc_interval(area: f64, images: ClassCounts) -> Option<(f64, f64)> {
    if images.positives == 0 || images.negatives == 0 {
        return None;
    }
    let (positives, negatives) = (as_f64(images.positives), as_f64(images.negatives));
    let others = f64::midpoint(positives, negatives) - 1.0;
    let variance = |at: f64| {
        at * (1.0 - at) * (1.0 + others * (1.0 - at) / (2.0 - at) + others * at / (1.0 + at)) / (positives * negatives)
    };
    let is_likely = |at: f64| (area - at).abs() <= Z * variance(at).sqrt();
    // The measured area itself is always likely. Towards either end the areas stop being so once.
    let bound = |end: f64| {
        let (mut likely, mut unlikely) = (area, end);
        for _ in 0..60 {
            let middle = f64::midpoint(likely, unlikely);
            if is_likely(middle) {
                likely = middle;
            } else {
                unlikely = middle;
            }
        }
        likely
    };
    Some((bound(0.0), bound(1.0)))
}

#[cfg(test)]
mod tests {
    use super::super::{Curve, ScoredImage};
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        // Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81 of 263, and 0 of 20.
        let close = |a: (f64, f64), b: (f64, f64)| (a.0 - b.0).abs() < 5e-5 && (a.1 - b.1).abs() < 5e-5;
        assert!(close(wilson_interval(81, 263).unwrap(), (0.2553, 0.3662)));
        assert!(close(wilson_interval(0, 20).unwrap(), (0.0, 0.1611)));
        assert_eq!(wilson_interval(0, 0), None);
    }

    #[test]
    fn the_interval_of_an_area_covers_the_truth_as_often_as_it_says() {
        // Scores of two exponential distributions, whose area is known: rate / (1 + rate). A fixed sequence of numbers.
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (as_f64(state >> 40) + 0.5) / as_f64(1 << 24)
        };
        let rate = 4.0;
        let truth = rate / (1.0 + rate);
        let mut covered = 0;
        for _ in 0..1000 {
            #[expect(clippy::cast_possible_truncation, reason = "scores are float32")]
            let images: Vec<ScoredImage> = (0..60)
                .map(|i| {
                    let (positive, drawn) = (i % 2 == 0, -uniform().ln());
                    let value = if positive { drawn } else { drawn / rate };
                    ScoredImage { score: (value / 64.0) as f32, positive }
                })
                .collect();
            let curve = Curve::new(images);
            let (low, high) = auc_interval(curve.roc_auc().unwrap(), curve.total()).unwrap();
            covered += u32::from(low <= truth && truth <= high);
        }
        assert!((935..=975).contains(&covered), "{covered} of 1000, and 950 are meant");
    }

    #[test]
    fn the_interval_of_an_area_is_wide_where_images_are_few() {
        let counts = |images| ClassCounts { positives: images, negatives: images };
        let (low, high) = auc_interval(1.0, counts(3)).unwrap();
        assert!(low < 0.6 && (high - 1.0).abs() < 1e-9, "three images of a class prove little: {low} to {high}");
        let (low, high) = auc_interval(0.9, counts(1000)).unwrap();
        assert!(low > 0.88 && high < 0.92, "{low} to {high}");
        let mirrored = auc_interval(0.1, counts(1000)).unwrap();
        assert!((mirrored.0 - (1.0 - high)).abs() < 1e-9 && (mirrored.1 - (1.0 - low)).abs() < 1e-9);
        assert_eq!(auc_interval(0.5, ClassCounts { positives: 3, negatives: 0 }), None);
    }
}
