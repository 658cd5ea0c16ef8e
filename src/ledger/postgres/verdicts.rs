//! Writing and finding verdicts in Postgres.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::types::Json;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::erasure::find_erased;
use super::image_hashes::delete_hashes;
use super::reviews::{NewItems, update_items};
use super::webhooks::DeliveryArrays;
use super::write::{ColumnArrays, EventArrays, JudgementArrays, stored_event};
use super::{Postgres, RESPONSE_TIMEOUT, is_contended, read_verdict_row};
use crate::job::{Digests, Outcome, Removal, RevisionCause, Verdict};
use crate::ledger::columns::{LockedVerdict, reusable_facts};
use crate::ledger::probe::probe_verdict;
use crate::ledger::{
    DatabaseError, ExistingVerdict, HANDOVER_DELAY, Inserted, LedgerError, NewVerdict, ReusableFacts, Revise, Revised,
    Verdicts,
};
use crate::retry;

#[async_trait]
impl Verdicts for Postgres {
    async fn find_verdict(&self, id: Uuid) -> Result<Option<ExistingVerdict>, LedgerError> {
        let found = self.run(RESPONSE_TIMEOUT, move |c| Box::pin(async move { find_existing(c, &[id]).await })).await?;
        Ok(found.into_values().next())
    }

    async fn find_facts(
        &self,
        sha256: [u8; 32],
        detectors: &Digests,
        policy_sha256: &str,
    ) -> Result<Option<ReusableFacts>, LedgerError> {
        let (detectors, policy) = (Json(detectors.clone()), policy_sha256.to_owned());
        self.run(RESPONSE_TIMEOUT, move |c| {
            Box::pin(async move {
                // The first three conditions are those of the index verdicts_by_content.
                let query = sqlx::query(concat!(
                    select_verdicts!(),
                    " WHERE sha256 = $1 AND scores IS NOT NULL AND reused_from IS NULL AND detectors = $2
                         AND outcome <> 'failed' AND (frames = 1 OR views IS NOT NULL OR policy->>'sha256' = $3)
                     ORDER BY hashes IS NULL LIMIT 1"
                ));
                let row = query.bind(sha256.to_vec()).bind(detectors).bind(policy).fetch_optional(c).await?;
                Ok(row.as_ref().map(read_verdict_row).transpose()?.and_then(reusable_facts))
            })
        })
        .await
    }

    async fn insert(&self, verdicts: &[NewVerdict]) -> Result<Vec<Inserted>, LedgerError> {
        let mut sorted: Vec<&NewVerdict> = verdicts.iter().collect();
        // Two workers that commit the same jobs lock rows in the same order.
        sorted.sort_by_key(|new| new.verdict.id);
        let columns = ColumnArrays::of(sorted.iter().map(|new| &new.verdict));
        let events = sorted.iter().filter_map(|new| Some((new.verdict.id, new.event.as_ref()?)));
        let (events, deliveries) = (EventArrays::of(events.clone()), DeliveryArrays::of(events));
        let ids: Vec<Uuid> = sorted.iter().map(|new| new.verdict.id).collect();
        let items = NewItems::of(sorted.iter().map(|new| &new.verdict), &self.opens);
        let attempt = || {
            let (columns, events, deliveries) = (columns.clone(), events.clone(), deliveries.clone());
            let (ids, items) = (ids.clone(), items.clone());
            self.run(RESPONSE_TIMEOUT, move |c| {
                Box::pin(async move {
                    let written = if deliveries.is_empty() && items.is_empty() {
                        // One statement is one transaction: both tables change together or not at all.
                        columns.insert(&mut *c, &events, HANDOVER_DELAY).await?
                    } else {
                        let mut transaction = c.begin().await?;
                        let written = columns.insert(&mut transaction, &events, HANDOVER_DELAY).await?;
                        deliveries.of_written(&written).insert(&mut transaction, Duration::ZERO).await?;
                        items.open(&mut transaction, |id| written.contains_key(id)).await?;
                        transaction.commit().await?;
                        written
                    };
                    let rest: Vec<Uuid> = ids.into_iter().filter(|id| !written.contains_key(id)).collect();
                    let existing = if rest.is_empty() { HashMap::new() } else { find_existing(c, &rest).await? };
                    Ok((written, existing))
                })
            })
        };
        let (written, mut existing) = retry::retry_briefly(is_contended, attempt).await?;
        let is_rest = |verdict: &&Verdict| !written.contains_key(&verdict.id) && !existing.contains_key(&verdict.id);
        let rest: Vec<Verdict> = sorted.iter().map(|new| &new.verdict).filter(is_rest).cloned().collect();
        let erased = if rest.is_empty() { Vec::new() } else { self.find_erased(rest).await? };
        let result = |new: &NewVerdict| {
            let id = new.verdict.id;
            if written.contains_key(&id) {
                let event = stored_event(&written, id, new.event.as_ref());
                return Ok(Inserted::Written { event, may_be_decided: written[&id].has_decision });
            }
            if erased.contains(&id) {
                return Ok(Inserted::Erased);
            }
            let neither = || DatabaseError::from(format!("verdict {id} was neither written nor found"));
            existing.remove(&id).map(Inserted::Existing).ok_or_else(|| LedgerError::Down(neither()))
        };
        verdicts.iter().map(result).collect()
    }

