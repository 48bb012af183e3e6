//! Seeded programs of changes, and how many there shall be.

/// Xorshift; the same for the same start.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Noise(88_172_645_463_325_252 ^ seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A value for a field. Small numbers, below `small`, and single bits are more telling than noise.
    pub fn value(&mut self, small: u64) -> u64 {
        match self.next() % 3 {
            0 => self.next() % small,
            1 => 1 << (self.next() % 64),
            _ => self.next(),
        }
    }
}

/// Executions of a test: what `VIREO_HOSTILE_ROUNDS` says.
pub fn rounds(otherwise: u64) -> u64 {
    std::env::var("VIREO_HOSTILE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(otherwise)
}
