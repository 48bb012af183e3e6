//! The jump cache: from a linear address to translated code, for jumps that leave a page or are indirect.
//!
//! An entry also names the fetch key (address space, privilege, code size, and the count of invalidations),
//! so a change of any translation misses. It says nothing of the code's generation, which the entered
//! block checks itself.

use super::asm::{Alu, Asm, Label, S1, S2, cc};
use super::shared::{FETCH_KEY, JUMPS};
use std::mem::offset_of;

/// Entries.
const JUMP_CACHE_SIZE: usize = 1 << 14;

/// Where an address leads. The layout is known to translated code.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct JumpEntry {
    pub linear: u64,
    pub key: u64,
    /// Outer entry of the block.
    pub host: u64,
    /// Linear address of the page.
    pub page: u64,
}

/// An entry that matches nothing: no fetch key is all ones.
const NOTHING: JumpEntry = JumpEntry { linear: 0, key: u64::MAX, host: 0, page: 0 };

pub(super) const LINEAR: i32 = offset_of!(JumpEntry, linear) as i32;
const KEY: i32 = offset_of!(JumpEntry, key) as i32;
pub(super) const HOST: i32 = offset_of!(JumpEntry, host) as i32;
const PAGE: i32 = offset_of!(JumpEntry, page) as i32;
/// log2 of an entry's size.
const ENTRY_SHIFT: u32 = 5;
/// How far the address is rotated to the right to be mixed with itself: its lowest bits come to where the first one of
/// an entry's number is, so that the mixture only has to be masked.
const ROTATION: u32 = u32::BITS - ENTRY_SHIFT;

const _: () = assert!(size_of::<JumpEntry>() == 1 << ENTRY_SHIFT);

/// The cache.
pub(super) struct JumpCache {
    entries: Box<[JumpEntry]>,
}

impl JumpCache {
    pub fn new() -> Self {
        JumpCache { entries: vec![NOTHING; JUMP_CACHE_SIZE].into_boxed_slice() }
    }

    pub fn clear(&mut self) {
        self.entries.fill(NOTHING);
    }

    pub fn as_ptr(&self) -> *const JumpEntry {
        self.entries.as_ptr()
    }

    fn slot(linear: u64) -> usize {
        let low = linear as u32;
        ((low ^ low.rotate_right(ROTATION)) >> ENTRY_SHIFT) as usize % JUMP_CACHE_SIZE
    }

    /// The outer entry for an address, if known.
    pub fn get(&self, linear: u64, key: u64) -> Option<u64> {
        let entry = &self.entries[Self::slot(linear)];
        (entry.linear == linear && entry.key == key).then_some(entry.host)
    }

    pub fn set(&mut self, linear: u64, key: u64, host: u64) {
        self.entries[Self::slot(linear)] = JumpEntry { linear, key, host, page: linear & !0xfff };
    }
}

/// Points [`S2`] to the entry of the linear address in [`S1`], and puts the linear address of its page there. Goes to
/// `from` if the entry is another address's, and to `reload` if it has another fetch key. Uses RFLAGS.
pub(super) fn emit_search(a: &mut Asm, bmi2: bool, from: Label, reload: Label) {
    if bmi2 {
        a.rorx32(S2, S1, ROTATION as u8);
    } else {
        a.mov32(S2, S1);
        a.shift(1, S2, ROTATION as u8, false);
    }
    a.alu_rr32(Alu::Xor, S2, S1);
    a.and_imm32(S2, ((JUMP_CACHE_SIZE - 1) << ENTRY_SHIFT) as i32);
    a.alu_gs(Alu::Add, S2, JUMPS);
    a.alu_rm(Alu::Cmp, S1, S2, LINEAR);
    a.jcc(cc::NE, from);
    a.load_gs(S1, FETCH_KEY);
    a.alu_rm(Alu::Cmp, S1, S2, KEY);
    a.jcc(cc::NE, reload);
    a.alu_rm(Alu::Mov, S1, S2, PAGE);
}

/// Goes to `bad` if the address in [`S1`] is not canonical. Uses [`S2`] and RFLAGS.
pub(super) fn check_canonical(a: &mut Asm, bad: Label) {
    a.mov(S2, S1);
    a.shift(4, S2, 16, true);
    a.shift(7, S2, 16, true);
    a.alu_rr(Alu::Cmp, S2, S1);
    a.jcc(cc::NE, bad);
}
