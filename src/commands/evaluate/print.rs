//! Figures to stdout: tables for people, one row a figure for machines.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::super::output::{Format, Output, table};
use crate::evaluate::findings::Findings;
use crate::evaluate::metrics::{BINS, Bin, Calibration, Threshold, share, wilson};
use crate::evaluate::summary::{Role, Row, Summary};
use crate::job::exact;

/// Of CSV. `kind` tells the rows apart: dataset, overall, threshold, recommendation, unscored; what a kind has not is
/// empty.
const COLUMNS: [&str; 27] = [
    "kind",
    "detector",
    "label",
    "dataset",
    "images",
    "positives",
    "negatives",
    "correct",
    "accuracy",
    "unscored",
    "roc_auc",
    "average_precision",
    "expected_calibration_error",
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

/// Fields of one row.
type Fields = Map<String, Value>;

/// Prints everything in the format asked for.
pub(super) fn print(format: Format, summaries: &[Summary<'_>], findings: &Findings) -> std::io::Result<()> {
    if format == Format::Table {
        let blocks: Vec<String> = summaries.iter().map(text).collect();
        return std::io::stdout().write_all(blocks.join("\n").as_bytes());
    }
    let mut output = Output::new(format, &COLUMNS)?;
    for summary in summaries {
        for row in summary.datasets.iter().map(|row| ("dataset", dataset(row))).chain(rest(summary)) {
            output.row(&of_subject(summary, row))?;
        }
    }
    for unscored in &findings.unscored {
        output.row(&fields([
            ("kind", json!("unscored")),
            ("dataset", json!(findings.datasets[unscored.dataset])),
            ("image", json!(unscored.image)),
            ("images", json!(unscored.images)),
            ("reason", json!(unscored.reason)),
        ]))?;
    }
    output.finish()
}

/// All rows of a subject but those of the datasets.
fn rest<'a>(summary: &'a Summary<'_>) -> impl Iterator<Item = (&'static str, Fields)> + 'a {
    let thresholds = summary.thresholds.iter().map(|(at, roles)| ("threshold", threshold(at, roles)));
    let recommendation = fields([
        ("review_fpr", json!(summary.wanted.review)),
        ("review_at", json!(summary.review_at.map(exact))),
        ("flag_fpr", json!(summary.wanted.flag)),
        ("flag_at", json!(summary.flag_at.map(exact))),
        ("caution", json!(summary.caution())),
    ]);
    std::iter::once(("overall", overall(summary))).chain(thresholds).chain([("recommendation", recommendation)])
}

fn of_subject(summary: &Summary<'_>, (kind, row): (&str, Fields)) -> Fields {
    let subject = summary.subject;
    let whose =
        fields([("kind", json!(kind)), ("detector", json!(subject.detector)), ("label", json!(subject.positive))]);
    whose.into_iter().chain(row).collect()
}

fn dataset(row: &Row<'_>) -> Fields {
    fields([
        ("dataset", json!(row.name)),
        ("images", json!(row.images.images())),
        ("positives", json!(row.images.positives)),
        ("negatives", json!(row.images.negatives)),
        ("correct", json!(row.right)),
        ("accuracy", json!(row.accuracy())),
        ("unscored", json!(row.unscored)),
    ])
}

fn overall(summary: &Summary<'_>) -> Fields {
    let mut row = dataset(&summary.overall());
    row.shift_remove("dataset");
    row.extend(fields([
        ("roc_auc", json!(summary.curve.roc_auc())),
        ("average_precision", json!(summary.curve.average_precision())),
        ("expected_calibration_error", json!(summary.calibration.expected_error())),
        ("calibration", calibration(&summary.calibration)),
    ]));
    row
}

fn calibration(calibration: &Calibration) -> Value {
    let bin = |bin: &Bin| json!({"images": bin.images, "mean_score": bin.mean_score(), "share_positive": bin.share_positive()});
    calibration.bins.iter().map(bin).collect()
}

fn threshold(threshold: &Threshold, roles: &[Role]) -> Fields {
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

fn note(roles: &[Role]) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ")
}

fn fields<const N: usize>(fields: [(&str, Value); N]) -> Fields {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A subject as people read it.
fn text(summary: &Summary<'_>) -> String {
    let subject = summary.subject;
    let mut rows: Vec<Fields> = summary.datasets.iter().map(dataset).collect();
    if rows.len() > 1 {
        rows.push(dataset(&summary.overall()));
    }
    let mut text = format!("{}: \"{}\" against any other label\n", subject.detector, subject.positive);
    text += &table(&["dataset", "images", "positives", "correct", "accuracy", "unscored"], &rows);
    text += "\ncorrect: a score of at least 0.5 for a positive image, of less for any other\n\n";

    let figure = |value: Option<f64>| value.map_or_else(|| "not defined on these images".into(), |v| format!("{v:.4}"));
    text += &format!("ROC AUC                     {}\n", figure(summary.curve.roc_auc()));
    text += &format!("average precision           {}\n", figure(summary.curve.average_precision()));
    text += &format!("expected calibration error  {} ({BINS} bins)\n\n", figure(summary.calibration.expected_error()));

    let rows: Vec<Fields> = summary
        .thresholds
        .iter()
        .map(|(at, roles)| {
            let mut row = threshold(at, roles);
            // Rounding could move a threshold to the other side of an image.
            row.insert("threshold".into(), json!(at.at.to_string()));
            row
        })
        .collect();
    text += &table(&["threshold", "precision", "recall", "false_positive_rate", "note"], &rows);
    text += "\n";
    for (name, at, wanted) in
        [("review_at", summary.review_at, summary.wanted.review), ("flag_at", summary.flag_at, summary.wanted.flag)]
    {
        let Some(at) = at else { continue };
        let (reached, negatives) = (summary.curve.at(at).negatives, summary.curve.total().negatives);
        let rate = share(reached, negatives).unwrap_or_default();
        let (low, high) = wilson(reached, negatives).unwrap_or_default();
        text += &format!(
            "{name} = {at}: false-positive rate {rate:.4} here, {low:.4} to {high:.4} with 95 % confidence; wanted {wanted}\n"
        );
    }
    if let Some(caution) = summary.caution() {
        text += &format!("caution: {caution}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::summary::tests::{WANTED, findings};

    #[test]
    fn the_printed_tables() {
        let findings = findings();
        insta::assert_snapshot!(text(&Summary::new(&findings, 0, WANTED)));
    }

    #[test]
    fn every_field_of_a_row_has_a_csv_column() {
        let findings = findings();
        let summary = Summary::new(&findings, 0, WANTED);
        for (kind, row) in rest(&summary).chain([("dataset", dataset(&summary.overall()))]) {
            let missing = row.keys().filter(|key| !COLUMNS.contains(&key.as_str()) && *key != "calibration");
            assert_eq!(missing.count(), 0, "{kind}: {row:?}");
        }
    }
}
