//! The jump cache: from a linear address to translated code, for jumps that leave a page or are indirect.
//!
//! An entry also names the fetch key (address space, privilege, code size, and the count of invalidations),
//! so a change of any translation misses. It says nothing of the code's generation, which the entered
//! block checks itself.

use std::mem::offset_of;

/// Entries.
pub(super) const JUMP_CACHE_SIZE: usize = 1 << 14;

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
pub(super) const KEY: i32 = offset_of!(JumpEntry, key) as i32;
pub(super) const HOST: i32 = offset_of!(JumpEntry, host) as i32;
pub(super) const PAGE: i32 = offset_of!(JumpEntry, page) as i32;
/// log2 of an entry's size.
pub(super) const ENTRY_SHIFT: u8 = 5;
/// How far the address is rotated to be mixed with itself.
pub(super) const ROTATION: u8 = 13;

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
        (low ^ low.rotate_right(u32::from(ROTATION))) as usize % JUMP_CACHE_SIZE
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
