//! A client of the Hugging Face Hub, by its documented HTTP interface: lists the files of a repository at a revision, and
//! downloads them.
//!
//! This file has the HTTP requests, `download` writes to disk. Everything here blocks; a command runs it on a blocking
//! thread.
//!
//! The token is sent to the endpoint's own origin only. Large files are redirected to other hosts, whose addresses contain
//! the permission.

mod download;
mod settings;

use std::io;
use std::path::{Component, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::http::Response;
use url::Url;

use crate::certificates;
use settings::Token;

pub use download::{DownloadFolder, FetchedFile};
pub use settings::{Settings, SettingsError};

/// A listing of a few thousand files is a megabyte.
const MAX_LISTING_BYTES: u64 = 16 << 20;
const MAX_REDIRECTS: u32 = 8;
/// No model that this program can run is nearly as large; a listing with a larger file is a mistake or an attack.
const MAX_FILE_BYTES: u64 = 32 << 30;
/// A slower download is given up: the deadline for a file follows from its size.
const LEAST_BYTES_PER_SECOND: u64 = 32 << 10;

/// A repository of models at a revision: `hf://owner/name` or `hf://owner/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The user or organisation.
    pub owner: String,
    /// The repository's name.
    pub name: String,
    /// A branch, tag or commit; `main` unless given.
    pub revision: String,
}

impl std::str::FromStr for Repository {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "expected hf://owner/name or hf://owner/name@revision";
        let path = text.strip_prefix("hf://").ok_or(form)?;
        let (path, revision) = path.split_once('@').unwrap_or((path, "main"));
        let (owner, name) = path.split_once('/').ok_or(form)?;
        for part in [owner, name] {
            // The characters that the hub allows for both.
            let is_plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if part.is_empty() || !is_plain || part.chars().all(|c| c == '.') {
                return Err(format!("\"{part}\" is not a valid name on the hub; {form}"));
            }
        }
        if revision.is_empty() || revision.contains(char::is_control) {
            return Err(format!("the revision is empty; {form}"));
        }
        Ok(Self { owner: owner.into(), name: name.into(), revision: revision.into() })
    }
}

impl std::fmt::Display for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}@{}", self.owner, self.name, self.revision)
    }
}

/// The hash that a file's bytes must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256 of the bytes: files in large-file storage.
    Sha256(String),
    /// SHA-1 of `blob <length>\0` and the bytes, as git names a file: all others.
    GitBlob(String),
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Relative to the repository; verified to stay below any folder it is joined to.
    pub path: PathBuf,
    /// The file's length.
    pub size_bytes: u64,
    /// The expected hash.
    pub checksum: Checksum,
}

/// The files of a repository at a commit.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The repository, with the commit that the revision stood for.
    pub repository: Repository,
    /// Every file.
    pub files: Vec<RemoteFile>,
}

