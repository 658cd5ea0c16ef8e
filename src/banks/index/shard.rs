//! The tables over a part of the hashes, and how a search reads them.

use super::plan::{self, MAX_TABLE_DISTANCE, TablePlan};
use crate::job::Pdq;

/// Halves of words in a hash.
const HALVES: usize = 16;
/// Values of a half.
const VALUES: usize = 1 << 16;
/// Values of a byte.
const BYTES: usize = 1 << 8;
/// Halves that are compared together.
const LANES: usize = 32;
/// Of so many times the usual number, hashes with the same first half may be the same hash many times.
const CROWD_RATIO: usize = 16;
/// Fewer hashes with the same first half are no crowd.
const MIN_CROWD: usize = 1_024;
/// Reading so many list entries takes about as long as comparing one hash.
const LISTED_PER_HASH: usize = 8;
/// Sorting and comparing one candidate takes about as long as comparing so many hashes in a row.
const HASHES_PER_CANDIDATE: usize = 16;

/// Up to 2^24 hashes, sorted by each of their halves.
#[derive(Debug)]
pub(super) struct Shard {
    /// One for each half. Empty for a small shard.
    tables: Vec<Table>,
    /// Hashes that are not in the tables, behind the position of the equal one that is. Sorted.
    duplicates: Vec<(u32, u32)>,
}

/// The entries sorted by their value of one half.
#[derive(Debug)]
struct Table {
    /// Where the list of each value begins, and at the end where the last one ends.
    starts: Vec<u32>,
    /// The other half of the same word.
    others: Vec<u16>,
    /// The position, in two parts.
    low: Vec<u16>,
    high: Vec<u8>,
}

/// How much a search may read before comparing all hashes is faster.
#[derive(Clone, Copy)]
struct Limits {
    listed: usize,
    candidates: usize,
}

/// An entry between the two steps of the sort.
#[derive(Clone, Copy, Default)]
struct Staged {
    position: u32,
    lower: u8,
    other: u16,
}

/// A list of entries that a search reads.
#[derive(Clone, Copy)]
struct Probe {
    half: usize,
    start: usize,
    end: usize,
    /// The other half of the query.
    other: u16,
    /// In how many bits the other half may differ.
    other_radius: u32,
}

impl Limits {
    fn of(entries: usize) -> Self {
        Self { listed: LISTED_PER_HASH * entries, candidates: entries / HASHES_PER_CANDIDATE }
    }
}

impl Shard {
    pub(super) fn build(hashes: &[Pdq], with_tables: bool) -> Self {
        if !with_tables {
            return Self { tables: Vec::new(), duplicates: Vec::new() };
        }
        let duplicates = crowded_duplicates(hashes);
        let mut is_kept = vec![true; hashes.len()];
        duplicates.iter().for_each(|(_, duplicate)| is_kept[*duplicate as usize] = false);
        Self { tables: build_tables(hashes, &is_kept), duplicates }
    }

    /// Whether a search may read lists.
    pub(super) fn has_tables(&self) -> bool {
        !self.tables.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.tables.iter().map(Table::bytes).sum::<usize>() + self.duplicates.capacity() * size_of::<(u32, u32)>()
    }

    /// Visits each hash within a distance once, with its position in the shard.
    pub(super) fn within(&self, hashes: &[Pdq], query: &Pdq, max_distance: u32, mut visitor: impl FnMut(u32, u32)) {
        let Some(mut candidates) = self.candidates(query, max_distance, Limits::of(hashes.len())) else {
            for (position, hash) in (0..).zip(hashes) {
                if let Some(distance) = distance_within(hash, query, max_distance) {
                    visitor(position, distance);
                }
            }
            return;
        };
        // A hash that is close in several words is in several lists.
        candidates.sort_unstable();
        candidates.dedup();
        for position in candidates {
            let Some(distance) = distance_within(&hashes[position as usize], query, max_distance) else { continue };
            visitor(position, distance);
            let first = self.duplicates.partition_point(|(kept, _)| *kept < position);
            let equal = self.duplicates[first..].iter().take_while(|(kept, _)| *kept == position);
            equal.for_each(|(_, duplicate)| visitor(*duplicate, distance));
        }
    }

