//! Reads merged values into the options. An error names the option and what is allowed, in the words of a configuration file
//! and not in those of Rust.

use std::fmt;
use std::num::NonZeroU32;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use serde::forward_to_deserialize_any;
use toml::{Table, Value};

use super::ConfigError;

/// Reads a table with every option.
pub(super) fn read<T: for<'de> Deserialize<'de>>(table: Table) -> Result<T, ConfigError> {
    T::deserialize(Reader(Value::Table(table)))
        .map_err(|WrongValue { path, what }| ConfigError::Invalid { option: path, what })
}

/// Reads an option that must not be 0.
pub(crate) fn above_zero<'de, D: Deserializer<'de>>(value: D) -> Result<u32, D::Error> {
    NonZeroU32::deserialize(value).map(NonZeroU32::get)
}

/// A value that an option does not take.
#[derive(Debug)]
struct WrongValue {
    /// The option, such as `worker.attempts` or `buckets[1].region`.
    path: String,
    what: String,
}

impl WrongValue {
    fn not(found: impl fmt::Display, allowed: impl fmt::Display) -> Self {
        Self::custom(format!("{found} is not {allowed}"))
    }

    fn in_key(mut self, key: &str) -> Self {
        let rest = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{key}{rest}{}", self.path);
        self
    }

    fn in_item(mut self, index: usize) -> Self {
        let rest = if self.path.is_empty() { "" } else { "." };
        self.path = format!("[{index}]{rest}{}", self.path);
        self
    }
}

impl fmt::Display for WrongValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

impl std::error::Error for WrongValue {}

impl Error for WrongValue {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self { path: String::new(), what: what.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, allowed: &dyn Expected) -> Self {
        Self::not(words(found), allowed_words(&allowed.to_string()))
    }

    fn invalid_value(found: Unexpected<'_>, allowed: &dyn Expected) -> Self {
        Self::invalid_type(found, allowed)
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self::not(format!("\"{variant}\""), one_of(known))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("`{field}` is missing"))
    }
}

/// The value in an error. The content of a list or table is left out: it may be long.
fn words(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Str(text) => format!("\"{text}\""),
        Unexpected::Signed(number) => number.to_string(),
        Unexpected::Unsigned(number) => number.to_string(),
        Unexpected::Float(number) => number.to_string(),
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "a table".into(),
        Unexpected::Other(what) => what.into(),
        _ => "this value".into(),
    }
}

/// What an option takes. serde names the type of the field.
fn allowed_words(expected: &str) -> String {
    let whole = |largest: u64| format!("a whole number from 0 to {largest}");
    match expected {
        "u8" => whole(u8::MAX.into()),
        "u16" => whole(u16::MAX.into()),
        "u32" => whole(u32::MAX.into()),
        "a nonzero u32" => format!("a whole number from 1 to {}", u32::MAX),
        "u64" | "usize" => "a whole number, at least 0".into(),
        "i8" | "i16" | "i32" | "i64" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a string" => "text in quotes".into(),
        "a sequence" => "a list in brackets".into(),
        structure if structure.starts_with("struct ") => "a table".into(),
        words => words.into(),
    }
}

fn one_of(known: &[&str]) -> String {
    let quoted: Vec<_> = known.iter().map(|name| format!("\"{name}\"")).collect();
    format!("one of {}", quoted.join(", "))
}

struct Reader(Value);

impl<'de> Deserializer<'de> for Reader {
    type Error = WrongValue;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WrongValue> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            Value::Integer(number) => visitor.visit_i64(number),
            Value::Float(number) => visitor.visit_f64(number),
            Value::Boolean(value) => visitor.visit_bool(value),
            Value::Datetime(_) => Err(WrongValue::invalid_type(Unexpected::Other("a date"), &visitor)),
            Value::Array(items) => visitor.visit_seq(Items { items: items.into_iter(), next: 0 }),
            Value::Table(table) => visitor.visit_map(Entries { entries: table.into_iter(), value: None }),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, WrongValue> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WrongValue> {
        match self.0 {
            Value::String(name) => visitor.visit_enum(name.into_deserializer()),
            other => Err(WrongValue::not(shown(&other), one_of(variants))),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WrongValue> {
        visitor.visit_some(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("\"{text}\""),
        Value::Array(_) => words(Unexpected::Seq),
        Value::Table(_) => words(Unexpected::Map),
        other => other.to_string(),
    }
}

struct Items {
    items: std::vec::IntoIter<Value>,
    next: usize,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = WrongValue;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, WrongValue> {
        let Some(item) = self.items.next() else { return Ok(None) };
        self.next += 1;
        seed.deserialize(Reader(item)).map(Some).map_err(|e| e.in_item(self.next - 1))
    }
}

struct Entries {
    entries: <Table as IntoIterator>::IntoIter,
    value: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = WrongValue;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, WrongValue> {
        self.value = self.entries.next();
        let Some((key, _)) = &self.value else { return Ok(None) };
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, WrongValue> {
        let (key, value) = self.value.take().ok_or_else(|| WrongValue::custom("a key has no value"))?;
        seed.deserialize(Reader(value)).map_err(|e| e.in_key(&key))
    }
}
