//! From bytes to [`Insn`].
//!
//! `iced-x86` finds length, operands and illegal encodings; [`fill`] brings the operands into our form, and
//! the `select` functions, one per group, choose the handler by mnemonic and operand kinds.

mod alu;
mod control;
mod data;
mod string;

use crate::cpu::{Cpu, Flow, gpr, seg};
use crate::insn::{Handler, Insn, LOCK, MEMORY, REP, REPNE};
use crate::interp::{simd, x87};
use crate::system::{self, SystemState};
use iced_x86::{
    CpuidFeature, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

/// What the bytes hold.
pub enum Decoded {
    /// An instruction; an illegal one has a handler that raises the fault.
    Insn {
        /// The instruction.
        insn: Insn,
        /// Whether execution may go elsewhere after it.
        ends_block: bool,
    },
    /// The instruction continues behind the bytes.
    NeedsMore,
    /// More than 15 bytes.
    TooLong,
}

/// Where instructions are decoded at: displacements are made relative to it.
const ORIGIN: u64 = 0x1000;

/// Longest instruction, in bytes.
const LONGEST: usize = 15;

/// Length of an instruction that does not exist, as far as its prefixes, opcode and ModRM tell. If that is too much,
/// silicon raises #GP rather than #UD.
fn undefined_len(bytes: &[u8], code_size: u8) -> usize {
    let start = bytes.iter().position(|&byte| !is_prefix(byte, code_size)).unwrap_or(bytes.len());
    let (prefixes, rest) = bytes.split_at(start);
    let register = rest.get(1).is_some_and(|byte| byte & 0xc0 == 0xc0) || code_size == 64;
    // Bytes up to the opcode, and of the immediate.
    let (head, immediate) = match rest {
        [0x0f, 0x38, ..] => (3, 0),
        [0x0f, 0x3a, ..] => (3, 1),
        [0x0f, 0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6, ..] => (2, 1),
        [0x0f, ..] => (2, 0),
        [0xc5, _, opcode, ..] if register => {
            (3, usize::from(matches!(opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6)))
        }
        [0xc4, map, ..] if register => (4, usize::from(map & 0x1f == 3)),
        [0x62, map, ..] if register => (5, usize::from(map & 7 == 3)),
        _ => (1, 0),
    };
    // Of VEX and EVEX behind 66, F2, F3, LOCK or REX the opcode counts, not what follows.
    let spoiled = prefixes.iter().any(|&byte| matches!(byte, 0x66 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f));
    if spoiled && register && matches!(rest, [0xc4 | 0xc5 | 0x62, ..]) {
        return prefixes.len() + head;
    }
    let short = match code_size {
        16 => !prefixes.contains(&0x67),
        32 => prefixes.contains(&0x67),
        _ => false,
    };
    prefixes.len() + head + modrm_len(rest.get(head..).unwrap_or_default(), short) + immediate
}

/// Bytes of ModRM, SIB and displacement; `short` for 16-bit addresses.
fn modrm_len(bytes: &[u8], short: bool) -> usize {
    let Some(&modrm) = bytes.first() else { return 1 };
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if short {
        return match (mode, rm) {
            (0, 6) | (2, _) => 3,
            (1, _) => 2,
            _ => 1,
        };
    }
    let sib = usize::from(mode != 3 && rm == 4);
    let base = bytes.get(1).map_or(0, |sib| sib & 7);
    let displacement = match mode {
        0 if rm == 5 || rm == 4 && base == 5 => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    1 + sib + displacement
}

fn is_prefix(byte: u8, code_size: u8) -> bool {
    let rex = code_size == 64 && (0x40..=0x4f).contains(&byte);
    rex || matches!(byte, 0x66 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 | 0xf0 | 0xf2 | 0xf3)
}

/// Decodes the first instruction of `bytes`.
pub fn decode(system: &SystemState, bytes: &[u8], code_size: u8) -> Decoded {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let mut decoder = Decoder::with_ip(u32::from(code_size), bytes, ORIGIN, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return if bytes.len() == LONGEST { Decoded::TooLong } else { Decoded::NeedsMore };
        }
        if bytes.len() == LONGEST && undefined_len(bytes, code_size) > LONGEST {
            return Decoded::TooLong;
        }
        return Decoded::Insn { insn: illegal(bytes.len() as u8, code_size), ends_block: true };
    }
    let mut insn = fill(&instruction, bytes, code_size);
    if !is_offered(system, &instruction) {
        insn.handler = undefined;
    } else if let Some(handler) = select(&instruction, &mut insn) {
        insn.handler = handler;
        if let Some(modrm) = x87_modrm(bytes, code_size) {
            insn.src2 = modrm;
        }
    }
    let ends_block = instruction.flow_control() != FlowControl::Next;
    Decoded::Insn { insn, ends_block }
}

fn select(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    data::select(i, insn)
        .or_else(|| alu::select(i, insn))
        .or_else(|| control::select(i, insn))
        .or_else(|| string::select(i))
        .or_else(|| simd::select(i, insn))
        .or_else(|| x87::select(i, insn))
        .or_else(|| system::select(i, insn))
}

fn undefined(cpu: &mut Cpu, _: &Insn) -> Flow {
    Err(cpu.ud().into())
}

fn illegal(len: u8, code_size: u8) -> Insn {
    Insn {
        handler: undefined,
        imm: 0,
        disp: 0,
        base: gpr::ZERO,
        index: gpr::ZERO,
        form: code_size,
        address_cut: 0,
        segment: 3,
        dst: gpr::ZERO,
        src: gpr::ZERO,
        src2: gpr::ZERO,
        len,
        flags: 0,
        operand_size: 4,
        extra: 0,
    }
}

/// Whether the CPU model has the instruction. Encodings that older processors execute as no-ops, or as
/// another instruction, are always there.
fn is_offered(system: &SystemState, i: &Instruction) -> bool {
    if is_hint(i) {
        return true;
    }
    i.cpuid_features().iter().all(|&feature| match feature {
        CpuidFeature::INTEL8086
        | CpuidFeature::INTEL8086_ONLY
        | CpuidFeature::INTEL186
        | CpuidFeature::INTEL286
        | CpuidFeature::INTEL386
        | CpuidFeature::INTEL486
        | CpuidFeature::X64
        | CpuidFeature::SMM
        | CpuidFeature::FPU
        | CpuidFeature::FPU287
        | CpuidFeature::FPU387
        | CpuidFeature::MULTIBYTENOP
        | CpuidFeature::PAUSE
        | CpuidFeature::RDPMC
        | CpuidFeature::CPUID => true,
        CpuidFeature::PREFETCHW | CpuidFeature::PREFETCHWT1 => true,
        CpuidFeature::BMI1 if i.mnemonic() == Mnemonic::Tzcnt => true,
        CpuidFeature::LZCNT => true,
        feature => system.has_feature(feature),
    })
}

/// Whether the CPU model has all features of an instruction, and so executes it as the host does.
pub(crate) fn is_offered_strictly(system: &SystemState, i: &Instruction) -> bool {
    i.cpuid_features().iter().all(|&feature| match feature {
        CpuidFeature::INTEL8086
        | CpuidFeature::INTEL186
        | CpuidFeature::INTEL286
        | CpuidFeature::INTEL386
        | CpuidFeature::INTEL486
        | CpuidFeature::FPU
        | CpuidFeature::FPU287
        | CpuidFeature::FPU387
        | CpuidFeature::X64 => true,
        feature => system.has_feature(feature),
    })
}

fn is_hint(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Endbr64
            | M::Endbr32
            | M::Rdsspd
            | M::Rdsspq
            | M::Cldemote
            | M::Prefetchit0
            | M::Prefetchit1
            | M::Prefetchw
            | M::Prefetchwt1
            | M::Wbnoinvd
            | M::Ud0
            | M::Ud1
            | M::Ud2
    )
}

