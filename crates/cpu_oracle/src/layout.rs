//! Descriptor tables that the host's processor and the guest's have alike.
//!
//! The global table is that of 64-bit Linux, as far as user code can see it. The local one is set by `modify_ldt`
//! in the native child and laid into the guest's memory in the same form (the kernel sets the accessed bit and
//! DPL 3, and has no 64-bit code segments there).

use crate::case::Mode;
use crate::{CODE_ADDRESS, DATA_ADDRESS};

/// User code, 64-bit.
pub const USER_CS: u16 = 0x33;
/// User code, 32-bit and flat.
pub const USER32_CS: u16 = 0x23;
/// User data.
pub const USER_DS: u16 = 0x2b;
/// Kernel code.
pub const KERNEL_CS: u16 = 0x10;
/// Task register of the kernel.
pub const KERNEL_TR: u16 = 0x40;
/// Entries of the global table. Entry 15 tells the host's processor number; no case uses it.
pub const GDT: [u64; 16] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0, // TSS, two entries, by the guest
    0,
    0, // LDT, two entries, by the guest
    0,
    0,
    0,
    0,
    0x0040_f500_0000_0000,
];

/// An entry of the local table, in `modify_ldt`'s terms.
#[derive(Clone, Copy, Debug)]
pub struct LdtEntry {
    /// Linear base.
    pub base: u32,
    /// Limit, in bytes or pages.
    pub limit: u32,
    /// 0 data, 1 expand-down data, 2 code, 3 conforming code.
    pub contents: u8,
    /// D/B.
    pub big: bool,
    /// Data that cannot be written, code that cannot be read.
    pub locked: bool,
    /// Limit in pages.
    pub pages: bool,
    /// P.
    pub present: bool,
}

impl LdtEntry {
    const fn new(base: u64, limit: u32, contents: u8, big: bool) -> Self {
        LdtEntry { base: base as u32, limit, contents, big, locked: false, pages: false, present: true }
    }

    /// Bits of `modify_ldt`'s flags word.
    pub fn flags(self) -> u32 {
        u32::from(self.big)
            | u32::from(self.contents) << 1
            | u32::from(self.locked) << 3
            | u32::from(self.pages) << 4
            | u32::from(!self.present) << 5
            | 1 << 6
    }

    /// The descriptor.
    pub fn descriptor(self) -> u64 {
        let (base, limit) = (u64::from(self.base), u64::from(self.limit));
        let kind = 1 | u64::from(!self.locked) << 1 | u64::from(self.contents) << 2;
        let access = kind | 0x70 | u64::from(self.present) << 7;
        let upper = limit >> 16 & 0xf | 1 << 4 | u64::from(self.big) << 6 | u64::from(self.pages) << 7;
        limit & 0xffff | (base & 0xff_ffff) << 16 | access << 40 | upper << 48 | base >> 24 << 56
    }
}

/// The local table.
pub const LDT: [LdtEntry; 12] = [
    LdtEntry::new(CODE_ADDRESS, 0xfff, 2, true),
    LdtEntry::new(CODE_ADDRESS, 0xfff, 2, false),
    LdtEntry::new(DATA_ADDRESS, 0x1fff, 0, true),
    LdtEntry::new(DATA_ADDRESS, 0x1fff, 0, false),
    LdtEntry { locked: true, ..LdtEntry::new(DATA_ADDRESS, 0xfff, 0, true) },
    LdtEntry::new(DATA_ADDRESS, 0xfff, 1, true),
    LdtEntry::new(DATA_ADDRESS, 0xfff, 1, false),
    LdtEntry { present: false, ..LdtEntry::new(DATA_ADDRESS, 0x1fff, 0, true) },
    LdtEntry { locked: true, ..LdtEntry::new(CODE_ADDRESS, 0xfff, 2, true) },
    LdtEntry { present: false, ..LdtEntry::new(CODE_ADDRESS, 0xfff, 3, true) },
    LdtEntry { pages: true, ..LdtEntry::new(0, 0xf_ffff, 0, true) },
    LdtEntry { pages: true, ..LdtEntry::new(DATA_ADDRESS - 0x10_0000, 0x101, 0, false) },
];

/// Selector of a local entry.
pub const fn local(index: u16) -> u16 {
    index << 3 | 7
}

/// Base of the segment behind a selector, as far as data can be accessed through it.
pub fn base(selector: u16) -> u64 {
    if selector & 4 == 0 {
        return 0;
    }
    LDT.get(usize::from(selector >> 3)).map_or(0, |entry| u64::from(entry.base))
}

/// Whether a stack segment has a 32-bit stack pointer.
pub fn is_big(selector: u16) -> bool {
    selector & 4 == 0 || LDT.get(usize::from(selector >> 3)).is_none_or(|entry| entry.big)
}

/// The code segment of a mode.
pub fn code_selector(mode: Mode) -> u16 {
    match mode {
        Mode::Long => USER_CS,
        Mode::Flat32 => USER32_CS,
        Mode::Segmented32 => local(0),
        Mode::Segmented16 => local(1),
    }
}

/// Base of the code segment of a mode.
pub fn code_base(mode: Mode) -> u64 {
    base(code_selector(mode))
}

/// Data segments worth loading, those that cannot be loaded included.
pub const DATA_SELECTORS: [u16; 16] = [
    0,
    3,
    USER_DS,
    USER_DS & !3,
    local(2),
    local(3),
    local(4),
    local(5),
    local(6),
    local(7),
    local(8),
    local(10),
    local(11),
    USER_CS,
    0x18,
    local(40),
];
