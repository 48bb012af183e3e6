//! Virtual disks.
//!
//! A [`BlockBackend`] is a disk's content: positional, vectored, shared by all queues of a device. Raw files are
//! [`RawFile`]. The crate knows nothing of guests; a device translates its requests into these calls.

mod backend;
mod lock;
mod raw;

pub use backend::{BlockBackend, SECTOR_SIZE};
pub use raw::{BlockError, RawFile};
