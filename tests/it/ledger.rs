//! Both ledgers keep the same promises.

use std::time::Duration;

use pixwarden::config::SecretUrl;
use pixwarden::job::{
    Digests, ImageInfo, ImageRef, Judgement, Lane, Outcome, PolicyRef, Scores, Verdict, event_id, verdict_id,
};
use pixwarden::ledger::{Absent, Committed, Entry, Event, Known, Ledger, LedgerError, Postgres, Sqlite};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::support::Lab;

/// A ledger, and a way past it into its tables.
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
        assert!(matches!(Sqlite::open(&file, Absent::Refused).await, Err(LedgerError::Unusable { .. })));
        let sqlite = Sqlite::open(&file, Absent::Created).await.unwrap();
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

    /// Makes every event due.
    async fn let_time_pass(&self) {
        self.execute("UPDATE outbox SET due_at = '2020-01-01T00:00:00.000000Z'").await;
    }
}

fn digests() -> Digests {
    Digests::from([("d".to_owned(), "1".to_owned())])
}

fn verdict(job_id: &str, outcome: Outcome) -> Verdict {
    let at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap();
    let labels = [("by AI".to_owned(), 0.1), ("by human".to_owned(), 0.9)];
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
        sha256: Some([7; 32]),
        bytes: Some(123_456),
        seen: Some(ImageInfo { format: "jpeg", width: 640, height: 480, frames: 1 }),
        judgement: Judgement { outcome, reason: Some("why".into()), label: Some("by AI".into()), score: Some(0.1) },
        scores: Some(Scores::from([("d".to_owned(), labels.into())])),
        detectors: digests(),
        policy: PolicyRef { name: "p".into(), sha256: "s".into() },
        metadata: Some(serde_json::json!({"user": 7, "tags": ["a", null]})),
        reused_from: Some(verdict_id("another")),
        attempts: 2,
        received_at: at,
        decided_at: at + Duration::from_millis(5),
    }
}

fn entry(job_id: &str, outcome: Outcome) -> Entry {
    let verdict = verdict(job_id, outcome);
    let event = Event {
        id: event_id(verdict.id, outcome),
        routing_key: outcome.routing_key().into(),
        correlation_id: job_id.into(),
        payload: format!("{{\"id\": \"{job_id}\"}}"),
    };
    Entry { verdict, event: Some(event) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_is_written_once_and_read_back_whole() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let (first, second) = (entry("one", Outcome::Flagged), entry("two", Outcome::Passed));
        let answers = ledger.commit(&[first.clone(), second.clone()]).await.unwrap();
        assert!(answers.iter().all(|answer| matches!(answer, Committed::Written(Some(_)))), "{answers:?}");
        assert_eq!(ledger.read(first.verdict.id).await.unwrap().unwrap(), first.verdict);
        assert_eq!(ledger.read(verdict_id("nobody")).await.unwrap(), None);

        // Again, with another outcome: the first stands, and so does its event.
        let late = entry("one", Outcome::Passed);
        let known = Known { image: first.verdict.image.clone(), outcome: Outcome::Flagged };
        assert_eq!(ledger.commit(&[late]).await.unwrap(), [Committed::Known(known.clone())]);
        assert_eq!(ledger.find(first.verdict.id).await.unwrap(), Some(known));
        assert_eq!(ledger.read(first.verdict.id).await.unwrap().unwrap(), first.verdict);
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_failed_verdict_is_replaced_and_only_for_the_same_image() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        ledger.commit(&[entry("one", Outcome::Failed)]).await.unwrap();
        let mut other_image = entry("one", Outcome::Passed);
        other_image.verdict.image.key = "another.jpg".into();
        assert!(matches!(ledger.commit(&[other_image]).await.unwrap()[..], [Committed::Known(_)]));
        let again = ledger.commit(&[entry("one", Outcome::Failed)]).await.unwrap();
        assert!(matches!(again[..], [Committed::Known(_)]), "a second failure changes nothing: {again:?}");

        let replayed = entry("one", Outcome::Passed);
        let answers = ledger.commit(std::slice::from_ref(&replayed)).await.unwrap();
        assert!(matches!(answers[..], [Committed::Written(Some(_))]), "{answers:?}");
        assert_eq!(ledger.read(replayed.verdict.id).await.unwrap().unwrap(), replayed.verdict);
        assert_eq!(subject.count("SELECT count(*) FROM verdicts").await, 1);
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, 2, "the failure's event and the new one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_refused_takes_the_whole_commit_with_it_and_says_so() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        // A rule that neither database has by itself, and each can be given.
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
        let refused = ledger.commit(&[entry("lucky", Outcome::Passed), unlucky]).await;
        assert!(matches!(refused, Err(LedgerError::Refused(_))), "{refused:?}");
        assert_eq!(subject.count("SELECT count(*) FROM verdicts").await, 0);
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, 0);
    }
}

