//! Review items, decisions and reports in Postgres.
//!
//! A writer of a verdict locks it before its item. A claim locks items alone, and skips those that others have locked.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, PgConnection, QueryBuilder, Row};
use uuid::Uuid;

use super::pages::like_pattern;
use super::verdicts::{delete_stale_events, insert_history, lock_verdicts};
use super::webhooks::DeliveryArrays;
use super::write::{EventArrays, JudgementArrays, stored_event};
use super::{LONG_RESPONSE_TIMEOUT, Postgres, RESPONSE_TIMEOUT, is_contended, read_verdict_row};
use crate::job::{Outcome, Verdict};
use crate::ledger::columns::{LockedVerdict, revision_number};
use crate::ledger::reviews::{LEGAL_RANK, OpenItem};
use crate::ledger::{
    Claim, Decide, Decided, Decision, DecisionAction, DecisionEffect, DecisionFilter, DecisionPage, Event, ItemFilter,
    ItemKind, ItemPage, ItemPosition, ItemWithVerdict, LedgerError, MAX_COUNTED_ITEMS, MAX_WAITING_REPORTS, Position,
    QueueState, Report, Reported, ReviewItem, Reviews, Revise, StoredVerdict, Undo,
};
use crate::retry;

/// The columns of a [`ReviewItem`], of the table `item`. No due date is `infinity`, so that it sorts last.
macro_rules! item_columns {
    () => {
        "item.id, item.verdict_id, item.kind, item.revision, item.rank, nullif(item.due_at, 'infinity') AS due_at, item.severity,
         item.opened_at, item.category, item.label, item.bucket, item.policy, item.is_damage_only, item.is_restricted,
         item.escalated_at, CASE WHEN item.lease_until > now() THEN item.claimed_by END AS claimed_by, item.lease_until"
    };
}

/// The order of the queue, which the index `review_items_queue` has.
macro_rules! queue_order {
    () => {
        "item.rank, item.due_at, (-item.severity), item.opened_at, item.id"
    };
}

/// What an item has that no person holds.
macro_rules! no_claim {
    () => {
        "claimed_by = NULL, claimed_at = NULL, lease_until = NULL"
    };
}

macro_rules! decision_columns {
    () => {
        "SELECT decision.id, decision.verdict_id, decision.revision, decision.actor, decision.action, decision.category,
             decision.batch_id, decision.at, written.note, written.name
         FROM decisions AS decision LEFT JOIN decision_notes AS written ON written.decision = decision.id"
    };
}

macro_rules! report_columns {
    () => {
        "SELECT report.id, report.verdict_id, report.kind, report.category, report.note, report.reporter, report.reference,
             report.due_at, report.made_at
         FROM reports AS report"
    };
}

/// The actions that make a revision.
const JUDGING: &str = "('flag', 'clear', 'uphold')";

/// Items as one array per column.
#[derive(Clone, Default)]
struct ItemArrays {
    verdict: Vec<Uuid>,
    revision: Vec<i32>,
    rank: Vec<i16>,
    severity: Vec<i16>,
    category: Vec<Option<String>>,
    label: Vec<Option<String>>,
    bucket: Vec<String>,
    policy: Vec<String>,
    is_damage_only: Vec<bool>,
    is_restricted: Vec<bool>,
}

impl ItemArrays {
    fn push(&mut self, verdict: &Verdict, revision: u32, item: OpenItem) {
        self.verdict.push(verdict.id);
        self.revision.push(i32::try_from(revision).unwrap_or(i32::MAX));
        self.rank.push(item.rank);
        self.severity.push(item.severity);
        self.category.push(item.category);
        self.label.push(item.label);
        self.bucket.push(verdict.image.bucket.clone());
        self.policy.push(verdict.policy.name.clone());
        self.is_damage_only.push(item.is_damage_only);
        self.is_restricted.push(item.is_restricted);
    }

    async fn execute(&self, c: &mut PgConnection, statement: &'static str) -> Result<(), sqlx::Error> {
        if self.verdict.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(statement).bind(&self.verdict).bind(&self.revision).bind(&self.rank);
        let query = query.bind(&self.severity).bind(&self.category).bind(&self.label).bind(&self.bucket);
        let query = query.bind(&self.policy).bind(&self.is_damage_only).bind(&self.is_restricted);
        query.execute(c).await.map(drop)
    }
}

macro_rules! items_of_arrays {
    () => {
        "UNNEST($1::uuid[], $2::integer[], $3::smallint[], $4::smallint[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::boolean[], $10::boolean[])
             AS entry (verdict_id, revision, rank, severity, category, label, bucket, policy, is_damage_only, is_restricted)"
    };
}

/// An item that is open for another reason keeps that reason.
const OPEN: &str = concat!(
    "INSERT INTO review_items AS item
         (kind, verdict_id, revision, rank, severity, category, label, bucket, policy, is_damage_only, is_restricted)
     SELECT 'review', entry.* FROM ",
    items_of_arrays!(),
    " ON CONFLICT (verdict_id) WHERE closed_at IS NULL DO UPDATE
     SET kind = CASE WHEN item.kind = 'sample' THEN 'review' ELSE item.kind END, revision = excluded.revision,
         rank = CASE WHEN item.kind IN ('sample', 'review') THEN excluded.rank ELSE item.rank END,
         severity = excluded.severity, category = excluded.category, label = excluded.label, policy = excluded.policy,
         is_damage_only = excluded.is_damage_only, is_restricted = excluded.is_restricted"
);

/// What was open because of the outcome is closed. A report still waits for a person.
const CLOSE: &str = concat!(
    "UPDATE review_items AS item
     SET closed_at = CASE WHEN item.kind = 'review' THEN now() END, revision = entry.revision, severity = entry.severity,
         category = coalesce(entry.category, item.category), label = entry.label, policy = entry.policy, is_damage_only = entry.is_damage_only,
         is_restricted = entry.is_restricted
     FROM ",
    items_of_arrays!(),
    " WHERE item.verdict_id = entry.verdict_id AND item.closed_at IS NULL"
);

/// The items that first judgements open; none costs nothing.
#[derive(Clone, Default)]
pub(super) struct NewItems(Vec<(Uuid, ItemArrays)>);

