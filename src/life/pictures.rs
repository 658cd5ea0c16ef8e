//! What people may see of an image.

use crate::job::BankAnswers;
use crate::screen::SeenView;

/// The pictures of an image that people may be shown. A restricted image has none.
#[derive(Debug, Clone, Default)]
pub struct Pictures(Vec<SeenView>);

/// Whether a restricted bank knows the image. It may do so without a finding: its rule may ask for more likeness.
pub(super) fn is_restricted(banks: &BankAnswers) -> bool {
    banks.values().any(|answer| answer.restricted && !answer.matches.is_empty())
}

impl Pictures {
    pub(super) fn of(seen: Vec<SeenView>, banks: &BankAnswers) -> Self {
        if is_restricted(banks) { Self::default() } else { Self(seen) }
    }

    /// What the detectors saw, the first frame over white first.
    pub(crate) fn views(&self) -> &[SeenView] {
        &self.0
    }
}
