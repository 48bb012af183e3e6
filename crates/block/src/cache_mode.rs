//! When writes reach the host's disk, as a decorator.

use crate::backend::{BlockBackend, Capabilities, Extent};
use crate::options::CacheMode;
use crate::transfer::Transfer;
use std::io::{Error, IoSlice, IoSliceMut, Result};
use std::sync::Arc;

/// The back end with a flush after every change, if the mode wants that. The rest of a mode is a matter of how the file
/// below is opened ([`crate::OpenOptions::cache`]); [`without_flushes`] is for what is no file.
pub fn with_cache_mode(inner: Arc<dyn BlockBackend>, mode: CacheMode) -> Arc<dyn BlockBackend> {
    if mode.flushes_writes() { Arc::new(Cached { inner, through: true }) } else { inner }
}

/// The back end without flushes: [`CacheMode::Unsafe`] for one that is no file, such as an export.
pub fn without_flushes(inner: Arc<dyn BlockBackend>) -> Arc<dyn BlockBackend> {
    Arc::new(Cached { inner, through: false })
}

struct Cached {
    inner: Arc<dyn BlockBackend>,
    /// Flushes follow every change; else none is made at all.
    through: bool,
}

impl Cached {
    fn after(&self, done: Result<()>) -> Result<()> {
        done?;
        self.flush()
    }
}

impl BlockBackend for Cached {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.inner.read_at(offset, buffers)
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.after(self.inner.write_at(offset, buffers))
    }
    fn batches(&self) -> bool {
        self.inner.batches()
    }
    fn transfer(&self, batch: &mut [&mut Transfer<'_>]) {
        self.inner.transfer(batch);
        if self.through && batch.iter().any(|transfer| transfer.is_write() && transfer.result.is_ok()) {
            // One flush is for all of them, and none is complete without it.
            if let Err(error) = self.flush() {
                for transfer in batch.iter_mut().filter(|transfer| transfer.is_write()) {
                    transfer.result = Err(Error::new(error.kind(), error.to_string()));
                }
            }
        }
    }
    fn flush(&self) -> Result<()> {
        if self.through { self.inner.flush() } else { Ok(()) }
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.after(self.inner.discard(offset, len))
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.after(self.inner.write_zeroes(offset, len, unmap))
    }
    fn resize(&self, size: u64) -> Result<()> {
        self.after(self.inner.resize(size))
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.inner.block_status(offset, len)
    }
}
