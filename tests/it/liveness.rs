//! What goes silent instead of away: it is noticed, said, and over soon after it has ended, in the same process. And what
//! kills the process does not take its neighbours along.

use std::time::{Duration, Instant};

use pixwarden::job::Lane;
use serde_json::json;

use crate::link::Link;
use crate::support::{Lab, Worker, figure, good_image};

/// How soon silence has to be noticed, and how soon after its end work has to go on.
const NOTICED: Duration = Duration::from_secs(30);
const RESUMED: Duration = Duration::from_secs(10);

fn port(url: &str) -> u16 {
    url.parse::<url::Url>().unwrap().port().unwrap()
}

fn through(url: &str, link: &Link) -> String {
    let mut url: url::Url = url.parse().unwrap();
    url.set_port(Some(link.port)).unwrap();
    url.to_string()
}

async fn ready(worker: &Worker) -> bool {
    worker.get("/readyz").await.0 == 200
}

/// Publishes a job about twice a second until something is so; returns how long that took, or none if it took too long.
async fn until(
    lab: &Lab,
    worker: &mut Worker,
    limit: Duration,
    jobs: &mut usize,
    so: impl AsyncFn(&Lab, &Worker) -> bool,
) -> Option<Duration> {
    let since = Instant::now();
    while since.elapsed() < limit {
        *jobs += 1;
        lab.job(Lane::Live, json!({"id": format!("j{jobs}"), "image": format!("s3://{}/k", lab.bucket)})).await;
        for _ in 0..10 {
            assert!(worker.child.try_wait().unwrap().is_none(), "the worker ended:\n{}", worker.log());
            if so(lab, worker).await {
                return Some(since.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    None
}

/// A service behind a link goes silent for longer than it takes to notice, and comes back.
async fn silence(lab: Lab, link: Link, what: &str) {
    lab.put("k", good_image()).await;
    let mut worker = lab.started_worker().await;
    let mut jobs = 0;
    let answered = async |lab: &Lab, _: &Worker| lab.count("SELECT count(*) FROM verdicts").await > 0;
    assert!(until(&lab, &mut worker, NOTICED, &mut jobs, answered).await.is_some(), "{}", worker.log());
    assert!(ready(&worker).await, "{}", worker.log());

    link.black_hole();
    let noticed = until(&lab, &mut worker, NOTICED, &mut jobs, async |_, worker| !ready(worker).await).await;
    let noticed = noticed.unwrap_or_else(|| panic!("not noticed:\n{}", worker.log()));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = lab.count("SELECT count(*) FROM verdicts").await;

    link.heal();
    let resumed = until(&lab, &mut worker, RESUMED, &mut jobs, async |lab, _| {
        lab.count("SELECT count(*) FROM verdicts").await > before
    });
    let resumed = resumed.await.unwrap_or_else(|| panic!("not resumed:\n{}", worker.log()));
    figure(&format!("a silent {what} was noticed after {noticed:.1?}, work went on {resumed:.1?} after it had healed"));
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'passed' AND attempts = 1", jobs as i64, &worker).await;
    lab.until_settled(&worker).await;
    assert!(ready(&worker).await, "{}", worker.log());
    assert_eq!(lab.waiting(&lab.topology.dead()).await, 0, "nothing was given up");
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_silent() {
    let mut lab = Lab::new().await;
    let link = Link::before(port(&lab.queue)).await;
    lab.queue = through(&lab.queue, &link);
    silence(lab, link, "broker").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_silent() {
    let mut lab = Lab::new().await;
    let link = Link::before(port(&lab.ledger_url)).await;
    lab.ledger_url = through(&lab.ledger_url, &link);
    silence(lab, link, "database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_goes_silent_is_replaced() {
    let mut lab = Lab::new().await;
    let link = Link::before(port(&lab.queue)).await;
    lab.queue = through(&lab.queue, &link);
    lab.put("k", good_image()).await;
    let mut worker = lab.started_worker().await;
    link.swallow_deliveries();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // More than the broker hands out at a time: the rest is the backlog that shows the silence.
    for i in 0..120 {
        lab.job(Lane::Live, json!({"id": format!("j{i}"), "image": format!("s3://{}/k", lab.bucket)})).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(lab.count("SELECT count(*) FROM verdicts").await, 0, "a delivery slipped through");
    link.heal();
    // Connections that swallow go on swallowing; a new one does not.
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'passed' AND attempts = 1", 120, &worker).await;
    assert!(worker.child.try_wait().unwrap().is_none(), "it is still the same process");
    assert!(worker.log_has("received no message although"), "{}", worker.log());
    assert!(worker.terminate().await.success());
}

#[cfg(feature = "fault-injection")]
#[tokio::test(flavor = "multi_thread")]
async fn one_image_among_256_that_kills_the_process() {
    let mut lab = Lab::new().await;
    lab.environment.push(("TEST_PLANTED", "deadly-images".into()));
    lab.put("k", good_image()).await;
    lab.put("deadly", b"planted: this image kills the process".to_vec()).await;
    for i in 0..257 {
        let key = if i == 100 { "deadly" } else { "k" };
        lab.job(Lane::Live, json!({"id": format!("j{i}"), "image": format!("s3://{}/{key}", lab.bucket)})).await;
    }
    // A supervisor, as a worker in production has one.
    let (mut worker, mut deaths) = (lab.worker(), 0);
    let since = Instant::now();
    while lab.count("SELECT count(*) FROM verdicts").await < 257 {
        if worker.child.try_wait().unwrap().is_some() {
            deaths += 1;
            worker = lab.worker();
        }
        assert!(since.elapsed() < Duration::from_secs(180), "after {deaths} deaths:\n{}", worker.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lab.until_settled(&worker).await;
    let outcomes = lab.outcomes().await;
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| *outcome != "passed").collect();
    assert_eq!(failed, [(&"j100".to_owned(), &"failed".to_owned())]);
    assert!((3..=5).contains(&deaths), "{deaths} deaths: once or twice in company, and three times alone");
    let dead = lab.drain(&lab.topology.dead()).await;
    assert_eq!(dead.iter().map(|(body, _)| body["id"].as_str().unwrap()).collect::<Vec<_>>(), ["j100"]);
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_if_match_gets_no_verdict_about_another_object() {
    let mut lab = Lab::new().await;
    let image = good_image();
    let answer = move || {
        let image = image.clone();
        async move { ([("etag", "\"another\"")], image) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    lab.endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await }));
    for (id, etag) in [("same", "another"), ("changed", "wanted")] {
        let image = json!({"bucket": lab.bucket, "key": "k", "etag": etag});
        lab.job(Lane::Live, json!({"id": id, "image": image})).await;
    }
    let worker = lab.started_worker().await;
    lab.until("SELECT count(*) FROM verdicts", 2, &worker).await;
    let outcomes = lab.outcomes().await;
    assert_eq!((outcomes["same"].as_str(), outcomes["changed"].as_str()), ("passed", "missing"));
}
