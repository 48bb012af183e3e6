//! The block allocation table and the blocks, each behind its bitmap of sectors.

use super::footer::{FOOTER, Footer, Header};
use crate::backend::BlockBackend;
use crate::image::ImageInfo;
use crate::mapped::{Layout, Pages, Place, fresh_space, scan};
use parking_lot::Mutex;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;

const UNUSED: u32 = u32::MAX;

struct State {
    footer: Footer,
    header: Header,
    /// Where the next block goes, and the footer is.
    end: u64,
}

/// The table of a dynamic or differencing image.
pub(super) struct VhdLayout {
    block_size: u64,
    /// Bytes of a block's bitmap.
    bitmap_size: u64,
    /// Name of the parent, as used.
    parent: Option<String>,
    state: Mutex<State>,
}

impl VhdLayout {
    pub fn new(footer: Footer, header: Header, parent: Option<String>) -> Self {
        let block_size = u64::from(header.block_size);
        let bitmap_size = (block_size / 512).div_ceil(8).next_multiple_of(512);
        VhdLayout { block_size, bitmap_size, parent, state: Mutex::new(State { footer, header, end: 0 }) }
    }

    fn entry(&self, block: u64) -> u64 {
        self.state.lock().header.table_offset + 4 * block
    }

    fn entries(file: &dyn BlockBackend, header: &Header) -> Result<Vec<u8>> {
        let mut bytes = vec![0; 4 * header.entries as usize];
        file.read_bytes(header.table_offset, &mut bytes)?;
        Ok(bytes)
    }

    fn block_bytes(&self) -> u64 {
        self.bitmap_size + self.block_size
    }
}

impl Layout for VhdLayout {
    const PAGE: usize = 512;
    const BITS_FROM_TOP: bool = true;

