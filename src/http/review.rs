//! Review for other people's tools: open items, claims, decisions and reports.
//!
//! The tool names the person in `actor`. What a key is bound to bounds what it sees and decides; the rest does not exist for
//! it. No answer has a picture.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::access::{Browse, Caller, Judge, NeededScope, Report};
use super::problem::Problem;
use super::routes::Answer;
use super::screen::json_answer;
use super::{App, RETRY_AFTER, body, verdicts};
use crate::job::ImageRef;
use crate::ledger::{
    self, Claim, Decided, DecisionAction, ItemFilter, ItemKind, ItemWithVerdict, LedgerError, Reviews, StoredVerdict,
};
use crate::review::{DecisionRequest, ReportRequest, ReportSubject, ReviewError, Reviewing};
use crate::telemetry::metrics;
use crate::telemetry::metrics::labels::ActionLabel;

/// Items of one page.
const PAGE: u32 = 50;
const MAX_PAGE: u32 = 500;
/// Items that one claim takes.
const MAX_CLAIM: u32 = 100;
/// Seconds of a lease where the claim does not say, and at most.
const LEASE_S: u32 = 600;
const MAX_LEASE_S: u32 = 86_400;
/// When a report is worth another try that is one too many: people decide in hours.
const REPORT_AGAIN_AFTER: Duration = Duration::from_hours(1);

/// Open items in the order of the queue: `?limit=&cursor=` and the fields of [`Selection`].
pub(super) async fn open(app: Arc<App>, caller: Caller<Browse>, request: Request) -> Answer {
    let (mut limit, mut behind, mut selection) = (PAGE, None, Selection::default());
    for (name, value) in url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()) {
        match name.as_ref() {
            "limit" => limit = number(&name, &value, 1..=MAX_PAGE)?,
            "cursor" => {
                behind =
                    Some(value.parse().map_err(|_| invalid("`cursor` is not one that an earlier page has given"))?);
            }
            _ => selection.add(&name, &value)?,
        }
    }
    let page = reviews(&app)?.open_items(&selection.filter(&caller)?, behind, limit).await;
    let page = page.map_err(|error| refused(error.into()))?;
    let items: Vec<Value> = page.items.iter().map(item).collect();
    let next = page.next.map(|next| next.to_string());
    Ok(json_answer(StatusCode::OK, json!({"items": items, "next": next})))
}

/// `POST /v1/claims`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimBody {
    actor: String,
    #[serde(default)]
    count: Option<u32>,
    #[serde(default)]
    lease_s: Option<u32>,
    /// Which items.
    #[serde(default)]
    select: Selection,
    /// In place of new items: these stay with the person for another `lease_s`.
    #[serde(default)]
    renew: Vec<Uuid>,
    /// In place of new items: these go back to the queue.
    #[serde(default)]
    release: Vec<Uuid>,
}

/// Takes items for a person, or renews or gives back what the person has.
pub(super) async fn claim(app: Arc<App>, caller: Caller<Judge>, request: Request) -> Answer {
    let ClaimBody { actor, count, lease_s, select, renew, release } = read(&app, request).await?;
    if actor.trim().is_empty() || actor.contains('\0') {
        return Err(invalid("`actor` must be the id of a person"));
    }
    let count = in_range("count", count.unwrap_or(1), 1..=MAX_CLAIM)?;
    let lease = Duration::from_secs(in_range("lease_s", lease_s.unwrap_or(LEASE_S), 1..=MAX_LEASE_S)?.into());
    let reviews = reviews(&app)?;
    let failed = |error: LedgerError| refused(error.into());
    let filter = select.filter(&caller)?;
    if !renew.is_empty() || !release.is_empty() {
        let renewed = reviews.renew_claims(&actor, &renew, lease, &filter).await.map_err(failed)?;
        let released = reviews.release_claims(&actor, &release, &filter).await.map_err(failed)?;
        return Ok(json_answer(StatusCode::OK, json!({"renewed": renewed, "released": released})));
    }
    let claimed = reviews.claim_items(&Claim { actor, count, lease, filter }).await.map_err(failed)?;
    let items: Vec<Value> = claimed.iter().map(item).collect();
    Ok(json_answer(StatusCode::OK, json!({"items": items})))
}

