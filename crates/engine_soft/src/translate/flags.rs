//! The guest's arithmetic flags in translated code.
//!
//! Guest instructions leave their flags in RFLAGS, where the next ones find them. The checks of memory
//! operands need RFLAGS, too, so flags are saved to `Shared::flags` before the first check after they
//! changed, and loaded again when an instruction wants them. Which copy is good at which instruction is known
//! when a block is translated. So flags are exact at every instruction, also at one that faults.

use super::asm::{Alu, RAX, RCX, S1, S2};
use super::block::Builder;
use super::cold::Cold;
use super::shared::{FLAGS, SPARE_RAX};
use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};
use serde::{Deserialize, Serialize};

/// Which copy of the flags is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FlagHome {
    /// RFLAGS only.
    Live,
    /// Both.
    Both,
    /// `Shared::flags` only.
    Saved,
}

/// What an instruction does with the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlagUse {
    /// Nothing.
    None,
    /// Needs them, and changes none.
    Reads,
    /// Changes some, or all under a condition: needs the old ones.
    Changes,
    /// Sets all, whatever they were.
    Replaces,
}

const ARITHMETIC: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// Shifts and rotates.
fn counts_bits(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    )
}

/// Instructions that set the flags they leave undefined to the same, whatever the flags were.
fn settles_undefined(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::And | M::Or | M::Xor | M::Test | M::Shl | M::Sal | M::Shr | M::Sar | M::Imul | M::Mul
    )
}

/// Whether a shift may have a count of zero, which leaves all flags.
fn may_count_zero(i: &Instruction) -> bool {
    let last = i.op_count() - 1;
    match i.op_kind(last) {
        OpKind::Immediate8 => {
            let mask = if i.op0_register().is_gpr64() || i.memory_size().size() == 8 { 63 } else { 31 };
            i.immediate8() & mask == 0
        }
        OpKind::Register => i.op_register(last) == Register::CL,
        _ => false,
    }
}

/// Whether an instruction replaces all flags but CF, which it keeps.
pub(super) fn keeps_carry(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Inc | Mnemonic::Dec)
}

/// What an instruction that is copied does with the flags.
pub(super) fn flag_use(i: &Instruction) -> FlagUse {
    let read = i.rflags_read() & ARITHMETIC != 0;
    let changed = i.rflags_modified() & ARITHMETIC;
    // Undefined flags may depend on what they were, but for instructions of which it is known.
    let undefined = i.rflags_undefined() & ARITHMETIC != 0 && !settles_undefined(i.mnemonic());
    let uncertain = counts_bits(i.mnemonic()) && may_count_zero(i) || undefined;
    match (read, changed) {
        (false, 0) => FlagUse::None,
        (true, 0) => FlagUse::Reads,
        (false, ARITHMETIC) if !uncertain => FlagUse::Replaces,
        _ => FlagUse::Changes,
    }
}

/// RFLAGS bits that the manual leaves undefined after an instruction.
pub(super) fn undefined_flags(i: &Instruction) -> u64 {
    let positions = [
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 1 << 2),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::OF, 1 << 11),
    ];
    let undefined = i.rflags_undefined();
    positions.iter().filter(|(bit, _)| undefined & bit != 0).fold(0, |sum, (_, position)| sum | position)
}

impl Builder<'_> {
    /// Saves flags that are only in RFLAGS. Uses [`S2`].
    pub fn save_flags(&mut self) {
        if self.flags == FlagHome::Live {
            self.emit_save();
            self.flags = FlagHome::Both;
        }
    }

    /// As [`Builder::save_flags`], before a memory operand's check: not if side ways can make them again.
    pub fn save_flags_for_check(&mut self) {
        if self.flags == FlagHome::Live {
            self.remake = self.find_remake();
            if self.remake.is_none() {
                self.save_flags();
            }
        }
    }

    /// As [`Builder::save_flags`], whatever the state: for side ways.
    pub fn emit_save(&mut self) {
        let a = &mut self.asm;
        a.mov(S2, RAX);
        // lahf; seto al
        a.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
        a.store_gs32(FLAGS, RAX);
        a.mov(RAX, S2);
    }

    /// Brings saved flags back to RFLAGS. Uses no scratch register.
    pub fn emit_restore(&mut self) {
        let a = &mut self.asm;
        a.store_gs(SPARE_RAX, RAX);
        a.alu_gs32(Alu::Mov, RAX, FLAGS);
        // add al, 127; sahf
        a.raw(&[0x04, 0x7f, 0x9e]);
        a.load_gs(RAX, SPARE_RAX);
    }

    /// Brings the saved CF back to RFLAGS; the other flags are lost. Uses no scratch register.
    pub fn emit_restore_carry(&mut self) {
        // Where LAHF has put it.
        self.asm.bt_gs32(FLAGS, 8);
    }

    /// RFLAGS has the guest's flags afterwards.
    pub fn need_flags(&mut self) {
        if self.flags == FlagHome::Saved {
            self.emit_restore();
            self.flags = FlagHome::Both;
        }
    }

    /// RFLAGS was used for something else.
    pub fn clobbered(&mut self) {
        self.flags = FlagHome::Saved;
    }

    /// Before an instruction: RFLAGS has what it needs of the flags afterwards.
    pub fn flags_before(&mut self, i: &Instruction, used: FlagUse) {
        if used == FlagUse::Reads || used == FlagUse::Changes && !self.flags_are_dead() {
            if keeps_carry(i) && self.flags == FlagHome::Saved {
                self.emit_restore_carry();
            } else {
                self.need_flags();
            }
        }
    }

    /// After an instruction.
    pub fn flags_after(&mut self, i: &Instruction, used: FlagUse) {
        if matches!(used, FlagUse::Changes | FlagUse::Replaces) {
            let remakeable = used == FlagUse::Replaces || keeps_carry(i) && self.flags != FlagHome::Live;
            self.flags = FlagHome::Live;
            self.made = remakeable.then_some(self.index);
            self.remake = None;
        }
    }

    /// Looks at the tracker byte that `tracker` points to after the current site's store.
    pub fn look_at(&mut self, tracker: u8) {
        let noted = self.asm.label();
        self.check_tracker(tracker, noted);
        let site = self.site();
        let back = self.asm.mark();
        let (flags, call, x87, remake) = (self.flags, self.call, self.x87_last, self.remake);
        self.cold.push(Cold::Note { from: noted, site, back, flags, tracker, call, x87, remake });
    }

    /// Looks at the tracker byte that `tracker` points to, after a store, without touching live flags.
    pub fn check_tracker(&mut self, tracker: u8, noted: super::asm::Label) {
        if self.flags == FlagHome::Live {
            let other = if tracker == S1 { S2 } else { S1 };
            let a = &mut self.asm;
            a.load_byte(other, tracker);
            a.xchg(other, RCX);
            // Over the next two instructions, of three and five bytes.
            a.jrcxz(8);
            a.mov(RCX, other);
            a.jmp(noted);
            a.mov(RCX, other);
        } else {
            self.asm.cmp_byte_zero(tracker);
            self.asm.jcc(super::asm::cc::NE, noted);
            self.clobbered();
        }
    }
}
