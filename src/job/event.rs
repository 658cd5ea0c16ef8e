//! The event of a verdict: a CloudEvent in structured mode, as the outbox stores it.
//!
//! What is announced is the outcome, except where an image passes: with a note it is `noted`, and if an earlier revision did
//! not pass, it is `cleared`. A person's word that something is in order is no note.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{Judgement, Outcome, Revision, Verdict, event_id, exact, exact_scores, revised_event_id};
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
    pub destinations: Destinations,
}

/// Where an event is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destinations {
    /// Whether it is published on the broker.
    pub is_published: bool,
    /// The names of the webhooks that it is sent to.
    pub webhooks: Vec<String>,
}

/// The broker alone.
impl Default for Destinations {
    fn default() -> Self {
        Self { is_published: true, webhooks: Vec::new() }
    }
}

/// What an event carries over from its job.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventContext<'a> {
    /// The sender's. Without one the job id is used.
    pub correlation_id: Option<&'a str>,
    /// The trace that continues, by CloudEvents' distributed tracing extension.
    pub trace: Option<&'a TraceContext>,
    /// When the object was removed from its bucket.
    pub deleted_at: Option<OffsetDateTime>,
}

/// Every routing key.
pub const ROUTING_KEYS: [&str; 6] =
    ["image.flagged", "image.review", "image.failed", "image.noted", "image.cleared", "image.passed"];

/// What an event announces, as its type and its routing key name it. `earlier` is the outcome of the revision before.
#[must_use]
pub fn announcement(judgement: &Judgement, earlier: Option<Outcome>) -> (&'static str, &'static str) {
    let outcome = judgement.outcome;
    match outcome {
        Outcome::Passed if earlier.is_some_and(|earlier| earlier != Outcome::Passed) => ("cleared", "image.cleared"),
        Outcome::Passed if judgement.has_notes() => ("noted", "image.noted"),
        _ => (outcome.as_str(), outcome.routing_key()),
    }
}

/// The id of the event of a revision.
#[must_use]
pub fn id_of(verdict: &Verdict, revision: &Revision) -> Uuid {
    match revision.number {
        1 => event_id(verdict.id, verdict.judgement.outcome),
        number => revised_event_id(verdict.id, number, revision.judged_at),
    }
}

/// The event of a first judgement, whether or not its routing key is published.
#[must_use]
pub fn event(verdict: &Verdict, context: EventContext<'_>, prefix: &str) -> Event {
    let first = Revision { number: 1, cause: None, judged_at: verdict.decided_at };
    revised_event(verdict, &first, None, context, prefix)
}

/// The event of any revision. `earlier` is the outcome of the revision before.
#[must_use]
pub fn revised_event(
    verdict: &Verdict,
    revision: &Revision,
    earlier: Option<Outcome>,
    context: EventContext<'_>,
    prefix: &str,
) -> Event {
    let id = id_of(verdict, revision);
    let judgement = &verdict.judgement;
    let (announced, routing_key) = announcement(judgement, earlier);
    let mut payload = json!({
        "specversion": "1.0",
        "id": id,
        "type": format!("io.pixwarden.image.{announced}.v1"),
        "source": format!("/{prefix}"),
        "subject": verdict.image.uri(),
        "time": time_text(revision.judged_at),
        "datacontenttype": "application/json",
        "data": data(verdict, revision, context.deleted_at),
    });
    if let Some(trace) = context.trace {
        payload["traceparent"] = trace.traceparent().into();
        if let Some(state) = trace.tracestate() {
            payload["tracestate"] = state.into();
        }
    }
    Event {
        id,
        routing_key: routing_key.to_owned(),
        correlation_id: context.correlation_id.unwrap_or(&verdict.job_id).to_owned(),
        payload: payload.to_string(),
        destinations: Destinations::default(),
    }
}

/// What is said of a verdict: the data of its event, and the answer over HTTP.
#[must_use]
pub fn data(verdict: &Verdict, revision: &Revision, deleted_at: Option<OffsetDateTime>) -> Value {
    let judgement = &verdict.judgement;
    json!({
        "verdict_id": verdict.id,
        "revision": revision.number,
        "cause": revision.cause,
        "job_id": verdict.job_id,
        "lane": verdict.lane,
        "image": {
            "bucket": verdict.image.bucket,
            "key": verdict.image.key,
            "version_id": verdict.image.version_id,
            "etag": verdict.image.etag,
            "sha256": verdict.sha256.map(hex::encode),
        },
        "outcome": judgement.outcome,
        "allow": judgement.allows(),
        "restricted": judgement.is_restricted(),
        "reason": judgement.reason,
        "label": judgement.label,
        "score": judgement.score.map(exact),
        "scores": verdict.facts.as_ref().map(|facts| exact_scores(&facts.scores)),
        "findings": judgement.findings,
        "damage": verdict.facts.as_ref().map(|facts| &facts.damage),
        "detectors": verdict.detectors,
        "policy": verdict.policy,
        "metadata": verdict.metadata,
        "decided_at": time_text(verdict.decided_at),
        "judged_at": time_text(revision.judged_at),
        "deleted_at": deleted_at.map(time_text),
    })
}

