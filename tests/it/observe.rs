//! A worker's metrics, health endpoints and traces.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::types::FieldTable;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use pixwarden::broker::{header, text};
use pixwarden::job::Lane;
use pixwarden::telemetry::metrics;
use serde_json::{Value, json};

use crate::support::{Lab, Worker, fault, judged_fixtures, service};

/// A scrape, parsed by Prometheus' client library.
pub struct Scrape {
    /// Family → kind.
    kinds: BTreeMap<String, String>,
    /// Sample, its labels (including `le`) and its value.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Scrape {
    pub async fn of(worker: &Worker) -> Self {
        let script = "
import json, sys
from prometheus_client.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
json.dump({
    'kinds': {family.name: family.type for family in families},
    'samples': [[s.name, s.labels, s.value] for family in families for s in family.samples],
}, sys.stdout)
";
        let (status, text) = worker.get("/metrics").await;
        assert_eq!(status, 200, "{text}");
        let mut child = std::process::Command::new(service("TEST_PYTHON"))
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{text}");
        let parsed: Value = serde_json::from_slice(&output.stdout).unwrap();
        Self {
            kinds: serde_json::from_value(parsed["kinds"].clone()).unwrap(),
            samples: serde_json::from_value(parsed["samples"].clone()).unwrap(),
        }
    }

    /// The sum of all samples of a name whose labels include these.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = self.samples.iter().filter(|(sample, found, _)| {
            sample == name && labels.iter().all(|(label, value)| found.get(*label).is_some_and(|found| found == value))
        });
        let values: Vec<f64> = matching.map(|(_, _, value)| *value).collect();
        assert!(!values.is_empty(), "there is no {name} with {labels:?}");
        values.iter().sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_prefetch_limits_the_default_batch() {
    let of = async |extra: &str| {
        let mut lab = Lab::new().await;
        lab.extra = extra.into();
        let worker = lab.started_worker().await;
        let scrape = Scrape::of(&worker).await;
        (scrape.sum("pixwarden_batch_limit", &[]), scrape.sum("pixwarden_prefetch", &[]))
    };
    let (batch, prefetch) = of("[decode]\nthreads = 3").await;
    assert_eq!(prefetch, 2.0 * batch + 3.0 + 16.0 + 64.0, "{batch}");
    // 16 of these are for downloads. The remaining two allow only single images, whatever warm-up measured.
    let (bounded, prefetch) = of("[decode]\nthreads = 3\n[worker]\nprefetch = 18").await;
    assert_eq!((bounded, prefetch), (1.0, 18.0));
}

/// Stores every third fixture and publishes a job for each, a job for a missing object, a malformed message and a test
/// event. Returns the number of messages.
async fn load(lab: &Lab) -> usize {
    let fixtures: Vec<_> = judged_fixtures().into_iter().step_by(3).collect();
    for (i, fixture) in fixtures.iter().enumerate() {
        lab.put(&format!("{i:03}"), fixture.bytes.clone()).await;
    }
    for i in 0..fixtures.len() {
        let lane = if i % 3 == 0 { Lane::Backfill } else { Lane::Live };
        let image = format!("s3://{}/{i:03}", lab.bucket);
        lab.job(lane, json!({"id": format!("job-{i:03}"), "image": image})).await;
    }
    lab.job(Lane::Live, json!({"id": "absent", "image": format!("s3://{}/absent", lab.bucket)})).await;
    lab.publish(Lane::Live, "nonsense", BasicProperties::default()).await;
    let test = json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": lab.bucket});
    lab.job(Lane::Live, test).await;
    fixtures.len() + 3
}

