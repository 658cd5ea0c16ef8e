//! Jobs that fail cost themselves: their own attempts, their own verdict, and nobody else's.

use lapin::options::{BasicGetOptions, BasicNackOptions};
use pixwarden::job::{Lane, verdict_id};
use serde_json::json;
use uuid::Uuid;

use crate::support::{Lab, good_image, reason};

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_cut_or_stalls_is_retried_and_then_failed_beside_good_ones() {
    let mut lab = Lab::new().await;
    lab.endpoint = crate::proxy::start(&lab.endpoint).await;
    lab.extra = "deadline_ms = 1000\n[worker]\nattempts = 2\nreuse_scores = false".into();
    let image = good_image();
    for key in ["cut", "stall", "good"] {
        lab.put(key, image.clone()).await;
    }
    let worker = lab.started_worker().await;
    for id in ["cut", "stall"] {
        lab.job(Lane::Live, json!({"id": id, "image": format!("s3://{}/{id}", lab.bucket)})).await;
    }
    for i in 0..20 {
        lab.job(Lane::Live, json!({"id": format!("good-{i}"), "image": format!("s3://{}/good", lab.bucket)})).await;
    }
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'passed' AND attempts = 1", 20, &worker).await;
    let given_up = "SELECT count(*) FROM verdicts WHERE outcome = 'failed' AND attempts = 2
                        AND reason LIKE 'given up after 2 attempts%'";
    lab.until(given_up, 2, &worker).await;
    lab.until_settled(&worker).await;
    let dead = lab.drain(&lab.topology.dead()).await;
    let mut ids: Vec<_> = dead.iter().map(|(body, _)| body["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["cut", "stall"]);
    let reasons: Vec<_> = dead.iter().map(|(_, properties)| reason(properties)).collect();
    assert!(reasons.iter().any(|reason| reason.contains("did not arrive within 1000 ms")), "{reasons:?}");
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 22);
}

/// Puts jobs into their lane as if somebody had died over them: delivered before, never settled.
async fn redelivered(lab: &Lab, ids: &[&str]) {
    for id in ids {
        lab.job(Lane::Live, json!({"id": id, "image": format!("s3://{}/k", lab.bucket)})).await;
    }
    let queue = lab.topology.lane(Lane::Live);
    let mut held = Vec::new();
    for _ in ids {
        let message = lab.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap();
        held.push(message.unwrap());
    }
    for message in held {
        message.delivery.acker.nack(BasicNackOptions { requeue: true, multiple: false }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_deaths_over_a_job_alone_count_against_it() {
    let mut lab = Lab::new().await;
    // Equal content would let the later ones off.
    lab.extra = "[worker]\nreuse_scores = false".into();
    lab.put("k", good_image()).await;
    // What processes that died have left behind: how often one of them had begun the job alone.
    for (id, starts) in [("deadly", 3), ("suspect", 2)] {
        sqlx::query("INSERT INTO suspects (id, starts, process) VALUES ($1, $2, $3)")
            .bind(verdict_id(id))
            .bind(starts)
            .bind(Uuid::new_v4())
            .execute(&lab.db)
            .await
            .unwrap();
    }
    redelivered(&lab, &["deadly", "suspect", "innocent"]).await;
    let worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts", 3, &worker).await;
    lab.until_settled(&worker).await;
    let outcomes = lab.outcomes().await;
    assert_eq!(outcomes["deadly"], "failed", "three deaths are enough");
    assert_eq!((outcomes["suspect"].as_str(), outcomes["innocent"].as_str()), ("passed", "passed"));
    assert_eq!(lab.count("SELECT count(*) FROM verdicts WHERE reason LIKE '%died 3 times%'").await, 1);
    // Nothing is held against those who live. Records are removed after the settlement.
    lab.until("SELECT (count(*) = 0)::int::bigint FROM suspects", 1, &worker).await;
    let dead = lab.drain(&lab.topology.dead()).await;
    assert_eq!(dead.iter().map(|(body, _)| body["id"].as_str().unwrap()).collect::<Vec<_>>(), ["deadly"]);
}
