//! A file, or a block device, in memory.

use block::{BlockBackend, Capabilities, Extent};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::sync::{Arc, Mutex};

/// Largest file.
pub const FILE_MAX: usize = 16 << 20;

pub struct Memory {
    bytes: Mutex<Vec<u8>>,
    /// It is a file: it grows, and reads as zeros behind its end.
    growable: bool,
}

impl Memory {
    pub fn new(bytes: Vec<u8>, growable: bool) -> Arc<Self> {
        Arc::new(Memory { bytes: Mutex::new(bytes), growable })
    }

    /// Makes room up to `end`, if it can grow so far.
    fn grow(&self, bytes: &mut Vec<u8>, end: usize) -> Result<()> {
        if end <= bytes.len() {
            return Ok(());
        }
        if !self.growable {
            return Err(ErrorKind::InvalidInput.into());
        }
        if end > FILE_MAX {
            return Err(ErrorKind::StorageFull.into());
        }
        bytes.resize(end, 0);
        Ok(())
    }
}

impl BlockBackend for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: false, discard: true, zero_alignment: 512, growable: self.growable }
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let bytes = self.bytes.lock().unwrap();
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        for buffer in buffers {
            let there = bytes.get(at..).unwrap_or_default();
            let len = there.len().min(buffer.len());
            if len < buffer.len() && !self.growable {
                return Err(ErrorKind::InvalidInput.into());
            }
            buffer[..len].copy_from_slice(&there[..len]);
            buffer[len..].fill(0);
            at = at.saturating_add(buffer.len());
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        for buffer in buffers {
            let end = at.saturating_add(buffer.len());
            self.grow(&mut bytes, end)?;
            bytes[at..end].copy_from_slice(buffer);
            at = end;
        }
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        let len = usize::try_from(len).ok().filter(|len| *len <= FILE_MAX).ok_or(ErrorKind::StorageFull)?;
        self.write_bytes(offset, &vec![0; len])
    }
    fn resize(&self, size: u64) -> Result<()> {
        if !self.growable {
            return Err(Error::from(ErrorKind::Unsupported));
        }
        let size =
            usize::try_from(size).ok().filter(|size| *size <= FILE_MAX).ok_or(ErrorKind::StorageFull)?;
        self.bytes.lock().unwrap().resize(size, 0);
        Ok(())
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent::data(offset, len, Some(offset)))
    }
}
