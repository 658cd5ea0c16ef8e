//! The entries of a bank, in a form that is searched, and cheap changes to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::banks::index::Index;
use crate::job::{KnownHash, Pdq};

/// So many changes beside the base are always cheap.
const MIN_PENDING_CHANGES: usize = 4_096;
/// The base is built again when the changes beside it exceed this part of it. Each call of [`BankEntries::apply`] copies
/// the changes since the last time.
const PENDING_PART: usize = 32;

/// The entries of a bank. An id has one hash, or several of different types. A clone shares the memory.
///
/// # Memory
///
/// | an entry with | bytes |
/// |---|---|
/// | SHA-256 | 40 |
/// | MD5 | 24 |
/// | PDQ, fewer than [`MIN_TABLE_ENTRIES`](crate::banks::index::MIN_TABLE_ENTRIES) of them | 40 |
/// | PDQ, more | 120, and 4.2 MB for all |
///
/// A removed entry stays until the base is built again, and has 8 bytes besides.
#[derive(Debug, Clone)]
pub struct BankEntries {
    /// What was loaded, or built from all changes.
    base: Arc<Layer>,
    /// What was added since then.
    added: Arc<Layer>,
    /// What was removed from the base since then, sorted.
    removed: Arc<[i64]>,
}

/// A change of a bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BankChange {
    /// An id that was removed may be added again.
    Add(i64, KnownHash),
    /// Removes all hashes of an id.
    Remove(i64),
}

/// Entries that are collected, to be built into [`BankEntries`].
#[derive(Debug, Default)]
pub struct EntryList {
    pdq_ids: Vec<i64>,
    pdq: Vec<Pdq>,
    sha256: Vec<([u8; 32], i64)>,
    md5: Vec<([u8; 16], i64)>,
}

/// Entries that can be searched.
#[derive(Debug)]
struct Layer {
    /// In ascending order.
    pdq_ids: Vec<i64>,
    /// Of the same positions.
    pdq: Index,
    sha256: Digests<32>,
    md5: Digests<16>,
}

/// Digests with ids, sorted.
#[derive(Debug)]
struct Digests<const BYTES: usize>(Vec<([u8; BYTES], i64)>);

impl EntryList {
    /// Adds an entry. Entries in the order of their ids are built a little faster.
    pub fn push(&mut self, id: i64, hash: KnownHash) {
        match hash {
            KnownHash::Pdq(hash) => {
                self.pdq_ids.push(id);
                self.pdq.push(hash);
            }
            KnownHash::Sha256(digest) => self.sha256.push((digest, id)),
            KnownHash::Md5(digest) => self.md5.push((digest, id)),
        }
    }

    /// Sorts the entries. Ten million PDQ hashes take three to five seconds of processor time, so that an asynchronous
    /// caller does this on a thread for blocking work.
    #[must_use]
    pub fn build(self) -> BankEntries {
        let (base, added) = (Arc::new(Layer::build(self)), Arc::new(Layer::build(Self::default())));
        BankEntries { base, added, removed: Arc::new([]) }
    }
}

impl FromIterator<(i64, KnownHash)> for EntryList {
    fn from_iter<T: IntoIterator<Item = (i64, KnownHash)>>(entries: T) -> Self {
        let mut list = Self::default();
        entries.into_iter().for_each(|(id, hash)| list.push(id, hash));
        list
    }
}

impl BankEntries {
    /// The number of hashes.
    #[must_use]
    pub fn len(&self) -> usize {
        if self.removed.is_empty() { self.base.len() + self.added.len() } else { self.iter().count() }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Every hash with its id, in no defined order.
    pub fn iter(&self) -> impl Iterator<Item = (i64, KnownHash)> {
        self.base.iter().filter(|(id, _)| !self.is_removed(*id)).chain(self.added.iter())
    }

    /// The memory that it uses, also where a clone shares it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.base.bytes() + self.added.bytes() + size_of_val(&*self.removed)
    }

    /// The entries after changes, in their order. These still answer as before.
    ///
    /// It takes time and memory for all changes since the base was built, and shares the base. Once they exceed 4,096 and
    /// a thirty-second of the base, the base is built again, as by [`EntryList::build`]. Old and new are both in memory
    /// then, until the last clone of the old one is dropped.
    #[must_use]
    pub fn apply(&self, changes: impl IntoIterator<Item = BankChange>) -> Self {
        self.apply_with(changes, MIN_PENDING_CHANGES)
    }