impl NewItems {
    pub(super) fn of<'v>(verdicts: impl Iterator<Item = &'v Verdict>, opens: &[Outcome]) -> Self {
        let new = |verdict: &'v Verdict| {
            let mut arrays = ItemArrays::default();
            arrays.push(verdict, 1, OpenItem::of(verdict, opens)?);
            Some((verdict.id, arrays))
        };
        Self(verdicts.filter_map(new).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Opens the items of the verdicts that were written, in the transaction that wrote them.
    pub(super) async fn open(
        &self,
        c: &mut PgConnection,
        is_written: impl Fn(&Uuid) -> bool + Send,
    ) -> Result<(), sqlx::Error> {
        let mut all = ItemArrays::default();
        for (_, item) in self.0.iter().filter(|(verdict, _)| is_written(verdict)) {
            all.verdict.extend(&item.verdict);
            all.revision.extend(&item.revision);
            all.rank.extend(&item.rank);
            all.severity.extend(&item.severity);
            all.category.extend(item.category.iter().cloned());
            all.label.extend(item.label.iter().cloned());
            all.bucket.extend(item.bucket.iter().cloned());
            all.policy.extend(item.policy.iter().cloned());
            all.is_damage_only.extend(&item.is_damage_only);
            all.is_restricted.extend(&item.is_restricted);
        }
        all.execute(c, OPEN).await
    }
}

/// Opens, changes and closes the items of verdicts that were revised, in the transaction that revised them.
pub(super) async fn update_items(
    c: &mut PgConnection,
    revised: impl Iterator<Item = &Revise>,
    opens: &[Outcome],
) -> Result<(), sqlx::Error> {
    let (mut opened, mut others) = (ItemArrays::default(), ItemArrays::default());
    for revise in revised {
        let (verdict, number) = (&revise.verdict, revise.revision().number);
        match OpenItem::of(verdict, opens) {
            Some(item) => opened.push(verdict, number, item),
            None => others.push(verdict, number, OpenItem::describing(verdict)),
        }
    }
    opened.execute(&mut *c, OPEN).await?;
    others.execute(c, CLOSE).await
}

#[async_trait]
impl Reviews for Postgres {
    async fn open_items(
        &self,
        filter: &ItemFilter,
        behind: Option<ItemPosition>,
        limit: u32,
    ) -> Result<ItemPage, LedgerError> {
        let filter = filter.clone();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let mut query = QueryBuilder::new(concat!(
                    "SELECT ",
                    item_columns!(),
                    " FROM review_items AS item WHERE item.closed_at IS NULL"
                ));
                push_item_filter(&mut query, &filter);
                if let Some(place) = behind {
                    query.push(concat!(" AND (", queue_order!(), ") > (")).push_bind(place.rank);
                    query.push(", coalesce(").push_bind(place.due_at).push("::timestamptz, 'infinity'), ");
                    query.push_bind(place.severity.saturating_neg()).push("::smallint, ").push_bind(place.opened_at);
                    query.push(", ").push_bind(place.id).push(")");
                }
                // As a number in the text, because a plan for an unknown LIMIT may sort the whole queue.
                query.push(format_args!(concat!(" ORDER BY ", queue_order!(), " LIMIT {}"), limit));
                let rows = query.build().fetch_all(&mut *c).await?;
                let items = rows.iter().map(read_item).collect::<Result<Vec<_>, _>>()?;
                let next = items.last().filter(|_| items.len() >= limit as usize).map(|item| item.position);
                Ok(ItemPage { items: with_verdicts(c, items).await?, next })
            })
        })
        .await
    }

    async fn claim_items(&self, claim: &Claim) -> Result<Vec<ItemWithVerdict>, LedgerError> {
        let attempt = || {
            let claim = claim.clone();
            self.run(RESPONSE_TIMEOUT, move |c| Box::pin(async move { claim_items(c, &claim).await }))
        };
        retry::retry_briefly(is_contended, attempt).await
    }

    async fn renew_claims(
        &self,
        actor: &str,
        items: &[Uuid],
        lease: Duration,
        among: &ItemFilter,
    ) -> Result<Vec<Uuid>, LedgerError> {
        let (actor, items, among) = (actor.to_owned(), items.to_vec(), among.clone());
        let attempt = || {
            let (actor, items, among) = (actor.clone(), items.clone(), among.clone());
            self.run(RESPONSE_TIMEOUT, move |c| {
                Box::pin(async move {
                    let mut query = QueryBuilder::new(
                        "UPDATE review_items AS item SET lease_until = now() + make_interval(secs => ",
                    );
                    query.push_bind(lease.as_secs_f64()).push(") WHERE item.lease_until > now()");
                    push_held(&mut query, actor, items, &among);
                    query.push(" RETURNING item.id");
                    query.build_query_scalar().fetch_all(c).await
                })
            })
        };
        retry::retry_briefly(is_contended, attempt).await
    }

    async fn release_claims(&self, actor: &str, items: &[Uuid], among: &ItemFilter) -> Result<u64, LedgerError> {
        let (actor, items, among) = (actor.to_owned(), items.to_vec(), among.clone());
        let attempt = || {
            let (actor, items, among) = (actor.clone(), items.clone(), among.clone());
            self.run(RESPONSE_TIMEOUT, move |c| {
                Box::pin(async move {
                    let mut query =
                        QueryBuilder::new(concat!("UPDATE review_items AS item SET ", no_claim!(), " WHERE true"));
                    push_held(&mut query, actor, items, &among);
                    Ok(query.build().execute(c).await?.rows_affected())
                })
            })
        };
        retry::retry_briefly(is_contended, attempt).await
    }

    async fn decide(&self, decide: &Decide) -> Result<Decided, LedgerError> {
        let attempt = || {
            let (decide, opens) = (decide.clone(), Arc::clone(&self.opens));
            self.run(RESPONSE_TIMEOUT, move |c| Box::pin(async move { record_decision(c, &decide, &opens).await }))
        };
        retry::retry_briefly(is_contended, attempt).await
    }

    async fn report(&self, report: &Report) -> Result<Reported, LedgerError> {
        let attempt = || {
            let report = report.clone();
            self.run(RESPONSE_TIMEOUT, move |c| Box::pin(async move { record_report(c, &report).await }))
        };
        retry::retry_briefly(is_contended, attempt).await
    }

    async fn find_decided(
        &self,
        sha256: [u8; 32],
        policy_sha256: &str,
        since: OffsetDateTime,
    ) -> Result<Option<StoredVerdict>, LedgerError> {
        let policy = policy_sha256.to_owned();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = sqlx::query(concat!(
                    select_verdicts!(),
                    " WHERE verdicts.id = (
                          SELECT verdict_id FROM decided_contents AS content JOIN verdicts AS judged ON judged.id = verdict_id
                          WHERE content.sha256 = $1 AND content.decided_at >= $3 AND judged.policy ->> 'sha256' = $2
                          ORDER BY content.decided_at DESC LIMIT 1)"
                ));
                let row = query.bind(sha256.to_vec()).bind(policy).bind(since).fetch_optional(c).await?;
                row.as_ref().map(read_verdict_row).transpose()
            })
        })
        .await
    }

    async fn queue_state(&self) -> Result<Vec<QueueState>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = format!(
                    concat!(
                        "SELECT kind, count(*) AS items, count(*) FILTER (WHERE lease_until <= now()) AS lapsed,
                             greatest(extract(epoch FROM now() - min(due_at) FILTER (WHERE due_at < 'infinity')), 0)
                                 ::double precision AS overdue
                         FROM (SELECT item.kind, item.lease_until, item.due_at FROM review_items AS item
                               WHERE item.closed_at IS NULL ORDER BY ",
                        queue_order!(),
                        " LIMIT {}) AS open GROUP BY kind"
                    ),
                    MAX_COUNTED_ITEMS
                );
                let rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_all(c).await?;
                rows.iter().map(read_queue_state).collect()
            })
        })
        .await
    }

    async fn decisions_on(&self, verdict: Uuid) -> Result<Vec<Decision>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = concat!(decision_columns!(), " WHERE decision.verdict_id = $1 ORDER BY at, id");
                sqlx::query(query).bind(verdict).fetch_all(c).await?.iter().map(read_decision).collect()
            })
        })
        .await
    }

    async fn reports_on(&self, verdict: Uuid) -> Result<Vec<Report>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query =
                    concat!(report_columns!(), " WHERE report.verdict_id = $1 ORDER BY report.made_at, report.id");
                sqlx::query(query).bind(verdict).fetch_all(c).await?.iter().map(read_report).collect()
            })
        })
        .await
    }

    async fn page_of_decisions(
        &self,
        filter: &DecisionFilter,
        from: Option<Position>,
        limit: u32,
    ) -> Result<DecisionPage, LedgerError> {
        let filter = filter.clone();
        self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let mut query = QueryBuilder::new(concat!(decision_columns!(), " WHERE true"));
                let first = filter.since.map(|at| Position { at, id: Uuid::nil() });
                if let Some(place) = from.max(first) {
                    query.push(" AND (decision.at, decision.id) >= (").push_bind(place.at);
                    query.push(", ").push_bind(place.id).push(")");
                }
                if let Some(until) = filter.until {
                    query.push(" AND decision.at < ").push_bind(until);
                }
                if !filter.actors.is_empty() {
                    query.push(" AND decision.actor = ANY(").push_bind(filter.actors).push(")");
                }
                if !filter.actions.is_empty() {
                    let words: Vec<&'static str> = filter.actions.iter().map(|action| action.as_str()).collect();
                    query.push(" AND decision.action = ANY(").push_bind(words).push(")");
                }
                query.push(format_args!(" ORDER BY decision.at, decision.id LIMIT {limit}"));
                let rows = query.build().fetch_all(c).await?;
                let decisions = rows.iter().map(read_decision).collect::<Result<Vec<_>, _>>()?;
                let last = decisions.last().filter(|_| decisions.len() >= limit as usize);
                let next = last.map(|last| Position::behind(last.at, last.id));
                Ok(DecisionPage { decisions, next })
            })
        })
        .await
    }
}

