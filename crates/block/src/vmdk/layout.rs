//! Grain directory, grain tables and grains of a sparse extent.

use super::header::{Header, UNCLEAN_AT};
use crate::backend::BlockBackend;
use crate::image::ImageInfo;
use crate::mapped::{Layout, Pages, Place, fresh_space, put};
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use parking_lot::Mutex;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::ops::Range;

/// Entry of a grain that is zeros, where the header allows it.
const ZEROED: u32 = 1;
/// Bytes in front of a compressed grain: its first sector on the disk, its length.
const MARKER: usize = 12;

struct State {
    header: Header,
    /// Where the next grain goes.
    end: u64,
}

/// A sparse extent's tables.
pub(super) struct SparseLayout {
    grain: u64,
    table_len: u64,
    compressed: bool,
    zeroed_grains: bool,
    state: Mutex<State>,
}

impl SparseLayout {
    pub fn new(header: Header) -> Self {
        SparseLayout {
            grain: header.grain * 512,
            table_len: header.table_len,
            compressed: header.compressed,
            zeroed_grains: header.zeroed_grains,
            state: Mutex::new(State { header, end: 0 }),
        }
    }

    /// Where a block's entry is, in the table that a directory leads to; `None`: there is no table.
    fn entry_in(
        &self,
        file: &dyn BlockBackend,
        pages: &Pages,
        directory: u64,
        block: u64,
    ) -> Result<Option<u64>> {
        let (table, within) = (block / self.table_len, block % self.table_len);
        let at = directory * 512 + 4 * table;
        let sector = u32::from_le_bytes(pages.read(file, at)?);
        if sector == 0 {
            return Ok(None);
        }
        let start = u64::from(sector) * 512;
        if start + 4 * self.table_len > file.size().next_multiple_of(512) {
            let problem = format!(
                "Offset {at:#x}: entry {table} of the grain directory is sector {sector:#x}; the file has {} bytes",
                file.size()
            );
            return Err(Error::new(ErrorKind::InvalidData, problem));
        }
        Ok(Some(start + 4 * within))
    }

    fn directories(&self) -> (u64, Option<u64>) {
        let state = self.state.lock();
        (state.header.directory, state.header.redundant)
    }

    /// Where a block's entry is, in a table that is made if it is not there.
    fn entry_made(&self, file: &dyn BlockBackend, pages: &Pages, directory: u64, block: u64) -> Result<u64> {
        if let Some(at) = self.entry_in(file, pages, directory, block)? {
            return Ok(at);
        }
        let mut state = self.state.lock();
        // Somebody may have made it between.
        if let Some(at) = self.entry_in(file, pages, directory, block)? {
            return Ok(at);
        }
        let len = state.header.table_sectors() * 512;
        let start = state.end;
        fresh_space(file, start, len)?;
        state.end = start + len;
        let sector = sector_number(start)?;
        pages.write(file, directory * 512 + 4 * (block / self.table_len), &sector.to_le_bytes())?;
        Ok(start + 4 * (block % self.table_len))
    }

    /// Compresses a grain and writes it to the end of the file.
    pub fn store(&self, file: &dyn BlockBackend, block: u64, content: &[u8]) -> Result<Place> {
        let mut encoder = ZlibEncoder::new(vec![0; MARKER], flate2::Compression::default());
        encoder.write_all(content)?;
        let mut bytes = encoder.finish()?;
        let len = (bytes.len() - MARKER) as u32;
        put(&mut bytes, 0, &(block * self.grain / 512).to_le_bytes());
        put(&mut bytes, 8, &len.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let at = {
            let mut state = self.state.lock();
            let at = state.end;
            state.end += bytes.len() as u64;
            at
        };
        sector_number(at)?;
        file.write_bytes(at, &bytes)?;
        Ok(Place::Compressed(at))
    }
}

/// The number of the sector at an offset: it has 32 bits.
fn sector_number(at: u64) -> Result<u32> {
    u32::try_from(at / 512)
        .map_err(|_| Error::new(ErrorKind::FileTooLarge, "a sparse extent's file has at most 2 TiB"))
}

impl Layout for SparseLayout {
    const PAGE: usize = 512;

    fn format(&self) -> &'static str {
        "vmdk"
    }

    fn block_size(&self) -> u64 {
        self.grain
    }

    fn place(&self, file: &dyn BlockBackend, pages: &Pages, block: u64) -> Result<Place> {
        let Some(at) = self.entry_in(file, pages, self.directories().0, block)? else {
            return Ok(Place::Absent);
        };
        let sector = u32::from_le_bytes(pages.read(file, at)?);
        if sector == 0 {
            return Ok(Place::Absent);
        }
        if sector == ZEROED && self.zeroed_grains {
            return Ok(Place::Zero);
        }
        let start = u64::from(sector) * 512;
        if start >= file.size() {
            let problem = format!(
                "Offset {at:#x}: entry of grain {block} is sector {sector:#x}; the file has {} bytes",
                file.size()
            );
            return Err(Error::new(ErrorKind::InvalidData, problem));
        }
        Ok(if self.compressed { Place::Compressed(start) } else { Place::Data(start) })
    }

    fn without_table(&self, file: &dyn BlockBackend, pages: &Pages, block: u64) -> Result<u64> {
        let (table, within) = (block / self.table_len, block % self.table_len);
        let sector = u32::from_le_bytes(pages.read(file, self.directories().0 * 512 + 4 * table)?);
        Ok(if sector == 0 { self.table_len - within } else { 0 })
    }