    fn apply_with(&self, changes: impl IntoIterator<Item = BankChange>, min_pending: usize) -> Self {
        let mut added: BTreeMap<i64, Vec<KnownHash>> = BTreeMap::new();
        self.added.iter().for_each(|(id, hash)| added.entry(id).or_default().push(hash));
        let mut removed: BTreeSet<i64> = self.removed.iter().copied().collect();
        for change in changes {
            match change {
                // What is there already is not added twice.
                BankChange::Add(id, hash) if !removed.contains(&id) && self.base.contains(id, &hash) => {}
                BankChange::Add(id, hash) => {
                    let hashes = added.entry(id).or_default();
                    if !hashes.contains(&hash) {
                        hashes.push(hash);
                    }
                }
                BankChange::Remove(id) => {
                    added.remove(&id);
                    removed.insert(id);
                }
            }
        }
        let is_cheap = added.len() + removed.len() <= min_pending.max(self.base.len() / PENDING_PART);
        let added = added.into_iter().flat_map(|(id, hashes)| hashes.into_iter().map(move |hash| (id, hash)));
        if is_cheap {
            let added = Arc::new(Layer::build(added.collect()));
            return Self { base: Arc::clone(&self.base), added, removed: removed.into_iter().collect() };
        }
        let kept = self.base.iter().filter(|(id, _)| !removed.contains(id));
        kept.chain(added).collect::<EntryList>().build()
    }

    /// The id of the entry with this SHA-256. Skipped entries are left out, here and below.
    #[must_use]
    pub fn find_sha256(&self, digest: &[u8; 32], skipped: &[i64]) -> Option<i64> {
        self.lowest(self.base.sha256.ids(digest), self.added.sha256.ids(digest), skipped)
    }

    /// The id of the entry with this MD5.
    #[must_use]
    pub fn find_md5(&self, digest: &[u8; 16], skipped: &[i64]) -> Option<i64> {
        self.lowest(self.base.md5.ids(digest), self.added.md5.ids(digest), skipped)
    }

    /// Id and distance of the entry whose PDQ hash is closest, as it stands.
    #[must_use]
    pub fn nearest(&self, hash: &Pdq, max_distance: u32, skipped: &[i64]) -> Option<(i64, u32)> {
        let in_base = self.base.nearest(hash, max_distance, |id| !self.is_removed(id) && !skipped.contains(&id));
        let limit = in_base.map_or(max_distance, |(distance, _)| distance);
        let in_added = self.added.nearest(hash, limit, |id| !skipped.contains(&id));
        in_base.into_iter().chain(in_added).min().map(|(distance, id)| (id, distance))
    }

    fn lowest(
        &self,
        in_base: impl Iterator<Item = i64>,
        in_added: impl Iterator<Item = i64>,
        skipped: &[i64],
    ) -> Option<i64> {
        let mut in_base = in_base.filter(|id| !self.is_removed(*id) && !skipped.contains(id));
        let mut in_added = in_added.filter(|id| !skipped.contains(id));
        in_base.next().into_iter().chain(in_added.next()).min()
    }

    fn is_removed(&self, id: i64) -> bool {
        self.removed.binary_search(&id).is_ok()
    }
}

impl Layer {
    fn build(list: EntryList) -> Self {
        let EntryList { mut pdq_ids, mut pdq, sha256, md5 } = list;
        if !pdq_ids.is_sorted() {
            let mut entries: Vec<(i64, Pdq)> = pdq_ids.into_iter().zip(pdq).collect();
            entries.sort_unstable();
            (pdq_ids, pdq) = entries.into_iter().unzip();
        }
        pdq_ids.shrink_to_fit();
        Self { pdq_ids, pdq: Index::build(pdq), sha256: Digests::build(sha256), md5: Digests::build(md5) }
    }

    fn len(&self) -> usize {
        self.pdq_ids.len() + self.sha256.0.len() + self.md5.0.len()
    }

    fn bytes(&self) -> usize {
        self.pdq_ids.capacity() * size_of::<i64>() + self.pdq.bytes() + self.sha256.bytes() + self.md5.bytes()
    }

    fn iter(&self) -> impl Iterator<Item = (i64, KnownHash)> {
        let pdq = self.pdq_ids.iter().zip(self.pdq.hashes()).map(|(id, hash)| (*id, KnownHash::Pdq(*hash)));
        let sha256 = self.sha256.0.iter().map(|(digest, id)| (*id, KnownHash::Sha256(*digest)));
        let md5 = self.md5.0.iter().map(|(digest, id)| (*id, KnownHash::Md5(*digest)));
        pdq.chain(sha256).chain(md5)
    }

    fn contains(&self, id: i64, hash: &KnownHash) -> bool {
        match hash {
            KnownHash::Pdq(hash) => {
                let first = self.pdq_ids.partition_point(|other| *other < id);
                let of_id =
                    self.pdq_ids.iter().zip(self.pdq.hashes()).skip(first).take_while(|(other, _)| **other == id);
                of_id.into_iter().any(|(_, other)| other == hash)
            }
            KnownHash::Sha256(digest) => self.sha256.ids(digest).any(|other| other == id),
            KnownHash::Md5(digest) => self.md5.ids(digest).any(|other| other == id),
        }
    }

