//! When writes reach the host's disk, as a decorator.

use crate::backend::{BlockBackend, Capabilities, Extent};
use crate::options::CacheMode;
use std::io::{IoSlice, IoSliceMut, Result};
use std::sync::Arc;

/// The back end with flushes as the mode wants them.
pub fn with_cache_mode(inner: Arc<dyn BlockBackend>, mode: CacheMode) -> Arc<dyn BlockBackend> {
    match mode {
        CacheMode::WriteBack => inner,
        CacheMode::WriteThrough => Arc::new(Cached { inner, through: true }),
        CacheMode::Unsafe => Arc::new(Cached { inner, through: false }),
    }
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