/// Byte offset of a general register, or the number of any other.
pub(crate) fn register(register: Register) -> u8 {
    match register {
        Register::None => gpr::ZERO,
        Register::AH | Register::CH | Register::DH | Register::BH => {
            (register as u32 - Register::AH as u32) as u8 * 8 + 1
        }
        Register::RIP | Register::EIP => gpr::RIP,
        r if r.is_gpr() => r.full_register().number() as u8 * 8,
        r => r.number() as u8,
    }
}

fn fill(i: &Instruction, bytes: &[u8], code_size: u8) -> Insn {
    let mut insn = illegal(i.len() as u8, code_size);
    insn.flags = u8::from(i.has_lock_prefix()) * LOCK
        | u8::from(i.has_rep_prefix() || i.has_repe_prefix()) * REP
        | u8::from(i.has_repne_prefix()) * REPNE;
    insn.operand_size = operand_size(bytes, code_size);
    let mut registers = 0;
    let mut immediates = 0;
    for operand in 0..i.op_count() {
        match i.op_kind(operand) {
            OpKind::Register => {
                let number = register(i.op_register(operand));
                match registers {
                    0 => insn.dst = number,
                    1 => insn.src = number,
                    2 => insn.src2 = number,
                    _ => {}
                }
                registers += 1;
            }
            OpKind::NearBranch16 => {
                let next = (ORIGIN as u16).wrapping_add(i.len() as u16);
                insn.imm = i.near_branch16().wrapping_sub(next) as i16 as u64;
            }
            OpKind::NearBranch32 => {
                let next = (ORIGIN as u32).wrapping_add(i.len() as u32);
                insn.imm = i.near_branch32().wrapping_sub(next) as i32 as u64;
            }
            OpKind::NearBranch64 => {
                insn.imm = i.near_branch64().wrapping_sub(ORIGIN + i.len() as u64);
            }
            OpKind::FarBranch16 => {
                insn.imm = u64::from(i.far_branch16()) | u64::from(i.far_branch_selector()) << 32;
            }
            OpKind::FarBranch32 => {
                insn.imm = u64::from(i.far_branch32()) | u64::from(i.far_branch_selector()) << 32;
            }
            OpKind::Memory => fill_memory(i, &mut insn),
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => {
                fill_string(i, &mut insn, 2);
            }
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                fill_string(i, &mut insn, 4);
            }
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => {
                fill_string(i, &mut insn, 8);
            }
            _ => {
                let value = i.immediate(operand);
                if immediates == 0 {
                    insn.imm = value;
                } else {
                    insn.imm |= value << 32;
                }
                immediates += 1;
            }
        }
    }
    insn
}

