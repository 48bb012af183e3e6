//! Where guest registers live in translated code, and instructions with registers changed accordingly.
//!
//! Guest registers live in the host registers of the same name, but for RSP, which lives in R15 because the
//! host's RSP stays on the host's stack, and R11, R13 and R15, which stay in [`Cpu::regs`](crate::cpu::Cpu::regs)
//! because R11 and R13 are scratch. Of these three compilers make least use: R11 comes last of what a function may lose,
//! R13 and R15 late of what it has to keep.

use super::asm::{GUEST_RSP, HOST_RSP, S1, S2};
use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpCodeOperandKind, OpKind, Register};

/// Where a guest register lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A host register.
    Host(u8),
    /// Memory.
    Home,
}

/// Places of guest registers by number.
pub(super) const HOST_OF: [Place; 16] = {
    let mut places = [Place::Home; 16];
    let mut number = 0;
    while number < 16 {
        if !matches!(number, S1 | S2 | GUEST_RSP | HOST_RSP) {
            places[number as usize] = Place::Host(number);
        }
        number += 1;
    }
    places[HOST_RSP as usize] = Place::Host(GUEST_RSP);
    places
};

/// Number of a general register of any size.
pub(super) fn number(register: Register) -> u8 {
    register.full_register().number() as u8 & 15
}

/// Place of a general register.
pub(super) fn place(register: Register) -> Place {
    HOST_OF[usize::from(number(register))]
}

/// AH, CH, DH or BH.
pub(super) fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// The register `number` at the size of `like`.
pub(super) fn sized(like: Register, number: u8) -> Register {
    let first = match like.size() {
        1 => return byte_register(number),
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    first + u32::from(number)
}

fn byte_register(number: u8) -> Register {
    match number {
        0..=3 => Register::AL + u32::from(number),
        _ => Register::SPL + u32::from(number - 4),
    }
}

/// 64-bit register by number.
pub(super) fn wide(number: u8) -> Register {
    Register::RAX + u32::from(number & 15)
}

/// What an instruction does with an operand.
pub(super) fn reads(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::Write | OpAccess::NoMemAccess)
}

/// As [`reads`], for writes.
pub(super) fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// An explicit operand that is a guest register kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Homed {
    pub guest: u8,
    pub read: bool,
    pub written: bool,
}

/// The explicit register operands that are kept in memory, each register once. `None` for more than two.
pub(super) fn homed(i: &Instruction, access: impl Fn(u32) -> OpAccess) -> Option<Vec<Homed>> {
    let mut found: Vec<Homed> = Vec::new();
    for at in 0..i.op_count() {
        if i.op_kind(at) != OpKind::Register {
            continue;
        }
        let register = i.op_register(at);
        if !register.is_gpr() || place(register) != Place::Home {
            continue;
        }
        let access = access(at);
        let written = writes(access);
        // Narrow results leave the rest of the register.
        let narrow = written && register.size() < 4;
        let conditional = matches!(access, OpAccess::CondWrite | OpAccess::ReadCondWrite);
        let read = reads(access) || narrow || conditional;
        let guest = number(register);
        match found.iter_mut().find(|held| held.guest == guest) {
            Some(held) => {
                held.read |= read;
                held.written |= written;
            }
            None => found.push(Homed { guest, read, written }),
        }
    }
    (found.len() <= 2).then_some(found)
}

/// Replaces the explicit general registers: those in memory by `scratch`, in the order of `homed`.
pub(super) fn rename(i: &mut Instruction, homed: &[Homed], scratch: &[u8]) {
    for at in 0..i.op_count() {
        if i.op_kind(at) != OpKind::Register {
            continue;
        }
        let register = i.op_register(at);
        if !register.is_gpr() || is_high_byte(register) {
            continue;
        }
        let host = match place(register) {
            Place::Host(host) => host,
            Place::Home => {
                let guest = number(register);
                let index = homed.iter().position(|held| held.guest == guest).unwrap_or(0);
                scratch.get(index).copied().unwrap_or(S1)
            }
        };
        i.set_op_register(at, sized(register, host));
    }
}

