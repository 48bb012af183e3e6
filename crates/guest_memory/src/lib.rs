//! Guest RAM.
//!
//! RAM is a few regions of guest-physical address space, each one memfd mapping in this process. Everybody
//! reads and writes it with volatile or atomic accesses, because the guest does so at the same time: a value
//! read twice may differ.
//!
//! Every page has a byte of [`tracker::PageTracker`] flags. Whoever writes guest RAM, a device or a software
//! CPU, writes first and looks at the byte after; a non-zero byte means that somebody wants to know:
//! `CODE` (a software CPU has decoded instructions from the page) and `LOG` (a dirty log is on). The pairing
//! with the reader's side is described in `tracker`.

mod mapping;
mod populated;
pub mod tracker;

pub use mapping::{GuestMemory, MemoryError, Region, announce_barriers};
pub use tracker::PageTracker;

/// Size of a tracked page, in bytes.
pub const PAGE_SIZE: u64 = 4096;
