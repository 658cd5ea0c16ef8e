//! Which lists of the tables a search reads.
//!
//! Eight words with the radii r₁ … r₈ cover every distance below the sum of all (rᵢ + 1): a hash at such a distance
//! differs in at most rᵢ bits in one of the words. A word of two halves that differs in at most r bits has a first half
//! that differs in at most ⌊r / 2⌋ bits, or else a second half that differs in at most r - ⌊r / 2⌋ - 1.

/// Words of 32 bits in a hash.
const WORDS: u32 = 8;
/// The greatest distance for which no half needs a radius of more than one.
pub const MAX_TABLE_DISTANCE: u32 = WORDS * (MAX_WORD_RADIUS + 1) - 1;
/// The greatest radius of a word.
pub(super) const MAX_WORD_RADIUS: u32 = 3;

/// What a search reads in one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TablePlan {
    /// The half of a word by which the table is sorted, from 0 to 15.
    pub half: usize,
    /// In how many bits the half may differ: 0 or 1.
    pub radius: u32,
    /// In how many bits the whole word may differ.
    pub word_radius: u32,
}

/// The tables that find every entry within a distance of at most [`MAX_TABLE_DISTANCE`].
pub(super) fn tables(max_distance: u32) -> impl Iterator<Item = TablePlan> {
    // The first words have the greater radius, so that the sum is greater than the distance by exactly one.
    let (radius, greater) = (max_distance / WORDS, max_distance % WORDS + 1);
    (0..WORDS as usize).flat_map(move |word| {
        let word_radius = if word < greater as usize { Some(radius) } else { radius.checked_sub(1) };
        let first = word_radius.map(|r| TablePlan { half: 2 * word, radius: r / 2, word_radius: r });
        let second = word_radius
            .and_then(|r| Some(TablePlan { half: 2 * word + 1, radius: (r - r / 2).checked_sub(1)?, word_radius: r }));
        first.into_iter().chain(second)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to spread a number of different bits over the halves is found in at least one table.
    #[test]
    fn every_distance_is_covered() {
        for distance in 0..=MAX_TABLE_DISTANCE {
            let plan: Vec<_> = tables(distance).collect();
            assert!(plan.iter().all(|table| table.radius <= 1 && table.word_radius <= MAX_WORD_RADIUS), "{plan:?}");
            // The most bits that a word can differ in without being found, over all ways to share them between its halves.
            let hidden = |word: usize| {
                let is_found = |first: u32, second: u32| {
                    plan.iter().filter(|table| table.half / 2 == word).any(|table| {
                        let own = if table.half % 2 == 0 { first } else { second };
                        own <= table.radius && first + second <= table.word_radius
                    })
                };
                let ways = (0..=16).flat_map(|first| (0..=16).map(move |second| (first, second)));
                ways.filter(|(first, second)| !is_found(*first, *second)).map(|(first, second)| first + second).min()
            };
            let least: u32 = (0..8).map(|word| hidden(word).unwrap()).sum();
            assert_eq!(least, distance + 1, "an entry that no table finds differs in more bits");
        }
    }

    #[test]
    fn a_short_search_reads_few_lists() {
        let lists = |distance| tables(distance).map(|table| if table.radius == 0 { 1 } else { 17 }).sum::<u32>();
        assert_eq!([0, 7, 15, 23, 31].map(lists), [1, 8, 16, 144, 272]);
    }
}
