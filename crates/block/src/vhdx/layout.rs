//! The block allocation table (MS-VHDX section 2.5), changed through the log.

use super::header::{HEADERS, Header, MIB, REGION_TABLES, Regions};
use super::log::{self, SECTOR};
use super::metadata::{Metadata, SIZE_MAX};
use crate::backend::BlockBackend;
use crate::image::ImageInfo;
use crate::mapped::{DirtyPage, Layout, Pages, Place, fresh_space, put, random_uuid};
use parking_lot::Mutex;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;

/// States of a payload block.
const NOT_PRESENT: u64 = 0;
const ZERO: u64 = 2;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
/// Reserved bits of an entry.
const RESERVED: u64 = 0xFFFF8;

struct State {
    header: Header,
    /// Which of the two headers is current.
    current: usize,
    regions: Regions,
    metadata: Metadata,
    /// Where the next block goes.
    end: u64,
    /// Blocks of sector bitmaps.
    bitmaps: Vec<u64>,
    /// Where the next log entry goes, in the log.
    log_at: u64,
    /// Number of the last log entry.
    sequence: u64,
}

/// A vhdx image's table.
pub(super) struct VhdxLayout {
    block_size: u64,
    sector: u64,
    chunk_ratio: u64,
    has_parent: bool,
    /// Name of the parent, as used.
    parent: Option<String>,
    state: Mutex<State>,
}

impl VhdxLayout {
    pub fn new(
        (header, current): (Header, usize),
        regions: Regions,
        metadata: Metadata,
        bitmaps: Vec<u64>,
        parent: Option<String>,
    ) -> Self {
        VhdxLayout {
            block_size: metadata.block_size.into(),
            sector: metadata.logical_sector.into(),
            chunk_ratio: metadata.chunk_ratio(),
            has_parent: metadata.has_parent,
            parent,
            state: Mutex::new(State {
                header,
                current,
                regions,
                metadata,
                end: 0,
                bitmaps,
                log_at: 0,
                sequence: 0,
            }),
        }
    }

    /// Where a block's entry is: every chunk ends with the entry of its sector bitmap.
    fn entry(&self, block: u64) -> u64 {
        self.state.lock().regions.bat.start + 8 * (block + block / self.chunk_ratio)
    }

    fn bitmap_entry(&self, state: &State, block: u64) -> u64 {
        let chunk = block / self.chunk_ratio;
        state.regions.bat.start + 8 * ((chunk + 1) * self.chunk_ratio + chunk)
    }

    /// Where a block's bits are in the block of sector bitmaps at `start`.
    fn bits_in(&self, start: u64, block: u64) -> u64 {
        start + (block % self.chunk_ratio) * (self.block_size / self.sector / 8)
    }

    fn wrong(at: u64, block: u64, entry: u64, problem: &str) -> Error {
        Error::new(
            ErrorKind::InvalidData,
            format!("Offset {at:#x}: BAT entry of block {block} is {entry:#x}: {problem}"),
        )
    }

    /// Block of sector bitmaps for a block.
    fn bitmap(&self, file: &dyn BlockBackend, pages: &Pages, block: u64) -> Result<Option<u64>> {
        let at = self.bitmap_entry(&self.state.lock(), block);
        let entry = u64::from_le_bytes(pages.read(file, at)?);
        match entry & 7 {
            FULLY_PRESENT => {
                let start = entry & !(MIB - 1);
                if start < MIB || start >= file.size() {
                    return Err(Self::wrong(at, block, entry, "its sector bitmap is outside the file"));
                }
                Ok(Some(start))
            }
            _ => Ok(None),
        }
    }

    /// Space at the end of the file.
    fn take(state: &mut State, file: &dyn BlockBackend, len: u64) -> Result<u64> {
        let at = state.end;
        fresh_space(file, at, len)?;
        state.end = at + len;
        Ok(at)
    }

    /// Writes the header that is not current, which makes it so.
    fn write_header(state: &mut State, file: &dyn BlockBackend, header: Header) -> Result<()> {
        let next = Header { sequence: state.header.sequence.wrapping_add(1), ..header };
        let other = 1 - state.current;
        file.write_bytes(HEADERS[other], &next.encode())?;
        file.flush()?;
        (state.header, state.current) = (next, other);
        Ok(())
    }