/// The condition of those of some items that a person has and that are selected.
fn push_held(query: &mut QueryBuilder<sqlx::Postgres>, actor: String, items: Vec<Uuid>, among: &ItemFilter) {
    query.push(" AND item.closed_at IS NULL AND item.claimed_by = ").push_bind(actor);
    query.push(" AND item.id = ANY(").push_bind(items).push(")");
    push_item_filter(query, among);
}

fn push_item_filter(query: &mut QueryBuilder<sqlx::Postgres>, filter: &ItemFilter) {
    if !filter.kinds.is_empty() {
        let words: Vec<&'static str> = filter.kinds.iter().map(|kind| kind.as_str()).collect();
        query.push(" AND item.kind = ANY(").push_bind(words).push(")");
    }
    for policies in [&filter.policies, &filter.bound_policies].into_iter().filter(|list| !list.is_empty()) {
        query.push(" AND item.policy = ANY(").push_bind(policies.clone()).push(")");
    }
    if !filter.categories.is_empty() {
        query.push(" AND EXISTS (SELECT FROM unnest(").push_bind(filter.categories.clone());
        query.push("::text[]) AS wanted WHERE item.category = wanted OR starts_with(item.category, wanted || '/'))");
    }
    if let Some(severity) = filter.min_severity {
        query.push(" AND item.severity >= ").push_bind(i16::from(severity));
    }
    for buckets in [&filter.buckets, &filter.bound_buckets].into_iter().filter(|list| !list.is_empty()) {
        let patterns: Vec<String> = buckets.iter().map(|name| like_pattern(name)).collect();
        query.push(" AND item.bucket LIKE ANY(").push_bind(patterns).push(")");
    }
    if !filter.labels.is_empty() {
        query.push(" AND item.label = ANY(").push_bind(filter.labels.clone()).push(")");
    }
    if let Some(before) = filter.opened_before {
        query.push(" AND item.opened_at < ").push_bind(before);
    }
    if let Some(damage_only) = filter.damage_only {
        query.push(" AND item.is_damage_only = ").push_bind(damage_only);
    }
    if let Some(escalated) = filter.escalated {
        query.push(" AND (item.escalated_at IS NOT NULL) = ").push_bind(escalated);
    }
    if filter.unclaimed {
        query.push(" AND (item.lease_until IS NULL OR item.lease_until <= now())");
    }
}