/// The instruction with its only register that is kept in memory as a memory operand, and the others as
/// [`rename`] has them, if it has such a form that is no slower.
pub(super) fn at_home(i: &Instruction, homed: &[Homed]) -> Option<Instruction> {
    let &[Homed { guest, written, .. }] = homed else { return None };
    let mut operands = (0..i.op_count())
        .filter(|&at| i.op_kind(at) == OpKind::Register && i.op_register(at).is_gpr())
        .filter(|&at| number(i.op_register(at)) == guest);
    let (Some(at), None) = (operands.next(), operands.next()) else { return None };
    // A narrow result would clear the rest, or make the next load wait.
    if !may_be_at_home(i.mnemonic()) || written && i.op_register(at).size() < 8 {
        return None;
    }
    let mut changed = *i;
    if !takes_memory(changed.code(), at) {
        changed.set_code(turned(i.code())?);
    }
    if !takes_memory(changed.code(), at) {
        return None;
    }
    rename(&mut changed, &[], &[]);
    changed.set_op_kind(at, OpKind::Memory);
    changed.set_segment_prefix(Register::GS);
    changed.set_memory_base(Register::None);
    changed.set_memory_index(Register::None);
    changed.set_memory_displacement64(super::shared::home(guest) as u64);
    changed.set_memory_displ_size(8);
    Some(changed)
}

/// As [`at_home`], for a comparison of registers of which one is kept in memory.
pub(super) fn cold_form(i: &Instruction) -> Option<Instruction> {
    let homed = homed(i, |_| OpAccess::Read)?;
    let known =
        (0..i.op_count()).all(|at| i.op_kind(at) != OpKind::Memory && !is_high_byte(i.op_register(at)));
    (known && homed.len() == 1).then(|| at_home(i, &homed))?
}

/// Whether an operand of an encoding can be memory.
fn takes_memory(code: Code, at: u32) -> bool {
    use OpCodeOperandKind as K;
    matches!(code.op_code().op_kind(at), K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem)
}

/// Instructions that do the same to memory as to registers. Shifts and rotations are not among them: the overflow flag
/// after more than one place is undefined, and silicon has another one where the operand is memory.
fn may_be_at_home(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Imul
    )
}

/// The encoding that has the other operand as the one that can be memory.
fn turned(code: Code) -> Option<Code> {
    const PAIRS: [(Code, Code); 18] = [
        (Code::Mov_r32_rm32, Code::Mov_rm32_r32),
        (Code::Mov_r64_rm64, Code::Mov_rm64_r64),
        (Code::Add_r32_rm32, Code::Add_rm32_r32),
        (Code::Add_r64_rm64, Code::Add_rm64_r64),
        (Code::Or_r32_rm32, Code::Or_rm32_r32),
        (Code::Or_r64_rm64, Code::Or_rm64_r64),
        (Code::Adc_r32_rm32, Code::Adc_rm32_r32),
        (Code::Adc_r64_rm64, Code::Adc_rm64_r64),
        (Code::Sbb_r32_rm32, Code::Sbb_rm32_r32),
        (Code::Sbb_r64_rm64, Code::Sbb_rm64_r64),
        (Code::And_r32_rm32, Code::And_rm32_r32),
        (Code::And_r64_rm64, Code::And_rm64_r64),
        (Code::Sub_r32_rm32, Code::Sub_rm32_r32),
        (Code::Sub_r64_rm64, Code::Sub_rm64_r64),
        (Code::Xor_r32_rm32, Code::Xor_rm32_r32),
        (Code::Xor_r64_rm64, Code::Xor_rm64_r64),
        (Code::Cmp_r32_rm32, Code::Cmp_rm32_r32),
        (Code::Cmp_r64_rm64, Code::Cmp_rm64_r64),
    ];
    PAIRS.iter().find_map(|&(a, b)| if code == a { Some(b) } else { (code == b).then_some(a) })
}