    /// Writes pages through the log: all, as far as they fit in one entry, or none.
    fn write_pages(state: &mut State, file: &dyn BlockBackend, pages: &[(u64, &[u8])]) -> Result<()> {
        let log = state.header.log.clone();
        let len = log.end - log.start;
        for pages in pages.chunks(log::capacity(len).max(1)) {
            let guid = if state.header.log_guid == [0; 16] { random_uuid() } else { state.header.log_guid };
            state.sequence += 1;
            let entry = log::entry(pages, state.sequence, &guid, state.log_at, file.size());
            let at = if state.log_at + entry.len() as u64 > len { 0 } else { state.log_at };
            let entry = if at == state.log_at {
                entry
            } else {
                log::entry(pages, state.sequence, &guid, at, file.size())
            };
            if entry.len() as u64 > len {
                return Err(Error::other("the log is too small for one page"));
            }
            file.write_bytes(log.start + at, &entry)?;
            file.flush()?;
            if state.header.log_guid != guid {
                // Only now is there something that the identity leads to.
                let header = Header { log_guid: guid, ..state.header.clone() };
                Self::write_header(state, file, header)?;
            }
            for (offset, page) in pages {
                file.write_bytes(*offset, page)?;
            }
            file.flush()?;
            state.log_at = (at + entry.len() as u64) % len;
        }
        Ok(())
    }

    /// The page of 4 KiB around `at`, with `bytes` there.
    fn patched(file: &dyn BlockBackend, at: u64, bytes: &[u8]) -> Result<(u64, Vec<u8>)> {
        let start = at - at % SECTOR;
        let mut page = vec![0; SECTOR as usize];
        file.read_bytes(start, &mut page)?;
        put(&mut page, (at - start) as usize, bytes);
        Ok((start, page))
    }
}

impl Layout for VhdxLayout {
    const PAGE: usize = SECTOR as usize;