async fn claim_items(c: &mut PgConnection, claim: &Claim) -> Result<Vec<ItemWithVerdict>, sqlx::Error> {
    let mut query =
        QueryBuilder::new("WITH free AS (SELECT item.id FROM review_items AS item WHERE item.closed_at IS NULL");
    // A person does not get back what that person has skipped or escalated.
    query.push(" AND NOT ").push_bind(claim.actor.clone()).push(" = ANY(item.not_for || item.skipped_by)");
    push_item_filter(&mut query, &ItemFilter { unclaimed: true, ..claim.filter.clone() });
    query.push(format_args!(
        concat!(
            " ORDER BY ",
            queue_order!(),
            " LIMIT {} FOR UPDATE SKIP LOCKED) UPDATE review_items AS item SET claimed_by = "
        ),
        claim.count
    ));
    // After the item was locked: a report that came before is among those that are read next.
    query.push_bind(claim.actor.clone());
    query.push(", claimed_at = clock_timestamp(), lease_until = now() + make_interval(secs => ");
    query.push_bind(claim.lease.as_secs_f64());
    query.push(concat!(") FROM free WHERE item.id = free.id RETURNING ", item_columns!()));
    let rows = query.build().fetch_all(&mut *c).await?;
    let mut items = rows.iter().map(read_item).collect::<Result<Vec<_>, _>>()?;
    items.sort_by_key(|ReviewItem { position: at, .. }| {
        (at.rank, at.due_at.is_none(), at.due_at, -at.severity, at.opened_at, at.id)
    });
    with_verdicts(c, items).await
}

/// Adds verdicts and reports. An item whose verdict was deleted meanwhile is left out.
async fn with_verdicts(c: &mut PgConnection, items: Vec<ReviewItem>) -> Result<Vec<ItemWithVerdict>, sqlx::Error> {
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = items.iter().map(|item| item.verdict).collect();
    let query = concat!(select_verdicts!(), " WHERE verdicts.id = ANY($1)");
    let rows = sqlx::query(query).bind(&ids).fetch_all(&mut *c).await?;
    let mut verdicts = std::collections::HashMap::new();
    for row in &rows {
        let stored = read_verdict_row(row)?;
        verdicts.insert(stored.verdict.id, stored);
    }
    if verdicts.values().any(|stored| stored.verdict.judgement.findings.iter().any(|finding| finding.bank.is_some())) {
        // As it is now: a bank may have become restricted since, also after a person has cleared the image.
        let query = "SELECT name FROM banks WHERE restricted";
        let banks: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut *c).await?;
        let banks = banks.into_iter().collect();
        verdicts.values_mut().for_each(|stored| stored.verdict.judgement.restrict(&banks));
    }
    let reported: (Vec<Uuid>, Vec<OffsetDateTime>) =
        items.iter().filter(|item| item.kind >= ItemKind::Report).map(|item| (item.verdict, item.opened_at)).unzip();
    let mut reports: Vec<Report> = Vec::new();
    if !reported.0.is_empty() {
        // What is older was answered: the decision has closed the item that the report had opened.
        let query = concat!(
            report_columns!(),
            " JOIN UNNEST($1::uuid[], $2::timestamptz[]) AS open (verdict_id, opened_at)
                  ON open.verdict_id = report.verdict_id AND report.made_at >= open.opened_at
              ORDER BY report.made_at, report.id"
        );
        let rows = sqlx::query(query).bind(reported.0).bind(reported.1).fetch_all(c).await?;
        reports = rows.iter().map(read_report).collect::<Result<_, _>>()?;
    }
    let with_verdict = |mut item: ReviewItem| {
        let stored = verdicts.get(&item.verdict)?.clone();
        item.is_restricted |= stored.verdict.judgement.is_restricted();
        let reports = reports.iter().filter(|report| report.verdict == item.verdict).cloned().collect();
        Some(ItemWithVerdict { item, stored, reports })
    };
    Ok(items.into_iter().filter_map(with_verdict).collect())
}

/// The open item of a verdict, as far as a decision needs it.
struct OpenItemRow {
    id: Uuid,
    opened_at: OffsetDateTime,
    /// Who has it now, and until when.
    claim: Option<(String, OffsetDateTime)>,
    /// Who has claimed it last, and when, also where the lease has ended.
    claimed: Option<(String, OffsetDateTime)>,
    not_for: Vec<String>,
}

async fn lock_item(c: &mut PgConnection, verdict: Uuid) -> Result<Option<OpenItemRow>, sqlx::Error> {
    let query = "SELECT id, opened_at, not_for, claimed_by, claimed_at, lease_until,
                     coalesce(lease_until > now(), false) AS is_claimed
                 FROM review_items WHERE verdict_id = $1 AND closed_at IS NULL FOR UPDATE";
    let Some(row) = sqlx::query(query).bind(verdict).fetch_optional(c).await? else { return Ok(None) };
    let claimed_by: Option<String> = row.try_get("claimed_by")?;
    let [claimed_at, until]: [Option<OffsetDateTime>; 2] = [row.try_get("claimed_at")?, row.try_get("lease_until")?];
    let is_claimed: bool = row.try_get("is_claimed")?;
    Ok(Some(OpenItemRow {
        id: row.try_get("id")?,
        opened_at: row.try_get("opened_at")?,
        claim: claimed_by.clone().zip(until).filter(|_| is_claimed),
        claimed: claimed_by.zip(claimed_at),
        not_for: row.try_get("not_for")?,
    }))
}

/// What an item is opened for: reports that wait for a decision.
#[derive(Debug)]
struct ReportsToOpen {
    /// The kind that weighs most.
    kind: ItemKind,
    /// When the first one was made. None where it is made next.
    since: Option<OffsetDateTime>,
    due_at: Option<OffsetDateTime>,
    category: Option<String>,
    has_appeal: bool,
}

