//! Hashes as people write them.

use clap::ValueEnum;

use crate::banks::list::{HashType, digits};
use crate::job::KnownHash;
use crate::ledger::EntryKey;

/// Reads `pdq:HEX`, `sha256:HEX` or `md5:HEX`.
pub(super) fn hash(text: &str) -> Result<KnownHash, String> {
    let typed = text.split_once(':').and_then(|(word, digits)| Some((HashType::from_str(word, true).ok()?, digits)));
    let Some((hash_type, digits)) = typed else { return Err("it must be pdq:HEX, sha256:HEX or md5:HEX".into()) };
    hash_type.parse(digits).ok_or_else(|| format!("{hash_type} takes {} hexadecimal digits", hash_type.digits()))
}

/// Reads an entry's number, or its hash.
pub(super) fn entry_key(text: &str) -> Result<EntryKey, String> {
    if let Ok(id) = text.parse() {
        return Ok(EntryKey::Id(id));
    }
    let what =
        "it must be the number of an entry, as `bank export --format csv` prints it, or pdq:HEX, sha256:HEX or md5:HEX";
    if !text.contains(':') {
        return Err(what.into());
    }
    hash(text).map(EntryKey::Hash)
}

/// An entry as the options take it.
pub(super) fn key_text(key: &EntryKey) -> String {
    match key {
        EntryKey::Id(id) => format!("the number {id}"),
        EntryKey::Hash(hash) => format!("{}:{}", HashType::of(hash).as_str(), digits(hash)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_printed_as_it_is_given() {
        for text in [
            format!("pdq:{}", "0a".repeat(32)),
            format!("sha256:{}", "0b".repeat(32)),
            format!("md5:{}", "0c".repeat(16)),
        ] {
            assert_eq!(key_text(&entry_key(&text).unwrap()), text);
        }
        assert_eq!(entry_key("17"), Ok(EntryKey::Id(17)));
        assert_eq!(hash("md5:0c").unwrap_err(), "md5 takes 32 hexadecimal digits");
        assert!(hash(&"0a".repeat(32)).unwrap_err().contains("pdq:HEX"));
        assert!(entry_key("x").unwrap_err().contains("the number of an entry"));
        assert!(entry_key("sha1:0a").is_err());
    }
}
