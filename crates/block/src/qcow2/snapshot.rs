//! Internal snapshots (qcow2 specification, "Snapshots").
//!
//! A snapshot is a second L1 table over the same clusters. While one is made or removed, many refcounts and their
//! copied flags change; the dirty bit says so in version 3. Without it the order of the steps leaves at most refcounts
//! that are too high and flags that are missing.

use super::bits::{COPIED, OFFSET};
use super::header::L1_BYTES_MAX;
use super::l1::L1Place;
use super::{Meta, Qcow2};
use crate::error::BlockError;
use crate::image::{ImageResult, SnapshotInfo, Snapshots};
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest extra data, and bytes of all snapshots together.
const EXTRA_MAX: u32 = 1024;
const TABLE_MAX: u64 = 8 << 20;

/// A row of the snapshot table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub l1: L1Place,
    pub info: SnapshotInfo,
    /// Extra data beyond the fields that are known.
    more: Vec<u8>,
}

impl Row {
    fn encode(&self, out: &mut Vec<u8>) {
        let info = &self.info;
        out.extend_from_slice(&self.l1.offset.to_be_bytes());
        out.extend_from_slice(&self.l1.entries.to_be_bytes());
        out.extend_from_slice(&(info.id.len() as u16).to_be_bytes());
        out.extend_from_slice(&(info.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&info.date_sec.to_be_bytes());
        out.extend_from_slice(&info.date_nsec.to_be_bytes());
        out.extend_from_slice(&info.vm_clock_nsec.to_be_bytes());
        out.extend_from_slice(&u32::try_from(info.vm_state_size).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&(24 + self.more.len() as u32).to_be_bytes());
        out.extend_from_slice(&info.vm_state_size.to_be_bytes());
        out.extend_from_slice(&info.disk_size.to_be_bytes());
        out.extend_from_slice(&info.icount.unwrap_or(u64::MAX).to_be_bytes());
        out.extend_from_slice(&self.more);
        out.extend_from_slice(info.id.as_bytes());
        out.extend_from_slice(info.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

impl Qcow2 {
    /// Reads the snapshot table; also the bytes it takes.
    pub(super) fn read_snapshots(&self, header: &super::Header) -> Result<(Vec<Row>, u64)> {
        let mut rows = Vec::new();
        let start = header.snapshots_offset;
        let mut at = start;
        for _ in 0..header.snapshots {
            let wrong = |at, field, problem: String| Err(self.wrong(at, field, problem));
            if at - start > TABLE_MAX || at + 40 > self.file.size() {
                return wrong(at, "snapshot table", "is too long, or leaves the file".to_owned());
            }
            let mut fixed = [0; 40];
            self.file.read_bytes(at, &mut fixed)?;
            let field = |from: usize, len: usize| number(&fixed[from..from + len]);
            let (id_len, name_len, extra_len) =
                (field(12, 2) as usize, field(14, 2) as usize, field(36, 4) as u32);
            if extra_len > EXTRA_MAX {
                return wrong(at + 36, "extra data size", format!("is {extra_len}; {EXTRA_MAX} is the most"));
            }
            let mut rest = vec![0; extra_len as usize + id_len + name_len];
            self.file.read_bytes(at + 40, &mut rest)?;
            let (extra, names) = rest.split_at(extra_len as usize);
            let (id, name) = names.split_at(id_len);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let row = Row {
                l1: L1Place { offset: field(0, 8), entries: field(8, 4) as u32 },
                info: SnapshotInfo {
                    id: text(id),
                    name: text(name),
                    date_sec: field(16, 4) as u32,
                    date_nsec: field(20, 4) as u32,
                    vm_clock_nsec: field(24, 8),
                    vm_state_size: extra.get(..8).map_or(field(32, 4), number),
                    disk_size: extra.get(8..16).map_or(header.size, number),
                    icount: extra.get(16..24).map(number).filter(|icount| *icount != u64::MAX),
                },
                more: extra.get(24..).unwrap_or_default().to_vec(),
            };
            self.check_row(&row, at)?;
            rows.push(row);
            at += (40 + rest.len() as u64).next_multiple_of(8);
        }
        Ok((rows, at - start))
    }

    fn check_row(&self, row: &Row, at: u64) -> Result<()> {
        let l1 = row.l1;
        let inside = l1
            .offset
            .checked_add(l1.bytes())
            .is_some_and(|end| end <= self.file.size().next_multiple_of(self.cluster()));
        if l1.bytes() > L1_BYTES_MAX || !l1.offset.is_multiple_of(self.cluster()) || !inside {
            let problem = format!("is {:#x} with {} entries: no table in the file", l1.offset, l1.entries);
            return Err(self.wrong(at, "snapshot's L1 table offset", problem));
        }
        Ok(())
    }

    /// Writes another snapshot table; the header changes at once. The old table's clusters are freed.
    fn replace_snapshots(&self, rows: &[Row], old_bytes: u64) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let mut data = Vec::new();
        rows.iter().for_each(|row| row.encode(&mut data));
        let clusters = (data.len() as u64).div_ceil(self.cluster());
        let mut offset = 0;
        if clusters > 0 {
            let mut meta = self.start_change()?;
            offset = self.take_exactly(&mut meta, clusters)? << bits;
            drop(meta);
            data.resize((clusters << bits) as usize, 0);
            self.file.write_bytes(offset, &data)?;
        }
        self.flush_metadata(false)?;
        let mut meta = self.start_change()?;
        let mut header = meta.header.clone();
        let old = (header.snapshots_offset >> bits, old_bytes.div_ceil(self.cluster()));
        (header.snapshots, header.snapshots_offset) = (rows.len() as u32, offset);
        self.write_header(&header)?;
        meta.header = header;
        for cluster in old.0..old.0 + old.1 {
            meta.refcounts.sub(cluster)?;
        }
        Ok(())
    }

    /// Changes the refcounts of all that an L1 table in the file leads to.
    fn count(&self, l1: L1Place, up: bool) -> Result<()> {
        if up {
            // Before anything changes: is there room in all of them?
            let mut meta = self.meta.lock();
            let max = meta.refcounts.max();
            let mut room = |clusters: Range<u64>| {
                for cluster in clusters {
                    if meta.refcounts.get(cluster)? >= max {
                        let text = "refcounts are at their limit; snapshots need wider ones (refcount_bits)";
                        return Err(Error::new(ErrorKind::Unsupported, text));
                    }
                }
                Ok(())
            };
            self.each_l1_part(l1, |_, part| self.trace(part, &mut room))?;
        }
        let bits = self.geometry.cluster_bits;
        let mut change = |clusters: Range<u64>| {
            let mut meta = self.meta.lock();
            for cluster in clusters {
                if up {
                    meta.refcounts.add(cluster..cluster + 1)?;
                } else if meta.refcounts.sub(cluster)? == 0 && meta.compressed_end >> bits == cluster {
                    meta.compressed_end = 0;
                }
            }
            drop(meta);
            self.relieve_alone()
        };
        self.each_l1_part(l1, |_, part| self.trace(part, &mut change))
    }

    /// Sets the copied flags of the active tables as refcounts say; with `none`, removes them all.
    pub(super) fn set_copied_flags(&self, none: bool) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let entries = self.l1.read().entries().len();
        for number in 0..entries {
            let entry = self.l1.read().entries().get(number).copied().unwrap_or(0);
            let offset = entry & OFFSET;
            if offset == 0 {
                continue;
            }
            let mut meta = self.meta.lock();
            let table = self.tables.get(&*self.file, offset)?;
            for index in 0..self.geometry.l2_entries() as usize {
                let old = self.entry(&table, index)?;
                if old.is_compressed() || old.word & OFFSET == 0 || self.geometry.external {
                    continue;
                }
                let alone = !none && meta.refcounts.get((old.word & OFFSET) >> bits)? == 1;
                let word = if alone { old.word | COPIED } else { old.word & !COPIED };
                if word != old.word {
                    table.set(&self.geometry, index, super::bits::Entry { word, ..old });
                }
            }
            let alone = !none && meta.refcounts.get(offset >> bits)? == 1;
            let word = if alone { offset | COPIED } else { offset };
            if word != entry {
                self.l1.write().set(number, word);
            }
            drop(meta);
            self.relieve_alone()?;
        }
        Ok(())
    }

    /// Runs an operation that changes many refcounts: under the dirty bit, with everything written before and after.
    fn under_dirty_bit<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.geometry.external {
            return Err(Error::new(ErrorKind::Unsupported, "an external data file cannot hold snapshots"));
        }
        self.flush_metadata(false)?;
        {
            let mut meta = self.start_change()?;
            self.set_dirty_bit(&mut meta, true)?;
        }
        let result = act();
        if result.is_err() {
            self.flush_metadata(false)?;
            return result;
        }
        self.finish_refcounts()?;
        result
    }

    /// Writes all refcounts, lazy ones too, and clears the dirty bit.
    pub(super) fn finish_refcounts(&self) -> Result<()> {
        self.flush_metadata(false)?;
        let mut meta = self.meta.lock();
        self.write_refcounts(&mut meta)?;
        if !meta.header.lazy_refcounts() {
            self.set_dirty_bit(&mut meta, false)?;
        }
        Ok(())
    }

    pub(super) fn write_refcounts(&self, meta: &mut Meta) -> Result<()> {
        let (blocks, table) = meta.refcounts.take_dirty();
        for (offset, data) in &blocks {
            self.file.write_bytes(*offset, data)?;
        }
        if let Some((offset, data)) = table {
            self.file.flush()?;
            self.file.write_bytes(offset, &data)?;
        }
        self.file.flush()
    }

    fn create_snapshot(&self, name: &str) -> Result<SnapshotInfo> {
        let header = self.meta.lock().header.clone();
        let (mut rows, old_bytes) = self.read_snapshots(&header)?;
        let id = rows.iter().filter_map(|row| row.info.id.parse::<u64>().ok()).max().unwrap_or(0) + 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let info = SnapshotInfo {
            id: id.to_string(),
            name: name.to_owned(),
            date_sec: now.as_secs() as u32,
            date_nsec: now.subsec_nanos(),
            disk_size: header.size,
            ..SnapshotInfo::default()
        };
        self.under_dirty_bit(|| {
            // Without the flags first: then refcounts may only be lower than the flags allow.
            self.set_copied_flags(true)?;
            self.flush_metadata(false)?;
            let l1 = self.l1.read().place();
            if let Err(error) = self.count(l1, true) {
                self.set_copied_flags(false)?;
                return Err(error);
            }
            let clusters = l1.bytes().div_ceil(self.cluster()).max(1);
            let offset = {
                let mut meta = self.start_change()?;
                self.take_exactly(&mut meta, clusters)? << self.geometry.cluster_bits
            };
            self.copy_l1(l1, offset, clusters, COPIED)?;
            rows.push(Row { l1: L1Place { offset, ..l1 }, info: info.clone(), more: Vec::new() });
            self.replace_snapshots(&rows, old_bytes)
        })?;
        Ok(info)
    }

    fn find(&self, wanted: &str) -> Result<(Vec<Row>, u64, usize)> {
        let header = self.meta.lock().header.clone();
        let (rows, bytes) = self.read_snapshots(&header)?;
        let by_id = rows.iter().position(|row| row.info.id == wanted);
        let at = by_id.or_else(|| rows.iter().position(|row| row.info.name == wanted));
        match at {
            Some(at) => Ok((rows, bytes, at)),
            None => {
                let names: Vec<&str> = rows.iter().map(|row| row.info.name.as_str()).collect();
                let known = if names.is_empty() { "it has none".to_owned() } else { names.join(", ") };
                Err(BlockError::option("snapshot", format!("{wanted:?} is not in the image; known: {known}"))
                    .into())
            }
        }
    }

    fn revert_to(&self, wanted: &str) -> Result<()> {
        let (rows, _, at) = self.find(wanted)?;
        let row = &rows[at];
        let needed = self.meta.lock().header.l1_needed(row.info.disk_size);
        if needed > L1_BYTES_MAX / 8 {
            let size = row.info.disk_size;
            let problem = format!("is {size}; its L1 table would be larger than {} MiB", L1_BYTES_MAX >> 20);
            let at = self.meta.lock().header.snapshots_offset;
            return Err(self.wrong(at, "disk size of a snapshot", problem));
        }
        self.under_dirty_bit(|| {
            self.count(row.l1, true)?;
            let old = self.l1.read().place();
            self.replace_l1(row.l1, COPIED, needed as u32, Some(row.info.disk_size))?;
            // The old table is still in the file, as it was in memory: its clusters are freed at the next flush.
            self.count(old, false)?;
            self.forget_freed(old)?;
            self.set_copied_flags(false)
        })
    }

    fn delete_snapshot(&self, wanted: &str) -> Result<()> {
        let (mut rows, bytes, at) = self.find(wanted)?;
        let row = rows.remove(at);
        self.under_dirty_bit(|| {
            self.replace_snapshots(&rows, bytes)?;
            self.count(row.l1, false)?;
            self.forget_freed(row.l1)?;
            let start = row.l1.offset >> self.geometry.cluster_bits;
            let clusters = row.l1.bytes().div_ceil(self.cluster()).max(1);
            {
                let mut meta = self.start_change()?;
                for cluster in start..start + clusters {
                    meta.refcounts.sub(cluster)?;
                }
            }
            self.set_copied_flags(false)
        })
    }

    /// Removes L2 tables whose clusters are free now from memory.
    fn forget_freed(&self, l1: L1Place) -> Result<()> {
        self.decompressed.lock().clear();
        self.each_l1_part(l1, |_, part| {
            let mut meta = self.meta.lock();
            for entry in part.iter().filter(|entry| **entry & OFFSET != 0) {
                if meta.refcounts.get((entry & OFFSET) >> self.geometry.cluster_bits)? == 0 {
                    self.tables.remove(entry & OFFSET);
                }
            }
            Ok(())
        })
    }
}

impl Snapshots for Qcow2 {
    fn list(&self) -> ImageResult<Vec<SnapshotInfo>> {
        let header = self.meta.lock().header.clone();
        let (rows, _) = self.tell("reading the snapshots", self.read_snapshots(&header))?;
        Ok(rows.into_iter().map(|row| row.info).collect())
    }

    fn create(&self, name: &str) -> ImageResult<SnapshotInfo> {
        let _gate = self.gate.write();
        self.tell("making a snapshot", self.create_snapshot(name))
    }

    fn revert(&self, snapshot: &str) -> ImageResult<()> {
        let _gate = self.gate.write();
        self.tell("going back to a snapshot", self.revert_to(snapshot))
    }

    fn delete(&self, snapshot: &str) -> ImageResult<()> {
        let _gate = self.gate.write();
        self.tell("removing a snapshot", self.delete_snapshot(snapshot))
    }
}
