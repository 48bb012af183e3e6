//! A request: the buffers of one descriptor chain.

use super::{QueueError, Ticket};
use guest_memory::{GuestMemory, MemoryError};

/// A piece of guest memory, as the driver says; nobody has checked yet that it is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A request that the driver made available. Empty buffers are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Identifies it when it is given back.
    pub ticket: Ticket,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
    /// Readable buffers that were read wholly.
    consumed: usize,
    /// All bytes that were added.
    total: u64,
}

impl Chain {
    /// An empty chain.
    pub fn new(ticket: Ticket) -> Self {
        Chain { ticket, ..Chain::default() }
    }

    /// Adds a buffer; writable ones come last (virtio 2.6.4.2), and all together have at most 4 GiB.
    pub fn add(&mut self, buffer: Buffer, writable: bool) -> Result<(), QueueError> {
        if !writable && !self.writable.is_empty() {
            return Err(QueueError::Order);
        }
        self.total += u64::from(buffer.len);
        if self.total > u64::from(u32::MAX) {
            return Err(QueueError::TooManyBytes);
        }
        if buffer.len > 0 {
            if writable { &mut self.writable } else { &mut self.readable }.push(buffer);
        }
        Ok(())
    }

    /// What the device reads and has not read yet.
    pub fn readable(&self) -> &[Buffer] {
        self.readable.get(self.consumed..).unwrap_or_default()
    }

    /// What the device writes.
    pub fn writable(&self) -> &[Buffer] {
        &self.writable
    }

    /// Number of buffers.
    pub fn buffers(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// Bytes that the device has still to read.
    pub fn readable_len(&self) -> u64 {
        total(self.readable())
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// Copies the first bytes of the readable part, and removes them from it. Returns how many there were.
    ///
    /// # Errors
    /// When a buffer is not RAM; the part before it is copied and removed.
    pub fn read(&mut self, memory: &GuestMemory, mut to: &mut [u8]) -> Result<usize, MemoryError> {
        let wanted = to.len();
        while let Some(first) = self.readable.get_mut(self.consumed).filter(|_| !to.is_empty()) {
            let (part, rest) = to.split_at_mut((first.len as usize).min(to.len()));
            memory.read(first.address, part)?;
            first.address += part.len() as u64;
            first.len -= part.len() as u32;
            self.consumed += usize::from(first.len == 0);
            to = rest;
        }
        Ok(wanted - to.len())
    }

    /// Writes to the start of the writable part; what does not fit is cut off. Returns how many bytes were written.
    ///
    /// # Errors
    /// When a buffer is not RAM; the part before it is written.
    pub fn write(&self, memory: &GuestMemory, from: &[u8]) -> Result<usize, MemoryError> {
        let mut rest = from;
        for buffer in &self.writable {
            let (part, next) = rest.split_at((buffer.len as usize).min(rest.len()));
            memory.write(buffer.address, part)?;
            rest = next;
        }
        Ok(from.len() - rest.len())
    }

    /// Takes the last byte of the writable part away, for the status of a block request: its address.
    pub fn take_last_writable(&mut self) -> Option<u64> {
        let last = self.writable.last_mut()?;
        last.len -= 1;
        let address = last.address.saturating_add(last.len.into());
        if last.len == 0 {
            self.writable.pop();
        }
        Some(address)
    }
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}
