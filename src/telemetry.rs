//! What the process says of itself: log lines to stderr, metrics and health over HTTP, traces to a collector.

pub mod http;
pub mod intake;
pub mod metrics;
mod stage;
pub mod traces;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{LogConfig, LogFormat};

pub use stage::{Stage, timed};

/// What is never logged, whatever the filter: the HTTP client traces every byte that it sends, the hub's token among them,
/// and the AMQP client prints returned messages whole, with what their senders put into them.
const SILENT: [&str; 3] = ["ureq=off", "ureq_proto=off", "lapin::returned_messages=off"];

/// Starts logging. A second call changes nothing.
///
/// # Errors
/// When the filter is not one.
pub fn start(config: &LogConfig) -> Result<(), ParseError> {
    let mut filter = EnvFilter::builder().parse(&config.filter)?;
    for directive in SILENT {
        filter = filter.add_directive(directive.parse()?);
    }
    let json = match config.format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if json {
        builder.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init()
    };
    // Only tests start it twice.
    drop(started);
    Ok(())
}
