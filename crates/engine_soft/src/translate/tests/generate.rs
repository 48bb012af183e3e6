//! Random instructions of every form that the translator knows, and some that it does not.

use super::{Random, legacy};
use crate::interp::harness::{DATA, UNMAPPED};
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, OpCodeOperandKind as Kind, Register};

/// Registers that hold addresses and are rarely written.
pub(super) const POINTERS: [u8; 4] = [3, 5, 12, 14];

pub(in crate::translate) fn codes(bits: u32) -> Vec<Code> {
    use iced_x86::Mnemonic as M;
    let wanted = |code: &Code| {
        let info = code.op_code();
        let more = matches!(
            code.mnemonic(),
            M::Div | M::Idiv | M::Push | M::Pop | M::Leave | M::Nop | M::Cld | M::Pushfq
        ) || is_string(*code);
        info.is_available_in_mode(bits)
            && matches!(info.encoding(), iced_x86::EncodingKind::Legacy | iced_x86::EncodingKind::VEX)
            && (super::super::copy::is_integer(code.mnemonic()) || more)
    };
    Code::values().filter(wanted).filter(|code| !skipped(*code)).collect()
}

/// SSE and AVX instructions on registers and plain memory.
pub(in crate::translate) fn vector_codes(bits: u32) -> Vec<Code> {
    let wanted = |code: &Code| {
        let info = code.op_code();
        let encoding =
            matches!(info.encoding(), iced_x86::EncodingKind::Legacy | iced_x86::EncodingKind::VEX);
        let vector = (0..info.op_count()).any(|at| {
            let class = operand_class(info.op_kind(at));
            matches!(
                class,
                Some(Class::Vector(_) | Class::VectorOrMemory(_) | Class::Mmx | Class::MmxOrMemory)
            )
        });
        info.is_available_in_mode(bits) && encoding && vector && !code.mnemonic_is_masked()
    };
    Code::values().filter(wanted).filter(|code| !skipped(*code)).collect()
}

trait Masked {
    fn mnemonic_is_masked(&self) -> bool;
}

impl Masked for Code {
    /// XSAVE's and others' memory has no fixed size.
    fn mnemonic_is_masked(&self) -> bool {
        let features = self.cpuid_features();
        features.iter().any(|f| matches!(f, iced_x86::CpuidFeature::SSE4A | iced_x86::CpuidFeature::XOP))
    }
}

/// x87 instructions, those that load and store whole environments left out.
pub(in crate::translate) fn x87_codes(bits: u32) -> Vec<Code> {
    let wanted = |code: &Code| {
        let info = code.op_code();
        let value = if info.op_code_len() == 2 { info.op_code() >> 8 } else { info.op_code() };
        let name = format!("{code:?}");
        let whole = ["env", "rstor", "save"].iter().any(|part| name.to_lowercase().contains(part));
        let escape = (0xd8..=0xdf).contains(&value) && info.table() == iced_x86::OpCodeTableKind::Normal;
        info.is_available_in_mode(bits)
            && escape
            && info.encoding() == iced_x86::EncodingKind::Legacy
            && !whole
    };
    Code::values().filter(wanted).filter(|code| !skipped(*code)).collect()
}

/// Far, segment, control and debug registers, and absolute addresses.
fn skipped(code: Code) -> bool {
    let info = code.op_code();
    (0..info.op_count()).any(|at| operand_class(info.op_kind(at)).is_none())
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    General(u32),
    Memory,
    GeneralOrMemory(u32),
    Vector(u32),
    VectorOrMemory(u32),
    Mmx,
    MmxOrMemory,
    Immediate,
    /// ST(i).
    Stack,
    Implied,
}

fn operand_class(kind: Kind) -> Option<Class> {
    Some(match kind {
        Kind::r8_reg | Kind::r8_opcode => Class::General(1),
        Kind::r16_reg | Kind::r16_opcode | Kind::r16_rm | Kind::r16_reg_mem => Class::General(2),
        Kind::r32_reg | Kind::r32_opcode | Kind::r32_rm | Kind::r32_vvvv | Kind::r32_reg_mem => {
            Class::General(4)
        }
        Kind::r64_reg | Kind::r64_opcode | Kind::r64_rm | Kind::r64_vvvv | Kind::r64_reg_mem => {
            Class::General(8)
        }
        Kind::r8_or_mem => Class::GeneralOrMemory(1),
        Kind::r16_or_mem => Class::GeneralOrMemory(2),
        Kind::r32_or_mem => Class::GeneralOrMemory(4),
        Kind::r64_or_mem => Class::GeneralOrMemory(8),
        Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => Class::Vector(16),
        Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => Class::Vector(32),
        Kind::xmm_or_mem => Class::VectorOrMemory(16),
        Kind::ymm_or_mem => Class::VectorOrMemory(32),
        Kind::mm_reg | Kind::mm_rm => Class::Mmx,
        Kind::mm_or_mem => Class::MmxOrMemory,
        Kind::mem => Class::Memory,
        Kind::imm8
        | Kind::imm8sex16
        | Kind::imm8sex32
        | Kind::imm8sex64
        | Kind::imm16
        | Kind::imm32
        | Kind::imm32sex64
        | Kind::imm64 => Class::Immediate,
        Kind::st0 => Class::Stack,
        Kind::sti_opcode => Class::Stack,
        Kind::al
        | Kind::cl
        | Kind::ax
        | Kind::eax
        | Kind::rax
        | Kind::dx
        | Kind::imm8_const_1
        | Kind::seg_rSI
        | Kind::es_rDI
        | Kind::seg_rDI => Class::Implied,
        _ => return None,
    })
}

