//! Spans for a collector: one per job, one per stage, one per session run.
//!
//! They have their own target. No log line shows it; only the exporter takes it, and without an exporter no such span is
//! ever created. No other module names the OpenTelemetry crates.

mod context;
mod export;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use tracing::{Instrument, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::Stage;
use crate::job::{ImageRef, Lane};
pub use context::TraceContext;
pub use export::Exporter;

/// The target of every exported span.
pub(super) const TARGET: &str = "pixwarden::trace";

/// The layer that passes spans to the exporter.
pub(super) fn layer<S>(exporter: &Exporter) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_tracer(exporter.tracer())
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target(TARGET, tracing::Level::INFO))
}

/// Runs a job's work in two spans: one for the collector, and one for log lines, which includes the trace's id.
pub async fn in_job_span<T>(lane: Lane, tag: u64, parent: Option<TraceContext>, work: impl Future<Output = T>) -> T {
    let (span, trace_id) = job_span("consumer", lane, parent);
    let log_span = info_span!("job", %lane, tag, trace_id);
    work.instrument(span).instrument(log_span).await
}

/// As [`in_job_span`], for a job that came over HTTP.
pub async fn in_request_span<T>(lane: Lane, parent: Option<TraceContext>, work: impl Future<Output = T>) -> T {
    let (span, trace_id) = job_span("server", lane, parent);
    let log_span = info_span!("request", %lane, trace_id);
    work.instrument(span).instrument(log_span).await
}

/// The span of a job for the collector, and the trace's id for log lines. `kind` says how the job came.
fn job_span(kind: &'static str, lane: Lane, parent: Option<TraceContext>) -> (Span, Option<String>) {
    let span = info_span!(target: TARGET, parent: None, "job", otel.kind = kind, pixwarden.lane = %lane);
    set_parent(&span, parent.as_ref());
    let context = span_context(&span).or_else(|| parent.and_then(|parent| parent.span_context()));
    (span, context.map(|context| context.trace_id().to_string()))
}

/// The span of one image in a stage.
pub(super) fn stage_span(stage: Stage) -> Span {
    info_span!(target: TARGET, "stage", otel.name = stage.as_str())
}

/// The span of publishing one event. The outbox may publish it long after the job's span ended, in another process.
#[must_use]
pub fn publish_span(parent: Option<&TraceContext>) -> Span {
    let name = Stage::Publish.as_str();
    let span = info_span!(target: TARGET, parent: None, "publish", otel.name = name, otel.kind = "producer");
    set_parent(&span, parent);
    span
}

/// A span that another span can link to.
#[derive(Debug, Clone)]
pub struct SpanLink(Option<SpanContext>);

impl SpanLink {
    /// A link to the current span.
    #[must_use]
    pub fn current() -> Self {
        Self(span_context(&Span::current()))
    }
}

/// The span of one session run. It has no parent, and links to the spans of all its images.
#[must_use]
pub fn batch_span<'a>(detector: &str, links: impl ExactSizeIterator<Item = &'a SpanLink>) -> Span {
    let images = links.len();
    let span = info_span!(
        target: TARGET, parent: None, "batch", pixwarden.detector = detector, pixwarden.batch.images = images,
    );
    if !span.is_disabled() {
        links.filter_map(|link| link.0.clone()).for_each(|context| span.add_link(context));
    }
    span
}

/// The trace context for messages that follow from the current job: the current span, or without traces the received
/// context unchanged.
#[must_use]
pub fn context_to_propagate(received: Option<&TraceContext>) -> Option<TraceContext> {
    let current = span_context(&Span::current());
    current.map(|context| TraceContext::from_span_context(&context)).or_else(|| received.cloned())
}

/// Adds the image to the current span.
pub fn record_image(image: &ImageRef) {
    record_text("pixwarden.image.bucket", &image.bucket);
    record_text("pixwarden.image.key", &image.key);
}

/// Adds a text attribute to the current span.
pub fn record_text(key: &'static str, text: &str) {
    let span = Span::current();
    if is_exported(&span) {
        span.set_attribute(key, text.to_owned());
    }
}

/// Adds a number attribute to the current span.
pub fn record_number(key: &'static str, number: u64) {
    let span = Span::current();
    if is_exported(&span) {
        span.set_attribute(key, i64::try_from(number).unwrap_or(i64::MAX));
    }
}

fn set_parent(span: &Span, parent: Option<&TraceContext>) {
    if span.is_disabled() {
        return;
    }
    if let Some(context) = parent.and_then(TraceContext::span_context)
        && let Err(error) = span.set_parent(Context::new().with_remote_span_context(context))
    {
        tracing::debug!(%error, "span without its parent: it starts a new trace");
    }
}

fn span_context(span: &Span) -> Option<SpanContext> {
    let context = is_exported(span).then(|| span.context().span().span_context().clone());
    context.filter(SpanContext::is_valid)
}

fn is_exported(span: &Span) -> bool {
    span.metadata().is_some_and(|metadata| metadata.target() == TARGET)
}
