//! The Hugging Face Hub, by its documented HTTP interface: what a repository holds at a revision, and its files' bytes.
//!
//! This file speaks HTTP and knows the hub's words; `download` brings files to disk. Neither knows what a detector is.
//! Everything here blocks; a command runs it on a thread that may.
//!
//! The token goes to the endpoint's own origin and nowhere else: large files are redirected to other hosts, with the
//! permission in the address.

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

pub use download::{Fetched, Folder};
pub use settings::Settings;

/// A listing of a few thousand files is a megabyte.
const MAX_LISTING_BYTES: u64 = 16 << 20;
const MAX_REDIRECTS: u32 = 8;
/// No model that this program can run comes near; a listing that promises more is a mistake or an attack.
const MAX_FILE_BYTES: u64 = 32 << 30;
/// A download slower than this is given up: the deadline of a file follows from its size.
const LEAST_BYTES_PER_SECOND: u64 = 32 << 10;

/// A repository of models at a revision: `hf://owner/name` or `hf://owner/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Whose it is.
    pub owner: String,
    /// What it is called.
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
            // The hub's own alphabet for both.
            let is_plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if part.is_empty() || !is_plain || part.chars().all(|c| c == '.') {
                return Err(format!("\"{part}\" is not a name on the hub; {form}"));
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

/// What a file's bytes must hash to.
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
    /// Relative to the repository, checked to stay beneath any folder it is joined to.
    pub path: PathBuf,
    /// Its length.
    pub size_bytes: u64,
    /// What it must hash to.
    pub checksum: Checksum,
}

/// What a repository holds at a commit.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Whose, which, and the commit that the revision stood for.
    pub repository: Repository,
    /// Every file.
    pub files: Vec<RemoteFile>,
}

/// Why something cannot be had from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The settings do not make sense.
    #[error("{0}")]
    Settings(String),
    /// 401 or 403.
    #[error("{url}: the hub refuses ({status}{said}): {what}")]
    Denied {
        /// What was asked for.
        url: String,
        /// 401 or 403.
        status: u16,
        /// The hub's own words in quotes, or nothing.
        said: String,
        /// What to do, which hangs on whether there was a token.
        what: &'static str,
    },
    /// 404.
    #[error(
        "{url}: there is no such model, revision or file (404{said})\n  hint: check owner, name and revision; a private model is shown only to a token that may see it (HF_TOKEN)"
    )]
    NotFound {
        /// What was asked for.
        url: String,
        /// The hub's own words in quotes, or nothing.
        said: String,
    },
    /// Any other status.
    #[error("{url}: the hub answers {status}{said}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
        /// The hub's own words in quotes, or nothing.
        said: String,
    },
    /// No answer, or one that broke off.
    #[error(
        "{url}: {error}\n  hint: what has arrived is kept, and the same command goes on from there; HF_ENDPOINT names another hub"
    )]
    Broken {
        /// What was asked for.
        url: String,
        /// What the client says.
        error: String,
    },
    /// An answer that is not the hub's interface, or not safe to follow.
    #[error("{url}: {what}")]
    Unexpected {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// The bytes are not those that the listing promised.
    #[error(
        "{file}: {what}; nothing of it was kept\n  hint: try again; if it stays so, a proxy changes what passes, or the hub's copy is damaged"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// Which promise was broken.
        what: String,
    },
    /// A file of the user's is in the way.
    #[error("{0} is there already with other content\n  hint: move it away, or choose another folder with --to")]
    InTheWay(String),
    /// The disk.
    #[error("writing {file}: {error}")]
    Disk {
        /// The file.
        file: String,
        /// What happened.
        error: io::Error,
    },
}

impl HubError {
    /// Whether another try may do better.
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
        if let Some(why) = no_certificates.filter(|_| settings.endpoint.scheme() == "https") {
            return Err(HubError::Settings(format!(
                "the hub cannot be known: {why}\n  hint: install ca-certificates, or set SSL_CERT_FILE"
            )));
        }
        let config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("pixwarden/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(10).min(settings.stall)))
            .timeout_recv_response(Some(settings.stall))
            .timeout_per_read(Some(settings.stall))
            .http_status_as_error(false)
            // Followed here, where it is decided who sees the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        Ok(Self { settings, agent: config.into() })
    }

