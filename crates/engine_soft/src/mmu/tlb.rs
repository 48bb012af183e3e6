//! The software TLB: sets of direct-mapped arrays, one set for each address space that was used lately.
//!
//! A set has three [arrays](Array), one for each [`Accessor`](super::Accessor). An entry holds the linear address of
//! its page, once for loads and once for stores. The exclusive or of an access's address with that is the
//! offset in the page if the entry is the page's, and more than a page otherwise. So one comparison rejects
//! other pages, missing rights, and page-crossing accesses: an access of `size` bytes hits if the exclusive
//! or is at most `4096 - size`. Interpreter and translated code look into the same arrays.
//!
//! # Size
//! Arrays begin small. One in which pages replaced each other often grows, up to 65536 entries; all together have a
//! budget, and whoever was not used for longest is emptied and small again when it is spent. An array that was hardly
//! used before its set is emptied, or for a while of a processor that goes idle now and then, shrinks. Their memory comes from the host where it is touched.
//!
//! # Invariants
//! * An empty entry's page belongs to another slot, so no address of this slot matches it.
//! * A slot that was filled since its array was emptied has its bit set.
//! * Where the current array lies, and its size, change only in functions after which the MMU looks again.

pub(crate) use super::array::{Array, BASE_SIZE, ENTRY_SHIFT, MOST_SIZE, Page};
use super::walk::Translation;
use guest_memory::GuestMemory;
use std::sync::atomic::AtomicU8;

/// Address spaces whose translations are kept.
const SETS: usize = 8;
/// Entries that the arrays of one processor may have in addition to what they begin with.
const BUDGET: usize = 2 * MOST_SIZE;
/// Bits of a page offset.
pub(crate) const OFFSET: u64 = 0xfff;

/// One page for one kind of accessor. The layout is known to translated code.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TlbEntry {
    /// Linear address of the page, if it may be read.
    pub read: u64,
    /// Linear address of the page, if it may be written.
    pub write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// Who wants to know of stores to the page. Not for an entry that matches nothing.
    pub flags: *const AtomicU8,
}

/// Longest range that is looked for in [`StackPage`], in bytes.
pub(crate) const LONGEST_ON_STACK: u64 = 128;

/// The current array's entry that accesses through the stack pointer used last: translated code finds it faster. Only
/// ranges of up to [`LONGEST_ON_STACK`] bytes may be looked for, and those at the end of the page are not found.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct StackPage {
    /// A copy.
    pub entry: TlbEntry,
    /// Offsets in the page have to be below this. Zero if there is no entry: no value of the copy would tell, because
    /// whatever is compared with it can be any number.
    pub limit: u64,
}

impl StackPage {
    /// [`StackPage::limit`] if there is an entry.
    pub const LIMIT: u64 = OFFSET + 2 - LONGEST_ON_STACK;
}

impl Default for StackPage {
    fn default() -> Self {
        StackPage { entry: TlbEntry::empty(0), limit: 0 }
    }
}

impl TlbEntry {
    /// The entry of `slot` that nothing matches. All zeros, but for the first.
    pub const fn empty(slot: usize) -> TlbEntry {
        let other = TlbEntry::nothing(slot);
        TlbEntry { read: other, write: other, addend: 0, flags: std::ptr::null() }
    }

    /// Pages below this are what [`TlbEntry::nothing`] gives.
    pub const END_OF_NOTHING: u64 = 2 * (OFFSET + 1);

    /// A page in none of whose slots it is: what an entry without a right holds.
    pub const fn nothing(slot: usize) -> u64 {
        if slot == 0 { OFFSET + 1 } else { 0 }
    }

    /// Whether the entry maps pages for loads at all.
    pub fn is_filled(&self, slot: usize) -> bool {
        self.read != TlbEntry::nothing(slot)
    }

    /// Place of a linear address's entry in an array, in bytes.
    #[inline(always)]
    pub fn place(linear: u64, mask: u64) -> usize {
        (linear >> (12 - ENTRY_SHIFT) & mask) as usize
    }
}

/// The arrays of one address space.
struct TlbSet {
    arrays: [Array; 3],
    /// The address space, or zero for none.
    space: u16,
    /// Last use.
    stamp: u64,
    /// Value of [`Tlb::epoch`] when the set was emptied.
    epoch: u32,
}

impl TlbSet {
    fn new() -> Self {
        TlbSet { arrays: [(); 3].map(|()| Array::new(BASE_SIZE)), space: 0, stamp: 0, epoch: 0 }
    }

    /// Empties the set, but for global pages if they may stay.
    fn recycle(&mut self, keep_global: bool) {
        self.arrays.iter_mut().for_each(|array| array.recycle(keep_global));
    }

