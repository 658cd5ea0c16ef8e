//! `POST /v1/jobs`: queues a job, without waiting for its verdict.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::access::{Caller, Screen};
use super::problem::Problem;
use super::routes::Answer;
use super::screen::{check_rights, json_answer, read_job};
use super::{App, JobQueue, RETRY_AFTER, body};
use crate::broker::Message;
use crate::job::{Digests, Job, Lane};

/// Queues a job of the lane that `?lane=` names, or `live`.
pub(super) async fn queue(app: Arc<App>, caller: Caller<Screen>, request: Request) -> Answer {
    let mut lane = Lane::Live;
    for (name, value) in url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()) {
        lane = match (name.as_ref(), value.as_ref()) {
            ("lane", "live") => Lane::Live,
            ("lane", "backfill") => Lane::Backfill,
            _ => return Err(Problem::bad_request("there is only ?lane=live and ?lane=backfill")),
        };
    }
    let headers = request.headers().clone();
    let limit = Duration::from_millis(app.options.body_timeout_ms.into());
    let object = body::in_time(limit, body::json(request)).await?;
    publish(&app, &caller, &headers, object, lane).await
}

/// Publishes a job, and answers with its id once the broker has confirmed it.
pub(super) async fn publish(
    app: &App,
    caller: &Caller<Screen>,
    headers: &HeaderMap,
    object: Map<String, Value>,
    lane: Lane,
) -> Answer {
    let Some(JobQueue { publisher, exchange }) = &app.queue else {
        let what = "no queue is configured here; use POST /v1/screen";
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "no_queue", what));
    };
    let job = read_job(caller, headers, object)?;
    check_rights(app, caller, &job, lane)?;
    // `read_job` has given it one, so that the caller can ask for the verdict.
    let id = job.id(None, &Digests::new());
    let Job { image, detectors, metadata, .. } = &job;
    if !app.processor.fetcher.allows(&image.bucket) {
        let what = format!("the bucket \"{}\" is not allowed", image.bucket);
        return Err(Problem::unprocessable("rejected", what));
    }
    let message = json!({"id": id, "image": image, "detectors": detectors, "metadata": metadata}).to_string();
    let published = publisher.publish(Message::json(exchange, lane.as_str(), &message)).await;
    published
        .map_err(|error| Problem::unavailable("not_queued", format!("the job is not queued: {error}"), RETRY_AFTER))?;
    let body = json!({"job_id": id, "lane": lane, "allow": false, "verdict": format!("/v1/verdicts/{}", escaped(&id))});
    Ok(json_answer(StatusCode::ACCEPTED, body))
}

fn escaped(id: &str) -> String {
    percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC).to_string()
}
