//! `POST /` for clients of Amazon Rekognition: `DetectModerationLabels`, as AWS's SDKs send it (AWS JSON 1.1).
//!
//! To such a client an empty list means that the image is clean. So the list is empty only where the outcome is `passed`:
//! an image that was not screened is an error, and whatever did not pass has at least one label.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::App;
use super::access::{Caller, Refusal, Screen, SignedRequest};
use super::body::{self, Sent};
use super::problem::Problem;
use super::routes::Answer;
use super::screen::{in_time, overload, screen_sent};
use crate::objects::{Upload, UploadSize};

const TARGET: &str = "x-amz-target";
const SERVICE: &str = "RekognitionService.";
const OPERATION: &str = "DetectModerationLabels";
/// AWS's default.
const DEFAULT_MIN_CONFIDENCE: f64 = 50.0;
/// The label of an image that no rule says anything of although it did not pass.
const UNSCREENED: &str = "Unscreened";
/// What a request may hold besides the image, which is in base64.
const MAX_FIELDS_BYTES: u64 = 64 << 10;

/// The part of a request that is understood. A field that would be ignored is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Detect {
    image: Image,
    min_confidence: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Image {
    /// Some clients escape characters of base64, so that it is no part of the body as it stands.
    bytes: Option<String>,
    #[serde(rename = "S3Object")]
    object: Option<Object>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Object {
    bucket: String,
    name: String,
    version: Option<String>,
}

/// An error by its AWS name.
struct AwsError {
    status: StatusCode,
    name: &'static str,
    message: String,
}

impl AwsError {
    fn new(name: &'static str, message: impl Into<String>) -> Self {
        let status = match name {
            "InternalServerError" | "ThrottlingException" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
        Self { status, name, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterException", message)
    }
}

impl From<Problem> for AwsError {
    fn from(problem: Problem) -> Self {
        let name = match problem.status() {
            StatusCode::FORBIDDEN => "AccessDeniedException",
            StatusCode::PAYLOAD_TOO_LARGE => "ImageTooLargeException",
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::GONE => {
                "InvalidParameterException"
            }
            // A client tries again later.
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => {
                "ThrottlingException"
            }
            _ => "InternalServerError",
        };
        Self::new(name, problem.detail())
    }
}

impl From<Refusal> for AwsError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing(what) => Self::new("MissingAuthenticationTokenException", what),
            Refusal::UnknownKey => Self::new("UnrecognizedClientException", "the access key id is not known"),
            Refusal::Wrong(what) => Self::new("InvalidSignatureException", what),
            Refusal::TooMany(delay) => {
                let what = format!("too many requests; try again in {} ms", delay.as_millis());
                Self::new("ThrottlingException", what)
            }
        }
    }
}

impl IntoResponse for AwsError {
    fn into_response(self) -> Response {
        answer_json(self.status, &json!({"__type": self.name, "Message": self.message, "message": self.message}))
    }
}

fn answer_json(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], body.to_string()).into_response()
}

/// Answers what an SDK sends.
pub(super) async fn answer(app: Arc<App>, request: Request) -> Answer {
    let target = request.headers().get(TARGET).and_then(|target| target.to_str().ok()).map(str::to_owned);
    let Some(target) = target else {
        return Err(Problem::not_found("POST / is for clients of Amazon Rekognition; images go to POST /v1/screen"));
    };
    let answered = match target.strip_prefix(SERVICE) {
        Some(OPERATION) => detect(&app, request).await,
        _ => {
            let what = format!("{} is not answered here, only {OPERATION}", target.escape_debug());
            Err(AwsError::new("UnknownOperationException", what))
        }
    };
    Ok(answered.unwrap_or_else(|error| {
        tracing::info!(error = error.name, detail = error.message, "request of an AWS client refused");
        error.into_response()
    }))
}

