//! A volume as an image: `web.pool/root` is the volume `root` of the pool that the pool file `web.pool` names, and
//! `web.pool/root@monday` a snapshot of it.

use super::file::PoolFile;
use super::open::OpenPool;
use super::record::{Layout, Provisioning};
use super::volume::PoolVolume;
use super::{Pool, wrong};
use crate::backend::BlockBackend;
use crate::error::BlockError;
use crate::image::{CheckReport, DiskImage, ImageInfo, ImageResult, Repair, SnapshotInfo, Snapshots};
use crate::options::{Aio, CreateOptions, OpenOptions, parse_size};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What such paths are called as a format.
pub(crate) const FORMAT: &str = "pool";

const OPTIONS: &[(&str, &str)] = &[
    ("layout", "linear, striped, or mirrored"),
    ("copies", "of a mirrored volume: 2 or 3"),
    ("provisioning", "thin, lazy, or eager"),
    ("checksums", "on or off"),
];

/// Whether a path goes through a file: that can be nothing but a volume's.
pub(crate) fn is_volume(path: &Path) -> bool {
    path.parent().is_some_and(Path::is_file)
}

/// The pool file and the volume's name.
fn parts(path: &Path) -> ImageResult<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    match (path.parent(), name) {
        (Some(file), Some(name)) if is_volume(path) => Ok((file, name)),
        _ => {
            let text =
                format!("{} names no volume; POOL-FILE/VOLUME does, as in web.pool/root", path.display());
            Err(wrong(text))
        }
    }
}

/// Opens a volume. One that is written to is opened once.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> ImageResult<Arc<dyn DiskImage>> {
    let (file, name) = parts(path)?;
    let read_only = options.read_only;
    if options.cache.bypasses_host() || options.aio == Aio::IoUring {
        let problem = "members of a pool are shared by its volumes and go through the host's page cache, without io_uring";
        return Err(BlockError::option("cache", problem));
    }
    let pool = PoolFile::open(file, OpenPool { read_only, degraded: false })?;
    let failed = |source| BlockError::io(path, "opening the volume", source);
    let mut volume = pool.volume(name, read_only).map_err(failed)?;
    if !volume.capabilities().read_only {
        if !pool.writers.lock().insert(volume.volume) {
            return Err(BlockError::InUse { path: path.to_owned() });
        }
        volume.is_writer = true;
    }
    volume.keep_discarded = options.keep_discarded;
    volume.path = path.to_owned();
    Ok(Arc::new(volume))
}

/// Makes a volume in a pool that is there.
pub(crate) fn create(path: &Path, mut options: CreateOptions) -> ImageResult<()> {
    let (file, name) = parts(path)?;
    let copies = options.take("copies").map_or(Ok(2), |text| parse_size(&text).map_err(wrong))?;
    let copies = u8::try_from(copies).unwrap_or(u8::MAX);
    let layout = match options.take("layout").as_deref() {
        None | Some("linear") => Layout::Linear,
        Some("striped") => Layout::Striped,
        Some("mirrored") => Layout::Mirrored(copies),
        Some(other) => return Err(wrong(format!("layout {other:?}; known: linear, striped, mirrored"))),
    };
    let provisioning = match options.take("provisioning").as_deref() {
        None | Some("thin") => Provisioning::Thin,
        Some("lazy") => Provisioning::Lazy,
        Some("eager") => Provisioning::Eager,
        Some(other) => return Err(wrong(format!("provisioning {other:?}; known: thin, lazy, eager"))),
    };
    let checksums = match options.take("checksums").as_deref() {
        None | Some("off") => false,
        Some("on") => true,
        Some(other) => return Err(wrong(format!("checksums {other:?}; known: on, off"))),
    };
    options.finish(FORMAT, OPTIONS)?;
    if options.backing.is_some() {
        return Err(BlockError::unsupported(path, "a backing file, which volumes cannot have"));
    }
    let pool = PoolFile::open(file, OpenPool::default())?;
    let made = pool.create_volume(name, options.size, layout, provisioning, &[]);
    let made = made
        .and_then(|()| if checksums { pool.set_checksums(name, true, &|_| ()).map(drop) } else { Ok(()) });
    made.map_err(|source| BlockError::io(path, "making the volume", source))
}

