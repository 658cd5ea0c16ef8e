//! The body of a message → a job.

use pixwarden::job::forms::{self, MessageProperties, Reading};
use pixwarden::job::{Digests, Identity};

/// Reads a body twice, and whatever it is split into.
pub fn read(data: &[u8]) {
    let properties = MessageProperties::default();
    let reading = forms::read(data, properties);
    assert_eq!(reading, forms::read(data, properties), "the same message asks for the same");
    match reading {
        Ok(Reading::Job(job)) => {
            assert!(data.len() <= forms::MAX_BODY_BYTES);
            assert!(job.image.key.len() <= forms::MAX_KEY_BYTES);
            let id = job.id(Some("etag"), &Digests::new());
            assert!(forms::is_id(&id), "{id:?} can be stored");
            if let Identity::Given(given) = &job.identity {
                assert_eq!(*given, id);
            }
            let texts = [Some(&job.image.bucket), Some(&job.image.key), job.image.etag.as_ref()];
            assert!(texts.into_iter().flatten().all(|text| !text.contains('\0')), "Postgres has no U+0000");
            if let Some(metadata) = &job.metadata {
                let text = metadata.to_string();
                assert!(text.len() <= forms::MAX_METADATA_BYTES && !text.contains("\\u0000"));
            }
        }
        Ok(Reading::Several(bodies)) => {
            for body in bodies {
                let read = forms::read(body.as_bytes(), properties);
                assert!(!matches!(read, Ok(Reading::Several(_))), "a part is not split again");
            }
        }
        Ok(Reading::Removed(removal)) => {
            let texts = [Some(&removal.bucket), Some(&removal.key), removal.version_id.as_ref()];
            assert!(texts.into_iter().flatten().all(|text| !text.contains('\0')), "Postgres has no U+0000");
        }
        Ok(Reading::Nothing(why)) => assert!(!why.is_empty()),
        Err(forms::Malformed(reason)) => assert!(!reason.contains('\n'), "one line, for a header: {reason:?}"),
    }
}
