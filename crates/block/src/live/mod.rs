//! A disk at work: what it is made of can be changed under a running guest, and jobs copy it meanwhile.
//!
//! Each request holds the disk's top for reading; who changes what the disk is made of (a snapshot, the end of a mirror)
//! holds it for writing, so that no request is under way. While a job runs, changes additionally lock the [`GRAIN`]s
//! they touch, always after the top: a job that locks the same grains has them to itself. A job learns of each change
//! before it happens, with the grains locked, and after it.

mod backup;
mod counters;
mod grains;
mod job;
mod mirror;
mod stream;
#[cfg(test)]
mod tests;

pub use counters::DiskCounts;
pub use job::{Job, JobKind, JobOrder, JobReport, JobStatus};

use crate::backend::{BlockBackend, Capabilities, Extent};
use crate::buffers::len;
use crate::error::BlockError;
use crate::flights::Flights;
use crate::image::{DiskImage, ImageResult};
use crate::transfer::Transfer;
use counters::Counters;
use parking_lot::{RwLock, RwLockReadGuard};
use std::io::{IoSlice, IoSliceMut, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What jobs copy and lock at a time, in bytes.
pub const GRAIN: u64 = 64 << 10;

/// A disk's content, and what its format offers beyond it.
#[derive(Clone)]
pub struct Layer {
    /// The content.
    pub disk: Arc<dyn BlockBackend>,
    /// The same as an image; `disk` may be what keeps a raw disk's size.
    pub image: Arc<dyn DiskImage>,
    /// Its file.
    pub path: PathBuf,
    /// Name of its format.
    pub format: String,
}

impl Layer {
    /// A layer of an image.
    pub fn of(image: Arc<dyn DiskImage>, path: &Path, format: &str) -> Self {
        Layer { disk: image.clone(), image, path: path.to_owned(), format: format.to_owned() }
    }
}

/// Whoever has to know of changes, while it is there.
trait Watcher: Send + Sync {
    /// These grains, which are locked, are about to change on `disk`.
    fn before_change(&self, disk: &dyn BlockBackend, grains: Range<u64>);
    /// Bytes of this range may have changed.
    fn after_change(&self, range: Range<u64>);
}

struct Top {
    layer: Layer,
    watcher: Option<Arc<dyn Watcher>>,
}

/// A disk at work.
pub struct LiveDisk {
    top: RwLock<Top>,
    grains: Flights,
    counters: Counters,
}

impl LiveDisk {
    /// A disk that is made of this layer for now.
    pub fn new(layer: Layer) -> Arc<Self> {
        let top = RwLock::new(Top { layer, watcher: None });
        Arc::new(LiveDisk { top, grains: Flights::default(), counters: Counters::default() })
    }

    /// What it is made of.
    pub fn layer(&self) -> Layer {
        self.top.read().layer.clone()
    }

    /// Requests so far.
    pub fn counts(&self) -> DiskCounts {
        self.counters.get()
    }

    /// Does something with the disk's image while no request is under way, all before being durable.
    ///
    /// # Errors
    /// When a job runs, the flush fails, or the work does.
    pub fn with_image<T>(&self, work: impl FnOnce(&Arc<dyn DiskImage>) -> ImageResult<T>) -> ImageResult<T> {
        let top = self.idle_top()?;
        let image = &top.layer.image;
        image.flush().map_err(|error| BlockError::option("disk", format!("flushing it failed: {error}")))?;
        work(image)
    }

    /// Puts a new layer, made by `make` from the present one, in the place of the present one; everything before is
    /// durable then, and no request is under way.
    ///
    /// # Errors
    /// When a job runs, the flush fails, or `make` does; nothing is changed then.
    pub fn replace(&self, make: impl FnOnce(&Layer) -> ImageResult<Layer>) -> ImageResult<()> {
        let mut top = self.idle_top()?;
        let flushed = top.layer.disk.flush();
        flushed.map_err(|error| BlockError::option("disk", format!("flushing it failed: {error}")))?;
        let layer = make(&top.layer)?;
        if layer.disk.size() != top.layer.disk.size() {
            let (new, old) = (layer.disk.size(), top.layer.disk.size());
            return Err(BlockError::option("disk", format!("the new layer has {new} bytes, not {old}")));
        }
        top.layer = layer;
        Ok(())
    }

    fn idle_top(&self) -> ImageResult<parking_lot::RwLockWriteGuard<'_, Top>> {
        let top = self.top.write();
        match top.watcher {
            Some(_) => {
                Err(BlockError::option("disk", "a job is at work on it; wait for its end or cancel it"))
            }
            None => Ok(top),
        }
    }

    /// Holds the top for reading, and grains.
    fn with_grains<T>(&self, grains: Range<u64>, work: impl FnOnce(&Layer) -> T) -> T {
        let top = self.top.read();
        let _locked = self.grains.start(grains);
        work(&top.layer)
    }

    fn request<'a>(&'a self) -> RwLockReadGuard<'a, Top> {
        self.top.read()
    }

    fn change(&self, range: Range<u64>, write: impl FnOnce(&dyn BlockBackend) -> Result<()>) -> Result<()> {
        let top = self.request();
        let disk = &*top.layer.disk;
        let Some(watcher) = &top.watcher else { return write(disk) };
        if disk.check_range(range.start, range.end.saturating_sub(range.start)).is_err() || range.is_empty() {
            return write(disk);
        }
        let grains = range.start - range.start % GRAIN..range.end.next_multiple_of(GRAIN).min(disk.size());
        let _locked = self.grains.start(grains.clone());
        watcher.before_change(disk, grains);
        let written = write(disk);
        // What failed may have changed something nevertheless.
        watcher.after_change(range);
        written
    }
}

/// Whether a disk of so many bytes can be copied there.
fn check_target(target: &Layer, size: u64) -> ImageResult<()> {
    if target.disk.is_read_only() {
        return Err(BlockError::option("target", "it is open for reading only"));
    }
    match target.disk.size() {
        found if found == size => Ok(()),
        found => Err(BlockError::option("target", format!("it has {found} bytes, the disk has {size}"))),
    }
}

impl BlockBackend for LiveDisk {
    fn size(&self) -> u64 {
        self.request().layer.disk.size()
    }
    fn capabilities(&self) -> Capabilities {
        self.request().layer.disk.capabilities()
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let bytes = len(buffers);
        self.counters.read(bytes, || self.request().layer.disk.read_at(offset, buffers))
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let bytes = len(buffers);
        let range = offset..offset.saturating_add(bytes);
        self.counters.write(bytes, || self.change(range, |disk| disk.write_at(offset, buffers)))
    }
    fn batches(&self) -> bool {
        self.request().layer.disk.batches()
    }
    fn transfer(&self, batch: &mut [&mut Transfer<'_>]) {
        let top = self.request();
        if top.watcher.is_none() {
            return self.counters.batch(batch, |batch| top.layer.disk.transfer(batch));
        }
        drop(top);
        // A job wants to know of every change by itself.
        batch.iter_mut().for_each(|transfer| transfer.run(self));
    }
    fn flush(&self) -> Result<()> {
        self.counters.flush(|| self.request().layer.disk.flush())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let range = offset..offset.saturating_add(len);
        self.counters.discard(len, || self.change(range, |disk| disk.discard(offset, len)))
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        let range = offset..offset.saturating_add(len);
        self.counters.write(len, || self.change(range, |disk| disk.write_zeroes(offset, len, unmap)))
    }
    fn resize(&self, size: u64) -> Result<()> {
        self.idle_top()?.layer.disk.resize(size)
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.request().layer.disk.block_status(offset, len)
    }
}
