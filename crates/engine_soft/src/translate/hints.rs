//! Hints: the TLB entries that checks found last.
//!
//! Programs of users mostly go on in the page where they were. Their checks compare with the entry that was found last through
//! the same register, and look for another one only if it is another page's. That saves instructions; more than that, the load
//! behind the check does not have to wait until its own address has led to the entry. A miss costs more than all that, because
//! the host predicted a hit. So what is not likely to stay in its page does without: a kernel, which goes from object to
//! object, and addresses that change in a loop. And a check whose hint misses too often gives it up: one of [`MISSES`] misses is
//! looked at, and a check that is met [`STRIKES`] times within [`WINDOW`] is changed to jump past its hint.
//!
//! Entries are compared in full, so a hint that leads to another page's is as good as none. There are two things to see to:
//! * It leads to an entry of the current array: see [`Mmu::hints`](crate::mmu::Mmu::hints).
//! * An entry that nothing matches, or no store, holds the address of a page that belongs to another place in the array
//!   ([`TlbEntry::nothing`]), and a hint does not know about places. So addresses in such pages have no hint.

use super::AddressMap;
use super::asm::{Alu, Label, S1, S2, cc};
use super::block::Builder;
use super::cold::Cold;
use super::memory::{GuestAddress, find_entry, tag_of};
use super::operand;
use super::shared::HINTS;
use crate::cpu::Cpu;
use crate::mmu::{OFFSET, TlbEntry};
use iced_x86::Register;
use std::time::{Duration, Instant};

/// For addresses without a register.
const FIXED: usize = 16;
/// For addresses in segments with a base.
const SEGMENT: usize = 17;

/// Number of a hint.
#[derive(Clone, Copy)]
pub(super) struct Hint(usize);

impl Hint {
    fn place(self) -> usize {
        HINTS + size_of::<u64>() * self.0
    }
}

/// A comparison with the entry of a hint.
#[derive(Clone, Copy)]
pub(super) struct Compared {
    hint: Hint,
    store: bool,
    size: i32,
    /// Where to go if the bytes are in no page of the TLB.
    failed: Label,
    /// Address of the displacement of the jump past the hint.
    at: u64,
}

/// Whether code at this linear address is rather a user's than a kernel's.
pub(super) fn are_worth_it(rip_page: u64, long: bool) -> bool {
    const USUAL_32_BIT_SPLIT: u64 = 3 << 30;
    rip_page < if long { 1 << 63 } else { USUAL_32_BIT_SPLIT }
}

impl Builder<'_> {
    /// The hint of an address, if it is to have one.
    pub fn hint_for(&mut self, at: &GuestAddress) -> Option<Hint> {
        if !self.context.hints || self.in_loop && self.changes(at) {
            return None;
        }
        Some(Hint(match at.base.or(at.index) {
            _ if at.segment.is_some() => SEGMENT,
            Some(register) => usize::from(register & 15),
            None => FIXED,
        }))
    }

    /// Whether an instruction of the block changes a register of an address.
    fn changes(&mut self, at: &GuestAddress) -> bool {
        let registers = [at.base, at.index].map(|number| number.map_or(Register::None, operand::wide));
        (0..self.instructions.len()).any(|at| self.writes_any(at, registers))
    }

    /// Looks in the TLB for the page of the linear address in [`S1`], which leaves its offset in the page there, and the entry
    /// in [`S2`]. Goes to `failed` if `size` bytes may not be read, or written, there.
    pub fn find_in_page(&mut self, hint: Option<Hint>, store: bool, size: i32, failed: Label) {
        let Some(hint) = hint else {
            find_entry(&mut self.asm, self.context.thunks.bmi2);
            return self.compare_page(store, size, failed);
        };
        let (from, elsewhere) = (self.asm.label(), self.asm.label());
        self.asm.cmp_imm(S1, TlbEntry::END_OF_NOTHING as i32);
        let at = self.asm.jcc(cc::B, elsewhere);
        self.asm.load_gs(S2, hint.place());
        self.compare_page(store, size, from);
        let back = self.asm.mark();
        self.cold.push(Cold::Hint {
            from,
            elsewhere,
            back,
            compared: Compared { hint, store, size, failed, at },
        });
    }

    fn compare_page(&mut self, store: bool, size: i32, failed: Label) {
        let a = &mut self.asm;
        a.alu_rm(Alu::Xor, S1, S2, tag_of(store) as i32);
        a.cmp_imm(S1, OFFSET as i32 + 1 - size);
        a.jcc(cc::A, failed);
    }

    /// The hint was of another page: finds the entry, and remembers it. At `elsewhere` arrives whose address has no hint, or who
    /// gave it up. `at` is the displacement of the jump there.
    pub fn emit_hint(&mut self, [from, elsewhere]: [Label; 2], back: Label, compared: Compared) {
        let Compared { hint, store, size, failed, at } = compared;
        self.asm.bind(from);
        self.asm.alu_rm(Alu::Xor, S1, S2, tag_of(store) as i32);
        self.asm.call_to(self.context.thunks.call_missed);
        // The thunk finds the jump by the number in the instruction that comes behind the call, and does nothing.
        let distance = (self.asm.here() - at) as u32;
        self.asm.test_eax(distance);
        self.asm.bind(elsewhere);
        self.asm.call_to(self.context.thunks.find_entry);
        self.compare_page(store, size, failed);
        self.asm.store_gs(hint.place(), S2);
        self.asm.jmp(back);
    }
}

/// Misses of which one is looked at.
pub(super) const MISSES: u32 = 64;
/// So many misses that were looked at, in so short a time, are more than a hint is worth.
const STRIKES: u32 = 4;
const WINDOW: Duration = Duration::from_millis(2);

/// Checks whose hints missed lately.
#[derive(Default)]
pub(super) struct Strikes(AddressMap<(Instant, u32)>);

impl Strikes {
    /// Whether the hint of the check at a place misses too often, after another miss.
    fn is_out(&mut self, place: u64) -> bool {
        let now = Instant::now();
        let (since, count) = self.0.entry(place).or_insert((now, 0));
        if now.duration_since(*since) > WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count >= STRIKES
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl Cpu {
    /// A hint missed; the displacement of the jump past it is at `place`.
    pub(super) fn note_missed_hint(&mut self, place: u64) {
        self.shared.unseen_misses = MISSES;
        if let Some(translator) = &mut self.translator
            && translator.strikes.is_out(place)
        {
            let at = place.wrapping_sub(translator.memory.start());
            translator.memory.always_jump(at as u32);
            translator.counts.hints_given_up += 1;
        }
    }
}
