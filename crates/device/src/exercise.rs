//! Input for tests that treat a device badly, and for the fuzz targets: programs of bytes, and noise to make them of.

/// Reads a program as it goes; past its end everything is zero.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a>(&'a [u8]);

impl<'a> Program<'a> {
    /// A program of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Program(bytes)
    }

    /// Whether all is read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }

    /// A number of so many bytes, at most eight, the first the highest.
    pub fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }
}

/// Numbers that look random, the same for the same seed (SplitMix64).
pub fn noise(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_ends_in_zeros() {
        let mut program = Program::new(&[1, 2, 3]);
        assert_eq!((program.byte(), program.is_empty()), (1, false));
        assert_eq!((program.number(4), program.is_empty()), (0x0203_0000, true));
    }

    /// The published first numbers of SplitMix64 with seed 1234567.
    #[test]
    fn noise_is_splitmix64() {
        let first: Vec<u64> = noise(1_234_567).take(3).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }
}
