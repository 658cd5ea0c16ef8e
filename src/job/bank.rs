//! Banks: lists of known images by their hashes, and what they know of an image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::facts::View;
use super::hash::Pdq;

/// What a bank is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BankKind {
    /// Images that are found.
    Deny,
    /// Images whose findings of a category are taken away.
    Allow,
}

impl BankKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Deny, Self::Allow];

    /// The word in the ledger and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }
}

/// Whether a text is the name of a bank: lower-case letters, digits, - and _, as in a part of a category.
#[must_use]
pub fn is_bank_name(text: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
    (1..=100).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// A hash that a bank holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KnownHash {
    /// Of a whole file.
    Sha256([u8; 32]),
    /// Of a whole file. It can be forged, so that it never takes a finding away.
    Md5([u8; 16]),
    /// Of what is shown.
    Pdq(Pdq),
}

/// What the banks that a policy names know of an image, by the bank's name. A bank that is not in here was not asked.
pub type BankAnswers = BTreeMap<String, BankAnswer>;

/// What one bank knows of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BankAnswer {
    pub kind: BankKind,
    /// Whether no picture of what it holds, or like it, may be shown.
    pub restricted: bool,
    /// The version of the bank that was asked.
    pub version: i64,
    /// The whole file by either digest, and of each view the entry that is closest.
    pub matches: Vec<BankMatch>,
}

/// An entry of a bank that matches an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BankMatch {
    /// The entry's number in the ledger.
    pub entry: i64,
    pub by: MatchedBy,
}

/// What has matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchedBy {
    /// The whole file.
    Sha256,
    /// The whole file.
    Md5,
    /// What a view shows.
    Pdq {
        view: View,
        /// Of the view's hash.
        quality: u8,
        /// The smallest one of the view's eight flips and turns.
        distance: u32,
    },
}

impl MatchedBy {
    /// The number of bits that differ. Equal files have none.
    #[must_use]
    pub const fn distance(&self) -> u32 {
        match self {
            Self::Sha256 | Self::Md5 => 0,
            Self::Pdq { distance, .. } => *distance,
        }
    }
}