    /// The positions among which everything within the distance is. `None` where comparing all hashes is faster.
    fn candidates(&self, query: &Pdq, max_distance: u32, limits: Limits) -> Option<Vec<u32>> {
        if !self.has_tables() || max_distance > MAX_TABLE_DISTANCE {
            return None;
        }
        let mut probes = Vec::with_capacity(HALVES * (HALVES + 1));
        plan::tables(max_distance).for_each(|table| self.add_probes(query, table, &mut probes));
        if probes.iter().map(|probe| probe.end - probe.start).sum::<usize>() > limits.listed {
            return None;
        }
        self.load(&probes);
        let mut candidates = Vec::new();
        for probe in probes {
            self.tables[probe.half].read(probe, &mut candidates);
            if candidates.len() > limits.candidates {
                return None;
            }
        }
        Some(candidates)
    }

    /// Reads a value of each cache line of the lists. The processor loads many of them at once, as no load depends on
    /// another one. That makes a search faster by a quarter.
    fn load(&self, probes: &[Probe]) {
        let lines = |probe: &Probe| {
            let others = &self.tables[probe.half].others[probe.start..probe.end];
            others.iter().step_by(LANES).fold(0, |any, other| any | other)
        };
        std::hint::black_box(probes.iter().fold(0, |any, probe| any | lines(probe)));
    }

    /// The lists of a table: that of the query's half, and for a radius of one those whose half differs in one bit.
    fn add_probes(&self, query: &Pdq, plan: TablePlan, probes: &mut Vec<Probe>) {
        let (own, other) = (half_of(query, plan.half), half_of(query, plan.half ^ 1));
        let starts = &self.tables[plan.half].starts;
        let mut add = |value: u16, differing: u32| {
            let (start, end) = (starts[value as usize] as usize, starts[value as usize + 1] as usize);
            probes.push(Probe { half: plan.half, start, end, other, other_radius: plan.word_radius - differing });
        };
        add(own, 0);
        if plan.radius == 1 {
            (0..u16::BITS).for_each(|bit| add(own ^ 1 << bit, 1));
        }
    }
}

impl Table {
    /// Sorts the entries whose place among the upper bytes is known already.
    fn build(staged: &[Staged], upper_bounds: &Bounds) -> Self {
        let mut starts = Vec::with_capacity(VALUES + 1);
        let count = staged.len();
        let (mut others, mut low, mut high) = (vec![0; count], vec![0; count], vec![0; count]);
        for part in upper_bounds.windows(2).map(|part| part[0]..part[1]) {
            let staged = &staged[part.clone()];
            let mut next = [0; BYTES + 1];
            staged.iter().for_each(|entry| next[entry.lower as usize + 1] += 1);
            add_up(&mut next);
            starts.extend(next[..BYTES].iter().map(|start| part.start + start));
            for entry in staged {
                let next = &mut next[entry.lower as usize];
                let place = part.start + *next;
                *next += 1;
                others[place] = entry.other;
                let [first, second, third, _] = entry.position.to_le_bytes();
                (low[place], high[place]) = (u16::from_le_bytes([first, second]), third);
            }
        }
        starts.push(count);
        #[expect(clippy::cast_possible_truncation, reason = "a shard has fewer entries")]
        let starts = starts.into_iter().map(|start| start as u32).collect();
        Self { starts, others, low, high }
    }

    fn bytes(&self) -> usize {
        self.starts.capacity() * size_of::<u32>()
            + (self.others.capacity() + self.low.capacity()) * size_of::<u16>()
            + self.high.capacity()
    }

    /// Adds the positions of the entries whose other half is close enough.
    fn read(&self, probe: Probe, candidates: &mut Vec<u32>) {
        match probe.other_radius {
            0 => self.read_to::<0>(probe, candidates),
            1 => self.read_to::<1>(probe, candidates),
            2 => self.read_to::<2>(probe, candidates),
            _ => self.read_to::<3>(probe, candidates),
        }
    }

