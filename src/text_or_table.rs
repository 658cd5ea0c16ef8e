//! An option that is a text or a table, such as an entry of `buckets`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// Reads such a value. Unlike an untagged enum it keeps what is wrong inside the table.
pub(crate) fn text_or_table<'de, D, T, R>(
    deserializer: D,
    text: fn(String) -> R,
    table: fn(T) -> R,
) -> Result<R, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct TextOrTable<T, R>(fn(String) -> R, fn(T) -> R, PhantomData<T>);

    impl<'de, T: Deserialize<'de>, R> Visitor<'de> for TextOrTable<T, R> {
        type Value = R;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("text in quotes or a table")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<R, E> {
            Ok(self.0(text.to_owned()))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<R, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(self.1)
        }
    }

    deserializer.deserialize_any(TextOrTable(text, table, PhantomData))
}
