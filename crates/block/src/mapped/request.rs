//! Requests: from ranges of the disk to ranges of the file.

use super::{Layout, Mapped, Place, Slices, SlicesMut};
use crate::backend::{BlockBackend, Capabilities, Extent};
use crate::buffers::len;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where the bytes of a range come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Backing,
    Zero,
    Data(u64),
    Compressed(u64),
}

/// Old content around a write that is held in memory, in bytes.
const COPIED_AT_ONCE: u64 = 4 << 20;

const ZEROS: &[u8] = &[0; 64 << 10];

impl<L: Layout> Mapped<L> {
    fn check_write(&self, offset: u64, len: u64) -> Result<u64> {
        if self.refuses_writes() {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        self.begin_writing()?;
        self.check_range(offset, len)
    }

    /// The source of the byte at `at`, and how many bytes, at most `max`, go on like it: of the block, or of all that have
    /// no table.
    fn locate(&self, at: u64, max: u64) -> Result<(Source, u64)> {
        let size = self.layout.block_size();
        let (block, within) = (at / size, at % size);
        let len = max.min(size - within);
        Ok(match self.place(block)? {
            Place::Absent => {
                let blocks = self.layout.without_table(&*self.file, &self.pages, block)?.max(1);
                (Source::Backing, max.min(blocks.saturating_mul(size) - within))
            }
            Place::Zero => (Source::Zero, len),
            Place::Data(data) => (Source::Data(data + within), len),
            Place::Compressed(offset) => (Source::Compressed(offset), len),
            Place::Partial { data, bitmap } => {
                let (set, run) = self.bits(bitmap, within, len)?;
                (if set { Source::Data(data + within) } else { Source::Backing }, run)
            }
        })
    }

    /// The bitmap's bit for a byte of the block, and how many bytes have the same.
    fn bits(&self, bitmap: u64, within: u64, max: u64) -> Result<(bool, u64)> {
        let sector = self.layout.sector_size();
        let (first, last) = (within / sector, (within + max - 1) / sector);
        let (set, end) = self.pages.with(&*self.file, bitmap + first / 8, |bytes| {
            let bit = |n: u64| {
                let byte = bytes.get((n / 8 - first / 8) as usize)?;
                let shift = if L::BITS_FROM_TOP { 7 - n % 8 } else { n % 8 };
                Some(byte >> shift & 1 != 0)
            };
            let set = bit(first).unwrap_or(false);
            let end = (first + 1..=last).find(|&n| bit(n) != Some(set)).unwrap_or(last + 1);
            (set, end)
        })?;
        Ok((set, (end * sector - within).min(max)))
    }

    /// As [`Mapped::locate`], across blocks that lie one behind the other.
    fn locate_run(&self, at: u64, max: u64) -> Result<(Source, u64)> {
        let (source, mut len) = self.locate(at, max)?;
        while len < max {
            let (next, more) = self.locate(at + len, max - len)?;
            let goes_on = match (source, next) {
                (Source::Data(start), Source::Data(next)) => start + len == next,
                (Source::Compressed(_), _) => false,
                (source, next) => source == next,
            };
            if !goes_on {
                break;
            }
            len += more;
        }
        Ok((source, len))
    }

    fn read_backing(&self, at: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = len(buffers);
        let start = self.backing_start + at;
        let below = self.backing.as_ref().map_or(0, |backing| backing.size().saturating_sub(start)).min(len);
        let mut slices = SlicesMut::new(buffers);
        if let Some(backing) = &self.backing
            && below > 0
        {
            backing.read_at(start, &mut slices.take(below))?;
        }
        slices.take(len - below).iter_mut().for_each(|part| part.fill(0));
        Ok(())
    }

    fn decompressed(&self, block: u64, offset: u64) -> Result<Arc<Vec<u8>>> {
        if let Some((cached, bytes)) = &*self.decompressed.lock()
            && *cached == offset
        {
            return Ok(bytes.clone());
        }
        let mut bytes = self.layout.decompress(&*self.file, block, offset)?;
        bytes.resize(self.layout.block_size() as usize, 0);
        let bytes = Arc::new(bytes);
        *self.decompressed.lock() = Some((offset, bytes.clone()));
        Ok(bytes)
    }

    fn read_source(&self, source: Source, at: u64, parts: &mut [IoSliceMut<'_>]) -> Result<()> {
        match source {
            Source::Backing => self.read_backing(at, parts),
            Source::Zero => {
                parts.iter_mut().for_each(|part| part.fill(0));
                Ok(())
            }
            Source::Data(offset) => self.file.read_at(offset, parts),
            Source::Compressed(offset) => {
                let size = self.layout.block_size();
                let bytes = self.decompressed(at / size, offset)?;
                let mut from = (at % size) as usize;
                for part in parts {
                    let to = from + part.len();
                    part.copy_from_slice(bytes.get(from..to).ok_or(ErrorKind::UnexpectedEof)?);
                    from = to;
                }
                Ok(())
            }
        }
    }

    /// What a range of one block reads as now.
    fn old_content(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        let mut done = 0;
        while done < len {
            let (source, part) = self.locate(at + done, len - done)?;
            let buffer = bytes.get_mut(done as usize..(done + part) as usize).unwrap_or_default();
            self.read_source(source, at + done, &mut [IoSliceMut::new(buffer)])?;
            done += part;
        }
        Ok(bytes)
    }

    /// Writes a range of one block that has no space in the file, or not for all its sectors.
    fn write_new(&self, at: u64, data: &[&[u8]]) -> Result<()> {
        let size = self.layout.block_size();
        let (block, within) = (at / size, at % size);
        let len: u64 = data.iter().map(|part| part.len() as u64).sum();
        let _claim = self.claim(block);
        match self.place(block)? {
            Place::Data(offset) => self.write_parts(offset + within, data),
            Place::Partial { data: offset, bitmap } => self.write_sectors(at, offset, bitmap, data, len),
            Place::Absent | Place::Zero | Place::Compressed(_) if self.layout.compresses() => {
                let mut content = self.old_content(block * size, size.min(self.size() - block * size))?;
                content.resize(size as usize, 0);
                let new = data.iter().flat_map(|part| part.iter());
                content.iter_mut().skip(within as usize).zip(new).for_each(|(to, from)| *to = *from);
                let place = self.layout.compress(&*self.file, block, &content)?;
                self.set(block, place)
            }
            old @ (Place::Absent | Place::Zero | Place::Compressed(_)) => {
                let whole = len == size || old != Place::Absent || !self.has_backing_at(block);
                match self.layout.allocate(&*self.file, &self.pages, block, whole)? {
                    Place::Data(offset) => {
                        self.write_filled(at, offset, old, data, len)?;
                        self.set(block, Place::Data(offset))
                    }
                    place @ Place::Partial { data: offset, bitmap } => {
                        if whole {
                            self.write_filled(at, offset, old, data, len)?;
                            self.set_bits(bitmap, 0, size)?;
                        } else {
                            self.set_no_bits(bitmap)?;
                            self.write_edges(at, offset, bitmap, data, len)?;
                        }
                        self.set(block, place)
                    }
                    _ => Err(Error::other("no space was allocated")),
                }
            }
        }
    }

    fn has_backing_at(&self, block: u64) -> bool {
        let start = self.backing_start + block * self.layout.block_size();
        self.backing.as_ref().is_some_and(|backing| start < backing.size())
    }

    /// Writes into a new block, with what it contained before around it.
    fn write_filled(&self, at: u64, offset: u64, old: Place, data: &[&[u8]], len: u64) -> Result<()> {
        let size = self.layout.block_size();
        let (start, within) = (at - at % size, at % size);
        let zero = match old {
            Place::Zero => true,
            Place::Absent => !self.has_backing_at(start / size),
            _ => false,
        };
        if zero || len == size {
            return self.write_parts(offset + within, data);
        }
        // A block at the disk's end goes on behind it: with zeros.
        let tail_end = (start + size).min(self.size().max(at + len));
        let (head, tail) = (within, tail_end - (at + len));
        if head + tail > COPIED_AT_ONCE {
            // Nothing leads to the new block yet: it may be written in parts.
            self.copy_old(start, head, offset)?;
            self.write_parts(offset + within, data)?;
            return self.copy_old(at + len, tail, offset + within + len);
        }
        let (head, tail) = (self.old_content(start, head)?, self.old_content(at + len, tail)?);
        let mut all = vec![&head[..]];
        all.extend(data);
        all.push(&tail);
        self.write_parts(offset, &all)
    }

    /// Writes to `to` of the file what `len` bytes of the disk read as now.
    fn copy_old(&self, at: u64, len: u64, to: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let part = (len - done).min(COPIED_AT_ONCE);
            self.file.write_bytes(to + done, &self.old_content(at + done, part)?)?;
            done += part;
        }
        Ok(())
    }

    fn write_parts(&self, offset: u64, parts: &[&[u8]]) -> Result<()> {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        self.file.write_at(offset, &slices)
    }

    /// Writes into a block that is stored by sectors, whose bitmap may not be changed by others.
    fn write_sectors(&self, at: u64, offset: u64, bitmap: u64, data: &[&[u8]], len: u64) -> Result<()> {
        let within = at % self.layout.block_size();
        let (set, run) = self.bits(bitmap, within, len)?;
        if set && run == len {
            return self.write_parts(offset + within, data);
        }
        self.write_edges(at, offset, bitmap, data, len)
    }

    /// Writes whole sectors around a range, then sets their bits.
    fn write_edges(&self, at: u64, offset: u64, bitmap: u64, data: &[&[u8]], len: u64) -> Result<()> {
        let size = self.layout.block_size();
        let sector = self.layout.sector_size();
        let (start, within) = (at - at % size, at % size);
        let first = within - within % sector;
        let last = (within + len).next_multiple_of(sector).min(size);
        let readable = last.min((self.size() - start).max(within + len));
        let head = self.old_content(start + first, within - first)?;
        let tail = self.old_content(at + len, readable - (within + len))?;
        let mut all = vec![&head[..]];
        all.extend(data);
        all.push(&tail);
        self.write_parts(offset + first, &all)?;
        self.set_bits(bitmap, first, last - first)
    }

    /// Sets the bits of whole sectors.
    fn set_bits(&self, bitmap: u64, within: u64, len: u64) -> Result<()> {
        let sector = self.layout.sector_size();
        let (mut bit, end) = (within / sector, (within + len).div_ceil(sector));
        while bit < end {
            let byte = bitmap + bit / 8;
            let per_page = self.pages.page_size();
            let page_end = (byte - byte % per_page + per_page - bitmap) * 8;
            let stop = end.min(page_end);
            self.pages.change(&*self.file, byte, |bytes| {
                for n in bit..stop {
                    let shift = if L::BITS_FROM_TOP { 7 - n % 8 } else { n % 8 };
                    if let Some(byte) = bytes.get_mut((n / 8 - bit / 8) as usize) {
                        *byte |= 1 << shift;
                    }
                }
            })?;
            bit = stop;
        }
        Ok(())
    }

    /// Clears all bits of a block's bitmap.
    fn set_no_bits(&self, bitmap: u64) -> Result<()> {
        let bytes = (self.layout.block_size() / self.layout.sector_size()).div_ceil(8);
        let mut at = 0;
        while at < bytes {
            let page = self.pages.page_size();
            let part = (bytes - at).min(page - (bitmap + at) % page);
            self.pages.change(&*self.file, bitmap + at, |bytes| {
                bytes.iter_mut().take(part as usize).for_each(|byte| *byte = 0);
            })?;
            at += part;
        }
        Ok(())
    }

    /// Writes the table when its changes take too much memory.
    pub(super) fn commit_if_full(&self) -> Result<()> {
        if self.pages.is_full() { self.commit() } else { Ok(()) }
    }

    fn write_zero_bytes(&self, at: u64, len: u64) -> Result<()> {
        let whole = (len / ZEROS.len() as u64) as usize;
        let rest = ZEROS.get(..(len % ZEROS.len() as u64) as usize).unwrap_or_default();
        let mut parts = vec![ZEROS; whole];
        parts.push(rest);
        self.write_new(at, &parts)
    }

    /// Makes a range of one block zeros.
    fn zero_part(&self, at: u64, max: u64, unmap: bool) -> Result<u64> {
        let size = self.layout.block_size();
        let (source, len) = self.locate(at, max)?;
        let block = at / size;
        let whole = at.is_multiple_of(size) && (len == size || at + len == self.size());
        match source {
            Source::Zero => {}
            Source::Data(offset) => self.file.write_zeroes(offset, len, unmap)?,
            Source::Backing if !self.has_backing_at(block) => {}
            Source::Backing | Source::Compressed(_) => {
                if whole && self.layout.has_zero_blocks() {
                    let _claim = self.claim(block);
                    if matches!(self.place(block)?, Place::Absent | Place::Compressed(_)) {
                        self.set(block, Place::Zero)?;
                        return Ok(len);
                    }
                }
                self.write_zero_bytes(at, len)?;
            }
        }
        Ok(len)
    }
}

impl<L: Layout> BlockBackend for Mapped<L> {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn capabilities(&self) -> Capabilities {
        let file = self.file.capabilities();
        Capabilities {
            read_only: self.refuses_writes(),
            discard: file.discard,
            zero_alignment: if self.backing.is_some() { self.layout.block_size() } else { 512 },
            growable: false,
        }
    }

    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let end = self.check_range(offset, len(buffers))?;
        let _shared = self.structure.read();
        let mut slices = SlicesMut::new(buffers);
        let mut at = offset;
        while at < end {
            let (source, len) = self.locate_run(at, end - at)?;
            self.read_source(source, at, &mut slices.take(len))?;
            at += len;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let end = self.check_write(offset, len(buffers))?;
        let _shared = self.structure.read();
        let mut slices = Slices::new(buffers);
        let mut at = offset;
        while at < end {
            let (source, mut len) = self.locate_run(at, end - at)?;
            if let Source::Data(offset) = source {
                self.write_parts(offset, &slices.take(len))?;
            } else {
                let size = self.layout.block_size();
                len = (end - at).min(size - at % size);
                self.write_new(at, &slices.take(len))?;
            }
            at += len;
        }
        self.commit_if_full()
    }