async fn detect(app: &App, request: Request) -> Result<Response, AwsError> {
    let deadline = app.time_limit(request.headers())?;
    let began = Instant::now();
    app.access.check_signed_head(request.headers())?;
    let Some(_place) = app.take_place() else { return Err(overload().into()) };
    let (head, body) = request.into_parts();
    let at_most = app.processor.fetcher.max_object_bytes().div_ceil(3).saturating_mul(4) + MAX_FIELDS_BYTES;
    // All SDKs send it. Without it three times the largest request would have to be reserved.
    let Some(bytes) = body::announced_bytes(&head.headers)? else {
        return Err(AwsError::invalid("the request has no Content-Length"));
    };
    if bytes > at_most {
        return Err(AwsError::new("ImageTooLargeException", "the image is larger than the limit"));
    }
    let limit = Duration::from_millis(app.options.body_timeout_ms.into());
    // The body, its text and the image are in memory at the same time.
    let size = UploadSize::Announced { bytes, reserved: bytes.saturating_mul(3) };
    let received = body::receive(&app.processor, body.into_data_stream(), size);
    let body = body::in_time(limit, received).await?;
    let signed = SignedRequest { method: &head.method, uri: &head.uri, headers: &head.headers, body: body.bytes() };
    let caller = app.access.recognise_signed(&signed)?;
    let detect: Detect = serde_json::from_slice(body.bytes())
        .map_err(|error| AwsError::invalid(format!("the request cannot be read: {}", body::cut(&error.to_string()))))?;
    let least = detect.min_confidence.unwrap_or(DEFAULT_MIN_CONFIDENCE);
    if !(0.0..=100.0).contains(&least) {
        return Err(AwsError::invalid("MinConfidence must be between 0 and 100"));
    }
    let (sent, is_reference) = sent(app, &caller, detect.image, body)?;
    let screened = screen_sent(app, &caller, &head.headers, sent, began + deadline);
    let verdict = in_time(deadline, screened).await?;
    Ok(answer_json(StatusCode::OK, &labels(&verdict, least, is_reference)?))
}

/// The image of a request, and whether it is a reference.
fn sent(app: &App, caller: &Caller<Screen>, image: Image, sent_body: Upload) -> Result<(Sent, bool), AwsError> {
    match image {
        Image { bytes: Some(text), object: None } => {
            let image =
                STANDARD.decode(text).map_err(|error| AwsError::invalid(format!("Bytes is no base64: {error}")))?;
            let (length, max) = (image.len() as u64, app.processor.fetcher.max_object_bytes());
            if length > max {
                return Err(body::too_large(format!("the image has {length} bytes, the limit is {max}")).into());
            }
            let upload = sent_body.decoded(image);
            Ok((Sent::Image { upload, fields: Map::new() }, false))
        }
        Image { bytes: None, object: Some(Object { bucket, name, version }) } => {
            let image = json!({"bucket": bucket, "key": name, "version_id": version});
            if !app.processor.fetcher.allows(&bucket) || !caller.may_use_bucket(&bucket) {
                let what = format!("the bucket \"{bucket}\" is not allowed for this key");
                return Err(AwsError::new("AccessDeniedException", what));
            }
            Ok((Sent::Job(Map::from_iter([("image".to_owned(), image)])), true))
        }
        _ => Err(AwsError::invalid("Image needs either Bytes or S3Object")),
    }
}

/// The labels of a verdict, or the error of an image that was not screened.
fn labels(verdict: &Map<String, Value>, least: f64, is_reference: bool) -> Result<Value, AwsError> {
    let text = |field: &str| verdict.get(field).and_then(Value::as_str).unwrap_or_default();
    let reason = text("reason");
    match text("outcome") {
        "passed" | "review" | "flagged" => {}
        "undecodable" => return Err(AwsError::new("InvalidImageFormatException", reason)),
        "missing" => return Err(AwsError::new("InvalidS3ObjectException", reason)),
        "rejected" if is_reference => return Err(AwsError::new("InvalidS3ObjectException", reason)),
        "rejected" => return Err(AwsError::invalid(reason)),
        _ => return Err(AwsError::new("InternalServerError", reason)),
    }
    let mut labels: BTreeMap<(String, String), f64> = BTreeMap::new();
    let findings = verdict.get("findings").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    // What a person has cleared is no label.
    let is_cleared = |finding: &&Value| finding["outcome"] == "noted" && finding["source"] == "decision";
    for finding in findings.iter().filter(|finding| !is_cleared(finding)) {
        // What is certain, as the match of a list, has no score.
        let confidence = finding["score"].as_f64().map_or(100.0, |score| score * 100.0);
        // A client must see all that the policy did not let pass, whatever it asks for.
        if finding["outcome"] == "noted" && confidence < least {
            continue;
        }
        for (name, parent) in names(finding) {
            let known = labels.entry((parent, name)).or_default();
            *known = known.max(confidence);
        }
    }
    if labels.is_empty() && verdict.get("allow") != Some(&Value::Bool(true)) {
        labels.insert((String::new(), UNSCREENED.into()), 100.0);
    }
    let level = |parent: &str| if parent.is_empty() { 1 } else { 2 + parent.matches('/').count() };
    let mut list: Vec<Value> = labels
        .iter()
        .map(|((parent, name), confidence)| {
            json!({"Name": name, "ParentName": parent, "Confidence": confidence, "TaxonomyLevel": level(parent)})
        })
        .collect();
    list.sort_by_key(|label| label["TaxonomyLevel"].as_u64());
    let policy = verdict.get("policy").map_or("", |policy| policy["name"].as_str().unwrap_or_default());
    Ok(json!({"ModerationLabels": list, "ModerationModelVersion": policy, "ContentTypes": []}))
}

