//! Writing, allocation and copy-on-write.

use super::bits::{COPIED, Entry, OFFSET, State};
use super::map::Run;
use super::tables::Table;
use super::{Free, Meta, Qcow2};
use crate::buffers::{len, part};
use parking_lot::MutexGuard;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Most bytes that one allocation covers.
const ALLOCATION_MAX: u64 = 8 << 20;

/// Host clusters for guest clusters that follow each other, taken but not yet in any table.
struct Allocation {
    guest: u64,
    host: u64,
    count: u64,
    /// The host clusters belong to the guest clusters already; only sub-clusters or the zero flag change.
    in_place: bool,
    /// The file's bytes there were never written.
    fresh: bool,
}

impl Qcow2 {
    /// Writes a range of the disk.
    pub(super) fn write(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let len = len(buffers);
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (run, bytes) = self.run(at, len - done)?;
            done += match run {
                Run::Data { host, owned: true } => {
                    if done == 0 && bytes == len {
                        self.data.write_at(host, buffers)?;
                    } else {
                        self.data.write_at(host, &part(buffers, done, bytes))?;
                    }
                    bytes
                }
                _ => self.write_allocating(at, &part(buffers, done, len - done))?,
            };
        }
        Ok(())
    }

    /// Writes the first clusters of a range that have to be allocated; returns the bytes that were written.
    fn write_allocating(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<u64> {
        let geometry = &self.geometry;
        let span_end = ((offset >> geometry.l2_span_bits()) + 1) << geometry.l2_span_bits();
        let end = (offset + len(buffers)).min(span_end).min(offset.saturating_add(ALLOCATION_MAX));
        let first = offset >> geometry.cluster_bits;
        let last = (end - 1) >> geometry.cluster_bits;
        let flight = self.flights.start(first..last + 1);
        let Some(allocation) = self.allocate(offset, end)? else {
            return Ok(0); // Somebody else did it meanwhile: look again.
        };
        let end = end.min((allocation.guest + allocation.count) << geometry.cluster_bits);
        let buffers = part(buffers, 0, end - offset);
        let written = self.fill(&allocation, offset, end, &buffers);
        let linked = written.and_then(|range| self.link(&allocation, range));
        if linked.is_err() && !allocation.in_place && !geometry.external {
            let mut meta = self.meta.lock();
            let start = allocation.host >> geometry.cluster_bits;
            for cluster in start..start + allocation.count {
                meta.refcounts.sub(cluster)?;
            }
        }
        linked?;
        drop(flight);
        Ok(end - offset)
    }

    /// Takes host clusters for the first guest clusters of a range, as many as can be treated alike. `None`: the first
    /// can be written in place.
    fn allocate(&self, offset: u64, end: u64) -> Result<Option<Allocation>> {
        let geometry = &self.geometry;
        let mut meta = self.start_change()?;
        let table = self.own_table(&mut meta, geometry.l1_index(offset))?;
        let guest = offset >> geometry.cluster_bits;
        let wanted = ((end - 1) >> geometry.cluster_bits) - guest + 1;
        let index = geometry.l2_index(offset);
        let entry = self.entry(&table, index)?;
        let sub = geometry.in_cluster(offset) / geometry.sub_size();
        let owned = entry.host(geometry).filter(|_| entry.is_copied());
        if let Some(host) = owned {
            if entry.state(geometry, sub) == State::Data {
                return Ok(None);
            }
            return Ok(Some(Allocation { guest, host, count: 1, in_place: true, fresh: false }));
        }
        // As many as also need a new cluster.
        let mut count = 1;
        while count < wanted {
            let next = self.entry(&table, index + count as usize)?;
            if next.is_copied() && next.host(geometry).is_some() {
                break;
            }
            count += 1;
        }
        if geometry.external {
            let host = guest << geometry.cluster_bits;
            return Ok(Some(Allocation { guest, host, count, in_place: false, fresh: false }));
        }
        let fresh_from = meta.refcounts.fresh;
        let clusters = self.take_clusters(&mut meta, count)?;
        Ok(Some(Allocation {
            guest,
            host: clusters.start << geometry.cluster_bits,
            count: clusters.end - clusters.start,
            in_place: false,
            fresh: clusters.start >= fresh_from && self.file.capabilities().growable && !self.encrypted,
        }))
    }

    /// The metadata lock, for a change; the image is told to be in use first.
    pub(super) fn start_change(&self) -> Result<MutexGuard<'_, Meta>> {
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        if self.broken.load(Ordering::Acquire) {
            return Err(Error::other("the image's metadata are wrong; it has to be repaired first"));
        }
        let mut meta = self.meta.lock();
        if !self.written.load(Ordering::Acquire) {
            if meta.header.lazy_refcounts() {
                self.set_dirty_bit(&mut meta, true)?;
            }
            self.written.store(true, Ordering::Release);
        }
        Ok(meta)
    }

    /// 1 to `count` new clusters that follow each other.
    fn take_clusters(&self, meta: &mut Meta, count: u64) -> Result<Range<u64>> {
        let taken = meta.refcounts.allocate_some(count);
        self.finish_table_move(meta)?;
        let taken = taken?;
        self.refuse_overlap(meta, &taken)?;
        Ok(taken)
    }

    /// `count` new clusters that follow each other, for metadata.
    pub(super) fn take_exactly(&self, meta: &mut Meta, count: u64) -> Result<u64> {
        let taken = meta.refcounts.allocate(count);
        self.finish_table_move(meta)?;
        let start = taken?;
        self.refuse_overlap(meta, &(start..start + count))?;
        Ok(start)
    }

    /// What refcounts call free must not be what the image uses: a wrong refcount would destroy it.
    fn refuse_overlap(&self, meta: &mut Meta, clusters: &Range<u64>) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let range = clusters.start << bits..clusters.end << bits;
        let l1 = self.l1.read();
        let l1_range = l1.offset..l1.offset + l1.place().bytes();
        let hit = if range.start == 0 {
            "the header"
        } else if range.start < l1_range.end && l1_range.start < range.end {
            "the L1 table"
        } else if meta.refcounts.overlaps(&range) {
            "the refcounts"
        } else if clusters.clone().any(|cluster| self.tables.holds(cluster << bits)) {
            "an L2 table"
        } else {
            return Ok(());
        };
        drop(l1);
        self.broken.store(true, Ordering::Release);
        if meta.header.version >= 3 {
            meta.header.incompatible |= super::bits::incompatible::CORRUPT;
            self.write_header(&meta.header)?;
        }
        Err(self.wrong(
            range.start,
            "refcount",
            format!("is 0 though {hit} is there; the image has to be repaired"),
        ))
    }

    /// The L2 table for a change: made where there is none, copied where a snapshot shares it.
    pub(super) fn own_table(&self, meta: &mut Meta, l1_index: usize) -> Result<Arc<Table>> {
        let entry = self.l1.read().entries().get(l1_index).copied().unwrap_or(0);
        let old = self.table(l1_index)?;
        if let Some(table) = &old
            && entry & COPIED != 0
        {
            return Ok(table.clone());
        }
        let words = match &old {
            Some(table) => table.words(),
            None => vec![0; (self.cluster() / 8) as usize],
        };
        let cluster = self.take_exactly(meta, 1)?;
        let offset = cluster << self.geometry.cluster_bits;
        let table = Arc::new(Table::new(offset, words, true));
        self.tables.insert(table.clone());
        self.l1.write().set(l1_index, offset | COPIED);
        if let Some(old) = old {
            let cluster = old.offset >> self.geometry.cluster_bits;
            meta.frees.push(Free { cluster, count: 1, data: false });
        }
        Ok(table)
    }

    /// Writes the data, and what has to be copied around them; returns the guest range that is valid then.
    fn fill(
        &self,
        allocation: &Allocation,
        offset: u64,
        end: u64,
        buffers: &[IoSlice<'_>],
    ) -> Result<Range<u64>> {
        let geometry = &self.geometry;
        // In a whole new cluster with old content all of it is copied; else only up to the borders of sub-clusters.
        let first = allocation.guest << geometry.cluster_bits;
        let host = |at: u64| allocation.host + (at - first);
        let start_edge = self.copy_start(offset)?;
        let end_edge = self.copy_end(end)?;
        let (before, after) = (offset - start_edge, end_edge - end);
        // What was never written in the file is zeros already.
        let zero_before = allocation.fresh && self.is_zero(start_edge, before)?;
        let zero_after = allocation.fresh && self.is_zero(end, after)?;
        let mut head = vec![0; if zero_before { 0 } else { before as usize }];
        let mut tail = vec![0; if zero_after { 0 } else { after as usize }];
        if !head.is_empty() {
            self.read(start_edge, &mut [IoSliceMut::new(&mut head)])?;
        }
        if !tail.is_empty() {
            self.read(end, &mut [IoSliceMut::new(&mut tail)])?;
        }
        let mut all = Vec::with_capacity(buffers.len() + 2);
        all.push(IoSlice::new(&head));
        all.extend_from_slice(buffers);
        all.push(IoSlice::new(&tail));
        self.data.write_at(host(offset - head.len() as u64), &all)?;
        Ok(start_edge..end_edge)
    }

    /// Where the copy before a write has to start: at the border of its sub-cluster; a compressed or shared cluster is
    /// copied as a whole.
    fn copy_start(&self, offset: u64) -> Result<u64> {
        let (cluster, sub) = self.edges(offset);
        if sub.start == cluster.start || self.is_unallocated(cluster.start, offset)? {
            return Ok(sub.start);
        }
        Ok(cluster.start)
    }

    fn copy_end(&self, end: u64) -> Result<u64> {
        let (cluster, sub) = self.edges(end - 1);
        if sub.end == cluster.end || self.is_unallocated(sub.start, cluster.end)? {
            return Ok(sub.end);
        }
        Ok(cluster.end)
    }

    /// The cluster and the sub-cluster of a guest offset.
    fn edges(&self, offset: u64) -> (Range<u64>, Range<u64>) {
        let around = |size: u64| {
            let start = offset - offset % size;
            start..start + size
        };
        (around(self.cluster()), around(self.geometry.sub_size()))
    }

    /// Whether sub-clusters stay as they are when another of their cluster is written: they are not compressed, nor
    /// shared data.
    fn is_unallocated(&self, start: u64, end: u64) -> Result<bool> {
        let mut at = start;
        while at < end {
            let (run, len) = self.run(at, end - at)?;
            if matches!(run, Run::Compressed { .. } | Run::Data { owned: false, .. }) {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    /// Puts written clusters into the L2 table. What they replace is freed when that is safe.
    fn link(&self, allocation: &Allocation, valid: Range<u64>) -> Result<()> {
        let geometry = &self.geometry;
        let mut meta = self.start_change()?;
        let first = allocation.guest << geometry.cluster_bits;
        let table = self.own_table(&mut meta, geometry.l1_index(first))?;
        for number in 0..allocation.count {
            let guest = first + (number << geometry.cluster_bits);
            let index = geometry.l2_index(guest);
            let old = self.entry(&table, index)?;
            let mut bitmap = 0;
            if geometry.extended {
                let sub = |at: u64| at.saturating_sub(guest).min(geometry.cluster()) / geometry.sub_size();
                let mask = bit_range(sub(valid.start), sub(valid.end));
                let kept = if old.is_compressed() { 0 } else { old.bitmap };
                // What was shared data has been copied; what was zero or unallocated stays so.
                bitmap = (kept | mask) & !(mask << 32);
            }
            let host = allocation.host + (number << geometry.cluster_bits);
            table.set(geometry, index, Entry::owned(host, bitmap));
            if !allocation.in_place {
                self.free_entry(&mut meta, old);
            }
        }
        Ok(())
    }

    /// Notes that an entry's reference is gone.
    pub(super) fn free_entry(&self, meta: &mut Meta, old: Entry) {
        let bits = self.geometry.cluster_bits;
        if self.geometry.external {
            return;
        }
        let free = if old.is_compressed() {
            let (start, len) = self.geometry.compressed(old.word);
            let cluster = start >> bits;
            Free { cluster, count: ((start + len - 1) >> bits) - cluster + 1, data: false }
        } else if old.word & OFFSET != 0 {
            Free { cluster: (old.word & OFFSET) >> bits, count: 1, data: true }
        } else {
            return;
        };
        meta.frees.push(free);
    }

    /// Writes metadata when much has come together. Not while the gate is held.
    pub(super) fn relieve(&self) -> Result<()> {
        if self.is_crowded() { self.flush_metadata(true) } else { Ok(()) }
    }

    /// The same for whoever holds the gate alone.
    pub(super) fn relieve_alone(&self) -> Result<()> {
        if self.is_crowded() { self.flush_metadata(false) } else { Ok(()) }
    }

    fn is_crowded(&self) -> bool {
        let meta = self.meta.lock();
        self.tables.is_crowded()
            || self.l1.read().is_crowded()
            || meta.refcounts.is_crowded()
            || meta.frees.len() > super::FREES_MAX
    }
}

/// Bits `start..end` of 32.
pub(super) fn bit_range(start: u64, end: u64) -> u64 {
    if end <= start { 0 } else { ((1 << end) - 1) & !((1 << start) - 1) }
}
