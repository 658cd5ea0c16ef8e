//! Who asks, and what they may do.
//!
//! A machine sends a key. A person on the same machine opens a link that is printed once. A [`Caller`] can only be made in
//! here, with the scope that its route needs: a handler that forgets to ask for one does not compile.

mod keys;
mod link;
mod signature;

use std::marker::PhantomData;
use std::sync::Arc;

use axum::http::{HeaderMap, Method, StatusCode, header};
use time::OffsetDateTime;
use wildmatch::WildMatch;

use super::options::{HttpConfig, Scope};
use super::problem::Problem;
use keys::Keys;
pub use keys::{NewKey, new_key};
pub use link::{Link, SESSION_COOKIE};
use signature::SigningKeys;
pub use signature::{Refusal, SignedRequest};

/// The name of callers without a key, in ids of jobs and in the log.
pub const LOCAL_NAME: &str = "local";

/// What a route needs, as a type: any of these scopes. `admin` always is enough.
pub trait NeededScope: Send + Sync + 'static {
    const ANY_OF: &'static [Scope];
}

macro_rules! needed_scopes {
    ($($(#[$doc:meta])* $name:ident: $($scope:ident),+;)+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $name;

            impl NeededScope for $name {
                const ANY_OF: &'static [Scope] = &[$(Scope::$scope),+];
            }
        )+
    };
}
needed_scopes! {
    /// Sends images.
    Screen: Screen;
    /// Reads verdicts: all of its buckets, or only its own ones. See [`Caller::may_read`].
    Look: Screen, Read, Decide;
    /// Reads what is open for review.
    Browse: Read, Decide;
    /// Claims review items and decides.
    Judge: Decide;
    /// Reports images: those of its buckets, or only its own ones.
    Report: Screen, Decide;
}

/// A caller that was recognised.
#[derive(Debug)]
pub struct Identity {
    name: String,
    scopes: Vec<Scope>,
    buckets: Vec<WildMatch>,
    policies: Vec<String>,
}

impl Identity {
    fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

/// A caller that has the scope `S`.
#[derive(Debug, Clone)]
pub struct Caller<S> {
    identity: Arc<Identity>,
    scope: PhantomData<S>,
}

impl<S: NeededScope> Caller<S> {
    pub(super) fn new(identity: Arc<Identity>) -> Result<Self, Problem> {
        if S::ANY_OF.iter().any(|scope| identity.has(*scope)) {
            return Ok(Self { identity, scope: PhantomData });
        }
        let scopes: Vec<_> = S::ANY_OF.iter().map(|scope| format!("\"{}\"", scope.as_str())).collect();
        let what = format!("the key \"{}\" does not have the scope {}", identity.name, scopes.join(" or "));
        Err(Problem::forbidden(what))
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// An id of this caller's jobs. No other caller's jobs have it.
    #[must_use]
    pub fn job_id(&self, id: &str) -> String {
        format!("{}:{id}", self.identity.name)
    }

    /// Whether a job was sent by this caller.
    #[must_use]
    pub fn has_sent(&self, job_id: &str) -> bool {
        job_id.strip_prefix(&self.identity.name).is_some_and(|rest| rest.starts_with(':'))
    }

    /// Whether the caller may name this bucket, and read what was found in it.
    #[must_use]
    pub fn may_use_bucket(&self, bucket: &str) -> bool {
        self.identity.buckets.is_empty() || self.identity.buckets.iter().any(|pattern| pattern.matches(bucket))
    }

    /// Whether this policy may judge what the caller sends.
    #[must_use]
    pub fn may_use_policy(&self, policy: &str) -> bool {
        self.identity.policies.is_empty() || self.identity.policies.iter().any(|name| name == policy)
    }

    /// The buckets that the caller is bound to, where `*` stands for any characters. Empty: all.
    #[must_use]
    pub fn buckets(&self) -> Vec<String> {
        self.identity.buckets.iter().map(WildMatch::pattern).collect()
    }

    /// The policies that the caller is bound to. Empty: all.
    #[must_use]
    pub fn policies(&self) -> Vec<String> {
        self.identity.policies.clone()
    }

    /// Whether the caller may read a verdict: on an image in its buckets and by its policies, or on what it has sent.
    #[must_use]
    pub fn may_read(&self, job_id: &str, bucket: &str, policy: &str) -> bool {
        let reads = self.identity.has(Scope::Read) || self.identity.has(Scope::Decide);
        self.has_sent(job_id) || (reads && self.may_use_bucket(bucket) && self.may_use_policy(policy))
    }
}

/// Recognises callers.
pub struct Access {
    keys: Keys,
    signing_keys: SigningKeys,
    /// Only on loopback, and only where no key is configured.
    link: Option<Link>,
    /// By these names browsers reach the pages.
    hosts: Vec<String>,
}

impl Access {
    /// `link` is the way in where no key is configured.
    pub fn new(config: &HttpConfig, link: Option<Link>) -> Self {
        let hosts = config.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { keys: Keys::new(&config.keys), signing_keys: SigningKeys::new(&config.aws_keys), link, hosts }
    }

    /// Recognises who has sent a request.
    ///
    /// # Errors
    /// When the request has neither a valid key nor a session, or another site's page has sent it.
    pub fn recognise(&self, method: &Method, headers: &HeaderMap) -> Result<Arc<Identity>, Problem> {
        if let Some(authorization) = headers.get(header::AUTHORIZATION) {
            let key = authorization.to_str().ok().and_then(bearer);
            return self.keys.recognise(key.unwrap_or_default());
        }
        let Some(link) = &self.link else {
            return Err(unknown("no key was sent: send `Authorization: Bearer KEY`"));
        };
        let Some(identity) = cookie(headers, SESSION_COOKIE).and_then(|session| link.identity(session)) else {
            let what = "there is no session: open the link that Pixwarden has printed at its start, or send `Authorization: Bearer KEY`";
            return Err(unknown(what));
        };
        self.check_browser(method, headers)?;
        Ok(identity)
    }

    /// Recognises who has signed a request (AWS Signature Version 4).
    ///
    /// # Errors
    /// When the signature is not one of a known key.
    pub fn recognise_signed(&self, request: &SignedRequest<'_>) -> Result<Caller<Screen>, Refusal> {
        self.signing_keys.recognise(request, OffsetDateTime::now_utc())
    }

    /// Checks what can be known of a signed request before its body is read.
    ///
    /// # Errors
    /// As [`Access::recognise_signed`], but for the signature itself.
    pub fn check_signed_head(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        self.signing_keys.check_head(headers, OffsetDateTime::now_utc())
    }

    /// Opens the session of the printed link. Returns the value of its cookie.
    ///
    /// # Errors
    /// When the link was used before, or is another one.
    pub fn open_link(&self, headers: &HeaderMap, token: &str) -> Result<String, Problem> {
        self.check_host(headers)?;
        let session = self.link.as_ref().and_then(|link| link.open(token));
        session.ok_or_else(|| {
            unknown("the link is not valid, or it was opened before: start Pixwarden again for another one")
        })
    }

    /// Refuses what a page of another site makes a browser send with this site's cookie.
    fn check_browser(&self, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
        self.check_host(headers)?;
        if *method == Method::GET || *method == Method::HEAD {
            return Ok(());
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, origin)| origin);
        if origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host)) {
            return Ok(());
        }
        Err(Problem::forbidden("the request does not come from this site's pages"))
    }

    /// Refuses requests under another name: a page of another site could have had its name pointed here.
    fn check_host(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let host =
            headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
        let name = host.rsplit_once(':').map_or(host.as_str(), |(name, port)| {
            if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host.as_str() }
        });
        let is_loopback = ["localhost", "127.0.0.1", "[::1]"].contains(&name);
        let is_named = self.hosts.iter().any(|known| *known == host || known == name);
        if is_named || (is_loopback && self.link.is_some()) {
            return Ok(());
        }
        let status = StatusCode::MISDIRECTED_REQUEST;
        Err(Problem::new(status, "unknown_host", format!("\"{host}\" is not among `http.hosts`")))
    }
}

