//! The trait.

use crate::transfer::Transfer;
use serde::Serialize;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};

/// Unit of disk sizes and of request offsets, in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// What a back end can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Writes, discards and zeroing are refused.
    pub read_only: bool,
    /// [`BlockBackend::discard`] gives space back; where not, it does nothing.
    pub discard: bool,
    /// [`BlockBackend::write_zeroes`] on ranges aligned to this many bytes (a power of two) writes no data.
    pub zero_alignment: u64,
    /// Writes beyond the end make it larger, and reads beyond the end are zeros: the file *below* a format.
    pub growable: bool,
}

/// A run of bytes that is stored in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// First byte on the disk.
    pub start: u64,
    /// Bytes; at least 1 unless the question was about 0 bytes.
    pub length: u64,
    /// Layer of the backing chain that decides the content: 0 is the image itself.
    pub depth: u32,
    /// Some layer says what the content is. With `depth` 0: this image does.
    pub present: bool,
    /// It reads as zeros.
    pub zero: bool,
    /// Data are stored for it. Neither `zero` nor `data`: not known.
    pub data: bool,
    /// The data are compressed.
    pub compressed: bool,
    /// Where the data are in the layer's file, when they are there as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

impl Extent {
    /// An extent of the image itself with data.
    pub fn data(start: u64, length: u64, offset: Option<u64>) -> Self {
        Extent { start, length, depth: 0, present: true, zero: false, data: true, compressed: false, offset }
    }

    /// An extent of the image itself that is said to be zeros.
    pub fn zero(start: u64, length: u64) -> Self {
        Extent { zero: true, data: false, ..Extent::data(start, length, None) }
    }

    /// An extent nobody says anything of: zeros.
    pub fn hole(start: u64, length: u64) -> Self {
        Extent { present: false, ..Extent::zero(start, length) }
    }

    /// Whether `next` goes on where this ends, stored in the same way.
    pub fn continues_with(&self, next: &Extent) -> bool {
        self.start + self.length == next.start
            && (self.depth, self.present, self.zero, self.data, self.compressed)
                == (next.depth, next.present, next.zero, next.data, next.compressed)
            && match (self.offset, next.offset) {
                (Some(mine), Some(its)) => mine.checked_add(self.length) == Some(its),
                (mine, its) => mine == its,
            }
    }
}

/// A disk's content. Offsets and lengths are in bytes; ranges beyond [`BlockBackend::size`] are errors of kind
/// `InvalidInput` (but see [`Capabilities::growable`]). A short transfer does not exist: all or an error.
///
/// Formats, backing chains, throttles and encryption are decorators: they own an `Arc<dyn BlockBackend>` and are one.
/// All calls may come from several threads at once; calls on disjoint ranges do not wait for each other.
pub trait BlockBackend: Send + Sync {
    /// Size in bytes; a multiple of [`SECTOR_SIZE`] for everything a guest sees.
    fn size(&self) -> u64;
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// Reads into all buffers.
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()>;
    /// Writes all buffers.
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()>;
    /// Makes all completed writes survive a power loss.
    fn flush(&self) -> Result<()>;
    /// Says that a range's content is not needed any more; it then reads as old data or zeros.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;
    /// Makes a range read as zeros; with `unmap`, its space may be given back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()>;
    /// Changes the size in bytes. New bytes read as zeros.
    fn resize(&self, size: u64) -> Result<()>;
    /// How the first bytes of a range are stored: an extent that starts at `offset` and is at most `len` long.
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent>;

    /// Whether [`BlockBackend::transfer`] does better than one transfer after the other.
    fn batches(&self) -> bool {
        false
    }
    /// Does all of these, in any order and at the same time where it can, and sets their results.
    fn transfer(&self, batch: &mut [&mut Transfer<'_>]) {
        batch.iter_mut().for_each(|transfer| transfer.run(self));
    }
    /// The end of a range, which must lie on the disk.
    fn check_range(&self, offset: u64, len: u64) -> Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(end),
            _ => Err(Error::new(ErrorKind::InvalidInput, "the range leaves the disk")),
        }
    }
    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        self.capabilities().read_only
    }
    /// Reads into one buffer.
    fn read_bytes(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_at(offset, &mut [IoSliceMut::new(buffer)])
    }
    /// Writes one buffer.
    fn write_bytes(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.write_at(offset, &[IoSlice::new(buffer)])
    }
}
