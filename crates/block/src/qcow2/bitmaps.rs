//! Persistent dirty bitmaps (qcow2 specification, "Bitmaps").
//!
//! While an image is open, enabled bitmaps record writes in memory, and their rows in the file say "in use". When it is
//! closed they are stored, and the mark goes. A bitmap that is found in use was not stored: it stays as it is, and is
//! neither trusted nor recorded to.

use super::Qcow2;
use super::bitmap_ranges::{Ranges, marked};
use super::bits::{OFFSET, autoclear};
use super::header::{BitmapsExtension, Header};
use super::words::{bytes, read_words};
use crate::error::BlockError;
use crate::image::{BitmapInfo, Bitmaps, ImageResult};
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Flags of a row.
const IN_USE: u32 = 1;
const AUTO: u32 = 2;
/// Largest bitmap in memory, in bytes.
const BITMAP_MAX: u64 = 32 << 20;
/// Largest table of a bitmap, in bytes: that of the largest bitmap in the smallest clusters, some times over.
const TABLE_MAX: u64 = 8 << 20;
const NAME_MAX: usize = 1023;
/// Entry of a bitmap table without a cluster: all its bits are one.
const ALL_ONES: u64 = 1;

/// A bitmap's row of the directory, and its bits once they are needed.
#[derive(Clone, Debug, Default)]
struct Bitmap {
    table_offset: u64,
    table_entries: u32,
    flags: u32,
    granularity_bits: u8,
    extra: Vec<u8>,
    name: String,
    bits: Option<Vec<u64>>,
    /// The bits in the file are others.
    changed: bool,
    /// The table has been written anew, but not the directory.
    rewritten: bool,
}

/// All bitmaps of an image opened for writing.
#[derive(Default)]
pub(super) struct BitmapStore {
    bitmaps: Vec<Bitmap>,
    /// The rows in the file say that recording bitmaps are in use.
    marked: bool,
}

impl Bitmap {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.table_offset.to_be_bytes());
        out.extend_from_slice(&self.table_entries.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&[1, self.granularity_bits]);
        out.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.extra.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.extra);
        out.extend_from_slice(self.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }

    fn is_trusted(&self) -> bool {
        self.flags & IN_USE == 0 || self.bits.is_some()
    }

    /// Marks a range of the disk.
    fn mark(&mut self, offset: u64, len: u64) {
        let Some(bits) = &mut self.bits else { return };
        if len == 0 {
            return;
        }
        self.changed = true;
        for bit in offset >> self.granularity_bits..=(offset + len - 1) >> self.granularity_bits {
            if let Some(word) = bits.get_mut((bit / 64) as usize) {
                *word |= 1 << (bit % 64);
            }
        }
    }
}

impl Qcow2 {
    fn bitmap_words(&self, granularity_bits: u8) -> Result<usize> {
        let bits = self.size.load(Ordering::Acquire).div_ceil(1 << granularity_bits);
        if bits.div_ceil(8) > BITMAP_MAX {
            return Err(Error::new(ErrorKind::Unsupported, "a bitmap is too fine for the disk's size"));
        }
        Ok(bits.div_ceil(64) as usize)
    }

    fn read_directory(&self, header: &Header) -> Result<Vec<Bitmap>> {
        let Some(extension) = header.bitmaps else { return Ok(Vec::new()) };
        let start = extension.directory_offset;
        let wrong = |at: usize, field, problem: &str| Err(self.wrong(start + at as u64, field, problem));
        if start + extension.directory_size > self.file.size().next_multiple_of(self.cluster()) {
            return wrong(0, "bitmap directory", "leaves the file");
        }
        let mut data = vec![0; extension.directory_size as usize];
        self.file.read_bytes(start, &mut data)?;
        let mut bitmaps = Vec::new();
        let mut at = 0;
        while bitmaps.len() < extension.count as usize {
            let Some(fixed) = data.get(at..at + 24) else {
                return wrong(at, "bitmap directory", "ends before its last row");
            };
            let number = |from: usize, len: usize| {
                fixed[from..from + len].iter().fold(0, |n, b| n << 8 | u64::from(*b))
            };
            let (name_len, extra_len) = (number(18, 2) as usize, number(20, 4) as usize);
            let Some(rest) =
                data.get(at + 24..).and_then(|rest| rest.get(..extra_len.saturating_add(name_len)))
            else {
                return wrong(at, "bitmap directory", "has a row that leaves it");
            };
            let bitmap = Bitmap {
                table_offset: number(0, 8),
                table_entries: number(8, 4) as u32,
                flags: number(12, 4) as u32,
                granularity_bits: fixed[17],
                extra: rest[..extra_len].to_vec(),
                name: String::from_utf8_lossy(&rest[extra_len..]).into_owned(),
                ..Bitmap::default()
            };
            let table = u64::from(bitmap.table_entries) * 8;
            let inside = bitmap
                .table_offset
                .checked_add(table)
                .is_some_and(|end| end <= self.file.size().next_multiple_of(self.cluster()));
            if fixed[16] != 1
                || !(9..=31).contains(&fixed[17])
                || table > TABLE_MAX
                || !inside
                || !bitmap.table_offset.is_multiple_of(self.cluster())
            {
                return wrong(
                    at,
                    "bitmap directory",
                    "has a row with an impossible type, granularity or table",
                );
            }
            bitmaps.push(bitmap);
            at += (24 + rest.len()).next_multiple_of(8);
        }
        Ok(bitmaps)
    }

