//! Live before backfill.

use futures_util::StreamExt;
use pixwarden::job::Lane;
use serde_json::json;

use crate::support::{Lab, figure, judged_fixtures};

const BACKFILL: i64 = 5_000;
const MAX_BATCH: i64 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_live_job_overtakes_five_thousand_backfill_jobs() {
    let mut lab = Lab::new().await;
    lab.extra = format!("[worker]\nreuse_scores = false\n[inference]\nmax_batch = {MAX_BATCH}");
    let image = judged_fixtures().into_iter().filter(|f| f.outcome == "passed").max_by_key(|f| f.bytes.len()).unwrap();
    lab.put("k", image.bytes).await;
    let body = |id: String| json!({"id": id, "image": format!("s3://{}/k", lab.bucket)});
    futures_util::stream::iter(0..BACKFILL)
        .map(|i| lab.job(Lane::Backfill, body(format!("b{i}"))))
        .buffer_unordered(200)
        .collect::<Vec<_>>()
        .await;
    let worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts", 200, &worker).await;

    const LIVE: i64 = 100;
    for i in 0..LIVE {
        lab.job(Lane::Live, body(format!("l{i}"))).await;
        lab.until("SELECT count(*) FROM verdicts WHERE lane = 'live'", i + 1, &worker).await;
    }
    let waiting = BACKFILL - lab.count("SELECT count(*) FROM verdicts WHERE lane = 'backfill'").await;
    assert!(waiting > 1_000, "backfill was still saturated: {waiting} wait");
    // Between a live job's arrival and its verdict: the batch that was running, and those in the batch with it.
    let overtaken_by: Vec<i64> = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM verdicts b WHERE b.lane = 'backfill'
                 AND b.decided_at > l.received_at AND b.decided_at < l.decided_at)
         FROM verdicts l WHERE l.lane = 'live' ORDER BY 1",
    )
    .fetch_all(&lab.db)
    .await
    .unwrap();
    let worst = overtaken_by[overtaken_by.len() - 1];
    figure(&format!("backfill verdicts while a live job was inside: median {}, worst {worst}", overtaken_by[50]));
    assert!(worst <= 2 * MAX_BATCH, "a live job waited for {worst} backfill jobs");

    let percentiles: Vec<f64> = sqlx::query_scalar(
        "SELECT unnest(percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP
             (ORDER BY extract(epoch FROM decided_at - received_at)::float8 * 1000))
         FROM verdicts WHERE lane = 'live'",
    )
    .fetch_all(&lab.db)
    .await
    .unwrap();
    figure(&format!(
        "live latency with a saturated backfill lane: p50 {:.0} ms, p99 {:.0} ms over {LIVE} jobs",
        percentiles[0], percentiles[1]
    ));
    assert!(lab.count("SELECT count(*) FROM verdicts WHERE lane = 'backfill'").await > 200, "backfill is not starved");
}