    fn flush(&self) -> Result<()> {
        if self.refuses_writes() { Ok(()) } else { self.commit() }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.check_write(offset, len)?;
        let _shared = self.structure.read();
        let mut at = offset;
        while at < end {
            let (source, len) = self.locate_run(at, end - at)?;
            if let Source::Data(offset) = source {
                self.file.discard(offset, len)?;
            }
            at += len;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        let end = self.check_write(offset, len)?;
        let _shared = self.structure.read();
        let mut at = offset;
        while at < end {
            at += self.zero_part(at, end - at, unmap)?;
        }
        self.commit_if_full()
    }

    fn resize(&self, size: u64) -> Result<()> {
        let old = self.check_write(0, 0).map(|_| self.size())?;
        if size == old {
            return Ok(());
        }
        if size < old || !size.is_multiple_of(crate::backend::SECTOR_SIZE) {
            let problem =
                if size < old { "is smaller: the format can only grow" } else { "is no multiple of 512" };
            return Err(Error::new(ErrorKind::InvalidInput, format!("size {size} {problem}")));
        }
        let _alone = self.structure.write();
        self.commit()?;
        self.pages.forget_clean();
        self.hide_old_end(old, size)?;
        self.commit()?;
        self.layout.grow(&*self.file, &self.pages, old, size)?;
        self.pages.forget_clean();
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        if len == 0 {
            return Ok(Extent::hole(offset, 0));
        }
        let _shared = self.structure.read();
        let (source, run) = self.locate_run(offset, len)?;
        Ok(match source {
            Source::Zero => Extent::zero(offset, run),
            Source::Data(at) => Extent::data(offset, run, Some(at)),
            Source::Compressed(_) => Extent { compressed: true, ..Extent::data(offset, run, None) },
            Source::Backing => {
                let start = self.backing_start + offset;
                match &self.backing {
                    Some(backing) if start < backing.size() => {
                        let run = run.min(backing.size() - start);
                        let below = backing.block_status(start, run)?;
                        Extent { start: offset, depth: below.depth + 1, ..below }
                    }
                    _ => Extent::hole(offset, run),
                }
            }
        })
    }
}

impl<L: Layout> Mapped<L> {
    /// Makes what the grown disk shows read as zeros where it would show old bytes: the rest of the last block, and
    /// what the backing file has behind the old end.
    fn hide_old_end(&self, old: u64, new: u64) -> Result<()> {
        let size = self.layout.block_size();
        let block_end = old.next_multiple_of(size);
        if old < block_end {
            match self.place(old / size)? {
                Place::Data(data) | Place::Partial { data, .. } => {
                    self.file.write_zeroes(data + old % size, block_end - old, false)?;
                }
                _ => {}
            }
        }
        let below =
            self.backing.as_ref().map_or(0, |backing| backing.size().saturating_sub(self.backing_start));
        if below.min(new) > old {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the backing file is longer than the disk: what it has there would show up",
            ));
        }
        Ok(())
    }
}
