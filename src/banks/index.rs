//! Exact search among PDQ hashes.
//!
//! The method is multi-index hashing (Norouzi, Punjani, Fleet: "Fast Exact Search in Hamming Space with Multi-Index
//! Hashing", 2014) with a filter. A hash has eight words of 32 bits. Of two hashes that differ in at most 31 bits, one
//! word differs in at most 3. One half of that word then differs in at most one bit, and the other half in no more than
//! what is left. So each of the sixteen halves has a table: the entries are sorted by their value of this half, and
//! beside each entry stands its other half. A query reads the few lists of entries that are close in one half, and
//! compares whole hashes only where the other half is close enough too: about one hundred of ten million.
//!
//! # Memory
//!
//! 112 bytes an entry: 32 for the hash, and in each of 16 tables 2 for the other half and 3 for the position. The tables
//! of each 16.7 million entries have 4.2 MB besides. Fewer than [`MIN_TABLE_ENTRIES`] entries have no tables, which
//! would be larger than they are: comparing all of them takes about ten microseconds.
//!
//! # Entries that are alike
//!
//! A bank may hold many pictures of one colour, or one picture very often. Of many equal hashes the tables hold one. Where
//! a query would still read so many entries that comparing all hashes is faster, all are compared. A query takes
//! at most about four times as long as that, measured with ten million different entries around one hash.

mod plan;
mod shard;

pub use self::plan::MAX_TABLE_DISTANCE;
use self::shard::Shard;
use crate::job::Pdq;

/// A search to this distance reads 16 lists instead of 272, and finds most of what is there to be found.
const SHORT_DISTANCE: u32 = 15;
/// A position in a table has three bytes.
const SHARD_ENTRIES: usize = 1 << 24;
/// Fewer entries have no tables.
pub const MIN_TABLE_ENTRIES: usize = 4_096;

/// PDQ hashes, to be searched by distance. The position of an entry is its place in the list that the index was built
/// from.
#[derive(Debug)]
pub struct Index {
    hashes: Vec<Pdq>,
    /// The tables of each `shard_entries` hashes.
    shards: Vec<Shard>,
    shard_entries: usize,
}

impl Index {
    /// Sorts the hashes into tables, on the thread of the caller.
    ///
    /// # Panics
    /// With more than `u32::MAX` hashes.
    #[must_use]
    pub fn build(hashes: Vec<Pdq>) -> Self {
        Self::with_sizes(hashes, SHARD_ENTRIES, MIN_TABLE_ENTRIES)
    }

    fn with_sizes(mut hashes: Vec<Pdq>, shard_entries: usize, min_table_entries: usize) -> Self {
        assert!(u32::try_from(hashes.len()).is_ok(), "an index holds at most {} hashes", u32::MAX);
        hashes.shrink_to_fit();
        let shard = |hashes: &[Pdq]| Shard::build(hashes, hashes.len() >= min_table_entries);
        let shards = hashes.chunks(shard_entries).map(shard).collect();
        Self { hashes, shards, shard_entries }
    }

    /// The hashes, by position.
    #[must_use]
    pub fn hashes(&self) -> &[Pdq] {
        &self.hashes
    }