    /// Whole groups are compared at once, also where the last one reaches into the next list: more candidates do no harm.
    fn read_to<const RADIUS: u32>(&self, probe: Probe, candidates: &mut Vec<u32>) {
        let end = (probe.start + (probe.end - probe.start).next_multiple_of(LANES)).min(self.others.len());
        let is_near = |other: u16| {
            let mut differing = other ^ probe.other;
            // Each step clears the lowest bit that is set.
            (0..RADIUS).for_each(|_| differing &= differing.wrapping_sub(1));
            differing == 0
        };
        for (start, group) in (probe.start..).step_by(LANES).zip(self.others[probe.start..end].chunks(LANES)) {
            // Without a branch in it, the compiler makes vector instructions of this.
            if group.iter().fold(false, |any, other| any | is_near(*other)) {
                let near = (start..).zip(group).filter(|(_, other)| is_near(**other));
                candidates.extend(near.map(|(place, _)| self.position(place)));
            }
        }
    }

    fn position(&self, place: usize) -> u32 {
        u32::from(self.high[place]) << 16 | u32::from(self.low[place])
    }
}

/// Where the entries of each value of a byte begin, and at the end where the last ones end.
type Bounds = [usize; BYTES + 1];

/// Makes bounds of counts. The count of a value stands behind the place of its bound.
fn add_up(counts: &mut Bounds) {
    for byte in 0..BYTES {
        counts[byte + 1] += counts[byte];
    }
}

/// A table for each half, by counting sorts: first by the upper byte, and then within each of its values by the lower
/// byte. With 65,536 values at once each write would miss the cache. Entries of the same value stay in their order.
fn build_tables(hashes: &[Pdq], is_kept: &[bool]) -> Vec<Table> {
    let kept = || (0_u32..).zip(hashes).zip(is_kept).filter(|(_, is_kept)| **is_kept).map(|(entry, _)| entry);
    let mut upper_bounds = vec![[0; BYTES + 1]; HALVES];
    for (_, hash) in kept() {
        let bytes = hash.0.iter().step_by(2);
        bytes.zip(&mut upper_bounds).for_each(|(byte, counts)| counts[*byte as usize + 1] += 1);
    }
    upper_bounds.iter_mut().for_each(add_up);
    let mut staged = vec![Staged::default(); kept().count()];
    let table = |(half, upper_bounds): (usize, &Bounds)| {
        let mut next = *upper_bounds;
        for (position, hash) in kept() {
            let next = &mut next[hash.0[2 * half] as usize];
            staged[*next] = Staged { position, lower: hash.0[2 * half + 1], other: half_of(hash, half ^ 1) };
            *next += 1;
        }
        Table::build(&staged, upper_bounds)
    };
    upper_bounds.iter().enumerate().map(table).collect()
}

/// Bits `16 * half` and on, of the hash as it is written.
fn half_of(hash: &Pdq, half: usize) -> u16 {
    u16::from_be_bytes([hash.0[2 * half], hash.0[2 * half + 1]])
}

/// The number of different bits, if it is at most `max_distance`.
fn distance_within(one: &Pdq, other: &Pdq, max_distance: u32) -> Option<u32> {
    let (one, other) = (words(one), words(other));
    let differing = |word: usize| (one[word] ^ other[word]).count_ones();
    // Half of a hash is mostly enough to see that another one is too far away.
    let first = differing(0) + differing(1);
    if first > max_distance {
        return None;
    }
    Some(first + differing(2) + differing(3)).filter(|distance| *distance <= max_distance)
}

fn words(hash: &Pdq) -> [u64; 4] {
    let (words, _) = hash.0.as_chunks::<8>();
    [words[0], words[1], words[2], words[3]].map(u64::from_ne_bytes)
}

