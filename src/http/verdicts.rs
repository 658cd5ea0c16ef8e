//! `GET /v1/verdicts`: what is known of a job or an image.

use std::sync::Arc;

use axum::RequestExt;
use axum::extract::{Path, Request};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::access::{Caller, Look};
use super::problem::Problem;
use super::routes::Answer;
use super::screen::json_answer;
use super::{App, RETRY_AFTER};
use crate::job::{INLINE_BUCKET, ImageRef, Revision, Verdict, event, verdict_id};
use crate::ledger::{LedgerError, StoredVerdict, mark_restricted};

/// The most verdicts in one answer. An image has one per version, set of detectors and job id.
const MAX_VERDICTS: u32 = 100;

/// A verdict as it is answered: the data of its event, and what was seen of the file.
pub(super) fn answer(verdict: &Verdict, revision: &Revision, deleted_at: Option<OffsetDateTime>) -> Map<String, Value> {
    let Value::Object(mut answer) = event::data(verdict, revision, deleted_at) else { return Map::new() };
    let seen = verdict.seen;
    answer.extend([
        ("format".to_owned(), json!(seen.map(|seen| seen.format))),
        ("width".to_owned(), json!(seen.map(|seen| seen.width))),
        ("height".to_owned(), json!(seen.map(|seen| seen.height))),
        ("frames".to_owned(), json!(seen.map(|seen| seen.frames))),
        ("bytes".to_owned(), json!(verdict.bytes)),
    ]);
    answer
}

pub(super) async fn read(app: &App, id: Uuid) -> Result<Option<StoredVerdict>, Problem> {
    let ledger = app.processor.ledger.as_ref();
    let read = async {
        let mut found = ledger.read_verdict(id).await?;
        mark_restricted(ledger, found.as_mut_slice()).await?;
        Ok(found)
    };
    read.await.map_err(|error| broken(&error))
}

fn broken(error: &LedgerError) -> Problem {
    tracing::warn!(%error, "verdict not read");
    Problem::unavailable("ledger", "the ledger does not answer", RETRY_AFTER)
}

/// The verdict of a job.
pub(super) async fn of_job(app: Arc<App>, caller: Caller<Look>, mut request: Request) -> Answer {
    let Ok(Path(job_id)) = request.extract_parts::<Path<String>>().await else {
        return Err(Problem::bad_request("the path names no job"));
    };
    let found = read(&app, verdict_id(&job_id)).await?;
    match found.filter(|stored| may_read(&caller, stored)) {
        Some(stored) => {
            let answer = answer(&stored.verdict, &stored.revision, stored.deleted_at);
            Ok(json_answer(StatusCode::OK, Value::Object(answer)))
        }
        // Whether others have such a job is not said.
        None => Err(Problem::not_found("there is no verdict of this job; a queued job has none yet")),
    }
}

/// The verdicts on an image or on content, the latest first: `?image=s3://bucket/key`, `?sha256=HEX`.
pub(super) async fn of_image(app: Arc<App>, caller: Caller<Look>, request: Request) -> Answer {
    let query = request.uri().query().unwrap_or_default();
    let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let found = match &pairs[..] {
        [(name, uri)] if name == "image" => {
            let Some(image) = ImageRef::from_uri(uri) else {
                return Err(Problem::bad_request("`image` must be s3://bucket/key"));
            };
            app.processor.ledger.verdicts_on_image(&image, MAX_VERDICTS).await
        }
        [(name, digits)] if name == "sha256" => {
            let mut sha256 = [0; 32];
            if hex::decode_to_slice(digits, &mut sha256).is_err() {
                return Err(Problem::bad_request("`sha256` must be 64 hexadecimal digits"));
            }
            of_content(&app, sha256).await
        }
        _ => return Err(Problem::bad_request("ask for ?image=s3://bucket/key or ?sha256=HEX")),
    };
    let mut found = found.map_err(|error| broken(&error))?;
    mark_restricted(app.processor.ledger.as_ref(), &mut found).await.map_err(|error| broken(&error))?;
    let readable = found.iter().filter(|stored| may_read(&caller, stored));
    let answers: Vec<_> = readable.map(|stored| answer(&stored.verdict, &stored.revision, stored.deleted_at)).collect();
    Ok(json_answer(StatusCode::OK, json!({"verdicts": answers})))
}

/// The verdicts that scored this content, and those on uploads of it. A verdict that took scores over is not found by its
/// content: no index has it.
async fn of_content(app: &App, sha256: [u8; 32]) -> Result<Vec<StoredVerdict>, LedgerError> {
    let ledger = &app.processor.ledger;
    let uploads = ImageRef { bucket: INLINE_BUCKET.into(), key: hex::encode(sha256), version_id: None, etag: None };
    let mut found = ledger.verdicts_on_image(&uploads, MAX_VERDICTS).await?;
    for stored in ledger.verdicts_that_scored(sha256, MAX_VERDICTS).await? {
        if found.iter().all(|other| other.verdict.id != stored.verdict.id) {
            found.push(stored);
        }
    }
    found.sort_by_key(|stored| std::cmp::Reverse((stored.verdict.decided_at, stored.verdict.id)));
    Ok(found)
}

fn may_read(caller: &Caller<Look>, StoredVerdict { verdict, .. }: &StoredVerdict) -> bool {
    caller.may_read(&verdict.job_id, &verdict.image.bucket, &verdict.policy.name)
}
