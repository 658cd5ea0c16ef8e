//! Figures to stdout: tables for people, one row per figure for machines.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::super::output::{Format, Output, fields, table};
use crate::commands::console::stdout;
use crate::evaluate::metrics::{
    CALIBRATION_BINS, Calibration, CalibrationBin, ThresholdFigures, share, wilson_interval,
};
use crate::evaluate::results::EvaluationResults;
use crate::evaluate::slices::{PropertyFigures, Slice, property_figures};
use crate::evaluate::summary::{DatasetSummary, Summary, ThresholdRole};
use crate::job::exact;

/// The columns of CSV. `kind` is dataset, overall, slice, property, threshold, recommendation or unscored; columns that a kind does not
/// have are empty.
const EVALUATION_COLUMNS: [&str; 37] = [
    "kind",
    "detector",
    "label",
    "category",
    "dataset",
    "by",
    "slice",
    "images",
    "positives",
    "negatives",
    "correct",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "unscored",
    "roc_auc",
    "roc_auc_low",
    "roc_auc_high",
    "roc_auc_of_property",
    "roc_auc_within",
    "average_precision",
    "expected_calibration_error",
    "expected_calibration_error_before",
    "threshold",
    "note",
    "true_positives",
    "false_positives",
    "precision",
    "recall",
    "false_positive_rate",
    "review_fpr",
    "review_at",
    "flag_fpr",
    "flag_at",
    "caution",
    "image",
    "reason",
];

type RowFields = Map<String, Value>;

pub(super) fn print(format: Format, summaries: &[Summary<'_>], results: &EvaluationResults) -> std::io::Result<()> {
    if format == Format::Table {
        let blocks: Vec<String> = summaries.iter().map(text).collect();
        return stdout().write_all(blocks.join("\n").as_bytes());
    }
    let mut output = Output::new(format, &EVALUATION_COLUMNS)?;
    for summary in summaries {
        for row in summary.datasets.iter().map(|row| ("dataset", dataset(row))).chain(overall_rows(summary)) {
            output.row(&of_subject(summary, row))?;
        }
    }
    for unscored in &results.unscored {
        output.row(&fields([
            ("kind", json!("unscored")),
            ("dataset", json!(results.datasets[unscored.dataset])),
            ("image", json!(unscored.image)),
            ("images", json!(unscored.images)),
            ("reason", json!(unscored.reason)),
        ]))?;
    }
    output.finish()
}

/// The rows of a subject that are not about one dataset.
fn overall_rows<'a>(summary: &'a Summary<'_>) -> impl Iterator<Item = (&'static str, RowFields)> + 'a {
    let thresholds = summary.thresholds.iter().map(|(at, roles)| ("threshold", threshold(at, roles)));
    let recommendation = fields([
        ("review_fpr", json!(summary.target_rates.review)),
        ("review_at", json!(summary.review_at.map(exact))),
        ("flag_fpr", json!(summary.target_rates.flag)),
        ("flag_at", json!(summary.flag_at.map(exact))),
        ("caution", json!(Some(summary.cautions().join("; ")).filter(|words| !words.is_empty()))),
    ]);
    let slices = summary.slices.iter().map(|slice| ("slice", slice_row(slice)));
    let properties = property_figures(&summary.slices).into_iter().map(|figures| ("property", property_row(&figures)));
    let overall = std::iter::once(("overall", overall(summary)));
    overall.chain(slices).chain(properties).chain(thresholds).chain([("recommendation", recommendation)])
}

fn of_subject(summary: &Summary<'_>, (kind, row): (&str, RowFields)) -> RowFields {
    let subject = summary.subject;
    let whose = fields([
        ("kind", json!(kind)),
        ("detector", json!(subject.detector)),
        ("label", json!(subject.positive)),
        ("category", json!(subject.category)),
    ]);
    whose.into_iter().chain(row).collect()
}

