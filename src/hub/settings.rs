//! The hub's address and the token, from the environment variables that the hub's own client reads.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use crate::certificates::NoCertificates;

/// Why the hub cannot be used as the environment variables say.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The address has no scheme or host.
    #[error(
        "HF_ENDPOINT is not an http address\n  hint: set the hub's address, such as https://hub.example.com; leave it unset for the public hub"
    )]
    Endpoint(#[source] Option<url::ParseError>),
    /// Error messages contain the address, and must not contain a password.
    #[error(
        "HF_ENDPOINT contains a user or a password, which error messages would show\n  hint: leave them out, and set HF_TOKEN"
    )]
    EndpointWithLogin,
    /// A header cannot contain such a token.
    #[error("the hub's token contains a character that is not printable ASCII")]
    Token,
    /// The token's file exists and cannot be read.
    #[error("cannot read the hub's token from {}", file.display())]
    TokenFile {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// No certificate of the hub can be verified.
    #[error("cannot verify the hub's certificate\n  hint: install ca-certificates, or set SSL_CERT_FILE")]
    NoCertificates(#[from] NoCertificates),
}

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A secret that `Debug` does not print.
#[derive(Clone)]
pub(super) struct Token(pub(super) String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The hub's address, the token, and when to give up.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(super) endpoint: Url,
    pub(super) token: Option<Token>,
    /// The longest time without a byte during a download.
    pub stall: Duration,
    /// Attempts in a row without a byte after which a download is given up.
    pub attempts: u32,
}

impl Settings {
    /// From `HF_ENDPOINT`, `HF_TOKEN` and the token's file in `HF_HOME`, as the hub's own client reads them.
    ///
    /// # Errors
    /// When the endpoint is no http address, or the token's file cannot be read.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into());
        let endpoint = Url::parse(endpoint.trim()).map_err(|error| SettingsError::Endpoint(Some(error)))?;
        if !["http", "https"].contains(&endpoint.scheme()) || !endpoint.has_host() {
            return Err(SettingsError::Endpoint(None));
        }
        if !endpoint.username().is_empty() || endpoint.password().is_some() {
            return Err(SettingsError::EndpointWithLogin);
        }
        let token = match set("HF_TOKEN") {
            Some(token) => Some(token.trim().to_owned()),
            None => token_file(&set)?,
        };
        // The HTTP client's error would show it.
        if token.as_ref().is_some_and(|token| !token.chars().all(|c| c.is_ascii_graphic())) {
            return Err(SettingsError::Token);
        }
        Ok(Self { endpoint, token: token.map(Token), stall: Duration::from_secs(30), attempts: 5 })
    }
}

fn token_file(set: &impl Fn(&str) -> Option<String>) -> Result<Option<String>, SettingsError> {
    let home = set("HF_HOME").map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("huggingface"));
    let user = || set("HOME").map(|home| Path::new(&home).join(".cache/huggingface"));
    let Some(folder) = home.or_else(cache).or_else(user) else { return Ok(None) };
    let file = folder.join("token");
    match std::fs::read_to_string(&file) {
        Ok(token) => Ok(Some(token.trim().to_owned()).filter(|token| !token.is_empty())),
        Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&e.kind()) => Ok(None),
        Err(error) => Err(SettingsError::TokenFile { file, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Settings::from_environment(variable)
    }

    fn token(variables: &[(&str, &str)]) -> Option<String> {
        settings(variables).unwrap().token.map(|Token(token)| token)
    }

    #[test]
    fn the_token_is_found_where_the_hub_s_client_stores_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap();
        std::fs::create_dir_all(home.path().join(".cache/huggingface")).unwrap();
        std::fs::create_dir_all(home.path().join("huggingface")).unwrap();
        for (file, token) in
            [("token", "hf_home"), (".cache/huggingface/token", "hf_user"), ("huggingface/token", "hf_xdg")]
        {
            std::fs::write(home.path().join(file), format!("{token}\n")).unwrap();
        }
        let (hf, xdg, user) = (("HF_HOME", path), ("XDG_CACHE_HOME", path), ("HOME", path));
        assert_eq!(token(&[("HF_TOKEN", " hf_variable "), hf]).unwrap(), "hf_variable");
        assert_eq!(token(&[("HF_TOKEN", ""), hf, xdg, user]).unwrap(), "hf_home");
        assert_eq!(token(&[xdg, user]).unwrap(), "hf_xdg");
        assert_eq!(token(&[user]).unwrap(), "hf_user");
        assert_eq!(token(&[("HF_HOME", "/nowhere/at/all")]), None);
    }

    #[test]
    fn a_token_that_cannot_be_read_keeps_its_cause() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("token")).unwrap();
        let error = settings(&[("HF_HOME", home.path().to_str().unwrap())]).unwrap_err();
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::IsADirectory));
        let text = crate::error_text(&error);
        let path = home.path().join("token");
        assert_eq!(text, format!("cannot read the hub's token from {}: is a directory", path.display()));
    }

    #[test]
    fn the_token_is_never_shown() {
        let shown = format!("{:?}", settings(&[("HF_TOKEN", "hf_secret")]).unwrap());
        assert!(!shown.contains("hf_secret"), "{shown}");
        let broken = settings(&[("HF_TOKEN", "hf_sec\nret")]).unwrap_err().to_string();
        assert!(!broken.contains("hf_sec"), "{broken}");
    }

    #[test]
    fn an_endpoint_that_is_no_address_is_refused() {
        assert_eq!(settings(&[]).unwrap().endpoint.as_str(), "https://huggingface.co/");
        for endpoint in ["mirror.example", "ftp://mirror.example", "file:///etc"] {
            let error = settings(&[("HF_ENDPOINT", endpoint)]).unwrap_err().to_string();
            assert!(error.contains("HF_ENDPOINT is not an http address") && error.contains("hint:"), "{error}");
        }
        for endpoint in ["https://user:s3cret@mirror.example", "https://s3cret@mirror.example", "s3cret"] {
            let error = settings(&[("HF_ENDPOINT", endpoint)]).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
