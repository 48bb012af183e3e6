//! What the bits of a bitmap mark, when they come in parts.

use std::ops::Range;

/// Most ranges that are told of a bitmap. One that has more is told in coarser steps, which cover at least as much.
const RANGES_MAX: usize = 1 << 20;

/// Bytes that a part of the bits, from a word on, marks on a disk of this size.
pub(super) fn marked(first: usize, part: &[u64], granularity_bits: u8, size: u64) -> u64 {
    let bits = size.div_ceil(1 << granularity_bits);
    let mut sum = 0;
    for (number, word) in (first as u64..).zip(part) {
        let own = bits.saturating_sub(number * 64).min(64);
        let word = if own == 64 { *word } else { word & ((1 << own) - 1) };
        sum += u64::from(word.count_ones()) << granularity_bits;
        // The last bit may be of less than the others.
        if (1..64).contains(&own) || number * 64 + 64 == bits {
            sum -= (word >> (own - 1) & 1) * ((bits << granularity_bits) - size);
        }
    }
    sum
}

/// Ranges that bits mark, in steps of at least the granularity.
pub(super) struct Ranges {
    granularity_bits: u8,
    step: u8,
    size: u64,
    told: Vec<Range<u64>>,
    /// They are more than [`RANGES_MAX`].
    too_many: bool,
}

impl Ranges {
    /// None yet. `step` is the binary logarithm of the steps in bytes.
    pub fn new(granularity_bits: u8, step: u8, size: u64) -> Self {
        Ranges { granularity_bits, step, size, told: Vec::new(), too_many: false }
    }

    /// The ranges; `None` when they are too many.
    pub fn told(self) -> Option<Vec<Range<u64>>> {
        (!self.too_many).then_some(self.told)
    }

    /// Goes on with the bits from a word on.
    pub fn add(&mut self, first: usize, part: &[u64]) {
        for (number, word) in (first as u64..).zip(part).filter(|(_, word)| **word != 0) {
            for bit in (0..64).filter(|bit| word & (1 << bit) != 0) {
                let start = (number * 64 + bit) << self.granularity_bits;
                if self.too_many || start >= self.size {
                    return;
                }
                let start = start >> self.step << self.step;
                let end = (start + (1 << self.step)).min(self.size);
                let told = self.told.len();
                match self.told.last_mut() {
                    Some(last) if last.end >= start => last.end = end,
                    _ if told == RANGES_MAX => self.too_many = true,
                    _ => self.told.push(start..end),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(bits: &[u64], step: u8, size: u64) -> Vec<u64> {
        let mut ranges = Ranges::new(9, step, size);
        for (number, word) in bits.iter().enumerate() {
            ranges.add(number, &[*word]);
        }
        ranges.told.into_iter().flatten().collect()
    }

    /// Against a look at every byte's bit.
    #[test]
    fn what_bits_mark_is_counted_and_told() {
        let mut seed = 3_u64;
        for round in 0..300 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let size = 1 + (seed >> 33) % (130 * 512);
            let words = size.div_ceil(512).div_ceil(64) as usize;
            let bits: Vec<u64> = (0..words).map(|_| seed.rotate_left(round)).collect();
            let is_marked = |byte: u64| bits[(byte / 512 / 64) as usize] >> (byte / 512 % 64) & 1 != 0;
            let wanted: Vec<u64> = (0..size).filter(|byte| is_marked(*byte)).collect();
            let sum: u64 =
                bits.iter().enumerate().map(|(number, word)| marked(number, &[*word], 9, size)).sum();
            assert_eq!((sum, marked(0, &bits, 9, size)), (wanted.len() as u64, sum));
            assert!(ranges(&bits, 9, size) == wanted);
            let near = |byte: u64| (byte >> 11 << 11..(byte | 0x7ff) + 1).step_by(512);
            let is_near = |byte: &u64| near(*byte).any(|other| other < size && is_marked(other));
            assert!(ranges(&bits, 11, size) == (0..size).filter(is_near).collect::<Vec<_>>());
        }
    }
}
