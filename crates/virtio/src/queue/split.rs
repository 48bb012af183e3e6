//! The split virtqueue (virtio 2.7).

use super::{Buffer, Chain, QueueError};
use guest_memory::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{Ordering, fence};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
const DESCRIPTOR_SIZE: u64 = 16;

/// A queue's place and progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitQueueState {
    /// Entries, a power of two.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
    /// Next available entry to look at.
    pub next_available: u16,
    /// Next used entry to fill.
    pub next_used: u16,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_index: bool,
    /// Used index when the driver was last notified.
    pub notified: u16,
}

/// A queue that is enabled.
#[derive(Debug)]
pub struct SplitQueue {
    state: SplitQueueState,
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl SplitQueue {
    /// A queue at its rings.
    pub fn new(state: SplitQueueState) -> Self {
        SplitQueue { state }
    }

    /// For saving.
    pub fn state(&self) -> SplitQueueState {
        self.state
    }

    /// The next request, or none. Asks the driver for a notification before it says that there is none.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if !self.is_waiting(memory)? {
            self.ask_for_notification(memory)?;
            if !self.is_waiting(memory)? {
                return Ok(None);
            }
        }
        let slot = self.state.next_available & (self.state.size - 1);
        let head = read_u16(memory, ring_at(self.state.available, 4 + 2 * u64::from(slot)))?;
        let chain = self.chain(memory, head)?;
        self.state.next_available = self.state.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    fn is_waiting(&self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let index = memory.atomic_u16(ring_at(self.state.available, 2))?.load(Ordering::Acquire);
        let ahead = index.wrapping_sub(self.state.next_available);
        if ahead > self.state.size {
            return Err(QueueError::Index { index: index.into(), limit: self.state.size.into() });
        }
        Ok(ahead != 0)
    }

    /// Writes avail_event; the fence orders it before the next look at the index (virtio 2.7.7.2).
    fn ask_for_notification(&self, memory: &GuestMemory) -> Result<(), QueueError> {
        if self.state.event_index {
            let avail_event = ring_at(self.state.used, 4 + 8 * u64::from(self.state.size));
            memory.write(avail_event, &self.state.next_available.to_le_bytes())?;
            fence(Ordering::SeqCst);
        }
        Ok(())
    }

    fn chain(&self, memory: &GuestMemory, head: u16) -> Result<Chain, QueueError> {
        let size = u32::from(self.state.size);
        let mut chain = Chain { head, ..Chain::default() };
        let mut table = (self.state.descriptors, size);
        let mut index = head;
        let mut left = size;
        let mut nested = false;
        loop {
            if u32::from(index) >= table.1 {
                return Err(QueueError::Index { index: index.into(), limit: table.1 - 1 });
            }
            left = left.checked_sub(1).ok_or(QueueError::ChainTooLong)?;
            let descriptor = read_descriptor(memory, ring_at(table.0, DESCRIPTOR_SIZE * u64::from(index)))?;
            if descriptor.flags & INDIRECT != 0 {
                let len = descriptor.len;
                let entries = len / DESCRIPTOR_SIZE as u32;
                let odd = !len.is_multiple_of(DESCRIPTOR_SIZE as u32) || entries == 0 || entries > size;
                if nested || odd || descriptor.flags & NEXT != 0 {
                    return Err(QueueError::Indirect { len });
                }
                (table, index, left) = ((descriptor.address, entries), 0, entries);
                nested = true;
                continue;
            }
            push(memory, &mut chain, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }

    /// Gives a request back, with the number of bytes written to it.
    pub fn push_used(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
        let slot = self.state.next_used & (self.state.size - 1);
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        entry[4..].copy_from_slice(&written.to_le_bytes());
        memory.write(ring_at(self.state.used, 4 + 8 * u64::from(slot)), &entry)?;
        self.state.next_used = self.state.next_used.wrapping_add(1);
        memory.atomic_u16(ring_at(self.state.used, 2))?.store(self.state.next_used, Ordering::Release);
        memory.note_write(ring_at(self.state.used, 2), 2);
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was used since it was last asked (virtio 2.7.7).
    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.state.notified, self.state.next_used);
        if old == self.state.next_used {
            return Ok(false);
        }
        if !self.state.event_index {
            return Ok(read_u16(memory, self.state.available)? & AVAIL_NO_INTERRUPT == 0);
        }
        let event = read_u16(memory, ring_at(self.state.available, 4 + 2 * u64::from(self.state.size)))?;
        let new = self.state.next_used;
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }
}

/// Guests choose ring addresses freely; a sum that would wrap is refused by the access, as any address outside of RAM.
fn ring_at(base: u64, offset: u64) -> u64 {
    base.saturating_add(offset)
}

fn push(memory: &GuestMemory, chain: &mut Chain, descriptor: Descriptor) -> Result<(), QueueError> {
    memory.host_range(descriptor.address, descriptor.len.into())?;
    let buffer = Buffer { address: descriptor.address, len: descriptor.len };
    if descriptor.flags & WRITE != 0 {
        chain.writable.push(buffer);
    } else if chain.writable.is_empty() {
        chain.readable.push(buffer);
    } else {
        return Err(QueueError::Order);
    }
    Ok(())
}

fn read_u16(memory: &GuestMemory, address: u64) -> Result<u16, QueueError> {
    let mut bytes = [0; 2];
    memory.read(address, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

fn read_descriptor(memory: &GuestMemory, address: u64) -> Result<Descriptor, QueueError> {
    let mut bytes = [0; 16];
    memory.read(address, &mut bytes)?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let second = word(8);
    Ok(Descriptor {
        address: word(0),
        len: second as u32,
        flags: (second >> 32) as u16,
        next: (second >> 48) as u16,
    })
}
