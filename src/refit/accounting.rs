//! Which blocks of which regions were filled.

use super::model::{Model, Region};

/// Units of a region: first and count along each axis.
#[derive(Clone, Copy, Debug)]
pub struct Units {
    pub first: [usize; 3],
    pub count: [usize; 3],
}

impl Units {
    /// All of a region.
    #[cfg(test)]
    pub fn of(region: &Region) -> Units {
        Units { first: [0; 3], count: region.units }
    }

    fn total(&self) -> usize {
        self.count.iter().product()
    }
}

/// What is known of a region. Its bits count only while it is neither whole nor empty, so that what is filled at once, and
/// a new beginning, cost no look at them.
#[derive(Clone, Copy, Default)]
struct State {
    filled: usize,
    /// Its bits are as they shall be.
    current: bool,
}

/// A bit for each unit of each region, and counts.
pub struct Accounting {
    states: Vec<State>,
    /// Region by region, each from a word on.
    bits: Vec<u64>,
    first_word: Vec<usize>,
    filled: usize,
}

const BITS: usize = u64::BITS as usize;

impl Accounting {
    /// Nothing is filled.
    pub fn new(model: &Model) -> Accounting {
        let mut words = 0;
        let first_word = model.regions.iter().map(|region| {
            let first = words;
            words += region.total_units().div_ceil(BITS);
            first
        });
        let first_word = first_word.collect();
        let states = vec![State::default(); model.regions.len()];
        Accounting { states, bits: vec![0; words], first_word, filled: 0 }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.states.fill(State::default());
        self.filled = 0;
    }

    /// Units that are filled.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Units of a region that are filled.
    pub fn filled_of(&self, index: usize) -> usize {
        self.states[index].filled
    }

    /// Marks units as filled. If one already is, nothing is marked, and it is returned.
    pub fn fill(&mut self, index: usize, region: &Region, units: &Units) -> Result<(), [usize; 3]> {
        let (total, whole) = (units.total(), region.total_units());
        let state = self.states[index];
        if state.filled == 0 && total == whole {
            self.states[index] = State { filled: whole, current: false };
        } else if state.filled == whole && total > 0 {
            return Err(units.first);
        } else {
            self.materialize(index, region);
            if let Some(at) = self.first_set(index, region, units) {
                return Err(at);
            }
            self.each_run(index, region, units, |word, mask| *word |= mask);
            self.states[index].filled += total;
        }
        self.filled += total;
        Ok(())
    }

    /// Takes back what `fill` marked.
    pub fn unfill(&mut self, index: usize, region: &Region, units: &Units) {
        let total = units.total();
        if total == self.states[index].filled {
            self.states[index] = State::default();
        } else {
            self.materialize(index, region);
            self.each_run(index, region, units, |word, mask| *word &= !mask);
            self.states[index].filled -= total;
        }
        self.filled -= total;
    }

    /// The first unit of a region that is not filled.
    pub fn first_missing(&self, index: usize, region: &Region) -> Option<[usize; 3]> {
        let State { filled, current } = self.states[index];
        if filled == region.total_units() {
            return None;
        }
        let words = &self.bits[self.first_word[index]..];
        let unit = match (filled, current) {
            (0, _) | (_, false) => 0,
            _ => words
                .iter()
                .enumerate()
                .find(|(_, word)| **word != u64::MAX)
                .map_or(0, |(at, word)| at * BITS + word.trailing_ones() as usize),
        };
        let [_, rows, columns] = region.units;
        Some([unit / (rows * columns), unit / columns % rows, unit % columns])
    }

    /// Brings the bits of a region to what its count says.
    fn materialize(&mut self, index: usize, region: &Region) {
        let state = &mut self.states[index];
        if !state.current {
            let words = region.total_units().div_ceil(BITS);
            let first = self.first_word[index];
            self.bits[first..first + words].fill(if state.filled == 0 { 0 } else { u64::MAX });
            state.current = true;
        }
    }

    /// Calls `action` with each word that holds some of the units, and their bits.
    fn each_run(&mut self, index: usize, region: &Region, units: &Units, mut action: impl FnMut(&mut u64, u64)) {
        let words = &mut self.bits[self.first_word[index]..];
        for (first, count) in runs(region, units) {
            for_words(first, count, |at, mask| {
                action(&mut words[at], mask);
                true
            });
        }
    }

    fn first_set(&self, index: usize, region: &Region, units: &Units) -> Option<[usize; 3]> {
        let words = &self.bits[self.first_word[index]..];
        let mut found = None;
        for (first, count) in runs(region, units) {
            for_words(first, count, |at, mask| {
                let both = words[at] & mask;
                if both != 0 {
                    found = Some(at * BITS + both.trailing_zeros() as usize);
                }
                both == 0
            });
            if let Some(unit) = found {
                let [_, rows, columns] = region.units;
                return Some([unit / (rows * columns), unit / columns % rows, unit % columns]);
            }
        }
        None
    }
}