impl Drop for PoolVolume {
    fn drop(&mut self) {
        if self.is_writer {
            self.pool.writers.lock().remove(&self.volume);
        }
    }
}

impl PoolVolume {
    fn failed(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> BlockError {
        let path: PathBuf = self.path.clone();
        move |source| BlockError::io(&path, action, source)
    }

    fn name(&self) -> ImageResult<String> {
        self.pool
            .settings(self.volume)
            .map(|settings| settings.name)
            .map_err(self.failed("looking for the volume"))
    }
}

impl DiskImage for PoolVolume {
    fn info(&self) -> ImageResult<ImageInfo> {
        let name = self.name()?;
        let found = self.pool.info().volumes.into_iter().find(|volume| volume.name == name);
        Ok(ImageInfo {
            filename: self.path.clone(),
            format: FORMAT.to_owned(),
            virtual_size: self.size(),
            actual_size: found.map_or(0, |volume| volume.allocated),
            cluster_size: Some(self.pool.chunk_size()),
            snapshots: Snapshots::list(self)?,
            ..ImageInfo::default()
        })
    }

    /// Compares copies, of all volumes of the pool.
    fn check(&self, repair: Repair) -> ImageResult<CheckReport> {
        let report =
            self.pool.scrub(repair == Repair::All, &|_| ()).map_err(self.failed("comparing copies"))?;
        Ok(CheckReport {
            corruptions: (report.differing + report.unreadable + report.rotten)
                .saturating_sub(report.repaired)
                + report.lost,
            corruptions_fixed: report.repaired,
            total_clusters: self.size().div_ceil(self.pool.chunk_size()),
            allocated_clusters: report.chunks,
            findings: report.findings,
            ..CheckReport::default()
        })
    }

    fn cluster_size(&self) -> u64 {
        self.pool.chunk_size()
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn set_backing(&self, backing: Option<(&str, &str)>) -> ImageResult<()> {
        match backing {
            None => Ok(()),
            Some(_) => Err(BlockError::unsupported(&self.path, "a backing file, which volumes cannot have")),
        }
    }

    fn make_empty(&self) -> ImageResult<()> {
        self.write_zeroes(0, self.size(), true).map_err(self.failed("giving up its content"))
    }
}

/// A snapshot's identity is its name.
impl Snapshots for PoolVolume {
    fn list(&self) -> ImageResult<Vec<SnapshotInfo>> {
        let name = self.name()?;
        let found = self.pool.info().volumes.into_iter().find(|volume| volume.name == name);
        let snapshots = found.map(|volume| volume.snapshots).unwrap_or_default().into_iter();
        let info = snapshots.map(|snapshot| SnapshotInfo {
            id: snapshot.name.clone(),
            name: snapshot.name,
            date_sec: u32::try_from(snapshot.time).unwrap_or(u32::MAX),
            disk_size: snapshot.size,
            ..SnapshotInfo::default()
        });
        Ok(info.collect())
    }

    fn create(&self, name: &str) -> ImageResult<SnapshotInfo> {
        self.pool.create_snapshot(&self.name()?, name).map_err(self.failed("making the snapshot"))?;
        let made = self.list()?.into_iter().find(|snapshot| snapshot.name == name);
        made.ok_or_else(|| wrong(format!("the snapshot {name:?} was deleted at once")))
    }

    fn revert(&self, snapshot: &str) -> ImageResult<()> {
        Pool::revert(&self.pool, &self.name()?, snapshot).map_err(self.failed("going back to the snapshot"))
    }

    fn delete(&self, snapshot: &str) -> ImageResult<()> {
        self.pool.delete_snapshot(&self.name()?, snapshot).map_err(self.failed("deleting the snapshot"))
    }
}
