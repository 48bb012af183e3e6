//! The order in which metadata reach the file.

use super::bits::incompatible;
use super::header::Header;
use super::{Free, Meta, Qcow2};
use std::io::Result;
use std::sync::atomic::Ordering;

impl Qcow2 {
    /// Makes everything that was completed survive a power loss.
    pub(super) fn flush_all(&self) -> Result<()> {
        self.flush_metadata(true)
    }

    /// Writes all changed metadata, in stages with a barrier between. With `wait`, requests that began before are
    /// awaited before clusters are freed; without, the caller holds the gate alone.
    pub(super) fn flush_metadata(&self, wait: bool) -> Result<()> {
        let one = self.flushing.lock();
        if self.read_only {
            return Ok(());
        }
        let mut meta = self.meta.lock();
        // What is taken here refers only to data whose writes have ended; the first barrier makes those safe.
        let lazy = meta.header.lazy_refcounts()
            && meta.header.has(incompatible::DIRTY)
            && !meta.refcounts.is_crowded();
        let (blocks, table) = if lazy { Default::default() } else { meta.refcounts.take_dirty() };
        let (tables, entries) = self.tables.take_dirty();
        let l1 = self.l1.write().take_dirty();
        let frees = std::mem::take(&mut meta.frees);
        drop(meta);
        let written = (|| {
            for (offset, data) in &blocks {
                self.file.write_bytes(*offset, data)?;
            }
            if let Some((offset, data)) = &table {
                self.file.flush()?;
                self.file.write_bytes(*offset, data)?;
            }
            if self.geometry.external {
                self.data.flush()?;
            }
            if !entries.is_empty() || !l1.is_empty() {
                self.file.flush()?;
                for (offset, data) in &entries {
                    self.file.write_bytes(*offset, data)?;
                }
            }
            if !l1.is_empty() {
                self.file.flush()?;
                for (offset, data) in &l1 {
                    self.file.write_bytes(*offset, data)?;
                }
            }
            self.file.flush()
        })();
        if let Err(error) = written {
            let mut meta = self.meta.lock();
            meta.refcounts.mark_dirty(&blocks, table.is_some());
            tables.iter().for_each(|table| table.mark_dirty());
            self.l1.write().mark_dirty(&l1);
            meta.frees.extend(frees);
            return Err(error);
        }
        self.tables.trim();
        self.meta.lock().refcounts.trim();
        if frees.is_empty() {
            return Ok(());
        }
        // Who holds the gate alone may be waiting for this lock.
        drop(one);
        if wait {
            // Requests that looked the old tables up may still use the clusters.
            drop(self.gate.write());
        }
        let mut meta = self.meta.lock();
        self.release(&mut meta, &frees)
    }

    /// Lowers the refcounts of clusters that nothing in the file refers to any more.
    pub(super) fn release(&self, meta: &mut Meta, frees: &[Free]) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let mut holes: Vec<(u64, u64)> = Vec::new();
        for free in frees {
            for cluster in free.cluster..free.cluster + free.count {
                if meta.refcounts.sub(cluster)? != 0 {
                    continue;
                }
                self.tables.remove(cluster << bits);
                if meta.compressed_end >> bits == cluster {
                    meta.compressed_end = 0;
                }
                if !free.data {
                    self.decompressed.lock().clear();
                }
                if free.data && !self.keep_discarded {
                    match holes.last_mut() {
                        Some((start, count)) if *start + *count == cluster => *count += 1,
                        _ => holes.push((cluster, 1)),
                    }
                }
            }
        }
        for (start, count) in holes {
            self.file.discard(start << bits, count << bits)?;
        }
        Ok(())
    }

    /// Writes the header.
    pub(super) fn write_header(&self, header: &Header) -> Result<()> {
        let mut data = header.encode(&self.path)?;
        // What stood behind a longer header must not be taken for an extension.
        data.resize((data.len() + 512).min(self.cluster() as usize), 0);
        self.file.write_bytes(0, &data)?;
        self.file.flush()
    }

    /// Says in the file that refcounts may be wrong, or that they are right again. Only version 3 can.
    pub(super) fn set_dirty_bit(&self, meta: &mut Meta, dirty: bool) -> Result<()> {
        if meta.header.version < 3 || meta.header.has(incompatible::DIRTY) == dirty {
            return Ok(());
        }
        meta.header.incompatible ^= incompatible::DIRTY;
        let header = meta.header.clone();
        self.write_header(&header)
    }

    /// After the refcount table has moved: the header follows, then the old place is free.
    pub(super) fn finish_table_move(&self, meta: &mut Meta) -> Result<()> {
        let Some((old, clusters)) = meta.refcounts.moved.take() else { return Ok(()) };
        meta.header.refcount_table_offset = meta.refcounts.table_offset;
        meta.header.refcount_table_clusters = meta.refcounts.table_clusters() as u32;
        let header = meta.header.clone();
        self.write_header(&header)?;
        let first = old >> self.geometry.cluster_bits;
        for cluster in first..first + u64::from(clusters) {
            meta.refcounts.sub(cluster)?;
        }
        Ok(())
    }

    /// Leaves the file in order: everything written, bitmaps stored, the dirty bit cleared.
    pub(super) fn close(&self) -> Result<()> {
        if self.read_only || self.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        self.store_bitmaps()?;
        if !self.written.load(Ordering::Acquire) {
            return Ok(());
        }
        self.flush_metadata(false)?;
        let mut meta = self.meta.lock();
        // The refcounts of what was freed last, and with lazy refcounts all.
        let (blocks, table) = meta.refcounts.take_dirty();
        for (offset, data) in &blocks {
            self.file.write_bytes(*offset, data)?;
        }
        if let Some((offset, data)) = table {
            self.file.flush()?;
            self.file.write_bytes(offset, &data)?;
        }
        self.file.flush()?;
        self.set_dirty_bit(&mut meta, false)
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        // Nobody is there to be told; what was flushed is safe, and the dirty bit stays where it is needed.
        let _ = self.close();
    }
}
