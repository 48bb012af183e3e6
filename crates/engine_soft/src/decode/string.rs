//! Handlers of string instructions.

use super::sized;
use crate::insn::Handler;
use crate::interp::string::{cmps, ins, lods, movs, outs, scas, stos};
use iced_x86::{Instruction, Mnemonic};

pub(super) fn select(i: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    if !i.is_string_instruction() {
        return None;
    }
    let size = i.memory_size().size();
    Some(match i.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => sized!(size, movs),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => sized!(size, stos),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => sized!(size, lods),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => sized!(size, scas),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => sized!(size, cmps),
        M::Insb | M::Insw | M::Insd => sized!(size, ins),
        M::Outsb | M::Outsw | M::Outsd => sized!(size, outs),
        _ => return None,
    })
}
