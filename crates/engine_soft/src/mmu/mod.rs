//! Address translation: a software TLB in front of the page-table [walk].
//!
//! # TLB
//! Three direct-mapped arrays, one for each kind of accessor: user, supervisor, and supervisor with SMAP
//! suspended (RFLAGS.AC). An entry's tags hold the page's linear address in bits 12–63 and an *address-space
//! number* below. An access compares the tag of its **last** byte with the entry of its **first** byte, so
//! that one comparison rejects other pages, other address spaces, missing rights, and page-crossing accesses.
//!
//! # Invalidation
//! Nothing is cleared when CR3 changes: the address space gets another number, and with PCIDs gets its old
//! one back. Entries of global pages are re-tagged when they are met under a new number, as long as no global
//! flush happened since (`epoch`). When numbers run out, everything is cleared.
//!
//! Alignment checks and data breakpoints poison the tag, so that every access takes the slow path.

pub mod access;
pub mod control;
pub mod segment;
pub use access::Plain;
mod slow;
#[cfg(test)]
mod tests;
pub mod walk;

use std::sync::atomic::AtomicU8;

/// Entries of each array.
pub const TLB_SIZE: usize = 2048;
/// A tag that no access has.
const INVALID: u64 = 0xffe;
/// Low bits of a tag that no entry has.
const POISON: u64 = 0xfff;
/// Highest address-space number.
const LAST_SPACE: u16 = 0x7ff;
/// Entries of the instruction TLB.
const FETCH_SIZE: usize = 512;
/// Bits of a page offset.
pub(crate) const OFFSET: u64 = 0xfff;

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Execute,
}

/// Who accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Accessor {
    /// CPL 3.
    User = 0,
    /// CPL 0–2, or an implicit access of the processor.
    Supervisor = 1,
    /// CPL 0–2 with RFLAGS.AC set: user pages are open in spite of SMAP.
    SupervisorAc = 2,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TlbEntry {
    read: u64,
    write: u64,
    /// Host address minus linear address.
    addend: u64,
    flags: *const AtomicU8,
}

static NO_FLAGS: AtomicU8 = AtomicU8::new(0);

impl TlbEntry {
    const EMPTY: TlbEntry = TlbEntry { read: INVALID, write: INVALID, addend: 0, flags: &raw const NO_FLAGS };
}

/// What the fast path does not need to know of an entry.
#[derive(Clone, Copy, Default)]
struct TlbInfo {
    /// Guest-physical page.
    page: u64,
    /// Epoch of the fill.
    epoch: u32,
    global: bool,
}

#[derive(Clone, Copy)]
struct FetchEntry {
    linear: u64,
    key: u64,
    physical: u64,
}

/// Counters of the MMU.
#[derive(Clone, Copy, Debug, Default)]
pub struct MmuCounts {
    /// Accesses that the fast path could not do.
    pub slow: u64,
    /// Page-table walks.
    pub walks: u64,
    /// Flushes of any kind.
    pub flushes: u64,
    /// Accesses outside RAM.
    pub mmio: u64,
}

/// TLBs and what tags them.
pub struct Mmu {
    entries: Box<[TlbEntry]>,
    info: Box<[TlbInfo]>,
    fetch: Box<[FetchEntry]>,
    /// First entry of the current accessor's array.
    base: usize,
    accessor: Accessor,
    /// Low tag bits of accesses: the address space, or [`POISON`].
    tag: u64,
    space: u16,
    next_space: u16,
    spaces_of_pcid: Box<[u16]>,
    epoch: u32,
    /// Counts what makes fetch translations stale without changing the address space's number.
    fetch_epoch: u64,
    /// Names the current fetch translations and code size, for the code cache.
    pub(crate) fetch_key: u64,
    /// 2 MiB regions (hashed) in which entries of larger pages may exist.
    large: Box<[u64; 64]>,
    /// Entries of 1 GiB pages may exist.
    huge: bool,
    /// Check alignment.
    check_alignment: bool,
    /// Compare data breakpoints.
    check_breakpoints: bool,
    /// DR6 bits of data breakpoints hit by the current instruction.
    pub(crate) breakpoints_hit: u64,
    pub(crate) pdptes: [u64; 4],
    /// Mask of legal physical-address bits.
    pub(crate) physical_mask: u64,
    /// Counters.
    pub counts: MmuCounts,
}

impl Mmu {
    /// An empty MMU for `physical_bits` of guest-physical address (at most 52).
    pub fn new(physical_bits: u32) -> Self {
        Mmu {
            entries: vec![TlbEntry::EMPTY; 3 * TLB_SIZE].into_boxed_slice(),
            info: vec![TlbInfo::default(); 3 * TLB_SIZE].into_boxed_slice(),
            fetch: vec![FetchEntry { linear: 1, key: 0, physical: 0 }; FETCH_SIZE].into_boxed_slice(),
            base: 0,
            accessor: Accessor::User,
            tag: 1,
            space: 1,
            next_space: 2,
            spaces_of_pcid: vec![0; 4096].into_boxed_slice(),
            epoch: 0,
            fetch_epoch: 1,
            fetch_key: 0,
            large: Box::new([0; 64]),
            huge: false,
            check_alignment: false,
            check_breakpoints: false,
            breakpoints_hit: 0,
            pdptes: [0; 4],
            physical_mask: u64::MAX >> (64 - physical_bits.clamp(32, 52)),
            counts: MmuCounts::default(),
        }
    }

    #[inline(always)]
    fn slot(&self, base: usize, linear: u64) -> usize {
        base + (linear >> 12) as usize % TLB_SIZE
    }

    fn array_of(accessor: Accessor) -> usize {
        accessor as usize * TLB_SIZE
    }

    fn clear(&mut self) {
        self.entries.fill(TlbEntry::EMPTY);
        self.spaces_of_pcid.fill(0);
        self.large.fill(0);
        self.huge = false;
        self.fetch_epoch += 1;
    }

    /// A number that no entry carries.
    fn new_space(&mut self) -> u16 {
        if self.next_space > LAST_SPACE {
            self.clear();
            self.next_space = 1;
        }
        let space = self.next_space;
        self.next_space += 1;
        space
    }

    fn large_bit(linear: u64) -> (usize, u64) {
        let hash = (linear >> 21 ^ linear >> 33) as usize % 4096;
        (hash / 64, 1 << (hash % 64))
    }
}
