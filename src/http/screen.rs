//! `POST /v1/screen`: an image, or a reference to one, becomes a verdict.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::access::{Caller, Screen};
use super::body::{self, Kind, Sent, cut, draining};
use super::jobs;
use super::problem::Problem;
use super::routes::{Answer, is_request_id};
use super::{App, RETRY_AFTER, verdicts};
use crate::job::forms::{self, JOB_KEYS, MessageProperties, Reading};
use crate::job::{INLINE_BUCKET, Job, Lane, Revision, Verdict};
use crate::life::{JobEnd, JobRequest, Pictures, QuarantineRecords};
use crate::objects::{StoreError, Upload};
use crate::screen::decode;
use crate::telemetry::metrics::{self, GaugeGuard};
use crate::telemetry::traces::{self, TraceContext};
use crate::telemetry::with_stage_times;

/// A caller waits, so that a failed attempt is repeated once and at once.
const ATTEMPTS: u32 = 2;
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// What a client is told to wait while a store is broken.
const HELD_RETRY_AFTER: Duration = Duration::from_secs(10);
/// Longest side of a picture in an answer.
const PICTURE_EDGE: u32 = 512;

/// What a request asks for besides the verdict: `?include=stages,pictures&on_overload=queue`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wishes {
    stages: bool,
    pictures: bool,
    queue_on_overload: bool,
}

impl Wishes {
    fn of(request: &Request) -> Result<Self, Problem> {
        let mut wishes = Self::default();
        let query = request.uri().query().unwrap_or_default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match (name.as_ref(), value.as_ref()) {
                ("on_overload", "queue") => wishes.queue_on_overload = true,
                ("on_overload", "refuse") => wishes.queue_on_overload = false,
                ("include", list) => {
                    for word in list.split(',') {
                        match word {
                            "stages" => wishes.stages = true,
                            "pictures" => wishes.pictures = true,
                            _ => {
                                let what = format!(
                                    "include={} is not known; there are stages and pictures",
                                    word.escape_debug()
                                );
                                return Err(Problem::bad_request(what));
                            }
                        }
                    }
                }
                (name, value) => {
                    let (name, value) = (name.escape_debug(), value.escape_debug());
                    let what = format!("{name}={value} is not known; there are include and on_overload=queue");
                    return Err(Problem::bad_request(what));
                }
            }
        }
        Ok(wishes)
    }
}

/// Screens what was sent.
pub(super) async fn screen(app: Arc<App>, caller: Caller<Screen>, request: Request) -> Answer {
    let began = Instant::now();
    let wishes = Wishes::of(&request)?;
    let limit = app.time_limit(request.headers())?;
    let headers = request.headers().clone();
    let kind = Kind::of(&headers);
    let body_limit = Duration::from_millis(app.options.body_timeout_ms.into());
    // A reference is short, and is needed to queue the job.
    let job = match kind {
        Kind::Json => Some(body::in_time(body_limit, body::json(request)).await?),
        Kind::Multipart | Kind::Raw => {
            let Some(_place) = app.take_place() else { return Err(overload()) };
            let sent = body::in_time(body_limit, body::image(&app.processor, request, kind)).await?;
            return in_time(limit, answer(&app, &caller, &headers, sent, &wishes, began + limit)).await;
        }
    };
    let job = job.unwrap_or_default();
    let Some(_place) = app.take_place() else {
        return match wishes.queue_on_overload {
            true => jobs::publish(&app, &caller, &headers, job, Lane::Live).await,
            false => Err(overload()),
        };
    };
    in_time(limit, answer(&app, &caller, &headers, Sent::Job(job), &wishes, began + limit)).await
}

/// At the limit the work is dropped, and the id stays free. What was about to be committed may still be, and then answers
/// the next request of the same id.
pub(super) async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let what = format!(
            "there was no verdict within {} ms; the image was not screened, try again later",
            limit.as_millis()
        );
        Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", what).retry_after(RETRY_AFTER))
    })
}

