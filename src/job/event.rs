//! The event of a verdict: a CloudEvent in structured mode, as the outbox stores it.

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{Revision, Verdict, event_id, exact, exact_scores, revised_event_id};
use crate::telemetry::traces::TraceContext;

/// An event as the outbox stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The same in every delivery of this event.
    pub id: Uuid,
    pub routing_key: String,
    /// The correlation id of the job's message, or else the job id.
    pub correlation_id: String,
    /// A CloudEvent as JSON text.
    pub payload: String,
}

/// What an event carries over from its job.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventContext<'a> {
    /// The sender's. Without one the job id is used.
    pub correlation_id: Option<&'a str>,
    /// The trace that continues, by CloudEvents' distributed tracing extension.
    pub trace: Option<&'a TraceContext>,
}

/// The event of a first judgement, whether or not its routing key is published.
#[must_use]
pub fn event(verdict: &Verdict, context: EventContext<'_>, prefix: &str) -> Event {
    let id = event_id(verdict.id, verdict.judgement.outcome);
    finish(id, payload(id, verdict, prefix), verdict, context)
}

/// The event of a later revision. Its `time` is when it was judged.
#[must_use]
pub fn revised_event(verdict: &Verdict, revision: &Revision, context: EventContext<'_>, prefix: &str) -> Event {
    let id = revised_event_id(verdict.id, revision.number, revision.judged_at);
    let judged_at = revision.judged_at.format(&Rfc3339).unwrap_or_default();
    let mut payload = payload(id, verdict, prefix);
    payload["time"] = json!(judged_at);
    payload["data"]["revision"] = json!(revision.number);
    payload["data"]["cause"] = json!(revision.cause);
    payload["data"]["judged_at"] = json!(judged_at);
    finish(id, payload, verdict, context)
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

fn finish(id: Uuid, mut payload: Value, verdict: &Verdict, context: EventContext<'_>) -> Event {
    if let Some(trace) = context.trace {
        payload["traceparent"] = trace.traceparent().into();
        if let Some(state) = trace.tracestate() {
            payload["tracestate"] = state.into();
        }
    }
    Event {
        id,
        routing_key: verdict.judgement.outcome.routing_key().to_owned(),
        correlation_id: context.correlation_id.unwrap_or(&verdict.job_id).to_owned(),
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
        let event = event(&verdict(), EventContext::default(), "pixwarden");
        let payload: Value = serde_json::from_str(&event.payload).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&payload).unwrap());
        assert_eq!(event.correlation_id, "job-1");
        assert!(event.payload.contains("\"score\":0.1,"), "a float32 keeps its own digits");
    }

    #[test]
    fn the_event_of_a_revision_has_its_own_id_and_time() {
        let revision =
            Revision { number: 2, cause: Some(RevisionCause::Replayed), judged_at: datetime!(2026-02-03 04:05:06 UTC) };
        let revised = revised_event(&verdict(), &revision, EventContext::default(), "pixwarden");
        let payload: Value = serde_json::from_str(&revised.payload).unwrap();
        assert_eq!(payload["id"], json!(revised.id));
        assert_eq!(payload["time"], "2026-02-03T04:05:06Z");
        assert_eq!(payload["data"]["decided_at"], "2026-01-02T03:04:06Z");
        let of_revision = [&payload["data"]["revision"], &payload["data"]["cause"], &payload["data"]["judged_at"]];
        assert_eq!(of_revision, [&json!(2), &json!("replayed"), &json!("2026-02-03T04:05:06Z")]);
        assert_ne!(revised.id, event(&verdict(), EventContext::default(), "pixwarden").id);
    }

    #[test]
    fn a_trace_is_added_to_an_event_that_is_otherwise_the_same() {
        let untraced = event(&verdict(), EventContext::default(), "pixwarden").payload;
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = TraceContext::parse(Some(traceparent.into()), Some("a=1".into()));
        let context = EventContext { trace: trace.as_ref(), ..EventContext::default() };
        let traced = event(&verdict(), context, "pixwarden").payload;
        let extension = format!(",\"traceparent\":\"{traceparent}\",\"tracestate\":\"a=1\"}}");
        assert_eq!(traced, format!("{}{extension}", untraced.strip_suffix('}').unwrap()));
        assert_eq!(TraceContext::from_event(&traced), trace);
        assert_eq!(TraceContext::from_event(&untraced), None);
    }
}
