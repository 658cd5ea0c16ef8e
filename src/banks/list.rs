//! Lists of hashes as files, read and written as streams.
//!
//! There are two forms. Both are UTF-8. Blank lines and lines that begin with `#` are left out.
//!
//! - **Lines**: a hash in hexadecimal digits, or a type, a space and a hash. It is the form in which the `threatexchange`
//!   library and Hasher-Matcher-Actioner exchange files, with their names of types: `pdq`, `video_md5`, `video_sha256`.
//!   Types that no image has, such as `raw_text`, are left out and counted.
//! - **CSV** (RFC 4180) with a header row. It has a column `hash`, where wanted with a column `type`, or the columns `pdq`,
//!   `sha256` and `md5`. All other columns become metadata. `signal_str` and `signal_type` are other names of `hash` and
//!   `type`, by which the `threatexchange` library writes CSV.

mod lines;
mod read;

use std::io;

use serde_json::{Map, Value};

pub use self::read::ListReader;
use crate::job::KnownHash;

/// Longer lines are refused, and so are longer rows whose cells have line breaks.
pub const MAX_LINE_BYTES: usize = 64 << 10;
/// So many characters of a bad line are shown.
const MAX_SHOWN_CHARS: usize = 70;

/// A hash of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct ListEntry {
    /// The line on which it begins, counted from 1.
    pub line: u64,
    pub hash: KnownHash,
    /// The other columns of a CSV row that are not empty, as texts. Lines have none.
    pub metadata: Map<String, Value>,
}

/// The type of a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum HashType {
    /// Perceptual hash of 64 digits, of what an image shows
    Pdq,
    /// Digest of 64 digits, of the whole file
    Sha256,
    /// Digest of 32 digits, of the whole file
    Md5,
}

impl HashType {
    /// The type of a hash.
    #[must_use]
    pub const fn of(hash: &KnownHash) -> Self {
        match hash {
            KnownHash::Pdq(_) => Self::Pdq,
            KnownHash::Sha256(_) => Self::Sha256,
            KnownHash::Md5(_) => Self::Md5,
        }
    }

    /// The word in CSV and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pdq => "pdq",
            Self::Sha256 => "sha256",
            Self::Md5 => "md5",
        }
    }

    /// The number of its hexadecimal digits.
    #[must_use]
    pub const fn digits(self) -> usize {
        match self {
            Self::Pdq | Self::Sha256 => 64,
            Self::Md5 => 32,
        }
    }

    /// The hash that hexadecimal digits of either case write.
    #[must_use]
    pub fn parse(self, digits: &str) -> Option<KnownHash> {
        fn bytes<const N: usize>(digits: &str) -> Option<[u8; N]> {
            let mut bytes = [0; N];
            hex::decode_to_slice(digits, &mut bytes).ok()?;
            Some(bytes)
        }
        match self {
            Self::Pdq => digits.parse().ok().map(KnownHash::Pdq),
            Self::Sha256 => bytes(digits).map(KnownHash::Sha256),
            Self::Md5 => bytes(digits).map(KnownHash::Md5),
        }
    }
}

/// A hash as a line of the file exchange, with the names that it has for types.
#[must_use]
pub fn exchange_line(hash: &KnownHash) -> String {
    let word = match HashType::of(hash) {
        HashType::Pdq => "pdq",
        HashType::Sha256 => "video_sha256",
        HashType::Md5 => "video_md5",
    };
    format!("{word} {}", digits(hash))
}

/// The hexadecimal digits of a hash.
#[must_use]
pub fn digits(hash: &KnownHash) -> String {
    match hash {
        KnownHash::Pdq(hash) => hash.to_string(),
        KnownHash::Sha256(digest) => hex::encode(digest),
        KnownHash::Md5(digest) => hex::encode(digest),
    }
}

