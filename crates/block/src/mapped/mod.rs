//! Formats that cut the disk into blocks of equal size and keep a table of where each is: vdi, vhd, vhdx, vmdk.
//!
//! A format is a [`Layout`]: where the table's entries are, what they mean, how space is taken. [`Mapped`] is
//! everything the formats have in common: requests, copy from the backing file, order of writes, check.
//!
//! **Order of writes.** Entries are changed in memory only ([`Pages`]). A flush makes the data durable, then writes
//! the changed pages of the table, then flushes again; so an entry on disk never leads to space whose content is not
//! durable. What a crash loses is space that no entry leads to. Space once given to a block stays with it (a discard
//! punches a hole into the file), therefore no two blocks can meet in the same space, whatever is lost.

mod check;
mod cursor;
mod fields;
mod image;
mod pages;
mod request;

pub(crate) use cursor::{Slices, SlicesMut};
pub(crate) use fields::{Fields, put};
pub(crate) use image::{Mapped, Parts};
pub(crate) use pages::Pages;

use crate::backend::BlockBackend;
use crate::image::{CheckReport, ImageInfo, ImageResult, Repair};
use std::io::Result;
use std::ops::Range;
use std::path::Path;

/// What the table says of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nothing: the backing file's content, or zeros.
    Absent,
    /// Zeros.
    Zero,
    /// All of it is in the file, at this offset.
    Data(u64),
    /// Sectors whose bit is set are in the file; the others are as if absent.
    Partial {
        /// Where the block is in the file.
        data: u64,
        /// Where its bits are in the file.
        bitmap: u64,
    },
    /// A compressed block begins at this offset.
    Compressed(u64),
}

/// A part of the table that is written to the file at once.
#[derive(Clone, Debug)]
pub(crate) struct DirtyPage {
    /// Where it goes.
    pub offset: u64,
    /// What goes there.
    pub bytes: Vec<u8>,
    pub(super) version: u64,
}

/// A format.
pub(crate) trait Layout: Send + Sync + 'static {
    /// Bytes of a table page: a unit of writing.
    const PAGE: usize;
    /// Whether the first sector of a byte of a block's bitmap is its most significant bit.
    const BITS_FROM_TOP: bool = false;

    /// Name of the format.
    fn format(&self) -> &'static str;
    /// Bytes of disk an entry stands for.
    fn block_size(&self) -> u64;
    /// Bytes of disk a bit of a block's bitmap stands for.
    fn sector_size(&self) -> u64 {
        512
    }
    /// What the table says of a block. Errors name the entry's place in the file.
    fn place(&self, file: &dyn BlockBackend, pages: &Pages, block: u64) -> Result<Place>;
    /// How many blocks from this one on are [`Place::Absent`] because no table is there for their entries; 0: this one
    /// has an entry.
    fn without_table(&self, _file: &dyn BlockBackend, _pages: &Pages, _block: u64) -> Result<u64> {
        Ok(0)
    }
    /// Changes a block's entry, in memory.
    fn set(&self, file: &dyn BlockBackend, pages: &Pages, block: u64, place: Place) -> Result<()>;
    /// Takes space for a block; it reads as zeros. [`Place::Partial`] where the block may come in by sectors.
    fn allocate(&self, file: &dyn BlockBackend, pages: &Pages, block: u64, whole: bool) -> Result<Place>;
    /// Whether an entry can say "zeros" though there is a backing file.
    fn has_zero_blocks(&self) -> bool;
    /// Whether new blocks are compressed; changed ones are then written anew as a whole.
    fn compresses(&self) -> bool {
        false
    }
    /// Compresses a block and writes it to new space.
    fn compress(&self, _file: &dyn BlockBackend, _block: u64, _content: &[u8]) -> Result<Place> {
        Err(std::io::Error::other("the format has no compressed blocks"))
    }
    /// The bytes of a compressed block.
    fn decompress(&self, _file: &dyn BlockBackend, _block: u64, offset: u64) -> Result<Vec<u8>> {
        Err(std::io::Error::other(format!("offset {offset:#x}: the format has no compressed blocks")))
    }
    /// Writes changed pages and makes them durable; all data they lead to are durable.
    fn commit(&self, file: &dyn BlockBackend, pages: &[DirtyPage]) -> Result<()> {
        for page in pages {
            file.write_bytes(page.offset, &page.bytes)?;
        }
        file.flush()
    }
    /// Prepares the file for the first write after it was opened.
    fn begin_writing(&self, _file: &dyn BlockBackend) -> Result<()> {
        Ok(())
    }
    /// The image is closed, everything is committed.
    fn close(&self, _file: &dyn BlockBackend) -> Result<()> {
        Ok(())
    }
    /// Makes room for a disk of `size` bytes and stores the size. Everything is committed, no requests are under way.
    fn grow(&self, file: &dyn BlockBackend, pages: &Pages, old: u64, size: u64) -> Result<()>;
    /// Adds what only this format has.
    fn describe(&self, info: &mut ImageInfo);
    /// Parts of the file that are metadata, for the check.
    fn metadata_ranges(&self) -> Vec<(Range<u64>, &'static str)>;
    /// Where a block's entry is, for messages; 0 when no table is there.
    fn entry_offset(&self, file: &dyn BlockBackend, pages: &Pages, block: u64) -> Result<u64>;
    /// Bytes before a block's data that belong to it.
    fn block_head(&self) -> u64 {
        0
    }
    /// Checks and repairs what is not the table's; `allocated` is how many blocks have space.
    fn check_rest(
        &self,
        _file: &dyn BlockBackend,
        _path: &Path,
        _allocated: u64,
        _repair: Repair,
        _report: &mut CheckReport,
    ) -> ImageResult<()> {
        Ok(())
    }
    /// Where the next block would go.
    fn end_of_data(&self, file: &dyn BlockBackend) -> u64 {
        file.size()
    }
    /// Gives back the file's end behind `end`, the end of the last block; nothing leads there.
    fn cut(&self, _file: &dyn BlockBackend, _end: u64) -> Result<bool> {
        Ok(false)
    }
    /// Writes another parent into the image.
    fn set_backing(
        &self,
        _file: &dyn BlockBackend,
        path: &Path,
        _backing: Option<(&str, &str)>,
    ) -> ImageResult<()> {
        Err(crate::BlockError::unsupported(
            path,
            "to be made anew: this image cannot change its backing file",
        ))
    }
}