    /// Distance and id of the closest entry that is accepted.
    fn nearest(&self, hash: &Pdq, max_distance: u32, accepts: impl Fn(i64) -> bool) -> Option<(u32, i64)> {
        let id = |position: u32| self.pdq_ids[position as usize];
        let nearest = self.pdq.nearest_accepted(hash, max_distance, |position| accepts(id(position)));
        nearest.map(|(position, distance)| (distance, id(position)))
    }
}

impl<const BYTES: usize> Digests<BYTES> {
    fn build(mut digests: Vec<([u8; BYTES], i64)>) -> Self {
        digests.sort_unstable();
        digests.shrink_to_fit();
        Self(digests)
    }

    fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<([u8; BYTES], i64)>()
    }

    /// The ids of a digest, in ascending order.
    fn ids(&self, digest: &[u8; BYTES]) -> impl Iterator<Item = i64> {
        let first = self.0.partition_point(|(other, _)| other < digest);
        self.0[first..].iter().take_while(move |(other, _)| other == digest).map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Few different hashes and ids, so that they meet.
    fn hash() -> impl Strategy<Value = KnownHash> {
        (0..3, 0..12_u8).prop_map(|(kind, byte)| match kind {
            0 => KnownHash::Pdq(Pdq([byte; 32])),
            1 => KnownHash::Sha256([byte; 32]),
            _ => KnownHash::Md5([byte; 16]),
        })
    }

    fn change() -> impl Strategy<Value = BankChange> {
        let add = (0..30_i64, hash()).prop_map(|(id, hash)| BankChange::Add(id, hash));
        prop_oneof![2 => add, 1 => (0..30_i64).prop_map(BankChange::Remove)]
    }

    /// What the changes make of entries, as simply as possible.
    fn applied(entries: &mut BTreeSet<(i64, KnownHash)>, changes: &[BankChange]) {
        for change in changes {
            match change {
                BankChange::Add(id, hash) => {
                    entries.insert((*id, *hash));
                }
                BankChange::Remove(id) => entries.retain(|(other, _)| other != id),
            }
        }
    }

    /// By SHA-256, by MD5, and by PDQ with the distance.
    type Answer = (Option<i64>, Option<i64>, Option<(i64, u32)>);

    fn answers(entries: &BankEntries) -> Vec<Answer> {
        let answer = |byte| {
            let nearest = entries.nearest(&Pdq([byte; 32]), 70, &[]);
            (entries.find_sha256(&[byte; 32], &[]), entries.find_md5(&[byte; 16], &[]), nearest)
        };
        (0..14).map(answer).collect()
    }

    proptest! {
        /// With a limit of six changes, some calls of `apply` build the base again, and some do not.
        #[test]
        fn changed_entries_answer_like_those_that_were_built_at_once(
            first in prop::collection::vec((0..30_i64, hash()), 0..40),
            batches in prop::collection::vec(prop::collection::vec(change(), 0..5), 0..8),
        ) {
            let mut expected: BTreeSet<_> = first.into_iter().collect();
            let mut entries = expected.iter().copied().collect::<EntryList>().build();
            for changes in batches {
                applied(&mut expected, &changes);
                let before = (answers(&entries), entries.len());
                let after = entries.apply_with(changes, 6);
                prop_assert_eq!((answers(&entries), entries.len()), before, "the old version has changed");
                entries = after;
                prop_assert_eq!(entries.iter().collect::<BTreeSet<_>>(), expected.clone());
                prop_assert_eq!((entries.len(), entries.is_empty()), (expected.len(), expected.is_empty()));
                let built = expected.iter().rev().copied().collect::<EntryList>().build();
                prop_assert_eq!(answers(&entries), answers(&built));
            }
        }
    }

    #[test]
    fn a_small_change_shares_the_base_and_many_changes_build_it_again() {
        let entries =
            |ids: std::ops::Range<i64>| ids.map(|id| (id, KnownHash::Md5((u128::try_from(id).unwrap()).to_be_bytes())));
        let adds = |ids| entries(ids).map(|(id, hash)| BankChange::Add(id, hash));
        let old = entries(0..100).collect::<EntryList>().build();
        let few = old.apply(adds(100..4_196));
        assert!(Arc::ptr_eq(&old.base, &few.base));
        let many = few.apply([BankChange::Remove(3)]);
        assert!(!Arc::ptr_eq(&old.base, &many.base) && many.removed.is_empty() && many.added.len() == 0);
        assert_eq!((old.len(), few.len(), many.len()), (100, 4_196, 4_195));
        assert_eq!(many.bytes(), 4_195 * 24);
        let shares = |changes: i64| Arc::ptr_eq(&old.base, &old.apply_with(adds(100..100 + changes), 0).base);
        assert!(shares(3) && !shares(4), "a thirty-second of 100");
    }
}