/// `POST /v1/decisions`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecisionBody {
    verdict_id: Uuid,
    revision: u32,
    actor: String,
    action: DecisionAction,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    category: Option<String>,
    #[serde(default)]
    note: Option<String>,
    #[serde(default)]
    batch_id: Option<Uuid>,
    #[serde(default)]
    last_report_id: Option<Uuid>,
}

/// Carries out a decision, and answers with the verdict as it is then.
pub(super) async fn decide(app: Arc<App>, caller: Caller<Judge>, request: Request) -> Answer {
    let sent: DecisionBody = read(&app, request).await?;
    let visible = visible(&app, &caller, sent.verdict_id).await?;
    let request = DecisionRequest {
        verdict: visible.verdict.id,
        revision: sent.revision,
        actor: sent.actor,
        name: sent.name,
        action: sent.action,
        category: sent.category,
        note: sent.note,
        batch: sent.batch_id,
        last_report: sent.last_report_id,
    };
    let decided = reviewing(&app).decide(&request).await.map_err(refused)?;
    if matches!(decided, Decided::Done { .. }) {
        metrics::decision_recorded(label(request.action));
    }
    let conflict = |code, what: &str| Err(Problem::conflict(code, what));
    match decided {
        Decided::Done { .. } | Decided::Repeated { .. } => {
            let stored = verdicts::read(&app, visible.verdict.id).await?.unwrap_or(visible);
            Ok(json_answer(StatusCode::OK, verdict(&stored)))
        }
        Decided::Missing => Err(unknown()),
        Decided::Stale(present) => Err(stale(&present, false)),
        Decided::Overtaken(present) => Err(stale(&present, true)),
        Decided::UnknownReport => Err(invalid("`last_report_id` is no report on this verdict")),
        Decided::Claimed { actor, until } => {
            let what = "another person has claimed the image";
            let problem = Problem::conflict("claimed", what).with("claimed_by", json!(actor));
            Err(problem.with("lease_until", time(Some(until))))
        }
        Decided::OwnDecision => {
            let what = "the appeal is against a decision of this person, and another person has to decide";
            Err(Problem::new(StatusCode::FORBIDDEN, "own_decision", what))
        }
        Decided::NotOpen => conflict("not_open", "no review item is open for the image"),
        Decided::NothingToUndo => conflict("nothing_to_undo", "the last judgement is no decision of this person"),
        Decided::TooLate => conflict("too_late", "the event of the decision has left; decide once more"),
    }
}

const fn label(action: DecisionAction) -> ActionLabel {
    match action {
        DecisionAction::Flag => ActionLabel::Flag,
        DecisionAction::Clear => ActionLabel::Clear,
        DecisionAction::Uphold => ActionLabel::Uphold,
        DecisionAction::Escalate => ActionLabel::Escalate,
        DecisionAction::Skip => ActionLabel::Skip,
        DecisionAction::Undo => ActionLabel::Undo,
    }
}

/// The verdict has another revision than the one that was decided on. `recorded`: this very decision came before it.
fn stale(present: &StoredVerdict, recorded: bool) -> Problem {
    let number = present.revision.number;
    let what = if recorded {
        format!("the decision was recorded, and the verdict is at revision {number} since")
    } else {
        format!("the verdict is at revision {number}; look at it once more")
    };
    let problem = Problem::conflict("stale", what).with("revision", json!(number)).with("recorded", json!(recorded));
    problem.with("verdict", verdict(present))
}

/// `POST /v1/reports`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportBody {
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    job_id: Option<String>,
    #[serde(default)]
    verdict_id: Option<Uuid>,
    kind: ItemKind,
    #[serde(default)]
    category: Option<String>,
    #[serde(default)]
    note: Option<String>,
    #[serde(default, deserialize_with = "optional_time")]
    due_at: Option<OffsetDateTime>,
    #[serde(default)]
    reference: Option<String>,
    #[serde(default)]
    reporter: Option<String>,
}

