//! Sources as they are given on the command line → what a run reads, and the buckets it may read from.

use std::path::{Component, Path, PathBuf};

use wildmatch::WildMatch;

use super::Arguments;
use crate::backfill::source::{Place, Source};
use crate::commands::UsageError;
use crate::config::{Bucket, Config, Objects};
use crate::job::ImageRef;
use crate::objects::is_bucket;

/// Resolves what the arguments name. Where no buckets are configured those of the sources are allowed: which ones jobs
/// may name is the worker's to say.
pub(super) fn resolve(arguments: &Arguments, config: &Config) -> anyhow::Result<(Config, Vec<Source>)> {
    let objects = config.objects()?;
    let mut sources = Vec::new();
    for text in &arguments.sources {
        sources.extend(prefixes(text, &objects, &config.buckets).map_err(UsageError)?);
    }
    sources.extend(arguments.inventory.iter().map(|text| Source::Inventory(place(text))));
    sources.extend(arguments.manifest.iter().map(|text| Source::Manifest(place(text))));

    let mut config = config.clone();
    if config.buckets.is_empty() {
        let mut buckets: Vec<&str> = sources.iter().filter_map(bucket).collect();
        buckets.dedup();
        config.buckets = match buckets[..] {
            // Lists may name any.
            [] => vec![Bucket::Name("*".into())],
            _ => buckets.iter().map(|name| Bucket::Name((*name).to_owned())).collect(),
        };
    } else if let Some(bucket) = sources.iter().filter_map(bucket).find(|name| !allowed(&config.buckets, name)) {
        return Err(UsageError(format!(
            "the bucket \"{bucket}\" is not allowed, so every job would be rejected\n  hint: add it to `buckets`, here and for the workers"
        ))
        .into());
    }
    Ok((config, sources))
}

fn allowed(buckets: &[Bucket], name: &str) -> bool {
    is_bucket(name) && buckets.iter().any(|bucket| WildMatch::new(bucket.pattern()).matches(name))
}

fn bucket(source: &Source) -> Option<&str> {
    match source {
        Source::Prefix { bucket, .. } => Some(bucket),
        Source::Inventory(_) | Source::Manifest(_) => None,
    }
}

fn place(text: &str) -> Place {
    let here = || Place::File { path: PathBuf::from(text), state: String::new() };
    ImageRef::from_uri(text).map_or_else(here, Place::Object)
}

/// Reads `s3://bucket`, `s3://bucket/prefix`, or a `file://` folder at or below the one with the buckets.
fn prefixes(text: &str, objects: &Objects, buckets: &[Bucket]) -> Result<Vec<Source>, String> {
    if let Some(rest) = text.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(format!("\"{text}\" is not s3://bucket/prefix"));
        }
        return Ok(vec![Source::Prefix { bucket: bucket.to_owned(), prefix: prefix.to_owned() }]);
    }
    let url = url::Url::parse(text).ok().filter(|url| url.scheme() == "file");
    let Some(path) = url.and_then(|url| url.to_file_path().ok()) else {
        return Err(format!("\"{text}\" is neither s3://bucket/prefix nor file:///folder"));
    };
    let Objects::Folder(root) = objects else {
        return Err(format!(
            "{text} is a folder, but `objects` is s3://\n  hint: give --objects file:///FOLDER, whose folders are the buckets, here and to the workers"
        ));
    };
    let below = path.strip_prefix(root).map_err(|_| {
        format!("{text} is not in {}\n  hint: `objects` names the folder whose folders are the buckets", root.display())
    })?;
    let parts: Option<Vec<&str>> = below
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    match parts.as_deref() {
        None => Err(format!("{text} is not a plain path in UTF-8")),
        Some([]) => all(root, buckets),
        Some([bucket, rest @ ..]) => {
            let slash = if !rest.is_empty() && path.is_dir() { "/" } else { "" };
            Ok(vec![Source::Prefix { bucket: (*bucket).to_owned(), prefix: rest.join("/") + slash }])
        }
    }
}

/// Every bucket of a folder, as far as they are allowed.
fn all(root: &Path, buckets: &[Bucket]) -> Result<Vec<Source>, String> {
    let wrong = |e: std::io::Error| format!("the folder {} cannot be read: {e}", root.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        if let Some(name) = entry.file_name().to_str()
            && entry.file_type().map_err(wrong)?.is_dir()
            && (if buckets.is_empty() { is_bucket(name) } else { allowed(buckets, name) })
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    if names.is_empty() {
        return Err(format!("the folder {} has no folder that is an allowed bucket", root.display()));
    }
    Ok(names.into_iter().map(|bucket| Source::Prefix { bucket, prefix: String::new() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(bucket: &str, prefix: &str) -> Source {
        Source::Prefix { bucket: bucket.into(), prefix: prefix.into() }
    }

    #[test]
    fn sources_are_read_as_people_write_them() {
        let read = |text: &str| prefixes(text, &Objects::S3, &[]);
        assert_eq!(read("s3://b").unwrap(), [prefix("b", "")]);
        assert_eq!(read("s3://b/").unwrap(), [prefix("b", "")]);
        assert_eq!(read("s3://b/2024/a b%20").unwrap(), [prefix("b", "2024/a b%20")]);
        for wrong in ["b/k", "s3:///k", "https://b/k", "/srv/images"] {
            assert!(read(wrong).unwrap_err().contains("is n"), "{wrong}");
        }
        assert!(read("file:///srv/images").unwrap_err().contains("--objects"));
    }

    #[test]
    fn a_folder_means_the_buckets_in_it_or_what_lies_below_one() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/2024")).unwrap();
        std::fs::create_dir_all(root.path().join("b")).unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let objects = Objects::Folder(root.path().to_owned());
        let read = |below: &str, buckets: &[Bucket]| {
            prefixes(&format!("file://{}{below}", root.path().display()), &objects, buckets)
        };
        assert_eq!(read("", &[]).unwrap(), [prefix("a", ""), prefix("b", "")]);
        assert_eq!(read("/", &[Bucket::Name("b*".into())]).unwrap(), [prefix("b", "")]);
        assert!(read("/", &[Bucket::Name("c".into())]).unwrap_err().contains("no folder that is an allowed bucket"));
        assert_eq!(read("/a", &[]).unwrap(), [prefix("a", "")]);
        assert_eq!(read("/a/2024", &[]).unwrap(), [prefix("a", "2024/")]);
        assert_eq!(read("/a/20", &[]).unwrap(), [prefix("a", "20")]);
        assert!(prefixes("file:///elsewhere", &objects, &[]).unwrap_err().contains("is not in"));
    }
}
