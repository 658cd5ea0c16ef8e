//! Local files: finding them below paths, in a fixed order, and reading them.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use walkdir::{DirEntry, WalkDir};

use crate::error_text::io_text;
use crate::job::ContentDigests;

/// What was found at or below the paths, in order.
#[derive(Debug)]
pub(crate) enum Found {
    File(FoundFile),
    /// An entry of a folder that is passed over.
    Skipped(SkippedEntry),
    /// What cannot be read, as an error that names its path.
    Unreadable(anyhow::Error),
    /// Everything at or below this path was found.
    End(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundFile {
    pub path: PathBuf,
    /// The path was given, and not found in a folder.
    pub is_named: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SkippedEntry {
    pub path: PathBuf,
    pub cause: SkipCause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SkipCause {
    /// Following it could lead anywhere, also into an endless loop.
    FolderLink,
    /// A symbolic link to a folder at or below one of the paths: its files are found there.
    FolderLinkWithin,
    /// A pipe, a socket or a device.
    SpecialFile,
}

impl fmt::Display for SkipCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FolderLink => "a symbolic link to a folder",
            Self::FolderLinkWithin => "a symbolic link to a folder that is searched",
            Self::SpecialFile => "not a file or a folder",
        })
    }
}

/// Everything at or below the paths: the paths in the given order, the entries of a folder by name. Pipes, devices and
/// links to folders are skipped inside folders, but not where they were given as a path.
pub(crate) fn find(paths: impl IntoIterator<Item = PathBuf>) -> impl Iterator<Item = Found> {
    find_within(paths, Vec::new())
}

/// As [`find`]. A link to a folder at or below one of the `searched` folders is told apart from other links.
pub(crate) fn find_within(
    paths: impl IntoIterator<Item = PathBuf>,
    searched: Vec<PathBuf>,
) -> impl Iterator<Item = Found> {
    let searched: Arc<[PathBuf]> = searched.iter().filter_map(|path| path.canonicalize().ok()).collect();
    paths.into_iter().flat_map(move |path| {
        let searched = Arc::clone(&searched);
        let entries = WalkDir::new(&path).sort_by_file_name().into_iter();
        entries.filter_map(move |entry| classify_entry(entry, &searched)).chain([Found::End(path)])
    })
}

fn classify_entry(entry: walkdir::Result<DirEntry>, searched: &[PathBuf]) -> Option<Found> {
    let entry = match entry {
        Ok(entry) => entry,
        Err(e) => return Some(Found::Unreadable(unreadable(&e))),
    };
    let is_named = entry.depth() == 0;
    // `WalkDir` follows a link that was given as a path; the link itself is no file.
    if entry.file_type().is_dir() || is_named && entry.path_is_symlink() && entry.path().is_dir() {
        return None;
    }
    if is_named || leads_to_file(&entry) {
        return Some(Found::File(FoundFile { path: entry.into_path(), is_named }));
    }
    let target = entry.path().canonicalize().ok().filter(|target| target.is_dir());
    let cause = match target {
        Some(target) if searched.iter().any(|folder| target.starts_with(folder)) => SkipCause::FolderLinkWithin,
        Some(_) => SkipCause::FolderLink,
        None => SkipCause::SpecialFile,
    };
    Some(Found::Skipped(SkippedEntry { path: entry.into_path(), cause }))
}

/// Every file at or below the paths, without what is skipped; see [`find`].
pub(crate) fn walk(paths: Vec<PathBuf>) -> impl Iterator<Item = anyhow::Result<PathBuf>> {
    find(paths).filter_map(|found| match found {
        Found::File(file) => Some(Ok(file.path)),
        Found::Unreadable(e) => Some(Err(e)),
        Found::Skipped(SkippedEntry { path, cause }) => {
            tracing::debug!(path = %path_text(&path), %cause, "path skipped");
            None
        }
        Found::End(_) => None,
    })
}

/// A broken link counts as a file, so that its owner sees an error.
fn leads_to_file(entry: &DirEntry) -> bool {
    entry.file_type().is_file()
        || (entry.file_type().is_symlink() && entry.path().metadata().map_or(true, |found| found.is_file()))
}

fn unreadable(error: &walkdir::Error) -> anyhow::Error {
    let path = path_text(error.path().unwrap_or(Path::new("")));
    match error.io_error() {
        Some(e) => anyhow!("cannot read {path}: {}", io_text(e)),
        None => anyhow!("cannot read {path}: {error}"),
    }
}

/// Reads paths from a stream: one per line, or one before each NUL. Empty paths are skipped.
pub(crate) fn read_paths(mut input: impl io::BufRead, separator: u8) -> impl Iterator<Item = io::Result<PathBuf>> {
    std::iter::from_fn(move || {
        let mut path = Vec::new();
        match input.read_until(separator, &mut path) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(e) => return Some(Err(e)),
        }
        if path.last() == Some(&separator) {
            path.pop();
        }
        Some(Ok(PathBuf::from(std::ffi::OsStr::from_bytes(&path))))
    })
    .filter(|path| !path.as_ref().is_ok_and(|path| path.as_os_str().is_empty()))
}

/// A path as text. No two paths have the same text: a path that is not valid UTF-8 is written as `$'...'`, with its
/// other bytes as `\xHH`, which bash and zsh read as the same path. So is a path that begins like that itself.
pub(crate) fn path_text(path: &Path) -> Cow<'_, str> {
    match path.to_str() {
        Some(text) if !text.starts_with("$'") => return Cow::Borrowed(text),
        _ => {}
    }
    let mut text = String::from("$'");
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if matches!(c, '\\' | '\'') {
                text.push('\\');
            }
            text.push(c);
        }
        for byte in chunk.invalid() {
            text += &format!("\\x{byte:02x}");
        }
    }
    text.push('\'');
    Cow::Owned(text)
}

