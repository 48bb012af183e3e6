//! The trait.

use std::io::{IoSlice, IoSliceMut, Result};

/// Unit of disk sizes and of request offsets, in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// A disk's content. Offsets and lengths are in bytes; ranges beyond [`BlockBackend::size`] are errors of kind
/// `InvalidInput`. A short transfer does not exist: all or an error.
pub trait BlockBackend: Send + Sync {
    /// Size in bytes, a multiple of [`SECTOR_SIZE`].
    fn size(&self) -> u64;
    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;
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
    /// Changes the size in bytes.
    fn resize(&self, size: u64) -> Result<()>;
}
