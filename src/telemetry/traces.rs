//! Spans for a collector: where a trace comes from, one span a job, one a stage, one a run of a session.
//!
//! They are of a target of their own, which no log line shows and only the exporter sees; without one, none of them is
//! ever made. The OpenTelemetry crates are named here and below, and nowhere else.

mod export;
mod parent;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use tracing::{Instrument, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::Stage;
use crate::job::{ImageRef, Lane};
pub use export::Exporter;
pub use parent::Parent;

/// The target of every span that is exported.
pub(super) const TARGET: &str = "pixwarden::trace";

/// Hands spans to an exporter.
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

/// Does a job's work in its spans: one for the collector, and one for log lines, which knows the trace's id.
pub async fn job<T>(lane: Lane, tag: u64, parent: Option<Parent>, work: impl Future<Output = T>) -> T {
    let span = info_span!(target: TARGET, parent: None, "job", otel.kind = "consumer", pixwarden.lane = %lane);
    belongs(&span, parent.as_ref());
    let context = context(&span).or_else(|| parent.and_then(|parent| parent.context()));
    let trace_id = context.map(|context| context.trace_id().to_string());
    let logged = info_span!("job", %lane, tag, trace_id);
    work.instrument(span).instrument(logged).await
}

/// The span of one image in a stage.
pub(super) fn stage(stage: Stage) -> Span {
    info_span!(target: TARGET, "stage", otel.name = stage.as_str())
}

/// The span of one event's publishing, which may be long after its job and in another process.
#[must_use]
pub fn publish(parent: Option<&Parent>) -> Span {
    let name = Stage::Publish.as_str();
    let span = info_span!(target: TARGET, parent: None, "publish", otel.name = name, otel.kind = "producer");
    belongs(&span, parent);
    span
}

/// A span that others may point to.
#[derive(Debug, Clone)]
pub struct Link(Option<SpanContext>);

impl Link {
    /// The current one.
    #[must_use]
    pub fn here() -> Self {
        Self(context(&Span::current()))
    }
}

/// The span of one run of a session, which belongs to no job and points to all of its own.
#[must_use]
pub fn batch<'a>(detector: &str, links: impl ExactSizeIterator<Item = &'a Link>) -> Span {
    let images = links.len();
    let span = info_span!(
        target: TARGET, parent: None, "batch", pixwarden.detector = detector, pixwarden.batch.images = images,
    );
    if !span.is_disabled() {
        links.filter_map(|link| link.0.clone()).for_each(|context| span.add_link(context));
    }
    span
}

/// What is to be told to others who go on with the current job: its span, or else where it came from.
#[must_use]
pub fn onward(parent: Option<&Parent>) -> Option<Parent> {
    context(&Span::current()).map(|context| Parent::of(&context)).or_else(|| parent.cloned())
}

/// The current job is about this image.
pub fn about(image: &ImageRef) {
    note("pixwarden.image.bucket", &image.bucket);
    note("pixwarden.image.key", &image.key);
}

/// Adds a text to the current span.
pub fn note(key: &'static str, text: &str) {
    let span = Span::current();
    if is_ours(&span) {
        span.set_attribute(key, text.to_owned());
    }
}

/// Adds a number to the current span.
pub fn count(key: &'static str, number: u64) {
    let span = Span::current();
    if is_ours(&span) {
        span.set_attribute(key, i64::try_from(number).unwrap_or(i64::MAX));
    }
}

fn belongs(span: &Span, parent: Option<&Parent>) {
    if span.is_disabled() {
        return;
    }
    if let Some(context) = parent.and_then(Parent::context)
        && let Err(error) = span.set_parent(Context::new().with_remote_span_context(context))
    {
        tracing::debug!(%error, "a span begins a trace of its own");
    }
}

fn context(span: &Span) -> Option<SpanContext> {
    let context = is_ours(span).then(|| span.context().span().span_context().clone());
    context.filter(SpanContext::is_valid)
}

fn is_ours(span: &Span) -> bool {
    span.metadata().is_some_and(|metadata| metadata.target() == TARGET)
}
