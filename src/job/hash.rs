//! Hashes of what an image shows. Two pictures that look alike have hashes with few different bits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::facts::View;

/// The bits of a PDQ hash.
const BITS: u32 = 256;
/// Frequencies along each axis: bit 16 × i + j is about the frequency i + 1 down and j + 1 across.
const SIDE: u32 = 16;

/// A PDQ hash, as 64 hexadecimal digits write it: the last bit first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pdq(pub [u8; 32]);

/// The PDQ hash of one view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewHash {
    pub view: View,
    pub pdq: Pdq,
    /// From 0, for a picture of one colour, to 100. Pictures with little detail resemble many others.
    pub quality: u8,
}

impl Pdq {
    /// The number of bits that differ, 0 to 256. Two different pictures differ in about 128.
    #[must_use]
    pub fn distance(&self, other: &Self) -> u32 {
        self.0.iter().zip(other.0).map(|(one, other)| (one ^ other).count_ones()).sum()
    }

    /// The hash of the picture in its eight flips and turns, itself first.
    ///
    /// A mirrored picture has the same frequencies, of which the odd ones have the opposite sign. A hash holds signs
    /// against a median close to 0, so that a few bits may differ from those of the turned picture itself.
    #[must_use]
    pub fn turned(&self) -> [Self; 8] {
        let mirrored = |hash: Self| hash.with_bits(|i, j| (i, j, j % 2 == 0));
        let flipped = |hash: Self| hash.with_bits(|i, j| (i, j, i % 2 == 0));
        let transposed = self.with_bits(|i, j| (j, i, false));
        let four = |hash: Self| [hash, mirrored(hash), flipped(hash), flipped(mirrored(hash))];
        let ([a, b, c, d], [e, f, g, h]) = (four(*self), four(transposed));
        [a, b, c, d, e, f, g, h]
    }

    /// The hash whose bit `(i, j)` is the bit of this one that `source` names, negated where it says so.
    fn with_bits(self, source: impl Fn(u32, u32) -> (u32, u32, bool)) -> Self {
        let mut turned = Self([0; 32]);
        for (i, j) in (0..SIDE).flat_map(|i| (0..SIDE).map(move |j| (i, j))) {
            let (from_i, from_j, is_negated) = source(i, j);
            if self.bit(SIDE * from_i + from_j) != is_negated {
                turned.set_bit(SIDE * i + j);
            }
        }
        turned
    }

    /// Bit 0 is the last one in writing.
    fn bit(self, bit: u32) -> bool {
        self.0[Self::byte(bit)] & (1 << (bit % 8)) != 0
    }

    /// Sets a bit, numbered from 0 to 255.
    pub fn set_bit(&mut self, bit: u32) {
        self.0[Self::byte(bit)] |= 1 << (bit % 8);
    }

    fn byte(bit: u32) -> usize {
        ((BITS - 1 - bit) / 8) as usize
    }
}

impl fmt::Display for Pdq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Pdq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pdq({self})")
    }
}

impl FromStr for Pdq {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Pdq {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pdq {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pdq(bits: &[u32]) -> Pdq {
        let mut hash = Pdq([0; 32]);
        bits.iter().for_each(|bit| hash.set_bit(*bit));
        hash
    }

    #[test]
    fn the_last_bit_is_written_first() {
        assert_eq!(pdq(&[0]).to_string(), format!("{:0>64}", "1"));
        assert_eq!(pdq(&[255]).to_string(), format!("8{:0>63}", ""));
        let text = "0123456789abcdef".repeat(4);
        assert_eq!(text.parse::<Pdq>().unwrap().to_string(), text);
        assert!("01".parse::<Pdq>().is_err() && "x".repeat(64).parse::<Pdq>().is_err());
    }

    #[test]
    fn the_distance_is_the_number_of_different_bits() {
        assert_eq!(pdq(&[]).distance(&pdq(&[])), 0);
        assert_eq!(pdq(&[1, 7, 200]).distance(&pdq(&[1, 8])), 3);
        assert_eq!(pdq(&[]).distance(&pdq(&(0..256).collect::<Vec<_>>())), 256);
    }

    /// Bit 16 × i + j is about the frequency i + 1 down and j + 1 across: the odd ones change their sign.
    #[test]
    fn a_turned_hash_has_its_bits_elsewhere_or_negated() {
        let turned = pdq(&[3]).turned();
        assert_eq!(turned[0], pdq(&[3]));
        assert!(
            turned[1].bit(0) && !turned[1].bit(1) && turned[1].bit(16) && turned[1].bit(3),
            "mirrored: even columns"
        );
        assert!(turned[2].bit(0) && turned[2].bit(1) && !turned[2].bit(3) && !turned[2].bit(16), "flipped: even lines");
        assert_eq!(turned[4], pdq(&[48]), "transposed");
        let undone = turned[5].turned()[1].turned()[4];
        assert_eq!(undone, pdq(&[3]));
    }
}
