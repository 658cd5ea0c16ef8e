//! Services go away under load, and the worker goes on by itself: nothing is dead-lettered, no attempt is counted.

use std::sync::Arc;
use std::time::Duration;

use pixwarden::job::Lane;
use serde_json::json;

use crate::support::{Lab, Worker, fault, good_image};

/// Publishes jobs at a steady pace until told to stop; says how many.
async fn load(lab: &Arc<Lab>, stop: tokio::sync::oneshot::Receiver<()>) -> i64 {
    let mut stop = stop;
    let mut sent = 0;
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    while stop.try_recv().is_err() {
        pace.tick().await;
        let body = json!({"id": format!("j{sent}"), "image": format!("s3://{}/k", lab.bucket)}).to_string();
        let (exchange, lane) = (lab.topology.jobs(), if sent % 2 == 0 { Lane::Live } else { Lane::Backfill });
        loop {
            let message = pixwarden::broker::Message {
                exchange: &exchange,
                routing_key: lane.as_str(),
                payload: body.as_bytes(),
                properties: lapin::BasicProperties::default(),
            };
            match lab.publisher.publish(message).await {
                Ok(()) => break,
                // The broker is away for us too. A job that arrived nevertheless is the same job.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        sent += 1;
    }
    sent
}

/// Runs a fault under load; afterwards every job has passed at its first attempt.
async fn under_load(faults: impl AsyncFnOnce(&Lab, &Worker)) {
    let mut lab = Lab::with_stoppable_services().await;
    lab.extra = "[worker]\nreuse_scores = false".into();
    lab.put("k", good_image()).await;
    let mut worker = lab.started_worker().await;
    let lab = Arc::new(lab);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let loading = tokio::spawn({
        let lab = Arc::clone(&lab);
        async move { load(&lab, stopped).await }
    });
    lab.until("SELECT count(*) FROM verdicts", 20, &worker).await;
    faults(&lab, &worker).await;
    stop.send(()).unwrap();
    let sent = loading.await.unwrap();
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'passed' AND attempts = 1", sent, &worker).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, sent);
    assert!(worker.child.try_wait().unwrap().is_none(), "it is still the same process");
    // The broker's own connections are gone; a new one looks.
    let fresh = Lab::with_stoppable_services().await;
    for queue in [lab.topology.dead(), lab.topology.lane(Lane::Live), lab.topology.lane(Lane::Backfill)] {
        assert_eq!(fresh.waiting(&queue).await, 0, "{queue}");
    }
    for lane in Lane::ALL {
        for rung in 0..pixwarden::broker::DELAY_QUEUES.len() {
            assert_eq!(fresh.waiting(&lab.topology.delay(lane, rung)).await, 0, "a job was retried");
        }
    }
    assert!(worker.terminate().await.success());
}

/// Waits until so many more jobs are done: that is what having recovered means.
async fn goes_on(lab: &Lab, worker: &Worker) {
    let done = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM verdicts").fetch_one(&lab.db).await.unwrap_or(0);
    lab.until("SELECT count(*) FROM verdicts", done + 50, worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_connections_to_the_broker_closed() {
    under_load(async |lab, worker| {
        for _ in 0..3 {
            fault(&["rabbitmq", "close-connections"]).await;
            goes_on(lab, worker).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_restarted() {
    under_load(async |lab, worker| {
        fault(&["rabbitmq", "restart"]).await;
        goes_on(lab, worker).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_restarted() {
    under_load(async |lab, worker| {
        fault(&["postgres", "restart"]).await;
        goes_on(lab, worker).await;
        fault(&["postgres", "stop"]).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        fault(&["postgres", "start"]).await;
        goes_on(lab, worker).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_away_for_a_minute() {
    under_load(async |lab, worker| {
        fault(&["s3", "stop"]).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        fault(&["s3", "start"]).await;
        goes_on(lab, worker).await;
        // Frozen: connections stay open, and nothing answers.
        fault(&["s3", "pause"]).await;
        tokio::time::sleep(Duration::from_secs(15)).await;
        fault(&["s3", "continue"]).await;
        goes_on(lab, worker).await;
    })
    .await;
}
