//! What people look at and decide: items, claims, decisions and reports in Postgres, and what becomes of them when images are
//! judged again.

use std::collections::HashSet;
use std::io::Cursor;
use std::time::{Duration, Instant};

use image::{ImageFormat, Rgb, RgbImage};
use pixwarden::banks::CurrentBanks;
use pixwarden::config::{Config, ReviewConfig, RuleConfig, SecretUrl, WebhookConfig};
use pixwarden::http::Scope;
use pixwarden::job::event::{self, EventContext};
use pixwarden::job::{
    Digests, Facts, Finding, FindingOutcome, FindingSource, ImageInfo, ImageRef, Judgement, Lane, Outcome, PolicyRef,
    Revision, RevisionCause, Scores, Verdict, verdict_id,
};
use pixwarden::ledger::{
    Archive, Claim, Decided, DecisionAction, DecisionFilter, Erased, Erasure, ItemFilter, ItemKind, ItemWithVerdict,
    KeptBy, MAX_WAITING_REPORTS, NewVerdict, Outbox, Postgres, Reviews, Revise, VerdictFilter, Verdicts,
};
use pixwarden::policy::PolicySet;
use pixwarden::review::{DecisionRequest, ReportRequest, ReportSubject, ReviewError, Reviewing};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::http::{Client, key, worker_with_http};
use crate::support::Lab;

/// A ledger as a worker has it, and what people do on it.
struct World {
    lab: Lab,
    ledger: Postgres,
    config: Config,
    policies: PolicySet,
    banks: CurrentBanks,
}

fn finding(category: &str, severity: u8, outcome: FindingOutcome) -> Finding {
    Finding {
        category: Some(category.into()),
        severity: Some(severity),
        detector: Some("d".into()),
        label: Some(format!("label of {category}")),
        score: Some(0.6),
        threshold: Some(0.5),
        ..Finding::new(FindingSource::Detector, outcome)
    }
}

fn judgement(findings: Vec<Finding>) -> Judgement {
    let strongest = findings.first();
    Judgement {
        outcome: strongest.map_or(Outcome::Passed, |strongest| strongest.outcome.outcome()),
        reason: strongest.map(|_| "why".into()),
        label: strongest.and_then(|strongest| strongest.label.clone()),
        score: strongest.and_then(|strongest| strongest.score),
        findings,
    }
}

fn verdict(job: &str, findings: Vec<Finding>) -> Verdict {
    let at = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
    Verdict {
        id: verdict_id(job),
        job_id: job.into(),
        lane: Lane::Live,
        image: ImageRef::from_uri(&format!("s3://uploads/{job}.jpg")).unwrap(),
        object_at: None,
        sha256: Some(Sha256::digest(job).into()),
        md5: None,
        bytes: Some(12),
        seen: Some(ImageInfo { format: "jpeg", width: 8, height: 8, frames: 1 }),
        judgement: judgement(findings),
        facts: Some(Facts::of_one_view(Scores::new())),
        detectors: Digests::from([("d".to_owned(), "1".to_owned())]),
        policy: PolicyRef::new("default", "p"),
        metadata: None,
        reused_from: None,
        attempts: 1,
        received_at: at,
        decided_at: at,
    }
}

fn in_review(job: &str) -> Verdict {
    verdict(job, vec![finding("nudity", 3, FindingOutcome::Review)])
}

fn request(job: &str, revision: u32, actor: &str, action: DecisionAction) -> DecisionRequest {
    DecisionRequest {
        verdict: verdict_id(job),
        revision,
        actor: actor.into(),
        name: None,
        action,
        category: None,
        note: None,
        batch: None,
        last_report: None,
    }
}

fn report(job: &str, kind: ItemKind) -> ReportRequest {
    ReportRequest {
        subject: ReportSubject::Job(job.into()),
        kind,
        category: None,
        note: None,
        reporter: None,
        reference: None,
        due_at: None,
    }
}

fn claim(actor: &str, count: u32) -> Claim {
    Claim { actor: actor.into(), count, lease: Duration::from_secs(600), filter: ItemFilter::default() }
}

impl World {
    async fn new() -> Self {
        let lab = Lab::new().await;
        let ledger = Postgres::open(&SecretUrl::from(lab.ledger_as("pixwarden_worker"))).await.unwrap();
        let config = Config::default();
        let policies = PolicySet::resolve(&config, &[], false).unwrap();
        Self { lab, ledger, config, policies, banks: CurrentBanks::default() }
    }

    fn reviewing(&self) -> Reviewing<'_> {
        let Self { ledger, config, policies, banks, .. } = self;
        Reviewing { ledger, config, policies, banks }
    }

    async fn insert(&self, verdicts: impl IntoIterator<Item = Verdict>) {
        let new = |verdict: Verdict| NewVerdict {
            event: Some(event::event(&verdict, EventContext::default(), "pixwarden")),
            verdict,
        };
        self.ledger.insert(&verdicts.into_iter().map(new).collect::<Vec<_>>()).await.unwrap();
    }

    async fn decide(&self, job: &str, revision: u32, actor: &str, action: DecisionAction) -> Decided {
        self.reviewing().decide(&request(job, revision, actor, action)).await.unwrap()
    }

    /// The jobs of the items that a person gets.
    async fn claim(&self, actor: &str, count: u32) -> Vec<String> {
        let claimed = self.ledger.claim_items(&claim(actor, count)).await.unwrap();
        claimed.into_iter().map(|claimed| claimed.stored.verdict.job_id).collect()
    }

    /// The jobs of the open items, in the order of the queue.
    async fn open(&self, filter: &ItemFilter) -> Vec<String> {
        let page = self.ledger.open_items(filter, None, 100).await.unwrap();
        page.items.into_iter().map(|open| open.stored.verdict.job_id).collect()
    }

    async fn all_open(&self) -> Vec<String> {
        self.open(&ItemFilter::default()).await
    }

    async fn state(&self, job: &str) -> (Outcome, u32, Option<RevisionCause>) {
        let stored = self.ledger.read_verdict(verdict_id(job)).await.unwrap().unwrap();
        (stored.verdict.judgement.outcome, stored.revision.number, stored.revision.cause)
    }

    /// The routing keys of the events of a job that are not published, oldest first.
    async fn unpublished(&self, job: &str) -> Vec<String> {
        let rows = self.ledger.outbox_rows(verdict_id(job)).await.unwrap();
        rows.into_iter().filter(|row| row.published_at.is_none()).map(|row| row.routing_key).collect()
    }

    async fn publish_all(&self) {
        sqlx::query("UPDATE outbox SET published_at = now()").execute(&self.lab.db).await.unwrap();
    }
}

