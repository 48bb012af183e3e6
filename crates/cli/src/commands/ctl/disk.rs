//! `vireo ctl PATH disk …` and `vireo ctl PATH job …`.

use anyhow::Result;
use block::{BitmapInfo, JobStatus, SnapshotInfo};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::fmt::Write;
use std::path::PathBuf;
use vm_config::ByteSize;
use vmm::control::disk_commands::{DiskCommand, DiskJob, JobCommand, JobTarget};

#[derive(Debug, Subcommand)]
pub enum DiskAction {
    /// Make a disk larger; the guest sees it at once
    Resize {
        /// The disk, like disk0
        disk: String,
        /// Its new size
        size: ByteSize,
    },
    /// List the snapshots inside a disk's image
    Snapshots {
        /// The disk
        disk: String,
    },
    /// Take a snapshot inside a disk's image
    SnapshotCreate {
        /// The disk
        disk: String,
        /// Name of the snapshot
        name: String,
    },
    /// Remove a snapshot inside a disk's image
    SnapshotDelete {
        /// The disk
        disk: String,
        /// The snapshot's identity or name
        name: String,
    },
    /// Take an external snapshot: a new qcow2 image over the present one takes all changes from here on
    Overlay {
        /// The disk
        disk: String,
        /// The new image
        path: PathBuf,
    },
    /// List the dirty bitmaps of a disk
    Bitmaps {
        /// The disk
        disk: String,
    },
    /// Add a dirty bitmap that records changes from here on, for incremental backups
    BitmapAdd {
        /// The disk
        disk: String,
        /// Name of the bitmap
        name: String,
    },
    /// Remove a dirty bitmap
    BitmapRemove {
        /// The disk
        disk: String,
        /// Name of the bitmap
        name: String,
    },
    /// Start to copy a disk and follow its changes; when ready, `job complete` can make the copy the disk
    Mirror {
        /// The disk
        disk: String,
        #[command(flatten)]
        target: TargetArgs,
        /// Bytes a second at most
        #[arg(long, default_value = "0")]
        speed: ByteSize,
    },
    /// Start to copy a disk as it is now
    Backup {
        /// The disk
        disk: String,
        #[command(flatten)]
        target: TargetArgs,
        /// Copy only what this bitmap marks, and let it start anew
        #[arg(long, value_name = "NAME")]
        bitmap: Option<String>,
        /// Copy everything although a bitmap is given
        #[arg(long)]
        full: bool,
        /// Format of the target's backing file
        #[arg(long, requires = "backing", default_value = "qcow2")]
        backing_format: String,
        /// Make the target over this image, the backup before an incremental one
        #[arg(long, value_name = "FILE")]
        backing: Option<String>,
        /// Bytes a second at most
        #[arg(long, default_value = "0")]
        speed: ByteSize,
    },
    /// Start to write an image's content into its backing image, which `job complete` then makes the disk
    Commit {
        /// The disk
        disk: String,
        /// Bytes a second at most
        #[arg(long, default_value = "0")]
        speed: ByteSize,
    },
    /// Start to copy what an image takes from its backing chain into it, after which it needs the chain no more
    Stream {
        /// The disk
        disk: String,
        /// Bytes a second at most
        #[arg(long, default_value = "0")]
        speed: ByteSize,
    },
}

#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The image to write, or the URI of an NBD export or iSCSI unit (with --existing --format raw)
    target: PathBuf,
    /// Its format
    #[arg(long, short = 'O', default_value = "qcow2")]
    format: String,
    /// Write to an image that exists instead of making one
    #[arg(long)]
    existing: bool,
}

impl TargetArgs {
    fn target(&self, backing: Option<(String, String)>) -> JobTarget {
        let (path, format) = (absolute(&self.target), self.format.clone());
        JobTarget { path, format, existing: self.existing, backing }
    }
}

