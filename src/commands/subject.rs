//! Options that name what is erased or held.

use clap::Args;

use crate::job::ImageRef;
use crate::ledger::Subject;

/// Exactly one of these options.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct SubjectOptions {
    /// Verdicts on the image at this place, in every version, as s3://BUCKET/KEY
    #[arg(long, value_name = "URI", value_parser = image)]
    image: Option<Subject>,
    /// Verdicts on content of this SHA-256, at every place
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<Subject>,
    /// Verdicts whose metadata has this value in this field
    ///
    /// The value is a text, a number, or true or false, and the field is not inside another one.
    #[arg(long, value_name = "NAME=VALUE", value_parser = metadata)]
    metadata: Option<Subject>,
}

impl SubjectOptions {
    pub(super) fn subject(&self) -> Option<&Subject> {
        self.image.as_ref().or(self.sha256.as_ref()).or(self.metadata.as_ref())
    }
}

/// A subject as the options take it.
pub(super) fn text(subject: &Subject) -> String {
    match subject {
        Subject::Image { bucket, key } => format!("s3://{bucket}/{key}"),
        Subject::Content(sha256) => format!("sha256:{}", hex::encode(sha256)),
        Subject::Metadata { name, value } => format!("metadata {name}={value}"),
    }
}

fn image(text: &str) -> Result<Subject, String> {
    let image = ImageRef::from_uri(text)
        .ok_or("it must be s3://BUCKET/KEY; a scanned file is named by its content, with --sha256")?;
    Ok(Subject::Image { bucket: image.bucket, key: image.key })
}

fn sha256(text: &str) -> Result<Subject, String> {
    let mut sha256 = [0; 32];
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    hex::decode_to_slice(digits, &mut sha256).map_err(|_| "it must be 64 hexadecimal digits")?;
    Ok(Subject::Content(sha256))
}

fn metadata(text: &str) -> Result<Subject, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok(Subject::Metadata { name: name.to_owned(), value: value.to_owned() })
        }
        _ => Err("it must be NAME=VALUE, such as user=4711".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_printed_as_it_is_given() {
        let digits = "07".repeat(32);
        assert_eq!(text(&image("s3://b/a=b c").unwrap()), "s3://b/a=b c");
        assert_eq!(text(&sha256(&digits).unwrap()), format!("sha256:{digits}"));
        assert_eq!(sha256(&format!("sha256:{digits}")), sha256(&digits));
        assert_eq!(text(&metadata("user=a=b").unwrap()), "metadata user=a=b");
        assert!(metadata("user").is_err() && metadata("=x").is_err() && sha256("07").is_err());
        assert!(image("b/k").is_err());
    }
}
