//! A restart with another policy and another detector: no job is lost, and every verdict names the policy and the
//! detectors that it was made by.

use std::collections::BTreeMap;

use pixwarden::job::Lane;
use serde_json::{Value, json};

use crate::support::{Lab, fixtures, judged_fixtures};

const JOBS: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn jobs_in_the_queue_are_judged_by_the_policy_and_detectors_of_the_next_worker() {
    let mut lab = Lab::new().await;
    lab.extra = "[worker]\nreuse_scores = false".into();
    let fixtures_judged = judged_fixtures();
    for (i, fixture) in fixtures_judged.iter().enumerate() {
        lab.put(&format!("{i:03}"), fixture.bytes.clone()).await;
    }
    let fixture = |job: usize| job % fixtures_judged.len();
    for job in 0..JOBS {
        let image = format!("s3://{}/{:03}", lab.bucket, fixture(job));
        lab.job(Lane::Backfill, json!({"id": format!("{job}"), "image": image})).await;
    }
    let mut before = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts", 60, &before).await;
    assert!(before.terminate().await.success());

    // The next worker flags every scored image, and has a second detector in shadow.
    let second = self::fixtures().join("detectors/spread-nchw");
    lab.detectors = format!("{{path = {}}}, {{path = {second:?}, shadow = true}}", lab.detectors);
    lab.extra
        .push_str("\n[[policy.rules]]\ndetector = \"spread-nhwc\"\nlabel = \"by AI\"\nreview_at = 0.0\nflag_at = 0.0");
    let mut after = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts", i64::try_from(JOBS).unwrap(), &after).await;
    lab.until_settled(&after).await;
    assert!(after.terminate().await.success());
    assert_eq!(lab.waiting(&lab.topology.dead()).await, 0);

    let rows: Vec<(String, String, String, String)> =
        sqlx::query_as("SELECT job_id, outcome, policy->>'sha256', detectors::text FROM verdicts")
            .fetch_all(&lab.db)
            .await
            .unwrap();
    assert_eq!(rows.len(), JOBS);
    let mut by_policy: BTreeMap<&str, usize> = BTreeMap::new();
    for (job, outcome, policy, detectors) in &rows {
        *by_policy.entry(policy).or_default() += 1;
        let detectors: BTreeMap<String, Value> = serde_json::from_str(detectors).unwrap();
        let expected = fixtures_judged[fixture(job.parse().unwrap())].outcome.as_str();
        let scored = ["passed", "review", "flagged"].contains(&expected);
        match detectors.keys().map(String::as_str).collect::<Vec<_>>()[..] {
            ["spread-nhwc"] => assert_eq!(outcome, expected, "{job}, by the first worker"),
            ["spread-nchw", "spread-nhwc"] if scored => assert_eq!(outcome, "flagged", "{job}, by the second worker"),
            ["spread-nchw", "spread-nhwc"] => assert_eq!(outcome, expected, "{job}, by the second worker"),
            _ => panic!("{job} names {detectors:?}"),
        }
    }
    // Each policy is found with its own detectors only.
    assert_eq!(by_policy.len(), 2, "{by_policy:?}");
    let pairs = "SELECT count(DISTINCT (policy, detectors)) FROM verdicts";
    assert_eq!(lab.count(pairs).await, 2);
    assert!(by_policy.values().all(|n| *n >= 20), "both workers judged some: {by_policy:?}");
}
