//! Where a trace comes from and goes on: W3C Trace Context, as headers of a message and as attributes of an event.

use std::str::FromStr;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use serde::Deserialize;

/// As many characters of `tracestate` have to be passed on; more are not.
const MAX_STATE_CHARS: usize = 512;
/// A later version may append to the 55 characters of this one, but not without end.
const MAX_PARENT_CHARS: usize = 128;

/// A span elsewhere that ours belong to: `traceparent` and `tracestate` as <https://www.w3.org/TR/trace-context/> has
/// them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    traceparent: String,
    tracestate: Option<String>,
}

impl Parent {
    /// Reads what a sender says, who is not trusted: a `traceparent` that is not one counts as none.
    #[must_use]
    pub fn read(traceparent: Option<String>, tracestate: Option<String>) -> Option<Self> {
        let traceparent = traceparent?;
        ids(&traceparent)?;
        let sound = |state: &String| {
            state.len() <= MAX_STATE_CHARS
                && state.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
                && TraceState::from_str(state).is_ok()
        };
        Some(Self { traceparent, tracestate: tracestate.filter(sound) })
    }

    /// Reads it from an event's JSON, where it is CloudEvents' extension for distributed tracing.
    #[must_use]
    pub fn of_event(payload: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Extension {
            traceparent: Option<String>,
            tracestate: Option<String>,
        }
        let Extension { traceparent, tracestate } = serde_json::from_str(payload).ok()?;
        Self::read(traceparent, tracestate)
    }

    /// The span of our own that others shall belong to.
    pub(super) fn of(context: &SpanContext) -> Self {
        let (trace, span) = (context.trace_id(), context.span_id());
        let state = context.trace_state().header();
        Self {
            traceparent: format!("00-{trace}-{span}-{:02x}", u8::from(context.is_sampled())),
            tracestate: Some(state).filter(|state| !state.is_empty()),
        }
    }

    pub(super) fn context(&self) -> Option<SpanContext> {
        let (trace, span, flags) = ids(&self.traceparent)?;
        let state = self.tracestate.as_ref().and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
        Some(SpanContext::new(trace, span, flags, true, state))
    }

    /// The header.
    #[must_use]
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The other header.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }
}

/// Reads `version-trace-span-flags`, all in lower-case hexadecimal digits.
fn ids(traceparent: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let is_hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mut parts = traceparent.split('-');
    let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let lengths = [version, trace, span, flags].map(str::len) == [2, 32, 16, 2];
    let hex = [version, trace, span, flags].into_iter().all(is_hex);
    let ended = version != "00" || parts.next().is_none();
    if !lengths || !hex || !ended || version == "ff" || traceparent.len() > MAX_PARENT_CHARS || !traceparent.is_ascii()
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

    const SOUND: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(traceparent: &str, tracestate: Option<&str>) -> Option<Parent> {
        Parent::read(Some(traceparent.to_owned()), tracestate.map(str::to_owned))
    }

    #[test]
    fn a_parent_is_read_and_written_as_the_specification_has_it() {
        let parent = read(SOUND, Some("congo=t61rcWkgMzE, rojo=1")).unwrap();
        let context = parent.context().unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(Parent::of(&context).traceparent(), SOUND);
        assert_eq!(Parent::of(&context).tracestate(), Some("congo=t61rcWkgMzE,rojo=1"));
        // The second flag is of the specification's next level; it says nothing about sampling.
        let unsampled = read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02", None).unwrap();
        assert!(!unsampled.context().unwrap().is_sampled());
        assert!(read("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", None).is_some());
    }

    #[test]
    fn what_is_no_parent_counts_as_none() {
        for wrong in [
            "",
            "00-1-2-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(read(wrong, None), None, "{wrong}");
        }
        assert_eq!(read(&format!("01{}-{}", &SOUND[2..], "x".repeat(100)), None), None);
        for wrong in ["nonsense", "a=1\0", &"a=1,".repeat(200)] {
            assert_eq!(read(SOUND, Some(wrong)).unwrap().tracestate(), None, "{wrong}");
        }
    }
}