    fn read_table(&self, bitmap: &Bitmap) -> Result<Vec<u64>> {
        read_words(&*self.file, bitmap.table_offset, bitmap.table_entries as usize)
    }

    fn read_bits(&self, bitmap: &Bitmap) -> Result<Vec<u64>> {
        let mut bits = vec![0_u64; self.bitmap_words(bitmap.granularity_bits)?];
        self.read_parts(bitmap, |first, part| {
            if let Some(own) = bits.get_mut(first..first + part.len()) {
                own.copy_from_slice(part);
            }
        })?;
        Ok(bits)
    }

    /// Reads the bits in the file, as many as a cluster holds at a time.
    fn read_parts(&self, bitmap: &Bitmap, mut visit: impl FnMut(usize, &[u64])) -> Result<()> {
        let len = self.bitmap_words(bitmap.granularity_bits)?;
        let per_cluster = (self.cluster() / 8) as usize;
        for (index, entry) in self.read_table(bitmap)?.iter().enumerate() {
            let start = index * per_cluster;
            if start >= len {
                break;
            }
            let words = per_cluster.min(len - start);
            let offset = entry & OFFSET;
            if offset == 0 {
                if entry & ALL_ONES != 0 {
                    visit(start, &vec![u64::MAX; words]);
                }
                continue;
            }
            if offset >= self.file.size() || !offset.is_multiple_of(self.cluster()) {
                let at = bitmap.table_offset + index as u64 * 8;
                return Err(self.wrong(
                    at,
                    "bitmap table entry",
                    format!("is {entry:#x}: no cluster of the file"),
                ));
            }
            let mut data = vec![0; words * 8];
            self.file.read_bytes(offset, &mut data)?;
            let part: Vec<u64> = data.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
            visit(start, &part);
        }
        Ok(())
    }

    /// Tells of the bits, wherever they are.
    fn visit_bits(&self, bitmap: &Bitmap, mut visit: impl FnMut(usize, &[u64])) -> ImageResult<()> {
        match &bitmap.bits {
            Some(bits) => visit(0, bits),
            None => self.tell("reading a bitmap", self.read_parts(bitmap, visit))?,
        }
        Ok(())
    }

    /// Stores all bits and forgets them: what comes next may need as much memory again.
    fn put_away_bits(&self) -> ImageResult<()> {
        self.store_bitmaps()?;
        self.bitmaps.lock().bitmaps.iter_mut().for_each(|bitmap| bitmap.bits = None);
        Ok(())
    }

    /// Reads the directory when the image is opened for writing.
    pub(super) fn load_bitmaps(&self) -> ImageResult<()> {
        let header = self.meta.lock().header.clone();
        let bitmaps = self.tell("reading the bitmaps", self.read_directory(&header))?;
        let recording = bitmaps.iter().any(|bitmap| bitmap.flags & (AUTO | IN_USE) == AUTO);
        self.recording.store(recording, Ordering::Release);
        *self.bitmaps.lock() = BitmapStore { bitmaps, marked: false };
        Ok(())
    }

