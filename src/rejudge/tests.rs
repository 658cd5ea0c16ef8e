//! Rejudging and comparing, on a SQLite ledger.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::compare::{Announced, Comparison, ComparisonOptions};
use crate::job::{Digests, Facts, ImageInfo, Judgement, Lane, Outcome, PolicyRef, Scores, verdict_id};
use crate::ledger::{self, NewVerdict};
use crate::policy::tests::detector;

/// Two tenants and all others.
const TENANTS: &str = r#"
    [[policy.rules]]
    detector = "d"
    label = "ai"
    flag_at = 0.9
    [[policies]]
    name = "kids"
    when.key_prefix = "kids/"
    rules = [{ detector = "d", label = "ai", category = "synthetic", review_at = 0.1, flag_at = 0.5 }]
    [[policies]]
    name = "art"
    when.key_prefix = "art/"
    rules = [{ detector = "d", label = "ai", category = "synthetic", note_at = 0.5 }]
"#;

struct World {
    _folder: tempfile::TempDir,
    config: Config,
    ledger: Arc<dyn Ledger>,
}

impl World {
    /// A ledger with `images` verdicts of each tenant that passed under an earlier policy, each with the score 0.6.
    async fn with_verdicts(images: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("{TENANTS}\n[ledger]\nurl = \"sqlite://{}\"\n", folder.path().join("l.db").display());
        let config: Config = toml::from_str::<toml::Table>(&text).unwrap().try_into().unwrap();
        let ledger: Arc<dyn Ledger> = ledger::open_or_create(&config).await.unwrap().into();
        ledger.migrate().await.unwrap();
        let keys =
            ["kids", "art", "other"].into_iter().flat_map(|tenant| (0..images).map(move |n| format!("{tenant}/{n}")));
        let verdicts: Vec<NewVerdict> =
            keys.map(|key| NewVerdict { verdict: verdict(&key, 0.6), event: None }).collect();
        ledger.insert(&verdicts).await.unwrap();
        Self { _folder: folder, config, ledger }
    }

    fn policies(&self) -> PolicySet {
        policies(&self.config)
    }

    async fn rejudge(
        &self,
        config: &Config,
        options: RejudgeOptions,
        stop: &CancellationToken,
    ) -> (BackfillEnd, RejudgeSummary) {
        let mut run = Rejudging::new(
            Arc::clone(&self.ledger),
            policies(config),
            CurrentBanks::default(),
            Arc::new(config.clone()),
            options,
        );
        let end = run.run(None, stop, |_, _| ()).await.unwrap();
        (end, run.summary)
    }

    /// Outcome, policy and revision of a verdict.
    async fn state(&self, key: &str) -> (Outcome, String, u32) {
        let stored = self.ledger.read_verdict(verdict_id(key)).await.unwrap().unwrap();
        (stored.verdict.judgement.outcome, stored.verdict.policy.name, stored.revision.number)
    }
}

fn policies(config: &Config) -> PolicySet {
    PolicySet::resolve(config, &[detector("d", &["ai", "human"])], false).unwrap()
}

fn options() -> RejudgeOptions {
    RejudgeOptions {
        filter: VerdictFilter::default(),
        policy: None,
        enqueue: false,
        dry_run: false,
        restart: false,
        rate: None,
        examples: 0,
    }
}

fn verdict(key: &str, score: f32) -> Verdict {
    let at = OffsetDateTime::now_utc() - Duration::from_secs(60);
    Verdict {
        id: verdict_id(key),
        job_id: key.into(),
        lane: Lane::Live,
        image: ImageRef::from_uri(&format!("s3://uploads/{key}")).unwrap(),
        sha256: Some([7; 32]),
        md5: Some([5; 16]),
        bytes: Some(12),
        seen: Some(ImageInfo { format: "png", width: 8, height: 8, frames: 1 }),
        judgement: Judgement {
            outcome: Outcome::Passed,
            reason: None,
            label: Some("ai".into()),
            score: Some(score),
            findings: Vec::new(),
        },
        facts: Some(Facts::of_one_view(Scores::from([("d".into(), [("ai".to_owned(), score)].into())]))),
        detectors: Digests::from([("d".into(), "d".into())]),
        policy: PolicyRef::new("earlier", "earlier"),
        metadata: Some(json!({})),
        reused_from: None,
        attempts: 1,
        object_at: None,
        received_at: at,
        decided_at: at,
    }
}