/// Records a report, an appeal or a legal request.
pub(super) async fn report(app: Arc<App>, caller: Caller<Report>, request: Request) -> Answer {
    let sent: ReportBody = read(&app, request).await?;
    let subject = match (sent.image, sent.job_id, sent.verdict_id) {
        (Some(uri), None, None) => match ImageRef::from_uri(&uri) {
            Some(image) => ReportSubject::Image(image),
            None => return Err(invalid("`image` must be s3://bucket/key")),
        },
        (None, Some(id), None) => ReportSubject::Job(id),
        (None, None, Some(id)) => ReportSubject::Verdict(id),
        _ => return Err(invalid("name what is reported by one of `image`, `job_id` and `verdict_id`")),
    };
    let reviewing = reviewing(&app);
    let found = reviewing.find(&subject).await.map_err(|error| refused(error.into()))?;
    let visible = visible(&app, &caller, found.ok_or_else(unknown)?).await?;
    let request = ReportRequest {
        subject: ReportSubject::Verdict(visible.verdict.id),
        kind: sent.kind,
        category: sent.category,
        note: sent.note,
        reporter: sent.reporter,
        reference: sent.reference,
        due_at: sent.due_at,
    };
    let made = reviewing.report(&request).await.map_err(refused)?;
    let answer = json!({"report_id": made.id, "verdict_id": made.verdict, "kind": made.kind});
    Ok(json_answer(StatusCode::CREATED, answer))
}

/// Which items, in a query or in `select` of a claim.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Selection {
    kind: Vec<ItemKind>,
    policy: Vec<String>,
    category: Vec<String>,
    min_severity: Option<u8>,
    bucket: Vec<String>,
    label: Vec<String>,
    /// Open for at least so long.
    older_than_s: Option<u32>,
    damage_only: Option<bool>,
    escalated: Option<bool>,
    unclaimed: bool,
}

impl Selection {
    /// Adds a parameter of a query. A list is a parameter that is repeated.
    fn add(&mut self, name: &str, value: &str) -> Result<(), Problem> {
        let truth = || value.parse().map_err(|_| invalid(format!("`{name}` must be true or false")));
        match name {
            "kind" => {
                let what = || invalid("`kind` must be one of sample, review, report, appeal, legal");
                self.kind.push(ItemKind::parse(value).ok_or_else(what)?);
            }
            "policy" => self.policy.push(value.to_owned()),
            "category" => self.category.push(value.to_owned()),
            "bucket" => self.bucket.push(value.to_owned()),
            "label" => self.label.push(value.to_owned()),
            "min_severity" => self.min_severity = u8::try_from(number(name, value, 0..=5)?).ok(),
            "older_than_s" => self.older_than_s = Some(number(name, value, 0..=u32::MAX)?),
            "damage_only" => self.damage_only = Some(truth()?),
            "escalated" => self.escalated = Some(truth()?),
            "unclaimed" => self.unclaimed = truth()?,
            _ => return Err(invalid(format!("`{}` is no parameter of this path", name.escape_debug()))),
        }
        Ok(())
    }

    /// The filter, within what the caller is bound to.
    fn filter<S: NeededScope>(self, caller: &Caller<S>) -> Result<ItemFilter, Problem> {
        let texts = [&self.policy, &self.category, &self.bucket, &self.label];
        if texts.into_iter().flatten().any(|text| text.contains('\0')) {
            return Err(invalid("a text must not contain U+0000"));
        }
        let ago = |seconds: u32| OffsetDateTime::now_utc() - time::Duration::seconds(seconds.into());
        Ok(ItemFilter {
            kinds: self.kind,
            policies: self.policy,
            categories: self.category,
            min_severity: self.min_severity,
            buckets: self.bucket,
            labels: self.label,
            opened_before: self.older_than_s.map(ago),
            damage_only: self.damage_only,
            escalated: self.escalated,
            unclaimed: self.unclaimed,
            bound_buckets: caller.buckets(),
            bound_policies: caller.policies(),
        })
    }
}

/// An item as it is answered. No picture is part of it, whether or not it is restricted.
fn item(ItemWithVerdict { item, stored, reports }: &ItemWithVerdict) -> Value {
    let report = |report: &ledger::Report| {
        json!({
            "report_id": report.id,
            "kind": report.kind,
            "category": report.category,
            "note": report.note,
            "reporter": report.reporter,
            "reference": report.reference,
            "due_at": time(report.due_at),
            "made_at": time(Some(report.made_at)),
        })
    };
    let (claimed_by, lease_until) = item.claim.clone().unzip();
    json!({
        "item_id": item.id,
        "verdict_id": stored.verdict.id,
        "revision": stored.revision.number,
        "kind": item.kind,
        "category": item.category,
        "severity": item.severity,
        "label": item.label,
        "due_at": time(item.due_at),
        "opened_at": time(Some(item.opened_at)),
        "damage_only": item.is_damage_only,
        "restricted": item.is_restricted,
        "escalated_at": time(item.escalated_at),
        "claimed_by": claimed_by,
        "lease_until": time(lease_until),
        "reports": reports.iter().map(report).collect::<Vec<_>>(),
        "last_report_id": reports.last().map(|report| report.id),
        "verdict": verdict(stored),
    })
}

