//! `calibration.json`: how a detector's probabilities become the shares of images that have the label, as they were found on
//! labelled images. Applied after softmax or sigmoid, before anything is stored or judged.
//!
//! The golden image is compared without it: it proves model and preprocessing, and a calibration that is fitted later leaves
//! it valid.

use serde::Serialize;
use serde_json::Value;

use super::{FieldError, JsonObject};

const FILE: &str = "calibration.json";

/// A package's calibration.
#[derive(Debug, Clone, PartialEq)]
pub enum ScoreCalibration {
    /// Logits are divided by this number: above 1 for a detector that is too sure.
    Temperature(f32),
    /// One rising line for each label, in the detector's order. `None`: the label's scores stay.
    Isotonic(Vec<Option<RisingLine>>),
}

/// A line through points, the first of each pair rising, the second never falling.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RisingLine(Vec<(f32, f32)>);

impl ScoreCalibration {
    /// Reads `calibration.json`. `labels` are the detector's.
    pub(super) fn read(fields: &JsonObject, labels: &[String]) -> Result<Self, FieldError> {
        match fields.get("method").and_then(Value::as_str) {
            Some("temperature") => temperature(fields.get("temperature")),
            Some("isotonic") => isotonic(fields.get("labels"), labels),
            _ => Err(FieldError::new(FILE, "method", "it must be \"temperature\" or \"isotonic\"")),
        }
    }

    /// Changes one image's probabilities. `independent`: each label has a probability for itself. What is not a number stays
    /// not a number.
    pub(crate) fn apply(&self, row: &mut [f32], independent: bool) {
        match self {
            // 1 / (1 + exp(-logit / t)), with exp(-logit) = (1 - p) / p.
            Self::Temperature(t) if independent => {
                row.iter_mut().for_each(|p| *p = 1.0 / (1.0 + ((1.0 - *p).max(0.0) / *p).powf(1.0 / t)));
            }
            // A softmax of logits / t, since a probability is exp(logit) times what is equal for all labels.
            Self::Temperature(t) => {
                // Divided by the largest one first: the powers of many small ones would all be 0.
                let largest = row.iter().copied().fold(0.0, f32::max);
                if largest > 0.0 {
                    row.iter_mut().for_each(|p| *p /= largest);
                }
                row.iter_mut().for_each(|p| *p = p.powf(1.0 / t));
                let sum: f32 = row.iter().sum();
                row.iter_mut().for_each(|p| *p /= sum);
            }
            Self::Isotonic(lines) => {
                for (p, line) in row.iter_mut().zip(lines) {
                    *p = line.as_ref().map_or(*p, |line| line.at(*p));
                }
            }
        }
    }
}

impl RisingLine {
    fn at(&self, p: f32) -> f32 {
        let points = &self.0;
        // NaN compares with nothing.
        if p.is_nan() {
            return p;
        }
        let after = points.partition_point(|(from, _)| *from <= p);
        match (after.checked_sub(1).and_then(|before| points.get(before)), points.get(after)) {
            (Some((x0, y0)), Some((x1, y1))) => y0 + (p - x0) / (x1 - x0) * (y1 - y0),
            (Some((_, y)), None) | (None, Some((_, y))) => *y,
            (None, None) => p,
        }
    }
}

fn temperature(value: Option<&Value>) -> Result<ScoreCalibration, FieldError> {
    #[expect(clippy::cast_possible_truncation, reason = "probabilities are float32")]
    let number = value.and_then(Value::as_f64).map(|number| number as f32);
    // Beyond these bounds every score would be the same, or 0 and 1.
    match number.filter(|number| (0.01..=100.0).contains(number)) {
        Some(number) => Ok(ScoreCalibration::Temperature(number)),
        None => Err(FieldError::new(FILE, "temperature", "it must be a number from 0.01 to 100")),
    }
}

fn isotonic(value: Option<&Value>, labels: &[String]) -> Result<ScoreCalibration, FieldError> {
    let refuse = |what: String| FieldError::new(FILE, "labels", what);
    let by_label = value.and_then(Value::as_object).filter(|by_label| !by_label.is_empty()).ok_or_else(|| {
        refuse("it must be an object: for a label {\"scores\": [...], \"probabilities\": [...]}".into())
    })?;
    if let Some(unknown) = by_label.keys().find(|label| !labels.contains(label)) {
        return Err(refuse(format!("\"{unknown}\" is not a label of the detector; its labels are {labels:?}")));
    }
    let line = |label: &String| {
        let Some(line) = by_label.get(label) else { return Ok(None) };
        line_of(line).map(Some).ok_or_else(|| {
            refuse(format!(
                "\"{label}\" needs as many `scores`, rising, as `probabilities`, never falling, two or more of each, from 0 to 1"
            ))
        })
    };
    labels.iter().map(line).collect::<Result<_, _>>().map(ScoreCalibration::Isotonic)
}

