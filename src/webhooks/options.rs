//! The options of webhooks: `[[webhooks]]`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::config::{ConfigError, SecretUrl};
use crate::job::event::ROUTING_KEYS;

/// What a secret begins with, by the Standard Webhooks specification.
const SECRET_PREFIX: &str = "whsec_";
/// The bytes of a secret, by the same specification.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
const MAX_NAME_BYTES: usize = 100;
const SECRET_HINT: &str =
    "\n  hint: `echo \"whsec_$(openssl rand -base64 32)\"` makes one; give the same to the receiver";

/// One endpoint of `[[webhooks]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookConfig {
    /// What the endpoint is called in the ledger, in metrics and by commands; empty: the URL's host.
    pub name: String,
    /// Where events are sent. A query or a path may hold a token.
    pub url: SecretUrl,
    /// The key of the signatures.
    #[serde(skip_serializing)]
    pub secret: WebhookSecret,
    /// A second key while receivers change from one to the other: each request is signed with both. Empty: there is none.
    #[serde(skip_serializing)]
    pub old_secret: WebhookSecret,
    /// The routing keys that are sent, apart from `events.publish`.
    pub events: Vec<String>,
}

impl Default for WebhookConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            url: SecretUrl::default(),
            secret: WebhookSecret::default(),
            old_secret: WebhookSecret::default(),
            // As `events.publish`: all but `image.passed`.
            events: ROUTING_KEYS[..5].iter().map(|key| (*key).to_owned()).collect(),
        }
    }
}

/// The secret of an endpoint. It is never printed, and cannot be serialised.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct WebhookSecret(String);

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(…)")
    }
}

impl WebhookSecret {
    /// The key of the signatures, or what is wrong with the secret.
    fn key(&self) -> Result<Vec<u8>, String> {
        if self.0.is_empty() {
            return Err(format!("the entry has no secret{SECRET_HINT}"));
        }
        let key = self.0.strip_prefix(SECRET_PREFIX).and_then(|text| STANDARD.decode(text).ok());
        let key = key.ok_or_else(|| format!("the secret is not \"{SECRET_PREFIX}\" and base64{SECRET_HINT}"))?;
        if !SECRET_BYTES.contains(&key.len()) {
            let (least, most) = SECRET_BYTES.into_inner();
            return Err(format!("the secret has {} bytes instead of {least} to {most}{SECRET_HINT}", key.len()));
        }
        Ok(key)
    }
}

/// An endpoint whose options are valid.
#[derive(Clone)]
pub struct Endpoint {
    pub name: String,
    pub(super) url: Url,
    /// The keys of the signatures, the newest first.
    pub(super) keys: Vec<Vec<u8>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({:?}, {})", self.name, self.address())
    }
}

impl Endpoint {
    /// Scheme, host and port. The rest of the URL may hold a token.
    #[must_use]
    pub fn address(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// Whether events leave this machine without encryption.
    #[must_use]
    pub fn is_readable_on_the_way(&self) -> bool {
        let is_loopback = match self.url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        self.url.scheme() == "http" && !is_loopback
    }

    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.url.scheme() == "https"
    }
}

impl WebhookConfig {
    /// The name, or else the URL's host and the port that it names.
    #[must_use]
    pub fn name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        let Ok(url) = Url::parse(self.url.expose()) else { return String::new() };
        let host = url.host_str().unwrap_or_default();
        url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    fn endpoint(&self, index: usize) -> Result<Endpoint, ConfigError> {
        let invalid = |key: &str, what: String| Err(ConfigError::invalid(&format!("webhooks[{index}]{key}"), what));
        if self.url.is_empty() {
            return invalid("", "the entry has no url".into());
        }
        let is_web = |url: &Url| ["http", "https"].contains(&url.scheme()) && url.has_host();
        let Some(url) = Url::parse(self.url.expose()).ok().filter(is_web) else {
            return invalid(".url", format!("{} is not a URL that begins with http:// or https://", self.url));
        };
        if !url.username().is_empty() || url.password().is_some() {
            let what = "there is a user or a password in the URL\n  hint: leave them out; the receiver knows by the signature who sends";
            return invalid(".url", what.into());
        }
        if self.name.len() > MAX_NAME_BYTES || !self.name.chars().all(|c| !c.is_control()) {
            return invalid(".name", format!("must be at most {MAX_NAME_BYTES} bytes without control characters"));
        }
        if self.events.is_empty() {
            let what =
                "an empty list sends nothing\n  hint: leave the key out for all but image.passed, or remove the entry";
            return invalid(".events", what.into());
        }
        if let Some(key) = self.events.iter().find(|key| !ROUTING_KEYS.contains(&key.as_str())) {
            return invalid(".events", format!("\"{key}\" is not one of {}", ROUTING_KEYS.join(", ")));
        }
        let mut keys = match self.secret.key() {
            Ok(key) => vec![key],
            Err(what) => return invalid(if self.secret.0.is_empty() { "" } else { ".secret" }, what),
        };
        if !self.old_secret.0.is_empty() {
            match self.old_secret.key() {
                Ok(key) if key == keys[0] => {
                    let what = "is the same as `secret`\n  hint: remove it, or write a new one into `secret`";
                    return invalid(".old_secret", what.into());
                }
                Ok(key) => keys.push(key),
                Err(what) => return invalid(".old_secret", what),
            }
        }
        Ok(Endpoint { name: self.name(), url, keys })
    }
}

