//! Random register traffic, for the tests of this crate and for the fuzz targets.
//!
//! Bytes are read as a little program of reads, writes, steps of time and events from outside, which runs against a
//! chip on a board of stubs. [`check`] asserts what every chip must keep: nothing panics, a saved state restored into
//! a fresh chip saves equal again, and both chips answer alike and tell the board the same from there on.

mod rigs;

pub use rigs::*;

use device::exercise::{Program, noise};
use device::{Device, Record};
use guest_clock::{Clock, ManualClock, TimerQueue};
use parking_lot::Mutex;
use std::sync::Arc;

/// A chip on a board of stubs.
pub struct Rig {
    /// The chip, and after it what belongs to its state.
    pub devices: Vec<Arc<dyn Device>>,
    /// Lengths of the chip's windows.
    pub windows: Vec<u64>,
    /// Guest time.
    pub clock: Arc<ManualClock>,
    /// The chip's timers.
    pub timers: Arc<TimerQueue>,
    /// Something happens outside of the chip; two arbitrary bytes say what.
    pub event: Box<dyn Fn(u8, u8) + Send + Sync>,
    /// What the chip told the board.
    pub witness: Arc<Witness>,
}

/// All ends of a chip's wires and callbacks: remembers what it was told, in order.
#[derive(Default)]
pub struct Witness(Mutex<Vec<(&'static str, u64)>>);

impl Witness {
    fn note(&self, what: &'static str, value: u64) {
        self.0.lock().push((what, value));
    }

    /// What it was told since it was last asked.
    pub fn take(&self) -> Vec<(&'static str, u64)> {
        std::mem::take(&mut self.0.lock())
    }
}

/// A way to build a [`Rig`].
pub type Build = fn() -> Rig;

/// What the guest sees while a program runs.
pub type Answers = Vec<[u8; 8]>;

impl Rig {
    /// Runs a program; answers what its reads read.
    pub fn run(&self, program: &[u8]) -> Answers {
        let mut program = Program::new(program);
        let mut answers = Vec::new();
        while !program.is_empty() {
            self.step(&mut program, &mut answers);
        }
        answers
    }

    fn step(&self, program: &mut Program<'_>, answers: &mut Answers) {
        let Some(chip) = self.devices.first() else { return };
        let code = program.byte();
        let width = 1_usize << (code >> 4 & 3);
        let window = usize::from(code >> 6) % self.windows.len().max(1);
        let len = self.windows.get(window).copied().unwrap_or(1).max(1);
        match code & 0xf {
            0..=5 => {
                let offset = program.number(if len > 0x100 { 4 } else { 1 }) % len;
                let value = program.number(width).to_le_bytes();
                chip.write(window, offset, value.get(..width).unwrap_or_default());
            }
            6..=11 => {
                let offset = program.number(if len > 0x100 { 4 } else { 1 }) % len;
                let mut answer = [0; 8];
                chip.read(window, offset, answer.get_mut(..width).unwrap_or_default());
                answers.push(answer);
            }
            12 | 13 => {
                // From nanoseconds to a day.
                let ns = program.number(2) << (2 * (code >> 4).min(14));
                self.clock.advance(ns);
                self.timers.run_expired();
            }
            _ => (self.event)(program.byte(), program.byte()),
        }
    }

    /// The records of all devices.
    ///
    /// # Panics
    /// If a device cannot be saved.
    pub fn save(&self) -> Vec<Record> {
        let save = |device: &Arc<dyn Device>| device.save().unwrap_or_else(|error| panic!("{error}"));
        self.devices.iter().map(save).collect()
    }

    /// Restores all devices.
    ///
    /// # Panics
    /// If a device refuses.
    pub fn restore(&self, records: &[Record]) {
        // What belongs to the chip's state comes first: the chip may look at it.
        for (device, record) in self.devices.iter().zip(records).rev() {
            device.restore(record).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// Runs the first half of a program, moves the state to a fresh chip, and runs the second half on both.
///
/// # Panics
/// If the two differ: that is what it is for.
pub fn check(build: Build, program: &[u8]) {
    let (before, after) = program.split_at(program.len() / 2);
    let original = build();
    original.run(before);
    let saved = original.save();
    let copy = build();
    copy.clock.advance(original.clock.now_ns());
    copy.restore(&saved);
    assert_eq!(copy.save(), saved, "the restored state saves differently");
    // Restoring may repeat levels that the board forgot.
    original.witness.take();
    copy.witness.take();
    assert_eq!(copy.run(after), original.run(after), "the restored chip answers differently");
    assert_eq!(
        copy.witness.take(),
        original.witness.take(),
        "the restored chip tells the board something else"
    );
    assert_eq!(copy.save(), original.save(), "the restored chip went another way");
    original.devices.iter().for_each(|device| device.reset());
    original.run(before);
}

/// A program of random bytes. Half of them are small, as register numbers are.
pub fn random_program(seed: u64, len: usize) -> Vec<u8> {
    let byte = |random: u64| if random & 0x100 != 0 { random as u8 } else { random as u8 & 0x0f };
    noise(seed).map(byte).take(len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chip_survives_noise_and_a_move() {
        let rounds = std::env::var("CHIPSET_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
        for (name, build) in CHIPS {
            for seed in 0..rounds.unwrap_or(300) {
                let program = random_program(seed, 600);
                let result = std::panic::catch_unwind(|| check(build, &program));
                assert!(result.is_ok(), "{name} fails with seed {seed}");
            }
        }
    }

    /// The alarm was set anew, and too late, after seconds that nobody had asked about.
    #[test]
    fn what_fuzzing_found_stays_mended() {
        let program = [
            0x85, 0x86, 0xb, 0xd2, 0xff, 0xf1, 0x24, 0x7c, 0x7a, 0xed, 0xed, 0xed, 0xed, 0xed, 0xed, 0x2e,
            0xed, 0xed, 0xed, 0xed, 0xed, 0xed, 0xed, 0xed, 0xed, 0xed, 0xed, 0x3b, 0xcc, 0xcc, 0xed, 0xed,
            0xed, 0xed, 0xed, 0xed, 0xed, 0xed, 0xed, 0xed, 0xff, 0, 0xf7, 2, 0xff, 0x71,
        ];
        check(super::rtc, &program);
    }

    #[test]
    fn every_chip_survives_many_threads() {
        for (_, build) in CHIPS {
            let rig = build();
            std::thread::scope(|scope| {
                for seed in 0..4 {
                    let rig = &rig;
                    scope.spawn(move || rig.run(&random_program(seed, 20_000)));
                }
            });
            let saved = rig.save();
            let copy = build();
            copy.clock.advance(rig.clock.now_ns());
            copy.restore(&saved);
            assert_eq!(copy.save(), saved);
        }
    }

    #[test]
    fn no_chip_takes_anothers_record_or_a_broken_one() {
        for (name, build) in CHIPS {
            let rig = build();
            let chip = &rig.devices[0];
            let mut record = chip.save().unwrap();
            assert_eq!(record.name, chip.name());
            record.version += 1;
            assert!(chip.restore(&record).is_err(), "{name}");
            record.version -= 1;
            record.kind.push('x');
            assert!(chip.restore(&record).is_err(), "{name}");
            record.kind.pop();
            record.payload.truncate(record.payload.len() / 2);
            assert!(chip.restore(&record).is_err(), "{name}");
        }
    }
}
