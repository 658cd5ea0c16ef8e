//! Escaping control characters: a terminal would execute them.

use std::borrow::Cow;

/// Escapes the control characters from U+007F to U+009F in JSON. A terminal may execute them too, but JSON only requires
/// the lower ones to be escaped.
pub(crate) fn escape_late_controls(json: &str) -> Cow<'_, str> {
    if !json.contains(is_late_control) {
        return Cow::Borrowed(json);
    }
    let escape = |c: char| if is_late_control(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Cow::Owned(json.chars().map(escape).collect())
}

fn is_late_control(c: char) -> bool {
    ('\u{7f}'..='\u{9f}').contains(&c)
}

/// Untrusted text with its control characters escaped.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn control_characters_are_escaped_and_the_json_stays_the_same() {
        let row = serde_json::json!({"key": "a\u{1b}[2J\u{9b}2J\u{7f} \u{e9}\n"});
        let line = escape_late_controls(&row.to_string()).into_owned();
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), row);
        assert!(!printable("a\u{9b}2J\n").chars().any(char::is_control));
    }
}
