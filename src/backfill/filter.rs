//! Which of the objects that are there are meant.

use serde::Serialize;
use time::OffsetDateTime;

use crate::job::forms::MAX_KEY_BYTES;
use crate::objects::ListedObject;

/// Conditions on an object; it has to meet all that are given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// Its key ends with one of these, whatever the case of ASCII letters.
    pub suffixes: Vec<String>,
    /// It has at least so many bytes.
    pub min_bytes: Option<u64>,
    /// It has at most so many bytes.
    pub max_bytes: Option<u64>,
    /// It was written then or later.
    pub since: Option<OffsetDateTime>,
    /// It was written before then.
    pub until: Option<OffsetDateTime>,
}

impl Filter {
    /// Whether enough is known of an object to compare it with the ledger and to judge it here.
    #[must_use]
    pub fn knows_enough(&self, object: &ListedObject) -> bool {
        let sized = object.bytes.is_some() || (self.min_bytes.is_none() && self.max_bytes.is_none());
        let dated = object.modified.is_some() || (self.since.is_none() && self.until.is_none());
        object.image.etag.is_some() && sized && dated
    }

    /// Whether an object is meant, as far as its key tells.
    #[must_use]
    pub fn names(&self, object: &ListedObject) -> bool {
        let key = object.image.key.as_bytes();
        let ends_with = |suffix: &String| {
            let from = key.len().checked_sub(suffix.len());
            from.is_some_and(|from| key[from..].eq_ignore_ascii_case(suffix.as_bytes()))
        };
        // A key with a slash at its end stands for a folder in some tools; U+0000, or more than S3 allows, is no job.
        let nameable = !key.ends_with(b"/") && !key.contains(&0) && key.len() <= MAX_KEY_BYTES;
        nameable && (self.suffixes.is_empty() || self.suffixes.iter().any(ends_with))
    }

    /// Whether an object is meant. What is not known of one that is not there excludes nothing.
    #[must_use]
    pub fn takes(&self, object: &ListedObject) -> bool {
        let sized = object.bytes.is_none_or(|n| {
            self.min_bytes.is_none_or(|least| n >= least) && self.max_bytes.is_none_or(|most| n <= most)
        });
        let dated = object
            .modified
            .is_none_or(|at| self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until));
        self.names(object) && sized && dated
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
    fn every_condition_has_to_be_met_and_limits_are_as_they_say() {
        let (early, late) = (datetime!(2026-01-01 00:00 UTC), datetime!(2026-02-01 00:00 UTC));
        let filter = Filter {
            suffixes: vec![".jpg".into(), ".PNG".into()],
            min_bytes: Some(10),
            max_bytes: Some(20),
            since: Some(early),
            until: Some(late),
        };
        for (key, bytes, at) in [("a.jpg", 10, early), ("b/c.JPG", 20, early), ("d.png", 15, early)] {
            assert!(filter.takes(&object(key, bytes, at)), "{key} {bytes}");
        }
        for (key, bytes, at) in
            [("a.gif", 15, early), ("jpg", 15, early), ("a.jpg", 9, early), ("a.jpg", 21, early), ("a.jpg", 15, late)]
        {
            assert!(!filter.takes(&object(key, bytes, at)), "{key} {bytes} {at}");
        }
        assert!(!Filter::default().takes(&object("folder/", 0, early)));
        assert!(!Filter::default().takes(&object("nul\0", 1, early)));
        assert!(!Filter::default().takes(&object(&"k".repeat(1_025), 1, early)));
    }

    #[test]
    fn what_no_condition_asks_for_need_not_be_known() {
        let bare = ListedObject { bytes: None, modified: None, ..object("k", 0, datetime!(2026-01-01 00:00 UTC)) };
        assert!(Filter::default().knows_enough(&bare));
        assert!(!Filter { min_bytes: Some(1), ..Filter::default() }.knows_enough(&bare));
        assert!(!Filter { until: Some(datetime!(2026-01-01 00:00 UTC)), ..Filter::default() }.knows_enough(&bare));
        let unnamed = ListedObject { image: ImageRef { etag: None, ..bare.image.clone() }, ..bare };
        assert!(!Filter::default().knows_enough(&unnamed));
    }
}
