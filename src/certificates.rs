//! The certificates that Pixwarden trusts: the system's, or those in the file that `SSL_CERT_FILE` names. The libraries
//! that connect to broker, ledger and object store read the same ones.

use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::CertificateError;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// The system has no certificates that could be read. Where a file is at fault, it is the source.
#[derive(Debug, thiserror::Error)]
#[error("the system has no certificates")]
pub struct NoCertificates(#[source] Option<rustls_native_certs::Error>);

/// A TLS configuration with the system's certificates. Where there are none, also the reason: then only `http` works.
#[must_use]
pub fn of_the_system() -> (TlsConfig, Option<NoCertificates>) {
    let mut loaded = rustls_native_certs::load_native_certs();
    let is_empty = loaded.certs.is_empty();
    let missing = is_empty.then(|| NoCertificates((!loaded.errors.is_empty()).then(|| loaded.errors.swap_remove(0))));
    let roots: Vec<_> = loaded.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    (TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots))).build(), missing)
}

/// What to do about an error whose cause is a rejected server certificate; empty for any other error.
#[must_use]
pub fn hint(error: &(dyn Error + 'static)) -> &'static str {
    match certificate_error(error) {
        None => "",
        Some(CertificateError::UnknownIssuer) => {
            "\n  hint: the certificate's authority is not trusted; name a file with trusted PEM certificates in SSL_CERT_FILE, which replaces the system's"
        }
        Some(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "\n  hint: use the name that the certificate is valid for, or get a certificate for this name"
        }
        Some(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "\n  hint: renew the server's certificate, or correct the clock"
        }
        Some(_) => "\n  hint: check the server's certificate and SSL_CERT_FILE",
    }
}

fn certificate_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(certificate)) = error.downcast_ref() {
            return Some(certificate);
        }
        // The source of an `io::Error` is the source of the error inside, not the error inside itself.
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = inside.and_then(|inside| certificate_error(inside)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct ConnectError(#[source] io::Error);

    #[test]
    fn a_rejected_certificate_is_found_in_the_chain_of_causes() {
        let rejected = |why| ConnectError(io::Error::other(rustls::Error::InvalidCertificate(why)));
        assert!(hint(&rejected(CertificateError::UnknownIssuer)).contains("SSL_CERT_FILE"));
        assert!(hint(&rejected(CertificateError::NotValidForName)).contains("use the name"));
        assert!(hint(&rejected(CertificateError::Expired)).contains("renew"));
        assert!(hint(&rejected(CertificateError::BadEncoding)).contains("check the server's certificate"));
        assert_eq!(hint(&ConnectError(io::Error::other("certificate: UnknownIssuer"))), "");
    }
}
