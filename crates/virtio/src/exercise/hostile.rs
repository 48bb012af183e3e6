//! A driver that keeps no rule: random registers, random rings, random descriptors.
//!
//! Bytes are read as a little program. [`check`] asserts what every device must keep: nothing panics or hangs, nothing
//! outside of RAM is touched (which memory refuses by itself), and a saved state moves to a fresh function that
//! answers alike.

use super::rigs::Build;
use super::{Bench, Wish};
use crate::pci::bits::{BAR_SIZE, COMMON, DEVICE, NOTIFY};
use device::Device;
use device::exercise::{Program, noise};
use device::pci::PciFunction;

/// Batches after each step: a ring that the device's own writes keep filling never ends.
const BATCHES: usize = 40;
const RINGS: u64 = 0x1000;

/// An address: mostly in the rings or near them, sometimes anywhere.
fn address(program: &mut Program<'_>) -> u64 {
    match program.byte() & 7 {
        0..=3 => RINGS + program.number(2) % 0x3000,
        4 => 0x1_0000 + program.number(2) * 8,
        5 => super::bench::RAM[0].1.wrapping_sub(program.number(1)),
        6 => super::bench::RAM[1].0 + program.number(2),
        _ => u64::MAX - program.number(2),
    }
}

fn step(bench: &Bench, program: &mut Program<'_>, answers: &mut Vec<u64>) {
    let code = program.byte();
    let width = 1_usize << (code >> 6);
    match code & 0x1f {
        // A register of the common configuration, or of any page.
        0..=3 => bench.write(COMMON + program.number(1) % 0x40, program.number(width), width),
        4 => bench.write(program.number(2) % BAR_SIZE, program.number(width), width),
        5 => answers.push(bench.read(COMMON + program.number(1) % 0x40, width)),
        6 => answers.push(bench.read(program.number(2) % BAR_SIZE, width)),
        7 => bench.write(DEVICE + program.number(1) % 0x48, program.number(width), width),
        8..=10 => bench.write(NOTIFY + 4 * program.number(1) % 0x20, 0, 2),
        // Configuration space, the window in it too.
        11 => {
            let width = width.min(4);
            let offset = (program.number(1) as u16 & 0xff) / width as u16 * width as u16;
            let value = program.number(width).to_le_bytes();
            bench.function.config_write(offset, value.get(..width).unwrap_or_default());
        }
        12 => {
            let mut data = [0; 4];
            bench.function.config_read((program.number(1) as u16 & 0xff) / 4 * 4, &mut data);
            answers.push(u32::from_le_bytes(data).into());
        }
        // A descriptor, with small numbers for flags.
        13..=20 => {
            let at = RINGS + program.number(1) % 4 * 0x1000 + 16 * (program.number(1) % 8);
            let piece = super::Piece { address: address(program), len: length(program), writable: false };
            let (low, high) = (program.number(2) & 0x808f, program.number(2) & 0x808f);
            super::put_descriptor(&bench.memory, at, &piece, low as u16, high as u16);
        }
        // Anything in the rings: indices, flags, event suppression.
        21..=25 => {
            let at = RINGS + program.number(2) % 0x3000 & !1;
            super::put(&bench.memory, at, &(program.number(2) as u16).to_le_bytes());
        }
        26..=28 => {
            // The available index of a split ring of eight steps ahead.
            let at = RINGS + program.number(1) % 4 * 0x1000 + 128 + 2;
            let index = super::get16(&bench.memory, at).wrapping_add(program.number(1) as u16 % 9);
            super::put(&bench.memory, at, &index.to_le_bytes());
        }
        29 => drop(start(bench, program)),
        30 => drop((0..BATCHES).find(|_| !bench.function.serve_now())),
        _ => {
            bench.function.pause();
            bench.function.resume();
        }
    }
}

/// Lengths that devices care for.
fn length(program: &mut Program<'_>) -> u32 {
    match program.byte() & 7 {
        0 => 0,
        1 => 1,
        2 => 16,
        3 => 512,
        4 => 16 * (1 + program.number(1) as u32 % 32),
        5 => program.number(2) as u32,
        6 => u32::MAX - program.number(1) as u32,
        _ => program.number(1) as u32,
    }
}

/// By the book up to DRIVER_OK, so that the rest of the program has something to break. Another thread may be in the
/// way.
fn start(bench: &Bench, program: &mut Program<'_>) -> Option<Vec<super::DriverQueue>> {
    let choice = program.byte();
    let wish = Wish {
        packed: choice & 1 != 0,
        event_index: choice & 2 != 0,
        msix: choice & 4 != 0,
        size: 8,
        features: bench.features() & 0x00ff_ffff & if choice & 8 != 0 { 0 } else { u64::MAX },
    };
    bench.try_start(wish, RINGS)
}

/// Runs a program; answers what it read.
pub fn run(bench: &Bench, program: &[u8]) -> Vec<u64> {
    let mut program = Program::new(program);
    let mut answers = Vec::new();
    while !program.is_empty() {
        step(bench, &mut program, &mut answers);
    }
    answers
}

/// Runs a program; then moves the state and compares the registers of both.
///
/// # Panics
/// If something is not as it must be: that is what it is for.
pub fn check(build: Build, program: &[u8]) {
    let bench = Bench::new(build(), false);
    let wish = [program.first().copied().unwrap_or_default()];
    assert!(start(&bench, &mut Program::new(&wish)).is_some());
    run(&bench, program);
    let copy = bench.moved(build(), false);
    for offset in (0..BAR_SIZE).step_by(4).filter(|offset| offset & 0xfff < 0x100) {
        assert_eq!(copy.read(offset, 4), bench.read(offset, 4), "register {offset:#x} after a move");
    }
    run(&copy, program);
    copy.function.reset();
    assert_eq!(copy.status(), 0);
    // And it still works for a driver that keeps the rules.
    let queues = start(&copy, &mut Program::new(&[])).expect("the device takes a driver");
    assert!(queues.iter().all(|queue| queue.ring.places().descriptors >= RINGS));
    assert_eq!(copy.status() & 0x4f, 0x0f);
}

/// A program of random bytes.
pub fn random_program(seed: u64, len: usize) -> Vec<u8> {
    noise(seed).map(|value| value as u8).take(len).collect()
}
