//! One direct-mapped array of the software TLB.
#![expect(unsafe_code, reason = "maps memory for slots, which takes host memory only where it is touched")]

use super::tlb::{OFFSET, TlbEntry};
use std::ops::{Deref, DerefMut};

/// log2 of an entry's size.
pub(crate) const ENTRY_SHIFT: u32 = 5;
const _: () = assert!(size_of::<TlbEntry>() == 1 << ENTRY_SHIFT);

/// Entries of an array that has not grown.
pub(crate) const BASE_SIZE: usize = 1 << 10;
/// Entries of an array at most: 256 MiB of small pages.
pub(crate) const MOST_SIZE: usize = 1 << 16;
/// log2 of how much an array grows or shrinks at once.
const STEP: u32 = 2;

/// Zeroed memory of its own mapping.
struct Mapped<T> {
    start: *mut T,
    len: usize,
}

/// Values that are valid as zeros.
///
/// # Safety
/// Any bit pattern is a value.
unsafe trait Zeroable: Copy {}
// SAFETY: integers, and a pointer that nobody follows before something matched.
unsafe impl Zeroable for TlbEntry {}
// SAFETY: an integer.
unsafe impl Zeroable for u64 {}

impl<T: Zeroable> Mapped<T> {
    fn new(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        // SAFETY: a new anonymous mapping, wherever the host likes.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            let layout = std::alloc::Layout::array::<T>(len).unwrap_or(std::alloc::Layout::new::<T>());
            std::alloc::handle_alloc_error(layout);
        }
        Mapped { start: start.cast(), len }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, which nobody uses any more.
        unsafe { libc::munmap(self.start.cast(), self.len * size_of::<T>()) };
    }
}

impl<T> Deref for Mapped<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values of a mapping that lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T> DerefMut for Mapped<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// What the fast path does not need to know of an entry: its guest-physical page, and [`GLOBAL`].
const GLOBAL: u64 = 1;

/// What an entry is made of.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    /// Loads, and stores if `writable` is set, may be made at this linear address. As the entry's.
    pub entry: TlbEntry,
    /// Guest-physical address.
    pub physical: u64,
    pub writable: bool,
    pub global: bool,
}

/// One array. Its size is a power of two, and at least two.
pub(crate) struct Array {
    entries: Mapped<TlbEntry>,
    info: Mapped<u64>,
    /// A bit for each slot that was filled since the array was emptied, some of them empty again.
    filled: Box<[u64]>,
    /// Pages put in since the array was emptied.
    uses: usize,
    /// Pages that others have replaced lately.
    evictions: usize,
    /// Pages put in since the array was last asked to settle.
    puts: usize,
}

impl Array {
    /// An empty array.
    pub fn new(size: usize) -> Self {
        let mut entries = Mapped::<TlbEntry>::new(size);
        entries[0] = TlbEntry::empty(0);
        let filled = vec![0; size.div_ceil(64)].into_boxed_slice();
        Array { entries, info: Mapped::new(size), filled, uses: 0, evictions: 0, puts: 0 }
    }

    /// Entries.
    pub fn size(&self) -> usize {
        self.entries.len
    }

    /// The first entry, and the mask of an entry's place in bytes: see [`TlbEntry::place`].
    pub fn start(&self) -> (*const TlbEntry, u64) {
        (self.entries.start, (self.size() as u64 - 1) << ENTRY_SHIFT)
    }

    /// Slot of a linear address.
    #[inline(always)]
    pub fn slot(&self, linear: u64) -> usize {
        (linear >> 12) as usize & (self.size() - 1)
    }

    /// The entry of a linear address, whatever it holds.
    #[inline(always)]
    pub fn entry(&self, linear: u64) -> &TlbEntry {
        &self.entries[self.slot(linear)]
    }

    /// Guest-physical page of the filled slot of a linear address.
    pub fn physical(&self, linear: u64) -> u64 {
        self.info[self.slot(linear)] & !OFFSET
    }

