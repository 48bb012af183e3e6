//! Random numbers that come again, and what the tests share.

use std::process::{Command, Output};

/// xorshift64*.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// 0 to `end` - 1.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len() as u64) as usize]
    }
    /// A range of whole sectors: mostly short, sometimes long, often at the edge of something.
    pub fn range(&mut self, size: u64) -> (u64, u64) {
        let sectors = size / 512;
        let longest = if self.one_in(4) { 6000 } else { 40 };
        let mut start = self.below(sectors);
        if self.one_in(3) {
            start -= start % [8, 128, 2048, 4096][self.below(4) as usize];
        }
        let mut len = 1 + self.below(longest.min(sectors - start));
        if self.one_in(3) {
            len = len.next_multiple_of(128).min(sectors - start);
        }
        (start * 512, len * 512)
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// The seeds of a test.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let first = number("VIREO_FORMAT_SEED", 1);
    first..first + number("VIREO_FORMAT_CASES", default)
}

/// Runs a tool. `None`: it is not installed, which is said.
pub fn tool(name: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(name).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("{name} cannot be run ({error}): nothing is compared with it");
            None
        }
    }
}

/// Runs a tool that must succeed.
pub fn run(name: &str, arguments: &[&str]) -> String {
    let output = tool(name, arguments).expect("it was there before");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {}\n{text}\n{errors}", output.status);
    text
}