fn dataset(row: &DatasetSummary<'_>) -> RowFields {
    fields([
        ("dataset", json!(row.name)),
        ("images", json!(row.images.images())),
        ("positives", json!(row.images.positives)),
        ("negatives", json!(row.images.negatives)),
        ("correct", json!(row.correct)),
        ("accuracy", json!(row.accuracy())),
        ("accuracy_low", json!(row.accuracy_interval().map(|(low, _)| low))),
        ("accuracy_high", json!(row.accuracy_interval().map(|(_, high)| high))),
        ("unscored", json!(row.unscored)),
    ])
}

fn overall(summary: &Summary<'_>) -> RowFields {
    let mut row = dataset(&summary.overall());
    row.shift_remove("dataset");
    row.extend(fields([
        ("roc_auc", json!(summary.curve.roc_auc())),
        ("roc_auc_low", json!(summary.roc_auc_interval().map(|(low, _)| low))),
        ("roc_auc_high", json!(summary.roc_auc_interval().map(|(_, high)| high))),
        ("average_precision", json!(summary.curve.average_precision())),
        ("expected_calibration_error", json!(summary.calibration.expected_error())),
        (
            "expected_calibration_error_before",
            json!(summary.before_calibration.as_ref().and_then(Calibration::expected_error)),
        ),
        ("calibration", calibration(&summary.calibration)),
    ]));
    row
}

fn slice_row(slice: &Slice) -> RowFields {
    let (images, interval) = (slice.images(), slice.accuracy_interval());
    fields([
        ("by", json!(slice.property.as_str())),
        ("slice", json!(slice.name)),
        ("images", json!(images.images())),
        ("positives", json!(images.positives)),
        ("negatives", json!(images.negatives)),
        ("correct", json!(slice.curve.correct())),
        ("accuracy", json!(slice.accuracy())),
        ("accuracy_low", json!(interval.map(|(low, _)| low))),
        ("accuracy_high", json!(interval.map(|(_, high)| high))),
        ("roc_auc", json!(slice.curve.roc_auc())),
    ])
}

fn property_row(figures: &PropertyFigures) -> RowFields {
    fields([
        ("by", json!(figures.property.as_str())),
        ("roc_auc_of_property", json!(figures.roc_auc_of_property)),
        ("roc_auc_within", json!(figures.roc_auc_within)),
    ])
}

fn calibration(calibration: &Calibration) -> Value {
    let bin = |bin: &CalibrationBin| json!({"images": bin.images, "mean_score": bin.mean_score(), "share_positive": bin.share_positive()});
    calibration.bins.iter().map(bin).collect()
}

fn threshold(threshold: &ThresholdFigures, roles: &[ThresholdRole]) -> RowFields {
    fields([
        ("threshold", exact(threshold.at)),
        ("note", json!((!roles.is_empty()).then(|| note(roles)))),
        ("true_positives", json!(threshold.reached.positives)),
        ("false_positives", json!(threshold.reached.negatives)),
        ("precision", json!(threshold.precision)),
        ("recall", json!(threshold.recall)),
        ("false_positive_rate", json!(threshold.false_positive_rate)),
    ])
}

fn note(roles: &[ThresholdRole]) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ")
}

