//! W3C Trace Context, read from and written to the headers of a message and the attributes of an event.

use std::str::FromStr;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use serde::Deserialize;

/// The length of a `tracestate` that the specification requires to be propagated. A longer one is dropped.
const MAX_TRACESTATE_CHARS: usize = 512;
/// A `traceparent` has 55 characters. A later version of the specification may append to it; this bounds how much.
const MAX_TRACEPARENT_CHARS: usize = 128;

/// `traceparent` and `tracestate`, as specified in <https://www.w3.org/TR/trace-context/>.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    traceparent: String,
    tracestate: Option<String>,
}

impl TraceContext {
    /// Parses both headers of an untrusted sender. An invalid `traceparent` counts as no trace, an invalid `tracestate` as
    /// no state.
    #[must_use]
    pub fn parse(traceparent: Option<String>, tracestate: Option<String>) -> Option<Self> {
        let traceparent = traceparent?;
        parse_traceparent(&traceparent)?;
        let is_valid = |state: &String| {
            state.len() <= MAX_TRACESTATE_CHARS
                && state.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
                && TraceState::from_str(state).is_ok()
        };
        Some(Self { traceparent, tracestate: tracestate.filter(is_valid) })
    }

    /// Parses CloudEvents' extension for distributed tracing in an event's JSON.
    #[must_use]
    pub fn from_event(payload: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Extension {
            traceparent: Option<String>,
            tracestate: Option<String>,
        }
        let Extension { traceparent, tracestate } = serde_json::from_str(payload).ok()?;
        Self::parse(traceparent, tracestate)
    }

    /// The context that makes another process's spans children of this span.
    pub(super) fn from_span_context(context: &SpanContext) -> Self {
        let (trace, span) = (context.trace_id(), context.span_id());
        let state = context.trace_state().header();
        Self {
            traceparent: format!("00-{trace}-{span}-{:02x}", u8::from(context.is_sampled())),
            tracestate: Some(state).filter(|state| !state.is_empty()),
        }
    }

    pub(super) fn span_context(&self) -> Option<SpanContext> {
        let (trace, span, flags) = parse_traceparent(&self.traceparent)?;
        let state = self.tracestate.as_ref().and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
        Some(SpanContext::new(trace, span, flags, true, state))
    }

    #[must_use]
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }
}

/// Parses `version-trace-span-flags`, all in lower-case hexadecimal digits.
fn parse_traceparent(traceparent: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let is_hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mut parts = traceparent.split('-');
    let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let has_valid_lengths = [version, trace, span, flags].map(str::len) == [2, 32, 16, 2];
    let has_valid_digits = [version, trace, span, flags].into_iter().all(is_hex);
    let has_valid_end = version != "00" || parts.next().is_none();
    if !has_valid_lengths
        || !has_valid_digits
        || !has_valid_end
        || version == "ff"
        || traceparent.len() > MAX_TRACEPARENT_CHARS
        || !traceparent.is_ascii()
    {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<TraceContext> {
        TraceContext::parse(Some(traceparent.to_owned()), tracestate.map(str::to_owned))
    }

    #[test]
    fn a_trace_context_is_parsed_and_written_as_specified() {
        let trace = parse(VALID, Some("congo=t61rcWkgMzE, rojo=1")).unwrap();
        let context = trace.span_context().unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(TraceContext::from_span_context(&context).traceparent(), VALID);
        assert_eq!(TraceContext::from_span_context(&context).tracestate(), Some("congo=t61rcWkgMzE,rojo=1"));
        // The second flag belongs to the specification's next level. It has no meaning for sampling.
        let unsampled = parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02", None).unwrap();
        assert!(!unsampled.span_context().unwrap().is_sampled());
        assert!(parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", None).is_some());
    }

    #[test]
    fn an_invalid_traceparent_counts_as_no_trace() {
        for invalid in [
            "",
            "00-1-2-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parse(invalid, None), None, "{invalid}");
        }
        assert_eq!(parse(&format!("01{}-{}", &VALID[2..], "x".repeat(100)), None), None);
        for invalid in ["nonsense", "a=1\0", &"a=1,".repeat(200)] {
            assert_eq!(parse(VALID, Some(invalid)).unwrap().tracestate(), None, "{invalid}");
        }
    }
}
