//! The split virtqueue (virtio 2.7): a table of descriptors, a ring of what is available, a ring of what is used.

use super::{Buffer, Chain, Descriptor, QueueError, RingFlags, RingState, Ticket, ring_at};
use guest_memory::GuestMemory;
use std::sync::atomic::{Ordering, fence};

/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY.
const NO_NOTIFY: u16 = 1;

/// A queue that is enabled.
#[derive(Debug)]
pub struct SplitQueue {
    state: RingState,
    /// The driver was told not to notify.
    quiet: bool,
}

impl SplitQueue {
    /// A queue at its rings.
    pub fn new(state: RingState) -> Self {
        SplitQueue { state, quiet: false }
    }

    /// For saving.
    pub fn state(&self) -> RingState {
        self.state
    }

    /// The next request, or none. Asks the driver for a notification before it says that there is none.
    pub(super) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if !self.is_waiting(memory)? {
            self.ask_for_notification(memory)?;
            if !self.is_waiting(memory)? {
                return Ok(None);
            }
        }
        self.ask_for_silence(memory)?;
        let slot = self.state.next_available & self.state.size.wrapping_sub(1);
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

    /// Writes avail_event or the flags; the fence orders that before the next look at the index (virtio 2.7.10).
    fn ask_for_notification(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        match self.state.event_index {
            true => {
                let avail_event = ring_at(self.state.used, 4 + 8 * u64::from(self.state.size));
                write_u16(memory, avail_event, self.state.next_available)?;
            }
            false => write_u16(memory, self.state.used, 0)?,
        }
        self.quiet = false;
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// While there is work the driver need not notify. With an event index it does so only once anyway.
    fn ask_for_silence(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        if !self.quiet && !self.state.event_index {
            write_u16(memory, self.state.used, NO_NOTIFY)?;
        }
        self.quiet = true;
        Ok(())
    }

    fn chain(&self, memory: &GuestMemory, head: u16) -> Result<Chain, QueueError> {
        let size = u32::from(self.state.size);
        let mut chain = Chain::new(Ticket { id: head, span: 1 });
        let mut table = (self.state.descriptors, size);
        let mut index = head;
        let mut left = size;
        let mut nested = false;
        loop {
            if u32::from(index) >= table.1 {
                return Err(QueueError::Index { index: index.into(), limit: table.1.saturating_sub(1) });
            }
            left = left.checked_sub(1).ok_or(QueueError::ChainTooLong)?;
            let at = ring_at(table.0, u64::from(Descriptor::SIZE) * u64::from(index));
            let descriptor = Descriptor::read(memory, at)?;
            let flags = descriptor.low;
            if flags & RingFlags::INDIRECT != 0 {
                if nested || !self.state.indirect || flags & RingFlags::NEXT != 0 {
                    return Err(QueueError::Indirect { len: descriptor.len });
                }
                let entries = descriptor.table_entries()?;
                (table, index, left) = ((descriptor.address, entries), 0, entries);
                nested = true;
                continue;
            }
            let buffer = Buffer { address: descriptor.address, len: descriptor.len };
            chain.add(buffer, flags & RingFlags::WRITE != 0)?;
            if flags & RingFlags::NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.high;
        }
    }

    /// Gives a request back: the entry first, then the index that publishes it.
    pub(super) fn push_used(
        &mut self,
        memory: &GuestMemory,
        ticket: Ticket,
        written: u32,
    ) -> Result<(), QueueError> {
        let slot = self.state.next_used & self.state.size.wrapping_sub(1);
        let entry = u64::from(ticket.id) | u64::from(written) << 32;
        memory.write(ring_at(self.state.used, 4 + 8 * u64::from(slot)), &entry.to_le_bytes())?;
        let next = self.state.next_used.wrapping_add(1);
        write_u16(memory, ring_at(self.state.used, 2), next)?;
        self.state.next_used = next;
        self.state.unnoticed = self.state.unnoticed.saturating_add(1);
        Ok(())
    }

    /// virtio 2.7.7: the flag, or whether the index passed used_event.
    pub(super) fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        fence(Ordering::SeqCst);
        let since = std::mem::take(&mut self.state.unnoticed);
        if since == 0 {
            return Ok(false);
        }
        if !self.state.event_index {
            return Ok(read_u16(memory, self.state.available)? & NO_INTERRUPT == 0);
        }
        let event = read_u16(memory, ring_at(self.state.available, 4 + 2 * u64::from(self.state.size)))?;
        let behind = self.state.next_used.wrapping_sub(event).wrapping_sub(1);
        Ok(u32::from(behind) < since)
    }
}

fn read_u16(memory: &GuestMemory, address: u64) -> Result<u16, QueueError> {
    Ok(memory.atomic_u16(address)?.load(Ordering::Acquire))
}

fn write_u16(memory: &GuestMemory, address: u64, value: u16) -> Result<(), QueueError> {
    memory.atomic_u16(address)?.store(value, Ordering::Release);
    memory.note_write(address, 2);
    Ok(())
}