fn fill_string(i: &Instruction, insn: &mut Insn, address_size: u8) {
    insn.set_address_size(address_size);
    insn.segment = segment(i, insn.code_size());
    insn.flags |= MEMORY;
}

/// Segment of the memory operand. 64-bit mode ignores overrides but FS and GS; the default still tells
/// whether a non-canonical address raises #SS.
fn segment(i: &Instruction, code_size: u8) -> u8 {
    let number = i.memory_segment().number() as u8 & 7;
    if code_size != 64 || number >= seg::FS {
        return number;
    }
    match i.memory_base() {
        Register::RSP | Register::RBP | Register::ESP | Register::EBP => seg::SS,
        _ => seg::DS,
    }
}

fn fill_memory(i: &Instruction, insn: &mut Insn) {
    let (base, index) = (i.memory_base(), i.memory_index());
    insn.flags |= MEMORY;
    insn.segment = segment(i, insn.code_size());
    insn.base = register(base);
    insn.index = if index.is_gpr() { register(index) } else { gpr::ZERO };
    insn.set_scale(i.memory_index_scale().trailing_zeros() as u8);
    let size = if base != Register::None {
        base.size() as u32
    } else if index.is_gpr() {
        index.size() as u32
    } else {
        i.memory_displ_size()
    };
    insn.set_address_size(if matches!(size, 2 | 8) { size as u8 } else { 4 });
    let mut displacement = i.memory_displacement64();
    if i.is_ip_rel_memory_operand() {
        displacement = displacement.wrapping_sub(ORIGIN);
    }
    // What smaller addresses lose by the cut is masked off anyway.
    insn.disp = displacement as i32;
    if data::is_absolute(i) {
        insn.imm = displacement;
    } else if size == 8 && insn.disp as u64 != displacement {
        (insn.index, insn.disp) = (gpr::HALF, displacement.wrapping_sub(1 << 31) as i32);
    }
}

/// The ModRM byte of an x87 instruction: FOP keeps it as it was encoded.
fn x87_modrm(bytes: &[u8], code_size: u8) -> Option<u8> {
    let at = bytes.iter().position(|&byte| !is_prefix(byte, code_size))?;
    let escape = (0xd8..=0xdf).contains(bytes.get(at)?);
    bytes.get(at + 1).copied().filter(|_| escape)
}

/// Operand size in bytes by mode, 66 and REX.W.
fn operand_size(bytes: &[u8], code_size: u8) -> u8 {
    let mut other = false;
    let mut wide = false;
    for &byte in bytes {
        match byte {
            0x66 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 | 0xf0 | 0xf2 | 0xf3 => {
                other |= byte == 0x66;
                // A REX prefix counts only right before the opcode.
                wide = false;
            }
            0x40..=0x4f if code_size == 64 => wide = byte & 8 != 0,
            _ => break,
        }
    }
    match (wide, other, code_size) {
        (true, ..) => 8,
        (false, true, 16) | (false, false, 32 | 64) => 4,
        _ => 2,
    }
}

/// Size in bytes of an operand: register or memory.
fn size_of_operand(i: &Instruction, operand: u32) -> usize {
    match i.op_kind(operand) {
        OpKind::Register => i.op_register(operand).size(),
        _ => i.memory_size().size(),
    }
}

/// `handler::<.., T>` with `T` of the given size in bytes.
macro_rules! sized {
    ($size:expr, $handler:ident $(, $parameter:ty)*) => {
        match $size {
            1 => $handler::<$($parameter,)* u8> as $crate::insn::Handler,
            2 => $handler::<$($parameter,)* u16>,
            4 => $handler::<$($parameter,)* u32>,
            _ => $handler::<$($parameter,)* u64>,
        }
    };
}
use sized;