fn text(summary: &Summary<'_>) -> String {
    let subject = summary.subject;
    let mut rows: Vec<RowFields> = summary.datasets.iter().map(dataset).collect();
    if rows.len() > 1 {
        rows.push(dataset(&summary.overall()));
    }
    let category = subject.category.as_ref().map(|category| format!(" ({category})")).unwrap_or_default();
    let mut text = format!("{}: \"{}\" against any other label{category}\n", subject.detector, subject.positive);
    text += &table(&["dataset", "images", "positives", "correct", "accuracy", "unscored"], &rows);
    text += "\ncorrect: a score of at least 0.5 for a positive image, a lower score for any other\n\n";

    let figure = |value: Option<f64>| value.map_or_else(|| "not defined on these images".into(), |v| format!("{v:.4}"));
    let interval = |interval: Option<(f64, f64)>| {
        interval.map(|(low, high)| format!(", {low:.4} to {high:.4} with 95 % confidence")).unwrap_or_default()
    };
    let accuracy = summary.overall();
    text += &format!(
        "accuracy                    {}{}\n",
        figure(accuracy.accuracy()),
        interval(accuracy.accuracy_interval())
    );
    let (area, bounds) = (summary.curve.roc_auc(), summary.roc_auc_interval());
    text += &format!("ROC AUC                     {}{}\n", figure(area), interval(bounds));
    text += &format!("average precision           {}\n", figure(summary.curve.average_precision()));
    text += &format!(
        "expected calibration error  {} ({CALIBRATION_BINS} bins)\n",
        figure(summary.calibration.expected_error())
    );
    if let Some(before) = &summary.before_calibration {
        text += &format!("before the package's own     {}\n", figure(before.expected_error()));
    }
    text += "\n";
    text += &slices(summary);

    let rows: Vec<RowFields> = summary
        .thresholds
        .iter()
        .map(|(at, roles)| {
            let mut row = threshold(at, roles);
            // Printed in full: a rounded threshold could lie on the other side of an image's score.
            row.insert("threshold".into(), json!(at.at.to_string()));
            row
        })
        .collect();
    text += &table(&["threshold", "precision", "recall", "false_positive_rate", "note"], &rows);
    text += "\n";
    for (name, at, target) in [
        ("review_at", summary.review_at, summary.target_rates.review),
        ("flag_at", summary.flag_at, summary.target_rates.flag),
    ] {
        let Some(at) = at else { continue };
        let (reached, total) = (summary.curve.at(at), summary.curve.total());
        let recall = share(reached.positives, total.positives).unwrap_or_default();
        let (reached, negatives) = (reached.negatives, total.negatives);
        let rate = share(reached, negatives).unwrap_or_default();
        let (low, high) = wilson_interval(reached, negatives).unwrap_or_default();
        text += &format!(
            "{name} = {at}: recall {recall:.4} and false-positive rate {rate:.4} here, {low:.4} to {high:.4} with 95 % confidence; limit {target}\n"
        );
    }
    for caution in summary.cautions() {
        text += &format!("caution: {caution}\n");
    }
    text
}

/// The images by format, size, compression and dataset, and what each property says of the labels.
fn slices(summary: &Summary<'_>) -> String {
    if summary.slices.is_empty() {
        return String::new();
    }
    let rows: Vec<RowFields> = summary
        .slices
        .iter()
        .map(|slice| {
            let mut row = slice_row(slice);
            let interval = slice.accuracy_interval();
            row.insert("95 %".into(), json!(interval.map(|(low, high)| format!("{low:.4}-{high:.4}"))));
            row
        })
        .collect();
    let mut text = table(&["by", "slice", "images", "accuracy", "95 %", "roc_auc"], &rows);
    text += "\n\n";
    let rows: Vec<RowFields> = property_figures(&summary.slices).iter().map(property_row).collect();
    if !rows.is_empty() {
        text += &table(&["by", "roc_auc_of_property", "roc_auc_within"], &rows);
        text += "\nof the property: of a detector that knows nothing else; within: among images that share it\n\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::summary::tests::{TARGET_RATES, results};

    #[test]
    fn the_printed_tables() {
        let results = results();
        insta::assert_snapshot!(text(&Summary::new(&results, 0, TARGET_RATES)));
    }

    #[test]
    fn the_printed_groups() {
        let results = results();
        insta::assert_snapshot!(slices(&Summary::new(&results, 0, TARGET_RATES).with_slices(&results, 0)));
    }

    #[test]
    fn every_field_of_a_row_has_a_csv_column() {
        let results = results();
        let summary = Summary::new(&results, 0, TARGET_RATES).with_slices(&results, 0);
        for (kind, row) in overall_rows(&summary).chain([("dataset", dataset(&summary.overall()))]) {
            let missing = row.keys().filter(|key| !EVALUATION_COLUMNS.contains(&key.as_str()) && *key != "calibration");
            assert_eq!(missing.count(), 0, "{kind}: {row:?}");
        }
    }
}