async fn answer(
    app: &App,
    caller: &Caller<Screen>,
    headers: &HeaderMap,
    sent: Sent,
    wishes: &Wishes,
    deadline: Instant,
) -> Answer {
    let mut request = job_request(caller, headers, sent, deadline)?;
    request.wants_pictures = wishes.pictures;
    let (answer, stages) = with_stage_times(screen_request(app, caller, request)).await;
    let mut answer = answer?;
    if wishes.stages {
        let times = stages.iter().map(|(stage, took)| (stage.as_str().to_owned(), json!(took.as_secs_f64() * 1e3)));
        answer.insert("stages_ms".into(), Value::Object(times.collect()));
    }
    Ok(json_answer(StatusCode::OK, Value::Object(answer)))
}

/// Screens what a caller has sent.
pub(super) async fn screen_sent(
    app: &App,
    caller: &Caller<Screen>,
    headers: &HeaderMap,
    sent: Sent,
    deadline: Instant,
) -> Result<Map<String, Value>, Problem> {
    screen_request(app, caller, job_request(caller, headers, sent, deadline)?).await
}

async fn screen_request(
    app: &App,
    caller: &Caller<Screen>,
    mut request: JobRequest,
) -> Result<Map<String, Value>, Problem> {
    check_rights(app, caller, &request.job, request.lane)?;
    request.keep_at = request.upload.as_ref().and_then(|_| app.options.kept_at(&request.job.image.key));
    let parent = request.trace.clone();
    let end = traces::in_request_span(Lane::Live, parent, Box::pin(process(app, &mut request))).await;
    verdict(app, &request.job, end).await
}

/// Processes a job, and once more after a failed attempt.
async fn process(app: &App, request: &mut JobRequest) -> JobEnd {
    loop {
        match app.processor.process(request).await {
            JobEnd::AttemptFailed { failed_attempts, reason } => {
                tracing::info!(reason, "attempt failed, tried once more");
                request.failed_attempts = failed_attempts;
                tokio::time::sleep(ATTEMPT_DELAY).await;
            }
            end => return end,
        }
    }
}

/// The verdict that ended a job, or why there is none.
async fn verdict(app: &App, job: &Job, end: JobEnd) -> Result<Map<String, Value>, Problem> {
    match end {
        JobEnd::Committed { verdict, revised_event, new_event, pictures } => {
            if let (Some(event), Some(hand_over)) = (new_event, &app.hand_over) {
                hand_over(*event);
            }
            let first = Revision { number: 1, cause: None, judged_at: verdict.decided_at };
            let mut answer = verdicts::answer(&verdict, &first, None);
            // A later judgement is told by its event.
            if let Some(event) = revised_event
                && let Ok(Value::Object(mut event)) = serde_json::from_str(&event.payload)
                && let Some(Value::Object(data)) = event.remove("data")
            {
                answer.extend(data);
            }
            if !pictures.views().is_empty() {
                answer.insert("pictures".into(), encoded(&pictures));
            }
            Ok(answer)
        }
        JobEnd::AnsweredBefore(id) => match verdicts::read(app, id).await? {
            Some(stored) => {
                check_unchanged(app, job, &stored.verdict).await?;
                Ok(verdicts::answer(&stored.verdict, &stored.revision, stored.deleted_at))
            }
            None => Err(Problem::conflict("changed", "the verdict was removed just now; try again")),
        },
        JobEnd::IdConflict => {
            let what = "another image was sent under this id before; choose another id";
            Err(Problem::unprocessable("id_conflict", what))
        }
        JobEnd::Erased(_) => Err(Problem::new(
            StatusCode::GONE,
            "erased",
            "the verdict on this image was erased, and none is made again",
        )),
        JobEnd::Held(held) => Err(Problem::unavailable("held", held.reason, HELD_RETRY_AFTER)),
        JobEnd::Interrupted if app.stop.is_cancelled() => Err(draining()),
        JobEnd::Interrupted => {
            let what = "the ledger is broken; the image was not screened, try again later";
            Err(Problem::unavailable("ledger", what, RETRY_AFTER))
        }
        JobEnd::AttemptFailed { reason, .. } => Err(Problem::unavailable("attempt_failed", reason, RETRY_AFTER)),
        JobEnd::NotKept => {
            let what = "the image cannot be stored, and its verdict was not recorded; try again later";
            Err(Problem::unavailable("not_kept", what, RETRY_AFTER))
        }
        JobEnd::Unrecorded { reason } => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "not_recorded", reason)),
    }
}