    async fn record_policies(&self, policies: &[(String, String)]) -> Result<(), LedgerError> {
        let (digests, texts): (Vec<String>, Vec<String>) = policies.iter().cloned().unzip();
        self.run(RESPONSE_TIMEOUT, move |c| {
            let query = sqlx::query(
                "INSERT INTO policies (sha256, text) SELECT * FROM UNNEST($1::text[], $2::text[])
                 ON CONFLICT (sha256) DO NOTHING",
            );
            Box::pin(query.bind(digests).bind(texts).execute(c))
        })
        .await
        .map(drop)
    }

    async fn now(&self) -> Result<OffsetDateTime, LedgerError> {
        self.run(RESPONSE_TIMEOUT, |c| Box::pin(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(c))).await
    }

    async fn revise(&self, revise: &Revise) -> Result<Revised, LedgerError> {
        let attempt = || {
            let (revise, opens) = (revise.clone(), Arc::clone(&self.opens));
            self.run(RESPONSE_TIMEOUT, move |c| Box::pin(revise_one(c, revise, opens)))
        };
        retry::retry_briefly(is_contended, attempt).await
    }

    async fn mark_deleted(&self, removal: &Removal) -> Result<u64, LedgerError> {
        let attempt = || {
            let removal = removal.clone();
            self.run(RESPONSE_TIMEOUT, move |c| {
                let names_version = removal.names_version();
                let query = sqlx::query(mark_deleted!()).bind(removal.bucket).bind(removal.key).bind(removal.at);
                Box::pin(query.bind(removal.version_id).bind(names_version).execute(c))
            })
        };
        Ok(retry::retry_briefly(is_contended, attempt).await?.rows_affected())
    }
}

impl Postgres {
    /// Those of some verdicts that meet a tombstone.
    async fn find_erased(&self, verdicts: Vec<Verdict>) -> Result<Vec<Uuid>, LedgerError> {
        self.run(RESPONSE_TIMEOUT, move |c| Box::pin(async move { find_erased(c, &verdicts).await })).await
    }
}

/// Writes a verdict with its event and takes both back. What is committed is an empty change of another table, so that the
/// log on the disk is written too.
pub(super) async fn write_and_take_back(c: &mut PgConnection) -> Result<(), sqlx::Error> {
    let NewVerdict { verdict, event } = probe_verdict();
    let columns = ColumnArrays::of([&verdict].into_iter());
    let events = EventArrays::of(event.iter().map(|event| (verdict.id, event)));
    let mut transaction = c.begin().await?;
    let mut taken_back = transaction.begin().await?;
    // Triggers that wait for the end of the transaction must not wait for it here.
    sqlx::query("SET CONSTRAINTS ALL IMMEDIATE").execute(&mut *taken_back).await?;
    columns.insert(&mut taken_back, &events, HANDOVER_DELAY).await?;
    lock_verdicts(&mut taken_back, &[verdict.id]).await?;
    insert_history(&mut taken_back, &[verdict.id]).await?;
    let revise = "UPDATE verdicts SET revision = revision + 1 WHERE id = $1";
    sqlx::query(revise).bind(verdict.id).execute(&mut *taken_back).await?;
    taken_back.rollback().await?;
    let insert = "INSERT INTO suspects (id, starts, process) VALUES ($1, 1, $1)";
    sqlx::query(insert).bind(verdict.id).execute(&mut *transaction).await?;
    sqlx::query("DELETE FROM suspects WHERE id = $1").bind(verdict.id).execute(&mut *transaction).await?;
    transaction.commit().await
}

async fn revise_one(c: &mut PgConnection, revise: Revise, opens: Arc<[Outcome]>) -> Result<Revised, sqlx::Error> {
    let id = revise.verdict.id;
    let mut transaction = c.begin().await?;
    let refused = match lock_verdicts(&mut transaction, &[id]).await?.remove(&id) {
        None => Some(Revised::Missing),
        Some(locked) if locked.existing.revision != revise.expected_revision => Some(Revised::Stale(locked.existing)),
        Some(_) if revise.cause == RevisionCause::Replayed && meets_tombstone(&mut transaction, &revise).await? => {
            Some(Revised::Erased)
        }
        Some(locked) => {
            replace_history(&mut transaction, &[(&revise, &locked)]).await?;
            None
        }
    };
    if let Some(refused) = refused {
        transaction.rollback().await?;
        return Ok(refused);
    }
    let events = EventArrays::of(revise.event.iter().map(|event| (id, event)));
    let written = if revise.cause == RevisionCause::Replayed {
        // A replay keeps the time of the first judgement.
        let decided_at = "SELECT decided_at FROM verdicts WHERE id = $1";
        let decided_at = sqlx::query_scalar(decided_at).bind(id).fetch_one(&mut *transaction).await?;
        delete_hashes(&mut transaction, &[(id, decided_at)]).await?;
        let columns = ColumnArrays::of([&revise.verdict].into_iter());
        columns.replay(&mut transaction, &events, HANDOVER_DELAY, revise.judged_at).await?
    } else {
        JudgementArrays::of([&revise].into_iter()).write(&mut transaction, &events, HANDOVER_DELAY).await?
    };
    let deliveries = DeliveryArrays::of(revise.event.iter().map(|event| (id, event)));
    deliveries.insert(&mut transaction, Duration::ZERO).await?;
    update_items(&mut transaction, [&revise].into_iter(), &opens).await?;
    transaction.commit().await?;
    let event = stored_event(&written, id, revise.event.as_ref());
    Ok(Revised::Written { revision: revise.revision().number, event })
}

