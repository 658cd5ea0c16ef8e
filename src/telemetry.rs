//! Observability: log lines on stderr, metrics and health over HTTP, traces to a collector.

pub mod http;
pub mod intake;
pub mod metrics;
pub mod options;
mod stage;
pub mod traces;

use std::io::{IsTerminal, stderr};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{ConfigError, LogConfig, LogFormat, TracesConfig};

pub use stage::{Stage, timed, with_stage_times};

/// Targets that are never logged, whatever the filter. The HTTP client logs every byte that it sends, including tokens. The
/// AMQP client logs the frames that it writes, including the login, and returned messages with all their content. The last
/// target holds the spans for the collector.
const EXCLUDED_TARGETS: [&str; 6] =
    ["ureq", "ureq_proto", "lapin::io_loop", "lapin::frames", "lapin::returned_messages", traces::TARGET];

/// What must be stopped at the end of the process.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    traces: Option<traces::Exporter>,
}

/// Starts logging, and traces if they are configured. Only a worker passes a configuration for traces. A second call changes
/// nothing.
///
/// # Errors
/// If the log filter cannot be parsed, or the exporter of traces cannot be started.
pub fn start(log: &LogConfig, traces: Option<&TracesConfig>) -> Result<Telemetry, ConfigError> {
    let traces = traces.map_or(Ok(None), traces::Exporter::start)?;
    let filter = log_filter(log)?;
    let started = match &traces {
        // Without an exporter the filter must be a layer. A filter attached to the only other layer loses lines after a
        // library has asked the `log` crate whether it may log: https://github.com/tokio-rs/tracing/issues/2519. With the
        // exporter's layer, which takes none of the logged targets, no line is lost.
        None => tracing_subscriber::registry().with(filter).with(log_layer(log)).try_init(),
        Some(exporter) => tracing_subscriber::registry()
            .with(traces::layer(exporter))
            .with(log_layer(log).with_filter(filter))
            .try_init(),
    };
    // An error means that logging was started before. Only tests do that.
    drop(started);
    Ok(Telemetry { traces })
}

impl Telemetry {
    /// Sends the remaining spans. Takes a few seconds at most.
    pub fn stop(self) {
        if let Some(traces) = self.traces {
            traces.stop();
        }
    }
}

/// Writes log lines to stderr. The default format is text on a terminal and JSON otherwise.
fn log_layer<S>(log: &LogConfig) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    let is_terminal = stderr().is_terminal();
    let is_json = match log.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // A line that cannot be written is lost. Its report would go to stderr too, and would end the process with a panic.
    let layer = fmt::layer().with_writer(stderr).log_internal_errors(false);
    if is_json {
        layer.json().flatten_event(true).with_span_list(false).boxed()
    } else {
        layer.with_ansi(is_terminal).with_target(false).boxed()
    }
}

/// The directives for libraries that report as errors what we report ourselves, where the filter does not name them.
fn quiet_directives(filter: &str) -> impl Iterator<Item = &'static str> {
    let given: Vec<&str> = filter.split(',').map(str::trim).collect();
    let is_named = |target: &str| {
        given.iter().any(|directive| {
            directive.strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest.starts_with(['=', ':', '[']))
        })
    };
    // Where nothing else is logged, this would add lines.
    let has_level = given.iter().any(|word| word.parse::<LevelFilter>().is_ok_and(|level| level != LevelFilter::OFF));
    let quiet = [("lapin", "lapin=off", true), ("aws_config", "aws_config=off", true), ("ort", "ort=error", has_level)];
    let named = quiet.map(|(target, ..)| is_named(target));
    quiet.into_iter().zip(named).filter(|((.., fits), named)| *fits && !named).map(|((_, directive, _), _)| directive)
}

fn log_filter(log: &LogConfig) -> Result<EnvFilter, ConfigError> {
    let invalid = |what: String| ConfigError::Invalid { option: "log.filter".into(), what };
    let mut filter = EnvFilter::builder().parse(&log.filter).map_err(|e| invalid(e.to_string()))?;
    for quiet in quiet_directives(&log.filter) {
        filter = filter.add_directive(quiet.parse().map_err(|e| invalid(format!("{quiet}: {e}")))?);
    }
    for target in EXCLUDED_TARGETS {
        let directive = format!("{target}=off").parse().map_err(|e| invalid(format!("{target}: {e}")))?;
        filter = filter.add_directive(directive);
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_keeps_the_libraries_quiet_that_it_does_not_name() {
        let quiet = |filter| quiet_directives(filter).collect::<Vec<_>>();
        assert_eq!(quiet("error"), ["lapin=off", "aws_config=off", "ort=error"]);
        assert_eq!(quiet("info,lapin=off,ort=error"), ["aws_config=off"]);
        assert_eq!(quiet("debug, ort::logging=info"), ["lapin=off", "aws_config=off"]);
        assert_eq!(quiet("off"), ["lapin=off", "aws_config=off"]);
        assert_eq!(quiet("pixwarden=debug"), ["lapin=off", "aws_config=off"]);
    }

    #[test]
    fn without_a_collector_no_span_is_created_for_it() {
        let log = LogConfig { filter: "pixwarden=trace".into(), ..LogConfig::default() };
        let telemetry = start(&log, Some(&TracesConfig::default())).unwrap();
        assert!(telemetry.traces.is_none());
        assert!(!tracing::info_span!("job").is_disabled(), "log lines have their own span");
        assert!(traces::stage_span(Stage::Fetch).is_disabled());
    }
}
