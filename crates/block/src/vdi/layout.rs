//! The table and the blocks.
//!
//! A block's number counts blocks from the offset of the data; other tools take the header's "blocks allocated" as
//! the number of the next block. So no holes are left: numbers go up one by one, and the counter is durable before
//! any entry with the new number is.

use super::grow;
use super::header::{DISCARDED, Header, UNALLOCATED};
use crate::backend::BlockBackend;
use crate::image::{CheckReport, ImageInfo, ImageResult, Repair};
use crate::mapped::{DirtyPage, Layout, Pages, Place, fresh_space};
use parking_lot::Mutex;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::path::Path;

/// Entries are never partly in a page: pages are sectors.
const PAGE: usize = 512;

/// Numbers that no entry had, in order.
#[derive(Default)]
struct Holes {
    /// A bit for each number that one had.
    used: Vec<u64>,
    /// Where the search goes on, and where it ends.
    at: u32,
    end: u32,
}

impl Iterator for Holes {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.at < self.end {
            let number = self.at;
            self.at += 1;
            if self.used.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 0) {
                return Some(number);
            }
        }
        None
    }
}

struct State {
    header: Header,
    /// Number of the next block behind all others.
    next: u32,
    /// Numbers below `next` that no entry had when the image was opened.
    holes: Holes,
    /// The counter in the file.
    stored: u32,
}

/// A vdi image's table.
pub(super) struct VdiLayout {
    block_size: u64,
    state: Mutex<State>,
}

impl VdiLayout {
    pub fn new(header: Header) -> Self {
        let (next, stored) = (header.allocated, header.allocated);
        let block_size = u64::from(header.block_size);
        VdiLayout { block_size, state: Mutex::new(State { header, next, holes: Holes::default(), stored }) }
    }

    fn entry(&self, block: u64) -> u64 {
        u64::from(self.state.lock().header.table_offset) + 4 * block
    }

    /// Offset of the block with a number.
    fn data(&self, number: u32) -> u64 {
        u64::from(self.state.lock().header.data_offset) + u64::from(number) * self.block_size
    }
}

impl Layout for VdiLayout {
    const PAGE: usize = PAGE;

