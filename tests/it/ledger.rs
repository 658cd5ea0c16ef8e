//! Both kinds of ledger do the same.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pixwarden::config::SecretUrl;
use pixwarden::job::{
    Background, Digests, Facts, Finding, FindingOutcome, FindingSource, ImageInfo, ImageRef, Judgement, Lane, Outcome,
    Pdq, PolicyRef, Removal, Revision, RevisionCause, Scores, Verdict, View, ViewHash, Views, event_id,
    revised_event_id, verdict_id,
};
use pixwarden::ledger::{
    Archive, Destinations, Erased, ErasedRows, Event, ExistingVerdict, Hold, Inserted, KeptBy, Ledger, LedgerError,
    MissingFile, NewVerdict, Postgres, PostgresIndex, PrunedPage, Revise, Revised, Sqlite, Subject as Selects,
    UnpublishedEvents, VerdictFilter, Verdicts, replace_failed_verdict,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::support::Lab;

/// A ledger, and direct access to its tables.
struct Subject {
    ledger: Box<dyn Ledger>,
    tables: Tables,
    _world: Box<dyn std::any::Any>,
}

enum Tables {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

impl Subject {
    async fn both() -> [Self; 2] {
        let lab = Lab::new().await;
        let postgres = Postgres::open(&SecretUrl::from(lab.ledger_url.clone())).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a ledger? yes.db");
        assert!(matches!(Sqlite::open(&file, MissingFile::Refuse).await, Err(LedgerError::CannotOpen { .. })));
        let sqlite = Sqlite::open(&file, MissingFile::Create).await.unwrap();
        assert!(matches!(sqlite.check_schema().await, Err(LedgerError::Schema { found: 0, .. })));
        sqlite.migrate().await.unwrap();
        let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&file)).await.unwrap();
        [
            Self { ledger: Box::new(postgres), tables: Tables::Postgres(lab.db.clone()), _world: Box::new(lab) },
            Self { ledger: Box::new(sqlite), tables: Tables::Sqlite(pool), _world: Box::new(folder) },
        ]
    }

    async fn execute(&self, statement: &str) {
        let statement = AssertSqlSafe(statement.to_owned());
        match &self.tables {
            Tables::Postgres(pool) => drop(sqlx::query(statement).execute(pool).await.unwrap()),
            Tables::Sqlite(pool) => drop(sqlx::query(statement).execute(pool).await.unwrap()),
        }
    }

    async fn count(&self, query: &'static str) -> i64 {
        match &self.tables {
            Tables::Postgres(pool) => sqlx::query_scalar(query).fetch_one(pool).await.unwrap(),
            Tables::Sqlite(pool) => sqlx::query_scalar(query).fetch_one(pool).await.unwrap(),
        }
    }

    /// Every row of every table as text, with bytes in hexadecimal.
    async fn dump(&self) -> String {
        let mut all = String::new();
        match &self.tables {
            Tables::Postgres(pool) => {
                let tables: Vec<String> =
                    sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
                        .fetch_all(pool)
                        .await
                        .unwrap();
                assert!(tables.len() > 10, "{tables:?}");
                for table in tables {
                    let query = format!("SELECT coalesce(string_agg(row::text, '\n'), '') FROM {table} AS row");
                    all += &sqlx::query_scalar::<_, String>(AssertSqlSafe(query)).fetch_one(pool).await.unwrap();
                }
            }
            Tables::Sqlite(pool) => {
                let query = "SELECT m.name, group_concat(CASE lower(c.type) WHEN 'blob' THEN 'hex(' || c.name || ')'
                                                                     ELSE 'coalesce(' || c.name || ', '''')' END, '||'' ''||')
                             FROM sqlite_master AS m, pragma_table_info(m.name) AS c WHERE m.type = 'table' GROUP BY m.name";
                let tables: Vec<(String, String)> = sqlx::query_as(query).fetch_all(pool).await.unwrap();
                assert!(tables.len() > 10, "{tables:?}");
                for (table, columns) in tables {
                    let query = format!("SELECT coalesce(group_concat({columns}, ' '), '') FROM {table}");
                    all += &sqlx::query_scalar::<_, String>(AssertSqlSafe(query)).fetch_one(pool).await.unwrap();
                }
            }
        }
        all.to_lowercase()
    }

    /// Makes every event due.
    async fn let_time_pass(&self) {
        self.execute("UPDATE outbox SET due_at = '2020-01-01T00:00:00.000000Z'").await;
    }
}

fn digests() -> Digests {
    Digests::from([("d".to_owned(), "1".to_owned())])
}

fn finding(threshold: f32) -> Finding {
    Finding {
        rule: Some("a 'rule'".into()),
        category: Some("synthetic/face".into()),
        detector: Some("d".into()),
        label: Some("by AI".into()),
        score: Some(0.1),
        threshold: Some(threshold),
        view: Some(View::of_frame(3)),
        ..Finding::new(FindingSource::Detector, FindingOutcome::Review)
    }
}

fn verdict(job_id: &str, outcome: Outcome) -> Verdict {
    let at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap();
    let labels = [("by AI".to_owned(), 0.1), ("by human".to_owned(), 0.9)];
    let hashes = [Background::White, Background::Black].map(|background| ViewHash {
        view: View { frame: 3, background, orientation: 6 },
        pdq: Pdq([0x5a; 32]),
        quality: 100,
    });
    let facts = Facts::of_one_view(Scores::from([("d".to_owned(), labels.into())]));
    Verdict {
        id: verdict_id(job_id),
        job_id: job_id.into(),
        lane: Lane::Backfill,
        image: ImageRef {
            bucket: "b".into(),
            key: format!("{job_id}/ä 'quoted' \\.jpg"),
            version_id: None,
            etag: Some("e".into()),
        },
        object_at: Some(at - Duration::from_secs(3_600)),
        sha256: Some([7; 32]),
        md5: Some([5; 16]),
        bytes: Some(123_456),
        seen: Some(ImageInfo { format: "jpeg", width: 640, height: 480, frames: 1 }),
        judgement: Judgement {
            outcome,
            reason: Some("why".into()),
            label: Some("by AI".into()),
            score: Some(0.1),
            findings: vec![finding(0.05)],
        },
        facts: Some(Facts { hashes: Some(hashes.into()), ..facts }),
        detectors: digests(),
        policy: PolicyRef::new("p", "s"),
        metadata: Some(serde_json::json!({"user": 7, "tags": ["a", null]})),
        reused_from: Some(verdict_id("another")),
        attempts: 2,
        received_at: at,
        decided_at: at + Duration::from_millis(5),
    }
}

fn entry(job_id: &str, outcome: Outcome) -> NewVerdict {
    let verdict = verdict(job_id, outcome);
    let event = Event {
        id: event_id(verdict.id, outcome),
        routing_key: outcome.routing_key().into(),
        correlation_id: job_id.into(),
        payload: format!("{{\"id\": \"{job_id}\"}}"),
        destinations: Destinations::default(),
    };
    NewVerdict { verdict, event: Some(event) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_is_written_once_and_read_back_whole() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let (first, second) = (entry("one", Outcome::Flagged), entry("two", Outcome::Passed));
        let answers = ledger.insert(&[first.clone(), second.clone()]).await.unwrap();
        assert!(answers.iter().all(|answer| matches!(answer, Inserted::Written { event: Some(_), .. })), "{answers:?}");
        assert_eq!(ledger.read_verdict(first.verdict.id).await.unwrap().unwrap().verdict, first.verdict);
        assert_eq!(ledger.read_verdict(verdict_id("nobody")).await.unwrap(), None);

        // Again, with another outcome: the first stands, and so does its event.
        let late = entry("one", Outcome::Passed);
        let known = ExistingVerdict {
            image: first.verdict.image.clone(),
            outcome: Outcome::Flagged,
            revision: 1,
            decided_at: first.verdict.decided_at,
        };
        assert_eq!(ledger.insert(&[late]).await.unwrap(), [Inserted::Existing(known.clone())]);
        assert_eq!(ledger.find_verdict(first.verdict.id).await.unwrap(), Some(known));
        assert_eq!(ledger.read_verdict(first.verdict.id).await.unwrap().unwrap().verdict, first.verdict);
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verdict_on_content_is_found_also_one_with_reused_or_without_scores() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let mut entries = ["own", "reused", "unscored", "other"].map(|id| entry(id, Outcome::Passed));
        entries[0].verdict.reused_from = None;
        entries[2].verdict.facts = None;
        entries[3].verdict.sha256 = Some([8; 32]);
        for (i, entry) in (0u32..).zip(&mut entries) {
            entry.verdict.decided_at -= Duration::from_secs(60) * i;
        }
        ledger.insert(&entries).await.unwrap();
        let found = ledger.verdicts_on_content([7; 32], 10).await.unwrap();
        let ids: Vec<_> = found.iter().map(|stored| stored.verdict.job_id.as_str()).collect();
        assert_eq!(ids, ["own", "reused", "unscored"], "the latest first");
        assert_eq!(ledger.verdicts_on_content([7; 32], 1).await.unwrap(), found[..1]);
        assert!(ledger.verdicts_on_content([9; 32], 1).await.unwrap().is_empty());
    }
}

/// Inserts a verdict, and replaces a `failed` one by it.
async fn insert_or_replace(ledger: &dyn Ledger, new: &NewVerdict) -> Inserted {
    let inserted = ledger.insert(std::slice::from_ref(new)).await.unwrap().remove(0);
    let Inserted::Existing(existing) = inserted else { return inserted };
    let event = |verdict: &Verdict, revision: &Revision| {
        assert!(verdict.decided_at <= new.verdict.decided_at, "the event has the time of the first judgement");
        let id = revised_event_id(new.verdict.id, revision.number, revision.judged_at);
        new.event.clone().map(|event| Event { id, ..event })
    };
    replace_failed_verdict(ledger, &new.verdict, &new.verdict.image, existing, event).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_never_changes_a_row() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        for earlier in Outcome::ALL {
            let first = entry(earlier.as_str(), earlier);
            ledger.insert(std::slice::from_ref(&first)).await.unwrap();
            for later in [Outcome::Passed, Outcome::Failed] {
                let mut again = entry(earlier.as_str(), later);
                again.verdict.attempts = 9;
                let inserted = ledger.insert(&[again]).await.unwrap();
                assert!(
                    matches!(&inserted[..], [Inserted::Existing(known)] if known.outcome == earlier),
                    "{inserted:?}"
                );
            }
            let stored = ledger.read_verdict(first.verdict.id).await.unwrap().unwrap();
            assert_eq!(stored.verdict, first.verdict);
            let judged_at = first.verdict.decided_at;
            assert_eq!(stored.revision, Revision { number: 1, cause: None, judged_at });
        }
        assert_eq!(subject.count("SELECT count(*) FROM verdict_history").await, 0);
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_failed_verdict_is_replaced_and_only_for_the_same_image() {
    for subject in Subject::both().await {
        let ledger = subject.ledger.as_ref();
        let failed = entry("one", Outcome::Failed);
        ledger.insert(std::slice::from_ref(&failed)).await.unwrap();
        let mut other_image = entry("one", Outcome::Passed);
        other_image.verdict.image.key = "another.jpg".into();
        assert!(matches!(insert_or_replace(ledger, &other_image).await, Inserted::Existing(_)));
        let again = insert_or_replace(ledger, &entry("one", Outcome::Failed)).await;
        assert!(matches!(again, Inserted::Existing(_)), "a second failure changes nothing: {again:?}");

        let mut replayed = entry("one", Outcome::Passed);
        replayed.verdict.decided_at += Duration::from_secs(60);
        replayed.verdict.received_at += Duration::from_secs(60);
        replayed.verdict.attempts = 1;
        let inserted = insert_or_replace(ledger, &replayed).await;
        let Inserted::Written { event: Some(event), .. } = inserted else { panic!("{inserted:?}") };
        let stored = ledger.read_verdict(replayed.verdict.id).await.unwrap().unwrap();
        let Verdict { decided_at, received_at, .. } = failed.verdict;
        assert_eq!(stored.verdict, Verdict { decided_at, received_at, ..replayed.verdict.clone() });
        assert_eq!((stored.revision.number, stored.revision.cause), (2, Some(RevisionCause::Replayed)));
        assert_eq!(event.id, revised_event_id(replayed.verdict.id, 2, stored.revision.judged_at));
        assert!((OffsetDateTime::now_utc() - stored.revision.judged_at).abs() < Duration::from_secs(60));

        assert_eq!(subject.count("SELECT count(*) FROM verdicts").await, 1);
        let earlier = "SELECT count(*) FROM verdict_history WHERE revision = 1 AND outcome = 'failed' AND cause IS NULL
                       AND decided_at = judged_at";
        assert_eq!(subject.count(earlier).await, 1);
        let rows = ledger.outbox_rows(replayed.verdict.id).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.event_id).collect::<Vec<_>>(), [event.id], "the failure's event is gone");

        let once_more = insert_or_replace(ledger, &entry("one", Outcome::Flagged)).await;
        assert!(matches!(once_more, Inserted::Existing(known) if known.revision == 2), "it is not failed any more");
    }
}

/// The revision that follows `revision`, with another outcome.
async fn revise_to(ledger: &dyn Ledger, verdict: &Verdict, revision: u32, outcome: Outcome) -> (Revise, Revised) {
    let mut revise = Revise {
        verdict: verdict.clone(),
        expected_revision: revision,
        cause: RevisionCause::Rejudged,
        judged_at: ledger.now().await.unwrap(),
        event: None,
    };
    revise.verdict.judgement = Judgement {
        outcome,
        reason: Some("another reason".into()),
        label: None,
        score: Some(0.5),
        findings: Vec::new(),
    };
    revise.verdict.policy.sha256 = format!("policy {revision}");
    revise.event = Some(Event {
        id: revised_event_id(verdict.id, revision + 1, revise.judged_at),
        routing_key: outcome.routing_key().into(),
        correlation_id: "c".into(),
        payload: "{\"revised\": true}".into(),
        destinations: Destinations::default(),
    });
    let revised = ledger.revise(&revise).await.unwrap();
    (revise, revised)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_keeps_the_earlier_state_and_replaces_its_event_unless_it_is_out() {
    for subject in Subject::both().await {
        let ledger = subject.ledger.as_ref();
        let new = entry("one", Outcome::Flagged);
        let first = &new.verdict;
        ledger.insert(std::slice::from_ref(&new)).await.unwrap();
        // A replay may lose its facts; a judgement of stored facts leaves them alone.
        let judged = Verdict { metadata: None, facts: None, attempts: 9, ..first.clone() };
        let (second, revised) = revise_to(ledger, &judged, 1, Outcome::Review).await;
        assert_eq!(revised, Revised::Written { revision: 2, event: second.event.clone() });
        let stored = ledger.read_verdict(first.id).await.unwrap().unwrap();
        let expected = Verdict {
            judgement: second.verdict.judgement.clone(),
            policy: second.verdict.policy.clone(),
            ..first.clone()
        };
        assert_eq!((stored.verdict, stored.revision), (expected, second.revision()));
        let event_ids = async || -> Vec<Uuid> {
            let rows = ledger.outbox_rows(first.id).await.unwrap();
            rows.iter().map(|row| row.event_id).collect()
        };
        assert_eq!(event_ids().await, [second.event.as_ref().unwrap().id], "the first event was not out");

        ledger.mark_published(&event_ids().await).await.unwrap();
        let (third, revised) = revise_to(ledger, first, 2, Outcome::Flagged).await;
        assert!(matches!(revised, Revised::Written { revision: 3, .. }), "{revised:?}");
        let out = [second.event.as_ref().unwrap().id, third.event.unwrap().id];
        assert_eq!(event_ids().await, out, "what is out stays");
        assert_ne!(out[1], new.event.unwrap().id, "the same outcome again is announced again");

        let history =
            "SELECT count(*) FROM verdict_history WHERE (revision, outcome) IN (VALUES (1, 'flagged'), (2, 'review'))";
        assert_eq!(subject.count(history).await, 2);
        let second_state = "SELECT count(*) FROM verdict_history WHERE revision = 2 AND cause = 'rejudged'
                            AND reason = 'another reason' AND label IS NULL AND score = 0.5 AND judged_at > decided_at";
        assert_eq!(subject.count(second_state).await, 1);
        let earlier = ledger.earlier_states(first.id).await.unwrap();
        let of_first = Revision { number: 1, cause: None, judged_at: first.decided_at };
        let expected = [(of_first, first.judgement.clone()), (second.revision(), second.verdict.judgement.clone())];
        let earlier: Vec<_> = earlier.into_iter().map(|state| (state.revision, state.judgement)).collect();
        assert_eq!(earlier, expected);
        assert!(ledger.earlier_states(verdict_id("nobody")).await.unwrap().is_empty());
        assert_eq!(subject.count("SELECT count(*) FROM verdict_history").await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_of_another_state_than_the_expected_one_writes_nothing() {
    for subject in Subject::both().await {
        let ledger = subject.ledger.as_ref();
        let new = entry("one", Outcome::Flagged);
        let (_, missing) = revise_to(ledger, &new.verdict, 1, Outcome::Review).await;
        assert_eq!(missing, Revised::Missing);
        ledger.insert(std::slice::from_ref(&new)).await.unwrap();
        for stale in [0, 2] {
            let (_, revised) = revise_to(ledger, &new.verdict, stale, Outcome::Review).await;
            let image = new.verdict.image.clone();
            assert_eq!(
                revised,
                Revised::Stale(ExistingVerdict {
                    image,
                    outcome: Outcome::Flagged,
                    revision: 1,
                    decided_at: new.verdict.decided_at,
                })
            );
        }
        assert_eq!(ledger.read_verdict(new.verdict.id).await.unwrap().unwrap().verdict, new.verdict);
        assert_eq!(subject.count("SELECT count(*) FROM verdict_history").await, 0);
        let rows = ledger.outbox_rows(new.verdict.id).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.event_id).collect::<Vec<_>>(), [new.event.unwrap().id]);

        // Of several at once, one wins.
        let (one, two) = tokio::join!(
            revise_to(ledger, &new.verdict, 1, Outcome::Review),
            revise_to(ledger, &new.verdict, 1, Outcome::Passed)
        );
        let written = [&one.1, &two.1].into_iter().filter(|revised| matches!(revised, Revised::Written { .. })).count();
        assert_eq!(written, 1, "{one:?} {two:?}");
        assert_eq!(subject.count("SELECT count(*) FROM verdict_history").await, 1);
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejudging_revises_only_what_changes_and_loses_no_event() {
    for subject in Subject::both().await {
        let ledger = subject.ledger.as_ref();
        let names = ["same", "reason", "outcome", "stale", "threshold", "finding", "earlier"];
        let mut new = names.map(|name| entry(name, Outcome::Flagged));
        // An earlier release recorded no findings.
        new[6].verdict.judgement.findings.clear();
        ledger.insert(&new).await.unwrap();
        let judged_at = ledger.now().await.unwrap();
        let mut changes = new.clone().map(|new| Revise {
            verdict: Verdict { policy: PolicyRef::new("p", "other"), ..new.verdict },
            expected_revision: 1,
            cause: RevisionCause::Rejudged,
            judged_at,
            event: None,
        });
        changes[1].verdict.judgement.reason = Some("other thresholds".into());
        changes[2].verdict.judgement.outcome = Outcome::Passed;
        changes[3].expected_revision = 2;
        changes[4].verdict.judgement.findings = vec![finding(0.06)];
        changes[5].verdict.judgement.findings.clear();
        changes[6].verdict.judgement.findings = vec![finding(0.05)];
        assert_eq!(ledger.rejudge(&changes).await.unwrap(), 6);
        let mut revisions = Vec::new();
        for (change, new) in changes.iter().zip(&new) {
            let stored = ledger.read_verdict(new.verdict.id).await.unwrap().unwrap();
            let expected = if new.verdict.job_id == "stale" { &new.verdict } else { &change.verdict };
            assert_eq!(&stored.verdict, expected);
            revisions.push(stored.revision.number);
        }
        assert_eq!(revisions, [1, 2, 2, 1, 2, 2, 1], "what people see is the same in the first and the last");
        // Only where the outcome or the findings say something else is the event wrong.
        let mut unpublished = Vec::new();
        for new in &new {
            unpublished.push(ledger.outbox_rows(new.verdict.id).await.unwrap().len());
        }
        assert_eq!(unpublished, [1, 1, 0, 1, 1, 0, 1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleared_event_that_is_not_out_stays_while_the_image_passes() {
    for subject in Subject::both().await {
        let ledger = subject.ledger.as_ref();
        let new = entry("one", Outcome::Flagged);
        ledger.insert(std::slice::from_ref(&new)).await.unwrap();
        let unpublished = async || -> Vec<String> {
            let rows = ledger.outbox_rows(new.verdict.id).await.unwrap();
            rows.into_iter().map(|row| row.routing_key).collect()
        };
        let change = async |revision: u32, outcome: Outcome, findings: Vec<Finding>, routing_key: Option<&str>| {
            let judgement = Judgement { outcome, reason: None, label: None, score: None, findings };
            let mut revise = Revise {
                verdict: Verdict { judgement, ..new.verdict.clone() },
                expected_revision: revision,
                cause: RevisionCause::Rejudged,
                judged_at: ledger.now().await.unwrap(),
                event: None,
            };
            revise.event = routing_key.map(|key| Event {
                id: revised_event_id(new.verdict.id, revision + 1, revise.judged_at),
                routing_key: key.into(),
                correlation_id: "c".into(),
                payload: "{}".into(),
                destinations: Destinations::default(),
            });
            assert_eq!(ledger.rejudge(&[revise]).await.unwrap(), 1);
        };
        change(1, Outcome::Passed, vec![finding(0.05)], Some("image.cleared")).await;
        assert_eq!(unpublished().await, ["image.cleared"], "the flag is not announced any more");
        change(2, Outcome::Passed, Vec::new(), None).await;
        assert_eq!(unpublished().await, ["image.cleared"], "what was hidden is still put back");
        change(3, Outcome::Passed, vec![finding(0.05)], Some("image.noted")).await;
        assert_eq!(unpublished().await, ["image.cleared", "image.noted"]);
        change(4, Outcome::Flagged, vec![finding(0.05)], None).await;
        assert!(unpublished().await.is_empty());
    }
}

/// The columns of the first release, as an older worker writes them beside the new schema.
#[tokio::test(flavor = "multi_thread")]
async fn the_insert_of_an_older_worker_works_beside_the_new_schema() {
    for subject in Subject::both().await {
        let new = entry("old", Outcome::Failed);
        let (id, time) = (new.verdict.id, "2023-11-14T22:13:20.123456Z");
        subject
            .execute(&format!(
                "INSERT INTO verdicts (id, job_id, lane, bucket, key, version_id, etag, sha256, bytes, format, width, height,
                     frames, outcome, reason, label, score, scores, detectors, policy, metadata, reused_from, attempts,
                     received_at, decided_at)
                 VALUES ('{id}', 'old', 'live', 'b', 'old/ä ''quoted'' \\.jpg', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                     'failed', 'why', NULL, NULL, NULL, '{{}}', '{{\"name\": \"p\", \"sha256\": \"s\"}}', NULL, NULL, 3,
                     '{time}', '{time}')"
            ))
            .await;
        let ledger = subject.ledger.as_ref();
        let stored = ledger.read_verdict(id).await.unwrap().unwrap();
        let judged_at = stored.verdict.decided_at;
        assert_eq!(stored.revision, Revision { number: 1, cause: None, judged_at });
        // Its row can be revised.
        let replayed = entry("old", Outcome::Passed);
        assert!(matches!(insert_or_replace(ledger, &replayed).await, Inserted::Written { event: Some(_), .. }));
        let stored = ledger.read_verdict(id).await.unwrap().unwrap();
        assert_eq!((stored.verdict.judgement.outcome, stored.revision.number), (Outcome::Passed, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_whose_build_was_interrupted_is_built_again() {
    static INDEXES: [PostgresIndex; 1] = [PostgresIndex {
        name: "verdicts_of_tests",
        create: "CREATE INDEX CONCURRENTLY IF NOT EXISTS verdicts_of_tests ON verdicts (attempts) WHERE revision > 1",
        drop: "DROP INDEX CONCURRENTLY IF EXISTS verdicts_of_tests",
    }];
    let lab = Lab::new().await;
    let ledger = Postgres::open(&SecretUrl::from(lab.ledger_url.clone())).await.unwrap();
    let valid = async || {
        lab.count("SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('verdicts_of_tests') AND indisvalid")
            .await
    };
    // A unique index over equal values: building it fails half-way, as an interruption does, and leaves it invalid.
    ledger.insert(&[entry("one", Outcome::Passed), entry("two", Outcome::Passed)]).await.unwrap();
    let broken = "CREATE UNIQUE INDEX CONCURRENTLY verdicts_of_tests ON verdicts (attempts)";
    sqlx::query(broken).execute(&lab.db).await.unwrap_err();
    let invalid =
        "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('verdicts_of_tests') AND NOT indisvalid";
    assert_eq!((lab.count(invalid).await, valid().await), (1, 0));

    ledger.build_indexes(&INDEXES).await.unwrap();
    assert_eq!((lab.count(invalid).await, valid().await), (0, 1));
    // Two processes at once, and nothing to do.
    let (first, second) = tokio::join!(ledger.build_indexes(&INDEXES), ledger.build_indexes(&INDEXES));
    first.unwrap();
    second.unwrap();
    assert_eq!(valid().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_refuses_the_whole_insert() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        // A rule that neither database has by itself.
        match subject.tables {
            Tables::Postgres(_) => subject.execute("ALTER TABLE verdicts ADD CHECK (bytes <> 13)").await,
            Tables::Sqlite(_) => {
                let rule = "CREATE TRIGGER rule BEFORE INSERT ON verdicts WHEN new.bytes = 13
                            BEGIN SELECT raise(ABORT, 'no thirteen'); END";
                subject.execute(rule).await;
            }
        }
        let mut unlucky = entry("unlucky", Outcome::Passed);
        unlucky.verdict.bytes = Some(13);
        let refused = ledger.insert(&[entry("lucky", Outcome::Passed), unlucky]).await;
        match subject.tables {
            Tables::Postgres(_) => assert!(matches!(refused, Err(LedgerError::Refused(_))), "{refused:?}"),
            // A trigger may refuse every row.
            Tables::Sqlite(_) => assert!(matches!(refused, Err(LedgerError::RefusedUnclear(_))), "{refused:?}"),
        }
        assert_eq!(subject.count("SELECT count(*) FROM verdicts").await, 0);
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, 0);
    }
}

/// Rows with everything that a text format could misread, and without everything that may be absent.
fn large_group() -> Vec<NewVerdict> {
    let odd = ["tab\there", "line\nend\r", "back\\slash \\N \\. \\x00", "quotes \"'", "ü 図 🖼", "", "\\N"];
    let mut group: Vec<NewVerdict> = (0..150).map(|n| entry(&format!("job {n}"), Outcome::Passed)).collect();
    for (n, entry) in group.iter_mut().enumerate() {
        let (verdict, text) = (&mut entry.verdict, odd[n % odd.len()]);
        verdict.image.key = format!("{n}/{text}");
        verdict.judgement.reason = Some(text.into()).filter(|_| n % 3 > 0);
        verdict.metadata = Some(serde_json::json!({"text": text, "n": [n, null]})).filter(|_| n % 2 > 0);
        if n % 5 == 0 {
            (verdict.sha256, verdict.seen, verdict.facts, verdict.judgement.score) = (None, None, None, None);
            verdict.judgement.findings.clear();
        }
        if n % 4 == 0 {
            entry.event = None;
        }
        // A few different values, in another order in each column.
        verdict.detectors = [digests(), Digests::new(), Digests::from([("other".into(), "d".into())])][n % 3].clone();
        verdict.policy.name = ["default", "other \t"][n / 3 % 2].into();
    }
    group
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_group_is_written_as_a_small_one_is() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let group = large_group();
        let answers = ledger.insert(&group).await.unwrap();
        for (entry, answer) in group.iter().zip(&answers) {
            let Inserted::Written { event, .. } = answer else { panic!("{answer:?}") };
            assert_eq!(event, &entry.event);
            assert_eq!(ledger.read_verdict(entry.verdict.id).await.unwrap().unwrap().verdict, entry.verdict);
        }
        let events = i64::try_from(group.iter().filter(|entry| entry.event.is_some()).count()).unwrap();
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, events);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_group_passes_over_what_is_known_and_is_refused_as_a_whole() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let group = large_group();
        let mut failed = entry("job 7", Outcome::Failed);
        failed.verdict.image = group[7].verdict.image.clone();
        ledger.insert(&[failed, group[9].clone()]).await.unwrap();
        let answers = ledger.insert(&group).await.unwrap();
        for known in [7, 9] {
            assert!(matches!(answers[known], Inserted::Existing(_)), "{:?}", answers[known]);
        }
        let written = answers.iter().filter(|answer| matches!(answer, Inserted::Written { .. })).count();
        assert_eq!(written, group.len() - 2);
        assert_eq!(subject.count("SELECT count(*) FROM verdicts").await, 150);

        let mut other: Vec<NewVerdict> = (0..150).map(|n| entry(&format!("other {n}"), Outcome::Passed)).collect();
        other[100].verdict.judgement.reason = Some("a null \0 is no text".into());
        if let Tables::Postgres(_) = subject.tables {
            let refused = ledger.insert(&other).await;
            assert!(matches!(refused, Err(LedgerError::Refused(_))), "{refused:?}");
            assert_eq!(subject.count("SELECT count(*) FROM verdicts").await, 150);
            // The connection is in order after all that.
            assert_eq!(ledger.insert(&other[..100]).await.unwrap().len(), 100);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_are_found_by_content_and_detectors_and_those_of_an_earlier_release_by_policy() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let mut own = entry("own", Outcome::Passed);
        own.verdict.reused_from = None;
        let mut animated = entry("animated", Outcome::Passed);
        animated.verdict.reused_from = None;
        animated.verdict.sha256 = Some([9; 32]);
        animated.verdict.seen = Some(ImageInfo { format: "gif", width: 8, height: 8, frames: 12 });
        let mut viewed =
            NewVerdict { verdict: Verdict { sha256: Some([10; 32]), ..animated.verdict.clone() }, event: None };
        (viewed.verdict.id, viewed.verdict.job_id) = (verdict_id("viewed"), "viewed".into());
        let facts = viewed.verdict.facts.as_mut().unwrap();
        facts.views = Some(Views::from([("d".into(), [("by AI".into(), View::of_frame(3))].into())]));
        animated.verdict.facts.as_mut().unwrap().views = None;
        let new = [own.clone(), animated.clone(), viewed.clone(), entry("taken-over", Outcome::Passed)];
        ledger.insert(&new).await.unwrap();

        let found = ledger.find_facts([7; 32], &digests(), "another policy").await.unwrap().unwrap();
        assert_eq!((found.verdict, Some(found.seen)), (own.verdict.id, own.verdict.seen));
        assert_eq!(Some(found.facts), own.verdict.facts);
        assert_eq!(ledger.find_facts([8; 32], &digests(), "s").await.unwrap(), None);
        assert_eq!(ledger.find_facts([7; 32], &Digests::new(), "s").await.unwrap(), None, "other detectors");
        assert_eq!(ledger.find_facts([9; 32], &digests(), "another policy").await.unwrap(), None);
        let found = ledger.find_facts([9; 32], &digests(), "s").await.unwrap();
        assert_eq!(
            found.map(|found| (found.verdict, Some(found.facts))),
            Some((animated.verdict.id, animated.verdict.facts))
        );
        let found = ledger.find_facts([10; 32], &digests(), "another policy").await.unwrap();
        assert_eq!(found.map(|found| Some(found.facts)), Some(viewed.verdict.facts), "any policy may judge all views");
    }
}

/// A hash that was not looked for is not the same as an image without one.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_an_earlier_release_has_no_hashes_also_where_its_facts_are_reused() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let mut own = entry("own", Outcome::Passed);
        own.verdict.reused_from = None;
        ledger.insert(std::slice::from_ref(&own)).await.unwrap();
        subject.execute("UPDATE verdicts SET hashes = NULL, md5 = NULL").await;
        let read = ledger.read_verdict(own.verdict.id).await.unwrap().unwrap().verdict;
        assert_eq!((read.md5, read.facts.unwrap().hashes), (None, None));
        let reused = ledger.find_facts([7; 32], &digests(), "s").await.unwrap().unwrap();
        assert_eq!(reused.facts.hashes, None);

        let mut none = entry("none", Outcome::Passed);
        none.verdict.facts.as_mut().unwrap().hashes = Some(Vec::new());
        ledger.insert(std::slice::from_ref(&none)).await.unwrap();
        let read = ledger.read_verdict(none.verdict.id).await.unwrap().unwrap().verdict;
        assert_eq!(read.facts.unwrap().hashes, Some(Vec::new()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_leased_once_at_a_time_until_it_is_published() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let entries = [entry("one", Outcome::Flagged), entry("two", Outcome::Flagged)];
        ledger.insert(&entries).await.unwrap();
        let lease = async |limit| ledger.lease_events("image.flagged", limit).await.unwrap();
        assert_eq!(lease(10).await, [], "at first they are left to the process that committed them");
        subject.let_time_pass().await;
        let leased = lease(1).await;
        assert_eq!(leased.len(), 1);
        let rest = lease(10).await;
        assert_eq!(rest.len(), 1, "a leased event is not leased again");
        assert_ne!(leased[0].id, rest[0].id);
        let wanted = entries.iter().filter_map(|entry| entry.event.clone()).find(|event| event.id == leased[0].id);
        assert_eq!(Some(&leased[0]), wanted.as_ref());

        ledger.mark_published(&[leased[0].id]).await.unwrap();
        ledger.note_unpublished(rest[0].id, "nobody is bound").await.unwrap();
        subject.let_time_pass().await;
        let again = lease(10).await;
        assert_eq!(again.iter().map(|event| event.id).collect::<Vec<_>>(), [rest[0].id]);
        assert_eq!(subject.count("SELECT count(*) FROM outbox WHERE tries = 2 AND last_error LIKE 'nobody%'").await, 1);

        assert_eq!(ledger.prune_outbox(Duration::from_secs(3600), 10).await.unwrap(), 0, "just published");
        assert_eq!(ledger.prune_outbox(Duration::ZERO, 10).await.unwrap(), 1);
        assert_eq!(subject.count("SELECT count(*) FROM outbox WHERE published_at IS NULL").await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_leased_and_counted_by_routing_key_and_deleted_in_batches() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        assert_eq!(ledger.unpublished_keys().await.unwrap(), Vec::<String>::new());
        assert_eq!(ledger.count_unpublished().await.unwrap(), []);
        let failed: Vec<NewVerdict> = (0..20).map(|n| entry(&format!("failed {n}"), Outcome::Missing)).collect();
        ledger.insert(&failed).await.unwrap();
        ledger.insert(&[entry("flagged", Outcome::Flagged), entry("passed", Outcome::Passed)]).await.unwrap();
        // Those that nobody takes have waited longer.
        subject.execute("UPDATE outbox SET due_at = '2020-01-02T00:00:00.000000Z'").await;
        subject
            .execute("UPDATE outbox SET due_at = '2020-01-01T00:00:00.000000Z' WHERE routing_key = 'image.failed'")
            .await;
        subject
            .execute("UPDATE outbox SET created_at = '2020-01-01T00:00:00.000000Z' WHERE routing_key = 'image.flagged'")
            .await;
        assert_eq!(ledger.unpublished_keys().await.unwrap(), ["image.failed", "image.flagged", "image.passed"]);
        let counted = ledger.count_unpublished().await.unwrap();
        let counts: Vec<_> = counted.iter().map(|key| (key.routing_key.as_str(), key.events)).collect();
        assert_eq!(counts, [("image.failed", 20), ("image.flagged", 1), ("image.passed", 1)]);
        let old = |key: &UnpublishedEvents| key.oldest > Duration::from_secs(365 * 86_400);
        assert_eq!(counted.iter().map(old).collect::<Vec<_>>(), [false, true, false]);

        let leased = ledger.lease_events("image.flagged", 10).await.unwrap();
        assert_eq!(leased.iter().map(|event| event.routing_key.as_str()).collect::<Vec<_>>(), ["image.flagged"]);
        assert_eq!(ledger.lease_events("image.failed", 7).await.unwrap().len(), 7);
        let tried = "SELECT count(*) FROM outbox WHERE routing_key = 'image.failed' AND tries = 0";
        assert_eq!(subject.count(tried).await, 13, "what is not leased is not rewritten");

        let all: Vec<Uuid> = failed.iter().map(|entry| entry.event.as_ref().unwrap().id).collect();
        ledger.mark_published(&all).await.unwrap();
        assert_eq!(ledger.unpublished_keys().await.unwrap(), ["image.flagged", "image.passed"]);
        let mut batches = Vec::new();
        while batches.last() != Some(&0) {
            batches.push(ledger.prune_outbox(Duration::ZERO, 8).await.unwrap());
        }
        assert_eq!(batches, [8, 8, 4, 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_begin_a_quarantine_are_counted_once_each() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let (id, first, second) = (verdict_id("suspect"), Uuid::new_v4(), Uuid::new_v4());
        assert_eq!(ledger.begin_quarantine(id, first).await.unwrap(), 1);
        assert_eq!(ledger.begin_quarantine(id, first).await.unwrap(), 1, "the same process has not died of it");
        assert_eq!(ledger.begin_quarantine(id, second).await.unwrap(), 2);
        assert!(
            !ledger.begin_in_company(id, second).await.unwrap(),
            "what was begun alone is never begun beside others"
        );
        ledger.end_quarantine(&[id]).await.unwrap();
        assert_eq!(ledger.begin_quarantine(id, second).await.unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quarantine_record_of_an_answered_job_goes_with_the_next_one() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let (dead, alive) = (Uuid::new_v4(), Uuid::new_v4());
        let outcomes = [("passed", Outcome::Passed), ("failed", Outcome::Failed), ("missing", Outcome::Missing)];
        // This one was answered before, and another state of its object is screened now.
        ledger.insert(&[entry("earlier", Outcome::Passed)]).await.unwrap();
        for id in ["passed", "failed", "missing", "earlier", "waiting"].map(verdict_id) {
            assert!(ledger.begin_in_company(id, dead).await.unwrap());
        }
        let answered = outcomes.map(|(job, outcome)| {
            let mut entry = entry(job, outcome);
            entry.verdict.decided_at = OffsetDateTime::now_utc() + Duration::from_secs(1);
            entry
        });
        ledger.insert(&answered).await.unwrap();
        assert!(ledger.begin_in_company(verdict_id("next"), alive).await.unwrap());
        ledger.end_quarantine(&[verdict_id("next")]).await.unwrap();
        assert_eq!(subject.count("SELECT count(*) FROM suspects").await, 4);
        assert!(ledger.begin_in_company(verdict_id("passed"), alive).await.unwrap(), "it was the answered one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_record_whose_job_never_comes_back_is_removed_in_the_end() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let process = Uuid::new_v4();
        for id in ["forgotten", "recent", "answered"].map(verdict_id) {
            assert!(ledger.begin_in_company(id, process).await.unwrap());
        }
        let forgotten = verdict_id("forgotten");
        subject
            .execute(&format!("UPDATE suspects SET started_at = '2020-01-01T00:00:00Z' WHERE id = '{forgotten}'"))
            .await;
        ledger.end_quarantine(&[verdict_id("answered")]).await.unwrap();
        assert_eq!(subject.count("SELECT count(*) FROM suspects").await, 1);
        assert!(ledger.begin_in_company(verdict_id("recent"), process).await.unwrap());
        assert_eq!(subject.count("SELECT count(*) FROM suspects").await, 1, "it was the recent one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_can_only_be_read_is_down() {
    let [postgres, sqlite] = Subject::both().await;
    let read_only = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$";
    postgres.execute(read_only).await;
    postgres.ledger.ping().await.unwrap();
    // Only new connections are read-only; a fail-over closes the old ones.
    postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(postgres.ledger.ping().await);
    }
    assert!(
        matches!(answers.last().unwrap(), Err(LedgerError::Down(why)) if why.to_string().contains("read-only")),
        "{answers:?}"
    );

    // Root may write to anything, so another writer stands in for a file that cannot be written to.
    let Tables::Sqlite(pool) = &sqlite.tables else { unreachable!() };
    let _writing = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    assert!(matches!(sqlite.ledger.ping().await, Err(LedgerError::Down(why)) if why.to_string().contains("locked")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_current_verdict_is_the_best_one_from_the_same_detectors() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let mut again = entry("again", Outcome::Passed);
        let failed = entry("failed", Outcome::Failed);
        again.verdict.image = failed.verdict.image.clone();
        again.verdict.decided_at -= Duration::from_secs(60);
        let mut unnamed = entry("unnamed", Outcome::Missing);
        unnamed.verdict.image.etag = None;
        let image = |entry: &NewVerdict| entry.verdict.image.clone();
        let objects = [
            image(&failed),
            image(&unnamed),
            ImageRef { etag: None, ..image(&failed) },
            image(&entry("x", Outcome::Passed)),
        ];
        let outcomes = async |digests: &Digests| -> Vec<Option<Outcome>> {
            let standings = ledger.current_verdicts(&objects, digests).await.unwrap();
            standings.into_iter().map(|standing| standing.map(|standing| standing.outcome)).collect()
        };
        ledger.insert(&[failed, unnamed]).await.unwrap();
        assert_eq!(outcomes(&digests()).await, [Some(Outcome::Failed), Some(Outcome::Missing), None, None]);
        ledger.insert(&[again]).await.unwrap();
        assert_eq!(outcomes(&digests()).await[0], Some(Outcome::Passed), "whichever came last");
        assert_eq!(outcomes(&Digests::new()).await, [None; 4], "other detectors");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_job_waits_until_it_is_answered_or_old() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let decided = entry("answered", Outcome::Passed).verdict.decided_at;
        let before = decided - Duration::from_secs(1);
        let [answered, open, late] = ["answered", "open", "late"].map(verdict_id);
        ledger.record_published_jobs(&[answered, open, open], before).await.unwrap();
        ledger.record_published_jobs(&[late], decided + Duration::from_secs(1)).await.unwrap();
        let mut found = ledger.pending_jobs(&[answered, open, late, verdict_id("no")], before).await.unwrap();
        found.sort_unstable();
        let mut all = [answered, open, late];
        all.sort_unstable();
        assert_eq!(found, all);
        assert_eq!(ledger.pending_jobs(&[answered, open, late], decided).await.unwrap(), [late]);

        // The late one was published after its verdict was decided, and waits for another.
        ledger.insert(&[entry("answered", Outcome::Passed), entry("late", Outcome::Failed)]).await.unwrap();
        assert_eq!(ledger.delete_answered_jobs(before).await.unwrap(), 1);
        assert_eq!(subject.count("SELECT count(*) FROM backfill_jobs").await, 2);
        assert_eq!(ledger.delete_answered_jobs(decided).await.unwrap(), 1, "the open one is too old");
        assert_eq!(ledger.pending_jobs(&[answered, open, late], before).await.unwrap(), [late]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_has_the_backfill_lease_until_it_releases_it_or_does_not_renew_it() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
        assert!(ledger.take_backfill_lease(first).await.unwrap());
        assert!(!ledger.take_backfill_lease(second).await.unwrap());
        assert!(ledger.take_backfill_lease(first).await.unwrap(), "renewed");
        ledger.release_backfill_lease(second).await.unwrap();
        assert!(!ledger.take_backfill_lease(second).await.unwrap(), "the second does not have it");
        ledger.release_backfill_lease(first).await.unwrap();
        assert!(ledger.take_backfill_lease(second).await.unwrap());
        subject.execute("UPDATE backfill_turn SET alive_at = '2020-01-01T00:00:00.000000Z'").await;
        assert!(ledger.take_backfill_lease(first).await.unwrap(), "the second did not renew its lease");
        assert!(!ledger.take_backfill_lease(second).await.unwrap());

        assert_eq!(ledger.backfill_progress("a").await.unwrap(), None);
        for mark in ["one", "two"] {
            ledger.save_backfill_progress("a", Some(mark)).await.unwrap();
        }
        let (mark, kept_at) = ledger.backfill_progress("a").await.unwrap().unwrap();
        assert_eq!(mark, "two");
        assert!((OffsetDateTime::now_utc() - kept_at).abs() < Duration::from_secs(60), "{kept_at}");
        ledger.save_backfill_progress("a", None).await.unwrap();
        assert_eq!(ledger.backfill_progress("a").await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_old_verdicts_without_unpublished_events_are_deleted() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let mut young = entry("young", Outcome::Passed);
        young.verdict.decided_at += Duration::from_secs(60);
        let (old, unpublished) = (entry("old", Outcome::Passed), entry("unpublished", Outcome::Flagged));
        let until = young.verdict.decided_at;
        ledger
            .insert(&[young.clone(), old.clone(), unpublished.clone(), entry("missing", Outcome::Missing)])
            .await
            .unwrap();
        let (revise, _) = revise_to(ledger.as_ref(), &old.verdict, 1, Outcome::Passed).await;
        let published = [&young.event, &revise.event].map(|event| event.as_ref().unwrap().id);
        ledger.mark_published(&published).await.unwrap();
        ledger.mark_published(&[event_id(verdict_id("missing"), Outcome::Missing)]).await.unwrap();

        let prunable = |outcomes: &[Outcome]| VerdictFilter {
            until: Some(until),
            outcomes: outcomes.to_vec(),
            ..VerdictFilter::default()
        };
        let count = async |outcomes: &[Outcome]| ledger.count_prunable(&prunable(outcomes), None).await.unwrap();
        let delete = async |outcomes: &[Outcome], from, limit| {
            ledger.delete_prunable(&prunable(outcomes), from, limit).await.unwrap()
        };
        assert_eq!(count(&[Outcome::Passed]).await, PrunedPage { verdicts: 1, next: None });
        assert_eq!(count(&[]).await, PrunedPage { verdicts: 2, next: None });
        let elsewhere = VerdictFilter { buckets: vec!["another".into()], ..prunable(&[]) };
        let nothing = PrunedPage { verdicts: 0, next: None };
        assert_eq!(ledger.delete_prunable(&elsewhere, None, 10).await.unwrap(), nothing, "the filter holds");
        let done = PrunedPage { verdicts: 1, next: None };
        assert_eq!(delete(&[Outcome::Passed, Outcome::Review], None, 10).await, done);
        // One at a time: what stays is not met again.
        let (mut deleted, mut from, mut calls) = (0, None, 0);
        loop {
            let page = delete(&[], from, 1).await;
            (deleted, from, calls) = (deleted + page.verdicts, page.next, calls + 1);
            if from.is_none() {
                break;
            }
        }
        assert_eq!(deleted, 1);
        assert!(calls <= 3, "{calls} calls");
        assert_eq!(delete(&[], None, 10).await, nothing);
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, 2, "the events of deleted verdicts are deleted");
        assert_eq!(subject.count("SELECT count(*) FROM verdict_history").await, 0, "and so is their history");
        for (entry, left) in [(young, true), (old, false), (unpublished, true)] {
            assert_eq!(
                ledger.read_verdict(entry.verdict.id).await.unwrap().is_some(),
                left,
                "{}",
                entry.verdict.job_id
            );
        }
    }
}

/// Whether a verdict is expected.
type Condition<'c> = &'c dyn Fn(&Verdict) -> bool;

/// All pages of a selection, of two verdicts each.
async fn selected(ledger: &dyn Ledger, filter: &VerdictFilter) -> Vec<String> {
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let page = ledger.page_of_verdicts(filter, from, 2).await.unwrap();
        found.extend(page.verdicts.into_iter().map(|stored| stored.verdict.job_id));
        from = page.next;
        if from.is_none() {
            return found;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_are_selected_by_every_condition_page_by_page() {
    for subject in Subject::both().await {
        let ledger = subject.ledger.as_ref();
        let outcomes = [Outcome::Flagged, Outcome::Passed, Outcome::Review, Outcome::Flagged, Outcome::Missing];
        let mut entries: Vec<NewVerdict> = (0..10).map(|n| entry(&format!("job {n}"), outcomes[n % 5])).collect();
        let first = entries[0].verdict.decided_at;
        for (n, new) in entries.iter_mut().enumerate() {
            let verdict = &mut new.verdict;
            // Two at each moment.
            verdict.decided_at = first + Duration::from_secs(n as u64 / 2 * 60);
            verdict.image.bucket = ["uploads", "up_loads", "archive"][n % 3].into();
            verdict.image.key = format!("{}/{n}", ["a", "ä%", "b"][n % 3]);
            verdict.judgement.label = [Some("by AI".into()), None][n % 2].clone();
            verdict.detectors = Digests::from([(["d", "e"][n / 5].to_owned(), "1".to_owned())]);
        }
        ledger.insert(&entries).await.unwrap();
        let expected = |condition: &dyn Fn(&Verdict) -> bool| {
            let mut chosen: Vec<_> =
                entries.iter().map(|new| &new.verdict).filter(|verdict| condition(verdict)).collect();
            chosen.sort_by_key(|verdict| (verdict.decided_at, verdict.id));
            chosen.into_iter().map(|verdict| verdict.job_id.clone()).collect::<Vec<_>>()
        };
        let (all, minute) = (VerdictFilter::default(), first + Duration::from_secs(60));
        let by = |outcomes: &[Outcome]| VerdictFilter { outcomes: outcomes.to_vec(), ..all.clone() };
        let in_buckets = |names: &[&str]| VerdictFilter {
            buckets: names.iter().map(|name| (*name).to_owned()).collect(),
            ..all.clone()
        };
        let cases: [(VerdictFilter, Condition<'_>); 12] = [
            (all.clone(), &|_| true),
            (VerdictFilter { since: Some(minute), ..all.clone() }, &|v| v.decided_at >= minute),
            (VerdictFilter { until: Some(minute), ..all.clone() }, &|v| v.decided_at < minute),
            (by(&[Outcome::Flagged]), &|v| v.judgement.outcome == Outcome::Flagged),
            (by(&[Outcome::Missing, Outcome::Flagged]), &|v| {
                [Outcome::Missing, Outcome::Flagged].contains(&v.judgement.outcome)
            }),
            (by(&[Outcome::Passed, Outcome::Review]), &|v| {
                [Outcome::Passed, Outcome::Review].contains(&v.judgement.outcome)
            }),
            (in_buckets(&["up_loads"]), &|v| v.image.bucket == "up_loads"),
            (in_buckets(&["up*", "archive"]), &|_| true),
            (in_buckets(&["*loads"]), &|v| v.image.bucket != "archive"),
            (VerdictFilter { key_prefix: Some("ä%/".into()), ..all.clone() }, &|v| v.image.key.starts_with("ä%/")),
            (VerdictFilter { labels: vec!["by AI".into(), "x".into()], ..all.clone() }, &|v| {
                v.judgement.label.is_some()
            }),
            (VerdictFilter { detector: Some("e".into()), ..by(&[Outcome::Flagged]) }, &|v| {
                v.detectors.contains_key("e") && v.judgement.outcome == Outcome::Flagged
            }),
        ];
        for (filter, condition) in cases {
            assert_eq!(selected(ledger, &filter).await, expected(condition), "{filter:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revised_verdicts_are_selected_by_the_time_of_their_last_judgement() {
    for subject in Subject::both().await {
        let ledger = subject.ledger.as_ref();
        let entries: Vec<NewVerdict> = (0..5).map(|n| entry(&format!("job {n}"), Outcome::Flagged)).collect();
        ledger.insert(&entries).await.unwrap();
        let before = ledger.now().await.unwrap();
        let mut times = Vec::new();
        for n in [3, 1, 4] {
            times.push(revise_to(ledger, &entries[n].verdict, 1, Outcome::Passed).await.0.judged_at);
        }
        let since = |since| VerdictFilter { revised_since: Some(since), ..VerdictFilter::default() };
        assert_eq!(selected(ledger, &since(before)).await, ["job 3", "job 1", "job 4"]);
        assert_eq!(selected(ledger, &since(times[1])).await, ["job 1", "job 4"], "from this time on");
        let earlier = VerdictFilter { revised_until: Some(times[1]), ..since(before) };
        assert_eq!(selected(ledger, &earlier).await, ["job 3"]);
        let undecided = VerdictFilter { until: Some(entries[0].verdict.decided_at), ..since(before) };
        assert_eq!(selected(ledger, &undecided).await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_trigger_refuses_is_told_from_a_ledger_that_is_down() {
    let [postgres, _] = Subject::both().await;
    let ledger = postgres.ledger.as_ref();
    let new = entry("one", Outcome::Passed);
    postgres
        .execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF new.bytes = 13 THEN RAISE EXCEPTION 'no thirteen'; END IF; RETURN new; END $$;",
        )
        .await;
    postgres.execute("CREATE TRIGGER refuse BEFORE INSERT ON verdicts FOR EACH ROW EXECUTE FUNCTION refuse()").await;
    let mut unlucky = entry("unlucky", Outcome::Passed);
    unlucky.verdict.bytes = Some(13);
    let refused = ledger.insert(&[new.clone(), unlucky]).await;
    assert!(
        matches!(&refused, Err(LedgerError::RefusedUnclear(why)) if why.to_string() == "no thirteen"),
        "{refused:?}"
    );
    ledger.insert(&[new]).await.unwrap();

    postgres.execute("ALTER TABLE verdicts RENAME TO elsewhere").await;
    let gone = ledger.insert(&[entry("two", Outcome::Passed)]).await;
    // What a trigger could raise too. The probe then shows that it is the ledger.
    assert!(matches!(&gone, Err(LedgerError::RefusedUnclear(why)) if why.to_string().contains("verdicts")), "{gone:?}");
    let probed = ledger.ping().await;
    assert!(matches!(&probed, Err(LedgerError::Down(why)) if why.to_string().contains("verdicts")), "{probed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_a_statement_timeout_below_the_programs_own() {
    let lab = Lab::new().await;
    let ledger = Postgres::open(&SecretUrl::from(lab.ledger_url.clone())).await.unwrap();
    // What a session has is shown by a column default, which is computed in the session of the ledger.
    let settings = "ALTER TABLE verdicts ADD COLUMN seen text DEFAULT current_setting('statement_timeout') || ' '
                    || current_setting('client_connection_check_interval')";
    sqlx::query(settings).execute(&lab.db).await.unwrap();
    let seen = async |job: &str| {
        ledger.insert(&[entry(job, Outcome::Passed)]).await.unwrap();
        let query = sqlx::query_scalar::<_, String>("SELECT seen FROM verdicts WHERE job_id = $1").bind(job.to_owned());
        query.fetch_one(&lab.db).await.unwrap()
    };
    assert_eq!(seen("one").await, "9500ms 5s");
    // A longer call leaves the limit as it was.
    ledger.count_prunable(&VerdictFilter::default(), None).await.unwrap();
    ledger.migrate().await.unwrap();
    assert_eq!(seen("two").await, "9500ms 5s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_given_up_does_not_run_on_and_leaves_no_connection() {
    let lab = Lab::new().await;
    let ledger = Postgres::open(&SecretUrl::from(lab.ledger_url.clone())).await.unwrap();
    ledger.insert(&[entry("one", Outcome::Passed)]).await.unwrap();
    let mut holding = lab.db.begin().await.unwrap();
    sqlx::query("LOCK TABLE verdicts IN ACCESS EXCLUSIVE MODE").execute(&mut *holding).await.unwrap();
    let blocked = ledger.insert(&[entry("two", Outcome::Passed)]).await;
    assert!(
        matches!(&blocked, Err(LedgerError::Down(why)) if why.to_string().contains("statement timeout")),
        "{blocked:?}"
    );
    let running = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'pixwarden' AND state = 'active'";
    // The server reports the error before it marks the session as idle.
    let since = Instant::now();
    while sqlx::query_scalar::<_, i64>(running).fetch_one(&lab.db).await.unwrap() > 0 {
        assert!(since.elapsed() < Duration::from_secs(5), "the statement runs on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    holding.rollback().await.unwrap();
    ledger.insert(&[entry("two", Outcome::Passed)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_refuses_a_row_for_a_moment_only_costs_nothing() {
    let lab = Lab::new().await;
    lab.put("k", crate::support::good_image()).await;
    // A sequence keeps its value also where the transaction is rolled back.
    let trigger = "CREATE SEQUENCE inserts; GRANT USAGE ON SEQUENCE inserts TO PUBLIC;
                   CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                       IF new.job_id = 'one' AND nextval('inserts') = 1 THEN RAISE EXCEPTION 'not now'; END IF;
                       RETURN new; END $$;
                   CREATE TRIGGER refuse BEFORE INSERT ON verdicts FOR EACH ROW EXECUTE FUNCTION refuse()";
    sqlx::raw_sql(trigger).execute(&lab.db).await.unwrap();
    let job = serde_json::json!({"id": "one", "image": format!("s3://{}/k", lab.bucket), "metadata": {"user": 7}});
    lab.job(Lane::Live, job).await;
    let mut worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts WHERE outcome <> 'failed' AND metadata IS NOT NULL", 1, &worker).await;
    lab.until_settled(&worker).await;
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_trigger_refuses_holds_up_no_other() {
    let lab = Lab::new().await;
    lab.put("k", crate::support::good_image()).await;
    let trigger = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                       IF new.job_id = 'poison' THEN RAISE EXCEPTION 'no poison'; END IF; RETURN new; END $$;
                   CREATE TRIGGER refuse BEFORE INSERT ON verdicts FOR EACH ROW EXECUTE FUNCTION refuse()";
    sqlx::raw_sql(trigger).execute(&lab.db).await.unwrap();
    for job in ["one", "two", "poison", "three", "four"] {
        lab.job(Lane::Live, serde_json::json!({"id": job, "image": format!("s3://{}/k", lab.bucket)})).await;
    }
    let mut worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts", 4, &worker).await;
    lab.until_waiting(&lab.topology.dead(), 1).await;
    lab.until_settled(&worker).await;
    let (letter, properties) = lab.next(&lab.topology.dead()).await;
    assert_eq!((&letter["id"], crate::support::reason(&properties).contains("no poison")), (&"poison".into(), true));
    assert!(worker.terminate().await.success());
}

fn done(erased: Erased) -> ErasedRows {
    match erased {
        Erased::Done(rows) => rows,
        Erased::Held(hold) => panic!("{hold:?}"),
    }
}

fn image(verdict: &Verdict) -> Selects {
    Selects::Image { bucket: verdict.image.bucket.clone(), key: verdict.image.key.clone() }
}

/// All verdicts that are selected.
async fn ids_of(ledger: &dyn Ledger, subject: &Selects) -> Vec<Uuid> {
    let (mut ids, mut from) = (Vec::new(), None);
    loop {
        let page = ledger.page_of_subject(subject, from).await.unwrap();
        ids.extend(page.ids);
        from = page.next;
        if from.is_none() {
            ids.sort_unstable();
            return ids;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_content_comes_back_by_no_job_and_other_content_does() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let first = entry("one", Outcome::Flagged);
        ledger.insert(std::slice::from_ref(&first)).await.unwrap();
        assert_eq!(ledger.are_erased(std::slice::from_ref(&first.verdict.image)).await.unwrap(), [false]);
        let erased = done(ledger.erase(&[first.verdict.id, verdict_id("unknown")]).await.unwrap());
        assert_eq!((erased.verdicts, erased.events, erased.tombstones), (1, 1, 1));

        // The same job, another job for the same image, one under another detector, and one after the object is gone.
        let of = |job_id: &str, outcome: Outcome| {
            let mut new = entry(job_id, outcome);
            new.verdict.image = first.verdict.image.clone();
            new
        };
        let mut detector = of("detector", Outcome::Passed);
        detector.verdict.detectors = Digests::from([("new".to_owned(), "2".to_owned())]);
        let mut gone = of("gone", Outcome::Missing);
        gone.verdict.sha256 = None;
        gone.verdict.image.etag = None;
        // Its bucket is not allowed any more, or refuses access.
        let unfetched = |mut new: NewVerdict| {
            new.verdict.sha256 = None;
            new
        };
        let mut denied = unfetched(first.clone());
        denied.verdict.image.etag = None;
        let state = unfetched(of("state", Outcome::Rejected));
        for again in [first.clone(), of("two", Outcome::Passed), detector, gone, denied, state] {
            let inserted = ledger.insert(std::slice::from_ref(&again)).await.unwrap();
            assert_eq!(inserted, [Inserted::Erased], "{}", again.verdict.job_id);
            assert_eq!(ledger.find_verdict(again.verdict.id).await.unwrap(), None);
        }
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, 0, "and is not announced");

        // Other content at the place, the same content at another place, and what was not fetched are new; in one group with
        // what was erased.
        let mut other = of("other", Outcome::Flagged);
        other.verdict.sha256 = Some([8; 32]);
        let mut moved = of("moved", Outcome::Passed);
        moved.verdict.image.key.push('x');
        let mut bucket = of("bucket", Outcome::Passed);
        bucket.verdict.image.bucket = "another".into();
        let mut rejected = of("rejected", Outcome::Rejected);
        rejected.verdict.sha256 = None;
        rejected.verdict.image.etag = Some("another state".into());
        let group = [first.clone(), other, moved, bucket, rejected];
        let inserted = ledger.insert(&group).await.unwrap();
        assert_eq!(inserted[0], Inserted::Erased);
        assert!(
            inserted[1..].iter().all(|inserted| matches!(inserted, Inserted::Written { event: Some(_), .. })),
            "{inserted:?}"
        );

        // A backfill asks by the ETag.
        let [same, another] =
            ["e", "f"].map(|etag| ImageRef { etag: Some(etag.into()), ..first.verdict.image.clone() });
        let unknown = ImageRef { etag: None, ..same.clone() };
        assert_eq!(ledger.are_erased(&[another, same, unknown]).await.unwrap(), [false, true, false]);

        // A later judgement finds nothing to judge.
        let (_, revised) = revise_to(ledger.as_ref(), &first.verdict, 1, Outcome::Passed).await;
        assert_eq!(revised, Revised::Missing);

        // A job that had failed is replayed, and fetches what was erased.
        let mut failed = of("failed", Outcome::Failed);
        failed.verdict.sha256 = None;
        failed.verdict.image.etag = None;
        assert!(matches!(ledger.insert(&[failed.clone()]).await.unwrap()[0], Inserted::Written { .. }));
        let replayed = Verdict { sha256: first.verdict.sha256, ..of("failed", Outcome::Passed).verdict };
        let replay = Revise {
            verdict: replayed,
            expected_revision: 1,
            cause: RevisionCause::Replayed,
            judged_at: ledger.now().await.unwrap(),
            event: None,
        };
        assert_eq!(ledger.revise(&replay).await.unwrap(), Revised::Erased);
        let stored = ledger.read_verdict(failed.verdict.id).await.unwrap().unwrap();
        assert_eq!((stored.verdict.sha256, stored.revision.number), (None, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_verdict_without_content_stops_only_its_own_job_and_state() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let unfetched = |job_id: &str, etag: Option<&str>| {
            let mut new = entry(job_id, Outcome::Rejected);
            let verdict = &mut new.verdict;
            (verdict.sha256, verdict.facts, verdict.seen) = (None, None, None);
            verdict.image = ImageRef { key: "k".into(), etag: etag.map(str::to_owned), ..verdict.image.clone() };
            new
        };
        let (large, detector) = (unfetched("large", Some("e")), unfetched("detector", None));
        ledger.insert(&[large.clone(), detector.clone()]).await.unwrap();
        let ids = ids_of(ledger.as_ref(), &image(&large.verdict)).await;
        assert_eq!(done(ledger.erase(&ids).await.unwrap()).tombstones, 2);
        let again = [large, detector, unfetched("large again", Some("e"))];
        let inserted = ledger.insert(&again).await.unwrap();
        assert!(inserted.iter().all(|inserted| *inserted == Inserted::Erased), "{inserted:?}");
        // A picture that was never screened must be.
        let mut fetched = entry("fetched", Outcome::Passed);
        fetched.verdict.image = again[0].verdict.image.clone();
        let new = [fetched, unfetched("other state", Some("f")), unfetched("other job", None)];
        assert_eq!(ledger.are_erased(std::slice::from_ref(&again[0].verdict.image)).await.unwrap(), [false]);
        let inserted = ledger.insert(&new).await.unwrap();
        assert!(inserted.iter().all(|inserted| matches!(inserted, Inserted::Written { .. })), "{inserted:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_erased_is_left_in_any_table() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let mut secret = entry("secret-job", Outcome::Flagged);
        secret.verdict.metadata = Some(serde_json::json!({"user": "secret-user", "age": 7, "adult": true}));
        secret.verdict.sha256 = Some([0xab; 32]);
        secret.verdict.image.key = "secret-key".into();
        secret.verdict.image.etag = Some("secret-etag".into());
        let event = secret.event.as_mut().unwrap();
        event.payload = "{\"subject\": \"secret-key\"}".into();
        event.destinations.webhooks = vec!["one".into(), "two".into()];
        let id = secret.verdict.id;
        let mut other = entry("other", Outcome::Flagged);
        other.verdict.metadata = Some(serde_json::json!({"user": "secret", "adult": "secret-true"}));
        ledger.insert(&[secret.clone(), other.clone()]).await.unwrap();
        revise_to(ledger.as_ref(), &secret.verdict, 1, Outcome::Review).await;
        if let Tables::Postgres(_) = subject.tables {
            assert_eq!(
                subject.count("SELECT count(*) FROM webhook_deliveries").await,
                0,
                "the revision made them wrong"
            );
            let insert = "INSERT INTO webhook_deliveries (endpoint, event_id, verdict_id, routing_key, payload)
                          SELECT 'one', event_id, verdict_id, 'image.review', 'secret-key' FROM outbox WHERE verdict_id = ";
            subject.execute(&format!("{insert}'{id}'")).await;
        }
        ledger.begin_quarantine(id, Uuid::new_v4()).await.unwrap();
        ledger.record_published_jobs(&[id], OffsetDateTime::now_utc()).await.unwrap();
        ledger.save_backfill_progress("at it", Some("secret-key")).await.unwrap();
        ledger.save_backfill_progress("elsewhere", Some("b/k")).await.unwrap();
        let words = ["secret-job", "secret-user", "secret-key", "secret-etag", &"ab".repeat(32), &id.to_string()];
        let before = subject.dump().await;
        assert!(words.iter().all(|word| before.contains(word)), "the dump has everything:\n{before}");

        let metadata = |name: &str, value: &str| Selects::Metadata { name: name.into(), value: value.into() };
        for subject in [
            image(&secret.verdict),
            Selects::Content([0xab; 32]),
            metadata("user", "secret-user"),
            metadata("age", "7"),
            metadata("adult", "true"),
        ] {
            assert_eq!(ids_of(ledger.as_ref(), &subject).await, [id], "{subject:?}");
        }
        for subject in [metadata("user", "7"), metadata("none", ""), Selects::Content([1; 32])] {
            assert!(ids_of(ledger.as_ref(), &subject).await.is_empty(), "{subject:?}");
        }
        let erased = done(ledger.erase(&[id]).await.unwrap());
        let one_each = ErasedRows {
            // One for each view.
            hashes: if matches!(subject.tables, Tables::Sqlite(_)) { 0 } else { 2 },
            // The revision has opened one.
            review_items: if matches!(subject.tables, Tables::Sqlite(_)) { 0 } else { 1 },
            verdicts: 1,
            history: 1,
            suspects: 1,
            backfill_jobs: 1,
            backfill_marks: 1,
            tombstones: 1,
            // The flagged one was replaced by its revision.
            events: 1,
            webhook_deliveries: if matches!(subject.tables, Tables::Sqlite(_)) { 0 } else { 1 },
            ..ErasedRows::default()
        };
        assert_eq!(erased, one_each);
        let after = subject.dump().await;
        for word in words {
            assert!(!after.contains(word), "{word} is left in:\n{after}");
        }
        assert!(after.contains("elsewhere") && after.contains("secret-true"), "and nothing else is gone:\n{after}");
        if let Tables::Sqlite(pool) = &subject.tables {
            let file: String = sqlx::query_scalar("SELECT file FROM pragma_database_list WHERE name = 'main'")
                .fetch_one(pool)
                .await
                .unwrap();
            // Also what the revision had replaced before.
            for file in [file.clone(), format!("{file}-wal")] {
                let bytes = std::fs::read(&file).unwrap();
                let is_left = |word: &str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
                assert!(!is_left("secret-key") && !is_left("secret-job"), "a deleted row is left in {file}");
            }
        }
    }
}

/// Waits until a statement waits for the lock that inserts and erasing share.
async fn until_blocked(subject: &Subject) {
    let query =
        "SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid AND datname = current_database()
                     WHERE NOT granted AND relation = 'erase_lock'::regclass";
    let since = Instant::now();
    while subject.count(query).await == 0 {
        assert!(since.elapsed() < Duration::from_secs(10), "nothing waits for the lock");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes each statement of a kind on `verdicts` stop in a trigger, until the returned transaction has ended.
async fn stop_in_trigger(subject: &Subject, pool: &PgPool, kind: &str) -> sqlx::Transaction<'static, sqlx::Postgres> {
    subject
        .execute(
            "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_advisory_xact_lock(42); RETURN coalesce(NEW, OLD); END $$",
        )
        .await;
    let trigger = format!("CREATE TRIGGER stops BEFORE {kind} ON verdicts FOR EACH ROW EXECUTE FUNCTION stop()");
    subject.execute(&trigger).await;
    let mut stopping = pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(42)").execute(&mut *stopping).await.unwrap();
    stopping
}

/// Statements that wait in such a trigger.
const STOPPED: &str =
    "SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid AND datname = current_database()
    WHERE NOT granted AND locktype = 'advisory'";

#[tokio::test(flavor = "multi_thread")]
async fn erasing_waits_for_an_insert_that_runs() {
    let [subject, _] = Subject::both().await;
    let Tables::Postgres(pool) = &subject.tables else { unreachable!() };
    let new = entry("running", Outcome::Passed);
    // An insert that has begun, and stops in its trigger.
    let stopping = stop_in_trigger(&subject, pool, "INSERT").await;
    let waiting = async {
        until_blocked(&subject).await;
        stopping.commit().await.unwrap();
    };
    let erasing = async {
        while subject.count(STOPPED).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        subject.ledger.erase(&[new.verdict.id]).await.unwrap()
    };
    let group = [new.clone()];
    let (inserted, erased, ()) = tokio::join!(subject.ledger.insert(&group), erasing, waiting);
    assert!(matches!(&inserted.unwrap()[..], [Inserted::Written { .. }]));
    assert_eq!(done(erased).verdicts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_begins_after_the_batch_that_is_being_pruned() {
    let [subject, _] = Subject::both().await;
    let Tables::Postgres(pool) = &subject.tables else { unreachable!() };
    let new = NewVerdict { event: None, ..entry("old", Outcome::Passed) };
    subject.ledger.insert(std::slice::from_ref(&new)).await.unwrap();
    // A deletion that has begun, and stops in its trigger.
    let stopping = stop_in_trigger(&subject, pool, "DELETE").await;
    let is_added = AtomicBool::new(false);
    let everything = VerdictFilter::default();
    let pruning = subject.ledger.delete_prunable(&everything, None, 10);
    let adding = async {
        while subject.count(STOPPED).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let hold = hold(image(&new.verdict), OffsetDateTime::now_utc() + Duration::from_secs(3600));
        subject.ledger.add_hold(&hold).await.unwrap();
        is_added.store(true, Ordering::Relaxed);
        subject.count("SELECT count(*) FROM verdicts").await
    };
    let going_on = async {
        let query = "SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid AND datname = current_database()
                     WHERE NOT granted AND relation = 'holds'::regclass";
        while subject.count(query).await == 0 && !is_added.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stopping.commit().await.unwrap();
    };
    let (pruned, left, ()) = tokio::join!(pruning, adding, going_on);
    assert_eq!((pruned.unwrap().verdicts, left), (1, 0), "a hold keeps all that is there when it has begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_waited_for_erasing_sees_its_tombstones() {
    let [subject, _] = Subject::both().await;
    let Tables::Postgres(pool) = &subject.tables else { unreachable!() };
    let group = [entry("one", Outcome::Passed)];
    subject.ledger.insert(&group).await.unwrap();
    done(subject.ledger.erase(&[group[0].verdict.id]).await.unwrap());
    subject.execute("CREATE TABLE kept AS SELECT * FROM tombstones").await;
    subject.execute("DELETE FROM tombstones").await;
    // As erasing does.
    let mut erasing = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE erase_lock IN SHARE ROW EXCLUSIVE MODE").execute(&mut *erasing).await.unwrap();
    sqlx::query("INSERT INTO tombstones SELECT * FROM kept").execute(&mut *erasing).await.unwrap();
    let waiting = async {
        until_blocked(&subject).await;
        erasing.commit().await.unwrap();
    };
    let (inserted, ()) = tokio::join!(subject.ledger.insert(&group), waiting);
    assert_eq!(inserted.unwrap(), [Inserted::Erased]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_marks_the_verdicts_on_what_was_there_and_no_newer_object() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let at = verdict("x", Outcome::Passed).received_at;
        let of = |job_id: &str, version: Option<&str>, object_at: Option<OffsetDateTime>| {
            let mut new = entry(job_id, Outcome::Passed);
            new.verdict.image =
                ImageRef { key: "k".into(), version_id: version.map(str::to_owned), ..new.verdict.image };
            new.verdict.object_at = object_at;
            new
        };
        let second = Duration::from_secs(1);
        // `received` has no time of its own, and was received at `at`.
        let entries = [
            of("old", None, Some(at - second)),
            of("received", Some("null"), None),
            of("version", Some("v"), Some(at - second)),
            of("new", None, Some(at + second)),
            entry("elsewhere", Outcome::Passed),
        ];
        ledger.insert(&entries).await.unwrap();
        let deleted = async || {
            let mut deleted = Vec::new();
            for entry in &entries {
                let stored = ledger.read_verdict(entry.verdict.id).await.unwrap().unwrap();
                deleted.extend(stored.deleted_at.map(|at| (stored.verdict.job_id, at)));
            }
            deleted
        };
        let removal = |version: Option<&str>, at| Removal {
            bucket: "b".into(),
            key: "k".into(),
            version_id: version.map(str::to_owned),
            at,
        };
        assert_eq!(ledger.mark_deleted(&removal(Some("w"), at)).await.unwrap(), 0, "another version");
        // A version with a name cannot be newer than its removal, whatever the clocks say.
        let early = at - Duration::from_secs(60);
        assert_eq!(ledger.mark_deleted(&removal(None, early)).await.unwrap(), 0);
        assert_eq!(ledger.mark_deleted(&removal(Some("v"), early)).await.unwrap(), 1);
        assert_eq!(deleted().await, [("version".to_owned(), early)]);
        assert_eq!(ledger.mark_deleted(&removal(Some("null"), at)).await.unwrap(), 2, "versions without a name");
        assert_eq!(ledger.mark_deleted(&removal(None, at + second / 2)).await.unwrap(), 0, "the first removal stands");
        let all = [("old", at), ("received", at), ("version", early)].map(|(id, at)| (id.to_owned(), at));
        assert_eq!(deleted().await, all);

        // A later delivery of a failed job found a newer object.
        let mut failed = of("failed", None, None);
        failed.verdict.judgement.outcome = Outcome::Failed;
        ledger.insert(std::slice::from_ref(&failed)).await.unwrap();
        assert_eq!(ledger.mark_deleted(&removal(None, at)).await.unwrap(), 1);
        failed.verdict.judgement.outcome = Outcome::Passed;
        failed.verdict.object_at = Some(at + second);
        assert!(matches!(insert_or_replace(ledger.as_ref(), &failed).await, Inserted::Written { .. }));
        assert_eq!(ledger.read_verdict(failed.verdict.id).await.unwrap().unwrap().deleted_at, None);
    }
}

fn hold(subject: Selects, until: OffsetDateTime) -> Hold {
    let made_at = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
    Hold { id: Uuid::new_v4(), reference: "case 12".into(), subject, until, made_at }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_a_hold_is_neither_erased_nor_pruned_until_the_hold_ends() {
    let year = Duration::from_secs(366 * 86_400);
    let later = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap() + year;
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let mut held = entry("held", Outcome::Passed);
        held.verdict.sha256 = Some([9; 32]);
        held.verdict.metadata = Some(serde_json::json!({"user": 8}));
        held.event = None;
        let mut free = entry("free", Outcome::Passed);
        free.event = None;
        let (id, free_id) = (held.verdict.id, free.verdict.id);
        ledger.insert(&[held.clone(), free.clone(), entry("unpublished", Outcome::Passed)]).await.unwrap();
        let all = VerdictFilter::default();
        let counts = async || {
            let kept = async |kept_by| ledger.count_unprunable(&all, None, kept_by).await.unwrap().verdicts;
            let prunable = ledger.count_prunable(&all, None).await.unwrap().verdicts;
            (prunable, kept(KeptBy::Hold).await, kept(KeptBy::UnpublishedEvent).await)
        };
        assert_eq!(counts().await, (2, 0, 1));
        for subject in [
            image(&held.verdict),
            Selects::Content([9; 32]),
            Selects::Metadata { name: "user".into(), value: "8".into() },
        ] {
            let hold = hold(subject, later);
            ledger.add_hold(&hold).await.unwrap();
            assert_eq!(ledger.holds().await.unwrap(), std::slice::from_ref(&hold));
            assert_eq!(ledger.hold_on(&[free_id, id]).await.unwrap(), Some(hold.clone()));
            assert_eq!(ledger.hold_on(&[free_id]).await.unwrap(), None);
            assert_eq!(ledger.erase(&[free_id, id]).await.unwrap(), Erased::Held(hold.clone()));
            assert_eq!(counts().await, (1, 1, 1), "{hold:?}");
            assert!(ledger.release_hold(hold.id).await.unwrap());
            assert!(!ledger.release_hold(hold.id).await.unwrap(), "once");
        }
        // An event under a hold is counted once.
        let everything = hold(Selects::Metadata { name: "user".into(), value: "7".into() }, later);
        ledger.add_hold(&everything).await.unwrap();
        assert_eq!(counts().await, (1, 2, 0));
        assert!(ledger.release_hold(everything.id).await.unwrap());

        ledger.add_hold(&hold(image(&held.verdict), later)).await.unwrap();
        assert_eq!(ledger.delete_prunable(&all, None, 10).await.unwrap().verdicts, 1);
        assert!(
            ledger.read_verdict(id).await.unwrap().is_some() && ledger.read_verdict(free_id).await.unwrap().is_none()
        );
        // A hold is a condition, and so holds what comes later.
        let mut later_verdict = entry("later", Outcome::Passed);
        later_verdict.verdict.image = held.verdict.image.clone();
        ledger.insert(std::slice::from_ref(&later_verdict)).await.unwrap();
        assert!(matches!(ledger.erase(&[later_verdict.verdict.id]).await.unwrap(), Erased::Held(_)));

        // A hold that has ended keeps nothing, and goes with what it held.
        subject.execute("UPDATE holds SET until = '2020-01-01T00:00:00.000000Z'").await;
        assert_eq!(counts().await, (1, 0, 2));
        let erased = done(ledger.erase(&[id]).await.unwrap());
        assert_eq!((erased.verdicts, erased.holds), (1, 1));
        assert!(ledger.holds().await.unwrap().is_empty());
    }
}
