//! What `config.json` states about a model's outputs: their labels, and what the numbers are.

use serde_json::Value;

use super::{FieldError, JsonObject};

const FILE: &str = "config.json";

/// Finds the labels where Hugging Face (`id2label`, `label2id`) or timm (`label_names`, `labels`) puts them.
///
/// Two fields that contradict each other are refused, and so is a number of classes that does not fit.
pub(super) fn read(config: &JsonObject) -> Result<Vec<String>, FieldError> {
    let nested = config.get("pretrained_cfg").and_then(Value::as_object);
    let fields = [
        ("label_names", list(config, "label_names")?),
        ("labels", list(config, "labels")?),
        ("id2label", by_id(config)?),
        ("label2id", by_label(config)?),
    ];
    let mut found = fields.into_iter().filter_map(|(field, labels)| Some((field, labels?)));
    let (field, labels) = match found.next() {
        Some(first) => first,
        // These are the names of the pretrained weights. Those of a fine-tuned model are in the outer object and come first.
        None => match nested.map(|nested| list(nested, "label_names")).transpose()?.flatten() {
            Some(labels) => ("label_names", labels),
            None => {
                let what = "there are no labels; add `id2label` (Hugging Face) or `label_names` (timm)";
                return Err(FieldError::new(FILE, "id2label", what));
            }
        },
    };
    if let Some((other, _)) = found.find(|(_, others)| *others != labels) {
        return Err(FieldError::new(FILE, other, format!("it contradicts `{field}`; remove one of the two")));
    }
    distinct(field, &labels)?;
    // The number in `pretrained_cfg` is that of the pretrained weights, and often differs from this model's.
    for count in ["num_classes", "num_labels"] {
        if let Some(stated) = config.get(count).and_then(Value::as_u64)
            && usize::try_from(stated) != Ok(labels.len())
        {
            let what = format!("it is {stated}, but `{field}` names {} labels", labels.len());
            return Err(FieldError::new(FILE, count, what));
        }
    }
    Ok(labels)
}

fn incomplete(field: &'static str) -> FieldError {
    FieldError::new(FILE, field, "every label must be a string, numbered from 0 without a gap")
}

fn list(object: &JsonObject, field: &'static str) -> Result<Option<Vec<String>>, FieldError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => {
            let labels: Option<_> = list.iter().map(|label| label.as_str().map(str::to_owned)).collect();
            labels.map(Some).ok_or_else(|| incomplete(field))
        }
        Some(_) => Err(FieldError::new(FILE, field, "it must be a list of strings")),
    }
}

/// `{"0": "real", "1": "fake"}`
fn by_id(config: &JsonObject) -> Result<Option<Vec<String>>, FieldError> {
    const FIELD: &str = "id2label";
    let Some(value) = config.get(FIELD).filter(|value| !value.is_null()) else { return Ok(None) };
    let by_id = value.as_object().ok_or_else(|| incomplete(FIELD))?;
    let label = |id: usize| by_id.get(&id.to_string())?.as_str().map(str::to_owned);
    (0..by_id.len()).map(label).collect::<Option<_>>().map(Some).ok_or_else(|| incomplete(FIELD))
}

/// `{"real": 0, "fake": 1}`, which counts where `id2label` is absent: many packages have both, and other programs read
/// only `id2label`.
fn by_label(config: &JsonObject) -> Result<Option<Vec<String>>, FieldError> {
    const FIELD: &str = "label2id";
    let Some(value) = config.get(FIELD).filter(|value| !value.is_null() && !config.contains_key("id2label")) else {
        return Ok(None);
    };
    let by_label = value.as_object().ok_or_else(|| incomplete(FIELD))?;
    let mut labels = vec![None; by_label.len()];
    for (label, id) in by_label {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
        *id.and_then(|id| labels.get_mut(id)).ok_or_else(|| incomplete(FIELD))? = Some(label.clone());
    }
    labels.into_iter().collect::<Option<_>>().map(Some).ok_or_else(|| incomplete(FIELD))
}

fn distinct(field: &'static str, labels: &[String]) -> Result<(), FieldError> {
    if labels.is_empty() {
        return Err(FieldError::new(FILE, field, "it is empty"));
    }
    let mut sorted: Vec<_> = labels.iter().collect();
    sorted.sort();
    sorted.dedup();
    if sorted.len() != labels.len() {
        return Err(FieldError::new(FILE, field, "two labels have the same name, so a rule could mean either"));
    }
    Ok(())
}

/// Whether the labels are independent of each other: `problem_type`.
pub(super) fn multi_label(config: &JsonObject) -> Result<bool, FieldError> {
    match config.get("problem_type").filter(|value| !value.is_null()) {
        None => Ok(false),
        Some(value) => match value.as_str() {
            Some("single_label_classification") => Ok(false),
            Some("multi_label_classification") => Ok(true),
            _ => Err(FieldError::new(
                FILE,
                "problem_type",
                format!("{value} is neither \"single_label_classification\" nor \"multi_label_classification\""),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> JsonObject {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn labels_are_found_in_each_field() {
        for json in [
            r#"{"id2label": {"1": "fake", "0": "real"}}"#,
            r#"{"label2id": {"fake": 1, "real": 0}}"#,
            r#"{"label_names": ["real", "fake"], "num_classes": 2}"#,
            r#"{"labels": ["real", "fake"]}"#,
            r#"{"pretrained_cfg": {"label_names": ["real", "fake"]}}"#,
            r#"{"label_names": ["real", "fake"], "pretrained_cfg": {"label_names": ["tench"], "num_classes": 1000}}"#,
            r#"{"id2label": {"0": "real", "1": "fake"}, "label2id": {"REAL": 0, "FAKE": 1}, "num_labels": 2}"#,
        ] {
            assert_eq!(read(&object(json)).unwrap(), ["real", "fake"], "{json}");
        }
    }

    #[test]
    fn contradictory_labels_are_refused_by_field() {
        for (json, field) in [
            ("{}", "id2label"),
            (r#"{"id2label": {"0": "a", "2": "b"}}"#, "id2label"),
            (r#"{"id2label": ["a", "b"]}"#, "id2label"),
            (r#"{"label2id": {"a": 0, "b": 2}}"#, "label2id"),
            (r#"{"label2id": {"a": 0, "b": 0}}"#, "label2id"),
            (r#"{"label_names": ["a", "a"]}"#, "label_names"),
            (r#"{"labels": []}"#, "labels"),
            (r#"{"labels": ["a", 1]}"#, "labels"),
            (r#"{"labels": "a"}"#, "labels"),
            (r#"{"label_names": ["a", "b"], "num_classes": 3}"#, "num_classes"),
            (r#"{"id2label": {"0": "a"}, "num_labels": 2}"#, "num_labels"),
            (r#"{"label_names": ["a", "b"], "id2label": {"0": "b", "1": "a"}}"#, "id2label"),
        ] {
            assert_eq!(read(&object(json)).unwrap_err().field, field, "{json}");
        }
    }

    #[test]
    fn the_kind_of_output_is_read_or_refused() {
        assert!(multi_label(&object(r#"{"problem_type": "multi_label_classification"}"#)).unwrap());
        assert!(!multi_label(&object(r#"{"problem_type": null}"#)).unwrap());
        assert_eq!(multi_label(&object(r#"{"problem_type": "regression"}"#)).unwrap_err().field, "problem_type");
    }
}