    fn set(&self, file: &dyn BlockBackend, pages: &Pages, block: u64, place: Place) -> Result<()> {
        let sector = match place {
            Place::Data(at) | Place::Compressed(at) => sector_number(at)?,
            Place::Zero => ZEROED,
            Place::Absent | Place::Partial { .. } => 0,
        };
        let (directory, redundant) = self.directories();
        for directory in [Some(directory), redundant].into_iter().flatten() {
            let at = self.entry_made(file, pages, directory, block)?;
            pages.write(file, at, &sector.to_le_bytes())?;
        }
        Ok(())
    }

    fn allocate(&self, file: &dyn BlockBackend, _pages: &Pages, _block: u64, _whole: bool) -> Result<Place> {
        let mut state = self.state.lock();
        let at = state.end;
        sector_number(at + self.grain)?;
        fresh_space(file, at, self.grain)?;
        state.end = at + self.grain;
        Ok(Place::Data(at))
    }

    fn has_zero_blocks(&self) -> bool {
        self.zeroed_grains
    }

    fn compresses(&self) -> bool {
        self.compressed
    }

    fn compress(&self, file: &dyn BlockBackend, block: u64, content: &[u8]) -> Result<Place> {
        self.store(file, block, content)
    }

    fn decompress(&self, file: &dyn BlockBackend, block: u64, offset: u64) -> Result<Vec<u8>> {
        let wrong = |what: String| {
            Error::new(
                ErrorKind::InvalidData,
                format!("Offset {offset:#x}: the marker of grain {block} {what}"),
            )
        };
        let mut marker = [0; MARKER];
        file.read_bytes(offset, &mut marker)?;
        let [l0, l1, l2, l3, l4, l5, l6, l7, s0, s1, s2, s3] = marker;
        let sector = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        let len = u64::from(u32::from_le_bytes([s0, s1, s2, s3]));
        if sector != block * (self.grain / 512) {
            return Err(wrong(format!("is for sector {sector}")));
        }
        let start = offset + MARKER as u64;
        if len == 0 || len > 2 * self.grain + 1024 || start + len > file.size() {
            return Err(wrong(format!("says {len} bytes; the grain has {}", self.grain)));
        }
        let mut packed = vec![0; len as usize];
        file.read_bytes(start, &mut packed)?;
        let mut content = Vec::with_capacity(self.grain as usize);
        ZlibDecoder::new(&packed[..])
            .take(self.grain)
            .read_to_end(&mut content)
            .map_err(|error| wrong(format!("leads to data that cannot be decompressed: {error}")))?;
        Ok(content)
    }

    fn begin_writing(&self, file: &dyn BlockBackend) -> Result<()> {
        let mut state = self.state.lock();
        let unit = if self.compressed { 512 } else { self.grain };
        let overhead = state.header.overhead.saturating_mul(512);
        let end = file.size().max(overhead).checked_next_multiple_of(unit).filter(|end| *end < 1 << 62);
        let what = "overHead of the sparse extent leads behind all files";
        state.end = end.ok_or_else(|| Error::new(std::io::ErrorKind::InvalidData, what))?;
        state.header.unclean = true;
        // What came from a footer is in the header from now on: the end moves.
        file.write_bytes(0, &state.header.encode())
    }

    fn close(&self, file: &dyn BlockBackend) -> Result<()> {
        file.write_bytes(UNCLEAN_AT, &[0])
    }

    fn grow(&self, file: &dyn BlockBackend, _pages: &Pages, _old: u64, size: u64) -> Result<()> {
        let mut state = self.state.lock();
        let mut header = state.header.clone();
        header.capacity = size / 512;
        let (old_bytes, room) = (4 * state.header.tables(), state.header.directory_sectors() * 512);
        let bytes = 4 * header.tables();
        for directory in [Some(&mut header.directory), header.redundant.as_mut()].into_iter().flatten() {
            if bytes <= room {
                file.write_zeroes(*directory * 512 + old_bytes, bytes - old_bytes, false)?;
                continue;
            }
            let at = state.end;
            let len = bytes.next_multiple_of(self.grain);
            fresh_space(file, at, len)?;
            crate::mapped::copy(file, *directory * 512, at, old_bytes)?;
            state.end = at + len;
            *directory = at / 512;
        }
        file.flush()?;
        // One sector leads to the new directories.
        file.write_bytes(0, &header.encode())?;
        file.flush()?;
        state.header = header;
        Ok(())
    }

    fn describe(&self, info: &mut ImageInfo) {
        info.dirty_flag |= self.state.lock().header.unclean;
    }

    fn metadata_ranges(&self) -> Vec<(Range<u64>, &'static str)> {
        let header = &self.state.lock().header;
        let directory = |start: u64| start * 512..(start + header.directory_sectors()) * 512;
        let mut ranges = vec![(0..512, "header"), (directory(header.directory), "grain directory")];
        ranges.extend(header.redundant.map(|start| (directory(start), "redundant grain directory")));
        if header.descriptor != 0 {
            let start = header.descriptor * 512;
            ranges.push((start..start + header.descriptor_len * 512, "descriptor"));
        }
        ranges
    }

    fn entry_offset(&self, file: &dyn BlockBackend, pages: &Pages, block: u64) -> Result<u64> {
        Ok(self.entry_in(file, pages, self.directories().0, block)?.unwrap_or(0))
    }

    fn end_of_data(&self, _file: &dyn BlockBackend) -> u64 {
        // Tables and grains of any length may be anywhere: space without an owner is not told from them.
        0
    }
}