fn done(decided: &Decided) -> u32 {
    match decided {
        Decided::Done { revision, .. } => *revision,
        refused => panic!("{refused:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_items_are_claimed_once_by_two_sets_of_people() {
    const ITEMS: usize = 10_000;
    let world = World::new().await;
    for group in (0..ITEMS).collect::<Vec<_>>().chunks(500) {
        world.insert(group.iter().map(|number| in_review(&format!("job-{number}")))).await;
    }
    let other = Postgres::open(&SecretUrl::from(world.lab.ledger_as("pixwarden_worker"))).await.unwrap();
    let began = Instant::now();
    let claimers = [&world.ledger, &other].into_iter().enumerate().flat_map(|(set, ledger)| {
        (0..4).map(move |person| async move {
            let mut all = Vec::new();
            loop {
                let claimed = ledger.claim_items(&claim(&format!("{set}-{person}"), 100)).await.unwrap();
                if claimed.is_empty() {
                    return all;
                }
                all.extend(claimed.into_iter().map(|claimed| claimed.item.id));
            }
        })
    });
    let claimed: Vec<Uuid> = futures_util::future::join_all(claimers).await.concat();
    crate::support::figure(&format!("{ITEMS} items were claimed in {:?}", began.elapsed()));
    assert_eq!(claimed.len(), ITEMS, "none twice");
    assert_eq!(claimed.into_iter().collect::<HashSet<_>>().len(), ITEMS);
    assert!(world.claim("late", 1).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_by_itself_and_is_renewed_and_released_only_by_its_person() {
    let world = World::new().await;
    world.insert([in_review("a"), in_review("b")]).await;
    let mine = world.ledger.claim_items(&claim("ada", 2)).await.unwrap();
    let items: Vec<Uuid> = mine.iter().map(|claimed| claimed.item.id).collect();
    assert_eq!((items.len(), world.claim("bob", 2).await.len()), (2, 0));
    let (lease, all) = (Duration::from_secs(60), ItemFilter::default());
    let elsewhere = ItemFilter { bound_buckets: vec!["other".into()], ..ItemFilter::default() };
    assert_eq!(world.ledger.release_claims("ada", &items, &elsewhere).await.unwrap(), 0);
    assert!(world.ledger.renew_claims("ada", &items, lease, &elsewhere).await.unwrap().is_empty());
    assert!(world.ledger.renew_claims("bob", &items, lease, &all).await.unwrap().is_empty());
    assert_eq!(world.ledger.renew_claims("ada", &items, lease, &all).await.unwrap().len(), 2);
    assert_eq!(world.ledger.release_claims("bob", &items, &all).await.unwrap(), 0);
    assert_eq!(world.ledger.release_claims("ada", &items[..1], &all).await.unwrap(), 1);
    assert_eq!(world.claim("bob", 2).await.len(), 1, "what was given back");

    sqlx::query("UPDATE review_items SET lease_until = now() - interval '1 second'")
        .execute(&world.lab.db)
        .await
        .unwrap();
    let unclaimed = ItemFilter { unclaimed: true, ..ItemFilter::default() };
    assert_eq!(world.open(&unclaimed).await.len(), 2);
    assert!(world.ledger.renew_claims("ada", &items, lease, &all).await.unwrap().is_empty(), "too late");
    assert_eq!(world.claim("cleo", 2).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_decision_is_refused_and_so_is_one_on_what_another_person_holds() {
    let world = World::new().await;
    world.insert([in_review("a")]).await;
    assert!(matches!(world.decide("none", 1, "ada", DecisionAction::Clear).await, Decided::Missing));
    assert_eq!(world.claim("ada", 1).await, ["a"]);
    match world.decide("a", 1, "bob", DecisionAction::Flag).await {
        Decided::Claimed { actor, .. } => assert_eq!(actor, "ada"),
        other => panic!("{other:?}"),
    }
    assert_eq!(done(&world.decide("a", 1, "ada", DecisionAction::Clear).await), 2);
    assert_eq!(world.state("a").await, (Outcome::Passed, 2, Some(RevisionCause::Decided)));
    match world.decide("a", 1, "bob", DecisionAction::Flag).await {
        Decided::Stale(present) => {
            assert_eq!((present.revision.number, present.verdict.judgement.outcome), (2, Outcome::Passed));
        }
        other => panic!("{other:?}"),
    }
    // Two people decide at the same moment: one of them is refused.
    let (one, other) = tokio::join!(
        world.decide("a", 2, "ada", DecisionAction::Flag),
        world.decide("a", 2, "bob", DecisionAction::Flag)
    );
    let results = [one, other];
    assert_eq!(results.iter().filter(|decided| matches!(decided, Decided::Done { .. })).count(), 1, "{results:?}");
    assert_eq!(results.iter().filter(|decided| matches!(decided, Decided::Stale(_))).count(), 1, "{results:?}");
    assert_eq!(world.lab.count("SELECT count(*) FROM decisions").await, 2, "what was refused is not recorded");
    let history = world.ledger.earlier_states(verdict_id("a")).await.unwrap();
    assert_eq!(history.len(), 2);
    let actor = "SELECT count(*) FROM verdict_history WHERE revision = 2 AND actor = 'ada'";
    assert_eq!(world.lab.count(actor).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_action_does_what_it_says_and_only_news_is_announced() {
    let world = World::new().await;
    let flagged = verdict("flagged", vec![finding("nudity", 3, FindingOutcome::Flagged)]);
    world.insert([in_review("cleared"), in_review("reviewed"), flagged, verdict("passed", Vec::new())]).await;
    assert_eq!(world.all_open().await.len(), 2);

    done(&world.decide("cleared", 1, "ada", DecisionAction::Clear).await);
    assert_eq!(world.unpublished("cleared").await, ["image.cleared"], "the stale event is gone");
    assert!(world.ledger.lease_events("image.cleared", 10).await.unwrap().is_empty(), "it waits for an undo");
    done(&world.decide("reviewed", 1, "ada", DecisionAction::Flag).await);
    assert_eq!(world.unpublished("reviewed").await, ["image.flagged"]);
    assert!(world.all_open().await.is_empty());

    // What stays as it is makes a revision and no event, and loses none that has not left.
    assert_eq!(done(&world.decide("flagged", 1, "ada", DecisionAction::Uphold).await), 2);
    assert_eq!(world.unpublished("flagged").await, ["image.flagged"]);
    assert_eq!(world.state("flagged").await, (Outcome::Flagged, 2, Some(RevisionCause::Decided)));
    let before = world.unpublished("passed").await;
    assert_eq!(done(&world.decide("passed", 1, "ada", DecisionAction::Uphold).await), 2);
    assert_eq!(world.unpublished("passed").await, before);

    let reviewing = world.reviewing();
    for (job, outcome, action) in [
        ("missing", Outcome::Missing, DecisionAction::Flag),
        ("failed", Outcome::Failed, DecisionAction::Clear),
        ("rejected", Outcome::Rejected, DecisionAction::Clear),
        ("held", Outcome::Review, DecisionAction::Uphold),
    ] {
        let judgement = Judgement::unscored(outcome, "why");
        world.insert([Verdict { judgement, facts: None, ..verdict(job, Vec::new()) }]).await;
        let refused = reviewing.decide(&request(job, 1, "ada", action)).await.unwrap_err();
        assert!(matches!(refused, ReviewError::Impossible { .. }), "{job}: {refused}");
    }
    done(&world.decide("failed", 1, "ada", DecisionAction::Flag).await);
    // Nobody has seen pixels of an undecodable file, but its bytes are known.
    let undecodable = Judgement::unscored(Outcome::Undecodable, "why");
    world.insert([Verdict { judgement: undecodable, facts: None, ..verdict("undecodable", Vec::new()) }]).await;
    done(&world.decide("undecodable", 1, "ada", DecisionAction::Clear).await);
    assert_eq!(world.state("undecodable").await.0, Outcome::Passed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_skipped_or_escalated_stays_open_for_others() {
    let world = World::new().await;
    world.insert([in_review("a")]).await;
    assert_eq!(world.claim("ada", 1).await, ["a"]);
    assert_eq!(done(&world.decide("a", 1, "ada", DecisionAction::Skip).await), 1, "nothing was judged");
    assert!(world.claim("ada", 1).await.is_empty());
    assert_eq!(world.claim("bob", 1).await, ["a"]);
    assert_eq!(done(&world.decide("a", 1, "bob", DecisionAction::Escalate).await), 1);
    let escalated = ItemFilter { escalated: Some(true), ..ItemFilter::default() };
    assert_eq!(world.open(&escalated).await, ["a"]);
    let others = ItemFilter { escalated: Some(false), ..ItemFilter::default() };
    assert!(world.open(&others).await.is_empty());
    assert_eq!(world.state("a").await, (Outcome::Review, 1, None));
    done(&world.decide("a", 1, "lead", DecisionAction::Clear).await);
    assert!(matches!(world.decide("a", 2, "lead", DecisionAction::Skip).await, Decided::NotOpen));
    let actions: Vec<&str> =
        world.ledger.decisions_on(verdict_id("a")).await.unwrap().iter().map(|made| made.action.as_str()).collect();
    assert_eq!(actions, ["skip", "escalate", "clear"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appeal_never_goes_to_the_person_who_decided() {
    let world = World::new().await;
    world.insert([in_review("a"), in_review("b")]).await;
    done(&world.decide("a", 1, "ada", DecisionAction::Flag).await);
    world.reviewing().report(&report("a", ItemKind::Appeal)).await.unwrap();
    assert_eq!(world.claim("ada", 10).await, ["b"]);
    assert!(matches!(world.decide("a", 2, "ada", DecisionAction::Clear).await, Decided::OwnDecision));
    assert_eq!(world.claim("bob", 10).await, ["a"]);
    done(&world.decide("a", 2, "bob", DecisionAction::Clear).await);
    assert_eq!(world.state("a").await, (Outcome::Passed, 3, Some(RevisionCause::Decided)));

    // Who holds an item loses it when an appeal against that person's decision comes.
    done(&world.decide("b", 1, "ada", DecisionAction::Flag).await);
    world.reviewing().report(&report("b", ItemKind::Report)).await.unwrap();
    assert_eq!(world.claim("ada", 10).await, ["b"]);
    world.reviewing().report(&report("b", ItemKind::Appeal)).await.unwrap();
    assert_eq!(world.claim("bob", 10).await, ["b"]);
    let items = world.ledger.open_items(&ItemFilter::default(), None, 10).await.unwrap().items;
    assert_eq!((items.len(), items[0].item.kind, items[0].reports.len()), (1, ItemKind::Appeal, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_opens_an_item_also_on_what_passed_and_a_judgement_does_not_close_it() {
    let world = World::new().await;
    world.insert([verdict("passed", Vec::new()), in_review("a")]).await;
    let due_at = OffsetDateTime::from_unix_timestamp(1_900_000_000).unwrap();
    for subject in [
        ReportSubject::Image(ImageRef::from_uri("s3://uploads/passed.jpg").unwrap()),
        ReportSubject::Verdict(verdict_id("passed")),
        ReportSubject::Job("passed".into()),
    ] {
        let legal = ReportRequest {
            subject,
            due_at: Some(due_at),
            category: Some("hate".into()),
            ..report("passed", ItemKind::Legal)
        };
        assert_eq!(world.reviewing().report(&legal).await.unwrap().verdict, verdict_id("passed"));
    }
    let items = world.ledger.open_items(&ItemFilter::default(), None, 10).await.unwrap().items;
    assert_eq!(items.len(), 2, "one item for each verdict");
    let legal = &items[0];
    assert_eq!((legal.item.kind, legal.item.due_at, legal.reports.len()), (ItemKind::Legal, Some(due_at), 3));
    let unknown = ReportRequest {
        subject: ReportSubject::Image(ImageRef::from_uri("s3://uploads/nothing").unwrap()),
        ..report("", ItemKind::Report)
    };
    let refused = world.reviewing().report(&unknown).await.unwrap_err();
    assert_eq!(refused.to_string(), "the ledger has no verdict on s3://uploads/nothing");

    // A rejudgement closes what was open because of the outcome alone.
    for job in ["passed", "a"] {
        let stored = world.ledger.read_verdict(verdict_id(job)).await.unwrap().unwrap();
        let noted = judgement(vec![finding("synthetic", 1, FindingOutcome::Noted)]);
        let revise = Revise {
            verdict: Verdict { judgement: noted, ..stored.verdict },
            expected_revision: 1,
            cause: RevisionCause::Rejudged,
            judged_at: world.ledger.now().await.unwrap(),
            event: None,
        };
        assert_eq!(world.ledger.rejudge(&[revise]).await.unwrap(), 1);
    }
    assert_eq!(world.all_open().await, ["passed"]);
    done(&world.decide("passed", 2, "ada", DecisionAction::Uphold).await);
    assert!(world.all_open().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_ordered_by_law_due_date_severity_and_age_and_read_page_by_page() {
    let world = World::new().await;
    let damage = Finding::new(FindingSource::Damage, FindingOutcome::Review);
    let mut restricted = finding("abuse", 5, FindingOutcome::Review);
    restricted.restricted = true;
    for new in [
        verdict("damaged", vec![damage]),
        verdict("mild", vec![finding("nudity/partial", 1, FindingOutcome::Review)]),
        verdict("older", vec![finding("violence", 4, FindingOutcome::Review)]),
        verdict("younger", vec![finding("violence", 4, FindingOutcome::Review)]),
        verdict("restricted", vec![restricted]),
        verdict("soon", Vec::new()),
        verdict("legal", Vec::new()),
    ] {
        world.insert([new]).await;
    }
    let due = |kind: ItemKind, job: &str, at: i64| ReportRequest {
        due_at: Some(OffsetDateTime::from_unix_timestamp(at).unwrap()),
        ..report(job, kind)
    };
    world.reviewing().report(&due(ItemKind::Report, "soon", 1_800_000_000)).await.unwrap();
    world.reviewing().report(&due(ItemKind::Legal, "legal", 1_900_000_000)).await.unwrap();
    let ordered = ["legal", "soon", "restricted", "older", "younger", "mild", "damaged"];
    assert_eq!(world.all_open().await, ordered);
    let (mut paged, mut behind) = (Vec::new(), None);
    loop {
        let page = world.ledger.open_items(&ItemFilter::default(), behind, 2).await.unwrap();
        paged.extend(page.items.into_iter().map(|open| open.stored.verdict.job_id));
        // As over HTTP, the cursor is a text.
        behind = page.next.map(|next| next.to_string().parse().unwrap());
        if behind.is_none() {
            break;
        }
    }
    assert_eq!(paged, ordered);

    let filter = ItemFilter::default;
    for (filter, found) in [
        (ItemFilter { damage_only: Some(true), ..filter() }, &["damaged"][..]),
        (ItemFilter { kinds: vec![ItemKind::Legal, ItemKind::Report], ..filter() }, &["legal", "soon"]),
        (ItemFilter { categories: vec!["nudity".into()], ..filter() }, &["mild"]),
        (ItemFilter { min_severity: Some(4), ..filter() }, &["restricted", "older", "younger"]),
        (ItemFilter { labels: vec!["label of abuse".into()], ..filter() }, &["restricted"]),
        (
            ItemFilter {
                buckets: vec!["up*".into()],
                policies: vec!["default".into()],
                min_severity: Some(5),
                ..filter()
            },
            &["restricted"],
        ),
        (ItemFilter { buckets: vec!["other".into()], ..filter() }, &[]),
        (ItemFilter { policies: vec!["other".into()], ..filter() }, &[]),
        (ItemFilter { opened_before: Some(OffsetDateTime::UNIX_EPOCH), ..filter() }, &[]),
    ] {
        assert_eq!(world.open(&filter).await, found, "{filter:?}");
    }
    let items = world.ledger.open_items(&ItemFilter::default(), None, 10).await.unwrap().items;
    let marked: Vec<&str> =
        items.iter().filter(|open| open.item.is_restricted).map(|open| open.stored.verdict.job_id.as_str()).collect();
    assert_eq!(marked, ["restricted"]);
    assert_eq!(world.claim("ada", 3).await, ordered[..3], "in the same order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_undone_before_its_event_has_left_and_not_after() {
    let mut world = World::new().await;
    let lost = Verdict { decided_at: OffsetDateTime::now_utc(), ..in_review("lost") };
    world.insert([in_review("a"), lost, verdict("passed", Vec::new())]).await;
    sqlx::query("UPDATE outbox SET published_at = now() WHERE verdict_id = $1")
        .bind(verdict_id("a"))
        .execute(&world.lab.db)
        .await
        .unwrap();
    let first = world.ledger.read_verdict(verdict_id("a")).await.unwrap().unwrap().verdict.judgement;
    done(&world.decide("a", 1, "ada", DecisionAction::Clear).await);
    assert!(matches!(world.decide("a", 2, "bob", DecisionAction::Undo).await, Decided::NothingToUndo));
    assert_eq!(done(&world.decide("a", 2, "ada", DecisionAction::Undo).await), 3);
    let restored = world.ledger.read_verdict(verdict_id("a")).await.unwrap().unwrap();
    assert_eq!((restored.verdict.judgement, restored.revision.cause), (first, Some(RevisionCause::Decided)));
    assert!(world.unpublished("a").await.is_empty(), "nobody has heard of it");
    assert!(world.all_open().await.contains(&"a".to_owned()), "the item is open as before");
    assert!(matches!(world.decide("a", 3, "ada", DecisionAction::Undo).await, Decided::NothingToUndo), "once");

    // The sweeper has taken the event: it may be out.
    done(&world.decide("a", 3, "ada", DecisionAction::Clear).await);
    sqlx::query("UPDATE outbox SET due_at = '2020-01-01'").execute(&world.lab.db).await.unwrap();
    assert_eq!(world.ledger.lease_events("image.cleared", 10).await.unwrap().len(), 1);
    assert!(matches!(world.decide("a", 4, "ada", DecisionAction::Undo).await, Decided::TooLate));
    world.publish_all().await;
    assert!(matches!(world.decide("a", 4, "ada", DecisionAction::Undo).await, Decided::TooLate));

    // A decision replaces an event that has not left. To undo it sends that event after all.
    sqlx::query("UPDATE outbox SET published_at = NULL, tries = 0 WHERE verdict_id = $1")
        .bind(verdict_id("lost"))
        .execute(&world.lab.db)
        .await
        .unwrap();
    done(&world.decide("lost", 1, "ada", DecisionAction::Clear).await);
    assert_eq!(world.unpublished("lost").await, ["image.cleared"]);
    done(&world.decide("lost", 2, "ada", DecisionAction::Undo).await);
    assert_eq!(world.unpublished("lost").await, ["image.review"]);

    // Without an event the time decides.
    done(&world.decide("passed", 1, "ada", DecisionAction::Uphold).await);
    world.config.review = ReviewConfig { undo_s: 0, ..ReviewConfig::default() };
    assert!(matches!(world.decide("passed", 2, "ada", DecisionAction::Undo).await, Decided::TooLate));
    world.config.review = ReviewConfig::default();
    done(&world.decide("passed", 2, "ada", DecisionAction::Undo).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_hears_of_a_decision_after_the_time_to_undo_and_of_nothing_that_was_undone() {
    let mut world = World::new().await;
    let webhook = WebhookConfig { name: "app".into(), ..WebhookConfig::default() };
    world.config.webhooks = vec![webhook];
    let decided_at = OffsetDateTime::now_utc();
    let new = |job: &str| {
        let verdict = Verdict { decided_at, ..in_review(job) };
        let event = world.config.addressed(event::event(&verdict, EventContext::default(), "pixwarden"));
        NewVerdict { verdict, event }
    };
    world.ledger.insert(&[new("heard"), new("unheard")]).await.unwrap();
    let heard = "UPDATE webhook_deliveries SET delivered_at = now(), attempts = 1 WHERE verdict_id = $1";
    sqlx::query(heard).bind(verdict_id("heard")).execute(&world.lab.db).await.unwrap();
    world.publish_all().await;
    let waiting = async |job: &str| -> Vec<(String, bool)> {
        let query = "SELECT routing_key, due_at > now() + interval '5 seconds' FROM webhook_deliveries
                     WHERE verdict_id = $1 AND delivered_at IS NULL";
        sqlx::query_as(query).bind(verdict_id(job)).fetch_all(&world.lab.db).await.unwrap()
    };
    for job in ["heard", "unheard"] {
        done(&world.decide(job, 1, "ada", DecisionAction::Clear).await);
        assert_eq!(waiting(job).await, [("image.cleared".to_owned(), true)]);
        done(&world.decide(job, 2, "ada", DecisionAction::Undo).await);
        assert!(world.unpublished(job).await.is_empty(), "the broker has the first event");
    }
    assert!(waiting("heard").await.is_empty());
    assert_eq!(waiting("unheard").await, [("image.review".to_owned(), false)], "which the decision had replaced");

    done(&world.decide("heard", 3, "ada", DecisionAction::Clear).await);
    sqlx::query("UPDATE webhook_deliveries SET attempts = 1").execute(&world.lab.db).await.unwrap();
    assert!(matches!(world.decide("heard", 4, "ada", DecisionAction::Undo).await, Decided::TooLate));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_of_a_restricted_image_does_not_wait_for_an_undo() {
    let world = World::new().await;
    let mut known = finding("abuse", 5, FindingOutcome::Review);
    known.restricted = true;
    world.insert([verdict("known", vec![known])]).await;
    world.publish_all().await;
    done(&world.decide("known", 1, "ada", DecisionAction::Flag).await);
    let events = world.ledger.lease_events("image.flagged", 10).await.unwrap();
    assert!(events.len() == 1 && events[0].payload.contains("\"restricted\": true"), "{events:?}");
    assert_eq!(world.lab.count("SELECT count(*) FROM decided_contents").await, 0, "nothing takes it over");
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_never_changed_or_deleted() {
    let world = World::new().await;
    world.insert([in_review("a")]).await;
    done(&world.decide("a", 1, "ada", DecisionAction::Clear).await);
    for statement in [
        "UPDATE decisions SET actor = 'bob'",
        "UPDATE decisions SET actor = 'bob' WHERE false",
        "DELETE FROM decisions",
        "TRUNCATE decisions",
    ] {
        // Also not by the owner of everything.
        let refused = sqlx::raw_sql(statement).execute(&world.lab.db).await.map(drop).unwrap_err();
        let code = refused.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
        assert_eq!(code, "23001", "{statement}: {refused}");
    }
    assert_eq!(world.lab.count("SELECT count(*) FROM decisions WHERE actor = 'ada'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_wrote_is_erased_and_the_decision_stays_as_ids() {
    let world = World::new().await;
    world.insert([in_review("a"), in_review("kept")]).await;
    for job in ["a", "kept"] {
        let made = DecisionRequest {
            note: Some(format!("secret-note-{job}")),
            name: Some(format!("secret-name-{job}")),
            ..request(job, 1, "actor-7", DecisionAction::Flag)
        };
        done(&world.reviewing().decide(&made).await.unwrap());
        let appeal = ReportRequest {
            note: Some(format!("secret-report-{job}")),
            reporter: Some(format!("secret-reporter-{job}")),
            reference: Some(format!("secret-reference-{job}")),
            ..report(job, ItemKind::Appeal)
        };
        world.reviewing().report(&appeal).await.unwrap();
    }
    let operator = Postgres::open(&SecretUrl::from(world.lab.ledger_as("pixwarden_operator"))).await.unwrap();
    let Erased::Done(erased) = operator.erase(&[verdict_id("a")]).await.unwrap() else { panic!("held") };
    // The item that the decision has closed, and that of the appeal.
    assert_eq!((erased.review_items, erased.reports, erased.decision_notes, erased.decided_contents), (2, 1, 1, 1));
    let mut all = String::new();
    for table in ["review_items", "reports", "decision_notes", "decided_contents", "decisions", "verdict_history"] {
        let query = format!("SELECT coalesce(string_agg(row::text, ' '), '') FROM {table} AS row");
        all += &sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(query)).fetch_one(&world.lab.db).await.unwrap();
    }
    assert_eq!(all.matches("-kept").count(), 5, "{all}");
    assert!(
        !["note", "name", "report", "reporter", "reference"].iter().any(|what| all.contains(&format!("{what}-a"))),
        "{all}"
    );
    assert!(!all.contains(&hex::encode(Sha256::digest("a"))), "{all}");
    assert_eq!(world.ledger.decisions_on(verdict_id("a")).await.unwrap()[0].actor, "actor-7");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_report_keeps_a_verdict_from_prune_and_an_open_review_does_not() {
    let world = World::new().await;
    world.insert([in_review("reviewed"), in_review("reported"), in_review("answered")]).await;
    world.publish_all().await;
    for job in ["reported", "answered"] {
        world.reviewing().report(&report(job, ItemKind::Report)).await.unwrap();
    }
    done(&world.decide("answered", 1, "ada", DecisionAction::Clear).await);
    world.publish_all().await;
    let operator = Postgres::open(&SecretUrl::from(world.lab.ledger_as("pixwarden_operator"))).await.unwrap();
    let filter = VerdictFilter::default();
    assert_eq!(operator.count_unprunable(&filter, None, KeptBy::OpenReport).await.unwrap().verdicts, 1);
    assert_eq!(operator.delete_prunable(&filter, None, 100).await.unwrap().verdicts, 2);
    assert_eq!(world.all_open().await, ["reported"]);
    assert_eq!(world.lab.count("SELECT count(*) FROM review_items").await, 1);
    assert_eq!(world.lab.count("SELECT count(*) FROM reports").await, 1);
    assert_eq!(world.lab.count("SELECT count(*) FROM decisions").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_and_its_item_are_written_together_or_not_at_all() {
    let world = World::new().await;
    sqlx::query("ALTER TABLE review_items ADD CONSTRAINT no_abuse CHECK (category <> 'abuse')")
        .execute(&world.lab.db)
        .await
        .unwrap();
    let refused = verdict("refused", vec![finding("abuse", 1, FindingOutcome::Review)]);
    let new = NewVerdict { verdict: refused, event: None };
    assert!(world.ledger.insert(std::slice::from_ref(&new)).await.is_err());
    assert_eq!(world.lab.count("SELECT count(*) FROM verdicts").await, 0);
    world.insert([in_review("a"), verdict("passed", Vec::new())]).await;
    assert_eq!(world.all_open().await, ["a"]);
    // A redelivery opens no second item, also where the first one is closed.
    done(&world.decide("a", 1, "ada", DecisionAction::Clear).await);
    world.insert([in_review("a")]).await;
    assert!(world.all_open().await.is_empty());
    // The configuration says what else opens one; what a person has flagged does not.
    let wide = Postgres::open(&SecretUrl::from(world.lab.ledger_as("pixwarden_worker"))).await.unwrap();
    let wide = wide.opening(&[Outcome::Review, Outcome::Flagged]);
    let flagged = verdict("flagged", vec![finding("nudity", 3, FindingOutcome::Flagged)]);
    wide.insert(&[NewVerdict { verdict: flagged, event: None }]).await.unwrap();
    assert_eq!(world.all_open().await, ["flagged"]);
    let reviewing = Reviewing { ledger: &wide, ..world.reviewing() };
    done(&reviewing.decide(&request("flagged", 1, "ada", DecisionAction::Uphold)).await.unwrap());
    assert!(world.all_open().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_exported_and_shown() {
    let world = World::new().await;
    world.insert([in_review("a"), in_review("b")]).await;
    let made = DecisionRequest {
        note: Some("a bikini".into()),
        name: Some("Ada".into()),
        batch: Some(Uuid::max()),
        ..request("a", 1, "ada", DecisionAction::Clear)
    };
    done(&world.reviewing().decide(&made).await.unwrap());
    world.decide("b", 1, "bob", DecisionAction::Skip).await;
    world.reviewing().report(&report("b", ItemKind::Report)).await.unwrap();

    let lab = &world.lab;
    let lines = async |words: &[&str]| -> Vec<Value> {
        let all = [&["export", "--decisions", "--lag", "0s"], words].concat();
        let printed = lab.run(&all).await.expect_ok().stdout;
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = lines(&[]).await;
    assert_eq!(all.len(), 2, "{all:?}");
    let expected = json!({"id": all[0]["id"], "verdict_id": verdict_id("a"), "revision": 1, "actor": "ada",
        "action": "clear", "category": null, "batch_id": Uuid::max(), "at": all[0]["at"], "note": "a bikini", "name": "Ada"});
    assert_eq!(all[0], expected);
    assert_eq!(lines(&["--actor", "bob"]).await, all[1..]);
    assert_eq!(lines(&["--action", "clear", "--action", "flag"]).await, all[..1]);
    assert_eq!(lines(&["--since", all[1]["at"].as_str().unwrap()]).await, all[1..]);
    assert!(lines(&["--until", all[0]["at"].as_str().unwrap()]).await.is_empty());
    let csv = lab.run(&["export", "--decisions", "--lag", "0s", "--format", "csv"]).await.expect_ok().stdout;
    assert!(csv.starts_with("id,verdict_id,revision,actor,action,category,batch_id,at,note,name\n"), "{csv}");
    let refused = lab.run(&["export", "--decisions", "--outcome", "review"]).await;
    assert!(refused.status == 2 && refused.stderr.contains("takes no selection of verdicts"), "{}", refused.stderr);
    assert_eq!(lab.run(&["export", "--actor", "ada"]).await.status, 2);

    let shown: Value = serde_json::from_str(&lab.run(&["show", "a"]).await.expect_ok().stdout).unwrap();
    assert_eq!((&shown["decisions"][0], &shown["cause"]), (&expected, &json!("decided")));
    let shown = lab.run(&["show", "b", "--format", "table"]).await.expect_ok().stdout;
    assert!(shown.contains("skip on revision 1 by bob at ") && shown.contains("report at "), "{shown}");
    let page = world.ledger.page_of_decisions(&DecisionFilter::default(), None, 1).await.unwrap();
    let rest = world.ledger.page_of_decisions(&DecisionFilter::default(), page.next, 1).await.unwrap();
    assert_eq!((page.decisions.len(), rest.decisions[0].actor.as_str()), (1, "bob"));
}

/// A picture with much detail.
fn picture() -> RgbImage {
    RgbImage::from_fn(400, 300, |x, y| {
        let wave = |across: f64, down: f64| {
            (std::f64::consts::TAU * (across * f64::from(x) / 400.0 + down * f64::from(y) / 300.0)).sin()
        };
        let sum = wave(3.0, 1.0) + wave(1.5, 7.0) + wave(9.0, 2.5) + wave(0.5, 4.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
        let level = (127.5 + 30.0 * sum).clamp(0.0, 255.0) as u8;
        Rgb([level, level.wrapping_add(10), 255 - level])
    })
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Everything goes to review, and a bank knows what is flagged.
const RULES: &str = "
[[policy.rules]]
detector = \"spread-nhwc\"
label = \"by AI\"
category = \"synthetic\"
review_at = 0.0
[[policy.rules]]
bank = \"known\"
category = \"synthetic\"
flag_within = 0
[review]
undo_s = 0
";

#[tokio::test(flavor = "multi_thread")]
async fn equal_bytes_take_a_decision_over_near_ones_do_not_and_a_later_match_reopens() {
    let mut world = World::new().await;
    world.lab.extra = RULES.into();
    let bank = ["bank", "create", "known", "--kind", "deny"];
    world.lab.run(&bank).await.expect_ok();
    let mut worker = world.lab.started_worker().await;
    let lab = &world.lab;
    let screen = async |key: &str, bytes: Vec<u8>| {
        lab.put(key, bytes).await;
        lab.job(Lane::Live, json!({"id": key, "image": format!("s3://{}/{key}", lab.bucket)})).await;
        let since = Instant::now();
        while world.ledger.read_verdict(verdict_id(key)).await.unwrap().is_none() {
            assert!(since.elapsed() < Duration::from_secs(60), "{}", worker.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        lab.until_settled(&worker).await;
    };
    screen("a", encoded(ImageFormat::Png)).await;
    assert_eq!(world.all_open().await, ["a"]);
    done(&world.decide("a", 1, "ada", DecisionAction::Clear).await);
    screen("equal", encoded(ImageFormat::Png)).await;
    assert_eq!(world.state("equal").await, (Outcome::Passed, 2, Some(RevisionCause::Carried)));
    assert_eq!(world.ledger.earlier_states(verdict_id("equal")).await.unwrap()[0].judgement.outcome, Outcome::Review);
    let keys = "SELECT count(*) FROM outbox WHERE verdict_id = (SELECT id FROM verdicts WHERE job_id = 'equal')";
    assert_eq!(world.lab.count(keys).await, 1, "image.cleared, and no image.review");
    screen("near", encoded(ImageFormat::Jpeg)).await;
    assert_eq!(world.state("near").await, (Outcome::Review, 1, None));
    assert_eq!(world.all_open().await, ["near"]);
    // Who decided about equal bytes does not get the appeal.
    world.reviewing().report(&report("equal", ItemKind::Appeal)).await.unwrap();
    assert_eq!(world.claim("ada", 10).await, ["near"]);

    // Stricter rules change what nobody has decided.
    let mut lab_with_stricter_rules = RULES.replace("review_at = 0.0", "flag_at = 0.0");
    std::mem::swap(&mut lab_with_stricter_rules, &mut world.lab.extra);
    world.lab.run(&["rejudge"]).await.expect_ok();
    std::mem::swap(&mut lab_with_stricter_rules, &mut world.lab.extra);
    let outcomes = [world.state("a").await, world.state("equal").await, world.state("near").await];
    assert_eq!(outcomes.map(|(outcome, ..)| outcome), [Outcome::Passed, Outcome::Passed, Outcome::Flagged]);
    assert_eq!(world.all_open().await, ["equal"], "only the appeal waits");

    let sha256 = hex::encode(Sha256::digest(encoded(ImageFormat::Png)));
    let lab = &world.lab;
    lab.run(&["bank", "add", "known", &format!("sha256:{sha256}")]).await.expect_ok();
    let since = Instant::now();
    while !worker.log_has("bank changed") {
        assert!(since.elapsed() < Duration::from_secs(10), "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lab.run(&["bank", "match", "known"]).await.expect_ok();
    let (outcome, revision, cause) = world.state("a").await;
    assert_eq!((outcome, cause), (Outcome::Flagged, Some(RevisionCause::Matched)), "revision {revision}");
    let stored = world.ledger.read_verdict(verdict_id("a")).await.unwrap().unwrap();
    let sources: Vec<_> = stored.verdict.judgement.findings.iter().map(|finding| finding.source).collect();
    assert_eq!(sources, [FindingSource::Bank, FindingSource::Decision], "with the earlier decision beside it");
    lab.put("later", encoded(ImageFormat::Png)).await;
    lab.job(Lane::Live, json!({"id": "later", "image": format!("s3://{}/later", lab.bucket)})).await;
    lab.until("SELECT count(*) FROM verdicts WHERE job_id = 'later' AND outcome = 'flagged'", 1, &worker).await;
    assert_eq!(world.state("later").await, (Outcome::Flagged, 1, None), "the match is newer than the decision");

    // A person clears that match too. Another entry is as close, and must not hide behind the answered one.
    let (_, revision, _) = world.state("a").await;
    done(&world.decide("a", revision, "ada", DecisionAction::Clear).await);
    assert_eq!(world.state("a").await.0, Outcome::Passed);
    let md5 = hex::encode(md5::Md5::digest(encoded(ImageFormat::Png)));
    lab.run(&["bank", "add", "known", &format!("md5:{md5}")]).await.expect_ok();
    lab.run(&["bank", "match", "known"]).await.expect_ok();
    let (outcome, _, cause) = world.state("a").await;
    assert_eq!((outcome, cause), (Outcome::Flagged, Some(RevisionCause::Matched)));
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_carried_only_under_the_same_rules_and_for_its_time() {
    let world = World::new().await;
    world.insert([in_review("a")]).await;
    done(&world.decide("a", 1, "ada", DecisionAction::Clear).await);
    let sha256: [u8; 32] = Sha256::digest("a").into();
    let now = world.ledger.now().await.unwrap();
    let found = async |policy: &str, since| {
        world.ledger.find_decided(sha256, policy, since).await.unwrap().map(|stored| stored.verdict.job_id)
    };
    assert_eq!(found("p", now - time::Duration::days(90)).await.as_deref(), Some("a"));
    assert_eq!(found("q", now - time::Duration::days(90)).await, None);
    assert_eq!(found("p", now).await, None);
    done(&world.decide("a", 2, "ada", DecisionAction::Undo).await);
    assert_eq!(found("p", now - time::Duration::days(90)).await, None, "it was undone");
}

/// What a consumer of events needs: the revision of a decision names its cause.
#[tokio::test(flavor = "multi_thread")]
async fn the_event_of_a_decision_is_that_of_any_revision() {
    let world = World::new().await;
    world.insert([in_review("a")]).await;
    world.publish_all().await;
    let Decided::Done { event: Some(event), .. } =
        world.decide("a", 1, "a-person-of-ours", DecisionAction::Clear).await
    else {
        panic!("no event")
    };
    let payload: Value = serde_json::from_str(&event.payload).unwrap();
    let stored = world.ledger.read_verdict(verdict_id("a")).await.unwrap().unwrap();
    let revision: Revision = stored.revision;
    assert_eq!(event.id, event::id_of(&stored.verdict, &revision));
    let data = &payload["data"];
    assert_eq!(
        (&payload["type"], &data["cause"], &data["revision"], &data["allow"]),
        (&json!("io.pixwarden.image.cleared.v1"), &json!("decided"), &json!(2), &json!(true))
    );
    assert_eq!(
        (&data["findings"][0]["source"], &data["findings"][0]["category"]),
        (&json!("decision"), &json!("nudity"))
    );
    assert!(!event.payload.contains("a-person-of-ours"), "no person is named");
}

/// Sends JSON, and returns the status with the answer.
async fn post(client: &Client, path: &str, body: &Value) -> (u16, Value) {
    let answer = client.send("POST", path, body.to_string()).await;
    (answer.status, answer.json())
}

#[tokio::test(flavor = "multi_thread")]
async fn other_peoples_tools_claim_decide_and_report_over_http() {
    let mut world = World::new().await;
    let (reader, first) = key("reader", &[Scope::Read], "");
    let (other, second) = key("other", &[Scope::Decide, Scope::Read], "buckets = [\"other-*\"]");
    let (strict, third) = key("strict", &[Scope::Decide], "policies = [\"strict\"]");
    world.lab.extra.push_str(&format!("\n{first}\n{second}\n{third}"));
    let (_worker, client) = worker_with_http(&mut world.lab, "").await;
    let mut restricted = finding("abuse", 5, FindingOutcome::Review);
    (restricted.restricted, restricted.bank, restricted.entry, restricted.distance) =
        (true, Some("known".into()), Some(7), Some(3));
    let passed = verdict("passed", Vec::new());
    // One after the other: what is opened in one transaction has one age.
    for new in [in_review("a"), in_review("b"), verdict("known", vec![restricted]), passed] {
        world.insert([new]).await;
    }

    // The queue, page by page.
    let page = client.get("/v1/review?limit=2").await.json();
    let jobs = |page: &Value| -> Vec<String> {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["verdict"]["job_id"].as_str().unwrap().into())
            .collect()
    };
    assert_eq!(jobs(&page), ["known", "a"]);
    let known = &page["items"][0];
    assert_eq!((&known["restricted"], &known["kind"], &known["severity"]), (&json!(true), &json!("review"), &json!(5)));
    let found = &known["verdict"]["findings"][0];
    assert_eq!((&found["bank"], &found["entry"], &found["distance"]), (&json!("known"), &json!(7), &json!(3)));
    assert!(!page.to_string().contains("picture"), "{page}");
    let next = format!("/v1/review?limit=2&cursor={}", page["next"].as_str().unwrap());
    assert_eq!(jobs(&client.get(&next).await.json()), ["b"]);
    assert_eq!(jobs(&client.get("/v1/review?category=nudity&kind=review&unclaimed=true").await.json()), ["a", "b"]);
    for wrong in ["?limit=0", "?cursor=x", "?kind=none", "?page=2", "?damage_only=maybe"] {
        let refused = client.get(&format!("/v1/review{wrong}")).await;
        assert_eq!((refused.status, &refused.json()["code"]), (422, &json!("invalid")), "{wrong}");
    }

    // What a key is bound to is all that it sees, and `read` only reads.
    let bound = Client::new(&client.address, &other);
    assert!(jobs(&bound.get("/v1/review").await.json()).is_empty());
    let claims = json!({"actor": "eve", "count": 9});
    assert_eq!(post(&bound, "/v1/claims", &claims).await.1["items"], json!([]));
    let strict = Client::new(&client.address, &strict);
    assert_eq!(post(&strict, "/v1/claims", &claims).await.1["items"], json!([]));
    let decision = json!({"verdict_id": verdict_id("a"), "revision": 1, "actor": "eve", "action": "clear"});
    for key in [&bound, &strict] {
        assert_eq!(post(key, "/v1/decisions", &decision).await.0, 404, "whether it exists is not said");
        assert_eq!(post(key, "/v1/reports", &json!({"job_id": "a", "kind": "report"})).await.0, 404);
    }
    let reader = Client::new(&client.address, &reader);
    assert_eq!(reader.get("/v1/review").await.status, 200);
    assert_eq!(post(&reader, "/v1/decisions", &decision).await.0, 403);
    assert_eq!(world.state("a").await.1, 1);

    // Two people, a claim, a decision, and a stale one.
    let (status, claimed) =
        post(&client, "/v1/claims", &json!({"actor": "ada", "lease_s": 60, "select": {"category": ["nudity"]}})).await;
    assert_eq!((status, jobs(&claimed)), (200, vec!["a".to_owned()]));
    let (status, problem) = post(&client, "/v1/decisions", &decision).await;
    assert_eq!((status, &problem["code"], &problem["claimed_by"]), (409, &json!("claimed"), &json!("ada")));
    let item = claimed["items"][0]["item_id"].clone();
    let renewed = post(&client, "/v1/claims", &json!({"actor": "ada", "renew": [item]})).await.1;
    assert_eq!(renewed["renewed"], json!([item]));
    let mut by_ada = decision.clone();
    (by_ada["actor"], by_ada["note"], by_ada["name"]) = (json!("ada"), json!("fine"), json!("Ada"));
    let (status, decided) = post(&client, "/v1/decisions", &by_ada).await;
    assert_eq!((status, &decided["outcome"], &decided["revision"]), (200, &json!("passed"), &json!(2)), "{decided}");
    assert_eq!((&decided["cause"], &decided["allow"]), (&json!("decided"), &json!(true)));
    // The answer was lost, and the same is sent again.
    let (status, again) = post(&client, "/v1/decisions", &by_ada).await;
    assert_eq!((status, &again["revision"], &again["outcome"]), (200, &json!(2), &json!("passed")), "{again}");
    by_ada["action"] = json!("flag");
    let (status, problem) = post(&client, "/v1/decisions", &by_ada).await;
    assert_eq!((status, &problem["code"], &problem["revision"]), (409, &json!("stale"), &json!(2)), "{problem}");
    assert_eq!(problem["recorded"], false);
    assert_eq!((&problem["verdict"]["outcome"], &problem["allow"]), (&json!("passed"), &json!(false)));
    let act = |action: &str, revision: u32, actor: &str| json!({"verdict_id": verdict_id("a"), "revision": revision, "actor": actor, "action": action});
    assert_eq!(post(&client, "/v1/decisions", &act("undo", 2, "bob")).await.1["code"], "nothing_to_undo");
    assert_eq!(post(&client, "/v1/decisions", &act("undo", 2, "ada")).await.1["revision"], 3);
    assert_eq!(post(&client, "/v1/decisions", &act("flag", 3, "ada")).await.1["outcome"], "flagged");

    // An appeal, which goes to another person.
    let (status, made) = post(
        &client,
        "/v1/reports",
        &json!({"image": "s3://uploads/a.jpg", "kind": "appeal",
        "note": "that is a statue", "due_at": "2026-12-24T12:00:00Z", "reference": "case 12", "reporter": "user-7"}),
    )
    .await;
    assert_eq!((status, &made["verdict_id"]), (201, &json!(verdict_id("a"))), "{made}");
    let (status, problem) = post(&client, "/v1/decisions", &act("clear", 4, "ada")).await;
    assert_eq!((status, &problem["code"]), (403, &json!("own_decision")));
    let appeals = client.get("/v1/review?kind=appeal").await.json();
    let report = &appeals["items"][0]["reports"][0];
    assert_eq!((&report["reference"], &report["due_at"]), (&json!("case 12"), &json!("2026-12-24T12:00:00Z")));
    assert_eq!(post(&client, "/v1/decisions", &act("clear", 4, "bob")).await.0, 200);

    // What does not fit is told.
    let report = |more: Value| {
        let mut body = json!({"job_id": "passed", "kind": "legal"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (path, body, status) in [
        ("/v1/reports", report(json!({})), 201),
        ("/v1/reports", report(json!({"job_id": "none"})), 404),
        ("/v1/reports", report(json!({"kind": "sample"})), 422),
        ("/v1/reports", report(json!({"image": "s3://uploads/a.jpg"})), 422),
        ("/v1/reports", report(json!({"due_at": "tomorrow"})), 422),
        ("/v1/reports", report(json!({"note": "a\u{0}"})), 422),
        ("/v1/decisions", json!({"verdict_id": Uuid::nil(), "revision": 1, "actor": "ada", "action": "clear"}), 404),
        ("/v1/decisions", act("delete", 1, "ada"), 422),
        ("/v1/decisions", act("clear", 5, " "), 422),
        ("/v1/decisions", act("skip", 5, "ada"), 409),
        (
            "/v1/decisions",
            json!({"verdict_id": verdict_id("b"), "revision": 1, "actor": "ada", "action": "uphold"}),
            422,
        ),
        ("/v1/claims", json!({"actor": "ada", "count": 1_000}), 422),
        ("/v1/claims", json!({"count": 1}), 422),
        ("/v1/claims", json!({"actor": "ada", "select": {"colour": "red"}}), 422),
    ] {
        let (found, answer) = post(&client, path, &body).await;
        assert_eq!(found, status, "{path} {body}: {answer}");
    }
    let first = client.get("/v1/review?limit=1").await.json();
    assert_eq!((jobs(&first), &first["items"][0]["kind"]), (vec!["passed".to_owned()], &json!("legal")));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sets_of_tools_claim_items_over_http_and_none_twice() {
    const ITEMS: usize = 1_000;
    let mut world = World::new().await;
    let (_worker, client) = worker_with_http(&mut world.lab, "").await;
    for group in (0..ITEMS).collect::<Vec<_>>().chunks(500) {
        world.insert(group.iter().map(|number| in_review(&format!("job-{number}")))).await;
    }
    let claimers = (0..8).map(|person| {
        let client = client.clone();
        async move {
            let mut all = Vec::new();
            loop {
                let (status, claimed) =
                    post(&client, "/v1/claims", &json!({"actor": format!("p{person}"), "count": 50})).await;
                assert_eq!(status, 200, "{claimed}");
                let items = claimed["items"].as_array().unwrap();
                if items.is_empty() {
                    return all;
                }
                all.extend(items.iter().map(|item| item["item_id"].as_str().unwrap().to_owned()));
            }
        }
    });
    let claimed: Vec<String> = futures_util::future::join_all(claimers).await.concat();
    assert_eq!(claimed.len(), ITEMS, "none twice");
    assert_eq!(claimed.into_iter().collect::<HashSet<_>>().len(), ITEMS);
}

/// The reports that an open item shows.
async fn shown(world: &World) -> Vec<Uuid> {
    let page = world.ledger.open_items(&ItemFilter::default(), None, 10).await.unwrap();
    page.items.into_iter().flat_map(|open| open.reports).map(|report| report.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_comes_while_a_person_looks_is_not_closed_by_that_persons_decision() {
    let mut world = World::new().await;
    world.config.review.undo_s = 3_600;
    world.insert([verdict("p", Vec::new())]).await;
    let made = async |kind: ItemKind| world.reviewing().report(&report("p", kind)).await.unwrap().id;
    let first = made(ItemKind::Report).await;
    assert_eq!(world.claim("ada", 1).await, ["p"]);
    let due_at = Some(OffsetDateTime::from_unix_timestamp(1_900_000_000).unwrap());
    let legal = ReportRequest { due_at, ..report("p", ItemKind::Legal) };
    let second = world.reviewing().report(&legal).await.unwrap().id;
    // A renewal shows nothing.
    let items = world.ledger.open_items(&ItemFilter::default(), None, 10).await.unwrap().items;
    let (item, all) = (items[0].item.id, ItemFilter::default());
    assert_eq!(world.ledger.renew_claims("ada", &[item], Duration::from_secs(60), &all).await.unwrap(), [item]);
    assert_eq!(done(&world.decide("p", 1, "ada", DecisionAction::Uphold).await), 2);
    let items = world.ledger.open_items(&ItemFilter::default(), None, 10).await.unwrap().items;
    assert_eq!((items[0].item.kind, items[0].item.due_at, items[0].item.revision), (ItemKind::Legal, due_at, 2));
    assert_eq!((shown(&world).await, items[0].item.claim.clone()), (vec![second], None), "{first} was answered");

    // Who decides without a claim names the last report that was shown.
    let third = made(ItemKind::Appeal).await;
    let seen = |last_report| DecisionRequest { last_report, ..request("p", 2, "bob", DecisionAction::Uphold) };
    let unknown = world.reviewing().decide(&seen(Some(Uuid::nil()))).await.unwrap();
    assert_eq!((unknown, world.state("p").await.1), (Decided::UnknownReport, 2));
    done(&world.reviewing().decide(&seen(Some(second))).await.unwrap());
    assert_eq!(shown(&world).await, [third]);
    assert!(world.claim("bob", 1).await.is_empty(), "he has decided by now, and the appeal is for another person");
    // Without either the decision answers everything.
    done(&world.decide("p", 3, "cleo", DecisionAction::Uphold).await);
    assert!(world.all_open().await.is_empty());

    // To undo brings back what was answered, beside what has come since.
    let fourth = made(ItemKind::Report).await;
    done(&world.decide("p", 4, "cleo", DecisionAction::Undo).await);
    assert_eq!(shown(&world).await, [third, fourth]);
    assert_eq!(world.lab.count("SELECT count(*) FROM review_items WHERE closed_at IS NULL").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_whose_answer_was_lost_is_answered_once_more_and_recorded_once() {
    let world = World::new().await;
    world.insert([in_review("a"), in_review("b")]).await;
    done(&world.decide("a", 1, "ada", DecisionAction::Clear).await);
    assert_eq!(world.decide("a", 1, "ada", DecisionAction::Clear).await, Decided::Repeated { revision: 2 });
    assert!(matches!(world.decide("a", 1, "ada", DecisionAction::Flag).await, Decided::Stale(_)), "another word");
    assert!(matches!(world.decide("a", 1, "bob", DecisionAction::Clear).await, Decided::Stale(_)), "another person");
    done(&world.decide("a", 2, "ada", DecisionAction::Undo).await);
    assert_eq!(world.decide("a", 2, "ada", DecisionAction::Undo).await, Decided::Repeated { revision: 3 });
    assert!(matches!(world.decide("a", 1, "ada", DecisionAction::Clear).await, Decided::Overtaken(_)));
    // What judges nothing makes no revision. It is known by the item.
    for action in [DecisionAction::Skip, DecisionAction::Escalate] {
        done(&world.decide("b", 1, "ada", action).await);
        assert_eq!(world.claim("bob", 2).await.len(), 2);
        assert_eq!(
            world.decide("b", 1, "ada", action).await,
            Decided::Repeated { revision: 1 },
            "also while he has it"
        );
        let free = "UPDATE review_items SET claimed_by = NULL, claimed_at = NULL, lease_until = NULL";
        sqlx::query(free).execute(&world.lab.db).await.unwrap();
    }
    assert_eq!(world.lab.count("SELECT count(*) FROM decisions").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_on_one_image_are_bounded_and_crowd_out_no_legal_request() {
    let world = World::new().await;
    world.insert([verdict("p", Vec::new()), in_review("other")]).await;
    for _ in 0..MAX_WAITING_REPORTS {
        world.reviewing().report(&report("p", ItemKind::Report)).await.unwrap();
    }
    let refused = world.reviewing().report(&report("p", ItemKind::Report)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "100 reports of the kind `report` on the image wait for a decision; report it again after that"
    );
    assert_eq!(world.lab.count("SELECT count(*) FROM reports").await, i64::from(MAX_WAITING_REPORTS));
    world.reviewing().report(&report("p", ItemKind::Legal)).await.unwrap();
    world.reviewing().report(&report("other", ItemKind::Report)).await.unwrap();
    done(&world.decide("p", 1, "ada", DecisionAction::Uphold).await);
    world.reviewing().report(&report("p", ItemKind::Report)).await.unwrap();
}

impl World {
    /// A world with a bank that denies, which the policy asks, and that knows the content of these jobs.
    async fn with_bank(jobs: &[&str]) -> Self {
        let mut world = Self::new().await;
        world.lab.run(&["bank", "create", "known", "--kind", "deny"]).await.expect_ok();
        for job in jobs {
            world.lab.run(&["bank", "add", "known", &sha256_of(job)]).await.expect_ok();
        }
        let rule = RuleConfig {
            bank: Some("known".into()),
            category: Some("known".into()),
            flag_within: Some(0),
            ..RuleConfig::default()
        };
        world.config.policy.rules = vec![rule];
        world.policies = PolicySet::resolve(&world.config, &[], false).unwrap();
        world.banks = CurrentBanks::load(&world.ledger, &["known"].into()).await.unwrap();
        world
    }

    /// Revises a verdict as `rejudge` does.
    async fn rejudge(&self, job: &str, judgement: Judgement) {
        let stored = self.ledger.read_verdict(verdict_id(job)).await.unwrap().unwrap();
        let mut revise = Revise {
            verdict: Verdict { judgement, ..stored.verdict.clone() },
            expected_revision: stored.revision.number,
            cause: RevisionCause::Rejudged,
            judged_at: self.ledger.now().await.unwrap(),
            event: None,
        };
        let before = Some(stored.verdict.judgement.outcome);
        let context = EventContext::default();
        revise.event = Some(event::revised_event(&revise.verdict, &revise.revision(), before, context, "pixwarden"));
        assert_eq!(self.ledger.rejudge(&[revise]).await.unwrap(), 1);
    }
}

fn sha256_of(job: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(job)))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_brings_back_what_the_policy_of_today_says() {
    let mut world = World::with_bank(&["known"]).await;
    world.config.review.undo_s = 3_600;
    let hashed = |job: &str| {
        let facts = Facts { hashes: Some(Vec::new()), ..Facts::of_one_view(Scores::new()) };
        Verdict { facts: Some(facts), ..in_review(job) }
    };
    world.insert([hashed("known"), hashed("unknown"), hashed("revised")]).await;
    world.publish_all().await;
    for (job, outcome, events) in
        [("known", Outcome::Flagged, &["image.flagged"][..]), ("unknown", Outcome::Passed, &["image.cleared"])]
    {
        done(&world.decide(job, 1, "ada", DecisionAction::Clear).await);
        done(&world.decide(job, 2, "ada", DecisionAction::Undo).await);
        assert_eq!(world.state(job).await, (outcome, 3, Some(RevisionCause::Decided)), "{job}");
        assert_eq!(world.unpublished(job).await, events, "it is not what was announced");
        let stored = world.ledger.read_verdict(verdict_id(job)).await.unwrap().unwrap();
        let policy = &world.policies.fallback().reference;
        assert_eq!((&stored.verdict.policy.sha256, stored.verdict.policy.banks.len()), (&policy.sha256, 1), "{job}");
    }
    // An item whose reason is gone is not opened for it.
    assert_eq!(world.all_open().await, ["revised"]);

    // The rules have found something else since the decision.
    done(&world.decide("revised", 1, "ada", DecisionAction::Clear).await);
    let cleared = world.ledger.read_verdict(verdict_id("revised")).await.unwrap().unwrap().verdict.judgement;
    let mut findings = vec![finding("violence", 3, FindingOutcome::Review)];
    findings.extend(cleared.findings);
    world.rejudge("revised", judgement(findings)).await;
    assert_eq!(world.unpublished("revised").await, ["image.review"]);
    assert!(matches!(world.decide("revised", 3, "bob", DecisionAction::Undo).await, Decided::NothingToUndo));
    assert_eq!(done(&world.decide("revised", 3, "ada", DecisionAction::Undo).await), 4);
    assert_eq!(world.state("revised").await.0, Outcome::Passed, "by the policy of today, without an answer");
    assert_eq!(world.unpublished("revised").await, ["image.cleared"]);
    assert!(matches!(world.decide("revised", 4, "ada", DecisionAction::Undo).await, Decided::NothingToUndo));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_announces_what_the_decision_has_replaced_before_it_left() {
    let world = World::new().await;
    // Judged long ago, so that a published event would not be kept any more.
    let flagged = |job: &str| verdict(job, vec![finding("nudity", 3, FindingOutcome::Flagged)]);
    world.insert([in_review("old"), in_review("back"), flagged("upheld")]).await;
    done(&world.decide("old", 1, "ada", DecisionAction::Clear).await);
    done(&world.decide("old", 2, "ada", DecisionAction::Undo).await);
    assert_eq!(world.unpublished("old").await, ["image.review"]);

    // The same routing key was published before, for an earlier state.
    world.publish_all().await;
    let review = world.ledger.read_verdict(verdict_id("back")).await.unwrap().unwrap().verdict.judgement;
    world.rejudge("back", judgement(vec![finding("nudity", 3, FindingOutcome::Flagged)])).await;
    world.publish_all().await;
    world.rejudge("back", review).await;
    assert_eq!(world.unpublished("back").await, ["image.review"]);
    done(&world.decide("back", 3, "ada", DecisionAction::Clear).await);
    done(&world.decide("back", 4, "ada", DecisionAction::Undo).await);
    assert_eq!(world.unpublished("back").await, ["image.review"]);

    // The state before was upheld, and the event was that of the state before it.
    sqlx::query("UPDATE outbox SET published_at = NULL WHERE verdict_id = $1")
        .bind(verdict_id("upheld"))
        .execute(&world.lab.db)
        .await
        .unwrap();
    done(&world.decide("upheld", 1, "bob", DecisionAction::Uphold).await);
    done(&world.decide("upheld", 2, "ada", DecisionAction::Clear).await);
    done(&world.decide("upheld", 3, "ada", DecisionAction::Undo).await);
    assert_eq!(world.unpublished("upheld").await, ["image.flagged"]);
    // Nothing is lost and nothing is said twice where it was published.
    world.publish_all().await;
    done(&world.decide("upheld", 4, "ada", DecisionAction::Clear).await);
    done(&world.decide("upheld", 5, "ada", DecisionAction::Undo).await);
    assert!(world.unpublished("upheld").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_forgets_no_earlier_decision_on_the_content() {
    let world = World::new().await;
    world.insert([in_review("a")]).await;
    done(&world.decide("a", 1, "bob", DecisionAction::Clear).await);
    done(&world.decide("a", 2, "ada", DecisionAction::Flag).await);
    done(&world.decide("a", 3, "ada", DecisionAction::Undo).await);
    let since = OffsetDateTime::now_utc() - time::Duration::days(1);
    let found = world.ledger.find_decided(Sha256::digest("a").into(), "p", since).await.unwrap().unwrap();
    assert_eq!((found.verdict.job_id.as_str(), found.verdict.judgement.outcome), ("a", Outcome::Passed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_shows_nothing_is_denied_by_its_bytes_also_after_it_was_cleared() {
    let mut world = World::new().await;
    world.lab.extra = RULES.into();
    world.lab.run(&["bank", "create", "known", "--kind", "deny"]).await.expect_ok();
    let mut worker = world.lab.started_worker().await;
    let lab = &world.lab;
    let screen = async |key: &str| {
        lab.put(key, b"no image at all".to_vec()).await;
        lab.job(Lane::Live, json!({"id": key, "image": format!("s3://{}/{key}", lab.bucket)})).await;
        lab.until_settled(&worker).await;
        world.state(key).await
    };
    assert_eq!(screen("first").await, (Outcome::Undecodable, 1, None));
    done(&world.decide("first", 1, "ada", DecisionAction::Clear).await);
    assert_eq!(screen("equal").await, (Outcome::Passed, 2, Some(RevisionCause::Carried)));

    lab.run(&["bank", "add", "known", &format!("sha256:{}", hex::encode(Sha256::digest("no image at all")))])
        .await
        .expect_ok();
    let since = Instant::now();
    while !worker.log_has("bank changed") {
        assert!(since.elapsed() < Duration::from_secs(10), "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(screen("later").await, (Outcome::Flagged, 1, None), "and no decision is taken over");
    lab.run(&["bank", "match", "known"]).await.expect_ok();
    assert_eq!(world.state("first").await, (Outcome::Flagged, 3, Some(RevisionCause::Matched)));
    let stored = world.ledger.read_verdict(verdict_id("first")).await.unwrap().unwrap();
    let sources: Vec<_> = stored.verdict.judgement.findings.iter().map(|finding| finding.source).collect();
    assert_eq!(sources, [FindingSource::Bank, FindingSource::Decision], "with the earlier decision beside it");
    // `rejudge` finds the same, and nothing new.
    lab.run(&["rejudge"]).await.expect_ok();
    assert_eq!(world.state("first").await.1, 3);
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_is_taken_over_by_equal_bytes_that_pass_and_whose_scores_are_not_reused() {
    let mut world = World::new().await;
    world.lab.extra = RULES.replace("review_at = 0.0", "review_at = 1.0") + "[worker]\nreuse_scores = false\n";
    world.lab.run(&["bank", "create", "known", "--kind", "deny"]).await.expect_ok();
    let mut worker = world.lab.started_worker().await;
    let lab = &world.lab;
    let screen = async |key: &str| {
        lab.put(key, encoded(ImageFormat::Png)).await;
        lab.job(Lane::Live, json!({"id": key, "image": format!("s3://{}/{key}", lab.bucket)})).await;
        lab.until_settled(&worker).await;
        world.state(key).await
    };
    assert_eq!(screen("a").await, (Outcome::Passed, 1, None));
    assert_eq!(screen("before").await, (Outcome::Passed, 1, None));
    done(&world.decide("a", 1, "ada", DecisionAction::Flag).await);
    assert_eq!(screen("equal").await, (Outcome::Flagged, 2, Some(RevisionCause::Carried)));
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE reused_from IS NOT NULL").await, 0);
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_before_it_takes_a_decision_over_leaves_that_to_the_redelivery() {
    let mut world = World::new().await;
    world.lab.extra = RULES.into();
    world.lab.run(&["bank", "create", "known", "--kind", "deny"]).await.expect_ok();
    let mut worker = world.lab.started_worker().await;
    let bucket = world.lab.bucket.clone();
    let job = |key: &str| json!({"id": key, "image": format!("s3://{bucket}/{key}")});
    for key in ["a", "equal"] {
        world.lab.put(key, encoded(ImageFormat::Png)).await;
    }
    world.lab.job(Lane::Live, job("a")).await;
    world.lab.until_settled(&worker).await;
    done(&world.decide("a", 1, "ada", DecisionAction::Clear).await);
    assert!(worker.terminate().await.success());

    world.lab.environment = vec![("TEST_CRASH", "commit:1".into())];
    let mut crashing = world.lab.started_worker().await;
    world.lab.job(Lane::Live, job("equal")).await;
    let status = tokio::time::timeout(Duration::from_secs(60), crashing.child.wait()).await.unwrap().unwrap();
    assert!(!status.success(), "{}", crashing.log());
    assert_eq!(world.state("equal").await, (Outcome::Review, 1, None), "committed, and held until a process goes on");

    world.lab.environment.clear();
    let mut second = world.lab.started_worker().await;
    world.lab.until_settled(&second).await;
    assert_eq!(world.state("equal").await, (Outcome::Passed, 2, Some(RevisionCause::Carried)));
    assert!(second.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_becomes_restricted_restricts_what_it_has_found_also_behind_a_decision() {
    let world = World::with_bank(&[]).await;
    let mut known = finding("known", 3, FindingOutcome::Review);
    (known.source, known.bank, known.entry) = (FindingSource::Bank, Some("known".into()), Some(1));
    world.insert([verdict("a", vec![known.clone()]), verdict("b", vec![known])]).await;
    done(&world.decide("a", 1, "ada", DecisionAction::Clear).await);
    for job in ["a", "b"] {
        world.reviewing().report(&report(job, ItemKind::Report)).await.unwrap();
    }
    let marked = async || -> Vec<(bool, bool)> {
        let items = world.ledger.open_items(&ItemFilter::default(), None, 10).await.unwrap().items;
        let marks = |open: &ItemWithVerdict| (open.item.is_restricted, open.stored.verdict.judgement.is_restricted());
        items.iter().map(marks).collect()
    };
    assert_eq!(marked().await, [(false, false); 2]);
    world.lab.run(&["bank", "set", "known", "--restricted"]).await.expect_ok();
    assert_eq!(marked().await, [(true, true); 2]);
    let claimed = world.ledger.claim_items(&claim("bob", 2)).await.unwrap();
    assert!(claimed.iter().all(|claimed| claimed.item.is_restricted));
    for words in [&["show", "a"][..], &["export", "--lag", "0s"]] {
        let printed = world.lab.run(words).await.expect_ok().stdout;
        assert!(printed.contains("\"restricted\":true"), "{words:?} {printed}");
    }
    // What is decided now is announced at once, as restricted, and no equal bytes take it over.
    world.publish_all().await;
    done(&world.decide("b", 1, "bob", DecisionAction::Flag).await);
    let events = world.ledger.lease_events("image.flagged", 10).await.unwrap();
    assert!(events.len() == 1 && events[0].payload.contains("\"restricted\": true"), "{events:?}");
    let query = "SELECT count(*) FROM decided_contents WHERE verdict_id = (SELECT id FROM verdicts WHERE job_id = 'b')";
    assert_eq!(world.lab.count(query).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_people_is_counted_by_kind() {
    let world = World::new().await;
    world.insert([in_review("a"), in_review("b"), verdict("c", Vec::new())]).await;
    let due_at = Some(OffsetDateTime::now_utc() - time::Duration::hours(1));
    world.reviewing().report(&ReportRequest { due_at, ..report("c", ItemKind::Legal) }).await.unwrap();
    assert_eq!(world.claim("ada", 2).await.len(), 2);
    let lapse = "UPDATE review_items SET lease_until = now() - interval '1 second' WHERE kind = 'review' AND claimed_by = 'ada'";
    sqlx::query(lapse).execute(&world.lab.db).await.unwrap();
    let mut waiting = world.ledger.queue_state().await.unwrap();
    waiting.sort_by_key(|waiting| waiting.kind);
    let [review, legal] = &waiting[..] else { panic!("{waiting:?}") };
    assert_eq!((review.kind, review.items, review.lapsed, review.overdue), (ItemKind::Review, 2, 1, Duration::ZERO));
    assert_eq!((legal.kind, legal.items, legal.lapsed), (ItemKind::Legal, 1, 0));
    assert!(legal.overdue >= Duration::from_secs(3_600), "{legal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_in_a_file_refuses_options_of_review_at_the_start() {
    let mut lab = Lab::new().await;
    lab.extra = "[review]\nopen = [\"review\", \"flagged\"]\n".into();
    lab.ledger_url = format!("sqlite://{}", lab.folder.path().join("ledger.db").display());
    lab.run(&["migrate"]).await.expect_ok();
    for command in ["worker", "serve"] {
        let refused = lab.run(&[command]).await;
        let is_named = refused.stderr.contains("review needs PostgreSQL") && refused.stderr.contains("hint: ");
        assert!(refused.status == 2 && is_named, "{command}: {}", refused.stderr);
    }
    lab.extra.clear();
    let mut worker = lab.started_worker().await;
    assert!(worker.log_has("the ledger has no review, which needs PostgreSQL"), "{}", worker.log());
    assert!(worker.terminate().await.success());
}
