//! What an image file offers beyond its content: facts, a check, snapshots, bitmaps.

use crate::{BlockBackend, BlockError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Result of operations on images.
pub type ImageResult<T> = Result<T, BlockError>;

/// An image: a disk's content in a file of some format.
pub trait DiskImage: BlockBackend {
    /// Facts.
    fn info(&self) -> ImageResult<ImageInfo>;
    /// Looks for contradictions in the metadata and repairs what `repair` allows. No requests may be under way.
    fn check(&self, repair: Repair) -> ImageResult<CheckReport>;
    /// Writes whole clusters compressed: `offset` is a multiple of the cluster size, `data` is one cluster (or what
    /// the disk's end leaves of it). Formats without compression write it as it is.
    fn write_compressed(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.write_bytes(offset, data)
    }
    /// Size of allocation in bytes; 1 sector or block where the format has none.
    fn cluster_size(&self) -> u64;
    /// Internal snapshots, if the format has them.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }
    /// Persistent dirty bitmaps, if the format has them.
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        None
    }
    /// The opened backing image.
    fn backing(&self) -> Option<Arc<dyn DiskImage>> {
        None
    }
    /// Writes another name of the backing file (and its format) into the image, or removes it. Content of the opened
    /// chain does not change until the image is opened again.
    fn set_backing(&self, backing: Option<(&str, &str)>) -> ImageResult<()>;
    /// Makes all clusters unallocated (the backing file shows through again), after they were committed to it.
    fn make_empty(&self) -> ImageResult<()>;
}

/// Facts about an image; the names are those `qemu-img info --output=json` uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// The file.
    pub filename: PathBuf,
    /// Name of the format.
    pub format: String,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes the file takes on its file system.
    pub actual_size: u64,
    /// Size of allocation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// Content is encrypted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// It was not closed in order.
    pub dirty_flag: bool,
    /// Name of the backing file as stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// The file that name leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<PathBuf>,
    /// The backing file's format as stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// Internal snapshots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotInfo>,
    /// What only this format has.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub format_specific: Map<String, Value>,
}

/// What a check may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    #[default]
    Nothing,
    /// Gives back space that nothing refers to.
    Leaks,
    /// Everything that can be repaired.
    All,
}

/// What a check found; the names are those of `qemu-img check --output=json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    /// Contradictions that endanger data, left in the image.
    pub corruptions: u64,
    /// Space that nothing refers to, left in the image.
    pub leaks: u64,
    /// What could not be checked.
    pub check_errors: u64,
    /// Contradictions that were repaired.
    pub corruptions_fixed: u64,
    /// Leaks that were given back.
    pub leaks_fixed: u64,
    /// Offset of the end of used space in the file.
    pub image_end_offset: u64,
    /// Clusters of the disk, with data.
    pub total_clusters: u64,
    /// Clusters that are stored.
    pub allocated_clusters: u64,
    /// Stored clusters that do not follow their neighbour.
    pub fragmented_clusters: u64,
    /// Stored clusters that are compressed.
    pub compressed_clusters: u64,
    /// One line for each finding, with file offsets; at most [`CheckReport::FINDINGS_MAX`].
    pub findings: Vec<String>,
}

impl CheckReport {
    /// Most findings that are told one by one.
    pub const FINDINGS_MAX: usize = 1000;

    /// Notes a finding.
    pub fn find(&mut self, text: impl FnOnce() -> String) {
        if self.findings.len() < Self::FINDINGS_MAX {
            self.findings.push(text());
        }
    }

    /// Nothing wrong is left.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }
}

/// A snapshot inside an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Unique identity.
    pub id: String,
    /// Name, which need not be unique.
    pub name: String,
    /// Bytes of saved VM state.
    pub vm_state_size: u64,
    /// Seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// Running time of the guest in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instruction count of a replayed guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icount: Option<u64>,
    /// Size of the disk then.
    pub disk_size: u64,
}

/// Snapshots inside an image.
pub trait Snapshots {
    /// All, oldest first.
    fn list(&self) -> ImageResult<Vec<SnapshotInfo>>;
    /// Keeps the present content under a name.
    fn create(&self, name: &str) -> ImageResult<SnapshotInfo>;
    /// Goes back to a snapshot's content; by identity, else by name.
    fn revert(&self, snapshot: &str) -> ImageResult<()>;
    /// Removes a snapshot; by identity, else by name.
    fn delete(&self, snapshot: &str) -> ImageResult<()>;
}

/// A persistent dirty bitmap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BitmapInfo {
    /// Name.
    pub name: String,
    /// Bytes of disk a bit stands for.
    pub granularity: u64,
    /// New writes are recorded.
    pub enabled: bool,
    /// It was not stored in order: its bits are not to be trusted.
    pub in_use: bool,
    /// Bytes of disk that are marked.
    pub dirty: u64,
}

/// Persistent dirty bitmaps inside an image.
pub trait Bitmaps {
    /// All.
    fn list(&self) -> ImageResult<Vec<BitmapInfo>>;
    /// Makes one; granularity in bytes, a power of two from 512 to 2 GiB.
    fn add(&self, name: &str, granularity: Option<u64>, enabled: bool) -> ImageResult<()>;
    /// Removes one.
    fn remove(&self, name: &str) -> ImageResult<()>;
    /// Unmarks everything.
    fn clear(&self, name: &str) -> ImageResult<()>;
    /// Records writes from now on, or stops that.
    fn enable(&self, name: &str, enabled: bool) -> ImageResult<()>;
    /// Marks in `name` what is marked in the bitmap with these ranges.
    fn merge(&self, name: &str, ranges: &[Range<u64>]) -> ImageResult<()>;
    /// Marked ranges of the disk in bytes, in order, not touching each other.
    fn dirty_ranges(&self, name: &str) -> ImageResult<Vec<Range<u64>>>;
}
