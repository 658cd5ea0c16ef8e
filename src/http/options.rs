//! The options of HTTP: `[http]`.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::job::ImageRef;

/// `[http]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where images are screened over HTTP, `host:port`. Empty: a worker answers no HTTP, `serve` takes `127.0.0.1:8080`.
    pub listen: String,
    /// The names by which browsers reach the pages, as they stand in the `Host` header. On loopback no name is needed.
    pub hosts: Vec<String>,
    /// Longest that a request waits for its answer. `X-Timeout-Ms` of a request can only lower it.
    #[serde(deserialize_with = "crate::config::above_zero")]
    pub timeout_ms: u32,
    /// Longest that the body of a request may take to arrive.
    #[serde(deserialize_with = "crate::config::above_zero")]
    pub body_timeout_ms: u32,
    /// Images that are received or screened at the same time, beyond which requests are refused; 0: four times what keeps
    /// the detectors busy.
    pub max_in_flight: usize,
    /// Open connections.
    #[serde(deserialize_with = "crate::config::above_zero")]
    pub max_connections: u32,
    /// Where images are kept that were sent themselves and were screened, `s3://bucket/prefix`. Empty: nowhere.
    pub keep: String,
    /// The keys of the machines that may ask.
    pub keys: Vec<KeyConfig>,
    /// The keys of clients that sign their requests as for Amazon Rekognition.
    pub aws_keys: Vec<AwsKeyConfig>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: String::new(),
            hosts: Vec::new(),
            timeout_ms: 30_000,
            body_timeout_ms: 30_000,
            max_in_flight: 0,
            max_connections: 1_024,
            keep: String::new(),
            keys: Vec::new(),
            aws_keys: Vec::new(),
        }
    }
}

/// What a key, or a person, may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Screen images and queue jobs, and read the verdicts on them.
    Screen,
    /// Read verdicts and open review items.
    Read,
    /// Claim review items, decide, and report.
    Decide,
    /// All of that.
    Admin,
}

impl Scope {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Screen => "screen",
            Self::Read => "read",
            Self::Decide => "decide",
            Self::Admin => "admin",
        }
    }
}

/// `[[http.keys]]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeyConfig {
    /// The first part of the ids of this key's jobs.
    pub name: String,
    /// The SHA-256 of the key, in hexadecimal digits.
    pub sha256: String,
    pub scopes: BTreeSet<Scope>,
    /// The buckets whose images the key may name and read; `*` stands for any characters. Empty: all.
    pub buckets: Vec<String>,
    /// The policies that may judge what the key sends. Empty: all.
    pub policies: Vec<String>,
    /// Requests a second, over ten seconds; 0: no limit.
    pub per_second: u32,
}

/// `[[http.aws_keys]]`. A client signs with the secret, so that the secret itself is needed here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AwsKeyConfig {
    /// The first part of the ids of this key's jobs.
    pub name: String,
    pub access_key_id: String,
    pub secret_access_key: SecretText,
    /// As for other keys.
    pub buckets: Vec<String>,
    pub policies: Vec<String>,
    pub per_second: u32,
}

/// A secret that is never printed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// The secret, only for signatures.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for SecretText {
    fn from(secret: &str) -> Self {
        Self(secret.to_owned())
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Only defaults, which are empty, are ever serialised.
impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("")
    }
}

/// The shortest secret of a key that signs.
const MIN_SECRET_CHARS: usize = 20;

/// Longest name of a key. The ids of its jobs begin with it.
const MAX_NAME_CHARS: usize = 40;

/// Whether a key, or whatever else names jobs, can have this name.
#[must_use]
pub fn is_key_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_CHARS
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

