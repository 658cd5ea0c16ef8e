//! Why there is no connection, with the server's address, and what to do about it.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::certificates;
use crate::config::SecretUrl;
use crate::error_text::io_text;

/// Longest wait for a connection that is only opened to find out why there was none.
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_secs(2);

/// The URL without its password, with the port and the database that are used where it names none.
pub(super) fn address(url: &SecretUrl, options: &PgConnectOptions) -> String {
    url.with_defaults(options.get_port(), options.get_database().unwrap_or(options.get_username()))
}

/// What a failed connection means, in the words of the system or of the server.
pub(super) fn error_text(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(e) => e.message().to_owned(),
        sqlx::Error::Io(e) => io_text(e),
        other => other.to_string(),
    }
}

/// What to do about a failed connection; empty where that is not known.
pub(super) fn hint(error: &sqlx::Error) -> &'static str {
    let code = error.as_database_error().and_then(|e| e.code());
    match (error, code.as_deref()) {
        (_, Some("3D000")) => "\n  hint: create the database, or correct its name in `ledger`",
        // Invalid authorization; wrong password. The server answers an unknown user in the same way.
        (_, Some("28000" | "28P01")) => "\n  hint: check user and password in `ledger`, and the server's pg_hba.conf",
        (_, Some("53300")) => {
            "\n  hint: raise the server's max_connections, or run fewer workers; each takes up to 8 connections"
        }
        _ => match (certificates::hint(error), error) {
            ("", sqlx::Error::Io(_)) => "\n  hint: check that PostgreSQL runs, and host and port in `ledger`",
            (hint, _) => hint,
        },
    }
}

/// The error of one new connection, or `None` where it succeeds. The pool repeats a refused connection until its time is
/// over, and then no longer has the cause.
pub(super) async fn diagnose(options: &PgConnectOptions) -> Option<sqlx::Error> {
    match tokio::time::timeout(DIAGNOSIS_TIMEOUT, options.connect()).await {
        Ok(Ok(connection)) => {
            // The server closes its side also where this fails.
            drop(connection.close().await);
            None
        }
        Ok(Err(error)) => Some(error),
        Err(_) => Some(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// Why a call got no connection from the pool.
pub(super) async fn why_no_connection(options: &PgConnectOptions) -> String {
    const UNKNOWN: &str = "no free connection in time";
    // Many calls time out together, and each diagnosis opens a connection.
    static DIAGNOSING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let Ok(_only) = DIAGNOSING.try_lock() else { return UNKNOWN.into() };
    let Some(error) = diagnose(options).await else { return UNKNOWN.into() };
    let place = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let database = options.get_database().unwrap_or(options.get_username());
    format!("cannot connect to {place}, database \"{database}\": {}", error_text(&error))
}
