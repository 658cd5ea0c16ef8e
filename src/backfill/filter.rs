//! Conditions on the objects of a source.

use serde::Serialize;
use time::OffsetDateTime;

use crate::job::forms::MAX_KEY_BYTES;
use crate::objects::ListedObject;

/// Conditions on an object; it must meet all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ObjectFilter {
    /// The key ends with one of these; the case of ASCII letters does not matter. Empty for any ending.
    pub suffixes: Vec<String>,
    pub min_bytes: Option<u64>,
    pub max_bytes: Option<u64>,
    /// The object was last modified at or after this time.
    pub since: Option<OffsetDateTime>,
    /// The object was last modified before this time.
    pub until: Option<OffsetDateTime>,
}

impl ObjectFilter {
    /// Whether a listing has all that is needed to apply the conditions and to compare the object with the ledger.
    #[must_use]
    pub fn is_decidable(&self, object: &ListedObject) -> bool {
        let may_be_folder = object.image.key.ends_with('/');
        let needs_size = may_be_folder || self.min_bytes.is_some() || self.max_bytes.is_some();
        let sized = object.bytes.is_some() || !needs_size;
        let dated = object.modified.is_some() || (self.since.is_none() && self.until.is_none());
        object.image.etag.is_some() && sized && dated
    }

    /// Whether an object's key meets the conditions.
    #[must_use]
    pub fn accepts_key(&self, object: &ListedObject) -> bool {
        let key = object.image.key.as_bytes();
        let ends_with = |suffix: &String| {
            let from = key.len().checked_sub(suffix.len());
            from.is_some_and(|from| key[from..].eq_ignore_ascii_case(suffix.as_bytes()))
        };
        // Some tools store folders as empty objects whose keys end with a slash. A key with U+0000 or longer than S3 allows is
        // no valid job.
        let is_folder = key.ends_with(b"/") && object.bytes == Some(0);
        let valid = !is_folder && !key.contains(&0) && key.len() <= MAX_KEY_BYTES;
        valid && (self.suffixes.is_empty() || self.suffixes.iter().any(ends_with))
    }

    /// Whether an object meets the conditions. A property that is unknown, because the object is missing, excludes nothing.
    #[must_use]
    pub fn accepts(&self, object: &ListedObject) -> bool {
        let sized = object
            .bytes
            .is_none_or(|n| self.min_bytes.is_none_or(|min| n >= min) && self.max_bytes.is_none_or(|max| n <= max));
        let dated = object
            .modified
            .is_none_or(|at| self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until));
        self.accepts_key(object) && sized && dated
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::job::ImageRef;

    fn object(key: &str, bytes: u64, modified: OffsetDateTime) -> ListedObject {
        let image = ImageRef { bucket: "b".into(), key: key.into(), version_id: None, etag: Some("e".into()) };
        ListedObject { image, bytes: Some(bytes), modified: Some(modified) }
    }

    #[test]
    fn every_condition_must_be_met() {
        let (early, late) = (datetime!(2026-01-01 00:00 UTC), datetime!(2026-02-01 00:00 UTC));
        let filter = ObjectFilter {
            suffixes: vec![".jpg".into(), ".PNG".into()],
            min_bytes: Some(10),
            max_bytes: Some(20),
            since: Some(early),
            until: Some(late),
        };
        for (key, bytes, at) in [("a.jpg", 10, early), ("b/c.JPG", 20, early), ("d.png", 15, early)] {
            assert!(filter.accepts(&object(key, bytes, at)), "{key} {bytes}");
        }
        for (key, bytes, at) in
            [("a.gif", 15, early), ("jpg", 15, early), ("a.jpg", 9, early), ("a.jpg", 21, early), ("a.jpg", 15, late)]
        {
            assert!(!filter.accepts(&object(key, bytes, at)), "{key} {bytes} {at}");
        }
        assert!(!ObjectFilter::default().accepts(&object("folder/", 0, early)));
        assert!(ObjectFilter::default().accepts(&object("image/", 1, early)), "no folder marker, as it has content");
        assert!(!ObjectFilter::default().accepts(&object("nul\0", 1, early)));
        assert!(!ObjectFilter::default().accepts(&object(&"k".repeat(1_025), 1, early)));
    }

    #[test]
    fn only_properties_with_a_condition_must_be_known() {
        let bare = ListedObject { bytes: None, modified: None, ..object("k", 0, datetime!(2026-01-01 00:00 UTC)) };
        assert!(ObjectFilter::default().is_decidable(&bare));
        assert!(!ObjectFilter { min_bytes: Some(1), ..ObjectFilter::default() }.is_decidable(&bare));
        assert!(
            !ObjectFilter { until: Some(datetime!(2026-01-01 00:00 UTC)), ..ObjectFilter::default() }
                .is_decidable(&bare)
        );
        let perhaps_folder =
            ListedObject { image: ImageRef { key: "k/".into(), ..bare.image.clone() }, ..bare.clone() };
        assert!(!ObjectFilter::default().is_decidable(&perhaps_folder), "an image may have such a key");
        let unnamed = ListedObject { image: ImageRef { etag: None, ..bare.image.clone() }, ..bare };
        assert!(!ObjectFilter::default().is_decidable(&unnamed));
    }
}
