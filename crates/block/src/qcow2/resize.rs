//! Growing, shrinking, and taking space in advance.

use super::bits::{COPIED, Entry, OFFSET, State};
use super::header::L1_BYTES_MAX;
use super::l1::L1Place;
use super::{Free, Qcow2};
use crate::backend::SECTOR_SIZE;
use crate::error::BlockError;
use crate::image::ImageResult;
use crate::options::Preallocation;
use std::io::Result;
use std::sync::atomic::Ordering;

/// Zeros that are written at once.
const ZEROS: usize = 1 << 20;

impl Qcow2 {
    pub(super) fn set_size(&self, size: u64) -> ImageResult<()> {
        let wrong = |problem: String| Err(BlockError::option("size", problem));
        if !size.is_multiple_of(SECTOR_SIZE) {
            return wrong(format!("{size} is no multiple of 512"));
        }
        let _gate = self.gate.write();
        let old = self.size.load(Ordering::Acquire);
        let (version, snapshots, needed) = {
            let meta = self.tell("changing the size", self.start_change())?;
            (meta.header.version, meta.header.snapshots, meta.header.l1_needed(size))
        };
        if needed > L1_BYTES_MAX / 8 {
            return wrong(format!("{size} is too large for clusters of {} bytes", self.cluster()));
        }
        if version < 3 && snapshots > 0 {
            return wrong("an image of version 2 with snapshots keeps its size".to_owned());
        }
        self.store_bitmaps()?;
        let done = if size < old { self.shrink(size, old) } else { self.grow(size, old, needed) };
        self.tell("changing the size", done)?;
        self.resize_bitmaps(size)
    }

    fn shrink(&self, size: u64, old: u64) -> Result<()> {
        let start = size.next_multiple_of(self.cluster());
        // Who makes the disk larger again expects zeros behind the end.
        self.zero_range(size, start.min(old) - size, true)?;
        if start < old {
            let span = 1 << self.geometry.l2_span_bits();
            for at in (start..old).step_by(span as usize) {
                self.forget_range(at, (at + span).min(old))?;
                self.relieve_alone()?;
            }
        }
        let needed = self.meta.lock().header.l1_needed(size) as usize;
        let entries = self.l1.read().entries().len();
        for number in needed..entries {
            let entry = self.l1.read().entries().get(number).copied().unwrap_or(0);
            if entry & OFFSET == 0 {
                continue;
            }
            let mut meta = self.start_change()?;
            let cluster = (entry & OFFSET) >> self.geometry.cluster_bits;
            meta.frees.push(Free { cluster, count: 1, data: false });
            self.l1.write().set(number, 0);
            drop(meta);
            self.relieve_alone()?;
        }
        self.flush_metadata(false)?;
        self.store_size(size)?;
        if self.geometry.external { self.data.resize(size) } else { Ok(()) }
    }

    fn store_size(&self, size: u64) -> Result<()> {
        let mut meta = self.meta.lock();
        let mut header = meta.header.clone();
        header.size = size;
        self.write_header(&header)?;
        meta.header = header;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn grow(&self, size: u64, old: u64, needed: u64) -> Result<()> {
        let l1 = self.l1.read().place();
        if needed > u64::from(l1.entries) {
            self.flush_metadata(false)?;
            self.replace_l1(l1, 0, needed as u32, None)?;
        }
        if self.geometry.external {
            self.data.resize(size)?;
        }
        self.store_size(size)?;
        // What the last cluster, or a longer backing file, has beyond the old end must not show.
        let edge = old.next_multiple_of(self.cluster()).min(size);
        let below = self.backing.as_ref().map_or(0, |backing| backing.size()).min(size);
        let end = edge.max(below);
        if old < end && (below > old || !self.is_zero(old, edge - old)?) {
            self.zero_range(old, end - old, true)?;
            self.flush_metadata(false)?;
        }
        Ok(())
    }

    /// Makes a copy of an L1 table in the file, less the flags in `without` and with at least `entries` entries, the
    /// active one. The header changes at once, together with the disk's size if that is given. The old table's
    /// clusters are freed at the next flush.
    pub(super) fn replace_l1(
        &self,
        from: L1Place,
        without: u64,
        entries: u32,
        size: Option<u64>,
    ) -> Result<()> {
        self.flush_metadata(false)?;
        let bits = self.geometry.cluster_bits;
        let entries = entries.max(from.entries);
        let clusters = (u64::from(entries) * 8).div_ceil(self.cluster()).max(1);
        let offset = {
            let mut meta = self.start_change()?;
            self.take_exactly(&mut meta, clusters)? << bits
        };
        self.copy_l1(from, offset, clusters, without)?;
        self.flush_metadata(false)?;
        let mut meta = self.start_change()?;
        let mut header = meta.header.clone();
        (header.l1_offset, header.l1_entries) = (offset, entries);
        header.size = size.unwrap_or(header.size);
        self.write_header(&header)?;
        self.size.store(header.size, Ordering::Release);
        meta.header = header;
        let old = self.l1.read().place();
        let count = old.bytes().div_ceil(self.cluster());
        meta.frees.push(Free { cluster: old.offset >> bits, count, data: false });
        self.adopt_l1(L1Place { offset, entries })
    }

    /// Takes space for unallocated clusters of a range. The range must not show a backing file.
    pub(crate) fn preallocate(&self, start: u64, end: u64, mode: Preallocation) -> ImageResult<()> {
        if mode == Preallocation::Off {
            return Ok(());
        }
        let cluster = self.cluster();
        let span = 1 << self.geometry.l2_span_bits();
        let mut at = start - start % cluster;
        while at < end {
            let stop = end.next_multiple_of(cluster).min((at | (span - 1)) + 1);
            self.tell("taking space", self.preallocate_in_table(at, stop, mode))?;
            self.tell("taking space", self.flush_metadata(false))?;
            at = stop;
        }
        Ok(())
    }

    fn preallocate_in_table(&self, start: u64, end: u64, mode: Preallocation) -> Result<()> {
        let geometry = &self.geometry;
        let mut meta = self.start_change()?;
        let table = self.own_table(&mut meta, geometry.l1_index(start))?;
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let bitmap = if geometry.extended { 0xffff_ffff } else { 0 };
        for at in (start..end).step_by(self.cluster() as usize) {
            let index = geometry.l2_index(at);
            if self.entry(&table, index)?.state(geometry, 0) != State::Unallocated {
                continue;
            }
            let host = if geometry.external {
                at
            } else {
                self.take_exactly(&mut meta, 1)? << geometry.cluster_bits
            };
            table.set(geometry, index, Entry { word: host | COPIED, bitmap });
            match runs.last_mut() {
                Some((first, len)) if *first + *len == host => *len += self.cluster(),
                _ => runs.push((host, self.cluster())),
            }
        }
        drop(meta);
        for (host, len) in runs {
            match mode {
                Preallocation::Full => {
                    let zeros = vec![0; ZEROS.min(len as usize)];
                    for at in (0..len).step_by(zeros.len()) {
                        let part = &zeros[..(len - at).min(zeros.len() as u64) as usize];
                        self.data.write_bytes(host + at, part)?;
                    }
                }
                // Reserves the blocks as well, where the file system can.
                Preallocation::Falloc => self.data.write_zeroes(host, len, false)?,
                Preallocation::Off | Preallocation::Metadata => self.data.write_zeroes(host, len, true)?,
            }
        }
        Ok(())
    }
}
