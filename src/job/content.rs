//! Digests of an object's bytes, made before anything is decoded.

use md5::Md5;
use sha2::{Digest, Sha256};

/// The digests of a whole object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentDigests {
    pub sha256: [u8; 32],
    /// Lists of known images have it. Other content of the same MD5 can be made, so that it never clears an image.
    pub md5: [u8; 16],
}

impl ContentDigests {
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = ContentHasher::default();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Makes the digests of bytes that arrive in parts.
#[derive(Default)]
pub struct ContentHasher {
    sha256: Sha256,
    md5: Md5,
}

impl ContentHasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.md5.update(bytes);
    }

    #[must_use]
    pub fn finish(self) -> ContentDigests {
        ContentDigests { sha256: self.sha256.finalize().into(), md5: self.md5.finalize().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_parts_are_those_of_the_whole() {
        let mut hasher = ContentHasher::default();
        hasher.update(b"a");
        hasher.update(b"bc");
        let digests = hasher.finish();
        assert_eq!(digests, ContentDigests::of(b"abc"));
        // RFC 1321 and FIPS 180.
        assert_eq!(hex::encode(digests.md5), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(hex::encode(digests.sha256), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
