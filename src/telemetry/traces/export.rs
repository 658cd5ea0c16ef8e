//! Sends spans to a collector: OTLP over HTTP with protocol buffers, in batches, on a thread of the SDK.
//!
//! Without a reachable collector only spans are lost. They wait in a queue of limited length; when it is full, new spans are
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

/// The time that the collector has to respond to one batch.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The time for sending the remaining spans at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// The shortest time between two warnings about the collector.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// More than the images of the largest batch.
const MAX_LINKS: u32 = 1024;
/// A collector's response has a few bytes. This bounds a wrong one.
const MAX_RESPONSE_BYTES: u64 = 1 << 20;

/// Sends spans to a collector.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Starts the exporter if an endpoint is configured, by the option or by OpenTelemetry's environment variables.
    ///
    /// # Errors
    /// If the configuration or one of the variables is invalid.
    pub fn start(config: &TracesConfig) -> Result<Option<Self>, ConfigError> {
        if !is_enabled(config, |name| std::env::var(name).ok()) {
            return Ok(None);
        }
        let mut builder =
            SpanExporter::builder().with_http().with_http_client(CollectorClient::new()).with_retry_policy(
                // One retry, because the collector may have closed the idle connection.
                RetryPolicy::disabled().with_max_retries(1).with_initial_delay(Duration::from_millis(100)),
            );
        // Without the option, the SDK reads the endpoint from the environment variables.
        if !config.endpoint.is_empty() {
            builder = builder.with_endpoint(format!("{}/v1/traces", config.endpoint.trim_end_matches('/')));
        }
        let exporter = builder.build().map_err(|e| ConfigError::Invalid {
            option: "traces.endpoint".into(),
            what: format!(
                "cannot start the exporter: {e}\n  hint: check this option and the variables OTEL_EXPORTER_OTLP_*"
            ),
        })?;
        let service = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
        let resource = Resource::builder()
            .with_service_name(service.unwrap_or_else(|| "pixwarden".into()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let sampler = Sampler::ParentBased(Box::new(SamplerByLinks(Sampler::TraceIdRatioBased(config.sample))));
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

    /// Sends the remaining spans. Takes a few seconds at most.
    pub fn stop(self) {
        if let Err(e) = self.0.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::debug!(error = %e, "remaining spans were not sent");
        }
    }
}

/// Whether traces are configured.
fn is_enabled(config: &TracesConfig, variable: impl Fn(&str) -> Option<String>) -> bool {
    let is_set = |name| variable(name).is_some_and(|value| !value.is_empty());
    let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let by_variable = is_set("OTEL_EXPORTER_OTLP_ENDPOINT") || is_set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    !config.endpoint.is_empty() || (by_variable && !is_disabled)
}

/// Samples a span that has links exactly if one of the linked spans is sampled. The inner sampler decides about the rest.
#[derive(Debug, Clone)]
struct SamplerByLinks(Sampler);

impl ShouldSample for SamplerByLinks {
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
            let is_sampled = links.iter().any(|link| link.span_context.is_sampled());
            result.decision = if is_sampled { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        }
        result
    }
}

/// A blocking HTTP client. It runs on the SDK's thread, which does nothing else.
#[derive(Debug)]
struct CollectorClient {
    agent: Agent,
    last_warning: Mutex<Option<Instant>>,
}

impl CollectorClient {
    fn new() -> Self {
        let config = Agent::config_builder()
            .tls_config(certificates::of_the_system().0)
            .user_agent(concat!("pixwarden/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(RESPONSE_TIMEOUT))
            .http_status_as_error(false)
            .build();
        Self { agent: config.into(), last_warning: Mutex::default() }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (parts, body) = request.into_parts();
        let (parts, mut body) = self.agent.run(Request::from_parts(parts, body.as_ref()))?.into_parts();
        let body = body.with_config().limit(MAX_RESPONSE_BYTES).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }

    fn warn(&self, error: &str) {
        let mut last_warning = self.last_warning.lock().unwrap_or_else(PoisonError::into_inner);
        if last_warning.is_none_or(|at| at.elapsed() > WARNING_INTERVAL) {
            *last_warning = Some(Instant::now());
            tracing::warn!(error, "spans were lost: the collector did not accept them");
        }
    }
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.send(request);
        match &response {
            Ok(response) if response.status().is_success() => {}
            Ok(response) => self.warn(&format!("HTTP status {}", response.status())),
            Err(error) => self.warn(&error.to_string()),
        }
        Ok(response?)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};

    use super::*;

    #[test]
    fn a_batch_is_sampled_exactly_if_one_of_its_jobs_is() {
        let link = |flags| {
            let (trace, span) = (TraceId::from(1), SpanId::from(1));
            Link::with_context(SpanContext::new(trace, span, flags, false, TraceState::NONE))
        };
        let (sampled, dropped) = (link(TraceFlags::SAMPLED), link(TraceFlags::NOT_SAMPLED));
        for (sampler, links, expected) in [
            (Sampler::AlwaysOff, vec![dropped.clone(), sampled], SamplingDecision::RecordAndSample),
            (Sampler::AlwaysOn, vec![dropped], SamplingDecision::Drop),
            (Sampler::AlwaysOn, vec![], SamplingDecision::RecordAndSample),
            (Sampler::AlwaysOff, vec![], SamplingDecision::Drop),
        ] {
            let sampler = SamplerByLinks(sampler);
            let result = sampler.should_sample(None, TraceId::from(2), "batch", &SpanKind::Internal, &[], &links);
            assert_eq!(result.decision, expected, "{links:?}");
        }
    }

    #[test]
    fn traces_are_off_unless_configured() {
        let enabled = |endpoint: &str, variables: &[(&str, &str)]| {
            let config = TracesConfig { endpoint: endpoint.into(), ..TracesConfig::default() };
            is_enabled(&config, |name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        assert!(!enabled("", &[]));
        assert!(!enabled("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(enabled("http://c:4318", &[]));
        for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] {
            assert!(enabled("", &[(name, "http://c:4318")]));
            assert!(!enabled("", &[(name, "http://c:4318"), ("OTEL_SDK_DISABLED", "true")]));
        }
    }
}
