//! Where guest registers live in translated code, and instructions with registers changed accordingly.
//!
//! Guest registers live in the host registers of the same name, but for RSP, which lives in R15 because the
//! host's RSP stays on the host's stack, and R13 to R15, which stay in [`Cpu::regs`](crate::cpu::Cpu::regs)
//! because R13 and R14 are scratch.

use super::asm::GUEST_RSP;
use iced_x86::{Instruction, OpAccess, OpKind, Register};

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
    while number < 13 {
        places[number] = Place::Host(number as u8);
        number += 1;
    }
    places[4] = Place::Host(GUEST_RSP);
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
                scratch.get(index).copied().unwrap_or(super::asm::S1)
            }
        };
        i.set_op_register(at, sized(register, host));
    }
}
