//! Reading, pruning and rejudging verdicts in Postgres.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::types::time::OffsetDateTime;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use super::erasure::{is_held, with_hold, without_hold};
use super::image_hashes::delete_hashes_between;
use super::pages::Parts;
use super::reviews::update_items;
use super::verdicts::{lock_verdicts, replace_history};
use super::webhooks::{DeliveryArrays, waiting_delivery};
use super::write::{EventArrays, JudgementArrays};
use super::{LONG_RESPONSE_TIMEOUT, Postgres, RESPONSE_TIMEOUT, is_contended, read_verdict_row};
use crate::job::{ImageRef, Outcome, Verdict};
use crate::ledger::columns::findings_json;
use crate::ledger::columns::to_json;
use crate::ledger::{
    Archive, EarlierState, KeptBy, LedgerError, OutboxRow, Position, PrunedPage, Revise, StoredVerdict, VerdictFilter,
    VerdictPage,
};
use crate::retry;

/// True for a verdict with an open report, else null.
macro_rules! open_report {
    () => {
        "(SELECT true FROM review_items WHERE verdict_id = verdicts.id AND closed_at IS NULL
              AND kind IN ('report', 'appeal', 'legal') LIMIT 1)"
    };
}

/// The condition of a verdict all of whose events were sent. A scalar subquery is looked up in the index for each verdict;
/// EXISTS could become a join that reads the whole outbox.
macro_rules! all_events_sent {
    () => {
        concat!(
            "(SELECT true FROM outbox WHERE verdict_id = verdicts.id AND ",
            unpublished!(),
            " LIMIT 1) IS NULL AND ",
            waiting_delivery!(),
            " IS NULL"
        )
    };
}

/// The condition of a verdict that may be pruned.
const PRUNABLE: &str = concat!(all_events_sent!(), " AND ", open_report!(), " IS NULL AND ", without_hold!());
/// The condition of a verdict that may not be pruned yet because of an open report.
const WITH_OPEN_REPORT: &str =
    concat!(all_events_sent!(), " AND ", open_report!(), " IS NOT NULL AND ", without_hold!());
/// The condition of a verdict that may not be pruned yet because of its event.
const WITH_UNPUBLISHED_EVENT: &str = concat!(
    "((SELECT true FROM outbox WHERE verdict_id = verdicts.id AND ",
    unpublished!(),
    " LIMIT 1) IS NOT NULL OR ",
    waiting_delivery!(),
    " IS NOT NULL) AND ",
    without_hold!()
);

impl Postgres {
    /// How many selected verdicts of one page satisfy the condition.
    async fn count_page(
        &self,
        filter: &VerdictFilter,
        from: Option<Position>,
        condition: &'static str,
    ) -> Result<PrunedPage, LedgerError> {
        let filter = filter.clone();
        self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let mut parts = Parts::new(&filter, from);
                let next = parts.shorten(&mut *c).await?;
                Ok(PrunedPage { verdicts: parts.count(c, condition).await?, next })
            })
        })
        .await
    }
}