impl HttpConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let names = self.keys.iter().enumerate().map(|(index, key)| (format!("http.keys[{index}]"), &key.name));
        let signing =
            self.aws_keys.iter().enumerate().map(|(index, key)| (format!("http.aws_keys[{index}]"), &key.name));
        check_names(&names.chain(signing).collect::<Vec<_>>())?;
        for (index, key) in self.keys.iter().enumerate() {
            let invalid =
                |field: &str, what: &str| Err(ConfigError::invalid(&format!("http.keys[{index}].{field}"), what));
            if hex::decode(&key.sha256).map_or(0, |digest| digest.len()) != 32 {
                return invalid(
                    "sha256",
                    "must be the SHA-256 of a key, 64 hexadecimal digits\n  hint: `pixwarden key create` makes a key and prints this table",
                );
            }
            if self.keys[..index].iter().any(|other| other.sha256.eq_ignore_ascii_case(&key.sha256)) {
                return invalid("sha256", "two keys are the same; make another one with `pixwarden key create`");
            }
            if key.scopes.is_empty() {
                return invalid(
                    "scopes",
                    "the key may do nothing\n  hint: name at least one of screen, read, decide, admin",
                );
            }
        }
        for (index, key) in self.aws_keys.iter().enumerate() {
            let invalid =
                |field: &str, what: &str| Err(ConfigError::invalid(&format!("http.aws_keys[{index}].{field}"), what));
            let id = &key.access_key_id;
            if id.len() < 4 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return invalid("access_key_id", "must be at least 4 letters and digits, such as PIXWARDENUPLOADS");
            }
            if self.aws_keys[..index].iter().any(|other| other.access_key_id == *id) {
                return invalid("access_key_id", "two keys have this id; give one of them another");
            }
            if key.secret_access_key.expose().len() < MIN_SECRET_CHARS {
                return invalid(
                    "secret_access_key",
                    "must have at least 20 characters\n  hint: `openssl rand -base64 30` makes one",
                );
            }
        }
        if !self.keep.is_empty() && self.kept_at("0").is_none() {
            let what = format!("\"{}\" is not s3://bucket/prefix", self.keep);
            return Err(ConfigError::invalid("http.keep", what));
        }
        if let Some(index) = self.hosts.iter().position(|host| host.is_empty() || host.contains('/')) {
            let what = "must be a host, or host:port, as it stands in a browser's address";
            return Err(ConfigError::invalid(&format!("http.hosts[{index}]"), what));
        }
        Ok(())
    }

    /// Where an image of this SHA-256 is kept, if it is.
    #[must_use]
    pub fn kept_at(&self, sha256: &str) -> Option<ImageRef> {
        ImageRef::from_uri(&format!("{}/{sha256}", self.keep.trim_end_matches('/')))
    }

    /// Whether a machine can ask.
    #[must_use]
    pub const fn has_keys(&self) -> bool {
        !self.keys.is_empty() || !self.aws_keys.is_empty()
    }
}

/// Checks the names of all keys, each with its place in the configuration.
fn check_names(names: &[(String, &String)]) -> Result<(), ConfigError> {
    for (index, (place, name)) in names.iter().enumerate() {
        let invalid = |what: String| Err(ConfigError::invalid(&format!("{place}.name"), what));
        if !is_key_name(name) {
            return invalid(format!(
                "\"{name}\" must be 1 to {MAX_NAME_CHARS} letters, digits, dots, dashes or underscores"
            ));
        }
        // Callers without a key have this name.
        if *name == super::LOCAL_NAME || names[..index].iter().any(|(_, other)| other == name) {
            return invalid(format!("the name \"{name}\" is taken; give the key another one"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, digit: &str) -> KeyConfig {
        KeyConfig {
            name: name.into(),
            sha256: digit.repeat(64),
            scopes: [Scope::Screen].into(),
            ..KeyConfig::default()
        }
    }

    #[test]
    fn a_key_that_cannot_work_is_refused() {
        let check = |keys: Vec<KeyConfig>| HttpConfig { keys, ..HttpConfig::default() }.check();
        assert!(check(vec![key("app", "1"), key("other", "2")]).is_ok());
        let refused = |keys: Vec<KeyConfig>| check(keys).unwrap_err().to_string();
        assert!(refused(vec![key("a:b", "1")]).contains("http.keys[0].name"));
        assert!(refused(vec![key("local", "1")]).contains("is taken"));
        assert!(refused(vec![key("app", "1"), key("app", "2")]).contains("http.keys[1].name"));
        assert!(refused(vec![key("app", "a"), key("other", "A")]).contains("two keys are the same"));
        assert!(refused(vec![KeyConfig { sha256: "12".into(), ..key("app", "1") }]).contains("64 hexadecimal digits"));
        assert!(refused(vec![KeyConfig { scopes: BTreeSet::new(), ..key("app", "1") }]).contains("may do nothing"));
        let signing = |name: &str, id: &str, secret: &str| {
            let signing_key = AwsKeyConfig {
                name: name.into(),
                access_key_id: id.into(),
                secret_access_key: secret.into(),
                ..AwsKeyConfig::default()
            };
            HttpConfig { keys: vec![key("app", "1")], aws_keys: vec![signing_key], ..HttpConfig::default() }
        };
        assert!(signing("old", "OLDKEY1", "0123456789012345678901").check().is_ok());
        let refused = |config: HttpConfig| config.check().unwrap_err().to_string();
        assert!(refused(signing("app", "OLDKEY1", "0123456789012345678901")).contains("is taken"));
        assert!(refused(signing("old", "a/b", "0123456789012345678901")).contains("access_key_id"));
        let short = signing("old", "OLDKEY1", "hunter2");
        assert!(refused(short.clone()).contains("at least 20 characters"));
        assert!(!format!("{short:?}").contains("hunter2"));
        let keeps = |keep: &str| HttpConfig { keep: keep.into(), ..HttpConfig::default() };
        assert!(keeps("uploads/kept").check().unwrap_err().to_string().contains("http.keep"));
        for (keep, uri) in [("s3://kept", "s3://kept/ab"), ("s3://kept/a/", "s3://kept/a/ab")] {
            assert_eq!(keeps(keep).kept_at("ab").unwrap().uri(), uri);
        }
        assert!(keeps("").kept_at("ab").is_none());
    }
}
