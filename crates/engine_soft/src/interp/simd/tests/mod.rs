//! Tests of the vector instructions. The oracle is the host: it executes the same bytes on its own whole
//! state ([`native`]), where the handlers see them renamed, through copies.

mod control;
mod differential;
mod exceptions;
mod known_answers;
mod memory;
pub(crate) mod native;
mod xsave;

use crate::cpu::{Cpu, Flow, Stop, gpr, seg};
use crate::insn::{Insn, MEMORY};
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};
use x86::{Exception, Vector};

pub(crate) use crate::interp::harness::{DATA, cpu};

/// Decodes one 64-bit instruction and runs its handler.
pub(crate) fn run(cpu: &mut Cpu, bytes: &[u8]) -> Flow {
    let instruction = decode(bytes);
    let mut insn = insn(&instruction);
    let handler = super::select(&instruction, &mut insn)
        .or_else(|| crate::interp::x87::select(&instruction, &mut insn))
        .unwrap_or_else(|| panic!("no handler for {:?}", instruction.code()));
    handler(cpu, &insn)
}

/// Runs an instruction that must raise.
pub(crate) fn fault(cpu: &mut Cpu, bytes: &[u8]) -> Exception {
    assert_eq!(run(cpu, bytes), Err(Stop::Fault), "{bytes:02x?}");
    cpu.exception
}

/// Runs an instruction that must raise `vector`.
pub(crate) fn faults(cpu: &mut Cpu, bytes: &[u8], vector: Vector) {
    assert_eq!(fault(cpu, bytes).vector, vector, "{bytes:02x?}");
}

pub(crate) fn decode(bytes: &[u8]) -> Instruction {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    assert!(!instruction.is_invalid(), "{bytes:02x?}");
    instruction
}

/// Fills in what the decoder fills in before it asks `select`.
pub(crate) fn insn(instruction: &Instruction) -> Insn {
    let memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    let offset = |register: Register| match register {
        register if register.is_gpr64() => register.number() as u8 * 8,
        _ => gpr::ZERO,
    };
    let mut registers = (0..instruction.op_count())
        .filter(|&at| instruction.op_kind(at) == OpKind::Register)
        .map(|at| instruction.op_register(at))
        .map(|register| register.number() as u8 * if register.is_gpr() { 8 } else { 1 });
    Insn {
        handler: |_, _| Ok(()),
        disp: instruction.memory_displacement64() as i32,
        imm: 0,
        base: offset(instruction.memory_base()),
        index: offset(instruction.memory_index()),
        form: 64 | instruction.memory_index_scale().trailing_zeros() as u8,
        address_cut: 0,
        segment: seg::DS,
        dst: registers.next().unwrap_or(0),
        src: registers.next().unwrap_or(0),
        src2: registers.next().unwrap_or(0),
        len: instruction.len() as u8,
        flags: if memory { MEMORY } else { 0 },
        operand_size: 4,
        extra: 0,
    }
}

/// A small generator of reproducible numbers (splitmix64).
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
    /// Bytes that are often interesting as integers, singles, doubles or halves.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        const DOUBLES: [u64; 12] = [
            0,
            1 << 63,
            0x3ff0_0000_0000_0000,
            0xbff8_0000_0000_0001,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0123,
            0x7ff0_0000_0000_0001,
            0x0000_0000_0000_0001,
            0x7fef_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
            0x43e0_0000_0000_0000,
        ];
        const SINGLES: [u32; 10] = [
            0,
            0x3f80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0123,
            0x7f80_0001,
            1,
            0x8000_0000,
            0x7f7f_ffff,
            0x4f00_0000,
        ];
        for chunk in bytes.chunks_mut(8) {
            let single = |random: &mut Self| u64::from(SINGLES[random.below(SINGLES.len())]);
            let value = match self.below(5) {
                0 => DOUBLES[self.below(DOUBLES.len())],
                1 => single(self) | single(self) << 32,
                2 => self.next() & 0xbfff_ffff_bfff_ffff,
                3 => self.next() & 0x0707_0707_0707_0707,
                _ => self.next(),
            };
            let length = chunk.len();
            chunk.copy_from_slice(&value.to_le_bytes()[..length]);
        }
    }
}
