//! Whom HTTP of our own asking trusts: whomever the system does.

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