/// The reports behind an open item that the person who decides has not seen. The inner error is that of a report that is not
/// about this verdict.
async fn find_unseen(
    c: &mut PgConnection,
    decide: &Decide,
    item: &OpenItemRow,
) -> Result<Result<Option<ReportsToOpen>, Decided>, sqlx::Error> {
    let Decide { decision, last_report, .. } = decide;
    let seen_up_to = match last_report {
        Some(report) => {
            let query = "SELECT made_at FROM reports WHERE id = $1 AND verdict_id = $2";
            let query = sqlx::query_scalar(query).bind(report).bind(decision.verdict);
            let made_at: Option<OffsetDateTime> = query.fetch_optional(&mut *c).await?;
            let Some(made_at) = made_at else { return Ok(Err(Decided::UnknownReport)) };
            made_at
        }
        None => match &item.claimed {
            Some((actor, claimed_at)) if *actor == decision.actor => *claimed_at,
            _ => return Ok(Ok(None)),
        },
    };
    // Reports on one verdict are made one after the other, so that no two have the same time.
    let query = concat!(
        report_columns!(),
        " WHERE report.verdict_id = $1 AND report.made_at >= $2 AND report.made_at > $3 ORDER BY report.made_at"
    );
    let query = sqlx::query(query).bind(decision.verdict).bind(item.opened_at).bind(seen_up_to);
    let unseen = query.fetch_all(c).await?.iter().map(read_report).collect::<Result<Vec<_>, _>>()?;
    let kinds = unseen.iter().map(|report| report.kind);
    let waiting = |(first, kind): (&Report, ItemKind)| ReportsToOpen {
        kind,
        since: Some(first.made_at),
        due_at: unseen.iter().filter_map(|report| report.due_at).min(),
        category: unseen.iter().find_map(|report| report.category.clone()),
        has_appeal: kinds.clone().any(|kind| kind == ItemKind::Appeal),
    };
    Ok(Ok(unseen.first().zip(kinds.clone().max()).map(waiting)))
}

/// Records a decision, or nothing where it is refused.
async fn record_decision(c: &mut PgConnection, decide: &Decide, opens: &[Outcome]) -> Result<Decided, sqlx::Error> {
    let mut transaction = c.begin().await?;
    let decided = decide_in(&mut transaction, decide, opens).await?;
    // Both are waited for, so that no lock outlives the answer: a claim that follows leaves out what is locked.
    match decided {
        Decided::Done { .. } => transaction.commit().await?,
        _ => transaction.rollback().await?,
    }
    Ok(decided)
}

/// A decision within a transaction.
async fn decide_in(c: &mut PgConnection, decide: &Decide, opens: &[Outcome]) -> Result<Decided, sqlx::Error> {
    let Decide { decision, effect, event_delay, .. } = decide;
    let Some(locked) = lock_verdicts(c, &[decision.verdict]).await?.remove(&decision.verdict) else {
        return Ok(Decided::Missing);
    };
    if locked.existing.revision != decision.revision {
        let query = concat!(select_verdicts!(), " WHERE verdicts.id = $1");
        let row = sqlx::query(query).bind(decision.verdict).fetch_one(&mut *c).await?;
        return Ok(Decided::Stale(Box::new(read_verdict_row(&row)?)));
    }
    let item = lock_item(c, decision.verdict).await?;
    if matches!(effect, DecisionEffect::Escalate | DecisionEffect::Skip)
        && is_repeated(c, decision, item.as_ref()).await?
    {
        return Ok(Decided::Repeated { revision: decision.revision });
    }
    if let Some((actor, until)) = item.as_ref().and_then(|item| item.claim.clone())
        && actor != decision.actor
    {
        return Ok(Decided::Claimed { actor, until });
    }
    let mut unseen = None;
    let decided = match effect {
        DecisionEffect::Judge(_) if item.as_ref().is_some_and(|item| item.not_for.contains(&decision.actor)) => {
            return Ok(Decided::OwnDecision);
        }
        DecisionEffect::Judge(revise) => {
            if let Some(item) = &item {
                match find_unseen(c, decide, item).await? {
                    Ok(found) => unseen = found.map(|unseen| (revise, unseen)),
                    Err(refused) => return Ok(refused),
                }
            }
            let event = judge(c, decision, revise, &locked, *event_delay).await?;
            Decided::Done { revision: revise.revision().number, event }
        }
        DecisionEffect::Undo(undo) => {
            let undone = match find_undoable(c, decision, undo).await? {
                Ok(undone) => undone,
                Err(refused) => return Ok(refused),
            };
            let event = take_back(c, undone, undo, &locked, opens).await?;
            Decided::Done { revision: undo.revise.revision().number, event }
        }
        DecisionEffect::Escalate | DecisionEffect::Skip => {
            let Some(item) = item else { return Ok(Decided::NotOpen) };
            let query = match effect {
                DecisionEffect::Escalate => concat!(
                    "UPDATE review_items SET ",
                    no_claim!(),
                    ", escalated_at = coalesce(escalated_at, now()), skipped_by = array_remove(skipped_by, $2) || $2
                     WHERE id = $1"
                ),
                _ => concat!(
                    "UPDATE review_items SET ",
                    no_claim!(),
                    ", skipped_by = array_append(skipped_by, $2) WHERE id = $1 AND NOT $2 = ANY(skipped_by)"
                ),
            };
            sqlx::query(query).bind(item.id).bind(&decision.actor).execute(&mut *c).await?;
            Decided::Done { revision: decision.revision, event: None }
        }
    };
    insert_decision(c, decision).await?;
    if let Some((revise, unseen)) = unseen {
        let (verdict, revision) = (&revise.verdict, revise.revision().number);
        open_for_reports(c, verdict, revision, &unseen).await?;
    }
    Ok(decided)
}

/// Whether this person has done just this to the open item before, so that only the answer was lost.
async fn is_repeated(
    c: &mut PgConnection,
    decision: &Decision,
    item: Option<&OpenItemRow>,
) -> Result<bool, sqlx::Error> {
    let query = "SELECT EXISTS (
                     SELECT FROM decisions WHERE verdict_id = $1 AND revision = $2 AND actor = $3 AND action = $4
                         AND at >= coalesce($5, '-infinity'))";
    let query = sqlx::query_scalar(query).bind(decision.verdict);
    let query = query.bind(i32::try_from(decision.revision).unwrap_or(i32::MAX)).bind(&decision.actor);
    query.bind(decision.action.as_str()).bind(item.map(|item| item.opened_at)).fetch_one(c).await
}

