//! Canonical JSON, from which digests are made that must hold for years.
//!
//! A digest may not depend on how the code is written. So it is never made from `Debug` output, but from structs that
//! exist for nothing else, by these rules:
//!
//! - There is a `version` field. It changes only when the meaning of the other fields changes.
//! - Keys are sorted by their bytes: fields are declared in that order, and maps are `BTreeMap`s.
//! - There is no white space. A float32 is written as the shortest decimal that reads back as the same float32.
//! - A field that is added later is left out while it has the value that was in force before the field existed. Then
//!   adding it changes no digest.

use serde::Serialize;
use sha2::{Digest, Sha256};

/// The canonical text of a struct that keeps the rules above.
pub(crate) fn text(value: &impl Serialize) -> String {
    // Serialising to a string can only fail for maps whose keys are not strings.
    serde_json::to_string(value).unwrap_or_default()
}

/// The SHA-256 of a canonical text, hexadecimal.
pub(crate) fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// Negative zero computes what zero does, so both are written as zero.
pub(crate) fn without_negative_zero(value: f32) -> f32 {
    value + 0.0
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::Value;

    use super::*;

    /// Panics unless the keys of every object in a text are sorted.
    pub(crate) fn assert_sorted(text: &str) {
        fn check(value: &Value) {
            match value {
                Value::Object(object) => {
                    assert!(object.keys().is_sorted(), "unsorted keys: {:?}", object.keys().collect::<Vec<_>>());
                    object.values().for_each(check);
                }
                Value::Array(list) => list.iter().for_each(check),
                _ => {}
            }
        }
        check(&serde_json::from_str(text).unwrap());
    }

    #[test]
    fn floats_are_written_by_their_shortest_decimal() {
        let floats = [0.1f32, 0.5, 1.0, 1.0 / 255.0, 1e-7, without_negative_zero(-0.0)];
        assert_eq!(text(&floats), "[0.1,0.5,1.0,0.003921569,1e-7,0.0]");
    }

    #[test]
    fn a_text_has_its_sha256() {
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
