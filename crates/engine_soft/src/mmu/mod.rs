//! Address translation: a software TLB in front of the page-table [walk].
//!
//! # TLB
//! See [`tlb`]. An address space has a number ("space"); with PCIDs it gets its old number back.
//!
//! # Invalidation
//! Nothing is cleared when CR3 changes: another set of arrays becomes the current one. A set that is used
//! for another address space keeps its global pages, as long as no global flush happened since.
//!
//! While alignment checks or data breakpoints are on, the current array is one that matches nothing, so
//! that every access takes the slow path.

pub mod access;
mod array;
pub mod control;
mod hints;
pub mod segment;
pub use access::Plain;
mod slow;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
pub(crate) mod tlb;
pub mod walk;

pub(crate) use hints::Hints;
pub(crate) use tlb::{ENTRY_SHIFT, LONGEST_ON_STACK, OFFSET, StackPage, TlbEntry};

use tlb::Tlb;

/// Highest address-space number.
const LAST_SPACE: u16 = 0x7ff;
/// Entries of the instruction TLB.
const FETCH_SIZE: usize = 512;

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
    /// The current accessor's array in the current set, or one without any match.
    pub(crate) array: *const TlbEntry,
    /// Mask of an entry's place in it: see [`TlbEntry::place`].
    pub(crate) mask: u64,
    pub(crate) tlb: Tlb,
    pub(crate) stack: StackPage,
    /// Entries of the current array that translated code looks at first.
    pub(crate) hints: Hints,
    fetch: Box<[FetchEntry]>,
    accessor: Accessor,
    space: u16,
    next_space: u16,
    spaces_of_pcid: Box<[u16]>,
    /// Counts what makes fetch translations stale without changing the address space's number.
    fetch_epoch: u64,
    /// Names the current fetch translations and code size, for the code cache.
    pub(crate) fetch_key: u64,
    /// Code of CPL 0 to 2 was only fetched from global pages lately: the key does not name the address space then.
    global_code: bool,
    /// Pages (hashed) from which code was fetched since the epoch began.
    fetched: Box<[u64; 64]>,
    /// 2 MiB regions (hashed) in which entries of larger pages may exist.
    large: Box<[u64; 64]>,
    /// 1 GiB regions (hashed) in which entries of larger pages may exist.
    huge: u64,
    /// Check alignment.
    check_alignment: bool,
    /// Compare data breakpoints.
    check_breakpoints: bool,
    /// DR6 bits of data breakpoints hit by the current instruction.
    pub(crate) breakpoints_hit: u64,
    /// When the TLB's arrays are to settle next, in nanoseconds.
    next_settling: u64,
    /// Guest-physical address of an atomic access that the TLB does not know.
    aside: u64,
    pub(crate) pdptes: [u64; 4],
    /// Mask of legal physical-address bits.
    pub(crate) physical_mask: u64,
    /// Counters.
    pub counts: MmuCounts,
}

impl Mmu {
    /// An empty MMU for `physical_bits` of guest-physical address (at most 52).
    pub fn new(physical_bits: u32) -> Self {
        let tlb = Tlb::new();
        let (array, mask) = tlb.start(Accessor::User as usize, true);
        Mmu {
            array,
            mask,
            tlb,
            stack: StackPage::default(),
            hints: Hints::new((array, mask)),
            fetch: vec![FetchEntry { linear: 1, key: 0, physical: 0 }; FETCH_SIZE].into_boxed_slice(),
            accessor: Accessor::User,
            space: 1,
            next_space: 2,
            spaces_of_pcid: vec![0; 4096].into_boxed_slice(),
            fetch_epoch: 1,
            fetch_key: 0,
            global_code: true,
            fetched: Box::new([0; 64]),
            large: Box::new([0; 64]),
            huge: 0,
            check_alignment: false,
            check_breakpoints: false,
            breakpoints_hit: 0,
            next_settling: 0,
            aside: 0,
            pdptes: [0; 4],
            physical_mask: u64::MAX >> (64 - physical_bits.clamp(32, 52)),
            counts: MmuCounts::default(),
        }
    }

    fn clear(&mut self) {
        self.tlb.clear();
        self.spaces_of_pcid.fill(0);
        self.large.fill(0);
        self.huge = 0;
        self.new_fetch_epoch();
    }

    /// All fetch translations are void.
    fn new_fetch_epoch(&mut self) {
        self.fetch_epoch += 1;
        self.fetched.fill(0);
    }

    fn fetched_bit(linear: u64) -> (usize, u64) {
        let page = linear >> 12;
        let hash = (page ^ page >> 12 ^ page >> 24) as usize % 4096;
        (hash / 64, 1 << (hash % 64))
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

    fn huge_bit(linear: u64) -> u64 {
        1 << ((linear >> 30 ^ linear >> 36) % 64)
    }

    fn large_bit(linear: u64) -> (usize, u64) {
        let hash = (linear >> 21 ^ linear >> 33) as usize % 4096;
        (hash / 64, 1 << (hash % 64))
    }
}
