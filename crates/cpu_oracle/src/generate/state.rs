//! Vector and x87 state of mixed patterns: integers, floats of all classes, and random bits.

use crate::XSAVE_SIZE;
use crate::random::Random;

/// Draws an XSAVE area in the standard format.
pub(super) fn draw_xsave(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; XSAVE_SIZE];
    for at in (160..416).chain(576..XSAVE_SIZE).step_by(8) {
        bytes[at..at + 8].copy_from_slice(&draw_lane(random).to_le_bytes());
    }
    let mxcsr: u32 = match random.below(8) {
        0 => (random.bits() as u32 & 0xffff) | 0x1f80,
        1 => random.bits() as u32 & 0xffff,
        _ => 0x1f80,
    };
    bytes[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    draw_x87(random, &mut bytes);
    bytes[512] = 7;
    bytes
}

/// Exceptions of FCW and FSW.
const EXCEPTIONS: u16 = 0x3f;
/// FSW: error summary and busy.
const SUMMARY: u16 = 0x8080;

fn draw_x87(random: &mut Random, bytes: &mut [u8]) {
    let control: u16 = match random.below(4) {
        0 => 0x040 | (random.bits() as u16 & 0xf3f),
        1 => 0x37f & !(random.bits() as u16 & 0x3f),
        _ => 0x37f,
    };
    bytes[0..2].copy_from_slice(&control.to_le_bytes());
    let mut status = (random.below(8) as u16) << 11 | (random.bits() as u16 & 0x4700);
    if random.one_in(12) {
        status |= random.bits() as u16 & (EXCEPTIONS | 0x40);
        if status & !control & EXCEPTIONS != 0 {
            status |= SUMMARY;
        }
    }
    bytes[2..4].copy_from_slice(&status.to_le_bytes());
    bytes[4] = if random.one_in(3) { random.bits() as u8 } else { 0xff };
    let opcode = random.bits() as u16 & 0x7ff;
    bytes[6..8].copy_from_slice(&opcode.to_le_bytes());
    for at in [8, 16] {
        let pointer = random.bits() & 0x7fff_ffff_ffff;
        bytes[at..at + 8].copy_from_slice(&pointer.to_le_bytes());
    }
    for register in 0..8 {
        let at = 32 + register * 16;
        let exponent = match random.below(6) {
            0 => 0,
            1 => 0x7fff,
            2 => random.bits() as u16 & 0x7fff,
            _ => 0x3ff0 + random.below(0x40) as u16,
        };
        let significand = if random.one_in(6) { random.value() } else { random.bits() | 1 << 63 };
        bytes[at..at + 8].copy_from_slice(&significand.to_le_bytes());
        let sign = (random.bits() as u16) & 0x8000;
        bytes[at + 8..at + 10].copy_from_slice(&(exponent | sign).to_le_bytes());
    }
}

fn draw_lane(random: &mut Random) -> u64 {
    let single = |random: &mut Random| -> u64 {
        let special = [
            0_u32,
            0x8000_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0x7f80_0001,
            1,
            0x007f_ffff,
            0x7f7f_ffff,
        ];
        u64::from(match random.below(3) {
            0 => random.pick(&special),
            1 => (random.bits() as i32 as f32 / 65536.0).to_bits(),
            _ => random.bits() as u32,
        })
    };
    match random.below(4) {
        0 => random.value(),
        1 => {
            let special = [0.0, -0.0, f64::INFINITY, f64::NAN, f64::MIN_POSITIVE, 1.0, f64::MAX, 5e-324];
            random.pick(&special).to_bits()
        }
        2 => (random.bits() as i64 as f64 / 4_294_967_296.0).to_bits(),
        _ => single(random) | single(random) << 32,
    }
}
