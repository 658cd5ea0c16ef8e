//! `"pixwarden": {...}` in `config.json`: what a package states about its model where no field of Hugging Face or timm does.

use serde_json::Value;

use super::{Activation, Channels, FieldError, JsonObject};

const FILE: &str = "config.json";
/// The fields that are read. Another one is refused: a misspelt field would be another preprocessing.
const KNOWN: [&str; 3] = ["output", "pixel_order", "layout"];

/// The order of the axes of a model's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axes {
    /// `[batch, 3, height, width]`, as PyTorch exports.
    Nchw,
    /// `[batch, height, width, 3]`, as TensorFlow exports.
    Nhwc,
}

/// What the numbers of an output are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutputKind {
    Logits,
    Probabilities,
}

/// What a package states. `None`: it is detected, or the usual case holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Statements {
    output: Option<OutputKind>,
    /// Whether the model takes red or blue first.
    pub(super) pixel_order: Option<Channels>,
    /// For a model whose shape leaves it open.
    pub(super) axes: Option<Axes>,
}

impl Statements {
    /// Reads `"pixwarden"` in `config.json`.
    pub(super) fn read(config: &JsonObject) -> Result<Self, FieldError> {
        let fields = match config.get("pixwarden") {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Object(fields)) => fields,
            Some(other) => return Err(FieldError::new(FILE, "pixwarden", format!("{other} is not an object"))),
        };
        if let Some(unknown) = fields.keys().find(|field| !KNOWN.contains(&field.as_str())) {
            let what = format!("it is not known; the fields of `pixwarden` are {}", KNOWN.join(", "));
            return Err(FieldError::new(FILE, format!("pixwarden.{unknown}"), what));
        }
        Ok(Self {
            output: one_of(
                fields,
                "output",
                [("logits", OutputKind::Logits), ("probabilities", OutputKind::Probabilities)],
            )?,
            pixel_order: one_of(fields, "pixel_order", [("RGB", Channels::Rgb), ("BGR", Channels::Bgr)])?,
            axes: one_of(fields, "layout", [("NCHW", Axes::Nchw), ("NHWC", Axes::Nhwc)])?,
        })
    }

    /// How the output becomes probabilities.
    pub(super) fn activation(self, multi_label: bool) -> Option<Activation> {
        self.output.map(|output| match output {
            OutputKind::Logits if multi_label => Activation::Sigmoid,
            OutputKind::Logits => Activation::Softmax,
            OutputKind::Probabilities => Activation::Identity,
        })
    }
}

/// A field that has one of two values, in capitals or not.
fn one_of<T: Copy>(fields: &JsonObject, field: &str, values: [(&str, T); 2]) -> Result<Option<T>, FieldError> {
    let Some(stated) = fields.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
    let is = |name: &str| stated.as_str().is_some_and(|text| text.eq_ignore_ascii_case(name));
    match values.iter().find(|(name, _)| is(name)) {
        Some((_, value)) => Ok(Some(*value)),
        None => {
            let what = format!("{stated} is neither \"{}\" nor \"{}\"", values[0].0, values[1].0);
            Err(FieldError::new(FILE, format!("pixwarden.{field}"), what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Statements, FieldError> {
        Statements::read(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn each_statement_is_read() {
        let logits = read(r#"{"pixwarden": {"output": "logits"}}"#).unwrap();
        assert_eq!(logits.activation(true), Some(Activation::Sigmoid));
        assert_eq!(logits.activation(false), Some(Activation::Softmax));
        assert_eq!(read("{}").unwrap(), Statements::default());
        let all =
            read(r#"{"pixwarden": {"output": "probabilities", "pixel_order": "bgr", "layout": "nhwc"}}"#).unwrap();
        assert_eq!(all.activation(false), Some(Activation::Identity));
        assert_eq!((all.pixel_order, all.axes), (Some(Channels::Bgr), Some(Axes::Nhwc)));
    }

    #[test]
    fn a_statement_that_is_not_understood_is_refused_by_field() {
        for (fields, field) in [
            (r#"{"output": "scores"}"#, "pixwarden.output"),
            (r#"{"pixel_order": "GBR"}"#, "pixwarden.pixel_order"),
            (r#"{"pixel-order": "BGR"}"#, "pixwarden.pixel-order"),
            (r#"{"layout": ["N", "H", "W", "C"]}"#, "pixwarden.layout"),
            (r#""BGR""#, "pixwarden"),
        ] {
            let refused = read(&format!(r#"{{"pixwarden": {fields}}}"#)).unwrap_err();
            assert_eq!(refused.field, field, "{fields}");
        }
    }
}