/// The endpoints of a configuration.
///
/// # Errors
/// When an entry is invalid, or two have the same name.
pub(crate) fn endpoints(webhooks: &[WebhookConfig]) -> Result<Vec<Endpoint>, ConfigError> {
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(webhooks.len());
    for (index, webhook) in webhooks.iter().enumerate() {
        let endpoint = webhook.endpoint(index)?;
        if let Some(first) = endpoints.iter().position(|other| other.name == endpoint.name) {
            return Err(ConfigError::invalid(
                &format!("webhooks[{index}]"),
                format!(
                    "\"{}\" is the name of `webhooks[{first}]` too\n  hint: give one of them another `name`; without one it is the URL's host",
                    endpoint.name
                ),
            ));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 24 bytes, as in the specification's own example.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn webhook(url: &str) -> WebhookConfig {
        let secret = WebhookSecret(SECRET.into());
        WebhookConfig { url: url.to_owned().into(), secret, ..WebhookConfig::default() }
    }

    fn refused(webhooks: &[WebhookConfig]) -> String {
        endpoints(webhooks).unwrap_err().to_string()
    }

    #[test]
    fn an_entry_that_could_not_be_sent_to_is_refused() {
        for url in ["ftp://h/x", "hooks.example.com/x", "https://", "mailto:a@b"] {
            let said = refused(&[webhook(url)]);
            assert!(
                said.starts_with("`webhooks[0].url`: ") && said.contains("begins with http:// or https://"),
                "{said}"
            );
        }
        assert_eq!(refused(&[webhook("")]), "`webhooks[0]`: the entry has no url");
        let said = refused(&[webhook("https://u:s3cret@h/")]);
        assert!(said.contains("a user or a password") && !said.contains("s3cret"), "{said}");
        let unknown = WebhookConfig { events: vec!["image.flaged".into()], ..webhook("https://h/") };
        assert!(
            refused(&[unknown]).starts_with("`webhooks[0].events`: \"image.flaged\" is not one of image.flagged, ")
        );
        let nothing = WebhookConfig { events: Vec::new(), ..webhook("https://h/") };
        assert!(refused(&[nothing]).starts_with("`webhooks[0].events`: an empty list sends nothing\n  hint: "));
        let long = WebhookConfig { name: "n".repeat(101), ..webhook("https://h/") };
        assert!(refused(&[long]).starts_with("`webhooks[0].name`: "));
        // The names, also those that follow from the URL.
        let said = refused(&[webhook("https://h/a"), webhook("https://h:8443/a"), webhook("http://h/b")]);
        assert!(said.starts_with("`webhooks[2]`: \"h\" is the name of `webhooks[0]` too\n  hint: "), "{said}");
        let named = WebhookConfig { name: "b".into(), ..webhook("http://h/b") };
        let names: Vec<_> =
            endpoints(&[webhook("https://h/a"), named]).unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["h", "b"]);
    }

    #[test]
    fn a_secret_of_another_form_or_length_is_refused_and_never_printed() {
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        for (secret, what) in [
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "is not \"whsec_\" and base64"),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "is not \"whsec_\" and base64"),
            ("whsec_c2hvcnQ=", "has 5 bytes instead of 24 to 64"),
            (&long, "has 65 bytes instead of 24 to 64"),
        ] {
            let webhook = WebhookConfig { secret: WebhookSecret(secret.into()), ..webhook("https://h/") };
            let said = refused(&[webhook]);
            assert!(said.starts_with("`webhooks[0].secret`: ") && said.contains(what), "{said}");
            assert!(said.contains("hint: `echo") && !said.contains(&secret[6..]), "{said}");
        }
        for (old, what) in [(SECRET, "is the same as `secret`"), ("whsec_c2hvcnQ=", "has 5 bytes")] {
            let webhook = WebhookConfig { old_secret: WebhookSecret(old.into()), ..webhook("https://h/") };
            let said = refused(&[webhook]);
            assert!(said.starts_with("`webhooks[0].old_secret`: ") && said.contains(what), "{said}");
        }
        let none = WebhookConfig { secret: WebhookSecret::default(), ..webhook("https://h/") };
        assert!(refused(&[none]).starts_with("`webhooks[0]`: the entry has no secret\n  hint: "));
        let valid = webhook("https://h/?token=t0ken");
        let shown = format!(
            "{valid:?} {:?} {}",
            endpoints(std::slice::from_ref(&valid)),
            serde_json::to_string(&valid).unwrap()
        );
        assert!(!shown.contains("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw") && !shown.contains("t0ken"), "{shown}");
    }

    #[test]
    fn only_plain_http_to_another_machine_can_be_read_on_the_way() {
        let readable = |url: &str| endpoints(&[webhook(url)]).unwrap()[0].is_readable_on_the_way();
        for url in ["http://hooks.example.com/", "http://10.0.0.7:80/", "http://[2001:db8::1]/"] {
            assert!(readable(url), "{url}");
        }
        for url in ["https://hooks.example.com/", "http://localhost:1/", "http://127.0.0.9/", "http://[::1]/"] {
            assert!(!readable(url), "{url}");
        }
    }
}
