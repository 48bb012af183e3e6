//! Numbers and state of the x86-64 architecture: no logic, no I/O, known to everybody, knowing nobody.
//!
//! Sources: Intel SDM volumes 1–4 (cited as "SDM 3A 2.5") and AMD APM volume 2.

pub mod bits;
pub mod exception;
pub mod lapic;
pub mod msr;
mod start_up;
pub mod state;

pub use bits::{Cr0, Cr4, Efer, PageFlags, RFlags};
pub use exception::{Exception, Vector};
pub use lapic::LapicState;
pub use state::{
    CpuState, DescriptorTable, MpState, MsrValue, PendingEvents, PendingException, PendingInterrupt, Segment,
    SegmentAttributes, Segments, XsaveArea,
};

/// Size of the smallest page, in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