/// Hashes that occur many times: each one but the first, behind the position of the first. Sorted.
///
/// Equal hashes have the same first half, so that only the greatest lists by the first half are searched for them.
fn crowded_duplicates(hashes: &[Pdq]) -> Vec<(u32, u32)> {
    let mut counts = vec![0_usize; VALUES];
    hashes.iter().for_each(|hash| counts[half_of(hash, 0) as usize] += 1);
    let crowd = (CROWD_RATIO * hashes.len() / VALUES).max(MIN_CROWD);
    let is_crowded = |hash: &Pdq| counts[half_of(hash, 0) as usize] > crowd;
    let mut crowded: Vec<(Pdq, u32)> = hashes.iter().copied().zip(0..).filter(|(hash, _)| is_crowded(hash)).collect();
    crowded.sort_unstable();
    let groups = crowded.chunk_by(|(one, _), (other, _)| one == other);
    let mut duplicates: Vec<(u32, u32)> =
        groups.flat_map(|group| group[1..].iter().map(|(_, duplicate)| (group[0].1, *duplicate))).collect();
    duplicates.sort_unstable();
    duplicates
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{clustered, flipped, made};
    use super::*;

    const NO_LIMITS: Limits = Limits { listed: usize::MAX, candidates: usize::MAX };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// Without a limit, so that the lists alone must find everything, also what is crowded.
        #[test]
        fn the_lists_find_everything_within_the_distance((hashes, queries) in clustered(400)) {
            let shard = Shard::build(&hashes, true);
            for query in queries {
                for max_distance in 0..=MAX_TABLE_DISTANCE {
                    let candidates = shard.candidates(&query, max_distance, NO_LIMITS).unwrap();
                    for (position, hash) in (0..).zip(&hashes) {
                        let is_near = hash.distance(&query) <= max_distance;
                        prop_assert!(!is_near || candidates.contains(&position), "{position} at {max_distance}");
                    }
                }
            }
        }
    }

    /// More than 65,536, so that positions need their third byte.
    #[test]
    fn the_lists_name_few_of_many_random_hashes() {
        let hashes = made(70_000);
        let shard = Shard::build(&hashes, true);
        let candidates = |query: &Pdq| shard.candidates(query, MAX_TABLE_DISTANCE, Limits::of(hashes.len())).unwrap();
        let found = candidates(&flipped(&hashes[69_999], &[7, 70, 170]));
        assert!(found.contains(&69_999), "{found:?}");
        let of_another = candidates(&made(70_001)[70_000]);
        assert!(of_another.len() < 20, "{} of 70,000", of_another.len());
    }

    #[test]
    fn of_equal_hashes_the_tables_hold_one_and_each_is_visited_once() {
        let hash = made(1)[0];
        let near = flipped(&hash, &[3, 77]);
        let hashes: Vec<Pdq> = made(300).into_iter().chain(vec![hash; 2_000]).chain([near]).collect();
        let shard = Shard::build(&hashes, true);
        assert_eq!(shard.tables[7].others.len(), 301, "300 and the near one");
        let mut visited = Vec::new();
        shard.within(&hashes, &hash, 5, |position, distance| visited.push((position, distance)));
        visited.sort_unstable();
        let equal = [0].into_iter().chain(300..2_300).map(|position| (position, 0));
        assert_eq!(visited, equal.chain([(2_300, 2)]).collect::<Vec<_>>());
    }

    #[test]
    fn crowded_lists_are_not_read() {
        // The first half of each word is the same in all.
        let hashes: Vec<Pdq> = made(2_000)
            .into_iter()
            .map(|mut hash| {
                hash.0.chunks_mut(4).for_each(|word| word[..2].fill(0));
                hash
            })
            .collect();
        let shard = Shard::build(&hashes, true);
        assert!(shard.candidates(&hashes[0], 31, Limits::of(hashes.len())).is_none());
        let mut visited = Vec::new();
        shard.within(&hashes, &hashes[0], 31, |position, distance| visited.push((position, distance)));
        assert_eq!(visited, [(0, 0)]);
    }
}