    /// Marks a range in all bitmaps that record.
    pub(super) fn record(&self, offset: u64, len: u64) -> Result<()> {
        let mut store = self.bitmaps.lock();
        if !store.marked {
            // All that record are in memory at once.
            let mut room = (BITMAP_MAX / 8) as usize;
            for bitmap in store.bitmaps.iter_mut().filter(|bitmap| bitmap.flags & (AUTO | IN_USE) == AUTO) {
                if bitmap.bits.is_none() {
                    room =
                        room.checked_sub(self.bitmap_words(bitmap.granularity_bits)?).ok_or_else(|| {
                            let problem = format!("record in more than {} MiB", BITMAP_MAX >> 20);
                            Error::new(ErrorKind::Unsupported, format!("the bitmaps of the image {problem}"))
                        })?;
                    bitmap.bits = Some(self.read_bits(bitmap)?);
                }
                bitmap.flags |= IN_USE;
                bitmap.changed = true;
            }
            let mut data = Vec::new();
            store.bitmaps.iter().for_each(|bitmap| bitmap.encode(&mut data));
            let extension = self.meta.lock().header.bitmaps.unwrap_or_default();
            if data.len() as u64 == extension.directory_size {
                self.file.write_bytes(extension.directory_offset, &data)?;
                self.file.flush()?;
            }
            store.marked = true;
        }
        for bitmap in store.bitmaps.iter_mut().filter(|bitmap| bitmap.flags & AUTO != 0) {
            bitmap.mark(offset, len);
        }
        Ok(())
    }

    /// Writes changed bitmaps, and the directory.
    pub(super) fn store_bitmaps(&self) -> ImageResult<()> {
        let mut store = self.bitmaps.lock();
        if !store.marked && !store.bitmaps.iter().any(|bitmap| bitmap.changed) {
            return Ok(());
        }
        let result = self.store(&mut store);
        self.tell("storing the bitmaps", result)
    }