    /// Fills the slot of a page.
    pub fn put(&mut self, page: &Page) {
        let slot = self.slot(page.entry.read);
        self.puts += 1;
        let held = &self.entries[slot];
        self.evictions += usize::from(held.is_filled(slot) && held.read != page.entry.read);
        self.set(slot, page);
    }

    /// As [`Array::put`], but keeps what is there.
    pub fn offer(&mut self, page: &Page) {
        let slot = self.slot(page.entry.read);
        if !self.entries[slot].is_filled(slot) {
            self.set(slot, page);
        }
    }

    fn set(&mut self, slot: usize, page: &Page) {
        self.filled[slot / 64] |= 1 << (slot % 64);
        self.uses = self.uses.saturating_add(1);
        let write = if page.writable { page.entry.read } else { TlbEntry::nothing(slot) };
        self.entries[slot] = TlbEntry { write, ..page.entry };
        self.info[slot] = page.physical & !OFFSET | u64::from(page.global);
    }

    /// Slots that may be filled.
    fn slots(filled: &[u64]) -> impl Iterator<Item = usize> {
        filled.iter().enumerate().flat_map(|(word, &bits)| {
            let mut left = bits;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(64 * word + bit)
            })
        })
    }

    /// Empties the slot of a linear address.
    pub fn drop_entry(&mut self, linear: u64) {
        let slot = self.slot(linear);
        self.entries[slot] = TlbEntry::empty(slot);
    }

    /// Empties the array, but for global pages if they may stay. One that was hardly used shrinks.
    pub fn recycle(&mut self, keep_global: bool) {
        if self.uses < self.size() >> (2 * STEP) && self.size() > BASE_SIZE {
            self.resize(self.size() >> STEP);
        }
        for (word, bits) in self.filled.iter_mut().enumerate().filter(|(_, bits)| **bits != 0) {
            let mut kept = 0;
            for slot in Self::slots(&[*bits]).map(|bit| 64 * word + bit) {
                let global = self.info[slot] & GLOBAL != 0;
                if keep_global && global && self.entries[slot].is_filled(slot) {
                    kept |= 1 << (slot % 64);
                } else {
                    self.entries[slot] = TlbEntry::empty(slot);
                }
            }
            *bits = kept;
        }
        (self.uses, self.evictions) = (0, 0);
    }

    /// Empties the array and lets it have the least memory.
    pub fn release(&mut self) {
        if self.size() > BASE_SIZE {
            *self = Array::new(BASE_SIZE);
        } else {
            self.recycle(false);
        }
    }

    /// The size that the array should have: pages that were needed again had no room.
    pub fn wish(&self) -> Option<usize> {
        (self.evictions > self.size() / 4 && self.size() < MOST_SIZE).then_some(self.size() << STEP)
    }

    /// Forgets some of the past.
    pub fn calm(&mut self) {
        self.evictions -= self.evictions >> 4;
    }

    /// Once in a while: an array that has grown, and was hardly used since the last time, shrinks.
    pub fn settle(&mut self) {
        let puts = std::mem::take(&mut self.puts);
        if self.size() > BASE_SIZE && puts < self.size() >> 4 {
            self.resize(if puts == 0 { BASE_SIZE } else { self.size() >> STEP });
        }
    }

    /// Gives the array another size. Entries stay, as far as there is room.
    pub fn resize(&mut self, size: usize) {
        (self.evictions, self.puts) = (0, 0);
        if size == self.size() {
            return;
        }
        let mut other = Array::new(size);
        for slot in Self::slots(&self.filled) {
            let (entry, info) = (self.entries[slot], self.info[slot]);
            if entry.is_filled(slot) {
                let writable = entry.write == entry.read;
                other.offer(&Page { entry, physical: info, writable, global: info & GLOBAL != 0 });
            }
        }
        *self = other;
    }

    /// Empties the slots of a linear range of whole pages.
    pub fn forget(&mut self, start: u64, len: u64) {
        let inside = |page: u64| (page & !OFFSET).wrapping_sub(start) < len;
        if len >> 12 < self.size().min(self.uses + 64) as u64 {
            for page in (0..len >> 12).map(|number| start.wrapping_add(number << 12)) {
                let slot = self.slot(page);
                let entry = &mut self.entries[slot];
                if entry.is_filled(slot) && inside(entry.read) {
                    *entry = TlbEntry::empty(slot);
                }
            }
            return;
        }
        for slot in Self::slots(&self.filled) {
            let entry = &mut self.entries[slot];
            if entry.is_filled(slot) && inside(entry.read) {
                *entry = TlbEntry::empty(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn page(number: u64, physical: u64, global: bool) -> Page {
        let read = number << 12;
        let entry = TlbEntry { read, write: read, addend: physical, flags: std::ptr::null() };
        Page { entry, physical, writable: !number.is_multiple_of(3), global }
    }

    fn holds(array: &Array, number: u64) -> bool {
        array.entry(number << 12).read == number << 12
    }

    /// Everything that the array holds was put there, and is not void.
    fn check(array: &Array, model: &HashMap<u64, (u64, bool)>) {
        for number in 0..1 << 15 {
            let entry = array.entry(number << 12);
            let held = (number << 12) ^ entry.read <= OFFSET;
            let written = (number << 12) ^ entry.write <= OFFSET;
            let wanted = model.get(&number);
            assert!(!held || wanted.is_some(), "page {number:x} is void");
            assert_eq!(written, held && !number.is_multiple_of(3), "page {number:x}");
            if let (true, Some(&(physical, _))) = (held, wanted) {
                assert_eq!((entry.addend, array.physical(number << 12)), (physical, physical));
            }
        }
    }

    #[test]
    fn whatever_happens_an_array_holds_nothing_void() {
        let mut array = Array::new(BASE_SIZE);
        let mut model = HashMap::new();
        let mut seed = 7_u64;
        let mut random = |limit: u64| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (seed >> 33) % limit
        };
        for round in 0..300_000_u64 {
            let (number, global) = (random(1 << 15), random(4) == 0);
            let new = page(number, (round + 1) << 12, global);
            match random(20_000) {
                0 => {
                    array.recycle(true);
                    model.retain(|_, (_, global)| *global);
                    array.wish().into_iter().for_each(|size| array.resize(size));
                }
                1 => {
                    array.recycle(false);
                    model.clear();
                }
                2 => {
                    let sizes = [BASE_SIZE, BASE_SIZE << STEP, MOST_SIZE];
                    array.resize(sizes[random(3) as usize]);
                    check(&array, &model);
                }
                3..100 => {
                    let len = [1, 1, 512, 1 << 12][random(4) as usize];
                    array.forget(number << 12, len << 12);
                    model.retain(|&held, _| !(number..number + len).contains(&held));
                }
                100..6000 if !model.contains_key(&number) => {
                    array.offer(&new);
                    if holds(&array, number) {
                        model.insert(number, (new.physical, global));
                    }
                }
                _ => {
                    array.put(&new);
                    model.insert(number, (new.physical, global));
                    assert!(holds(&array, number));
                }
            }
        }
        check(&array, &model);
        array.recycle(false);
        check(&array, &HashMap::new());
    }

    #[test]
    fn an_array_grows_when_pages_replace_each_other_and_shrinks_when_few_are_used() {
        let mut array = Array::new(BASE_SIZE);
        let size = BASE_SIZE as u64;
        (0..size).for_each(|number| array.put(&page(number, 0, false)));
        assert_eq!(array.wish(), None, "there was room");
        (size..2 * size).for_each(|number| array.put(&page(number, 0, false)));
        let wish = array.wish().expect("all were replaced");
        array.resize(wish);
        assert!((size..2 * size).all(|number| holds(&array, number)), "nothing is lost");
        array.recycle(false);
        assert_eq!(array.size(), wish, "it was used");
        array.put(&page(1, 0, false));
        array.recycle(false);
        assert_eq!(array.size(), BASE_SIZE);
        array.resize(wish);
        (0..size).for_each(|number| array.put(&page(number, 0, false)));
        array.settle();
        assert_eq!(array.size(), wish, "it was used");
        array.settle();
        assert_eq!(array.size(), BASE_SIZE);
        assert!((0..size).all(|number| holds(&array, number)), "nothing is lost that there is room for");
    }
}