#[async_trait]
impl Archive for Postgres {
    async fn read_verdict(&self, id: Uuid) -> Result<Option<StoredVerdict>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let row = sqlx::query(concat!(select_verdicts!(), " WHERE id = $1")).bind(id).fetch_optional(c).await?;
                row.as_ref().map(read_verdict_row).transpose()
            })
        })
        .await
    }

    async fn verdicts_on_image(&self, image: &ImageRef, limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        let image = image.clone();
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query =
                    concat!(select_verdicts!(), " WHERE bucket = $1 AND key = $2 ORDER BY decided_at DESC LIMIT $3");
                let query = sqlx::query(query).bind(image.bucket).bind(image.key).bind(i64::from(limit));
                query.fetch_all(c).await?.iter().map(read_verdict_row).collect()
            })
        })
        .await
    }

    async fn verdicts_on_content(&self, sha256: [u8; 32], limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = concat!(select_verdicts!(), " WHERE sha256 = $1 ORDER BY decided_at DESC LIMIT $2");
                let query = sqlx::query(query).bind(sha256.to_vec()).bind(i64::from(limit));
                query.fetch_all(c).await?.iter().map(read_verdict_row).collect()
            })
        })
        .await
    }

    async fn verdicts_that_scored(&self, sha256: [u8; 32], limit: u32) -> Result<Vec<StoredVerdict>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                // The conditions are those of the index verdicts_by_content.
                let query = sqlx::query(concat!(
                    select_verdicts!(),
                    " WHERE sha256 = $1 AND scores IS NOT NULL AND reused_from IS NULL ORDER BY decided_at DESC LIMIT $2"
                ));
                let query = query.bind(sha256.to_vec()).bind(i64::from(limit));
                query.fetch_all(c).await?.iter().map(read_verdict_row).collect()
            })
        })
        .await
    }

    async fn earlier_states(&self, verdict: Uuid) -> Result<Vec<EarlierState>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let earlier_state = |row: &PgRow| read_earlier_state!(row);
                let query = sqlx::query(select_earlier_states!()).bind(verdict);
                query.fetch_all(c).await?.iter().map(earlier_state).collect()
            })
        })
        .await
    }

    async fn read_policy(&self, sha256: &str) -> Result<Option<String>, LedgerError> {
        let sha256 = sha256.to_owned();
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query_scalar("SELECT text FROM policies WHERE sha256 = $1");
            Box::pin(query.bind(sha256).fetch_optional(c))
        })
        .await
    }

    async fn outbox_rows(&self, verdict: Uuid) -> Result<Vec<OutboxRow>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let query = "SELECT event_id, routing_key, created_at, published_at, tries, last_error FROM outbox
                             WHERE verdict_id = $1 ORDER BY created_at";
                let outbox_row = |row: &PgRow| {
                    Ok(OutboxRow {
                        event_id: row.try_get("event_id")?,
                        routing_key: row.try_get("routing_key")?,
                        created_at: row.try_get("created_at")?,
                        published_at: row.try_get("published_at")?,
                        tries: row.try_get("tries")?,
                        last_error: row.try_get("last_error")?,
                    })
                };
                sqlx::query(query).bind(verdict).fetch_all(c).await?.iter().map(outbox_row).collect()
            })
        })
        .await
    }

    async fn page_of_verdicts(
        &self,
        filter: &VerdictFilter,
        from: Option<Position>,
        limit: u32,
    ) -> Result<VerdictPage, LedgerError> {
        let filter = filter.clone();
        self.run(LONG_RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                let mut parts = Parts::new(&filter, from);
                let next = if parts.are_ranges() { None } else { parts.shorten(&mut *c).await? };
                let rows = parts.rows(c, select_columns!(), limit).await?;
                let verdicts = rows.iter().map(read_verdict_row).collect::<Result<_, _>>()?;
                Ok(VerdictPage { verdicts, next }.cut(&filter, limit))
            })
        })
        .await
    }

    async fn count_prunable(&self, filter: &VerdictFilter, from: Option<Position>) -> Result<PrunedPage, LedgerError> {
        self.count_page(filter, from, PRUNABLE).await
    }

    async fn count_unprunable(
        &self,
        filter: &VerdictFilter,
        from: Option<Position>,
        kept_by: KeptBy,
    ) -> Result<PrunedPage, LedgerError> {
        let condition = match kept_by {
            KeptBy::Hold => with_hold!(),
            KeptBy::UnpublishedEvent => WITH_UNPUBLISHED_EVENT,
            KeptBy::OpenReport => WITH_OPEN_REPORT,
        };
        self.count_page(filter, from, condition).await
    }

    async fn delete_prunable(
        &self,
        filter: &VerdictFilter,
        from: Option<Position>,
        limit: u32,
    ) -> Result<PrunedPage, LedgerError> {
        let attempt = || {
            let filter = filter.clone();
            self.run(LONG_RESPONSE_TIMEOUT, move |c| Box::pin(delete_prunable(c, filter, from, limit)))
        };
        retry::retry_briefly(is_contended, attempt).await
    }

    async fn rejudge(&self, changes: &[Revise]) -> Result<u64, LedgerError> {
        let attempt = || {
            let (changes, opens) = (changes.to_vec(), Arc::clone(&self.opens));
            self.run(RESPONSE_TIMEOUT, move |c| Box::pin(rejudge(c, changes, opens)))
        };
        retry::retry_briefly(is_contended, attempt).await
    }
}

