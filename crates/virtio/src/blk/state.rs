//! What is saved of a block device. Its requests are never in flight then.

use serde::{Deserialize, Serialize};

/// Kind of the record.
pub const KIND: &str = "virtio-blk";
/// Version of its layout.
pub const VERSION: u32 = 1;

/// The state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Size of the disk in bytes: the guest knows it.
    pub size: u64,
    /// The cache mode that the driver chose: writes are complete before they are flushed.
    pub writeback: bool,
}
