//! Spans → a collector, over OTLP/HTTP with protocol buffers, in batches on a thread of the SDK's own.
//!
//! A collector that is away costs spans and nothing else: they wait in a queue with an end, and what does not fit is
//! dropped.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use opentelemetry::trace::{Link, SpanKind, TraceId, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample};
use ureq::Agent;

use crate::certificates;
use crate::config::{ConfigError, TracesConfig};

/// Longest wait for the collector's answer to one batch.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest wait for the last spans to arrive, when the process ends.
const FLUSH: Duration = Duration::from_secs(3);
/// How often it is said that the collector cannot be reached.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// As many jobs as a batch may have, and more.
const MAX_LINKS: u32 = 1024;
/// A collector answers with a few bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// The way to a collector.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// The configured way, if there is one.
    ///
    /// # Errors
    /// When what is configured, here or in the standard variables, makes no sense.
    pub fn start(config: &TracesConfig) -> Result<Option<Self>, ConfigError> {
        if !is_wanted(config, |name| std::env::var(name).ok()) {
            return Ok(None);
        }
        let mut builder = SpanExporter::builder().with_http().with_http_client(Client::new()).with_retry_policy(
            // Once, for a connection that the collector has closed meanwhile.
            RetryPolicy::disabled().with_max_retries(1).with_initial_delay(Duration::from_millis(100)),
        );
        // Without one of ours, the standard variables name it.
        if !config.endpoint.is_empty() {
            builder = builder.with_endpoint(format!("{}/v1/traces", config.endpoint.trim_end_matches('/')));
        }
        let exporter = builder.build().map_err(|e| ConfigError::Invalid {
            option: "traces.endpoint".into(),
            what: format!("no traces can be sent: {e}\n  hint: check it and the OTEL_EXPORTER_OTLP_* variables"),
        })?;
        let service = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
        let resource = Resource::builder()
            .with_service_name(service.unwrap_or_else(|| "pixwarden".into()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let sampler = Sampler::ParentBased(Box::new(WithItsJobs(Sampler::TraceIdRatioBased(config.sample))));
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_sampler(sampler)
            .with_max_links_per_span(MAX_LINKS)
            .with_batch_exporter(exporter);
        Ok(Some(Self(provider.build())))
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.0.tracer("pixwarden")
    }

    /// Sends what is left, for a few seconds at the most.
    pub fn stop(self) {
        if let Err(e) = self.0.shutdown_with_timeout(FLUSH) {
            tracing::debug!(error = %e, "the last spans did not arrive");
        }
    }
}

/// Whether somebody asked for traces.
fn is_wanted(config: &TracesConfig, variable: impl Fn(&str) -> Option<String>) -> bool {
    let is_set = |name| variable(name).is_some_and(|value| !value.is_empty());
    let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let by_variable = is_set("OTEL_EXPORTER_OTLP_ENDPOINT") || is_set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    !config.endpoint.is_empty() || (by_variable && !is_disabled)
}

/// Keeps a run of a session where one of its jobs is kept, and decides itself about the rest.
#[derive(Debug, Clone)]
struct WithItsJobs(Sampler);

impl ShouldSample for WithItsJobs {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let mut result = self.0.should_sample(parent, trace, name, kind, attributes, links);
        if !links.is_empty() {
            let is_kept = links.iter().any(|link| link.span_context.is_sampled());
            result.decision = if is_kept { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        }
        result
    }
}

/// An HTTP client that blocks, as its thread has nothing else to do.
#[derive(Debug)]
struct Client {
    agent: Agent,
    said: Mutex<Option<Instant>>,
}

impl Client {
    fn new() -> Self {
        let config = Agent::config_builder()
            .tls_config(certificates::of_the_system().0)
            .user_agent(concat!("pixwarden/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(ANSWER))
            .http_status_as_error(false)
            .build();
        Self { agent: config.into(), said: Mutex::default() }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (parts, body) = request.into_parts();
        let (parts, mut body) = self.agent.run(Request::from_parts(parts, body.as_ref()))?.into_parts();
        let body = body.with_config().limit(MAX_ANSWER_BYTES).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }

    fn say(&self, what: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|at| at.elapsed() > SAY_AGAIN) {
            *said = Some(Instant::now());
            tracing::warn!(error = what, "the collector takes no traces, and they are lost");
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.send(request);
        match &answer {
            Ok(answer) if answer.status().is_success() => {}
            Ok(answer) => self.say(&format!("it answers {}", answer.status())),
            Err(error) => self.say(&error.to_string()),
        }
        Ok(answer?)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};

    use super::*;

    #[test]
    fn a_run_is_kept_exactly_where_one_of_its_jobs_is() {
        let link = |flags| {
            let (trace, span) = (TraceId::from(1), SpanId::from(1));
            Link::with_context(SpanContext::new(trace, span, flags, false, TraceState::NONE))
        };
        let (kept, dropped) = (link(TraceFlags::SAMPLED), link(TraceFlags::NOT_SAMPLED));
        for (sampler, links, expected) in [
            (Sampler::AlwaysOff, vec![dropped.clone(), kept], SamplingDecision::RecordAndSample),
            (Sampler::AlwaysOn, vec![dropped], SamplingDecision::Drop),
            (Sampler::AlwaysOn, vec![], SamplingDecision::RecordAndSample),
            (Sampler::AlwaysOff, vec![], SamplingDecision::Drop),
        ] {
            let sampler = WithItsJobs(sampler);
            let result = sampler.should_sample(None, TraceId::from(2), "batch", &SpanKind::Internal, &[], &links);
            assert_eq!(result.decision, expected, "{links:?}");
        }
    }

    #[test]
    fn traces_are_off_unless_asked_for() {
        let wanted = |endpoint: &str, variables: &[(&str, &str)]| {
            let config = TracesConfig { endpoint: endpoint.into(), ..TracesConfig::default() };
            is_wanted(&config, |name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        assert!(!wanted("", &[]));
        assert!(!wanted("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(wanted("http://c:4318", &[]));
        for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] {
            assert!(wanted("", &[(name, "http://c:4318")]));
            assert!(!wanted("", &[(name, "http://c:4318"), ("OTEL_SDK_DISABLED", "true")]));
        }
    }
}