/// Why a request to the hub or a download failed.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The environment variables are invalid.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// 401 or 403.
    #[error("{url}: the hub denied access ({status}{said}): {what}")]
    Denied {
        /// The requested address.
        url: String,
        /// 401 or 403.
        status: u16,
        /// The hub's message in quotes, or empty.
        said: String,
        /// The likely cause and what to do, depending on whether a token was sent.
        what: &'static str,
    },
    /// 404.
    #[error(
        "{url}: no such model, revision or file (404{said})\n  hint: check owner, name and revision; a private model needs a token that may read it (HF_TOKEN)"
    )]
    NotFound {
        /// The requested address.
        url: String,
        /// The hub's message in quotes, or empty.
        said: String,
    },
    /// Any other status.
    #[error("{url}: the hub responded with {status}{said}")]
    Status {
        /// The requested address.
        url: String,
        /// The status.
        status: u16,
        /// The hub's message in quotes, or empty.
        said: String,
    },
    /// No response, or an incomplete one.
    #[error(
        "{url}: {error}\n  hint: the bytes received are kept, the same command continues from there; HF_ENDPOINT selects another hub"
    )]
    Broken {
        /// The requested address.
        url: String,
        /// Why.
        #[source]
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A response that is not JSON, or not of the form that the interface defines.
    #[error("{url}: the response is not a model listing")]
    Listing {
        /// The requested address.
        url: String,
        /// Why.
        #[source]
        error: serde_json::Error,
    },
    /// A response that is not as the interface defines it, or not safe to use.
    #[error("{url}: {what}")]
    Unexpected {
        /// The requested address.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// The bytes do not match the listing.
    #[error(
        "{file}: the download was deleted: {mismatch}\n  hint: try again; if it fails again, a proxy changes the content, or the hub's copy is damaged"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// What does not match.
        #[source]
        mismatch: Mismatch,
    },
    /// A file with other content has the name of a download.
    #[error("{0} exists with other content\n  hint: move it away, or choose another folder with --to")]
    InTheWay(String),
    /// The file or folder cannot be written.
    #[error("cannot write {file}: {error}")]
    Disk {
        /// The file.
        file: String,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// How the bytes of a file differ from the listing.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// More bytes arrive than the listing says.
    #[error("it is longer than the {expected} bytes of the listing")]
    TooLong {
        /// According to the listing.
        expected: u64,
    },
    /// The length is another one.
    #[error("it has {found} bytes, but {expected} according to the listing")]
    Length {
        /// Of the file.
        found: u64,
        /// According to the listing.
        expected: u64,
    },
    /// The checksum is another one.
    #[error("its {kind} is {found}, but {expected} according to the listing")]
    Checksum {
        /// For people.
        kind: &'static str,
        /// Of the file.
        found: String,
        /// According to the listing.
        expected: String,
    },
}

impl HubError {
    /// Whether a retry may succeed.
    fn may_pass(&self) -> bool {
        match self {
            Self::Broken { .. } => true,
            Self::Status { status, .. } => *status == 408 || *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

/// A client of the hub.
pub struct Hub {
    settings: Settings,
    agent: Agent,
}

impl Hub {
    /// A client that trusts the system's certificates.
    ///
    /// # Errors
    /// When the system has none, and the endpoint needs them.
    pub fn new(settings: Settings) -> Result<Self, HubError> {
        let (tls, no_certificates) = certificates::of_the_system();
        if let Some(missing) = no_certificates.filter(|_| settings.endpoint.scheme() == "https") {
            return Err(SettingsError::from(missing).into());
        }
        let config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("pixwarden/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(10).min(settings.stall)))
            .timeout_recv_response(Some(settings.stall))
            .timeout_per_read(Some(settings.stall))
            .http_status_as_error(false)
            // Redirects are followed by `get`, which decides where the token is sent.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        Ok(Self { settings, agent: config.into() })
    }

    /// The files of a repository, with the commit that its revision stands for.
    ///
    /// # Errors
    /// When the request fails, or a file's name or checksum is not safe to use.
    pub fn list(&self, repository: &Repository) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct ModelInfo {
            sha: String,
            siblings: Vec<Sibling>,
        }
        let Repository { owner, name, revision } = repository;
        let mut url = self.address(["api", "models", owner, name, "revision", revision]);
        url.set_query(Some("blobs=true"));
        let unexpected = |what: String| HubError::Unexpected { url: url.to_string(), what };
        let text = self.retrying(|| {
            let mut response = self.get(&url, 0, Duration::from_secs(120))?;
            let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_string();
            body.map_err(|error| HubError::Broken { url: url.to_string(), error: error.into() })
        })?;
        let info: ModelInfo =
            serde_json::from_str(&text).map_err(|error| HubError::Listing { url: url.to_string(), error })?;
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(unexpected("the response names no commit".into()));
        }
        let files =
            info.siblings.into_iter().map(|sibling| sibling.file().map_err(unexpected)).collect::<Result<_, _>>()?;
        Ok(Listing { repository: Repository { revision: info.sha, ..repository.clone() }, files })
    }

    /// An address below the endpoint; each part is percent-encoded.
    fn address<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.settings.endpoint.clone();
        // This never fails for an http address.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Retries temporary failures, with growing pauses.
    fn retrying<T>(&self, mut attempt: impl FnMut() -> Result<T, HubError>) -> Result<T, HubError> {
        let mut pauses = crate::retry::Delays::default();
        let mut attempts = 1;
        loop {
            match attempt() {
                Err(e) if e.may_pass() && attempts < self.settings.attempts => {
                    tracing::debug!(error = %e, attempts, "request to the hub failed, retrying");
                    attempts += 1;
                    std::thread::sleep(pauses.next_delay());
                }
                result => return result,
            }
        }
    }

    /// A response with a body: 200, or 206 with the bytes from `from` on.
    fn get(&self, url: &Url, from: u64, deadline: Duration) -> Result<Response<ureq::Body>, HubError> {
        let endpoint = &self.settings.endpoint;
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(at.as_str()).config().timeout_global(Some(deadline)).build();
            let token = self.settings.token.as_ref().filter(|_| at.origin() == endpoint.origin());
            if let Some(Token(token)) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            // The address of a redirect contains a permission: errors name the requested address instead.
            let response =
                request.call().map_err(|error| HubError::Broken { url: url.to_string(), error: error.into() })?;
            if !response.status().is_redirection() {
                return check_status(url, response, self.settings.token.is_some());
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let unexpected = |what: &str| HubError::Unexpected { url: url.to_string(), what: what.into() };
            let next = location.and_then(|location| at.join(location).ok());
            let next = next.ok_or_else(|| unexpected("redirected without an address"))?;
            if next.scheme() != "https" && next.scheme() != endpoint.scheme() {
                return Err(unexpected("redirected to an address without encryption"));
            }
            at = next;
        }
        Err(HubError::Unexpected { url: url.to_string(), what: format!("more than {MAX_REDIRECTS} redirects") })
    }
}

fn check_status(url: &Url, response: Response<ureq::Body>, had_token: bool) -> Result<Response<ureq::Body>, HubError> {
    let (url, status) = (url.to_string(), response.status().as_u16());
    let words = response.headers().get("x-error-message").and_then(|value| value.to_str().ok());
    // The message is untrusted: a terminal would execute its control characters.
    let plain = |words: &str| words.chars().filter(|c| !c.is_control()).take(300).collect::<String>();
    let said = words.map(|words| format!(", \"{}\"", plain(words))).unwrap_or_default();
    Err(match status {
        200 | 206 => return Ok(response),
        401 | 403 => {
            let what = if had_token {
                "the token has no access\n  hint: accept the model's terms on its page with the account of the token in HF_TOKEN, or use another token"
            } else {
                "the model is gated or private, or does not exist\n  hint: check owner and name; accept the model's terms on its page, and set HF_TOKEN to a token that may read it"
            };
            HubError::Denied { url, status, said, what }
        }
        404 => HubError::NotFound { url, said },
        _ => HubError::Status { url, status, said },
    })
}

/// A file as the hub's listing has it.
#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Sibling {
    fn file(self) -> Result<RemoteFile, String> {
        let name = &self.rfilename;
        let path = PathBuf::from(name);
        let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !is_plain || name.contains(|c: char| c.is_control() || c == '\\') {
            return Err(format!(
                "the listing has a file {name:?}, which leads out of the folder; nothing was downloaded"
            ));
        }
        let is_hex = |digest: &str, digits| digest.len() == digits && digest.chars().all(|c| c.is_ascii_hexdigit());
        let (size, checksum) = match (self.lfs, self.size, self.blob_id) {
            (Some(lfs), ..) if is_hex(&lfs.sha256, 64) => (lfs.size, Checksum::Sha256(lfs.sha256.to_lowercase())),
            (None, Some(size), Some(id)) if is_hex(&id, 40) => (size, Checksum::GitBlob(id.to_lowercase())),
            _ => {
                return Err(format!(
                    "the listing has no length or no checksum for {name}, so a download cannot be verified"
                ));
            }
        };
        if size > MAX_FILE_BYTES {
            return Err(format!("{name} has {size} bytes according to the listing, the limit is {MAX_FILE_BYTES}"));
        }
        Ok(RemoteFile { path, size_bytes: size, checksum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_names_owner_name_and_revision() {
        let parse = |text: &str| text.parse::<Repository>();
        let plain = parse("hf://Sumsub/Sumsub-ffs-synthetic-2.0").unwrap();
        assert_eq!(plain.to_string(), "Sumsub/Sumsub-ffs-synthetic-2.0@main");
        assert_eq!(parse("hf://a/b@refs/pr/1").unwrap().revision, "refs/pr/1");
        for wrong in ["a/b", "hf://a", "hf://a/b/c", "hf://../b", "hf://a/..", "hf:///b", "hf://a/b@", "hf://a/b c"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_without_a_safe_name_or_a_checksum_is_refused() {
        let read = |json: &str| serde_json::from_str::<Sibling>(json).unwrap().file();
        let blob = r#""size": 3, "blobId": "0123456789012345678901234567890123456789""#;
        assert!(read(&format!(r#"{{"rfilename": "onnx/model.onnx", {blob}}}"#)).is_ok());
        for name in ["../x", "/x", "a/../../x", "..", "", "a\\\\b", "a\\nb", "./x/.."] {
            assert!(read(&format!(r#"{{"rfilename": "{name}", {blob}}}"#)).is_err(), "{name}");
        }
        for facts in [
            r#""size": 3"#,
            r#""size": 3, "blobId": "xyz""#,
            r#""lfs": {"sha256": "00", "size": 3}"#,
            r#""size": 99999999999999, "blobId": "0123456789012345678901234567890123456789""#,
        ] {
            assert!(read(&format!(r#"{{"rfilename": "x", {facts}}}"#)).is_err(), "{facts}");
        }
    }
}
