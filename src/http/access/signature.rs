//! AWS Signature Version 4, as clients of Amazon Rekognition sign their requests.
//!
//! The steps are those of "Signature Version 4 signing process" in AWS's reference: a canonical request is hashed into the
//! text that a key signs, and the key is derived from the secret, the day, the region and the service.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Method, Uri};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, PrimitiveDateTime};
use wildmatch::WildMatch;

use super::keys::Rate;
use super::{Caller, Identity, Screen};
use crate::http::options::{AwsKeyConfig, Scope, SecretText};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TIME_FORMAT: &[time::format_description::BorrowedFormatItem<'_>] =
    time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
/// How far the clock of a client may be off. AWS allows as much.
const MAX_SKEW: time::Duration = time::Duration::minutes(5);
/// What a signature must cover, so that a signed request cannot be used for something else.
const COVERED: [&str; 3] = ["host", "x-amz-date", "x-amz-target"];
const SERVICE: &str = "rekognition";

/// A request with a signature.
pub struct SignedRequest<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

/// Why a signature is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no signature, or it cannot be read.
    Missing(String),
    /// No key has this id.
    UnknownKey,
    /// The signature is not that of this request and key.
    Wrong(String),
    /// The key has sent too many requests.
    TooMany(Duration),
}

/// The keys that sign, by their id.
pub(super) struct SigningKeys(HashMap<String, SigningKey>);

struct SigningKey {
    identity: Arc<Identity>,
    secret: SecretText,
    rate: Option<Rate>,
}

impl SigningKeys {
    pub(super) fn new(keys: &[AwsKeyConfig]) -> Self {
        let entry = |key: &AwsKeyConfig| {
            let identity = Identity {
                name: key.name.clone(),
                scopes: vec![Scope::Screen],
                buckets: key.buckets.iter().map(|pattern| WildMatch::new(pattern)).collect(),
                policies: key.policies.clone(),
            };
            let rate = (key.per_second > 0).then(|| Rate::new(key.per_second));
            SigningKey { identity: Arc::new(identity), secret: key.secret_access_key.clone(), rate }
        };
        Self(keys.iter().map(|key| (key.access_key_id.clone(), entry(key))).collect())
    }

    /// Checks all but the signature itself, before the body is read: a caller without a key must not occupy anything.
    pub(super) fn check_head(&self, headers: &HeaderMap, now: OffsetDateTime) -> Result<(), Refusal> {
        self.find(headers, now).map(drop)
    }

    /// The parts of a signature, its time, and the key that it names.
    fn find<'a>(
        &'a self,
        headers: &'a HeaderMap,
        now: OffsetDateTime,
    ) -> Result<(Signature<'a>, &'a str, &'a SigningKey), Refusal> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let Some(signature) = text("authorization").and_then(Signature::parse) else {
            return Err(Refusal::Missing(format!("the request is not signed with {ALGORITHM}")));
        };
        let Some(key) = self.0.get(signature.key_id) else {
            return Err(Refusal::UnknownKey);
        };
        let wrong = |what: &str| Err(Refusal::Wrong(what.to_owned()));
        let Some(time) = text("x-amz-date") else { return wrong("there is no X-Amz-Date") };
        let Ok(signed_at) = PrimitiveDateTime::parse(time, TIME_FORMAT) else {
            return wrong("X-Amz-Date is no time");
        };
        if (now - signed_at.assume_utc()).abs() > MAX_SKEW {
            return wrong("the request was signed at another time than now: check the clock of the client");
        }
        if signature.service != SERVICE || !time.starts_with(signature.day) {
            return wrong("the scope of the signature is another service or another day");
        }
        Ok((signature, time, key))
    }

    pub(super) fn recognise(
        &self,
        request: &SignedRequest<'_>,
        now: OffsetDateTime,
    ) -> Result<Caller<Screen>, Refusal> {
        let (signature, time, SigningKey { identity, secret, rate }) = self.find(request.headers, now)?;
        let wrong = |what: &str| Err(Refusal::Wrong(what.to_owned()));
        let signed: Vec<&str> = signature.signed_headers.split(';').collect();
        if COVERED.iter().any(|name| !signed.contains(name)) {
            return wrong("the signature does not cover host, x-amz-date and x-amz-target");
        }
        let Some(canonical) = canonical_request(request, &signed, signature.signed_headers) else {
            return wrong("a signed header is missing");
        };
        let Signature { day, region, service, .. } = signature;
        let digest = hex::encode(Sha256::digest(canonical));
        let to_sign = format!("{ALGORITHM}\n{time}\n{day}/{region}/{service}/aws4_request\n{digest}");
        let mut key = format!("AWS4{}", secret.expose()).into_bytes();
        for part in [day, region, service, "aws4_request"] {
            key = keyed(&key, part).finalize().into_bytes().to_vec();
        }
        // Compares in constant time.
        let is_right =
            hex::decode(signature.digits).is_ok_and(|sent| keyed(&key, &to_sign).verify_slice(&sent).is_ok());
        if !is_right {
            return wrong("the signature does not match: check the secret access key");
        }
        match rate.as_ref().and_then(|rate| rate.refuse(Instant::now())) {
            Some(delay) => Err(Refusal::TooMany(delay)),
            None => Ok(Caller { identity: Arc::clone(identity), scope: PhantomData }),
        }
    }
}