/// Whether the content of a replay was erased at its place. The lock is that of an insert: see `erasure.rs`.
async fn meets_tombstone(c: &mut PgConnection, revise: &Revise) -> Result<bool, sqlx::Error> {
    sqlx::query("INSERT INTO erase_lock SELECT true WHERE false").execute(&mut *c).await?;
    Ok(!find_erased(c, std::slice::from_ref(&revise.verdict)).await?.is_empty())
}

/// Locks verdicts until the transaction ends, in the order of their ids.
pub(super) async fn lock_verdicts(
    c: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, LockedVerdict>, sqlx::Error> {
    let query = concat!(select_locked!(), " WHERE id = ANY($1) ORDER BY id FOR UPDATE");
    let rows = sqlx::query(query).bind(ids).fetch_all(c).await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, read_locked!(row)))).collect()
}

/// Keeps the earlier state of verdicts, and deletes the unpublished events that the new state makes wrong: those of another
/// outcome, and those that a new event replaces. The same holds for what was not delivered to a webhook, also where this
/// process has none configured.
pub(super) async fn replace_history(
    c: &mut PgConnection,
    changes: &[(&Revise, &LockedVerdict)],
) -> Result<(), sqlx::Error> {
    let ids: Vec<Uuid> = changes.iter().map(|(revise, _)| revise.verdict.id).collect();
    insert_history(&mut *c, &ids).await?;
    delete_stale_events(c, changes).await
}

/// Keeps the present state of verdicts, with the person whose decision it is.
pub(super) async fn insert_history(c: &mut PgConnection, ids: &[Uuid]) -> Result<(), sqlx::Error> {
    let query = concat!(
        insert_history!(
            "CASE WHEN cause = 'decided' THEN (
                 SELECT actor FROM decisions WHERE verdict_id = verdicts.id AND revision = verdicts.revision - 1
                     AND action IN ('flag', 'clear', 'uphold', 'undo')
                 ORDER BY at DESC LIMIT 1) END"
        ),
        " WHERE id = ANY($1)"
    );
    sqlx::query(query).bind(ids).execute(c).await.map(drop)
}

/// Deletes the unpublished events that the new state of verdicts makes wrong.
pub(super) async fn delete_stale_events(
    c: &mut PgConnection,
    changes: &[(&Revise, &LockedVerdict)],
) -> Result<(), sqlx::Error> {
    let (mut outdated, mut keep_cleared, mut of_outbox) = (Vec::new(), Vec::new(), Vec::new());
    for (revise, locked) in changes {
        let stale = revise.stale_events(&locked.judgement);
        if stale.in_outbox || stale.of_webhooks {
            outdated.push(revise.verdict.id);
            keep_cleared.push(revise.keeps_cleared());
            of_outbox.push(stale);
        }
    }
    let (in_outbox, of_webhooks): (Vec<bool>, Vec<bool>) =
        of_outbox.into_iter().map(|stale| (stale.in_outbox, stale.of_webhooks)).unzip();
    let query = concat!(
        "WITH outdated AS MATERIALIZED (
             SELECT * FROM UNNEST($1::uuid[], $2::boolean[], $3::boolean[], $4::boolean[])
                 AS outdated (id, keep_cleared, in_outbox, of_webhooks)
         ), undelivered AS (
             DELETE FROM webhook_deliveries USING outdated
             WHERE verdict_id = outdated.id AND of_webhooks AND NOT (keep_cleared AND routing_key = 'image.cleared')
                 AND coalesce(delivered_at, 'infinity') = 'infinity'
         )
         DELETE FROM outbox USING outdated
         WHERE verdict_id = outdated.id AND in_outbox AND NOT (keep_cleared AND routing_key = 'image.cleared') AND ",
        unpublished!()
    );
    let query = sqlx::query(query).bind(outdated).bind(keep_cleared).bind(in_outbox).bind(of_webhooks);
    query.execute(c).await.map(drop)
}

async fn find_existing(c: &mut PgConnection, ids: &[Uuid]) -> Result<HashMap<Uuid, ExistingVerdict>, sqlx::Error> {
    let query =
        "SELECT id, bucket, key, version_id, etag, outcome, revision, decided_at FROM verdicts WHERE id = ANY($1)";
    let rows = sqlx::query(query).bind(ids).fetch_all(c).await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, read_existing!(row)))).collect()
}