    /// The memory that it uses.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.hashes.capacity() * size_of::<Pdq>() + self.shards.iter().map(Shard::bytes).sum::<usize>()
    }

    /// Position and distance of the entry that is closest to the query. Of equally close ones it is that with the lowest
    /// position. Beyond [`MAX_TABLE_DISTANCE`] all hashes are compared.
    #[must_use]
    pub fn nearest(&self, query: &Pdq, max_distance: u32) -> Option<(u32, u32)> {
        self.nearest_accepted(query, max_distance, |_| true)
    }

    /// The same among the entries whose positions are accepted.
    #[must_use]
    pub fn nearest_accepted(
        &self,
        query: &Pdq,
        max_distance: u32,
        accepts: impl Fn(u32) -> bool,
    ) -> Option<(u32, u32)> {
        let search = |max_distance| {
            // Distance before position, so that they compare in this order.
            let mut nearest: Option<(u32, u32)> = None;
            self.within(query, max_distance, |position, distance| {
                if nearest.is_none_or(|nearest| (distance, position) < nearest) && accepts(position) {
                    nearest = Some((distance, position));
                }
            });
            nearest.map(|(distance, position)| (position, distance))
        };
        let is_short = max_distance <= SHORT_DISTANCE || self.shards.iter().all(|shard| !shard.has_tables());
        let near = if is_short { None } else { search(SHORT_DISTANCE) };
        near.or_else(|| search(max_distance))
    }

    /// Visits each entry within a distance of the query once, with its position and its distance, in no defined order.
    pub fn within(&self, query: &Pdq, max_distance: u32, mut visitor: impl FnMut(u32, u32)) {
        let firsts = (0..).step_by(self.shard_entries);
        for ((first, shard), hashes) in firsts.zip(&self.shards).zip(self.hashes.chunks(self.shard_entries)) {
            shard.within(hashes, query, max_distance, |position, distance| visitor(first + position, distance));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Different hashes without a pattern: SplitMix64 (Steele, Lea, Flood 2014).
    pub(super) fn made(count: usize) -> Vec<Pdq> {
        let mut state = 0_u64;
        let mut next = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            mixed ^ mixed >> 31
        };
        let mut hash = || {
            let mut hash = Pdq([0; 32]);
            hash.0.chunks_mut(8).for_each(|word| word.copy_from_slice(&next().to_le_bytes()));
            hash
        };
        (0..count).map(|_| hash()).collect()
    }

    pub(super) fn flipped(hash: &Pdq, bits: &[u8]) -> Pdq {
        let mut flipped = *hash;
        bits.iter().for_each(|bit| flipped.0[*bit as usize / 8] ^= 1 << (bit % 8));
        flipped
    }

    /// Up to `max` hashes in a few clusters, some of them equal, and queries near the clusters. In half of the cases all
    /// differences are in few words, which is hard for an index over words.
    pub(super) fn clustered(max: usize) -> impl Strategy<Value = (Vec<Pdq>, Vec<Pdq>)> {
        let bits = || prop_oneof![prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(0_u8..80, 0..40)];
        let near = move || (0_usize..4, bits()).prop_map(|(centre, bits)| flipped(&made(4)[centre], &bits));
        (prop::collection::vec(near(), 1..max), prop::collection::vec(near(), 1..4))
    }

    fn by_comparing_all(hashes: &[Pdq], query: &Pdq, max_distance: u32) -> Vec<(u32, u32)> {
        let all = (0..).zip(hashes).map(|(position, hash)| (hash.distance(query), position));
        let mut near: Vec<_> = all.filter(|(distance, _)| *distance <= max_distance).collect();
        near.sort_unstable();
        near.into_iter().map(|(distance, position)| (position, distance)).collect()
    }

    fn check(index: &Index, query: &Pdq, max_distance: u32) -> Result<(), TestCaseError> {
        let expected = by_comparing_all(index.hashes(), query, max_distance);
        prop_assert_eq!(index.nearest(query, max_distance), expected.first().copied());
        let mut visited = Vec::new();
        index.within(query, max_distance, |position, distance| visited.push((position, distance)));
        visited.sort_unstable_by_key(|(position, distance)| (*distance, *position));
        prop_assert_eq!(visited, expected);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn every_search_finds_what_comparing_all_finds((near, queries) in clustered(60), far in 0_usize..3_000) {
            let hashes: Vec<Pdq> = near.into_iter().chain(made(far)).collect();
            // Two shards with tables, and often one without.
            let index = Index::with_sizes(hashes, 1_400, 30);
            for query in &queries {
                for max_distance in (0..=MAX_TABLE_DISTANCE).chain([32, 60, 256]) {
                    check(&index, query, max_distance)?;
                }
            }
        }
    }

    #[test]
    fn each_way_to_differ_by_31_bits_in_words_of_four_is_found() {
        let mut hashes = made(5_000);
        let query = hashes[0];
        // Three bits in each word but the last, in which it is: the word that is found moves, and so does its half.
        for (word, split) in (0..8_u8).flat_map(|word| (0..=3_u8).map(move |split| (word, split))) {
            let four_in_others =
                (0..8).filter(|other| *other != word).flat_map(|other| (0..4).map(move |bit| 32 * other + 9 * bit));
            let three = (0..3).map(|bit| 32 * word + if bit < split { bit } else { 16 + bit });
            hashes.push(flipped(&query, &four_in_others.chain(three).collect::<Vec<_>>()));
        }
        let index = Index::build(hashes);
        let mut found = Vec::new();
        index.within(&query, 31, |position, distance| found.push((position, distance)));
        found.sort_unstable();
        assert_eq!(
            found,
            [(0, 0)].into_iter().chain((5_000..5_032).map(|position| (position, 31))).collect::<Vec<_>>()
        );
    }

    #[test]
    fn of_equally_close_entries_the_lowest_accepted_one_is_the_nearest() {
        let hash = made(1)[0];
        let hashes = vec![flipped(&hash, &[9]), flipped(&hash, &[1, 2]), flipped(&hash, &[200]), hash, hash];
        let index = Index::build(hashes);
        let nearest = |rejected: &[u32], max_distance| {
            index.nearest_accepted(&hash, max_distance, |position| !rejected.contains(&position))
        };
        assert_eq!(nearest(&[], 31), Some((3, 0)));
        assert_eq!(nearest(&[3], 0), Some((4, 0)));
        assert_eq!(nearest(&[3, 4], 31), Some((0, 1)));
        assert_eq!(nearest(&[3, 4, 0], 31), Some((2, 1)));
        assert_eq!(nearest(&[3, 4, 0, 2], 1), None);
        // The tables hold one of many equal hashes, and the others are visited behind it.
        let crowd = [hash, flipped(&hash, &[1, 2])].into_iter().chain([hash; 2_000]).collect();
        let query = flipped(&hash, &[1]);
        assert_eq!(
            Index::with_sizes(crowd, SHARD_ENTRIES, 1).nearest_accepted(&query, 31, |position| position > 0),
            Some((1, 1))
        );
        assert_eq!(Index::build(Vec::new()).nearest(&hash, 256), None);
    }

    #[test]
    fn an_entry_takes_112_bytes_in_an_index_of_many() {
        let index = Index::with_sizes(made(6_000), SHARD_ENTRIES, MIN_TABLE_ENTRIES);
        let tables_bytes = 16 * 65_537 * 4;
        assert_eq!(index.bytes() - tables_bytes, 6_000 * 112);
        assert_eq!(Index::build(made(1_000)).bytes(), 32_000);
    }
}