fn line_of(value: &Value) -> Option<RisingLine> {
    let numbers = |field: &str| -> Option<Vec<f32>> {
        let numbers = value.get(field)?.as_array()?.iter().map(Value::as_f64);
        #[expect(clippy::cast_possible_truncation, reason = "probabilities are float32")]
        numbers.map(|number| number.map(|n| n as f32).filter(|n| (0.0..=1.0).contains(n))).collect()
    };
    let (from, to) = (numbers("scores")?, numbers("probabilities")?);
    let is_rising = from.len() == to.len()
        && from.len() >= 2
        && from.windows(2).all(|pair| pair[0] < pair[1])
        && to.windows(2).all(|pair| pair[0] <= pair[1]);
    is_rising.then(|| RisingLine(from.into_iter().zip(to).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels() -> [String; 2] {
        ["real".to_owned(), "fake".to_owned()]
    }

    fn read(json: &str) -> Result<ScoreCalibration, FieldError> {
        ScoreCalibration::read(&serde_json::from_str(json).unwrap(), &labels())
    }

    fn softmax(logits: [f32; 2], t: f32) -> [f32; 2] {
        let exp = logits.map(|logit| (logit / t).exp());
        exp.map(|e| e / (exp[0] + exp[1]))
    }

    #[test]
    fn a_temperature_divides_the_logits() {
        let calibration = read(r#"{"method": "temperature", "temperature": 2.5, "fitted_on": "500 images"}"#).unwrap();
        let mut row = softmax([1.0, 4.0], 1.0);
        calibration.apply(&mut row, false);
        let wanted = softmax([1.0, 4.0], 2.5);
        assert!(row.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{row:?} {wanted:?}");

        let sigmoid = |logit: f32| 1.0 / (1.0 + (-logit).exp());
        let mut row = [sigmoid(3.0), sigmoid(-1.0), 0.0, 1.0, f32::NAN];
        calibration.apply(&mut row, true);
        assert!((row[0] - sigmoid(1.2)).abs() < 1e-6 && (row[1] - sigmoid(-0.4)).abs() < 1e-6, "{row:?}");
        assert!(row[2] == 0.0 && row[3] == 1.0 && row[4].is_nan(), "{row:?}");
    }

    #[test]
    fn a_line_is_followed_between_its_points_and_level_beyond_them() {
        let calibration = read(
            r#"{"method": "isotonic", "labels": {"fake": {"scores": [0.2, 0.6, 0.8], "probabilities": [0, 0.5, 0.5]}}}"#,
        )
        .unwrap();
        for (score, wanted) in [(0.0, 0.0), (0.2, 0.0), (0.4, 0.25), (0.6, 0.5), (0.7, 0.5), (1.0, 0.5)] {
            let mut row = [0.9, score];
            calibration.apply(&mut row, false);
            assert!((row[0] - 0.9).abs() < 1e-9 && (row[1] - wanted).abs() < 1e-6, "{score}: {row:?}");
        }
        let mut row = [0.5, f32::NAN];
        calibration.apply(&mut row, false);
        assert!(row[1].is_nan());
    }

    #[test]
    fn what_is_no_calibration_is_refused_by_field() {
        for (json, field) in [
            (r#"{}"#, "method"),
            (r#"{"method": "platt"}"#, "method"),
            (r#"{"method": "temperature"}"#, "temperature"),
            (r#"{"method": "temperature", "temperature": 0}"#, "temperature"),
            (r#"{"method": "temperature", "temperature": "NaN"}"#, "temperature"),
            (r#"{"method": "isotonic"}"#, "labels"),
            (r#"{"method": "isotonic", "labels": {}}"#, "labels"),
            (r#"{"method": "isotonic", "labels": {"other": {"scores": [0, 1], "probabilities": [0, 1]}}}"#, "labels"),
            (r#"{"method": "isotonic", "labels": {"fake": {"scores": [0, 0], "probabilities": [0, 1]}}}"#, "labels"),
            (r#"{"method": "isotonic", "labels": {"fake": {"scores": [0, 1], "probabilities": [1, 0]}}}"#, "labels"),
            (r#"{"method": "isotonic", "labels": {"fake": {"scores": [0, 1], "probabilities": [0, 2]}}}"#, "labels"),
            (r#"{"method": "isotonic", "labels": {"fake": {"scores": [0], "probabilities": [0]}}}"#, "labels"),
        ] {
            assert_eq!(read(json).unwrap_err().field, field, "{json}");
        }
    }

    proptest! {
        #[test]
        fn the_order_of_scores_and_their_range_stay(a in 0.0f32..=1.0, b in 0.0f32..=1.0, t in 0.1f32..10.0) {
            for independent in [false, true] {
                let score = |p: f32| {
                    let mut row = [1.0 - p, p];
                    ScoreCalibration::Temperature(t).apply(&mut row, independent);
                    row[1]
                };
                prop_assert!((0.0..=1.0).contains(&score(a)));
                prop_assert!(a > b || score(a) <= score(b) + 1e-5);
            }
        }
    }
}
