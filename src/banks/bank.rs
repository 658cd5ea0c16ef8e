//! A bank in memory, and what it knows of an image.

mod entries;

use std::collections::BTreeMap;

pub use self::entries::{BankChange, BankEntries, EntryList};
use crate::job::{BankAnswer, BankKind, BankMatch, MatchedBy, Pdq, ViewHash};

/// A version of a bank. It never changes: a change makes a new one, while images are still compared with the old one.
#[derive(Debug, Clone)]
pub struct LoadedBank {
    pub name: String,
    pub kind: BankKind,
    /// Whether no picture of what it holds, or like it, may be shown.
    pub restricted: bool,
    /// A bank that is not enabled matches nothing.
    pub enabled: bool,
    pub version: i64,
    pub entries: BankEntries,
}

impl LoadedBank {
    /// The bank after changes, in their order. What it costs is described at [`BankEntries::apply`].
    #[must_use]
    pub fn apply(&self, changes: impl IntoIterator<Item = BankChange>, version: i64) -> Self {
        Self { version, entries: self.entries.apply(changes), ..self.clone() }
    }

    /// What the bank knows of an image: an entry for each digest of the file, and for each view whose quality is at least
    /// `min_quality` the closest entry in any of its eight flips and turns, within `max_distance`. A distance of 0 finds
    /// equal hashes only. Of equally close entries it is that with the lowest id.
    #[must_use]
    pub fn answer(
        &self,
        sha256: Option<&[u8; 32]>,
        md5: Option<&[u8; 16]>,
        hashes: Option<&[ViewHash]>,
        max_distance: u32,
        min_quality: u8,
    ) -> BankAnswer {
        self.answer_without(&[], sha256, md5, hashes, max_distance, min_quality)
    }

    /// As [`LoadedBank::answer`], as if the bank did not have some entries: a person has said of them that they mean nothing for
    /// the image, and they must not hide farther ones.
    #[must_use]
    pub fn answer_without(
        &self,
        skipped: &[i64],
        sha256: Option<&[u8; 32]>,
        md5: Option<&[u8; 16]>,
        hashes: Option<&[ViewHash]>,
        max_distance: u32,
        min_quality: u8,
    ) -> BankAnswer {
        let mut matches = Vec::new();
        if self.enabled {
            let by_sha256 = sha256.and_then(|digest| self.entries.find_sha256(digest, skipped));
            matches.extend(by_sha256.map(|entry| BankMatch { entry, by: MatchedBy::Sha256 }));
            let by_md5 = md5.and_then(|digest| self.entries.find_md5(digest, skipped));
            matches.extend(by_md5.map(|entry| BankMatch { entry, by: MatchedBy::Md5 }));
            let views = hashes.unwrap_or_default().iter().filter(|hash| hash.quality >= min_quality);
            // The frames of an animation are often equal.
            let mut known: BTreeMap<Pdq, Option<(i64, u32)>> = BTreeMap::new();
            for ViewHash { view, pdq, quality } in views.copied() {
                let nearest = known.entry(pdq).or_insert_with(|| self.nearest_of_turned(&pdq, max_distance, skipped));
                matches.extend(nearest.map(|(entry, distance)| {
                    let by = MatchedBy::Pdq { view, quality, distance };
                    BankMatch { entry, by }
                }));
            }
        }
        BankAnswer { kind: self.kind, restricted: self.restricted, version: self.version, matches }
    }

