//! Virtqueues (virtio 2.6–2.8).
//!
//! The rings lie in guest RAM and the guest may change them at any time, so everything read from them is checked
//! after it was copied: indices, lengths, flags, the order of a chain's buffers, and its length. A ring that breaks
//! the rules yields a [`QueueError`]; the transport then asks for a reset (virtio 2.1.2) and serves no more.
//! Whether a *buffer* lies in RAM is seen when it is used, because most device types can answer that.
//!
//! # Notifications
//! Device and driver each write "wake me from here on" and then look once more, and each publishes work and then
//! reads the other's wish. Both sides need a full fence between their write and their read, or both could read
//! old values and sleep. [`Queue::pop`] and [`Queue::wants_interrupt`] hold the device's two fences.

mod chain;
mod packed;
mod split;
#[cfg(test)]
mod tests;
mod virtqueue;

pub use chain::{Buffer, Chain};
pub use packed::PackedQueue;
pub use split::SplitQueue;
pub use virtqueue::{Queue, RingState, Ticket};

use guest_memory::MemoryError;
use thiserror::Error;
use virtqueue::{Descriptor, RingFlags};

/// Buffers of a chain at most. The specification's limit is the queue's size (virtio 2.6.3.1); drivers that made a
/// queue smaller are known to keep larger indirect tables, so those get this much.
pub const CHAIN_MAX: u32 = 1024;

/// How a ring breaks the rules.
#[derive(Debug, Error)]
pub enum QueueError {
    /// An address outside of RAM, or not aligned as rings must be.
    #[error("A ring or buffer lies outside of RAM or is not aligned")]
    Memory(#[from] MemoryError),
    /// A descriptor index that is not in its table, an available index that ran ahead by more than the queue.
    #[error("Index {index} exceeds the queue's {limit}")]
    Index {
        /// As found.
        index: u32,
        /// What it must not exceed.
        limit: u32,
    },
    /// A chain that is longer than the queue or loops.
    #[error("A descriptor chain is longer than the queue or loops")]
    ChainTooLong,
    /// A chain of more than 4 GiB (virtio 2.7.5.2, 2.8.7).
    #[error("A descriptor chain has more than 4 GiB")]
    TooManyBytes,
    /// An indirect table that was not negotiated, lies inside another, stands beside a next flag, or is of an odd
    /// size.
    #[error("An indirect descriptor table of {len} bytes is not allowed here")]
    Indirect {
        /// Size of the table.
        len: u32,
    },
    /// A readable buffer behind a writable one (virtio 2.7.4.2).
    #[error("A device-readable buffer follows a device-writable one")]
    Order,
}

/// An address in a ring. The guest chooses where rings lie: an address past the end of the address space becomes its
/// last byte, which is never RAM.
fn ring_at(base: u64, offset: u64) -> u64 {
    base.saturating_add(offset)
}
