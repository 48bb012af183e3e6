//! L2 tables in memory.
//!
//! A table is read once by whoever needs it first; the others wait for that one table only. Entries are read under a
//! short lock, never held across I/O. Changed tables stay until the flush has written them.

use super::bits::{Entry, Geometry};
use super::words::{PAGE, Writes, bytes, take_pages, words};
use crate::backend::BlockBackend;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// One L2 table.
pub(super) struct Table {
    pub offset: u64,
    words: RwLock<Vec<u64>>,
    /// Pages to be written.
    dirty: Mutex<Vec<bool>>,
}

impl Table {
    pub fn new(offset: u64, words: Vec<u64>, dirty: bool) -> Self {
        let pages = (words.len() * 8).div_ceil(PAGE);
        Table { offset, words: RwLock::new(words), dirty: Mutex::new(vec![dirty; pages]) }
    }

    pub fn entry(&self, geometry: &Geometry, index: usize) -> Entry {
        entry_of(&self.words.read(), geometry, index)
    }

    /// Calls `look` with entries from `index` on until it says false or the table ends.
    pub fn entries_from(
        &self,
        geometry: &Geometry,
        index: usize,
        mut look: impl FnMut(usize, Entry) -> bool,
    ) {
        let words = self.words.read();
        for at in index..geometry.l2_entries() as usize {
            if !look(at, entry_of(&words, geometry, at)) {
                return;
            }
        }
    }

    /// Changes entries. Only for whoever holds the image's metadata lock.
    pub fn set(&self, geometry: &Geometry, index: usize, entry: Entry) {
        let width = geometry.words();
        let mut words = self.words.write();
        words[index * width] = entry.word;
        if geometry.extended {
            words[index * width + 1] = entry.bitmap;
        }
        self.dirty.lock()[index * width * 8 / PAGE] = true;
    }

    pub fn words(&self) -> Vec<u64> {
        self.words.read().clone()
    }

    fn is_dirty(&self) -> bool {
        self.dirty.lock().contains(&true)
    }

    pub fn mark_dirty(&self) {
        self.dirty.lock().fill(true);
    }

    fn take_dirty(&self) -> Writes {
        let words = self.words.read();
        take_pages(&mut self.dirty.lock(), |range| {
            let words = &words[range.start / 8..(range.end / 8).min(words.len())];
            (self.offset + range.start as u64, bytes(words))
        })
    }
}

fn entry_of(words: &[u64], geometry: &Geometry, index: usize) -> Entry {
    let width = geometry.words();
    Entry { word: words[index * width], bitmap: if geometry.extended { words[index * width + 1] } else { 0 } }
}

/// Forgets idle tables, those first that were not used for the longest time, until so many are left.
fn keep(slots: &mut HashMap<u64, Arc<Slot>>, most: usize) {
    let excess = slots.len().saturating_sub(most);
    if excess == 0 {
        return;
    }
    // Nobody else has it (who does would change a copy that nobody sees), and it is as in the file.
    let idle = slots.iter().filter(|(_, slot)| {
        let table = slot.table.try_lock();
        Arc::strong_count(slot) == 1
            && table.is_some_and(|table| {
                table.as_ref().is_none_or(|table| Arc::strong_count(table) == 1 && !table.is_dirty())
            })
    });
    let mut idle: Vec<(u64, u64)> = idle.map(|(at, slot)| (slot.used.load(Ordering::Relaxed), *at)).collect();
    idle.sort_unstable();
    for (_, at) in idle.into_iter().take(excess) {
        slots.remove(&at);
    }
}

#[derive(Default)]
struct Slot {
    table: Mutex<Option<Arc<Table>>>,
    used: AtomicU64,
}

/// The cache.
pub(super) struct Tables {
    slots: RwLock<HashMap<u64, Arc<Slot>>>,
    clock: AtomicU64,
    limit: AtomicUsize,
    cluster: u64,
}

impl Tables {
    /// For tables of `cluster` bytes, with `budget` bytes altogether.
    pub fn new(cluster: u64, budget: u64) -> Self {
        let limit = AtomicUsize::new(((budget / cluster) as usize).max(4));
        Tables { slots: RwLock::default(), clock: AtomicU64::new(0), limit, cluster }
    }

    /// The table at an offset, from memory or the file.
    pub fn get(&self, file: &dyn BlockBackend, offset: u64) -> Result<Arc<Table>> {
        let slot = self.slots.read().get(&offset).cloned();
        let slot = match slot {
            Some(slot) => slot,
            None => self.slot(offset),
        };
        slot.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let mut table = slot.table.lock();
        if let Some(table) = &*table {
            return Ok(table.clone());
        }
        let mut data = vec![0; self.cluster as usize];
        file.read_bytes(offset, &mut data)?;
        let loaded = Arc::new(Table::new(offset, words(&data), false));
        *table = Some(loaded.clone());
        Ok(loaded)
    }

    fn slot(&self, offset: u64) -> Arc<Slot> {
        let mut slots = self.slots.write();
        keep(&mut slots, self.limit.load(Ordering::Relaxed) - 1);
        slots.entry(offset).or_default().clone()
    }

    /// Forgets what was written and is too much.
    pub fn trim(&self) {
        keep(&mut self.slots.write(), self.limit.load(Ordering::Relaxed));
    }

    /// Puts a new table.
    pub fn insert(&self, table: Arc<Table>) {
        let slot = self.slot(table.offset);
        *slot.table.lock() = Some(table);
    }

    /// Whether a table is in memory.
    pub fn holds(&self, offset: u64) -> bool {
        self.slots.read().contains_key(&offset)
    }

    /// Forgets a table whose cluster is freed.
    pub fn remove(&self, offset: u64) {
        self.slots.write().remove(&offset);
    }

    /// Whether so many tables wait to be written that it is time to do so.
    pub fn is_crowded(&self) -> bool {
        self.slots.read().len() > self.limit.load(Ordering::Relaxed)
    }

    /// All pages that wait to be written, and the tables they are from; they count as written from now on.
    pub fn take_dirty(&self) -> (Vec<Arc<Table>>, Writes) {
        let slots: Vec<Arc<Slot>> = self.slots.read().values().cloned().collect();
        let mut writes = Vec::new();
        let mut tables = Vec::new();
        for slot in slots {
            let Some(table) = slot.table.lock().clone() else { continue };
            let pages = table.take_dirty();
            if !pages.is_empty() {
                writes.extend(pages);
                tables.push(table);
            }
        }
        writes.sort_by_key(|(offset, _)| *offset);
        (tables, writes)
    }
}