fn unknown(what: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", what)
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, key) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let lines = headers.get_all(header::COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::options::KeyConfig;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    fn access(key: KeyConfig) -> Access {
        Access::new(&HttpConfig { keys: vec![key], ..HttpConfig::default() }, None)
    }

    #[test]
    fn a_key_has_its_scopes_buckets_and_policies_and_no_more() {
        let NewKey { key, sha256 } = new_key();
        let access = access(KeyConfig {
            name: "app".into(),
            sha256,
            scopes: [Scope::Screen].into(),
            buckets: vec!["up*".into()],
            policies: vec!["default".into()],
            per_second: 0,
        });
        let recognise = |value: &str| access.recognise(&Method::POST, &headers(&[(header::AUTHORIZATION, value)]));
        let identity = recognise(&format!("Bearer {key}")).unwrap();
        let caller = Caller::<Screen>::new(Arc::clone(&identity)).unwrap();
        assert!(Caller::<Look>::new(Arc::clone(&identity)).is_ok());
        let reader =
            Identity { name: "r".into(), scopes: vec![Scope::Read], buckets: Vec::new(), policies: Vec::new() };
        assert!(Caller::<Screen>::new(Arc::new(reader)).is_err());
        assert!(caller.may_use_bucket("uploads") && !caller.may_use_bucket("other"));
        assert!(caller.may_use_policy("default") && !caller.may_use_policy("strict"));
        assert!(caller.has_sent("app:1") && !caller.has_sent("apple:1") && !caller.has_sent("app"));
        assert!(caller.may_read("app:1", "other", "strict"), "its own job");
        assert!(!caller.may_read("job", "uploads", "default"), "it does not have the scope to read");
        for wrong in [format!("Bearer {key}x"), "Bearer ".into(), format!("Basic {key}"), key.clone()] {
            assert_eq!(recognise(&wrong).unwrap_err().status(), StatusCode::UNAUTHORIZED, "{wrong}");
        }
        assert!(access.recognise(&Method::GET, &HeaderMap::new()).is_err());
    }

    #[test]
    fn a_link_opens_one_session_which_another_site_cannot_use() {
        let (link, token) = Link::new();
        let access = Access::new(&HttpConfig::default(), Some(link));
        let local = headers(&[(header::HOST, "127.0.0.1:8080")]);
        assert!(access.open_link(&headers(&[(header::HOST, "evil.example")]), &token).is_err());
        assert!(access.open_link(&local, "other").is_err());
        let session = access.open_link(&local, &token).unwrap();
        assert!(access.open_link(&local, &token).is_err(), "a link opens once");
        let cookie = format!("a=b; {SESSION_COOKIE}={session}");
        let ask = |method: Method, host: &str, origin: Option<&str>| {
            let mut sent = headers(&[(header::HOST, host), (header::COOKIE, &cookie)]);
            origin.map(|origin| sent.insert(header::ORIGIN, origin.parse().unwrap()));
            access.recognise(&method, &sent).map(|identity| identity.name.clone())
        };
        assert_eq!(ask(Method::GET, "localhost:8080", None).unwrap(), LOCAL_NAME);
        assert_eq!(ask(Method::POST, "127.0.0.1:8080", Some("http://127.0.0.1:8080")).unwrap(), LOCAL_NAME);
        assert!(ask(Method::POST, "127.0.0.1:8080", None).is_err(), "no origin");
        assert!(ask(Method::POST, "127.0.0.1:8080", Some("http://evil.example")).is_err());
        assert!(ask(Method::POST, "127.0.0.1:8080", Some("null")).is_err());
        assert!(ask(Method::GET, "evil.example", None).is_err(), "a name that was pointed here");
        let other = headers(&[(header::HOST, "localhost"), (header::COOKIE, "pixwarden_session=guess")]);
        assert!(access.recognise(&Method::GET, &other).is_err());
    }
}