/// Refuses to answer a repeated id with the earlier verdict if the object was overwritten since: that verdict is on other bytes.
/// Only the object's properties are read. An object that is gone can harm no one, so the earlier verdict answers.
async fn check_unchanged(app: &App, job: &Job, verdict: &Verdict) -> Result<(), Problem> {
    // A version, or an `ETag` that the request names, was compared before.
    let is_named = job.image.named_version().is_some() || job.image.etag.is_some();
    let Some(screened) = verdict.image.etag.as_deref().filter(|_| !is_named) else { return Ok(()) };
    if !app.processor.fetcher.allows(&job.image.bucket) {
        return Ok(());
    }
    match app.processor.fetcher.head(&job.image).await {
        Ok(found) if found.image.etag.as_deref() == Some(screened) => Ok(()),
        Err(StoreError::Missing(_)) => Ok(()),
        Ok(_) => {
            let what = "the object has changed since it was screened under this id; choose another id";
            Err(Problem::unprocessable("id_conflict", what))
        }
        Err(error) => {
            let what = format!("cannot find out whether the object has changed since it was screened: {error}");
            Err(Problem::unavailable("held", what.lines().next().unwrap_or_default(), HELD_RETRY_AFTER))
        }
    }
}

/// What the detectors saw, encoded again: the bytes of an upload never come back.
fn encoded(pictures: &Pictures) -> Value {
    let views = pictures.views().iter().filter_map(|seen| {
        let (_, pixels) = seen.by_detector.first()?;
        let picture = decode::encode_picture(pixels, PICTURE_EDGE).ok()?;
        let data = format!("data:{};base64,{}", picture.media_type, STANDARD.encode(&picture.bytes));
        Some(json!({"view": seen.view, "picture": data}))
    });
    views.collect()
}