    /// Entries in addition to what the arrays begin with.
    fn grown(&self) -> usize {
        self.arrays.iter().map(|array| array.size().saturating_sub(BASE_SIZE)).sum()
    }
}

/// All sets.
pub(crate) struct Tlb {
    sets: Vec<TlbSet>,
    /// An array in which nothing ever matches.
    none: Array,
    current: usize,
    clock: u64,
    /// Counts flushes of global pages.
    epoch: u32,
}

impl Tlb {
    pub fn new() -> Self {
        let mut first = TlbSet::new();
        first.space = 1;
        Tlb { sets: vec![first], none: Array::new(2), current: 0, clock: 0, epoch: 0 }
    }

    /// An accessor's array of the current address space.
    #[inline(always)]
    pub fn array(&self, number: usize) -> &Array {
        &self.sets[self.current].arrays[number]
    }

    /// As [`Tlb::array`], to change entries.
    #[inline(always)]
    pub fn array_mut(&mut self, number: usize) -> &mut Array {
        &mut self.sets[self.current].arrays[number]
    }

    /// Where the array for an accessor, or one without any match, is, and its mask.
    pub fn start(&self, number: usize, open: bool) -> (*const TlbEntry, u64) {
        if open { self.array(number).start() } else { self.none.start() }
    }

    /// Lets an array of the current address space grow, if it should; true if it did.
    pub fn grow(&mut self, number: usize) -> bool {
        let Some(wish) = self.array(number).wish() else { return false };
        let more = wish - self.array(number).size();
        while self.sets.iter().map(TlbSet::grown).sum::<usize>() + more > BUDGET {
            let current = self.current;
            let others = self.sets.iter_mut().enumerate();
            let large = others.filter(|(index, set)| *index != current && set.grown() > 0);
            let Some((_, set)) = large.min_by_key(|(_, set)| set.stamp) else {
                // No room: try again after as many evictions.
                let same = self.array(number).size();
                self.array_mut(number).resize(same);
                return false;
            };
            set.arrays.iter_mut().for_each(Array::release);
        }
        self.array_mut(number).resize(wish);
        true
    }

    /// Gives memory back that was hardly used since the last time.
    pub fn settle(&mut self) {
        for set in &mut self.sets {
            set.arrays.iter_mut().for_each(Array::settle);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        for set in &mut self.sets {
            set.recycle(false);
            set.space = 0;
        }
    }

    /// Translations of global pages are void, too: each set is emptied before its next use.
    pub fn flush_global(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.clear();
        }
    }

    /// All address spaces' numbers are void.
    pub fn release_all(&mut self) {
        for set in &mut self.sets {
            set.space = 0;
        }
    }

    /// The number is void.
    pub fn release(&mut self, space: u16) {
        if let Some(set) = self.sets.iter_mut().find(|set| set.space == space) {
            set.space = 0;
        }
    }

    /// Makes the set of `space` the current one, empty but for global pages if it has none.
    pub fn enter(&mut self, space: u16) {
        self.clock += 1;
        let known = self.sets.iter().position(|set| set.space == space && set.epoch == self.epoch);
        let index = known.unwrap_or_else(|| {
            let index = self.victim();
            let set = &mut self.sets[index];
            set.recycle(set.epoch == self.epoch);
            (set.space, set.epoch) = (space, self.epoch);
            index
        });
        let set = &mut self.sets[index];
        set.stamp = self.clock;
        set.arrays.iter_mut().for_each(Array::calm);
        self.current = index;
    }

    /// A set to use for another address space: a void one, a new one, or the one not used for longest.
    fn victim(&mut self) -> usize {
        if self.sets[self.current].space == 0 {
            return self.current;
        }
        if let Some(free) = self.sets.iter().position(|set| set.space == 0) {
            return free;
        }
        if self.sets.len() < SETS {
            self.sets.push(TlbSet::new());
            return self.sets.len() - 1;
        }
        (0..self.sets.len()).min_by_key(|&index| self.sets[index].stamp).unwrap_or(0)
    }

    /// Forgets a linear range in every address space: that is more than asked, and allowed.
    pub fn forget(&mut self, start: u64, len: u64) {
        for set in &mut self.sets {
            set.arrays.iter_mut().for_each(|array| array.forget(start, len));
        }
    }
}

/// The TLB's page for a translation; `None` outside RAM.
pub(crate) fn page_of(memory: &GuestMemory, linear: u64, found: &Translation) -> Option<Page> {
    let physical = found.physical & !OFFSET;
    let region = memory.find(physical)?;
    let offset = physical - region.start();
    let flags = region.tracker().flag_byte((offset >> 12) as usize)?;
    let host = region.host_address() as u64 + offset;
    let read = linear & !OFFSET;
    let entry = TlbEntry { read, write: read, addend: host.wrapping_sub(read), flags };
    Some(Page { entry, physical, writable: found.writable, global: found.global })
}
