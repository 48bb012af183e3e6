//! Virtual disks.
//!
//! A [`BlockBackend`] is a disk's content: positional, vectored, shared by all queues of a device. A [`DiskImage`] is
//! one that lives in a file of some format, and knows more: facts, a check, snapshots, bitmaps. [`open`] leads from a
//! path and a stated format to an image; the formats are [`Driver`]s. The crate knows nothing of guests; a device
//! translates its requests into these calls.
//!
//! ```text
//! device ─► BlockBackend: throttle, … ─► DiskImage: qcow2, … ─► BlockBackend: RawFile ─► host
//!                                            └─► backing DiskImage ─► …
//! ```

mod alignment;
mod backend;
mod buffers;
mod cache_mode;
mod copy;
mod crc32c;
mod dmg;
mod error;
mod faults;
mod flights;
mod format;
mod image;
mod live;
mod lock;
pub mod luks;
pub mod lvm;
mod mapped;
mod options;
mod partitions;
pub mod pool;
mod qcow2;
mod raw;
mod throttle;
mod transfer;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

pub use alignment::ByteAligned;
pub use backend::{BlockBackend, Capabilities, Extent, SECTOR_SIZE};
pub use cache_mode::{with_cache_mode, without_flushes};
pub use copy::{CopyOptions, copy, extents, is_zero};
pub use crc32c::Crc32c;
pub use error::BlockError;
pub use faults::{FaultOperation, FaultRule, Faulty};
pub use format::{Driver, create, driver, drivers, open, open_backing, probe, referred_file, with_causes};
pub use image::{
    BitmapInfo, Bitmaps, CheckReport, DiskImage, ImageInfo, ImageResult, Repair, SnapshotInfo, Snapshots,
};
pub use live::{DiskCounts, GRAIN, Job, JobKind, JobOrder, JobReport, JobStatus, Layer, LiveDisk};
pub use options::{
    Aio, BackingPolicy, CacheMode, CreateOptions, OpenOptions, OpenedBacking, Preallocation, parse_size,
    read_key_file, switch,
};
pub use partitions::{Label, Partition, PartitionTable, file_system, partitions};
pub use qcow2::{Measure, Qcow2};
pub use raw::{RawFile, RawImage, io_uring_refusal};
pub use throttle::{Limits, Rate, ThrottleGroup, Throttled};
pub use transfer::{Buffers, Transfer};
