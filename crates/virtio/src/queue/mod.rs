//! Virtqueues (virtio 2.6–2.7).
//!
//! The rings lie in guest RAM and the guest may change them at any time, so everything read from them is checked
//! after it was copied: indices, lengths, flags, the order of a chain's buffers, and its length. A ring that breaks
//! the rules yields a [`QueueError`]; the transport then asks for a reset (virtio 2.1.2) and serves no more.

mod chain;
mod split;
#[cfg(test)]
mod tests;

pub use chain::{Buffer, Chain};
pub use split::{SplitQueue, SplitQueueState};

use guest_memory::MemoryError;
use thiserror::Error;

/// How a ring breaks the rules.
#[derive(Debug, Error)]
pub enum QueueError {
    /// An address outside of RAM.
    #[error("A ring or buffer lies outside of RAM")]
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
    /// An indirect table inside another, beside a next flag, or of an odd size.
    #[error("An indirect descriptor table of {len} bytes is not allowed here")]
    Indirect {
        /// Size of the table.
        len: u32,
    },
    /// A readable buffer behind a writable one (virtio 2.7.4.2).
    #[error("A device-readable buffer follows a device-writable one")]
    Order,
}