    fn store(&self, store: &mut BitmapStore) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let mut old: Vec<(u64, u64)> = Vec::new();
        let header = self.meta.lock().header.clone();
        let mut in_file: Vec<Bitmap> = self.read_directory(&header)?;
        for bitmap in &mut store.bitmaps {
            let before =
                in_file.iter().position(|other| other.name == bitmap.name).map(|at| in_file.swap_remove(at));
            if !bitmap.changed {
                continue;
            }
            if let Some(before) = before {
                self.clusters_of_bitmap(&before, |offset, len| old.push((offset, len)))?;
            }
            if !bitmap.rewritten {
                self.store_one(bitmap)?;
            }
        }
        for gone in in_file {
            self.clusters_of_bitmap(&gone, |offset, len| old.push((offset, len)))?;
        }
        if let Some(extension) = header.bitmaps {
            old.push((extension.directory_offset, extension.directory_size));
        }
        let mut data = Vec::new();
        store.bitmaps.iter().for_each(|bitmap| bitmap.encode(&mut data));
        let extension = if data.is_empty() {
            None
        } else {
            let clusters = (data.len() as u64).div_ceil(self.cluster());
            let offset = self.take_exactly(&mut *self.start_change()?, clusters)? << bits;
            self.file.write_bytes(offset, &data)?;
            let count = store.bitmaps.len() as u32;
            Some(BitmapsExtension { count, directory_size: data.len() as u64, directory_offset: offset })
        };
        self.flush_metadata(false)?;
        let mut meta = self.start_change()?;
        let mut header = meta.header.clone();
        header.bitmaps = extension;
        header.autoclear &= !autoclear::BITMAPS;
        header.autoclear |= if extension.is_some() { autoclear::BITMAPS } else { 0 };
        self.write_header(&header)?;
        meta.header = header;
        for (offset, len) in old {
            for cluster in offset >> bits..((offset + len).div_ceil(self.cluster())) {
                meta.refcounts.sub(cluster)?;
            }
        }
        drop(meta);
        store.marked = false;
        for bitmap in &mut store.bitmaps {
            (bitmap.changed, bitmap.rewritten) = (false, false);
            if bitmap.flags & AUTO == 0 {
                // Nobody may ask for it again.
                bitmap.bits = None;
            }
        }
        let recording = store.bitmaps.iter().any(|bitmap| bitmap.flags & (AUTO | IN_USE) == AUTO);
        self.recording.store(recording, Ordering::Release);
        Ok(())
    }

    /// Writes a bitmap's bits and table to new clusters.
    fn store_one(&self, bitmap: &mut Bitmap) -> Result<()> {
        let bits_shift = self.geometry.cluster_bits;
        let per_cluster = (self.cluster() / 8) as usize;
        let mut table = Vec::new();
        for part in bitmap.bits.as_deref().unwrap_or_default().chunks(per_cluster) {
            if part.iter().all(|word| *word == 0) {
                table.push(0);
                continue;
            }
            let offset = self.take_exactly(&mut *self.start_change()?, 1)? << bits_shift;
            let mut data: Vec<u8> = part.iter().flat_map(|word| word.to_le_bytes()).collect();
            data.resize(self.cluster() as usize, 0);
            self.file.write_bytes(offset, &data)?;
            table.push(offset);
        }
        let clusters = (table.len() as u64 * 8).div_ceil(self.cluster()).max(1);
        let offset = self.take_exactly(&mut *self.start_change()?, clusters)? << bits_shift;
        let mut data = bytes(&table);
        data.resize((clusters << bits_shift) as usize, 0);
        self.file.write_bytes(offset, &data)?;
        (bitmap.table_offset, bitmap.table_entries) = (offset, table.len() as u32);
        bitmap.flags &= !IN_USE;
        Ok(())
    }

    /// The disk has another size: so have the bitmaps.
    pub(super) fn resize_bitmaps(&self, size: u64) -> ImageResult<()> {
        self.put_away_bits()?;
        let mut store = self.bitmaps.lock();
        for bitmap in &mut store.bitmaps {
            if bitmap.flags & IN_USE != 0 {
                continue;
            }
            let len = self.tell("resizing a bitmap", self.bitmap_words(bitmap.granularity_bits))?;
            let mut bits = self.tell("reading a bitmap", self.read_bits(bitmap))?;
            bits.resize(len, 0);
            let last = size.div_ceil(1 << bitmap.granularity_bits) % 64;
            if let Some(word) = bits.last_mut()
                && last != 0
            {
                *word &= (1 << last) - 1;
            }
            bitmap.bits = Some(bits);
            bitmap.changed = true;
            // One after the other: all at once may be more than there is memory for.
            self.tell("storing a bitmap", self.store_one(bitmap))?;
            (bitmap.bits, bitmap.rewritten) = (None, true);
        }
        drop(store);
        self.store_bitmaps()
    }

    fn clusters_of_bitmap(&self, bitmap: &Bitmap, mut visit: impl FnMut(u64, u64)) -> Result<()> {
        for entry in self.read_table(bitmap)?.iter().filter(|entry| **entry & OFFSET != 0) {
            visit(entry & OFFSET, self.cluster());
        }
        visit(bitmap.table_offset, (u64::from(bitmap.table_entries) * 8).max(1));
        Ok(())
    }

    /// Byte ranges of the file that bitmaps take.
    pub(super) fn bitmap_references(&self, header: &Header, mut visit: impl FnMut(u64, u64)) -> Result<()> {
        let Some(extension) = header.bitmaps else { return Ok(()) };
        visit(extension.directory_offset, extension.directory_size);
        for bitmap in self.read_directory(header)? {
            self.clusters_of_bitmap(&bitmap, &mut visit)?;
        }
        Ok(())
    }

    /// Changes one bitmap, whose bits are loaded, and stores it.
    fn change_bitmap(&self, name: &str, change: impl FnOnce(&mut Bitmap)) -> ImageResult<()> {
        let _gate = self.gate.write();
        self.put_away_bits()?;
        {
            let mut store = self.bitmaps.lock();
            let known: Vec<String> = store.bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect();
            let Some(bitmap) = store.bitmaps.iter_mut().find(|bitmap| bitmap.name == name) else {
                let problem = format!("{name:?} is not in the image; known: {}", known.join(", "));
                return Err(BlockError::option("bitmap", problem));
            };
            if !bitmap.is_trusted() {
                let problem = format!("{name:?} was not stored in order; it can only be removed");
                return Err(BlockError::option("bitmap", problem));
            }
            if bitmap.bits.is_none() {
                bitmap.bits = Some(self.tell("reading a bitmap", self.read_bits(bitmap))?);
            }
            change(bitmap);
            bitmap.changed = true;
        }
        self.store_bitmaps()
    }

    fn with_bitmaps<T>(&self, act: impl FnOnce(&[Bitmap]) -> ImageResult<T>) -> ImageResult<T> {
        let store = self.bitmaps.lock();
        if !self.read_only && !store.bitmaps.is_empty() {
            return act(&store.bitmaps);
        }
        let header = self.meta.lock().header.clone();
        act(&self.tell("reading the bitmaps", self.read_directory(&header))?)
    }
}

