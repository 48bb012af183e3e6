//! Sets of grains: which parts of a disk something is still to be done with.

use super::GRAIN;
use parking_lot::Mutex;
use std::ops::Range;

/// A set of grains, shared by a job and the requests of the guest.
pub(super) struct Grains {
    size: u64,
    bits: Mutex<Bits>,
}

struct Bits {
    words: Vec<u64>,
    /// Grains in the set.
    count: u64,
}

impl Grains {
    /// An empty set for a disk of so many bytes.
    pub fn new(size: u64) -> Self {
        let words = size.div_ceil(GRAIN).div_ceil(64) as usize;
        Grains { size, bits: Mutex::new(Bits { words: vec![0; words], count: 0 }) }
    }

    /// Adds the grains that bytes of a range are in.
    pub fn add(&self, range: Range<u64>) {
        self.each(range, |bits, word, bit| {
            if let Some(word) = bits.words.get_mut(word).filter(|word| **word & bit == 0) {
                *word |= bit;
                bits.count += 1;
            }
        });
    }

    /// Takes the grains of a range out.
    pub fn remove(&self, range: Range<u64>) {
        self.each(range, |bits, word, bit| {
            if let Some(word) = bits.words.get_mut(word).filter(|word| **word & bit != 0) {
                *word &= !bit;
                bits.count -= 1;
            }
        });
    }

    fn each(&self, range: Range<u64>, mut change: impl FnMut(&mut Bits, usize, u64)) {
        let mut bits = self.bits.lock();
        for grain in range.start / GRAIN..range.end.min(self.size).div_ceil(GRAIN) {
            change(&mut bits, (grain / 64) as usize, 1 << (grain % 64));
        }
    }

    /// Bytes of all grains in the set, at most a grain too many.
    pub fn bytes(&self) -> u64 {
        self.bits.lock().count * GRAIN
    }

    /// The first run of grains in a range, at most so many bytes; it may end with the disk.
    pub fn first_in(&self, range: Range<u64>, most: u64) -> Option<Range<u64>> {
        let bits = self.bits.lock();
        let has = |grain: u64| {
            bits.words.get((grain / 64) as usize).is_some_and(|word| word >> (grain % 64) & 1 != 0)
        };
        let end = range.end.min(self.size).div_ceil(GRAIN);
        let mut grain = range.start / GRAIN;
        while grain < end && !has(grain) {
            // Whole words of nothing are passed over at once.
            let empty = grain.is_multiple_of(64) && bits.words.get((grain / 64) as usize) == Some(&0);
            grain += if empty { 64 } else { 1 };
        }
        if grain >= end {
            return None;
        }
        let last = (grain + 1..end).take_while(|grain| has(*grain)).count() as u64;
        let run = (last + 1).min((most / GRAIN).max(1));
        Some(grain * GRAIN..((grain + run) * GRAIN).min(self.size))
    }

    /// The next run at or after `from`, around the end.
    pub fn next_from(&self, from: u64, most: u64) -> Option<Range<u64>> {
        self.first_in(from..self.size, most).or_else(|| self.first_in(0..from, most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn it_is_a_set() {
        let size = 300 * GRAIN - 512;
        let grains = Grains::new(size);
        let mut model = BTreeSet::new();
        let mut seed = 5_u64;
        for round in 0..2000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let start = (seed >> 20) % size;
            let end = (start + (seed >> 50) * 40).min(size);
            let touched = start / GRAIN..end.div_ceil(GRAIN);
            if round % 3 == 0 {
                grains.remove(start..end);
                model.retain(|grain| !touched.contains(grain));
            } else {
                grains.add(start..end);
                model.extend(touched);
            }
            assert_eq!(grains.bytes(), model.len() as u64 * GRAIN);
            let next = grains.next_from(start - start % GRAIN, 4 * GRAIN);
            let first = model.range(start / GRAIN..).next().or_else(|| model.iter().next());
            assert_eq!(next.as_ref().map(|run| run.start / GRAIN), first.copied());
            if let Some(run) = next {
                assert!(run.end <= size && run.end - run.start <= 4 * GRAIN);
                assert!((run.start / GRAIN..run.end.div_ceil(GRAIN)).all(|grain| model.contains(&grain)));
            }
        }
    }
}