/// Writes what a person has decided, and closes the item.
async fn judge(
    c: &mut PgConnection,
    decision: &Decision,
    revise: &Revise,
    locked: &LockedVerdict,
    event_delay: Duration,
) -> Result<Option<Event>, sqlx::Error> {
    let id = revise.verdict.id;
    insert_history(&mut *c, &[id]).await?;
    // Without an event of its own, an earlier one that has not left still says what holds, if only the source has changed.
    if revise.event.is_some() || revise.verdict.judgement.outcome != locked.judgement.outcome {
        delete_stale_events(&mut *c, &[(revise, locked)]).await?;
    }
    let event = write_judgement(&mut *c, revise, event_delay).await?;
    let close = concat!(
        "UPDATE review_items SET closed_at = now(), closed_by = $2, decision = $3, ",
        no_claim!(),
        " WHERE verdict_id = $1 AND closed_at IS NULL"
    );
    sqlx::query(close).bind(id).bind(&decision.actor).bind(decision.id).execute(&mut *c).await?;
    if let Some(sha256) = revise.verdict.sha256.filter(|_| !revise.verdict.judgement.is_restricted()) {
        keep_content(c, id, sha256, revise.judged_at).await?;
    }
    Ok(event)
}

/// Keeps that a person has decided about this content.
async fn keep_content(
    c: &mut PgConnection,
    verdict: Uuid,
    sha256: [u8; 32],
    decided_at: OffsetDateTime,
) -> Result<(), sqlx::Error> {
    let keep = "INSERT INTO decided_contents (verdict_id, sha256, decided_at) VALUES ($1, $2, $3)
                ON CONFLICT (verdict_id) DO UPDATE SET sha256 = excluded.sha256, decided_at = excluded.decided_at";
    sqlx::query(keep).bind(verdict).bind(sha256.to_vec()).bind(decided_at).execute(c).await.map(drop)
}

/// The decision that can be undone, or why there is none. Its event is locked, so that it does not leave meanwhile.
async fn find_undoable(
    c: &mut PgConnection,
    decision: &Decision,
    undo: &Undo,
) -> Result<Result<Uuid, Decided>, sqlx::Error> {
    let Undo { made_on, event, window, .. } = undo;
    let query = format!(
        "SELECT id, actor, at > now() - make_interval(secs => $3) AS is_fresh FROM decisions
         WHERE verdict_id = $1 AND revision = $2 AND action IN {JUDGING} ORDER BY at DESC LIMIT 1"
    );
    let made_on = i32::try_from(*made_on).unwrap_or(i32::MAX);
    let query = sqlx::query(sqlx::AssertSqlSafe(query)).bind(decision.verdict).bind(made_on);
    let Some(row) = query.bind(window.as_secs_f64()).fetch_optional(&mut *c).await? else {
        return Ok(Err(Decided::NothingToUndo));
    };
    let (id, actor, is_fresh): (Uuid, String, bool) =
        (row.try_get("id")?, row.try_get("actor")?, row.try_get("is_fresh")?);
    if actor != decision.actor {
        return Ok(Err(Decided::NothingToUndo));
    }
    let query = "SELECT published_at IS NOT NULL OR tries > 0 FROM outbox WHERE event_id = $1 FOR UPDATE";
    let mut has_left: Vec<bool> = sqlx::query_scalar(query).bind(event).fetch_all(&mut *c).await?;
    let query = "SELECT delivered_at IS NOT NULL OR attempts > 0 FROM webhook_deliveries
                 WHERE verdict_id = $1 AND event_id = $2 FOR UPDATE";
    let sent: Vec<bool> = sqlx::query_scalar(query).bind(decision.verdict).bind(event).fetch_all(c).await?;
    has_left.extend(sent);
    let is_too_late = if has_left.is_empty() { !is_fresh } else { has_left.contains(&true) };
    Ok(if is_too_late { Err(Decided::TooLate) } else { Ok(id) })
}

/// Writes what holds without a decision, and opens the item that the decision has closed.
async fn take_back(
    c: &mut PgConnection,
    undone: Uuid,
    undo: &Undo,
    locked: &LockedVerdict,
    opens: &[Outcome],
) -> Result<Option<Event>, sqlx::Error> {
    let Undo { revise, event, says_same, is_news, content_decided_at, .. } = undo;
    let id = revise.verdict.id;
    insert_history(&mut *c, &[id]).await?;
    for query in [
        "DELETE FROM outbox WHERE verdict_id = $1 AND event_id = $2",
        "DELETE FROM webhook_deliveries WHERE verdict_id = $1 AND event_id = $2",
    ] {
        sqlx::query(query).bind(id).bind(event).execute(&mut *c).await?;
    }
    if *is_news {
        delete_stale_events(&mut *c, &[(revise, locked)]).await?;
    }
    let revise = Revise { event: unsaid_event(&mut *c, revise, says_same).await?, ..revise.clone() };
    let event = write_judgement(&mut *c, &revise, Duration::ZERO).await?;
    reopen(&mut *c, undone, id).await?;
    update_items(&mut *c, [&revise].into_iter(), opens).await?;
    match revise.verdict.sha256.zip(*content_decided_at) {
        Some((sha256, at)) => keep_content(c, id, sha256, at).await?,
        None => {
            sqlx::query("DELETE FROM decided_contents WHERE verdict_id = $1").bind(id).execute(c).await?;
        }
    }
    Ok(event)
}