    fn format(&self) -> &'static str {
        "vhdx"
    }

    fn block_size(&self) -> u64 {
        self.block_size
    }

    fn sector_size(&self) -> u64 {
        self.sector
    }

    fn place(&self, file: &dyn BlockBackend, pages: &Pages, block: u64) -> Result<Place> {
        let at = self.entry(block);
        let entry = u64::from_le_bytes(pages.read(file, at)?);
        let data = entry & !(MIB - 1);
        match entry & 7 {
            NOT_PRESENT => return Ok(Place::Absent),
            1..=3 => return Ok(Place::Zero),
            FULLY_PRESENT | PARTIALLY_PRESENT => {}
            _ => return Err(Self::wrong(at, block, entry, "no such state")),
        }
        if entry & RESERVED != 0 {
            return Err(Self::wrong(at, block, entry, "reserved bits are set"));
        }
        if data < MIB || data >= file.size() {
            return Err(Self::wrong(
                at,
                block,
                entry,
                &format!("outside the file, which has {} bytes", file.size()),
            ));
        }
        if entry & 7 == FULLY_PRESENT {
            return Ok(Place::Data(data));
        }
        if !self.has_parent {
            return Err(Self::wrong(at, block, entry, "partially present, but there is no parent"));
        }
        let bitmap = self.bitmap(file, pages, block)?;
        let bitmap = bitmap
            .ok_or_else(|| Self::wrong(at, block, entry, "partially present without a sector bitmap"))?;
        Ok(Place::Partial { data, bitmap: self.bits_in(bitmap, block) })
    }

    fn set(&self, file: &dyn BlockBackend, pages: &Pages, block: u64, place: Place) -> Result<()> {
        let entry = match place {
            Place::Data(data) => data | FULLY_PRESENT,
            Place::Partial { data, .. } => data | PARTIALLY_PRESENT,
            Place::Zero => ZERO,
            Place::Absent | Place::Compressed(_) => NOT_PRESENT,
        };
        pages.write(file, self.entry(block), &entry.to_le_bytes())
    }

    fn allocate(&self, file: &dyn BlockBackend, pages: &Pages, block: u64, whole: bool) -> Result<Place> {
        if whole || !self.has_parent {
            return Ok(Place::Data(Self::take(&mut self.state.lock(), file, self.block_size)?));
        }
        let mut known = self.bitmap(file, pages, block)?;
        let mut state = self.state.lock();
        if known.is_none() {
            // Somebody may have made it between.
            let at = self.bitmap_entry(&state, block);
            let entry = u64::from_le_bytes(pages.read(file, at)?);
            let start = if entry & 7 == FULLY_PRESENT {
                entry & !(MIB - 1)
            } else {
                let start = Self::take(&mut state, file, MIB)?;
                pages.write(file, at, &(start | FULLY_PRESENT).to_le_bytes())?;
                state.bitmaps.push(start);
                start
            };
            known = Some(start);
        }
        let data = Self::take(&mut state, file, self.block_size)?;
        let bitmap = known.ok_or(ErrorKind::Other)?;
        Ok(Place::Partial { data, bitmap: self.bits_in(bitmap, block) })
    }

    fn has_zero_blocks(&self) -> bool {
        true
    }

    fn commit(&self, file: &dyn BlockBackend, pages: &[DirtyPage]) -> Result<()> {
        let pages: Vec<(u64, &[u8])> = pages.iter().map(|page| (page.offset, &page.bytes[..])).collect();
        Self::write_pages(&mut self.state.lock(), file, &pages)
    }

    fn begin_writing(&self, file: &dyn BlockBackend) -> Result<()> {
        let mut state = self.state.lock();
        if state.header.log.is_empty() {
            return Err(Error::new(ErrorKind::Unsupported, "the image has no log, it can only be read"));
        }
        let ends =
            [state.header.log.end, state.regions.bat.end, state.regions.metadata.end, file.size(), MIB];
        state.end = ends.into_iter().max().unwrap_or(MIB).next_multiple_of(MIB);
        // Twice, so that both headers say that somebody wrote.
        let header = Header {
            file_write: random_uuid(),
            data_write: random_uuid(),
            log_guid: [0; 16],
            ..state.header.clone()
        };
        for _ in 0..2 {
            Self::write_header(&mut state, file, header.clone())?;
        }
        Ok(())
    }

    fn close(&self, file: &dyn BlockBackend) -> Result<()> {
        let mut state = self.state.lock();
        if state.header.log_guid != [0; 16] {
            let header = Header { log_guid: [0; 16], ..state.header.clone() };
            for _ in 0..2 {
                Self::write_header(&mut state, file, header.clone())?;
            }
        }
        Ok(())
    }

    fn grow(&self, file: &dyn BlockBackend, _pages: &Pages, old: u64, size: u64) -> Result<()> {
        let mut state = self.state.lock();
        if size > SIZE_MAX || !size.is_multiple_of(self.sector) {
            let problem = format!("size {size} is no multiple of {} or more than 64 TiB", self.sector);
            return Err(Error::new(ErrorKind::InvalidInput, problem));
        }
        let metadata = Metadata { size, ..state.metadata.clone() };
        let (before, entries) = (state.metadata.bat_entries(), metadata.bat_entries());
        let mut regions = state.regions.clone();
        let bytes = (8 * entries).next_multiple_of(MIB);
        let mut pages = Vec::new();
        if bytes > regions.bat.end - regions.bat.start {
            let at = Self::take(&mut state, file, bytes)?;
            crate::mapped::copy(file, regions.bat.start, at, 8 * before)?;
            regions.bat = at..at + bytes;
            let table = regions.encode();
            for copy in REGION_TABLES {
                pages.push((copy, table.get(..SECTOR as usize).unwrap_or_default().to_vec()));
            }
        } else {
            file.write_zeroes(regions.bat.start + 8 * before, 8 * (entries - before), false)?;
        }
        if metadata.fixed {
            // Entries behind the old size are not in use before the size is written.
            for block in old.div_ceil(self.block_size)..size.div_ceil(self.block_size) {
                let data = Self::take(&mut state, file, self.block_size)?;
                let at = regions.bat.start + 8 * (block + block / self.chunk_ratio);
                file.write_bytes(at, &(data | FULLY_PRESENT).to_le_bytes())?;
            }
        }
        file.flush()?;
        pages.push(Self::patched(file, metadata.size_at, &size.to_le_bytes())?);
        let pages: Vec<(u64, &[u8])> = pages.iter().map(|(at, page)| (*at, &page[..])).collect();
        Self::write_pages(&mut state, file, &pages)?;
        (state.regions, state.metadata) = (regions, metadata);
        Ok(())
    }

    fn describe(&self, info: &mut ImageInfo) {
        let state = self.state.lock();
        let kind = match (state.metadata.fixed, self.has_parent) {
            (_, true) => "differencing",
            (true, false) => "fixed",
            (false, false) => "dynamic",
        };
        let specific = &mut info.format_specific;
        specific.insert("subformat".into(), kind.into());
        specific.insert("logical-sector-size".into(), state.metadata.logical_sector.into());
        specific.insert("physical-sector-size".into(), state.metadata.physical_sector.into());
        specific.insert("data-write-guid".into(), super::guid_text(&state.header.data_write).into());
        if let Some(parent) = &self.parent {
            info.backing_filename = Some(parent.clone());
            info.backing_filename_format = Some("vhdx".to_owned());
        }
        info.dirty_flag = state.header.log_guid != [0; 16];
    }

    fn metadata_ranges(&self) -> Vec<(Range<u64>, &'static str)> {
        let state = self.state.lock();
        let mut ranges = vec![
            (0..MIB, "headers"),
            (state.header.log.clone(), "log"),
            (state.regions.metadata.clone(), "metadata"),
            (state.regions.bat.clone(), "BAT"),
        ];
        ranges.extend(state.bitmaps.iter().map(|&start| (start..start + MIB, "sector bitmaps")));
        ranges
    }

    fn entry_offset(&self, _file: &dyn BlockBackend, _pages: &Pages, block: u64) -> Result<u64> {
        Ok(self.entry(block))
    }

    fn cut(&self, file: &dyn BlockBackend, end: u64) -> Result<bool> {
        let mut state = self.state.lock();
        let end = end.next_multiple_of(MIB);
        file.resize(end)?;
        state.end = end;
        Ok(true)
    }
}