/// What is wrong with a list. Texts of the list are shown shortened, and with control characters escaped.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("line {line}: cannot read")]
    Read {
        line: u64,
        #[source]
        source: io::Error,
    },
    #[error(
        "line {line}: the line is longer than {} KiB\n  hint: this may be no list of hashes, or a quote may not be closed",
        MAX_LINE_BYTES >> 10
    )]
    TooLong { line: u64 },
    #[error("line {line}: the line is not UTF-8\n  hint: save the list as UTF-8")]
    NotUtf8 { line: u64 },
    #[error(
        "line {line}: \"{text}\" is neither a PDQ hash nor a digest\n  hint: a line is 32 or 64 hexadecimal digits, or a type, a space and the digits; a CSV list begins with a header row that has the column hash, pdq, sha256 or md5, and has commas"
    )]
    NoHash { line: u64, text: String },
    #[error(
        "line {line}: \"{text}\" is no {hash_type} hash\n  hint: it has {} hexadecimal digits",
        hash_type.digits()
    )]
    WrongHash { line: u64, text: String, hash_type: HashType },
    #[error(
        "line {line}: \"{text}\" may be a PDQ hash or a SHA-256\n  hint: give --type pdq|sha256|md5, or a list with types"
    )]
    Ambiguous { line: u64, text: String },
    #[error("line {line}: the type \"{text}\" is unknown\n  hint: types are pdq, sha256 and md5")]
    UnknownType { line: u64, text: String },
    #[error(
        "line {line}: the column \"{text}\" {what}\n  hint: a header row has the column hash, and where wanted type, or the columns pdq, sha256 and md5; each name occurs once"
    )]
    Header { line: u64, text: String, what: &'static str },
    #[error(
        "line {line}: the row has {found} cells, and the header row has {expected}\n  hint: a cell with a comma or a line break stands in quotes"
    )]
    Cells { line: u64, found: usize, expected: usize },
    #[error("line {line}: the row has no hash\n  hint: fill one of the columns {columns}")]
    NoHashInRow { line: u64, columns: String },
}