fn time_text(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::job::{
        Digests, Facts, Finding, FindingOutcome, FindingSource, ImageRef, Lane, PolicyRef, RevisionCause, Scores,
        verdict_id,
    };

    fn finding(outcome: FindingOutcome) -> Finding {
        Finding {
            category: Some("synthetic".into()),
            severity: Some(2),
            detector: Some("d".into()),
            label: Some("by AI".into()),
            score: Some(0.1),
            threshold: Some(0.05),
            ..Finding::new(FindingSource::Detector, outcome)
        }
    }

    fn verdict() -> Verdict {
        Verdict {
            id: verdict_id("job-1"),
            job_id: "job-1".into(),
            lane: Lane::Live,
            image: ImageRef { etag: Some("e".into()), ..ImageRef::from_uri("s3://uploads/a b.jpg").unwrap() },
            object_at: None,
            sha256: Some([7; 32]),
            md5: Some([5; 16]),
            bytes: Some(12),
            seen: None,
            judgement: Judgement {
                outcome: Outcome::Flagged,
                reason: Some("why".into()),
                label: Some("by AI".into()),
                score: Some(0.1),
                findings: vec![finding(FindingOutcome::Flagged)],
            },
            facts: Some(Facts::of_one_view(Scores::from([("d".into(), [("by AI".to_owned(), 0.1f32)].into())]))),
            detectors: Digests::from([("d".into(), "digest".into())]),
            policy: PolicyRef::new("default", "p"),
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
        let context = EventContext::default();
        let revised = revised_event(&verdict(), &revision, Some(Outcome::Failed), context, "pixwarden");
        let payload: Value = serde_json::from_str(&revised.payload).unwrap();
        assert_eq!(payload["id"], json!(revised.id));
        assert_eq!(payload["time"], "2026-02-03T04:05:06Z");
        assert_eq!(payload["data"]["decided_at"], "2026-01-02T03:04:06Z");
        let of_revision = [&payload["data"]["revision"], &payload["data"]["cause"], &payload["data"]["judged_at"]];
        assert_eq!(of_revision, [&json!(2), &json!("replayed"), &json!("2026-02-03T04:05:06Z")]);
        assert_ne!(revised.id, event(&verdict(), EventContext::default(), "pixwarden").id);
    }

    #[test]
    fn a_note_and_the_end_of_a_finding_are_announced() {
        let revision =
            Revision { number: 2, cause: Some(RevisionCause::Rejudged), judged_at: datetime!(2026-02-03 04:05:06 UTC) };
        let judged = |outcome: Outcome, findings: &[FindingOutcome]| {
            let findings = findings.iter().copied().map(finding).collect();
            Verdict { judgement: Judgement { outcome, findings, ..verdict().judgement }, ..verdict() }
        };
        let kind = |event: Event| {
            let payload: Value = serde_json::from_str(&event.payload).unwrap();
            let data = &payload["data"];
            (event.routing_key, payload["type"].as_str().unwrap().to_owned(), data["allow"] == true)
        };
        let first = |verdict: &Verdict| kind(event(verdict, EventContext::default(), "pixwarden"));
        let later = |verdict: &Verdict, earlier: Outcome| {
            kind(revised_event(verdict, &revision, Some(earlier), EventContext::default(), "pixwarden"))
        };
        let named = |name: &str, allow: bool| (format!("image.{name}"), format!("io.pixwarden.image.{name}.v1"), allow);
        let (passed, noted) = (judged(Outcome::Passed, &[]), judged(Outcome::Passed, &[FindingOutcome::Noted]));
        let flagged = judged(Outcome::Flagged, &[FindingOutcome::Flagged, FindingOutcome::Noted]);
        assert_eq!(first(&passed), named("passed", true));
        assert_eq!(first(&noted), named("noted", true));
        assert_eq!(first(&flagged), named("flagged", false));
        assert_eq!(later(&noted, Outcome::Passed), named("noted", true));
        for earlier in [Outcome::Flagged, Outcome::Review, Outcome::Failed] {
            assert_eq!(later(&passed, earlier), named("cleared", true));
            assert_eq!(later(&noted, earlier), named("cleared", true), "with its findings");
        }
        assert_eq!(later(&flagged, Outcome::Passed), named("flagged", false));
        let keys =
            [first(&passed), first(&noted), first(&flagged), later(&passed, Outcome::Flagged)].map(|kind| kind.0);
        assert!(keys.iter().all(|key| ROUTING_KEYS.contains(&key.as_str())));
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