impl Bitmaps for Qcow2 {
    fn list(&self) -> ImageResult<Vec<BitmapInfo>> {
        let size = self.size.load(Ordering::Acquire);
        let info = |bitmap: &Bitmap| {
            let mut dirty = 0;
            if bitmap.is_trusted() {
                let granularity = bitmap.granularity_bits;
                self.visit_bits(bitmap, |first, part| dirty += marked(first, part, granularity, size))?;
            }
            Ok(BitmapInfo {
                name: bitmap.name.clone(),
                granularity: 1 << bitmap.granularity_bits,
                enabled: bitmap.flags & AUTO != 0,
                in_use: !bitmap.is_trusted(),
                dirty,
            })
        };
        self.with_bitmaps(|bitmaps| bitmaps.iter().map(info).collect())
    }

    fn add(&self, name: &str, granularity: Option<u64>, enabled: bool) -> ImageResult<()> {
        let _gate = self.gate.write();
        let wrong = |problem: String| Err(BlockError::option("bitmap", problem));
        let granularity = granularity.unwrap_or(self.cluster().clamp(4096, 65536));
        if !granularity.is_power_of_two() || !(512..=1 << 31).contains(&granularity) {
            return wrong(format!("granularity {granularity} is not a power of two from 512 to 2G"));
        }
        if name.is_empty() || name.len() > NAME_MAX {
            return wrong(format!("a name has 1 to {NAME_MAX} bytes"));
        }
        let granularity_bits = granularity.trailing_zeros() as u8;
        let words = self.tell("making a bitmap", self.bitmap_words(granularity_bits))?;
        self.put_away_bits()?;
        {
            let mut store = self.bitmaps.lock();
            if store.bitmaps.iter().any(|bitmap| bitmap.name == name) {
                return wrong(format!("{name:?} is in the image already"));
            }
            let flags = if enabled { AUTO } else { 0 };
            let bits = Some(vec![0; words]);
            let name = name.to_owned();
            store.bitmaps.push(Bitmap {
                flags,
                granularity_bits,
                name,
                bits,
                changed: true,
                ..Bitmap::default()
            });
        }
        let stored = self.store_bitmaps();
        if stored.is_err() {
            self.bitmaps.lock().bitmaps.pop();
        }
        stored
    }

    fn remove(&self, name: &str) -> ImageResult<()> {
        let _gate = self.gate.write();
        {
            let mut store = self.bitmaps.lock();
            let Some(at) = store.bitmaps.iter().position(|bitmap| bitmap.name == name) else {
                return Err(BlockError::option("bitmap", format!("{name:?} is not in the image")));
            };
            store.bitmaps.remove(at);
            store.marked = true;
        }
        self.store_bitmaps()
    }

    fn clear(&self, name: &str) -> ImageResult<()> {
        self.change_bitmap(name, |bitmap| bitmap.bits.iter_mut().flatten().for_each(|word| *word = 0))
    }

    fn enable(&self, name: &str, enabled: bool) -> ImageResult<()> {
        self.change_bitmap(name, |bitmap| {
            bitmap.flags = if enabled { bitmap.flags | AUTO } else { bitmap.flags & !AUTO };
        })
    }

    fn merge(&self, name: &str, ranges: &[Range<u64>]) -> ImageResult<()> {
        self.change_bitmap(name, |bitmap| {
            ranges.iter().for_each(|range| bitmap.mark(range.start, range.end.saturating_sub(range.start)));
        })
    }

    fn dirty_ranges(&self, name: &str) -> ImageResult<Vec<Range<u64>>> {
        let size = self.size.load(Ordering::Acquire);
        self.with_bitmaps(|bitmaps| {
            let found = bitmaps.iter().find(|bitmap| bitmap.name == name && bitmap.is_trusted());
            let Some(found) = found else {
                let problem = format!("{name:?} is not in the image, or was not stored in order");
                return Err(BlockError::option("bitmap", problem));
            };
            let mut step = found.granularity_bits;
            loop {
                let mut ranges = Ranges::new(found.granularity_bits, step, size);
                self.visit_bits(found, |first, part| ranges.add(first, part))?;
                if let Some(told) = ranges.told() {
                    return Ok(told);
                }
                step += 1;
            }
        })
    }
}
