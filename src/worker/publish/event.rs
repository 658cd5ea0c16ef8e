//! A verdict → its event: a CloudEvent in structured mode, as the outbox keeps it.

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::job::{Revision, Verdict, event_id, exact, exact_scores, revised_event_id};
use crate::ledger::Event;
use crate::telemetry::traces::Parent;

/// What an event passes on from the job to whoever gets it.
#[derive(Debug, Clone, Copy, Default)]
pub struct PassedOn<'a> {
    /// The sender's; without one it is the job's id.
    pub correlation_id: Option<&'a str>,
    /// Where the trace goes on: CloudEvents' extension for distributed tracing.
    pub trace: Option<&'a Parent>,
}

/// Describes the first judgement of a verdict as an event, whether or not it is announced.
#[must_use]
pub fn event(verdict: &Verdict, passed_on: PassedOn<'_>, prefix: &str) -> Event {
    let id = event_id(verdict.id, verdict.judgement.outcome);
    finish(id, payload(id, verdict, prefix), verdict, passed_on)
}

/// Describes a later revision of a verdict as an event. Its `time` is when it was judged.
#[must_use]
pub fn revised_event(verdict: &Verdict, revision: &Revision, passed_on: PassedOn<'_>, prefix: &str) -> Event {
    let id = revised_event_id(verdict.id, revision.number, revision.judged_at);
    let judged_at = revision.judged_at.format(&Rfc3339).unwrap_or_default();
    let mut payload = payload(id, verdict, prefix);
    payload["time"] = json!(judged_at);
    payload["data"]["revision"] = json!(revision.number);
    payload["data"]["cause"] = json!(revision.cause);
    payload["data"]["judged_at"] = json!(judged_at);
    finish(id, payload, verdict, passed_on)
}

fn payload(id: Uuid, verdict: &Verdict, prefix: &str) -> Value {
    let outcome = verdict.judgement.outcome;
    let time = verdict.decided_at.format(&Rfc3339).unwrap_or_default();
    json!({
        "specversion": "1.0",
        "id": id,
        "type": format!("io.pixwarden.image.{outcome}.v1"),
        "source": format!("/{prefix}"),
        "subject": verdict.image.uri(),
        "time": time,
        "datacontenttype": "application/json",
        "data": {
            "verdict_id": verdict.id,
            "job_id": verdict.job_id,
            "lane": verdict.lane,
            "image": {
                "bucket": verdict.image.bucket,
                "key": verdict.image.key,
                "version_id": verdict.image.version_id,
                "etag": verdict.image.etag,
                "sha256": verdict.sha256.map(hex::encode),
            },
            "outcome": outcome,
            "reason": verdict.judgement.reason,
            "label": verdict.judgement.label,
            "score": verdict.judgement.score.map(exact),
            "scores": verdict.scores.as_ref().map(exact_scores),
            "detectors": verdict.detectors,
            "policy": verdict.policy,
            "metadata": verdict.metadata,
            "decided_at": time,
        },
    })
}

fn finish(id: Uuid, mut payload: Value, verdict: &Verdict, passed_on: PassedOn<'_>) -> Event {
    if let Some(trace) = passed_on.trace {
        payload["traceparent"] = trace.traceparent().into();
        if let Some(state) = trace.tracestate() {
            payload["tracestate"] = state.into();
        }
    }
    Event {
        id,
        routing_key: verdict.judgement.outcome.routing_key().to_owned(),
        correlation_id: passed_on.correlation_id.unwrap_or(&verdict.job_id).to_owned(),
        payload: payload.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::job::{Digests, ImageRef, Judgement, Lane, Outcome, PolicyRef, RevisionCause, Scores, verdict_id};

    fn verdict() -> Verdict {
        Verdict {
            id: verdict_id("job-1"),
            job_id: "job-1".into(),
            lane: Lane::Live,
            image: ImageRef { etag: Some("e".into()), ..ImageRef::from_uri("s3://uploads/a b.jpg").unwrap() },
            sha256: Some([7; 32]),
            bytes: Some(12),
            seen: None,
            judgement: Judgement {
                outcome: Outcome::Flagged,
                reason: Some("why".into()),
                label: Some("by AI".into()),
                score: Some(0.1),
            },
            scores: Some(Scores::from([("d".into(), [("by AI".to_owned(), 0.1f32)].into())])),
            detectors: Digests::from([("d".into(), "digest".into())]),
            policy: PolicyRef { name: "default".into(), sha256: "p".into() },
            metadata: Some(json!({"user": 7})),
            reused_from: None,
            attempts: 1,
            received_at: datetime!(2026-01-02 03:04:05 UTC),
            decided_at: datetime!(2026-01-02 03:04:06 UTC),
        }
    }

    #[test]
    fn an_event_is_a_structured_cloud_event() {
        let event = event(&verdict(), PassedOn::default(), "pixwarden");
        let payload: Value = serde_json::from_str(&event.payload).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&payload).unwrap());
        assert_eq!(event.correlation_id, "job-1");
        assert!(event.payload.contains("\"score\":0.1,"), "a float32 keeps its own digits");
    }

    #[test]
    fn the_event_of_a_revision_has_its_own_id_and_time() {
        let revision =
            Revision { number: 2, cause: Some(RevisionCause::Replayed), judged_at: datetime!(2026-02-03 04:05:06 UTC) };
        let revised = revised_event(&verdict(), &revision, PassedOn::default(), "pixwarden");
        let payload: Value = serde_json::from_str(&revised.payload).unwrap();
        assert_eq!(payload["id"], json!(revised.id));
        assert_eq!(payload["time"], "2026-02-03T04:05:06Z");
        assert_eq!(payload["data"]["decided_at"], "2026-01-02T03:04:06Z");
        let of_revision = [&payload["data"]["revision"], &payload["data"]["cause"], &payload["data"]["judged_at"]];
        assert_eq!(of_revision, [&json!(2), &json!("replayed"), &json!("2026-02-03T04:05:06Z")]);
        assert_ne!(revised.id, event(&verdict(), PassedOn::default(), "pixwarden").id);
    }

    #[test]
    fn an_event_carries_its_trace_and_is_else_the_same() {
        let plain = event(&verdict(), PassedOn::default(), "pixwarden").payload;
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = Parent::read(Some(traceparent.into()), Some("a=1".into()));
        let passed_on = PassedOn { trace: trace.as_ref(), ..PassedOn::default() };
        let traced = event(&verdict(), passed_on, "pixwarden").payload;
        let extension = format!(",\"traceparent\":\"{traceparent}\",\"tracestate\":\"a=1\"}}");
        assert_eq!(traced, format!("{}{extension}", plain.strip_suffix('}').unwrap()));
        assert_eq!(Parent::of_event(&traced), trace);
        assert_eq!(Parent::of_event(&plain), None);
    }
}
