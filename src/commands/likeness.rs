//! The options of commands that find what resembles a picture.

use clap::Args;

use crate::job::Pdq;
use crate::matching::Likeness;
use crate::policy::MAX_DISTANCE;

/// `--near` and `--within`.
#[derive(Debug, Args)]
pub(super) struct NearOptions {
    /// Verdicts on pictures that resemble the one with this PDQ hash, the closest first
    ///
    /// `scan` and `show` print the hashes of an image. Pictures are also found turned and mirrored. All hashes of the ledger
    /// are read, which takes seconds for a million of them.
    #[arg(long, value_name = "HASH", value_parser = pdq)]
    near: Option<Pdq>,
    /// With --near: the largest number of bits that differ, 0 to 256
    #[arg(long, value_name = "BITS", requires = "near", default_value_t = MAX_DISTANCE, value_parser = clap::value_parser!(u32).range(0..=256))]
    within: u32,
}

impl NearOptions {
    pub(super) fn likeness(&self) -> Option<Likeness> {
        self.near.map(|hash| Likeness { hash, within: self.within })
    }
}

fn pdq(text: &str) -> Result<Pdq, String> {
    let digits = text.strip_prefix("pdq:").unwrap_or(text);
    digits.parse().map_err(|_| "a PDQ hash has 64 hexadecimal digits".into())
}
