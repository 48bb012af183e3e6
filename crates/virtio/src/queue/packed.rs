//! The packed virtqueue (virtio 2.8): one ring of descriptors that driver and device overwrite in turn.
//!
//! A place in the ring is a slot and a wrap counter, which is kept in bit 15 as the event suppression structure
//! does (virtio 2.8.14). A descriptor is available if its AVAIL bit equals the wrap counter and its USED bit does
//! not; the device gives a chain back by one descriptor that has both equal, and skips the chain's other slots.

use super::{Buffer, Chain, Descriptor, QueueError, RingFlags, RingState, Ticket, ring_at};
use guest_memory::GuestMemory;
use std::sync::atomic::{Ordering, fence};

const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Wrap counter in a place.
const WRAP: u16 = 1 << 15;

/// Event suppression flags (virtio 2.8.14).
const EVENT_ENABLE: u16 = 0;
const EVENT_DISABLE: u16 = 1;
const EVENT_AT_DESCRIPTOR: u16 = 2;

/// A queue that is enabled.
#[derive(Debug)]
pub struct PackedQueue {
    state: RingState,
    /// The driver was told not to notify.
    quiet: bool,
}

impl PackedQueue {
    /// Where a new queue starts: slot 0, wrap counter 1 (virtio 2.8.1).
    pub const START: u16 = WRAP;

    /// A queue at its ring.
    pub fn new(state: RingState) -> Self {
        PackedQueue { state, quiet: false }
    }

    /// For saving.
    pub fn state(&self) -> RingState {
        self.state
    }

    /// The next request, or none. Asks the driver for a notification before it says that there is none.
    pub(super) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if !self.is_waiting(memory)? {
            let flags = if self.state.event_index { EVENT_AT_DESCRIPTOR } else { EVENT_ENABLE };
            self.write_suppression(memory, flags)?;
            self.quiet = false;
            fence(Ordering::SeqCst);
            if !self.is_waiting(memory)? {
                return Ok(None);
            }
        }
        if !self.quiet {
            self.write_suppression(memory, EVENT_DISABLE)?;
            self.quiet = true;
        }
        let chain = self.chain(memory)?;
        self.state.next_available = self.advanced(self.state.next_available, chain.ticket.span);
        Ok(Some(chain))
    }

    fn descriptor_at(&self, place: u16) -> u64 {
        ring_at(self.state.descriptors, u64::from(Descriptor::SIZE) * u64::from(place & !WRAP))
    }

    fn is_waiting(&self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let place = self.state.next_available;
        let flags = memory.atomic_u16(ring_at(self.descriptor_at(place), 14))?.load(Ordering::Acquire);
        let wrap = place & WRAP != 0;
        Ok((flags & AVAILABLE != 0) == wrap && (flags & USED != 0) != wrap)
    }

    /// Place and flags in one store, so that the driver never sees one without the other.
    fn write_suppression(&self, memory: &GuestMemory, flags: u16) -> Result<(), QueueError> {
        let word = u32::from(self.state.next_available) | u32::from(flags) << 16;
        memory.atomic_u32(self.state.used)?.store(word, Ordering::Release);
        memory.note_write(self.state.used, 4);
        Ok(())
    }

    fn advanced(&self, place: u16, slots: u16) -> u16 {
        let slot = u32::from(place & !WRAP) + u32::from(slots);
        match slot.checked_sub(self.state.size.into()) {
            Some(rest) => (rest as u16 & !WRAP) | (!place & WRAP),
            None => slot as u16 | place & WRAP,
        }
    }

    fn chain(&self, memory: &GuestMemory) -> Result<Chain, QueueError> {
        let mut chain = Chain::default();
        let mut place = self.state.next_available;
        for span in 1..=self.state.size {
            let descriptor = Descriptor::read(memory, self.descriptor_at(place))?;
            // In the ring, the buffer ID lies where a split ring has the flags, and the flags where it has `next`.
            let (id, flags) = (descriptor.low, descriptor.high);
            if flags & RingFlags::INDIRECT != 0 {
                // A table is a chain by itself here (virtio 2.8.8).
                if span != 1 || !self.state.indirect || flags & RingFlags::NEXT != 0 {
                    return Err(QueueError::Indirect { len: descriptor.len });
                }
                add_table(memory, descriptor, &mut chain)?;
            } else {
                let buffer = Buffer { address: descriptor.address, len: descriptor.len };
                chain.add(buffer, flags & RingFlags::WRITE != 0)?;
            }
            if flags & RingFlags::NEXT == 0 {
                chain.ticket = Ticket { id, span };
                return Ok(chain);
            }
            place = self.advanced(place, 1);
        }
        Err(QueueError::ChainTooLong)
    }

    /// Gives a request back: length and ID first, then the flags that publish them.
    pub(super) fn push_used(
        &mut self,
        memory: &GuestMemory,
        ticket: Ticket,
        written: u32,
    ) -> Result<(), QueueError> {
        let place = self.state.next_used;
        let at = self.descriptor_at(place);
        memory.write(ring_at(at, 8), &written.to_le_bytes())?;
        memory.write(ring_at(at, 12), &ticket.id.to_le_bytes())?;
        let wrap = if place & WRAP != 0 { AVAILABLE | USED } else { 0 };
        let flags = wrap | if written > 0 { RingFlags::WRITE } else { 0 };
        memory.atomic_u16(ring_at(at, 14))?.store(flags, Ordering::Release);
        memory.note_write(ring_at(at, 14), 2);
        self.state.next_used = self.advanced(place, ticket.span);
        self.state.unnoticed = self.state.unnoticed.saturating_add(ticket.span.into());
        Ok(())
    }

    /// virtio 2.8.14: always, never, or whether the ring passed the driver's descriptor.
    pub(super) fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        fence(Ordering::SeqCst);
        let since = std::mem::take(&mut self.state.unnoticed);
        if since == 0 {
            return Ok(false);
        }
        let word = memory.atomic_u32(self.state.available)?.load(Ordering::Acquire);
        let (event, flags) = (word as u16, (word >> 16) as u16 & 3);
        if flags != EVENT_AT_DESCRIPTOR || !self.state.event_index {
            return Ok(flags != EVENT_DISABLE);
        }
        let (place, size) = (self.state.next_used, i64::from(self.state.size));
        let new = i64::from(place & !WRAP);
        let other_lap = if (event ^ place) & WRAP != 0 { size } else { 0 };
        let wanted = i64::from(event & !WRAP) - other_lap;
        Ok(i64::from(since) > size || (new - i64::from(since)..new).contains(&wanted))
    }
}

/// All entries of an indirect table belong to the chain, in order (virtio 2.8.8).
fn add_table(memory: &GuestMemory, table: Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
    for entry in 0..table.table_entries()? {
        let at = ring_at(table.address, u64::from(entry * Descriptor::SIZE));
        let descriptor = Descriptor::read(memory, at)?;
        if descriptor.high & RingFlags::INDIRECT != 0 {
            return Err(QueueError::Indirect { len: descriptor.len });
        }
        let buffer = Buffer { address: descriptor.address, len: descriptor.len };
        chain.add(buffer, descriptor.high & RingFlags::WRITE != 0)?;
    }
    Ok(())
}
