//! qcow2, versions 2 and 3.
//!
//! A guest offset goes through two levels of tables, L1 and L2, to a cluster of the file; each cluster has a refcount,
//! because snapshots share clusters. `bits` has the formats of the entries, [`header`] the header.
//!
//! **Who may do what at the same time.** Reads, and writes to clusters this image owns alone, look an entry up under a
//! short lock and then transfer data with no lock at all. Everything that changes a mapping
//! - holds a [flight](crate::flights) over its guest clusters, so that others who want the same ones wait, and
//! - changes tables and refcounts, in memory, under the [`Meta`] lock; data are copied and written before that,
//!   without it.
//!
//! What concerns the whole image (snapshots, resize, check) takes the `gate` alone; each request holds it shared.
//!
//! **What survives a power loss.** Metadata change in memory only; [`flush`] writes them in stages with a barrier
//! between each: data and refcounts; then the refcount table; then L2 tables; then L1. An entry never refers to what
//! could be lost. A cluster that loses a reference keeps its refcount, and is not used again, until the tables without
//! the reference are safe. So a crash leaves at most clusters with a refcount too high: leaks. Operations that have to
//! change more than that at once, in version 3, set the dirty bit meanwhile.

mod bitmap_ranges;
mod bitmaps;
mod bits;
mod check;
mod compress;
mod create;
mod discard;
mod flush;
mod header;
mod image;
mod l1;
mod map;
mod measure;
mod open;
mod read;
mod refcount;
mod resize;
mod snapshot;
mod tables;
mod trace;
mod words;
mod write;

pub(crate) use create::Qcow2Format;
pub use measure::Measure;

use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::flights::Flights;
use crate::image::{DiskImage, ImageResult};
use bitmaps::BitmapStore;
use bits::Geometry;
use header::Header;
use l1::L1;
use parking_lot::{Mutex, RwLock};
use refcount::Refcounts;
use std::io::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use tables::Tables;

/// So many clusters may wait to be freed before the metadata are written.
const FREES_MAX: usize = 4096;

/// An opened qcow2 image.
pub struct Qcow2 {
    path: PathBuf,
    file: Arc<dyn BlockBackend>,
    /// Where guest data are: `file`, or the external data file.
    data: Arc<dyn BlockBackend>,
    backing: Option<Arc<dyn DiskImage>>,
    geometry: Geometry,
    /// The image names a backing file, whether or not it is open.
    backing_named: bool,
    /// The external data file is a raw image of the disk.
    raw_external: bool,
    /// 0 deflate, 1 zstd.
    compression: u8,
    /// Guest data are encrypted in the file.
    encrypted: bool,
    /// They are, and nobody gave the passphrase: only metadata can be read.
    locked: bool,
    read_only: bool,
    keep_discarded: bool,
    size: AtomicU64,
    l1: RwLock<L1>,
    tables: Tables,
    flights: Flights,
    gate: RwLock<()>,
    meta: Mutex<Meta>,
    /// One flush at a time.
    flushing: Mutex<()>,
    decompressed: Mutex<compress::Decompressed>,
    bitmaps: Mutex<BitmapStore>,
    /// Some bitmap records writes.
    recording: AtomicBool,
    /// Metadata turned out to be wrong: nothing is written any more.
    broken: AtomicBool,
    /// The image was written to in this session.
    written: AtomicBool,
}

/// What the metadata lock protects. L1 and L2 tables are changed under it, too.
struct Meta {
    header: Header,
    refcounts: Refcounts,
    /// Clusters that lost a reference which is still in the file.
    frees: Vec<Free>,
    /// Where the next compressed cluster may go, in a cluster that holds some already.
    compressed_end: u64,
}

/// References that are gone from the tables in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Free {
    /// First host cluster.
    cluster: u64,
    count: u64,
    /// The space may be given back to the file system.
    data: bool,
}

impl Qcow2 {
    /// An error about a field of the image.
    fn wrong(&self, offset: u64, field: &'static str, problem: impl std::fmt::Display) -> Error {
        BlockError::metadata(&self.path, offset, field, problem).into()
    }

    fn cluster(&self) -> u64 {
        self.geometry.cluster()
    }

    /// An I/O error as the image's; one that is already a story of its own stays.
    fn tell<T>(&self, action: &'static str, result: Result<T>) -> ImageResult<T> {
        result.map_err(|error| as_block_error(error, &self.path, action))
    }
}

/// The [`BlockError`] inside an I/O error, or one made of it.
fn as_block_error(error: Error, path: &std::path::Path, action: &'static str) -> BlockError {
    if error.get_ref().is_some_and(|inner| inner.is::<BlockError>()) {
        let kind = error.kind();
        if let Some(Ok(inner)) = error.into_inner().map(|inner| inner.downcast::<BlockError>()) {
            return *inner;
        }
        return BlockError::io(path, action, kind.into());
    }
    BlockError::io(path, action, error)
}