    /// Id and distance of the entry that is closest to any of the eight flips and turns.
    fn nearest_of_turned(&self, hash: &Pdq, max_distance: u32, skipped: &[i64]) -> Option<(i64, u32)> {
        let mut nearest: Option<(u32, i64)> = None;
        for turned in hash.turned() {
            // Farther entries are of no use any more, and a search to a smaller distance is faster.
            let limit = nearest.map_or(max_distance, |(distance, _)| distance);
            let found = self.entries.nearest(&turned, limit, skipped).map(|(entry, distance)| (distance, entry));
            nearest = nearest.into_iter().chain(found).min();
        }
        nearest.map(|(distance, entry)| (entry, distance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{KnownHash, View};

    const HASH: Pdq = Pdq(*b"0123456789abcdefghijklmnopqrstuv");

    fn bank(entries: &[(i64, KnownHash)]) -> LoadedBank {
        LoadedBank {
            name: "known".into(),
            kind: BankKind::Deny,
            restricted: true,
            enabled: true,
            version: 7,
            entries: entries.iter().copied().collect::<EntryList>().build(),
        }
    }

    fn view_hash(frame: u32, pdq: Pdq, quality: u8) -> ViewHash {
        ViewHash { view: View::of_frame(frame), pdq, quality }
    }

    fn flipped(bits: &[u8]) -> Pdq {
        let mut hash = HASH;
        bits.iter().for_each(|bit| hash.0[*bit as usize / 8] ^= 1 << (bit % 8));
        hash
    }

    #[test]
    fn a_file_is_found_by_either_digest_and_by_the_closest_entry_of_each_view() {
        let bank = bank(&[
            (5, KnownHash::Sha256([1; 32])),
            (4, KnownHash::Md5([2; 16])),
            (9, KnownHash::Pdq(flipped(&[1, 2, 3]))),
            (3, KnownHash::Pdq(flipped(&[4, 5]))),
            (2, KnownHash::Pdq(flipped(&[4, 200]))),
        ]);
        let views = [view_hash(0, HASH, 80), view_hash(1, HASH, 49), view_hash(2, flipped(&[4, 5, 6]), 50)];
        let answer = bank.answer(Some(&[1; 32]), Some(&[2; 16]), Some(&views), 31, 50);
        let pdq = |frame, quality, distance| MatchedBy::Pdq { view: View::of_frame(frame), quality, distance };
        let expected = [(5, MatchedBy::Sha256), (4, MatchedBy::Md5), (2, pdq(0, 80, 2)), (3, pdq(2, 50, 1))];
        assert_eq!(answer.matches, expected.map(|(entry, by)| BankMatch { entry, by }));
        assert_eq!((answer.kind, answer.restricted, answer.version), (BankKind::Deny, true, 7));

        assert_eq!(bank.answer(Some(&[2; 32]), Some(&[1; 16]), Some(&views), 0, 0).matches, []);
        assert_eq!(bank.answer(None, None, None, 31, 0).matches, []);
        let without = bank.answer_without(&[5, 3, 2], Some(&[1; 32]), None, Some(&views), 31, 50);
        assert!(without.matches.iter().all(|found| found.entry == 9), "{without:?}");
        assert!(!without.matches.is_empty(), "a farther entry is found behind those that are left out");
        let disabled = LoadedBank { enabled: false, ..bank };
        assert_eq!(
            disabled.answer(Some(&[1; 32]), Some(&[2; 16]), Some(&views), 31, 0),
            BankAnswer { matches: Vec::new(), ..answer }
        );
    }

    #[test]
    fn a_picture_is_found_in_each_of_its_flips_and_turns() {
        let bank = bank(&[(1, KnownHash::Pdq(HASH))]);
        for (number, turned) in (0..).zip(HASH.turned()) {
            let found = bank.answer(None, None, Some(&[view_hash(0, turned, 100)]), 0, 50).matches;
            assert!(matches!(found[..], [BankMatch { entry: 1, by: MatchedBy::Pdq { distance: 0, .. } }]), "{number}");
        }
    }

    #[test]
    fn a_change_makes_a_version_that_forgets_what_was_removed() {
        let old =
            bank(&[(1, KnownHash::Pdq(HASH)), (2, KnownHash::Pdq(flipped(&[8]))), (3, KnownHash::Sha256([1; 32]))]);
        let changes = [BankChange::Remove(1), BankChange::Remove(3), BankChange::Add(4, KnownHash::Md5([9; 16]))];
        let new = old.apply(changes, 8);
        let answer = |bank: &LoadedBank| {
            let answer = bank.answer(Some(&[1; 32]), Some(&[9; 16]), Some(&[view_hash(0, HASH, 100)]), 31, 50);
            (answer.version, answer.matches.iter().map(|found| found.entry).collect::<Vec<_>>())
        };
        assert_eq!(answer(&old), (7, vec![3, 1]));
        assert_eq!(answer(&new), (8, vec![4, 2]));
    }
}