fn verdict(stored: &StoredVerdict) -> Value {
    Value::Object(verdicts::answer(&stored.verdict, &stored.revision, stored.deleted_at))
}

fn time(at: Option<OffsetDateTime>) -> Value {
    json!(at.and_then(|at| at.format(&Rfc3339).ok()))
}

fn reviewing(app: &App) -> Reviewing<'_> {
    let life = &app.processor;
    Reviewing { ledger: life.ledger.as_ref(), config: &life.config, policies: &life.policies, banks: &life.banks }
}

fn reviews(app: &App) -> Result<&dyn Reviews, Problem> {
    app.processor.ledger.reviews().map_err(|error| refused(error.into()))
}

/// A verdict that the caller may see. Whether there are others is not said.
async fn visible<S: NeededScope>(app: &App, caller: &Caller<S>, id: Uuid) -> Result<StoredVerdict, Problem> {
    let found = verdicts::read(app, id).await?;
    let may_read = |stored: &StoredVerdict| {
        let verdict = &stored.verdict;
        caller.may_read(&verdict.job_id, &verdict.image.bucket, &verdict.policy.name)
    };
    found.filter(may_read).ok_or_else(unknown)
}

fn unknown() -> Problem {
    Problem::not_found("there is no verdict on it")
}

/// Reads a JSON body, in time.
async fn read<T: DeserializeOwned>(app: &App, request: Request) -> Result<T, Problem> {
    let limit = Duration::from_millis(app.options.body_timeout_ms.into());
    let object: Map<String, Value> = body::in_time(limit, body::json(request)).await?;
    serde_json::from_value(Value::Object(object))
        .map_err(|error| invalid(format!("the JSON does not fit: {}", body::cut(&error.to_string()))))
}

fn invalid(what: impl Into<String>) -> Problem {
    Problem::unprocessable("invalid", what)
}

fn number(name: &str, text: &str, range: std::ops::RangeInclusive<u32>) -> Result<u32, Problem> {
    let what = || invalid(format!("`{name}` must be a whole number from {} to {}", range.start(), range.end()));
    text.parse().ok().filter(|number| range.contains(number)).ok_or_else(what)
}

fn in_range(name: &str, given: u32, range: std::ops::RangeInclusive<u32>) -> Result<u32, Problem> {
    number(name, &given.to_string(), range)
}

/// A time with its offset, as in `2026-12-01T12:00:00Z`.
fn optional_time<'de, D: Deserializer<'de>>(value: D) -> Result<Option<OffsetDateTime>, D::Error> {
    let text: Option<String> = Option::deserialize(value)?;
    let parse = |text: String| {
        let what = || serde::de::Error::custom("`due_at` must be a time such as 2026-12-01T12:00:00Z");
        OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| what())
    };
    text.map(parse).transpose()
}

/// Why a request has no other answer.
fn refused(error: ReviewError) -> Problem {
    match error {
        ReviewError::Invalid { .. } => invalid(error.to_string()),
        ReviewError::Impossible { .. } => Problem::unprocessable("impossible", error.to_string()),
        ReviewError::UnknownImage(_) => unknown(),
        ReviewError::TooManyReports(_) => {
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_reports", error.to_string());
            problem.retry_after(REPORT_AGAIN_AFTER)
        }
        ReviewError::Ledger(error @ LedgerError::ReviewNeedsPostgres) => {
            Problem::new(StatusCode::NOT_IMPLEMENTED, "no_review", error.to_string())
        }
        // The texts were checked before; what the database refuses all the same is the sender's.
        ReviewError::Ledger(LedgerError::Refused(error)) => invalid(error.to_string()),
        ReviewError::Ledger(error) => {
            tracing::warn!(%error, "review failed");
            Problem::unavailable("ledger", "the ledger does not answer", RETRY_AFTER)
        }
    }
}
