//! A small seeded generator (splitmix64), so that a seed means the same case everywhere.

/// The generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }
    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }
    /// True once in `count` times.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
    /// One of a slice's elements.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    /// A value whose width and pattern vary: small, boundary, or random.
    pub fn value(&mut self) -> u64 {
        let random = self.bits();
        match self.below(8) {
            0 => random & 0xff,
            1 => (random as i8) as u64,
            2 => 1_u64.rotate_left(random as u32),
            3 => !1_u64.rotate_left(random as u32),
            4 => (random as i32) as u64,
            5 => {
                self.pick(&[0, 1, u64::MAX, 1 << 63, i64::MAX as u64, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff])
            }
            _ => random,
        }
    }
}
