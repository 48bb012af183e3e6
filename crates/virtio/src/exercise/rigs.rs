//! The devices of this crate with stubs behind them.

use crate::VirtioDevice;
use crate::blk::Block;
use crate::console::{Console, ConsoleDevice};
use crate::entropy::Entropy;
use block::{BlockBackend, Capabilities, Extent, SECTOR_SIZE, Transfer};
use parking_lot::Mutex;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::sync::Arc;

/// A disk in memory, which counts its flushes and fails when told to.
#[derive(Default)]
pub struct MemoryDisk {
    /// Its content.
    pub content: Mutex<Vec<u8>>,
    /// Flushes so far.
    pub flushes: Mutex<u32>,
    /// Discarded ranges so far.
    pub discarded: Mutex<Vec<(u64, u64)>>,
    /// Writes are refused.
    pub read_only: bool,
    /// What every call fails with.
    pub failure: Mutex<Option<ErrorKind>>,
    /// How many transfers each call had, for a disk that does several together.
    pub batches: Mutex<Option<Vec<usize>>>,
}

impl MemoryDisk {
    /// A disk of zeros.
    pub fn new(sectors: u64) -> Arc<Self> {
        let content = Mutex::new(vec![0; (sectors * SECTOR_SIZE) as usize]);
        Arc::new(MemoryDisk { content, ..MemoryDisk::default() })
    }

    fn range<R>(&self, offset: u64, len: u64, use_it: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        if let Some(kind) = *self.failure.lock() {
            return Err(kind.into());
        }
        let mut content = self.content.lock();
        let range = offset as usize..(offset + len) as usize;
        let part = content.get_mut(range).ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
        Ok(use_it(part))
    }
}

impl BlockBackend for MemoryDisk {
    fn size(&self) -> u64 {
        self.content.lock().len() as u64
    }
    fn capabilities(&self) -> Capabilities {
        let read_only = self.read_only;
        Capabilities { read_only, discard: !read_only, zero_alignment: SECTOR_SIZE, growable: false }
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        self.range(offset, len, |part| {
            let mut rest = &*part;
            for buffer in buffers {
                let (head, tail) = rest.split_at(buffer.len());
                buffer.copy_from_slice(head);
                rest = tail;
            }
        })
    }
    fn batches(&self) -> bool {
        self.batches.lock().is_some()
    }
    fn transfer(&self, batch: &mut [&mut Transfer<'_>]) {
        self.batches.lock().iter_mut().for_each(|sizes| sizes.push(batch.len()));
        batch.iter_mut().for_each(|transfer| transfer.run(self));
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let len = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        self.range(offset, len, |part| {
            let mut rest = part;
            for buffer in buffers {
                let (head, tail) = rest.split_at_mut(buffer.len());
                head.copy_from_slice(buffer);
                rest = tail;
            }
        })
    }
    fn flush(&self) -> Result<()> {
        self.range(0, 0, |_| *self.flushes.lock() += 1)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.range(offset, len, |_| self.discarded.lock().push((offset, len)))
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        self.range(offset, len, |part| part.fill(0))
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.range(offset, len, |part| Extent::data(offset, part.len() as u64, None))
    }
    fn resize(&self, size: u64) -> Result<()> {
        self.content.lock().resize(size as usize, 0);
        Ok(())
    }
}

/// Bytes that count up.
#[derive(Default)]
pub struct Counting(Mutex<u8>);

impl guest_clock::Entropy for Counting {
    fn fill(&self, buffer: &mut [u8]) {
        let mut next = self.0.lock();
        for byte in buffer {
            *next = next.wrapping_add(1);
            *byte = *next;
        }
    }
}

/// A disk of 64 sectors with two queues.
pub fn block() -> Box<dyn VirtioDevice> {
    Box::new(Block::new(MemoryDisk::new(64), "rig", 2))
}

/// An entropy device.
pub fn entropy() -> Box<dyn VirtioDevice> {
    Box::new(Entropy::new(Arc::new(Counting::default())))
}

/// A console whose output goes nowhere.
pub fn console() -> Box<dyn VirtioDevice> {
    Box::new(ConsoleDevice(Console::new(Box::new(|_| ()))))
}

/// A way to build a device.
pub type Build = fn() -> Box<dyn VirtioDevice>;

/// All devices, by name.
pub const DEVICES: [(&str, Build); 3] = [("block", block), ("console", console), ("entropy", entropy)];
