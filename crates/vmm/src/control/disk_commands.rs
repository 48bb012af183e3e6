//! What can be asked of a running machine's disks, and of the jobs at work on them.

use block::JobReport;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Something to be done with a disk. Sizes and speeds are in bytes (a second).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DiskCommand {
    /// Make it larger; the guest is told.
    Resize {
        /// The disk.
        disk: String,
        /// Its new size, a multiple of 512.
        size: u64,
    },
    /// List the snapshots inside its image.
    Snapshots {
        /// The disk.
        disk: String,
    },
    /// Take a snapshot inside its image.
    SnapshotCreate {
        /// The disk.
        disk: String,
        /// The snapshot's name.
        name: String,
    },
    /// Remove a snapshot inside its image.
    SnapshotDelete {
        /// The disk.
        disk: String,
        /// The snapshot, by identity or name.
        name: String,
    },
    /// Take an external snapshot: a new qcow2 image over the present one takes all changes from here on.
    Overlay {
        /// The disk.
        disk: String,
        /// The new image, which must not exist.
        path: PathBuf,
    },
    /// List the dirty bitmaps of its image.
    Bitmaps {
        /// The disk.
        disk: String,
    },
    /// Add a dirty bitmap that records changes from here on.
    BitmapAdd {
        /// The disk.
        disk: String,
        /// The bitmap's name.
        name: String,
    },
    /// Remove a dirty bitmap.
    BitmapRemove {
        /// The disk.
        disk: String,
        /// The bitmap.
        name: String,
    },
    /// Copy it and follow its changes.
    Mirror {
        /// The disk.
        disk: String,
        /// Where to.
        target: JobTarget,
        /// Bytes a second at most; 0: no limit.
        #[serde(default)]
        speed: u64,
    },
    /// Copy it as it is now.
    Backup {
        /// The disk.
        disk: String,
        /// Where to.
        target: JobTarget,
        /// A bitmap that starts anew with the backup.
        #[serde(default)]
        bitmap: Option<String>,
        /// Copy all, not only what the bitmap marks.
        #[serde(default)]
        full: bool,
        /// As for a mirror.
        #[serde(default)]
        speed: u64,
    },
    /// Write what its image has into the backing image.
    Commit {
        /// The disk.
        disk: String,
        /// As for a mirror.
        #[serde(default)]
        speed: u64,
    },
    /// Take what its image shows of its backing chain into it.
    Stream {
        /// The disk.
        disk: String,
        /// As for a mirror.
        #[serde(default)]
        speed: u64,
    },
}

impl DiskCommand {
    /// The disk it is about.
    pub fn disk(&self) -> &str {
        match self {
            DiskCommand::Resize { disk, .. }
            | DiskCommand::Snapshots { disk }
            | DiskCommand::SnapshotCreate { disk, .. }
            | DiskCommand::SnapshotDelete { disk, .. }
            | DiskCommand::Overlay { disk, .. }
            | DiskCommand::Bitmaps { disk }
            | DiskCommand::BitmapAdd { disk, .. }
            | DiskCommand::BitmapRemove { disk, .. }
            | DiskCommand::Mirror { disk, .. }
            | DiskCommand::Backup { disk, .. }
            | DiskCommand::Commit { disk, .. }
            | DiskCommand::Stream { disk, .. } => disk,
        }
    }
}

/// The image that a job writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JobTarget {
    /// Its file.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
    /// It exists; else it is made, and must not exist.
    #[serde(default)]
    pub existing: bool,
    /// The backing file and its format for one that is made: the backup before an incremental one.
    #[serde(default)]
    pub backing: Option<(String, String)>,
}

/// Something to be done with a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum JobCommand {
    /// List all, the last one of each disk too if it has ended.
    List {},
    /// Change the speed.
    Speed {
        /// The job.
        job: String,
        /// Bytes a second at most; 0: no limit.
        speed: u64,
    },
    /// Let it wait.
    Pause {
        /// The job.
        job: String,
    },
    /// Let it go on.
    Resume {
        /// The job.
        job: String,
    },
    /// Give it up.
    Cancel {
        /// The job.
        job: String,
    },
    /// End a mirror or commit that is ready.
    Complete {
        /// The job.
        job: String,
        /// The target is the disk from there on.
        pivot: bool,
    },
}

/// A job of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskJob {
    /// Its name, never used twice by a machine.
    pub job: String,
    /// The disk.
    pub disk: String,
    /// Where it is.
    #[serde(flatten)]
    pub report: JobReport,
}