/// The labels of a finding with their parents: each part of its category, or what made the finding.
fn names(finding: &Value) -> Vec<(String, String)> {
    let Some(category) = finding["category"].as_str() else {
        let named = ["label", "bank", "rule", "source"].iter().find_map(|field| finding[*field].as_str());
        return vec![(named.unwrap_or(UNSCREENED).to_owned(), String::new())];
    };
    let ends = category.match_indices('/').map(|(at, _)| at).chain([category.len()]);
    let part = |end: usize| match category[..end].rsplit_once('/') {
        Some((parent, name)) => (name.to_owned(), parent.to_owned()),
        None => (category[..end].to_owned(), String::new()),
    };
    ends.map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(outcome: &str, findings: &Value) -> Map<String, Value> {
        let verdict = json!({
            "outcome": outcome, "allow": outcome == "passed", "reason": "why", "findings": findings,
            "policy": {"name": "default"},
        });
        match verdict {
            Value::Object(verdict) => verdict,
            _ => unreachable!(),
        }
    }

    fn answered(outcome: &str, findings: &Value, least: f64) -> Result<Vec<(String, f64)>, &'static str> {
        let answer = labels(&verdict(outcome, findings), least, true).map_err(|error| error.name)?;
        let label = |label: &Value| {
            let name = format!("{}>{}", label["ParentName"].as_str().unwrap(), label["Name"].as_str().unwrap());
            (name, label["Confidence"].as_f64().unwrap())
        };
        Ok(answer["ModerationLabels"].as_array().unwrap().iter().map(label).collect())
    }

    #[test]
    fn a_list_is_empty_only_for_an_image_that_passed() {
        assert_eq!(answered("passed", &json!([]), 50.0).unwrap(), []);
        let cleared = json!([{"category": "sexual", "outcome": "noted", "source": "decision"}]);
        assert_eq!(answered("passed", &cleared, 50.0).unwrap(), []);
        let unseen = vec![(">Unscreened".to_owned(), 100.0)];
        assert_eq!(answered("review", &json!([]), 50.0).unwrap(), unseen);
        assert_eq!(answered("flagged", &json!(null), 50.0).unwrap(), unseen);
        for (outcome, error) in [
            ("undecodable", "InvalidImageFormatException"),
            ("missing", "InvalidS3ObjectException"),
            ("rejected", "InvalidS3ObjectException"),
            ("failed", "InternalServerError"),
            ("", "InternalServerError"),
        ] {
            assert_eq!(answered(outcome, &json!([]), 0.0).unwrap_err(), error);
        }
    }

    #[test]
    fn categories_become_labels_and_a_client_cannot_ask_away_what_was_flagged() {
        let findings = json!([
            {"category": "sexual/nudity", "outcome": "flagged", "score": 0.25, "label": "nude"},
            {"category": "sexual", "outcome": "noted", "score": 0.75},
            {"outcome": "noted", "score": 0.5, "label": "by AI"},
            {"outcome": "review", "source": "bank", "bank": "known"},
        ]);
        let expected = [
            (">by AI".to_owned(), 50.0),
            (">known".to_owned(), 100.0),
            (">sexual".to_owned(), 75.0),
            ("sexual>nudity".to_owned(), 25.0),
        ];
        assert_eq!(answered("flagged", &findings, 50.0).unwrap(), expected);
        let strict = answered("flagged", &findings, 99.0).unwrap();
        assert_eq!(
            strict,
            [(">known".to_owned(), 100.0), (">sexual".to_owned(), 25.0), ("sexual>nudity".to_owned(), 25.0)]
        );
    }
}
