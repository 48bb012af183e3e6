//! A disk as clients see it: its name, its flags, and its metadata contexts.

use crate::protocol::{allocation, flag};
use block::{BlockBackend, Extent};
use std::io::Result;
use std::ops::Range;
use std::sync::Arc;

/// A dirty bitmap as it was when the export began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Marked ranges of the disk in bytes, in order, not touching each other.
    pub dirty: Vec<Range<u64>>,
}

/// A disk that is served.
#[derive(Clone)]
pub struct Export {
    /// The name clients ask for; empty is the default export.
    pub name: String,
    /// For people; empty: none.
    pub description: String,
    /// The content, which takes requests of any alignment, as [`block::ByteAligned`] does. Its size must not change while
    /// it is served.
    pub disk: Arc<dyn BlockBackend>,
    /// Clients cannot write.
    pub read_only: bool,
    /// Each is the metadata context `qemu:dirty-bitmap:NAME`.
    pub bitmaps: Vec<Bitmap>,
    /// Bytes that requests best are multiples of: a power of two, 512 to 32 MiB.
    pub preferred_block: u32,
}

/// Smallest unit of requests, in bytes.
pub const BLOCK_MIN: u32 = 1;

const ALLOCATION: &str = "base:allocation";
const DEPTH: &str = "qemu:allocation-depth";
const BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";

/// A metadata context: a question `NBD_CMD_BLOCK_STATUS` answers. Its number on the wire is that of [`Context::id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`: holes and zeros.
    Allocation,
    /// `qemu:allocation-depth`: the layer of the backing chain, from 1; 0 where nobody says anything.
    Depth,
    /// `qemu:dirty-bitmap:NAME`, by its place in [`Export::bitmaps`]: 1 is dirty.
    Bitmap(usize),
}

impl Context {
    /// The number in replies.
    pub fn id(self) -> u32 {
        match self {
            Context::Allocation => 0,
            Context::Depth => 1,
            Context::Bitmap(at) => at as u32 + 2,
        }
    }
}

impl Export {
    /// Whether writes are refused, for whichever reason.
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.disk.is_read_only()
    }

    /// "Transmission flags". All connections share one disk, so a flush on one covers the writes of all.
    pub fn flags(&self, structured: bool, multi_conn: bool) -> u16 {
        let mut flags = flag::HAS_FLAGS | flag::SEND_CACHE | flag::SEND_FLUSH;
        flags |= if self.is_read_only() {
            flag::READ_ONLY
        } else {
            flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES
        };
        flags |= if structured { flag::SEND_DF } else { 0 };
        flags | if multi_conn { flag::CAN_MULTI_CONN } else { 0 }
    }

    /// All contexts with their names.
    pub fn contexts(&self) -> impl Iterator<Item = (Context, String)> {
        let bitmaps = self.bitmaps.iter().enumerate();
        [(Context::Allocation, ALLOCATION.to_owned()), (Context::Depth, DEPTH.to_owned())].into_iter().chain(
            bitmaps.map(|(at, bitmap)| (Context::Bitmap(at), format!("{BITMAP_PREFIX}{}", bitmap.name))),
        )
    }

    /// The extent of the disk that begins at `offset`.
    pub fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let mut extent = self.disk.block_status(offset, len)?;
        extent.length = extent.length.clamp(1, len.max(1));
        Ok(extent)
    }

    /// The extent in a context that begins at `offset`, at most `len` bytes: its length and its flags.
    pub fn status(&self, context: Context, offset: u64, len: u64) -> Result<(u64, u32)> {
        Ok(match context {
            Context::Allocation => {
                let extent = self.extent(offset, len)?;
                let hole = if extent.data { 0 } else { allocation::HOLE };
                let zero = if extent.zero { allocation::ZERO } else { 0 };
                (extent.length, hole | zero)
            }
            Context::Depth => {
                let extent = self.extent(offset, len)?;
                let depth = if extent.present { extent.depth.saturating_add(1) } else { 0 };
                (extent.length, depth)
            }
            Context::Bitmap(at) => {
                let ranges = self.bitmaps.get(at).map_or(&[][..], |bitmap| &bitmap.dirty);
                let next = ranges.partition_point(|range| range.end <= offset);
                match ranges.get(next) {
                    Some(range) if range.start <= offset => (len.min(range.end - offset), 1),
                    Some(range) => (len.min(range.start - offset), 0),
                    None => (len, 0),
                }
            }
        })
    }
}
