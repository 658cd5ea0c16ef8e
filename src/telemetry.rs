//! What the process says of itself: to stderr, as text on a terminal and as JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{LogConfig, LogFormat};

/// Starts logging. A second call changes nothing.
///
/// # Errors
/// When the filter is not one.
pub fn start(config: &LogConfig) -> Result<(), ParseError> {
    // The HTTP client traces every byte that it sends, and the hub's token is among them.
    let filter = EnvFilter::builder().parse(&config.filter)?;
    let filter = filter.add_directive("ureq=off".parse()?).add_directive("ureq_proto=off".parse()?);
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
