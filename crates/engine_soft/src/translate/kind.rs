//! [`CodeKind`]: what translated code takes for granted of the mode it runs in, and instructions of the legacy modes
//! as 64-bit mode would have them.
//!
//! A kind is part of what units and the jump cache are found by (it is in the MMU's fetch key), so code of one kind
//! never runs in another. Whatever loads a segment or changes the mode is interpreted, and ends the block if the kind
//! changes.
//!
//! | kind | addresses | branches |
//! |---|---|---|
//! | 64-bit | 64 or 32 bits; FS and GS have a base | in one space |
//! | 32-bit, flat | 32 bits; only FS and GS have base and limit | as in 64-bit mode |
//! | 32-bit or 16-bit | base and limit of each segment are looked at | CS has a base; targets are compared with its limit |

use crate::cpu::{Cpu, seg};
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpKind, Register};

/// What translated code takes for granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CodeKind(u8);

/// log2 of the code size divided by 16.
const SIZE: u8 = 3;
/// CS, DS, ES and SS are based at zero, 4 GiB long, and may be used as code and data usually are; SS is a 32-bit stack.
const FLAT: u8 = 1 << 2;
/// The stack pointer has 16 bits.
const SMALL_STACK: u8 = 1 << 3;
/// Not translated.
const FOREIGN: u8 = 1 << 4;

impl CodeKind {
    /// Bits of [`CodeKind::bits`].
    pub const WIDTH: u32 = 5;
    /// 64-bit mode.
    pub const LONG: CodeKind = CodeKind(2);

    /// A number that only this kind has, below `1 << WIDTH`.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// 16, 32 or 64.
    pub const fn code_size(self) -> u8 {
        16 << (self.0 & SIZE)
    }

    pub const fn is_long(self) -> bool {
        self.0 & SIZE == 2
    }

    /// Whether there are no bases and limits but those of FS and GS.
    pub const fn is_flat(self) -> bool {
        self.is_long() || self.0 & FLAT != 0
    }

    /// Bytes of a stack pointer: 2, 4 or 8.
    pub const fn stack_size(self) -> u8 {
        if self.is_long() {
            8
        } else if self.0 & SMALL_STACK != 0 {
            2
        } else {
            4
        }
    }

    /// Whether there can be translations.
    pub const fn is_translated(self) -> bool {
        self.0 & FOREIGN == 0
    }
}

impl Cpu {
    /// Whether code of the current mode is translated.
    pub(crate) fn can_translate(&self) -> bool {
        self.kind.is_translated() && self.translator.is_some()
    }

    /// Linear address of the next instruction.
    pub(crate) fn code_address(&self) -> u64 {
        let linear = self.rip().wrapping_add(self.segment_base[usize::from(seg::CS)]);
        if self.long64 { linear } else { linear & 0xffff_ffff }
    }

    /// RIP at the start of its page, while it leads to `linear`.
    pub(super) fn page_of_rip(&self, linear: u64) -> u64 {
        self.rip().wrapping_sub(linear & 0xfff)
    }

    /// Recomputes what translated code takes for granted; part of [`Cpu::mode_changed`], after the flat segments.
    pub(crate) fn update_code_kind(&mut self) {
        if self.long64 {
            self.kind = CodeKind::LONG;
            return;
        }
        const DATA: u8 = 1 << seg::DS | 1 << seg::ES | 1 << seg::SS;
        const ALL: u8 = DATA | 1 << seg::CS;
        let cs = self.segments[usize::from(seg::CS)];
        let limit = if self.code_size == 16 { cs.limit.min(0xffff) } else { cs.limit };
        self.last_code_page = i64::from(limit) - 0xfff;
        let big = self.segments[usize::from(seg::SS)].attributes.big();
        let mut kind = self.code_size >> 5;
        kind |= if big { 0 } else { SMALL_STACK };
        let flat = self.flat_read & ALL == ALL && self.flat_write & DATA == DATA;
        kind |= if flat && big && self.code_size == 32 { FLAT } else { 0 };
        // The sum of base and offset shall not wrap, and real mode has no 32-bit code of its own.
        let wraps = cs.base.wrapping_add(u64::from(cs.limit)) > u64::from(u32::MAX);
        let foreign = wraps || self.code_size == 32 && !self.is_protected();
        self.kind = CodeKind(kind | if foreign { FOREIGN } else { 0 });
    }
}

/// Gives an instruction that 64-bit mode encodes differently the code it has there; one that is not to be translated
/// becomes invalid, so that nobody takes it for a known one.
pub(super) fn normalise(kind: CodeKind, i: &mut Instruction) {
    if kind.is_long() {
        return;
    }
    let code = same_in_long_mode(i.code());
    if code != i.code() {
        i.set_code(code);
    }
    let encoding = matches!(i.code().op_code().encoding(), EncodingKind::Legacy)
        || kind.code_size() == 32 && i.code().op_code().encoding() == EncodingKind::VEX;
    // Its address would be linear in real mode.
    let coprocessor = kind.code_size() == 16 && super::x87::is_known_form(i);
    // They leave registers 8 to 15 alone here.
    let half = matches!(i.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper);
    let known = i.op_code().mode64() || is_handled(kind, i);
    if !encoding || coprocessor || half || !known {
        i.set_code(Code::INVALID);
    }
}

fn same_in_long_mode(code: Code) -> Code {
    match code {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        code => code,
    }
}

/// Branches and stack instructions, which are never encoded again.
fn is_handled(kind: CodeKind, i: &Instruction) -> bool {
    is_near_branch(kind, i) || super::stack::slot_size(i.code()).is_some() || i.code() == Code::Leaved
}

/// Whether a branch has an operand size that is followed: the code's own, or 32 bits in 16-bit code.
fn is_near_branch(kind: CodeKind, i: &Instruction) -> bool {
    super::transfer::operand_size(i).is_some_and(|size| match kind.code_size() {
        64 => size == 8,
        32 => size == 4,
        _ => size == 2 || size == 4,
    })
}

/// Address size of a memory operand in bytes; `None` without one, or with a vector index.
pub(super) fn address_size(i: &Instruction) -> Option<u8> {
    let general = |register: Register| register.is_gpr16() || register.is_gpr32() || register.is_gpr64();
    let (base, index) = (i.memory_base(), i.memory_index());
    if !(0..i.op_count()).any(|at| i.op_kind(at) == OpKind::Memory) {
        return None;
    }
    match (base, index) {
        (Register::None, Register::None) => Some(i.memory_displ_size() as u8),
        (Register::RIP, _) => Some(8),
        (Register::EIP, _) => Some(4),
        (Register::None, index) if general(index) => Some(index.size() as u8),
        (base, Register::None) if general(base) => Some(base.size() as u8),
        (base, index) if general(base) && general(index) => Some(base.size() as u8),
        _ => None,
    }
}