/// Makes `len` bytes at `offset` read as zeros, as space for a new block.
pub(crate) fn fresh_space(file: &dyn BlockBackend, offset: u64, len: u64) -> Result<()> {
    let end = offset.checked_add(len).ok_or(std::io::ErrorKind::FileTooLarge)?;
    let size = file.size();
    if offset < size {
        file.write_zeroes(offset, len.min(size - offset), true)?;
    }
    if end > size {
        if !file.capabilities().growable {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        file.resize(end)?;
    }
    Ok(())
}

/// Shows `look` a part of a file, 1 MiB at a time: tables can be large, and a hostile one is as large as it may be.
pub(crate) fn scan(
    file: &dyn BlockBackend,
    offset: u64,
    len: u64,
    mut look: impl FnMut(&[u8]),
) -> Result<()> {
    const PART: u64 = 1 << 20;
    let mut buffer = vec![0; len.min(PART) as usize];
    let mut done = 0;
    while done < len {
        let part = buffer.get_mut(..(len - done).min(PART) as usize).unwrap_or_default();
        file.read_bytes(offset + done, part)?;
        look(part);
        done += part.len() as u64;
    }
    Ok(())
}

/// Copies bytes inside a file.
pub(crate) fn copy(file: &dyn BlockBackend, from: u64, to: u64, len: u64) -> Result<()> {
    const PART: u64 = 1 << 20;
    let mut buffer = vec![0; len.min(PART) as usize];
    let mut done = 0;
    while done < len {
        let part = buffer.get_mut(..(len - done).min(PART) as usize).unwrap_or_default();
        file.read_bytes(from + done, part)?;
        file.write_bytes(to + done, part)?;
        done += part.len() as u64;
    }
    Ok(())
}

/// Random bytes, as identities of images need them.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    use std::io::Read;
    let mut bytes = [0; N];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    if read.is_err() {
        // Identities need to be different, not secret; secrets check for themselves.
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        bytes.iter_mut().zip(now.to_le_bytes().iter().cycle()).for_each(|(to, from)| *to = *from);
    }
    bytes
}

/// A random UUID (version 4).
pub(crate) fn random_uuid() -> [u8; 16] {
    let mut uuid = random::<16>();
    uuid[6] = uuid[6] & 0x0F | 0x40;
    uuid[8] = uuid[8] & 0x3F | 0x80;
    uuid
}