/// Opens the item that a decision has closed. Where reports have opened another one meanwhile, that one gets its reasons, so
/// that no report is lost.
async fn reopen(c: &mut PgConnection, undone: Uuid, verdict: Uuid) -> Result<(), sqlx::Error> {
    let merge = "UPDATE review_items AS other
                 SET opened_at = least(other.opened_at, item.opened_at), rank = least(other.rank, item.rank),
                     due_at = least(other.due_at, item.due_at),
                     kind = CASE WHEN array_position(ARRAY['sample', 'review', 'report', 'appeal', 'legal'], item.kind)
                                          > array_position(ARRAY['sample', 'review', 'report', 'appeal', 'legal'], other.kind)
                                 THEN item.kind ELSE other.kind END,
                     not_for = other.not_for || item.not_for, skipped_by = other.skipped_by || item.skipped_by,
                     escalated_at = coalesce(other.escalated_at, item.escalated_at)
                 FROM review_items AS item
                 WHERE item.decision = $1 AND other.verdict_id = $2 AND other.closed_at IS NULL";
    let merged = sqlx::query(merge).bind(undone).bind(verdict).execute(&mut *c).await?.rows_affected();
    if merged == 0 {
        let open = "UPDATE review_items SET closed_at = NULL, closed_by = NULL, decision = NULL
                    WHERE decision = $1 AND NOT EXISTS (
                        SELECT FROM review_items AS other WHERE other.verdict_id = $2 AND other.closed_at IS NULL)";
        sqlx::query(open).bind(undone).bind(verdict).execute(c).await?;
    }
    Ok(())
}

/// The event of a revision, for those destinations whose last event is none of `says_same`.
async fn unsaid_event(c: &mut PgConnection, revise: &Revise, says_same: &[Uuid]) -> Result<Option<Event>, sqlx::Error> {
    let Some(mut event) = revise.event.clone() else { return Ok(None) };
    let id = revise.verdict.id;
    let query = "SELECT event_id FROM outbox WHERE verdict_id = $1
                 ORDER BY (payload #>> '{data,revision}')::integer DESC NULLS LAST LIMIT 1";
    let last: Option<Uuid> = sqlx::query_scalar(query).bind(id).fetch_optional(&mut *c).await?;
    let query = "SELECT endpoint, event_id FROM (
                     SELECT DISTINCT ON (endpoint) endpoint, event_id FROM webhook_deliveries WHERE verdict_id = $1
                     ORDER BY endpoint, id DESC) AS last
                 WHERE event_id = ANY($2)";
    let heard: Vec<(String, Uuid)> = sqlx::query_as(query).bind(id).bind(says_same).fetch_all(c).await?;
    event.destinations.is_published &= !last.is_some_and(|last| says_same.contains(&last));
    event.destinations.webhooks.retain(|webhook| heard.iter().all(|(endpoint, _)| endpoint != webhook));
    let has_destination = event.destinations.is_published || !event.destinations.webhooks.is_empty();
    Ok(Some(event).filter(|_| has_destination))
}

async fn write_judgement(
    c: &mut PgConnection,
    revise: &Revise,
    due_in: Duration,
) -> Result<Option<Event>, sqlx::Error> {
    let id = revise.verdict.id;
    let events = revise.event.iter().map(|event| (id, event));
    let (arrays, deliveries) = (EventArrays::of(events.clone()), DeliveryArrays::of(events));
    let written = JudgementArrays::of([revise].into_iter()).write(&mut *c, &arrays, due_in).await?;
    deliveries.insert(c, due_in).await?;
    Ok(stored_event(&written, id, revise.event.as_ref()))
}

async fn insert_decision(c: &mut PgConnection, decision: &Decision) -> Result<(), sqlx::Error> {
    let query = "INSERT INTO decisions (id, verdict_id, revision, actor, action, category, batch_id)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let query = sqlx::query(query).bind(decision.id).bind(decision.verdict);
    let query = query.bind(i32::try_from(decision.revision).unwrap_or(i32::MAX)).bind(&decision.actor);
    let query = query.bind(decision.action.as_str()).bind(&decision.category).bind(decision.batch);
    query.execute(&mut *c).await?;
    if decision.note.is_some() || decision.name.is_some() {
        let query = "INSERT INTO decision_notes (decision, verdict_id, note, name) VALUES ($1, $2, $3, $4)";
        let query = sqlx::query(query).bind(decision.id).bind(decision.verdict);
        query.bind(&decision.note).bind(&decision.name).execute(c).await?;
    }
    Ok(())
}

/// The people who have decided about a verdict, or about equal bytes, whose decision it may have taken over.
const DECIDERS: &str = "SELECT DISTINCT actor FROM decisions
     WHERE action IN ('flag', 'clear', 'uphold')
         AND verdict_id = ANY(ARRAY(SELECT verdict_id FROM decided_contents WHERE sha256 = $2) || $1::uuid)";

/// Parameter 14 is the time since which reports wait: those that are older were answered. Without it they wait from now on.
const REPORT: &str = "INSERT INTO review_items AS item
         (verdict_id, kind, revision, rank, due_at, severity, category, label, bucket, policy, is_damage_only, is_restricted, not_for,
          opened_at)
     VALUES ($1, $2, $3, $4, coalesce($5, 'infinity'), $6, $7, $8, $9, $10, $11, $12, $13, coalesce($14, clock_timestamp()))
     ON CONFLICT (verdict_id) WHERE closed_at IS NULL DO UPDATE
     SET kind = CASE WHEN array_position(ARRAY['sample', 'review', 'report', 'appeal', 'legal'], excluded.kind)
                          > array_position(ARRAY['sample', 'review', 'report', 'appeal', 'legal'], item.kind)
                     THEN excluded.kind ELSE item.kind END,
         rank = least(item.rank, excluded.rank), due_at = least(item.due_at, excluded.due_at),
         not_for = item.not_for || excluded.not_for,
         claimed_by = CASE WHEN item.claimed_by = ANY(excluded.not_for) THEN NULL ELSE item.claimed_by END,
         claimed_at = CASE WHEN item.claimed_by = ANY(excluded.not_for) THEN NULL ELSE item.claimed_at END,
         lease_until = CASE WHEN item.claimed_by = ANY(excluded.not_for) THEN NULL ELSE item.lease_until END";