impl std::fmt::Display for HashType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text of a list for a message.
fn shown(text: &str) -> String {
    let mut chars = text.chars();
    let shown: String = chars.by_ref().take(MAX_SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if chars.next().is_some() { shown + "…" } else { shown }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const M: &str = "0123456789abcdef0123456789abcdef";

    /// Line, type, digits and metadata.
    type ReadEntry = (u64, &'static str, String, Value);

    /// What a list holds, or the message about a line.
    fn read(list: &str, assumed: Option<HashType>) -> Vec<Result<ReadEntry, String>> {
        let entries = ListReader::new(list.as_bytes(), assumed);
        let shown = |entry: ListEntry| {
            (entry.line, HashType::of(&entry.hash).as_str(), digits(&entry.hash), Value::Object(entry.metadata))
        };
        entries.map(|entry| entry.map(shown).map_err(|e| e.to_string())).collect()
    }

    fn only_error(list: impl AsRef<str>) -> String {
        let read = read(list.as_ref(), None);
        assert_eq!(read.len(), 1, "{read:?}");
        read[0].clone().unwrap_err()
    }

    #[test]
    fn lines_are_read_with_and_without_types_and_others_are_counted() {
        let list = format!(
            "\u{feff}# a comment\r\n\r\npdq {}\r\nvideo_md5\t {M}\nraw_text what a day\n  SHA256 {A}  \nraw_text x\nurl http://a\n{M}",
            A.to_uppercase()
        );
        let mut entries = ListReader::new(list.as_bytes(), None);
        let found: Vec<_> = entries.by_ref().map(|entry| entry.unwrap()).collect();
        let found: Vec<_> =
            found.iter().map(|entry| (entry.line, HashType::of(&entry.hash), digits(&entry.hash))).collect();
        let (a, m) = (A.to_owned(), M.to_owned());
        assert_eq!(
            found,
            [
                (3, HashType::Pdq, a.clone()),
                (4, HashType::Md5, m.clone()),
                (6, HashType::Sha256, a),
                (9, HashType::Md5, m)
            ]
        );
        assert_eq!(entries.left_out().iter().collect::<Vec<_>>(), [(&"raw_text", &2), (&"url", &1)]);
    }

    #[test]
    fn untyped_hashes_have_the_type_that_is_assumed() {
        for (assumed, word) in [(HashType::Pdq, "pdq"), (HashType::Sha256, "sha256")] {
            assert_eq!(read(A, Some(assumed)), [Ok((1, word, A.to_owned(), json!({})))]);
            assert_eq!(read(&format!("hash\n{A}"), Some(assumed)), [Ok((2, word, A.to_owned(), json!({})))]);
            let error = read(M, Some(assumed))[0].clone().unwrap_err();
            assert_eq!(error, format!("line 1: \"{M}\" is no {word} hash\n  hint: it has 64 hexadecimal digits"));
        }
        let hint = "may be a PDQ hash or a SHA-256\n  hint: give --type pdq|sha256|md5, or a list with types";
        assert_eq!(only_error(A), format!("line 1: \"{A}\" {hint}"));
        assert_eq!(only_error(format!("note,hash\nn,{A}")), format!("line 2: \"{A}\" {hint}"));
    }

    #[test]
    fn rows_of_csv_are_read_with_their_metadata() {
        let list = format!(
            "\n# made by hand\n\"Hash\", Type ,case no,note,\r\n{A},PDQ,17,\"two\nlines, \"\"and a quote\"\"\n\n# no comment\",\r\n\r\n# left out, \" \n{A},raw_text,,,\n{M},md5,,5\" high,x\n"
        );
        let note = "two\nlines, \"and a quote\"\n\n# no comment";
        assert_eq!(
            read(&list, None),
            [
                Ok((4, "pdq", A.to_owned(), json!({"case no": "17", "note": note}))),
                Ok((11, "md5", M.to_owned(), json!({"note": "5\" high"}))),
            ]
        );
        // As the library writes it.
        let library = format!("signal_type,signal_str,collab,category,tags\npdq,{A},Sample,POSITIVE_CLASS,a b\n");
        let metadata = json!({"collab": "Sample", "category": "POSITIVE_CLASS", "tags": "a b"});
        assert_eq!(read(&library, None), [Ok((2, "pdq", A.to_owned(), metadata))]);
    }

    #[test]
    fn a_row_may_hold_several_hashes_of_one_image() {
        let list = format!("id,pdq,sha256,md5\n1,{A},{A},{M}\n2,,,{M}\n3,,,\n");
        let read = read(&list, None);
        let types: Vec<_> =
            read.iter().map(|entry| entry.clone().map(|(line, word, _, metadata)| (line, word, metadata))).collect();
        let (one, two) = (json!({"id": "1"}), json!({"id": "2"}));
        let error = "line 4: the row has no hash\n  hint: fill one of the columns pdq, sha256, md5".to_owned();
        assert_eq!(
            types,
            [
                Ok((2, "pdq", one.clone())),
                Ok((2, "sha256", one.clone())),
                Ok((2, "md5", one)),
                Ok((3, "md5", two)),
                Err(error)
            ]
        );
    }

    #[test]
    fn bad_lines_are_named_shortened_and_passed() {
        let list = format!("pdq {M}\npqd {A}\n{}\nhello\u{1b}[2J world\n{A} {A}\nmd5 {M}", "f".repeat(500));
        let read = read(&list, None);
        let messages: Vec<_> = read[..5].iter().map(|entry| entry.clone().unwrap_err()).collect();
        let first = |message: &String| message.lines().next().unwrap().to_owned();
        assert_eq!(
            messages.iter().map(first).collect::<Vec<_>>(),
            [
                format!("line 1: \"{M}\" is no pdq hash"),
                "line 2: the type \"pqd\" is unknown".to_owned(),
                format!("line 3: \"{}…\" is neither a PDQ hash nor a digest", "f".repeat(70)),
                "line 4: \"hello\\u{1b}[2J world\" is neither a PDQ hash nor a digest".to_owned(),
                format!("line 5: the type \"{A}\" is unknown"),
            ]
        );
        assert!(messages.iter().all(|message| message.contains("\n  hint: ")), "{messages:?}");
        assert_eq!(read[5], Ok((6, "md5", M.to_owned(), json!({}))));

        let rows = format!("type,hash\npdq\npdq,{A},3\nphoto,{A}\n,\nmd5,{M}\n");
        let rows: Vec<_> =
            self::read(&rows, None).iter().map(|row| row.as_ref().map_or_else(first, |row| row.1.to_owned())).collect();
        assert_eq!(
            rows,
            [
                "line 2: the row has 1 cells, and the header row has 2",
                "line 3: the row has 3 cells, and the header row has 2",
                "line 4: the type \"photo\" is unknown",
                "line 5: the row has no hash",
                "md5",
            ]
        );
    }

    #[test]
    fn a_list_ends_at_a_bad_header_a_bad_encoding_and_a_line_without_an_end() {
        assert!(
            only_error(format!("type,pdq\npdq,{A}")).starts_with("line 1: the column \"type\" needs a column \"hash\"")
        );
        assert!(only_error(format!("pdq,a,a\n{A},,")).starts_with("line 1: the column \"a\" occurs twice"));
        assert!(only_error(format!("hash,signal_str\n{A},")).contains("\"signal_str\" occurs twice"));
        for list in [&b"\xff\xfeh\0\n\0"[..], b"hash\nx\xff\nx", b"pdq,a\n,\xff\n"] {
            let mut entries = ListReader::new(list, None);
            let errors: Vec<_> = entries.by_ref().map(|entry| entry.unwrap_err().to_string()).collect();
            assert!(errors.last().unwrap().contains("is not UTF-8\n  hint: save the list as UTF-8"), "{errors:?}");
        }
        // A line, and a row whose quote is not closed, that never end.
        let endless = || io::repeat(b'x');
        let header = || &b"hash,note\n"[..];
        for (input, line) in [
            (Box::new(endless()) as Box<dyn Read>, 1),
            (Box::new(header().chain(endless())), 2),
            (Box::new(header().chain(&b"a,\"\n"[..]).chain(endless())), 3),
        ] {
            let errors: Vec<_> =
                ListReader::new(BufReader::new(input), None).map(|entry| entry.unwrap_err().to_string()).collect();
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(
                errors[0].starts_with(&format!("line {line}: the line is longer than 64 KiB\n  hint: ")),
                "{errors:?}"
            );
        }
        let open_quote = format!("hash,note\na,\"{}", "line\n".repeat(20_000));
        assert!(only_error(open_quote).starts_with("line 2: the line is longer than 64 KiB"));
        // The longest row is read, and comments of any length.
        let longest = format!("{}hash,note\n{M},{}\n", "# comment\n".repeat(20_000), "x".repeat(MAX_LINE_BYTES - 33));
        assert_eq!(read(&longest, None).into_iter().map(|entry| entry.unwrap().0).collect::<Vec<_>>(), [20_002]);
        let longer = longest.replace("xx\n", "xxx\n");
        assert!(only_error(longer).starts_with("line 20002: the line is longer"));
    }

    #[test]
    fn a_failed_read_is_an_error_and_no_end() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the disk is gone"))
            }
        }
        for list in [format!("md5 {M}\n"), format!("md5\n{M}\n")] {
            let input = BufReader::new(list.as_bytes().chain(Broken));
            let read: Vec<_> = ListReader::new(input, None).collect();
            assert!(
                matches!(&read[..], [Ok(_), Err(ListError::Read { source, .. })] if source.to_string() == "the disk is gone"),
                "{read:?}"
            );
        }
    }

    fn hash() -> impl Strategy<Value = KnownHash> {
        prop_oneof![
            any::<[u8; 32]>().prop_map(|bytes| KnownHash::Pdq(crate::job::Pdq(bytes))),
            any::<[u8; 32]>().prop_map(KnownHash::Sha256),
            any::<[u8; 16]>().prop_map(KnownHash::Md5),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(hashes in prop::collection::vec(hash(), 0..20)) {
            let list: String = hashes.iter().map(|hash| exchange_line(hash) + "\n").collect();
            let read: Vec<_> = ListReader::new(list.as_bytes(), None).map(|entry| entry.unwrap().hash).collect();
            prop_assert_eq!(read, hashes);
        }

        #[test]
        fn the_cells_of_a_table_are_read_as_metadata(
            rows in prop::collection::vec((hash(), "[ ,\"#a\né]{0,5}", "\\PC{0,8}"), 0..20),
        ) {
            let columns = ["a note, or two", "tags"];
            let mut table = csv::Writer::from_writer(Vec::new());
            table.write_record(["type", "hash", columns[0], columns[1]]).unwrap();
            let mut expected = Vec::new();
            for (hash, note, tags) in rows {
                table.write_record([HashType::of(&hash).as_str(), &digits(&hash), &note, &tags]).unwrap();
                let cells = columns.iter().zip([note, tags]).filter(|(_, cell)| !cell.trim().is_empty());
                let metadata: Map<String, Value> = cells.map(|(name, cell)| ((*name).to_owned(), cell.into())).collect();
                expected.push((hash, metadata));
            }
            let list = table.into_inner().unwrap();
            let entries = ListReader::new(&*list, None).map(|entry| entry.unwrap());
            let read: Vec<_> = entries.map(|entry| (entry.hash, entry.metadata)).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_bytes_end_without_a_panic(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b','), Just(b'"'), any::<u8>()], 0..300), is_csv: bool) {
            let header: &[u8] = if is_csv { b"hash,type\n" } else { b"" };
            let entries = ListReader::new(header.chain(&*bytes), None);
            prop_assert!(entries.count() <= 2 * bytes.len() + 1);
        }
    }
}
