//! The four charts of a subject: ROC, precision and recall, calibration, scores by class.

use super::chart::{Axis, Chart};
use super::{escape, grouped};
use crate::evaluate::metrics::{CALIBRATION_BINS, ScoredImage, ThresholdFigures, bin_index, share};
use crate::evaluate::summary::{Summary, ThresholdRole};

/// Bars per class in the histogram.
const HISTOGRAM_BARS: u8 = 20;

pub(super) fn all(summary: &Summary<'_>) -> String {
    [roc(summary), precision_recall(summary), calibration(summary), histogram(summary)].concat()
}

fn roc(summary: &Summary<'_>) -> String {
    let mut chart = Chart::new("ROC", &Axis::unit("false-positive rate"), &Axis::unit("recall"));
    chart.line("even", &[(0.0, 0.0), (1.0, 1.0)]);
    chart.line("curve", &summary.curve.roc());
    for (threshold, role) in role_marks(summary) {
        if let (Some(x), Some(y)) = (threshold.false_positive_rate, threshold.recall) {
            chart.dot(class(role), (x, y), 4.5, &words(threshold.at, role));
        }
    }
    chart.finish("Dashed: random guessing. <i class=\"key recommended\"></i> recommended and <i class=\"key policy\"></i> configured thresholds.")
}

fn precision_recall(summary: &Summary<'_>) -> String {
    let mut chart = Chart::new("Precision and recall", &Axis::unit("recall"), &Axis::unit("precision"));
    let total = summary.curve.total();
    if let Some(share) = total.precision() {
        chart.line("even", &[(0.0, share), (1.0, share)]);
    }
    chart.line("curve", &summary.curve.precision_recall());
    for (threshold, role) in role_marks(summary) {
        if let (Some(x), Some(y)) = (threshold.recall, threshold.precision) {
            chart.dot(class(role), (x, y), 4.5, &words(threshold.at, role));
        }
    }
    chart.finish("Dashed: random guessing, which is the share of positive images.")
}

fn calibration(summary: &Summary<'_>) -> String {
    let mut chart =
        Chart::new("Calibration", &Axis::unit("mean score of a bin"), &Axis::unit("share of positive images"));
    chart.line("even", &[(0.0, 0.0), (1.0, 1.0)]);
    let bins = summary.calibration.bins.iter();
    let dots: Vec<_> = bins.filter_map(|bin| Some((bin.mean_score()?, bin.share_positive()?, bin.images))).collect();
    chart.line("curve", &dots.iter().map(|(x, y, _)| (*x, *y)).collect::<Vec<_>>());
    let all: u64 = dots.iter().map(|(_, _, images)| images).sum();
    for (x, y, images) in dots {
        let part = share(images, all).unwrap_or_default();
        let words = format!("{} images: mean score {x:.4}, share of positive images {y:.4}", grouped(images));
        // The dot's area is proportional to the number of images.
        chart.dot("bin", (x, y), 2.5 + 9.0 * part.sqrt(), &words);
    }
    chart.finish(&format!("{CALIBRATION_BINS} bins; the area of a dot grows with its images. On the dashed line scores are probabilities; below it they are too high."))
}

/// Counts on a logarithmic scale: most scores lie at both ends, but thresholds are chosen between them.
fn histogram(summary: &Summary<'_>) -> String {
    let mut counts = [[0u64; 2]; HISTOGRAM_BARS as usize];
    for ScoredImage { score, positive } in summary.scored() {
        counts[bin_index(score, counts.len())][usize::from(positive)] += 1;
    }
    let largest = counts.iter().flatten().copied().max().unwrap_or_default().max(9);
    let decades = largest.ilog10() + 1;
    let height = |count: u64| if count == 0 { 0.0 } else { (log10(count) + 0.15) / (f64::from(decades) + 0.15) };
    let ticks = (0..=decades).map(|power| (height(10u64.pow(power)), grouped(10u64.pow(power)))).collect();
    let y = Axis { label: "images, logarithmic", ticks };
    let mut chart = Chart::new("Scores", &Axis::unit("score"), &y);
    let positive = &summary.subject.positive;
    for (i, [negatives, positives]) in (0u8..).zip(counts) {
        let (from, width) = (f64::from(i) / f64::from(HISTOGRAM_BARS), 1.0 / f64::from(HISTOGRAM_BARS));
        let range = format!("score {from:.2} to {:.2}", from + width);
        let middle = from + width / 2.0;
        let words = format!("{range}: {} not “{positive}”", grouped(negatives));
        chart.bar("negative", (from + width * 0.06, middle), height(negatives), &words);
        let words = format!("{range}: {} “{positive}”", grouped(positives));
        chart.bar("positive", (middle, from + width * 0.94), height(positives), &words);
    }
    chart.finish(&format!(
        "<i class=\"key positive\"></i> “{}” <i class=\"key negative\"></i> any other label",
        escape(positive)
    ))
}

#[expect(clippy::cast_precision_loss, reason = "counts of images stay far below 2^53")]
fn log10(count: u64) -> f64 {
    (count as f64).log10()
}

fn role_marks<'a>(summary: &'a Summary<'_>) -> impl Iterator<Item = (&'a ThresholdFigures, ThresholdRole)> {
    summary.thresholds.iter().flat_map(|(threshold, roles)| roles.iter().map(move |role| (threshold, *role)))
}

fn class(role: ThresholdRole) -> &'static str {
    match role {
        ThresholdRole::PolicyReview | ThresholdRole::PolicyFlag => "policy",
        ThresholdRole::RecommendedReview | ThresholdRole::RecommendedFlag => "recommended",
    }
}

fn words(at: f32, role: ThresholdRole) -> String {
    format!("{} = {at}", role.as_str())
}
