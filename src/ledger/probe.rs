//! A verdict that is written to find out whether the ledger accepts verdicts, and never kept.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Destinations, Event, NewVerdict};
use crate::job::{Digests, Facts, ImageRef, Judgement, Lane, Outcome, PolicyRef, Scores, Verdict};

/// A new verdict with an event. A ping writes it and takes it back: a database that answers reads may refuse writes, because
/// its disk is full, a privilege was revoked or its statements take too long.
pub(super) fn probe_verdict() -> NewVerdict {
    let (id, now) = (Uuid::new_v4(), OffsetDateTime::now_utc());
    let verdict = Verdict {
        id,
        job_id: format!("pixwarden-probe-{id}"),
        lane: Lane::Live,
        image: ImageRef { bucket: "pixwarden-probe".into(), key: id.to_string(), version_id: None, etag: None },
        object_at: Some(now),
        sha256: Some([0; 32]),
        md5: Some([0; 16]),
        bytes: Some(0),
        seen: None,
        judgement: Judgement::unscored(Outcome::Rejected, "a probe of the ledger"),
        facts: Some(Facts::of_one_view(Scores::new())),
        detectors: Digests::new(),
        policy: PolicyRef::new("probe", ""),
        metadata: None,
        reused_from: None,
        attempts: 1,
        received_at: now,
        decided_at: now,
    };
    let event = Event {
        id: Uuid::new_v4(),
        routing_key: Outcome::Rejected.routing_key().into(),
        correlation_id: verdict.job_id.clone(),
        payload: "{}".into(),
        destinations: Destinations::default(),
    };
    NewVerdict { verdict, event: Some(event) }
}