/// Opens the item of a verdict for reports, or adds them to the reasons of the one that is open.
async fn open_for_reports(
    c: &mut PgConnection,
    verdict: &Verdict,
    revision: u32,
    waiting: &ReportsToOpen,
) -> Result<(), sqlx::Error> {
    let mut not_for: Vec<String> = Vec::new();
    if waiting.has_appeal {
        let query = sqlx::query_scalar(DECIDERS).bind(verdict.id).bind(verdict.sha256.map(Vec::from));
        not_for = query.fetch_all(&mut *c).await?;
    }
    let item = OpenItem::describing(verdict);
    let rank = if waiting.kind == ItemKind::Legal { LEGAL_RANK } else { LEGAL_RANK + 1 };
    let query = sqlx::query(REPORT).bind(verdict.id).bind(waiting.kind.as_str());
    let query = query.bind(i32::try_from(revision).unwrap_or(i32::MAX)).bind(rank).bind(waiting.due_at);
    let category = waiting.category.clone().or(item.category);
    let query = query.bind(item.severity).bind(category).bind(item.label).bind(&verdict.image.bucket);
    let query = query.bind(&verdict.policy.name).bind(item.is_damage_only).bind(item.is_restricted).bind(not_for);
    query.bind(waiting.since).execute(c).await.map(drop)
}

async fn record_report(c: &mut PgConnection, report: &Report) -> Result<Reported, sqlx::Error> {
    let mut transaction = c.begin().await?;
    let reported = report_in(&mut transaction, report).await?;
    match reported {
        Reported::Recorded => transaction.commit().await?,
        _ => transaction.rollback().await?,
    }
    Ok(reported)
}

/// A report within a transaction.
async fn report_in(c: &mut PgConnection, report: &Report) -> Result<Reported, sqlx::Error> {
    // The verdict is neither erased nor revised meanwhile, and no other report on it is made.
    let query = concat!(select_verdicts!(), " WHERE verdicts.id = $1 FOR UPDATE");
    let row = sqlx::query(query).bind(report.verdict).fetch_optional(&mut *c).await?;
    let Some(row) = row else { return Ok(Reported::Missing) };
    let StoredVerdict { verdict, revision, .. } = read_verdict_row(&row)?;
    let query =
        "SELECT count(*) FROM reports AS report JOIN review_items AS item ON item.verdict_id = report.verdict_id
                 WHERE report.verdict_id = $1 AND report.kind = $2 AND item.closed_at IS NULL
                     AND report.made_at >= item.opened_at";
    let query = sqlx::query_scalar(query).bind(report.verdict).bind(report.kind.as_str());
    let waiting: i64 = query.fetch_one(&mut *c).await?;
    if waiting >= MAX_WAITING_REPORTS.into() {
        return Ok(Reported::TooMany);
    }
    let asked = ReportsToOpen {
        kind: report.kind,
        since: None,
        due_at: report.due_at,
        category: report.category.clone(),
        has_appeal: report.kind == ItemKind::Appeal,
    };
    open_for_reports(c, &verdict, revision.number, &asked).await?;
    // Once the item is locked, so that a claim has come before this time, or shows the report.
    let query = "INSERT INTO reports (id, verdict_id, kind, category, note, reporter, reference, due_at, made_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp())";
    let query = sqlx::query(query).bind(report.id).bind(report.verdict).bind(report.kind.as_str());
    let query = query.bind(&report.category).bind(&report.note).bind(&report.reporter);
    query.bind(&report.reference).bind(report.due_at).execute(&mut *c).await?;
    Ok(Reported::Recorded)
}

fn read_queue_state(row: &PgRow) -> Result<QueueState, sqlx::Error> {
    let (kind, overdue): (String, f64) = (row.try_get("kind")?, row.try_get("overdue")?);
    let [items, lapsed]: [i64; 2] = [row.try_get("items")?, row.try_get("lapsed")?];
    Ok(QueueState {
        kind: ItemKind::parse(&kind).ok_or_else(|| unknown("kind of item", &kind))?,
        items: items.unsigned_abs(),
        overdue: Duration::try_from_secs_f64(overdue).unwrap_or_default(),
        lapsed: lapsed.unsigned_abs(),
    })
}

fn unknown(what: &str, word: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("an unknown {what}: {word}").into())
}

fn read_item(row: &PgRow) -> Result<ReviewItem, sqlx::Error> {
    let kind: String = row.try_get("kind")?;
    let (severity, revision): (i16, i32) = (row.try_get("severity")?, row.try_get("revision")?);
    let claimed: (Option<String>, Option<OffsetDateTime>) = (row.try_get("claimed_by")?, row.try_get("lease_until")?);
    let (id, due_at, opened_at) = (row.try_get("id")?, row.try_get("due_at")?, row.try_get("opened_at")?);
    Ok(ReviewItem {
        id,
        verdict: row.try_get("verdict_id")?,
        kind: ItemKind::parse(&kind).ok_or_else(|| unknown("kind of item", &kind))?,
        revision: revision_number(revision),
        category: row.try_get("category")?,
        severity: u8::try_from(severity).unwrap_or(0),
        label: row.try_get("label")?,
        bucket: row.try_get("bucket")?,
        policy: row.try_get("policy")?,
        due_at,
        opened_at,
        is_damage_only: row.try_get("is_damage_only")?,
        is_restricted: row.try_get("is_restricted")?,
        escalated_at: row.try_get("escalated_at")?,
        claim: claimed.0.zip(claimed.1),
        position: ItemPosition { rank: row.try_get("rank")?, due_at, severity, opened_at, id },
    })
}

fn read_decision(row: &PgRow) -> Result<Decision, sqlx::Error> {
    let (action, revision): (String, i32) = (row.try_get("action")?, row.try_get("revision")?);
    Ok(Decision {
        id: row.try_get("id")?,
        verdict: row.try_get("verdict_id")?,
        revision: revision_number(revision),
        actor: row.try_get("actor")?,
        action: DecisionAction::parse(&action).ok_or_else(|| unknown("action", &action))?,
        category: row.try_get("category")?,
        batch: row.try_get("batch_id")?,
        at: row.try_get("at")?,
        note: row.try_get("note")?,
        name: row.try_get("name")?,
    })
}

fn read_report(row: &PgRow) -> Result<Report, sqlx::Error> {
    let kind: String = row.try_get("kind")?;
    Ok(Report {
        id: row.try_get("id")?,
        verdict: row.try_get("verdict_id")?,
        kind: ItemKind::parse(&kind).ok_or_else(|| unknown("kind of report", &kind))?,
        category: row.try_get("category")?,
        note: row.try_get("note")?,
        reporter: row.try_get("reporter")?,
        reference: row.try_get("reference")?,
        due_at: row.try_get("due_at")?,
        made_at: row.try_get("made_at")?,
    })
}