/// Counts rows by a text column.
async fn counts(lab: &Lab, query: &'static str) -> BTreeMap<String, f64> {
    let rows: Vec<(String, i64)> = sqlx::query_as(query).fetch_all(&lab.db).await.unwrap();
    rows.into_iter().map(|(key, n)| (key, f64::from(u32::try_from(n).unwrap()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_has_every_metric_and_its_counters_equal_the_ledger() {
    let lab = Lab::new().await;
    lab.listen().await;
    let worker = lab.started_worker().await;
    let messages = load(&lab).await;
    let during = Scrape::of(&worker).await;
    let verdicts = i64::try_from(messages).unwrap() - 2;
    lab.until("SELECT count(*) FROM verdicts", verdicts, &worker).await;
    // The same content again. Its scores are stored by now.
    lab.job(Lane::Live, json!({"id": "again", "image": format!("s3://{}/000", lab.bucket)})).await;
    lab.until("SELECT count(*) FROM verdicts", verdicts + 1, &worker).await;
    lab.until_settled(&worker).await;
    lab.until_published(&worker).await;
    // No baseline of scores is stored, so that no drift is measured, no policy names a bank, there is no webhook, and nothing
    // was asked over HTTP.
    let absent = [
        "pixwarden_http_requests_total",
        "pixwarden_http_request_duration_seconds",
        "pixwarden_score_drift",
        "pixwarden_bank_version",
        "pixwarden_webhook_attempts_total",
        "pixwarden_webhook_waiting",
        "pixwarden_webhook_oldest_seconds",
    ];
    let measured = || metrics::ALL.iter().filter(|metric| !absent.contains(&metric.name));
    let expected: BTreeMap<_, _> = measured()
        // In the client library, `_total` is part of the sample's name, not of the metric's.
        .map(|metric| (metric.name.trim_end_matches("_total").to_owned(), metric.kind.as_str().to_owned()))
        .collect();
    for (name, kind) in &during.kinds {
        assert_eq!(expected.get(name), Some(kind), "{name}");
    }
    // Queue and outbox are absent until they were polled once.
    let since = Instant::now();
    let scrape = loop {
        let scrape = Scrape::of(&worker).await;
        if scrape.kinds == expected {
            break scrape;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}", scrape.kinds);
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    for metric in measured() {
        let names = |name: &str| name.strip_prefix(metric.name).is_some_and(|rest| ["", "_count"].contains(&rest));
        let samples: Vec<_> = scrape.samples.iter().filter(|(name, ..)| names(name)).collect();
        assert!(!samples.is_empty(), "{}", metric.name);
        for (_, labels, _) in samples {
            let (found, expected): (BTreeSet<_>, BTreeSet<_>) =
                (labels.keys().map(String::as_str).collect(), metric.labels.iter().copied().collect());
            assert_eq!(found, expected, "{}", metric.name);
        }
    }

    let rows = counts(&lab, "SELECT lane || ' ' || outcome, count(*) FROM verdicts GROUP BY 1").await;
    assert!(rows.len() > 5, "{rows:?}");
    for (key, n) in &rows {
        let (lane, outcome) = key.split_once(' ').unwrap();
        assert_eq!(scrape.sum("pixwarden_jobs_total", &[("lane", lane), ("outcome", outcome)]), *n, "{key}");
    }
    let verdicts = rows.values().sum::<f64>();
    assert_eq!(scrape.sum("pixwarden_jobs_total", &[]), verdicts);
    assert_eq!(scrape.sum("pixwarden_job_duration_seconds_count", &[]), verdicts);
    assert_eq!(scrape.sum("pixwarden_commit_verdicts_sum", &[]), verdicts);
    assert_eq!(scrape.sum("pixwarden_stage_duration_seconds_count", &[("stage", "commit")]), verdicts);

    let judged = counts(
        &lab,
        "SELECT policy->>'name', count(*) FROM verdicts WHERE outcome IN ('passed', 'review', 'flagged') GROUP BY 1",
    )
    .await;
    assert_eq!(judged.len(), 1, "{judged:?}");
    for (policy, n) in &judged {
        assert_eq!(scrape.sum("pixwarden_judgements_total", &[("policy", policy)]), *n, "{policy}");
    }
    let found = "SELECT finding->>'outcome', count(*) FROM verdicts, jsonb_array_elements(findings) finding GROUP BY 1";
    let found = counts(&lab, found).await;
    assert!(found.len() > 1, "{found:?}");
    for (outcome, n) in &found {
        assert_eq!(scrape.sum("pixwarden_findings_total", &[("outcome", outcome)]), *n, "{outcome}");
    }
    let scored = "SELECT 'by AI', count(*) FROM verdicts WHERE scores IS NOT NULL";
    for (label, n) in &counts(&lab, scored).await {
        assert_eq!(scrape.sum("pixwarden_scores_count", &[("label", label)]), *n, "reused scores count");
    }

    let settled = |settlement| scrape.sum("pixwarden_deliveries_total", &[("settlement", settlement)]);
    assert_eq!((settled("done"), settled("ignored"), settled("dead_lettered")), (verdicts, 1.0, 1.0));
    assert_eq!((settled("retried"), settled("split"), settled("returned")), (0.0, 0.0, 0.0));
    assert_eq!(scrape.sum("pixwarden_stage_duration_seconds_count", &[("stage", "settle")]), verdicts + 2.0);
    assert_eq!(scrape.sum("pixwarden_deliveries_held", &[]), 0.0);

    let published = counts(&lab, "SELECT routing_key, count(*) FROM outbox GROUP BY 1").await;
    assert!(published.len() > 2, "{published:?}");
    for (routing_key, n) in &published {
        let labels = [("routing_key", routing_key.as_str()), ("result", "published")];
        assert_eq!(scrape.sum("pixwarden_events_total", &labels), *n, "{routing_key}");
    }
    let events = published.values().sum::<f64>();
    assert_eq!(scrape.sum("pixwarden_events_total", &[]), events);
    assert_eq!(scrape.sum("pixwarden_stage_duration_seconds_count", &[("stage", "publish")]), events);

    let reused = lab.count("SELECT count(*) FROM verdicts WHERE reused_from IS NOT NULL").await;
    assert!(reused > 0);
    assert_eq!(scrape.sum("pixwarden_scores_reused_total", &[]), f64::from(u32::try_from(reused).unwrap()));
    let bytes = lab.count("SELECT sum(bytes)::bigint FROM verdicts").await;
    assert_eq!(scrape.sum("pixwarden_fetched_bytes_total", &[]), f64::from(u32::try_from(bytes).unwrap()));
    // Each frame is a view, and a transparent one may be two.
    let scored = "SELECT sum(least(frames, 8)) FROM verdicts WHERE scores IS NOT NULL AND reused_from IS NULL";
    let frames = f64::from(u32::try_from(lab.count(scored).await).unwrap());
    let views = scrape.sum("pixwarden_batch_images_sum", &[]);
    assert!(frames <= views && views <= 2.0 * frames, "{views} views of {frames} frames");
    assert!(scrape.sum("pixwarden_session_run_seconds_sum", &[]) > 0.0);
    for memory in ["decode", "object"] {
        assert_eq!(scrape.sum(&format!("pixwarden_{memory}_memory_bytes"), &[]), 0.0);
        assert!(scrape.sum(&format!("pixwarden_{memory}_memory_limit_bytes"), &[]) > 1e6);
    }
    assert_eq!(scrape.sum("pixwarden_broker_connections_total", &[]), 2.0);
    assert_eq!(scrape.sum("pixwarden_retries_total", &[]) + scrape.sum("pixwarden_ledger_errors_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_and_backlogs_are_counted() {
    let mut lab = Lab::new().await;
    lab.endpoint = crate::proxy::start(&lab.endpoint).await;
    lab.extra = "[worker]\nattempts = 2".into();
    lab.put("cut-1", judged_fixtures().remove(0).bytes).await;
    let worker = lab.started_worker().await;
    // No queue is bound to the key any more.
    let (queue, exchange) = (lab.topology.unscreened(), lab.topology.events());
    let (queue, exchange) = (queue.as_str().into(), exchange.as_str().into());
    let unbound = lab.channel.queue_unbind(queue, exchange, "image.failed".into(), FieldTable::default());
    unbound.await.unwrap();
    lab.job(Lane::Live, json!({"id": "j", "image": format!("s3://{}/cut-1", lab.bucket)})).await;
    lab.until("SELECT count(*) FROM verdicts WHERE outcome = 'failed'", 1, &worker).await;

    // Queues and outbox are polled every 15 s.
    let (dead, since) = (lab.topology.dead(), Instant::now());
    let scrape = loop {
        let scrape = Scrape::of(&worker).await;
        let failed = scrape.sum("pixwarden_outbox_events", &[("routing_key", "image.failed")]);
        if failed + scrape.sum("pixwarden_queue_messages", &[("queue", &dead)]) >= 2.0 {
            break scrape;
        }
        assert!(since.elapsed() < Duration::from_secs(40), "{failed} events, and the dead letter, are not counted");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert_eq!(scrape.sum("pixwarden_outbox_events", &[]), 1.0);
    assert!(scrape.sum("pixwarden_outbox_oldest_seconds", &[("routing_key", "image.failed")]) > 0.0);
    assert_eq!(scrape.sum("pixwarden_outbox_oldest_seconds", &[("routing_key", "image.flagged")]), 0.0);
    assert_eq!(scrape.sum("pixwarden_queue_messages", &[]), 1.0);
    let tries = [("routing_key", "image.failed"), ("result", "unroutable")];
    assert!(scrape.sum("pixwarden_events_total", &tries) >= 1.0);
    assert_eq!(scrape.sum("pixwarden_events_total", &[("result", "published")]), 0.0);
    assert_eq!(scrape.sum("pixwarden_retries_total", &[("cause", "object")]), 2.0);
    assert_eq!(scrape.sum("pixwarden_retries_total", &[]), 2.0);
    let settled = |settlement| scrape.sum("pixwarden_deliveries_total", &[("settlement", settlement)]);
    assert_eq!((settled("retried"), settled("dead_lettered"), settled("done")), (1.0, 1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_ready_while_it_consumes() {
    let lab = Lab::with_stoppable_services().await;
    lab.put("k", judged_fixtures().remove(0).bytes).await;
    let job = async |id: &str| lab.job(Lane::Live, json!({"id": id, "image": format!("s3://{}/k", lab.bucket)})).await;
    let gauges = async |worker: &Worker| {
        let scrape = Scrape::of(worker).await;
        let paused = |dependency| scrape.sum("pixwarden_intake_paused", &[("dependency", dependency)]);
        (scrape.sum("pixwarden_ready", &[]), paused("storage"), paused("ledger"))
    };

    // The database is frozen, so the worker waits for its first connection.
    fault(&["postgres", "pause"]).await;
    let mut worker = lab.worker();
    worker.until_ready_says(503, "starting").await;
    assert_eq!(worker.get("/healthz").await, (200, "alive\n".into()));
    assert_eq!(gauges(&worker).await, (0.0, 0.0, 0.0));
    fault(&["postgres", "continue"]).await;
    worker.until_ready_says(200, "consuming").await;
    assert_eq!(gauges(&worker).await, (1.0, 0.0, 0.0));

    fault(&["postgres", "stop"]).await;
    job("during-postgres").await;
    worker.until_ready_says(503, "paused: ledger: ").await;
    assert_eq!(gauges(&worker).await, (0.0, 0.0, 1.0));
    assert_eq!(worker.get("/healthz").await.0, 200);
    fault(&["postgres", "start"]).await;
    worker.until_ready_says(200, "consuming").await;

    fault(&["s3", "stop"]).await;
    job("during-s3").await;
    worker.until_ready_says(503, "paused: storage: ").await;
    assert_eq!(gauges(&worker).await, (0.0, 1.0, 0.0));
    fault(&["s3", "start"]).await;
    worker.until_ready_says(200, "consuming").await;
    assert_eq!(gauges(&worker).await, (1.0, 0.0, 0.0));
    lab.until("SELECT count(*) FROM verdicts WHERE attempts = 1", 2, &worker).await;

    fault(&["rabbitmq", "stop-app"]).await;
    worker.until_ready_says(503, "broker lost: ").await;
    assert_eq!(gauges(&worker).await, (0.0, 0.0, 0.0));
    fault(&["rabbitmq", "start-app"]).await;
    worker.until_ready_says(200, "consuming").await;
    let scrape = Scrape::of(&worker).await;
    assert!(scrape.sum("pixwarden_broker_connections_total", &[("connection", "consuming")]) > 1.0);
    assert!(scrape.sum("pixwarden_ledger_errors_total", &[("kind", "down")]) > 0.0);

    // A job that waits for the frozen database prolongs draining.
    fault(&["postgres", "pause"]).await;
    job("during-draining").await;
    let held = async || Scrape::of(&worker).await.sum("pixwarden_deliveries_held", &[("lane", "live")]);
    while held().await < 1.0 {
        tokio::task::yield_now().await;
    }
    worker.ask_to_end().await;
    worker.until_ready_says(503, "draining").await;
    assert_eq!(gauges(&worker).await.0, 0.0);
    fault(&["postgres", "continue"]).await;
    assert!(worker.terminate().await.success());
}

/// A collector: its address, and every span that it received.
async fn collector() -> (String, Arc<Mutex<Vec<Span>>>) {
    let spans = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&spans);
    let take = async move |body: axum::body::Bytes| {
        let request: ExportTraceServiceRequest = prost::Message::decode(body).unwrap();
        for resource in request.resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            assert!(attributes.iter().any(|a| a.key == "service.name" && format!("{a:?}").contains("screening")));
            into.lock().unwrap().extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    };
    let router = axum::Router::new().route("/v1/traces", axum::routing::post(take));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, spans)
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PRODUCER: &str = "b7ad6b7169203331";

/// The properties of a job with its sender's trace context.
fn traced(flags: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), text(&format!("00-{TRACE}-{PRODUCER}-{flags}")));
    headers.insert("tracestate".into(), text("congo=t61rcWkgMzE"));
    BasicProperties::default().with_headers(headers)
}

/// A lab with an image whose outcome is announced, the queue that receives the events, and a job for the image.
async fn announced() -> (Lab, String, Value) {
    let lab = Lab::new().await;
    let listener = lab.listen().await;
    let image = judged_fixtures().into_iter().find(|fixture| fixture.outcome == "flagged").unwrap().bytes;
    lab.put("k", image).await;
    let job = json!({"id": "job", "image": format!("s3://{}/k", lab.bucket), "metadata": {"secret": "s3cret"}});
    (lab, listener, job)
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a Attribute> {
    span.attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_producer_through_the_worker_to_the_consumer() {
    let (mut lab, listener, job) = announced().await;
    let (address, spans) = collector().await;
    lab.extra = "[worker]\nreuse_scores = false".into();
    lab.environment = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", address), ("OTEL_SERVICE_NAME", "screening".into())];
    let mut worker = lab.started_worker().await;
    lab.publish(Lane::Live, job.to_string(), traced("01")).await;
    let (event, properties) = lab.next(&listener).await;
    let traceparent = event["traceparent"].as_str().unwrap();
    assert_eq!(header(&properties, "traceparent").as_deref(), Some(traceparent));
    assert_eq!(header(&properties, "tracestate").as_deref(), Some("congo=t61rcWkgMzE"));

    // The sender decided not to sample this trace. The decision is propagated.
    let unsampled = json!({"id": "unsampled", "image": job["image"]}).to_string();
    lab.publish(Lane::Live, unsampled, traced("00")).await;
    let (unsampled, _) = lab.next(&listener).await;
    let unsampled = unsampled["traceparent"].as_str().unwrap().to_owned();
    assert!(unsampled.starts_with(&format!("00-{TRACE}-")) && unsampled.ends_with("-00"), "{unsampled}");
    // This job has no sender's trace and starts a new one.
    lab.job(Lane::Backfill, json!({"id": "own", "image": job["image"]})).await;
    let (own, _) = lab.next(&listener).await;
    lab.until_published(&worker).await;
    assert!(worker.terminate().await.success());

    let spans = spans.lock().unwrap();
    let shown = |bytes: &[u8]| hex::encode(bytes);
    let ours: Vec<_> = spans.iter().filter(|span| shown(&span.trace_id) == TRACE).collect();
    let named = |name: &str| -> &Span {
        let found: Vec<_> = ours.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name} among {ours:?}");
        found[0]
    };
    let root = named("job");
    assert_eq!((shown(&root.parent_span_id).as_str(), root.kind()), (PRODUCER, SpanKind::Consumer));
    assert_eq!(traceparent, format!("00-{TRACE}-{}-01", shown(&root.span_id)), "the event names the job's span");
    for stage in ["admit", "fetch", "decode", "infer", "commit", "publish", "settle"] {
        assert_eq!(named(stage).parent_span_id, root.span_id, "{stage}");
    }
    assert_eq!(ours.len(), 8, "{ours:?}");
    assert_eq!(named("publish").kind(), SpanKind::Producer);
    for (span, key, value) in [
        ("job", "pixwarden.job_id", "job"),
        ("job", "pixwarden.outcome", "flagged"),
        ("job", "pixwarden.lane", "live"),
        ("job", "pixwarden.image.bucket", &lab.bucket),
        ("job", "pixwarden.image.key", "k"),
        ("settle", "pixwarden.settlement", "done"),
    ] {
        assert_eq!(attribute(named(span), key), Some(&Attribute::StringValue(value.into())), "{span} {key}");
    }
    assert!(matches!(attribute(named("fetch"), "pixwarden.image.bytes"), Some(Attribute::IntValue(n)) if *n > 0));
    assert!(attribute(named("decode"), "pixwarden.image.format").is_some());
    assert!(!format!("{spans:?}").contains("s3cret"), "spans contain no metadata");

    let linked = |to: &Span| {
        let batches = spans.iter().filter(|span| span.name == "batch");
        batches.filter(|batch| batch.links.iter().any(|link| link.span_id == to.span_id)).count()
    };
    assert_eq!(linked(named("infer")), 1);
    assert!(spans.iter().filter(|span| span.name == "batch").all(|batch| shown(&batch.trace_id) != TRACE));
    let own = own["traceparent"].as_str().unwrap();
    let own_root = spans.iter().find(|span| span.name == "job" && own.contains(&shown(&span.span_id))).unwrap();
    assert!(own_root.parent_span_id.is_empty() && shown(&own_root.trace_id) != TRACE);

    let done = |id: &str| {
        let lines = worker.log();
        let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.rfind(|line| line["message"] == "job finished" && line["job_id"] == id).unwrap()
    };
    assert_eq!((&done("job")["span"]["name"], &done("job")["span"]["trace_id"]), (&json!("job"), &json!(TRACE)));
    assert_eq!(done("own")["span"]["trace_id"], shown(&own_root.trace_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_a_trace_passes_through_unchanged() {
    let (lab, listener, job) = announced().await;
    let worker = lab.started_worker().await;
    let reply_to = format!("reply-{}", lab.prefix);
    let options = lapin::options::QueueDeclareOptions::default();
    lab.channel.queue_declare(reply_to.as_str().into(), options, FieldTable::default()).await.unwrap();
    lab.publish(Lane::Live, job.to_string(), traced("03").with_reply_to(reply_to.as_str().into())).await;
    let expected = format!("00-{TRACE}-{PRODUCER}-03");
    for queue in [&listener, &reply_to] {
        let (event, properties) = lab.next(queue).await;
        assert_eq!((&event["traceparent"], &event["tracestate"]), (&json!(expected), &json!("congo=t61rcWkgMzE")));
        assert_eq!(header(&properties, "traceparent"), Some(expected.clone()));
    }
    // The log line is written after the event is published.
    let (line, since) = (format!("\"trace_id\":\"{TRACE}\""), Instant::now());
    while !worker.log().contains(&line) {
        assert!(since.elapsed() < Duration::from_secs(10), "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), text("00-1-2-01"));
    let body = json!({"id": "untraced", "image": job["image"]}).to_string();
    lab.publish(Lane::Live, body, BasicProperties::default().with_headers(headers)).await;
    let (event, properties) = lab.next(&listener).await;
    assert_eq!((event.get("traceparent"), header(&properties, "traceparent")), (None, None), "the header is invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unresponsive_collector_delays_neither_jobs_nor_the_end() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut lab, listener, job) = announced().await;
    lab.extra = format!("[traces]\nendpoint = \"http://{}/base/\"", silent.local_addr().unwrap());
    // It accepts connections and never responds.
    let asked = tokio::spawn(async move {
        let (mut stream, _) = silent.accept().await.unwrap();
        let mut head = [0; 28];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut head).await.unwrap();
        (String::from_utf8_lossy(&head).into_owned(), stream, silent)
    });
    let mut worker = lab.started_worker().await;
    for i in 0..100 {
        lab.job(Lane::Live, json!({"id": format!("j{i}"), "image": job["image"]})).await;
    }
    lab.until("SELECT count(*) FROM verdicts", 100, &worker).await;
    lab.until_published(&worker).await;
    assert_eq!(lab.drain(&listener).await.len(), 100);
    lab.until_settled(&worker).await;
    let since = Instant::now();
    assert!(worker.terminate().await.success());
    // Only spans remain to be sent, with a timeout of three seconds.
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    assert_eq!(asked.await.unwrap().0, "POST /base/v1/traces HTTP/1.");
}
