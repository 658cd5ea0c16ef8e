//! Sends one request to an endpoint.
//!
//! The URL is the operator's own, and may name a host of the internal network. So nothing that a response says is followed:
//! a redirect is a failure, and of the body only the beginning is read, for the error.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use ureq::Agent;
use ureq::http::StatusCode;

use super::options::Endpoint;
use super::signature::signatures;
use crate::certificates::{self, NoCertificates};
use crate::error_text::{Described, error_text};

/// The time for one request, from the look-up of the name to the end of the response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest that an endpoint is left alone because it asks for it.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);
const MAX_RESPONSE_BYTES: u64 = 4 << 10;
/// Characters of a response that an error has.
const MAX_SAID: usize = 200;
/// A CloudEvent in structured mode.
const CONTENT_TYPE: &str = "application/cloudevents+json";

/// What is sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// The same in every attempt.
    pub id: String,
    pub body: String,
}

/// Why an endpoint did not accept a request.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("HTTP status {status}{said}")]
    Refused {
        status: u16,
        /// Why that is a failure or the beginning of the body, or empty.
        said: String,
        /// How long the endpoint asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// No response, or none in time.
    #[error("{0}")]
    NoResponse(#[source] Described),
}

impl SendError {
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::NoResponse(_) => None,
        }
    }

    /// How long the endpoint asks to be left alone, bounded.
    pub(super) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::NoResponse(_) => None,
        }
    }

    /// Whether the endpoint says that it will never take anything again.
    pub(super) const fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { status: 410, .. })
    }
}

/// Sends requests.
#[async_trait]
pub(super) trait Client: Send + Sync {
    /// Sends a request once, and returns the status of its success.
    async fn send(&self, endpoint: &Arc<Endpoint>, request: Request) -> Result<u16, SendError>;
}

/// A client that trusts the system's certificates.
pub struct WebhookClient {
    agent: Agent,
    no_certificates: Option<Arc<NoCertificates>>,
}

impl Default for WebhookClient {
    fn default() -> Self {
        let (tls, no_certificates) = certificates::of_the_system();
        let config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("pixwarden/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(REQUEST_TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        Self { agent: config.into(), no_certificates: no_certificates.map(Arc::new) }
    }
}

impl WebhookClient {
    /// Why no endpoint with https can be reached, if so.
    #[must_use]
    pub fn no_certificates(&self) -> Option<Arc<NoCertificates>> {
        self.no_certificates.clone()
    }

    /// Sends a request once, and returns the status of its success.
    ///
    /// # Errors
    /// For every other response, and for none.
    pub async fn post(&self, endpoint: &Arc<Endpoint>, request: Request) -> Result<u16, SendError> {
        self.send(endpoint, request).await
    }

    /// Asks an endpoint for nothing, to find out whether its host responds. Returns the status, which may be any.
    ///
    /// # Errors
    /// When there is no response.
    pub async fn probe(&self, endpoint: &Arc<Endpoint>) -> Result<u16, SendError> {
        let (agent, endpoint) = (self.agent.clone(), Arc::clone(endpoint));
        blocking(move || {
            let response = agent.head(endpoint.url.as_str()).call().map_err(no_response)?;
            Ok(response.status().as_u16())
        })
        .await
    }
}

#[async_trait]
impl Client for WebhookClient {
    async fn send(&self, endpoint: &Arc<Endpoint>, request: Request) -> Result<u16, SendError> {
        let (agent, endpoint) = (self.agent.clone(), Arc::clone(endpoint));
        blocking(move || send(&agent, &endpoint, &request)).await
    }
}

async fn blocking<T: Send + 'static>(
    request: impl FnOnce() -> Result<T, SendError> + Send + 'static,
) -> Result<T, SendError> {
    let ended = tokio::task::spawn_blocking(request).await;
    ended.unwrap_or_else(|e| {
        Err(SendError::NoResponse(Described::new("the program panicked while it sent the request", e)))
    })
}

fn send(agent: &Agent, endpoint: &Endpoint, request: &Request) -> Result<u16, SendError> {
    let timestamp = OffsetDateTime::now_utc().unix_timestamp();
    let sent = agent
        .post(endpoint.url.as_str())
        .header("content-type", CONTENT_TYPE)
        .header("webhook-id", &request.id)
        .header("webhook-timestamp", timestamp.to_string())
        .header("webhook-signature", signatures(&endpoint.keys, &request.id, timestamp, &request.body))
        .send(request.body.as_bytes());
    let mut response = sent.map_err(no_response)?;
    let status = response.status();
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
    let retry_after = retry_after.and_then(|text| wait(text, OffsetDateTime::now_utc()));
    // What cannot be read is not needed; reading to the end lets the connection be used again.
    let mut body = Vec::new();
    let read = response.body_mut().as_reader().take(MAX_RESPONSE_BYTES).read_to_end(&mut body);
    if status.is_success() {
        return Ok(status.as_u16());
    }
    let said = if status.is_redirection() {
        ": redirects are not followed".into()
    } else if status == StatusCode::GONE {
        ": the endpoint is gone".into()
    } else {
        read.map(|_| beginning(&body)).unwrap_or_default()
    };
    Err(SendError::Refused { status: status.as_u16(), said, retry_after })
}

/// How long a `Retry-After` asks to wait: seconds, or until a date. Other texts ask for nothing.
fn wait(text: &str, now: OffsetDateTime) -> Option<Duration> {
    let asked = match text.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => Duration::try_from(OffsetDateTime::parse(text.trim(), &Rfc2822).ok()? - now).ok()?,
    };
    Some(asked.min(MAX_RETRY_AFTER))
}

fn no_response(error: ureq::Error) -> SendError {
    SendError::NoResponse(Described::new(error_text(&error) + certificates::hint(&error), error))
}

/// The beginning of a response on one line, in quotes.
fn beginning(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line: String = words.collect::<Vec<_>>().join(" ").chars().take(MAX_SAID).collect();
    if line.is_empty() { line } else { format!(", \"{line}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_can_ask_for_a_bounded_wait_in_seconds_or_until_a_date() {
        let now = time::macros::datetime!(2026-11-30 22:00:00 UTC);
        for (text, asked) in [
            ("120", Some(Duration::from_secs(120))),
            (" 0 ", Some(Duration::ZERO)),
            ("Mon, 30 Nov 2026 22:02:00 GMT", Some(Duration::from_secs(120))),
            ("Mon, 30 Nov 2026 21:59:00 GMT", None),
            ("31536000", Some(MAX_RETRY_AFTER)),
            ("Tue, 30 Nov 2027 22:00:00 GMT", Some(MAX_RETRY_AFTER)),
            ("-5", None),
            ("99999999999999999999", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(wait(text, now), asked, "{text}");
        }
    }

    #[test]
    fn what_an_endpoint_says_is_cut_and_on_one_line() {
        assert_eq!(beginning(b"  not\r\n\0now\x1b[31m "), ", \"not now [31m\"");
        assert_eq!(beginning(b" \n "), "");
        assert_eq!(beginning("é".repeat(300).as_bytes()).chars().count(), MAX_SAID + 4);
    }
}