async fn delete_prunable(
    c: &mut PgConnection,
    filter: VerdictFilter,
    from: Option<Position>,
    limit: u32,
) -> Result<PrunedPage, sqlx::Error> {
    let mut transaction = c.begin().await?;
    // A hold that is added meanwhile waits for this batch, and keeps what the batch has left.
    sqlx::query("LOCK TABLE holds IN SHARE MODE").execute(&mut *transaction).await?;
    let mut parts = Parts::new(&filter, from);
    let window = parts.shorten(&mut transaction).await?;
    let places = parts.places(&mut transaction, limit).await?;
    let next = match places.last() {
        Some(last) if places.len() >= limit as usize => Some(Position::behind(last.at, last.id)),
        _ => window,
    };
    let ids: Vec<Uuid> = places.into_iter().map(|place| place.id).collect();
    // No event can be added after this: each revision locks its verdict first.
    let ids = parts.lock(&mut transaction, &ids).await?;
    let query = "DELETE FROM verdicts WHERE id = ANY($1) AND ".to_owned() + PRUNABLE + " RETURNING id, decided_at";
    let gone: Vec<(Uuid, OffsetDateTime)> =
        sqlx::query_as(AssertSqlSafe(query)).bind(ids).fetch_all(&mut *transaction).await?;
    delete_hashes_between(&mut transaction, &gone).await?;
    let gone: Vec<Uuid> = gone.into_iter().map(|(id, _)| id).collect();
    for query in [
        "DELETE FROM outbox WHERE verdict_id = ANY($1)",
        "DELETE FROM webhook_deliveries WHERE verdict_id = ANY($1)",
        "DELETE FROM verdict_history WHERE verdict_id = ANY($1)",
        "DELETE FROM review_items WHERE verdict_id = ANY($1)",
        "DELETE FROM reports WHERE verdict_id = ANY($1)",
        "DELETE FROM decision_notes WHERE verdict_id = ANY($1)",
        "DELETE FROM decided_contents WHERE verdict_id = ANY($1)",
    ] {
        sqlx::query(query).bind(&gone).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(PrunedPage { verdicts: gone.len() as u64, next })
}

async fn rejudge(c: &mut PgConnection, changes: Vec<Revise>, opens: Arc<[Outcome]>) -> Result<u64, sqlx::Error> {
    let mut transaction = c.begin().await?;
    let ids: Vec<Uuid> = changes.iter().map(|change| change.verdict.id).collect();
    let locked = lock_verdicts(&mut transaction, &ids).await?;
    let current: Vec<_> = changes
        .iter()
        .filter_map(|change| Some((change, locked.get(&change.verdict.id)?)))
        .filter(|(change, locked)| locked.existing.revision == change.expected_revision)
        .collect();
    let (unchanged, revised): (Vec<_>, Vec<_>) =
        current.iter().copied().partition(|(change, locked)| change.verdict.judgement.looks_as(&locked.judgement));

    if !unchanged.is_empty() {
        write_policies(&mut transaction, unchanged.into_iter().map(|(change, _)| &change.verdict)).await?;
    }
    if !revised.is_empty() {
        replace_history(&mut transaction, &revised).await?;
        let revised = revised.iter().map(|(change, _)| *change);
        let events = revised.clone().filter_map(|change| Some((change.verdict.id, change.event.as_ref()?)));
        // No process has these events in its hands: the sweeper takes them at once.
        let arrays = EventArrays::of(events.clone());
        JudgementArrays::of(revised.clone()).write(&mut transaction, &arrays, Duration::ZERO).await?;
        DeliveryArrays::of(events).insert(&mut transaction, Duration::ZERO).await?;
        update_items(&mut transaction, revised, &opens).await?;
    }
    transaction.commit().await?;
    Ok(current.len() as u64)
}

/// Writes the policy of verdicts for which it changes nothing that people see.
async fn write_policies(
    c: &mut PgConnection,
    verdicts: impl Iterator<Item = &Verdict> + Clone,
) -> Result<(), sqlx::Error> {
    let judged = "UPDATE verdicts
                  SET policy = entry.policy::jsonb, findings = entry.findings::jsonb, label = entry.label, score = entry.score
                  FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::real[])
                      AS entry (id, policy, findings, label, score)
                  WHERE verdicts.id = entry.id";
    let ids: Vec<Uuid> = verdicts.clone().map(|verdict| verdict.id).collect();
    let policies: Vec<String> = verdicts.clone().map(|verdict| to_json(&verdict.policy)).collect();
    let judgements = verdicts.map(|verdict| &verdict.judgement);
    let findings: Vec<_> = judgements.clone().map(|judgement| findings_json(&judgement.findings)).collect();
    let labels: Vec<_> = judgements.clone().map(|judgement| judgement.label.clone()).collect();
    let scores: Vec<_> = judgements.map(|judgement| judgement.score).collect();
    let query = sqlx::query(judged).bind(ids).bind(policies).bind(findings).bind(labels).bind(scores);
    query.execute(c).await.map(drop)
}