/// The first bytes of a file, at most `limit`.
pub(crate) fn read_head(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    std::fs::File::open(path)?.take(limit).read_to_end(&mut head)?;
    Ok(head)
}

/// A file's bytes and their digests, read on a blocking thread; `None` for a file with more than `limit` bytes, also
/// where its directory entry has a smaller length.
pub(crate) async fn read(path: PathBuf, limit: u64) -> anyhow::Result<Option<(Bytes, ContentDigests)>> {
    tokio::task::spawn_blocking(move || {
        let read = || {
            let file = std::fs::File::open(&path)?;
            let expected = file.metadata()?.len().min(limit);
            let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0).saturating_add(1));
            file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        };
        let bytes = read().with_context(|| format!("cannot read {}", path_text(&path)))?;
        if bytes.len() as u64 > limit {
            return Ok(None);
        }
        let digests = ContentDigests::of(&bytes);
        Ok(Some((Bytes::from(bytes), digests)))
    })
    .await?
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsStr;
    use std::os::unix::fs::symlink;

    use super::*;

    /// What was found, with paths relative to `root`.
    fn found(root: &Path, paths: &[&str]) -> Vec<String> {
        let paths: Vec<_> = paths.iter().map(|path| root.join(path)).collect();
        let relative = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
        let describe = |found| match found {
            Found::File(FoundFile { path, is_named: true }) => format!("named {}", relative(&path)),
            Found::File(FoundFile { path, .. }) => relative(&path),
            Found::Skipped(SkippedEntry { path, cause }) => format!("{}: {cause}", relative(&path)),
            Found::Unreadable(e) => e.to_string().replace(&format!("{}/", root.display()), ""),
            Found::End(path) => format!("end of {}", relative(&path)),
        };
        find_within(paths.clone(), paths).map(describe).collect()
    }

    #[test]
    fn what_is_skipped_is_named_with_its_cause() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in ["a/1", "a/deep/2", "b/3"] {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), "").unwrap();
        }
        std::fs::create_dir(root.join("empty")).unwrap();
        symlink("../b", root.join("a/to-b")).unwrap();
        symlink("deep", root.join("a/to-deep")).unwrap();
        symlink("../b/3", root.join("a/to-file")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(root.join("b/pipe")).status().unwrap();
        assert!(pipe.success());

        let a = ["a/1", "a/deep/2"];
        let links = ["a/to-b: a symbolic link to a folder", "a/to-deep: a symbolic link to a folder that is searched"];
        assert_eq!(found(root, &["a"]), [&a[..], &links, &["a/to-file", "end of a"]].concat());
        // The link's target is searched too.
        let links = ["a/to-b", "a/to-deep"].map(|link| format!("{link}: a symbolic link to a folder that is searched"));
        let b = ["b/3", "b/pipe: not a file or a folder", "end of b"];
        let links = links.each_ref().map(String::as_str);
        assert_eq!(found(root, &["a", "b"]), [&a[..], &links, &["a/to-file", "end of a"], &b].concat());
        assert_eq!(
            found(root, &["b/3", "empty", "b/pipe", "no", "a/to-b"]),
            [
                "named b/3",
                "end of b/3",
                "end of empty",
                "named b/pipe",
                "end of b/pipe",
                "cannot read no: no such file or directory",
                "end of no",
                "a/to-b/3",
                "a/to-b/pipe: not a file or a folder",
                "end of a/to-b"
            ]
        );
    }

    #[test]
    fn paths_that_differ_have_texts_that_differ() {
        let names: [&[u8]; 7] = [
            b"caf\xe9.jpg",
            b"caf\xe8.jpg",
            "caf\u{fffd}.jpg".as_bytes(),
            b"$'caf\\xe9.jpg'",
            b"caf\\xe9\xe9",
            b"caf\\\xe9\xe9",
            b"\xff'",
        ];
        let texts: BTreeSet<_> =
            names.iter().map(|name| path_text(Path::new(OsStr::from_bytes(name))).into_owned()).collect();
        assert_eq!(texts.len(), names.len(), "{texts:?}");
        assert!(texts.contains(r"$'caf\xe9.jpg'"), "{texts:?}");
        assert_eq!(path_text(Path::new("a b/ü$'")), "a b/ü$'");
        // A shell reads the text as the path.
        for name in names {
            let text = path_text(Path::new(OsStr::from_bytes(name))).into_owned();
            if text.starts_with("$'") {
                let shell = std::process::Command::new("bash").args(["-c", &format!("printf %s {text}")]).output();
                assert_eq!(shell.unwrap().stdout, name, "{text}");
            }
        }
    }

    #[test]
    fn paths_are_read_by_line_or_by_nul() {
        let read = |input: &'static [u8], separator| -> Vec<_> {
            read_paths(input, separator).map(|path| path.unwrap().into_os_string()).collect()
        };
        assert_eq!(read(b"a b\n\nc\xff", b'\n'), [OsStr::from_bytes(b"a b"), OsStr::from_bytes(b"c\xff")]);
        assert_eq!(read(b"a\nb\0\0c\0", 0), ["a\nb", "c"]);
        assert!(read(b"", 0).is_empty());
    }
}
