//! L1 tables: the active one, which is in memory, and any one in the file, which is gone through part by part.
//!
//! An L1 table may have 32 MiB. So the active one is in memory once, what waits to be written is bounded by
//! [`L1::is_crowded`], and a snapshot's is never held as a whole.

use super::Qcow2;
use super::words::{PAGE, Writes, bytes, read_words, take_pages};
use std::io::Result;
use std::sync::atomic::Ordering;

/// Entries of a table in the file that are looked at together: 1 MiB.
const PART: usize = 1 << 17;
/// Changed pages that may wait to be written: 2 MiB.
const PAGES_MAX: usize = 512;

/// The active L1 table.
#[derive(Default)]
pub(super) struct L1 {
    pub offset: u64,
    entries: Vec<u64>,
    /// Pages to be written, and how many they are.
    dirty: Vec<bool>,
    waiting: usize,
}

/// Where an L1 table is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct L1Place {
    pub offset: u64,
    pub entries: u32,
}

impl L1 {
    /// A table that is in the file with these entries.
    pub fn new(offset: u64, entries: Vec<u64>) -> Self {
        let dirty = vec![false; (entries.len() * 8).div_ceil(PAGE)];
        L1 { offset, entries, dirty, waiting: 0 }
    }

    pub fn entries(&self) -> &[u64] {
        &self.entries
    }

    pub fn place(&self) -> L1Place {
        L1Place { offset: self.offset, entries: self.entries.len() as u32 }
    }

    /// Changes an entry, if there is such a one. Only for whoever holds the image's metadata lock.
    pub fn set(&mut self, index: usize, entry: u64) {
        let Some(old) = self.entries.get_mut(index) else { return };
        *old = entry;
        self.mark(index * 8 / PAGE);
    }

    fn mark(&mut self, page: usize) {
        if let Some(dirty) = self.dirty.get_mut(page) {
            self.waiting += usize::from(!*dirty);
            *dirty = true;
        }
    }

    /// Whether so much waits to be written that it is time to do so.
    pub fn is_crowded(&self) -> bool {
        self.waiting > PAGES_MAX
    }

    /// What has to be written; it counts as written from now on.
    pub fn take_dirty(&mut self) -> Writes {
        let L1 { offset, entries, dirty, waiting } = self;
        *waiting = 0;
        take_pages(dirty, |range| {
            let words = entries.get(range.start / 8..(range.end / 8).min(entries.len())).unwrap_or_default();
            (*offset + range.start as u64, bytes(words))
        })
    }

    /// Takes back that `writes` were written.
    pub fn mark_dirty(&mut self, writes: &Writes) {
        for (offset, data) in writes {
            let first = offset.saturating_sub(self.offset) as usize / PAGE;
            (first..first + data.len().div_ceil(PAGE)).for_each(|page| self.mark(page));
        }
    }
}

impl L1Place {
    pub fn bytes(self) -> u64 {
        u64::from(self.entries) * 8
    }
}

impl Qcow2 {
    /// Shows `look` all entries of a table in the file, in order, and the number of the first one it sees.
    pub(super) fn each_l1_part(
        &self,
        place: L1Place,
        mut look: impl FnMut(u64, &[u64]) -> Result<()>,
    ) -> Result<()> {
        let mut first = 0;
        while first < u64::from(place.entries) {
            let count = (u64::from(place.entries) - first).min(PART as u64);
            look(first, &read_words(&*self.file, place.offset + first * 8, count as usize)?)?;
            first += count;
        }
        Ok(())
    }

    /// Writes a table with the entries of another one, less the flags that are in `without`, and zeros behind them.
    /// `clusters` clusters are there for it.
    pub(super) fn copy_l1(&self, from: L1Place, to: u64, clusters: u64, without: u64) -> Result<()> {
        self.each_l1_part(from, |first, part| {
            let part: Vec<u64> = part.iter().map(|entry| entry & !without).collect();
            self.file.write_bytes(to + first * 8, &bytes(&part))
        })?;
        let rest = (clusters << self.geometry.cluster_bits).saturating_sub(from.bytes());
        self.write_zeros(to + from.bytes(), rest)
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<()> {
        let zeros = vec![0; len.min(PART as u64 * 8) as usize];
        let mut done = 0;
        while done < len {
            let part = zeros.get(..(len - done).min(zeros.len() as u64) as usize).unwrap_or_default();
            self.file.write_bytes(offset + done, part)?;
            done += part.len() as u64;
        }
        Ok(())
    }

    /// Takes the table at a place of the file as the active one. When it cannot be read, the image is not used on.
    pub(super) fn adopt_l1(&self, place: L1Place) -> Result<()> {
        let mut l1 = self.l1.write();
        // The old table goes before the new one is read: not both are in memory.
        let mut entries = std::mem::take(&mut *l1).entries;
        entries.clear();
        entries.shrink_to(place.entries as usize);
        entries.reserve_exact(place.entries as usize);
        let read = self.each_l1_part(place, |_, part| {
            entries.extend_from_slice(part);
            Ok(())
        });
        if read.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        *l1 = L1::new(place.offset, entries);
        read
    }
}