/// Runs of neighboring units: rows that are whole, and experts that are, are one.
fn runs(region: &Region, units: &Units) -> impl Iterator<Item = (usize, usize)> + use<> {
    let [_, rows, columns] = region.units;
    let Units { first, count } = *units;
    let (whole_rows, whole_experts) = (count[2] == columns, count[2] == columns && count[1] == rows);
    let (experts, lines, length) = match (whole_experts, whole_rows) {
        (true, _) => (1, 1, count[0] * rows * columns),
        (_, true) => (count[0], 1, count[1] * columns),
        _ => (count[0], count[1], count[2]),
    };
    let begin = (first[0] * rows + first[1]) * columns + first[2];
    (0..experts).flat_map(move |expert| {
        (0..lines).map(move |line| (begin + (expert * rows + line) * columns, length)).filter(|run| run.1 > 0)
    })
}

/// Calls `action` with each word of a run of bits and the bits in it, until it says false.
fn for_words(first: usize, count: usize, mut action: impl FnMut(usize, u64) -> bool) {
    let (mut at, end) = (first, first + count);
    while at < end {
        let bit = at % BITS;
        let length = (BITS - bit).min(end - at);
        let mask = (u64::MAX >> (BITS - length)) << bit;
        if !action(at / BITS, mask) {
            return;
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refit::Window;

    fn region(units: [usize; 3]) -> Region {
        let target = Window { first: [0; 3], extent: units };
        let (source_first, first_scale_row, first_unit) = ([0; 3], 0, 0);
        Region { source: 0, destination: 0, part: 0, source_first, target, first_scale_row, units, first_unit }
    }

    fn accounting(regions: Vec<Region>) -> (Model, Accounting) {
        let mut model = Model::default();
        model.regions = regions;
        let accounting = Accounting::new(&model);
        (model, accounting)
    }

    /// Numbers that differ and repeat.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) as usize % end
        }
    }

    #[test]
    fn boxes_are_those_of_a_plain_set() {
        let mut numbers = Numbers(1);
        for round in 0..if cfg!(miri) { 3 } else { 300 } {
            let units = [1 + numbers.below(3), 1 + numbers.below(9), 1 + numbers.below([7, 64, 130][round % 3])];
            let (model, mut accounting) = accounting(vec![region([1, 3, 50]), region(units)]);
            let region = &model.regions[1];
            let mut set = vec![false; region.total_units()];
            for _ in 0..20 {
                let first: [usize; 3] = std::array::from_fn(|axis| numbers.below(units[axis]));
                let count = std::array::from_fn(|axis| 1 + numbers.below(units[axis] - first[axis]));
                let some = Units { first, count };
                let mut places = Vec::new();
                for expert in 0..count[0] {
                    for row in 0..count[1] {
                        let at = ((first[0] + expert) * units[1] + first[1] + row) * units[2] + first[2];
                        places.extend(at..at + count[2]);
                    }
                }
                let taken = places.iter().find(|&&place| set[place]).copied();
                let filled = accounting.fill(1, region, &some);
                assert_eq!(filled.err().map(|[e, r, c]| (e * units[1] + r) * units[2] + c), taken);
                if taken.is_none() {
                    places.iter().for_each(|&place| set[place] = true);
                    if numbers.below(3) == 0 {
                        accounting.unfill(1, region, &some);
                        places.iter().for_each(|&place| set[place] = false);
                    }
                }
                assert_eq!(accounting.filled(), set.iter().filter(|&&filled| filled).count());
                let missing = accounting.first_missing(1, region).map(|[e, r, c]| (e * units[1] + r) * units[2] + c);
                assert_eq!(missing, set.iter().position(|&filled| !filled));
            }
            assert_eq!(accounting.filled_of(0), 0);
            accounting.clear();
            assert_eq!((accounting.filled(), accounting.first_missing(1, region)), (0, Some([0; 3])));
        }
    }

    #[test]
    fn a_whole_region_is_filled_once_and_taken_back() {
        let (model, mut accounting) = accounting(vec![region([2, 5, 40])]);
        let whole = Units::of(&model.regions[0]);
        assert_eq!(accounting.fill(0, &model.regions[0], &whole), Ok(()));
        assert_eq!(accounting.fill(0, &model.regions[0], &whole), Err([0; 3]));
        let corner = Units { first: [1, 4, 39], count: [1; 3] };
        assert_eq!(accounting.fill(0, &model.regions[0], &corner), Err([1, 4, 39]));
        accounting.unfill(0, &model.regions[0], &corner);
        assert_eq!(accounting.first_missing(0, &model.regions[0]), Some([1, 4, 39]));
        assert_eq!(accounting.fill(0, &model.regions[0], &corner), Ok(()));
        accounting.unfill(0, &model.regions[0], &whole);
        assert_eq!((accounting.filled(), accounting.filled_of(0)), (0, 0));
    }
}
