//! A queue of either layout, and what the layouts share.

use super::{CHAIN_MAX, Chain, PackedQueue, QueueError, SplitQueue};
use guest_memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};

/// Descriptor flags, the same in both layouts (virtio 2.7.5, 2.8.1).
pub(super) struct RingFlags;

impl RingFlags {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}

/// A queue's place and progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// The layout: VIRTIO_F_RING_PACKED was negotiated.
    pub packed: bool,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_index: bool,
    /// Entries; a power of two in the split layout.
    pub size: u16,
    /// Descriptor table, or the packed ring.
    pub descriptors: u64,
    /// Available ring, or the driver's event suppression.
    pub available: u64,
    /// Used ring, or the device's event suppression.
    pub used: u64,
    /// Next available entry to look at; packed: slot, and the wrap counter in bit 15.
    pub next_available: u16,
    /// Next used entry to fill; packed: as `next_available`.
    pub next_used: u16,
    /// Used entries (packed: slots) since the driver was last considered for an interrupt.
    pub unnoticed: u32,
}

impl RingState {
    /// The same place, at the start.
    pub fn started(self) -> Self {
        let start = if self.packed { PackedQueue::START } else { 0 };
        RingState { next_available: start, next_used: start, unnoticed: 0, ..self }
    }

    /// Whether a queue can have this size (virtio 2.7, 2.8.10.1), which the device limits, and this progress.
    pub fn is_sound(&self, max: u16) -> bool {
        let slot_fits = |place: u16| !self.packed || place & 0x7fff < self.size;
        let size_fits = if self.packed { self.size > 0 } else { self.size.is_power_of_two() };
        size_fits && self.size <= max && slot_fits(self.next_available) && slot_fits(self.next_used)
    }
}

/// What identifies a request when it is given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticket {
    /// Split: index of the first descriptor. Packed: buffer ID.
    pub id: u16,
    /// Slots it takes in a packed ring.
    pub span: u16,
}

/// An enabled queue.
#[derive(Debug)]
pub enum Queue {
    /// virtio 2.7.
    Split(SplitQueue),
    /// virtio 2.8.
    Packed(PackedQueue),
}

impl Queue {
    /// A queue at its rings, as far as it had come. The state is sound, see [`RingState::is_sound`].
    pub fn new(state: RingState) -> Self {
        match state.packed {
            true => Queue::Packed(PackedQueue::new(state)),
            false => Queue::Split(SplitQueue::new(state)),
        }
    }

    /// For saving.
    pub fn state(&self) -> RingState {
        match self {
            Queue::Split(queue) => queue.state(),
            Queue::Packed(queue) => queue.state(),
        }
    }

    /// The next request, or none; the driver will then notify of the next one.
    ///
    /// # Errors
    /// When the ring breaks the rules; the queue is of no use then.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        match self {
            Queue::Split(queue) => queue.pop(memory),
            Queue::Packed(queue) => queue.pop(memory),
        }
    }

    /// Gives a request back, with the number of bytes written to it.
    ///
    /// # Errors
    /// When the used ring is not in RAM.
    pub fn push_used(
        &mut self,
        memory: &GuestMemory,
        ticket: Ticket,
        written: u32,
    ) -> Result<(), QueueError> {
        match self {
            Queue::Split(queue) => queue.push_used(memory, ticket, written),
            Queue::Packed(queue) => queue.push_used(memory, ticket, written),
        }
    }

    /// Whether the driver wants an interrupt for what was used since it was last asked.
    ///
    /// # Errors
    /// When the driver's part of the ring is not in RAM.
    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        match self {
            Queue::Split(queue) => queue.wants_interrupt(memory),
            Queue::Packed(queue) => queue.wants_interrupt(memory),
        }
    }
}

/// A descriptor as it lies in RAM; what the last two halves mean depends on the layout.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub low: u16,
    pub high: u16,
}

impl Descriptor {
    /// Size in RAM.
    pub const SIZE: u32 = 16;

    pub fn read(memory: &GuestMemory, address: u64) -> Result<Self, MemoryError> {
        let mut bytes = [0; Self::SIZE as usize];
        memory.read(address, &mut bytes)?;
        let whole = u128::from_le_bytes(bytes);
        Ok(Descriptor {
            address: whole as u64,
            len: (whole >> 64) as u32,
            low: (whole >> 96) as u16,
            high: (whole >> 112) as u16,
        })
    }

    /// Entries of the indirect table that this descriptor points at.
    pub fn table_entries(&self) -> Result<u32, QueueError> {
        let entries = self.len / Self::SIZE;
        match self.len.is_multiple_of(Self::SIZE) && (1..=CHAIN_MAX).contains(&entries) {
            true => Ok(entries),
            false => Err(QueueError::Indirect { len: self.len }),
        }
    }
}