/// The machine runs in another folder. A URI or an LVM volume is the same everywhere.
fn absolute(path: &std::path::Path) -> PathBuf {
    let text = path.to_string_lossy();
    if text.contains("://") || text.starts_with("lvm:") {
        return path.to_owned();
    }
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl DiskAction {
    pub fn command(&self) -> DiskCommand {
        match self {
            DiskAction::Resize { disk, size } => DiskCommand::Resize { disk: disk.clone(), size: size.0 },
            DiskAction::Snapshots { disk } => DiskCommand::Snapshots { disk: disk.clone() },
            DiskAction::SnapshotCreate { disk, name } => {
                DiskCommand::SnapshotCreate { disk: disk.clone(), name: name.clone() }
            }
            DiskAction::SnapshotDelete { disk, name } => {
                DiskCommand::SnapshotDelete { disk: disk.clone(), name: name.clone() }
            }
            DiskAction::Overlay { disk, path } => {
                DiskCommand::Overlay { disk: disk.clone(), path: absolute(path) }
            }
            DiskAction::Bitmaps { disk } => DiskCommand::Bitmaps { disk: disk.clone() },
            DiskAction::BitmapAdd { disk, name } => {
                DiskCommand::BitmapAdd { disk: disk.clone(), name: name.clone() }
            }
            DiskAction::BitmapRemove { disk, name } => {
                DiskCommand::BitmapRemove { disk: disk.clone(), name: name.clone() }
            }
            DiskAction::Mirror { disk, target, speed } => {
                DiskCommand::Mirror { disk: disk.clone(), target: target.target(None), speed: speed.0 }
            }
            DiskAction::Backup { disk, target, bitmap, full, backing_format, backing, speed } => {
                let backing = backing.clone().map(|file| (file, backing_format.clone()));
                DiskCommand::Backup {
                    disk: disk.clone(),
                    target: target.target(backing),
                    bitmap: bitmap.clone(),
                    full: *full,
                    speed: speed.0,
                }
            }
            DiskAction::Commit { disk, speed } => DiskCommand::Commit { disk: disk.clone(), speed: speed.0 },
            DiskAction::Stream { disk, speed } => DiskCommand::Stream { disk: disk.clone(), speed: speed.0 },
        }
    }

    /// The answer for people.
    pub fn text(&self, answer: &Value) -> Result<String> {
        let mut text = String::new();
        match self {
            DiskAction::Snapshots { .. } => {
                for snapshot in serde_json::from_value::<Vec<SnapshotInfo>>(answer.clone())? {
                    writeln!(text, "{} {} {}", snapshot.id, snapshot.name, ByteSize(snapshot.disk_size))?;
                }
            }
            DiskAction::Bitmaps { .. } => {
                for bitmap in serde_json::from_value::<Vec<BitmapInfo>>(answer.clone())? {
                    let state = if bitmap.enabled { "records" } else { "does not record" };
                    writeln!(text, "{} {} bytes marked, {state}", bitmap.name, bitmap.dirty)?;
                }
            }
            DiskAction::Mirror { .. }
            | DiskAction::Backup { .. }
            | DiskAction::Commit { .. }
            | DiskAction::Stream { .. } => {
                writeln!(text, "{}", answer["job"].as_str().unwrap_or_default())?;
            }
            _ => {}
        }
        Ok(text)
    }
}

#[derive(Debug, Subcommand)]
pub enum JobAction {
    /// Change a job's speed
    Speed {
        /// The job, like job0
        job: String,
        /// Bytes a second at most; 0 for no limit
        speed: ByteSize,
    },
    /// Let a job wait
    Pause {
        /// The job
        job: String,
    },
    /// Let a job go on
    Resume {
        /// The job
        job: String,
    },
    /// Give a job up; the disk is as if there had been none
    Cancel {
        /// The job
        job: String,
    },
    /// End a mirror or commit that is ready: the target is the disk from there on
    Complete {
        /// The job
        job: String,
        /// Leave the disk where it is; the target is a copy
        #[arg(long)]
        no_pivot: bool,
    },
}

impl JobAction {
    pub fn command(&self) -> JobCommand {
        match self {
            JobAction::Speed { job, speed } => JobCommand::Speed { job: job.clone(), speed: speed.0 },
            JobAction::Pause { job } => JobCommand::Pause { job: job.clone() },
            JobAction::Resume { job } => JobCommand::Resume { job: job.clone() },
            JobAction::Cancel { job } => JobCommand::Cancel { job: job.clone() },
            JobAction::Complete { job, no_pivot } => {
                JobCommand::Complete { job: job.clone(), pivot: !no_pivot }
            }
        }
    }
}

/// One job a line.
pub fn jobs_text(answer: Value) -> Result<String> {
    let mut text = String::new();
    for DiskJob { job, disk, report } in serde_json::from_value::<Vec<DiskJob>>(answer)? {
        let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, status) =
            (word(serde_json::to_value(report.kind)?), word(serde_json::to_value(report.status)?));
        write!(text, "{job} {disk} {kind} {status} {} of {} bytes", report.done, report.total)?;
        if report.speed > 0 && report.status != JobStatus::Completed {
            write!(text, ", {} a second at most", ByteSize(report.speed))?;
        }
        match report.error {
            Some(error) => writeln!(text, ": {error}")?,
            None => writeln!(text)?,
        }
    }
    Ok(text)
}