/// Rows with all that a text format would take for something else, and with all that may be absent.
fn large_group() -> Vec<Entry> {
    let odd = ["tab\there", "line\nend\r", "back\\slash \\N \\. \\x00", "quotes \"'", "ü 図 🖼", "", "\\N"];
    let mut group: Vec<Entry> = (0..150).map(|n| entry(&format!("job {n}"), Outcome::Passed)).collect();
    for (n, entry) in group.iter_mut().enumerate() {
        let (verdict, text) = (&mut entry.verdict, odd[n % odd.len()]);
        verdict.image.key = format!("{n}/{text}");
        verdict.judgement.reason = Some(text.into()).filter(|_| n % 3 > 0);
        verdict.metadata = Some(serde_json::json!({"text": text, "n": [n, null]})).filter(|_| n % 2 > 0);
        if n % 5 == 0 {
            (verdict.sha256, verdict.seen, verdict.scores, verdict.judgement.score) = (None, None, None, None);
        }
        if n % 4 == 0 {
            entry.event = None;
        }
        // Of few kinds, and no two columns alike.
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
        let answers = ledger.commit(&group).await.unwrap();
        for (entry, answer) in group.iter().zip(&answers) {
            let Committed::Written(event) = answer else { panic!("{answer:?}") };
            assert_eq!(event, &entry.event);
            assert_eq!(ledger.read(entry.verdict.id).await.unwrap().unwrap(), entry.verdict);
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
        ledger.commit(&[failed, group[9].clone()]).await.unwrap();
        let answers = ledger.commit(&group).await.unwrap();
        assert!(matches!(answers[7], Committed::Written(Some(_))), "a failure is replaced: {:?}", answers[7]);
        assert!(matches!(answers[9], Committed::Known(_)), "{:?}", answers[9]);
        let written = answers.iter().filter(|answer| matches!(answer, Committed::Written(_))).count();
        assert_eq!(written, group.len() - 1);
        assert_eq!(subject.count("SELECT count(*) FROM verdicts").await, 150);

        let mut other: Vec<Entry> = (0..150).map(|n| entry(&format!("other {n}"), Outcome::Passed)).collect();
        other[100].verdict.judgement.reason = Some("a null \0 is no text".into());
        if let Tables::Postgres(_) = subject.tables {
            let refused = ledger.commit(&other).await;
            assert!(matches!(refused, Err(LedgerError::Refused(_))), "{refused:?}");
            assert_eq!(subject.count("SELECT count(*) FROM verdicts").await, 150);
            // The connection is in order after all that.
            assert_eq!(ledger.commit(&other[..100]).await.unwrap().len(), 100);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_are_found_by_content_detectors_and_for_animations_by_policy() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let mut own = entry("own", Outcome::Passed);
        own.verdict.reused_from = None;
        let mut animated = entry("animated", Outcome::Passed);
        animated.verdict.reused_from = None;
        animated.verdict.sha256 = Some([9; 32]);
        animated.verdict.seen = Some(ImageInfo { format: "gif", width: 8, height: 8, frames: 12 });
        ledger.commit(&[own.clone(), animated.clone(), entry("taken-over", Outcome::Passed)]).await.unwrap();

        let found = ledger.find_scores([7; 32], &digests(), "another policy").await.unwrap().unwrap();
        assert_eq!((found.verdict, Some(found.seen)), (own.verdict.id, own.verdict.seen));
        assert_eq!(Some(found.scores), own.verdict.scores);
        assert_eq!(ledger.find_scores([8; 32], &digests(), "s").await.unwrap(), None);
        assert_eq!(ledger.find_scores([7; 32], &Digests::new(), "s").await.unwrap(), None, "other detectors");
        assert_eq!(ledger.find_scores([9; 32], &digests(), "another policy").await.unwrap(), None);
        let found = ledger.find_scores([9; 32], &digests(), "s").await.unwrap();
        assert_eq!(found.map(|found| found.verdict), Some(animated.verdict.id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_leased_once_at_a_time_until_it_is_published() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let entries = [entry("one", Outcome::Flagged), entry("two", Outcome::Review)];
        ledger.commit(&entries).await.unwrap();
        assert_eq!(ledger.lease_events(10).await.unwrap(), [], "they are left to whoever committed them first");
        subject.let_time_pass().await;
        let leased = ledger.lease_events(1).await.unwrap();
        assert_eq!(leased.len(), 1);
        let rest = ledger.lease_events(10).await.unwrap();
        assert_eq!(rest.len(), 1, "a leased event is nobody else's");
        assert_ne!(leased[0].id, rest[0].id);
        let wanted = entries.iter().filter_map(|entry| entry.event.clone()).find(|event| event.id == leased[0].id);
        assert_eq!(Some(&leased[0]), wanted.as_ref());

        ledger.mark_published(&[leased[0].id]).await.unwrap();
        ledger.note_unpublished(rest[0].id, "nobody is bound").await.unwrap();
        subject.let_time_pass().await;
        let again = ledger.lease_events(10).await.unwrap();
        assert_eq!(again.iter().map(|event| event.id).collect::<Vec<_>>(), [rest[0].id]);
        assert_eq!(subject.count("SELECT count(*) FROM outbox WHERE tries = 2 AND last_error LIKE 'nobody%'").await, 1);

        assert_eq!(ledger.prune_outbox(Duration::from_secs(3600)).await.unwrap(), 0, "just published");
        assert_eq!(ledger.prune_outbox(Duration::ZERO).await.unwrap(), 1);
        assert_eq!(subject.count("SELECT count(*) FROM outbox WHERE published_at IS NULL").await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_begin_a_suspect_alone_are_counted_once_each() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let (id, first, second) = (verdict_id("suspect"), Uuid::new_v4(), Uuid::new_v4());
        assert_eq!(ledger.begin_alone(id, first).await.unwrap(), 1);
        assert_eq!(ledger.begin_alone(id, first).await.unwrap(), 1, "the same process has not died of it");
        assert_eq!(ledger.begin_alone(id, second).await.unwrap(), 2);
        ledger.end_alone(id).await.unwrap();
        assert_eq!(ledger.begin_alone(id, second).await.unwrap(), 1);
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
    assert!(matches!(answers.last().unwrap(), Err(LedgerError::Down(why)) if why.contains("read-only")), "{answers:?}");

    // Root may write to anything, so another writer stands in for a file that cannot be written to.
    let Tables::Sqlite(pool) = &sqlite.tables else { unreachable!() };
    let _writing = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    assert!(matches!(sqlite.ledger.ping().await, Err(LedgerError::Down(why)) if why.contains("locked")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_stands_as_its_best_verdict_under_the_same_detectors_says() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let mut again = entry("again", Outcome::Passed);
        let failed = entry("failed", Outcome::Failed);
        again.verdict.image = failed.verdict.image.clone();
        again.verdict.decided_at -= Duration::from_secs(60);
        let mut unnamed = entry("unnamed", Outcome::Missing);
        unnamed.verdict.image.etag = None;
        let image = |entry: &Entry| entry.verdict.image.clone();
        let objects = [
            image(&failed),
            image(&unnamed),
            ImageRef { etag: None, ..image(&failed) },
            image(&entry("x", Outcome::Passed)),
        ];
        let outcomes = async |digests: &Digests| -> Vec<Option<Outcome>> {
            let standings = ledger.standings(&objects, digests).await.unwrap();
            standings.into_iter().map(|standing| standing.map(|standing| standing.outcome)).collect()
        };
        ledger.commit(&[failed, unnamed]).await.unwrap();
        assert_eq!(outcomes(&digests()).await, [Some(Outcome::Failed), Some(Outcome::Missing), None, None]);
        ledger.commit(&[again]).await.unwrap();
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
        ledger.note_published_jobs(&[answered, open, open], before).await.unwrap();
        ledger.note_published_jobs(&[late], decided + Duration::from_secs(1)).await.unwrap();
        let mut found = ledger.published_since(&[answered, open, late, verdict_id("no")], before).await.unwrap();
        found.sort_unstable();
        let mut all = [answered, open, late];
        all.sort_unstable();
        assert_eq!(found, all);
        assert_eq!(ledger.published_since(&[answered, open, late], decided).await.unwrap(), [late]);

        // The late one was published anew behind its verdict, and waits for another.
        ledger.commit(&[entry("answered", Outcome::Passed), entry("late", Outcome::Failed)]).await.unwrap();
        assert_eq!(ledger.forget_published_jobs(before).await.unwrap(), 1);
        assert_eq!(subject.count("SELECT count(*) FROM backfill_jobs").await, 2);
        assert_eq!(ledger.forget_published_jobs(decided).await.unwrap(), 1, "the open one is too old");
        assert_eq!(ledger.published_since(&[answered, open, late], before).await.unwrap(), [late]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_has_the_turn_until_it_gives_it_back_or_falls_silent() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
        assert!(ledger.take_turn(first).await.unwrap());
        assert!(!ledger.take_turn(second).await.unwrap());
        assert!(ledger.take_turn(first).await.unwrap(), "keeping it");
        ledger.give_turn_back(second).await.unwrap();
        assert!(!ledger.take_turn(second).await.unwrap(), "it was not the second's to give");
        ledger.give_turn_back(first).await.unwrap();
        assert!(ledger.take_turn(second).await.unwrap());
        subject.execute("UPDATE backfill_turn SET alive_at = '2020-01-01T00:00:00.000000Z'").await;
        assert!(ledger.take_turn(first).await.unwrap(), "nobody has heard of the second for long");
        assert!(!ledger.take_turn(second).await.unwrap());

        assert_eq!(ledger.progress("a").await.unwrap(), None);
        for mark in ["one", "two"] {
            ledger.keep_progress("a", Some(mark)).await.unwrap();
        }
        let (mark, kept_at) = ledger.progress("a").await.unwrap().unwrap();
        assert_eq!(mark, "two");
        assert!((OffsetDateTime::now_utc() - kept_at).abs() < Duration::from_secs(60), "{kept_at}");
        ledger.keep_progress("a", None).await.unwrap();
        assert_eq!(ledger.progress("a").await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_old_verdicts_whose_events_are_out_are_deleted() {
    for subject in Subject::both().await {
        let ledger = &subject.ledger;
        let mut young = entry("young", Outcome::Passed);
        young.verdict.decided_at += Duration::from_secs(60);
        let (old, owing) = (entry("old", Outcome::Passed), entry("owing", Outcome::Flagged));
        let until = young.verdict.decided_at;
        ledger.commit(&[young.clone(), old.clone(), owing.clone(), entry("missing", Outcome::Missing)]).await.unwrap();
        let published = [&young, &old].map(|entry| entry.event.as_ref().unwrap().id);
        ledger.mark_published(&published).await.unwrap();
        ledger.mark_published(&[event_id(verdict_id("missing"), Outcome::Missing)]).await.unwrap();

        assert_eq!(ledger.count_settled(until, &[Outcome::Passed]).await.unwrap(), 1);
        assert_eq!(ledger.count_settled(until, &[]).await.unwrap(), 2);
        assert_eq!(ledger.delete_settled(until, &[Outcome::Passed, Outcome::Review], 10).await.unwrap(), 1);
        assert_eq!(ledger.delete_settled(until, &[], 1).await.unwrap(), 1);
        assert_eq!(ledger.delete_settled(until, &[], 10).await.unwrap(), 0);
        assert_eq!(subject.count("SELECT count(*) FROM outbox").await, 2, "what is gone owes and remembers nothing");
        for (entry, left) in [(young, true), (old, false), (owing, true)] {
            assert_eq!(ledger.read(entry.verdict.id).await.unwrap().is_some(), left, "{}", entry.verdict.job_id);
        }
    }
}