/// The request of a job for `life`.
fn job_request(
    caller: &Caller<Screen>,
    headers: &HeaderMap,
    sent: Sent,
    deadline: Instant,
) -> Result<JobRequest, Problem> {
    let (job, upload) = match sent {
        Sent::Job(object) => (read_job(caller, headers, object)?, None),
        Sent::Image { upload, fields } => (inline_job(caller, headers, &upload, fields)?, Some(upload)),
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Ok(JobRequest {
        may_be_known: job.has_given_id(),
        job,
        lane: Lane::Live,
        upload,
        keep_at: None,
        wants_pictures: false,
        max_attempts: ATTEMPTS,
        replayed_id: None,
        records: QuarantineRecords::default(),
        failed_attempts: 0,
        is_redelivered: false,
        received_at: OffsetDateTime::now_utc(),
        arrived: Instant::now(),
        deadline,
        correlation_id: text("x-request-id").filter(|id| is_request_id(id)),
        trace: TraceContext::parse(text("traceparent"), text("tracestate")),
    })
}

/// The job of an image that was sent itself. Its bucket and key are derived from its content.
fn inline_job(
    caller: &Caller<Screen>,
    headers: &HeaderMap,
    upload: &Upload,
    mut fields: Map<String, Value>,
) -> Result<Job, Problem> {
    let id = given_id(headers)?.unwrap_or_else(|| Uuid::new_v4().to_string());
    fields.insert("image".into(), json!({"bucket": INLINE_BUCKET, "key": hex::encode(upload.digests.sha256)}));
    fields.insert("id".into(), caller.job_id(&id).into());
    parse(fields)
}

/// A job in form 1, with an id of this caller's.
pub(super) fn read_job(
    caller: &Caller<Screen>,
    headers: &HeaderMap,
    mut object: Map<String, Value>,
) -> Result<Job, Problem> {
    if !object.contains_key("image") {
        return Err(Problem::bad_request("the JSON has no `image`, such as {\"image\": \"s3://bucket/key\"}"));
    }
    let own = object.get("id").and_then(Value::as_str).map(str::to_owned);
    let id = match (given_id(headers)?, own) {
        (Some(_), Some(_)) => return Err(Problem::bad_request("both `Idempotency-Key` and `id` were sent; send one")),
        (given, own) => given.or(own),
    };
    // An envelope could hold an id of another caller.
    if let Some(unknown) = object.keys().find(|key| !JOB_KEYS.contains(&key.as_str())) {
        let what =
            format!("unknown key \"{}\"; a job has {}", cut(&unknown.escape_debug().to_string()), JOB_KEYS.join(", "));
        return Err(Problem::bad_request(what));
    }
    // A derived id would be that of other callers and of the queue, whose verdict may be by another policy.
    let id = id.unwrap_or_else(|| Uuid::new_v4().to_string());
    object.insert("id".into(), caller.job_id(&id).into());
    let job = parse(object)?;
    // Only an upload has content that the bucket could be derived from.
    if job.image.bucket == INLINE_BUCKET {
        return Err(Problem::unprocessable(
            "rejected",
            format!("\"{INLINE_BUCKET}\" is no bucket; send the image itself"),
        ));
    }
    Ok(job)
}

fn parse(object: Map<String, Value>) -> Result<Job, Problem> {
    let body = Value::Object(object).to_string();
    match forms::read(body.as_bytes(), MessageProperties::default()) {
        Ok(Reading::Job(job)) => Ok(*job),
        Ok(_) => Err(Problem::bad_request("the JSON is not a single job")),
        Err(error) => Err(Problem::bad_request(error.to_string())),
    }
}

fn given_id(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str().ok().map(|key| key.trim_matches('"')).filter(|key| !key.is_empty()) {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(Problem::bad_request("`Idempotency-Key` must be printable ASCII characters")),
    }
}

/// A key that is bound to buckets or policies sends nothing else. An upload is in no bucket.
pub(super) fn check_rights(app: &App, caller: &Caller<Screen>, job: &Job, lane: Lane) -> Result<(), Problem> {
    let bucket = &job.image.bucket;
    if bucket != INLINE_BUCKET && !caller.may_use_bucket(bucket) {
        let what = format!("the key \"{}\" may not name the bucket \"{bucket}\"", caller.name());
        return Err(Problem::forbidden(what));
    }
    let policy = &app.processor.policy_of_job(job, lane).reference.name;
    if !caller.may_use_policy(policy) {
        let what =
            format!("the policy \"{policy}\" judges this image, and the key \"{}\" is not bound to it", caller.name());
        return Err(Problem::forbidden(what));
    }
    Ok(())
}

pub(super) fn overload() -> Problem {
    let what = "too many images are being screened; the image was not screened, try again later";
    Problem::unavailable("overload", what, RETRY_AFTER)
}

impl App {
    /// A place among the images that are received or screened, if one is free.
    pub(super) fn take_place(&self) -> Option<(OwnedSemaphorePermit, GaugeGuard)> {
        let permit = Arc::clone(&self.in_flight).try_acquire_owned().ok()?;
        Some((permit, metrics::hold_http_image()))
    }

    /// How long a request may wait for its answer.
    pub(super) fn time_limit(&self, headers: &HeaderMap) -> Result<Duration, Problem> {
        let longest = Duration::from_millis(self.options.timeout_ms.into());
        let Some(limit) = headers.get("x-timeout-ms") else { return Ok(longest) };
        match limit.to_str().ok().and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0) {
            Some(limit) => Ok(longest.min(Duration::from_millis(limit))),
            None => Err(Problem::bad_request("`X-Timeout-Ms` must be a number of milliseconds above 0")),
        }
    }
}

pub(super) fn json_answer(status: StatusCode, body: Value) -> Response {
    let content_type = [(axum::http::header::CONTENT_TYPE, "application/json")];
    (status, content_type, body.to_string()).into_response()
}
