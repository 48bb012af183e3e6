//! Discarding and zeroing.

use super::Qcow2;
use super::bits::{COPIED, Entry, OFFSET, State, ZERO};
use super::write::bit_range;
use std::io::{IoSlice, Result};
use std::sync::atomic::Ordering;

/// Zeros that are written at once.
const ZEROS: usize = 1 << 20;

/// What becomes of whole clusters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clear {
    /// They read as zeros and keep their space.
    Keep,
    /// They read as zeros and give their space back.
    Unmap,
    /// They are as if never written: the backing file shows through.
    Forget,
}

impl Qcow2 {
    /// Frees whole clusters of a range; they read as zeros then.
    pub(super) fn discard_range(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.size.load(Ordering::Acquire);
        let end = if offset + len == size { size.next_multiple_of(self.cluster()) } else { offset + len };
        let (start, end) = (offset.next_multiple_of(self.cluster()), end - end % self.cluster());
        // In version 2 there is no way to say zero above a backing file.
        if self.keep_discarded || start >= end || (self.geometry.version < 3 && self.backing_named) {
            return Ok(());
        }
        if self.raw_data() {
            return self.data.write_zeroes(start, end.min(size) - start, true);
        }
        self.clear_clusters(start, end, Clear::Unmap)
    }

    /// Makes all clusters of a range show the backing file again.
    pub(super) fn forget_range(&self, offset: u64, end: u64) -> Result<()> {
        self.clear_clusters(offset, end.next_multiple_of(self.cluster()), Clear::Forget)
    }

    /// Makes a range read as zeros.
    pub(super) fn zero_range(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        let size = self.size.load(Ordering::Acquire);
        let end = offset + len;
        let whole_end = if end == size { size.next_multiple_of(self.cluster()) } else { end };
        if self.geometry.version < 3 && (self.backing_named || !unmap) || self.raw_data() {
            return self.zero_by_writing(offset, end);
        }
        let (first, last) = (offset.next_multiple_of(self.cluster()), whole_end - whole_end % self.cluster());
        if first >= last {
            return self.zero_parts(offset, end);
        }
        self.zero_parts(offset, first)?;
        self.clear_clusters(first, last, if unmap { Clear::Unmap } else { Clear::Keep })?;
        if last < end { self.zero_parts(last, end) } else { Ok(()) }
    }

    /// Zeroes parts of a cluster: by the bitmap of its sub-clusters, and by writing.
    fn zero_parts(&self, offset: u64, end: u64) -> Result<()> {
        if offset >= end {
            return Ok(());
        }
        if !self.geometry.extended {
            return self.zero_by_writing(offset, end);
        }
        let sub = self.geometry.sub_size();
        let (first, last) = (offset.next_multiple_of(sub), end - end % sub);
        if first >= last {
            return self.zero_by_writing(offset, end);
        }
        self.zero_by_writing(offset, first)?;
        let mut at = first;
        while at < last {
            let stop = last.min((at | (self.cluster() - 1)) + 1);
            if !self.zero_subs(at, stop)? {
                self.zero_by_writing(at, stop)?;
            }
            at = stop;
        }
        self.zero_by_writing(last, end)
    }

    /// Marks sub-clusters of one cluster as zeros; not possible in a compressed one.
    fn zero_subs(&self, offset: u64, end: u64) -> Result<bool> {
        let geometry = &self.geometry;
        let guest = offset >> geometry.cluster_bits;
        let _flight = self.flights.start(guest..guest + 1);
        let mut meta = self.start_change()?;
        let table = self.own_table(&mut meta, geometry.l1_index(offset))?;
        let index = geometry.l2_index(offset);
        let entry = self.entry(&table, index)?;
        if entry.is_compressed() {
            return Ok(false);
        }
        let start = geometry.in_cluster(offset) / geometry.sub_size();
        let mask = bit_range(start, start + (end - offset) / geometry.sub_size());
        table.set(geometry, index, Entry { word: entry.word, bitmap: entry.bitmap & !mask | mask << 32 });
        Ok(true)
    }

    fn zero_by_writing(&self, offset: u64, end: u64) -> Result<()> {
        if offset >= end {
            return Ok(());
        }
        let zeros = vec![0; ((end - offset) as usize).min(ZEROS)];
        let mut at = offset;
        while at < end {
            let len = (end - at).min(zeros.len() as u64);
            // What is zero already needs no space.
            if self.raw_data() || !self.is_zero(at, len)? {
                self.write(at, &[IoSlice::new(&zeros[..len as usize])])?;
            }
            at += len;
        }
        Ok(())
    }

    fn raw_data(&self) -> bool {
        self.geometry.external && self.raw_external
    }

    fn clear_clusters(&self, start: u64, end: u64, how: Clear) -> Result<()> {
        let span = 1 << self.geometry.l2_span_bits();
        let mut at = start;
        while at < end {
            let stop = end.min((at | (span - 1)) + 1);
            // Nothing is there, and nothing has to be: no table needs to be made.
            let untouched = self.table(self.geometry.l1_index(at))?.is_none()
                && (how == Clear::Forget || !self.backing_named);
            if !untouched {
                self.clear_in_table(at, stop, how)?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Clears clusters of one L2 table.
    fn clear_in_table(&self, start: u64, end: u64, how: Clear) -> Result<()> {
        let geometry = &self.geometry;
        let bits = geometry.cluster_bits;
        let _flight = self.flights.start(start >> bits..end >> bits);
        let mut meta = self.start_change()?;
        let table = self.own_table(&mut meta, geometry.l1_index(start))?;
        let mut holes: Vec<(u64, u64)> = Vec::new();
        for at in (start..end).step_by(self.cluster() as usize) {
            let index = geometry.l2_index(at);
            let old = self.entry(&table, index)?;
            let new = self.cleared(old, how);
            if new == old {
                continue;
            }
            table.set(geometry, index, new);
            if new.word & OFFSET != old.word & OFFSET || old.is_compressed() {
                self.free_entry(&mut meta, old);
                if geometry.external && old.host(geometry).is_some() {
                    match holes.last_mut() {
                        Some((first, len)) if *first + *len == at => *len += self.cluster(),
                        _ => holes.push((at, self.cluster())),
                    }
                }
            }
        }
        drop(meta);
        for (first, len) in holes {
            if !self.keep_discarded {
                self.data.discard(first, len)?;
            }
        }
        Ok(())
    }

    fn cleared(&self, old: Entry, how: Clear) -> Entry {
        let geometry = &self.geometry;
        let keeps = how == Clear::Keep && old.is_copied() && old.host(geometry).is_some();
        let host = if keeps { old.word & (OFFSET | COPIED) } else { 0 };
        let nothing_below = !self.backing_named;
        if how == Clear::Forget || (geometry.version < 3) {
            return Entry::default();
        }
        let unallocated = !old.is_compressed()
            && (0..geometry.subs()).all(|sub| old.state(geometry, sub) == State::Unallocated);
        if nothing_below && unallocated && how == Clear::Keep {
            return old;
        }
        if nothing_below && how == Clear::Unmap {
            return Entry::default();
        }
        if geometry.extended {
            Entry { word: host, bitmap: 0xffff_ffff << 32 }
        } else {
            Entry { word: host | ZERO, bitmap: 0 }
        }
    }
}