#[tokio::test]
async fn one_tenant_is_rejudged_and_no_row_of_another_is_touched() {
    let world = World::with_verdicts(3).await;
    let stop = CancellationToken::new();
    let one = RejudgeOptions { policy: Some("kids".into()), examples: 2, ..options() };
    let (end, summary) = world.rejudge(&world.config, one, &stop).await;
    assert_eq!((end, summary.verdicts(), summary.skipped), (BackfillEnd::Done, 9, 6));
    let counted: Vec<_> = summary.transitions.iter().collect();
    let transition =
        Transition { before: Outcome::Passed, after: Outcome::Flagged, category: Some("synthetic".into()) };
    assert_eq!(counted, [(&transition, 3)]);
    assert_eq!((summary.transitions.examples.len(), summary.transitions.changed()), (2, 3));
    assert_eq!(summary.transitions.examples[0].image.split('/').nth(3), Some("kids"));
    assert_eq!(world.state("kids/0").await, (Outcome::Flagged, "kids".into(), 2));
    for key in ["art/0", "other/2"] {
        assert_eq!(world.state(key).await, (Outcome::Passed, "earlier".into(), 1), "{key}");
    }
    let (_, rest) = world.rejudge(&world.config, options(), &stop).await;
    assert_eq!((rest.current, rest.transitions.verdicts(), rest.transitions.changed()), (3, 6, 0));
    assert_eq!(world.state("art/0").await, (Outcome::Passed, "art".into(), 2), "a note is a revision");
    assert_eq!(world.state("other/0").await, (Outcome::Passed, "default".into(), 1), "nothing that people see");
}

#[tokio::test]
async fn an_interrupted_run_continues_and_a_run_by_other_policies_begins_at_the_beginning() {
    let world = World::with_verdicts(400).await;
    let stopped = CancellationToken::new();
    stopped.cancel();
    let running = CancellationToken::new();
    let (end, first) = world.rejudge(&world.config, options(), &stopped).await;
    assert_eq!((end, first.verdicts()), (BackfillEnd::Stopped, 500), "one page");
    let (_, dry) = world.rejudge(&world.config, RejudgeOptions { dry_run: true, ..options() }, &running).await;
    assert_eq!(dry.verdicts(), 1200, "a dry run reads all and moves no mark");
    let (end, second) = world.rejudge(&world.config, options(), &running).await;
    assert_eq!((end, second.verdicts(), second.current), (BackfillEnd::Done, 700, 0));
    let (_, third) = world.rejudge(&world.config, options(), &running).await;
    assert_eq!((third.verdicts(), third.current), (1200, 1200), "the mark is gone after the end");

    let mut other = world.config.clone();
    other.policy.rules[0].flag_at = Some(0.95);
    world.rejudge(&other, options(), &stopped).await;
    let (_, back) = world.rejudge(&world.config, options(), &running).await;
    assert_eq!(back.verdicts(), 1200, "what another policy has changed is not skipped");

    world.rejudge(&other, options(), &stopped).await;
    // A run that is killed after its first page, before it saves a mark.
    let killed = CancellationToken::new();
    let mut run = Rejudging::new(
        Arc::clone(&world.ledger),
        world.policies(),
        CurrentBanks::default(),
        Arc::new(world.config.clone()),
        options(),
    );
    tokio::select! {
        biased;
        () = killed.cancelled() => {}
        _ = run.run(None, &running, |_, _| killed.cancel()) => panic!("it was not killed"),
    }
    assert_eq!(
        world.rejudge(&other, options(), &running).await.1.verdicts(),
        1200,
        "what it has changed is not skipped"
    );

    world.rejudge(&other, options(), &stopped).await;
    let filtered = RejudgeOptions { policy: Some("default".into()), ..options() };
    assert_eq!(world.rejudge(&other, filtered, &running).await.1.verdicts(), 1200, "another selection");
    world.rejudge(&other, options(), &stopped).await;
    let enqueuing = RejudgeOptions { enqueue: true, ..options() };
    assert_eq!(world.rejudge(&other, enqueuing, &running).await.1.verdicts(), 1200, "no job was published before");
    world.rejudge(&other, options(), &stopped).await;
    let restarted = RejudgeOptions { restart: true, ..options() };
    assert_eq!(world.rejudge(&other, restarted, &running).await.1.verdicts(), 1200);
}