    /// What a repository holds, with the commit that its revision stands for.
    ///
    /// # Errors
    /// When it cannot be had, or a file in it cannot be taken safely.
    pub fn list(&self, repository: &Repository) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        let Repository { owner, name, revision } = repository;
        let mut url = self.address(["api", "models", owner, name, "revision", revision]);
        url.set_query(Some("blobs=true"));
        let unexpected = |what: String| HubError::Unexpected { url: url.to_string(), what };
        let text = self.patiently(|| {
            let mut response = self.get(&url, 0, Duration::from_secs(120))?;
            let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_string();
            body.map_err(|e| HubError::Broken { url: url.to_string(), error: e.to_string() })
        })?;
        let info: Info =
            serde_json::from_str(&text).map_err(|e| unexpected(format!("the answer is not the hub's: {e}")))?;
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(unexpected("the answer names no commit".into()));
        }
        let files =
            info.siblings.into_iter().map(|sibling| sibling.file().map_err(unexpected)).collect::<Result<_, _>>()?;
        Ok(Listing { repository: Repository { revision: info.sha, ..repository.clone() }, files })
    }

    /// An address beneath the endpoint, each part encoded as one.
    fn address<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.settings.endpoint.clone();
        // An http address can always have a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Repeats what may pass, with growing pauses.
    fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T, HubError>) -> Result<T, HubError> {
        let mut pauses = crate::retry::Delays::default();
        let mut tries = 1;
        loop {
            match attempt() {
                Err(e) if e.may_pass() && tries < self.settings.tries => {
                    tracing::debug!(error = %e, tries, "trying the hub again");
                    tries += 1;
                    std::thread::sleep(pauses.next_delay());
                }
                result => return result,
            }
        }
    }

    /// An answer with a body: 200, or 206 where bytes from `from` on were asked for and given.
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
            // A redirect's address holds a permission; errors name what was asked for first.
            let response =
                request.call().map_err(|e| HubError::Broken { url: url.to_string(), error: e.to_string() })?;
            if !response.status().is_redirection() {
                return answered(url, response, self.settings.token.is_some());
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let unexpected = |what: &str| HubError::Unexpected { url: url.to_string(), what: what.into() };
            let next = location.and_then(|location| at.join(location).ok());
            let next = next.ok_or_else(|| unexpected("it is redirected to nowhere"))?;
            if next.scheme() != "https" && next.scheme() != endpoint.scheme() {
                return Err(unexpected("it is redirected to an address without encryption"));
            }
            at = next;
        }
        Err(HubError::Unexpected { url: url.to_string(), what: format!("more than {MAX_REDIRECTS} redirects") })
    }
}

fn answered(url: &Url, response: Response<ureq::Body>, had_token: bool) -> Result<Response<ureq::Body>, HubError> {
    let (url, status) = (url.to_string(), response.status().as_u16());
    let words = response.headers().get("x-error-message").and_then(|value| value.to_str().ok());
    // Whoever answers may be anybody: nothing of it may reach a terminal as a command.
    let plain = |words: &str| words.chars().filter(|c| !c.is_control()).take(300).collect::<String>();
    let said = words.map(|words| format!(", \"{}\"", plain(words))).unwrap_or_default();
    Err(match status {
        200 | 206 => return Ok(response),
        401 | 403 => {
            let what = if had_token {
                "the token may not see it\n  hint: accept the model's terms on its page with the account that the token in HF_TOKEN belongs to, or use another token"
            } else {
                "it is gated or private, or it is not there\n  hint: check owner and name; accept the model's terms on its page, and set HF_TOKEN to a token that may read it"
            };
            HubError::Denied { url, status, said, what }
        }
        404 => HubError::NotFound { url, said },
        _ => HubError::Status { url, status, said },
    })
}

/// A file, as the hub's listing writes it.
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
            return Err(format!("it lists a file called {name:?}, which leads out of the folder; nothing was fetched"));
        }
        let is_hex = |digest: &str, digits| digest.len() == digits && digest.chars().all(|c| c.is_ascii_hexdigit());
        let (size, checksum) = match (self.lfs, self.size, self.blob_id) {
            (Some(lfs), ..) if is_hex(&lfs.sha256, 64) => (lfs.size, Checksum::Sha256(lfs.sha256.to_lowercase())),
            (None, Some(size), Some(id)) if is_hex(&id, 40) => (size, Checksum::GitBlob(id.to_lowercase())),
            _ => {
                return Err(format!(
                    "it gives no length or no checksum for {name}, so a download could not be checked"
                ));
            }
        };
        if size > MAX_FILE_BYTES {
            return Err(format!("{name} is said to have {size} bytes, the limit is {MAX_FILE_BYTES}"));
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
