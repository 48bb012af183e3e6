//! What the tests share: cases, requests, tools.

use crate::random::Random;
use std::process::{Command, Output};

/// A range of whole sectors: mostly short, sometimes long, often at the edge of something.
pub fn range(random: &mut Random, size: u64) -> (u64, u64) {
    let sectors = size / 512;
    let longest = if random.chance(25) { 6000 } else { 40 };
    let mut start = random.below(sectors);
    if random.chance(33) {
        start -= start % [8, 128, 2048, 4096][random.below(4) as usize];
    }
    let mut len = 1 + random.below(longest.min(sectors - start));
    if random.chance(33) {
        len = len.next_multiple_of(128).min(sectors - start);
    }
    (start * 512, len * 512)
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