    fn format(&self) -> &'static str {
        "vpc"
    }

    fn block_size(&self) -> u64 {
        self.block_size
    }

    fn block_head(&self) -> u64 {
        self.bitmap_size
    }

    fn place(&self, file: &dyn BlockBackend, pages: &Pages, block: u64) -> Result<Place> {
        let at = self.entry(block);
        let sector = u32::from_be_bytes(pages.read(file, at)?);
        if sector == UNUSED {
            return Ok(Place::Absent);
        }
        let bitmap = u64::from(sector) * 512;
        let data = bitmap + self.bitmap_size;
        if data >= file.size() || sector == 0 {
            let problem = format!(
                "Offset {at:#x}: entry of block {block} is sector {sector:#x}; the file has {} bytes",
                file.size()
            );
            return Err(Error::new(ErrorKind::InvalidData, problem));
        }
        Ok(Place::Partial { data, bitmap })
    }

    fn set(&self, file: &dyn BlockBackend, pages: &Pages, block: u64, place: Place) -> Result<()> {
        let sector = match place {
            Place::Partial { bitmap, .. } => {
                u32::try_from(bitmap / 512).map_err(|_| ErrorKind::FileTooLarge)?
            }
            _ => UNUSED,
        };
        pages.write(file, self.entry(block), &sector.to_be_bytes())
    }

    fn allocate(&self, file: &dyn BlockBackend, _pages: &Pages, _block: u64, _whole: bool) -> Result<Place> {
        let mut state = self.state.lock();
        let bitmap = state.end;
        let end = bitmap + self.block_bytes();
        if end / 512 >= u64::from(UNUSED) {
            return Err(Error::new(ErrorKind::FileTooLarge, "a vhd file has at most 2 TiB"));
        }
        fresh_space(file, bitmap, self.block_bytes() + FOOTER)?;
        file.write_bytes(end, &state.footer.encode())?;
        state.end = end;
        Ok(Place::Partial { data: bitmap + self.bitmap_size, bitmap })
    }

    fn has_zero_blocks(&self) -> bool {
        false
    }

    fn begin_writing(&self, file: &dyn BlockBackend) -> Result<()> {
        let mut state = self.state.lock();
        let (table_offset, table_len) = (state.header.table_offset, 4 * u64::from(state.header.entries));
        let mut last = 0;
        scan(file, table_offset, table_len, |part| {
            let sectors = part.as_chunks::<4>().0.iter().map(|entry| u32::from_be_bytes(*entry));
            let ends = sectors
                .filter(|&sector| sector != UNUSED)
                .map(|sector| u64::from(sector) * 512 + self.block_bytes())
                .filter(|&end| end <= file.size());
            last = ends.max().unwrap_or(0).max(last);
        })?;
        let table_end = (table_offset + table_len).next_multiple_of(512);
        let header_end = state.footer.header_offset + Header::LEN as u64;
        let locators = state.header.locators.iter().map(|locator| locator.offset + u64::from(locator.len));
        let end = locators.chain([last, table_end, header_end]).max().unwrap_or(0).next_multiple_of(512);
        let footer = state.footer.encode();
        let mut stored = vec![0; FOOTER as usize];
        if file.size() >= end + FOOTER {
            file.read_bytes(end, &mut stored)?;
        }
        if stored != footer {
            // A crash has left the end without its footer, or with more than a footer.
            file.write_bytes(end, &footer)?;
        }
        if file.capabilities().growable && file.size() != end + FOOTER {
            file.resize(end + FOOTER)?;
        }
        state.end = end;
        Ok(())
    }

    fn grow(&self, file: &dyn BlockBackend, _pages: &Pages, _old: u64, size: u64) -> Result<()> {
        let mut state = self.state.lock();
        let footer = state.footer.resized(size);
        if footer.size > super::footer::SIZE_MAX || footer.size != size {
            let problem =
                format!("size {size} is not possible for this vhd image; its geometry makes {}", footer.size);
            return Err(Error::new(ErrorKind::InvalidInput, problem));
        }
        let entries = size.div_ceil(self.block_size) as u32;
        if entries > state.header.entries {
            // A new table behind everything; one sector of the header leads to it.
            let mut table = Self::entries(file, &state.header)?;
            table.resize(4 * entries as usize, 0xFF);
            table.resize(table.len().next_multiple_of(512), 0xFF);
            let at = state.end;
            file.write_bytes(at + table.len() as u64, &state.footer.encode())?;
            file.write_bytes(at, &table)?;
            state.end = at + table.len() as u64;
            file.flush()?;
            state.header.table_offset = at;
            state.header.entries = entries;
            let header_at = state.footer.header_offset;
            file.write_bytes(header_at, &state.header.encode())?;
            file.flush()?;
        }
        file.write_bytes(state.end, &footer.encode())?;
        file.flush()?;
        file.write_bytes(0, &footer.encode())?;
        file.flush()?;
        state.footer = footer;
        Ok(())
    }

    fn describe(&self, info: &mut ImageInfo) {
        super::describe(info, &self.state.lock().footer);
        if let Some(parent) = &self.parent {
            info.backing_filename = Some(parent.clone());
            info.backing_filename_format = Some("vpc".to_owned());
        }
    }

    fn metadata_ranges(&self) -> Vec<(Range<u64>, &'static str)> {
        let state = self.state.lock();
        let (header, table) = (state.footer.header_offset, state.header.table_offset);
        let mut ranges = vec![
            (0..FOOTER, "copy of the footer"),
            (header..header + Header::LEN as u64, "header"),
            (table..table + 4 * u64::from(state.header.entries), "block allocation table"),
        ];
        for locator in &state.header.locators {
            ranges.push((locator.offset..locator.offset + u64::from(locator.len), "parent locator"));
        }
        ranges
    }

    fn entry_offset(&self, _file: &dyn BlockBackend, _pages: &Pages, block: u64) -> Result<u64> {
        Ok(self.entry(block))
    }

    fn end_of_data(&self, file: &dyn BlockBackend) -> u64 {
        file.size().saturating_sub(FOOTER)
    }

    fn cut(&self, file: &dyn BlockBackend, end: u64) -> Result<bool> {
        let mut state = self.state.lock();
        let end = end.next_multiple_of(512);
        file.write_bytes(end, &state.footer.encode())?;
        file.flush()?;
        file.resize(end + FOOTER)?;
        state.end = end;
        Ok(true)
    }
}
