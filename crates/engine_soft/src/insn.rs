//! [`Insn`]: a decoded instruction, as the interpreter wants it.

use crate::cpu::{Cpu, Flow};

/// What executes an instruction.
pub type Handler = fn(&mut Cpu, &Insn) -> Flow;

/// LOCK prefix.
pub const LOCK: u8 = 1 << 0;
/// F3 prefix (REP, REPE).
pub const REP: u8 = 1 << 1;
/// F2 prefix (REPNE).
pub const REPNE: u8 = 1 << 2;
/// There is a memory operand.
pub const MEMORY: u8 = 1 << 3;

/// A decoded instruction. Register fields are byte offsets in `Cpu::regs` for general registers (AH is 1;
/// see [`crate::cpu::gpr`]) and plain numbers for vector, mask, x87, segment, control and debug registers.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Insn {
    /// What executes it.
    pub handler: Handler,
    /// Immediate, sign-extended as the instruction wants; branch displacement from the next instruction; far
    /// pointers: offset in bits 0–31, selector in 32–47. A second immediate (ENTER) is in bits 32–47.
    pub imm: u64,
    /// Displacement; relative to this instruction's start for RIP-relative operands.
    pub disp: i32,
    /// Base register (byte offset).
    pub base: u8,
    /// Index register (byte offset).
    pub index: u8,
    /// log2 of the scale in bits 0–1, mode size of the code (16, 32 or 64) in bits 4–6.
    pub form: u8,
    /// Bits of an effective address that its size leaves out: 0, 32 or 48.
    pub address_cut: u8,
    /// Segment of the memory operand, 0–5.
    pub segment: u8,
    /// First register operand: operand 0 if that is a register, else operand 1.
    pub dst: u8,
    /// The following register operand.
    pub src: u8,
    /// Third register operand (VEX: operand 2 if that is a register).
    pub src2: u8,
    /// Length in bytes.
    pub len: u8,
    /// [`LOCK`], [`REP`], [`REPNE`], [`MEMORY`].
    pub flags: u8,
    /// Operand size in bytes (2, 4, 8) by prefixes and mode.
    pub operand_size: u8,
    /// Free for the handler's group (x87 and SIMD decoders).
    pub extra: u8,
}

// Thousands of them are kept: two a cache line.
const _: () = assert!(size_of::<Insn>() == 32);

impl Insn {
    /// Address size in bytes.
    #[inline(always)]
    pub fn address_size(&self) -> u8 {
        (64 - self.address_cut) / 8
    }
    /// Sets the address size: 2, 4 or 8 bytes.
    pub fn set_address_size(&mut self, bytes: u8) {
        self.address_cut = 64 - 8 * bytes;
    }
    /// Mask of the effective address.
    #[inline(always)]
    pub fn address_mask(&self) -> u64 {
        u64::MAX >> (self.address_cut & 63)
    }
    /// log2 of the scale.
    #[inline(always)]
    pub fn scale(&self) -> u8 {
        self.form & 3
    }
    /// Sets log2 of the scale.
    pub fn set_scale(&mut self, scale: u8) {
        self.form = self.code_size() | scale & 3;
    }
    /// Mode size of the code: 16, 32 or 64.
    #[inline(always)]
    pub fn code_size(&self) -> u8 {
        self.form & 0x70
    }
    /// Whether the operand is in memory.
    #[inline(always)]
    pub fn has_memory(&self) -> bool {
        self.flags & MEMORY != 0
    }
}
