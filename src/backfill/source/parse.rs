//! Sources as they are named by people, and the buckets that a backfill may read.

use std::path::{Component, Path, PathBuf};

use wildmatch::WildMatch;

use super::{BackfillSource, ListLocation};
use crate::config::{Bucket, Objects};
use crate::job::ImageRef;
use crate::objects::is_bucket;

/// Why a source cannot be used as it is named.
#[derive(Debug, thiserror::Error)]
pub enum SourceNameError {
    #[error("\"{0}\" is not s3://bucket/prefix")]
    NoBucket(String),
    #[error("\"{0}\" is neither s3://bucket/prefix nor file:///folder")]
    Scheme(String),
    #[error(
        "{0} is a folder, but `objects` is s3://\n  hint: give --objects file:///FOLDER, whose subfolders are the buckets, here and to the workers"
    )]
    NotAFolderStore(String),
    #[error("{path} is not in {}\n  hint: `objects` names the folder whose subfolders are the buckets", root.display())]
    OutsideStore { path: String, root: PathBuf },
    #[error("{0} is not a plain path in UTF-8")]
    Path(String),
    #[error("cannot read the folder {}: {error}", root.display())]
    Folder {
        root: PathBuf,
        #[source]
        error: std::io::Error,
    },
    #[error("no subfolder of {} is an allowed bucket", .0.display())]
    NoBuckets(PathBuf),
    #[error(
        "the bucket \"{0}\" is not allowed, so workers would reject every job\n  hint: add it to `buckets`, here and for the workers"
    )]
    NotAllowed(String),
}

impl BackfillSource {
    /// Parses `s3://bucket`, `s3://bucket/prefix`, or a `file://` folder at or below the folder that contains the buckets.
    ///
    /// # Errors
    /// When the text has another form, or names no bucket of the store.
    pub fn parse(text: &str, objects: &Objects, buckets: &[Bucket]) -> Result<Vec<Self>, SourceNameError> {
        let owned = || text.to_owned();
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if !is_bucket(bucket) {
                return Err(SourceNameError::NoBucket(owned()));
            }
            return Ok(vec![Self::Prefix { bucket: bucket.to_owned(), prefix: prefix.to_owned() }]);
        }
        let url = url::Url::parse(text).ok().filter(|url| url.scheme() == "file");
        let path = url.and_then(|url| url.to_file_path().ok()).ok_or_else(|| SourceNameError::Scheme(owned()))?;
        let Objects::Folder(root) = objects else { return Err(SourceNameError::NotAFolderStore(owned())) };
        let outside = |_| SourceNameError::OutsideStore { path: owned(), root: root.clone() };
        let below = path.strip_prefix(root).map_err(outside)?;
        let parts: Option<Vec<&str>> = below
            .components()
            .map(|part| match part {
                Component::Normal(name) => name.to_str(),
                _ => None,
            })
            .collect();
        match parts.as_deref() {
            None => Err(SourceNameError::Path(owned())),
            Some([]) => all_buckets(root, buckets),
            Some([bucket, rest @ ..]) => {
                let slash = if !rest.is_empty() && path.is_dir() { "/" } else { "" };
                Ok(vec![Self::Prefix { bucket: (*bucket).to_owned(), prefix: rest.join("/") + slash }])
            }
        }
    }

    /// The bucket of a prefix; an inventory or a manifest may name objects of any bucket.
    fn bucket(&self) -> Option<&str> {
        match self {
            Self::Prefix { bucket, .. } => Some(bucket),
            Self::Inventory(_) | Self::Manifest(_) => None,
        }
    }
}

impl ListLocation {
    /// An object where the text is `s3://bucket/key`, else a file.
    pub fn parse(text: &str) -> Self {
        let file = || Self::File { path: PathBuf::from(text), state: String::new() };
        ImageRef::from_uri(text).map_or_else(file, Self::Object)
    }
}