fn keyed(key: &[u8], text: &str) -> Hmac<Sha256> {
    let mut hmac = match Hmac::<Sha256>::new_from_slice(key) {
        Ok(hmac) => hmac,
        Err(error) => unreachable!("a key may have any length: {error}"),
    };
    hmac.update(text.as_bytes());
    hmac
}

/// The parts of an `Authorization` header.
struct Signature<'a> {
    key_id: &'a str,
    day: &'a str,
    region: &'a str,
    service: &'a str,
    signed_headers: &'a str,
    digits: &'a str,
}

impl<'a> Signature<'a> {
    fn parse(authorization: &'a str) -> Option<Self> {
        let rest = authorization.strip_prefix(ALGORITHM)?;
        let fields: BTreeMap<&str, &str> = rest.split(',').filter_map(|field| field.trim().split_once('=')).collect();
        let credential: Vec<&str> = fields.get("Credential")?.split('/').collect();
        let [key_id, day, region, service, "aws4_request"] = credential[..] else { return None };
        let (signed_headers, digits) = (fields.get("SignedHeaders")?, fields.get("Signature")?);
        Some(Self { key_id, day, region, service, signed_headers, digits })
    }
}

/// The text whose hash is signed. None if a header is missing that the signature covers.
fn canonical_request(request: &SignedRequest<'_>, signed: &[&str], names: &str) -> Option<String> {
    let mut text = format!("{}\n{}\n", request.method, request.uri.path());
    let mut query: Vec<&str> =
        request.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).collect();
    query.sort_unstable();
    text.push_str(&query.join("&"));
    text.push('\n');
    for name in signed {
        let values: Option<Vec<String>> = request
            .headers
            .get_all(*name)
            .iter()
            .map(|value| Some(value.to_str().ok()?.split_whitespace().collect::<Vec<_>>().join(" ")))
            .collect();
        let values = values.filter(|values| !values.is_empty())?;
        writeln!(text, "{name}:{}", values.join(",")).ok()?;
    }
    write!(text, "\n{names}\n{}", hex::encode(Sha256::digest(request.body))).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn keys() -> SigningKeys {
        SigningKeys::new(&[AwsKeyConfig {
            name: "old".into(),
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: SECRET.into(),
            ..AwsKeyConfig::default()
        }])
    }

    /// A request that botocore 1.44.8 has signed with this secret.
    fn headers(signature: &str) -> HeaderMap {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261130/eu-west-1/rekognition/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature={signature}"
        );
        let pairs = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/x-amz-json-1.1"),
            ("host", "127.0.0.1:8080"),
            ("x-amz-date", "20261130T120000Z"),
            ("x-amz-target", "RekognitionService.DetectModerationLabels"),
        ];
        let pair = |(name, value): (&str, &str)| {
            (axum::http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap())
        };
        pairs.map(pair).into_iter().collect()
    }

    fn ask(headers: &HeaderMap, body: &[u8], now: OffsetDateTime) -> Result<String, Refusal> {
        let request = SignedRequest { method: &Method::POST, uri: &Uri::from_static("/"), headers, body };
        keys().recognise(&request, now).map(|caller| caller.name().to_owned())
    }

    #[test]
    fn a_signature_holds_for_its_request_only() {
        let now = time::macros::datetime!(2026-11-30 12:01 UTC);
        let good = headers("c4c1e8a0f002ce67ca8c62eec757488a32c798cc55b808d7e2de8f3d96a90778");
        let body = br#"{"Image": {"Bytes": "aGVsbG8="}}"#;
        assert_eq!(ask(&good, body, now).unwrap(), "old");
        assert!(matches!(ask(&good, b"{}", now), Err(Refusal::Wrong(_))), "another body");
        assert!(matches!(ask(&good, body, now + MAX_SKEW), Err(Refusal::Wrong(_))), "later");
        assert!(matches!(ask(&headers("00"), body, now), Err(Refusal::Wrong(_))));
        let changed = |name: &'static str, value: &str| {
            let mut headers = good.clone();
            headers.insert(name, value.parse().unwrap());
            ask(&headers, body, now)
        };
        assert!(matches!(changed("x-amz-target", "RekognitionService.Other"), Err(Refusal::Wrong(_))));
        assert!(matches!(changed("host", "other"), Err(Refusal::Wrong(_))));
        assert!(matches!(changed("x-amz-date", "20261130T120001Z"), Err(Refusal::Wrong(_))));
        assert!(matches!(changed("authorization", "Bearer x"), Err(Refusal::Missing(_))));
        let authorization = good["authorization"].to_str().unwrap();
        assert_eq!(changed("authorization", &authorization.replace("AKIDEXAMPLE", "OTHER")), Err(Refusal::UnknownKey));
        assert_eq!(keys().check_head(&good, now), Ok(()));
        assert!(
            keys().check_head(&HeaderMap::new(), now).is_err() && keys().check_head(&good, now + MAX_SKEW).is_err()
        );
        let uncovered = authorization.replace(";x-amz-target", "");
        assert!(matches!(changed("authorization", &uncovered), Err(Refusal::Wrong(why)) if why.contains("cover")));
        let other = authorization.replace("/rekognition/", "/s3/");
        assert!(matches!(changed("authorization", &other), Err(Refusal::Wrong(why)) if why.contains("scope")));
    }
}
