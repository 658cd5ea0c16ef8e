//! `golden.json`: an image, and its scores where the package was made. The self-test compares them with the scores on this
//! machine. It decides nothing else, so it has no part in the digest.

use std::path::Path;

use bytes::Bytes;
use serde_json::Value;

use super::{FieldError, JsonObject};

const FILE: &str = "golden.json";

/// How far a probability may be from the stored one where the package does not state it. Half precision on a GPU changes a
/// probability by up to 0.005 against float32. A wrong channel order, mean or model changes it by far more.
const DEFAULT_TOLERANCE: f32 = 0.02;

/// A golden image and the scores that it must have.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenImage {
    /// The image file's bytes.
    pub image: Bytes,
    /// One probability for each label, in the detector's order.
    pub scores: Vec<f32>,
    /// The largest difference at which two probabilities count as equal.
    pub tolerance: f32,
}

impl GoldenImage {
    /// Reads what `golden.json` names. `labels` are the detector's, in its order.
    pub(super) fn read(folder: &Path, fields: &JsonObject, labels: &[String]) -> Result<Self, FieldError> {
        Ok(Self {
            image: image(folder, fields.get("image"))?,
            scores: scores(fields.get("scores"), labels)?,
            tolerance: tolerance(fields.get("tolerance"))?,
        })
    }
}

fn image(folder: &Path, name: Option<&Value>) -> Result<Bytes, FieldError> {
    let refuse = |what: String| FieldError::new(FILE, "image", what);
    let name = name.and_then(Value::as_str).ok_or_else(|| refuse("it must name an image beside golden.json".into()))?;
    // A bare name cannot lead out of the package.
    if Path::new(name).file_name() != Some(name.as_ref()) {
        return Err(refuse(format!("\"{name}\" is not the name of a file beside golden.json")));
    }
    let bytes = std::fs::read(folder.join(name)).map_err(|e| refuse(format!("cannot read {name}: {e}")))?;
    Ok(bytes.into())
}

fn scores(value: Option<&Value>, labels: &[String]) -> Result<Vec<f32>, FieldError> {
    let refuse = |what: String| FieldError::new(FILE, "scores", what);
    let stored = value
        .and_then(Value::as_object)
        .ok_or_else(|| refuse("it must be an object of label and probability, such as {\"by AI\": 0.93}".into()))?;
    if let Some(unknown) = stored.keys().find(|label| !labels.contains(label)) {
        return Err(refuse(format!("the detector has no label \"{unknown}\"; its labels are {labels:?}")));
    }
    labels
        .iter()
        .map(|label| match stored.get(label) {
            None => Err(refuse(format!("the label \"{label}\" has no probability"))),
            Some(p) => {
                probability(p).ok_or_else(|| refuse(format!("{p} of \"{label}\" is not a probability from 0 to 1")))
            }
        })
        .collect()
}

fn tolerance(value: Option<&Value>) -> Result<f32, FieldError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(DEFAULT_TOLERANCE) };
    // With 0.5 a detector of two labels could give the opposite scores and still pass.
    probability(value)
        .filter(|tolerance| *tolerance > 0.0 && *tolerance < 0.5)
        .ok_or_else(|| FieldError::new(FILE, "tolerance", format!("{value} is not between 0 and 0.5")))
}

#[expect(clippy::cast_possible_truncation, reason = "models compute in float32")]
fn probability(value: &Value) -> Option<f32> {
    value.as_f64().filter(|p| (0.0..=1.0).contains(p)).map(|p| p as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<GoldenImage, FieldError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("golden.png"), b"pixels").unwrap();
        let labels = ["real".to_owned(), "fake".to_owned()];
        GoldenImage::read(folder.path(), &serde_json::from_str(json).unwrap(), &labels)
    }

    #[test]
    fn scores_come_in_the_order_of_the_labels() {
        let golden = read(r#"{"image": "golden.png", "scores": {"fake": 0.75, "real": 0.25}}"#).unwrap();
        let expected = GoldenImage { image: Bytes::from_static(b"pixels"), scores: vec![0.25, 0.75], tolerance: 0.02 };
        assert_eq!(golden, expected);
        let stated = r#"{"image": "golden.png", "scores": {"fake": 0, "real": 1}, "tolerance": 0.1}"#;
        assert!((read(stated).unwrap().tolerance - 0.1).abs() < 1e-6);
    }

    #[test]
    fn an_invalid_golden_image_is_refused_by_field() {
        let good = r#""image": "golden.png""#;
        for (json, field) in [
            (r#"{"scores": {"real": 1, "fake": 0}}"#.to_owned(), "image"),
            (r#"{"image": "missing.png"}"#.to_owned(), "image"),
            (r#"{"image": "../golden.png"}"#.to_owned(), "image"),
            (r#"{"image": "."}"#.to_owned(), "image"),
            (format!("{{{good}}}"), "scores"),
            (format!(r#"{{{good}, "scores": {{"fake": 0.5}}}}"#), "scores"),
            (format!(r#"{{{good}, "scores": {{"fake": 0.5, "real": 0.4, "other": 0.1}}}}"#), "scores"),
            (format!(r#"{{{good}, "scores": {{"fake": 1.5, "real": 0.4}}}}"#), "scores"),
            (format!(r#"{{{good}, "scores": {{"fake": 0.5, "real": 0.5}}, "tolerance": 0.5}}"#), "tolerance"),
            (format!(r#"{{{good}, "scores": {{"fake": 0.5, "real": 0.5}}, "tolerance": 0}}"#), "tolerance"),
        ] {
            assert_eq!(read(&json).unwrap_err().field, field, "{json}");
        }
    }
}
