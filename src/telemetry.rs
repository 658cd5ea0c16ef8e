//! What the process says of itself: log lines to stderr, metrics and health over HTTP, traces to a collector.

pub mod http;
pub mod intake;
pub mod metrics;
pub mod options;
mod stage;
pub mod traces;

use std::io::{IsTerminal, stderr};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{ConfigError, LogConfig, LogFormat, TracesConfig};

pub use stage::{Stage, timed};

/// What is never logged, whatever the filter: the HTTP client traces every byte that it sends, tokens among them, and the
/// AMQP client prints the frames that it writes, the login among them, and returned messages whole, with what their
/// senders put into them. Spans for the collector are for it.
const SILENT: [&str; 6] =
    ["ureq", "ureq_proto", "lapin::io_loop", "lapin::frames", "lapin::returned_messages", traces::TARGET];

/// What has to be stopped when the process ends.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    traces: Option<traces::Exporter>,
}

/// Starts logging, and traces where they are configured; only a worker gives a configuration of them. A second call
/// changes nothing.
///
/// # Errors
/// When the log's filter is not one, or traces cannot be sent as configured.
pub fn start(log: &LogConfig, traces: Option<&TracesConfig>) -> Result<Telemetry, ConfigError> {
    let traces = traces.map_or(Ok(None), traces::Exporter::start)?;
    let filter = filter(log)?;
    let started = match &traces {
        // A filter of the layer's own would lose lines where it is the only one, after a library has asked the `log`
        // crate whether it may log: https://github.com/tokio-rs/tracing/issues/2519. Beside the exporter's, which wants
        // nothing of what lines show, every callsite is asked for anew, and nothing is lost.
        None => tracing_subscriber::registry().with(filter).with(lines(log)).try_init(),
        Some(exporter) => {
            tracing_subscriber::registry().with(traces::layer(exporter)).with(lines(log).with_filter(filter)).try_init()
        }
    };
    // Only tests start it twice.
    drop(started);
    Ok(Telemetry { traces })
}

impl Telemetry {
    /// Sends what is left to be sent, for a few seconds at the most.
    pub fn stop(self) {
        if let Some(traces) = self.traces {
            traces.stop();
        }
    }
}

/// Lines on stderr: text on a terminal and JSON otherwise, unless told.
fn lines<S>(log: &LogConfig) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    let is_terminal = stderr().is_terminal();
    let json = match log.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = fmt::layer().with_writer(stderr);
    if json {
        lines.json().flatten_event(true).with_span_list(false).boxed()
    } else {
        lines.with_ansi(is_terminal).with_target(false).boxed()
    }
}

fn filter(log: &LogConfig) -> Result<EnvFilter, ConfigError> {
    let wrong = |what: String| ConfigError::Invalid { option: "log.filter".into(), what };
    let mut filter = EnvFilter::builder().parse(&log.filter).map_err(|e| wrong(e.to_string()))?;
    for target in SILENT {
        filter = filter.add_directive(format!("{target}=off").parse().map_err(|e| wrong(format!("{target}: {e}")))?);
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_collector_no_span_for_it_is_made() {
        let log = LogConfig { filter: "pixwarden=trace".into(), ..LogConfig::default() };
        let traces = start(&log, Some(&TracesConfig::default())).unwrap();
        assert!(traces.traces.is_none());
        assert!(!tracing::info_span!("job").is_disabled(), "log lines have theirs");
        assert!(traces::stage(Stage::Fetch).is_disabled());
    }
}
