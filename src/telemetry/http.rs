//! A worker's endpoints `/metrics`, `/healthz` and `/readyz`. All are read-only.

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;

use super::intake::{Intake, IntakeState};
use super::metrics;
use crate::config::ConfigError;

/// A worker without `metrics.listen` takes the first free port of these, so that several can run on one machine.
const DEFAULT_PORTS: std::ops::RangeInclusive<u16> = 9464..=9473;
/// Recorded values are moved into their buckets this often, in case nothing scrapes them.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Listens at `address`: `host:port`, `off` for no listener, or empty for the first free default port on loopback.
///
/// # Errors
/// If the address cannot be bound.
pub async fn listen(address: &str) -> Result<Option<TcpListener>, ConfigError> {
    let listener = match address {
        "off" => return Ok(None),
        "" => bind_first_free_port().await?,
        address => TcpListener::bind(address).await.map_err(|error| refused(address, error))?,
    };
    Ok(Some(listener))
}

const HINT: &str = "\n  hint: choose another \"host:port\", or \"off\"";

fn refused(address: &str, error: io::Error) -> ConfigError {
    ConfigError::Refused { option: "metrics.listen".into(), what: format!("cannot listen at {address}{HINT}"), error }
}

async fn bind_first_free_port() -> Result<TcpListener, ConfigError> {
    for port in DEFAULT_PORTS {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {}
            bound => return bound.map_err(|error| refused(&format!("127.0.0.1:{port}"), error)),
        }
    }
    let (first, last) = (DEFAULT_PORTS.start(), DEFAULT_PORTS.end());
    let what = format!("cannot listen at 127.0.0.1: the ports {first} to {last} are all in use{HINT}");
    Err(ConfigError::invalid("metrics.listen", what))
}

/// Serves the endpoints for as long as the process lives.
pub async fn serve(listener: TcpListener, intake: Intake) {
    match listener.local_addr() {
        Ok(address) => tracing::info!(%address, "metrics and health are served"),
        Err(e) => tracing::warn!(error = %e, "metrics and health are served, but the address could not be read"),
    }
    let for_readiness = intake.clone();
    let readiness = move || {
        let state = for_readiness.state();
        let status = if state.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        async move { (status, format!("{state}\n")) }
    };
    // A task that ends unexpectedly ends the process. So an answer proves that all of them live. A process that hangs while
    // it ends is not alive.
    let liveness = move || {
        let state = intake.state();
        let is_broken = matches!(state, IntakeState::Broken(_));
        let answer = if is_broken {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{state}\n"))
        } else {
            (StatusCode::OK, "alive\n".into())
        };
        async move { answer }
    };
    let scrape = || async { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render()) };
    let router =
        Router::new().route("/metrics", get(scrape)).route("/healthz", get(liveness)).route("/readyz", get(readiness));
    tokio::select! {
        ended = axum::serve(listener, router) => {
            if let Err(e) = ended {
                tracing::error!(error = %e, "metrics and health are no longer served");
            }
        }
        () = run_upkeep() => {}
    }
}

async fn run_upkeep() {
    let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        interval.tick().await;
        metrics::run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_default_port_in_use_is_skipped_and_an_invalid_address_is_refused() {
        let first = listen("").await.unwrap().unwrap();
        let second = listen("").await.unwrap().unwrap();
        let (first, second) = (first.local_addr().unwrap(), second.local_addr().unwrap());
        assert!(first.ip().is_loopback() && second.port() != first.port(), "{first} {second}");
        assert!(DEFAULT_PORTS.contains(&second.port()));
        let refused = listen("256.0.0.1:x").await.unwrap_err().to_string();
        assert!(
            refused.contains("`metrics.listen`: cannot listen at 256.0.0.1:x") && refused.contains("hint:"),
            "{refused}"
        );
        assert!(listen("off").await.unwrap().is_none());
    }
}