/// The buckets that a backfill of these sources may read: the configured ones, or else those of the sources. The workers
/// decide by their own configuration which buckets jobs may name.
///
/// # Errors
/// When the configured buckets exclude one of the sources.
pub fn allowed_buckets(sources: &[BackfillSource], configured: &[Bucket]) -> Result<Vec<Bucket>, SourceNameError> {
    if !configured.is_empty() {
        return match sources.iter().filter_map(BackfillSource::bucket).find(|name| !is_allowed(configured, name)) {
            Some(name) => Err(SourceNameError::NotAllowed(name.to_owned())),
            None => Ok(configured.to_vec()),
        };
    }
    let mut buckets: Vec<&str> = sources.iter().filter_map(BackfillSource::bucket).collect();
    buckets.dedup();
    Ok(match buckets[..] {
        // Inventories and manifests may name any bucket.
        [] => vec![Bucket::Name("*".into())],
        _ => buckets.iter().map(|name| Bucket::Name((*name).to_owned())).collect(),
    })
}

fn is_allowed(buckets: &[Bucket], name: &str) -> bool {
    is_bucket(name) && buckets.iter().any(|bucket| WildMatch::new(bucket.pattern()).matches(name))
}

/// Every allowed bucket of a folder.
fn all_buckets(root: &Path, allowed: &[Bucket]) -> Result<Vec<BackfillSource>, SourceNameError> {
    let failed = |error: std::io::Error| SourceNameError::Folder { root: root.to_owned(), error };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(name) = entry.file_name().to_str()
            && entry.file_type().map_err(failed)?.is_dir()
            && (if allowed.is_empty() { is_bucket(name) } else { is_allowed(allowed, name) })
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    if names.is_empty() {
        return Err(SourceNameError::NoBuckets(root.to_owned()));
    }
    Ok(names.into_iter().map(|bucket| BackfillSource::Prefix { bucket, prefix: String::new() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(bucket: &str, prefix: &str) -> BackfillSource {
        BackfillSource::Prefix { bucket: bucket.into(), prefix: prefix.into() }
    }

    #[test]
    fn a_source_is_parsed_as_people_write_it() {
        let read = |text: &str| BackfillSource::parse(text, &Objects::S3, &[]);
        assert_eq!(read("s3://b").unwrap(), [prefix("b", "")]);
        assert_eq!(read("s3://b/").unwrap(), [prefix("b", "")]);
        assert_eq!(read("s3://b/2024/a b%20").unwrap(), [prefix("b", "2024/a b%20")]);
        for wrong in ["b/k", "s3:///k", "s3://../k", "s3://.", "https://b/k", "/srv/images"] {
            assert!(read(wrong).unwrap_err().to_string().contains("is n"), "{wrong}");
        }
        assert!(read("file:///srv/images").unwrap_err().to_string().contains("--objects"));
    }

    #[test]
    fn a_folder_stands_for_its_buckets_or_a_prefix_in_one() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/2024")).unwrap();
        std::fs::create_dir_all(root.path().join("b")).unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let objects = Objects::Folder(root.path().to_owned());
        let read = |below: &str, buckets: &[Bucket]| {
            BackfillSource::parse(&format!("file://{}{below}", root.path().display()), &objects, buckets)
        };
        assert_eq!(read("", &[]).unwrap(), [prefix("a", ""), prefix("b", "")]);
        assert_eq!(read("/", &[Bucket::Name("b*".into())]).unwrap(), [prefix("b", "")]);
        assert!(read("/", &[Bucket::Name("c".into())]).unwrap_err().to_string().contains("is an allowed bucket"));
        assert_eq!(read("/a", &[]).unwrap(), [prefix("a", "")]);
        assert_eq!(read("/a/2024", &[]).unwrap(), [prefix("a", "2024/")]);
        assert_eq!(read("/a/20", &[]).unwrap(), [prefix("a", "20")]);
        assert!(
            BackfillSource::parse("file:///elsewhere", &objects, &[]).unwrap_err().to_string().contains("is not in")
        );
    }
}