fn general(random: &mut Random, size: u32, bits: u32) -> Register {
    if bits < 64 {
        return legacy::general(random, size);
    }
    let mut number = random.below(16) as u32;
    if (POINTERS.contains(&(number as u8)) || number == 4) && !random.chance(5) {
        number = [0, 1, 2, 6, 7, 8, 13, 15][random.below(8) as usize];
    }
    if number == 11 {
        // Counts rounds.
        number = 10;
    }
    match size {
        1 if random.chance(15) => Register::AH + random.below(4) as u32,
        1 if number >= 4 => Register::SPL + (number - 4),
        1 => Register::AL + number,
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

fn memory(random: &mut Random, bits: u32) -> MemoryOperand {
    if bits < 64 {
        return legacy::memory(random, bits);
    }
    let base = Register::RAX + u32::from(POINTERS[random.below(4) as usize]);
    let disp = match random.below(12) {
        0 => 0xff8 + random.below(16) as i64,
        1 => -(random.below(0x40) as i64),
        2 => (UNMAPPED - DATA) as i64 - random.below(24) as i64,
        3 | 4 => random.below(0x200) as i64,
        _ => 32 * random.below(16) as i64,
    };
    let index = [Register::None, Register::RCX, Register::R15, Register::R9][random.below(4) as usize];
    let index = if random.chance(85) { Register::None } else { index };
    let scale = if index == Register::None { 1 } else { 1 << random.below(4) };
    let segment = if random.chance(4) { Register::GS } else { Register::None };
    let base = if random.chance(3) { Register::RAX + random.below(16) as u32 } else { base };
    MemoryOperand::new(base, index, scale, disp, if disp == 0 { 0 } else { 8 }, false, segment)
}

pub(super) fn instruction(random: &mut Random, codes: &[Code], bits: u32) -> Option<Vec<u8>> {
    let code = codes[random.below(codes.len() as u64) as usize];
    let info = code.op_code();
    let mut i = Instruction::new();
    i.set_code(code);
    for at in 0..info.op_count() {
        let class = operand_class(info.op_kind(at))?;
        let to_memory = match class {
            Class::Memory => true,
            Class::GeneralOrMemory(_) | Class::VectorOrMemory(_) | Class::MmxOrMemory => random.chance(55),
            _ => false,
        };
        if to_memory {
            let m = memory(random, bits);
            i.set_op_kind(at, iced_x86::OpKind::Memory);
            i.set_memory_base(m.base);
            i.set_memory_index(m.index);
            i.set_memory_index_scale(m.scale);
            i.set_memory_displacement64(m.displacement as u64);
            i.set_memory_displ_size(m.displ_size);
            i.set_segment_prefix(m.segment_prefix);
            continue;
        }
        match class {
            Class::General(size) | Class::GeneralOrMemory(size) => {
                i.set_op_kind(at, iced_x86::OpKind::Register);
                i.set_op_register(at, general(random, size, bits));
            }
            Class::Vector(size) | Class::VectorOrMemory(size) => {
                let first = if size == 32 { Register::YMM0 } else { Register::XMM0 };
                i.set_op_kind(at, iced_x86::OpKind::Register);
                i.set_op_register(at, first + random.below(if bits == 64 { 16 } else { 8 }) as u32);
            }
            Class::Mmx | Class::MmxOrMemory => {
                i.set_op_kind(at, iced_x86::OpKind::Register);
                i.set_op_register(at, Register::MM0 + random.below(8) as u32);
            }
            Class::Stack => {
                let number = if info.op_kind(at) == Kind::st0 { 0 } else { random.below(8) as u32 };
                i.set_op_kind(at, iced_x86::OpKind::Register);
                i.set_op_register(at, Register::ST0 + number);
            }
            Class::Immediate => {
                let kind = immediate_kind(info.op_kind(at));
                i.set_op_kind(at, kind);
                let value = random.value();
                match kind {
                    iced_x86::OpKind::Immediate8 => i.set_immediate8(value as u8),
                    iced_x86::OpKind::Immediate8to16 => i.set_immediate8to16(i16::from(value as i8)),
                    iced_x86::OpKind::Immediate8to32 => i.set_immediate8to32(i32::from(value as i8)),
                    iced_x86::OpKind::Immediate8to64 => i.set_immediate8to64(i64::from(value as i8)),
                    iced_x86::OpKind::Immediate16 => i.set_immediate16(value as u16),
                    iced_x86::OpKind::Immediate32 => i.set_immediate32(value as u32),
                    iced_x86::OpKind::Immediate32to64 => i.set_immediate32to64(i64::from(value as i32)),
                    _ => i.set_immediate64(value),
                }
            }
            _ => return implied(code, random, bits),
        }
    }
    if info.can_use_lock_prefix() && i.op0_kind() == iced_x86::OpKind::Memory && random.chance(15) {
        i.set_has_lock_prefix(true);
    }
    encode(&i, bits)
}

/// The bytes, followed by a comparison if flags are undefined: the interpreter need not know them.
fn encode(i: &Instruction, bits: u32) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(bits);
    encoder.encode(i, 0).ok()?;
    let mut bytes = encoder.take_buffer();
    if i.rflags_undefined() != 0 {
        // cmp r10, rcx, or cmp eax, ecx
        bytes.extend_from_slice(if bits == 64 { &[0x49, 0x39, 0xca] } else { &[0x39, 0xc8] });
    }
    Some(bytes)
}

/// Whether an instruction has the name of a string instruction, which one of them then stands for.
fn is_string(code: Code) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Movsb
            | M::Movsw
            | M::Movsd
            | M::Movsq
            | M::Stosb
            | M::Stosd
            | M::Lodsb
            | M::Lodsq
            | M::Scasb
            | M::Cmpsb
            | M::Cmpsq
    )
}

