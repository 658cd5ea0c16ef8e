//! The four charts of a subject: ROC, precision and recall, calibration, scores by class.

use super::chart::{Axis, Chart};
use super::{escape, grouped};
use crate::evaluate::metrics::{BINS, Scored, Threshold, position, share};
use crate::evaluate::summary::{Role, Summary};

/// Bars a class in the histogram.
const BARS: u8 = 20;

/// All four.
pub(super) fn all(summary: &Summary<'_>) -> String {
    [roc(summary), precision_recall(summary), calibration(summary), histogram(summary)].concat()
}

fn roc(summary: &Summary<'_>) -> String {
    let mut chart = Chart::new("ROC", &Axis::unit("false-positive rate"), &Axis::unit("recall"));
    chart.line("even", &[(0.0, 0.0), (1.0, 1.0)]);
    chart.line("curve", &summary.curve.roc());
    for (threshold, role) in marks(summary) {
        if let (Some(x), Some(y)) = (threshold.false_positive_rate, threshold.recall) {
            chart.dot(class(role), (x, y), 4.5, &words(threshold.at, role));
        }
    }
    chart.finish("Dashed: what guessing would do. <i class=\"key recommended\"></i> recommended and <i class=\"key policy\"></i> configured thresholds.")
}

fn precision_recall(summary: &Summary<'_>) -> String {
    let mut chart = Chart::new("Precision and recall", &Axis::unit("recall"), &Axis::unit("precision"));
    let total = summary.curve.total();
    if let Some(share) = total.precision() {
        chart.line("even", &[(0.0, share), (1.0, share)]);
    }
    chart.line("curve", &summary.curve.precision_recall());
    for (threshold, role) in marks(summary) {
        if let (Some(x), Some(y)) = (threshold.recall, threshold.precision) {
            chart.dot(class(role), (x, y), 4.5, &words(threshold.at, role));
        }
    }
    chart.finish("Dashed: the share of positive images, which is what guessing would do.")
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
        // The area follows the number of images.
        chart.dot("bin", (x, y), 2.5 + 9.0 * part.sqrt(), &words);
    }
    chart.finish(&format!("{BINS} bins; a dot’s area follows its images. On the dashed line scores are probabilities; below it they promise too much."))
}

/// Counts on a logarithmic scale: scores pile up at both ends, and what lies between is what thresholds are about.
fn histogram(summary: &Summary<'_>) -> String {
    let mut counts = [[0u64; 2]; BARS as usize];
    for Scored { score, positive } in summary.scored() {
        counts[position(score, counts.len())][usize::from(positive)] += 1;
    }
    let largest = counts.iter().flatten().copied().max().unwrap_or_default().max(9);
    let decades = largest.ilog10() + 1;
    let height = |count: u64| if count == 0 { 0.0 } else { (log10(count) + 0.15) / (f64::from(decades) + 0.15) };
    let ticks = (0..=decades).map(|power| (height(10u64.pow(power)), grouped(10u64.pow(power)))).collect();
    let y = Axis { label: "images, logarithmic", ticks };
    let mut chart = Chart::new("Scores", &Axis::unit("score"), &y);
    let positive = &summary.subject.positive;
    for (i, [negatives, positives]) in (0u8..).zip(counts) {
        let (from, width) = (f64::from(i) / f64::from(BARS), 1.0 / f64::from(BARS));
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

fn marks<'a>(summary: &'a Summary<'_>) -> impl Iterator<Item = (&'a Threshold, Role)> {
    summary.thresholds.iter().flat_map(|(threshold, roles)| roles.iter().map(move |role| (threshold, *role)))
}

fn class(role: Role) -> &'static str {
    match role {
        Role::PolicyReview | Role::PolicyFlag => "policy",
        Role::RecommendedReview | Role::RecommendedFlag => "recommended",
    }
}

fn words(at: f32, role: Role) -> String {
    format!("{} = {at}", role.as_str())
}