    fn format(&self) -> &'static str {
        "vdi"
    }

    fn block_size(&self) -> u64 {
        self.block_size
    }

    fn place(&self, file: &dyn BlockBackend, pages: &Pages, block: u64) -> Result<Place> {
        let at = self.entry(block);
        let number = u32::from_le_bytes(pages.read(file, at)?);
        match number {
            UNALLOCATED => return Ok(Place::Absent),
            DISCARDED => return Ok(Place::Zero),
            _ => {}
        }
        let offset = self.data(number);
        // Numbers can be above those of the image's blocks when growing it was cut short.
        if offset >= file.size() {
            let problem = format!(
                "Offset {at:#x}: entry of block {block} is {number}; it would be at {offset:#x}, the file has {} bytes",
                file.size()
            );
            return Err(Error::new(ErrorKind::InvalidData, problem));
        }
        Ok(Place::Data(offset))
    }

    fn set(&self, file: &dyn BlockBackend, pages: &Pages, block: u64, place: Place) -> Result<()> {
        let start = u64::from(self.state.lock().header.data_offset);
        let number = match place {
            Place::Data(offset) => ((offset - start) / self.block_size) as u32,
            Place::Zero => DISCARDED,
            _ => UNALLOCATED,
        };
        pages.write(file, self.entry(block), &number.to_le_bytes())
    }

    fn allocate(&self, file: &dyn BlockBackend, _pages: &Pages, _block: u64, _whole: bool) -> Result<Place> {
        let mut state = self.state.lock();
        let number = match state.holes.next() {
            Some(number) => number,
            None if state.next < state.header.blocks => {
                state.next += 1;
                state.next - 1
            }
            None => return Err(Error::new(ErrorKind::StorageFull, "no block number is left")),
        };
        let offset = u64::from(state.header.data_offset) + u64::from(number) * self.block_size;
        fresh_space(file, offset, self.block_size)?;
        state.header.allocated = state.header.allocated.saturating_add(1).min(state.header.blocks);
        Ok(Place::Data(offset))
    }

    fn has_zero_blocks(&self) -> bool {
        true
    }

    fn begin_writing(&self, file: &dyn BlockBackend) -> Result<()> {
        let mut state = self.state.lock();
        let (blocks, size) = (state.header.blocks, file.size());
        let mut used = vec![0_u64; blocks.div_ceil(64) as usize];
        let (mut next, mut count) = (0, 0);
        grow::each(file, &state.header, |number| {
            let offset = u64::from(state.header.data_offset) + u64::from(number) * self.block_size;
            if number >= DISCARDED || number >= blocks && offset >= size {
                return;
            }
            if let Some(word) = used.get_mut(number as usize / 64) {
                *word |= 1 << (number % 64);
            }
            next = next.max(number + 1);
            count += 1;
        })?;
        state.holes = Holes { used, at: 0, end: next.min(blocks) };
        state.next = next;
        state.header.allocated = count;
        Ok(())
    }

    fn commit(&self, file: &dyn BlockBackend, pages: &[DirtyPage]) -> Result<()> {
        let (header, stored) = {
            let state = self.state.lock();
            (state.header.clone(), state.stored)
        };
        if header.allocated != stored {
            file.write_bytes(0, &header.encode())?;
            file.flush()?;
            self.state.lock().stored = header.allocated;
        }
        for page in pages {
            file.write_bytes(page.offset, &page.bytes)?;
        }
        file.flush()
    }

    fn grow(&self, file: &dyn BlockBackend, _pages: &Pages, _old: u64, size: u64) -> Result<()> {
        let mut state = self.state.lock();
        let header = grow::grow(file, &state.header, size)?;
        state.stored = header.allocated;
        state.header = header;
        drop(state);
        self.begin_writing(file)
    }

    fn describe(&self, info: &mut ImageInfo) {
        let fixed = self.state.lock().header.fixed;
        info.format_specific.insert("image-type".into(), if fixed { "fixed" } else { "dynamic" }.into());
    }

    fn metadata_ranges(&self) -> Vec<(Range<u64>, &'static str)> {
        let state = self.state.lock();
        let table = u64::from(state.header.table_offset);
        vec![(0..512, "header"), (table..table + 4 * u64::from(state.header.blocks), "table of blocks")]
    }

    fn entry_offset(&self, _file: &dyn BlockBackend, _pages: &Pages, block: u64) -> Result<u64> {
        Ok(self.entry(block))
    }

    fn check_rest(
        &self,
        file: &dyn BlockBackend,
        path: &Path,
        allocated: u64,
        repair: Repair,
        report: &mut CheckReport,
    ) -> ImageResult<()> {
        let mut state = self.state.lock();
        let stored = u64::from(state.stored);
        if stored == allocated {
            return Ok(());
        }
        report.find(|| format!("Offset 0x184: blocks allocated is {stored}, but {allocated} blocks are"));
        let count = stored.abs_diff(allocated);
        // A counter that is too high is what a crash leaves.
        let leak = stored > allocated;
        if repair == Repair::All || leak && repair == Repair::Leaks {
            state.header.allocated = allocated as u32;
            file.write_bytes(0, &state.header.encode())
                .and_then(|()| file.flush())
                .map_err(|source| crate::BlockError::io(path, "writing the header", source))?;
            state.stored = state.header.allocated;
            if leak { report.leaks_fixed += count } else { report.corruptions_fixed += count }
        } else if leak {
            report.leaks += count;
        } else {
            report.corruptions += count;
        }
        Ok(())
    }

    fn end_of_data(&self, file: &dyn BlockBackend) -> u64 {
        file.size()
    }

    fn cut(&self, file: &dyn BlockBackend, end: u64) -> Result<bool> {
        let mut state = self.state.lock();
        let start = u64::from(state.header.data_offset);
        let end = end.max(start);
        file.resize(end)?;
        state.next = ((end - start) / self.block_size) as u32;
        state.holes.end = state.holes.end.min(end.saturating_sub(start).div_ceil(self.block_size) as u32);
        Ok(true)
    }
}
