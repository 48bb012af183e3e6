//! The log (MS-VHDX section 2.3): changes of metadata that reach the file as a whole or not at all.
//!
//! An entry is written and made durable before its pages go to their places, and those are durable before the next
//! entry is written. So one entry at most is needed after a crash, and every entry is its own tail.

use super::header::{Guid, Header};
use crate::backend::BlockBackend;
use crate::crc32c::{Crc32c, crc32c_without};
use crate::error::BlockError;
use crate::image::ImageResult;
use crate::mapped::{Fields, put};
use std::io::Result;
use std::path::Path;

/// Unit of the log, and of what it changes.
pub(super) const SECTOR: u64 = 4096;
/// What is read of an entry at once.
const PART: u64 = 1 << 20;
const HEADER: usize = 64;
const DESCRIPTOR: usize = 32;

/// Pages an entry of at most `len` bytes has room for.
pub(super) fn capacity(len: u64) -> usize {
    let sectors = len / SECTOR;
    // A descriptor takes 32 bytes of a sector, its page one sector more.
    (sectors.saturating_sub(1) * SECTOR / (SECTOR + DESCRIPTOR as u64)) as usize
}

/// The bytes of an entry at `tail` of the log that writes pages.
pub(super) fn entry(
    pages: &[(u64, &[u8])],
    sequence: u64,
    guid: &Guid,
    tail: u64,
    file_size: u64,
) -> Vec<u8> {
    let head = (HEADER + DESCRIPTOR * pages.len()).next_multiple_of(SECTOR as usize);
    let mut raw = vec![0; head + pages.len() * SECTOR as usize];
    put(&mut raw, 0, b"loge");
    let length = raw.len() as u32;
    put(&mut raw, 8, &length.to_le_bytes());
    put(&mut raw, 12, &(tail as u32).to_le_bytes());
    put(&mut raw, 16, &sequence.to_le_bytes());
    put(&mut raw, 24, &(pages.len() as u32).to_le_bytes());
    put(&mut raw, 32, guid);
    put(&mut raw, 48, &file_size.to_le_bytes());
    put(&mut raw, 56, &file_size.to_le_bytes());
    for (n, (offset, page)) in pages.iter().enumerate() {
        let at = HEADER + DESCRIPTOR * n;
        let data = head + n * SECTOR as usize;
        put(&mut raw, at, b"desc");
        put(&mut raw, at + 4, page.get(4092..4096).unwrap_or_default());
        put(&mut raw, at + 8, page.get(..8).unwrap_or_default());
        put(&mut raw, at + 16, &offset.to_le_bytes());
        put(&mut raw, at + 24, &sequence.to_le_bytes());
        put(&mut raw, data, b"data");
        put(&mut raw, data + 4, &((sequence >> 32) as u32).to_le_bytes());
        put(&mut raw, data + 8, page.get(8..4092).unwrap_or_default());
        put(&mut raw, data + 4092, &(sequence as u32).to_le_bytes());
    }
    let sum = crc32c_without(&raw, 4);
    put(&mut raw, 4, &sum.to_le_bytes());
    raw
}

/// An entry in the log.
#[derive(Clone, Copy, Debug)]
struct Found {
    at: u64,
    length: u64,
    tail: u64,
    sequence: u64,
}

struct Log<'a> {
    file: &'a dyn BlockBackend,
    path: &'a Path,
    header: &'a Header,
    /// Bytes that may still be summed up: a hostile log cannot make the search long.
    budget: u64,
}

