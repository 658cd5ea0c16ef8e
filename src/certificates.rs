//! Whom we trust: whomever the system does, or those that `SSL_CERT_FILE` names instead. Broker, ledger and object store
//! are asked by libraries that look there too.

use std::sync::Arc;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// TLS with the system's certificates, and the reason why there are none, if so: then only `http` works.
#[must_use]
pub fn of_the_system() -> (TlsConfig, Option<String>) {
    let loaded = rustls_native_certs::load_native_certs();
    let none = loaded.certs.is_empty().then(|| {
        let why = loaded.errors.first().map(|e| format!(": {e}")).unwrap_or_default();
        format!("the system has no certificates{why}")
    });
    let roots: Vec<_> = loaded.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    (TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots))).build(), none)
}

/// What to do about an error, where it is that a server's certificate was not accepted; else nothing.
#[must_use]
pub fn hint(error: &str) -> &'static str {
    let says = |words: &str| error.contains(words);
    if !says("certificate") {
        ""
    } else if says("UnknownIssuer") {
        "\n  hint: its authority is not among the trusted ones; name a file with their PEM certificates in SSL_CERT_FILE, which takes the place of the system's"
    } else if says("not valid for name") {
        "\n  hint: use the name that the certificate was made for, or have one made for this name"
    } else if says("expired") {
        "\n  hint: renew the server's certificate, or set the clock right"
    } else {
        "\n  hint: look at the server's certificate and at SSL_CERT_FILE"
    }
}
