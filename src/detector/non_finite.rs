//! JSON as Python writes it: with `NaN`, `Infinity` and `-Infinity` in the place of numbers, which JSON does not have, and
//! sometimes with a byte order mark.
//!
//! Such a number becomes the string of its name. A field that is read here and needs a number then refuses it by name,
//! while a field that is not read here is no reason to refuse a package. `null` in its place would count as absent, and a
//! default would be used silently.

use std::borrow::Cow;

use serde_json::error::Result;

use super::JsonObject;

/// As Python's `json.dumps` writes them.
const NAMES: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Parses a JSON object.
pub(super) fn parse(text: &str) -> Result<JsonObject> {
    serde_json::from_str(&quoted(text.strip_prefix('\u{feff}').unwrap_or(text)))
}

/// The text with each such name in quotes. What is inside a string stays as it is.
fn quoted(text: &str) -> Cow<'_, str> {
    let mut result = String::new();
    let mut copied = 0;
    let mut rest = text;
    while let Some(at) = rest.find(['"', '-', 'I', 'N']) {
        rest = &rest[at..];
        if rest.starts_with('"') {
            rest = &rest[string_length(rest)..];
        } else if let Some(name) = NAMES.iter().find(|name| rest.starts_with(**name)) {
            let begins = text.len() - rest.len();
            result.push_str(&text[copied..begins]);
            result.extend(["\"", name, "\""]);
            copied = begins + name.len();
            rest = &text[copied..];
        } else {
            rest = &rest[1..];
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    result.push_str(&text[copied..]);
    Cow::Owned(result)
}

/// The number of bytes of the string at the beginning, with both quotes; up to the end where it is not closed.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_numbers_that_json_does_not_have_become_strings() {
        let read = |text: &str| serde_json::Value::from(parse(text).unwrap()).to_string();
        for (python, json) in [
            (r#"{"a": Infinity, "b": -Infinity, "c": NaN}"#, r#"{"a":"Infinity","b":"-Infinity","c":"NaN"}"#),
            (r#"{"a": [1, NaN, -1, 2]}"#, r#"{"a":[1,"NaN",-1,2]}"#),
            (r#"{"NaN": "Infinity \" NaN", "b": -2.5e3}"#, r#"{"NaN":"Infinity \" NaN","b":-2500.0}"#),
            ("\u{feff}{\"a\": 1}", r#"{"a":1}"#),
        ] {
            assert_eq!(read(python), json, "{python}");
        }
        assert!(parse(r#"{"a": nan}"#).is_err(), "Python does not write this");
    }

    #[test]
    fn the_place_of_another_mistake_is_that_in_the_file() {
        let error = parse("{\n\"a\": Infinity,\n\"b\": x}").unwrap_err();
        assert_eq!((error.line(), error.column()), (3, 6));
    }

    proptest! {
        #[test]
        fn what_json_has_stays_as_it_is(text in "[\"\\\\INa{}:, -]{0,40}", number in any::<f64>()) {
            let object = serde_json::json!({ "text": text, &text: number });
            let printed = object.to_string();
            let as_json: serde_json::Value = serde_json::from_str(&printed).unwrap();
            prop_assert_eq!(serde_json::Value::from(parse(&printed).unwrap()), as_json);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,60}|[\"\\\\INanfity-]{0,30}") {
            drop(parse(&text));
        }
    }
}