impl Log<'_> {
    fn len(&self) -> u64 {
        self.header.log.end - self.header.log.start
    }

    /// `length` bytes at `at`, around the end.
    fn read(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        let first = length.min(self.len() - at) as usize;
        let (head, rest) = bytes.split_at_mut(first);
        self.file.read_bytes(self.header.log.start + at, head)?;
        self.file.read_bytes(self.header.log.start, rest)?;
        Ok(bytes)
    }

    /// The valid entry at `at`, if there is one.
    fn entry(&mut self, at: u64) -> Result<Option<Found>> {
        let head = Fields::of(self.path, at, self.read(at, HEADER as u64)?);
        let found = Found {
            at,
            length: head.u32_le(8).into(),
            tail: head.u32_le(12).into(),
            sequence: head.u64_le(16),
        };
        let right = &head.array::<4>(0) == b"loge"
            && head.array::<16>(32) == self.header.log_guid
            && found.length >= SECTOR
            && found.length.is_multiple_of(SECTOR)
            && found.length <= self.len()
            && found.tail.is_multiple_of(SECTOR)
            && found.tail < self.len()
            && found.sequence > 0;
        if !right || found.length > self.budget {
            return Ok(None);
        }
        self.budget -= found.length;
        // An entry may be as long as the log: it is never held in memory as a whole.
        let mut sum = Crc32c::default();
        for within in (0..found.length).step_by(PART as usize) {
            let mut part = self.read((at + within) % self.len(), PART.min(found.length - within))?;
            if within == 0 {
                put(&mut part, 4, &[0; 4]);
            }
            sum.add(&part);
        }
        Ok((sum.value() == head.u32_le(4)).then_some(found))
    }

    /// The entries to replay: of all unbroken sequences whose tail is inside, the one that ends latest.
    fn active(&mut self) -> Result<Vec<Found>> {
        let mut best: Vec<Found> = Vec::new();
        let mut at = 0;
        while at < self.len() {
            let mut sequence: Vec<Found> = Vec::new();
            let mut next = at;
            while let Some(found) = self.entry(next)?
                && sequence.last().is_none_or(|last| last.sequence.checked_add(1) == Some(found.sequence))
                && sequence.iter().map(|entry| entry.length).sum::<u64>() + found.length <= self.len()
            {
                next = (next + found.length) % self.len();
                sequence.push(found);
            }
            // Entries in front of the tail are replayed already.
            if let Some(last) = sequence.last().copied()
                && let Some(tail) = sequence.iter().position(|entry| entry.at == last.tail)
                && best.last().is_none_or(|best| best.sequence < last.sequence)
            {
                best = sequence.split_off(tail);
            }
            at += SECTOR;
        }
        Ok(best)
    }

    fn replay(&self, found: &Found) -> ImageResult<()> {
        let failed = |source| BlockError::io(self.path, "replaying the log", source);
        let fields = self.part(found, 0, HEADER as u64)?;
        let (flushed, last) = (fields.u64_le(48), fields.u64_le(56));
        fields.require(flushed <= self.file.size(), 48, "flushed file offset", || {
            format!("is {flushed:#x}, but the file has {:#x} bytes: its end is missing", self.file.size())
        })?;
        fields
            .require(last < 1 << 50, 56, "last file offset", || format!("is {last:#x}, which cannot be"))?;
        if self.file.size() < last {
            self.file.resize(last).map_err(failed)?;
        }
        let count = u64::from(fields.u32_le(24));
        let head = (HEADER as u64 + count * DESCRIPTOR as u64).next_multiple_of(SECTOR);
        fields.require(head <= found.length, 24, "descriptor count", || {
            format!("is {count}, more than the entry's {} bytes have room for", found.length)
        })?;
        let mut data = head;
        for n in 0..count {
            let descriptor = self.part(found, HEADER as u64 + n * DESCRIPTOR as u64, DESCRIPTOR as u64)?;
            self.apply(found, &descriptor, &mut data, last)?;
        }
        Ok(())
    }

    /// Does what a descriptor says; `data` is the entry's next data sector.
    fn apply(&self, found: &Found, fields: &Fields<'_>, data: &mut u64, last: u64) -> ImageResult<()> {
        let failed = |source| BlockError::io(self.path, "replaying the log", source);
        let (kind, sequence, offset) = (fields.array::<4>(0), fields.u64_le(24), fields.u64_le(16));
        fields.require(sequence == found.sequence, 24, "sequence number", || {
            format!("is {sequence}, but {} in the entry's header", found.sequence)
        })?;
        fields.require(offset.is_multiple_of(SECTOR) && offset < 1 << 50, 16, "file offset", || {
            format!("is {offset:#x}; a multiple of 4096 is right")
        })?;
        match &kind {
            b"zero" => {
                let length = fields.u64_le(8);
                let inside = offset.checked_add(length).is_some_and(|end| end <= self.file.size().max(last));
                fields.require(length.is_multiple_of(SECTOR) && inside, 8, "zero length", || {
                    format!("is {length:#x}; a multiple of 4096 inside the file is right")
                })?;
                self.file.write_zeroes(offset, length, false).map_err(failed)
            }
            b"desc" => {
                fields.require(*data + SECTOR <= found.length, 0, "signature", || {
                    "has no data sector: the entry has ended".to_owned()
                })?;
                let sector = self.part(found, *data, SECTOR)?;
                *data += SECTOR;
                let page = data_page(fields, &sector, found.sequence)?;
                self.file.write_bytes(offset, &page).map_err(failed)
            }
            _ => Err(fields.wrong(0, "signature", format!("is {kind:02x?}; \"zero\" or \"desc\" is right"))),
        }
    }

    /// A part of an entry.
    fn part(&self, found: &Found, within: u64, len: u64) -> ImageResult<Fields<'_>> {
        let at = (found.at + within) % self.len();
        let bytes = self.read(at, len);
        let bytes = bytes.map_err(|source| BlockError::io(self.path, "replaying the log", source))?;
        Ok(Fields::of(self.path, self.header.log.start + at, bytes))
    }
}

/// The page of a data descriptor and its sector.
fn data_page(descriptor: &Fields<'_>, sector: &Fields<'_>, sequence: u64) -> ImageResult<Vec<u8>> {
    let stored = u64::from(sector.u32_le(4)) << 32 | u64::from(sector.u32_le(4092));
    let right = &sector.array::<4>(0) == b"data" && stored == sequence;
    sector.require(right, 0, "data sector", || format!("does not belong to the entry {sequence}"))?;
    let middle = sector.bytes().get(8..4092).unwrap_or_default();
    Ok([&descriptor.array::<8>(8)[..], middle, &descriptor.array::<4>(4)].concat())
}

/// Replays the log if there is something in it. Says how many entries were.
pub(super) fn replay(
    file: &dyn BlockBackend,
    path: &Path,
    header: &Header,
    read_only: bool,
) -> ImageResult<u64> {
    if header.log_guid == [0; 16] || header.log.is_empty() {
        return Ok(0);
    }
    if header.log.end > file.size() {
        let problem = format!("ends at {:#x}, but the file at {:#x}", header.log.end, file.size());
        return Err(BlockError::metadata(path, header.log.start, "log", problem));
    }
    let budget = (header.log.end - header.log.start) * 64;
    let mut log = Log { file, path, header, budget };
    let failed = |source| BlockError::io(path, "reading the log", source);
    let entries = log.active().map_err(failed)?;
    if !entries.is_empty() && read_only {
        return Err(BlockError::unsupported(
            path,
            "its log replayed: open it for writing once, or check it with --repair",
        ));
    }
    for found in &entries {
        log.replay(found)?;
    }
    if !entries.is_empty() {
        file.flush().map_err(failed)?;
    }
    Ok(entries.len() as u64)
}
