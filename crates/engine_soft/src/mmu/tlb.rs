//! The software TLB: sets of direct-mapped arrays, one set for each address space that was used lately.
//!
//! A set has three arrays, one for each [`Accessor`](super::Accessor). An entry holds the linear address of
//! its page, once for loads and once for stores. The exclusive or of an access's address with that is the
//! offset in the page if the entry is the page's, and more than a page otherwise. So one comparison rejects
//! other pages, missing rights, and page-crossing accesses: an access of `size` bytes hits if the exclusive
//! or is at most `4096 - size`. Interpreter and translated code look into the same arrays.
//!
//! # Invariants
//! * An empty entry's page belongs to another slot, so no address of this slot matches it.
//! * A slot that was filled since the set was emptied is in the set's log.

use std::sync::atomic::AtomicU8;

/// Entries of each array.
pub const TLB_SIZE: usize = 2048;
/// Address spaces whose translations are kept.
const SETS: usize = 8;
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
    /// Who wants to know of stores to the page.
    pub flags: *const AtomicU8,
}

static NO_FLAGS: AtomicU8 = AtomicU8::new(0);

impl TlbEntry {
    /// The entry of `slot` that nothing matches.
    pub const fn empty(slot: usize) -> TlbEntry {
        let other = if slot.is_multiple_of(TLB_SIZE) { OFFSET + 1 } else { 0 };
        TlbEntry { read: other, write: other, addend: 0, flags: &raw const NO_FLAGS }
    }

    /// A page in none of whose slots it is: what an entry without a right holds.
    pub fn nothing(slot: usize) -> u64 {
        TlbEntry::empty(slot).read
    }

    /// Whether the entry maps pages for loads at all.
    fn is_filled(&self, slot: usize) -> bool {
        self.read != TlbEntry::nothing(slot)
    }
}

/// What the fast path does not need to know of an entry: its guest-physical page, and [`GLOBAL`].
const GLOBAL: u64 = 1;

/// Slot of an address in an array.
#[inline(always)]
pub(crate) fn slot(linear: u64) -> usize {
    (linear >> 12) as usize % TLB_SIZE
}

fn empty_array(arrays: usize) -> Box<[TlbEntry]> {
    (0..arrays * TLB_SIZE).map(TlbEntry::empty).collect()
}

/// The arrays of one address space.
pub(crate) struct TlbSet {
    pub entries: Box<[TlbEntry]>,
    info: Box<[u64]>,
    /// Slots filled since the last time the set was emptied, some of them empty again.
    log: Vec<u32>,
    /// The address space, or zero for none.
    space: u16,
    /// Last use.
    stamp: u64,
    /// Value of [`Tlb::epoch`] when the set was emptied.
    epoch: u32,
}

impl TlbSet {
    fn new() -> Self {
        TlbSet {
            entries: empty_array(3),
            info: vec![0; 3 * TLB_SIZE].into_boxed_slice(),
            log: Vec::new(),
            space: 0,
            stamp: 0,
            epoch: 0,
        }
    }

    /// Empties the set, but for global pages if they may stay.
    fn recycle(&mut self, keep_global: bool) {
        let (entries, info) = (&mut self.entries, &self.info);
        self.log.retain(|&slot| {
            let slot = slot as usize;
            let keep = keep_global && info[slot] & GLOBAL != 0 && entries[slot].is_filled(slot);
            if !keep {
                entries[slot] = TlbEntry::empty(slot);
            }
            keep
        });
    }

    /// Guest-physical page of a filled slot.
    pub fn page(&self, slot: usize) -> u64 {
        self.info[slot] & !OFFSET
    }

    /// Fills a slot.
    pub fn fill(&mut self, slot: usize, entry: TlbEntry, page: u64, global: bool) {
        if !self.entries[slot].is_filled(slot) {
            self.log.push(slot as u32);
            if self.log.len() > 6 * TLB_SIZE {
                self.shorten_log();
            }
        }
        self.entries[slot] = entry;
        self.info[slot] = page & !OFFSET | u64::from(global);
    }

    /// Drops repetitions and empty slots from the log.
    fn shorten_log(&mut self) {
        self.log.sort_unstable();
        self.log.dedup();
        let entries = &self.entries;
        self.log.retain(|&slot| entries[slot as usize].is_filled(slot as usize));
    }

    /// Empties a slot.
    pub fn drop_entry(&mut self, slot: usize) {
        self.entries[slot] = TlbEntry::empty(slot);
    }

    /// Empties the slots of a linear range.
    fn forget(&mut self, start: u64, len: u64) {
        let inside = |page: u64| (page & !OFFSET).wrapping_sub(start) < len;
        if len == OFFSET + 1 {
            for array in 0..3 {
                let slot = array * TLB_SIZE + slot(start);
                let entry = &mut self.entries[slot];
                if entry.is_filled(slot) && inside(entry.read) {
                    *entry = TlbEntry::empty(slot);
                }
            }
            return;
        }
        for &slot in &self.log {
            let slot = slot as usize;
            let entry = &mut self.entries[slot];
            if entry.is_filled(slot) && inside(entry.read) {
                *entry = TlbEntry::empty(slot);
            }
        }
    }
}

/// All sets.
pub(crate) struct Tlb {
    sets: Vec<TlbSet>,
    /// An array in which nothing ever matches.
    none: Box<[TlbEntry]>,
    current: usize,
    clock: u64,
    /// Counts flushes of global pages.
    epoch: u32,
}

impl Tlb {
    pub fn new() -> Self {
        let mut first = TlbSet::new();
        first.space = 1;
        Tlb { sets: vec![first], none: empty_array(1), current: 0, clock: 0, epoch: 0 }
    }

    /// The set of the current address space.
    #[inline(always)]
    pub fn current(&self) -> &TlbSet {
        &self.sets[self.current]
    }

    /// As [`Tlb::current`], to change it.
    #[inline(always)]
    pub fn current_mut(&mut self) -> &mut TlbSet {
        &mut self.sets[self.current]
    }

    /// The array for an accessor, or one without any match.
    pub fn array(&self, number: usize, open: bool) -> *const TlbEntry {
        if open { self.current().entries[number * TLB_SIZE..].as_ptr() } else { self.none.as_ptr() }
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
        self.sets[index].stamp = self.clock;
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
            set.forget(start, len);
        }
    }
}
