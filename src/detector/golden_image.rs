//! `golden.json`: an image, and its scores where the package was made. The self-test compares them with the scores on this
//! machine. It decides nothing else, so it has no part in the digest.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};

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

impl GoldenImage {
    /// Stores an image as `golden.` with the extension of `file_name`, and its scores in `golden.json`, which is written
    /// last: a package with half of both is refused.
    ///
    /// # Errors
    /// When a file exists already or cannot be written.
    pub(crate) fn write(
        folder: &Path,
        file_name: &Path,
        image: &Bytes,
        labels: &[String],
        scores: &[f32],
    ) -> io::Result<Self> {
        let extension = file_name.extension().and_then(OsStr::to_str).filter(|text| {
            !text.eq_ignore_ascii_case("json") && text.bytes().all(|letter| letter.is_ascii_alphanumeric())
        });
        let name = format!("golden.{}", extension.unwrap_or("image").to_ascii_lowercase());
        // Six decimals, as the converter writes them.
        let rounded = |score: &f32| json!((f64::from(*score) * 1e6).round() / 1e6);
        let by_label: JsonObject = labels.iter().cloned().zip(scores.iter().map(rounded)).collect();
        let golden = json!({"image": name, "scores": by_label});
        create(&folder.join(&name), image)?;
        create(&folder.join(FILE), format!("{golden:#}\n").as_bytes())?;
        Ok(Self { image: image.clone(), scores: scores.to_vec(), tolerance: DEFAULT_TOLERANCE })
    }
}

fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mut file = File::options().write(true).create_new(true).open(path).map_err(named)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(named)
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
    fn a_written_golden_image_is_read_back_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let labels = ["real".to_owned(), "fake".to_owned()];
        let write = || {
            GoldenImage::write(
                folder.path(),
                Path::new("a/b.PNG"),
                &Bytes::from_static(b"pixels"),
                &labels,
                &[0.25, 0.75],
            )
        };
        write().unwrap();
        let text = std::fs::read_to_string(folder.path().join("golden.json")).unwrap();
        let golden = GoldenImage::read(folder.path(), &serde_json::from_str(&text).unwrap(), &labels).unwrap();
        assert_eq!((golden.image.as_ref(), golden.scores), (&b"pixels"[..], vec![0.25, 0.75]));
        assert!(text.contains("\"golden.png\""), "{text}");
        assert_eq!(write().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
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