/// Instructions with implied operands, as bytes by their simplest form.
fn implied(code: Code, random: &mut Random, bits: u32) -> Option<Vec<u8>> {
    if is_string(code) {
        // pushes and pops make the pointers good; RDI counts rounds in other programs.
        return string(code, random, bits);
    }
    let size = [4_u32, 8][random.below(2) as usize].min(bits / 8).max(4);
    let register = general(random, size, bits);
    let i = match code {
        Code::Shl_rm32_CL
        | Code::Shl_rm64_CL
        | Code::Shr_rm64_CL
        | Code::Sar_rm32_CL
        | Code::Rcl_rm64_CL
        | Code::Ror_rm32_CL => {
            let fits =
                matches!(code, Code::Shl_rm32_CL | Code::Sar_rm32_CL | Code::Ror_rm32_CL) == (size == 4);
            if !fits {
                return None;
            }
            Instruction::with2(code, register, Register::CL).ok()?
        }
        _ => return None,
    };
    encode(&i, bits)
}

/// `lea rdi, [rbp + n]; lea rsi, [rbx + n]`, at times `std`, and a string instruction.
fn string(code: Code, random: &mut Random, bits: u32) -> Option<Vec<u8>> {
    if bits < 64 {
        return None;
    }
    let mut bytes =
        vec![0x48, 0x8d, 0x7d, random.next() as u8 & 0x7f, 0x48, 0x8d, 0x73, random.next() as u8 & 0x7f];
    let backwards = random.chance(20);
    bytes.extend(backwards.then_some(0xfd));
    bytes.extend(random.chance(10).then_some(0x67));
    bytes.extend_from_slice(match code.mnemonic() {
        iced_x86::Mnemonic::Movsb => &[0xa4],
        iced_x86::Mnemonic::Movsw => &[0x66, 0xa5],
        iced_x86::Mnemonic::Movsd => &[0xa5],
        iced_x86::Mnemonic::Movsq => &[0x48, 0xa5],
        iced_x86::Mnemonic::Stosb => &[0xaa],
        iced_x86::Mnemonic::Stosd => &[0xab],
        iced_x86::Mnemonic::Lodsb => &[0xac],
        iced_x86::Mnemonic::Lodsq => &[0x48, 0xad],
        iced_x86::Mnemonic::Scasb => &[0xae],
        iced_x86::Mnemonic::Cmpsb => &[0xa6],
        _ => &[0x48, 0xa7],
    });
    bytes.extend(backwards.then_some(0xfc));
    Some(bytes)
}

fn immediate_kind(kind: Kind) -> iced_x86::OpKind {
    use iced_x86::OpKind as O;
    match kind {
        Kind::imm8 => O::Immediate8,
        Kind::imm8sex16 => O::Immediate8to16,
        Kind::imm8sex32 => O::Immediate8to32,
        Kind::imm8sex64 => O::Immediate8to64,
        Kind::imm16 => O::Immediate16,
        Kind::imm32 => O::Immediate32,
        Kind::imm32sex64 => O::Immediate32to64,
        _ => O::Immediate64,
    }
}
