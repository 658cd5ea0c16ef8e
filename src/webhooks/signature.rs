//! The signature of a request, by the Standard Webhooks specification 1.0 (standardwebhooks.com).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The value of `webhook-signature`: a signature by each key. A receiver accepts a request if it knows one of the keys.
pub(super) fn signatures(keys: &[Vec<u8>], id: &str, timestamp: i64, body: &str) -> String {
    let signatures: Vec<_> = keys.iter().map(|key| signature(key, id, timestamp, body)).collect();
    signatures.join(" ")
}

/// The version, and the HMAC-SHA256 of `id.timestamp.body`. `timestamp` is in seconds since 1970.
fn signature(key: &[u8], id: &str, timestamp: i64, body: &str) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { unreachable!("HMAC takes a key of any length") };
    for part in [id, ".", &timestamp.to_string(), ".", body] {
        mac.update(part.as_bytes());
    }
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_specifications_example() {
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        // While a secret is changed there are two, with a space between them.
        let both =
            signatures(&[vec![7; 24], key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        let (new, old) = both.split_once(' ').unwrap();
        assert!(old == signature && new != old && new.starts_with("v1,"), "{both}");
    }
}