#[tokio::test]
async fn a_comparison_says_what_a_rejudge_then_does_and_writes_nothing() {
    let world = World::with_verdicts(3).await;
    let lacking = Verdict { facts: Some(Facts::of_one_view(Scores::new())), ..verdict("other/lacking", 0.0) };
    let outdated = Verdict { detectors: Digests::from([("d".into(), "old".into())]), ..verdict("other/outdated", 0.6) };
    let unscored = Verdict { facts: None, ..verdict("other/unscored", 0.0) };
    let more = [lacking, outdated, unscored].map(|verdict| NewVerdict { verdict, event: None });
    world.ledger.insert(&more).await.unwrap();
    let options_of_comparison = ComparisonOptions {
        banks: CurrentBanks::default(),
        filter: VerdictFilter::default(),
        policies: world.policies(),
        detectors: Digests::from([("d".into(), "d".into())]),
        examples: 100,
    };
    let comparison = Comparison::of(world.ledger.as_ref(), &options_of_comparison, |_, _| ()).await.unwrap();
    assert_eq!((comparison.lacking, comparison.outdated, comparison.unscored), (1, 1, 1));
    assert_eq!(comparison.verdicts(), 12);
    let announced: Vec<_> = comparison.announced.iter().map(|(key, counts)| (*key, *counts)).collect();
    let counts = |before, after| Announced { before, after };
    assert_eq!(
        announced,
        [("image.flagged", counts(0, 3)), ("image.noted", counts(0, 3)), ("image.passed", counts(9, 3))]
    );
    assert_eq!(world.state("kids/0").await, (Outcome::Passed, "earlier".into(), 1), "nothing was written");

    world.rejudge(&world.config, options(), &CancellationToken::new()).await;
    let changes = &comparison.transitions.examples;
    assert_eq!(changes.len(), 6, "every change, notes included");
    for change in changes {
        let stored = world.ledger.read_verdict(change.verdict_id).await.unwrap().unwrap();
        assert_eq!(stored.verdict.judgement, change.after);
    }
    let baselines = comparison.baselines();
    assert_eq!(baselines.len(), 2, "one for each digest");
    world.ledger.save_baselines(&baselines).await.unwrap();
    assert_eq!(world.ledger.find_baselines(&["d".into()]).await.unwrap(), [baselines[0].clone()]);
}

#[tokio::test]
async fn a_run_ends_where_another_one_by_other_policies_has_begun() {
    let world = World::with_verdicts(400).await;
    let run = Rejudging::new(
        Arc::clone(&world.ledger),
        world.policies(),
        CurrentBanks::default(),
        Arc::new(world.config.clone()),
        options(),
    );
    // The other run claims its mark while this one reads its first page.
    let from = run.start().await.unwrap();
    assert_eq!(from, None);
    let mut other = world.config.clone();
    other.policy.rules[0].flag_at = Some(0.95);
    let stopped = CancellationToken::new();
    stopped.cancel();
    world.rejudge(&other, options(), &stopped).await;
    assert!(matches!(run.refuse_other_run().await, Err(BackfillError::OtherRejudge)));
    let (_, rest) = world.rejudge(&other, options(), &CancellationToken::new()).await;
    assert_eq!(rest.verdicts(), 700, "the mark of the other run stays");
}
