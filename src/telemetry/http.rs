//! What a worker answers over HTTP: `/metrics`, `/healthz` and `/readyz`. Nothing here changes anything.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;

use super::intake::{Intake, State};
use super::metrics;
use crate::config::ConfigError;

/// Where a worker listens unless told otherwise: several may run on one machine.
const PORTS: std::ops::RangeInclusive<u16> = 9464..=9473;
/// How often values are folded into their buckets while nobody scrapes.
const FOLD: Duration = Duration::from_secs(5);

/// Listens at `address`: `host:port`, `off` for nowhere, or empty for the first free port of loopback.
///
/// # Errors
/// When it cannot be had.
pub async fn listen(address: &str) -> Result<Option<TcpListener>, ConfigError> {
    let listener = match address {
        "off" => return Ok(None),
        "" => first_free().await,
        address => TcpListener::bind(address).await.map_err(|e| format!("cannot listen at {address}: {e}")),
    };
    let listener = listener.map_err(|what| ConfigError::Invalid {
        option: "metrics.listen".into(),
        what: format!("{what}\n  hint: give another \"host:port\", or \"off\""),
    })?;
    Ok(Some(listener))
}

async fn first_free() -> Result<TcpListener, String> {
    for port in PORTS {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {}
            bound => return bound.map_err(|e| format!("cannot listen at port {port} of loopback: {e}")),
        }
    }
    Err(format!("none of the ports {} to {} of loopback is free", PORTS.start(), PORTS.end()))
}

/// Answers for as long as the process lives.
pub async fn serve(listener: TcpListener, intake: Intake) {
    match listener.local_addr() {
        Ok(address) => tracing::info!(%address, "metrics and health are served"),
        Err(e) => tracing::warn!(error = %e, "metrics and health are served at an address nobody knows"),
    }
    let readiness = move || {
        let state = intake.state();
        let status = if state == State::Consuming { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        async move { (status, format!("{state}\n")) }
    };
    let scrape = || async { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render()) };
    let router = Router::new()
        .route("/metrics", get(scrape))
        // A task that ends takes the process with it; so whoever can answer is alive.
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readiness));
    tokio::select! {
        ended = axum::serve(listener, router) => {
            if let Err(e) = ended {
                tracing::error!(error = %e, "metrics and health are no longer served");
            }
        }
        () = fold() => {}
    }
}

async fn fold() {
    let mut pace = tokio::time::interval(FOLD);
    loop {
        pace.tick().await;
        metrics::run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_port_is_taken_where_one_is_in_use_and_an_explicit_one_is_refused() {
        let first = listen("").await.unwrap().unwrap();
        let second = listen("").await.unwrap().unwrap();
        let (first, second) = (first.local_addr().unwrap(), second.local_addr().unwrap());
        assert!(first.ip().is_loopback() && second.port() != first.port(), "{first} {second}");
        assert!(PORTS.contains(&second.port()));
        let refused = listen("256.0.0.1:x").await.unwrap_err().to_string();
        assert!(
            refused.contains("`metrics.listen`: cannot listen at 256.0.0.1:x") && refused.contains("hint:"),
            "{refused}"
        );
        assert!(listen("off").await.unwrap().is_none());
    }
}
