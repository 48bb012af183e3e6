//! A request: the buffers of one descriptor chain.

use super::QueueError;
use guest_memory::GuestMemory;

/// A piece of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A request that the driver made available.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Index of its first descriptor, which identifies it in the used ring.
    pub head: u16,
    /// What the device reads.
    pub readable: Vec<Buffer>,
    /// What the device writes.
    pub writable: Vec<Buffer>,
}

impl Chain {
    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|buffer| u64::from(buffer.len)).sum()
    }

    /// Copies the first bytes of the readable part, and removes them from it. Returns how many there were.
    pub fn read(&mut self, memory: &GuestMemory, to: &mut [u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        while done < to.len() {
            let Some(first) = self.readable.first_mut() else { break };
            let part = (first.len as usize).min(to.len() - done);
            memory.read(first.address, &mut to[done..done + part])?;
            done += part;
            first.address += part as u64;
            first.len -= part as u32;
            if first.len == 0 {
                self.readable.remove(0);
            }
        }
        Ok(done)
    }

    /// Writes to the start of the writable part; what does not fit is cut off. Returns how many bytes were written.
    pub fn write(&self, memory: &GuestMemory, from: &[u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for buffer in &self.writable {
            let part = (buffer.len as usize).min(from.len() - done);
            memory.write(buffer.address, &from[done..done + part])?;
            done += part;
        }
        Ok(done)
    }

    /// Takes the last byte of the writable part away, for the status of a block request.
    pub fn take_last_writable(&mut self) -> Option<u64> {
        while self.writable.last().is_some_and(|last| last.len == 0) {
            self.writable.pop();
        }
        let last = self.writable.last_mut()?;
        last.len -= 1;
        Some(last.address + u64::from(last.len))
    }
}
